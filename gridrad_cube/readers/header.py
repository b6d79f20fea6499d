"""Describe a scene before any pixel is read, and assemble the scene afterwards.

A reader's ``describe`` makes a `Header` from an open file and a `Request`, and its ``read`` makes the codes
of the
header's fields. `make_scene` puts both together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.geometry import lattice_origin, wrap_longitude
from gridrad_cube.readers.fields import (
    CONVERSIONS,
    Field,
    find_others,
    other_field,
    read_numbers,
    spelled,
)
from gridrad_cube.readers.files import Source
from gridrad_cube.schema import (
    CHANNELS,
    ECHO_STATISTICS,
    LOG_STATISTICS,
    STATISTICS,
    RadarSpec,
    SchemaError,
    channel_of,
)
from gridrad_cube.selection import DERIVED, find_altitudes, parse_label

_Float = npt.NDArray[np.float64]
#: Apparent displacement of clouds. Positions are those of the source's grid, so if a satellite file has the
#: correction, it is always read.
_PARALLAX = ("parallax_correction_latitude", "parallax_correction_longitude")
#: Positions that agree to this many degrees (a tenth of a meter) are the same grid.
_GRID_ID_RESOLUTION = 1e-6
#: Longitude over which a GOES satellite works, degrees east: 75.2 W is GOES-East (GOES-16 from December 2017
#: to April 2025, then GOES-19), 137.2 W GOES-West (GOES-17, then GOES-18), as NOAA's GOES-R program states
#: them. Files give the nominal 75 and 137 W of the projection instead.
_GOES_LONGITUDE = {16: -75.2, 19: -75.2, 17: -137.2, 18: -137.2}
_GOES = re.compile(r"GOES[-_ ]?(\d{2})(?!\d)", re.IGNORECASE)


#: Names that stores and answers use already; a channel of kind ``other`` cannot have them.
_RESERVED = frozenset((
    "altitude", "altitude_km", "channel", "col", "corner", "corner_latitude", "corner_longitude", "crop",
    "crs", "embedding", "feature", "flags", "grid", "grids", "latitude", "longitude", "observation_time",
    "padding", "patch", "patch_latitude", "patch_longitude", "rank", "report", "row",
    "satellite_zenith_angle", "scene", "scene_x", "scene_y", "score", "solar_zenith_angle",
    "solar_zenith_angle_maximum", "source", "source_file", "status", "time", "variable", "x", "x_origin",
    "x_start", "x_stop", "y", "y_origin", "y_start", "y_stop",
))  # fmt: skip
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SUFFIXES = ("histogram", *STATISTICS, *ECHO_STATISTICS, *LOG_STATISTICS)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Requested channels and altitudes, and the user's choice of variables and units."""

    channels: tuple[str, ...] = ()
    radar: RadarSpec = field(default_factory=RadarSpec)
    variables: tuple[tuple[str, str, str | None], ...] = ()

    def __post_init__(self) -> None:
        for label in self.channels:
            parse_label(label)
        for entry in self.variables:
            if len(entry) != 3:
                raise SchemaError(
                    f"variables: got {entry!r}; expected (channel, variable of the file, units)"
                )
            if entry[0] != "time":
                channel_of(entry[0])
            elif entry[2]:
                raise SchemaError(
                    f"variables: got units {entry[2]!r} of the time; expected those of the file alone"
                )
        for name in self.others:
            if problem := _name_problem(name, self.others):
                raise SchemaError(f"channels: got {name!r}; {problem}.")

    @property
    def others(self) -> tuple[str, ...]:
        """Requested names that are not in the table of channels: variables of the file."""
        names = dict.fromkeys(label.partition("@")[0] for label in self.channels)
        return tuple(name for name in names if name not in CHANNELS)

    def named(self) -> dict[str, tuple[str, str | None]]:
        """Return the variable and units of the file that the user gave, by channel."""
        return {
            channel: (variable, units) for channel, variable, units in self.variables if channel != "time"
        }

    @property
    def time_variable(self) -> str | None:
        """Variable that the user names as the time."""
        return next((variable for channel, variable, _ in self.variables if channel == "time"), None)


