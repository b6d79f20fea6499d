"""The whole road by its commands: files, cube, training, embeddings, second level, answers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from small_data import write_sources

import gridrad_cube
from gridrad_cube import pipeline, store
from gridrad_cube.cli import cli
from gridrad_cube.schema import Flag

SMALL = [
    "--preset", "demo", "--steps", "2", "--batch-size-per-gpu", "16", "--log-steps", "1", "--device", "cpu",
]  # fmt: skip
SMALL_2K = [
    "--preset", "demo", "--steps", "2", "--out-dim", "64", "--head-hidden-dim", "32",
    "--device", "cpu",
]  # fmt: skip


def command(*arguments, status=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def ask(folder, *arguments):
    """Records that a query writes."""
    command("query", *arguments, "-o", folder / "answer.json")
    return json.loads((folder / "answer.json").read_text())


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """What the README's commands leave, on eight small scenes of 4 x 5 patches, the last column half empty."""
    folder = tmp_path_factory.mktemp("road")
    command("synthesize", folder / "data", "--scenes", 8, "--shape", 256, 280, "--start", "2021-07-05T15:00")
    command("preprocess", folder / "data", "--store", folder / "patches.zarr", "--patch", 64)
    command("train", "--store", folder / "patches.zarr", "--out", folder / "runs" / "256", *SMALL)
    command("embed", "--store", folder / "patches.zarr", "--checkpoint", folder / "runs/256/checkpoint.pth",
            "--out", folder / "embeddings.zarr")  # fmt: skip
    command("train", "--store", folder / "embeddings.zarr", "--out", folder / "runs" / "2k", *SMALL_2K)
    command("embed", "--store", folder / "embeddings.zarr", "--checkpoint", folder / "runs/2k/checkpoint.pth",
            "--out", folder / "embeddings_2k.zarr")  # fmt: skip
    return folder


def test_training_prints_its_checkpoint_and_keeps_what_embedding_needs(road):
    import torch

    checkpoint = torch.load(road / "runs/256/checkpoint.pth", weights_only=True)
    assert checkpoint["level"] == "256"
    assert set(checkpoint["normalization"]) == {"ir_brightness_temperature", "visible_reflectance"}
    assert checkpoint["store"]
    assert (road / "runs/256/metrics.jsonl").read_text().count("\n") == 2


def test_embeddings_lie_on_the_cube_s_coordinates(road):
    cube = gridrad_cube.open_cube(road / "patches.zarr")
    embeddings = gridrad_cube.open_embeddings(road / "embeddings.zarr")
    assert embeddings["embedding"].dims == ("crop", "channel", "row", "col", "feature")
    for name in ("time", "latitude", "longitude", "source", "y_origin", "x_origin"):
        np.testing.assert_array_equal(embeddings[name].values, cube[name].values)
    np.testing.assert_array_equal(
        embeddings["flags"].sel(channel="ir_brightness_temperature").values,
        cube["ir_brightness_temperature_flags"].values,
    )
    vectors = embeddings["embedding"].values.astype(np.float32)
    empty = (embeddings["flags"].values & int(Flag.all_missing | Flag.channel_absent | Flag.padding)) != 0
    assert (np.isfinite(vectors).all(axis=-1) == ~empty).all()
    second = gridrad_cube.open_embeddings(road / "embeddings_2k.zarr")
    assert second["embedding"].dims == ("crop", "channel", "feature")
    assert second.sizes["crop"] == 8
    assert np.isfinite(second["embedding"].values.astype(np.float32)).any()


def test_stores_open_with_nothing_but_xarray(road):
    code = (
        "import sys, xarray as xr\n"
        "for name in sys.argv[1:]:\n"
        "    ds = xr.open_zarr(name, chunks=None)\n"
        "    print(sorted(ds.sizes.items()), ds.attrs['Conventions'])\n"
        "assert not [m for m in sys.modules if m == 'torch']"
    )
    names = [road / "patches.zarr", road / "embeddings.zarr", road / "embeddings_2k.zarr"]
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.count("CF-1") == 3


