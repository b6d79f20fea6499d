"""Answers as text and files: a table to read; JSON, CSV, GeoJSON and GeoParquet to go on with."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import struct
from typing import Any, Literal

import numpy as np
import xarray as xr

from gridrad_cube.schema import SchemaError

Style = Literal["table", "json", "csv", "geojson"]

#: Columns of records, as far as an answer has them, in this order.
FIELDS = (
    "query", "rank", "score", "percentile", "event", "distance", "time_difference", "time", "latitude", "longitude",
    "channel", "crop", "row", "col", "source", "scene", "y_start", "y_stop", "x_start", "x_stop", "flags",
)  # fmt: skip
#: Dims of answers.
_LINES = (("rank",), ("query", "rank"), ("patch",), ("time",), ("point",))
_TABLE = (
    "query",
    "rank",
    "score",
    "percentile",
    "distance",
    "time",
    "latitude",
    "longitude",
    "channel",
    "source",
    "window",
)
_DECIMALS = {"score": 4, "percentile": 1, "distance": 1, "latitude": 3, "longitude": 3}


def format_answer(answer: xr.Dataset, style: Style = "table") -> str:
    """Write an answer of `search`, `within`, `track`, `follow` or `at` as text, without a last line feed.

    Parameters
    ----------
    style
        ``"table"``: rank, score, time, latitude, longitude, channel, source and pixel window, aligned.
        ``"json"``: a list of records. ``"csv"``: the records with a line of names first. Records hold all
        coordinates; times are UTC with a Z; a number that is missing is null, or empty in CSV. ``"geojson"``: a
        collection of points, the records as their properties.

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
    if style == "geojson":
        return json.dumps(_features(rows), indent=1, allow_nan=False, ensure_ascii=False)
    if style == "table":
        return _table(rows)
    raise SchemaError(f"style: got {style!r}; expected table, json, csv or geojson")


def _features(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Records as GeoJSON (RFC 7946): patch centres in degrees of WGS 84, longitude first."""
    features = []
    for row in rows:
        point = [row["longitude"], row["latitude"]]
        geometry = None if None in point else {"type": "Point", "coordinates": point}
        properties = {name: value for name, value in row.items() if name not in ("longitude", "latitude")}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def write_geoparquet(answer: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write an answer as GeoParquet 1.1: the records as columns, patch centres as points. Needs the extra ``geo``.

    Attributes of the answer (query, store, checkpoint) are kept in the file's metadata as ``gridrad_cube``.

    Raises
    ------
    SchemaError
        If pyarrow is not installed, or this is no answer.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise SchemaError(
            "geoparquet: pyarrow is not installed. Run pip install 'gridrad-cube[geo]', or take another format."
        ) from error
    rows = records(answer)
    points = [(row["longitude"], row["latitude"]) for row in rows]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    if "time" in columns:
        seconds = [
            t and int(np.datetime64(t.removesuffix("Z"), "s").astype(np.int64)) for t in columns["time"]
        ]
        columns["time"] = pyarrow.array(seconds, pyarrow.int64()).cast(pyarrow.timestamp("s", tz="UTC"))
    # Well-known binary of a point: byte order, kind 1, x, y.
    columns["geometry"] = [None if None in p else struct.pack("<BIdd", 1, 1, *p) for p in points]
    known = [p for p in points if None not in p]
    geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
    if known:
        (west, south), (east, north) = np.min(known, axis=0).tolist(), np.max(known, axis=0).tolist()
        geometry["bbox"] = [west, south, east, north]
    said = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    origin = {
        name: value for name, value in answer.attrs.items() if isinstance(value, (str, int, float, list))
    }
    metadata = {"geo": json.dumps(said), "gridrad_cube": json.dumps(origin)}
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, path, compression="zstd")


def records(answer: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a sample: numbers, text and None.

    Raises
    ------
    SchemaError
        If this is no answer, or one with several samples side by side.
    """
    if "y_start" not in answer.variables or answer["y_start"].dims not in ((), *_LINES):
        raise SchemaError(
            "format_answer: expected an answer of search, analogues, within, track, follow or at (with a place)"
        )
    dims = answer["y_start"].dims
    if "query" in dims and "query" not in answer.variables:
        answer = answer.assign_coords(query=np.arange(answer.sizes["query"]))
    columns = {}
    for name in FIELDS:
        if name in answer.variables and set(answer[name].dims) <= set(dims):
            column = answer[name].broadcast_like(answer["y_start"]).transpose(*dims)
            columns[name] = column.values.reshape(-1)
    out = [
        {name: _plain(name, value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
    return [row for row in out if row.get("crop", 0) >= 0]  # a query of a batch may have fewer answers


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
