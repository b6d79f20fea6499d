"""A cube as the predecessor's files: ``.npz`` a crop, or ``.pt`` a crop and a patch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from gridrad_cube import store, tiling
from gridrad_cube.predecessor import files, names
from gridrad_cube.predecessor.features import scene_names
from gridrad_cube.predecessor.slices import VISIBLE
from gridrad_cube.schema import Flag, Packing, reject_mask
from gridrad_cube.selection import Label, choose_labels, labels_of

#: Patches with one of these bits hold no pixel.
_NOTHING = int(Flag.all_missing | Flag.channel_absent | Flag.unreadable | Flag.padding)


def to_npz(
    cube: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    channels: Sequence[str] | None = None,
    visible_units: Literal["percent", "1"] = "percent",
    fill: float = float("nan"),
    progress: bool = False,
) -> dict[str, Any]:
    """Write a cube as ``SCENE.npz`` with ``crop (channel, y, x)`` and ``patches (row, col, channel, y, x)``, float32.

    A channel that a crop lacks is left out, as it was there. Files that are there already are kept.

    Parameters
    ----------
    channels
        Of the cube, in the order wanted; all by default.
    fill
        What stands for pixels without a value. The predecessor has no mask: it learns from this number.

    Returns
    -------
    JSON types: ``out``, ``written``, ``kept``, ``crops`` without any of the channels.
    """
    target = _folder(out)
    patch = int(store.cube_info(cube)["patch"])
    counts = {"written": 0, "kept": 0, "empty": 0}
    for base, crop in _crops(cube, channels, visible_units, fill, progress):
        path = target / f"{base}.npz"
        if path.exists():
            counts["kept"] += 1
            continue
        planes = [values for _, values, _ in crop if values.size]
        if not planes:
            counts["empty"] += 1
            continue
        stacked = np.stack(planes)
        blocks = np.ascontiguousarray(np.moveaxis(tiling.patches(stacked, patch), 0, 2))
        part = path.with_name(f".{base}.{os.getpid()}.tmp.npz")
        try:
            np.savez_compressed(part, crop=stacked, patches=blocks)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        counts["written"] += 1
    return {"out": str(target), **counts}


def to_pt(
    cube: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    channels: Sequence[str] | None = None,
    what: Literal["both", "crops", "patches"] = "both",
    clean: bool = False,
    visible_units: Literal["percent", "1"] = "percent",
    fill: float = float("nan"),
    progress: bool = False,
) -> dict[str, Any]:
    """Write a cube as ``crops/SCENE_crop_C.pt`` and ``patches/SCENE_patch_I_J_C.pt``, float32.

    Each file is no larger than its pixels. C is the place of the channel in ``channels``. Patches without a pixel
    get no file. Files that are there already
    are kept.

    Parameters
    ----------
    what
        Which of the two folders.
    clean
        Leave out patches with a flag that rejects by default, as the predecessor's filter deleted them.

    Other parameters as for `to_npz`.

    Returns
    -------
    JSON types: ``out``, ``crops`` and ``patches`` written, ``kept``, ``left_out`` (patches).
    """
    target = _folder(out)
    patch = int(store.cube_info(cube)["patch"])
    counts = {"crops": 0, "patches": 0, "kept": 0, "left_out": 0}

    def save(values: np.ndarray, folder: str, name: str) -> None:
        path = target / folder / name
        if path.exists():
            counts["kept"] += 1
            return
        files.save(torch.from_numpy(values.copy()), path)
        counts[folder] += 1

    for folder in ("crops", "patches"):
        if what in ("both", folder):
            (target / folder).mkdir(exist_ok=True)
    for base, crop in _crops(cube, channels, visible_units, fill, progress):
        for number, (label, values, flags) in enumerate(crop):
            if not values.size:
                continue
            if what != "patches":
                save(values, "crops", names.crop_name(base, number))
            if what == "crops":
                continue
            rejected = (flags & (_NOTHING | (reject_mask(None, label.kind) if clean else 0))) != 0
            blocks = tiling.patches(values, patch)
            for row, col in np.ndindex(flags.shape):
                if rejected[row, col]:
                    counts["left_out"] += 1
                else:
                    save(blocks[row, col], "patches", names.patch_name(base, row, col, number))
    return {"out": str(target), **counts}


def _folder(out: str | os.PathLike[str]) -> Path:
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    return target


_Plane = tuple[Label, np.ndarray, np.ndarray]


def _crops(
    cube: str | os.PathLike[str],
    channels: Sequence[str] | None,
    visible_units: str,
    fill: float,
    progress: bool,
) -> Iterator[tuple[str, list[_Plane]]]:
    """Written crops by the name of their file: label, values (y, x) and flags (row, col) of every channel.

    A channel that the crop lacks has no values.
    """
    dataset = store.open_packed(cube)
    labels = choose_labels(
        labels_of(dataset, list(store.cube_info(cube)["channels"])), channels or None, os.fspath(cube)
    )
    bases = scene_names([str(s) for s in dataset["scene"].values])
    status = dataset["status"].values
    for row in tqdm(range(dataset.sizes["crop"]), "convert", unit="crop", disable=not progress):
        if status[row] != store.STATUS["written"]:
            continue
        one = dataset.isel(crop=row)
        yield bases[row], [_plane(one, label, visible_units, fill) for label in labels]


def _plane(one: xr.Dataset, label: Label, visible_units: str, fill: float) -> _Plane:
    at = {} if label.altitude is None else {"altitude": label.altitude}
    flags = one[f"{label.variable}_flags"].isel(at).values
    if (flags & int(Flag.channel_absent)).all():
        return label, np.empty((0, 0), np.float32), flags
    array = one[label.variable].isel(at)
    packing = Packing.from_attributes(array.attrs, array.dtype)
    codes = array.values
    # In float64, so that the one rounding is to the nearest float32: what the old file held.
    values = codes * packing.scale_factor + packing.add_offset
    if label.variable == VISIBLE and visible_units == "percent":
        values *= 100.0
    values[~packing.observed(codes)] = fill
    return label, values.astype(np.float32), flags
