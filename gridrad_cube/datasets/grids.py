"""Grids of patch embeddings as samples, the input of training at level 2k."""

from __future__ import annotations

import functools
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.utils.data import Dataset

from gridrad_cube.datasets.loader import Batch
from gridrad_cube.datasets.table import SampleRecord, chosen_crops, identify_crops
from gridrad_cube.geometry import reverse
from gridrad_cube.models import cached_tensor
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import Reject, choose_labels, labels_of, reject_masks
from gridrad_cube.store import EmbeddingReader, Orientation, open_embeddings, store_info

#: Smallest number of cells along an edge. Views of smaller grids do not differ.
_SMALLEST_GRID = 4
#: Embeddings of at most this many bytes are kept in memory.
_IN_MEMORY_BYTES = 2**30

_CROPS_AT_ONCE = 256


class GridDataset(Dataset[Batch]):
    """Grids of patch embeddings, one sample per crop and channel, north up and east right.

    The embeddings of the samples are read into memory at the first use, in each process, if they take up to 1 GiB.
    Larger ones are read a batch at a time.

    Parameters
    ----------
    embedding_store
        A finished embedding store of level 256: path or URL.
    channels
        Labels, or names of variables for all their altitudes; None for all.
    reject
        Flags that make a cell not valid: names, a mask, ``()`` for none; None for the default of each channel.
    time
        ``(start, stop)``, UTC, stop not included; or as in `gridrad_cube.selection.Selection`.
    exclude_time
        Times to exclude, in the same form.
    normalization
        The ``{"mean": [...], "std": [...]}`` of the features that a checkpoint keeps; None computes it from the
        valid cells of these samples.
    samples
        The samples of an earlier data set (`record`), whose store may have grown or been reflagged since.
        They replace ``reject``, ``time`` and ``exclude_time``.

    Attributes
    ----------
    labels
        The channel labels, in the order of channel indices.
    shape
        Features, rows and columns of a sample.
    crop, channel
        Position of each sample in the store, and index of its label, int32, (N,).
    valid
        Cells of each sample that count, bool, (N, rows, cols), in the order of the store.

    Raises
    ------
    SchemaError
        If the store is of another kind or level, its grids are too small, a channel is missing, or no
        grid has a valid cell.
    """

    def __init__(
        self,
        embedding_store: str | os.PathLike[str],
        *,
        channels: str | Iterable[str] | None = None,
        reject: Reject = None,
        time: Any = None,
        exclude_time: Any = None,
        normalization: Mapping[str, Sequence[float]] | None = None,
        samples: SampleRecord | None = None,
    ) -> None:
        self.store = os.fspath(embedding_store)
        self._reader = EmbeddingReader(self.store)
        dataset = self._dataset
        _check_grids(dataset, self.store)
        self.shape = (dataset.sizes["feature"], dataset.sizes["row"], dataset.sizes["col"])
        available = labels_of(dataset)
        chosen = choose_labels(available, channels, self.store)
        self.labels = tuple(label.name for label in chosen)
        self._columns = np.array([available.index(label) for label in chosen])
        masks = reject_masks(chosen, reject)
        #: Rejecting bits of each label.
        self.reject = dict(zip(self.labels, masks, strict=True))
        crops = np.flatnonzero(chosen_crops(dataset, time, exclude_time))
        if samples is None:
            self.crop, self.channel, self.valid = self._table(crops, masks)
        else:
            crops, cells = samples.find(self._identities, self._record_shape, self.store)
            self.crop, self.channel, self.valid = _list_grids(crops, cells.transpose(0, 3, 1, 2))
        if not len(self.crop):
            raise SchemaError(
                f"{self.store}: no grid of {list(self.labels)} has a valid cell, of {len(crops)} crops. Pass "
                "other channels or time, or reject=[...] with fewer flags."
            )
        if normalization is not None:
            self.normalization = {n: [float(v) for v in normalization[n]] for n in ("mean", "std")}
            expected = {len(values) for values in self.normalization.values()}
            if expected != {self.shape[0]}:
                raise SchemaError(
                    f"{self.store}: embeddings have {self.shape[0]} features; expected {max(expected)}, as the "
                    "checkpoint was trained on. Pass the embeddings of the network that it goes with."
                )

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_dataset", "_kept", "orientation")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __len__(self) -> int:
        return len(self.crop)

    def __repr__(self) -> str:
        return f"GridDataset({self.store!r}, {len(self)} grids {self.shape} of {list(self.labels)})"

    @functools.cached_property
    def _dataset(self) -> xr.Dataset:
        return open_embeddings(self.store)

    @functools.cached_property
    def orientation(self) -> Orientation:
        """The crops that are reversed when they are read, so that north is up and east is right."""
        return Orientation(self._dataset)

    @functools.cached_property
    def _kept(self) -> np.ndarray | None:
        """Embeddings of all samples, unless they take too much memory."""
        if 2 * len(self) * math.prod(self.shape) > _IN_MEMORY_BYTES:
            return None
        return np.concatenate([block for _, block in self._blocks()])

    def _table(self, crops: np.ndarray, masks: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the crop, channel index and valid cells of each sample with a valid cell."""
        parts = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, *self.shape[1:]), bool))]
        bits = np.array(masks, np.uint16)[None, :, None, None]
        for block in np.split(crops, range(4096, len(crops), 4096)):
            flags = self._dataset["flags"].isel(crop=slice(block[0], block[-1] + 1)).values
            valid = (flags[block - block[0]][:, self._columns] & bits) == 0
            parts.append(_list_grids(block, valid))
        crop, channel, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
        return crop, channel, valid

    @property
    def _record_shape(self) -> tuple[int, int, int]:
        return (*self.shape[1:], len(self.labels))

    @functools.cached_property
    def _identities(self) -> np.ndarray:
        """Identity of each crop of the store, by its place, its time and the network that embedded it, (crop,)."""
        info = store_info(self.store, "embeddings")
        network = "{checkpoint} {pool} {dtype} {stride} {patch}".format_map(defaultdict(str, info))
        return identify_crops(self._dataset, np.full(self._dataset.sizes["crop"], network))

    def record(self) -> SampleRecord:
        """Return a record of the samples, to open the same ones (``samples``) after the store has changed.

        Returns
        -------
        The record.
        """
        crop, number = np.unique(self.crop, return_inverse=True)
        cells = np.zeros((len(crop), len(self.labels), *self.shape[1:]), bool)
        cells[number, self.channel] = self.valid
        return SampleRecord.of(self._identities, crop, cells.transpose(0, 2, 3, 1))

    def _read(self, samples: slice | np.ndarray) -> np.ndarray:
        """Return the embeddings of samples from the store, (n, row, col, feature)."""
        return self._reader.read(self.crop[samples], self._columns[self.channel[samples]])

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield all samples in order, and their embeddings, a block of crops at a time."""
        first = 0
        while first < len(self):
            stop = int(np.searchsorted(self.crop, self.crop[first] + _CROPS_AT_ONCE))
            yield slice(first, stop), self._read(slice(first, stop))
            first = stop

    @property
    def strata(self) -> int:
        """Number of samples, for `EpochSampler`: each comes once per epoch."""
        return len(self)

    @functools.cached_property
    def normalization(self) -> dict[str, list[float]]:
        """Mean and standard deviation of every feature over the valid cells; keep it in the checkpoint."""
        count, total, squares = 0, np.zeros(self.shape[0]), np.zeros(self.shape[0])
        shift: np.ndarray | None = None
        for samples, block in self._blocks():
            cells = block[self.valid[samples]].astype(np.float64)
            cells = cells[np.isfinite(cells).all(axis=1)]
            if shift is None and len(cells):
                shift = cells.mean(axis=0)  # sums of squares around a nearby mean keep their digits
            if shift is not None:
                count += len(cells)
                total += (cells - shift).sum(axis=0)
                squares += ((cells - shift) ** 2).sum(axis=0)
        if shift is None:
            raise SchemaError(
                f"{self.store}: every embedding of {list(self.labels)} is NaN; run gridrad-cube embed again"
            )
        mean = shift + total / count
        std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))
        flat = std <= 1e-6 * np.abs(mean)
        if flat.all():
            raise SchemaError(
                f"{self.store}: all {count} embeddings are alike, got a standard deviation of 0 in every "
                "feature. The network that made them has collapsed: train it again."
            )
        std[flat] = 1.0  # a feature that never changes becomes 0
        return {"mean": mean.tolist(), "std": std.tolist()}

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read grids: ``codes`` (B, D, rows, cols) as stored, ``valid`` (B, rows, cols).

        Raises
        ------
        MissingChunkError
            If embeddings are missing, truncated or altered; names the crop and the channel.
        """
        index = np.array(indices, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"{self!r}: no sample {index.min()} or {index.max()}")
        flips = self.orientation.of(self.crop[index])
        embeddings = self._read(index) if self._kept is None else self._kept[index]
        embeddings, valid = reverse(embeddings, flips, rows=-3), reverse(self.valid[index], flips)
        return Batch(
            torch.from_numpy(embeddings).permute(0, 3, 1, 2),
            torch.from_numpy(index),
            torch.from_numpy(self.channel[index].astype(np.int64)),
            torch.from_numpy(valid),
        )

    def decode(
        self, batch: Batch, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the standardized features and valid cells of a batch, on its device; see `decode_grids`.

        Parameters
        ----------
        batch
            Batch of this data set.
        dtype
            Data type of the values.

        Returns
        -------
        Values (B, D, rows, cols) and cells (B, rows, cols).
        """
        assert batch.valid is not None
        return decode_grids(batch.codes, batch.valid, self.normalization, dtype=dtype)

    def positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the latitude and longitude (means over cells), time (``datetime64[s]``) and channel index of
        each sample.

        Returns
        -------
        Arrays of shape (N,).
        """
        latitude, longitude = (
            self._dataset[name].variable.astype(np.float64).mean(("row", "col")).values[self.crop]
            for name in ("latitude", "longitude")
        )
        times = self._dataset["time"].values.astype("datetime64[s]")
        return latitude, longitude, times[self.crop], self.channel

    def describe(self, index: int) -> dict[str, Any]:
        """Return the origin of a sample: store, crop, channel, time, source file.

        Parameters
        ----------
        index
            Number of the sample.

        Returns
        -------
        Values by name.
        """
        crop = int(self.crop[index])
        here = self._dataset[["time", "source"]].isel(crop=crop)
        return {
            "store": self.store,
            "crop": crop,
            "channel": self.labels[int(self.channel[index])],
            "time": here["time"].values.astype("datetime64[s]"),
            "source": str(here["source"].values),
        }


def decode_grids(
    codes: torch.Tensor,
    valid: torch.Tensor,
    normalization: Mapping[str, Sequence[float]],
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardize grids of embeddings, on the device where they are; training and embedding share this.

    Parameters
    ----------
    codes
        Embeddings, shape (B, D, rows, cols).
    valid
        Cells that count, bool, (B, rows, cols).
    normalization
        ``mean`` and ``std`` of the D features.
    dtype
        Data type of the values.

    Returns
    -------
    values : (B, D, rows, cols)
        0 in cells that do not count.
    cells : bool, (B, rows, cols)
        Cells of ``valid`` whose features are all finite.

    Raises
    ------
    SchemaError
        If ``normalization`` is of another number of features.
    """
    values = codes.to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (
        cached_tensor(tuple(normalization[name]), codes.device)[:, None, None] for name in ("mean", "std")
    )
    if len(mean) != codes.shape[1]:
        raise SchemaError(f"decode_grids: embeddings have {codes.shape[1]} features; expected {len(mean)}")
    cells = valid & values.isfinite().all(dim=1)
    values = torch.where(cells[:, None], (values - mean) / std, 0.0)
    return values.to(dtype), cells


def _list_grids(crops: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the crop, channel and valid cells of the samples of some crops, from the valid cells (crop,
    channel, row, col).
    """
    crop, channel = np.nonzero(valid.any(axis=(2, 3)))
    return crops[crop].astype(np.int32), channel.astype(np.int32), valid[crop, channel]


def _check_grids(dataset: xr.Dataset, where: str) -> None:
    if "row" not in dataset["embedding"].dims:
        level = store_info(where, "embeddings").get("level")
        raise SchemaError(
            f"{where}: holds embeddings of level {level!r}, one a crop; expected level '256', "
            "a grid of them. Pass the store that gridrad-cube embed made from the patches."
        )
    rows, cols = dataset.sizes["row"], dataset.sizes["col"]
    if min(rows, cols) < _SMALLEST_GRID:
        raise SchemaError(
            f"{where}: the grids are too small for views that differ, got {rows} x {cols} cells; expected "
            f"at least {_SMALLEST_GRID} x {_SMALLEST_GRID}. Embed overlapping patches (gridrad-cube embed "
            "`stride=128`), or preprocess with a larger `crop`."
        )
