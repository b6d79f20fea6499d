"""Open files that are not trusted: check the file before the library does, and bound what is read.

A classic netCDF file must be as long as its header declares, because the library reads zeros beyond the end
of a
truncated file. An HDF5 file must not refer to other files. Large deflated variables are inflated chunk by
chunk, which
is faster than the library. GRIB2 files, plain or in gzip, are read through `grib`.
"""

from __future__ import annotations

import errno
import gzip
import itertools
import math
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from xarray.backends.locks import HDF5_LOCK, NETCDFC_LOCK, combine_locks

from gridrad_cube.readers.grib import MAGIC as _GRIB_MAGIC
from gridrad_cube.readers.grib import GribFile
from gridrad_cube.schema import SchemaError

#: Largest variable that is opened, in declared bytes: an HDF5 file of 1,400 bytes can declare a tebibyte.
MAX_VARIABLE_BYTES = 4 * 2**30
#: Largest file that is unpacked, in bytes: a kilobyte of gzip can expand to a megabyte.
_MAX_UNPACKED_BYTES = 2**30
#: Largest number of objects in an HDF5 file; a gridded product has fewer.
_MAX_HDF5_OBJECTS = 10_000
#: The one lock of this process around HDF5 and netCDF-C, which are not thread-safe; xarray's own engines
#: take the same one.
_LOCK = combine_locks([NETCDFC_LOCK, HDF5_LOCK])

#: Variables of fewer bytes are read faster by the library.
_LARGE_BYTES = 2**18
#: Bytes that are unpacked at once.
_BLOCK = 2**20
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_CLASSIC_MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
_GZIP_MAGIC = b"\x1f\x8b"
#: Other content that is found in files named as netCDF, by its first bytes.
_OTHER_MAGIC = (
    (b"<", "an HTML or XML page, as a failed log-in or download leaves; download the file again"),
    (b"{", "JSON text"),
    (_GZIP_MAGIC, "gzip of no GRIB file; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"BZh", "bzip2; unpack it first"),
)
# Exceptions of h5py and netCDF4 for a file that is damaged inside, besides OSError.
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)
#: An array of more than `_SMALL_BYTES`, and more than the file times this, was not written. Deflate reaches 1,032.
_MOST_EXPANSION = 4096
_SMALL_BYTES = 2**26
#: How h5py reports the error number of a read that failed.
_ERRNO = re.compile(r"errno = (\d+)")


class UnreadableError(SchemaError):
    """A library cannot read a file: its bytes are damaged, or a disk failed for a moment, so that a retry may help."""


