"""Views of fields: augmented inputs for training, drawn in batches on the device.

A view is a window of the field, resampled, and mirrored or blurred at random. All of these are linear and act on
rows and columns separately, so that a view is two small matrices: ``view = rows @ field @ columns'``. Their
triangle kernel is as wide as the window shrinks (antialiasing) and never leaves the range of the data. The same
matrices applied to the mask give the share of each view pixel that was observed, so that missing pixels never
spread.

Every random number is a hash of (seed of the sample, view, parameter), by a counter-based generator (splitmix64)
in int64 tensor operations. It is the same on every device, for any batch, number of workers and ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: A view, and where it was observed.
View = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """Options for drawing views of fields. Lengths are in pixels, ranges are (low, high).

    ``mode="zoom"`` nearly keeps the scale of the field: a view of ``size`` pixels covers a square window of
    ``size / (magnification * z)`` field pixels, with ``z`` drawn from ``zoom`` evenly in its logarithm. So
    ``magnification`` is view pixels per field pixel at ``z = 1``; embedding resizes fields by the same factor.
    ``mode="area"`` is the random resized crop of the predecessor: the window covers a share of the field drawn
    from ``global_area`` or ``local_area``, and its width over its height is drawn from ``aspect`` evenly in its
    logarithm. In both modes, a window larger than the field is cut to it, and its position is random.

    Attributes
    ----------
    gain
        Largest random offset of a view, up or down, in the units of the (normalized) field; one number, or
        one for each channel. It applies to observed pixels only.
    gain_floor
        Value where radar has no echo, to which the gain does not apply; it fades in over the first ``gain``
        above.
    flips
        ``"h"`` mirrors left and right half of the time, ``"d4"`` draws one of the square's eight symmetries.
    blur
        Probability of a Gaussian blur over 3 x 3 view pixels for the first global view, for further global
        views and for local views; its deviation is drawn from ``blur_sigma``, in view pixels.
    solarize
        Probability that the second global view has values above ``solarize_threshold`` mirrored about it.
    fill
        Value of view pixels of which less than half was observed.
    """

    global_size: int = 224
    local_size: int = 96
    global_views: int = 2
    local_views: int = 8
    mode: Literal["zoom", "area"] = "zoom"
    magnification: float = 1.0
    zoom: tuple[float, float] = (0.8, 1.25)
    global_area: tuple[float, float] = (0.4, 1.0)
    local_area: tuple[float, float] = (0.05, 0.4)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    gain: float | tuple[float, ...] = 0.0
    gain_floor: float | None = None
    flips: Literal["none", "h", "d4"] = "none"
    blur: tuple[float, float, float] = (0.0, 0.0, 0.0)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("zoom", "area") or self.flips not in ("none", "h", "d4"):
            raise ValueError(f"ViewSpec: expected mode zoom or area and flips none, h or d4; got {self}")


@torch.no_grad()
def draw_views(
    x: Tensor, mask: Tensor, spec: ViewSpec, seeds: Tensor, partner: View | None = None
) -> list[View]:
    """Draw every view of a batch of fields.

    Parameters
    ----------
    x
        Normalized fields (B, C, H, W), floating point. Values outside of ``mask`` have no
        effect, and one that is not finite counts as missing.
    mask
        True where observed, (B, H, W), or (B, C, H, W) where channels differ.
    spec
        What to draw.
    seeds
        One per sample, int64, (B,); see `sample_seeds`.
    partner
        Fields and mask of the same shapes, of which all global views but the first are drawn.

    Returns
    -------
    Global views, then local ones, each a pair: the view (B, C, size, size), float32 and finite, and where it
    was observed (in any channel), bool (B, 1, size, size).

    Raises
    ------
    ValueError
        If the shapes do not go together.
    """
    views: list[View] = []
    # Matrix products in bf16 would round every pixel to three digits.
    with torch.autocast(x.device.type, enabled=False):
        fields = [
            _observed_fields(*field, spec, seeds) for field in ((x, mask), partner) if field is not None
        ]
        numbers = uniforms(seeds, 0, spec.global_views + spec.local_views, _PARAMETERS)
        views += _draw_kind(fields, spec, seeds, numbers[:, : spec.global_views], is_global=True)
        if spec.local_views:
            views += _draw_kind(fields[:1], spec, seeds, numbers[:, spec.global_views :], is_global=False)
    return views


@torch.no_grad()
def whole_view(x: Tensor, mask: Tensor, magnification: float = 1.0, fill: float | Tensor = 0.0) -> View:
    """Return a whole field as one view, without anything random: what a network embeds.

    Parameters
    ----------
    x, mask
        Normalized fields, and where they were observed, both (B, C, H, W).
    magnification
        View pixels per field pixel.
    fill
        Value of view pixels of which less than half was observed: one number, or with C = 1 one a sample, (B,).

    Returns
    -------
    The view (B, C, h, w), and where it was observed (in any channel), bool (B, 1, h, w).
    """
    if magnification == 1.0:
        missing = fill[:, None, None, None] if isinstance(fill, Tensor) else fill
        return torch.where(mask, x, missing), mask.any(1, keepdim=True)
    size = round(x.shape[-1] * magnification)
    spec = ViewSpec(
        global_size=size, global_views=1, local_views=0, magnification=size / x.shape[-1], zoom=(1.0, 1.0),
        fill=0.0 if isinstance(fill, Tensor) else fill,
    )  # fmt: skip
    seeds = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    ((view, seen),) = draw_views(x, mask, spec, seeds)
    return torch.where(seen, view, fill[:, None, None, None]) if isinstance(fill, Tensor) else view, seen


def token_coverage(valid: Tensor, patch_size: int) -> Tensor:
    """Return the share of observed pixels of each token.

    Tokens are in the order of `VisionTransformer`, row by row: ``token_mask = token_coverage(valid, 16) <
    0.5``.

    Parameters
    ----------
    valid
        Mask of observed pixels, (B, 1, h, w) or (B, h, w).
    patch_size
        Edge of a token in pixels.

    Returns
    -------
    Shape (B, N).
    """
    pixels = valid if valid.ndim == 4 else valid[:, None]
    return F.avg_pool2d(pixels.float(), patch_size).flatten(1)


#: Random numbers of one view of a field. Geometry: zoom, aspect, y, x, mirror y, mirror x, blur, its
#: deviation. Then transpose, gain, solarize.
_PARAMETERS = 11


def _observed_fields(x: Tensor, mask: Tensor, spec: ViewSpec, seeds: Tensor) -> View:
    """Return the fields with zero where nothing was observed, and where something was, both float32."""
    if mask.ndim == 3:
        mask = mask[:, None]
    _check_fields(x, mask, spec, seeds)
    finite = x.isfinite()
    mask = mask & (finite if mask.shape[1] == x.shape[1] else finite.all(1, keepdim=True))
    return torch.where(mask, x.float(), 0.0), mask.float()


def _draw_kind(
    fields: list[View], spec: ViewSpec, seeds: Tensor, numbers: Tensor, *, is_global: bool
) -> list[View]:
    """Return all views of one resolution; ``numbers`` (B, V, parameters). A second field is that of later
    views.
    """
    height, width = fields[0][0].shape[2:]
    rows, columns = _matrices(spec, numbers[..., :8], (height, width), is_global=is_global)
    total, weight = (
        _resample(list(planes), rows, columns) for planes in zip(*fields, strict=True)
    )  # (B, V, C or 1, size, size)
    values = total / weight.clamp(min=0.5)

    turn, gain, solar = numbers[..., 8:, None, None, None].unbind(2)
    values = _apply_gain(values, spec, gain)
    if is_global:
        values[:, 1:2] = _solarize(values[:, 1:2], spec, solar[:, 1:2])
    valid = weight >= 0.5
    values = torch.where(valid, values, spec.fill)
    valid = valid.any(2, keepdim=True)
    if spec.flips == "d4":
        values = torch.where(turn < 0.5, values.mT, values)
        valid = torch.where(turn < 0.5, valid.mT, valid)
    return list(zip(values.unbind(1), valid.unbind(1), strict=True))


def _matrices(
    spec: ViewSpec, numbers: Tensor, edges: tuple[int, int], *, is_global: bool
) -> tuple[Tensor, Tensor]:
    """Return the matrices that make rows and columns of each view from those of the field, (B, V, size,
    edge).
    """
    scale, aspect, y, x, mirror_y, mirror_x, blur, sigma = numbers.unbind(-1)
    size = spec.global_size if is_global else spec.local_size
    height, width = _windows(spec, scale, aspect, edges, is_global=is_global)
    flip_y, flip_x = (mirror_y < 0.5) & (spec.flips == "d4"), (mirror_x < 0.5) & (spec.flips != "none")
    rows = _resampler(y * (edges[0] - height), height, flip_y, size, edges[0])
    columns = _resampler(x * (edges[1] - width), width, flip_x, size, edges[1])
    if any(spec.blur) and size > 1:
        side = _side_weight(spec, blur, sigma, is_global=is_global)[..., None, None]
        rows, columns = _blur(rows, side), _blur(columns, side)
    return rows, columns


def _windows(
    spec: ViewSpec, scale: Tensor, aspect: Tensor, edges: tuple[int, int], *, is_global: bool
) -> tuple[Tensor, Tensor]:
    """Return the height and width of each window in field pixels, (B, V)."""
    height, width = edges
    if spec.mode == "zoom":
        size = spec.global_size if is_global else spec.local_size
        edge = size / (spec.magnification * _log_uniform(scale, spec.zoom))
        edge = edge.clamp(max=float(min(edges)))
        return edge, edge
    low, high = spec.global_area if is_global else spec.local_area
    area = (low + (high - low) * scale) * (height * width)
    ratio = _log_uniform(aspect, spec.aspect)
    return (area / ratio).sqrt().clamp(max=float(height)), (area * ratio).sqrt().clamp(max=float(width))


def _resampler(start: Tensor, length: Tensor, flip: Tensor, size: int, edge: int) -> Tensor:
    """Return the matrices (B, V, size, edge) that resample ``edge`` pixels to ``size`` ones, rows summing to
    one.

    ``start`` and ``length`` of the windows are in field pixels, (B, V); pixel j covers [j, j + 1].
    """
    step = (length / size)[..., None]  # field pixels a view pixel
    place = torch.arange(size, device=start.device) + 0.5
    center = start[..., None] + torch.where(flip[..., None], size - place, place) * step
    pixel = torch.arange(edge, device=start.device) + 0.5
    distance = (center[..., None] - pixel).abs_()
    kernel = distance.div_(-step.clamp(min=1.0)[..., None]).add_(1.0).clamp_(min=0.0)  # a triangle
    return kernel.div_(kernel.sum(-1, keepdim=True))


def _side_weight(spec: ViewSpec, blur: Tensor, sigma: Tensor, *, is_global: bool) -> Tensor:
    """Return the weight of either neighbour in the three-pixel Gaussian, (B, V); zero where there is no blur."""
    first, further, local = spec.blur
    chances = [first] + [further] * (blur.shape[1] - 1) if is_global else [local] * blur.shape[1]
    low, high = spec.blur_sigma
    side = torch.exp(-0.5 / (low + (high - low) * sigma).square())
    return torch.where(blur < cached_tensor(tuple(chances), blur.device), side / (1 + 2 * side), 0.0)


def _blur(matrix: Tensor, side: Tensor) -> Tensor:
    """Blur along the view's axis of a resampling matrix, reflecting at the edges."""
    before = torch.cat([matrix[:, :, 1:2], matrix[:, :, :-1]], dim=2)
    after = torch.cat([matrix[:, :, 1:], matrix[:, :, -2:-1]], dim=2)
    return (1 - 2 * side) * matrix + side * (before + after)


