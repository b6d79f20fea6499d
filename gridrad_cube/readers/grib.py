"""Read GRIB2 files as `files.Source` reads netCDF: variables on rows and columns, valid times and altitudes.

A file is a sequence of messages, each with one or more fields of one parameter, level and time. Fields that
differ
only in valid time become one variable on ``time``, and fields that differ in height above mean sea level
become one on
``altitude``. This module parses the sections itself to check what they declare before ecCodes allocates
memory;
ecCodes reads the keys and decodes the values. No index file is written.

The layout of sections is that of the WMO Manual on Codes, WMO-No. 306, Volume I.2, FM 92 GRIB edition 2.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = b"GRIB"
_END = b"7777"
#: Bytes between messages, such as headings of telecommunication bulletins, that are skipped.
_LONGEST_GAP = 2**16
#: Largest number of fields in a file, and largest section of a header, in bytes; gridded products have less.
_MAX_FIELDS = 100_000
_MAX_HEADER_BYTES = 2**20
#: Sections 1 and 4 of a message that describes only its grid: WMO tables, 1 January 2000, and template 0.
_ORIGIN = bytes((0, 0, 0, 21, 1, 0, 7, 0, 0, 2, 0, 1, 0x07, 0xD0, 1, 1, 0, 0, 0, 0, 0))
_PRODUCT = bytes((0, 0, 0, 34, 4)) + bytes(29)
#: Number for missing values in the output of ecCodes; no packing can produce it.
_MISSING = -1e300

#: Grids of rows and columns that ecCodes gives positions of: by two axes, and by every pixel.
_AXES = ("regular_ll", "regular_gg")
_PIXELS = (
    "rotated_ll", "mercator", "lambert", "polar_stereographic", "lambert_azimuthal_equal_area", "albers",
)  # fmt: skip

_Parameter = tuple[int, int, int]  # discipline, category, number
_DBZ = {"standard_name": "equivalent_reflectivity_factor"}
_COLUMN_MAXIMUM = {**_DBZ, "cell_methods": "altitude: maximum"}
_RATE = {"standard_name": "precipitation_flux"}
#: Parameters whose units or names ecCodes does not give as channels need them. Numbers from 192 are NCEP's.
_KNOWN: dict[_Parameter, dict[str, str]] = {
    (0, 1, 7): _RATE,
    (0, 1, 52): _RATE,
    (0, 15, 1): {**_DBZ, "units": "dBZ"},
    (0, 16, 4): {**_DBZ, "units": "dBZ"},
    (0, 16, 5): {**_COLUMN_MAXIMUM, "units": "dBZ", "name": "composite_reflectivity"},
    (0, 16, 195): {**_DBZ, "units": "dBZ"},
    (0, 16, 196): {**_COLUMN_MAXIMUM, "units": "dBZ"},
    (3, 192, 2): {"standard_name": "toa_brightness_temperature"},  # 10.7 um, the window; others are not
}
_NCEP = 7
_LOCAL = 192
_MRMS = 209
#: MRMS products by category and number, as https://www.nssl.noaa.gov/projects/mrms/operational/tables.php lists
#: them: the name that files have, units, further attributes. dBZ is -99 where nothing is detected and -999 where
#: there is no coverage; other products have -1 and -3.
_MRMS_PRODUCTS: dict[tuple[int, int], tuple[str, str, dict[str, str]]] = {
    (3, 28): ("MESH", "mm", {}),
    (3, 41): ("VIL", "kg m-2", {}),
    (3, 42): ("VIL_Density", "g m-3", {}),
    (3, 44): ("EchoTop_18", "km", {}),
    (3, 45): ("EchoTop_30", "km", {}),
    (3, 46): ("EchoTop_50", "km", {}),
    (3, 47): ("EchoTop_60", "km", {}),
    (3, 52): ("Reflectivity_0C", "dBZ", {}),
    (3, 53): ("Reflectivity_-5C", "dBZ", {}),
    (3, 54): ("Reflectivity_-10C", "dBZ", {}),
    (3, 55): ("Reflectivity_-15C", "dBZ", {}),
    (3, 56): ("Reflectivity_-20C", "dBZ", {}),
    (3, 57): ("ReflectivityAtLowestAltitude", "dBZ", _DBZ),
    (3, 58): ("MergedReflectivityAtLowestAltitude", "dBZ", _DBZ),
    (6, 0): ("PrecipFlag", "1", {}),
    (6, 1): ("PrecipRate", "mm h-1", {"standard_name": "lwe_precipitation_rate"}),
    (6, 2): ("RadarOnly_QPE_01H", "mm", {}),
    (8, 0): ("RadarQualityIndex", "1", {}),
    (8, 8): ("SeamlessHSR", "dBZ", _DBZ),
    (9, 0): ("MergedReflectivityQC", "dBZ", _DBZ),
    (9, 1): ("CONUSPlusMergedReflectivityQC", "dBZ", _DBZ),
    (10, 0): ("MergedReflectivityQCComposite", "dBZ", _COLUMN_MAXIMUM),
    (10, 1): ("HeightCompositeReflectivity", "m", {}),
    (10, 2): ("LowLevelCompositeReflectivity", "dBZ", {}),
    (10, 4): ("LayerCompositeReflectivity_Low", "dBZ", {}),
    (10, 5): ("LayerCompositeReflectivity_High", "dBZ", {}),
    (10, 6): ("LayerCompositeReflectivity_Super", "dBZ", {}),
    (11, 0): ("MergedBaseReflectivityQC", "dBZ", _DBZ),
    (11, 1): ("MergedReflectivityComposite", "dBZ", _COLUMN_MAXIMUM),
    (11, 2): ("MergedReflectivityQComposite", "dBZ", _COLUMN_MAXIMUM),
    (11, 3): ("MergedBaseReflectivity", "dBZ", _DBZ),
}


class GribFile:
    """An open GRIB2 file with the interface that `files.Source` needs of an open netCDF file.

    Parameters
    ----------
    file
        Open for reading, as long as this is used.

    Raises
    ------
    ValueError
        If ecCodes is not installed, or the file is truncated, of another edition, or declares more than it
        can hold.
    """

    groups: Mapping[str, Any] = {}

    def __init__(self, file: BinaryIO) -> None:
        _load_eccodes()
        self._file = file
        self._unused: list[str] = []  # grids without rows and columns here
        self._fields = [self._describe(message) for message in _scan(file)]
        #: Fields, and the positions, times and altitudes that they lie on, by name.
        self.variables = self._variables()
        if self._unused and not any(isinstance(v, _Positions) for v in self.variables.values()):
            raise ValueError(
                f"GRIB grids {self._unused}; expected one of {[*_AXES, *_PIXELS]}, row by row. Interpolate the file, "
                "for example with cdo remapbil or wgrib2 -new_grid."
            )

    def ncattrs(self) -> list[str]:
        """Return the names of the global attributes."""
        return ["title"]

    def getncattr(self, name: str) -> str:
        """Return a global attribute."""
        is_mrms = all(found.parameter[0] == _MRMS for found in self._fields)
        return {"title": "MRMS" if is_mrms else "GRIB2"}[name]

    def _variables(self) -> dict[str, Any]:
        times = sorted({found.time for found in self._fields})
        out = self._times(times)
        grids: dict[bytes, tuple[tuple[str, ...], tuple[int, ...]]] = {}
        altitudes: dict[tuple[float, ...], str] = {}
        for (grid, name), fields in self._named().items():
            if grid not in grids:
                grids[grid] = self._add_grid(out, fields[0].message, len(grids))
            dims, shape = grids[grid]
            levels = sorted({found.level for found in fields})
            if len(levels) > 1:
                upright = altitudes.setdefault(tuple(levels), f"altitude{len(altitudes) or ''}")
                about = {"units": "m", "standard_name": "altitude", "positive": "up"}
                out[upright] = _Array((upright,), np.array(levels), about)
                dims, shape = (upright, *dims), (len(levels), *shape)
            if len(times) > 1:
                dims, shape = ("time", *dims), (len(times), *shape)
            index: dict[tuple[int, ...], _Field] = {}
            for found in fields:
                at_time = (times.index(found.time),) if len(times) > 1 else ()
                at_level = (levels.index(found.level),) if len(levels) > 1 else ()
                index[at_time + at_level] = found
            out[name] = _Stack(dims, shape, fields[0].attributes, index, self._read)
        return out

    def _times(self, times: Sequence[int]) -> dict[str, Any]:
        """Return the valid times, and the reference times of forecasts."""
        dims = ("time",) if len(times) > 1 else ()
        about = {"units": "seconds since 1970-01-01 00:00:00", "calendar": "proleptic_gregorian"}
        shape = (len(times),) if dims else ()
        values = np.array(times, np.int64).reshape(shape)
        out: dict[str, Any] = {"time": _Array(dims, values, {**about, "standard_name": "time"})}
        references: dict[int, set[int]] = {}
        for found in self._fields:
            references.setdefault(found.time, set()).add(found.reference)
        is_forecast = any(found.time != found.reference for found in self._fields)
        if is_forecast and all(len(known) == 1 for known in references.values()):
            start = np.array([next(iter(references[time])) for time in times], np.int64).reshape(shape)
            of = {**about, "standard_name": "forecast_reference_time"}
            out["forecast_reference_time"] = _Array(dims, start, of)
        return out

    def _add_grid(
        self, out: dict[str, Any], message: _Message, number: int
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Add the positions of a grid; return the dimensions and shape of fields on it."""
        end = str(number or "")
        with _handle(message.headers()) as get:
            kind, rows, columns = get("gridType", str), get("Ny", int), get("Nx", int)
            order = [get(name, int) for name in ("jPointsAreConsecutive", "alternativeRowScanning")]
        if kind not in (*_AXES, *_PIXELS) or any(order) or not rows or not columns:
            self._unused.append(f"{kind}{', points in another order than row by row' if any(order) else ''}")
            return (f"values{end}",), (message.points,)  # a field without rows and columns in this module
        if rows * columns != message.points:
            raise ValueError(
                f"a grid of {rows} x {columns} declares {message.points} points; the file is damaged. "
                "Download it again."
            )
        names = (f"latitude{end}", f"longitude{end}")
        dims = names if kind in _AXES else (f"y{end}", f"x{end}")
        for axis, name in enumerate(names):
            on = dims if kind in _PIXELS else (dims[axis],)
            shape = (rows, columns) if kind in _PIXELS else ((rows, columns)[axis],)
            units = ("degrees_north", "degrees_east")[axis]
            about = {"units": units, "standard_name": name.removesuffix(end)}
            out[name] = _Positions(on, shape, about, message, kind)
        return dims, (rows, columns)

    def _named(self) -> dict[tuple[bytes, str], list[_Field]]:
        """Return the fields by grid and name. If fields of a parameter differ in a property, it becomes part
        of the name.
        """
        parameters: dict[tuple[bytes, str], list[_Field]] = {}
        for found in self._fields:
            parameters.setdefault((found.message.grid, found.name), []).append(found)
        out: dict[tuple[bytes, str], list[_Field]] = {}
        taken = {"time", "forecast_reference_time"}
        for (grid, base), fields in parameters.items():
            on_altitudes = all(found.kind[0] == "heightAboveSea" for found in fields)
            kinds = [found.kind[2:] if on_altitudes else found.kind for found in fields]
            varies = [len(set(part)) > 1 for part in zip(*kinds, strict=True)]
            seen: dict[tuple[Any, ...], int] = {}
            for found, kind in zip(fields, kinds, strict=True):
                parts = [part for part, is_told in zip(kind, varies, strict=True) if is_told and part != ""]
                # Other differences, such as members of an ensemble.
                place = (*kind, found.time, found.level)
                seen[place] = seen.get(place, 0) + 1
                parts += [str(seen[place])] if seen[place] > 1 else []
                name = re.sub(r"[^A-Za-z0-9_]", "_", "_".join(str(part) for part in (base, *parts)))
                while name in taken or ((grid, name) not in out and any(name == other for _, other in out)):
                    name += "_"  # of another grid
                out.setdefault((grid, name), []).append(found)
        return out

    def _describe(self, message: _Message) -> _Field:
        with _handle(message.headers()) as get:
            parameter = (message.discipline, get("parameterCategory", int), get("parameterNumber", int))
            name, attributes = _parameter(parameter, get)
            words = (get(key, int) for key in ("year", "month", "day", "hour", "minute", "second"))
            try:
                reference = int(datetime(*words, tzinfo=UTC).timestamp())  # type: ignore[misc]
            except ValueError as error:
                raise ValueError(f"a message with a reference time that is not valid ({error})") from error
            step = _seconds(get("endStep", str))
            length = step - _seconds(get("startStep", str))
            level_type, level = get("typeOfLevel", str), get("level", float)
            member = get("number", int) if get("number", str) else ""
            statistic = (get("stepType", str), f"{length}s") if length else (get("stepType", str), "")
        kind = (level_type, f"{level:g}", *statistic, member)
        return _Field(message, parameter, name, attributes, reference, reference + step, level, kind)

    def _read(self, found: _Field) -> npt.NDArray[np.float32]:
        """Return the values of one field; NaN where its bitmap or packing has none."""
        import eccodes

        message = found.message
        bitmap, data = (_read_at(self._file, *place) for place in (message.bitmap, message.data))
        _check_packing(message, data)
        handle = eccodes.codes_new_from_message(message.whole(bitmap, data))
        try:
            eccodes.codes_set(handle, "missingValue", _MISSING)
            values = eccodes.codes_get_values(handle)
        except eccodes.CodesInternalError as error:
            raise ValueError(str(error)) from error
        finally:
            eccodes.codes_release(handle)
        if values.size != message.points:
            raise ValueError(f"{values.size} values for {message.points} points")
        values[values == _MISSING] = np.nan
        return values.astype(np.float32)


