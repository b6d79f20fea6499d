"""The predecessor's ``.npz`` and ``.pt`` files as crops, each channel in its place, what is lost marked as lost.

The files are not trusted: no code in them runs, and nothing grows beyond the size of its file.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gridrad_cube.schema import SchemaError
from gridrad_cube.tiling import assemble

IR, VISIBLE = "ir_brightness_temperature", "visible_reflectance"
#: The predecessor's channels, in the order of its suffixes.
CHANNEL_NAMES = (IR, VISIBLE)
#: Rows and columns of patches in a crop of its earlier version, whose names do not contain them.
EARLY_CELLS = (8, 8)

#: Between the coldest brightness temperature (K) and the brightest reflectance (percent).
_WARMEST_REFLECTANCE = 140.0
#: Values beyond this are marks of missing data, not of either channel.
_LARGEST_VALUE = 400.0
#: The longest edge of a crop that is read, pixels.
_LARGEST_EDGE = 16384
#: The largest pickle in a torch file: names and shapes alone, about 200 bytes a tensor.
_LARGEST_PICKLE = 2**30
#: What readers of zip archives and of pickles raise when a file is damaged.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError,
    TypeError, AttributeError, AssertionError, OverflowError, NotImplementedError,
)  # fmt: skip

# Files


def _damaged(path: str | os.PathLike[str], error: object) -> SchemaError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return SchemaError(f"{path}: truncated or damaged ({reason:.120})")


def _open_zip(path: str | os.PathLike[str], what: str) -> zipfile.ZipFile:
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise SchemaError(f"{path}: a Git LFS pointer, not the file itself. Run `git lfs pull`.")
    if not head.startswith(b"PK"):
        raise SchemaError(f"{path}: begins with {head[:8]!r}; expected {what}")
    try:
        return zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Open what ``torch.save`` wrote: tensors stay on disk until they are used.

    A file that holds one slice of a large tensor has the whole of it inside; only what is used is read. Refuses other
    and damaged files, and what holds anything but tensors and plain Python.
    """
    with _open_zip(path, "a file that torch.save of torch 1.6 or later wrote") as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise SchemaError(f"{path}: compressed inside, which torch.save never does; refused")
            if member.filename.endswith("data.pkl") and member.file_size > _LARGEST_PICKLE:
                raise SchemaError(f"{path}: a pickle of {member.file_size} bytes in it; refused")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGE as error:
        if "GLOBAL" in str(error) or "Unsupported" in str(error):
            raise SchemaError(
                f"{path}: holds objects that a safe load refuses; expected tensors, and dicts of them by name"
            ) from error
        raise _damaged(path, error) from error


def _load_tensor(path: str | os.PathLike[str], dimensions: int) -> Tensor:
    """Return a tensor of numbers with this many dimensions, still on disk."""
    return check_tensor(load_torch(path), dimensions, path)


def check_tensor(value: Any, dimensions: int, path: str | os.PathLike[str], name: str = "") -> Tensor:
    """Return ``value`` if it is a dense tensor of numbers that is no larger than its file."""
    where = f"{path}: {name}" if name else f"{path}"
    if not isinstance(value, Tensor):
        what = f"a {type(value).__name__}"
        hint = ". Embeddings: gridrad-cube convert from-features" if isinstance(value, dict) else ""
        raise SchemaError(f"{where}: holds {what}, not a tensor{hint}")
    if value.ndim != dimensions or value.layout != torch.strided or value.is_complex():
        raise SchemaError(
            f"{where}: holds a tensor {tuple(value.shape)} of {value.dtype}; expected {dimensions} dimensions"
        )
    if value.nbytes > os.path.getsize(path):  # a view that repeats its values
        raise SchemaError(
            f"{where}: a tensor {tuple(value.shape)} larger than its file of {os.path.getsize(path)} bytes; refused"
        )
    return value


def values_of(tensor: Tensor) -> np.ndarray:
    """Return a copy in memory, float32 (or float64 as it was), without the memory that the tensor was a view of."""
    copy = tensor.detach().clone()
    return np.asarray((copy if copy.dtype in (torch.float32, torch.float64) else copy.float()).numpy())


