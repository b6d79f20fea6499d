"""Detect damage and incomplete changes: the checksum of the root, the manifest of a commit, and checked
reading.

The attribute ``checksum`` of the root is a hash of the root itself, without its history and the keys of
chunks. It
identifies the state of the store: equal states have equal checksums. A commit (`Commit`) writes the small
arrays
beside those of the previous state, then a manifest of all small objects, then the root. A reader compares the
root
after each object. It follows the store if the values of its crops have not changed, and refuses otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
from zarr.storage import WrapperStore

from gridrad_cube.schema import ATTRIBUTE, FORMAT_VERSION, SchemaError, read_attribute
from gridrad_cube.storage import Files
from gridrad_cube.store.layout import (
    ArraySpec,
    KeyEncoding,
    array_metadata,
    chunk_key,
    encode_array,
    encode_rows,
    groups_of,
    root_of,
)
from gridrad_cube.store.shards import MissingChunkError

_FOLDER = "_build/manifest"
#: The key of a chunk, in either encoding.
_CHUNK = re.compile(r"(?P<array>.+)/(?:c(?P<default>(?:\.\d+)*)|(?P<v2>\d+(?:\.\d+)*))")
#: Largest number of earlier states in a manifest. A reader of a state before these must open the store again.
_STATES = 256
#: Largest number of concurrent requests to a remote store.
_REQUESTS = 16
_REPAIR = "gridrad-cube verify STORE --repair --source-root DIR"


def _key_encoding(metadata: Mapping[str, Any]) -> KeyEncoding:
    """Return the chunk key encoding of an array from its metadata."""
    found: KeyEncoding = "v2" if metadata["chunk_key_encoding"]["name"] == "v2" else "default"
    return found


class Root:
    """A parsed root ``zarr.json``; ``stamp`` is that of its object when it was read.

    Raises
    ------
    ValueError
        If the bytes are not a JSON object.
    """

    def __init__(self, data: bytes, stamp: Any = None) -> None:
        self.data, self.stamp = data, stamp
        self.value: dict[str, Any] = json.loads(data)
        try:
            self._check_shape()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not the metadata of a Zarr group: {error!r}") from error

    def _check_shape(self) -> None:
        """Raise an error if the JSON is not of the shape that its readers expect."""
        if not isinstance(self.value.get("attributes", {}), dict):
            raise TypeError("attributes")
        if not isinstance((self.value.get("consolidated_metadata") or {}).get("metadata", {}), dict):
            raise TypeError("consolidated_metadata")
        for member in self.members.values() if self.info else ():
            if not isinstance(member["attributes"], dict):
                raise TypeError("attributes")
            if member["node_type"] == "array":
                names = member["chunk_key_encoding"]["name"], *(codec["name"] for codec in member["codecs"])
                shapes = member["shape"], member["chunk_grid"]["configuration"]["chunk_shape"]
                numbers = [type(n) is int for shape in shapes for n in shape]
                if not all(
                    [*numbers, *(isinstance(n, str) for n in names), len(shapes[0]) == len(shapes[1])]
                ):
                    raise TypeError("an array")

    def __reduce__(self) -> tuple[Any, ...]:
        return Root, (self.data, self.stamp)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the root."""
        return dict(self.value.get("attributes", {}))

    @property
    def info(self) -> dict[str, Any]:
        """The ``gridrad_cube`` attribute, which is text in a saved part of a store; empty if it is missing."""
        found = self.attributes.get(ATTRIBUTE)
        if isinstance(found, str):
            with contextlib.suppress(ValueError):
                found = json.loads(found)
        return found if isinstance(found, dict) else {}

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """Metadata of arrays and groups by path: the valid copy."""
        return dict((self.value.get("consolidated_metadata") or {}).get("metadata", {}))

    @property
    def crops(self) -> int:
        """Number of rows."""
        crop = self.members.get("crop")
        return crop["shape"][0] if crop else 0

    @property
    def state(self) -> str | None:
        """Checksum in the root; None in stores of earlier versions."""
        return self.info.get("checksum")

    @property
    def keys(self) -> KeyEncoding:
        """Chunk key encoding of the small arrays."""
        return _key_encoding(self.members["crop"]) if "crop" in self.members else "default"

    @functools.cached_property
    def is_copy(self) -> bool:
        """True if another program wrote the store, as xarray does when a part of a store is saved.

        A copy has the attributes of the original. Its chunks have other keys, and chunks that contain only
        the fill value are not written.
        """
        names = [m["chunk_key_encoding"] for m in self.members.values() if "chunk_key_encoding" in m]
        return bool(names) and all(n.get("configuration", {}).get("separator") == "/" for n in names)

    @property
    def is_altered(self) -> bool:
        """True if the root was changed after it was written."""
        is_known = self.info.get("format_version", 0) <= FORMAT_VERSION
        return self.state is not None and is_known and not self.is_copy and self.state != checksum(self.value)


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
    """Return the root of a finished store.

    Parameters
    ----------
    files
        Files of the store.

    Returns
    -------
    The root.

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
    if root.is_altered or (root.state is None and manifests(files)):
        if added := _added(files, root):
            raise SchemaError(
                f"{files.root}: another program has added {added} to the store, as Dataset.to_zarr(mode='a') does; "
                "expected the arrays of gridrad-cube alone. Save what was added to a separate "
                "store (xarray.open_zarr reads it here). To continue, run: "
                f"{remedy(files)}. It restores zarr.json and leaves the files of the addition where they are."
            )
        raise SchemaError(
            f"{files.root}: zarr.json is not as it was written (its checksum differs). Run: {remedy(files)}"
        )
    return root


def _added(files: Files, root: Root) -> str:
    """Return the names of arrays and groups that a root has and its last commit has not; empty without any."""
    found = [m for key in manifests(files) if (m := _read_manifest(files, key))]
    newest = max(found, key=lambda m: m.number, default=None)
    names = sorted(root.members.keys() - newest.root.members.keys()) if newest else []
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def remedy(files: Files) -> str:
    """Return the command that repairs a store."""
    return "gridrad-cube embed again" if files.exists("_build/embed.json") else _REPAIR


_KINDS = {
    "patches": "a cube of patches (gridrad-cube preprocess)",
    "embeddings": "an embedding store (gridrad-cube embed)",
}


def store_info(store: str | os.PathLike[str] | xr.Dataset, kind: str | None = None) -> dict[str, Any]:
    """Return the ``gridrad_cube`` attribute of a finished store.

    Parameters
    ----------
    store
        Path or URL, or a Dataset opened from a store: by this package, by plain xarray, or saved and opened
        again.
    kind
        ``"patches"`` or ``"embeddings"``, if the caller needs one of them.

    Returns
    -------
    The attribute, as of `gridrad_cube.schema.read_attribute`.

    Raises
    ------
    FileNotFoundError
        If there is nothing at this place.
    SchemaError
        If it is not a store of this package, is not finished, is damaged, is newer than this program, is of
        another
        kind, or holds embeddings of int8, which earlier versions could write.
    """
    if isinstance(store, xr.Dataset):
        return info_of(store.attrs, str(store.encoding.get("source", "dataset")), kind)
    return info_of(read_root(Files(store)).attributes, os.fspath(store), kind)


def info_of(attributes: Mapping[Any, Any], where: str, kind: str | None) -> dict[str, Any]:
    """Return the same as `store_info` from the attributes of a root."""
    info = read_attribute(attributes, where)
    if kind is not None and info.get("kind") != kind:
        raise SchemaError(f"{where}: holds {info.get('kind')}, but this needs {_KINDS[kind]}")
    return info


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A commit: the root that it wrote, and its objects.

    ``objects`` has the size and CRC-32 of every small object of the state by key (CRC None if its records
    have their own). CRC-32C would be the same for all chunks, because each chunk ends with its own CRC-32C.
    ``extends`` lists earlier states whose crops have the same values in this one. ``about`` is data of the
    writer.
    """

    root: Root
    number: int = 0
    objects: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    extends: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Key of the manifest itself."""
        return _manifest_key(self.root)

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


def _manifest_key(root: Root) -> str:
    """Return the key of the manifest of the commit that wrote a root."""
    return f"{_FOLDER}/{root.state}.{root.keys}.json"


def _read_manifest(files: Files, key: str) -> Manifest | None:
    """Return a manifest; None where it is missing or damaged."""
    try:
        line, _, body = files.read(key).partition(b"\n")
        if int(line, 16) != zlib.crc32(body):
            return None
        value = json.loads(body)
        return Manifest(
            root=Root(json.dumps(value["root"]).encode()),
            number=int(value["number"]),
            objects={key: (int(size), crc) for key, (size, crc) in value["objects"].items()},
            extends=tuple(map(str, value["extends"])),
            about=dict(value["about"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # or not of the shape that a commit writes


def manifests(files: Files) -> list[str]:
    """Return the keys of all manifests: that of the state, and those of commits that were interrupted."""
    return [f"{_FOLDER}/{name}" for name in files.names(_FOLDER)]


def last_commit(files: Files) -> Manifest | None:
    """Return the last committed state of a store; None without a commit.

    It is found by the root or, if that is lost or damaged, by the last manifest. Stores of earlier versions
    have no manifest, so only the root is known.
    """
    try:
        root = read_root(files)
    except (SchemaError, FileNotFoundError):
        found = [m for key in manifests(files) if (m := _read_manifest(files, key))]
        return max(found, key=lambda m: m.number, default=None)
    return _read_manifest(files, _manifest_key(root)) or Manifest(root=root)


def damaged_objects(files: Files) -> dict[str, str]:
    """Return the damage of the root, its manifest, and the small objects in it, by key; empty without damage.

    In a store without a manifest, which is of an earlier version, only the root can be checked.
    """
    found: dict[str, str] = {}
    try:
        root = read_root(files)
    except (SchemaError, FileNotFoundError):
        found["zarr.json"] = "altered or cut" if files.exists("zarr.json") else "missing"
        manifest = last_commit(files)
    else:
        manifest = _read_manifest(files, _manifest_key(root))
        if manifest is None and (root.state is not None or manifests(files)):
            found["zarr.json" if root.state is None else _manifest_key(root)] = "missing or altered"
        if manifest is not None and manifest.root.value != root.value:
            found["zarr.json"] = "altered"
    return found if manifest is None else found | _compare(files, manifest)


def _compare(files: Files, manifest: Manifest) -> dict[str, str]:
    """Return the damage of the objects of a manifest, by key."""
    others = [_read_manifest(files, key) for key in manifests(files) if key != manifest.key]
    sizes = functools.cache(files.sizes)
    found = {}
    for key, (size, crc) in manifest.objects.items():
        folder, _, name = key.rpartition("/")
        there = sizes(folder).get(name)
        # Metadata of arrays is written before the root, whose copy is the valid one.
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
    """Return the newest root of a store, if the values of its crops have not changed since a state that was
    opened.

    Raises
    ------
    SchemaError
        If the store has changed in another way than by growth; or as of `read_root`.
    """
    while True:
        root = read_root(files)
        if root.state == state:
            return root
        manifest = _read_manifest(files, _manifest_key(root))
        if manifest is not None and state in manifest.extends:
            return root
        if files.stamp("zarr.json") == root.stamp:
            raise SchemaError(
                f"{files.root}: changed since it was opened: flags by other thresholds, or sources that were missing. "
                "Open it again; a command that stops here resumes when it is run again."
            )


class CheckedStore(WrapperStore[Any]):
    """Store object through which zarr-python reads one state. Missing chunks are errors.

    The root is fixed. Chunks of small arrays are read from the place in the newest root, as long as the crops
    of this state have the same values there. Each chunk is checked by its own checksum.

    Parameters
    ----------
    files
        The store.
    root
        Root of the state that is read.
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
        """Return the bytes of an object, as `Store.get`.

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
        if found is None or found["array"] not in self.root.members or self.root.is_copy:
            return await super().get(key, prototype, byte_range)
        place = tuple(map(int, filter(None, (found["v2"] or found["default"] or "").split("."))))
        while True:
            newest = self._newest
            metadata = newest.members.get(found["array"], self.root.members[found["array"]])
            is_small = metadata["codecs"][-1]["name"] == "crc32c"
            if not metadata["shape"]:
                place = ()
            there = chunk_key(found["array"], place, _key_encoding(metadata))
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
        """Call a function, in another thread if it waits for a network."""
        if self.files.local:
            return function(*arguments)
        return await asyncio.to_thread(function, *arguments)

    def _renew(self, root: Root) -> bool:
        """Return whether the root has been replaced since ``root`` was read; keeps the newest."""
        if self.files.stamp("zarr.json") == root.stamp:
            return False
        self._newest = follow(self.files, self.root.state)
        return True

    def _damage(self, array: str, place: tuple[int, ...], what: str) -> MissingChunkError:
        chunk = ".".join(map(str, place)) or "0"
        return MissingChunkError(
            f"{self.files.root}: chunk {chunk} of {array} {what}. Run: {remedy(self.files)}"
        )


class Commit:
    """The next state of a store: its small arrays, written beside those of the last state, and then the root.

    While readers see a state, the next one is first written under other keys (Zarr's chunk key encoding
    ``v2``), which its root names. Then it moves to the keys of the format, and a second root names those.
    Each root is written in one step and describes a complete state. Unchanged objects are not encoded again.

    Parameters
    ----------
    files
        The store.
    damaged
        Keys of objects of the last state that must be written again.
    """

    def __init__(self, files: Files, damaged: Collection[str] = ()) -> None:
        self.files, self.last = files, last_commit(files)
        is_seen = self.last is not None and files.exists("zarr.json") and self.last.root.keys == "default"
        self._keys: KeyEncoding = "v2" if is_seen else "default"
        self._damaged = frozenset(damaged)
        self._members: dict[str, Any] = {}
        #: Size and CRC-32 of the chunks of small arrays by array and place, and of all else by key.
        self._chunks: dict[tuple[str, tuple[int, ...]], tuple[int, int | None]] = {}
        self._objects: dict[str, tuple[int, int | None]] = {}
        self._sizes = functools.cache(files.sizes)

    @property
    def history(self) -> str:
        """History of the store, one line for each event."""
        return "" if self.last is None else str(self.last.root.attributes.get("history", ""))

    def add(self, spec: ArraySpec) -> None:
        """Add an array whose shards or chunks are written separately.

        Parameters
        ----------
        spec
            Description of the array.
        """
        self._members[spec.name] = array_metadata(spec)

    def write_rows(self, spec: ArraySpec, first: int, values: np.ndarray) -> None:
        """Write one chunk of a small array, from row ``first`` on.

        Parameters
        ----------
        spec
            Description of the array.
        first
            First row, a multiple of the length of chunks.
        values
            Values of the array.
        """
        self._put(spec, first // spec.chunks[0], encode_rows(spec, values))

    def write_array(self, spec: ArraySpec, values: np.ndarray) -> None:
        """Add a small array and write all its chunks.

        Parameters
        ----------
        spec
            Description of the array.
        values
            Values of the array.
        """
        self.add(spec)
        for number, data in enumerate(encode_array(spec, values)):
            self._put(spec, number, data)

    def _put(self, spec: ArraySpec, number: int, data: bytes) -> None:
        place = spec.place(number)
        self.files.write(chunk_key(spec.name, place, self._keys), data)
        self._chunks[spec.name, place] = len(data), zlib.crc32(data)

    def keep_rows(self, specs: Iterable[ArraySpec], first: int) -> bool:
        """Keep one chunk of several small arrays from the last state.

        Parameters
        ----------
        specs
            Descriptions of the arrays.
        first
            First row of the chunk.

        Returns
        -------
        False if one of the chunks is not complete.
        """
        return self._keep([(spec.name, spec.place(first // spec.chunks[0])) for spec in specs])

    def keep_array(self, name: str) -> bool:
        """Keep a small array of one chunk from the last state.

        Parameters
        ----------
        name
            Name of the array.

        Returns
        -------
        False if it is not complete in the last state.
        """
        metadata = self.last.root.members.get(name) if self.last else None
        if metadata is None or not self._keep([(name, (0,) * len(metadata["shape"]))]):
            return False
        encoding = metadata["chunk_key_encoding"] | {"name": "default"}
        self._members[name] = metadata | {"chunk_key_encoding": encoding}
        return True

    def _keep(self, chunks: Sequence[tuple[str, tuple[int, ...]]]) -> bool:
        if self.last is None:
            return False
        old = [chunk_key(*chunk, self.last.root.keys) for chunk in chunks]
        if not all(map(self._is_whole, old)):
            return False
        self._copy(
            (key, chunk_key(*chunk, self._keys))
            for key, chunk in zip(old, chunks, strict=True)
            if self._keys != self.last.root.keys
        )
        self._chunks |= {chunk: self.last.objects[key] for key, chunk in zip(old, chunks, strict=True)}
        return True

    def _is_whole(self, key: str) -> bool:
        """Return whether an object of the last state exists with the recorded size."""
        folder, _, name = key.rpartition("/")
        size, _ = (self.last and self.last.objects.get(key)) or (None, None)
        return size is not None and key not in self._damaged and self._sizes(folder).get(name) == size

    def _copy(self, pairs: Iterable[tuple[str, str]]) -> None:
        _do_all(self.files, lambda pair: self.files.copy(*pair), pairs)

    def note(self, key: str, data: bytes) -> None:
        """Add another, existing object to the manifest.

        Parameters
        ----------
        key
            Key of the object.
        data
            Bytes of the object.
        """
        self._objects[key] = len(data), zlib.crc32(data)

    def note_as_before(self, key: str) -> bool:
        """Add another object to the manifest if it exists as in the last state.

        Parameters
        ----------
        key
            Key of the object.

        Returns
        -------
        False if it does not.
        """
        if self.last is None or not self._is_whole(key):
            return False
        self._objects[key] = self.last.objects[key]
        return True

    def note_known(self, objects: Mapping[str, tuple[int, int | None]]) -> None:
        """Add other objects to the manifest, with known sizes and checksums.

        Parameters
        ----------
        objects
            Size and CRC-32 by key.
        """
        self._objects |= objects

    def finish(
        self,
        attributes: Mapping[str, Any],
        *,
        groups: Iterable[str] = (),
        extends: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the manifest, the metadata of arrays and the root. Readers then see the new state in one
        step.

        Parameters
        ----------
        attributes
            Attributes of the root.
        groups
            Groups that are written even if they contain no array.
        extends
            True if the crops of the last state have the same values in this one.
        about
            Data that the manifest keeps for the next commit.
        """
        self._members |= groups_of([*self._members, *(f"{name}/" for name in groups)])
        value = json.loads(json.dumps(root_of(self._members, attributes), allow_nan=False))
        value["attributes"][ATTRIBUTE]["checksum"] = checksum(value)
        before: tuple[str, ...] = ()
        if self.last is not None and self.last.root.state is not None and extends:
            before = tuple(dict.fromkeys((*self.last.extends, self.last.root.state)))
        self._publish(value, self._keys, extends=before, about=about or {})
        beside = [chunk_key(*chunk, "v2") for chunk in self._chunks]
        if self._keys == "v2":
            same = self.last.objects if self.last else {}
            moved = {chunk_key(*chunk, "default"): chunk for chunk in self._chunks}
            self._copy(
                (chunk_key(*chunk, "v2"), key)
                for key, chunk in moved.items()
                if same.get(key) != self._chunks[chunk] or not self._is_whole(key)
            )
            self._publish(value, "default", extends=before, about=about or {})
        if self._keys == "v2" or (self.last is not None and self.last.root.keys == "v2"):
            _do_all(self.files, self.files.remove, beside)

    def _publish(
        self,
        value: Mapping[str, Any],
        keys: KeyEncoding,
        *,
        extends: tuple[str, ...],
        about: Mapping[str, Any],
    ) -> None:
        """Write the manifest, metadata and root of the state under its current keys; remove other manifests."""
        members = dict(value["consolidated_metadata"]["metadata"])
        for name in {name for name, _ in self._chunks}:
            encoding = members[name]["chunk_key_encoding"] | {"name": keys}
            members[name] = members[name] | {"chunk_key_encoding": encoding}
        root = {**value, "consolidated_metadata": {**value["consolidated_metadata"], "metadata": members}}
        data = json.dumps(root, allow_nan=False).encode()
        metadata = {
            f"{name}/zarr.json": json.dumps(member, allow_nan=False, separators=(",", ":")).encode()
            for name, member in members.items()
        }
        for key, member in metadata.items():
            self.note(key, member)
        chunks = {chunk_key(*chunk, keys): known for chunk, known in self._chunks.items()}
        manifest = Manifest(
            root=Root(data),
            number=self.last.number + 1 if self.last else 1,
            objects=self._objects | chunks,
            extends=extends,
            about=about,
        )
        manifest.write(self.files)
        for key, member in metadata.items():
            self.files.write(key, member)
        self.files.write("zarr.json", data)
        for key in manifests(self.files):
            if key != manifest.key:
                self.files.remove(key)


def _do_all(files: Files, function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call a function for each item, in several threads if the calls wait for a network."""
    if files.local:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(function, items))
