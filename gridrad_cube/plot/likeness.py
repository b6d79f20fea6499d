"""A patch beside those most like it, and where and when they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    BLUE,
    ORANGE,
    colour_bar,
    degrees,
    draw_field,
    new_figure,
    select,
    stamp,
)
from gridrad_cube.plot.lattice import is_upside_down
from gridrad_cube.plot.maps import Points, draw_map, write_numbers
from gridrad_cube.plot.scenes import decoded
from gridrad_cube.schema import SchemaError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

#: Answers that fit beside the query.
SHOWN = 9
_COLUMNS = 5
#: Colour and marker of answers, by whether they are marked.
_LOOKS = {False: ("0.3", "o"), True: (ORANGE, "D")}


def neighbours(
    pictures: Sequence[np.ndarray],
    answer: xr.Dataset,
    query: np.ndarray,
    label: str,
    *,
    query_place: tuple[float, float] | None = None,
    query_text: str = "query",
    marks: Sequence[bool] | None = None,
    marks_text: str = "planted",
    dataset: xr.Dataset | None = None,
) -> Figure:
    """Draw a query patch beside its nearest patches, on one colour scale, and where and when they are.

    Parameters
    ----------
    pictures
        Pixels of each answer, ``(y, x)``, physical units, in the order of rank; the first nine are drawn.
    answer
        From ``.gridrad.search``: on ``rank`` with score, time, latitude, longitude.
    query
        Pixels of the query patch.
    label
        Channel of the pixels.
    query_place
        Latitude and longitude of the query, degrees.
    marks, marks_text
        Answers to frame (those known to be right, say), and what they are.
    dataset
        The store that was searched, or its cube: its crops are outlined on the map, and its latitudes say which
        way the rows of pixels run. Without it, the first row is taken for the northernmost.

    Raises
    ------
    SchemaError
        If pictures, answers and marks are not as many.
    """
    count = answer.sizes.get("rank", 0)
    marked = [False] * count if marks is None else [bool(m) for m in marks]
    if len(pictures) != count or len(marked) != count or not count:
        raise SchemaError(
            f"plot: got {len(pictures)} pictures and {len(marked)} marks for {count} answers; expected one for each"
        )
    shown = min(count, SHOWN)
    rows = -(-(shown + 1) // _COLUMNS)
    tall = rows * (0.57 + float(np.clip(2.05 * query.shape[0] / query.shape[1], 0.8, 3.0)))
    figure, _ = new_figure(figsize=(12.5, tall + 4.4))
    grid = figure.add_gridspec(2, 1, height_ratios=[tall, 4.0])
    upper, lower = grid[0].subgridspec(rows, _COLUMNS), grid[1].subgridspec(1, 2)
    panels = [figure.add_subplot(upper[i // _COLUMNS, i % _COLUMNS]) for i in range(shown + 1)]
    flips = _flips(answer, dataset, shown)
    digits = _digits(answer["score"].values[:shown].astype(np.float64))
    states: dict[str, Artist] = {}
    for i, ax in enumerate(panels):
        pixels, text = (query, query_text) if i == 0 else (pictures[i - 1], _caption(answer, i - 1, digits))
        colour = BLUE if i == 0 else ORANGE if marked[i - 1] else None
        image, handles = _panel(ax, pixels[::-1] if flips[i] else pixels, label, text, colour)
        states |= {str(h.get_label()): h for h in handles}
    colour_bar(image, label, ax=panels, shrink=0.9, aspect=30)
    where, when = figure.add_subplot(lower[0]), figure.add_subplot(lower[1])
    first = answer.isel(rank=slice(shown))
    places = draw_map(where, _points(first, query_place, marked, marks_text), dataset)
    moments = _draw_times(when, first, marked)
    where.set_title("Where they are", loc="left", fontsize=11)
    legend = [*where.get_legend_handles_labels()[0], *states.values()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    lower.set_width_ratios(_shares(where))
    write_numbers(where, places)
    write_numbers(when, moments)
    return figure


def _draw_times(
    axes: Axes, answer: xr.Dataset, marked: Sequence[bool]
) -> list[tuple[float, float, str, str]]:
    """Scores against time, and the query's time where the answer says it."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    axes.set_title("When they are", loc="left", fontsize=11)
    times, scores = answer["time"].values, answer["score"].values
    for right, (colour, marker) in _LOOKS.items():
        pick = np.array([m == right for m in marked[: len(times)]])
        axes.scatter(
            times[pick], scores[pick], s=40, color=colour, marker=marker, edgecolor="white", zorder=3
        )
    if "query_time" in answer.attrs:
        axes.axvline(
            float(date2num(np.datetime64(answer.attrs["query_time"].removesuffix("Z")))),
            color=BLUE,
            linewidth=1.5,
            zorder=1,
        )
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.margins(0.12)
    axes.set_xlabel("time (UTC)")
    axes.set_ylabel(str(answer["score"].attrs.get("long_name", "score")))
    axes.grid(alpha=0.35, linewidth=0.6)
    return [
        (float(date2num(t)), float(s), str(i + 1), _LOOKS[bool(marked[i])][0])
        for i, (t, s) in enumerate(zip(times, scores, strict=True))
    ]


