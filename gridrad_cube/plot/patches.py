"""Draw pixels: a crop and its patches, all crops of a scene, flags, and the fields of a source file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    BLUE,
    BOTTOM,
    LEFT,
    ORANGE,
    PADDING,
    TOP,
    add_axes,
    cell,
    color_bar,
    draw_crop,
    draw_field,
    draw_padding,
    finish_axes,
    map_size,
    mark_degrees,
    new_figure,
    orient_scene,
    select,
    source_grid,
    stamp,
    title_of,
    turn,
    write_legend,
    write_title,
)
from gridrad_cube.schema import Flag, SchemaError, channel_in, default_reject

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Two letters and a color for each flag. The letters identify the flag; the color helps to find it.
_BADGES: dict[Flag, tuple[str, str]] = {
    Flag.padding: ("PA", "#000000"),
    Flag.withdrawn: ("WD", "#b2182b"),
    Flag.unreadable: ("UR", "#7f0000"),
    Flag.channel_absent: ("CA", "#4d4d4d"),
    Flag.all_missing: ("AM", "#a63603"),
    Flag.low_coverage: ("LC", "#d55e00"),
    Flag.some_missing: ("SM", "#f2b134"),
    Flag.non_finite: ("NF", "#88225c"),
    Flag.constant: ("CO", "#aa4499"),
    Flag.out_of_valid_range: ("OR", "#e6a5cf"),
    Flag.local_outlier: ("LO", "#009e73"),
    Flag.global_outlier: ("GO", "#84d9b5"),
    Flag.night: ("NI", "#08306b"),
    Flag.low_sun: ("LS", "#2171b5"),
    Flag.limb: ("LI", "#7fc4ee"),
    Flag.no_echo: ("NE", "#dddddd"),
}
#: Width of the legend of flags, inches.
_LEGEND = 3.0
#: Pixels along the longer edge of a small map.
_SMALL = 700


def scene(cube: xr.Dataset, crop: int = 0, *, channel: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw one crop with the lattice of its patches, degrees along its edges, and numbers of rows and
    columns.

    Parameters
    ----------
    cube
        From `gridrad_cube.open_cube`.
    crop
        Row of the crop in the cube.
    channel
        Name of the variable, at its lowest altitude, or a label such as ``reflectivity@3.0km``; the first if
        None.
    ax
        Axes to draw into, with a color bar beside them and a legend below; a new figure if None.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If the cube lacks the channel, the altitude or the crop, or the crop was not written.
    """
    field = select(cube, crop, channel)
    title = f"{title_of(field.label, field.channel, units=True)}, {stamp(field.one['time'].values)}"
    if ax is not None:
        image, handles = draw_crop(ax, field)
        color_bar(image, field.label, field.channel, ax=ax, pad=0.1)
        return finish_axes(ax, title, handles)
    width, height = map_size(field.one)
    figure, _ = new_figure(by_hand=True, figsize=(LEFT + width + 1.9, TOP + height + BOTTOM))
    image, handles = draw_crop(add_axes(figure, LEFT, TOP, width, height), field)
    write_title(figure, title, _crop_text(cube, field.one, crop))
    bar = add_axes(figure, LEFT + width + 0.75, TOP, 0.22, height)
    color_bar(image, field.label, field.channel, cax=bar)
    write_legend(figure, handles)
    return figure


def _crop_text(cube: xr.Dataset, one: xr.Dataset, crop: int) -> str:
    return f"crop {crop} of {cube.sizes['crop']}, {one.sizes['row']} × {one.sizes['col']} patches"


