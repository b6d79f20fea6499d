"""Samples by likeness: the nearest embeddings of a selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube import similarity
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.questions import Place, place_of, question
from gridrad_cube.query.samples import (
    collect,
    crop_blocks,
    is_embeddings,
    positions,
    sample_dims,
    seconds_of,
    store_info,
    written,
)
from gridrad_cube.query.selection import Reject, select
from gridrad_cube.query.units import Box, as_neighbourhood
from gridrad_cube.schema import SchemaError

#: Rows of one read: with the chunks they come from, a search of a store on disk stays under half a gigabyte.
ROWS_AT_ONCE = 32768
#: Neighbours of the query in space and time that a search leaves out.
EXCLUDE = ("6h", "200km")


class _Rows:
    """Embeddings as rows of a matrix, in the order of the sample dims; whole crops are read."""

    def __init__(self, variable: xr.Variable) -> None:
        dims = [d for d in ("crop", "channel", "row", "col") if d in variable.dims]
        order = (*dims, "feature")
        self.variable = variable if variable.dims == order else variable.transpose(*order)
        self.per_crop = int(np.prod(self.variable.shape[1:-1], dtype=np.int64))
        self.shape = (self.variable.sizes["crop"] * self.per_crop, self.variable.sizes["feature"])

    def block(self) -> int:
        """Rows of whole crops, and of whole chunks where they are known, near the size of a block."""
        for edge in (self.variable.encoding.get(n) for n in ("shards", "chunks")):
            unit = self.per_crop * int(edge[0]) if edge else self.per_crop
            if unit <= ROWS_AT_ONCE:
                break
        return max(ROWS_AT_ONCE // unit, 1) * unit

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
    bbox: Box | None = None,
    time: Any = None,
    channel: Any = None,
    reject: Reject = None,
    exclude: Any = EXCLUDE,
    separate: Any = None,
    metric: similarity.Metric = "cosine",
) -> xr.Dataset:
    """Find the samples most like a query: filters first, then an exact search of all that is left.

    Parameters
    ----------
    dataset
        A store of embeddings, level 256 or 2k.
    query
        A sample of the store, a tuple ``(crop, row, col[, channel])`` (level 2k: ``(crop[, channel])``); a
        place and time, ``{"time": ..., "latitude": ..., "longitude": ...}`` or ``(time, latitude,
        longitude)``, for the sample that `at` finds there; or a vector: an array, or a ``DataArray`` such as
        ``at(...).embedding.sel(channel=...)``, whose time and place then count as the query's.
    k
        Answers at most. Fewer come back where fewer are left.
    bbox, time, reject
        As in `within`.
    channel
        Labels to search. None: the channel of the query, or all for a vector.
    exclude
        Leave out neighbours of the query: samples that lie both less than this long before or after it and
        less than this far from it. None in the place of either means however long or far; None for the rule
        leaves out the query alone. A vector without a place has no neighbours.
    separate
        The same rule among the answers: of two neighbours the one with the better score stays.
    metric
        ``"cosine"`` (scores fall from 1) or ``"euclidean"`` (distances rise from 0).

    Returns
    -------
    ``score(rank)`` with the coordinates of each answer: ``crop``, ``channel``, ``row``, ``col``, time,
    position, source file, scene, pixel window and flags. Attributes describe the query and what was searched.

    Raises
    ------
    SchemaError
        If the query has no embedding or does not fit the store, or the filters leave nothing.
    """
    if not is_embeddings(dataset):
        raise SchemaError(
            "search: a cube of patches has no embeddings. Run gridrad-cube embed, open that store."
        )
    asked = question(dataset, query, channel)
    if channel is None and asked.sample is not None and "channel" in asked.sample:
        channel = [asked.sample["channel"]]
    rule, apart = as_neighbourhood(exclude, "exclude"), as_neighbourhood(separate, "separate")
    mask = select(dataset, bbox=bbox, time=time, channel=channel, reject=reject)
    if asked.sample is not None:
        mask[tuple(asked.sample.get(d, slice(None)) for d in sample_dims(dataset))] = False
    if rule is not None and asked.place is not None:
        drop_neighbours(dataset, mask, asked.place, rule)
    count = int(np.count_nonzero(mask))
    if not count:
        raise SchemaError(
            f"search: every sample of the selection is the query or a neighbour of it (exclude={exclude!r}). "
            "Pass a wider bbox or time, or exclude=None."
        )
    rows, scores = _ranked(dataset, asked.vector, k, mask, apart, metric)
    if not len(rows):
        raise SchemaError(
            f"search: none of the {count} samples of the selection has an embedding (all are NaN)"
        )
    index = dict(zip(sample_dims(dataset), np.unravel_index(rows, mask.shape), strict=True))
    said = {
        "metric": metric,
        "searched": count,
        "exclude": str(exclude if asked.place else None),
        "separate": str(separate),
    }
    return _answer(dataset, index, scores, said | asked.attributes(dataset))


def _answer(
    dataset: xr.Dataset, index: dict[str, np.ndarray], scores: np.ndarray, said: dict[str, Any]
) -> xr.Dataset:
    small = dataset.drop_vars([n for n in dataset.data_vars if n not in ("embedding", "flags")])
    out = collect(small, index, "rank").drop_vars("embedding")
    if "flags" in out:
        out = out.set_coords("flags")
    out["score"] = ("rank", scores, {"long_name": f"likeness to the query ({said['metric']})", "units": "1"})
    info = store_info(dataset)
    origin = {"store": str(dataset.encoding.get("source", "")), "checkpoint": str(info.get("checkpoint", ""))}
    out.attrs = said | {key: value for key, value in origin.items() if value}
    return out.assign_coords(rank=("rank", np.arange(1, len(scores) + 1))).load()


def _ranked(
    dataset: xr.Dataset,
    vector: np.ndarray,
    k: int,
    mask: np.ndarray,
    apart: tuple[float, float] | None,
    metric: similarity.Metric,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the best k samples under a mask (altered), none near another if ``apart`` is given."""
    rows = _Rows(dataset["embedding"].variable)
    flat = mask.reshape(-1)
    kept: list[int] = []
    scores: list[float] = []
    while flat.any():
        # Neighbours come in crowds: ask for more than enough, and again for the rest if it was not.
        more = k if apart is None else max(4 * (k - len(kept)), 64)
        found, score = similarity.nearest(rows, vector, more, metric=metric, mask=flat, block=rows.block())
        if apart is None:
            return found, score
        for row, s in zip(found, score, strict=True):
            if not flat[row]:
                continue
            kept.append(int(row))
            scores.append(float(s))
            if len(kept) == k:
                break
            drop_neighbours(dataset, mask, _place_of(dataset, int(row), mask.shape), apart)
            flat[row] = False
        if len(kept) == k or len(found) < more:
            break
    return np.array(kept, np.int64), np.array(scores, np.float32)


def _place_of(dataset: xr.Dataset, row: int, shape: tuple[int, ...]) -> Place:
    sample = dict(zip(sample_dims(dataset), (int(i) for i in np.unravel_index(row, shape)), strict=True))
    return place_of(dataset, sample)


def drop_neighbours(dataset: xr.Dataset, mask: np.ndarray, place: Place, rule: tuple[float, float]) -> None:
    """Clear a mask on the sample dims where a sample lies within both a time and a distance of a place."""
    seconds, km = rule
    near = written(dataset) & (np.abs(seconds_of(dataset["time"].values) - place[0]) < seconds)
    for crops in crop_blocks(near):
        if km == np.inf:
            mask[crops][near[crops]] = False
            continue
        lat, lon = positions(dataset, crops)
        close = great_circle_km(place[1], place[2], lat, lon) < km
        close &= near[crops].reshape(-1, *(1 for _ in close.shape[1:]))
        if "channel" in sample_dims(dataset):
            close = close[:, None]
        mask[crops] &= ~close
