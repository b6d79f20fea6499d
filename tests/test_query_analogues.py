"""What followed and how often: analogues and frequencies, equal to loops over planted stores."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from query_stores import FEATURES, make_embeddings

from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.analogues import _events
from gridrad_cube.schema import SchemaError

IR = "ir_brightness_temperature"
BASE = np.datetime64("2024-05-20T00:00:00", "ns")


def planted(days=12, seed=0):
    """Hourly crops of three windows for some days. Where `pattern` stands, its sequel stands an hour later."""
    dataset = make_embeddings(times=24 * days, seed=seed)
    rng = np.random.default_rng(seed + 100)
    pattern, sequel = rng.standard_normal((2, FEATURES)) * 4
    where = []
    for day in range(1, days):
        hour = 24 * day + 18
        crop = 3 * hour + day % 3
        where.append(crop)
        dataset["embedding"][crop, 0, 1, 1] = pattern + 0.01 * rng.standard_normal(FEATURES)
        dataset["embedding"][crop + 3, 0, 1, 1] = sequel + 0.1 * rng.standard_normal(FEATURES)
    return dataset, where, pattern, sequel


def cosine(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def unit(v):
    return np.asarray(v, float) / np.linalg.norm(np.asarray(v, float))


def test_analogues_bring_what_came_after_each():
    dataset, where, _, sequel = planted()
    query = (where[3], 1, 1, IR)
    found = dataset.gridrad.analogues(query, ["1h", "2h"], k=10)
    others = [c for c in where if c != where[3]]
    assert sorted(found.crop.values.tolist()) == others
    np.testing.assert_array_equal(found.sequel_crop[:, 0], found.crop + 3)
    np.testing.assert_array_equal(found.sequel_crop[:, 1], found.crop + 6)
    np.testing.assert_array_equal(found.sequel_time[:, 1] - found.time, np.timedelta64(2, "h"))
    values = dataset.embedding.values.astype(float)
    after = np.stack([values[c + 3, 0, 1, 1] for c in found.crop.values])
    np.testing.assert_array_equal(found.sequel[:, 0], after)
    mean = np.mean([unit(v) for v in after], axis=0)
    truth = values[where[3] + 3, 0, 1, 1]
    assert float(found.spread[0]) == pytest.approx(1 - np.linalg.norm(mean), abs=1e-9)
    assert float(found.likeness[0]) == pytest.approx(cosine(mean, truth), abs=1e-9)
    assert float(found.persistence[0]) == pytest.approx(cosine(values[where[3], 0, 1, 1], truth), abs=1e-9)
    assert float(found.likeness[0]) > 0.95 > float(found.persistence[0])
    assert found.spread[0] < 0.05 < found.spread[1]  # two hours on there is only noise
    assert found.members.values.tolist() == [10, 10]
    assert found.events.values.tolist() == [10, 10]
    assert found.days.values.tolist() == [10, 10]
    assert cosine(mean, sequel) > 0.99
    assert found.attrs["query_crop"] == where[3]


def test_analogues_never_take_the_querys_own_weather():
    """An analogue just outside of the exclusion would have a sequel inside: the window is wider by the lead."""
    dataset, where, *_ = planted()
    crop = where[3]
    dataset["embedding"][crop - 3 * 14, 0, 1, 1] = dataset.embedding[
        crop, 0, 1, 1
    ]  # 14 h before, a perfect twin
    near = dataset.gridrad.analogues((crop, 1, 1, IR), "1h", k=1)
    assert int(near.crop[0]) == crop - 42
    far = dataset.gridrad.analogues((crop, 1, 1, IR), ["1h", "3h"], k=1)
    assert int(far.crop[0]) != crop - 42


def test_analogues_of_a_variable_of_the_cube():
    dataset, where, *_ = planted()
    rng = np.random.default_rng(1)
    values = rng.uniform(200, 300, (dataset.sizes["crop"], 3, 4)).astype("float32")
    values[where[5] + 3] = np.nan
    coldest = xr.DataArray(values, dims=("crop", "row", "col"), attrs={"units": "K", "long_name": "coldest"})
    found = dataset.gridrad.analogues((where[3], 1, 1, IR), "1h", k=20, of=coldest, bbox=(-180, -90, 180, 90))
    crops = found.crop.values[:10]
    after = np.array(
        [values[c + 3, found.row.values[i], found.col.values[i]] for i, c in enumerate(found.crop.values)]
    )
    good = np.isfinite(after)
    np.testing.assert_array_equal(found.sequel[:, 0], after)
    assert int(found.members[0]) == good.sum() < len(after)
    assert float(found["mean"][0]) == pytest.approx(after[good].astype(float).mean(), rel=1e-6)
    assert float(found.spread[0]) == pytest.approx(after[good].astype(float).std(), rel=1e-5)
    assert float(found.persistence[0]) == values[where[3], 1, 1]
    assert float(found.observed[0]) == values[where[3] + 3, 1, 1]
    np.testing.assert_array_equal(found.now[:10], values[crops, found.row.values[:10], found.col.values[:10]])
    assert found["mean"].attrs["units"] == "K"
    assert int(found.sequel_crop[int(np.flatnonzero(~good)[0]), 0]) == -1
    with pytest.raises(SchemaError, match="of= has dims"):
        dataset.gridrad.analogues((where[3], 1, 1, IR), "1h", of=coldest.isel(row=slice(2)))


def test_analogues_count_independent_events():
    dataset, where, pattern, _ = planted()
    for i in range(-2, 3):  # the storm of one day stands in five frames
        dataset["embedding"][where[7] + 3 * i, 0, 1, 1] = pattern
    found = dataset.gridrad.analogues((where[3], 1, 1, IR), "1h", k=14)
    assert int(found.members[0]) == 14
    assert int(found.events[0]) == 10
    assert len(np.unique(found.event)) == 10
    assert dataset.gridrad.analogues((where[3], 1, 1, IR), "1h", k=14, event=None).events[0] == 14
    separate = dataset.gridrad.analogues((where[3], 1, 1, IR), "1h", k=10, separate=("12h", "500km"))
    assert int(separate.events[0]) == 10


def test_events_are_linked_by_chains():
    hours = np.array([0, 5, 10, 40, 15, 41])
    found = xr.Dataset(coords={
        "time": ("rank", BASE + hours * np.timedelta64(1, "h")),
        "latitude": ("rank", np.zeros(6)), "longitude": ("rank", [179.9, -179.9, 179.9, 179.9, -179.9, 100.0]),
    })  # fmt: skip
    assert great_circle_km(0, 179.9, 0, -179.9) < 30
    assert _events(found, (6 * 3600, 30)).tolist() == [0, 0, 0, 1, 0, 2]
    assert _events(found, None).tolist() == list(range(6))


def test_analogues_at_the_end_of_the_store_and_of_a_vector():
    dataset, where, pattern, _ = planted()
    found = dataset.gridrad.analogues(pattern, "1h", k=11, channel=IR)
    assert np.isnan(found.likeness).all()
    assert np.isnan(found.persistence).all()
    assert int(found.members[0]) == 11
    short = dataset.isel(crop=slice(0, where[-1] + 1))
    found = short.gridrad.analogues((where[3], 1, 1, IR), "1h", k=10)
    assert int(found.members[0]) == 9
    lost = int(np.flatnonzero(found.crop.values == where[-1])[0])
    assert int(found.sequel_crop[lost, 0]) == -1
    assert np.isnat(found.sequel_time.values[lost, 0])
    last = dataset.gridrad.analogues((3 * 24 * 12 - 2, 1, 1, IR), "1h", k=3)
    assert np.isnan(last.likeness[0])  # nothing came after the last hour
    assert np.isfinite(last.spread[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lead": "20min", "time_tolerance": "5min"},
         "none of the 5 analogues has a sequel 20min later in the store; its times are 60 min"),
        ({"lead": "0h"}, "lead: got '0h'; expected a length of time"),
        ({"lead": []}, "lead: got"),
        ({"lead": None}, "lead: got None"),
        ({"lead": "soon"}, "duration: got 'soon'"),
        ({"lead": "1h", "event": "1h"}, "event: got '1h'"),
        ({"lead": "1h", "time": "2024-05-20T00"}, None),
    ],
)  # fmt: skip
def test_analogues_refuse(options, message):
    dataset, where, *_ = planted(days=4)
    if message is None:  # a selection of analogues alone
        assert dataset.gridrad.analogues((where[2], 1, 1, IR), k=5, **options).sizes["rank"] == 5
        return
    with pytest.raises(SchemaError, match=message):
        dataset.gridrad.analogues((where[2], 1, 1, IR), k=5, **options)


# how often


def by_loop(dataset, vector, threshold, key, channel=0, keep=lambda c: True):
    """(occurrences, observed) for each key, by a loop over all samples of one channel."""
    count, observed = {}, {}
    for crop in range(dataset.sizes["crop"]):
        if dataset.status.values[crop] or not keep(crop):
            continue
        for row, col in np.ndindex(3, 4):
            x = dataset.embedding.values[crop, channel, row, col].astype(float)
            if np.isnan(x).any() or dataset.flags.values[crop, channel, row, col] & 1 << 1:
                continue
            name = key(dataset.time.values[crop], float(dataset.longitude[crop, row, col]))
            observed[name] = observed.get(name, 0) + 1
            count[name] = count.get(name, 0) + (np.float32(cosine(x, vector)) >= np.float32(threshold))
    return count, observed


def months(time):
    return int(str(time)[5:7])


SEASON = {12: "DJF", 1: "DJF", 2: "DJF", 3: "MAM", 4: "MAM", 5: "MAM", 6: "JJA", 7: "JJA", 8: "JJA"}


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("hour", lambda t, x: int(str(t)[11:13])),
        ("solar_hour", lambda t, x: int((int(str(t)[11:13]) + int(str(t)[14:16]) / 60 + x / 15) % 24)),
        ("month", lambda t, x: months(t)),
        ("season", lambda t, x: SEASON.get(months(t), "SON")),
        ("year", lambda t, x: int(str(t)[:4])),
    ],
)
def test_frequency_equals_a_loop(by, key):
    dataset = make_embeddings(times=60, seed=8)
    times = BASE + np.arange(180) * np.timedelta64(53 * 3600 + 1200, "s")
    dataset = dataset.assign_coords(time=("crop", times))
    vector = np.arange(1.0, FEATURES + 1)
    found = dataset.gridrad.frequency(vector, 0.4, by, channel=IR)
    count, observed = by_loop(dataset, vector, 0.4, key)
    for name in found[by].values:
        name = name if isinstance(name, str) else name.item()
        one = found.sel({by: name})
        assert int(one["count"]) == count.get(name, 0)
        assert int(one.observed) == observed.get(name, 0)
        if observed.get(name):
            assert float(one.frequency) == pytest.approx(count[name] / observed[name])
        else:
            assert np.isnan(one.frequency)
    assert 0 < int(found["count"].sum()) < int(found.observed.sum())


def test_frequency_is_of_observed_samples_not_of_all():
    """Twice as many crops at one hour: the share stays the same there, and an hour without any is NaN, not 0."""
    dataset = make_embeddings(times=24, seed=9)
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal(FEATURES) * 4
    dataset["embedding"][:, 0] = rng.standard_normal((72, 3, 4, FEATURES)) - pattern
    dataset["embedding"][18:36, 0, 0] = pattern  # 06 to 11 UTC: a third of the patches
    keep = dataset.isel(crop=np.concatenate([np.arange(0, 60), np.arange(18, 21), np.arange(30, 33)]))
    found = keep.gridrad.frequency(pattern, 0.9, channel=IR)
    np.testing.assert_allclose(found.frequency[6:12], 1 / 3)
    assert (found.frequency.values[12:20] == 0).all()
    assert np.isnan(found.frequency.values[20:]).all()
    assert int(found.observed[6]) == 2 * int(found.observed[7])
    assert found.attrs["threshold"] == 0.9


def test_frequency_counts_convective_days():
    dataset, where, pattern, _ = planted()
    found = dataset.gridrad.frequency((where[0], 1, 1, IR), 0.999, by="hour")
    assert int(found.days[18]) == int(found["count"][18]) == 11
    assert int(found.observed_days[18]) == 12
    month = dataset.gridrad.frequency(pattern, 0.999, by="month", channel=IR)
    assert int(month.days.sel(month=5)) == 11
    far = dataset.gridrad.frequency(pattern, 2.0, by="month", channel=IR, metric="euclidean")
    assert int(far["count"].sum()) >= 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"threshold": 0.5, "by": "week"},
            "by='week'; expected one of hour, solar_hour, month, season, year",
        ),
        ({"threshold": np.nan}, "threshold nan; expected a finite score"),
        ({"threshold": 0.5, "bbox": (0, 0, 1, 1)}, "no patch center in bbox"),
    ],
)
def test_frequency_refuses(options, message):
    with pytest.raises(SchemaError, match=message):
        make_embeddings().gridrad.frequency(np.ones(FEATURES), **options)
    dataset = make_embeddings()
    dataset["embedding"][:] = np.nan
    with pytest.raises(SchemaError, match=r"none of the \d+ samples of the selection has an embedding"):
        dataset.gridrad.frequency(np.ones(FEATURES), 0.5)


def test_frequency_of_what_never_occurs_is_zero_where_it_was_observed():
    found = make_embeddings().gridrad.frequency(np.ones(FEATURES), 1.1)
    assert found["count"].values.sum() == found.days.values.sum() == 0
    assert (found.frequency.values[:8] == 0).all()
    assert np.isnan(found.frequency.values[8:]).all()


def test_level_2k_answers_analogues_and_frequencies():
    dataset = make_embeddings(times=24 * 6, level="2k", seed=3)
    found = dataset.gridrad.analogues((3 * 70 + 1, IR), ["1h", "3h"], k=6)
    assert found.sequel.dims == ("rank", "lead", "feature")
    later = found.crop.values + 9
    np.testing.assert_array_equal(found.sequel_crop[:, 1], np.where(later < dataset.sizes["crop"], later, -1))
    assert np.isfinite(found.likeness).all()
    values = np.arange(dataset.sizes["crop"], dtype=float)
    found = dataset.gridrad.analogues((3 * 70 + 1, IR), "1h", k=6, of=xr.DataArray(values, dims="crop"))
    np.testing.assert_array_equal(found.sequel[:, 0] - found.now, 3)
    daily = dataset.gridrad.frequency((3 * 70 + 1, IR), 0.2)
    assert int(daily.observed.sum()) == dataset.gridrad.within(channel=IR).sizes["patch"]
