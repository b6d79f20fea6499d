"""Do embeddings answer on real weather? Retrieval, rain and analogues on days and events that nothing was fitted on.

    python benchmarks/clouds.py DATA --folder SCRATCH --out benchmarks/results/clouds.md  (10 minutes on 2 cores)
    python benchmarks/clouds.py DATA --folder SCRATCH --train demo --seeds 0 1 2          (and a network, three seeds)
    python benchmarks/clouds.py DATA --folder SCRATCH --trials                            (and all that was tried)
    python benchmarks/clouds.py DATA --folder SCRATCH --far OTHER                         (and another year or region)
    python benchmarks/clouds.py --quick                                                   (a minute: does it run)

DATA, by default GRIDRAD_CUBE_REAL_DATA, is a folder with ``clouds/mergir_*.nc`` (infrared brightness temperature,
every hour or more often), optionally ``clouds/imerg_*.nc`` (rain rate, the labels), or ``radar/*.nc`` (rain rate or
reflectivity every few minutes, one event a file); a file holds many times. Without it ``--quick`` makes a little
synthetic infrared.

Cubes come from ``gridrad_cube.preprocess`` in patches of 128 px, on one grid and on a grid that is moved by 32 px in
both directions; networks from ``gridrad_cube.train`` on the parts that fit; vectors from ``gridrad_cube.embed``, with
pixels averaged in blocks of 2 x 2; readouts from ``gridrad_cube.fit_readout``. Days (radar: events) are in parts: of
those present the last two test, the one before chooses, the others fit.

retrieval   a window of the grid looks for the same place later, by cosine. The target and all candidates are windows
            of the moved grid: the share of queries whose target comes first.
            Infrared: candidates are the windows of all held-out days (choose and test) at the target's hour of the
            day; for queries of the day that chooses, and of the other folder, of that part alone. Radar: the windows of
            the target's frame and of all frames of the other held-out events. Windows within one patch of the target in
            its own frame do not count. Storms are queries with more than 2 % of the pixels below 221 K (radar: above 10
            mm/h); radar queries have rain in 5 % of the pixels at least.
rain        R2 of ridge regression on the vector (fitted on the days that fit and, with the penalty that they choose, on
            those that choose): roots of the mean rain of the window, the share above 1 mm/h, the 99th percentile.
forecast    R2 of the root of the mean rain 3 hours later: mean of what came after the 20 most similar windows of the
            days before the test, and ridge regression on the vector; beside persistence, climatology and regression on
            the rain now.
scenes      with --train, of infrared: the grid of windows of a frame as one, by level 2k; it looks for the frame six
            hours later among those of other held-out days.
intervals   95 %, from drawing test days or events with replacement; of fewer than five, from drawing blocks of six
            hours (radar: of an hour) of them, which are not independent.

What is finished in --folder is not repeated; a training that was interrupted resumes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads cost more than they give for small products

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import machine
import numpy as np
from trials import COMPONENTS, Trial, beside, principal_components, standardized, train_whole
from weather import (
    CLOUDS,
    COARSEN,
    DESCRIPTOR,
    FAR,
    KINDS,
    PARTS,
    PATCH,
    RAIN,
    WINDOWS,
    Kind,
    Windows,
    build,
    by_frame,
    crops_of,
    divide,
    fit_ranges,
    planes,
    preprocess,
    synthesize,
)

import gridrad_cube
from gridrad_cube.embedding import Model
from gridrad_cube.evaluation import (
    CHOOSE,
    FIT,
    TEST,
    Cell,
    analogue_forecast,
    describe_pixels,
    ridge,
    score_mean,
    score_r2,
    score_ranks,
)
from gridrad_cube.models import Pool
from gridrad_cube.query import fit_readout, readout_of
from gridrad_cube.schema import TileSpec
from gridrad_cube.similarity import rank_targets, unit_rows
from gridrad_cube.store import open_embeddings, open_packed

#: Edge in pixels of the blocks whose means the principal components are of.
BLOCK = 4
#: What a network is compared with.
BASELINE = "descriptor, readout"
#: Share of storm in the pixels of a query that is one.
STORM = 0.02
#: Cases below which nothing is said; days or events below which their parts are drawn.
LEAST, FEW = 10, 5


#: What was tried, one seed each, to be judged on the day that chooses.
_FIRST = {"pool": "projection", "temporal_positives": 60}
_SHORT = _FIRST | {"steps": 400}
_DINO = {"objective": "dino", "pool": "mean+std", "head_hidden_dim": 512}
TRIALS: dict[str, Trial] = {
    "contrast": Trial(
        "--preset small --steps 400 --temporal-positives 60 --pool projection", _SHORT, "small"
    ),
    "fine": Trial(
        "fields of 128 px, tokens of 16 px",
        _SHORT | {"coarsen": 1, "patch_size": 16, "global_size": 128},
        "small",
    ),
    "dino-contrast": Trial(
        "--objective dino --contrast-weight 1, 2 + 2 views",
        {**_DINO, "contrast_weight": 1.0, "local_crops_number": 2} | _SHORT,
        "small",
    ),
    "dino": Trial(
        "--objective dino --temporal-positives 60 --pool mean+std, 2 + 2 views",
        {**_DINO, "temporal_positives": 60, "local_crops_number": 2, "steps": 400},
        "small",
    ),
    "linear": Trial("--stem linear", {"stem": "linear"} | _SHORT, "small"),
    "wide": Trial("--arch vit_demo: 6 layers of 192", {"arch": "vit_demo"} | _SHORT, "small"),
    "lr2": Trial("--lr 4e-3", {"lr": 4e-3} | _SHORT, "small"),
    "lr05": Trial("--lr 1e-3", {"lr": 1e-3} | _SHORT, "small"),
    "move32": Trial("--move 32", {"move": 32} | _SHORT, "small"),
    "leads": Trial(
        "--temporal-positives 60 120 180", _SHORT | {"temporal_positives": (60, 120, 180)}, "small"
    ),
    "cool": Trial("--temperature 0.05", {"temperature": 0.05} | _SHORT, "small"),
    "warm": Trial("--temperature 0.2", {"temperature": 0.2} | _SHORT, "small"),
    "contrast-long": Trial("contrast, 1,500 steps", _FIRST | {"steps": 1500}, "small"),
    "leads-long": Trial("leads, 1,500 steps", {"pool": "projection", "steps": 1500}, "small"),
    # As long as 1,500 steps of contrast alone take.
    "dino-contrast-long": Trial(
        "dino-contrast, 1,000 steps",
        {**_DINO, "contrast_weight": 1.0, "local_crops_number": 2} | _FIRST | {"steps": 1000},
        "small",
    ),
}


# Vectors (frames, 2, rows, cols, features)


def read_vectors(store: Path) -> np.ndarray:
    """Vectors of a store of windows."""
    dataset = open_embeddings(store)
    return by_frame(dataset, dataset["embedding"].values[:, 0].astype(np.float32))


def histograms(windows: Windows, folder: Path) -> np.ndarray:
    """Histograms of the pixels of the windows of a folder."""
    cube = open_packed(folder / WINDOWS)
    shape = cube.sizes["crop"], cube.sizes["row"], cube.sizes["col"]
    crop, row, col = (a.ravel() for a in np.indices(shape))
    edge = (PATCH, PATCH)
    _, found = describe_pixels(cube, crop, PATCH * row, PATCH * col, edge, (windows.kind.channel,))
    return by_frame(cube, found["histogram"].reshape(*shape, -1))


def pictures(windows: Windows, folder: Path) -> np.ndarray:
    """Means of blocks of pixels of the windows of a folder; what is missing takes the mean of its frame."""
    out = []
    for frame in planes(windows.kind, open_packed(folder / WINDOWS)):
        filled = np.where(np.isfinite(frame), frame, np.nanmean(frame))
        two, rows, _, cols, _ = frame.shape
        means = filled.reshape(two, rows, PATCH // BLOCK, BLOCK, cols, PATCH // BLOCK, BLOCK).mean(
            axis=(3, 6)
        )
        out.append(means.swapaxes(2, 3).reshape(two, rows, cols, -1))
    return np.stack(out)


def read_out(windows: Windows, store: Path, vectors: np.ndarray) -> np.ndarray:
    """The product's readout, fitted on the windows that fit, saved in the store."""
    return fit_readout(store, time=fit_ranges(windows))[windows.kind.channel].apply(vectors)


