"""Read one scene, one file at one time, as an `xarray.Dataset` of packed codes.

``xarray.decode_cf(scene)`` gives physical values, and ``inspect`` reads the header alone. The format is
recognized by
the content of the file. The readers are also xarray engines: ``xr.open_dataset(path, engine="gridrad")`` and
``engine="larc_goes"``. Nothing here cuts scenes or writes a store.

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
from gridrad_cube.readers.files import Source, UnreadableError, Variable, open_source
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
    "UnreadableError",
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

#: Values of ``format=``. ``gridrad`` stands for any of its versions.
FORMATS = ("auto", "larc_goes", "gridrad", "gridrad_v3_1", "gridrad_v4_1", "gridrad_v4_2", "cf")
#: Suffixes of files that are read.
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
    """Return the header of the scene that `read_scene` would return, without reading pixels.

    If the file has several times and ``time`` is None, the header describes the first scene, and its
    ``times`` lists all.

    Parameters
    ----------
    path, time, format, channels, radar, variables
        As of `read_scene`.

    Returns
    -------
    The header: format, channels, grid and times.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        As of `read_scene`.
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

    The requested channels are read into memory, in packed form, and the file is closed. A lock of the process
    is held during the read, because netCDF and HDF5 are not thread-safe: use processes, not threads, to read
    in parallel.

    Parameters
    ----------
    path
        A netCDF or GRIB2 file, local or by URL.
    time
        Time of the scene to read from a file of several times, UTC, as of `gridrad_cube.selection.as_time`.
        Only this part of the file is read.
    format
        One of `FORMATS`; found by content by default.
    channels
        Names of `gridrad_cube.schema.CHANNELS`; names that are missing in the file are ignored. Radar moments
        can have a level, as in ``reflectivity@3.0km``, and several levels are several names. By default: both
        channels of a LaRC file, the column maximum of GridRad, all channels of a CF file. Any other name,
        such as ``ot_id_number`` or ``Nradobs``, is a variable of the file on the same pixels and becomes a
        channel of kind ``other``, which is not converted. A parallax correction of a satellite file is always
        read.
    radar
        Altitudes of radar moments without a level in their name (default: all), and the threshold of echo
        tops.
    variables
        Triples ``(channel, variable of the file, units)`` for variables that the file does not identify.
        Units are None if the file states them. If the file lacks the variable, it lacks the channel.
        ``("time", variable, None)`` names the time if several variables may be it.
    clean
        Quality control of GridRad volumes, before levels are selected and fields are derived: a function of a
        `RadarVolume` (all levels, weights and counts) and the requested channels that returns dense codes by
        channel; see `densify`.

    Returns
    -------
    Channels on ``(y, x)`` or ``(altitude, y, x)`` as codes, with the attributes of `Packing` and `Channel`;
    float sources are packed by the channel's table, integer sources keep dtype and codes. Channels of kind ``other``
    have the attribute ``role="companion"``: integers keep dtype and codes, floats are values. GridRad's
    weights are 0 in every bin that the file does not list, because no gate gave it a value. Coordinates are
    ``latitude``, ``longitude`` (degrees, [-180, 180), 1-D or 2-D), scalar ``time`` (UTC, to the second) and,
    if the file has them, ``altitude`` (km), ``observation_time(y)`` and scalar ``forecast_period`` (h).
    Attributes are ``source_format``, ``product``, ``notes`` (the warnings) and, for a known geostationary
    satellite, ``satellite_longitude``.

    Warns
    -----
    UserWarning
        If an attribute cannot be used and is ignored, or if integers are packed again.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If the file cannot be read as scenes, or lacks all of the channels, the altitude or the time; if it
        has several times and ``time`` is None; if the name of a channel is in use, or its variable does not
        hold numbers on the pixels of the scene.
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
    """Read every 2-D field of a file on the pixels of its scene, as `read_scene` does.

    Variables that are not in the table of channels have kind ``other``. Of a file of several times, the first
    is read.

    Parameters
    ----------
    path
        Local path or URL of the file.

    Returns
    -------
    The scene.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        As of `read_scene`.
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

    Parameters
    ----------
    path
        Local path or URL of the file.

    Returns
    -------
    Attributes, and the variables by name.

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
    """Open a source file, at a local path or a URL."""
    name = os.path.expanduser(path)
    with local_copy(name) as here, open_source(here, name) as source:
        yield source


def _request(channels: Iterable[str], radar: RadarSpec, variables: _Variables) -> Request:
    return Request(
        channels=(channels,) if isinstance(channels, str) else tuple(channels),
        radar=radar,
        variables=tuple(tuple(v) for v in variables),  # type: ignore[misc]
    )


def _find_reader(source: Source, wanted: str) -> ModuleType:
    """Return the module that reads a file, after comparing the requested format with that of the file."""
    if wanted not in FORMATS:
        raise SchemaError(f"format: got {wanted!r}; expected one of {list(FORMATS)}")
    if wanted in ("cf", "larc_goes"):  # both readers accept files without a clear sign of a format
        return cf if wanted == "cf" else larc_goes
    found = larc_goes.find_format(source) or gridrad.find_format(source) or cf.FORMAT
    if wanted not in ("auto", found) and not (wanted == "gridrad" and found.startswith("gridrad")):
        raise SchemaError(f"{source.path}: the file is {found}, got format={wanted!r}. Pass format='auto'.")
    return {"larc_goes": larc_goes, "cf": cf}.get(found, gridrad)


def open_scene(source: Source, format: str, request: Request, time: Any = None) -> tuple[Source, Header]:
    """Return one scene of a file as a source with a single time, and its header. Without a time, it is the
    first.
    """
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
    """Refuse a file of several times if a single scene is expected."""
    if (times := header.times).size:
        raise SchemaError(
            f"{header.path}: {times.size} times, {times[0]} to {times[-1]}; expected one time. Pass "
            f"time={str(times[0])!r} to read_scene."
        )


def read_channels(
    source: Source, header: Header, request: Request, clean: gridrad.Clean | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Return the codes of the channels of a header."""
    if header.format.startswith("gridrad"):
        return gridrad.read(source, header, request, clean)
    return cf.read(source, header, request)
