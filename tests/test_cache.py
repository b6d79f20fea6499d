"""Shards of a far store kept nearby: the same values, within the budget, from however many threads and processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cubes import COLS, IR, PATCH, ROWS, random_codes, write_cube

from gridrad_cube.datasets import PatchDataset, PatchLoader
from gridrad_cube.store import Files, MissingChunkError, PatchReader, ShardCache

CROPS = 6
pytestmark = pytest.mark.timeout(180)


#: The class that reads these stores.
KIND = type(Files("memory://any"))


@pytest.fixture
def far(tmp_path, request):
    """A store on memory://, its codes, its shards' size, and what was read of its shards."""
    codes = random_codes(IR, (CROPS, ROWS * PATCH, COLS * PATCH))
    local = write_cube(tmp_path / "near.zarr", {IR: codes})
    url = f"memory://{request.node.name}/patches.zarr"
    memory = fsspec.filesystem("memory")
    memory.put(str(local), url.removeprefix("memory:/"), recursive=True)
    (size, *_) = (path.stat().st_size for path in (local / IR).glob("c.*"))
    yield url, codes, size
    memory.rm(request.node.name, recursive=True)


@pytest.fixture
def fetched(monkeypatch):
    """Keys of the shards that were read whole, and of those that a part was read of."""
    whole: list[str] = []
    parts: list[str] = []
    for name, seen in (("read", whole), ("read_tail", parts), ("read_ranges", parts)):
        method = getattr(KIND, name)

        def spy(self, key, *arguments, method=method, seen=seen):
            if "/c." in key:
                seen.append(key)
            return method(self, key, *arguments)

        monkeypatch.setattr(KIND, name, spy)
    return whole, parts


def everything() -> np.ndarray:
    return np.indices((CROPS, ROWS, COLS)).reshape(3, -1).T


def check(patches: np.ndarray, codes: np.ndarray, index: np.ndarray) -> None:
    for (crop, row, col), patch in zip(index, patches, strict=True):
        y, x = (slice(i * PATCH, (i + 1) * PATCH) for i in (row, col))
        np.testing.assert_array_equal(patch, codes[crop, y, x])


def test_a_shard_is_fetched_once_and_whole(far, fetched, tmp_path):
    url, codes, _ = far
    whole, parts = fetched
    cache = ShardCache(tmp_path / "cache", 10**9)
    index = everything()
    for reader in (PatchReader(url, cache=cache), pickle.loads(pickle.dumps(PatchReader(url, cache=cache)))):
        check(reader.read(IR, index), codes, index)
    assert sorted(whole) == [f"{IR}/c.{crop}.0.0" for crop in range(CROPS)]
    assert not parts
    assert len(list((tmp_path / "cache").iterdir())) == CROPS


