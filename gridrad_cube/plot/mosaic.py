"""All crops of one scene, where they lie in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    BLUE,
    ORANGE,
    add_axes,
    colour_bar,
    draw_field,
    new_figure,
    select,
    stamp,
    title_of,
    write_legend,
    write_title,
)
from gridrad_cube.plot.lattice import mark_degrees
from gridrad_cube.plot.scenes import BOTTOM, LEFT, PADDING, TOP, decoded
from gridrad_cube.schema import SchemaError, channel_label
from gridrad_cube.store import open_grid

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Largest width and height of the map, inches.
_WIDTH, _HEIGHT = 8.6, 8.0


def crops(cube: xr.Dataset, crop: int = 0, *, channel: str | None = None, altitude: int = 0) -> Figure:
    """Draw the scene that a crop was cut from: every crop of it in its place, outlined, with lines between patches.

    What no crop holds stays empty. Where crops lie on one another, the later one is drawn.

    Parameters
    ----------
    cube, crop, channel, altitude
        As in `scene`.

    Raises
    ------
    SchemaError
        As in `scene`; or if the dataset does not know its store.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    one, drawn, level = select(cube, crop, channel, altitude)
    latitude, longitude = _pixel_axes(one)
    same = (cube["scene"].values == one["scene"].values) & ~np.isnat(cube["time"].values)
    if "status" in cube.variables:
        same &= cube["status"].values == 0
    members = np.flatnonzero(same)
    origins = np.stack([cube[f"{a}_origin"].values[members].astype(int) for a in "yx"], axis=1)
    size = np.array([one.sizes["y"], one.sizes["x"]])
    low = np.minimum(origins.min(axis=0), 0)
    high = np.maximum((origins + size).max(axis=0), [latitude.shape[0], longitude.shape[-1]])
    tall, wide = high - low
    unit = min(_WIDTH / wide, _HEIGHT / tall)
    width, height = max(wide * unit, 2.5), max(tall * unit, 2.5)
    figure, _ = new_figure(by_hand=True, figsize=(LEFT + width + 1.9, TOP + height + BOTTOM))
    axes = add_axes(figure, LEFT, TOP, width, height)
    label = channel_label(drawn.name, float(one["altitude"][level["altitude"]]) if level else None)
    handles: dict[str, Artist] = {}
    for number, (y, x) in zip(members, origins, strict=True):
        values = decoded(cube[drawn.name].isel({"crop": int(number), **level}), drawn.packing)
        extent = (x, x + size[1], y + size[0], y)
        image, found = draw_field(axes, values, label, channel=drawn, extent=extent)
        inside = values[max(-y, 0) : latitude.shape[0] - y, max(-x, 0) : longitude.shape[-1] - x]
        whole = np.isfinite(inside).all()  # what padding lacks needs no word
        handles |= {str(h.get_label()): h for h in found if not (whole and h.get_label() == "not observed")}
    edge = one.sizes["y"] // one.sizes["row"]
    lines = "0.75" if drawn.has_echo else "white"
    last = np.argsort(members == crop, kind="stable")  # its outline lies on the others'
    for number, (y, x) in zip(members[last], origins[last], strict=True):
        colour = BLUE if number == crop else ORANGE
        axes.hlines(
            y + edge * np.arange(1, one.sizes["row"]), x, x + size[1], colors=lines, linewidth=0.5, alpha=0.6
        )
        axes.vlines(
            x + edge * np.arange(1, one.sizes["col"]), y, y + size[0], colors=lines, linewidth=0.5, alpha=0.6
        )
        axes.add_patch(
            Rectangle((x, y), size[1], size[0], fill=False, edgecolor=colour, linewidth=2.0, zorder=4)
        )
        axes.text(
            x + 0.02 * size[1], y + size[0] / 2, str(number), color="white", fontsize=10, va="center", zorder=5,
            bbox={"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.25"},
        )  # fmt: skip
    shape = (latitude.shape[0], longitude.shape[-1])
    if _pad(axes, (low[1], high[1], low[0], high[0]), shape):
        handles["padding"] = Patch(**PADDING, label="padding, outside the scene")
    south_first = bool(np.nanmean(np.diff(latitude, axis=0)) > 0)
    axes.set_xlim(low[1], high[1])
    axes.set_ylim((low[0], high[0]) if south_first else (high[0], low[0]))
    mark_degrees(axes, latitude, longitude)
    count = (
        f"{len(members)} crop{'s' * (len(members) != 1)} of {one.sizes['row']} × {one.sizes['col']} patches"
    )
    write_title(
        figure, f"{title_of(label, channel=drawn)}, {stamp(one['time'].values)}", f"{one['scene'].values}: {count}",
        left=LEFT,
    )  # fmt: skip
    colour_bar(image, label, channel=drawn, cax=add_axes(figure, LEFT + width + 0.4, TOP, 0.22, height))
    frame = Line2D([], [], color=BLUE, linewidth=2.0, label=f"crop {crop}")
    others = [Line2D([], [], color=ORANGE, linewidth=2.0, label="other crops")] if len(members) > 1 else []
    write_legend(figure, [frame, *others, *handles.values()], left=LEFT)
    return figure


def _pad(axes: Axes, box: tuple[int, int, int, int], shape: tuple[int, int]) -> bool:
    """Hatch what of a box (left, right, top, bottom) lies outside a scene."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = box
    height, width = shape
    for x0, x1, y0, y1 in (
        (left, right, top, 0), (left, right, height, bottom), (left, 0, 0, height), (width, right, 0, height),
    ):  # fmt: skip
        if x1 > x0 and y1 > y0:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **PADDING))
    return bool(left < 0 or top < 0 or right > width or bottom > height)


def _pixel_axes(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the pixels of the scene that a crop is of, 1-D or 2-D as its source has them."""
    source, grid = one.encoding.get("source"), str(one["grid"].values) if "grid" in one.coords else ""
    if not source or not re.fullmatch(r"[A-Za-z0-9_-]+", grid):
        raise SchemaError("plot: the dataset does not know its store, so not its scenes. Use open_cube.")
    found = open_grid(source, grid)
    return found["latitude"].values, found["longitude"].values
