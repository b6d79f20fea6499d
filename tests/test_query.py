"""Questions by place, time and likeness: equal to brute force, across the date line, at the poles, at both levels."""

from __future__ import annotations

import inspect
import math
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from query_stores import (
    COLS,
    FEATURES,
    ROWS,
    WINDOWS,
    brute_search,
    found,
    make_embeddings,
    place_of,
    write,
)

from gridrad_cube import query
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query import samples
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.store import open_embeddings


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for level in ("256", "2k"):
        write(make_embeddings(level=level), folder / f"{level}.zarr")
    return folder


@pytest.fixture(params=["memory", "disk"])
def emb(request, stores):
    return make_embeddings() if request.param == "memory" else open_embeddings(stores / "256.zarr")


# at


def test_at_finds_the_patch(emb):
    one = emb.gridrad.at("2024-05-20T02:10", 39.2, -98.1)
    assert (int(one.crop), int(one.row), int(one.col)) == (6, 1, 2)
    assert one.embedding.dims == ("channel", "feature")
    np.testing.assert_array_equal(one.embedding, emb.embedding[6, :, 1, 2])
    assert float(one.distance) == pytest.approx(float(great_circle_km(39.2, -98.1, 39, -98)))
    assert one.time_difference.values == np.timedelta64(-600, "s")
    assert str(one.source.values) == "a/file2.nc"
    window = [int(one[n]) for n in ("y_start", "y_stop", "x_start", "x_stop")]
    assert window == [64 + 32, 64 + 64, 2 * 32, 3 * 32]
    assert str(one.time.values) == "2024-05-20T02:00:00.000000000"


@pytest.mark.parametrize(("longitude", "col"), [(179.6, 1), (-179.6, 2), (180.4, 2), (-180.4, 1), (178.4, 0)])
def test_at_crosses_the_date_line(emb, longitude, col):
    one = emb.gridrad.at("2024-05-20", 9, longitude)
    assert (int(one.crop), int(one.row), int(one.col)) == (1, 1, col)


def test_at_works_at_the_pole(emb):
    one = emb.gridrad.at("2024-05-20", 90, 123, tolerance=60)
    assert int(one.crop) == 2
    assert int(one.row) == 0
    assert float(one.distance) == pytest.approx(0.5 * 111.195, rel=1e-3)


def test_at_takes_arrays_of_points(emb):
    several = emb.gridrad.at(["2024-05-20T00:00", "2024-05-20T03:00"], [40, 9.1], [-100, 179.4])
    assert several.embedding.dims == ("point", "channel", "feature")
    assert found(several, ("crop", "row", "col")) == [(0, 0, 0), (10, 1, 1)]
    same = emb.gridrad.at("2024-05-20T03:00", np.array([40, 9.1]), np.array([-100, 179.4]))
    assert same.crop.values.tolist() == [9, 10]
    np.testing.assert_array_equal(same.embedding[1], emb.embedding[10, :, 1, 1])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(range(24)),
    st.floats(-0.45, 0.45),
    st.floats(-0.45, 0.45),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_at_equals_brute_force(crop, dy, dx, row, col):
    dataset = make_embeddings(seed=1)
    window = WINDOWS[crop % 3]
    lat, lon = window[0] + (row + dy) * window[2], window[1] + (col + dx) * window[3]
    lat = min(lat, 90.0)
    when = dataset.time.values[crop] + np.timedelta64(20, "m")
    km = great_circle_km(lat, lon, dataset.latitude.values, dataset.longitude.values)
    km[5] = np.nan
    one = (
        query.at(dataset, when, lat, lon, tolerance=90, time_tolerance="10h") if np.nanmin(km) <= 90 else None
    )
    if one is None:
        with pytest.raises(SchemaError, match="nothing within 90"):
            query.at(dataset, when, lat, lon, tolerance=90, time_tolerance="10h")
        return
    away = np.abs((dataset.time.values - when) / np.timedelta64(1, "s"))
    keys = [(away[i], km[i, r, c], (i, r, c)) for i, r, c in zip(*np.nonzero(km <= 90), strict=True)]
    least = min(keys)
    got = (int(one.crop), int(one.row), int(one.col))
    assert away[got[0]] == least[0]
    assert km[got] == pytest.approx(least[1], abs=1e-6)


def test_at_prefers_the_nearest_time_that_has_the_place():
    dataset = make_embeddings()
    one = dataset.gridrad.at("2024-05-20T01:20", 9, 179.5, time_tolerance="3h")  # crop 4 at 01:00
    assert int(one.crop) == 4
    dataset["status"][4] = 1
    one = dataset.gridrad.at("2024-05-20T01:20", 9, 179.5, time_tolerance="3h")  # so 02:00 is next
    assert int(one.crop) == 7


