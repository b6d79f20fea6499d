"""Units of source files and how they become a channel's units. Small and explicit: the rest is refused."""

from __future__ import annotations

from gridrad_cube.schema import Channel, SchemaError

#: ``(factor, offset)`` to the units of `gridrad_cube.schema.CHANNELS`, by their spelling in files.
CONVERSIONS: dict[str, dict[str, tuple[float, float]]] = {
    "K": {
        **dict.fromkeys(("k", "kelvin", "degk", "degree_kelvin", "degrees_kelvin", "deg_k"), (1.0, 0.0)),
        **dict.fromkeys(
            ("c", "degc", "deg_c", "celsius", "degree_celsius", "degrees_celsius", "degree_c", "degrees_c"),
            (1.0, 273.15),
        ),
    },
    "1": {
        **dict.fromkeys(("1", "unitless", "dimensionless", "fraction"), (1.0, 0.0)),
        **dict.fromkeys(("%", "percent", "pct"), (0.01, 0.0)),
    },
    "dBZ": {"dbz": (1.0, 0.0)},
    "dB": {"db": (1.0, 0.0)},
    "km": {
        **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), (1.0, 0.0)),
        **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), (0.001, 0.0)),
    },
    "mm h-1": {
        **dict.fromkeys(("mm h-1", "mm/h", "mm/hr", "mm hr-1", "mm/hour", "mm hour-1"), (1.0, 0.0)),
        **dict.fromkeys(("mm s-1", "mm/s", "kg m-2 s-1", "kg/m2/s"), (3600.0, 0.0)),
        **dict.fromkeys(("m s-1", "m/s"), (3.6e6, 0.0)),
    },
    "m s-1": dict.fromkeys(("m s-1", "m/s", "meters_per_second", "metres_per_second"), (1.0, 0.0)),
    "s-1": dict.fromkeys(("s-1", "1/s", "/s", "per_second"), (1.0, 0.0)),
    "degree km-1": dict.fromkeys(
        ("degree km-1", "degrees km-1", "degree/km", "degrees/km", "deg km-1", "deg/km"), (1.0, 0.0)
    ),
}


def spelled(units: str) -> str:
    """Units as `CONVERSIONS` spells them: lower case, single blanks, no ``^`` or ``**``."""
    return " ".join(units.lower().replace("**", "").replace("^", "").split())


def is_known(units: str, target: str) -> bool:
    """Whether there is a conversion to the target units."""
    return spelled(units) in CONVERSIONS[target]


def conversion(channel: Channel, units: str | None, *, named: bool, where: str) -> tuple[float, float]:
    """Factor and offset from the units of a file to those of a channel.

    Parameters
    ----------
    units
        As the file or the user gives them; None or empty where neither does.
    named
        Whether the variable bears the channel's own name: then missing units are the channel's, except for
        visible reflectance, where fraction and percent are equally common.
    where
        File and variable, for the message.

    Raises
    ------
    SchemaError
        If there are no units to go by, or they are unknown.
    """
    target = channel.units
    if not units:
        if named and channel.kind != "visible":
            return 1.0, 0.0
        raise SchemaError(
            f"{where}: no units; expected some of {sorted(CONVERSIONS[target])}. "
            f'Pass variables=(("{channel.name}", "<its variable>", "<its units>"),).'
        )
    if not is_known(units, target):
        raise SchemaError(
            f"{where}: units {units!r} for {channel.name}; expected some of {sorted(CONVERSIONS[target])}. "
            f'Pass variables=(("{channel.name}", "<its variable>", "<its units>"),).'
        )
    return CONVERSIONS[target][spelled(units)]
