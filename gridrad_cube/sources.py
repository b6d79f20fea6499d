"""Source files on a local disk or at a URL: list them, identify them, and copy them for reading.

The libraries that read netCDF and GRIB need a local file. So a file at a URL is copied to the temporary
folder when it
is read. A file is read once per time, so the copy is kept while there is room, and removed at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from gridrad_cube.storage import Files, RemoteError, is_url, scratch_folder

__all__ = ["identities", "identity", "list_url", "local_copy", "remove_copies"]


def __dir__() -> list[str]:
    return __all__


#: Most bytes of copies that a process keeps, and so the largest file that is read from a URL.
_MOST_BYTES = 8 * 2**30
#: Errors of a disk or file system on the network that are temporary, and seconds to wait before each retry.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}
_WAITS = (0.25, 0.5)
#: Largest number of concurrent requests.
_REQUESTS = 32
_URL = re.compile(r"([a-z0-9+]+)://([^/]*)/*(.*)", re.DOTALL)


def _locate(url: str) -> tuple[Files, str]:
    """Return the store of a URL and the key in it; a URL with a secret in it is refused."""
    scheme, host, key = _URL.fullmatch(url).groups()  # type: ignore[union-attr]
    Files(url)  # checks all of it
    return Files(f"{scheme}://{host}"), unquote(key) if scheme.startswith("http") else key


@contextlib.contextmanager
def _as_source() -> Iterator[None]:
    """Turn errors of a remote store into errors of one file, because a server of sources refuses single
    files.
    """
    try:
        yield
    except RemoteError as error:
        raise OSError(str(error)) from error


def identity(path: str) -> tuple[int, int]:
    """Return the size of a source in bytes and the time of its last change in nanoseconds, as
    `Files.identity` does.

    Parameters
    ----------
    path
        Local path or URL.

    Returns
    -------
    Size and time.

    Raises
    ------
    FileNotFoundError
        If the source does not exist.
    OSError
        If a server cannot be reached, or denies access.
    """
    if not is_url(path):
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    files, key = _locate(path)
    with _as_source():
        return files.identity(key)


def identities(paths: Iterable[str]) -> dict[str, tuple[int, int] | OSError]:
    """Return the `identity` of each source, or the error. Servers get many requests at once.

    Parameters
    ----------
    paths
        Local paths or URLs.

    Returns
    -------
    By path, size and time as of `identity`, or the exception that it raises.
    """

    def ask(path: str) -> tuple[int, int] | OSError:
        for wait in (*_WAITS, None):
            try:
                return identity(path)
            except OSError as error:
                if wait is None or error.errno not in _TRANSIENT:
                    return error
                time.sleep(wait)
        raise AssertionError("unreachable")

    local: list[str] = []
    remote: list[str] = []
    for path in paths:
        (remote if is_url(path) else local).append(path)
    out = {path: ask(path) for path in local}
    if remote:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            out |= zip(remote, pool.map(ask, remote), strict=True)
    return out


def list_url(url: str, suffixes: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the URLs of the file that a URL names, or of those under it that end so, by their names relative
    to it; and others.

    Raises
    ------
    ValueError
        If the URL contains a secret, or its protocol is unknown.
    FileNotFoundError
        If there is nothing of this kind under the URL. A file that is named is not looked for.
    OSError
        If the server cannot be reached, refuses, or cannot list.
    """
    files, key = _locate(url)
    is_web = url.startswith("http")
    if key and not key.endswith("/") and (is_web or key.lower().endswith(tuple(suffixes))):
        return {key.rsplit("/", 1)[-1]: url}, []  # a missing file is found when it is planned
    if is_web:
        raise FileNotFoundError(f"{url}: a web server cannot be listed; give the URL of each file")
    with _as_source():
        if key and not key.endswith("/"):
            with contextlib.suppress(FileNotFoundError):
                files.identity(key)
                return {key.rsplit("/", 1)[-1]: url}, []
        below = f"{key.rstrip('/')}/" if key else ""
        keys = [found for found in files.below(below.rstrip("/")) if found.startswith(below)]
    found = {k.removeprefix(below): f"{files.root}/{k}" for k in keys if k.lower().endswith(tuple(suffixes))}
    if not found:
        raise FileNotFoundError(f"{url}: no file of {', '.join(suffixes)} under it")
    return found, [f"{files.root}/{k}" for k in keys if k.removeprefix(below) not in found]


