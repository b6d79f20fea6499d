"""Turn variables of a file into channels: units, packing and codes.

Integers keep dtype and codes; a conversion of units changes scale and offset. Floats are encoded by the
packing of
their channel. Channels of kind ``other`` are not converted. `recode` converts codes to another packing, for
stores
whose files have different packings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.files import Source, Variable
from gridrad_cube.schema import CHANNELS, OTHER_ATTRIBUTES, Channel, Packing, SchemaError, channel_in

#: ``(factor, offset)`` from units as files spell them to those of channels; other units are refused.
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
#: Values that mean "observed, no echo" (of rain: no rain) and, declared or not, "not observed", in the channel's units.
#: MRMS writes -99 and -999 for reflectivity, -1 and -3 for echo tops, -3 for rain (NSSL's table of its GRIB2 products,
#: version 12).
#: WDSS-II, the software behind MRMS, declares -99900 and -99903.
_NO_ECHO_VALUES = {"radar": (-99.0, -99900.0), "rain": (0.0,)}
_NO_ECHO_TOP, _NO_COVERAGE = -1.0, -3.0
#: Radar floats at or below this value mean missing data (-999, -9999), declared or not.
_UNDECLARED_MISSING = -990.0
#: Attributes of ODIM and CfRadial 2 for the number that means "observed, no echo".
_UNDETECT = ("_Undetect", "undetect")
#: Default fill values of netCDF, for values that were never written. Bytes have none, because every code may
#: be data.
_DEFAULT_FILL = {
    "int16": -32767, "uint16": 65535, "int32": -2147483647, "uint32": 4294967295,
    "int64": -9223372036854775806, "uint64": 18446744073709551614,
    "float32": 9.969209968386869e36, "float64": 9.969209968386869e36,
}  # fmt: skip
#: One-byte variables without a fill code are widened to make room for one; their codes stay.
_WIDENED = {"uint8": ("uint16", 65535), "int8": ("int16", -32768)}
_BLOCK = 2**20
#: Relative difference below which the steps of two packings are equal.
_SAME_STEP = 1e-9


@dataclass(frozen=True)
class Field:
    """One channel of a scene, as the header of its file states it.

    ``variable`` is its name in the file. ``dims`` are the file's names of row and column, and before them of
    altitude if it has altitudes. ``units`` are factor and offset to the channel's units. ``packing`` and
    ``attributes`` describe the codes that `read_codes` returns; ``missing`` lists further codes of the file
    that mean missing. ``file_packing`` is the packing in the file if it differs.
    """

    channel: Channel
    variable: str
    dims: tuple[str, ...]
    packing: Packing
    attributes: Mapping[str, Any]
    units: tuple[float, float] = (1.0, 0.0)
    missing: tuple[int, ...] = ()
    file_packing: Packing | None = None


def known_field(
    source: Source, name: str, variable: str, dims: tuple[str, ...], units: str | None = None
) -> Field:
    """Describe a variable of a file as a channel of the table; refuse one whose units are unknown.

    ``units`` are those of the variable where the file does not state them.
    """
    channel, about = CHANNELS[name], source.variables[variable]
    factors = _conversion(channel, about, units or about.text("units"))
    field = Field(channel, variable, dims, channel.packing, channel.attributes(), factors)
    if about.dtype.kind == "f":
        return field
    packing, missing = _integer_packing(about, channel, factors)
    if channel.kind not in _NO_ECHO_VALUES or packing.echo_minimum is not None:
        return replace(field, packing=packing, missing=missing)
    about.note(
        f"codes of echoes are not all above that of no echo, so they are {_describe(packing, channel.packing, channel)}"
    )
    return replace(field, missing=missing, file_packing=packing)


def other_field(source: Source, variable: str, dims: tuple[str, ...]) -> Field:
    """Describe a variable of a file as a channel of kind ``other``, under its own name and in its own units.

    Integers keep dtype and codes. Without a declared fill value, the default of netCDF means missing; bytes
    have no default and are widened. Floats are values, float32 or float64.
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
        bounds = [None if b is None else b * scale + offset for b in about.valid_range]
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
    """Return the variables that hold numbers on the pixels of the scene, with the dimensions that make them
    fields.

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
    """Return the units as `CONVERSIONS` spells them: lower case, single blanks, no ``^`` or ``**``."""
    return " ".join(units.lower().replace("**", "").replace("^", "").split())


def _conversion(channel: Channel, variable: Variable, units: str) -> tuple[float, float]:
    """Return the factor and offset from the units of a variable to those of a channel.

    A variable with the channel's own name and without units has the channel's units, except for visible
    reflectance, for which fraction and percent are equally common.
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