def test_at_time_alone_gives_the_crops_of_that_time(emb):
    frame = emb.gridrad.at("2024-05-20T01:05")
    assert frame.sizes["crop"] == 2  # the third of that time was not written
    assert set(frame.grid.values) == {"g0", "g1"}


def test_at_place_alone_is_a_track(emb):
    xr.testing.assert_identical(emb.gridrad.at(latitude=39, longitude=-98), emb.gridrad.track(39, -98))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2024-05-20", 20, 20), r"nothing within 8\d\.\d km \(half the diagonal of a patch\) of latitude 20, "
         r"longitude 20 near 2024-05-20T00:00:00; the nearest is centered at latitude .* km away. Pass tolerance="),
        (("2024-05-20", 40, -100.5, 10), r"nothing within 10.0 km \(tolerance\) .* -100.0000 .* 42.6 km away"),
        (("2024-05-22", 40, -100), "nothing within 60 min of 2024-05-22T00:00:00; the nearest time is "
         "2024-05-20T07:00:00, 41 h away. Pass time_tolerance="),
        (("2024-05-20T00:40", 40, -100, None, "5min"), "nothing within 5 min of"),
        (("2024-05-20", 40), "latitude and longitude belong together"),
        ((), "got neither time nor place"),
        ((None, [1, 2], [3, 4]), "an array of places needs time="),
        (("2024-05-20", 91, 0), "place: got latitude 91"),
        (("2024-05-20", math.nan, 0), "place: got latitude nan"),
        (("2024-05-20", [1, 2], [1, 2, 3]), "expected single values, or 1-D arrays of one length"),
        (("2024-05-20", [[1]], [[1]]), "expected single values, or 1-D arrays of one length"),
        (("2024-05-20", [], []), "expected single values, or 1-D arrays of one length"),
        (("tomorrow", 40, -100), "time: cannot read 'tomorrow'; expected UTC such as '2024-05-20'"),
        (("20240520", 40, -100), "time: cannot read '20240520'"),
        (("2024-13-20", 40, -100), "time: cannot read '2024-13-20'"),
        ((np.datetime64("NaT", "s"), 40, -100), "time: cannot read .*NaT.*; expected UTC such as"),
        ((20240520, 40, -100), "time: cannot read 20240520; expected UTC such as .* or a datetime"),
        (("2024-05-20", 40, -100, "far"), "distance: got 'far'; expected kilometers"),
        (("2024-05-20", 40, -100, -5), "distance: got -5; expected kilometers"),
        (("2024-05-20", 40, -100, None, "6 fortnights"), "duration: got '6 fortnights'; expected a length of time"),
        (("2024-05-20", 40, -100, None, 6), "duration: got 6; expected a length of time"),
    ],
)  # fmt: skip
def test_at_refuses(arguments, message):
    with pytest.raises(SchemaError, match=message):
        make_embeddings().gridrad.at(*arguments)


def test_at_default_tolerance_covers_the_corners_of_a_patch_and_no_more():
    dataset = make_embeddings()
    corner = dataset.gridrad.at("2024-05-20T01:00", 37.51, -96.51)  # corner of the last patch of the window
    assert (int(corner.row), int(corner.col)) == (2, 3)
    with pytest.raises(SchemaError, match="nothing within"):
        dataset.gridrad.at("2024-05-20T01:00", 37.4, -96.4)


def test_at_a_single_patch_needs_a_tolerance():
    dataset = make_embeddings(rows=3, cols=4).isel(row=[0], col=[0])
    with pytest.raises(SchemaError, match="the size of a single patch is unknown"):
        dataset.gridrad.at("2024-05-20", 40, -100)
    assert int(dataset.gridrad.at("2024-05-20", 40, -100, tolerance=1).crop) == 0


def test_at_without_crops_says_so():
    dataset = make_embeddings()
    dataset["status"][:] = 2
    with pytest.raises(SchemaError, match="no crop was written"):
        dataset.gridrad.at("2024-05-20", 40, -100)


# within


def test_within_takes_a_box_and_a_period(emb):
    box = emb.gridrad.within((-99.5, 38.5, -97.5, 40.5), ("2024-05-20T01:00", "2024-05-20T03:00"))
    expected = [
        (c, h, r, q) for c in (3, 6) for h in (0, 1) for r in (0, 1) for q in (1, 2) if (c, h) != (3, 1)
    ]
    assert found(box) == expected
    assert box.embedding.dims == ("patch", "feature")
    for i, sample in enumerate(expected):
        np.testing.assert_array_equal(box.embedding[i], emb.embedding.values[sample])
    assert set(box.source.values) == {"a/file1.nc", "a/file2.nc"}
    assert box.flags.dims == ("patch",)
    np.testing.assert_array_equal(box.y_start, 64 + 32 * box.row)
    np.testing.assert_array_equal(box.x_stop, 32 * (box.col + 1))
    assert box.variable.dims == ("patch",)
    np.testing.assert_array_equal(box.latitude, emb.latitude.values[box.crop, box.row, box.col])
    assert "status" not in box


