"""Draw the answer of a search: the query beside its nearest samples, a map and a time line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from gridrad_cube.geometry import reverse
from gridrad_cube.plot.canvas import (
    BLUE,
    ORANGE,
    color_bar,
    degrees,
    draw_field,
    inside,
    new_figure,
    nice_step,
    positions,
    select,
    stamp,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import Orientation

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Number of answers beside the query, and panels in a line.
_SHOWN, _COLUMNS = 9, 5
#: Color and marker of answers, by whether they are marked.
_LOOKS = {False: ("0.3", "o"), True: (ORANGE, "D")}
#: Different outlines that are drawn at most.
_OUTLINES = 200

#: A point of a plot: x, y, what to write beside it, color.
_Point = tuple[float, float, str, str]
_Box = tuple[float, float, float, float]
_Align = Literal["left", "right", "center"]


def query(
    cube: xr.Dataset, answer: xr.Dataset, *, marks: Sequence[bool] | None = None, marks_text: str = "marked"
) -> Figure:
    """Draw the query of a search beside its nearest samples on one color scale, with a map and a time line.

    The first nine answers are drawn.

    Parameters
    ----------
    cube
        Cube of the embeddings, from `gridrad_cube.open_cube`. At level 2k the pictures are whole crops.
    answer
        From ``.gridrad.search``, with a sample of the store, a place and time, or examples, as the query.
    marks, marks_text
        Answers to frame (for example the correct ones), and their name in the legend.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If the query is not a sample of the store, or the number of marks is not that of answers.
    """
    asked, text = _asked(answer)
    count = answer.sizes["rank"]
    marked = [False] * count if marks is None else [bool(m) for m in marks]
    if len(marked) != count:
        raise SchemaError(f"plot: got {len(marked)} marks for {count} answers; expected one for each")
    answer, marked = answer.isel(rank=slice(_SHOWN)), marked[:_SHOWN]
    label = str(asked.get("query_channel", answer["channel"].values[0]))
    field = select(cube, int(asked["query_crop"]), label, answer)
    shape, windows = _windows(cube, answer, asked)
    place = float(asked["query_latitude"]), float(asked["query_longitude"])
    time = np.datetime64(asked["query_time"].removesuffix("Z"))
    where = f"{degrees(place[0], 'NS')} {degrees(place[1], 'EW')}"
    captions = [f"{text}\n{stamp(time)}\n{where}", *_captions(answer)]

    lines = -(-len(windows) // _COLUMNS)
    tall = lines * (0.57 + float(np.clip(2.05 * shape[0] / shape[1], 0.8, 3.0)))
    figure, _ = new_figure(figsize=(12.5, tall + 4.4))
    grid = figure.add_gridspec(2, 1, height_ratios=[tall, 4.0])
    upper, lower = grid[0].subgridspec(lines, _COLUMNS), grid[1].subgridspec(1, 2)
    panels = [figure.add_subplot(upper[divmod(i, _COLUMNS)]) for i in range(len(windows))]
    states: dict[str, Artist] = {}
    frames = [BLUE, *(ORANGE if mark else None for mark in marked)]
    for ax, (crop, y, x), words, color in zip(panels, windows, captions, frames, strict=True):
        window = _without_padding(cube.isel(crop=crop), (y, x), shape)
        pixels = select(cube, crop, field.label).values(window)
        pixels = reverse(pixels[None], np.array([Orientation.of_one(cube.isel(crop=crop))]))[0]
        image, handles = draw_field(ax, pixels, field.channel)
        states |= {str(h.get_label()): h for h in handles}
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set(edgecolor=color or "0.6", linewidth=3.0 if color else 0.8)
        ax.set_title(words, fontsize=8.5, color=color or "black")
    color_bar(image, field.label, field.channel, ax=panels, shrink=0.9, aspect=30)
    around, when = figure.add_subplot(lower[0]), figure.add_subplot(lower[1])
    places = _draw_map(around, answer, place, marked, marks_text, cube)
    moments = _draw_times(when, answer, time, marked)
    legend = [*around.get_legend_handles_labels()[0], *states.values()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    # The map is as wide as its points and outlines.
    box = around.dataLim
    wide = 3.2 * box.width / max(box.height, 1e-9) * np.cos(np.deg2rad(box.y0 + box.height / 2))
    width = float(np.clip(wide, 3.6, 7.0))
    lower.set_width_ratios([width, 11.5 - width])
    _write_numbers(around, places)
    _write_numbers(when, moments)
    return figure


def _asked(answer: xr.Dataset) -> tuple[Mapping[str, Any], str]:
    """Return the attributes of an answer about its query, and the name of the query; of several examples the
    first.
    """
    asked: Mapping[str, Any] = answer.attrs
    text = "query"
    if "query_examples" in asked:
        examples = json.loads(asked["query_examples"])
        asked, text = examples[0], f"query: first of {len(examples)} examples"
    missing = {"query_crop", "query_time", "query_latitude"} - set(asked)
    if missing or ("row" in answer.coords) != ("query_row" in asked):
        raise SchemaError(
            "plot: the query of this answer is not a sample of the store, so there are no pixels to draw for it; "
            "expected a search for (crop, row, col), or for a place and time"
        )
    return asked, text


def _windows(
    cube: xr.Dataset, answer: xr.Dataset, asked: Mapping[str, Any]
) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """Return the height and width of a sample in pixels; crop, first row and first column of the query and of
    each answer.
    """
    size = cube.sizes["y"] // cube.sizes["row"]
    shape = (size, size) if "row" in answer.coords else (cube.sizes["y"], cube.sizes["x"])
    stride = int(answer.attrs.get("stride") or size)
    y, x = (int(asked.get(f"query_{d}", 0)) * stride for d in ("row", "col"))
    out = [(int(asked["query_crop"]), y, x)]
    for i, crop in enumerate(answer["crop"].values.tolist()):
        y, x = (int(answer[f"{a}_start"][i]) - int(cube[f"{a}_origin"][crop]) for a in "yx")
        out.append((crop, y, x))
    return shape, out


def _without_padding(one: xr.Dataset, first: tuple[int, int], shape: tuple[int, int]) -> dict[str, slice]:
    """Return the pixels of a window that lie in the scene; all of them if none does."""
    out = {}
    for axis, dim, start, length, ends in zip("yx", ("row", "col"), first, shape, inside(one), strict=True):
        edge = one.sizes[axis] / one.sizes[dim]
        low, high = max(start, round(ends[0] * edge)), min(start + length, round(ends[1] * edge))
        out[axis] = slice(low, high) if low < high else slice(start, start + length)
    return out


def _captions(answer: xr.Dataset) -> list[str]:
    """Return the rank, score, time and place of each answer, with three to six decimals, so that scores
    differ.
    """
    scores = answer["score"].values.astype(np.float64)
    apart = len(np.unique(scores))
    digits = next((n for n in (3, 4, 5, 6) if len(np.unique(scores.round(n))) == apart), 3)
    columns = zip(scores, *(answer[n].values for n in ("time", "latitude", "longitude")), strict=True)
    return [
        f"{i}: score {score:.{digits}f}\n{stamp(time)}\n{degrees(lat, 'NS')} {degrees(lon, 'EW')}"
        for i, (score, time, lat, lon) in enumerate(columns, 1)
    ]


def _draw_answers(
    axes: Axes, x: np.ndarray, y: np.ndarray, marked: Sequence[bool], names: Sequence[str | None], size: float
) -> list[_Point]:
    """Draw answers as points, marked or not, with two names for a legend; return the input of
    `_write_numbers`.
    """
    axes.grid(alpha=0.35, linewidth=0.6)
    for right, (color, marker) in _LOOKS.items():
        pick = np.array(marked) == right
        if pick.any():
            look: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.8, "zorder": 3}
            axes.scatter(x[pick], y[pick], size, color, marker=marker, label=names[right], **look)
    answers = zip(x, y, marked, strict=True)
    return [(float(a), float(b), str(i), _LOOKS[m][0]) for i, (a, b, m) in enumerate(answers, 1)]


def _draw_times(
    axes: Axes, answer: xr.Dataset, query_time: np.datetime64, marked: Sequence[bool]
) -> list[_Point]:
    """Draw the scores over time, and the query's time; return the input of `_write_numbers`."""
    from matplotlib.dates import AutoDateLocator, DateFormatter, date2num

    axes.set_title("When they are", loc="left", fontsize=11)
    times = np.asarray(date2num(answer["time"].values))
    points = _draw_answers(axes, times, answer["score"].values, marked, (None, None), 40)
    axes.axvline(float(date2num(query_time)), color=BLUE, linewidth=1.5, zorder=1)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=6))
    span = float(np.ptp([*times, float(date2num(query_time))]))  # days
    axes.xaxis.set_major_formatter(DateFormatter("%Y-%m-%d" if span > 4 else "%Y-%m-%d\n%H:%M"))
    axes.margins(0.12)
    axes.set_xlabel("time (UTC)")
    axes.set_ylabel(str(answer["score"].attrs.get("long_name", "score")))
    return points


