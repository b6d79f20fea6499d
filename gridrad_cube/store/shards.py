"""Patches straight from the shards of an array: index kept, whole batches at a time, checksums always checked.

A shard of Zarr v3 is its chunks one after the other and, at the end, an index: offset and length of every chunk
(16 bytes each), then a CRC-32C. General readers fetch that index for every patch. Here it is kept, so that a
random patch costs one read of its own bytes, one checksum and one decompression into the batch it belongs to.

Threads share Python's lock: each system call and each decompression gives it up and has to get it back. So local
shards stay open (`shard_files`), and what is done for every patch is short.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from gridrad_cube.machine import cores
from gridrad_cube.store.cache import ShardCache
from gridrad_cube.store.files import Files
from gridrad_cube.store.shard_files import DamagedShard, LocalShard, OpenShards, RemoteShard, ShardSource

#: Offset and length of a chunk that a shard does not have.
ABSENT = 2**64 - 1
#: Bytes of shard indexes that a reader keeps (16 a patch: of 4 million patches).
INDEX_BYTES = 64 * 2**20
#: More threads than this wait for Python's lock, which is held for some 10 of the 70 microseconds of a patch.
LOCAL_THREADS = 8
#: Requests that are under way at a time, to a remote store: each is waited for much longer than it takes.
REMOTE_THREADS = 16
#: What `ShardReader.read` says of a patch that is not there; anything else says why it cannot be read.
MISSING = "missing"

_CHECKSUM = 4
_UINT32 = struct.Struct("<I")


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

    @functools.cached_property
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
        self._open = OpenShards()
        self._pool: ThreadPoolExecutor | None = None
        self._scratch = threading.local()
        self._starting = threading.Lock()
        self._callers = 0
        self._decode = _decoder(layout)

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

        with self._starting:
            self._callers += 1
            helpers = min(self.threads // self._callers, len(units)) - 1
        futures: list[Future[None]] = []
        try:
            futures.extend(self._executor().submit(work) for _ in range(helpers))
            work()  # rather than wait: waking threads up takes as long as reading some patches
        finally:
            with self._starting:
                self._callers -= 1
            # A helper that another caller has kept from starting is not waited for.
            errors = [
                e for future in futures if not future.cancel() and (e := future.exception()) is not None
            ]
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
            self._open.drop(unit.shard)
            if self.cache is not None:
                self.cache.drop(self.files, self.layout.key(unit.shard), self.state)
            failures = self._attempt(unit, out, targets)
        return failures

    def _attempt(self, unit: _Unit, out: np.ndarray, targets: Sequence[int]) -> dict[int, str]:
        try:
            source = self._source(unit.shard)
            index = self._index(unit.shard, source)
            return self._read_chunks(unit, index, source, out, targets)
        except FileNotFoundError:
            return dict.fromkeys(unit.places, MISSING)
        except DamagedShard as error:
            return dict.fromkeys(unit.places, str(error))
        except OSError as error:
            error.add_note(f"while reading {self.files.path(self.layout.key(unit.shard))}")
            raise

    def _source(self, shard: int) -> LocalShard | RemoteShard:
        key = self.layout.key(shard)
        for _ in range(5 if self.cache is not None else 0):
            path = self.cache.fetch(self.files, key, self.state)  # type: ignore[union-attr]
            if path is None:
                break
            with contextlib.suppress(FileNotFoundError):  # removed since, by another process that needs room
                return LocalShard(path)
        if self.files.local:
            return self._open.get(shard, self.files.path(key))
        return RemoteShard(self.files, key)

    def _index(self, shard: int, source: ShardSource) -> np.ndarray:
        kept = self._indexes.get(shard, source.stamp)
        if kept is None:
            data = source.tail(self.layout.index_bytes)
            body, (checksum,) = data[:-_CHECKSUM], _UINT32.unpack(data[-_CHECKSUM:])
            if google_crc32c.value(body) != checksum:
                raise DamagedShard("the checksum of the shard's index differs")
            kept = np.frombuffer(body, "<u8").reshape(-1, 2)
            self._indexes.put(shard, source.stamp, kept)
        return kept

    def _read_chunks(
        self, unit: _Unit, index: np.ndarray, source: ShardSource, out: np.ndarray, targets: Sequence[int]
    ) -> dict[int, str]:
        failures: dict[int, str] = {}
        wanted = []
        for (offset, size), place in zip(index[unit.chunks].tolist(), unit.places, strict=True):
            if offset == size == ABSENT:
                failures[place] = MISSING
            else:
                wanted.append((offset, size, place))
        decode = self._decode
        for data, place in source.read(wanted, self._buffer):
            wrong = "the shard is truncated" if data is None else decode(data, out[targets[place]])
            if wrong:
                failures[place] = wrong
        return failures

    def _buffer(self, size: int) -> Any:
        """Bytes that this thread may use until it asks again."""
        kept = getattr(self._scratch, "bytes", None)
        if kept is None or len(kept) < size:
            kept = self._scratch.bytes = np.empty(max(size, 2**18), np.uint8)
        return kept[:size]


def _decoder(layout: ShardLayout) -> Callable[[Any, np.ndarray], str | None]:
    """Decodes one chunk, and says what is wrong with it, or None. What it looks up for each chunk is at hand."""
    checked, compressor, expected = layout.checksum, layout.compressor, layout.chunk_bytes
    checksum, number, decompress = google_crc32c.value, _UINT32.unpack_from, blosc.decompress

    def decode(data: Any, out: np.ndarray) -> str | None:
        if checked:
            end = len(data) - _CHECKSUM
            if end < 0:
                return "the chunk is truncated"
            (right,), data = number(data, end), data[:end]
            if checksum(data) != right:
                return "its checksum differs"
        try:
            if compressor == "blosc":
                # Fewer bytes than expected would leave a part of the batch as it was.
                (size,) = number(data, 4)
                if size == expected:
                    decompress(data, out)
                    return None
            else:
                if compressor is not None:
                    data = np.frombuffer(zstd.decompress(data), np.uint8)
                size = len(data)
                if size == expected:
                    out.reshape(-1).view(np.uint8)[:] = data
                    return None
        except (RuntimeError, ValueError, struct.error) as error:
            return f"it cannot be decompressed: {error}"
        return f"it holds {size} bytes; expected {expected}"

    return decode
