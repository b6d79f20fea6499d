"""What a recipe asks for beyond the default: placement, companions, constants, lattices, tries; and what it costs."""

from __future__ import annotations

import json
import shutil

import netCDF4
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from small_data import write_sources

from gridrad_cube import pipeline, store
from gridrad_cube.cli import cli
from gridrad_cube.schema import Flag, RadarSpec, Recipe, SchemaError, TileSpec

SHAPE = (96, 150)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three small LaRC files."""
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, scenes=3, shape=SHAPE, start="2021-07-05T17:00", interval="10min")
    return folder


def pixels_of(path, name):
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        return np.asarray(file[name][0])


def test_listed_windows_become_crops_in_their_order(sources, tmp_path):
    tile = TileSpec(crop=(32, 64), patch=32, placement="list", offsets=((60, 3), (0, 100)))
    pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=Recipe(tile=tile))
    packed = store.open_packed(tmp_path / "p.zarr")
    assert packed["y_origin"].values.tolist() == [60, 0] * 3
    assert packed["x_origin"].values.tolist() == [3, 100] * 3
    for crop in range(6):
        scene = pixels_of(sorted(sources.rglob("*.nc"))[crop // 2], "ir_brightness_temperature")
        y, x = tile.offsets[crop % 2]
        inside = scene[y : y + 32, x : x + 64]
        found = packed["ir_brightness_temperature"][crop].values
        np.testing.assert_array_equal(found[:, : inside.shape[1]], inside)
        assert (found[:, inside.shape[1] :] == 65535).all()


def test_several_random_crops_of_a_scene_are_distinct_and_begin_with_the_one(sources, tmp_path):
    origins = {}
    for count in (1, 4):
        tile = TileSpec(crop=(64, 64), patch=32, placement="random", seed=3, crops_per_scene=count)
        pipeline.preprocess(sources, tmp_path / f"{count}.zarr", recipe=Recipe(tile=tile))
        packed = store.open_packed(tmp_path / f"{count}.zarr")
        origins[count] = np.stack([packed["y_origin"].values, packed["x_origin"].values], axis=1).reshape(
            3, count, 2
        )
        assert packed.sizes["crop"] == 3 * count
    np.testing.assert_array_equal(origins[4][:, :1], origins[1])
    assert all(len(np.unique(of_scene, axis=0)) == 4 for of_scene in origins[4])


def test_crops_of_several_grids_and_shapes_lie_in_one_store(sources, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(sources, folder)
    write_sources(folder / "small", scenes=1, shape=(64, 70), start="2021-07-06T17:00")
    report = pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=Recipe(tile=TileSpec(patch=32)))
    assert report.count("written") == 4
    packed = store.open_packed(tmp_path / "p.zarr")
    assert len(set(packed["grid"].values)) == 2
    padding = (packed["ir_brightness_temperature_flags"].values & int(Flag.padding)) != 0
    assert padding.sum(axis=(1, 2)).tolist() == [0, 0, 0, 3 * 5 - 2 * 3]
    assert np.isnan(packed["latitude"].values[padding]).all()


def test_other_channels_keep_codes_units_and_absence_and_stay_out_of_training(sources, tmp_path):
    from gridrad_cube.datasets import PatchDataset

    channels = ("ir_brightness_temperature", "visible_reflectance", "ot_id_number")
    folder, recipe = tmp_path / "s", Recipe(tile=TileSpec(patch=32), channels=channels)
    shutil.copytree(sources, folder)
    paths = sorted(folder.rglob("*.nc"))
    with netCDF4.Dataset(paths[1], "a") as file:
        file.renameVariable("ot_id_number", "elsewhere")
    pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=recipe)
    packed = store.open_packed(tmp_path / "p.zarr")
    ids = packed["ot_id_number"]
    assert (ids.dtype, ids.attrs["_FillValue"], ids.attrs["units"], ids.attrs["role"]) == (
        np.uint16,
        0,
        "1",
        "companion",
    )
    for crop in (0, 2):
        np.testing.assert_array_equal(ids[crop, :96, :150].values, pixels_of(paths[crop], "ot_id_number"))
    flags = packed["ot_id_number_flags"].values
    assert ((flags[1] & int(Flag.channel_absent)) != 0).all()
    assert not (flags[[0, 2]] & int(Flag.channel_absent)).any()
    assert not (tmp_path / "p.zarr" / "ot_id_number" / "c.1.0.0").exists()
    data = PatchDataset(tmp_path / "p.zarr")
    assert "ot_id_number" not in data.labels
    assert store.verify(tmp_path / "p.zarr") == []


def test_looks_of_a_radar_are_a_channel_on_its_levels(tmp_path):
    write_sources(tmp_path / "s", scenes=1, shape=(64, 64), format="gridrad-v4.2")
    recipe = Recipe(
        channels=("reflectivity@3.0km", "reflectivity_column_maximum", "Nradobs"),
        tile=TileSpec(patch=32),
    )
    pipeline.preprocess(tmp_path / "s", tmp_path / "p.zarr", recipe=recipe)
    packed = store.open_packed(tmp_path / "p.zarr")
    with netCDF4.Dataset(next((tmp_path / "s").rglob("*.nc"))) as file:
        level = int(np.flatnonzero(np.isclose(file["Altitude"][:], 3.0))[0])
        looks = np.asarray(file["Nradobs"][level])
    assert packed["Nradobs"].dims == ("crop", "altitude", "y", "x")
    assert packed["Nradobs"].dtype == looks.dtype
    y, x = -int(packed["y_origin"][0]), -int(packed["x_origin"][0])
    np.testing.assert_array_equal(packed["Nradobs"][0, 0, y : y + 64, x : x + 64].values, looks)


def test_channel_that_no_file_has_is_refused(sources, tmp_path):
    channels = ("ir_brightness_temperature", "tropopause")
    with pytest.raises(SchemaError, match=r"channels: no file has \['tropopause'\]; expected some of .*info"):
        pipeline.preprocess(
            sources, tmp_path / "p.zarr", recipe=Recipe(channels=channels, tile=TileSpec(patch=32))
        )
    assert not (tmp_path / "p.zarr" / "_build" / "lease.json").exists()


def test_constants_of_quality_control_are_the_users_and_are_kept(tmp_path):
    write_sources(tmp_path / "s", scenes=1, shape=(128, 128), format="gridrad-v4.2", seed=2)
    removed = {}
    for name, constants in (
        ("usual", ()),
        ("strict", (("v4_weak_dbz", 75.0), ("v4_light_weight", 99.0))),
    ):
        recipe = Recipe(
            channels=("reflectivity",), tile=TileSpec(patch=32), radar=RadarSpec(qc_constants=constants)
        )
        pipeline.preprocess(tmp_path / "s", tmp_path / f"{name}.zarr", recipe=recipe)
        codes = store.open_packed(tmp_path / f"{name}.zarr")["reflectivity"].values
        removed[name] = int(np.isin(codes, (2, 3)).sum())
        kept = store.store_info(tmp_path / f"{name}.zarr")["radar_quality"]
        assert kept["v4_weak_dbz"] == dict(constants).get("v4_weak_dbz", 15.0)
    assert removed["strict"] > removed["usual"]
    for constants, message in (
        ((("speckle", 1.0),), "RadarQualitySpec: unknown"),
        ((("speckle_window", 2.5),), "speckle_window is int, got 2.5"),
    ):
        with pytest.raises(SchemaError, match=message):
            pipeline.preprocess(
                tmp_path / "s", tmp_path / "x.zarr", recipe=Recipe(radar=RadarSpec(qc_constants=constants))
            )


def test_mixed_lattices_are_taken_when_asked(tmp_path):
    for version, start in (("v3.1", "2011-04-27T12:00"), ("v4.2", "2011-04-27T13:00")):
        write_sources(
            tmp_path / "s" / version, scenes=1, shape=(64, 64), format=f"gridrad-{version}", start=start
        )
    recipe = Recipe(tile=TileSpec(patch=32), mixed_lattices=True)
    assert pipeline.preprocess(tmp_path / "s", tmp_path / "p.zarr", recipe=recipe).count("written") == 2
    assert len(set(store.open_packed(tmp_path / "p.zarr")["grid"].values)) == 2


@pytest.mark.parametrize(("fault", "tries"), [(5, 3), (2, 1)], ids=["input/output error", "no such file"])
def test_faults_of_the_disk_are_tried_again_and_lost_files_not(sources, tmp_path, monkeypatch, fault, tries):
    real, calls = pipeline.write_source, []
    victim = sorted(sources.rglob("*.nc"))[1].resolve()

    def fails(*task):
        if task[-1] == str(victim):
            calls.append(task)
            if len(calls) < 3:
                raise OSError(fault, "fault")
        return real(*task)

    monkeypatch.setattr(pipeline.run, "write_source", fails)
    monkeypatch.setattr(pipeline.work.time, "sleep", lambda _: None)
    report = pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=Recipe(tile=TileSpec(patch=32)))
    assert len(calls) == tries
    assert report.count("failed") == (0 if tries == 3 else 1)


def test_blocks_without_a_change_are_not_finished_again(tmp_path, monkeypatch):
    folder, path = tmp_path / "s", tmp_path / "p.zarr"
    write_sources(folder, scenes=5, shape=(32, 32), interval="10min")
    names = sorted(folder.rglob("*.nc"))
    recipe = Recipe(tile=TileSpec(patch=16))
    monkeypatch.setattr(
        store, "block_length", lambda *_: 2
    )  # so that the first block of three rows is full and stays
    pipeline.preprocess(names[:3], path, recipe=recipe)
    flags, mean = "ir_brightness_temperature_flags", path / "ir_brightness_temperature_mean"
    before = {p.name: p.stat().st_mtime_ns for p in mean.glob("c.*")}
    pipeline.preprocess(names, path, recipe=recipe)
    after = {p.name: p.stat().st_mtime_ns for p in mean.glob("c.*")}
    assert sorted(after) == ["c.0.0.0", "c.1.0.0", "c.2.0.0"]
    assert after["c.0.0.0"] == before["c.0.0.0"]
    assert after["c.1.0.0"] > before["c.1.0.0"]
    pipeline.preprocess(names, tmp_path / "whole.zarr", recipe=recipe)
    one, two = (store.store_info(p) for p in (path, tmp_path / "whole.zarr"))
    assert one["flag_counts"] == two["flag_counts"]
    for label, statistics in one["training_statistics"].items():
        for key, value in statistics.items():
            assert value == pytest.approx(two["training_statistics"][label][key], rel=1e-12), (label, key)
    counted = xr.open_zarr(path, chunks=None, mask_and_scale=False)[flags].values
    for flag in Flag:
        assert one["flag_counts"]["ir_brightness_temperature"][flag.name] == int(
            ((counted & int(flag)) != 0).sum()
        )


def test_preset_of_the_predecessor_gives_way_to_what_is_said(sources, tmp_path):
    def recipe_of(name, *options):
        path = tmp_path / name
        arguments = [
            "preprocess",
            str(sources),
            "--store",
            str(path),
            "--patch",
            "32",
            "--preset",
            "predecessor",
            *options,
        ]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return Recipe.from_dict(json.loads(json.dumps(store.store_info(path)["recipe"])))

    said = recipe_of("said.zarr", "--crop", "64", "--max-deviation-factor", "7")
    assert (said.tile.crop, said.tile.placement, said.quality.rule) == ((64, 64), "random", "predecessor")
    assert (said.quality.max_deviation_factor, said.quality.global_mean_deviation_factor) == (7.0, 3.0)


def test_a_store_is_extended_by_its_own_recipe(sources, tmp_path):
    """No option says how to build: the store's recipe counts, also where the command line has no option for it."""
    path, names = tmp_path / "p.zarr", sorted(sources.rglob("*.nc"))
    tile = TileSpec(patch=32, crop=(64, 64), placement="random", crops_per_scene=2)
    pipeline.preprocess(names[:2], path, recipe=Recipe(tile=tile))
    extend = ["preprocess", *map(str, names), "--store", str(path), "--retries", "0"]
    result = CliRunner().invoke(cli, extend)
    assert result.exit_code == 0, result.output
    assert "1 written, 2 kept" in result.output
    assert store.Build(path).recipe.tile == tile
    result = CliRunner().invoke(cli, [*extend, "--patch", "16"])
    assert result.exit_code == 1
    assert "built with another recipe" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "list"}, r"offsets: got \[\]"),
        ({"placement": "tiles", "offsets": ((0, 0),)}, "with placement='list'"),
        ({"placement": "tiles", "crops_per_scene": 3}, "1 unless placement='random'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_placement_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(SchemaError, match=message):
        TileSpec(crop=(32, 32), patch=32, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qc-constant", "speckle_fraction"], "expected NAME=VALUE"),
        (["--qc", "none", "--qc-constant", "speckle_fraction=0.1"], "with --qc none"),
        (["--scheduler", "tcp://127.0.0.1:1"], "127.0.0.1:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.timeout(60)
def test_what_does_not_fit_is_told_in_one_line(sources, tmp_path, monkeypatch, options, message):
    arguments = ["preprocess", str(sources), "--store", str(tmp_path / "p"), "--patch", "32", *options]
    monkeypatch.setattr("gridrad_cube.pipeline.execution._CONNECT_SECONDS", 1.0)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
