"""Targets for single tokens: what is hidden from the student, it is to tell as the teacher sees it.

Cross-entropy over prototypes is iBOT's (Zhou et al. 2022, arXiv 2111.07832), alignment and coding rate without
prototypes after SimDINOv2 (Wu et al. 2025, arXiv 2502.10385).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridrad_cube.models.objectives import coding_rate, move_center_, sum_over_ranks
from gridrad_cube.models.views import uniforms


@dataclass(frozen=True)
class HiddenTokens:
    """Tokens of a batch of views that the student does not see.

    Attributes
    ----------
    mask
        All tokens, true where hidden, bool, (B, N).
    index
        Which tokens these are, equally many in each view, int64, (B, M).
    counts
        Whether there is anything to tell, bool, (B, M): tokens that were not observed never count.
    """

    mask: Tensor
    index: Tensor
    counts: Tensor

    def pick(self, tokens: Tensor) -> Tensor:
        """The hidden ones of tokens (B, N, D), in a row: (B * M, D)."""
        return tokens.gather(1, self.index[..., None].expand(-1, -1, tokens.shape[2])).flatten(0, 1)


@torch.no_grad()
def hide_tokens(observed: Tensor, share: float, seeds: Tensor, stream: int) -> HiddenTokens:
    """Draw which tokens to hide: blobs, since a token among seen ones is told by interpolation.

    The tokens with the largest of uniform numbers averaged over 3 x 3 neighbours (across the edges too, so that
    all tokens are hidden equally often). Observed ones come first.

    Parameters
    ----------
    observed
        Where tokens can count, bool, (B, rows, columns).
    share
        Of the tokens of a view, between 0 and 1; at least one token is hidden.
    seeds
        Of the samples (B,), int64; see `sample_seeds`.
    stream
        Of random numbers; another one for each view.
    """
    rows, columns = observed.shape[1:]
    noise = F.pad(uniforms(seeds, stream, 1, rows, columns), (1, 1, 1, 1), mode="circular")
    score = F.avg_pool2d(noise, 3, stride=1)[:, 0].masked_fill(~observed, -1.0).flatten(1)
    number = min(max(1, round(share * rows * columns)), rows * columns)
    index = score.topk(number, dim=1).indices
    mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, index, True)
    return HiddenTokens(mask, index, observed.flatten(1).gather(1, index))


class TokenDINOLoss(nn.Module):
    """Cross-entropy between the centred, sharpened teacher and the student at hidden tokens.

    As `DINOLoss` at one place of one view, with a centre of its own; the mean is over the tokens that count.

    Parameters
    ----------
    out_dim
        Prototypes K.
    teacher_temps
        The teacher's temperature at each step.
    student_temp, center_momentum
        As in `DINOLoss`.
    """

    center: Tensor

    def __init__(
        self,
        out_dim: int,
        teacher_temps: Sequence[float] | np.ndarray,
        student_temp: float,
        center_momentum: float,
    ) -> None:
        super().__init__()
        self.teacher_temps, self.student_temp = teacher_temps, student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))
        #: The teacher's logits of the step so far: their sums, and how many.
        self._seen: list[Tensor] = []

    def forward(
        self, student: Tensor, teacher: Tensor, counts: Tensor, step: int, *, last: bool = True
    ) -> Tensor:
        """The loss of one batch; then moves the centre.

        Parameters
        ----------
        student, teacher
            Logits at the hidden tokens, (N, K).
        counts
            Which of them count, bool, (N,).
        step
            From 0.
        last
            Whether this is the last batch of the step: as in `DINOLoss`, the centre moves after it.
        """
        teacher, weight = teacher.detach().float(), counts.float()
        with torch.autocast(student.device.type, enabled=False):
            logits = student.float() / self.student_temp
            targets = ((teacher - self.center) / float(self.teacher_temps[step])).softmax(-1)
            cross_entropy = logits.logsumexp(-1) - (targets * logits).sum(-1)
            loss = _weighted_mean(cross_entropy, weight)
            self._seen.append(torch.cat([weight @ teacher, weight.sum(0, keepdim=True)]))
        if last:
            self._move_center()
        return loss

    @torch.no_grad()
    def _move_center(self) -> None:
        total = sum_over_ranks(torch.stack(self._seen).sum(0))
        self._seen = []
        mean = total[:-1] / total[-1]  # not finite where no token counts: then the centre stays
        move_center_(self.center, mean, self.center_momentum)


class TokenCodingRateLoss(nn.Module):
    """`CodingRateLoss` at hidden tokens: each is aligned with the teacher's, all that count are spread.

    Parameters
    ----------
    distortion, weight
        As in `CodingRateLoss`.
    """

    def __init__(self, distortion: float, weight: float) -> None:
        super().__init__()
        self.distortion, self.weight = distortion, weight

    def forward(
        self, student: Tensor, teacher: Tensor, counts: Tensor, step: int = 0, *, last: bool = True
    ) -> Tensor:
        """The loss of one batch: as `TokenDINOLoss`, of unit vectors (N, d); ``step`` and ``last`` are not used."""
        with torch.autocast(student.device.type, enabled=False):
            z, weight = student.float(), counts.float()
            alignment = _weighted_mean(1 - (z * teacher.detach().float()).sum(-1), weight)
            number, d = sum_over_ranks(weight.sum()).clamp(min=1.0), z.shape[1]
            scatter = sum_over_ranks((z * weight[:, None]).mT @ z)
            expansion = coding_rate(scatter, number, self.distortion)
            return alignment - self.weight * (number + d) / (number * d) * expansion


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1.0)