def _load_eccodes() -> None:
    """Import ecCodes, after pyproj: see `load_pyproj`."""
    load_pyproj()
    try:
        import eccodes  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the package, or its library
        raise ValueError(
            f"a GRIB file; reading it needs ecCodes, which is not installed ({error}). Install it: "
            "pip install 'gridrad-cube[grib]'"
        ) from error


def load_pyproj() -> ModuleType:
    """Import pyproj, also where ecCodes was imported before.

    The wheels of both contain a PROJ library. ecCodes makes the symbols of its copy visible to all libraries.
    If pyproj is imported second, it calls into the wrong copy and crashes. So pyproj is imported first here.
    If the program of the user has imported ecCodes or cfgrib already, pyproj is loaded with a preference for
    its own library (glibc).
    """
    is_second = "gribapi" in sys.modules and "pyproj" not in sys.modules
    flags = sys.getdlopenflags() if is_second and hasattr(os, "RTLD_DEEPBIND") else None
    if flags is None:
        return importlib.import_module("pyproj")
    sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        return importlib.import_module("pyproj")
    finally:
        sys.setdlopenflags(flags)


# --- the bytes of a file


class _Message(NamedTuple):
    """One field: sections 0 to 5, and where 6 and 7 lie in the file (position, length)."""

    discipline: int
    sections: tuple[bytes, ...]
    bitmap: tuple[int, int]
    data: tuple[int, int]

    @property
    def grid(self) -> bytes:
        """The section that defines the grid."""
        return next(section for section in self.sections if section[4] == 3)

    @property
    def points(self) -> int:
        """Points that the grid declares."""
        return _word(self.grid, 6)

    @property
    def packing(self) -> bytes:
        """The section that says how values are packed."""
        return self.sections[-1]

    def headers(self) -> bytes:
        """Return a message on the same grid, with the same keys and a constant field."""
        constant = bytes((0, 0, 0, 21, 5)) + self.points.to_bytes(4, "big") + bytes(12)
        return self._join(*self.sections[:-1], constant, bytes((0, 0, 0, 6, 6, 255)), bytes((0, 0, 0, 5, 7)))

    def whole(self, bitmap: bytes, data: bytes) -> bytes:
        """Return a message of this field alone."""
        return self._join(*self.sections, bitmap, data)

    def _join(self, *sections: bytes) -> bytes:
        body = b"".join((*sections, _END))
        return b"".join(
            (MAGIC, b"\0\0", bytes((self.discipline, 2)), (16 + len(body)).to_bytes(8, "big"), body)
        )


