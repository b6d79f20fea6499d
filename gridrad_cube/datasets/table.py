"""Which patches are samples: the index table of a selection, from the flags and fractions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.datasets.sampling import ECHO_FRACTION, Stratum
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.selection import Box, Label, Selection, in_box

_CROPS_AT_ONCE = 8192


@dataclass(frozen=True)
class SampleTable:
    """One row a sample, 17 bytes each: 10.8 million patches (100,000 crops of 108) are 184 MB.

    ``channel`` is the index of the label (0 where channels are stacked), ``stratum`` a `Stratum`.
    Rows are in the order crop, row, col, channel.
    """

    crop: np.ndarray
    row: np.ndarray
    col: np.ndarray
    channel: np.ndarray
    stratum: np.ndarray

    def __len__(self) -> int:
        return len(self.crop)


def chosen_crops(dataset: xr.Dataset, time: Any) -> np.ndarray:
    """Which crops were written and lie in the time asked for, bool, (crop,); see `Selection.in_time`."""
    return Selection(time=time).in_time(_times(dataset))


def _times(dataset: xr.Dataset) -> np.ndarray:
    """Times of the crops; NaT where a crop was not written."""
    written = dataset["status"].values == 0
    return np.where(written, dataset["time"].values.astype("datetime64[s]"), np.datetime64("NaT", "s"))


def build_table(
    dataset: xr.Dataset,
    labels: Sequence[Label],
    masks: Sequence[int],
    crops: np.ndarray,
    *,
    stacked: bool,
    bbox: Box | None,
) -> SampleTable:
    """List the clean patches, a block of crops at a time. Reads flags, echo fractions and positions only."""
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    for block, place in _blocks(dataset, crops, bbox):
        clean, strata = _clean(dataset, block, place, labels, masks)
        if stacked:
            clean = np.asarray(clean.all(axis=-1, keepdims=True))
            strata = strata.max(axis=-1, keepdims=True)
        flat = np.flatnonzero(clean)
        crop, row, col, channel = np.unravel_index(flat, clean.shape)
        for column, values in zip(columns, (crop + block.start, row, col, channel), strict=False):
            column.append(values.astype(np.int32))
        columns[4].append(strata.reshape(-1)[flat])
    dtypes = [np.int32] * 4 + [np.uint8]
    return SampleTable(
        *(np.concatenate(c) if c else np.empty(0, t) for c, t in zip(columns, dtypes, strict=True))
    )


def _blocks(dataset: xr.Dataset, crops: np.ndarray, bbox: Box | None) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of crops with something chosen, and which of their patches are, (crop, row, col)."""
    cells = (dataset.sizes["row"], dataset.sizes["col"])
    for start in range(0, len(crops), _CROPS_AT_ONCE):
        block = slice(start, min(start + _CROPS_AT_ONCE, len(crops)))
        if not crops[block].any():
            continue
        place: npt.NDArray[np.bool_] = np.broadcast_to(crops[block, None, None], (block.stop - start, *cells))
        if bbox is not None:
            here = dataset[["latitude", "longitude"]].isel(crop=block)
            place = place & in_box(here["latitude"].values, here["longitude"].values, bbox)
        yield block, place


def _clean(
    dataset: xr.Dataset, block: slice, place: np.ndarray, labels: Sequence[Label], masks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    clean = np.empty((*place.shape, len(labels)), bool)
    strata = np.zeros(clean.shape, np.uint8)
    for variable in dict.fromkeys(label.variable for label in labels):
        flags = dataset[f"{variable}_flags"].isel(crop=block).values
        fraction = dataset.get(f"{variable}_echo_fraction")
        echo = None if fraction is None else fraction.isel(crop=block).values
        for number, (label, mask) in enumerate(zip(labels, masks, strict=True)):
            if label.variable != variable:
                continue
            level = slice(None) if label.altitude is None else (slice(None), label.altitude)
            clean[..., number] = place & ((flags[level] & np.uint16(mask)) == 0)
            if echo is not None:
                strata[..., number] = np.where(
                    echo[level] >= ECHO_FRACTION, Stratum.echo,
                    np.where(echo[level] > 0, Stratum.weak, Stratum.empty),
                )  # fmt: skip
    return clean, strata


def explain_empty(
    dataset: xr.Dataset,
    labels: Sequence[Label],
    masks: Sequence[int],
    crops: np.ndarray,
    bbox: Box | None,
    where: str,
) -> SchemaError:
    """Say why a selection has no clean patch: how many each rejecting flag took."""
    candidates, counts = 0, dict.fromkeys(Flag, 0)
    for block, place in _blocks(dataset, crops, bbox):
        candidates += int(place.sum()) * len(labels)
        for label, mask in zip(labels, masks, strict=True):
            level = slice(None) if label.altitude is None else (slice(None), label.altitude)
            flags = dataset[f"{label.variable}_flags"].isel(crop=block).values[level][place]
            for flag in Flag:
                if mask & flag:
                    counts[flag] += int(((flags & np.uint16(flag)) != 0).sum())
    reasons = ", ".join(f"{flag.name} {n}" for flag, n in counts.items() if n) or "none"
    return SchemaError(
        f"{where}: no clean patch of {[label.name for label in labels]}: {int(crops.sum())} crops chosen (of "
        f"{len(crops)}), {candidates} patches in place; rejected by flag: {reasons}. Pass other channels, "
        "another time or bbox, or reject=[...] with fewer flags."
    )
