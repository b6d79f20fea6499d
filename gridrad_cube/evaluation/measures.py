"""Measures of vectors: retrieval by cosine, linear probes, analogue forecasts, with intervals.

They take and return arrays. `evaluate`, the probe while training and the benchmarks use these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gridrad_cube.evaluation.result import Cell
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import convective_day, solar_hour_of
from gridrad_cube.similarity import directed, nearest, rank_among, unit_rows

#: Parts of the times, in their order.
FIT, CHOOSE, TEST = 0, 1, 2
#: Blocks in each part that are needed to leave out blocks between the parts, and to test for leaks.
MANY_BLOCKS = 5
#: Mean cosine above which vectors are nearly alike, and the standard deviation below which a feature is constant.
_ALIKE, _CONSTANT = 0.999, 0.01
#: Cases below which a number has no meaning.
LEAST_CASES = 30
#: Shares of the blocks that fit and choose; the others test.
_FIT_SHARE, _CHOOSE_SHARE = 0.6, 0.2
#: Hours without a time that separate two events.
_EVENT_GAP = 6
#: Past samples whose mean is an analogue forecast.
_ANALOGUES = 20
#: Draws of the bootstrap.
_DRAWS = 1000
#: Penalties of ridge regression and of logistic regression, a case; the choosing days choose one.
_RIDGE = tuple(10.0**p for p in range(-6, 4))
_LOGISTIC = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

#: A score of some cases under each row of weights of blocks, from the block of each case and the weights.
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


# Blocks of time


def blocks_of(time: npt.ArrayLike) -> tuple[np.ndarray, str]:
    """Divide times into blocks that count as independent: convective days, or events.

    An event is a sequence of times without a gap of more than 6 hours. Events are the blocks where each of them
    lasts at most a day and most have several times, as in collections of radar sequences; otherwise convective days.

    Parameters
    ----------
    time
        ``datetime64``, UTC; in any order, repeated times are allowed.

    Returns
    -------
    The number of the block of each time, from 0 in order of time; and ``"day"`` or ``"event"``.
    """
    times, at = np.unique(np.asarray(time).astype("datetime64[s]"), return_inverse=True)
    new = np.diff(times) > np.timedelta64(_EVENT_GAP, "h")
    event = np.concatenate([[0], np.cumsum(new)])[: len(times)]
    first = np.flatnonzero(np.concatenate([[True], new]))[: len(times)]
    last = np.append(first[1:], len(times)) - 1
    short = (times[last] - times[first] <= np.timedelta64(24, "h")).all()
    if len(times) and short and np.median(last - first) >= 1:
        return event[at], "event"
    return np.unique(convective_day(times), return_inverse=True)[1][at], "day"


def divide(time: npt.ArrayLike, *, gap: int = 1) -> tuple[np.ndarray, str]:
    """Return the part of each time, `FIT`, `CHOOSE`, `TEST` or -1, and in words what this means.

    The parts follow each other in time and share no block. ``gap`` days between them are left out where `MANY_BLOCKS`
    blocks remain in each part. With fewer than 3 blocks every part is -1.
    """
    block, noun = blocks_of(time)
    time, count = np.asarray(time).astype("datetime64[s]"), int(block.max(initial=-1)) + 1
    if count < 3:
        return np.full(len(block), -1), (
            f"{_count_blocks(count, noun)}: too few to divide, at least 3 are needed to fit, choose and test"
        )
    choose = max(1, round(_CHOOSE_SHARE * count))
    fit = max(1, min(int(_FIT_SHARE * count), count - choose - 1))
    part_of = np.repeat([FIT, CHOOSE, TEST], [fit, choose, count - fit - choose])
    apart, day = part_of.copy(), convective_day(time)
    for edge in (fit, fit + choose):
        free_from = day[block < edge].max() + np.timedelta64(1 + gap, "D")
        near = np.unique(block[(block >= edge) & (day < free_from)])
        apart[near[part_of[near] == part_of[edge]]] = -1
    kept = np.bincount(apart[apart >= 0], minlength=3)
    if kept.min() >= MANY_BLOCKS:
        part_of, words = apart, ""
    else:
        kept, few = np.bincount(part_of, minlength=3), count - fit - choose
        drawn = f"intervals are of {_count_blocks(few, noun)}" if few > 1 else f"one {noun} has no interval"
        words = f"; few: nothing is left out between the parts, and {drawn}"
    fit, choose, test = kept
    said = f"{_count_blocks(count, noun)}: {fit} to fit, {choose} to choose, {test} to test{words}"
    return part_of[block], said


def next_part(time: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return when the first of the parts that follow the part of each sample begins; the year 9999 if none
    does.
    """
    last = np.datetime64("9999", "s")
    return np.array([np.append(time[part > p], last).min() for p in (FIT, CHOOSE, TEST)])[part]