def _word(section: bytes, start: int, size: int = 4) -> int:
    """Return an unsigned number; ``start`` counts octets from 0."""
    return int.from_bytes(section[start : start + size], "big")


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _scan(file: BinaryIO) -> list[_Message]:
    """Return the fields of a file after checking that every message is complete. Only headers are read."""
    size, position = file.seek(0, 2), 0
    out: list[_Message] = []
    while position < size:
        gap = _read_at(file, position, _LONGEST_GAP)
        found = gap.find(MAGIC)
        if found < 0:
            if len(gap) == _LONGEST_GAP or not out:
                raise ValueError(
                    f"no GRIB message at byte {position}; the file is damaged. Download it again."
                )
            break
        start = position + found
        head = _read_at(file, start, 16)
        if len(head) < 16 or head[7] != 2:
            raise ValueError(
                f"GRIB edition {head[7] if len(head) > 7 else 'unknown'}; expected edition 2. "
                "Convert it: grib_set -s edition=2 IN OUT (ecCodes)."
            )
        stop = start + _word(head, 8, 8)
        if stop > size or stop < start + 20:
            raise ValueError(
                f"cut off: a message at byte {start} declares {stop - start} bytes of {size - start} that are "
                "there. Download it again."
            )
        out += _split(file, head[6], start + 16, stop)
        if len(out) > _MAX_FIELDS:
            raise ValueError(f"more than {_MAX_FIELDS} fields in one file; refused. Split it.")
        position = stop
    return out


