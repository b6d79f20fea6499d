"""Whole shards of a store that is far away, kept on a disk nearby."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from gridrad_cube.storage import Files

_LOCKS = 64
#: A shard that has been in the writing for this long is what a killed process left.
_ABANDONED_NS = 3600 * 10**9


class ShardCache:
    """Shards on a local disk, within a budget of bytes; the least recently used go first. Picklable.

    Processes may share a folder: a shard appears in one step, and one that is removed while another process
    reads it stays readable there. The budget holds for all of them together, but for what each is just writing.
    A shard is kept under the name of its store, and of the store's state, so that a store made anew is fetched
    anew.

    Parameters
    ----------
    folder
        Made if it is not there. Nothing else may lie in it.
    max_bytes
        A shard larger than this is not kept.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes: got {max_bytes}; expected 1 or more")
        self.folder, self.max_bytes = Path(folder), int(max_bytes)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["max_bytes"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"ShardCache({str(self.folder)!r}, {self.max_bytes})"

    def path(self, files: Files, key: str, state: str) -> Path:
        """Where a shard of a store in this state is or would be."""
        name = hashlib.sha256(f"{files.root}\n{state}\n{key}".encode()).hexdigest()[:40]
        return self.folder / f"{name}.shard"

    def fetch(self, files: Files, key: str, state: str) -> Path | None:
        """Path of a shard's copy, made if there is none; None where the shard is too large to keep.

        Another process may remove the copy before it is opened: then call again.

        Raises
        ------
        FileNotFoundError
            If the store has no such shard.
        """
        path = self.path(files, key, state)
        with self._locks[hash(path) % _LOCKS]:  # threads that want the same shard wait for the first
            try:
                os.utime(path)  # last used now
                return path
            except FileNotFoundError:
                pass
            data = files.read(key)
            if len(data) > self.max_bytes:
                return None
            try:
                self._keep(path, data)
            except FileNotFoundError as error:  # which would say that the store has no such shard
                raise OSError(f"{self.folder}: removed while it was in use") from error
            return path

    def _keep(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room(len(data))
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def drop(self, files: Files, key: str, state: str) -> None:
        """Forget a shard."""
        self.path(files, key, state).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        found = []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = size + sum(n for _, n, _ in found)
        for used, n, path in sorted(found):
            if total <= self.max_bytes:
                return
            if not path.endswith(".shard") and time.time_ns() - used < _ABANDONED_NS:
                continue  # being written
            Path(path).unlink(missing_ok=True)
            total -= n