def _count_blocks(count: int, noun: str) -> str:
    """Return a number of blocks as text."""
    return f"{count} {'convective ' * (noun == 'day')}{noun}{'s' * (count != 1)}"


def draw_blocks(blocks: int, seed: int) -> np.ndarray:
    """Return the weights of blocks, (1 + _DRAWS, blocks): ones, then how often each occurs in a draw with
    replacement.
    """
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=_DRAWS)
    return np.concatenate([np.ones((1, blocks)), drawn])


# Scores with intervals


def _with_interval(score: Score, block: npt.ArrayLike) -> Cell:
    """Return a score and its 95 % interval, from drawing blocks with replacement; see `cell_of`."""
    _, number = np.unique(block, return_inverse=True)
    count = int(number.max(initial=-1)) + 1
    counted = Cell(cases=len(number), blocks=count)
    if not count:
        return replace(counted, words="no cases")
    return cell_of(score(number, draw_blocks(count, 0)), counted)


def cell_of(drawn: np.ndarray, counted: Cell) -> Cell:
    """Return a score and its 95 % interval, from the score under all weights of blocks.

    There is no interval for a single block, or if many draws have no score.
    """
    value, *_ = drawn
    known = drawn[1:][np.isfinite(drawn[1:])]
    if not np.isfinite(value):
        return replace(counted, words="the values do not vary")
    if counted.blocks < 2 or len(known) < 0.9 * (len(drawn) - 1):
        return replace(counted, value=float(value))
    low, high = np.percentile(known, [2.5, 97.5])
    return replace(counted, value=float(value), low=float(low), high=float(high))


def score_mean(values: np.ndarray, block: npt.ArrayLike) -> Cell:
    """Return the mean of values of cases, such as differences between two ways to answer the same queries.

    Parameters
    ----------
    values
        Shape (cases,), finite.
    block
        As in `score_ranks`.

    Returns
    -------
    The mean with its 95 % interval.
    """
    return _with_interval(partial(mean_scores, np.asarray(values)), block)


def score_ranks(ranks: np.ndarray, block: npt.ArrayLike) -> Cell:
    """Return the share of queries whose target ranks first.

    Parameters
    ----------
    ranks
        From `gridrad_cube.similarity.rank_targets`, (queries,); NaN does not count.
    block
        Block of each query: days or events, as from `blocks_of`, or any other labels.

    Returns
    -------
    The share with its 95 % interval; ``more`` has ``median_rank`` and ``among_ten``, the share of ranks up to 10.
    """
    known = np.isfinite(ranks)
    ranks = np.asarray(ranks)[known]
    cell = score_mean(ranks <= 1, np.asarray(block)[known])
    if not len(ranks):
        return cell
    return replace(
        cell, more={"median_rank": float(np.median(ranks)), "among_ten": float((ranks <= 10).mean())}
    )


def score_r2(truth: np.ndarray, guess: np.ndarray, block: npt.ArrayLike) -> Cell:
    """Return the coefficient of determination R² of predictions, averaged over targets.

    Parameters
    ----------
    truth, guess
        Shape (cases,) or (cases, targets), finite.
    block
        As in `score_ranks`.

    Returns
    -------
    R² with its 95 % interval.
    """
    return _with_interval(partial(r2_scores, truth, guess), block)


