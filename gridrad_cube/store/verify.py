"""Checking a store against its build log: every shard there, whole and unaltered."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

from gridrad_cube.schema import SchemaError
from gridrad_cube.store.build import Build


@dataclass(frozen=True)
class Damage:
    """A shard that is not as it was written."""

    source: str
    row: int
    key: str
    what: str


def verify(store: str | os.PathLike[str]) -> list[Damage]:
    """Compare size and CRC-32 of every shard with its record; reads all bytes.

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
    damages = []
    for record in build.records():
        for crop in record["crops"] if record["status"] == "written" else ():
            for key, (size, crc) in crop["shards"].items():
                what = _damage(build, key, size, crc)
                if what:
                    damages.append(Damage(record["source"], crop["row"], key, what))
    return damages


def _damage(build: Build, key: str, size: int, crc: int) -> str | None:
    found = build.files.size(key)
    if found is None:
        return "missing"
    if found != size:
        return f"truncated or grown ({found} bytes, {size} were written)"
    return None if zlib.crc32(build.files.read(key)) == crc else "altered (checksum differs)"
