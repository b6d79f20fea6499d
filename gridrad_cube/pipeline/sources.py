"""Finding source files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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
    paths: set[str] = set()
    for root in map(Path, roots):
        if root.is_dir():
            pairs = [(p.relative_to(root).as_posix(), p) for p in _netcdf_files(root)]
            if not pairs:
                raise SchemaError(f"{root}: no netCDF file ({', '.join(SUFFIXES)}) in this folder or below")
        elif root.exists():
            pairs = [(root.name, root)]
        else:
            raise FileNotFoundError(f"{root}: no such file or folder")
        for name, path in pairs:
            source = Source(name, str(path.resolve()))
            if source.path in paths:
                continue  # given twice: by its name and by its folder, or through a link
            if name in found:
                raise SchemaError(f"{path}: another source of the same relative name: {found[name].path}")
            found[name] = source
            paths.add(source.path)
    return sorted(found.values(), key=lambda s: s.name)


def _netcdf_files(root: Path) -> Iterator[Path]:
    """Files with a netCDF suffix under a folder, through links to folders too, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)
