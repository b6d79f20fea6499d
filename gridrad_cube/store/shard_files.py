"""The files that shards lie in: local ones that stay open, and remote ones that are asked for ranges."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from gridrad_cube.storage import Files

#: Shards of one array that stay open, and the share of all files that a process may open.
OPEN_SHARDS, OPEN_SHARE = 256, 1 / 16
#: How long an open shard is taken for the one at its path without looking.
RECHECK_SECONDS = 1.0


class DamagedShard(Exception):
    """Bytes that are not what was written; says what is wrong with them."""


class ShardSource(Protocol):
    """Bytes of one shard."""

    #: Another one means another file, or other bytes.
    stamp: Any

    def tail(self, size: int) -> bytes:
        """The last bytes."""
        ...

    def read(
        self, wanted: Sequence[tuple[int, int, int]], scratch: Callable[[int], Any]
    ) -> Iterator[tuple[Any, int]]:
        """Bytes of each (offset, size, place), good until the next are asked for (None past the end); its place.

        ``scratch`` gives so many bytes to read into.
        """
        ...


class RemoteShard:
    """A shard anywhere else. Its index is believed until a checksum differs."""

    stamp = None

    def __init__(self, files: Files, key: str) -> None:
        self._files, self._key = files, key

    def tail(self, size: int) -> bytes:
        """See `ShardSource`."""
        data = self._files.read_tail(self._key, size)
        if len(data) != size:
            raise DamagedShard(f"the shard is truncated to {len(data)} bytes")
        return data

    def read(
        self, wanted: Sequence[tuple[int, int, int]], scratch: Callable[[int], Any]
    ) -> Iterator[tuple[Any, int]]:
        """See `ShardSource`."""
        blocks = self._files.read_ranges(self._key, [(first, first + size) for first, size, _ in wanted])
        for block, (_, size, place) in zip(blocks, wanted, strict=True):
            yield np.frombuffer(block, np.uint8) if len(block) == size else None, place


class LocalShard:
    """An open shard on a local disk; closed when nothing refers to it any more.

    ``descriptor`` is that of the file, ``size`` its bytes when it was opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        self.stamp = _stamp(status)
        self._seen = time.monotonic()

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def is_current(self) -> bool:
        """Whether the path still leads to this file, as it was when opened: looked up once a second at most."""
        now = time.monotonic()
        if now - self._seen >= RECHECK_SECONDS:
            if _stamp(os.stat(self._path)) != self.stamp:
                return False
            self._seen = now
        return True

    def tail(self, size: int) -> bytes:
        """See `ShardSource`."""
        if self.size < size:
            raise DamagedShard(f"the shard is truncated to {self.size} bytes")
        data = os.pread(self.descriptor, size, self.size - size)
        if len(data) != size:
            raise DamagedShard("the shard is truncated")
        return data

    def read(
        self, wanted: Sequence[tuple[int, int, int]], scratch: Callable[[int], Any]
    ) -> Iterator[tuple[Any, int]]:
        """See `ShardSource`."""
        preadv, descriptor = os.preadv, self.descriptor
        end = self.size  # an index may say anything
        buffer = scratch(max((size for offset, size, _ in wanted if offset + size <= end), default=0))
        for offset, size, place in wanted:
            if offset + size > end:
                yield None, place
                continue
            data = buffer[:size]
            done = preadv(descriptor, [data], offset)
            while 0 < done < size and (more := preadv(descriptor, [data[done:]], offset + done)):
                done += more
            yield data if done == size else None, place


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _most_files() -> int:
    """Files that this process may have open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 512
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if most == resource.RLIM_INFINITY else most


class OpenShards:
    """Local shards that stay open, the least recently used closed first (once nobody reads it any more)."""

    def __init__(self) -> None:
        self.limit = min(OPEN_SHARDS, int(_most_files() * OPEN_SHARE))
        self._kept: OrderedDict[int, LocalShard] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: int, path: Callable[[int], str]) -> LocalShard:
        """The shard, opened anew at its ``path`` if the file there is another one, or was written to, since."""
        with self._lock:
            found = self._kept.get(shard)
            if found is not None:
                self._kept.move_to_end(shard)
        if found is not None and found.is_current():
            return found
        opened = LocalShard(path(shard))
        with self._lock:
            self._kept[shard] = opened
            self._kept.move_to_end(shard)
            if len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return opened

    def drop(self, shard: int) -> None:
        """Open it anew the next time."""
        with self._lock:
            self._kept.pop(shard, None)
