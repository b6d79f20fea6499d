"""Selections: times, boxes, polygons, seasons, hours, days, labels, flags, and the same samples everywhere."""

from __future__ import annotations

import datetime as dt

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cubes import ALTITUDES, IR, PATCH, Z, random_codes, write_cube
from cubes import COLS as CUBE_COLS
from cubes import ROWS as CUBE_ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from query_stores import FEATURES, found, make_embeddings

from gridrad_cube import plot, query, selection
from gridrad_cube.datasets import PatchDataset
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.selection import choose_labels, in_box, in_polygon, labels_of
from gridrad_cube.store import open_cube


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


# times


@pytest.mark.parametrize(
    "value",
    [
        "2024-05-20T21:30", "2024-05-20 21:30:00", "2024-05-20T21:30Z", "2024-05-20T16:30-05:00",
        "2024-05-20T16:30:00-0500", "2024-05-21T00:30+03", dt.datetime(2024, 5, 20, 21, 30, tzinfo=dt.UTC),
        dt.datetime(2024, 5, 20, 16, 30, tzinfo=dt.timezone(dt.timedelta(hours=-5))), dt.datetime(2024, 5, 20, 21, 30),
        cftime.DatetimeGregorian(2024, 5, 20, 21, 30), pd.Timestamp("2024-05-20T21:30"),
        np.datetime64("2024-05-20T21:30"), np.datetime64("2024-05-20T21:30:00.5", "ns"),
        pd.Timestamp("2024-05-20T16:30", tz="America/Chicago"),
        xr.DataArray(np.datetime64("2024-05-20T21:30", "ns")),
    ],
)  # fmt: skip
def test_times_are_utc_and_zones_are_converted(value):
    assert selection.as_time(value) == np.datetime64("2024-05-20T21:30:00", "s")


@pytest.mark.parametrize(
    ("time", "start", "stop"),
    [
        (("2024-05-20", "2024-05-21"), "2024-05-20T00:00:00", "2024-05-21T00:00:00"),
        (slice("2024-05-20", "2024-05-21"), "2024-05-20T00:00:00", "2024-05-22T00:00:00"),
        (slice("2024-05-20T06:00", "2024-05-20T06:00"), "2024-05-20T06:00:00", "2024-05-20T06:01:00"),
        (slice(None, np.datetime64("2024-05-20T06:00:00")), None, "2024-05-20T06:00:01"),
        ("2024", "2024-01-01T00:00:00", "2025-01-01T00:00:00"),
        ("2024-05", "2024-05-01T00:00:00", "2024-06-01T00:00:00"),
        (dt.date(2024, 5, 20), "2024-05-20T00:00:00", "2024-05-21T00:00:00"),
        ((None, "2024-05"), None, "2024-05-01T00:00:00"),
        (("2024-05", None), "2024-05-01T00:00:00", None),
        (slice(None), None, None),
    ],
)
def test_periods_of_pairs_slices_and_names(time, start, stop):
    expected = tuple(None if t is None else np.datetime64(t, "s") for t in (start, stop))
    assert selection.as_periods(time) == [expected]


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (("2024-05-21", "2024-05-20"), "start is not before stop"),
        (("2024-05-20", "2024-05-20"), "start is not before stop"),
        (("2024",), "got 1 values"),
        (slice("2024", "2025", 2), "slice with step 2"),
    ],
)
def test_periods_refuse(time, message):
    with pytest.raises(SchemaError, match=message):
        selection.as_periods(time)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("6h", 21600), ("90 min", 5400), ("2 days", 172800), ("1.5h", 5400), ("30s", 30), (dt.timedelta(hours=1), 3600),
     (np.timedelta64(2, "h"), 7200), (None, np.inf), ("6 hours", 21600)],
)  # fmt: skip
def test_durations(value, seconds):
    assert selection.as_seconds(value) == seconds


@pytest.mark.parametrize(
    ("value", "km"), [("200km", 200), ("200 km", 200), ("200", 200), (5, 5), ("500m", 0.5), (None, np.inf)]
)
def test_distances(value, km):
    assert selection.as_km(value) == km


# rules


