"""What a build would make, what it says of files that it cannot use, and that a refused one leaves nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_data import write_sources

from gridrad_cube import pipeline, store
from gridrad_cube.cli import cli
from gridrad_cube.schema import Recipe, SchemaError, TileSpec

RECIPE = Recipe(tile=TileSpec(patch=32))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, scenes=3, shape=(96, 150))
    return folder


def test_a_dry_run_says_what_the_build_then_makes(sources, tmp_path):
    path = tmp_path / "p.zarr"
    estimate = pipeline.estimate(sources, path, recipe=RECIPE, workers=2)
    assert not path.exists()
    report = pipeline.preprocess(sources, path, recipe=RECIPE)
    shards = [p for p in path.glob("*/c.*.0.0") if p.parent.name in store.store_info(path)["channels"]]
    cube = store.open_cube(path)
    assert (estimate.scenes, estimate.crops, estimate.kept) == (3, report.outcomes[0].crops * 3, 0)
    assert estimate.patches == cube.sizes["crop"] * cube.sizes["row"] * cube.sizes["col"]
    assert (estimate.files, estimate.channels) == (len(shards), 2)
    assert estimate.bytes == sum(p.stat().st_size for p in shards)  # all scenes are in the sample
    assert estimate.seconds > 0
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    again = pipeline.estimate(sources, path, recipe=RECIPE)
    assert (again.kept, again.scenes, again.files, again.bytes) == (3, 0, 0, 0)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_command_of_a_dry_run(sources, tmp_path):
    (sources / "broken.nc").write_text("hello")
    try:
        command = [
            "preprocess",
            str(sources),
            "--store",
            str(tmp_path / "p.zarr"),
            "--patch",
            "32",
            "--dry-run",
        ]
        result = CliRunner().invoke(cli, command)
    finally:
        (sources / "broken.nc").unlink()
    assert result.exit_code == 1
    for text in (
        "nothing is written",
        "scenes  3 new, 0 planned before",
        "crops   3",
        "files   6",
        "with 1 worker,",
    ):
        assert text in result.output
    assert "1 file cannot be planned:\n  failed  broken.nc: " in result.output
    assert not (tmp_path / "p.zarr").exists()


def test_equal_errors_are_said_once_with_their_number(sources, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(sources, folder)
    whole = next(folder.rglob("*.nc")).read_bytes()
    for number in range(12):
        (folder / f"page{number}.nc").write_text("<html>")
        (folder / f"cut{number}.nc").write_bytes(whole[: 1000 + number])
    report = pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=RECIPE)
    lines = str(report).splitlines()
    assert lines[0].endswith("27 scenes: 3 written, 0 kept, 0 skipped, 24 failed; 3 crops")
    assert [line.split(":")[0].split(" such")[0].strip() for line in lines if "failed  " in line] == [
        "failed  12"
    ] * 2
    assert len(report.failed) == 24
    assert not report.is_complete


def refusals(sources: Path, folder: Path):
    """Sources that a new build refuses, and what it says."""
    names = sorted(p for p in sources.rglob("*.nc"))
    bad = folder / "bad"
    bad.mkdir()
    (bad / "a.nc").write_text("<html>")
    yield bad, RECIPE, "no file can be used"
    twice = folder / "twice"
    twice.mkdir()
    shutil.copy(names[0], twice / "a.nc")
    shutil.copy(names[0], twice / "b.nc")
    shutil.copy(bad / "a.nc", twice / "bad.nc")
    yield twice, RECIPE, "the same time, grid, window and product"
    yield [sources, bad / "a.nc"], Recipe(channels=("no_such_thing",), tile=RECIPE.tile), "no file (can|has)"


@pytest.mark.parametrize("number", range(3))
def test_a_refused_build_leaves_nothing(sources, tmp_path, number):
    where, recipe, message = list(refusals(sources, tmp_path))[number]
    path = tmp_path / "new" / "p.zarr"
    with pytest.raises(SchemaError, match=message):
        pipeline.preprocess(where, path, recipe=recipe)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="no such store"):
        store.open_cube(path)
    path.mkdir()  # a folder of the user's stays
    with pytest.raises(SchemaError, match=message):
        pipeline.preprocess(where, path, recipe=recipe)
    assert pipeline.preprocess(sources, path, recipe=RECIPE).count("written") == 3


def test_a_refused_extension_leaves_the_store_as_it_was(sources, tmp_path):
    path, more = tmp_path / "p.zarr", tmp_path / "more"
    pipeline.preprocess(sources, path, recipe=RECIPE)
    more.mkdir()
    shutil.copy(next(sources.rglob("*.nc")), more / "other_name.nc")
    (more / "bad.nc").write_text("<html>")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with pytest.raises(SchemaError, match="the same time, grid, window and product"):
        pipeline.preprocess(more, path, recipe=RECIPE)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_names_and_folders_that_are_not_read_are_told_and_end_with_status_1(sources, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    shutil.copytree(sources, folder)
    for name in (
        "a.nc.gz",
        "b.nc.1",
        "sub/c.h5",
        "sub/d.tar",
        "e.nc.md5",
        "README",
        ".hidden",
        "sub/f.grib2.idx",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "lost.nc").symlink_to(folder / "nowhere.nc")
    (folder / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    pipeline.preprocess(
        sources, folder / "store.zarr", recipe=RECIPE
    )  # a store among the sources is not a source
    report = pipeline.preprocess(folder, tmp_path / "p.zarr", recipe=RECIPE)
    assert (report.count("written"), report.failed, report.is_complete) == (3, (), False)
    unread = {os.path.relpath(o.source, folder): o.status for o in report.unread}
    assert unread == {
        "a.nc.gz": "skipped", "b.nc.1": "skipped", "sub/c.h5": "skipped", "sub/d.tar": "skipped", "lost.nc": "failed",
        "locked": "failed",
    }  # fmt: skip
    assert sorted(os.path.basename(name) for name in report.other) == ["README", "e.nc.md5", "f.grib2.idx"]
    text = str(report)
    assert "  skipped 4 such, for example " in text
    assert "locked: the folder cannot be read: Permission denied" in text
    assert "3 other names are no sources, for example " in text
    result = CliRunner().invoke(cli, ["preprocess", str(folder), "--store", str(tmp_path / "p.zarr")])
    assert result.exit_code == 1
    assert "0 written, 3 kept" in result.output


def test_a_folder_without_sources_says_what_is_there(tmp_path):
    (tmp_path / "a.nc.gz").write_text("x")
    with pytest.raises(
        SchemaError, match=r"no netCDF or GRIB2 file .*a\.nc\.gz: its name is not that of a source file"
    ):
        pipeline.find_sources(tmp_path)
