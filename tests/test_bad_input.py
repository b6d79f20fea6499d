"""Sources and places that go wrong while a cube is built: one clear line each, and no damage to what is there."""

from __future__ import annotations

import os
import shutil

import pytest
from click.testing import CliRunner
from small_data import write_sources

from gridrad_cube import pipeline, store
from gridrad_cube.cli import cli
from gridrad_cube.schema import Recipe, SchemaError, TileSpec
from gridrad_cube.storage import Files

RECIPE = Recipe(tile=TileSpec(patch=32))
SHAPE = (64, 96)


@pytest.fixture
def sources(tmp_path):
    write_sources(tmp_path / "s", scenes=3, shape=SHAPE, start="2021-07-05T17:00", interval="10min")
    return tmp_path / "s"


def test_source_that_vanishes_after_planning_is_told_and_can_come_back(sources, tmp_path, monkeypatch):
    victim = sorted(sources.rglob("*.nc"))[1]
    real, aside = pipeline.write_source, tmp_path / "aside.nc"

    def vanishes(*task):
        if victim.exists():
            shutil.move(victim, aside)
        return real(*task)

    monkeypatch.setattr(pipeline.run, "write_source", vanishes)
    report = pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    assert [o.status for o in report.outcomes] == ["written", "failed", "written"]
    assert "No such file" in report.failed[0].reason
    monkeypatch.setattr(pipeline.run, "write_source", real)
    # Not there at all: its row stays, as failed.
    assert [o.status for o in pipeline.preprocess(sources, tmp_path / "p.zarr").outcomes].count("failed") == 1
    shutil.move(aside, victim)
    assert pipeline.preprocess(sources, tmp_path / "p.zarr").count("written") == 1
    assert store.open_cube(tmp_path / "p.zarr")["status"].values.tolist() == [0, 0, 0]


def test_later_scene_that_needs_a_larger_crop_is_told_and_the_others_are_added(sources, tmp_path):
    pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    large = write_sources(tmp_path / "large", scenes=1, shape=(96, 128), start="2021-07-06T17:00")[0]
    small = write_sources(tmp_path / "small", scenes=1, shape=(40, 64), start="2021-07-07T17:00")[0]
    report = pipeline.preprocess([sources, large, small], tmp_path / "p.zarr", recipe=RECIPE)
    assert report.count("written") == 1
    (failed,) = report.failed
    assert (
        "needs crops of (96, 128) px, but this store has (64, 96). Build another store for it"
        in failed.reason
    )
    assert store.open_cube(tmp_path / "p.zarr").sizes["crop"] == 4
    assert store.verify(tmp_path / "p.zarr") == []


def test_store_where_nothing_may_be_written_is_told_before_any_work(sources):
    result = CliRunner().invoke(
        cli, ["preprocess", str(sources), "--store", "/proc/patches.zarr", "--patch", "32"]
    )
    assert result.exit_code == 1
    assert result.output.startswith("Error: /proc/")
    assert len(result.output.splitlines()) == 1


def test_permission_lost_on_the_way_stops_the_run_and_keeps_what_is_written(sources, tmp_path, monkeypatch):
    real, calls = Files.write, []

    def refuses(self, key, data):
        if key.startswith("ir_brightness_temperature/"):
            calls.append(key)
            if len(calls) > 1:
                raise PermissionError(13, "Permission denied", os.path.join(self.root, key))
        real(self, key, data)

    monkeypatch.setattr(Files, "write", refuses)
    with pytest.raises(OSError, match=r"p\.zarr: Permission denied\. .*run the same command again to resume"):
        pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    monkeypatch.setattr(Files, "write", real)
    report = pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (1, 2)


def test_half_written_store_does_not_open(sources, tmp_path, monkeypatch):
    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.run, "finalize", stops)
    with pytest.raises(KeyboardInterrupt):
        pipeline.preprocess(sources, tmp_path / "p.zarr", recipe=RECIPE)
    for opens in (store.open_cube, store.open_packed, store.store_info):
        with pytest.raises(
            SchemaError, match=r"the store is not finished\. Run the command that builds it again"
        ):
            opens(tmp_path / "p.zarr")
    result = CliRunner().invoke(cli, ["info", str(tmp_path / "p.zarr")])
    assert (result.exit_code, "not finished" in result.output) == (1, True)
