"""The layout of a store on disk: attributes, arrays with their metadata, and the encoding of shards and
chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, VLenUTF8
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from gridrad_cube.schema import (
    HISTOGRAM_BINS,
    TIME_FILL,
    TIME_UNITS,
    Channel,
    Flag,
    Packing,
    SchemaError,
    channel_in,
    flag_attributes,
    statistic_units,
    statistics_of,
)
from gridrad_cube.storage import Files

#: Zarr's chunk key encodings for the chunks of an array, both with the separator ``.``.
KeyEncoding = Literal["default", "v2"]

_Codec = Literal["fast", "small", "raw"]

#: Options of Blosc by codec of the recipe, after a shuffle of bytes; ``none`` does not compress.
CODECS: dict[str, dict[str, Any]] = {
    "fast": {"cname": "lz4hc", "clevel": 2},
    "small": {"cname": "zstd", "clevel": 5},
    "raw": {},
}


def chunk_key(array: str, place: tuple[int, ...], keys: KeyEncoding) -> str:
    """Return the key of a chunk or shard by its place in the grid of them."""
    if keys == "v2":
        return f"{array}/{'.'.join(map(str, place)) or '0'}"
    return ".".join([f"{array}/c", *map(str, place)])


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Description of one array, from which its metadata are made.

    ``shards`` None leaves the chunks unsharded. ``fill_value`` None is NaN for floats, "" for text, else 0.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    codec: _Codec = "small"
    fill_value: Any = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fill_value is None:
            object.__setattr__(self, "fill_value", {"f": np.nan, "s": ""}.get(self.dtype[0], 0))

    def place(self, number: int = 0) -> tuple[int, ...]:
        """Return the position of a shard (or chunk) in the grid of them. Arrays are divided along their first
        dimension only.

        Parameters
        ----------
        number
            Number of the shard or chunk.

        Returns
        -------
        Position along each dimension.
        """
        return (number, *(0 for _ in self.dims[1:])) if self.dims else ()

    def key(self, number: int = 0) -> str:
        """Return the key of a shard (or chunk) by its number.

        Parameters
        ----------
        number
            Number of the shard or chunk.

        Returns
        -------
        The key.
        """
        return chunk_key(self.name, self.place(number), "default")


def array_metadata(spec: ArraySpec) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array."""
    memory: dict[str, Any] = {}
    size = 1 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
    options = CODECS[spec.codec]
    blosc = [BloscCodec(typesize=size, shuffle="shuffle", **options)] if options else []
    zarr.create_array(
        MemoryStore(memory),
        shape=spec.shape,
        dtype=spec.dtype if spec.dtype != "string" else str,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=[*blosc, Crc32cCodec()],
        fill_value=spec.fill_value,
        attributes=dict(spec.attributes),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=spec.dims,
        config={"write_empty_chunks": True},
    )
    return dict(json.loads(memory["zarr.json"].to_bytes()))


def encode(spec: ArraySpec, values: np.ndarray) -> bytes:
    """Return the bytes of one whole shard (or of one chunk of an unsharded array).

    It is encoded here rather than by zarr-python, which needs three times as long for the same bytes. Every
    chunk of a shard is written, also if it contains only the fill value, so that a missing chunk is always an
    error. Chunks are in raster order, followed by their index.

    Parameters
    ----------
    spec
        Description of the array.
    values
        Values, of the shape of the shard.

    Returns
    -------
    The bytes.

    Raises
    ------
    ValueError
        If the values have another shape.
    """
    shape = spec.shards or spec.chunks
    if values.shape != shape:
        raise SchemaError(f"{spec.name}: a shard has shape {shape}, got {values.shape}")
    if spec.shards is None:
        return _encode_chunk(spec, values)
    grid = tuple(s // c for s, c in zip(shape, spec.chunks, strict=True))
    parts = []
    for place in np.ndindex(grid):
        window = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, spec.chunks, strict=True))
        parts.append(_encode_chunk(spec, values[window]))
    sizes = np.array([len(part) for part in parts], np.uint64)
    index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=-1).astype("<u8").tobytes()
    return b"".join([*parts, _with_checksum(index)])


