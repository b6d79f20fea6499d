"""A probe while training: does a place find itself again an hour later, among others of that hour?

The loss does not say whether features are of use. This needs no labels either: the teacher embeds some samples and
what was there an hour later, and each looks for its own sequel among sequels of the same channel and hour of the day.
`gridrad_cube.evaluation` asks more, of finished embeddings.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from gridrad_cube.datasets import Batch, GridDataset, PatchDataset, Stratum, nearest_later
from gridrad_cube.models import NetworkInput
from gridrad_cube.similarity import rank_me, rank_targets
from gridrad_cube.store import open_embeddings, open_packed

logger = logging.getLogger(__name__)

#: Pairs of a sample and its sequel, at most; and pairs of a group, which are distinguished from each other.
_PAIRS, _GROUP = 256, 32
#: Fewest others that a sequel is looked for among, and fewest samples that look for theirs.
_LEAST_RIVALS, _LEAST_PAIRS = 8, 16
#: Leads in minutes, the first with enough pairs is taken: an hour, those of coarser archives, that of a short one.
_LEADS = (60, 180, 360, 10)
#: A sequel this near in time, s, at the same place is no rival: it shows much of the same.
_NEAR_SECONDS = 6 * 3600
#: ``auto``: probes a run, at most, and the share of its samples that they may embed.
_MOST_PROBES, _SHARE = 50, 0.05

Samples = PatchDataset | GridDataset

#: Samples that are embedded at once. It is fixed, so that scores do not depend on it.
_BATCH = 32
#: Samples among which pairs are looked for.
_CANDIDATES = 2**16
#: Bins of the histogram, over normalized values up to this size.
_BINS, _SPAN = 32, 3.0


def probe_interval(steps: int, samples_per_step: int) -> int:
    """Return the steps from one probe to the next for ``--probe-steps auto``; 0 for none.

    Up to 50 are spread over the run, but they embed no more samples than 5 % of those that a process trains on (one
    view of each, forward only, so less of its time). A run too short for two has none.
    """
    affordable = int(_SHARE * steps * samples_per_step / (2 * _PAIRS))
    return math.ceil(steps / min(affordable - 1, _MOST_PROBES)) if affordable >= 2 else 0


@dataclass(frozen=True)
class _Pairs:
    """Samples and their sequels: the same place and channel ``minutes`` later, (P,) numbers of samples.

    ``rival`` (P, P): whether query i looks for its sequel among others of which sequel j is one.
    """

    query: npt.NDArray[np.int64]
    sequel: npt.NDArray[np.int64]
    rival: npt.NDArray[np.bool_]
    minutes: int

    @property
    def asked(self) -> npt.NDArray[np.bool_]:
        """Which queries have enough rivals to count, (P,)."""
        return np.asarray(self.rival.sum(axis=1) >= _LEAST_RIVALS)

    @property
    def chance(self) -> float:
        """Expected score of features that say nothing."""
        among = 1 + self.rival.sum(axis=1)[self.asked]
        return float(np.mean([(1 / np.arange(1, n + 1)).mean() for n in among]))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the probes of a run have found so far; the checkpoint keeps it."""

    start: float | None = None
    best: float | None = None
    best_step: int | None = None

    def with_score(self, score: float, step: int) -> Scores:
        """Return the state after one more probe. That of step 0 is not a candidate for the best."""
        if step == 0:
            return replace(self, start=score)
        if math.isfinite(score) and (self.best is None or score > self.best):
            return replace(self, best=score, best_step=step)
        return self


