"""The readout: what it recovers, and that blocks do not matter."""

from __future__ import annotations

import numpy as np
import pytest

from gridrad_cube.readout import Readout, ReadoutFit, fit_arrays
from gridrad_cube.schema import SchemaError
from gridrad_cube.similarity import unit_rows

FEATURES, PLACES, TIMES = 12, 300, 4


def planted(seed=0):
    """Vectors (place, time, feature): places differ along three directions, times along five, far more.

    The directions are orthogonal in units of each feature.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0]
    between, within = basis[:, :3], basis[:, 3:8]
    of_place = rng.standard_normal((PLACES, 1, 3)) @ between.T
    of_time = 3 * rng.standard_normal((PLACES, TIMES, 5)) @ within.T
    noise = 0.01 * rng.standard_normal((PLACES, TIMES, FEATURES))
    return (of_place + of_time + noise + 3).astype(np.float32), between, within


def fit(vectors, directions=3):
    return fit_arrays(
        vectors.reshape(-1, FEATURES), vectors[:, :-1].reshape(-1, FEATURES),
        vectors[:, 1:].reshape(-1, FEATURES), directions,
    )  # fmt: skip


def rank_one(first, second):
    """How often the nearest of the second rows by cosine is the row of the same number."""
    return np.mean((unit_rows(first) @ unit_rows(second).T).argmax(axis=1) == np.arange(len(first)))


def test_planted_directions_are_recovered():
    vectors, between, within = planted()
    readout = fit(vectors)
    assert readout.matrix.shape == (FEATURES, 3)
    assert readout.matrix.dtype == np.float32
    assert readout.fitted == {"samples": PLACES * TIMES, "pairs": PLACES * (TIMES - 1)}
    # A step between places moves the result in three directions, and a step in time hardly moves it.
    steps = [readout.apply(basis.T + readout.mean) for basis in (between, within)]
    places, times = (np.linalg.svd(step, compute_uv=False) for step in steps)
    assert places.min() > 20 * times.max()
    projected = readout.apply(vectors)
    assert projected.shape == (PLACES, TIMES, 3)
    assert projected.dtype == np.float32
    raw = vectors - readout.mean
    assert rank_one(projected[:, 0], projected[:, -1]) > 0.8 > 0.1 > rank_one(raw[:, 0], raw[:, -1])


def test_whitening_counts_every_direction_alike():
    vectors = planted()[0]
    fitted = ReadoutFit(FEATURES)
    fitted.add(vectors.reshape(-1, FEATURES))
    fitted.add_change(vectors.reshape(-1, FEATURES), np.repeat(np.arange(PLACES), TIMES))
    readout = fitted.readout(8, whiten=True)
    assert str(readout) == f"whitening, 8 directions, fitted on {PLACES * TIMES:,} samples"
    # Eight directions vary, and after whitening each has a variance near 1, for any change.
    covariance = np.cov(readout.apply(vectors).reshape(-1, 8).T)
    np.testing.assert_allclose(covariance, np.eye(8), atol=0.02)


def test_more_directions_than_features_are_all_of_them():
    assert fit(planted()[0], directions=64).directions == FEATURES


def test_blocks_equal_one_array():
    vectors, _, _ = planted()
    whole, blocks = fit(vectors), ReadoutFit(FEATURES)
    for part in np.array_split(np.arange(PLACES), 7):
        blocks.add(vectors[part].reshape(-1, FEATURES))
    for part in np.array_split(np.arange(PLACES * (TIMES - 1)), 3):
        place, time = np.divmod(part, TIMES - 1)
        pairs = np.concatenate([vectors[place, time], vectors[place, time + 1]])
        blocks.add_change(pairs, np.tile(part, 2))
    found = blocks.readout(3)
    assert found.fitted == whole.fitted
    for name in ("mean", "scale", "matrix"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-4, atol=1e-6)


def test_groups_of_several_times_equal_all_of_their_pairs():
    vectors, _, _ = planted()
    one, other = ReadoutFit(FEATURES), ReadoutFit(FEATURES)
    for each in (one, other):
        each.add(vectors.reshape(-1, FEATURES))
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(PLACES * TIMES)
    one.add_change(vectors.reshape(-1, FEATURES)[shuffled], np.repeat(np.arange(PLACES), TIMES)[shuffled])
    pairs = [vectors[:, [a, b]] for a in range(TIMES) for b in range(a)]
    flat = np.concatenate(pairs).reshape(-1, FEATURES)
    other.add_change(flat, np.arange(len(flat)) // 2)
    a, b = one.readout(3), other.readout(3)
    assert (a.fitted["pairs"], b.fitted["pairs"]) == (PLACES * 3, PLACES * 6)
    np.testing.assert_allclose(a.matrix, b.matrix, rtol=1e-4, atol=1e-6)


def test_missing_vectors_do_not_count():
    vectors, _, _ = planted()
    gaps = np.concatenate([vectors, np.full((5, TIMES, FEATURES), np.nan, np.float32)])
    gaps[-1] = np.inf
    gaps[-1, 1::2] = 7  # pairs with one side missing
    a, b = fit(vectors), fit(gaps[:-1])
    np.testing.assert_array_equal(a.matrix, b.matrix)
    assert fit(gaps).fitted == {"samples": PLACES * TIMES + 2, "pairs": PLACES * (TIMES - 1)}
    assert np.isnan(a.apply(gaps[-2:-1])).all()


def test_a_result_does_not_depend_on_the_vectors_beside_it():
    readout, vectors = fit(planted()[0]), np.random.default_rng(2).standard_normal((9000, FEATURES))
    whole = readout.apply(vectors.astype(np.float16))
    for part in (slice(3, 4), slice(8000, 9000)):
        np.testing.assert_array_equal(readout.apply(vectors[part].astype(np.float16)), whole[part])


@pytest.mark.parametrize("change", ["no pairs", "pairs that do not change"])
def test_without_change_it_standardizes(change):
    vectors = planted()[0][:, 0]
    pairs = vectors[:0] if change == "no pairs" else vectors
    readout = fit_arrays(vectors, pairs, pairs)
    np.testing.assert_array_equal(readout.matrix, np.eye(FEATURES))
    projected = readout.apply(vectors)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(projected.std(axis=0), 1, rtol=1e-4)


def test_a_constant_feature_has_no_influence():
    vectors, _, _ = planted()
    vectors[..., 4] = 1000.1
    readout = fit(vectors)
    assert readout.scale[4] == 1
    moved = vectors.copy()
    moved[..., 4] += 0.001
    np.testing.assert_allclose(readout.apply(moved), readout.apply(vectors), atol=0.05)


def test_what_cannot_be_fitted():
    nothing = np.full((3, FEATURES), np.nan)
    with pytest.raises(SchemaError, match="no sample is finite"):
        fit_arrays(nothing, nothing, nothing)
    with pytest.raises(SchemaError, match="directions: got 0"):
        fit(planted()[0], directions=0)
    readout = Readout(*(np.ones(s, np.float32) for s in (2, 2, (2, 1))))
    assert readout.apply([[2.0, 3.0]]).tolist() == [[3.0]]


def test_few_samples_give_few_directions():
    vectors = np.random.default_rng(0).standard_normal((5, 4, 60)).astype(np.float32)
    pairs = vectors[:, :-1].reshape(-1, 60), vectors[:, 1:].reshape(-1, 60)
    readout = fit_arrays(vectors.reshape(-1, 60), *pairs)
    assert readout.directions == 10
    # Samples that the fit has not seen get numbers of the same size.
    fresh = np.random.default_rng(1).standard_normal((50, 60)).astype(np.float32)
    assert readout.apply(fresh).std() < 10 * readout.apply(vectors.reshape(-1, 60)).std()
