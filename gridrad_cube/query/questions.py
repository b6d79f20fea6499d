"""What a query is: a sample of the store, a place and time, a vector, or several examples of these."""

from __future__ import annotations

import datetime as dt
import json
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
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_time
from gridrad_cube.similarity import Metric

Place = tuple[float, float, float]


@dataclass(frozen=True)
class Question:
    """A query made plain: its vector; where and when it is, and which sample, where it is one."""

    vector: np.ndarray
    place: Place | None = None  # seconds since 1970, latitude, longitude
    sample: Mapping[str, int] | None = None
    examples: tuple[Question, ...] = ()  # what the vector was made from
    negatives: int = 0  # how many of the examples, the last ones, are what is not looked for

    def attributes(self, dataset: xr.Dataset) -> dict[str, Any]:
        """What an answer says about its query."""
        if self.examples:
            return {
                "query": "examples",
                "query_positives": len(self.examples) - self.negatives,
                "query_negatives": self.negatives,
                "query_examples": json.dumps([e.attributes(dataset) for e in self.examples]),
            }
        out: dict[str, Any] = {"query": "vector" if self.sample is None else "sample"}
        for dim, at in (self.sample or {}).items():
            name = labels(dataset, dim)[at]
            out[f"query_{dim}"] = str(name) if dim == "channel" else int(name)
        if self.place is not None:
            out["query_time"] = str(np.datetime64(int(self.place[0]), "s")) + "Z"
            out["query_latitude"], out["query_longitude"] = self.place[1:]
        return out

    @property
    def parts(self) -> tuple[Question, ...]:
        """What it is made of: its examples, or itself."""
        return self.examples or (self,)

    def channels(self) -> list[int] | None:
        """Positions of the channels of the samples it is made of; None where none of them is one."""
        found = {p.sample["channel"] for p in self.parts if p.sample is not None and "channel" in p.sample}
        return sorted(found) or None


def place_of(dataset: xr.Dataset, sample: Mapping[str, int]) -> Place:
    """Seconds since 1970, latitude and longitude of a sample."""
    crop = sample["crop"]
    cell = tuple(sample[d] for d in cell_dims(dataset))
    lat, lon = (float(p[(0, *cell)]) for p in positions(dataset, slice(crop, crop + 1)))
    return float(seconds_of(dataset["time"].values[crop])), lat, lon


def is_batch(query: Any) -> bool:
    """Whether these are several queries to be answered each for itself: a 2-D array, or a list of queries."""
    if isinstance(query, xr.Dataset):
        query = query.get("embedding", query)
    if isinstance(query, (np.ndarray, xr.DataArray)):
        return query.ndim == 2
    return isinstance(query, list) and any(not isinstance(q, (int, float, np.number)) for q in query)


def questions(
    dataset: xr.Dataset, queries: Any, channel: Any = None, metric: Metric = "cosine"
) -> list[Question]:
    """Make a batch of queries plain; see `is_batch`."""
    if isinstance(queries, xr.Dataset):
        queries = queries["embedding"]
    if not len(queries):
        raise SchemaError("query: got an empty batch; expected one query or more")
    return [question(dataset, query, channel, metric) for query in queries]


def question(dataset: xr.Dataset, query: Any, channel: Any = None, metric: Metric = "cosine") -> Question:
    """Make a query plain: see `search`.

    Raises
    ------
    SchemaError
        If it is no query, does not fit the store, or has no embedding.
    """
    if isinstance(query, Mapping) and "positive" in query:
        return _of_examples(dataset, query, channel, metric)
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


def _of_examples(dataset: xr.Dataset, query: Mapping[str, Any], channel: Any, metric: Metric) -> Question:
    """The mean of the positive examples less that of the negative ones."""
    unknown = sorted(set(query) - {"positive", "negative"})
    several = {name: query.get(name, []) for name in ("positive", "negative")}
    good = all(is_batch(v) or isinstance(v, list) for v in several.values())
    if unknown or not good or not len(several["positive"]):
        raise SchemaError(
            f"query: got {unknown or dict(query)!r:.120}; expected lists of queries, {{'positive': [...], "
            "'negative': [...]}, with one positive or more"
        )
    positive, negative = (
        [question(dataset, one, channel) for one in several[name]] for name in ("positive", "negative")
    )
    if metric == "euclidean" and negative:
        raise SchemaError("query: a distance knows no negative examples. Pass metric='cosine'.")

    def mean(examples: list[Question]) -> np.ndarray:
        vectors = np.stack([e.vector for e in examples])
        if metric == "cosine":  # each counts by its direction alone
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
        return np.asarray(vectors.mean(axis=0))

    vector = mean(positive) - mean(negative) if negative else mean(positive)
    return Question(vector, examples=(*positive, *negative), negatives=len(negative))


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
