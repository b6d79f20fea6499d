"""Opening netCDF files that are not trusted: what may be opened, how much of it, and under which lock.

A classic file must be as long as its header declares: the netCDF library reads zeros past the end of a cut one. An HDF5
file must not reach outside itself. Large deflated variables are inflated chunk by chunk, which is faster than the
library.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from xarray.backends.locks import HDF5_LOCK, NETCDFC_LOCK, combine_locks

from gridrad_cube.schema import SchemaError

#: Largest variable that is opened, in bytes as declared: 1,400 bytes of HDF5 can declare a tebibyte.
MAX_VARIABLE_BYTES = 4 * 2**30
#: More objects than this in one HDF5 file is no gridded product.
MAX_HDF5_OBJECTS = 10_000
#: The one lock of this process around HDF5 and netCDF-C, which are not thread-safe; xarray's own engines
#: take the same one.
LOCK = combine_locks([NETCDFC_LOCK, HDF5_LOCK])

#: Variables of fewer bytes are read faster by the library.
_LARGE_BYTES = 2**18
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_CLASSIC_MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
#: What else arrives under the name of a netCDF file, by its first bytes.
_OTHER_MAGIC = (
    (b"<", "an HTML or XML page, as a failed log-in or download leaves; download the file again"),
    (b"{", "JSON text"),
    (b"GRIB", "GRIB; convert it, for example with cfgrib"),
    (b"\x1f\x8b", "gzip; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"BZh", "bzip2; unpack it first"),
)
# What h5py and netCDF4 raise for a file whose inside is broken, beside OSError.
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)


@dataclass(frozen=True)
class Variable:
    """What a header says of one variable. ``where`` names it and its file in messages."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any] = field(repr=False)
    where: str = field(repr=False)

    @property
    def is_numeric(self) -> bool:
        """Whether it holds integers or floats."""
        return self.dtype.kind in "iuf"

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return dict(zip(self.dims, self.shape, strict=True))

    def text(self, name: str) -> str:
        """A text attribute, stripped; empty where there is none."""
        return text_of(self.attributes, name)

    def number(self, name: str) -> float | None:
        """A numeric attribute, or None where there is none.

        A float32 attribute becomes the shortest decimal that is stored as it: 0.01, not 0.0099999998.

        Raises
        ------
        SchemaError
            If it is not one number.
        """
        if name not in self.attributes:
            return None
        value = np.asarray(self.attributes[name])
        try:
            if value.size != 1:
                raise ValueError("not one value")
            scalar = value.reshape(())[()]
            return float(str(scalar)) if isinstance(scalar, np.float32) else float(scalar)
        except (ValueError, TypeError) as error:
            raise SchemaError(
                f"{self.where}: attribute {name!r} is {self.attributes[name]!r}; expected one number"
            ) from error

    @property
    def fills(self) -> list[float]:
        """Values that the file declares to be missing."""
        declared = (self.number(name) for name in ("_FillValue", "missing_value"))
        return [fill for fill in declared if fill is not None]

    @property
    def scaling(self) -> tuple[float, float]:
        """Scale factor and offset, 1 and 0 where there are none."""
        scale, offset = self.number("scale_factor"), self.number("add_offset")
        scale, offset = (1.0 if scale is None else scale), (0.0 if offset is None else offset)
        if not (np.isfinite(scale) and np.isfinite(offset) and scale != 0):
            raise SchemaError(
                f"{self.where}: scale_factor {scale} and add_offset {offset}; expected finite, not zero"
            )
        return scale, offset


def text_of(attributes: Mapping[str, Any], name: str) -> str:
    """A text attribute, stripped; empty where there is none."""
    value = attributes.get(name, "")
    return value.strip() if isinstance(value, str) else ""


