"""Measures of vectors: scores with intervals, linear probes, ranks by cosine. Arrays in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import convective_day, solar_hour_of, split_by_day
from gridrad_cube.similarity import nearest, unit_rows

#: Parts of the days, in order of time, and the share of the days of each.
FIT, CHOOSE, TEST = 0, 1, 2
_SHARES = (0.6, 0.2, 0.2)
#: Days and cases below which a number has no meaning.
LEAST_DAYS, LEAST_CASES = 5, 30
#: Draws of the bootstrap.
_DRAWS = 1000
#: Penalties of ridge regression and of logistic regression, a case; the choosing days choose one.
_RIDGE = tuple(10.0**p for p in range(-6, 4))
_LOGISTIC = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Analogues of a forecast.
_ANALOGUES = 10
#: Scores this close are equal: those of equal vectors differ by rounding.
_EQUAL = 1e-9


# Days


def divide_days(time: np.ndarray, *, gap: int = 1) -> tuple[np.ndarray, str]:
    """The part of each time, `FIT`, `CHOOSE`, `TEST` or -1, and what is missing for a division ("" if nothing is).

    Parts share no convective day, and ``gap`` days lie between them. With too few days every part is -1.
    """
    none = np.full(len(time), -1)
    try:
        part = split_by_day(time, _SHARES, gap=gap)
    except SchemaError:
        part = none
    fit, choose, test = (len(np.unique(convective_day(time[part == p]))) for p in (FIT, CHOOSE, TEST))
    if fit >= LEAST_DAYS and test >= LEAST_DAYS:
        return part, ""
    return none, (
        f"too few days: of {count_days(len(np.unique(convective_day(time))))}, {fit} fit, {choose} choose and "
        f"{test} test; at least {LEAST_DAYS} must fit and {LEAST_DAYS} test"
    )


def count_days(count: int) -> str:
    """A number of days as text."""
    return f"{count} convective day{'s' * (count != 1)}"


def draw_days(days: int, seed: int) -> np.ndarray:
    """Weights of days, (1 + _DRAWS, days): ones, then how often each day occurs in a draw with replacement."""
    drawn = np.random.default_rng(seed).multinomial(days, np.full(days, 1 / days), size=_DRAWS)
    return np.concatenate([np.ones((1, days)), drawn])


# Scores, one for each row of weights of days. scikit-learn's metrics take one weighting a call, which a bootstrap
# of a thousand draws cannot afford.


def mean_scores(values: np.ndarray, day: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the values of cases under each row of weights (draws, days); ``day`` is the column of each case."""
    both = np.column_stack([values, np.ones(len(values))])
    total, count = (weights @ _by_day(both, day, weights)).T
    return np.asarray(total / count)


