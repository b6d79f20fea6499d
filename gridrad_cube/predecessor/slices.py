"""Pixels of the predecessor's files as crops: each channel in its place, what is lost marked as lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gridrad_cube.predecessor import files, names
from gridrad_cube.schema import SchemaError
from gridrad_cube.tiling import assemble

IR, VISIBLE = "ir_brightness_temperature", "visible_reflectance"
#: The predecessor's channels, in the order of its suffixes.
CHANNEL_NAMES = (IR, VISIBLE)
#: Rows and columns of patches in a crop of its earlier version, whose names do not tell them.
EARLY_CELLS = (8, 8)
#: Between the coldest brightness temperature (K) and the brightest reflectance (percent).
WARMEST_REFLECTANCE = 140.0
#: Values beyond this are marks of missing data, not of either channel.
LARGEST_VALUE = 400.0


@dataclass
class OldCrop:
    """A crop as it was kept: per channel (y, x) in the file's units, and which patches are lost, (row, col).

    ``padding`` marks places that never held a patch; ``ordered`` is whether patches lie where they lay in the scene.
    """

    values: dict[str, np.ndarray]
    lost: dict[str, np.ndarray] = field(default_factory=dict)
    padding: np.ndarray | None = None
    ordered: bool = True


def channel_of_values(values: np.ndarray) -> str | None:
    """Which channel a slice is, by its values (kelvin or not); None if it holds none."""
    sample = thinned(values)
    with np.errstate(invalid="ignore"):
        sample = sample[np.abs(sample) < LARGEST_VALUE]
    if not sample.size:
        return None
    return IR if np.median(sample) > WARMEST_REFLECTANCE else VISIBLE


def thinned(values: Any) -> Any:
    """About 32 x 32 pixels of an array or a tensor that is still on disk."""
    step_y, step_x = (max(1, n // 32) for n in values.shape)
    return values[::step_y, ::step_x]


def arrange_crops(kinds: Sequence[str | None]) -> list[dict[str, int]]:
    """Slices of crops, channel after channel, as crops: an infrared slice, and the visible one that follows it.

    A slice without values begins a crop.
    """
    out: list[dict[str, int]] = []
    for number, kind in enumerate(kinds):
        if kind == VISIBLE and out and VISIBLE not in out[-1]:
            out[-1][VISIBLE] = number
        else:
            out.append({kind or IR: number})
    return out


def arrange_patches(kinds: Sequence[str | None]) -> list[dict[str, np.ndarray]] | None:
    """Slices of patches as crops: per channel the number of the slice at each (row, col).

    None if they are not whole crops: of 64 slices of one channel, or 128 whose channels alternate. Then some are
    missing, and which ones cannot be known.
    """
    cells = EARLY_CELLS[0] * EARLY_CELLS[1]
    out = []
    start = 0
    while start < len(kinds):
        order = np.arange(start, start + 2 * cells).reshape(*EARLY_CELLS, 2)
        if _all(kinds[start : start + 2 * cells : 2], IR, cells) and _all(
            kinds[start + 1 : start + 2 * cells : 2], VISIBLE, cells
        ):
            out.append({IR: order[..., 0], VISIBLE: order[..., 1]})
            start += 2 * cells
            continue
        for kind in CHANNEL_NAMES:
            if _all(kinds[start : start + cells], kind, cells):
                out.append({kind: np.arange(start, start + cells).reshape(EARLY_CELLS)})
                start += cells
                break
        else:
            return None
    return out


def _all(kinds: Sequence[str | None], kind: str, count: int) -> bool:
    return len(kinds) == count and all(k in (kind, None) for k in kinds) and any(kinds)


def sheets(kinds: Sequence[str | None]) -> list[dict[str, np.ndarray]]:
    """Patches whose places are not known, 64 of a channel side by side; -1 where there is none."""
    cells = EARLY_CELLS[0] * EARLY_CELLS[1]
    out = []
    for kind in CHANNEL_NAMES:
        of_kind = [n for n, k in enumerate(kinds) if (k or IR) == kind]
        for start in range(0, len(of_kind), cells):
            sheet = np.full(cells, -1)
            part = of_kind[start : start + cells]
            sheet[: len(part)] = part
            out.append({kind: sheet.reshape(EARLY_CELLS)})
    return out


def read_crops(
    kind: str, name: str, path: str, cells: tuple[int, int], patch: int
) -> tuple[int, Iterator[OldCrop]]:
    """The crops of a source: how many, and one after the other.

    Parameters
    ----------
    kind, name, path
        Of a `names.OldSource`.
    cells
        Rows and columns of patches in a crop.
    patch
        Edge of a patch, pixels.

    Raises
    ------
    SchemaError
        If nothing of it can be read, or it is not of this shape.
    """
    if kind in ("npz", "scene", "crop"):
        read = {"npz": _npz, "scene": _scene, "crop": _crop}[kind]
        return 1, (read(name, path, cells, patch) for _ in range(1))
    if kind == "crops":
        return _crop_chunk(path)
    return _patch_chunk(path, patch) if kind == "patches" else _patch_slices(name, path, patch)


def _npz(name: str, path: str, cells: tuple[int, int], patch: int) -> OldCrop:
    crop = files.read_npz(path)
    if len(crop) == 2:
        return OldCrop(dict(zip(CHANNEL_NAMES, crop, strict=True)))
    return OldCrop({channel_of_values(crop[0]) or IR: crop[0]})


def _crop(name: str, path: str, cells: tuple[int, int], patch: int) -> OldCrop:
    values = files.values_of(files.load_tensor(path, 2))
    return OldCrop({channel_of_values(values) or IR: values})


def _scene(name: str, path: str, cells: tuple[int, int], patch: int) -> OldCrop:
    """The channels of a scene: the crop's file where it can be read, else its patches."""
    base = name.rsplit("/", 1)[-1].removesuffix(".pt")
    out = OldCrop({})
    for suffix in range(len(CHANNEL_NAMES)):
        shape = cells[0] * patch, cells[1] * patch
        values, lost = _crop_file(path, names.crop_name(base, suffix), shape), np.zeros(cells, bool)
        if values is None:
            values, lost = _patch_files(path, base, suffix, cells, patch)
        if lost.all():
            continue
        channel = CHANNEL_NAMES[suffix] if suffix else channel_of_values(values) or IR
        out.values[channel], out.lost[channel] = values, lost
    if not out.values:
        raise SchemaError(f"{path}: none of the files of {base} can be read")
    return out


