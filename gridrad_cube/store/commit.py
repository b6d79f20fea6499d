"""Finishing a store: from the build log to coordinates, flags, statistics, and the root ``zarr.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gridrad_cube.schema import FORMAT_VERSION, HISTOGRAM_BINS, TIME_FILL, Flag, SchemaError, statistics_of
from gridrad_cube.store.arrays import ArraySpec, encode, group_metadata, metadata, write_array
from gridrad_cube.store.build import BUILD, Build, read_grid
from gridrad_cube.store.layout import COORDINATES, STATUS, CubeLayout
from gridrad_cube.store.log import unpack_rows

#: Small values of a block of crops, in memory while a store is finished.
_BLOCK_BYTES = 128 * 2**20
#: Coordinates that the plan has, in the order of `gather`.
_OF_THE_PLAN = ("time", "status", "y_origin", "x_origin", "grid", "scene", "source")


def small_specs(layout: CubeLayout, rows: int) -> dict[str, ArraySpec]:
    """Specs of every array with ``crop`` first that is no channel's pixels."""
    cells = dict(zip(("row", "col"), layout.cells, strict=True))
    specs = {}
    for name in layout.coordinates:
        dims, dtype, attributes = COORDINATES[name]
        shape = (rows, *(cells[d] for d in dims[1:]))
        specs[name] = layout.small(name, dims, shape, dtype, attributes)
    for name in layout.channels:
        specs[f"{name}_flags"] = layout.flags(name, rows)
        for statistic in statistics_of(layout.channels[name].channel):
            specs[f"{name}_{statistic}"] = layout.statistic(name, statistic, rows)
    return specs


def record_type(layout: CubeLayout) -> np.dtype[Any]:
    """Type of a crop's row in the log: every small value that its pixels and place decide.

    The arrays of `small_specs`, less those that the plan has, and per channel of the table ``<channel>_histogram``,
    uint32 ([altitude,] bins): counts of clean data pixels over the typical range.
    """
    fields: list[tuple[str, Any, tuple[int, ...]]] = [
        (name, spec.dtype, spec.shape[1:])
        for name, spec in small_specs(layout, 1).items()
        if name not in _OF_THE_PLAN
    ]
    for name, channel in layout.channels.items():
        if channel.channel.kind != "other":
            levels = (len(channel.altitudes_km),) if channel.altitudes_km else ()
            fields.append((f"{name}_histogram", np.uint32, (*levels, HISTOGRAM_BINS)))
    return np.dtype(fields)


