"""Build a store exactly once: the plan, what the log records about it, and the shards of one crop.

The folder ``_build/`` of a store has ``plan/NNNN.jsonl`` (one line for each source, in the order of its
rows),
``plan_copy/`` (the same, compressed by zlib), ``log/`` (see `gridrad_cube.store.log`), ``grids/`` (pixel
axes, one
file for each different grid), ``manifest/`` (see `gridrad_cube.store.integrity`) and ``lease.json`` (the
current
writer). The root ``zarr.json`` is the commit and is written last.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import zarr

from gridrad_cube.lease import Lease, lease
from gridrad_cube.schema import Recipe, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store.integrity import CheckedStore, Manifest, last_commit, remedy
from gridrad_cube.store.layout import STATUS, CubeLayout, encode
from gridrad_cube.store.log import Log, Place, Record

_BUILD = "_build"
#: Version of plan and log. A store of another version can be read, but neither resumed nor verified.
_BUILD_FORMAT = 2
#: Largest number of lines in a file of the plan.
_ENTRIES_A_SEGMENT = 50_000
#: In the hash of a store's state, the status of a source without a record.
_UNKNOWN = 255
_PLAN, _PLAN_COPY = f"{_BUILD}/plan", f"{_BUILD}/plan_copy"


class Shard(NamedTuple):
    """A shard of the log: row, key, bytes and CRC-32 as written, and the bytes found, None where it is missing."""

    row: int
    key: str
    size: int
    crc: int
    found: int | None


_NO_SHARDS: Mapping[str, Any] = {}
_PLACE = np.dtype([(name, np.int64) for name in Place._fields])


@functools.lru_cache(maxsize=4096)
def _shared(value: Any) -> Any:
    """Return the same object for equal ones, because a million entries of a plan have few different grids and
    windows.
    """
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One scene of the plan; its crops take the rows ``row .. row + len(windows)`` for good.

    ``source`` is the name of its file, followed by the time if the file has several times (`scene_of`).
    """

    source: str
    size: int
    mtime_ns: int
    time: int
    grid: str
    shape: tuple[int, int]
    product: str
    format: str
    channels: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]
    row: int

    @property
    def rows(self) -> range:
        """Rows of this source's crops."""
        return range(self.row, self.row + len(self.windows))

    @property
    def file(self) -> str:
        """Name of the source file."""
        return self.source.removesuffix(scene_of("", self.time)) if "@" in self.source else self.source

    @property
    def scene(self) -> str:
        """Name of the scene: the file name without its suffix, and the time if its file has several."""
        file = self.file
        return PurePosixPath(file).stem + self.source[len(file) :]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """Return the inverse of ``dataclasses.asdict`` through JSON."""
        return cls(
            **{
                **data,
                **{name: _shared(data[name]) for name in ("grid", "product", "format")},
                **{name: operator.index(data[name]) for name in ("size", "mtime_ns", "time", "row")},
                "shape": _shared(tuple(data["shape"])),
                "channels": _shared(tuple(data["channels"])),
                "windows": _shared(tuple(tuple(w) for w in data["windows"])),
            }
        )


def scene_of(file: str, time: int) -> str:
    """Return the name of a scene in a file of several times: ``clouds/mergir.nc@2019-12-25T00:00:00``.

    Parameters
    ----------
    file
        Name of the file.
    time
        Time of the scene.

    Returns
    -------
    The name.
    """
    return f"{file}@{np.datetime64(time, 's')}"


def write_crop(
    files: Files | None, layout: CubeLayout, row: int, pixels: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, int]]:
    """Write the shards of one crop, each in one step.

    Writing a crop again writes the same bytes, so a task may run twice. Without ``files`` the bytes are only
    counted.

    Parameters
    ----------
    files
        Files of the store; None to write nothing.
    layout
        Layout of the store.
    row
        Row of the crop in the store.
    pixels
        Packed codes by channel.

    Returns
    -------
    Bytes and CRC-32 of the shard, by channel.
    """
    written = {}
    for name, values in pixels.items():
        spec = layout.pixels(name, row + 1)
        data = encode(spec, values[np.newaxis])
        if files is not None:
            files.write(spec.key(row), data)
        written[name] = len(data), zlib.crc32(data)
    return written


