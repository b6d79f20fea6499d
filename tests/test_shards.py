"""Direct reading of shards: equal to Zarr's own reader, and never silent about damage."""

from __future__ import annotations

import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gridrad_cube.launch import cores
from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store import ArraySpec, encode, shards, write_root
from gridrad_cube.store.shards import _ABSENT, _MISSING, ShardLayout, ShardReader

DTYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
EDGE, GRID = 8, (3, 2, 2, 3)  # crops, altitudes, rows, columns


def write(folder, codec="fast", dtype="uint16", seed=0, grid=GRID):
    """An array of random values in shards, and its values as chunks (crop, altitude, row, col, y, x)."""
    crops, levels, rows, cols = grid
    shape = (crops, levels, rows * EDGE, cols * EDGE)
    spec = ArraySpec(
        name="field", dims=("crop", "altitude", "y", "x"), shape=shape, dtype=dtype, codec=codec,
        chunks=(1, 1, EDGE, EDGE), shards=(1, *shape[1:]),
    )  # fmt: skip
    values = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    files = Files(folder)
    write_root(files, {"field": spec}, {})
    for crop in range(crops):
        files.write(spec.key(crop), encode(spec, values[crop : crop + 1]))
    chunks = values.reshape(crops, levels, rows, EDGE, cols, EDGE).swapaxes(3, 4)
    return files, chunks


def open_reader(files, **options):
    layout = ShardLayout.from_metadata("field", files.read_json("field/zarr.json"))
    return ShardReader(files, layout, **options)


def shard(files, crop=0):
    return os.path.join(files.root, "field", f"c.{crop}.0.0.0")


def batch(reader, index):
    """What the reader gives, with a value in it that no code has where it gives nothing."""
    out = np.full((len(index), EDGE, EDGE), 251, reader.layout.dtype)
    return out, reader.read(np.asarray(index), out)


def alter(path, change):
    """Change a file's bytes in place."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    change(data)
    with open(path, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("codec", ["fast", "small", "raw"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_chunk_equals_what_zarr_reads(tmp_path, codec, dtype):
    files, _ = write(tmp_path, codec, dtype)
    whole = zarr.open_array(tmp_path / "field", mode="r")[...]
    index = np.indices(GRID).reshape(4, -1).T
    out, failures = batch(open_reader(files), index)
    assert not failures
    for (crop, level, row, col), patch in zip(index, out, strict=True):
        window = whole[crop, level, row * EDGE : (row + 1) * EDGE, col * EDGE : (col + 1) * EDGE]
        np.testing.assert_array_equal(patch, window)


def test_chunks_of_a_last_shard_that_the_array_fills_in_part(tmp_path):
    values = np.random.default_rng(0).integers(0, 999, (5, 3)).astype(np.uint16)
    array = zarr.create_array(tmp_path / "field", shape=(5, 3), chunks=(2, 2), shards=(4, 2), dtype="uint16",
                              compressors=[zarr.codecs.Crc32cCodec()])  # fmt: skip
    array[...] = values
    reader = open_reader(Files(tmp_path))
    out = np.empty((2, 2, 2), np.uint16)
    assert reader.read(np.array([(2, 1), (1, 0)]), out) == {}
    np.testing.assert_array_equal(out[0], [[values[4, 2], 0], [0, 0]])
    np.testing.assert_array_equal(out[1], values[2:4, :2])
    with pytest.raises(IndexError, match=r"no chunk \[3, 0\]"):
        reader.read(np.array([(3, 0)]), out)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files of an array, and its chunks."""
    return write(tmp_path_factory.mktemp("shards"))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), threads=st.integers(1, 4), room=st.sampled_from([1, 300, 10**6]))
