"""What tells learning from collapse while it happens; `gridrad_cube.evaluation` probes afterwards."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)


def rank_me(features: Tensor) -> float:
    """Effective rank of features (N, D): the exponential of the entropy of their singular values.

    RankMe (Garrido et al. 2023, arXiv 2210.02885): between 1 and D, comparable between runs of one method.
    """
    x = features.double()
    # Eigenvalues of the small Gram matrix are the squares of the singular values.
    gram = x.mT @ x if x.shape[0] >= x.shape[1] else x @ x.mT
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-30)
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


class Monitor:
    """Teacher's outputs and features of late, and what they say.

    Parameters
    ----------
    width
        Of the features.
    queue
        How many features are kept for the effective rank.
    device
        Where they are.
    """

    def __init__(self, width: int, *, queue: int = 2048, device: torch.device | None = None) -> None:
        self._queue = torch.zeros(queue, width, device=device)
        self._filled = self._next = 0
        self._warned: set[str] = set()
        self._suspected: set[str] = set()

    @torch.no_grad()
    def add(self, features: Tensor, views: int) -> None:
        """Keep the features (views * B, D) of the first view of each sample."""
        first = features[: len(features) // views].float()[: len(self._queue)]
        end = self._next + len(first)
        place = torch.arange(self._next, end, device=first.device) % len(self._queue)
        self._queue[place] = first
        self._next = end % len(self._queue)
        self._filled = min(len(self._queue), max(self._filled, end))

    def state_dict(self) -> dict[str, Any]:
        """The features kept, and what was warned of: so that a resumed run says the same."""
        return {
            "features": self._queue[: self._filled].clone(), "next": self._next,
            "suspected": sorted(self._suspected), "warned": sorted(self._warned),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._filled, self._next = len(state["features"]), int(state["next"])
        self._queue[: self._filled] = state["features"].to(self._queue.device)
        self._suspected, self._warned = set(state["suspected"]), set(state["warned"])

    @torch.no_grad()
    def describe(self, features: Tensor, views: int) -> dict[str, float]:
        """Spread of the features of one step, and whether the two views of a sample find each other.

        Returns
        -------
        ``feature_std``: mean deviation of unit features times sqrt(D), 1 if evenly spread, 0 if all alike;
        ``rankme`` over the queue; ``view_retrieval``: share of samples whose second view is nearest to
        their first, among the batch.
        """
        unit = F.normalize(features.float(), dim=-1).unflatten(0, (views, -1))
        out = {
            "feature_std": float(unit.flatten(0, 1).std(0).mean() * math.sqrt(unit.shape[-1])),
            "rankme": rank_me(self._queue[: self._filled]),
        }
        if views > 1:
            nearest = (unit[0] @ unit[1].T).argmax(1)
            own = torch.arange(len(nearest), device=nearest.device)
            out["view_retrieval"] = float((nearest == own).float().mean())
        return out

    @torch.no_grad()
    def describe_targets(
        self, logits: Tensor, center: Tensor, temperature: float, loss: float
    ) -> dict[str, float]:
        """How the teacher spreads its targets over K prototypes; logits (views * B, K).

        Returns
        -------
        ``teacher_entropy`` in nats, ``teacher_kl_to_uniform`` = ln K - entropy (0: it tells nothing apart),
        ``prototypes_used``: exponential of the entropy of the mean target (1: all samples alike), ``headroom``
        = ln K - loss (0: the loss is stuck).
        """
        targets = ((logits.float() - center) / temperature).softmax(-1)
        entropy = float(-torch.special.xlogy(targets, targets).sum(-1).mean())
        mean = targets.mean(0)
        most = math.log(logits.shape[1])
        return {
            "teacher_entropy": entropy,
            "teacher_kl_to_uniform": most - entropy,
            "prototypes_used": float(torch.exp(-torch.special.xlogy(mean, mean).sum())),
            "headroom": most - loss,
        }

    def warn(self, metrics: dict[str, Any], step: int) -> list[str]:
        """Say in words what looks like collapse, once each, if two records in a row show it."""
        now = _symptoms(metrics)
        lasting = {
            name: text for name, text in now.items() if name in self._suspected and name not in self._warned
        }
        self._suspected = set(now)
        self._warned |= set(lasting)
        for text in lasting.values():
            logger.warning("step %d: %s", step, text)
        return list(lasting.values())


def _symptoms(m: dict[str, Any]) -> dict[str, str]:
    out = {}
    if m["feature_std"] < 0.02 or m["rankme"] < 1.5:
        out["features"] = (
            f"collapse: all features are nearly alike (spread {m['feature_std']:.3f} of 1, effective rank "
            f"{m['rankme']:.1f}). Lower --lr or --teacher-temp, raise the batch, or look for constant input."
        )
    if "teacher_kl_to_uniform" in m:
        if m["teacher_kl_to_uniform"] < 1e-3 and abs(m["headroom"]) < 1e-2:
            out["uniform"] = (
                f"collapse: the teacher gives every sample the same uniform target and the loss stays at ln K "
                f"({m['train_loss']:.3f}). Lower --teacher-temp (0.02, say) or --out-dim."
            )
        if m["prototypes_used"] < 1.2:
            out["one"] = (
                "collapse: every sample has the same one prototype as its target. Raise --teacher-temp, lower --lr "
                "or --momentum-teacher, or raise the batch."
            )
    return out
