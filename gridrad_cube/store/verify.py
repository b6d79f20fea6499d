"""Checking a store against its build log: every shard there, whole and unaltered."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

import numpy as np
import zarr

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import RemoteError
from gridrad_cube.store.build import Build


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
    if build.layout is None:
        raise SchemaError(f"{store}: no build log in it; nothing to verify against")
    owner = {row: entry.source for entry in build.entries for row in entry.rows}
    damages = []
    for column, name in enumerate(build.layout.channels):
        spec, there = build.layout.pixels(name, build.rows), build.files.sizes(name)
        for row in np.flatnonzero(build.shard_bytes[:, column] >= 0).tolist():
            key = spec.key((row, *(0 for _ in spec.dims[1:])))
            found = there.get(key.rsplit("/", 1)[1])
            size, crc = int(build.shard_bytes[row, column]), int(build.shard_crc[row, column])
            what = _damage(build, key, found, size, crc)
            if what:
                damages.append(Damage(owner[row], row, key, what))
    return sorted(damages, key=lambda d: d.row) + _damaged_rest(build)


def _damaged_rest(build: Build) -> list[Damage]:
    """Metadata that differs from the root's, and small arrays that cannot be read."""
    assert build.layout is not None
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


def _damage(build: Build, key: str, found: int | None, size: int, crc: int) -> str | None:
    if found is None:
        return "missing"
    if found != size:
        return f"truncated or grown ({found} bytes, {size} were written)"
    return None if zlib.crc32(build.files.read(key)) == crc else "altered (checksum differs)"