# --- numbers that mean a state: not observed, observed without echo, out of the valid range


def _is_missing(raw: npt.NDArray[Any], variable: Variable) -> npt.NDArray[np.bool_]:
    """Return where raw values of a variable are declared missing, or were never written.

    The default fill value of netCDF means missing in floats, and in integers of more than one dimension
    without a declared fill value.
    """
    fills = variable.fills
    if raw.dtype.kind == "f" or (not fills and len(variable.dims) > 1):
        fills = [*fills, _DEFAULT_FILL.get(variable.dtype.name, math.nan)]
    return _is_in(raw, fills, variable)


def _is_in(
    raw: npt.NDArray[Any], numbers: Sequence[int | float], variable: Variable
) -> npt.NDArray[np.bool_]:
    """Return where raw values are some of these numbers, as far as the type of the variable can hold them."""
    if raw.dtype.kind == "f":
        with np.errstate(over="ignore"):
            known = np.array([n for n in numbers if math.isfinite(n)]).astype(raw.dtype)
        known = known[np.isfinite(known)]
    else:
        codes = [_as_code(number, variable, raw.dtype) for number in numbers]
        known = np.array([code for code in codes if code is not None], raw.dtype)
    return np.isin(raw, known) if known.size else np.zeros(raw.shape, bool)


def _states(
    variable: Variable, channel: Channel, units: tuple[float, float]
) -> tuple[list[int | float], list[int | float]]:
    """Return the raw numbers that mean "not observed", and those declared that mean "observed, no echo".

    The latter are what ODIM calls undetect. If a file declares several numbers to be missing, they are those
    that products write for no echo: -99 dBZ from a THREDDS server that also declares -999, 0 mm/h.
    """
    missing = variable.fills
    if channel.kind not in _NO_ECHO_VALUES:
        return missing, []
    no_echo = [number for name in _UNDETECT for number in variable.numbers(name)][:1]
    if not no_echo and len(missing) > 1:
        scale, offset = variable.scaling
        known = _no_echo_values(channel)
        for number in missing:
            value = (number * scale + offset) * units[0] + units[1]
            if any(math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-6) for other in known):
                no_echo.append(number)
    observed = [number for number in missing if number not in no_echo]
    return (observed, no_echo) if observed or not missing else (missing, [])


def _no_echo_values(channel: Channel) -> tuple[float, ...]:
    values = _NO_ECHO_VALUES[channel.kind]
    return (*values, _NO_ECHO_TOP) if channel.name == "echo_top_height" else values


def _integer_packing(
    variable: Variable, channel: Channel, units: tuple[float, float]
) -> tuple[Packing, tuple[int, ...]]:
    """Return the packing of an integer variable as a channel, and the further codes that mean missing.

    The conversion of units becomes a part of scale and offset. Radar (dBZ, km) and rain get their no-echo
    code: the declared one, else that of -99, and that of zero rain. Without a declared valid range, codes
    below it are out of range.
    """
    dtype, (scale, offset) = _signedness(variable), variable.scaling
    missing, no_echo = (
        [code for number in numbers if (code := _as_code(number, variable, dtype)) is not None]
        for numbers in _states(variable, channel, units)
    )
    low, high = _valid_codes(variable, dtype)
    if not missing and variable.name == "Nradobs":  # a bin of GridRad that no sweep observed
        missing = [0]
    if not missing and dtype.name in _WIDENED:
        name, fill = _WIDENED[dtype.name]
        dtype, missing = np.dtype(name), [fill]
    packing = Packing(
        dtype=dtype.name,
        scale_factor=_tidy(scale * units[0]),
        add_offset=_tidy(offset * units[0] + units[1]),
        fill_value=missing[0] if missing else _DEFAULT_FILL[dtype.name],
        valid_minimum=low,
        valid_maximum=high,
    )
    if channel.kind in _NO_ECHO_VALUES:
        packing = _with_echo_codes(packing, channel, variable, missing, no_echo[:1])
    return packing, tuple(missing[1:])


