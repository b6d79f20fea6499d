"""Each sample with the same place a while later: what makes pairs of views in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from gridrad_cube.datasets.grids import GridDataset
from gridrad_cube.datasets.loader import Batch
from gridrad_cube.datasets.patches import PatchDataset
from gridrad_cube.schema import SchemaError

#: Places whose centres agree to this many degrees are one: far below a pixel's neighbour, far above rounding.
SAME_PLACE = 1e-3


class PairDataset(Dataset[Batch]):
    """Samples of a data set together with their partners, twice as many rows a batch.

    Rows ``[:B]`` of a batch are the samples asked for, rows ``[B:]`` their partners in the same order, whatever
    the number of ranks and workers: partners are a fixed table. A sample that is damaged in the store is left out
    with its partner (where the data set does so at all); one whose partner is damaged is its own.

    Parameters
    ----------
    dataset
        A `PatchDataset` or `GridDataset`.
    partners
        The partner of each sample, itself where it has none, (N,); see `followers`.
    """

    def __init__(self, dataset: PatchDataset | GridDataset, partners: npt.NDArray[np.int64]) -> None:
        if partners.shape != (len(dataset),):
            raise ValueError(f"PairDataset: got {partners.shape} partners; expected ({len(dataset)},)")
        self.dataset, self.partners = dataset, partners

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read samples and partners; see `PatchDataset.__getitems__`."""
        index = np.asarray(indices, np.int64)
        read = np.unique(np.concatenate([index, self.partners[index]]))  # each of them once
        batch = self.dataset.__getitems__(read)
        lost = np.isin(index, batch.damaged) if batch.damaged is not None else np.zeros(len(index), bool)
        kept = batch.index.numpy()
        own = index[~lost]
        other = np.where(np.isin(self.partners[own], kept), self.partners[own], own)
        rows = torch.from_numpy(np.searchsorted(kept, np.concatenate([own, other])))
        return batch.take(rows, damaged=torch.from_numpy(index[lost]) if lost.any() else None)

    def describe(self, index: int) -> dict[str, Any]:
        """Where a sample comes from."""
        return self.dataset.describe(index)


def followers(dataset: PatchDataset | GridDataset, minutes: float) -> np.ndarray:
    """The sample that shows the same place and channel a while after each sample.

    That is the one nearest in time to ``minutes`` later, if within half of ``minutes`` of it (the earlier of
    two equally near). Partners are samples of the data set themselves, so as clean as any.

    Parameters
    ----------
    minutes
        The lead, above 0.

    Returns
    -------
    Index of the follower of each sample, its own where it has none, int64, (N,).

    Raises
    ------
    SchemaError
        If no sample has a follower; says how far apart the times of a place are.
    """
    if not minutes > 0:
        raise ValueError(f"followers: got {minutes} minutes; expected a number above 0")
    place, seconds = _places(dataset)
    out = np.arange(len(place))
    known = np.flatnonzero(place >= 0)
    found = nearest_later(place[known], seconds[known], minutes * 60)
    out[known] = known[found]
    if (out == np.arange(len(out))).all():
        raise SchemaError(
            f"{dataset.store}: no sample has a partner {minutes:g} min later (within half of that); "
            f"{_spacing(place[known], seconds[known])}. Pass another lead, more time, or none (0)."
        )
    return out


def _places(dataset: PatchDataset | GridDataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A number for the place and channel of each sample, -1 where it has no position, and its time in s."""
    stored, degrees = dataset._dataset, []
    for name in ("latitude", "longitude"):
        centres = stored[name].values
        if isinstance(dataset, PatchDataset):
            table = dataset.table
            crop, channel = table.crop, table.channel
            degrees.append(centres[table.crop, table.row, table.col])
        else:
            crop, channel = dataset.crop, dataset.channel
            degrees.append(_mean_of_cells(centres)[dataset.crop])
    time = stored["time"].values.astype("datetime64[s]")[crop]
    known = np.isfinite(degrees).all(axis=0) & ~np.isnat(time)
    south, west = (np.rint(np.where(known, v, 0.0) / SAME_PLACE).astype(np.int64) for v in degrees)
    turn, labels = round(360 / SAME_PLACE), int(channel.max(initial=0)) + 1
    place = ((south + turn) * turn + west % turn) * labels + channel
    return np.where(known, place, -1), time.astype(np.int64)


def _mean_of_cells(centres: np.ndarray) -> npt.NDArray[np.float64]:
    """One number a grid, (crop, row, col) to (crop,), NaN where no cell has a position."""
    flat = centres.reshape(len(centres), -1).astype(np.float64)
    known = np.isfinite(flat)
    count = known.sum(axis=1)
    total = np.where(known, flat, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def nearest_later(
    place: npt.NDArray[np.int64], seconds: npt.NDArray[np.int64], lead: float
) -> npt.NDArray[np.int64]:
    """Position of the nearest to ``lead`` later at the same place, within half of it, or its own."""
    own = np.arange(len(place))
    if not len(place):
        return own
    # One axis on which places lie further apart than any lead reaches, so that one search serves them all.
    _, number = np.unique(place, return_inverse=True)
    line = number * (int(np.ptp(seconds)) + 2 * int(lead) + 2) + (seconds - seconds.min())
    order = np.argsort(line, kind="stable")
    ordered, target = line[order], line + lead
    after = np.searchsorted(ordered, target).clip(max=len(order) - 1)
    # The first of several samples at one time (two sources of one place): the same partner in any run.
    before = np.searchsorted(ordered, ordered[(after - 1).clip(min=0)])
    nearer = np.abs(ordered[before] - target) <= np.abs(ordered[after] - target)
    chosen = np.where(nearer, before, after)
    return np.where(np.abs(ordered[chosen] - target) <= lead / 2, order[chosen], own)


def _spacing(place: npt.NDArray[np.int64], seconds: npt.NDArray[np.int64]) -> str:
    order = np.lexsort((seconds, place))
    step = np.diff(seconds[order])[(np.diff(place[order]) == 0)]
    step = step[step > 0]
    if not len(step):
        return "no place comes at two times"
    return f"times of a place are {np.median(step) / 60:g} min apart as a rule"
