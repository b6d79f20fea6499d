"""Finish a store: turn the build log into coordinates, flags, statistics, and the root ``zarr.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gridrad_cube.schema import ATTRIBUTE, FORMAT_VERSION, SchemaError
from gridrad_cube.store.build import Build, read_grid
from gridrad_cube.store.integrity import Commit
from gridrad_cube.store.layout import (
    COORDINATES,
    OF_THE_PLAN,
    STATUS,
    ArraySpec,
    blank_rows,
    number_arrays,
    small_specs,
    whole_array,
)
from gridrad_cube.store.log import unpack_rows


def gather(build: Build, rows: range) -> dict[str, np.ndarray]:
    """Return every small variable of a block of rows, and the training histograms, from plan and log.

    Rows that were not written have the ``status`` skipped or failed, the flag ``unreadable``, and NaN
    elsewhere.

    Parameters
    ----------
    build
        The build of the store.
    rows
        Rows of the block.

    Returns
    -------
    Arrays by name.
    """
    layout = build.layout
    table = blank_rows(layout, len(rows))
    plan: dict[str, np.ndarray] = {
        name: np.zeros(len(rows), object if COORDINATES[name][1] == "string" else COORDINATES[name][1])
        for name in OF_THE_PLAN
    }
    for number in build.entries_of(rows):
        entry = build.entries[number]
        packed = build.values(number)
        whole = None if packed is None else unpack_rows(packed, table.dtype)
        status = STATUS[record.status] if (record := build.records[number]) else STATUS["failed"]
        for crop, (row, window) in enumerate(zip(entry.rows, entry.windows, strict=True)):
            if row not in rows:
                continue
            i = row - rows.start
            if whole is not None:
                table[i] = whole[crop]
            values = (entry.time, status, *window, entry.grid, entry.scene, entry.file)
            for name, value in zip(OF_THE_PLAN, values, strict=True):
                plan[name][i] = value
    return plan | {name: table[name] for name in table.dtype.names or ()}


def blocks(build: Build) -> Iterator[range]:
    """Yield blocks of rows, one for each chunk of the small arrays.

    Parameters
    ----------
    build
        The build of the store.

    Yields
    ------
    Ranges of rows.
    """
    rows = range(build.rows)
    for start in rows[:: build.layout.rows_per_chunk]:
        yield rows[start : start + build.layout.rows_per_chunk]


def write_block(commit: Commit, build: Build, rows: range, values: Mapping[str, np.ndarray]) -> None:
    """Write one block of rows of every small variable, one chunk each.

    Parameters
    ----------
    commit
        The commit.
    build
        The build of the store.
    rows
        Rows of the block.
    values
        Values by name.
    """
    for name, spec in small_specs(build.layout, build.rows).items():
        commit.write_rows(spec, rows.start, values[name])


def keep_block(commit: Commit, build: Build, rows: range) -> bool:
    """Keep a block of rows of every small variable from the last state.

    Parameters
    ----------
    commit
        The commit.
    build
        The build of the store.
    rows
        Rows of the block.

    Returns
    -------
    False if the block is not complete in the last state.
    """
    return commit.keep_rows(small_specs(build.layout, build.rows).values(), rows.start)


def finish(
    commit: Commit,
    build: Build,
    attributes: Mapping[str, Any],
    *,
    extends: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write all small arrays without a row dimension (grids, report, row numbers, altitudes), then commit.

    Parameters
    ----------
    commit
        The commit.
    build
        The build of the store.
    attributes, extends, about
        As of `Commit.finish`.
    """
    for spec in small_specs(build.layout, build.rows).values():
        commit.add(spec)
    for name in build.layout.channels:
        commit.add(build.layout.pixels(name, build.rows))
    for grid in sorted({e.grid for n, e in enumerate(build.entries) if build.is_written(n)}):
        _write_grid(commit, grid)
    for spec, values in _whole_arrays(build):
        commit.write_array(spec, values)
    build.note(commit)
    ours = dict(attributes[ATTRIBUTE]) | {"format_version": FORMAT_VERSION, "kind": "patches"}
    commit.finish(dict(attributes) | {ATTRIBUTE: ours}, groups=["grids"], extends=extends, about=about)
    build.files.remove("_build/blocks.json")  # of earlier versions


def _write_grid(commit: Commit, grid: str) -> None:
    """Write the pixel axes of a source grid from its file under ``_build/``, if they are new."""
    names = [f"grids/{grid}/{name}" for name in ("latitude", "longitude")]
    if all([commit.keep_array(name) for name in names]):
        return
    for axis, (name, values) in enumerate(zip(names, read_grid(commit.files, grid), strict=True)):
        dims = ("scene_y", "scene_x") if values.ndim == 2 else (("scene_y", "scene_x")[axis],)
        units, kind = (("degrees_north", "latitude"), ("degrees_east", "longitude"))[axis]
        commit.write_array(*whole_array(name, dims, values, {"units": units, "standard_name": kind}))


def _whole_arrays(build: Build) -> list[tuple[ArraySpec, np.ndarray]]:
    layout = build.layout
    mapping = {"grid_mapping_name": "latitude_longitude", "long_name": "positions are geodetic degrees"}
    out = [whole_array("crs", (), np.array(0, np.int32), mapping)]
    altitudes = {c.altitudes_km for c in layout.channels.values() if c.altitudes_km}
    if len(altitudes) > 1:
        raise SchemaError(f"a store has one list of altitudes, got {sorted(altitudes)}")
    attributes = {
        "units": "km",
        "standard_name": "altitude",
        "positive": "up",
        "long_name": "altitude above mean sea level",
    }
    out.extend(
        whole_array("altitude", ("altitude",), np.asarray(a, np.float64), attributes) for a in altitudes
    )
    length = layout.rows_per_chunk
    out += number_arrays({"crop": build.rows, "row": layout.cells[0], "col": layout.cells[1]}, length)
    out += [
        whole_array(f"report/{n}", ("source_file",), column, {}, (length,))
        for n, column in _report(build).items()
    ]
    return out


def _report(build: Build) -> dict[str, np.ndarray]:
    """Return the report as columns, with one row for each source: source, status, reason, crops, bytes."""
    sizes = np.maximum(build.shard_bytes, 0).sum(axis=1)
    rows = [(r.source, r.status, r.reason, 0, 0) for r in build.refused.values()]
    for number, (entry, record) in enumerate(zip(build.entries, build.records, strict=True)):
        if record:
            crops = len(entry.windows) * build.is_written(number)
            size = int(sizes[entry.row : entry.rows.stop].sum())
            rows.append((entry.source, record.status, record.reason, crops, size))
    columns = zip(*sorted(rows), strict=True) if rows else [()] * 5
    types = {"source": object, "status": object, "reason": object, "crops": np.int32, "bytes": np.int64}
    return {name: np.array(c, dtype=t) for (name, t), c in zip(types.items(), columns, strict=True)}
