"""Check a store against the checksums of what was written. Nothing is repaired."""

from __future__ import annotations

import logging
import os
import zlib
from dataclasses import dataclass

import zarr

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files, RemoteError
from gridrad_cube.store.build import Build, Shard
from gridrad_cube.store.embeddings import CLAIM, read_record, record_key
from gridrad_cube.store.integrity import (
    CheckedStore,
    Root,
    damaged_objects,
    last_commit,
    manifests,
    read_root,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """A damaged object of a store.

    ``source`` is empty for embeddings, and for objects of no single crop: metadata, flags, statistics,
    coordinates, plan and log, the readout. For these ``row`` is -1. For a shard of several crops, ``row`` is
    the first one.
    """

    source: str
    row: int
    key: str
    what: str


def verify(store: str | os.PathLike[str]) -> list[Damage]:
    """Compare every object of a cube or of embeddings with its checksum.

    Shards are compared with their records, all other objects with the manifest of the last commit. A store of
    an earlier version has no manifest. Then metadata and small arrays are only read, and a line of the log
    says so.

    Parameters
    ----------
    store
        Path or URL of the store.

    Returns
    -------
    Objects that are missing, truncated or altered; empty if the store is intact.

    Raises
    ------
    SchemaError
        If the store has no build log, or its plan cannot be read.
    """
    files = Files(store)
    is_embedding = files.exists(CLAIM) or files.exists(record_key(0))
    damages = _damaged_embeddings(files) if is_embedding else _damaged_cube(files)
    known = {damage.key for damage in damages}
    return damages + [d for d in _damaged_rest(files) if d.key not in known]


def _damaged_cube(files: Files) -> list[Damage]:
    """Return the damage of the plan, the log and the shards of a cube."""
    build = Build(files.root)
    damages = [Damage("", -1, key, what) for key, what in build.damages]
    owner = {row: entry.source for entry in build.entries for row in entry.rows}
    lost = set(build.lost)
    for number, entry in enumerate(build.entries):
        try:
            build.values(number)
        except SchemaError:
            damages.append(Damage(entry.source, entry.row, "_build/log", "altered (the values of a record)"))
        if entry.source in lost:
            damages.append(Damage(entry.source, entry.row, "_build/log", "its record is missing"))
    shards = [
        Damage(owner[shard.row], shard.row, shard.key, what)
        for shard in build.shards()
        if (what := _damage(files, shard))
    ]
    return sorted(shards, key=lambda d: d.row) + damages


def _damaged_embeddings(files: Files) -> list[Damage]:
    """Return the damage of the readout and of the shards of an embedding store, by the records of its blocks."""
    damages = []
    for name in files.names():
        if name.endswith(".npz"):  # the readout
            try:
                files.read_arrays(name)
            except ValueError:
                damages.append(Damage("", -1, name, "truncated or altered"))
    last = last_commit(files)
    if last is None or "embedding" not in last.root.members:
        return damages
    array = last.root.members["embedding"]
    each = array["chunk_grid"]["configuration"]["chunk_shape"][0]
    for number, first in enumerate(range(0, array["shape"][0], each)):
        try:
            shards = read_record(files, number)["shards"].items()
        except (FileNotFoundError, ValueError) as error:
            damages.append(Damage("", first, record_key(number), f"cannot be read ({type(error).__name__})"))
            continue
        for key, (size, crc) in shards:
            if what := _damage(files, Shard(first, key, size, crc, files.size(key))):
                damages.append(Damage("", first, key, what))
    return damages


def _damaged_rest(files: Files) -> list[Damage]:
    """Return the damage of the root and of all small objects."""
    found = damaged_objects(files)
    if not found and last_commit(files) is not None and not manifests(files):
        _logger.warning(
            "%s: written by an earlier version, without checksums of metadata and small arrays: they are read, and not "
            "compared with what was written",
            files.root,
        )
        found = _unreadable(files, read_root(files))
    return [Damage("", -1, key, what) for key, what in found.items()]


def _unreadable(files: Files, root: Root) -> dict[str, str]:
    """Return the metadata that differs from the root's, and small arrays that cannot be read, by path."""
    there, found = CheckedStore(files, root), {}
    for name, metadata in root.members.items():
        try:
            what = None if files.read_json(f"{name}/zarr.json") == metadata else "differs from the root"
            is_small = metadata["node_type"] == "array" and metadata["codecs"][-1]["name"] == "crc32c"
            if what is None and is_small:
                zarr.open_array(there, path=name, mode="r")[...]
        except RemoteError:
            raise  # the server failed; the object may be intact
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            what = f"cannot be read ({' '.join(str(error).split())[:120] or type(error).__name__})"
        if what:
            found[name] = what
    return found


def _damage(files: Files, shard: Shard) -> str | None:
    if shard.found is None:
        return "missing"
    if shard.found != shard.size:
        return f"truncated or grown ({shard.found} bytes, {shard.size} were written)"
    same = zlib.crc32(files.read(shard.key)) == shard.crc
    return None if same else "altered (checksum differs)"