@dataclass(frozen=True, kw_only=True)
class Header:
    """A scene before its pixels are read.

    Parameters
    ----------
    fields
        The channels that the scene has, by name, in order.
    latitude, longitude
        Pixel positions in degrees: two 1-D axes, or two arrays on ``(y, x)``; longitudes in [-180, 180).
    altitude_km
        All altitudes of the file, in its order; ``levels`` are the positions among them of the scene's altitudes.
    further
        Further channels of the file: of the table, and other variables on the same pixels.
    is_projected
        True if the positions are those of a projection. Pixels that are not on the Earth are then not
        observed.
    satellite_longitude
        Degrees east, known of some geostationary satellites.
    observation_time
        Time at which each line was scanned, if the file has it.
    lead_time
        Hours from the initial time of a forecast, if the file has it.
    times
        Times of all scenes of the file, in its order; empty if it has one scene.
    """

    path: str
    format: str
    product: str
    time: np.datetime64
    latitude: _Float = field(repr=False)
    longitude: _Float = field(repr=False)
    fields: Mapping[str, Field] = field(repr=False)
    altitude_km: _Float = field(default_factory=lambda: np.zeros(0), repr=False)
    levels: tuple[int, ...] = ()
    further: tuple[str, ...] = ()
    is_projected: bool = False
    satellite_longitude: float | None = None
    observation_time: npt.NDArray[np.datetime64] | None = field(default=None, repr=False)
    lead_time: float | None = None
    times: npt.NDArray[np.datetime64] = field(
        default_factory=lambda: np.zeros(0, "datetime64[s]"), repr=False
    )

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the scene's channels."""
        return tuple(self.fields)

    @property
    def altitudes(self) -> tuple[float, ...]:
        """Altitudes of the scene, km, ascending."""
        return tuple(float(self.altitude_km[level]) for level in self.levels)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.latitude.shape[0], self.longitude.shape[-1]

    @cached_property
    def grid_id(self) -> str:
        """Name of the grid; see `grid_id`."""
        return grid_id(self.latitude, self.longitude)

    @property
    def lattice(self) -> tuple[int, int] | None:
        """Position of pixel (0, 0) on the lattice that all GridRad v4 grids share (`lattice_origin`)."""
        is_shared = self.format.startswith("gridrad_v4")
        return lattice_origin(self.latitude, self.longitude) if is_shared else None


def grid_id(latitude: _Float, longitude: _Float) -> str:
    """Return the name of a grid. Grids with equal shapes and positions (within a tenth of a meter) have the
    same name.

    Parameters
    ----------
    latitude, longitude
        Degrees, axes or on ``(y, x)``.

    Returns
    -------
    Hexadecimal digits of a hash.
    """
    shape = latitude.shape[0], longitude.shape[-1]
    digest = hashlib.sha256(repr((latitude.ndim, shape)).encode())
    for axis in (latitude, longitude):
        known = np.isfinite(axis)
        steps = np.rint(np.where(known, axis, 0.0) / _GRID_ID_RESOLUTION).astype("<i8")
        steps[~known] = np.iinfo(np.int64).min
        digest.update(np.ascontiguousarray(steps).tobytes())
    return digest.hexdigest()[:16]


