"""Random numbers that are a function of a sample's seed alone: the same on every device, in any batch.

A counter-based generator (splitmix64) in int64 tensor operations, so that views can be drawn where the data
is, resumed in the middle of an epoch, and redrawn one by one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


_STEP = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """The output of splitmix64 for state ``x`` (Steele et al. 2014), in wrapping int64."""

    def shift(v: Tensor, bits: int) -> Tensor:
        return (v >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts keep the sign; this drops it

    x = x + _STEP
    x = (x ^ shift(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ shift(x, 27)) * _MULTIPLIERS[1]
    return x ^ shift(x, 31)


def uniforms(seeds: Tensor, stream: int, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), float32, (B, *shape); a stream's numbers depend on the seed alone."""
    count = torch.arange(math.prod(shape), device=seeds.device)
    hashed = _mix(_mix(seeds + stream * 0x5DEECE66D)[:, None] + count * _STEP)
    return (((hashed >> 40) & 0xFFFFFF).float() * 2**-24).unflatten(1, shape)


@lru_cache(maxsize=64)
def constants(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a float32 vector on a device, copied there once: every such copy makes a GPU wait."""
    with torch.inference_mode(False):  # whoever asks first
        return torch.tensor(numbers, dtype=torch.float32, device=device)


def sample_seeds(seed: int, epoch: int, index: Tensor) -> Tensor:
    """The seed of each sample of an epoch, for `draw_views`.

    Parameters
    ----------
    seed
        Of the run.
    epoch
        From 0.
    index
        Identities of the samples (B,), int64.
    """
    run = _mix(torch.full((1,), seed, device=index.device))  # a number on the host would make a GPU wait
    return _mix(_mix(run + epoch) + index)


def check_seeds(where: str, seeds: Tensor, batch: int) -> None:
    """Refuse anything but one int64 seed a sample."""
    if seeds.shape != (batch,) or seeds.dtype != torch.int64:
        raise ValueError(f"{where}: expected {batch} int64 seeds, got {seeds.dtype} {tuple(seeds.shape)}")
