"""Parts of all pictures: figures, color scales, fields and their states, degrees along the edges."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.geometry import orientation
from gridrad_cube.schema import CHANNELS, Channel, Flag, Packing, SchemaError, channel_in
from gridrad_cube.selection import choose_labels, labels_of
from gridrad_cube.store import Orientation, open_grid, store_info

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

#: Color for "nothing was observed here". No color map contains it.
_NOT_OBSERVED = "#c3d4e3"
#: Color for "observed without echo".
_NO_ECHO = "#f4f4f4"
#: Color for "observed, with an echo that quality control removed".
_REMOVED = "#a8a8a8"
#: Colors for marks on a picture (Okabe and Ito), which can be distinguished with any color vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
#: Style of the area outside the scene.
PADDING: dict[str, Any] = {"facecolor": "#e4e4e4", "edgecolor": "#8c8c8c", "hatch": "////", "linewidth": 0.0}
#: Room beside, above and below a map, inches: degrees, titles with column numbers, degrees with a legend.
LEFT, TOP, BOTTOM = 0.7, 1.0, 0.75
#: Brightness temperature, K, below which cold cloud tops are drawn in color.
_COLD_TOPS = 240.0
#: Color map of each channel: a name of matplotlib, or colors from the least value to the greatest. They change in
#: lightness, so that values differ for any color vision, and differ from `_NO_ECHO`. Infrared is made in `_color_map`.
_COLOR_MAPS: dict[str, str | tuple[str, ...]] = {
    "visible_reflectance": "Greys_r",
    "reflectivity": "magma_r",
    "reflectivity_column_maximum": "magma_r",
    "echo_top_height": "cividis_r",
    "precipitation_rate": "viridis_r",
    "spectrum_width": "plasma_r",
    # Below zero, about zero, above zero: dark in the middle.
    "azimuthal_shear": ("#ffd84d", "#9c5a12", "#1f1f28", "#6a3fb5", "#f08cff"),
    "divergence": ("#66e0d0", "#1b7f79", "#1f1f28", "#a8432a", "#ffb08a"),
    "differential_reflectivity": ("#2b1055", "#1f5a8c", "#3fa887", "#d9d35a", "#ffe98f"),
    "specific_differential_phase": ("#0b3c49", "#3b7a57", "#b58900", "#e8743b", "#ffd0a6"),
    "correlation_coefficient": "inferno",
}
#: Ticks of color scales that are not linear.
_TICKS: dict[str, Sequence[float]] = {
    "rain": (0.1, 0.3, 1, 3, 10, 30, 100),
    "visible": (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
}
#: Pixels along the longer edge above which only every n-th pixel is drawn; a screen does not show more.
_DRAWN = 1500


# Figures


def new_figure(*shape: int, by_hand: bool = False, **options: Any) -> tuple[Figure, Any]:
    """Return an empty figure that belongs to no window, with ``shape`` axes if given; ``by_hand`` for axes by
    `add_axes`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'gridrad-cube[plot]'") from error
    engine = None if by_hand else ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(layout=engine, **options)
    return figure, figure.subplots(*shape, squeeze=False) if shape else None


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return the axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write_title(figure: Figure, text: str, more: str = "", *, left: float = LEFT) -> None:
    """Write the figure's title, and a second line in gray; ``left`` in inches."""
    across, down = figure.get_size_inches()
    figure.suptitle(text, x=left / across, y=1 - 0.12 / down, ha="left", va="top", fontsize=13)
    figure.text(left / across, 1 - 0.4 / down, more, ha="left", va="top", fontsize=9, color="0.35")


def write_legend(
    figure: Figure, handles: Sequence[Artist], *, left: float = LEFT, columns: int | None = None
) -> None:
    """Draw a legend at the foot of a figure that is laid out by hand, in one line by default; ``left`` in
    inches.
    """
    if handles:
        across, down = figure.get_size_inches()
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(left / across, 0.06 / down),
            ncols=columns or len(handles), frameon=False, borderaxespad=0.0, borderpad=0.0, fontsize=9.5,
            columnspacing=1.6,
        )  # fmt: skip


