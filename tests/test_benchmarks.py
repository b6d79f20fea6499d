"""Every benchmark runs, at a tiny size: what it measures is not looked at here, only that it measures."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gridrad_cube.evaluation import CHOOSE, FIT, TEST
from gridrad_cube.training import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LIMIT_S = 280  # below that of pytest, so that a program that hangs says what it was at


def run(name, *arguments, out):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, arguments), "--out", str(out)]
    done = subprocess.run(
        [*command, "--folder", str(out.parent)], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    text = out.read_text()
    assert text.splitlines()[-1] in done.stdout
    assert f"Command: `python benchmarks/{name}.py {' '.join(map(str, arguments))}`" in text
    return text


def cells(text, start):
    """Cells of the first row of a table that starts so."""
    (line, *_) = (x for x in text.splitlines() if x.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_preprocess_compares_both_ways(tmp_path):
    tiny = ("--scenes", 2, "--workers", 1, "--shape", 150, 200, "--crop", 128, "--patch", 64)
    text = run("preprocess", *tiny, out=tmp_path / "report.md")
    assert cells(text, "loose .npz")[4] == str(2 * (1 + 2 * (1 + 4)))
    for side in ("loose .npz", "gridrad-cube, whole", "gridrad-cube, the same"):
        assert all(float(cell) > 0 for cell in cells(text, side)[:3])
    assert "times the floor" in text


def test_preprocess_measures_volumes(tmp_path):
    tiny = ("--format", "gridrad-v4.2", "--scenes", 1, "--workers", 1, "--shape", 100, 120, "--patch", 64)
    text = run("preprocess", *tiny, out=tmp_path / "report.md")
    assert float(cells(text, "gridrad-cube, all levels")[5]) > 50


def test_killed_builds_end_as_undisturbed_ones(tmp_path):
    text = run("kill", "--kills", 2, "--scenes", 4, "--workers", 1, out=tmp_path / "report.md")
    assert sum(map(int, cells(text, "all"))) == 2
    assert "wrong reads: 0." in text


def test_a_short_campaign_of_faults_loses_nothing(tmp_path):
    classes = ("damage", "files", "checkpoints", "stores", "secrets", "machine")
    text = run("faults", "--short", "--seed", 1, "--only", *classes, out=tmp_path / "report.md")
    assert text.endswith("Lost or wrong: 0.\n")
    assert int(cells(text, "damage: cube")[2]) == 8
    assert int(cells(text, "state machine")[2]) > 5


def test_scale_measures_every_step(tmp_path):
    text = run("scale", "--crops", 300, out=tmp_path / "report.md")
    assert float(cells(text, "open, select")[0]) > 0


def test_loader_compares_every_way(tmp_path):
    tiny = (
        "--scenes",
        2,
        "--shape",
        128,
        192,
        "--patch",
        32,
        "--batch",
        8,
        "--repeats",
        1,
        "--seconds",
        0.02,
    )
    text = run("loader", *tiny, out=tmp_path / "report.md")
    for codec in ("fast", "small"):
        assert all(float(cell) > 0 for cell in cells(text, f"{codec}: PatchLoader "))


def test_query_compares_with_others(tmp_path):
    text = run("query", "--samples", 4096, "--repeats", 1, out=tmp_path / "report.md")
    for side in (
        "`.gridrad.search`, resident",
        "`similarity.nearest`",
        "numpy",
        "`.gridrad.search`, from Zarr",
    ):
        one, many, agree = cells(text, side)
        assert float(one.split()[0]) + float(many.split()[0]) > 0
        assert float(agree) > 0.999
    assert "The nearest patch to 1,000 places and times" in text


def test_embed_compares_with_the_bare_network(tmp_path):
    tiny = ("--arch", "vit_tiny", "--scenes", 1, "--shape", 256, 512, "--repeats", 1)
    text = run("embed", *tiny, out=tmp_path / "report.md")
    assert float(cells(text, "1 ")[2]) > 0
    assert "Median share of the bare forward pass" in text


def test_train_compares_every_way(tmp_path):
    tiny = ("--arch", "vit_demo", "--batch", 2, "--steps", 1, "--repeats", 1, "--scenes", 2, "--shape", 128, 192,
            "--patch", 64, "--global-size", 48, "--local-size", 32, "--local-views", 2, "--out-dim", 64,
            "--workers", 1)  # fmt: skip
    text = run("train", *tiny, out=tmp_path / "report.md")
    for way in ("ready", "store", "predecessor"):
        assert float(cells(text, way)[1]) > 0
    assert float(cells(text, "2 ")[2]) > 0
    assert "The store against the predecessor's way" in text


def test_learn_compares_networks_and_pixels(tmp_path):
    text = run("learn", "--quick", out=tmp_path / "report.md")
    assert "Retrieval by chance: 0.062" in text
    retrieval, *_, size, area = (float(cell.split()[0]) for cell in cells(text, "histogram ")[:5])
    assert 0.0625 < retrieval <= 1
    assert size > 0.3  # a histogram knows how much rain there is
    assert area > 0.8
    assert "+0." in cells(text, "descriptor + small")[0] or "-0." in cells(text, "descriptor + small")[0]


def test_clouds_measures_without_data(tmp_path, monkeypatch):
    monkeypatch.delenv("GRIDRAD_CUBE_REAL_DATA", raising=False)
    text = run("clouds", "--quick", out=tmp_path / "report.md")
    scores = json.loads((tmp_path / "report.json").read_text())["Infrared"]
    assert set(scores) == {"choose", "test"}
    for part in scores.values():
        histogram, readout = part["histogram"], part["descriptor, readout"]
        assert 1 / 9 < readout["1 h: all"]["value"] <= 1
        assert histogram["mean rain"]["value"] > 0.5  # the rain is made of the temperature
    asked, agreed = re.search(r"answers (\d+) of (\d+) queries", text).groups()
    assert asked == agreed


def windows_of(weather, times, blocks, shape=(2, 2)):
    """Windows of one grid at some times, all observed."""
    kind = weather.CLOUDS if blocks[0][:4].isdigit() else weather.RADAR
    frames = (len(times), *shape)
    return weather.Windows(
        kind, (Path("near"),), np.array(times, "M8[s]"), np.full(len(times), "grid"), np.array(blocks),
        np.full(len(times), weather.FAR), np.ones((len(times), 2, *shape), bool), np.ones(frames), np.ones(frames),
        np.ones((*frames, 3)),
    )  # fmt: skip


def test_clouds_divides_days_by_name_or_in_order(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import weather

    days = [f"2020-06-0{day}" for day in (1, 2, 3, 4, 5)]
    windows = windows_of(weather, [f"{day}T{hour:02}" for day in days for hour in (0, 6)], np.repeat(days, 2))
    parts = dict(zip(days, weather.divide(windows, [], []).part[::2].tolist(), strict=True))
    assert [parts[day] for day in days] == [FIT, FIT, CHOOSE, TEST, TEST]
    named = weather.divide(windows, [days[4], "knmi"], [days[1]])
    assert named.part[::2].tolist() == [FIT, TEST, FIT, FIT, CHOOSE]
    with pytest.raises(SystemExit, match=r"has no \['2021-01-01'\]; expected some of"):
        weather.divide(windows, [], [days[1], "2021-01-01"])
    chosen = weather.divide(windows, [days[4]], []).part[::2].tolist()
    assert chosen == [FIT, FIT, TEST, TEST, CHOOSE]
    with pytest.raises(SystemExit, match="to choose and to test; expected each in one part"):
        weather.divide(windows, days[1:2], days[1:2])
    ranges = weather.fit_ranges(named)
    assert ranges == [
        (f"{days[0]}T00:00:00", f"{days[0]}T06:00:01"),
        (f"{days[2]}T00:00:00", f"{days[3]}T06:00:01"),
    ]
    assert windows.later(360)[:3].tolist() == [1, -1, 3]
    same_time = weather.divide(windows_of(weather, days[:1] * 3, ["a", "b", "c"]), [], [])
    with pytest.raises(SystemExit, match="a frame that fits and one that does not have the time 2020-06-01"):
        weather.fit_ranges(same_time)


def test_clouds_joins_another_folder_of_fewer_windows(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import weather

    near, far = (windows_of(weather, ["2020-06-01"], ["a"], shape) for shape in ((2, 2), (1, 3)))
    both = near.join(far)
    assert both.shape == (2, 3)
    assert both.observed[:, 0].tolist() == [[[True, True, False]] * 2, [[True] * 3, [False] * 3]]
    stores = iter([np.ones((1, 2, 2, 2, 5), np.float32), np.ones((1, 2, 1, 3, 5), np.float32)])
    vectors = both.gather(lambda folder: next(stores))
    assert np.isfinite(vectors).all(axis=-1).sum() == 2 * (4 + 3)


@pytest.mark.parametrize("name", ["clouds", "learn"])
def test_every_trial_is_a_configuration(monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    program = importlib.import_module(name)
    for trial in getattr(program, "TRIALS" if name == "clouds" else "RUNS").values():
        asked = dict(trial.options)
        config = load_config(store="patches.zarr", out="runs", level="256", preset=trial.preset, **asked)
        for option, value in asked.items():
            np.testing.assert_array_equal(getattr(config, option), value, err_msg=trial.words)


def test_an_interrupted_training_ends_the_benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import trials

    monkeypatch.setattr(trials, "train", lambda config: {"stopped": "SIGTERM", "step": config.steps - 1})
    with pytest.raises(SystemExit, match="stopped at step 6; the same command resumes it"):
        trials.train_whole(tmp_path / "patches.zarr", tmp_path / "run", level="256", steps=7)
