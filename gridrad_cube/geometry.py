"""Compute on the Earth: longitudes, great circles, orientation, GridRad's lattice, angles of sun and
satellite.

This module imports numpy only and reads no file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "EARTH_RADIUS_KM",
    "great_circle_km",
    "grid_tolerance",
    "lattice_origin",
    "mean_position",
    "orientation",
    "pixel_spacing_km",
    "reverse",
    "same_positions",
    "satellite_zenith_angle",
    "solar_zenith_angle",
    "wrap_longitude",
]


def __dir__() -> list[str]:
    return __all__


#: Mean radius of the Earth (IUGG), km.
EARTH_RADIUS_KM = 6371.0088
#: Equatorial radius of the Earth (WGS 84), km.
EQUATORIAL_RADIUS_KM = 6378.137
#: Radius of the geostationary orbit, km from the center of the Earth.
GEOSTATIONARY_RADIUS_KM = 42164.0

#: Pixels per degree of the lattice that GridRad version 4 grids share: centers at (n + 0.5) / 48 degrees.
LATTICE_PER_DEGREE = 48
#: How far, in pixels, an axis may stray from the lattice (float32 axes stray by 1e-3).
LATTICE_TOLERANCE = 1e-2

#: Largest difference of positions within one grid, as a part of the distance between pixels. The rounding of
#: float32 axes with pixels of 1 km is below a thousandth.
_SAME_GRID = 0.02

Float = npt.NDArray[np.float64]


def wrap_longitude(longitude: npt.ArrayLike) -> Float:
    """Wrap longitudes to [-180, 180) degrees.

    Parameters
    ----------
    longitude
        Longitudes in degrees, any shape.

    Returns
    -------
    Longitudes of the same shape.
    """
    return (np.asarray(longitude, np.float64) + 180.0) % 360.0 - 180.0


def great_circle_km(
    latitude_a: npt.ArrayLike,
    longitude_a: npt.ArrayLike,
    latitude_b: npt.ArrayLike,
    longitude_b: npt.ArrayLike,
) -> Float:
    """Return the great-circle distance between points, by the haversine formula. Broadcasts.

    Parameters
    ----------
    latitude_a, longitude_a
        First points, degrees.
    latitude_b, longitude_b
        Second points, degrees.

    Returns
    -------
    Distances in km.
    """
    points = (latitude_a, longitude_a, latitude_b, longitude_b)
    lat_a, lon_a, lat_b, lon_b = (np.asarray(values, np.float64) for values in points)
    lat_a, lat_b, d_lon = np.deg2rad(lat_a), np.deg2rad(lat_b), np.deg2rad(lon_b - lon_a)
    h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin(d_lon / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))


def pixel_spacing_km(latitude: npt.ArrayLike, longitude: npt.ArrayLike, patch: int) -> float | None:
    """Return the median distance of neighboring pixels, estimated from the centers of patches.

    The distance between a patch and its neighbor to the south is divided by the edge of a patch. If every
    crop has one row, the neighbor to the east is taken.

    Parameters
    ----------
    latitude, longitude
        Centers of patches in degrees, (crop, row, col).
    patch
        Edge of a patch in pixels.

    Returns
    -------
    Distance in km; None if no crop has neighboring patches.
    """
    position = [np.asarray(values) for values in (latitude, longitude)]
    for axis in (1, 2):
        near, far = ([np.delete(values, end, axis) for values in position] for end in (-1, 0))
        steps = great_circle_km(*near, *far) / patch
        if np.isfinite(steps).any():
            return float(np.nanmedian(steps))
    return None


def mean_position(
    latitude: npt.ArrayLike, longitude: npt.ArrayLike, axis: tuple[int, ...]
) -> tuple[Float, Float]:
    """Return the mean latitude and longitude over axes. Points on both sides of the date line are averaged
    correctly.

    Parameters
    ----------
    latitude
        Latitudes in degrees.
    longitude
        Longitudes in degrees.
    axis
        Axes to average over.

    Returns
    -------
    Mean latitude and mean longitude in degrees; NaN where every point is NaN.
    """
    lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    known = np.isfinite(lat) & np.isfinite(lon)
    base = np.where(known, lon, np.inf).min(axis=axis, keepdims=True)  # one for each group of points
    base[~np.isfinite(base)] = 0.0
    count = np.maximum(known.sum(axis=axis), 1)
    empty = np.where(known.any(axis=axis), 0.0, np.nan)
    mean_lat = np.where(known, lat, 0.0).sum(axis=axis) / count + empty
    offset = np.where(known, wrap_longitude(lon - base), 0.0).sum(axis=axis) / count
    return mean_lat, wrap_longitude(offset + base.reshape(offset.shape) + empty)


def orientation(
    latitude: npt.ArrayLike, longitude: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return whether rows and columns of grids must be reversed so that north is up and east is right.

    The decision uses the mean steps of positions along rows and columns. A grid that is turned by any angle
    (a projection, a satellite) gets the order that is nearest to north up and east right, among those that
    are not mirror images: a grid that shows the Earth from above has both directions reversed, or neither.

    Parameters
    ----------
    latitude, longitude
        Positions of pixels or patches, degrees, shape (..., y, x), or two axes (y) and (x); NaN where not
        known.

    Returns
    -------
    reversed : bool, (..., 2)
        For rows and for columns; False along a direction without known steps.
    known : bool, (..., 2)
        Whether there is a step along rows, and along columns.
    """
    lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    if lat.ndim == 1:
        lat, lon = np.broadcast_arrays(lat[:, None], lon)
    down, across = _steps(lat, lon, -2), _steps(lat, lon, -1)  # to the north and to the east
    here, there = down[..., :-1], across[..., :-1, :]  # from the same pixels
    mirrored = np.nansum(here[0] * there[1] - here[1] * there[0], axis=(-2, -1)) > 0
    (north, knows_rows), (east, knows_columns) = _mean(-down[0]), _mean(across[1])
    turned = ~mirrored & (north + east < 0)
    by_rows = mirrored & (east >= north)
    known = np.stack([knows_rows, knows_columns], axis=-1)
    return np.stack([turned | by_rows, turned | (mirrored & ~by_rows)], axis=-1) & known, known


