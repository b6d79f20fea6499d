"""Read queries: a sample, a place and time, a vector, or several examples; and the vector of each."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube import similarity
from gridrad_cube.query.footprints import Footprints, footprint_of_array, footprints_of
from gridrad_cube.query.samples import (
    Index,
    cell_dims,
    locate,
    names_along,
    position_of,
    read_points,
    sample_dims,
    sample_flags,
)
from gridrad_cube.readout import Readout
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.selection import (
    as_time,
    choose_labels,
    labels_of,
)
from gridrad_cube.similarity import Metric


@dataclass(frozen=True)
class Query:
    """A query as a vector, with its place and time, and its index if it is a sample."""

    vector: np.ndarray
    place: Footprints | None = None
    sample: Index | None = None
    examples: tuple[Query, ...] = ()  # what the vector was made from
    negatives: int = 0  # number of negative examples, which come last

    def attributes(self, dataset: xr.Dataset) -> dict[str, Any]:
        """Return the attributes of an answer that describe its query."""
        if self.examples:
            return {
                "query": "examples",
                "query_positives": len(self.examples) - self.negatives,
                "query_negatives": self.negatives,
                "query_examples": json.dumps([e.attributes(dataset) for e in self.examples]),
            }
        out: dict[str, Any] = {"query": "vector" if self.sample is None else "sample"}
        for dim, (at,) in (self.sample or {}).items():
            name = names_along(dataset, dim)[at]
            out[f"query_{dim}"] = str(name) if dim == "channel" else int(name)
        if self.place is not None:
            out["query_time"] = str(np.datetime64(int(self.place.seconds[0]), "s")) + "Z"
            for name in ("latitude", "longitude"):
                out[f"query_{name}"] = float(getattr(self.place, name)[0])
        return out

    def after(self, readout: Readout | None) -> Query:
        """Return the same query with vectors after a readout, for cosine."""
        if readout is None:
            return self
        if not self.examples:
            return replace(self, vector=readout.apply(self.vector).astype(np.float64))
        examples = tuple(example.after(readout) for example in self.examples)
        return replace(self, vector=_mean_of(examples, self.negatives, "cosine"), examples=examples)

    @property
    def parts(self) -> tuple[Query, ...]:
        """The examples of the query, or the query itself."""
        return self.examples or (self,)


def is_batch(query: Any) -> bool:
    """Return whether these are several separate queries: a 2-D array, or a list of queries."""
    if isinstance(query, (np.ndarray, xr.DataArray)):
        return query.ndim == 2
    return isinstance(query, list) and any(not isinstance(q, (int, float, np.number)) for q in query)


def read_query(dataset: xr.Dataset, query: Any, channel: Any = None, metric: Metric = "cosine") -> Query:
    """Read a query of `search`; refuse one that is not valid, does not fit the store, or has no embedding."""
    if isinstance(query, (int, np.integer)):
        query = (query,)
    if isinstance(query, tuple) and query and isinstance(query[0], (int, np.integer)):
        return _of_sample(dataset, query, channel)
    if (
        isinstance(query, tuple)
        and len(query) > 2
        and isinstance(query[0], (str, dt.datetime, np.datetime64))
    ):
        query = dict(zip(("time", "latitude", "longitude", "channel"), query, strict=False))
    query = query["embedding"] if isinstance(query, xr.Dataset) else query
    if isinstance(query, Mapping):
        return (_of_examples if "positive" in query else _of_place)(dataset, dict(query), channel, metric)
    return _of_vector(dataset, query)


def _of_examples(dataset: xr.Dataset, query: dict[str, Any], channel: Any, metric: Metric) -> Query:
    """Return the mean of the positive examples minus that of the negative ones."""
    unknown = sorted(set(query) - {"positive", "negative"})
    several = {name: query.get(name, []) for name in ("positive", "negative")}
    good = all(is_batch(v) or isinstance(v, list) for v in several.values())
    if unknown or not good or not len(several["positive"]):
        raise SchemaError(
            f"query: got {unknown or query!r:.120}; expected lists of queries, {{'positive': [...], "
            "'negative': [...]}, with one positive or more"
        )
    positive, negative = (
        [read_query(dataset, one, channel) for one in several[name]] for name in ("positive", "negative")
    )
    if metric == "euclidean" and negative:
        raise SchemaError("query: negative examples need the cosine. Pass metric='cosine'.")

    examples = (*positive, *negative)
    return Query(_mean_of(examples, len(negative), metric), examples=examples, negatives=len(negative))


def _mean_of(examples: Sequence[Query], negatives: int, metric: Metric) -> np.ndarray:
    """Return the mean of examples minus that of the last ones, which are negative examples."""
    vectors = np.stack([e.vector for e in examples])
    if metric == "cosine":  # only directions count
        vectors = similarity.unit_rows(vectors)
    positives = len(vectors) - negatives
    mean = vectors[:positives].mean(axis=0)
    return np.asarray(mean - vectors[positives:].mean(axis=0) if negatives else mean)


def _of_place(dataset: xr.Dataset, query: dict[str, Any], channel: Any, metric: Metric) -> Query:
    channel = query.pop("channel", channel)
    needed, known = {"time", "latitude", "longitude"}, {"tolerance", "time_tolerance"}
    if not needed <= set(query) <= needed | known:
        raise SchemaError(f"query: got {sorted(query)}; expected time, latitude and longitude (and channel)")
    time, place = as_time(query.pop("time")), [[float(query.pop(n))] for n in ("latitude", "longitude")]
    index, _ = locate(dataset, np.array([time]), *place, **query, required=True)
    return _with_vector(dataset, index, channel)


def _of_sample(dataset: xr.Dataset, query: tuple[Any, ...], channel: Any) -> Query:
    dims = ("crop", *cell_dims(dataset))
    if len(query) not in (len(dims), len(dims) + 1):
        raise SchemaError(f"query: got {query!r}; expected ({', '.join(dims)}[, channel]) in this store")
    index = {dim: np.array([position_of(dataset, dim, name)]) for dim, name in zip(dims, query, strict=False)}
    return _with_vector(dataset, index, query[len(dims)] if len(query) > len(dims) else channel)


def _with_vector(dataset: xr.Dataset, index: Index, channel: Any) -> Query:
    dims = sample_dims(dataset)
    if "channel" in dims:
        known = labels_of(dataset)
        chosen = choose_labels(known, channel, "channel")
        if len(chosen) > 1:
            raise SchemaError(
                f"query: the sample has several channels, {[c.name for c in chosen]}. Pass channel= with one of them."
            )
        index = {**index, "channel": np.array([known.index(chosen[0])])}
    vector = read_points(dataset["embedding"].variable, index)[0].astype(np.float64)
    if not np.isfinite(vector).all():
        crop, *at = (index[d] for d in dims)
        flags = int(sample_flags(dataset, crop)[(0, *(i[0] for i in at))])
        names = ", ".join(f.name for f in Flag if f & flags and f.name) or "no flags"
        sample = {d: int(index[d][0]) for d in dims}
        raise SchemaError(f"query: the sample {sample} has no embedding (NaN); its flags: {names}")
    return Query(vector, footprints_of(dataset, index), index)


def _of_vector(dataset: xr.Dataset, query: Any) -> Query:
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
    return Query(vector, footprint_of_array(query) if isinstance(query, xr.DataArray) else None)
