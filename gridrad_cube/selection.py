"""Select by time, box, polygon, season, hour, channel, altitude and flag.

`Selection` holds the rules that a user names and turns arrays of times, positions and labels into masks.
Datasets,
training, queries, evaluation and plots all use it, so that the same text selects the same samples everywhere.
The
functions read single values: a time, a duration, a distance, a label. This module opens no store.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from gridrad_cube.geometry import wrap_longitude
from gridrad_cube.schema import (
    CHANNELS,
    Flag,
    SchemaError,
    channel_in,
    channel_label,
    reject_mask,
)

__all__ = [
    "DERIVED", "SEASONS", "Box", "Label", "Reject", "Selection", "as_km", "as_neighborhood",
    "as_periods", "as_seconds", "as_time", "choose_labels", "convective_day", "find_altitudes", "hour_of",
    "in_box", "in_polygon", "labels_of", "month_of", "parse_label", "reject_masks", "solar_hour_of",
    "split_by_day", "stacks_altitudes", "times_of",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


#: ``(west, south, east, north)`` in degrees; west above east crosses the date line.
Box = Sequence[float]
#: Flags that exclude a sample: names, one name, a mask, ``()`` for none; None for the default of each
#: channel.
Reject = int | Flag | str | Iterable[str] | None
Mask = npt.NDArray[np.bool_]

#: An altitude is found within this distance, km; nothing is interpolated.
_ALTITUDE_TOLERANCE_KM = 0.010
#: Hour UTC at which a convective day begins. Over North America, the storms of an evening end before it.
_CONVECTIVE_DAY_START = 12
SEASONS = ("DJF", "MAM", "JJA", "SON")
#: Initials of the months of two years, in which the name of a season is searched.
_INITIALS = "JFMAMJJASOND" * 2
#: Tolerance of a box in degrees, for the rounding of positions in float64 and float32.
_ROUNDING, _ROUNDING_FLOAT32 = 1e-9, 2e-5
_TIME = re.compile(
    r"(?P<naive>\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?)?)?)(?P<zone>Z|[+-]\d\d(:?\d\d)?)?"
)
_DISTANCE = re.compile(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*(k?m)?")
#: Calendars of cftime whose dates are those of ISO 8601.
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_LABEL = re.compile(r"(?P<name>.+)@(?P<km>\d+(?:\.\d*)?|\.\d+)\s*(km)?")
#: Channels that are computed from reflectivity on altitudes.
DERIVED = ("reflectivity_column_maximum", "echo_top_height")
#: A sample with one of these flags has no pixels and is never selected.
_NO_SAMPLE = Flag.channel_absent | Flag.padding


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rules of a selection. A sample is selected if it satisfies all given rules.

    Parameters
    ----------
    time
        A pair ``(start, stop)``, stop not included; a ``slice``, both ends included as in xarray's ``sel``;
        one value, which stands for its whole period (``"2024-05-20"`` for the day); or a list of pairs and
        slices. Times are text, ``datetime``, ``numpy.datetime64``, pandas or cftime objects, in UTC unless
        they have a zone.
    exclude_time
        Times to exclude, in the same form.
    bbox
        ``(west, south, east, north)`` in degrees, edges included; west above east crosses the date line.
    polygon
        Corners ``[(longitude, latitude), ...]``, GeoJSON (a dict or text), or a shape of shapely. Edges run
        straight in longitude and latitude; they may cross the date line or go around a pole.
    season
        Initials of months, ``"JJA"`` or ``"AMJJAS"``; or months by number, ``6`` or ``[6, 7]``.
    hour
        ``(start, stop)`` in hours UTC, stop not included, ``(21, 3)`` across midnight; or one whole hour.
    solar_hour
        The same in local mean solar time at the sample, UTC + longitude / 15.
    convective_day
        A date or several: ``"2024-05-20"`` is from that day 12 UTC to the next day 12 UTC.
    channel
        Labels such as ``"reflectivity@3.0km"``, or names of variables for all their altitudes; None for all
        but those of kind ``other``.
    altitude
        Altitudes in km of channels that have them; None for all.
    reject
        Flags that exclude a sample: names, one name, a mask, ``()`` for none; None for the default of each
        channel. Padding, and channels that are missing in a crop, are always excluded.
    """

    time: Any = None
    exclude_time: Any = None
    bbox: Box | None = None
    polygon: Any = None
    season: Any = None
    hour: Any = None
    solar_hour: Any = None
    convective_day: Any = None
    channel: Any = None
    altitude: Any = None
    reject: Reject = None

    def in_time(self, times: npt.ArrayLike) -> Mask:
        """Return which times are selected. NaT, the time of a crop without data, never is.

        Parameters
        ----------
        times
            ``datetime64`` of each crop, (crop,).

        Returns
        -------
        Booleans, (crop,).

        Raises
        ------
        SchemaError
            If a rule cannot be read, or no time is selected; the message lists the times of the store.
        """
        moments = np.asarray(times).astype("datetime64[s]")
        known = ~np.isnat(moments)
        keep = known.copy()
        if self.time is not None:
            keep &= _in_periods(moments, self.time)
        if self.exclude_time is not None:
            keep &= ~_in_periods(moments, self.exclude_time)
        if self.season is not None:
            keep &= np.isin(month_of(moments), _as_months(self.season))
        if self.hour is not None:
            keep &= _in_hours(hour_of(moments), self.hour, "hour")
        if self.convective_day is not None:
            keep &= np.isin(convective_day(moments), _as_days(self.convective_day))
        if not keep.any():
            rules = {n: getattr(self, n) for n in ("exclude_time", "season", "hour", "convective_day")}
            others = "".join(f", {name}={rule!r}" for name, rule in rules.items() if rule is not None)
            there = moments[known]
            has = f"from {there.min()} to {there.max()}" if there.size else "none: no crop was written"
            raise SchemaError(
                f"time: no crop in the time asked for, got {self.time!r}{others}; the store has times {has}"
            )
        return keep

    def in_place(self, latitude: npt.ArrayLike, longitude: npt.ArrayLike, times: npt.ArrayLike) -> Mask:
        """Return which positions are selected.

        Parameters
        ----------
        latitude, longitude
            Degrees, (crop, ...). A sample without a position is in no box and no polygon, and is not selected
            if other samples of its crop have positions.
        times
            ``datetime64`` of each crop, (crop,).

        Returns
        -------
        Booleans of the shape of the positions.
        """
        latitude, longitude = np.asarray(latitude), np.asarray(longitude)
        keep = np.isfinite(latitude)
        if self.bbox is None and self.polygon is None and self.solar_hour is None:
            return keep | ~keep.any(axis=tuple(range(1, keep.ndim)), keepdims=True)
        if self.bbox is not None:
            keep &= in_box(latitude, longitude, self.bbox)
        if self.polygon is not None:
            keep &= in_polygon(latitude, longitude, self.polygon)
        if self.solar_hour is not None:
            of_crop = np.asarray(times).reshape(-1, *(1 for _ in keep.shape[1:]))
            keep &= _in_hours(solar_hour_of(of_crop, longitude), self.solar_hour, "solar_hour")
        return keep


