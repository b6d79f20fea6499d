"""What shows damage and half-made changes: the root's checksum, the manifest of a commit, and checked reading.

The attribute ``checksum`` of the root is a hash of the root itself, without its history and the keys of chunks, and so
names the state of the store: equal states have equal checksums. A commit (`gridrad_cube.store.commit`) writes the small
arrays beside those of the state before, then a manifest of all small objects, then the root. A reader looks at the root
after each object, and follows the store where its crops have kept their values; else it refuses.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import google_crc32c
from zarr.storage import WrapperStore

from gridrad_cube.schema import ATTRIBUTE, FORMAT_VERSION, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store.shards import MissingChunkError

#: How chunks of an array are named: Zarr's chunk key encodings, both with the separator ``.``.
KeyEncoding = Literal["default", "v2"]

_FOLDER = "_build/manifest"
#: The key of a chunk, in either encoding.
_CHUNK = re.compile(r"(?P<array>.+)/(?:c(?P<default>(?:\.\d+)*)|(?P<v2>\d+(?:\.\d+)*))")
#: States that a manifest names as extended, at most: a reader that is older opens the store again.
_STATES = 256
_REPAIR = "gridrad-cube verify STORE --repair --source-root DIR"


def chunk_key(array: str, place: tuple[int, ...], keys: KeyEncoding) -> str:
    """Key of a chunk or shard by its place in the grid of them."""
    if keys == "v2":
        return f"{array}/{'.'.join(map(str, place)) or '0'}"
    return ".".join([f"{array}/c", *map(str, place)])


def key_encoding(metadata: Mapping[str, Any]) -> KeyEncoding:
    """How the chunks of an array are named, by its metadata."""
    found: KeyEncoding = "v2" if metadata["chunk_key_encoding"]["name"] == "v2" else "default"
    return found


class Root:
    """A parsed root ``zarr.json``; ``stamp`` is that of its object when it was read.

    Raises
    ------
    ValueError
        If the bytes are no JSON object.
    """

    def __init__(self, data: bytes, stamp: Any = None) -> None:
        self.data, self.stamp = data, stamp
        self.value: dict[str, Any] = json.loads(data)
        if not isinstance(self.value, dict):
            raise ValueError("no JSON object")

    def __reduce__(self) -> tuple[Any, ...]:
        return Root, (self.data, self.stamp)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the root."""
        return dict(self.value.get("attributes", {}))

    @property
    def info(self) -> dict[str, Any]:
        """The ``gridrad_cube`` attribute; empty where there is none."""
        found = self.attributes.get(ATTRIBUTE)
        return found if isinstance(found, dict) else {}

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """Metadata of arrays and groups by path: the copy that counts."""
        return dict((self.value.get("consolidated_metadata") or {}).get("metadata", {}))

    @property
    def crops(self) -> int:
        """Number of rows."""
        crop = self.members.get("crop")
        return crop["shape"][0] if crop else 0

    @property
    def state(self) -> str | None:
        """Checksum that the root carries; None in stores of earlier versions."""
        return self.info.get("checksum")

    @property
    def keys(self) -> KeyEncoding:
        """How the chunks of the small arrays are named."""
        return key_encoding(self.members["crop"]) if "crop" in self.members else "default"

    @property
    def is_altered(self) -> bool:
        """Whether the root is not as it was written."""
        is_known = self.info.get("format_version", 0) <= FORMAT_VERSION
        return self.state is not None and is_known and self.state != checksum(self.value)


