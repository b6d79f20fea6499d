"""Samples in a box and a period, of the channels and the quality asked for; crops as a field in time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.query.samples import (
    collect,
    crop_blocks,
    is_embeddings,
    labels,
    positions,
    sample_dims,
    sample_flags,
    written,
)
from gridrad_cube.query.units import Box, as_period, check_box, in_box
from gridrad_cube.schema import CHANNELS, Flag, SchemaError, channel_in, reject_mask

#: Flags that rule a sample out: names, a mask, ``()`` for none; None for the default of each channel.
Reject = int | Flag | str | Iterable[str] | None


def in_period(dataset: xr.Dataset, time: Any) -> np.ndarray:
    """Which crops were written and lie in a period. Bool, (crop,).

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
    if not keep.any():
        has = f"from {known.min()} to {known.max()}" if len(known) else "none: no crop was written"
        raise SchemaError(f"time: no crop in the time asked for, got {time!r}; the store has times {has}")
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
    channel: Any = None,
    reject: Reject = None,
) -> np.ndarray:
    """Which samples a selection takes: booleans on the sample dims, at least one of them true; see `within`."""
    keep = in_period(dataset, time)
    dims, box = sample_dims(dataset), None if bbox is None else check_box(bbox)
    mask = np.zeros(tuple(dataset.sizes[d] for d in dims), bool)
    placed = 0
    for crops in crop_blocks(keep):
        lat, lon = positions(dataset, crops)
        cells = np.isfinite(lat) if box is None else in_box(lat, lon, box)
        cells &= keep[crops].reshape(-1, *(1 for _ in cells.shape[1:]))
        placed += int(np.count_nonzero(cells))
        if not cells.any():
            continue
        if is_embeddings(dataset):
            mask[crops] = _clean(dataset, crops, channel, reject)
        else:
            mask[crops] = _clean_patches(dataset, crops, channel, reject)
        mask[crops] &= cells[:, None] if "channel" in dims else cells
    if not mask.any():
        raise SchemaError(_nothing(dataset, keep, placed, bbox, reject))
    return mask


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
    names = sorted(kinds, key=lambda n: kinds[n] == "companion")
    fields = [n for n in names if kinds[n] != "companion"] or names  # labels beside them have no say
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


def _nothing(dataset: xr.Dataset, keep: np.ndarray, placed: int, bbox: Box | None, reject: Reject) -> str:
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
    return f"within: no patch centre in bbox {tuple(bbox or ())}; {crops}, and their patches lie at {extent}"


def within(
    dataset: xr.Dataset,
    bbox: Box | None = None,
    time: Any = None,
    *,
    channel: Any = None,
    reject: Reject = None,
) -> xr.Dataset:
    """Every sample whose centre lies in a box and whose crop lies in a period.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    bbox
        ``(west, south, east, north)`` in degrees, edges included; west above east crosses the date line.
    time
        A pair ``(start, stop)``, stop not included; a ``slice``, both ends included; or one value, which
        takes all that it names (``"2024-05-20"`` the whole day). UTC.
    channel
        Labels, or names of variables for all their altitudes; None for all. In a cube: a patch is taken if
        one of these channels is clean; None leaves companion fields out of that.
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
    mask = select(dataset, bbox=bbox, time=time, channel=channel, reject=reject)
    index = dict(zip(sample_dims(dataset), np.nonzero(mask), strict=True))
    return collect(dataset, index, "patch")


def grid(dataset: xr.Dataset, time: Any = None) -> xr.Dataset:
    """The crops of one window of one grid as a field in time: ``(time, [channel,] row, col[, feature])``.

    Parameters
    ----------
    time
        A period; see `within`.

    Returns
    -------
    The dataset on dim ``time``, ascending, in place of ``crop``; ``latitude`` and ``longitude`` on
    ``(row, col)``. Lazy.

    Raises
    ------
    SchemaError
        If the crops do not lie on one another, or two share a time.
    """
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
    out = out.assign_coords(latitude=(("row", "col"), lat[0], dataset["latitude"].attrs),
                            longitude=(("row", "col"), lon[0], dataset["longitude"].attrs))  # fmt: skip
    return out.swap_dims(crop="time")
