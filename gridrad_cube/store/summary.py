"""Describe the content of a store for people: a mapping of facts, as text, and as a table in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.schema import ATTRIBUTE, CHANNELS, Flag, counted, default_reject, printable
from gridrad_cube.store.integrity import store_info
from gridrad_cube.store.layout import STATUS, ChannelLayout
from gridrad_cube.store.orientation import Orientation, compare_grids, read_grids

#: Names and texts, or mappings of names to texts, in the order of display. JSON types.
Facts = dict[str, Any]

#: Crops whose flags, or positions, are read at once.
_CROPS_AT_ONCE = 16384
#: Different grids that are listed.
_GRIDS = 8
#: Statistics of a patch that the statistics of a part of a store are made of.
_STATISTICS = ("mean", "std", "minimum", "maximum", "valid_fraction", "echo_fraction")
#: Heights of a histogram's bins in text, none to most.
_BARS = " ▁▂▃▄▅▆▇█"


def describe(dataset: xr.Dataset) -> Facts:
    """Describe the content of a store, or of a part of one. Reads no pixels and no embeddings.

    Parameters
    ----------
    dataset
        A store, or a part of one.

    Returns
    -------
    Texts by name: kind, counts, time span, extent, completeness; ``variables``, ``statistics`` of clean
    patches (of
    the whole store, with their histogram) and ``flags`` are mappings themselves.
    """
    info = store_info(dataset) if ATTRIBUTE in dataset.attrs else {}
    whole = "crop" in dataset.dims
    dims = (
        {d for d in dataset.variables["time"].dims if d != "crop"} if "time" in dataset.variables else set()
    )
    if not {"time", "latitude", "longitude"} <= set(dataset.variables) or not (
        whole or (len(dims) == 1 and info)
    ):
        return {"kind": "an answer or a part of a store", "sizes": _sizes(dataset.sizes)}
    embeddings = "embedding" in dataset.data_vars
    kind = f"embeddings of level {info.get('level', '?')}" if embeddings else "cube of patches"
    out: Facts = {"kind": kind if whole else f"selection from {kind}"}
    if dataset.encoding.get("source"):
        out["store"] = str(dataset.encoding["source"])
    if not whole:
        out["samples"] = (
            f"{_sizes({d: dataset.sizes[d] for d in dims})}, from {counted(_crops_of(dataset), 'crop')}"
        )
        out |= {"time": _span(dataset), "place": _extent(dataset)}
        return out | _channels(dataset, info, embeddings)
    out |= {"crops": _crops(dataset), "time": _span(dataset), "place": _extent(dataset)}
    if embeddings:
        out["samples"] = _sizes({d: n for d, n in dataset["embedding"].sizes.items() if d != "feature"})
        if "orientation" in info:
            out["inputs were"] = str(info["orientation"])
        out["checkpoint"] = str(info.get("checkpoint", "?"))
    else:
        rows, cols = (dataset.sizes.get(dim, "?") for dim in ("row", "col"))
        out["patches"] = f"{rows} x {cols} of {info.get('patch', '?')} px a crop"
        out |= _grids(dataset)
        out["codec"] = str(info.get("recipe", {}).get("codec", "?"))
        out["identity"] = str(info.get("identity", "?"))
        if "thresholds_of" in info:
            some, every = info["thresholds_of"]
            again = "; gridrad-cube reflag computes them again from all" if some < every else ""
            out["thresholds"] = f"of global_outlier, from {some} of {every} scenes{again}"
        if info.get("withdrawn"):
            out["withdrawn"] = f"{len(info['withdrawn'])} sources: {', '.join(info['withdrawn'])}"
    return out | _channels(dataset, info, embeddings)


def _channels(dataset: xr.Dataset, info: Mapping[str, Any], embeddings: bool) -> Facts:
    """Return the variables, statistics and flags of a store, or of a part of it."""
    out: Facts = {}
    others: list[str] = []
    if embeddings:
        flags = {"embedding": "flags"}
    else:
        names = [str(n) for n, v in dataset.data_vars.items() if {"y", "x"} <= set(v.dims)]
        kinds = {n: ChannelLayout.from_dict(n, c).channel.kind for n, c in info.get("channels", {}).items()}
        others = [n for n in names if kinds.get(n) == "other"]
        flags = {n: f"{n}_flags" for n in names if n not in others}
    out["variables"] = {n: f"{_sizes(dataset[n].sizes)}, {_type(dataset[n])}" for n in [*flags, *others]}
    found = info.get("training_statistics", {})
    out["statistics"] = {
        label: _statistics(dataset, label, s) for label, s in found.items() if label.split("@")[0] in flags
    }
    out["flags"] = {n: _flags(dataset[f]) for n, f in flags.items() if f in dataset.variables}
    out["other channels"] = {n: _presence(dataset, n) for n in others}
    return {name: value for name, value in out.items() if value != {}}


def _crops_of(dataset: xr.Dataset) -> int:
    """Return how many crops the samples of a selection come from."""
    return len(np.unique(dataset["crop"].values)) if "crop" in dataset.variables else 0


def _sizes(sizes: Mapping[Any, int]) -> str:
    return " x ".join(f"{n} {d}" for d, n in sizes.items())


def _type(array: xr.DataArray) -> str:
    return f"{array.dtype}, {array.attrs.get('units', '1')}, {array.nbytes / 2**20:,.1f} MiB"


def _crops(dataset: xr.Dataset) -> str:
    """Return how many crops there are, and how many of them hold data."""
    count = dataset.sizes["crop"]
    if "status" not in dataset.variables:
        return str(count)
    status = dataset["status"].values
    parts = {name: int((status == code).sum()) for name, code in STATUS.items()}
    done = f", {parts['written'] / count:.1%} complete" if count else ""
    return (", ".join(f"{n} {name}" for name, n in parts.items() if n) or "none") + done


def _span(dataset: xr.Dataset) -> str:
    times = dataset["time"].values.astype("datetime64[s]")
    known = np.unique(times[~np.isnat(times)])
    return f"{known[0]} to {known[-1]} UTC, {counted(len(known), 'time')}" if len(known) else "none"


def _extent(dataset: xr.Dataset) -> str:
    ranges = []
    for name in ("latitude", "longitude"):
        parts = (part[np.isfinite(part)] for part in _blocks(dataset[name]))
        known = [(part.min(), part.max()) for part in parts if part.size]
        if not known:
            return "none"
        lowest, highest = zip(*known, strict=True)
        ranges.append(f"{min(lowest):.2f} to {max(highest):.2f}")
    return f"patch centers at latitudes {ranges[0]}, longitudes {ranges[1]}"


def _blocks(array: xr.DataArray) -> Iterator[np.ndarray]:
    """Yield the values of an array, a bounded number of crops at a time."""
    if "crop" not in array.dims:
        yield array.values
        return
    for start in range(0, array.sizes["crop"], _CROPS_AT_ONCE):
        yield array.isel(crop=slice(start, start + _CROPS_AT_ONCE)).values


def _grids(dataset: xr.Dataset) -> Facts:
    """Return the source grids of a cube, how they differ, and which crops lie otherwise than north up and
    east right.
    """
    grids, count = read_grids(dataset)
    shown = "; ".join(map(str, grids[:_GRIDS])) + ("; ..." if len(grids) > _GRIDS else "")
    out: Facts = {"grids": f"{count}: {shown}"} if grids else {}
    if problem := compare_grids(grids):
        out["scenes differ"] = f"{problem}; a network treats them as one scale"
    if {"row", "col"} <= set(dataset.dims):
        flips = Orientation(dataset).of(np.arange(dataset.sizes["crop"]))
        order = ["south first"] * bool(flips[:, 0].any()) + ["east first"] * bool(flips[:, 1].any())
        turned = f"{flips.any(axis=1).sum()} crops are {' or '.join(order)}, and are turned for networks and pictures"
        out["orientation"] = turned if order else "north first, west first"
    return out


def _statistics(dataset: xr.Dataset, label: str, found: Mapping[str, Any]) -> str:
    """Return the statistics of clean patches, with their histogram over the typical range of the channel.

    Of a part of a store, the statistics describe its clean patches only, and have no histogram.
    """
    flags, numbers = _of_label(dataset, label)
    kind = CHANNELS[label.split("@")[0]].kind
    counts = _count_flags(flags)
    clean = int(counts[(np.arange(len(counts)) & int(default_reject(kind))) == 0].sum())
    if clean != found.get("patches"):
        return _own_statistics(flags, numbers, clean, int(default_reject(kind)))
    if found.get("mean") is None:
        return "no clean patch"
    low, high = CHANNELS[label.split("@")[0]].typical_range
    pairs = np.reshape(found["histogram"], (-1, 2)).sum(axis=1)  # 32 characters wide
    share = pairs / max(pairs.max(), 1)
    bars = "".join(_BARS[math.ceil(s * (len(_BARS) - 1))] for s in share)
    return (
        f"{found['patches']} clean patches, mean {found['mean']:.4g}, std {found['std']:.4g}, {found['minimum']:.4g} "
        f"to {found['maximum']:.4g}, {low:g} |{bars}| {high:g}"
    )


def _of_label(dataset: xr.Dataset, label: str) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """Return the flags and the statistics of the patches of a label, which may name an altitude."""
    name, _, altitude = label.partition("@")
    known = (f"{name}_{n}" for n in ("flags", *_STATISTICS))
    arrays = {n.removeprefix(f"{name}_"): dataset[n] for n in known if n in dataset.variables}
    if altitude:
        heights = np.atleast_1d(dataset["altitude"].values)
        level = int(np.abs(heights - float(altitude.removesuffix("km"))).argmin())
        arrays = {n: v.isel(altitude=level) if "altitude" in v.dims else v for n, v in arrays.items()}
    return arrays.pop("flags", xr.DataArray(np.zeros(0, np.uint16), dims="crop")), arrays


def _own_statistics(flags: xr.DataArray, numbers: dict[str, xr.DataArray], clean: int, reject: int) -> str:
    """Return statistics of the clean patches of a part of a store, from those of each patch."""
    if not clean or not set(_STATISTICS[:4]) <= set(numbers):
        return f"{clean or 'no'} clean patch{'es' * (clean > 1)}"
    bits = flags.values
    known = np.isfinite(bits)
    use = known & ((np.where(known, bits, 0).astype(np.int64) & reject) == 0)
    mean, std, low, high = (numbers[n].values[use].astype(np.float64) for n in _STATISTICS[:4])
    share = numbers.get("echo_fraction", numbers.get("valid_fraction"))
    weight = np.ones(len(mean)) if share is None else share.values[use].astype(np.float64)
    weight = np.where(np.isfinite(mean), weight, 0.0)
    if not weight.sum():
        return f"{clean} clean patches"
    center = np.average(np.nan_to_num(mean), weights=weight)
    spread = np.average(np.nan_to_num(std) ** 2 + np.nan_to_num(mean - center) ** 2, weights=weight) ** 0.5
    words = f"mean {center:.4g}, std {spread:.4g}, {np.nanmin(low):.4g} to {np.nanmax(high):.4g}"
    return f"{clean} clean patch{'es' * (clean > 1)}, {words}"


def _count_flags(flags: xr.DataArray) -> np.ndarray:
    """Return how many patches have each combination of flags; patches that are masked (NaN) do not count."""
    counts = np.zeros(2**16, np.int64)
    for part in _blocks(flags):
        values = part.reshape(-1)
        values = values[np.isfinite(values)].astype(np.int64)
        counts += np.bincount(values, minlength=len(counts))
    return counts


def _flags(flags: xr.DataArray) -> str:
    """Return the share of patches without a flag, and of each flag that occurs."""
    counts = _count_flags(flags)
    masks = np.arange(len(counts))
    numbers = {"no flag": counts[0]} | {str(f.name): counts[(masks & f) != 0].sum() for f in Flag}
    total = max(counts.sum(), 1)
    return ", ".join(f"{name} {n / total:.1%}" for name, n in numbers.items() if n or name == "no flag")


def _presence(dataset: xr.Dataset, name: str) -> str:
    """Return the number of patches in which a channel of kind ``other`` has values, in words."""
    array, fraction = dataset[name], dataset[f"{name}_valid_fraction"].values
    units = [array.attrs["units"]] if array.attrs["units"] != "1" else []
    return ", ".join([str(array.dtype), *units, f"in {int((fraction > 0).sum())} of {fraction.size} patches"])


def as_text(facts: Facts) -> str:
    """Return facts as lines of text.

    Parameters
    ----------
    facts
        Texts by name, as of `describe`.

    Returns
    -------
    Text of several lines.
    """
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            width = max(map(len, value), default=0)
            lines += [f"{name}:", *(printable(f"  {key:{width}}  {text}") for key, text in value.items())]
        else:
            lines.append(printable(f"{name}: {value}"))
    return "\n".join(lines)


def as_html(facts: Facts) -> str:
    """Return facts as an HTML table. All texts are escaped, because names come from files.

    Parameters
    ----------
    facts
        Texts by name, as of `describe`.

    Returns
    -------
    HTML.
    """

    def text(value: Any) -> str:
        if not isinstance(value, Mapping):
            return html.escape(str(value))
        return "".join(f"<div><b>{text(k)}</b>&ensp;{text(v)}</div>" for k, v in value.items())

    rows = [
        f"<tr><th style='text-align:left;vertical-align:top'>{text(name)}</th>"
        f"<td style='text-align:left'>{text(value)}</td></tr>"
        for name, value in facts.items()
    ]
    return f"<table>{''.join(rows)}</table>"