def _encode_chunk(spec: ArraySpec, values: np.ndarray) -> bytes:
    if spec.dtype == "string":
        data = VLenUTF8().encode(values.reshape(-1))
    else:
        data = np.ascontiguousarray(values, np.dtype(spec.dtype).newbyteorder("<"))
    if options := CODECS[spec.codec]:
        data = Blosc(shuffle=Blosc.SHUFFLE, **options).encode(data)
    return _with_checksum(bytes(data))


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def encode_rows(spec: ArraySpec, values: np.ndarray) -> bytes:
    """Return the bytes of one chunk of an array that is chunked along its first dimension alone; fill
    completes the last one.
    """
    block = np.full(spec.chunks, spec.fill_value, object if spec.dtype == "string" else spec.dtype)
    block[: len(values)] = values
    return encode(spec, block)


def encode_array(spec: ArraySpec, values: np.ndarray) -> Iterator[bytes]:
    """Yield the bytes of each chunk of an array that is chunked along its first dimension alone."""
    if not spec.dims:
        yield encode(spec, values)
        return
    for first in range(0, len(values), spec.chunks[0]):
        yield encode_rows(spec, values[first : first + spec.chunks[0]])


def write_array(files: Files, spec: ArraySpec, values: np.ndarray) -> None:
    """Write all chunks of an array that is chunked along its first dimension alone.

    Parameters
    ----------
    files
        Files of the store.
    spec
        Description of the array.
    values
        Values of the array.
    """
    for number, data in enumerate(encode_array(spec, values)):
        files.write(spec.key(number), data)