def crops(cube: xr.Dataset, crop: int = 0, *, channel: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw the scene of a crop: every crop of it at its position, outlined, with lines between patches.

    Areas outside of all crops stay empty. If crops overlap, the later one is drawn.

    Parameters
    ----------
    cube, crop, channel, ax
        As in `scene`.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        As in `scene`; or if the dataset does not know its store.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    field = select(cube, crop, channel)
    one, drawn, grid = field.one, field.channel, source_grid(field.one)
    if grid is None:
        raise SchemaError("plot: the dataset does not know its store, so not its scenes. Use open_cube.")
    latitude, longitude = grid["latitude"].values, grid["longitude"].values
    same = (cube["scene"].values == one["scene"].values) & ~np.isnat(cube["time"].values)
    if "status" in cube.variables:
        same &= cube["status"].values == 0
    members = np.flatnonzero(same)
    origins = np.stack([cube[f"{a}_origin"].values[members].astype(int) for a in "yx"], axis=1)
    size = np.array([one.sizes["y"], one.sizes["x"]])
    shape = np.array([latitude.shape[0], longitude.shape[-1]])
    low = np.minimum(origins.min(axis=0), 0)
    high = np.maximum((origins + size).max(axis=0), shape)
    unit = min(8.6 / (high - low)[1], 8.0 / (high - low)[0])
    height, width = np.maximum((high - low) * unit, 2.5)
    if ax is None:
        figure, _ = new_figure(by_hand=True, figsize=(LEFT + width + 1.9, TOP + height + BOTTOM))
    axes = ax or add_axes(figure, LEFT, TOP, width, height)
    states: dict[str, Artist] = {}
    edge = one.sizes["y"] // one.sizes["row"]
    lines: dict[str, Any] = {"colors": "0.75" if drawn.has_echo else "white", "linewidth": 0.5, "alpha": 0.6}
    for number, (y, x) in zip(members, origins, strict=True):
        values = select(cube, int(number), field.label).values()
        inside = (slice(max(-y, 0), shape[0] - y), slice(max(-x, 0), shape[1] - x))
        extent = (x, x + size[1], y + size[0], y)
        image, found = draw_field(axes, values, drawn, extent=extent, inside=inside)
        states |= {str(h.get_label()): h for h in found}
        color, order = (BLUE, 4.5) if number == crop else (ORANGE, 4)  # its outline lies on the others'
        axes.hlines(y + edge * np.arange(1, one.sizes["row"]), x, x + size[1], **lines)
        axes.vlines(x + edge * np.arange(1, one.sizes["col"]), y, y + size[0], **lines)
        outline: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 2.0, "zorder": order}
        axes.add_patch(Rectangle((x, y), size[1], size[0], **outline))
        axes.text(
            x + 0.02 * size[1], y + size[0] / 2, str(number), color="white", fontsize=10, va="center", zorder=5,
            bbox={"facecolor": color, "edgecolor": "none", "boxstyle": "round,pad=0.25"},
        )  # fmt: skip
    if draw_padding(axes, (low[1], high[1], low[0], high[0]), (0, shape[1], 0, shape[0])):
        states["padding"] = Patch(**PADDING, label="padding, outside the scene")
    turn(axes, (low[1], high[1], low[0], high[0]), orient_scene(latitude, longitude))
    mark_degrees(axes, latitude, longitude)
    count = f"{len(members)} crop{'s' * (len(members) != 1)}"
    text = f"{one['scene'].values}: {count} of {one.sizes['row']} × {one.sizes['col']} patches"
    frames = [Line2D([], [], color=BLUE, linewidth=2.0, label=f"crop {crop}")]
    if len(members) > 1:
        frames.append(Line2D([], [], color=ORANGE, linewidth=2.0, label="other crops"))
    title = f"{title_of(field.label, field.channel, units=True)}, {stamp(one['time'].values)}"
    if ax is not None:
        color_bar(image, field.label, drawn, ax=ax)
        return finish_axes(ax, title, [*frames, *states.values()])
    write_title(figure, title, text)
    color_bar(image, field.label, drawn, cax=add_axes(figure, LEFT + width + 0.4, TOP, 0.22, height))
    write_legend(figure, [*frames, *states.values()])
    return figure


