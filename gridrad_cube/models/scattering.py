"""Fixed local maps of a field: oriented band-pass moduli, means, variances and soft histograms.

They are the first order of a wavelet scattering transform (Bruna and Mallat 2013, arXiv 1203.1513) in cells of 4 x 4
pixels, beside the first two moments and a histogram of each cell. A network can read them instead of pixels
(a hybrid network, Oyallon et al. 2018, arXiv 1809.06367). Their mean and standard deviation over a field
describe it without training.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Edge of a cell in pixels.
CELL = 4
#: Octaves and directions of the filters, and bins of the histogram of a cell.
_OCTAVES, _DIRECTIONS, _BINS = 4, 6, 8
#: Maps of one channel: moduli, mean, logarithm of the variance, bins.
MAPS = _OCTAVES * _DIRECTIONS + 2 + _BINS
#: Edges of fields are multiples of this, so that each octave halves the one before.
FIELD_MULTIPLE = 2 ** (_OCTAVES - 1)
#: Morlet filters: edge of the kernel, center frequency (radians a pixel), deviation of the envelope along the
#: wave in pixels, and its share across the wave.
_EDGE, _FREQUENCY, _DEVIATION, _SLANT = 7, 0.75 * math.pi, 0.8, 0.5
#: Version of the computation; the identity of the descriptor is made of it and the numbers above and below.
_VERSION = 1
#: Added to moduli and variances before their logarithm: 0.3 % of half of the typical range, a fifth of a kelvin.
_SMALL_MODULUS, _SMALL_VARIANCE = 3e-3, 1e-4


class LocalMaps(NamedTuple):
    """Maps of fields, (B, C * MAPS, H / 4, W / 4), and the observed share of each cell, (B, C, H / 4, W / 4)."""

    maps: Tensor
    observed: Tensor

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the fields in pixels."""
        return self.observed.shape[2] * CELL, self.observed.shape[3] * CELL


def local_maps(x: Tensor) -> LocalMaps:
    """Compute the local maps of each channel.

    A missing pixel takes the mean of the observed pixels of its field, and statistics of a cell count observed pixels
    only. The maps of a channel without any observed pixel are zero.

    The same filters act on the field and on the field averaged in blocks of 2 x 2, 4 x 4 and 8 x 8 pixels, so that four
    octaves cost a third more than one.

    Parameters
    ----------
    x
        Fields (B, C, H, W), H and W multiples of 8, scaled so that the typical range of a channel is from -1 to 1; NaN
        where missing.

    Returns
    -------
    For each channel 24 logarithms of moduli (octave by octave from fine to coarse, six directions each), the mean,
    the logarithm of the variance, and the shares of eight bins between -1 and 1; a pixel is divided between the two
    bins nearest to it.

    Raises
    ------
    ValueError
        If the shape does not fit.
    """
    if x.ndim != 4 or any(edge < FIELD_MULTIPLE or edge % FIELD_MULTIPLE for edge in x.shape[2:]):
        raise ValueError(
            f"local_maps: got a field of shape {tuple(x.shape)}; expected (batch, channel, height, width) with edges "
            f"that are multiples of {FIELD_MULTIPLE}"
        )
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round the moduli of smooth fields away
        fields = x.float().flatten(0, 1)[:, None]
        observed = fields.isfinite()
        weight = observed.float()
        total = torch.where(observed, fields, 0.0).sum((2, 3), keepdim=True)
        mean = total / weight.sum((2, 3), keepdim=True).clamp(min=1.0)
        values = torch.where(observed, fields, mean)
        maps = torch.cat([_moduli(values, weight, mean), *_statistics(values, weight)], dim=1)
        maps = torch.where(observed.any(-1, keepdim=True).any(-2, keepdim=True), maps, 0.0)
        share = F.avg_pool2d(weight, CELL)
    shape = x.shape[:2]
    return LocalMaps(maps.unflatten(0, shape).flatten(1, 2), share.unflatten(0, shape)[:, :, 0])


def describe_maps(local: LocalMaps) -> Tensor:
    """Return the descriptor of each field: for each channel the means of its maps, then their standard
    deviations.

    Cells are weighted by their observed share.

    Parameters
    ----------
    local
        Maps of `local_maps`.

    Returns
    -------
    (B, C * 2 * MAPS), float32; zeros for a channel without any observed pixel.
    """
    maps = local.maps.float().unflatten(1, (-1, MAPS)).flatten(3)  # (B, C, MAPS, cells)
    weight = local.observed.float().flatten(2)[:, :, None]
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-6)
    mean = (maps * weight).sum(-1)
    variance = ((maps - mean[..., None]).square() * weight).sum(-1)
    return torch.cat([mean, variance.sqrt()], dim=2).flatten(1)


