"""Monitor learning, collapse, and the use of a GPU during a run."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gridrad_cube.similarity import rank_me, unit_rows

logger = logging.getLogger(__name__)


#: Features that spread less, of 1, are alike: their mean cosine is above 0.9996.
_LEAST_SPREAD = 0.02


class Monitor:
    """The latest ``queue`` features of the teacher, of this width, and what they say."""

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
        """Return the features, and the warnings given: so that a resumed run says the same."""
        return {
            "features": self._queue[: self._filled].clone(), "next": self._next,
            "suspected": sorted(self._suspected), "warned": sorted(self._warned),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._filled, self._next = len(state["features"]), int(state["next"])
        self._queue[: self._filled] = state["features"].to(self._queue.device)
        self._suspected, self._warned = set(state["suspected"]), set(state["warned"])

    def describe(self, features: Tensor, views: int) -> dict[str, float]:
        """Spread of the features of one step, and whether the two views of a sample find each other.

        ``feature_std``: mean deviation of unit features times sqrt(D), 1 if evenly spread, 0 if all are equal;
        ``feature_cosine``: their mean cosine, about 1 - ``feature_std`` squared; ``rankme`` over the queue, for
        information; ``view_retrieval``: share of samples whose second view is nearest to their first.
        """
        unit = unit_rows(features.float().cpu().numpy())
        spread = unit.std(axis=0, ddof=1).mean() * math.sqrt(unit.shape[1])
        count = len(unit)
        cosine = (np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1))
        first, second = unit.reshape(views, -1, unit.shape[1])[:2]
        nearest = (first @ second.T).argmax(axis=1)
        return {
            "feature_std": float(spread),
            "feature_cosine": float(cosine),
            "rankme": rank_me(self._queue[: self._filled].cpu().numpy()),
            "view_retrieval": float((nearest == range(len(nearest))).mean()),
        }

    @torch.no_grad()
    def describe_targets(
        self, logits: Tensor, center: Tensor, temperature: float, loss: float
    ) -> dict[str, float]:
        """Return how the teacher spreads its targets over K prototypes; logits (views * B, K).

        ``teacher_entropy`` in nats, ``teacher_kl_to_uniform`` = ln K - entropy (0: all prototypes alike),
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

    def warn(self, metrics: Mapping[str, Any], step: int) -> list[str]:
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


def _symptoms(m: Mapping[str, Any]) -> dict[str, str]:
    out = {}
    # Not by RankMe, which can rise while the features answer worse.
    if m["feature_std"] < _LEAST_SPREAD:
        temperature = " or `teacher_temp`" if "teacher_temp" in m else ""
        out["features"] = (
            f"collapse: all features are nearly alike (spread {m['feature_std']:.3f} of 1, mean cosine between samples "
            f"{m['feature_cosine']:.4f}). Lower `lr`{temperature}, raise the batch, or look for constant input."
        )
    if "teacher_kl_to_uniform" in m:
        if m["teacher_kl_to_uniform"] < 1e-3 and abs(m["headroom"]) < 1e-2:
            out["uniform"] = (
                f"collapse: the teacher gives every sample the same uniform target and the loss stays at ln K "
                f"({m['train_loss']:.3f}). Lower `teacher_temp` (0.02, say) or `out_dim`."
            )
        if m["prototypes_used"] < 1.2:
            out["one"] = (
                "collapse: every sample has the same one prototype as its target. Raise `teacher_temp`, lower `lr` "
                "or `momentum_teacher`, or raise the batch."
            )
    return out


# arithmetic of a step, and what a GPU can do: their ratio is the model's FLOP utilization (MFU)


#: The name of a GPU in torch, as a pattern (the first that matches counts), and its dense matrix products in bf16, in
#: TFLOP/s. From NVIDIA's whitepapers of the architectures (GA100, GA102, Ada, H100) and data sheets (H100 NVL, H200,
#: HGX B200), which state tensor cores with sparsity: halved here. Form factors of one GPU differ in their clocks.
_PEAKS = (
    (r"\bB200\b", 2250), (r"\bH200 NVL\b", 835.5), (r"\bG?H200\b", 989.4), (r"\bH100 NVL\b", 835.5),
    (r"\bH100 PCIe\b", 756), (r"\bH100\b", 989.4), (r"\bA100\b", 312), (r"\bL40S\b", 362.1), (r"\bA40\b", 149.7),
    (r"\bA30\b", 165),
)  # fmt: skip


def peak_flops(device: torch.device | str, *, bf16: bool) -> float | None:
    """Return the peak of dense matrix products on a device in bf16, FLOP/s; None in fp32, for CPUs and for
    other GPUs.
    """
    if isinstance(device, torch.device):
        if device.type != "cuda":
            return None
        device = torch.cuda.get_device_name(device)
    if not bf16 or " MIG " in device:  # a slice of a GPU has a slice of its peak
        return None
    return next((1e12 * tflops for pattern, tflops in _PEAKS if re.search(pattern, device)), None)


def count_flops(student: nn.Module, shapes: Sequence[tuple[int, int]], *, teacher_views: int = 2) -> float:
    """Return the FLOP of one sample of a training step: the student's passes over all views, the teacher's
    over the first.

    Matrix products as torch counts them. A backward pass counts as two forward passes: gradients of inputs and of
    weights. The loss, the optimizer and the drawing of views do not count; what drop-path leaves out does, as is
    usual for MFU. ViT-S/16 with 65,536 prototypes, 2 views of 224 px and 8 of 96 px: 112.9 GFLOP.

    ``shapes`` are height and width of each view, of which the teacher sees the first ``teacher_views``.
    """
    network: Any = copy.deepcopy(student).to("meta").eval()  # shapes alone
    planes = network.backbone.architecture.in_channels
    costs = dict.fromkeys(shapes, 0.0)
    for shape in costs:
        counter = FlopCounterMode(display=False)
        # The counter does not know the fused attention of CPUs.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            features = network.backbone.forward(torch.empty(1, planes, *shape, device="meta"))
            if network.head is not None:
                network.head.forward(features)
        costs[shape] = counter.get_total_flops()
    return sum(3 * costs[shape] for shape in shapes) + sum(costs[shape] for shape in shapes[:teacher_views])
