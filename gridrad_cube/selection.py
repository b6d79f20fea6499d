"""The one rule for what a selection means: times, durations, distances, boxes, polygons, seasons and hours.

Text and objects that users write become numbers here, and masks over arrays. Nothing here knows a store.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.geometry import wrap_longitude
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


#: When a convective day begins, hours UTC: over North America storms of an evening end before it.
CONVECTIVE_DAY_START = 12
#: Initials of the months, twice round, in which a season's name is looked up.
_INITIALS = "JFMAMJJASOND" * 2
SEASONS = ("DJF", "MAM", "JJA", "SON")

Times = npt.NDArray[np.datetime64]


def convective_day(time: npt.ArrayLike) -> npt.NDArray[np.datetime64]:
    """The convective day of each time: the date on which it began, at 12 UTC. NaT stays NaT.

    A storm of one evening belongs to one convective day, so days are what counts as independent: the unit
    in which samples are divided (`split_by_day`) and in which occurrences are counted.

    Parameters
    ----------
    time
        ``datetime64``, UTC.

    Returns
    -------
    ``datetime64[D]``: ``2024-05-20`` for times from 2024-05-20T12:00 to 2024-05-21T11:59:59.
    """
    seconds = np.asarray(time).astype("datetime64[s]")
    return (seconds - np.timedelta64(CONVECTIVE_DAY_START, "h")).astype("datetime64[D]")


def split_by_day(
    time: npt.ArrayLike, shares: Iterable[float] = (0.7, 0.15, 0.15), *, gap: int = 1
) -> npt.NDArray[np.int64]:
    """Divide times into parts that share no convective day, in order of time, with days between them left out.

    Parameters
    ----------
    time
        ``datetime64``, UTC.
    shares
        Of the convective days that occur, for each part; together 1.
    gap
        Convective days left out where one part ends and the next begins.

    Returns
    -------
    The part of each time, from 0; -1 for those left out and for NaT.

    Raises
    ------
    SchemaError
        If the shares are no shares, or a part is left without a day.
    """
    shares = [float(s) for s in shares]
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6 or gap < 0:
        raise SchemaError(f"split: got shares {shares}, gap {gap}; expected shares above 0 with a sum of 1")
    day = convective_day(time)
    known = ~np.isnat(day)
    days = np.unique(day[known])
    edges = np.rint(np.cumsum([0.0, *shares]) * len(days)).astype(int)
    part_of = np.repeat(np.arange(len(shares)), np.diff(edges))
    for edge in edges[1:-1]:
        if edge < len(days):  # the later part gives up the days that lie too near the earlier one
            free_from = days[max(edge - 1, 0)] + np.timedelta64(1 + gap, "D")
            part_of[(days >= days[edge]) & (days < free_from)] = -1
    missing = sorted(set(range(len(shares))) - set(part_of.tolist()))
    if missing:
        raise SchemaError(
            f"split: no convective day is left for part {missing[0]} of shares {shares}: there are {len(days)} days, "
            f"{gap} between parts. Pass fewer parts or a smaller gap."
        )
    out = np.full(day.shape, -1, np.int64)
    out[known] = part_of[np.searchsorted(days, day[known])]
    return out


def hour_of(time: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Hours since midnight UTC, with their fraction."""
    seconds = np.asarray(time).astype("datetime64[s]")
    return np.asarray((seconds - seconds.astype("datetime64[D]")) / np.timedelta64(1, "h"))