def test_query_answers_with_place_time_score_and_the_way_back(road):
    cube = store.open_packed(road / "patches.zarr")
    time = np.datetime_as_string(cube["time"].values[2].astype("datetime64[s]"))
    latitude, longitude = float(cube["latitude"][2, 1, 2]), float(cube["longitude"][2, 1, 2])
    place = ("--time", time, "--latitude", latitude, "--longitude", longitude)
    infrared = ("--channel", "ir_brightness_temperature", "--no-exclude")
    records = ask(road, road / "embeddings.zarr", *place, *infrared, "-k", 4)
    assert [r["rank"] for r in records] == [1, 2, 3, 4]
    scores = [r["score"] for r in records]
    assert scores == sorted(scores, reverse=True)
    for record in records:
        crop, row, col = record["crop"], record["row"], record["col"]
        assert record["latitude"] == pytest.approx(float(cube["latitude"][crop, row, col]))
        assert (road / "data" / record["source"]).is_file()
        assert (record["y_start"], record["x_start"]) == (64 * row, 64 * col)
    table = command("query", road / "embeddings.zarr", *place, *infrared)
    assert "score" in table.splitlines()[0]
    same = ask(
        road, road / "embeddings.zarr", "--like", "2,1,2,ir_brightness_temperature", "-k", 4, "--no-exclude"
    )
    assert [r["crop"] for r in same] == [r["crop"] for r in records]


def test_query_of_the_second_level(road):
    records = ask(
        road, road / "embeddings_2k.zarr", "--like", "3,ir_brightness_temperature", "-k", 3, "--no-exclude"
    )
    assert 3 not in [r["crop"] for r in records]
    assert len(records) == 3


def test_accessor_of_the_readme(road):
    embeddings = gridrad_cube.open_embeddings(road / "embeddings.zarr").sel(
        channel=["ir_brightness_temperature"]
    )
    here = embeddings.gridrad.at(
        time=embeddings["time"].values[1], latitude=float(embeddings["latitude"][1, 2, 2]),
        longitude=float(embeddings["longitude"][1, 2, 2]),
    )  # fmt: skip
    answer = embeddings.gridrad.search(here["embedding"].values.ravel(), k=3)
    assert answer["score"].values[0] == pytest.approx(1.0, abs=1e-3)
    box = embeddings.gridrad.within(bbox=(-100.0, 36.0, -95.0, 40.0))
    assert ((box["latitude"] >= 36) & (box["latitude"] <= 40)).all()
    patch = gridrad_cube.open_cube(road / "patches.zarr").gridrad.patch(0, 1, 2)
    assert patch.sizes["y"] == 64


def test_info_and_verify_tell_what_there_is(road):
    text = command("info", road / "patches.zarr")
    assert "8 written" in text
    assert "ir_brightness_temperature" in text
    facts = json.loads(command("info", road / "embeddings.zarr", "--json"))
    assert facts["kind"] == "embeddings of level 256"
    assert "larc_goes" in command("info", next((road / "data").rglob("*.nc")))
    assert "all shards as written" in command("verify", road / "patches.zarr")
    assert "continues" not in command(
        "preprocess", road / "data", "--store", road / "patches.zarr", "--patch", 64
    )


def test_bad_input_gives_one_line_and_a_status(road, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.nc").write_text("hello")
    cube, checkpoint = road / "patches.zarr", road / "runs/256/checkpoint.pth"
    before = (cube / "zarr.json").read_bytes()
    cases = {
        ("preprocess", tmp_path / "none", "--store", tmp_path / "s"): "no such file or folder",
        ("preprocess", tmp_path / "empty", "--store", tmp_path / "s"): "no netCDF or GRIB2 file",
        ("preprocess", tmp_path / "text.nc", "--store", tmp_path / "s"): "not a netCDF file",
        ("preprocess", road / "data", "--store", tmp_path / "s", "-c", "temperature"): "temperature",
        ("preprocess", road / "data", "--store", tmp_path / "t", "--patch", 512): "smaller than one patch",
        ("preprocess", road / "data", "--store", cube, "--patch", 32): "built with another recipe",
        ("info", tmp_path / "none"): "no such store",
        ("info", tmp_path / "empty"): "not a Zarr v3 store",
        ("verify", tmp_path / "empty"): "no build log",
        ("embed", "--store", cube, "--checkpoint", tmp_path / "x.pth", "--out", tmp_path / "e"): "x.pth",
        (
            "embed",
            "--store",
            cube,
            "--checkpoint",
            tmp_path / "text.nc",
            "--out",
            tmp_path / "e",
        ): "checkpoint",
        (
            "embed",
            "--store",
            cube,
            "--checkpoint",
            road / "runs/2k/checkpoint.pth",
            "--out",
            tmp_path / "e",
        ): "2k",
        (
            "embed",
            "--store",
            road / "embeddings.zarr",
            "--checkpoint",
            checkpoint,
            "--out",
            tmp_path / "e",
        ): "256",
        ("query", cube, "--like", "0,0,0"): "embedding store",
        ("query", road / "embeddings.zarr", "--like", "99,0,0,ir_brightness_temperature"): "99",
    }
    for arguments, words in cases.items():
        output = command(*arguments, status=1)
        errors = [line for line in output.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, output
        assert words in output, output
        assert "Traceback" not in output
    assert (cube / "zarr.json").read_bytes() == before
    assert not (tmp_path / "e" / "zarr.json").exists()


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError])
def test_expected_error_is_one_line_unless_debug_asks_for_more(monkeypatch, kind):
    monkeypatch.setattr("gridrad_cube.info.inspect_target", lambda _: (_ for _ in ()).throw(kind("why")))
    result = CliRunner().invoke(cli, ["info", "x"])
    assert (result.exit_code, result.output) == (1, "Error: why\n")
    assert type(CliRunner().invoke(cli, ["--debug", "info", "x"]).exception) is kind


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, AssertionError])
def test_programming_error_shows_its_traceback(monkeypatch, kind):
    monkeypatch.setattr("gridrad_cube.info.inspect_target", lambda _: (_ for _ in ()).throw(kind("why")))
    assert type(CliRunner().invoke(cli, ["info", "x"]).exception) is kind


