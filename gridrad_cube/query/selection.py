"""Samples in a box and a period, of the channels and the quality asked for; crops as a field in time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import xarray as xr

from gridrad_cube import selection
from gridrad_cube.query.samples import (
    cell_dims,
    collect,
    crop_blocks,
    is_embeddings,
    labels,
    positions,
    sample_dims,
    sample_flags,
    written,
)
from gridrad_cube.schema import CHANNELS, Flag, SchemaError, channel_in, reject_mask
from gridrad_cube.selection import Box, as_period, as_rings, check_box, in_box, in_polygon

#: Flags that rule a sample out: names, a mask, ``()`` for none; None for the default of each channel.
Reject = int | Flag | str | Iterable[str] | None
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
    reject: Reject


class Where(Elsewhere, total=False):
    """Rules of a selection; see `within`."""

    bbox: Box | None
    time: Any


def in_period(
    dataset: xr.Dataset,
    time: Any = None,
    *,
    season: Any = None,
    hour: Any = None,
    convective_day: Any = None,
) -> np.ndarray:
    """Which crops were written and lie in a period, a season, hours of the day and convective days. Bool, (crop,).

    Raises
    ------
    SchemaError
        If none does; says which times the store has.
    """
    is_embeddings(dataset)
    start, stop = as_period(time)
    keep = written(dataset)
    times = dataset["time"].values.astype("datetime64[s]")
    known = times[keep]
    if start is not None:
        keep &= times >= start
    if stop is not None:
        keep &= times < stop
    if season is not None:
        keep &= np.isin(selection.month_of(times), selection.as_months(season))
    if hour is not None:
        keep &= selection.in_hours(selection.hour_of(times), hour, "hour")
    if convective_day is not None:
        keep &= np.isin(selection.convective_day(times), selection.as_days(convective_day))
    if not keep.any():
        has = f"from {known.min()} to {known.max()}" if len(known) else "none: no crop was written"
        rules = {"season": season, "hour": hour, "convective_day": convective_day}
        others = "".join(f", {name}={rule!r}" for name, rule in rules.items() if rule is not None)
        raise SchemaError(
            f"time: no crop in the time asked for, got {time!r}{others}; the store has times {has}"
        )
    return keep


def channel_positions(dataset: xr.Dataset, channel: Any) -> np.ndarray:
    """Positions of channel labels along ``channel``; a variable's name means all its altitudes.

    Raises
    ------
    SchemaError
        If the store has no such channel; lists those it has.
    """
    names = [str(n) for n in np.atleast_1d(labels(dataset, "channel"))]
    if channel is None:
        return np.arange(len(names))
    out: dict[int, None] = {}
    several = [channel] if isinstance(channel, (str, int, np.integer)) else list(channel)
    for asked in several:
        if isinstance(asked, str):
            found = [i for i, n in enumerate(names) if asked in (n, n.split("@", 1)[0])]
        else:
            found = [i for i in range(len(names)) if i == asked]
        if not found:
            raise SchemaError(f"channel: the store has none called {asked!r}; expected some of {names}")
        out |= dict.fromkeys(found)
    if not out:
        raise SchemaError(f"channel: got none, {channel!r}; expected some of {names}")
    return np.array(list(out))


def kind_of(label: str) -> str:
    """Kind of a channel label for its default rejecting flags; of several in one, visible before the others."""
    kinds = [CHANNELS[n].kind for n in re.findall(r"\w+", label) if n in CHANNELS]
    return "visible" if "visible" in kinds else kinds[0] if kinds else "field"


def select(
    dataset: xr.Dataset,
    *,
    bbox: Box | None = None,
    time: Any = None,
    polygon: Any = None,
    season: Any = None,
    hour: Any = None,
    solar_hour: Any = None,
    convective_day: Any = None,
    channel: Any = None,
    reject: Reject = None,
) -> np.ndarray:
    """Which samples a selection takes: booleans on the sample dims, at least one of them true; see `within`."""
    keep = in_period(dataset, time, season=season, hour=hour, convective_day=convective_day)
    dims, box = sample_dims(dataset), None if bbox is None else check_box(bbox)
    rings = None if polygon is None else as_rings(polygon)
    mask = np.zeros(tuple(dataset.sizes[d] for d in dims), bool)
    placed, anywhere = 0, box is None and rings is None and solar_hour is None
    for crops in crop_blocks(keep):
        lat, lon = positions(dataset, crops)
        cells = _placed(lat, anywhere) if box is None else in_box(lat, lon, box)
        cells &= keep[crops].reshape(-1, *(1 for _ in cells.shape[1:]))
        if rings is not None:
            cells &= in_polygon(lat, lon, rings)
        if solar_hour is not None:
            times = dataset["time"].values[crops].reshape(-1, *(1 for _ in cells.shape[1:]))
            cells &= selection.in_hours(selection.solar_hour_of(times, lon), solar_hour, "solar_hour")
        placed += int(np.count_nonzero(cells))
        if not cells.any():
            continue
        if is_embeddings(dataset):
            mask[crops] = _clean(dataset, crops, channel, reject)
        else:
            mask[crops] = _clean_patches(dataset, crops, channel, reject)
        mask[crops] &= cells[:, None] if "channel" in dims else cells
    if not mask.any():
        asked = {"bbox": bbox, "polygon": polygon, "solar_hour": solar_hour}
        raise SchemaError(_nothing(dataset, keep, placed, asked, reject))
    return mask


def _placed(latitude: np.ndarray, anywhere: bool) -> np.ndarray:
    """Samples with a position, so none of padding; where no place is asked for, all of a crop without any, too."""
    known = np.isfinite(latitude)
    if anywhere:
        known |= ~known.any(axis=tuple(range(1, known.ndim)), keepdims=True)
    return known


def _masks(reject: Reject, kinds: Iterable[str]) -> list[int]:
    names = (reject,) if isinstance(reject, str) else reject
    names = names if names is None or isinstance(names, int) else tuple(names)
    return [reject_mask(names, kind) & 0xFFFF for kind in kinds]


def _clean(dataset: xr.Dataset, crops: slice, channel: Any, reject: Reject) -> np.ndarray:
    """Which embeddings of some crops belong to a channel asked for and have no rejecting flag."""
    dims = sample_dims(dataset)
    flags = sample_flags(dataset, crops)
    chosen = channel_positions(dataset, channel) if "channel" in dims or channel is not None else np.arange(1)
    names = (
        np.atleast_1d(labels(dataset, "channel")) if "channel" in dataset.variables else np.array(["field"])
    )
    bits = np.array(_masks(reject, [kind_of(n) for n in _variables(dataset, names)]), np.uint16)
    if "channel" not in dims:
        return np.asarray((flags & bits[0]) == 0)
    wanted = np.zeros(len(names), bool)
    wanted[chosen] = True
    shape = (-1, *(1 for d in dims if d in ("row", "col")))
    return np.asarray(((flags & bits.reshape(shape)) == 0) & wanted.reshape(shape))


def _variables(dataset: xr.Dataset, names: np.ndarray) -> list[str]:
    """What tells the kind of each channel: its variable where the store says it, and its label."""
    variables = np.atleast_1d(dataset["variable"].values) if "variable" in dataset.coords else names
    return [f"{v} {n}" for v, n in zip(variables, names, strict=True)]


def _clean_patches(dataset: xr.Dataset, crops: slice, channel: Any, reject: Reject) -> np.ndarray:
    """Which patches of a cube have a channel (at some altitude) without a rejecting flag."""
    kinds = {
        str(n): channel_in(str(n), v.attrs, v.dtype).kind
        for n, v in dataset.data_vars.items()
        if {"crop", "y", "x"} <= set(v.dims)
    }
    names = sorted(kinds, key=lambda n: kinds[n] == "other")
    fields = [n for n in names if kinds[n] != "other"] or names  # labels beside them have no say
    asked = fields if channel is None else [channel] if isinstance(channel, str) else list(channel)
    missing = [n for n in asked if n not in names]
    if missing or not asked:
        raise SchemaError(f"channel: the cube has none called {missing}; expected some of {names}")
    count = len(range(*crops.indices(dataset.sizes["crop"])))
    out = np.zeros((count, dataset.sizes["row"], dataset.sizes["col"]), bool)
    for name, mask in zip(asked, _masks(reject, [kinds[n] for n in asked]), strict=True):
        flags = dataset[f"{name}_flags"].isel(crop=crops).transpose("crop", ..., "row", "col").values
        clean = (flags & np.uint16(mask)) == 0
        out |= clean if clean.ndim == 3 else clean.any(axis=1)
    return out


def _nothing(
    dataset: xr.Dataset, keep: np.ndarray, placed: int, asked: Mapping[str, Any], reject: Reject
) -> str:
    crops = f"{np.count_nonzero(keep)} of {len(keep)} crops lie in the time asked for"
    if placed:
        return (
            f"within: nothing is left of {placed} patches in the box and time asked for: reject={reject!r} and "
            "channel= rule out all of them. Pass reject=() to keep every patch."
        )
    lats, lons = (dataset[n].values[keep] for n in ("latitude", "longitude"))
    if not np.isfinite(lats).any():
        return f"within: {crops}, but no patch of them has a position"
    extent = f"latitudes {np.nanmin(lats):.2f} to {np.nanmax(lats):.2f}, "
    extent += f"longitudes {np.nanmin(lons):.2f} to {np.nanmax(lons):.2f}"
    rules = " and ".join(f"{name} {_short(rule)}" for name, rule in asked.items() if rule is not None)
    return f"within: no patch centre in {rules}; {crops}, and their patches lie at {extent}"


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
