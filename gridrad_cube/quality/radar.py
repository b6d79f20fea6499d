"""Quality control of GridRad volumes: bins of low confidence, and clutter.

The rules are those that C. Homeyer published with GridRad (Python, 2017 for version 3.1, 2021 for version 4.2;
http://gridrad.org). They work on the native grid, before any crop, level selection or averaging: a crop
changes the speckle counts at its edges, and a selection of levels changes the columns.
`filter_low_confidence` and
`filter_dual_polarization` work on the file's sparse vectors, `remove_clutter` on the dense volume.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import Packing, RadarSpec, SchemaError, build_spec


@dataclass(frozen=True, kw_only=True)
class RadarQualitySpec:
    """Every constant of the radar quality control; the defaults are the published ones.

    Members ``v3_`` and ``v4_`` belong to version 3.1 and 4.x files. ``weak_low_level_echo=False`` leaves out the
    second step of `remove_clutter`, as many users do (``skip_weak_ll_echo=1``).
    """

    mode: Literal["published", "fixed"] = "fixed"
    v3_minimum_weight: float = 0.1
    v3_light_weight: float = 1.33
    v3_light_weight_before_2009: float = 0.33
    v3_weak_dbz: float = 18.5
    v4_light_weight: float = 1.5
    v4_weak_dbz: float = 15.0
    minimum_echo_frequency: float = 0.6
    trusted_observations: int = 2
    correlation: float = 0.9
    correlation_below_dbz: float = 40.0
    correlation_aloft: float = 0.95
    correlation_aloft_below_dbz: float = 25.0
    correlation_aloft_from_km: float = 10.0
    speckle_window: int = 5
    speckle_fraction: float = 0.32
    weak_low_level_echo: bool = True
    low_level_dbz: float = 10.0
    low_level_km: float = 4.0
    weak_column_dbz: float = 20.0
    weak_column_top_km: float = 4.0
    faint_column_dbz: float = 10.0
    faint_column_top_km: float = 5.0
    column_base_km: float = 3.0
    shallow_top5_km: float = 5.0
    shallow_top15_km: float = 3.0
    lowest_top15_km: float = 2.0
    anvil_base_km: float = 4.0

    def __post_init__(self) -> None:
        if self.mode not in ("published", "fixed"):
            raise SchemaError(f"mode: got {self.mode!r}; expected published or fixed")
        if self.speckle_window < 1 or self.speckle_window % 2 == 0:
            raise SchemaError(f"speckle_window: got {self.speckle_window}; expected an odd number of bins")

    @classmethod
    def of(cls, radar: RadarSpec) -> RadarQualitySpec:
        """Return the constants that a recipe asks for: the published ones, and those that it gives."""
        given: dict[str, Any] = {"mode": radar.qc}
        for name, value in radar.qc_constants:
            kind: Any = type(getattr(cls, name, value))
            given[name] = kind(value)
            if given[name] != value:
                raise SchemaError(f"qc_constants: {name} is {kind.__name__}, got {value}")
        spec: RadarQualitySpec = build_spec(cls, given)
        return spec


def filter_low_confidence(
    values: np.ndarray,
    weights: np.ndarray,
    nradobs_at: np.ndarray,
    nradecho_at: np.ndarray,
    *,
    version: str,
    year: int,
    spec: RadarQualitySpec = RadarQualitySpec(),
) -> npt.NDArray[np.bool_]:
    """Find the bins that GridRad's filter keeps, on the file's sparse vectors.

    With f = Nradecho / Nradobs (0 where Nradobs is 0) and a missing reflectivity counting as 0 dBZ, a bin is
    removed if

    - version 3: its weight is below 0.1; or below 1.33 (0.33 before 2009) with reflectivity at most 18.5 dBZ;
    - version 4: its weight is below 1.5 with reflectivity below 15 dBZ (of any year);
    - both: f is below 0.6 and more than 2 sweeps observed it.

    Weights are compared in their own dtype, as published. Both modes are the same here.

    Parameters
    ----------
    values
        Reflectivity in dBZ, (Index).
    weights
        ``wReflectivity``, (Index).
    nradobs_at, nradecho_at
        ``Nradobs`` and ``Nradecho`` at the bins of ``index``, (Index).
    version
        "3.1", "4.1" or "4.2".
    year
        Year of the volume.
    spec
        Constants of the quality control.

    Returns
    -------
    True for bins that are kept, (Index). Version 4 applies the same mask to every field; version 3 has only
    reflectivity.

    Raises
    ------
    SchemaError
        If the version is neither 3 nor 4.
    """
    reflectivity = np.nan_to_num(values, nan=0.0)
    looked = nradobs_at.astype(np.int64)
    frequency = nradecho_at / np.maximum(looked, 1).astype(np.float64) * (looked > 0)
    seldom = (frequency < spec.minimum_echo_frequency) & (looked > spec.trusted_observations)
    if version.startswith("3"):
        light = spec.v3_light_weight if year >= 2009 else spec.v3_light_weight_before_2009
        bad = (weights < spec.v3_minimum_weight) | ((weights < light) & (reflectivity <= spec.v3_weak_dbz))
    elif version.startswith("4"):
        bad = (weights < spec.v4_light_weight) & (reflectivity < spec.v4_weak_dbz)
    else:
        raise SchemaError(f"version: no published filter, got {version!r}; expected 3.1, 4.1 or 4.2")
    return ~(bad | seldom)


def filter_dual_polarization(
    values: np.ndarray,
    correlation: np.ndarray,
    altitude_at_km: np.ndarray,
    *,
    spec: RadarQualitySpec = RadarQualitySpec(),
) -> npt.NDArray[np.bool_]:
    """Find the bins that are weather by dual polarization, on sparse vectors (version 4).

    A bin below 40 dBZ is removed if its correlation coefficient is below 0.9. From 10 km up, a bin below 25
    dBZ is removed if it is below 0.95. A missing correlation coefficient or reflectivity never removes one.
    Step 0 of the published
    clutter removal; both modes are the same.

    Parameters
    ----------
    values
        Reflectivity in dBZ, (Index), NaN where `filter_low_confidence` removed it.
    correlation
        ``CorrelationCoefficient``, (Index), NaN in the same bins.
    altitude_at_km
        Altitude of each bin, (Index).
    spec
        Constants of the quality control.

    Returns
    -------
    True for bins that are kept, (Index).
    """
    with np.errstate(invalid="ignore"):
        bad = (values < spec.correlation_below_dbz) & (correlation < spec.correlation)
        bad |= (
            (values < spec.correlation_aloft_below_dbz)
            & (correlation < spec.correlation_aloft)
            & (altitude_at_km >= spec.correlation_aloft_from_km)
        )
    return ~bad


def exact_codes(values: np.ndarray, packing: Packing) -> tuple[np.ndarray, Packing]:
    """Return the codes of reflectivity that compare with thresholds as the floats do, for `remove_clutter`.

    There are twice as many codes as in the store: an even code is a value of the packing, an odd code lies
    between two of them. So thresholds that are values of the packing, such as all published ones, are exact.

    Parameters
    ----------
    values
        dBZ, of any shape.
    packing
        Of the stored codes.

    Returns
    -------
    uint16 codes of the echoes, 0 without echo; and their packing.
    """
    assert packing.echo_minimum is not None
    position = (values.astype(np.float64) - packing.add_offset) / packing.scale_factor
    nearest = np.rint(position)
    # float32 values that differ do so by more than 1e-5 of a step of 0.01 dBZ, rounding here by less.
    between = np.abs(position - nearest) > 1e-5
    doubled = np.where(between, 2.0 * np.floor(position) + 1.0, 2.0 * nearest)
    with np.errstate(invalid="ignore"):
        is_echo = doubled >= 2.0 * packing.echo_minimum
    codes = np.where(is_echo, np.minimum(doubled, 65535.0), 0.0).astype(np.uint16)
    exact = dataclasses.replace(
        packing, scale_factor=packing.scale_factor / 2, echo_minimum=2 * packing.echo_minimum
    )
    return codes, exact


def remove_clutter(
    codes: np.ndarray,
    altitude_km: npt.ArrayLike,
    packing: Packing,
    spec: RadarQualitySpec = RadarQualitySpec(),
) -> None:
    """Remove clutter and speckle from a volume in place. Their bins get the packing's clutter code.

    Each step works on the result of the one before. Only codes of echoes count.

    1. Speckle: at each level, an echo is removed if at most 32 % of the 5 x 5 bins around it have one (8 of 25).
    2. Weak echo at low levels, unless ``spec.weak_low_level_echo`` is off: first echoes below 10 dBZ up to 4 km.
       Then whole columns: with max the largest reflectivity of the column or 0, top(t) the highest altitude with
       more than t dBZ or 0, and base the lowest with more than 0 dBZ or 0, a column is removed if
       max < 20 and top(0) <= 4 and base <= 3; or max < 10 and top(0) <= 5 and base <= 3; or
       0 < top(5) <= 5 and top(15) <= 3; or 0 < top(15) < 2.
    3. Below anvils: if the first level from 4 km up has no echo, but a level above and a level below has one, all
       levels below are removed.
    4. Speckle again.

    ``published`` repeats the published program bit for bit; ``fixed`` does what its comments describe. They differ in:

    - speckle at the edges: published counts wrap around to the opposite edge of the domain; fixed ones take the
      same share of those bins of the window that lie in the domain;
    - base: published is the smallest over all levels of (altitude where echo is above 0 dBZ, else 0), which is 0
      unless every level has such an echo, so that the condition on it almost always holds;
    - below anvils: published leaves the topmost level out of "above" and the level next below 4 km out of
      "below".

    Values are compared as codes. Codes of `exact_codes` compare as the floats of the file do. Stored codes
    are at most half a step of the packing away from these. Volumes without a level from 4 km up skip step 3
    (the published
    program fails).

    Parameters
    ----------
    codes
        Packed reflectivity (altitude, y, x) on the native grid with all its levels.
    altitude_km
        Ascending.
    packing
        Packing of the codes, with codes for echo and clutter.
    spec
        Constants of the quality control.

    Raises
    ------
    SchemaError
        If the packing has no such codes, or altitudes do not ascend.
    """
    altitude = np.asarray(altitude_km, np.float64)
    if packing.clutter is None or packing.echo_minimum is None or packing.clutter >= packing.echo_minimum:
        raise SchemaError(
            f"packing: got clutter={packing.clutter}, echo_minimum={packing.echo_minimum}; expected a code for "
            "clutter below those of echoes. Take the packing of a radar channel."
        )
    if altitude.shape != codes.shape[:1] or not (np.diff(altitude) > 0).all():
        raise SchemaError(
            f"altitude_km: got {altitude.tolist()}; expected ascending values, one for each of the "
            f"{codes.shape[0]} levels. Pass the volume's whole altitude axis."
        )
    volume = _Volume(codes, altitude, packing, int(packing.echo_minimum), spec.mode == "published")
    volume.remove_speckle(spec)
    if spec.weak_low_level_echo:
        volume.remove_weak_echo(spec)
    volume.remove_below_anvils(spec)
    volume.remove_speckle(spec)


@dataclass(frozen=True)
class _Volume:
    """A volume that is being cleaned in place, a level at a time to save memory."""

    codes: np.ndarray
    altitude: np.ndarray
    packing: Packing
    first: int
    published: bool

    def remove_speckle(self, spec: RadarQualitySpec) -> None:
        size = spec.speckle_window
        cells = np.full(self.codes.shape[1:], size * size)
        if not self.published:
            cells = _box_count(np.ones(cells.shape, bool), size, wrap=False)
        # The rounding makes 0.32 x 25 equal to 8 also in floating point.
        few = np.floor(spec.speckle_fraction * cells + 1e-9).astype(np.int32)
        for level in self.codes:
            echo = level >= self.first
            if echo.any():
                level[echo & (_box_count(echo, size, wrap=self.published) <= few)] = self.packing.clutter

    def remove_weak_echo(self, spec: RadarQualitySpec) -> None:
        weak = self._first_code(spec.low_level_dbz)
        low = int(np.searchsorted(self.altitude, spec.low_level_km, side="right"))
        for level in self.codes[:low]:
            level[(level >= self.first) & (level < weak)] = self.packing.clutter
        top = {dbz: self._last_above(dbz, slice(None)) for dbz in (0.0, 5.0, 15.0)}
        strongest, low_base = self.codes.max(axis=0), self._base() <= spec.column_base_km
        bad = np.zeros(low_base.shape, bool)
        for dbz, top_km in (
            (spec.weak_column_dbz, spec.weak_column_top_km),
            (spec.faint_column_dbz, spec.faint_column_top_km),
        ):
            if dbz > 0.0:  # a column's maximum is at least 0 dBZ
                bad |= (strongest < self._first_code(dbz)) & (top[0.0] <= top_km) & low_base
        shallow = (top[5.0] > 0) & (top[5.0] <= spec.shallow_top5_km)
        bad |= shallow & (top[15.0] <= spec.shallow_top15_km)
        bad |= (top[15.0] > 0) & (top[15.0] < spec.lowest_top15_km)
        self._remove(self.codes, bad)

    def remove_below_anvils(self, spec: RadarQualitySpec) -> None:
        base = int(np.searchsorted(self.altitude, spec.anvil_base_km))
        if base == len(self.altitude):
            return
        above, below = self.codes[base + 1 :], self.codes[:base]
        if self.published:
            above, below = self.codes[base:-1], self.codes[: max(base - 1, 0)]
        bad = self.codes[base] < self.first
        for levels in (above, below):
            bad &= np.any(levels >= self.first, axis=0)
        self._remove(self.codes[: base + 1], bad)

    def _remove(self, levels: np.ndarray, columns: np.ndarray) -> None:
        for level in levels:
            level[columns & (level >= self.first)] = self.packing.clutter

    def _last_above(self, dbz: float, order: slice) -> np.ndarray:
        """Return the altitude of the last level of each column, in this order, with more than ``dbz``; 0 if
        none.
        """
        first, last = self._first_code(dbz, above=True), np.zeros(self.codes.shape[1:])
        for z, level in zip(self.altitude[order], self.codes[order], strict=True):
            last[level >= first] = z
        return last

    def _base(self) -> np.ndarray:
        if self.published:
            everywhere = self.codes.min(axis=0) >= self._first_code(0.0, above=True)
            return np.where(everywhere, self.altitude[0], 0.0)
        return self._last_above(0.0, slice(None, None, -1))

    def _first_code(self, dbz: float, *, above: bool = False) -> int:
        """Return the smallest code of an echo of this value or more, or above it."""
        # Rounding undoes that of the division.
        position = round((dbz - self.packing.add_offset) / self.packing.scale_factor, 6)
        return max(math.floor(position) + 1 if above else math.ceil(position), self.first)


def _box_count(mask: np.ndarray, size: int, *, wrap: bool) -> np.ndarray:
    """Count the set bins in the square window around each bin."""
    bits = mask.astype(np.uint8 if size * size < 256 else np.uint32)
    padded = np.pad(bits, size // 2, mode="wrap" if wrap else "constant")
    height, width = mask.shape
    columns = functools.reduce(np.add, (padded[k : k + height] for k in range(size)))
    return functools.reduce(np.add, (columns[:, k : k + width] for k in range(size)))
