"""Plan a build: read the headers of source files, and assign rows of the store to their scenes.

A plan gives each scene, a file at one time, its rows of the store. `make_plan` reads headers and writes
nothing;
`keep_plan` writes a plan to its store. Pixels are read by `gridrad_cube.pipeline.work`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gridrad_cube import readers, store, tiling
from gridrad_cube.geometry import grid_tolerance, same_positions
from gridrad_cube.pipeline.execution import Runner
from gridrad_cube.pipeline.report import group, outcome_of, refusal
from gridrad_cube.pipeline.work import attempt, read_unchanged
from gridrad_cube.progress import progress_bar
from gridrad_cube.schema import CHANNELS, Packing, Recipe, SchemaError
from gridrad_cube.store import Build

#: Size and time of modification of sources by their path or URL, or the error.
_Stamps = Mapping[str, tuple[int, int] | OSError]
#: Part of the time limit of a file that reading its header may take.
_HEADER_SHARE = 0.25
#: Rows and columns of a grid that are compared with those of another.
_SAMPLED = 9


def recipe_of(build: Build, wanted: Recipe | None) -> Recipe:
    """Return the recipe of a store; refuse another recipe."""
    if not build.is_planned:
        return wanted or Recipe()
    if wanted is None:
        return build.recipe
    if not wanted.channels or sorted(wanted.channels) == sorted(build.recipe.channels):  # in any order
        wanted = replace(wanted, channels=build.recipe.channels)
    old, new = build.recipe.to_dict(), wanted.to_dict()
    changed = {k: (old[k], new[k]) for k in old if old[k] != new[k]}
    if changed:
        text = "; ".join(f"{k}: store {a}, asked {b}" for k, (a, b) in changed.items())
        hint = " Thresholds change with: gridrad-cube reflag." if "quality" in changed else ""
        raise SchemaError(f"{build.files.root}: built with another recipe ({text}). Use a new `store`.{hint}")
    return build.recipe


def under_known_names(build: Build, found: Mapping[str, str], stamps: _Stamps) -> dict[str, str]:
    """Give a file the name that it already has in the plan, if it was found from another root before."""
    files = {(e.file.rsplit("/", 1)[-1], (e.size, e.mtime_ns)): e.file for e in build.entries}
    out: dict[str, str] = {}
    for name, path in found.items():
        stamp = stamps[path]
        known = name
        if not isinstance(stamp, OSError) and not build.numbers_of(name):
            known = files.get((name.rsplit("/", 1)[-1], stamp), name)
        out.setdefault(known, path)
    return out


def stamp_of(build: Build, number: int) -> tuple[int, int]:
    """Return the size and time of modification of the source of a scene when it was written, or else planned."""
    about = build.records[number] if build.is_written(number) else build.entries[number]
    assert about is not None
    return about.size, about.mtime_ns


class _Planned(NamedTuple):
    """A file as its header describes it: the entries of its scenes, still without rows, and the form of their
    crops.
    """

    entries: tuple[store.Entry, ...]
    positions: tuple[np.ndarray, np.ndarray]  # of some pixels, by which grids are compared
    tolerance: float
    crop: tuple[int, int]
    channels: Mapping[str, store.ChannelLayout]
    coordinates: tuple[str, ...]


class Plan(NamedTuple):
    """Scenes to add to a store: new entries with their rows, shared grids, and files that cannot be planned."""

    recipe: Recipe
    layout: store.CubeLayout
    entries: Sequence[store.Entry]
    grids: Sequence[str]
    refused: Sequence[store.Record]


def given_scenes(
    build: Build, found: Mapping[str, str], stamps: _Stamps
) -> dict[int, tuple[str, tuple[int, int]]]:
    """Return path and stamp of the planned scenes whose file is given, by number."""
    return {
        number: (path, stamp)
        for name, path in found.items()
        if not isinstance(stamp := stamps[path], OSError)
        for number in build.numbers_of(name)
    }


def _is_open_ended(build: Build, name: str, stamp: tuple[int, int]) -> bool:
    """Return whether a file may have scenes that the plan lacks: a new file, one of several times, or a
    changed one.
    """
    numbers = build.numbers_of(name)
    return not numbers or any(build.entries[n].source != name or stamp_of(build, n) != stamp for n in numbers)


def make_plan(
    build: Build,
    recipe: Recipe,
    found: Mapping[str, str],
    stamps: _Stamps,
    run: Runner,
    progress: bool | None,
    retries: int,
) -> Plan:
    """Plan the scenes that a store lacks. Nothing is written."""
    known = {name: stamp for name, path in found.items() if not isinstance(stamp := stamps[path], OSError)}
    refused = [
        refusal(name, error) for name, path in found.items() if isinstance(error := stamps[path], OSError)
    ]
    new = [(name, found[name]) for name, stamp in known.items() if _is_open_ended(build, name, stamp)]
    tasks = [(retries, _read_header, *source, recipe) for source in new]
    results = run(attempt, tasks, share=_HEADER_SHARE)
    planned: list[_Planned] = []
    offered: dict[str, tuple[store.Entry, store.ChannelLayout]] = {}  # written by the first scene that has it
    packings: dict[str, set[Packing]] = {}  # of all scenes that have it
    with progress_bar("plan", results, total=len(new), unit="file", progress=progress) as bar:
        for i, result in bar:
            name, _ = new[i]
            if isinstance(result, Exception):
                refused.append(refusal(name, result, known[name][0]))
                continue
            times = {build.entries[number].time for number in build.numbers_of(name)}
            entries = tuple(e for e in result.entries if e.time not in times)
            if not entries:
                continue
            if build.is_planned and any(n > m for n, m in zip(result.crop, build.layout.crop, strict=True)):
                refused.append(refusal(name, _too_large(result.crop, build.layout), known[name][0]))
                continue
            planned.append(result._replace(entries=entries, channels={}))
            first = min(entries, key=_order)
            for channel, layout in result.channels.items():
                packings.setdefault(channel, set()).add(layout.packing)
                if channel not in offered or _order(first) < _order(offered[channel][0]):
                    offered[channel] = first, layout
    refused.sort(key=lambda record: record.source)
    new_entries = sorted((e for p in planned for e in p.entries), key=_order)
    same = _merge_grids(build, planned)
    new_entries = [replace(entry, grid=same.get(entry.grid, entry.grid)) for entry in new_entries]
    if build.is_planned:
        layout = build.layout
    elif not new_entries:
        reasons = "\n".join(group(map(outcome_of, refused)))
        raise SchemaError(f"{build.files.root}: no file can be used, so there is no store:\n{reasons}")
    else:
        channels = {
            name: replace(channel, packing=readers.common_packing(channel.channel, packings[name]))
            for name, (_, channel) in offered.items()
        }
        layout = _layout(recipe, planned, channels, len(new_entries), found[new_entries[0].file])
        own = tuple(n for n, channel in layout.channels.items() if channel.channel.kind != "other")
        recipe = replace(recipe, channels=recipe.channels or own)
    row = build.rows
    for number, entry in enumerate(new_entries):
        new_entries[number] = replace(entry, row=row)
        row += len(entry.windows)
    store.check_duplicates(build.entries, new_entries)
    if not recipe.mixed_lattices:
        _check_lattices(build, [*build.entries, *new_entries])
    grids = sorted(set(same.values()) & {entry.grid for entry in new_entries})
    return Plan(recipe, layout, new_entries, grids, refused)


def keep_plan(build: Build, plan: Plan, found: Mapping[str, str]) -> None:
    """Write a plan to its store, and what could not be planned."""
    if not build.is_planned:
        build.begin(plan.recipe, plan.layout, plan.entries)
    elif plan.entries:
        build.extend(plan.entries)
    for grid in plan.grids:
        _write_grid(build, grid, found, plan.recipe)
    for record in plan.refused:
        if build.refused.get(record.source) != record:
            build.record(record)


def _merge_grids(build: Build, planned: Sequence[_Planned]) -> dict[str, str]:
    """Return grids that are replaced by a known one, because they differ only by rounding, as float32 and
    float64 do.

    Known grids are those of the store, and among the planned ones the first in plan order.
    """
    every = {entry.grid: entry.shape for entry in build.entries}
    known: dict[tuple[int, int], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    shapes = {p.entries[0].shape for p in planned if p.entries[0].grid not in every}
    for grid, shape in every.items():
        if shape in shapes:
            with contextlib.suppress(FileNotFoundError):  # nothing of it is written
                known.setdefault(shape, {})[grid] = _sample(*store.read_grid(build.files, grid))
    same: dict[str, str] = {}
    for scene in sorted(planned, key=lambda p: min(map(_order, p.entries))):
        entry = scene.entries[0]
        if entry.grid in every or entry.grid in same:
            continue
        candidates = known.setdefault(entry.shape, {})
        for grid, positions in candidates.items():
            if same_positions(positions, scene.positions, scene.tolerance):
                same[entry.grid] = grid
                break
        else:
            candidates[entry.grid] = scene.positions
            every[entry.grid] = entry.shape
    return same


def _sample(latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of some pixels, evenly spread."""
    few = [
        [np.linspace(0, n - 1, min(n, _SAMPLED)).astype(int) for n in v.shape] for v in (latitude, longitude)
    ]
    return latitude[np.ix_(*few[0])], longitude[np.ix_(*few[1])]


