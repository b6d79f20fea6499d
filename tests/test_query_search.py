"""By likeness: examples, batches, percentiles, probes, ties, an index; equal to brute force."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import xarray as xr
from query_stores import FEATURES, brute_search, found, make_embeddings, near, place_of, write

from gridrad_cube import query, similarity
from gridrad_cube.query.samples import positions
from gridrad_cube.query.search import _percentiles, _random_pairs
from gridrad_cube.schema import SchemaError

IR = "ir_brightness_temperature"
EMB = make_embeddings(seed=3)


def unit(vector):
    return np.asarray(vector, float) / np.linalg.norm(np.asarray(vector, float))


# several examples


def test_examples_are_the_mean_of_their_directions_less_the_negatives():
    positive, negative = [(6, 1, 2, 0), (13, 0, 1, 0)], [(9, 2, 2, 0)]
    v = EMB.embedding.values
    vector = (unit(v[6, 0, 1, 2]) + unit(v[13, 0, 0, 1])) / 2 - unit(v[9, 0, 2, 2])
    answer = EMB.gridrad.search({"positive": positive, "negative": negative}, 50, exclude=None)
    own = {(6, 0, 1, 2), (13, 0, 0, 1), (9, 0, 2, 2)}
    expected = brute_search(EMB, vector, 50, lambda *s: s[1] == 0 and s not in own)
    assert found(answer) == [sample for sample, _ in expected]
    np.testing.assert_allclose(answer.score, [score for _, score in expected], rtol=1e-6)
    said = answer.attrs
    assert (said["query"], said["query_positives"], said["query_negatives"]) == ("examples", 2, 1)
    assert json.loads(said["query_examples"])[1]["query_crop"] == 13


def test_examples_exclude_the_neighbours_of_each():
    examples = {"positive": [(6, 1, 2, 0), {"time": "2024-05-20T04:00", "latitude": 9, "longitude": 179.5}],
                "negative": [(9, 2, 2, 0)]}  # fmt: skip
    answer = EMB.gridrad.search(examples, 1000, channel=IR, exclude=("90min", "150km"))
    places = [place_of(EMB, *at) for at in ((6, 1, 2), (13, 1, 1), (9, 2, 2))]

    def apart(crop, channel, row, col):
        here = place_of(EMB, crop, row, col)
        return channel == 0 and not any(near(here, place, (1.5, 150)) for place in places)

    everything = brute_search(EMB, np.ones(FEATURES), 1000, apart)
    assert sorted(found(answer)) == sorted(sample for sample, _ in everything)


def test_examples_may_be_vectors_and_euclidean_takes_their_mean():
    vectors = EMB.embedding.values[[6, 7], 0, 1, 1].astype(float)
    answer = EMB.gridrad.search({"positive": vectors}, 20, metric="euclidean")
    assert found(answer) == [s for s, _ in brute_search(EMB, vectors.mean(axis=0), 20, metric="euclidean")]
    assert answer.attrs["exclude"] == "None"


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ({"positive": []}, {}, "expected lists of queries, .* with one positive or more"),
        ({"positive": (6, 1, 2, 0)}, {}, "expected lists of queries"),
        ({"positive": [(6, 1, 2, 0)], "neutral": []}, {}, r"got \['neutral'\]; expected lists of queries"),
        ({"positive": [(6, 1, 2, 0)], "negative": [(7, 1, 1, 0)]}, {"metric": "euclidean"},
         "negative examples need the cosine"),
        ({"positive": [(6, 1, 2, 0)], "negative": [(6, 1, 2, 0)]}, {}, "a vector of zeros has no direction"),
        ({"positive": [np.full(6, np.nan)]}, {}, "it holds a NaN"),
        ({"positive": [np.ones(5)]}, {}, r"a vector of shape \(5,\); expected \(6,\)"),
        ([], {}, r"got a vector of shape \(0,\)"),
        (np.empty((0, 6)), {}, "got an empty batch"),
        ([(6, 1, 2, 0), (6, 1, 2, 1)], {}, "the queries are of several channels"),
        ([(6, 1, 2, 0), "storm"], {}, "query: got 'storm'"),
        (np.ones((2, 5)), {}, r"a vector of shape \(5,\)"),
        (np.array([[1, 2, 3, 4, 5, np.nan]]), {}, "it holds a NaN"),
    ],
)  # fmt: skip
def test_examples_and_batches_refuse(asked, options, message):
    with pytest.raises(SchemaError, match=message):
        EMB.gridrad.search(asked, **options)


# batches


@pytest.mark.parametrize("separate", [None, ("90min", "120km")])
def test_a_batch_is_answered_as_each_alone(separate):
    queries = [(6, 1, 2, 0), {"time": "2024-05-20T04:00", "latitude": 9, "longitude": 179.5}, (1, 0, 0, 0)]
    options = {"exclude": ("3h", "300km"), "separate": separate, "channel": IR}
    batch = EMB.gridrad.search(queries, 12, **options)
    assert batch.score.dims == ("query", "rank")
    for i, one in enumerate(queries):
        alone = EMB.gridrad.search(one, 12, **options)
        assert found(batch.isel(query=i)) == found(alone)
        np.testing.assert_array_equal(batch.score[i], alone.score)
        assert batch.attrs["searched"][i] == alone.attrs["searched"]
        assert int(batch.query_crop[i]) == alone.attrs["query_crop"]
        assert str(batch.source.values[i, 0]) == str(alone.source.values[0])


def test_a_batch_of_vectors_and_of_found_points():
    vectors = np.random.default_rng(0).standard_normal((70, FEATURES))
    batch = EMB.gridrad.search(vectors, 3)
    for i in (0, 33, 69):
        assert found(batch.isel(query=i)) == [s for s, _ in brute_search(EMB, vectors[i], 3)]
    points = EMB.gridrad.at(["2024-05-20T02:00", "2024-05-20T04:00"], [39, 9], [-98, 179.5])
    batch = EMB.gridrad.search(points.embedding.sel(channel=IR), 5)
    alone = EMB.gridrad.search(points.embedding.sel(channel=IR)[1], 5)
    assert found(batch.isel(query=1)) == found(alone)  # each leaves out its own neighbours
    assert alone.attrs["exclude"] == "('6h', '200km')"


def test_a_batch_with_fewer_answers_for_one_says_so(tmp_path):
    options = {"bbox": (-101, 36, -95, 42), "time": ("2024-05-20T02:00", "2024-05-20T04:00"), "channel": IR}
    batch = EMB.gridrad.search([(6, 1, 2, 0), (7, 1, 1, 0)], 40, exclude=("30min", "300km"), **options)
    full = 24
    few = int((batch.crop[0] >= 0).sum())
    assert 0 < few < full == batch.sizes["rank"]
    assert np.isnan(batch.score[0, few:]).all()
    assert np.isnat(batch.time[0, few:]).all()
    assert (batch.source[0, few:] == "").all()
    rows = query.to_dataframe(batch)
    assert rows["query"].tolist() == [0] * few + [1] * full
    batch.to_netcdf(tmp_path / "answer.nc")
    assert len(query.format_answer(batch).splitlines()) == 1 + few + full


# ties and probes


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_ties_stand_in_the_order_of_the_store(metric):
    dataset = make_embeddings(seed=1)
    twins = [(22, 1, 0, 3), (3, 0, 2, 2), (3, 0, 2, 1), (15, 1, 1, 1), (15, 0, 1, 1)]
    for sample in twins:
        dataset["embedding"][sample] = np.arange(FEATURES) + 5
    answer = dataset.gridrad.search(np.arange(FEATURES) + 5.0, 5, metric=metric, separate=None)
    assert found(answer) == sorted(twins)
    assert len(set(answer.score.values.tolist())) == 1


def test_the_weights_of_a_probe_are_a_query():
    dataset = make_embeddings(seed=4)
    weights = np.array([0.5, -2, 0, 1, 0, 3])
    answer = dataset.gridrad.search(weights, 1000, metric="dot", channel=IR)
    values = (dataset.embedding.values.astype(float) @ weights).astype(np.float32)
    np.testing.assert_allclose(answer.score, [values[s] for s in found(answer)], rtol=1e-5, atol=1e-6)
    assert (np.diff(answer.score) <= 0).all()
    assert answer.sizes["rank"] == dataset.gridrad.within(channel=IR).sizes["patch"]


# percentiles


def test_percentile_is_the_rank_among_pairs_of_the_same_hour():
    rng = np.random.default_rng(0)
    dataset = make_embeddings(times=48, seed=5)  # two days
    hour = (dataset.time.values.astype("datetime64[h]").astype(int)) % 24
    daily = rng.standard_normal((24, FEATURES)) * 3  # what all samples of one hour have in common
    dataset["embedding"] = dataset.embedding + daily[hour][:, None, None, None, :].astype("float16")
    answer = dataset.gridrad.search((6, 1, 2, 0), 100, percentile=True)
    assert answer.percentile.attrs["units"] == "percent"
    assert ((answer.percentile >= 0) & (answer.percentile <= 100)).all()
    assert (np.diff(answer.percentile) <= 0).all()
    mask = np.zeros((144, 2, 3, 4), bool)
    mask[:, 0] = True
    pairs = _random_pairs(dataset, mask, "cosine", (6 * 3600, 200), 0)
    all_hours = np.corrcoef(rng.standard_normal((2, 10)))  # the hour alone makes samples alike
    assert np.median(pairs) > 0.5 > abs(all_hours[0, 1])
    # All pairs of one hour, two days apart, by brute force: the sample stands for them.
    v = dataset.embedding.values[:, 0].reshape(144, 12, FEATURES).astype(float)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    every = []
    for a, b in np.argwhere(np.triu(hour[:, None] == hour, 1)):
        scores = (v[a] @ v[b].T).ravel()
        every.append(scores[np.isfinite(scores)])
    every = np.concatenate(every)
    for share in (0.1, 0.5, 0.9):
        at = np.quantile(every, share)
        assert _percentiles(pairs, np.array([at]), "cosine")[0] == pytest.approx(100 * share, abs=6)
    same = dataset.gridrad.search((6, 1, 2, 0), 100, percentile=True)
    np.testing.assert_array_equal(same.percentile, answer.percentile)


def test_percentile_of_distances_and_where_there_are_no_pairs():
    dataset = make_embeddings(times=30, seed=6)
    answer = dataset.gridrad.search(np.ones(FEATURES), 50, metric="euclidean", percentile=True)
    assert (np.diff(answer.percentile) <= 0).all()
    low = _percentiles(np.array([1, 2, 2, 3], np.float32), np.array([0, 2, 9], np.float32), "euclidean")
    assert low.tolist() == [100, 50, 0]
    assert np.isnan(dataset.isel(crop=[0, 4]).gridrad.search(np.ones(FEATURES)).percentile).all()
    one_time = dataset.isel(crop=[6, 7]).gridrad.search(np.ones(FEATURES), exclude=("24h", None))
    assert np.isnan(one_time.percentile).all()


# memory


def test_a_search_reads_a_store_in_blocks(tmp_path, monkeypatch):
    """No read takes more than the rows of one block, with a batch and an exclusion too."""
    monkeypatch.setattr(sys.modules["gridrad_cube.query.search"], "_ROWS_AT_ONCE", 100)
    dataset = write(make_embeddings(times=40), tmp_path / "e.zarr")
    sizes = []
    real = similarity._compare
    monkeypatch.setattr(similarity, "_compare", lambda raw, *rest: sizes.append(len(raw)) or real(raw, *rest))
    dataset.gridrad.search([(6, 1, 2, 0), (7, 1, 1, 0)], 5)
    assert max(sizes) <= 100
    assert sum(sizes) > 1000
    assert isinstance(dataset.embedding.variable._data, object)
    assert not dataset.embedding.variable._in_memory


def test_an_answer_keeps_its_provenance():
    info = EMB.attrs["gridrad_cube"] | {"source": "patches.zarr"}
    dataset = EMB.assign_attrs(gridrad_cube=info)
    dataset.encoding["source"] = "/data/embeddings.zarr"
    answer = dataset.gridrad.search((6, 1, 2, 0), 2)
    assert answer.attrs["store"] == "/data/embeddings.zarr"
    assert answer.attrs["cube"] == "patches.zarr"
    assert answer.attrs["checkpoint"] == "abc"
    assert isinstance(answer, xr.Dataset)


# stores without positions


@pytest.mark.parametrize("level", ["256", "2k"])
def test_a_store_whose_places_are_unknown_is_searched_all_the_same(tmp_path, level):
    known = make_embeddings(times=5, level=level)
    unknown = known.copy()
    for name in ("latitude", "longitude"):
        unknown[name] = known[name] * np.nan
    sample = (2, 0, 1, 0) if level == "256" else (2, 0)
    answer = unknown.gridrad.search(sample, 1000, exclude=None, channel=IR, reject=())
    vectors = known.embedding.values[:, 0].reshape(-1, FEATURES)
    assert answer.sizes["rank"] == np.isfinite(vectors).all(axis=1).sum() - 1
    assert np.isnan(answer.latitude).all()
    with pytest.raises(SchemaError, match=r"no position is known of a sample that must be 500 km away"):
        unknown.gridrad.search(sample, 3, exclude=("3h", "500km"))
    with pytest.raises(SchemaError, match=r"no position is known"):
        unknown.gridrad.search(sample, 3, exclude=None, separate=("3h", "500km"))
    in_time = unknown.gridrad.search(sample, 1000, exclude=("90min", None), channel=IR, reject=())
    assert (np.abs(in_time.time - unknown.time[2]) >= np.timedelta64(90, "m")).all()
    with pytest.raises(SchemaError, match="no patch of them has a position"):
        unknown.gridrad.search(sample, 3, exclude=None, bbox=(-180, -90, 180, 90))


@pytest.mark.parametrize("level", ["256", "2k"])
def test_positions_of_no_crops_are_none(level):
    latitude, longitude = positions(make_embeddings(times=2, level=level), np.empty(0, np.int64))
    assert len(latitude) == len(longitude) == 0