def _split(file: BinaryIO, discipline: int, position: int, stop: int) -> Iterator[_Message]:
    """Yield the fields of a message. Sections 2 to 7 may repeat; a section that is not repeated stays valid."""
    sections: dict[int, bytes] = {}
    bitmap = (0, 0)
    while position < stop - 4:
        head = _read_at(file, position, 6)
        length, number = _word(head, 0), head[4]
        is_header = number in (1, 2, 3, 4, 5)
        fits = 5 <= length <= stop - 4 - position and not (is_header and length > _MAX_HEADER_BYTES)
        if not fits or not 1 <= number <= 7:
            raise ValueError(
                f"section {number} of {length} bytes at byte {position} is not one of a GRIB2 message of that "
                "size; the file is damaged. Download it again."
            )
        if is_header:
            sections[number] = _read_at(file, position, length)
        elif number == 6 and head[5] != 254:  # 254: the previous bitmap
            bitmap = (position, length)
        elif number == 7:
            missing = [n for n in (1, 3, 4, 5) if n not in sections] or ([] if bitmap[1] else [6])
            short = [n for n, least in ((3, 14), (4, 11), (5, 12)) if len(sections.get(n, b"")) < least]
            if missing or short:
                raise ValueError(f"a GRIB2 message without complete sections {missing or short}; damaged.")
            own = tuple(sections[n] for n in sorted(sections))
            yield _Message(discipline, own, bitmap, (position, length))
        position += length
    if position != stop - 4 or _read_at(file, position, 4) != _END:
        raise ValueError("a GRIB2 message that does not end in 7777; damaged. Download it again.")


