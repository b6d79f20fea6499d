"""The predecessor's embeddings as an embedding store, and back: ``output_features.pt``, or a file a crop."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from gridrad_cube import store
from gridrad_cube.embedding.output import Output, Small, row_groups
from gridrad_cube.models import fingerprint, load_backbone
from gridrad_cube.predecessor import files, names
from gridrad_cube.predecessor.slices import CHANNEL_NAMES, EARLY_CELLS
from gridrad_cube.readers.times import parse_stamp
from gridrad_cube.schema import FORMAT_VERSION, PATCH_SIZE, TIME_FILL, Flag, SchemaError

#: Coordinates of crops of which only the name is known.
_UNTOLD = ("time", "status", "latitude", "longitude", "y_origin", "x_origin", "grid", "scene", "source")


@dataclass(frozen=True)
class _Key:
    """A tensor of the file: its name, the scene and channel that it tells (no channel in the earlier version)."""

    name: str
    scene: str
    channel: int | None

    @classmethod
    def of(cls, name: str) -> _Key:
        found = names.base_of(name)
        stem = name.rsplit("/", 1)[-1].removesuffix(".pt")
        return cls(name, *(found or (stem, None)))


class _Features:
    """Tensors by name: of one file, or one a file of a folder. All stay on disk until asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            paths = sorted(p for p in self.path.rglob("*.pt") if p.is_file())
            self._files = {p.relative_to(self.path).as_posix(): p for p in paths}
            self._tensors: Mapping[str, Any] = {}
        elif self.path.exists():
            value = files.load_torch(self.path)
            if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
                raise SchemaError(
                    f"{path}: holds a {type(value).__name__}; expected a dict of embeddings by the names of crops, as "
                    "output_features.pt"
                )
            self._tensors, self._files = value, {}
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
        self.keys = [_Key.of(name) for name in sorted(self._tensors or self._files)]
        if not self.keys:
            raise SchemaError(f"{path}: holds no embeddings")
        self.shape = self._shape(self.keys[0].name)

    def _shape(self, name: str) -> tuple[int, ...]:
        value = self._tensors[name] if self._tensors else files.load_torch(self._files[name])
        if not isinstance(value, torch.Tensor) or not 1 <= value.ndim <= 3:
            what = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise SchemaError(
                f"{self.path}: {name} is {what}; expected a tensor (cells, features), (rows, columns, features) or "
                "(features,)"
            )
        return tuple(value.shape)

    def read(self, name: str) -> np.ndarray:
        """One embedding, as it is shaped; all have the shape of the first."""
        if self._tensors:
            tensor = files.check_tensor(self._tensors[name], len(self.shape), self.path, name)
        else:
            tensor = files.load_tensor(self._files[name], len(self.shape))
        if tuple(tensor.shape) != self.shape:
            raise SchemaError(
                f"{self.path}: {name} is {tuple(tensor.shape)}; expected {self.shape}, as the first"
            )
        return files.values_of(tensor)

    def identity(self) -> str:
        """Hash of what is in it: the checksums that torch put beside every tensor."""
        digest = hashlib.sha256()
        for path in self._files.values() if self._files else [self.path]:
            with zipfile.ZipFile(path) as archive:
                digest.update("".join(f"{m.file_size} {m.CRC}\n" for m in archive.infolist()).encode())
        return digest.hexdigest()[:32]


