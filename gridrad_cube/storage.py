"""Read and write objects by key under a local folder or a URL, and single files.

`Files` reads and writes a store: on a local disk, in cloud storage (obstore), or anywhere else that fsspec
knows.
`write_bytes` and `open_for_writing` write a single file. Every local write goes to a temporary file that is
synced and
then renamed, so that a reader sees the old bytes or the new ones, also after a crash. This module does not
interpret
the bytes.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

import fsspec
import numpy as np
from numpy.lib import format as npy
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Files",
    "RemoteError",
    "is_url",
    "open_for_writing",
    "scratch_folder",
    "write_bytes",
    "write_zarr",
]


def __dir__() -> list[str]:
    return __all__


#: End of temporary names. A killed writer can leave such a file behind; nothing reads it.
_PARTIAL = ".partial"

#: Beginning of the names of temporary folders.
_SCRATCH = "gridrad_cube_"

#: Open folders of this process, whose locks end with it, by path.
_scratch: dict[str, int] = {}

#: URL schemes that obstore serves. It takes endpoint and credentials from the environment.
_CLOUD = frozenset({"s3", "gs", "az", "abfs", "abfss", "http", "https"})

#: Most bytes of the arrays of a small ``.npz`` file; and how many times its size those of a large one may take.
_MOST_ARRAYS, _MOST_EXPANSION = 2**30, 100

#: Bytes of a part of a download.
_PART = 1 << 22

#: Ranges of a remote object with at most this many bytes between them are fetched in one request.
_GAP = 1 << 20

_SCHEME = re.compile(r"^([a-z0-9+]+)://")
#: Pattern of a URL: a scheme of two letters or more, perhaps chained (``simplecache::s3://``), after a blank or
#: a quote, or a known one without slashes.
_URL_LIKE = re.compile(
    r"[^\w./~\\-]*(?:[A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z0-9+.:-]*)?:[/\\]"
    r"|(?i:s3a?|gs|gcs|az|abfss?|https?|ftps?|sftp|file):)"
)


class RemoteError(OSError):
    """A remote store cannot be reached, or denies access."""


class _PastEndError(RemoteError):
    """A range that begins after the end of the object."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URL. A path of this machine is not, and neither is ``file://``.

    Parameters
    ----------
    place
        Path or URL.

    Returns
    -------
    True for a URL with a protocol that this package can use.

    Raises
    ------
    ValueError
        If the text looks like a URL but has no known protocol. Used as a path, it could put a secret into file
        names and messages.
    """
    text = os.fspath(place)
    found = _SCHEME.match(text)
    if found and found[1] != "file":
        return True
    if (not found and _URL_LIKE.match(text)) or (found and urlsplit(text).netloc not in ("", "localhost")):
        scheme = text.partition(":")[0].strip()
        raise ValueError(
            f"{scheme}:...: looks like a URL, but its protocol is unknown; expected for example s3://BUCKET/PATH, in "
            "lower case and as text (no pathlib.Path), or file:///PATH. For a local folder of this name, write ./NAME."
        )
    return False


def scratch_folder() -> str:
    """Make a temporary folder in the folder that ``TMPDIR`` names, and remove those that killed processes left.

    This process, and those that it forks, hold a lock on the folder, so that others do not remove it.

    Returns
    -------
    Its path. Remove it with `shutil.rmtree`.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # of another user, or in use
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(held).st_uid == os.getuid():
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)
    for path in list(_scratch):
        done = None if os.path.exists(path) else _scratch.pop(path, None)
        if done is not None:
            os.close(done)
    while True:
        path = tempfile.mkdtemp(prefix=_SCRATCH)
        with suppress(FileNotFoundError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_SH)
            if os.path.exists(path):  # another process may have removed it before it was locked
                _scratch[path] = held
                return path
            os.close(held)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one step, at a local path or a URL. Errors are those of `open_for_writing`.

    Parameters
    ----------
    path
        A local path, whose folder is created, or a URL.
    data
        Bytes to write.
    """
    with open_for_writing(path) as file:
        file.write(data)


@contextmanager
def open_for_writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to ``path`` at the end. After an error it is removed instead.

    Parameters
    ----------
    path
        A local path, whose folder is created, or a URL.

    Yields
    ------
    A binary file. Libraries that need a file name (netCDF4) may write to its ``name``.

    Raises
    ------
    ValueError
        If ``path`` is a URL without a file name.
    """
    folder, name = os.path.split(os.fspath(path))
    if folder.endswith(":"):
        raise ValueError(f"{path}: names no file; expected PROTOCOL://FOLDER/NAME")
    files = Files(folder)
    if files.local:
        with _replacing(Path(files.root, name)) as file:
            yield file
        return
    scratch = scratch_folder()
    try:
        with open(Path(scratch, name), "wb") as file:
            yield file
        files.write(name, Path(scratch, name).read_bytes())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_zarr(dataset: xr.Dataset, root: str | os.PathLike[str]) -> None:
    """Write a Dataset that fits into memory as a Zarr store, its root metadata last.

    Parameters
    ----------
    dataset
        The dataset.
    root
        Local path or URL of the store.
    """
    objects: dict[str, Any] = {}
    dataset.to_zarr(MemoryStore(objects), zarr_format=3, consolidated=True)
    files = Files(root)
    for key in sorted(objects, key=lambda key: key == "zarr.json"):
        files.write(key, objects[key].to_bytes())


@contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``target``; remove it at the end if it was not renamed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")
    with _full_disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _full_disk_named(target: Path) -> Iterator[None]:
    """Name the file for which a disk has no room, and say what to do: the system names neither."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"{os.strerror(error.errno)}. Make room and run again: what is written is kept, and the run resumes"
        raise OSError(error.errno, text, os.fspath(target)) from error


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to ``target`` once its bytes are on the disk."""
    with _temporary(target) as file:
        yield file
        _sync(file)
        os.replace(file.name, target)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_arrays(data: bytes) -> None:
    """Refuse an ``.npz`` file that declares arrays larger than what it holds, or than a limit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > max(_MOST_ARRAYS, _MOST_EXPANSION * len(data)):
            raise ValueError(
                f"an .npz file of {len(data)} bytes declares {size} bytes of arrays; it is not read"
            )
        for member in archive.infolist():
            with archive.open(member) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
                held = member.file_size - file.tell()
            if math.prod(shape) * dtype.itemsize != held:
                raise ValueError(
                    f"{member.filename} declares {shape} of {dtype} and holds {held} bytes; it is not read"
                )


class Files:
    """Objects under one root, by relative key. Can be pickled; nothing is opened before the first use.

    Every method that reads raises FileNotFoundError if the object does not exist, and `RemoteError` if a
    remote store
    cannot be reached or denies access. ``Files(url)`` returns an instance of a subclass.

    Parameters
    ----------
    root
        A local path; a URL of cloud storage (``s3://``, ``gs://``, ``az://``, ``abfs://``), with endpoint and
        credentials in the environment; or any other URL that fsspec knows (``memory://``). A URL with a
        password or a query is refused, so that no secret reaches a log or an attribute.
    """

    local = True

    def __new__(cls, root: str | os.PathLike[str]) -> Files:
        """Choose the subclass by the scheme of the URL."""
        scheme = os.fspath(root).partition("://")[0] if is_url(root) else "file"
        kind = Files if scheme == "file" else _CloudFiles if scheme in _CLOUD else _FsspecFiles
        return object.__new__(kind)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        text = os.fspath(root)
        if self.local:
            path = urlsplit(text).path if _SCHEME.match(text) else os.path.expanduser(text)
            self.root = os.path.abspath(path)
        else:
            _check_url(text)
            self.root = text.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.root,)

    def __repr__(self) -> str:
        return f"Files({self.root!r})"

    @property
    def shared(self) -> bool:
        """True if other processes see the objects."""
        return not self.root.startswith("memory://")

    def path(self, key: str = "") -> str:
        """Return the local path or URL of a key.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Local path or URL of the object.
        """
        return f"{self.root}/{key}" if key else self.root

    def zarr(self) -> Any:
        """Return a store of zarr-python on this root, for reading.

        Returns
        -------
        A store object.
        """
        return LocalStore(self.root, read_only=True)

    def read(self, key: str) -> bytes:
        """Read an object.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Its bytes.
        """
        return Path(self.root, key).read_bytes()

    def read_tail(self, key: str, size: int) -> bytes:
        """Read the end of an object.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        size
            Number of bytes.

        Returns
        -------
        The last ``size`` bytes, or all bytes of a shorter object.
        """
        return self.read(key)[-size:]

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read parts of an object. Parts with less than `_GAP` bytes between them are fetched together.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        ranges
            Pairs ``(start, stop)`` in bytes, ``stop`` not included.

        Returns
        -------
        Bytes of each part, in the same order.
        """
        joined: list[tuple[int, int]] = []
        member = [0] * len(ranges)
        for i in sorted(range(len(ranges)), key=lambda i: ranges[i]):
            start, stop = ranges[i]
            if joined and start <= joined[-1][1] + _GAP:
                joined[-1] = joined[-1][0], max(joined[-1][1], stop)
            else:
                joined.append((start, stop))
            member[i] = len(joined) - 1
        starts, stops = [a for a, _ in joined], [b for _, b in joined]
        blocks = [memoryview(block) for block in self._read_ranges(key, starts, stops)] if joined else []
        return [
            bytes(blocks[n][a - starts[n] : b - starts[n]]) for n, (a, b) in zip(member, ranges, strict=True)
        ]

    def _read_ranges(self, key: str, starts: list[int], stops: list[int]) -> Sequence[Any]:
        whole = self.read(key)
        return [whole[a:b] for a, b in zip(starts, stops, strict=True)]

    def read_json(self, key: str) -> Any:
        """Parse a JSON object.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        The value.
        """
        return json.loads(self.read(key))

    def write(self, key: str, data: bytes) -> None:
        """Write an object in one step: a reader sees the old bytes or the new ones, also after a crash.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        data
            Bytes to write.
        """
        with _replacing(Path(self.root, key)) as file:
            file.write(data)

    def write_json(self, key: str, value: Any) -> None:
        """Write JSON in one step.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        value
            Value of JSON types.

        Raises
        ------
        ValueError
            If a number is NaN, which other readers of JSON cannot parse.
        """
        self.write(key, json.dumps(value, allow_nan=False, separators=(",", ":")).encode())

    def read_arrays(self, key: str) -> dict[str, np.ndarray]:
        """Read arrays in numpy's format ``.npz``, whose members have checksums.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Arrays by name.

        Raises
        ------
        ValueError
            If the file is damaged, declares more than it holds, or more than 1 GiB and 100 times its size. No memory
            is taken for such arrays.
        """
        data = self.read(key)
        try:
            _check_arrays(data)
            with np.load(io.BytesIO(data), allow_pickle=False) as members:
                return {name: members[name] for name in members.files}
        # A flipped bit can show as any of these.
        except (
            LookupError, OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error
        ) as error:  # fmt: skip
            raise ValueError(f"{self.path(key)}: not a complete .npz file ({error})") from error

    def write_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays in numpy's format ``.npz`` in one step.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        arrays
            Arrays by name.
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write(key, buffer.getvalue())

    def copy(self, source: str, target: str) -> None:
        """Copy an object to another key. An object with that key is replaced.

        On a local disk both keys name the same file, which is never changed in place.

        Parameters
        ----------
        source
            Key of the object to copy.
        target
            Key of the copy.
        """
        here, there = Path(self.root, source), Path(self.root, target)
        there.parent.mkdir(parents=True, exist_ok=True)
        temporary = there.with_name(f".{there.name}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            os.link(here, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            self.write(target, self.read(source))
            return
        try:
            os.replace(temporary, there)
        finally:
            temporary.unlink(missing_ok=True)  # a rename keeps both names of one file

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if it does not exist yet.

        If several writers try at once, one succeeds: between machines on local disks and in cloud storage,
        between threads on ``memory://``.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        data
            Bytes to write.

        Returns
        -------
        False if the object exists already.
        """
        target = Path(self.root, key)
        with _temporary(target) as file:
            file.write(data)
            _sync(file)
            # A link appears with its bytes in it; a file opened for exclusive creation could be left empty by a kill.
            try:
                os.link(file.name, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without links: which error it gives differs
                try:
                    target.open("xb").close()
                except FileExistsError:
                    return False
                os.replace(file.name, target)
        return True

    def append(self, key: str, data: bytes) -> int:
        """Append bytes to a local file, and sync it.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        data
            Bytes to write.

        Returns
        -------
        Offset of the first appended byte.

        Raises
        ------
        NotImplementedError
            If the store is remote.
        """
        if not self.local:
            raise NotImplementedError(f"{self.path(key)}: only a local file can be appended to")
        target = Path(self.root, key)
        with _full_disk_named(target):
            return self._append(target, data)

    @staticmethod
    def _append(target: Path, data: bytes) -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab") as file:
            offset = file.tell()
            file.write(data)
            _sync(file)
        return offset

    def remove(self, key: str) -> None:
        """Remove an object. A missing object is not an error.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        """
        Path(self.root, key).unlink(missing_ok=True)

    def remove_partials(self) -> None:
        """Remove what killed writers left of files that they had not finished, in all folders.

        For a caller who knows that nobody writes now. Other places than local disks have no such files.
        """
        for folder, _, names in os.walk(self.root) if self.local else ():
            for name in names:
                if name.startswith(".") and name.endswith(_PARTIAL):
                    Path(folder, name).unlink(missing_ok=True)

    def exists(self, key: str = "") -> bool:
        """Return whether an object or folder of this key is there.

        Parameters
        ----------
        key
            Key of an object or a folder.

        Returns
        -------
        True if it exists.
        """
        return Path(self.root, key).exists()

    def size(self, key: str) -> int | None:
        """Return the size of an object.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Bytes; None if the object does not exist.
        """
        with suppress(FileNotFoundError):
            return self._size(key)
        return None

    def _size(self, key: str) -> int:
        return Path(self.root, key).stat().st_size

    def identity(self, key: str) -> tuple[int, int]:
        """Return the size of an object and the time of its last change.

        For remote objects the time has whole seconds, and the digits below a second are taken from the ETag.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Size in bytes and time in nanoseconds.
        """
        found = Path(self.root, key).stat()
        return found.st_size, found.st_mtime_ns

    def download(self, key: str, file: BinaryIO) -> tuple[int, int]:
        """Copy an object to an open file, one part at a time.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.
        file
            Binary file, open for writing.

        Returns
        -------
        Its `identity`.

        Raises
        ------
        NotImplementedError
            If the object is a local file.
        """
        raise NotImplementedError(f"{self.path(key)}: is already a local file")

    def below(self, key: str = "") -> list[str]:
        """List all objects below a key, in folders of any depth.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Their keys; empty without objects.
        """
        return [p.relative_to(self.root).as_posix() for p in Path(self.root, key).rglob("*") if p.is_file()]

    def stamp(self, key: str) -> Any:
        """Return a value that differs after an object is replaced.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        None if the object does not exist.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.identity(key), os.stat(self.path(key)).st_ino if self.local else 0
        return None

    def names(self, key: str = "") -> list[str]:
        """List the names directly below a key.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Sorted names; empty without objects.
        """
        return sorted(self._list(key))

    def sizes(self, key: str = "") -> dict[str, int]:
        """Return the size of every object directly below a key, from one listing.

        Parameters
        ----------
        key
            Key of the object: its path below the root, with ``/``.

        Returns
        -------
        Bytes by name; empty without objects.
        """
        return {name: size for name, size in self._list(key).items() if size is not None}

    def _list(self, key: str) -> dict[str, int | None]:
        """Return the names directly under a key; bytes of objects, None for folders."""
        found: dict[str, int | None] = {}
        with suppress(FileNotFoundError):
            for entry in os.scandir(Path(self.root, key)):
                with suppress(FileNotFoundError):  # removed since
                    if not entry.name.endswith(_PARTIAL):
                        found[entry.name] = entry.stat().st_size if entry.is_file() else None
        return found


class _CloudFiles(Files):
    """Objects of cloud storage. Puts are atomic, and ``create`` is exclusive between machines.

    obstore retries temporary failures (connections, timeouts of reads, answers 5xx) up to ten times.
    """

    local = False

    @contextmanager
    def _asking(self, key: str = "") -> Iterator[tuple[Any, Any]]:
        """Obstore and its store of this root, with errors of one line."""
        try:
            import obstore
        except ImportError as error:
            raise ImportError(
                f"{self.root}: needs obstore. Install it: pip install 'gridrad-cube[s3]'"
            ) from error
        with _plain_errors(self.root, key):
            yield obstore, _open_cloud(self.root, os.getpid(), hash(frozenset(os.environ.items())))

    def zarr(self) -> Any:
        with self._asking() as (_, store):
            return _CloudStore(store, read_only=True, root=self.root)

    def read(self, key: str) -> bytes:
        with self._asking(key) as (api, store):
            return bytes(api.get(store, key).bytes())

    def read_tail(self, key: str, size: int) -> bytes:
        try:
            with self._asking(key) as (api, store):
                return bytes(api.get(store, key, options={"range": {"suffix": size}}).bytes())
        except _PastEndError:  # of an empty object
            return super().read_tail(key, size)

    def _read_ranges(self, key: str, starts: list[int], stops: list[int]) -> Sequence[Any]:
        # obstore joins near ranges itself, but panics where one of them begins after the object's end.
        try:
            with self._asking(key) as (api, store):
                return list(api.get_ranges(store, key, starts=starts, ends=stops))
        except _PastEndError:
            return super()._read_ranges(key, starts, stops)

    def write(self, key: str, data: bytes) -> None:
        with self._asking(key) as (api, store):
            api.put(store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        for again in (False, True):
            with self._asking(key) as (api, store):
                try:
                    api.put(store, key, data, mode="create")
                except api.exceptions.AlreadyExistsError:
                    return again
        self.remove(key)  # some servers ignore the condition
        raise RemoteError(
            f"{self.root}: the server does not support conditional writes (If-None-Match), so two writers could not "
            "be kept apart. Build on a local disk and copy the store"
        )

    def remove(self, key: str) -> None:
        with self._asking(key) as (api, store):
            api.delete(store, key)

    def exists(self, key: str = "") -> bool:
        if key and self.size(key) is not None:
            return True
        with self._asking(key) as (api, store):
            return any(api.list(store, key or None))  # a folder is what lies below it

    def _size(self, key: str) -> int:
        with self._asking(key) as (api, store):
            return int(api.head(store, key)["size"])

    def identity(self, key: str) -> tuple[int, int]:
        with self._asking(key) as (api, store):
            return _identity(**api.head(store, key))

    def download(self, key: str, file: BinaryIO) -> tuple[int, int]:
        with self._asking(key) as (api, store):
            found = api.get(store, key)
            for part in found.stream(min_chunk_size=_PART):
                file.write(part)
            return _identity(**found.meta)

    def below(self, key: str = "") -> list[str]:
        if self.root.startswith("http"):
            raise RemoteError(f"{self.path(key)}: a web server cannot be listed; give the URL of each file")
        with self._asking(key) as (api, store):
            return [item["path"] for batch in api.list(store, key or None) for item in batch]

    def copy(self, source: str, target: str) -> None:
        with self._asking(source) as (api, store):
            api.copy(store, source, target)

    def _list(self, key: str) -> dict[str, int | None]:
        with self._asking(key) as (api, store):
            found = api.list_with_delimiter(store, key or None)
        paths = [*((path, None) for path in found["common_prefixes"]),
                 *((item["path"], int(item["size"])) for item in found["objects"])]  # fmt: skip
        return {path.rsplit("/", 1)[-1]: size for path, size in paths}


class _FsspecFiles(Files):
    """Objects of any other store that fsspec knows, most of all ``memory://``.

    Whether a write is atomic depends on the protocol. ``create`` is exclusive within this process.
    """

    local = False
    _creating = threading.Lock()

    @functools.cached_property
    def _fs(self) -> Any:
        return fsspec.core.url_to_fs(self.root)[0]

    def _path(self, key: str) -> str:
        return str(self._fs._strip_protocol(self.path(key)))

    def zarr(self) -> Any:
        return FsspecStore.from_url(self.root, read_only=True)

    def read(self, key: str) -> bytes:
        return bytes(self._fs.cat_file(self._path(key)))

    def read_tail(self, key: str, size: int) -> bytes:
        return bytes(self._fs.cat_file(self._path(key), start=-size))

    def _read_ranges(self, key: str, starts: list[int], stops: list[int]) -> Sequence[Any]:
        paths = [self._path(key)] * len(starts)
        return list(self._fs.cat_ranges(paths, starts, stops, on_error="raise"))

    def write(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        with self._creating:
            if self.exists(key):
                return False
            self.write(key, data)
            return True

    def remove(self, key: str) -> None:
        if self.exists(key):
            self._fs.rm_file(self._path(key))

    def exists(self, key: str = "") -> bool:
        return bool(self._fs.exists(self._path(key)))

    def _size(self, key: str) -> int:
        return int(self._fs.info(self._path(key))["size"])

    def identity(self, key: str) -> tuple[int, int]:
        about, path = self._fs.info(self._path(key)), self._path(key)
        try:
            changed = self._fs.modified(path)
        except NotImplementedError:
            changed = None
        return _identity(about["size"], changed, about.get("ETag"))

    def download(self, key: str, file: BinaryIO) -> tuple[int, int]:
        self._fs.get_file(self._path(key), file)
        return self.identity(key)

    def below(self, key: str = "") -> list[str]:
        root = self._path("").rstrip("/")
        return [path.removeprefix(root).lstrip("/") for path in self._fs.find(self._path(key))]

    def copy(self, source: str, target: str) -> None:
        self.write(target, self.read(source))

    def _list(self, key: str) -> dict[str, int | None]:
        try:
            found = self._fs.ls(self._path(key), detail=True)
        except FileNotFoundError:
            return {}
        return {
            item["name"].rstrip("/").rsplit("/", 1)[-1]: item["size"] if item["type"] == "file" else None
            for item in found
        }


def _identity(
    size: int, last_modified: datetime.datetime | None = None, e_tag: str | None = None, **_: Any
) -> tuple[int, int]:
    """Return the size, and one number for the time of the last change and the ETag: see `Files.identity`."""
    seconds = int(last_modified.timestamp()) if last_modified else 0
    # A list and a single answer may quote an ETag in two ways.
    tag = hashlib.sha256((e_tag or "").removeprefix("W/").strip('"').encode()).digest()
    return size, seconds * 10**9 + (int.from_bytes(tag[:4], "big") % 10**9 if e_tag else 0)


class _CloudStore(ObjectStore[Any]):
    """What zarr-python reads through, with errors of one line."""

    def __init__(self, store: Any, *, read_only: bool = False, root: str = "") -> None:
        super().__init__(store, read_only=read_only)
        self.root = root

    def with_read_only(self, read_only: bool = False) -> _CloudStore:
        return _CloudStore(self.store, read_only=read_only, root=self.root)

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        with _plain_errors(self.root, key):
            return await super().get(key, *args, **kwargs)


#: Process that first opened cloud storage here. The threads of obstore do not run in a child that is forked
#: from it.
_opened_in: int | None = None


@functools.lru_cache(maxsize=16)
def _open_cloud(root: str, pid: int, environment: int) -> Any:
    """Return the obstore store of a URL, one for each process and environment, so that connections are
    shared.
    """
    global _opened_in
    if _opened_in not in (None, pid):
        raise RuntimeError(
            f"{root}: this process was forked from one that had opened object storage, and the threads of that "
            "did not survive. Start workers with multiprocessing_context='spawn' or 'forkserver', or use threads."
        )
    from obstore.store import from_url

    _opened_in = pid
    parts = urlsplit(root)
    url = f"{parts.scheme}://{parts.netloc}{quote(root.split(parts.netloc, 1)[1])}"
    # The other protocols send secrets, and settings such as AWS_ALLOW_HTTP allow this without encryption.
    return from_url(url, client_options={"allow_http": True}) if parts.scheme == "http" else from_url(url)


@contextmanager
def _plain_errors(root: str, key: str = "") -> Iterator[None]:
    """Turn obstore's errors into messages of one line without addresses, headers or names of keys."""
    import obstore

    try:
        yield
    except obstore.exceptions.BaseError as error:
        raise _plain(root, str(error)) from None
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _plain(root, str(error)) from None
        raise FileNotFoundError(f"{root}/{key}: no such object") from None


def _plain(root: str, text: str) -> RemoteError:
    if "Range Not Satisfiable" in text or "non-partial response" in text:
        return _PastEndError(f"{root}: a range after the end of an object")
    status, code = (re.search(pattern, text) for pattern in (r"status code: (\d+)", r"<Code>(\w+)</Code>"))
    shown = " ".join(found[1] for found in (status, code) if found)
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        what = (
            "no credentials in the environment, and this machine has no role. Set them (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY), or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    elif "NoSuchBucket" in text:
        what = "there is no such bucket. Create it first, or give another path"
    elif "builder error" in text:
        what = "the endpoint is not https. If that is intended, set AWS_ALLOW_HTTP=true in the environment"
    elif status and status[1] in ("401", "403"):
        is_s3 = root.startswith("s3://")
        names = " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; AWS_SKIP_SIGNATURE=true: none)" if is_s3 else ""
        what = (
            f"access refused ({shown}). Check the credentials in the environment{names} and their right to read, write "
            "and list there"
        )
    elif status:
        what = f"the server answered {shown}"
    elif "error sending request" in text:
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "") if root.startswith("s3://") else "")
        host = f"endpoint {endpoint.hostname}:{endpoint.port}" if endpoint.hostname else "server"
        what = f"the {host} cannot be reached, or gives no answer"
    else:
        what = re.sub("^Generic .*? error: ", "", text.splitlines()[0].rsplit(" - ", 1)[-1])
    return RemoteError(f"{root}: {what}")


def _check_url(url: str) -> None:
    """Refuse a URL that contains a secret, names no bucket, or has an unknown protocol."""
    parts = urlsplit(url)
    if parts.scheme in _CLOUD and not parts.netloc:
        raise ValueError(f"{parts.scheme}://...: names no bucket; expected {parts.scheme}://BUCKET/PATH")
    if parts.scheme not in _CLOUD and parts.scheme not in fsspec.available_protocols():
        raise ValueError(
            f"{parts.scheme}://: no such protocol; expected one of {sorted(_CLOUD)} or of fsspec"
        )
    user = parts.netloc.rpartition("@")[0]
    is_account = "." in (parts.hostname or "")  # abfs://container@account.dfs.core.windows.net
    container = parts.scheme in ("abfs", "abfss") and ":" not in user and is_account
    port = parts.netloc.rpartition("@")[2].partition(":")[2]
    is_key = bool(port) and not port.isdigit() and not port.endswith("]")  # a password with a slash in it
    if parts.query or is_key or (user and not container):
        host = "" if is_key else parts.hostname
        raise ValueError(
            f"a URL with credentials in it is refused ({parts.scheme}://...{host}). Give them by "
            "the environment, as docs/remote-stores.md says."
        )
