"""The table of samples of a selection, from flags, echo fractions and positions. No pixel is read."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.selection import Box, Label, Selection, in_box, times_of

#: Share of the observed pixels of a patch that must be echo for `Stratum.echo`.
_ECHO_FRACTION = 0.01

_CROPS_AT_ONCE = 8192


class Stratum(enum.IntEnum):
    """The amount of echo of a sample: none (empty), less than 1 % of its pixels (weak), or more (echo).

    Samples of channels without echoes are ``plain``.
    """

    plain = 0
    empty = 1
    weak = 2
    echo = 3


@dataclass(frozen=True)
class SampleTable:
    """The position of each sample, one row for each in the order crop, row, col, channel. A row has 17 bytes.

    Attributes
    ----------
    crop, row, col
        Position in the store, int32, (N,).
    channel
        Index of the label, int32, (N,); 0 where channels are stacked.
    stratum
        `Stratum`, uint8, (N,).
    """

    crop: np.ndarray
    row: np.ndarray
    col: np.ndarray
    channel: np.ndarray
    stratum: np.ndarray

    def __len__(self) -> int:
        return len(self.crop)


@dataclass(frozen=True)
class SampleRecord:
    """A record of the samples of a data set, to open it with the same ones after its store has changed.

    Attributes
    ----------
    crops
        Identity of each crop with a sample, in the order of the store, int64, (n,): a hash of its source, scene, time,
        window and pixels.
    cells
        Bits for the samples among (row, col, label) of each crop, packed by ``numpy.packbits``, uint8, (n,
        bytes).
    shape
        Rows, columns and labels.
    """

    crops: np.ndarray
    cells: np.ndarray
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, identities: np.ndarray, crop: np.ndarray, cells: np.ndarray) -> SampleRecord:
        """Record samples: identities of all crops of a store, those with samples, and their cells (row, col, label)."""
        bits = np.packbits(cells.reshape(len(cells), -1), axis=1)
        rows, cols, labels = cells.shape[1:]
        return cls(identities[crop], bits, (rows, cols, labels))

    def find(
        self, identities: np.ndarray, shape: tuple[int, int, int], where: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the recorded samples in a store.

        Parameters
        ----------
        identities
            Identity of each crop of the store, (crops,).
        shape
            Rows, columns and labels of a crop.
        where
            Name of the store, for messages.

        Returns
        -------
        Position in the store of each recorded crop, (n,), and its cells, bool, (n, rows, cols, labels).

        Raises
        ------
        SchemaError
            If the store lacks a crop, has it with other pixels or in another order, or has crops of another
            size.
        """
        order = np.argsort(identities, kind="stable")
        found = order[np.searchsorted(identities, self.crops, sorter=order).clip(max=len(order) - 1)]
        lost = int((identities[found] != self.crops).sum())
        if tuple(shape) != tuple(self.shape):
            problem = f"its crops have {tuple(shape)} rows, columns and channels, not {tuple(self.shape)}"
        elif lost:
            problem = f"{lost} of {len(self.crops)} crops are missing, or have other pixels"
        elif (np.diff(found) <= 0).any():
            problem = "its crops are in another order"
        else:
            bits = np.unpackbits(self.cells, axis=1, count=int(np.prod(self.shape)))
            return found, bits.reshape(len(found), *self.shape).astype(bool)
        raise SchemaError(
            f"{where}: the store does not hold the samples that the run was trained on: {problem}. Resume on the store "
            "as it was, or pass another `out` to start a new run (`init_from` starts it from these weights)."
        )


def identify_crops(dataset: xr.Dataset, *content: np.ndarray) -> npt.NDArray[np.int64]:
    """Return a hash of source, scene, time and window of each crop of a store, and of columns (crop,) of
    further content.
    """
    names = ["source", "scene", "time", "y_origin", "x_origin"]
    columns = {name: dataset[name].values for name in names if name in dataset}
    columns["time"] = columns["time"].astype("datetime64[s]").astype(np.int64)
    frame = pd.DataFrame(columns | {f"content {i}": column for i, column in enumerate(content)})
    return np.asarray(pd.util.hash_pandas_object(frame, index=False).to_numpy().view(np.int64))


def chosen_crops(dataset: xr.Dataset, time: Any, exclude_time: Any) -> npt.NDArray[np.bool_]:
    """Return which crops were written and are in the requested time, (crop,); see `Selection.in_time`."""
    return Selection(time=time, exclude_time=exclude_time).in_time(times_of(dataset))


