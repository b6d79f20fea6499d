"""Patches straight from the shards of an array: index kept, whole batches at a time, checksums always checked.

A shard of Zarr v3 is its chunks one after the other and, at the end, an index: offset and length of every chunk
(16 bytes each), then a CRC-32C. General readers fetch that index for every patch. Here it is kept, so that a
random patch costs one read of its own bytes, one checksum and one decompression into the batch it belongs to.

Threads share Python's lock: each system call and each decompression releases it and has to get it back. So local
shards stay open (`shard_files`), and what is done for every patch is short.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gridrad_cube.launch import cores
from gridrad_cube.storage import Files
from gridrad_cube.store.shard_files import DamagedShard, LocalShard, OpenShards, RemoteShard, ShardSource
from gridrad_cube.store.shard_layout import ABSENT, ShardLayout, chunk_decoder

#: Bytes of shard indexes that a reader keeps (16 a patch: of 4 million patches).
INDEX_BYTES = 64 * 2**20
#: More threads than this wait for Python's lock, which is held for some 10 of the 70 microseconds of a patch.
LOCAL_THREADS = 8
#: Requests that are under way at a time, to a remote store: each is waited for much longer than it takes.
REMOTE_THREADS = 16
#: Patches that a thread takes on at a time, at most: so many that it seldom asks, so few that all are busy to the end.
TOGETHER = 16
#: What `ShardReader.read` says of a patch that is not there; anything else says why it cannot be read.
MISSING = "missing"


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
    """Some patches of one shard."""

    shard: int
    #: Numbers of the chunks in the shard, and the places in the batch that they go to.
    chunks: np.ndarray
    places: np.ndarray


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
    """

    def __init__(
        self,
        files: Files,
        layout: ShardLayout,
        *,
        threads: int | None = None,
        index_bytes: int = INDEX_BYTES,
    ) -> None:
        self.files, self.layout = files, layout
        self.threads = threads or (min(cores(), LOCAL_THREADS) if files.local else REMOTE_THREADS)
        self._process = Process()
        self._indexes = _IndexCache(index_bytes)
        self._open = OpenShards()
        self._pool: ThreadPoolExecutor | None = None
        self._scratch = threading.local()
        self._starting = threading.Lock()
        self._callers = 0
        self._decode = chunk_decoder(layout)

    def __repr__(self) -> str:
        return f"ShardReader({self.files.root!r}, {self.layout.name!r})"

    def read(
        self, index: np.ndarray, out: np.ndarray, places: Sequence[int] | np.ndarray | None = None
    ) -> dict[int, str]:
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
            If a place is not in the array, or not in ``out``.
        ValueError
            If ``out`` is read-only.
        OSError
            If the disk or network fails, which says nothing about the store.
        """
        self._process.check(self.files.root)
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
                except IndexError:  # other threads have taken them all
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
        most = len(index)
        if self.files.local:
            most = max(1, min(TOGETHER, -(-len(index) // self.threads)))
        starts = np.flatnonzero(np.diff(shard, prepend=-1)).tolist()
        for start, stop in itertools.pairwise([*starts, len(shard)]):
            for first in range(start, stop, most):
                part = slice(first, min(first + most, stop))
                yield _Unit(int(shard[start]), chunk[part], order[part])

    def _read_unit(self, unit: _Unit, out: np.ndarray, targets: np.ndarray) -> dict[int, str]:
        failures = self._attempt(unit, out, targets)
        if any(what != MISSING for what in failures.values()):
            # Rewritten in place while it was read, perhaps: once more with an index read anew.
            self._indexes.drop(unit.shard)
            self._open.drop(unit.shard)
            failures = self._attempt(unit, out, targets)
        return failures

    def _attempt(self, unit: _Unit, out: np.ndarray, targets: np.ndarray) -> dict[int, str]:
        try:
            source = self._source(unit.shard)
            index = self._index(unit.shard, source)
            return self._read_chunks(unit, index, source, out, targets)
        except FileNotFoundError:
            return dict.fromkeys(unit.places.tolist(), MISSING)
        except DamagedShard as error:
            return dict.fromkeys(unit.places.tolist(), str(error))
        except OSError as error:
            error.add_note(f"while reading {self._path(unit.shard)}")
            raise

    def _source(self, shard: int) -> LocalShard | RemoteShard:
        if self.files.local:
            return self._open.get(shard, self._path)
        return RemoteShard(self.files, self.layout.key(shard))

    def _path(self, shard: int) -> str:
        return self.files.path(self.layout.key(shard))

    def _index(self, shard: int, source: ShardSource) -> np.ndarray:
        kept = self._indexes.get(shard, source.stamp)
        if kept is None:
            kept = self.layout.index(source.tail(self.layout.index_bytes))
            self._indexes.put(shard, source.stamp, kept)
        return kept

    def _read_chunks(
        self, unit: _Unit, index: np.ndarray, source: ShardSource, out: np.ndarray, targets: np.ndarray
    ) -> dict[int, str]:
        failures: dict[int, str] = {}
        wanted = []
        for (offset, size), place in zip(index[unit.chunks].tolist(), unit.places.tolist(), strict=True):
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
