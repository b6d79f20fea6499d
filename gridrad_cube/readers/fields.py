"""From the variables of a file to channels: units, packing, and codes.

Integers keep dtype and codes; a conversion of units goes into scale and offset. Floats are encoded by the packing of
their channel. Of a channel of kind ``other`` nothing is converted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.files import Source, Variable
from gridrad_cube.schema import CHANNELS, OTHER_ATTRIBUTES, Channel, Packing, SchemaError, channel_in

#: ``(factor, offset)`` from the units of files, as they spell them, to those of channels; other units are refused.
CONVERSIONS: dict[str, dict[str, tuple[float, float]]] = {}
for _units, _factor, _offset, _spellings in (
    ("K", 1.0, 0.0, "k, kelvin, degk, degree_kelvin, degrees_kelvin, deg_k"),
    ("K", 1.0, 273.15, "c, degc, deg_c, celsius, degree_celsius, degrees_celsius, degree_c, degrees_c"),
    ("1", 1.0, 0.0, "1, unitless, dimensionless, fraction"),
    ("1", 0.01, 0.0, "%, percent, pct"),
    ("dBZ", 1.0, 0.0, "dbz"),
    ("dB", 1.0, 0.0, "db"),
    ("km", 1.0, 0.0, "km, kilometer, kilometers, kilometre, kilometres"),
    ("km", 0.001, 0.0, "m, meter, meters, metre, metres"),
    ("mm h-1", 1.0, 0.0, "mm h-1, mm/h, mm/hr, mm hr-1, mm/hour, mm hour-1"),
    ("mm h-1", 3600.0, 0.0, "mm s-1, mm/s, kg m-2 s-1, kg/m2/s"),
    ("mm h-1", 3.6e6, 0.0, "m s-1, m/s"),
    ("m s-1", 1.0, 0.0, "m s-1, m/s, meters_per_second, metres_per_second"),
    ("s-1", 1.0, 0.0, "s-1, 1/s, /s, per_second"),
    ("degree km-1", 1.0, 0.0, "degree km-1, degrees km-1, degree/km, degrees/km, deg km-1, deg/km"),
):
    CONVERSIONS.setdefault(_units, {}).update(dict.fromkeys(_spellings.split(", "), (_factor, _offset)))

_NO_UNITS = ("", "1", "unitless", "dimensionless", "none")
_CATEGORIES = ("flag_values", "flag_masks", "flag_meanings")
#: What MRMS and its kin write for "observed, no echo", in the channel's units (dBZ, km).
_NO_ECHO_VALUE = -99.0
#: Radar floats at or below this stand for missing data (-999, -9999), declared or not.
_UNDECLARED_MISSING = -990.0
#: What netCDF means by a value that was never written. Bytes have none: every code of theirs may be data.
_DEFAULT_FILL = {
    "int16": -32767, "uint16": 65535, "int32": -2147483647, "uint32": 4294967295,
    "int64": -9223372036854775806, "uint64": 18446744073709551614,
    "float32": 9.969209968386869e36, "float64": 9.969209968386869e36,
}  # fmt: skip
#: One-byte variables without a fill code are widened to make room for one; their codes stay.
_WIDENED = {"uint8": ("uint16", 65535), "int8": ("int16", -32768)}
_BLOCK = 2**20


@dataclass(frozen=True)
class Field:
    """One channel of a scene, as the header of its file states it.

    ``variable`` is its name in the file. ``dims`` are the file's names of row and column, after that of altitude where
    it lies on altitudes. ``units`` are factor and offset to the channel's units. ``packing`` and ``attributes``
    are those of the codes that `read_codes` gives; ``missing`` are further codes of the file that mean missing.
    """

    channel: Channel
    variable: str
    dims: tuple[str, ...]
    packing: Packing
    attributes: Mapping[str, Any]
    units: tuple[float, float] = (1.0, 0.0)
    missing: tuple[int, ...] = ()


def known_field(
    source: Source, name: str, variable: str, dims: tuple[str, ...], units: str | None = None
) -> Field:
    """Describe a variable of a file as a channel of the table; refuse one whose units are unknown.

    ``units`` are those of the variable where the file does not state them.
    """
    channel, about = CHANNELS[name], source.variables[variable]
    factors = _conversion(channel, about, units or about.text("units"))
    packing, missing = channel.packing, tuple[int, ...]()
    if about.dtype.kind != "f":
        packing, missing = _integer_packing(about, channel, factors)
    return Field(channel, variable, dims, packing, channel.attributes(), factors, missing)


def other_field(source: Source, variable: str, dims: tuple[str, ...]) -> Field:
    """Describe a variable of a file as a channel of kind ``other``, under its own name and in its own units.

    Integers keep dtype and codes; without a declared fill that of netCDF's default stands for missing, and bytes, which
    have none, are widened. Floats are values, float32 or float64.
    """
    about = source.variables[variable]
    units, standard_name = about.text("units"), about.text("standard_name")
    attributes: dict[str, Any] = {
        "units": "1" if spelled(units) in _NO_UNITS else units,
        "long_name": about.text("long_name") or variable,
        **({"standard_name": standard_name} if standard_name else {}),
        **{k: np.asarray(about.attributes[k]).tolist() for k in _CATEGORIES if k in about.attributes},
        **OTHER_ATTRIBUTES,
    }
    channel = channel_in(variable, attributes, about.dtype)
    if len(about.dims) == 1:  # weights of listed bins; 0 in all others
        packing, missing = Packing(dtype="float32"), tuple[int, ...]()
    elif about.dtype.kind != "f":
        packing, missing = _integer_packing(about, channel, (1.0, 0.0))
    else:
        scale, offset = about.scaling
        bounds = [None if b is None else b * scale + offset for b in _valid_range(about)]
        low, high = bounds if scale > 0 else bounds[::-1]
        dtype = "float64" if about.dtype.itemsize == 8 else "float32"
        packing, missing = Packing(dtype=dtype, valid_minimum=low, valid_maximum=high), ()
    return Field(channel, variable, dims, packing, attributes, missing=missing)


def find_others(
    source: Source,
    wanted: Iterable[str],
    dims: tuple[str, ...],
    vertical: str | None,
    listed: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Variables that hold numbers on the pixels of the scene, with the dimensions that make them fields.

    ``dims`` are the file's names of row and column, ``vertical`` that of altitude, ``listed`` that of GridRad's lists
    of bins, whose weights (``wReflectivity``) are fields too. Variables of the names ``wanted`` that lie elsewhere are
    refused.
    """
    on_grid = {name: _dims_on_grid(source, name, dims, vertical, listed) for name in source.variables}
    fields = {name: on for name, on in on_grid.items() if on is not None}
    for name in wanted:
        if name in source.variables and name not in fields:
            variable, expected = source.variables[name], ", ".join((vertical, *dims) if vertical else dims)
            raise SchemaError(
                f"{source.path}: channels: {name!r} holds {variable.dtype} on {variable.dims} {variable.shape}; "
                f"expected numbers on ({expected}). The file has {sorted(fields)}."
            )
    return fields


