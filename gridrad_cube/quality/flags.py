"""Set flags of patches, which describe defects and special conditions. Nothing is deleted.

Flags that follow from pixels, or mark sources that could not be read, never change. The others follow from
stored
statistics, coordinates and a `QualitySpec`, so `reflag` reads no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube.geometry import satellite_zenith_angle, solar_zenith_angle
from gridrad_cube.quality.statistics import LEAST_RAIN, patch_statistics
from gridrad_cube.schema import (
    Channel,
    Flag,
    Packing,
    QualitySpec,
    SchemaError,
    channel_in,
    default_reject,
    flag_attributes,
    statistic_units,
)

#: Flags that depend on thresholds.
_THRESHOLD_BITS = (
    Flag.local_outlier | Flag.global_outlier | Flag.night | Flag.low_coverage | Flag.low_sun | Flag.limb
)  # fmt: skip
#: The flag that depends on each angle, and its threshold in `QualitySpec`.
_ANGLES = {
    "solar_zenith_angle": (Flag.night, "night_solar_zenith"),
    "solar_zenith_angle_maximum": (Flag.low_sun, "low_sun_solar_zenith"),
    "satellite_zenith_angle": (Flag.limb, "limb_satellite_zenith"),
}
#: Smallest share of echo in a patch of radar or rain for ``global_outlier``. Patches with less do not count
#: in the distribution of means and are not compared with it, because a mean over few pixels is often far from
#: it.
_MINIMUM_ECHO_FRACTION = 0.01
#: Smallest number of patches for a distribution.
_MINIMUM_PATCHES = 8
#: Deviations up to this many steps of the packing may come from rounding alone.
_ROUNDING_STEPS = 2.0


def assess(crop: xr.Dataset, spec: QualitySpec) -> xr.Dataset:
    """Compute statistics, flags and angles of every patch of a crop.

    Every flag is set independently: a patch of padding only is also all missing. The flags mean:

    - ``some_missing``: a pixel was not observed (padding counts). ``all_missing``: no pixel can be used.
    - ``out_of_valid_range``, ``non_finite``: a source value was.
    - ``constant``: all observed pixels, at least two, are data of one value (of radar: echo).
    - ``local_outlier``: a pixel further than k standard deviations from the patch mean (of rain in the
      logarithm), and more than two steps of the packing; or a dead line. Off where the deviation is 0.
    - ``low_coverage``: under ``spec.low_coverage`` observed.
    - ``night``: visible, and the patch center's solar zenith angle at observation time (the scan's where the
      scene has it) above its threshold. ``low_sun``: visible, and that of the center or a corner above its own.
    - ``limb``: the zenith angle of the satellite at the patch center above its threshold.
    - ``no_echo``: radar or rain, observed, without any echo.
    - ``padding``: no pixel of the scene in it.

    Channels of kind ``other`` (labels and the like) have only ``some_missing`` to ``constant``, ``low_coverage`` and
    ``padding``. ``global_outlier`` needs the whole store (`global_thresholds`); readers set
    ``channel_absent`` and ``unreadable``.

    Parameters
    ----------
    crop
        Crop as `tiling.cut` returns it.
    spec
        Thresholds.

    Returns
    -------
    On ([altitude,] row, col): ``<channel>_flags`` (uint16) and ``<channel>_<statistic>`` (float32) for every
    channel. Coordinates of the crop, with ``solar_zenith_angle``, ``solar_zenith_angle_maximum`` (over the center
    and the corners) and, where the attribute ``satellite_longitude`` is known, ``satellite_zenith_angle``, all
    float32 (row, col) in degrees.

    Raises
    ------
    SchemaError
        If a coordinate is missing, or a channel is not known.
    """
    missing = [name for name in ("time", "latitude", "longitude", "padding") if name not in crop.coords]
    if missing:
        raise SchemaError(
            f"crop: no coordinates {missing}, got {sorted(map(str, crop.coords))}; expected those of a crop. "
            "Make crops with tiling.cut()."
        )
    patch = crop.sizes["y"] // crop.sizes["row"]
    angles = _angles(crop)
    padding = np.where(crop["padding"].values, int(Flag.padding), 0).astype(np.uint16)
    out: dict[str, Any] = {}
    for key, variable in crop.data_vars.items():
        name, channel = str(key), channel_in(str(key), variable.attrs, variable.dtype)
        packing = Packing.from_attributes(variable.attrs, variable.dtype)
        statistics = patch_statistics(variable.values, packing, channel, patch)
        flags = statistics.pop("pixel_flags") | padding
        flags |= _threshold_flags(statistics, channel, packing, spec, pixels=patch * patch, angles=angles)
        dims = (*variable.dims[:-2], "row", "col")
        out[f"{name}_flags"] = (dims, flags, flag_attributes())
        for statistic, values in statistics.items():
            out[f"{name}_{statistic}"] = (dims, values, {"units": statistic_units(channel, statistic)})
    coords: dict[Any, Any] = dict(crop.coords)
    for name, angle in angles.items():
        coords[name] = (("row", "col"), angle, {"units": "degree"})
    return xr.Dataset(out, coords, attrs=dict(crop.attrs))


def _threshold_flags(
    statistics: Mapping[str, np.ndarray],
    channel: Channel,
    packing: Packing,
    spec: QualitySpec,
    *,
    pixels: int,
    angles: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Set the flags of `_THRESHOLD_BITS` that depend on one patch only (all but ``global_outlier``).

    With ``spec.rule == "predecessor"`` a local outlier is ``max|x - mean| > k * std`` with the unbiased standard
    deviation, for any step of the packing. For radar and rain the stored statistics are those of echo pixels,
    so the rule uses only these.

    Shapes are those of `reflag`, or of one crop. The flag of a missing angle stays off.
    """
    shape = statistics["mean"].shape
    flags = np.zeros(shape, np.uint16)

    flags[statistics["valid_fraction"] < spec.low_coverage] = np.uint16(Flag.low_coverage)
    if channel.kind == "other":
        return flags
    flags[_local_outliers(statistics, packing, spec, pixels)] |= np.uint16(Flag.local_outlier)
    for name, (flag, threshold) in _ANGLES.items():
        if name in angles and (flag == Flag.limb or channel.kind == "visible"):
            above = angles[name] > getattr(spec, threshold)
            above = np.expand_dims(above, -3) if above.ndim < len(shape) else above
            flags[np.broadcast_to(above, shape)] |= np.uint16(flag)
    return flags