# Times


def times_of(dataset: xr.Dataset) -> npt.NDArray[np.datetime64]:
    """Return the time of each crop of a store, to the second.

    Parameters
    ----------
    dataset
        A cube or embeddings.

    Returns
    -------
    ``datetime64[s]``, (crop,); NaT for crops that were not written.
    """
    times = dataset["time"].values.astype("datetime64[s]")
    if "status" in dataset.variables:
        times = np.where(dataset["status"].values == 0, times, np.datetime64("NaT", "s"))
    return times


def as_time(value: Any) -> np.datetime64:
    """Return a time in UTC to the second; for a date, the start of the day.

    Times with a zone are converted; a time without one is UTC.

    Parameters
    ----------
    value
        ISO 8601 text, a ``datetime``, ``numpy.datetime64``, pandas or cftime object, or a scalar array of
        them.

    Returns
    -------
    ``datetime64[s]``.

    Raises
    ------
    SchemaError
        If the value is of another type, or NaT.
    """
    return _as_span(value)[0]


def _as_span(value: Any) -> tuple[np.datetime64, np.datetime64]:
    """Return start and end (not included) of a value: the whole day for a date, one second for an instant."""
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic):
        value = np.asarray(value)[()]
    text = value
    if isinstance(value, np.datetime64):
        text = str(value.astype("datetime64[s]"))
    elif isinstance(value, dt.date) or getattr(value, "calendar", None) in _CALENDARS:
        text = value.isoformat()
    match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    try:
        if match is None:
            raise ValueError(text)
        offset: Any = dt.datetime.fromisoformat(f"2000-01-01T00:00{match['zone'] or 'Z'}").utcoffset()
        start = np.datetime64(match["naive"])
    except ValueError:
        raise SchemaError(
            f"time: cannot read {value!r}; expected UTC such as '2024-05-20', '2024-05-20T21:30' or "
            "'2024-05-20T16:30-05:00', or a datetime"
        ) from None
    if "." in match["naive"]:
        start = start.astype("datetime64[s]")
    offset = np.timedelta64(offset, "s")
    return start.astype("datetime64[s]") - offset, (start + 1).astype("datetime64[s]") - offset