def _tidy(value: float) -> float:
    """Return a number without the rounding noise of a product such as 0.1 * 0.01."""
    return float(f"{value:.12g}")


def _signedness(variable: Variable) -> np.dtype[Any]:
    """Return the dtype that the values of a variable stand for: classic netCDF keeps unsigned integers as
    signed ones.
    """
    declared = str(variable.attributes.get("_Unsigned", "")).lower()
    kinds = {"true": "u", "false": "i"} if variable.dtype.kind in "iu" else {}
    return np.dtype(f"{kinds.get(declared, variable.dtype.kind)}{variable.dtype.itemsize}")


def _as_code(number: int | float, variable: Variable, dtype: np.dtype[Any]) -> int | None:
    """Return an attribute as a code, or None where the dtype cannot hold it (NaN, or -9999 of a byte)."""
    if isinstance(number, float) and not number.is_integer():
        return None
    code = int(number)
    if dtype.kind != variable.dtype.kind:
        code %= 2 ** (8 * dtype.itemsize)
    limits = np.iinfo(dtype)
    return code if limits.min <= code <= limits.max else None


def _valid_codes(variable: Variable, dtype: np.dtype[Any]) -> tuple[int | None, int | None]:
    """Return the valid range of an integer variable in codes."""
    bounds, (scale, offset), limits = list(variable.valid_range), variable.scaling, np.iinfo(dtype)
    if all(bound is None for bound in bounds):
        return None, None
    if any(isinstance(b, float) for b in bounds) and (scale, offset) != (1.0, 0.0):
        # In the type of the unpacked values, hence in their units (netCDF best practices).
        bounds = [None if b is None else (b - offset) / scale for b in bounds]
        bounds = bounds if scale > 0 else bounds[::-1]
    elif dtype.kind != variable.dtype.kind:
        bounds = [None if b is None else _as_code(b, variable, dtype) for b in bounds]
    low, high = bounds
    low = limits.min if low is None else math.ceil(low - 1e-6) if isinstance(low, float) else low
    high = limits.max if high is None else math.floor(high + 1e-6) if isinstance(high, float) else high
    inside = [min(max(int(bound), int(limits.min)), int(limits.max)) for bound in (low, high)]
    return inside[0], inside[1]


def _with_echo_codes(
    packing: Packing, channel: Channel, variable: Variable, missing: Sequence[int], declared: Sequence[int]
) -> Packing:
    """Add the codes of no echo and of the weakest echo, and the physical maximum of the channel.

    ``declared`` is the code of no echo that the file declares, if any. If some codes of echoes are below it,
    the packing has no ``echo_minimum``.
    """
    limits, scale = np.iinfo(packing.dtype), packing.scale_factor
    low, high = packing.valid_minimum, packing.valid_maximum
    usual, code = _code_of(_NO_ECHO_VALUES[channel.kind][0], packing), None
    candidates: Sequence[int | None] = declared or [usual]
    for candidate in candidates:
        if candidate is not None and limits.min <= candidate < limits.max and candidate != packing.fill_value:
            code = candidate
    below = 0 if code is None else code - int(np.iinfo(_signedness(variable)).min)
    is_ascending = scale > 0 and (
        code in (None, usual)
        or (low is not None and low >= code)
        or below == sum(m < code for m in set(missing))
    )
    if low is None and code is not None and is_ascending:
        low, high = code, int(limits.max)
    bound = (channel.physical_maximum - packing.add_offset) / scale
    if limits.min < bound < limits.max:
        low, high = (int(limits.min), int(limits.max)) if low is None or high is None else (low, high)
        low, high = (
            (low, min(high, math.floor(bound + 1e-6))) if scale > 0 else (max(low, math.ceil(bound)), high)
        )
    packing = replace(packing, valid_minimum=low, valid_maximum=high, no_echo=code)
    if not is_ascending:
        return packing
    if code is None:  # every observed pixel is an echo
        return replace(packing, echo_minimum=int(limits.min) if low is None else low)
    # Of rain that declares another code of no echo, zero is no echo too.
    weakest = code if usual is None or usual >= limits.max else max(code, usual)
    return replace(packing, echo_minimum=weakest + 1)


