"""The predecessor's checkpoints as ours, and back. The weights' names are the same; what is around them is not."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gridrad_cube import __version__
from gridrad_cube.datasets import Normalization
from gridrad_cube.models import (
    ARCHITECTURES,
    VisionTransformer,
    backbone_state,
    head_state,
    load_backbone,
    load_checkpoint,
    save_checkpoint,
)
from gridrad_cube.predecessor.slices import CHANNEL_NAMES, VISIBLE
from gridrad_cube.schema import CHANNELS, SchemaError

#: What the predecessor's networks saw of a field in training, and when it embedded (kelvin, percent).
_SEEN = {"training": (0.5, 0.5), "embedding": (0.0, 1.0)}
#: Networks that the predecessor's scripts can build, and the edge of the positions it makes for each.
_BUILDABLE = {"vit_tiny": 14, "vit_small": 14, "vit_base": 14, "vit2k_xs": 28, "vit4k_xs": 14}


def from_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Literal["embedding", "training"] = "embedding",
    channels: Sequence[str] = CHANNEL_NAMES,
    visible_units: Literal["percent", "1"] = "percent",
) -> dict[str, Any]:
    """Write a checkpoint of the predecessor as one of ours: weights of student and teacher, heads, centre.

    What it needs besides is said in it: the network, its channels, and how values became its inputs. Optimiser
    and scaler are left out: start from it with ``gridrad-cube train --init-from``.

    Parameters
    ----------
    inputs
        Level 256: the predecessor embedded physical values as they are (``"embedding"``), though it trained on
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
        If it is no checkpoint of a network that this program knows, or one of ours already.
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
            f"{path}: its network reads {planes} channels at once, got {list(channels)}. Pass --channel"
        )
    epoch = old.get("epoch") if isinstance(old.get("epoch"), int) else 0
    made: dict[str, Any] = {
        "level": level,
        "model": network.config(),
        **{key: _ours(old, key) for key in keys},
        "epoch": epoch,
        "channels": list(channels),
        "channel_mode": "stack" if level == "256" and planes > 1 else "each",
        "coarsen": 1,
        "normalization": _normalization(network, level, channels, inputs, visible_units),
        "view": {"mode": "area"},
        "arguments": _arguments(old.get("args")),
        "software": {"gridrad_cube": __version__, "converted_from": Path(path).name},
    }
    if isinstance(old.get("dino_loss"), Mapping):
        made["dino_loss"] = dict(old["dino_loss"])
    save_checkpoint(made, out)
    left_out = sorted(str(k) for k in old if k not in made and k != "args")
    return {
        "out": str(out), "level": level, "model": network.config(), "epoch": epoch, "left_out": left_out,
    }  # fmt: skip


def _ours(checkpoint: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """A network's tensors as ours are named: ``backbone.*`` and ``head.*``."""
    backbone, head = backbone_state(checkpoint, key), head_state(checkpoint, key)
    return {f"backbone.{k}": v.clone() for k, v in backbone.items()} | {
        f"head.{k}": v.clone() for k, v in head.items()
    }


def _normalization(
    network: VisionTransformer, level: str, channels: Sequence[str], inputs: str, visible_units: str
) -> dict[str, Any]:
    """How our numbers become what the network saw; reflectance is a fraction here."""
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


def _arguments(arguments: Any) -> dict[str, Any]:
    """The command line of the old run, as far as it is plain: numbers, words, lists of them."""
    if not isinstance(arguments, argparse.Namespace):
        return {}
    plain = (str, int, float, bool, type(None))
    return {
        name: list(value) if isinstance(value, (list, tuple)) else value
        for name, value in sorted(vars(arguments).items())
        if isinstance(value, plain)
        or (isinstance(value, (list, tuple)) and all(isinstance(v, plain) for v in value))
    }


def to_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    channel: str | None = None,
    visible_units: Literal["percent", "1"] = "percent",
) -> dict[str, Any]:
    """Write a checkpoint of ours as the predecessor's scripts load it (``--pretrained_weights``).

    Its scripts embed values as they are, ours normalise them first. At level 2k, and at level 256 for one
    ``channel``, the normalisation goes into the first layer, so that the same fields give the same embeddings.

    Parameters
    ----------
    channel
        Level 256: the channel that will be embedded. None leaves the weights as they are; then give the scripts
        normalised values.
    visible_units
        In which the scripts are given the reflectance.

    Returns
    -------
    JSON types: ``out``, ``arch``, ``epoch``, ``inputs`` (what the network expects to be given).

    Raises
    ------
    SchemaError
        If its scripts cannot build the network (another input, other sizes, learned mask tokens in use), or the
        network does not know the channel.
    """
    checkpoint = load_checkpoint(path)
    keys = [key for key in ("student", "teacher") if key in checkpoint]
    if not keys:
        raise SchemaError(f"{path}: holds no student and no teacher; expected a checkpoint of a training run")
    network = load_backbone(checkpoint, keys[-1])
    _check_buildable(network, path)
    epoch = checkpoint.get("epoch", 0)
    made: dict[str, Any] = {
        "epoch": epoch,
        "args": argparse.Namespace(
            arch=network.name, patch_size=network.patch_size, **_arguments_of(checkpoint)
        ),
    }
    scaling, inputs = _input_scaling(checkpoint, network, channel, visible_units, path)
    for key in keys:
        prefix = "module." if key == "student" else ""
        state = {n: v for n, v in _ours(checkpoint, key).items() if n != "backbone.mask_token"}
        if scaling is not None:
            _fold(state, *scaling)
        made[key] = {prefix + name: value for name, value in state.items()}
    if isinstance(checkpoint.get("dino_loss"), Mapping):
        centre = checkpoint["dino_loss"].get("center")
        if isinstance(centre, Tensor):
            made["dino_loss"] = {"center": centre.reshape(1, -1).clone()}
    save_checkpoint(made, out)
    return {"out": str(out), "arch": network.name, "epoch": epoch, "inputs": inputs}


