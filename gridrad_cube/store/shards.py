"""Patches straight from the shards of an array: index kept, whole batches at a time, checksums always checked.

A shard of Zarr v3 is its chunks one after the other and, at the end, an index: offset and length of every chunk
(16 bytes each), then a CRC-32C. General readers fetch that index for every patch. Here it is kept, so that a
random patch costs one read of its own bytes, one checksum and one decompression into the batch it belongs to.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from gridrad_cube.store.cache import ShardCache
from gridrad_cube.store.files import Files

#: Offset and length of a chunk that a shard does not have.
ABSENT = 2**64 - 1
#: Bytes of shard indexes that a reader keeps (16 a patch: of 4 million patches).
INDEX_BYTES = 64 * 2**20
#: More threads than this wait for Python's lock: some 15 of the 80 microseconds of a patch hold it.
LOCAL_THREADS = 8
#: Requests that are under way at a time, to a remote store: each is waited for much longer than it takes.
REMOTE_THREADS = 16
#: What `ShardReader.read` says of a patch that is not there; anything else says why it cannot be read.
MISSING = "missing"

_CHECKSUM = 4


class _Damaged(Exception):
    """Bytes that are not what was written; says what is wrong with them."""


@dataclass(frozen=True)
class ShardLayout:
    """How an array lies in its shards, as far as `ShardReader` understands it."""

    name: str
    dtype: np.dtype[Any]
    #: Chunks and shards along each dimension of the array, and chunks along each dimension of a shard.
    extent: tuple[int, ...]
    shards: tuple[int, ...]
    chunks: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    separator: str
    compressor: str | None
    checksum: bool

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any]) -> Self | None:
        """Take the layout from an array's ``zarr.json``; None where another reader has to be used.

        Understood are sharded arrays of little-endian numbers, compressed by blosc, zstd or
        not at all, with or without a CRC-32C, whose index is at the end.
        """
        codecs, keys = metadata["codecs"], metadata["chunk_key_encoding"]
        if [codec["name"] for codec in codecs] != ["sharding_indexed"] or keys["name"] != "default":
            return None
        sharding = codecs[0]["configuration"]
        inner, (index, *checks) = _Codecs(sharding["codecs"]), sharding["index_codecs"]
        shape, chunk = metadata["shape"], sharding["chunk_shape"]
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        understood = (
            inner.understood
            and metadata["chunk_grid"]["name"] == "regular"
            and sharding.get("index_location", "end") == "end"
            and _little(index)
            and [check["name"] for check in checks] == ["crc32c"]
            and isinstance(metadata["data_type"], str)
        )
        try:
            dtype = np.dtype(metadata["data_type"])
        except TypeError:
            return None
        if not understood or dtype.kind not in "iuf":
            return None
        return cls(
            name=name,
            dtype=dtype.newbyteorder("<"),
            extent=tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True)),
            shards=tuple(-(-n // s) for n, s in zip(shape, shard, strict=True)),
            chunks=tuple(s // c for s, c in zip(shard, chunk, strict=True)),
            chunk_shape=tuple(chunk),
            separator=keys.get("configuration", {}).get("separator", "/"),
            compressor=inner.compressor,
            checksum=inner.checksum,
        )

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, its checksum included."""
        return 16 * math.prod(self.chunks) + _CHECKSUM

    def key(self, shard: int) -> str:
        """Key of a shard by its number in C order."""
        place = []
        for count in reversed(self.shards):
            shard, number = divmod(shard, count)
            place.append(str(number))
        return f"{self.name}/" + self.separator.join(["c", *reversed(place)])


class _Codecs:
    """The codecs of a chunk: array to bytes, then a compressor or none, then a checksum or none."""

    def __init__(self, codecs: Sequence[Mapping[str, Any]]) -> None:
        first, *rest = codecs
        names = [codec["name"] for codec in rest]
        self.checksum = names[-1:] == ["crc32c"]
        names = names[: len(names) - self.checksum]
        self.compressor = names[0] if names else None
        self.understood = _little(first) and names in ([], ["blosc"], ["zstd"])


def _little(codec: Mapping[str, Any]) -> bool:
    return codec["name"] == "bytes" and codec.get("configuration", {}).get("endian", "little") == "little"