def solar_hour_of(time: npt.ArrayLike, longitude: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Local mean solar time in hours: UTC and a hour for every 15 degrees of longitude. Broadcasts."""
    return (hour_of(time) + np.asarray(longitude, np.float64) / 15.0) % 24.0


def month_of(time: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Months, 1 to 12."""
    return np.asarray(time).astype("datetime64[M]").astype(np.int64) % 12 + 1


def as_months(season: Any) -> list[int]:
    """Months of a season: initials such as ``"JJA"`` or ``"AMJJAS"``, a number, or several numbers.

    Raises
    ------
    SchemaError
        If it is none of these.
    """
    if isinstance(season, str) and len(season) > 1:
        first = _INITIALS.find(season.upper())
        if first >= 0 and len(season) <= 12:
            return [(first + i) % 12 + 1 for i in range(len(season))]
    elif isinstance(season, (int, np.integer)) and 1 <= season <= 12:
        return [int(season)]
    elif isinstance(season, Iterable) and not isinstance(season, str):
        months = list(season)
        if months and all(isinstance(m, (int, np.integer)) and 1 <= m <= 12 for m in months):
            return [int(m) for m in months]
    raise SchemaError(
        f"season: got {season!r}; expected initials of months that follow each other, such as 'JJA' or 'AMJJAS', or "
        "numbers of months from 1 to 12"
    )


def in_hours(hours: npt.NDArray[np.float64], wanted: Any, name: str) -> npt.NDArray[np.bool_]:
    """Which hours of the day lie in a span ``(start, stop)``, stop not included, or in one whole hour.

    Raises
    ------
    SchemaError
        If it is neither.
    """
    span = (wanted, wanted + 1) if isinstance(wanted, (int, np.integer)) else tuple(np.atleast_1d(wanted))
    numbers = all(isinstance(edge, (int, float, np.number)) and 0 <= edge <= 24 for edge in span)
    if len(span) != 2 or not numbers or span[0] == span[1] or span[0] == 24:
        raise SchemaError(
            f"{name}: got {wanted!r}; expected (start, stop) in hours from 0 to 24, stop not included, such as "
            "(18, 24) or (21, 3) across midnight, or one hour from 0 to 23"
        )
    start, stop = span
    return (hours >= start) & (hours < stop) if start < stop else (hours >= start) | (hours < stop)


def as_days(day: Any) -> npt.NDArray[np.datetime64]:
    """Convective days from one date or several.

    Raises
    ------
    SchemaError
        If one is no date.
    """
    one = isinstance(day, str) or np.ndim(day) == 0
    out = []
    for value in [day] if one else list(day):
        start, stop = as_span(value)
        date = start.astype("datetime64[D]")
        if date != start or (isinstance(value, str) and stop - start != np.timedelta64(1, "D")):
            raise SchemaError(f"convective_day: got {value!r}; expected a date such as '2024-05-20'")
        out.append(date)
    if not out:
        raise SchemaError("convective_day: got none; expected one date or more")
    return np.array(out)


#: Corners of a ring, (corners, 2): longitude and latitude in degrees, longitudes without jumps.
Ring = npt.NDArray[np.float64]


def as_rings(polygon: Any) -> list[Ring]:
    """Rings of a polygon.

    Parameters
    ----------
    polygon
        Corners ``[(longitude, latitude), ...]``; GeoJSON as a dict or as text (Polygon, MultiPolygon, a Feature
        or a collection of them); or anything with ``__geo_interface__``, such as a shape of shapely.

    Raises
    ------
    SchemaError
        If it is none of these.
    """
    if isinstance(polygon, str):
        try:
            polygon = json.loads(polygon)
        except ValueError as error:
            raise SchemaError(f"polygon: the text is no GeoJSON ({error})") from None
    polygon = getattr(polygon, "__geo_interface__", polygon)
    rings = _geojson(polygon) if isinstance(polygon, Mapping) else [polygon]
    return [_ring(ring) for ring in rings]


def _geojson(shape: Mapping[str, Any]) -> list[Any]:
    kind = shape.get("type")
    if kind == "Feature":
        return _geojson(shape.get("geometry") or {})
    if kind in ("FeatureCollection", "GeometryCollection"):
        members = shape.get("features" if kind == "FeatureCollection" else "geometries", [])
        return [ring for member in members for ring in _geojson(member)]
    if kind == "Polygon":
        return list(shape["coordinates"])
    if kind == "MultiPolygon":
        return [ring for part in shape["coordinates"] for ring in part]
    raise SchemaError(f"polygon: got GeoJSON of type {kind!r}; expected Polygon or MultiPolygon")


def _ring(corners: Sequence[Sequence[float]]) -> Ring:
    try:
        ring = np.array([corner[:2] for corner in corners], np.float64)
    except (TypeError, ValueError, IndexError):
        ring = np.empty((0, 2))
    if ring.ndim != 2 or len(np.unique(ring, axis=0)) < 3 or not (np.abs(ring) <= (360, 90)).all():
        raise SchemaError(
            f"polygon: got a ring of corners {corners!r:.120}; expected three or more (longitude, latitude) in degrees"
        )
    steps = np.diff(ring[:, 0], append=ring[0, 0])
    long = (np.abs(steps) > 180) & (np.abs(steps) < 360)
    steps[long] = wrap_longitude(steps[long])  # across the date line, as nothing else is meant
    longitude = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])
    latitude = np.append(ring[:, 1], ring[0, 1])
    if abs(longitude[-1] - longitude[0]) > 180:  # once around the Earth: closed over the nearer pole
        pole = np.copysign(91.0, latitude.mean())  # beyond it, so that the pole itself lies inside
        longitude = np.concatenate([longitude, longitude[[-1, 0, 0]]])
        latitude = np.concatenate([latitude, [pole, pole, latitude[0]]])
    return np.stack([longitude, latitude], axis=1)


def in_polygon(
    latitude: npt.NDArray[np.float64], longitude: npt.NDArray[np.float64], rings: Sequence[Ring]
) -> npt.NDArray[np.bool_]:
    """Which points lie inside: in an odd number of rings, so that an inner ring is a hole.

    Edges run straight in longitude and latitude. A point on an edge may fall to either side.
    """
    out = np.zeros(latitude.shape, bool)
    for ring in rings:
        west, east = ring[:, 0].min(), ring[:, 0].max()
        at = west + (longitude - west) % 360.0
        near = np.nonzero((at <= east) & (latitude >= ring[:, 1].min()) & (latitude <= ring[:, 1].max()))
        x, y = at[near], latitude[near]
        inside = np.zeros(x.shape, bool)
        for (x1, y1), (x2, y2) in itertools.pairwise(ring):
            if y1 != y2:
                crosses = (y1 > y) != (y2 > y)
                inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
        out[near] ^= inside
    return out