def build_table(
    dataset: xr.Dataset,
    labels: Sequence[Label],
    masks: Sequence[int],
    crops: np.ndarray,
    *,
    stacked: bool,
    bbox: Box | None,
) -> SampleTable:
    """List the clean patches of chosen crops (bool, (crop,)) of a cube, a block of crops at a time.

    ``masks`` has the rejecting flags of each label. With ``stacked``, a sample is a patch of all channels,
    all of them clean. The center of a patch must be in ``bbox``.
    """
    parts = [[np.empty(0, np.int32)] * 4 + [np.empty(0, np.uint8)]]
    for block, inside in _blocks(dataset, crops, bbox):
        clean, strata = _clean(dataset, block, inside, labels, masks)
        if stacked:
            clean = np.asarray(clean.all(axis=-1, keepdims=True))
            strata = strata.max(axis=-1, keepdims=True)
        crop, row, col, channel = (column.astype(np.int32) for column in np.nonzero(clean))
        parts.append([crop + np.int32(block.start), row, col, channel, strata[clean]])
    return SampleTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _blocks(
    dataset: xr.Dataset, crops: np.ndarray, bbox: Box | None
) -> Iterator[tuple[slice, npt.NDArray[np.bool_]]]:
    """Yield the blocks of crops, and which of their patches lie in chosen crops and in the box, (crop, row,
    col).
    """
    cells = (dataset.sizes["row"], dataset.sizes["col"])
    for start in range(0, len(crops), _CROPS_AT_ONCE):
        block = slice(start, min(start + _CROPS_AT_ONCE, len(crops)))
        if crops[block].any():
            inside = np.broadcast_to(crops[block, None, None], (block.stop - start, *cells))
            if bbox is not None:
                here = dataset[["latitude", "longitude"]].isel(crop=block)
                inside = inside & in_box(here["latitude"].values, here["longitude"].values, bbox)
            yield block, inside


def _clean(
    dataset: xr.Dataset, block: slice, inside: np.ndarray, labels: Sequence[Label], masks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which patches are clean, and the stratum of each, (crop, row, col, label)."""
    clean = np.empty((*inside.shape, len(labels)), bool)
    strata = np.zeros(clean.shape, np.uint8)
    for variable in dict.fromkeys(label.variable for label in labels):  # all altitudes lie in one chunk
        flags = dataset[f"{variable}_flags"].isel(crop=block).values
        fraction = dataset.get(f"{variable}_echo_fraction")
        echo = None if fraction is None else fraction.isel(crop=block).values
        for number, (label, mask) in enumerate(zip(labels, masks, strict=True)):
            if label.variable == variable:
                level = _level(label)
                clean[..., number] = inside & ((flags[level] & np.uint16(mask)) == 0)
                if echo is not None:
                    strata[..., number] = Stratum.empty + (echo[level] > 0) + (echo[level] >= _ECHO_FRACTION)
    return clean, strata


def _level(label: Label) -> tuple[Any, ...]:
    """Return the index that picks the altitude of a label from values (crop, [altitude,] row, col)."""
    return (slice(None),) if label.altitude is None else (slice(None), label.altitude)


def explain_empty(
    dataset: xr.Dataset,
    labels: Sequence[Label],
    masks: Sequence[int],
    crops: np.ndarray,
    bbox: Box | None,
    where: str,
) -> SchemaError:
    """Return a text on why no patch is clean: the number that each flag rejects. Parameters are as of
    `build_table`.
    """
    candidates, counts = 0, Counter[Flag]()
    for block, inside in _blocks(dataset, crops, bbox):
        candidates += int(inside.sum()) * len(labels)
        for label, mask in zip(labels, masks, strict=True):
            flags = dataset[f"{label.variable}_flags"].isel(crop=block).values[_level(label)][inside]
            counts.update({f: int(np.count_nonzero(flags & np.uint16(f))) for f in Flag if mask & f})
    reasons = ", ".join(f"{flag.name} {n}" for flag, n in counts.items() if n) or "none"
    return SchemaError(
        f"{where}: no clean patch of {[label.name for label in labels]}: {int(crops.sum())} crops chosen (of "
        f"{len(crops)}), {candidates} patches in place; rejected by flag: {reasons}. Pass other channels, "
        "another time or bbox, or reject=[...] with fewer flags."
    )
