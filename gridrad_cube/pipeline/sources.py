"""Finding source files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gridrad_cube.schema import SchemaError

#: Suffixes of files that a folder is searched for.
SUFFIXES = (".nc", ".nc4", ".cdf")


@dataclass(frozen=True)
class Source:
    """A file found: its name relative to the root that was given, and where it is."""

    name: str
    path: str

    def stat(self) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds."""
        found = os.stat(self.path)
        return found.st_size, found.st_mtime_ns


def find_sources(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Files named, and netCDF files under folders named; sorted, each with a name relative to its root.

    Raises
    ------
    FileNotFoundError
        If a path is not there.
    SchemaError
        If a folder holds no netCDF file, or two roots hold a file of the same relative name.
    """
    roots = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    found: dict[str, Source] = {}
    for root in map(Path, roots):
        if root.is_dir():
            files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and not p.is_dir())
            if not files:
                raise SchemaError(f"{root}: no netCDF file ({', '.join(SUFFIXES)}) in this folder or below")
            pairs = [(p.relative_to(root).as_posix(), p) for p in files]
        elif root.exists():
            pairs = [(root.name, root)]
        else:
            raise FileNotFoundError(f"{root}: no such file or folder")
        for name, path in pairs:
            source = Source(name, str(path.resolve()))
            if found.setdefault(name, source) != source:
                raise SchemaError(f"{path}: another source of the same relative name: {found[name].path}")
    return sorted(found.values(), key=lambda s: s.name)
