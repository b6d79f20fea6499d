"""Nearest vectors: equal to brute force in float64, for any blocks, mask and array."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gridrad_cube import similarity
from gridrad_cube.schema import SchemaError
from gridrad_cube.similarity import nearest


def brute(vectors, query, k, metric="cosine", mask=None):
    """The definition: a score of every row in float64, rounded to float32, sorted by (score, row)."""
    v, q = np.asarray(vectors, np.float64), np.asarray(query, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "cosine":
            score = np.array([np.dot(row, q) / (np.linalg.norm(row) * np.linalg.norm(q)) for row in v])
            score = np.clip(score, -1, 1)
        elif metric == "dot":
            score = np.array([np.dot(row, q) for row in v])
        else:
            score = np.array([np.linalg.norm(row - q) for row in v])
    score = score.astype(np.float32)
    rows = [i for i in range(len(v)) if np.isfinite(score[i]) and (mask is None or mask[i])]
    rows.sort(key=lambda i: (score[i] if metric == "euclidean" else -score[i], i))
    return np.array(rows[:k], int), score[rows[:k]]


class Counting:
    """An array that is only sliced by rows, and remembers how."""

    def __init__(self, values):
        self.values, self.shape, self.slices = values, values.shape, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.slices.append((rows.start, rows.stop))
        return self.values[rows]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_nearest_equals_brute_force(metric, dtype):
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((700, 24)) * 20).astype(dtype)
    for row in (3, 500):
        rows, scores = nearest(vectors, vectors[row], 25, metric=metric, block=64)
        expected, expected_scores = brute(vectors, vectors[row], 25, metric)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(scores, expected_scores, rtol=2e-7, atol=1e-7)
        assert rows[0] == row or metric == "dot"
        assert scores.dtype == np.float32
        assert rows.dtype == np.int64


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_tells_rows_apart_that_float32_products_cannot(metric):
    # Far from the origin, differences lie below the rounding of |x|^2 - 2 x.q + |q|^2 in float32.
    rng = np.random.default_rng(1)
    vectors = 1000 + rng.standard_normal((5000, 64)) * 0.01
    query = vectors[1234] + 1e-5
    rows, _ = nearest(vectors, query, 10, metric=metric)
    np.testing.assert_array_equal(rows, brute(vectors, query, 10, metric)[0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_nearest_breaks_ties_by_row(metric, block):
    rng = np.random.default_rng(2)
    few = rng.standard_normal((4, 385)).astype(np.float32)
    vectors = few[rng.integers(0, 4, 203)]
    rows, scores = nearest(vectors, few[2], 40, metric=metric, block=block)
    expected, _ = brute(vectors, few[2], 40, metric)
    np.testing.assert_array_equal(rows, expected)
    same = np.flatnonzero((vectors == few[2]).all(axis=1))
    assert len(np.unique(scores[: len(same)])) == 1


def test_nearest_never_returns_rows_without_a_direction():
    vectors = np.random.default_rng(3).standard_normal((50, 8)).astype(np.float32)
    vectors[4, 2], vectors[7], vectors[9, 0], vectors[11] = np.nan, np.nan, np.inf, 0
    query = np.ones(8)
    rows, scores = nearest(vectors, query, 100)
    assert set(range(50)) - set(rows.tolist()) == {4, 7, 9, 11}
    assert np.isfinite(scores).all()
    rows, _ = nearest(vectors, query, 100, metric="euclidean")
    assert set(range(50)) - set(rows.tolist()) == {4, 7, 9}


def test_nearest_of_nothing_is_empty():
    vectors = np.full((5, 3), np.nan)
    rows, scores = nearest(vectors, [1, 0, 0], 2)
    assert rows.shape == scores.shape == (0,)
    rows, scores = nearest(np.ones((5, 3)), [[1, 0, 0], [0, 1, 0]], 2, mask=np.zeros(5, bool))
    assert rows.shape == scores.shape == (2, 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_answers_a_batch_as_it_answers_each(metric, monkeypatch):
    monkeypatch.setattr(similarity, "_QUERIES", 3)
    rng = np.random.default_rng(4)
    vectors, queries = rng.standard_normal((300, 16)), rng.standard_normal((8, 16))
    rows, scores = nearest(vectors, queries, 5, metric=metric, block=100)
    assert rows.shape == scores.shape == (8, 5)
    for i, query in enumerate(queries):
        one_rows, one_scores = nearest(vectors, query, 5, metric=metric)
        np.testing.assert_array_equal(rows[i], one_rows)
        np.testing.assert_array_equal(scores[i], one_scores)


def test_nearest_reads_only_blocks_that_the_mask_leaves():
    vectors = Counting(np.random.default_rng(5).standard_normal((1000, 4)))
    mask = np.zeros(1000, bool)
    mask[[205, 207, 290, 999]] = True
    rows, _ = nearest(vectors, np.ones(4), 10, mask=mask, block=100)
    assert sorted(rows.tolist()) == [205, 207, 290, 999]
    assert vectors.slices == [(205, 291), (999, 1000)]


def test_nearest_reads_blocks_in_turn():
    vectors = Counting(np.random.default_rng(6).standard_normal((1000, 4)))
    nearest(vectors, np.ones(4), 1, block=300)
    assert vectors.slices == [(0, 300), (300, 600), (600, 900), (900, 1000)]


def test_nearest_reads_a_zarr_array(tmp_path):
    values = np.random.default_rng(7).standard_normal((500, 12)).astype("float16")
    array = zarr.create_array(tmp_path / "v.zarr", data=values, chunks=(64, 12))
    rows, scores = nearest(array, values[77], 9, block=128)
    expected, expected_scores = nearest(values, values[77], 9)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nearest_equals_brute_force_on_small_whole_numbers(data):
    # Whole numbers make many exact ties, between rows and between blocks.
    n, d = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    numbers = st.integers(-2, 2)
    vectors = np.array(data.draw(st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=n, max_size=n)))
    query = np.array(data.draw(st.lists(numbers, min_size=d, max_size=d).filter(any)))
    metric = data.draw(st.sampled_from(["cosine", "euclidean", "dot"]))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    k, block = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
    rows, scores = nearest(vectors, query, k, metric=metric, mask=mask, block=block)
    expected, expected_scores = brute(vectors, query, k, metric, mask)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-7)
    assert np.unique(rows).size == rows.size == expected.size
    if metric == "euclidean":
        np.testing.assert_array_equal(rows, expected)
    # Sums in another order round some cosines apart: then rows of nearly equal scores may swap.
    each = dict(zip(*brute(vectors, query, n, metric), strict=True))
    np.testing.assert_allclose(scores, [each[row] for row in rows.tolist()], atol=1e-7)
    assert mask[rows].all()


def test_nearest_scores_euclidean_distance_and_cosine():
    vectors = np.array([[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]])
    rows, scores = nearest(vectors, [0.0, 0.0], 3, metric="euclidean")
    assert rows.tolist() == [1, 2, 0]
    np.testing.assert_array_equal(scores, np.array([1, 1, 5], np.float32))
    rows, scores = nearest(vectors, [1.0, 0.0], 3)
    assert rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(scores, [0.6, 0, -1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "taxicab"}, "metric: got 'taxicab'; expected one of cosine, euclidean, dot"),
        ({"k": 0}, "k and block: got 0 and 65536"),
        ({"block": 0}, "k and block: got 1 and 0"),
        ({"query": np.ones(3)}, r"query: got shape \(3,\); expected \(4,\)"),
        ({"query": np.ones((2, 2, 4))}, r"query: got shape \(2, 2, 4\)"),
        ({"query": [1, np.nan, 0, 0]}, "query: it holds a NaN"),
        ({"query": [1, np.inf, 0, 0]}, "query: it holds a NaN, an infinity"),
        ({"query": np.zeros(4)}, "a vector of zeros has no direction. Pass metric='euclidean'"),
        ({"mask": np.ones(5)}, "mask: got float64 of shape"),
        ({"mask": np.ones(6, bool)}, r"expected booleans of shape \(5,\)"),
        ({"vectors": np.ones((5, 2, 2))}, r"vectors: got shape \(5, 2, 2\)"),
    ],
)
def test_nearest_refuses(change, message):
    arguments = {"vectors": np.ones((5, 4)), "query": np.ones(4), "k": 1} | change
    with pytest.raises(SchemaError, match=message):
        nearest(**arguments)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_each_query_of_a_batch_may_lack_rows_of_its_own(metric):
    rng = np.random.default_rng(3)
    vectors = rng.integers(-3, 4, (300, 5)).astype("float16")
    queries = rng.standard_normal((6, 5))
    drop = [np.sort(rng.choice(300, n, replace=False)) for n in (0, 1, 40, 295, 300, 150)]
    rows, scores = nearest(vectors, queries, 12, metric=metric, drop=drop, block=70)
    assert rows.shape == (6, 12)
    for query, gone, found, score in zip(queries, drop, rows, scores, strict=True):
        expected, expected_scores = brute(vectors, query, 12, metric, ~np.isin(np.arange(300), gone))
        np.testing.assert_array_equal(found[: len(expected)], expected)
        np.testing.assert_allclose(score[: len(expected)], expected_scores, rtol=2e-7, atol=1e-7)
        assert (found[len(expected) :] == -1).all()
        assert np.isnan(score[len(expected) :]).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_scores_are_those_of_nearest(metric):
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((500, 7)).astype("float32")
    vectors[20] = np.nan
    vectors[30] = 0
    mask = rng.random(500) < 0.6
    mask[20] = mask[30] = True
    query = rng.standard_normal(7)
    rows, scores = nearest(vectors, query, 500, metric=metric, mask=mask)
    every = similarity.scores(vectors, query, metric=metric, mask=mask, block=90)
    np.testing.assert_array_equal(every[rows], scores)
    assert np.isnan(np.delete(every, rows)).all()
    assert set(np.flatnonzero(mask)) - set(rows) == ({20, 30} if metric == "cosine" else {20})


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_threads_that_share_the_tiles_out_change_nothing(monkeypatch, metric):
    rng = np.random.default_rng(5)
    vectors = rng.integers(-2, 3, (3000, 6)).astype(np.float16)  # many of equal score, some without direction
    queries = rng.standard_normal((3, 6))
    mask, drop = rng.random(3000) < 0.8, [np.arange(k, 3000, 7) for k in range(3)]
    alone = nearest(vectors, queries, 40, metric=metric, mask=mask, drop=drop)
    monkeypatch.setattr("gridrad_cube.similarity._TILE", 64)
    for number in (1, 2, 5):
        monkeypatch.setattr("gridrad_cube.similarity.cores", lambda number=number: number)
        shared = nearest(vectors, queries, 40, metric=metric, mask=mask, drop=drop, block=1000)
        for a, b in zip(alone, shared, strict=True):
            np.testing.assert_array_equal(a, b)


def test_rank_me_counts_dimensions_and_unit_rows_have_length_one():
    assert similarity.rank_me(np.eye(6)) == pytest.approx(6)
    assert similarity.rank_me(np.vstack([np.ones((4, 3)), [[np.nan, 0, 0]]])) == pytest.approx(1)
    assert similarity.rank_me(np.zeros((4, 3))) == 1
    rows = similarity.unit_rows(np.array([[[3, 4]], [[0, 0]]], np.float32))
    np.testing.assert_allclose(rows, [[[0.6, 0.8]], [[0, 0]]])
    assert rows.dtype == np.float64
