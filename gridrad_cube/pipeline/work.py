"""The unit of work: one scene becomes the shards of its crops and one record of the log."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from gridrad_cube import quality, readers, store, tiling
from gridrad_cube.geometry import grid_tolerance, same_positions
from gridrad_cube.schema import (
    CHANNELS,
    Flag,
    Packing,
    Recipe,
    SchemaError,
    channel_label,
    default_reject,
)
from gridrad_cube.sources import identity
from gridrad_cube.storage import Files

_T = TypeVar("_T")

#: Errors of a disk that is full or cannot be written to.
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
#: How often a file is read that changes while it is read.
_READINGS = 3
#: Codes of bins that quality control removes, the same in every radar field of the table.
_LOW_CONFIDENCE = int(CHANNELS["reflectivity"].packing.low_confidence or 0)
_CLUTTER = int(CHANNELS["reflectivity"].packing.clutter or 0)


def write_source(
    root: str, layout: store.CubeLayout, recipe: Recipe, entry: store.Entry, path: str, *, dry: bool = False
) -> store.Record:
    """Read one scene, cut it, flag it and write its shards.

    This is the unit of work. It owns whole shards, and running it twice writes the same bytes.

    Parameters
    ----------
    root
        Path or URL of the store.
    layout
        Layout of the store.
    recipe
        Recipe of the store.
    entry
        Entry of the scene in the plan.
    path
        Path or URL of the source.
    dry
        Write nothing; the record is the same.

    Returns
    -------
    The record for the build log.

    Raises
    ------
    SchemaError
        If the file differs from the plan, or has a value without a code in the packing of the store.
    """
    start = time.perf_counter()
    is_controlled = entry.format.startswith("gridrad") and recipe.radar.qc != "none"
    read = functools.partial(
        readers.read_scene,
        path,
        time=np.datetime64(entry.time, "s"),
        format=recipe.format,
        channels=[
            channel_label(name, altitude)
            for name, channel in layout.channels.items()
            if name in entry.channels
            for altitude in (channel.altitudes_km or (None,))
        ],
        radar=recipe.radar,
        variables=recipe.variables,
        clean=functools.partial(_clean, spec=quality.RadarQualitySpec.of(recipe.radar))
        if is_controlled
        else None,
    )
    scene, (size, mtime_ns) = read_unchanged(path, read)
    if (scene.sizes["y"], scene.sizes["x"]) != entry.shape:
        raise SchemaError(
            f"{path}: its shape is not the {entry.shape} that was planned; it changed meanwhile"
        )
    notes = [*scene.attrs.pop("notes", ()), *_pack_as_store(scene, layout, path)]
    latitude, longitude = scene["latitude"].values, scene["longitude"].values
    if readers.grid_id(latitude, longitude) != entry.grid:
        scene = _place_on(scene, Files(root), entry, path)
    elif not dry:
        store.write_grid(Files(root), entry.grid, latitude, longitude)
    windows = (tiling.Window(y, x, *layout.crop) for y, x in entry.windows)
    crops = (tiling.cut(scene, window, layout.patch) for window in windows)
    record = write_crops(root, layout, recipe, entry, crops, path, dry=dry)
    seconds = round(time.perf_counter() - start, 3)
    return replace(record, size=size, mtime_ns=mtime_ns, seconds=seconds, reason="; ".join(notes))


def read_unchanged(path: str, read: Callable[[], _T]) -> tuple[_T, tuple[int, int]]:
    """Return the result of reading a file, and the size and time of modification that it has before and
    after.

    If the file changes during the read, one channel could be of the old file and another of the new. Then it
    is read again.

    Raises
    ------
    SchemaError
        If the file changes each time.
    """
    for _ in range(_READINGS):
        before = identity(path)
        try:
            found = read()
        except SchemaError:
            if identity(path) == before:
                raise
        else:
            if identity(path) == before:
                return found, before
    raise SchemaError(
        f"{path}: changed while it was read, {_READINGS} times. Run the command again when the file is complete."
    )


def _place_on(scene: xr.Dataset, files: Files, entry: store.Entry, path: str) -> xr.Dataset:
    """Return a scene with the positions of the planned grid, which differ from its own by a small part of a
    pixel.
    """
    try:
        positions = store.read_grid(files, entry.grid)
    except FileNotFoundError as error:
        raise SchemaError(
            f"{path}: lies on the grid {entry.grid} of another file, which is not written yet. Run again with both."
        ) from error
    own = scene["latitude"].values, scene["longitude"].values
    if not same_positions(own, positions, grid_tolerance(*positions)):
        raise SchemaError(f"{path}: its grid is not the one that was planned; it changed meanwhile")
    placed = zip(("latitude", "longitude"), positions, strict=True)
    return scene.assign_coords({name: scene[name].copy(data=values) for name, values in placed})


def _pack_as_store(scene: xr.Dataset, layout: store.CubeLayout, path: str) -> list[str]:
    """Convert the channels of a scene to the packings of the store; return it with a text about the changes."""
    notes = []
    for name, layer in layout.channels.items():
        if name not in scene:
            continue
        variable = scene[name]
        found = Packing.from_attributes(variable.attrs, variable.dtype)
        if found == layer.packing:
            continue
        try:
            codes, note = readers.recode(variable.values, found, layer.packing, layer.channel)
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
        kept = {k: v for k, v in variable.attrs.items() if k not in found.to_attributes()}
        scene[name] = (variable.dims, codes, kept | layer.packing.to_attributes())
        notes += [note] if note else []
    return notes


def write_crops(
    root: str,
    layout: store.CubeLayout,
    recipe: Recipe,
    entry: store.Entry,
    crops: Iterable[xr.Dataset],
    path: str,
    *,
    dry: bool = False,
) -> store.Record:
    """Flag the crops of a scene and write their shards.

    Parameters
    ----------
    root
        Path or URL of the store.
    layout
        Layout of the store.
    recipe
        Recipe of the store.
    entry
        Entry of the scene in the plan.
    crops
        One crop for each row of the entry, as `tiling.cut` returns them, with the channels of the layout that
        the scene has. A coordinate ``<channel>_unreadable (row, col)`` marks patches whose source is lost.
    path
        Of the source, for messages.
    dry
        Write nothing; the record is the same.

    Returns
    -------
    The record for the build log.

    Raises
    ------
    SchemaError
        If the packing of a channel differs from that of the store.
    """
    files = None if dry else Files(root)
    rows = store.blank_rows(layout, len(entry.windows))
    shards: dict[str, list[tuple[int, int] | None]] = {name: [] for name in layout.channels}
    for number, (row, crop) in enumerate(zip(entry.rows, crops, strict=True)):
        for name, channel in layout.channels.items():
            if name not in crop:
                continue
            found = Packing.from_attributes(crop[name].attrs, crop[name].dtype)
            if found != channel.packing:
                raise SchemaError(
                    f"{path}: {name} has the packing {found}, but the store has {channel.packing}"
                )
        for name, value in _values(crop, layout, recipe).items():
            rows[name][number] = value
        pixels = {name: crop[name].values for name in layout.channels if name in crop}
        written = store.write_crop(files, layout, row, pixels)
        for name, of_channel in shards.items():
            of_channel.append(written.get(name))
    return store.Record(
        source=entry.source,
        status="written",
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        shards=shards,
        values=store.pack_rows(rows),
    )


def _values(crop: xr.Dataset, layout: store.CubeLayout, recipe: Recipe) -> dict[str, np.ndarray]:
    """Return every small variable of a crop, flags of absent channels among them."""
    assessed = quality.assess(crop, recipe.quality)
    values = {str(name): assessed[name].values for name in assessed.data_vars}
    for name in layout.coordinates:
        for dataset in (assessed, crop):
            if name in dataset.coords and (dataset[name].ndim or name == "forecast_period"):
                found = dataset[name].values
                is_time = found.dtype.kind == "M"
                values[name] = found.astype("datetime64[s]").astype(np.int64) if is_time else found
    for name, channel in layout.channels.items():
        if name not in crop:
            flags = np.full((*channel.levels, *layout.cells), int(Flag.channel_absent), np.uint16)
            flags[..., crop["padding"].values] |= np.uint16(Flag.padding)
            values[f"{name}_flags"] = flags
        elif channel.channel.kind != "other":
            flags = values[f"{name}_flags"]
            if f"{name}_unreadable" in crop.coords:
                flags[..., crop[f"{name}_unreadable"].values] |= np.uint16(Flag.unreadable)
            clean = (flags & int(default_reject(channel.channel.kind))) == 0
            histogram = quality.clean_histogram(crop[name].values, channel.packing, CHANNELS[name], clean)
            values[f"{name}_histogram"] = histogram
    return values


# --- quality control of radar volumes, on the native grid and before anything is derived


def _clean(
    volume: readers.RadarVolume, fields: Collection[str], spec: quality.RadarQualitySpec
) -> dict[str, np.ndarray]:
    """Remove low-confidence bins and clutter from fields of a GridRad volume: for ``clean`` of `read_scene`.

    The order is the published one: the low-confidence filter and the dual-polarization test on the listed
    bins, then speckle, weak columns and echo below anvils on the dense grid. A removed bin gets a code for
    the reason. Version 4.1 files have no weights and counts, and skip the filter.

    Returns
    -------
    Codes of all levels, ``(altitude, latitude, longitude)`` uint16, for reflectivity and each of ``fields``.
    """
    states = _states_of_bins(volume, spec)
    _add_clutter(volume, spec, states)
    return {
        name: readers.densify(volume, name, states=states)
        for name in dict.fromkeys(("reflectivity", *fields))
    }


def _add_clutter(volume: readers.RadarVolume, spec: quality.RadarQualitySpec, states: np.ndarray) -> None:
    """Find clutter and speckle on the dense grid, by the file's own floats, and add them to the states of bins."""
    stored = CHANNELS["reflectivity"].packing
    _, packing = quality.exact_codes(np.zeros(0, np.float32), stored)
    dense = readers.densify(
        volume,
        "reflectivity",
        states=states,
        encoding=lambda values: quality.exact_codes(values, stored)[0],
    )
    quality.remove_clutter(dense, volume.header.altitude_km, packing, spec)
    for plane, level in zip(dense, volume.levels, strict=True):
        part = volume.part(level)
        bins = plane.reshape(-1)[volume.index[part] - level * volume.plane]
        states[part][bins == _CLUTTER] = _CLUTTER


