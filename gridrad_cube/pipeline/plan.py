"""Planning: read every header, order the scenes, give each its rows for good."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from gridrad_cube import readers, store, tiling
from gridrad_cube.pipeline.execution import Runner
from gridrad_cube.pipeline.report import Outcome, outcome_of, reason
from gridrad_cube.pipeline.sources import Source
from gridrad_cube.schema import CHANNELS, Packing, Recipe, SchemaError


def _header(path: str, recipe: Recipe) -> readers.Header:
    header = readers.inspect(path, **reading(recipe, recipe.channels))
    tiling.crop_shape(
        header.shape, recipe.tile, header.lattice
    )  # raises if the scene is smaller than a patch
    return header


def reading(recipe: Recipe, channels: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of the readers for these channels of a recipe."""
    return {
        "format": recipe.format,
        "channels": channels,
        "radar": recipe.radar,
        "variables": recipe.variables,
    }


def under_known_names(build: store.Build, found: Sequence[Source]) -> list[Source]:
    """Give a file the name that it has in the plan already, where it was found from another root then."""
    files = {(e.source.rsplit("/", 1)[-1], e.size, e.mtime_ns): e.source for e in build.entries}
    out: dict[str, Source] = {}
    for source in found:
        same = files.get((source.name.rsplit("/", 1)[-1], *source.stat()))
        named = source if source.name in build.number or same is None else replace(source, name=same)
        out.setdefault(named.name, named)
    return list(out.values())


def plan(
    build: store.Build, recipe: Recipe, found: Sequence[Source], run: Runner, progress: bool
) -> list[Outcome]:
    """Append files that the plan lacks; return those that cannot be planned, recorded as such."""
    for source in found:
        if source.name in build.number:
            check_unchanged(build, source)
    new = [s for s in found if s.name not in build.number]
    headers: dict[str, readers.Header] = {}
    refused = []
    bar = tqdm(
        run(_header, [(s.path, recipe) for s in new]),
        total=len(new),
        desc="plan",
        unit="file",
        disable=not progress,
    )
    for i, header in bar:
        if isinstance(header, Exception):
            refused.append(_refuse(build, new[i], header))
        else:
            headers[new[i].name] = header
    order = sorted((s for s in new if s.name in headers), key=lambda s: (headers[s.name].time, s.name))
    if build.layout is None:
        if not order:
            return sorted(refused, key=lambda o: o.source)
        layout = _layout(recipe, order, headers)
        own = tuple(name for name, channel in layout.channels.items() if channel.channel.kind != "other")
        recipe = replace(recipe, channels=recipe.channels or own)
    else:
        layout = build.layout
    entries, misfits = _entries(build.rows, recipe, layout, order, headers)
    refused += [_refuse(build, source, error) for source, error in misfits]
    store.check_duplicates(build.entries, entries)
    if not recipe.mixed_lattices:
        _check_lattices(build, [*build.entries, *entries])
    if build.layout is None:
        build.begin(recipe, layout, entries)
    else:
        build.extend(entries)
    return sorted(refused, key=lambda o: o.source)


def _check_lattices(build: store.Build, entries: Sequence[store.Entry]) -> None:
    old = {e.format for e in entries} & {"gridrad_v3_1"}
    new = {e.format for e in entries if e.format.startswith("gridrad_v4")}
    if old and new:
        raise SchemaError(
            f"{build.files.root}: GridRad v3.1 and v4 lie on different lattices (0.02 and 1/48 degree) and do not "
            "belong in one store. Build two, or pass --mixed-lattices if their pixels need not align."
        )


def check_unchanged(build: store.Build, source: Source) -> None:
    """Refuse a written source whose size or time of modification is another now."""
    record = build.outcome(build.number[source.name])
    if record and record.status == "written" and (record.size, record.mtime_ns) != source.stat():
        raise SchemaError(
            f"{source.path}: changed since it was written to {build.files.root} (size or time of modification). "
            "Put the old file back, or build a new store."
        )


