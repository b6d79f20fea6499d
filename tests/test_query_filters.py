"""Where and when: polygons, seasons, hours and convective days, each equal to a loop over all samples."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from query_stores import COLS, FEATURES, ROWS, found, make_embeddings

from gridrad_cube import query, selection
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_rings, in_polygon


def through_the_year(crops=96, seed=0):
    """The store of the other tests with a crop every 93 hours: all hours and all seasons."""
    dataset = make_embeddings(times=crops // 3, seed=seed)
    start = np.datetime64("2023-11-29T23:30:00", "ns")
    return dataset.assign_coords(
        time=("crop", start + np.arange(crops) * np.timedelta64(93 * 3600 + 660, "s"))
    )


YEAR = through_the_year()


def by_loop(dataset, keep):
    """(crop, channel, row, col) of samples with a place whose time and place are kept, in order."""
    out = []
    lats, lons, status = dataset.latitude.values, dataset.longitude.values, dataset.status.values
    times = dataset.time.values.astype("datetime64[s]").tolist()
    for crop, channel, row, col in np.ndindex(dataset["embedding"].shape[:-1]):
        lat, lon = float(lats[crop, row, col]), float(lons[crop, row, col])
        if status[crop] == 0 and np.isfinite(lat) and keep(times[crop], lat, lon):
            out.append((crop, channel, row, col))
    return out


@pytest.mark.parametrize(
    ("rule", "keep"),
    [
        ({"season": "JJA"}, lambda t, y, x: t.month in (6, 7, 8)),
        ({"season": "djf"}, lambda t, y, x: t.month in (12, 1, 2)),
        ({"season": "AMJJAS"}, lambda t, y, x: 4 <= t.month <= 9),
        ({"season": 5}, lambda t, y, x: t.month == 5),
        ({"season": [1, 12]}, lambda t, y, x: t.month in (1, 12)),
        ({"hour": (18, 24)}, lambda t, y, x: t.hour >= 18),
        ({"hour": (21.5, 3)}, lambda t, y, x: t.hour + t.minute / 60 >= 21.5 or t.hour < 3),
        ({"hour": 6}, lambda t, y, x: t.hour == 6),
        ({"solar_hour": (12, 18)},
         lambda t, y, x: 12 <= (t.hour + t.minute / 60 + t.second / 3600 + x / 15) % 24 < 18),
        ({"convective_day": "2024-02-15"},
         lambda t, y, x: dt.datetime(2024, 2, 15, 12) <= t < dt.datetime(2024, 2, 16, 12)),
        ({"convective_day": ["2023-11-29", "2023-12-03"]},
         lambda t, y, x: (t - dt.timedelta(hours=12)).date() in (dt.date(2023, 11, 29), dt.date(2023, 12, 3))),
        ({"season": "MAM", "hour": (0, 12), "bbox": (170, 0, -170, 20)},
         lambda t, y, x: t.month in (3, 4, 5) and t.hour < 12 and y < 20 and abs(x) >= 170),
    ],
)  # fmt: skip
def test_rules_equal_a_loop(rule, keep):
    expected = by_loop(YEAR, keep)
    assert expected
    assert found(YEAR.gridrad.within(reject=(), **rule)) == expected


def test_rules_narrow_a_search():
    rule = {"season": "JJA", "hour": (6, 18), "polygon": [(-101, 45), (-98.5, 45), (-98.5, 30), (-101, 30)]}
    inside = found(YEAR.gridrad.within(**rule))
    answer = YEAR.gridrad.search(np.ones(FEATURES), 1000, **rule)
    assert sorted(found(answer)) == inside
    with pytest.raises(TypeError, match="unexpected keyword argument 'seasons'"):
        YEAR.gridrad.search(np.ones(FEATURES), seasons="JJA")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"season": "J"}, "season: got 'J'; expected initials of months that follow each other"),
        ({"season": "JAJ"}, "season: got 'JAJ'"),
        ({"season": 13}, "season: got 13"),
        ({"season": []}, r"season: got \[\]"),
        ({"hour": (3, 3)}, r"hour: got \(3, 3\); expected \(start, stop\) in hours from 0 to 24"),
        ({"hour": (5, 25)}, "hour: got"),
        ({"hour": "noon"}, "hour: got 'noon'"),
        ({"solar_hour": (1, 2, 3)}, "solar_hour: got"),
        ({"convective_day": "2024-05"}, "convective_day: got '2024-05'; expected a date such as '2024-05-20'"),
        ({"convective_day": "2024-05-20T06"}, "convective_day: got"),
        ({"convective_day": []}, "convective_day: got none"),
        ({"convective_day": "2031-01-01"}, "no crop in the time asked for, .*convective_day='2031-01-01'; the store"),
        ({"time": "2024-05", "season": "DJF"}, "no crop in the time asked for, got '2024-05', season='DJF'; the store"),
        ({"polygon": [(0, 0), (1, 1)]}, r"polygon: got a ring of corners .* three or more \(longitude, latitude\)"),
        ({"polygon": [(0, 0), (1, 1), (0, 95)]}, "polygon: got a ring of corners"),
        ({"polygon": "circle"}, "polygon: the text is no GeoJSON"),
        ({"polygon": {"type": "Point", "coordinates": [0, 0]}}, "got GeoJSON of type 'Point'; expected Polygon"),
        ({"polygon": [(0, 0), (1, 0), (0, 1)]}, r"no patch centre in polygon \(\(0, 0\), .*; 95 of 96 crops"),
        ({"solar_hour": (3, 3.001)}, r"no patch centre in solar_hour \(3, 3.001\)"),
    ],
)  # fmt: skip
def test_rules_refuse(rule, message):
    with pytest.raises(SchemaError, match=message):
        YEAR.gridrad.within(**rule)


# polygons


def inside_by_crossings(lat, lon, corners):
    """One point against one ring: edges that a ray to the east crosses, from the point and its images."""

    def crossings(x):
        edges = zip(corners, [*corners[1:], corners[0]], strict=True)
        return sum(
            (y1 > lat) != (y2 > lat) and x < x1 + (lat - y1) * (x2 - x1) / (y2 - y1)
            for (x1, y1), (x2, y2) in edges
        )

    return any(crossings(lon + turn) % 2 for turn in (-360, 0, 360))


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-180, 180), st.floats(-60, 60), st.lists(st.floats(0.2, 1), min_size=3, max_size=8), st.integers(0, 99)
)  # fmt: skip
def test_polygon_equals_crossings_of_a_ray(x, y, radii, seed):
    angle = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, len(radii)))
    corners = [(x + 80 * r * np.cos(a), y + 25 * r * np.sin(a)) for r, a in zip(radii, angle, strict=True)]
    points = np.random.default_rng(seed).uniform([-85, -180], [85, 180], (60, 2))
    # As files have it: longitudes wrapped.
    wrapped = [((c + 180) % 360 - 180, d) for c, d in corners]
    got = in_polygon(points[:, 0], points[:, 1], as_rings(wrapped))
    expected = [inside_by_crossings(lat, lon, corners) for lat, lon in points]
    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("corners", "columns"),
    [
        ([(179, 0), (-179, 0), (-179, 20), (179, 20)], {1, 2}),
        ([(179, 0), (181, 0), (181, 20), (179, 20)], {1, 2}),
        ([(178, 0), (-178, 0), (-178, 20), (178, 20), (178, 0)], {0, 1, 2, 3}),
        ([(-180, -80), (180, -80), (180, 20), (-180, 20)], {0, 1, 2, 3}),
    ],
)
def test_polygon_crosses_the_date_line(corners, columns):
    box = YEAR.gridrad.within(polygon=corners)
    assert set(box.col.values.tolist()) == columns
    assert (np.abs(box.longitude) > 177).all()


def test_polygon_goes_around_the_pole():
    around = [(0, 89.1), (120, 89.1), (-120, 89.1)]
    box = YEAR.gridrad.within(polygon=around)
    assert set(box.col.values.tolist()) == {0, 1, 2, 3}
    assert set(box.row.values.tolist()) == {0, 1}  # at 89.5 and 89.25, not at 89.0
    assert in_polygon(np.array([90.0, -90.0]), np.array([0.0, 0.0]), as_rings(around)).tolist() == [
        True,
        False,
    ]
    south = [(lon, -lat) for lon, lat in around]
    assert in_polygon(np.array([90.0, -90.0]), np.array([0.0, 0.0]), as_rings(south)).tolist() == [
        False,
        True,
    ]


def test_polygon_from_geojson_with_holes():
    ring = [[-101, 45], [-96, 45], [-96, 30], [-101, 30], [-101, 45]]
    hole = [[-99.5, 45], [-98.5, 45], [-98.5, 30], [-99.5, 30], [-99.5, 45]]
    shape = {"type": "Polygon", "coordinates": [ring, hole]}
    assert set(YEAR.gridrad.within(polygon=shape).col.values.tolist()) == {0, 2, 3}
    many = {
        "type": "MultiPolygon",
        "coordinates": [[hole], [[[-97.5, 45], [-96, 45], [-96, 30], [-97.5, 30]]]],
    }
    assert set(YEAR.gridrad.within(polygon=many).col.values.tolist()) == {1, 3}
    feature = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": shape}]}
    whole = YEAR.gridrad.within(polygon=shape)
    for other in (feature, f'{{"type": "Polygon", "coordinates": {[ring, hole]}}}', Shape(shape)):
        assert whole.identical(YEAR.gridrad.within(polygon=other))


class Shape:
    """What shapely and geopandas offer."""

    def __init__(self, shape):
        self.__geo_interface__ = shape


# days


def test_convective_day_begins_at_12_utc():
    times = np.array(["2024-05-20T11:59:59", "2024-05-20T12:00", "2024-05-21T00:00", "2024-05-21T11:59:59", "NaT"],
                     "datetime64[s]")  # fmt: skip
    expected = np.array(["2024-05-19", "2024-05-20", "2024-05-20", "2024-05-20", "NaT"], "datetime64[D]")
    np.testing.assert_array_equal(query.convective_day(times), expected)
    assert query.convective_day(times).dtype == "datetime64[D]"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40 * 86400), min_size=40, max_size=120), st.integers(0, 3), st.integers(1, 3))
def test_split_shares_no_convective_day_and_keeps_its_gap(seconds, gap, parts):
    times = np.datetime64("2024-05-01", "s") + np.array(seconds).astype("timedelta64[s]")
    try:
        part = query.split_by_day(times, [1 / parts] * parts, gap=gap)
    except SchemaError:  # too few days for so many parts
        return
    day = query.convective_day(times).astype(int)
    for a in range(parts):
        assert (part == a).any()
        for b in range(a + 1, parts):
            assert day[part == b].min() - day[part == a].max() > gap
    assert (part[day == day.min()] == 0).all()


def test_split_refuses():
    times = np.array(["2024-05-20T18", "2024-05-21T18", "NaT"], "datetime64[s]")
    assert query.split_by_day(times, [0.5, 0.5], gap=0).tolist() == [0, 1, -1]
    with pytest.raises(SchemaError, match="no convective day is left for part 1"):
        query.split_by_day(times, [0.5, 0.5], gap=1)
    with pytest.raises(SchemaError, match="expected shares above 0 with a sum of 1"):
        query.split_by_day(times, [0.5, 0.6])


def test_solar_hour_is_noon_where_the_sun_is_highest():
    assert selection.solar_hour_of(np.datetime64("2024-05-20T18:00"), -90.0) == 12
    assert selection.solar_hour_of(np.datetime64("2024-05-20T18:00"), 179.0) == pytest.approx(
        5.9333, abs=1e-4
    )


def test_times_without_a_zone_that_python_takes_for_local_are_refused():
    with pytest.raises(SchemaError, match="a datetime without a zone, which Python takes for local time"):
        YEAR.gridrad.within(time=(dt.datetime(2024, 5, 20), None))
    with pytest.raises(SchemaError, match="time: cannot read '2024-05-20T12:00 CDT'"):
        YEAR.gridrad.at("2024-05-20T12:00 CDT", 40, -100)


# many points


@pytest.mark.parametrize("level", ["256", "2k"])
@pytest.mark.parametrize(
    ("tolerance", "time_tolerance"), [(None, None), (80, "100min"), (None, "7h"), ("250km", None)]
)
def test_many_points_are_found_as_one_by_one(level, tolerance, time_tolerance):
    dataset = make_embeddings(level=level, seed=2)
    dataset["latitude"][4::3] += 0.3  # the second window shifts from time to time: crops that overlap
    dataset["latitude"][7] = dataset["latitude"][6].values  # two crops of one time and place
    dataset["longitude"][7] = dataset["longitude"][6].values
    rng = np.random.default_rng(5)
    crop = rng.integers(0, 24, 60)
    lat = np.clip(np.nan_to_num(dataset.latitude.values[crop, 1, 1]) + rng.uniform(-2, 2, 60), -90, 90)
    lon = np.nan_to_num(dataset.longitude.values[crop, 1, 2]) + rng.uniform(-2, 2, 60)
    times = dataset.time.values[crop].astype("datetime64[s]") + rng.integers(-6, 7, 60) * np.timedelta64(
        10, "m"
    )
    tree = query.Places(dataset)
    options = {"tolerance": tolerance, "time_tolerance": time_tolerance}
    index, km = tree.find(times, lat, lon, **options)
    hits = 0
    for i in range(60):
        try:
            one = dataset.gridrad.at(times[i], lat[i], lon[i], **options)
        except SchemaError:
            assert index["crop"][i] == -1
            assert np.isnan(km[i])
            continue
        hits += 1
        assert km[i] == pytest.approx(float(one.distance), abs=1e-6)
        assert {d: int(v[i]) for d, v in index.items()} == {d: int(one[d]) for d in index}
    assert 10 < hits <= 60


def test_at_takes_many_points_at_once():
    dataset = make_embeddings()
    times = np.repeat(dataset.time.values[[6, 7]], 50)
    lat, lon = np.repeat([39.1, 9.2], 50), np.repeat([-98.2, 179.4], 50)
    several = dataset.gridrad.at(times, lat, lon)
    assert several.embedding.dims == ("point", "channel", "feature")
    assert found(several, ("crop", "row", "col")) == [(6, 1, 2)] * 50 + [(7, 1, 1)] * 50
    np.testing.assert_allclose(several.distance[:50], great_circle_km(39.1, -98.2, 39, -98))
    with pytest.raises(SchemaError, match=r"nothing within .* of latitude 20, longitude 0 near"):
        dataset.gridrad.at(
            times, np.where(np.arange(100) == 70, 20, lat), np.where(np.arange(100) == 70, 0, lon)
        )
    for wrong in (91.0, np.nan):
        with pytest.raises(SchemaError, match=f"place: got latitude {wrong}"):
            dataset.gridrad.at(times, np.where(np.arange(100) == 70, wrong, lat), lon)
    with pytest.raises(SchemaError, match="no crop that was written has a position"):
        query.Places(dataset.assign_coords(latitude=dataset.latitude * np.nan))
    dataset["status"][:] = 2
    with pytest.raises(SchemaError, match="no crop was written"):
        dataset.gridrad.at(times, lat, lon)


# a field on its axes


def test_grid_by_degree_has_latitude_and_longitude_as_axes():
    dataset = make_embeddings()
    one = dataset.isel(crop=np.flatnonzero(dataset.grid.values == "g1"))
    field = one.gridrad.grid(by="degree")
    assert field.embedding.dims == ("time", "channel", "latitude", "longitude", "feature")
    assert field.sizes["latitude"] == ROWS
    assert field.sizes["longitude"] == COLS
    near = field.embedding.sel(latitude=9.2, longitude=179.4, method="nearest")
    np.testing.assert_array_equal(near, dataset.embedding.values[1::3, :, 1, 1])
    bent = one.assign_coords(latitude=one.latitude + 0.01 * one.col.astype(float) if "col" in one.coords else
                             one.latitude + 0.01 * np.arange(COLS))  # fmt: skip
    with pytest.raises(SchemaError, match=r"latitudes along a row .* differ by 0.03 degrees"):
        bent.gridrad.grid(by="degree")
    with pytest.raises(SchemaError, match="by='pixel'; expected 'cell' or 'degree'"):
        one.gridrad.grid(by="pixel")
    with pytest.raises(SchemaError, match="needs patches"):
        make_embeddings(level="2k").isel(crop=[1, 4]).gridrad.grid(by="degree")