def finish_axes(axes: Axes, title: str, handles: Sequence[Artist]) -> Figure:
    """Give the axes of a caller a title and a legend below; return their figure."""
    axes.set_title(title, loc="left", fontsize=10.5, pad=28)
    if handles:
        axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.09), ncols=2, frameon=False, fontsize=8.5,
            borderaxespad=0.0,
        )  # fmt: skip
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    return figure


# Words


def title_of(label: str, channel: Channel | None = None, *, units: bool = False) -> str:
    """Return a channel in words, such as ``Radar reflectivity at 3.0 km (dBZ)``; an unknown label stays as it
    is.
    """
    name, _, altitude = label.partition("@")
    channel = channel or CHANNELS.get(name)
    if channel is None:
        return label
    text = channel.long_name[0].upper() + channel.long_name[1:]
    text += f" at {altitude.removesuffix('km')} km" if altitude else ""
    return f"{text} ({write_units(channel.units)})" if units and channel.units != "1" else text


def write_units(units: str) -> str:
    """Return the units for reading: ``mm h-1`` becomes ``mm h⁻¹``."""
    return re.sub(r"(?<=[a-zA-Z])-([0-9])", lambda m: "⁻" + "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(m[1])], units)


def stamp(time: Any) -> str:
    """Return a time to the minute, UTC."""
    minute = np.asarray(time).astype("datetime64[m]")
    return "no time" if np.isnat(minute) else f"{str(minute).replace('T', ' ')} UTC"


def degrees(value: float, letters: str, decimals: int = 1) -> str:
    """Return a latitude (letters ``NS``) or longitude (``EW``); nothing for NaN."""
    if not np.isfinite(value):
        return ""
    if letters == "EW":
        value = (value + 180.0) % 360.0 - 180.0
    letter = "" if value in (0.0, -180.0) else letters[0] if value > 0 else letters[1]
    return f"{abs(value):.{decimals}f}°{letter}"


def nice_step(span: float, most: int) -> float:
    """Return a round number of degrees that divides a span into at most ``most`` parts."""
    steps: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 45)
    return next((s for s in steps if span / s <= most), 60.0)


# Fields


@dataclass(frozen=True)
class Field:
    """A channel of a crop, at one altitude: ``level`` is its position along ``altitude``, empty without altitudes."""

    one: xr.Dataset
    channel: Channel
    label: str
    level: dict[str, int]

    @property
    def title(self) -> str:
        """The channel in words."""
        return title_of(self.label, self.channel)

    def values(self, window: dict[str, slice] | None = None) -> np.ndarray:
        """Return the physical values ``(y, x)``, whether the dataset is decoded or packed; of all pixels if
        no window is given.
        """
        variable = self.one[self.channel.name].isel({**self.level, **(window or {})})
        values = variable.transpose("y", "x").values
        return np.asarray(self.channel.packing.decode(values) if values.dtype.kind in "iu" else values)

    def flags(self) -> np.ndarray:
        """Return the flags of the patches ``(row, col)``; none where the dataset has no flags."""
        name = f"{self.channel.name}_flags"
        if name not in self.one:
            return np.zeros((self.one.sizes["row"], self.one.sizes["col"]), np.uint16)
        return np.asarray(self.one[name].isel(self.level).transpose("row", "col").values)