def as_periods(time: Any) -> list[tuple[np.datetime64 | None, np.datetime64 | None]]:
    """Return the time ranges that a rule such as ``time`` of `Selection` names.

    Parameters
    ----------
    time
        As of `Selection`.

    Returns
    -------
    Pairs ``(start, stop)``, stop not included; None for an open end.

    Raises
    ------
    SchemaError
        If a time cannot be read or start is not before stop.
    """
    if isinstance(time, (list, tuple)) and time and all(isinstance(t, (list, tuple, slice)) for t in time):
        return [period for one in time for period in as_periods(one)]
    if isinstance(time, slice):
        if time.step is not None:
            raise SchemaError(f"time: got a slice with step {time.step!r}; expected slice(start, stop)")
        start = None if time.start is None else as_time(time.start)
        stop = None if time.stop is None else _as_span(time.stop)[1]
    elif isinstance(time, (tuple, list)):
        if len(time) != 2:
            raise SchemaError(f"time: got {len(time)} values; expected (start, stop)")
        start, stop = (None if end is None else as_time(end) for end in time)
    else:
        start, stop = _as_span(time)
    if start is not None and stop is not None and not start < stop:
        raise SchemaError(
            f"time: start is not before stop, got {time!r}; expected (start, stop), stop not included"
        )
    return [(start, stop)]


def _in_periods(moments: npt.NDArray[np.datetime64], time: Any) -> Mask:
    """Return which times lie in one of the ranges; never NaT."""
    inside = np.zeros(moments.shape, bool)
    for start, stop in as_periods(time):
        later = ~np.isnat(moments) if start is None else moments >= start
        inside |= later if stop is None else later & (moments < stop)
    return inside


def as_seconds(duration: Any) -> float:
    """Return the seconds of a duration.

    Parameters
    ----------
    duration
        ``'6h'``, ``'30 min'``, ``timedelta`` or ``numpy.timedelta64``; None for no limit.

    Returns
    -------
    Seconds; infinite for None.

    Raises
    ------
    SchemaError
        If it is not a duration.
    """
    if duration is None:
        return np.inf
    text = isinstance(duration, str) and re.search("[a-z]", duration)  # a number has no unit
    known = text or isinstance(duration, (dt.timedelta, np.timedelta64))
    seconds = float(pd.to_timedelta(duration, errors="coerce").total_seconds()) if known else np.nan
    if not seconds >= 0:
        raise SchemaError(
            f"duration: got {duration!r}; expected a length of time such as '6h', '30min' or '2 days'"
        )
    return seconds


def as_km(distance: Any) -> float:
    """Return the kilometers of a distance.

    Parameters
    ----------
    distance
        Number of km, or text such as ``'200km'``; None for no limit.

    Returns
    -------
    Kilometers; infinite for None.

    Raises
    ------
    SchemaError
        If it is not a distance.
    """
    if distance is None:
        return np.inf
    match = _DISTANCE.fullmatch(str(distance).strip())
    if match is None:
        raise SchemaError(
            f"distance: got {distance!r}; expected kilometers, as a number or text such as '200km'"
        )
    return float(match[1]) * (0.001 if match[2] == "m" else 1.0)


