"""Checking a store against the records of what was written: every shard there, whole and unaltered."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection
from dataclasses import dataclass

import zarr

from gridrad_cube.storage import Files, RemoteError
from gridrad_cube.store.build import Build, Shard
from gridrad_cube.store.embeddings import CLAIM, record_key


@dataclass(frozen=True)
class Damage:
    """A shard, or another part of the store, that is not as it was written.

    ``source`` is empty for embeddings, and for what belongs to no crop: metadata, flags, statistics, coordinates, the
    readout. For the latter ``row`` is -1; of a shard of several crops it is the first.
    """

    source: str
    row: int
    key: str
    what: str


def verify(store: str | os.PathLike[str]) -> list[Damage]:
    """Compare size and CRC-32 of every shard of a cube or of embeddings with its record, and read all else.

    Returns
    -------
    What is missing, truncated or altered; empty where all is well.

    Raises
    ------
    SchemaError
        If the store has no build log.
    """
    files = Files(store)
    if files.exists(CLAIM):
        return _damaged_embeddings(files)
    build = Build(store)
    owner = {row: entry.source for entry in build.entries for row in entry.rows}
    damages = [
        Damage(owner[shard.row], shard.row, shard.key, what)
        for shard in build.shards()
        if (what := _damage(files, shard))
    ]
    return sorted(damages, key=lambda d: d.row) + _damaged_rest(files, build.layout.channels)


def _damaged_embeddings(files: Files) -> list[Damage]:
    """Damage of an embedding store: its shards by the records of its blocks, the readout, and the rest."""
    rest = _damaged_rest(files, ("embedding",))
    try:
        array = files.read_json("zarr.json")["consolidated_metadata"]["metadata"]["embedding"]
    except (FileNotFoundError, ValueError, KeyError):
        return rest
    each = array["chunk_grid"]["configuration"]["chunk_shape"][0]
    damages = []
    for number, first in enumerate(range(0, array["shape"][0], each)):
        try:
            shards = files.read_json(record_key(number))["shards"].items()
        except (FileNotFoundError, ValueError, KeyError) as error:
            damages.append(Damage("", first, record_key(number), f"cannot be read ({type(error).__name__})"))
            continue
        for key, (size, crc) in shards:
            if what := _damage(files, Shard(first, key, size, crc, files.size(key))):
                damages.append(Damage("", first, key, what))
    for name in files.names():
        if name.endswith(".npz"):  # the readout
            try:
                files.read_arrays(name)
            except ValueError:
                rest.append(Damage("", -1, name, "truncated or altered"))
    return damages + rest


def _damaged_rest(files: Files, checked: Collection[str]) -> list[Damage]:
    """Metadata that differs from the root's, and arrays that cannot be read, but for those checked already."""
    try:
        root = files.read_json("zarr.json")
        members = root["consolidated_metadata"]["metadata"]
    except FileNotFoundError:
        return [Damage("", -1, "zarr.json", "missing: the store is not finished")]
    except (ValueError, KeyError) as error:
        return [Damage("", -1, "zarr.json", f"cannot be read ({error})")]
    damages = []
    for name, metadata in members.items():
        try:
            what = None if files.read_json(f"{name}/zarr.json") == metadata else "differs from the root"
            if what is None and metadata["node_type"] == "array" and name not in checked:
                zarr.open_array(files.zarr(), path=name, mode="r")[...]
        except RemoteError:
            raise  # says nothing about what lies there
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            what = f"cannot be read ({' '.join(str(error).split())[:120] or type(error).__name__})"
        if what:
            damages.append(Damage("", -1, name, what))
    return damages


def _damage(files: Files, shard: Shard) -> str | None:
    if shard.found is None:
        return "missing"
    if shard.found != shard.size:
        return f"truncated or grown ({shard.found} bytes, {shard.size} were written)"
    same = zlib.crc32(files.read(shard.key)) == shard.crc
    return None if same else "altered (checksum differs)"