def test_excluded_times_are_taken_from_those_asked_for():
    times = np.array([f"2024-05-{day:02d}T12" for day in range(1, 11)] + ["NaT"], "datetime64[s]")
    where = selection.Selection(
        time=[("2024-05-02", "2024-05-04"), ("2024-05-06", None)],
        exclude_time=[("2024-05-07", "2024-05-09"), slice("2024-05-02", "2024-05-02")],
    )
    assert np.flatnonzero(where.in_time(times)).tolist() == [2, 5, 8, 9]
    assert selection.Selection(exclude_time="2024-05-03").in_time(times).sum() == 9
    with pytest.raises(
        SchemaError, match="no crop in the time asked for, got '2024-05-03', exclude_time='2024-05'"
    ):
        selection.Selection(time="2024-05-03", exclude_time="2024-05").in_time(times)


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
    answer = YEAR.gridrad.search(np.ones(FEATURES), 1000, separate=None, **rule)
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
        ({"polygon": "circle"}, "polygon: the text is not GeoJSON"),
        ({"polygon": {"type": "Point", "coordinates": [0, 0]}}, "got GeoJSON of type 'Point'; expected Polygon"),
        ({"polygon": [(0, 0), (1, 0), (0, 1)]}, r"no patch center in polygon \[\(0, 0\), .*; 95 of 96 crops"),
        ({"solar_hour": (3, 3.001)}, r"no patch center in solar_hour \(3, 3.001\)"),
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
    got = in_polygon(points[:, 0], points[:, 1], wrapped)
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
    assert in_polygon(np.array([90.0, -90.0]), np.array([0.0, 0.0]), around).tolist() == [
        True,
        False,
    ]
    south = [(lon, -lat) for lon, lat in around]
    assert in_polygon(np.array([90.0, -90.0]), np.array([0.0, 0.0]), south).tolist() == [
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
    except SchemaError:  # too few days for this number of parts
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


def test_zones_are_offsets_not_names():
    with pytest.raises(SchemaError, match="time: cannot read '2024-05-20T12:00 CDT'"):
        YEAR.gridrad.at("2024-05-20T12:00 CDT", 40, -100)


# the same text takes the same samples everywhere


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """Four hourly crops of infrared and of radar at three altitudes about the date line; some patches flagged."""
    shape = (4, CUBE_ROWS * PATCH, CUBE_COLS * PATCH)
    pixels = {IR: random_codes(IR, shape), Z: random_codes(Z, (4, 3, *shape[1:]))}
    longitude = (170.1 + 5 * np.arange(CUBE_COLS) + 180) % 360 - 180
    flags = np.zeros((4, 3, CUBE_ROWS, CUBE_COLS), np.uint16)
    flags[0, 1, 0, 0], flags[1, :, 2, 2], flags[2, 0] = Flag.all_missing, Flag.padding, Flag.channel_absent
    flags[3, 1, 1, 1] = Flag.limb
    small = {
        "longitude": np.broadcast_to(longitude, (4, CUBE_ROWS, CUBE_COLS)),
        "time": np.datetime64("2021-07-05T17", "s").astype(np.int64) + 3600 * np.arange(4),
        f"{Z}_flags": flags,
    }
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", pixels, small=small)


def opened(cube):
    """The cube with the coordinates of a whole store, which queries need."""
    zeros = ("crop", np.zeros(4, np.int64))
    names = ("crop", np.full(4, "g"))
    return open_cube(cube).assign_coords(y_origin=zeros, x_origin=zeros, grid=names, scene=names)


def in_each(cube, **rules):
    """(crop, row, col) that `PatchDataset`, `.within` and, without other rules, `.patches` take."""
    data = PatchDataset(
        cube, **{"channels" if name == "channel" else name: rule for name, rule in rules.items()}
    )
    table = data.table
    several = {tuple(row) for row in np.stack([table.crop, table.row, table.col], 1).tolist()}
    answers = [opened(cube).gridrad.within(**rules)]
    if set(rules) <= {"channel", "reject"}:
        answers.append(opened(cube).gridrad.patches(**rules))
    return several, *(set(found(answer, ("crop", "row", "col"))) for answer in answers)


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ({"time": "2021-07-05T18"}, 20),
        ({"time": slice("2021-07-05T18", "2021-07-05T19")}, 40),
        ({"time": (dt.datetime(2021, 7, 5, 18), None)}, 60),
        ({"time": [("2021-07-05T17", "2021-07-05T18"), ("2021-07-05T20", None)]}, 40),
        ({"time": (["2021-07-05T17", "2021-07-05T18"], slice("2021-07-05T20", None))}, 40),
        ({"time": (pd.Timestamp("2021-07-05T13", tz="America/Chicago"), None)}, 60),
        ({"bbox": (170.1, 30, 175.1, 50)}, 32),
        ({"bbox": (180.1, 30, -169.9, 50)}, 48),
        ({"channel": "reflectivity@3.0km"}, 78),
        ({"channel": ["reflectivity@3km"], "time": "2021-07-05"}, 78),
        ({"channel": "reflectivity@3.004km", "reject": ()}, 79),
        ({"channel": "reflectivity", "altitude": 1.0, "time": "2021-07-05"}, 59),
        ({"channel": "reflectivity@3.0km", "reject": None}, 78),
        ({"channel": "reflectivity@3.0km", "reject": "limb"}, 78),
        ({"channel": "reflectivity@1.0km", "reject": int(Flag.all_missing)}, 59),
    ],
)  # fmt: skip
def test_the_same_text_takes_the_same_samples_everywhere(cube, rules, count):
    first, *others = in_each(cube, **rules)
    assert all(other == first for other in others)
    assert len(first) == count


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"time": "noon"}, "time: cannot read 'noon'"),
        ({"time": slice("2021", "2022", 2)}, "slice with step 2"),
        (
            {"time": "2022"},
            "no crop in the time asked for, got '2022'; the store has times from 2021-07-05T17",
        ),
        ({"bbox": (0, 0, 1)}, r"expected \(west, south, east, north\)"),
        ({"channel": "reflectivity@17.4km"}, "no channel 'reflectivity@17.4km'; expected some of"),
        ({"channel": "reflectivity@high"}, "no channel 'reflectivity@high'"),
        ({"reject": ["cloudy"]}, "unknown flag 'cloudy'"),
    ],
)
def test_the_same_text_is_refused_everywhere(cube, rules, message):
    data = {"channels" if name == "channel" else name: rule for name, rule in rules.items()}
    with pytest.raises(SchemaError, match=message):
        PatchDataset(cube, **data)
    with pytest.raises(SchemaError, match=message):
        opened(cube).gridrad.within(**rules)
    if "channel" in rules:
        with pytest.raises(SchemaError, match=message):
            plot.scene(opened(cube), **rules)