class _IndexCache:
    """Shard indexes by shard, the least recently used dropped first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[int, tuple[Any, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: int, stamp: Any) -> np.ndarray | None:
        """The index of a shard, if it was kept with this stamp."""
        with self._lock:
            found = self._kept.get(shard)
            if found is None or found[0] != stamp:
                return None
            self._kept.move_to_end(shard)
            return found[1]

    def put(self, shard: int, stamp: Any, index: np.ndarray) -> None:
        """Keep an index."""
        with self._lock:
            self._drop(shard)
            self._kept[shard] = (stamp, index)
            self.bytes += index.nbytes
            while self.bytes > self.limit and len(self._kept) > 1:
                self.bytes -= self._kept.popitem(last=False)[1][1].nbytes

    def drop(self, shard: int) -> None:
        """Forget an index."""
        with self._lock:
            self._drop(shard)

    def _drop(self, shard: int) -> None:
        found = self._kept.pop(shard, None)
        if found is not None:
            self.bytes -= found[1].nbytes


class _Unit(NamedTuple):
    """What one thread reads at a time: some patches of one shard."""

    shard: int
    #: Numbers of the chunks in the shard, and the places in the batch that they go to.
    chunks: list[int]
    places: list[int]


class Process:
    """The process that something was first used in; threads and locks do not survive a fork into another."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def check(self, root: str) -> None:
        """Take note of this process, or refuse if it is a fork of the noted one."""
        if self._pid is None:
            self._pid = os.getpid()
        elif self._pid != os.getpid():
            raise RuntimeError(
                f"{root}: this reader was opened before the process forked, and its threads did not "
                "survive. Start workers with multiprocessing_context='spawn' or 'forkserver', or use threads."
            )