def _check_packing(message: _Message, data: bytes) -> None:
    """Refuse a message that declares more values than its bytes can hold, before a decoder allocates memory
    for them.
    """
    about, count = message.packing, _word(message.packing, 5)
    template, problem = _word(about, 9, 2), ""
    if template != 4 and len(about) < 20:
        problem = f"{len(about)} bytes that describe packing template {template}"
    elif count > message.points:
        problem = f"{count} values for {message.points} points"
    elif template == 0:
        problem = _lacking(count * about[19], data)
    elif template == 4:
        problem = _lacking(count * {1: 32, 2: 64, 3: 128}.get(about[11], 0), data)
    elif template in (2, 3):  # groups: reference, width and length of each
        groups = _word(about, 31) if len(about) >= 47 else count + 1
        problem = f"{groups} groups of {count} values" if groups > max(count, 1) else ""
    elif template in (40, 40000):
        problem = _image_problem(data, b"\xff\x4f\xff\x51", 8, count)  # SOC, SIZ: Xsiz and Ysiz
    elif template in (41, 40010):
        problem = _image_problem(data, b"\x89PNG\r\n\x1a\n", 16, count)  # IHDR: width and height
    elif template not in (42,):
        problem = f"packing template {template}, which is not supported"
    if problem:
        raise ValueError(problem)