def root_of(members: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the root ``zarr.json`` of a store with these arrays and groups."""
    consolidated = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(members.items()))}
    return {
        "attributes": dict(attributes),
        "zarr_format": 3,
        "node_type": "group",
        "consolidated_metadata": consolidated,
    }


def groups_of(arrays: Iterable[str]) -> dict[str, Any]:
    """Return the metadata of the groups that arrays of these paths lie in, by path."""
    names = sorted({name.rsplit("/", 1)[0] for name in arrays if "/" in name})
    return {name: {"attributes": {}, "zarr_format": 3, "node_type": "group"} for name in names}


def write_root(files: Files, specs: Mapping[str, ArraySpec], attributes: Mapping[str, Any]) -> None:
    """Write the metadata of arrays and groups, then the root, without a checksum. The store becomes visible
    in one step.

    Parameters
    ----------
    files
        Files of the store.
    specs
        Descriptions of the arrays.
    attributes
        Attributes of the root.
    """
    members: dict[str, Any] = {name: array_metadata(spec) for name, spec in specs.items()}
    members |= groups_of(specs)
    for name, member in members.items():
        files.write_json(f"{name}/zarr.json", member)
    files.write("zarr.json", json.dumps(root_of(members, attributes), allow_nan=False).encode())


#: Small values of a block of crops, in memory while a store is finished.
_BLOCK_BYTES = 128 * 2**20
#: Values of ``status``. Every planned crop keeps its row, also if it was skipped or failed.
STATUS = {"written": 0, "skipped": 1, "failed": 2}


#: Auxiliary coordinates of variables with one value for each patch, as CF defines them; xarray attaches
#: these.
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
        """The channel: one of the table, or one of kind ``other``."""
        attributes = dict(self.attributes) | self.packing.to_attributes()
        return channel_in(self.name, attributes, self.packing.dtype)

    @property
    def levels(self) -> tuple[int, ...]:
        """Shape of the altitudes: one number, or empty for a 2-D channel."""
        return (len(self.altitudes_km),) if self.altitudes_km else ()

    @property
    def fill(self) -> int | float:
        """Value of pixels that were not observed, and of channels that a scene lacks."""
        if np.dtype(self.packing.dtype).kind == "f":
            return np.nan
        if self.packing.fill_value is None:
            raise SchemaError(f"{self.name}: the packing has no code for a pixel that was not observed")
        return self.packing.fill_value

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict of JSON types.

        Returns
        -------
        The dict.
        """
        return {
            "dtype": self.packing.dtype,
            "attributes": dict(self.attributes) | self.packing.to_attributes(),
            "altitudes_km": list(self.altitudes_km),
        }

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> ChannelLayout:
        """Return the inverse of `to_dict`."""
        packing = Packing.from_attributes(data["attributes"], data["dtype"])
        attributes = {k: v for k, v in data["attributes"].items() if k not in packing.to_attributes()}
        return cls(
            name=name, packing=packing, attributes=attributes, altitudes_km=tuple(data["altitudes_km"])
        )


@dataclass(frozen=True, kw_only=True)
class CubeLayout:
    """The layout of every crop of a store. ``rows_per_chunk`` is the length of the chunks of small arrays."""

    channels: Mapping[str, ChannelLayout]
    crop: tuple[int, int]
    patch: int
    codec: _Codec
    rows_per_chunk: int = 1024
    coordinates: tuple[str, ...] = field(default=())

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of patches in a crop."""
        return self.crop[0] // self.patch, self.crop[1] // self.patch

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict of JSON types.

        Returns
        -------
        The dict.
        """
        channels = {name: channel.to_dict() for name, channel in self.channels.items()}
        lists = {"crop": list(self.crop), "coordinates": list(self.coordinates)}
        return vars(self) | {"channels": channels} | lists

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CubeLayout:
        """Return the inverse of `to_dict`."""
        channels = {
            name: ChannelLayout.from_dict(name, channel) for name, channel in data["channels"].items()
        }
        tuples = {name: tuple(data[name]) for name in ("crop", "coordinates")}
        return cls(**{**data, "channels": channels, **tuples})

    def pixels(self, name: str, crops: int) -> ArraySpec:
        """Return the array of a channel's pixels. A patch is a chunk, and a crop with all its altitudes is a
        shard.

        Parameters
        ----------
        name
            Name of the channel.
        crops
            Number of crops.

        Returns
        -------
        Description of the array.
        """
        channel, levels = self.channels[name], self.channels[name].levels
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


_CROP, _CELLS = ("crop",), ("crop", "row", "col")
_TIME = {"units": TIME_UNITS, "calendar": "proleptic_gregorian"}
_STATUS_CODES = {"flag_values": list(STATUS.values()), "flag_meanings": " ".join(STATUS)}
_NO_PARALLAX = "Position on the source's grid; not corrected for parallax."


def _position(name: str, units: str) -> dict[str, Any]:
    long_name = f"{name} of the patch centre"
    return {"units": units, "standard_name": name, "long_name": long_name, "comment": _NO_PARALLAX}


def _origin(what: str) -> dict[str, Any]:
    return {"long_name": f"first pixel {what} of the crop in its scene", "units": "1"}


def _angle(key: str, name: str) -> dict[str, Any]:
    return {"units": "degree", key: name}


_SCANNED = {"long_name": "time at which the source scanned the row of patches", "_FillValue": TIME_FILL}
_LEAD = {
    "standard_name": "forecast_period",
    "units": "h",
    "long_name": "time since the start of the forecast",
}
_LARGEST = "largest solar zenith angle of the patch's centre and corners"
#: Coordinates of every crop: dims, dtype, attributes.
COORDINATES: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "time": (_CROP, "int64", _TIME | {"standard_name": "time", "_FillValue": TIME_FILL}),
    "status": (_CROP, "uint8", {"long_name": "outcome of the crop"} | _STATUS_CODES),
    "latitude": (_CELLS, "float64", _position("latitude", "degrees_north")),
    "longitude": (_CELLS, "float64", _position("longitude", "degrees_east")),
    "y_origin": (_CROP, "int32", _origin("row")),
    "x_origin": (_CROP, "int32", _origin("column")),
    "grid": (_CROP, "string", {"long_name": "source grid: a group under grids/"}),
    "scene": (_CROP, "string", {"long_name": "scene the crop was cut from"}),
    "source": (_CROP, "string", {"long_name": "source file, relative to its root"}),
    "observation_time": (("crop", "row"), "int64", _TIME | _SCANNED),
    "solar_zenith_angle": (_CELLS, "float32", _angle("standard_name", "solar_zenith_angle")),
    "solar_zenith_angle_maximum": (_CELLS, "float32", _angle("long_name", _LARGEST)),
    "satellite_zenith_angle": (_CELLS, "float32", _angle("standard_name", "platform_zenith_angle")),
    "forecast_period": (_CROP, "float32", _LEAD),
}
#: Coordinates that a store has if some of its sources have them.
OPTIONAL_COORDINATES = ("observation_time", "satellite_zenith_angle", "forecast_period")


#: Coordinates that come from the plan of a build.
OF_THE_PLAN = ("time", "status", "y_origin", "x_origin", "grid", "scene", "source")


