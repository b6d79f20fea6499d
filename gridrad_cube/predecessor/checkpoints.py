"""The predecessor's checkpoints as ours. Names of the weights are the same; the rest of the file differs."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gridrad_cube.datasets import Normalization
from gridrad_cube.models import (
    VisionTransformer,
    backbone_state,
    head_state,
    load_backbone,
    load_checkpoint,
    save_checkpoint,
)
from gridrad_cube.predecessor.arrays import CHANNEL_NAMES, VISIBLE
from gridrad_cube.schema import CHANNELS, SchemaError

#: What the predecessor's networks saw of a field in training, and when it embedded (kelvin, percent).
_SEEN = {"training": (0.5, 0.5), "embedding": (0.0, 1.0)}


def from_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Literal["embedding", "training"] = "embedding",
    channels: Sequence[str] = CHANNEL_NAMES,
    visible_units: Literal["percent", "1"] = "percent",
) -> dict[str, Any]:
    """Write a checkpoint of the predecessor as one of ours: weights of student and teacher, heads, center.

    The new file also describes the network, its channels, and how values became its inputs. Optimizer, scaler
    and
    command line are left out: start from it with ``gridrad-cube train --init-from``.

    Parameters
    ----------
    path
        Path of the checkpoint of the predecessor.
    out
        Path of the checkpoint to write.
    inputs
        Level 256: the predecessor embedded physical values as they are (``"embedding"``), though it trained
        on
        ``(value - 0.5) / 0.5`` (``"training"``). The first gives the embeddings that it gave.
    channels
        Of the level 256, or those that the embeddings of the level 2k are of.
    visible_units
        In which the reflectance was trained on.

    Returns
    -------
    JSON types: ``out``, ``level``, ``model``, ``epoch``, ``left_out``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SchemaError
        If it is not a checkpoint of a network that this program knows, or one of ours already.
    """
    old = load_checkpoint(path)
    if isinstance(old.get("model"), Mapping):
        raise SchemaError(f"{path}: a checkpoint of this program already; nothing to convert")
    keys = [key for key in ("teacher", "student") if key in old]
    if not keys:
        raise SchemaError(f"{path}: holds {sorted(map(str, old))[:8]}; expected 'teacher' and 'student'")
    network = load_backbone(old, keys[0])
    level = "2k" if network.architecture.cells else "256"
    planes = network.architecture.in_channels
    if level == "256" and planes > 1 and planes != len(channels):
        raise SchemaError(
            f"{path}: its network reads {planes} channels at once, got {list(channels)}. Pass `channels`"
        )
    epoch = old.get("epoch") if isinstance(old.get("epoch"), int) else 0
    made: dict[str, Any] = {
        "level": level, "model": network.config(), **{key: _ours(old, key) for key in keys}, "epoch": epoch,
        "channels": list(channels), "channel_mode": "stack" if level == "256" and planes > 1 else "each", "coarsen": 1,
        "normalization": _normalization(network, level, channels, inputs, visible_units), "view": {"mode": "area"},
        "software": {"gridrad_cube": importlib.metadata.version("gridrad-cube"), "converted_from": Path(path).name},
    }  # fmt: skip
    if isinstance(old.get("dino_loss"), Mapping):
        made["dino_loss"] = dict(old["dino_loss"])
    save_checkpoint(made, out)
    left_out = sorted(str(k) for k in old if k not in made)
    return {
        "out": str(out), "level": level, "model": network.config(), "epoch": epoch, "left_out": left_out,
    }  # fmt: skip


def _ours(checkpoint: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """Return a network's tensors as ours are named: ``backbone.*`` and ``head.*``."""
    backbone, head = backbone_state(checkpoint, key), head_state(checkpoint, key)
    parts = (("backbone", backbone), ("head", head))
    return {f"{part}.{name}": tensor.clone() for part, state in parts for name, tensor in state.items()}


def _normalization(
    network: VisionTransformer, level: str, channels: Sequence[str], inputs: str, visible_units: str
) -> dict[str, Any]:
    """Return how our numbers become what the network saw; reflectance is a fraction here."""
    if level == "2k":
        width = network.architecture.in_channels
        return {"mean": [0.0] * width, "std": [1.0] * width}
    mean, std = _SEEN[inputs]
    out = {}
    for name in channels:
        if name not in CHANNELS:
            raise SchemaError(f"channels: got {name!r}; expected some of {sorted(CHANNELS)}")
        scale = 0.01 if name == VISIBLE and visible_units == "percent" else 1.0
        # Missing pixels: the middle of the range in infrared, dark in the visible. It saw their codes, 65535.
        missing = 0.0 if CHANNELS[name].kind == "visible" else sum(CHANNELS[name].typical_range) / 2
        rule = Normalization(
            rule="standard", mean=mean * scale, std=std * scale, fill=(missing - mean * scale) / (std * scale),
            no_echo=0.0, packing=CHANNELS[name].packing,
        )  # fmt: skip
        out[name] = rule.to_dict()
    return out
