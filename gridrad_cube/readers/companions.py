"""Companion fields: further variables of a file, carried beside the channels under their own names.

Nothing of them is converted: integers keep dtype and codes, floats keep their values, units are the source's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridrad_cube.readers.fields import Field, float_field, read_array, read_field
from gridrad_cube.readers.files import Source, Variable, text
from gridrad_cube.readers.units import spelled
from gridrad_cube.schema import OTHER_ATTRIBUTES, Channel, SchemaError, channel_in

#: How far a cloud seems to stand from where it is. Positions are those of the source's grid, so where a satellite
#: file has the correction, it is carried along unasked.
PARALLAX = ("parallax_correction_latitude", "parallax_correction_longitude")
_PURE = ("", "1", "unitless", "dimensionless", "none")
_CATEGORIES = ("flag_values", "flag_masks", "flag_meanings")


@dataclass(frozen=True, kw_only=True)
class Companion:
    """One companion field of a file.

    ``dims`` are the file's names of row and column, or of altitude, row and column; of GridRad's lists of bins,
    that of the list alone.
    """

    dims: tuple[str, ...]
    channel: Channel
    attributes: Mapping[str, Any]


def find_companions(
    source: Source,
    wanted: Iterable[str],
    dims: tuple[str, ...],
    *,
    vertical: str | None = None,
    listed: str | None = None,
    unasked: Iterable[str] = (),
) -> dict[str, Companion]:
    """Companion fields of a file, in the order wanted; those that it lacks are left out.

    Parameters
    ----------
    dims, vertical
        The file's names of row and column, and of altitude.
    listed
        The dimension of GridRad's lists of bins, whose weights (``wReflectivity``) are fields too.
    unasked
        Further names to take where they lie on the grid.

    Raises
    ------
    SchemaError
        If a variable of a wanted name holds no numbers or lies on other dimensions; names those that would do.
    """
    fields = fields_on_grid(source, dims, vertical, listed)
    asked = [name for name in wanted if name in source.variables]
    for name in asked:
        if name not in fields:
            variable = source.variables[name]
            expected = f"({vertical}, {', '.join(dims)})" if vertical else f"({', '.join(dims)})"
            raise SchemaError(
                f"{source.path}: channels: {name!r} holds {variable.dtype} on {variable.dims} {variable.shape}; "
                f"expected numbers on {expected}. The file has {sorted(fields)}."
            )
    names = dict.fromkeys([*asked, *(name for name in unasked if name in fields)])
    return {name: _companion(source.variables[name], fields[name]) for name in names}


def fields_on_grid(
    source: Source, dims: tuple[str, ...], vertical: str | None = None, listed: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Variables that hold numbers on the pixels of the scene, and the dimensions that make them a field."""
    found = {name: _dims_on_grid(source, name, dims, vertical, listed) for name in source.variables}
    return {name: on for name, on in found.items() if on is not None}


def _dims_on_grid(
    source: Source, name: str, dims: tuple[str, ...], vertical: str | None, listed: str | None
) -> tuple[str, ...] | None:
    variable = source.variables[name]
    if not variable.is_numeric:
        return None
    if listed and variable.dims == (listed,):
        return (listed,) if name.startswith("w") and name[1:] in source.variables else None
    on = (vertical, *dims) if vertical in variable.dims else dims
    others = [n for d, n in zip(variable.dims, variable.shape, strict=True) if d not in on]
    return on if set(on) <= set(variable.dims) and all(n == 1 for n in others) else None


def _companion(variable: Variable, dims: tuple[str, ...]) -> Companion:
    units = text(variable.attributes, "units")
    attributes: dict[str, Any] = {
        "units": "1" if spelled(units) in _PURE else units,
        "long_name": text(variable.attributes, "long_name") or variable.name,
    }
    if text(variable.attributes, "standard_name"):
        attributes["standard_name"] = text(variable.attributes, "standard_name")
    for name in _CATEGORIES:
        if name in variable.attributes:
            attributes[name] = np.asarray(variable.attributes[name]).tolist()
    attributes |= OTHER_ATTRIBUTES
    return Companion(
        dims=dims, channel=channel_in(variable.name, attributes, variable.dtype), attributes=attributes
    )


def read_companion(source: Source, companion: Companion, levels: Sequence[int]) -> Field:
    """Read a companion field that lies dense in the file.

    Integers keep dtype and codes; without a declared fill that of netCDF's default stands for missing, and bytes,
    which have none, are widened. Floats are values (float32, or float64 where the file has it): NaN where the file
    declares or netCDF defaults to missing, bit for bit elsewhere.

    Parameters
    ----------
    levels
        Positions along the altitudes, in the order wanted, where it has any.
    """
    name = companion.channel.name
    variable = source.variables[name]
    if variable.dtype.kind != "f":
        return read_field(source, name, companion.channel, (1.0, 0.0), companion.dims, levels)
    raw = read_array(source, variable, companion.dims, levels)
    return float_field(raw, variable, f"{source.path}: variable {name!r}")
