"""From files to a finished cube: exactness, resume, extension, faults, the report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from small_data import make_store, write_sources
from synthetic_files import spoil

import gridrad_cube
from gridrad_cube import pipeline, readers, store
from gridrad_cube.cli import cli
from gridrad_cube.schema import Flag, QualitySpec, RadarSpec, Recipe, SchemaError, TileSpec
from gridrad_cube.storage import Files

RECIPE = Recipe(tile=TileSpec(patch=32))
SHAPE = (96, 150)  # the last column of patches is partly padding


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Five small LaRC files, one without the visible channel."""
    folder = tmp_path_factory.mktemp("sources")
    paths = write_sources(folder, scenes=5, shape=SHAPE, start="2021-07-05T17:00", interval="10min")
    with netCDF4.Dataset(paths[3], "a") as file:
        file.renameVariable("visible_reflectance", "something_else")
    return folder


@pytest.fixture(scope="module")
def cube(sources, tmp_path_factory):
    path = tmp_path_factory.mktemp("cube") / "patches.zarr"
    report = pipeline.preprocess(sources, path, recipe=RECIPE)
    assert report.count("written") == 5
    return path


def packed_of(path, name):
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        return np.asarray(file[name][0])


def assert_same_store(a, b, *, thresholds=True):
    """Arrays and attributes equal, history apart (and the thresholds that froze with fewer crops)."""
    one, two = (xr.open_zarr(p, chunks=None, mask_and_scale=False, decode_times=False) for p in (a, b))
    for dataset in (one, two):
        dataset.attrs.pop("history")
        if not thresholds:
            for name in ("thresholds", "thresholds_of", "checksum"):
                dataset.attrs["gridrad_cube"].pop(name)
    assert json.dumps(one.attrs, sort_keys=True) == json.dumps(two.attrs, sort_keys=True)
    assert set(one.variables) == set(two.variables)
    for name in one.variables:
        assert one[name].attrs == two[name].attrs
        np.testing.assert_array_equal(one[name].values, two[name].values, err_msg=name)


def test_cube_keeps_every_source_code_bit_for_bit(sources, cube):
    packed = store.open_packed(cube)
    for crop, path in enumerate(sorted(sources.rglob("*.nc"))):
        for name in ("ir_brightness_temperature", "visible_reflectance"):
            pixels = packed[name][crop].values
            if name == "visible_reflectance" and crop == 3:
                assert (pixels == 65535).all()
                continue
            np.testing.assert_array_equal(pixels[: SHAPE[0], : SHAPE[1]], packed_of(path, name))
            assert (pixels[:, SHAPE[1] :] == 65535).all()


def test_cube_keeps_the_scale_and_names_the_way_back(sources, cube):
    packed = store.open_packed(cube)
    assert packed["ir_brightness_temperature"].attrs["scale_factor"] == pytest.approx(0.01)
    assert packed["ir_brightness_temperature"].attrs["valid_range"] == [15000, 35000]
    names = [p.relative_to(sources).as_posix() for p in sorted(sources.rglob("*.nc"))]
    assert packed["source"].values.tolist() == names
    assert (np.diff(packed["time"].values) > np.timedelta64(0)).all()
    assert set(np.unique(packed["status"].values)) == {0}


def test_cube_coordinates_are_the_pixels_mean(sources, cube):
    opened = store.open_cube(cube)
    scene = readers.read_scene(sorted(sources.rglob("*.nc"))[0])
    latitude, longitude = scene["latitude"].values, scene["longitude"].values
    for row in range(3):
        for col in range(5):
            pixels = slice(row * 32, row * 32 + 32), slice(col * 32, min(col * 32 + 32, SHAPE[1]))
            assert float(opened["latitude"][0, row, col]) == pytest.approx(
                latitude[pixels[0]].mean(), abs=1e-9
            )
            assert float(opened["longitude"][0, row, col]) == pytest.approx(
                longitude[pixels[1]].mean(), abs=1e-9
            )
    grid = xr.open_zarr(cube, group=f"grids/{opened['grid'].values[0]}", chunks=None)
    np.testing.assert_array_equal(grid["latitude"].values, latitude)
    assert opened["observation_time"].dims == ("crop", "row")


