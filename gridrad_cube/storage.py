"""The one door to bytes: objects by key under a local folder or a URL, and single files written whole.

`Files` reads and writes a store: on a local disk, in cloud storage (obstore), or anywhere else that fsspec knows.
`write_bytes` and `open_for_writing` write a single file. Every local write goes to a temporary file that is synced and
renamed, so that a reader sees the old bytes or the new ones, also after a crash. This module does not know what the
bytes mean.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import json
import os
import re
import secrets
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
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Files", "RemoteError", "is_url", "open_for_writing", "write_bytes", "write_zarr"]


def __dir__() -> list[str]:
    return __all__


#: End of temporary names. A killed writer can leave such a file behind; nothing reads it.
_PARTIAL = ".partial"

#: URL schemes that obstore serves. It takes endpoint and credentials from the environment.
_CLOUD = frozenset({"s3", "gs", "az", "abfs", "abfss", "http", "https"})

#: Bytes of a part of a download.
_PART = 1 << 22

#: Ranges of a remote object with at most this many bytes between them are fetched in one request.
_GAP = 1 << 20

_SCHEME = re.compile(r"^([a-z0-9+]+)://")
#: What looks like a URL: a scheme of two letters or more, perhaps chained (``simplecache::s3://``) or after a blank.
_URL_LIKE = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z0-9+.:-]*)?:/")


class RemoteError(OSError):
    """A remote store that cannot be reached, or refuses."""


class _PastEndError(RemoteError):
    """A range that begins after the end of the object."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether this is a URL and no path of this machine, which ``file://`` is.

    Raises
    ------
    ValueError
        If it looks like a URL and is none: taken for a path, it could put a secret into file names and messages.
    """
    text = os.fspath(place)
    found = _SCHEME.match(text)
    if found and found[1] != "file":
        return True
    if (not found and _URL_LIKE.match(text)) or (found and urlsplit(text).netloc not in ("", "localhost")):
        scheme = text.partition(":")[0].strip()
        raise ValueError(
            f"{scheme}:...: looks like a URL, and is none that is known here; expected such as s3://BUCKET/PATH, in "
            "lower case and as text (no pathlib.Path), or file:///PATH. A local folder of such a name: write ./NAME."
        )
    return False


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole, at a local path or a URL; parameters and errors as of `open_for_writing`."""
    with open_for_writing(path) as file:
        file.write(data)


