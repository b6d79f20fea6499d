"""Student, teacher and loss of a run, and the one forward pass over all views."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gridrad_cube.models import (
    CodingRateLoss,
    DINOHead,
    DINOLoss,
    NetworkInput,
    ProjectionHead,
    VisionTransformer,
    build,
    head_state,
    load_backbone,
    load_checkpoint,
    parameter_groups,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.training.config import Config, Plan

logger = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """Results of a network, view by view: of its head (views * B, K), and its class tokens (views * B, D)."""

    heads: Tensor
    features: Tensor


class _MultiView(nn.Module):
    """A backbone and a head over views of several sizes; keys ``backbone.*`` and ``head.*`` as in DINO."""

    def __init__(self, backbone: VisionTransformer, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[NetworkInput]) -> Outputs:
        """Neighboring views of one shape go through the backbone together."""
        parts = []
        for _, group in itertools.groupby(views, key=lambda view: view[0].shape):
            x, *masks = zip(*group, strict=True)
            parts.append(self.backbone(torch.cat(x), *(_join(mask) for mask in masks)))
        features = torch.cat(parts)
        return Outputs(self.head(features), features)


def _join(masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [mask for mask in masks if mask is not None]
    return torch.cat(given) if given else None


@dataclass
class Networks:
    """Student and teacher, the loss between them, and the options of the head."""

    student: _MultiView
    teacher: _MultiView
    loss: nn.Module
    head: dict[str, Any]

    def to(self, device: torch.device) -> None:
        """Move all of them to a device."""
        for module in (self.student, self.teacher, self.loss):
            module.to(device)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {
            "model": self.student.backbone.config(),
            "head": self.head,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "dino_loss": self.loss.state_dict(),
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume from a checkpoint of the same run."""
        self.student.load_state_dict(checkpoint["student"])
        self.teacher.load_state_dict(checkpoint["teacher"])
        self.loss.load_state_dict(checkpoint["dino_loss"])

    def load_weights(self, path: str) -> None:
        """Start from the teacher of any checkpoint of this architecture; from its head too if that fits."""
        checkpoint = load_checkpoint(path)
        head = head_state(checkpoint)
        shapes = {name: value.shape for name, value in self.student.head.state_dict().items()}
        fits = {name: value.shape for name, value in head.items()} == shapes
        for network in (self.student, self.teacher):
            load_backbone(checkpoint, model=network.backbone)
            network.backbone.train()
            if fits:
                network.head.load_state_dict(head)
        parts = "backbone and head" if fits else "backbone only: the head has new weights"
        logger.info("weights from %s, %s", path, parts)


def make_networks(config: Config, plan: Plan, options: Mapping[str, Any], views: int) -> Networks:
    """Build student and teacher, alike at first, and the loss; weights from the global generator of torch.

    ``options`` are those of `gridrad_cube.models.build`; ``views`` counts those of a sample.
    """
    student = build(drop_path_rate=config.drop_path_rate, **options)
    teacher = build(**options)
    dino = config.objective == "dino"
    own = {"kind": "dino", "out_dim": plan.out_dim, "norm_last_layer": config.norm_last_layer}
    head = own if dino else {"kind": "projection", "out_dim": 256}
    head |= {"use_bn": config.use_bn_in_head, "hidden_dim": config.head_hidden_dim}
    networks = Networks(
        _MultiView(student, _make_head(student.embed_dim, head)),
        _MultiView(teacher, _make_head(student.embed_dim, head)),
        _make_dino_loss(config, plan, views) if dino else CodingRateLoss(views),
        head,
    )
    networks.teacher.load_state_dict(networks.student.state_dict())
    networks.teacher.requires_grad_(False)
    return networks


def _make_head(width: int, options: Mapping[str, Any]) -> nn.Module:
    kind = DINOHead if options["kind"] == "dino" else ProjectionHead
    return kind(width, **{name: value for name, value in options.items() if name != "kind"})


def _make_dino_loss(config: Config, plan: Plan, views: int) -> DINOLoss:
    unit = plan.steps_per_epoch if config.dino_v1 else 1
    loss = DINOLoss(
        plan.out_dim, views, plan.warmup_teacher_temp, plan.teacher_temp, plan.temp_warmup_steps // unit,
        -(-plan.steps // unit),
    )  # fmt: skip
    loss.teacher_temps = loss.teacher_temps.repeat(unit)[: plan.steps]  # one per step
    return loss


def make_optimizer(config: Config, student: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the student; its two groups get rate and decay at each step."""
    groups = parameter_groups(student)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
    # On a CPU the fused one takes a tenth of the time of the loop that is the default of torch.
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def compile_networks(networks: Networks, device: torch.device) -> None:
    """Compile the forward passes of student and teacher; state dicts stay as they are."""
    try:
        torch.compile(_sine, dynamic=False)(torch.zeros(8, device=device))
    except (ImportError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise SchemaError(
            f"--compile: torch cannot compile for {device.type} here ({reason.rstrip('.')}). Install a C++ "
            "compiler (for a GPU Triton too), or leave --compile out."
        ) from error
    for network in (networks.student, networks.teacher):
        # Views have two shapes: two static graphs are faster than one for any shape.
        network.backbone.compile(dynamic=False)
        network.head.compile(dynamic=False)


def _sine(x: Tensor) -> Tensor:
    return x.sin() + x.cos()


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bf16: as asked, or where the processor multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