def test_a_default_rejects_what_training_rejects(cube):
    assert in_each(cube)[1] == in_each(cube, reject=None)[2]
    assert len(in_each(cube, channel=Z, reject=())[2]) == 79


def test_edges_of_a_box_include_what_the_precision_of_positions_rounds_off():
    for dtype in (np.float64, np.float32):
        degrees = np.array([-97.7, -97.1], dtype)
        assert in_box(np.array([38.2, 38.2], dtype), degrees, (-97.7, 38.2, -97.1, 38.2)).all()
        assert in_box(np.array([38.2, 38.2], dtype), degrees % 360, (-97.7, 38.2, -97.1, 38.2)).all()
        assert not in_box(np.array([38.2], dtype), degrees[:1], (-97.6999, 38, -97, 39)).any()


def test_labels_of_embeddings_are_named_as_those_of_a_cube(cube):
    names = [label.name for label in labels_of(opened(cube))]
    assert names == [IR, *(f"reflectivity@{km}km" for km in ALTITUDES)]
    store = make_embeddings(channels=tuple(names))
    for asked in ("reflectivity", "reflectivity@3.0km", ["reflectivity@5.5km", IR], 2, None):
        one, other = (choose_labels(labels_of(ds), asked, "channel") for ds in (opened(cube), store))
        assert [label.name for label in one] == [label.name for label in other]
    with pytest.raises(
        SchemaError, match=r"no altitude asked for, got \[\]; expected some of \[1.0, 3.0, 5.5\] km"
    ):
        choose_labels(labels_of(store), "reflectivity", "channel", altitude=[])
    assert [label.kind for label in labels_of(store.isel(channel=0).drop_vars(["channel", "variable"]))] == [
        "field"
    ]
    with pytest.raises(SchemaError, match="no level at 2 km; expected one of"):
        choose_labels(labels_of(store), "reflectivity", "channel", altitude=2)