def _npz_header(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], int | None]:
    """Return the channels, height and width of the crop of an ``.npz``, and the edge of its patches, from
    headers alone.

    Refuses another file, one without a crop, and one that declares what it cannot hold.
    """
    with _open_zip(path, "an .npz file") as archive:
        names = archive.namelist()
        if "crop.npy" not in names:
            shown = [n.removesuffix(".npy") for n in names][:10]
            raise SchemaError(f"{path}: has {shown}; expected 'crop' and 'patches'")
        try:
            shape, dtype, size = _npy_header(archive, "crop.npy", path)
            patches = _npy_header(archive, "patches.npy", path)[0] if "patches.npy" in names else ()
        except (*_DAMAGE, OSError) as error:
            raise _damaged(path, error) from error
    if len(shape) != 3 or not 1 <= shape[0] <= 2 or max(shape) > _LARGEST_EDGE or dtype.kind not in "fiu":
        raise SchemaError(
            f"{path}: its crop is {shape} of {dtype}; expected (1 or 2 channels, height, width) of numbers, edges "
            f"up to {_LARGEST_EDGE}"
        )
    if size != int(np.prod(shape)) * dtype.itemsize:
        raise SchemaError(f"{path}: its crop declares {shape} of {dtype}, but has {size} bytes")
    return (shape[0], shape[1], shape[2]), int(patches[-1]) if len(patches) == 5 and patches[-1] else None