def test_absent_channel_is_flagged_and_costs_nothing(cube):
    opened = store.open_cube(cube)
    flags = opened["visible_reflectance_flags"].values
    assert (flags[3] & Flag.channel_absent).all()
    assert not (flags[[0, 1, 2, 4]] & Flag.channel_absent).any()
    assert not (cube / "visible_reflectance" / "c.3.0.0").exists()
    assert np.isnan(opened["visible_reflectance"][3].values).all()


def test_statistics_are_those_of_the_pixels(cube):
    opened = store.open_cube(cube)
    pixels = opened["ir_brightness_temperature"][1, 32:64, 64:96].values.astype(np.float64)
    assert float(opened["ir_brightness_temperature_mean"][1, 1, 2]) == pytest.approx(
        np.nanmean(pixels), rel=1e-6
    )
    assert float(opened["ir_brightness_temperature_std"][1, 1, 2]) == pytest.approx(
        np.nanstd(pixels), rel=1e-4
    )
    statistics = store.store_info(cube)["training_statistics"]["ir_brightness_temperature"]
    whole = opened["ir_brightness_temperature"].values
    clean = opened["ir_brightness_temperature_flags"].values
    assert not (clean & (Flag.all_missing | Flag.low_coverage)).any()
    assert statistics["mean"] == pytest.approx(np.nanmean(whole.astype(np.float64)), rel=1e-6)
    assert statistics["std"] == pytest.approx(np.nanstd(whole.astype(np.float64)), rel=1e-4)


def test_same_store_from_any_number_of_workers(sources, cube, tmp_path):
    pipeline.preprocess(sources, tmp_path / "two.zarr", recipe=RECIPE, workers=2)
    assert_same_store(cube, tmp_path / "two.zarr")


def test_given_client_is_used_and_left_open(sources, cube, tmp_path):
    from distributed import Client

    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        pipeline.preprocess(sources, tmp_path / "c.zarr", recipe=RECIPE, client=client)
        assert client.status == "running"
    assert_same_store(cube, tmp_path / "c.zarr")


def test_second_run_keeps_everything(sources, cube):
    before = {p: p.stat().st_mtime_ns for p in cube.rglob("c.*")}
    report = pipeline.preprocess(sources, cube, recipe=RECIPE)
    assert report.count("kept") == 5
    assert {p: p.stat().st_mtime_ns for p in cube.rglob("c.*")} == before