# Maps, without coastlines


def _draw_map(
    axes: Axes,
    answer: xr.Dataset,
    place: tuple[float, float],
    marked: Sequence[bool],
    marks_text: str,
    cube: xr.Dataset,
) -> list[_Point]:
    """Draw answers and the query, and faintly the outline of each different crop of a cube; returns as `_draw_times`.

    Longitudes are continuous around the query, also across the date line.
    """
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axes.set_title("Where they are", loc="left", fontsize=11)
    base = place[1]
    for i, (lat, lon) in enumerate(_outlines(cube)):
        lon = lon + 360.0 * np.round((base - np.nanmean(lon)) / 360.0)
        look: dict[str, Any] = {"facecolor": "0.94", "edgecolor": "0.7", "linewidth": 0.8, "zorder": 0}
        axes.fill(lon, lat, label="crops of the store" if i == 0 else None, **look)
    latitude = answer["latitude"].values
    longitude = base + (answer["longitude"].values - base + 180.0) % 360.0 - 180.0
    names = ("answer", f"answer, {marks_text}")
    points = _draw_answers(axes, longitude, latitude, marked, names, 36)
    star: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.8, "zorder": 2}
    axes.scatter(base, place[0], 340, BLUE, marker="*", label="query", **star)
    axes.margins(0.06)
    axes.autoscale_view()
    middle = float(np.nanmean([*latitude, place[0]]))
    axes.set_aspect(1 / max(np.cos(np.deg2rad(middle)), 0.2), adjustable="datalim")
    for axis, limits, letters in ((axes.xaxis, axes.get_xlim(), "EW"), (axes.yaxis, axes.get_ylim(), "NS")):
        step = nice_step(abs(limits[1] - limits[0]), 6)
        decimals = 0 if step >= 1 else 1 if step >= 0.1 else 2
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(
            FuncFormatter(lambda v, _, letters=letters, decimals=decimals: degrees(v, letters, decimals))
        )
    return [*points, (base, place[0], "", BLUE)]


