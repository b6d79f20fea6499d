"""Flags of a crop's patches: one badge a flag, at the same place in every patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import add_axes, new_figure, select, stamp, write_legend, write_title
from gridrad_cube.plot.scenes import BOTTOM, LEFT, TOP, cell, crop_text, draw_crop, flags_of, map_size
from gridrad_cube.schema import Flag, default_reject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Two letters and a colour a flag: the letters tell flags apart, the colour helps.
BADGES: dict[Flag, tuple[str, str]] = {
    Flag.padding: ("PA", "#000000"),
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

#: Width of the legend, inches.
_LEGEND = 3.0


def flags(cube: xr.Dataset, crop: int = 0, *, channel: str | None = None, altitude: int = 0) -> Figure:
    """Draw one crop with a badge for each flag of each patch, and a legend with counts.

    A flag has its own place, letters and colour in all patches of the picture. Patches that the default list
    rejects are veiled; padding is hatched.

    Parameters
    ----------
    cube, crop, channel, altitude
        As in `scene`.

    Raises
    ------
    SchemaError
        As in `scene`.
    """
    from matplotlib.patches import Patch

    one, drawn, level = select(cube, crop, channel, altitude)
    bits = flags_of(one, drawn.name, level)
    present = [f for f in BADGES if (bits & int(f)).any()]
    (width, height), tall = map_size(one), 0.28 * len(present) + 1.3
    figure, _ = new_figure(
        by_hand=True, figsize=(LEFT + width + 0.6 + _LEGEND, TOP + max(height, tall) + BOTTOM)
    )
    axes = add_axes(figure, LEFT, TOP, width, height)
    side = add_axes(figure, LEFT + width + 0.6, TOP, _LEGEND, tall)
    label, _, handles = draw_crop(axes, one, drawn, level)
    reject = int(default_reject(drawn.kind))
    edge = one.sizes["y"] / one.sizes["row"]
    for row, col in np.argwhere((bits & reject) != 0):
        axes.add_patch(cell(row, col, edge, facecolor="white", alpha=0.55))
    _draw_badges(axes, bits, present, edge, 72 * min(width / one.sizes["col"], height / one.sizes["row"]))
    title = f"Flags of {drawn.long_name}{label.removeprefix(drawn.name).replace('@', ' at ')}"
    write_title(figure, f"{title}, {stamp(one['time'].values)}", crop_text(cube, one, crop), left=LEFT)
    _draw_legend(side, bits, present, reject, tall)
    if ((bits & reject) != 0).any():
        handles.append(
            Patch(facecolor="white", edgecolor="0.5", linewidth=0.5, label="veiled: rejected in training")
        )
    write_legend(figure, handles, left=LEFT)
    return figure


def _draw_badges(axes: Axes, bits: np.ndarray, present: list[Flag], edge: float, room: float) -> None:
    """Badges in slots, rows of them from the upper left; letters where they are large enough to read.

    Parameters
    ----------
    room
        Edge of a patch in points.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    slot = edge * min(1 / max(2, int(np.ceil(np.sqrt(len(present))))), 18 / room)
    across = int(edge / slot + 1e-6)
    size = 0.42 * room * slot / edge
    for i, flag in enumerate(present):
        letters, colour = BADGES[flag]
        cells = np.argwhere(bits & int(flag))
        places = [(col * edge + (i % across) * slot, row * edge + _down(axes, i // across, slot, edge))
                  for row, col in cells]  # fmt: skip
        boxes = [Rectangle((x + 0.06 * slot, y + 0.12 * slot), 0.88 * slot, 0.76 * slot) for x, y in places]
        axes.add_collection(
            PatchCollection(boxes, facecolor=colour, edgecolor="white", linewidth=0.5, zorder=3)
        )
        if size < 3.5:
            continue
        for x, y in places:
            axes.text(
                x + slot / 2, y + slot / 2, letters, ha="center", va="center_baseline", fontsize=size,
                color=_ink(colour), zorder=4,
            )  # fmt: skip


def _down(axes: Axes, line: int, slot: float, edge: float) -> float:
    """Offset of a line of slots from the patch's first row of pixels, so that the first line is on top."""
    return edge - (line + 1) * slot if axes.get_ylim()[0] < axes.get_ylim()[1] else line * slot


def _ink(colour: str) -> str:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _draw_legend(side: Axes, bits: np.ndarray, present: list[Flag], reject: int, height: float) -> None:
    """Every flag of the picture with its badge and the number of its patches, rejecting ones first."""
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
            letters, colour = BADGES[flag]
            count = int(((bits & int(flag)) != 0).sum())
            side.add_patch(
                Rectangle((0.1, line - 0.1), 0.26, 0.2, facecolor=colour, edgecolor="0.5", linewidth=0.5)
            )
            side.text(
                0.23, line, letters, ha="center", va="center_baseline", fontsize=7.5, color=_ink(colour)
            )
            side.text(0.46, line, f"{str(flag.name).replace('_', ' ')}: {count}", fontsize=10, va="center")
        if not members:
            line += 0.28
            side.text(0.46, line, "none", fontsize=10, va="center", color="0.4")
        line += 0.45
