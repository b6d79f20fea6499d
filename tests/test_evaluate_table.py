"""The table of an evaluation: planted answers are found, parts are apart, few data give words."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import PROJECT
from evaluation_stores import DAYS, IR, PATCH, make_cube, vectors_of, write_embeddings

from gridrad_cube import evaluation, store, testing
from gridrad_cube.cli import cli
from gridrad_cube.evaluation import days, pixels, probes, questions, samples, sequels, vectors
from gridrad_cube.evaluation.material import prepare
from gridrad_cube.evaluation.samples import Gathered
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query import convective_day
from gridrad_cube.schema import SchemaError

HOUR = np.timedelta64(3600, "s")
LEADS = ("10min", "30min")


def times_of(count, *, hours=6, start="2021-06-01T13:00"):
    return np.datetime64(start, "s") + np.arange(count) * hours * HOUR


def row_of(result, section, question):
    found = [r for r in result.rows if r.section == section and r.question == question]
    assert len(found) == 1, [r.question for r in result.rows]
    return found[0]


# parts of the days


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_parts_share_no_day_and_keep_their_distance(gap):
    rng = np.random.default_rng(gap)
    time = rng.permutation(times_of(400, hours=5))
    part, lacking = days.parts_of(time, gap=gap)
    assert lacking == ""
    found = [np.unique(convective_day(time[part == p])) for p in (days.FIT, days.CHOOSE, days.TEST)]
    for earlier, later in itertools.pairwise(found):
        assert (later.min() - earlier.max()) / np.timedelta64(1, "D") == gap + 1
    assert len(found[0]) > len(found[2]) >= days.LEAST_DAYS


@pytest.mark.parametrize("count", [1, 4, 40])
def test_too_few_days_are_words_and_no_part(count):
    part, lacking = days.parts_of(times_of(count), gap=1)
    assert lacking.startswith("too few days: of ")
    assert (part == -1).all()


# statistics and intervals


def test_estimate_is_the_mean_with_an_interval_of_days():
    rng = np.random.default_rng(0)
    time = np.repeat(times_of(40, hours=24), 25)
    level = np.repeat(rng.normal(0, 1, 40), 25)  # all that differs is between days
    values = 2 + level + 0.01 * rng.standard_normal(1000)
    cell = days.estimate(days.mean_of(values), time, seed=0)
    assert cell.value == pytest.approx(values.mean())
    assert (cell.cases, cell.days) == (1000, 40)
    # Of 40 days, not of 1000 cases: about two standard errors of a mean of 40.
    assert cell.high - cell.low == pytest.approx(2 * 1.96 * level.std() / np.sqrt(40), rel=0.15)
    assert cell == days.estimate(days.mean_of(values), time, seed=0)


def test_estimate_of_few_cases_or_days_says_so():
    few = days.estimate(days.mean_of(np.ones(20)), times_of(20, hours=24), seed=0, noun="queries")
    assert few.value is None
    assert few.words == "too few queries: 20, of at least 30"
    same_day = days.estimate(days.mean_of(np.ones(90)), np.repeat(times_of(3, hours=1), 30), seed=0)
    assert same_day.value is None
    assert same_day.words == "too few days: 90 cases of 1 convective day, of at least 5"
    steady = days.estimate(
        days.r_squared(np.ones(60), np.zeros(60)), times_of(60, hours=24), seed=0, noun="samples"
    )
    assert steady.words == "the samples do not vary"


def test_r_squared_and_area_under_curve_are_those_of_loops():
    rng = np.random.default_rng(1)
    truth, guess = rng.normal(size=(2, 50))
    weights = rng.integers(0, 3, (4, 50)).astype(float)
    found = days.r_squared(truth, guess)(weights)
    for w, f in zip(weights, found, strict=True):
        y, g = (np.repeat(v, w.astype(int)) for v in (truth, guess))
        assert f == pytest.approx(1 - ((y - g) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    yes, score = rng.random(50) < 0.3, np.round(guess, 1)  # with ties
    found = days.area_under_curve(yes, score)(weights)
    for w, f in zip(weights, found, strict=True):
        pairs = [
            (w[i] * w[j], (score[i] > score[j]) + 0.5 * (score[i] == score[j]))
            for i in np.flatnonzero(yes)
            for j in np.flatnonzero(~yes)
        ]
        assert f == pytest.approx(sum(n * s for n, s in pairs) / sum(n for n, _ in pairs))


# probes


def test_probes_recover_planted_linear_attributes():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((600, 12)) * np.geomspace(0.1, 100, 12) + 50
    part = np.repeat([days.FIT, days.CHOOSE, days.TEST], 200)
    y = x @ rng.standard_normal((12, 2)) / np.geomspace(0.1, 100, 12).mean() - 7
    test = part == days.TEST
    np.testing.assert_allclose(probes.ridge(x, y, part)[test], y[test], rtol=1e-3, atol=1e-2)
    yes = x[:, 3] / x[:, 3].std() + 0.02 * rng.standard_normal(600) > (x[:, 3] / x[:, 3].std()).mean()
    odds = probes.logistic(x, yes, part)
    auc = days.area_under_curve(yes[test], odds[test])(np.ones((1, 200)))
    assert auc[0] > 0.99


def test_probes_do_not_look_at_the_testing_days():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((90, 5)), rng.standard_normal((90, 1))
    part = np.repeat([days.FIT, days.CHOOSE, days.TEST], 30)
    other = np.where(part[:, None] == days.TEST, 1e6, y)
    np.testing.assert_array_equal(probes.ridge(x, y, part), probes.ridge(x, other, part))
    yes = y[:, 0] > 0
    altered = np.where(part == days.TEST, ~yes, yes)
    np.testing.assert_array_equal(probes.logistic(x, yes, part), probes.logistic(x, altered, part))


def test_ridge_of_noise_says_nothing():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((300, 250)), rng.standard_normal((300, 1))
    part = np.repeat([days.FIT, days.CHOOSE, days.TEST], 100)
    test = part == days.TEST
    r2 = days.r_squared(y[test], probes.ridge(x, y, part)[test])(np.ones((1, 100)))
    assert abs(r2[0]) < 0.1


def test_a_feature_that_never_varied_is_left_out():
    x = np.random.default_rng(0).standard_normal((90, 3))
    part = np.repeat([days.FIT, days.CHOOSE, days.TEST], 30)
    y = x[:, :1] * 2
    steady = np.where(part == days.TEST, 5.0, 1.0)
    guess = probes.ridge(np.column_stack([x, steady]), y, part)
    np.testing.assert_allclose(guess[part == days.TEST], y[part == days.TEST], atol=1e-3)


# retrieval and analogues


def gathered(count, rng, *, per_scene=6):
    """Samples on a row of places, frames half an hour apart."""
    at = np.arange(count)
    return Gathered(
        rows=at,
        time=np.datetime64("2021-06-01T18:00", "s") + (at // per_scene) * np.timedelta64(1800, "s"),
        latitude=np.full(count, 40.0),
        longitude=-100.0 + (at % per_scene),
        vectors={"x": rng.standard_normal((count, 5))},
    )


def test_ranks_among_distractors_are_those_of_brute_force():
    rng = np.random.default_rng(5)
    pool = gathered(600, rng)
    later = gathered(600, rng)
    x, y = pool.vectors["x"], later.vectors["x"].copy()
    y[7:400] = x[:393] + 0.5 * rng.standard_normal((393, 5))
    y[20] = y[19] = x[13]
    allowed = rng.random(600) < 0.9
    query, sequel = np.array([0, 5, 13, 100, 390]), np.array([7, 12, 20, 107, 397])
    among = [
        sequels.distractors_of(q, s, pool, later, allowed, 60.0) for q, s in zip(query, sequel, strict=True)
    ]
    found = sequels.ranks(query, sequel, among, x, y)

    def cosine(a, b):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def hours(a, b):
        apart = abs((a - b) / np.timedelta64(1, "h"))
        return apart

    for q, s, rank, some in zip(query, sequel, found, among, strict=True):
        expected, count = 1.0, 0
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
            expected += cosine(x[i], x[q]) > cosine(y[s], x[q])
        assert count == len(some) > 20
        assert rank == expected


def test_equal_scores_rank_in_the_middle():
    ones = np.ones((50, 3))
    rank = sequels.ranks(np.array([0]), np.array([1]), [np.arange(10, 40)], ones, ones)
    assert rank[0] == 16


def test_analogue_forecast_is_the_mean_of_the_nearest_sequels():
    rng = np.random.default_rng(6)
    x, after = rng.standard_normal((80, 4)), rng.standard_normal(80)
    case, known = np.array([70, 75]), np.arange(50)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = [after[known[np.argsort(-unit[known] @ unit[c])[:10]]].mean() for c in case]
    np.testing.assert_allclose(sequels.analogue_forecast(x, case, known, after), expected)
    assert np.isfinite(sequels.analogue_forecast(x, case, known[:3], after)).all()


# pixels


def test_attributes_are_those_of_the_pixels(tmp_path):
    channels = ("reflectivity_column_maximum", "echo_top_height", "reflectivity@3.0km", "reflectivity@8.0km")
    path = testing.make_store(
        tmp_path, scenes=1, shape=(96, 160), patch=32, format="gridrad-v4.2", seed=7, channels=channels
    )
    cube = store.open_packed(path)
    grid = np.indices((cube.sizes["row"], cube.sizes["col"])).reshape(2, -1)
    zeros = np.zeros(len(grid[0]), int)
    windows = pixels.Windows(zeros, grid[0] * 32, grid[1] * 32, (32, 32))
    found, made = pixels.look(cube, windows, ["reflectivity_column_maximum"])
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
        "moments": (len(zeros), 8), "histogram": (len(zeros), 33), "picture": (len(zeros), 1024)
    }  # fmt: skip
    lone = pixels.look(
        cube.drop_vars(["reflectivity_column_maximum", "echo_top_height"]), windows, ["reflectivity@3.0km"]
    )[0]
    levels = values["reflectivity"].values[0]
    for i, (row, col) in enumerate(grid.T):
        block = levels[:, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32]
        high = [a for a, level in zip((3.0, 8.0), block, strict=True) if (level >= 18.5).any()]
        if np.isfinite(lone["echo_top_height"][i]):
            assert lone["echo_top_height"][i] == max(high)
        elif np.isfinite(block).any(axis=0).mean() >= 0.5:
            assert not high


@pytest.mark.parametrize("block", [1, 7, 100])
def test_pixels_do_not_depend_on_the_block_nor_on_how_they_are_read(tmp_path_factory, store_folder, block):
    cube = store.open_packed(store_folder / "patches.zarr")
    crop, row, col = (v.ravel() for v in np.meshgrid(np.arange(4), np.arange(2), np.arange(3), indexing="ij"))
    windows = pixels.Windows(crop, row * PATCH, col * PATCH, (PATCH, PATCH))
    expected = pixels.look(cube, windows, [IR])
    found = pixels.look(cube, windows, [IR], block=block)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    # Windows off the lattice are read another way: their pixels are those of the decoded cube.
    shifted = pixels.Windows(crop, np.full(24, 16), np.full(24, 40), (PATCH, PATCH))
    off = pixels.look(cube, shifted, [IR], block=block)[0]["minimum_brightness_temperature"]
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
    assert cell.days >= days.LEAST_DAYS
    assert row.cells["moments"].value > 0.99  # they hold the minimum itself
    assert row.cells["PCA-64 of pixels"].value < 0.9
    assert row.baseline == "moments"
    residual = row_of(result, "probe", "minimum brightness temperature, residual")
    assert residual.cells["embedding"].value < cell.value


def test_the_hour_is_found_where_it_was_planted_and_only_there(store_folder, result):
    leaky = evaluation.evaluate(store_folder / "leaky.zarr", leads=LEADS)
    assert row_of(leaky, "leak", "solar hour").cells["embedding"].value > 0.99
    assert row_of(result, "leak", "solar hour").cells["embedding"].value < 0.3


def test_retrieval_has_words_where_there_are_no_pairs(result):
    row = row_of(result, "retrieval", "same place after 10min")
    assert {c.words for c in row.cells.values()} == {"no pairs 10min apart: frames are 30 min apart"}
    assert all(c.value is None for c in row.cells.values())
    known = row_of(result, "retrieval", "same place after 30min")
    assert known.cells["embedding"].value > 3 * known.cells["chance"].value
    more = known.cells["embedding"].more
    assert known.cells["embedding"].value <= more["among_ten"] <= 1
    assert more["median_distractors"] >= sequels.LEAST_DISTRACTORS


def test_forecasts_stand_beside_persistence(result):
    row = row_of(result, "forecast", "minimum brightness temperature after 30min")
    assert row.units == "K"
    assert row.better == "lower"
    assert {"embedding", "embedding, centred", "persistence", "mean", "PCA-64 of pixels"} <= set(row.cells)
    assert row.cells["persistence"].value < row.cells["mean"].value
    gain = row.cells[row.baseline].value - row.cells["embedding"].value
    assert row.gain.value == pytest.approx(gain)


def test_an_evaluation_is_the_same_again_and_whatever_the_block(store_folder, result):
    again = evaluation.evaluate(store_folder / "plain.zarr", leads=LEADS, block=5)
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
    assert samples._names(["a/one.zarr"]) == ["embedding"]
    assert samples._names(["a/one.zarr", "b/two.zarr/"]) == ["one", "two"]
    assert samples._names(["a/one.zarr", "b/one.zarr"]) == ["a/one.zarr", "b/one.zarr"]
    assert samples._names(["a/one.zarr", "a/moments.zarr"]) == ["a/one.zarr", "a/moments.zarr"]


def test_result_is_json_with_words_for_numbers_that_are_not_there(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    rows = [r for r in data["rows"] if r["question"] == "same place after 10min"]
    assert rows[0]["cells"]["embedding"]["value"] is None
    assert "no pairs" in rows[0]["cells"]["embedding"]["words"]
    text = str(result)
    for title in ("Retrieval", "Probes", "Leaks", "Analogue forecast", "Spread"):
        assert any(line.startswith(title) for line in text.splitlines())
    assert "nan" not in text


def test_one_day_gives_words_all_over(tmp_path):
    path = make_cube(tmp_path, days=1, scenes=4, hours=False)
    write_embeddings(tmp_path / "e.zarr", path, vectors_of(store.open_cube(path)))
    result = evaluation.evaluate(tmp_path / "e.zarr", leads=("30min",))
    spread = [r.section for r in result.rows for c in r.cells.values() if c.value is not None]
    assert set(spread) <= {"spread"}
    row = row_of(result, "probe", "minimum brightness temperature")
    assert row.cells["embedding"].words.startswith("too few days: of 1 convective day, 0 fit")
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
    assert "mean of patches" in row.cells
    m = samples.open_stores([str(tmp_path / "2k.zarr")])
    found = samples.gather(m, np.arange(3))
    np.testing.assert_allclose(found.vectors["mean of patches"], patches[:3].mean(axis=(1, 2)), rtol=1e-4)
    least = np.nanmin(cube[IR].values[:3], axis=(1, 2))
    np.testing.assert_allclose(found.attributes["minimum_brightness_temperature"], least, rtol=1e-6)


# what does not fit


def test_a_cube_that_has_moved_is_asked_for(store_folder, tmp_path):
    shutil.copytree(store_folder / "plain.zarr", tmp_path / "plain.zarr")
    with pytest.raises(
        SchemaError, match=r"no cube at .*patches\.zarr, which .* was made from; moved\? Pass --cube PATH"
    ):
        evaluation.evaluate(tmp_path / "plain.zarr")
    moved = samples.open_stores([str(tmp_path / "plain.zarr")], cube=store_folder / "patches.zarr")
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
    with pytest.raises(SchemaError, match="none called 'visible_reflectance'"):
        evaluation.evaluate(store_folder / "plain.zarr", channel="visible_reflectance")
    with pytest.raises(SchemaError, match="samples=0"):
        evaluation.evaluate(store_folder / "plain.zarr", samples=0)


def test_the_command_prints_the_table_or_json_and_draws(store_folder, tmp_path):
    arguments = ["evaluate", str(store_folder / "plain.zarr"), "--lead", "30min", "--samples", "200"]
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
        "under 5 days",
        "under 30 cases",
        "20 distractors",
        "ten most alike",
        "below 220 K",
        "18.5 dBZ",
    ):
        assert text in page.replace("\n", " ")
    assert (days.LEAST_DAYS, days.LEAST_CASES, sequels.LEAST_DISTRACTORS, sequels.ANALOGUES) == (
        5,
        30,
        20,
        10,
    )
    assert (pixels.COLD_CLOUD_K, pixels.ECHO_TOP_DBZ, pixels.CORE_DBZ) == (220.0, 18.5, 40.0)
    assert days.SHARES == (0.6, 0.2, 0.2)


# what an evaluation is made of


@pytest.fixture(scope="module")
def material(store_folder):
    stores = samples.open_stores([str(store_folder / "plain.zarr")])
    return prepare(stores, samples=8000, queries=400, leads=LEADS, gap=1, seed=0, block=None)


def test_sequels_are_the_same_cells_of_the_next_frame(material):
    crop, _, row, col = np.unravel_index(material.pool.rows, material.stores.mask.shape)
    lead = material.leads[1]
    found = {
        tuple(s): r for s, r in zip(np.stack([crop, row, col], 1).tolist(), material.pool.rows, strict=True)
    }
    for i, (c, r, k) in enumerate(zip(crop, row, col, strict=True)):
        expected = found[c + 1, r, k] if c % 2 == 0 else None  # frames come in pairs
        at = lead.sequel[i]
        assert (at < 0) == (expected is None)
        if expected is not None:
            assert material.later.rows[at] == expected
    assert (material.leads[0].sequel == -1).all()


def test_a_storm_s_sequel_is_the_strongest_of_the_cells_about_it(material):
    mask = material.stores.mask
    rows = material.pool.rows[[0, 4, 9]]
    around = material.sequels.around(np.append(rows, -1))
    assert around.shape == (4, 9)
    assert (around[3] == -1).all()
    for line, row in zip(around, rows, strict=False):
        crop, channel, r, k = np.unravel_index(row, mask.shape)
        expected = [
            np.ravel_multi_index((crop, channel, r + dy, k + dx), mask.shape)
            if 0 <= r + dy < 2 and 0 <= k + dx < 3 and mask[crop, channel, r + dy, k + dx]
            else -1
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        assert line.tolist() == expected
    (none, known) = questions.same_storm(material)
    assert none.cells["embedding"].words.startswith("no pairs 10min apart")
    cell = known.cells["embedding"]
    stormy = material.pool.attributes["cold_cloud_share"] > 0
    assert cell.value is not None or cell.words.startswith("too few")
    assert cell.cases <= (stormy & (material.leads[1].sequel >= 0)).sum()


def test_what_is_learned_without_labels_is_learned_on_the_fitting_days(material):
    fit = material.part == days.FIT
    assert 0 < fit.sum() < len(fit)
    centred = material.axes["embedding, centred"]
    np.testing.assert_allclose(centred.mean, material.pool.vectors["embedding"][fit].mean(axis=0), rtol=1e-5)
    expected = vectors.principal_axes(material.pool.vectors["picture"][fit], 64)
    np.testing.assert_array_equal(material.axes["PCA-64 of pixels"].axes, expected.axes)


def test_principal_axes_are_those_of_the_svd():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 9)) * np.geomspace(10, 0.1, 9) + 5
    found = vectors.principal_axes(values, 4)
    _, _, expected = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.axes.T @ expected[:4].T), np.eye(4), atol=1e-9)
    flat = np.repeat(values[:1], 30, axis=0)
    assert vectors.principal_axes(flat, 4).axes.shape == (9, 0)
    assert vectors.standard_axes(flat).axes.shape == (9, 0)


def test_feature_spread_is_one_if_even_and_nothing_if_alike():
    assert vectors.feature_spread(np.random.default_rng(0).standard_normal((4000, 32))) == pytest.approx(
        1, abs=0.02
    )
    assert vectors.feature_spread(np.ones((50, 8)) * np.arange(1, 51)[:, None]) == pytest.approx(0, abs=1e-7)


def test_residuals_leave_nothing_of_what_the_clock_and_the_latitude_say():
    rng = np.random.default_rng(7)
    time = times_of(600, hours=7)
    hour, latitude = rng.uniform(0, 24, 600), rng.uniform(25, 50, 600)
    part, _ = days.parts_of(time)
    y = 5 * np.sin(2 * np.pi * hour / 24) - 2 * np.cos(4 * np.pi * hour / 24) + 0.3 * latitude
    left = y - probes.ridge(probes.nuisance(hour, latitude, time), y[:, None], part)[:, 0]
    test = part == days.TEST
    assert left[test].std() < 0.02 * y[test].std()
