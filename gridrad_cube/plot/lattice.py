"""Where the patches of a crop lie: lines between them, degrees along the edges, north up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import degrees, nice_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Names of the two axes: dim, coordinate, letters of its directions.
_ROWS, _COLS = ("row", "latitude", "NS"), ("col", "longitude", "EW")


def is_upside_down(one: xr.Dataset) -> bool:
    """Whether the first row of a crop is its southernmost."""
    latitude = one["latitude"].transpose("row", "col").values
    south_first = np.diff(latitude, axis=0)
    return bool(np.isfinite(south_first).any() and np.nanmedian(south_first) > 0)


def draw_lattice(
    axes: Axes, one: xr.Dataset, edge: float, *, lines: str | None = "white", numbers: bool = True
) -> None:
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
    if lines is not None:
        axes.hlines(np.arange(1, rows) * edge, 0, cols * edge, colors=lines, linewidth=0.6, alpha=0.7)
        axes.vlines(np.arange(1, cols) * edge, 0, rows * edge, colors=lines, linewidth=0.6, alpha=0.7)
    axes.set_xlim(0, cols * edge)
    axes.set_ylim((0, rows * edge) if is_upside_down(one) else (rows * edge, 0))
    latitude, longitude = positions(one)
    if _is_regular(latitude, longitude):
        for axis, values, letters in ((axes.yaxis, latitude[:, 0], "NS"), (axes.xaxis, longitude[0], "EW")):
            where, degree = ticks(values, edge, most=8 if letters == "NS" else 10)
            decimals = max(
                0, -int(np.floor(np.log10(np.ptp(degree) / max(len(degree) - 1, 1) + 1e-9) + 1e-6))
            )
            axis.set_ticks(where, labels=[degrees(d, letters, min(decimals, 2)) for d in degree])
    else:
        _graticule(axes, latitude, longitude, edge)
    if numbers:
        _number(axes, rows, cols, edge)


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
    latitude, longitude = (
        one[n].transpose("row", "col").values.astype(np.float64) for n in ("latitude", "longitude")
    )
    finite = longitude[np.isfinite(longitude)]
    base = finite[0] if finite.size else 0.0
    longitude = base + (longitude - base + 180.0) % 360.0 - 180.0
    return _regular_rows(_regular_rows(latitude.T).T), _regular_rows(_regular_rows(longitude.T).T)


def inside(one: xr.Dataset) -> tuple[float, float]:
    """Rows and columns of patches that lie inside the scene, with the part of the last ones that does.

    Told by the centres: that of a patch which reaches past the scene is the mean of its pixels inside.
    """
    latitude, longitude = positions(one)
    ends = []
    for name, whole, axis in (("latitude", latitude, 0), ("longitude", longitude, 1)):
        values = np.moveaxis(one[name].transpose("row", "col").values.astype(np.float64), axis, 0)
        regular = np.moveaxis(whole, axis, 0)
        known = np.flatnonzero(np.isfinite(values).any(axis=1))
        last = int(known[-1]) if len(known) else len(values) - 1
        part = 1.0
        if last > 0 and np.isfinite(regular[last]).any():
            off = (regular[last] - values[last] + 180.0) % 360.0 - 180.0
            part = 1.0 - 2.0 * float(np.nanmedian(off / (regular[last] - regular[last - 1])))
        ends.append(last + min(max(part, 0.0), 1.0))
    return ends[0], ends[1]


def _regular_rows(values: np.ndarray) -> np.ndarray:
    """Replace the ends of the second dim that are NaN or out of step by linear extension."""
    return np.array([_extend_line(line) for line in values])


def _extend_line(line: np.ndarray) -> np.ndarray:
    line = line.copy()
    known = np.flatnonzero(np.isfinite(line))
    if len(known) > 2:
        last, step = known[-1], np.diff(line[known[-3:]])
        # Only the last patch inside the scene may be cut; a cut one lies nearer to its neighbour.
        if abs(step[1]) < 0.99 * abs(step[0]):
            line[last] = np.nan
            known = known[:-1]
    if len(known) < 2:
        return line
    where = np.arange(len(line))
    slope = (line[known[-1]] - line[known[-2]]) / (known[-1] - known[-2])
    after = where > known[-1]
    line[after] = line[known[-1]] + slope * (where[after] - known[-1])
    slope = (line[known[1]] - line[known[0]]) / (known[1] - known[0])
    before = where < known[0]
    line[before] = line[known[0]] + slope * (where[before] - known[0])
    return line


def _is_regular(latitude: np.ndarray, longitude: np.ndarray) -> bool:
    """Whether latitude depends on the row alone and longitude on the column alone, within a tenth of a patch."""
    for values in (latitude, longitude.T):
        spread = np.nanmax(np.nanmax(values, axis=1) - np.nanmin(values, axis=1)) if values.size else 0.0
        step = np.nanmedian(np.abs(np.diff(values, axis=0))) if values.shape[0] > 1 else np.inf
        if spread > 0.1 * step:
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


def _graticule(axes: Axes, latitude: np.ndarray, longitude: np.ndarray, edge: float) -> None:
    rows, cols = latitude.shape
    y, x = (np.arange(-1, rows + 1) + 0.5) * edge, (np.arange(-1, cols + 1) + 0.5) * edge
    axes.set_xticks([])
    axes.set_yticks([])
    for values, letters in ((latitude, "NS"), (longitude, "EW")):
        wide = np.pad(values, 1, mode="reflect", reflect_type="odd")
        low, high = np.nanmin(wide), np.nanmax(wide)
        step = nice_step(high - low, 8)
        levels = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        lines = axes.contour(x, y, wide, levels, colors="#fff7d6", linewidths=0.9, linestyles="dashed")
        decimals = 0 if step >= 1 else 2
        axes.clabel(lines, fmt={v: degrees(v, letters, decimals) for v in levels}, fontsize=8)
