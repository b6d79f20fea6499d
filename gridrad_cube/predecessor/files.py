"""Reading the predecessor's files, which are not trusted: no code runs, and nothing grows beyond the file's size."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gridrad_cube.schema import SchemaError

#: The longest edge of a crop that is read, pixels.
LARGEST_EDGE = 16384
#: The largest pickle in a torch file: names and shapes alone, about 200 bytes a tensor.
LARGEST_PICKLE = 2**30
#: What readers of zip archives and of pickles raise when a file is damaged.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError,
    TypeError, AttributeError, AssertionError, OverflowError, NotImplementedError,
)  # fmt: skip


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

    A file that holds one slice of a large tensor has the whole of it inside; only what is used is read.

    Raises
    ------
    SchemaError
        If it is none, is damaged, or holds anything but tensors and plain Python.
    """
    with _open_zip(path, "a file that torch.save of torch 1.6 or later wrote") as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise SchemaError(f"{path}: compressed inside, which torch.save never does; refused")
            if member.filename.endswith("data.pkl") and member.file_size > LARGEST_PICKLE:
                raise SchemaError(f"{path}: a pickle of {member.file_size} bytes in it; refused")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGE as error:
        if "GLOBAL" in str(error) or "Unsupported" in str(error):
            raise SchemaError(
                f"{path}: holds objects that a safe load refuses; expected tensors, and dicts of them by name"
            ) from error
        raise _damaged(path, error) from error


def load_tensor(path: str | os.PathLike[str], dimensions: int) -> Tensor:
    """A tensor of numbers with so many dimensions, still on disk.

    Raises
    ------
    SchemaError
        If the file holds something else; says what.
    """
    return check_tensor(load_torch(path), dimensions, path)


def check_tensor(value: Any, dimensions: int, path: str | os.PathLike[str], name: str = "") -> Tensor:
    """``value`` if it is a dense tensor of numbers that is no larger than its file."""
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
    """A copy in memory, float32 (or float64 as it was), free of whatever the tensor was a view of."""
    copy = tensor.detach().clone()
    return np.asarray((copy if copy.dtype in (torch.float32, torch.float64) else copy.float()).numpy())


def _npy_header(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise SchemaError(f"{path}: array format {version}; expected 1.0 or 2.0")
    return read(file)


def npz_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Channels, height and width of the crop of an ``.npz``, from its header alone.

    Raises
    ------
    SchemaError
        If it is none, has no crop, or declares what it cannot hold.
    """
    with _open_zip(path, "an .npz file") as archive:
        try:
            member = archive.getinfo("crop.npy")
        except KeyError:
            names = [n.removesuffix(".npy") for n in archive.namelist()][:10]
            raise SchemaError(f"{path}: has {names}; expected 'crop' and 'patches'") from None
        try:
            with archive.open(member) as file:
                shape, _, dtype = _npy_header(file, path)  # type: ignore[arg-type]
                header = file.tell()
        except SchemaError:
            raise
        except (*_DAMAGE, OSError) as error:
            raise _damaged(path, error) from error
    if len(shape) != 3 or not 1 <= shape[0] <= 2 or max(shape) > LARGEST_EDGE or dtype.kind not in "fiu":
        raise SchemaError(
            f"{path}: its crop is {shape} of {dtype}; expected (1 or 2 channels, height, width) of numbers, edges "
            f"up to {LARGEST_EDGE}"
        )
    if member.file_size != header + int(np.prod(shape)) * dtype.itemsize:
        raise SchemaError(f"{path}: its crop declares {shape} of {dtype}, but has {member.file_size} bytes")
    return shape[0], shape[1], shape[2]


def npz_patch(path: str | os.PathLike[str]) -> int | None:
    """Edge of the patches of an ``.npz``, from its header; None if it has none."""
    with _open_zip(path, "an .npz file") as archive:
        if "patches.npy" not in archive.namelist():
            return None
        try:
            with archive.open("patches.npy") as file:
                shape, _, _ = _npy_header(file, path)  # type: ignore[arg-type]
        except (*_DAMAGE, OSError) as error:
            raise _damaged(path, error) from error
    return int(shape[-1]) if len(shape) == 5 and shape[-1] else None


def read_npz(path: str | os.PathLike[str]) -> np.ndarray:
    """The crop of an ``.npz``, (channel, y, x); its patches are the same pixels again.

    Raises
    ------
    SchemaError
        As `npz_shape`, or if it is damaged.
    """
    npz_shape(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["crop"])
    except (*_DAMAGE, OSError) as error:
        raise _damaged(path, error) from error


def find(sources: Iterable[str | os.PathLike[str]], suffix: str) -> Iterator[tuple[Path, Path]]:
    """Files of a suffix among files and folders (and what is below), with the folder that each was found from.

    Raises
    ------
    FileNotFoundError
        If a path is not there.
    """
    seen = set()
    for root in map(Path, sources):
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


def save(value: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors as ``torch.save`` does, whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(value, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
