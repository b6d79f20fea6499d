"""The table of an evaluation: planted answers are found, parts are apart, few data give words."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from conftest import PROJECT
from evaluation_stores import DAYS, IR, PATCH, make_cube, vectors_of, write_embeddings
from sklearn.metrics import r2_score, roc_auc_score
from small_data import make_store

from gridrad_cube import evaluation, similarity, store
from gridrad_cube.cli import cli
from gridrad_cube.embedding import embed
from gridrad_cube.evaluation import baselines, measures, run, sequels
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query import fit_readout
from gridrad_cube.readout import fit_arrays
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import convective_day, solar_hour_of

HOUR = np.timedelta64(3600, "s")
LEADS = ("10min", "30min")


def times_of(count, *, hours=6, start="2021-06-01T13:00"):
    return np.datetime64(start, "s") + np.arange(count) * hours * HOUR


def row_of(result, section, question):
    found = [r for r in result.rows if r.section == section and r.question == question]
    assert len(found) == 1, [r.question for r in result.rows]
    return found[0]


# parts of the time


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_parts_share_no_day_and_keep_their_distance(gap):
    rng = np.random.default_rng(gap)
    time = rng.permutation(times_of(400, hours=5))
    part, words = measures.divide(time, gap=gap)
    assert words.startswith("84 convective days: 50 to fit, ")
    found = [
        np.unique(convective_day(time[part == p])) for p in (measures.FIT, measures.CHOOSE, measures.TEST)
    ]
    for earlier, later in itertools.pairwise(found):
        assert (later.min() - earlier.max()) / np.timedelta64(1, "D") == gap + 1


@pytest.mark.parametrize(
    ("days", "expected"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (7, (4, 1, 2)), (34, (20, 6, 6))]
)
def test_few_days_are_divided_without_days_between_and_it_is_said(days, expected):
    part, words = measures.divide(times_of(24 * days, hours=1, start="2021-06-01T12:00"))
    fit, choose, test = expected
    said = f"{days} convective days: {fit} to fit, {choose} to choose, {test} to test"
    assert words.startswith(said)
    assert ("few" in words) == (days < 20)
    assert [int((part == p).sum()) for p in range(3)] == [24 * n for n in expected]


def test_two_days_are_not_divided():
    part, words = measures.divide(times_of(40, hours=1))
    assert words.startswith("2 convective days: too few to divide")
    assert (part == -1).all()


def test_separate_sequences_are_events_and_long_records_are_days():
    minutes = np.timedelta64(60, "s") * np.arange(0, 180, 5)
    starts = np.array(["2021-06-01T11", "2021-06-01T23", "2021-07-10T20"], "datetime64[s]")
    time = (starts[:, None] + minutes).ravel()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(time))
    block, noun = evaluation.blocks_of(time[order])
    assert noun == "event"
    np.testing.assert_array_equal(block, np.repeat(np.arange(3), len(minutes))[order])
    part, words = measures.divide(time)
    assert words.startswith("3 events: 1 to fit, 1 to choose, 1 to test; few")
    np.testing.assert_array_equal(part, np.repeat(np.arange(3), len(minutes)))
    # A record of days is no event, nor is a single time of each day.
    assert evaluation.blocks_of(np.append(time, times_of(30, hours=3)))[1] == "day"
    assert evaluation.blocks_of(times_of(9, hours=12))[1] == "day"


# scores and intervals


def test_draws_of_blocks_give_the_spread_of_a_mean_of_days():
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(40), 25)
    level = rng.normal(0, 1, 40)[day]  # all that differs is between days
    values = 2 + level + 0.01 * rng.standard_normal(1000)
    score = partial(measures.mean_scores, values)
    cell = measures._with_interval(score, day)
    assert cell.value == pytest.approx(values.mean())
    assert (cell.cases, cell.blocks) == (1000, 40)
    # Of 40 days, not of 1000 cases: about two standard errors of a mean of 40.
    assert cell.high - cell.low == pytest.approx(2 * 1.96 * level.std() / np.sqrt(40), rel=0.15)
    assert measures._with_interval(score, day) == cell
    one = measures._with_interval(score, np.zeros(1000))
    assert (one.value, one.low, one.blocks) == (pytest.approx(values.mean()), None, 1)


def test_public_scores_are_those_of_their_cases():
    rng = np.random.default_rng(1)
    truth, guess, other = rng.normal(size=(3, 60))
    block = np.repeat(["a", "b", "c"], 20)
    assert evaluation.score_r2(truth, guess, block).value == pytest.approx(r2_score(truth, guess))
    both = [np.stack([truth, other], 1), np.stack([guess, other / 2], 1)]
    assert evaluation.score_r2(*both, block).value == pytest.approx(r2_score(*both))
    cell = evaluation.score_ranks(np.array([1, 1, 3, np.nan, 20]), np.array([0, 0, 1, 1, 1]))
    assert (cell.value, cell.cases, cell.blocks) == (0.5, 4, 2)
    assert dict(cell.more) == {"median_rank": 2.0, "among_ten": 0.75}


def test_scores_are_those_of_scikit_learn_under_weights():
    rng = np.random.default_rng(1)
    truth, guess = rng.normal(size=(2, 50, 2))
    day = rng.integers(0, 7, 50)
    weights = rng.integers(1, 4, (4, 7)).astype(float)
    yes, score = rng.random(50) < 0.3, np.round(guess[:, 0], 1)  # with ties
    found = [
        measures.mean_scores(guess[:, 0], day, weights),
        measures.r2_scores(truth + 100, guess + 100, day, weights),
        measures.auc_scores(yes, score, day, weights),
    ]
    for w, mean, r2, auc in zip(weights[:, day], *found, strict=True):
        assert mean == pytest.approx(np.average(guess[:, 0], weights=w))
        assert r2 == pytest.approx(r2_score(truth, guess, sample_weight=w))
        assert auc == pytest.approx(roc_auc_score(yes, score, sample_weight=w))


def test_scores_of_what_does_not_vary_are_missing():
    day, once = np.zeros(60, int), np.ones((1, 1))
    assert np.isnan(measures.r2_scores(np.ones(60), np.zeros(60), day, once))
    assert np.isnan(measures.auc_scores(np.ones(60, bool), np.arange(60.0), day, once))


# probes


def test_probes_recover_planted_linear_attributes():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((600, 12)) * np.geomspace(0.1, 100, 12) + 50
    part = np.repeat([measures.FIT, measures.CHOOSE, measures.TEST], 200)
    y = x @ rng.standard_normal((12, 2)) / np.geomspace(0.1, 100, 12).mean() - 7
    test = part == measures.TEST
    y = np.column_stack([y, 1e-3 * rng.standard_normal(600)])  # noise has another penalty
    guess = measures.ridge(x, y, part)
    np.testing.assert_allclose(guess[test, :2], y[test, :2], rtol=1e-3, atol=1e-2)
    assert r2_score(y[test, 2], guess[test, 2]) > -0.05
    yes = x[:, 3] / x[:, 3].std() + 0.02 * rng.standard_normal(600) > (x[:, 3] / x[:, 3].std()).mean()
    odds = measures.logistic(x, yes, part)
    assert roc_auc_score(yes[test], odds[test]) > 0.99


def test_probes_do_not_look_at_the_testing_days():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((90, 5)), rng.standard_normal((90, 1))
    part = np.repeat([measures.FIT, measures.CHOOSE, measures.TEST], 30)
    other = np.where(part[:, None] == measures.TEST, 1e6, y)
    np.testing.assert_array_equal(measures.ridge(x, y, part), measures.ridge(x, other, part))
    yes = y[:, 0] > 0
    altered = np.where(part == measures.TEST, ~yes, yes)
    np.testing.assert_array_equal(measures.logistic(x, yes, part), measures.logistic(x, altered, part))


def test_ridge_of_noise_says_nothing():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((300, 250)), rng.standard_normal((300, 1))
    part = np.repeat([measures.FIT, measures.CHOOSE, measures.TEST], 100)
    test = part == measures.TEST
    assert abs(r2_score(y[test], measures.ridge(x, y, part)[test])) < 0.1


def test_a_feature_that_never_varied_is_left_out():
    x = np.random.default_rng(0).standard_normal((90, 3))
    part = np.repeat([measures.FIT, measures.CHOOSE, measures.TEST], 30)
    y = x[:, :1] * 2
    steady = np.where(part == measures.TEST, 5.0, 1.0)
    guess = measures.ridge(np.column_stack([x, steady]), y, part)
    np.testing.assert_allclose(guess[part == measures.TEST], y[part == measures.TEST], atol=1e-3)


# retrieval and analogues


def pool_of(count, rng, *, per_scene=6):
    """Samples on a row of places, frames three hours apart."""
    at = np.arange(count)
    return sequels.Samples(
        rows=at,
        time=np.datetime64("2021-06-01T18:00", "s") + (at // per_scene) * 3 * HOUR,
        latitude=np.full(count, 40.0),
        longitude=-100.0 + (at % per_scene),
        windows=(at, at, at),
        vectors={"x": rng.standard_normal((count, 5))},
        attributes={},
    )


def test_a_sequel_is_ranked_among_distractors_of_its_hour_as_by_brute_force():
    rng = np.random.default_rng(5)
    pool, later = pool_of(600, rng), pool_of(600, rng)
    x, y = pool.vectors["x"], later.vectors["x"]
    y[7:400] = x[:393] + 0.5 * rng.standard_normal((393, 5))
    allowed = rng.random(600) < 0.9
    sequel = np.full(600, -1)
    sequel[:390] = np.arange(7, 397)
    stores = SimpleNamespace(edge_km=60 / 0.945, datasets={"x": None})
    asked = run._Evaluator(stores, {"x": None}, pool, later, {}, np.full(600, -1), "", 0)
    row = asked._row("retrieval", "q", asked._retrieve, "30min", sequel, later, allowed)

    def cosine(a, b):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def hours(a, b):
        return abs((a - b) / np.timedelta64(1, "h"))

    found = []
    for q, s in zip(range(390), range(7, 397), strict=True):
        rank, count = 1.0, 0
        for i in range(600):
            clock = hours(pool.time[i], later.time[s]) % 24
            if not allowed[i] or min(clock, 24 - clock) > 0.5:
                continue
            if any(
                hours(pool.time[i], t) < 6 and great_circle_km(40.0, lon, 40.0, pool.longitude[i]) < 60
                for t, lon in ((pool.time[q], pool.longitude[q]), (later.time[s], later.longitude[s]))
            ):
                continue
            count += 1
            rank += cosine(x[i], x[q]) > cosine(y[s], x[q])
        if count >= run._LEAST_DISTRACTORS:
            found.append(rank)
    assert row.cells["x"].more["median_rank"] == np.median(found)
    assert row.cells["x"].value is None or row.cells["x"].value == np.mean(np.array(found) == 1)
    assert len(found) == row.cells["x"].cases


def test_an_attribute_of_yes_or_no_is_probed_by_the_area_under_its_curve():
    rng = np.random.default_rng(8)
    pool = pool_of(2400, rng)
    x = pool.vectors["x"]
    values = {"overshooting_top": (x[:, 0] + 0.2 * rng.standard_normal(2400) > 1).astype(float)}
    pool = replace(pool, attributes=values, vectors={"x": x, "noise": rng.standard_normal((2400, 3))})
    part, words = measures.divide(pool.time)
    asked = run._Evaluator(
        SimpleNamespace(datasets={"x": None}), {}, pool, pool, {}, part, words, 0, told=baselines.ATTRIBUTES
    )
    chosen = {"x": []}
    row = asked._row("probe", "overshooting", asked._probe, "overshooting_top", chosen, measure="AUC")
    assert row.cells["x"].value > 0.95
    assert row.cells["noise"].low < 0.5 < row.cells["noise"].high
    assert row.baseline == "noise"
    assert row.gain.low > 0.3
    assert chosen["x"][0] > 0.9  # from -1 to 1, as R² is


def test_targets_are_ranked_as_by_counting_one_by_one():
    rng = np.random.default_rng(6)
    queries, candidates = rng.standard_normal((9, 4)), rng.standard_normal((30, 4))
    target, excluded = rng.integers(0, 30, 9), rng.random((9, 30)) < 0.3
    candidates[3], candidates[4] = 0.0, np.nan  # no candidates
    target[:2] = 5, 3
    candidates[6] = 2 * candidates[5]  # equal to a target: half a rank
    queries[8] = np.inf
    excluded[7] = True
    found = similarity.rank_targets(queries, candidates, target, excluded)
    unit = candidates / np.linalg.norm(candidates, axis=1, keepdims=True).clip(1e-9)
    for q, rank in enumerate(found):
        others = [c for c in range(30) if c not in (3, 4, target[q]) and not excluded[q, c]]
        if target[q] in (3, 4) or q == 8 or not others:
            assert np.isnan(rank)
            continue
        more = np.array([(unit[c] - unit[target[q]]) @ queries[q] for c in others])
        assert rank == 1 + (more > 1e-9).sum() + (abs(more) <= 1e-9).sum() / 2
    assert np.isfinite(found).sum() >= 5
    alike = similarity.rank_targets(np.ones((2, 3)), np.ones((31, 3)), np.array([0, 7]))
    np.testing.assert_array_equal(alike, 16)


def test_analogue_forecast_is_the_mean_of_the_nearest_sequels():
    rng = np.random.default_rng(6)
    x, after = rng.standard_normal((80, 4)), rng.standard_normal((80, 2))
    case, known = np.array([70, 75]), np.arange(50)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = [after[known[np.argsort(-unit[known] @ unit[c])[:20]]].mean(axis=0) for c in case]
    np.testing.assert_allclose(evaluation.analogue_forecast(x[case], x[known], after[known]), expected)
    few = evaluation.analogue_forecast(x[case], x[:3], after[:3, 0])
    np.testing.assert_allclose(few, after[:3, 0].mean())


# pixels


def test_attributes_are_those_of_the_pixels(tmp_path):
    channels = ("reflectivity_column_maximum", "echo_top_height", "reflectivity@3.0km", "reflectivity@8.0km")
    path = make_store(
        tmp_path, scenes=1, shape=(96, 160), patch=32, format="gridrad-v4.2", seed=7, channels=channels
    )
    cube = store.open_packed(path)
    grid = np.indices((cube.sizes["row"], cube.sizes["col"])).reshape(2, -1)
    zeros = np.zeros(len(grid[0]), int)
    windows = (zeros, grid[0] * 32, grid[1] * 32, (32, 32))
    found, made = baselines.describe_pixels(cube, *windows, ("reflectivity_column_maximum",))
    values = store.open_cube(path)
    composite, top = (values[n].values[0] for n in ("reflectivity_column_maximum", "echo_top_height"))
    for i, (row, col) in enumerate(grid.T):
        box = (slice(row * 32, row * 32 + 32), slice(col * 32, col * 32 + 32))
        known = np.isfinite(composite[box])
        if known.mean() >= 0.5:
            assert found["core_share"][i] == pytest.approx((composite[box][known] >= 40).mean())
        else:
            assert np.isnan(found["core_share"][i])
        echo = top[box][top[box] > -1]
        if np.isfinite(top[box]).mean() >= 0.5 and echo.size:
            assert found["echo_top_height"][i] == pytest.approx(echo.max())
        else:
            assert np.isnan(found["echo_top_height"][i])
    assert np.nanmax(found["core_share"]) > 0
    assert {n: v.shape for n, v in made.items()} == {
        "histogram": (len(zeros), 33),
        "descriptor": (len(zeros), 68),
    }
    embed(
        path,
        model="descriptor",
        channels="reflectivity_column_maximum",
        out=tmp_path / "d.zarr",
        dtype="float32",
    )
    embedded = store.open_embeddings(tmp_path / "d.zarr")["embedding"].values.reshape(-1, 68)
    there = np.isfinite(embedded).all(axis=1)
    np.testing.assert_allclose(made["descriptor"][there], embedded[there], atol=1e-5)
    few = cube.drop_vars(["reflectivity_column_maximum", "echo_top_height"])
    lone = baselines.describe_pixels(few, *windows, ("reflectivity@3.0km",))[0]
    levels = values["reflectivity"].values[0]
    for i, (row, col) in enumerate(grid.T):
        block = levels[:, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32]
        high = [a for a, level in zip((3.0, 8.0), block, strict=True) if (level >= 18.5).any()]
        if np.isfinite(lone["echo_top_height"][i]):
            assert lone["echo_top_height"][i] == max(high)
        elif np.isfinite(block).any(axis=0).mean() >= 0.5:
            assert not high


@pytest.mark.parametrize("count", [1, 7])
def test_pixels_do_not_depend_on_how_many_are_read_at_once_nor_on_how(store_folder, count, monkeypatch):
    cube = store.open_packed(store_folder / "patches.zarr")
    crop, row, col = (v.ravel() for v in np.meshgrid(np.arange(4), np.arange(2), np.arange(3), indexing="ij"))
    windows = (crop, row * PATCH, col * PATCH, (PATCH, PATCH))
    expected = baselines.describe_pixels(cube, *windows, (IR,))
    monkeypatch.setattr(baselines, "_PIXELS", count * PATCH**2)
    found = baselines.describe_pixels(cube, *windows, (IR,))
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    # Windows off the lattice are read another way: their pixels are those of the decoded cube.
    shifted = (crop, np.full(24, 16), np.full(24, 40), (PATCH, PATCH))
    off = baselines.describe_pixels(cube, *shifted, (IR,))[0]["minimum_brightness_temperature"]
    values = store.open_cube(store_folder / "patches.zarr")[IR].values[:4, 16:48, 40:72]
    np.testing.assert_allclose(off[::6], np.nanmin(values, axis=(1, 2)), rtol=1e-6)


# whole evaluations


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    """A cube of many days, embeddings of its statistics, the same with noise, and with the hour in them."""
    folder = tmp_path_factory.mktemp("days")
    path = make_cube(folder)
    cube = store.open_cube(path)
    write_embeddings(folder / "plain.zarr", path, vectors_of(cube))
    write_embeddings(folder / "noisy.zarr", path, vectors_of(cube, noise=8.0))
    write_embeddings(folder / "leaky.zarr", path, vectors_of(cube, hour=True))
    return folder


@pytest.fixture(scope="module")
def result(store_folder):
    return evaluation.evaluate(store_folder / "plain.zarr", leads=LEADS)


def test_a_planted_attribute_is_found_on_days_apart(result):
    row = row_of(result, "probe", "minimum brightness temperature")
    cell = row.cells["embedding"]
    assert cell.value > 0.999
    assert cell.low <= cell.value <= cell.high
    assert cell.blocks >= 5
    assert row.baseline in ("histogram", "descriptor")
    assert row.gain.value == pytest.approx(cell.value - row.cells[row.baseline].value)
    assert "descriptor, readout" not in row.cells  # a linear probe needs none
    residual = row_of(result, "probe", "minimum brightness temperature, residual")
    assert residual.cells["embedding"].value < cell.value


def test_the_hour_is_found_where_it_was_planted_and_only_there(store_folder, result):
    leaky = evaluation.evaluate(store_folder / "leaky.zarr", leads=LEADS)
    assert row_of(leaky, "leak", "solar hour").cells["embedding"].value > 0.99
    assert row_of(result, "leak", "solar hour").cells["embedding"].value < 0.3


def test_leads_without_pairs_are_named_once(result):
    assert not any("10min" in row.question for row in result.rows)
    assert "No pairs 10min apart: frames are 30 min apart." in result.notes
    known = row_of(result, "retrieval", "same place after 30min")
    assert known.cells["embedding"].value > 3 * known.cells["chance"].value
    more = known.cells["embedding"].more
    assert known.cells["embedding"].value <= more["among_ten"] <= 1
    assert more["median_distractors"] >= run._LEAST_DISTRACTORS


def test_forecasts_stand_beside_persistence(result):
    row = row_of(result, "forecast", "minimum brightness temperature after 30min")
    vectors = {f"{n}{r}" for n in ("embedding", "histogram", "descriptor") for r in ("", ", readout")}
    assert set(row.cells) == vectors | {"persistence", "climatology", "regression"}
    assert row.cells["persistence"].value > row.cells["climatology"].value
    assert row.cells["regression"].value > row.cells["climatology"].value
    gain = row.cells["embedding"].value - row.cells[row.baseline].value
    assert row.gain.value == pytest.approx(gain)


def test_forecasts_know_nothing_of_what_comes_after_their_part_begins(store_folder):
    """The label is near 0 before the testing days and near 1000 on them; the climatology is that of before."""
    cube = store.open_cube(store_folder / "patches.zarr")
    part, _ = measures.divide(cube["time"].values, gap=0)
    crop, row, col = (v.ravel() for v in np.indices((len(part), 2, 3)))
    label = 1000.0 * (part[crop] == measures.TEST) + (-1.0) ** (row + col)
    labels = pd.DataFrame({"crop": crop, "row": row, "col": col, "level": label})
    options = {"labels": labels, "label": "level", "leads": ("24h",), "gap": 0}
    found = evaluation.evaluate(store_folder / "plain.zarr", **options)
    row = row_of(found, "forecast", "level after 24h")
    assert row.cells["climatology"].value == pytest.approx(-1e6, rel=0.01)


def test_an_evaluation_is_the_same_again(store_folder, result):
    again = evaluation.evaluate(store_folder / "plain.zarr", leads=LEADS)
    assert again == result
    other = evaluation.evaluate(store_folder / "plain.zarr", leads=LEADS, seed=1, samples=300)
    assert other.to_dict()["about"]["samples"] == f"300 of {2 * DAYS * 6} clean samples"
    assert other != result


def test_of_several_stores_one_is_chosen_on_the_third_part(store_folder):
    result = evaluation.evaluate([store_folder / "noisy.zarr", store_folder / "plain.zarr"], leads=LEADS[1:])
    assert result.chosen == "plain"
    row = row_of(result, "choice", "probes")
    assert row.cells["plain"].value > row.cells["noisy"].value
    assert row_of(result, "probe", "minimum brightness temperature").cells["plain"].value > 0.99


def test_stores_are_called_by_short_names_that_say_which():
    assert sequels._names(["a/one.zarr"]) == ["embedding"]
    assert sequels._names(["a/one.zarr", "b/two.zarr/"]) == ["one", "two"]
    assert sequels._names(["a/one.zarr", "b/one.zarr"]) == ["a/one.zarr", "b/one.zarr"]
    assert sequels._names(["a/one.zarr", "a/pool.zarr"]) == ["a/one.zarr", "a/pool.zarr"]


def test_result_is_json_with_words_for_numbers_that_are_not_there(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    rows = [r for r in data["rows"] if r["question"] == "overshooting top: yes or no, residual"]
    assert rows[0]["cells"]["embedding"]["value"] is None
    assert "too few" in rows[0]["cells"]["embedding"]["words"]
    text = str(result)
    for title in ("Retrieval", "Probes", "Leaks", "Analogue forecast", "Spread"):
        assert any(line.startswith(title) for line in text.splitlines())
    assert "nan" not in text


def test_collapsed_embeddings_are_evaluated_all_the_same(store_folder, tmp_path):
    path = store_folder / "patches.zarr"
    vectors = np.full((*store.open_cube(path)[f"{IR}_mean"].shape, 8), 0.5)
    write_embeddings(tmp_path / "e.zarr", path, vectors, source=str(path))
    result = evaluation.evaluate(tmp_path / "e.zarr", leads=LEADS[1:])
    cosine = row_of(result, "spread", "mean cosine of pairs (1: all alike)").cells["embedding"]
    assert cosine.value == pytest.approx(1)
    assert any(note.startswith("embedding has collapsed: ") for note in result.notes)
    retrieval = row_of(result, "retrieval", "same place after 30min").cells["embedding"]
    assert retrieval.value == 0  # all others are equal, so it never ranks first
    assert row_of(result, "probe", "minimum brightness temperature").cells["embedding"].value < 0.01


def test_one_day_gives_words_all_over(tmp_path):
    path = make_cube(tmp_path, days=1, scenes=4, hours=False)
    write_embeddings(tmp_path / "e.zarr", path, vectors_of(store.open_cube(path)))
    result = evaluation.evaluate(tmp_path / "e.zarr", leads=("30min",))
    spread = [r.section for r in result.rows for c in r.cells.values() if c.value is not None]
    assert set(spread) <= {"spread"}
    row = row_of(result, "probe", "minimum brightness temperature")
    assert row.cells["embedding"].words.startswith("1 event: too few to divide")
    assert (
        row_of(result, "retrieval", "same place after 30min")
        .cells["embedding"]
        .words.startswith("too few queries")
    )


def test_level_2k_has_the_mean_of_patches_beside_it(store_folder, tmp_path):
    path = store_folder / "patches.zarr"
    cube = store.open_cube(path)
    patches = vectors_of(cube)
    crops = np.concatenate([patches.mean(axis=(1, 2)), patches.min(axis=(1, 2))], axis=-1)
    about = {"source": str(store_folder / "plain.zarr")}
    write_embeddings(tmp_path / "2k.zarr", path, crops, level="2k", **about)
    with pytest.raises(SchemaError, match=r"no cube at .*gone\.zarr"):
        evaluation.evaluate(tmp_path / "2k.zarr", cube=tmp_path / "gone.zarr")
    result = evaluation.evaluate(tmp_path / "2k.zarr", leads=LEADS[1:])
    assert result.about["level"] == "2k"
    row = row_of(result, "retrieval", "same place after 30min")
    assert {"pool", "pool, readout"} <= set(row.cells)
    m = sequels.open_stores([str(tmp_path / "2k.zarr")])
    found = run._gather(m, None, np.arange(3))
    expected = np.concatenate([patches[:3].mean(axis=(1, 2)), patches[:3].std(axis=(1, 2))], axis=-1)
    np.testing.assert_allclose(found.vectors["pool"], expected, rtol=1e-4)
    least = np.nanmin(cube[IR].values[:3], axis=(1, 2))
    np.testing.assert_allclose(found.attributes["minimum_brightness_temperature"], least, rtol=1e-6)


# what does not fit


def test_a_cube_that_has_moved_is_asked_for(store_folder, tmp_path):
    shutil.copytree(store_folder / "plain.zarr", tmp_path / "plain.zarr")
    with pytest.raises(
        SchemaError,
        match=r"no cube at .*patches\.zarr, which .* was made from; moved\? Pass `cube` with its path",
    ):
        evaluation.evaluate(tmp_path / "plain.zarr")
    moved = sequels.open_stores([str(tmp_path / "plain.zarr")], cube=store_folder / "patches.zarr")
    assert moved.members == (IR,)


def test_another_cube_and_other_samples_are_refused(store_folder, tmp_path):
    other = make_cube(tmp_path, days=1)
    with pytest.raises(SchemaError, match=r"is not what .* was made from"):
        evaluation.evaluate(store_folder / "plain.zarr", cube=other)
    write_embeddings(tmp_path / "e.zarr", other, vectors_of(store.open_cube(other)))
    with pytest.raises(SchemaError, match="expected stores of the same samples"):
        evaluation.evaluate([store_folder / "plain.zarr", tmp_path / "e.zarr"])
    with pytest.raises(SchemaError, match="expected each store once"):
        evaluation.evaluate([store_folder / "plain.zarr"] * 2)
    with pytest.raises(SchemaError, match="no channel 'visible_reflectance'"):
        evaluation.evaluate(store_folder / "plain.zarr", channel="visible_reflectance")
    with pytest.raises(SchemaError, match="samples=0"):
        evaluation.evaluate(store_folder / "plain.zarr", samples=0)


def test_the_command_prints_the_table_or_json_and_draws(store_folder, tmp_path):
    arguments = ["evaluate", str(store_folder / "plain.zarr"), "--samples", "200"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "Probes: R²" in done.output
    picture = tmp_path / "e.png"
    done = CliRunner().invoke(cli, [*arguments, "--json", "--picture", str(picture)])
    assert json.loads(done.stdout)["about"]["channel"] == IR
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "nothing.zarr")])
    assert done.exit_code == 1


def test_the_page_s_lines_run(store_folder, tmp_path, monkeypatch, capsys):
    page = (PROJECT / "docs" / "evaluation.md").read_text()
    names = {"patches": "patches", "embeddings": "plain", "epoch20": "noisy", "epoch50": "plain"}
    for name, source in names.items():
        (tmp_path / f"{name}.zarr").symlink_to(store_folder / f"{source}.zarr")
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, space)
    assert (tmp_path / "evaluation.png").stat().st_size > 10_000
    assert space["best"].chosen == "epoch50"
    said = capsys.readouterr().out
    assert "probe minimum brightness temperature 0.9" in said
    # What the page says of thresholds is what the code has.
    for text in (
        "fewer than 3 days or events",
        "30 cases",
        "20 distractors",
        "20 nearest samples",
        "below 220 K",
        "18.5 dBZ",
    ):
        assert text in page.replace("\n", " ")
    assert (measures.MANY_BLOCKS, measures.LEAST_CASES, run._LEAST_DISTRACTORS) == (5, 30, 20)
    assert (baselines._COLD_CLOUD_K, baselines._ECHO_TOP_DBZ, baselines._CORE_DBZ) == (220.0, 18.5, 40.0)
    assert (measures._FIT_SHARE, measures._CHOOSE_SHARE) == (0.6, 0.2)


# what an evaluation is made of


@pytest.fixture(scope="module")
def stores(store_folder):
    return sequels.open_stores([str(store_folder / "plain.zarr")])


def test_sequels_are_the_same_cells_of_the_next_frame(stores):
    pool = stores.read(np.flatnonzero(stores.mask))
    crop, _, row, col = np.unravel_index(pool.rows, stores.mask.shape)
    found = {tuple(s): r for s, r in zip(np.stack([crop, row, col], 1).tolist(), pool.rows, strict=True)}
    sequel = stores.after(pool, 1800)
    for at, c, r, k in zip(sequel, crop, row, col, strict=True):
        assert at == (found[c + 1, r, k] if c % 2 == 0 else -1)  # frames come in pairs
    assert (stores.after(pool, 600) == -1).all()
    assert stores.step == 1800


def test_a_storm_s_sequel_is_among_the_clean_cells_about_it(stores, result):
    mask = stores.mask
    rows = np.flatnonzero(mask)[[0, 4, 9]]
    around = stores.around(np.append(rows, -1))
    assert around.shape == (4, 9)
    assert (around[3] == -1).all()
    for line, at in zip(around, rows, strict=False):
        crop, channel, r, k = np.unravel_index(at, mask.shape)
        expected = [
            np.ravel_multi_index((crop, channel, r + dy, k + dx), mask.shape)
            if 0 <= r + dy < 2 and 0 <= k + dx < 3 and mask[crop, channel, r + dy, k + dx]
            else -1
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        assert line.tolist() == expected
    cell = row_of(result, "retrieval", "same storm after 30min").cells["embedding"]
    assert cell.value is not None or cell.words.startswith("too few")


def test_kinds_of_vectors_are_learned_on_some_samples(stores):
    pool = run._gather(stores, None, np.flatnonzero(stores.mask))
    some, sequel = np.arange(len(pool.rows)) < 300, pool.find(stores.after(pool, stores.step))
    kinds = run._learn({"embedding": None}, pool, pool, sequel, some)
    found = run._project(pool, kinds).vectors
    assert list(found) == [
        f"{n}{r}" for n in ("embedding", "histogram", "descriptor") for r in ("", ", readout")
    ]
    np.testing.assert_array_equal(found["embedding"], pool.vectors["embedding"])
    np.testing.assert_allclose(found["descriptor"][some].mean(axis=0), 0, atol=1e-5)
    pairs = np.flatnonzero(some & (sequel >= 0))
    raw = pool.vectors["descriptor"]
    expected = fit_arrays(raw[some], raw[pairs], raw[sequel[pairs]]).apply(raw)
    np.testing.assert_allclose(found["descriptor, readout"], expected, rtol=1e-4, atol=1e-4)
    steady = replace(pool, vectors={n: np.ones_like(v) for n, v in pool.vectors.items()})
    assert list(run._learn({"embedding": None}, steady, steady, sequel, some)) == ["embedding"]


def test_spread_tells_vectors_that_are_alike_from_others():
    rng = np.random.default_rng(0)
    even = rng.standard_normal((4000, 32))
    assert evaluation.spread_of(even).mean_cosine == pytest.approx(0, abs=0.01)
    unit = even[:50] / np.linalg.norm(even[:50], axis=1, keepdims=True)
    pairs = unit @ unit.T
    expected = (pairs.sum() - 50) / (50 * 49)
    assert evaluation.spread_of(even[:50]).mean_cosine == pytest.approx(expected)
    assert not evaluation.spread_of(even).collapsed
    assert not evaluation.spread_of(even + 10).collapsed  # a large common part is no collapse
    alike = np.ones((50, 8)) * np.arange(1, 51)[:, None]
    assert evaluation.spread_of(alike).collapsed
    few = np.where(np.arange(32) < 20, 1.0, even)
    assert evaluation.spread_of(few).constant_share == 20 / 32
    assert evaluation.spread_of(few).collapsed


def test_residuals_leave_nothing_of_what_the_clock_and_the_latitude_say():
    rng = np.random.default_rng(7)
    time = times_of(600, hours=7)
    longitude, latitude = rng.uniform(-180, 180, 600), rng.uniform(25, 50, 600)
    hour = solar_hour_of(time, longitude)
    part, _ = measures.divide(time)
    y = 5 * np.sin(2 * np.pi * hour / 24) - 2 * np.cos(4 * np.pi * hour / 24) + 0.3 * latitude
    left = y - measures.ridge(measures.nuisance(time, latitude, longitude), y[:, None], part)[:, 0]
    test = part == measures.TEST
    assert left[test].std() < 0.02 * y[test].std()


# labels, readouts, moved windows


@pytest.fixture(scope="module")
def minima(store_folder):
    """The least value of each patch, (crop, row, col), and its time and place."""
    cube = store.open_cube(store_folder / "patches.zarr")
    least = cube[f"{IR}_minimum"].compute()
    return xr.Dataset(
        {"least": (("crop", "row", "col"), least.values)},
        coords={
            "time": ("crop", cube["time"].values),
            "latitude": (("crop", "row", "col"), cube["latitude"].values),
            "longitude": (("crop", "row", "col"), cube["longitude"].values),
        },
    )


def test_labels_are_matched_by_time_and_place_or_by_position(stores, minima, tmp_path):
    pool = stores.read(np.flatnonzero(stores.mask))
    crop, _, row, col = np.unravel_index(pool.rows, stores.mask.shape)
    expected = minima["least"].values[crop, row, col]
    found = sequels.open_labels(minima, "least", stores)
    np.testing.assert_array_equal(found.of(stores, pool), expected)
    assert not found.yes_no
    table = minima.to_dataframe().reset_index()
    by_position = sequels.open_labels(table[["crop", "row", "col", "least"]], "least", stores)
    np.testing.assert_array_equal(by_position.of(stores, pool), expected)
    # Two values in each patch, some minutes late, and others far away or at no time of the store.
    places = table[["time", "latitude", "longitude", "least"]].sample(frac=1, random_state=0)
    places["time"] += pd.Timedelta("7min")
    shifted = places.assign(least=places["least"] + 2, latitude=places["latitude"] + 0.01)
    away = places.assign(latitude=-places["latitude"], least=-1.0)
    late = places.assign(time=places["time"] + pd.Timedelta("4h"), least=-1.0)
    pd.concat([places, shifted, away, late]).to_csv(tmp_path / "labels.csv", index=False)
    by_place = sequels.open_labels(tmp_path / "labels.csv", "least", stores)
    np.testing.assert_allclose(by_place.of(stores, pool), expected + 1, rtol=1e-6)
    # On a grid of times, latitudes and longitudes: each sample has the mean of the grid points in it.
    time, latitude = np.unique(pool.time)[::2], np.arange(-90, 90.1, 0.1)
    longitude = np.linspace(pool.longitude.min(), pool.longitude.max(), 30)
    coords = {"time": time.astype("M8[ns]"), "latitude": latitude, "longitude": longitude}
    values = np.broadcast_to(latitude[:, None], (len(time), 1801, 30))
    grid = xr.Dataset({"north": (tuple(coords), values)}, coords=coords)
    grid.to_netcdf(tmp_path / "grid.nc")
    north = sequels.open_labels(tmp_path / "grid.nc", "north", stores).of(stores, pool)
    there = np.isin(pool.time, time)
    np.testing.assert_allclose(north[there], pool.latitude[there], atol=0.1)
    assert np.isnan(north[~there]).all()


def test_a_sample_is_a_yes_if_one_of_the_values_in_it_is(stores, minima, store_folder):
    """Of a grid without places at its edge; where every sample is a yes, words say so."""
    pool = stores.read(np.flatnonzero(stores.mask))
    times = np.unique(pool.time).astype("M8[ns]")
    north, east = (np.linspace(v.min() - 1, v.max() + 1, 200) for v in (pool.latitude, pool.longitude))
    latitude, longitude = np.meshgrid(north, east, indexing="ij")
    latitude[:, -1] = longitude[:, -1] = np.nan
    hail = (np.add.outer(np.arange(200), np.arange(200)) % 2) * (latitude > pool.latitude.mean())
    coords = {"time": times, "latitude": (("y", "x"), latitude), "longitude": (("y", "x"), longitude)}
    grid = xr.Dataset({"hail": (("time", "y", "x"), [hail] * len(times))}, coords=coords)
    labels = sequels.open_labels(grid, "hail", stores)
    assert labels.yes_no
    found = labels.of(stores, pool)
    far = abs(pool.latitude - pool.latitude.mean()) > stores.edge_km / 2 / 100
    np.testing.assert_array_equal(found[far], pool.latitude[far] > pool.latitude.mean())
    everywhere = grid.assign(hail=grid["hail"].where(grid["hail"] == 1, grid["y"] % 2))
    cells = evaluation.evaluate(store_folder / "plain.zarr", leads=LEADS[1:], labels=everywhere, label="hail")
    assert row_of(cells, "probe", "hail").words.startswith("too few samples on the fitting days")


def test_labels_are_probed_and_forecast_by_the_command(store_folder, minima, tmp_path):
    cold = (minima["least"] < minima["least"].median()).astype(float)
    minima.assign(cold=cold).to_zarr(tmp_path / "labels.zarr")
    arguments = [
        "evaluate",
        str(store_folder / "plain.zarr"),
        "--labels",
        str(tmp_path / "labels.zarr"),
        "--json",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--label", "cold"])
    assert done.exit_code == 0, done.output
    rows = {(r["section"], r["question"]): r for r in json.loads(done.stdout)["rows"]}
    assert rows["probe", "cold"]["measure"] == "AUC"
    assert rows["probe", "cold"]["cells"]["embedding"]["value"] > 0.95
    wrong = CliRunner().invoke(cli, [*arguments, "--label", "warm"])
    assert wrong.exit_code == 1
    assert "no label 'warm'; it has ['cold', 'least']" in wrong.stderr
    with pytest.raises(SchemaError, match="only one of labels and label"):
        evaluation.evaluate(store_folder / "plain.zarr", labels=minima)


def test_labels_that_do_not_fit_are_refused(stores, minima, tmp_path):
    with pytest.raises(SchemaError, match="expected one a sample"):
        sequels.open_labels(minima.isel(crop=slice(3)), "least", stores)
    table = minima.to_dataframe().reset_index()[["crop", "row", "col", "least"]]
    with pytest.raises(SchemaError, match="reach beyond the samples"):
        sequels.open_labels(table.assign(row=table["row"] + 1), "least", stores)
    with pytest.raises(SchemaError, match="least holds object; expected numbers or booleans"):
        sequels.open_labels(table.assign(least="cold").astype({"least": object}), "least", stores)
    with pytest.raises(SchemaError, match=r"lacks \['latitude', 'longitude'\]"):
        sequels.open_labels(pd.DataFrame({"time": ["2021-06-01"], "least": [1.0]}), "least", stores)
    report = {"time": ["noon"], "latitude": [40.0], "longitude": [-100.0], "least": [1.0]}
    with pytest.raises(SchemaError, match=r"time: .*noon.*; expected UTC such as"):
        sequels.open_labels(pd.DataFrame(report), "least", stores)
    with pytest.raises(SchemaError, match=r"got a file .txt; expected .csv, .nc or .zarr"):
        sequels.open_labels(tmp_path / "labels.txt", "least", stores)


def test_the_readout_of_the_store_is_used_and_named(store_folder, tmp_path, result):
    shutil.copytree(store_folder / "plain.zarr", tmp_path / "plain.zarr")
    cube = store_folder / "patches.zarr"
    assert any(n.startswith("embedding, readout: the store has none") for n in result.notes)
    fit_readout(tmp_path / "plain.zarr", directions=1)
    found = evaluation.evaluate(tmp_path / "plain.zarr", cube, leads=LEADS[1:])
    note = next(n for n in found.notes if "saved with the store, fitted on 2021-06-01T" in n)
    assert note.endswith("with days to test among them.")
    fit_readout(tmp_path / "plain.zarr", directions=1, time=("2021-06-01", "2021-06-15"))
    again = evaluation.evaluate(tmp_path / "plain.zarr", cube, leads=LEADS[1:], samples=300)
    assert not any("days to test" in n for n in again.notes)
    row = row_of(found, "forecast", "minimum brightness temperature after 30min")
    before = row_of(result, "forecast", "minimum brightness temperature after 30min")
    assert row.cells["embedding"] == before.cells["embedding"]
    assert row.cells["embedding, readout"] != before.cells["embedding, readout"]
    gain = row.cells["embedding, readout"].value - row.cells[row.baseline].value
    assert row.gain.value == pytest.approx(gain)  # as search compares them


def test_overlapping_windows_are_moved_for_retrieval(store_folder, tmp_path):
    path = store_folder / "patches.zarr"
    embed(path, model="descriptor", channels=IR, stride=PATCH // 2, out=tmp_path / "d.zarr")
    moved = sequels.open_stores([str(tmp_path / "d.zarr")], path)
    assert moved.move == PATCH // 2
    rows = np.flatnonzero(moved.mask)[:40]
    crop, channel, row, col = np.unravel_index(rows, moved.mask.shape)
    for at, c, n, r, k in zip(moved.moved(rows), crop, channel, row, col, strict=True):
        inside = r + 1 < moved.mask.shape[2] and k + 1 < moved.mask.shape[3]
        there = inside and moved.mask[c, n, r + 1, k + 1]
        assert at == (np.ravel_multi_index((c, n, r + 1, k + 1), moved.mask.shape) if there else -1)
    result = evaluation.evaluate(tmp_path / "d.zarr", path, leads=LEADS[1:], samples=600)
    row_of(result, "retrieval", "same place after 30min, window moved by 16 px")