def _code_of(value: float, packing: Packing) -> int | None:
    """Return the code of a value; None without a code."""
    exact = (value - packing.add_offset) / packing.scale_factor
    return round(exact) if abs(exact) < 2**63 and abs(exact - round(exact)) <= 1e-3 else None


def encode(
    values: npt.NDArray[Any],
    channel: Channel,
    variable: Variable | None = None,
    units: tuple[float, float] = (1.0, 0.0),
) -> npt.NDArray[Any]:
    """Return the codes of float values by the channel's own packing, block by block.

    NaN and the fill values of the variable mean not observed. Scale and valid range of the variable and the
    physical maximum of the channel are applied. For dBZ and echo tops, values at or below -990 (-999, -9999)
    mean not observed; other values at or below -99, and what the file declares, mean observed without echo.
    Rain that rounds to zero is no echo. Negative rain is out of range, but -3 means no coverage.
    """
    scale, offset = (1.0, 0.0) if variable is None else variable.scaling
    valid = (None, None) if variable is None else variable.valid_range
    declared = [] if variable is None else _states(variable, channel, units)[1]
    out = np.empty(values.shape, channel.packing.dtype)
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        raw = flat[start : start + _BLOCK]
        block = raw.astype(np.float64)
        outside, silent = np.zeros(raw.shape, bool), np.zeros(raw.shape, bool)
        with np.errstate(invalid="ignore"):
            for bound, is_wrong in zip(valid, (np.less, np.greater), strict=True):
                if bound is not None:
                    outside |= is_wrong(raw, bound)
        if variable is None:
            missing = raw == raw.dtype.type(_DEFAULT_FILL[raw.dtype.name])
        else:
            silent = _is_in(raw, declared, variable)
            missing = _is_missing(raw, variable) & ~silent
        block[missing] = np.nan
        block = (block * scale + offset) * units[0] + units[1]
        with np.errstate(invalid="ignore"):
            outside |= block > channel.physical_maximum
        block[outside & np.isfinite(block) & ~silent] = 1e30  # coded as out of range
        flat_out[start : start + _BLOCK] = _encode_block(block, channel, silent)
    return out


def _encode_block(
    block: npt.NDArray[np.float64], channel: Channel, silent: npt.NDArray[np.bool_]
) -> npt.NDArray[Any]:
    """Return the codes of physical values; ``silent`` is where the file declares no echo."""
    packing = channel.packing
    with np.errstate(invalid="ignore", over="ignore"):
        if channel.kind == "radar":
            finite = np.isfinite(block) & ~silent
            block[finite & (block <= _UNDECLARED_MISSING)] = np.nan
            no_echo = finite & (block <= _NO_ECHO_VALUES["radar"][0])
            if channel.name == "echo_top_height":
                block[finite & (block == _NO_COVERAGE)] = np.nan
                no_echo |= finite & (block == _NO_ECHO_TOP)
            return packing.encode(block, no_echo=no_echo | silent)
        if channel.kind == "rain":
            block[(block == _NO_COVERAGE) & ~silent] = np.nan
            is_dry = (block >= 0.0) & (block < packing.scale_factor / 2)
            return packing.encode(block, no_echo=is_dry | silent)
        return packing.encode(block)


# --- one packing in place of another


