"""All fields of a source file at a glance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    NOT_OBSERVED,
    colour_bar,
    draw_field,
    new_figure,
    stamp,
    title_of,
    write_units,
)
from gridrad_cube.plot.lattice import mark_degrees
from gridrad_cube.schema import CHANNELS, SchemaError, channel_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Pixels along the longer edge of a small map.
_DRAWN = 700


def source(scene: xr.Dataset) -> Figure:
    """Draw every 2-D field of a scene, north up: channels in their colours, other fields from least to greatest.

    Parameters
    ----------
    scene
        From `gridrad_cube.readers.read_fields`, or `read_scene`.

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
    figure.suptitle(f"{scene.attrs.get('product', 'scene')}, {stamp(scene['time'].values)}", fontsize=13)
    for number, ax in enumerate(axes.flat):
        if number < len(names):
            _draw(ax, scene, names[number])
        else:
            ax.set_axis_off()
    return figure


def _draw(axes: Axes, scene: xr.Dataset, name: str) -> None:
    variable = scene[name]
    step = max(1, max(variable.shape) // _DRAWN)
    codes = variable.values[::step, ::step]
    channel = channel_in(name, variable.attrs, variable.dtype)
    latitude, longitude = (scene[n].values for n in ("latitude", "longitude"))
    values = channel.packing.decode(codes)
    rows, cols = variable.shape
    extent = (0.0, float(cols), float(rows), 0.0)
    if name in CHANNELS:
        image, _ = draw_field(axes, values, name, channel=channel, extent=extent)
        axes.set_title(title_of(name), fontsize=9)
        colour_bar(image, name, ax=axes)
    else:
        axes.set_facecolor(NOT_OBSERVED)
        image = axes.imshow(
            np.ma.masked_invalid(values), cmap="viridis", extent=extent, interpolation="nearest"
        )
        units = str(variable.attrs.get("units", "1"))
        figure = image.figure.get_figure(root=True)
        assert figure is not None
        figure.colorbar(image, ax=axes, label="" if units == "1" else write_units(units))
        axes.set_title(name, fontsize=9)
    first, last = (np.nanmean(latitude[i]) for i in (0, -1))
    axes.set_ylim((0, rows) if first < last else (rows, 0))
    mark_degrees(axes, latitude, longitude)
    axes.tick_params(labelsize=7)