# One score for each row of weights of blocks. scikit-learn's metrics take one weighting a call, which a bootstrap
# of a thousand draws cannot afford.


def mean_scores(values: np.ndarray, block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of the values of cases under each row of weights (draws, blocks); ``block`` is the
    column of each case.
    """
    both = np.column_stack([values, np.ones(len(values))])
    total, count = (weights @ _by_block(both, block, weights)).T
    return np.asarray(total / count)


def r2_scores(truth: np.ndarray, guess: np.ndarray, block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficient of determination of predictions (cases, [targets]), mean over targets; see
    `mean_scores`.

    NaN where the truth does not vary.
    """
    truth, guess = (np.reshape(v, (len(v), -1)).astype(np.float64) for v in (truth, guess))
    centered = truth - truth.mean(axis=0)  # for precision; it drops out
    columns = np.concatenate([(truth - guess) ** 2, centered**2, centered, np.ones((len(truth), 1))], axis=1)
    sums = weights @ _by_block(columns, block, weights)
    residual, square, total = np.split(sums[:, :-1], 3, axis=1)
    count = sums[:, -1:]
    spread = square - total**2 / count
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 1e-12 * count, 1 - residual / spread, np.nan).mean(axis=1))


def auc_scores(truth: np.ndarray, score: np.ndarray, block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of scores for a boolean truth; see `mean_scores`. NaN where one
    answer is missing.
    """
    yes, no = (np.bincount(block[t], minlength=weights.shape[1]) for t in (truth, ~truth))
    wins = np.empty((weights.shape[1],) * 2)  # of true cases of one block over false cases of another
    for other in range(weights.shape[1]):
        below = np.sort(score[~truth & (block == other)])
        counts = sum(np.searchsorted(below, score[truth], side) for side in ("left", "right")) / 2
        wins[:, other] = np.bincount(block[truth], counts, minlength=weights.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((weights @ wins) * weights).sum(axis=1) / ((weights @ yes) * (weights @ no)))


def _by_block(columns: np.ndarray, block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sums of columns over the cases of each block, (blocks, columns)."""
    out = np.zeros((weights.shape[1], columns.shape[1]))
    np.add.at(out, block, columns)
    return out


# Linear probes


def ridge(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Predict ``y`` by ridge regression on standardized features.

    For each target the penalty with the least error on the choosing days is taken; with it the regression is fitted
    again on the fitting and the choosing days. Predictions of the choosing days are of the first regression, which
    has not seen them.

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

    def fitted(some: np.ndarray, penalties: np.ndarray, targets: np.ndarray) -> np.ndarray:
        model = make_pipeline(StandardScaler(), Ridge(alpha=penalties * some.sum(), solver="cholesky"))
        return np.asarray(model.fit(x[some], targets[some]).predict(x)).reshape(targets.shape)

    x, fit, choose = x.astype(np.float64), part == FIT, part == CHOOSE
    # A target for each penalty: one pass over the features serves all.
    guess = fitted(fit, np.repeat(_RIDGE, y.shape[1]), np.tile(y, len(_RIDGE)))
    guess = guess.reshape(len(x), len(_RIDGE), y.shape[1])
    best = ((guess[choose] - y[choose, None]) ** 2).sum(axis=0).argmin(axis=0)
    final = fitted(fit | choose, np.asarray(_RIDGE)[best], y)
    return np.where(choose[:, None], np.take_along_axis(guess, best[None, None], axis=1)[:, 0], final)


def logistic(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return the log odds of every case by logistic regression; parameters as in `ridge`, ``y`` booleans
    (cases,).
    """
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
    """Return the local mean solar time as points on circles, (cases, 2 x harmonics): 23 h lies next to 0 h."""
    return _circle(solar_hour_of(time, longitude) / 24, harmonics)


def nuisance(time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return features of solar time, latitude and season, (cases, 8), from which attributes may follow
    without a picture.
    """
    year = pd.DatetimeIndex(time).day_of_year.values / 365.25
    return np.column_stack([clock(time, longitude, 2), latitude, latitude**2, _circle(year, 1)])


def _circle(turns: np.ndarray, harmonics: int) -> np.ndarray:
    angle = 2 * np.pi * np.multiply.outer(turns, np.arange(1, harmonics + 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


# Retrieval


def is_near(
    time: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, place: tuple[Any, ...], *, hours: float, km: float
) -> np.ndarray:  # fmt: skip
    """Return which samples lie less than ``hours`` and less than ``km`` from a place: its time, latitude and
    longitude.
    """
    soon = np.abs(time - place[0]) < np.timedelta64(int(hours * 3600), "s")
    return np.asarray(soon & (great_circle_km(place[1], place[2], latitude, longitude) < km))


def analogue_forecast(queries: np.ndarray, past: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the mean of what followed the 20 most similar past samples, by cosine.

    Parameters
    ----------
    queries, past
        Vectors, (queries, features) and (past, features), finite and not zero.
    after
        Values that followed each past sample, (past,) or (past, targets).

    Returns
    -------
    (queries,) or (queries, targets).
    """
    rows, _ = nearest(past, queries, min(_ANALOGUES, len(past)))
    return np.asarray(after[rows].mean(axis=1))


def planted_retrieval(
    vectors: np.ndarray,
    where: Any,
    planted: Any,
    *,
    hours: float = 6.0,
    km: float = 200.0,
    reach_km: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank each planted storm for each other one as the query, by cosine, among all other samples.

    The query is the sample nearest to the thing. A thing is found by the best of the samples that hold it:
    the
    nearest, and with overlapping windows those with their center within ``reach_km``. The rank counts samples
    that score higher and hold no planted thing, nor a part of one (center beyond twice the reach), and half
    of
    those that score the same. Candidates within both ``hours`` and ``km`` of the query do not count, nor do
    pairs
    that near each other.

    Parameters
    ----------
    vectors
        One a sample, (samples, features); samples whose vector is not finite, or zero, do not count.
    where, planted
        ``time``, ``latitude`` and ``longitude`` of the samples and of the planted things: a dataset, a table
        or
        a mapping of arrays.
    hours, km
        Time and distance within which samples count as neighbors of the query.
    reach_km
        Largest distance between the center of a sample and a planted storm in it.

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
    known = directed(vectors)
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
                ranks[i, j] = rank_among(scores[holding[j]].max(keepdims=True), scores[None], others[None])[0]
    return ranks, candidates


def _places(where: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    time, latitude, longitude = (np.asarray(where[name]) for name in ("time", "latitude", "longitude"))
    return time.astype("datetime64[s]"), latitude, longitude


# Spread


@dataclass(frozen=True)
class Spread:
    """How far vectors spread.

    Attributes
    ----------
    mean_cosine
        Of pairs of vectors: 1 if all have one direction.
    constant_share
        Share of features whose standard deviation is below 1 % of the root mean square of all numbers.
    """

    mean_cosine: float
    constant_share: float

    @property
    def collapsed(self) -> bool:
        """True if the vectors are nearly alike, or most of their features are constant."""
        return self.mean_cosine > _ALIKE or self.constant_share > 0.5


def spread_of(vectors: np.ndarray) -> Spread:
    """Return how far vectors spread.

    It does not contain the effective rank (`gridrad_cube.similarity.rank_me`), which may rise while answers
    get worse.

    Parameters
    ----------
    vectors
        Shape (samples, features). Rows that are not finite, or zero, do not count.

    Returns
    -------
    The spread.
    """
    vectors = np.asarray(vectors, np.float64)
    vectors = vectors[directed(vectors)]
    count, total = len(vectors), unit_rows(vectors).sum(axis=0)
    cosine = (total @ total - count) / (count * (count - 1)) if count > 1 else 1.0
    size = np.sqrt((vectors**2).mean()) if count else 0.0
    return Spread(float(cosine), float((vectors.std(axis=0) <= _CONSTANT * size).mean()) if count else 1.0)
