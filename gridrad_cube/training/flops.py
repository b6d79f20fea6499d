"""Arithmetic of a training step, and what a GPU could do: their ratio is the model's FLOP utilisation (MFU)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from gridrad_cube.models import Prototypes, VisionTransformer

#: Forward passes that a forward and a backward pass are worth: gradients of inputs and of weights cost one each.
_TRAINING_PASSES = 3


class Peak(NamedTuple):
    """Dense matrix products, TFLOP/s: bf16, TF32 and plain fp32; None where the GPU has no such arithmetic."""

    bf16: float | None
    tf32: float | None
    fp32: float


#: What torch calls a GPU, as a pattern, and its peak; the first that matches counts. From NVIDIA's whitepapers of
#: the architectures (V100, GA100, GA102, Ada, H100) and data sheets (H100 NVL, H200, HGX B200), which state tensor
#: cores with sparsity from Ampere on: halved here. Boards are told by form factor, as their clocks differ.
PEAKS: tuple[tuple[str, Peak], ...] = (
    (r"\bB200\b", Peak(2250, 1100, 75)),
    (r"\bH200 NVL\b", Peak(835.5, 417.5, 60)),
    (r"\bG?H200\b", Peak(989.4, 494.7, 66.9)),
    (r"\bH100 NVL\b", Peak(835.5, 417.5, 60)),
    (r"\bH100 PCIe\b", Peak(756, 378, 51.2)),
    (r"\bH100\b", Peak(989.4, 494.7, 66.9)),
    (r"\bA100\b", Peak(312, 156, 19.5)),
    (r"\bL40S\b", Peak(362.1, 183, 91.6)),
    (r"\bA40\b", Peak(149.7, 74.8, 37.4)),
    (r"\bA30\b", Peak(165, 82, 10.3)),
    (r"\bV100S", Peak(None, None, 16.4)),
    (r"\bV100-PCIE", Peak(None, None, 14)),
    (r"\bV100\b", Peak(None, None, 15.7)),
)


def backbone_flops(backbone: VisionTransformer, shape: tuple[int, int]) -> float:
    """Of one forward pass over one view, two a multiplication with its addition.

    Matrix products only, masked tokens included, as they are computed; the rest is below one per cent.

    Parameters
    ----------
    shape
        Height and width of the view, in pixels or cells.
    """
    a = backbone.architecture
    tokens = (shape[0] // a.patch_size) * (shape[1] // a.patch_size)
    entry = tokens * a.in_channels * a.patch_size**2 * a.embed_dim
    tokens += 1  # the class token
    # Per block and token 3 D^2 for queries, keys and values, D^2 for the projection, 8 D^2 for the perceptron;
    # T D for the scores against T keys and as much for the sum of values.
    block = tokens * (12 * a.embed_dim**2 + 2 * tokens * a.embed_dim)
    return 2.0 * (entry + a.depth * block)


def head_flops(head: nn.Module) -> float:
    """Of one forward pass of one view through a head: each weight of its linear maps once."""
    weights = 0
    for module in head.modules():
        if isinstance(module, nn.Linear):
            weights += module.weight.numel()
        elif isinstance(module, Prototypes):
            weights += module.weight_v.numel()
    return 2.0 * weights


def training_flops(
    backbone: VisionTransformer,
    head: nn.Module,
    views: Sequence[tuple[int, int]],
    *,
    teacher_views: int = 2,
) -> float:
    """Of one sample of a training step: the student there and back over all views, the teacher over the first.

    The loss, the optimiser and the drawing of views do not count;
    what drop-path leaves out does, as is usual for MFU. ViT-S/16 with 65,536 prototypes, 2 views of 224 px and 8
    of 96 px: 112.9 GFLOP.

    Parameters
    ----------
    backbone, head
        The student's; the teacher's are of the same size.
    views
        Height and width of each view, global ones first.
    teacher_views
        How many of them the teacher sees.
    """
    costs = [backbone_flops(backbone, shape) + head_flops(head) for shape in views]
    return _TRAINING_PASSES * sum(costs) + sum(costs[:teacher_views])


def peak_flops(device: torch.device | str, *, bf16: bool) -> float | None:
    """Peak of dense matrix products on a device, FLOP/s; None for CPUs and GPUs that `PEAKS` does not know.

    Parameters
    ----------
    device
        A torch device, or the name of a GPU as torch gives it.
    bf16
        Under bf16 autocast; else in fp32, by TF32 where torch may use it.
    """
    if isinstance(device, torch.device):
        if device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(device)
    else:
        name = device
    if " MIG " in name:  # a slice of a GPU has a slice of its peak
        return None
    peak = next((peak for pattern, peak in PEAKS if re.search(pattern, name)), None)
    if peak is None:
        return None
    tflops = peak.bf16 if bf16 else peak.fp32
    if not bf16 and peak.tf32 is not None and torch.get_float32_matmul_precision() != "highest":
        tflops = peak.tf32
    return None if tflops is None else tflops * 1e12
