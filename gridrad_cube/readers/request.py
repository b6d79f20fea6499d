"""What is asked of a file, and what of it the file can give."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import (
    CHANNELS,
    ECHO_STATISTICS,
    LOG_STATISTICS,
    STATISTICS,
    RadarSpec,
    SchemaError,
    channel_of,
)
from gridrad_cube.selection import find_altitudes, parse_label

#: Names that stores and answers give to other things; a companion field cannot have them.
RESERVED = frozenset((
    "altitude", "altitude_km", "channel", "col", "corner", "corner_latitude", "corner_longitude", "crop",
    "crs", "embedding", "feature", "flags", "grid", "grids", "latitude", "longitude", "observation_time",
    "padding", "patch", "patch_latitude", "patch_longitude", "rank", "report", "row",
    "satellite_zenith_angle", "scene", "scene_x", "scene_y", "score", "solar_zenith_angle",
    "solar_zenith_angle_maximum", "source", "source_file", "status", "time", "variable", "x", "x_origin",
    "x_start", "x_stop", "y", "y_origin", "y_start", "y_stop",
))  # fmt: skip
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SUFFIXES = ("histogram", *STATISTICS, *ECHO_STATISTICS, *LOG_STATISTICS)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Channels and altitudes asked for, and the user's word on variables and units."""

    channels: tuple[str, ...] = ()
    radar: RadarSpec = field(default_factory=RadarSpec)
    variables: tuple[tuple[str, str, str | None], ...] = ()
    companions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label in self.channels:
            parse_label(label)
        for entry in self.variables:
            if len(entry) != 3:
                raise SchemaError(
                    f"variables: got {entry!r}; expected (channel, variable of the file, units)"
                )
            channel_of(entry[0])
        for name in self.companions:
            _check_companion(name, self.companions)

    def named(self) -> dict[str, tuple[str, str | None]]:
        """Variable and units of the file that the user gave, by channel."""
        return {channel: (variable, units) for channel, variable, units in self.variables}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Variables of a scene in order, and the positions of its altitudes in the file, ascending in altitude."""

    variables: tuple[str, ...]
    levels: tuple[int, ...] = ()
    altitudes: tuple[float, ...] = ()


def is_companion_name(name: str) -> bool:
    """Whether a companion field may be called this."""
    try:
        _check_companion(name, (name,))
    except SchemaError:
        return False
    return True


def _check_companion(name: str, companions: Sequence[str]) -> None:
    """Refuse a name that cannot be a variable of a store beside everything else that is one."""
    lower, others = name.lower(), [n.lower() for n in companions]  # some file systems do not tell capitals
    rename = "A companion keeps its name: rename the variable in the file, or leave it out"
    if not _NAME.fullmatch(name):
        problem = f"expected a letter, then letters, digits and _. {rename}"
    elif lower in CHANNELS:
        problem = f"that is a known channel. Pass channels=({lower!r},)"
    elif others.count(lower) > 1:
        problem = "it is there twice. Pass each once"
    elif lower in RESERVED or lower.endswith("_flags"):
        problem = f"stores have something else of this name. {rename}"
    elif any(lower == f"{n}_{suffix}" for n in (*CHANNELS, *others) for suffix in _SUFFIXES):
        problem = f"stores have a statistic of this name. {rename}"
    else:
        return
    raise SchemaError(f"channels: got {name!r}; {problem}.")


def select(
    request: Request,
    available: Mapping[str, bool],
    altitudes: npt.ArrayLike,
    *,
    default: Sequence[str],
    where: str,
    listing: str,
) -> Selection:
    """What a file gives of a request.

    Parameters
    ----------
    available
        Channels that the file can give: True where they lie on altitudes.
    altitudes
        Those of the file, km, in its order.
    default
        Channels to take where the request names none.
    listing
        What the file has instead, for the message.

    Raises
    ------
    SchemaError
        If nothing asked for is there, an altitude is not, or variables ask for different altitudes (a scene
        has one list).
    """
    known = np.asarray(altitudes, np.float64)
    levels: dict[str, set[int]] = {}
    for label in request.channels or default:
        name, altitude = parse_label(label)
        if name not in available:
            continue
        levels.setdefault(name, set())
        if not available[name]:
            if altitude is not None:
                raise SchemaError(f"{where}: {label!r} asked for, but {name!r} of this file has no altitudes")
            continue
        wanted = (altitude,) if altitude is not None else request.radar.altitudes_km
        levels[name].update(find_altitudes(known, wanted, where) if wanted else range(known.size))
    if not levels:
        asked = list(request.channels or default)
        raise SchemaError(
            f"{where}: none of the channels {asked}; got {listing}. "
            "Pass channels=... of those it has, or variables=((channel, variable, units),)."
        )
    lists = {
        tuple(sorted(found, key=lambda i: known[i])) for name, found in levels.items() if available[name]
    }
    if len(lists) > 1:
        raise SchemaError(
            f"{where}: {[name for name in levels if available[name]]} ask for different altitudes; expected one "
            "list a scene. Pass radar=RadarSpec(altitudes_km=...) and names without '@'."
        )
    chosen = lists.pop() if lists else ()
    return Selection(variables=tuple(levels), levels=chosen, altitudes=tuple(float(known[i]) for i in chosen))


def with_levels(selection: Selection, radar: RadarSpec, altitudes: npt.ArrayLike, where: str) -> Selection:
    """A selection with levels for companion fields: its channels' if they have any, else those asked for, else all."""
    if selection.levels:
        return selection
    known = np.asarray(altitudes, np.float64)
    found = find_altitudes(known, radar.altitudes_km, where) if radar.altitudes_km else range(known.size)
    levels = tuple(sorted(set(found), key=lambda i: known[i]))
    return replace(selection, levels=levels, altitudes=tuple(float(known[i]) for i in levels))