def draw_pairs(dataset: Samples, seed: int) -> _Pairs | None:
    """Return the pairs of samples, drawn over its days and hours; the same for one seed. None for too few.

    Of radar and rain only samples with echo at both times: empty ones are all alike.
    """
    stored, crop, cell, channel, usable = _samples(dataset)
    time = stored["time"].values.astype("datetime64[s]").astype(np.int64)
    place = _places(stored)
    crops = np.flatnonzero(np.bincount(crop))
    cells, channels = int(cell.max()) + 1, int(channel.max()) + 1
    identity = (crop * cells + cell) * channels + channel  # ascending, as samples are in order
    for minutes in _LEADS:
        rng = np.random.default_rng((seed, minutes))
        later = np.arange(len(time))
        later[crops] = crops[nearest_later(place[crops], time[crops], 60 * minutes)]
        query = np.flatnonzero(usable & (later[crop] != crop))
        if len(query) > _CANDIDATES:
            query = np.sort(rng.choice(query, _CANDIDATES, replace=False))
        wanted = (later[crop[query]] * cells + cell[query]) * channels + channel[query]
        sequel = np.searchsorted(identity, wanted).clip(max=len(identity) - 1)
        there = (identity[sequel] == wanted) & usable[sequel]
        query, sequel = query[there], sequel[there]
        hour = np.rint(time[crop[sequel]] / 3600).astype(np.int64) % 24
        chosen, group = _groups(channel[query] * 24 + hour, rng)
        query, sequel = query[chosen], sequel[chosen]
        where = place[crop[query]] * cells + cell[query]
        pairs = _Pairs(query, sequel, _rivals(group, where, time[crop[query]], time[crop[sequel]]), minutes)
        if pairs.asked.sum() >= _LEAST_PAIRS:
            return pairs
    return None


def _samples(
    dataset: Samples,
) -> tuple[xr.Dataset, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the store, and of each sample its crop, cell of the crop, channel, and whether there is
    something in it.
    """
    if isinstance(dataset, GridDataset):
        crop, channel = (v.astype(np.int64) for v in (dataset.crop, dataset.channel))
        return open_embeddings(dataset.store), crop, np.zeros_like(crop), channel, np.ones(len(crop), bool)
    stored, table = open_packed(dataset.store), dataset.table
    cell = table.row.astype(np.int64) * stored.sizes["col"] + table.col
    usable = np.isin(table.stratum, (Stratum.plain, Stratum.echo))
    return stored, table.crop.astype(np.int64), cell, table.channel.astype(np.int64), usable


def _places(stored: xr.Dataset) -> npt.NDArray[np.int64]:
    """Return a number for the window of each crop: its grid and place in it."""
    names = [name for name in ("grid", "y_origin", "x_origin") if name in stored.variables]
    if not names:
        return np.zeros(stored.sizes["crop"], np.int64)
    return stored[names].to_dataframe().groupby(names).ngroup().to_numpy()


def _groups(
    kind: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the positions of pairs, each group of one kind, and the number of the group of each; full groups
    first.
    """
    groups: list[npt.NDArray[np.int64]] = []
    for one in np.unique(kind):
        members = rng.permutation(np.flatnonzero(kind == one))
        groups += np.split(members, range(_GROUP, len(members), _GROUP))
    groups = sorted((groups[i] for i in rng.permutation(len(groups))), key=len, reverse=True)
    total = np.cumsum([len(g) for g in groups])
    groups = groups[: int(np.searchsorted(total, _PAIRS, side="right"))]
    if not groups:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(g) for g in groups])


