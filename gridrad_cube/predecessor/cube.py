"""The predecessor's ``.npz`` and ``.pt`` files as a cube of patches, by the same plan, log and resume as any build."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from tqdm import tqdm

from gridrad_cube import pipeline, store, tiling
from gridrad_cube.pipeline.execution import Runner, executor
from gridrad_cube.pipeline.plan import check_unchanged
from gridrad_cube.pipeline.report import reason
from gridrad_cube.predecessor import files, names
from gridrad_cube.predecessor.locate import find_window, open_scene
from gridrad_cube.predecessor.names import OldSource
from gridrad_cube.predecessor.slices import (
    CHANNEL_NAMES,
    EARLY_CELLS,
    IR,
    VISIBLE,
    OldCrop,
    channel_of_values,
    read_crops,
)
from gridrad_cube.schema import CHANNELS, PATCH_SIZE, TIME_FILL, Packing, Recipe, SchemaError, TileSpec

logger = logging.getLogger(__name__)

VisibleUnits = Literal["auto", "percent", "1"]

#: Values that stand for missing data in the old files: fill codes that a lost mask let through (uint16, netCDF's
#: default, and what products write).
MISSING = (65535.0, -999.0, -9999.0)
LARGEST_NUMBER = 1e30
#: Reflectance as a fraction stays below this; in percent any day is brighter.
BRIGHTEST_FRACTION = 1.6
#: Sources looked at to tell percent from fractions.
_LOOKED_AT = 16
_FORMAT = "predecessor"
#: Grid of crops whose place in their scene is not known, and of patches whose place in a crop is not.
UNKNOWN, UNORDERED = "unknown", "unordered"


class _Found(NamedTuple):
    """What planning learns of a source."""

    crops: int
    shape: tuple[int, int] | None
    channels: tuple[str, ...]
    patch: int | None
    ordered: bool = True


class _Place(NamedTuple):
    """Where a crop lies: its source grid, that grid's shape and axes, the window, the time."""

    grid: str
    shape: tuple[int, int]
    window: tuple[int, int]
    time: int
    latitude: np.ndarray
    longitude: np.ndarray


def from_npz(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store_path: str | os.PathLike[str],
    **options: Any,
) -> pipeline.Report:
    """Build a cube from ``.npz`` files, or go on; parameters as for `from_pt`.

    Only ``crop`` is read: ``patches`` holds the same pixels again.
    """
    return _convert(sources, ".npz", store_path, **options)


def from_pt(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store_path: str | os.PathLike[str],
    **options: Any,
) -> pipeline.Report:
    """Build a cube from ``.pt`` files of crops or patches, of any version of the predecessor, or go on.

    Files of one scene become one crop with its channels in order. Patches go to the place that their names tell;
    those that are not there, or cannot be read, have the flags ``unreadable`` and ``all_missing``. Numbered
    patches whose filter left gaps have lost their places: they lie side by side on the grid ``unordered``.

    Parameters
    ----------
    sources
        Files and folders (searched for ``.pt`` files).
    store_path
        Path or URL of the store. What it holds already stays; an interrupted run goes on.
    source_root
        Folder of the netCDF files that the crops were cut from. Where a file of the scene's name holds a crop's
        pixels exactly, at one place only, the crop gets its exact place, time and coordinates; otherwise they
        are not known (NaN, and the time of the name), which is logged. Give it at the first run: a crop in the plan
        stays as it is.
    visible_units
        Units of the reflectance: ``"percent"``, ``"1"``, or ``"auto"`` to tell by the brightest of 16 sources.
    dtype
        ``"uint16"`` packs by the channel's table (steps of 0.01 K and 0.0001), ``"float32"`` keeps values.
    patch
        Edge of a patch; by default that of the patches found, or 256.
    codec
        Of the store.
    workers
        Processes.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    What became of each source.

    Raises
    ------
    FileNotFoundError
        If a path is not there.
    SchemaError
        If no file is one of the predecessor's, the same pixels are given twice, the store was built otherwise, or
        a source changed since it was written.
    """
    return _convert(sources, ".pt", store_path, **options)