class ShardReader:
    """Read chunks of one sharded array into a batch, by the calling thread and others of its own.

    Refuses in a process forked from the one that it was first used in.

    Parameters
    ----------
    files
        Where the array lies.
    layout
        How.
    threads
        Threads that read and decompress, the caller's among them; None takes one a core, 8 at most, and 16 for
        a remote store.
    index_bytes
        How much to keep of the shards' indexes.
    cache
        Where to keep whole shards; None reads them where they are.
    state
        Of the store; shards kept of another state are not used.
    """

    def __init__(
        self,
        files: Files,
        layout: ShardLayout,
        *,
        threads: int | None = None,
        index_bytes: int = INDEX_BYTES,
        cache: ShardCache | None = None,
        state: str = "",
    ) -> None:
        self.files, self.layout, self.cache, self.state = files, layout, cache, state
        self.threads = threads or (min(cores(), LOCAL_THREADS) if files.local else REMOTE_THREADS)
        self._process = Process()
        self._indexes = _IndexCache(index_bytes)
        self._pool: ThreadPoolExecutor | None = None
        self._scratch = threading.local()
        self._starting = threading.Lock()

    def __repr__(self) -> str:
        return f"ShardReader({self.files.root!r}, {self.layout.name!r})"

    def read(self, index: np.ndarray, out: np.ndarray, places: Sequence[int] | None = None) -> dict[int, str]:
        """Read chunks at these places of the grid of chunks.

        Parameters
        ----------
        index
            Integers, shape (N, dims).
        out
            Where to put them, (M, ...): ``out[i]`` is contiguous and has a chunk's bytes.
        places
            Which of ``out`` each chunk goes to; in order if None.

        Returns
        -------
        Row of ``index`` -> what is wrong with it (`MISSING`, or why it cannot be read), for chunks that
        are not in ``out`` now. Empty when all is well.

        Raises
        ------
        IndexError
            If a place is not in the array.
        OSError
            If the disk or network fails, which says nothing about the store.
        """
        self._process.check(self.files.root)
        targets = range(len(index)) if places is None else places
        units, failures = deque(self._units(index)), dict[int, str]()

        def work() -> None:
            while True:
                try:
                    unit = units.popleft()
                except IndexError:  # all are taken
                    return
                failures.update(self._read_unit(unit, out, targets))

        helpers = min(self.threads, len(units)) - 1
        futures = [self._executor().submit(work) for _ in range(helpers)]
        try:
            work()  # rather than wait: waking threads up takes as long as reading some patches
        finally:
            errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return failures

    def _executor(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="ShardReader")
            return self._pool

    def _units(self, index: np.ndarray) -> Iterator[_Unit]:
        """Patches sorted by shard and chunk; a shard's in pieces that keep all threads busy."""
        layout = self.layout
        outside = ((index < 0) | (index >= np.array(layout.extent))).any(axis=1)
        if outside.any():
            raise IndexError(f"{self!r}: no chunk {index[outside][0].tolist()}")
        outer, inner = np.divmod(index.T, np.array(layout.chunks)[:, None])
        shard = np.ravel_multi_index(tuple(outer), layout.shards)
        chunk = np.ravel_multi_index(tuple(inner), layout.chunks)
        order = np.lexsort((chunk, shard))
        shard, chunk = shard[order], chunk[order]
        # A remote shard is asked once for all that is wanted of it.
        most = max(1, min(16, -(-len(index) // self.threads))) if self.files.local else len(index)
        starts = np.flatnonzero(np.diff(shard, prepend=-1)).tolist()
        for start, stop in itertools.pairwise([*starts, len(shard)]):
            for first in range(start, stop, most):
                part = slice(first, min(first + most, stop))
                yield _Unit(int(shard[start]), chunk[part].tolist(), order[part].tolist())

    def _read_unit(self, unit: _Unit, out: np.ndarray, targets: Sequence[int]) -> dict[int, str]:
        failures = self._attempt(unit, out, targets)
        if any(what != MISSING for what in failures.values()):
            # Rewritten in place while it was read, perhaps: once more with an index read anew.
            self._indexes.drop(unit.shard)
            if self.cache is not None:
                self.cache.drop(self.files, self.layout.key(unit.shard), self.state)
            failures = self._attempt(unit, out, targets)
        return failures

    def _attempt(self, unit: _Unit, out: np.ndarray, targets: Sequence[int]) -> dict[int, str]:
        key = self.layout.key(unit.shard)
        try:
            with self._open(key) as source:
                index = self._index(unit.shard, source)
                return self._read_chunks(unit, index, source, out, targets)
        except FileNotFoundError:
            return dict.fromkeys(unit.places, MISSING)
        except _Damaged as error:
            return dict.fromkeys(unit.places, str(error))
        except OSError as error:
            error.add_note(f"while reading {self.files.path(key)}")
            raise

    def _open(self, key: str) -> _LocalShard | _RemoteShard:
        for _ in range(5 if self.cache is not None else 0):
            path = self.cache.fetch(self.files, key, self.state)  # type: ignore[union-attr]
            if path is None:
                break
            with contextlib.suppress(FileNotFoundError):  # removed since, by another process that needs room
                return _LocalShard(path)
        return _LocalShard(self.files.path(key)) if self.files.local else _RemoteShard(self.files, key)

    def _index(self, shard: int, source: _Source) -> np.ndarray:
        kept = self._indexes.get(shard, source.stamp)
        if kept is None:
            data = source.tail(self.layout.index_bytes)
            body, (checksum,) = data[:-_CHECKSUM], struct.unpack("<I", data[-_CHECKSUM:])
            if google_crc32c.value(body) != checksum:
                raise _Damaged("the checksum of the shard's index differs")
            kept = np.frombuffer(body, "<u8").reshape(-1, 2)
            self._indexes.put(shard, source.stamp, kept)
        return kept

    def _read_chunks(
        self, unit: _Unit, index: np.ndarray, source: _Source, out: np.ndarray, targets: Sequence[int]
    ) -> dict[int, str]:
        failures: dict[int, str] = {}
        wanted = []
        for (offset, size), place in zip(index[unit.chunks].tolist(), unit.places, strict=True):
            if offset == size == ABSENT:
                failures[place] = MISSING
            else:
                wanted.append((offset, size, place))
        for data, parts in source.read(merge(wanted, gap=source.GAP, most=source.MOST), self._buffer):
            for first, size, place in parts:
                try:
                    if len(data) < first + size:
                        raise _Damaged("the shard is truncated")
                    self._decode(data[first : first + size], out[targets[place]])
                except _Damaged as error:
                    failures[place] = str(error)
        return failures

    def _buffer(self, size: int) -> np.ndarray:
        """Bytes that this thread may use until it asks again."""
        kept = getattr(self._scratch, "bytes", None)
        if kept is None or len(kept) < size:
            kept = self._scratch.bytes = np.empty(max(size, 2**18), np.uint8)
        return kept[:size]

    def _decode(self, data: np.ndarray, out: np.ndarray) -> None:
        layout = self.layout
        if layout.checksum:
            if len(data) < _CHECKSUM:
                raise _Damaged("the chunk is truncated")
            data, tail = data[:-_CHECKSUM], data[-_CHECKSUM:]
            if google_crc32c.value(data) != int.from_bytes(tail.tobytes(), "little"):
                raise _Damaged("its checksum differs")
        if layout.compressor is None:
            self._check_size(len(data))
            out.reshape(-1).view(np.uint8)[:] = data
            return
        try:
            if layout.compressor == "blosc":
                # Fewer bytes than expected would leave a part of the batch as it was.
                self._check_size(int.from_bytes(data[4:8].tobytes(), "little"))
                blosc.decompress(data, out)
            else:
                whole = np.frombuffer(zstd.decompress(data), np.uint8)
                self._check_size(len(whole))
                out.reshape(-1).view(np.uint8)[:] = whole
        except (RuntimeError, ValueError) as error:
            raise _Damaged(f"it cannot be decompressed: {error}") from error

    def _check_size(self, size: int) -> None:
        if size != self.layout.chunk_bytes:
            raise _Damaged(f"it holds {size} bytes; expected {self.layout.chunk_bytes}")


class _Source(Protocol):
    """Bytes of one shard."""

    #: Bytes between two patches that are read along rather than left out, and most bytes of one read.
    GAP: int
    MOST: int
    #: Another one means another file, or other bytes.
    stamp: Any

    def tail(self, size: int) -> bytes:
        """The last bytes."""
        ...

    def read(
        self, ranges: Sequence[_Range], buffer: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int, int]]]]:
        """Bytes of each range (fewer at the end of the shard), good until the next is asked for; its parts."""
        ...