def network_vectors(windows: Windows, checkpoint: Path, folder: Path, pool: Pool | None = None) -> np.ndarray:
    """Embed all cubes with a checkpoint, into stores below a folder; pooled as the checkpoint says by default."""

    def embed(source: Path) -> np.ndarray:
        out = folder / f"{source.name}-{pool or 'windows'}.zarr"
        gridrad_cube.embed(source / WINDOWS, checkpoint, out, pool=pool or "auto")
        return read_vectors(out)

    return windows.gather(embed)


def train_run(windows: Windows, trial: Trial, seed: int, folder: Path) -> Path:
    """Train on the frames that fit; the checkpoint."""
    near = windows.folders[0]
    preprocess(windows.kind, near, near / "patches.zarr", TileSpec(patch=PATCH))
    options = {"coarsen": COARSEN, **trial.options}
    return train_whole(
        near / "patches.zarr", folder, preset=trial.preset, channels=(windows.kind.channel,), seed=seed,
        time=fit_ranges(windows), **options,
    )  # fmt: skip


# Whole scenes, level 2k

#: A scene is one window of its frame; a later one is looked for among those of other days.
SCENES = replace(CLOUDS, title="Whole scenes", leads=(360,))


def scenes_of(windows: Windows) -> Windows:
    """The grid of windows of each frame as one window; rain and storm are means."""
    wet, storm, rain = (
        np.nanmean(values, axis=(1, 2), keepdims=True)
        for values in (windows.wet, windows.storm, windows.rain)
    )
    observed = windows.observed.any(axis=(2, 3), keepdims=True)
    return replace(windows, kind=SCENES, observed=observed, wet=wet, storm=storm, rain=rain)