def _outlines(dataset: xr.Dataset) -> Iterator[tuple[np.ndarray, ...]]:
    """Outline of each different crop where its scene is, latitude and continuous longitude, along patch corners."""
    both = [dataset[n].transpose("crop", "row", "col").values for n in ("latitude", "longitude")]
    flat = np.stack(both, axis=-1).reshape(dataset.sizes["crop"], -1)
    known = np.flatnonzero(np.isfinite(flat).any(axis=1))
    _, first = np.unique(np.nan_to_num(flat[known].round(3), nan=999.0), axis=0, return_index=True)
    for crop in known[np.sort(first)][:_OUTLINES]:
        one = dataset.isel(crop=int(crop))
        ends = inside(one)
        lat, lon = (_cut(_corners(v), ends) if min(v.shape) > 1 else v for v in positions(one))
        yield tuple(np.concatenate([v[0, :-1], v[:-1, -1], v[-1, :0:-1], v[::-1, 0]]) for v in (lat, lon))


def _corners(values: np.ndarray) -> np.ndarray:
    """Return the positions of patch corners ``(row + 1, col + 1)`` from those of centers, by linear
    extension.
    """
    wide = np.pad(values, 1, mode="reflect", reflect_type="odd")
    return (wide[1:, 1:] + wide[1:, :-1] + wide[:-1, 1:] + wide[:-1, :-1]) / 4


def _cut(values: np.ndarray, ends: tuple[tuple[float, float], tuple[float, float]]) -> np.ndarray:
    """Return the corners of patches between the first and last row and column of the scene, the outermost
    interpolated.
    """
    for axis, (first, last) in enumerate(ends):
        values = np.moveaxis(values, axis, 0)
        places = np.array([first, *range(int(np.floor(first)) + 1, int(np.ceil(last))), last])
        low = np.minimum(np.floor(places).astype(int), len(values) - 2)
        part = (places - low)[:, None]
        values = np.moveaxis((1 - part) * values[low] + part * values[low + 1], 0, axis)
    return values


def _write_numbers(axes: Axes, points: Sequence[_Point]) -> None:
    """Write texts beside points. If there is room, they cover neither each other nor a point.

    It fixes the layout of the figure first, so call it last. Texts of one color at one place are joined.
    Points without a text are only kept free.
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    dots = axes.transData.transform([p[:2] for p in points]) * 72 / figure.dpi
    groups: dict[tuple[int, int, str], list[int]] = {}
    for i, ((x, y), (_, _, text, color)) in enumerate(zip(dots, points, strict=True)):
        if text:
            groups.setdefault((round(x / 4), round(y / 4), color), []).append(i)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for members in groups.values():
        text = ", ".join(points[i][2] for i in members)
        x, y, _, color = points[members[0]]
        width = sum(5.4 if c.isdigit() else 2.7 for c in text)
        box, shift, align = _free_place(dots[members[0]], width, taken)
        taken.append(box)
        axes.annotate(
            text, (x, y), xytext=shift, textcoords="offset points", fontsize=8.5, color=color, zorder=5, ha=align,
            va="bottom",
        )  # fmt: skip


def _free_place(
    dot: np.ndarray, width: float, taken: Sequence[_Box]
) -> tuple[_Box, tuple[float, float], _Align]:
    """Return the box of a text near a dot that overlaps other boxes least, its offset and alignment, in
    points.
    """
    height = 9.0
    sides: tuple[tuple[float, float, _Align], ...] = (
        (6, 3, "left"), (-6, 3, "right"), (6, -3 - height, "left"), (-6, -3 - height, "right"), (0, 7, "center"),
        (0, -7 - height, "center"),
    )  # fmt: skip
    places = []
    for ring in (0.0, 7.0, 14.0):
        for x, y, align in sides:
            shift = (x, y + ring * np.sign(y))
            left = dot[0] + x - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = (left, dot[1] + shift[1], left + width, dot[1] + shift[1] + height)
            covered = sum(
                max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
                * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
                for other in taken
            )
            places.append((covered, box, shift, align))
    return min(places, key=lambda place: place[0])[1:]
