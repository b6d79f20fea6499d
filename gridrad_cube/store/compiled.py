"""Reading chunks of local shards as machine code, where numba is installed.

A thread that reads chunk after chunk in Python gives up its lock, and has to get it back, for every read and every
decompression: two of them wait for each other as long as they work. Here one call reads many chunks and gives the
lock up once. The work is done by the functions that Python calls otherwise, found by name in the libraries where
they lie: the system's pread, the CRC-32C of google-crc32c, Blosc's decompression in numcodecs.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc

from gridrad_cube.jit import find_numba, once

#: Chunks of an array that are read before the second or two of compiling pay.
COMPILE_AFTER = 2000


@dataclass(frozen=True)
class Sink:
    """Takes chunks one by one, each while it is in the cache of the processor that decompressed it.

    Attributes
    ----------
    finish
        ``finish(chunk, place, arguments)``, compiled by numba, with a flat chunk that is good until it returns and
        the place in the batch that it goes to. Threads call it at once; for a chunk that is read again, again.
    arguments
        Arrays.
    places
        How many places there are: machine code would write to others all the same, so that readers refuse them.
    """

    finish: Callable[[np.ndarray, int, tuple[np.ndarray, ...]], None]
    arguments: tuple[np.ndarray, ...]
    places: int

    def take(self, chunk: np.ndarray, place: int) -> None:
        """Finish one chunk, of any shape."""
        if not 0 <= place < self.places:
            raise IndexError(f"place {place} in a batch of {self.places}")
        self.finish(chunk.reshape(-1), place, self.arguments)


class CompiledReader(NamedTuple):
    """Functions that read chunks at ``offsets`` of open files, their checksum at the end.

    ``good`` tells of each whether it has been read; what is wrong with another is for Python to find out. ``buffer``
    has room for one, as it lies in the file.
    """

    #: ``(descriptors, offsets, sizes, places, buffer, out, good)``: into rows of ``out``, which have their size.
    into: Callable[..., None]
    #: ``(descriptors, offsets, sizes, places, buffer, chunk, finish, arguments, good)``: through a `Sink`.
    through: Callable[..., None]


@once
def compiled_reader() -> CompiledReader | None:
    """The reader of chunks compressed by Blosc and checked by CRC-32C; None where it is not to be had.

    What is compiled, is so at the first call with an array's dtype.
    """
    numba, functions = find_numba(), _functions()
    if numba is None or functions is None:
        return None
    pread, checksum, decompress = functions

    @numba.njit(nogil=True)
    def read(descriptor: int, offset: int, size: int, buffer: Any, chunk: Any) -> bool:
        end = size - 4
        if end < 16 or size > len(buffer) or pread(descriptor, buffer.ctypes.data, size, offset) != size:
            return False
        found = checksum(buffer.ctypes.data, end)
        for i in range(4):
            if buffer[end + i] != (found >> (8 * i)) & 0xFF:
                return False
        # Blosc's header, bytes 4 to 15: of the chunk, of a block, of what lies here. It writes as much as it says.
        decoded, here = np.int64(0), np.int64(0)
        for i in range(4):
            decoded |= np.int64(buffer[4 + i]) << (8 * i)
            here |= np.int64(buffer[12 + i]) << (8 * i)
        if decoded != chunk.nbytes or here != end:
            return False
        return decompress(buffer.ctypes.data, chunk.ctypes.data, chunk.nbytes, 1) == chunk.nbytes

    @numba.njit(nogil=True)
    def into(
        descriptors: Any, offsets: Any, sizes: Any, places: Any, buffer: Any, out: Any, good: Any
    ) -> None:
        for i in range(len(descriptors)):
            good[i] = read(descriptors[i], offsets[i], sizes[i], buffer, out[places[i]])

    @numba.njit(nogil=True)
    def through(
        descriptors: Any, offsets: Any, sizes: Any, places: Any, buffer: Any, chunk: Any, finish: Any, arguments: Any,
        good: Any,
    ) -> None:  # fmt: skip
        for i in range(len(descriptors)):
            good[i] = read(descriptors[i], offsets[i], sizes[i], buffer, chunk)
            if good[i]:
                finish(chunk, places[i], arguments)

    return CompiledReader(into, through)


def _functions() -> tuple[Any, Any, Any] | None:
    """pread, CRC-32C and Blosc's decompression; None where one does not lie where it is looked for, or differs."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    try:
        pread = ctypes.CDLL(None).pread
        checksum = ctypes.CDLL(importlib.import_module("google_crc32c._crc32c").__file__).crc32c_value
        decompress = ctypes.CDLL(blosc.__file__).blosc_decompress_ctx
    except (AttributeError, ImportError, OSError, TypeError):  # another system, or built in another way
        return None
    if ctypes.sizeof(size) != 8:
        return None  # where an offset may be of 4 bytes
    pread.argtypes, pread.restype = [ctypes.c_int, pointer, size, ctypes.c_int64], ctypes.c_ssize_t
    checksum.argtypes, checksum.restype = [pointer, size], ctypes.c_uint32
    decompress.argtypes, decompress.restype = [pointer, pointer, size, ctypes.c_int], ctypes.c_int
    sample, out = np.arange(256, dtype=np.uint8), np.zeros(256, np.uint8)
    packed = np.frombuffer(blosc.compress(sample, b"lz4", 5, 1), np.uint8)
    known = (
        checksum(sample.ctypes.data, sample.nbytes) == google_crc32c.value(sample.tobytes())
        and decompress(packed.ctypes.data, out.ctypes.data, out.nbytes, 1) == out.nbytes
        and np.array_equal(out, sample)
    )
    return (pread, checksum, decompress) if known else None