def _beside(path: str, folder: str, name: str) -> str | None:
    """A scene's file: in the folder of its kind (whichever way it is written), or all in one."""
    places = (os.path.join(path, part, name) for part in (folder, folder.capitalize(), ""))
    return next((place for place in places if os.path.exists(place)), None)


def _crop_file(path: str, name: str, shape: tuple[int, int]) -> np.ndarray | None:
    file = _beside(path, "crops", name)
    if file is None:
        return None
    try:
        values = files.values_of(files.load_tensor(file, 2))
    except SchemaError:
        return None  # the patches have the same pixels; what they lack too is marked as lost
    if values.shape != shape:
        raise SchemaError(f"{file}: {values.shape} pixels; expected {shape}, as the first crop has")
    return values


def _patch_files(
    path: str, base: str, suffix: int, cells: tuple[int, int], patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches of a channel put together (y, x), NaN where one is lost; and which are, (row, col)."""
    blocks = np.full((*cells, patch, patch), np.nan, np.float32)
    lost = np.ones(cells, bool)
    for row, col in np.ndindex(*cells):
        file = _beside(path, "patches", names.patch_name(base, row, col, suffix))
        if file is None:
            continue
        try:
            tensor = files.load_tensor(file, 2)
        except SchemaError:
            continue
        if tuple(tensor.shape) == (patch, patch):
            blocks[row, col] = files.values_of(tensor)
            lost[row, col] = False
    return assemble(blocks), lost


def _crop_chunk(path: str) -> tuple[int, Iterator[OldCrop]]:
    tensor = files.load_tensor(path, 3)
    crops = arrange_crops([channel_of_values(files.values_of(thinned(t))) for t in tensor])
    return len(crops), (OldCrop({c: files.values_of(tensor[n]) for c, n in crop.items()}) for crop in crops)


def _patch_chunk(path: str, patch: int) -> tuple[int, Iterator[OldCrop]]:
    tensor = files.load_tensor(path, 3)
    if tuple(tensor.shape[1:]) != (patch, patch):
        raise SchemaError(f"{path}: slices of {tuple(tensor.shape[1:])} pixels; expected {patch} x {patch}")
    kinds = [channel_of_values(files.values_of(thinned(t))) for t in tensor]
    return _put_together(kinds, lambda number: files.values_of(tensor[number]), patch, whole=True)


def _patch_slices(name: str, path: str, patch: int) -> tuple[int, Iterator[OldCrop]]:
    chunk = name.rsplit("/", 1)[-1].removesuffix(".pt")
    form = re.compile(rf"{re.escape(chunk)}_(\d+)\.pt")
    numbers = sorted(int(m[1]) for entry in os.scandir(path) if (m := form.fullmatch(entry.name)))

    def read(number: int) -> np.ndarray | None:
        file = os.path.join(path, names.slice_name(chunk, numbers[number]))
        try:
            tensor = files.load_tensor(file, 2)
        except SchemaError:
            return None
        return files.values_of(tensor) if tuple(tensor.shape) == (patch, patch) else None

    kinds: list[str | None] = []
    complete = numbers[0] in (0, 1) and numbers[-1] - numbers[0] + 1 == len(numbers)
    for number in range(len(numbers)):
        values = read(number)
        complete &= values is not None
        kinds.append(None if values is None else channel_of_values(values))
    return _put_together(kinds, read, patch, whole=complete)


def _put_together(
    kinds: Sequence[str | None], read: Callable[[int], np.ndarray | None], patch: int, *, whole: bool
) -> tuple[int, Iterator[OldCrop]]:
    arranged = arrange_patches(kinds) if whole else None
    layout = sheets(kinds) if arranged is None else arranged

    def crops() -> Iterator[OldCrop]:
        for crop in layout:
            out = OldCrop({}, ordered=arranged is not None)
            for channel, at in crop.items():
                blocks = np.full((*at.shape, patch, patch), np.nan, np.float32)
                out.lost[channel] = np.zeros(at.shape, bool)
                for row, col in np.argwhere(at >= 0):
                    values = read(int(at[row, col]))
                    if values is None:
                        out.lost[channel][row, col] = True
                    else:
                        blocks[row, col] = values
                out.values[channel], out.padding = assemble(blocks), at < 0
            yield out

    return len(layout), crops()
