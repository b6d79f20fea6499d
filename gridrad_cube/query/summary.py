"""What a store holds, for people: as a mapping, as text, and as a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.query.samples import CROPS_AT_ONCE, is_embeddings, sample_dims
from gridrad_cube.schema import Flag
from gridrad_cube.store import STATUS, store_info


class Facts(dict[str, Any]):
    """Names and texts about a store, in the order in which they are shown."""

    def __repr__(self) -> str:
        lines = []
        for name, value in self.items():
            if isinstance(value, Mapping):
                lines += [f"{name}:", *(f"  {key}: {text}" for key, text in value.items())]
            else:
                lines.append(f"{name}: {value}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table. Everything is escaped: names come from files."""
        rows = []
        for name, value in self.items():
            several = value.items() if isinstance(value, Mapping) else ()
            inner = "".join(
                f"<div><b>{html.escape(str(k))}</b>&ensp;{html.escape(str(v))}</div>" for k, v in several
            )
            rows.append(
                f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
                f"<td style='text-align:left'>{inner or html.escape(str(value))}</td></tr>"
            )
        return f"<table>{''.join(rows)}</table>"


def describe(dataset: xr.Dataset) -> Facts:
    """What a store holds: kind, variables, counts, time span, completeness, flags. Reads no pixels, no embeddings.

    Returns
    -------
    Names and texts, in the order in which they are shown; ``variables`` and ``flags`` are mappings themselves.

    Raises
    ------
    SchemaError
        If the dataset is no store.
    """
    if not _is_store(dataset):
        return Facts(kind="an answer or a part of a store", sizes=_sizes(dataset.sizes))
    embeddings = is_embeddings(dataset)
    info = store_info(dataset) if "gridrad_cube" in dataset.attrs else {}
    out = Facts(kind=f"embeddings of level {info.get('level', '?')}" if embeddings else "cube of patches")
    if dataset.encoding.get("source"):
        out["store"] = str(dataset.encoding["source"])
    out["crops"] = _crops(dataset)
    out["time"] = _span(dataset)
    out["place"] = _extent(dataset)
    if embeddings:
        out["samples"] = " x ".join(f"{dataset.sizes[d]} {d}" for d in sample_dims(dataset))
        out["checkpoint"] = str(info.get("checkpoint", "?"))
    else:
        out["patches"] = (
            f"{dataset.sizes['row']} x {dataset.sizes['col']} of {info.get('patch', '?')} px a crop"
        )
    names = ["embedding"] if embeddings else _channels(dataset)
    out["variables"] = {str(n): f"{_sizes(dataset[n].sizes)}, {_unit(dataset[n])}" for n in names}
    flags = {"embedding": "flags"} if embeddings else {n: f"{n}_flags" for n in names}
    out["flags"] = {n: _flags(dataset, f) for n, f in flags.items() if f in dataset.variables}
    return out


def _is_store(dataset: xr.Dataset) -> bool:
    return "crop" in dataset.dims and {"time", "latitude", "longitude"} <= set(dataset.variables)


def _channels(dataset: xr.Dataset) -> list[str]:
    return [str(n) for n, v in dataset.data_vars.items() if {"crop", "y", "x"} <= set(v.dims)]


def _sizes(sizes: Mapping[Any, int]) -> str:
    return " x ".join(f"{n} {d}" for d, n in sizes.items())


def _unit(array: xr.DataArray) -> str:
    return f"{array.dtype}, {array.attrs.get('units', '1')}, {array.nbytes / 2**20:,.1f} MiB decoded"


def _crops(dataset: xr.Dataset) -> str:
    """How many crops there are, and how many of them hold data."""
    count = dataset.sizes["crop"]
    if "status" not in dataset.variables:
        return str(count)
    status = dataset["status"].values
    parts = {name: int((status == code).sum()) for name, code in STATUS.items()}
    done = f", {parts['written'] / count:.1%} complete" if count else ""
    return ", ".join(f"{n} {name}" for name, n in parts.items() if n) + done


def _span(dataset: xr.Dataset) -> str:
    times = dataset["time"].values.astype("datetime64[s]")
    known = np.unique(times[~np.isnat(times)])
    return f"{known[0]} to {known[-1]} UTC, {len(known)} times" if len(known) else "none"


def _extent(dataset: xr.Dataset) -> str:
    lat, lon = (dataset[n].values for n in ("latitude", "longitude"))
    if not np.isfinite(lat).any():
        return "none"
    return (
        f"patch centres at latitudes {np.nanmin(lat):.2f} to {np.nanmax(lat):.2f}, "
        f"longitudes {np.nanmin(lon):.2f} to {np.nanmax(lon):.2f}"
    )


def _flags(dataset: xr.Dataset, name: str) -> str:
    """Share of each flag that occurs, and of what has none."""
    variable = dataset[name].variable
    counts, clear, total = dict.fromkeys(Flag, 0), 0, 0
    for start in range(0, dataset.sizes["crop"], CROPS_AT_ONCE):
        values = variable.isel(crop=slice(start, start + CROPS_AT_ONCE)).values
        kinds, numbers = np.unique(values, return_counts=True)
        total += values.size
        for kind, number in zip(kinds.tolist(), numbers.tolist(), strict=True):
            clear += number if kind == 0 else 0
            for flag in Flag:
                counts[flag] += number if kind & int(flag) else 0
    shares = [f"no flag {clear / max(total, 1):.1%}"]
    shares += [f"{flag.name} {n / total:.1%}" for flag, n in counts.items() if n]
    return ", ".join(shares)
