"""How long a classic netCDF file must be, from its header.

The netCDF library reads zeros past the end of a cut classic file without a word, so its length is checked
here. The layout is that of "The NetCDF Classic Format Specification" (CDF-1, CDF-2 and CDF-5).
"""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

#: Bytes of one value by the format's type number.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = 0xFFFFFFFF
_LIST_LIMIT = 100_000  # more dimensions or attributes than this is no header


class HeaderError(ValueError):
    """A classic header that breaks its own format."""


class _Header:
    """Cursor over the big-endian words of a header."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.version = file.read(4)[3]
        self.count_bytes = 8 if self.version == 5 else 4

    def word(self, size: int = 4) -> int:
        raw = self.file.read(size)
        if len(raw) < size:
            raise HeaderError("the header is cut off")
        return int(struct.unpack(">I" if size == 4 else ">Q", raw)[0])

    def count(self) -> int:
        return self.word(self.count_bytes)

    def skip(self, size: int) -> None:
        self.file.seek(size + -size % 4, 1)

    def length(self) -> int:
        self.word()  # the tag of the list; zero where it is empty
        count = self.count()
        if count > _LIST_LIMIT:
            raise HeaderError(f"the header lists {count} entries")
        return count

    def skip_attributes(self) -> None:
        for _ in range(self.length()):
            self.skip(self.count())
            kind = self.word()
            if kind not in _TYPE_BYTES:
                raise HeaderError(f"the header has a value of unknown type {kind}")
            self.skip(_TYPE_BYTES[kind] * self.count())


def required_bytes(file: BinaryIO) -> int:
    """Position just past the last value that the header of an open classic file declares.

    Raises
    ------
    HeaderError
        If the header is cut off or breaks the format.
    """
    header = _Header(file)
    records = header.count()
    dimensions = []
    for _ in range(header.length()):
        header.skip(header.count())
        dimensions.append(header.count())
    header.skip_attributes()
    fixed_end, record_variables = file.tell(), []
    for _ in range(header.length()):
        header.skip(header.count())
        ids = [header.count() for _ in range(min(header.count(), _LIST_LIMIT))]
        header.skip_attributes()
        kind = header.word()
        header.count()  # the stored size, which overflows for large variables
        begin = header.word(4 if header.version == 1 else 8)
        if kind not in _TYPE_BYTES or any(i >= len(dimensions) for i in ids):
            raise HeaderError("the header names a type or dimension that does not exist")
        shape = [dimensions[i] for i in ids]
        if shape and shape[0] == 0:
            record_variables.append((begin, math.prod(shape[1:]) * _TYPE_BYTES[kind]))
        else:
            fixed_end = max(fixed_end, begin + math.prod(shape) * _TYPE_BYTES[kind])
    if records in (0, _STREAMING) or not record_variables:
        return fixed_end
    # One record variable alone is packed tight; several are padded to four bytes each.
    sizes = [size for _, size in record_variables]
    stride = sizes[0] if len(sizes) == 1 else sum(size + -size % 4 for size in sizes)
    return max(fixed_end, *(begin + (records - 1) * stride + size for begin, size in record_variables))
