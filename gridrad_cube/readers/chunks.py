"""Deflated HDF5 variables, read chunk by chunk: inflating by the library takes most of a scene's time.

Only what is plain is read here; everything else is left to the library (None), which also says what is wrong
with a damaged chunk. Nothing is allocated beyond what the checked header declares.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import deflate
import h5py
import numpy as np
import numpy.typing as npt

#: Less than this is quicker through the library.
LEAST_BYTES = 2**18
_FILTERS = ([h5py.h5z.FILTER_DEFLATE], [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE])


def read_chunks(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], window: tuple[slice, ...]
) -> npt.NDArray[Any] | None:
    """Read a window of a variable, or None if it is not chunked, deflated and of a native type throughout.

    Parameters
    ----------
    shape, dtype
        What the header says of the variable; the file must say the same.
    window
        Start and stop along each dimension, inside the shape, step 1.

    Returns
    -------
    As stored, in the file's byte order.
    """
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.chunks is None or dataset.shape != shape:
        return None
    stored, chunk = dataset.dtype, dataset.chunks
    size = math.prod(chunk) * stored.itemsize
    if not _is_plain(dataset, dtype) or size > 2 * math.prod(shape) * stored.itemsize:
        return None
    is_shuffled = dataset.shuffle and stored.itemsize > 1
    out = None
    extent = tuple(part.stop - part.start for part in window)
    ranges = [range(part.start // c, -(-part.stop // c)) for part, c in zip(window, chunk, strict=True)]
    for place in itertools.product(*ranges):
        offset = tuple(i * c for i, c in zip(place, chunk, strict=True))
        data = _inflate(dataset, offset, size)
        if data is None:
            return None
        values = _unshuffle(data, stored.itemsize) if is_shuffled else data
        block = values.view(stored).reshape(chunk)
        if chunk == extent and offset == tuple(part.start for part in window):
            return block  # the window is this chunk
        if out is None:
            out = np.empty(extent, stored)
        inner, outer = [], []
        for start, edge, part in zip(offset, chunk, window, strict=True):
            low, high = max(start, part.start), min(start + edge, part.stop)
            inner.append(slice(low - start, high - start))
            outer.append(slice(low - part.start, high - part.start))
        out[tuple(outer)] = block[tuple(inner)]
    return out


def _is_plain(dataset: h5py.Dataset, dtype: np.dtype[Any]) -> bool:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    stored = dataset.dtype
    return (
        filters in _FILTERS
        and stored.kind in "iuf"
        and stored.newbyteorder("=") == dtype.newbyteorder("=")
        # Not a type that h5py would convert, such as integers of 12 bits.
        and dataset.id.get_type().equal(h5py.h5t.py_create(stored))
    )


def _inflate(dataset: h5py.Dataset, offset: tuple[int, ...], size: int) -> npt.NDArray[np.uint8] | None:
    try:
        mask, packed = dataset.id.read_direct_chunk(offset)
        # The size bounds what is allocated, whatever the bytes would inflate to.
        data = deflate.zlib_decompress(packed, size) if mask == 0 else b""
    except (OSError, RuntimeError, ValueError, deflate.DeflateError):  # not written, or damaged
        return None
    return np.frombuffer(data, np.uint8) if len(data) == size else None


def _unshuffle(data: npt.NDArray[np.uint8], itemsize: int) -> npt.NDArray[Any]:
    """Put the bytes of each number together again; first come all first bytes, then all second ones."""
    planes = data.reshape(itemsize, -1)
    out = planes[-1].astype(f"<u{itemsize}")
    for plane in planes[-2::-1]:
        out <<= 8
        out |= plane
    return out