def _steps(latitude: Float, longitude: Float, axis: int) -> Float:
    """Return the steps to the north and east along an axis, in degrees of latitude, (2, ...); NaN where
    unknown.
    """
    last, first = (
        np.take(latitude, np.arange(start, latitude.shape[axis] - 1 + start), axis) for start in (1, 0)
    )
    east = wrap_longitude(np.diff(longitude, axis=axis)) * np.cos(np.deg2rad((first + last) / 2))
    return np.stack([last - first, east])


def _mean(steps: Float) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Return the mean of the known steps of each grid (0 if no step is known), and whether any step is known."""
    known = np.isfinite(steps)
    count = known.sum(axis=(-2, -1))
    return np.where(known, steps, 0.0).sum(axis=(-2, -1)) / np.maximum(count, 1), count > 0


def grid_tolerance(latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> float:
    """Return the largest difference between positions that still count as one grid, in degrees.

    It is a small part of the distance between neighboring pixels in the middle of the grid.

    Parameters
    ----------
    latitude, longitude
        Two axes, or both on ``(y, x)``, degrees.

    Returns
    -------
    Degrees; 0 for a grid without neighbors in its middle.
    """
    lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    lat, lon = (v[tuple(slice(max(0, n // 2 - 32), n // 2 + 32) for n in v.shape)] for v in (lat, lon))
    steps = [np.abs(np.diff(lat, axis=0)), np.abs(wrap_longitude(np.diff(lon, axis=-1)))]
    if lat.ndim > 1:
        steps = [np.hypot(np.diff(lat, axis=a), wrap_longitude(np.diff(lon, axis=a))) for a in (0, 1)]
    known = [float(np.nanmedian(step)) for step in steps if np.isfinite(step).any()]
    return _SAME_GRID * min(known, default=0.0)


def same_positions(
    a: tuple[npt.ArrayLike, npt.ArrayLike], b: tuple[npt.ArrayLike, npt.ArrayLike], tolerance: float
) -> bool:
    """Return whether two grids have the same shape and the same positions. NaN equals NaN.

    Parameters
    ----------
    a, b
        Pairs of latitudes and longitudes, degrees.
    tolerance
        Largest difference that counts as equal, degrees.

    Returns
    -------
    True if shapes and positions agree.
    """
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(a, b, strict=True)]
    if any(x.shape != y.shape for x, y in pairs):
        return False
    known = [np.isfinite(x) for x, _ in pairs]
    if any((where != np.isfinite(y)).any() for where, (_, y) in zip(known, pairs, strict=True)):
        return False
    off = [np.abs(wrap_longitude(x[where] - y[where])) for where, (x, y) in zip(known, pairs, strict=True)]
    return max(float(o.max(initial=0.0)) for o in off) <= tolerance


def reverse(values: np.ndarray, flips: npt.NDArray[np.bool_], *, rows: int = -2) -> np.ndarray:
    """Reverse rows and columns of grids in place where `orientation` says so; return the grids.

    Parameters
    ----------
    values
        Grids (N, ...). The axis of columns follows the axis of rows.
    flips
        Whether to reverse rows, and columns, (N, 2).
    rows
        Axis of rows.

    Returns
    -------
    The same array, changed in place.
    """
    for axis, some in ((rows, flips[:, 0]), (rows + 1, flips[:, 1])):
        if some.any():
            values[some] = np.flip(values[some], axis)
    return values


def solar_zenith_angle(time: npt.ArrayLike, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Float:
    """Return the solar zenith angle in degrees (0 overhead), without refraction. Broadcasts.

    The Astronomical Almanac's low-precision formulas for the sun's apparent position (Michalsky 1988,
    doi:10.1016/0038-092X(88)90045-X), good to 0.01 degree from 1950 to 2050.

    Parameters
    ----------
    time
        ``datetime64``, UTC.
    latitude, longitude
        Degrees.

    Returns
    -------
    Angle in degrees, of the broadcast shape.
    """
    time = np.asarray(time, "datetime64[s]")
    days = (time - np.datetime64("2000-01-01T12:00:00", "s")).astype(np.float64) / 86400.0
    days = np.where(np.isnat(time), np.nan, days)
    anomaly = np.deg2rad((357.528 + 0.9856003 * days) % 360.0)
    mean_longitude = (280.460 + 0.9856474 * days) % 360.0
    ecliptic = np.deg2rad(mean_longitude + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    obliquity = np.deg2rad(23.439 - 4e-7 * days)
    right_ascension = np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic))
    declination = np.arcsin(np.sin(obliquity) * np.sin(ecliptic))
    sidereal = np.deg2rad((280.46061837 + 360.98564736629 * days) % 360.0)
    hour_angle = sidereal + np.deg2rad(np.asarray(longitude, np.float64)) - right_ascension
    lat = np.deg2rad(np.asarray(latitude, np.float64))
    cosine = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.cos(hour_angle)
    return np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0)))


def satellite_zenith_angle(
    latitude: npt.ArrayLike, longitude: npt.ArrayLike, satellite_longitude: float
) -> Float:
    """Return the zenith angle of a geostationary satellite over a spherical Earth. Broadcasts.

    Parameters
    ----------
    latitude
        Latitudes in degrees.
    longitude
        Longitudes in degrees.
    satellite_longitude
        Longitude of the satellite in degrees.

    Returns
    -------
    Angle in degrees, of the broadcast shape.
    """
    lat = np.deg2rad(np.asarray(latitude, np.float64))
    d_lon = np.deg2rad(np.asarray(longitude, np.float64) - satellite_longitude)
    cosine = np.cos(lat) * np.cos(d_lon)  # of the angle at the center of the Earth
    ratio = GEOSTATIONARY_RADIUS_KM / EQUATORIAL_RADIUS_KM
    return np.rad2deg(np.arctan2(np.sqrt(np.clip(1 - cosine**2, 0.0, 1.0)), cosine - 1.0 / ratio))


def lattice_origin(latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> tuple[int, int] | None:
    """Find the place of a scene's pixel (0, 0) on GridRad's common 1/48 degree lattice.

    Pixel (j, i) of the lattice has its center at latitude (j + 0.5) / 48 and longitude (i + 0.5) / 48 degrees,
    with longitudes in [-180, 180).

    Parameters
    ----------
    latitude, longitude
        Pixel axes in degrees. GridRad's latitudes ascend.

    Returns
    -------
    ``(j, i)``, or ``None`` for axes that are not 1-D, do not ascend by 1/48 degree or lie off the lattice.
    """
    origin = []
    for axis in (np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)):
        if axis.ndim != 1 or not axis.size or not np.isfinite(axis).all():
            return None
        unwrapped = axis[0] + (axis - axis[0]) % 360.0  # a scene may cross the date line
        index = unwrapped * LATTICE_PER_DEGREE - 0.5
        first = round(float(index[0]))
        if np.abs(index - (first + np.arange(axis.size))).max() > LATTICE_TOLERANCE:
            return None
        origin.append(first)
    return origin[0], origin[1]