def from_features(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    cube: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    channels: Sequence[str] = CHANNEL_NAMES,
    grid: tuple[int, int] | None = None,
    dtype: Literal["float16", "float32"] = "float32",
    progress: bool = False,
) -> dict[str, Any]:
    """Write the predecessor's embeddings as an embedding store, of level 256 or 2k as their shape says.

    A block of crops at a time; an interrupted run goes on.

    Parameters
    ----------
    path
        ``output_features.pt`` (or ``_2k``), or a folder of one file a crop, as the second level was fed.
    cube
        The cube of the same crops: its rows, coordinates and flags are taken, crops matched by the name of their
        scene. Without it places are not known, and times only where names tell them.
    checkpoint
        The network that made them, so that the store says so.
    channels
        What the suffixes 0, 1, ... of the names stand for.
    grid
        Rows and columns of patches in a crop, where they are not as many.

    Returns
    -------
    JSON types: ``out``, ``level``, ``crops``, ``channels``, ``features``, ``embedded`` (tensors written),
    ``unmatched`` (names that the cube has no crop for).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SchemaError
        If it holds something else, a channel cannot be told, or no name is one of the cube's.
    """
    features = _Features(path)
    level = "2k" if len(features.shape) == 1 else "256"
    dataset = None if cube is None else store.open_packed(cube)
    info = {} if cube is None else store.cube_info(cube)
    cells = _cells(features, grid, info)
    names_of = [c for c in (info.get("channels") or channels)]
    table, unmatched = _match(features, dataset, names_of)
    used = [c for c in names_of if any(c == channel for _, channel in table)]
    scenes = _scenes(features, dataset)
    shape = (len(used), *cells, features.shape[-1]) if level == "256" else (len(used), features.shape[-1])
    dims = ("channel", "row", "col", "feature") if level == "256" else ("channel", "feature")
    output = Output(out, level=level, crops=len(scenes), dims=dims, shape=shape, dtype=dtype)
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
    output.begin(request, resume=True)
    records = {}
    for number, rows in tqdm(list(enumerate(output.blocks)), "convert", unit="block", disable=not progress):
        record = output.record(number)
        if record is None or record["rows"] != len(rows):
            vectors = np.full((len(rows), *shape), np.nan, np.float32)
            for i, row in enumerate(rows):
                for j, channel in enumerate(used):
                    if (row, channel) in table:
                        vectors[i, j] = features.read(table[row, channel]).reshape(shape[1:])
            record = output.write(
                number, vectors, {"first": rows.start, "rows": len(rows), "content": identity}
            )
        records[number] = record
    ours = {
        **request, "kind": "embeddings", "channels": {c: [c] for c in used}, "channel_mode": "each",
        "features": features.shape[-1], "checkpoint_file": None if checkpoint is None else Path(checkpoint).name,
        "view": {}, "source": None if cube is None else os.path.basename(os.fspath(cube)),
        "thresholds": info.get("thresholds"), "software": {"gridrad-cube": importlib.metadata.version("gridrad-cube")},
        "identity": output.identity(request, records),
    }  # fmt: skip
    stamp = np.datetime_as_string(np.datetime64("now", "s"), timezone="UTC")
    labels = {
        "channel": np.array(used, object),
        "variable": np.array(used, object),
        "altitude_km": np.full(len(used), np.nan),
    }
    small = _Small(dataset, scenes, used, cells, table)
    output.commit(
        labels,
        row_groups(len(scenes), small.of),
        {
            "Conventions": "CF-1.11",
            "title": f"Embeddings of level {level} of gridded radar and satellite fields",
            "history": f"{stamp} gridrad-cube convert: {len(table)} embeddings from {Path(path).name}",
            "gridrad_cube": ours,
        },
    )
    return {
        "out": output.files.root, "level": level, "crops": len(scenes), "channels": used,
        "features": features.shape[-1], "embedded": len(table), "unmatched": unmatched,
    }  # fmt: skip


