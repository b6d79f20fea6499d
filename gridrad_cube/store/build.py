"""Building a store exactly once: plan, log of finished sources, lease, and the shards of one crop.

Under ``_build/`` of a store lie ``plan/NNNN.jsonl`` (one line a source, in the order of its rows), ``log/``
(one record a finished source, in order of arrival), ``grids/`` (pixel axes, one file a distinct grid) and
``lease.json`` (who writes). The root ``zarr.json`` is the commit and is written last.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gridrad_cube.schema import Recipe, SchemaError
from gridrad_cube.store.arrays import encode
from gridrad_cube.store.files import Files
from gridrad_cube.store.layout import CubeLayout

BUILD = "_build"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One source file of the plan; its crops take the rows ``row .. row + len(windows)`` for good."""

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
    def scene(self) -> str:
        """Name of the scene: the file name without its suffix."""
        return PurePosixPath(self.source).stem

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """The inverse of ``dataclasses.asdict`` through JSON."""
        return cls(
            **{
                **data,
                "shape": tuple(data["shape"]),
                "channels": tuple(data["channels"]),
                "windows": tuple(tuple(w) for w in data["windows"]),
            }
        )


def pack_values(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Small arrays as JSON, bit for bit (zlib, base64)."""
    return {
        name: [a.dtype.str, list(a.shape), base64.b64encode(zlib.compress(a.tobytes(), 1)).decode()]
        for name, a in values.items()
    }


def unpack_values(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `pack_values`."""
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype).reshape(shape)
        for name, (dtype, shape, data) in packed.items()
    }


def write_crop(
    files: Files, layout: CubeLayout, row: int, pixels: Mapping[str, np.ndarray]
) -> dict[str, list[int]]:
    """Write the shards of one crop, each in one step; return key -> [bytes, CRC-32].

    Writing a crop again gives the same bytes, so that a task that runs twice does no harm.
    """
    written = {}
    for name, values in pixels.items():
        spec = layout.pixels(name, row + 1)
        data = encode(spec, values[np.newaxis])
        key = spec.key((row, *(0 for _ in spec.dims[1:])))
        files.write(key, data)
        written[key] = [len(data), zlib.crc32(data)]
    return written


def write_grid(files: Files, grid: str, latitude: np.ndarray, longitude: np.ndarray) -> None:
    """Keep the pixel axes of a source grid, once for each distinct grid."""
    key = f"{BUILD}/grids/{grid}.npz"
    if not files.exists(key):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, latitude=latitude, longitude=longitude)
        files.write(key, buffer.getvalue())


