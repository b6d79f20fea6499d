"""Finishing a store: from the build log to coordinates, flags, statistics, and the root ``zarr.json``."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gridrad_cube.schema import ATTRIBUTE, FORMAT_VERSION, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store.build import Build, read_grid, unpack_rows
from gridrad_cube.store.integrity import (
    KeyEncoding,
    Manifest,
    Root,
    checksum,
    chunk_key,
    last_commit,
    manifests,
)
from gridrad_cube.store.layout import (
    COORDINATES,
    OF_THE_PLAN,
    STATUS,
    ArraySpec,
    array_metadata,
    blank_rows,
    encode_array,
    encode_rows,
    groups_of,
    number_arrays,
    root_of,
    small_specs,
    whole_array,
)

#: Requests to a remote store that are under way at a time.
_REQUESTS = 16


def gather(build: Build, rows: range) -> dict[str, np.ndarray]:
    """Every small variable for a block of rows, and the training histograms, from plan and log.

    Rows that were not written have ``status`` skipped or failed, the flag ``unreadable``, NaN elsewhere.
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
    """Blocks of rows, one a chunk of the small arrays."""
    rows = range(build.rows)
    for start in rows[:: build.layout.rows_per_chunk]:
        yield rows[start : start + build.layout.rows_per_chunk]


