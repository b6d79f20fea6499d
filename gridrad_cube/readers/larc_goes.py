"""Read NASA LaRC GOES convection detection: packed imager fields on a regular 1/56 degree grid.

The layout follows the header of a sibling product (ARM ``cor1goecnvv2X1``) and public code that reads this
one, not a
file of the product itself. So every known variant is accepted: dimensions ``nlines``/``npixels`` or by name,
with or
without a time dimension, rows in either order, floats instead of packed integers, further variables.
"""

from __future__ import annotations

import numpy as np

from gridrad_cube.readers.fields import known_field
from gridrad_cube.readers.files import Source, text_of
from gridrad_cube.readers.header import (
    Header,
    Request,
    goes_longitude,
    make_header,
)
from gridrad_cube.readers.times import agreed_time, decode_times, only_time, parse_stamp, parse_time
from gridrad_cube.schema import SchemaError

FORMAT = "larc_goes"
#: The channels of the product, in the order of the classic two-channel network.
_CHANNELS = ("ir_brightness_temperature", "visible_reflectance")
#: Tolerance between the time in the name (the nominal minute) and the variable (the second of the scan), in
#: seconds.
_NAME_TOLERANCE_S = 600
#: A line scanned further from the time of its scene, in seconds, has no known time: a full disk takes 15 minutes.
_SCAN_TOLERANCE_S = 3600
#: Pixels lie at ``n/56`` or ``(n + 1/2)/56`` degree; float32 radians are good to about 1e-5 degree.
_LATTICE = (112,)
_AXIS_TOLERANCE_DEGREES = 1e-4


def find_format(source: Source) -> str | None:
    """Return the format of a file with radians scaled to degrees, or the product's dimension names; None of
    any other.
    """
    axes = [source.variables[name] for name in ("latitude", "longitude") if name in source.variables]
    if len(axes) < 2 or any(len(axis.dims) != 1 for axis in axes):
        return None
    is_radian = all(abs((axis.number("scale_factor") or 1.0) - 57.29578) < 1e-3 for axis in axes)
    return FORMAT if is_radian or [axis.dims[0] for axis in axes] == ["nlines", "npixels"] else None


def describe(source: Source, request: Request) -> Header:
    """Read the header. See `gridrad_cube.readers.inspect`."""
    row, column = source.dims_of(("latitude", "longitude"), "a LaRC GOES file")
    known = {name: (name, None) for name in _CHANNELS} | request.named()
    found = {channel: entry for channel, entry in known.items() if entry[0] in source.variables}
    if not any(name in found for name in _CHANNELS):
        raise SchemaError(
            f"{source.path}: neither channel of a LaRC GOES file; expected {' or '.join(_CHANNELS)}, "
            f"got {source.listing()}. Pass variables=((channel, variable, units),) for other names."
        )
    time = _time(source, request)
    return make_header(
        source,
        request,
        axes=("latitude", "longitude"),
        dims=(row, column),
        available=dict.fromkeys(found, False),
        field_of=lambda name: known_field(source, name, found[name][0], (row, column), found[name][1]),
        default=_CHANNELS,
        lattice=_LATTICE,
        tolerance=_AXIS_TOLERANCE_DEGREES,
        format=FORMAT,
        product="LaRC convection detection",  # without the satellite, which only the name of the file may give
        time=time,
        satellite_longitude=goes_longitude(source),
        observation_time=_scan_time(source, time),
    )


def _time(source: Source, request: Request) -> np.datetime64:
    in_variable = only_time(source, request.time_variable)
    stamp = parse_time(text_of(source.attributes, "date_time_stamp")) if in_variable is None else None
    return agreed_time(
        source,
        [
            ("the time variable", in_variable, 0),
            ("date_time_stamp", stamp, _NAME_TOLERANCE_S),
            ("the file name", parse_stamp(source.name), _NAME_TOLERANCE_S),
        ],
    )


def _scan_time(source: Source, time: np.datetime64) -> np.ndarray | None:
    """Return the time of each line; NaT where it is missing or too far from the time of the scene."""
    if "scan_time" not in source.variables:
        return None
    times, rows = decode_times(source, "scan_time", missing=True), source.variables["latitude"].shape[0]
    if times.size != rows:
        raise SchemaError(
            f"{source.path}: scan_time on {source.variables['scan_time'].dims} has {times.size} values; expected one "
            f"for each of the {rows} lines"
        )
    away = np.abs((times - time).astype("timedelta64[s]").astype(np.float64))
    return np.where(away <= _SCAN_TOLERANCE_S, times, np.datetime64("NaT", "s"))
