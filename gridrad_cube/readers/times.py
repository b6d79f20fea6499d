"""Find the times of a file: by the meaning of its variables, decoded by units and calendar, or from its name.

CF attributes come first (``standard_name="time"``), then names, then global attributes, then the file name.
If
candidates of one kind disagree, the file is refused, because it does not identify the time of its fields.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import timedelta

import cftime
import numpy as np
import numpy.typing as npt
import pandas as pd

from gridrad_cube.readers.fields import read_numbers
from gridrad_cube.readers.files import Source, Variable
from gridrad_cube.schema import SchemaError

#: First and last year of a valid time; nanoseconds since 1970 begin in 1677.
_FIRST_YEAR, _LAST_YEAR = 1678, 2199
#: Calendars whose dates are days of the real world.
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "julian")
#: Names of valid times that lack a standard name; the last is that of WRF.
_NAMES = ("time", "valid_time", "xtime")
_INITIAL, _LEAD = "forecast_reference_time", "forecast_period"
#: Largest number of times in one file.
_MAX_TIMES = 1_000_000
#: Rounding to the second can differ between two variables of one time.
_SAME_S = 1

#: Seconds of each unit, as files spell them.
_UNITS: dict[str, float] = {}
for _seconds, _spellings in (
    (604800.0, "weeks week"),
    (86400.0, "days day d"),
    (3600.0, "hours hour hrs hr h"),
    (60.0, "minutes minute mins min"),
    (1.0, "seconds second secs sec s"),
    (1e-3, "milliseconds millisecond millisecs millisec msecs msec ms"),
    (1e-6, "microseconds microsecond microsecs microsec us"),
    (1e-9, "nanoseconds nanosecond nanosecs nanosec nsecs nsec ns"),
):
    _UNITS |= dict.fromkeys(_spellings.split(), _seconds)

_SINCE = re.compile(r"(\w+)\s+(?:since|after|from|ref|@)\s+(.+)", re.IGNORECASE)
#: Reference date as UDUNITS reads it: ``1-1-1``, ``19700101``, ``2009-8-31 7``, ``1970-01-01 00:00:00.0 0:00`` (of
#: every file of wgrib2).
_REFERENCE = re.compile(
    r"(\d{1,4}(?=-)|\d{4})-?((?<=-)\d{1,2}|\d{2})-?((?<=-)\d{1,2}|\d{2})"
    r"(?:[ T_]\s*(\d{1,2})(?::(\d{1,2})(?::(\d{1,2})(?:\.\d*)?)?)?)?"
    r"\s*(?:Z|UTC|GMT|([+-]?)(\d{1,2}):?(\d{2})?)?",
    re.IGNORECASE,
)
#: Date and clock in a file name, ``20210705_1750``, ``2020262195020`` (day of the year) or
#: ``20191225-S000000``, perhaps after a letter for start, end or creation, as in the names of GOES files.
_STAMP = re.compile(
    r"(?:(?<![A-Za-z])([SECsec]))?(?<!\d)(?:(\d{7,8})(?:[T_.\-]|[_\-][A-Za-z])(\d{4,7})|(\d{11,14}))Z?(?!\d)"
)


@dataclass(frozen=True)
class Times:
    """Times of the scenes of a file, UTC to the second, and their dimension.

    ``values`` is empty if no variable is a time. ``dim`` is None if the file has at most one time.
    """

    values: npt.NDArray[np.datetime64]
    dim: str | None = None


def find_times(source: Source, name: str | None = None) -> Times:
    """Return the times at which the fields of a file are valid, by its variables, or by the variable with the
    given name.

    Raises
    ------
    SchemaError
        If variables that may be this time disagree, if only an initial time exists, or if a time occurs
        twice.
    """
    numeric = [v for v in source.variables.values() if v.is_numeric]
    meaning = {v.name: v.text("standard_name").lower() for v in numeric}
    named = {v.name for v in numeric if v.name.lower() in _NAMES or v.text("axis") == "T"}
    timely = [v for v in numeric if meaning[v.name] in ("time", _INITIAL, _LEAD) or v.name in named]
    timely = [v for v in timely if _is_of_scenes(source, v)]
    found = [v for v in timely if meaning[v.name] == "time"]
    found = found or [v for v in timely if meaning[v.name] not in (_INITIAL, _LEAD)]
    initial = [v for v in timely if meaning[v.name] == _INITIAL]
    if name is not None:
        found = [v for v in numeric if v.name == name and _is_of_scenes(source, v)]
        if not found:
            raise SchemaError(
                f"{source.path}: variables: no {name!r} with a time for each field; {source.listing()}"
            )
    if found:
        times = [_times_of(source, v) for v in found]
    elif initial:
        times = [_after(source, initial[0], [v for v in timely if meaning[v.name] == _LEAD])]
    else:
        return Times(np.zeros(0, "datetime64[s]"))
    first = times[0]
    for other in times[1:]:
        if first.dim != other.dim or (np.abs((first.values - other.values).astype(np.int64)) > _SAME_S).any():
            said = ", ".join(f"{v.name} {_span(t.values)}" for v, t in zip(found, times, strict=True))
            raise SchemaError(
                f"{source.path}: several variables may be the time, and they disagree: {said}; expected one. Say "
                f"which: `variables=(('time', '{found[0].name}', None),)`."
            )
    values, counts = np.unique(first.values, return_counts=True)
    if (counts > 1).any():
        raise SchemaError(
            f"{source.path}: {values[counts > 1][0]} is {counts.max()} times on its time axis {first.dim!r}; expected "
            "each time once. Keep one of them: ds.isel(...).to_netcdf(...)."
        )
    return first


def _is_of_scenes(source: Source, variable: Variable) -> bool:
    """Return whether a variable has one value, or one for each of several fields, and not one for each row of
    a field.
    """
    dims = [d for d, n in variable.sizes.items() if n != 1]
    return all(
        any(
            len(v.dims) > 2 and d in (v.dims if d == variable.name else v.dims[:-2])
            for v in source.variables.values()
        )
        for d in dims
    )


def _times_of(source: Source, variable: Variable) -> Times:
    dims = [d for d, n in variable.sizes.items() if n != 1]
    if len(dims) > 1:
        raise SchemaError(
            f"{variable.where} lies on {variable.dims} {variable.shape}; expected a time axis of one dimension. Split "
            f"the file: ds.isel({dims[0]}=[i]).to_netcdf(...) for each."
        )
    if dims and not 0 < variable.sizes[dims[0]] <= _MAX_TIMES:
        raise SchemaError(f"{variable.where} has {variable.sizes[dims[0]]} times; expected 1 to {_MAX_TIMES}")
    return Times(decode_times(source, variable.name), dims[0] if dims else None)


def _after(source: Source, initial: Variable, leads: list[Variable]) -> Times:
    """Return the valid times from initial and lead times."""
    if not leads:
        raise SchemaError(
            f"{initial.where} is the initial time of a forecast, and no variable has the valid time of its fields; "
            "expected one with standard_name 'time', or one with standard_name 'forecast_period'."
        )
    start, hours = _times_of(source, initial), _lead_hours(source, leads[0])
    dims = [d for d, n in leads[0].sizes.items() if n != 1]
    if hours is None or len(dims) + (start.dim is not None) > 1:
        raise SchemaError(
            f"{leads[0].where} on {leads[0].dims} in {leads[0].text('units')!r}; expected lead times in units of time, "
            "of one initial time"
        )
    values = start.values + np.rint(hours * 3600).astype("timedelta64[s]")
    return Times(values, dims[0] if dims else start.dim)


def find_lead_time(source: Source, time: np.datetime64) -> float | None:
    """Return the hours from the initial time of a forecast to the time of a scene; None if the file lacks
    them.
    """
    meaning = {v.text("standard_name").lower(): v for v in source.variables.values() if v.is_numeric}
    if _LEAD in meaning and (hours := _lead_hours(source, meaning[_LEAD])) is not None and hours.size == 1:
        return float(hours[0])
    if (
        _INITIAL in meaning
        and (starts := decode_times(source, meaning[_INITIAL].name, missing=True)).size == 1
    ):
        return None if np.isnat(starts[0]) else float((time - starts[0]) / np.timedelta64(3600, "s"))
    return None


def _lead_hours(source: Source, variable: Variable) -> npt.NDArray[np.float64] | None:
    """Return lead times in hours; None if their units are not units of time."""
    seconds = _UNITS.get(variable.text("units").lower())
    return None if seconds is None else read_numbers(source, variable.name).ravel() * seconds / 3600


def _span(times: npt.NDArray[np.datetime64]) -> str:
    return str(times[0]) if times.size == 1 else f"{times[0]} to {times[-1]} ({times.size})"


def decode_times(source: Source, name: str, *, missing: bool = False) -> npt.NDArray[np.datetime64]:
    """Return the values of a time variable by its units and calendar, rounded to the second.

    Dates of the Julian and of the mixed calendar (``standard``) become Gregorian dates. Invalid values become
    NaT if they may be ``missing``, and are refused otherwise.
    """
    variable, where = source.variables[name], f"{source.path}: time variable {name!r}"
    units, calendar = variable.text("units"), variable.text("calendar").lower() or "standard"
    if calendar not in _CALENDARS:
        raise SchemaError(
            f"{where}: calendar {calendar!r}; expected some of {list(_CALENDARS)}, whose dates are days of the real "
            "world. Correct the attribute calendar, or convert the file (xarray: ds.convert_calendar)."
        )
    parsed = _parse_units(units, calendar)
    if parsed is None:
        raise SchemaError(
            f"{where}: units {units!r}; expected weeks, days, hours, minutes, seconds or parts of them, such as "
            "'seconds since 1970-01-01 00:00:00'. Correct the attribute units."
        )
    factor, zero = parsed
    values = read_numbers(source, name).ravel()
    # Whole seconds: a day number as float64 is good to a microsecond and decodes a little off the second.
    seconds = np.rint(values * factor)
    low, high = (
        (np.datetime64(f"{year}-01-01", "s") - zero).astype(np.int64)
        for year in (_FIRST_YEAR, _LAST_YEAR + 1)
    )
    good = np.isfinite(seconds) & (seconds >= low) & (seconds < high)
    if not good.all() and not missing:
        raise SchemaError(
            f"{where}: {float(values[~good][0])} {units}; expected a time from {_FIRST_YEAR} to {_LAST_YEAR}"
        )
    offsets = np.where(good, seconds, 0.0).astype(np.int64).astype("timedelta64[s]")
    return np.where(good, zero + offsets, np.datetime64("NaT", "s"))


@functools.lru_cache(maxsize=64)
def _parse_units(units: str, calendar: str) -> tuple[float, np.datetime64] | None:
    """Return the seconds of the unit and the date that it counts from, of the Gregorian calendar; None for
    other units.
    """
    since = _SINCE.fullmatch(units)
    reference = _REFERENCE.fullmatch(since[2]) if since else None
    factor = _UNITS.get(since[1].lower()) if since else None
    if reference is None or factor is None:
        return None
    *parts, sign, zone_hours, zone_minutes = reference.groups()
    try:
        date = cftime.datetime(*(int(part or 0) for part in parts), calendar=calendar)
    except ValueError:
        return None
    date -= timedelta(hours=int(zone_hours or 0), minutes=int(zone_minutes or 0)) * (-1 if sign == "-" else 1)
    return factor, np.datetime64(date.change_calendar("proleptic_gregorian").isoformat(), "s")


# --- times in text


def parse_time(words: str) -> np.datetime64 | None:
    """Return a date and time in ISO 8601 or in C's ``ctime`` form, UTC where no zone is given; None for
    anything else.
    """
    words = re.sub(r"\s*(UTC|GMT)$", "Z", words.strip())
    for form in ("ISO8601", "%a %b %d %H:%M:%S %Y"):
        moment = pd.to_datetime(words, format=form, utc=True, errors="coerce")
        if pd.notna(moment) and len(words) >= 8:  # a year alone is not a time
            return np.datetime64(moment.tz_localize(None).round("s"), "s")
    return None


def parse_stamp(name: str) -> np.datetime64 | None:
    """Return the date and time in a file name; None without a time, or with several.

    Examples are ``20210705_1750``, ``20110427T220000Z`` and, with the day of the year, ``2020262.1950``. In
    the names of GOES files (``s20202621950205_e20202621959525_c20202622000012``) it is the start.

    Parameters
    ----------
    name
        Name of the file.

    Returns
    -------
    The time, UTC.
    """
    stamps = _stamps(name)
    return stamps[0] if len(stamps) == 1 else None


def _stamps(name: str) -> list[np.datetime64]:
    """Return the distinct times in a file name, without those of the end and of the creation of its content."""
    found: dict[np.datetime64, None] = {}
    for role, date, clock, run in _STAMP.findall(name):
        # A run of 14 digits with tenths of seconds begins with year and day of the year.
        lengths = {12: (8,), 14: (7, 8) if role else (8, 7)}.get(len(run), (7,))
        pairs = [(run[:n], run[n:]) for n in lengths] if run else [(date, clock)]
        moments = [m for pair in pairs if (m := _moment(*pair)) is not None]
        if moments and role.lower() not in ("e", "c"):
            found[moments[0]] = None
    return list(found)


def _moment(date: str, clock: str) -> np.datetime64 | None:
    if len(clock) == 5:
        return None
    form = "%Y%m%d%H%M%S" if len(date) == 8 else "%Y%j%H%M%S"
    moment = pd.to_datetime(date + f"{clock}00"[:6], format=form, errors="coerce")
    # The year of NaT is NaN. Numbers of other kinds can look like times long ago, which are ignored.
    return np.datetime64(moment, "s") if 1950 <= moment.year <= _LAST_YEAR else None


# --- the one time of a scene


def only_time(source: Source, name: str | None = None) -> np.datetime64 | None:
    """Return the time of a source of one scene by its variables (`find_times`); None where none of them is a
    time.
    """
    times = find_times(source, name).values
    return np.datetime64(times[0], "s") if times.size else None


def agreed_time(source: Source, candidates: list[tuple[str, np.datetime64 | None, int]]) -> np.datetime64:
    """Return the first known time of a file, checked against the others.

    Each of ``candidates`` has a name, a time or None, and the seconds by which it may differ from the first
    known one. The most trusted candidate comes first.
    """
    known = [(what, time, tolerance) for what, time, tolerance in candidates if time is not None]
    if not known:
        stamps = _stamps(source.name)
        several = f" The file name holds several: {', '.join(map(str, stamps))}." if len(stamps) > 1 else ""
        raise SchemaError(
            f"{source.path}: no time; expected one of {[what for what, _, _ in candidates]}.{several} "
            "Rename the file so that it holds YYYYMMDD_HHMM once, or add a time variable."
        )
    first, time, _ = known[0]
    for what, other, tolerance in known[1:]:
        if abs((other - time).astype(np.int64)) > tolerance:
            raise SchemaError(
                f"{source.path}: {first} says {time}, {what} says {other}; expected them within {tolerance} s. "
                "Correct whichever is wrong: a renamed file, or a damaged header."
            )
    return time