def _npy_header(
    archive: zipfile.ZipFile, name: str, path: str | os.PathLike[str]
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape and dtype of an array of an archive, and the bytes of its values."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with archive.open(name) as file:
        read = readers.get(npy.read_magic(file))
        if read is None:
            raise SchemaError(f"{path}: {name} has an array format other than 1.0 and 2.0")
        shape, _, dtype = read(file)
        return shape, dtype, archive.getinfo(name).file_size - file.tell()


def _read_npz(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the crop of an ``.npz``, (channel, y, x); its patches are the same pixels again."""
    _npz_header(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["crop"])
    except (*_DAMAGE, OSError) as error:
        raise _damaged(path, error) from error


# Crops


@dataclass
class OldCrop:
    """A crop as it was kept: per channel (y, x) in the file's units, and which patches are lost, (row, col).

    ``padding`` marks cells that never held a patch.
    """

    values: dict[str, np.ndarray]
    lost: dict[str, np.ndarray] = field(default_factory=dict)
    padding: np.ndarray | None = None


@dataclass
class OldCrops:
    """The crops of a source: what headers and names say of them, and an iterator over the crops.

    ``shape`` (pixels) and ``patch`` are None where these do not say; ``ordered`` is whether the positions of patches
    in the crop are known.
    """

    count: int
    channels: tuple[str, ...]
    shape: tuple[int, int] | None
    patch: int | None
    crops: Iterator[OldCrop]
    ordered: bool = True


def open_crops(kind: str, name: str, path: str, cells: tuple[int, int], patch: int | None) -> OldCrops:
    """Open an `OldSource` by its kind, name and path; pixels are read when the crops are taken.

    ``cells`` are the rows and columns of patches in a crop of scenes, ``patch`` the edge of a patch in pixels (None
    takes that of the files). Refuses a source of which nothing can be read.
    """
    if kind == "scene":
        return _open_scene(path, name.rsplit("/", 1)[-1].removesuffix(".pt"), cells, patch)
    if kind == "npz":
        shape, edge = _npz_header(path)
        channels: tuple[str, ...] = CHANNEL_NAMES
        if shape[0] == 1:
            channels = (_channel_of_values(_read_npz(path)[0]) or IR,)
        crops = (OldCrop(dict(zip(channels, _read_npz(path), strict=True))) for _ in range(1))
        return OldCrops(1, channels, shape[1:], edge, crops)
    if kind in ("crop", "crops"):
        tensor = _load_tensor(path, 2 if kind == "crop" else 3)
        slices = tensor[None] if kind == "crop" else tensor
        layout = _arrange_crops([_channel_of(t) for t in slices])
        channels = tuple({channel: None for crop in layout for channel in crop})
        crops = (OldCrop({c: values_of(slices[n]) for c, n in crop.items()}) for crop in layout)
        return OldCrops(len(layout), channels, (slices.shape[1], slices.shape[2]), None, crops)
    return _open_patches(path, patch) if kind == "patches" else _open_slices(name, path, patch)


def _channel_of_values(values: np.ndarray) -> str | None:
    """Return which channel a slice is, by its values (kelvin or not); None if it has no values."""
    known = values[np.abs(values) < _LARGEST_VALUE]
    if not known.size:
        return None
    return IR if np.median(known) > _WARMEST_REFLECTANCE else VISIBLE


def _channel_of(tensor: Tensor) -> str | None:
    """Return which channel a slice on disk is, by about 32 x 32 of its values."""
    step_y, step_x = (max(1, n // 32) for n in tensor.shape)
    return _channel_of_values(values_of(tensor[::step_y, ::step_x]))


def _arrange_crops(kinds: Sequence[str | None]) -> list[dict[str, int]]:
    """Return the slices of crops, channel after channel, as crops: an infrared slice, and the visible one
    that follows it.

    A slice without values begins a crop.
    """
    out: list[dict[str, int]] = []
    for number, kind in enumerate(kinds):
        if kind == VISIBLE and out and VISIBLE not in out[-1]:
            out[-1][VISIBLE] = number
        else:
            out.append({kind or IR: number})
    return out


def _arrange_patches(kinds: Sequence[str | None]) -> list[dict[str, np.ndarray]] | None:
    """Return the slices of patches as crops: per channel the number of the slice at each (row, col).

    None if they are not whole crops: of 64 slices of one channel, or 128 whose channels alternate. Then some are
    missing, and which ones cannot be known.
    """
    cells = EARLY_CELLS[0] * EARLY_CELLS[1]
    out = []
    start = 0
    while start < len(kinds):
        both = kinds[start : start + 2 * cells]
        order = np.arange(start, start + 2 * cells)
        if _all(both[::2], IR, cells) and _all(both[1::2], VISIBLE, cells):
            out.append({IR: order[::2].reshape(EARLY_CELLS), VISIBLE: order[1::2].reshape(EARLY_CELLS)})
            start += 2 * cells
            continue
        kind = next((k for k in CHANNEL_NAMES if _all(both[:cells], k, cells)), None)
        if kind is None:
            return None
        out.append({kind: order[:cells].reshape(EARLY_CELLS)})
        start += cells
    return out


def _all(kinds: Sequence[str | None], kind: str, count: int) -> bool:
    return len(kinds) == count and all(k in (kind, None) for k in kinds) and any(kinds)


def _arrange_unordered(kinds: Sequence[str | None]) -> list[dict[str, np.ndarray]]:
    """Return the patches whose positions are not known, 64 of a channel side by side; -1 where there is no
    patch.
    """
    cells = EARLY_CELLS[0] * EARLY_CELLS[1]
    out = []
    for kind in CHANNEL_NAMES:
        of_kind = [n for n, k in enumerate(kinds) if (k or IR) == kind]
        for start in range(0, len(of_kind), cells):
            part = np.full(cells, -1)
            part[: len(of_kind[start : start + cells])] = of_kind[start : start + cells]
            out.append({kind: part.reshape(EARLY_CELLS)})
    return out


def _open_scene(path: str, base: str, cells: tuple[int, int], patch: int | None) -> OldCrops:
    """Yield the channels of a scene: the crop's file where it can be read, else its patches."""
    shape, found = None, {}
    for suffix in range(len(CHANNEL_NAMES)):
        crop = _first_readable([_beside(path, "crops", f"{base}_crop_{suffix}.pt")], None)
        tiles: list[str | None] = []
        if crop is None or patch is None:
            names = (f"{base}_patch_{i}_{j}_{suffix}.pt" for i, j in np.ndindex(*cells))
            tiles = [_beside(path, "patches", name) for name in names]
        tile = _first_readable(tiles, patch)
        if crop is not None:
            shape = (int(crop.shape[0]), int(crop.shape[1]))
        patch = patch or (None if tile is None else int(tile.shape[0]))
        some = tile if crop is None else crop
        if some is not None:
            found[CHANNEL_NAMES[suffix] if suffix else _channel_of(some) or IR] = crop, tiles
    if not found:
        raise SchemaError(f"{path}: none of the files of {base} can be read")

    def crops() -> Iterator[OldCrop]:
        out, numbers = OldCrop({}), np.arange(cells[0] * cells[1]).reshape(cells)
        for channel, (crop, tiles) in found.items():
            if crop is not None:
                out.values[channel], out.lost[channel] = values_of(crop), np.zeros(cells, bool)
            else:
                read = functools.partial(_read_file, tiles, patch or 0)
                out.values[channel], out.lost[channel] = _assemble(read, numbers, patch or 0)
        yield out

    return OldCrops(1, tuple(found), shape, patch, crops())


def _beside(path: str, folder: str, name: str) -> str | None:
    """Return a scene's file: in the folder of its kind (whichever way it is written), or all in one."""
    places = (os.path.join(path, part, name) for part in (folder, folder.capitalize(), ""))
    return next((place for place in places if os.path.exists(place)), None)


def _first_readable(paths: Iterable[str | None], patch: int | None) -> Tensor | None:
    """Return the first of some files that holds pixels (of this shape, if given); damaged ones are skipped."""
    for path in paths:
        try:
            tensor = None if path is None else _load_tensor(path, 2)
        except SchemaError:
            continue
        if tensor is not None and (patch is None or tuple(tensor.shape) == (patch, patch)):
            return tensor
    return None


def _read_file(files: Sequence[str | None], patch: int, number: int) -> np.ndarray | None:
    """Return the patch in one of some files; None if it is missing, damaged or of another shape."""
    tensor = _first_readable([files[number]], patch)
    return None if tensor is None else values_of(tensor)


def _assemble(
    read: Callable[[int], np.ndarray | None], numbers: np.ndarray, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patches by their numbers (row, col) put together (y, x), NaN where one is lost; and which
    are.

    A negative number is of no patch.
    """
    blocks = np.full((*numbers.shape, patch, patch), np.nan, np.float32)
    lost = numbers >= 0
    for at in np.argwhere(lost):
        values = read(int(numbers[tuple(at)]))
        if values is not None:
            blocks[tuple(at)], lost[tuple(at)] = values, False
    return assemble(blocks), lost


def _open_patches(path: str, patch: int | None) -> OldCrops:
    """Return the crops of ``patches_K.pt``."""
    tensor = _load_tensor(path, 3)
    edge = patch or int(tensor.shape[-1])
    if tuple(tensor.shape[1:]) != (edge, edge):
        raise SchemaError(f"{path}: slices of {tuple(tensor.shape[1:])} pixels; expected {edge} x {edge}")
    kinds = [_channel_of(slice_) for slice_ in tensor]
    return _arranged(kinds, lambda number: values_of(tensor[number]), edge, whole=True)


def _open_slices(name: str, path: str, patch: int | None) -> OldCrops:
    """Return the crops of all files ``patch_K_N.pt`` of one K."""
    chunk = name.rsplit("/", 1)[-1].removesuffix(".pt")
    form = re.compile(rf"{re.escape(chunk)}_(\d+)\.pt")
    numbers = sorted(int(m[1]) for entry in os.scandir(path) if (m := form.fullmatch(entry.name)))
    files = [os.path.join(path, f"{chunk}_{number}.pt") for number in numbers]
    first = _first_readable(files, patch)
    if first is None:
        raise SchemaError(f"{path}: none of the files {chunk}_N.pt can be read")
    edge = int(first.shape[-1])
    read = functools.partial(_read_file, files, edge)
    values = map(read, range(len(files)))
    kinds = [(v is not None, None if v is None else _channel_of_values(v)) for v in values]
    whole = numbers[0] in (0, 1) and numbers[-1] - numbers[0] + 1 == len(numbers) and all(k[0] for k in kinds)
    return _arranged([kind for _, kind in kinds], read, edge, whole=whole)


def _arranged(
    kinds: Sequence[str | None], read: Callable[[int], np.ndarray | None], patch: int, *, whole: bool
) -> OldCrops:
    """Yield the crops of slices: at their places if nothing is missing, else side by side."""
    ordered = _arrange_patches(kinds) if whole else None
    layout = _arrange_unordered(kinds) if ordered is None else ordered

    def crops() -> Iterator[OldCrop]:
        for crop in layout:
            out = OldCrop({})
            for channel, numbers in crop.items():
                out.values[channel], out.lost[channel] = _assemble(read, numbers, patch)
                out.padding = numbers < 0
            yield out

    channels = tuple({channel: None for crop in layout for channel in crop})
    return OldCrops(len(layout), channels, None, patch, crops(), ordered is not None)
