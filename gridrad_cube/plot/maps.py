"""A plain map: points with numbers, where a store lies, degrees along its edges. No coastlines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import degrees, nice_step
from gridrad_cube.plot.lattice import corners, inside, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Different outlines that are drawn at most.
_OUTLINES = 200


@dataclass(frozen=True)
class Points:
    """Places of one kind on a map: degrees, a name in the legend, a look, numbers to write beside them or none."""

    latitude: np.ndarray
    longitude: np.ndarray
    name: str
    colour: str
    marker: str = "o"
    size: float = 60.0
    numbers: tuple[str, ...] = ()


def draw_map(
    axes: Axes, groups: Sequence[Points], dataset: xr.Dataset | None
) -> list[tuple[float, float, str, str]]:
    """Draw groups of points, and faintly the outline of each different crop of a dataset.

    Right across the date line: longitudes are continuous about the first point.

    Returns
    -------
    What `write_numbers` takes.
    """
    groups = [g for g in groups if len(g.latitude)]
    base = next((float(v) for g in groups for v in g.longitude if np.isfinite(v)), 0.0)
    for i, (latitude, longitude) in enumerate(outlines(dataset) if dataset is not None else ()):
        shift = 360.0 * np.round((base - np.nanmean(longitude)) / 360.0)
        name = "crops of the store" if i == 0 else None
        axes.fill(
            longitude + shift,
            latitude,
            facecolor="0.94",
            edgecolor="0.7",
            linewidth=0.8,
            label=name,
            zorder=0,
        )
    for group in groups:
        axes.scatter(
            _near(group.longitude, base), group.latitude, s=group.size, color=group.colour, marker=group.marker,
            edgecolor="white", linewidth=0.8, label=group.name, zorder=2 if group.marker == "*" else 3,
        )  # fmt: skip
    axes.margins(0.06)
    axes.autoscale_view()
    latitudes = np.concatenate([g.latitude for g in groups]) if groups else np.zeros(1)
    middle = float(np.nanmean(latitudes))
    axes.set_aspect(1 / max(np.cos(np.deg2rad(middle)), 0.2), adjustable="datalim")
    _degrees(axes)
    axes.grid(alpha=0.35, linewidth=0.6)
    return [
        (float(lon), float(lat), number, g.colour)
        for g in groups
        for lon, lat, number in zip(
            _near(g.longitude, base), g.latitude, g.numbers or [""] * len(g.latitude), strict=True
        )
    ]


def _near(longitude: np.ndarray, base: float) -> np.ndarray:
    return base + (np.asarray(longitude, np.float64) - base + 180.0) % 360.0 - 180.0


def write_numbers(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write texts beside points, where they cover neither each other nor a point if there is room.

    Settles the layout of the figure first, so call it last.

    Parameters
    ----------
    points
        x, y, text and colour of each; texts of one colour at one place stand together, and points without a
        text are only kept free.
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    dots = axes.transData.transform([p[:2] for p in points]) * 72 / figure.dpi
    texts: dict[tuple[int, int, str], list[str]] = {}
    for (x, y), (_, _, text, colour) in zip(dots, points, strict=True):
        if text:
            texts.setdefault((round(x / 4), round(y / 4), colour), []).append(text)
    first = {
        (round(x / 4), round(y / 4), p[3]): i
        for i, ((x, y), p) in reversed(list(enumerate(zip(dots, points, strict=True))))
    }
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for key, members in texts.items():
        i, text = first[key], ", ".join(members)
        box, shift, align = _free_place(dots[i], sum(5.4 if c.isdigit() else 2.7 for c in text), taken)
        taken.append(box)
        axes.annotate(
            text, points[i][:2], xytext=shift, textcoords="offset points", fontsize=8.5, color=points[i][3], zorder=5,
            ha=align, va="bottom",
        )  # fmt: skip


Box = tuple[float, float, float, float]
Align = Literal["left", "right", "center"]


def _free_place(
    dot: np.ndarray, width: float, taken: Sequence[Box]
) -> tuple[Box, tuple[float, float], Align]:
    """The box of a text near a dot that covers the least of what is taken, its offset and alignment; points."""
    height = 9.0
    sides: tuple[tuple[float, float, Align], ...] = (
        (6, 3, "left"), (-6, 3, "right"), (6, -3 - height, "left"), (-6, -3 - height, "right"), (0, 7, "center"),
        (0, -7 - height, "center"),
    )  # fmt: skip
    places = []
    for ring in (0.0, 7.0, 14.0):
        for x, y, align in sides:
            shift = (x, y + ring * np.sign(y))
            left = dot[0] + x - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = (left, dot[1] + shift[1], left + width, dot[1] + shift[1] + height)
            places.append((sum(_overlap(box, other) for other in taken), box, shift, align))
    return min(places, key=lambda place: place[0])[1:]


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _degrees(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    for axis, limits, letters in ((axes.xaxis, axes.get_xlim(), "EW"), (axes.yaxis, axes.get_ylim(), "NS")):
        step = nice_step(abs(limits[1] - limits[0]), 6)
        decimals = 0 if step >= 1 else 1 if step >= 0.1 else 2
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(
            FuncFormatter(lambda v, _, letters=letters, decimals=decimals: degrees(v, letters, decimals))
        )


def outlines(dataset: xr.Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Outline of each different crop where its scene is, latitude and continuous longitude, along patch corners."""
    latitude, longitude = (
        dataset[n].transpose("crop", "row", "col").values for n in ("latitude", "longitude")
    )
    both = np.stack([latitude, longitude], axis=-1).reshape(len(latitude), -1)
    known = np.isfinite(both).any(axis=1)
    _, first = np.unique(np.nan_to_num(both[known].round(3), nan=999.0), axis=0, return_index=True)
    for crop in np.flatnonzero(known)[np.sort(first)][:_OUTLINES]:
        one = dataset.isel(crop=int(crop))
        ends = inside(one)
        lat, lon = (_ring(_cut(corners(v), ends)) if min(v.shape) > 1 else _ring(v) for v in positions(one))
        yield lat, lon


def _cut(values: np.ndarray, ends: tuple[tuple[float, float], tuple[float, float]]) -> np.ndarray:
    """Corners of patches between the first and last row and column of the scene, the outermost interpolated."""
    for axis, (first, last) in enumerate(ends):
        values = np.moveaxis(values, axis, 0)
        places = np.array([first, *range(int(np.floor(first)) + 1, int(np.ceil(last))), last])
        low = np.minimum(np.floor(places).astype(int), len(values) - 2)
        part = (places - low)[:, None]
        values = np.moveaxis((1 - part) * values[low] + part * values[low + 1], 0, axis)
    return values


def _ring(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0, :-1], values[:-1, -1], values[-1, :0:-1], values[::-1, 0]])