def _write_grid(build: Build, grid: str, found: Mapping[str, str], recipe: Recipe) -> None:
    """Keep the positions of a grid that replaces others: those of the first scene that has them."""
    entry = next(entry for entry in build.entries if entry.grid == grid)
    if entry.file in found:
        header = _inspect(found[entry.file], recipe)
        store.write_grid(build.files, grid, header.latitude, header.longitude)


def _too_large(crop: tuple[int, int], layout: store.CubeLayout) -> SchemaError:
    return SchemaError(
        f"needs crops of {crop} px, but this store has {layout.crop}. Build another store for it, or cut windows that "
        "fit (`crop`, `placement`)."
    )


def _order(entry: store.Entry) -> tuple[int, str]:
    return entry.time, entry.source


def _inspect(path: str, recipe: Recipe) -> readers.Header:
    return readers.inspect(
        path,
        format=recipe.format,
        channels=recipe.channels,
        radar=recipe.radar,
        variables=recipe.variables,
    )


def _read_header(name: str, path: str, recipe: Recipe) -> _Planned:
    """Plan the scenes of one file by its header. The header is not returned, because it holds every pixel's
    position.
    """
    header, (size, mtime) = read_unchanged(path, functools.partial(_inspect, path, recipe))
    scene = store.Entry(
        source=name,
        size=size,
        mtime_ns=mtime,
        row=0,
        time=0,
        grid=header.grid_id,
        shape=header.shape,
        product=header.product,
        format=header.format,
        channels=header.channels,
        windows=(),
    )
    several = header.times.size > 1
    entries = []
    for moment in header.times if several else [header.time.astype("datetime64[s]")]:
        time = int(moment.astype(np.int64))
        windows = tiling.windows(header.shape, recipe.tile, f"{header.product}/{moment}", header.lattice)
        source = store.scene_of(name, time) if several else name
        entries.append(replace(scene, source=source, time=time, windows=tuple((w.y, w.x) for w in windows)))
    channels = {}
    for channel, about in header.fields.items():
        attributes = dict(about.attributes) | about.packing.to_attributes()
        altitudes = header.altitudes if len(about.dims) == 3 else ()
        said = {"dtype": about.packing.dtype, "attributes": attributes, "altitudes_km": altitudes}
        channels[channel] = store.ChannelLayout.from_dict(channel, said)
    further = {
        "observation_time": header.observation_time is not None,
        "satellite_zenith_angle": header.satellite_longitude is not None,
        "forecast_period": header.lead_time is not None,
    }
    crop = tiling.crop_shape(header.shape, recipe.tile, header.lattice)
    positions, tolerance = (
        (header.latitude, header.longitude),
        grid_tolerance(header.latitude, header.longitude),
    )
    coordinates = tuple(n for n, is_there in further.items() if is_there)
    return _Planned(tuple(entries), _sample(*positions), tolerance, crop, channels, coordinates)