def test_within_is_lazy(emb):
    flat = emb.gridrad.within()
    some = flat.embedding[[5, 2, 40]]
    at = tuple(flat[d].values[[5, 2, 40]] for d in ("crop", "row", "col"))
    channel = [found(flat)[i][1] for i in (5, 2, 40)]
    np.testing.assert_array_equal(some, emb.embedding.values[at[0], channel, at[1], at[2]])
    np.testing.assert_array_equal(flat.embedding[7, 2:5], flat.embedding.values[7, 2:5])
    np.testing.assert_array_equal(flat.embedding[3:5, [4, 1]], flat.embedding.values[3:5][:, [4, 1]])
    assert flat.embedding[0:0].shape == (0, FEATURES)
    assert not isinstance(flat.embedding.variable._data, np.ndarray)


@settings(max_examples=80, deadline=None)
@given(st.floats(-360, 360), st.floats(0, 360), st.floats(-90, 90), st.floats(-90, 90))
def test_within_equals_a_mask_by_brute_force(west, width, a, b):
    dataset = _SHARED
    east = west + width if west + width <= 360 else west + width - 360
    south, north = min(a, b), max(a, b)
    lat, lon = dataset.latitude.values, dataset.longitude.values
    inside = np.zeros(lat.shape, bool)
    span = east - west if east >= west else east - west + 360
    for turn in (-720, -360, 0, 360, 720):
        inside |= (lon + turn >= west) & (lon + turn <= west + span)
        edge = np.abs(np.stack([lon + turn - west, lon + turn - west - span]))
        if np.nanmin(edge) < 1e-6:  # rounding decides about points on the edge
            return
    inside &= (lat >= south) & (lat <= north)
    inside[dataset.status.values != 0] = False
    expected = np.broadcast_to(inside[:, None], dataset.flags.shape)
    if not expected.any():
        with pytest.raises(SchemaError, match="no patch center in bbox"):
            query.within(dataset, (west, south, east, north), reject=())
        return
    box = query.within(dataset, (west, south, east, north), reject=())
    assert found(box) == list(zip(*(i.tolist() for i in np.nonzero(expected)), strict=True))


_SHARED = make_embeddings()


@pytest.mark.parametrize(
    ("box", "columns"),
    [
        ((179, 0, -179, 20), {1, 2}),
        ((179, 0, 181, 20), {1, 2}),
        ((-181, 0, -179, 20), {1, 2}),
        ((178.5, 0, 180, 20), {0, 1}),
        ((-180, 0, -178.5, 20), {2, 3}),
        ((-180, 0, 180, 20), {0, 1, 2, 3}),
        ((0, 0, 360, 20), {0, 1, 2, 3}),
    ],
)
def test_within_crosses_the_date_line(box, columns):
    assert set(_SHARED.gridrad.within(box).col.values.tolist()) == columns


def test_within_box_around_the_pole_holds_every_longitude():
    box = _SHARED.gridrad.within((-180, 89.4, 180, 90))
    assert set(box.col.values.tolist()) == {0, 1, 2, 3}
    assert set(box.row.values.tolist()) == {0}


def test_within_rejects_by_flags(emb):
    counts = {
        name: emb.gridrad.within(reject=reject).sizes["patch"]
        for name, reject in (
            ("default", None),
            ("none", ()),
            ("night", "night"),
            ("mask", Flag.night),
            ("zero", 0),
        )
    }
    positioned = (23 * 12 - 1) * 2
    assert counts == {
        "none": positioned, "zero": positioned, "night": positioned - 12, "mask": positioned - 12,
        "default": positioned - 12 - 1,
    }  # fmt: skip
    assert not (emb.gridrad.within().crop == 5).any()


def test_within_by_channel(emb):
    assert set(emb.gridrad.within(channel="visible_reflectance").channel.values) == {"visible_reflectance"}
    levels = make_embeddings(channels=("reflectivity@3.0km", "reflectivity@5.0km", "echo_top_height"))
    some = levels.gridrad.within(channel="reflectivity", time="2024-05-20T00")
    assert set(some.channel.values) == {"reflectivity@3.0km", "reflectivity@5.0km"}
    one = levels.gridrad.within(channel=["reflectivity@5.0km"], time="2024-05-20T00")
    assert set(one.channel.values) == {"reflectivity@5.0km"}


def test_within_of_a_channel_already_selected(emb):
    one = emb.sel(channel="ir_brightness_temperature")
    box = one.gridrad.within((-101, 39.5, -99.5, 40.5), "2024-05-20T02")
    assert (int(box.crop[0]), int(box.row[0]), int(box.col[0])) == (6, 0, 0)
    assert str(box.channel.values) == "ir_brightness_temperature"
    np.testing.assert_array_equal(box.embedding[0], emb.embedding.values[6, 0, 0, 0])


