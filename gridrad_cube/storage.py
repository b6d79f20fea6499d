# ruff: noqa: D102  # `Files` says what each method does
"""The one door to bytes: whole objects by key under a local folder, in cloud storage (obstore) or elsewhere (fsspec).

Local writes go to a temporary file that is synced and renamed; `Files.create` is exclusive. Nothing here knows
what the bytes mean.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import fsspec
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from gridrad_cube.schema import SchemaError

#: Temporary names end so; a killed writer can leave one behind, and nothing reads it.
PARTIAL = ".partial"

#: URL schemes that obstore serves. It takes endpoint and credentials from the environment.
CLOUD = frozenset({"s3", "gs", "az", "abfs", "abfss"})

#: Ranges of an object with at most so many bytes between them are fetched as one.
GAP = 1 << 20


class RemoteError(OSError):
    """A remote store that cannot be reached, or refuses."""


class _PastEndError(RemoteError):
    """A range that begins behind the end of the object."""


class Local:
    """Objects on a disk of this machine, or one that it mounts."""

    def __init__(self, root: str) -> None:
        self.root = root

    def zarr(self) -> Any:
        return LocalStore(self.root, read_only=True)

    def read(self, key: str) -> bytes:
        return Path(self.root, key).read_bytes()

    def read_range(self, key: str, start: int, stop: int | None) -> bytes:
        with open(Path(self.root, key), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(start if start >= 0 else max(0, file.tell() + start))
            return file.read() if stop is None else file.read(max(0, stop - start))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with open(Path(self.root, key), "rb", buffering=0) as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]

    def write(self, key: str, data: bytes) -> None:
        with self._written(key, data) as (temporary, target):
            os.replace(temporary, target)

    def create(self, key: str, data: bytes) -> bool:
        # A link appears with its bytes in it; a file opened for exclusive creation could be left empty by a kill.
        with self._written(key, data) as (temporary, target):
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except PermissionError:  # a file system without links
                try:
                    target.open("xb").close()
                except FileExistsError:
                    return False
                os.replace(temporary, target)
        return True

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Bytes on disk under a temporary name beside the key's own; gone afterwards, if it was not renamed."""
        target = Path(self.root, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, target
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return Path(self.root, key).exists()

    def size(self, key: str) -> int:
        return Path(self.root, key).stat().st_size

    def names(self, folder: str) -> list[str]:
        return [e.name for e in os.scandir(Path(self.root, folder)) if not e.name.endswith(PARTIAL)]

    def sizes(self, folder: str) -> dict[str, int]:
        return {
            e.name: e.stat().st_size
            for e in os.scandir(Path(self.root, folder))
            if e.is_file() and not e.name.endswith(PARTIAL)
        }

    def remove(self, key: str) -> None:
        Path(self.root, key).unlink(missing_ok=True)


class Cloud:
    """Objects of cloud storage. Puts are atomic, and ``create`` is exclusive between machines.

    obstore repeats what fails in passing (connections, timeouts of reads, answers 5xx), up to ten times.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.api = _obstore(root)
        with _plain_errors(root):
            self.store = _open_cloud(root, os.getpid(), hash(frozenset(os.environ.items())))

    def zarr(self) -> Any:
        return _CloudStore(self.store, read_only=True, root=self.root)

    def read(self, key: str) -> bytes:
        with _plain_errors(self.root, key):
            return bytes(self.api.get(self.store, key).bytes())

    def read_range(self, key: str, start: int, stop: int | None) -> bytes:
        if stop is None:
            span: Any = {"offset": start} if start >= 0 else {"suffix": -start}
        elif stop <= start:
            return b""
        else:
            span = (start, stop)
        try:
            with _plain_errors(self.root, key):
                return bytes(self.api.get(self.store, key, options={"range": span}).bytes())
        except _PastEndError:
            return self.read(key)[start:stop]

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        # obstore joins near ranges itself, but panics where one of them begins behind the object's end.
        joined, member = _join(ranges)
        starts, stops = [a for a, _ in joined], [b for _, b in joined]
        try:
            with _plain_errors(self.root, key):
                blocks = self.api.get_ranges(self.store, key, starts=starts, ends=stops)
        except _PastEndError:
            return [self.read_range(key, a, b) for a, b in ranges]
        views = [memoryview(block) for block in blocks]
        return [
            bytes(views[n][a - starts[n] : b - starts[n]]) for n, (a, b) in zip(member, ranges, strict=True)
        ]

    def write(self, key: str, data: bytes) -> None:
        with _plain_errors(self.root, key):
            self.api.put(self.store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        if not self._create(key, data):
            return False
        if self._create(key, data):  # some servers overlook the condition
            self.remove(key)
            raise RemoteError(
                f"{self.root}: the server knows no conditional puts (If-None-Match), so that two writers could not "
                "be kept apart. Build on a local disk and copy the store"
            )
        return True

    def _create(self, key: str, data: bytes) -> bool:
        with _plain_errors(self.root, key):
            try:
                self.api.put(self.store, key, data, mode="create")
            except self.api.exceptions.AlreadyExistsError:
                return False
        return True

    def size(self, key: str) -> int:
        with _plain_errors(self.root, key):
            return int(self.api.head(self.store, key)["size"])

    def exists(self, key: str) -> bool:
        with _plain_errors(self.root, key):
            try:
                if key and self.api.head(self.store, key):
                    return True
            except FileNotFoundError:
                pass
            return any(self.api.list(self.store, key or None))  # a folder is what lies below it

    def names(self, folder: str) -> list[str]:
        with _plain_errors(self.root, folder):
            found = self.api.list_with_delimiter(self.store, folder or None)
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return [path.rsplit("/", 1)[-1] for path in paths]

    def sizes(self, folder: str) -> dict[str, int]:
        cut = len(folder) + 1 if folder else 0
        with _plain_errors(self.root, folder):
            return {
                item["path"][cut:]: int(item["size"])
                for batch in self.api.list(self.store, folder or None, chunk_size=1000)
                for item in batch
                if "/" not in item["path"][cut:]
            }

    def remove(self, key: str) -> None:
        with _plain_errors(self.root, key):
            self.api.delete(self.store, key)


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


_CREATING = threading.Lock()


class Filesystem:
    """Objects of anything else that fsspec knows, ``memory://`` above all.

    How atomic a put is lies with the protocol. ``create`` is exclusive within this process.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.fs, self.base = fsspec.core.url_to_fs(root)

    def _path(self, key: str) -> str:
        return f"{self.base}/{key}" if key else str(self.base)

    def zarr(self) -> Any:
        return FsspecStore.from_url(self.root, read_only=True)

    def read(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(self._path(key)))

    def read_range(self, key: str, start: int, stop: int | None) -> bytes:
        return bytes(self.fs.cat_file(self._path(key), start=start, end=stop))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, stops = [a for a, _ in ranges], [b for _, b in ranges]
        return [
            bytes(b)
            for b in self.fs.cat_ranges([self._path(key)] * len(ranges), starts, stops, on_error="raise")
        ]

    def write(self, key: str, data: bytes) -> None:
        self.fs.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        with _CREATING:
            if self.fs.exists(self._path(key)):
                return False
            self.write(key, data)
            return True

    def size(self, key: str) -> int:
        return int(self.fs.info(self._path(key))["size"])

    def exists(self, key: str) -> bool:
        return bool(self.fs.exists(self._path(key)))

    def names(self, folder: str) -> list[str]:
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in self.fs.ls(self._path(folder), detail=False)]

    def sizes(self, folder: str) -> dict[str, int]:
        found = self.fs.ls(self._path(folder), detail=True)
        return {i["name"].rsplit("/", 1)[-1]: int(i["size"]) for i in found if i["type"] == "file"}

    def remove(self, key: str) -> None:
        if self.fs.exists(self._path(key)):
            self.fs.rm_file(self._path(key))


