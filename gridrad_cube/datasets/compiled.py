"""The inner loop of decoding, compiled where numba is installed (``pip install 'gridrad-cube[jit]'``)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


@functools.cache
def compiled_decoder() -> Callable[..., None] | None:
    """`decode_planes` as machine code that leaves Python's lock to others; None without numba.

    It is compiled at the first call with a dtype, which takes most of a second.

    Warns
    -----
    RuntimeWarning
        If numba is installed but cannot be imported, with its reason: it is older than numpy, say.
    """
    try:
        import numba
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            warnings.warn(
                f"numba is installed but cannot be imported ({error}); patches are decoded by numpy, in more "
                "time. Install versions of both that fit.",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
    compiled: Callable[..., None] = numba.njit(nogil=True)(decode_planes)
    return compiled


def decode_planes(
    codes: Any, rows: Any, tables: Any, lines: Any, spans: Any, alike: Any, fill: Any, values: Any, valid: Any
) -> None:
    """Values and valid pixels of planes of codes, in one pass: by arithmetic, or a table where that does not serve.

    Parameters
    ----------
    codes
        Integers, of which the low 16 bits are taken, shape (planes, pixels).
    rows
        Which of R normalisations each plane takes, shape (planes,).
    tables
        What each of 65,536 codes becomes, NaN where it is not valid, shape (R, 65536).
    lines
        Slope, offset and least number, shape (3, R), float32.
    spans
        First and last code for which these give the table's very bits, shape (2, R).
    alike
        Whether no code outside of the span is valid, shape (R,); where one is, the table serves.
    fill
        What a pixel takes that is not valid, shape (R,).
    values, valid
        Float32 and bool, of the codes' shape: where the result goes.
    """
    for i in range(codes.shape[0]):
        row = rows[i]
        slope, offset, least = lines[0, row], lines[1, row], lines[2, row]
        first, last, nothing = spans[0, row], spans[1, row], fill[row]
        if alike[row]:
            for j in range(codes.shape[1]):
                code = np.int32(codes[i, j])
                inside = (code >= first) & (code <= last)
                number = max(np.float32(code) * slope + offset, least)
                values[i, j] = number if inside else nothing
                valid[i, j] = inside
        else:
            for j in range(codes.shape[1]):
                number = tables[row, np.int32(codes[i, j]) & 0xFFFF]
                known = not np.isnan(number)
                values[i, j] = number if known else nothing
                valid[i, j] = known
