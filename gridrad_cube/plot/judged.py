"""What an evaluation found: every number with its interval, words where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gridrad_cube.plot.canvas import BLUE, GREEN, ORANGE, PURPLE, add_axes, new_figure, write_units
from gridrad_cube.schema import SchemaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Sections that are drawn, their titles and what their axes say.
_SECTIONS = {
    "retrieval": ("Found again: sequel ranks first among distractors of the same hour", "share of queries"),
    "probe": ("Told by a linear probe, on days apart", "R² (AUC for yes or no)"),
    "leak": ("Leaks: told of where and when, a nuisance", "R²"),
    "forecast": ("Told by analogues: error of the {}", ""),
}
#: Looks of kinds of vectors: stores of embeddings, and the baselines by name.
_STORES = (BLUE, ORANGE, GREEN, PURPLE)
_BASELINES: dict[str, tuple[str, str]] = {
    "moments": ("#6b6b6b", "s"),
    "histogram": ("#6b6b6b", "^"),
    "PCA-64 of pixels": ("#6b6b6b", "D"),
    "mean of patches": ("#6b6b6b", "v"),
    "persistence": ("black", "x"),
    "mean": ("#a0a0a0", "+"),
    "chance": ("#a0a0a0", "|"),
}
#: Where the scale of shares and R² begins at the lowest: a probe can be arbitrarily bad.
_LEAST = -0.5
#: Inches: of one kind of vectors in a row, of a row of words, between panels, for names of rows, of a panel.
_LINE, _WORDS, _BETWEEN, _NAMES, _WIDTH = 0.13, 0.36, 0.95, 2.9, 4.4


@dataclass(frozen=True)
class _Panel:
    """Title, label of the axis, and rows with what they are called."""

    title: str
    label: str
    rows: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def bounded(self) -> bool:
        """Whether 1 is the best there is."""
        return not self.label.startswith("mean")

    def cells(self) -> list[Mapping[str, Any]]:
        """Those that have a number."""
        return [c for _, r in self.rows for c in _known(r).values()]


def evaluation(result: Mapping[str, Any] | str | os.PathLike[str]) -> Figure:
    """Draw an evaluation: a panel a section, a group of marks a question, bars for 95 % intervals.

    Marks of one store have one colour, open where its vectors are less their mean; baselines are grey and black.
    Questions that have words in place of numbers show them. Forecasts have a panel for each unit.

    Parameters
    ----------
    result
        `gridrad_cube.evaluation.Evaluation.to_dict`, or the file that ``gridrad-cube evaluate --json`` wrote.

    Raises
    ------
    SchemaError
        If it is no evaluation.
    """
    found = result if isinstance(result, Mapping) else _read(result)
    if not isinstance(found.get("rows"), list) or "about" not in found:
        raise SchemaError("plot: this is no evaluation; expected what gridrad-cube evaluate --json wrote")
    panels = _panels(found["rows"])
    if not panels:
        raise SchemaError("plot: the evaluation has no rows to draw")
    names = list(dict.fromkeys(n for p in panels for _, r in p.rows for n in _known(r)))
    looks = _looks(names)
    tall = [sum(_height(r) for _, r in p.rows) for p in panels]
    columns = _share_out([t + _BETWEEN for t in tall])
    top, foot = 0.85, 0.35 + 0.24 * -(-len(names) // 5)
    size = (
        len(columns) * (_NAMES + _WIDTH + 0.3),
        top + max(sum(tall[i] + _BETWEEN for i in some) for some in columns) + foot - 0.3,
    )
    figure, _ = new_figure(by_hand=True, figsize=size)
    shares = [
        v for p in panels if p.bounded for c in p.cells() for v in (c["value"], c["low"]) if v is not None
    ]
    least = max(min(shares, default=0.0), _LEAST)
    for number, some in enumerate(columns):
        down = top
        for i in some:
            left = number * (_NAMES + _WIDTH + 0.3) + _NAMES
            _draw(add_axes(figure, left, down, _WIDTH, tall[i]), panels[i], looks, least)
            down += tall[i] + _BETWEEN
    _write(figure, found, looks, size)
    return figure


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SchemaError(f"{os.fspath(path)}: no JSON ({error}); expected an evaluation") from error
    return found if isinstance(found, dict) else {}


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    """A panel a section, of forecasts one an attribute."""
    out = []
    for section, (title, label) in _SECTIONS.items():
        mine = [r for r in rows if r["section"] == section]
        if section != "forecast":
            lines = tuple((str(r["question"]), r) for r in mine)
            out += [_Panel(title, label, lines)] if mine else []
            continue
        parted = [(*str(r["question"]).rpartition(" after ")[::2], r) for r in mine]
        for attribute in dict.fromkeys(a for a, _, _ in parted):
            lines = tuple((f"after {lead}", r) for a, lead, r in parted if a == attribute)
            units = lines[0][1]["units"]
            unit = "" if units == "1" else f" ({write_units(units)})"
            out.append(_Panel(title.format(attribute), f"mean absolute error{unit}, less is better", lines))
    return out


def _known(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {n: c for n, c in row["cells"].items() if c["value"] is not None}


def _height(row: Mapping[str, Any]) -> float:
    known = _known(row)
    return _LINE * (len(known) + 2) if known else _WORDS


def _share_out(heights: Sequence[float]) -> list[list[int]]:
    """Panels in order, in one column or two of nearly one height."""
    if len(heights) < 2 or sum(heights) < 6:
        return [list(range(len(heights)))]
    cut = min(range(1, len(heights)), key=lambda n: max(sum(heights[:n]), sum(heights[n:])))
    return [list(range(cut)), list(range(cut, len(heights)))]


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and whether it is filled, of each kind of vectors."""
    stores = [n for n in names if n not in _BASELINES and not n.endswith(", centred")]
    out = {}
    for name in names:
        if name in _BASELINES:
            out[name] = (*_BASELINES[name], True)
        else:
            at = (
                stores.index(name.removesuffix(", centred"))
                if name.removesuffix(", centred") in stores
                else 0
            )
            out[name] = (_STORES[at % len(_STORES)], "o", not name.endswith(", centred"))
    return out


