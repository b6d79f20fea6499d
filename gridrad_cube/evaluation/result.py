"""What an evaluation found: cells with an interval or, where data are too few, words; as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Titles of the sections, in their order.
SECTIONS = {
    "spread": "Spread of the vectors",
    "retrieval": "Retrieval: share of queries whose sequel ranks first among distractors of the same hour",
    "forecast": "Analogue forecast: mean absolute error (less is better)",
    "probe": "Probes: R² of ridge regression, AUC of logistic regression",
    "leak": "Leaks: how much the vectors say of where and when (R², a nuisance)",
    "choice": "Choice: mean score of the probes on the days that neither fit nor test",
}


@dataclass(frozen=True)
class Cell:
    """One number with its 95 % interval, or words in place of it.

    Attributes
    ----------
    value
        None where data are too few; ``words`` then say what was lacking.
    low, high
        Of the interval; None where days are no unit of the number (RankMe, say).
    cases, days
        How many cases, of how many convective days, the number is made of.
    more
        Further numbers about the same cases.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    cases: int = 0
    days: int = 0
    words: str = ""
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One question, answered for every kind of vector.

    Attributes
    ----------
    section
        One of `SECTIONS`.
    measure, units, better
        What the numbers are, and whether ``"higher"`` or ``"lower"`` is better (``""``: neither).
    cells
        By the name of the vectors.
    gain
        By how much the first vectors are better than the best baseline, in pairs: the interval is that of the
        difference. None where there is no baseline.
    baseline
        Name of that baseline.
    """

    section: str
    question: str
    measure: str
    cells: Mapping[str, Cell]
    units: str = "1"
    better: str = "higher"
    gain: Cell | None = None
    baseline: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what they were made from.

    Attributes
    ----------
    about
        Stores, channel, level, seed, numbers of samples and days.
    chosen
        Name of the store that did best on the choosing days; empty where there was no choice.
    notes
        What was left out, and why.
    """

    about: Mapping[str, Any]
    rows: tuple[Row, ...]
    chosen: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a number that could not be had is None beside its words."""
        return {
            "about": dict(self.about),
            "chosen": self.chosen,
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        lines = [
            f"{name}: {', '.join(value) if isinstance(value, list) else value}"
            for name, value in self.about.items()
        ]
        lines += [f"chosen: {self.chosen}"] if self.chosen else []
        for section, title in SECTIONS.items():
            rows = [row for row in self.rows if row.section == section]
            if rows:
                lines += ["", title, *_table(rows)]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines)


def number(value: float) -> str:
    """Three figures where it is large, three decimals below 1, and two figures where these would say nothing."""
    size = abs(value)
    if size >= 1000 or size == 0:
        return f"{value:.0f}"
    if size >= 1:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.3f}" if size >= 0.005 else f"{value:.1g}"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.value is None:
        return cell.words
    if cell.low is None or cell.high is None:
        return number(cell.value)
    return f"{number(cell.value)} [{number(cell.low)}, {number(cell.high)}]"


def _table(rows: list[Row]) -> list[str]:
    """Lines of one section: a column for each kind of vectors; words that all share are said once."""
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    gains = any(row.gain is not None for row in rows)
    head = ["", *names, *(["beside the best baseline"] if gains else [])]
    body, plain = [head], {}
    for i, row in enumerate(rows, 1):
        unit = "" if row.units == "1" else f" ({row.units})"
        words = {cell.words for cell in row.cells.values()}
        if len(words) == 1 and all(cell.value is None for cell in row.cells.values()):
            plain[i] = words.pop()
            body.append([f"  {row.question}{unit}"])
            continue
        gain = "" if row.gain is None or row.gain.value is None else f"{_text(row.gain)} ({row.baseline})"
        body.append([f"  {row.question}{unit}", *(_text(row.cells.get(n)) for n in names), gain])
    widths = [max(len(line[i]) for line in body if i < len(line)) for i in range(len(head))]
    out = []
    for i, line in enumerate(body):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        out.append(f"{text}  {plain[i]}" if i in plain else text.rstrip())
    return out if len(plain) < len(rows) else out[1:]
