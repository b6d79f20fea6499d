"""Samples by likeness: the nearest embeddings of a selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube import similarity
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.background import percentiles, random_pairs
from gridrad_cube.query.questions import Place, Question, is_batch, place_of, questions
from gridrad_cube.query.samples import (
    collect,
    crop_blocks,
    is_embeddings,
    positions,
    read_points,
    sample_dims,
    seconds_of,
    written,
)
from gridrad_cube.query.selection import Where, select
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_neighborhood
from gridrad_cube.store import store_info

if TYPE_CHECKING:
    from gridrad_cube.query.index import Index

#: Rows of one read: with the chunks they come from, a search of a store on disk stays under half a gigabyte.
ROWS_AT_ONCE = 32768
#: Neighbours of the query in space and time that a search leaves out.
EXCLUDE = ("6h", "200km")


class Rows:
    """Embeddings as rows of a matrix, in the order of the sample dims; whole crops are read."""

    def __init__(self, variable: xr.Variable) -> None:
        dims = [d for d in ("crop", "channel", "row", "col") if d in variable.dims]
        order = (*dims, "feature")
        self.variable = variable if variable.dims == order else variable.transpose(*order)
        self.per_crop = int(np.prod(self.variable.shape[1:-1], dtype=np.int64))
        self.shape = (self.variable.sizes["crop"] * self.per_crop, self.variable.sizes["feature"])

    def block(self) -> int:
        """Rows of whole crops, and of whole chunks where they are known, near the size of a block."""
        unit = self.per_crop * int(self.variable.encoding.get("preferred_chunks", {}).get("crop", 1))
        if unit > ROWS_AT_ONCE:
            unit = self.per_crop
        return max(ROWS_AT_ONCE // unit, 1) * unit

    def take(self, rows: npt.NDArray[np.int64]) -> np.ndarray:
        """Some rows, in any order; each crop is read once."""
        dims = self.variable.dims[:-1]
        at = np.unravel_index(rows, self.variable.shape[:-1])
        return read_points(self.variable, {str(d): i for d, i in zip(dims, at, strict=True)})

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last = rows.start // self.per_crop, -(-rows.stop // self.per_crop)
        values = self.variable.isel(crop=slice(first, last)).values.reshape(-1, self.shape[1])
        start = first * self.per_crop
        return np.asarray(values[rows.start - start : rows.stop - start])


def search(
    dataset: xr.Dataset,
    query: Any,
    k: int = 10,
    *,
    exclude: Any = EXCLUDE,
    separate: Any = None,
    metric: similarity.Metric = "cosine",
    percentile: bool = False,
    seed: int = 0,
    index: Index | None = None,
    **where: Unpack[Where],
) -> xr.Dataset:
    """Find the samples most like a query: filters first, then an exact search of all that is left.

    Parameters
    ----------
    dataset
        A store of embeddings, level 256 or 2k.
    query
        - A sample of the store, a tuple ``(crop, row, col[, channel])`` (level 2k: ``(crop[, channel])``).
        - A place and time, ``{"time": ..., "latitude": ..., "longitude": ...}`` or ``(time, latitude,
          longitude)``, for the sample that `at` finds there.
        - A vector: an array, or a ``DataArray`` such as ``at(...).embedding.sel(channel=...)``, whose time and
          place then count as the query's. With ``metric="dot"``, the weights of a linear probe.
        - Several examples of one thing, ``{"positive": [...], "negative": [...]}``, each one of the above: the
          mean of their directions (with cosine), less that of what is not looked for.
        - A batch: a list of queries, or an array ``(queries, feature)``, each answered for itself, all in one
          pass over the store.
    k
        Answers at most. Fewer come back where fewer are left.
    exclude
        Leave out neighbours of the query (of each of its examples): samples that lie both less than this long
        before or after it and less than this far from it. None in the place of either means however long or
        far; None for the rule leaves out the query alone. A vector without a place has no neighbours.
    separate
        The same rule among the answers: of two neighbours the one with the better score stays.
    metric
        ``"cosine"`` (scores fall from 1), ``"euclidean"`` (distances rise from 0) or ``"dot"`` (inner
        products fall).
    percentile
        Whether to say what share of random pairs of samples of the same hour of the day are less alike than
        the query and the answer: the hour alone makes fields look alike.
    seed
        Of the random pairs.
    index
        From `build_index`, for large stores: finds most of the nearest without comparing all; scores are
        exact. The answer's attribute ``recall`` says what share it finds.
    bbox, time, polygon, season, hour, solar_hour, convective_day, reject
        As in `within`.
    channel
        Labels to search. None: the channel of the query, or all for a vector.

    Returns
    -------
    ``score(rank)`` with the coordinates of each answer: ``crop``, ``channel``, ``row``, ``col``, time,
    position, source file, scene, pixel window and flags. Equal scores stand in the order of the store: crop,
    channel, row, col. Attributes describe the query and what was searched. A batch gives ``score(query,
    rank)``: where one has fewer answers than others, the score is NaN and the crop -1.

    Raises
    ------
    SchemaError
        If the query has no embedding or does not fit the store, or the filters leave nothing.
    """
    require_embeddings(dataset, "search")
    batch = is_batch(query)
    channel = where.get("channel")
    asked = questions(dataset, query if batch else [query], channel, metric)
    if channel is None:
        where["channel"] = common_channels(asked)
    rule, apart = as_neighborhood(exclude, "exclude"), as_neighborhood(separate, "separate")
    mask = select(dataset, **where)
    drops = [excluded(dataset, one, rule) for one in asked]
    total = int(np.count_nonzero(mask))
    counts = [total - int(np.count_nonzero(mask.reshape(-1)[d])) for d in drops]
    if not all(counts):
        raise SchemaError(
            f"search: every sample of the selection is the query or a neighbour of it (exclude={exclude!r}). "
            "Pass a wider bbox or time, or exclude=None."
        )
    rows, scores = _ranked(dataset, asked, k, mask, drops, apart, metric, index)
    empty = np.flatnonzero((rows < 0).all(axis=1)) if rows.size else np.arange(len(asked))
    if len(empty):
        raise SchemaError(
            f"search: none of the {counts[empty[0]]} samples of the selection has an embedding (all are NaN)"
        )
    said = {
        "metric": metric,
        "searched": counts if batch else counts[0],
        "exclude": str(exclude if any(p.place for one in asked for p in one.parts) else None),
        "separate": str(separate),
    }
    if index is not None:
        said |= index.attributes()
    answers = _answer(dataset, rows, scores, mask.shape, said)
    if percentile:
        pairs = random_pairs(dataset, mask, metric, rule, seed)
        answers["percentile"] = (("query", "rank"), percentiles(pairs, scores, metric), {
            "long_name": f"share of {len(pairs)} random pairs of samples of one hour of the day that are less alike",
            "units": "percent",
        })  # fmt: skip
    if batch:
        return _with_queries(answers, [one.attributes(dataset) for one in asked])
    return answers.isel(query=0).assign_attrs(asked[0].attributes(dataset))


def require_embeddings(dataset: xr.Dataset, name: str) -> None:
    """Refuse a cube of patches."""
    if not is_embeddings(dataset):
        raise SchemaError(
            f"{name}: a cube of patches has no embeddings. Run gridrad-cube embed, open that store."
        )


def common_channels(asked: Sequence[Question]) -> list[int] | None:
    """Channels to search for queries that are samples: theirs; None if one of them is a vector alone."""
    channels = [one.channels() for one in asked]
    if any(c is None for c in channels):
        return None
    found = sorted({c for some in channels for c in some or ()})
    if any(c != channels[0] for c in channels):
        raise SchemaError(
            f"search: the queries are of several channels, {found}, and each is compared with its own. Ask for one "
            "after the other, or pass channel= with those to compare with."
        )
    return found


def _answer(
    dataset: xr.Dataset,
    rows: np.ndarray,
    scores: np.ndarray,
    shape: tuple[int, ...],
    said: dict[str, Any],
) -> xr.Dataset:
    """The samples of rows (query, rank), as a dataset on these dims; row -1 is none."""
    there = rows >= 0
    index = dict(zip(sample_dims(dataset), np.unravel_index(rows[there], shape), strict=True))
    small = dataset.drop_vars([n for n in dataset.data_vars if n not in ("embedding", "flags")])
    flat = collect(small, index, "rank").drop_vars("embedding")
    out = xr.Dataset({n: v if "rank" not in v.dims else _unfold(v, there) for n, v in flat.variables.items()})
    out = out.set_coords(list(out.data_vars))
    out["score"] = (
        ("query", "rank"), scores, {"long_name": f"likeness to the query ({said['metric']})", "units": "1"}
    )  # fmt: skip
    out.attrs = said | provenance(dataset)
    return out.assign_coords(rank=("rank", np.arange(1, rows.shape[1] + 1))).load()


def _unfold(variable: xr.Variable, there: np.ndarray) -> xr.Variable:
    """A variable of samples, in order, on (query, rank), with what stands for none elsewhere."""
    values = variable.values
    kind = values.dtype.kind
    fill: Any = np.array("NaT", values.dtype) if kind in "Mm" else {"f": np.nan, "i": -1}.get(kind, 0)
    out = np.full((*there.shape, *values.shape[1:]), "" if kind in "OTU" else fill, values.dtype)
    out[there] = values
    return xr.Variable(("query", *variable.dims), out, variable.attrs)


def _with_queries(answers: xr.Dataset, said: list[dict[str, Any]]) -> xr.Dataset:
    """What each query of a batch is, as coordinates on ``query``, as far as all of them say it."""
    names = [name for name in said[0] if all(name in one for one in said)]
    columns = {name: ("query", [one[name] for one in said]) for name in names if name != "query"}
    return answers.assign_coords(columns).assign_attrs(query="batch")


def provenance(dataset: xr.Dataset) -> dict[str, Any]:
    """Where an answer comes from: store, checkpoint, and the cube that was embedded."""
    info = store_info(dataset)
    out = {
        "store": str(dataset.encoding.get("source", "")),
        "checkpoint": str(info.get("checkpoint", "")),
        "cube": str(info.get("source") or ""),
        "level": str(info.get("level") or ""),
        "patch": info.get("patch"),
        "stride": info.get("stride"),
    }
    return {key: value for key, value in out.items() if value}


def _ranked(
    dataset: xr.Dataset,
    asked: Sequence[Question],
    k: int,
    mask: np.ndarray,
    drops: Sequence[np.ndarray],
    apart: tuple[float, float] | None,
    metric: similarity.Metric,
    index: Index | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores (query, rank) of the best k samples under a mask, none near another if ``apart`` is given."""
    rows = Rows(dataset["embedding"].variable)
    vectors = np.stack([one.vector for one in asked])
    flat = mask.reshape(-1)

    def best(which: slice, some: int, drop: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if index is not None:
            return index.nearest(rows, vectors[which], some, metric=metric, mask=flat, drop=drop)
        return similarity.nearest(
            rows, vectors[which], some, metric=metric, mask=flat, drop=drop, block=rows.block()
        )

    if apart is None:
        return best(slice(None), k, drops)
    if k < 1:
        raise SchemaError(f"k: got {k}; expected at least 1")
    out_rows, out_scores = np.full((len(asked), k), -1), np.full((len(asked), k), np.nan, np.float32)
    for i, drop in enumerate(drops):
        kept: list[int] = []
        scores: list[float] = []
        while len(kept) < k:
            # Neighbours come in crowds: ask for more than enough, and again for the rest if it was not.
            more = max(4 * (k - len(kept)), 64)
            (found,), (score,) = best(slice(i, i + 1), more, [drop])
            gone = [drop]
            for row, s in zip(found.tolist(), score.tolist(), strict=True):
                if row < 0 or len(kept) == k or any(_contains(g, row) for g in gone[1:]):
                    continue
                kept.append(row)
                scores.append(s)
                here = place_of(dataset, _sample(dataset, row, mask.shape))
                gone.append(np.union1d(neighbours(dataset, here, apart), [row]))
            if len(found) < more:
                break
            drop = np.unique(np.concatenate(gone))
        out_rows[i, : len(kept)], out_scores[i, : len(kept)] = kept, scores
    longest = int((out_rows >= 0).sum(axis=1).max())
    return out_rows[:, :longest], out_scores[:, :longest]


def _contains(ascending: np.ndarray, value: int) -> bool:
    at = int(np.searchsorted(ascending, value))
    return at < len(ascending) and int(ascending[at]) == value


def _sample(dataset: xr.Dataset, row: int, shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(sample_dims(dataset), (int(i) for i in np.unravel_index(row, shape)), strict=True))


def excluded(dataset: xr.Dataset, asked: Question, rule: tuple[float, float] | None) -> npt.NDArray[np.int64]:
    """Rows of samples that are the query, one of its examples, or a neighbour of one; ascending."""
    dims = sample_dims(dataset)
    shape = tuple(dataset.sizes[d] for d in dims)
    out = [np.empty(0, np.int64)]
    for part in asked.parts:
        if part.sample is not None:
            out.append(np.array([np.ravel_multi_index(tuple(part.sample[d] for d in dims), shape)]))
        if rule is not None and part.place is not None:
            out.append(neighbours(dataset, part.place, rule))
    return np.unique(np.concatenate(out))


def neighbours(dataset: xr.Dataset, place: Place, rule: tuple[float, float]) -> npt.NDArray[np.int64]:
    """Rows of samples that lie within both a time and a distance of a place, ascending."""
    seconds, km = rule
    if km < np.inf and np.isnan(place[1]):
        raise SchemaError(
            f"search: no position is known of a sample that others are to be {km:g} km away from. Pass "
            "exclude=None and separate=None, or a time alone, such as ('3h', None)."
        )
    shape = tuple(dataset.sizes[d] for d in sample_dims(dataset))
    per_crop = int(np.prod(shape[1:]))
    near = written(dataset) & (np.abs(seconds_of(dataset["time"].values) - place[0]) < seconds)
    out = [np.empty(0, np.int64)]
    for crops in crop_blocks(near):
        lat, lon = positions(dataset, crops)
        close = (
            np.ones(lat.shape, bool) if km == np.inf else great_circle_km(place[1], place[2], lat, lon) < km
        )
        close &= near[crops].reshape(-1, *(1 for _ in close.shape[1:]))
        if "channel" in sample_dims(dataset):
            close = close[:, None]
        block = np.broadcast_to(close, (close.shape[0], *shape[1:]))
        out.append(np.flatnonzero(block) + crops.start * per_crop)
    return np.concatenate(out)