def as_neighborhood(rule: Any, name: str) -> tuple[float, float] | None:
    """Return the seconds and kilometers of a neighborhood in time and space.

    Parameters
    ----------
    rule
        A pair such as ``('6h', '200km')``; None for no neighborhood.
    name
        Name of the parameter, for messages.

    Returns
    -------
    Seconds and kilometers; None without a rule.

    Raises
    ------
    SchemaError
        If it is not such a pair.
    """
    if rule is None:
        return None
    if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
        raise SchemaError(
            f"{name}: got {rule!r}; expected a time and a distance such as ('6h', '200km'), or None"
        )
    return as_seconds(rule[0]), as_km(rule[1])


# Hours, months, days


def convective_day(time: npt.ArrayLike) -> npt.NDArray[np.datetime64]:
    """Return the convective day of each time: the date on which it began, at 12 UTC. NaT stays NaT.

    A storm of one evening belongs to one convective day, so samples of different days count as independent.
    Samples are divided by days (`split_by_day`), and occurrences are counted by days.

    Parameters
    ----------
    time
        ``datetime64``, UTC.

    Returns
    -------
    ``datetime64[D]``: ``2024-05-20`` for times from 2024-05-20T12:00 to 2024-05-21T11:59:59.
    """
    seconds = np.asarray(time).astype("datetime64[s]")
    return (seconds - np.timedelta64(_CONVECTIVE_DAY_START, "h")).astype("datetime64[D]")


def split_by_day(
    time: npt.ArrayLike, shares: Iterable[float] = (0.7, 0.15, 0.15), *, gap: int = 1
) -> npt.NDArray[np.int64]:
    """Divide times into successive parts without a common convective day.

    Days between two parts are left out.

    Parameters
    ----------
    time
        ``datetime64``, UTC.
    shares
        Share of the convective days for each part; the sum is 1.
    gap
        Number of convective days to leave out between two parts.

    Returns
    -------
    Number of the part of each time, from 0; -1 for times that are left out and for NaT.

    Raises
    ------
    SchemaError
        If the shares are not valid, or a part has no day.
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
        if edge < len(days):  # days of the later part that are too near the earlier part are left out
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
    """Return the hours since midnight UTC, with their fraction.

    Parameters
    ----------
    time
        ``datetime64``, UTC.

    Returns
    -------
    Hours, float64.
    """
    seconds = np.asarray(time).astype("datetime64[s]")
    return np.asarray((seconds - seconds.astype("datetime64[D]")) / np.timedelta64(1, "h"))


def solar_hour_of(time: npt.ArrayLike, longitude: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return local mean solar time: UTC plus one hour for every 15 degrees of longitude. Broadcasts.

    Parameters
    ----------
    time
        ``datetime64``, UTC.
    longitude
        Degrees.

    Returns
    -------
    Hours from 0 to 24, float64.
    """
    return (hour_of(time) + np.asarray(longitude, np.float64) / 15.0) % 24.0