def select(cube: xr.Dataset, crop: int, channel: str | None, embeddings: xr.Dataset | None = None) -> Field:
    """Return a channel of a written crop of a cube; without an altitude the lowest, without a label the
    first.

    If a label of ``embeddings`` is composed of several channels, the first one is taken.
    """
    known = labels_of(cube)
    if not known:
        raise SchemaError(
            "plot: no channel in this dataset; expected a cube. Open it with gridrad_cube.open_cube."
        )
    channel = str(channel).split("+")[0] if embeddings is not None and channel else channel
    lacks = str(channel).split("@")[0] not in cube.data_vars
    if lacks and embeddings is not None and "variable" in embeddings.coords:
        channel = str(np.atleast_1d(embeddings["variable"].values)[0]).split("+")[0]
    label = choose_labels(known, channel, "plot")[0]
    check_crop(cube, crop)
    one = cube.isel(crop=crop)
    written = int(one["status"]) == 0 if "status" in one.coords else not np.isnat(one["time"].values)
    if not written:
        raise SchemaError(f"plot: crop {crop} of {one['source'].values} was not written; it has no pixels")
    level = {} if label.altitude is None else {"altitude": label.altitude}
    return Field(one, _stored_channel(cube, label.variable), label.name, level)


def check_crop(dataset: xr.Dataset, crop: int) -> None:
    """Refuse a crop that does not exist."""
    if not 0 <= crop < dataset.sizes["crop"]:
        raise SchemaError(f"plot: no crop {crop}; expected 0 to {dataset.sizes['crop'] - 1}")


def _stored_channel(cube: xr.Dataset, name: str) -> Channel:
    """Return a channel as the store packs it, also if the dataset is decoded; without attributes, with its
    own packing.
    """
    attributes, dtype = cube[name].attrs, cube[name].dtype
    channel = channel_in(name, attributes, dtype)
    if dtype.kind not in "iu":
        about = (store_info(cube) if "gridrad_cube" in cube.attrs else {}).get("channels", {}).get(name)
        if about is None:
            return channel
        attributes, dtype = about["attributes"], about["dtype"]
    return replace(channel, packing=Packing.from_attributes(attributes, dtype))


def _color_map(channel: Channel) -> Colormap:
    """Return the channel's colors: infrared cold and bright, radar and rain pale to dark, signed fields about
    black.

    Infrared is gray, as in forecasting, and colored below `_COLD_TOPS`.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    if channel.kind == "infrared":
        low, high = channel.typical_range
        cold = round(256 * (_COLD_TOPS - low) / (high - low))
        tops = colormaps["plasma"](np.linspace(1.0, 0.08, cold))
        return ListedColormap(np.vstack([tops, colormaps["Greys"](np.linspace(0.12, 1.0, 256 - cold))]))
    name = _COLOR_MAPS.get(channel.name, "viridis_r")
    if not isinstance(name, str):
        return LinearSegmentedColormap.from_list(channel.name, name)
    return colormaps[name]


def _color_scale(channel: Channel) -> Normalize:
    """Return the channel's limits: always its typical range; rain by logarithm, visible by square root.

    A channel of kind ``other`` has none: its scale spans what is drawn.
    """
    from matplotlib.colors import LogNorm, Normalize, PowerNorm

    low, high = channel.typical_range
    if channel.kind == "other":
        return Normalize()
    if channel.kind == "rain":
        return LogNorm(0.1, high)
    return PowerNorm(0.5, low, high) if channel.kind == "visible" else Normalize(low, high)


def draw_field(
    axes: Axes,
    values: np.ndarray,
    channel: Channel,
    *,
    extent: tuple[float, float, float, float] | None = None,
    inside: tuple[slice, slice] = (slice(None), slice(None)),
) -> tuple[AxesImage, list[Artist]]:
    """Draw a field in its channel's colors, and pixels without a measured value in special colors.

    Parameters
    ----------
    values
        Physical values ``(y, x)`` as `Packing.decode` gives them.
    channel
        Channel as in the store. Its packing identifies bins without echo.
    inside
        Pixels of the scene. The legend does not mention unobserved pixels outside of it.

    Returns
    -------
    The image, masked where there is no value, and one legend handle for each state that occurs.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    step = max(1, max(values.shape) // _DRAWN)
    extent = extent or (0, values.shape[1], values.shape[0], 0)
    whole = bool(np.isfinite(values[inside]).all())
    values = values[::step, ::step]
    states = _states(values, channel.packing)
    looks = {"not observed": _NOT_OBSERVED, "observed, no echo": _NO_ECHO, "echo removed by QC": _REMOVED}
    axes.imshow(
        states, cmap=ListedColormap(list(looks.values())), vmin=0, vmax=2, extent=extent, interpolation="nearest"
    )  # fmt: skip
    image = axes.imshow(
        np.ma.masked_where(states < 3, values), cmap=_color_map(channel), norm=_color_scale(channel), extent=extent,
        interpolation="antialiased",
    )  # fmt: skip
    return image, [
        Patch(facecolor=color, edgecolor="0.5", linewidth=0.5, label=name)
        for state, (name, color) in enumerate(looks.items())
        if (states == state).any() and not (state == 0 and whole)
    ]


def _states(values: np.ndarray, packing: Packing) -> np.ndarray:
    """Return 0 not observed, 1 no echo, 2 echo removed by quality control, 3 a value."""
    states = np.full(values.shape, 3, np.uint8)
    if packing.echo_minimum is not None:
        scale, offset = packing.scale_factor, packing.add_offset
        quiet = values < (packing.echo_minimum - 0.5) * scale + offset
        states[quiet] = 1
        for code in (packing.low_confidence, packing.clutter):
            if code is not None:
                states[quiet & (np.abs(values - (code * scale + offset)) < scale / 2)] = 2
    states[~np.isfinite(values)] = 0
    return states


def color_bar(image: AxesImage, label: str, channel: Channel, **options: Any) -> None:
    """Draw a color bar with the channel's name and units, pointed if values may lie outside; options are
    matplotlib's.
    """
    figure = image.figure.get_figure(root=True)
    assert figure is not None
    extend = "max" if channel.typical_range[0] == 0 and channel.kind != "field" else "both"
    extend = "neither" if channel.kind == "other" else extend
    bar = figure.colorbar(image, label=title_of(label, channel, units=True), extend=extend, **options)
    if ticks := _TICKS.get(channel.kind):
        bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks], minor=False)
        bar.minorticks_off()


