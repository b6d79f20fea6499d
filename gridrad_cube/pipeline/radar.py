"""Quality control of radar volumes between reading and tiling, on the native grid and before anything is derived."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from gridrad_cube import quality, readers
from gridrad_cube.schema import CHANNELS, RadarSpec, SchemaError, build_spec

_PACKING = CHANNELS["reflectivity"].packing
#: Codes of removed bins, the same in every radar field of the table.
LOW_CONFIDENCE, CLUTTER = int(_PACKING.low_confidence or 0), int(_PACKING.clutter or 0)


def quality_spec(radar: RadarSpec) -> quality.RadarQualitySpec | None:
    """Constants of the quality control that a recipe asks for; None for none."""
    if radar.qc == "none":
        return None
    published = quality.RadarQualitySpec(mode=radar.qc)
    given: dict[str, Any] = dict(radar.qc_constants)
    for name, value in given.items():
        kind = type(getattr(published, name, value))
        if kind(value) != value:
            raise SchemaError(f"qc_constants: {name} is {kind.__name__}, got {value}")
        given[name] = kind(value)
    spec: quality.RadarQualitySpec = build_spec(quality.RadarQualitySpec, {"mode": radar.qc, **given})
    return spec


def clean(
    volume: readers.RadarVolume, fields: Collection[str], spec: quality.RadarQualitySpec
) -> dict[str, np.ndarray]:
    """Remove low-confidence bins and clutter from fields of a GridRad volume.

    In the published order: the low-confidence filter and the dual-polarisation test on the listed bins, then
    speckle, weak columns and echo below anvils on the dense grid. What is removed keeps a code that says why.
    Version 4.1 files have no weights and counts, and skip the filter.

    Returns
    -------
    Codes of all levels, ``(altitude, latitude, longitude)`` uint16, for reflectivity and each of ``fields``.
    """
    dense = readers.densify(volume, "reflectivity", states=_removed_bins(volume, spec))
    quality.remove_clutter(dense, volume.header.altitude_km, _PACKING, spec=spec, out=dense)
    out = {"reflectivity": dense}
    for name in fields:
        if name != "reflectivity":
            out[name] = readers.densify(volume, name)
            for code in (LOW_CONFIDENCE, CLUTTER):  # the same codes in every field of the table
                out[name][dense == code] = code
    return out


def _removed_bins(volume: readers.RadarVolume, spec: quality.RadarQualitySpec) -> np.ndarray:
    """Per listed bin the code of why it goes, 0 where it stays; a level at a time, which bounds the memory."""
    states = np.zeros(len(volume.index), np.uint8)
    for level in volume.levels:
        part = volume.part(level)
        values = volume.values["reflectivity"][part]
        if volume.nradobs is not None and volume.nradecho is not None:
            keep = quality.filter_low_confidence(
                values,
                volume.weights["reflectivity"][part],
                volume.at_bins(volume.nradobs, level),
                volume.at_bins(volume.nradecho, level),
                version=volume.header.version,
                year=int(volume.header.time.astype("datetime64[Y]").astype(int)) + 1970,
                spec=spec,
            )
            states[part][~keep] = LOW_CONFIDENCE
        if "correlation_coefficient" in volume.values:
            kept = states[part] == 0
            keep = quality.filter_dual_polarisation(
                np.where(kept, values, np.nan),
                np.where(kept, volume.values["correlation_coefficient"][part], np.nan),
                np.full(values.shape, volume.header.altitude_km[level]),
                spec=spec,
            )
            states[part][kept & ~keep] = CLUTTER
    return states