def _dims_on_grid(
    source: Source, name: str, dims: tuple[str, ...], vertical: str | None, listed: str | None
) -> tuple[str, ...] | None:
    variable = source.variables[name]
    if not variable.is_numeric:
        return None
    if listed and variable.dims == (listed,):
        is_weight = name.startswith("w") and name[1:] in source.variables
        return (str(vertical), *dims) if is_weight else None
    on = (str(vertical), *dims) if vertical in variable.dims else dims
    fits = set(on) <= set(variable.dims) and all(n == 1 for d, n in variable.sizes.items() if d not in on)
    return on if fits else None


def spelled(units: str) -> str:
    """Units as `CONVERSIONS` spells them: lower case, single blanks, no ``^`` or ``**``."""
    return " ".join(units.lower().replace("**", "").replace("^", "").split())


def _conversion(channel: Channel, variable: Variable, units: str) -> tuple[float, float]:
    """Factor and offset from the units of a variable to those of a channel.

    A variable that bears the channel's own name and states no units is in the channel's units, except for visible
    reflectance, where fraction and percent are equally common.
    """
    known = CONVERSIONS[channel.units]
    if not units and variable.name == channel.name and channel.kind != "visible":
        return 1.0, 0.0
    if spelled(units) not in known:
        problem = f"units {units!r} for {channel.name}" if units else "no units"
        raise SchemaError(
            f"{variable.where}: {problem}; expected some of {sorted(known)}. "
            f'Pass variables=(("{channel.name}", "<its variable>", "<its units>"),).'
        )
    return known[spelled(units)]


def _integer_packing(
    variable: Variable, channel: Channel, units: tuple[float, float]
) -> tuple[Packing, tuple[int, ...]]:
    """The packing of an integer variable as a channel, and the further codes that mean missing.

    The conversion of units is composed into scale and offset. Radar (dBZ, km) and rain get their no-echo code: that of
    -99, and that of zero rain. Where they declare no valid range, codes below it are out of range.
    """
    dtype, (scale, offset) = _signedness(variable), variable.scaling
    codes = [code for fill in variable.fills if (code := _as_code(fill, variable, dtype)) is not None]
    low, high = _valid_codes(variable, dtype)
    if not codes and variable.name == "Nradobs":  # a bin of GridRad that no sweep looked at
        codes = [0]
    if not codes and dtype.name in _WIDENED:
        name, fill = _WIDENED[dtype.name]
        dtype, codes = np.dtype(name), [fill]
    packing = Packing(
        dtype=dtype.name,
        scale_factor=_tidy(scale * units[0]),
        add_offset=_tidy(offset * units[0] + units[1]),
        fill_value=codes[0] if codes else _DEFAULT_FILL[dtype.name],
        valid_minimum=low,
        valid_maximum=high,
    )
    return _with_echo_codes(packing, channel, variable), tuple(codes[1:])


