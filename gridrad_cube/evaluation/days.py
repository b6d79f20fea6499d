"""Convective days: parts that share none, and intervals from drawing days anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gridrad_cube.evaluation.result import Cell
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import convective_day, split_by_day

#: Parts of the days, in order of time, and how much of the days each takes.
FIT, CHOOSE, TEST = 0, 1, 2
SHARES = (0.6, 0.2, 0.2)
#: Days and cases under which a number would mean nothing.
LEAST_DAYS, LEAST_CASES = 5, 30
#: Draws of the bootstrap, and weights that are held at once.
DRAWS, _AT_ONCE = 1000, 4_000_000

#: From weights of cases, shape (draws, cases), a number for each draw.
Statistic = Callable[[np.ndarray], np.ndarray]


def parts_of(time: np.ndarray, *, gap: int = 1) -> tuple[np.ndarray, str]:
    """The part of each time, `FIT`, `CHOOSE`, `TEST` or -1, and in words what is lacking ("" if nothing is).

    Parts share no convective day, and ``gap`` days lie between them.
    """
    days = len(np.unique(convective_day(time)))
    try:
        part = split_by_day(time, SHARES, gap=gap)
    except SchemaError:
        part = np.full(time.shape, -1)
    found = [len(np.unique(convective_day(time[part == p]))) for p in (FIT, CHOOSE, TEST)]
    if found[FIT] >= LEAST_DAYS and found[TEST] >= LEAST_DAYS:
        return part, ""
    words = (
        f"too few days: of {count_days(days)}, {found[FIT]} fit, {found[CHOOSE]} choose and "
        f"{found[TEST]} test; at least {LEAST_DAYS} must fit and {LEAST_DAYS} test"
    )
    return np.full(time.shape, -1), words


def count_days(count: int) -> str:
    """In words."""
    return f"{count} convective day{'s' * (count != 1)}"


def estimate(statistic: Statistic, time: np.ndarray, *, seed: int, noun: str = "cases") -> Cell:
    """A statistic of cases, with a 95 % interval from drawing their convective days anew; words for too few.

    Parameters
    ----------
    time
        Of each case.
    """
    cases = len(time)
    days, which = np.unique(convective_day(time), return_inverse=True)
    words = ""
    if cases < LEAST_CASES:
        words = f"too few {noun}: {cases}, of at least {LEAST_CASES}"
    elif len(days) < LEAST_DAYS:
        words = f"too few days: {cases} {noun} of {count_days(len(days))}, of at least {LEAST_DAYS}"
    if words:
        return Cell(cases=cases, days=len(days), words=words)
    value = float(statistic(np.ones((1, cases)))[0])
    if not np.isfinite(value):
        return Cell(cases=cases, days=len(days), words=f"the {noun} do not vary")
    drawn = np.random.default_rng(seed).multinomial(len(days), np.full(len(days), 1 / len(days)), size=DRAWS)
    step = max(1, _AT_ONCE // cases)
    values = np.concatenate(
        [statistic(drawn[i : i + step][:, which].astype(float)) for i in range(0, DRAWS, step)]
    )
    values = values[np.isfinite(values)]
    if len(values) < 0.9 * DRAWS:
        return Cell(
            cases=cases, days=len(days), words=f"too few {noun}: some draws of days hold none that differ"
        )
    low, high = np.percentile(values, [2.5, 97.5])
    return Cell(value, float(low), float(high), cases, len(days))


def mean_of(values: np.ndarray) -> Statistic:
    """Mean of values, one a case."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.asarray((weights @ values) / weights.sum(axis=1))

    return statistic


def r_squared(truth: np.ndarray, guess: np.ndarray) -> Statistic:
    """Share of the variance of ``truth`` (cases, [targets]) that ``guess`` explains; mean over targets."""
    truth, guess = (v.reshape(len(v), -1).astype(np.float64) for v in (truth, guess))
    centred = truth - truth.mean(axis=0)  # for precision; drops out

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1, keepdims=True)
        left = weights @ (truth - guess) ** 2
        spread = weights @ centred**2 - (weights @ centred) ** 2 / total
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > 1e-12 * total, 1 - left / spread, np.nan).mean(axis=1)

    return statistic


def area_under_curve(truth: np.ndarray, score: np.ndarray) -> Statistic:
    """How often a case that is true scores higher than one that is not (AUC); half of what is equal counts."""
    order = np.argsort(score, kind="stable")
    right = truth[order].astype(np.float64)
    first = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        yes, no = (np.add.reduceat(weights[:, order] * w, first, axis=1) for w in (right, 1 - right))
        below = np.cumsum(no, axis=1) - no / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((yes * below).sum(axis=1) / (yes.sum(axis=1) * no.sum(axis=1)))

    return statistic


def difference(one: Statistic, other: Statistic, sign: float = 1.0) -> Statistic:
    """Of the same draws of days, so that what they share drops out."""
    return lambda weights: sign * (one(weights) - other(weights))
