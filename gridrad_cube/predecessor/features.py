"""The predecessor's embeddings as an embedding store: ``output_features.pt``, or a file for each crop."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from gridrad_cube import store
from gridrad_cube.models import fingerprint, load_backbone
from gridrad_cube.predecessor.arrays import (
    CHANNEL_NAMES,
    EARLY_CELLS,
    check_tensor,
    load_torch,
    values_of,
)
from gridrad_cube.predecessor.names import base_of, time_of
from gridrad_cube.progress import progress_bar
from gridrad_cube.schema import FORMAT_VERSION, PATCH_SIZE, Flag, SchemaError


class _Features:
    """Tensors by name: of one file, or one a file of a folder. All stay on disk until asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._tensors: Mapping[str, Any] = {}
        self._files: dict[str, Path] = {}
        if self.path.is_dir():
            paths = sorted(p for p in self.path.rglob("*.pt") if p.is_file())
            self._files = {p.relative_to(self.path).as_posix(): p for p in paths}
        elif self.path.exists():
            value = load_torch(self.path)
            if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
                raise SchemaError(
                    f"{path}: holds a {type(value).__name__}; expected a dict of embeddings by the names of crops, as "
                    "output_features.pt"
                )
            self._tensors = value
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
        #: Name of each tensor -> the scene and channel in it (no channel in the earlier version).
        self.names: dict[str, tuple[str, int | None]] = {
            name: base_of(name) or (Path(name).stem, None) for name in sorted(self._tensors or self._files)
        }
        if not self.names:
            raise SchemaError(f"{path}: holds no embeddings")
        first = next(iter(self.names))
        value = self._load(first)
        if not isinstance(value, torch.Tensor) or not 1 <= value.ndim <= 3:
            what = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise SchemaError(
                f"{self.path}: {first} is {what}; expected a tensor (cells, features), (rows, columns, features) or "
                "(features,)"
            )
        self.shape = tuple(value.shape)

    def _load(self, name: str) -> Any:
        return self._tensors[name] if self._tensors else load_torch(self._files[name])

    def read(self, name: str) -> np.ndarray:
        """Return one embedding, as it is shaped; all have the shape of the first."""
        path = self._files.get(name, self.path)
        tensor = check_tensor(self._load(name), len(self.shape), path, name)
        if tuple(tensor.shape) != self.shape:
            raise SchemaError(
                f"{self.path}: {name} is {tuple(tensor.shape)}; expected {self.shape}, as the first"
            )
        return values_of(tensor)

    def identity(self) -> str:
        """Hash of what is in it: the checksums that torch put beside every tensor."""
        digest = hashlib.sha256()
        for path in self._files.values() if self._files else [self.path]:
            with zipfile.ZipFile(path) as archive:
                digest.update("".join(f"{m.file_size} {m.CRC}\n" for m in archive.infolist()).encode())
        return digest.hexdigest()[:32]

    def cells(self, grid: tuple[int, int] | None, info: Mapping[str, Any]) -> tuple[int, int]:
        """Return the rows and columns of the grid of a crop."""
        if len(self.shape) == 3:
            return self.shape[0], self.shape[1]
        if grid is None and info:
            grid = (info["crop"][0] // info["patch"], info["crop"][1] // info["patch"])
        if len(self.shape) == 1:
            return grid or EARLY_CELLS
        edge = math.isqrt(self.shape[0])
        rows, cols = grid or (edge, edge)
        if rows * cols != self.shape[0]:
            raise SchemaError(
                f"{self.path}: embeddings of {self.shape[0]} patches; got a grid of {rows} x {cols}. Pass `grid`"
            )
        return rows, cols


def from_features(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    cube: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    channels: Sequence[str] = CHANNEL_NAMES,
    grid: tuple[int, int] | None = None,
    dtype: Literal["float16", "float32"] = "float32",
    progress: bool | None = None,
) -> dict[str, Any]:
    """Write the predecessor's embeddings as an embedding store, of level 256 or 2k as their shape says.

    A block of crops at a time; an interrupted run resumes.

    Parameters
    ----------
    path
        ``output_features.pt`` (or ``_2k``), or a folder of one file for each crop, as the second level was fed.
    out
        Path or URL of the embedding store.
    cube
        The cube of the same crops: its rows, coordinates and flags are taken, crops matched by the name of their
        scene. Without it positions are not known, and times only where names contain them.
    checkpoint
        The network that made them, so that the store says so.
    channels
        What the suffixes 0, 1, ... of the names stand for.
    grid
        Rows and columns of patches in a crop, where they are not equal.
    dtype
        Of the stored embeddings.
    progress
        Whether to show progress bars on stderr; None shows them in a terminal and in a notebook.

    Returns
    -------
    JSON types: ``out``, ``level``, ``crops``, ``channels``, ``features``, ``embedded`` (tensors written),
    ``unmatched`` (names that the cube has no crop for).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SchemaError
        If it holds something else, a channel cannot be identified, or no name is one of the cube's.
    """
    features = _Features(path)
    dataset = None if cube is None else store.open_packed(cube)
    info = {} if cube is None else store.store_info(cube, "patches")
    cells, known = features.cells(grid, info), list(info.get("channels") or channels)
    if dataset is not None:
        scenes = [str(s) for s in dataset["scene"].values]
    else:
        scenes = sorted({scene for scene, _ in features.names.values()}, key=lambda s: (time_of(s), s))
    table, unmatched = _match(features, scenes, dataset, known)
    used = [c for c in known if any(c == channel for _, channel in table)]
    level = "2k" if len(features.shape) == 1 else "256"
    shape = (len(used), *(cells if level == "256" else ()), features.shape[-1])
    identity = features.identity()
    network = f"unknown:{identity}"
    if checkpoint is not None:
        network = fingerprint(load_backbone(checkpoint).state_dict())
    request: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "level": level, "key": "teacher", "pool": "class", "dtype": dtype,
        "checkpoint": network, "channels": used, "patch": info.get("patch", PATCH_SIZE),
        "crop": info.get("crop", [n * PATCH_SIZE for n in cells]), "stride": info.get("patch", PATCH_SIZE),
        "coarsen": 1, "magnification": 1.0, "normalization": None, "source_checkpoint": None,
        "converted_from": identity, "source_identity": info.get("identity"),
    }  # fmt: skip
    writer = store.EmbeddingWriter(out, request, crops=len(scenes), shape=shape)
    with writer.lease() as held:
        writer.begin(resume=True)
        records = {}
        blocks = list(enumerate(writer.blocks))
        with progress_bar("convert", blocks, total=len(blocks), unit="block", progress=progress) as bar:
            for number, rows in bar:
                record = writer.record(number)
                if record is None or record["rows"] != len(rows) or not writer.is_whole(record):
                    vectors = np.full((len(rows), *shape), np.nan, np.float32)
                    for i, j in np.ndindex(len(rows), len(used)):
                        if (key := (rows[i], used[j])) in table:
                            vectors[i, j] = features.read(table[key]).reshape(shape[1:])
                    record = writer.write(number, vectors, {"content": identity})
                records[number] = record

        def small(rows: range) -> dict[str, np.ndarray]:
            if dataset is not None:
                return _of_cube(dataset, rows, used)
            missing = np.array([[(row, channel) not in table for channel in used] for row in rows])
            return _of_names(scenes[rows.start : rows.stop], missing, cells)

        about = {
            "channels": {c: [c] for c in used}, "channel_mode": "each", "features": features.shape[-1],
            "checkpoint_file": None if checkpoint is None else Path(checkpoint).name, "view": {},
            "source": None if cube is None else os.path.basename(os.fspath(cube)), "thresholds": info.get("thresholds"),
            "software": {"gridrad-cube": importlib.metadata.version("gridrad-cube")},
        }  # fmt: skip
        event = f"gridrad-cube convert: {len(table)} embeddings from {Path(path).name}"
        held.check()
        writer.finish(records, small, about, event=event)
    return {
        "out": writer.files.root, "level": level, "crops": len(scenes), "channels": used,
        "features": features.shape[-1], "embedded": len(table), "unmatched": unmatched,
    }  # fmt: skip


