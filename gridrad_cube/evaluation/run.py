"""Evaluate stores of embeddings: every question, for every kind of vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from gridrad_cube.evaluation import measures
from gridrad_cube.evaluation.baselines import ATTRIBUTES, Attribute, describe_pixels
from gridrad_cube.evaluation.measures import CHOOSE, FIT, LEAST_CASES, MANY_BLOCKS, TEST, Score
from gridrad_cube.evaluation.result import Cell, Evaluation, Row
from gridrad_cube.evaluation.sequels import Labels, PathLike, Samples, Stores, draw, open_labels, open_stores
from gridrad_cube.query import readout_of
from gridrad_cube.readout import Readout, fit_arrays
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_seconds, hour_of
from gridrad_cube.similarity import directed, rank_me, rank_targets
from gridrad_cube.store import store_info

#: Times after which the same place is looked for.
LEADS = ("10min", "30min", "60min", "180min")
#: Largest number of queries of one lead.
_QUERIES = 400
#: Fewest distractors of a query; with days as blocks, they are within half an hour of the sequel's hour of
#: the #: day. They are not within this many hours and an edge of the query or its sequel.
_LEAST_DISTRACTORS, _SAME_HOUR, _NEAR_HOURS = 20, 0.5, 6.0
#: Fewest samples of the rarer answer of a yes or no, on the fitting and on the testing days.
_LEAST_RARE = 10
#: Of names of vectors: after a readout.
_READOUT = ", readout"
#: References of forecasts that are not baselines: they are not vectors, or may be made of the store's
#: vectors.
_REFERENCES = {"climatology", "regression", "chance"}
#: Measure of each section, and whether higher or lower is better.
_MEASURES = {
    "retrieval": ("share ranked first", "higher"),
    "forecast": ("R²", "higher"),
    "probe": ("R²", "higher"),
    "leak": ("R²", ""),
}

#: Kinds of vectors: which gathered vectors each is made of, and how.
_Kinds = Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]


def evaluate(
    embeddings: PathLike | Sequence[PathLike],
    cube: PathLike | None = None,
    *,
    patches: PathLike | None = None,
    channel: str | None = None,
    labels: PathLike | pd.DataFrame | xr.Dataset | None = None,
    label: str | None = None,
    samples: int = 8000,
    leads: Sequence[Any] = LEADS,
    gap: int = 1,
    seed: int = 0,
) -> Evaluation:
    """Compare embeddings with baselines: spread, retrieval, analogue forecasts, probes and leaks.

    Convective days, or events if the data are separate sequences (see `blocks_of`), are divided in order of
    time into days that fit (60 %), days that choose (20 %: penalties, and the best of several stores) and
    days that test. Intervals are 95 %, from drawing days or events with replacement. If there are too few
    data for a number, the result has words instead.

    The memory depends on ``samples``, not on the size of the store: about 10 kB for each sample and each
    sequel.

    Parameters
    ----------
    embeddings
        A store of embeddings, level 256 or 2k; or several of the same samples, such as those of different
        checkpoints, and the best one is chosen. A readout that is saved with a store is used.
    cube
        Path or URL of their cube; None for the one that the store names.
    patches
        At level 2k, path or URL of the level-256 embeddings; None for those that the store names.
    channel
        Label of the channel; the first if None.
    labels, label
        Labels to probe and to forecast besides attributes of the pixels, and the name of the column or
        variable: a table (``.csv``) or a Dataset (``.nc``, ``.zarr``), as a path or in memory, with ``time``,
        ``latitude`` and
        ``longitude``, or with the sample dims ``crop``, ``row`` and ``col``. The label of a sample is the
        mean of the
        values of the nearest time that lie less than half an edge from its center; the time is at most half a
        step of
        the store, and at most an hour, away. If all values are 0 or 1, the label is a yes or no: yes if one
        of them is 1.
    samples
        Largest number of clean samples to draw.
    leads
        Lead times.
    gap
        Number of days to leave out between parts, if there are enough days.
    seed
        Seed of the draws of samples, queries and days.

    Returns
    -------
    Rows of results, and the parameters of the evaluation.

    Raises
    ------
    SchemaError
        If the stores do not match each other or the cube, the cube is missing, no sample is selected, or the
        label is missing.
    """
    paths = [embeddings] if isinstance(embeddings, (str, os.PathLike)) else list(embeddings)
    if not paths or samples < 1:
        raise SchemaError(
            f"evaluate: got {len(paths)} stores, samples={samples}; expected at least one of each"
        )
    if (labels is None) != (label is None):
        raise SchemaError("evaluate: got only one of labels and label; expected both, or none")
    stores = open_stores(paths, cube, patches, channel)
    told = None if labels is None or label is None else open_labels(labels, label, stores)
    pool = _gather(stores, told, draw(np.flatnonzero(stores.mask), samples, seed))
    if not len(pool.rows):
        raise SchemaError(f"evaluate: no clean sample of {stores.label} has an embedding in every store")
    after = {str(lead): stores.after(pool, as_seconds(lead)) for lead in leads}
    moved = {lead: stores.moved(rows) for lead, rows in after.items()}
    # The readout of a baseline is fitted on pairs that are one step of the data apart.
    step = stores.after(pool, stores.step) if np.isfinite(stores.step) else np.full(len(pool.rows), -1)
    rows = np.concatenate([step, *after.values(), *moved.values()])
    later = _gather(stores, told, np.unique(rows[rows >= 0]))
    part, days = measures.divide(pool.time, gap=gap)
    fit = part == FIT if (part == FIT).any() else np.ones(len(part), bool)
    readouts = {name: readout_of(dataset, stores.label) for name, dataset in stores.datasets.items()}
    kinds = _learn(readouts, pool, later, _find_sequels(pool, part, later, step), fit)
    made, later = _project(pool, kinds), _project(later, kinds)
    kept = np.isin(pool.rows, made.rows)
    sequels = {lead: _find_sequels(pool, part, later, found)[kept] for lead, found in after.items()}
    shifted = {lead: later.find(found[kept]) for lead, found in moved.items() if stores.move}
    about = {n: a for n, a in ATTRIBUTES.items() if n in made.attributes}
    if told is not None:
        about[told.name] = Attribute(told.name, (), yes_no=told.yes_no)
    return _Evaluator(
        stores, kinds, made, later, sequels, part[kept], days, seed, shifted, about, readouts
    ).run()


def _gather(stores: Stores, labels: Labels | None, rows: np.ndarray) -> Samples:
    """Return the samples with the vectors and attributes of their pixels, and their labels."""
    found = _directed(stores.read(rows))
    attributes, vectors = describe_pixels(stores.cube, *found.windows, stores.shape, stores.members)
    if labels is not None:
        attributes[labels.name] = labels.of(stores, found)
    return replace(found, attributes=attributes, vectors={**found.vectors, **vectors})


def _directed(samples: Samples) -> Samples:
    """Return the samples whose vectors of every kind have a direction."""
    return samples.take(np.all([directed(v) for v in samples.vectors.values()], axis=0))


def _learn(
    readouts: Mapping[str, Readout | None], pool: Samples, later: Samples, sequel: np.ndarray, fit: np.ndarray
) -> _Kinds:
    """Return how each kind of vectors is made, learned from some samples; kinds that do not vary are left
    out.

    Every vector of a store, and every baseline standardized, has one after its readout beside it: that of the store,
    or one that is fitted on the samples and those that came a step later, positions among ``later``.
    """
    from sklearn.preprocessing import StandardScaler

    kinds: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}
    pairs = np.flatnonzero(fit & (sequel >= 0))
    for name, values in pool.vectors.items():
        some = values[fit].astype(np.float64)
        varies = np.ptp(some, axis=0).any()
        if name in readouts:
            kinds[name] = (name, np.asarray)
        elif varies:
            kinds[name] = (name, StandardScaler().fit(some).transform)
        if varies:
            changed = later.vectors[name][sequel[pairs]]
            readout = readouts.get(name) or fit_arrays(some, values[pairs], changed)
            kinds[name + _READOUT] = (name, readout.apply)
    return kinds


def _project(samples: Samples, kinds: _Kinds) -> Samples:
    """Return the samples with all kinds of vectors; those without a direction in one of them are left out."""
    vectors = {name: make(samples.vectors[raw]) for name, (raw, make) in kinds.items()}
    return _directed(replace(samples, vectors=vectors))


def _find_sequels(pool: Samples, part: np.ndarray, later: Samples, rows: np.ndarray) -> np.ndarray:
    """Return the position among ``later`` of the row that comes after each sample; -1 for none before the
    next part begins.
    """
    at = later.find(rows)
    time = _at(later.time, at, np.datetime64("NaT", "s"))
    return np.where(time < measures.next_part(pool.time, part), at, -1)


def _at(values: np.ndarray, positions: np.ndarray, otherwise: Any) -> np.ndarray:
    """Return the values at positions, and something else where the position is -1."""
    if not len(values):
        return np.full(positions.shape, otherwise)
    return np.where(positions >= 0, values[np.maximum(positions, 0)], otherwise)


class _TooFew(Exception):
    """Data are too few for a number; the message stands in its place."""


@dataclass(frozen=True)
class _Evaluator:
    """The questions. Each one returns rows of the table.

    Attributes
    ----------
    pool, later
        Samples drawn at random and those that come after them, with all kinds of vectors.
    sequels
        For each lead, the position among ``later`` of what comes after each sample of the pool; -1 for none before the
        next part begins.
    part, days
        Part of the time of each sample of the pool, and in words how the time is divided.
    moved
        As ``sequels``, with the window moved; empty where windows do not overlap.
    told
        The attributes and the label that are probed and forecast.
    readouts
        Those that are saved with the stores.
    """

    stores: Stores
    kinds: _Kinds
    pool: Samples
    later: Samples
    sequels: Mapping[str, np.ndarray]
    part: np.ndarray
    days: str
    seed: int
    moved: Mapping[str, np.ndarray] = field(default_factory=dict)
    told: Mapping[str, Attribute] = field(default_factory=dict)
    readouts: Mapping[str, Readout | None] = field(default_factory=dict)

    def run(self) -> Evaluation:
        """Ask all questions."""
        told = self.told
        storms = [name for name, about in told.items() if about.storm and self.stores.patches is None]
        rows, leads = self._spread(), [lead for lead, at in self.sequels.items() if (at >= 0).any()]
        for lead in leads:
            question = f"same place after {lead}"
            question += f", window moved by {self.stores.move} px" if self.moved else ""
            rows.append(self._row("retrieval", question, self._same_place, lead))
        for lead in leads if storms else ():
            rows.append(self._row("retrieval", f"same storm after {lead}", self._same_storm, lead, storms[0]))
        for name, about in told.items():
            for lead in leads if not about.yes_no else ():
                question = f"{about.long_name} after {lead}"
                rows.append(self._row("forecast", question, self._forecast, name, lead))
        scores: dict[str, list[float]] = {name: [] for name in self.stores.datasets}
        for name, about in told.items():
            measure = "AUC" if about.yes_no else "R²"
            rows.append(self._row("probe", about.long_name, self._probe, name, scores, measure=measure))
            rows.append(self._row("probe", f"{about.long_name}, residual", self._probe, name))
        pool = self.pool
        for question, y in (("solar hour", measures.clock(pool.time, pool.longitude)),
                            ("latitude", pool.latitude[:, None])):  # fmt: skip
            rows.append(self._row("leak", question, self._leak, y))
        chosen = ""
        if len(scores) > 1:
            counted = self._count(self.part == CHOOSE)
            mean = {name: float(np.mean(found)) for name, found in scores.items() if found}
            chosen = max(mean, key=lambda name: mean[name], default="")
            words = replace(counted, words="no attribute could be probed")
            cells = {n: replace(counted, value=mean[n]) if mean else words for n in scores}
            rows.append(Row("choice", "probes", "mean score", cells))
        notes = ["[low, high]: 95 % interval, from drawing days or events with replacement.", *self._notes()]
        notes += [self._no_pairs(lead) for lead in self.sequels if lead not in leads]
        if told:
            notes.append("residual: R² of what solar time, latitude and season leave of the attribute.")
        if missing := [about.long_name for name, about in ATTRIBUTES.items() if name not in told]:
            notes.append(f"The cube lacks: {'; '.join(missing)}.")
        if "descriptor" not in self.kinds:
            notes.append("No descriptor: a channel has no typical range, or patches are no multiple of 8 px.")
        return Evaluation(self._about(), tuple(rows), chosen, tuple(notes))

    def _about(self) -> dict[str, Any]:
        """Return what the evaluation is made from."""
        stores, time = self.stores, self.pool.time
        paths = [str(d.encoding.get("source")) for d in stores.datasets.values()]
        return {
            "stores": paths,
            "checkpoints": [str(store_info(path).get("checkpoint")) for path in paths],
            "cube": str(stores.cube.encoding.get("source")),
            "level": str(store_info(paths[0]).get("level")),
            "channel": stores.label,
            "samples": f"{len(time)} of {int(stores.mask.sum())} clean samples",
            "time": f"{time.min()} to {time.max()} UTC",
            "days": self.days,
            "seed": self.seed,
        }

    def _notes(self) -> list[str]:
        """Return notes on the spread of the stores' vectors, and on their readouts."""
        notes = []
        for name in self.stores.datasets:
            spread = measures.spread_of(self.pool.vectors[name])
            if spread.collapsed:
                notes.append(
                    f"{name} has collapsed: the mean cosine of pairs is {spread.mean_cosine:.4f}, and "
                    f"{spread.constant_share:.0%} of the features are constant."
                )
            readout = self.readouts.get(name)
            if name + _READOUT not in self.kinds:
                continue
            if readout is None:
                notes.append(
                    f"{name}{_READOUT}: the store has none; one was fitted on the days or events to fit."
                )
                continue
            first, last = readout.fitted["time"]
            said = f"{name}{_READOUT}: the one that is saved with the store, fitted on {first} to {last}"
            if np.datetime64(last.removesuffix("Z")) >= self.pool.time[self.asked].min():
                said += ", with days to test among them"
            said += "; the store has changed since" * bool(readout.fitted["changed"])
            notes.append(f"{said}.")
        return notes

    # Rows

    def _row(self, section: str, question: str, ask: Callable[..., Row], *about: Any, **of_row: Any) -> Row:
        """Return a row as a question fills it, or with words in every cell if data are too few."""
        measure, better = _MEASURES[section]
        row = replace(Row(section, question, measure, {}, better=better), **of_row)
        try:
            return ask(row, *about)
        except _TooFew as lacking:
            names = self.kinds if section in ("retrieval", "forecast") else self._linear()
            return replace(row, cells=dict.fromkeys(names, Cell(words=str(lacking))))

    @cached_property
    def blocks(self) -> tuple[np.ndarray, str]:
        """Number of the day or event of each sample of the pool, and ``"day"`` or ``"event"``."""
        return measures.blocks_of(self.pool.time)

    def _count(self, some: np.ndarray | slice = slice(None)) -> Cell:
        """Return a cell that has the numbers of cases and blocks of some samples of the pool alone."""
        block = self.blocks[0][some]
        return Cell(cases=len(block), blocks=len(np.unique(block)))

    def _fill(self, row: Row, scores: Mapping[str, Score], some: np.ndarray, noun: str) -> Row:
        """Return a row with a cell for each kind of vectors, and by how much the first store beats the best
        baseline.

        ``some`` are the samples of the pool that are the cases, whose noun is for words.
        """
        counted = self._count(some)
        if counted.cases < LEAST_CASES:
            raise _TooFew(f"too few {noun}: {counted.cases}, of at least {LEAST_CASES}")
        _, block = np.unique(self.blocks[0][some], return_inverse=True)
        weights = measures.draw_blocks(counted.blocks, self.seed)
        drawn = {name: score(block, weights) for name, score in scores.items()}
        row = replace(row, cells={name: measures.cell_of(values, counted) for name, values in drawn.items()})
        first = next(iter(self.stores.datasets))
        if self.readouts.get(first) is not None and first + _READOUT in drawn:
            first += _READOUT  # as search compares them
        rivals = [n for n in drawn if self._is_baseline(n) and row.cells[n].value is not None]
        if not row.better or not rivals or row.cells[first].value is None:
            return row
        best = max(rivals, key=lambda n: drawn[n][0])
        return replace(row, gain=measures.cell_of(drawn[first] - drawn[best], counted), baseline=best)

    def _is_baseline(self, name: str) -> bool:
        """Return whether a store has to beat this."""
        return name.removesuffix(_READOUT) not in self.stores.datasets and name not in _REFERENCES

    def _linear(self) -> dict[str, np.ndarray]:
        """Return the kinds of vectors for linear probes, which need no readout."""
        return {name: v for name, v in self.pool.vectors.items() if not name.endswith(_READOUT)}

    def _no_pairs(self, lead: str) -> str:
        """Return in words why nothing came after."""
        step = self.stores.step
        if not np.isfinite(step):
            return f"No pairs {lead} apart: there is one time only."
        if step > 1.25 * as_seconds(lead):
            return f"No pairs {lead} apart: frames are {step / 60:.4g} min apart."
        return f"No pairs {lead} apart among the samples."

    # Questions

    def _spread(self) -> list[Row]:
        """Return how far the embeddings spread, and how many dimensions they fill."""
        counted, rows, spread = self._count(), [], measures.spread_of
        for question, measure, least, of in (
            ("mean cosine of pairs (1: all alike)", "mean cosine", 2, lambda v: spread(v).mean_cosine),
            ("share of features that are constant", "share", 2, lambda v: spread(v).constant_share),
            ("RankMe, effective dimensions (no measure of quality)", "RankMe", LEAST_CASES, rank_me),
        ):
            cells = {}
            for name in self.stores.datasets:
                values = self.pool.vectors[name]
                few = replace(counted, words=f"too few samples: {len(values)}, of at least {least}")
                cells[name] = replace(counted, value=of(values)) if len(values) >= least else few
            rows.append(Row("spread", question, measure, cells, better=""))
        return rows

    @cached_property
    def held_out(self) -> np.ndarray:
        """Which samples nothing was fitted on; all where the time is not divided."""
        return self.part != FIT if (self.part >= 0).any() else np.ones(len(self.part), bool)

    @cached_property
    def asked(self) -> np.ndarray:
        """Which samples are queries: those of the testing days; all where the time is not divided."""
        return self.part == TEST if (self.part >= 0).any() else np.ones(len(self.part), bool)

    def _same_place(self, row: Row, lead: str) -> Row:
        """Return whether the sample at the same place some time later is the most similar of all samples of
        its hour.
        """
        sequel = self.moved.get(lead, self.sequels[lead])
        return self._retrieve(row, lead, sequel, self.later, np.ones(len(self.pool.rows), bool))

    def _same_storm(self, row: Row, lead: str, attribute: str) -> Row:
        """Return the same for deep convection: the sequel is the one of the 3 x 3 cells around the place with
        most of it.
        """
        stormy, sequel = self.pool.attributes[attribute] > 0, np.full(len(self.pool.rows), -1)
        query = draw(
            np.flatnonzero(stormy & self.asked & (self.sequels[lead] >= 0)), _QUERIES, (self.seed, 1)
        )
        if not len(query):
            raise _TooFew(f"too few queries: none of the days to test has a sequel {lead} later")
        around = self.stores.around(self.later.rows[self.sequels[lead][query]])
        cells = _project(_gather(self.stores, None, np.unique(around[around >= 0])), self.kinds)
        at = cells.find(around)
        amount = _at(np.nan_to_num(cells.attributes[attribute]), at, 0.0)
        most, line = amount.argmax(axis=1), np.arange(len(query))
        sequel[query] = np.where(amount[line, most] > 0, at[line, most], -1)
        return self._retrieve(row, lead, sequel, cells, stormy)

    def _retrieve(
        self, row: Row, lead: str, sequel: np.ndarray, targets: Samples, allowed: np.ndarray
    ) -> Row:
        """Return how often the sequel of a sample, a position among targets, ranks first among allowed ones
        of its hour.
        """
        query = draw(np.flatnonzero((sequel >= 0) & self.asked), _QUERIES, (self.seed, 0))
        if not len(query):
            raise _TooFew(f"too few queries: none of the days to test has a sequel {lead} later")
        among = {q: self._distractors(q, sequel[q], targets, allowed) for q in query.tolist()}
        among = {q: at for q, at in among.items() if len(at) >= _LEAST_DISTRACTORS}
        if len(among) < LEAST_CASES:
            raise _TooFew(
                f"too few queries: {len(query)}, of which {len(among)} have {_LEAST_DISTRACTORS} distractors; "
                f"at least {LEAST_CASES} must"
            )
        some = np.array(list(among))
        counts, ranks = np.array([len(at) for at in among.values()]), {}
        excluded = np.ones((len(some), len(self.pool.rows) + len(some)), bool)
        for line, at in enumerate(among.values()):
            excluded[line, at] = False
        target = len(self.pool.rows) + np.arange(len(some))
        for name in self.kinds:
            vectors = self.pool.vectors[name]
            candidates = np.concatenate([vectors, targets.vectors[name][sequel[some]]])
            ranks[name] = rank_targets(vectors[some], candidates, target, excluded)
        scores = {name: partial(measures.mean_scores, r <= 1) for name, r in ranks.items()}
        row = self._fill(row, scores, some, "queries")
        cells = {"chance": Cell(float((1 / (1 + counts)).mean()), cases=len(counts))}
        for name, r in ranks.items():
            more = {
                "median_rank": float(np.median(r)),
                "among_ten": float((r <= 10).mean()),
                "outranked": float((1 - (r - 1) / counts).mean()),
                "median_distractors": float(np.median(counts)),
            }
            cells[name] = replace(row.cells[name], more=more)
        return replace(row, cells={name: cells[name] for name in (*ranks, "chance")})

    def _distractors(self, query: int, sequel: int, targets: Samples, allowed: np.ndarray) -> np.ndarray:
        """Return the positions of the allowed samples among which a query's sequel is looked for.

        Those of the sequel's hour of the day (of any hour where events are the blocks) that are neither near the query
        nor near the sequel.
        """
        pool = self.pool
        apart = np.abs(hour_of(pool.time) - hour_of(targets.time[sequel]))
        same_hour = (np.minimum(apart, 24 - apart) <= _SAME_HOUR) | (self.blocks[1] == "event")
        at = np.flatnonzero(allowed & self.held_out & same_hour)
        for some, i in ((pool, query), (targets, sequel)):
            time, latitude, longitude = (v[at] for v in pool.places)
            place = tuple(v[i] for v in some.places)
            km = 0.945 * self.stores.edge_km  # what lies nearer shares pixels
            at = at[~measures.is_near(time, latitude, longitude, place, hours=_NEAR_HOURS, km=km)]
        return at

    def _forecast(self, row: Row, name: str, lead: str) -> Row:
        """Forecast an attribute by the most similar samples of the past, beside `_REFERENCES`."""
        pool, now = self.pool, self.pool.attributes[name]
        after = _at(self.later.attributes[name], self.sequels[lead], np.nan)
        known = np.isfinite(now) & np.isfinite(after)
        fit, choose, case = (np.flatnonzero(known & (self.part == p)) for p in (FIT, CHOOSE, TEST))
        for some, what in ((fit, "to fit"), (choose, "to choose")):
            self._check_varied(after[some], f"known sequels {what}", least=0)
        self._check_varied(after[case], "cases to test")
        past = np.concatenate([fit, choose])
        guesses = {
            k: measures.analogue_forecast(v[case], v[past], after[past]) for k, v in pool.vectors.items()
        }
        guesses |= {"persistence": now[case], "climatology": np.full(len(case), after[past].mean())}
        regressions = [
            measures.ridge(x[known], after[known, None], self.part[known])[:, 0]
            for x in self._linear().values()
        ]
        chosen = self.part[known] == CHOOSE
        best = min(regressions, key=lambda g: float(((g - after[known])[chosen] ** 2).sum()))
        guesses["regression"] = best[self.part[known] == TEST]
        scores = {k: partial(measures.r2_scores, after[case], g) for k, g in guesses.items()}
        return self._fill(row, scores, case, "cases")

    def _probe(self, row: Row, name: str, chosen: dict[str, list[float]] | None = None) -> Row:
        """Return a linear probe of an attribute; without ``chosen`` of what solar time, latitude and season
        leave of it.

        The scores of the stores on the choosing days are added to ``chosen``.
        """
        y = self.pool.attributes[name][:, None]
        known = np.isfinite(y[:, 0])
        part, y, places = self.part[known], y[known], [v[known] for v in self.pool.places]
        least = _LEAST_RARE if self.told[name].yes_no else LEAST_CASES
        self._check_varied(y[part == CHOOSE], "samples on the choosing days", 0)
        for some, what in ((FIT, "fitting"), (TEST, "testing")):
            self._check_varied(y[part == some], f"samples on the {what} days", least)
        if chosen is None:
            y = y - measures.ridge(measures.nuisance(*places), y, part)
        test, choose, binary = part == TEST, part == CHOOSE, row.measure == "AUC"
        truth = y[:, 0] > 0 if binary else y
        fit: Callable[..., np.ndarray] = measures.logistic if binary else measures.ridge
        score: Callable[..., np.ndarray] = measures.auc_scores if binary else measures.r2_scores
        guesses = {kind: fit(x[known], truth, part) for kind, x in self._linear().items()}
        scores = {kind: partial(score, truth[test], g[test]) for kind, g in guesses.items()}
        row = self._fill(row, scores, np.flatnonzero(known)[test], "samples")
        once = np.zeros(int(choose.sum()), int), np.ones((1, 1))
        for store, found in (chosen or {}).items():
            value = float(score(truth[choose], guesses[store][choose], *once)[0])
            found += [2 * value - 1 if binary else value] if np.isfinite(value) else []
        return row

    def _leak(self, row: Row, y: np.ndarray) -> Row:
        """Return how well the vectors predict the hour or the latitude, which is not the weather."""
        self._check_varied(y[:, 0], "samples", least=0)
        test, noun = self.part == TEST, self.blocks[1]
        if (count := self._count(test).blocks) < MANY_BLOCKS:  # few differ in hour and latitude by chance
            raise _TooFew(f"too few {noun}s to test: {count}, of at least {MANY_BLOCKS}")
        guesses = {kind: measures.ridge(x, y, self.part) for kind, x in self._linear().items()}
        scores = {kind: partial(measures.r2_scores, y[test], g[test]) for kind, g in guesses.items()}
        return self._fill(row, scores, np.flatnonzero(test), "samples")

    def _check_varied(self, values: np.ndarray, noun: str, least: int = LEAST_CASES) -> None:
        """Refuse time that is not divided, too few values, and too few values that differ from the usual one."""
        if not (self.part >= 0).any():
            raise _TooFew(self.days)
        differ = int((values != np.median(values)).sum()) if len(values) else 0
        if len(values) < LEAST_CASES or differ < least:
            some = f", of which {differ} differ" if least else ""
            raise _TooFew(f"too few {noun}: {len(values)}{some}; at least {least or LEAST_CASES} must")
