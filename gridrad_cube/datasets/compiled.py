"""The inner loop of decoding, compiled where numba is installed (``pip install 'gridrad-cube[jit]'``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gridrad_cube.jit import find_numba, once


class CompiledDecoder(NamedTuple):
    """Decoding as machine code that leaves Python's lock to others; compiled at the first call with a dtype.

    Both ``into_*`` are the ``finish(codes, place, arguments)`` of a `Sink`, and decode one plane, (pixels,).
    Arguments are

    - which of R normalisations each plane takes, shape (planes,);
    - what each of 65,536 codes becomes, NaN where it is not valid, shape (R, 65536);
    - slope, offset and least number, shape (3, R), float32: ``max(code * slope + offset, least)``;
    - first and last code for which these give the table's very bits, shape (2, R);
    - whether no code outside of these is valid, shape (R,); where one is, the table serves;
    - what a pixel takes that is not valid, shape (R,);
    - where values go, and whether pixels are valid, shape (planes, pixels).
    """

    #: Values are float32.
    into_float32: Callable[..., None]
    #: Values are bfloat16, given as uint16.
    into_bfloat16: Callable[..., None]
    #: ``(codes, finish, arguments)`` decodes all planes of codes, (planes, pixels).
    planes: Callable[..., None]


@once
def compiled_decoder() -> CompiledDecoder | None:
    """The decoder; None without numba (warns if that is installed but cannot be imported)."""
    numba = find_numba()
    if numba is None:
        return None
    decode = numba.njit(nogil=True)(_decode)

    @numba.njit(nogil=True)
    def into_float32(codes: Any, place: int, arguments: Any) -> None:
        rows, tables, lines, spans, alike, fill, values, valid = arguments
        decode(codes, rows[place], tables, lines, spans, alike, fill, values[place], valid[place])

    @numba.njit(nogil=True)
    def into_bfloat16(codes: Any, place: int, arguments: Any) -> None:
        rows, tables, lines, spans, alike, fill, values, valid = arguments
        exact = np.empty(codes.shape, np.float32)
        decode(codes, rows[place], tables, lines, spans, alike, fill, exact, valid[place])
        bits, out = exact.view(np.uint32), values[place]
        for j in range(len(bits)):  # to the nearest, to even where two are as near; none is NaN
            odd = (bits[j] >> np.uint32(16)) & np.uint32(1)
            out[j] = (bits[j] + np.uint32(0x7FFF) + odd) >> np.uint32(16)

    @numba.njit(nogil=True)
    def planes(codes: Any, finish: Any, arguments: Any) -> None:
        for i in range(len(codes)):
            finish(codes[i], i, arguments)

    return CompiledDecoder(into_float32, into_bfloat16, planes)


def _decode(
    codes: Any, row: int, tables: Any, lines: Any, spans: Any, alike: Any, fill: Any, values: Any, valid: Any
) -> None:
    """Values and valid pixels of one plane, in one pass; see `CompiledDecoder`."""
    slope, offset, least = lines[0, row], lines[1, row], lines[2, row]
    first, last, nothing = spans[0, row], spans[1, row], fill[row]
    if alike[row]:
        for j in range(len(codes)):
            code = np.int32(codes[j])
            inside = (code >= first) & (code <= last)
            number = max(np.float32(code) * slope + offset, least)
            values[j] = number if inside else nothing
            valid[j] = inside
    else:
        for j in range(len(codes)):
            number = tables[row, np.int32(codes[j]) & 0xFFFF]
            known = not np.isnan(number)
            values[j] = number if known else nothing
            valid[j] = known
