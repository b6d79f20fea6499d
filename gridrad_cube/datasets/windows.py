"""Pairs of windows of one place at near times, at any position within crops."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from gridrad_cube.datasets.loader import Batch
from gridrad_cube.datasets.sampling import draw_uniform, followers
from gridrad_cube.datasets.table import Stratum

logger = logging.getLogger(__name__)

#: How often a patch of each stratum is the center of a window, relative to others of its frame.
_WEIGHTS = {Stratum.plain: 1.0, Stratum.empty: 1.0, Stratum.weak: 3.0, Stratum.echo: 16.0}
#: Streams of random numbers of a window.
_PATCH, _LEAD, _OFFSET, _MOVE = range(4)


class WindowPairs(Dataset[Batch]):
    """Pairs of windows as large as a patch: one at any position in a crop, its partner near the same place at
    a later time.

    A sample is a group of pairs from one frame (a crop of a channel), so that a batch holds many windows of the same
    frames. A group draws clean patches of its frame that have a partner in time, and moves each of them by up
    to half a patch in either direction; the partner's window is moved again. Windows never leave their crop.
    Pixels of rejected and damaged patches are missing. The draws of a group depend only on the seed, the
    epoch (`set_epoch`) and its number. Rows and columns of windows count from the northwestern corner of the
    crop.

    Rows ``[:B]`` of a batch are the first windows, rows ``[B:]`` their partners. ``batch.index`` counts pairs, and
    ``batch.window`` is the position of each window.

    Parameters
    ----------
    dataset
        A `PatchDataset`. With ``on_damage="skip"`` a damaged patch is missing in the windows that it is part of.
    minutes
        Leads of the partners; a pair draws one of those that its patch has. 0 is the same time.
    move
        Largest offset of a partner's window in either direction, in pixels.
    pairs
        Pairs of a group.
    seed
        Of the draws.

    Raises
    ------
    SchemaError
        If no patch has a partner in time.
    """

    def __init__(
        self, dataset: Any, minutes: Sequence[float], *, move: int, pairs: int = 16, seed: int = 0
    ) -> None:
        self.dataset, self.move, self.pairs, self.seed, self.epoch = dataset, move, pairs, seed, 0
        own, table = np.arange(len(dataset)), dataset.table
        #: The partner of each patch at each lead, -1 if it has no partner, (N, leads).
        self._partners = np.stack([_followers(dataset, lead) if lead else own for lead in minutes], axis=1)
        #: Patches that have a partner, in the order of their frames.
        self._patches = np.flatnonzero((self._partners >= 0).any(axis=1))
        rows, columns = dataset.cells
        labels = len(dataset.labels)
        place = (
            (table.crop.astype(np.int64) * rows + table.row) * columns + table.col
        ) * labels + table.channel
        self._keys, self._shape = place, (rows, columns, labels)
        #: Row and column of each patch, (N, 2), from the northwestern corner of its crop.
        self._cell = self._turn(table.crop, np.stack([table.row, table.col], axis=1))
        frame = table.crop[self._patches].astype(np.int64) * labels + table.channel[self._patches]
        order = np.argsort(frame, kind="stable")
        self._patches = self._patches[order]
        _, starts, counts = np.unique(frame[order], return_index=True, return_counts=True)
        groups = -(-counts // pairs)
        #: First patch of each group's frame, in the order of `_patches`, and how many the frame has.
        self._first, self._count = np.repeat(starts, groups), np.repeat(counts, groups)
        weights = np.array([_WEIGHTS[s] for s in Stratum])[table.stratum[self._patches]]
        self._weight = np.concatenate([[0.0], np.cumsum(weights)])
        #: `Stratum` of each group: the highest of its frame.
        self.strata = np.repeat(np.maximum.reduceat(table.stratum[self._patches], starts), groups)

    def __len__(self) -> int:
        return len(self._first)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose windows are drawn. `PatchLoader` calls it.

        Parameters
        ----------
        epoch
            Number of the epoch.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read groups of pairs; see `PatchDataset.__getitems__`."""
        groups = np.asarray(indices, np.int64)
        pair = (groups[:, None] * self.pairs + np.arange(self.pairs)).ravel()
        first, second, top, left = self._draw(pair)
        patch = np.concatenate([first, second])
        codes = self._read(patch, top, left)
        table = self.dataset.table
        return Batch(
            codes=torch.from_numpy(codes),
            index=torch.from_numpy(np.concatenate([pair, pair])),
            channel=torch.from_numpy(table.channel[patch].astype(np.int64)),
            window=torch.from_numpy(np.stack([self._place(patch), self._seconds(patch), top, left], axis=1)),
        )

    def _draw(self, pair: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
        """Return the patches of the first windows and of their partners (B,), and top and left edge of both
        (2 B,).
        """
        group, size = pair // self.pairs, self.dataset.patch
        draw = functools.partial(draw_uniform, self.seed, self.epoch, pair)
        low = self._weight[self._first[group]]
        high = self._weight[self._first[group] + self._count[group]]
        number = np.searchsorted(self._weight, low + draw(_PATCH) * (high - low), side="right") - 1
        first = self._patches[number.clip(0, len(self._patches) - 1)]
        has = self._partners[first] >= 0
        chosen = (draw(_LEAD) * has.sum(axis=1)).astype(np.int64)
        second = self._partners[first, np.argmax(np.cumsum(has, axis=1) > chosen[:, None], axis=1)]
        half = size // 2
        offset = np.rint((2 * draw(_OFFSET, 2) - 1) * half).astype(np.int64)
        moved = offset + np.rint((2 * draw(_MOVE, 2) - 1) * self.move).astype(np.int64)
        edges = []
        for axis in range(2):
            last = (self._shape[axis] - 1) * size
            origin = self._cell[:, axis]
            both = (origin[first] * size + offset[:, axis], origin[second] * size + moved[:, axis])
            edges.append(np.concatenate(both).clip(0, last))
        return first, second, *edges

    def _turn(self, crop: np.ndarray, cell: np.ndarray) -> npt.NDArray[np.int64]:
        """Return the cells (N, 2) of crops from the northwestern corner, for those in the order of the store,
        and the reverse.
        """
        last = np.array(self.dataset.cells) - 1
        return np.where(self.dataset.orientation.of(crop), last - cell, cell).astype(np.int64)

    def _place(self, patch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the window of a grid that a patch's crop is, and of its channel."""
        labels = self._shape[2]
        return (
            self.dataset.crop_places[self.dataset.table.crop[patch]] * labels
            + self.dataset.table.channel[patch]
        )

    def _seconds(self, patch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.dataset.crop_seconds[self.dataset.table.crop[patch]]

    def _read(
        self, patch: npt.NDArray[np.int64], top: npt.NDArray[np.int64], left: npt.NDArray[np.int64]
    ) -> np.ndarray:
        """Return the windows (N, C, patch, patch) from the one, two or four patches that each lies in."""
        size, (rows, columns, labels), table = self.dataset.patch, self._shape, self.dataset.table
        crop, channel = table.crop[patch].astype(np.int64), table.channel[patch]
        pieces = []
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            down, across = top // size + row, left // size + column
            needed = ((top % size > 0) | (row == 0)) & ((left % size > 0) | (column == 0))
            stored = self._turn(crop, np.stack([down, across], axis=1))
            key = ((crop * rows + stored[:, 0]) * columns + stored[:, 1]) * labels + channel
            pieces.append((row, column, np.where(needed, key, -1)))
        wanted = np.unique(np.concatenate([key for *_, key in pieces]))
        place = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        batch = self.dataset.__getitems__(place[self._keys[place] == wanted])
        if batch.damaged is not None:
            logger.warning(
                "%d patches are damaged in the store and count as missing, the first in %s", len(batch.damaged),
                self.dataset.describe(int(batch.damaged[0])),
            )  # fmt: skip
        patches, found = batch.codes.numpy(), self._keys[batch.index.numpy()].tolist()
        number = {key: i for i, key in enumerate(found)}
        out = np.empty((len(patch), *patches.shape[1:]), patches.dtype)
        codes = self.dataset.missing_codes
        out[:] = (codes if self.dataset.planes > 1 else codes[channel][:, None])[..., None, None]
        for row, column, keys in pieces:
            for i, key in enumerate(keys.tolist()):
                if key in number:
                    down, across = _overlap(top[i] % size, size, row), _overlap(left[i] % size, size, column)
                    out[i, :, down[0], across[0]] = patches[number[key], :, down[1], across[1]]
        return out

    def channels_of(self, pair: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the index of the channel of each pair.

        Parameters
        ----------
        pair
            Numbers of pairs.

        Returns
        -------
        Indices, (N,).
        """
        return np.asarray(self.dataset.table.channel[self._patches[self._first[pair // self.pairs]]])

    def describe(self, index: int) -> dict[str, Any]:
        """Return the origin of a pair: a patch of its frame.

        Parameters
        ----------
        index
            Number of the group.

        Returns
        -------
        Values by name.
        """
        return self.dataset.describe(int(self._patches[self._first[index // self.pairs]]))


def _followers(dataset: Any, minutes: float) -> npt.NDArray[np.int64]:
    """Return the partner of each patch at a lead, -1 where it has none."""
    found = followers(dataset, minutes)
    return np.where(found == np.arange(len(found)), -1, found)


def _overlap(offset: int, size: int, second: int) -> tuple[slice, slice]:
    """Return the part of a window that starts ``offset`` pixels into a patch: of the window, and of its first
    or second patch.
    """
    if second:
        return slice(size - offset, size), slice(0, offset)
    return slice(0, size - offset), slice(offset, size)
