"""What a store or a source file holds, in a few lines."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gridrad_cube import readers, store
from gridrad_cube.schema import CHANNELS, SchemaError


@dataclass(frozen=True)
class Summary:
    """Facts about a store or a file, in the order in which they are shown."""

    target: str
    kind: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.target}: {self.kind}"]
        for name, value in self.facts.items():
            if isinstance(value, Mapping):
                lines.append(f"  {name}:")
                width = max((len(k) for k in value), default=0)
                lines += [f"    {key:{width}}  {text}" for key, text in value.items()]
            else:
                lines.append(f"  {name}: {value}")
        return "\n".join(lines)


def inspect_target(target: str | os.PathLike[str]) -> Summary:
    """Describe a store (cube or embeddings) or a source file; reads no pixels.

    Raises
    ------
    FileNotFoundError
        If there is nothing at this place.
    SchemaError
        If it is neither a store of ours nor a netCDF file.
    """
    path = Path(os.fspath(target))
    if path.is_file():
        return _file(path)
    info = store.store_info(target)
    return _cube(target, info) if info["kind"] == "patches" else _embeddings(target, info)


def _file(path: Path) -> Summary:
    attributes, variables = readers.list_contents(path)
    try:
        header = readers.inspect(path)
    except SchemaError as error:  # any netCDF file can be looked into
        facts: dict[str, Any] = {"format": f"no scene that a reader knows: {error}"}
    else:
        facts = {
            "format": header.format,
            "time": str(header.time),
            "shape": f"{header.shape[0]} x {header.shape[1]} pixels",
            "channels": ", ".join(header.channels),
            "grid": header.grid_id,
            "product": header.product,
        }
        if header.further:
            facts["further channels (--channels)"] = ", ".join(header.further)
    facts["variables"] = {name: _variable(variable) for name, variable in variables.items()}
    facts["attributes"] = {name: _one_line(value) for name, value in attributes.items()}
    return Summary(str(path), "source file", facts)


def _variable(variable: Any) -> str:
    dims = ", ".join(f"{d} {n}" for d, n in zip(variable.dims, variable.shape, strict=True))
    units, name = (variable.attributes.get(k) for k in ("units", "long_name"))
    words = [_one_line(word) for word in (name, units and f"[{units}]") if word]
    return f"{variable.dtype.name} ({dims})" + (f"  {' '.join(words)}" if words else "")


def _one_line(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _span(times: np.ndarray) -> str:
    known = times[~np.isnat(times)]
    return f"{known.min()} to {known.max()} UTC" if known.size else "no time"


def _cube(target: str | os.PathLike[str], info: Mapping[str, Any]) -> Summary:
    cube = store.open_packed(target)
    status = cube["status"].values
    counts = {name: int((status == code).sum()) for name, code in store.STATUS.items()}
    rows, cols = (edge // info["patch"] for edge in info["crop"])
    facts: dict[str, Any] = {
        "crops": ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none",
        "patches": f"{rows} x {cols} of {info['patch']} px in a crop of {info['crop'][0]} x {info['crop'][1]} px",
        "time": _span(cube["time"].values.astype("datetime64[s]")),
        "codec": info["recipe"]["codec"],
        "identity": info["identity"],
    }
    layout = {n: store.ChannelLayout.from_dict(n, about) for n, about in info["channels"].items()}
    for name in (n for n, channel in layout.items() if channel.channel.kind != "other"):
        facts[name] = _channel(cube, info, name)
    others = {n: _other(cube, n) for n, channel in layout.items() if channel.channel.kind == "other"}
    if others:
        facts["other channels"] = others
    return Summary(os.fspath(target), "cube of patches", facts)


#: Heights of a histogram's bins in text, none to most.
_BARS = " ▁▂▃▄▅▆▇█"


def _channel(cube: Any, info: Mapping[str, Any], name: str) -> dict[str, str]:
    """Units, clean statistics with their histogram over the typical range, and counts of flags."""
    out = {"units": str(cube[name].attrs.get("units", "1"))}
    low, high = CHANNELS[name].typical_range
    for label, statistics in info["training_statistics"].items():
        if label.split("@")[0] == name and statistics["mean"] is not None:
            out[f"clean {label}"] = (
                f"{statistics['patches']} patches, mean {statistics['mean']:.4g}, std {statistics['std']:.4g}, "
                f"{statistics['minimum']:.4g} to {statistics['maximum']:.4g}"
            )
            out[f"histogram {label}"] = f"{low:g} |{_bars(statistics['histogram'])}| {high:g}"
    counts = dict(info["flag_counts"][name])
    patches = counts.pop("patches")
    for flag, count in counts.items():
        if count:
            out[flag] = f"{count:>8} {count / patches:7.1%} {'#' * round(40 * count / patches)}"
    return out


def _bars(counts: Sequence[int]) -> str:
    pairs = np.asarray(counts, np.float64).reshape(-1, 2).sum(axis=1)  # 32 characters wide
    share = pairs / max(pairs.max(), 1.0)
    return "".join(_BARS[math.ceil(s * (len(_BARS) - 1))] for s in share)


def _other(cube: Any, name: str) -> str:
    variable, fraction = cube[name], cube[f"{name}_valid_fraction"].values
    units = [variable.attrs["units"]] if variable.attrs["units"] != "1" else []
    return ", ".join(
        [str(variable.dtype), *units, f"in {int((fraction > 0).sum())} of {fraction.size} patches"]
    )


def _embeddings(target: str | os.PathLike[str], info: Mapping[str, Any]) -> Summary:
    dataset = store.open_embeddings(target)
    facts = {
        "level": info["level"],
        "embeddings": " x ".join(f"{n} {d}" for d, n in dataset["embedding"].sizes.items()),
        "channels": ", ".join(str(c) for c in dataset["channel"].values),
        "time": _span(dataset["time"].values.astype("datetime64[s]")),
        "checkpoint": info["checkpoint"],
    }
    return Summary(os.fspath(target), "embeddings", facts)
