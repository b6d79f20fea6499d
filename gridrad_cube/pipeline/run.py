"""Building a cube: plan the files, write what the plan lacks, finish the store; extend and repair it.

A plan gives each scene, a file at one time, its rows for good. The unit of work is a scene
(`gridrad_cube.pipeline.work`): a run that was interrupted resumes with the scenes that are not written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gridrad_cube import quality, readers, store, tiling
from gridrad_cube.geometry import grid_tolerance, same_positions
from gridrad_cube.pipeline.finalize import finalize, is_finished
from gridrad_cube.pipeline.find import find_sources, search
from gridrad_cube.pipeline.report import Estimate, Outcome, Report, group
from gridrad_cube.pipeline.work import Runner, executor, read_unchanged, write_source
from gridrad_cube.schema import CHANNELS, Packing, Recipe, SchemaError
from gridrad_cube.sources import identities, identity
from gridrad_cube.storage import RemoteError
from gridrad_cube.store import Build, store_info, verify

if TYPE_CHECKING:
    from distributed import Client

_logger = logging.getLogger(__name__)

#: Rows and columns of a grid that are compared with those of another.
_SAMPLED = 9

#: Size and time of modification of sources by their place, or why they are not known.
_Stamps = Mapping[str, tuple[int, int] | OSError]
#: Kinds of scenes that a dry run processes, three scenes of each.
_SAMPLED_KINDS = 8
#: Errors of a disk that is full or cannot be written to.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def preprocess(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    client: Client | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    retries: int = 2,
    progress: bool = False,
) -> Report:
    """Build a cube of patches from source files, or continue or extend one.

    What is already written and verified stays; the rest of the plan is done; new files are appended. One
    bad file never stops the others; an error of the program does. The store appears, or grows, when all are done.

    Parameters
    ----------
    sources
        Files and folders (searched for netCDF and GRIB2 files), local or by URL (``s3://bucket/folder``). A web server
        has no folders: ``https://`` names a file.
    store
        Path or URL of the store.
    recipe
        What to make of them; None takes that of an existing store, else the defaults.
    client
        Dask client to use; it is never closed here.
    workers
        Without a client: 1 works in this process, more start that many processes of one thread each.
    scheduler
        Address of a running Dask scheduler, or the path of its scheduler file.
    retries
        How often a file is tried again after an error of disk or network.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    What became of each scene. The traceback of each failure is logged at level DEBUG.

    Raises
    ------
    FileNotFoundError
        If a local source is not there. Of files that a URL names, one that is not there fails alone.
    OSError
        If a server of sources cannot be reached when they are listed.
    SchemaError
        If no source file is found, the store has another recipe, a written source has changed, two files
        hold the same scene, somebody else writes to the store, or other processes could not reach it.
    """
    if recipe is not None and recipe.radar.qc_constants:
        quality.RadarQualitySpec.of(recipe.radar)  # refuses an unknown constant before any file is read
    there = search(sources)
    build = Build(store)
    if not build.files.shared and (client is not None or scheduler or workers > 1):
        raise SchemaError(f"{store}: lives in this process alone; build it with workers=1 and no client")
    is_new = not build.files.exists()
    try:
        with executor(client, workers, scheduler) as run, build.lease():
            build = Build(store)  # what a writer before us did is seen only under the lease
            damaged = build.missing()
            build.mend()
            recipe = _recipe(build, recipe)
            stamps = identities(there.files.values())
            found = _under_known_names(build, there.files, stamps)
            try:
                plan = _plan(build, recipe, found, stamps, run, progress, retries)
                check_unchanged(build, _given(build, found, stamps), run)
                _keep(build, plan, found)
                outcomes = write_plan(build, found, run, progress, retries)
            finally:
                build.flush()
            if damaged or not is_finished(build):
                finalize(build, damaged=damaged)
    finally:
        if is_new and not build.is_planned:
            _remove_empty(build)
    refused = tuple(map(_outcome, plan.refused))
    of = store_info(build.files.root).get("thresholds_of")
    return Report(
        os.fspath(store),
        (*outcomes, *refused),
        tuple(there.unread),
        tuple(there.other),
        (of[0], of[1]) if of else None,
    )


def _remove_empty(build: Build) -> None:
    """Remove the folders of a build that was refused before anything was written to it."""
    if build.files.local:
        for key in ("_build/log", "_build/plan", "_build", ""):
            with contextlib.suppress(OSError):
                os.rmdir(build.files.path(key))


def estimate(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    workers: int = 1,
    retries: int = 2,
    progress: bool = False,
) -> Estimate:
    """Say what `preprocess` of the same parameters would add to a store. Nothing is written.

    Headers of all new files are read, and a few scenes are processed for their size and time. Whether files that are
    written already have changed is not looked at.

    Raises
    ------
    FileNotFoundError, OSError, SchemaError
        As `preprocess`.
    """
    there = search(sources)
    build = Build(store)
    recipe = _recipe(build, recipe)
    stamps = identities(there.files.values())
    found = _under_known_names(build, there.files, stamps)
    with executor(None, 1, None) as run:
        plan = _plan(build, recipe, found, stamps, run, progress, retries)
    layout = plan.layout
    size, seconds = _extrapolate(build, plan, found)
    crops = sum(len(entry.windows) for entry in plan.entries)
    cells = layout.cells[0] * layout.cells[1]
    return Estimate(
        store=os.fspath(store),
        workers=workers,
        kept=len(build.entries),
        scenes=len(plan.entries),
        crops=crops,
        patches=crops * cells,
        channels=len(layout.channels),
        files=sum(len(entry.windows) * len(entry.channels) for entry in plan.entries),
        bytes=round(size),
        seconds=seconds,
        refused=tuple(map(_outcome, plan.refused)),
        unread=tuple(there.unread),
        other=tuple(there.other),
    )


def _extrapolate(build: Build, plan: _Plan, found: Mapping[str, str]) -> tuple[float, float]:
    """Bytes of the shards of a plan and seconds to write them, from a few scenes; 0 where none can be read."""
    kinds: dict[tuple[Any, ...], list[store.Entry]] = {}  # scenes of one grid and the same channels are alike
    for entry in plan.entries:
        kinds.setdefault((entry.grid, entry.channels), []).append(entry)
    known, size, seconds = 0, 0.0, 0.0
    for entries in sorted(kinds.values(), key=len, reverse=True)[:_SAMPLED_KINDS]:
        sizes, times = [], []
        for number in sorted({len(entries) // 4, len(entries) // 2, len(entries) * 3 // 4}):
            entry = entries[number]
            with contextlib.suppress(OSError, ValueError):
                begin = time.perf_counter()
                task = build.files.root, plan.layout, plan.recipe, entry, found[entry.file]
                record = write_source(*task, dry=True)
                times.append(time.perf_counter() - begin)
                sizes.append(sum(shard[0] for shards in record.shards.values() for shard in shards if shard))
        if times:
            known += len(entries)
            size += float(np.mean(sizes)) * len(entries)
            seconds += float(np.median(times)) * len(entries)
    share = len(plan.entries) / known if known else 0.0
    return size * share, seconds * share


def repair(
    store: str | os.PathLike[str], sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> list[Outcome]:
    """Rebuild what is damaged of a store, and only that: shards from their sources, all else from plan and log.

    Parameters
    ----------
    sources
        Root folders or files that the store was built from, local or by URL.

    Returns
    -------
    What became of each source of which something was damaged.

    Raises
    ------
    SchemaError
        If this is not a cube that was built from sources.
    """
    build = Build(store)
    if not build.is_planned:
        raise SchemaError(
            f"{build.files.root}: no build log in it, so nothing can be rebuilt from sources. Of embeddings, run "
            "gridrad-cube embed again with the same options: it replaces what is damaged."
        )
    with executor(None, 1, None) as run, build.lease():
        build = Build(store)
        damages = verify(store)
        build.mend()
        build = Build(store)
        layout, recipe = build.layout, build.recipe
        damaged = {d.source for d in damages} | _without_axes(build, {d.key for d in damages})
        files = find_sources(sources)
        outcomes = []
        for number, entry in enumerate(build.entries):
            if entry.source not in damaged:
                continue
            result: Any
            try:
                if recipe.format == "predecessor":
                    raise SchemaError(
                        "converted from the predecessor's files: remove its damaged shards and convert it again"
                    )
                if entry.file not in files:
                    raise FileNotFoundError(f"{entry.file}: not under --source-root")
                path = files[entry.file]
                check_unchanged(build, {number: (path, identity(path))}, run)
                result = write_source(build.files.root, layout, recipe, entry, path)
            except (OSError, ValueError) as error:
                result = error
            outcomes.append(_account(build, number, result))
        build.flush()
        if not build.lost:  # else what the log has lost would be lost to the store too
            if build.last is None and any(d.key == "zarr.json" for d in damages):
                _logger.warning(
                    "%s: root and manifest are both lost: thresholds are those of the recipe, drawn again; an earlier "
                    "reflag is forgotten",
                    build.files.root,
                )
            finalize(build, damaged={d.key for d in damages})
    return outcomes


def _without_axes(build: Build, damaged: Collection[str]) -> set[str]:
    """Sources that have to be read for the axes of their grids, which are damaged and could not be restored."""
    out = {}
    for entry in build.entries:
        if store.grid_key(entry.grid) in damaged and entry.grid not in out:
            out[entry.grid] = None if build.mend_grid(entry.grid) else entry.source
    return {source for source in out.values() if source}


def _recipe(build: Build, wanted: Recipe | None) -> Recipe:
    """The recipe of a store; refuses another one."""
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
        raise SchemaError(f"{build.files.root}: built with another recipe ({text}). Use a new --store.{hint}")
    return build.recipe


# --- source files


def _under_known_names(build: Build, found: Mapping[str, str], stamps: _Stamps) -> dict[str, str]:
    """Give a file the name that it has in the plan already, where it was found from another root then."""
    files = {(e.file.rsplit("/", 1)[-1], (e.size, e.mtime_ns)): e.file for e in build.entries}
    out: dict[str, str] = {}
    for name, path in found.items():
        stamp = stamps[path]
        known = name
        if not isinstance(stamp, OSError) and not build.numbers_of(name):
            known = files.get((name.rsplit("/", 1)[-1], stamp), name)
        out.setdefault(known, path)
    return out


def check_unchanged(
    build: Build,
    found: Mapping[int, tuple[str, tuple[int, int]]],
    run: Runner,
    *,
    write: Callable[..., store.Record] | None = None,
) -> None:
    """Refuse written scenes of which the source has changed since.

    A source of another size or time of modification may be a copy, or a file that has got further times. So its scene
    is read again: where it gives the shards that were written, it is the same, and the log gets the new size and time.

    Parameters
    ----------
    found
        By number in the plan the place of the source, and its size and time of modification (ns).
    write
        As for `write_plan`.

    Raises
    ------
    SchemaError
        Names the first source that is another one.
    """
    numbers = [n for n, (_, stamp) in found.items() if build.is_written(n) and _stamp_of(build, n) != stamp]
    layout, recipe = (build.layout, build.recipe) if numbers else (None, None)
    task = write or write_source, build.files.root, layout, recipe
    tasks = [(2, _write_same, build.shards_of(n), *task, build.entries[n], found[n][0]) for n in numbers]
    for i, result in run(_attempt, tasks):
        path, (size, mtime_ns) = found[numbers[i]]
        if isinstance(result, ValueError):
            raise SchemaError(
                f"{path}: changed since it was written to {build.files.root}: {reason(result)}. Put the old file back, "
                "or build a new store."
            ) from result
        if isinstance(result, Exception):
            raise result
        build.record(replace(result, size=size, mtime_ns=mtime_ns))


def _stamp_of(build: Build, number: int) -> tuple[int, int]:
    """Size and time of modification of the source of a scene, as it was written or else planned."""
    about = build.records[number] if build.is_written(number) else build.entries[number]
    assert about is not None
    return about.size, about.mtime_ns


def _write_same(shards: Mapping[str, Any], write: Callable[..., store.Record], *task: Any) -> store.Record:
    """The record of a scene that still gives these shards; nothing is written."""
    record = write(*task, dry=True)
    for name, written in shards.items():
        if written != record.shards[name]:
            raise SchemaError(f"its pixels of {name} are others now")
    return record


# --- the plan


class _Planned(NamedTuple):
    """What a header says of a file: the entries of its scenes, as yet without rows, and what their crops look like."""

    entries: tuple[store.Entry, ...]
    positions: tuple[np.ndarray, np.ndarray]  # of some pixels, by which grids are compared
    tolerance: float
    crop: tuple[int, int]
    channels: Mapping[str, store.ChannelLayout]
    coordinates: tuple[str, ...]


class _Plan(NamedTuple):
    """What a store lacks: new entries with their rows, and grids that stand for others; and what cannot be planned."""

    recipe: Recipe
    layout: store.CubeLayout
    entries: Sequence[store.Entry]
    grids: Sequence[str]
    refused: Sequence[store.Record]


def _given(build: Build, found: Mapping[str, str], stamps: _Stamps) -> dict[int, tuple[str, tuple[int, int]]]:
    """Place and stamp of the scenes of the plan of which the file is given, by number."""
    return {
        number: (path, stamp)
        for name, path in found.items()
        if not isinstance(stamp := stamps[path], OSError)
        for number in build.numbers_of(name)
    }


def _is_open_ended(build: Build, name: str, stamp: tuple[int, int]) -> bool:
    """Whether a file may have scenes that the plan lacks: new, of several times, or touched since."""
    numbers = build.numbers_of(name)
    return not numbers or any(
        build.entries[n].source != name or _stamp_of(build, n) != stamp for n in numbers
    )


def _plan(
    build: Build,
    recipe: Recipe,
    found: Mapping[str, str],
    stamps: _Stamps,
    run: Runner,
    progress: bool,
    retries: int,
) -> _Plan:
    """Plan the scenes that a store lacks, and none that it has. Nothing is written."""
    known = {name: stamp for name, path in found.items() if not isinstance(stamp := stamps[path], OSError)}
    refused = [
        _refusal(name, error) for name, path in found.items() if isinstance(error := stamps[path], OSError)
    ]
    new = [(name, found[name]) for name, stamp in known.items() if _is_open_ended(build, name, stamp)]
    results = run(_attempt, [(retries, _read_header, *source, recipe) for source in new])
    planned: list[_Planned] = []
    offered: dict[str, tuple[store.Entry, store.ChannelLayout]] = {}  # by the first scene that has it
    packings: dict[str, set[Packing]] = {}  # of all scenes that have it
    for i, result in tqdm(results, "plan", len(new), unit="file", disable=not progress):
        name, _ = new[i]
        if isinstance(result, Exception):
            refused.append(_refusal(name, result, known[name][0]))
            continue
        times = {build.entries[number].time for number in build.numbers_of(name)}
        entries = tuple(e for e in result.entries if e.time not in times)
        if not entries:
            continue
        if build.is_planned and any(n > m for n, m in zip(result.crop, build.layout.crop, strict=True)):
            refused.append(_refusal(name, _too_large(result.crop, build.layout), known[name][0]))
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
        reasons = "\n".join(group(map(_outcome, refused)))
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
    return _Plan(recipe, layout, new_entries, grids, refused)


def _keep(build: Build, plan: _Plan, found: Mapping[str, str]) -> None:
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
    """Grids that a known one stands for, because they differ by rounding alone: in files of float32 and of float64.

    Known are those of the store, and of what is planned the first in plan order.
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
    """Positions of some pixels, evenly spread."""
    few = [
        [np.linspace(0, n - 1, min(n, _SAMPLED)).astype(int) for n in v.shape] for v in (latitude, longitude)
    ]
    return latitude[np.ix_(*few[0])], longitude[np.ix_(*few[1])]


def _write_grid(build: Build, grid: str, found: Mapping[str, str], recipe: Recipe) -> None:
    """Keep the positions of a grid that stands for others: those of the first scene that has them."""
    entry = next(entry for entry in build.entries if entry.grid == grid)
    if entry.file in found:
        header = _inspect(found[entry.file], recipe)
        store.write_grid(build.files, grid, header.latitude, header.longitude)


def _too_large(crop: tuple[int, int], layout: store.CubeLayout) -> SchemaError:
    return SchemaError(
        f"needs crops of {crop} px, but this store has {layout.crop}. Build another store for it, or cut windows that "
        "fit (--crop, --placement)."
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
    """Plan the scenes of one file by its header. That itself stays here: it holds the position of every pixel."""
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
    """What the crops of a new store have in common: the union of channels, the largest crop."""
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
            f"{build.files.root}: GridRad v3.1 and v4 lie on different lattices (0.02 and 1/48 degree) and do not "
            "belong in one store. Build two, or pass Recipe(mixed_lattices=True) if their pixels need not align."
        )


# --- what is written, and what becomes of each file


def write_plan(
    build: Build,
    paths: Mapping[str, str],
    run: Runner,
    progress: bool,
    retries: int,
    *,
    write: Callable[..., store.Record] | None = None,
    title: str = "preprocess",
) -> list[Outcome]:
    """Do what the plan still lacks; return one outcome for each planned scene, in the order of the plan.

    ``paths`` has the place of each file that is given, by its name in the plan. ``write`` is the unit of work, with
    the parameters of `write_source`, which it is if None; ``title`` that of the progress bar.
    """
    damaged = {shard.row for shard in build.shards() if shard.found != shard.size}
    outcomes: dict[int, Outcome] = {}
    todo = []
    for number, entry in enumerate(build.entries):
        if build.is_written(number) and damaged.isdisjoint(entry.rows):
            outcomes[number] = Outcome(entry.source, "kept", crops=len(entry.windows))
        elif entry.file in paths:
            todo.append(number)
        else:
            outcomes[number] = _not_given(build, number)
    if todo:
        task = retries, write or write_source, build.files.root, build.layout, build.recipe
        entries = (build.entries[number] for number in todo)
        tasks = [(*task, entry, paths[entry.file]) for entry in entries]
        for i, result in tqdm(run(_attempt, tasks), title, len(todo), unit="scene", disable=not progress):
            outcomes[todo[i]] = _account(build, todo[i], result)
    return [outcomes[n] for n in range(len(build.entries))]


def _attempt(retries: int, do: Callable[..., Any], *task: Any) -> Any:
    """Do something with a file, again after a fault of disk or network; what is wrong with a file stays wrong."""
    for attempt in range(retries + 1):
        try:
            return do(*task)
        except OSError as error:
            if attempt == retries or isinstance(error, FileNotFoundError) or error.errno in _FATAL:
                raise
            time.sleep(2.0**attempt / 4)
    raise AssertionError("unreachable")


def _account(build: Build, number: int, result: Any) -> Outcome:
    """Put what became of a task into the log."""
    if isinstance(result, RemoteError):
        raise result
    # Errors of the place that is written to: no other file would fare better.
    refused = isinstance(result, PermissionError) and str(result.filename).startswith(build.files.root)
    if refused or (isinstance(result, OSError) and result.errno in _FATAL):
        raise OSError(
            result.errno,
            f"{build.files.root}: {result.strerror}. Make room, or see to the rights, and run again: it continues",
        )
    entry = build.entries[number]
    if isinstance(result, Exception):
        result = _failure(entry.source, result, size=entry.size, mtime_ns=entry.mtime_ns)
    if result.status == "written" or not build.is_written(number):
        build.record(result)  # a damaged crop that cannot be rebuilt now keeps its record, for verify
    return _outcome(result, entry)


def _not_given(build: Build, number: int) -> Outcome:
    """A planned source that is not written whole and not among SOURCE now: what is known of it stays."""
    entry, record = build.entries[number], build.records[number]
    if build.is_written(number):
        why = "shards are missing or cut; run gridrad-cube verify --repair, or preprocess with this file"
        return Outcome(entry.source, "failed", why, len(entry.windows))
    if record is None and entry.source in build.lost:
        return Outcome(entry.source, "failed", "its record is missing from the build log; give this file")
    if record is None:
        return _account(build, number, FileNotFoundError("planned, not written, and not among SOURCE now"))
    return _outcome(record, entry)


def _refusal(name: str, error: Exception, size: int | None = None) -> store.Record:
    """The record of a file that cannot be planned, or of which not even the size is known; an empty one is skipped."""
    return _failure(name, error, status="skipped" if size == 0 else "failed", size=size or 0)


def _failure(
    source: str, error: Exception, *, status: str = "failed", size: int, mtime_ns: int = 0
) -> store.Record:
    _logger.debug("%s failed", source, exc_info=error)
    return store.Record(source=source, status=status, size=size, mtime_ns=mtime_ns, reason=reason(error))


def _outcome(record: store.Record, entry: store.Entry | None = None) -> Outcome:
    """The outcome that a record of the build log tells."""
    crops = len(entry.windows) if entry and record.status == "written" else 0
    return Outcome(record.source, record.status, record.reason, crops)


def reason(error: BaseException) -> str:
    """Say in one line why a file failed; the type too where it is no error about the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
