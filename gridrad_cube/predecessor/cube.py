"""Convert the predecessor's ``.npz`` and ``.pt`` files to a cube of patches, with the plan, log and resume of
any build.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from gridrad_cube import pipeline, readers, store, tiling
from gridrad_cube.predecessor.arrays import (
    CHANNEL_NAMES,
    EARLY_CELLS,
    IR,
    VISIBLE,
    OldCrop,
    OldCrops,
    open_crops,
)
from gridrad_cube.predecessor.names import OldSource, find_files
from gridrad_cube.progress import progress_bar
from gridrad_cube.schema import CHANNELS, PATCH_SIZE, TIME_FILL, Packing, Recipe, SchemaError, TileSpec
from gridrad_cube.storage import Files
from gridrad_cube.store import Build

logger = logging.getLogger(__name__)

_VisibleUnits = Literal["auto", "percent", "1"]

#: Values for missing data in the old files: fill codes whose mask was lost (uint16, netCDF's default, and
#: those of products).
_MISSING = (65535.0, -999.0, -9999.0)
_LARGEST_NUMBER = 1e30
#: Reflectance as a fraction is below this; reflectance in percent exceeds it on any day.
_BRIGHTEST_FRACTION = 1.6
#: Number of sources that are read to distinguish percent from fractions.
_LOOKED_AT = 16
#: Pixels compared at every offset before whole crops are: each leaves about one offset in a thousand of noise.
_PROBES = 64
_FORMAT = "predecessor"
#: Grid of crops whose position in their scene is not known, and of patches whose position in a crop is not.
_UNKNOWN, _UNORDERED = "unknown", "unordered"


class _Position(NamedTuple):
    """Where a crop lies: its source grid, that grid's shape and axes, the window, the time."""

    grid: str
    shape: tuple[int, int]
    window: tuple[int, int]
    time: int
    latitude: np.ndarray
    longitude: np.ndarray


def from_npz(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    **options: Any,
) -> pipeline.Report:
    """Build a cube from ``.npz`` files, or resume.

    Only ``crop`` is read: ``patches`` holds the same pixels again.

    Parameters
    ----------
    sources, store, options
        As of `from_pt`.

    Returns
    -------
    As of `from_pt`.

    Raises
    ------
    FileNotFoundError, SchemaError
        As of `from_pt`.
    """
    return _convert(find_files(sources, ".npz"), store, **options)


def from_pt(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    **options: Any,
) -> pipeline.Report:
    """Build a cube from ``.pt`` files of crops or patches, of any version of the predecessor, or resume.

    Files of one scene become one crop with its channels in order. Patches go to the position in their names;
    those that are missing, or cannot be read, have the flags ``unreadable`` and ``all_missing``. Numbered
    patches whose filter left gaps have lost their positions: they are placed side by side on the grid
    ``unordered``.

    Parameters
    ----------
    sources
        Files and folders (searched for ``.pt`` files).
    store
        Path or URL of the store. Its content is kept, and an interrupted run resumes.
    **options
        ``source_root``, ``visible_units``, ``dtype``, ``patch``, ``workers`` and ``progress``, as below.
    source_root
        Folder of the netCDF files that the crops were cut from. Where a file of the scene's name holds a
        crop's
        pixels exactly, at one place only, the crop gets its exact position, time and coordinates; otherwise
        they are unknown (NaN, and the time of the name), which is logged. Give it at the first run, because
        planned crops do not change.
    visible_units
        Units of the reflectance: ``"percent"``, ``"1"``, or ``"auto"`` to decide by the brightest of 16
        sources.
    dtype
        ``"uint16"`` packs by the channel's table (steps of 0.01 K and 0.0001), ``"float32"`` keeps values.
    patch
        Edge of a patch; by default that of the patches found, or 256.
    workers
        Processes.
    progress
        Whether to show progress bars on stderr; None shows them in a terminal and in a notebook.

    Returns
    -------
    The outcome of each source.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    SchemaError
        If no file is one of the predecessor's, the same pixels are given twice, the store was built with
        other
        options, or a source changed since it was written.
    """
    return _convert(find_files(sources, ".pt"), store, **options)


