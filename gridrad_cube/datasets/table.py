"""Which patches are samples: the index table of a selection, from the flags and fractions alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.datasets.sampling import ECHO_FRACTION, Stratum
from gridrad_cube.schema import CHANNELS, Flag, SchemaError, channel_in, channel_label, reject_mask

#: ``(west, south, east, north)`` in degrees; west above east crosses the date line.
Box = tuple[float, float, float, float]
#: ``(start, stop)``, start included, stop not; None leaves an end open.
TimeRange = tuple[Any, Any]

_CROPS_AT_ONCE = 8192


@dataclass(frozen=True)
class Label:
    """One channel as samples see it: a variable, or one altitude of it."""

    name: str
    variable: str
    altitude: int | None
    kind: str
    km: float | None = None


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


def kind_of(members: Iterable[str]) -> str:
    """Kind of the channels that one embedding was made of: visible if any is, since night rejects that."""
    kinds = [CHANNELS[name.split("@")[0]].kind for name in members if name.split("@")[0] in CHANNELS]
    return "visible" if "visible" in kinds else kinds[0] if kinds else "field"


def labels_of(dataset: xr.Dataset, channels: Sequence[str]) -> tuple[Label, ...]:
    """Every channel label of a cube, a variable with altitudes giving one an altitude."""
    out = []
    for name in channels:
        kind = channel_in(name, dataset[name].attrs, dataset[name].dtype).kind
        if "altitude" not in dataset[name].dims:
            out.append(Label(name, name, None, kind))
            continue
        heights = dataset["altitude"].values.tolist()
        out += [Label(channel_label(name, km), name, i, kind, km) for i, km in enumerate(heights)]
    return tuple(out)


def choose_labels(
    available: Sequence[Label], channels: str | Iterable[str] | None, where: str
) -> tuple[Label, ...]:
    """The labels asked for, in the order asked; a variable's name means all its altitudes.

    None asks for every channel, except those of kind ``other`` (labels and the like): name these.

    Raises
    ------
    SchemaError
        If one is not there; lists what is.
    """
    if channels is None:
        return tuple(label for label in available if label.kind != "other")
    chosen: dict[Label, None] = {}
    for name in [channels] if isinstance(channels, str) else channels:
        found = [label for label in available if name in (label.name, label.variable)]
        height = re.fullmatch(r"(.+)@(\d+(?:\.\d*)?)\s*(?:km)?", name)
        if not found and height:
            wanted = channel_label(height[1], float(height[2]))
            found = [label for label in available if label.name == wanted]
        if not found:
            raise SchemaError(
                f"{where}: no channel {name!r}; expected some of {[label.name for label in available]}"
            )
        chosen |= dict.fromkeys(found)
    if not chosen:
        raise SchemaError(f"{where}: no channel asked for, got {channels!r}; expected some of "
                          f"{[label.name for label in available]}")  # fmt: skip
    return tuple(chosen)


def choose_altitudes(
    labels: Sequence[Label], altitude: float | Sequence[float] | None, where: str
) -> tuple[Label, ...]:
    """Labels at these altitudes, km, and those of channels that have none, in the order they had.

    Raises
    ------
    SchemaError
        If one is not there; lists what is.
    """
    if altitude is None:
        return tuple(labels)
    wanted = {float(km) for km in np.atleast_1d(np.asarray(altitude, float))}
    known = {label.km for label in labels} - {None}
    if not wanted or wanted - known:
        raise SchemaError(
            f"{where}: no altitude {sorted(wanted - known)} km of {sorted({v.variable for v in labels})}; "
            f"expected some of {sorted(km for km in known if km is not None)}"
        )
    return tuple(label for label in labels if label.km is None or label.km in wanted)


def masks_of(labels: Sequence[Label], reject: int | Flag | Iterable[str] | None) -> list[int]:
    """Rejecting bits of each label. A channel that a crop lacks has no pixels, so that always rejects."""
    if reject is not None and not isinstance(reject, int):
        reject = tuple([reject] if isinstance(reject, str) else reject)
    return [reject_mask(reject, label.kind) | int(Flag.channel_absent) for label in labels]


def chosen_crops(dataset: xr.Dataset, time: TimeRange | None, where: str) -> np.ndarray:
    """Which crops were written and lie in the time range, bool, (crop,)."""
    keep = np.asarray(dataset["status"].values) == 0
    if time is None:
        return keep
    start, stop = (None if end is None else _instant(end) for end in time)
    if start is not None and stop is not None and not start < stop:
        raise SchemaError(
            f"time: start is not before stop, got {time!r}; expected (start, stop), stop not included"
        )
    seconds = dataset["time"].values.astype("datetime64[s]")
    within = ~np.isnat(seconds)
    if start is not None:
        within &= seconds >= start
    if stop is not None:
        within &= seconds < stop
    if not (keep & within).any():
        known = seconds[keep & ~np.isnat(seconds)]
        span = f"from {known.min()} to {known.max()}" if len(known) else "nothing: no crop was written"
        raise SchemaError(f"{where}: no crop in the time asked for, got {time!r}; the store has {span}")
    return np.asarray(keep & within)


def _instant(value: Any) -> np.datetime64:
    if isinstance(value, str):
        value = value.strip().removesuffix("Z")
    try:
        return np.datetime64(value, "s")
    except (ValueError, TypeError) as error:
        raise SchemaError(f"time: cannot read {value!r} as a time; expected 2024-05-01T12:00, UTC") from error


def in_box(latitude: np.ndarray, longitude: np.ndarray, box: Box) -> npt.NDArray[np.bool_]:
    """Which points lie in a box (edges included); never those without a position.

    Raises
    ------
    SchemaError
        If the box is none.
    """
    west, south, east, north = (float(edge) for edge in box)
    width = east - west if east >= west else east - west + 360.0
    if not (-90 <= south <= north <= 90 and 0 <= width <= 360):
        raise SchemaError(
            f"bbox: got {box!r}; expected (west, south, east, north) in degrees, south <= north; west > east "
            "crosses the date line"
        )
    with np.errstate(invalid="ignore"):
        inside = (latitude >= south) & (latitude <= north) & ((longitude - west) % 360.0 <= width)
    return np.asarray(inside, bool)


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
            place = np.asarray(place & in_box(here["latitude"].values, here["longitude"].values, bbox))
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