def flags(cube: xr.Dataset, crop: int = 0, *, channel: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw one crop with a badge for each flag of each patch, and a legend with counts.

    A flag has the same position, letters and color in all patches of the picture. Patches that are rejected
    by default are dimmed; padding is hatched.

    Parameters
    ----------
    cube, crop, channel, ax
        As in `scene`.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        As in `scene`.
    """
    from matplotlib.patches import Patch

    field = select(cube, crop, channel)
    one, bits, reject = field.one, field.flags(), int(default_reject(field.channel.kind))
    present = [f for f in _BADGES if (bits & int(f)).any()]
    (width, height), tall = map_size(one), 0.28 * len(present) + 1.3
    size = (LEFT + width + 0.6 + _LEGEND, TOP + max(height, tall) + BOTTOM)
    if ax is None:
        figure, _ = new_figure(by_hand=True, figsize=size)
    axes = ax or add_axes(figure, LEFT, TOP, width, height)
    if ax is not None:  # of which a title, ticks and a legend take a part
        place, inches = ax.get_position(), ax.figure.get_figure(root=True).get_size_inches()
        width, height = 0.8 * place.width * inches[0], 0.8 * place.height * inches[1]
    _, handles = draw_crop(axes, field)
    edge, rejected = one.sizes["y"] / one.sizes["row"], (bits & reject) != 0
    for row, col in np.argwhere(rejected):
        axes.add_patch(cell(row, col, edge, facecolor="white", alpha=0.55))
    _draw_badges(axes, bits, present, edge, 72 * min(width / one.sizes["col"], height / one.sizes["row"]))
    altitude = field.label.removeprefix(field.channel.name).replace("@", " at ")
    title = f"Flags of {field.channel.long_name}{altitude}, {stamp(one['time'].values)}"
    if rejected.any():
        veil: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.5", "linewidth": 0.5}
        handles.append(Patch(**veil, label="veiled: rejected in training"))
    if ax is not None:
        for flag in present:
            letters, color = _BADGES[flag]
            name = f"{letters}: {str(flag.name).replace('_', ' ')}"
            handles.append(Patch(facecolor=color, edgecolor="0.5", linewidth=0.5, label=name))
        return finish_axes(ax, title, handles)
    write_title(figure, title, _crop_text(cube, one, crop))
    _draw_legend(add_axes(figure, LEFT + width + 0.6, TOP, _LEGEND, tall), bits, present, reject, tall)
    write_legend(figure, handles)
    return figure


def _draw_badges(axes: Axes, bits: np.ndarray, present: list[Flag], edge: float, room: float) -> None:
    """Draw badges in slots, from the upper left of a patch with an edge of ``room`` points; with letters if
    they are readable.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    slot = edge * min(1 / max(2, int(np.ceil(np.sqrt(len(present))))), 18 / room)
    across, size = int(edge / slot + 1e-6), 0.42 * room * slot / edge
    upside_down, backward = axes.get_ylim()[0] < axes.get_ylim()[1], axes.get_xlim()[0] > axes.get_xlim()[1]
    for i, flag in enumerate(present):
        letters, color = _BADGES[flag]
        right, down = (i % across) * slot, (i // across) * slot
        down = edge - slot - down if upside_down else down  # the first line is on top
        right = edge - slot - right if backward else right
        places = [(col * edge + right, row * edge + down) for row, col in np.argwhere(bits & int(flag))]
        boxes = [Rectangle((x + 0.06 * slot, y + 0.12 * slot), 0.88 * slot, 0.76 * slot) for x, y in places]
        axes.add_collection(
            PatchCollection(boxes, facecolor=color, edgecolor="white", linewidth=0.5, zorder=3)
        )
        for x, y in places if size >= 3.5 else ():
            axes.text(
                x + slot / 2, y + slot / 2, letters, ha="center", va="center_baseline", fontsize=size,
                color=_ink(color), zorder=4,
            )  # fmt: skip


def _ink(color: str) -> str:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _draw_legend(side: Axes, bits: np.ndarray, present: list[Flag], reject: int, height: float) -> None:
    """Draw every flag of the picture with its badge and the number of its patches, rejecting flags first."""
    from matplotlib.patches import Rectangle

    side.set_xlim(0, _LEGEND)
    side.set_ylim(height, 0)
    side.axis("off")
    rejected = int(((bits & reject) != 0).sum())
    line = 0.1
    for title, members in (
        (f"Rejected in training: {rejected} of {bits.size}", [f for f in present if f & reject]),
        (f"Other flags; clean patches: {bits.size - rejected}", [f for f in present if not f & reject]),
    ):
        side.text(0.1, line, title, fontsize=10, weight="bold", va="center")
        for flag in members:
            line += 0.28
            letters, color = _BADGES[flag]
            count = int(((bits & int(flag)) != 0).sum())
            box: dict[str, Any] = {"facecolor": color, "edgecolor": "0.5", "linewidth": 0.5}
            side.add_patch(Rectangle((0.1, line - 0.1), 0.26, 0.2, **box))
            side.text(0.23, line, letters, ha="center", va="center_baseline", fontsize=7.5, color=_ink(color))
            side.text(0.46, line, f"{str(flag.name).replace('_', ' ')}: {count}", fontsize=10, va="center")
        if not members:
            line += 0.28
            side.text(0.46, line, "none", fontsize=10, va="center", color="0.4")
        line += 0.45


def source(scene: xr.Dataset) -> Figure:
    """Draw every 2-D field of a scene, north up: channels in their colors, other fields from smallest to
    largest value.

    Parameters
    ----------
    scene
        From `gridrad_cube.readers.read_fields`, or `read_scene`.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If it has no 2-D field.
    """
    names = [str(n) for n, v in scene.data_vars.items() if v.dims == ("y", "x")]
    if not names:
        raise SchemaError("plot: no 2-D field in this scene; expected one of read_fields")
    cols = math.ceil(math.sqrt(len(names)))
    rows = math.ceil(len(names) / cols)
    tall, wide = scene[names[0]].shape
    each = float(np.clip(3.5 * tall / wide, 1.2, 5.0)) + 0.7
    figure, axes = new_figure(rows, cols, figsize=(max(6.5, 4.6 * cols), 0.5 + each * rows))
    figure.suptitle(
        f"{scene.attrs.get('product', 'scene')}, {stamp(scene['time'].values)}",
        fontsize=13,
        x=0.01,
        ha="left",
    )
    for ax, name in zip(axes.flat, names, strict=False):
        variable = scene[name]
        step, channel = max(1, max(tall, wide) // _SMALL), channel_in(name, variable.attrs, variable.dtype)
        values = channel.packing.decode(variable.values[::step, ::step])
        image, _ = draw_field(ax, values, channel, extent=(0, wide, tall, 0))
        color_bar(image, name, channel, ax=ax)
        ax.set_title(title_of(name, units=True), fontsize=9, loc="left")
        latitude, longitude = (scene[n].values for n in ("latitude", "longitude"))
        turn(ax, (0, wide, 0, tall), orient_scene(latitude, longitude))
        mark_degrees(ax, latitude, longitude)
        ax.tick_params(labelsize=7)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    return figure