def block_length(layout: CubeLayout, scenes: int) -> int:
    """Crops whose small values are finished together, and chunked together: a power of two, at most 128 MiB of them.

    Parameters
    ----------
    scenes
        Number of scenes of the first plan; a store that starts small has smaller chunks.
    """
    fits = max(1, _BLOCK_BYTES // record_type(layout).itemsize)
    return min(16384, 1 << (fits.bit_length() - 1), max(256, 1 << (scenes - 1).bit_length()))


def blank_rows(layout: CubeLayout, count: int) -> np.ndarray:
    """Rows of crops that were not written: flag ``unreadable``, no time, NaN or 0 elsewhere."""
    dtype = record_type(layout)
    out = np.zeros(count, dtype)
    for name in dtype.names or ():
        if name.endswith("_flags"):
            out[name] = int(Flag.unreadable)
        elif name == "observation_time":
            out[name] = TIME_FILL
        elif dtype[name].base.kind == "f":
            out[name] = np.nan
    return out


def gather(build: Build, rows: range) -> dict[str, np.ndarray]:
    """Every small variable for a block of rows, and the training histograms, from plan and log.

    Rows that were not written have ``status`` skipped or failed, the flag ``unreadable``, NaN elsewhere.
    """
    layout = _layout(build)
    table = blank_rows(layout, len(rows))
    plan: dict[str, np.ndarray] = {
        name: np.zeros(len(rows), object if COORDINATES[name][1] == "string" else COORDINATES[name][1])
        for name in _OF_THE_PLAN
    }
    for number in build.entries_of(rows):
        entry = build.entries[number]
        packed = build.values(number)
        whole = None if packed is None else unpack_rows(packed, table.dtype)
        status = STATUS[build.status(number) or "failed"]
        for crop, (row, window) in enumerate(zip(entry.rows, entry.windows, strict=True)):
            if row not in rows:
                continue
            i = row - rows.start
            if whole is not None:
                table[i] = whole[crop]
            values = (entry.time, status, *window, entry.grid, entry.scene, entry.source)
            for name, value in zip(_OF_THE_PLAN, values, strict=True):
                plan[name][i] = value
    return plan | {name: table[name] for name in table.dtype.names or ()}


def blocks(build: Build) -> Iterator[range]:
    """Blocks of rows, one a chunk of the small arrays."""
    size = _layout(build).rows_per_chunk
    for start in range(0, build.rows, size):
        yield range(start, min(start + size, build.rows))


def write_block(build: Build, rows: range, values: Mapping[str, np.ndarray]) -> None:
    """Write one block of rows of every small variable: one chunk each, in one step each."""
    layout = _layout(build)
    for name, spec in small_specs(layout, len(rows)).items():
        index = (rows.start // layout.rows_per_chunk, *(0 for _ in spec.dims[1:]))
        block = np.full(spec.chunks, spec.fill_value, dtype=object if spec.dtype == "string" else spec.dtype)
        block[: len(rows)] = values[name]
        build.files.write(spec.key(index), encode(spec, block))


def commit(build: Build, attributes: Mapping[str, Any], report: Mapping[str, np.ndarray]) -> None:
    """Write the arrays' metadata, the grids and the report, then the root: the store appears, or grows, at once.

    Parameters
    ----------
    attributes
        Root attributes.
    report
        Columns, one row a source file.
    """
    layout, files = _layout(build), build.files
    specs = small_specs(layout, build.rows)
    specs |= {name: layout.pixels(name, build.rows) for name in layout.channels}
    members: dict[str, Any] = {}
    for name, spec in specs.items():
        members[name] = metadata(spec)
    altitudes = {c.altitudes_km for c in layout.channels.values() if c.altitudes_km}
    whole = _whole_arrays(build, altitudes, report)
    for spec, values in whole:
        write_array(files, spec, values)
        members[spec.name] = metadata(spec)
    for group in sorted({name.rsplit("/", 1)[0] for name in members if "/" in name} | {"grids"}):
        members[group] = group_metadata({})
    for name, value in members.items():
        files.write_json(f"{name}/zarr.json", value)
    ours = dict(attributes["gridrad_cube"]) | {"format_version": FORMAT_VERSION, "kind": "patches"}
    root = group_metadata(dict(attributes) | {"gridrad_cube": ours}, members)
    files.write("zarr.json", json.dumps(root, allow_nan=False).encode())


def _whole_arrays(
    build: Build, altitudes: set[tuple[float, ...]], report: Mapping[str, np.ndarray]
) -> list[tuple[ArraySpec, np.ndarray]]:
    out = [
        _whole(
            "crs",
            (),
            np.array(0, np.int32),
            {
                "grid_mapping_name": "latitude_longitude",
                "long_name": "positions are geodetic degrees",
            },
        )
    ]
    if len(altitudes) > 1:
        raise SchemaError(f"a store has one list of altitudes, got {sorted(altitudes)}")
    attributes = {
        "units": "km",
        "standard_name": "altitude",
        "positive": "up",
        "long_name": "altitude above mean sea level",
    }
    out.extend(_whole("altitude", ("altitude",), np.asarray(a, np.float64), attributes) for a in altitudes)
    for grid in sorted({e.grid for n, e in enumerate(build.entries) if build.is_written(n)}):
        latitude, longitude = read_grid(build.files, grid)
        for name, axis, values in (("latitude", 0, latitude), ("longitude", 1, longitude)):
            dims = ("scene_y", "scene_x") if values.ndim == 2 else (("scene_y", "scene_x")[axis],)
            units = {"latitude": "degrees_north", "longitude": "degrees_east"}[name]
            out.append(_whole(f"grids/{grid}/{name}", dims, values, {"units": units, "standard_name": name}))
    rows, cols = _layout(build).cells
    out += number_arrays({"crop": build.rows, "row": rows, "col": cols}, _layout(build).rows_per_chunk)
    for name, column in report.items():
        out.append(_whole(f"report/{name}", ("source_file",), column, {}, (_layout(build).rows_per_chunk,)))
    return out


def _whole(
    name: str,
    dims: tuple[str, ...],
    values: np.ndarray,
    attributes: Mapping[str, Any],
    chunks: tuple[int, ...] | None = None,
) -> tuple[ArraySpec, np.ndarray]:
    """Spec and values of an array that is written as a whole, in one chunk unless said."""
    dtype = "string" if values.dtype.kind in "OUT" else values.dtype.name
    fill: Any = {"f": np.nan, "s": ""}.get(dtype[0], 0)
    spec = ArraySpec(
        name=name,
        dims=dims,
        shape=values.shape,
        dtype=dtype,
        chunks=chunks or tuple(max(n, 1) for n in values.shape),
        fill_value=fill,
        attributes=attributes,
    )
    return spec, values


def number_arrays(sizes: Mapping[str, int], rows_per_chunk: int) -> list[tuple[ArraySpec, np.ndarray]]:
    """Coordinates that number crops, rows and columns, so that a part of a store knows what it is a part of."""
    what = {
        "crop": "row of the store",
        "row": "row of patches in the crop",
        "col": "column of patches in the crop",
    }
    return [
        _whole(
            name,
            (name,),
            np.arange(sizes[name]),
            {"long_name": what[name]},
            (rows_per_chunk,) if name == "crop" else None,
        )
        for name in ("crop", "row", "col")
        if name in sizes
    ]


def report_columns(build: Build) -> dict[str, np.ndarray]:
    """The report as columns, one row a source by its name: source, status, reason, crops, bytes."""
    rows = [
        (e.source, build.status(n), build.reason(n), len(e.windows) * build.is_written(n), size)
        for n, (e, size) in enumerate(zip(build.entries, build.source_bytes().tolist(), strict=True))
    ]
    rows += [(r.source, r.status, r.reason, 0, 0) for r in build.refused.values()]
    known = sorted(row for row in rows if row[1])
    columns = zip(*known, strict=True) if known else [()] * 5
    types = {"source": object, "status": object, "reason": object, "crops": np.int32, "bytes": np.int64}
    return {name: np.array(c, dtype=t) for (name, t), c in zip(types.items(), columns, strict=True)}


def _layout(build: Build) -> CubeLayout:
    if build.layout is None:
        raise SchemaError(
            f"{build.files.root}: nothing is planned in {BUILD}/; run gridrad-cube preprocess first"
        )
    return build.layout
