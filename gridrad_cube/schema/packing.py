"""How codes stand for physical values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema.errors import SchemaError


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the codes of one variable stand for physical values.

    ``value = code * scale_factor + add_offset``. The other members are codes, compared for equality:
    a bin that was not observed (``fill_value``, the CF ``_FillValue``), one that was observed without
    echo, one whose echo quality control removed, one whose source value was not finite or lay outside
    the field's valid range. ``echo_minimum`` is the smallest code of an echo. Codes outside
    ``[valid_minimum, valid_maximum]`` are not data. With a float dtype the codes are the values.
    """

    dtype: str = "uint16"
    scale_factor: float = 1.0
    add_offset: float = 0.0
    fill_value: float | None = None
    valid_minimum: float | None = None
    valid_maximum: float | None = None
    no_echo: float | None = None
    low_confidence: float | None = None
    clutter: float | None = None
    out_of_range: float | None = None
    non_finite: float | None = None
    echo_minimum: float | None = None

    def missing(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Where nothing was observed (the fill code, or NaN in a float variable)."""
        codes = np.asarray(codes)
        out = np.isnan(codes) if codes.dtype.kind == "f" else np.zeros(codes.shape, bool)
        if self.fill_value is not None and not math.isnan(self.fill_value):
            out |= codes == self._code(self.fill_value)
        return out

    def out_of_valid_range(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Where a source value lay outside its valid range (not finite and missing ones apart)."""
        codes = np.asarray(codes)
        if self.out_of_range is not None and codes.dtype.kind != "f":
            return codes == self._code(self.out_of_range)
        out = np.zeros(codes.shape, bool)
        if self.valid_minimum is not None:
            out |= codes < self._code(self.valid_minimum)
        if self.valid_maximum is not None:
            out |= codes > self._code(self.valid_maximum)
        for special in (self.no_echo, self.low_confidence, self.clutter):
            if special is not None:
                out &= codes != self._code(special)
        return out & ~self.missing(codes) & ~self.not_finite(codes)

    def not_finite(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Where the source value was infinite."""
        codes = np.asarray(codes)
        if codes.dtype.kind == "f":
            return np.isinf(codes)
        if self.non_finite is None:
            return np.zeros(codes.shape, bool)
        return codes == self._code(self.non_finite)

    def observed(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Where the instrument looked and gave a value that may be used, echo or not."""
        codes = np.asarray(codes)
        return ~(self.missing(codes) | self.not_finite(codes) | self.out_of_valid_range(codes))

    def echo(self, codes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Where a measured value stands: an echo, or any observed pixel of a field without echoes."""
        codes = np.asarray(codes)
        out = self.observed(codes)
        if self.echo_minimum is not None:
            out &= codes >= self._code(self.echo_minimum)
        return out

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Physical values, float32; NaN where not observed. No-echo codes decode by the same formula."""
        codes = np.asarray(codes)
        values = codes.astype(np.float32)
        values *= np.float32(self.scale_factor)
        values += np.float32(self.add_offset)
        values[~self.observed(codes)] = np.nan
        return values

    def encode(self, values: npt.ArrayLike, *, no_echo: npt.ArrayLike | None = None) -> np.ndarray:
        """Codes of float values: NaN is not observed, infinities and values out of range get their codes.

        Parameters
        ----------
        values
            Physical values of any shape.
        no_echo
            Mask of observed bins without echo.
        """
        values = np.asarray(values, dtype=np.float64)
        if np.dtype(self.dtype).kind == "f":
            codes = values.astype(self.dtype)
        else:
            low, high = self._encodable()
            finite = np.isfinite(values)
            scaled = np.rint((np.where(finite, values, 0.0) - self.add_offset) / self.scale_factor)
            inside = (scaled >= low) & (scaled <= high)
            codes = np.where(inside, scaled, low).astype(self.dtype)
            if self.out_of_range is not None:
                codes[finite & ~inside] = self._code(self.out_of_range)
            if self.non_finite is not None:
                codes[np.isinf(values)] = self._code(self.non_finite)
            if self.fill_value is None and np.isnan(values).any():
                raise SchemaError("a value is missing but the packing has no fill_value; give it one")
            if self.fill_value is not None:
                codes[np.isnan(values)] = self._code(self.fill_value)
        if no_echo is not None:
            if self.no_echo is None:
                raise SchemaError("no_echo given for a packing that has no code for it")
            codes[np.asarray(no_echo, bool)] = self._code(self.no_echo)
        return codes

    def _encodable(self) -> tuple[float, float]:
        info = np.iinfo(self.dtype)
        low = self.echo_minimum if self.echo_minimum is not None else self.valid_minimum
        high = self.valid_maximum
        return (info.min if low is None else low), (info.max if high is None else high)

    def _code(self, value: float) -> Any:
        return np.dtype(self.dtype).type(value)

    def to_attributes(self) -> dict[str, Any]:
        """CF attributes (``scale_factor``, ``add_offset``, ``_FillValue``, ``valid_range``) and the codes."""
        kind = np.dtype(self.dtype).kind

        def number(value: float) -> int | float:
            return float(value) if kind == "f" else int(value)

        attributes: dict[str, Any] = {}
        if kind != "f":
            attributes |= {"scale_factor": self.scale_factor, "add_offset": self.add_offset}
            if self.fill_value is not None:
                attributes["_FillValue"] = number(self.fill_value)
        if self.valid_minimum is not None and self.valid_maximum is not None:
            attributes["valid_range"] = [number(self.valid_minimum), number(self.valid_maximum)]
        for name in _CODE_NAMES:
            value = getattr(self, name)
            if value is not None:
                attributes[f"{name}_code"] = number(value)
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], dtype: npt.DTypeLike) -> Self:
        """The packing that a variable's attributes describe (the inverse of `to_attributes`)."""
        valid = attributes.get("valid_range")
        codes = {name: attributes.get(f"{name}_code") for name in _CODE_NAMES}
        fill = attributes.get("_FillValue")
        return cls(
            dtype=np.dtype(dtype).name,
            scale_factor=float(attributes.get("scale_factor", 1.0)),
            add_offset=float(attributes.get("add_offset", 0.0)),
            fill_value=None if fill is None else _plain(fill),
            valid_minimum=None if valid is None else _plain(valid[0]),
            valid_maximum=None if valid is None else _plain(valid[1]),
            **{name: None if value is None else _plain(value) for name, value in codes.items()},
        )


_CODE_NAMES = ("no_echo", "low_confidence", "clutter", "out_of_range", "non_finite", "echo_minimum")


def _plain(value: Any) -> float:
    scalar = np.asarray(value).item()
    return int(scalar) if isinstance(scalar, int) else float(scalar)