def test_within_of_a_composite_channel_rejects_night():
    both = make_embeddings(channels=("ir_brightness_temperature+visible_reflectance", "visible_reflectance"))
    both["flags"][3, 0] = int(Flag.night)
    assert 3 not in both.gridrad.within().crop.values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bbox": (0, 0, 1, 1)}, r"no patch center in bbox \(0, 0, 1, 1\); 23 of 24 crops .* latitudes 8.00 to 89.50, "
         "longitudes -180.00 to 179.50"),
        ({"bbox": (0, 50, 1, 40)}, r"expected \(west, south, east, north\) in degrees with south <= north"),
        ({"bbox": (0, 0, 1)}, "bbox: got"),
        ({"bbox": (0, 0, 400, 1)}, "bbox: got"),
        ({"bbox": (0, math.nan, 1, 1)}, "bbox: got"),
        ({"bbox": "0,0,1,1"}, "bbox: got"),
        ({"time": "2023"}, "no crop in the time asked for, got '2023'; the store has times from 2024-05-20T00:00:00 to "
         "2024-05-20T07:00:00"),
        ({"channel": "rain"}, "channel: no channel 'rain'; expected some of"),
        ({"channel": []}, "no channel asked for"),
        ({"reject": ["cloudy"]}, "unknown flag 'cloudy'"),
        ({"time": "2024-05-20T01", "bbox": (-180, 30, 0, 50), "channel": "visible_reflectance"},
         "none of 12 patches remains .* reject=None and channel= rule out all"),
    ],
)  # fmt: skip
def test_within_refuses(arguments, message):
    with pytest.raises(SchemaError, match=message):
        _SHARED.gridrad.within(**arguments)


# search


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_search_by_vector_equals_brute_force(emb, metric):
    vector = np.arange(1.0, FEATURES + 1)
    answer = emb.gridrad.search(vector, 20, metric=metric, separate=None)
    expected = brute_search(emb, vector, 20, metric=metric)
    assert found(answer) == [sample for sample, _ in expected]
    np.testing.assert_allclose(answer.score, [score for _, score in expected], rtol=1e-6)
    assert answer.score.dims == ("rank",)
    assert answer["rank"].values.tolist() == list(range(1, 21))
    assert answer.attrs["query"] == "vector"
    assert answer.attrs["exclude"] == "None"  # a vector has no neighbours
    assert answer.attrs["metric"] == metric


def test_search_answers_carry_the_way_back(emb):
    answer = emb.gridrad.search((6, 1, 2, "visible_reflectance"), 5)
    needed = (
        "crop row col channel time latitude longitude source scene y_start y_stop x_start x_stop flags score"
    )
    assert set(needed.split()) <= set(answer.variables)
    assert set(answer.data_vars) == {"score", "percentile"}
    for i in range(5):
        crop, _, row, col = found(answer)[i]
        assert answer.time.values[i] == emb.time.values[crop]
        assert float(answer.latitude[i]) == float(emb.latitude[crop, row, col])
        assert str(answer.source.values[i]) == f"a/file{crop // 3}.nc"
        assert str(answer.scene.values[i]) == f"scene{crop // 3}"
        x = int(emb.x_origin[crop]) + 32 * col
        window = [int(answer[n][i]) for n in ("y_start", "y_stop", "x_start", "x_stop")]
        assert window == [64 + 32 * row, 96 + 32 * row, x, x + 32]
    said = answer.attrs
    assert (said["query_crop"], said["query_row"], said["query_col"]) == (6, 1, 2)
    assert said["query_channel"] == "visible_reflectance"
    assert said["query_time"] == "2024-05-20T02:00:00Z"
    assert (said["query_latitude"], said["query_longitude"]) == (39.0, -98.0)
    assert said["checkpoint"] == "abc"


def test_search_answer_can_be_saved(emb, tmp_path):
    answer = emb.gridrad.search((6, 1, 2, 0), 3)
    answer.to_netcdf(tmp_path / "answer.nc")
    with xr.open_dataset(tmp_path / "answer.nc") as back:
        assert back.source.values.tolist() == answer.source.values.tolist()


