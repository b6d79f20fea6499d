"""Quality: statistics and flags of patches, and quality control of radar volumes. Nothing is deleted."""

from __future__ import annotations

from gridrad_cube.quality.flags import (
    PIXEL_BITS,
    THRESHOLD_BITS,
    assess,
    flags_from_statistics,
    global_flags,
    global_outliers,
    global_population,
    global_thresholds,
    reflag,
    thresholds_of,
)
from gridrad_cube.quality.radar import (
    RadarQualitySpec,
    exact_codes,
    filter_dual_polarisation,
    filter_low_confidence,
    remove_clutter,
)
from gridrad_cube.quality.statistics import clean_histogram, patch_statistics

__all__ = [
    "PIXEL_BITS",
    "THRESHOLD_BITS",
    "RadarQualitySpec",
    "assess",
    "clean_histogram",
    "exact_codes",
    "filter_dual_polarisation",
    "filter_low_confidence",
    "flags_from_statistics",
    "global_flags",
    "global_outliers",
    "global_population",
    "global_thresholds",
    "patch_statistics",
    "reflag",
    "remove_clutter",
    "thresholds_of",
]