class Source:
    """An open file: variables of its root group, and reads that fail in one line.

    Made by `open_source`; of no use after its ``with`` block ends.
    """

    def __init__(self, path: str, dataset: Any, file: Any = None) -> None:
        self.path = path
        self._dataset = dataset
        self._file = file  # the same file as h5py sees it, None for classic netCDF

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return os.path.basename(self.path)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Global attributes."""
        return _attributes(self._dataset, self.path)

    @cached_property
    def variables(self) -> dict[str, Variable]:
        """Variables of the root group by name."""
        return {name: self._describe(name) for name in self._dataset.variables}

    def _describe(self, name: str) -> Variable:
        variable = self._dataset.variables[name]
        dtype = variable.dtype if isinstance(variable.dtype, np.dtype) else np.dtype(object)
        shape = tuple(int(n) for n in variable.shape)
        declared = math.prod(shape) * dtype.itemsize
        if declared > MAX_VARIABLE_BYTES:
            raise SchemaError(
                f"{self.path}: variable {name!r} declares {declared / 2**30:.1f} GiB; expected at most "
                f"{MAX_VARIABLE_BYTES / 2**30:.0f} GiB in a file of {os.path.getsize(self.path)} bytes. "
                "Check where the file comes from, or raise gridrad_cube.readers.files.MAX_VARIABLE_BYTES."
            )
        where = f"{self.path}: variable {name!r}"
        return Variable(
            name, tuple(variable.dimensions), shape, dtype, _attributes(variable, self.path), where
        )

    def read(self, name: str, key: Any = ...) -> npt.NDArray[Any]:
        """Values as they lie in the file, in native byte order: nothing scaled, nothing masked.

        Raises
        ------
        SchemaError
            If the variable is not numeric or its bytes cannot be read.
        """
        if not self.variables[name].is_numeric:
            raise SchemaError(
                f"{self.path}: variable {name!r} holds {self.variables[name].dtype}, not numbers"
            )
        try:
            values = self._read_large(self.variables[name], key)
            if values is None:
                values = np.asarray(self._dataset.variables[name][key])
        except _BROKEN as error:
            raise SchemaError(
                f"{self.path}: variable {name!r} cannot be read ({error}); the file is damaged. "
                "Download it again."
            ) from error
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))

    def _read_large(self, variable: Variable, key: Any) -> npt.NDArray[Any] | None:
        """The fast way to large variables; None where the library has to read them."""
        if self._file is None or math.prod(variable.shape) * variable.dtype.itemsize < _LARGE_BYTES:
            return None
        keys = key if isinstance(key, tuple) else (key,)
        keys = (*(k for k in keys if k is not ...), *[slice(None)] * len(variable.shape))[
            : len(variable.shape)
        ]
        parts = (slice(k, k + 1) if isinstance(k, int) else k for k in keys)
        bounds = [part.indices(n) for part, n in zip(parts, variable.shape, strict=True)]
        if any(step != 1 or stop <= start for start, stop, step in bounds):
            return None
        window = tuple(slice(start, stop) for start, stop, _ in bounds)
        values = _read_chunks(self._file, variable.name, variable.shape, variable.dtype, window)
        shape = [w.stop - w.start for w, k in zip(window, keys, strict=True) if not isinstance(k, int)]
        return None if values is None else values.reshape(shape)

    def require(self, names: tuple[str, ...], what: str) -> None:
        """Refuse a file that lacks one of these variables."""
        lacking = [name for name in names if name not in self.variables]
        if lacking:
            raise SchemaError(
                f"{self.path}: no variable {lacking[0]!r}; expected {what} to have {list(names)}, "
                f"got {self.listing()}"
            )

    def listing(self) -> str:
        """Variables of the file for a message."""
        names = sorted(self.variables)
        shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        groups = sorted(self._dataset.groups)
        return f"variables [{shown}]" + (f" and groups {groups[:10]}, which are not read" if groups else "")


def _attributes(owner: Any, path: str) -> dict[str, Any]:
    try:
        return {name: owner.getncattr(name) for name in owner.ncattrs()}
    except _BROKEN as error:
        raise SchemaError(f"{path}: an attribute cannot be read ({error}); the file is damaged") from error


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a netCDF file after looking at what it is; holds the process's lock until closed.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If it is not a netCDF file, is empty, cut or damaged, declares an absurd size, or would make the
        library read other files of this machine.
    """
    import netCDF4

    name = os.fspath(path)
    is_hdf5 = _check_bytes(name)
    with LOCK, _open_hdf5(name) if is_hdf5 else nullcontext() as file:
        try:
            dataset = netCDF4.Dataset(os.path.abspath(name), "r")
            dataset.set_auto_maskandscale(False)
        except _BROKEN as error:
            raise SchemaError(
                f"{name}: the netCDF library cannot open it ({error}). Download it again."
            ) from error
        try:
            yield Source(name, dataset, file)
        finally:
            dataset.close()