def _refuse(build: store.Build, source: Source, error: Exception) -> Outcome:
    size = os.stat(source.path).st_size if os.path.exists(source.path) else 0
    record = store.Record(
        source=source.name, status="skipped" if size == 0 else "failed", size=size, reason=reason(error)
    )
    if build.refused.get(source.name) != record:
        build.record(record)
    return outcome_of(record)


def _layout(
    recipe: Recipe, order: Sequence[Source], headers: Mapping[str, readers.Header]
) -> store.CubeLayout:
    """What the crops of a new store have in common: the union of channels, the largest crop."""
    offered: dict[str, Source] = {}
    for source in order:
        header = headers[source.name]
        for name in header.channels:
            offered.setdefault(name, source)
    asked = [label.split("@")[0] for label in recipe.channels]
    lacking = [name for name in asked if name not in CHANNELS and name not in offered]
    if lacking:
        raise SchemaError(
            f"channels: no file has {lacking}; expected some of {list(CHANNELS)}, or variables that a file has. "
            f"List them with: gridrad-cube info {order[0].path}"
        )
    rank = {name: number for number, name in enumerate(dict.fromkeys((*CHANNELS, *asked)))}
    names = sorted(offered, key=lambda name: rank.get(name, len(rank)))
    channels = {}
    for path in dict.fromkeys(offered[n].path for n in names):
        scene = readers.read_scene(path, **reading(recipe, recipe.channels))
        for name in (n for n in names if offered[n].path == path):
            channels[name] = _channel_layout(name, scene[name])
    shapes = [tiling.crop_shape(headers[s.name].shape, recipe.tile, headers[s.name].lattice) for s in order]
    coordinates = [n for n in store.COORDINATES if n not in ("observation_time", "satellite_zenith_angle")]
    if any(headers[s.name].observation_time is not None for s in order):
        coordinates.append("observation_time")
    if any(headers[s.name].satellite_longitude is not None for s in order):
        coordinates.append("satellite_zenith_angle")
    layout = store.CubeLayout(
        channels={n: channels[n] for n in names},
        crop=(max(s[0] for s in shapes), max(s[1] for s in shapes)),
        patch=recipe.tile.patch,
        codec=recipe.codec,
        coordinates=tuple(coordinates),
    )
    return replace(layout, rows_per_chunk=store.block_length(layout, len(order)))


def _channel_layout(name: str, variable: xr.DataArray) -> store.ChannelLayout:
    packing = Packing.from_attributes(variable.attrs, variable.dtype)
    attributes = {k: v for k, v in variable.attrs.items() if k not in packing.to_attributes()}
    altitudes = tuple(float(a) for a in variable["altitude"].values) if "altitude" in variable.dims else ()
    return store.ChannelLayout(name=name, packing=packing, attributes=attributes, altitudes_km=altitudes)


def _entries(
    row: int,
    recipe: Recipe,
    layout: store.CubeLayout,
    order: Sequence[Source],
    headers: Mapping[str, readers.Header],
) -> tuple[list[store.Entry], list[tuple[Source, Exception]]]:
    entries: list[store.Entry] = []
    misfits: list[tuple[Source, Exception]] = []
    for source in order:
        header = headers[source.name]
        try:
            shape = tiling.crop_shape(header.shape, recipe.tile, header.lattice)
            if shape[0] > layout.crop[0] or shape[1] > layout.crop[1]:
                raise SchemaError(
                    f"needs crops of {shape} px, but this store has {layout.crop}. Build another store for it, or "
                    "cut windows that fit (--crop, --placement)."
                )
            scene = f"{header.product}/{header.time.astype('datetime64[s]')}"
            windows = tuple(
                (w.y, w.x) for w in tiling.windows(header.shape, recipe.tile, scene, header.lattice)
            )
            size, mtime = source.stat()
        except (SchemaError, OSError) as error:
            misfits.append((source, error))
            continue
        entries.append(
            store.Entry(
                source=source.name,
                size=size,
                mtime_ns=mtime,
                row=row,
                grid=header.grid_id,
                shape=header.shape,
                time=int(header.time.astype("datetime64[s]").astype(np.int64)),
                product=header.product,
                format=header.format,
                channels=header.channels,
                windows=windows,
            )
        )
        row += len(windows)
    return entries, misfits
