"""Follow a pattern from frame to frame."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.query.samples import (
    cell_dims,
    collect,
    read_points,
    require_embeddings,
    sample_dims,
    seconds_of,
    time_step,
)
from gridrad_cube.query.search import read_query
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_seconds, times_of
from gridrad_cube.similarity import nearest


def follow(
    dataset: xr.Dataset,
    query: Any,
    *,
    steps: int | None = None,
    channel: Any = None,
    time_tolerance: Any = None,
) -> xr.Dataset:
    """Follow a pattern from frame to frame: at each next time the most similar of the 3 x 3 patches about the last.

    Frames are crops of the same window of the same grid. It ends after ``steps`` frames, where the next one
    is further away in time than the tolerance, or where none of the nine has an embedding.

    Parameters
    ----------
    dataset
        A store of patch embeddings (level 256).
    query
        A sample, or a place and time; see `search`.
    steps
        Frames after the first; None continues to the last one.
    time_tolerance
        Longest gap between frames; None: twice the store's median step.

    Returns
    -------
    The dataset on dim ``time``; ``score`` is the cosine similarity to the frame before (1 for the first).

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
    limit = 2 * time_step(dataset) if time_tolerance is None else as_seconds(time_tolerance)
    frames = _frames(dataset, int(asked.sample["crop"][0]))
    times = seconds_of(dataset["time"].values)
    path, scores, vector = [{d: int(i[0]) for d, i in asked.sample.items()}], [1.0], asked.vector
    for before, crop in itertools.pairwise(frames):
        if (steps is not None and len(path) > steps) or times[crop] - times[before] > limit:
            break
        around = (
            np.arange(max(path[-1][d] - 1, 0), min(path[-1][d] + 2, dataset.sizes[d])) for d in ("row", "col")
        )
        cells = dict(zip(("row", "col"), map(np.ravel, np.meshgrid(*around, indexing="ij")), strict=True))
        sample = path[-1] | {"crop": crop}
        index = {d: np.resize(cells.get(d, i), len(cells["row"])) for d, i in sample.items()}
        vectors = read_points(dataset["embedding"].variable, index)
        found, score = nearest(vectors, vector, 1)
        if not len(found):
            break
        path.append({d: int(i[found[0]]) for d, i in index.items()})
        scores.append(float(score[0]))
        vector = vectors[found[0]].astype(np.float64)
    out = collect(dataset, {d: np.array([p[d] for p in path]) for d in sample_dims(dataset)}, "time")
    said = {"long_name": "cosine similarity to the frame before", "units": "1"}
    return out.assign(score=("time", np.array(scores, np.float32), said))


def _frames(dataset: xr.Dataset, crop: int) -> np.ndarray:
    """Crops of the same window and grid from a crop on, one a time, in time."""
    times = times_of(dataset)
    same = ~np.isnat(times)
    for name in ("grid", "y_origin", "x_origin"):
        if name in dataset.variables:
            values = dataset[name].values
            same &= values == values[crop]
    later = np.flatnonzero(same & (times > times[crop]))
    later = later[np.unique(times[later], return_index=True)[1]]
    return np.concatenate([[crop], later])
