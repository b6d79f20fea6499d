"""Write checkpoints in one step, read them without running code, and load them strictly.

A checkpoint is a plain dict. Those of this package hold ``model``, the config that `build` takes, beside
``student`` and ``teacher``. Those of the predecessor lack it, so their network is inferred from the shapes.
Keys
of both may begin with ``module.`` and ``backbone.`` in any combination; those of the projection head then
begin with
``head.``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import math
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from gridrad_cube.models.objectives import ContrastHead
from gridrad_cube.models.scattering import CELL, MAPS
from gridrad_cube.models.vit import ARCHITECTURES, VisionTransformer, build
from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import open_for_writing

logger = logging.getLogger(__name__)

_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
#: Classes that a checkpoint may hold besides tensors and plain Python: the predecessor's arguments, and the
#: learning rates in its optimizer, which are numpy scalars (pickled under one name by numpy 1, another by
#: numpy 2).
_ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
#: Exceptions of readers of zip archives and of pickles for a damaged file.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError,
)  # fmt: skip

#: How many times the size of its file the tensors of a checkpoint may take: networks can share weights.
_MOST_EXPANSION = 4
#: Calls in a pickle that torch allows, and that take memory by a number in the file. No checkpoint needs them.
_ALLOCATES = re.compile(
    rb"c(?:builtins|__builtin__)\nbytearray\n|ctorch(?:\.\w+)*\n\w*Tensor\n|ctorch\.storage\n"
)

#: Parts of a trained network that are not its backbone.
_HEADS = ("head.", "contrast_head.")
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.|backbone\.)+")
#: Weight normalization of current torch, and the older names that DINO's checkpoints and `DINOHead` have.
_WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one.

    Parameters
    ----------
    state
        Tensors, numbers, strings, and lists and dicts of them.
    path
        Path of the file.

    Raises
    ------
    SchemaError
        If `load_checkpoint` would refuse the file. An earlier file is kept.
    """
    # Into memory first: of a disk that is full torch says that a position is unexpected.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with open_for_writing(path) as file:
        file.write(buffer.getbuffer())
        file.flush()
        _unpickle(Path(file.name), Path(path), mmap=True)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running no code that it may contain and verifying its checksums.

    Parameters
    ----------
    path
        Path of the file.

    Returns
    -------
    The dict.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SchemaError
        If the file is not a checkpoint, is truncated or damaged, holds objects other than tensors, plain
        Python and the arguments of the predecessor, or would take much more memory than its size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint. Check its path.")
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise SchemaError(f"{path}: a Git LFS pointer, not the checkpoint itself. Run `git lfs pull`.")
    if not start.startswith(b"PK"):
        raise SchemaError(
            f"{path}: not a checkpoint, begins with {start[:8]!r}; expected a file that torch.save of "
            "torch 1.6 or later wrote"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(archive, path)
            damaged = archive.testzip()  # torch itself reads over flipped bits
    except SchemaError:
        raise
    except (*_DAMAGE, OSError) as error:  # an offset beyond the file is an OSError
        raise SchemaError(_damaged(path, error)) from error
    if damaged is not None:
        raise SchemaError(_damaged(path, f"{damaged} fails its checksum"))
    checkpoint = _unpickle(path, path)
    _check_tensors(checkpoint, path)
    return checkpoint


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the latest written readable ``checkpoint*.pth`` of a folder, or ``None``.

    Unreadable ones are skipped with a logged warning.

    Parameters
    ----------
    folder
        Folder of a run.

    Returns
    -------
    Path and dict; None without a readable checkpoint.
    """
    paths = sorted(Path(folder).glob("checkpoint*.pth"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    for path in reversed(paths):
        try:
            load_checkpoint(path)
        except SchemaError as error:
            logger.warning("skipped a checkpoint: %s", error)
        else:
            return path
    return None


def backbone_state(checkpoint: Mapping[str, Any], key: str = "teacher") -> dict[str, Tensor]:
    """Return the backbone's tensors by DINO's names, from ``checkpoint[key]`` or from a bare state dict.

    Parameters
    ----------
    checkpoint
        A loaded checkpoint, or a bare state dict.
    key
        Which network: ``teacher`` or ``student``.

    Returns
    -------
    Tensors by name.

    Raises
    ------
    SchemaError
        If there is no such state.
    """
    return _backbone_of(_network_state(checkpoint, key))


def head_state(checkpoint: Mapping[str, Any], key: str = "teacher") -> dict[str, Tensor]:
    """Return the projection head's tensors as `DINOHead` names them, for any version of weight normalization.

    Parameters
    ----------
    checkpoint
        A loaded checkpoint, or a bare state dict.
    key
        Which network: ``teacher`` or ``student``.

    Returns
    -------
    Tensors by name; empty for a checkpoint of a backbone alone.

    Raises
    ------
    SchemaError
        As of `backbone_state`.
    """
    out = {}
    for name, value in _network_state(checkpoint, key).items():
        if name.startswith("head."):
            for new, old in _WEIGHT_NORM.items():
                name = name.replace(new, old)
            out[name.removeprefix("head.")] = value
    return out


def load_contrast_head(checkpoint: Mapping[str, Any], key: str = "teacher") -> ContrastHead | None:
    """Return the head that was trained by the contrast, in evaluation mode.

    Parameters
    ----------
    checkpoint
        A loaded checkpoint, or a bare state dict.
    key
        Which network: ``teacher`` or ``student``.

    Returns
    -------
    The head; None if the checkpoint has none.
    """
    prefix = "contrast_head."
    state = {
        n.removeprefix(prefix): v for n, v in _network_state(checkpoint, key).items() if n.startswith(prefix)
    }
    if not state:
        return None
    with torch.device("meta"):  # sizes that do not fit each other take no memory
        head = ContrastHead(
            len(state["mlp.0.weight"]), len(state["mlp.3.bias"]), hidden_dim=len(state["mlp.1.bias"])
        )
    _check_fit(head.state_dict(), state, f"checkpoint: {key!r}", "the head of the contrast")
    head.to_empty(device="cpu")
    head.load_state_dict(state)
    return head.eval()


def load_backbone(
    source: str | os.PathLike[str] | Mapping[str, Any],
    key: str = "teacher",
    model: VisionTransformer | None = None,
) -> VisionTransformer:
    """Return the trained network of a checkpoint, in evaluation mode; every weight is from the checkpoint.

    Parameters
    ----------
    source
        Path of a checkpoint, or a loaded one, or a bare state dict of a backbone.
    key
        Which network: ``teacher`` or ``student``.
    model
        Network to load into. By default it is built from the checkpoint's ``model`` or, for those of the
        predecessor, from the shapes. If it has a mask token and the checkpoint has none, the token is zero.

    Returns
    -------
    The network.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SchemaError
        If the file is not readable, or its tensors are not exactly those of the network.
    """
    if isinstance(source, Mapping):
        checkpoint, where = source, "checkpoint"
    else:
        checkpoint, where = load_checkpoint(source), str(source)
    state = _backbone_of(_network_state(checkpoint, key, where))
    if model is None:
        config = checkpoint.get("model")
        config = config if isinstance(config, dict) else _infer_config(state, where)
        try:
            with torch.device("meta"):  # without weights, so that none can stay random
                network = build(**config)
        except (TypeError, ValueError) as error:
            raise SchemaError(f"{where}: describes no network that can be built: {error}") from error
    else:
        network = model
    expected = network.state_dict()
    if "mask_token" in expected:
        state.setdefault("mask_token", torch.zeros(expected["mask_token"].shape))
    _check_fit(expected, state, f"{where}: {key!r}", network.name)
    if model is None:
        network.to_empty(device="cpu")
    network.load_state_dict(state)
    return network.eval()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a hash of a set of weights: names, dtypes, shapes and bytes, in any order.

    Parameters
    ----------
    state
        Tensors by name.

    Returns
    -------
    32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _unpickle(path: Path, target: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read ``path``; messages name ``target``."""
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _DAMAGE as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise SchemaError(
                f"{target}: holds a {refused[1]}, which a safe load refuses; expected tensors, numbers, "
                "strings, lists and dicts"
            ) from error
        raise SchemaError(_damaged(target, error)) from error
    if not isinstance(checkpoint, dict):
        raise SchemaError(f"{target}: not a checkpoint, holds a {type(checkpoint).__name__}; expected a dict")
    return checkpoint


def _check_records(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a file that expands when it is read, before anything of it is."""
    records, size = archive.infolist(), path.stat().st_size
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise SchemaError(f"{path}: has compressed records, which torch.save never writes. It is not read.")
    if sum(record.file_size for record in records) > size:
        raise SchemaError(
            f"{path}: its records declare more than the {size} bytes of the file. It is not read."
        )
    for record in records:
        if record.filename.endswith("data.pkl") and _ALLOCATES.search(archive.read(record)):
            raise SchemaError(
                f"{path}: asks for memory that its tensors do not fill, which torch.save never writes. It is not read."
            )


def _check_tensors(checkpoint: Any, path: Path) -> None:
    """Refuse tensors that are not in the file: views that repeat their values, sparse ones, those without data."""
    limit = _MOST_EXPANSION * path.stat().st_size
    size, waiting, seen = 0, [checkpoint], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            size += value.numel() * value.element_size()
            if value.layout != torch.strided or value.is_meta or size > limit:
                raise SchemaError(
                    f"{path}: tensors such as {tuple(value.shape)} of {value.dtype} take more than {_MOST_EXPANSION} "
                    "times the size of the file. Save dense tensors that are no expanded views."
                )
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value


def _damaged(path: Path, reason: object) -> str:
    first_line = (str(reason) or type(reason).__name__).splitlines()[0]
    return f"{path}: truncated or damaged ({first_line:.120}). Copy it again, or take an earlier checkpoint."


def _network_state(checkpoint: Mapping[str, Any], key: str, where: str = "checkpoint") -> dict[str, Tensor]:
    """Return all tensors of one network, leading prefixes off."""
    state = checkpoint if key not in checkpoint and _is_state(checkpoint) else checkpoint.get(key)
    if not _is_state(state):
        offered = [
            n for n, v in checkpoint.items() if _is_state(v) and any(k.endswith("cls_token") for k in v)
        ]
        raise SchemaError(
            f"{where}: no weights under {key!r}; expected one of {sorted(offered)}. Pass `key`."
        )
    out = {_PREFIX.sub("", name): value for name, value in state.items()}
    if len(out) != len(state):
        raise SchemaError(f"{where}: {key!r} holds two networks, some keys differ by their prefix only")
    return out


def _backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(_HEADS)}


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _infer_config(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Return the arguments of `build` for a backbone that only its shapes describe.

    The number of heads is not visible in shapes, so width and depth must be those of a known architecture.
    """
    kernel = state.get("phi.0.weight", state.get("patch_embed.proj.weight"))
    positions = state.get("pos_embed")
    if kernel is None or kernel.ndim not in (2, 4) or positions is None or positions.ndim != 3:
        raise SchemaError(
            f"{where}: not a vision transformer; expected 'pos_embed' and 'patch_embed.proj.weight' or "
            f"'phi.0.weight', got {_some(state)}"
        )
    cells = kernel.ndim == 2
    dim, channels = kernel.shape[:2]
    patch = 1 if cells else kernel.shape[2]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    edge = math.isqrt(positions.shape[1] - 1)
    wanted = (cells, dim, depth)
    names = [name for name, a in ARCHITECTURES.items() if (a.cells, a.embed_dim, a.depth) == wanted]
    if not names:
        raise SchemaError(
            f"{where}: no known network is {dim} wide and {depth} layers deep; expected one of "
            f"{sorted(ARCHITECTURES)}. Build it yourself and pass model=..."
        )
    grids = {name: ARCHITECTURES[name].image_size // ARCHITECTURES[name].patch_size for name in names}
    scattering = {}
    if "stem.mean" in state:
        channels, patch, scattering = channels // MAPS, patch * CELL, {"stem": "scattering"}
    return {
        "name": min(names, key=lambda name: abs(grids[name] - edge)),
        "in_channels": channels,
        "patch_size": patch,
        "image_size": edge * patch,
        "mask_token": "mask_token" in state,
        **scattering,
    }


def _check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str, name: str) -> None:
    shared = expected.keys() & state.keys()
    differing = [
        f"{k} {tuple(state[k].shape)} for {tuple(expected[k].shape)}"
        for k in sorted(shared)
        if state[k].shape != expected[k].shape
    ]
    faults = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "differing in shape": differing,
    }
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in faults.items() if keys)
        raise SchemaError(
            f"{where} does not fit {name}: {listed}. Nothing was loaded. Pass the architecture "
            "that wrote the checkpoint, or another checkpoint key."
        )


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
