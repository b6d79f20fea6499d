"""Worker processes, however they are started: they give the same batches or say why not, and nothing hangs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cubes import IR, Z, clean_pixels, damaged_store, write_cube
from torch.utils.data import DataLoader

from gridrad_cube.datasets import EpochSampler, PatchDataset
from gridrad_cube.launch import cores
from gridrad_cube.store import MissingChunkError, open_cube

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Five crops of infrared and of radar at three altitudes, all clean."""
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", clean_pixels())


def gone(processes) -> bool:
    """Whether processes end within a while."""
    until = time.monotonic() + 30
    while any(p.is_alive() for p in processes) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(p.is_alive() for p in processes)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_stay_for_epochs_and_go_when_left_early(cube, method):
    data = PatchDataset(cube, channels=Z)
    data.__getitems__([0])  # an open reader in the parent must not reach the workers
    sampler = EpochSampler(len(data), batch_size=32, seed=5)
    loader = DataLoader(
        data, batch_size=32, sampler=sampler, num_workers=2, multiprocessing_context=method,
        persistent_workers=True, drop_last=True,
    )  # fmt: skip
    workers = []
    for epoch in range(2):
        assert sampler.epoch == epoch
        for batch, index in zip(loader, sampler.batches(), strict=True):
            assert batch.index.tolist() == index.tolist()
            assert torch.equal(batch.codes, data.__getitems__(index).codes)
        workers.append(multiprocessing.active_children())
        sampler.advance(sampler.steps_left)
    assert len(workers[0]) == 2
    assert {p.pid for p in workers[0]} == {p.pid for p in workers[1]}
    stream = iter(loader)
    next(stream)
    del stream, loader
    assert gone(workers[0])


def test_a_workers_error_reaches_the_caller_with_the_patch(tmp_path):
    store, _ = damaged_store(tmp_path)
    data = PatchDataset(store, channels=IR)
    loader = DataLoader(data, batch_size=10, num_workers=1, multiprocessing_context="forkserver")
    with pytest.raises(MissingChunkError, match=f"{IR} at crop 1, row 0, col 0 is missing"):
        list(loader)
    workers = multiprocessing.active_children()
    del loader
    gc.collect()  # the error's traceback holds the iterator
    assert gone(workers)


def run(script: str, *arguments: str) -> str:
    """Output of a fresh Python that runs some lines; a failure where it hangs or fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORKED = """
import sys
from torch.utils.data import DataLoader
from gridrad_cube.datasets import PatchDataset

def loader(data):
    return DataLoader(data, batch_size=50, num_workers=2, multiprocessing_context="fork")

data = PatchDataset(sys.argv[1])
batches = list(loader(data))  # nothing read in this process yet
assert [i for batch in batches for i in batch.index.tolist()] == list(range(len(data)))
whole = data.__getitems__(range(len(data)))  # now it has
assert (whole.codes.numpy() == [code for batch in batches for code in batch.codes.numpy()]).all()
try:
    list(loader(data))
except RuntimeError as error:
    print(str(error).strip().splitlines()[-1])
"""


@FORKS
def test_fork_works_before_a_read_and_is_refused_after(cube):
    assert "before the process forked, and its threads did not survive. Start workers with" in run(
        FORKED, str(cube)
    )


LEFT = """
import sys
from gridrad_cube.datasets import PatchDataset, PatchLoader

data = PatchDataset(sys.argv[1])
stream = iter(PatchLoader(data, [range(8)] * 200, prefetch=8, threads=3))
next(stream)
print("one")
"""


def test_a_program_that_ends_in_mid_epoch_ends(cube):
    assert run(LEFT, str(cube)) == "one\n"


def _read_lazily(dataset, answers) -> None:
    answers.put(int(dataset[IR][2].values.sum()))


@FORKS
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lazy_dataset_that_was_read_reads_in_a_forked_child(cube):
    dataset = open_cube(cube)
    expected = int(dataset[IR][2].fillna(0).values.sum())
    answers = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(
        target=_read_lazily, args=(dataset.fillna(0), answers)
    )
    child.start()
    assert answers.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0


class Threads(PatchDataset):
    """Says how many threads read, in each worker."""

    def __getitems__(self, indices):
        return super().__getitems__(indices), self._reader._shards[IR].threads


def as_it_is(batch):
    return batch


def test_a_worker_reads_with_one_thread(cube):
    data = Threads(cube, channels=IR)
    assert data.__getitems__([0])[1] == min(cores(), 8)
    loader = DataLoader(
        data, batch_size=50, num_workers=1, multiprocessing_context="forkserver", collate_fn=as_it_is
    )
    assert {threads for _, threads in loader} == {1}
