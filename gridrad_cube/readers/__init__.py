"""One file and time in, one scene out.

``read_scene`` gives an `xarray.Dataset` whose variables hold packed codes with CF attributes, so that
``xarray.decode_cf(scene)`` gives physical values; ``inspect`` reads the header alone. The layout is found by
content. As xarray engines: ``xr.open_dataset(path, engine="gridrad")`` and ``engine="larc_goes"``.

Files are not trusted: see `gridrad_cube.readers.files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.readers import cf, gridrad, larc_goes
from gridrad_cube.readers.fields import common_packing, recode
from gridrad_cube.readers.files import Source, Variable, open_source
from gridrad_cube.readers.gridrad import RadarVolume, densify
from gridrad_cube.readers.header import Header, Request, grid_id, make_scene
from gridrad_cube.readers.times import find_times, parse_stamp
from gridrad_cube.schema import RadarSpec, SchemaError
from gridrad_cube.selection import as_time
from gridrad_cube.sources import local_copy

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Header",
    "RadarVolume",
    "common_packing",
    "densify",
    "grid_id",
    "inspect",
    "list_contents",
    "parse_stamp",
    "read_fields",
    "read_scene",
    "recode",
]

#: What ``format=`` takes. ``gridrad`` stands for any of its versions.
FORMATS = ("auto", "larc_goes", "gridrad", "gridrad_v3_1", "gridrad_v4_1", "gridrad_v4_2", "cf")
#: Ends of names of files that are read.
SUFFIXES = (".nc", ".nc4", ".cdf", ".hdf5", ".grib2", ".grb2", ".grib2.gz", ".grb2.gz")

_Path = str | os.PathLike[str]
_Variables = Iterable[tuple[str, str, str | None]]


def __dir__() -> list[str]:
    return __all__


def inspect(
    path: _Path,
    *,
    time: Any = None,
    format: str = "auto",
    channels: Iterable[str] = (),
    radar: RadarSpec = RadarSpec(),  # noqa: B008
    variables: _Variables = (),
) -> Header:
    """Say what `read_scene` would give, from the header alone: no pixel is read.

    Takes the parameters of `read_scene` and raises as it does, but describes the first scene of a file of several
    times where no time is given: ``times`` of the header has all of them.
    """
    request = _request(channels, radar, variables)
    with _opened(path) as source:
        return open_scene(source, format, request, time)[1]


def read_scene(
    path: _Path,
    *,
    time: Any = None,
    format: str = "auto",
    channels: Iterable[str] = (),
    radar: RadarSpec = RadarSpec(),  # noqa: B008
    variables: _Variables = (),
    clean: gridrad.Clean | None = None,
) -> xr.Dataset:
    """Read one file at one time as one scene.

    The channels asked for are read whole into memory, in packed form; the file is closed again. One lock a
    process is held meanwhile (netCDF and HDF5 are not thread-safe): parallel work wants processes.

    Parameters
    ----------
    path
        A netCDF or GRIB2 file, local or by URL.
    time
        Which scene of a file of several times to read, UTC, as `gridrad_cube.selection.as_time` reads it. Only this
        part of the file is read.
    format
        One of `FORMATS`; found by content by default.
    channels
        Names of `gridrad_cube.schema.CHANNELS`; those that the file lacks are left out. Radar moments take a
        level as in ``reflectivity@3.0km``, several times if need be. None: both of a LaRC file, the column
        maximum of GridRad, all that a CF file has. Any other name, such as ``ot_id_number`` or ``Nradobs``, is a
        variable of the file on the same pixels and becomes a channel of kind ``other``: nothing of it is converted.
        A parallax correction of a satellite file is one of these channels unasked.
    radar
        Altitudes of radar moments that name none (all by default), and the threshold of echo tops.
    variables
        ``(channel, variable of the file, its units)`` where a file does not say what a variable is; units may be None
        if the file has them. A file without that variable is a file without the channel. ``("time", variable, None)``
        where several variables may be the time.
    clean
        Quality control of GridRad volumes, before levels are taken and fields derived: a function of a
        `RadarVolume` (all levels, weights and counts) and the channels wanted, that gives dense codes by channel;
        see `densify`.

    Returns
    -------
    Channels on ``(y, x)`` or ``(altitude, y, x)`` as codes, with the attributes of `Packing` and `Channel`;
    float sources are packed by the channel's table, integer sources keep dtype and codes. Channels of kind ``other``
    have the attribute ``role="companion"``: integers keep dtype and codes, floats are values. GridRad's
    weights are 0 in every bin that the file does not list: no gate gave it a value. Coordinates
    ``latitude``, ``longitude`` (degrees, [-180, 180), 1-D or 2-D), scalar ``time`` (UTC, to the second),
    ``altitude`` (km), ``observation_time(y)`` and scalar ``forecast_period`` (h) where there are such. Attributes
    ``source_format``, ``product`` and, for a known geostationary satellite, ``satellite_longitude``; ``notes``, what
    was warned about.

    Warns
    -----
    UserWarning
        Of an attribute that cannot be used and is ignored, and of integers that are packed anew.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If the file is not readable as scenes, has none of the channels, or not the altitude; if it lacks the time, or
        has several and none is given; if a channel's name is taken, or its variable holds no numbers on the pixels of
        the scene.
    """
    request = _request(channels, radar, variables)
    with _opened(path) as source:
        part, header = open_scene(source, format, request, time)
        if time is None:
            check_one_time(header)
        scene = make_scene(header, read_channels(part, header, request, clean))
        if notes := [note for variable in part.variables.values() for note in variable.notes]:
            scene.attrs["notes"] = notes
        return scene


def read_fields(path: _Path) -> xr.Dataset:
    """Read every 2-D field of a file on its scene's pixels, as `read_scene`; those in no table as kind ``other``.

    Of a file of several times the first scene.

    Raises
    ------
    FileNotFoundError, SchemaError
        As `read_scene`.
    """
    with _opened(path) as source:
        scene, header = open_scene(source, "auto", Request())
        shapes = {name: variable.shape for name, variable in scene.variables.items()}
        flat = [n for n in header.further if sum(size != 1 for size in shapes.get(n, ())) == 2]
        request = Request(channels=(*header.channels, *flat))
        scene, header = open_scene(source, "auto", request)
        return make_scene(header, read_channels(scene, header, request))


def list_contents(path: _Path) -> tuple[dict[str, Any], dict[str, Variable]]:
    """Return the global attributes and variables of any netCDF file, from its header alone.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If it is not a netCDF file.
    """
    with _opened(path) as source:
        return source.attributes, source.variables


@contextmanager
def _opened(path: _Path) -> Iterator[Source]:
    """A source file, at a local path or a URL."""
    name = os.fspath(path)
    with local_copy(name) as here, open_source(here, name) as source:
        yield source


def _request(channels: Iterable[str], radar: RadarSpec, variables: _Variables) -> Request:
    return Request(
        channels=(channels,) if isinstance(channels, str) else tuple(channels),
        radar=radar,
        variables=tuple(tuple(v) for v in variables),  # type: ignore[misc]
    )


def _find_reader(source: Source, wanted: str) -> ModuleType:
    """Return the module that reads a file; a format asked for is held against what the file is."""
    if wanted not in FORMATS:
        raise SchemaError(f"format: got {wanted!r}; expected one of {list(FORMATS)}")
    if wanted in ("cf", "larc_goes"):  # both take files that are not unmistakable
        return cf if wanted == "cf" else larc_goes
    found = larc_goes.find_format(source) or gridrad.find_format(source) or cf.FORMAT
    if wanted not in ("auto", found) and not (wanted == "gridrad" and found.startswith("gridrad")):
        raise SchemaError(f"{source.path}: the file is {found}, got format={wanted!r}. Pass format='auto'.")
    return {"larc_goes": larc_goes, "cf": cf}.get(found, gridrad)


def open_scene(source: Source, format: str, request: Request, time: Any = None) -> tuple[Source, Header]:
    """Return the scene of a file at a time, or its first one, as a source of one time; and its header."""
    reader, axis = _find_reader(source, format), find_times(source, request.time_variable)
    several, position = axis.values if axis.values.size > 1 else axis.values[:0], 0
    wanted = None if time is None else as_time(time)
    if wanted is not None and several.size and wanted in several:
        position = int(np.flatnonzero(several == wanted)[0])
    scene = source.at(axis.dim, position)
    header: Header = reader.describe(scene, request)
    if wanted not in (None, header.time):
        there = f"{several[0]} to {several[-1]}, {several.size} times" if several.size else str(header.time)
        raise SchemaError(f"{source.path}: no scene at {wanted}; it has {there}. Pass one of its times.")
    if time is None and several.size:
        last: Header = reader.describe(source.at(axis.dim, several.size - 1), request)
        if last.grid_id != header.grid_id:
            raise SchemaError(
                f"{source.path}: the grid moves from {header.time} to {last.time}; expected one grid. "
                f"Split the file: ds.isel({axis.dim}=[i]).to_netcdf(...) for each."
            )
    return scene, replace(header, times=several)


def check_one_time(header: Header) -> None:
    """Refuse a file of several times where one scene is expected."""
    if (times := header.times).size:
        raise SchemaError(
            f"{header.path}: {times.size} times, {times[0]} to {times[-1]}; expected one, or to be told which. Pass "
            f"time={str(times[0])!r} to read_scene."
        )


def read_channels(
    source: Source, header: Header, request: Request, clean: gridrad.Clean | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Return the codes of the channels of a header."""
    if header.format.startswith("gridrad"):
        return gridrad.read(source, header, request, clean)
    return cf.read(source, header, request)