def write_grid(files: Files, grid: str, latitude: np.ndarray, longitude: np.ndarray) -> None:
    """Write the pixel axes of a source grid, once for each different grid.

    Parameters
    ----------
    files
        Files of the store.
    grid
        Name of the grid.
    latitude, longitude
        Positions of pixels, degrees, 1-D or 2-D.
    """
    key = grid_key(grid)
    if not files.exists(key):
        files.write_arrays(key, {"latitude": latitude, "longitude": longitude})


def read_grid(files: Files, grid: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the latitude and longitude axes of a source grid, 1-D or 2-D, degrees.

    Parameters
    ----------
    files
        Files of the store.
    grid
        Name of the grid.

    Returns
    -------
    Latitudes and longitudes.

    Raises
    ------
    SchemaError
        If they are missing or damaged.
    """
    try:
        arrays = files.read_arrays(grid_key(grid))
        return arrays["latitude"], arrays["longitude"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise SchemaError(
            f"{files.path(grid_key(grid))}: the axes of a source grid are missing or damaged ({error}). "
            f"Run: {remedy(files)}"
        ) from error


def grid_key(grid: str) -> str:
    """Return the key of the pixel axes of a source grid.

    Parameters
    ----------
    grid
        Name of the grid.

    Returns
    -------
    The key.
    """
    return f"{_BUILD}/grids/{grid}.npz"


class Build:
    """The plan of a store, finished or not, and the records of its log.

    It takes about 1 kB of memory for each source, because the values of records stay in the log.

    Parameters
    ----------
    store
        Path or URL.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self.files = Files(store)
        self._load()

    def _load(self) -> None:
        self._planned: tuple[Recipe, CubeLayout] | None = None
        self.entries: list[Entry] = []
        #: Position of each source in the plan.
        self.number: dict[str, int] = {}
        #: Positions of the scenes of each file of several times.
        self._several: dict[str, list[int]] = {}
        #: The last record of each entry, without shards and values; None without a record.
        self.records: list[Record | None] = []
        self._places = np.zeros(0, _PLACE)
        #: Bytes (-1 for none) and CRC-32 of every shard, (rows, channels).
        self.shard_bytes = np.zeros((0, 0), np.int64)
        self.shard_crc = np.zeros((0, 0), np.uint32)
        #: Outcomes of sources that are not in the plan.
        self.refused: dict[str, Record] = {}
        #: Damage of plan and log: key and problem. If the plan is damaged, its copy is used.
        self.damages: list[tuple[str, str]] = []
        #: Objects of plan and copy that `mend` writes.
        self._mended: dict[str, bytes] = {}
        #: Size and CRC-32 of each object of the plan.
        self._segments: dict[str, tuple[int, int]] = {}
        self._read_plan()
        self._log = Log(self.files)
        for record, place in self._log.replay():
            self._index(record, place)
        self.damages += self._log.damages

    @functools.cached_property
    def last(self) -> Manifest | None:
        """The last commit of the store at the first access; None without a commit."""
        return last_commit(self.files)

    @property
    def is_planned(self) -> bool:
        """True if the store has a plan: a recipe and a layout."""
        return self._planned is not None

    @property
    def recipe(self) -> Recipe:
        """The recipe of the store; SchemaError if nothing is planned."""
        return self._plan()[0]

    @property
    def layout(self) -> CubeLayout:
        """The layout of all crops; SchemaError if nothing is planned."""
        return self._plan()[1]

    def _plan(self) -> tuple[Recipe, CubeLayout]:
        if self._planned is None:
            raise SchemaError(
                f"{self.files.root}: no build log in it, so nothing is planned. Run gridrad-cube preprocess first."
            )
        return self._planned

    @property
    def rows(self) -> int:
        """Number of crops in the plan."""
        return self.entries[-1].rows.stop if self.entries else 0

    @property
    def written(self) -> int:
        """Number of sources that are written."""
        return sum(map(self.is_written, range(len(self.entries))))

    def _read_plan(self) -> None:
        there, copies = set(self.files.names(_PLAN)), set(self.files.names(_PLAN_COPY))
        for name in sorted(there | {name.removesuffix(".z") for name in copies}):
            key = f"{_PLAN}/{name}"
            data = self.files.read(key) if name in there else b""
            copy = self._read_copy(name) if f"{name}.z" in copies else None
            if copy is None:
                self._mended[_copy_key(name)] = zlib.compress(data, 6)
                known = self.last.objects.get(key) if self.last else None
                if known and known != (len(data), zlib.crc32(data)):
                    raise SchemaError(
                        f"{self.files.path(key)}: the plan and its copy are both damaged, so that this store can be "
                        "read, and neither extended nor verified. Build a new one."
                    )
            elif data != copy:
                self.damages.append((key, "altered" if name in there else "missing"))
                self._mended[key] = data = copy
            try:
                self._read_segment(data)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                if isinstance(error, SchemaError):
                    raise
                raise SchemaError(
                    f"{self.files.path(key)}: the plan of the store cannot be read ({error!r}), so that it can be "
                    "neither extended nor verified. Build a new one."
                ) from error
            self._segments[key] = len(data), zlib.crc32(data)

    def _read_copy(self, name: str) -> bytes | None:
        try:
            return zlib.decompress(self.files.read(_copy_key(name)))
        except zlib.error:
            self.damages.append((_copy_key(name), "altered"))
            return None

    def _read_segment(self, data: bytes) -> None:
        lines = data.decode().splitlines()
        head = json.loads(lines[0])
        if head["format"] != _BUILD_FORMAT:
            raise SchemaError(
                f"{self.files.root}: its build log has format {head['format']}, this gridrad-cube writes "
                f"{_BUILD_FORMAT}. The store can be read; to extend, verify or reflag it, build it again."
            )
        if "recipe" in head:
            self._planned = Recipe.from_dict(head["recipe"]), CubeLayout.from_dict(head["layout"])
        self._add([Entry.from_dict(json.loads(line)) for line in lines[1:]])

    def mend(self) -> None:
        """Restore damaged objects of plan, log and grids that can be restored without a source. Needs the
        lease.
        """
        for key, data in self._mended.items():
            self.files.write(key, data)
        self._mended.clear()
        if self._log.damages:
            self._log.mend()
            self._load()
        self.damages.clear()
        known = self.last.objects if self.last else {}
        sizes = self.files.sizes(f"{_BUILD}/grids")
        for key, (size, _) in known.items():
            folder, _, name = key.rpartition("/")
            if folder == f"{_BUILD}/grids" and sizes.get(name) != size:
                self.mend_grid(name.removesuffix(".npz"))

    def mend_grid(self, grid: str) -> bool:
        """Restore the axes of a source grid from the arrays of the store; remove them if that fails.

        Parameters
        ----------
        grid
            Name of the grid.

        Returns
        -------
        False if they were removed.
        """
        if self.last is not None:
            there = CheckedStore(self.files, self.last.root)
            with contextlib.suppress(ValueError, FileNotFoundError, KeyError):
                axes = {
                    name: np.asarray(zarr.open_array(there, path=f"grids/{grid}/{name}", mode="r")[...])
                    for name in ("latitude", "longitude")
                }
                self.files.write_arrays(grid_key(grid), axes)
                return True
        self.files.remove(grid_key(grid))
        return False

    @property
    def lost(self) -> list[str]:
        """Committed sources whose record is missing from the log."""
        rows = self.last.root.crops if self.last else 0
        return [
            entry.source
            for entry, record in zip(self.entries, self.records, strict=True)
            if record is None and entry.row < rows
        ]

    def missing(self) -> set[str]:
        """Return the keys of small objects of the last commit that are missing, or found with another size.

        Returns
        -------
        Keys of objects.
        """
        if self.last is None:
            return set()
        sizes = functools.cache(self.files.sizes)
        out = set()
        for key, (size, crc) in self.last.objects.items():
            folder, _, name = key.rpartition("/")
            found = sizes(folder).get(name, -1)
            if found != size and not (crc is None and found > size):
                out.add(key)
        return out

    def note(self, commit: Any) -> None:
        """Add plan, log and grids to the manifest of a commit.

        Parameters
        ----------
        commit
            The commit.
        """
        commit.note_known(self._segments)
        for name in self.files.names(_PLAN_COPY):
            key = f"{_PLAN_COPY}/{name}"
            if not commit.note_as_before(key):
                commit.note(key, self.files.read(key))
        # A log grows, and its records have checksums.
        commit.note_known({key: (size, None) for key, size in self._log.sizes().items()})
        for grid in sorted({entry.grid for entry in self.entries}):
            key = grid_key(grid)
            if not commit.note_as_before(key) and self.files.exists(key):
                commit.note(key, self.files.read(key))

    def _add(self, entries: Sequence[Entry]) -> None:
        before = self.rows
        self.number |= {e.source: len(self.entries) + i for i, e in enumerate(entries)}
        for number, entry in enumerate(entries, len(self.entries)):
            if entry.file != entry.source:
                self._several.setdefault(entry.file, []).append(number)
        self.entries.extend(entries)
        self.records += [None] * len(entries)
        self._places = np.concatenate([self._places, np.zeros(len(entries), _PLACE)])
        channels = len(self.layout.channels)
        rows = self.rows - before
        old = self.shard_bytes.reshape(-1, channels), self.shard_crc.reshape(-1, channels)
        self.shard_bytes = np.concatenate([old[0], np.full((rows, channels), -1, np.int64)])
        self.shard_crc = np.concatenate([old[1], np.zeros((rows, channels), np.uint32)])

    def _index(self, record: Record, place: Place) -> None:
        number = self.number.get(record.source)
        if number is None:
            if record.source not in self._several:  # refused once, and planned since
                self.refused[record.source] = record
            return
        rows = self.entries[number].rows
        self.records[number] = dataclasses.replace(record, shards=_NO_SHARDS, values=b"")
        self._places[number] = place
        self.shard_bytes[rows.start : rows.stop], self.shard_crc[rows.start : rows.stop] = -1, 0
        for column, name in enumerate(self.layout.channels):
            for row, shard in zip(rows, record.shards.get(name, ()), strict=False):
                if shard:
                    self.shard_bytes[row, column], self.shard_crc[row, column] = shard

    def begin(self, recipe: Recipe, layout: CubeLayout, entries: Sequence[Entry]) -> None:
        """Write the plan of a new store.

        Parameters
        ----------
        recipe
            Recipe of the store.
        layout
            Layout of the store.
        entries
            Entries of the plan, in the order of their rows.
        """
        self._planned = recipe, layout
        self._write_plan({"recipe": recipe.to_dict(), "layout": layout.to_dict()}, entries)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Append sources to the plan; their rows follow the old ones.

        Parameters
        ----------
        entries
            New entries, in the order of their rows.
        """
        self._write_plan({}, entries)

    def _write_plan(self, head: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        # Killed between two segments, the rest is planned by the next run, in the same order.
        for start in range(0, len(entries), _ENTRIES_A_SEGMENT):
            segment = entries[start : start + _ENTRIES_A_SEGMENT]
            first = dict(head) | {"format": _BUILD_FORMAT}
            lines = [json.dumps(first), *(json.dumps(dataclasses.asdict(e)) for e in segment)]
            name, data = f"{len(self._segments):04d}.jsonl", ("\n".join(lines) + "\n").encode()
            self.files.write(f"{_PLAN}/{name}", data)
            self.files.write(_copy_key(name), zlib.compress(data, 6))
            self._segments[f"{_PLAN}/{name}"] = len(data), zlib.crc32(data)
            self._add(segment)
            head = {}

    def record(self, record: Record) -> None:
        """Append the outcome of a source to the log. The last record of a source is the valid one.

        Parameters
        ----------
        record
            The record.
        """
        self._index(record, self._log.append(record))

    def flush(self) -> None:
        """Make every record durable. On object stores, several records are written together."""
        self._log.flush()

    def is_written(self, number: int) -> bool:
        """Return whether an entry's last record says ``written``.

        Parameters
        ----------
        number
            Position of the entry in the plan.

        Returns
        -------
        True if it is written.
        """
        record = self.records[number]
        return record is not None and record.status == "written"

    def values(self, number: int) -> bytes | None:
        """Return the packed rows of an entry's crops, None where it is not written.

        Parameters
        ----------
        number
            Position of the entry in the plan.

        Returns
        -------
        Structured array, one element for each crop; None if the entry is not written.

        Raises
        ------
        SchemaError
            If the values are damaged.
        """
        if not self.is_written(number):
            return None
        try:
            return self._log.values(Place(*(int(v) for v in self._places[number])))
        except SchemaError as error:
            raise SchemaError(f"{error}. Run: {remedy(self.files)}") from error

    def numbers_of(self, file: str) -> list[int]:
        """Return the positions in the plan of the scenes of a file; empty for a file that is not planned.

        Parameters
        ----------
        file
            Name of the file.

        Returns
        -------
        Positions; empty for a file that is not planned.
        """
        alone = [self.number[file]] if file in self.number else []
        return alone + self._several.get(file, [])

    def shards_of(self, number: int) -> dict[str, list[tuple[int, int] | None]]:
        """Return the bytes and CRC-32 of the shards of an entry's crops, as its record has them.

        Parameters
        ----------
        number
            Position of the entry in the plan.

        Returns
        -------
        Bytes and CRC-32 by channel and crop.
        """
        rows = self.entries[number].rows
        sizes, sums = (a[rows.start : rows.stop].T.tolist() for a in (self.shard_bytes, self.shard_crc))
        return {
            name: [(size, crc) if size >= 0 else None for size, crc in zip(*pairs, strict=True)]
            for name, *pairs in zip(self.layout.channels, sizes, sums, strict=True)
        }

    def shards(self) -> Iterator[Shard]:
        """Yield every shard of the log with the size on disk. The files of a channel are listed once.

        Yields
        ------
        Shards.
        """
        for column, name in enumerate(self.layout.channels):
            spec, there = self.layout.pixels(name, self.rows), self.files.sizes(name)
            for row in np.flatnonzero(self.shard_bytes[:, column] >= 0).tolist():
                key = spec.key(row)
                size, crc = int(self.shard_bytes[row, column]), int(self.shard_crc[row, column])
                yield Shard(row, key, size, crc, there.get(key.rsplit("/", 1)[1]))

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold the right to write during a ``with`` block (`gridrad_cube.lease`). A second writer is refused.

        What killed writers left of unfinished files is removed.

        Yields
        ------
        What is held; ``check`` it before a commit.

        Raises
        ------
        SchemaError
            If another process writes to this store (the message names host, process and start), or there is
            something else at this place.
        """
        others = self.files.names() and not self.files.exists(_BUILD)
        if not self.is_planned and (others or self.files.exists(f"{_BUILD}/embed.json")):
            raise SchemaError(
                f"{self.files.root}: something else is at this place; expected a cube. Give a new path"
            )
        with lease(self.files, _BUILD) as held:
            self.files.remove_partials()
            yield held

    def identity(self) -> str:
        """Return a hash of the content of the store: layout and checksums of all shards, in the order of
        rows.

        Returns
        -------
        Hexadecimal digits.
        """
        digest = hashlib.sha256(json.dumps(self.layout.to_dict(), sort_keys=True).encode())
        for array in (self.shard_bytes, self.shard_crc):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def state(self, rows: range | None = None) -> str:
        """Return a hash of all inputs of the finished store, or of a block of its rows: plan and log.

        Parameters
        ----------
        rows
            The block; None for all rows.

        Returns
        -------
        Hexadecimal digits.
        """
        digest = hashlib.sha256()
        entries = self.entries_of(range(self.rows) if rows is None else rows)
        for number in entries:
            entry = self.entries[number]
            digest.update(repr((entry.source, entry.row, entry.windows, entry.time, entry.grid)).encode())
        part = slice(entries.start, entries.stop)
        statuses = (_UNKNOWN if r is None else STATUS[r.status] for r in self.records[part])
        digest.update(bytes(statuses))
        digest.update(self._places["crc"][part].tobytes())
        if rows is None:
            refused = [(r.source, r.status, r.reason) for r in self.refused.values()]
            reasons = [(n, r.reason) for n, r in enumerate(self.records) if r and r.reason]
            digest.update(repr((self.identity(), reasons, sorted(refused))).encode())
        return digest.hexdigest()[:32]

    def entries_of(self, rows: range) -> range:
        """Return the numbers of the entries that own some of these rows (entries lie in the order of their
        rows).

        Parameters
        ----------
        rows
            The rows.

        Returns
        -------
        Numbers of entries.
        """
        if not rows:
            return range(0)
        start = bisect.bisect_right(self.entries, rows.start, key=lambda e: e.row) - 1
        return range(start, bisect.bisect_left(self.entries, rows.stop, key=lambda e: e.row))


def _copy_key(name: str) -> str:
    """Return the key of the copy of an object of the plan."""
    return f"{_PLAN_COPY}/{name}.z"


def check_duplicates(old: Iterable[Entry], new: Sequence[Entry]) -> None:
    """Refuse a new source with the same time, grid, window and product as another, new or old.

    Parameters
    ----------
    old
        Entries of the plan.
    new
        New entries.

    Raises
    ------
    SchemaError
        Names both files.
    """
    times = {entry.time for entry in new}
    seen: dict[tuple[Any, ...], str] = {}
    for entry in itertools.chain((e for e in old if e.time in times), new):
        for window in entry.windows:
            other = seen.setdefault((entry.time, entry.grid, window, entry.product), entry.source)
            if other != entry.source:
                raise SchemaError(
                    f"{entry.source}: the same time, grid, window and product as {other}; expected one scene of each "
                    "time. Leave one out of SOURCE, or build a store for each, as for forecasts of several lead times."
                )