def _unreadable(path: str, message: str, error: Exception) -> Exception:
    """Return what to raise for an error of a library: one of the disk where the disk failed, else `UnreadableError`.

    The libraries report a disk that fails (EIO, ESTALE, ETIMEDOUT) as damage, often without its number. So the
    file is read once by the system alone, which raises such an error again if it lasts.
    """
    found = _ERRNO.search(str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number is not None and number > 0 and number not in (errno.ENOENT, errno.EINVAL):
        return OSError(number, f"{message} ({os.strerror(number)})")
    try:
        with open(path, "rb") as file:
            while file.read(_BLOCK):
                pass
    except OSError as failed:
        return OSError(failed.errno, f"{message} ({failed.strerror})")
    return UnreadableError(f"{message} ({error}); the file is damaged. Download it again.")


@dataclass(frozen=True)
class Variable:
    """One variable as the header describes it. ``where`` names it and its file in messages.

    ``notes`` lists attributes that were read and could not be used.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any] = field(repr=False)
    where: str = field(repr=False)
    notes: dict[str, None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_numeric(self) -> bool:
        """True if it holds integers or floats."""
        return self.dtype.kind in "iuf"

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return dict(zip(self.dims, self.shape, strict=True))

    def text(self, name: str) -> str:
        """Return a text attribute, stripped; empty if it is missing."""
        return text_of(self.attributes, name)

    def number(self, name: str) -> float | None:
        """Return a numeric attribute, or None if it is missing.

        A float32 attribute becomes the shortest decimal with the same float32 value: 0.01, not 0.0099999998.

        Raises
        ------
        SchemaError
            If it is not one number.
        """
        if name not in self.attributes:
            return None
        value = np.asarray(self.attributes[name])
        try:
            scalar = value.reshape(())[()]  # fails for several values
            return float(str(scalar)) if isinstance(scalar, np.float32) else float(scalar)
        except (ValueError, TypeError) as error:
            raise SchemaError(
                f"{self.where}: attribute {name!r} is {self.attributes[name]!r}; expected one number"
            ) from error

    def numbers(self, name: str) -> list[int | float]:
        """Return the numbers of an optional attribute; empty if it is missing. Text is noted and ignored.

        Integers are exact, also those of 64 bits; a float32 becomes the shortest decimal with the same value.
        """
        values = np.asarray(self.attributes.get(name, [])).ravel()
        if name in self.attributes and values.dtype.kind not in "iuf":
            self.note(
                f"attribute {name!r} is {str(self.attributes[name])[:80]!r}, not numbers: it is ignored"
            )
            return []
        return [float(str(v)) if isinstance(v, np.float32) else v.item() for v in values]

    @property
    def fills(self) -> list[int | float]:
        """Numbers that the file declares to be missing: one ``_FillValue``, and any of ``missing_value``."""
        missing = self.numbers("missing_value")
        if len(missing) > 1:
            self.note(f"attribute 'missing_value' has {len(missing)} numbers: each of them is missing")
        return list(dict.fromkeys([*self.numbers("_FillValue"), *missing]))

    @property
    def valid_range(self) -> tuple[int | float | None, int | float | None]:
        """Smallest and largest valid number that the file declares. A limit that is not one finite number is
        ignored.
        """
        pair = self.numbers("valid_range")
        if len(pair) == 2 and all(map(math.isfinite, pair)):
            return pair[0], pair[1]
        if pair:
            self.note(f"attribute 'valid_range' is {pair[:8]}, not two numbers: it is ignored")
        low, high = (self._bound(name) for name in ("valid_min", "valid_max"))
        return low, high

    def _bound(self, name: str) -> int | float | None:
        found = self.numbers(name)
        if len(found) == 1 and math.isfinite(found[0]):
            return found[0]
        if found:
            self.note(f"attribute {name!r} is {found[:8]}, not one number: it is ignored")
        return None

    def note(self, text: str) -> None:
        """Warn once about this variable, and keep the text for the report."""
        text = f"variable {self.name!r}: {text}"
        if text not in self.notes:
            self.notes[text] = None
            warnings.warn(text, stacklevel=2)

    @property
    def scaling(self) -> tuple[float, float]:
        """Scale factor and offset; 1 and 0 by default."""
        scale, offset = self.number("scale_factor"), self.number("add_offset")
        scale, offset = (1.0 if scale is None else scale), (0.0 if offset is None else offset)
        if not (np.isfinite(scale) and np.isfinite(offset) and scale != 0):
            raise SchemaError(
                f"{self.where}: scale_factor {scale} and add_offset {offset}; expected finite, not zero"
            )
        return scale, offset


def text_of(attributes: Mapping[str, Any], name: str) -> str:
    """Return a text attribute, stripped; empty if it is missing."""
    value = attributes.get(name, "")
    return value.strip() if isinstance(value, str) else ""


class Source:
    """An open file: variables of its root group, or of the only group that has variables. Errors have one
    line.

    `open_source` makes it. It cannot be used after the ``with`` block.
    """

    def __init__(self, path: str, here: str, dataset: Any, file: Any = None) -> None:
        self.path = path
        self._here = here
        self._dataset = dataset
        self._file = file  # the same file as h5py sees it, None for classic netCDF

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return os.path.basename(self.path)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Global attributes."""
        return _attributes(self._dataset, self.path, self._here)

    @cached_property
    def variables(self) -> dict[str, Variable]:
        """Variables of the root group by name."""
        return {name: self._describe(name, variable) for name, variable in self._dataset.variables.items()}

    def _describe(self, name: str, variable: Any) -> Variable:
        where = f"{self.path}: variable {name!r}"
        dtype = variable.dtype if isinstance(variable.dtype, np.dtype) else np.dtype(object)
        shape = tuple(int(n) for n in variable.shape)
        attributes = _attributes(variable, self.path, self._here)
        return Variable(name, tuple(variable.dimensions), shape, dtype, attributes, where)

    def read(self, name: str, key: Any = ...) -> npt.NDArray[Any]:
        """Return the values of the file in native byte order, neither scaled nor masked.

        Raises
        ------
        SchemaError
            If the variable is not numeric or its bytes cannot be read.
        """
        variable = self.variables[name]
        if not variable.is_numeric:
            raise SchemaError(f"{variable.where} holds {variable.dtype}, not numbers")
        _check_size(variable, np.broadcast_to(np.int8(0), variable.shape)[key].size)
        try:
            values = self._read_fast(variable, key)
            if values is None:
                values = np.asarray(self._dataset.variables[name][key])
        except _BROKEN as error:
            raise _unreadable(self._here, f"{variable.where} cannot be read", error) from error
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))

    def _read_fast(self, variable: Variable, key: Any) -> npt.NDArray[Any] | None:
        """Return a large variable, or a part of its first dimension; None where the library has to read it."""
        shape = variable.shape
        keys = _keys(key, len(shape))
        if self._file is None or not shape or not all(isinstance(k, int | slice) for k in keys):
            return None
        parts = [
            range(n)[k] if isinstance(k, slice) else range(k, k + 1) for n, k in zip(shape, keys, strict=True)
        ]
        first, others = parts[0], parts[1:]
        is_whole = all(len(taken) == n for taken, n in zip(others, shape[1:], strict=True))
        size = len(first) * math.prod(shape[1:])
        if first.step != 1 or not is_whole or size * variable.dtype.itemsize < _LARGE_BYTES:
            return None
        values = _read_chunks(self._file, variable.name, shape, variable.dtype, first)
        if values is None:
            return None
        return values[(slice(None) if isinstance(keys[0], slice) else 0, *keys[1:])]

    def dims_of(self, axes: tuple[str, ...], what: str) -> list[str]:
        """Return the dimension of each 1-D variable; refuse a file that lacks one of them."""
        for name in axes:
            if name not in self.variables or len(self.variables[name].dims) != 1:
                raise SchemaError(
                    f"{self.path}: no 1-D variable {name!r}; expected {what} to have {list(axes)}, got "
                    f"{self.listing()}. Pass format='cf' for a file with 2-D coordinates."
                )
        return [self.variables[name].dims[0] for name in axes]

    def at(self, dim: str | None, position: int) -> Source:
        """Return the same file with one position of its time dimension, which keeps length one.

        Raises
        ------
        SchemaError
            On access to ``variables``, if one of them declares a size that is too large.
        """
        return _Scene(self, dim, position)

    def stored(self, name: str) -> int | None:
        """Return the bytes that a variable takes in the file; None where that is not known."""
        variable = None if self._file is None else self._file.get(name)
        return (
            None if variable is None or not hasattr(variable, "id") else int(variable.id.get_storage_size())
        )

    def check_declared(self, what: str, size: int) -> None:
        """Refuse an array that declares more bytes than the limit, or more than the bytes of the file can
        hold.

        Raises
        ------
        SchemaError
            Names what it is.
        """
        there = os.path.getsize(self._here)
        if size > MAX_VARIABLE_BYTES or size > max(_SMALL_BYTES, _MOST_EXPANSION * there):
            raise SchemaError(
                f"{self.path}: {what} declares {size / 2**20:,.0f} MiB in a file of {there} bytes; expected at most "
                f"{MAX_VARIABLE_BYTES / 2**30:.0f} GiB, and what such a file can hold. Leave the file out."
            )

    def listing(self) -> str:
        """Return the variables of the file for a message."""
        names = sorted(self.variables)
        shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        groups = sorted(self._dataset.groups)
        return f"variables [{shown}]" + (f" and groups {groups[:10]}, which are not read" if groups else "")


