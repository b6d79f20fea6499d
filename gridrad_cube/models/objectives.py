"""Parts of training besides the network: heads, losses, a schedule, clipping and the teacher's average.

State-dict keys and, by default, numbers are those of DINO (Caron et al. 2021). The coding-rate objective is
that
of SimDINO (Wu et al. 2025, arXiv 2502.10385). The contrast between places is InfoNCE (van den Oord et al.
2018,
arXiv 1807.03748), in both directions as in CLIP (Radford et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gridrad_cube.models.vit import initialize_linear

#: Constants of DINO: temperature of the student, and share of the center that each step keeps.
_STUDENT_TEMP, _CENTER_MOMENTUM = 0.1, 0.9
#: Squared precision to which the coding rate codes features.
_DISTORTION = 0.05


class ProjectionHead(nn.Module):
    """A perceptron of three layers whose outputs are unit vectors: the head of `CodingRateLoss`.

    The two hidden layers have ``hidden_dim`` units. ``use_bn`` puts batch normalization after each of them, which
    shifts the numbers in the keys, as in DINO.
    """

    def __init__(
        self, in_dim: int, out_dim: int = 256, *, use_bn: bool = False, hidden_dim: int = 2048
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            modules.append(nn.Linear(width, hidden_dim))
            modules += [nn.BatchNorm1d(hidden_dim), nn.GELU()] if use_bn else [nn.GELU()]
        self.mlp = nn.Sequential(*modules, nn.Linear(hidden_dim, out_dim)).apply(initialize_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to unit vectors, float32 also under autocast.

        Parameters
        ----------
        x
            Input of shape (B, in_dim).

        Returns
        -------
        Shape (B, out_dim).
        """
        return F.normalize(self.mlp(x).float(), dim=-1)


class _Prototypes(nn.Module):
    """Cosines with ``out_dim`` directions, each scaled: a weight-normalized linear map without bias.

    The keys are those of the old ``torch.nn.utils.weight_norm``: ``weight_g`` (out_dim, 1), ``weight_v``
    (out_dim, in_dim).
    """

    def __init__(self, in_dim: int, out_dim: int, *, learn_scale: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=learn_scale)
        bound = in_dim**-0.5
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, in_dim) to (B, out_dim)."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=-1))


class DINOHead(ProjectionHead):
    """DINO's head: `ProjectionHead` onto 256 dimensions, then cosines with ``out_dim`` prototypes.

    ``norm_last_layer`` keeps the prototypes at unit length (``weight_g`` frozen at 1).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        use_bn: bool = False,
        norm_last_layer: bool = True,
        hidden_dim: int = 2048,
    ) -> None:
        super().__init__(in_dim, use_bn=use_bn, hidden_dim=hidden_dim)
        self.last_layer = _Prototypes(256, out_dim, learn_scale=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to logits.

        Parameters
        ----------
        x
            Input of shape (B, in_dim).

        Returns
        -------
        Shape (B, out_dim).
        """
        return self.last_layer(super().forward(x))