def month_of(time: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return months.

    Parameters
    ----------
    time
        ``datetime64``, UTC.

    Returns
    -------
    1 to 12.
    """
    return np.asarray(time).astype("datetime64[M]").astype(np.int64) % 12 + 1


def _as_months(season: Any) -> list[int]:
    """Return the months of a season: initials such as ``"JJA"`` or ``"AMJJAS"``, a number, or several
    numbers.
    """
    if isinstance(season, str):
        first = _INITIALS.find(season.upper()) if 1 < len(season) <= 12 else -1
        months = [(first + i) % 12 + 1 for i in range(len(season))] if first >= 0 else []
    else:
        months = np.ravel(season).tolist()
    if not months or not set(months) <= set(range(1, 13)):
        raise SchemaError(
            f"season: got {season!r}; expected initials of months that follow each other, such as 'JJA' or 'AMJJAS', "
            "or numbers of months from 1 to 12"
        )
    return months


def _in_hours(hours: npt.NDArray[np.float64], wanted: Any, name: str) -> npt.NDArray[np.bool_]:
    """Return which hours of the day lie in a span ``(start, stop)``, stop not included, or in one whole hour."""
    try:
        start, stop = (wanted, wanted + 1) if isinstance(wanted, (int, np.integer)) else map(float, wanted)
    except (TypeError, ValueError):
        start = stop = np.nan
    if not (0 <= start < 24 and 0 <= stop <= 24 and start != stop):
        raise SchemaError(
            f"{name}: got {wanted!r}; expected (start, stop) in hours from 0 to 24, stop not included, such as "
            "(18, 24) or (21, 3) across midnight, or one hour from 0 to 23"
        )
    return (hours >= start) & (hours < stop) if start < stop else (hours >= start) | (hours < stop)


def _as_days(day: Any) -> npt.NDArray[np.datetime64]:
    """Return the convective days from one date or several."""
    values = [day] if isinstance(day, str) or np.ndim(day) == 0 else list(day)
    if not values:
        raise SchemaError("convective_day: got none; expected one date or more")
    out = []
    for value in values:
        start, stop = _as_span(value)
        date = start.astype("datetime64[D]")
        if date != start or stop > date + 1 or (isinstance(value, str) and stop < date + 1):
            raise SchemaError(f"convective_day: got {value!r}; expected a date such as '2024-05-20'")
        out.append(date)
    return np.array(out)


# Places


def in_box(latitude: npt.ArrayLike, longitude: npt.ArrayLike, box: Box) -> Mask:
    """Return which points are in a box, edges included.

    The edges have a small tolerance, so that a point that was stored in float32 is in a box whose edge it is
    on.

    Parameters
    ----------
    latitude, longitude
        Degrees. Points without a position (NaN) are in no box.
    box
        ``(west, south, east, north)`` in degrees.

    Returns
    -------
    Booleans of the shape of the points.

    Raises
    ------
    SchemaError
        If it is not a box.
    """
    edges = [float(edge) for edge in box] if not isinstance(box, str) else []
    if len(edges) != 4 or not (
        -90 <= edges[1] <= edges[3] <= 90 and -360 <= edges[0] <= 360 and -360 <= edges[2] <= 360
    ):
        raise SchemaError(
            f"bbox: got {box!r}; expected (west, south, east, north) in degrees with south <= north; west > east "
            "crosses the date line"
        )
    west, south, east, north = edges
    width = east - west if east >= west else (east - west) % 360.0
    precise = np.result_type(np.asarray(latitude), np.asarray(longitude)) != np.float32
    margin = _ROUNDING if precise else _ROUNDING_FLOAT32
    lat, lon = (np.asarray(degrees, np.float64) for degrees in (latitude, longitude))
    inside = (lat >= south - margin) & (lat <= north + margin)
    return np.asarray(inside & ((lon - west + margin) % 360.0 <= width + 2 * margin))


def in_polygon(latitude: npt.ArrayLike, longitude: npt.ArrayLike, polygon: Any) -> Mask:
    """Return which points are in a polygon.

    A point is inside if it is in an odd number of rings, so an inner ring is a hole. Edges are straight in
    longitude and latitude. A point on an edge may count as inside or outside.

    Parameters
    ----------
    latitude, longitude
        Degrees.
    polygon
        Corners ``[(longitude, latitude), ...]``; GeoJSON as a dict or as text (Polygon, MultiPolygon, a
        Feature
        or a collection of them); or anything with ``__geo_interface__``, such as a shape of shapely.

    Returns
    -------
    Booleans of the shape of the points.

    Raises
    ------
    SchemaError
        If the polygon is of another type.
    """
    if isinstance(polygon, str):
        try:
            polygon = json.loads(polygon)
        except ValueError as error:
            raise SchemaError(f"polygon: the text is not GeoJSON ({error})") from None
    polygon = getattr(polygon, "__geo_interface__", polygon)
    lat, lon = np.asarray(latitude), np.asarray(longitude)
    out = np.zeros(lat.shape, bool)
    for corners in _geojson(polygon) if isinstance(polygon, Mapping) else [polygon]:
        ring = _ring(corners)
        west, east = ring[:, 0].min(), ring[:, 0].max()
        at = west + (lon - west) % 360.0
        near = np.nonzero((at <= east) & (lat >= ring[:, 1].min()) & (lat <= ring[:, 1].max()))
        x, y = at[near], lat[near]
        inside = np.zeros(x.shape, bool)
        for (x1, y1), (x2, y2) in itertools.pairwise(ring):
            if y1 != y2:
                crosses = (y1 > y) != (y2 > y)
                inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
        out[near] ^= inside
    return out


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


def _ring(corners: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Return the corners of a closed ring, (corners, 2): longitude and latitude in degrees, longitudes
    without jumps.
    """
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
    steps[long] = wrap_longitude(steps[long])  # an edge that long crosses the date line
    longitude = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps)])
    latitude = np.append(ring[:, 1], ring[0, 1])
    if abs(longitude[-1] - longitude[0]) > 180:  # once around the Earth: closed over the nearer pole
        pole = np.copysign(91.0, latitude.mean())  # beyond the pole, so that the pole itself is inside
        longitude = np.concatenate([longitude, longitude[[-1, 0, 0]]])
        latitude = np.concatenate([latitude, [pole, pole, latitude[0]]])
    return np.stack([longitude, latitude], axis=1)


