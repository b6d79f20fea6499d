"""Batches read ahead, and by worker processes."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from cubes import COLS, IR, PATCH, ROWS, FakeDataset, Z, clean_pixels, random_codes, whole_epoch, write_cube
from torch.utils.data import DataLoader

from gridrad_cube.datasets import (
    EpochSampler,
    PatchDataset,
    PatchLoader,
)
from gridrad_cube.store import (
    MissingChunkError,
)


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Five crops of infrared and of radar at three altitudes, all clean."""
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", clean_pixels())


def batches(samples: int, size: int = 10) -> list[list[int]]:
    return [list(range(i, min(i + size, samples))) for i in range(0, samples, size)]


@pytest.mark.parametrize("threads", [1, 3])
def test_loader_hands_out_batches_in_order(threads):
    data = FakeDataset(200, seconds=0.002)
    loader = PatchLoader(data, batches(200, 7)[:-1], threads=threads, prefetch=5, device="cpu")
    out = [batch.index.tolist() for batch in loader]
    assert out == [list(range(i, i + 7)) for i in range(0, 196, 7)]
    assert len(out) == len(loader) == 28
    assert loader.seconds_waiting > 0


def test_loader_reads_no_further_ahead_than_asked():
    data = FakeDataset(100)
    stream = iter(PatchLoader(data, batches(100), prefetch=2))
    next(stream)
    time.sleep(0.05)
    assert len(data.read) <= 3
    stream.close()


def test_loader_left_early_or_failed_leaves_no_thread():
    before = threading.active_count()
    stream = iter(PatchLoader(FakeDataset(1000, seconds=0.001), batches(1000), threads=2))
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(OSError, match="disk gone at 31"):
        list(PatchLoader(FakeDataset(1000, fail=31), batches(1000), threads=2))
    assert threading.active_count() == before


def test_loader_error_names_the_samples():
    with pytest.raises(OSError, match="disk gone") as caught:
        list(PatchLoader(FakeDataset(100, fail=31), batches(100)))
    notes = " ".join(caught.value.__notes__)
    assert "[30, 31, 32, 33, 34, 35, 36, 37, 38, 39]" in notes
    assert "{'crop': 30, 'row': 1}" in notes


def test_loader_error_of_a_store_names_the_patch(tmp_path):
    store = write_cube(tmp_path / "s.zarr", {IR: random_codes(IR, (3, ROWS * PATCH, COLS * PATCH))})
    (shard,) = (store / IR).glob("c.2.*")
    shard.write_bytes(shard.read_bytes()[:100])
    data = PatchDataset(store)
    stream = iter(PatchLoader(data, batches(len(data), ROWS * COLS)))
    next(stream)
    next(stream)
    with pytest.raises(MissingChunkError, match=f"{IR} at crop 2, row 0, col 0 cannot be read"):
        next(stream)


def test_loader_advances_the_sampler_by_what_it_hands_out(cube):
    data = PatchDataset(cube, channels=Z)
    sampler = EpochSampler(data.strata, batch_size=16, seed=1)
    expected = whole_epoch(sampler)
    loader = PatchLoader(data, sampler, prefetch=6)
    assert len(loader) == 300 // 16
    seen = []
    for step, batch in enumerate(loader):
        seen += batch.index.tolist()
        assert sampler.state_dict()["position"] == 16 * (step + 1)
        if step == 4:
            break
    resumed = EpochSampler(data.strata, batch_size=16, seed=99)
    resumed.load_state_dict(sampler.state_dict())
    for batch in PatchLoader(data, resumed):
        seen += batch.index.tolist()
    assert seen == expected[: 300 // 16 * 16]
    assert (resumed.epoch, resumed.position) == (1, 0)


def test_loader_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="threads 0"):
        PatchLoader(FakeDataset(30), batches(30), threads=0)


def test_dataset_pickles_without_its_open_reader(cube):
    data = PatchDataset(cube)
    expected = data.__getitems__([1, 2, 3])
    copy = pickle.loads(pickle.dumps(data))
    assert "_reader" not in vars(copy)
    assert torch.equal(copy.__getitems__([1, 2, 3]).codes, expected.codes)


@pytest.mark.timeout(120)
def test_dataloader_in_process_gives_whole_batches(cube):
    data = PatchDataset(cube)
    sampler = EpochSampler(data.strata, batch_size=32, seed=5)
    batches = list(DataLoader(data, batch_size=32, sampler=sampler, drop_last=True))
    assert [b.index.tolist() for b in batches] == [b.tolist() for b in sampler.batches()]
    assert batches[0].codes.shape == (32, 1, PATCH, PATCH)
    assert sampler.position == 0


def test_loader_keeps_no_more_batches_than_it_reads_ahead():
    alive = weakref.WeakSet()

    class Watched(FakeDataset):
        def __getitems__(self, index):
            batch = super().__getitems__(index)
            alive.add(batch.codes)
            return batch

    most = 0
    for _ in PatchLoader(Watched(2000), batches(2000), prefetch=3, threads=2):
        most = max(most, len(alive))
    assert most <= 3 + 1  # read ahead, and the caller's
    assert len(alive) <= 1


def test_loader_counts_the_time_that_its_caller_waits(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("gridrad_cube.datasets.loader.time.perf_counter", lambda: next(clock))
    loader = PatchLoader(FakeDataset(100), batches(100))
    for number, _ in enumerate(loader):
        assert loader.seconds_waiting == number + 1  # one tick between the two looks at the clock
