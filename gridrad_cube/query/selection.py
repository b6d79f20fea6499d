"""Samples in a box and a period, of the channels and the quality asked for; crops as a field in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import xarray as xr

from gridrad_cube.query.samples import (
    cell_dims,
    collect,
    crop_blocks,
    is_embeddings,
    positions,
    sample_dims,
    sample_flags,
    written,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import Box, Label, Reject, Selection, choose_labels, labels_of, reject_masks

#: Degrees by which latitudes along a row may differ and still be one axis.
_STRAIGHT = 1e-6


class Elsewhere(TypedDict, total=False):
    """Rules of a selection beside its box and period; see `within`."""

    polygon: Any
    season: Any
    hour: Any
    solar_hour: Any
    convective_day: Any
    channel: Any
    altitude: Any
    reject: Reject


class Where(Elsewhere, total=False):
    """Rules of a selection; see `within`."""

    bbox: Box | None
    time: Any


def in_period(dataset: xr.Dataset, time: Any = None) -> np.ndarray:
    """Which crops were written and lie in a period; see `Selection.in_time`. Bool, (crop,)."""
    is_embeddings(dataset)
    return Selection(time=time).in_time(_times(dataset))


def _times(dataset: xr.Dataset) -> np.ndarray:
    """Times of the crops; NaT where a crop was not written."""
    times = dataset["time"].values.astype("datetime64[s]")
    return np.where(written(dataset), times, np.datetime64("NaT", "s"))


def channel_positions(dataset: xr.Dataset, channel: Any) -> np.ndarray:
    """Positions of the channels asked for along ``channel``; see `gridrad_cube.selection.choose_labels`."""
    known = labels_of(dataset)
    return np.array([known.index(label) for label in choose_labels(known, channel, "channel")])


def select(dataset: xr.Dataset, **where: Any) -> np.ndarray:
    """Which samples a `Selection` takes: booleans on the sample dims, at least one of them true; see `within`."""
    wanted = Selection(**where)
    is_embeddings(dataset)
    times = _times(dataset)
    keep = wanted.in_time(times)
    dims, known = sample_dims(dataset), labels_of(dataset)
    chosen = wanted.labels(known)
    bits = dict(zip(chosen, reject_masks(chosen, wanted.reject), strict=True))
    mask = np.zeros(tuple(dataset.sizes[d] for d in dims), bool)
    placed = 0
    for crops in crop_blocks(keep):
        cells = wanted.in_place(*positions(dataset, crops), times[crops])
        cells &= keep[crops].reshape(-1, *(1 for _ in cells.shape[1:]))
        placed += int(np.count_nonzero(cells))
        if not cells.any():
            continue
        if is_embeddings(dataset):
            mask[crops] = _clean(dataset, crops, known, bits)
        else:
            mask[crops] = _clean_patches(dataset, crops, bits)
        mask[crops] &= cells[:, None] if "channel" in dims else cells
    if not mask.any():
        raise SchemaError(_nothing(dataset, keep, placed, wanted))
    return mask


def _clean(
    dataset: xr.Dataset, crops: slice, known: Sequence[Label], bits: Mapping[Label, int]
) -> np.ndarray:
    """Which embeddings of some crops belong to a channel asked for and have no rejecting flag."""
    dims = sample_dims(dataset)
    flags = sample_flags(dataset, crops)
    if "channel" not in dims:
        return np.asarray((flags & np.uint16(bits[known[0]])) == 0)
    shape = (-1, *(1 for d in dims if d in ("row", "col")))
    wanted = np.array([label in bits for label in known]).reshape(shape)
    rejecting = np.array([bits.get(label, 0) for label in known], np.uint16).reshape(shape)
    return np.asarray(((flags & rejecting) == 0) & wanted)


def _clean_patches(dataset: xr.Dataset, crops: slice, bits: Mapping[Label, int]) -> np.ndarray:
    """Which patches of a cube have one of the channels asked for without a rejecting flag."""
    count = len(range(*crops.indices(dataset.sizes["crop"])))
    out = np.zeros((count, dataset.sizes["row"], dataset.sizes["col"]), bool)
    flags: dict[str, np.ndarray] = {}
    for label, rejecting in bits.items():
        if label.variable not in flags:
            variable = dataset[f"{label.variable}_flags"].isel(crop=crops)
            flags[label.variable] = variable.transpose("crop", ..., "row", "col").values
        values = flags[label.variable]
        out |= ((values if label.altitude is None else values[:, label.altitude]) & np.uint16(rejecting)) == 0
    return out


def _nothing(dataset: xr.Dataset, keep: np.ndarray, placed: int, wanted: Selection) -> str:
    crops = f"{np.count_nonzero(keep)} of {len(keep)} crops lie in the time asked for"
    if placed:
        return (
            f"within: nothing is left of {placed} patches in the box and time asked for: reject={wanted.reject!r} and "
            "channel= rule out all of them. Pass reject=() to keep every patch."
        )
    lats, lons = (dataset[n].values[keep] for n in ("latitude", "longitude"))
    if not np.isfinite(lats).any():
        return f"within: {crops}, but no patch of them has a position"
    extent = f"latitudes {np.nanmin(lats):.2f} to {np.nanmax(lats):.2f}, "
    extent += f"longitudes {np.nanmin(lons):.2f} to {np.nanmax(lons):.2f}"
    asked = {name: getattr(wanted, name) for name in ("bbox", "polygon", "solar_hour")}
    rules = " and ".join(f"{name} {_short(rule)}" for name, rule in asked.items() if rule is not None)
    return f"within: no patch center in {rules}; {crops}, and their patches lie at {extent}"


def _short(value: Any) -> str:
    text = repr(
        tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else value
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


def within(
    dataset: xr.Dataset, bbox: Box | None = None, time: Any = None, **where: Unpack[Elsewhere]
) -> xr.Dataset:
    """Every sample whose centre lies in an area and whose crop lies in a period.

    Every rule that is given must hold. The same rules narrow `search`, `analogues` and `frequency`.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    bbox
        ``(west, south, east, north)`` in degrees, edges included; west above east crosses the date line.
    time
        A pair ``(start, stop)``, stop not included; a ``slice``, both ends included; or one value, which
        takes all that it names (``"2024-05-20"`` the whole day). UTC.
    polygon
        Corners ``[(longitude, latitude), ...]``, GeoJSON (dict or text), or a shape of shapely. Edges run
        straight in longitude and latitude; they may cross the date line or go around a pole.
    season
        Initials of months, ``"JJA"`` or ``"AMJJAS"``; or months by number, ``6`` or ``[6, 7]``.
    hour
        ``(start, stop)`` in hours UTC, stop not included, ``(21, 3)`` across midnight; or one whole hour.
    solar_hour
        The same in local mean solar time at the sample, UTC + longitude / 15.
    convective_day
        A date or several: ``"2024-05-20"`` is from that day 12 UTC to the next day 12 UTC.
    channel
        Labels, or names of variables for all their altitudes; None for all. In a cube: a patch is taken if
        one of these channels is clean; None leaves channels of kind ``other`` out.
    reject
        Flags that rule a sample out: names, a mask, ``()`` for none; None for the default of each channel.

    Returns
    -------
    The dataset on dim ``patch`` (crop, channel, row, col in order), with position, source file and pixel
    window of each. Data variables are lazy.

    Raises
    ------
    SchemaError
        If nothing is left; says what ruled it out.
    """
    mask = select(dataset, bbox=bbox, time=time, **where)
    index = dict(zip(sample_dims(dataset), np.nonzero(mask), strict=True))
    return collect(dataset, index, "patch")


def grid(dataset: xr.Dataset, time: Any = None, *, by: Literal["cell", "degree"] = "cell") -> xr.Dataset:
    """The crops of one window of one grid as a field in time: ``(time, [channel,] row, col[, feature])``.

    Parameters
    ----------
    time
        A period; see `within`.
    by
        ``"cell"`` keeps ``row`` and ``col``. ``"degree"`` names them ``latitude`` and ``longitude``, so that
        ``sel(latitude=..., longitude=..., method="nearest")`` works; only where every row has one latitude and
        every column one longitude. Across the date line longitudes go on beyond 180.

    Returns
    -------
    The dataset on dim ``time``, ascending, in place of ``crop``; ``latitude`` and ``longitude`` on
    ``(row, col)``, or as axes. Lazy.

    Raises
    ------
    SchemaError
        If the crops do not lie on one another, two share a time, or there are no such axes.
    """
    if by not in ("cell", "degree"):
        raise SchemaError(f"grid: by={by!r}; expected 'cell' or 'degree'")
    crops = np.flatnonzero(in_period(dataset, time))
    lat, lon = (dataset[n].variable.isel(crop=crops).values for n in ("latitude", "longitude"))
    for name, values in (("latitude", lat), ("longitude", lon)):
        if not np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=True):
            places = len(np.unique(values.reshape(len(values), -1), axis=0))
            raise SchemaError(
                f"grid: the crops do not lie on one another, got {places} different {name}s of patches. Select those "
                "of one window and grid first: ds.isel(crop=(ds.grid == ds.grid[0]) & (ds.y_origin == 0) & ...)."
            )
    times = dataset["time"].values[crops]
    if len(np.unique(times)) < len(times):
        raise SchemaError("grid: several crops share a time. Select one of each first, or a shorter period.")
    out = dataset.isel(crop=crops[np.argsort(times)])
    centres = {"latitude": (("row", "col"), lat[0], dataset["latitude"].attrs),
              "longitude": (("row", "col"), lon[0], dataset["longitude"].attrs)}  # fmt: skip
    if by == "cell":
        return out.assign_coords(centres).swap_dims(crop="time")
    if not cell_dims(dataset):
        raise SchemaError("grid: by='degree' needs patches; at level 2k a crop is one place")
    axes = {"latitude": lat[0][:, 0], "longitude": np.unwrap(lon[0][0], period=360)}
    spread = max(np.ptp(lat[0], axis=1).max(), np.ptp(lon[0], axis=0).max())
    if not spread < _STRAIGHT:  # NaN of padding included
        raise SchemaError(
            f"grid: by='degree', but latitudes along a row or longitudes along a column differ by {spread:.3g} degrees "
            "(NaN: patches of padding have no position). Use by='cell', or leave out rows and columns with isel."
        )
    out = out.drop_vars(["latitude", "longitude", "row", "col"], errors="ignore").swap_dims(crop="time")
    return out.rename(row="latitude", col="longitude").assign_coords(
        {name: (name, values, dataset[name].attrs) for name, values in axes.items()}
    )
