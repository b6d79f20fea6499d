"""Where the patches of a crop lie: lines between them, degrees along the edges, north up."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import degrees, nice_step
from gridrad_cube.store import open_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def is_upside_down(one: xr.Dataset) -> bool:
    """Whether the first row of a crop is its southernmost."""
    latitude = one["latitude"].transpose("row", "col").values
    south_first = np.diff(latitude, axis=0)
    return bool(np.isfinite(south_first).any() and np.nanmedian(south_first) > 0)


def draw_lattice(axes: Axes, one: xr.Dataset, edge: float, *, lines: str = "white") -> None:
    """Draw the lines between patches, ticks at round degrees, and the numbers of rows and columns.

    Where latitude depends on the column too, meridians and parallels are drawn in place of ticks.

    Parameters
    ----------
    axes
        With pixels (or cells) as coordinates, row 0 at y = 0.
    one
        A crop, with latitude and longitude of patch centres on ``(row, col)``.
    edge
        Of a patch, in the units of the axes.
    """
    rows, cols = one.sizes["row"], one.sizes["col"]
    axes.hlines(np.arange(1, rows) * edge, 0, cols * edge, colors=lines, linewidth=0.6, alpha=0.7)
    axes.vlines(np.arange(1, cols) * edge, 0, rows * edge, colors=lines, linewidth=0.6, alpha=0.7)
    axes.set_xlim(0, cols * edge)
    axes.set_ylim((0, rows * edge) if is_upside_down(one) else (rows * edge, 0))
    latitude, longitude = positions(one)
    if _is_regular(latitude, longitude):
        for axis, values, letters in ((axes.yaxis, latitude[:, 0], "NS"), (axes.xaxis, longitude[0], "EW")):
            where, degree = ticks(values, edge, most=8 if letters == "NS" else 10)
            if letters == "NS":  # padding may reach past a pole
                where, degree = where[np.abs(degree) <= 90], degree[np.abs(degree) <= 90]
            decimals = next(
                n for n in (0, 1, 2) if n == 2 or np.allclose(degree, np.round(degree, n), atol=1e-6)
            )
            axis.set_ticks(where, labels=[degrees(d, letters, decimals) for d in degree])
    else:
        _graticule(axes, latitude, longitude, edge, "#ffe9a8" if lines == "white" else "0.2")
    _number(axes, rows, cols, edge)


def mark_degrees(axes: Axes, latitude: np.ndarray, longitude: np.ndarray) -> None:
    """Ticks at round degrees of axes whose unit is a pixel; lines across them where latitudes are not straight.

    Parameters
    ----------
    latitude, longitude
        Of pixels from (0, 0) on: axes, or both on ``(y, x)``.
    """
    if latitude.ndim == 1:
        for axis, values, letters in (
            (axes.yaxis, latitude, "NS"),
            (axes.xaxis, np.unwrap(longitude, period=360), "EW"),
        ):
            where, degree = ticks(values, 1.0, most=8)
            digits = next(
                n for n in (0, 1, 2) if n == 2 or np.allclose(degree, np.round(degree, n), atol=1e-6)
            )
            axis.set_ticks(where, labels=[degrees(d, letters, digits) for d in degree])
        return
    step = max(1, max(latitude.shape) // 200)
    _graticule(axes, latitude[::step, ::step], longitude[::step, ::step], float(step), "0.2")


def _number(axes: Axes, rows: int, cols: int, edge: float) -> None:
    """Row and column of patches on the right and above: what ``--like CROP,ROW,COL`` asks for."""
    style: dict[str, Any] = {
        "textcoords": "offset points",
        "fontsize": 8,
        "color": "0.4",
        "annotation_clip": False,
    }
    for i in range(0, cols, -(-cols // 30)):
        axes.annotate(
            str(i), ((i + 0.5) * edge, 1), (0, 3), xycoords=("data", "axes fraction"), ha="center", **style
        )
    for i in range(0, rows, -(-rows // 30)):
        axes.annotate(
            str(i), (1, (i + 0.5) * edge), (4, 0), xycoords=("axes fraction", "data"), va="center", **style
        )
    axes.annotate("column of patch", (0.5, 1), (0, 14), xycoords="axes fraction", ha="center", **style)
    axes.annotate(
        "row of patch", (1, 0.5), (18, 0), xycoords="axes fraction", va="center", rotation=90, **style
    )


def positions(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of patch centres ``(row, col)`` as if every patch were whole and inside the scene.

    Patches that reach past the scene have their centre where their pixels are, and patches of padding have none:
    both are put on the lattice of the others. Longitude is continuous, so it may leave [-180, 180).
    """
    latitude, longitude = _centres(one)
    rows, cols = inside(one)
    return tuple(_whole(_whole(v, cols).T, rows).T for v in (latitude, longitude))  # type: ignore[return-value]


