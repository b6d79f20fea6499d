"""Read chunks directly from the shards of an array, in batches. Checksums are always checked.

A shard of Zarr v3 consists of its chunks and, at the end, an index: offset and length of every chunk
(16 bytes each), then a CRC-32C. General readers fetch that index for every chunk. Here it is kept, so that a
random
chunk costs one read of its bytes, one checksum and one decompression into the batch that it belongs to.

Threads share Python's lock: each system call and each decompression releases the lock and must get it back.
So local
shards stay open, and the code for each chunk is short.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import struct
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import google_crc32c
import numpy as np
from numcodecs import blosc

from gridrad_cube.launch import cores
from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files

#: Bytes of shard indexes that a reader keeps: 16 for each chunk, so indexes of 4 million chunks.
_INDEX_BYTES = 64 * 2**20
#: Largest number of shards that this process keeps open, and their largest share of the files that it may open.
_OPEN_SHARDS, _OPEN_SHARE = 1024, 1 / 4
#: Seconds for which an open shard is assumed to be the file at its path.
_RECHECK_SECONDS = 1.0
#: Number of threads. More would wait for Python's lock, which is held for about 10 of the 70 microseconds of
#: a chunk.
_LOCAL_THREADS = 8
#: Concurrent requests to a remote store. The latency of a request is much longer than its processing.
_REMOTE_THREADS = 16
#: Largest number of chunks that a thread takes at once: large enough to ask rarely, small enough to share the
#: work.
_TOGETHER = 16
#: Text of `ShardReader.read` for a missing chunk. Other texts are reasons why a chunk cannot be read.
_MISSING = "missing"
#: Offset and length in an index of a chunk that is missing in the shard.
_ABSENT = 2**64 - 1
#: Bytes of a CRC-32C, which follows the bytes that it belongs to.
_CHECKSUM_BYTES = 4

_UINT32 = struct.Struct("<I")


class MissingChunkError(SchemaError):
    """A chunk of the store is missing, truncated or altered."""


def damage_error(
    root: str, variable: str, place: Mapping[str, int], reason: str, remedy: str
) -> MissingChunkError:
    """Return the error for a chunk that `ShardReader` could not read, with its name."""
    where = ", ".join(f"{name} {number}" for name, number in place.items())
    what = "is missing" if reason == _MISSING else f"cannot be read ({reason})"
    return MissingChunkError(f"{root}: {variable} at {where} {what}. Run: {remedy}")


class _DamagedShard(Exception):
    """The bytes of a shard are damaged; the message is the reason."""


@dataclass(frozen=True)
class ShardLayout:
    """The layout of an array in its shards."""

    name: str
    dtype: np.dtype[Any]
    #: Chunks and shards along each dimension of the array, and chunks along each dimension of a shard.
    extent: tuple[int, ...]
    shards: tuple[int, ...]
    chunks: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    separator: str
    compressed: bool

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any]) -> Self:
        """Take the layout from an array's ``zarr.json``.

        Raises
        ------
        SchemaError
            If it is not a sharded array of little-endian numbers, compressed by blosc or not at all, with a CRC-32C,
            whose shards have their index at the end.
        """
        try:
            (codec,), keys, grid = metadata["codecs"], metadata["chunk_key_encoding"], metadata["chunk_grid"]
            sharding = codec["configuration"]
            (first, *rest), (index, *checks) = sharding["codecs"], sharding["index_codecs"]
            names = [inner["name"] for inner in rest]
            dtype, shard = np.dtype(metadata["data_type"]), grid["configuration"]["chunk_shape"]
            shape, chunk = metadata["shape"], sharding["chunk_shape"]
            understood = (
                (codec["name"], keys["name"], grid["name"]) == ("sharding_indexed", "default", "regular")
                and sharding.get("index_location", "end") == "end"
                and [check["name"] for check in checks] == ["crc32c"]
                and all(codec["name"] == "bytes" for codec in (first, index))
                and all(
                    codec.get("configuration", {}).get("endian", "little") == "little"
                    for codec in (first, index)
                )
                and names in (["crc32c"], ["blosc", "crc32c"])
                and dtype.kind in "iuf"
            )
        except (KeyError, TypeError, ValueError):
            understood = False
        if not understood:
            raise SchemaError(
                f"{name}: not stored in shards as gridrad-cube writes them; expected a store that was not encoded "
                "again. Read it with xarray.open_zarr"
            )
        return cls(
            name=name,
            dtype=dtype.newbyteorder("<"),
            extent=tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True)),
            shards=tuple(-(-n // s) for n, s in zip(shape, shard, strict=True)),
            chunks=tuple(s // c for s, c in zip(shard, chunk, strict=True)),
            chunk_shape=tuple(chunk),
            separator=keys.get("configuration", {}).get("separator", "/"),
            compressed=len(names) == 2,
        )

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, its checksum included."""
        return 16 * math.prod(self.chunks) + _CHECKSUM_BYTES

    def index(self, data: bytes) -> np.ndarray:
        """Return the offset and length of each chunk of a shard, (chunks, 2), from the shard's last
        `index_bytes`.

        Raises
        ------
        _DamagedShard
            If there are fewer bytes, or the checksum differs.
        """
        if len(data) != self.index_bytes:
            raise _DamagedShard(f"the shard is truncated to {len(data)} bytes")
        body, (checksum,) = data[:-_CHECKSUM_BYTES], _UINT32.unpack(data[-_CHECKSUM_BYTES:])
        if google_crc32c.value(body) != checksum:
            raise _DamagedShard("the checksum of the shard's index differs")
        return np.frombuffer(body, "<u8").reshape(-1, 2)

    def key(self, shard: int) -> str:
        """Return the key of a shard by its number in C order."""
        place = map(str, np.unravel_index(shard, self.shards))
        return f"{self.name}/" + self.separator.join(["c", *place])

    def decoder(self) -> Callable[[Any, np.ndarray], str | None]:
        """Return a function that decodes one chunk into an array, and returns what is wrong with it, or None."""
        compressed, expected = self.compressed, math.prod(self.chunk_shape) * self.dtype.itemsize
        # Local names: this runs for every chunk.
        checksum, number, decompress = google_crc32c.value, _UINT32.unpack_from, blosc.decompress

        def decode(data: Any, out: np.ndarray) -> str | None:
            end = len(data) - _CHECKSUM_BYTES
            if end < 0:
                return "the chunk is truncated"
            (right,), data = number(data, end), data[:end]
            if checksum(data) != right:
                return "its checksum differs"
            try:
                # With fewer bytes than expected, a part of the batch would keep its old values.
                size = number(data, 4)[0] if compressed else len(data)
                if size != expected:
                    return f"it holds {size} bytes; expected {expected}"
                if compressed:
                    decompress(data, out)
                else:
                    out.reshape(-1).view(np.uint8)[:] = data
            except (RuntimeError, ValueError, struct.error) as error:
                return f"it cannot be decompressed: {error}"
            return None

        return decode