def _tidy(value: float) -> float:
    """Without the noise of a product such as 0.1 * 0.01."""
    return float(f"{value:.12g}")


def _signedness(variable: Variable) -> np.dtype[Any]:
    """The dtype that the codes stand for: classic netCDF keeps unsigned ones as signed, with ``_Unsigned``."""
    declared = str(variable.attributes.get("_Unsigned", "")).lower()
    kinds = {"true": "u", "false": "i"}
    return np.dtype(f"{kinds.get(declared, variable.dtype.kind)}{variable.dtype.itemsize}")


def _as_code(value: float, variable: Variable, dtype: np.dtype[Any]) -> int | None:
    """An attribute as a code, or None where the dtype cannot hold it (NaN, or -9999 of a byte)."""
    if not np.isfinite(value) or value != np.rint(value):
        return None
    code = int(value)
    if dtype.kind != variable.dtype.kind:
        code %= 2 ** (8 * dtype.itemsize)
    limits = np.iinfo(dtype)
    return code if limits.min <= code <= limits.max else None


def _valid_range(variable: Variable) -> tuple[float | None, float | None]:
    """The valid range that a file declares, as it declares it."""
    pair = np.asarray(variable.attributes.get("valid_range", []))
    if pair.size == 2 and pair.dtype.kind in "iuf":
        return float(pair[0]), float(pair[1])
    if pair.size and variable.dtype.kind != "f":
        raise SchemaError(
            f"{variable.where}: attribute 'valid_range' is {pair.tolist()!r}; expected two numbers"
        )
    return variable.number("valid_min"), variable.number("valid_max")


def _valid_codes(variable: Variable, dtype: np.dtype[Any]) -> tuple[int | None, int | None]:
    """The valid range of an integer variable in codes."""
    bounds: Sequence[float | None] = _valid_range(variable)
    if all(bound is None for bound in bounds):
        return None, None
    attributes, (scale, offset) = variable.attributes, variable.scaling
    given = next(attributes[n] for n in ("valid_range", "valid_min", "valid_max") if n in attributes)
    if np.asarray(given).dtype.kind == "f" and (scale, offset) != (1.0, 0.0):
        # In the type of the unpacked values, hence in their units (netCDF best practices).
        bounds = [None if b is None else (b - offset) / scale for b in bounds]
        bounds = bounds if scale > 0 else bounds[::-1]
    elif dtype.kind != variable.dtype.kind:
        bounds = [None if b is None else _as_code(b, variable, dtype) for b in bounds]
    limits = np.iinfo(dtype)
    low = limits.min if bounds[0] is None else max(int(np.ceil(bounds[0] - 1e-6)), limits.min)
    high = limits.max if bounds[1] is None else min(int(np.floor(bounds[1] + 1e-6)), limits.max)
    return low, high


def _with_echo_codes(packing: Packing, channel: Channel, variable: Variable) -> Packing:
    if channel.kind not in ("radar", "rain"):
        return packing
    if packing.scale_factor < 0:
        raise SchemaError(
            f"{variable.where}: scale_factor {packing.scale_factor}; expected a positive one for {channel.name}"
        )
    no_echo_value = _NO_ECHO_VALUE if channel.kind == "radar" else 0.0
    exact = (no_echo_value - packing.add_offset) / packing.scale_factor
    code = round(exact)
    limits = np.iinfo(packing.dtype)
    if abs(exact - code) > 1e-3 or not limits.min <= code < limits.max or code == packing.fill_value:
        # No code for "no echo": every observed pixel is an echo.
        lowest = limits.min if packing.valid_minimum is None else packing.valid_minimum
        return replace(packing, echo_minimum=lowest)
    if packing.valid_minimum is None:
        packing = replace(packing, valid_minimum=code, valid_maximum=limits.max)
    return replace(packing, no_echo=code, echo_minimum=code + 1)