def test_interrupted_run_continues_to_the_same_store(sources, cube, tmp_path, monkeypatch):
    path = tmp_path / "patches.zarr"
    real, calls = pipeline.write_source, []

    def stops_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(pipeline.run, "write_source", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        pipeline.preprocess(sources, path, recipe=RECIPE)
    with pytest.raises(SchemaError, match="not finished"):
        store.open_cube(path)
    monkeypatch.setattr(pipeline.run, "write_source", real)
    report = pipeline.preprocess(sources, path, recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (2, 3)
    assert_same_store(cube, path)


@pytest.mark.timeout(120)
def test_killed_run_continues_to_the_same_store(sources, cube, tmp_path):
    path = tmp_path / "patches.zarr"
    script = (
        "import sys; from gridrad_cube import pipeline; from gridrad_cube.schema import *\n"
        "pipeline.preprocess(sys.argv[1], sys.argv[2], recipe=Recipe(tile=TileSpec(patch=32)))"
    )
    for shards in (1, 3, 5):
        process = subprocess.Popen([sys.executable, "-c", script, str(sources), str(path)])
        while process.poll() is None and len(list(path.glob("ir_*/c.*"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    pipeline.preprocess(sources, path, recipe=RECIPE)
    assert store.verify(path) == []
    assert_same_store(cube, path)


def test_kill_while_an_extension_is_finalized_is_made_good(sources, cube, tmp_path, monkeypatch):
    early, path = tmp_path / "sources", tmp_path / "patches.zarr"
    names = [p.relative_to(sources) for p in sorted(sources.rglob("*.nc"))]
    for name in names[:3]:
        (early / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sources / name, early / name)
    pipeline.preprocess(early, path, recipe=RECIPE)
    real = Files.write

    def dies_at_the_root(self, key, data):
        if key == "zarr.json":
            raise KeyboardInterrupt
        real(self, key, data)

    monkeypatch.setattr(Files, "write", dies_at_the_root)
    with pytest.raises(KeyboardInterrupt):
        pipeline.preprocess(sources, path, recipe=RECIPE)
    monkeypatch.setattr(Files, "write", real)
    between = store.open_cube(path)  # as it was before, in full
    assert between.sizes["crop"] == 3
    np.testing.assert_array_equal(
        between["ir_brightness_temperature"].values,
        store.open_cube(cube)["ir_brightness_temperature"][:3].values,
    )
    report = pipeline.preprocess(sources, path, recipe=RECIPE)
    assert report.count("kept") == 5
    assert store.open_cube(path)["ir_brightness_temperature"].values.shape[0] == 5
    assert_same_store(cube, path, thresholds=False)


def test_damaged_crop_keeps_its_record_when_its_source_is_not_given(sources, cube, tmp_path):
    path = tmp_path / "p.zarr"
    shutil.copytree(cube, path)
    (path / "ir_brightness_temperature" / "c.1.0.0").unlink()
    others = sorted(sources.rglob("*.nc"))[2:]
    report = pipeline.preprocess(others, path, recipe=RECIPE)
    assert [o.status for o in report.outcomes].count("failed") == 1
    assert [d.what for d in store.verify(path)] == ["missing"]
    assert store.open_cube(path)["status"].values.tolist() == [0] * 5
    pipeline.repair(path, sources)
    assert_same_store(cube, path)


def test_verify_reads_flags_and_metadata_and_repair_mends_them(sources, cube, tmp_path):
    path = tmp_path / "p.zarr"
    shutil.copytree(cube, path)
    flags = path / "ir_brightness_temperature_flags" / "c.0.0.0"
    flags.write_bytes(flags.read_bytes()[:5])
    (path / "latitude" / "zarr.json").unlink()
    keys = {"ir_brightness_temperature_flags/c.0.0.0", "latitude/zarr.json"}
    assert {d.key for d in store.verify(path)} == keys
    pipeline.repair(path, sources)
    assert store.verify(path) == []
    assert_same_store(cube, path)


def test_mended_source_does_not_block_later_runs(sources, tmp_path, monkeypatch):
    folder, path = tmp_path / "sources", tmp_path / "p.zarr"
    shutil.copytree(sources, folder)
    victim, real = sorted(folder.rglob("*.nc"))[1], pipeline.write_source

    def fails(root, layout, recipe, entry, source):
        if source == str(victim.resolve()):
            raise OSError(5, "Input/output error")
        return real(root, layout, recipe, entry, source)

    monkeypatch.setattr(pipeline.run, "write_source", fails)
    pipeline.preprocess(folder, path, recipe=RECIPE)
    monkeypatch.setattr(pipeline.run, "write_source", real)
    os.utime(victim)  # downloaded again
    assert pipeline.preprocess(folder, path, recipe=RECIPE).count("written") == 1
    assert pipeline.preprocess(folder, path, recipe=RECIPE).count("kept") == 5


def test_files_are_found_through_links_and_once(sources, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "more").symlink_to(sources)
    one = sorted(sources.rglob("*.nc"))[0]
    assert len(pipeline.find_sources(tmp_path / "links")) == 5
    assert len(pipeline.find_sources([one, sources])) == 5
    pipeline.preprocess(one, tmp_path / "p.zarr", recipe=RECIPE)
    report = pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (1, 4)


def test_versions_of_gridrad_on_other_lattices_are_refused(tmp_path):
    for version, start in (("v3.1", "2011-04-27T12:00"), ("v4.2", "2011-04-27T13:00")):
        write_sources(
            tmp_path / "s" / version, scenes=1, shape=(64, 64), format=f"gridrad-{version}", start=start
        )
    with pytest.raises(SchemaError, match=r"v3\.1 and v4 have different lattices"):
        pipeline.preprocess(tmp_path / "s", tmp_path / "p.zarr", recipe=RECIPE)


def test_later_files_are_appended_and_old_rows_stay(sources, cube, tmp_path):
    early = tmp_path / "sources"
    for path in sorted(sources.rglob("*.nc"))[:3]:
        target = early / path.relative_to(sources)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    path = tmp_path / "patches.zarr"
    pipeline.preprocess(early, path, recipe=RECIPE)
    channels = ("ir_brightness_temperature", "visible_reflectance")
    shards = {p: p.read_bytes() for c in channels for p in (path / c).glob("c.*")}
    old = store.open_packed(path).load()
    thresholds = store.store_info(path)["thresholds"]
    report = pipeline.preprocess(sources, path, recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (3, 2)
    assert len(shards) == 6
    assert all(p.read_bytes() == data for p, data in shards.items())
    new = store.open_packed(path)
    assert new.sizes["crop"] == 5
    xr.testing.assert_identical(new.isel(crop=slice(0, 3)).load().drop_attrs(), old.drop_attrs())
    assert store.store_info(path)["thresholds"] == thresholds


def test_scene_passes_few_modules_and_is_opened_once_to_plan_and_once_to_write(
    sources, tmp_path, monkeypatch
):
    opened, modules, package = [], set(), os.path.dirname(gridrad_cube.__file__)

    def counted(kind):
        return lambda *args, **options: opened.append(kind.__name__) or kind(*args, **options)

    def profile(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package) and code.co_name != "<module>":
            modules.add(os.path.relpath(code.co_filename, package))

    source = sorted(sources.rglob("*.nc"))[0]
    pipeline.preprocess(source, tmp_path / "first.zarr", recipe=RECIPE)  # imports what is imported late
    monkeypatch.setattr(netCDF4, "Dataset", counted(netCDF4.Dataset))
    monkeypatch.setattr(h5py, "File", counted(h5py.File))
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        pipeline.preprocess(source, tmp_path / "p.zarr", recipe=RECIPE)
    finally:
        sys.setprofile(before)
    assert opened == ["File", "Dataset", "File", "Dataset"]
    assert len(modules) < 31, sorted(modules)


@pytest.mark.parametrize(
    "error", [TypeError, KeyError, AttributeError, AssertionError, NameError, ZeroDivisionError]
)
def test_error_of_the_program_ends_the_run_and_keeps_what_is_written(sources, tmp_path, monkeypatch, error):
    real, calls = pipeline.write_source, []

    def fails(*task):
        calls.append(task)
        if len(calls) == 3:
            raise error("of the program")
        return real(*task)

    monkeypatch.setattr(pipeline.run, "write_source", fails)
    with pytest.raises(error, match="of the program"):
        pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    report = pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (2, 3)


def test_error_of_the_program_while_planning_ends_the_run(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "inspect", lambda *_, **__: {}["header"])
    with pytest.raises(KeyError, match="header"):
        pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)


FAULTS = {
    "truncated": "truncated|cannot|HDF",
    "text": "not a netCDF file",
    "no_channels": "channel",
    "wrong_time": "time",
    "small": "patch",
}


def test_one_bad_file_of_each_kind_stops_nothing(sources, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "gridrad_cube")
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    bad = {}
    for i, fault in enumerate(FAULTS):
        path = write_sources(
            tmp_path / fault,
            scenes=1,
            shape=SHAPE if fault != "small" else (20, 20),
            start=f"2021-07-0{6 + i % 3}T1{i}:00",
        )[0]
        if fault != "small":
            spoil(path, fault)
        target = folder / fault / path.name
        target.parent.mkdir()
        shutil.move(path, target)
        bad[f"{fault}/{path.name}"] = fault
    (folder / "empty.nc").touch()
    report = pipeline.preprocess(folder, tmp_path / "patches.zarr", recipe=RECIPE)
    outcomes = {o.source: o for o in report.outcomes}
    assert report.count("written") == 5
    assert outcomes["empty.nc"].status == "skipped"
    for name, fault in bad.items():
        assert outcomes[name].status == "failed", fault
        assert any(word in outcomes[name].reason for word in FAULTS[fault].split("|")), outcomes[name].reason
        assert "\n" not in outcomes[name].reason
        (record,) = (r for r in caplog.records if name in r.getMessage())
        assert record.exc_info[2] is not None  # the traceback, which --debug shows
    table = xr.open_zarr(tmp_path / "patches.zarr", group="report", chunks=None)
    assert dict(zip(table["source"].values, table["status"].values, strict=True)) == {
        o.source: o.status for o in report.outcomes
    }


def test_file_that_breaks_after_planning_keeps_its_row_and_can_be_mended(sources, tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    path = tmp_path / "patches.zarr"
    victim = sorted(folder.rglob("*.nc"))[2]
    real = pipeline.write_source

    def fails_once(root, layout, recipe, entry, source):
        if source == str(victim.resolve()):
            raise OSError(5, "Input/output error")
        return real(root, layout, recipe, entry, source)

    monkeypatch.setattr(pipeline.run, "write_source", fails_once)
    report = pipeline.preprocess(folder, path, recipe=RECIPE)
    assert [o.status for o in report.outcomes] == ["written", "written", "failed", "written", "written"]
    opened = store.open_cube(path)
    assert opened["status"].values.tolist() == [0, 0, 2, 0, 0]
    assert (opened["ir_brightness_temperature_flags"][2].values == Flag.unreadable).all()
    monkeypatch.setattr(pipeline.run, "write_source", real)
    assert pipeline.preprocess(folder, path, recipe=RECIPE).count("written") == 1
    assert store.open_cube(path)["status"].values.tolist() == [0] * 5


def test_disk_full_stops_with_what_to_do(sources, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        Files,
        "write",
        lambda self, key, data, w=Files.write: full() if "/c." in key else w(self, key, data),
    )
    with pytest.raises(
        OSError, match=r"No space left on device\. Free some space or change the permissions, and run"
    ):
        pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)


def test_other_recipe_is_refused_and_the_store_unharmed(sources, cube):
    before = (cube / "zarr.json").read_bytes()
    with pytest.raises(SchemaError, match=r"built with another recipe .*tile"):
        pipeline.preprocess(sources, cube, recipe=Recipe(tile=TileSpec(patch=16)))
    with pytest.raises(SchemaError, match="reflag"):
        pipeline.preprocess(
            sources, cube, recipe=replace(RECIPE, quality=QualitySpec(max_deviation_factor=3))
        )
    assert (cube / "zarr.json").read_bytes() == before


def test_reflag_equals_building_with_these_thresholds(sources, cube, tmp_path):
    spec = QualitySpec(max_deviation_factor=2.0, global_mean_deviation_factor=1.0, low_coverage=0.9)
    pipeline.preprocess(sources, tmp_path / "built.zarr", recipe=replace(RECIPE, quality=spec))
    shutil.copytree(cube, tmp_path / "reflagged.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "reflagged.zarr").glob("*_temperature/c.*")}
    pipeline.reflag(tmp_path / "reflagged.zarr", spec)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    built, reflagged = (store.open_packed(tmp_path / f"{n}.zarr") for n in ("built", "reflagged"))
    changed = False
    for name in ("ir_brightness_temperature_flags", "visible_reflectance_flags"):
        np.testing.assert_array_equal(reflagged[name].values, built[name].values)
        changed |= bool((reflagged[name].values != store.open_packed(cube)[name].values).any())
    assert changed
    infos = [store.store_info(tmp_path / f"{n}.zarr") for n in ("built", "reflagged")]
    for key in ("quality", "thresholds"):
        assert infos[0][key] == infos[1][key]
    for label, statistics in infos[0]["training_statistics"].items():
        for key in (
            "patches",
            "mean",
            "std",
            "minimum",
            "maximum",
        ):  # histograms are those of the first flags
            assert infos[1]["training_statistics"][label][key] == statistics[key]
    pipeline.preprocess(sources, tmp_path / "reflagged.zarr", recipe=RECIPE)  # nothing new: the flags stay
    again = store.open_packed(tmp_path / "reflagged.zarr")["ir_brightness_temperature_flags"].values
    np.testing.assert_array_equal(again, built["ir_brightness_temperature_flags"].values)


def test_thresholds_of_some_scenes_are_told_and_computed_again(sources, cube, tmp_path):
    folder, path = tmp_path / "sources", tmp_path / "p.zarr"
    shutil.copytree(sources, folder)
    victim = sorted(folder.rglob("*.nc"))[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:1000])
    report = pipeline.preprocess(folder, path, recipe=RECIPE)
    said = "thresholds of the flag global_outlier come from 4 of 5 scenes"
    assert said in str(report)
    assert (
        "from 4 of 5 scenes; gridrad-cube reflag"
        in gridrad_cube.open_cube(path).gridrad.describe()["thresholds"]
    )
    victim.write_bytes(whole)
    assert said in str(pipeline.preprocess(folder, path))
    assert CliRunner().invoke(cli, ["reflag", str(path)]).exit_code == 0
    assert "come from" not in str(pipeline.preprocess(folder, path))
    again, expected = (store.store_info(p)["thresholds"] for p in (path, cube))
    assert again == expected


def test_changed_source_is_refused(sources, tmp_path):
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=RECIPE)
    victim = sorted(folder.rglob("*.nc"))[1]
    with netCDF4.Dataset(victim, "a") as file:
        file["ir_brightness_temperature"][..., 5, 5] = 250.0
    with pytest.raises(
        SchemaError, match=f"{victim.name}: changed since it was written to .*pixels of ir_bright"
    ):
        pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=RECIPE)


def test_source_that_changes_while_it_is_read_is_read_again(sources, tmp_path, monkeypatch):
    folder, name = tmp_path / "sources", "ir_brightness_temperature"
    shutil.copytree(sources, folder)
    victim, real, changes = sorted(folder.rglob("*.nc"))[1], readers.read_scene, [290.0, 250.0]

    def changed(path, **options):
        """Read a file of which another program then writes another version."""
        scene = real(path, **options)
        if path == str(victim) and changes:
            with netCDF4.Dataset(victim, "a") as file:
                file[name][:] = changes.pop()
            os.utime(victim, ns=(0, len(changes)))
        return scene

    monkeypatch.setattr(readers, "read_scene", changed)
    assert not pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=RECIPE).failed
    row = store.open_packed(tmp_path / "p.zarr").isel(crop=1)
    assert row["source"].item().endswith(victim.name)
    np.testing.assert_array_equal(row[name].values[:96, :150], packed_of(victim, name))
    changes[:] = [280.0] * 9
    report = pipeline.preprocess(folder, tmp_path / "other.zarr", recipe=RECIPE)
    assert [o.source.endswith(victim.name) for o in report.failed] == [True]
    assert "changed while it was read, 3 times. Run the command again" in report.failed[0].reason


def test_copied_source_is_the_same(sources, tmp_path, monkeypatch):
    folder, path = tmp_path / "sources", tmp_path / "p.zarr"
    shutil.copytree(sources, folder)
    files = sorted(folder.rglob("*.nc"))
    last = shutil.move(files.pop(), tmp_path)
    pipeline.preprocess(folder, path, recipe=RECIPE)
    for file in files:
        os.utime(file, (1, 1))
    broken = path / "ir_brightness_temperature" / "c.1.0.0"
    whole = broken.read_bytes()
    broken.write_bytes(b"x" * len(whole))
    assert [o.status for o in pipeline.repair(path, folder)] == ["written"]
    assert broken.read_bytes() == whole
    shutil.move(last, files[0].parent)
    assert pipeline.preprocess(folder, path, recipe=RECIPE).count("kept") == 4
    assert store.verify(path) == []
    reads, real = [], readers.read_scene
    monkeypatch.setattr(
        readers, "read_scene", lambda *args, **options: reads.append(args) or real(*args, **options)
    )
    pipeline.preprocess(folder, path, recipe=RECIPE)
    assert reads == []  # the log has the new times of modification


def test_same_scene_under_two_names_is_refused(sources, tmp_path):
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    victim = sorted(folder.rglob("*.nc"))[1]
    shutil.copy2(victim, victim.with_name("copy.nc"))
    with pytest.raises(SchemaError, match="the same time, grid, window and product as"):
        pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=RECIPE)
    assert not (tmp_path / "p.zarr" / "zarr.json").exists()


def test_missing_path_and_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        pipeline.preprocess(tmp_path / "none", tmp_path / "p.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SchemaError, match="no netCDF or GRIB2 file"):
        pipeline.preprocess(tmp_path / "empty", tmp_path / "p.zarr")


def test_no_usable_file_makes_no_store(tmp_path):
    (tmp_path / "a.nc").write_text("hello")
    with pytest.raises(SchemaError, match=r"no file can be used(.|\n)*a.nc: .*not a netCDF file"):
        pipeline.preprocess(tmp_path / "a.nc", tmp_path / "p.zarr")
    assert not (tmp_path / "p.zarr" / "zarr.json").exists()


def test_repair_rebuilds_just_the_damaged_shards(sources, cube, tmp_path):
    path = tmp_path / "p.zarr"
    shutil.copytree(cube, path)
    broken = path / "ir_brightness_temperature" / "c.2.0.0"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:1000])
    (path / "visible_reflectance" / "c.4.0.0").unlink()
    others = {p: p.stat().st_mtime_ns for p in path.glob("*/c.1.0.0")}
    assert len(store.verify(path)) == 2
    outcomes = pipeline.repair(path, sources)
    assert {o.status for o in outcomes} == {"written"}
    assert store.verify(path) == []
    assert broken.read_bytes() == whole
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert_same_store(cube, path)


