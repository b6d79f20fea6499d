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
    states = _states_of_bins(volume, spec)
    _add_clutter(volume, spec, states)
    return {
        name: readers.densify(volume, name, states=states)
        for name in dict.fromkeys(("reflectivity", *fields))
    }


def _add_clutter(volume: readers.RadarVolume, spec: quality.RadarQualitySpec, states: np.ndarray) -> None:
    """Find clutter and speckle on the dense grid, by the file's own floats, and add them to the states of bins."""
    _, packing = quality.exact_codes(np.zeros(0, np.float32), _PACKING)
    dense = readers.densify(
        volume,
        "reflectivity",
        states=states,
        encoding=lambda values: quality.exact_codes(values, _PACKING)[0],
    )
    quality.remove_clutter(dense, volume.header.altitude_km, packing, spec=spec, out=dense)
    for plane, level in zip(dense, volume.levels, strict=True):
        part = volume.part(level)
        bins = plane.reshape(-1)[volume.index[part] - level * volume.plane]
        states[part][bins == CLUTTER] = CLUTTER


def _states_of_bins(volume: readers.RadarVolume, spec: quality.RadarQualitySpec) -> np.ndarray:
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
                version=volume.version,
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
