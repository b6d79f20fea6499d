"""Dead lines: rows or columns of a patch that repeat one value in a field that varies.

A lost scan line is often filled with a constant. What tells it from a level line of a smooth field, which can
be flat as well: in a smooth field the variation along neighbouring lines grows gradually from a flat line
(twice as far, at least half as much again), beside a dead line it is back at once, or the value jumps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

#: Lines thicker than this part of the patch are fields of their own.
THICKEST = 0.25
#: Variation of the nearest line over that of the next: 0.5 beside a level line of a smooth field, 1 beside a
#: dead line.
AT_ONCE = 0.75
#: A value has jumped if it is this many times further from the nearest line than that is from the next.
JUMP = 4.0


def may_hold_dead_line(pixels: np.ndarray, observed: np.ndarray | None, data: np.ndarray | None) -> bool:
    """Whether some eight samples of a row or column are equal: a quick test before `count_dead_lines`.

    Parameters
    ----------
    pixels
        One patch.
    observed, data
        As for `count_dead_lines`.
    """
    for turn in (np.asarray, np.transpose):
        view = turn(pixels)
        every = slice(None, None, max(1, (len(view) - 1) // 7))
        sample = np.ascontiguousarray(view[every])
        if observed is None or data is None:
            if (sample == sample[0]).all(axis=0).any():
                return True
            continue
        seen = turn(observed)[every]
        first, lines = seen.argmax(axis=0), np.arange(view.shape[1])
        may = ((sample == sample[first, lines]) | ~seen).all(axis=0)
        may &= turn(data)[every][first, lines] | ~seen.any(axis=0)
        if may.any() and (may & (2 * turn(observed).sum(axis=0) >= len(view))).any():
            return True
    return False


def count_dead_lines(
    pixels: np.ndarray, observed: np.ndarray | None, data: np.ndarray | None, tolerance: float
) -> int:
    """Count the dead rows and columns of a patch.

    A line is dead if at least half of it is observed, all that is observed are data of one value, at most a
    quarter of the patch lies in one run of such lines, and beside the run the field is another one: most of the
    nearest line differs from the value by more than ``tolerance``, and either it varies about as much as the
    line after it, or the value jumps against it.

    Parameters
    ----------
    pixels
        One patch, float64.
    observed, data
        Where pixels are observed, and where they are data too (an echo); ``None`` for everywhere.
    tolerance
        Differences up to this one may be rounding.
    """
    everywhere = np.ones(pixels.shape, bool)
    observed = everywhere if observed is None else observed
    data = everywhere if data is None else data
    return _dead_rows(pixels, observed, data, tolerance) + _dead_rows(pixels.T, observed.T, data.T, tolerance)


def _dead_rows(pixels: np.ndarray, observed: np.ndarray, data: np.ndarray, tolerance: float) -> int:
    values = np.where(observed, pixels, np.nan)
    low = np.where(observed, pixels, np.inf).min(axis=1)
    high = np.where(observed, pixels, -np.inf).max(axis=1)
    flat = (low == high) & data.any(axis=1) & (2 * observed.sum(axis=1) >= pixels.shape[1])
    if flat.all():
        return 0
    dead = 0
    for start, stop in _runs(np.where(flat, low, np.nan)):
        if stop - start > max(1, THICKEST * len(flat)):
            continue
        sides = ((start, start - 1, start - 2), (stop - 1, stop, stop + 1))
        inside = [side for side in sides if min(side) >= 0 and max(side) < len(flat)]
        if any(_breaks_off(low[line], values[near], values[far], tolerance) for line, near, far in inside):
            dead += stop - start
    return dead


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of one value; NaN is in no run."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return ((a, b) for a, b in itertools.pairwise(bounds) if not np.isnan(values[a]))


def _breaks_off(value: float, near: np.ndarray, far: np.ndarray, tolerance: float) -> bool:
    away, onward, roughness, further = (
        np.abs(x[np.isfinite(x)]) for x in (near - value, near - far, np.diff(near), np.diff(far))
    )
    if 2 * min(away.size, onward.size) < near.size or not roughness.size or not further.size:
        return False
    distance = np.median(away)
    if not distance > tolerance:
        return False
    spread = np.nanmax(near) - np.nanmin(near)
    at_once = spread > 2 * tolerance and roughness.mean() >= AT_ONCE * further.mean()
    return bool(at_once or distance > max(2 * tolerance, JUMP * np.median(onward)))