@pytest.mark.parametrize(
    "exclude", [("6h", "200km"), ("90min", "150km"), ("4h", None), (None, "150km"), None]
)
def test_search_excludes_neighbours_of_the_query(emb, exclude):
    place = place_of(emb, 6, 1, 2)
    hours = {"6h": 6, "4h": 4, "90min": 1.5, None: np.inf}
    rule = (
        None
        if exclude is None
        else (hours[exclude[0]], np.inf if exclude[1] is None else float(exclude[1][:-2]))
    )
    answer = emb.gridrad.search((6, 1, 2, 0), 400, exclude=exclude)
    expected = brute_search(
        emb,
        emb.embedding.values[6, 0, 1, 2],
        400,
        lambda c, h, r, q: h == 0 and (c, r, q) != (6, 1, 2),
        place,
        rule,
    )
    assert found(answer) == [sample for sample, _ in expected]
    assert answer.attrs["searched"] == len(expected)


def test_search_exclusion_is_strict_on_its_edges():
    dataset = make_embeddings()
    step = float(great_circle_km(39, -98, 39, -97))
    for km, gone in ((step, False), (step * (1 + 1e-9), True)):
        answer = dataset.gridrad.search((6, 1, 2, 0), 400, exclude=("1s", km))
        assert ((6, 0, 1, 3) not in found(answer)) is gone
    for time, gone in (("1h", False), ("3601s", True)):
        answer = dataset.gridrad.search((6, 1, 2, 0), 400, exclude=(time, 1))
        assert ((9, 0, 1, 2) not in found(answer)) is gone


def test_search_excludes_across_the_date_line():
    answer = _SHARED.gridrad.search((7, 1, 1, 0), 400, exclude=("1s", "150km"))  # at 179.5
    assert (7, 0, 1, 2) not in found(answer)  # at -179.5
    assert (7, 0, 1, 3) in found(answer)


@pytest.mark.parametrize("k", [1, 5, 400])
@pytest.mark.parametrize("separate", [("6h", "200km"), ("90min", "120km"), (None, "50km")])
def test_search_separates_answers(emb, separate, k):
    rule = {"6h": 6, "90min": 1.5, None: np.inf}[separate[0]], float(separate[1][:-2])
    vector = emb.embedding.values[9, 1, 0, 0]
    answer = emb.gridrad.search(vector, k, separate=separate, channel="visible_reflectance")
    expected = brute_search(emb, vector, k, lambda c, h, r, q: h == 1, separate=rule)
    assert found(answer) == [sample for sample, _ in expected]


def test_search_filters_first(emb):
    vector = np.ones(FEATURES)
    answer = emb.gridrad.search(
        vector, 50, bbox=(178, 0, -178, 20), time=("2024-05-20T03:00", None), channel="visible_reflectance"
    )
    expected = brute_search(emb, vector, 50, lambda c, h, r, q: h == 1 and c >= 9 and c % 3 == 1)
    assert found(answer) == [sample for sample, _ in expected]


def test_search_by_place_is_search_by_its_patch(emb):
    patch = emb.gridrad.search((6, 1, 2), 5, channel="ir_brightness_temperature")
    place = {"time": "2024-05-20T02:10Z", "latitude": 39.2, "longitude": -98.1}
    for asked in (place | {"channel": "ir_brightness_temperature"}, ("2024-05-20T02:10", 39.2, -98.1, 0)):
        xr.testing.assert_identical(emb.gridrad.search(asked, 5), patch)
    xr.testing.assert_identical(emb.gridrad.search(place, 5, channel="ir_brightness_temperature"), patch)
    with pytest.raises(SchemaError, match="nothing within 5 min"):
        emb.gridrad.search(place | {"time_tolerance": "5min"}, channel=0)


def test_search_by_an_array_with_a_place_excludes_its_neighbours(emb):
    here = emb.gridrad.at("2024-05-20T02:00", 39, -98).embedding.sel(channel="ir_brightness_temperature")
    answer = emb.gridrad.search(here, 400, separate=None)
    expected = brute_search(emb, here.values, 400, place=place_of(emb, 6, 1, 2))
    assert found(answer) == [sample for sample, _ in expected]
    bare = emb.gridrad.search(here.values, 1)
    assert found(bare) == [(6, 0, 1, 2)]
    assert float(bare.score[0]) == 1.0


def test_search_of_one_channel_needs_no_name():
    dataset = make_embeddings(channels=("ir_brightness_temperature",))
    assert dataset.gridrad.search((6, 1, 2), 3).sizes["rank"] == 3
    flat = make_embeddings().isel(channel=0)
    answer = flat.gridrad.search((6, 1, 2), 3)
    assert found(answer, ("crop", "row", "col")) == [
        (s[0], *s[2:]) for s in found(make_embeddings().gridrad.search((6, 1, 2, 0), 3))
    ]


def test_search_in_part_of_a_store_keeps_its_names():
    whole = make_embeddings().assign_coords(crop=np.arange(24), row=np.arange(ROWS), col=np.arange(COLS))
    part = whole.isel(crop=slice(6, 20), row=[1, 2])
    answer = part.gridrad.search((7, 1, 2, 0), 3)
    assert answer.attrs["query_crop"] == 7
    for i, (crop, channel, row, col) in enumerate(found(answer)):
        assert float(answer.latitude[i]) == float(whole.latitude[crop, row, col])
        assert int(answer.y_start[i]) == 64 + 32 * row
        score = _cosine(whole.embedding.values[crop, channel, row, col], whole.embedding.values[7, 0, 1, 2])
        assert float(answer.score[i]) == pytest.approx(score, abs=1e-6)