def _draw(axes: Axes, panel: _Panel, looks: Mapping[str, tuple[str, str, bool]], least: float) -> None:
    """One panel, its rows from the top in inches; ``least`` is where the scale of shares begins."""
    down, places = 0.0, []
    axes.grid(axis="x", alpha=0.35, linewidth=0.6)
    for i, (_, row) in enumerate(panel.rows):
        known, height = _known(row), _height(row)
        places.append(down + height / 2)
        axes.axhspan(down, down + height, color="0.95" if i % 2 else "white", zorder=0 if known else 1.5)
        if not known:
            words = " / ".join(dict.fromkeys(c["words"] for c in row["cells"].values()))
            axes.text(0.02, down + height / 2, _wrap(words, 72), transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7.5, color="0.35", style="italic")  # fmt: skip
        for j, name in enumerate(n for n in looks if n in known):
            _mark(axes, known[name], down + _LINE * (j + 1.5), looks[name], least if panel.bounded else 0.0)
        down += height
    axes.set_ylim(down, 0)
    axes.set_yticks(places, labels=[_wrap(name, 42) for name, _ in panel.rows], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel(panel.label, fontsize=8.5)
    ends = [v for c in panel.cells() for v in (c["value"], c["high"]) if v is not None]
    if not ends:
        axes.set_xticks([])
    elif panel.bounded:
        axes.set_xlim(least - 0.03, 1.03)
        axes.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    else:
        axes.set_xlim(0, 1.05 * max(ends))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _mark(axes: Axes, cell: Mapping[str, Any], y: float, look: tuple[str, str, bool], least: float) -> None:
    """A number with its interval; an arrow where either goes on past the scale."""
    colour, marker, filled = look
    if cell["low"] is not None:
        ends = [max(cell["low"], least), max(cell["high"], least)]
        axes.plot(ends, [y, y], color=colour, linewidth=1.1, alpha=0.8, zorder=2)
        if cell["low"] < least:
            axes.plot(least, y, "<", color=colour, markersize=3.5, zorder=2)
    if cell["value"] >= least:
        face = colour if filled else "white"
        axes.plot(cell["value"], y, marker, color=colour, markersize=5.5, markerfacecolor=face, zorder=3)


def _wrap(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _write(
    figure: Figure,
    found: Mapping[str, Any],
    looks: Mapping[str, tuple[str, str, bool]],
    size: tuple[float, float],
) -> None:
    """Title, what was evaluated, and the legend."""
    from matplotlib.lines import Line2D

    about = found["about"]
    stores = ", ".join(os.path.basename(str(s)) for s in np.atleast_1d(about.get("stores", "")))
    figure.text(0.15 / size[0], 1 - 0.12 / size[1], f"Evaluation of {stores}", fontsize=13, va="top")
    chosen = f"; chosen: {found['chosen']}" if found.get("chosen") else ""
    text = f"{about.get('channel')}, level {about.get('level')}; {about.get('samples')}; {about.get('days')}{chosen}"
    figure.text(0.15 / size[0], 1 - 0.4 / size[1], text, fontsize=8.5, va="top", color="0.35")
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markerfacecolor=colour if filled else "white",
               label=name)
        for name, (colour, marker, filled) in looks.items()
    ]  # fmt: skip
    if not handles:
        return
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.15 / size[0], 0.08 / size[1]), ncols=5, frameon=False,
        fontsize=9, borderaxespad=0.0,
    )  # fmt: skip
