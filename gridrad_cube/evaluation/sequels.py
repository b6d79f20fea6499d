"""What came after: whether the same place is found again, and what analogues say of its weather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gridrad_cube import similarity
from gridrad_cube.evaluation.days import FIT, TEST
from gridrad_cube.evaluation.samples import Gathered
from gridrad_cube.evaluation.vectors import unit_vectors
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.selection import hour_of

#: Near a query or its sequel, and so no distractor: within so many seconds (and the edge of a sample).
NEAR_SECONDS = 6 * 3600.0
#: Hours of the day within which times are of the same hour.
SAME_HOUR = 0.5
#: Fewest distractors of a query.
LEAST_DISTRACTORS = 20
#: Analogues of a forecast.
ANALOGUES = 10
#: Scores this close are equal: those of equal vectors differ by rounding.
_EQUAL = 1e-9


def same_hour(time: np.ndarray, other: np.datetime64) -> np.ndarray:
    """Which times are within half an hour of the day of another, whatever the day."""
    apart = np.abs(hour_of(time) - hour_of(other))
    return np.minimum(apart, 24 - apart) <= SAME_HOUR


def distractors_of(
    query: int, sequel: int, queries: Gathered, targets: Gathered, allowed: np.ndarray, near_km: float
) -> np.ndarray:
    """Positions of the samples among which a query's sequel is looked for.

    Allowed samples of the sequel's hour of the day, of any day, that are neither near the query nor near the
    sequel (within six hours and ``near_km``).
    """
    keep = allowed & same_hour(queries.time, targets.time[sequel])
    at = np.flatnonzero(keep)
    for time, latitude, longitude in (
        (queries.time[query], queries.latitude[query], queries.longitude[query]),
        (targets.time[sequel], targets.latitude[sequel], targets.longitude[sequel]),
    ):
        near = np.abs((queries.time[at] - time) / np.timedelta64(1, "s")) < NEAR_SECONDS
        near &= great_circle_km(latitude, longitude, queries.latitude[at], queries.longitude[at]) < near_km
        at = at[~near]
    return at


def ranks(
    query: np.ndarray,
    sequel: np.ndarray,
    distractors: Sequence[np.ndarray],
    queries: np.ndarray,
    targets: np.ndarray,
) -> np.ndarray:
    """Rank of each query's sequel by cosine among its distractors, from 1; half of those that score the same count.

    Parameters
    ----------
    query, sequel
        Positions among ``queries`` and ``targets``.
    queries, targets
        Vectors, (samples, features).
    """
    unit, other = unit_vectors(queries), unit_vectors(targets)
    out = np.empty(len(query))
    for i, (q, s, among) in enumerate(zip(query, sequel, distractors, strict=True)):
        own = float(np.einsum("i,i->", other[s], unit[q]))
        scores = np.einsum("ij,j->i", unit[among], unit[q])
        equal = np.abs(scores - own) <= _EQUAL
        out[i] = 1 + (~equal & (scores > own)).sum() + equal.sum() / 2
    return out


def analogue_forecast(
    vectors: np.ndarray, case: np.ndarray, known: np.ndarray, after: np.ndarray, *, count: int = ANALOGUES
) -> np.ndarray:
    """Mean of what came after the most similar known samples.

    Parameters
    ----------
    vectors
        Of all samples.
    case, known
        Positions of the cases, and of the samples that may be analogues.
    after
        What came after each sample.
    """
    nearest, _ = similarity.nearest(vectors[known], vectors[case], min(count, len(known)))
    there = nearest >= 0
    values = np.where(there, after[known][np.maximum(nearest, 0)], 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(values.sum(axis=1) / there.sum(axis=1))


def forecast_cases(now: np.ndarray, after: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cases of the test days, and of the samples of the fitting days whose sequel is known."""
    known = np.isfinite(now) & np.isfinite(after)
    return np.flatnonzero(known & (part == TEST)), np.flatnonzero(known & (part == FIT))


def directed(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which samples have a direction in all kinds of vectors."""
    return np.asarray(np.all([np.isfinite(v).all(axis=1) & v.any(axis=1) for v in vectors.values()], axis=0))
