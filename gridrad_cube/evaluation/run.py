"""Evaluating stores of embeddings: every question, for every kind of vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gridrad_cube.evaluation.baselines import ATTRIBUTES, COMPONENTS, describe_pixels
from gridrad_cube.evaluation.measures import (
    CHOOSE,
    FIT,
    LEAST_CASES,
    LEAST_DAYS,
    TEST,
    analogue_forecast,
    auc_scores,
    clock,
    count_days,
    divide_days,
    draw_days,
    feature_spread,
    is_near,
    logistic,
    mean_scores,
    nuisance,
    r2_scores,
    rank_among,
    rank_me,
    ridge,
    unit_vectors,
    usable,
)
from gridrad_cube.evaluation.result import Cell, Evaluation, Row
from gridrad_cube.evaluation.sequels import PathLike, Samples, Stores, draw, open_stores
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_seconds, convective_day, hour_of
from gridrad_cube.store import store_info

#: Times after which the same place is looked for.
LEADS = ("10min", "30min", "60min", "180min")
#: Fewest distractors of a query; they are within half an hour of the sequel's hour of the day, and not within so many
#: hours and an edge of the query or its sequel.
LEAST_DISTRACTORS, SAME_HOUR, NEAR_HOURS = 20, 0.5, 6.0
#: Fewest samples of the rarer answer of a yes or no, on the fitting and on the testing days.
LEAST_RARE = 10
_CENTERED = ", centered"
_PCA = f"PCA-{COMPONENTS} of pixels"

#: A score of some cases under each row of weights of days.
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def evaluate(
    embeddings: PathLike | Sequence[PathLike],
    cube: PathLike | None = None,
    *,
    patches: PathLike | None = None,
    channel: str | None = None,
    samples: int = 8000,
    queries: int = 400,
    leads: Sequence[Any] = LEADS,
    gap: int = 1,
    seed: int = 0,
) -> Evaluation:
    """Judge embeddings without labels: spread, retrieval, analogue forecasts, probes, leaks, beside baselines.

    Days are divided, in order of time, into those that fit (60 %), those that choose (20 %: penalties, and the
    best of several stores) and those that test (20 %); no convective day is in two parts. Intervals are 95 %, from
    drawing convective days with replacement. Where data are too few, words stand in place of a number.

    Memory is bounded by ``samples``, whatever the size of the store: some 10 kB a sample, and as much a sequel.

    Parameters
    ----------
    embeddings
        A store of embeddings, level 256 or 2k; or several of the same samples, such as those of different
        checkpoints, of which one is chosen.
    cube
        Where the cube is that they were made from; None for where the store says.
    patches
        At level 2k, where the level-256 embeddings are; None for where the store says.
    channel
        Label; the first if None.
    samples
        Clean samples to draw at most.
    queries
        Queries of one lead at most.
    leads
        Lengths of time.
    gap
        Convective days left out between parts.
    seed
        Of the draws of samples, queries and days.

    Raises
    ------
    SchemaError
        If the stores do not fit each other or the cube, the cube has moved, or no sample is left.
    """
    paths = [embeddings] if isinstance(embeddings, (str, os.PathLike)) else list(embeddings)
    if not paths or samples < 1 or queries < 1:
        raise SchemaError(
            f"evaluate: got {len(paths)} stores, samples={samples}, queries={queries}; expected at least one of each"
        )
    stores = open_stores(paths, cube, patches, channel)
    pool = _gather(stores, stores.draw(samples, seed))
    if not len(pool.rows):
        raise SchemaError(f"evaluate: no clean sample of {stores.label} has an embedding in every store")
    part, lacking = divide_days(pool.time, gap=gap)
    kinds = _learn(stores, pool, part == FIT if not lacking else np.ones(len(part), bool))
    pool = _project(pool, kinds)
    after = {str(lead): stores.after(pool, as_seconds(lead)) for lead in leads}
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(r[r >= 0] for r in after.values())]))
    later = _project(_gather(stores, rows), kinds)
    sequels = {lead: later.find(r) for lead, r in after.items()}
    return _Evaluator(stores, kinds, pool, later, sequels, part, lacking, queries, seed).run()


def _gather(stores: Stores, rows: np.ndarray) -> Samples:
    """Samples with the vectors and attributes of their pixels."""
    found = stores.read(rows)
    attributes, vectors = describe_pixels(stores.cube, *found.windows, stores.shape, stores.members)
    return replace(found, attributes=attributes, vectors={**found.vectors, **vectors})


#: Kinds of vectors: which gathered vectors each is made of, and how.
_Kinds = Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]


def _learn(stores: Stores, pool: Samples, some: np.ndarray) -> _Kinds:
    """How each kind of vectors is made, learned from some samples; kinds that do not vary are left out."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    kinds: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
    for name in stores.datasets:
        kinds[name] = (name, lambda values: values)
    for name in stores.datasets:
        mean = pool.vectors[name][some].mean(axis=0, dtype=np.float64)
        kinds[name + _CENTERED] = (name, partial(np.add, -mean))
    for name in ("moments", "histogram"):
        scaler = StandardScaler().fit(pool.vectors[name][some].astype(np.float64))
        if (scaler.scale_ != 1).any():  # 1 where a feature does not vary
            kinds[name] = (name, scaler.transform)
    picture = pool.vectors["picture"][some].astype(np.float64)
    if np.ptp(picture, axis=0).any():
        pca = PCA(min(COMPONENTS, *picture.shape), svd_solver="full").fit(picture)
        count = int((pca.explained_variance_ > 1e-10 * pca.explained_variance_[0]).sum())
        kinds[_PCA] = ("picture", lambda values: pca.transform(values)[:, :count])
    if stores.patches is not None:
        kinds["mean of patches"] = ("mean of patches", lambda values: values)
    return kinds