class _Scene(Source):
    """One position along a dimension of a source, which keeps length one."""

    def __init__(self, whole: Source, dim: str | None, position: int) -> None:
        self.path, self._here = whole.path, whole._here
        self._whole, self._dim, self._position = whole, dim, position

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return self._whole.attributes

    @cached_property
    def variables(self) -> dict[str, Variable]:
        out = {}
        for name, variable in self._whole.variables.items():
            sizes = variable.sizes | ({self._dim: 1} if self._dim in variable.dims else {})
            _check_size(variable, math.prod(sizes.values()))
            out[name] = replace(variable, shape=tuple(sizes.values()))
        return out

    def read(self, name: str, key: Any = ...) -> npt.NDArray[Any]:
        dims = self._whole.variables[name].dims
        if self._dim not in dims:
            return self._whole.read(name, key)
        keys, axis = _keys(key, len(dims)), dims.index(self._dim)
        position = self._position
        part = range(1)[keys[axis]]  # all, nothing or an integer, along a dimension of length one
        here = position if isinstance(part, int) else slice(position, position + len(part))
        return self._whole.read(name, (*keys[:axis], here, *keys[axis + 1 :]))

    def stored(self, name: str) -> int | None:
        return self._whole.stored(name)

    def listing(self) -> str:
        return self._whole.listing()


