"""Search by similarity: the nearest embeddings of a selection, and the same pattern in the next frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube import similarity
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.progress import progress_bar
from gridrad_cube.query.footprints import Rule, footprints_of, neighbors
from gridrad_cube.query.queries import Query, is_batch, read_query
from gridrad_cube.query.samples import (
    Index,
    cell_dims,
    collect,
    places_of,
    read_points,
    require_embeddings,
    sample_dims,
    seconds_of,
    select,
    time_step,
)
from gridrad_cube.readout import Readout, ReadoutChoice, saved_readout
from gridrad_cube.schema import SchemaError, read_attribute
from gridrad_cube.selection import (
    as_neighborhood,
    as_seconds,
    hour_of,
    times_of,
)
from gridrad_cube.similarity import Metric

#: Rows of one read. With the chunks that hold them, a search on disk needs less than half a gigabyte.
_ROWS_AT_ONCE = 32768
#: Neighborhood of the query in time and space that a search excludes.
_EXCLUDE = ("6h", "200km")
#: Answers that leave out those with a lower score: none at any distance but those that overlap it at the same time.
SEPARATE = ("0h", "0km")
#: Pairs of crops that are drawn for percentiles, and pairs of samples from each. Reading crops takes most of
#: the time.
_CROP_PAIRS, _SAMPLES_EACH = 64, 32


def search(
    dataset: xr.Dataset,
    query: Any,
    k: int = 10,
    *,
    exclude: Any = _EXCLUDE,
    separate: Any = SEPARATE,
    metric: Metric = "cosine",
    readout: ReadoutChoice = "auto",
    percentile: bool = True,
    seed: int = 0,
    progress: bool | None = None,
    **where: Any,
) -> xr.Dataset:
    """Find the samples most similar to a query, by an exact search of all samples that pass the filters.

    Parameters
    ----------
    dataset
        A store of embeddings, level 256 or 2k.
    query
        - A sample of the store, a tuple ``(crop, row, col[, channel])`` (level 2k: ``(crop[, channel])``).
        - A place and time, ``{"time": ..., "latitude": ..., "longitude": ...}`` or ``(time, latitude,
          longitude)``, for the sample that `at` finds there.
        - A vector: an array, or a ``DataArray`` such as ``at(...).embedding.sel(channel=...)``, whose time
          and place are then those of the query. With ``metric="dot"``, the weights of a linear probe.
        - Several examples, ``{"positive": [...], "negative": [...]}``, each one of the above: the mean
          direction of the positive ones, minus that of the negative ones (which need the cosine).
        - A batch: a list of queries, or an array ``(queries, feature)``. Each is answered separately, all
          in one pass over the store.
    k
        Largest number of answers. There are fewer if the selection has fewer samples.
    exclude
        A time and a distance: leave out the neighbors of the query, or of each of its examples. A neighbor
        lies less
        than this time before or after it, and its center is less than this distance away or it overlaps the
        query.
        Windows of one source grid overlap if they share a pixel; others are compared by latitude and
        longitude. None
        in place of the time or the distance sets no limit. None for the rule leaves out the query alone. A
        vector
        without a place has no neighbors.
    separate
        The same rule among the answers: of two neighbors the one with the better score stays. By default no
        two answers
        of the same time overlap. None keeps all of them.
    metric
        ``"cosine"`` (scores fall from 1), ``"euclidean"`` (distances rise from 0) or ``"dot"`` (inner
        products fall).
    readout
        Readout for samples before the cosine is computed. ``"auto"``: the readout that `fit_readout` saved
        with the store, if there is one and the queries are samples of one channel; vectors, which may not be
        embeddings, and other metrics use none. A `Readout` is used for any query. None uses none.
    percentile
        Add the share of random pairs of samples of the same hour of the day that are less similar than query
        and answer. The pairs share the hour because the hour alone makes fields similar. NaN if the selection
        has no
        such pairs.
    seed
        Seed of the random pairs.
    progress
        Show a progress bar on stderr; None shows it in a terminal and in a notebook.
    **where
        Rules of `within` for the samples to search. Without ``channel``, it is the channel of the query, or
        all channels for a vector.

    Returns
    -------
    ``score(rank)`` with the coordinates of each answer: ``crop``, ``channel``, ``row``, ``col``, time,
    position, source file, scene, pixel window and flags; and ``percentile(rank)``. Equal scores have the
    order of the store: crop, channel, row, col. Attributes describe the query and the search. A batch returns
    ``score(query, rank)``; if a query has fewer answers than others, the score is NaN and the crop -1.

    Raises
    ------
    SchemaError
        If the query has no embedding or does not fit the store, or no sample passes the filters.
    """
    require_embeddings(dataset, "search")
    query = query["embedding"] if isinstance(query, xr.Dataset) else query
    batch = is_batch(query)
    queries = query if batch else [query]
    if not len(queries):
        raise SchemaError("query: got an empty batch; expected one query or more")
    asked = [read_query(dataset, one, where.get("channel"), metric) for one in queries]
    if where.get("channel") is None:
        where["channel"] = common_channels(asked)
    rule, apart = as_neighborhood(exclude, "exclude"), as_neighborhood(separate, "separate")
    mask = select(dataset, **where)
    drops = [_excluded(dataset, one, rule) for one in asked]
    total = int(np.count_nonzero(mask))
    counts = [total - int(np.count_nonzero(mask.reshape(-1)[d])) for d in drops]
    if not all(counts):
        raise SchemaError(
            f"search: every sample of the selection is the query or a neighbor of it (exclude={exclude!r}). "
            "Pass a wider bbox or time, or exclude=None."
        )
    used = choose_readout(dataset, asked, metric, readout)
    asked = [one.after(used) for one in asked]
    with progress_bar("search", total=mask.size, unit="sample", progress=progress) as bar:

        def advance(count: int) -> None:  # `separate` may take several passes
            bar.update(min(count, mask.size - bar.n))

        rows, scores = _ranked(dataset, asked, k, mask, drops, apart, metric, used, advance)
        advance(mask.size)
    empty = np.flatnonzero((rows < 0).all(axis=1)) if rows.size else np.arange(len(asked))
    if len(empty):
        raise SchemaError(
            f"search: none of the {counts[empty[0]]} samples of the selection has an embedding (all are NaN)"
        )
    answers = _answer(dataset, rows, scores, mask.shape)
    if percentile:
        pairs = _random_pairs(dataset, mask, metric, rule, seed, used)
        answers = _add_percentile(answers, pairs, metric)
    placed = any(part.place for one in asked for part in one.parts)
    how = metric if used is None else f"{metric} after the readout"
    answers["score"].attrs["long_name"] = f"similarity to the query ({how})"
    answers.attrs = {
        "metric": metric, "searched": counts if batch else counts[0], "exclude": str(exclude if placed else None),
        "separate": str(separate),
    } | provenance(dataset, used)  # fmt: skip
    said = [one.attributes(dataset) for one in asked]
    if not batch:
        return answers.isel(query=0).assign_attrs(said[0])
    names = [name for name in said[0] if name != "query" and all(name in one for one in said)]
    columns = {name: ("query", [one[name] for one in said]) for name in names}
    return answers.assign_coords(columns).assign_attrs(query="batch")


def common_channels(asked: Sequence[Query]) -> list[int] | None:
    """Return the channels of queries that are samples, which are searched; None if one of them is only a
    vector.
    """
    each = [
        {int(p.sample["channel"][0]) for p in one.parts if p.sample is not None and "channel" in p.sample}
        for one in asked
    ]
    if not all(each):
        return None
    if any(channels != each[0] for channels in each):
        raise SchemaError(
            f"search: the queries are of several channels, {sorted(set.union(*each))}, and each is compared with its "
            "own. Search for one after the other, or pass channel=."
        )
    return sorted(each[0])


def choose_readout(
    dataset: xr.Dataset, asked: Sequence[Query], metric: Metric, readout: ReadoutChoice
) -> Readout | None:
    """Return the readout that queries are answered with; see `search`.

    Raises
    ------
    SchemaError
        If a readout that is given does not fit the vectors or the metric.
    """
    if isinstance(readout, Readout):
        if metric != "cosine" or len(readout.mean) != dataset.sizes["feature"]:
            raise SchemaError(
                f"readout: got one of {len(readout.mean)} features and metric {metric!r}; expected the "
                f"{dataset.sizes['feature']} features of the store and metric 'cosine'"
            )
        return readout
    if readout not in ("auto", None):
        raise SchemaError(f"readout: got {readout!r}; expected 'auto', a Readout or None")
    parts = [part.sample for one in asked for part in one.parts]
    if readout is None or metric != "cosine" or any(sample is None for sample in parts):
        return None
    channels = {int(sample["channel"][0]) if "channel" in sample else None for sample in parts if sample}
    return saved_readout(dataset, channels.pop()) if len(channels) == 1 else None


def provenance(dataset: xr.Dataset, readout: Readout | None = None) -> dict[str, Any]:
    """Return the origin of an answer: store, checkpoint, the cube that was embedded, and the readout."""
    info = read_attribute(dataset.attrs, ".gridrad")
    out = {"store": str(dataset.encoding.get("source", "")), "cube": info.get("source")}
    out |= {name: info.get(name) for name in ("checkpoint", "level", "patch", "stride")}
    out["readout"] = str(readout or "")
    return {name: value for name, value in out.items() if value}


def follow(
    dataset: xr.Dataset,
    query: Any,
    *,
    steps: int | None = None,
    channel: Any = None,
    time_tolerance: Any = None,
    readout: ReadoutChoice = "auto",
) -> xr.Dataset:
    """Follow a pattern in time: at each next time, take the most similar of the 3 x 3 patches around the last
    one.

    Frames are crops of the same window of the same grid. It ends after ``steps`` frames, if the next frame is
    further away in time than the tolerance, or if none of the nine patches has an embedding.

    Parameters
    ----------
    dataset
        A store of patch embeddings (level 256).
    query
        A sample, or a place and time; see `search`.
    steps
        Number of frames after the first; None for all.
    channel
        Channel of the sample to follow; None for that of the query.
    time_tolerance
        Longest gap between frames; None: twice the store's median step.
    readout
        As in `search`.

    Returns
    -------
    The dataset on dim ``time``; ``score`` is the cosine similarity to the frame before (1 for the first), and
    ``percentile`` as in `search`.

    Raises
    ------
    SchemaError
        If the query is not a sample of the store, or the store is of level 2k.
    """
    require_embeddings(dataset, "follow")
    asked = read_query(dataset, query, channel)
    if asked.sample is None or not cell_dims(dataset):
        raise SchemaError(
            "follow: expected a patch, (crop, row, col), or a time and place, in a store of patches"
        )
    used = choose_readout(dataset, [asked], "cosine", readout)
    limit = 2 * time_step(dataset) if time_tolerance is None else as_seconds(time_tolerance)
    frames = _frames(dataset, int(asked.sample["crop"][0]))
    times = seconds_of(dataset["time"].values)
    path, scores, vector = [{d: int(i[0]) for d, i in asked.sample.items()}], [1.0], asked.after(used).vector
    for before, crop in itertools.pairwise(frames):
        if (steps is not None and len(path) > steps) or times[crop] - times[before] > limit:
            break
        around = (
            np.arange(max(path[-1][d] - 1, 0), min(path[-1][d] + 2, dataset.sizes[d])) for d in ("row", "col")
        )
        cells = dict(zip(("row", "col"), map(np.ravel, np.meshgrid(*around, indexing="ij")), strict=True))
        sample = path[-1] | {"crop": int(crop)}
        index = {d: np.resize(cells.get(d, i), len(cells["row"])) for d, i in sample.items()}
        vectors = read_points(dataset["embedding"].variable, index)
        vectors = vectors if used is None else used.apply(vectors)
        found, score = similarity.nearest(vectors, vector, 1)
        if not len(found):
            break
        path.append({d: int(i[found[0]]) for d, i in index.items()})
        scores.append(float(score[0]))
        vector = vectors[found[0]].astype(np.float64)
    out = collect(dataset, {d: np.array([p[d] for p in path]) for d in sample_dims(dataset)}, "time")
    said = {"long_name": "cosine similarity to the frame before", "units": "1"}
    out.attrs |= {} if used is None else {"readout": str(used)}
    out = out.assign(score=("time", np.array(scores, np.float32), said))
    channels = common_channels([asked])
    pairs = _random_pairs(dataset, select(dataset, channel=channels), "cosine", None, 0, used)
    return _add_percentile(out, pairs, "cosine")


def _frames(dataset: xr.Dataset, crop: int) -> np.ndarray:
    """Return the crops of the same window and grid from a crop on, one for each time, in order of time."""
    times = times_of(dataset)
    same = ~np.isnat(times)
    for name in ("grid", "y_origin", "x_origin"):
        if name in dataset.variables:
            values = dataset[name].values
            same &= values == values[crop]
    later = np.flatnonzero(same & (times > times[crop]))
    later = later[np.unique(times[later], return_index=True)[1]]
    return np.concatenate([[crop], later])


# The nearest embeddings


class Rows:
    """Embeddings as rows of a matrix, in the order of the sample dims; whole crops are read.

    With a readout, rows of the mask are projected, and the others are NaN. ``advance`` is called with the number of
    rows of each read.
    """

    def __init__(
        self,
        variable: xr.Variable,
        readout: Readout | None = None,
        mask: np.ndarray | None = None,
        advance: Callable[[int], Any] | None = None,
    ) -> None:
        order = (*(d for d in ("crop", "channel", "row", "col") if d in variable.dims), "feature")
        self.variable = variable if variable.dims == order else variable.transpose(*order)
        self.per_crop = int(np.prod(self.variable.shape[1:-1], dtype=np.int64))
        self.readout, self.mask, self.advance = readout, mask, advance
        features = self.variable.sizes["feature"] if readout is None else readout.directions
        self.shape = (self.variable.sizes["crop"] * self.per_crop, features)
        unit = self.per_crop
        for edge in (self.variable.encoding.get(n) for n in ("shards", "chunks")):
            unit = self.per_crop * int(edge[0]) if edge else self.per_crop
            if unit <= _ROWS_AT_ONCE:
                break
        #: Rows of one read, near `_ROWS_AT_ONCE`: whole crops, and whole chunks if their size is known.
        self.block = max(_ROWS_AT_ONCE // unit, 1) * unit

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last = rows.start // self.per_crop, -(-rows.stop // self.per_crop)
        values = self.variable.isel(crop=slice(first, last)).values
        start = first * self.per_crop
        found = values.reshape(-1, values.shape[-1])[rows.start - start : rows.stop - start]
        if self.advance is not None:
            self.advance(len(found))
        if self.readout is None:
            return np.asarray(found)
        out = np.full((len(found), self.shape[1]), np.nan, np.float32)
        wanted = slice(None) if self.mask is None else self.mask.reshape(-1)[rows]
        out[wanted] = self.readout.apply(found[wanted])
        return out


def _ranked(
    dataset: xr.Dataset,
    asked: Sequence[Query],
    k: int,
    mask: np.ndarray,
    drops: Sequence[np.ndarray],
    apart: Rule | None,
    metric: Metric,
    readout: Readout | None,
    advance: Callable[[int], Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and scores (query, rank) of the best k samples of a mask. With ``apart``, none is near
    another.
    """
    if k < 1:
        raise SchemaError(f"k: got {k}; expected at least 1")
    rows = Rows(dataset["embedding"].variable, readout, mask, advance)
    vectors = np.stack([one.vector for one in asked])

    def best(which: slice, some: int, drop: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return similarity.nearest(
            rows, vectors[which], some, metric=metric, mask=mask.reshape(-1), drop=drop, block=rows.block
        )

    if apart is None:
        return best(slice(None), k, drops)
    # One pass for all queries. Good answers have many neighbors: search for more than k, and search again for queries
    # with fewer than k left.
    more = max(4 * k, 64)
    found, scores = best(slice(None), more, drops)
    out_rows, out_scores = np.full((len(asked), k), -1), np.full((len(asked), k), np.nan, np.float32)
    for i, drop in enumerate(drops):
        some, score, kept = found[i], scores[i], 0
        while True:
            here = _samples_of(dataset, some[some >= 0], mask.shape)
            places, gone = footprints_of(dataset, here), np.zeros(len(here["crop"]), bool)
            for at in range(len(gone)):
                if kept < k and not gone[at]:
                    out_rows[i, kept], out_scores[i, kept] = some[at], score[at]
                    kept += 1
                    gone |= places.near(places.take([at]), apart)
            if kept == k or len(gone) < more:
                break
            better = footprints_of(dataset, _samples_of(dataset, out_rows[i, :kept], mask.shape))
            near = [neighbors(dataset, better.take([at]), apart) for at in range(kept)]
            drop = np.unique(np.concatenate([drop, out_rows[i, :kept], *near]))
            (some,), (score,) = best(slice(i, i + 1), more, [drop])
    longest = int((out_rows >= 0).sum(axis=1).max())
    return out_rows[:, :longest], out_scores[:, :longest]


def _samples_of(dataset: xr.Dataset, rows: np.ndarray, shape: tuple[int, ...]) -> Index:
    """Return the samples of rows, which are flat over the sample dims."""
    return dict(zip(sample_dims(dataset), np.unravel_index(rows, shape), strict=True))


def _excluded(dataset: xr.Dataset, asked: Query, rule: Rule | None) -> npt.NDArray[np.int64]:
    """Return the rows of samples that are the query, one of its examples, or a neighbor of one; ascending."""
    dims = sample_dims(dataset)
    shape = tuple(dataset.sizes[d] for d in dims)
    out = [np.empty(0, np.int64)]
    for part in asked.parts:
        if part.sample is not None:
            out.append(np.ravel_multi_index(tuple(part.sample[d] for d in dims), shape))
        if rule is not None and part.place is not None:
            out.append(neighbors(dataset, part.place, rule))
    return np.unique(np.concatenate(out))


def _answer(dataset: xr.Dataset, rows: np.ndarray, scores: np.ndarray, shape: tuple[int, ...]) -> xr.Dataset:
    """Return the samples of rows (query, rank) as a dataset on these dims. Row -1 is a missing answer."""
    there = rows >= 0
    index = _samples_of(dataset, rows[there], shape)
    small = dataset.drop_vars([n for n in dataset.data_vars if n not in ("embedding", "flags")])
    flat = collect(small, index, "rank").drop_vars("embedding")
    out = xr.Dataset({n: v if "rank" not in v.dims else _unfold(v, there) for n, v in flat.variables.items()})
    out = out.set_coords(list(out.data_vars)).assign(score=(("query", "rank"), scores, {"units": "1"}))
    return out.assign_coords(rank=("rank", np.arange(1, rows.shape[1] + 1))).load()


def _unfold(variable: xr.Variable, there: np.ndarray) -> xr.Variable:
    """Return a variable of samples on (query, rank), with a fill value for missing answers."""
    values = variable.values
    kind = values.dtype.kind
    fill: Any = np.array("NaT", values.dtype) if kind in "Mm" else {"f": np.nan, "i": -1}.get(kind, 0)
    out = np.full((*there.shape, *values.shape[1:]), "" if kind in "OTU" else fill, values.dtype)
    out[there] = values
    return xr.Variable(("query", *variable.dims), out, variable.attrs)


# Similarity of unrelated samples


def _random_pairs(
    dataset: xr.Dataset,
    mask: np.ndarray,
    metric: Metric,
    apart: Rule | None,
    seed: int,
    readout: Readout | None = None,
) -> npt.NDArray[np.float32]:
    """Return the scores of random pairs of samples of the same hour (UTC) and channel, from different crops,
    ascending.

    Pairs within both the seconds and the kilometers of ``apart`` do not count.
    """
    rng, dims = np.random.default_rng(seed), sample_dims(dataset)
    crops = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    hour = np.floor(hour_of(dataset["time"].values[crops])).astype(np.int64)
    several = np.flatnonzero(np.bincount(hour, minlength=24)[hour] > 1)
    drawn = [np.empty((2, 0, len(dims)), np.int64)]
    for first in rng.choice(several, _CROP_PAIRS) if len(several) else ():
        others = np.flatnonzero(hour == hour[first])
        pair = []
        for crop in crops[[first, rng.choice(others[others != first])]]:
            inside = np.argwhere(mask[crop])
            pair.append(np.insert(inside[rng.integers(len(inside), size=_SAMPLES_EACH)], 0, crop, axis=1))
        drawn.append(np.stack(pair))
    sides = [dict(zip(dims, side.T, strict=True)) for side in np.concatenate(drawn, axis=1)]
    a, b = (read_points(dataset["embedding"].variable, side).astype(np.float64) for side in sides)
    if readout is not None:
        a, b = (readout.apply(side).astype(np.float64) for side in (a, b))
    if metric == "cosine":
        a, b = similarity.unit_rows(a), similarity.unit_rows(b)
    score = np.linalg.norm(a - b, axis=1) if metric == "euclidean" else np.einsum("ij,ij->i", a, b)
    use = np.isfinite(score)
    if "channel" in dims:
        use &= sides[0]["channel"] == sides[1]["channel"]
    if apart is not None:
        (time, *place), (other_time, *other_place) = (places_of(dataset, side) for side in sides)
        use &= (np.abs(time - other_time) >= apart[0]) | (great_circle_km(*place, *other_place) >= apart[1])
    return np.sort(score[use]).astype(np.float32)


def _percentiles(
    background: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.float32]:
    """Return the percentage of the background that is less similar than each score. Half of equal scores
    counts. NaN if there is no background.
    """
    low, high = (np.searchsorted(background, scores, side=side) for side in ("left", "right"))
    share = (low + high) / (2 * max(len(background), 1))
    share = 1 - share if metric == "euclidean" else share
    known = np.isfinite(scores) & (len(background) > 0)
    return np.where(known, 100 * share, np.nan).astype(np.float32)


def _add_percentile(answer: xr.Dataset, background: npt.NDArray[np.float32], metric: Metric) -> xr.Dataset:
    """Return an answer with the percentile of each score."""
    said = f"share of {len(background)} random pairs of samples of one hour of the day that are less similar"
    values = _percentiles(background, answer["score"].values, metric)
    about = {"long_name": said, "units": "percent"}
    return answer.assign(percentile=(answer["score"].dims, values, about))