def test_random_crops_depend_on_seed_and_scene_alone(sources, tmp_path):
    tile = TileSpec(crop=(64, 64), patch=32, placement="random", seed=3)
    pipeline.preprocess(sources, tmp_path / "a.zarr", recipe=Recipe(tile=tile))
    lone = sorted(sources.rglob("*.nc"))[2]
    pipeline.preprocess(lone, tmp_path / "b.zarr", recipe=Recipe(tile=tile))
    a, b = store.open_packed(tmp_path / "a.zarr"), store.open_packed(tmp_path / "b.zarr")
    assert (int(a["y_origin"][2]), int(a["x_origin"][2])) == (int(b["y_origin"][0]), int(b["x_origin"][0]))
    np.testing.assert_array_equal(
        a["ir_brightness_temperature"][2].values, b["ir_brightness_temperature"][0].values
    )
    y, x = int(a["y_origin"][2]), int(a["x_origin"][2])
    np.testing.assert_array_equal(
        a["ir_brightness_temperature"][2].values,
        packed_of(lone, "ir_brightness_temperature")[y : y + 64, x : x + 64],
    )


def test_radar_volume_becomes_derived_channels(tmp_path):
    path = make_store(
        tmp_path, scenes=2, shape=(64, 64), format="gridrad-v4.2",
        channels=("reflectivity_column_maximum", "reflectivity@3.0km", "reflectivity@6.0km", "echo_top_height"),
    )  # fmt: skip
    opened = store.open_cube(path)
    assert opened["reflectivity"].dims == ("crop", "altitude", "y", "x")
    assert opened["altitude"].values.tolist() == [3.0, 6.0]
    assert opened["reflectivity_flags"].dims == ("crop", "altitude", "row", "col")
    packed = store.open_packed(path)
    assert packed["reflectivity_column_maximum"].attrs["no_echo_code"] == 1
    levels = packed["reflectivity"].values
    column = packed["reflectivity_column_maximum"].values
    assert (column >= levels.max(axis=1)).all()
    label = store.store_info(path)["training_statistics"]
    assert set(label) == {
        "reflectivity@3.0km",
        "reflectivity@6.0km",
        "reflectivity_column_maximum",
        "echo_top_height",
    }