def _shares(where: Axes) -> list[float]:
    """Widths of map and time, inches: as wide a map as its points and outlines are, so that little is empty."""
    box = where.dataLim
    wide = 3.2 * box.width / max(box.height, 1e-9) * np.cos(np.deg2rad(box.y0 + box.height / 2))
    width = float(np.clip(wide, 3.6, 7.0))
    return [width, 11.5 - width]


def _panel(
    ax: Axes, pixels: np.ndarray, label: str, text: str, colour: str | None
) -> tuple[AxesImage, list[Artist]]:
    image, handles = draw_field(ax, pixels, label)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(edgecolor=colour or "0.6", linewidth=3.0 if colour else 0.8)
    ax.set_title(text, fontsize=8.5, color=colour or "black")
    return image, handles


def _flips(answer: xr.Dataset, dataset: xr.Dataset | None, shown: int) -> list[bool]:
    """Which pictures, the query's first, have their southernmost row first."""
    if dataset is None:
        return [False] * (shown + 1)
    names = dataset["crop"].values if "crop" in dataset.coords else np.arange(dataset.sizes["crop"])
    crops = [answer.attrs.get("query_crop", answer["crop"].values[0]), *answer["crop"].values[:shown]]
    where = [int(np.flatnonzero(names == c)[0]) for c in crops]
    known = {i: is_upside_down(dataset.isel(crop=i)) for i in set(where)}
    return [known[i] for i in where]


def _caption(answer: xr.Dataset, i: int, digits: int) -> str:
    one = answer.isel(rank=i)
    place = f"{degrees(float(one['latitude']), 'NS')} {degrees(float(one['longitude']), 'EW')}"
    return f"{i + 1}: score {float(one['score']):.{digits}f}\n{stamp(one['time'].values)}\n{place}"


def _digits(scores: np.ndarray) -> int:
    """Decimals that tell scores apart, three at least; three where even six do not."""
    apart = len(np.unique(scores))
    return next((n for n in (3, 4, 5, 6) if len(np.unique(scores.round(n))) == apart), 3)


def _points(
    answer: xr.Dataset, place: tuple[float, float] | None, marked: Sequence[bool], marks_text: str
) -> list[Points]:
    latitude, longitude = answer["latitude"].values, answer["longitude"].values
    out = []
    for right, (colour, marker) in _LOOKS.items():
        name = f"answer, {marks_text}" if right else "answer"
        pick = np.flatnonzero([m == right for m in marked[: len(latitude)]])
        numbers = tuple(str(i + 1) for i in pick)
        out.append(Points(latitude[pick], longitude[pick], name, colour, marker, 36.0, numbers))
    if place is not None:
        out.append(Points(np.array([place[0]]), np.array([place[1]]), "query", BLUE, "*", 340.0))
    return out


