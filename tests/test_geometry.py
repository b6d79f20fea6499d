"""Angles and distances against published values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridrad_cube import geometry

degrees = st.floats(-180, 179.9)


@pytest.mark.parametrize(
    ("time", "latitude", "longitude", "zenith"),
    [
        ("2021-06-21T12:02", 0.0, 0.0, 23.44),  # solstice: the sun stands over the tropic
        ("2021-03-20T12:07", 0.0, 0.0, 0.1),  # equinox at noon on the equator
        ("2003-10-17T19:30:30", 39.742476, -105.1786, 50.11),  # the example of NREL/TP-560-34302
    ],
)
def test_solar_zenith_angle_equals_published_values(time, latitude, longitude, zenith):
    assert float(geometry.solar_zenith_angle(time, latitude, longitude)) == pytest.approx(zenith, abs=0.15)


def test_solar_zenith_angle_of_no_time_is_nan():
    assert np.isnan(geometry.solar_zenith_angle(np.datetime64("NaT", "s"), 0.0, 0.0))


def test_satellite_zenith_angle_is_zero_below_and_ninety_at_the_edge():
    assert float(geometry.satellite_zenith_angle(0.0, -75.2, -75.2)) == pytest.approx(0.0, abs=1e-9)
    assert float(geometry.satellite_zenith_angle(81.3, -75.2, -75.2)) == pytest.approx(90.0, abs=0.1)


@given(degrees, degrees)
def test_great_circle_is_symmetric_and_knows_the_quarter(a, b):
    assert geometry.great_circle_km(0, a, 0, b) == pytest.approx(geometry.great_circle_km(0, b, 0, a))
    assert float(geometry.great_circle_km(90, a, 0, b)) == pytest.approx(np.pi / 2 * geometry.EARTH_RADIUS_KM)


def test_mean_position_crosses_the_date_line_in_each_group():
    longitude = np.array([[10.0, 12.0], [179.0, -179.0], [np.nan, np.nan]])
    latitude = np.where(np.isnan(longitude), np.nan, [[1.0, 3.0]] * 3)
    lat, lon = geometry.mean_position(latitude, longitude, axis=(1,))
    np.testing.assert_allclose(lat, [2.0, 2.0, np.nan])
    np.testing.assert_allclose(lon, [11.0, -180.0, np.nan])


@given(st.floats(-1000, 1000))
def test_wrap_longitude_lies_in_its_range(value):
    wrapped = float(geometry.wrap_longitude(value))
    assert -180 <= wrapped < 180
    assert np.isclose((wrapped - value) % 360, 0, atol=1e-6) or np.isclose(
        (wrapped - value) % 360, 360, atol=1e-6
    )
