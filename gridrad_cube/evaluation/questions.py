"""The questions of an evaluation: each gives rows of the table from the material."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from gridrad_cube.evaluation import probes
from gridrad_cube.evaluation.days import (
    CHOOSE,
    FIT,
    LEAST_CASES,
    TEST,
    Statistic,
    area_under_curve,
    mean_of,
    r_squared,
)
from gridrad_cube.evaluation.material import Lead, Material, in_words
from gridrad_cube.evaluation.pixels import ATTRIBUTES, Attribute
from gridrad_cube.evaluation.result import Cell, Row
from gridrad_cube.evaluation.samples import Gathered, gather
from gridrad_cube.evaluation.sequels import (
    LEAST_DISTRACTORS,
    analogue_forecast,
    directed,
    distractors_of,
    forecast_cases,
    ranks,
)
from gridrad_cube.evaluation.vectors import feature_spread, rank_me
from gridrad_cube.query.samples import sample_dims
from gridrad_cube.selection import convective_day

#: Samples of one feature that RankMe wants.
_PER_FEATURE = 2
#: Samples of the rarer answer that a yes or no wants on the fitting and on the testing days.
_LEAST_RARE = 10


def spread(m: Material) -> list[Row]:
    """How many dimensions the embeddings fill, and how far they spread."""
    ranked, spreads = {}, {}
    for name in m.names:
        values = m.pool.vectors[name]
        count, features = values.shape
        least = max(_PER_FEATURE * features, LEAST_CASES)
        known = Cell(cases=count, days=len(np.unique(convective_day(m.pool.time))))
        few = replace(known, words=f"too few samples: {count}, of at least {least} for {features} features")
        ranked[name] = replace(known, value=rank_me(values)) if count >= least else few
        few = replace(known, words=f"too few samples: {count}, of at least {LEAST_CASES}")
        spreads[name] = replace(known, value=feature_spread(values)) if count >= LEAST_CASES else few
    return [
        Row("spread", "RankMe, effective dimensions", "RankMe", ranked, better=""),
        Row("spread", "feature spread (1: even, 0: all alike)", "feature spread", spreads, better=""),
    ]


def same_place(m: Material) -> list[Row]:
    """Whether what lies at the same place some time later is the most alike of all that is of its hour."""
    usable = directed(m.here)
    after = directed(m.there)
    out = []
    for lead in m.leads:
        good = usable & _at(after, lead.sequel, False)
        out.append(
            _retrieve(m, f"same place after {lead.name}", lead, good, lead.sequel, (m.later, m.there), usable)
        )
    return out


def same_storm(m: Material) -> list[Row]:
    """The same for deep convection: the sequel is the cell, of the 3 x 3 about the place, that has most of it."""
    name = next((n for n, a in ATTRIBUTES.items() if a.storm and n in m.pool.attributes), None)
    if name is None or "row" not in sample_dims(m.stores.first):
        return []
    usable = directed(m.here) & (np.nan_to_num(m.pool.attributes[name]) > 0)
    out = []
    for lead in m.leads:
        query = m.drawn(np.flatnonzero(usable & (lead.sequel >= 0)), 1)
        around = m.sequels.around(m.later.rows[lead.sequel[query]] if len(query) else query)
        cells = gather(m.stores, np.unique(around[around >= 0]), block=m.block)
        vectors = m.project(cells)
        at = cells.find(around)
        amount = _at(np.where(directed(vectors), np.nan_to_num(cells.attributes[name]), 0.0), at, 0.0)
        sequel = np.full(len(usable), -1)
        if len(query):
            most = amount.argmax(axis=1)[:, None]
            there = np.take_along_axis(amount, most, 1)[:, 0] > 0
            sequel[query[there]] = np.take_along_axis(at, most, 1)[there, 0]
        out.append(
            _retrieve(m, f"same storm after {lead.name}", lead, sequel >= 0, sequel, (cells, vectors), usable)
        )
    return out


def _at(values: np.ndarray, positions: np.ndarray, otherwise: float | bool) -> np.ndarray:
    """Values at positions, and something else where the position is -1."""
    if not len(values):
        return np.full(positions.shape, otherwise)
    return np.where(positions >= 0, values[np.maximum(positions, 0)], otherwise)


def _retrieve(
    m: Material,
    question: str,
    lead: Lead,
    good: np.ndarray,
    sequel: np.ndarray,
    targets: tuple[Gathered, Mapping[str, np.ndarray]],
    allowed: np.ndarray,
) -> Row:
    """How often the sequel of a good sample ranks first among allowed ones of its hour."""
    names, measure = [*m.here, "chance"], "share ranked first"
    query, (later, there) = m.drawn(np.flatnonzero(good)), targets
    if not len(query):
        return Row("retrieval", question, measure, in_words(names, m.no_pairs(lead)))
    near = m.near_km()
    among = [distractors_of(q, sequel[q], m.pool, later, allowed, near) for q in query.tolist()]
    enough = np.array([len(a) >= LEAST_DISTRACTORS for a in among])
    if enough.sum() < LEAST_CASES:
        words = (
            f"too few queries: {len(query)}, of which {int(enough.sum())} have {LEAST_DISTRACTORS} distractors of "
            f"the same hour; at least {LEAST_CASES} must"
        )
        return Row("retrieval", question, measure, in_words(names, words))
    query, among = query[enough], [a for a, e in zip(among, enough, strict=True) if e]
    counts = np.array([len(a) for a in among], float)
    found = {n: ranks(query, sequel[query], among, m.here[n], there[n]) for n in m.here}
    statistics = {n: mean_of((r <= 1).astype(float)) for n, r in found.items()}
    cells, gain, best = m.cells(statistics, m.pool.time[query], "queries")
    if cells[m.names[0]].value is not None:
        cells["chance"] = Cell(float((1 / (1 + counts)).mean()), cases=len(query))
    for n, r in found.items():
        if cells[n].value is not None:
            more = {
                "median_rank": float(np.median(r)),
                "among_ten": float((r <= 10).mean()),
                "outranked": float((1 - (r - 1) / counts).mean()),
                "median_distractors": float(np.median(counts)),
            }
            cells[n] = replace(cells[n], more=more)
    return Row("retrieval", question, measure, cells, gain=gain, baseline=best)


def forecasts(m: Material) -> list[Row]:
    """What the most similar samples of the fitting days say of attributes some time later."""
    usable = directed(m.here)
    numbers = [a for n, a in ATTRIBUTES.items() if n in m.pool.attributes and not a.yes_no]
    return [_forecast(m, about, lead, usable) for about in numbers for lead in m.leads]


def _forecast(m: Material, about: Attribute, lead: Lead, usable: np.ndarray) -> Row:
    question, measure = f"{about.long_name} after {lead.name}", "mean absolute error"
    now = np.where(usable, m.pool.attributes[about.name], np.nan)
    after = _at(m.later.attributes[about.name], lead.sequel, np.nan)
    case, known = forecast_cases(now, after, m.part)
    words = m.lacking if np.isfinite(after).any() else m.no_pairs(lead)
    if not words and len(known) < LEAST_CASES:
        words = f"too few known sequels: {len(known)}, of at least {LEAST_CASES}"
    if not words:
        differ = int((after[case] != np.median(after[case])).sum()) if len(case) else 0
        if differ < LEAST_CASES:
            words = (
                f"too few cases: {len(case)} to test, of which {differ} differ; at least {LEAST_CASES} must"
            )
    if words:
        cells = in_words([*m.here, "persistence", "mean"], words)
        return Row("forecast", question, measure, cells, about.units, "lower")
    guesses = {n: analogue_forecast(v, case, known, after) for n, v in m.here.items()}
    guesses["persistence"] = now[case]
    guesses["mean"] = np.full(len(case), after[known].mean())
    statistics = {n: mean_of(np.abs(g - after[case])) for n, g in guesses.items()}
    cells, gain, best = m.cells(statistics, m.pool.time[case], "cases", "lower")
    return Row("forecast", question, measure, cells, about.units, "lower", gain, best)


def attributes(m: Material) -> tuple[list[Row], dict[str, float]]:
    """Linear probes of attributes, each beside its residual; and the mean score of each store on choosing days."""
    rows: list[Row] = []
    scores: list[dict[str, float]] = []
    for name, about in ATTRIBUTES.items():
        if name in m.pool.attributes:
            row, score = _probe(m, about, residual=False)
            rows += [row, _probe(m, about, residual=True)[0]]
            scores += [score] if score else []
    return rows, {n: float(np.mean([s[n] for s in scores])) for n in m.names} if scores else {}


def _probe(m: Material, about: Attribute, *, residual: bool) -> tuple[Row, dict[str, float]]:
    """A probe of an attribute, or of what solar time, latitude and season leave of it; scores to choose by."""
    question = f"{about.long_name}, residual" if residual else about.long_name
    binary = about.yes_no and not residual
    measure = "AUC" if binary else "R²"
    y = m.pool.attributes[about.name]
    known = np.isfinite(y)
    words = m.lacking or _too_few(m, about, y)
    if words:
        return Row("probe", question, measure, in_words(m.linear, words)), {}
    part, y, time = m.part[known], y[known], m.pool.time[known]
    if residual:
        z = probes.nuisance(m.pool.solar_hour[known], m.pool.latitude[known], time)
        y = y - probes.ridge(z, y[:, None], part)[:, 0]
    make: Callable[[np.ndarray, np.ndarray], Statistic] = area_under_curve if binary else r_squared
    guesses = {}
    for n in m.linear:
        x = m.here[n][known]
        guesses[n] = probes.logistic(x, y > 0, part) if binary else probes.ridge(x, y[:, None], part)[:, 0]
    test, choose = part == TEST, part == CHOOSE
    cells, gain, best = m.cells(
        {n: make(y[test], g[test]) for n, g in guesses.items()}, time[test], "samples"
    )
    once = np.ones((1, int(choose.sum())))
    score = {n: float(make(y[choose], guesses[n][choose])(once)[0]) for n in m.names}
    score = {n: 2 * s - 1 if binary else s for n, s in score.items()}
    row = Row("probe", question, measure, cells, gain=gain, baseline=best)
    return row, score if np.isfinite(list(score.values())).all() else {}


def _too_few(m: Material, about: Attribute, y: np.ndarray) -> str:
    """What an attribute lacks to be probed, in words."""
    for part, what in ((FIT, "fitting"), (TEST, "testing")):
        some = y[np.isfinite(y) & (m.part == part)]
        usual = np.median(some) if len(some) else 0.0
        other, least = int((some != usual).sum()), _LEAST_RARE if about.yes_no else LEAST_CASES
        if len(some) < LEAST_CASES or other < least:
            return f"too few samples: {len(some)} on the {what} days, of which {other} differ; at least {least} must"
    return ""


def leaks(m: Material) -> list[Row]:
    """How much the vectors say of the hour and the latitude, which is not the weather."""
    targets = {"solar hour": probes.clock(m.pool.solar_hour), "latitude": m.pool.latitude[:, None]}
    test, out = m.part == TEST, []
    for question, y in targets.items():
        if m.lacking:
            cells = in_words(m.linear, m.lacking)
        else:
            guesses = {n: probes.ridge(m.here[n], y, m.part) for n in m.linear}
            statistics = {n: r_squared(y[test], g[test]) for n, g in guesses.items()}
            cells, _, _ = m.cells(statistics, m.pool.time[test], "samples")
        out.append(Row("leak", question, "R²", cells, better=""))
    return out


def choice(m: Material, scores: Mapping[str, float]) -> tuple[str, list[Row]]:
    """The store whose probes did best on the choosing days; "" where there is one store, or nothing to choose by."""
    if len(m.names) == 1:
        return "", []
    if not scores:
        cells = in_words(m.names, m.lacking or "no attribute could be probed")
        return "", [Row("choice", "probes", "mean score", cells)]
    choose = m.part == CHOOSE
    days = len(np.unique(convective_day(m.pool.time[choose])))
    cells = {n: Cell(s, cases=int(choose.sum()), days=days) for n, s in scores.items()}
    return max(scores, key=lambda n: scores[n]), [Row("choice", "probes", "mean score", cells)]
