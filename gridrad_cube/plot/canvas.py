"""What all pictures share: figures, colour scales, how a field and its states are drawn, how places are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.schema import CHANNELS, Channel, Packing, SchemaError, channel_in
from gridrad_cube.selection import choose_labels, labels_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

#: Behind a field: in none of the colour maps, so plainly "nothing was observed here".
NOT_OBSERVED = "#c3d4e3"
#: Observed, and no echo there.
NO_ECHO = "#f4f4f4"
#: Observed; an echo stood there that quality control removed.
REMOVED = "#a8a8a8"
#: Colours for things on a picture (Okabe and Ito): told apart with any colour vision.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
#: Brightness temperature, K, below which cold cloud tops are drawn in colour.
COLD_TOPS = 240.0
#: Below zero, about zero, above zero: dark in the middle, for white is `NO_ECHO`.
_SIGNED = ("#ffd84d", "#9c5a12", "#1f1f28", "#6a3fb5", "#f08cff")
#: Ticks of colour scales that are not linear.
_TICKS = {"rain": (0.1, 0.3, 1, 3, 10, 30, 100), "visible": (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)}
#: Pixels along the longer edge above which every n-th pixel is drawn: more than a screen shows.
_DRAWN = 1500


def new_figure(*shape: int, by_hand: bool = False, **options: Any) -> tuple[Figure, Any]:
    """An empty figure that belongs to no window, with ``shape`` axes if given.

    Parameters
    ----------
    by_hand
        Whether axes are put where `add_axes` says, in place of a layout that matplotlib works out.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
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
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write_title(figure: Figure, text: str, more: str = "", *, left: float) -> None:
    """The figure's title, and in grey below it what is said besides; ``left`` in inches."""
    across, down = figure.get_size_inches()
    figure.suptitle(text, x=left / across, y=1 - 0.12 / down, ha="left", va="top", fontsize=13)
    figure.text(left / across, 1 - 0.4 / down, more, ha="left", va="top", fontsize=9, color="0.35")


def write_legend(figure: Figure, handles: Sequence[Artist], *, left: float) -> None:
    """A legend in one line at the foot of a figure that is laid out by hand; ``left`` in inches."""
    if handles:
        across, down = figure.get_size_inches()
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(left / across, 0.06 / down), ncols=len(handles),
            frameon=False, borderaxespad=0.0, borderpad=0.0, fontsize=9.5, columnspacing=1.6,
        )  # fmt: skip