def _convert(
    found: Sequence[OldSource],
    store: str | os.PathLike[str],
    *,
    source_root: str | os.PathLike[str] | None = None,
    visible_units: _VisibleUnits = "auto",
    dtype: Literal["uint16", "float32"] = "uint16",
    patch: int | None = None,
    workers: int = 1,
    progress: bool | None = None,
) -> pipeline.Report:
    build = Build(store)
    with pipeline.explained(build), pipeline.executor(None, workers, None) as run, build.lease() as held:
        build = Build(store)
        damaged = build.missing()
        build.mend()
        try:
            there = {build.number[s.name]: (s.path, s.stat()) for s in found if s.name in build.number}
            pipeline.check_unchanged(build, there, run, write=_write_crops)
            new = [s for s in found if s.name not in build.number]
            looks = run(_look, [(s,) for s in new])
            with progress_bar("plan", looks, total=len(new), unit="file", progress=progress) as bar:
                by_number = dict(bar)
            facts = [by_number[n] for n in range(len(new))]
            if build.is_planned:
                recipe, layout = build.recipe, build.layout
            else:
                recipe, layout = _settle(new, facts, visible_units, dtype, patch)
            asked = {"visible_units": visible_units, "dtype": dtype, "patch": patch}
            _check_same(build.files.root, recipe, layout, asked)
            positions = _locate_all(new, recipe, layout, run, source_root) if source_root is not None else {}
            entries = _entries(build, layout, new, facts, positions)
            if build.is_planned:
                build.extend(entries)
            else:
                build.begin(recipe, layout, entries)
            outcomes = pipeline.write_plan(
                build,
                {s.name: s.path for s in found},
                run,
                progress,
                retries=2,
                write=_write_crops,
                title="convert",
            )
        finally:
            build.flush()
        if damaged or not pipeline.is_finished(build):
            held.check()
            pipeline.finalize(build, damaged=damaged)
    return pipeline.Report(os.fspath(store), tuple(outcomes))


def _look(source: OldSource) -> OldCrops:
    """Return the number, shape and channels of the crops of a source, without the crops."""
    found = open_crops(source.kind, source.name, source.path, source.cells, None)
    return dataclasses.replace(found, crops=iter(()))


