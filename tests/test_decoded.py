"""Patches decoded as they are read: the same values as decoding afterwards, however they are read."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cubes import COLS, IR, PATCH, ROWS, VIS, Z, damaged_store, is_damaged, random_codes, write_cube
from torch.utils.data import DataLoader

from gridrad_cube import store as stores
from gridrad_cube.datasets import PatchDataset, PatchLoader, decoding
from gridrad_cube.datasets.compiled import compiled_decoder
from gridrad_cube.datasets.partners import PairDataset
from gridrad_cube.schema import Packing, SchemaError
from gridrad_cube.store import MissingChunkError, PatchReader, ShardCache, compiled, shards

SIGNED = Packing(dtype="int16", scale_factor=0.01, add_offset=300.0, fill_value=-32768, valid_maximum=20000)
WIDE = Packing(dtype="int32", scale_factor=0.01, fill_value=-1)
PLAIN = {name: {"mean": 1.0, "std": 2.0} for name in (IR, VIS)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["compiled", "python", "no numba"], autouse=True)
def way(request, monkeypatch):
    """All ways of reading and decoding on a CPU."""
    monkeypatch.setattr(compiled, "COMPILE_AFTER", -1 if request.param == "compiled" else 10**9)
    if request.param == "no numba":
        monkeypatch.setattr(decoding, "compiled_decoder", lambda: None)
    elif compiled.compiled_reader() is None:
        pytest.skip("numba is not installed, or a library is built in another way")


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """Three crops: codes of two dtypes, and radar with all its special codes at three altitudes."""
    shape, rng = (3, ROWS * PATCH, COLS * PATCH), np.random.default_rng(3)
    signed = rng.integers(-20000, 22000, shape).astype(np.int16)
    signed[rng.random(shape) < 0.1] = SIGNED.fill_value
    pixels = {
        IR: random_codes(IR, shape, 1), VIS: signed, Z: random_codes(Z, (3, 3, *shape[1:]), 2),
    }  # fmt: skip
    return write_cube(
        tmp_path_factory.mktemp("cube") / "s.zarr", pixels, packings={VIS: SIGNED}, statistics=PLAIN
    )


def assert_same(batch, expected, values, valid):
    assert torch.equal(batch.index, expected.index)
    assert torch.equal(batch.channel, expected.channel)
    assert batch.codes.dtype == values.dtype
    assert torch.equal(batch.codes, values)
    assert torch.equal(batch.valid, valid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "coarsen"), [("each", 1), ("stack", 1), ("each", 2)])
def test_values_are_those_of_decoding_afterwards(cube, mode, coarsen, dtype):
    packed = PatchDataset(cube, channel_mode=mode, coarsen=coarsen)
    data = PatchDataset(cube, channel_mode=mode, coarsen=coarsen, decoded=dtype)
    index = np.random.default_rng(0).permutation(len(data))[:70]
    expected, batch = packed.__getitems__(index), data.__getitems__(index)
    values, valid = packed.decode(expected, dtype=dtype)
    assert 0 < valid.sum() < valid.numel()
    assert_same(batch, expected, values, valid)
    again, mask = data.decode(batch, dtype=dtype)
    assert torch.equal(again, values)
    assert torch.equal(mask, valid)
    assert data.decode(batch, dtype=torch.float64)[0].dtype == torch.float64


def test_wide_codes_are_decoded_too(tmp_path):
    codes = np.random.default_rng(0).integers(-1, 10**6, (2, ROWS * PATCH, COLS * PATCH)).astype(np.int32)
    cube = write_cube(tmp_path / "s.zarr", {IR: codes}, packings={IR: WIDE})
    packed, data = PatchDataset(cube), PatchDataset(cube, decoded=torch.float32)
    expected = packed.__getitems__(range(len(data)))
    assert_same(data.__getitems__(range(len(data))), expected, *packed.decode(expected))


def test_damage_raises_or_is_left_out_as_ever(tmp_path):
    path, _ = damaged_store(tmp_path)
    with pytest.raises(MissingChunkError, match=f"{VIS} at crop 2, row 0, col 0 cannot be read"):
        PatchDataset(path, channels=VIS, decoded=torch.float32).__getitems__(range(3 * ROWS * COLS))
    packed = PatchDataset(path, on_damage="skip")
    data = PatchDataset(path, on_damage="skip", decoded=torch.float32)
    batch, expected = (d.__getitems__(range(len(data))) for d in (data, packed))
    assert batch.damaged.tolist() == [i for i in range(len(data)) if is_damaged(data, i)]
    assert_same(batch, expected, *packed.decode(expected))
    assert data.__getitems__([int(batch.damaged[0])]).codes.shape == (0, 1, PATCH, PATCH)


@pytest.mark.timeout(120)
def test_loaders_and_pairs_hand_values_on(cube):
    packed, data = PatchDataset(cube), PatchDataset(cube, decoded=torch.float32)
    expected = packed.__getitems__(range(len(data)))
    values, valid = packed.decode(expected)
    for loader in (
        PatchLoader(data, range(len(data)), 40, threads=3, drop_last=False),
        DataLoader(data, batch_size=40),
        DataLoader(data, batch_size=40, num_workers=1, multiprocessing_context="forkserver"),
    ):
        batches = list(loader)
        assert torch.equal(torch.cat([batch.codes for batch in batches]), values)
        assert torch.equal(torch.cat([batch.valid for batch in batches]), valid)
    pairs = PairDataset(data, np.roll(np.arange(len(data)), -1)).__getitems__([4, 9])
    assert torch.equal(pairs.codes, values[[4, 9, 5, 10]])
    assert torch.equal(pairs.valid, valid[[4, 9, 5, 10]])


def put_far(cube, url):
    """A copy of a store at a URL."""
    there = stores.Files(url)
    for file in cube.rglob("*"):
        if file.is_file():
            there.write(str(file.relative_to(cube)), file.read_bytes())
    return url


def test_far_stores_and_cached_shards_give_the_same(cube, tmp_path):
    packed = PatchDataset(cube)
    expected = packed.__getitems__(range(len(packed)))
    values, valid = packed.decode(expected)
    far = put_far(cube, "memory://decoded/s.zarr")
    for cache in (None, ShardCache(tmp_path / "shards", max_bytes=10**9)):
        data = PatchDataset(far, decoded=torch.float32, cache=cache)
        for _ in range(2):  # the second time from the cache
            assert_same(data.__getitems__(range(len(data))), expected, values, valid)


def test_far_stores_leave_machine_code_alone(cube, monkeypatch):
    def never():
        raise AssertionError("compiled for nothing")

    monkeypatch.setattr(compiled, "COMPILE_AFTER", -1)
    monkeypatch.setattr(shards, "compiled_reader", never)
    with pytest.raises(AssertionError, match="for nothing"):
        PatchReader(cube).read(IR, np.array([[0, 0, 0]]))
    far = put_far(cube, "memory://alone/s.zarr")
    assert PatchReader(far).read(IR, np.array([[0, 0, 0]])).any()


def test_patches_that_only_tensorstore_knows_give_the_same(cube):
    packed, data = PatchDataset(cube), PatchDataset(cube, decoded=torch.float32)
    data._reader = PatchReader(cube, direct=False)
    expected = packed.__getitems__(range(len(data)))
    assert_same(data.__getitems__(range(len(data))), expected, *packed.decode(expected))


def test_a_batch_that_is_not_contiguous_is_filled(cube):
    index = np.indices((3, ROWS, COLS)).reshape(3, -1).T
    reader = PatchReader(cube)
    whole = np.zeros((len(index), 2, PATCH, PATCH), np.uint16)
    reader.read(IR, index, whole[:, 1])
    np.testing.assert_array_equal(whole[:, 1], reader.read(IR, index))
    assert not whole[:, 0].any()


def test_what_cannot_be_filled_is_refused(cube):
    data = PatchDataset(cube, channels=IR)
    index = np.array([[0, 0, 0], [0, 0, 1]])
    values, valid = torch.zeros(2, 1, PATCH, PATCH), torch.zeros(2, 1, PATCH, PATCH, dtype=torch.bool)
    decoder = decoding.decoder_into(values, valid, torch.zeros(2, dtype=torch.int64), data.normalizations)
    if decoder is not None:
        with pytest.raises(IndexError, match="places 0 to 2 in a batch of 2"):
            PatchReader(cube).read_undamaged(IR, index, decoder(np.dtype("uint16")), places=[0, 2])
        with pytest.raises(IndexError, match="place 2 in a batch of 2"):
            PatchReader(cube, direct=False).read_undamaged(
                IR, index, decoder(np.dtype("uint16")), places=[0, 2]
            )
    out = np.zeros((2, PATCH, PATCH), np.uint16)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        PatchReader(cube).read(IR, index, out)
    for dtype in (torch.uint8, "float32"):
        with pytest.raises(SchemaError, match=r"decoded: got .*; expected a floating dtype of torch"):
            PatchDataset(cube, decoded=dtype)


def test_threads_share_one_decoder():
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: compiled_decoder(), range(8)))
    assert len(set(map(id, found))) == 1


def test_libraries_that_are_built_in_another_way_leave_reading_to_python(cube, monkeypatch):
    expected = PatchReader(cube).read(IR, np.array([[0, 0, 0], [1, 1, 1]]))
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda path: object())  # none of the names
        assert compiled._functions() is None
    with monkeypatch.context() as patch:
        patch.setattr(compiled.google_crc32c, "value", lambda data: 0)  # another checksum
        assert compiled._functions() is None
    monkeypatch.setattr(compiled, "COMPILE_AFTER", -1)
    monkeypatch.setattr(shards, "compiled_reader", lambda: None)
    np.testing.assert_array_equal(PatchReader(cube).read(IR, np.array([[0, 0, 0], [1, 1, 1]])), expected)


def test_few_patches_are_read_without_numba(cube):
    code = (
        "import sys, numpy as np; from gridrad_cube.store import PatchReader; "
        f"PatchReader({str(cube)!r}).read({IR!r}, np.zeros((100, 3), int)); print('numba' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