def _layout(
    recipe: Recipe,
    planned: Sequence[_Planned],
    channels: Mapping[str, store.ChannelLayout],
    scenes: int,
    example: str,
) -> store.CubeLayout:
    """Return the layout of a new store: the union of channels, and the largest crop."""
    asked = [label.split("@")[0] for label in recipe.channels]
    lacking = [name for name in asked if name not in CHANNELS and name not in channels]
    if lacking:
        raise SchemaError(
            f"channels: no file has {lacking}; expected some of {list(CHANNELS)}, or variables that a file has. "
            f"List them with: gridrad-cube info {example}"
        )
    rank = {name: number for number, name in enumerate(dict.fromkeys((*CHANNELS, *asked)))}
    names = sorted(channels, key=lambda name: (rank.get(name, len(rank)), name))
    further = dict.fromkeys(name for p in planned for name in p.coordinates)
    always = [n for n in store.COORDINATES if n not in store.OPTIONAL_COORDINATES]
    layout = store.CubeLayout(
        channels={name: channels[name] for name in names},
        crop=(max(p.crop[0] for p in planned), max(p.crop[1] for p in planned)),
        patch=recipe.tile.patch,
        codec=recipe.codec,
        coordinates=(*always, *sorted(further)),
    )
    return replace(layout, rows_per_chunk=store.block_length(layout, scenes))


def _check_lattices(build: Build, entries: Sequence[store.Entry]) -> None:
    formats = {entry.format for entry in entries}
    if "gridrad_v3_1" in formats and any(f.startswith("gridrad_v4") for f in formats):
        raise SchemaError(
            f"{build.files.root}: GridRad v3.1 and v4 have different lattices (0.02 and 1/48 degree), so their "
            "pixels do not align. Build two stores, or pass Recipe(mixed_lattices=True) if that does not matter."
        )
