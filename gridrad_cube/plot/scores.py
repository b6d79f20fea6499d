"""Draw the result of an evaluation: every number with its interval, and words for questions without a number."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gridrad_cube.plot.canvas import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    add_axes,
    new_figure,
    write_legend,
    write_title,
)
from gridrad_cube.schema import SchemaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Sections that are drawn, their titles and axis labels.
_SECTIONS = {
    "retrieval": ("Retrieval: the sequel ranks first among distractors", "share of queries"),
    "probe": ("Probes: linear predictions on held-out days", "R² (AUC for yes or no)"),
    "leak": ("Leaks: linear predictions of time and place (a nuisance)", "R²"),
    "forecast": ("Forecasts: mean of what came after the 20 most similar", "R²"),
}
#: Colors of stores of embeddings, and looks of baselines by name.
_STORES = (BLUE, ORANGE, GREEN, PURPLE)
_BASELINES: dict[str, tuple[str, str]] = {
    "histogram": ("#6b6b6b", "^"),
    "descriptor": ("#6b6b6b", "s"),
    "pool": ("#6b6b6b", "v"),
    "persistence": ("black", "x"),
    "regression": ("black", "D"),
    "climatology": ("#a0a0a0", "+"),
    "chance": ("#a0a0a0", "|"),
}
_READOUT = ", readout"
#: Lowest start of the scale of shares and R², because a probe can be arbitrarily bad.
_LEAST = -0.5
#: Inches: of one kind of vectors in a row, of a row of words, between panels, for names of rows, of a panel.
_LINE, _WORDS, _BETWEEN, _NAMES, _WIDTH = 0.13, 0.36, 0.95, 2.9, 4.4

#: A cell or a row of an evaluation, as JSON has it.
_Json = Mapping[str, Any]
#: Color, marker and face of a kind of vectors.
_Look = dict[str, Any]


@dataclass(frozen=True)
class _Panel:
    """Rows with their names, on one scale."""

    title: str
    label: str
    rows: tuple[tuple[str, _Json], ...]

    def values(self, *names: str) -> list[float]:
        """Return those numbers of all cells that are there."""
        cells = [c for _, row in self.rows for c in _known(row).values()]
        return [c[n] for c in cells for n in names if c[n] is not None]

    @property
    def height(self) -> float:
        """Inches."""
        return sum(_height(row) for _, row in self.rows)


def evaluation(result: Mapping[str, Any] | str | os.PathLike[str]) -> Figure:
    """Draw an evaluation: a panel for each section, a group of marks for each question, bars for 95 %
    intervals.

    Marks of one store have one color and are open after a readout; baselines are gray and black. Questions
    without numbers show their words.

    Parameters
    ----------
    result
        `gridrad_cube.evaluation.Evaluation.to_dict`, or the file that ``gridrad-cube evaluate --json`` wrote.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If it is not an evaluation.
    """
    from matplotlib.lines import Line2D

    try:
        found = (
            result if isinstance(result, Mapping) else json.loads(Path(result).read_text(encoding="utf-8"))
        )
    except ValueError as error:
        raise SchemaError(f"{result}: not JSON ({error}); expected an evaluation") from error
    if not isinstance(found, Mapping) or not found.get("rows") or "about" not in found:
        raise SchemaError("plot: this is not an evaluation; expected what gridrad-cube evaluate --json wrote")
    panels = _panels(found["rows"])
    looks = _looks(list(dict.fromkeys(n for p in panels for _, row in p.rows for n in _known(row))))
    columns = _columns([p.height + _BETWEEN for p in panels])
    top, foot, across = 0.85, 0.05 + 0.24 * -(-len(looks) // 5), _NAMES + _WIDTH + 0.3
    tall = max(sum(panels[i].height + _BETWEEN for i in some) for some in columns)
    figure, _ = new_figure(by_hand=True, figsize=(len(columns) * across, top + tall + foot))
    least = max(min([0.0, *(v for p in panels for v in p.values("value", "low"))]), _LEAST)
    for number, some in enumerate(columns):
        down = top
        for panel in (panels[i] for i in some):
            axes = add_axes(figure, number * across + _NAMES, down, _WIDTH, panel.height)
            _draw_panel(axes, panel, looks, least)
            down += panel.height + _BETWEEN
    about = found["about"]
    stores = ", ".join(os.path.basename(str(s)) for s in np.atleast_1d(about.get("stores", "")))
    parts = (f"{about.get('channel')}, level {about.get('level')}", about.get("samples"), about.get("days"))
    chosen = f"; chosen: {found['chosen']}" if found.get("chosen") else ""
    write_title(figure, f"Evaluation of {stores}", "; ".join(map(str, parts)) + chosen, left=0.15)
    handles = [Line2D([], [], linestyle="none", label=name, **look) for name, look in looks.items()]
    write_legend(figure, handles, left=0.15, columns=5)
    return figure


def _panels(rows: Sequence[_Json]) -> list[_Panel]:
    """Return a panel a section."""
    groups = {
        section: [(str(row["question"]), row) for row in rows if row["section"] == section]
        for section in _SECTIONS
    }
    return [_Panel(*_SECTIONS[section], tuple(lines)) for section, lines in groups.items() if lines]


def _known(row: _Json) -> dict[str, _Json]:
    return {n: c for n, c in row["cells"].items() if c["value"] is not None}


def _height(row: _Json) -> float:
    known = _known(row)
    return _LINE * (len(known) + 2) if known else _WORDS


def _columns(heights: Sequence[float]) -> list[list[int]]:
    """Return the panels in order, in one column or two of nearly one height."""
    if len(heights) < 2 or sum(heights) < 6:
        return [list(range(len(heights)))]
    cut = min(range(1, len(heights)), key=lambda n: max(sum(heights[:n]), sum(heights[n:])))
    return [list(range(cut)), list(range(cut, len(heights)))]


def _looks(names: Sequence[str]) -> dict[str, _Look]:
    """Return how the mark of each kind of vectors looks."""
    bases = {name: name.removesuffix(_READOUT) for name in names}
    stores = list(dict.fromkeys(base for base in bases.values() if base not in _BASELINES))
    out = {}
    for name, base in bases.items():
        color, marker = _BASELINES.get(base, ("", "o"))
        color = color or _STORES[stores.index(base) % len(_STORES)]
        face = "white" if name.endswith(_READOUT) else color
        out[name] = {"color": color, "marker": marker, "markerfacecolor": face}
    return out


def _draw_panel(axes: Axes, panel: _Panel, looks: Mapping[str, _Look], least: float) -> None:
    """Draw one panel, its rows from the top in inches; ``least`` is the start of the scale of shares."""
    down, places = 0.0, []
    axes.grid(axis="x", alpha=0.35, linewidth=0.6)
    for i, (_, row) in enumerate(panel.rows):
        known, height = _known(row), _height(row)
        places.append(down + height / 2)
        axes.axhspan(down, down + height, color="0.95" if i % 2 else "white", zorder=0 if known else 1.5)
        if not known:
            words = " / ".join(dict.fromkeys(c["words"] for c in row["cells"].values()))
            axes.text(0.02, down + height / 2, textwrap.fill(words, 72), transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7.5, color="0.35", style="italic")  # fmt: skip
        for j, name in enumerate(n for n in looks if n in known):
            _mark(axes, known[name], down + _LINE * (j + 1.5), looks[name], least)
        down += height
    axes.set_ylim(down, 0)
    axes.set_yticks(places, labels=[textwrap.fill(name, 42) for name, _ in panel.rows], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel(panel.label, fontsize=8.5)
    if panel.values("value"):
        axes.set_xlim(least - 0.03, 1.03)
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    else:
        axes.set_xticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _mark(axes: Axes, cell: _Json, y: float, look: _Look, least: float) -> None:
    """Draw a number with its interval; an arrow if the interval continues below the scale."""
    if cell["low"] is not None:
        ends = [max(cell["low"], least), max(cell["high"], least)]
        axes.plot(ends, [y, y], color=look["color"], linewidth=1.1, alpha=0.8, zorder=2)
        if cell["low"] < least:
            axes.plot(least, y, "<", color=look["color"], markersize=3.5, zorder=2)
    if cell["value"] >= least:
        axes.plot(cell["value"], y, linestyle="none", markersize=5.5, zorder=3, **look)