def test_usage_errors_say_what_to_give(road):
    assert "either --like CROP,ROW,COL or all of" in command("query", road / "embeddings.zarr", status=2)
    assert "needs the size of a crop" in command(
        "preprocess", road / "data", "--store", "x", "--placement", "random", status=2
    )
    assert "--repair needs --source-root" in command("verify", road / "patches.zarr", "--repair", status=2)


def test_real_rain_rates_go_the_whole_road(real_data, tmp_path):
    files = sorted(real_data.glob("mrms_precipitation_rate_*.nc"))[:2]
    assert len(files) == 2
    command("preprocess", *files, "--store", tmp_path / "rain.zarr")
    command("train", "--store", tmp_path / "rain.zarr", "--out", tmp_path / "run", *SMALL)
    command("embed", "--store", tmp_path / "rain.zarr", "--checkpoint", tmp_path / "run/checkpoint.pth",
            "--out", tmp_path / "embeddings.zarr")  # fmt: skip
    flags = store.open_packed(tmp_path / "rain.zarr")["precipitation_rate_flags"][0].values
    row, col = np.argwhere(flags == 0)[0]
    records = ask(tmp_path, tmp_path / "embeddings.zarr", "--like", f"0,{row},{col}", "-k", 3, "--no-exclude")
    assert len(records) == 3
    assert {r["source"] for r in records} <= {f.name for f in files}


def test_rejected_patches_never_reach_training(road):
    from gridrad_cube.datasets import PatchDataset
    from gridrad_cube.schema import default_reject

    dataset = PatchDataset(road / "patches.zarr")
    cube = store.open_packed(road / "patches.zarr")
    clean = 0
    for name, kind in (("ir_brightness_temperature", "infrared"), ("visible_reflectance", "visible")):
        clean += int(((cube[f"{name}_flags"].values & int(default_reject(kind))) == 0).sum())
    assert 0 < len(dataset) == clean < cube.sizes["crop"] * 2 * 20


def test_interrupted_cube_is_finished_by_the_same_command(tmp_path, monkeypatch):
    write_sources(tmp_path / "data", scenes=2, shape=(64, 64))
    real = pipeline.write_source
    monkeypatch.setattr(pipeline.run, "write_source", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ("preprocess", tmp_path / "data", "--store", tmp_path / "p.zarr", "--patch", 64)
    command(*arguments, status=130)
    assert "not finished" in command("info", tmp_path / "p.zarr", status=1)
    monkeypatch.setattr(pipeline.run, "write_source", real)
    assert "2 written" in command(*arguments)
    assert xr.open_zarr(tmp_path / "p.zarr", chunks=None).sizes["crop"] == 2


def test_parts_of_plain_stores_know_their_place(road):
    plain = xr.open_zarr(road / "embeddings.zarr", chunks=None)
    part = plain.isel(row=slice(1, 4), channel=[0])
    place = {"time": plain["time"].values[2], "latitude": float(plain["latitude"][2, 2, 1]),
             "longitude": float(plain["longitude"][2, 2, 1])}  # fmt: skip
    here = part.gridrad.at(**place)
    assert (int(here["row"]), int(here["y_start"])) == (2, 128)
    cube = gridrad_cube.open_cube(road / "patches.zarr")
    with pytest.raises(gridrad_cube.SchemaError, match="cut along row or y"):
        cube.isel(row=slice(1, 4)).gridrad.patch(2, 2, 1)
    with pytest.raises(gridrad_cube.SchemaError, match="cut along row or y"):
        cube.isel(y=slice(64, 256)).gridrad.patch(2, 2, 1)
