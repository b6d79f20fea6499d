"""Any CF netCDF file of one time on a latitude-longitude grid, with 1-D or 2-D coordinates.

MRMS mosaics, gridded satellite imagery and model fields come this way. Axes are found by ``standard_name``,
units and name; fields by their own name, by ``standard_name`` with units, or by the user's word.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.companions import PARALLAX, fields_on_grid, find_companions, read_companion
from gridrad_cube.readers.derived import column_maximum, echo_top_height
from gridrad_cube.readers.fields import Field, read_field
from gridrad_cube.readers.files import Source, Variable, text
from gridrad_cube.readers.grids import Grid, make_grid, read_altitudes, read_degrees
from gridrad_cube.readers.request import Request, select, with_levels
from gridrad_cube.readers.scenes import GOES_LONGITUDE, Description, goes_number
from gridrad_cube.readers.times import agreed_time, only_time, parse_stamp, parse_time
from gridrad_cube.readers.units import conversion, is_known
from gridrad_cube.schema import CHANNELS, SchemaError
from gridrad_cube.selection import DERIVED

FORMAT = "cf"
#: Units and names of axes that lack a standard name.
_AXES = {
    "latitude": (
        ("degrees_north", "degree_north", "degrees_n", "degree_n"),
        ("latitude", "lat", "xlat", "nav_lat"),
    ),
    "longitude": (
        ("degrees_east", "degree_east", "degrees_e", "degree_e"),
        ("longitude", "lon", "xlong", "nav_lon"),
    ),
}
_ALTITUDES = ("altitude", "height", "height_above_mean_sea_level", "alt", "z", "lev", "level")
#: Channels by CF standard name. Column maximum and reflectivity share one: a field that says no more is
#: taken as reflectivity.
_STANDARD_NAMES = {
    "toa_brightness_temperature": "ir_brightness_temperature",
    "brightness_temperature": "ir_brightness_temperature",
    "toa_bidirectional_reflectance": "visible_reflectance",
    "equivalent_reflectivity_factor": "reflectivity",
    "lwe_precipitation_rate": "precipitation_rate",
    "rainfall_rate": "precipitation_rate",
}
#: Global attributes that hold a file's time where no variable does.
_TIME_ATTRIBUTES = ("time_coverage_start", "start_datetime", "date_time_stamp")


@dataclass(frozen=True)
class _Axes:
    latitude: str
    longitude: str
    dims: tuple[str, str]  # of row and column


@dataclass(frozen=True)
class _Found:
    """A variable of the file that is a channel; units as the user gives them."""

    variable: Variable
    units: str | None


def describe(source: Source, request: Request) -> Description:
    """Read the header. See `gridrad_cube.readers.inspect`."""
    found = _find_fields(source, request)
    axes = _find_axes(source, found)
    time = _time(source)
    found = {channel: f for channel, f in found.items() if set(axes.dims) <= set(f.variable.dims)}
    vertical = {channel: _vertical(source, f.variable, axes) for channel, f in found.items()}
    carried = [source.variables[name] for name in request.companions if name in source.variables]
    tall = [_vertical(source, v, axes) for v in carried if v.is_numeric and set(axes.dims) <= set(v.dims)]
    names = {name for name in (*vertical.values(), *tall) if name}
    if len(names) > 1:
        raise SchemaError(
            f"{source.path}: fields lie on several vertical axes {sorted(names)}; pass channels=..."
        )
    vertical_name = next(iter(names), None)
    altitude = _altitudes(source, vertical_name) if vertical_name else None
    available = {channel: vertical[channel] is not None for channel in found}
    if available.get("reflectivity"):
        available = dict.fromkeys(DERIVED, False) | available
    default = [name for name in CHANNELS if name in found]
    selection = select(
        request,
        available,
        () if altitude is None else altitude,
        default=default or list(CHANNELS),
        where=source.path,
        listing=source.listing(),
    )
    if any(tall):
        selection = with_levels(selection, request.radar, () if altitude is None else altitude, source.path)
    satellite = goes_number(source) if any(_is_imagery(name) for name in selection.variables) else None
    title = text(source.attributes, "title") or "CF file"
    return Description(
        format=FORMAT,
        product=f"{title} ({', '.join(sorted(selection.variables))})",
        time=time,
        grid=_grid(source, axes),
        selection=selection,
        variables={name: _with_units(source, name, found) for name in selection.variables},
        companions=find_companions(
            source, request.companions, axes.dims, vertical=vertical_name, unasked=PARALLAX
        ),
        further=tuple(
            name
            for name in fields_on_grid(source, axes.dims, vertical_name)
            if name not in (axes.latitude, axes.longitude)
        ),
        dims=axes.dims,
        vertical=vertical_name,
        altitude_km=altitude,
        satellite_longitude=GOES_LONGITUDE.get(satellite or 0),
    )


def _is_imagery(channel: str) -> bool:
    return CHANNELS[channel].kind in ("infrared", "visible")


def _with_units(source: Source, channel: str, found: dict[str, _Found]) -> tuple[str, tuple[float, float]]:
    origin = channel if channel in found else "reflectivity"
    variable, units = found[origin].variable, found[origin].units
    given = units or text(variable.attributes, "units") or None
    where = f"{source.path}: variable {variable.name!r}"
    return variable.name, conversion(CHANNELS[origin], given, named=variable.name == origin, where=where)


def _find_fields(source: Source, request: Request) -> dict[str, _Found]:
    """Variables that are channels: those the user names, then by name, then by standard name and units."""
    asked = {label.partition("@")[0] for label in request.channels}
    found = {}
    for channel, (name, units) in request.named().items():
        if name in source.variables:
            found[channel] = _Found(source.variables[name], units)
    grids = [v for v in source.variables.values() if v.is_numeric and len(v.dims) >= 2]
    for variable in grids:
        if variable.name in CHANNELS and variable.name not in found:
            found[variable.name] = _Found(variable, None)
    by_standard_name: dict[str, list[Variable]] = {}
    for variable in grids:
        channel = _STANDARD_NAMES.get(text(variable.attributes, "standard_name"), "")
        taken = [f.variable.name for f in found.values()]
        if channel and channel not in found and variable.name not in taken:
            units = text(variable.attributes, "units")
            if is_known(units, CHANNELS[channel].units):
                by_standard_name.setdefault(channel, []).append(variable)
    for channel, variables in by_standard_name.items():
        if len(variables) > 1 and (not asked or channel in asked):
            raise SchemaError(
                f"{source.path}: {[v.name for v in variables]} may each be {channel}; expected one. "
                f'Pass variables=(("{channel}", "{variables[0].name}", None),), or channels=... without it.'
            )
        found[channel] = _Found(variables[0], None)
    return found


def _find_axes(source: Source, found: dict[str, _Found]) -> _Axes:
    """The surest latitude and longitude that some field lies on."""
    pairs = _pairs(source)
    for pair in pairs:
        if any(set(pair.dims) <= set(f.variable.dims) for f in found.values()):
            return pair
    if not found and pairs:
        return pairs[0]
    metres = [
        v.name for v in source.variables.values()
        if text(v.attributes, "standard_name").startswith("projection_") or v.name in ("x", "y")
    ]  # fmt: skip
    if metres:
        raise SchemaError(
            f"{source.path}: {metres} are coordinates of a projection, and no latitude and longitude lie on them; "
            "expected 1-D axes or 2-D arrays in degrees. Add latitude(y, x) and longitude(y, x), for example "
            "from pyproj or Py-ART's grid.get_point_longitude_latitude()."
        )
    raise SchemaError(
        f"{source.path}: no latitude and longitude that make a grid, got {source.listing()}; expected variables "
        "with standard_name latitude and longitude, 1-D or 2-D."
    )


def _pairs(source: Source) -> list[_Axes]:
    pairs = []
    for latitude in _candidates(source, "latitude"):
        for longitude in _candidates(source, "longitude"):
            dims = _grid_dims(latitude, longitude)
            if dims is not None:
                pairs.append(_Axes(latitude.name, longitude.name, dims))
    return pairs


def _candidates(source: Source, axis: str) -> list[Variable]:
    """Variables that may be this axis, the surest first: by standard name, by units, by name."""
    units, names = _AXES[axis]
    numeric = [v for v in source.variables.values() if v.is_numeric]
    ranked = [
        [v.name for v in numeric if text(v.attributes, "standard_name").lower() == axis],
        [v.name for v in numeric if text(v.attributes, "units").lower() in units],
        [v.name for v in numeric if v.name.lower() in names],
    ]
    return [source.variables[name] for name in dict.fromkeys(chain.from_iterable(ranked))]


def _grid_dims(latitude: Variable, longitude: Variable) -> tuple[str, str] | None:
    """Row and column dimensions that two variables span, or None where they make no grid."""
    lat, lon = _spatial_dims(latitude), _spatial_dims(longitude)
    if len(lat) == len(lon) == 1 and lat != lon:
        return lat[0], lon[0]
    if len(lat) == 2 and lat == lon:
        return lat[0], lat[1]
    return None


def _spatial_dims(variable: Variable) -> tuple[str, ...]:
    return tuple(d for d, n in zip(variable.dims, variable.shape, strict=True) if n > 1)


def _grid(source: Source, axes: _Axes) -> Grid:
    latitude, longitude = (np.squeeze(read_degrees(source, name)) for name in (axes.latitude, axes.longitude))
    return make_grid(latitude, longitude, where=source.path)


def _vertical(source: Source, variable: Variable, axes: _Axes) -> str | None:
    """The altitude dimension of a field, None where it has none; any other is refused."""
    others = [
        d for d, n in zip(variable.dims, variable.shape, strict=True) if d not in axes.dims and n > 1
    ]  # fmt: skip
    if not others:
        return None
    if len(others) == 1 and _altitude_variable(source, others[0]) is not None:
        return others[0]
    raise SchemaError(
        f"{source.path}: variable {variable.name!r} lies on {variable.dims} {variable.shape}; expected a row, a "
        "column and at most an altitude (one file, one scene). Split the file: "
        f"ds.isel({others[0]}=[i]).to_netcdf(...) for each."
    )


def _altitude_variable(source: Source, dim: str) -> Variable | None:
    for variable in source.variables.values():
        if variable.dims == (dim,) and variable.is_numeric:
            standard_name = text(variable.attributes, "standard_name").lower()
            is_up = text(variable.attributes, "axis").upper() == "Z"
            if standard_name in _ALTITUDES or is_up or variable.name.lower() in _ALTITUDES:
                return variable
    return None


def _altitudes(source: Source, dim: str) -> npt.NDArray[np.float64]:
    variable = _altitude_variable(source, dim)
    assert variable is not None
    return read_altitudes(source, variable.name)


def _time(source: Source) -> np.datetime64:
    numeric = [v for v in source.variables.values() if v.is_numeric]
    named = [v.name for v in numeric if v.name.lower() == "time"]
    standard = [v.name for v in numeric if text(v.attributes, "standard_name").lower() == "time"]
    for name in (*named, *standard):
        return only_time(source, name)
    candidates = [(f"attribute {n}", parse_time(text(source.attributes, n)), 0) for n in _TIME_ATTRIBUTES]
    known = [c for c in (*candidates, ("the file name", parse_stamp(source.name), 0)) if c[1] is not None]
    # The first known one alone: a file's name says when it was made as often as what it shows.
    return agreed_time(
        source, known[:1] or [("a time variable, time_coverage_start or the file name", None, 0)]
    )


def read(source: Source, description: Description, request: Request) -> dict[str, Field]:
    """Read the channels and companion fields; integer codes bit for bit."""
    fields = {}
    for channel, (name, units) in description.variables.items():
        variable = source.variables[name]
        if channel in DERIVED and description.vertical in variable.dims:
            fields[channel] = _derive(source, description, channel, request)
            continue
        is_volume = description.vertical is not None and description.vertical in variable.dims
        dims = (
            (description.vertical, *description.dims)
            if is_volume and description.vertical
            else description.dims
        )
        levels = description.selection.levels if is_volume else None
        fields[channel] = read_field(source, name, CHANNELS[channel], units, dims, levels)
    for name, companion in description.companions.items():
        fields[name] = read_companion(source, companion, description.selection.levels)
    return fields


def _derive(source: Source, description: Description, channel: str, request: Request) -> Field:
    name, units = description.variables[channel]
    assert description.vertical is not None
    assert description.altitude_km is not None
    upwards = [int(i) for i in np.argsort(description.altitude_km)]
    dims = (description.vertical, *description.dims)
    volume = read_field(source, name, CHANNELS["reflectivity"], units, dims, upwards)
    if channel == "reflectivity_column_maximum":
        return Field(column_maximum(volume.codes, volume.packing), volume.packing)
    heights = description.altitude_km[upwards]
    codes = echo_top_height(volume.codes, heights, request.radar.echo_top_dbz, volume.packing)
    return Field(codes, CHANNELS[channel].packing)