class _RemoteShard:
    """A shard anywhere else. Its index is believed until a checksum differs."""

    GAP, MOST = 2**20, 2**24
    stamp = None

    def __init__(self, files: Files, key: str) -> None:
        self._files, self._key = files, key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def tail(self, size: int) -> bytes:
        """See `_Source`."""
        data = self._files.read_range(self._key, -size)
        if len(data) != size:
            raise _Damaged(f"the shard is truncated to {len(data)} bytes")
        return data

    def read(
        self, ranges: Sequence[_Range], buffer: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int, int]]]]:
        """See `_Source`."""
        blocks = self._files.read_ranges(self._key, [(start, stop) for start, stop, _ in ranges])
        for data, (_, _, parts) in zip(blocks, ranges, strict=True):
            yield np.frombuffer(data, np.uint8), parts


class _LocalShard:
    """An open shard on a local disk. Opened for each use: few descriptors, and never an old file's bytes."""

    GAP, MOST = 0, 2**20

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self._descriptor)
        self._size = status.st_size
        self.stamp = (status.st_ino, status.st_size, status.st_mtime_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def tail(self, size: int) -> bytes:
        """See `_Source`."""
        if self._size < size:
            raise _Damaged(f"the shard is truncated to {self._size} bytes")
        data = os.pread(self._descriptor, size, self._size - size)
        if len(data) != size:
            raise _Damaged("the shard is truncated")
        return data

    def read(
        self, ranges: Sequence[_Range], buffer: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int, int]]]]:
        """See `_Source`."""
        for start, stop, parts in ranges:
            if stop > self._size:
                raise _Damaged("the shard is truncated")
            data = buffer(stop - start)
            view, done = data.data, 0
            while done < len(data) and (more := os.preadv(self._descriptor, [view[done:]], start + done)):
                done += more
            yield data[:done], parts


#: First byte, byte after the last, and the patches in it: offset from the first, size, place.
_Range = tuple[int, int, list[tuple[int, int, int]]]


def merge(wanted: Iterable[tuple[int, int, int]], *, gap: int, most: int) -> list[_Range]:
    """Put (offset, size, place) that lie near each other into ranges of at most so many bytes.

    Parameters
    ----------
    gap
        Bytes between two that are read along rather than left out.
    most
        Bytes of a range, unless one alone has more.
    """
    out: list[_Range] = []
    for offset, size, place in sorted(wanted):
        if out:
            start, stop, parts = out[-1]
            end = max(stop, offset + size)
            if offset <= stop + gap and end - start <= most:
                parts.append((offset - start, size, place))
                out[-1] = (start, end, parts)
                continue
        out.append((offset, offset + size, [(0, size, place)]))
    return out


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
