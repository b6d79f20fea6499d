"""Hours, months, seasons and convective days of times in UTC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.query.units import as_span
from gridrad_cube.schema import SchemaError

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