def _rivals(
    group: npt.NDArray[np.int64],
    place: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Return which sequels are rivals of each pair's own: of its group, and not of its place and time."""
    near = np.abs(after - before[:, None]) < _NEAR_SECONDS
    near |= np.abs(after - after[:, None]) < _NEAR_SECONDS
    rival = (group == group[:, None]) & ~(near & (place == place[:, None]))
    np.fill_diagonal(rival, False)
    return rival


def _retrieval(query: npt.ArrayLike, sequel: npt.ArrayLike, pairs: _Pairs) -> float:
    """Return the mean reciprocal rank of sequels by cosine, from `Pairs.chance` to 1; see
    `gridrad_cube.similarity.rank_targets`.

    Pairs of which one vector is zero or not finite do not count.
    """
    target = np.arange(len(pairs.query))
    rank = rank_targets(np.asarray(query), np.asarray(sequel), target, ~pairs.rival)
    return float((1 / rank[pairs.asked & np.isfinite(rank)]).mean())


class Probe:
    """Embeds the same samples each time and scores them. Uses no random numbers and does not change the network.

    Vectors are those that embedding gives: ``pool`` makes them of the tokens. ``whole`` makes one view of a batch, as
    it will be embedded; ``every`` steps there is a probe, of ``steps`` of the run; ``bf16`` says whether the network
    runs under autocast, as in training.
    """

    def __init__(
        self, dataset: Samples, whole: Callable[[Batch], NetworkInput], pairs: _Pairs, *, every: int, steps: int,
        device: torch.device, bf16: bool, span: float = _SPAN,
    ) -> None:  # fmt: skip
        self.dataset, self.whole, self.pairs, self.every, self.steps = dataset, whole, pairs, every, steps
        self._device, self._bf16, self._span = device, bf16, span
        self._rows = np.unique(np.concatenate([pairs.query, pairs.sequel]))
        #: What the network has to beat.
        self.baseline = "mean of the cells" if isinstance(dataset, GridDataset) else "histogram of the pixels"
        logger.info(
            "probe every %d steps: %d samples look for themselves %d min later (by chance %.3f), also by the %s",
            every, pairs.asked.sum(), pairs.minutes, pairs.chance, self.baseline,
        )  # fmt: skip

    def due(self, step: int) -> bool:
        """Return whether to probe after a step: at the interval, and after the last one."""
        return step % self.every == 0 or step == self.steps

    def run(
        self, embed: Callable[[NetworkInput], Tensor], step: int, scores: Scores
    ) -> tuple[Scores, dict[str, Any]]:
        """Score what embeds after a step, and log it; the scores so far, and what `measure` gives for the metrics."""
        found = self.measure(embed)
        scores = scores.with_score(found["probe_retrieval"], step)
        logger.info(
            "step %d: probe %.3f (at the start %.3f, %s %.3f, best %.3f)", step, found["probe_retrieval"],
            scores.start or math.nan, self.baseline, found["probe_baseline"], scores.best or math.nan,
        )  # fmt: skip
        if step == self.steps and scores.start is not None and (scores.best or 0.0) <= scores.start:
            logger.warning(
                "no probe found the network better than at its start: so far it learned nothing of use"
            )
        return scores, found | {"probe_at_start": scores.start, "probe_best": scores.best}

    def measure(self, embed: Callable[[NetworkInput], Tensor]) -> dict[str, float]:
        """Score a function that embeds: ``probe_retrieval`` (see `_retrieval`), ``probe_baseline``, the same without a
        network, and ``probe_rankme``, the effective rank of the features.
        """
        features, plain = self._embed(embed)
        query, sequel = (np.searchsorted(self._rows, r) for r in (self.pairs.query, self.pairs.sequel))
        return {
            "probe_retrieval": _retrieval(features[query], features[sequel], self.pairs),
            "probe_baseline": _retrieval(plain[query], plain[sequel], self.pairs),
            "probe_rankme": rank_me(features),
        }

    @torch.no_grad()
    def _embed(self, embed: Callable[[NetworkInput], Tensor]) -> list[npt.NDArray[np.float32]]:
        """Return the features and baseline vectors of all samples, NaN for those that are damaged in the
        store.
        """
        parts: list[list[Tensor]] = []
        for start in range(0, len(self._rows), _BATCH):
            batch = self.dataset.__getitems__(self._rows[start : start + _BATCH])
            view = self.whole(batch.to(self._device))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                features = embed(view)
            parts.append([batch.index, features.float().cpu(), _baseline(view, self._span).cpu()])
        index, *columns = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        out = [np.full((len(self._rows), column.shape[1]), np.nan, np.float32) for column in columns]
        for whole, column in zip(out, columns, strict=True):
            whole[np.searchsorted(self._rows, index)] = column
        return out


def _baseline(view: NetworkInput, span: float) -> Tensor:
    """Return what a network has to beat, (B, ...): the mean of the cells of a grid, or roots of shares of
    pixels by value.
    """
    x, _, cells = view
    assert isinstance(x, Tensor)
    if cells is not None:
        return x.sum((2, 3)) / cells.sum((1, 2)).clamp(min=1)[:, None]  # cells that do not count are 0
    seen = x.isfinite().flatten(2).float()
    bins = ((x.nan_to_num() / span + 1) / 2 * _BINS).clamp(0, _BINS - 1).long().flatten(2)
    counts = seen.new_zeros(*seen.shape[:2], _BINS).scatter_add_(2, bins, seen)
    return (counts / seen.sum(2, keepdim=True).clamp(min=1)).sqrt().flatten(1)