def _centres(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    latitude, longitude = (
        one[n].transpose("row", "col").values.astype(np.float64) for n in ("latitude", "longitude")
    )
    finite = longitude[np.isfinite(longitude)]
    base = finite[0] if finite.size else 0.0
    return latitude, base + (longitude - base + 180.0) % 360.0 - 180.0


def _whole(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Values at the middle of each column of patches, from those of columns cut at the ends; linear beyond."""
    middle = np.arange(values.shape[1]) + 0.5
    places = (np.maximum(middle - 0.5, ends[0]) + np.minimum(middle + 0.5, ends[1])) / 2
    out = np.full_like(values, np.nan)
    for line, known, new in zip(values, np.isfinite(values), out, strict=True):
        at = np.flatnonzero(known)
        if len(at) < 2:
            new[at] = line[at]
            continue
        new[:] = np.interp(middle, places[at], line[at])
        for i, j, beyond in (
            (at[0], at[1], middle < places[at[0]]),
            (at[-1], at[-2], middle > places[at[-1]]),
        ):
            new[beyond] = line[i] + (line[j] - line[i]) / (places[j] - places[i]) * (
                middle[beyond] - places[i]
            )
    return out


def inside(one: xr.Dataset) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last row, and first and last column, of the scene in a crop, in patches and parts of them.

    From the size of the source grid where the dataset knows its store; else from the patch centres, where these
    show it: the outermost of evenly spaced centres lies nearer to its neighbour if its patch is cut.
    """
    known = "y" in one.sizes and "grid" in one.coords
    shape = _scene_shape(one.encoding.get("source"), str(one["grid"].values)) if known else None
    if shape is None:
        latitude, longitude = _centres(one)
        return _cut_ends(latitude.T), _cut_ends(longitude)
    ends = []
    for axis, dim, size in (("y", "row", shape[0]), ("x", "col", shape[1])):
        origin, count = int(one[f"{axis}_origin"]), one.sizes[dim]
        edge = one.sizes[axis] / count
        ends.append((max(0.0, -origin / edge), min(float(count), (size - origin) / edge)))
    return ends[0], ends[1]


@functools.lru_cache(maxsize=256)
def _scene_shape(source: str | None, grid: str) -> tuple[int, int] | None:
    """Rows and columns of a source grid, from the store that a dataset was opened from; None if it is not known."""
    if not source or not re.fullmatch(r"[A-Za-z0-9_-]+", grid):
        return None
    try:
        axes = open_grid(source, grid)
    except (FileNotFoundError, KeyError):
        return None
    return axes.sizes["scene_y"], axes.sizes["scene_x"]


def _cut_ends(values: np.ndarray) -> tuple[float, float]:
    """First and last column inside the scene, judged by centres along the second dim."""
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    if not len(known):
        return 0.0, float(values.shape[1])
    first, last = float(known[0]), float(known[-1] + 1)
    steps = np.nanmedian(np.diff(values[:, known], axis=1), axis=0)
    if len(steps) < 4 or np.ptp(steps[1:-1]) > 1e-3 * abs(steps[1]):
        return first, last
    # A part p of a patch has its centre (1 + p) / 2 of a step from the next.
    missing = [2 * (1 - float(step / steps[1])) for step in (steps[0], steps[-1])]
    before, after = (m if 2e-3 < m < 1 else 0.0 for m in missing)
    return first + before, last - after


def _is_regular(latitude: np.ndarray, longitude: np.ndarray) -> bool:
    """Whether latitude depends on the row alone and longitude on the column alone, within a tenth of a patch."""
    for values in (latitude, longitude.T):
        values = values[np.isfinite(values).all(axis=1)]
        if len(values) > 1 and np.ptp(values, axis=1).max() > 0.1 * np.median(
            np.abs(np.diff(values, axis=0))
        ):
            return False
    return True


def corners(values: np.ndarray) -> np.ndarray:
    """Positions of patch corners ``(row + 1, col + 1)`` from those of centres, by linear extension."""
    if min(values.shape) < 2:
        raise ValueError(f"corners: got shape {values.shape}; expected two patches each way")
    wide = np.pad(values, 1, mode="reflect", reflect_type="odd")
    return (wide[1:, 1:] + wide[1:, :-1] + wide[:-1, 1:] + wide[:-1, :-1]) / 4


def ticks(centres: np.ndarray, edge: float, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of round degrees along an axis of patches, and those degrees; of one patch, its centre."""
    places = (np.arange(-1, len(centres) + 1) + 0.5) * edge
    if len(centres) < 2 or not np.isfinite(centres).all():
        known = np.isfinite(centres)
        return places[1:-1][known], centres[known]
    values = np.pad(centres, 1, mode="reflect", reflect_type="odd")
    low, high = np.sort(np.interp([0.0, len(centres) * edge], places, values))
    step = nice_step(high - low, most)
    degree = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    order = np.argsort(values)
    return np.interp(degree, values[order], places[order]), degree


def _graticule(axes: Axes, latitude: np.ndarray, longitude: np.ndarray, edge: float, colour: str) -> None:
    rows, cols = latitude.shape
    y, x = (np.arange(-1, rows + 1) + 0.5) * edge, (np.arange(-1, cols + 1) + 0.5) * edge
    axes.set_xticks([])
    axes.set_yticks([])
    for values, letters in ((latitude, "NS"), (longitude, "EW")):
        wide = np.pad(values, 1, mode="reflect", reflect_type="odd")
        low, high = np.nanmin(wide), np.nanmax(wide)
        step = nice_step(high - low, 8)
        levels = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        lines = axes.contour(x, y, wide, levels, colors=colour, linewidths=0.9, linestyles="dashed")
        decimals = 0 if step >= 1 else 2
        axes.clabel(lines, fmt={v: degrees(v, letters, decimals) for v in levels}, fontsize=8)