def _cosine(a, b):
    a, b = a.astype(float), b.astype(float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (np.ones(5), {}, r"a vector of shape \(5,\); expected \(6,\), the length of the store's embeddings"),
        ([6, 1, 2], {}, r"a vector of shape \(3,\); expected \(6,\), .* or a tuple \(crop, row, col\)"),
        ([1, 2, 3, 4, 5, math.nan], {}, "it holds a NaN"),
        (np.zeros(6), {}, "a vector of zeros has no direction"),
        ("storm", {}, "query: got 'storm'; expected a vector, a sample"),
        ((6, 1), {}, r"query: got \(6, 1\); expected \(crop, row, col\[, channel\]\)"),
        ((99, 1, 2), {}, "no crop 99; the store has 0 to 23"),
        ((6, 3, 2), {}, "no row 3; the store has 0 to 2"),
        ((6, 1, 2), {}, "the sample has several channels, .* Pass channel="),
        ((6, 1, 2, "rain"), {}, "no channel 'rain'"),
        ((0, 2, 3, 0), {}, "has no embedding .* its flags: padding"),
        ((4, 0, 0, 0), {}, "has no embedding .* its flags: all_missing"),
        ((5, 0, 0, 0), {}, "has no embedding .* its flags: no flags"),
        ({"time": "2024", "latitude": 1}, {}, "query: got .* expected time, latitude and longitude"),
        ({"time": "2024", "latitude": 1, "longitude": 2, "k": 3}, {}, "query: got .* expected time, latitude"),
        ((6, 1, 2, 0), {"exclude": "6h"}, r"exclude: got '6h'; expected a time and a distance such as"),
        ((6, 1, 2, 0), {"separate": ("200km", "6h")}, "duration: got '200km'"),
        ((6, 1, 2, 0), {"time": ("2024-05-20T02:00", "2024-05-20T02:30"), "bbox": (-98.1, 38, -97.9, 39)},
         "every sample of the selection is the query or a neighbor of it"),
        ((6, 1, 2, 0), {"k": 0}, "k: got 0"),
        ((6, 1, 2, 0), {"metric": "taxicab"}, "metric: got 'taxicab'"),
    ],
)  # fmt: skip
def test_search_refuses(asked, options, message):
    with pytest.raises(SchemaError, match=message):
        _SHARED.gridrad.search(asked, **options)


def test_search_of_nothing_but_nan_says_so():
    dataset = make_embeddings()
    dataset["embedding"][:] = np.nan
    with pytest.raises(SchemaError, match=r"none of the \d+ samples of the selection has an embedding"):
        dataset.gridrad.search(np.ones(FEATURES))


def test_search_reads_crops_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_CROPS_AT_ONCE", 4)
    monkeypatch.setattr(samples, "_READ_BYTES", 100)
    monkeypatch.setattr(sys.modules["gridrad_cube.query.search"], "_ROWS_AT_ONCE", 50)
    dataset = write(make_embeddings(), tmp_path / "embeddings.zarr")
    answer = dataset.gridrad.search((6, 1, 2, 1), 30)
    xr.testing.assert_allclose(answer, make_embeddings().gridrad.search((6, 1, 2, 1), 30))


# level 2k


@pytest.fixture(params=["memory", "disk"])
def level_2k(request, stores):
    return make_embeddings(level="2k") if request.param == "memory" else open_embeddings(stores / "2k.zarr")


def test_level_2k_answers_the_same_calls(level_2k):
    one = level_2k.gridrad.at("2024-05-20T02:10", 39.3, -98.3)
    assert int(one.crop) == 6
    assert one.embedding.dims == ("channel", "feature")
    assert (float(one.latitude), float(one.longitude)) == pytest.approx((39, -98.5))
    answer = level_2k.gridrad.search((6, "ir_brightness_temperature"), 30, exclude=("90min", "200km"))
    vector = level_2k.embedding.values[6, 0].astype(float)
    expected = {
        c: _cosine(level_2k.embedding.values[c, 0], vector) for c in range(24) if c not in (3, 5, 6, 9)
    }
    order = sorted(expected, key=lambda c: -expected[c])
    assert answer.crop.values.tolist() == order
    np.testing.assert_allclose(answer.score, [expected[c] for c in order], atol=1e-6)
    assert "row" not in answer.variables
    window = [int(answer[n][0]) for n in ("y_start", "y_stop", "x_start", "x_stop")]
    x = int(level_2k.x_origin[order[0]])
    assert window == [64, 64 + 96, x, x + 128]
    assert level_2k.gridrad.search(
        {"time": "2024-05-20T02", "latitude": 39, "longitude": -98.5, "channel": 0}, 1
    ).sizes


