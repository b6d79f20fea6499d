"""Arrays of a store: their metadata as Zarr v3 has it, and the encoding of whole shards and chunks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, VLenUTF8
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files

Codec = Literal["fast", "small", "raw"]

#: Bytes to bytes codecs of a chunk, by name of the recipe's codec; a checksum always comes last.
CODECS: dict[str, list[Any]] = {
    "fast": [{"cname": "lz4hc", "clevel": 2, "shuffle": "shuffle"}],
    "small": [{"cname": "zstd", "clevel": 5, "shuffle": "shuffle"}],
    "raw": [],
}
_SHUFFLES = {"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """What makes the metadata of one array. ``shards`` None leaves the chunks unsharded."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    codec: Codec = "small"
    fill_value: Any = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def key(self, index: Sequence[int]) -> str:
        """Key of the shard (or chunk) at this place in the grid of shards."""
        return f"{self.name}/c." + ".".join(str(i) for i in index) if index else f"{self.name}/c"

    def grid(self) -> tuple[int, ...]:
        """Number of shards (or chunks) along each dimension."""
        edges = self.shards or self.chunks
        return tuple(math.ceil(n / e) for n, e in zip(self.shape, edges, strict=True))


def _compressors(codec: str, dtype: str) -> list[Any]:
    """Zarr codecs of a chunk of this dtype, the CRC-32C last."""
    size = 1 if dtype == "string" else np.dtype(dtype).itemsize
    return [*(BloscCodec(typesize=size, **options) for options in CODECS[codec]), Crc32cCodec()]


def _create(spec: ArraySpec, store: Any) -> zarr.Array[Any]:
    return zarr.create_array(
        store,
        shape=spec.shape,
        dtype=spec.dtype if spec.dtype != "string" else str,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=_compressors(spec.codec, spec.dtype),
        fill_value=spec.fill_value,
        attributes=dict(spec.attributes),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=spec.dims,
        config={"write_empty_chunks": True},
    )


def metadata(spec: ArraySpec) -> dict[str, Any]:
    """The ``zarr.json`` of an array."""
    memory: dict[str, Any] = {}
    _create(spec, MemoryStore(memory))
    return dict(json.loads(memory["zarr.json"].to_bytes()))


def encode(spec: ArraySpec, values: np.ndarray) -> bytes:
    """Bytes of one whole shard (or of one chunk of an unsharded array).

    Encoded here rather than by zarr-python, which takes three times as long over the same bytes. Every
    chunk of a shard is written, also one that holds nothing but fill, so that an absent chunk is always an error.
    Chunks lie in raster order, their index last. ``values`` has the shape of the shard.
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
    for options in CODECS[spec.codec]:
        data = Blosc(**(options | {"shuffle": _SHUFFLES[options["shuffle"]]})).encode(data)
    return _with_checksum(bytes(data))


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def write_array(files: Files, spec: ArraySpec, values: np.ndarray, *, first: int = 0) -> None:
    """Write a small array whole, a chunk at a time, each atomically; then its ``zarr.json``.

    Parameters
    ----------
    first
        Chunks that lie wholly before this index of the first dimension are left as they are.
    """
    edges = spec.chunks
    for index in np.ndindex(*spec.grid()):
        if spec.shape and (index[0] + 1) * edges[0] <= first:
            continue
        window = tuple(
            slice(i * e, min((i + 1) * e, n)) for i, e, n in zip(index, edges, spec.shape, strict=True)
        )
        block = np.full(edges, spec.fill_value, dtype=object if spec.dtype == "string" else spec.dtype)
        part = values[window]
        block[tuple(slice(0, n) for n in part.shape)] = part
        files.write(spec.key(index), encode(spec, block))
    files.write_json(f"{spec.name}/zarr.json", metadata(spec))


def group_metadata(attributes: Mapping[str, Any], members: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``zarr.json`` of a group, with consolidated metadata of its members if given."""
    out: dict[str, Any] = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}
    if members is not None:
        out["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(sorted(members.items())),
        }
    return out