def read_grid(files: Files, grid: str) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude axes of a source grid, 1-D or 2-D, degrees."""
    with np.load(io.BytesIO(files.read(f"{BUILD}/grids/{grid}.npz")), allow_pickle=False) as arrays:
        return arrays["latitude"], arrays["longitude"]


class Build:
    """The plan and the log of a store that is being built, or was.

    Parameters
    ----------
    store
        Path or URL.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self.files = Files(store)
        self.recipe: Recipe | None = None
        self.layout: CubeLayout | None = None
        self.entries: list[Entry] = []
        #: Place of each source's last record: (log object, offset, length).
        self.places: dict[str, tuple[str, int, int]] = {}
        #: Sources whose last record says ``written``, with size and time of modification of the file then.
        self.written: dict[str, tuple[int, int]] = {}
        #: Status of each source's last record.
        self.status: dict[str, str] = {}
        self._log: str | None = None
        self._segments = 0
        self._read_plan()
        self._read_log()

    @property
    def rows(self) -> int:
        """Number of crops in the plan."""
        return self.entries[-1].rows.stop if self.entries else 0

    def _read_plan(self) -> None:
        for name in self.files.names(f"{BUILD}/plan"):
            lines = self.files.read(f"{BUILD}/plan/{name}").decode().splitlines()
            head = json.loads(lines[0])
            self._segments += 1
            if "recipe" in head:
                self.recipe = Recipe.from_dict(head["recipe"])
                self.layout = CubeLayout.from_dict(head["layout"])
            self.entries.extend(Entry.from_dict(json.loads(line)) for line in lines[1:])

    def _read_log(self) -> None:
        for name in self.files.names(f"{BUILD}/log"):
            key, offset = f"{BUILD}/log/{name}", 0
            for line in self.files.read(key).splitlines(keepends=True):
                if line.endswith(b"\n"):  # a killed writer can leave half a line, always the last
                    self._index(json.loads(line), (key, offset, len(line)))
                offset += len(line)

    def _index(self, record: Mapping[str, Any], place: tuple[str, int, int]) -> None:
        source = record["source"]
        self.places[source], self.status[source] = place, record["status"]
        if record["status"] == "written":
            self.written[source] = record["size"], record["mtime_ns"]
        else:
            self.written.pop(source, None)

    def begin(self, recipe: Recipe, layout: CubeLayout, entries: Sequence[Entry]) -> None:
        """Write the plan of a new store."""
        self.recipe, self.layout = recipe, layout
        self._write_segment({"recipe": recipe.to_dict(), "layout": layout.to_dict()}, entries)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Append sources to the plan; their rows follow the old ones."""
        if entries:
            self._write_segment({}, entries)

    def _write_segment(self, head: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        lines = [
            json.dumps(dict(head) | {"format": 1}),
            *(json.dumps(dataclasses.asdict(e)) for e in entries),
        ]
        self.files.write(f"{BUILD}/plan/{self._segments:04d}.jsonl", ("\n".join(lines) + "\n").encode())
        self._segments += 1
        self.entries.extend(entries)

    def record(self, record: Mapping[str, Any]) -> None:
        """Append what became of a source. Durable when this returns; the last record of a source counts."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._log is None or not self.files.local:
            number = len(self.files.names(f"{BUILD}/log"))
            self._log = f"{BUILD}/log/{number:06d}-{secrets.token_hex(3)}.jsonl"
        if self.files.local:
            path = self.files.path(self._log)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab") as file:
                offset = file.tell()
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        else:
            offset = 0
            self.files.write(self._log, line)
        self._index(record, (self._log, offset, len(line)))

    def load(self, source: str) -> dict[str, Any] | None:
        """The last record of a source, or None."""
        place = self.places.get(source)
        if place is None:
            return None
        key, offset, length = place
        if self.files.local:
            with open(self.files.path(key), "rb") as file:
                file.seek(offset)
                return dict(json.loads(file.read(length)))
        return dict(json.loads(self.files.read(key)[offset : offset + length]))

    def records(self) -> Iterator[dict[str, Any]]:
        """The last record of every source, in the order of their names."""
        for source in sorted(self.places):
            record = self.load(source)
            if record is not None:
                yield record

    def verified(self, entry: Entry) -> bool:
        """Whether a source is written and its shards are there in their recorded sizes."""
        if entry.source not in self.written:
            return False
        record = self.load(entry.source)
        if record is None:
            return False
        shards = {key: size for crop in record["crops"] for key, (size, _) in crop["shards"].items()}
        return all(self.files.size(key) == size for key, size in shards.items())

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the right to write; a second writer is refused.

        On local disks, a lease whose process on this host is gone is taken over. That of a remote store is
        not: it may be of any machine.

        Raises
        ------
        SchemaError
            If somebody else writes to this store; names host and process, and since when.
        """
        key = f"{BUILD}/lease.json"
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": int(time.time()),
            "nonce": secrets.token_hex(8),
        }
        payload = json.dumps(mine).encode()
        if not self.files.create(key, payload):
            self._take_over(key, payload)
        try:
            yield
        finally:
            try:
                held = self.files.read(key) == payload
            except FileNotFoundError:
                held = False
            if held:
                self.files.remove(key)

    def _take_over(self, key: str, payload: bytes) -> None:
        """Take the lease of a process of this host that is gone; refuse any other."""
        try:
            found = self.files.read(key)
            other = json.loads(found)
        except (FileNotFoundError, ValueError):
            found, other = b"", {}
        if not isinstance(other, dict):
            other = {}
        if found == payload:
            return  # ours: the answer to the first put was lost, and the put repeated
        if (
            self.files.local
            and other.get("host") == socket.gethostname()
            and not _alive(int(other.get("pid", -1)))
        ):
            aside = self.files.path(f"{BUILD}/.lease-{secrets.token_hex(4)}.partial")
            # A rename succeeds for one process alone; the other finds nothing, or a lease that lives.
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.files.path(key), aside)
                with open(aside, "rb") as file:
                    same = file.read() == found
                if same and self.files.create(key, payload):
                    os.unlink(aside)
                    return
                os.rename(aside, self.files.path(key))
        raise SchemaError(
            f"{self.files.root}: another process writes to this store (host {other.get('host')}, process "
            f"{other.get('pid')}, {_since(other.get('since'))}). Wait for it; if it is gone, remove "
            f"{self.files.path(key)}"
        )

    def identity(self) -> str:
        """Hash of what the store holds: layout and every shard's checksum, in the order of rows."""
        if self.layout is None:
            raise SchemaError(f"{self.files.root}: nothing is planned here")
        digest = hashlib.sha256(json.dumps(self.layout.to_dict(), sort_keys=True).encode())
        for entry in self.entries:
            record = self.load(entry.source) if entry.source in self.written else None
            for crop in record["crops"] if record else ():
                digest.update(json.dumps([crop["row"], sorted(crop["shards"].items())]).encode())
        return digest.hexdigest()[:32]

    def state(self) -> str:
        """Hash of all that the finished store is made from: its content and what became of every source."""
        log = json.dumps([self.identity(), self.rows, sorted(self.status.items())])
        return hashlib.sha256(log.encode()).hexdigest()[:32]


def _since(seconds: Any) -> str:
    """When a lease was taken, as UTC and as hours and minutes from now."""
    if not isinstance(seconds, int):
        return "since when is not known"
    minutes = max(0, int(time.time()) - seconds) // 60
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    return f"since {at}, {minutes // 60} h {minutes % 60:02} min ago"


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_duplicates(entries: Iterable[Entry]) -> None:
    """Refuse two sources with the same time, grid, window and product.

    Raises
    ------
    SchemaError
        Names both files.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for entry in entries:
        for window in entry.windows:
            key = (entry.time, entry.grid, window, entry.product)
            if key in seen:
                raise SchemaError(
                    f"{entry.source}: the same time, grid, window and product as {seen[key]}. Remove one of them, "
                    "or leave one out of SOURCE."
                )
            seen[key] = entry.source
