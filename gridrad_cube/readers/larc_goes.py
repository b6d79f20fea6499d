"""NASA LaRC GOES convection detection: packed imager fields on a regular 1/56 degree grid.

Written from the header of a sibling product (ARM ``cor1goecnvv2X1``) and from code that reads this one; no
file of the product itself was at hand. What was not seen is tolerated in every form that is known:
dimensions ``nlines``/``npixels`` or by name, a time dimension or none, rows in either order, floats in place
of packed integers, further variables.
"""

from __future__ import annotations

import numpy as np

from gridrad_cube.readers.companions import PARALLAX, fields_on_grid, find_companions, read_companion
from gridrad_cube.readers.fields import Field, read_field
from gridrad_cube.readers.files import Source, number, text
from gridrad_cube.readers.grids import Grid, make_grid, read_degrees
from gridrad_cube.readers.request import Request, select
from gridrad_cube.readers.scenes import GOES_LONGITUDE, Description, goes_number
from gridrad_cube.readers.times import agreed_time, decode_times, only_time, parse_stamp, parse_time
from gridrad_cube.readers.units import conversion
from gridrad_cube.schema import CHANNELS, SchemaError

FORMAT = "larc_goes"
#: The channels of the product, in the order of the classic two-channel network.
CHANNEL_NAMES = ("ir_brightness_temperature", "visible_reflectance")
#: Half the cadence's worth is usual: names hold the nominal minute, the variable the scan's own second.
NAME_TOLERANCE_S = 600
#: A line scanned further from the time of its scene, in seconds, has no known time: a full disk takes 15 minutes.
SCAN_TOLERANCE_S = 3600
#: Pixels lie at ``n/56`` or ``(n + 1/2)/56`` degree; float32 radians are good to about 1e-5 degree.
LATTICE = (112,)
AXIS_TOLERANCE_DEGREES = 1e-4


def matches(source: Source) -> bool:
    """Whether a file has this layout: radians scaled to degrees, or the product's dimension names."""
    axes = [source.variables.get(name) for name in ("latitude", "longitude")]
    if any(axis is None or len(axis.dims) != 1 for axis in axes):
        return False
    scales = [number(axis.attributes, "scale_factor", source.path) for axis in axes if axis is not None]
    is_radian = all(scale is not None and abs(scale - 57.29578) < 1e-3 for scale in scales)
    return is_radian or [axis.dims[0] for axis in axes if axis is not None] == ["nlines", "npixels"]


def describe(source: Source, request: Request) -> Description:
    """Read the header. See `gridrad_cube.readers.inspect`."""
    source.require(("latitude", "longitude"), "a LaRC GOES file")
    names = {name: (name, None) for name in CHANNEL_NAMES} | request.named()
    found = {channel: entry for channel, entry in names.items() if entry[0] in source.variables}
    if not any(name in found for name in CHANNEL_NAMES):
        raise SchemaError(
            f"{source.path}: neither channel of a LaRC GOES file; expected {' or '.join(CHANNEL_NAMES)}, "
            f"got {source.listing()}. Pass variables=((channel, variable, units),) for other names."
        )
    selection = select(
        request,
        dict.fromkeys(found, False),
        (),
        default=CHANNEL_NAMES,
        where=source.path,
        listing=source.listing(),
    )
    rows, columns = (source.variables[name].dims[0] for name in ("latitude", "longitude"))
    grid = _grid(source)
    variables = {}
    for channel in selection.variables:
        name, units = found[channel]
        variable = source.variables[name]
        given = units or text(variable.attributes, "units") or None
        where = f"{source.path}: variable {name!r}"
        variables[channel] = name, conversion(CHANNELS[channel], given, named=name == channel, where=where)
    satellite = goes_number(source)
    time = _time(source)
    return Description(
        format=FORMAT,
        product="LaRC convection detection",  # not the satellite: only the file's name may tell it
        time=time,
        grid=grid,
        selection=selection,
        variables=variables,
        companions=find_companions(source, request.companions, (rows, columns), unasked=PARALLAX),
        further=tuple(fields_on_grid(source, (rows, columns))),
        dims=(rows, columns),
        satellite_longitude=GOES_LONGITUDE.get(satellite or 0),
        observation_time=_scan_time(source, grid.shape[0], time),
    )


def _grid(source: Source) -> Grid:
    axes = [source.variables[name] for name in ("latitude", "longitude")]
    if any(len(axis.dims) != 1 for axis in axes):
        raise SchemaError(
            f"{source.path}: latitude on {axes[0].dims}, longitude on {axes[1].dims}; expected 1-D axes of a LaRC "
            "GOES file. Pass format='cf' for 2-D coordinates."
        )
    latitude, longitude = (read_degrees(source, axis.name) for axis in axes)
    return make_grid(
        latitude,
        longitude,
        where=source.path,
        lattice=LATTICE,
        tolerance=AXIS_TOLERANCE_DEGREES,
        rebuild=True,
    )


def _time(source: Source) -> np.datetime64:
    in_variable = only_time(source, "time") if "time" in source.variables else None
    stamp = None
    if in_variable is None:
        attributes = source.variables["time"].attributes if "time" in source.variables else source.attributes
        stamp = parse_time(text(attributes, "date_time_stamp"))
    return agreed_time(
        source,
        [
            ("the time variable", in_variable, 0),
            ("date_time_stamp", stamp, NAME_TOLERANCE_S),
            ("the file name", parse_stamp(source.name), NAME_TOLERANCE_S),
        ],
    )


def _scan_time(source: Source, rows: int, time: np.datetime64) -> np.ndarray | None:
    """Time of each line; NaT where it is missing or cannot be one of this scene."""
    if "scan_time" not in source.variables:
        return None
    times = decode_times(source, "scan_time", missing=True)
    if times.size != rows:
        raise SchemaError(
            f"{source.path}: scan_time on {source.variables['scan_time'].dims} has {times.size} values; expected one "
            f"for each of the {rows} lines"
        )
    away = np.abs((times - time).astype("timedelta64[s]").astype(np.float64))
    return np.where(away <= SCAN_TOLERANCE_S, times, np.datetime64("NaT", "s"))


def read(source: Source, description: Description, request: Request) -> dict[str, Field]:
    """Read the channels and companion fields, codes bit for bit."""
    channels = {
        channel: read_field(source, name, CHANNELS[channel], units, description.dims)
        for channel, (name, units) in description.variables.items()
    }
    return channels | {name: read_companion(source, c, ()) for name, c in description.companions.items()}