def test_level_2k_positions_are_means_across_the_date_line(level_2k):
    box = level_2k.gridrad.within((179, 0, -179, 20), channel=1)
    assert set(box.crop.values.tolist()) == {1, 4, 7, 10, 13, 16, 19, 22}
    np.testing.assert_allclose(box.latitude, 9)
    np.testing.assert_allclose(np.abs(box.longitude), 180)
    assert box.embedding.dims == ("patch", "feature")
    assert box.flags.dims == ("patch",)


def test_level_2k_positions_depend_on_no_other_crop():
    # The first crop lies at longitude 0: about that meridian the date line would cut the second in two.
    dataset = make_embeddings(level="2k").isel(crop=[2, 1])
    _, longitude = samples.positions(dataset, slice(0, 2))
    np.testing.assert_allclose(abs(longitude[1]), 180)


def test_level_2k_flags_are_those_that_all_patches_share(level_2k):
    flat = level_2k.gridrad.within(reject=()).set_index(patch=["crop", "channel"])
    assert int(flat.flags.sel(crop=3, channel="visible_reflectance").item()) == int(Flag.night)
    assert int(flat.flags.sel(crop=4, channel="ir_brightness_temperature").item()) == 0
    assert int(flat.flags.sel(crop=0, channel="ir_brightness_temperature").item()) == 0
    default = level_2k.gridrad.within()
    assert default.sizes["patch"] == flat.sizes["patch"] - 1


def test_level_2k_refuses_patches(level_2k):
    with pytest.raises(SchemaError, match=r"expected \(crop\[, channel\]\) in this store"):
        level_2k.gridrad.search((6, 1, 2))
    with pytest.raises(SchemaError, match="no crop 99"):
        level_2k.gridrad.search(99, channel=0)
    with pytest.raises(SchemaError, match="follow: expected a patch"):
        level_2k.gridrad.follow((6, 0))


def test_level_2k_tolerance_is_half_the_crop(level_2k):
    with pytest.raises(SchemaError, match=r"nothing within 2\d\d\.\d km"):
        level_2k.gridrad.at("2024-05-20", 44, -98.5)


# through time


def test_track_is_one_place_at_every_time(emb):
    track = emb.gridrad.track(8.9, -179.4)
    assert track.embedding.dims == ("time", "channel", "feature")
    assert track.crop.values.tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert set(track.row.values) == {1}
    assert set(track.col.values) == {2}
    assert track.indexes["time"].is_monotonic_increasing
    np.testing.assert_array_equal(track.embedding, emb.embedding.values[1::3, :, 1, 2])
    some = emb.gridrad.track(8.9, -179.4, time=slice("2024-05-20T02:00", "2024-05-20T04:00"))
    assert some.crop.values.tolist() == [7, 10, 13]
    with pytest.raises(SchemaError, match=r"nothing within .* at any time; the nearest is centered"):
        emb.gridrad.track(0, 0)


def test_track_keeps_the_nearest_of_crops_of_one_time():
    dataset = make_embeddings()
    dataset["longitude"][3::3] -= 0.4  # a second window that overlaps: crop 3 onwards
    dataset["time"][3] = dataset.time[0]
    assert dataset.gridrad.track(39, -98, tolerance=100).crop.values[0] == 0
    assert dataset.gridrad.track(39, -98.3, tolerance=100).crop.values[0] == 3


def test_grid_puts_time_in_place_of_crops(emb):
    with pytest.raises(SchemaError, match="crops are not all of one window, got 4 different latitudes"):
        emb.gridrad.grid()
    one = emb.isel(crop=np.flatnonzero(emb.grid.values == "g1")[::-1])
    field = one.gridrad.grid()
    assert field.embedding.dims == ("time", "channel", "row", "col", "feature")
    assert field.latitude.dims == ("row", "col")
    np.testing.assert_array_equal(field.embedding, emb.embedding.values[1::3])
    assert field.indexes["time"].is_monotonic_increasing
    assert one.gridrad.grid("2024-05-20T03").sizes["time"] == 1
    with pytest.raises(SchemaError, match="several crops have the same time"):
        one.isel(crop=[0, 0, 1]).gridrad.grid()