@pytest.mark.parametrize("version", ["v3.1", "v4.1"])
def test_other_versions_of_gridrad_become_cubes(tmp_path, version):
    channels = ("reflectivity_column_maximum", "echo_top_height", "reflectivity@3.0km")
    path = make_store(
        tmp_path, scenes=1, shape=(128, 128), patch=64, format=f"gridrad-{version}", channels=channels
    )
    packed = store.open_packed(path)
    column = packed["reflectivity_column_maximum"].values
    assert (column >= packed["reflectivity"].values[:, 0]).all()
    assert set(np.unique(column[column < 16])) <= {0, 1, 2, 3}
    assert store.store_info(path)["radar_quality"]["mode"] == "fixed"


def test_quality_control_of_radar_removes_bins_and_says_why(tmp_path):
    write_sources(tmp_path / "s", scenes=1, shape=(128, 128), format="gridrad-v4.2", seed=2)
    levels = Recipe(channels=("reflectivity", "reflectivity_column_maximum"), tile=TileSpec(patch=32))
    cubes = {}
    for qc in ("none", "fixed", "published"):
        recipe = replace(levels, radar=RadarSpec(qc=qc))
        pipeline.preprocess(tmp_path / "s", tmp_path / f"{qc}.zarr", recipe=recipe)
        cubes[qc] = store.open_packed(tmp_path / f"{qc}.zarr")
    raw, fixed = (cubes[qc]["reflectivity"].values for qc in ("none", "fixed"))
    assert set(np.unique(raw[raw < 16])) == {0, 1}
    assert set(np.unique(fixed[fixed < 16])) == {0, 1, 2, 3}
    kept = fixed >= 16
    assert kept.sum() > 10_000
    np.testing.assert_array_equal(fixed[kept], raw[kept])
    assert (raw[(fixed == 2) | (fixed == 3)] >= 16).all()
    np.testing.assert_array_equal(fixed == 0, raw == 0)
    column = cubes["fixed"]["reflectivity_column_maximum"].values
    np.testing.assert_array_equal(column, fixed.max(axis=1))
    constants = store.store_info(tmp_path / "published.zarr")["radar_quality"]
    assert (constants["mode"], constants["speckle_fraction"]) == ("published", 0.32)
    assert "radar_quality" not in store.store_info(tmp_path / "none.zarr")