def test_any_batch_in_any_order_with_repeats(stored, data, threads, room):
    files, chunks = stored
    place = st.tuples(*(st.integers(0, n - 1) for n in GRID))
    index = np.array(data.draw(st.lists(place, max_size=30)), np.int64).reshape(-1, 4)
    out = np.zeros((len(index) + 3, EDGE, EDGE), np.uint16)
    places = data.draw(st.permutations(range(len(out))))[: len(index)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_INDEX_BYTES", room)
        assert open_reader(files, threads=threads).read(index, out, places) == {}
    np.testing.assert_array_equal(out[places], chunks[tuple(index.T)])
    assert not np.delete(out, places, axis=0).any()


def test_a_place_outside_the_array_is_refused(stored):
    files, _ = stored
    assert open_reader(files).layout.extent == GRID
    for place in [(3, 0, 0, 0), (0, 2, 0, 0), (0, 0, 0, 3), (0, 0, -1, 0)]:
        with pytest.raises(IndexError, match="no chunk"):
            batch(open_reader(files), [(0, 0, 0, 0), place])


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 2**45), (0, 2**63), (2**63, 100), (2**62, 100), (0, 2**64 - 2)]
)
def test_an_index_of_absurd_numbers_is_damage_of_its_chunks_alone(tmp_path, offset, size):
    files, chunks = write(tmp_path)
    reader = open_reader(files)
    entries = 16 * np.prod(GRID[1:])

    def change(data):
        index = data[-entries - 4 : -4]
        index[:16] = struct.pack("<QQ", offset, size)
        data[-entries - 4 :] = index + struct.pack("<I", google_crc32c.value(bytes(index)))

    alter(shard(files), change)
    out, failures = batch(reader, [(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0)])
    assert failures == {0: "the shard is truncated"}
    np.testing.assert_array_equal(out[1:], [chunks[0, 0, 0, 1], chunks[1, 0, 0, 0]])


@pytest.mark.parametrize("places", [[0, 2], [-1, 0]])
def test_a_place_outside_the_batch_is_refused(tmp_path, places):
    reader, out = open_reader(write(tmp_path)[0]), np.zeros((2, EDGE, EDGE), np.uint16)
    with pytest.raises(IndexError, match=r"places -?[01] to [02] in a batch of 2"):
        reader.read(np.array([[0, 0, 0, 0], [0, 0, 0, 1]]), out, places)
    assert not out.any()


def test_missing_shard_and_absent_chunk_are_missing(tmp_path):
    files, chunks = write(tmp_path)
    os.remove(shard(files, 1))

    def forget(data):  # the second chunk, in an index that is whole
        body = data[-16 * 12 - 4 : -4]
        body[16:32] = struct.pack("<QQ", _ABSENT, _ABSENT)
        data[-16 * 12 - 4 :] = body + struct.pack("<I", google_crc32c.value(bytes(body)))

    alter(shard(files, 2), forget)
    index = [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 2), (2, 0, 0, 0), (2, 0, 0, 1), (2, 0, 0, 2)]
    out, failures = batch(open_reader(files), index)
    assert failures == {1: _MISSING, 2: _MISSING, 4: _MISSING}
    for row in (0, 3, 5):
        np.testing.assert_array_equal(out[row], chunks[index[row]])


@pytest.fixture
def looking(monkeypatch):
    """Open shards are looked at before each use, not once a second."""
    monkeypatch.setattr(shards, "_RECHECK_SECONDS", 0.0)


@pytest.mark.parametrize("codec", ["fast", "small", "raw"])
def test_no_flipped_byte_passes(tmp_path, codec, looking):
    files, chunks = write(tmp_path, codec, grid=(1, 1, 1, 2))
    with open(shard(files), "rb") as file:
        whole = file.read()
    reader, index = open_reader(files), [(0, 0, 0, 0), (0, 0, 0, 1)]
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        with open(shard(files), "wb") as file:
            file.write(changed)
        out, failures = batch(reader, index)
        assert failures, position
        for row in {0, 1} - set(failures):
            np.testing.assert_array_equal(out[row], chunks[index[row]])


@pytest.mark.parametrize("codec", ["fast", "raw"])
def test_no_truncated_shard_passes(tmp_path, codec, looking):
    files, _ = write(tmp_path, codec, grid=(1, 1, 1, 2))
    with open(shard(files), "rb") as file:
        whole = file.read()
    reader = open_reader(files)
    assert not batch(reader, [(0, 0, 0, 0)])[1]
    for size in range(len(whole)):
        with open(shard(files), "wb") as file:
            file.write(whole[:size])
        assert batch(reader, [(0, 0, 0, 0)])[1].keys() == {0}, size


def test_a_shard_replaced_under_the_reader_is_noticed(tmp_path, looking):
    files, before = write(tmp_path / "a", "small")
    again, after = write(tmp_path / "b", "raw", seed=1)
    index = np.indices(GRID).reshape(4, -1).T
    reader = open_reader(files)
    np.testing.assert_array_equal(batch(reader, index)[0], before[tuple(index.T)])
    # The same codecs, other values: other offsets.
    other, changed = write(tmp_path / "c", "small", seed=1)
    os.replace(shard(other, 1), shard(files, 1))
    expected = np.concatenate([before[:1], changed[1:2], before[2:]])
    out, failures = batch(reader, index)
    assert not failures
    np.testing.assert_array_equal(out, expected[tuple(index.T)])
    # Bytes that these codecs cannot have made are damage, whether or not a part of the old file was kept.
    os.replace(shard(again, 0), shard(files, 0))
    assert set(batch(reader, index)[1]) == set(range(12))
    assert after.shape == before.shape


