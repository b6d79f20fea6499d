"""Checking a store against its build log: every shard there, whole and unaltered."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

import zarr

from gridrad_cube.storage import RemoteError
from gridrad_cube.store.build import Build, Shard


@dataclass(frozen=True)
class Damage:
    """A shard, or another part of the store, that is not as it was written.

    ``source`` is empty and ``row`` -1 for what belongs to no crop: metadata, flags, statistics, coordinates.
    """

    source: str
    row: int
    key: str
    what: str


def verify(store: str | os.PathLike[str]) -> list[Damage]:
    """Compare size and CRC-32 of every shard with its record, and read all else; reads all bytes.

    Returns
    -------
    What is missing, truncated or altered; empty where all is well.

    Raises
    ------
    SchemaError
        If the store has no build log.
    """
    build = Build(store)
    owner = {row: entry.source for entry in build.entries for row in entry.rows}
    damages = [
        Damage(owner[shard.row], shard.row, shard.key, what)
        for shard in build.shards()
        if (what := _damage(build, shard))
    ]
    return sorted(damages, key=lambda d: d.row) + _damaged_rest(build)


def _damaged_rest(build: Build) -> list[Damage]:
    """Metadata that differs from the root's, and small arrays that cannot be read."""
    try:
        root = build.files.read_json("zarr.json")
        members = root["consolidated_metadata"]["metadata"]
    except FileNotFoundError:
        return [Damage("", -1, "zarr.json", "missing: the store is not finished")]
    except (ValueError, KeyError) as error:
        return [Damage("", -1, "zarr.json", f"cannot be read ({error})")]
    damages = []
    for name, metadata in members.items():
        try:
            what = None if build.files.read_json(f"{name}/zarr.json") == metadata else "differs from the root"
            if what is None and metadata["node_type"] == "array" and name not in build.layout.channels:
                zarr.open_array(build.files.zarr(), path=name, mode="r")[...]
        except RemoteError:
            raise  # says nothing about what lies there
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            what = f"cannot be read ({' '.join(str(error).split())[:120] or type(error).__name__})"
        if what:
            damages.append(Damage("", -1, name, what))
    return damages


def _damage(build: Build, shard: Shard) -> str | None:
    if shard.found is None:
        return "missing"
    if shard.found != shard.size:
        return f"truncated or grown ({shard.found} bytes, {shard.size} were written)"
    same = zlib.crc32(build.files.read(shard.key)) == shard.crc
    return None if same else "altered (checksum differs)"