def _keys(key: Any, dims: int) -> tuple[Any, ...]:
    """Return an index with one part for each dimension, for one that may be shorter or have an ellipsis."""
    keys = key if isinstance(key, tuple) else (key,)
    place = next((i for i, part in enumerate(keys) if part is ...), len(keys))
    before, after = keys[:place], keys[place + 1 :]
    return (*before, *[slice(None)] * (dims - len(before) - len(after)), *after)


def _check_size(variable: Variable, values: int) -> None:
    """Refuse to read more than `MAX_VARIABLE_BYTES` of a variable at once."""
    declared = values * variable.dtype.itemsize
    if declared > MAX_VARIABLE_BYTES:
        raise SchemaError(
            f"{variable.where} declares {declared / 2**30:.1f} GiB; expected at most "
            f"{MAX_VARIABLE_BYTES / 2**30:.0f} GiB at once. Check where the file comes "
            "from, or raise gridrad_cube.readers.files.MAX_VARIABLE_BYTES."
        )


def _attributes(owner: Any, path: str, here: str) -> dict[str, Any]:
    try:
        return {name: owner.getncattr(name) for name in owner.ncattrs()}
    except _BROKEN as error:
        raise _unreadable(here, f"{path}: an attribute cannot be read", error) from error


@contextmanager
def open_source(path: str | os.PathLike[str], name: str = "") -> Iterator[Source]:
    """Open a netCDF or GRIB2 file after checking its content. The lock of the process is held until it is
    closed.

    Parameters
    ----------
    path
        A local file.
    name
        Name for messages, and the name of the file if this is a copy of it; the path by default.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    SchemaError
        If it is neither a netCDF nor a GRIB2 file; is empty, truncated or damaged; declares a size that is
        too large; or would make the library read other files of this machine.
    """
    here = os.fspath(path)
    name = name or here
    head = _check_file(here, name)
    is_netcdf = head.startswith((_HDF5_MAGIC, *_CLASSIC_MAGIC))
    # The heading of a bulletin may come before the first GRIB message.
    is_grib = head.startswith(_GZIP_MAGIC) or (_GRIB_MAGIC in head and not is_netcdf)
    with _open_grib(here, name, head) if is_grib else _open_netcdf(here, name, head) as source:
        yield source


@contextmanager
def _open_grib(path: str, name: str, head: bytes) -> Iterator[Source]:
    is_packed = head.startswith(_GZIP_MAGIC)
    with _LOCK, _unpack(path, name) if is_packed else open(path, "rb") as file:
        try:
            messages = GribFile(file)
        except ValueError as error:
            raise SchemaError(f"{name}: {error}") from error
        yield Source(name, path, messages)


@contextmanager
def _open_netcdf(path: str, name: str, head: bytes) -> Iterator[Source]:
    import netCDF4

    is_hdf5 = head.startswith(_HDF5_MAGIC)
    if not is_hdf5:
        _check_classic(path, name, head)
    with _LOCK, _open_hdf5(path, name) if is_hdf5 else nullcontext() as file:
        try:
            dataset = netCDF4.Dataset(os.path.abspath(path), "r")
            dataset.set_auto_maskandscale(False)
        except _BROKEN as error:
            raise _unreadable(path, f"{name}: the netCDF library cannot open it", error) from error
        try:
            inhabited = [group for group in dataset.groups.values() if group.variables]
            if dataset.variables or len(inhabited) != 1:
                yield Source(name, path, dataset, file)
            else:  # the one group with variables, such as Grid of IMERG
                yield Source(name, path, inhabited[0], None if file is None else file[inhabited[0].name])
        finally:
            dataset.close()


def _check_file(path: str, name: str) -> bytes:
    """Return the first bytes of a file; refuse an empty file, or a path that is not a file."""
    location = Path(path)
    if not location.exists():
        raise FileNotFoundError(f"{name}: no such file")
    if location.is_dir():
        raise SchemaError(f"{name}: a directory, not a file; expected one netCDF file. Pass the files in it.")
    if not location.is_file():
        raise SchemaError(f"{name}: not a regular file; expected one netCDF file")
    if location.stat().st_size == 0:
        raise SchemaError(f"{name}: empty file: GridRad writes these where there was no valid data")
    with location.open("rb") as file:
        return file.read(64)