class Commit:
    """The next state of a store: its small arrays, written beside those of the last state, and then the root.

    Where readers see a state, the next one is first written under other keys (Zarr's chunk key encoding ``v2``), which
    its root names; then it moves to the keys of the format, and a second root names those. Each root appears in one
    step, and names a whole state. What is the same as in the last state is not encoded again.

    Parameters
    ----------
    files
        The store.
    damaged
        Keys of objects of the last state that are not to be kept.
    """

    def __init__(self, files: Files, damaged: Collection[str] = ()) -> None:
        self.files, self.last = files, last_commit(files)
        is_seen = self.last is not None and files.exists("zarr.json") and self.last.root.keys == "default"
        self._keys: KeyEncoding = "v2" if is_seen else "default"
        self._damaged = frozenset(damaged)
        self._members: dict[str, Any] = {}
        #: Size and CRC-32 of the chunks of small arrays by array and place, and of all else by key.
        self._chunks: dict[tuple[str, tuple[int, ...]], tuple[int, int | None]] = {}
        self._objects: dict[str, tuple[int, int | None]] = {}
        self._sizes = functools.cache(files.sizes)

    @property
    def history(self) -> str:
        """History of the store up to now, a line an event; empty where there is none."""
        return "" if self.last is None else str(self.last.root.attributes.get("history", ""))

    def add(self, spec: ArraySpec) -> None:
        """Name an array, whose shards or chunks are written already or will be."""
        self._members[spec.name] = array_metadata(spec)

    def write_rows(self, spec: ArraySpec, first: int, values: np.ndarray) -> None:
        """Write one chunk of a small array from row ``first`` on, a multiple of the chunk's length."""
        self._put(spec, first // spec.chunks[0], encode_rows(spec, values))

    def write_array(self, spec: ArraySpec, values: np.ndarray) -> None:
        """Name a small array and write all its chunks."""
        self.add(spec)
        for number, data in enumerate(encode_array(spec, values)):
            self._put(spec, number, data)

    def _put(self, spec: ArraySpec, number: int, data: bytes) -> None:
        place = spec.place(number)
        self.files.write(chunk_key(spec.name, place, self._keys), data)
        self._chunks[spec.name, place] = len(data), zlib.crc32(data)

    def keep_rows(self, specs: Iterable[ArraySpec], first: int) -> bool:
        """Take over one chunk of some small arrays from the last state; False where one of them is not whole."""
        return self._keep([(spec.name, spec.place(first // spec.chunks[0])) for spec in specs])

    def keep_array(self, name: str) -> bool:
        """Take over a small array of one chunk from the last state; False where it is not there whole."""
        metadata = self.last.root.members.get(name) if self.last else None
        if metadata is None or not self._keep([(name, (0,) * len(metadata["shape"]))]):
            return False
        encoding = metadata["chunk_key_encoding"] | {"name": "default"}
        self._members[name] = metadata | {"chunk_key_encoding": encoding}
        return True

    def _keep(self, chunks: Sequence[tuple[str, tuple[int, ...]]]) -> bool:
        if self.last is None:
            return False
        old = [chunk_key(*chunk, self.last.root.keys) for chunk in chunks]
        if not all(map(self._is_whole, old)):
            return False
        self._copy(
            (key, chunk_key(*chunk, self._keys))
            for key, chunk in zip(old, chunks, strict=True)
            if self._keys != self.last.root.keys
        )
        self._chunks |= {chunk: self.last.objects[key] for key, chunk in zip(old, chunks, strict=True)}
        return True

    def _is_whole(self, key: str) -> bool:
        """Whether an object of the last state is there in its size."""
        folder, _, name = key.rpartition("/")
        size, _ = (self.last and self.last.objects.get(key)) or (None, None)
        return size is not None and key not in self._damaged and self._sizes(folder).get(name) == size

    def _copy(self, pairs: Iterable[tuple[str, str]]) -> None:
        _do_all(self.files, lambda pair: self.files.copy(*pair), pairs)

    def note(self, key: str, data: bytes) -> None:
        """Put another object, which is there, into the manifest."""
        self._objects[key] = len(data), zlib.crc32(data)

    def note_as_before(self, key: str) -> bool:
        """Put another object into the manifest that is there as in the last state; False where it is not."""
        if self.last is None or not self._is_whole(key):
            return False
        self._objects[key] = self.last.objects[key]
        return True

    def note_known(self, objects: Mapping[str, tuple[int, int | None]]) -> None:
        """Put other objects into the manifest by key, with their sizes and checksums."""
        self._objects |= objects

    def finish(
        self,
        attributes: Mapping[str, Any],
        *,
        groups: Iterable[str] = (),
        extends: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the manifest, the arrays' metadata and the root: the store appears, or changes, at once.

        Parameters
        ----------
        attributes
            Of the root.
        groups
            Groups that exist even if no array lies in them.
        extends
            Whether the crops of the last state have the same values in this one.
        about
            What the manifest keeps for the next commit.
        """
        self._members |= groups_of([*self._members, *(f"{name}/" for name in groups)])
        value = json.loads(json.dumps(root_of(self._members, attributes), allow_nan=False))
        value["attributes"][ATTRIBUTE]["checksum"] = checksum(value)
        before: tuple[str, ...] = ()
        if self.last is not None and self.last.root.state is not None and extends:
            before = tuple(dict.fromkeys((*self.last.extends, self.last.root.state)))
        self._publish(value, self._keys, extends=before, about=about or {})
        beside = [chunk_key(*chunk, "v2") for chunk in self._chunks]
        if self._keys == "v2":
            same = self.last.objects if self.last else {}
            moved = {chunk_key(*chunk, "default"): chunk for chunk in self._chunks}
            self._copy(
                (chunk_key(*chunk, "v2"), key)
                for key, chunk in moved.items()
                if same.get(key) != self._chunks[chunk] or not self._is_whole(key)
            )
            self._publish(value, "default", extends=before, about=about or {})
        if self._keys == "v2" or (self.last is not None and self.last.root.keys == "v2"):
            _do_all(self.files, self.files.remove, beside)

    def _publish(
        self,
        value: Mapping[str, Any],
        keys: KeyEncoding,
        *,
        extends: tuple[str, ...],
        about: Mapping[str, Any],
    ) -> None:
        """Write the manifest, metadata and root of the state as it lies under some keys; forget other manifests."""
        members = dict(value["consolidated_metadata"]["metadata"])
        for name in {name for name, _ in self._chunks}:
            encoding = members[name]["chunk_key_encoding"] | {"name": keys}
            members[name] = members[name] | {"chunk_key_encoding": encoding}
        root = {**value, "consolidated_metadata": {**value["consolidated_metadata"], "metadata": members}}
        data = json.dumps(root, allow_nan=False).encode()
        metadata = {
            f"{name}/zarr.json": json.dumps(member, allow_nan=False, separators=(",", ":")).encode()
            for name, member in members.items()
        }
        for key, member in metadata.items():
            self.note(key, member)
        chunks = {chunk_key(*chunk, keys): known for chunk, known in self._chunks.items()}
        manifest = Manifest(
            root=Root(data),
            number=self.last.number + 1 if self.last else 1,
            objects=self._objects | chunks,
            extends=extends,
            about=about,
        )
        manifest.write(self.files)
        for key, member in metadata.items():
            self.files.write(key, member)
        self.files.write("zarr.json", data)
        for key in manifests(self.files):
            if key != manifest.key:
                self.files.remove(key)


def _do_all(files: Files, function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call a function for each of some items; by several threads where each waits for a network."""
    if files.local:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(function, items))


def write_block(commit: Commit, build: Build, rows: range, values: Mapping[str, np.ndarray]) -> None:
    """Write one block of rows of every small variable: one chunk each."""
    for name, spec in small_specs(build.layout, build.rows).items():
        commit.write_rows(spec, rows.start, values[name])


def keep_block(commit: Commit, build: Build, rows: range) -> bool:
    """Take over a block of rows of every small variable from the last state; False where it is not there whole."""
    return commit.keep_rows(small_specs(build.layout, build.rows).values(), rows.start)


def finish(
    commit: Commit,
    build: Build,
    attributes: Mapping[str, Any],
    *,
    extends: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write what is no block of rows: the grids, the report, numbers and altitudes; then commit.

    Parameters
    ----------
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
    """The pixel axes of a source grid, from its file under ``_build/`` where they are new."""
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
    """The report as columns, one row a source by its name: source, status, reason, crops, bytes."""
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
