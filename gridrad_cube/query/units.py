"""What users write for times, durations, distances and boxes, checked and turned into numbers."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import SchemaError

#: ``(west, south, east, north)`` in degrees; west above east crosses the date line.
Box = Sequence[float]

_TIME = re.compile(
    r"(?P<naive>\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?)?)?)(?P<zone>Z|[+-]\d\d(:?\d\d)?)?"
)
_DURATIONS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}
_DISTANCES = {"": 1.0, "km": 1.0, "m": 0.001}
#: Degrees by which a point may lie outside of a box for the rounding of its longitude.
_ROUNDING = 1e-9


def as_time(value: Any) -> np.datetime64:
    """The instant, UTC to the second, that a user means; the start of the day for a date.

    Parameters
    ----------
    value
        ISO 8601 text, ``datetime``, ``numpy.datetime64`` or a scalar array of them. Times with a zone are
        converted. Text and ``datetime64`` without one are UTC; a ``datetime`` without one is refused.

    Raises
    ------
    SchemaError
        If it is none of these, or NaT.
    """
    return as_span(value)[0]


def as_span(value: Any) -> tuple[np.datetime64, np.datetime64]:
    """Start and end (not included) of what a user names: the whole day for a date, a second for an instant."""
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic):
        value = np.asarray(value)[()]
    if isinstance(value, str):
        return _parse(value.strip())
    if isinstance(value, dt.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC).replace(tzinfo=None)
        elif not hasattr(value, "asm8"):  # pandas' times without a zone are numpy's, which are UTC here
            raise SchemaError(
                f"time: got {value!r}, a datetime without a zone, which Python takes for local time. Pass "
                "tzinfo=datetime.UTC, text in UTC, or numpy.datetime64."
            )
        value = np.datetime64(value, "s")
    elif isinstance(value, dt.date):
        return _span(np.datetime64(value, "D"))
    if not isinstance(value, np.datetime64):
        raise SchemaError(
            f"time: got {value!r}; expected text such as '2024-05-20T21:30', or a datetime, in UTC"
        )
    if np.isnat(value):
        raise SchemaError("time: got NaT; expected a time")
    return _span(value.astype("datetime64[s]"))


def _parse(text: str) -> tuple[np.datetime64, np.datetime64]:
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        start, stop = _span(np.datetime64(match["naive"]))
    except ValueError:
        raise SchemaError(
            f"time: cannot read {text!r}; expected UTC such as '2024-05-20', '2024-05-20T21:30' or "
            "'2024-05-20T16:30-05:00'"
        ) from None
    zone = match["zone"] or "Z"
    if zone == "Z":
        return start, stop
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = np.timedelta64(int(digits[:2]) * 3600 + int(digits[2:]) * 60, "s") * (
        -1 if zone[0] == "-" else 1
    )
    return start - offset, stop - offset


def _span(value: np.datetime64) -> tuple[np.datetime64, np.datetime64]:
    unit: Any = np.datetime_data(value)[0]
    if unit not in ("Y", "M", "D", "h", "m"):
        unit, value = "s", value.astype("datetime64[s]")
    following = value + np.timedelta64(1, unit)
    return value.astype("datetime64[s]"), following.astype("datetime64[s]")


def as_period(time: Any) -> tuple[np.datetime64 | None, np.datetime64 | None]:
    """Start and end (not included) of a selection in time; None leaves an end open.

    Parameters
    ----------
    time
        A pair ``(start, stop)``, stop not included; a ``slice``, both ends included as xarray's ``sel``
        has it (a stop of ``'2024-05-20'`` takes that whole day); or one value, which takes all that it
        names.

    Raises
    ------
    SchemaError
        If a time cannot be read or start is not before stop.
    """
    if time is None:
        return None, None
    if isinstance(time, slice):
        if time.step is not None:
            raise SchemaError(f"time: got a slice with step {time.step!r}; expected slice(start, stop)")
        start = None if time.start is None else as_time(time.start)
        stop = None if time.stop is None else as_span(time.stop)[1]
    elif isinstance(time, (tuple, list)):
        if len(time) != 2:
            raise SchemaError(f"time: got {len(time)} values; expected (start, stop)")
        start, stop = (None if end is None else as_time(end) for end in time)
    else:
        start, stop = as_span(time)
    if start is not None and stop is not None and not start < stop:
        raise SchemaError(
            f"time: start is not before stop, got {time!r}; expected (start, stop), stop not included"
        )
    return start, stop


def as_seconds(duration: Any) -> float:
    """Seconds of a duration: ``'6h'``, ``'30 min'``, ``timedelta`` or ``numpy.timedelta64``; None is no limit."""
    if duration is None:
        return np.inf
    if isinstance(duration, np.timedelta64):
        seconds = float(duration / np.timedelta64(1, "s"))
    elif isinstance(duration, dt.timedelta):
        seconds = duration.total_seconds()
    else:
        seconds = _quantity(duration, _DURATIONS)
    if not seconds >= 0:
        raise SchemaError(
            f"duration: got {duration!r}; expected a length of time such as '6h', '30min' or '2 days'"
        )
    return seconds


def as_km(distance: Any) -> float:
    """Kilometres of a distance: a number of km, or text such as ``'200km'``; None is no limit."""
    if distance is None:
        return np.inf
    number = isinstance(distance, (int, float, np.number)) and not isinstance(distance, bool)
    km = float(distance) if number else _quantity(distance, _DISTANCES)
    if not km >= 0:
        raise SchemaError(
            f"distance: got {distance!r}; expected kilometres, as a number or text such as '200km'"
        )
    return km


def _quantity(text: Any, units: dict[str, Any]) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip()) if isinstance(text, str) else None
    if match is None:
        return np.nan
    unit = match[2] if match[2] in units else match[2].removesuffix("s")
    return float(match[1]) * units.get(unit, np.nan)


def as_neighbourhood(rule: Any, name: str) -> tuple[float, float] | None:
    """Seconds and kilometres of ``('6h', '200km')``; None for no rule."""
    if rule is None:
        return None
    if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
        raise SchemaError(
            f"{name}: got {rule!r}; expected a time and a distance such as ('6h', '200km'), or None"
        )
    return as_seconds(rule[0]), as_km(rule[1])


def check_box(box: Box) -> tuple[float, float, float, float]:
    """West, south, east and north of a box as floats.

    Raises
    ------
    SchemaError
        If it is no box.
    """
    edges = [float(edge) for edge in box] if not isinstance(box, str) else []
    if len(edges) == 4:
        west, south, east, north = edges
        if -90 <= south <= north <= 90 and -360 <= west <= 360 and -360 <= east <= 360:
            return west, south, east, north
    raise SchemaError(
        f"bbox: got {box!r}; expected (west, south, east, north) in degrees with south <= north; west > east "
        "crosses the date line"
    )


def in_box(
    latitude: npt.NDArray[np.float64],
    longitude: npt.NDArray[np.float64],
    box: tuple[float, float, float, float],
) -> npt.NDArray[np.bool_]:
    """Which points lie in a box, edges included; never those without a position."""
    west, south, east, north = box
    width = east - west if east >= west else (east - west) % 360.0
    inside = (latitude >= south) & (latitude <= north)
    return inside & ((longitude - west + _ROUNDING) % 360.0 <= width + 2 * _ROUNDING)