def checksum(root: Mapping[str, Any]) -> str:
    """Hash of a root, without its history, the checksum itself and the keys of chunks."""
    attributes = {name: value for name, value in root["attributes"].items() if name != "history"}
    attributes[ATTRIBUTE] = {k: v for k, v in attributes.get(ATTRIBUTE, {}).items() if k != "checksum"}
    consolidated = root.get("consolidated_metadata") or {}
    members = {
        name: {k: v for k, v in member.items() if k != "chunk_key_encoding"}
        for name, member in consolidated.get("metadata", {}).items()
    }
    whole = {**root, "attributes": attributes, "consolidated_metadata": {**consolidated, "metadata": members}}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_root(files: Files) -> Root:
    """The root of a finished store.

    Raises
    ------
    FileNotFoundError
        If there is nothing at this place.
    SchemaError
        If it is not a Zarr store, is not finished, or its root is damaged.
    """
    stamp = files.stamp("zarr.json")
    try:
        root = Root(files.read("zarr.json"), stamp)
    except (FileNotFoundError, NotADirectoryError):
        if files.exists("_build"):
            raise SchemaError(
                f"{files.root}: the store is not finished. Run the command that builds it again: it resumes."
            ) from None
        if not files.exists():
            alone = "" if files.shared else " in this process, and others cannot see memory://"
            raise FileNotFoundError(f"{files.root}: no such store{alone}") from None
        raise SchemaError(f"{files.root}: not a Zarr v3 store (no zarr.json in it)") from None
    except ValueError as error:
        raise SchemaError(
            f"{files.root}: zarr.json cannot be read ({error}). Run: {remedy(files)}"
        ) from error
    if root.is_altered:
        raise SchemaError(
            f"{files.root}: zarr.json is not as it was written (its checksum differs). Run: {remedy(files)}"
        )
    return root


def remedy(files: Files) -> str:
    """The command that mends a store."""
    return "gridrad-cube embed again" if files.exists("_build/embed.json") else _REPAIR


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A commit: the root that it wrote, and what it consists of.

    ``objects`` has the size and CRC-32 of every small object by key (CRC None where records carry their own), of the
    state alone that the root names. (CRC-32C would be the same for all chunks, since each ends with its own.)
    ``extends`` names earlier states whose crops have the same values in this one. ``about`` is the writer's own.
    """

    root: Root
    number: int = 0
    objects: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    extends: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Key of the manifest itself."""
        return manifest_key(self.root)

    def write(self, files: Files) -> None:
        """Write the manifest in one step."""
        body = json.dumps(
            {
                "number": self.number,
                "extends": self.extends[-_STATES:],
                "about": self.about,
                "objects": self.objects,
                "root": self.root.value,
            },
            allow_nan=False,
            separators=(",", ":"),
        ).encode()
        files.write(self.key, b"%08x\n" % zlib.crc32(body) + body)


def manifest_key(root: Root) -> str:
    """Key of the manifest of the commit that wrote a root."""
    return f"{_FOLDER}/{root.state}.{root.keys}.json"


def read_manifest(files: Files, key: str) -> Manifest | None:
    """A manifest; None where it is missing or damaged."""
    try:
        line, _, body = files.read(key).partition(b"\n")
        if int(line, 16) != zlib.crc32(body):
            return None
        value = json.loads(body)
    except (FileNotFoundError, ValueError):
        return None
    return Manifest(
        root=Root(json.dumps(value["root"]).encode()),
        number=value["number"],
        objects={key: (size, crc) for key, (size, crc) in value["objects"].items()},
        extends=tuple(value["extends"]),
        about=value["about"],
    )


def manifests(files: Files) -> list[str]:
    """Keys of all manifests: that of the state, and those of commits that were interrupted."""
    return [f"{_FOLDER}/{name}" for name in files.names(_FOLDER)]


def last_commit(files: Files) -> Manifest | None:
    """The state that a store was last committed in; None where there is none.

    By its root, or where that is lost or damaged by the last manifest. Of stores of earlier versions, which have no
    manifest, the root alone is known.
    """
    try:
        root = read_root(files)
    except (SchemaError, FileNotFoundError):
        found = [m for key in manifests(files) if (m := read_manifest(files, key))]
        return max(found, key=lambda m: m.number, default=None)
    return read_manifest(files, manifest_key(root)) or Manifest(root=root)


def damaged_objects(files: Files) -> dict[str, str]:
    """What is wrong with the root, its manifest, and the small objects that this names, by key; empty if all is well.

    Of a store without a manifest, which is of an earlier version, nothing more than the root can be judged.
    """
    found: dict[str, str] = {}
    try:
        root = read_root(files)
    except (SchemaError, FileNotFoundError):
        found["zarr.json"] = "altered or cut" if files.exists("zarr.json") else "missing"
        manifest = last_commit(files)
    else:
        manifest = read_manifest(files, manifest_key(root))
        if manifest is None and (root.state is not None or manifests(files)):
            found["zarr.json" if root.state is None else manifest_key(root)] = "missing or altered"
        if manifest is not None and manifest.root.value != root.value:
            found["zarr.json"] = "altered"
    return found if manifest is None else found | _compare(files, manifest)