def _resample(planes: list[Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """Resample one or two fields (B, C, H, W) to (B, V, C, size, size); of two, the first is used for the
    first view only.
    """
    if len(planes) == 1:
        partly = torch.einsum("bchw,bvxw->bvchx", planes[0], columns)
    else:
        shares = zip(planes, columns.split([1, columns.shape[1] - 1], dim=1), strict=True)
        partly = torch.cat([torch.einsum("bchw,bvxw->bvchx", x, share) for x, share in shares], dim=1)
    return torch.einsum("bvyh,bvchx->bvcyx", rows, partly)


def _apply_gain(values: Tensor, spec: ViewSpec, number: Tensor) -> Tensor:
    """Offset each view by its gain; ``values`` (B, V, C, h, w), ``number`` in [0, 1), (B, V, 1, 1, 1)."""
    gains = spec.gain if isinstance(spec.gain, tuple) else (spec.gain,)
    gain = cached_tensor(gains, values.device)[:, None, None]
    offset = gain * (2 * number - 1)
    if spec.gain_floor is not None:
        # |offset| <= gain, so a value above the floor can sink to it but never below.
        offset = offset * ((values - spec.gain_floor) / gain.clamp(min=1e-12)).clamp(0.0, 1.0)
    return values + offset


def _solarize(values: Tensor, spec: ViewSpec, number: Tensor) -> Tensor:
    """Mirror high values of the views chosen; shapes as in `_apply_gain`."""
    high = (number < spec.solarize) & (values > spec.solarize_threshold)
    return torch.where(high, 2 * spec.solarize_threshold - values, values)


def _log_uniform(number: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return torch.exp(low + (high - low) * number)


def _check_fields(x: Tensor, mask: Tensor, spec: ViewSpec, seeds: Tensor) -> None:
    batch, channels = x.shape[:2]
    if x.ndim != 4 or mask.shape not in {x.shape, (batch, 1, *x.shape[2:])} or mask.dtype != torch.bool:
        raise ValueError(
            f"draw_views: expected x (B, C, H, W) and a bool mask (B, H, W) or (B, C, H, W), "
            f"got {tuple(x.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    check_seeds("draw_views", seeds, batch)
    if isinstance(spec.gain, tuple) and len(spec.gain) != channels:
        raise ValueError(f"draw_views: gain={spec.gain} for {channels} channels; give one number a channel")


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


_STEP = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _mix(x: Tensor) -> Tensor:
    """Return the output of splitmix64 for state ``x`` (Steele et al. 2014), in wrapping int64."""

    def shift(v: Tensor, bits: int) -> Tensor:
        return (v >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts keep the sign; this drops it

    x = x + _STEP
    x = (x ^ shift(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ shift(x, 27)) * _MULTIPLIERS[1]
    return x ^ shift(x, 31)


def uniforms(seeds: Tensor, stream: int, *shape: int) -> Tensor:
    """Return the uniform numbers in [0, 1), float32, (B, ...); the numbers of a stream depend on the seed
    alone.
    """
    count = torch.arange(math.prod(shape), device=seeds.device)
    hashed = _mix(_mix(seeds + stream * 0x5DEECE66D)[:, None] + count * _STEP)
    return (((hashed >> 40) & 0xFFFFFF).float() * 2**-24).unflatten(1, shape)


@lru_cache(maxsize=64)
def cached_tensor(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the numbers as a float32 vector on a device, copied there only once, because a copy makes a GPU
    wait.
    """
    with torch.inference_mode(False):  # the first call may be in inference mode
        return torch.tensor(numbers, dtype=torch.float32, device=device)


def sample_seeds(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return the seed of each sample of an epoch, for `draw_views`.

    Parameters
    ----------
    seed
        Seed of the run.
    epoch
        From 0.
    index
        Indices of the samples in the data set, int64, (B,).

    Returns
    -------
    int64, (B,).
    """
    run = _mix(torch.full((1,), seed, device=index.device))  # a number on the host would make a GPU wait
    return _mix(_mix(run + epoch) + index)


def check_seeds(where: str, seeds: Tensor, batch: int) -> None:
    """Refuse anything except one int64 seed for each sample."""
    if seeds.shape != (batch,) or seeds.dtype != torch.int64:
        raise ValueError(f"{where}: expected {batch} int64 seeds, got {seeds.dtype} {tuple(seeds.shape)}")