# Crops


def map_size(one: xr.Dataset, width: float = 8.6, height: float = 8.0) -> tuple[float, float]:
    """Return the width and height in inches at which a crop's patches are square and fill one of the two."""
    rows, cols = one.sizes["row"], one.sizes["col"]
    edge = min(width / cols, height / rows)
    return max(cols * edge, 2.5), max(rows * edge, 2.5)


def draw_crop(axes: Axes, field: Field, step: float = 0.0) -> tuple[AxesImage, list[Artist]]:
    """Draw a channel of a crop with its lattice, and hatched padding. A missing channel is named. Returns as
    `draw_field`.
    """
    from matplotlib.patches import Patch

    one, channel, values, bits = field.one, field.channel, field.values(), field.flags()
    height, width = values.shape
    edge = height / one.sizes["row"]
    (top, bottom), (left, right) = (tuple(round(n * edge) for n in ends) for ends in inside(one))
    scene = (slice(top, bottom), slice(left, right))
    image, handles = draw_field(axes, values, channel, inside=scene)
    draw_lattice(axes, one, edge, lines="0.75" if channel.has_echo else "white", step=step)
    padded = draw_padding(axes, (0, width, 0, height), (left, right, top, bottom))
    for row, col in np.argwhere(bits & int(Flag.padding)):
        x, y = round(col * edge), round(row * edge)
        if left <= x < right and top <= y < bottom:
            axes.add_patch(cell(row, col, edge, **PADDING))
            padded = True
    if padded:
        handles.append(Patch(**PADDING, label="padding, outside the scene"))
    if ((bits & int(Flag.channel_absent)) != 0).all():
        axes.text(
            0.5, 0.5, f"{channel.long_name} is absent from this scene", transform=axes.transAxes, ha="center",
            va="center", fontsize=14, bbox={"facecolor": "white", "edgecolor": "0.4", "boxstyle": "round,pad=0.6"},
            zorder=6,
        )  # fmt: skip
    return image, handles


