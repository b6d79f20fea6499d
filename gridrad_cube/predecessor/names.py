"""The names under which the predecessor kept its crops and patches, and what the names contain.

===========================  =========================================================================
``BASE.npz``                 one crop, every channel, and its patches again
``BASE_crop_C.pt``           one channel of a crop (its later version)
``BASE_patch_I_J_C.pt``      row I, column J of channel C of a crop (its later version)
``crops_K.pt``               slices of some files' crops, channel after channel (its earlier version)
``patches_K.pt``             slices of some files' patches, ``(I * 8 + J) * channels + C`` in each file
``crop_K_N.pt``              slice N of what was left of ``crops_K.pt`` after its filter
``patch_K_N.pt``             slice N of what was left of ``patches_K.pt`` after its filter
===========================  =========================================================================
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gridrad_cube.readers import parse_stamp
from gridrad_cube.schema import TIME_FILL, SchemaError

_Kind = Literal["npz", "scene", "crops", "patches", "crop", "slices"]

#: Which copy of the pixels a kind of file belongs to.
_COPY: dict[_Kind, str] = {
    "npz": "", "scene": "BASE_crop_C.pt and BASE_patch_I_J_C.pt", "crops": "crops_K.pt and crop_K_N.pt",
    "crop": "crops_K.pt and crop_K_N.pt", "patches": "patches_K.pt and patch_K_N.pt",
    "slices": "patches_K.pt and patch_K_N.pt",
}  # fmt: skip
_SCENE = re.compile(r"(?P<base>.+)_(?:crop|patch_(?P<row>\d{1,4})_(?P<col>\d{1,4}))_(?P<channel>\d{1,3})\.pt")
_CHUNK = re.compile(r"(crops|patches)(_\d+|_partial)?\.pt")
_SLICE = re.compile(r"(crop|patch)_(\d+)_(\d+)\.pt")


@dataclass(frozen=True)
class OldSource:
    """Files of the predecessor that are one source of a cube: a file, or all files of one scene.

    ``name`` is that of the file, or of the scene with ``.pt``; ``path`` the file, or the folder of the scene's files.
    ``cells`` is the number of rows and columns of patches, by their names.
    """

    name: str
    path: str
    kind: _Kind
    bytes: int
    mtime_ns: int
    cells: tuple[int, int] = (0, 0)

    def stat(self) -> tuple[int, int]:
        """Return the bytes of all files and the latest time of modification, in nanoseconds."""
        return self.bytes, self.mtime_ns

    @property
    def base(self) -> str:
        """Name of the scene."""
        return Path(self.name).stem

    @property
    def time(self) -> int:
        """Time in the name, seconds since 1970; `TIME_FILL` without a time."""
        return time_of(self.base)


def time_of(name: str) -> int:
    """Return the time in the name of a scene, seconds since 1970; `TIME_FILL` without a time."""
    found = parse_stamp(name)
    return TIME_FILL if found is None else int(found.astype(np.int64))


def base_of(name: str) -> tuple[str, int] | None:
    """Return the scene and channel in the name of a crop's file (a key of ``output_features.pt``); None for
    other names.
    """
    match = _SCENE.fullmatch(name.rsplit("/", 1)[-1])
    return (match["base"], int(match["channel"])) if match and match["row"] is None else None


def find_files(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], suffix: str
) -> list[OldSource]:
    """Find files of the predecessor's crops and patches, and put them together to sources by their names.

    Files, and folders to search; the suffix is ``".npz"`` or ``".pt"``. Refuses two that hold the same pixels.
    """
    roots = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    groups: dict[tuple[str, Path, _Kind], list[tuple[Path, tuple[int, int]]]] = {}
    unknown = None
    for path, root in _walk(roots, suffix):
        found = _parse(path)
        if found is None:
            unknown = unknown or path
            continue
        kind, folder, name, cells = found
        home = folder if kind in ("scene", "slices") else folder.parent
        groups.setdefault((_prefix(home, root) + name, folder, kind), []).append((path, cells))
    if not groups:
        shown = f"; got such as {unknown}" if unknown else ""
        raise SchemaError(f"no file with a name of the predecessor's crops or patches{shown}")
    out = [_source(*key, files) for key, files in groups.items()]
    _check_once(out)
    return sorted(out, key=lambda s: (s.time, s.name))


def _walk(roots: Iterable[str | os.PathLike[str]], suffix: str) -> Iterator[tuple[Path, Path]]:
    """Yield the files of a suffix among files and folders (and what is below), with the folder that each was
    found from.
    """
    seen = set()
    for root in map(Path, roots):
        if root.is_dir():
            for folder, folders, found in os.walk(root):
                folders.sort()
                if (real := os.path.realpath(folder)) not in seen:
                    seen.add(real)
                    yield from ((Path(folder, n), root) for n in sorted(found) if n.endswith(suffix))
        elif root.exists():
            yield root, root.parent
        else:
            raise FileNotFoundError(f"{root}: no such file or folder")


def _parse(path: Path) -> tuple[_Kind, Path, str, tuple[int, int]] | None:
    """Return the kind, file or folder, name and cells of the source that a file belongs to; None for other
    names.
    """
    if path.suffix == ".npz":
        return "npz", path, path.name, (0, 0)
    if chunk := _CHUNK.fullmatch(path.name):
        return ("crops" if chunk[1] == "crops" else "patches"), path, path.name, (0, 0)
    if part := _SLICE.fullmatch(path.name):
        if part[1] == "crop":
            return "crop", path, path.name, (0, 0)
        return "slices", path.parent, f"patch_{part[2]}.pt", (0, 0)
    if match := _SCENE.fullmatch(path.name):
        beside = path.parent.name.lower() in ("crops", "patches")
        folder = path.parent.parent if beside else path.parent
        cells = (0, 0) if match["row"] is None else (int(match["row"]) + 1, int(match["col"]) + 1)
        return "scene", folder, f"{match['base']}.pt", cells
    return None


def _source(name: str, folder: Path, kind: _Kind, files: Sequence[tuple[Path, tuple[int, int]]]) -> OldSource:
    parents = {path.parent for path, _ in files}
    if kind == "scene" and len(parents) == 1:  # only crops or patches, also beside other files
        folder = parents.pop()
    stats = [path.stat() for path, _ in files]
    size, latest = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    cells = max(c[0] for _, c in files), max(c[1] for _, c in files)
    return OldSource(name, os.path.abspath(folder), kind, size, latest, cells)


@functools.lru_cache(maxsize=4096)
def _prefix(home: Path, root: Path) -> str:
    """Return the folder of a source below the root, with a slash after it; nothing where it is the root, or
    above it.
    """
    return f"{home.relative_to(root).as_posix()}/" if home != root and home.is_relative_to(root) else ""


def _check_once(sources: Sequence[OldSource]) -> None:
    seen: dict[str, OldSource] = {}
    for source in sources:
        if source.name in seen:
            raise SchemaError(
                f"{source.path}: another source of the same name: {seen[source.name].path}. Convert one of them, or "
                "the folder above both."
            )
        seen[source.name] = source
    copies = {_COPY[source.kind] for source in sources} - {""}
    if len(copies) > 1:
        raise SchemaError(
            f"several copies of the same pixels: {sorted(copies)}. Give the folder or the files of one of them; crops "
            "hold all that patches do."
        )
