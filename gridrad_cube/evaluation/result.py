"""The result of an evaluation, as a table and as JSON: numbers with an interval or, if data are too few,
words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Titles of the sections, in their order.
_SECTIONS = {
    "spread": "Spread of the vectors",
    "retrieval": "Retrieval: share of queries whose sequel ranks first among distractors",
    "forecast": "Analogue forecast: R² of the mean of what came after the 20 most similar samples",
    "probe": "Probes: R² of ridge regression, AUC of logistic regression",
    "leak": "Leaks: how much the vectors say of where and when (R², a nuisance)",
    "choice": "Choice: mean score of the probes on the time that neither fits nor tests",
}


@dataclass(frozen=True)
class Cell:
    """One number with its 95 % interval, or words in its place.

    Attributes
    ----------
    value
        None where data are too few; ``words`` then say what is missing.
    low, high
        Of the interval; None where there is one block of time only, or blocks are no unit of the number (RankMe).
    cases, blocks
        How many cases, of how many blocks of time (convective days or events), the number is made of.
    more
        Further numbers about the same cases.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    cases: int = 0
    blocks: int = 0
    words: str = ""
    more: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.value is None:
            return self.words
        interval = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{interval}"


@dataclass(frozen=True)
class Row:
    """One question, answered for every kind of vectors.

    Attributes
    ----------
    section
        ``"spread"``, ``"retrieval"``, ``"forecast"``, ``"probe"``, ``"leak"`` or ``"choice"``.
    measure, better
        What the numbers are, and whether ``"higher"`` or ``"lower"`` is better (``""``: neither).
    cells
        By the name of the vectors.
    gain
        By how much the first vectors are better than the best baseline, on the same draws of days. None where there
        is no baseline.
    baseline
        Name of that baseline.
    """

    section: str
    question: str
    measure: str
    cells: Mapping[str, Cell]
    better: str = "higher"
    gain: Cell | None = None
    baseline: str = ""

    @property
    def words(self) -> str:
        """The words of all cells, where they share them and none has a number."""
        words = {cell.words for cell in self.cells.values()}
        return words.pop() if len(words) == 1 and all(c.value is None for c in self.cells.values()) else ""


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
        What is left out, and why.
    """

    about: Mapping[str, Any]
    rows: tuple[Row, ...]
    chosen: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types. A missing number is None, next to its words.

        Returns
        -------
        Rows and parameters.
        """
        out = {"about": dict(self.about), "chosen": self.chosen, "notes": list(self.notes)}
        return out | {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        lines = [f"{n}: {', '.join(v) if isinstance(v, list) else v}" for n, v in self.about.items()]
        lines += [f"chosen: {self.chosen}"] if self.chosen else []
        for section, title in _SECTIONS.items():
            rows = [row for row in self.rows if row.section == section]
            lines += ["", title, *_table(rows)] if rows else []
        return "\n".join([*lines, "", *self.notes])


def _table(rows: list[Row]) -> list[str]:
    """Return the lines of one section: a column for each kind of vectors; words that all share appear once."""
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    gain = ["beside the best baseline"] if any(row.gain for row in rows) else []
    lines = [["", *names, *gain]]
    for row in rows:
        line = [f"  {row.question}"]
        if not row.words:
            line += [str(row.cells.get(name, "")) for name in names]
            line += [f"{row.gain} ({row.baseline})" if row.gain and row.gain.value is not None else ""]
        lines.append(line)
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    texts = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=False)) for line in lines]
    body = [f"{t}  {row.words}" if row.words else t.rstrip() for t, row in zip(texts[1:], rows, strict=True)]
    return body if all(row.words for row in rows) else [texts[0].rstrip(), *body]
