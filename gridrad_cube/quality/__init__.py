"""Quality: statistics and flags of patches, and quality control of radar volumes. Nothing is deleted."""

from __future__ import annotations

from gridrad_cube.quality.flags import assess, global_outliers, global_population, reflag, thresholds_of
from gridrad_cube.quality.radar import (
    RadarQualitySpec,
    exact_codes,
    filter_dual_polarization,
    filter_low_confidence,
    remove_clutter,
)
from gridrad_cube.quality.statistics import clean_histogram, patch_statistics

__all__ = [
    "RadarQualitySpec",
    "assess",
    "clean_histogram",
    "exact_codes",
    "filter_dual_polarization",
    "filter_low_confidence",
    "global_outliers",
    "global_population",
    "patch_statistics",
    "reflag",
    "remove_clutter",
    "thresholds_of",
]


def __dir__() -> list[str]:
    return __all__
