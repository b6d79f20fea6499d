"""Latitude and longitude of a scene: checked, freed of float32 noise, wrapped and named by a hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gridrad_cube.geometry import wrap_longitude
from gridrad_cube.readers.files import Source, number, text
from gridrad_cube.readers.units import CONVERSIONS, is_known, spelled
from gridrad_cube.schema import SchemaError

Float = npt.NDArray[np.float64]
#: Positions that agree to this many degrees (a tenth of a metre) are the same grid.
GRID_ID_RESOLUTION = 1e-6


@dataclass(frozen=True)
class Grid:
    """Pixel positions in degrees: two 1-D axes, or two arrays on ``(y, x)``; longitudes in [-180, 180)."""

    latitude: Float
    longitude: Float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.latitude.ndim == 1:
            return self.latitude.size, self.longitude.size
        return self.latitude.shape[0], self.latitude.shape[1]

    @cached_property
    def id(self) -> str:
        """Name of the grid: equal for equal shapes and positions equal within `GRID_ID_RESOLUTION`."""
        digest = hashlib.sha256(repr((self.latitude.ndim, self.shape)).encode())
        for axis in (self.latitude, self.longitude):
            known = np.isfinite(axis)
            steps = np.rint(np.where(known, axis, 0.0) / GRID_ID_RESOLUTION).astype("<i8")
            steps[~known] = np.iinfo(np.int64).min
            digest.update(np.ascontiguousarray(steps).tobytes())
        return digest.hexdigest()[:16]


def read_degrees(source: Source, name: str) -> Float:
    """Values of a latitude or longitude variable in degrees, float64; NaN where it has none.

    A ``scale_factor`` (57.29578 where the file holds radians) is applied in float64; units of radians are
    converted.
    """
    variable = source.variables[name]
    where = f"{source.path}: {name}"
    raw = source.read(name)
    values = raw.astype(np.float64)
    for attribute in ("_FillValue", "missing_value"):
        fill = number(variable.attributes, attribute, where)
        if fill is not None:
            values[raw == raw.dtype.type(fill)] = np.nan
    scale = number(variable.attributes, "scale_factor", where)
    offset = number(variable.attributes, "add_offset", where)
    values = values * (1.0 if scale is None else scale) + (0.0 if offset is None else offset)
    if text(variable.attributes, "units").lower() in ("radian", "radians", "rad"):
        values = np.rad2deg(values)
    return values


def read_altitudes(source: Source, name: str, *, ascending: bool = False, units: str = "") -> Float:
    """An altitude axis in km, as irregular as it is; float32 noise is rounded off at a millimetre.

    ``units`` are those of an axis that names none.

    Raises
    ------
    SchemaError
        If its units are no lengths, or it is not strictly monotone (``ascending``: if it does not ascend).
    """
    units = spelled(text(source.variables[name].attributes, "units")) or units
    if not is_known(units, "km"):
        raise SchemaError(f"{source.path}: {name} in {units!r}; expected an altitude axis in km or m")
    values = np.round(source.read(name).ravel().astype(np.float64) * CONVERSIONS["km"][units][0], 6)
    steps = np.diff(values)
    is_monotone = (steps > 0).all() or ((steps < 0).all() and not ascending)
    if not values.size or not np.isfinite(values).all() or not is_monotone:
        order = "ascend" if ascending else "be strictly monotone"
        raise SchemaError(f"{source.path}: {name} is {values.tolist()[:40]}; expected it to {order}")
    return values


def make_grid(
    latitude: Float,
    longitude: Float,
    *,
    where: str,
    lattice: tuple[int, ...] = (),
    tolerance: float = 0.0,
    rebuild: bool = False,
) -> Grid:
    """Check axes and normalise them: longitudes wrapped, 1-D axes on their lattice where they lie on one.

    Parameters
    ----------
    latitude, longitude
        Degrees, both 1-D or both on ``(y, x)``. 2-D arrays may hold NaN (off the Earth) and are kept as they
        are, but for the wrapping.
    lattice
        Steps per degree of lattices to try: 1-D axes within ``tolerance`` of multiples of ``1/n`` degree take
        those values, so that files agree bit for bit.
    tolerance
        Degrees by which a pixel may move.
    rebuild
        Whether an evenly spaced axis on no lattice is made anew from its first and last value (float32 axes
        jitter), again moving no pixel by more than ``tolerance``.

    Raises
    ------
    SchemaError
        If an axis is not strictly monotone, not finite or outside of the Earth.
    """
    if latitude.ndim == 2:
        _check_range(latitude, longitude, where)
        return Grid(latitude, _wrapped(longitude))
    for name, axis in (("latitude", latitude), ("longitude", longitude)):
        crosses = name == "longitude" and _is_monotone(np.unwrap(axis, period=360.0))  # 179 E, then 180 W
        if not crosses and not _is_monotone(axis):
            raise SchemaError(
                f"{where}: {name} of {axis.size} values is not strictly monotone and finite{_first_turn(axis)}; "
                "expected it to ascend or to descend. Sort the file along it (xarray: ds.sortby), or leave it out."
            )
    _check_range(latitude, longitude, where)
    return Grid(
        _clean(latitude, lattice, tolerance, rebuild, wrap=False),
        _clean(longitude, lattice, tolerance, rebuild, wrap=True),
    )


def _is_monotone(axis: Float) -> bool:
    step = np.diff(axis)
    return bool(axis.size and np.isfinite(axis).all() and ((step > 0).all() or (step < 0).all()))


def _first_turn(axis: Float) -> str:
    """Where an axis first goes wrong, for a message."""
    bad = np.flatnonzero(~np.isfinite(axis))
    if bad.size:
        return f": value {bad[0]} is {axis[bad[0]]}"
    step = np.sign(np.diff(axis))
    turns = np.flatnonzero((step != step[:1]) | (step == 0)) + 1
    return f": value {turns[0]} is {axis[turns[0]]}, after {axis[turns[0] - 1]}" if turns.size else ""


def _check_range(latitude: Float, longitude: Float, where: str) -> None:
    finite = latitude[np.isfinite(latitude)], longitude[np.isfinite(longitude)]
    for name, axis, limit in zip(("latitude", "longitude"), finite, (90.0, 360.0), strict=True):
        if axis.size == 0 or np.abs(axis).max() > limit + 1e-3:
            worst = float(axis[np.abs(axis).argmax()]) if axis.size else "no value"
            raise SchemaError(f"{where}: {name} has {worst}; expected degrees within {limit:.0f}")


def _clean(axis: Float, lattice: tuple[int, ...], tolerance: float, rebuild: bool, *, wrap: bool) -> Float:
    for steps in lattice:
        whole = np.rint(axis * steps)
        if np.abs(axis - whole / steps).max() <= tolerance and np.diff(whole).all():
            if wrap:  # in whole steps, so that 267.5 E and 92.5 W are the same float
                whole = (whole + 180 * steps) % (360 * steps) - 180 * steps
            return whole / steps
    if rebuild and axis.size > 2:
        even = np.linspace(axis[0], axis[-1], axis.size)
        if 1e-9 < np.abs(axis - even).max() <= tolerance:  # float64 axes keep their bits
            axis = even
    return _wrapped(axis) if wrap else axis


def _wrapped(longitude: Float) -> Float:
    """Longitudes in [-180, 180), bit for bit where they already are."""
    inside = (longitude >= -180.0) & (longitude < 180.0)
    return np.where(inside, longitude, wrap_longitude(longitude))
