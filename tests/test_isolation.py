"""One file cannot end, block or starve a run, and errors of a disk that pass are not damage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import reader_files as files

from gridrad_cube import pipeline, readers, sources, store, synthetic
from gridrad_cube.pipeline import run as building
from gridrad_cube.pipeline.isolation import Limits
from gridrad_cube.schema import Recipe, TileSpec

RECIPE = Recipe(tile=TileSpec(patch=32))
IR = "ir_brightness_temperature"
#: What a library does with some damaged files, between tasks that do no harm.
TASKS = [
    (abs, -3),
    (os.abort,),
    (exec, "while True: pass"),
    (exec, "import numpy; numpy.ones(2**30)"),
    (os.getpid,),
    (exec, "import time; time.sleep(1000)"),
    (abs, -4),
]


def apply(tasks, run) -> list[str]:
    found = dict(run(eval, [("f(*args)", {"f": task[0], "args": task[1:]}) for task in tasks]))
    return [str(found[number]) for number in range(len(tasks))]


def check(found: list[str]) -> None:
    assert (found[0], found[-1]) == ("3", "4")
    assert found[4] != str(os.getpid())
    assert "ended (SIGABRT)" in found[1]
    assert "took more than" in found[2]
    assert "needs more than 0.5 GiB of memory" in found[3]
    assert "took more than 10 s" in found[5]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_task_that_crashes_loops_or_takes_all_memory_fails_alone(workers, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pipeline.executor(None, workers, None, Limits(1, 0.5)) as run:
        check(apply(TASKS, run))


def test_a_worker_of_dask_survives_such_a_task():
    from distributed import Client

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with Client(**options) as client, pipeline.executor(client, 1, None, Limits(1, 0.5)) as run:
        assert "ended (SIGABRT)" in apply(TASKS[:2], run)[1]


def write_never(path: Path) -> None:
    """A LaRC file of which the infrared was declared and never written."""
    files.write_larc(path, shape=(64, 64))
    with h5py.File(path, "a") as f:
        del f[IR]
        f.create_dataset(IR, (1, 64, 64), "u2", chunks=True)
        for axis, name in enumerate(("time", "nlines", "npixels")):
            if name in f:
                f[IR].dims[axis].attach_scale(f[name])


def write_axes(path: Path, edge: int) -> None:
    """A GridRad file of a few kilobytes whose axes alone make a grid of many gigabytes."""
    with netCDF4.Dataset(path, "w") as f:
        sizes = {"Longitude": edge, "Latitude": edge, "Altitude": 1, "Index": 4, "time": 1}
        for name, size in sizes.items():
            f.createDimension(name, size)
        for name, start in (("Longitude", 200.0), ("Latitude", 10.0)):
            axis = f.createVariable(name, "f8", (name,), zlib=True)
            axis[:] = start + np.arange(edge) * (60.0 / edge)
        f.createVariable("Altitude", "f8", ("Altitude",))[:] = 1.0
        f["Altitude"].units = "km"
        time = f.createVariable("time", "f8", ("time",))
        time.units, time[:] = "minutes since 2011-04-27", 21 * 60
        f.createVariable("index", "i4", ("Index",))[:] = np.arange(4)
        for name in ("Reflectivity", "wReflectivity"):
            f.createVariable(name, "f4", ("Index",))[:] = 30.0
        f.Algorithm_version = "v4_2"


def test_hostile_files_fail_alone_and_the_store_is_that_of_the_others(tmp_path, monkeypatch):
    bad, good = tmp_path / "bad", synthetic.write_scenes(tmp_path / "good", scenes=2, shape=(64, 96))
    pipeline.preprocess(tmp_path / "good", tmp_path / "expected.zarr", recipe=RECIPE)
    bad.mkdir()
    write_never(bad / "never_20210705_1750.nc")
    write_axes(bad / "nexrad_3d_v4_2_20110427T210000Z.nc", 100_000)
    (bad / "loop.nc").symlink_to("loop.nc")
    (bad / "nowhere.nc").symlink_to("elsewhere.nc")
    os.mkfifo(bad / "pipe.nc")
    Path(os.fsdecode(os.fsencode(bad / "name") + b"\xff.nc")).write_bytes(good[0].read_bytes())
    monkeypatch.setattr(building, "_ISOLATES", True)
    report = pipeline.preprocess(
        [tmp_path / "good", bad], tmp_path / "p.zarr", recipe=RECIPE, memory_limit=1.0
    )
    reasons = {Path(o.source).name: o.reason for o in (*report.outcomes, *report.unread) if o.reason}
    assert report.count("written") == 2
    assert "declared and never written" in reasons.pop("never_20210705_1750.nc")
    assert "declares" in reasons.pop("nexrad_3d_v4_2_20110427T210000Z.nc")
    assert "not a regular file" in reasons.pop("pipe.nc")
    assert "not UTF-8" in reasons.pop("name\\xff.nc")
    assert set(reasons) == {"loop.nc", "nowhere.nc"}
    assert all("a link to a file that is not there" in reason for reason in reasons.values())
    found, expected = (store.open_packed(tmp_path / name) for name in ("p.zarr", "expected.zarr"))
    assert found.equals(expected)


def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    (path,) = synthetic.write_scenes(home / "in", scenes=1, shape=(64, 96))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    pipeline.preprocess("~/in", "~/p.zarr", recipe=RECIPE)
    assert (home / "p.zarr" / "zarr.json").exists()
    assert store.open_packed("~/p.zarr").sizes["crop"] == 1
    assert readers.inspect(f"~/{path.relative_to(home)}").shape == (64, 96)
    assert not list(here.iterdir())


# --- errors that pass


def fail_first(monkeypatch, owner, name: str, times: int, error: Exception) -> None:
    """Let the first calls of a function raise an error."""
    real, left = getattr(owner, name), [times]

    def failing(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


STALE = (
    "Can't synchronously read data (file read failed: time = Mon Jan  1, errno = {}, error message = 'stale')"
)


@pytest.mark.parametrize(
    ("owner", "name", "times", "error"),
    [
        (h5py, "File", 2, OSError(STALE.format(errno.ESTALE))),
        (netCDF4, "Dataset", 2, RuntimeError("NetCDF: HDF error")),
        (sources, "identity", 2, OSError(errno.ETIMEDOUT, "Connection timed out")),
        (readers.files, "_check_file", 2, OSError(errno.EAGAIN, "Resource temporarily unavailable")),
    ],
    ids=["header", "library", "identity", "open"],
)
def test_errors_that_pass_are_retried_while_planning_and_reading(
    tmp_path, monkeypatch, owner, name, times, error
):
    synthetic.write_scenes(tmp_path / "in", scenes=1, shape=(64, 96))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fail_first(monkeypatch, owner, name, times, error)
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "p.zarr", recipe=RECIPE)
    assert report.count("written") == 1


def test_an_error_of_the_disk_that_lasts_is_not_called_damage(tmp_path, monkeypatch):
    synthetic.write_scenes(tmp_path / "in", scenes=2, shape=(64, 96))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fail_first(monkeypatch, h5py, "File", 3, OSError(STALE.format(errno.EIO)))
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "p.zarr", recipe=RECIPE)
    (failed,) = report.failed
    assert "Input/output error" in failed.reason
    assert "the file is damaged" not in failed.reason