def _check_bytes(path: str) -> bool:
    """Look at the kind, length and first bytes of a file; True for HDF5, False for classic netCDF."""
    location = Path(path)
    if not location.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if location.is_dir():
        raise SchemaError(f"{path}: a directory, not a file; expected one netCDF file. Pass the files in it.")
    if not location.is_file():
        raise SchemaError(f"{path}: not a regular file; expected one netCDF file")
    size = location.stat().st_size
    if size == 0:
        raise SchemaError(f"{path}: empty file: GridRad writes these where there was no valid data")
    with location.open("rb") as file:
        head = file.read(64)
        if head.startswith(_HDF5_MAGIC):
            return True
        if not head.startswith(_CLASSIC_MAGIC):
            raise SchemaError(
                f"{path}: not a netCDF file (starts with {_describe_bytes(head)}); expected HDF5 or classic netCDF"
            )
        file.seek(0)
        try:
            needed = _required_bytes(file)
        except _HeaderError as error:
            raise SchemaError(f"{path}: damaged classic netCDF file: {error}. Download it again.") from error
    if size < needed:
        raise SchemaError(f"{path}: cut off: {size} bytes of the {needed} it declares. Download it again.")
    return False


def _describe_bytes(head: bytes) -> str:
    start = head.lstrip()
    for magic, meaning in _OTHER_MAGIC:
        if start.startswith(magic):
            return f"{start[:16]!r}: {meaning}"
    is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return f"{head[:16]!r}" + (": text" if is_text else "")


@contextmanager
def _open_hdf5(path: str) -> Iterator[Any]:
    """Open with h5py, refusing a file that reaches outside of itself: netCDF would follow without a word."""
    import h5py

    links: set[str] = set()

    def check_link(name: str, link: Any) -> str | None:  # an error may not be raised here
        links.add(name)
        if len(links) > MAX_HDF5_OBJECTS:
            return f"more than {MAX_HDF5_OBJECTS} objects in one file"
        return (
            f"/{name} is a link to another file, {link.filename!r}"
            if isinstance(link, h5py.ExternalLink)
            else None
        )

    def check_object(name: str, item: Any) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        if item.external:
            return f"/{name} keeps its bytes in another file, {item.external[0][0]!r}"
        outside = (
            [s.file_name for s in item.virtual_sources() if s.file_name != "."] if item.is_virtual else []
        )
        return f"/{name} is a virtual dataset of another file, {outside[0]!r}" if outside else None

    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(path, "r"))
            problem = file.visititems_links(check_link) or file.visititems(check_object)
        except _BROKEN as error:
            raise SchemaError(f"{path}: damaged or cut HDF5 file ({error}). Download it again.") from error
        if problem:
            raise SchemaError(f"{path}: {problem}; refused")
        yield file


#: Bytes of one value of a classic netCDF file by the format's type number.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = 0xFFFFFFFF
_LIST_LIMIT = 100_000  # more dimensions or attributes than this is no header


class _HeaderError(ValueError):
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
            raise _HeaderError("the header is cut off")
        return int(struct.unpack(">I" if size == 4 else ">Q", raw)[0])

    def count(self) -> int:
        return self.word(self.count_bytes)

    def skip(self, size: int) -> None:
        self.file.seek(size + -size % 4, 1)

    def length(self) -> int:
        self.word()  # the tag of the list; zero where it is empty
        count = self.count()
        if count > _LIST_LIMIT:
            raise _HeaderError(f"the header lists {count} entries")
        return count

    def skip_attributes(self) -> None:
        for _ in range(self.length()):
            self.skip(self.count())
            kind = self.word()
            if kind not in _TYPE_BYTES:
                raise _HeaderError(f"the header has a value of unknown type {kind}")
            self.skip(_TYPE_BYTES[kind] * self.count())


def _required_bytes(file: BinaryIO) -> int:
    """Position just past the last value that the header of an open classic file declares.

    The layout is that of "The NetCDF Classic Format Specification" (CDF-1, CDF-2 and CDF-5).
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
            raise _HeaderError("the header names a type or dimension that does not exist")
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


#: HDF5's numbers of the filters that are understood: deflate, or shuffle and deflate.
_FILTERS = ([1], [2, 1])


def _read_chunks(
    file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], window: tuple[slice, ...]
) -> npt.NDArray[Any] | None:
    """Read a window of a deflated HDF5 variable chunk by chunk; None where the library has to read it.

    Only what is plain is read here: chunked, deflated, of a native type. The library also says what is wrong with a
    damaged chunk. Nothing is allocated beyond what the checked header declares (``shape``, ``dtype``).
    """
    import h5py

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


def _is_plain(dataset: Any, dtype: np.dtype[Any]) -> bool:
    import h5py

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


def _inflate(dataset: Any, offset: tuple[int, ...], size: int) -> npt.NDArray[np.uint8] | None:
    import deflate

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
