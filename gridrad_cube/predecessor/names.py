"""The names under which the predecessor kept its crops and patches, and what they tell.

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
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from gridrad_cube.pipeline.sources import Source
from gridrad_cube.readers.times import parse_stamp
from gridrad_cube.schema import TIME_FILL, SchemaError

Kind = Literal["npz", "scene", "crops", "patches", "crop", "slices"]

#: Which copy of the pixels a kind of file belongs to.
_COPY: dict[Kind, str] = {
    "npz": "", "scene": "BASE_crop_C.pt and BASE_patch_I_J_C.pt", "crops": "crops_K.pt and crop_K_N.pt",
    "crop": "crops_K.pt and crop_K_N.pt", "patches": "patches_K.pt and patch_K_N.pt",
    "slices": "patches_K.pt and patch_K_N.pt",
}  # fmt: skip
_SCENE_CROP = re.compile(r"(?P<base>.+)_crop_(?P<channel>\d{1,3})\.pt")
_SCENE_PATCH = re.compile(r"(?P<base>.+)_patch_(?P<row>\d{1,4})_(?P<col>\d{1,4})_(?P<channel>\d{1,3})\.pt")
_CHUNK = re.compile(r"(crops|patches)(_\d+|_partial)?\.pt")
_SLICE = re.compile(r"(crop|patch)_(\d+)_(\d+)\.pt")


@dataclass(frozen=True)
class OldSource(Source):
    """Files of the predecessor that are one source of a cube: a file, or all files of one scene.

    ``name`` is that of the file, or of the scene with ``.pt``; ``path`` the file, or the folder of the scene's files.
    ``channels`` are the suffixes met, ``cells`` rows and columns that the patches' names reach to.
    """

    kind: Kind
    bytes: int
    mtime_ns: int
    channels: tuple[int, ...] = ()
    cells: tuple[int, int] = (0, 0)
    numbers: tuple[int, ...] = field(default=(), repr=False)

    def stat(self) -> tuple[int, int]:
        """Bytes of all files and the latest time of modification, in nanoseconds."""
        return self.bytes, self.mtime_ns

    @property
    def base(self) -> str:
        """Name of the scene."""
        return Path(self.name).stem

    @property
    def time(self) -> int:
        """Time that the name tells, seconds since 1970; `TIME_FILL` if none."""
        found = parse_stamp(self.base)
        return TIME_FILL if found is None else int(found.astype(np.int64))


def crop_name(base: str, channel: int) -> str:
    """Name of a crop's file, as the predecessor's later version has it."""
    return f"{base}_crop_{channel}.pt"


def patch_name(base: str, row: int, col: int, channel: int) -> str:
    """Name of a patch's file, as the predecessor's later version has it."""
    return f"{base}_patch_{row}_{col}_{channel}.pt"


def slice_name(chunk: str, number: int) -> str:
    """Name of a patch's file, as its earlier version has it; ``chunk`` is ``patch_K``."""
    return f"{chunk}_{number}.pt"


def base_of(name: str) -> tuple[str, int] | None:
    """Scene and channel that the name of a crop's file tells (a key of ``output_features.pt``); None if it does not."""
    match = _SCENE_CROP.fullmatch(name.rsplit("/", 1)[-1])
    return (match["base"], int(match["channel"])) if match else None


def sort_files(files: Iterable[tuple[Path, Path]]) -> list[OldSource]:
    """Put files together to sources, by their names.

    Parameters
    ----------
    files
        Each with the folder that it was found from.

    Raises
    ------
    SchemaError
        If none has such a name, or the same pixels are there twice; says what to leave out.
    """
    groups: dict[tuple[str, str, Kind], _Group] = {}
    unknown = []
    for path, root in files:
        match = _SCENE_PATCH.fullmatch(path.name) or _SCENE_CROP.fullmatch(path.name)
        chunk, part = _CHUNK.fullmatch(path.name), _SLICE.fullmatch(path.name)
        cell = number = None
        channel = int(match["channel"]) if match else None
        kind: Kind
        if path.suffix == ".npz":
            kind, folder, name = "npz", path, path.name
        elif chunk:
            kind, folder, name = ("crops" if chunk[1] == "crops" else "patches"), path, path.name
        elif part and part[1] == "crop":
            kind, folder, name = "crop", path, path.name
        elif part:
            kind, folder, name = "slices", path.parent, f"patch_{part[2]}.pt"
            number = int(part[3])
        elif match:
            beside = path.parent.name.lower() in ("crops", "patches")
            kind, folder, name = "scene", path.parent.parent if beside else path.parent, f"{match['base']}.pt"
            if "row" in match.re.groupindex:
                cell = int(match["row"]), int(match["col"])
        else:
            unknown.append(path)
            continue
        home = folder if kind in ("scene", "slices") else folder.parent
        relative = _prefix(home, root) + name
        group = groups.setdefault((relative, str(folder), kind), _Group())
        group.add(path, channel, cell, number)
    if not groups:
        shown = f"; got such as {unknown[0]}" if unknown else ""
        raise SchemaError(f"no file with a name of the predecessor's crops or patches{shown}")
    sources = [g.source(name, folder, kind) for (name, folder, kind), g in groups.items()]
    _check_once(sources)
    return sorted(sources, key=lambda s: (s.time, s.name))


@functools.lru_cache(maxsize=4096)
def _prefix(home: Path, root: Path) -> str:
    """Folder of a source below the root, with a slash after it; nothing where it is the root, or above it."""
    return f"{home.relative_to(root).as_posix()}/" if home != root and home.is_relative_to(root) else ""


class _Group:
    """What is known of the files of one source while names are read."""

    def __init__(self) -> None:
        self.bytes = self.latest = 0
        self.channels: set[int] = set()
        self.numbers: set[int] = set()
        self.parents: set[Path] = set()
        self.cells = (0, 0)

    def add(self, path: Path, channel: int | None, cell: tuple[int, int] | None, number: int | None) -> None:
        found = path.stat()
        self.parents.add(path.parent)
        self.bytes += found.st_size
        self.latest = max(self.latest, found.st_mtime_ns)
        if channel is not None:
            self.channels.add(channel)
        if number is not None:
            self.numbers.add(number)
        if cell is not None:
            self.cells = max(self.cells[0], cell[0] + 1), max(self.cells[1], cell[1] + 1)

    def source(self, name: str, folder: str, kind: Kind) -> OldSource:
        if kind == "scene" and len(self.parents) == 1:  # crops or patches alone, whatever lies beside them
            folder = str(next(iter(self.parents)))
        return OldSource(
            name, os.path.abspath(folder), kind, self.bytes, self.latest, tuple(sorted(self.channels)), self.cells,
            tuple(sorted(self.numbers)),
        )  # fmt: skip


def _check_once(sources: list[OldSource]) -> None:
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
