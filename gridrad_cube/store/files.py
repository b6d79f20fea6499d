"""Bytes under a store, on a local disk or through fsspec: whole objects only, written atomically."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from gridrad_cube.schema import SchemaError

#: Temporary names end so; a killed writer can leave one behind, and nothing reads it.
PARTIAL = ".partial"


class Files:
    """Whole objects under one root, by relative key. Picklable; opens nothing until used.

    Parameters
    ----------
    root
        A local path, or a URL that fsspec knows (``memory://``, ``s3://``). A URL with a user name or a
        password in it is refused, so that no secret reaches a log or an attribute.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        text = os.fspath(root)
        self.local = re.match(r"^[a-z0-9+]+://", text) is None
        if not self.local:
            parts = urlsplit(text)
            if parts.scheme == "file":
                self.local, text = True, parts.path
            elif "@" in parts.netloc:
                raise SchemaError(
                    f"store: a URL with credentials in it is refused ({parts.scheme}://...@{parts.hostname}). "
                    "Give them by the environment or the credentials file of the protocol."
                )
        self.root = os.path.abspath(text) if self.local else text.rstrip("/")

    def __repr__(self) -> str:
        return f"Files({self.root!r})"

    @property
    def readable(self) -> bool:
        """Whether `PatchReader` reads patches from here."""
        return self.local or self.root.startswith(("s3://", "gs://"))

    def path(self, key: str = "") -> str:
        """Local path or URL of a key."""
        return f"{self.root}/{key}" if key else self.root

    def _fs(self) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.root)

    def read(self, key: str) -> bytes:
        """Bytes of an object; FileNotFoundError where there is none."""
        if self.local:
            return Path(self.root, key).read_bytes()
        fs, base = self._fs()
        return bytes(fs.cat_file(f"{base}/{key}"))

    def write(self, key: str, data: bytes) -> None:
        """Put an object in one step: a reader sees the old bytes or the new ones, also after a crash."""
        if not self.local:
            fs, base = self._fs()
            fs.pipe_file(f"{base}/{key}", data)
            return
        target = Path(self.root, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none yet; False if there is. Exclusive on local disks."""
        if not self.local:
            if self.exists(key):
                return False
            self.write(key, data)
            return True
        target = Path(self.root, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(target, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def exists(self, key: str = "") -> bool:
        """Whether an object or folder of this key is there."""
        if self.local:
            return Path(self.root, key).exists()
        fs, base = self._fs()
        return bool(fs.exists(f"{base}/{key}" if key else base))

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        try:
            if self.local:
                return Path(self.root, key).stat().st_size
            fs, base = self._fs()
            return int(fs.info(f"{base}/{key}")["size"])
        except FileNotFoundError:
            return None

    def names(self, key: str = "") -> list[str]:
        """Names directly under a key, sorted; empty where there is nothing."""
        try:
            if self.local:
                return sorted(
                    e.name for e in os.scandir(Path(self.root, key)) if not e.name.endswith(PARTIAL)
                )
            fs, base = self._fs()
            return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(f"{base}/{key}", detail=False))
        except FileNotFoundError:
            return []

    def remove(self, key: str) -> None:
        """Take an object away; nothing happens where there is none."""
        if self.local:
            Path(self.root, key).unlink(missing_ok=True)
            return
        fs, base = self._fs()
        if fs.exists(f"{base}/{key}"):
            fs.rm_file(f"{base}/{key}")

    def read_json(self, key: str) -> Any:
        """Parse a JSON object."""
        return json.loads(self.read(key))

    def write_json(self, key: str, value: Any) -> None:
        """Write JSON atomically. NaN is refused: other readers of JSON cannot parse it."""
        self.write(key, json.dumps(value, allow_nan=False, separators=(",", ":")).encode())