def _join(ranges: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[int]]:
    """Ranges that cover these, with more than `GAP` between them; and which of them each lies in."""
    joined: list[tuple[int, int]] = []
    member = [0] * len(ranges)
    for i in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        start, stop = ranges[i]
        if joined and start <= joined[-1][1] + GAP:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
        member[i] = len(joined) - 1
    return joined, member


def _obstore(root: str) -> Any:
    try:
        import obstore
    except ImportError as error:
        raise ImportError(f"{root}: needs obstore. Install it: pip install 'gridrad-cube[s3]'") from error
    return obstore


#: Process that first opened cloud storage here; a child forked from it inherits threads that are dead.
_opened_in: int | None = None


@functools.lru_cache(maxsize=16)
def _open_cloud(root: str, pid: int, environment: int) -> Any:
    """The obstore store of a URL, one for each process and environment, so that connections are shared."""
    global _opened_in
    if _opened_in not in (None, pid):
        raise RuntimeError(
            f"{root}: this process was forked from one that had opened object storage, and the threads of that "
            "did not survive. Start workers with multiprocessing_context='spawn' or 'forkserver', or use threads."
        )
    from obstore.store import from_url

    _opened_in = pid
    parts = urlsplit(root)
    return from_url(f"{parts.scheme}://{parts.netloc}{quote(root.split(parts.netloc, 1)[1])}")


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
        return _PastEndError(f"{root}: a range behind the end of an object")
    status = re.search(r"status code: (\d+)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    shown = " ".join(m.group(1) for m in (status, code) if m)
    if "NoSuchBucket" in text:
        return RemoteError(f"{root}: there is no such bucket. Make it first, or give another path")
    if "builder error" in text:
        return RemoteError(
            f"{root}: the endpoint is not https. If that is meant, set AWS_ALLOW_HTTP=true in the environment"
        )
    if status and status.group(1) in ("401", "403"):
        names = " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)" if root.startswith("s3://") else ""
        return RemoteError(
            f"{root}: access refused ({shown}). Check the credentials in the environment{names} and their right to "
            "read, write and list there"
        )
    if status:
        return RemoteError(f"{root}: the object store answered {shown}")
    if "error sending request" in text:
        return RemoteError(f"{root}: {_endpoint(root)} cannot be reached, or gives no answer")
    return RemoteError(
        f"{root}: {re.sub('^Generic .*? error: ', '', text.splitlines()[0].rsplit(' - ', 1)[-1])}"
    )


def _endpoint(root: str) -> str:
    given = os.environ.get("AWS_ENDPOINT_URL") if root.startswith("s3://") else None
    if not given:
        return "the object store"
    parts = urlsplit(given)
    return f"the endpoint {parts.hostname}:{parts.port}" if parts.port else f"the endpoint {parts.hostname}"


class Files:
    """Objects under one root, by relative key. Picklable; opens nothing until used.

    Every read raises FileNotFoundError where there is no such object, and `RemoteError` where a remote store
    cannot be reached or refuses.

    Parameters
    ----------
    root
        A local path; a URL of cloud storage (``s3://``, ``gs://``, ``az://``, ``abfs://``), with endpoint and
        credentials in the environment; or any other URL that fsspec knows (``memory://``). A URL with a
        password or a query in it is refused, so that no secret reaches a log or an attribute.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        text = os.fspath(root)
        self.local = re.match(r"^[a-z0-9+]+://", text) is None
        if not self.local:
            parts = urlsplit(text)
            if parts.scheme == "file":
                self.local, text = True, parts.path
            else:
                _check_url(text)
        self.root = os.path.abspath(text) if self.local else text.rstrip("/")
        self._opened: tuple[int, Local | Cloud | Filesystem] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.root,)

    def __repr__(self) -> str:
        return f"Files({self.root!r})"

    def path(self, key: str = "") -> str:
        """Local path or URL of a key."""
        return f"{self.root}/{key}" if key else self.root

    @property
    def shared(self) -> bool:
        """Whether other processes see what is here."""
        return not self.root.startswith("memory://")

    @property
    def _place(self) -> Local | Cloud | Filesystem:
        if self._opened is None or self._opened[0] != os.getpid():
            kind: type[Local | Cloud | Filesystem] = (
                Local if self.local else Cloud if self.root.split("://", 1)[0] in CLOUD else Filesystem
            )
            self._opened = os.getpid(), kind(self.root)
        return self._opened[1]

    def zarr(self) -> Any:
        """A store object of zarr-python on this root, for reading."""
        return self._place.zarr()

    def read(self, key: str) -> bytes:
        """Bytes of an object."""
        return self._place.read(key)

    def read_range(self, key: str, start: int, stop: int | None = None) -> bytes:
        """Part of an object, as ``read(key)[start:stop]`` gives it, without reading the rest.

        Parameters
        ----------
        start
            First byte; where negative, with ``stop`` None, so many of the last ones.
        stop
            Byte after the last; None reads to the end.
        """
        if start < 0 and stop is not None:
            raise ValueError(f"{key}: a range from the end has no stop, got ({start}, {stop})")
        return self._place.read_range(key, start, stop)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts ``[start, stop)`` of an object, in this order; what lies close together is read at once."""
        return self._place.read_ranges(key, ranges) if ranges else []

    def write(self, key: str, data: bytes) -> None:
        """Put an object in one step: a reader sees the old bytes or the new ones, also after a crash."""
        self._place.write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none yet; False if there is.

        Of several that try at once, one wins: between machines on local disks and cloud storage, between
        threads on ``memory://``.
        """
        return self._place.create(key, data)

    def exists(self, key: str = "") -> bool:
        """Whether an object or folder of this key is there."""
        return self._place.exists(key)

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        try:
            return self._place.size(key)
        except FileNotFoundError:
            return None

    def names(self, key: str = "") -> list[str]:
        """Names directly under a key, sorted; empty where there is nothing."""
        try:
            return sorted(self._place.names(key))
        except FileNotFoundError:
            return []

    def sizes(self, key: str = "") -> dict[str, int]:
        """Bytes of every object directly under a key, by name, from one listing; empty where there is nothing."""
        try:
            return self._place.sizes(key)
        except FileNotFoundError:
            return {}

    def remove(self, key: str) -> None:
        """Take an object away; nothing happens where there is none."""
        self._place.remove(key)

    def read_json(self, key: str) -> Any:
        """Parse a JSON object."""
        return json.loads(self.read(key))

    def write_json(self, key: str, value: Any) -> None:
        """Write JSON atomically. NaN is refused: other readers of JSON cannot parse it."""
        self.write(key, json.dumps(value, allow_nan=False, separators=(",", ":")).encode())


def _check_url(url: str) -> None:
    """Refuse a URL with a secret in it, or one that leads nowhere."""
    parts = urlsplit(url)
    if parts.scheme in CLOUD and not parts.netloc:
        raise SchemaError(f"{url}: names no bucket; expected {parts.scheme}://BUCKET/PATH")
    if parts.scheme not in CLOUD and parts.scheme not in fsspec.available_protocols():
        raise SchemaError(
            f"{parts.scheme}://: no such protocol; expected one of {sorted(CLOUD)} or of fsspec"
        )
    user = parts.netloc.rpartition("@")[0]
    container = parts.scheme in ("abfs", "abfss") and ":" not in user  # abfs://container@account...
    if parts.query or (user and not container):
        raise SchemaError(
            f"store: a URL with credentials in it is refused ({parts.scheme}://...{parts.hostname}). Give them by "
            "the environment, as docs/remote-stores.md says."
        )