def _states_of_bins(volume: readers.RadarVolume, spec: quality.RadarQualitySpec) -> np.ndarray:
    """Return for each listed bin the code of the reason to remove it, 0 to keep it. Works by levels to bound
    the memory.
    """
    states = np.zeros(len(volume.index), np.uint8)
    is_counted = volume.nradobs is not None and volume.nradecho is not None
    if is_counted and "reflectivity" not in volume.weights:
        raise SchemaError(
            f"{volume.header.path}: no wReflectivity; expected the weights of reflectivity, which quality control "
            "compares. Build with `qc='none'`."
        )
    for level in volume.levels:
        part = volume.part(level)
        values = volume.values["reflectivity"][part]
        if volume.nradobs is not None and volume.nradecho is not None:
            keep = quality.filter_low_confidence(
                values,
                volume.weights["reflectivity"][part],
                volume.at_bins(volume.nradobs, level),
                volume.at_bins(volume.nradecho, level),
                version=volume.version,
                year=int(volume.header.time.astype("datetime64[Y]").astype(int)) + 1970,
                spec=spec,
            )
            states[part][~keep] = _LOW_CONFIDENCE
        if "correlation_coefficient" in volume.values:
            kept = states[part] == 0
            keep = quality.filter_dual_polarization(
                np.where(kept, values, np.nan),
                np.where(kept, volume.values["correlation_coefficient"][part], np.nan),
                np.full(values.shape, volume.header.altitude_km[level]),
                spec=spec,
            )
            states[part][kept & ~keep] = _CLUTTER
    return states


# --- again, after a fault of disk or network


def attempt(retries: int, do: Callable[..., Any], *task: Any) -> Any:
    """Call a function on a file, again after an error of disk or network. Other errors of a file are not
    retried.
    """
    for number in range(retries + 1):
        try:
            return do(*task)
        except readers.UnreadableError:  # the disk was asked, so there is nothing to wait for
            if number == retries:
                raise
        except OSError as error:
            if number == retries or isinstance(error, FileNotFoundError) or error.errno in FATAL:
                raise
            time.sleep(2.0**number / 4)
    raise AssertionError("unreachable")
