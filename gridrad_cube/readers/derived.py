"""Derive radar fields from reflectivity on altitudes, by its dense codes.

Nothing here averages or interpolates. Missing, no-echo and removed bins keep different codes
(`gridrad_cube.schema.Packing`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import CHANNELS, Packing

_Codes = npt.NDArray[Any]


def derive(
    name: str, codes: _Codes, altitudes_km: npt.ArrayLike, echo_top_dbz: float, packing: Packing
) -> _Codes:
    """Return the codes ``(y, x)`` of a channel of `gridrad_cube.selection.DERIVED`.

    ``reflectivity_column_maximum`` has the packing of reflectivity, ``echo_top_height`` its own.

    Parameters
    ----------
    codes
        Reflectivity ``(altitude, y, x)``, altitudes ascending, with a positive scale factor.
    altitudes_km
        Altitude of every level above mean sea level.
    echo_top_dbz
        Smallest reflectivity of an echo top, dBZ.
    packing
        Packing of ``codes``.
    """
    if name == "reflectivity_column_maximum":
        return _column_maximum(codes, packing)
    return _echo_top_height(codes, np.asarray(altitudes_km, np.float64), echo_top_dbz, packing)


def _column_maximum(codes: _Codes, packing: Packing) -> _Codes:
    """Return the largest code of every column. A column is "not observed" only if every level is.

    A column with an echo gets its strongest echo. A column without an echo gets the largest code of its
    states, so that
    it shows if quality control removed an echo. Codes out of the valid range never replace an echo.
    """
    if _is_ordered(packing, codes.dtype):
        return np.asarray(codes.max(axis=0))
    best = codes[0].copy()
    rank = _rank(best, packing)
    for level in codes[1:]:
        level_rank = _rank(level, packing)
        better = (level_rank > rank) | ((level_rank == rank) & (level > best))
        best[better], rank[better] = level[better], level_rank[better]
    return best


def _is_ordered(packing: Packing, dtype: np.dtype[Any]) -> bool:
    """Return whether codes are ordered by state: missing lowest, echoes above every other state."""
    if dtype.kind == "f" or packing.fill_value != (0 if dtype.kind == "u" else np.iinfo(dtype).min):
        return False
    if packing.out_of_range is None and (packing.valid_minimum, packing.valid_maximum) != (None, None):
        return False
    states = (
        packing.no_echo,
        packing.low_confidence,
        packing.clutter,
        packing.out_of_range,
        packing.non_finite,
    )
    known = [state for state in states if state is not None]
    return not known or (packing.echo_minimum is not None and max(known) < packing.echo_minimum)


def _rank(codes: _Codes, packing: Packing) -> npt.NDArray[np.uint8]:
    """Return 0 for not observed, 1 for not usable, 2 for observed without echo, 3 for echo."""
    states = [packing.missing(codes), packing.echo(codes), packing.observed(codes)]
    return np.select(states, [np.uint8(0), np.uint8(3), np.uint8(2)], np.uint8(1))


def _echo_top_height(
    codes: _Codes, heights: npt.NDArray[np.float64], threshold_dbz: float, packing: Packing
) -> _Codes:
    """Return the height of the highest level at or above a threshold that has echo at the two levels below
    it.

    This is the definition of GridRad's own viewer (gridrad.org). The condition on two levels excludes single
    high bins,
    so the two lowest levels are never a top. Levels are those of the volume, with any spacing. Bins that were
    not
    observed above a top may hide a higher one. A column gets the no-echo code if it was observed but has no
    top, and the
    fill code if no level was observed.
    """
    top = CHANNELS["echo_top_height"].packing
    assert top.fill_value is not None
    assert top.no_echo is not None
    threshold = threshold_dbz
    if codes.dtype.kind != "f":
        threshold = round((threshold_dbz - packing.add_offset) / packing.scale_factor)
    out = np.full(codes.shape[1:], top.fill_value, top.dtype)
    below, two_below = np.zeros(out.shape, bool), np.zeros(out.shape, bool)
    for level, code in zip(
        codes, top.encode(heights), strict=True
    ):  # upwards: a higher top replaces a lower one
        echo = packing.echo(level)
        out[packing.observed(level) & (out == top.fill_value)] = top.no_echo
        out[echo & (level >= threshold) & below & two_below] = code
        below, two_below = echo, below
    return out
