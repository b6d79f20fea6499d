"""The log of a build: one record for each finished source, in order of arrival.

An object of the log is a run of records. A record is one line of JSON, then as many bytes of values as the line says:
one row a crop, of the type that `blank_rows` has, compressed by zlib. Line and values each have a checksum. A killed
writer can leave half a record, always the last of its object, which counts as not written.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files

_LOG = "_build/log"
#: How the line of a record begins, and how it ends: the checksum of the rest. Lines of earlier versions have none.
_RECORD_BEGIN, _RECORD_END = b'{"source": ', re.compile(rb', "crc": (\d+)\}\n')
#: On object stores, records are written together in one object: at most this many, after at most this many
#: seconds.
_RECORDS_AN_OBJECT = 64
_SECONDS_AN_OBJECT = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The outcome of one source: ``written``, ``skipped`` or ``failed``.

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


class Place(NamedTuple):
    """Position of a record's values: number of the log's object, offset, length, CRC-32."""

    object: int
    offset: int
    length: int
    crc: int


def pack_rows(rows: np.ndarray) -> bytes:
    """Compress rows of the record type.

    Parameters
    ----------
    rows
        Structured array, one element for each crop.

    Returns
    -------
    Compressed bytes.
    """
    return zlib.compress(rows.tobytes(), 1)


def unpack_rows(values: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the inverse of `pack_rows`: a structured array, one element a crop."""
    return np.frombuffer(zlib.decompress(values), dtype)


class Log:
    """Records of a store, appended by one writer and read by many. Nothing is read before the first access.

    Parameters
    ----------
    files
        The store.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._objects = files.names(_LOG)
        #: What `replay` could not read: key of the object and what is wrong.
        self.damages: list[tuple[str, str]] = []
        self._appending: int | None = None
        self._pending: list[bytes] = []
        self._since = 0.0
        #: The object of an object store that was read last: its records are mostly read one after the other.
        self._fetched: tuple[int, bytes] | None = None

    def replay(self) -> Iterator[tuple[Record, Place]]:
        """Yield every whole record in the order of arrival, without its values; what is damaged goes to
        `damages`.
        """
        self.damages.clear()
        for number in range(len(self._objects)):
            with self._open(number) as file:
                end = file.seek(0, os.SEEK_END)
                start = file.seek(0)
                while start < end:
                    line = file.readline()
                    head = _parse_head(line)
                    if head is not None:
                        record, length, crc = head
                        offset = start + len(line)
                        if offset + length > end:
                            break
                        yield record, Place(number, offset, length, crc)
                        start = file.seek(offset + length)
                        continue
                    found = _next_record(file, start + 1)
                    if found is None and not line.endswith(b"\n"):
                        break  # half a record
                    key = f"{_LOG}/{self._objects[number]}"
                    self.damages.append((key, f"altered (the record at byte {start})"))
                    if found is None:
                        break
                    start = file.seek(found)

    def mend(self) -> None:
        """Write damaged objects again with only their complete records. The places of records change."""
        for key in dict(self.damages):
            name = key.rpartition("/")[2]
            number, kept = self._objects.index(name), list[bytes]()
            data = self.files.read(key)
            for _, place in self.replay():
                if place.object == number:
                    start = data.rindex(_RECORD_BEGIN, 0, place.offset)
                    kept.append(data[start : place.offset + place.length])
            self.files.write(key, b"".join(kept))
            self._fetched = None

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each object by key."""
        return {f"{_LOG}/{name}": size for name, size in self.files.sizes(_LOG).items()}

    def append(self, record: Record) -> Place:
        """Add a record; durable when this returns on a local disk, else after `flush`."""
        crc = zlib.crc32(record.values)
        head = dataclasses.asdict(record) | {"values": [len(record.values), crc]}
        text = json.dumps(head, allow_nan=False).encode()
        line = text[:-1] + b', "crc": %d}\n' % zlib.crc32(text)
        if self._appending is None:
            self._appending = len(self._objects)
            self._objects.append(f"{self._appending:06d}-{secrets.token_hex(3)}.log")
            self._since = time.monotonic()
        number, key = self._appending, f"{_LOG}/{self._objects[self._appending]}"
        data = line + record.values
        if self.files.local:
            # If this fails, the object may end with half a record, so nothing is appended to it.
            self._appending = None
            start = self.files.append(key, data)
            self._appending = number
        else:
            start = sum(map(len, self._pending))
            self._pending.append(data)
            waited = time.monotonic() - self._since
            if len(self._pending) >= _RECORDS_AN_OBJECT or waited > _SECONDS_AN_OBJECT:
                self.flush()
        return Place(number, start + len(line), len(record.values), crc)

    def flush(self) -> None:
        """Write the records that are not in the object store yet."""
        if self._pending and self._appending is not None:
            self.files.write(f"{_LOG}/{self._objects[self._appending]}", b"".join(self._pending))
            self._pending.clear()
            self._appending = None

    def values(self, place: Place) -> bytes:
        """Return the values of a record.

        Raises
        ------
        SchemaError
            If they are damaged.
        """
        if place.object == self._appending:
            self.flush()
        with self._open(place.object) as file:
            file.seek(place.offset)
            data = file.read(place.length)
        if zlib.crc32(data) != place.crc:
            key = f"{_LOG}/{self._objects[place.object]}"
            raise SchemaError(f"{self.files.path(key)}: the record at byte {place.offset} is damaged")
        return data

    def _open(self, number: int) -> BinaryIO:
        key = f"{_LOG}/{self._objects[number]}"
        if self.files.local:
            return open(self.files.path(key), "rb")
        if self._fetched is None or self._fetched[0] != number:
            self._fetched = number, self.files.read(key)
        return io.BytesIO(self._fetched[1])


def _parse_head(line: bytes) -> tuple[Record, int, int] | None:
    """Return the record in a line, and length and checksum of its values; None if the line is damaged."""
    if found := _RECORD_END.search(line):
        if zlib.crc32(line[: found.start()] + b"}") != int(found[1]):
            return None
        line = line[: found.start()] + b"}\n"
    if not line.endswith(b"}\n"):
        return None
    try:
        head = json.loads(line)
        length, crc = head.pop("values")
        return Record(**head), int(length), int(crc)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _next_record(file: BinaryIO, start: int) -> int | None:
    """Return the position of the next complete line of a record, from a byte on; None without one."""
    file.seek(start)
    data, at = file.read(), 0
    while (at := data.find(_RECORD_BEGIN, at)) >= 0:
        end = data.find(b"\n", at) + 1
        if end and _parse_head(data[at:end]) is not None:
            return start + at
        at += 1
    return None
