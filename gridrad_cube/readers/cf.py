"""Read any CF netCDF file on a grid: latitude and longitude, 1-D or 2-D, or a projection.

Examples are MRMS mosaics, gridded satellite images and model fields. Axes are found by ``standard_name``,
units and
name; fields by name, by ``standard_name`` with units, or by the choice of the user. If a file has no latitude
and
longitude, its grid mapping gives them (`gridrad_cube.readers.projection`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, product
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.derived import derive
from gridrad_cube.readers.fields import CONVERSIONS, Field, known_field, read_codes, spelled
from gridrad_cube.readers.files import Source, Variable, text_of
from gridrad_cube.readers.header import (
    Header,
    Request,
    goes_longitude,
    make_header,
    read_altitudes,
)
from gridrad_cube.readers.projection import Projection, find_projection
from gridrad_cube.readers.times import agreed_time, find_lead_time, only_time, parse_stamp, parse_time
from gridrad_cube.schema import CHANNELS, SchemaError
from gridrad_cube.selection import DERIVED

FORMAT = "cf"
#: Units and names of axes that lack a standard name.
_AXES = {
    "latitude": (
        ("degrees_north", "degree_north", "degrees_n", "degree_n"),
        ("latitude", "lat", "xlat", "nav_lat", "point_latitude"),
    ),
    "longitude": (
        ("degrees_east", "degree_east", "degrees_e", "degree_e"),
        ("longitude", "lon", "xlong", "nav_lon", "point_longitude"),
    ),
}
_ALTITUDES = ("altitude", "height", "height_above_mean_sea_level", "alt", "z", "lev", "level")
#: Channels by CF standard name. Column maximum and reflectivity share one: without ``cell_methods``, a field
#: is reflectivity.
_STANDARD_NAMES = {
    "toa_brightness_temperature": "ir_brightness_temperature",
    "brightness_temperature": "ir_brightness_temperature",
    "toa_bidirectional_reflectance": "visible_reflectance",
    "toa_lambertian_equivalent_albedo_multiplied_by_cosine_solar_zenith_angle": "visible_reflectance",
    "equivalent_reflectivity_factor": "reflectivity",
    "lwe_precipitation_rate": "precipitation_rate",
    "precipitation_flux": "precipitation_rate",
    "rainfall_rate": "precipitation_rate",
}
_COLUMN_MAXIMUM = re.compile(r"\b(altitude|height|z|lev|level): max")
#: Global attributes that hold the time of a file without a time variable.
_TIME_ATTRIBUTES = ("time_coverage_start", "start_datetime", "date_time_stamp")


_Dims = tuple[str, str]  # of row and column


def describe(source: Source, request: Request) -> Header:
    """Read the header. See `gridrad_cube.readers.inspect`."""
    found = _find_fields(source, request)
    axes, dims, projection = _find_axes(source, found)
    time = _time(source, request)
    found = {channel: f for channel, f in found.items() if set(dims) <= set(f[0].dims)}
    vertical = {channel: _vertical(source, variable, dims) for channel, (variable, _) in found.items()}
    carried = [source.variables[name] for name in request.others if name in source.variables]
    tall = [_vertical(source, v, dims) for v in carried if v.is_numeric and set(dims) <= set(v.dims)]
    uprights = {name for name in (*vertical.values(), *tall) if name}
    if len(uprights) > 1:
        raise SchemaError(
            f"{source.path}: fields lie on several vertical axes {sorted(uprights)}; pass channels=..."
        )
    upright = next(iter(uprights), None)
    levels_of = _altitude_variable(source, upright) if upright else None
    altitudes = read_altitudes(source, levels_of.name) if levels_of else np.zeros(0)
    available = {channel: vertical[channel] is not None for channel in found}
    if available.get("reflectivity"):
        derived = [name for name in DERIVED if name not in request.named()]
        available = dict.fromkeys(derived, False) | available

    def field_of(name: str) -> Field:
        variable, units = found.get(name) or found["reflectivity"]
        if name in found:
            on = (str(upright), *dims) if vertical[name] else dims
            return known_field(source, name, variable.name, on, units)
        volume = known_field(source, "reflectivity", variable.name, dims, units)
        channel = CHANNELS[name]
        packing = volume.packing if name == "reflectivity_column_maximum" else channel.packing
        return replace(volume, channel=channel, packing=packing, attributes=channel.attributes())

    header = make_header(
        source,
        request,
        axes=axes,
        dims=dims,
        positions=(projection.latitude, projection.longitude) if projection else None,
        vertical=upright,
        available=available,
        field_of=field_of,
        default=[name for name in CHANNELS if name in found] or list(CHANNELS),
        altitude_km=altitudes,
        format=FORMAT,
        product="",
        time=time,
        is_projected=projection is not None,
        lead_time=find_lead_time(source, time),
    )
    known = ", ".join(sorted(name for name in header.fields if name in CHANNELS))
    is_imagery = any(field.channel.kind in ("infrared", "visible") for field in header.fields.values())
    satellite = goes_longitude(source) if is_imagery else None
    if is_imagery and satellite is None and projection is not None:
        satellite = projection.satellite_longitude
    return replace(
        header,
        product=f"{text_of(source.attributes, 'title') or 'CF file'} ({known})",
        satellite_longitude=satellite,
    )


def _find_fields(source: Source, request: Request) -> dict[str, tuple[Variable, str | None]]:
    """Return the variables that are channels, with the units that the user gives.

    They are found by the choice of the user, by name, and by standard name. The choice of the user is
    binding: if the
    file lacks the variable, it lacks the channel.
    """
    named = request.named()
    asked = {label.partition("@")[0] for label in request.channels}
    found: dict[str, tuple[Variable, str | None]] = {
        channel: (source.variables[name], units)
        for channel, (name, units) in named.items()
        if name in source.variables
    }
    grids = [v for v in source.variables.values() if v.is_numeric and len(v.dims) >= 2]
    found |= {v.name: (v, None) for v in grids if v.name in CHANNELS and v.name not in named}
    by_standard_name: dict[str, list[Variable]] = {}
    for variable in grids:
        channel = _STANDARD_NAMES.get(variable.text("standard_name"))
        if channel == "reflectivity" and _COLUMN_MAXIMUM.search(variable.text("cell_methods").lower()):
            channel = "reflectivity_column_maximum"
        is_taken = any(variable is taken for taken, _ in found.values())
        if channel is None or channel in named or channel in found or is_taken:
            continue
        if spelled(variable.text("units")) in CONVERSIONS[CHANNELS[channel].units]:
            by_standard_name.setdefault(channel, []).append(variable)
    for channel, variables in by_standard_name.items():
        if len(variables) > 1 and (not asked or channel in asked):
            raise SchemaError(
                f"{source.path}: {[v.name for v in variables]} may each be {channel}; expected one. "
                f'Pass variables=(("{channel}", "{variables[0].name}", None),), or channels=... without it.'
            )
        found[channel] = (variables[0], None)
    return found


def _find_axes(
    source: Source, found: Mapping[str, tuple[Variable, str | None]]
) -> tuple[tuple[str, str], _Dims, Projection | None]:
    """Return the most certain coordinates of any field, their dimensions, and the projection that they belong
    to.

    These are latitude and longitude, or the coordinates of a projection in a file without these.
    """
    candidates = (_candidates(source, "latitude"), _candidates(source, "longitude"))
    pairs = [((a.name, b.name), dims) for a, b in product(*candidates) if (dims := _grid_dims(a, b))]
    for axes, dims in pairs:
        if not found or any(set(dims) <= set(variable.dims) for variable, _ in found.values()):
            return axes, dims, None
    fields = [variable for variable, _ in found.values()]
    fields = fields or [v for v in source.variables.values() if v.is_numeric and len(v.dims) >= 2]
    if projection := find_projection(source, fields):
        return projection.axes, projection.dims, projection
    raise SchemaError(
        f"{source.path}: no latitude and longitude that make a grid, got {source.listing()}; expected variables "
        "with standard_name latitude and longitude, 1-D or 2-D, or coordinates of a projection and its grid mapping."
    )


def _candidates(source: Source, axis: str) -> list[Variable]:
    """Return the variables that may be this axis, the most certain first: by standard name, by units, by
    name.
    """
    units, names = _AXES[axis]
    numeric = [v for v in source.variables.values() if v.is_numeric]
    ranked = [
        [v.name for v in numeric if v.text("standard_name").lower() == axis],
        [v.name for v in numeric if v.text("units").lower() in units],
        [v.name for v in numeric if v.name.lower() in names],
    ]
    return [source.variables[name] for name in dict.fromkeys(chain.from_iterable(ranked))]


def _grid_dims(latitude: Variable, longitude: Variable) -> _Dims | None:
    """Return the row and column dimensions of the grid of two variables, or None if they do not form one.

    Positions may be repeated at each time or altitude, before row and column.
    """
    lat, lon = (tuple(d for d, n in v.sizes.items() if n > 1) for v in (latitude, longitude))
    if len(lat) == len(lon) == 1 and lat != lon:
        return lat[0], lon[0]
    return (lat[-2], lat[-1]) if len(lat) >= 2 and lat == lon else None


def _vertical(source: Source, variable: Variable, dims: _Dims) -> str | None:
    """Return the altitude dimension of a field, or None. A field with any other further dimension is refused."""
    others = [d for d, n in variable.sizes.items() if d not in dims and n > 1]
    if not others:
        return None
    if len(others) == 1 and _altitude_variable(source, others[0]) is not None:
        return others[0]
    raise SchemaError(
        f"{variable.where} lies on {variable.dims} {variable.shape}; expected a row, a "
        "column and at most an altitude (one file, one scene). Split the file: "
        f"ds.isel({others[0]}=[i]).to_netcdf(...) for each."
    )


def _altitude_variable(source: Source, dim: str) -> Variable | None:
    for variable in source.variables.values():
        if variable.dims == (dim,) and variable.is_numeric:
            standard_name = variable.text("standard_name").lower()
            is_up = variable.text("axis").upper() == "Z"
            if standard_name in _ALTITUDES or is_up or variable.name.lower() in _ALTITUDES:
                return variable
    return None


def _time(source: Source, request: Request) -> np.datetime64:
    time = only_time(source, request.time_variable)
    if time is not None:
        return time  # many file names hold the time of creation
    words = [(f"attribute {n}", parse_time(text_of(source.attributes, n)), 60) for n in _TIME_ATTRIBUTES]
    known = [candidate for candidate in words if candidate[1] is not None]
    others = [("a time variable", None, 0), *words, ("the file name", parse_stamp(source.name), 0)]
    return agreed_time(source, known or others)


def read(source: Source, header: Header, request: Request) -> dict[str, npt.NDArray[Any]]:
    """Read the codes of the header's channels, integers bit for bit; derive those that lie on altitudes in the file."""
    codes = {}
    _, units = request.named().get("reflectivity", ("", None))
    upwards = [int(i) for i in np.argsort(header.altitude_km)]
    for name, about in header.fields.items():
        sizes = source.variables[about.variable].sizes
        tall = [d for d, n in sizes.items() if n > 1 and d not in about.dims]
        if tall and name in DERIVED:
            volume = known_field(source, "reflectivity", about.variable, (*tall, *about.dims), units)
            reflectivity, altitudes = read_codes(source, volume, upwards), header.altitude_km[upwards]
            codes[name] = derive(name, reflectivity, altitudes, request.radar.echo_top_dbz, volume.packing)
        else:
            codes[name] = read_codes(source, about, header.levels)
        if header.is_projected:
            fill = about.packing.fill_value
            codes[name][..., np.isnan(header.latitude)] = np.nan if fill is None else fill
    return codes