def _lacking(bits: int, data: bytes) -> str:
    has = len(data) - 5
    return f"{math.ceil(bits / 8)} bytes of values declared, {has} there" if bits > 8 * has else ""


def _image_problem(data: bytes, magic: bytes, start: int, count: int) -> str:
    """Return what is wrong with the size that an image declares (``start`` octets after its first one)."""
    image = data[5 : 5 + start + 8]
    if len(data) == 5:  # a constant field
        return ""
    if not image.startswith(magic):
        return f"an image that starts with {image[:8]!r}"
    width, height = _word(image, start), _word(image, start + 4)
    return f"an image of {width} x {height} for {count} values" if width * height != count else ""


# --- the keys of a field


@contextmanager
def _handle(message: bytes) -> Iterator[Callable[[str, type], Any]]:
    """Yield a function that returns keys of a message, or the empty value of the type if a key is missing."""
    import eccodes

    handle = eccodes.codes_new_from_message(message)

    def get(key: str, kind: type) -> Any:
        try:
            return eccodes.codes_get(handle, key, kind)
        except eccodes.CodesInternalError:
            return kind()

    try:
        eccodes.codes_set(handle, "stepUnits", "s")
        yield get
    finally:
        eccodes.codes_release(handle)


@dataclass(frozen=True)
class _Field:
    """One field of the file; times in seconds since 1970. ``kind`` holds properties that its name may need."""

    message: _Message
    parameter: _Parameter
    name: str
    attributes: Mapping[str, Any]
    reference: int
    time: int
    level: float
    kind: tuple[Any, ...]


def _seconds(step: str) -> int:
    """Return a step that ecCodes gives in seconds, such as ``3600s``, ``0`` or ``9.4608e+09``."""
    return round(float(step.removesuffix("s") or 0))


