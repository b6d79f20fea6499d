from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from gridrad_cube import evaluation
from gridrad_cube.evaluation import Place, Retrieval
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import SchemaError

HOUR = np.timedelta64(3600, "s")
START = np.datetime64("2021-07-05T00:00:00", "s")


def flat_patches(times: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> xr.Dataset:
    return xr.Dataset(
        coords={
            "time": ("patch", times.astype("datetime64[ns]")),
            "latitude": ("patch", latitude),
            "longitude": ("patch", longitude),
        }
    )


def lattice(scenes: int = 8, hours: int = 2) -> xr.Dataset:
    """Patches of scenes that follow each other, 3 x 4 of them a degree apart."""
    rows, cols = np.mgrid[40:37:-1, -100:-96:1].astype(float)
    return flat_patches(
        np.repeat(START + np.arange(scenes) * hours * HOUR, rows.size),
        np.tile(rows.ravel(), scenes),
        np.tile(cols.ravel(), scenes),
    )


def place_of(flat: xr.Dataset, patch: int, shift: float = 0.0) -> Place:
    one = flat.isel(patch=patch)
    return Place(
        one["time"].values.astype("datetime64[s]"), float(one["latitude"]) + shift, float(one["longitude"])
    )


def brute_force(
    vectors: np.ndarray, flat: xr.Dataset, planted: list[int], hours: float, km: float
) -> np.ndarray:
    """Ranks by counting, one pair and one candidate at a time."""

    def cosine(a: int, b: int) -> float:
        u, v = vectors[a].astype(np.float64), vectors[b].astype(np.float64)
        return float(u @ v / np.sqrt((u @ u) * (v @ v)))

    def near(a: int, b: int) -> bool:
        seconds = abs((flat["time"].values[a] - flat["time"].values[b]) / np.timedelta64(1, "s"))
        lat, lon = flat["latitude"].values, flat["longitude"].values
        return bool(seconds < hours * 3600 and great_circle_km(lat[a], lon[a], lat[b], lon[b]) < km)

    ranks = np.full((len(planted), len(planted)), np.nan)
    for i, q in enumerate(planted):
        for j, target in enumerate(planted):
            if i == j or near(q, target):
                continue
            others = [n for n in range(len(vectors)) if n not in planted and not near(q, n)]
            ranks[i, j] = 1 + sum(cosine(q, n) > cosine(q, target) for n in others)
    return ranks


def test_places_are_the_nearest_patches_of_their_time() -> None:
    flat = lattice()
    planted = [5, 30, 71]
    places = [place_of(flat, p, shift=0.4) for p in planted]
    assert evaluation.patches_at(flat, places).tolist() == planted
    late = [Place(p.time + np.timedelta64(59, "s"), p.latitude, p.longitude) for p in places]
    assert evaluation.patches_at(flat, late).tolist() == planted


def test_places_across_the_date_line_are_near() -> None:
    flat = flat_patches(np.repeat(START, 3), np.zeros(3), np.array([170.0, 179.5, -120.0]))
    assert evaluation.patches_at(flat, [Place(START, 0.0, -179.5)]).tolist() == [1]


def test_patches_without_a_position_are_never_the_nearest() -> None:
    flat = flat_patches(
        np.repeat(START, 3), np.array([np.nan, 50.0, 42.0]), np.array([np.nan, -100.0, -100.0])
    )
    assert evaluation.patches_at(flat, [Place(START, 41.0, -100.0)]).tolist() == [2]


def test_a_place_at_another_time_is_refused() -> None:
    flat = lattice()
    with pytest.raises(SchemaError, match="planted place 1: no patch has its time 2021-07-05T01:00:00"):
        evaluation.patches_at(flat, [place_of(flat, 0), Place(START + HOUR, 40.0, -100.0)])


@pytest.mark.parametrize(("hours", "kilometres"), [(6.0, 200.0), (3.0, 5000.0), (100.0, 120.0), (1.0, 1.0)])
def test_ranks_are_those_of_counting_one_by_one(hours: float, kilometres: float) -> None:
    flat = lattice()
    planted = [2, 17, 40, 41, 90]
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((96, 6)).astype(np.float32)
    vectors[planted] = 1.5 * rng.standard_normal(6) + rng.standard_normal((5, 6))
    places = [place_of(flat, p) for p in planted]
    found = evaluation.planted_retrieval(vectors, flat, places, hours=hours, kilometres=kilometres)
    expected = brute_force(vectors, flat, planted, hours, kilometres)
    np.testing.assert_array_equal(found.ranks, expected)
    assert found.median_rank == np.nanmedian(expected)
    known = expected[np.isfinite(expected)]
    assert found.within(3) == np.mean(known <= 3)


def test_perfect_vectors_rank_first_among_all_that_may_count() -> None:
    flat = lattice()
    planted = [0, 50, 95]
    vectors = np.random.default_rng(0).standard_normal((96, 32))
    vectors[planted] = vectors[0] + 1e-3 * vectors[planted]
    found = evaluation.planted_retrieval(vectors, flat, [place_of(flat, p) for p in planted])
    assert found.median_rank == 1
    assert found.within(1) == 1
    # 96 patches less the three planted ones; some neighbours of each within 6 h and 200 km fall out too.
    assert (found.candidates < 93).all()
    assert (found.candidates > 50).all()
    far = evaluation.planted_retrieval(
        vectors, flat, [place_of(flat, p) for p in planted], hours=0, kilometres=0
    )
    assert far.candidates.tolist() == [93, 93, 93]


def test_collapsed_vectors_rank_in_the_middle() -> None:
    flat = lattice()
    places = [place_of(flat, p) for p in (0, 50, 95)]
    one = np.random.default_rng(0).standard_normal(48).astype(np.float32)
    vectors = one * np.linspace(0.5, 2.0, 96, dtype=np.float32)[:, None]
    found = evaluation.planted_retrieval(vectors, flat, places, hours=0, kilometres=0)
    off = ~np.eye(3, dtype=bool)
    assert found.ranks[off].tolist() == [1 + 93 / 2] * 6
    assert found.within(10) == 0


def test_planted_things_without_a_vector_do_not_count() -> None:
    flat = lattice()
    places = [place_of(flat, p) for p in (0, 40, 95)]
    vectors = np.random.default_rng(0).standard_normal((96, 8))
    vectors[40] = np.nan
    vectors[7] = np.inf
    vectors[60] = 0.0
    found = evaluation.planted_retrieval(vectors, flat, places, hours=0, kilometres=0)
    known = np.isfinite(found.ranks)
    assert known.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    assert found.candidates.tolist() == [91, 91, 91]


def test_two_things_in_one_patch_are_no_pair() -> None:
    flat = lattice()
    places = [place_of(flat, 10), place_of(flat, 10, shift=0.2), place_of(flat, 80)]
    vectors = np.random.default_rng(0).standard_normal((96, 8))
    ranks = evaluation.planted_retrieval(vectors, flat, places).ranks
    assert np.isnan(ranks[0, 1])
    assert np.isnan(ranks[1, 0])
    assert ranks[0, 2] == ranks[1, 2]


def test_retrieval_without_pairs_says_so_quietly() -> None:
    nothing = Retrieval(np.full((2, 2), np.nan), np.array([5, 5]))
    assert np.isnan(nothing.median_rank)
    assert np.isnan(nothing.within(10))


@pytest.mark.parametrize("shape", [(40, 12), (9, 30)])
def test_principal_components_are_those_of_numpy_s_svd(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    # Well apart, so that each component is one direction only.
    values = rng.standard_normal(shape) * np.geomspace(30, 0.3, shape[1]) + 250.0
    found = evaluation.principal_components(values.astype(np.float32), 5)
    u, s, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    expected = (u * s)[:, :5]
    assert found.shape == (shape[0], 5)
    assert found.dtype == np.float32
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-2)


def test_principal_components_of_few_rows_keep_their_distances() -> None:
    values = np.random.default_rng(2).standard_normal((6, 50)).astype(np.float32)
    found = evaluation.principal_components(values, 10)
    assert found.shape[0] == 6

    def distances(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    np.testing.assert_allclose(distances(found), distances(values), rtol=1e-4, atol=1e-3)


def orthogonal(rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((rows, columns)))[0]


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_rank_me_of_equal_singular_values_is_their_number(dimensions: int) -> None:
    vectors = orthogonal(50, dimensions) @ orthogonal(8, dimensions).T
    assert evaluation.rank_me(vectors) == pytest.approx(dimensions, abs=1e-4)


def test_rank_me_of_a_known_spectrum() -> None:
    spectrum = np.array([4.0, 2.0, 1.0, 1.0])
    vectors = orthogonal(30, 4) * spectrum @ orthogonal(6, 4).T
    share = spectrum / spectrum.sum()
    expected = np.exp(-(share * np.log(share)).sum())  # 2 ** 1.75
    assert expected == pytest.approx(2**1.75)
    assert evaluation.rank_me(vectors) == pytest.approx(expected, rel=1e-6)
    spoiled = np.concatenate([vectors, np.full((2, 6), np.nan)])
    assert evaluation.rank_me(spoiled) == pytest.approx(expected, rel=1e-6)


def test_rank_me_of_zeros_is_one() -> None:
    assert evaluation.rank_me(np.zeros((5, 3))) == 1.0
