"""A crop with the lattice of its patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
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
from gridrad_cube.plot.lattice import draw_lattice, inside
from gridrad_cube.schema import Channel, Flag, Packing, channel_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

#: Look of what lies outside the scene.
PADDING: dict[str, Any] = {"facecolor": "#e4e4e4", "edgecolor": "#8c8c8c", "hatch": "////", "linewidth": 0.0}

#: Room beside and above a map, inches: degrees, titles with column numbers, degrees with a legend.
LEFT, TOP, BOTTOM = 0.7, 1.0, 0.75


def scene(cube: xr.Dataset, crop: int = 0, *, channel: str | None = None, altitude: int = 0) -> Figure:
    """Draw one crop with the lattice of its patches, degrees along its edges, and numbers of rows and columns.

    Parameters
    ----------
    cube
        From `gridrad_cube.open_cube`.
    crop
        Row of the crop in the cube.
    channel
        Name of the variable, or a label such as ``reflectivity@3.0km``; the first one if None.
    altitude
        Index of the level of a 3-D channel.

    Raises
    ------
    SchemaError
        If the cube lacks the channel or the crop, or the crop was not written.
    """
    one, drawn, level = select(cube, crop, channel, altitude)
    width, height = map_size(one)
    figure, _ = new_figure(by_hand=True, figsize=(LEFT + width + 1.9, TOP + height + BOTTOM))
    axes = add_axes(figure, LEFT, TOP, width, height)
    label, image, handles = draw_crop(axes, one, drawn, level)
    title = f"{title_of(label, channel=drawn)}, {stamp(one['time'].values)}"
    write_title(figure, title, crop_text(cube, one, crop), left=LEFT)
    colour_bar(image, label, channel=drawn, cax=add_axes(figure, LEFT + width + 0.75, TOP, 0.22, height))
    write_legend(figure, handles, left=LEFT)
    return figure


def map_size(one: xr.Dataset, width: float = 8.6, height: float = 8.0) -> tuple[float, float]:
    """Width and height in inches at which a crop's patches are square and fill one of the two."""
    rows, cols = one.sizes["row"], one.sizes["col"]
    edge = min(width / cols, height / rows)
    return max(cols * edge, 2.5), max(rows * edge, 2.5)


def crop_text(cube: xr.Dataset, one: xr.Dataset, crop: int) -> str:
    """Which crop of how many, and its patches."""
    return f"crop {crop} of {cube.sizes['crop']}, {one.sizes['row']} × {one.sizes['col']} patches"


def draw_crop(
    axes: Axes, one: xr.Dataset, channel: Channel, level: dict[str, int]
) -> tuple[str, AxesImage, list[Artist]]:
    """Draw a channel of a crop with its lattice; padding hatched, absence written across it.

    Returns
    -------
    The channel's label, the image, and handles of the states that occur.
    """
    from matplotlib.patches import Patch

    name = channel.name
    values = decoded(one[name].isel(level), channel.packing)
    height, width = values.shape
    edge = height / one.sizes["row"]
    label = channel_label(name, float(one["altitude"][level["altitude"]]) if level else None)
    image, handles = draw_field(axes, values, label, channel=channel, extent=(0, width, height, 0))
    draw_lattice(axes, one, edge, lines="0.75" if channel.has_echo else "white")
    bits = flags_of(one, name, level)
    (top, bottom), (left, right) = (tuple(round(n * edge) for n in ends) for ends in inside(one))
    if np.isfinite(values[top:bottom, left:right]).all():
        handles = [h for h in handles if h.get_label() != "not observed"]
    if _draw_padding(axes, (left, right, top, bottom), bits, edge):
        handles.append(Patch(**PADDING, label="padding, outside the scene"))
    if ((bits & int(Flag.channel_absent)) != 0).all():
        axes.text(
            0.5, 0.5, f"{channel.long_name} is absent from this scene", transform=axes.transAxes, ha="center",
            va="center", fontsize=14, bbox={"facecolor": "white", "edgecolor": "0.4", "boxstyle": "round,pad=0.6"},
            zorder=6,
        )  # fmt: skip
    return label, image, handles


def _draw_padding(axes: Axes, scene: tuple[int, int, int, int], bits: np.ndarray, edge: float) -> bool:
    """Hatch what lies outside the scene (left, right, top, bottom in pixels), and patches that say they do."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = scene
    height, width = (round(n * edge) for n in bits.shape)
    boxes = [
        (0, 0, width, top),
        (0, bottom, width, height),
        (0, top, left, bottom),
        (right, top, width, bottom),
    ]
    for row, col in np.argwhere(bits & int(Flag.padding)):
        x, y = round(col * edge), round(row * edge)
        if left <= x < right and top <= y < bottom:
            boxes.append((x, y, round(x + edge), round(y + edge)))
    boxes = [b for b in boxes if b[0] < b[2] and b[1] < b[3]]
    for x0, y0, x1, y1 in boxes:
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **PADDING))
    return bool(boxes)


def decoded(variable: xr.DataArray, packing: Packing) -> np.ndarray:
    """Physical values of a channel ``(y, x)``, whether the dataset is decoded or packed."""
    values = variable.transpose("y", "x").values
    return np.asarray(packing.decode(values) if values.dtype.kind in "iu" else values)


def flags_of(one: xr.Dataset, name: str, level: dict[str, int]) -> np.ndarray:
    """Flags of a channel's patches ``(row, col)``; none where the dataset has no flags."""
    if f"{name}_flags" not in one:
        return np.zeros((one.sizes["row"], one.sizes["col"]), np.uint16)
    return np.asarray(one[f"{name}_flags"].isel(level).transpose("row", "col").values)


def cell(row: int, col: int, edge: float, **style: Any) -> Any:
    """The square of a patch."""
    from matplotlib.patches import Rectangle

    return Rectangle((col * edge, row * edge), edge, edge, linewidth=0, **style)