def common_packing(channel: Channel, packings: Collection[Packing]) -> Packing:
    """Return the packing of a channel in a new store, from those of its files.

    If all files have the same packing, it is that one. Otherwise it is the packing in the table of channels.
    For channels of kind ``other``, which are not in the table, it is a float type that holds the values of
    all.

    Parameters
    ----------
    channel
        The channel.
    packings
        Packings of the files.

    Returns
    -------
    The packing.
    """
    if len(set(packings)) == 1:
        return next(iter(packings))
    if channel.kind != "other":
        return channel.packing
    is_wide = any(np.dtype(p.dtype).itemsize > (4 if np.dtype(p.dtype).kind == "f" else 2) for p in packings)
    return Packing(dtype="float64" if is_wide else "float32")


def recode(
    codes: npt.NDArray[Any], found: Packing, wanted: Packing, channel: Channel
) -> tuple[npt.NDArray[Any], str]:
    """Return the codes of the same values and states by another packing.

    Parameters
    ----------
    codes
        Codes to convert.
    found
        Their packing.
    wanted
        The packing to convert to.
    channel
        The channel, for messages.

    Returns
    -------
    The codes, and a text for the user: which packing became which, and the largest change of a value. The
    text is empty if no code changed.

    Raises
    ------
    SchemaError
        If the wanted packing has no code for a value or a state of a pixel.
    """
    low, high = wanted.valid_minimum, wanted.valid_maximum
    if replace(found, valid_minimum=low, valid_maximum=high) == wanted:
        # The codes mean the same, and the valid range is that of the store.
        return codes, ""
    if codes.dtype.kind in "iu" and codes.dtype.itemsize <= 2:
        table, lost_codes = _recoding_table(found, wanted)
        number = codes.view(f"u{codes.dtype.itemsize}")
        out, lost = table[number], lost_codes[number]
    else:
        out, lost = np.empty(codes.shape, wanted.dtype), np.empty(codes.shape, bool)
        parts = (x.reshape(-1) for x in (codes, out, lost))
        flat, flat_out, flat_lost = parts
        for start in range(0, flat.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            flat_out[part], flat_lost[part] = _recode_block(flat[part], found, wanted)
    if lost.any():
        code = codes[lost].flat[0]
        value = code * found.scale_factor + found.add_offset
        what = f"a value of {value:g} {channel.units}" if found.observed(code) else "a state of pixels"
        raise SchemaError(
            f"{channel.name} has {what} that the packing of the store ({_name(wanted)}) has no code for. Build a new "
            "store from all of the files: where their packings differ, it takes one that holds them all."
        )
    if out.dtype == codes.dtype and np.array_equal(out, codes):
        return out, ""
    return out, f"{channel.name}: {_describe(found, wanted, channel)}"


def _describe(found: Packing, wanted: Packing, channel: Channel) -> str:
    """Describe in words that codes are packed again, and the largest change of a value."""
    how = "exactly"
    if np.dtype(wanted.dtype).kind == "f":
        is_plain = (found.scale_factor, found.add_offset) == (1.0, 0.0)
        if not is_plain or np.dtype(found.dtype).itemsize > np.dtype(wanted.dtype).itemsize // 2:
            how = f"rounded to {wanted.dtype}"
    elif np.dtype(found.dtype).kind == "f" or not _is_multiple(found, wanted):
        how = f"with an error of at most {abs(wanted.scale_factor) / 2:g} {channel.units}"
    return f"packed again {how}, as {_name(wanted)}"  # equal for files whose own packings differ


def _name(packing: Packing) -> str:
    is_float = np.dtype(packing.dtype).kind == "f"
    return packing.dtype if is_float else f"{packing.dtype} in steps of {packing.scale_factor:g}"


def _is_multiple(found: Packing, wanted: Packing) -> bool:
    """Return whether every value of one integer packing is a value of the other."""
    steps = found.scale_factor / wanted.scale_factor
    shift = (found.add_offset - wanted.add_offset) / wanted.scale_factor
    return all(abs(x - round(x)) <= _SAME_STEP * max(1.0, abs(x)) for x in (steps, shift))


@functools.lru_cache(maxsize=16)
def _recoding_table(found: Packing, wanted: Packing) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the new code of each 8- or 16-bit code, by its unsigned value, and which codes have no
    counterpart.
    """
    dtype = np.dtype(found.dtype)
    return _recode_block(
        np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype), found, wanted
    )


def _recode_block(
    codes: npt.NDArray[Any], found: Packing, wanted: Packing
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the codes of the wanted packing, and where it has none."""
    missing, infinite = found.missing(codes), found.not_finite(codes)
    outside = found.out_of_valid_range(codes)
    with np.errstate(invalid="ignore", over="ignore"):
        values = codes.astype(np.float64) * found.scale_factor + found.add_offset
        if np.dtype(wanted.dtype).kind == "f":
            values[missing] = np.nan
            return values.astype(wanted.dtype), np.zeros(codes.shape, bool)
        limits = np.iinfo(wanted.dtype)
        steps = np.rint((values - wanted.add_offset) / wanted.scale_factor)
        is_code = (steps >= limits.min) & (steps <= limits.max) & ~missing & ~infinite
        out = np.where(is_code, steps, 0).astype(wanted.dtype)
    silent = found.observed(codes) & ~found.echo(codes)
    if found.no_echo is not None:
        silent |= codes == codes.dtype.type(found.no_echo)
    if wanted.no_echo is not None:
        silent |= is_code & ~outside & (out == out.dtype.type(wanted.no_echo))
    # Codes of states in the wanted packing are not values.
    states = [wanted.fill_value, wanted.no_echo, wanted.low_confidence, wanted.clutter, wanted.non_finite]
    names = np.array([s for s in (*states, wanted.out_of_range) if s is not None], wanted.dtype)
    is_code &= ~np.isin(out, names)
    outside |= ~(is_code & wanted.echo(out)) & ~missing & ~infinite & ~silent
    lost = np.zeros(codes.shape, bool)
    for where, code in (
        (missing, wanted.fill_value),
        (infinite, wanted.non_finite),
        (silent, wanted.no_echo),
    ):
        if code is None:
            lost |= where
        else:
            out[where] = code
    for name in ("low_confidence", "clutter"):
        mine, its = getattr(found, name), getattr(wanted, name)
        if mine is not None and its is not None:
            out[codes == codes.dtype.type(mine)] = its
    if wanted.out_of_range is not None:
        out[outside] = wanted.out_of_range
    else:  # the packing may have a code for values out of range
        lost |= outside & ~is_code
    return out, lost


def read_numbers(source: Source, name: str, key: Any = ...) -> npt.NDArray[np.float64]:
    """Return the values of a coordinate in float64, with scale and offset applied; NaN where they are
    missing.
    """
    variable, raw = source.variables[name], source.read(name, key)
    values = raw.view(_signedness(variable)).astype(np.float64)
    values[_is_missing(raw, variable)] = np.nan
    scale, offset = variable.scaling
    return values * scale + offset


def read_codes(source: Source, field: Field, levels: Sequence[int] = ()) -> npt.NDArray[Any]:
    """Read the codes of a field that is dense in its file, ``([altitude,] y, x)``.

    ``levels`` are positions along the altitudes of the field, in the requested order.
    """
    variable = source.variables[field.variable]
    raw = read_array(source, variable, field.dims, levels)
    if variable.dtype.kind != "f":
        packing = field.file_packing or field.packing
        codes = raw.view(_signedness(variable)).astype(packing.dtype, copy=False)
        for code in field.missing:
            codes[codes == codes.dtype.type(code)] = codes.dtype.type(packing.fill_value or 0)
        return recode(codes, packing, field.packing, field.channel)[0] if field.file_packing else codes
    if field.channel.kind != "other":
        return encode(raw, field.channel, variable, field.units)
    scale, offset = variable.scaling
    scaled = raw if (scale, offset) == (1.0, 0.0) else raw.astype(np.float64) * scale + offset
    values = scaled.astype(field.packing.dtype)
    values[_is_missing(raw, variable)] = np.nan
    return values


def read_array(
    source: Source, variable: Variable, dims: Sequence[str], levels: Sequence[int] = ()
) -> npt.NDArray[Any]:
    """Return the raw values of a variable on these dimensions of the file, ``([altitude,] y, x)``, in native
    byte order.

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
