"""Write answers as a table to read, a pandas DataFrame, and files: CSV, JSON, GeoJSON, GeoParquet, netCDF."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from gridrad_cube.schema import SchemaError, printable
from gridrad_cube.storage import open_for_writing

#: Possible columns of an answer, in this order.
_COLUMNS = (
    "query", "rank", "crop", "row", "col", "channel", "time", "latitude", "longitude", "score", "percentile", "event",
    "distance", "time_difference", "source", "y_start", "y_stop", "x_start", "x_stop", "scene", "flags",
)  # fmt: skip
#: Columns of the printed table, with the format of numbers.
_TABLE = {
    "query": "{}", "rank": "{}", "crop": "{}", "row": "{}", "col": "{}", "channel": "{}", "time": "{}",
    "latitude": "{:.3f}", "longitude": "{:.3f}", "score": "{:.4f}", "percentile": "{:.1f}", "distance": "{:.1f}",
    "source": "{}", "window": "{}",
}  # fmt: skip
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def to_dataframe(answer: xr.Dataset) -> pd.DataFrame:
    """Convert an answer to a table with one row for each sample.

    Parameters
    ----------
    answer
        An answer of `search`, `analogues`, `within`, `track`, `follow` or `at`.

    Returns
    -------
    Rank, crop, row, column, channel, time (UTC), position, score, percentile, source file, pixel window and flags, as
    far as the answer has them. ``time_difference`` is in seconds.

    Raises
    ------
    SchemaError
        If this is not an answer.
    """
    if "y_start" not in answer.variables:
        raise SchemaError(
            "expected an answer of search, analogues, within, track, follow or at (with a place)"
        )
    dims = answer["y_start"].dims
    if "query" in dims and "query" not in answer.variables:
        answer = answer.assign_coords(query=np.arange(answer.sizes["query"]))
    columns = {}
    for name in _COLUMNS:
        if name in answer.variables and set(answer[name].dims) <= set(dims):
            values = answer[name].broadcast_like(answer["y_start"]).transpose(*dims).values.reshape(-1)
            if values.dtype == np.float32:  # the shortest text of a float32, not the float64 digits behind it
                values = values.astype(str).astype(float)
            elif values.dtype.kind == "M":
                values = pd.to_datetime(values, utc=True)
            elif values.dtype.kind == "m":
                values = values / np.timedelta64(1, "s")
            columns[name] = values
    frame = pd.DataFrame(columns)
    # A query of a batch may have fewer answers than others.
    return frame[frame["crop"] >= 0].reset_index(drop=True) if "crop" in frame else frame


def format_answer(answer: xr.Dataset) -> str:
    """Write an answer as an aligned table: which samples, when, where, how similar, and the window of the source file.

    If samples were compared after a readout, a last line names it.

    Parameters
    ----------
    answer
        An answer of `search`, `analogues`, `within`, `track`, `follow` or `at`.

    Returns
    -------
    Text of several lines.

    Raises
    ------
    SchemaError
        If this is not an answer; see `to_dataframe`.
    """
    frame = to_dataframe(answer)
    rows = frame.to_dict("records")
    window = [f"y {r['y_start']}:{r['y_stop']} x {r['x_start']}:{r['x_stop']}" for r in rows]
    frame = frame.assign(window=window, time=frame["time"].dt.strftime(_TIME))
    lines = []
    for name in (n for n in _TABLE if n in frame):
        cells = ["-" if pd.isna(value) else _TABLE[name].format(value) for value in frame[name]]
        cells = [name, *map(printable, cells)]
        width = max(map(len, cells))
        number = pd.api.types.is_numeric_dtype(frame[name])
        lines.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    table = ["  ".join(row).rstrip() for row in zip(*lines, strict=True)]
    if "readout" in answer.attrs:
        table.append(f"readout: {printable(answer.attrs['readout'])}")
    return "\n".join(table)


def _as_cell(value: Any) -> Any:
    """Return a value as a spreadsheet shows it: text that would be taken for a formula begins with an apostrophe."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def write_answer(answer: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write an answer to a file in the format of its suffix.

    ``.csv`` and ``.json`` hold the rows of `to_dataframe`, with times as UTC text and missing numbers as null
    (empty in CSV). In CSV, text that a spreadsheet would take for a formula begins with an apostrophe.
    ``.geojson`` is a collection of points with the rows as properties. ``.parquet`` is GeoParquet 1.1 with patch
    centers as points, and needs the extra ``geo``. ``.nc`` is the Dataset itself, as netCDF.

    Parameters
    ----------
    answer
        An answer of `search`, `analogues`, `within`, `track`, `follow` or `at`.
    path
        Path of the file; its suffix chooses the format.

    Raises
    ------
    SchemaError
        If the suffix is unknown, a package is missing, or this is not an answer.
    """
    suffixes = (".csv", ".json", ".geojson", ".parquet", ".nc")
    path = Path(path)
    if path.suffix not in suffixes:
        raise SchemaError(f"{path}: got suffix {path.suffix!r}; expected one of {', '.join(suffixes)}")
    with open_for_writing(path) as file:
        where, frame = Path(file.name), to_dataframe(answer) if path.suffix != ".nc" else pd.DataFrame()
        if path.suffix == ".nc":
            answer.to_netcdf(where)
        elif path.suffix == ".csv":
            frame = frame.map(_as_cell).rename(columns=_as_cell)
            frame.to_csv(where, index=False, date_format=_TIME, lineterminator="\n")
        elif path.suffix == ".parquet":
            _write_parquet(answer, frame, where)
        else:
            frame = frame.assign(time=frame["time"].dt.strftime(_TIME)).astype(object)
            records: Any = frame.where(frame.notna(), None).to_dict("records")
            records = _as_geojson(records) if path.suffix == ".geojson" else records
            where.write_text(json.dumps(records, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _as_geojson(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the GeoJSON (RFC 7946): patch centers in degrees of WGS 84, longitude first."""
    features = []
    for row in records:
        point = [row.pop("longitude"), row.pop("latitude")]
        geometry = None if None in point else {"type": "Point", "coordinates": point}
        features.append({"type": "Feature", "geometry": geometry, "properties": row})
    return {"type": "FeatureCollection", "features": features}


def _write_parquet(answer: xr.Dataset, frame: pd.DataFrame, path: Path) -> None:
    """Write GeoParquet 1.1. Attributes of the answer (query, store, checkpoint) go to the metadata
    ``gridrad_cube``.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise SchemaError(
            f"{path}: pyarrow is not installed. Run pip install 'gridrad-cube[geo]', or write another format."
        ) from error
    points = frame[["longitude", "latitude"]].to_numpy(float)
    known = np.isfinite(points).all(axis=1)
    # Well-known binary of a point: byte order, kind 1, x, y.
    shapes = [
        struct.pack("<BIdd", 1, 1, *p) if k else None for p, k in zip(points.tolist(), known, strict=True)
    ]
    geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
    if known.any():
        geometry["bbox"] = [*points[known].min(axis=0).tolist(), *points[known].max(axis=0).tolist()]
    said = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    origin = {n: v for n, v in answer.attrs.items() if isinstance(v, (str, int, float, list))}
    table = pyarrow.Table.from_pandas(frame.assign(geometry=shapes), preserve_index=False)
    metadata = {"geo": json.dumps(said), "gridrad_cube": json.dumps(origin)}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")