def answers(
    cube: xr.Dataset, answer: xr.Dataset, *, marks: Sequence[bool] | None = None, marks_text: str = "marked"
) -> Figure:
    """Draw the answer of a search, with pixels read from its cube; see `neighbours`.

    Parameters
    ----------
    cube
        From `gridrad_cube.open_cube`: what the embeddings that were searched come from. At level 2k the pictures
        are whole crops.
    answer
        From ``.gridrad.search``, with a sample of the store, or examples, as the query.

    Raises
    ------
    SchemaError
        If the query is no sample of the store.
    """
    asked, text = _asked(answer)
    size = cube.sizes["y"] // cube.sizes["row"]
    shape = (size, size) if "row" in answer.coords else (cube.sizes["y"], cube.sizes["x"])
    stride = int(answer.attrs.get("stride") or size)
    label = field_label(cube, str(asked.get("query_channel", answer["channel"].values[0])), answer)
    start = tuple(int(asked.get(f"query_{d}", 0)) * stride for d in ("row", "col"))
    query = _pixels(cube, int(asked["query_crop"]), (start[0], start[1]), shape, label)
    pictures = [query] * answer.sizes["rank"]
    for i in range(min(answer.sizes["rank"], SHOWN)):
        crop = int(answer["crop"][i])
        offset = [int(answer[f"{a}_start"][i]) - int(cube[f"{a}_origin"][crop]) for a in "yx"]
        pictures[i] = _pixels(cube, crop, (offset[0], offset[1]), shape, label)
    place = tuple(float(asked[f"query_{n}"]) for n in ("latitude", "longitude"))
    when = stamp(np.datetime64(asked["query_time"].removesuffix("Z")))
    text = f"{text}\n{when}\n{degrees(place[0], 'NS')} {degrees(place[1], 'EW')}"
    shown = answer.assign_attrs({n: asked[n] for n in ("query_time", "query_crop")})
    return neighbours(
        pictures, shown, query, label, query_place=(place[0], place[1]), query_text=text, marks=marks,
        marks_text=marks_text, dataset=cube,
    )  # fmt: skip


def _asked(answer: xr.Dataset) -> tuple[Mapping[str, Any], str]:
    """What an answer says of the sample that was asked for, and what to call it; of several examples the first."""
    asked: Mapping[str, Any] = answer.attrs
    text = "query"
    if "query_examples" in asked:
        examples = json.loads(asked["query_examples"])
        asked, text = examples[0], f"query: first of {len(examples)} examples"
    missing = {"query_crop", "query_time", "query_latitude"} - set(asked)
    if missing or ("row" in answer.coords) != ("query_row" in asked):
        raise SchemaError(
            "plot: the query of this answer is no sample of the store, so there is nothing to draw for it; expected a "
            "search for (crop, row, col), or for a place and time. For a vector use plot.neighbours."
        )
    return asked, text


def field_label(cube: xr.Dataset, label: str, about: xr.Dataset) -> str:
    """The field to draw for a channel label of embeddings: of a composite label its first member."""
    if label.split("@")[0] in cube.data_vars:
        return label
    variable = np.atleast_1d(about["variable"].values)[0] if "variable" in about.coords else label
    return str(variable).split("+")[0]


def _pixels(
    cube: xr.Dataset, crop: int, start: tuple[int, int], shape: tuple[int, int], label: str
) -> np.ndarray:
    """Pixels of a window, physical units."""
    one, channel, level = select(cube, crop, label, 0)
    window = {a: slice(s, s + n) for a, s, n in zip("yx", start, shape, strict=True)}
    return decoded(one[channel.name].isel({**level, **window}), channel.packing)