def global_population(
    statistics: Mapping[str, np.ndarray], flags: np.ndarray, channel: Channel, spec: QualitySpec
) -> list[np.ndarray]:
    """Return the patch means for the thresholds of ``global_outlier``.

    For ``rule="echo"``, they are the means of patches without a rejecting flag that, for radar and rain, have
    at least 1 % echo. For ``rule="predecessor"``, they are those of patches that pass the predecessor's
    earlier tests: complete, and no local outlier.

    Parameters
    ----------
    statistics, flags
        Statistics and flags of all patches of a store or a part of it, (crop, [altitude,] row, col).
    channel
        Name of the channel.
    spec
        Thresholds.

    Returns
    -------
    float32 (N,), one array for each altitude.
    """
    if spec.rule == "echo":
        use = (flags & int(default_reject(channel.kind))) == 0
    else:
        use = (statistics["valid_fraction"] == 1.0) & ((flags & int(Flag.local_outlier)) == 0)
    minimum_echo = _minimum_echo(channel, spec)
    if minimum_echo is not None:
        use &= statistics["echo_fraction"] >= minimum_echo
    use &= np.isfinite(statistics["mean"])
    levels = range(flags.shape[1]) if flags.ndim == 4 else (slice(None),)
    return [statistics["mean"][:, level][use[:, level]] for level in levels]


