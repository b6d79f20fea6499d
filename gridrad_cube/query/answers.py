"""Answers as text: a table to read, JSON and CSV to go on with."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any, Literal

import numpy as np
import xarray as xr

from gridrad_cube.schema import SchemaError

Style = Literal["table", "json", "csv"]

#: Columns of records, as far as an answer has them, in this order.
FIELDS = (
    "rank", "score", "distance", "time_difference", "time", "latitude", "longitude", "channel", "crop", "row", "col",
    "source", "scene", "y_start", "y_stop", "x_start", "x_stop", "flags",
)  # fmt: skip
_TABLE = ("rank", "score", "distance", "time", "latitude", "longitude", "channel", "source", "window")
_DECIMALS = {"score": 4, "distance": 1, "latitude": 3, "longitude": 3}


def format_answer(answer: xr.Dataset, style: Style = "table") -> str:
    """Write an answer of `search`, `within`, `track`, `follow` or `at` as text, without a last line feed.

    Parameters
    ----------
    style
        ``"table"``: rank, score, time, latitude, longitude, channel, source and pixel window, aligned.
        ``"json"``: a list of records. ``"csv"``: the records with a line of names first. Records hold all
        coordinates; times are UTC with a Z; a number that is missing is null, or empty in CSV.

    Raises
    ------
    SchemaError
        If the style or the answer is none.
    """
    rows = records(answer)
    if style == "json":
        return json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False)
    if style == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    if style == "table":
        return _table(rows)
    raise SchemaError(f"style: got {style!r}; expected table, json or csv")


def records(answer: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a sample: numbers, text and None.

    Raises
    ------
    SchemaError
        If this is no answer, or one with several samples side by side.
    """
    if "y_start" not in answer.variables or answer["y_start"].ndim > 1:
        raise SchemaError(
            "format_answer: expected an answer of search, within, track, follow or at (with a place)"
        )
    dims = answer["y_start"].dims
    columns = {}
    for name in FIELDS:
        if name in answer.variables and answer[name].dims in (dims, ()):
            columns[name] = np.broadcast_to(answer[name].values, [answer.sizes[d] for d in dims]).reshape(-1)
    return [
        {name: _plain(name, value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else np.datetime_as_string(value, "s") + "Z"
    if isinstance(value, np.timedelta64):
        return float(value / np.timedelta64(1, "s"))
    if isinstance(value, (float, np.floating)):
        # The shortest text of a float32, not the float64 digits behind it.
        return float(str(value)) if math.isfinite(value) else None
    return int(value) if isinstance(value, (int, np.integer)) else str(value)


def _table(rows: list[dict[str, Any]]) -> str:
    for row in rows:
        row["window"] = f"y {row['y_start']}:{row['y_stop']} x {row['x_start']}:{row['x_stop']}"
    names = [n for n in _TABLE if rows and n in rows[0]]
    cells = [names] + [[_cell(name, row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    right = [bool(rows) and isinstance(rows[0][name], (int, float)) for name in names]
    lines = [
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{_DECIMALS.get(name, 3)}f}"
    # Names of files come from outside: nothing in them may move the cursor or break a line.
    return "".join(c if c.isprintable() else "?" for c in str(value))
