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
    ProjectionHead,
    VisionTransformer,
    build,
    head_state,
    load_backbone,
    load_checkpoint,
    parameter_groups,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.training.config import Config, named_refusals
from gridrad_cube.training.plan import Plan
from gridrad_cube.training.sources import DrawnView, Source

logger = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """What a network gives of views, view by view: of the head (views * B, K), and its class tokens (views * B, D)."""

    heads: Tensor
    features: Tensor


class MultiView(nn.Module):
    """A backbone and a head over views of several sizes; keys ``backbone.*`` and ``head.*`` as DINO's."""

    def __init__(self, backbone: VisionTransformer, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[DrawnView]) -> Outputs:
        """Neighbouring views of one shape go through the backbone together."""
        parts = []
        for _, group in itertools.groupby(views, key=lambda view: view.x.shape):
            same = list(group)
            masks = [_joined([v.token_mask for v in same]), _joined([v.attention_mask for v in same])]
            parts.append(self.backbone(torch.cat([v.x for v in same]), *masks))
        features = torch.cat(parts)
        return Outputs(self.head(features), features)


def _joined(masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    return torch.cat([torch.zeros_like(given[0]) if mask is None else mask for mask in masks])


@dataclass
class Networks:
    """Student and teacher, the loss between them, and what the head was made with."""

    student: MultiView
    teacher: MultiView
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
        """Go on from a checkpoint of the same run.

        Raises
        ------
        SchemaError
            If it holds another network.
        """
        ours = self.student.backbone.config()
        if (checkpoint["model"], checkpoint["head"]) != (ours, self.head):
            raise SchemaError(
                f"checkpoint: of another network, {checkpoint['model']} with {checkpoint['head']}; expected {ours} "
                f"with {self.head}. Pass another --out."
            )
        self.student.load_state_dict(checkpoint["student"])
        self.teacher.load_state_dict(checkpoint["teacher"])
        self.loss.load_state_dict(checkpoint["dino_loss"])

    def load_weights(self, path: str) -> None:
        """Start from the teacher of any checkpoint of this architecture; from its head too if that fits.

        Raises
        ------
        SchemaError
            If the backbone is of another architecture; names what differs.
        """
        checkpoint = load_checkpoint(path)
        head = head_state(checkpoint)
        shapes = {name: value.shape for name, value in self.student.head.state_dict().items()}
        for network in (self.student, self.teacher):
            load_backbone(checkpoint, model=network.backbone)
            network.backbone.train()
            if {name: value.shape for name, value in head.items()} == shapes:
                network.head.load_state_dict(head)
        fits = {name: value.shape for name, value in head.items()} == shapes
        logger.info(
            "weights from %s, %s", path, "head and all" if fits else "backbone only: the head starts anew"
        )


def make_networks(config: Config, plan: Plan, source: Source) -> Networks:
    """Build student and teacher, alike at first, and the loss; weights from torch's global generator."""
    sizes: dict[str, Any] = {
        "in_channels": source.in_channels,
        "patch_size": source.patch_size,
        "image_size": source.image_size,
        "position": "dino_v1" if config.dino_v1 else "exact",
        "mask_token": source.level == "256" and not config.dino_v1,
    }
    with named_refusals():
        student = build(source.arch, drop_path_rate=config.drop_path_rate, **sizes)
        teacher = build(source.arch, **sizes)
    head = _head_options(config, plan)
    networks = Networks(
        MultiView(student, _make_head(student.embed_dim, head)),
        MultiView(teacher, _make_head(student.embed_dim, head)),
        _make_loss(config, plan, source.views),
        head,
    )
    networks.teacher.load_state_dict(networks.student.state_dict())
    networks.teacher.requires_grad_(False)
    return networks


def _head_options(config: Config, plan: Plan) -> dict[str, Any]:
    common: dict[str, Any] = {"use_bn": config.use_bn_in_head, "hidden_dim": config.head_hidden_dim}
    if config.objective == "coding-rate":
        return {"kind": "projection", "out_dim": 256, **common}
    return {"kind": "dino", "out_dim": plan.out_dim, "norm_last_layer": config.norm_last_layer, **common}


def _make_head(width: int, options: Mapping[str, Any]) -> nn.Module:
    arguments = {name: value for name, value in options.items() if name != "kind"}
    return DINOHead(width, **arguments) if options["kind"] == "dino" else ProjectionHead(width, **arguments)


def _make_loss(config: Config, plan: Plan, views: int) -> nn.Module:
    if config.objective == "coding-rate":
        return CodingRateLoss(views)
    unit = plan.steps_per_epoch if config.dino_v1 else 1
    loss = DINOLoss(
        plan.out_dim, views, plan.warmup_teacher_temp, plan.teacher_temp, plan.temp_warmup_steps // unit,
        -(-plan.steps // unit),
    )  # fmt: skip
    loss.teacher_temps = loss.teacher_temps.repeat(unit)[: plan.steps]  # one a step
    return loss


def make_optimizer(config: Config, student: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the student; its two groups get rate and decay at each step."""
    groups = parameter_groups(student)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)
    return torch.optim.AdamW(
        groups, lr=0.0, fused=True
    )  # on a CPU a tenth of the loop that is torch's default


def compile_networks(networks: Networks, device: torch.device) -> None:
    """Compile the forward passes of student and teacher; state dicts stay as they are.

    Raises
    ------
    SchemaError
        If torch cannot compile here.
    """
    try:
        torch.compile(_probe, dynamic=False)(torch.zeros(8, device=device))
    except (ImportError, RuntimeError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise SchemaError(
            f"--compile: torch cannot compile for {device.type} here ({reason.rstrip('.')}). Install a C++ "
            "compiler (for a GPU Triton too), or leave --compile out."
        ) from error
    for network in (networks.student, networks.teacher):
        # Views have two shapes: two static graphs are faster than one that takes any.
        network.backbone.compile(dynamic=False)
        network.head.compile(dynamic=False)


def _probe(x: Tensor) -> Tensor:
    return x.sin() + x.cos()


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bf16: as asked, or where the processor multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
