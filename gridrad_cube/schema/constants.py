"""Constants of every store: the edge of a patch, how times are stored, the version of the layout."""

from __future__ import annotations

#: Edge of a patch in pixels, unless a recipe says otherwise.
PATCH_SIZE = 256
#: ``time`` is stored as int64 seconds since this epoch, UTC.
TIME_UNITS = "seconds since 1970-01-01"
#: Code of a missing time (xarray decodes it to NaT).
TIME_FILL = -(2**63)
#: Version of the layout of ``patches.zarr``; readers refuse a newer one.
FORMAT_VERSION = 1
