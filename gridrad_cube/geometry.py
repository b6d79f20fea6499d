"""The Earth: longitudes, great circles, and the angles of sun and satellite. Imports numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Mean radius of the Earth (IUGG), km.
EARTH_RADIUS_KM = 6371.0088
#: Equatorial radius of the Earth (WGS 84), km.
EQUATORIAL_RADIUS_KM = 6378.137
#: Radius of the geostationary orbit, km from the centre of the Earth.
GEOSTATIONARY_RADIUS_KM = 42164.0

Float = npt.NDArray[np.float64]


def wrap_longitude(longitude: npt.ArrayLike) -> Float:
    """Longitudes in [-180, 180) degrees."""
    return (np.asarray(longitude, np.float64) + 180.0) % 360.0 - 180.0


def unit_vectors(latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Float:
    """Points on the unit sphere, shape (..., 3), from degrees."""
    lat, lon = np.deg2rad(np.asarray(latitude, np.float64)), np.deg2rad(np.asarray(longitude, np.float64))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def great_circle_km(
    latitude_a: npt.ArrayLike,
    longitude_a: npt.ArrayLike,
    latitude_b: npt.ArrayLike,
    longitude_b: npt.ArrayLike,
) -> Float:
    """Great-circle distance in km between points in degrees (haversine; broadcasts)."""
    lat_a, lat_b = (
        np.deg2rad(np.asarray(latitude_a, np.float64)),
        np.deg2rad(np.asarray(latitude_b, np.float64)),
    )
    d_lon = np.deg2rad(np.asarray(longitude_b, np.float64) - np.asarray(longitude_a, np.float64))
    h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin(d_lon / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))


def mean_position(
    latitude: npt.ArrayLike, longitude: npt.ArrayLike, axis: tuple[int, ...]
) -> tuple[Float, Float]:
    """Mean latitude and longitude over axes, right across the date line. NaN where every point is NaN."""
    lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    finite = lon[np.isfinite(lon)]
    base = finite[0] if finite.size else 0.0
    count = np.isfinite(lat).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        mean_lat = np.nansum(lat, axis=axis) / np.where(count, count, np.nan)
        mean_lon = np.nansum(wrap_longitude(lon - base), axis=axis) / np.where(count, count, np.nan)
    return mean_lat, wrap_longitude(mean_lon + base)


def solar_zenith_angle(time: npt.ArrayLike, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Float:
    """Solar zenith angle in degrees (0 overhead), without refraction. Broadcasts.

    The Astronomical Almanac's low-precision formulas for the sun's apparent position (Michalsky 1988,
    doi:10.1016/0038-092X(88)90045-X), good to 0.01 degree from 1950 to 2050.

    Parameters
    ----------
    time
        ``datetime64``, UTC.
    latitude, longitude
        Degrees.
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
    """Zenith angle in degrees of a geostationary satellite over a spherical Earth. Broadcasts."""
    lat = np.deg2rad(np.asarray(latitude, np.float64))
    d_lon = np.deg2rad(np.asarray(longitude, np.float64) - satellite_longitude)
    cosine = np.cos(lat) * np.cos(d_lon)  # of the angle at the centre of the Earth
    ratio = GEOSTATIONARY_RADIUS_KM / EQUATORIAL_RADIUS_KM
    return np.rad2deg(np.arctan2(np.sqrt(np.clip(1 - cosine**2, 0.0, 1.0)), cosine - 1.0 / ratio))