def test_a_shard_replaced_just_now_is_read_whole_as_it_was(tmp_path, monkeypatch):
    files, before = write(tmp_path / "a")
    other, changed = write(tmp_path / "b", seed=1)
    monkeypatch.setattr(shards, "_RECHECK_SECONDS", 1e9)
    reader, index = open_reader(files), [(0, 1, 1, col) for col in range(3)]
    batch(reader, index)
    os.replace(shard(other), shard(files))
    out, failures = batch(reader, index)
    assert not failures
    np.testing.assert_array_equal(out, before[0, 1, 1])
    monkeypatch.setattr(shards, "_RECHECK_SECONDS", 0.0)
    np.testing.assert_array_equal(batch(reader, index)[0], changed[0, 1, 1])


@pytest.mark.parametrize("codec", ["small", "raw"])
def test_a_shard_rewritten_in_place_just_now_is_read_as_it_is_or_refused(tmp_path, monkeypatch, codec):
    """Nobody has looked at the file since it was opened: the old index does not fit, or the size differs."""
    monkeypatch.setattr(shards, "_RECHECK_SECONDS", 1e9)
    files, _ = write(tmp_path / "a", codec)
    other, changed = write(tmp_path / "b", codec, seed=5)
    reader, index = open_reader(files), [(0, 1, 1, col) for col in range(3)]
    batch(reader, index)
    with open(shard(other), "rb") as file:
        data = file.read()
    with open(shard(files), "wb") as file:
        file.write(data)
    out, failures = batch(reader, index)
    assert not failures
    np.testing.assert_array_equal(out, changed[0, 1, 1])
    with open(shard(files), "wb") as file:
        file.write(data[: len(data) // 2])
    assert batch(reader, index)[1].keys() == {0, 1, 2}


def test_a_shard_rewritten_in_place_with_the_old_time_is_noticed(tmp_path):
    files, _ = write(tmp_path / "a", "small")
    other, changed = write(tmp_path / "b", "small", seed=5)
    reader, index = open_reader(files), [(0, 1, 1, col) for col in range(3)]
    batch(reader, index)
    path, status = shard(files), os.stat(shard(files))
    with open(shard(other), "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # As if the sizes were equal too: the old index under the new file's mark.
    (old,) = reader._indexes.values()
    reader._indexes[0] = ((status.st_dev, status.st_ino, len(data), status.st_mtime_ns), old[1])
    out, failures = batch(reader, index)
    assert not failures
    np.testing.assert_array_equal(out, changed[0, 1, 1])


def test_indexes_kept_stay_within_their_bytes_whoever_keeps_them(tmp_path, monkeypatch):
    """Threads of several batches at once read and keep the same indexes, again and again."""
    monkeypatch.setattr(shards, "_INDEX_BYTES", 5 * (2 * 16 + 4))
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 1)
    files, chunks = write(tmp_path, grid=(12, 1, 1, 2))
    reader, index = open_reader(files, threads=2), np.indices((12, 1, 1, 2)).reshape(4, -1).T

    def work():
        for _ in range(20):
            np.testing.assert_array_equal(batch(reader, index)[0], chunks[tuple(index.T)])

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(work) for _ in range(3)]:
            job.result()
    assert len(reader._indexes) == 5


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_descriptors_stay_few(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 5)
    shards._OPEN.clear()
    files, _ = write(tmp_path, grid=(60, 1, 1, 2))
    at_first = len(os.listdir("/proc/self/fd"))
    reader, most, stop = open_reader(files, threads=3), 0, threading.Event()
    index = np.indices((60, 1, 1, 2)).reshape(4, -1).T
    batch(reader, index)
    before = len(os.listdir("/proc/self/fd"))
    assert before == at_first + 5

    def watch():
        nonlocal most
        while not stop.is_set():
            most = max(most, len(os.listdir("/proc/self/fd")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        batch(reader, index)
    stop.set()
    watcher.join()
    assert before <= most <= before + 7  # two a thread, and the watcher's own
    assert len(os.listdir("/proc/self/fd")) == before
    del reader
    assert len(os.listdir("/proc/self/fd")) == at_first


def test_a_remote_shard_is_asked_once_for_all_that_is_wanted_of_it(tmp_path, monkeypatch):
    local, chunks = write(tmp_path)
    files = Files(f"memory://{tmp_path.name}")
    for key in ("field/zarr.json", *(f"field/c.{crop}.0.0.0" for crop in range(3))):
        files.write(key, local.read(key))
    reader, index = open_reader(files), np.indices(GRID).reshape(4, -1).T[::-1]
    asked = []
    for name in ("read", "read_tail", "_read_ranges"):
        method = getattr(type(files), name)
        monkeypatch.setattr(
            type(files), name, lambda self, *args, m=method: asked.append(args) or m(self, *args)
        )
    for again in (False, True):
        asked.clear()
        out, failures = batch(reader, index)
        assert not failures
        np.testing.assert_array_equal(out, chunks[tuple(index.T)])
        assert len(asked) == (3 if again else 6)  # each shard's patches; at first its index too
        assert all(len(call[1]) == 1 for call in asked if len(call) == 3)  # one range of each

    # What the index says is believed until a checksum differs, and then read again.
    other, changed = write(tmp_path / "b", "small", seed=1)
    files.write("field/c.1.0.0.0", other.read("field/c.1.0.0.0"))
    files.remove("field/c.2.0.0.0")
    files.write("field/c.0.0.0.0", local.read("field/c.0.0.0.0")[:100])
    out, failures = batch(reader, index)
    assert {int(index[row][0]): what for row, what in failures.items()} == {
        0: "the shard is truncated to 100 bytes", 2: _MISSING
    }  # fmt: skip
    np.testing.assert_array_equal(out[12:24], changed[1].reshape(12, EDGE, EDGE)[::-1])


def test_an_error_of_the_disk_is_no_damage(tmp_path):
    files, _ = write(tmp_path)
    os.remove(shard(files))
    os.mkdir(shard(files))
    with pytest.raises(IsADirectoryError) as caught:
        batch(open_reader(files), [(0, 0, 0, 0)])
    assert "c.0.0.0.0" in caught.value.__notes__[0]


@pytest.mark.timeout(60)
def test_callers_that_share_threads_neither_wait_for_each_other_nor_count_the_failed(tmp_path, monkeypatch):
    files, chunks = write(tmp_path)
    reader, go_on = open_reader(files, threads=4), threading.Event()
    index = np.indices(GRID).reshape(4, -1).T
    first, others = index[index[:, 0] == 0], index[index[:, 0] > 0]
    started, read = threading.Barrier(5), shards._LocalShard.read

    def wait(self, wanted):
        if self._path == shard(files, 0):
            started.wait(timeout=30)
            assert go_on.wait(timeout=10)
        return read(self, wanted)

    with monkeypatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(shards._LocalShard, "read", wait)
        slow = pool.submit(batch, reader, first)
        started.wait(timeout=30)  # it and its helpers have all threads
        try:
            out, failures = batch(reader, others)
        finally:
            go_on.set()
        assert not failures
        np.testing.assert_array_equal(out, chunks[tuple(others.T)])
        np.testing.assert_array_equal(slow.result()[0], chunks[tuple(first.T)])

    def fail(*_):
        raise OSError("disk gone")

    for thing, name in ((shards._LocalShard, "read"), (reader._pool, "submit")):
        with monkeypatch.context() as patch:
            patch.setattr(thing, name, fail)
            with pytest.raises(OSError, match="disk gone"):
                batch(reader, index)
    assert reader._callers == 0
    assert not batch(reader, index)[1]


def test_layouts_that_are_not_understood_are_refused(tmp_path):
    blosc, crc = zarr.codecs.BloscCodec(typesize=2), zarr.codecs.Crc32cCodec()

    def layout(**options):
        defaults = {
            "dtype": "uint16",
            "shape": (4, 8),
            "chunks": (2, 4),
            "shards": (4, 8),
            "compressors": [crc],
        }
        options = defaults | options
        zarr.create_array(tmp_path / "a", overwrite=True, **options)
        return ShardLayout.from_metadata("a", Files(tmp_path).read_json("a/zarr.json"))

    assert layout(compressors=[blosc, crc]).compressed
    assert not layout(compressors=[crc]).compressed
    for options in (
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"dtype": "bool"},
        {"dtype": "complex64"},
        {"shards": None},
        {"compressors": None},
        {"compressors": [blosc]},
        {"compressors": [zarr.codecs.ZstdCodec(), crc]},
        {"compressors": [crc, blosc]},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
        {"shards": {"shape": (4, 8), "index_location": "start"}},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ):
        with pytest.raises(SchemaError, match="a: not stored in shards as gridrad-cube writes them"):
            layout(**options)


def test_cores_are_those_of_this_process():
    assert 1 <= cores() <= (os.cpu_count() or 1)