def cell(row: int, col: int, edge: float, **style: Any) -> Any:
    """Return the square of a patch."""
    from matplotlib.patches import Rectangle

    return Rectangle((col * edge, row * edge), edge, edge, **{"linewidth": 0, **style})


def draw_padding(axes: Axes, box: tuple[int, int, int, int], scene: tuple[int, int, int, int]) -> bool:
    """Hatch the part of a box outside a scene, each (left, right, top, bottom); return whether there is any."""
    from matplotlib.patches import Rectangle

    left, right, top, bottom = scene
    boxes = [
        (box[0], box[2], box[1], top),
        (box[0], bottom, box[1], box[3]),
        (box[0], top, left, bottom),
        (right, top, box[1], bottom),
    ]
    boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes if x0 < x1 and y0 < y1]
    for x0, y0, x1, y1 in boxes:
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **PADDING))
    return bool(boxes)


def turn(axes: Axes, box: tuple[float, float, float, float], flips: tuple[bool, bool]) -> None:
    """Show a box (left, right, top, bottom), whose y increases downward, with north up and east right.

    ``flips`` says whether its rows and its columns are reversed (`gridrad_cube.geometry.orientation`).
    """
    left, right, top, bottom = box
    axes.set_ylim((top, bottom) if flips[0] else (bottom, top))
    axes.set_xlim((right, left) if flips[1] else (left, right))