def _settle(
    found: Sequence[OldSource],
    facts: Sequence[OldCrops | Exception],
    visible_units: _VisibleUnits,
    dtype: str,
    patch: int | None,
) -> tuple[Recipe, store.CubeLayout]:
    """Settle what all crops of a new store have in common."""
    known = [f for f in facts if not isinstance(f, Exception)]
    if not known:
        errors = [pipeline.reason(e) for e in facts[:10] if isinstance(e, Exception)]
        raise SchemaError("no file can be used, so there is no store:\n  " + "\n  ".join(errors))
    edge = patch or next((f.patch for f in known if f.patch), PATCH_SIZE)
    shapes = Counter(f.shape for f in known if f.shape)  # crops of another shape fail by themselves
    cells = [source.cells for source in found if source.cells != (0, 0)] or [EARLY_CELLS]
    crop = (max(c[0] for c in cells) * edge, max(c[1] for c in cells) * edge)
    if shapes:
        crop = shapes.most_common(1)[0][0]
    if crop[0] % edge or crop[1] % edge:
        raise SchemaError(f"crops of {crop} px are not whole patches of {edge} px; pass `patch`")
    channels = [name for name in CHANNEL_NAMES if any(name in f.channels for f in known)]
    units: str = visible_units
    if visible_units == "auto":
        units = _units(found, (crop[0] // edge, crop[1] // edge), edge)
    layout = store.CubeLayout(
        channels={name: _channel_layout(name, dtype) for name in channels},
        crop=crop, patch=edge, codec="fast", rows_per_chunk=1024,
        coordinates=tuple(n for n in store.COORDINATES if n not in store.OPTIONAL_COORDINATES),
    )  # fmt: skip
    recipe = Recipe(
        format=_FORMAT, channels=tuple(channels), variables=((IR, IR, "K"), (VISIBLE, VISIBLE, units)),
        tile=TileSpec(crop=crop, patch=edge, placement="random"), codec="fast",
    )  # fmt: skip
    return recipe, layout


def _units(found: Sequence[OldSource], cells: tuple[int, int], patch: int) -> str:
    """Return the units of the reflectance: percent where any of some sources is too bright for a fraction."""
    seen, looked = False, 0
    for source in found:
        if looked == _LOOKED_AT:
            break
        try:
            for crop in open_crops(source.kind, source.name, source.path, cells, patch).crops:
                values = crop.values.get(VISIBLE, np.empty(0))
                with np.errstate(invalid="ignore"):
                    brightest = values[np.abs(values) < 400.0].max(initial=0.0)
                if brightest > _BRIGHTEST_FRACTION:
                    return "percent"
                seen |= bool(brightest > 0.0)
        except (SchemaError, OSError):
            continue
        looked += 1
    return "1" if seen else "percent"


def _channel_layout(name: str, dtype: str) -> store.ChannelLayout:
    channel, packing = CHANNELS[name], CHANNELS[name].packing
    comment = f"converted from float32 files, rounded to {packing.scale_factor:g} {channel.units}"
    if dtype == "float32":
        low, high = (
            packing.scale_factor * float(v or 0) for v in (packing.valid_minimum, packing.valid_maximum)
        )
        packing = Packing(dtype="float32", valid_minimum=low, valid_maximum=high)
        comment = "converted from float32 files"
    attributes = channel.attributes() | {"comment": comment}
    return store.ChannelLayout(name=name, packing=packing, attributes=attributes)


def _check_same(root: str, recipe: Recipe, layout: store.CubeLayout, asked: Mapping[str, Any]) -> None:
    if recipe.format != _FORMAT:
        raise SchemaError(f"{root}: built from source files; convert to a new store")
    there = {
        "visible_units": {v[0]: v[2] for v in recipe.variables}[VISIBLE],
        "dtype": next(iter(layout.channels.values())).packing.dtype,
        "patch": layout.patch,
    }
    changed = [
        f"{k}: store {there[k]}, asked {v}" for k, v in asked.items() if v not in (None, "auto", there[k])
    ]
    if changed:
        raise SchemaError(f"{root}: converted otherwise ({'; '.join(changed)}). Use a new store.")


def _entries(
    build: Build,
    layout: store.CubeLayout,
    new: Sequence[OldSource],
    facts: Sequence[OldCrops | Exception],
    positions: Mapping[int, _Position],
) -> list[store.Entry]:
    """Return the new sources of the plan, each at its position in its scene where that is known; writes their
    grids.
    """
    height, width = layout.crop
    blank = {grid: f"{grid}-{height}x{width}" for grid in (_UNKNOWN, _UNORDERED)}
    entries = []
    row = build.rows
    for number, (source, fact) in enumerate(zip(new, facts, strict=True)):
        # An exception is reported when the source is written.
        count, ordered = (1, True) if isinstance(fact, Exception) else (fact.count, fact.ordered)
        grid, shape, time = blank[_UNKNOWN if ordered else _UNORDERED], layout.crop, source.time
        windows: tuple[tuple[int, int], ...] = ((0, 0),) * count
        if number in positions:
            grid, shape, window, time, latitude, longitude = positions[number]
            windows = (window,)
            store.write_grid(build.files, grid, latitude, longitude)
        entry = store.Entry(
            source=source.name, size=source.bytes, mtime_ns=source.mtime_ns, row=row, grid=grid, shape=shape, time=time,
            product=_FORMAT, format=f"{_FORMAT}_{source.kind}", channels=tuple(layout.channels), windows=windows,
        )  # fmt: skip
        entries.append(entry)
        row += count
    store.check_duplicates(build.entries, [e for e in entries if e.grid not in blank.values()])
    for grid in blank.values():
        store.write_grid(build.files, grid, np.full(height, np.nan), np.full(width, np.nan))
    return entries


def _locate_all(
    new: Sequence[OldSource], recipe: Recipe, layout: store.CubeLayout, run: Any, root: str | os.PathLike[str]
) -> dict[int, _Position]:
    """Return the positions of new sources in the netCDF files of their names, where these hold their pixels;
    logs the others.
    """
    files = pipeline.find_sources(root)
    counts = Counter(Path(name).stem for name in files)  # a name that two files share is ambiguous
    paths = {stem: path for name, path in files.items() if counts[stem := Path(name).stem] == 1}
    named = [n for n, s in enumerate(new) if s.kind in ("npz", "scene") and s.base in paths]
    tasks = [(new[n], layout, _scaling(recipe), paths[new[n].base]) for n in named]
    out = {}
    for i, result in run(_locate, tasks):
        if isinstance(result, Exception):
            reason = pipeline.reason(result)
            logger.warning("%s: no place in its source file: %s", new[named[i]].name, reason)
        elif result is not None:
            out[named[i]] = result
    if len(out) < len(new):
        logger.warning(
            "%d of %d sources have no place: no file of their name under %s holds their pixels, at one place only",
            len(new) - len(out), len(new), root,
        )  # fmt: skip
    return out


def _locate(
    source: OldSource, layout: store.CubeLayout, scaling: Mapping[str, float], path: str
) -> _Position | None:
    """Return where the crop of a scene lies in its source file."""
    crop = next(open_crops(source.kind, source.name, source.path, layout.cells, layout.patch).crops)
    channel = next(iter(crop.values))
    header, scene = readers.inspect(path, channels=(channel,)), readers.read_scene(path, channels=(channel,))
    packing = Packing.from_attributes(scene[channel].attrs, scene[channel].dtype)
    window = _find_window(scene[channel].values, packing, _clean(crop.values[channel], scaling[channel]))
    if window is None:
        return None
    time = int(header.time.astype("datetime64[s]").astype(np.int64))
    latitude, longitude = scene["latitude"].values, scene["longitude"].values
    return _Position(header.grid_id, header.shape, window, time, latitude, longitude)


def _find_window(scene: np.ndarray, packing: Packing, crop: np.ndarray) -> tuple[int, int] | None:
    """Return the first row and column of a crop in its scene; None if it is not there, or could be at several
    places.

    Exact: at that place every code of the scene equals that of the crop, in every pixel with a value (not
    NaN) in the crop.
    """
    height, width = crop.shape
    down, across = (n - m + 1 for n, m in zip(scene.shape, crop.shape, strict=True))
    codes = packing.encode(crop)
    known = np.isfinite(crop) & packing.observed(codes)
    places = np.flatnonzero(known)
    if down < 1 or across < 1 or not len(places):
        return None
    fits = np.ones((down, across), bool)
    for place in np.random.default_rng(0).choice(places, _PROBES):
        y, x = divmod(int(place), width)
        fits &= scene[y : y + down, x : x + across] == codes[y, x]
    if fits.sum() > _PROBES:  # a field of one value
        return None
    found = [
        (int(y), int(x))
        for y, x in np.argwhere(fits)
        if ((scene[y : y + height, x : x + width] == codes) | ~known).all()
    ]
    return found[0] if len(found) == 1 else None


def _write_crops(
    root: str, layout: store.CubeLayout, recipe: Recipe, entry: store.Entry, path: str, *, dry: bool = False
) -> store.Record:
    """Write the crops of one source of the predecessor's; the unit of work, as `pipeline.write_source`."""
    kind = entry.format.removeprefix(f"{_FORMAT}_")
    found = open_crops(kind, entry.source, path, layout.cells, layout.patch)
    if found.count != len(entry.windows):
        raise SchemaError(f"{path}: {found.count} crops; {len(entry.windows)} were planned. It has changed")
    latitude, longitude = store.read_grid(Files(root), entry.grid)
    on = (("y",), ("x",)) if latitude.ndim == 1 else (("y", "x"), ("y", "x"))
    time = np.datetime64("NaT", "s") if entry.time == TIME_FILL else np.datetime64(entry.time, "s")
    scene = xr.Dataset(coords={"latitude": (on[0], latitude), "longitude": (on[1], longitude), "time": time})
    scaling, pairs = _scaling(recipe), zip(found.crops, entry.windows, strict=True)
    datasets = (_dataset(crop, scene, window, layout, scaling, path) for crop, window in pairs)
    return pipeline.write_crops(root, layout, recipe, entry, datasets, path, dry=dry)


def _dataset(
    crop: OldCrop,
    scene: xr.Dataset,
    window: tuple[int, int],
    layout: store.CubeLayout,
    scaling: Mapping[str, float],
    path: str,
) -> xr.Dataset:
    """Return a crop as `tiling.cut` gives it."""
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
        codes = channel.packing.encode(_clean(values, scaling[name]))
        out[name] = (("y", "x"), codes, dict(channel.attributes) | channel.packing.to_attributes())
        if name in crop.lost:
            out.coords[f"{name}_unreadable"] = (("row", "col"), crop.lost[name])
    return out


def _scaling(recipe: Recipe) -> dict[str, float]:
    """Return the factor for values of the old files, by channel."""
    return {name: 0.01 if units == "percent" else 1.0 for name, _, units in recipe.variables}


def _clean(values: np.ndarray, scaling: float) -> np.ndarray:
    """Return the values in the channel's units, NaN where the old file held a mark of missing data."""
    out = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        out[np.isin(out, _MISSING) | (np.abs(out) > _LARGEST_NUMBER) & np.isfinite(out)] = np.nan
    out *= scaling
    return out