def thresholds_of(means: np.ndarray, channel: Channel, spec: QualitySpec) -> dict[str, Any]:
    """Compute the thresholds of ``global_outlier`` from the patch means of a whole store
    (`global_population`).

    For ``rule="echo"`` the center is the median and the spread 1.4826 times the median absolute deviation, or
    the
    standard deviation where that is 0; of rain, the means' logarithm is taken. For ``rule="predecessor"``
    they are mean
    and population deviation. In both cases the result does not depend on the order of patches. With fewer
    than 8 patches, without spread, and for channels of kind ``other``, the rule is off, and the dict contains
    this.

    Parameters
    ----------
    means
        Patch means.
    channel
        Name of the channel.
    spec
        Thresholds.

    Returns
    -------
    JSON types: ``rule``, ``transform``, ``center``, ``spread``, ``factor``, ``count``,
    ``minimum_echo_fraction``, or
    ``rule="off"`` with a ``reason``.
    """
    if channel.kind == "other":
        return {"rule": "off", "reason": "a companion field is not judged"}
    transform = "log10" if channel.kind == "rain" and spec.rule == "echo" else "none"
    population = _transformed(means, transform)
    population = population[np.isfinite(population)]
    population.sort()  # so that sums do not depend on the order
    found = {"count": int(population.size), "factor": float(spec.global_mean_deviation_factor)}
    if population.size < _MINIMUM_PATCHES:
        return {"rule": "off", "reason": f"under {_MINIMUM_PATCHES} clean patches", **found}
    center, spread = _robust(population) if spec.rule == "echo" else (population.mean(), population.std())
    if not spread > 0.0:
        return {"rule": "off", "reason": "the patch means do not spread", **found}
    return {
        "rule": spec.rule, "transform": transform, "center": float(center), "spread": float(spread), **found,
        "minimum_echo_fraction": _minimum_echo(channel, spec),
    }  # fmt: skip


def _minimum_echo(channel: Channel, spec: QualitySpec) -> float | None:
    return _MINIMUM_ECHO_FRACTION if channel.has_echo and spec.rule == "echo" else None


def global_outliers(statistics: Mapping[str, np.ndarray], thresholds: Mapping[str, Any]) -> np.ndarray:
    """Find patches whose mean lies further than the factor times the spread from the center.

    Parameters
    ----------
    statistics
        Statistics of patches, (crop, [altitude,] row, col).
    thresholds
        Result of `thresholds_of`, or its JSON; with altitudes a list of results under ``levels``.

    Returns
    -------
    bool, of the statistics' shape; False for patches without a mean, or with less than
    ``minimum_echo_fraction``.
    """
    if "levels" in thresholds:
        parts = [
            global_outliers({name: values[:, level] for name, values in statistics.items()}, mine)
            for level, mine in enumerate(thresholds["levels"])
        ]
        return np.stack(parts, axis=1)
    if thresholds["rule"] == "off":
        return np.zeros(statistics["mean"].shape, bool)
    away = np.abs(_transformed(statistics["mean"], thresholds["transform"]) - thresholds["center"])
    with np.errstate(invalid="ignore"):
        is_far = away > thresholds["factor"] * thresholds["spread"]
        if thresholds["minimum_echo_fraction"] is not None:
            is_far &= statistics["echo_fraction"] >= thresholds["minimum_echo_fraction"]
    return is_far