def _cells(features: _Features, grid: tuple[int, int] | None, info: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the grid."""
    shape = features.shape
    if len(shape) == 3:
        return shape[0], shape[1]
    if grid is None and info:
        grid = (info["crop"][0] // info["patch"], info["crop"][1] // info["patch"])
    if len(shape) == 1:
        return grid or EARLY_CELLS
    edge = math.isqrt(shape[0])
    rows, cols = grid or (edge, edge)
    if rows * cols != shape[0]:
        raise SchemaError(
            f"{features.path}: embeddings of {shape[0]} patches; got a grid of {rows} x {cols}. Pass --grid"
        )
    return rows, cols


def _scenes(features: _Features, dataset: xr.Dataset | None) -> list[str]:
    """Name of the scene of every row."""
    if dataset is not None:
        return [str(s) for s in dataset["scene"].values]
    return sorted({key.scene for key in features.keys}, key=lambda scene: (_time(scene), scene))


def _time(scene: str) -> int:
    found = parse_stamp(scene)
    return TIME_FILL if found is None else int(found.astype(np.int64))


def _match(
    features: _Features, dataset: xr.Dataset | None, channels: Sequence[str]
) -> tuple[dict[tuple[int, str], str], list[str]]:
    """Name of the tensor at each (row, channel), and names that have no row."""
    scenes = _scenes(features, dataset)
    rows = {name: row for row, name in enumerate(scene_names(scenes))}
    table: dict[tuple[int, str], str] = {}
    unmatched = []
    for key in features.keys:
        row = rows.get(key.scene)
        if row is None:
            unmatched.append(key.name)
            continue
        channel = _channel(key, row, dataset, channels, features)
        if (row, channel) in table:
            raise SchemaError(
                f"{features.path}: {key.name} and {table[row, channel]} are the same crop and channel"
            )
        table[row, channel] = key.name
    if not table:
        raise SchemaError(
            f"{features.path}: none of its names, such as {features.keys[0].name}, is a scene of the cube, such as "
            f"{scenes[0] if scenes else 'none'}. Pass the cube that was made from the same crops."
        )
    return table, unmatched


def _channel(
    key: _Key, row: int, dataset: xr.Dataset | None, channels: Sequence[str], features: _Features
) -> str:
    present = list(channels)
    if dataset is not None:
        absent = int(Flag.channel_absent)
        present = [c for c in channels if not (dataset[f"{c}_flags"][row].values & absent).all()]
    if key.channel is None or (dataset is not None and len(present) == 1):
        if len(present) != 1:
            raise SchemaError(
                f"{features.path}: the name {key.name} does not tell the channel. Pass --cube with the cube of the "
                "same crops, or --channel if all are of one."
            )
        return present[0]
    if key.channel >= len(channels):
        raise SchemaError(
            f"{features.path}: {key.name} is of channel {key.channel}; got names for {len(channels)}"
        )
    return channels[key.channel]


@dataclass(frozen=True)
class _Small:
    """Small arrays of rows: the cube's, or what names tell."""

    dataset: xr.Dataset | None
    scenes: Sequence[str]
    channels: Sequence[str]
    cells: tuple[int, int]
    table: Mapping[tuple[int, str], str]

    def of(self, rows: range) -> Small:
        """Coordinates and flags of these rows."""
        if self.dataset is not None:
            block = self.dataset.isel(crop=slice(rows.start, rows.stop))
            out = {n: _stored(block[n].values) for n in store.COORDINATES if n in block.variables}
            for name in ("flags", "valid_fraction"):
                out[name] = np.stack([block[f"{c}_{name}"].values for c in self.channels], axis=1)
            return out
        scenes = self.scenes[rows.start : rows.stop]
        count = len(scenes)
        values: dict[str, Any] = {
            "time": np.array([_time(s) for s in scenes], np.int64),
            "grid": np.array(["unknown"] * count, object),
            "scene": np.array(scenes, object),
            "source": np.array([f"{s}.pt" for s in scenes], object),
            "status": np.zeros(count, np.uint8),
        }
        for name in _UNTOLD:
            if name not in values:
                integer = store.COORDINATES[name][1].startswith("int")
                values[name] = np.zeros(count, np.int32) if integer else np.full((count, *self.cells), np.nan)
        flags = np.zeros((count, len(self.channels), *self.cells), np.uint16)
        for i, row in enumerate(rows):
            for j, channel in enumerate(self.channels):
                if (row, channel) not in self.table:
                    flags[i, j] = int(Flag.channel_absent)
        return {n: values[n] for n in _UNTOLD} | {"flags": flags}


def _stored(values: np.ndarray) -> np.ndarray:
    return values.astype("datetime64[s]").astype(np.int64) if values.dtype.kind == "M" else values


def to_features(
    embeddings: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fill: float | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write an embedding store as the predecessor has it: ``(rows * columns, features)``, or ``(features,)`` at 2k.

    Names are ``SCENE_crop_C.pt``, C the place of the channel in the store; a scene with several crops has the number
    of the row after its name.

    Parameters
    ----------
    out
        A file (``.pt``): one dict, which is in memory as a whole, as it was there; or a folder: one file a crop.
    fill
        What stands for cells without an embedding. None leaves such crops out: the predecessor cannot mask them.

    Returns
    -------
    JSON types: ``out``, ``written``, ``left_out`` (crops and channels with a cell that has no embedding).
    """
    dataset = store.open_embeddings(embeddings)
    target = Path(out)
    if target.exists():
        raise SchemaError(f"{out}: there is something here already; give a new path")
    whole = target.suffix == ".pt"
    channels = [str(c) for c in dataset["channel"].values]
    bases = scene_names([str(s) for s in dataset["scene"].values])
    tensors: dict[str, torch.Tensor] = {}
    written = left_out = 0
    if not whole:
        target.mkdir(parents=True)
    for row in tqdm(range(dataset.sizes["crop"]), "convert", unit="crop", disable=not progress):
        if int(dataset["status"][row]) != store.STATUS["written"]:
            continue
        vectors = dataset["embedding"][row].values.astype(np.float32)
        for number, values in enumerate(vectors):
            missing = np.isnan(values)
            if missing.all() or (missing.any() and fill is None):
                left_out += 1
                continue
            values = np.where(missing, np.float32(fill or 0.0), values).reshape(-1, values.shape[-1])
            tensor = torch.from_numpy(values if "row" in dataset["embedding"].dims else values[0])
            written += 1
            name = names.crop_name(bases[row], number)
            if whole:
                tensors[name] = tensor
            else:
                files.save(tensor, target / name)
    if whole:
        files.save(tensors, target)
    return {"out": str(out), "channels": channels, "written": written, "left_out": left_out}


def scene_names(scenes: Sequence[str]) -> list[str]:
    """A name of a file for every row, safe to be one: that of its scene, with the row's number where it is not alone.

    Raises
    ------
    SchemaError
        If a scene has a name that is none.
    """
    counts: dict[str, int] = {}
    for scene in scenes:
        if not scene or scene.startswith(".") or "/" in scene or "\\" in scene or "\0" in scene:
            raise SchemaError(f"scene {scene!r}: not a name for a file")
        counts[scene] = counts.get(scene, 0) + 1
    return [s if counts[s] == 1 else f"{s}_{row:06d}" for row, s in enumerate(scenes)]