def _check_classic(path: str, name: str, head: bytes) -> None:
    """Refuse a file that is not classic netCDF, or is truncated."""
    if not head.startswith(_CLASSIC_MAGIC):
        raise SchemaError(
            f"{name}: not a netCDF file (starts with {_describe_bytes(head)}); expected HDF5, classic netCDF or GRIB2"
        )
    with open(path, "rb") as file:
        try:
            needed = _required_bytes(file)
        except (ValueError, OverflowError) as error:
            raise SchemaError(f"{name}: damaged classic netCDF file: {error}. Download it again.") from error
        size = file.seek(0, os.SEEK_END)
    if size < needed:
        raise SchemaError(f"{name}: cut off: {size} bytes of the {needed} it declares. Download it again.")


@contextmanager
def _unpack(path: str, name: str) -> Iterator[BinaryIO]:
    """Unpack the GRIB messages of a gzip file to a temporary file of bounded size."""
    with tempfile.TemporaryFile(prefix="gridrad_cube_") as out, gzip.open(path, "rb") as packed:
        try:
            head = packed.read(len(_GRIB_MAGIC))
            if head != _GRIB_MAGIC:
                raise SchemaError(f"{name}: {_describe_bytes(_GZIP_MAGIC)}")
            out.write(head)
            while block := packed.read(_BLOCK):
                if out.tell() + len(block) > _MAX_UNPACKED_BYTES:
                    raise SchemaError(
                        f"{name}: more than {_MAX_UNPACKED_BYTES / 2**30:.0f} GiB when unpacked; refused. Unpack it "
                        "first if you trust it."
                    )
                out.write(block)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SchemaError(f"{name}: damaged gzip file ({error}). Download it again.") from error
        yield out


def _describe_bytes(head: bytes) -> str:
    is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    known = (meaning for magic, meaning in _OTHER_MAGIC if head.lstrip().startswith(magic))
    kind = next(known, "text" if is_text else "")
    return f"{head[:16]!r}" + (f": {kind}" if kind else "")


@contextmanager
def _open_hdf5(path: str, name: str) -> Iterator[Any]:
    """Open with h5py; refuse a file that refers to other files, because netCDF would read them silently."""
    import h5py

    links: set[str] = set()
    soft: list[str] = []

    def check_link(name: str, link: Any) -> str | None:  # an error may not be raised here
        links.add(name)
        if len(links) > _MAX_HDF5_OBJECTS:
            return f"more than {_MAX_HDF5_OBJECTS} objects in one file"
        if isinstance(link, h5py.ExternalLink):
            return f"/{name} is a link to another file, {link.filename!r}"
        if isinstance(link, h5py.SoftLink):
            soft.append(name)
        return None

    def check_object(name: str, item: Any) -> str | None:
        if not isinstance(item, h5py.Dataset):  # netCDF follows links to groups in circles
            return f"/{name} is a group with several links" if h5py.h5o.get_info(item.id).rc > 1 else None
        if item.external:
            return f"/{name} keeps its bytes in another file, {item.external[0][0]!r}"
        if item.is_virtual:  # one of the same file may refer to itself, which crashes the library
            names = [s.file_name for s in item.virtual_sources()]
            return f"/{name} is a virtual dataset of the files {names[:3]}"
        return None

    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(path, "r"))
            problem = check_object("", file["/"])
            problem = problem or file.visititems_links(check_link) or file.visititems(check_object)
            for link in soft:
                with suppress(KeyError):  # a link to nothing is harmless
                    is_group = isinstance(file[link], h5py.Group)
                    problem = problem or (f"/{link} is a second link to a group" if is_group else None)
        except _BROKEN as error:
            raise _unreadable(path, f"{name}: damaged or cut HDF5 file", error) from error
        if problem:
            raise SchemaError(f"{name}: {problem}; refused")
        yield file


#: Bytes of one value of a classic netCDF file by the format's type number.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = 0xFFFFFFFF
_LIST_LIMIT = 100_000  # largest number of dimensions or attributes in a valid header


