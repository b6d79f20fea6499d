"""What all questions of an evaluation share: samples, their sequels, parts of the days, kinds of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridrad_cube.evaluation.days import FIT, Statistic, difference, estimate, parts_of
from gridrad_cube.evaluation.result import Cell
from gridrad_cube.evaluation.samples import Gathered, Sequels, Stores, draw, gather
from gridrad_cube.evaluation.vectors import Axes, principal_axes, standard_axes
from gridrad_cube.query.places import half_diagonals
from gridrad_cube.query.samples import sample_dims
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_seconds

#: Components of the pixels' principal components.
COMPONENTS = 64
_CENTRED = ", centred"


@dataclass(frozen=True)
class Lead:
    """A length of time and, for each sample of the pool, the position of its sequel; -1 for none."""

    name: str
    seconds: float
    sequel: np.ndarray


@dataclass(frozen=True)
class Material:
    """Everything in memory that an evaluation is made from.

    Attributes
    ----------
    pool, later
        Samples drawn at random, and those that come after them.
    part, lacking
        Part of the days of each sample of the pool; in words what is lacking to divide them.
    axes
        Kinds of vectors by name, and how each is made of what was gathered.
    here, there
        Those vectors of the pool and of the sequels.
    """

    stores: Stores
    pool: Gathered
    later: Gathered
    sequels: Sequels
    leads: tuple[Lead, ...]
    part: np.ndarray
    lacking: str
    axes: Mapping[str, Axes]
    here: Mapping[str, np.ndarray]
    there: Mapping[str, np.ndarray]
    queries: int
    seed: int
    block: int | None

    @property
    def names(self) -> list[str]:
        """Names of the stores of embeddings."""
        return list(self.stores.datasets)

    @property
    def baselines(self) -> list[str]:
        """Kinds of vectors that no network made."""
        return [n for n in self.here if n not in self.names and not n.endswith(_CENTRED)]

    @property
    def linear(self) -> list[str]:
        """Kinds of vectors that differ to a linear probe: less their mean they are the same to it."""
        return [*self.names, *self.baselines]

    def project(self, some: Gathered) -> dict[str, np.ndarray]:
        """All kinds of vectors of some samples."""
        return {name: axes.project(some.vectors[_raw(name)]) for name, axes in self.axes.items()}

    def drawn(self, positions: np.ndarray, salt: int = 0) -> np.ndarray:
        """At most ``queries`` of some positions, at random."""
        if len(positions) <= self.queries:
            return positions
        rng = np.random.default_rng((self.seed, salt))
        return np.sort(rng.choice(positions, self.queries, replace=False))

    def near_km(self) -> float:
        """Less than the edge of a sample: what lies nearer shares pixels with it."""
        index = np.unravel_index(self.pool.rows[:256], self.stores.mask.shape)
        at = dict(zip(sample_dims(self.stores.first), index, strict=True))
        half = half_diagonals(self.stores.first, at["crop"], [at[d] for d in ("row", "col") if d in at])
        return 0.9 * np.sqrt(2) * float(np.nanmedian(half)) if np.isfinite(half).any() else 0.0

    def no_pairs(self, lead: Lead) -> str:
        """In words why nothing came after."""
        step = self.sequels.step
        if not np.isfinite(step):
            return "one time only: nothing came after"
        if step > 1.25 * lead.seconds:
            return f"no pairs {lead.name} apart: frames are {step / 60:.4g} min apart"
        return f"no pairs {lead.name} apart among the samples"

    def cells(
        self, statistics: Mapping[str, Statistic], time: np.ndarray, noun: str, better: str = "higher"
    ) -> tuple[dict[str, Cell], Cell | None, str]:
        """A cell for each kind of vectors, and by how much the first store is better than the best baseline."""
        cells = {n: estimate(s, time, seed=self.seed, noun=noun) for n, s in statistics.items()}
        sign = 1.0 if better == "higher" else -1.0
        known = {n: sign * c.value for n, c in cells.items() if c.value is not None}
        rivals = {n: known[n] for n in (*self.baselines, "persistence") if n in known}
        first = self.names[0]
        if not rivals or first not in known:
            return cells, None, ""
        best = max(rivals, key=lambda n: rivals[n])
        both = difference(statistics[first], statistics[best], sign)
        return cells, estimate(both, time, seed=self.seed, noun=noun), best


def in_words(names: Sequence[str], words: str) -> dict[str, Cell]:
    """The same words for every kind of vectors."""
    return {name: Cell(words=words) for name in names}


def prepare(
    stores: Stores,
    *,
    samples: int,
    queries: int,
    leads: Sequence[Any],
    gap: int,
    seed: int,
    block: int | None,
) -> Material:
    """Draw and read all samples of an evaluation; see `gridrad_cube.evaluation.evaluate`.

    Raises
    ------
    SchemaError
        If no clean sample has an embedding.
    """
    pool = gather(stores, draw(stores, samples, seed), block=block)
    if not len(pool.rows):
        raise SchemaError(f"evaluate: no clean sample of {stores.label} has an embedding in every store")
    sequels = Sequels(stores)
    seconds = {str(lead): as_seconds(lead) for lead in leads}
    after = {name: sequels.after(pool, s) for name, s in seconds.items()}
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(r[r >= 0] for r in after.values())]))
    later = gather(stores, rows, block=block)
    part, lacking = parts_of(pool.time, gap=gap)
    axes = _axes(stores, pool, part == FIT if (part == FIT).any() else np.ones(len(part), bool))
    material = Material(
        stores=stores, pool=pool, later=later, sequels=sequels,
        leads=tuple(Lead(name, s, later.find(after[name])) for name, s in seconds.items()),
        part=part, lacking=lacking, axes=axes,
        here={n: a.project(pool.vectors[_raw(n)]) for n, a in axes.items()},
        there={n: a.project(later.vectors[_raw(n)]) for n, a in axes.items()},
        queries=queries, seed=seed, block=block,
    )  # fmt: skip
    return material


def _axes(stores: Stores, pool: Gathered, some: np.ndarray) -> dict[str, Axes]:
    """How each kind of vectors is made, learned from some samples; kinds that do not vary are left out."""
    out = {}
    for name in stores.datasets:
        out[name] = _as_they_are(pool.vectors[name].shape[1])
    for name in stores.datasets:
        mean = pool.vectors[name][some].mean(axis=0, dtype=np.float64)
        out[f"{name}{_CENTRED}"] = Axes(mean, np.eye(len(mean)))
    for name in ("moments", "histogram"):
        out[name] = standard_axes(pool.vectors[name][some])
    out[f"PCA-{COMPONENTS} of pixels"] = principal_axes(pool.vectors["picture"][some], COMPONENTS)
    if "mean of patches" in pool.vectors:
        out["mean of patches"] = _as_they_are(pool.vectors["mean of patches"].shape[1])
    return {name: axes for name, axes in out.items() if axes.axes.shape[1]}


def _as_they_are(features: int) -> Axes:
    return Axes(np.zeros(features), np.eye(features))


def _raw(name: str) -> str:
    """Which gathered vectors a kind is made of."""
    name = name.removesuffix(_CENTRED)
    return "picture" if name.startswith("PCA-") and name.endswith("of pixels") else name