def orient_scene(latitude: np.ndarray, longitude: np.ndarray) -> tuple[bool, bool]:
    """Return whether rows, and columns, of a scene are reversed from north up and east right; axes or on
    ``(y, x)``.
    """
    step = max(1, max(latitude.shape) // _DRAWN)
    some = [values[(slice(None, None, step),) * values.ndim] for values in (latitude, longitude)]
    rows, columns = orientation(*some)[0].tolist()
    return rows, columns


def draw_lattice(
    axes: Axes, one: xr.Dataset, edge: float, *, lines: str = "white", step: float = 0.0, offset: float = 0.0
) -> None:
    """Draw lines between patches, ticks at round degrees, and numbers of rows and columns; north up, east right.

    One unit of the axes is a pixel. ``edge`` is the distance of the patches of ``one``, and their first row begins at
    ``offset``. ``step`` is that of overlapping patches, whose numbers and lines are drawn instead.
    """
    rows, cols = one.sizes["row"], one.sizes["col"]
    height, width = rows * edge + 2 * offset, cols * edge + 2 * offset
    if not step:
        step, first, counts = edge, offset, (rows, cols)
    else:
        first = (edge - step) / 2
        counts = round((height - 2 * first) / step), round((width - 2 * first) / step)
    look: dict[str, Any] = {"colors": lines, "linewidth": 0.6, "alpha": 0.7}
    across, down = (first + np.arange(first == 0, n + (first > 0)) * step for n in counts)
    axes.hlines(across, 0, width, **look)
    axes.vlines(down, 0, height, **look)
    turn(axes, (0, width, 0, height), Orientation.of_one(one))
    mark_degrees(
        axes, *positions(one), edge, color="#ffe9a8" if lines == "white" else "0.2", most=10, offset=offset
    )
    # Row and column of patches on the right and above: what --like CROP,ROW,COL asks for.
    style: dict[str, Any] = {
        "textcoords": "offset points", "fontsize": 8, "color": "0.4", "annotation_clip": False
    }  # fmt: skip
    above = {"xycoords": ("data", "axes fraction"), "ha": "center", **style}
    beside = {"xycoords": ("axes fraction", "data"), "va": "center", **style}
    for i in range(0, counts[1], -(-counts[1] // 24)):
        axes.annotate(str(i), (first + (i + 0.5) * step, 1), (0, 3), **above)
    for i in range(0, counts[0], -(-counts[0] // 24)):
        axes.annotate(str(i), (1, first + (i + 0.5) * step), (4, 0), **beside)
    axes.annotate("column of patch", (0.5, 1), (0, 14), **above | {"xycoords": "axes fraction"})
    axes.annotate("row of patch", (1, 0.5), (18, 0), rotation=90, **beside | {"xycoords": "axes fraction"})


def mark_degrees(
    axes: Axes,
    latitude: np.ndarray,
    longitude: np.ndarray,
    edge: float = 1.0,
    *,
    color: str = "0.2",
    most: int = 8,
    offset: float = 0.0,
) -> None:
    """Draw ticks at round degrees, from the centers of cells; meridians and parallels if these are not
    straight.

    Latitude and longitude are axes, or both on ``(y, x)``; ``edge`` is that of a cell.
    """
    if latitude.ndim == 1:
        longitude = np.unwrap(longitude, period=360)
    elif _is_regular(latitude, longitude):
        latitude, longitude = latitude[:, 0], longitude[0]
    if latitude.ndim == 1:
        for axis, values, letters, count in (
            (axes.yaxis, latitude, "NS", 8),
            (axes.xaxis, longitude, "EW", most),
        ):
            ends = (0.0, len(values) * edge + 2 * offset)
            mark_axis(axis, values, edge, letters, most=count, offset=offset, ends=ends)
        return
    step = max(1, max(latitude.shape) // 200)
    rows, cols = latitude[::step, ::step].shape
    y, x = ((np.arange(-1, n + 1) + 0.5) * edge * step + offset for n in (rows, cols))
    axes.set(xticks=[], yticks=[])
    for values, letters in ((latitude, "NS"), (longitude, "EW")):
        wide = np.pad(values[::step, ::step], 1, mode="reflect", reflect_type="odd")
        low, high = np.nanmin(wide), np.nanmax(wide)
        apart = nice_step(high - low, 8)
        levels = np.arange(np.ceil(low / apart), np.floor(high / apart) + 1) * apart
        lines = axes.contour(x, y, wide, levels, colors=color, linewidths=0.9, linestyles="dashed")
        decimals = 0 if apart >= 1 else 2
        labels = axes.clabel(lines, fmt={v: degrees(v, letters, decimals) for v in levels}, fontsize=8)
        for label in labels or ():
            label.set(
                color="0.1", bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            )


def mark_axis(
    axis: Any, centers: np.ndarray, edge: float, letters: str, *, most: int = 8, offset: float = 0.0,
    ends: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Draw ticks at round degrees of one axis, from the degrees of the centers of its cells; of one cell, its
    center.
    """
    places = (np.arange(-1, len(centers) + 1) + 0.5) * edge + offset
    known = np.isfinite(centers)
    if len(centers) < 2 or not known.all():
        where, degree = places[1:-1][known], centers[known]
    else:
        values = np.pad(centers, 1, mode="reflect", reflect_type="odd")
        low, high = np.sort(np.interp(ends or (offset, offset + len(centers) * edge), places, values))
        step = nice_step(high - low, most)
        degree = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        order = np.argsort(values)
        where = np.interp(degree, values[order], places[order])
    if letters == "NS":  # padding may extend beyond a pole
        where, degree = where[np.abs(degree) <= 90], degree[np.abs(degree) <= 90]
    decimals = next(n for n in (0, 1, 2) if n == 2 or np.allclose(degree, np.round(degree, n), atol=1e-6))
    axis.set_ticks(where, labels=[degrees(d, letters, decimals) for d in degree])


# Positions


def positions(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the latitude and longitude of patch centers ``(row, col)`` as if every patch were whole and
    inside the scene.

    Patches that extend beyond the scene have the center of their pixels, and patches of padding have none.
    Both get the position on the lattice of the others. Longitude is continuous, so it may leave [-180, 180).
    """
    rows, cols = inside(one)
    latitude, longitude = (_whole(_whole(v, cols).T, rows).T for v in _centers(one))
    return latitude, longitude


def _centers(one: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    latitude, longitude = (
        one[n].transpose("row", "col").values.astype(np.float64) for n in ("latitude", "longitude")
    )
    finite = longitude[np.isfinite(longitude)]
    base = finite[0] if finite.size else 0.0
    return latitude, base + (longitude - base + 180.0) % 360.0 - 180.0


def _whole(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Return the values at the middle of each column of patches if columns at the ends are cut; linear
    beyond.
    """
    middle = np.arange(values.shape[1]) + 0.5
    places = (np.maximum(middle - 0.5, ends[0]) + np.minimum(middle + 0.5, ends[1])) / 2
    out = np.full_like(values, np.nan)
    for line, new in zip(values, out, strict=True):
        at = np.flatnonzero(np.isfinite(line))
        new[:] = line if len(at) < 2 else extend(middle, places[at], line[at])
    return out


def extend(at: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values between known places, and beyond them along the outermost two; linear."""
    out = np.interp(at, known, values)
    for edge, other, beyond in ((0, 1, at < known[0]), (-1, -2, at > known[-1])):
        slope = (values[edge] - values[other]) / (known[edge] - known[other])
        out[beyond] = values[edge] + slope * (at[beyond] - known[edge])
    return out


def inside(one: xr.Dataset) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the first and last row, and first and last column, of the scene in a crop, in patches and parts
    of them.

    Computed from the size of the source grid if the dataset knows its store, else from the patch centers:
    among evenly spaced centers, the outermost is nearer to its neighbor if its patch is cut.
    """
    grid = source_grid(one) if "y" in one.sizes else None
    if grid is None:
        latitude, longitude = _centers(one)
        return _cut_ends(latitude.T), _cut_ends(longitude)
    ends = []
    for axis, dim in (("y", "row"), ("x", "col")):
        origin, count, size = int(one[f"{axis}_origin"]), one.sizes[dim], grid.sizes[f"scene_{axis}"]
        edge = one.sizes[axis] / count
        ends.append((max(0.0, -origin / edge), min(float(count), (size - origin) / edge)))
    return ends[0], ends[1]


def source_grid(one: xr.Dataset) -> xr.Dataset | None:
    """Return the pixel axes of a crop's scene, from the store that the dataset was opened from; None if it is
    not known.
    """
    source, grid = one.encoding.get("source"), str(one["grid"].values) if "grid" in one.coords else ""
    return _open_grid(source, grid) if source and re.fullmatch(r"[A-Za-z0-9_-]+", grid) else None


@functools.lru_cache(maxsize=64)
def _open_grid(source: str, grid: str) -> xr.Dataset | None:
    try:
        return open_grid(source, grid)
    except (FileNotFoundError, KeyError):
        return None


def _cut_ends(values: np.ndarray) -> tuple[float, float]:
    """Return the first and last column inside the scene, judged by centers along the second dim."""
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    if not len(known):
        return 0.0, float(values.shape[1])
    first, last = float(known[0]), float(known[-1] + 1)
    steps = np.nanmedian(np.diff(values[:, known], axis=1), axis=0)
    if len(steps) < 4 or np.ptp(steps[1:-1]) > 1e-3 * abs(steps[1]):
        return first, last
    # A part p of a patch has its center (1 + p) / 2 of a step from the next.
    missing = [2 * (1 - float(step / steps[1])) for step in (steps[0], steps[-1])]
    before, after = (m if 2e-3 < m < 1 else 0.0 for m in missing)
    return first + before, last - after


def _is_regular(latitude: np.ndarray, longitude: np.ndarray) -> bool:
    """Return whether latitude depends on the row alone and longitude on the column alone, within a tenth of a
    patch.
    """
    for values in (latitude, longitude.T):
        values = values[np.isfinite(values).all(axis=1)]
        if len(values) > 1 and np.ptp(values, axis=1).max() > 0.1 * np.median(
            np.abs(np.diff(values, axis=0))
        ):
            return False
    return True
