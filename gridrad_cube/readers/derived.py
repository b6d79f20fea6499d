"""Radar fields computed from reflectivity on altitudes. Pure functions of dense codes.

Nothing here averages or interpolates. Missing, no-echo and removed bins stay apart by their codes
(`gridrad_cube.schema.Packing`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import CHANNELS, Packing, SchemaError

_Codes = npt.NDArray[Any]


def _is_ordered(packing: Packing, dtype: np.dtype[Any]) -> bool:
    """Whether a larger code always says more: missing lowest, echo above every other state."""
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


def derive(
    name: str, codes: _Codes, altitudes_km: npt.ArrayLike, echo_top_dbz: float, packing: Packing
) -> _Codes:
    """A channel of `gridrad_cube.selection.DERIVED` from reflectivity ``(altitude, y, x)``, altitudes ascending."""
    if name == "reflectivity_column_maximum":
        return column_maximum(codes, packing)
    return echo_top_height(codes, altitudes_km, echo_top_dbz, packing)


def column_maximum(codes: _Codes, packing: Packing) -> _Codes:
    """Largest code of every column: not observed only where every level is.

    A column with an echo has its strongest; one without has the largest of its states, so that a column
    whose echo was removed by quality control says so. Codes out of the valid range never win over an echo.

    Parameters
    ----------
    codes
        ``(altitude, y, x)``.

    Returns
    -------
    ``(y, x)``, same dtype and packing.

    Raises
    ------
    SchemaError
        If the packing's scale is negative, so that the largest code is not the largest value.
    """
    if packing.scale_factor <= 0:
        raise SchemaError(f"packing: scale_factor {packing.scale_factor}; expected a positive one")
    if _is_ordered(packing, codes.dtype):
        return np.asarray(codes.max(axis=0))
    best = codes[0].copy()
    rank = _rank(best, packing)
    for level in codes[1:]:
        level_rank = _rank(level, packing)
        better = (level_rank > rank) | ((level_rank == rank) & (level > best))
        best[better], rank[better] = level[better], level_rank[better]
    return best


def _rank(codes: _Codes, packing: Packing) -> npt.NDArray[np.uint8]:
    """0 not observed, 1 not usable, 2 observed without echo, 3 echo."""
    states = [packing.missing(codes), packing.echo(codes), packing.observed(codes)]
    return np.select(states, [np.uint8(0), np.uint8(3), np.uint8(2)], np.uint8(1))


def echo_top_height(
    codes: _Codes, altitudes_km: npt.ArrayLike, threshold_dbz: float, packing: Packing
) -> _Codes:
    """Height of the highest level at or above a threshold that has echo at the two levels below it.

    The definition of GridRad's own viewer (gridrad.org): the two levels below keep lone high bins from
    making tops, so that the two lowest levels are never a top. Levels are those of the volume, whatever
    their spacing. Bins that were not observed above a top may hide a higher one.

    Parameters
    ----------
    codes
        Reflectivity ``(altitude, y, x)``, altitudes ascending.
    altitudes_km
        Altitude of every level above mean sea level.
    threshold_dbz
        Smallest reflectivity of a top, dBZ.
    packing
        That of ``codes``.

    Returns
    -------
    ``(y, x)``, uint16 codes of the channel ``echo_top_height``: its no-echo code where the column was
    observed but has no top, its fill code where no level was observed.

    Raises
    ------
    SchemaError
        If altitudes do not ascend or do not fit the codes.
    """
    heights = np.asarray(altitudes_km, np.float64)
    if heights.shape != codes.shape[:1] or not (np.diff(heights) > 0).all():
        raise SchemaError(
            f"altitudes: got {heights.tolist()} for {codes.shape[0]} levels; expected ascending ones"
        )
    top = CHANNELS["echo_top_height"].packing
    top_codes = top.encode(heights)
    threshold = threshold_dbz
    if codes.dtype.kind != "f":
        threshold = round((threshold_dbz - packing.add_offset) / packing.scale_factor)
    assert top.fill_value is not None
    assert top.no_echo is not None
    out = np.full(codes.shape[1:], top.fill_value, top.dtype)
    below, two_below = np.zeros(out.shape, bool), np.zeros(out.shape, bool)
    for level, code in zip(codes, top_codes, strict=True):  # upwards: a higher top replaces a lower one
        echo = packing.echo(level)
        out[packing.observed(level) & (out == top.fill_value)] = top.no_echo
        out[echo & (level >= threshold) & below & two_below] = code
        below, two_below = echo, below
    return out