def test_the_budget_holds_and_the_least_recently_used_goes_first(far, fetched, tmp_path):
    url, codes, size = far
    whole, _ = fetched
    reader = PatchReader(url, cache=ShardCache(tmp_path / "cache", 3 * size + size // 2))
    for crop in (0, 1, 2, 0, 3, 0, 4, 0):
        index = np.array([[crop, 1, 1]])
        check(reader.read(IR, index), codes, index)
        kept = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
        assert kept <= 3 * size + size // 2
    assert [int(key.split(".")[1]) for key in whole] == [0, 1, 2, 3, 4]


def test_shards_above_the_budget_are_read_where_they_are(far, fetched, tmp_path):
    url, codes, size = far
    reader = PatchReader(url, cache=ShardCache(tmp_path / "cache", size // 2))
    check(reader.read(IR, everything()), codes, everything())
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="max_bytes: got 0"):
        ShardCache(tmp_path, 0)


def test_a_damaged_copy_is_fetched_again_and_damage_of_the_store_is_not_hidden(far, fetched, tmp_path):
    url, codes, _ = far
    reader = PatchReader(url, cache=ShardCache(tmp_path / "cache", 10**9))
    index = np.array([[2, 0, 0]])
    reader.read(IR, index)
    (copy,) = (tmp_path / "cache").iterdir()
    copy.write_bytes(b"?" * copy.stat().st_size)
    check(reader.read(IR, index), codes, index)
    files = Files(url)
    files.write(f"{IR}/c.3.0.0", b"?" * 1000)
    with pytest.raises(MissingChunkError, match=f"{IR} at crop 3, row 0, col 0 cannot be read"):
        reader.read(IR, np.array([[3, 0, 0]]))
    files.remove(f"{IR}/c.4.0.0")
    with pytest.raises(MissingChunkError, match=f"{IR} at crop 4, row 0, col 0 is missing"):
        reader.read(IR, np.array([[4, 0, 0]]))


def test_a_store_made_anew_is_fetched_anew(far, tmp_path):
    url, codes, _ = far
    cache, index = ShardCache(tmp_path / "cache", 10**9), np.array([[0, 0, 0]])
    check(PatchReader(url, cache=cache).read(IR, index), codes, index)
    other = random_codes(IR, codes.shape, seed=9)
    statistics = {IR: {"mean": 1.0, "std": 1.0}}
    again = write_cube(tmp_path / "again.zarr", {IR: other}, statistics=statistics)
    fsspec.filesystem("memory").put(str(again), url.removeprefix("memory:/"), recursive=True)
    fsspec.filesystem("memory").pipe_file(f"{url}/zarr.json", (again / "zarr.json").read_bytes())
    fsspec.filesystem("memory").pipe_file(f"{url}/{IR}/c.0.0.0", (again / IR / "c.0.0.0").read_bytes())
    check(PatchReader(url, cache=cache).read(IR, index), other, index)


def test_a_dataset_and_its_loader_use_the_cache(far, fetched, tmp_path):
    url, codes, size = far
    whole, parts = fetched
    data = PatchDataset(url, cache=ShardCache(tmp_path / "cache", 2 * size + 100))
    order = np.random.default_rng(0).permutation(len(data))
    for batch in PatchLoader(data, order, 8, threads=3, drop_last=False):
        table = np.stack([data.table.crop, data.table.row, data.table.col], axis=1)[batch.index.numpy()]
        check(batch.codes.numpy()[:, 0], codes, table)
    assert not parts
    assert len(whole) > CROPS  # the budget is for two


def test_threads_that_want_the_same_shard_fetch_it_once(far, fetched, tmp_path):
    url, codes, _ = far
    whole, _ = fetched
    reader, errors = PatchReader(url, cache=ShardCache(tmp_path / "cache", 10**9)), []

    def work():
        try:
            check(reader.read(IR, everything()), codes, everything())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(whole) == [f"{IR}/c.{crop}.0.0" for crop in range(CROPS)]


SHARING = """
import sys
import numpy as np
from gridrad_cube.store import PatchReader, ShardCache

store, folder, size, seed = sys.argv[1:]
reader = PatchReader(store, cache=ShardCache(folder, int(size)))
plain = PatchReader(store)
rng = np.random.default_rng(int(seed))
for _ in range(150):
    index = np.stack([rng.integers(0, n, 7) for n in (6, 4, 5)], axis=1)
    name = "ir_brightness_temperature"
    assert (reader.read(name, index) == plain.read(name, index)).all()
"""


def test_processes_share_a_cache_that_is_always_too_small(tmp_path):
    codes = random_codes(IR, (CROPS, ROWS * PATCH, COLS * PATCH))
    store: Path = write_cube(tmp_path / "near.zarr", {IR: codes})
    size = 2 * max(path.stat().st_size for path in (store / IR).glob("c.*"))
    command = [sys.executable, "-c", SHARING, str(store), str(tmp_path / "cache"), str(size)]
    processes = [
        subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    left = [path for path in (tmp_path / "cache").iterdir()]
    assert not [path for path in left if path.suffix != ".shard"]
    # Each may have been writing one more.
    assert sum(os.path.getsize(path) for path in left) <= size + 3 * size // 2


def test_what_a_killed_process_left_goes_when_it_is_old(far, tmp_path):
    url, _, size = far
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, age in (("old", 7200), ("new", 60)):
        path = folder / f".{name}.partial"
        path.write_bytes(b"?" * size)
        os.utime(path, (time.time() - age,) * 2)
    reader = PatchReader(url, cache=ShardCache(folder, 2 * size + size // 2))
    reader.read(IR, everything())
    names = {path.name for path in folder.iterdir()}
    assert ".new.partial" in names
    assert ".old.partial" not in names


def test_a_folder_that_cannot_be_kept_is_no_missing_shard(far, tmp_path, monkeypatch):
    url, _, _ = far

    def gone(*arguments):
        raise FileNotFoundError("gone")

    monkeypatch.setattr("os.replace", gone)
    with pytest.raises(OSError, match="cache: removed while it was in use"):
        PatchReader(url, cache=ShardCache(tmp_path / "cache", 10**9)).read(IR, everything())
