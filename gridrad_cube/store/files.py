"""Bytes under a store, on a local disk or remote: whole objects by key, written atomically."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import fsspec

from gridrad_cube.schema import SchemaError
from gridrad_cube.store.places import CLOUD, Cloud, Filesystem, Local


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
