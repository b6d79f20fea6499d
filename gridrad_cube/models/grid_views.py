"""Views of grids of embeddings, the inputs of level 2k: windows of whole cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gridrad_cube.models.views import View, check_seeds, uniforms


@dataclass(frozen=True, kw_only=True)
class GridViewSpec:
    """Options for drawing views of grids of embeddings: windows of whole cells. All views of a kind have one
    shape.

    A global view is the smallest window near the grid's own shape that holds at least ``global_fraction`` of
    its cells; a local view holds about ``local_fraction``, at least 2 x 2. ``token_dropout`` is the
    probability of each cell of a global view to be left out.

    ``flips="h"`` mirrors the order of the cells but not the fields that they were embedded from, so it
    creates grids that no field has. It reproduces the predecessor.
    """

    global_views: int = 2
    local_views: int = 8
    global_fraction: float = 0.75
    local_fraction: float = 0.25
    token_dropout: float = 0.25
    flips: Literal["none", "h"] = "none"


@torch.no_grad()
def draw_grid_views(
    x: Tensor, cell_valid: Tensor, spec: GridViewSpec, seeds: Tensor, partner: View | None = None
) -> list[View]:
    """Draw every view of a batch of grids of embeddings.

    Windows are drawn uniformly among those with at least half as many valid cells as the fullest window, so a
    view has a valid cell if its grid has one. Dropout is not applied if it would leave no valid cell.

    Parameters
    ----------
    x
        Embeddings (B, D, R, C). Cells that are not valid have no effect.
    cell_valid
        False where a cell is padding or rejected, bool (B, R, C).
    spec
        What to draw.
    seeds
        One per sample, int64, (B,); see `sample_seeds`.
    partner
        Grids and valid cells of the same shapes, of which all global views but the first are drawn.

    Returns
    -------
    Global views, then local ones, each a pair: the view (B, D, r, c), zero in cells left out, and the cells
    that take part, bool (B, r, c): the ``attention_mask`` of `VisionTransformer`.

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    grids = [(x, cell_valid)] if partner is None else [(x, cell_valid), partner]
    for grid in grids:
        rows, columns = _check_grids(*grid, seeds)
    grids = [(torch.where(valid[:, None], values, 0.0), valid) for values, valid in grids]
    views: list[View] = []
    for view in range(spec.global_views + spec.local_views):
        is_global = view < spec.global_views
        shape = _global_window(rows, columns, spec.global_fraction)
        if not is_global:
            shape = _local_window(rows, columns, spec.local_fraction)
        streams = (3 * view + 1, 3 * view + 2, 3 * view + 3)
        grid = grids[-1] if is_global and view else grids[0]
        window, valid = _cut_window(*grid, shape, seeds, streams[0])
        if spec.flips == "h":
            flip = uniforms(seeds, streams[1], 1)[:, 0] < 0.5
            window = torch.where(flip[:, None, None, None], window.flip(-1), window)
            valid = torch.where(flip[:, None, None], valid.flip(-1), valid)
        if is_global:
            kept = valid & (uniforms(seeds, streams[2], *shape) >= spec.token_dropout)
            valid = torch.where(kept.any((1, 2), keepdim=True), kept, valid)
            window = torch.where(valid[:, None], window, 0.0)
        views.append((window, valid))
    return views


def _cut_window(
    x: Tensor, cell_valid: Tensor, shape: tuple[int, int], seeds: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """Return a window of each grid, (B, D, r, c), and its valid cells (B, r, c)."""
    height, width = shape
    full = F.avg_pool2d(cell_valid[:, None].float(), shape, stride=1)[:, 0]  # (B, R - r + 1, C - c + 1)
    enough = full.flatten(1) >= 0.5 * full.amax((1, 2))[:, None]
    lot = uniforms(seeds, stream, *full.shape[1:]).flatten(1)
    place = torch.where(enough, lot, -1.0).argmax(1)
    top, left = place // full.shape[2], place % full.shape[2]
    row = (top[:, None] + torch.arange(height, device=x.device))[:, :, None]
    column = (left[:, None] + torch.arange(width, device=x.device))[:, None, :]
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[sample, row, column].permute(0, 3, 1, 2), cell_valid[sample, row, column]


def _global_window(rows: int, columns: int, fraction: float) -> tuple[int, int]:
    """Return the smallest window of at least this share of the cells, preferably one that can move in both
    directions.
    """
    least = fraction * rows * columns - 1e-9
    windows = [(r, c) for r in range(1, rows + 1) for c in range(1, columns + 1) if r * c >= least]
    return min(windows, key=lambda w: (max(w[0] / rows, w[1] / columns), w[0] * w[1]))


def _local_window(rows: int, columns: int, fraction: float) -> tuple[int, int]:
    """Return the window of about this share of the cells, at least 2 x 2."""
    edge = math.sqrt(fraction)
    return max(2, int(edge * rows + 0.5)), max(2, int(edge * columns + 0.5))


def _check_grids(x: Tensor, cell_valid: Tensor, seeds: Tensor) -> tuple[int, int]:
    if x.ndim != 4 or cell_valid.shape != (len(x), *x.shape[2:]) or cell_valid.dtype != torch.bool:
        raise ValueError(
            f"draw_grid_views: expected x (B, D, R, C) and bool cells (B, R, C), "
            f"got {tuple(x.shape)} and {cell_valid.dtype} {tuple(cell_valid.shape)}"
        )
    check_seeds("draw_grid_views", seeds, len(x))
    return x.shape[2], x.shape[3]
