"""Times of files: from variables, attributes and file names, to the second, UTC."""

from __future__ import annotations

import datetime
import re
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.files import Source, Variable, number, text
from gridrad_cube.schema import SchemaError

Seconds: TypeAlias = "np.datetime64"

_UNIT_SECONDS = {
    **dict.fromkeys(("day", "days", "d"), 86400.0),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), 3600.0),
    **dict.fromkeys(("minute", "minutes", "min", "mins"), 60.0),
    **dict.fromkeys(("second", "seconds", "sec", "secs", "s"), 1.0),
    **dict.fromkeys(("millisecond", "milliseconds", "msec", "ms"), 1e-3),
}
_CALENDARS = ("", "standard", "gregorian", "proleptic_gregorian")
_SINCE = re.compile(r"\s*(\w+)\s+since\s+(.+)", re.IGNORECASE)
_ISO = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ]+(\d{1,2}):(\d{1,2})(?::(\d{1,2})(\.\d+)?)?)?"
    r"\s*(Z|UTC|GMT|[+-]\d{1,2}:?\d{2})?\s*$",
    re.IGNORECASE,
)
_STAMP = re.compile(r"(?<!\d)(\d{8})[T_.\-]?(\d{4})(\d{2})?Z?(?!\d)")
#: Latest year that is a time and not a misread number.
_LAST_YEAR = 2200


def parse_time(words: str) -> Seconds | None:
    """A date and time in ISO 8601 or in C's ``ctime`` form, UTC where no offset is given; None for anything else."""
    match = _ISO.match(words.strip())
    if match is None:
        try:
            return np.datetime64(datetime.datetime.strptime(words.strip(), "%a %b %d %H:%M:%S %Y"), "s")
        except ValueError:
            return None
    *parts, fraction, zone = match.groups()
    try:
        moment = datetime.datetime(*(int(p or 0) for p in parts))  # type: ignore[arg-type]
    except ValueError:
        return None
    shift = 0
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "").zfill(4)
        shift = (int(digits[:2]) * 60 + int(digits[2:])) * (-60 if zone[0] == "+" else 60)
    return np.datetime64(moment, "s") + np.timedelta64(round(float(fraction or 0)) + shift, "s")


def parse_stamp(name: str) -> Seconds | None:
    """The last date and time in a file name, as in ``20210705_1750`` or ``20110427T220000Z``; None if none."""
    for date, clock, second in reversed(_STAMP.findall(name)):
        try:
            moment = datetime.datetime.strptime(date + clock + (second or "00"), "%Y%m%d%H%M%S")
        except ValueError:
            continue
        if 1950 <= moment.year <= _LAST_YEAR:
            return np.datetime64(moment, "s")
    return None


def decode_times(source: Source, name: str, *, missing: bool = False) -> npt.NDArray[np.datetime64]:
    """Values of a time variable, rounded to the second.

    Parameters
    ----------
    missing
        Whether values may be missing; they become NaT. Otherwise they are refused.

    Raises
    ------
    SchemaError
        If units or calendar are not understood, or a value is no time.
    """
    variable = source.variables[name]
    where = f"{source.path}: time variable {name!r}"
    units = text(variable.attributes, "units")
    calendar = text(variable.attributes, "calendar").lower()
    match = _SINCE.match(units)
    reference = parse_time(match[2]) if match else None
    if match is None or reference is None or match[1].lower() not in _UNIT_SECONDS:
        raise SchemaError(f"{where}: units {units!r}; expected such as 'seconds since 1970-01-01 00:00:00'")
    if calendar not in _CALENDARS:
        raise SchemaError(f"{where}: calendar {calendar!r}; expected some of {list(_CALENDARS[1:])}")
    values = _floats(source, variable)
    # Whole seconds: MJD as float64 is good to a microsecond and decodes a little off the second.
    seconds = np.rint(values * _UNIT_SECONDS[match[1].lower()])
    last = (np.datetime64(f"{_LAST_YEAR}-01-01", "s") - reference).astype(np.int64)
    good = np.isfinite(seconds) & (np.abs(seconds) <= abs(last))
    if not good.all() and not missing:
        raise SchemaError(f"{where}: {float(values[~good][0])} {units}; expected a time before {_LAST_YEAR}")
    offsets = np.where(good, seconds, 0.0).astype(np.int64).astype("timedelta64[s]")
    return np.where(good, reference + offsets, np.datetime64("NaT", "s"))


def _floats(source: Source, variable: Variable) -> npt.NDArray[np.float64]:
    raw = source.read(variable.name).ravel()
    values = raw.astype(np.float64)
    where = f"{source.path}: {variable.name}"
    for name in ("_FillValue", "missing_value"):
        fill = number(variable.attributes, name, where)
        if fill is not None:
            values[raw == raw.dtype.type(fill)] = np.nan
    scale = number(variable.attributes, "scale_factor", where)
    offset = number(variable.attributes, "add_offset", where)
    return values * (1.0 if scale is None else scale) + (0.0 if offset is None else offset)


def only_time(source: Source, name: str) -> Seconds:
    """The one time of a time variable.

    Raises
    ------
    SchemaError
        If it holds several times or none.
    """
    times = decode_times(source, name)
    if times.size != 1:
        raise SchemaError(
            f"{source.path}: {times.size} times in {name!r}; expected one (one file, one scene). "
            f"Split the file: ds.isel({name}=[i]).to_netcdf(...) for each."
        )
    return np.datetime64(times[0], "s")


def agreed_time(source: Source, candidates: list[tuple[str, Seconds | None, int]]) -> Seconds:
    """The first known time of a file, checked against the others.

    Parameters
    ----------
    candidates
        ``(what it is, time or None, seconds by which it may differ from the first known one)``, the most
        trusted first.

    Raises
    ------
    SchemaError
        If none is known, or two disagree.
    """
    known = [candidate for candidate in candidates if candidate[1] is not None]
    if not known:
        raise SchemaError(
            f"{source.path}: no time; expected one of {[what for what, _, _ in candidates]}. "
            "Rename the file so that it holds YYYYMMDD_HHMM, or add a time variable."
        )
    first, time, _ = known[0]
    assert time is not None
    for what, other, tolerance in known[1:]:
        assert other is not None
        if abs((other - time).astype(np.int64)) > tolerance:
            raise SchemaError(
                f"{source.path}: {first} says {time}, {what} says {other}; expected them within {tolerance} s. "
                "Correct whichever is wrong: a renamed file, or a damaged header."
            )
    return time
