"""Running many tasks over Dask: bounded submission, lost workers, schedulers that are running already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from small_data import write_sources

from gridrad_cube import pipeline, store
from gridrad_cube.pipeline import executor
from gridrad_cube.pipeline.execution import _SUBMITTED_PER_WORKER
from gridrad_cube.schema import Recipe, TileSpec

RECIPE = Recipe(tile=TileSpec(patch=32))


def square(number):
    if number == 13:
        raise ValueError("thirteen")
    if number is None:
        raise TypeError("no number")
    return number * number


@pytest.mark.timeout(120)
def test_tasks_are_submitted_a_few_at_a_time_and_each_gives_one_result():
    from distributed import Client

    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        most, found = 0, {}
        with executor(client, 1, None) as run:
            for number, result in run(square, [(i,) for i in range(200)]):
                most = max(most, len(client.futures))
                assert number not in found
                found[number] = result
            with pytest.raises(TypeError, match="no number") as raised:
                list(run(square, [(1,), (None,)]))
            assert "in square" in raised.value.__notes__[0]
        assert client.status == "running"
    assert most <= _SUBMITTED_PER_WORKER + 1
    error = found.pop(13)
    assert str(error) == "thirteen"
    assert "in square" in error.__notes__[0]  # where it was raised, in the worker
    assert found == {i: i * i for i in range(200) if i != 13}


@pytest.mark.timeout(120)
def test_lost_worker_costs_its_tasks_alone(tmp_path):
    from distributed import Client, LocalCluster

    write_sources(tmp_path / "s", scenes=40, shape=(256, 256))
    path = tmp_path / "p.zarr"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        workers = list(client.run(os.getpid).values())
        killed = []

        def kill_one():
            while len(list(path.glob("ir_*/c.*"))) < 3:
                time.sleep(0.01)
            os.kill(workers[0], signal.SIGKILL)
            killed.append(len(list(path.glob("ir_*/c.*"))))

        thread = threading.Thread(target=kill_one, daemon=True)
        thread.start()
        report = pipeline.preprocess(tmp_path / "s", path, recipe=RECIPE, client=client)
        thread.join()
    assert killed
    assert killed[0] < 40
    assert report.count("written") == 40
    assert store.verify(path) == []


@pytest.mark.timeout(120)
def test_running_scheduler_is_found_by_its_file_and_left_running(tmp_path):
    write_sources(tmp_path / "s", scenes=2, shape=(64, 64))
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file)]
    local = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*started, *local], **quiet)
    try:
        while not file.exists() or not file.read_text().strip():
            assert scheduler.poll() is None
            time.sleep(0.05)
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-nanny",
             "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--local-directory", str(tmp_path / "w")],
            **quiet,
        )  # fmt: skip
        try:
            for _ in range(2):
                report = pipeline.preprocess(
                    tmp_path / "s", tmp_path / "p.zarr", recipe=RECIPE, scheduler=str(file)
                )
            assert report.count("kept") == 2
            assert scheduler.poll() is None
        finally:
            worker.kill()
            worker.wait()
    finally:
        scheduler.kill()
        scheduler.wait()


@pytest.mark.timeout(120)
def test_cluster_of_our_own_listens_on_loopback_alone(monkeypatch):
    import distributed

    made = []

    class Recording(distributed.LocalCluster):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            sockets = self.scheduler.http_server._sockets.values()
            made.append((self.scheduler_address, [s.getsockname()[0] for s in sockets]))

    monkeypatch.setattr(distributed, "LocalCluster", Recording)
    with executor(None, 2, None) as run:
        assert dict(run(square, [(2,), (3,)])) == {0: 4, 1: 9}
    ((address, hosts),) = made
    assert address.startswith("tcp://127.0.0.1:")
    assert set(hosts) == {"127.0.0.1"}


def test_command_says_nothing_of_its_workers(tmp_path):
    write_sources(tmp_path / "s", scenes=1, shape=(32, 32))
    command = [
        "preprocess",
        tmp_path / "s",
        "--store",
        tmp_path / "p.zarr",
        "--patch",
        "32",
        "--workers",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "gridrad_cube", *map(str, command)], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("1 scene: 1 written, 0 kept, 0 skipped, 0 failed; 1 crop\n")
    assert "distributed" not in done.stderr