def _compare(files: Files, manifest: Manifest) -> dict[str, str]:
    """What is wrong with the objects of a manifest, by key."""
    others = [read_manifest(files, key) for key in manifests(files) if key != manifest.key]
    sizes = functools.cache(files.sizes)
    found = {}
    for key, (size, crc) in manifest.objects.items():
        folder, _, name = key.rpartition("/")
        there = sizes(folder).get(name)
        # Metadata of arrays is written before the root, which alone counts.
        if key.endswith("/zarr.json") and there is not None:
            data = files.read(key)
            states = [m.objects.get(key) for m in (manifest, *others) if m]
            if (len(data), zlib.crc32(data)) not in states:
                found[key] = "altered"
        elif there is None:
            found[key] = "missing"
        elif there < size or (crc is not None and there != size):
            found[key] = f"truncated or grown ({there} bytes, {size} were written)"
        elif crc is not None and zlib.crc32(files.read(key)) != crc:
            found[key] = "altered (checksum differs)"
    return found


def follow(files: Files, state: str | None) -> Root:
    """The newest root of a store, if its crops have the values that they had in a state that was opened before.

    Raises
    ------
    SchemaError
        If the store has changed, and not merely grown; or as `read_root`.
    """
    while True:
        root = read_root(files)
        if root.state == state:
            return root
        manifest = read_manifest(files, manifest_key(root))
        if manifest is not None and state in manifest.extends:
            return root
        if files.stamp("zarr.json") == root.stamp:
            raise SchemaError(
                f"{files.root}: changed since it was opened: flags by other thresholds, or sources that were missing. "
                "Open it again; a command that stops here resumes when it is run again."
            )


class CheckedStore(WrapperStore[Any]):
    """What zarr-python reads a store through: one state, whose absent chunks are errors.

    The root is the one that is given. Chunks of small arrays come from where the newest root says, as long as the
    crops of this state have the same values there; each is checked by its own checksum.

    Parameters
    ----------
    files
        The store.
    root
        Of the state that is read.
    """

    def __init__(self, files: Files, root: Root) -> None:
        super().__init__(files.zarr())
        self.files, self.root, self._newest = files, root, root

    def __reduce__(self) -> tuple[Any, ...]:
        return CheckedStore, (self.files, self.root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckedStore) and (self.files.root, self.root.data) == (
            other.files.root,
            other.root.data,
        )

    def _with_store(self, store: Any) -> CheckedStore:
        return CheckedStore(self.files, self.root)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Bytes of an object, as `Store.get`.

        Raises
        ------
        MissingChunkError
            If a chunk is missing, or a chunk of a small array is altered.
        SchemaError
            If the store has changed since it was opened.
        """
        if key == "zarr.json":
            return prototype.buffer.from_bytes(self.root.data)
        found = _CHUNK.fullmatch(key)
        if found is None or found["array"] not in self.root.members:
            return await super().get(key, prototype, byte_range)
        place = tuple(map(int, filter(None, (found["v2"] or found["default"] or "").split("."))))
        while True:
            newest = self._newest
            metadata = newest.members.get(found["array"], self.root.members[found["array"]])
            is_small = metadata["codecs"][-1]["name"] == "crc32c"
            if not metadata["shape"]:
                place = ()
            there = chunk_key(found["array"], place, key_encoding(metadata))
            data = await super().get(there, prototype, byte_range)
            if not is_small or not await self._run(self._renew, newest):
                break
        if data is None:
            raise self._damage(found["array"], place, "is missing")
        if is_small and byte_range is None:
            raw = data.to_bytes()
            if len(raw) < 4 or google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
                raise self._damage(found["array"], place, "is not as it was written (its checksum differs)")
        return data

    async def _run(self, function: Callable[..., bool], *arguments: Any) -> bool:
        """Call a function, in another thread where it waits for a network."""
        if self.files.local:
            return function(*arguments)
        return await asyncio.to_thread(function, *arguments)

    def _renew(self, root: Root) -> bool:
        """Whether the root has been replaced since ``root`` was read; keeps the newest."""
        if self.files.stamp("zarr.json") == root.stamp:
            return False
        self._newest = follow(self.files, self.root.state)
        return True

    def _damage(self, array: str, place: tuple[int, ...], what: str) -> MissingChunkError:
        chunk = ".".join(map(str, place)) or "0"
        return MissingChunkError(
            f"{self.files.root}: chunk {chunk} of {array} {what}. Run: {remedy(self.files)}"
        )