# Channels, altitudes, flags


@dataclass(frozen=True)
class Label:
    """One channel as samples have it: a variable, or one altitude of it."""

    name: str
    variable: str
    altitude: int | None  # its position among the altitudes of the store
    kind: str
    km: float | None = None


def _kind_of(label: str) -> str:
    """Return the kind of a channel label for its default rejecting flags; of several in one, visible before
    the others.
    """
    kinds = [CHANNELS[n].kind for n in re.findall(r"\w+", label) if n in CHANNELS]
    return "visible" if "visible" in kinds else kinds[0] if kinds else "field"


def labels_of(dataset: xr.Dataset, variables: Iterable[str] | None = None) -> tuple[Label, ...]:
    """Return every channel label of a dataset, in order.

    Parameters
    ----------
    dataset
        A cube, whose variables on altitudes have one label for each altitude; or embeddings, whose labels are
        the coordinate ``channel``.
    variables
        Channels of the cube, in the order of the store; None for every variable with pixels.

    Returns
    -------
    One label for each channel and altitude.
    """
    if "embedding" in dataset.data_vars:
        if "channel" not in dataset.variables:
            return (Label("field", "field", None, "field"),)
        names = [str(n) for n in np.atleast_1d(dataset["channel"].values)]
        owners = np.atleast_1d(dataset["variable"].values) if "variable" in dataset.coords else names
        return tuple(
            Label(name, str(owner), None, _kind_of(f"{owner} {name}"), _split(name)[1])
            for name, owner in zip(names, owners, strict=True)
        )
    if variables is None:
        variables = [str(n) for n, v in dataset.data_vars.items() if {"crop", "y", "x"} <= set(v.dims)]
    out = []
    for name in variables:
        kind = channel_in(name, dataset[name].attrs, dataset[name].dtype).kind
        if "altitude" not in dataset[name].dims:
            out.append(Label(name, name, None, kind))
            continue
        heights = dataset["altitude"].values.tolist()
        out += [Label(channel_label(name, km), name, i, kind, km) for i, km in enumerate(heights)]
    return tuple(out)


def choose_labels(
    available: Sequence[Label], channels: Any, where: str, *, altitude: Any = None
) -> tuple[Label, ...]:
    """Return the requested labels, in the requested order.

    Parameters
    ----------
    available
        Labels of the store; see `labels_of`.
    channels
        Labels (with the altitude within 10 m), names of variables for all their altitudes, or positions in
        the store; one or several. None for every channel but those of kind ``other``, which are selected by
        name only, unless the store has no other channel.
    where
        Name of the store, for messages.
    altitude
        Altitudes in km of channels that have them; None for all.

    Returns
    -------
    The labels.

    Raises
    ------
    SchemaError
        If a label is missing; the message lists the labels of the store.
    """
    names = [label.name for label in available]
    if channels is None:
        chosen = [a for a in available if a.kind != "other"] or list(available)
    else:
        chosen = []
        for asked in [channels] if isinstance(channels, (str, int, np.integer)) else channels:
            name, km = _split(asked) if isinstance(asked, str) else (None, None)
            found = [
                label
                for i, label in enumerate(available)
                if asked in (i, label.name, label.variable)
                or (label.variable == name and km is not None and len(_near([label.km], km)))
            ]
            if not found:
                raise SchemaError(f"{where}: no channel {asked!r}; expected some of {names}")
            chosen += found
    if not chosen:
        raise SchemaError(f"{where}: no channel asked for, got {channels!r}; expected some of {names}")
    if altitude is not None:
        known = sorted({label.km for label in chosen if label.km is not None})
        at = {known[i] for i in find_altitudes(known, np.ravel(altitude), where)}
        if not at:
            raise SchemaError(
                f"{where}: no altitude asked for, got {altitude!r}; expected some of {known} km"
            )
        chosen = [label for label in chosen if label.km is None or label.km in at]
    return tuple(dict.fromkeys(chosen))


