"""Evaluating stores of embeddings: every question, for every kind of vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gridrad_cube.evaluation import questions
from gridrad_cube.evaluation.days import CHOOSE, FIT, TEST, count_days
from gridrad_cube.evaluation.material import Material, prepare
from gridrad_cube.evaluation.pixels import ATTRIBUTES
from gridrad_cube.evaluation.result import Evaluation
from gridrad_cube.evaluation.samples import open_stores
from gridrad_cube.query.samples import store_info
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import convective_day

#: Times after which the same place is looked for.
LEADS = ("10min", "30min", "60min", "180min")


def evaluate(
    embeddings: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    cube: str | os.PathLike[str] | None = None,
    *,
    patches: str | os.PathLike[str] | None = None,
    channel: str | None = None,
    samples: int = 8000,
    queries: int = 400,
    leads: Sequence[Any] = LEADS,
    gap: int = 1,
    seed: int = 0,
    block: int | None = None,
) -> Evaluation:
    """Judge embeddings without labels: spread, retrieval, analogue forecasts, probes, leaks, beside baselines.

    Days are divided, in order of time, into those that fit (60 %), those that choose (20 %: penalties, and the
    best of several stores) and those that test (20 %); no convective day is in two parts. Intervals are 95 %, from
    drawing convective days anew. Where data are too few, words stand in place of a number.

    Memory is bounded by ``samples``, whatever the size of the store: some 10 kB a sample, and as much a sequel.

    Parameters
    ----------
    embeddings
        A store of embeddings, level 256 or 2k; or several of the same samples, from different checkpoints, say,
        of which one is chosen.
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
    block
        Windows whose pixels are read together; None for about four million pixels. Results do not depend on it.

    Raises
    ------
    SchemaError
        If the stores do not fit each other or the cube, the cube has moved, or no sample is left.
    """
    paths = [embeddings] if isinstance(embeddings, (str, os.PathLike)) else list(embeddings)
    if not paths or samples < 1 or queries < 1:
        raise SchemaError(
            f"evaluate: got {len(paths)} stores, samples={samples}, queries={queries}; expected one of each at least"
        )
    stores = open_stores(paths, cube, patches, channel)
    m = prepare(stores, samples=samples, queries=queries, leads=leads, gap=gap, seed=seed, block=block)
    probed, scores = questions.attributes(m)
    chosen, choice = questions.choice(m, scores)
    rows = (
        *questions.spread(m), *questions.same_place(m), *questions.same_storm(m), *questions.forecasts(m),
        *probed, *questions.leaks(m), *choice,
    )  # fmt: skip
    return Evaluation(_about(m), rows, chosen, _notes(m))


def _about(m: Material) -> dict[str, Any]:
    """What the evaluation was made from."""
    time, days = m.pool.time, convective_day(m.pool.time)
    counts = [len(np.unique(days[m.part == p])) for p in (FIT, CHOOSE, TEST)]
    divided = "{} to fit, {} to choose, {} to test".format(*counts)
    return {
        "stores": [str(d.encoding.get("source")) for d in m.stores.datasets.values()],
        "checkpoints": [str(store_info(d).get("checkpoint")) for d in m.stores.datasets.values()],
        "cube": str(m.stores.cube.encoding.get("source")),
        "level": str(store_info(m.stores.first).get("level")),
        "channel": m.stores.label,
        "samples": f"{len(m.pool.rows)} of {int(m.stores.mask.sum())} clean samples",
        "time": f"{time.min()} to {time.max()} UTC",
        "days": m.lacking or f"{count_days(len(np.unique(days)))}: {divided}",
        "seed": m.seed,
    }


def _notes(m: Material) -> tuple[str, ...]:
    """What the table's reader has to know."""
    out = ["[low, high]: 95 % interval, from drawing convective days anew."]
    if m.pool.attributes:
        out.append("residual: R² of what solar time, latitude and season leave of the attribute.")
    missing = [a.long_name for n, a in ATTRIBUTES.items() if n not in m.pool.attributes]
    if missing:
        out.append(f"The cube does not tell: {'; '.join(missing)}.")
    return tuple(out)