def make_scene(header: Header, codes: Mapping[str, npt.NDArray[Any]]) -> xr.Dataset:
    """Put the codes of a header's fields and their coordinates together (`gridrad_cube.readers.read_scene`)."""
    on = (("y",), ("x",)) if header.latitude.ndim == 1 else (("y", "x"), ("y", "x"))
    coords: dict[str, Any] = {
        "latitude": (on[0], header.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": (on[1], header.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
        "time": ((), header.time, {"standard_name": "time"}),
    }
    if header.levels:
        up = {"units": "km", "standard_name": "altitude", "positive": "up"}
        coords["altitude"] = ("altitude", np.array(header.altitudes), up)
    if header.observation_time is not None:
        coords["observation_time"] = ("y", header.observation_time, {"long_name": "time of the scan line"})
    if header.lead_time is not None:
        ahead = {"units": "h", "standard_name": "forecast_period"}
        coords["forecast_period"] = ((), np.float32(header.lead_time), ahead)
    attributes: dict[str, Any] = {"source_format": header.format, "product": header.product}
    if header.satellite_longitude is not None:
        attributes["satellite_longitude"] = header.satellite_longitude
    variables = {}
    for name, about in header.fields.items():
        dims = ("altitude", "y", "x")[-len(about.dims) :]
        variables[name] = (dims, codes[name], about.packing.to_attributes() | dict(about.attributes))
    return xr.Dataset(variables, coords, attributes)


# --- channels and altitudes of a request


def make_header(
    source: Source,
    request: Request,
    *,
    axes: tuple[str, str],
    dims: tuple[str, str],
    available: Mapping[str, bool],
    field_of: Callable[[str], Field],
    default: Sequence[str],
    altitude_km: _Float = np.zeros(0),  # noqa: B008
    vertical: str | None = None,
    listed: str | None = None,
    positions: tuple[_Float, _Float] | None = None,
    lattice: tuple[int, ...] = (),
    tolerance: float = 0.0,
    **scene: Any,
) -> Header:
    """Return the header of a requested scene: its channels in order, its altitudes ascending, its grid.

    Parameters
    ----------
    axes
        The variables of latitude and longitude, for `make_grid` with ``lattice`` and ``tolerance``; or those of the
        coordinates of a projection, with the ``positions`` that it gives.
    dims, vertical, listed
        As for `find_others`.
    available
        Channels of the table that the file has: True for those on altitudes.
    field_of
        Function that describes one of these.
    default
        Channels of a request without names. Those of `PARALLAX` are always added.
    altitude_km
        Altitudes of the file, in its order.
    scene
        The other members of the header.

    Raises
    ------
    SchemaError
        If the file has none of the requested channels or lacks an altitude, or if channels have different
        altitudes: a scene has one list of altitudes.
    """
    others = find_others(source, request.others, dims, vertical, listed)
    others = {name: on for name, on in others.items() if name not in axes}
    on_altitudes = {n: len(on) == 3 for n, on in others.items() if n not in CHANNELS} | dict(available)
    names, levels = _select(request, on_altitudes, altitude_km, default, source)
    fields = {n: field_of(n) if n in available else other_field(source, n, others[n]) for n in names}
    _check_fields(source, fields, dims, altitude_km.size if listed or vertical else 1)
    taken = {about.variable for about in fields.values() if about.channel.name not in DERIVED}
    unknown = sorted(name for name in others if name not in taken and not _name_problem(name, (name,)))
    latitude, longitude = positions or (_read_positions(source, axes[0]), _read_positions(source, axes[1]))
    latitude, longitude = _make_grid(
        latitude, longitude, where=source.path, lattice=lattice, tolerance=tolerance
    )
    return Header(
        path=source.path,
        latitude=latitude,
        longitude=longitude,
        fields=fields,
        altitude_km=altitude_km,
        levels=levels,
        further=(*(name for name in available if name not in fields), *unknown),
        **scene,
    )


def _check_fields(source: Source, fields: Mapping[str, Field], dims: tuple[str, str], levels: int) -> None:
    """Refuse fields that are larger than the file can hold, and those that were declared and never written."""
    sizes = {d: n for variable in source.variables.values() for d, n in variable.sizes.items()}
    pixels, total = sizes[dims[0]] * sizes[dims[1]] * max(1, levels), 0
    for about in fields.values():
        variable = source.variables[about.variable]
        if source.stored(variable.name) == 0 and all(variable.shape):
            raise SchemaError(
                f"{variable.where} was declared and never written. Leave the file out, or pass channels=... without it."
            )
        size = pixels * np.dtype(about.packing.dtype).itemsize
        source.check_declared(f"variable {variable.name!r} on its grid", size)
        total += size
    source.check_declared(f"a scene of {len(fields)} channels", total)


def _select(
    request: Request, available: Mapping[str, bool], known: _Float, default: Sequence[str], source: Source
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the channels of a scene in order, and the positions of its altitudes among the known ones."""
    levels: dict[str, set[int]] = {}
    where = source.path

    def every() -> Iterable[int]:
        wanted = request.radar.altitudes_km
        return find_altitudes(known, wanted, where) if wanted else range(known.size)

    for label in request.channels or default:
        name, altitude = parse_label(label)
        if name not in available:
            continue
        found = levels.setdefault(name, set())
        if altitude is not None and not available[name]:
            raise SchemaError(f"{where}: {label!r} asked for, but {name!r} of this file has no altitudes")
        if altitude is not None:
            found.update(find_altitudes(known, (altitude,), where))
        elif available[name] and name in CHANNELS:
            found.update(every())
    if not levels:
        absent = sorted(name for name, _ in request.named().values() if name not in source.variables)
        raise SchemaError(
            f"{where}: none of the channels {list(request.channels or default)}; got {source.listing()}, of "
            f"which {sorted(available)} are channels"
            + (f"; the requested variables {absent} are missing" if absent else "")
            + ". Pass channels=... of those, or variables=((channel, variable, units),)."
        )
    levels |= {name: set() for name in _PARALLAX if name in available and name not in levels}
    lists = {frozenset(found) for found in levels.values() if found}
    if len(lists) > 1:
        raise SchemaError(
            f"{where}: {[name for name in levels if available[name]]} ask for different altitudes; expected one "
            "list a scene. Pass radar=RadarSpec(altitudes_km=...) and names without '@'."
        )
    if not lists and any(available[name] for name in levels):  # channels of kind other take what is there
        lists = {frozenset(every())}
    return tuple(levels), tuple(sorted(lists.pop(), key=lambda i: known[i])) if lists else ()


def _name_problem(name: str, others: Sequence[str]) -> str:
    """Return why a variable of a store cannot have a name beside everything else that is one; empty where it
    can.
    """
    lower, others = name.lower(), [n.lower() for n in others]  # some file systems ignore case
    rename = "A channel of kind other keeps its name: rename the variable in the file, or leave it out"
    if not _NAME.fullmatch(name):
        return f"expected a letter, then letters, digits and _. {rename}"
    if lower in CHANNELS:
        return f"that is a known channel. Pass channels=({lower!r},)"
    if others.count(lower) > 1:
        return "it is given twice. Pass each name once"
    if lower in _RESERVED or lower.endswith("_flags"):
        return f"stores have something else of this name. {rename}"
    if any(lower == f"{n}_{suffix}" for n in (*CHANNELS, *others) for suffix in _SUFFIXES):
        return f"stores have a statistic of this name. {rename}"
    return ""


# --- positions


def _read_positions(source: Source, name: str) -> _Float:
    """Return the latitude or longitude in degrees, an axis or on rows and columns.

    Positions that a file repeats at each time or altitude (WRF, Py-ART) are read once. Positions that change
    are refused.
    """
    variable, units = source.variables[name], source.variables[name].text("units").lower()
    long = [dim for dim, size in variable.sizes.items() if size > 1]
    if len(long) <= 2:
        values = read_numbers(source, name)
        values = values if values.ndim == 1 else np.squeeze(values)
    else:
        values, last = (
            read_numbers(source, name, tuple(slice(None) if d in long[-2:] else end for d in variable.dims))
            for end in (0, -1)
        )
        if not np.array_equal(values, last, equal_nan=True):
            raise SchemaError(
                f"{variable.where} on {variable.dims} {variable.shape} changes along {long[0]!r}; expected a grid that "
                f"does not move. Split the file: ds.isel({long[0]}=[i]).to_netcdf(...)."
            )
    return np.rad2deg(values) if units in ("radian", "radians", "rad") else values


def read_altitudes(source: Source, name: str, *, ascending: bool = False, units: str = "") -> _Float:
    """Return an altitude axis in km, as irregular as it is; float32 noise is rounded off at a millimeter.

    ``units`` are those of an axis without units. An axis is refused if it has other units, or is not strictly
    monotone (with ``ascending``: not strictly ascending).
    """
    units = spelled(source.variables[name].text("units")) or units
    if units not in CONVERSIONS["km"]:
        raise SchemaError(f"{source.path}: {name} in {units!r}; expected an altitude axis in km or m")
    values = np.round(source.read(name).ravel().astype(np.float64) * CONVERSIONS["km"][units][0], 6)
    if not values.size or _first_turn(values) or (ascending and values[0] > values[-1]):
        order = "ascend" if ascending else "be strictly monotone"
        raise SchemaError(f"{source.path}: {name} is {values.tolist()[:40]}; expected it to {order}")
    return values


def _make_grid(
    latitude: _Float, longitude: _Float, *, where: str, lattice: tuple[int, ...] = (), tolerance: float = 0.0
) -> tuple[_Float, _Float]:
    """Check axes and normalize them: longitudes wrapped, 1-D axes on their lattice where they lie on one.

    2-D arrays may hold NaN (off the Earth) and are kept as they are, but for the wrapping. An axis that is not strictly
    monotone and finite, or lies outside of the Earth, is refused.

    Parameters
    ----------
    latitude, longitude
        Degrees, both 1-D or both on ``(y, x)``.
    lattice
        Steps per degree of lattices to try: 1-D axes within ``tolerance`` degrees of multiples of ``1/n`` degree take
        those values, so that files agree bit for bit. An evenly spaced axis on none of them is made again from its
        first and last value (float32 axes jitter), if no pixel moves by more than ``tolerance``.
    """
    for name, axis, limit in (("latitude", latitude, 90.0), ("longitude", longitude, 360.0)):
        turn = _first_turn(axis) if axis.ndim == 1 else ""
        crosses = name == "longitude" and turn and not _first_turn(np.unwrap(axis, period=360.0))
        if turn and not crosses:  # 179 E, then 180 W is an axis
            raise SchemaError(
                f"{where}: {name} of {axis.size} values is not strictly monotone and finite: {turn}; "
                "expected it to ascend or to descend. Sort the file along it (xarray: ds.sortby), or leave it out."
            )
        finite = axis[np.isfinite(axis)]
        if finite.size == 0 or np.abs(finite).max() > limit + 1e-3:
            worst = float(finite[np.abs(finite).argmax()]) if finite.size else "no value"
            raise SchemaError(f"{where}: {name} has {worst}; expected degrees within {limit:.0f}")
    if latitude.ndim == 1:
        latitude, longitude = (_clean(axis, lattice, tolerance) for axis in (latitude, longitude))
    # Bit for bit where they already are in [-180, 180).
    inside = (longitude >= -180.0) & (longitude < 180.0)
    return latitude, np.where(inside, longitude, wrap_longitude(longitude))


def _first_turn(axis: _Float) -> str:
    """Return where an axis is no longer finite and strictly monotone, for a message; empty if all of it is."""
    steps = np.sign(np.diff(axis))
    bad = ~np.isfinite(axis)
    bad[1:] |= (steps != steps[:1]) | (steps == 0)
    if not bad.any():
        return ""
    first = int(bad.argmax())
    return f"value {first} is {axis[first]}" + (f", after {axis[first - 1]}" if first else "")


def _clean(axis: _Float, lattice: tuple[int, ...], tolerance: float) -> _Float:
    """Return an axis on the first lattice that it lies on; else evenly spaced where that moves no pixel too
    far.
    """
    for steps in lattice:
        whole = np.rint(axis * steps)
        if np.abs(axis - whole / steps).max() <= tolerance and np.diff(whole).all():
            # In whole steps, so that 267.5 E and 92.5 W are the same float; latitudes stay.
            return ((whole + 180 * steps) % (360 * steps) - 180 * steps) / steps
    even = np.linspace(axis[0], axis[-1], axis.size)
    is_even = 1e-9 < np.abs(axis - even).max() <= tolerance  # float64 axes keep their bits
    return even if lattice and axis.size > 2 and is_even else axis


def goes_longitude(source: Source) -> float | None:
    """Return the longitude, degrees east, of the GOES satellite that a file's attributes or name give; None
    without one.
    """
    words = [v for v in source.attributes.values() if isinstance(v, str) and len(v) < 200]
    for candidate in (*words, source.name):
        match = _GOES.search(candidate)
        if match:
            return _GOES_LONGITUDE.get(int(match[1]))
    return None
