"""How arrays lie in shards, and how a chunk there is checked and decompressed."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd

from gridrad_cube.store.shard_files import DamagedShard

#: Offset and length of a chunk that a shard does not have.
ABSENT = 2**64 - 1
#: Bytes of a CRC-32C, which follows what it is of.
CHECKSUM_BYTES = 4

_UINT32 = struct.Struct("<I")


@dataclass(frozen=True)
class ShardLayout:
    """How an array lies in its shards, as far as `ShardReader` understands it."""

    name: str
    dtype: np.dtype[Any]
    #: Chunks and shards along each dimension of the array, and chunks along each dimension of a shard.
    extent: tuple[int, ...]
    shards: tuple[int, ...]
    chunks: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    separator: str
    compressor: str | None
    checksum: bool

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any]) -> Self | None:
        """Take the layout from an array's ``zarr.json``; None where another reader has to be used.

        Understood are sharded arrays of little-endian numbers, compressed by blosc, zstd or
        not at all, with or without a CRC-32C, whose index is at the end.
        """
        codecs, keys = metadata["codecs"], metadata["chunk_key_encoding"]
        if [codec["name"] for codec in codecs] != ["sharding_indexed"] or keys["name"] != "default":
            return None
        sharding = codecs[0]["configuration"]
        inner, (index, *checks) = _Codecs(sharding["codecs"]), sharding["index_codecs"]
        shape, chunk = metadata["shape"], sharding["chunk_shape"]
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        understood = (
            inner.understood
            and metadata["chunk_grid"]["name"] == "regular"
            and sharding.get("index_location", "end") == "end"
            and _little(index)
            and [check["name"] for check in checks] == ["crc32c"]
            and isinstance(metadata["data_type"], str)
        )
        try:
            dtype = np.dtype(metadata["data_type"])
        except TypeError:
            return None
        if not understood or dtype.kind not in "iuf":
            return None
        return cls(
            name=name,
            dtype=dtype.newbyteorder("<"),
            extent=tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True)),
            shards=tuple(-(-n // s) for n, s in zip(shape, shard, strict=True)),
            chunks=tuple(s // c for s, c in zip(shard, chunk, strict=True)),
            chunk_shape=tuple(chunk),
            separator=keys.get("configuration", {}).get("separator", "/"),
            compressor=inner.compressor,
            checksum=inner.checksum,
        )

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    @functools.cached_property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, its checksum included."""
        return 16 * math.prod(self.chunks) + CHECKSUM_BYTES

    def index(self, data: bytes) -> np.ndarray:
        """Offset and length of each chunk of a shard, (chunks, 2), from the shard's last `index_bytes`.

        Raises
        ------
        DamagedShard
            If the checksum differs.
        """
        body, (checksum,) = data[:-CHECKSUM_BYTES], _UINT32.unpack(data[-CHECKSUM_BYTES:])
        if google_crc32c.value(body) != checksum:
            raise DamagedShard("the checksum of the shard's index differs")
        return np.frombuffer(body, "<u8").reshape(-1, 2)

    def key(self, shard: int) -> str:
        """Key of a shard by its number in C order."""
        place = []
        for count in reversed(self.shards):
            shard, number = divmod(shard, count)
            place.append(str(number))
        return f"{self.name}/" + self.separator.join(["c", *reversed(place)])


class _Codecs:
    """The codecs of a chunk: array to bytes, then a compressor or none, then a checksum or none."""

    def __init__(self, codecs: Sequence[Mapping[str, Any]]) -> None:
        first, *rest = codecs
        names = [codec["name"] for codec in rest]
        self.checksum = names[-1:] == ["crc32c"]
        names = names[: len(names) - self.checksum]
        self.compressor = names[0] if names else None
        self.understood = _little(first) and names in ([], ["blosc"], ["zstd"])


def _little(codec: Mapping[str, Any]) -> bool:
    return codec["name"] == "bytes" and codec.get("configuration", {}).get("endian", "little") == "little"


def chunk_decoder(layout: ShardLayout) -> Callable[[Any, np.ndarray], str | None]:
    """Decodes one chunk, and says what is wrong with it, or None. What it looks up for each chunk is at hand."""
    checked, compressor, expected = layout.checksum, layout.compressor, layout.chunk_bytes
    checksum, number, decompress = google_crc32c.value, _UINT32.unpack_from, blosc.decompress

    def decode(data: Any, out: np.ndarray) -> str | None:
        if checked:
            end = len(data) - CHECKSUM_BYTES
            if end < 0:
                return "the chunk is truncated"
            (right,), data = number(data, end), data[:end]
            if checksum(data) != right:
                return "its checksum differs"
        try:
            if compressor == "blosc":
                # Fewer bytes than expected would leave a part of the batch as it was.
                (size,) = number(data, 4)
                if size == expected:
                    decompress(data, out)
                    return None
            else:
                if compressor is not None:
                    data = np.frombuffer(zstd.decompress(data), np.uint8)
                size = len(data)
                if size == expected:
                    out.reshape(-1).view(np.uint8)[:] = data
                    return None
        except (RuntimeError, ValueError, struct.error) as error:
            return f"it cannot be decompressed: {error}"
        return f"it holds {size} bytes; expected {expected}"

    return decode
