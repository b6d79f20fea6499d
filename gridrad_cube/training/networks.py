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
    ContrastHead,
    DINOHead,
    DINOLoss,
    LocalMaps,
    NetworkInput,
    Pool,
    ProjectionHead,
    VisionTransformer,
    build,
    contrast_loss,
    head_state,
    load_backbone,
    load_checkpoint,
    load_contrast_head,
    local_maps,
    parameter_groups,
    pool_tokens,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.training.config import Config
from gridrad_cube.training.plan import Plan

logger = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """Results of a network, view by view.

    ``features`` are the class tokens (views * B, D), and ``heads`` what the head of DINO or coding rate makes of them,
    (views * B, K). ``unit`` are the unit vectors of the contrast, of the two global views, (2 * B, K); they are the
    features too where there is no other objective.
    """

    features: Tensor
    heads: Tensor | None = None
    unit: Tensor | None = None


class _MultiView(nn.Module):
    """A backbone and its heads over views of several sizes; keys ``backbone.*`` and ``head.*`` as in DINO.

    The head reads the class token, the head of the contrast the mean and deviation of the tokens of the global views.
    ``pool`` says what will be embedded.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        head: nn.Module | None,
        *,
        contrast_head: ContrastHead | None = None,
        pool: Pool = "class",
        global_views: int = 2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head, self.contrast_head = head, contrast_head
        self.pool, self.global_views = pool, global_views

    def embed(self, view: NetworkInput) -> Tensor:
        """Return the embeddings of a view, (B, D)."""
        used = view.attention_mask
        if used is None and view.token_mask is not None:
            used = ~view.token_mask
        # Not by calling the backbone: a compiled one would be compiled again for these shapes.
        tokens = self.backbone.get_intermediate_layers(view.x, 1, *view[1:])[0]
        return pool_tokens(tokens, None if used is None else used.flatten(1), self.pool, self.contrast_head)

    def forward(self, views: Sequence[NetworkInput]) -> Outputs:
        """Apply the backbone; neighboring views of one shape are processed together."""
        tokens, pooled = [], []
        for _, group in itertools.groupby(views, key=lambda view: view.edges):
            x, *masks = zip(*group, strict=True)
            hidden, attended = (_join(mask) for mask in masks)
            if self.contrast_head is None:
                tokens.append(self.backbone(_join_inputs(x), hidden, attended))
                continue
            found = self.backbone.forward_tokens(_join_inputs(x), hidden, attended)
            tokens.append(found[:, 0])
            pooled.append(pool_tokens(found, None if hidden is None else ~hidden, "mean+std"))
        features = torch.cat(tokens)
        heads = None if self.head is None else self.head(features)
        if self.contrast_head is None:
            return Outputs(features, heads)
        # Local views may be as large as global ones and share their group.
        rows = len(features) // len(views) * self.global_views
        unit = self.contrast_head(torch.cat(pooled)[:rows])
        return Outputs(unit if self.head is None else features, heads, unit)


def _join(masks: Sequence[Tensor | None]) -> Tensor | None:
    given = [mask for mask in masks if mask is not None]
    return torch.cat(given) if given else None


def _join_inputs(inputs: Sequence[Any]) -> Any:
    if isinstance(inputs[0], LocalMaps):
        return LocalMaps(*map(torch.cat, zip(*inputs, strict=True)))
    return torch.cat(list(inputs))


class Losses(nn.Module):
    """The loss of a step: of DINO or coding rate, and of the contrast by its weight."""

    def __init__(self, config: Config, distillation: nn.Module | None, *, edge: int) -> None:
        super().__init__()
        self.distillation = distillation
        self.contrast = 1.0 if config.objective == "contrast" else config.contrast_weight
        self.temperature, self.edge = config.temperature, edge

    def forward(
        self,
        learnt: Outputs,
        taught: Outputs | None,
        windows: Tensor | None,
        step: int,
        *,
        last: bool,
    ) -> Tensor:
        """Return the loss of one batch; ``windows`` (2 B, 4) say where the pairs lie, see
        `gridrad_cube.datasets.Batch`.
        """
        loss = learnt.features.new_zeros(())
        if self.distillation is not None:
            assert taught is not None
            loss = loss + self.distillation(learnt.heads, taught.heads, step, last=last)
        if learnt.unit is not None:
            assert windows is not None
            first, second = learnt.unit.chunk(2)
            here, there = windows.chunk(2)
            contrast = contrast_loss(
                first, second, (here, there), edge=self.edge, temperature=self.temperature
            )
            loss = loss + self.contrast * contrast
        return loss


@dataclass
class Networks:
    """Student and teacher, the loss between them, and the options of the head."""

    student: _MultiView
    teacher: _MultiView
    loss: Losses
    head: dict[str, Any]

    @property
    def features(self) -> int:
        """Length of the features that are monitored."""
        contrast_head = self.student.contrast_head
        if self.student.head is None and contrast_head is not None:
            return contrast_head.out_dim
        return self.student.backbone.embed_dim

    @property
    def dino_loss(self) -> DINOLoss | None:
        """The loss of DINO, if it is a part."""
        return self.loss.distillation if isinstance(self.loss.distillation, DINOLoss) else None

    def prepare(self, views: Sequence[NetworkInput]) -> list[NetworkInput]:
        """Return the views with local maps instead of pixels, if the networks read these: computed
        once for both.
        """
        if self.student.backbone.stem is None:
            return list(views)
        return [view._replace(x=local_maps(view.x)) for view in views]  # type: ignore[arg-type]

    @torch.no_grad()
    def fit(self, views: Sequence[NetworkInput]) -> None:
        """Standardize the local maps by those of some views."""
        local = _join_inputs([view.x for view in self.prepare(views)])
        for network in (self.student, self.teacher):
            assert network.backbone.stem is not None
            network.backbone.stem.fit(local)

    def to(self, device: torch.device) -> None:
        """Move all of them to a device."""
        for module in (self.student, self.teacher, self.loss):
            module.to(device)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of them."""
        return {
            "model": self.student.backbone.config(),
            "head": self.head,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "pool": self.student.pool,
            "dino_loss": {} if self.loss.distillation is None else self.loss.distillation.state_dict(),
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume from a checkpoint of the same run."""
        self.student.load_state_dict(checkpoint["student"])
        self.teacher.load_state_dict(checkpoint["teacher"])
        if self.loss.distillation is not None:
            self.loss.distillation.load_state_dict(checkpoint["dino_loss"])

    def load_weights(self, path: str) -> None:
        """Start from the teacher of any checkpoint of this architecture; from its heads too if they fit."""
        checkpoint = load_checkpoint(path)
        contrast_head = load_contrast_head(checkpoint)
        head = head_state(checkpoint)
        own = self.student.head
        shapes = {} if own is None else {name: value.shape for name, value in own.state_dict().items()}
        fits = own is not None and {name: value.shape for name, value in head.items()} == shapes
        for network in (self.student, self.teacher):
            load_backbone(checkpoint, model=network.backbone)
            network.backbone.train()
            if fits and network.head is not None:
                network.head.load_state_dict(head)
            if contrast_head is not None and network.contrast_head is not None:
                network.contrast_head.load_state_dict(contrast_head.state_dict())
        fits |= own is None and contrast_head is not None
        parts = "backbone and head" if fits else "backbone only: the head has new weights"
        logger.info("weights from %s, %s", path, parts)


def make_networks(
    config: Config, plan: Plan, options: Mapping[str, Any], views: int, *, edge: int = 0
) -> Networks:
    """Build student and teacher, alike at first, and the loss; weights from the global generator of torch.

    ``options`` are those of `gridrad_cube.models.build`; ``views`` counts those of a sample; ``edge`` is that of a
    window in pixels of the store, for the contrast.
    """
    backbones = [build(drop_path_rate=config.drop_path_rate, **options), build(**options)]
    head: dict[str, Any] = {"kind": "contrast"}
    distillation: nn.Module | None = None
    if config.objective != "contrast":
        own = {"kind": "dino", "out_dim": plan.out_dim, "norm_last_layer": config.norm_last_layer}
        head = own if config.objective == "dino" else {"kind": "projection", "out_dim": 256}
        head |= {"use_bn": config.use_bn_in_head, "hidden_dim": config.head_hidden_dim}
        dino = config.objective == "dino"
        distillation = _make_dino_loss(config, plan, views) if dino else CodingRateLoss(views)
    student, teacher = (
        _MultiView(
            backbone,
            None if distillation is None else _make_head(backbone.embed_dim, head),
            contrast_head=ContrastHead(2 * backbone.embed_dim) if config.pairs_windows else None,
            pool=config.pool,
        )
        for backbone in backbones
    )
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    return Networks(student, teacher, Losses(config, distillation, edge=edge), head)


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
    """Return the optimizer of the student; its two groups get rate and decay at each step."""
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
            f"`compile`: torch cannot compile for {device.type} here ({reason.rstrip('.')}). Install a C++ "
            "compiler (for a GPU Triton too), or leave `compile` out."
        ) from error
    for network in (networks.student, networks.teacher):
        # Views have two shapes: two static graphs are faster than one for any shape.
        network.backbone.compile(dynamic=False)
        if network.contrast_head is not None:
            compiled = torch.compile(network.backbone.forward_tokens, dynamic=False)
            network.backbone.forward_tokens = compiled  # type: ignore[method-assign]
        if network.head is not None:
            network.head.compile(dynamic=False)


def _sine(x: Tensor) -> Tensor:
    return x.sin() + x.cos()


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether matrix products run in bf16: as asked, or where the processor multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