def _convert(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    suffix: str,
    store_path: str | os.PathLike[str],
    *,
    source_root: str | os.PathLike[str] | None = None,
    visible_units: VisibleUnits = "auto",
    dtype: Literal["uint16", "float32"] = "uint16",
    patch: int | None = None,
    codec: Literal["fast", "small", "raw"] = "fast",
    workers: int = 1,
    progress: bool = False,
) -> pipeline.Report:
    roots = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    found = names.sort_files(files.find(roots, suffix))
    build = store.Build(store_path)
    if build.layout is None and build.files.names() and not build.files.exists("_build"):
        raise SchemaError(f"{store_path}: there is something here that is no cube; give a new path")
    with executor(None, workers, None) as run, build.lease():
        build = store.Build(store_path)
        try:
            for source in found:
                if source.name in build.number:
                    check_unchanged(build, source)
            new = [s for s in found if s.name not in build.number]
            looking = run(_look, [(s,) for s in new])
            results = dict(tqdm(looking, "plan", len(new), unit="file", disable=not progress))
            facts = [results[n] for n in range(len(new))]
            recipe, layout = build.recipe, build.layout
            if recipe is None or layout is None:
                recipe, layout = _settle(new, facts, visible_units, dtype, patch, codec)
            _check_same(build.files.root, recipe, layout, visible_units, dtype, patch, codec)
            entries = _entries(build, recipe, layout, new, facts, run, source_root)
            if build.layout is None:
                build.begin(recipe, layout, entries)
            else:
                build.extend(entries)
            outcomes = pipeline.write_plan(
                build, found, run, progress, retries=2, write=write_old, title="convert"
            )
        finally:
            build.flush()
        if not pipeline.is_finished(build):
            pipeline.finalise(build)
    return pipeline.Report(os.fspath(store_path), tuple(outcomes))