def stacks_altitudes(labels: Iterable[Label]) -> bool:
    """Return whether the channels are one input by default: the altitudes of a radar volume, alone or with
    other fields.

    Parameters
    ----------
    labels
        Labels of the channels.

    Returns
    -------
    True if they are stacked.
    """
    labels = list(labels)
    sky = any(label.kind in ("infrared", "visible") for label in labels)
    return not sky and any(label.altitude is not None for label in labels)


def _split(label: str) -> tuple[str, float | None]:
    """Return the name and altitude of a label; the whole text and None where it names no altitude."""
    match = _LABEL.fullmatch(label)
    return (match["name"], float(match["km"])) if match else (label, None)


def parse_label(label: str) -> tuple[str, float | None]:
    """Return the channel and altitude of a label such as ``reflectivity@3.0km``.

    A name that is not in the table of channels is a variable of the source, a channel of kind ``other``.

    Parameters
    ----------
    label
        The label.

    Returns
    -------
    Name, and altitude in km; None without an altitude.

    Raises
    ------
    SchemaError
        If a label with an altitude names a channel without altitudes.
    """
    name, km = _split(label)
    if km is None and "@" in label:
        raise SchemaError(
            f"channels: got {label!r}; expected a name or name@altitude such as 'reflectivity@3.0km'"
        )
    flat = name in DERIVED or (name in CHANNELS and CHANNELS[name].kind in ("infrared", "visible", "rain"))
    if km is not None and flat:
        raise SchemaError(f"channels: got {label!r}, but {name} has no altitude; pass {name!r}")
    return name, km


def find_altitudes(altitudes: npt.ArrayLike, wanted: Iterable[float], where: str) -> tuple[int, ...]:
    """Return the positions of altitudes in a list. Altitudes are found within 10 m.

    Parameters
    ----------
    altitudes
        Altitudes of the store, km.
    wanted
        Altitudes to find, km.
    where
        Name of the store, for messages.

    Returns
    -------
    Positions in ``altitudes``.

    Raises
    ------
    SchemaError
        If an altitude is missing; the message lists the altitudes of the store.
    """
    known, found = [float(a) for a in np.ravel(altitudes)], []
    for altitude in wanted:
        near = _near(known, altitude)
        if not len(near):
            raise SchemaError(
                f"{where}: no level at {altitude:g} km; expected one of {known} km. "
                "Levels are not interpolated: choose from the list."
            )
        found.append(int(near[0]))
    return tuple(found)


def _near(altitudes: Sequence[float | None], wanted: float) -> npt.NDArray[np.int64]:
    """Return the positions of the altitudes that match a requested altitude, the nearest first."""
    away = np.abs(np.asarray(altitudes, np.float64) - wanted)
    order = np.argsort(away, kind="stable")
    return order[away[order] <= _ALTITUDE_TOLERANCE_KM + 1e-9]


def reject_masks(labels: Iterable[Label], reject: Reject) -> list[int]:
    """Return the flags that exclude a sample, for each label.

    Padding, and channels that are missing in a crop, are always excluded.

    Parameters
    ----------
    labels
        Labels of the channels.
    reject
        As of `Selection`.

    Returns
    -------
    One mask for each label.

    Raises
    ------
    SchemaError
        If a name is not a flag.
    """
    if reject is not None and not isinstance(reject, int):
        reject = (reject,) if isinstance(reject, str) else tuple(reject)
    return [int(reject_mask(reject, label.kind) | _NO_SAMPLE) & 0xFFFF for label in labels]
