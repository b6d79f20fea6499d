"""The log of a build: what became of each source, with every small value of its crops, one record a source.

An object of the log is a run of records. A record is one line of JSON, then as many bytes of values as the line
says: rows of the store's record type (`gridrad_cube.store.record_dtype`), compressed by zlib. A killed writer can
leave half a record, always the last of its object, which counts as not written.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files

#: Folder of the log in a store.
LOG = "_build/log"
#: On object stores records are put together: so many at most, and so many seconds' worth, one object each time.
RECORDS_AN_OBJECT = 64
SECONDS_AN_OBJECT = 5.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one source: ``written``, ``skipped`` or ``failed``.

    ``size`` and ``mtime_ns`` are those of the file then. ``shards`` has, per channel, [bytes, CRC-32] of each crop's
    shard, or None where the scene lacks the channel. ``values`` are the crops' rows as `pack_rows` gives them.
    """

    source: str
    status: str
    size: int = 0
    mtime_ns: int = 0
    reason: str = ""
    seconds: float = 0.0
    shards: Mapping[str, list[tuple[int, int] | None]] = field(default_factory=dict)
    values: bytes = b""

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard[0] for shards in self.shards.values() for shard in shards if shard)


class Place(NamedTuple):
    """Where a record's values lie: number of the log's object, offset, length, CRC-32."""

    object: int
    offset: int
    length: int
    crc: int


def pack_rows(rows: np.ndarray) -> bytes:
    """Rows of the record type, compressed."""
    return zlib.compress(rows.tobytes(), 1)


def unpack_rows(values: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """The inverse of `pack_rows`: a structured array, one element a crop."""
    return np.frombuffer(zlib.decompress(values), dtype)


class Log:
    """Records of a store, appended by one writer and read by many. Nothing is read until asked for.

    Parameters
    ----------
    files
        The store.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._objects = files.names(LOG)
        self._appending: int | None = None
        self._pending: list[bytes] = []
        self._since = 0.0
        #: The object of an object store that was read last: its records are mostly read one after the other.
        self._fetched: tuple[int, bytes] | None = None

    def replay(self) -> Iterator[tuple[Record, Place]]:
        """Every whole record in the order of arrival, without its values."""
        for number in range(len(self._objects)):
            with self._open(number) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(0)
                while (line := file.readline()).endswith(b"\n"):
                    head = json.loads(line)
                    length, crc = head.pop("values")
                    offset = file.tell()
                    if offset + length > end:
                        break
                    yield Record(**head), Place(number, offset, length, crc)
                    file.seek(length, os.SEEK_CUR)

    def append(self, record: Record) -> Place:
        """Add a record; durable when this returns on a local disk, else after `flush`."""
        head = {
            "source": record.source,
            "status": record.status,
            "size": record.size,
            "mtime_ns": record.mtime_ns,
            "reason": record.reason,
            "seconds": record.seconds,
            "shards": record.shards,
        }
        crc = zlib.crc32(record.values)
        head["values"] = [len(record.values), crc]
        line = json.dumps(head, allow_nan=False).encode() + b"\n"
        if self._appending is None:
            self._appending = len(self._objects)
            self._objects.append(f"{self._appending:06d}-{secrets.token_hex(3)}.log")
            self._since = time.monotonic()
        number = self._appending  # putting it may end the object
        offset = self._put(number, line + record.values) + len(line)
        return Place(number, offset, len(record.values), crc)

    def _put(self, number: int, data: bytes) -> int:
        """Append to an object; the offset."""
        key = f"{LOG}/{self._objects[number]}"
        if not self.files.local:
            offset = sum(map(len, self._pending))
            self._pending.append(data)
            if len(self._pending) >= RECORDS_AN_OBJECT or time.monotonic() - self._since > SECONDS_AN_OBJECT:
                self.flush()
            return offset
        self._appending = None  # where this fails, half a record may lie at the end: nothing goes after it
        offset = self.files.append(key, data)
        self._appending = number
        return offset

    def flush(self) -> None:
        """Put what an object store has not got yet."""
        if self._pending and self._appending is not None:
            self.files.write(f"{LOG}/{self._objects[self._appending]}", b"".join(self._pending))
            self._pending.clear()
            self._appending = None

    def values(self, place: Place) -> bytes:
        """The values of a record.

        Raises
        ------
        SchemaError
            If they are not as they were written.
        """
        if place.object == self._appending:
            self.flush()
        with self._open(place.object) as file:
            file.seek(place.offset)
            data = file.read(place.length)
        if zlib.crc32(data) != place.crc:
            key = f"{LOG}/{self._objects[place.object]}"
            raise SchemaError(
                f"{self.files.path(key)}: the record at byte {place.offset} is damaged. Remove this file and run "
                "gridrad-cube preprocess again: it writes its sources anew."
            )
        return data

    def _open(self, number: int) -> BinaryIO:
        key = f"{LOG}/{self._objects[number]}"
        if self.files.local:
            return open(self.files.path(key), "rb")
        if self._fetched is None or self._fetched[0] != number:
            self._fetched = number, self.files.read(key)
        return io.BytesIO(self._fetched[1])
