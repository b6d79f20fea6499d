"""Arrays of a store: their metadata as Zarr v3 has it, and the encoding of whole shards and chunks."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from gridrad_cube.schema import SchemaError
from gridrad_cube.store.files import Files

Codec = Literal["fast", "small", "raw"]

#: Bytes to bytes codecs of a chunk, by name of the recipe's codec; a checksum always comes last.
CODECS: dict[str, list[Any]] = {
    "fast": [{"cname": "lz4", "clevel": 5, "shuffle": "shuffle"}],
    "small": [{"cname": "zstd", "clevel": 5, "shuffle": "shuffle"}],
    "raw": [],
}


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


def compressors(codec: str, dtype: str) -> list[Any]:
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
        compressors=compressors(spec.codec, spec.dtype),
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


_ENCODING = threading.Lock()  # the in-memory arrays below are shared by the threads of a process


@functools.lru_cache(maxsize=32)
def _encoder(
    dims: tuple[str, ...],
    dtype: str,
    chunks: tuple[int, ...],
    shape: tuple[int, ...],
    codec: Codec,
    shard: bool,
) -> tuple[zarr.Array[Any], dict[str, Any]]:
    memory: dict[str, Any] = {}
    spec = ArraySpec(
        name="",
        dims=dims,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shape if shard else None,
        codec=codec,
        fill_value="" if dtype == "string" else 0,
    )
    return _create(spec, MemoryStore(memory)), memory


def encode(spec: ArraySpec, values: np.ndarray) -> bytes:
    """Bytes of one whole shard (or of one chunk of an unsharded array).

    Every chunk of a shard is written, also one that holds nothing but fill, so that an absent chunk is
    always an error. ``values`` has the shape of the shard.
    """
    shape = spec.shards or spec.chunks
    if values.shape != shape:
        raise SchemaError(f"{spec.name}: a shard has shape {shape}, got {values.shape}")
    array, memory = _encoder(spec.dims, spec.dtype, spec.chunks, shape, spec.codec, spec.shards is not None)
    with _ENCODING:
        array[...] = values
        (key,) = (k for k in memory if k != "zarr.json")
        data: bytes = memory[key].to_bytes()
    return data


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