def test_volume_without_what_quality_control_needs_fails_alone(tmp_path):
    paths = write_sources(tmp_path / "s", scenes=2, shape=(64, 64), format="gridrad-v4.2")
    with netCDF4.Dataset(paths[0], "a") as file:
        file.renameVariable("wReflectivity", "elsewhere")
    report = pipeline.preprocess(tmp_path / "s", tmp_path / "p.zarr", recipe=RECIPE)
    (failed,) = report.failed
    assert "no wReflectivity; expected the weights of reflectivity" in failed.reason
    assert report.count("written") == 1


def test_real_rain_rates_become_a_cube(real_data, tmp_path):
    files = sorted(real_data.glob("mrms_precipitation_rate_*.nc"))[:2]
    report = pipeline.preprocess(files, tmp_path / "p.zarr")
    assert report.count("written") == 2
    packed = store.open_packed(tmp_path / "p.zarr")
    np.testing.assert_array_equal(
        packed["precipitation_rate"][1, :3500, :7000].values, packed_of(files[1], "precipitation_rate")
    )
    assert packed.sizes["row"] == 14
    flags = packed["precipitation_rate_flags"].values
    storm = packed["precipitation_rate_maximum"].values > 50
    assert storm.sum() > 10
    rejecting = Flag.all_missing | Flag.non_finite | Flag.constant | Flag.padding
    assert not (flags[storm] & rejecting).any()
