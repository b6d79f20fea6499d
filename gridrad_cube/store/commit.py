"""Finishing a store: from the build log to coordinates, flags, statistics, and the root ``zarr.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gridrad_cube.schema import FORMAT_VERSION, TIME_FILL, Flag, SchemaError, statistics_of
from gridrad_cube.store.arrays import ArraySpec, encode, group_metadata, metadata, write_array
from gridrad_cube.store.build import BUILD, Build, Entry, read_grid, unpack_values
from gridrad_cube.store.layout import COORDINATES, STATUS, CubeLayout


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


def gather(build: Build, rows: range) -> dict[str, np.ndarray]:
    """Every small variable for a block of rows, from the log.

    Rows that were not written have ``status`` skipped or failed, the flag ``unreadable``, NaN elsewhere.
    """
    layout = _layout(build)
    specs = small_specs(layout, len(rows))
    out = {name: _blank(spec) for name, spec in specs.items()}
    for entry in entries_of(build, rows):
        record = build.load(entry.source)
        crops = {c["row"]: c for c in record["crops"]} if record and record["status"] == "written" else {}
        for row, window in zip(entry.rows, entry.windows, strict=True):
            if row not in rows:
                continue
            i = row - rows.start
            _scalars(out, i, entry, window, record)
            if row in crops:
                for name, value in unpack_values(crops[row]["values"]).items():
                    if name in out:
                        out[name][i] = value
    return out


def _blank(spec: ArraySpec) -> np.ndarray:
    if spec.name.endswith("_flags"):
        return np.full(spec.shape, int(Flag.unreadable), np.uint16)
    if spec.name == "observation_time":
        return np.full(spec.shape, TIME_FILL, np.int64)
    if spec.dtype == "string":
        return np.full(spec.shape, "", dtype=object)
    return np.full(spec.shape, np.nan if spec.dtype.startswith("float") else 0, spec.dtype)


def _scalars(
    out: dict[str, np.ndarray],
    i: int,
    entry: Entry,
    window: tuple[int, int],
    record: Mapping[str, Any] | None,
) -> None:
    status = record["status"] if record else "failed"
    values = {
        "time": entry.time,
        "status": STATUS[status],
        "y_origin": window[0],
        "x_origin": window[1],
        "grid": entry.grid,
        "scene": entry.scene,
        "source": entry.source,
    }
    for name, value in values.items():
        out[name][i] = value


def entries_of(build: Build, rows: range) -> Iterator[Entry]:
    """The sources that own some of these rows (entries lie in the order of their rows)."""
    for entry in build.entries:
        if entry.rows.stop > rows.start and entry.row < rows.stop:
            yield entry


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
    for grid in sorted({e.grid for e in build.entries if e.source in build.written}):
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


def report_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The report as columns: source, status, reason, crops, bytes, seconds."""
    return {
        "source": np.array([r["source"] for r in records], dtype=object),
        "status": np.array([r["status"] for r in records], dtype=object),
        "reason": np.array([r.get("reason", "") for r in records], dtype=object),
        "crops": np.array([len(r["crops"]) for r in records], np.int32),
        "bytes": np.array(
            [sum(s for c in r["crops"] for s, _ in c["shards"].values()) for r in records], np.int64
        ),
    }


def _layout(build: Build) -> CubeLayout:
    if build.layout is None:
        raise SchemaError(
            f"{build.files.root}: nothing is planned in {BUILD}/; run gridrad-cube preprocess first"
        )
    return build.layout