def measure_scenes(windows: Windows, place: Path) -> Report:
    """Level 2k on the embeddings of a run: a network, and mean and deviation without training; with readouts."""
    scenes = scenes_of(windows)
    report = Report(scenes, find_cases(scenes))
    network = train_whole(
        place / "near-windows.zarr", place / "2k", preset="small", time=fit_ranges(windows), seed=0
    )

    def vectors(name: str, checkpoint: Path | None, model: Model | None) -> np.ndarray:
        def embed(source: Path) -> np.ndarray:
            out = place / f"{source.name}-{name}.zarr"
            gridrad_cube.embed(place / f"{source.name}-windows.zarr", checkpoint, out, model=model)
            found = read_vectors(out)
            return found.reshape(*found.shape[:2], 1, 1, -1)

        return scenes.gather(embed)

    for words, name, checkpoint, model in (
        ("pool: mean and deviation of the patches' vectors", "pool", None, "pool"),
        ("network of level 2k", "2k", network, None),
    ):
        found = vectors(name, checkpoint, model)
        report.add(f"{words}, standardized", standardized(found, scenes.fits))
        report.add(f"{words}, readout", read_out(scenes, place / f"near-{name}.zarr", found))
    return report


# Measures


def blocks(windows: Windows, crops: np.ndarray) -> np.ndarray:
    """The block of each case, from its crop: a day or event; parts of them where they are few."""
    names = windows.block[crops]
    if len(np.unique(names)) < FEW:
        minutes = windows.time[crops].astype("M8[m]").astype(np.int64)
        names = np.char.add(names, (minutes // windows.kind.block).astype(str))
    return np.asarray(names)


def retrieval(windows: Windows, vectors: np.ndarray, lead: int, part: int) -> tuple[np.ndarray, ...]:
    """Crop, share of storm and rank of the target of each query; see the head of this file."""
    vectors = vectors.reshape(*vectors.shape[:2], -1, vectors.shape[-1])
    cells = np.stack([a.ravel() for a in np.indices(windows.shape)])
    near = np.abs(cells[:, :, None] - cells[:, None]).max(axis=0) <= 1
    later, hour = windows.later(lead), windows.time - windows.time.astype("M8[D]")
    pool = np.isin(windows.part, (CHOOSE, TEST) if part == TEST else (part,))
    found = []
    for crop in np.flatnonzero((windows.part == part) & (later >= 0)):
        target = later[crop]
        queries = np.flatnonzero(windows.wet[crop].ravel() >= windows.kind.wet)
        if windows.part[target] != part or not len(queries):
            continue
        if windows.kind is CLOUDS:
            frames = np.flatnonzero(pool & (hour == hour[target]))
        else:
            frames = np.append(np.flatnonzero(pool & (windows.block != windows.block[target])), target)
        excluded = (frames == target)[:, None] & near[queries, None]
        own = int(np.flatnonzero(frames == target)[0]) * len(near) + queries
        candidates = vectors[frames, 1].reshape(-1, vectors.shape[-1])
        ranks = rank_targets(vectors[crop, 0, queries], candidates, own, excluded.reshape(len(queries), -1))
        found.append((np.full(len(queries), crop), windows.storm[crop].ravel()[queries], ranks))
    found = found or [(np.zeros(0, int), np.zeros(0), np.zeros(0))]
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


@dataclass(frozen=True)
class Ranks:
    """Ranks of the targets of some queries, (seeds, queries), and the block of each of them."""

    ranks: np.ndarray
    block: np.ndarray

    @property
    def share(self) -> Cell:
        """Share of queries whose target comes first."""
        return score_ranks(self.ranks.ravel(), np.tile(self.block, len(self.ranks)))

    def gain(self, other: Ranks) -> Cell:
        """What the share is greater by than another one of the same queries."""
        gain = (self.ranks <= 1) - (other.ranks <= 1).mean(axis=0)
        return score_mean(gain.ravel(), np.tile(self.block, len(self.ranks)))


def all_ranks(windows: Windows, seeds: Sequence[np.ndarray], part: int) -> dict[str, Ranks]:
    """Ranks after each lead, of all queries and of storms."""
    out = {}
    for lead in windows.kind.leads:
        crops, storms, ranks = zip(
            *(retrieval(windows, vectors, lead, part) for vectors in seeds), strict=True
        )
        known = np.isfinite(ranks).all(axis=0)
        for name, some in (("all", known), ("storms", known & (storms[0] > STORM))):
            if some.sum() >= LEAST:
                out[f"{text_of(lead)}: {name}"] = Ranks(
                    np.stack(ranks)[:, some], blocks(windows, crops[0][some])
                )
    return out


def text_of(minutes: int) -> str:
    """A length of time as text."""
    return f"{minutes // 60} h" if minutes % 60 == 0 else f"{minutes} min"


@dataclass(frozen=True)
class Cases:
    """Patches whose rain is known: part, block, hour, rain now, mean rain later (NaN where unknown), and which."""

    part: np.ndarray
    block: np.ndarray
    hour: np.ndarray
    now: np.ndarray
    later: np.ndarray
    mask: np.ndarray

    def take(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of the cases."""
        return vectors[:, 0][self.mask]


def find_cases(windows: Windows) -> Cases | None:
    """The cases, or None where no rain is known."""
    mask = windows.observed[:, 0] & np.isfinite(windows.rain).all(axis=-1)
    crop = np.broadcast_to(np.arange(len(windows.time))[:, None, None], mask.shape)[mask]
    after, part = windows.later(windows.kind.forecast), windows.part
    known = (after >= 0) & (part[after] == part)
    later = np.where(known[:, None, None], windows.rain[after, ..., 0], np.nan)[mask]
    block = np.empty(len(crop), object)
    for one in np.unique(part[crop]):
        block[part[crop] == one] = blocks(windows, crop[part[crop] == one])
    hour = windows.time[crop].astype("M8[h]").astype(np.int64) % 24
    enough = min((part[crop] == p).sum() for p in (FIT, CHOOSE, TEST)) >= LEAST
    return Cases(part[crop], block.astype(str), hour, windows.rain[mask], later, mask) if enough else None


def rain_scores(cases: Cases, seeds: Sequence[np.ndarray], part: int) -> dict[str, Cell]:
    """R2 of the rain now, and of forecasts; over all seeds."""
    some = cases.part == part
    if some.sum() < LEAST:
        return {}
    guesses = [ridge(x, cases.now, cases.part)[some] for x in seeds]
    out = {
        name: _r2(cases.now[some, i], [g[:, i] for g in guesses], cases.block[some])
        for i, name in enumerate(RAIN)
    }
    known = np.isfinite(cases.later)
    for name, function in FORECASTS.items():
        out[name] = forecast_score(cases, part, [function(x[known], cases, part) for x in seeds])
    return out


def _r2(truth: np.ndarray, guesses: Sequence[np.ndarray], block: np.ndarray) -> Cell:
    count = len(guesses)
    return score_r2(np.tile(truth, count), np.concatenate(guesses), np.tile(block, count))


def forecast_score(cases: Cases, part: int, guesses: Sequence[np.ndarray]) -> Cell:
    """R2 of forecasts of the cases whose later rain is known."""
    known = np.isfinite(cases.later)
    some = cases.part[known] == part
    return _r2(cases.later[known][some], [g[some] for g in guesses], cases.block[known][some])


def past_of(cases: Cases, part: int) -> np.ndarray:
    """Which cases whose later rain is known came before a part."""
    return np.isin(cases.part[np.isfinite(cases.later)], (FIT,) if part == CHOOSE else (FIT, CHOOSE))


def analogues(x: np.ndarray, cases: Cases, part: int) -> np.ndarray:
    """Mean of the later rain of the most similar windows of the past."""
    past = past_of(cases, part)
    return analogue_forecast(x, x[past], cases.later[np.isfinite(cases.later)][past])


def regression(x: np.ndarray, cases: Cases, part: int) -> np.ndarray:
    """Ridge regression on the vectors."""
    known = np.isfinite(cases.later)
    return ridge(x, cases.later[known, None], cases.part[known])[:, 0]


def regression_with_rain(x: np.ndarray, cases: Cases, part: int) -> np.ndarray:
    """Ridge regression on the vectors and the rain now."""
    return regression(np.concatenate([x, cases.now[np.isfinite(cases.later)]], axis=1), cases, part)


FORECASTS = {
    "analogues": analogues,
    "regression": regression,
    "regression on vector and rain now": regression_with_rain,
}


def plain_forecasts(cases: Cases, part: int) -> dict[str, Cell]:
    """What needs no vectors."""
    known = np.isfinite(cases.later)
    if (cases.part[known] == part).sum() < LEAST:
        return {}
    past, hour, later = past_of(cases, part), cases.hour[known], cases.later[known]
    total, count = (np.bincount(hour[past], w, 24) for w in (later[past], np.ones(past.sum())))
    climate = np.where(count > 0, total / np.maximum(count, 1), later[past].mean())[hour]
    guesses = {
        "persistence": cases.now[known, 0], "climatology of the hour": climate,
        "regression on the rain now": regression(cases.now[known], cases, part),
    }  # fmt: skip
    return {name: forecast_score(cases, part, [guess]) for name, guess in guesses.items()}


# The product's search


def check_search(windows: Windows, readout: np.ndarray) -> str:
    """Ask the product's search for 20 queries: how many of its answers are those found here."""
    dataset, rng = open_embeddings(windows.folders[0] / DESCRIPTOR), np.random.default_rng(0)
    raw, crops, fitted = read_vectors(windows.folders[0] / DESCRIPTOR), crops_of(dataset), readout_of(dataset)
    later, hour = windows.later(windows.kind.leads[0]), windows.time - windows.time.astype("M8[D]")
    held_out, same = np.isin(windows.part, (CHOOSE, TEST)), []
    tested = np.flatnonzero((windows.part == TEST) & (later >= 0) & (windows.part[later] == TEST))
    for query in rng.choice(tested, 20 if len(tested) else 0):
        row, col = (int(rng.integers(n)) for n in windows.shape)
        if not windows.observed[query, 0, row, col]:
            continue
        frames = np.flatnonzero(held_out & (hour == hour[later[query]]))
        scores = np.einsum(
            "fijd,d->fij", unit_rows(readout[frames, 1]), unit_rows(readout[query, 0, row, col])
        )
        frame, *best = np.unravel_index(np.nanargmax(scores), scores.shape)
        moved, vector = dataset.isel(crop=np.sort(crops[frames, 1])), raw[query, 0, row, col]
        answers = gridrad_cube.search(moved, vector, scores.size, readout=fitted, exclude=None, reject=())
        found = zip(*(answers[name].values.tolist() for name in ("crop", "row", "col")), strict=True)
        seen = dict(zip(crops[:, 1].tolist(), windows.observed[:, 1], strict=False))
        first = next((crop, *cell) for crop, *cell in found if seen[crop][tuple(cell)])
        same.append(first == (crops[frames[frame], 1], *best))
    return f"`gridrad_cube.search` answers {sum(same)} of {len(same)} queries with the window that is nearest here."


# Report


Scores = Mapping[str, Cell]


def text_of_cell(cell: Cell, sign: str = "") -> str:
    """A value and its interval."""
    if cell.value is None or cell.low is None:
        return cell.words or f"{cell.value:{sign}.2f}"
    return f"{cell.value:{sign}.2f} ({cell.low:{sign}.2f} to {cell.high:{sign}.2f})"


def table(
    first: str, rows: Mapping[str, Scores], columns: Iterable[str], *, signed: bool = False
) -> list[str]:
    """A table of the columns that some row has."""
    columns, sign = [c for c in columns if any(c in scores for scores in rows.values())], "+" * signed
    cells = [
        [name, *(text_of_cell(s[c], sign) if c in s else "" for c in columns)] for name, s in rows.items()
    ]
    return [*machine.table([first, *columns], cells), ""] if columns else []


@dataclass
class Report:
    """Scores of methods by part, and the lines that show them."""

    windows: Windows
    cases: Cases | None
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    gains: dict[str, dict[str, Scores]] = field(default_factory=dict)
    baseline: dict[str, dict[str, Ranks]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, *seeds: np.ndarray, parts: Sequence[int] = (TEST, FAR, CHOOSE)) -> None:
        """Measure a method: its vectors, of one seed or of several."""
        for part in parts:
            if not (self.windows.part == part).any():
                continue
            ranks, where = all_ranks(self.windows, seeds, part), PARTS[part]
            found = {column: r.share for column, r in ranks.items()}
            if self.cases is not None:
                found |= rain_scores(self.cases, [self.cases.take(vectors) for vectors in seeds], part)
            self.scores.setdefault(where, {})[name] = found
            if where in self.baseline:
                gains = {column: r.gain(self.baseline[where][column]) for column, r in ranks.items()}
                self.gains.setdefault(where, {})[name] = gains
            elif name == BASELINE:
                self.baseline[where] = ranks
            said = ", ".join(
                f"{column} {cell.value:.2f}" for column, cell in found.items() if cell.value is not None
            )
            logging.info("%s, %s, %s: %s", self.windows.kind.name, name, where, said)

    def lines(self) -> list[str]:
        """The tables."""
        kind, out = self.windows.kind, [f"## {self.windows.kind.title}", "", *self.intro(), ""]
        leads = [f"{text_of(lead)}: {some}" for lead in kind.leads for some in ("all", "storms")]
        for part, words in ((TEST, "held out"), (FAR, "the other folder"), (CHOOSE, "the part that chooses")):
            rows = self.scores.get(PARTS[part], {})
            tables = table("retrieval at rank 1", rows, leads)
            tables += table(f"gain over: {BASELINE}", self.gains.get(PARTS[part], {}), leads, signed=True)
            tables += table("rain, R2", rows, RAIN)
            if self.cases is not None:
                tables += table(f"rain {text_of(kind.forecast)} later, R2", rows, FORECASTS)
                plain = plain_forecasts(self.cases, part)
                said = ", ".join(f"{name} {text_of_cell(cell)}" for name, cell in plain.items())
                tables += [f"Without vectors: {said}.", ""] if plain else []
            if tables:
                out += [f"### {kind.title}: {words}", "", *tables]
        return [*out, *self.notes, ""]

    def intro(self) -> list[str]:
        """What was measured."""
        windows, lines = self.windows, []
        for part, name in PARTS.items():
            mine = windows.part == part
            names = sorted(set(windows.block[mine].tolist()))
            said = ", ".join(names) if len(names) < 12 else f"{names[0]} to {names[-1]}"
            if names:
                patches = windows.observed[mine, 0].sum()
                lines.append(f"- {name}: {said}: {mine.sum():,} frames, {patches:,} patches")
        return lines


def measure(
    kind: Kind, folder: Path, options: argparse.Namespace, networks: bool
) -> tuple[Report, Report | None]:
    """All methods on one kind of data; with networks or without. Of clouds whole scenes too, with the first of them."""
    windows = divide(
        build(kind, options.data, folder / "near", quick=options.quick), options.choose, options.test
    )
    if options.far is not None and kind.sources(options.far):
        windows = windows.join(build(kind, options.far, folder / "far"))
    report = Report(windows, find_cases(windows))
    report.add("histogram", windows.gather(partial(histograms, windows)))
    report.add(
        f"PCA of pixels, {COMPONENTS}",
        principal_components(windows.gather(partial(pictures, windows)), windows.fits),
    )
    raw = windows.gather(lambda place: read_vectors(place / DESCRIPTOR))
    readout = read_out(windows, folder / "near" / DESCRIPTOR, raw)
    report.add("descriptor, standardized", standardized(raw, windows.fits))
    report.add(BASELINE, readout)
    if kind is CLOUDS:
        report.notes += [check_search(windows, readout), ""]
    if not networks:
        return report, None
    for path in options.checkpoint:
        name = path.parent.name if path.stem == "checkpoint" else path.stem
        add_network(report, name, [(path, folder / f"given-{name}")], readout)
    for name in dict.fromkeys([*options.train, *(TRIALS if options.trials else ())]):
        trial = TRIALS.get(name) or Trial(f"--preset {name}", preset=name)
        # A trial is judged by the part that chooses; the test is for those that are chosen.
        chosen = name in options.train
        seeds = options.seeds if chosen else options.seeds[:1]
        parts = (TEST, FAR, CHOOSE) if chosen else (CHOOSE,)
        places = [folder / f"{name}-{seed}" for seed in seeds]
        runs = [
            (train_run(windows, trial, seed, place), place) for seed, place in zip(seeds, places, strict=True)
        ]
        report.notes.append(f"- {name}: {trial.words}; seeds {', '.join(map(str, seeds))}")
        add_network(report, name, runs, readout, parts)
    whole = kind is CLOUDS and options.train
    return report, measure_scenes(
        windows, folder / f"{options.train[0]}-{options.seeds[0]}"
    ) if whole else None


def add_network(
    report: Report, name: str, runs: Sequence[tuple[Path, Path]], descriptor: np.ndarray,
    parts: Sequence[int] = (TEST, FAR, CHOOSE),
) -> None:  # fmt: skip
    """Measure a network by the checkpoints and folders of its seeds.

    Its vectors as stored, standardized, with a readout, beside the descriptor's readout; and the mean and standard
    deviation of its tokens where its vectors are of something else.
    """
    windows = report.windows
    seeds = [network_vectors(windows, *run) for run in runs]
    standard = [standardized(vectors, windows.fits) for vectors in seeds]
    report.add(f"{name}, as stored", *seeds, parts=parts)
    report.add(f"{name}, standardized", *standard, parts=parts)
    stores = [place / "near-windows.zarr" for _, place in runs]
    linear = [read_out(windows, store, vectors) for store, vectors in zip(stores, seeds, strict=True)]
    report.add(f"{name}, readout", *linear, parts=parts)
    both = [beside(vectors, descriptor) for vectors in standard]
    report.add(f"{name}, standardized, beside the descriptor's readout", *both, parts=parts)
    if json.loads(open_embeddings(stores[0]).attrs["gridrad_cube"])["pool"] != "mean+std":
        tokens = [standardized(network_vectors(windows, *run, "mean+std"), windows.fits) for run in runs]
        report.add(f"{name}, mean+std, standardized", *tokens, parts=parts)


def main() -> None:
    """Build, train, embed, measure, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = os.environ.get("GRIDRAD_CUBE_REAL_DATA")
    parser.add_argument("data", nargs="?", type=Path, default=given and Path(given), help="folder of data")
    parser.add_argument("--far", type=Path, help="folder of another year or region: nothing is fitted on it")
    add = parser.add_argument
    add(
        "--kinds",
        nargs="+",
        choices=tuple(KINDS),
        default=list(KINDS),
        help="of data; networks are for the first",
    )
    add("--choose", nargs="+", default=[], metavar="DAY", help="days or events that choose")
    add("--test", nargs="+", default=[], metavar="DAY", help="days or events that test")
    add("--train", nargs="+", default=[], metavar="NAME", help="presets or trials to train and test")
    add(
        "--trials", action="store_true", help="train all trials, of one seed, judged by the part that chooses"
    )
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of --train")
    add(
        "--checkpoint",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="networks that are trained already",
    )
    add("--quick", action="store_true", help="three days, or synthetic ones: whether it runs")
    add("--folder", type=Path, help="scratch folder, kept; a temporary one by default")
    add("--out", type=Path, help="write the tables here too, and the scores beside as JSON")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        evaluate(folder, options)


def evaluate(folder: Path, options: argparse.Namespace) -> None:
    """Measure every kind of data that is there; print and write."""
    if options.data is None:
        if not options.quick:
            raise SystemExit("no data: pass the folder, or set GRIDRAD_CUBE_REAL_DATA")
        options.data = folder / "synthetic"
        if not options.data.exists():
            synthesize(options.data)
    lines: list[str] = []
    found: dict[str, dict[str, dict[str, Scores]]] = {}
    for kind in (KINDS[name] for name in options.kinds):
        if kind.sources(options.data):
            report, scenes = measure(kind, folder / kind.name, options, networks=not found)
            lines += [*report.lines(), *(scenes.lines() if scenes else ())]
            found |= {r.windows.kind.title: r.scores for r in (report, scenes) if r}
    if not found:
        raise SystemExit(f"{options.data}: holds neither clouds/mergir_*.nc nor radar/*.nc")
    machine.report("Do embeddings answer on real weather?", lines, options.out)
    if options.out is not None:
        options.out.with_suffix(".json").write_text(json.dumps(found, default=asdict, indent=1) + "\n")


if __name__ == "__main__":
    main()