def colour_map(channel: Channel) -> Colormap:
    """The channel's colours: infrared cold and bright, radar and rain pale to dark, signed fields about black.

    Infrared is grey as forecasters know it, and coloured below `COLD_TOPS`.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    if channel.kind == "infrared":
        low, high = channel.typical_range
        cold = round(256 * (COLD_TOPS - low) / (high - low))
        tops = colormaps["plasma"](np.linspace(1.0, 0.08, cold))
        return ListedColormap(np.vstack([tops, colormaps["Greys"](np.linspace(0.12, 1.0, 256 - cold))]))
    if channel.kind == "field" and channel.typical_range[0] == -channel.typical_range[1]:
        return LinearSegmentedColormap.from_list("signed", _SIGNED)
    return colormaps[{"visible": "Greys_r", "radar": "magma_r"}.get(channel.kind, "viridis_r")]


def colour_scale(channel: Channel) -> Normalize:
    """The channel's limits: always its typical range; rain by logarithm, visible by square root.

    The scale of kind ``other`` spans what is drawn.
    """
    from matplotlib.colors import LogNorm, Normalize, PowerNorm

    low, high = channel.typical_range
    if channel.kind == "other":
        return Normalize()
    if channel.kind == "rain":
        return LogNorm(0.1, high)
    return PowerNorm(0.5, low, high) if channel.kind == "visible" else Normalize(low, high)


def packing_of(variable: xr.DataArray) -> Packing:
    """The packing of a channel as its variable says: of `gridrad_cube.open_packed`, or of a reader's scene.

    Raises
    ------
    SchemaError
        If the variable is decoded already.
    """
    if variable.dtype.kind not in "iu":
        raise SchemaError(
            f"{variable.name}: holds {variable.dtype}, decoded values; expected packed codes. Use open_packed."
        )
    return Packing.from_attributes(variable.attrs, variable.dtype)


def select(
    cube: xr.Dataset, crop: int, channel: str | None, altitude: int
) -> tuple[xr.Dataset, Channel, dict[str, int]]:
    """One written crop of a cube, a channel with the packing that the store has, and the level of it to draw.

    Channels of kind ``other`` are drawn by name.

    Raises
    ------
    SchemaError
        If the cube lacks the channel, the level or the crop, or the crop was not written.
    """
    known = labels_of(cube)
    if not known:
        raise SchemaError(
            "plot: no channel in this dataset; expected a cube. Open it with gridrad_cube.open_cube."
        )
    chosen = choose_labels(known, channel, "plot")
    name = chosen[0].variable
    levels = [label.altitude for label in chosen if label.variable == name]
    if not 0 <= altitude < len(levels):
        raise SchemaError(f"plot: no altitude, got index {altitude}; expected 0 to {len(levels) - 1}")
    if not 0 <= crop < cube.sizes["crop"]:
        raise SchemaError(f"plot: no crop, got {crop}; expected 0 to {cube.sizes['crop'] - 1}")
    one = cube.isel(crop=crop)
    written = int(one["status"]) == 0 if "status" in one.coords else not np.isnat(one["time"].values)
    if not written:
        raise SchemaError(f"plot: crop {crop} of {one['source'].values} was not written; it has no pixels")
    index = levels[altitude]
    level = {} if index is None else {"altitude": index}
    return one, _stored_channel(cube, name), level


def _stored_channel(cube: xr.Dataset, name: str) -> Channel:
    """A channel as the store packs it, also where the dataset is decoded; with its own packing if it does not say."""
    channel = channel_in(name, cube[name].attrs, cube[name].dtype)
    if cube[name].dtype.kind in "iu":
        return replace(channel, packing=packing_of(cube[name]))
    about = cube.attrs.get("gridrad_cube", {}).get("channels", {}).get(name)
    if about is None:
        return channel
    return replace(channel, packing=Packing.from_attributes(about["attributes"], about["dtype"]))


def channel_named(label: str) -> Channel:
    """The channel of a label; a name that is in no table is of kind ``other``."""
    name, nothing = label.split("@")[0], (np.nan, np.nan)
    return CHANNELS.get(name) or Channel(
        name=name, kind="other", units="1", long_name=name, packing=Packing(dtype="float32"),
        typical_range=nothing,
    )  # fmt: skip


def draw_field(
    axes: Axes,
    values: np.ndarray,
    label: str,
    *,
    channel: Channel | None = None,
    extent: tuple[float, float, float, float] | None = None,
) -> tuple[AxesImage, list[Artist]]:
    """Draw a field in its channel's colours, what is no measured value apart.

    Parameters
    ----------
    values
        Physical values ``(y, x)`` as `Packing.decode` gives them.
    channel
        As the store has it: its packing tells bins without echo. That of the label if None.

    Returns
    -------
    The image, masked where there is no value, and one legend handle for each state that occurs.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    channel = channel or channel_named(label)
    step = max(1, max(values.shape) // _DRAWN)
    extent = extent or (0, values.shape[1], values.shape[0], 0)
    values = values[::step, ::step]
    states = _states(values, channel.packing)
    axes.imshow(
        states, cmap=ListedColormap([NOT_OBSERVED, NO_ECHO, REMOVED]), vmin=0, vmax=2, extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    image = axes.imshow(
        np.ma.masked_where(states < 3, values), cmap=colour_map(channel), norm=colour_scale(channel), extent=extent,
        interpolation="antialiased",
    )  # fmt: skip
    names = (
        (0, NOT_OBSERVED, "not observed"),
        (1, NO_ECHO, "observed, no echo"),
        (2, REMOVED, "echo removed by QC"),
    )
    return image, [
        Patch(facecolor=colour, edgecolor="0.5", linewidth=0.5, label=name)
        for state, colour, name in names
        if (states == state).any()
    ]


def _states(values: np.ndarray, packing: Packing) -> np.ndarray:
    """0 not observed, 1 no echo, 2 echo removed by quality control, 3 a value."""
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


def colour_bar(
    image: AxesImage,
    label: str,
    *,
    channel: Channel | None = None,
    cax: Axes | None = None,
    ax: Any = None,
    **options: Any,
) -> None:
    """A colour bar with the channel's name and units, pointed where values may lie outside; in ``cax`` if given."""
    channel = channel or channel_named(label)
    figure = image.figure.get_figure(root=True)
    assert figure is not None
    text = title_of(label, units=True, channel=channel)
    bar = figure.colorbar(image, cax=cax, ax=ax, label=text, extend=_extend(channel), **options)
    ticks: Sequence[float] | None = _TICKS.get(channel.kind)
    if ticks is not None:
        bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks], minor=False)
        bar.minorticks_off()


def _extend(channel: Channel) -> str:
    if channel.kind == "other":
        return "neither"
    return "max" if channel.typical_range[0] == 0 and channel.kind != "field" else "both"


def title_of(label: str, *, units: bool = False, channel: Channel | None = None) -> str:
    """A channel in words, such as ``Radar reflectivity at 3.0 km (dBZ)``."""
    channel = channel or channel_named(label)
    text = channel.long_name[0].upper() + channel.long_name[1:]
    if "@" in label:
        text += f" at {label.split('@')[1].removesuffix('km')} km"
    return f"{text} ({write_units(channel.units)})" if units and channel.units != "1" else text


def write_units(units: str) -> str:
    """Units for reading: ``mm h-1`` becomes ``mm h⁻¹``."""
    return re.sub(r"(?<=[a-zA-Z])-([0-9])", lambda m: "⁻" + "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(m[1])], units)


def stamp(time: Any) -> str:
    """A time to the minute, UTC."""
    value = np.asarray(time)
    if np.isnat(value):
        return "no time"
    return f"{str(value.astype('datetime64[m]')).replace('T', ' ')} UTC"


def degrees(value: float, letters: str, decimals: int = 1) -> str:
    """A latitude (letters ``NS``) or longitude (``EW``); nothing for NaN."""
    if not np.isfinite(value):
        return ""
    if letters == "EW":
        value = (value + 180.0) % 360.0 - 180.0
    letter = "" if value in (0.0, -180.0) else letters[0] if value > 0 else letters[1]
    return f"{abs(value):.{decimals}f}°{letter}"


def nice_step(span: float, most: int) -> float:
    """A round number of degrees that divides a span into at most so many parts."""
    steps: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 45)
    return next((s for s in steps if span / s <= most), 60.0)
