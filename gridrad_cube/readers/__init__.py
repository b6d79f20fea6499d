"""One file in, one scene out.

``read_scene`` gives an `xarray.Dataset` whose variables hold packed codes with CF attributes, so that
``xarray.decode_cf(scene)`` gives physical values; ``inspect`` reads the header alone. The layout is found by
content. As xarray engines: ``xr.open_dataset(path, engine="gridrad")`` and ``engine="larc_goes"``.

Files are not trusted: see `gridrad_cube.readers.files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy.typing as npt
import xarray as xr

from gridrad_cube.readers import cf, gridrad, larc_goes
from gridrad_cube.readers.fields import common_packing, recode
from gridrad_cube.readers.files import Source, Variable, open_source
from gridrad_cube.readers.gridrad import RadarVolume, densify
from gridrad_cube.readers.header import Header, Request, make_scene, parse_stamp
from gridrad_cube.schema import RadarSpec, SchemaError

__all__ = [
    "FORMATS",
    "Header",
    "RadarVolume",
    "common_packing",
    "densify",
    "inspect",
    "list_contents",
    "parse_stamp",
    "read_fields",
    "read_scene",
    "recode",
]

#: What ``format=`` takes. ``gridrad`` stands for any of its versions.
FORMATS = ("auto", "larc_goes", "gridrad", "gridrad_v3_1", "gridrad_v4_1", "gridrad_v4_2", "cf")

_Path = str | os.PathLike[str]
_Variables = Iterable[tuple[str, str, str | None]]


def __dir__() -> list[str]:
    return __all__


def inspect(
    path: _Path,
    *,
    format: str = "auto",
    channels: Iterable[str] = (),
    radar: RadarSpec = RadarSpec(),  # noqa: B008
    variables: _Variables = (),
) -> Header:
    """Say what `read_scene` would give, from the header alone: no pixel is read.

    Takes the parameters of `read_scene` and raises as it does.
    """
    request = _request(channels, radar, variables)
    with open_source(path) as source:
        header: Header = find_reader(source, format).describe(source, request)
    return header


def read_scene(
    path: _Path,
    *,
    format: str = "auto",
    channels: Iterable[str] = (),
    radar: RadarSpec = RadarSpec(),  # noqa: B008
    variables: _Variables = (),
    clean: gridrad.Clean | None = None,
) -> xr.Dataset:
    """Read one file as one scene.

    The channels asked for are read whole into memory, in packed form; the file is closed again. One lock a
    process is held meanwhile (netCDF and HDF5 are not thread-safe): parallel work wants processes.

    Parameters
    ----------
    path
        A netCDF file of one time.
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
        ``(channel, variable of the file, its units)`` where a file does not say what a variable is; units may
        be None if the file has them. A file without that variable is a file without the channel.
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
    ``altitude`` (km) and ``observation_time(y)`` where there are such. Attributes ``source_format``,
    ``product`` and, for a known geostationary satellite, ``satellite_longitude``; ``notes``, what was warned about.

    Warns
    -----
    UserWarning
        Of an attribute that cannot be used and is ignored, and of integers that are packed anew.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If the file is not a readable scene of one time, has none of the channels, or not the altitude; if a
        channel's name is taken, or its variable holds no numbers on the pixels of the scene.
    """
    request = _request(channels, radar, variables)
    with open_source(path) as source:
        header = find_reader(source, format).describe(source, request)
        scene = make_scene(header, read_channels(source, header, request, clean))
        if notes := [note for variable in source.variables.values() for note in variable.notes]:
            scene.attrs["notes"] = notes
        return scene


def read_fields(path: _Path) -> xr.Dataset:
    """Read every 2-D field of a file on its scene's pixels, as `read_scene`; those in no table as kind ``other``.

    Raises
    ------
    FileNotFoundError, SchemaError
        As `read_scene`.
    """
    with open_source(path) as source:
        reader = find_reader(source, "auto")
        header = reader.describe(source, Request())
        shapes = {name: variable.shape for name, variable in source.variables.items()}
        flat = [n for n in header.further if sum(size != 1 for size in shapes.get(n, ())) == 2]
        request = Request(channels=(*header.channels, *flat))
        header = reader.describe(source, request)
        return make_scene(header, read_channels(source, header, request))


def list_contents(path: _Path) -> tuple[dict[str, Any], dict[str, Variable]]:
    """Global attributes and variables of any netCDF file, from its header alone.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If it is not a netCDF file.
    """
    with open_source(path) as source:
        return source.attributes, source.variables


def _request(channels: Iterable[str], radar: RadarSpec, variables: _Variables) -> Request:
    return Request(
        channels=(channels,) if isinstance(channels, str) else tuple(channels),
        radar=radar,
        variables=tuple(tuple(v) for v in variables),  # type: ignore[misc]
    )


def find_reader(source: Source, wanted: str) -> ModuleType:
    """The module that reads a file; a format asked for is held against what the file is."""
    if wanted not in FORMATS:
        raise SchemaError(f"format: got {wanted!r}; expected one of {list(FORMATS)}")
    if wanted in ("cf", "larc_goes"):  # both take files that are not unmistakable
        return cf if wanted == "cf" else larc_goes
    found = larc_goes.find_format(source) or gridrad.find_format(source) or cf.FORMAT
    if wanted not in ("auto", found) and not (wanted == "gridrad" and found.startswith("gridrad")):
        raise SchemaError(f"{source.path}: the file is {found}, got format={wanted!r}. Pass format='auto'.")
    return {"larc_goes": larc_goes, "cf": cf}.get(found, gridrad)


def read_channels(
    source: Source, header: Header, request: Request, clean: gridrad.Clean | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Codes of the channels of a header."""
    if header.format.startswith("gridrad"):
        return gridrad.read(source, header, request, clean)
    return cf.read(source, header, request)