def _settle(
    found: Sequence[OldSource],
    facts: Sequence[_Found | Exception],
    visible_units: VisibleUnits,
    dtype: str,
    patch: int | None,
    codec: Literal["fast", "small", "raw"],
) -> tuple[Recipe, store.CubeLayout]:
    """Settle what all crops of a new store have in common."""
    known = [f for f in facts if not isinstance(f, Exception)]
    if not known:
        errors = [reason(e) for e in facts[:10] if isinstance(e, Exception)]
        raise SchemaError("no file can be used, so there is no store:\n  " + "\n  ".join(errors))
    edge = patch or next((f.patch for f in known if f.patch), PATCH_SIZE)
    shapes = Counter(f.shape for f in known if f.shape)  # crops of another shape fail by themselves
    cells = [source.cells for source in found if source.cells != (0, 0)] or [EARLY_CELLS]
    crop = (max(c[0] for c in cells) * edge, max(c[1] for c in cells) * edge)
    if shapes:
        crop = shapes.most_common(1)[0][0]
    if crop[0] % edge or crop[1] % edge:
        raise SchemaError(f"crops of {crop} px are not whole patches of {edge} px; pass --patch")
    channels = [name for name in CHANNEL_NAMES if any(name in f.channels for f in known)]
    units = _units(found, (crop[0] // edge, crop[1] // edge), edge, visible_units)
    layout = store.CubeLayout(
        channels={name: _channel_layout(name, dtype) for name in channels},
        crop=crop,
        patch=edge,
        codec=codec,
        coordinates=tuple(
            n for n in store.COORDINATES if n not in ("observation_time", "satellite_zenith_angle")
        ),
        rows_per_chunk=1024,
    )
    recipe = Recipe(
        format=_FORMAT,
        channels=tuple(channels),
        tile=TileSpec(crop=crop, patch=edge, placement="random"),
        codec=codec,
        variables=((IR, IR, "K"), (VISIBLE, VISIBLE, units)),
    )
    return recipe, layout


def _look(source: OldSource) -> _Found:
    """Crops, shape and channels of a source, from headers and names as far as they tell."""
    if source.kind == "npz":
        count, height, width = files.npz_shape(source.path)
        channels = CHANNEL_NAMES[:count]
        if count == 1:
            channels = (channel_of_values(files.read_npz(source.path)[0]) or IR,)
        return _Found(1, (height, width), channels, files.npz_patch(source.path))
    if source.kind == "scene":
        return _look_at_scene(source)
    if source.kind == "crop":
        tensor = files.load_tensor(source.path, 2)
        channel = channel_of_values(files.values_of(tensor)) or IR
        return _Found(1, (int(tensor.shape[0]), int(tensor.shape[1])), (channel,), None)
    if source.kind == "crops":
        tensor = files.load_tensor(source.path, 3)
        shape: tuple[int, int] | None = (int(tensor.shape[1]), int(tensor.shape[2]))
        edge = None
    else:
        edge = _edge(source)
        shape = None
    count, crops = read_crops(source.kind, source.name, source.path, EARLY_CELLS, edge or 0)
    present: set[str] = set()
    ordered = True
    for crop in crops:
        present |= crop.values.keys()
        ordered &= crop.ordered
    return _Found(count, shape, tuple(present), edge, ordered)


def _edge(source: OldSource) -> int:
    if source.kind == "patches":
        return int(files.load_tensor(source.path, 3).shape[-1])
    chunk = source.base
    for number in source.numbers:
        try:
            tensor = files.load_tensor(os.path.join(source.path, names.slice_name(chunk, number)), 2)
        except SchemaError:
            continue
        return int(tensor.shape[-1])
    raise SchemaError(f"{source.path}: none of the files {chunk}_N.pt can be read")


def _look_at_scene(source: OldSource) -> _Found:
    shape, edge = None, None
    channels = []
    for suffix in (c for c in source.channels if c < len(CHANNEL_NAMES)):
        crop, patch = (_first_readable(paths) for paths in _files_of_scene(source, suffix))
        if crop is not None:
            shape = (crop.shape[0], crop.shape[1])
        if patch is not None:
            edge = patch.shape[0]
        tensor = patch if crop is None else crop
        if tensor is not None:
            by_value = channel_of_values(files.values_of(tensor)) if suffix == 0 else None
            channels.append(by_value or CHANNEL_NAMES[suffix])
    if not channels:
        raise SchemaError(f"{source.path}: none of the files of {source.base} can be read")
    return _Found(1, shape, tuple(channels), edge)


def _first_readable(paths: Iterable[Path]) -> Any:
    for path in paths:
        try:
            return files.load_tensor(path, 2)
        except (SchemaError, FileNotFoundError):
            continue
    return None


def _files_of_scene(source: OldSource, suffix: int) -> tuple[list[Path], Iterator[Path]]:
    """Where the crop and the patches of a channel of a scene may be."""
    crop = names.crop_name(source.base, suffix)
    patches = (
        Path(source.path, folder, names.patch_name(source.base, row, col, suffix))
        for row, col in np.ndindex(*source.cells)
        for folder in ("patches", "Patches", "")
    )
    return [Path(source.path, folder, crop) for folder in ("crops", "Crops", "")], patches


def _units(
    found: Sequence[OldSource], cells: tuple[int, int], patch: int, visible_units: VisibleUnits
) -> str:
    """Units of the reflectance: as told, or percent where any of some sources is too bright for a fraction."""
    if visible_units != "auto":
        return visible_units
    seen = False
    looked = 0
    for source in found:
        if looked == _LOOKED_AT:
            break
        try:
            for crop in read_crops(source.kind, source.name, source.path, cells, patch)[1]:
                values = crop.values.get(VISIBLE)
                if values is None:
                    continue
                with np.errstate(invalid="ignore"):
                    bright = values[(values < 400.0) & (values > -400.0)]
                if bright.size and bright.max() > BRIGHTEST_FRACTION:
                    return "percent"
                seen |= bool(bright.size and bright.max() > 0.0)
        except (SchemaError, OSError):
            continue
        looked += 1
    return "1" if seen else "percent"


def _channel_layout(name: str, dtype: str) -> store.ChannelLayout:
    channel = CHANNELS[name]
    packing = channel.packing
    comment = f"converted from float32 files, rounded to {packing.scale_factor:g} {channel.units}"
    if dtype == "float32":
        low, high = (
            packing.scale_factor * float(v or 0) for v in (packing.valid_minimum, packing.valid_maximum)
        )
        packing = Packing(dtype="float32", valid_minimum=low, valid_maximum=high)
        comment = "converted from float32 files"
    return store.ChannelLayout(
        name=name, packing=packing, attributes=channel.attributes() | {"comment": comment}
    )


def _check_same(
    root: str,
    recipe: Recipe,
    layout: store.CubeLayout,
    visible_units: VisibleUnits,
    dtype: str,
    patch: int | None,
    codec: str,
) -> None:
    if recipe.format != _FORMAT:
        raise SchemaError(f"{root}: built from source files; convert to a new store")
    there = {
        "visible_units": dict((v[0], v[2]) for v in recipe.variables)[VISIBLE],
        "dtype": next(iter(layout.channels.values())).packing.dtype,
        "patch": layout.patch,
        "codec": layout.codec,
    }
    asked = {"visible_units": visible_units, "dtype": dtype, "patch": patch, "codec": codec}
    changed = [
        f"{k}: store {there[k]}, asked {v}" for k, v in asked.items() if v not in (None, "auto", there[k])
    ]
    if changed:
        raise SchemaError(f"{root}: converted otherwise ({'; '.join(changed)}). Use a new store.")


def _entries(
    build: store.Build,
    recipe: Recipe,
    layout: store.CubeLayout,
    new: Sequence[OldSource],
    facts: Sequence[_Found | Exception],
    run: Runner,
    root: str | os.PathLike[str] | None,
) -> list[store.Entry]:
    """New sources of the plan, each at its place in its scene where that can be found; writes their grids."""
    scenes = _scenes(root)
    named = [n for n, s in enumerate(new) if s.kind in ("npz", "scene") and s.base in scenes]
    tasks = [(new[n], layout, _scaling(recipe), scenes[new[n].base]) for n in named]
    places: dict[int, _Place] = {}
    for i, found in run(_locate, tasks):
        if isinstance(found, Exception):
            logger.warning("%s: no place in its source file: %s", new[named[i]].name, reason(found))
        elif found is not None:
            places[named[i]] = found
    if root is not None and len(places) < len(new):
        logger.warning(
            "%d of %d sources have no place: no file of their name under %s holds their pixels, at one place only",
            len(new) - len(places), len(new), root,
        )  # fmt: skip
    entries = []
    row = build.rows
    for number, (source, fact) in enumerate(zip(new, facts, strict=True)):
        if isinstance(fact, Exception):  # what is wrong with it is said when it is written
            fact = _Found(1, None, (), None)
        place = places.get(number)
        if place is not None:
            store.write_grid(build.files, place.grid, place.latitude, place.longitude)
        entries.append(_entry(source, row, fact, place, layout))
        row += fact.crops
    store.check_duplicates(build.entries, [e for e in entries if not e.grid.startswith((UNKNOWN, UNORDERED))])
    _write_blank_grids(build.files, layout)
    return entries


def _scenes(root: str | os.PathLike[str] | None) -> dict[str, str]:
    """Source files by the name of their scene; a name that two files have tells nothing."""
    if root is None:
        return {}
    paths: dict[str, list[str]] = {}
    for source in pipeline.find_sources(root):
        paths.setdefault(Path(source.name).stem, []).append(source.path)
    return {stem: found[0] for stem, found in paths.items() if len(found) == 1}


def _scaling(recipe: Recipe) -> dict[str, float]:
    """What values of the old files are multiplied by, per channel."""
    return {name: 0.01 if units == "percent" else 1.0 for name, _, units in recipe.variables}


def _locate(
    source: OldSource, layout: store.CubeLayout, scaling: Mapping[str, float], scene: str
) -> _Place | None:
    """Where the crop of a scene lies in its source file."""
    _, crops = read_crops(source.kind, source.name, source.path, layout.cells, layout.patch)
    crop = next(crops)
    channel = next(iter(crop.values))
    original = open_scene(scene, channel)
    window = find_window(original, clean(crop.values[channel], scaling[channel]))
    if window is None:
        return None
    return _Place(original.grid, original.shape, window, original.time, original.latitude, original.longitude)


def _entry(
    source: OldSource, row: int, fact: _Found, place: _Place | None, layout: store.CubeLayout
) -> store.Entry:
    height, width = layout.crop
    grid = UNKNOWN if fact.ordered else UNORDERED
    return store.Entry(
        source=source.name,
        size=source.bytes,
        mtime_ns=source.mtime_ns,
        row=row,
        grid=place.grid if place else f"{grid}-{height}x{width}",
        shape=place.shape if place else layout.crop,
        time=place.time if place else source.time,
        product=_FORMAT,
        format=f"{_FORMAT}_{source.kind}",
        channels=tuple(layout.channels),
        windows=(place.window,) if place else ((0, 0),) * fact.crops,
    )


def _write_blank_grids(target: store.Files, layout: store.CubeLayout) -> None:
    """The grids of places that are not known: pixel axes without a position."""
    height, width = layout.crop
    for grid in (UNKNOWN, UNORDERED):
        store.write_grid(target, f"{grid}-{height}x{width}", np.full(height, np.nan), np.full(width, np.nan))


def write_old(
    root: str, layout: store.CubeLayout, recipe: Recipe, entry: store.Entry, path: str
) -> store.Record:
    """Write the crops of one source of the predecessor's; the unit of work, as `pipeline.write_source`."""
    kind = entry.format.removeprefix(f"{_FORMAT}_")
    count, crops = read_crops(kind, entry.source, path, layout.cells, layout.patch)
    if count != len(entry.windows):
        raise SchemaError(f"{path}: {count} crops; {len(entry.windows)} were planned. It changed meanwhile")
    latitude, longitude = store.read_grid(store.Files(root), entry.grid)
    scaling = _scaling(recipe)
    datasets = (
        _dataset(crop, window, layout, scaling, entry, (latitude, longitude), path)
        for crop, window in zip(crops, entry.windows, strict=True)
    )
    return replace(pipeline.write_crops(root, layout, recipe, entry, datasets, path), size=entry.size)


def _dataset(
    crop: OldCrop,
    window: tuple[int, int],
    layout: store.CubeLayout,
    scaling: Mapping[str, float],
    entry: store.Entry,
    axes: tuple[np.ndarray, np.ndarray],
    path: str,
) -> xr.Dataset:
    """A crop as `tiling.cut` gives it."""
    latitude, longitude = axes
    on = (("y",), ("x",)) if latitude.ndim == 1 else (("y", "x"), ("y", "x"))
    time = np.datetime64("NaT", "s") if entry.time == TIME_FILL else np.datetime64(entry.time, "s")
    scene = xr.Dataset(
        coords={"latitude": (on[0], latitude), "longitude": (on[1], longitude), "time": ((), time)}
    )
    out = tiling.cut(scene, tiling.Window(*window, *layout.crop), layout.patch)
    if crop.padding is not None:
        out["padding"] = (("row", "col"), out["padding"].values | crop.padding)
    for name, values in crop.values.items():
        if name not in layout.channels:
            raise SchemaError(
                f"{path}: holds {name}; this store has {list(layout.channels)}. Use a new store."
            )
        if values.shape != layout.crop:
            raise SchemaError(f"{path}: a crop of {values.shape} pixels; this store has {layout.crop}")
        channel = layout.channels[name]
        codes = channel.packing.encode(clean(values, scaling[name]))
        attributes = dict(channel.attributes) | channel.packing.to_attributes()
        out[name] = (("y", "x"), codes, attributes)
        if name in crop.lost:
            out.coords[f"{name}_unreadable"] = (("row", "col"), crop.lost[name])
    return out


def clean(values: np.ndarray, scaling: float) -> np.ndarray:
    """Values in the channel's units, NaN where the old file held a mark of missing data."""
    out = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        out[np.isin(out, MISSING) | (np.abs(out) > LARGEST_NUMBER) & np.isfinite(out)] = np.nan
    out *= scaling
    return out