@contextmanager
def open_for_writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name ``path`` at the end, unless an error happens.

    Parameters
    ----------
    path
        A local path, whose folder is made, or a URL.

    Yields
    ------
    A binary file. Libraries that take no open file (netCDF4) may write to its ``name``.
    """
    folder, name = os.path.split(os.fspath(path))
    if folder.endswith(":"):
        raise ValueError(f"{path}: names no file; expected PROTOCOL://FOLDER/NAME")
    files = Files(folder)
    if files.local:
        with _replacing(Path(files.root, name)) as file:
            yield file
        return
    with tempfile.TemporaryDirectory() as scratch:
        with open(Path(scratch, name), "wb") as file:
            yield file
        files.write(name, Path(scratch, name).read_bytes())


def write_zarr(dataset: xr.Dataset, root: str | os.PathLike[str]) -> None:
    """Write a Dataset that fits into memory as a Zarr store at a local path or a URL, its root metadata last."""
    objects: dict[str, Any] = {}
    dataset.to_zarr(MemoryStore(objects), zarr_format=3, consolidated=True)
    files = Files(root)
    for key in sorted(objects, key=lambda key: key == "zarr.json"):
        files.write(key, objects[key].to_bytes())


@contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``target``; removed at the end if it was not renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with open(temporary, "wb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A temporary file that takes the name ``target`` at the end, once its bytes are on the disk."""
    with _temporary(target) as file:
        yield file
        _sync(file)
        os.replace(file.name, target)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class Files:
    """Objects under one root, by relative key. Picklable; opens nothing until used.

    Every read raises FileNotFoundError where there is no such object, and `RemoteError` where a remote store
    cannot be reached or refuses. An instance for a URL is of a subclass.

    Parameters
    ----------
    root
        A local path; a URL of cloud storage (``s3://``, ``gs://``, ``az://``, ``abfs://``), with endpoint and
        credentials in the environment; or any other URL that fsspec knows (``memory://``). A URL with a
        password or a query in it is refused, so that no secret reaches a log or an attribute.
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
            self.root = os.path.abspath(urlsplit(text).path if _SCHEME.match(text) else text)
        else:
            _check_url(text)
            self.root = text.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.root,)

    def __repr__(self) -> str:
        return f"Files({self.root!r})"

    @property
    def shared(self) -> bool:
        """True if other processes see what is here."""
        return not self.root.startswith("memory://")

    def path(self, key: str = "") -> str:
        """Return the local path or URL of a key."""
        return f"{self.root}/{key}" if key else self.root

    def zarr(self) -> Any:
        """Return a store object of zarr-python on this root, for reading."""
        return LocalStore(self.root, read_only=True)

    def read(self, key: str) -> bytes:
        """Return the bytes of an object."""
        return Path(self.root, key).read_bytes()

    def read_tail(self, key: str, size: int) -> bytes:
        """Return the last ``size`` bytes of an object, or all of a shorter one."""
        return self.read(key)[-size:]

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the parts ``[start, stop)`` of an object, in this order; parts less than `_GAP` apart are
        read at once.
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
        """Parse a JSON object."""
        return json.loads(self.read(key))

    def write(self, key: str, data: bytes) -> None:
        """Put an object in one step: a reader sees the old bytes or the new ones, also after a crash."""
        with _replacing(Path(self.root, key)) as file:
            file.write(data)

    def write_json(self, key: str, value: Any) -> None:
        """Write JSON in one step. NaN is refused: other readers of JSON cannot parse it."""
        self.write(key, json.dumps(value, allow_nan=False, separators=(",", ":")).encode())

    def read_arrays(self, key: str) -> dict[str, np.ndarray]:
        """Read arrays in numpy's format ``.npz``, whose members carry checksums; ValueError if it is damaged."""
        data = self.read(key)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as members:
                return {name: members[name] for name in members.files}
        # A flipped bit can show as any of these.
        except (LookupError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path(key)}: no whole .npz file ({error})") from error

    def write_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays in numpy's format ``.npz`` in one step."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write(key, buffer.getvalue())

    def copy(self, source: str, target: str) -> None:
        """Put the bytes of an object under another key as well; an object that is there is replaced.

        On a local disk both keys lead to the same file, which is never written in place.
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
            temporary.unlink(missing_ok=True)  # which a rename leaves where both are the same file

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none yet; False if there is.

        Of several that try at once, one wins: between machines on local disks and cloud storage, between
        threads on ``memory://``.
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
            except PermissionError:  # a file system without links
                try:
                    target.open("xb").close()
                except FileExistsError:
                    return False
                os.replace(file.name, target)
        return True

    def append(self, key: str, data: bytes) -> int:
        """Add to the end of a local file, durably; the offset of what was added."""
        if not self.local:
            raise NotImplementedError(f"{self.path(key)}: only local files can grow")
        target = Path(self.root, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab") as file:
            offset = file.tell()
            file.write(data)
            _sync(file)
        return offset

    def remove(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        Path(self.root, key).unlink(missing_ok=True)

    def exists(self, key: str = "") -> bool:
        """Return whether an object or folder of this key is there."""
        return Path(self.root, key).exists()

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None where there is none."""
        with suppress(FileNotFoundError):
            return self._size(key)
        return None

    def _size(self, key: str) -> int:
        return Path(self.root, key).stat().st_size

    def identity(self, key: str) -> tuple[int, int]:
        """Return the size of an object in bytes, and the time of its last change in nanoseconds.

        Elsewhere than on a local disk the time is in whole seconds, and what is below a second stands for the ETag.
        """
        found = Path(self.root, key).stat()
        return found.st_size, found.st_mtime_ns

    def download(self, key: str, file: BinaryIO) -> tuple[int, int]:
        """Copy an object to an open file, a part at a time; its identity."""
        raise NotImplementedError(f"{self.path(key)}: is a local file already")

    def below(self, key: str = "") -> list[str]:
        """Return the keys of all objects below a key, in folders of any depth; empty where there is nothing."""
        return [p.relative_to(self.root).as_posix() for p in Path(self.root, key).rglob("*") if p.is_file()]

    def stamp(self, key: str) -> Any:
        """Return what differs once an object has been replaced; None where there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.identity(key), os.stat(self.path(key)).st_ino if self.local else 0
        return None

    def names(self, key: str = "") -> list[str]:
        """Return the names directly under a key, sorted; empty where there is nothing."""
        return sorted(self._list(key))

    def sizes(self, key: str = "") -> dict[str, int]:
        """Return the bytes of every object directly under a key, by name, from one listing; empty where there
        is nothing.
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

    obstore retries what fails in passing (connections, timeouts of reads, answers 5xx), up to ten times.
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
            f"{self.root}: the server knows no conditional puts (If-None-Match), so that two writers could not "
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
    """Objects of anything else that fsspec knows, ``memory://`` above all.

    How atomic a put is depends on the protocol. ``create`` is exclusive within this process.
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


#: Process that first opened cloud storage here; a child forked from it inherits threads that are dead.
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
    # The other protocols have secrets to send, and AWS_ALLOW_HTTP and its like allow that in the clear.
    return from_url(url, client_options={"allow_http": True}) if parts.scheme == "http" else from_url(url)


@contextmanager
def _plain_errors(root: str, key: str = "") -> Iterator[None]:
    """Turn obstore's errors into one line without addresses, headers or names of keys in it."""
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
            "no credentials in the environment, and no cloud machine that has a role. Set them (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY), or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    elif "NoSuchBucket" in text:
        what = "there is no such bucket. Make it first, or give another path"
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
    """Refuse a URL with a secret in it, or one that leads nowhere."""
    parts = urlsplit(url)
    if parts.scheme in _CLOUD and not parts.netloc:
        raise ValueError(f"{url}: names no bucket; expected {parts.scheme}://BUCKET/PATH")
    if parts.scheme not in _CLOUD and parts.scheme not in fsspec.available_protocols():
        raise ValueError(
            f"{parts.scheme}://: no such protocol; expected one of {sorted(_CLOUD)} or of fsspec"
        )
    user = parts.netloc.rpartition("@")[0]
    is_account = "." in (parts.hostname or "")  # abfs://container@account.dfs.core.windows.net
    container = parts.scheme in ("abfs", "abfss") and ":" not in user and is_account
    if parts.query or (user and not container):
        raise ValueError(
            f"a URL with credentials in it is refused ({parts.scheme}://...{parts.hostname}). Give them by "
            "the environment, as docs/remote-stores.md says."
        )