def _parameter(parameter: _Parameter, get: Callable[[str, type], Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and CF attributes of a parameter."""
    attributes: dict[str, Any] = {"grib_parameter": "{} {} {}".format(*parameter)}
    discipline, *rest = parameter
    if discipline == _MRMS:
        name, units, further = _MRMS_PRODUCTS.get((rest[0], rest[1]), (f"MRMS_{rest[0]}_{rest[1]}", "", {}))
        return name, attributes | {"units": units, "long_name": name, **further, **_mrms_states(units)}
    names = [word for key in ("cfVarName", "shortName") if (word := get(key, str)) not in ("", "unknown")]
    attributes |= {
        attribute: word
        for attribute, key in (("long_name", "name"), ("units", "units"), ("standard_name", "cfName"))
        if (word := get(key, str)) not in ("", "unknown", "~")
    }
    is_local = max(rest) >= _LOCAL and get("centre", int) != _NCEP
    known = {} if is_local else dict(_KNOWN.get(parameter, {}))
    name = known.pop("name", "") or (names[0] if names else "parameter_{}_{}_{}".format(*parameter))
    return name if name[0].isalpha() else f"_{name}", attributes | known


def _mrms_states(units: str) -> dict[str, float]:
    """Return the attributes that declare values of MRMS without a measurement; empty for an unknown product."""
    if not units:
        return {}
    if units == "dBZ":
        return {"_FillValue": -999.0, "_Undetect": -99.0}
    if units == "km":
        return {"_FillValue": -3.0, "_Undetect": -1.0}
    return {"_FillValue": -3.0, "missing_value": -1.0}


# --- variables, as netCDF4 has them


@dataclass
class _Named:
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    dtype: np.dtype[Any] = field(default=np.dtype(np.float64), init=False)

    def ncattrs(self) -> list[str]:
        return list(self.attributes)

    def getncattr(self, name: str) -> Any:
        return self.attributes[name]


class _Array(_Named):
    """A coordinate that is in memory."""

    def __init__(
        self, dims: tuple[str, ...], values: npt.NDArray[Any], attributes: Mapping[str, Any]
    ) -> None:
        super().__init__(dims, values.shape, attributes)
        self.dtype, self._values = values.dtype, values

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        return np.asarray(self._values[key])


class _Positions(_Named):
    """Latitudes or longitudes, computed from the header of a message when they are read."""

    def __init__(
        self,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        attributes: Mapping[str, Any],
        message: _Message,
        kind: str,
    ) -> None:
        super().__init__(dims, shape, attributes)
        self._message, self._kind = message, kind

    def __getitem__(self, key: Any) -> npt.NDArray[np.float64]:
        axis = str(self.attributes["standard_name"])
        if self._kind == "regular_ll":
            return self._even(axis)[key]
        values = _positions(
            self._message.grid, f"distinct{axis.title()}s" if self._kind in _AXES else f"{axis}s"
        )
        if values.size != math.prod(self.shape):
            raise ValueError(f"{values.size} {axis}s; expected {math.prod(self.shape)}")
        return values.reshape(self.shape)[key]

    def _even(self, axis: str) -> npt.NDArray[np.float64]:
        """Return an axis from its ends, because ecCodes would read every point of the grid."""
        with _handle(self._message.headers()) as get:
            first, last = (get(f"{axis}Of{end}GridPointInDegrees", float) for end in ("First", "Last"))
            westward = get("iScansNegatively", int)
        if axis == "longitude" and not westward and last < first:
            first -= 360.0
        if axis == "longitude" and westward and first < last:
            last -= 360.0
        return np.linspace(first, last, self.shape[0])


@functools.lru_cache(maxsize=2)  # latitude and longitude: the scenes of an archive share their grid
def _positions(grid: bytes, key: str) -> npt.NDArray[np.float64]:
    """Return the positions of the points of a grid, by the section that defines it; read-only."""
    import eccodes

    handle = eccodes.codes_new_from_message(
        _Message(0, (_ORIGIN, grid, _PRODUCT, b""), (0, 0), (0, 0)).headers()
    )
    try:
        values = np.asarray(eccodes.codes_get_array(handle, key), np.float64)
    except eccodes.CodesInternalError as error:
        raise ValueError(str(error)) from error
    finally:
        eccodes.codes_release(handle)
    values.flags.writeable = False
    return values


class _Stack(_Named):
    """Fields of one variable, decoded when they are read; NaN where the file has none."""

    def __init__(
        self,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        attributes: Mapping[str, Any],
        index: Mapping[tuple[int, ...], _Field],
        read: Callable[[_Field], npt.NDArray[np.float32]],
    ) -> None:
        super().__init__(dims, shape, attributes)
        self.dtype = np.dtype(np.float32)
        self._index, self._read = index, read
        self._stacked = len(next(iter(index)))

    def __getitem__(self, key: Any) -> npt.NDArray[np.float32]:
        stacked, plane = self.shape[: self._stacked], self.shape[self._stacked :]
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            rest = len(self.shape) - len(keys) + 1
            keys = (*keys[:at], *[slice(None)] * rest, *keys[at + 1 :])
        leading, inner = keys[: self._stacked], keys[self._stacked :]
        picked = [np.arange(size)[pick] for size, pick in zip(stacked, leading, strict=False)]
        shape = tuple(size for axis in picked for size in axis.shape)
        out = np.full((*shape, *plane), np.nan, np.float32)
        flat = out.reshape(-1, *plane)
        for number, place in enumerate(itertools.product(*(np.atleast_1d(axis).tolist() for axis in picked))):
            if place in self._index:
                flat[number] = self._read(self._index[place]).reshape(plane)
        return out[(*[slice(None)] * len(shape), *inner)]