#: Open local shards of all readers of this process, by reader and shard.
_OPEN: OrderedDict[tuple[int, int], _LocalShard] = OrderedDict()
_OWNERS = itertools.count()


def _keep(cache: OrderedDict[Any, Any], key: Any, value: Any, limit: int) -> None:
    """Put a value into a cache that drops the oldest one. Each step is atomic, because several threads use
    the cache.
    """
    cache[key] = value
    with contextlib.suppress(KeyError):  # another thread has emptied it
        while len(cache) > limit:
            cache.popitem(last=False)


def _close(owner: int) -> None:
    """Close the shards of a reader that was deleted."""
    for key in [key for key in list(_OPEN) if key[0] == owner]:
        _OPEN.pop(key, None)


def _open_limit() -> int:
    """Return how many shards this process may keep open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 128
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        _OPEN_SHARDS if most == resource.RLIM_INFINITY else max(1, min(_OPEN_SHARDS, int(most * _OPEN_SHARE)))
    )


class _LocalShard:
    """An open shard on a local disk, which is closed when it is deleted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self._descriptor)
        self._size = status.st_size
        #: Another stamp means another file, or other bytes.
        self.stamp = _stamp(status)
        self._seen = time.monotonic()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def is_current(self) -> bool:
        """Return whether the path still names this unchanged file. The disk is asked at most once a second."""
        now = time.monotonic()
        if now - self._seen >= _RECHECK_SECONDS:
            if _stamp(os.stat(self._path)) != self.stamp:
                return False
            self._seen = now
        return True

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        return os.pread(self._descriptor, size, max(0, self._size - size))

    def read(self, wanted: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """Yield the bytes of each (offset, size); None where they lie past the end."""
        pread, descriptor, end = os.pread, self._descriptor, self._size
        for offset, size in wanted:
            if offset + size > end:  # an index may say anything
                yield None
                continue
            data = pread(descriptor, size, offset)
            while 0 < len(data) < size and (more := pread(descriptor, size - len(data), offset + len(data))):
                data += more
            yield np.frombuffer(data, np.uint8) if len(data) == size else None


class _RemoteShard:
    """A shard in a remote store. Its index is used until a checksum differs."""

    stamp = None

    def __init__(self, files: Files, key: str) -> None:
        self._files, self._key = files, key

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        return self._files.read_tail(self._key, size)

    def read(self, wanted: Sequence[tuple[int, int]]) -> Iterator[Any]:
        """Yield the bytes of each (offset, size); None where they lie past the end."""
        blocks = self._files.read_ranges(self._key, [(offset, offset + size) for offset, size in wanted])
        for block, (_, size) in zip(blocks, wanted, strict=True):
            yield np.frombuffer(block, np.uint8) if len(block) == size else None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Unit(NamedTuple):
    """Some chunks of one shard."""

    shard: int
    #: Numbers of the chunks in the shard, and the places in the batch that they go to.
    chunks: np.ndarray
    places: np.ndarray


class ShardReader:
    """Read chunks of one sharded array into a batch, in the calling thread and in further threads.

    It raises an error in a process that was forked after its first use, because threads and locks do not
    survive a fork.

    Parameters
    ----------
    files
        Files of the array.
    layout
        Layout of the array.
    threads
        Threads that read and decompress, the caller's among them; None takes one a core, 8 at most, and 16 for
        a remote store.
    """

    def __init__(self, files: Files, layout: ShardLayout, *, threads: int | None = None) -> None:
        self.files, self.layout = files, layout
        self.threads = threads or (min(cores(), _LOCAL_THREADS) if files.local else _REMOTE_THREADS)
        self._pid: int | None = None
        self._indexes: OrderedDict[int, tuple[Any, np.ndarray]] = OrderedDict()
        self._owner = next(_OWNERS)
        weakref.finalize(self, _close, self._owner)
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()
        self._callers = 0
        self._decode = layout.decoder()

    def __repr__(self) -> str:
        return f"ShardReader({self.files.root!r}, {self.layout.name!r})"

    def read(
        self, index: np.ndarray, out: np.ndarray, places: Sequence[int] | np.ndarray | None = None
    ) -> dict[int, str]:
        """Read chunks at positions in the grid of chunks.

        Parameters
        ----------
        index
            Integers, shape (N, dims).
        out
            Array for the chunks, (M, ...). ``out[i]`` is contiguous and has the bytes of one chunk.
        places
            Position in ``out`` of each chunk; None for the order of ``index``.

        Returns
        -------
        Problems by row of ``index`` (`MISSING`, or why the chunk cannot be read), for chunks that are not in
        ``out``. Empty if all chunks were read.

        Raises
        ------
        IndexError
            If a place is not in the array, or not in ``out``.
        ValueError
            If ``out`` is read-only.
        OSError
            If the disk or network fails; the store may still be intact.
        """
        self._check_process()
        targets = np.arange(len(index)) if places is None else np.asarray(places)
        if targets.size and not 0 <= targets.min() <= targets.max() < len(out):
            raise IndexError(f"{self!r}: places {targets.min()} to {targets.max()} in a batch of {len(out)}")
        if not out.flags.writeable:
            raise ValueError(f"{self!r}: the batch to read into is read-only")
        units, failures = deque(self._units(index)), dict[int, str]()

        def work() -> None:
            while True:
                try:
                    unit = units.popleft()
                except IndexError:  # other threads have taken all of them
                    return
                failures.update(self._read_unit(unit, out, targets))

        with self._starting:
            self._callers += 1
            helpers = min(self.threads // self._callers, len(units)) - 1
        futures: list[Future[None]] = []
        try:
            futures.extend(self._executor().submit(work) for _ in range(helpers))
            work()  # do not wait: waking up threads takes as long as reading several chunks
        finally:
            with self._starting:
                self._callers -= 1
            # Do not wait for a helper thread that could not start because of another caller.
            errors = [
                e for future in futures if not future.cancel() and (e := future.exception()) is not None
            ]
        if errors:
            raise errors[0]
        return failures

    def _check_process(self) -> None:
        if self._pid is None:
            self._pid = os.getpid()
        elif self._pid != os.getpid():
            raise RuntimeError(
                f"{self.files.root}: this reader was opened before the process forked, and its threads did not "
                "survive. Start workers with multiprocessing_context='spawn' or 'forkserver', or use threads."
            )

    def _executor(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="ShardReader")
            return self._pool

    def _units(self, index: np.ndarray) -> Iterator[_Unit]:
        """Yield the chunks sorted by shard and number, with the chunks of a shard in pieces that keep all
        threads busy.
        """
        layout = self.layout
        outside = ((index < 0) | (index >= np.array(layout.extent))).any(axis=1)
        if outside.any():
            raise IndexError(f"{self!r}: no chunk {index[outside][0].tolist()}")
        outer, inner = np.divmod(index.T, np.array(layout.chunks)[:, None])
        shard = np.ravel_multi_index(tuple(outer), layout.shards)
        chunk = np.ravel_multi_index(tuple(inner), layout.chunks)
        order = np.lexsort((chunk, shard))
        shard, chunk = shard[order], chunk[order]
        # All chunks of a remote shard are read in one request.
        most = len(index)
        if self.files.local:
            most = max(1, min(_TOGETHER, -(-len(index) // self.threads)))
        starts = np.flatnonzero(np.diff(shard, prepend=-1)).tolist()
        for start, stop in itertools.pairwise([*starts, len(shard)]):
            for first in range(start, stop, most):
                part = slice(first, min(first + most, stop))
                yield _Unit(int(shard[start]), chunk[part], order[part])

    def _read_unit(self, unit: _Unit, out: np.ndarray, targets: np.ndarray) -> dict[int, str]:
        failures = self._attempt(unit, out, targets)
        if any(what != _MISSING for what in failures.values()):
            # The shard may have been rewritten during the read, so read it again with a new index.
            self._indexes.pop(unit.shard, None)
            _OPEN.pop((self._owner, unit.shard), None)
            failures = self._attempt(unit, out, targets)
        return failures

    def _attempt(self, unit: _Unit, out: np.ndarray, targets: np.ndarray) -> dict[int, str]:
        try:
            source = self._source(unit.shard)
            return self._read_chunks(unit, self._index(unit.shard, source), source, out, targets)
        except FileNotFoundError:
            return dict.fromkeys(unit.places.tolist(), _MISSING)
        except _DamagedShard as error:
            return dict.fromkeys(unit.places.tolist(), str(error))
        except OSError as error:
            error.add_note(f"while reading {self.files.path(self.layout.key(unit.shard))}")
            raise

    def _source(self, shard: int) -> _LocalShard | _RemoteShard:
        if not self.files.local:
            return _RemoteShard(self.files, self.layout.key(shard))
        found = _OPEN.get((self._owner, shard))
        if found is None or not found.is_current():
            found = _LocalShard(self.files.path(self.layout.key(shard)))
            _keep(_OPEN, (self._owner, shard), found, _open_limit())
        return found

    def _index(self, shard: int, source: _LocalShard | _RemoteShard) -> np.ndarray:
        kept = self._indexes.get(shard)
        if kept is None or kept[0] != source.stamp:
            kept = source.stamp, self.layout.index(source.tail(self.layout.index_bytes))
            _keep(self._indexes, shard, kept, max(1, _INDEX_BYTES // self.layout.index_bytes))
        return kept[1]

    def _read_chunks(
        self, unit: _Unit, index: np.ndarray, source: _LocalShard | _RemoteShard, out: np.ndarray, targets: np.ndarray
    ) -> dict[int, str]:  # fmt: skip
        failures, wanted, places = dict[int, str](), [], []
        for (offset, size), place in zip(index[unit.chunks].tolist(), unit.places.tolist(), strict=True):
            if offset == size == _ABSENT:
                failures[place] = _MISSING
            else:
                wanted.append((offset, size))
                places.append(place)
        decode = self._decode
        for data, place in zip(source.read(wanted), places, strict=True):
            wrong = "the shard is truncated" if data is None else decode(data, out[targets[place]])
            if wrong:
                failures[place] = wrong
        return failures