def _match(
    features: _Features, scenes: Sequence[str], dataset: xr.Dataset | None, channels: Sequence[str]
) -> tuple[dict[tuple[int, str], str], list[str]]:
    """Return the name of the tensor at each (row, channel), and names that have no row."""
    counts = Counter(scenes)
    rows = {scene: row for row, scene in enumerate(scenes) if counts[scene] == 1}
    table: dict[tuple[int, str], str] = {}
    unmatched = []
    for name, (scene, number) in features.names.items():
        row = rows.get(scene)
        if row is None:
            unmatched.append(name)
            continue
        present = list(channels)
        if dataset is not None:
            flags = {c: dataset[f"{c}_flags"][row].values for c in channels}
            present = [c for c in channels if not (flags[c] & int(Flag.channel_absent)).all()]
        channel = _channel(features.path, name, number, channels, present, alone=dataset is not None)
        if (row, channel) in table:
            raise SchemaError(
                f"{features.path}: {name} and {table[row, channel]} are the same crop and channel"
            )
        table[row, channel] = name
    if not table:
        raise SchemaError(
            f"{features.path}: none of its names, such as {next(iter(features.names))}, is a scene of the cube, such "
            f"as {scenes[0] if scenes else 'none'}. Pass the cube that was made from the same crops."
        )
    return table, unmatched


def _channel(
    path: Path, name: str, number: int | None, channels: Sequence[str], present: Sequence[str], *, alone: bool
) -> str:
    """Return the channel of a tensor: by its name, or the one that the crop has."""
    if number is None or (alone and len(present) == 1):
        if len(present) != 1:
            raise SchemaError(
                f"{path}: the name {name} does not contain the channel. Pass `cube` with the cube of the same crops, "
                "or `channels` if all are of one."
            )
        return present[0]
    if number >= len(channels):
        raise SchemaError(f"{path}: {name} is of channel {number}; got names for {len(channels)}")
    return channels[number]


def _of_cube(dataset: xr.Dataset, rows: range, channels: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the coordinates, flags and fractions of some rows of the cube."""
    block = dataset.isel(crop=slice(rows.start, rows.stop))
    out = {n: block[n].values for n in store.COORDINATES if n in block.variables}
    for name in ("flags", "valid_fraction"):
        out[name] = np.stack([block[f"{c}_{name}"].values for c in channels], axis=1)
    return out


def _of_names(scenes: Sequence[str], missing: np.ndarray, cells: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the coordinates and flags of crops of which only the name is known; ``missing`` channels by
    (crop, channel).
    """
    count = len(scenes)
    absent = np.where(missing, np.uint16(Flag.channel_absent), np.uint16(0))
    return {
        "time": np.array([time_of(s) for s in scenes], np.int64),
        "status": np.zeros(count, np.uint8),
        "latitude": np.full((count, *cells), np.nan),
        "longitude": np.full((count, *cells), np.nan),
        "y_origin": np.zeros(count, np.int32),
        "x_origin": np.zeros(count, np.int32),
        "grid": np.array(["unknown"] * count, object),
        "scene": np.array(scenes, object),
        "source": np.array([f"{s}.pt" for s in scenes], object),
        "flags": np.broadcast_to(absent[:, :, None, None], (*missing.shape, *cells)).copy(),
    }
