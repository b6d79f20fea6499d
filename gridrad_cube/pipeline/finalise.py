"""From the build log to a finished store: global flags, training statistics, attributes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gridrad_cube import quality, store
from gridrad_cube.pipeline import radar
from gridrad_cube.schema import (
    CHANNELS,
    Flag,
    QualitySpec,
    SchemaError,
    build_spec,
    channel_label,
    default_reject,
    statistics_of,
)


def finalise(build: store.Build, flag_by: QualitySpec | None = None) -> None:
    """Make the store from its build log: small variables, global flags, training statistics, then the root.

    Thresholds of global flags freeze at the first time; rows written later are judged by them. Can be run
    again at any time, with the same result.

    Parameters
    ----------
    flag_by
        Flag everything anew by these thresholds, from the stored statistics. None keeps those of the store.
    """
    assert build.recipe is not None
    assert build.layout is not None
    old = _old_attributes(build)
    kept = build_spec(QualitySpec, old["quality"]) if "quality" in old else build.recipe.quality
    flagging = flag_by or kept
    thresholds = old["thresholds"] if old and flag_by is None else _thresholds(build, flagging)
    training: dict[str, dict[str, Any]] = {}
    for rows in store.blocks(build):
        values = _gather(build, rows, flagging)
        for name in build.layout.channels:
            statistics = _statistics(values, name)
            outliers = quality.global_outliers(statistics, thresholds[name])
            values[f"{name}_flags"][outliers] |= np.uint16(Flag.global_outlier)
            _accumulate(training, build.layout.channels[name], values)
        store.write_block(build, rows, values)
    _add_histograms(build, training)
    radar_quality = radar.quality_spec(build.recipe.radar)
    attributes = {
        "Conventions": "CF-1.11",
        "title": "Crops and patches of gridded radar and satellite fields",
        "history": _history(build),
        "gridrad_cube": {
            "recipe": build.recipe.to_dict(),
            "channels": {n: c.to_dict() for n, c in build.layout.channels.items()},
            "crop": list(build.layout.crop),
            "patch": build.layout.patch,
            "quality": dataclasses.asdict(flagging),
            "thresholds": thresholds,
            "training_statistics": {label: _summary(t) for label, t in training.items()},
            "software": _software(),
            **({"radar_quality": radar_quality.to_dict()} if radar_quality and _has_radar(build) else {}),
            "identity": build.identity(),
            "build_state": build.state(),
        },
    }
    store.commit(build, attributes, store.report_columns(list(build.records())))


def _has_radar(build: store.Build) -> bool:
    return any(entry.format.startswith("gridrad") for entry in build.entries)


def _old_attributes(build: store.Build) -> dict[str, Any]:
    try:
        return store.cube_info(build.files.root)
    except (SchemaError, FileNotFoundError):  # not finished yet, or damaged
        return {}


def _statistics(values: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {statistic: values[f"{name}_{statistic}"] for statistic in statistics_of(CHANNELS[name])}


def _gather(build: store.Build, rows: range, flagging: QualitySpec) -> dict[str, np.ndarray]:
    """Every small variable of a block of rows, flagged by other thresholds than at writing if need be."""
    assert build.layout is not None
    assert build.recipe is not None
    values = store.gather(build, rows)
    if flagging == build.recipe.quality:
        return values
    angles = {
        name: values[name] for name in values if name.endswith(("zenith_angle", "zenith_angle_maximum"))
    }
    for name, channel in build.layout.channels.items():
        flags, _ = quality.reflag(
            values[f"{name}_flags"],
            _statistics(values, name),
            CHANNELS[name],
            channel.packing,
            flagging,
            pixels=build.layout.patch**2,
            angles=angles,
        )
        values[f"{name}_flags"] = flags & ~np.uint16(
            Flag.global_outlier
        )  # of the whole store, not of a block
    return values


def _thresholds(build: store.Build, flagging: QualitySpec) -> dict[str, Any]:
    assert build.layout is not None
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    for rows in store.blocks(build):
        values = _gather(build, rows, flagging)
        for name in build.layout.channels:
            mine = parts.setdefault(name, {})
            for key, value in (_statistics(values, name) | {"flags": values[f"{name}_flags"]}).items():
                mine.setdefault(key, []).append(value)
    out = {}
    for name, columns in parts.items():
        whole = {key: np.concatenate(v) for key, v in columns.items()}
        flags = whole.pop("flags")
        out[name] = quality.global_thresholds(whole, flags, CHANNELS[name], flagging)
    return out


def _accumulate(
    training: dict[str, dict[str, Any]], channel: store.ChannelLayout, values: Mapping[str, np.ndarray]
) -> None:
    """Add a block of rows to the sums over clean patches, per channel label, in float64."""
    kind = CHANNELS[channel.name].kind
    flags = values[f"{channel.name}_flags"]
    statistics = _statistics(values, channel.name)
    for level, altitude in enumerate(channel.altitudes_km or (None,)):
        pick = (slice(None), level) if altitude is not None else (slice(None),)
        clean = (flags[pick] & int(default_reject(kind))) == 0
        fraction = statistics["valid_fraction"][pick].astype(np.float64)
        if "echo_fraction" in statistics:
            fraction = fraction * statistics["echo_fraction"][pick]
        mean, std = (statistics[k][pick].astype(np.float64) for k in ("mean", "std"))
        use = clean & (fraction > 0) & np.isfinite(mean)
        weight = fraction[use]
        sums = training.setdefault(channel_label(channel.name, altitude), _zero_sums())
        sums["patches"] += int(clean.sum())
        sums["weight"] += float(weight.sum())
        sums["sum"] += float((weight * mean[use]).sum())
        sums["squares"] += float((weight * (std[use] ** 2 + mean[use] ** 2)).sum())
        if use.any():
            sums["minimum"] = min(sums["minimum"], float(statistics["minimum"][pick][use].min()))
            sums["maximum"] = max(sums["maximum"], float(statistics["maximum"][pick][use].max()))


def _zero_sums() -> dict[str, Any]:
    return {
        "patches": 0,
        "weight": 0.0,
        "sum": 0.0,
        "squares": 0.0,
        "minimum": np.inf,
        "maximum": -np.inf,
        "histogram": None,
    }


def _add_histograms(build: store.Build, training: dict[str, dict[str, Any]]) -> None:
    assert build.layout is not None
    for record in build.records():
        for crop in record["crops"]:
            packed = {k: v for k, v in crop["values"].items() if k.endswith("_histogram")}
            for key, counts in store.unpack_values(packed).items():
                channel = build.layout.channels[key.removesuffix("_histogram")]
                planes = counts.reshape(-1, counts.shape[-1])
                for altitude, plane in zip(channel.altitudes_km or (None,), planes, strict=True):
                    sums = training[channel_label(channel.name, altitude)]
                    sums["histogram"] = plane if sums["histogram"] is None else sums["histogram"] + plane


def _summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Training statistics of one channel label as JSON: None where nothing clean was seen."""
    weight = sums["weight"]
    if not weight:
        return {
            "patches": sums["patches"],
            "mean": None,
            "std": None,
            "minimum": None,
            "maximum": None,
            "histogram": None,
        }
    mean = sums["sum"] / weight
    std = float(np.sqrt(max(sums["squares"] / weight - mean**2, 0.0)))
    histogram = sums["histogram"]
    return {
        "patches": sums["patches"],
        "mean": mean,
        "std": std,
        "minimum": sums["minimum"],
        "maximum": sums["maximum"],
        "histogram": None if histogram is None else [int(c) for c in histogram],
    }


def _history(build: store.Build) -> str:
    old = ""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        old = build.files.read_json("zarr.json")["attributes"]["history"] + "\n"
    stamp = np.datetime_as_string(np.datetime64("now", "s"), timezone="UTC")
    return f"{old}{stamp} gridrad-cube preprocess: {len(build.written)} sources, {build.rows} crops"


def _software() -> dict[str, str]:
    names = ("gridrad-cube", "numpy", "xarray", "zarr", "netCDF4")
    return {name: importlib.metadata.version(name) for name in names}


def reflag(store_path: str | os.PathLike[str], spec: QualitySpec) -> None:
    """Flag a finished cube by other thresholds, from its stored statistics: no pixel and no source is read.

    The same as building it with these thresholds. Later additions are judged by them too.

    Raises
    ------
    SchemaError
        If this is no finished cube, or somebody else writes to it.
    """
    store.cube_info(store_path)
    build = store.Build(store_path)
    with build.lease():
        finalise(build, spec)
