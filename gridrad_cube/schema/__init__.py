"""The vocabulary: dimensions, channels, packing, flags and specs. Imports numpy only.

Every other module speaks these names. Nothing here touches a disk or a device.
"""

from __future__ import annotations

from gridrad_cube.schema.channels import (
    CHANNELS,
    COMPANION_ROLE,
    Channel,
    Kind,
    channel_in,
    channel_label,
    channel_of,
)
from gridrad_cube.schema.constants import FORMAT_VERSION, PATCH_SIZE, TIME_FILL, TIME_UNITS
from gridrad_cube.schema.errors import SchemaError
from gridrad_cube.schema.flags import Flag, default_reject, flag_attributes, reject_mask
from gridrad_cube.schema.packing import Packing
from gridrad_cube.schema.recipe import Placement, QualitySpec, RadarSpec, Recipe, TileSpec, build_spec
from gridrad_cube.schema.statistics import (
    ECHO_STATISTICS,
    HISTOGRAM_BINS,
    LOG_STATISTICS,
    STATISTICS,
    statistic_units,
    statistics_of,
)

__all__ = [
    "CHANNELS",
    "COMPANION_ROLE",
    "ECHO_STATISTICS",
    "FORMAT_VERSION",
    "HISTOGRAM_BINS",
    "LOG_STATISTICS",
    "PATCH_SIZE",
    "STATISTICS",
    "TIME_FILL",
    "TIME_UNITS",
    "Channel",
    "Flag",
    "Kind",
    "Packing",
    "Placement",
    "QualitySpec",
    "RadarSpec",
    "Recipe",
    "SchemaError",
    "TileSpec",
    "build_spec",
    "channel_in",
    "channel_label",
    "channel_of",
    "default_reject",
    "flag_attributes",
    "reject_mask",
    "statistic_units",
    "statistics_of",
]