def _project(samples: Samples, kinds: _Kinds) -> Samples:
    """Samples with all kinds of vectors."""
    return replace(samples, vectors={name: make(samples.vectors[raw]) for name, (raw, make) in kinds.items()})


def _at(values: np.ndarray, positions: np.ndarray, otherwise: float | bool) -> np.ndarray:
    """Values at positions, and something else where the position is -1."""
    if not len(values):
        return np.full(positions.shape, otherwise)
    return np.where(positions >= 0, values[np.maximum(positions, 0)], otherwise)


def _directed(samples: Samples) -> np.ndarray:
    """Which samples have a direction in all kinds of vectors."""
    return np.asarray(np.all([usable(v) for v in samples.vectors.values()], axis=0))


@dataclass(frozen=True)
class _Evaluator:
    """The questions, each of which gives rows of the table.

    Attributes
    ----------
    pool, later
        Samples drawn at random and those that come after them, with all kinds of vectors.
    sequels
        For each lead, the position among ``later`` of what comes after each sample of the pool; -1 for none.
    part, lacking
        Part of the days of each sample of the pool; in words what is missing to divide them.
    """

    stores: Stores
    kinds: _Kinds
    pool: Samples
    later: Samples
    sequels: Mapping[str, np.ndarray]
    part: np.ndarray
    lacking: str
    queries: int
    seed: int

    def run(self) -> Evaluation:
        """Ask all questions."""
        told = {name: about for name, about in ATTRIBUTES.items() if name in self.pool.attributes}
        rows = [*self._spread(), *map(self._same_place, self.sequels)]
        storms = [name for name, about in told.items() if about.storm]
        if storms and self.stores.patches is None:
            rows += [self._same_storm(lead, storms[0]) for lead in self.sequels]
        numbers = [name for name, about in told.items() if not about.yes_no]
        rows += [self._forecast(name, lead) for name in numbers for lead in self.sequels]
        scores: list[dict[str, float]] = []
        for name in told:
            row, score = self._probe(name, residual=False)
            rows += [row, self._probe(name, residual=True)[0]]
            scores += [score] if np.isfinite(list(score.values())).all() and score else []
        chosen, choice = self._choose(scores)
        notes = ["[low, high]: 95 % interval, from drawing convective days with replacement."]
        if told:
            notes.append("residual: R² of what solar time, latitude and season leave of the attribute.")
        if missing := [about.long_name for name, about in ATTRIBUTES.items() if name not in told]:
            notes.append(f"The cube does not tell: {'; '.join(missing)}.")
        return Evaluation(self._about(), (*rows, *self._leaks(), *choice), chosen, tuple(notes))

    def _about(self) -> dict[str, Any]:
        """What the evaluation is made from."""
        stores, time, days = self.stores, self.pool.time, convective_day(self.pool.time)
        paths = [str(d.encoding.get("source")) for d in stores.datasets.values()]
        counts = [len(np.unique(days[self.part == p])) for p in (FIT, CHOOSE, TEST)]
        divided = "{} to fit, {} to choose, {} to test".format(*counts)
        return {
            "stores": paths,
            "checkpoints": [str(store_info(path).get("checkpoint")) for path in paths],
            "cube": str(stores.cube.encoding.get("source")),
            "level": str(store_info(paths[0]).get("level")),
            "channel": stores.label,
            "samples": f"{len(time)} of {int(stores.mask.sum())} clean samples",
            "time": f"{time.min()} to {time.max()} UTC",
            "days": self.lacking or f"{count_days(len(np.unique(days)))}: {divided}",
            "seed": self.seed,
        }

    # Cells

    def _cells(
        self, scores: Mapping[str, Score], time: np.ndarray, noun: str, better: str = "higher"
    ) -> dict[str, Any]:
        """Cells, gain and baseline of a row: by how much the first store is better than the best baseline.

        Parameters
        ----------
        scores
            Of each kind of vectors.
        time
            Of each case.
        noun
            What the cases are.
        """
        days, day = np.unique(convective_day(time), return_inverse=True)
        counted, sign = Cell(cases=len(time), days=len(days)), 1.0 if better == "higher" else -1.0
        words = ""
        if len(time) < LEAST_CASES:
            words = f"too few {noun}: {len(time)}, of at least {LEAST_CASES}"
        elif len(days) < LEAST_DAYS:
            words = f"too few days: {len(time)} {noun} of {count_days(len(days))}, of at least {LEAST_DAYS}"
        if words:
            return {"cells": dict.fromkeys(scores, replace(counted, words=words))}
        weights = draw_days(len(days), self.seed)
        drawn = {name: sign * score(day, weights) for name, score in scores.items()}
        cells = {name: _cell(sign * values, counted, noun) for name, values in drawn.items()}
        first = next(iter(self.stores.datasets))
        rivals = [n for n in drawn if self._is_baseline(n) and cells[n].value is not None]
        if not rivals or cells[first].value is None:
            return {"cells": cells}
        best = max(rivals, key=lambda n: drawn[n][0])
        return {"cells": cells, "gain": _cell(drawn[first] - drawn[best], counted, noun), "baseline": best}

    def _is_baseline(self, name: str) -> bool:
        """Whether a store has to beat this."""
        made = name in self.stores.datasets or name.endswith(_CENTERED)
        return not made and name not in ("mean", "chance")

    def _linear(self) -> list[str]:
        """Kinds of vectors that differ to a linear probe: without their mean they are the same to it."""
        return [name for name in self.kinds if not name.endswith(_CENTERED)]

    # Questions

    def _spread(self) -> list[Row]:
        """How many dimensions the embeddings fill, and how far they spread."""
        counted = Cell(cases=len(self.pool.time), days=len(np.unique(convective_day(self.pool.time))))
        rows = []
        for question, measure, per_feature, of in (
            ("RankMe, effective dimensions", "RankMe", 2, rank_me),
            ("feature spread (1: even, 0: all alike)", "feature spread", 0, feature_spread),
        ):
            cells = {}
            for name in self.stores.datasets:
                count, features = self.pool.vectors[name].shape
                least = max(per_feature * features, LEAST_CASES)
                needed = f"{least} for {features} features" if per_feature else f"{least}"
                words = f"too few samples: {count}, of at least {needed}"
                value = of(self.pool.vectors[name]) if count >= least else None
                cells[name] = replace(counted, value=value, words="" if count >= least else words)
            rows.append(Row("spread", question, measure, cells, better=""))
        return rows

    def _same_place(self, lead: str) -> Row:
        """Whether what lies at the same place some time later is the most similar of all that is of its hour."""
        allowed, sequel = _directed(self.pool), self.sequels[lead]
        good = allowed & _at(_directed(self.later), sequel, False)
        sequel = np.where(good, sequel, -1)
        return self._retrieve(f"same place after {lead}", lead, sequel, self.later, allowed)

    def _same_storm(self, lead: str, attribute: str) -> Row:
        """The same for deep convection: the sequel is the cell, of the 3 x 3 about the place, that has most of it."""
        allowed = _directed(self.pool) & (np.nan_to_num(self.pool.attributes[attribute]) > 0)
        sequel = np.full(len(allowed), -1)
        query = draw(np.flatnonzero(allowed & (self.sequels[lead] >= 0)), self.queries, (self.seed, 1))
        if not len(query):
            return self._retrieve(f"same storm after {lead}", lead, sequel, self.later, allowed)
        around = self.stores.around(self.later.rows[self.sequels[lead][query]])
        cells = _project(_gather(self.stores, np.unique(around[around >= 0])), self.kinds)
        at = cells.find(around)
        amount = _at(np.where(_directed(cells), np.nan_to_num(cells.attributes[attribute]), 0.0), at, 0.0)
        most = amount.argmax(axis=1)
        line = np.arange(len(query))
        sequel[query] = np.where(amount[line, most] > 0, at[line, most], -1)
        return self._retrieve(f"same storm after {lead}", lead, sequel, cells, allowed)

    def _retrieve(
        self, question: str, lead: str, sequel: np.ndarray, targets: Samples, allowed: np.ndarray
    ) -> Row:
        """How often the sequel of a sample, a position among targets, ranks first among allowed ones of its hour."""
        row = Row("retrieval", question, "share ranked first", {})
        query = draw(np.flatnonzero(sequel >= 0), self.queries, (self.seed, 0))
        if not len(query):
            return self._in_words(row, [*self.kinds, "chance"], self._no_pairs(lead))
        among = [self._distractors(q, sequel[q], targets, allowed) for q in query.tolist()]
        enough = np.array([len(a) >= LEAST_DISTRACTORS for a in among])
        if enough.sum() < LEAST_CASES:
            words = (
                f"too few queries: {len(query)}, of which {int(enough.sum())} have {LEAST_DISTRACTORS} distractors "
                f"of the same hour; at least {LEAST_CASES} must"
            )
            return self._in_words(row, [*self.kinds, "chance"], words)
        query, among = query[enough], [a for a, e in zip(among, enough, strict=True) if e]
        counts = np.array([len(a) for a in among], float)
        ranks = {}
        for name in self.kinds:
            unit, other = (unit_vectors(s.vectors[name]) for s in (self.pool, targets))
            ranks[name] = np.array([
                rank_among(float(other[sequel[q]] @ unit[q]), np.einsum("ij,j->i", unit[a], unit[q]))
                for q, a in zip(query.tolist(), among, strict=True)
            ])  # fmt: skip
        scores = {name: partial(mean_scores, r <= 1) for name, r in ranks.items()}
        found = self._cells(scores, self.pool.time[query], "queries")
        cells = found["cells"]
        for name, r in ranks.items():
            if cells[name].value is not None:
                more = {
                    "median_rank": float(np.median(r)),
                    "among_ten": float((r <= 10).mean()),
                    "outranked": float((1 - (r - 1) / counts).mean()),
                    "median_distractors": float(np.median(counts)),
                }
                cells[name] = replace(cells[name], more=more)
                cells["chance"] = Cell(float((1 / (1 + counts)).mean()), cases=len(query))
        return replace(row, **found)

    def _distractors(self, query: int, sequel: int, targets: Samples, allowed: np.ndarray) -> np.ndarray:
        """Positions of the allowed samples among which a query's sequel is looked for.

        Those of the sequel's hour of the day, of any day, that are neither near the query nor near the sequel.
        """
        pool = self.pool
        apart = np.abs(hour_of(pool.time) - hour_of(targets.time[sequel]))
        at = np.flatnonzero(allowed & (np.minimum(apart, 24 - apart) <= SAME_HOUR))
        for some, i in ((pool, query), (targets, sequel)):
            time, latitude, longitude = (v[at] for v in pool.places)
            place = tuple(v[i] for v in some.places)
            at = at[
                ~is_near(time, latitude, longitude, place, hours=NEAR_HOURS, km=0.945 * self.stores.edge_km)
            ]
        return at

    def _forecast(self, name: str, lead: str) -> Row:
        """What the most similar samples of the fitting days say of an attribute some time later."""
        about, pool, kinds = ATTRIBUTES[name], self.pool, self.kinds
        question = f"{about.long_name} after {lead}"
        row = Row("forecast", question, "mean absolute error", {}, about.units, "lower")
        now = pool.attributes[name]
        after = _at(self.later.attributes[name], self.sequels[lead], np.nan)
        known = _directed(pool) & np.isfinite(now) & np.isfinite(after)
        case, fit = (np.flatnonzero(known & (self.part == p)) for p in (TEST, FIT))
        words = self.lacking if np.isfinite(after).any() else self._no_pairs(lead)
        differ = int((after[case] != np.median(after[case])).sum()) if len(case) else 0
        if not words and len(fit) < LEAST_CASES:
            words = f"too few known sequels: {len(fit)}, of at least {LEAST_CASES}"
        elif not words and differ < LEAST_CASES:
            words = (
                f"too few cases: {len(case)} to test, of which {differ} differ; at least {LEAST_CASES} must"
            )
        if words:
            return self._in_words(row, [*kinds, "persistence", "mean"], words)
        guesses = {kind: analogue_forecast(pool.vectors[kind], case, fit, after) for kind in kinds}
        guesses |= {"persistence": now[case], "mean": np.full(len(case), after[fit].mean())}
        scores = {kind: partial(mean_scores, np.abs(g - after[case])) for kind, g in guesses.items()}
        return replace(row, **self._cells(scores, pool.time[case], "cases", "lower"))

    def _probe(self, name: str, *, residual: bool) -> tuple[Row, dict[str, float]]:
        """A probe of an attribute, or of what solar time, latitude and season leave of it.

        Returns
        -------
        The row, and the score of each store on the choosing days; empty where the attribute is not probed.
        """
        about = ATTRIBUTES[name]
        binary = about.yes_no and not residual
        question = f"{about.long_name}, residual" if residual else about.long_name
        row = Row("probe", question, "AUC" if binary else "R²", {})
        y = self.pool.attributes[name]
        known = np.isfinite(y)
        if words := self.lacking or self._too_few(name):
            return self._in_words(row, self._linear(), words), {}
        part, y, where = self.part[known], y[known], [v[known] for v in self.pool.places]
        if residual:
            y = y - ridge(nuisance(*where), y[:, None], part)[:, 0]
        guesses = {}
        for kind in self._linear():
            x = self.pool.vectors[kind][known]
            guesses[kind] = logistic(x, y > 0, part) if binary else ridge(x, y[:, None], part)[:, 0]
        truth, score = (y > 0, auc_scores) if binary else (y, r2_scores)
        test, choose = part == TEST, part == CHOOSE
        scores = {kind: partial(score, truth[test], g[test]) for kind, g in guesses.items()}
        row = replace(row, **self._cells(scores, where[0][test], "samples"))
        once = np.zeros(int(choose.sum()), int), np.ones((1, 1))
        chosen = {n: float(score(truth[choose], guesses[n][choose], *once)[0]) for n in self.stores.datasets}
        return row, {n: 2 * s - 1 if binary else s for n, s in chosen.items()}

    def _too_few(self, name: str) -> str:
        """What an attribute lacks to be probed, in words."""
        y, least = (
            self.pool.attributes[name],
            LEAST_RARE if ATTRIBUTES[name].yes_no else LEAST_CASES,
        )
        for part, what in ((FIT, "fitting"), (TEST, "testing")):
            some = y[np.isfinite(y) & (self.part == part)]
            other = int((some != np.median(some)).sum()) if len(some) else 0
            if len(some) < LEAST_CASES or other < least:
                return (
                    f"too few samples: {len(some)} on the {what} days, of which {other} differ; at least {least} "
                    "must"
                )
        return ""

    def _leaks(self) -> list[Row]:
        """How much the vectors say of the hour and the latitude, which is not the weather."""
        pool, test, rows = self.pool, self.part == TEST, []
        targets = {"solar hour": clock(pool.time, pool.longitude), "latitude": pool.latitude[:, None]}
        for question, y in targets.items():
            row = Row("leak", question, "R²", {}, better="")
            if self.lacking:
                rows.append(self._in_words(row, self._linear(), self.lacking))
                continue
            guesses = {kind: ridge(pool.vectors[kind], y, self.part) for kind in self._linear()}
            scores = {kind: partial(r2_scores, y[test], g[test]) for kind, g in guesses.items()}
            rows.append(replace(row, cells=self._cells(scores, pool.time[test], "samples")["cells"]))
        return rows

    def _choose(self, scores: Sequence[Mapping[str, float]]) -> tuple[str, list[Row]]:
        """The store whose probes do best on the choosing days; "" for one store, or nothing to choose by."""
        names = list(self.stores.datasets)
        if len(names) == 1:
            return "", []
        row = Row("choice", "probes", "mean score", {})
        if not scores:
            return "", [self._in_words(row, names, self.lacking or "no attribute could be probed")]
        time = self.pool.time[self.part == CHOOSE]
        counted = Cell(cases=len(time), days=len(np.unique(convective_day(time))))
        mean = {n: float(np.mean([s[n] for s in scores])) for n in names}
        cells = {n: replace(counted, value=value) for n, value in mean.items()}
        return max(names, key=lambda n: mean[n]), [replace(row, cells=cells)]

    def _in_words(self, row: Row, names: Sequence[str], words: str) -> Row:
        """A row with the same words for every kind of vectors."""
        return replace(row, cells=dict.fromkeys(names, Cell(words=words)))

    def _no_pairs(self, lead: str) -> str:
        """In words why nothing came after."""
        step = self.stores.step
        if not np.isfinite(step):
            return "one time only: nothing came after"
        if step > 1.25 * as_seconds(lead):
            return f"no pairs {lead} apart: frames are {step / 60:.4g} min apart"
        return f"no pairs {lead} apart among the samples"


def _cell(drawn: np.ndarray, counted: Cell, noun: str) -> Cell:
    """A score and its 95 % interval, from the score under all weights of days."""
    value, *_ = drawn
    known = drawn[1:][np.isfinite(drawn[1:])]
    if not np.isfinite(value):
        return replace(counted, words=f"the {noun} do not vary")
    if len(known) < 0.9 * (len(drawn) - 1):
        return replace(counted, words=f"too few {noun}: some draws of days hold none that differ")
    low, high = np.percentile(known, [2.5, 97.5])
    return replace(counted, value=float(value), low=float(low), high=float(high))
