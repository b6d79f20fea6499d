"""From the numbers of a file to the packed codes of a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.files import Source, Variable, number
from gridrad_cube.schema import Channel, Packing, SchemaError

#: What MRMS and its kin write for "observed, no echo", in the channel's units (dBZ, km).
NO_ECHO_VALUE = -99.0
#: Radar floats at or below this stand for missing data (-999, -9999), declared or not.
UNDECLARED_MISSING = -990.0
#: What netCDF means by a value that was never written. Bytes have none: every code of theirs may be data.
DEFAULT_FILL = {
    "int16": -32767, "uint16": 65535, "int32": -2147483647, "uint32": 4294967295,
    "int64": -9223372036854775806, "uint64": 18446744073709551614,
    "float32": 9.969209968386869e36, "float64": 9.969209968386869e36,
}  # fmt: skip
#: What stands for missing where a file does not say it: a bin of GridRad that no sweep looked at.
_UNDECLARED_FILL = {"Nradobs": 0}
#: One-byte variables without a fill code are widened to make room for one; their codes stay.
_WIDENED = {"uint8": ("uint16", 65535), "int8": ("int16", -32768)}
_BLOCK = 2**20


@dataclass(frozen=True)
class Field:
    """Codes of one channel on ``(y, x)`` or ``(altitude, y, x)``, and what they mean."""

    codes: npt.NDArray[Any]
    packing: Packing


def field_packing(
    variable: Variable, channel: Channel, units: tuple[float, float], where: str
) -> tuple[Packing, list[int]]:
    """The packing of a source variable as a channel, and the further codes that mean missing.

    Float variables take the channel's own packing. Integer variables keep dtype and codes; the conversion of
    units is composed into scale and offset. Radar (dBZ, km) and rain get their no-echo code: that of -99,
    and that of zero rain. Where they declare no valid range, codes below it are out of range.

    Parameters
    ----------
    units
        Factor and offset to the channel's units (`gridrad_cube.readers.units.conversion`).
    """
    if variable.dtype.kind == "f":
        return channel.packing, []
    dtype = _signedness(variable)
    attributes = variable.attributes
    scale, offset = _scaling(attributes, where)
    fills = [
        f for f in (number(attributes, n, where) for n in ("_FillValue", "missing_value")) if f is not None
    ]
    codes = [code for code in (_as_code(f, variable, dtype) for f in fills) if code is not None]
    low, high = _valid_codes(variable, dtype, scale, offset, where)
    if not codes and variable.name in _UNDECLARED_FILL:
        codes = [_UNDECLARED_FILL[variable.name]]
    if not codes and dtype.name in _WIDENED:
        name, fill = _WIDENED[dtype.name]
        dtype, codes = np.dtype(name), [fill]
    packing = Packing(
        dtype=dtype.name,
        scale_factor=_tidy(scale * units[0]),
        add_offset=_tidy(offset * units[0] + units[1]),
        fill_value=codes[0] if codes else DEFAULT_FILL[dtype.name],
        valid_minimum=low,
        valid_maximum=high,
    )
    return _with_echo_codes(packing, channel, where), codes[1:]


def _scaling(attributes: Mapping[str, Any], where: str) -> tuple[float, float]:
    scale = number(attributes, "scale_factor", where)
    offset = number(attributes, "add_offset", where)
    scale, offset = (1.0 if scale is None else scale), (0.0 if offset is None else offset)
    if not (np.isfinite(scale) and np.isfinite(offset) and scale != 0):
        raise SchemaError(f"{where}: scale_factor {scale} and add_offset {offset}; expected finite, not zero")
    return scale, offset


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


def _valid_codes(
    variable: Variable, dtype: np.dtype[Any], scale: float, offset: float, where: str
) -> tuple[int | None, int | None]:
    attributes = variable.attributes
    pair = np.asarray(attributes.get("valid_range", []))
    if pair.size not in (0, 2) or pair.dtype.kind not in "iuf":
        raise SchemaError(f"{where}: attribute 'valid_range' is {pair.tolist()!r}; expected two numbers")
    bounds: list[float | None] = [float(v) for v in pair]
    bounds = bounds or [number(attributes, n, where) for n in ("valid_min", "valid_max")]
    if all(bound is None for bound in bounds):
        return None, None
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


def _with_echo_codes(packing: Packing, channel: Channel, where: str) -> Packing:
    if channel.kind not in ("radar", "rain"):
        return packing
    if packing.scale_factor < 0:
        raise SchemaError(
            f"{where}: scale_factor {packing.scale_factor}; expected a positive one for {channel.name}"
        )
    no_echo_value = NO_ECHO_VALUE if channel.kind == "radar" else 0.0
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
    *,
    attributes: Mapping[str, Any] | None = None,
    units: tuple[float, float] = (1.0, 0.0),
    where: str = "",
) -> npt.NDArray[Any]:
    """Codes of float values by the channel's own packing, block by block.

    Declared fills, netCDF's default fill and NaN are not observed. For dBZ and echo tops -99 and less is
    observed without echo and -990 and less (-999, -9999) not observed; rain that rounds to nothing is no
    echo, negative rain out of range. A declared valid range is applied.
    """
    attributes = attributes or {}
    scale, offset = _scaling(attributes, where)
    fills = [number(attributes, n, where) for n in ("_FillValue", "missing_value")]
    fills = [f for f in (*fills, DEFAULT_FILL[values.dtype.name]) if f is not None and np.isfinite(f)]
    valid = _valid_values(attributes, where)
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


def _valid_values(attributes: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    pair = np.asarray(attributes.get("valid_range", []))
    if pair.size == 2 and pair.dtype.kind in "iuf":
        return float(pair[0]), float(pair[1])
    return number(attributes, "valid_min", where), number(attributes, "valid_max", where)


def _encode_block(block: npt.NDArray[np.float64], channel: Channel) -> npt.NDArray[Any]:
    packing = channel.packing
    with np.errstate(invalid="ignore", over="ignore"):
        if channel.kind == "radar":
            block[np.isfinite(block) & (block <= UNDECLARED_MISSING)] = np.nan
            return packing.encode(block, no_echo=np.isfinite(block) & (block <= NO_ECHO_VALUE))
        if channel.kind == "rain":
            return packing.encode(block, no_echo=(block >= 0.0) & (block < packing.scale_factor / 2))
        return packing.encode(block)


def read_field(
    source: Source,
    name: str,
    channel: Channel,
    units: tuple[float, float],
    dims: Sequence[str],
    levels: Sequence[int] | None = None,
    *,
    spans: Sequence[slice] | None = None,
) -> Field:
    """Read one variable as a channel. See `read_array` for what is read of it.

    Parameters
    ----------
    units
        Factor and offset to the channel's units.
    """
    variable = source.variables[name]
    where = f"{source.path}: variable {name!r}"
    packing, missing = field_packing(variable, channel, units, where)
    raw = read_array(source, variable, dims, levels, spans=spans)
    if variable.dtype.kind == "f":
        return Field(encode(raw, channel, attributes=variable.attributes, units=units, where=where), packing)
    codes = raw.view(_signedness(variable))
    if codes.dtype.name != packing.dtype:
        codes = codes.astype(packing.dtype)
    for code in missing:
        codes[codes == codes.dtype.type(code)] = codes.dtype.type(packing.fill_value or 0)
    return Field(codes, packing)


def read_array(
    source: Source,
    variable: Variable,
    dims: Sequence[str],
    levels: Sequence[int] | None = None,
    *,
    spans: Sequence[slice] | None = None,
) -> npt.NDArray[Any]:
    """Raw values of a variable, in native byte order.

    Parameters
    ----------
    dims
        Source dimensions in the order wanted, ``(y, x)`` or ``(altitude, y, x)``. Others, of length one, are
        dropped.
    levels
        Positions along the first of three ``dims``, in the order wanted; all by default.
    spans
        Part of each of ``dims`` to read, in place of ``levels``.

    Raises
    ------
    SchemaError
        If the variable lies on other dimensions, or its bytes cannot be read.
    """
    extra = {d: n for d, n in zip(variable.dims, variable.shape, strict=True) if d not in dims}
    if not set(dims) <= set(variable.dims) or any(n != 1 for n in extra.values()):
        raise SchemaError(
            f"{source.path}: variable {variable.name!r} lies on {variable.dims} {variable.shape}; expected "
            f"{tuple(dims)}, with one time. Split a file of several times: ds.isel(time=[i]).to_netcdf(...)."
        )
    kept = [d for d in variable.dims if d in dims]
    order = [kept.index(d) for d in dims]

    def read(parts: Mapping[str, slice]) -> npt.NDArray[Any]:
        key = tuple(0 if d in extra else parts.get(d, slice(None)) for d in variable.dims)
        return np.ascontiguousarray(source.read(variable.name, key).transpose(order))

    if spans is not None:
        return read(dict(zip(dims, spans, strict=True)))
    if levels is None or len(dims) == 2:
        return read({})
    if list(levels) == list(range(levels[0], levels[0] + len(levels))):
        return read({dims[0]: slice(levels[0], levels[0] + len(levels))})
    return np.concatenate([read({dims[0]: slice(level, level + 1)}) for level in levels])


def float_field(raw: npt.NDArray[Any], variable: Variable, where: str) -> Field:
    """A field that keeps its floats, float32 or float64: NaN where the file declares or defaults to missing.

    The valid range that the file declares is kept, not applied.
    """
    scale, offset = _scaling(variable.attributes, where)
    dtype = np.dtype("float64" if variable.dtype.itemsize == 8 else "float32")
    values = raw.astype(dtype)
    if (scale, offset) != (1.0, 0.0):
        values = (raw.astype(np.float64) * scale + offset).astype(dtype)
    fills = [number(variable.attributes, n, where) for n in ("_FillValue", "missing_value")]
    for fill in (*fills, DEFAULT_FILL.get(variable.dtype.name)):
        if fill is not None and np.isfinite(fill):
            values[raw == raw.dtype.type(fill)] = np.nan
    bounds = [None if b is None else b * scale + offset for b in _valid_values(variable.attributes, where)]
    low, high = bounds if scale > 0 else bounds[::-1]
    return Field(values, Packing(dtype=dtype.name, valid_minimum=low, valid_maximum=high))