class _Header:
    """Cursor over the big-endian words of a header; a ValueError says how a header breaks its format."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.version = file.read(4)[3]

    def word(self, size: int = 4) -> int:
        raw = self.file.read(size)
        if len(raw) < size:
            raise ValueError("the header is cut off")
        return int.from_bytes(raw, "big")

    def count(self) -> int:
        return self.word(8 if self.version == 5 else 4)

    def skip(self, size: int) -> None:
        self.file.seek(size + -size % 4, 1)

    def length(self) -> int:
        self.word()  # the tag of the list; zero where it is empty
        count = self.count()
        if count > _LIST_LIMIT:
            raise ValueError(f"the header lists {count} entries")
        return count

    def type_bytes(self) -> int:
        kind = self.word()
        if kind not in _TYPE_BYTES:
            raise ValueError(f"the header has a value of unknown type {kind}")
        return _TYPE_BYTES[kind]

    def skip_attributes(self) -> None:
        for _ in range(self.length()):
            self.skip(self.count())
            self.skip(self.type_bytes() * self.count())


def _required_bytes(file: BinaryIO) -> int:
    """Return the position just past the last value that the header of an open classic file declares.

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
        item = header.type_bytes()
        header.count()  # the stored size, which overflows for large variables
        begin = header.word(4 if header.version == 1 else 8)
        if any(i >= len(dimensions) for i in ids):
            raise ValueError("the header names a dimension that does not exist")
        shape = [dimensions[i] for i in ids]
        if shape and shape[0] == 0:
            record_variables.append((begin, math.prod(shape[1:]) * item))
        else:
            fixed_end = max(fixed_end, begin + math.prod(shape) * item)
    if records in (0, _STREAMING) or not record_variables:
        return fixed_end
    # One record variable alone is packed tight; several are padded to four bytes each.
    sizes = [size for _, size in record_variables]
    stride = sizes[0] if len(sizes) == 1 else sum(size + -size % 4 for size in sizes)
    return max(fixed_end, *(begin + (records - 1) * stride + size for begin, size in record_variables))


#: HDF5's numbers of the filters that are understood: deflate, or shuffle and deflate.
_FILTERS = ([1], [2, 1])


def _read_chunks(
    file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], first: range
) -> npt.NDArray[Any] | None:
    """Read a part of the first dimension of a deflated HDF5 variable chunk by chunk; None where the library has to.

    Only chunked, deflated variables of a native type are read here. The library reads the others, and reports
    damaged chunks. The memory is bounded by what the checked header declares (``shape``, ``dtype``).
    """
    import deflate
    import h5py

    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.chunks is None or dataset.shape != shape:
        return None
    stored, chunk = dataset.dtype, dataset.chunks
    size = math.prod(chunk) * stored.itemsize
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if (
        filters not in _FILTERS
        or stored.kind not in "iuf"
        or stored.newbyteorder("=") != dtype.newbyteorder("=")
        # A type that h5py would convert, such as integers of 12 bits.
        or not dataset.id.get_type().equal(h5py.h5t.py_create(stored))
        or size > 2 * len(first) * math.prod(shape[1:]) * stored.itemsize
    ):
        return None
    out = np.empty((len(first), *shape[1:]), stored)
    begin = first.start - first.start % chunk[0]
    starts = [
        range(begin, first.stop, chunk[0]),
        *(range(0, n, c) for n, c in zip(shape[1:], chunk[1:], strict=True)),
    ]
    for offset in itertools.product(*starts):
        try:
            mask, packed = dataset.id.read_direct_chunk(offset)
            # The size bounds the memory, also if the bytes would inflate to more.
            data = deflate.zlib_decompress(packed, size) if mask == 0 else b""
        except (OSError, RuntimeError, ValueError, deflate.DeflateError):  # not written, or damaged
            return None
        if len(data) != size:
            return None
        values = np.frombuffer(data, np.uint8)
        values = _unshuffle(values, stored.itemsize) if dataset.shuffle else values
        values = values.view(stored).reshape(chunk)[max(first.start - offset[0], 0) :]
        place = (max(offset[0] - first.start, 0), *offset[1:])
        target = out[tuple(slice(start, start + n) for start, n in zip(place, values.shape, strict=True))]
        target[...] = values[tuple(slice(n) for n in target.shape)]
    return out


def _unshuffle(data: npt.NDArray[np.uint8], itemsize: int) -> npt.NDArray[Any]:
    """Reverse the shuffle filter, which stores all first bytes, then all second bytes, and so on."""
    planes = data.reshape(itemsize, -1)
    out = planes[-1].astype(f"<u{itemsize}")
    for plane in planes[-2::-1]:
        out <<= 8
        out |= plane
    return out