def reflag(
    flags: np.ndarray,
    statistics: Mapping[str, np.ndarray],
    channel: Channel,
    packing: Packing,
    spec: QualitySpec,
    *,
    pixels: int,
    angles: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Set the flags of stored patches for other thresholds, and clear ``global_outlier``.

    The result is the same as of assessing all pixels again. Flags without thresholds do not change, and
    neither do the flags of patches that were never assessed (``channel_absent``, ``unreadable``). A flag
    whose angle is missing (``low_sun`` of a store without ``solar_zenith_angle_maximum``) does not change.

    Parameters
    ----------
    flags
        uint16 (crop, [altitude,] row, col).
    statistics
        float32 statistics of the channel by name, of the same shape.
    channel
        Name of the channel.
    packing
        Packing of the stored codes; its step bounds the rounding.
    spec
        Thresholds.
    pixels
        Pixels of a patch.
    angles
        float32 (crop, row, col) in degrees: ``solar_zenith_angle``, ``solar_zenith_angle_maximum``,
        ``satellite_zenith_angle``.

    Returns
    -------
    New flags.
    """
    keep = ~_THRESHOLD_BITS
    for name, (flag, _) in _ANGLES.items():
        if name not in angles:
            keep |= flag
    new = flags & np.uint16(int(keep) & 0xFFFF)
    new |= _threshold_flags(statistics, channel, packing, spec, pixels=pixels, angles=angles)
    never = (flags & int(Flag.channel_absent | Flag.unreadable)) != 0
    new[never] = flags[never]
    return new


def _angles(crop: xr.Dataset) -> dict[str, np.ndarray]:
    time = np.broadcast_to(crop["time"].values, (crop.sizes["row"],)).astype("datetime64[s]")
    if "observation_time" in crop.coords:
        scanned = crop["observation_time"].values.astype("datetime64[s]")
        time = np.where(np.isnat(scanned), time, scanned)
    latitude, longitude = crop["latitude"].values, crop["longitude"].values
    zenith = solar_zenith_angle(time[:, None], latitude, longitude)
    highest = zenith
    if "corner_latitude" in crop.coords:
        # The sun sinks with distance from the subsolar point, so some corner of a patch has it lowest.
        corners = (crop[f"corner_{axis}"].values for axis in ("latitude", "longitude"))
        at_corners = solar_zenith_angle(time[:, None, None], *corners)
        highest = np.fmax(zenith, np.fmax.reduce(at_corners, axis=-1))
    angles = {"solar_zenith_angle": zenith, "solar_zenith_angle_maximum": highest}
    if "satellite_longitude" in crop.attrs:
        place = float(crop.attrs["satellite_longitude"])
        angles["satellite_zenith_angle"] = satellite_zenith_angle(latitude, longitude, place)
    return {name: angle.astype(np.float32) for name, angle in angles.items()}


def _local_outliers(
    statistics: Mapping[str, np.ndarray], packing: Packing, spec: QualitySpec, pixels: int
) -> np.ndarray:
    mean, std, low, high = (
        statistics[name].astype(np.float64) for name in ("mean", "std", "minimum", "maximum")
    )
    away = np.fmax(high - mean, mean - low)
    if spec.rule == "predecessor":
        count = pixels * statistics["valid_fraction"].astype(np.float64)
        if "echo_fraction" in statistics:
            count = count * statistics["echo_fraction"]
        with np.errstate(invalid="ignore", divide="ignore"):
            unbiased = std * np.sqrt(count / (count - 1.0))
        return (unbiased > 0.0) & (away > spec.max_deviation_factor * unbiased)
    step: np.ndarray | float = abs(packing.scale_factor)
    if np.dtype(packing.dtype).kind == "f":
        step = float(np.finfo(np.float32).eps) * np.fmax(np.abs(low), np.abs(high))
    far = (std > 0.0) & (away > _ROUNDING_STEPS * step)
    if "std_log10" in statistics:
        mean, std = (statistics[name].astype(np.float64) for name in ("mean_log10", "std_log10"))
        low, high = (np.log10(np.fmax(bound, LEAST_RAIN)) for bound in (low, high))
        away = np.fmax(high - mean, mean - low)
    far &= away > spec.max_deviation_factor * std
    return far | (statistics["dead_lines"] > 0)


def _transformed(means: np.ndarray, transform: str) -> np.ndarray:
    means = means.astype(np.float64)
    if transform == "none":
        return means
    return np.log10(means, where=means > 0.0, out=np.full(means.shape, np.nan))


def _robust(population: np.ndarray) -> tuple[float, float]:
    """Return the median and 1.4826 times the median absolute deviation of sorted numbers, with bounded
    memory.
    """
    middle = population[(population.size - 1) // 2 : population.size // 2 + 1]
    center = float(middle.mean())
    deviations = population - center
    np.abs(deviations, out=deviations)
    spread = 1.4826 * float(np.median(deviations, overwrite_input=True))
    return center, spread if spread > 0.0 else float(population.std())
