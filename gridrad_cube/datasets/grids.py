"""Grids of patch embeddings as samples: what the second level trains on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.utils.data import Dataset

from gridrad_cube.datasets.loader import Batch
from gridrad_cube.datasets.table import chosen_crops
from gridrad_cube.models import constants
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import Reject, choose_labels, labels_of, reject_masks
from gridrad_cube.store import EmbeddingReader, open_embeddings, store_info

#: Grids with fewer cells along an edge give no views that differ.
SMALLEST_GRID = 4
#: Embeddings of up to this many bytes are kept in memory.
IN_MEMORY_BYTES = 2**30

_CROPS_AT_ONCE = 256


class GridDataset(Dataset[Batch]):
    """Grids of patch embeddings, one sample a crop and channel.

    Embeddings of up to 1 GiB (float16, samples only) are read into memory at the first use, in each process;
    larger ones stay on disk and are read a grid at a time.

    Parameters
    ----------
    embedding_store
        A finished embedding store of level 256: path or URL.
    channels
        Labels, or names of variables, meaning all their altitudes; None takes all.
    reject
        Flags that make a cell count as not valid: None for each channel's default, names, or a mask.
    time
        ``(start, stop)``, UTC, stop not included; or as in `gridrad_cube.selection.Selection`.
    normalization
        A checkpoint's ``{"mean": [...], "std": [...]}`` of the features; taken from the valid cells of these
        samples if None.
    in_memory
        Whether to keep the embeddings in memory; None decides by their size.

    Attributes
    ----------
    labels
        The channel labels, in the order of channel indices.
    shape
        Features, rows and columns of a sample.

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
        normalization: Mapping[str, Sequence[float]] | None = None,
        in_memory: bool | None = None,
    ) -> None:
        self.store = os.fspath(embedding_store)
        self._opened: xr.Dataset | None = None
        self._kept: np.ndarray | None = None
        self._reader = EmbeddingReader(self.store)
        dataset = self._dataset
        info = store_info(embedding_store, "embeddings")
        _check_level(dataset, info, self.store)
        self.shape = (dataset.sizes["feature"], dataset.sizes["row"], dataset.sizes["col"])
        available = labels_of(dataset)
        chosen = choose_labels(available, channels, self.store)
        self.labels = tuple(label.name for label in chosen)
        self._columns = np.array([available.index(label) for label in chosen])
        masks = reject_masks(chosen, reject)
        #: Rejecting bits of each label.
        self.reject = dict(zip(self.labels, masks, strict=True))
        crops = np.flatnonzero(chosen_crops(dataset, time))
        self.crop, self.channel, self.valid = self._table(crops, masks)
        if not len(self.crop):
            raise SchemaError(
                f"{self.store}: no grid of {list(self.labels)} has a valid cell, of {len(crops)} crops. Pass "
                "other channels or time, or reject=[...] with fewer flags."
            )
        if in_memory is None:
            in_memory = len(self) * int(np.prod(self.shape)) * 2 <= IN_MEMORY_BYTES
        self.in_memory = in_memory
        self._normalization = (
            None if normalization is None else _checked(normalization, self.shape[0], self.store)
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_kept": None}

    def __len__(self) -> int:
        return len(self.crop)

    def __repr__(self) -> str:
        return f"GridDataset({self.store!r}, {len(self)} grids {self.shape} of {list(self.labels)})"

    @property
    def _dataset(self) -> xr.Dataset:
        if self._opened is None:
            self._opened = open_embeddings(self.store)
        return self._opened

    def _table(self, crops: np.ndarray, masks: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples with a valid cell: crop, channel index, valid cells."""
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        bits = np.array(masks, np.uint16)[None, :, None, None]
        for block in np.split(crops, range(4096, len(crops), 4096)):
            if not len(block):
                continue
            flags = self._dataset["flags"].isel(crop=slice(block[0], block[-1] + 1)).values
            valid = (flags[block - block[0]][:, self._columns] & bits) == 0
            crop, channel = np.nonzero(valid.any(axis=(2, 3)))
            parts.append((block[crop].astype(np.int32), channel.astype(np.int32), valid[crop, channel]))
        if not parts:
            return np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, *self.shape[1:]), bool)
        crop, channel, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
        return crop, channel, valid

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All samples in order: (samples, embeddings (n, row, col, feature)), a block of crops at a time."""
        first = 0
        while first < len(self):
            start = int(self.crop[first])
            last = int(np.searchsorted(self.crop, start + _CROPS_AT_ONCE))
            yield slice(first, last), self._reader.read(*self._places(slice(first, last)))
            first = last

    def _places(self, samples: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column in the store of samples."""
        return self.crop[samples], self._columns[self.channel[samples]]

    def _read(self, index: np.ndarray) -> np.ndarray:
        """Embeddings of samples, (n, row, col, feature)."""
        if not self.in_memory:
            return self._reader.read(*self._places(index))
        if self._kept is None:
            features, rows, cols = self.shape
            kept = np.empty((len(self), rows, cols, features), self._dataset["embedding"].dtype)
            for samples, block in self._blocks():
                kept[samples] = block
            self._kept = kept
        return self._kept[index]

    @property
    def strata(self) -> int:
        """Number of samples, for `EpochSampler`: each comes once an epoch."""
        return len(self)

    @property
    def normalization(self) -> dict[str, list[float]]:
        """Mean and standard deviation of every feature over the valid cells; keep it in the checkpoint."""
        if self._normalization is None:
            self._normalization = self._fit()
        return self._normalization

    def _fit(self) -> dict[str, list[float]]:
        count, total, squares = 0, np.zeros(self.shape[0]), np.zeros(self.shape[0])
        shift: np.ndarray | None = None
        for samples, block in self._blocks():
            cells = block[self.valid[samples]].astype(np.float64)
            cells = cells[np.isfinite(cells).all(axis=1)]
            if shift is None and len(cells):
                shift = cells.mean(axis=0)  # sums of squares about a mean nearby lose no digits
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
        std[flat] = 1.0  # a dead feature becomes 0
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
        index = np.asarray(indices, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"{self!r}: no sample {index.min()} or {index.max()}")
        return Batch(
            torch.from_numpy(self._read(index)).permute(0, 3, 1, 2),
            torch.from_numpy(index.copy()),
            torch.from_numpy(self.channel[index].astype(np.int64)),
            torch.from_numpy(self.valid[index]),
        )

    def decode(
        self, batch: Batch, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised features and valid cells of a batch, on its device; see `decode_grids`."""
        assert batch.valid is not None
        return decode_grids(batch.codes, batch.valid, self.normalization, dtype=dtype)

    def describe(self, index: int) -> dict[str, Any]:
        """Where a sample comes from: store, crop, channel, time, source file."""
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
    """Standardise grids of embeddings, alike in training and embedding, on the device where they are.

    Parameters
    ----------
    codes
        Embeddings, shape (B, D, rows, cols).
    valid
        Cells that count, bool, (B, rows, cols).
    normalization
        ``mean`` and ``std`` of the D features.

    Returns
    -------
    ``values`` (B, D, rows, cols), 0 in cells that do not count, and the cells that do: those of ``valid``
    whose features are all finite.
    """
    values = codes.to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (
        constants(tuple(normalization[name]), codes.device)[:, None, None] for name in ("mean", "std")
    )
    if len(mean) != codes.shape[1]:
        raise SchemaError(f"decode_grids: embeddings have {codes.shape[1]} features; expected {len(mean)}")
    cells = valid & values.isfinite().all(dim=1)
    values = torch.where(cells[:, None], (values - mean) / std, 0.0)
    return values.to(dtype), cells


def _check_level(dataset: xr.Dataset, info: Mapping[str, Any], where: str) -> None:
    if "row" not in dataset["embedding"].dims:
        raise SchemaError(
            f"{where}: holds embeddings of level {info.get('level')!r}, one a crop; expected level '256', "
            "a grid of them. Pass the store that gridrad-cube embed made from the patches."
        )
    rows, cols = dataset.sizes["row"], dataset.sizes["col"]
    if min(rows, cols) < SMALLEST_GRID:
        raise SchemaError(
            f"{where}: the grids are too small for views that differ, got {rows} x {cols} cells; expected "
            f"at least {SMALLEST_GRID} x {SMALLEST_GRID}. Embed overlapping patches (gridrad-cube embed "
            "--stride 128), or preprocess with a larger --crop."
        )


def _checked(
    normalization: Mapping[str, Sequence[float]], features: int, where: str
) -> dict[str, list[float]]:
    out = {name: [float(v) for v in normalization[name]] for name in ("mean", "std")}
    if len(out["mean"]) != features or len(out["std"]) != features:
        raise SchemaError(
            f"{where}: embeddings have {features} features; expected {len(out['mean'])}, as the checkpoint "
            "was trained on. Pass the embeddings of the network that it goes with."
        )
    return out