class DINOLoss(nn.Module):
    """Cross-entropy between the centered, sharpened teacher and the student, over pairs of different views.

    The first views of the student are the teacher's. In loops::

        for t in teacher views:
            for s in student views other than t:
                target = softmax((teacher_t - center) / teacher_temp)
                loss += mean over samples of -target . log_softmax(student_s / student_temp)
        loss /= number of pairs

    Parameters
    ----------
    out_dim
        Prototypes K.
    views
        Views of the student, global and local.
    warmup_teacher_temp, teacher_temp, warmup_epochs, epochs
        The temperature of the teacher rises linearly over the first epochs, then stays.
    """

    center: Tensor

    def __init__(
        self,
        out_dim: int,
        views: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_epochs: int,
        epochs: int,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_epochs <= epochs:
            raise ValueError(
                f"DINOLoss: warmup_epochs={warmup_epochs} does not fit into epochs={epochs}. "
                "Lower `warmup_teacher_temp_epochs` or train longer."
            )
        self.views = views
        self.teacher_temps = np.full(epochs, teacher_temp, dtype=np.float64)
        self.teacher_temps[:warmup_epochs] = np.linspace(warmup_teacher_temp, teacher_temp, warmup_epochs)
        self.register_buffer("center", torch.zeros(1, out_dim))
        #: The teacher's logits of the step so far: their sum, and their number.
        self._seen: tuple[Tensor | float, int] = (0.0, 0)

    def forward(self, student: Tensor, teacher: Tensor, epoch: int, *, last: bool = True) -> Tensor:
        """Return the loss of one batch, then move the center.

        Parameters
        ----------
        student
            Logits (views * B, K), view by view.
        teacher
            Logits (teacher views * B, K), view by view; no gradient flows through them.
        epoch
            From 0.
        last
            True for the last batch of a step. The center moves once in each step, after its last batch, by
            the mean over all batches.

        Returns
        -------
        The loss, a scalar.
        """
        teacher = teacher.detach().float()
        # Autocast would round the products to bf16, which matters at a temperature of 0.04 or less.
        with torch.autocast(student.device.type, enabled=False):
            logits = _by_view(student.float(), self.views) / _STUDENT_TEMP
            targets = ((teacher - self.center) / float(self.teacher_temps[epoch])).softmax(-1)
            targets = _by_view(targets, len(teacher) // logits.shape[1])
            # CE(q, v) = logsumexp(v) - q.v, so one logsumexp for each view is enough for all of its pairs.
            cross_entropy = logits.logsumexp(-1) - torch.einsum("tbk,sbk->tsb", targets, logits)
            loss = _mean_of_pairs(cross_entropy)
        total, rows = self._seen
        self._seen = (total + teacher.sum(0, keepdim=True), rows + len(teacher))
        if last:
            self._move_center()
        return loss

    @torch.no_grad()
    def _move_center(self) -> None:
        (total, rows), self._seen = self._seen, (0.0, 0)
        assert isinstance(total, Tensor)
        mean = total / rows
        if _world_size() > 1:
            dist.all_reduce(mean)
        mean = mean / _world_size()
        moved = _CENTER_MOMENTUM * self.center + (1 - _CENTER_MOMENTUM) * mean
        # One overflow must not change all later steps.
        self.center.copy_(torch.where(moved.isfinite(), moved, self.center))


class CodingRateLoss(nn.Module):
    """Align the views of a sample and spread the samples: DINO without prototypes or temperatures.

    For unit vectors z of dimension d, n samples over all ranks and teacher views T::

        alignment = mean over pairs (t, s != t) of 1 - z_t . z_s
        expansion = mean over s in T of 1/2 logdet(I + d / (0.05 n) sum over samples of z_s z_s')
        loss = alignment - (n + d) / (n d) expansion

    The factor (n + d) / (n d) keeps the two terms of similar size for any batch. A step of several batches spreads
    the samples of each batch apart.

    Parameters
    ----------
    views
        Views of the student, global and local.
    """

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = views

    def forward(self, student: Tensor, teacher: Tensor, epoch: int = 0, *, last: bool = True) -> Tensor:
        """Return the loss of one batch.

        Parameters
        ----------
        student
            Unit vectors (views * B, d), view by view, as `ProjectionHead` gives them.
        teacher
            Unit vectors (teacher views * B, d); no gradient flows through them.
        epoch, last
            Not used; both losses have the same signature.

        Returns
        -------
        The loss, a scalar.
        """
        with torch.autocast(student.device.type, enabled=False):
            z = _by_view(student.float(), self.views)
            targets = _by_view(teacher.detach().float(), len(teacher) // z.shape[1])
            alignment = _mean_of_pairs(1 - torch.einsum("tbd,sbd->tsb", targets, z))
            n, d = z.shape[1] * _world_size(), z.shape[2]
            scatter = _sum_over_ranks(z[: len(targets)].mT @ z[: len(targets)])
            # cholesky_ex does not wait for the device; the matrix is positive definite by construction.
            inner = torch.eye(d, device=z.device) + d / (n * _DISTORTION) * scatter
            factor, _ = torch.linalg.cholesky_ex(inner)
            expansion = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).mean()
        return alignment - (n + d) / (n * d) * expansion


class ContrastHead(nn.Module):
    """Layer norm and a perceptron of two layers whose outputs are unit vectors: the head of `contrast_loss`."""

    def __init__(self, in_dim: int, out_dim: int = 128, *, hidden_dim: int = 256) -> None:
        super().__init__()
        self.out_dim = out_dim
        layers = (
            nn.LayerNorm(in_dim),
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, out_dim),
        )
        self.mlp = nn.Sequential(*layers).apply(initialize_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to unit vectors, float32 also under autocast.

        Parameters
        ----------
        x
            Input of shape (B, in_dim).

        Returns
        -------
        Shape (B, out_dim).
        """
        return F.normalize(self.mlp(x).float(), dim=-1)


def contrast_loss(
    first: Tensor, second: Tensor, windows: tuple[Tensor, Tensor], *, edge: int, temperature: float = 0.1
) -> Tensor:
    """Return the loss of distinguishing the window of the same place at another time from the other windows
    of a batch.

    For unit vectors a of the first windows and b of the second ones, all ranks together::

        loss = mean over i of [ -log softmax_j (a_i . b_j / temperature) at j = i
                                -log softmax_j (b_i . a_j / temperature) at j = i ] / 2

    A window that overlaps the right answer in space is not a wrong answer and is left out of the softmax,
    unless its time is further away than twice the lead of the pair. Then it shows another state of the same
    place.

    Parameters
    ----------
    first, second
        Unit vectors of the pairs, (B, D).
    windows
        Positions of the first and the second windows, int64, (B, 4) each: number of the place (windows of
        different places never overlap), time in seconds, top and left edge in pixels.
    edge
        Edge of a window in pixels.
    temperature
        Divisor of the cosines.

    Returns
    -------
    The loss, a scalar.
    """
    first, second = _gather_with_gradient(first.float()), _gather_with_gradient(second.float())
    here, there = (_gather(w) for w in windows)
    lead = (there[:, 1] - here[:, 1]).abs()
    with torch.autocast(first.device.type, enabled=False):
        cosines = first @ second.mT / temperature
        forth = cosines.masked_fill(_is_same_place(there, lead, edge), -torch.inf)
        back = cosines.mT.masked_fill(_is_same_place(here, lead, edge), -torch.inf)
        right = torch.arange(len(first), device=first.device)
        return (F.cross_entropy(forth, right) + F.cross_entropy(back, right)) / 2


def _is_same_place(windows: Tensor, lead: Tensor, edge: int) -> Tensor:
    """Return which windows (column) are left out as wrong answers of each pair (row), (B, B)."""
    apart = (windows[:, None] - windows[None]).abs()
    overlap = (apart[..., 0] == 0) & (apart[..., 2] < edge) & (apart[..., 3] < edge)
    near = apart[..., 1] <= 2 * lead[:, None]
    return overlap & near & ~torch.eye(len(windows), dtype=torch.bool, device=windows.device)


def _by_view(x: Tensor, views: int) -> Tensor:
    """Reshape (views * B, ...) to (views, B, ...)."""
    if views < 1 or len(x) % views:
        raise ValueError(f"loss: {len(x)} rows are not whole batches of {views} views")
    return x.unflatten(0, (views, -1))


def _mean_of_pairs(pairs: Tensor) -> Tensor:
    """Return the mean of (T, S, B) over samples and over the pairs of different views."""
    count = pairs.shape[0] * pairs.shape[1] - min(pairs.shape[:2])
    if not count:
        raise ValueError("loss: there is no pair of different views. Draw more views.")
    same = torch.eye(*pairs.shape[:2], dtype=torch.bool, device=pairs.device)
    return pairs.mean(-1).masked_fill(same, 0.0).sum() / count


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum over ranks whose gradient is right once DDP has averaged it over the ranks."""
    world = _world_size()
    if world == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total + world * (x - x.detach())


def _gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of the ranks, without gradient."""
    if _world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def _gather_with_gradient(x: Tensor) -> Tensor:
    """Return the rows of all ranks; the gradient of this rank's is right once DDP has averaged it over the
    ranks.
    """
    world = _world_size()
    if world == 1:
        return x
    rows, rank = _gather(x), dist.get_rank()
    own = x.detach() + world * (x - x.detach())
    return torch.cat([rows[: rank * len(x)], own, rows[(rank + 1) * len(x) :]])


def cosine_schedule(base: float, final: float, steps: int, warmup_steps: int = 0) -> npt.NDArray[np.float64]:
    """Return one value for each step: linear from 0 up to ``base``, then half a cosine down to ``final``.

    Parameters
    ----------
    base
        Value after the warm-up.
    final
        Value at the end.
    steps
        Number of steps.
    warmup_steps
        Number of steps of the warm-up.

    Returns
    -------
    float64, (steps,).

    Raises
    ------
    ValueError
        If the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(
            f"schedule: a warm-up of {warmup_steps} steps does not fit into {steps}. "
            "Lower `warmup_epochs` or train longer."
        )
    rise = np.linspace(0.0, base, warmup_steps)
    rest = steps - warmup_steps
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1)))
    return np.concatenate([rise, fall])


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: parameters with weight decay, and biases and norms without.

    As in DINO, the class token, positions and ``weight_g`` have weight decay. Frozen parameters are in
    neither group.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    Two groups.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    spared = [p for name, p in named if name.endswith(".bias") or p.ndim == 1]
    decayed = [p for name, p in named if not (name.endswith(".bias") or p.ndim == 1)]
    return [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]


@torch.no_grad()
def clip_per_tensor_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale each gradient to an L2 norm of at most ``max_norm``, without waiting for the device.

    Parameters
    ----------
    parameters
        Parameters with gradients.
    max_norm
        Largest norm.

    Returns
    -------
    The norm of all gradients together before clipping, a scalar on their device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms.norm()


@torch.no_grad()
def update_teacher_(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher toward the student: ``m * teacher + (1 - m) * student``.

    Buffers do not change, as in DINO.

    Parameters
    ----------
    student
        The student.
    teacher
        The teacher, changed in place.
    momentum
        Share m of the teacher.

    Raises
    ------
    ValueError
        If the networks differ.
    """
    old: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    if [p.shape for p in old] != [p.shape for p in new]:
        raise ValueError(
            f"update_teacher_: teacher ({len(old)} tensors) and student ({len(new)} tensors) do not match. "
            "Build both from the same config."
        )
    torch._foreach_lerp_(old, new, 1 - momentum)