def small_specs(layout: CubeLayout, crops: int) -> dict[str, ArraySpec]:
    """Return the descriptions of every array with ``crop`` first, without pixels.

    They are chunked along ``crop`` only, so that chunks stay valid when crops are added.

    Parameters
    ----------
    layout
        Layout of the store.
    crops
        Number of crops.

    Returns
    -------
    Descriptions of arrays.
    """
    arrays = {name: COORDINATES[name] for name in layout.coordinates}
    for name, channel in layout.channels.items():
        dims = ("crop", *(("altitude",) if channel.levels else ()), "row", "col")
        arrays[f"{name}_flags"] = dims, "uint16", flag_attributes() | _PLACE
        for statistic in statistics_of(channel.channel):
            attributes = {
                "long_name": f"{statistic.replace('_', ' ')} of {name} over the patch",
                "units": statistic_units(channel.channel, statistic),
                **_PLACE,
            }
            arrays[f"{name}_{statistic}"] = dims, "float32", attributes
    levels = max((len(channel.altitudes_km) for channel in layout.channels.values()), default=0)
    sizes = {"altitude": levels, "row": layout.cells[0], "col": layout.cells[1]}
    specs = {}
    for name, (dims, dtype, attributes) in arrays.items():
        shape = tuple(sizes[dim] for dim in dims[1:])
        specs[name] = ArraySpec(
            name=name,
            dims=dims,
            shape=(crops, *shape),
            dtype=dtype,
            chunks=(layout.rows_per_chunk, *shape),
            fill_value=attributes.get("_FillValue") if dims == ("crop",) else None,
            attributes=attributes,
        )
    return specs


def _record_type(layout: CubeLayout) -> np.dtype[Any]:
    """Return the type of a crop's row in the log: every small value that its pixels and place decide.

    The arrays of `small_specs`, less those that the plan has, and per channel of the table ``<channel>_histogram``,
    uint32 ([altitude,] bins): counts of clean data pixels over the typical range.
    """
    fields: list[tuple[str, Any, tuple[int, ...]]] = [
        (name, spec.dtype, spec.shape[1:])
        for name, spec in small_specs(layout, 1).items()
        if name not in OF_THE_PLAN
    ]
    for name, channel in layout.channels.items():
        if channel.channel.kind != "other":
            fields.append((f"{name}_histogram", np.uint32, (*channel.levels, HISTOGRAM_BINS)))
    return np.dtype(fields)


def block_length(layout: CubeLayout, scenes: int) -> int:
    """Return the number of crops whose small values are finished and chunked together.

    It is a power of two, and the values take at most 128 MiB.

    Parameters
    ----------
    layout
        Layout of the store.
    scenes
        Number of scenes of the first plan. A store that starts small has smaller chunks.

    Returns
    -------
    Number of crops.
    """
    fits = max(1, _BLOCK_BYTES // _record_type(layout).itemsize)
    return min(16384, 1 << (fits.bit_length() - 1), max(256, 1 << (scenes - 1).bit_length()))


def blank_rows(layout: CubeLayout, count: int) -> np.ndarray:
    """Return rows for crops that were not written: flag ``unreadable``, no time, NaN or 0 elsewhere.

    Parameters
    ----------
    layout
        Layout of the store.
    count
        Number of rows.

    Returns
    -------
    Structured array.
    """
    dtype = _record_type(layout)
    out = np.zeros(count, dtype)
    for name in dtype.names or ():
        if name.endswith("_flags"):
            out[name] = int(Flag.unreadable)
        elif name == "observation_time":
            out[name] = TIME_FILL
        elif dtype[name].base.kind == "f":
            out[name] = np.nan
    return out


def whole_array(
    name: str,
    dims: tuple[str, ...],
    values: np.ndarray,
    attributes: Mapping[str, Any],
    chunks: tuple[int, ...] | None = None,
) -> tuple[ArraySpec, np.ndarray]:
    """Return description and values of an array that is written as a whole, in one chunk by default."""
    dtype = "string" if values.dtype.kind in "OUT" else values.dtype.name
    spec = ArraySpec(
        name=name,
        dims=dims,
        shape=values.shape,
        dtype=dtype,
        chunks=chunks or tuple(max(n, 1) for n in values.shape),
        attributes=attributes,
    )
    return spec, values


def number_arrays(sizes: Mapping[str, int], rows_per_chunk: int) -> list[tuple[ArraySpec, np.ndarray]]:
    """Return the coordinates that number crops, rows and columns, so that a part of a store knows what it is
    a part of.
    """
    names = {"crop": "row of the store"} | {
        dim: f"{what} of patches in the crop"
        for dim, what in (("row", "row"), ("col", "column"))
        if dim in sizes
    }
    chunks = {"crop": (rows_per_chunk,)}
    return [
        whole_array(dim, (dim,), np.arange(sizes[dim]), {"long_name": name}, chunks.get(dim))
        for dim, name in names.items()
    ]
