"""Compute positions of pixels from projection coordinates and a CF grid mapping, through pyproj.

pyproj is imported only when such a file is read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.fields import CONVERSIONS, spelled
from gridrad_cube.readers.files import Source, Variable
from gridrad_cube.readers.grib import load_pyproj
from gridrad_cube.schema import SchemaError

_Float = npt.NDArray[np.float64]

#: Standard names and names of the coordinates of a projection; angular ones are those of geostationary
#: satellites, the last ones those of a rotated pole.
_COORDINATES = {
    "x": ("projection_x_coordinate", "projection_x_angular_coordinate", "grid_longitude", "x", "rlon"),
    "y": ("projection_y_coordinate", "projection_y_angular_coordinate", "grid_latitude", "y", "rlat"),
}
#: Radians in the units of angular coordinates.
_ANGLES = (
    dict.fromkeys(("rad", "radian", "radians"), 1.0)
    | dict.fromkeys(("urad", "microradian", "microradians"), 1e-6)
    | dict.fromkeys(("degree", "degrees"), np.pi / 180)
)
#: Attributes that make a variable a grid mapping.
_MAPPING = ("grid_mapping_name", "crs_wkt", "spatial_ref")
#: Pixels that are projected at once.
_BLOCK = 2**20


@dataclass(frozen=True)
class Projection:
    """Positions of the pixels of a file with projection coordinates.

    Parameters
    ----------
    axes
        Names of the variables of y and x.
    dims
        Their dimensions: of rows and of columns.
    latitude, longitude
        Degrees on ``(y, x)``; NaN where a pixel shows no point of the Earth.
    satellite_longitude
        Of a geostationary projection, degrees east.
    """

    axes: tuple[str, str]
    dims: tuple[str, str]
    latitude: _Float
    longitude: _Float
    satellite_longitude: float | None


def find_projection(source: Source, fields: Iterable[Variable]) -> Projection | None:
    """Return the projection of the first field on projection coordinates; None if there is no such field.

    Latitude and longitude are those of the projection's own ellipsoid or sphere. They are converted to WGS 84
    only if the grid mapping has the parameters (``towgs84``).

    Raises
    ------
    SchemaError
        If the file does not name the projection, pyproj cannot read it, or the units of the coordinates are
        unknown.
    """
    for field in fields:
        y, x = (_coordinate(source, field, axis) for axis in ("y", "x"))
        if y is not None and x is not None and y.dims != x.dims:
            mapping = _mapping(source, field)
            crs = _crs(mapping)
            source.check_declared(
                f"a grid of {y.shape[0]} x {x.shape[0]} positions", 8 * y.shape[0] * x.shape[0]
            )
            northing, easting = (_values(source, variable, crs) for variable in (y, x))
            latitude, longitude = _project(crs.to_wkt(), northing.tobytes(), easting.tobytes())
            if np.isnan(latitude).all():
                raise SchemaError(
                    f"{source.path}: the projection {mapping.name!r} puts no pixel on the Earth; expected coordinates "
                    f"{y.name!r} and {x.name!r} in their units. Correct the units, or leave the file out."
                )
            known = crs.to_cf() if _height(crs) is not None else {}
            satellite = known.get("longitude_of_projection_origin")
            return Projection((y.name, x.name), (y.dims[0], x.dims[0]), latitude, longitude, satellite)
    return None


def _coordinate(source: Source, field: Variable, axis: str) -> Variable | None:
    """Return the coordinate of a field along ``"x"`` or ``"y"`` of a projection."""
    standard_names = _COORDINATES[axis]
    for variable in source.variables.values():
        if len(variable.dims) == 1 and variable.is_numeric and variable.dims[0] in field.dims:
            is_named = variable.text("standard_name").lower() in standard_names
            is_axis = variable.name == variable.dims[0] and variable.text("axis").upper() == axis.upper()
            if is_named or is_axis or variable.name.lower() in standard_names:
                return variable
    return None


def _mapping(source: Source, field: Variable) -> Variable:
    """Return the grid mapping of a field: the one that it names, else the only one of the file."""
    # "crs", or "crs: x y wgs84: lat lon" with the coordinates of each.
    words = field.text("grid_mapping").split()
    named = [word[:-1] for word in words if word.endswith(":")] or words
    every = [v for v in source.variables.values() if any(name in v.attributes for name in _MAPPING)]
    found = [v for v in every if v.name in named] or every
    plane = [v for v in found if v.text("grid_mapping_name") != "latitude_longitude"]
    if len(plane) == 1 or (plane and plane[0].name in named):
        return plane[0]
    raise SchemaError(
        f"{field.where} lies on coordinates of a projection; got the grid mappings {[v.name for v in every]} and the "
        f"attribute grid_mapping {field.text('grid_mapping')!r}, and no latitude and longitude. Expected one "
        "variable with the attribute grid_mapping_name, as CF defines it (chapter 5.6), or latitude(y, x) and "
        "longitude(y, x) in degrees. Add either to the file."
    )


def _crs(mapping: Variable) -> Any:
    """Return the projection of a grid mapping, as a `pyproj.CRS`."""
    pyproj = load_pyproj()
    try:
        crs = pyproj.CRS.from_cf({name: _plain(value) for name, value in mapping.attributes.items()})
    except (pyproj.exceptions.CRSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"{mapping.where}: pyproj cannot read this grid mapping ({type(error).__name__}: {error}). Correct its "
            "attributes as CF defines them (appendix F), or add latitude(y, x) and longitude(y, x) in degrees."
        ) from error
    base = _base(crs)
    if base is None or base.prime_meridian.longitude or base.axis_info[0].unit_name != "degree":
        raise SchemaError(
            f"{mapping.where}: {crs.name!r} is not a projection of degrees north, and east of Greenwich. "
            "Add latitude(y, x) and longitude(y, x) in degrees to the file."
        )
    return crs


def _base(crs: Any) -> Any:
    """Return the geographic system of a projection: its own, or WGS 84 if it has the parameters
    (``towgs84``).
    """
    return crs.target_crs if crs.is_bound else crs.source_crs


def _plain(value: Any) -> Any:
    """Return a number, list or text of an attribute, without numpy."""
    return value if isinstance(value, str) else np.asarray(value).squeeze().tolist()


def _height(crs: Any) -> float | None:
    """Return the height of the satellite of a geostationary projection above the ellipsoid, m."""
    operation = crs.coordinate_operation
    if operation is None or "geostationary" not in operation.method_name.lower():
        return None
    return float(crs.to_cf()["perspective_point_height"])


def _values(source: Source, variable: Variable, crs: Any) -> _Float:
    """Return a coordinate in the units of the projection."""
    scale, offset = variable.scaling
    values = source.read(variable.name).astype(np.float64) * scale + offset
    units, height = spelled(variable.text("units")), _height(crs)
    unit = crs.axis_info[0].unit_conversion_factor  # meters, or radians of a rotated pole
    if units in _ANGLES and (height is not None or crs.is_geographic):
        return values * _ANGLES[units] * (height or 1.0) / unit
    if units in CONVERSIONS["km"] and not crs.is_geographic:
        return values * (CONVERSIONS["km"][units][0] * 1000) / unit
    expected = "m, km or radians" if height is not None else "degrees" if crs.is_geographic else "m or km"
    raise SchemaError(
        f"{variable.where}: units {variable.text('units')!r} of a coordinate of the projection {crs.name!r}; expected "
        f"{expected}. Correct the attribute units."
    )


@functools.lru_cache(maxsize=1)  # the scenes of an archive share their grid
def _project(wkt: str, y: bytes, x: bytes) -> tuple[_Float, _Float]:
    """Return the latitude and longitude on ``(y, x)``, from coordinates as bytes of float64; read-only."""
    pyproj = load_pyproj()
    crs = pyproj.CRS.from_wkt(wkt)
    transformer = pyproj.Transformer.from_crs(crs, _base(crs), always_xy=True)
    northing, easting = np.frombuffer(y), np.frombuffer(x)
    positions = np.empty((2, northing.size, easting.size))
    step = max(1, _BLOCK // easting.size)
    for first in range(0, northing.size, step):
        rows = slice(first, first + step)
        longitude, latitude = transformer.transform(*np.meshgrid(easting, northing[rows]))
        positions[:, rows] = latitude, longitude
    positions[:, ~np.isfinite(positions).all(axis=0)] = np.nan
    positions.flags.writeable = False
    return positions[0], positions[1]
