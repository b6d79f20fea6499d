"""The arrays of ``patches.zarr``: their names, dims, chunks and attributes (design: the cube on disk)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gridrad_cube.schema import (
    TIME_FILL,
    TIME_UNITS,
    Channel,
    Packing,
    SchemaError,
    channel_in,
    flag_attributes,
    statistic_units,
    statistics_of,
)
from gridrad_cube.store.arrays import ArraySpec, Codec

#: Values of ``status``: every planned crop keeps its row, whatever became of it.
STATUS = {"written": 0, "skipped": 1, "failed": 2}


#: Auxiliary coordinates of what has one value a patch, as CF says them; xarray attaches these.
_PLACE = {"coordinates": "time latitude longitude status grid scene source"}


@dataclass(frozen=True, kw_only=True)
class ChannelLayout:
    """One data variable of a store: its packing, attributes and altitudes (none for a 2-D channel)."""

    name: str
    packing: Packing
    attributes: Mapping[str, Any]
    altitudes_km: tuple[float, ...] = ()

    @property
    def channel(self) -> Channel:
        """What it is: a channel of the table, or of kind ``other``."""
        attributes = dict(self.attributes) | self.packing.to_attributes()
        return channel_in(self.name, attributes, self.packing.dtype)

    @property
    def fill(self) -> int | float:
        """Value of pixels that nobody observed, and of a shard that a scene lacks."""
        if np.dtype(self.packing.dtype).kind == "f":
            return np.nan
        if self.packing.fill_value is None:
            raise SchemaError(f"{self.name}: the packing has no code for a pixel that was not observed")
        return self.packing.fill_value

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return {
            "dtype": self.packing.dtype,
            "attributes": dict(self.attributes) | self.packing.to_attributes(),
            "altitudes_km": list(self.altitudes_km),
        }

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> ChannelLayout:
        """The inverse of `to_dict`."""
        packing = Packing.from_attributes(data["attributes"], data["dtype"])
        attributes = {k: v for k, v in data["attributes"].items() if k not in packing.to_attributes()}
        return cls(
            name=name, packing=packing, attributes=attributes, altitudes_km=tuple(data["altitudes_km"])
        )


@dataclass(frozen=True, kw_only=True)
class CubeLayout:
    """What every crop of a store has in common. ``rows_per_chunk`` is the length of the small arrays' chunks."""

    channels: Mapping[str, ChannelLayout]
    crop: tuple[int, int]
    patch: int
    codec: Codec
    rows_per_chunk: int = 1024
    coordinates: tuple[str, ...] = field(default=())

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of patches in a crop."""
        return self.crop[0] // self.patch, self.crop[1] // self.patch

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return {
            "channels": {name: c.to_dict() for name, c in self.channels.items()},
            "crop": list(self.crop),
            "patch": self.patch,
            "codec": self.codec,
            "rows_per_chunk": self.rows_per_chunk,
            "coordinates": list(self.coordinates),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CubeLayout:
        """The inverse of `to_dict`."""
        return cls(
            channels={n: ChannelLayout.from_dict(n, c) for n, c in data["channels"].items()},
            crop=(data["crop"][0], data["crop"][1]),
            patch=data["patch"],
            codec=data["codec"],
            rows_per_chunk=data["rows_per_chunk"],
            coordinates=tuple(data["coordinates"]),
        )

    def pixels(self, name: str, crops: int) -> ArraySpec:
        """The array of a channel's pixels: a patch is a chunk, a crop with all its altitudes a shard."""
        channel = self.channels[name]
        levels = (len(channel.altitudes_km),) if channel.altitudes_km else ()
        small = [f"{name}_flags", *(f"{name}_{s}" for s in statistics_of(channel.channel))]
        return ArraySpec(
            name=name,
            dims=("crop", *(("altitude",) if levels else ()), "y", "x"),
            shape=(crops, *levels, *self.crop),
            dtype=channel.packing.dtype,
            chunks=(1, *(1 for _ in levels), self.patch, self.patch),
            shards=(1, *levels, *self.crop),
            codec=self.codec,
            fill_value=channel.fill,
            attributes=dict(channel.attributes)
            | channel.packing.to_attributes()
            | {"ancillary_variables": " ".join(small), "grid_mapping": "crs", "coordinates": "time"},
        )

    def cell_dims(self, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Dims and shape, crop apart, of a per-patch variable of a channel."""
        levels = self.channels[name].altitudes_km
        return (*(("altitude",) if levels else ()), "row", "col"), (
            *((len(levels),) if levels else ()),
            *self.cells,
        )

    def flags(self, name: str, crops: int) -> ArraySpec:
        """The array of a channel's flags."""
        dims, shape = self.cell_dims(name)
        return self.small(
            f"{name}_flags", ("crop", *dims), (crops, *shape), "uint16", flag_attributes() | _PLACE
        )

    def statistic(self, name: str, statistic: str, crops: int) -> ArraySpec:
        """The array of one statistic of a channel."""
        dims, shape = self.cell_dims(name)
        attributes = {
            "long_name": f"{statistic.replace('_', ' ')} of {name} over the patch",
            "units": statistic_units(self.channels[name].channel, statistic),
            **_PLACE,
        }
        return self.small(f"{name}_{statistic}", ("crop", *dims), (crops, *shape), "float32", attributes)

    def small(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: str,
        attributes: Mapping[str, Any],
    ) -> ArraySpec:
        """Spec of an array with ``crop`` first, chunked along it alone, so that adding rows moves no chunk."""
        fill: Any = {"f": np.nan, "s": ""}.get(dtype[0], 0)
        if dims == ("crop",) and attributes.get("_FillValue") is not None:
            fill = attributes["_FillValue"]
        return ArraySpec(
            name=name,
            dims=dims,
            shape=shape,
            dtype=dtype,
            chunks=(self.rows_per_chunk, *shape[1:]),
            fill_value=fill,
            attributes=attributes,
        )


_DEGREES = {"latitude": ("degrees_north", "latitude"), "longitude": ("degrees_east", "longitude")}
_NO_PARALLAX = "Position on the source's grid; not corrected for parallax."
#: Coordinates of every crop: dims, dtype, attributes.
COORDINATES: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "time": (
        ("crop",),
        "int64",
        {
            "units": TIME_UNITS,
            "calendar": "proleptic_gregorian",
            "standard_name": "time",
            "_FillValue": TIME_FILL,
        },
    ),
    "status": (
        ("crop",),
        "uint8",
        {
            "long_name": "what became of the crop",
            "flag_values": list(STATUS.values()),
            "flag_meanings": " ".join(STATUS),
        },
    ),
    **{
        name: (
            ("crop", "row", "col"),
            "float64",
            {
                "units": units,
                "standard_name": standard,
                "long_name": f"{name} of the patch centre",
                "comment": _NO_PARALLAX,
            },
        )
        for name, (units, standard) in _DEGREES.items()
    },
    "y_origin": (("crop",), "int32", {"long_name": "first pixel row of the crop in its scene", "units": "1"}),
    "x_origin": (
        ("crop",),
        "int32",
        {"long_name": "first pixel column of the crop in its scene", "units": "1"},
    ),
    "grid": (("crop",), "string", {"long_name": "source grid: a group under grids/"}),
    "scene": (("crop",), "string", {"long_name": "scene the crop was cut from"}),
    "source": (("crop",), "string", {"long_name": "source file, relative to its root"}),
    "observation_time": (
        ("crop", "row"),
        "int64",
        {
            "units": TIME_UNITS,
            "calendar": "proleptic_gregorian",
            "long_name": "time at which the source scanned the row of patches",
            "_FillValue": TIME_FILL,
        },
    ),
    "solar_zenith_angle": (
        ("crop", "row", "col"),
        "float32",
        {"units": "degree", "standard_name": "solar_zenith_angle"},
    ),
    "solar_zenith_angle_maximum": (
        ("crop", "row", "col"),
        "float32",
        {"units": "degree", "long_name": "largest solar zenith angle of the patch's centre and corners"},
    ),
    "satellite_zenith_angle": (
        ("crop", "row", "col"),
        "float32",
        {"units": "degree", "standard_name": "platform_zenith_angle"},
    ),
}
