"""What a network looks at: attention of its heads over the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    add_axes,
    colour_bar,
    degrees,
    draw_field,
    new_figure,
    select,
    stamp,
    title_of,
    write_legend,
    write_title,
)
from gridrad_cube.plot.lattice import is_upside_down, positions, ticks
from gridrad_cube.plot.likeness import field_label
from gridrad_cube.plot.scenes import decoded
from gridrad_cube.schema import CHANNELS, SchemaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: edge of the large panels and of the heads, room for degrees, for a colour bar with its label.
_LARGE, _SMALL, _LEFT, _BAR, _TOP, _FOOT = 3.9, 1.8, 0.75, 1.15, 0.95, 0.25
#: Heads in a line.
_LINE = 6


def attention(maps: xr.Dataset, sample: int = 0, *, cube: xr.Dataset | None = None) -> Figure:
    """Draw the attention of one sample: the field, the mean of the heads, and each head, on one scale.

    Attention is counted in parts of an even one: 1 where as much goes to a token (or cell) as if all had the same.

    Parameters
    ----------
    maps
        From `gridrad_cube.embedding.attention`, or the store that ``gridrad-cube attention`` wrote.
    sample
        Which one of them.
    cube
        From `gridrad_cube.open_cube`, to draw the field; no field if None.

    Raises
    ------
    SchemaError
        If these are no attention maps, there is no such sample, or there was nothing to look at.
    """
    if "attention" not in maps or not {"sample", "head"} <= set(maps["attention"].dims):
        raise SchemaError(
            "plot: these are no attention maps; expected what gridrad-cube embed --attention wrote"
        )
    if not 0 <= sample < maps.sizes["sample"]:
        raise SchemaError(f"plot: no sample, got {sample}; expected 0 to {maps.sizes['sample'] - 1}")
    one = maps.isel(sample=sample)
    heads = one["attention"].values.astype(np.float64)
    if not np.isfinite(heads).any():
        raise SchemaError(f"plot: sample {sample} had nothing to look at; its attention is NaN")
    heads = heads / np.nansum(heads, axis=(1, 2), keepdims=True) * np.isfinite(heads[0]).sum()
    shape = (heads.shape[1], heads.shape[2])
    large, small = (_fit(shape, edge) for edge in (_LARGE, _SMALL))
    lines = -(-len(heads) // _LINE)
    field = 0.0 if cube is None else large[0] + _BAR + _LEFT
    across = max(_LEFT + field + large[0] + _BAR, _LEFT + min(len(heads), _LINE) * (small[0] + 0.12) + 0.2)
    down = _TOP + large[1] + 0.75 + lines * (small[1] + 0.32) + _FOOT
    figure, _ = new_figure(by_hand=True, figsize=(across, down))
    label = str(one["channel"].values)
    name = title_of(label) if label.split("@")[0] in CHANNELS else label
    which = ", ".join(f"{d} {int(one[d])}" for d in ("crop", "row", "col") if d in one.coords)
    write_title(
        figure, f"Attention of the last block, {stamp(one['time'].values)}", f"{name}; {which}", left=_LEFT
    )
    ground = _Ground(one, cube, shape)
    if cube is not None:
        axes = add_axes(figure, _LEFT, _TOP, *large)
        bar = add_axes(figure, _LEFT + large[0] + 0.15, _TOP, 0.16, large[1])
        write_legend(figure, ground.draw_field(axes, bar, field_label(cube, label, one)), left=_LEFT)
    span = (float(np.nanmin(heads)), float(np.nanmax(heads)))
    axes = add_axes(figure, _LEFT + field, _TOP, *large)
    image = ground.draw_map(axes, np.nanmean(heads, axis=0), span)
    axes.set_title("mean of the heads", fontsize=9.5, loc="left")
    ground.write_degrees(axes)
    bar = add_axes(figure, _LEFT + field + large[0] + 0.15, _TOP, 0.16, large[1])
    figure.colorbar(image, cax=bar, label="attention (1: as if even)")
    for i, head in enumerate(heads):
        left = _LEFT + (i % _LINE) * (small[0] + 0.12)
        axes = add_axes(figure, left, _TOP + large[1] + 0.75 + (i // _LINE) * (small[1] + 0.32), *small)
        ground.draw_map(axes, head, span)
        axes.set_title(f"head {i}", fontsize=8.5, loc="left", pad=3)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _fit(shape: tuple[int, int], edge: float) -> tuple[float, float]:
    """Width and height of a map with square cells."""
    unit = edge / max(shape)
    return max(shape[1] * unit, 0.6), max(shape[0] * unit, 0.6)


class _Ground:
    """The window that is looked at: its pixels, its degrees, and which way is north."""

    def __init__(self, one: xr.Dataset, cube: xr.Dataset | None, shape: tuple[int, int]) -> None:
        self.one, self.cube, self.shape = one, cube, shape
        self.crop = int(one["crop"])
        self.patch = "row" in one.coords and one["row"].ndim == 0
        self.upside_down = cube is not None and is_upside_down(cube.isel(crop=self.crop))

    def draw_map(self, axes: Axes, values: np.ndarray, span: tuple[float, float]) -> Any:
        """One map, on the scale of all."""
        rows, cols = self.shape
        axes.set_facecolor("0.8")
        image = axes.imshow(
            values,
            cmap="cividis",
            vmin=span[0],
            vmax=span[1],
            extent=(0, cols, rows, 0),
            interpolation="nearest",
            aspect="auto",
        )
        axes.set_ylim((0, rows) if self.upside_down else (rows, 0))
        return image

    def draw_field(self, axes: Axes, bar: Axes, label: str) -> list[Any]:
        """The pixels in their channel's colours; handles of what needs explaining."""
        assert self.cube is not None
        rows, cols = self.shape
        one, channel, level = select(self.cube, self.crop, label, 0)
        window = {}
        if self.patch:
            size = self.cube.sizes["y"] // self.cube.sizes["row"]
            for axis, dim in (("y", "row"), ("x", "col")):
                start = int(self.one[dim]) * size
                window[axis] = slice(start, start + size)
        values = decoded(one[channel.name].isel({**level, **window}), channel.packing)
        image, handles = draw_field(axes, values, label, channel=channel, extent=(0, cols, rows, 0))
        axes.set_aspect("auto")
        axes.set_ylim((0, rows) if self.upside_down else (rows, 0))
        axes.set_title(title_of(label, channel=channel), fontsize=9.5, loc="left")
        self.write_degrees(axes)
        colour_bar(image, label, channel=channel, cax=bar)
        return handles

    def write_degrees(self, axes: Axes) -> None:
        """Round degrees along the edges; none where they are not known, or not straight."""
        axes.set_xticks([])
        axes.set_yticks([])
        if self.cube is None:
            return
        crop = self.cube.isel(crop=self.crop)
        latitude, longitude = positions(crop)
        for axis, values, letters, dim, count in (
            (axes.yaxis, latitude, "NS", "row", self.shape[0]), (axes.xaxis, longitude.T, "EW", "col", self.shape[1]),
        ):  # fmt: skip
            line = np.nanmean(values, axis=1)
            if self.patch:  # positions of tokens from those of patches
                at = int(self.one[dim])
                inside = at + (np.arange(count) + 0.5) / count - 0.5
                known = np.flatnonzero(np.isfinite(line))
                if len(known) < 2:
                    continue
                line = _along(known, line[known], inside)
            where, degree = ticks(line, 1.0, most=5)
            digits = next(
                n for n in (0, 1, 2) if n == 2 or np.allclose(degree, np.round(degree, n), atol=1e-6)
            )
            axis.set_ticks(where, labels=[degrees(d, letters, digits) for d in degree])
        axes.tick_params(labelsize=8)


def _along(known: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values between known ones, and beyond them as they go on at the ends."""
    out = np.interp(at, known, values)
    for edge, other, beyond in ((0, 1, at < known[0]), (-1, -2, at > known[-1])):
        slope = (values[edge] - values[other]) / (known[edge] - known[other])
        out[beyond] = values[edge] + slope * (at[beyond] - known[edge])
    return out
