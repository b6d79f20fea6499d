"""What a query is: a sample of the store, a place and time, or a vector."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.query.places import find
from gridrad_cube.query.samples import (
    cell_dims,
    flag_names,
    labels,
    positions,
    read_points,
    sample_dims,
    sample_flags,
    seconds_of,
)
from gridrad_cube.query.selection import channel_positions
from gridrad_cube.query.units import as_time
from gridrad_cube.schema import SchemaError

Place = tuple[float, float, float]


@dataclass(frozen=True)
class Question:
    """A query made plain: its vector; where and when it is, and which sample, where it is one."""

    vector: np.ndarray
    place: Place | None = None  # seconds since 1970, latitude, longitude
    sample: Mapping[str, int] | None = None

    def attributes(self, dataset: xr.Dataset) -> dict[str, Any]:
        """What an answer says about its query."""
        out: dict[str, Any] = {"query": "vector" if self.sample is None else "sample"}
        for dim, at in (self.sample or {}).items():
            name = labels(dataset, dim)[at]
            out[f"query_{dim}"] = str(name) if dim == "channel" else int(name)
        if self.place is not None:
            out["query_time"] = str(np.datetime64(int(self.place[0]), "s")) + "Z"
            out["query_latitude"], out["query_longitude"] = self.place[1:]
        return out


def place_of(dataset: xr.Dataset, sample: Mapping[str, int]) -> Place:
    """Seconds since 1970, latitude and longitude of a sample."""
    crop = sample["crop"]
    cell = tuple(sample[d] for d in cell_dims(dataset))
    lat, lon = (float(p[(0, *cell)]) for p in positions(dataset, slice(crop, crop + 1)))
    return float(seconds_of(dataset["time"].values[crop])), lat, lon


def question(dataset: xr.Dataset, query: Any, channel: Any = None) -> Question:
    """Make a query plain: see `search`.

    Raises
    ------
    SchemaError
        If it is no query, does not fit the store, or has no embedding.
    """
    if isinstance(query, Mapping) and not isinstance(query, xr.Dataset):
        return _at_place(dataset, dict(query), channel)
    if (
        isinstance(query, tuple)
        and len(query) > 2
        and isinstance(query[0], (str, dt.datetime, np.datetime64))
    ):
        return _at_place(
            dataset, dict(zip(("time", "latitude", "longitude", "channel"), query, strict=False)), channel
        )
    if isinstance(query, (int, np.integer)):
        query = (query,)
    if isinstance(query, tuple) and query and isinstance(query[0], (int, np.integer)):
        return _of_sample(dataset, query, channel)
    return _of_vector(dataset, query)


def _at_place(dataset: xr.Dataset, query: dict[str, Any], channel: Any) -> Question:
    channel = query.pop("channel", channel)
    needed, known = {"time", "latitude", "longitude"}, {"tolerance", "time_tolerance"}
    if not needed <= set(query) <= needed | known:
        raise SchemaError(f"query: got {sorted(query)}; expected time, latitude and longitude (and channel)")
    place = (as_time(query.pop("time")), float(query.pop("latitude")), float(query.pop("longitude")))
    sample, _ = find(dataset, *place, **query)
    return _with_vector(dataset, sample, channel)


def _of_sample(dataset: xr.Dataset, query: tuple[Any, ...], channel: Any) -> Question:
    dims = ("crop", *cell_dims(dataset))
    if len(query) not in (len(dims), len(dims) + 1):
        raise SchemaError(f"query: got {query!r}; expected ({', '.join(dims)}[, channel]) in this store")
    sample = {}
    for dim, asked in zip(dims, query, strict=False):
        names = labels(dataset, dim)
        if not len(names):
            raise SchemaError(f"query: the selection is empty, it has no {dim}")
        found = np.flatnonzero(names == asked)
        if not len(found):
            raise SchemaError(f"query: no {dim} {asked!r}; the store has {names[0]} to {names[-1]}")
        sample[dim] = int(found[0])
    return _with_vector(dataset, sample, query[len(dims)] if len(query) > len(dims) else channel)


def _with_vector(dataset: xr.Dataset, sample: dict[str, int], channel: Any) -> Question:
    if "channel" in sample_dims(dataset):
        chosen = channel_positions(dataset, channel)
        if len(chosen) > 1:
            names = [str(labels(dataset, "channel")[i]) for i in chosen]
            raise SchemaError(
                f"query: the sample has several channels, {names}. Pass channel= with one of them."
            )
        sample = sample | {"channel": int(chosen[0])}
    index = {d: np.array([sample[d]]) for d in sample_dims(dataset)}
    vector = read_points(dataset["embedding"].variable, index)[0].astype(np.float64)
    if not np.isfinite(vector).all():
        crop = sample["crop"]
        flags = sample_flags(dataset, slice(crop, crop + 1))[0]
        flags = int(flags[tuple(sample[d] for d in sample_dims(dataset) if d != "crop")])
        raise SchemaError(
            f"query: the sample {sample} has no embedding (NaN); its flags: {flag_names(flags)}"
        )
    return Question(vector, place_of(dataset, sample), sample)


def _of_vector(dataset: xr.Dataset, query: Any) -> Question:
    if isinstance(query, xr.Dataset):
        query = query["embedding"]
    try:
        vector = np.asarray(query, np.float64)
    except (TypeError, ValueError) as error:
        raise SchemaError(
            f"query: got {query!r}; expected a vector, a sample (crop, row, col), or time, latitude and longitude"
        ) from error
    if vector.shape != (dataset.sizes["feature"],):
        raise SchemaError(
            f"query: got a vector of shape {vector.shape}; expected ({dataset.sizes['feature']},), the length of the "
            "store's embeddings, or a tuple (crop, row, col)"
        )
    if not np.isfinite(vector).all():
        raise SchemaError("query: the vector holds a NaN or an infinity; expected finite numbers")
    names = ("time", "latitude", "longitude")
    if isinstance(query, xr.DataArray) and all(n in query.coords and query[n].ndim == 0 for n in names):
        time, lat, lon = (query[n].values[()] for n in names)
        if np.isfinite([lat, lon]).all() and not np.isnat(time):
            return Question(vector, (float(seconds_of(time)), float(lat), float(lon)))
    return Question(vector)
