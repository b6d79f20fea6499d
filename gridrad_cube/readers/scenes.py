"""What every format's reader makes: a description from the header, and from it the scene."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.geometry import lattice_origin
from gridrad_cube.readers.companions import Companion
from gridrad_cube.readers.fields import Field
from gridrad_cube.readers.files import Source
from gridrad_cube.readers.grids import Grid
from gridrad_cube.readers.request import Selection, is_companion_name
from gridrad_cube.schema import CHANNELS

#: Longitude over which a GOES satellite works, degrees east: 75.2 W is GOES-East (GOES-16 from December 2017
#: to April 2025, then GOES-19), 137.2 W GOES-West (GOES-17, then GOES-18), as NOAA's GOES-R programme states
#: them. Files give the nominal 75 and 137 W of the projection instead.
GOES_LONGITUDE = {16: -75.2, 19: -75.2, 17: -137.2, 18: -137.2}
_GOES = re.compile(r"GOES[-_ ]?(\d{2})(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SceneHeader:
    """What a plan needs to know of a file, from its header alone.

    ``channels`` are the data variables that `read_scene` would give for the same request,
    ``altitudes`` (km) the levels of those that have any. ``grid_id`` is equal for files on the same pixels.
    ``lattice`` is where pixel (0, 0) of a GridRad v4 grid lies on the lattice that all of them share
    (`lattice_origin`). ``further`` are variables of the file on the same pixels, which may be asked for as channels.
    ``satellite_longitude`` (degrees east) is known of a geostationary satellite, ``has_scan_times`` where the file
    says when each line was scanned.
    """

    format: str
    time: np.datetime64
    shape: tuple[int, int]
    channels: tuple[str, ...]
    grid_id: str
    product: str
    altitudes: tuple[float, ...] = ()
    lattice: tuple[int, int] | None = None
    further: tuple[str, ...] = ()
    satellite_longitude: float | None = None
    has_scan_times: bool = False


@dataclass(frozen=True, kw_only=True)
class Description:
    """A file's header in the package's own terms, before any pixel is read.

    ``variables`` maps a channel to the file's variable and the factor and offset to the channel's units,
    ``companions`` has the companion fields, ``further`` the names of all variables that could be. ``dims`` are the
    file's names of row and column, ``vertical`` that of altitude, whose values in the file's order are
    ``altitude_km``.
    """

    format: str
    product: str
    time: np.datetime64
    grid: Grid
    selection: Selection
    variables: Mapping[str, tuple[str, tuple[float, float]]]
    companions: Mapping[str, Companion] = field(default_factory=dict)
    further: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    vertical: str | None = None
    altitude_km: npt.NDArray[np.float64] | None = None
    satellite_longitude: float | None = None
    observation_time: npt.NDArray[np.datetime64] | None = None

    def header(self) -> SceneHeader:
        """The part of it that a plan needs."""
        return SceneHeader(
            format=self.format,
            time=self.time,
            shape=self.grid.shape,
            channels=(*self.selection.variables, *self.companions),
            grid_id=self.grid.id,
            product=self.product,
            altitudes=self.selection.altitudes,
            lattice=(
                lattice_origin(self.grid.latitude, self.grid.longitude)
                if self.format.startswith("gridrad_v4")
                else None
            ),
            further=self._further(),
            satellite_longitude=self.satellite_longitude,
            has_scan_times=self.observation_time is not None,
        )

    def _further(self) -> tuple[str, ...]:
        taken = {name for name, _ in self.variables.values()} | set(self.companions)
        return tuple(sorted(name for name in self.further if name not in taken and is_companion_name(name)))


def make_scene(description: Description, fields: Mapping[str, Field]) -> xr.Dataset:
    """Put fields and coordinates together as a scene (`gridrad_cube.readers.read_scene`)."""
    grid = description.grid
    on = (("y",), ("x",)) if grid.latitude.ndim == 1 else (("y", "x"), ("y", "x"))
    coords: dict[str, Any] = {
        "latitude": (on[0], grid.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": (on[1], grid.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
        "time": ((), description.time, {"standard_name": "time"}),
    }
    if any(each.codes.ndim == 3 for each in fields.values()):
        coords["altitude"] = (
            ("altitude",),
            np.array(description.selection.altitudes),
            {"units": "km", "standard_name": "altitude", "positive": "up"},
        )
    if description.observation_time is not None:
        coords["observation_time"] = (
            ("y",),
            description.observation_time,
            {"long_name": "time of the scan line"},
        )
    attributes: dict[str, Any] = {"source_format": description.format, "product": description.product}
    if description.satellite_longitude is not None:
        attributes["satellite_longitude"] = description.satellite_longitude
    variables = {}
    for name, each in fields.items():
        known = description.companions.get(name)
        said = CHANNELS[name].attributes() if known is None else dict(known.attributes)
        dims = ("altitude", "y", "x")[-each.codes.ndim :]
        variables[name] = (dims, each.codes, each.packing.to_attributes() | said)
    return xr.Dataset(variables, coords, attributes)


def goes_number(source: Source) -> int | None:
    """Number of the GOES satellite that a file's attributes or name tell, or None."""
    words = [v for v in source.attributes.values() if isinstance(v, str) and len(v) < 200]
    for candidate in (*words, source.name):
        match = _GOES.search(candidate)
        if match:
            return int(match[1])
    return None
