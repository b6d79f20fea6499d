"""Measures of vectors: planted things are found again, and dimensions are counted."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from gridrad_cube import evaluation
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


def places_of(flat: xr.Dataset, patches: list[int], shift: float = 0.0) -> dict[str, np.ndarray]:
    some = flat.isel(patch=patches)
    return {n: some[n].values for n in ("time", "longitude")} | {"latitude": some["latitude"].values + shift}


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


def found_at(flat: xr.Dataset, places: dict[str, np.ndarray]) -> list[bool]:
    """Whether each place is found in the last patch, the only one that the vector of patch 0 is like."""
    vectors = np.eye(flat.sizes["patch"])
    vectors[-1] = vectors[0]
    first = places_of(flat, [0])
    both = {n: np.append(first[n], places[n]) for n in first}
    ranks, _ = evaluation.planted_retrieval(vectors, flat, both, hours=0, km=0)
    return [bool(r == 1) for r in ranks[0, 1:]]


def test_a_place_is_the_nearest_patch_of_its_time() -> None:
    flat = lattice()
    assert found_at(flat, places_of(flat, [95, 94, 71], shift=0.4)) == [True, False, False]
    late = places_of(flat, [95])
    late["time"] = late["time"] + np.timedelta64(59, "s")
    assert found_at(flat, late) == [True]


def test_places_across_the_date_line_are_near() -> None:
    flat = flat_patches(np.repeat(START, 4), np.zeros(4), np.array([60.0, 170.0, -120.0, 179.5]))
    place = {"time": np.array([START]), "latitude": np.zeros(1), "longitude": np.array([-179.5])}
    assert found_at(flat, place) == [True]


def test_patches_without_a_position_are_never_the_nearest() -> None:
    flat = flat_patches(
        np.repeat(START, 4), np.array([10.0, np.nan, 50.0, 42.0]), np.array([60.0, np.nan, -100.0, -100.0])
    )
    place = {"time": np.array([START]), "latitude": np.array([41.0]), "longitude": np.array([-100.0])}
    assert found_at(flat, place) == [True]


def test_a_place_at_another_time_is_refused() -> None:
    flat = lattice()
    places = places_of(flat, [0, 1])
    places["time"] = places["time"] + np.array([0, 3600]).astype("timedelta64[s]")
    with pytest.raises(SchemaError, match="planted thing 1: no sample has its time 2021-07-05T01:00:00"):
        evaluation.planted_retrieval(np.eye(96), flat, places)


@pytest.mark.parametrize(("hours", "kilometres"), [(6.0, 200.0), (3.0, 5000.0), (100.0, 120.0), (1.0, 1.0)])
def test_ranks_are_those_of_counting_one_by_one(hours: float, kilometres: float) -> None:
    flat = lattice()
    planted = [2, 17, 40, 41, 90]
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((96, 6)).astype(np.float32)
    vectors[planted] = 1.5 * rng.standard_normal(6) + rng.standard_normal((5, 6))
    places = places_of(flat, planted)
    ranks, _ = evaluation.planted_retrieval(vectors, flat, places, hours=hours, km=kilometres)
    np.testing.assert_array_equal(ranks, brute_force(vectors, flat, planted, hours, kilometres))


def test_perfect_vectors_rank_first_among_all_that_may_count() -> None:
    flat = lattice()
    planted = [0, 50, 95]
    vectors = np.random.default_rng(0).standard_normal((96, 32))
    vectors[planted] = vectors[0] + 1e-3 * vectors[planted]
    ranks, candidates = evaluation.planted_retrieval(vectors, flat, places_of(flat, planted))
    assert (ranks[~np.eye(3, dtype=bool)] == 1).all()
    # 96 patches less the three planted ones; some neighbors of each within 6 h and 200 km are left out too.
    assert (candidates < 93).all()
    assert (candidates > 50).all()
    _, far = evaluation.planted_retrieval(vectors, flat, places_of(flat, planted), hours=0, km=0)
    assert far.tolist() == [93, 93, 93]


def test_collapsed_vectors_rank_in_the_middle() -> None:
    flat = lattice()
    places = places_of(flat, [0, 50, 95])
    one = np.random.default_rng(0).standard_normal(48).astype(np.float32)
    vectors = one * np.linspace(0.5, 2.0, 96, dtype=np.float32)[:, None]
    ranks, _ = evaluation.planted_retrieval(vectors, flat, places, hours=0, km=0)
    assert ranks[~np.eye(3, dtype=bool)].tolist() == [1 + 93 / 2] * 6


def test_planted_things_without_a_vector_do_not_count() -> None:
    flat = lattice()
    places = places_of(flat, [0, 40, 95])
    vectors = np.random.default_rng(0).standard_normal((96, 8))
    vectors[40] = np.nan
    vectors[7] = np.inf
    vectors[60] = 0.0
    ranks, candidates = evaluation.planted_retrieval(vectors, flat, places, hours=0, km=0)
    assert np.isfinite(ranks).tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    assert candidates.tolist() == [91, 91, 91]


def test_two_things_in_one_patch_are_no_pair() -> None:
    flat = lattice()
    places = places_of(flat, [10, 10, 80])
    places["latitude"] = places["latitude"] + np.array([0.0, 0.2, 0.0])
    vectors = np.random.default_rng(0).standard_normal((96, 8))
    ranks, _ = evaluation.planted_retrieval(vectors, flat, places)
    assert np.isnan(ranks[0, 1])
    assert np.isnan(ranks[1, 0])
    assert ranks[0, 2] == ranks[1, 2]
