"""Judging embeddings without labels: how well planted things are found again, and what a network adds to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import SchemaError


@dataclass(frozen=True)
class Place:
    """Where and when something was planted: degrees, UTC."""

    time: np.datetime64
    latitude: float
    longitude: float


@dataclass(frozen=True)
class Retrieval:
    """Ranks of planted things when each in turn is the query.

    ``ranks[i, j]`` is the rank of thing j for query i among ``candidates[i]`` other patches (1 is best; halves
    where scores tie); NaN on the diagonal, where they lie too near in time and place to count, and where one
    has no embedding.
    """

    ranks: np.ndarray
    candidates: np.ndarray

    @property
    def median_rank(self) -> float:
        """Median over all pairs; NaN if none counts."""
        known = self.ranks[np.isfinite(self.ranks)]
        return float(np.median(known)) if known.size else float("nan")

    def within(self, k: int) -> float:
        """Share of pairs with a rank of at most k; NaN if none counts."""
        known = self.ranks[np.isfinite(self.ranks)]
        return float((known <= k).mean()) if known.size else float("nan")


def patches_at(flat: xr.Dataset, places: Sequence[Place]) -> np.ndarray:
    """Index along ``patch`` of the patch of the same time whose centre is nearest to each place.

    Raises
    ------
    SchemaError
        If no patch has the time of a place.
    """
    time = flat["time"].values.astype("datetime64[s]")
    latitude, longitude = flat["latitude"].values, flat["longitude"].values
    out = np.empty(len(places), np.int64)
    for i, place in enumerate(places):
        same = np.flatnonzero(np.abs(time - place.time) <= np.timedelta64(60, "s"))
        same = same[np.isfinite(latitude[same])]
        if not same.size:
            raise SchemaError(f"planted place {i}: no patch has its time {place.time}")
        distance = great_circle_km(place.latitude, place.longitude, latitude[same], longitude[same])
        out[i] = same[np.argmin(distance)]
    return out


def planted_retrieval(
    vectors: np.ndarray,
    flat: xr.Dataset,
    places: Sequence[Place],
    *,
    hours: float = 6.0,
    kilometres: float = 200.0,
    reach_km: float = 0.0,
) -> Retrieval:
    """Rank each planted thing for each other one as the query, by cosine, among all other patches.

    The query is the patch nearest to the thing. A thing is found by the best of the patches that hold it: the
    nearest, and with overlapping windows those with their centre within ``reach_km``. The rank counts patches
    that score higher and hold no planted thing, nor a part of one (centre beyond twice the reach), and half of
    those that score the same: embeddings that are all alike rank in the middle, not first. Candidates within
    both ``hours`` and ``kilometres`` of the query do not count, nor do pairs so near each other.

    Parameters
    ----------
    vectors
        One a patch, shape (patches, features); patches whose vector is not finite, or zero, do not count.
    flat
        On ``patch``: time, latitude and longitude.
    """
    where = patches_at(flat, places)
    unit, usable = _unit(vectors)
    time = flat["time"].values.astype("datetime64[s]")
    latitude, longitude = flat["latitude"].values, flat["longitude"].values
    holding, planted = [], np.zeros(len(unit), bool)
    for place, nearest in zip(places, where, strict=True):
        distance = great_circle_km(place.latitude, place.longitude, latitude, longitude)
        distance[time != time[nearest]] = np.inf
        distance[nearest] = 0.0
        holding.append(np.flatnonzero((distance <= reach_km) & usable))
        planted |= distance <= 2 * reach_km
    ranks = np.full((len(where), len(where)), np.nan)
    candidates = np.zeros(len(where), np.int64)
    scores = unit[where] @ unit.T
    for i, query in enumerate(where):
        near = np.abs(time - time[query]) < np.timedelta64(int(hours * 3600), "s")
        near &= great_circle_km(latitude[query], longitude[query], latitude, longitude) < kilometres
        distractors = usable & ~planted & ~near
        candidates[i] = distractors.sum()
        ordered = np.sort(scores[i, distractors])
        for j, other in enumerate(where):
            if other != query and not near[other] and usable[query] and holding[j].size:
                # Equal vectors differ by rounding in their scores.
                best = scores[i, holding[j]].max() + np.array([-1e-6, 1e-6], np.float32)
                low, high = np.searchsorted(ordered, best)
                ranks[i, j] = 1 + len(ordered) - (low + high) / 2
    return Retrieval(ranks, candidates)


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length one, zero where that cannot be, and where it can."""
    vectors = np.asarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(length) & (length > 0)
    return np.where(usable, vectors, 0.0) / np.where(usable, length, 1.0), usable[:, 0]