def test_follow_finds_a_planted_storm():
    dataset = make_embeddings()
    track = [(1, 0), (1, 1), (2, 2), (1, 3), (0, 3)]
    rng = np.random.default_rng(9)
    pattern = rng.standard_normal(FEATURES) * 3
    for i, (row, col) in enumerate(track):
        dataset["embedding"][1 + 3 * i, 0, row, col] = pattern + rng.standard_normal(FEATURES) * 0.05
    dataset["embedding"][1 + 3 * 5 :] = np.nan
    path = dataset.gridrad.follow((1, 1, 0, "ir_brightness_temperature"))
    assert list(zip(path.row.values.tolist(), path.col.values.tolist(), strict=True)) == track
    assert path.crop.values.tolist() == [1, 4, 7, 10, 13]
    assert path.score.dims == ("time",)
    assert float(path.score[0]) == 1
    assert (path.score[1:] > 0.99).all()
    assert dataset.gridrad.follow((1, 1, 0), channel=0, steps=2).sizes["time"] == 3
    assert dataset.gridrad.follow((1, 1, 0), channel=0, time_tolerance="30min").sizes["time"] == 1
    place = {"time": "2024-05-20", "latitude": 9, "longitude": 178.5, "channel": 0}
    assert dataset.gridrad.follow(place).crop.values.tolist() == [1, 4, 7, 10, 13]
    with pytest.raises(SchemaError, match="follow: expected a patch"):
        dataset.gridrad.follow(pattern)


# stores of other kinds


def test_other_datasets_are_refused():
    with pytest.raises(SchemaError, match="neither a store of embeddings nor a cube of patches"):
        query.within(xr.Dataset({"a": ("x", [1])}))
    with pytest.raises(SchemaError, match="select crops by a list or slice"):
        query.search(_SHARED.isel(crop=0), np.ones(FEATURES))
    with pytest.raises(
        AttributeError, match=r"not a store of embeddings .*; it has describe. Select crops by a list"
    ):
        _SHARED.isel(crop=0).gridrad.search(np.ones(FEATURES))
    with pytest.raises(SchemaError, match="select rows and columns by a list or slice"):
        _SHARED.isel(row=0).gridrad.search(np.ones(FEATURES))
    lost = _SHARED.copy()
    lost.attrs = {}
    with pytest.raises(SchemaError, match="has no attribute gridrad_cube; expected a store"):
        lost.gridrad.within()
    unsized = _SHARED.assign_attrs(gridrad_cube={"kind": "embeddings"})
    with pytest.raises(SchemaError, match="does not say its patch size"):
        unsized.gridrad.within()


def test_overlapping_patches_have_windows_by_their_stride():
    info = _SHARED.attrs["gridrad_cube"] | {"stride": 16}
    box = _SHARED.assign_attrs(gridrad_cube=info).gridrad.within(time="2024-05-20T02", channel=0)
    np.testing.assert_array_equal(box.y_start, 64 + 16 * box.row)
    np.testing.assert_array_equal(box.y_stop - box.y_start, 32)


def test_a_store_without_flags_or_status_still_answers():
    plain = _SHARED.drop_vars(["flags", "status"])
    assert plain.gridrad.within().sizes["patch"] == (24 * 12 - 1) * 2
    assert plain.gridrad.search((6, 1, 2, 0), 3).sizes["rank"] == 3


def test_an_unfinished_store_is_refused(tmp_path):
    (tmp_path / "e.zarr" / "_build").mkdir(parents=True)
    with pytest.raises(SchemaError, match="not finished"):
        open_embeddings(tmp_path / "e.zarr")


def test_accessor_offers_what_the_dataset_can_do():
    methods = dir(_SHARED.gridrad)
    assert methods == [
        "analogues",
        "at",
        "describe",
        "follow",
        "frequency",
        "grid",
        "search",
        "track",
        "within",
    ]
    for name in set(methods) - {"describe"}:
        method = getattr(_SHARED.gridrad, name)
        assert method.__doc__ == getattr(query, name).__doc__
        parameters = list(inspect.signature(getattr(query, name)).parameters)
        assert list(inspect.signature(method).parameters) == parameters[1:]
    with pytest.raises(
        AttributeError, match=r".gridrad.patch: this dataset is not a cube of patches \(gridrad_cube.open"
    ):
        _SHARED.gridrad.patch(0, 0, 0)
    with pytest.raises(
        AttributeError, match=r".gridrad.pixels: this dataset is not an answer of at, within, track"
    ):
        _SHARED.gridrad.pixels()
    with pytest.raises(
        AttributeError, match=r".gridrad has no 'serach'; this dataset has analogues, at, describe"
    ):
        _SHARED.gridrad.serach((0, 0, 0))
    assert dir(_SHARED.gridrad.within().gridrad) == ["describe", "pixels", "reflectivity"]


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
    options = {"tolerance": tolerance, "time_tolerance": time_tolerance}
    index, km = query.locate(dataset, times, lat, lon, **options)
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
    with pytest.raises(SchemaError, match="no patch with a position near"):
        dataset.assign_coords(latitude=dataset.latitude * np.nan).gridrad.at(times, lat, lon)
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