def encode(
    values: npt.NDArray[Any],
    channel: Channel,
    variable: Variable | None = None,
    units: tuple[float, float] = (1.0, 0.0),
) -> npt.NDArray[Any]:
    """Codes of float values by the channel's own packing, block by block.

    NaN, and the fills of the variable that the values are from, are not observed; its scale and valid range are
    applied. For dBZ and echo tops -99 and less is observed without echo and -990 and less (-999, -9999) not observed;
    rain that rounds to nothing is no echo, negative rain out of range.
    """
    scale, offset = (1.0, 0.0) if variable is None else variable.scaling
    valid = (None, None) if variable is None else _valid_range(variable)
    fills = [_DEFAULT_FILL[values.dtype.name]] if variable is None else _float_fills(variable)
    out = np.empty(values.shape, channel.packing.dtype)
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        raw = flat[start : start + _BLOCK]
        block = raw.astype(np.float64)
        outside = np.zeros(raw.shape, bool)
        with np.errstate(invalid="ignore"):
            for bound, is_wrong in zip(valid, (np.less, np.greater), strict=True):
                if bound is not None:
                    outside |= is_wrong(raw, bound)
        for fill in fills:
            missing = raw == raw.dtype.type(fill)
            block[missing] = np.nan
            outside &= ~missing
        block = (block * scale + offset) * units[0] + units[1]
        block[outside & np.isfinite(block)] = 1e30  # coded as out of range
        flat_out[start : start + _BLOCK] = _encode_block(block, channel)
    return out


def _float_fills(variable: Variable) -> list[float]:
    """Values that stand for missing in a float variable: declared ones, and netCDF's default."""
    fills = (*variable.fills, _DEFAULT_FILL.get(variable.dtype.name, np.nan))
    return [fill for fill in fills if np.isfinite(fill)]


def _encode_block(block: npt.NDArray[np.float64], channel: Channel) -> npt.NDArray[Any]:
    packing = channel.packing
    with np.errstate(invalid="ignore", over="ignore"):
        if channel.kind == "radar":
            block[np.isfinite(block) & (block <= _UNDECLARED_MISSING)] = np.nan
            return packing.encode(block, no_echo=np.isfinite(block) & (block <= _NO_ECHO_VALUE))
        if channel.kind == "rain":
            return packing.encode(block, no_echo=(block >= 0.0) & (block < packing.scale_factor / 2))
        return packing.encode(block)


def read_codes(source: Source, field: Field, levels: Sequence[int] = ()) -> npt.NDArray[Any]:
    """Read the codes of a field that lies dense in its file, ``([altitude,] y, x)``.

    ``levels`` are positions along the altitudes, in the order wanted, where the field has any.
    """
    variable = source.variables[field.variable]
    raw = read_array(source, variable, field.dims, levels)
    if variable.dtype.kind != "f":
        codes = raw.view(_signedness(variable)).astype(field.packing.dtype, copy=False)
        for code in field.missing:
            codes[codes == codes.dtype.type(code)] = codes.dtype.type(field.packing.fill_value or 0)
        return codes
    if field.channel.kind != "other":
        return encode(raw, field.channel, variable, field.units)
    scale, offset = variable.scaling
    scaled = raw if (scale, offset) == (1.0, 0.0) else raw.astype(np.float64) * scale + offset
    values = scaled.astype(field.packing.dtype)
    for fill in _float_fills(variable):
        values[raw == raw.dtype.type(fill)] = np.nan
    return values


def read_array(
    source: Source, variable: Variable, dims: Sequence[str], levels: Sequence[int] = ()
) -> npt.NDArray[Any]:
    """Raw values of a variable on these dimensions of the file, ``([altitude,] y, x)``, in native byte order.

    Other dimensions, which must have length one, are dropped. ``levels`` are positions along the altitudes.
    """
    extra = {d: n for d, n in variable.sizes.items() if d not in dims}
    if not set(dims) <= set(variable.dims) or any(n != 1 for n in extra.values()):
        raise SchemaError(
            f"{variable.where} lies on {variable.dims} {variable.shape}; expected "
            f"{tuple(dims)}, with one time. Split a file of several times: ds.isel(time=[i]).to_netcdf(...)."
        )
    kept = [d for d in variable.dims if d in dims]
    order = [kept.index(d) for d in dims]

    def read(part: slice) -> npt.NDArray[Any]:
        parts = dict.fromkeys(dims, slice(None)) | ({dims[0]: part} if len(dims) == 3 else {})
        key = tuple(0 if d in extra else parts[d] for d in variable.dims)
        return np.ascontiguousarray(source.read(variable.name, key).transpose(order))

    if len(dims) == 2:
        return read(slice(None))
    if list(levels) == list(range(levels[0], levels[0] + len(levels))):
        return read(slice(levels[0], levels[0] + len(levels)))
    return np.concatenate([read(slice(level, level + 1)) for level in levels])