# --- local copies


@dataclass
class _Copy:
    path: Path
    size: int
    users: int = 0


class _Copies:
    """Local copies of a process, by what they are copies of; the one used last is last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: OrderedDict[tuple[str, tuple[int, int]], _Copy] = OrderedDict()
        self._folder: Path | None = None

    def take(self, url: str) -> _Copy:
        """Return the copy of what is at a URL now, which stays until it is given back."""
        found = identity(url)
        with self._lock:
            if (url, found) in self._copies:
                self._copies.move_to_end((url, found))
                copy = self._copies[url, found]
                copy.users += 1
                return copy
        if found[0] > _MOST_BYTES:
            raise ValueError(
                f"{url}: {found[0] / 2**30:.1f} GiB; expected at most {_MOST_BYTES / 2**30:.0f}. Download it, and give "
                "its path."
            )
        with self._lock:
            self._make_room(found[0])
            self._folder = self._folder or Path(scratch_folder())
            copy = _Copy(self._folder / secrets.token_hex(8), found[0], users=1)
        try:
            _download(url, found, copy.path)
        except BaseException:
            copy.path.unlink(missing_ok=True)
            raise
        with self._lock:  # two threads that ask at once have a copy each, and the first one is kept no longer
            self._copies[url, found] = copy
        return copy

    def give_back(self, copy: _Copy) -> None:
        with self._lock:
            copy.users -= 1
            if not copy.users and copy not in self._copies.values():
                copy.path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove copies that nobody reads until there is room for this many bytes."""
        for name, copy in list(self._copies.items()):
            if sum(c.size for c in self._copies.values()) + size <= _MOST_BYTES:
                return
            if not copy.users:
                copy.path.unlink(missing_ok=True)
                del self._copies[name]

    def clear(self) -> None:
        with self._lock:
            self._make_room(2 * _MOST_BYTES)
            if self._folder is not None and not self._copies:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None


@functools.cache
def _copies_of(pid: int) -> _Copies:
    """Return the copies of a process. A forked process starts with an empty list."""
    atexit.register(remove_copies)
    return _Copies()


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Return the path of a local file to read: the file itself, or a copy of what is at the URL now.

    Copies are in the folder that ``TMPDIR`` names. They stay until a process has more than 8 GiB of them, and
    then the one that was used longest ago is removed first; `remove_copies` removes all.

    Parameters
    ----------
    path
        Local path or URL.

    Yields
    ------
    The local path.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the URL.
    ValueError
        If the file is larger than 8 GiB.
    OSError
        If a server cannot be reached, denies access, or changes the file during the copy; or if the disk is
        full.
    """
    if not is_url(path):
        yield path
        return
    copies = _copies_of(os.getpid())
    copy = copies.take(path)
    try:
        yield str(copy.path)
    finally:
        copies.give_back(copy)


def _download(url: str, expected: tuple[int, int], path: Path) -> None:
    size, _ = expected
    if size > shutil.disk_usage(path.parent).free:
        raise OSError(
            errno.ENOSPC,
            f"no room for the {size} bytes of {url} in {path.parent}; TMPDIR names another folder",
        )
    files, key = _locate(url)
    with _as_source(), open(path, "xb") as file:
        found = files.download(key, file)
    if found != expected or path.stat().st_size != size:
        raise OSError(f"{url}: changed while it was read")


def remove_copies() -> None:
    """Remove the local copies of this process that nobody reads."""
    _copies_of(os.getpid()).clear()