def r2_scores(truth: np.ndarray, guess: np.ndarray, day: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficient of determination of predictions (cases, [targets]), mean over targets; see `mean_scores`.

    NaN where the truth does not vary.
    """
    truth, guess = (np.reshape(v, (len(v), -1)).astype(np.float64) for v in (truth, guess))
    centered = truth - truth.mean(axis=0)  # for precision; it drops out
    columns = np.concatenate([(truth - guess) ** 2, centered**2, centered, np.ones((len(truth), 1))], axis=1)
    sums = weights @ _by_day(columns, day, weights)
    residual, square, total = np.split(sums[:, :-1], 3, axis=1)
    count = sums[:, -1:]
    spread = square - total**2 / count
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 1e-12 * count, 1 - residual / spread, np.nan).mean(axis=1))


def auc_scores(truth: np.ndarray, score: np.ndarray, day: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of scores for a boolean truth; see `mean_scores`. NaN where one answer is missing."""
    yes, no = (np.bincount(day[t], minlength=weights.shape[1]) for t in (truth, ~truth))
    wins = np.empty((weights.shape[1],) * 2)  # of true cases of one day over false cases of another
    for other in range(weights.shape[1]):
        below = np.sort(score[~truth & (day == other)])
        counts = sum(np.searchsorted(below, score[truth], side) for side in ("left", "right")) / 2
        wins[:, other] = np.bincount(day[truth], counts, minlength=weights.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((weights @ wins) * weights).sum(axis=1) / ((weights @ yes) * (weights @ no)))


def _by_day(columns: np.ndarray, day: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of columns over the cases of each day, (days, columns)."""
    out = np.zeros((weights.shape[1], columns.shape[1]))
    np.add.at(out, day, columns)
    return out


# Linear probes


def ridge(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Predict ``y`` by ridge regression on standardized features.

    The penalty with the least error on the choosing days is taken.

    Parameters
    ----------
    x
        Shape (cases, features).
    y
        Shape (cases, targets).
    part
        `FIT`, `CHOOSE` or anything else, of each case.

    Returns
    -------
    Predictions for every case, (cases, targets).
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit, choose = part == FIT, part == CHOOSE
    # A target for each penalty: one pass over the features serves all.
    model = Ridge(alpha=np.repeat(_RIDGE, y.shape[1]) * fit.sum(), solver="cholesky")
    x = x.astype(np.float64)
    model = make_pipeline(StandardScaler(), model).fit(x[fit], np.tile(y[fit], len(_RIDGE)))
    guess = model.predict(x).reshape(len(x), len(_RIDGE), y.shape[1])
    errors = ((guess[choose] - y[choose, None]) ** 2).sum(axis=(0, 2))
    return np.asarray(guess[:, errors.argmin()])


def logistic(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Log odds of every case by logistic regression; parameters as in `ridge`, ``y`` booleans (cases,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit, choose = part == FIT, part == CHOOSE
    sign, found = np.where(y[choose], 1.0, -1.0), []
    for penalty in _LOGISTIC:
        model = LogisticRegression(C=1 / (penalty * fit.sum()), max_iter=1000)
        odds = make_pipeline(StandardScaler(), model).fit(x[fit], y[fit]).decision_function(x)
        found.append((float(np.logaddexp(0, -sign * odds[choose]).mean()), odds))
    return np.asarray(min(found, key=lambda pair: pair[0])[1])


def clock(time: np.ndarray, longitude: np.ndarray, harmonics: int = 1) -> np.ndarray:
    """Local mean solar time as points on circles, (cases, 2 x harmonics): 23 h lies next to 0 h."""
    return _circle(solar_hour_of(time, longitude) / 24, harmonics)


def nuisance(time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Features of solar time, latitude and season, which an attribute may follow whatever the picture, (cases, 8)."""
    year = pd.DatetimeIndex(time).day_of_year.values / 365.25
    return np.column_stack([clock(time, longitude, 2), latitude, latitude**2, _circle(year, 1)])


def _circle(turns: np.ndarray, harmonics: int) -> np.ndarray:
    angle = 2 * np.pi * np.multiply.outer(turns, np.arange(1, harmonics + 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


# Retrieval


def is_near(
    time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, place: tuple[Any, ...], *, hours: float, km: float
) -> np.ndarray:  # fmt: skip
    """Which samples lie less than ``hours`` and less than ``km`` from a place: its time, latitude and longitude."""
    soon = np.abs(time - place[0]) < np.timedelta64(int(hours * 3600), "s")
    return np.asarray(soon & (great_circle_km(place[1], place[2], latitude, longitude) < km))


def rank_among(own: float, others: np.ndarray) -> float:
    """Rank of a score among others, from 1; half of the equal ones count, so that equal vectors rank in the middle."""
    equal = np.abs(others - own) <= _EQUAL
    return float(1 + (~equal & (others > own)).sum() + equal.sum() / 2)


def usable(vectors: np.ndarray) -> np.ndarray:
    """Which rows are finite and not zero, so that they have a direction."""
    return np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))


def analogue_forecast(
    vectors: np.ndarray, case: np.ndarray, known: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """Mean of what came after the known samples that are most similar to each case; both are positions."""
    rows, _ = nearest(vectors[known], vectors[case], min(_ANALOGUES, len(known)))
    return np.asarray(after[known][rows].mean(axis=1))


def planted_retrieval(
    vectors: np.ndarray,
    where: Any,
    planted: Any,
    *,
    hours: float = 6.0,
    km: float = 200.0,
    reach_km: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank each planted thing for each other one as the query, by cosine, among all other samples.

    The query is the sample nearest to the thing. A thing is found by the best of the samples that hold it: the
    nearest, and with overlapping windows those with their center within ``reach_km``. The rank counts samples
    that score higher and hold no planted thing, nor a part of one (center beyond twice the reach), and half of
    those that score the same. Candidates within both ``hours`` and ``km`` of the query do not count, nor do pairs
    that near each other.

    Parameters
    ----------
    vectors
        One a sample, (samples, features); samples whose vector is not finite, or zero, do not count.
    where, planted
        ``time``, ``latitude`` and ``longitude`` of the samples and of the planted things: a dataset, a table or
        a mapping of arrays.

    Returns
    -------
    Ranks, (things, things): row the query, 1 is best; NaN on the diagonal, where two lie too near each other,
    and where one has no vector. And the number of candidates of each query, (things,).

    Raises
    ------
    SchemaError
        If no sample has the time of a thing.
    """
    time, latitude, longitude = _places(where)
    known = usable(vectors)
    unit = unit_rows(np.where(known[:, None], vectors, 0.0))
    center, holding, taken = [], [], np.zeros(len(unit), bool)
    for i, thing in enumerate(zip(*_places(planted), strict=True)):
        distance = great_circle_km(thing[1], thing[2], latitude, longitude)
        same = np.abs(time - thing[0]) <= np.timedelta64(60, "s")
        distance = np.where(same & np.isfinite(distance), distance, np.inf)
        center.append(int(distance.argmin()))
        if not np.isfinite(distance[center[i]]):
            raise SchemaError(
                f"planted thing {i}: no sample has its time {thing[0]}; expected one within a minute"
            )
        distance[center[i]] = 0.0
        holding.append(np.flatnonzero((distance <= reach_km) & known))
        taken |= distance <= 2 * reach_km
    ranks, candidates = np.full((len(center), len(center)), np.nan), np.zeros(len(center), np.int64)
    for i, query in enumerate(center):
        place = time[query], latitude[query], longitude[query]
        near = is_near(time, latitude, longitude, place, hours=hours, km=km)
        others = known & ~taken & ~near
        candidates[i] = others.sum()
        scores = unit @ unit[query]
        for j, other in enumerate(center):
            if other != query and not near[other] and known[query] and holding[j].size:
                ranks[i, j] = rank_among(scores[holding[j]].max(), scores[others])
    return ranks, candidates


def _places(where: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    time, latitude, longitude = (np.asarray(where[name]) for name in ("time", "latitude", "longitude"))
    return time.astype("datetime64[s]"), latitude, longitude


# Spread


def feature_spread(vectors: np.ndarray) -> float:
    """Mean deviation of unit vectors times the root of their length: 1 if evenly spread, 0 if all are alike."""
    unit = unit_rows(vectors)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))
