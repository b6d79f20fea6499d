"""Compute statistics of patches from packed codes.

Sums of 8- and 16-bit codes and of their squares are exact (integers in float64, below 2**53), so the
statistics do not depend on how pixels are chunked, ordered or summed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gridrad_cube.schema import HISTOGRAM_BINS, Channel, Flag, Packing, SchemaError, statistics_of

#: Smallest rain rate in logarithms, mm/h: the step of the packing.
LEAST_RAIN = 0.01
_Curve = Literal["power", "log10", "none"]
#: Lines thicker than this part of the patch are not dead lines, but a field.
_THICKEST = 0.25
#: Variation of the nearest line over that of the next: 0.5 beside a level line of a smooth field, 1 beside a
#: dead line.
_AT_ONCE = 0.75
#: A value has jumped if it is this many times further from the nearest line than that is from the next.
_JUMP = 4.0
_DATA, _NO_ECHO, _MISSING, _OUT_OF_RANGE, _NON_FINITE = range(5)
_FLAG_OF = {
    _MISSING: Flag.some_missing, _OUT_OF_RANGE: Flag.out_of_valid_range, _NON_FINITE: Flag.non_finite,
}  # fmt: skip


def patch_statistics(
    codes: np.ndarray, packing: Packing, channel: Channel, patch: int
) -> dict[str, np.ndarray]:
    """Compute the statistics of every patch of a crop.

    Over the patch's data pixels: observed ones and, for channels with echoes (radar and rain), those with an
    echo. `std` is that of a population. In a patch without data pixels everything but fractions is NaN.

    Parameters
    ----------
    codes
        Packed pixels ([altitude,] height, width), whole patches high and wide.
    packing
        Packing of the codes. A float variable without a valid range has the range of the channel's own
        packing.
    channel
        The channel.
    patch
        Edge of a patch in pixels.

    Returns
    -------
    float32 arrays ([altitude,] row, col):

    - ``valid_fraction``: observed pixels, echo or not, over all pixels of the patch, padding among them;
    - ``mean``, ``std``, ``minimum``, ``maximum`` in the channel's units;
    - ``dead_lines``: rows and columns that repeat one value in a field that varies (below); not of
      channels of kind ``other``;
    - channels with echoes: ``echo_fraction``, echo pixels over observed pixels (NaN if none is); and
      ``mean_linear``, for dBZ ``10 log10(mean(10 ** (dBZ / 10)))`` over echo pixels. Where the unit is not
      dBZ (rain, echo-top height and all others) it is the plain mean again;
    - rain: ``mean_log10`` and ``std_log10``, those of the decimal logarithm of mm/h;

    and ``pixel_flags``, uint16: the bits that pixels alone decide (``some_missing``, ``all_missing``,
    ``out_of_valid_range``, ``non_finite``, ``constant``, ``no_echo``).

    Raises
    ------
    SchemaError
        If the codes are not whole patches, or of another dtype than the packing's.
    """
    if codes.dtype.newbyteorder("=") != np.dtype(packing.dtype):
        raise SchemaError(f"codes: got {codes.dtype}; expected {packing.dtype}, as the packing says")
    codes = codes.astype(packing.dtype, copy=False)
    *lead, height, width = codes.shape
    if height % patch or width % patch:
        raise SchemaError(
            f"codes: got {height} x {width} px; expected whole patches of {patch} px. Cut them with tiling.cut()."
        )
    shape = (*lead, height // patch, width // patch)
    packing = _with_valid_range(packing, channel)
    curve: _Curve = "power" if channel.units == "dBZ" else "log10" if channel.kind == "rain" else "none"
    table = _table(packing, curve) if codes.dtype.kind in "iu" and codes.dtype.itemsize <= 2 else None
    out = {name: np.full(shape, np.nan, np.float32) for name in statistics_of(channel)}
    work = _Work(packing, table, channel.has_echo, "dead_lines" in out, curve, np.empty((patch, patch)))
    out["pixel_flags"] = np.zeros(shape, np.uint16)
    for level in np.ndindex(*lead):
        for row in range(shape[-2]):
            band = codes[(*level, slice(row * patch, (row + 1) * patch))]
            for col, sums in enumerate(work.sum_band(band, patch)):
                found = work.finish(sums, patch * patch)
                for name, values in out.items():
                    values[(*level, row, col)] = found[name]
    return out


def clean_histogram(codes: np.ndarray, packing: Packing, channel: Channel, clean: np.ndarray) -> np.ndarray:
    """Count the data pixels of clean patches over the channel's typical range.

    Parameters
    ----------
    codes
        As for `patch_statistics`.
    packing
        Packing of the codes.
    channel
        The channel.
    clean
        bool ([altitude,] row, col): the patches to count.

    Returns
    -------
    int64 ([altitude,] `HISTOGRAM_BINS`). Values outside of the range are in no bin.
    """
    *lead, height, width = codes.shape
    patch = height // clean.shape[-2]
    edges = np.linspace(*channel.typical_range, HISTOGRAM_BINS + 1)
    out = np.zeros((*lead, HISTOGRAM_BINS), np.int64)
    for level in np.ndindex(*lead):
        bands = codes[level].reshape(-1, patch, width // patch, patch)
        chosen = (band[:, keep] for band, keep in zip(bands, clean[level], strict=True) if keep.any())
        if codes.dtype.kind in "iu" and codes.dtype.itemsize <= 2:
            parts = [_count_codes(chosen, codes.dtype)]
        else:
            parts = [(band, np.ones(band.shape, np.int64)) for band in chosen]
        for values, counts in parts:
            data = packing.echo(values)
            physical = values[data] * packing.scale_factor + packing.add_offset
            out[level] += np.histogram(physical, edges, weights=counts[data])[0]
    return out


def _count_codes(bands: Iterable[np.ndarray], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct 8- or 16-bit codes and how often they occur."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    counts = np.zeros(2 ** (8 * dtype.itemsize), np.int64)
    for band in bands:
        counts += np.bincount(band.reshape(-1).view(unsigned), minlength=counts.size)
    present = np.flatnonzero(counts)
    return present.astype(unsigned).view(dtype), counts[present]


@dataclass(frozen=True)
class _Table:
    """What each code of an 8- or 16-bit packing is, by its unsigned value."""

    kinds: np.ndarray
    low: int  # codes from low to high are all data
    high: int
    curve: np.ndarray | None  # of `_curve`


@functools.lru_cache(maxsize=64)
def _table(packing: Packing, shape: _Curve) -> _Table:
    dtype = np.dtype(packing.dtype)
    info = np.iinfo(dtype)
    codes = np.arange(info.min, info.max + 1, dtype=np.int64).astype(dtype)
    kinds = _kinds(codes, packing)
    edges = np.flatnonzero(np.diff(np.r_[False, kinds == _DATA, False]))
    runs = edges.reshape(-1, 2).tolist()
    first, stop = max(runs, key=lambda run: run[1] - run[0], default=(1, 1))
    order = np.argsort(codes.view(f"u{dtype.itemsize}"), kind="stable")
    physical = codes[order].astype(np.float64) * packing.scale_factor + packing.add_offset
    return _Table(kinds[order], first + info.min, stop - 1 + info.min, _curve(physical, shape))


def _kinds(codes: np.ndarray, packing: Packing) -> np.ndarray:
    kinds = np.full(codes.shape, _NO_ECHO, np.uint8)
    kinds[packing.echo(codes)] = _DATA
    kinds[packing.out_of_valid_range(codes)] = _OUT_OF_RANGE
    kinds[packing.not_finite(codes)] = _NON_FINITE
    kinds[packing.missing(codes)] = _MISSING
    return kinds


def _curve(physical: np.ndarray, shape: _Curve) -> np.ndarray | None:
    """Return the linear reflectivity of dBZ, logarithm of rain."""
    if shape == "power":
        with np.errstate(over="ignore"):  # values that no radar gives
            return np.asarray(10.0 ** (physical / 10.0))
    return np.log10(np.maximum(physical, LEAST_RAIN)) if shape == "log10" else None


def _with_valid_range(packing: Packing, channel: Channel) -> Packing:
    own = channel.packing
    low = own.valid_minimum if own.echo_minimum is None else own.echo_minimum
    is_float, own_float = (np.dtype(p.dtype).kind == "f" for p in (packing, own))
    has_range = packing.valid_minimum is not None or packing.valid_maximum is not None
    if not is_float or has_range or own_float or low is None:  # own_float: the source states no range
        return packing
    high = np.iinfo(own.dtype).max if own.valid_maximum is None else own.valid_maximum
    low, high = (code * own.scale_factor + own.add_offset for code in (low, high))
    return replace(packing, valid_minimum=low, valid_maximum=min(high, channel.physical_maximum))


@dataclass
class _Sums:
    """Counts, and mean, deviation and extremes of the data pixels in codes."""

    data: int = 0
    observed: int = 0
    flags: int = 0
    mean: float = np.nan
    std: float = np.nan
    low: float = np.nan
    high: float = np.nan
    curve_mean: float = np.nan
    curve_std: float = np.nan
    dead_lines: float = np.nan


@dataclass(frozen=True)
class _Work:
    """How patches of one variable are summed, with a buffer for one patch."""

    packing: Packing
    table: _Table | None
    has_echo: bool
    looks_for_lines: bool
    shape: _Curve
    buffer: np.ndarray

    def sum_band(self, band: np.ndarray, patch: int) -> Iterator[_Sums]:
        """Yield the sums of the patches of a band of pixels one patch high."""
        cells = [band[:, start : start + patch] for start in range(0, band.shape[1], patch)]
        if self.table is None:
            yield from map(self.plain, cells)
            return
        # Down the columns first: whole rows of the band at a time, which processors do in parallel.
        low = band.min(axis=0).reshape(-1, patch).min(axis=1).tolist()
        high = band.max(axis=0).reshape(-1, patch).max(axis=1).tolist()
        yield from map(self.exact, cells, low, high)

    def exact(self, pixels: np.ndarray, low: int, high: int) -> _Sums:
        """Sum a patch of 8- or 16-bit codes whose smallest and largest code are known."""
        table = self.table
        assert table is not None
        unsigned = pixels.view(f"u{pixels.dtype.itemsize}")
        if low == high:
            kind, size = int(table.kinds[unsigned[0, 0]]), pixels.size
            if kind != _DATA:
                return _Sums(observed=size * (kind == _NO_ECHO), flags=int(_FLAG_OF.get(kind, 0)))
            curve = math.nan if table.curve is None else float(table.curve[unsigned[0, 0]])
            return _Sums(size, size, 0, low, 0.0, low, low, curve, 0.0, 0.0)
        if table.low <= low and high <= table.high:
            sums = self._moments(pixels, None)
            sums.observed, is_data, kinds = pixels.size, ..., None
        else:
            kinds = np.take(table.kinds, unsigned)
            is_data = kinds == _DATA
            sums = self._moments(pixels, is_data)
            self._count(sums, kinds)
            limits = np.iinfo(pixels.dtype)
            low = int(np.where(is_data, pixels, pixels.dtype.type(limits.max)).min())
            high = int(np.where(is_data, pixels, pixels.dtype.type(limits.min)).max())
        if sums.data:
            sums.low, sums.high = low, high
            self._add(sums, pixels, kinds, None if table.curve is None else table.curve[unsigned[is_data]])
        return sums

    def _moments(self, pixels: np.ndarray, is_data: np.ndarray | None) -> _Sums:
        """Return the count, mean and population deviation of integers, exact up to the last division."""
        count = pixels.size if is_data is None else int(np.count_nonzero(is_data))
        sums = _Sums(data=count)
        if count:
            values = self.buffer
            np.copyto(values, pixels)
            if is_data is not None:
                values *= is_data
            # Down the columns, which processors do several at a time, and not by a BLAS product: its threads
            # would fight with those of other workers over a core.
            total = int(values.sum(axis=0).astype(np.int64).sum())
            squares = int(np.einsum("ij,ij->j", values, values).astype(np.int64).sum())
            sums.mean = total / count
            sums.std = math.sqrt(count * squares - total * total) / count
        return sums

    def plain(self, pixels: np.ndarray) -> _Sums:
        """Sum a patch of wide integers or floats, in float64."""
        kinds = _kinds(pixels, self.packing)
        values = pixels[kinds == _DATA].astype(np.float64)
        sums = _Sums(data=values.size)
        self._count(sums, kinds)
        if values.size:
            sums.low, sums.high = float(values.min()), float(values.max())
            with np.errstate(over="ignore", invalid="ignore"):
                away = values - sums.low
                sums.mean, sums.std = sums.low + float(away.mean()), float(away.std())
            physical = values * self.packing.scale_factor + self.packing.add_offset
            self._add(sums, pixels, kinds, _curve(physical, self.shape))
        return sums

    def finish(self, sums: _Sums, pixels: int) -> dict[str, float]:
        """Return the physical statistics of a patch, and its flags."""
        scale, offset = self.packing.scale_factor, self.packing.add_offset
        flags = sums.flags | (0 if sums.observed else Flag.all_missing)
        if self.has_echo and sums.observed and not sums.data:
            flags |= Flag.no_echo
        if sums.data == sums.observed >= 2 and sums.low == sums.high:
            flags |= Flag.constant
        mean = linear = sums.mean * scale + offset
        if self.shape == "power" and sums.data:
            linear = 10.0 * math.log10(sums.curve_mean)
        low, high = sorted((sums.low * scale + offset, sums.high * scale + offset))
        return {
            "valid_fraction": sums.observed / pixels,
            "mean": mean,
            "std": sums.std * abs(scale),
            "minimum": low,
            "maximum": high,
            "dead_lines": sums.dead_lines,
            "echo_fraction": sums.data / sums.observed if sums.observed else np.nan,
            "mean_linear": linear,
            "mean_log10": sums.curve_mean,
            "std_log10": sums.curve_std,
            "pixel_flags": int(flags),
        }

    def _add(
        self, sums: _Sums, pixels: np.ndarray, kinds: np.ndarray | None, curve: np.ndarray | None
    ) -> None:
        """Add what needs more than counts and moments of the data pixels."""
        if curve is not None:
            sums.curve_mean = float(curve.mean())
            sums.curve_std = float(curve.std()) if self.shape == "log10" else math.nan
        sums.dead_lines = self._dead_lines(pixels, kinds)

    def _count(self, sums: _Sums, kinds: np.ndarray) -> None:
        sums.observed = sums.data + int(np.count_nonzero(kinds == _NO_ECHO))
        sums.flags |= sum(int(flag) for kind, flag in _FLAG_OF.items() if np.any(kinds == kind))

    def _dead_lines(self, pixels: np.ndarray, kinds: np.ndarray | None) -> float:
        observed, data = (None, None) if kinds is None else (kinds <= _NO_ECHO, kinds == _DATA)
        if not self.looks_for_lines or not _may_hold_dead_line(pixels, observed, data):
            return 0.0
        # Two steps of the packing: nearer values may differ by rounding alone.
        step = 1.0
        if pixels.dtype.kind == "f":
            step = float(np.finfo(pixels.dtype).eps) * float(np.abs(pixels[data]).max())
        return float(_count_dead_lines(pixels.astype(np.float64), observed, data, 2.0 * step))


# --- dead lines
#
# A lost scan line is often filled with a constant. It differs from a level line of a smooth field, which can be flat
# as well: in a smooth field the variation along neighboring lines grows gradually from a flat line (twice as far, at
# least half as much again); beside a dead line it is back at once, or the value jumps.


def _may_hold_dead_line(pixels: np.ndarray, observed: np.ndarray | None, data: np.ndarray | None) -> bool:
    """Return whether some eight samples of a row or column are equal: a quick test before
    `_count_dead_lines`.

    Takes what `_count_dead_lines` takes.
    """
    for turn in (np.asarray, np.transpose):
        view = turn(pixels)
        every = slice(None, None, max(1, (len(view) - 1) // 7))
        sample = np.ascontiguousarray(view[every])
        if observed is None or data is None:
            if (sample == sample[0]).all(axis=0).any():
                return True
            continue
        seen = turn(observed)[every]
        first, lines = seen.argmax(axis=0), np.arange(view.shape[1])
        may = ((sample == sample[first, lines]) | ~seen).all(axis=0)
        may &= turn(data)[every][first, lines] | ~seen.any(axis=0)
        if may.any() and (may & (2 * turn(observed).sum(axis=0) >= len(view))).any():
            return True
    return False


def _count_dead_lines(
    pixels: np.ndarray, observed: np.ndarray | None, data: np.ndarray | None, tolerance: float
) -> int:
    """Count the dead rows and columns of a patch.

    A line is dead if at least half of it is observed, all that is observed are data of one value, at most a
    quarter of the patch lies in one run of such lines, and beside the run the field is another one: most of the
    nearest line differs from the value by more than ``tolerance``, and either it varies about as much as the
    line after it, or the value jumps against it.

    Parameters
    ----------
    pixels
        One patch, float64.
    observed, data
        Where pixels are observed, and where they are data too (an echo); ``None`` for everywhere.
    tolerance
        Differences up to this one may be rounding.
    """
    observed, data = (np.ones(pixels.shape, bool) if mask is None else mask for mask in (observed, data))
    return _dead_rows(pixels, observed, data, tolerance) + _dead_rows(pixels.T, observed.T, data.T, tolerance)


def _dead_rows(pixels: np.ndarray, observed: np.ndarray, data: np.ndarray, tolerance: float) -> int:
    values = np.where(observed, pixels, np.nan)
    low = np.where(observed, pixels, np.inf).min(axis=1)
    high = np.where(observed, pixels, -np.inf).max(axis=1)
    flat = (low == high) & data.any(axis=1) & (2 * observed.sum(axis=1) >= pixels.shape[1])
    if flat.all():
        return 0
    dead = 0
    for start, stop in _runs(np.where(flat, low, np.nan)):
        if stop - start > max(1, _THICKEST * len(flat)):
            continue
        sides = ((start, start - 1, start - 2), (stop - 1, stop, stop + 1))
        inside = [side for side in sides if min(side) >= 0 and max(side) < len(flat)]
        if any(_breaks_off(low[line], values[near], values[far], tolerance) for line, near, far in inside):
            dead += stop - start
    return dead


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return start and stop of each run of one value; NaN is in no run."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return ((a, b) for a, b in itertools.pairwise(bounds) if not np.isnan(values[a]))


def _breaks_off(value: float, near: np.ndarray, far: np.ndarray, tolerance: float) -> bool:
    away, onward, roughness, further = (
        np.abs(x[np.isfinite(x)]) for x in (near - value, near - far, np.diff(near), np.diff(far))
    )
    if 2 * min(away.size, onward.size) < near.size or not roughness.size or not further.size:
        return False
    distance = np.median(away)
    if not distance > tolerance:
        return False
    spread = np.nanmax(near) - np.nanmin(near)
    at_once = spread > 2 * tolerance and roughness.mean() >= _AT_ONCE * further.mean()
    return bool(at_once or distance > max(2 * tolerance, _JUMP * np.median(onward)))
