"""Patches of a cube as samples, read lazily in batches and left packed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch.utils.data import Dataset

from gridrad_cube.datasets.batches import Batch
from gridrad_cube.datasets.normalization import Normalization, decode, normalizations
from gridrad_cube.datasets.table import (
    Box,
    Label,
    SampleTable,
    TimeRange,
    build_table,
    choose_labels,
    chosen_crops,
    explain_empty,
    labels_of,
    masks_of,
)
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.store import PatchReader, cube_info, open_packed

ChannelMode = Literal["each", "stack"]


class PatchDataset(Dataset[Batch]):
    """Clean patches of a cube, for training.

    Only flags, echo fractions and positions are read at first; pixels when samples are asked for, whole
    batches at a time. Picklable: each process opens the store for itself. After a fork a data set that has
    read before refuses to go on; use threads (`PatchLoader`), or a spawn or forkserver context.

    Parameters
    ----------
    store
        A finished cube: path or URL.
    channels
        Labels (``"reflectivity@3.0km"``), or names of variables, meaning all their altitudes; None takes all.
    reject
        Flags that keep a patch out: None for each channel's default, names, or a mask. A channel that a crop
        lacks always rejects.
    channel_mode
        ``"each"``: one sample a patch and label. ``"stack"``: one sample a patch, of all labels, where all
        are clean.
    time
        ``(start, stop)``, UTC; start included, stop not, so that neighbouring ranges share no crop.
    bbox
        ``(west, south, east, north)``: patches whose centre lies in it; west above east crosses the date
        line.
    coarsen
        Edge of the blocks that `decode` averages.

    Attributes
    ----------
    labels
        The channel labels, in the order of channel indices.
    table
        A `SampleTable`: crop, row, col, channel, stratum of each sample.

    Raises
    ------
    SchemaError
        If the store is of another kind, lacks a channel, or no patch is left (with the count of each flag).
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        channels: str | Iterable[str] | None = None,
        reject: int | Flag | Iterable[str] | None = None,
        channel_mode: ChannelMode = "each",
        time: TimeRange | None = None,
        bbox: Box | None = None,
        coarsen: int = 1,
    ) -> None:
        if channel_mode not in get_args(ChannelMode):
            raise SchemaError(f"channel_mode: got {channel_mode!r}; expected one of {get_args(ChannelMode)}")
        self.store = os.fspath(store)
        info = cube_info(store)
        self.patch, self.coarsen, self.channel_mode = int(info["patch"]), int(coarsen), channel_mode
        if self.coarsen < 1 or self.patch % self.coarsen:
            raise SchemaError(f"coarsen: got {coarsen}; expected a divisor of the patch, {self.patch} px")
        self._reader: PatchReader | None = None
        self._opened: xr.Dataset | None = None
        self._normalizations: dict[str, Normalization] | None = None
        dataset = self._dataset
        self._labels = choose_labels(labels_of(dataset, list(info["channels"])), channels, self.store)
        self.labels = tuple(label.name for label in self._labels)
        masks = masks_of(self._labels, reject)
        #: Rejecting bits of each label.
        self.reject = dict(zip(self.labels, masks, strict=True))
        crops = chosen_crops(dataset, time, self.store)
        stacked = channel_mode == "stack"
        self.table: SampleTable = build_table(dataset, self._labels, masks, crops, stacked=stacked, bbox=bbox)
        if not len(self.table):
            raise explain_empty(dataset, self._labels, masks, crops, bbox, self.store)
        dtypes = {dataset[label.variable].dtype for label in self._labels}
        self._dtype = np.result_type(*dtypes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None, "_opened": None}

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"PatchDataset({self.store!r}, {len(self)} samples of {list(self.labels)}, {self.channel_mode!r})"
        )

    @property
    def _dataset(self) -> xr.Dataset:
        if self._opened is None:
            self._opened = open_packed(self.store)
        return self._opened

    @property
    def strata(self) -> np.ndarray:
        """`Stratum` of each sample, for `EpochSampler`."""
        return self.table.stratum

    @property
    def planes(self) -> int:
        """Channels of one sample."""
        return len(self.labels) if self.channel_mode == "stack" else 1

    @property
    def normalizations(self) -> dict[str, Normalization]:
        """From the store's training statistics; assign a checkpoint's to take those."""
        if self._normalizations is None:
            self._normalizations = normalizations(self.store, self.labels)
        return self._normalizations

    @normalizations.setter
    def normalizations(self, like: Mapping[str, Normalization]) -> None:
        self._normalizations = normalizations(self.store, self.labels, like=like)

    def decode(
        self, batch: Batch, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised values and valid pixels of a batch, on its device; see `decode`."""
        return decode(batch.codes, batch.channel, self.normalizations, coarsen=self.coarsen, dtype=dtype)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read samples, packed.

        Raises
        ------
        MissingChunkError
            If a patch is missing or altered; names it.
        """
        index = np.asarray(indices, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"{self!r}: no sample {index.min()} or {index.max()}")
        where = np.stack(
            [column[index] for column in (self.table.crop, self.table.row, self.table.col)], axis=1
        )
        channel = self.table.channel[index].astype(np.int64)
        codes = np.empty((len(index), self.planes, self.patch, self.patch), self._dtype)
        if self.channel_mode == "stack":
            self._read_stacked(where, codes)
        else:
            self._read_each(where, channel, codes)
        return Batch(torch.from_numpy(codes), torch.from_numpy(index.copy()), torch.from_numpy(channel))

    def _read(self, variable: str, index: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if self._reader is None:
            self._reader = PatchReader(self.store)
        return self._reader.read(variable, index, out)

    def _variables(self) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        for number, label in enumerate(self._labels):
            out.setdefault(label.variable, []).append(number)
        return out

    def _read_each(self, where: np.ndarray, channel: np.ndarray, codes: np.ndarray) -> None:
        for variable, numbers in self._variables().items():
            rows = np.flatnonzero(np.isin(channel, numbers))
            if not len(rows):
                continue
            index = _with_altitude(where[rows], [self._labels[c] for c in channel[rows]])
            if len(rows) == len(codes):
                self._read(variable, index, codes[:, 0])
            else:
                codes[rows, 0] = self._read(variable, index)

    def _read_stacked(self, where: np.ndarray, codes: np.ndarray) -> None:
        shape = (self.patch, self.patch)
        for variable, numbers in self._variables().items():
            labels = [self._labels[n] for n in numbers] * len(where)
            index = _with_altitude(np.repeat(where, len(numbers), axis=0), labels)
            if len(numbers) == codes.shape[1]:
                self._read(variable, index, codes.reshape(-1, *shape))
            else:
                codes[:, numbers] = self._read(variable, index).reshape(len(where), len(numbers), *shape)

    def describe(self, index: int) -> dict[str, Any]:
        """Where a sample comes from: store, crop, row, col, channel, time, position, source file.

        ``channel`` is its label, or the list of them where they are stacked.
        """
        table = self.table
        crop, row, col = int(table.crop[index]), int(table.row[index]), int(table.col[index])
        here = self._dataset[["time", "latitude", "longitude", "source"]].isel(crop=crop)
        place = here[["latitude", "longitude"]].isel(row=row, col=col)
        each = self.channel_mode == "each"
        return {
            "store": self.store,
            "crop": crop,
            "row": row,
            "col": col,
            "channel": self.labels[int(table.channel[index])] if each else list(self.labels),
            "time": here["time"].values.astype("datetime64[s]"),
            "latitude": float(place["latitude"]),
            "longitude": float(place["longitude"]),
            "source": str(here["source"].values),
        }


def _with_altitude(where: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    if labels[0].altitude is None:
        return where
    heights = np.array([label.altitude for label in labels])
    return np.stack([where[:, 0], heights, where[:, 1], where[:, 2]], axis=1)