def _input_scaling(
    checkpoint: Mapping[str, Any],
    network: VisionTransformer,
    channel: str | None,
    visible_units: str,
    path: str | os.PathLike[str],
) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """Mean and deviation of the inputs that go into the first layer, and what is to be given then."""
    kept = checkpoint.get("normalization")
    if not isinstance(kept, Mapping):
        return None, "as the checkpoint's were; it keeps no normalisation"
    if network.architecture.cells:
        mean, std = (torch.tensor(kept[name], dtype=torch.float64) for name in ("mean", "std"))
        return (mean, std), "embeddings as they are"
    if channel is None:
        return None, f"normalised values: {kept}"
    rule = kept.get(channel)
    if not isinstance(rule, Mapping) or rule.get("rule") != "standard":
        known = [name for name, value in kept.items() if value.get("rule") == "standard"]
        raise SchemaError(f"{path}: channel {channel!r} cannot go into the weights; expected one of {known}")
    percent = channel == VISIBLE and visible_units == "percent"
    scale = 100.0 if percent else 1.0
    values = (torch.tensor([rule[n] * scale], dtype=torch.float64) for n in ("mean", "std"))
    return tuple(values), f"{channel} in {'percent' if percent else CHANNELS[channel].units}"  # type: ignore[return-value]


def _fold(state: dict[str, Tensor], mean: Tensor, std: Tensor) -> None:
    """Put ``(value - mean) / std`` of the inputs into the first layer's weights."""
    name = "backbone.phi.0" if "backbone.phi.0.weight" in state else "backbone.patch_embed.proj"
    weight, bias = (state[f"{name}.{part}"].double() for part in ("weight", "bias"))
    shape = (1, -1, *(1 for _ in weight.shape[2:]))
    weight = weight / std.reshape(shape)
    bias = bias - (weight * mean.reshape(shape)).flatten(1).sum(1)
    state[f"{name}.weight"], state[f"{name}.bias"] = weight.float(), bias.float()


def _arguments_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    head = checkpoint.get("head")
    if not isinstance(head, Mapping):
        return {}
    return {
        name: head[key]
        for name, key in (
            ("out_dim", "out_dim"),
            ("norm_last_layer", "norm_last_layer"),
            ("use_bn_in_head", "use_bn"),
        )
        if key in head
    }


def _check_buildable(network: VisionTransformer, path: str | os.PathLike[str]) -> None:
    config = network.config()
    faults = []
    if network.name not in _BUILDABLE:
        faults.append(f"its network is {network.name}; the predecessor has {sorted(_BUILDABLE)}")
    else:
        reference = ARCHITECTURES[network.name]
        positions = network.state_dict()["pos_embed"].shape[1]
        cells = network.architecture.cells
        edge = _BUILDABLE[network.name] if cells else 224 // network.patch_size
        if positions != edge**2 + 1:
            size = edge if cells else 224
            faults.append(f"positions for {positions - 1} tokens; it makes {edge**2} (--image-size {size})")
        if network.architecture.in_channels != reference.in_channels:
            faults.append(f"inputs of {network.architecture.in_channels}; it reads {reference.in_channels}")
    token = network.state_dict().get("mask_token")
    if token is not None and bool(torch.count_nonzero(token)):
        faults.append("a learned mask token, which it lacks (--mask-tokens false)")
    if faults:
        raise SchemaError(
            f"{path}: {'; '.join(faults)}; {config}. Train with --preset predecessor for its scripts."
        )
