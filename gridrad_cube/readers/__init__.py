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

import xarray as xr

from gridrad_cube.readers import cf, gridrad, larc_goes
from gridrad_cube.readers.derived import at_altitudes, column_maximum, echo_top_height
from gridrad_cube.readers.files import Source, Variable, open_source
from gridrad_cube.readers.request import Request
from gridrad_cube.readers.scenes import SceneHeader, make_scene
from gridrad_cube.readers.times import parse_stamp
from gridrad_cube.readers.volume import RadarVolume, densify, format_of, is_sparse, read_volume_grid
from gridrad_cube.readers.volume import read_volume as _read_volume
from gridrad_cube.schema import CHANNELS, RadarSpec, SchemaError

__all__ = [
    "FORMATS",
    "RadarVolume",
    "SceneHeader",
    "at_altitudes",
    "column_maximum",
    "densify",
    "detect_format",
    "echo_top_height",
    "inspect",
    "list_contents",
    "parse_stamp",
    "read_fields",
    "read_scene",
    "read_volume",
]

#: What ``format=`` takes. ``gridrad`` stands for any of its versions.
FORMATS = ("auto", "larc_goes", "gridrad", "gridrad_v3_1", "gridrad_v4_1", "gridrad_v4_2", "cf")

Path = str | os.PathLike[str]
Variables = Iterable[tuple[str, str, str | None]]


def detect_format(path: Path) -> str:
    """Name the format of a file, by its content.

    Returns
    -------
    ``larc_goes``, ``gridrad_v3_1``, ``gridrad_v4_2``, ``gridrad_v4_1``, or ``cf`` for any other netCDF file
    (which `inspect` may still refuse).

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If it is not a netCDF file.
    """
    with open_source(path) as source:
        return _format_of(source)


def _format_of(source: Source) -> str:
    if gridrad.matches(source):
        return format_of(source)
    return larc_goes.FORMAT if larc_goes.matches(source) else cf.FORMAT


def _reader(source: Source, wanted: str) -> ModuleType:
    """The module that reads a file; a format asked for is held against what the file is."""
    if wanted not in FORMATS:
        raise SchemaError(f"format: got {wanted!r}; expected one of {list(FORMATS)}")
    if wanted in ("cf", "larc_goes"):  # both take files that are not unmistakable
        return cf if wanted == "cf" else larc_goes
    found = _format_of(source)
    if wanted not in ("auto", found) and not (wanted == "gridrad" and found.startswith("gridrad")):
        raise SchemaError(f"{source.path}: the file is {found}, got format={wanted!r}. Pass format='auto'.")
    if found.startswith("gridrad"):
        return gridrad
    return larc_goes if found == larc_goes.FORMAT else cf


def _request(channels: Iterable[str], radar: RadarSpec, variables: Variables) -> Request:
    labels = (channels,) if isinstance(channels, str) else tuple(channels)
    known = tuple(label for label in labels if label.split("@")[0] in CHANNELS)
    return Request(
        channels=known,
        radar=radar,
        variables=tuple(tuple(v) for v in variables),  # type: ignore[misc]
        companions=tuple(dict.fromkeys(label.split("@")[0] for label in labels if label not in known)),
    )


def inspect(
    path: Path,
    *,
    format: str = "auto",
    channels: Iterable[str] = (),
    radar: RadarSpec = RadarSpec(),  # noqa: B008
    variables: Variables = (),
) -> SceneHeader:
    """Say what `read_scene` would give, from the header alone: no pixel is read.

    Takes the parameters of `read_scene` and raises as it does.
    """
    request = _request(channels, radar, variables)
    with open_source(path) as source:
        return _reader(source, format).describe(source, request).header()


def read_scene(
    path: Path,
    *,
    format: str = "auto",
    channels: Iterable[str] = (),
    radar: RadarSpec = RadarSpec(),  # noqa: B008
    variables: Variables = (),
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
        be None if the file has them.
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
    ``product`` and, for a known geostationary satellite, ``satellite_longitude``.

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
        reader = _reader(source, format)
        description = reader.describe(source, request)
        options = {"clean": clean} if reader is gridrad else {}
        fields = reader.read(source, description, request, **options)
    return make_scene(description, fields)


def list_contents(path: Path) -> tuple[dict[str, Any], dict[str, Variable]]:
    """Global attributes and variables of any netCDF file, from its header alone; raises as `detect_format`."""
    with open_source(path) as source:
        return source.attributes, source.variables


def read_fields(path: Path) -> xr.Dataset:
    """Read every 2-D field of a file on its scene's pixels, as `read_scene`; those in no table as kind ``other``.

    Raises
    ------
    FileNotFoundError, SchemaError
        As `read_scene`.
    """
    header = inspect(path)
    _, variables = list_contents(path)
    flat = [name for name in header.further if sum(n != 1 for n in variables[name].shape) == 2]
    return read_scene(path, channels=(*header.channels, *flat))


def read_volume(
    path: Path, fields: Iterable[str] = ("reflectivity",), *, weights: bool = False, nradecho: bool = False
) -> RadarVolume:
    """Read a GridRad file as lists of bins, for quality control between reading and `densify`.

    Parameters
    ----------
    fields
        Channels; the file's own are in ``header.names`` of the result.
    weights, nradecho
        Whether to read the weights of reflectivity, and the counts of echoes, too.

    Raises
    ------
    SchemaError
        As `read_scene`, or if the file is no GridRad file.
    """
    with open_source(path) as source:
        if not gridrad.matches(source):
            raise SchemaError(
                f"{path}: not a GridRad file, got {source.listing()}; expected index and Reflectivity, or ZH"
            )
        header = read_volume_grid(source)
        if (weights or nradecho) and not is_sparse(source):
            raise SchemaError(
                f"{path}: {header.format} has no weights and counts; expected the sparse layout"
            )
        return _read_volume(source, header, tuple(fields), weights=weights, nradecho=nradecho)