def descriptor_identity() -> str:
    """Return a hash of the definition of the descriptor, which changes when `describe_maps` does.

    Returns
    -------
    32 hexadecimal digits.
    """
    numbers = (
        _VERSION, CELL, _OCTAVES, _DIRECTIONS, _BINS, _EDGE, _FREQUENCY, _DEVIATION, _SLANT, _SMALL_MODULUS,
        _SMALL_VARIANCE,
    )  # fmt: skip
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:32]


def _moduli(values: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Return the logarithms of the moduli of all octaves, (N, 24, H / 4, W / 4)."""
    kernel, margin, out = _kernel(values.device), _EDGE // 2, []
    for octave in range(_OCTAVES):
        if octave:
            share = F.avg_pool2d(weight, 2)
            total = F.avg_pool2d(values * weight, 2)
            values, weight = torch.where(share > 0, total / share.clamp(min=1e-6), mean), share
        mode = "reflect" if min(values.shape[2:]) > margin else "replicate"
        waves = F.conv2d(F.pad(values, (margin,) * 4, mode=mode), kernel)
        modulus = (waves[:, 0::2].square() + waves[:, 1::2].square()).sqrt()
        pixels, repeats = max(CELL >> octave, 1), max(2**octave // CELL, 1)
        modulus = _mean_of_observed(modulus, weight, pixels)
        out.append(modulus.repeat_interleave(repeats, 2).repeat_interleave(repeats, 3))
    return (torch.cat(out, dim=1) + _SMALL_MODULUS).log()


def _statistics(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, logarithm of the variance and soft histogram of each cell, (N, 1 or 8, H / 4, W / 4)."""
    mean = _mean_of_observed(values, weight, CELL)
    center = mean.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    variance = _mean_of_observed((values - center).square(), weight, CELL)
    # Values beyond the typical range belong to the first and last bin.
    place = (values.clamp(-1.0, 1.0) + 1.0) * ((_BINS - 1) / 2)
    number = torch.arange(_BINS, device=values.device, dtype=values.dtype)[:, None, None]
    bins = (1.0 - (place - number).abs()).clamp(min=0.0)
    return mean, (variance + _SMALL_VARIANCE).log(), _mean_of_observed(bins, weight, CELL)


def _mean_of_observed(x: Tensor, weight: Tensor, edge: int) -> Tensor:
    """Return the means over blocks of this edge, by weight; of all pixels where the weight of a block is
    zero.
    """
    if edge == 1:
        return x
    weight = weight + 1e-6
    return F.avg_pool2d(x * weight, edge) / F.avg_pool2d(weight, edge)


@functools.lru_cache(maxsize=8)
def _kernel(device: torch.device) -> Tensor:
    """Return the real and imaginary parts of the filters of one octave in turn, (12, 1, 7, 7)."""
    with torch.inference_mode(False):
        offset = torch.arange(_EDGE) - _EDGE // 2.0
        y, x = torch.meshgrid(offset, offset, indexing="ij")
        parts = []
        for number in range(_DIRECTIONS):
            angle = math.pi * number / _DIRECTIONS
            along = math.cos(angle) * x + math.sin(angle) * y
            across = math.cos(angle) * y - math.sin(angle) * x
            envelope = torch.exp(-(along.square() + (_SLANT * across).square()) / (2 * _DEVIATION**2))
            envelope = envelope / envelope.sum()
            wave = envelope * torch.cos(_FREQUENCY * along)
            # A filter with mean zero does not respond to a constant field.
            parts += [wave - envelope * wave.sum(), envelope * torch.sin(_FREQUENCY * along)]
        return torch.stack(parts)[:, None].float().to(device)


class ScatteringStem(nn.Module):
    """Local maps standardized by buffers ``mean`` and ``std``, (C * MAPS): the input of a network in place of pixels.

    Unobserved cells are zero, the mean of all cells.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels * MAPS))
        self.register_buffer("std", torch.ones(channels * MAPS))

    @torch.no_grad()
    def fit(self, local: LocalMaps) -> None:
        """Set the mean and standard deviation of each map from the cells of a batch, weighted by observed
        share.

        Parameters
        ----------
        local
            Maps of `local_maps`.
        """
        weight = local.observed.repeat_interleave(MAPS, 1)
        total = weight.sum((0, 2, 3)).clamp(min=1e-6)
        self.mean.copy_((local.maps * weight).sum((0, 2, 3)) / total)
        spread = (local.maps - self.mean[:, None, None]).square() * weight
        self.std.copy_((spread.sum((0, 2, 3)) / total).sqrt().clamp(min=1e-3))

    def forward(self, local: LocalMaps) -> Tensor:
        """Return the standardized maps.

        Parameters
        ----------
        local
            Maps of `local_maps`.

        Returns
        -------
        Shape (B, C * MAPS, H / 4, W / 4).
        """
        seen = (local.observed > 0).repeat_interleave(MAPS, 1)
        standard = (local.maps - self.mean[:, None, None]) / self.std[:, None, None]
        return torch.where(seen, standard, 0.0)
