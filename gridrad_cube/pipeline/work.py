"""The unit of work: one source file to the shards of its crops and one record for the build log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import xarray as xr

from gridrad_cube import quality, readers, store, tiling
from gridrad_cube.pipeline import radar
from gridrad_cube.pipeline.plan import reading
from gridrad_cube.schema import (
    CHANNELS,
    Flag,
    Packing,
    Recipe,
    SchemaError,
    channel_label,
    default_reject,
)


def write_source(
    root: str, layout: store.CubeLayout, recipe: Recipe, entry: store.Entry, path: str
) -> store.Record:
    """Read one file, cut it, flag it, write its shards; return its record for the build log.

    The unit of work: it owns whole shards, and doing it twice gives the same bytes.

    Raises
    ------
    SchemaError
        If the file is not what the plan says, or a channel is packed otherwise than in the store.
    """
    start = time.perf_counter()
    files = store.Files(root)
    found = os.stat(path)
    spec = radar.quality_spec(recipe.radar)
    scene = readers.read_scene(
        path,
        **reading(recipe, _labels(layout, entry)),
        clean=None if spec is None else partial(radar.clean, spec=spec),
    )
    if int(scene["time"].values.astype("datetime64[s]").astype(np.int64)) != entry.time:
        raise SchemaError(f"{path}: its time is not the one that was planned; it changed meanwhile")
    if (scene.sizes["y"], scene.sizes["x"]) != entry.shape:
        raise SchemaError(
            f"{path}: its shape is not the {entry.shape} that was planned; it changed meanwhile"
        )
    scene = scene.load()
    store.write_grid(files, entry.grid, scene["latitude"].values, scene["longitude"].values)
    windows = (tiling.Window(y, x, *layout.crop) for y, x in entry.windows)
    crops = (tiling.cut(scene, window, layout.patch) for window in windows)
    record = write_crops(root, layout, recipe, entry, crops, path)
    seconds = round(time.perf_counter() - start, 3)
    return replace(record, size=found.st_size, mtime_ns=found.st_mtime_ns, seconds=seconds)


def write_crops(
    root: str,
    layout: store.CubeLayout,
    recipe: Recipe,
    entry: store.Entry,
    crops: Iterable[xr.Dataset],
    path: str,
) -> store.Record:
    """Flag the crops of a source and write their shards; return its record for the build log.

    Parameters
    ----------
    crops
        One for each row of the entry, as `tiling.cut` gives them, with those of the layout's channels that it has.
        A coordinate ``<channel>_unreadable (row, col)`` marks patches whose source is lost.
    path
        Of the source, for messages.

    Raises
    ------
    SchemaError
        If a channel is packed otherwise than in the store.
    """
    files = store.Files(root)
    rows = store.blank_rows(layout, len(entry.windows))
    shards: dict[str, list[tuple[int, int] | None]] = {name: [] for name in layout.channels}
    for number, (row, crop) in enumerate(zip(entry.rows, crops, strict=True)):
        for name in layout.channels:
            if name in crop:
                _check_packing(path, layout.channels[name], crop[name])
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


def _labels(layout: store.CubeLayout, entry: store.Entry) -> tuple[str, ...]:
    """Labels of the store's channels that this scene offers."""
    return tuple(
        channel_label(name, altitude)
        for name, channel in layout.channels.items()
        if name in entry.channels
        for altitude in (channel.altitudes_km or (None,))
    )


def _check_packing(path: str, channel: store.ChannelLayout, variable: xr.DataArray) -> None:
    found = Packing.from_attributes(variable.attrs, variable.dtype)
    if found != channel.packing:
        raise SchemaError(f"{path}: {channel.name} is packed as {found}, but the store has {channel.packing}")


def _values(crop: xr.Dataset, layout: store.CubeLayout, recipe: Recipe) -> dict[str, np.ndarray]:
    """Every small variable of a crop, flags of absent channels among them."""
    assessed = quality.assess(crop, recipe.quality)
    values = {str(name): assessed[name].values for name in assessed.data_vars}
    for name in layout.coordinates:
        for dataset in (assessed, crop):
            if name in dataset.coords and dataset[name].ndim:
                values[name] = _stored(dataset[name].values, store.COORDINATES[name][1])
    padding = crop["padding"].values
    for name in layout.channels:
        if name in crop and layout.channels[name].channel.kind == "other":
            continue
        if name in crop:
            if f"{name}_unreadable" in crop.coords:
                lost = crop[f"{name}_unreadable"].values
                values[f"{name}_flags"][..., lost] |= np.uint16(Flag.unreadable)
            values[f"{name}_histogram"] = _histogram(crop[name], values[f"{name}_flags"])
            continue
        _, shape = layout.cell_dims(name)
        flags = np.full(shape, int(Flag.channel_absent), np.uint16)
        flags[..., padding] |= np.uint16(Flag.padding)
        values[f"{name}_flags"] = flags
    return values


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if values.dtype.kind == "M":
        return values.astype("datetime64[s]").astype(np.int64)
    return values.astype(dtype)


def _histogram(variable: xr.DataArray, flags: np.ndarray) -> np.ndarray:
    """Counts of data pixels of clean patches, int64, shape ([altitude,] bins)."""
    packing = Packing.from_attributes(variable.attrs, variable.dtype)
    channel = CHANNELS[str(variable.name)]
    clean = (flags & int(default_reject(channel.kind))) == 0
    return quality.clean_histogram(variable.values, packing, channel, clean)
