"""Patches, crops and windows of pixels: equal to what plain xarray reads, for any content."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from cubes import COLS, IR, PATCH, ROWS, VIS, Z, random_codes, write_cube
from hypothesis import given, settings
from hypothesis import strategies as st

from gridrad_cube.datasets import PatchDataset
from gridrad_cube.schema import Flag, Packing, SchemaError
from gridrad_cube.store import MissingChunkError, PatchReader, open_cube

CROPS = 5
PACKINGS = {
    "uint8": Packing(dtype="uint8", scale_factor=2.0, fill_value=255),
    "int16": Packing(dtype="int16", scale_factor=0.1, fill_value=-32768),
    "uint16": Packing(scale_factor=0.01, fill_value=0),
    "int32": Packing(dtype="int32", scale_factor=0.001, fill_value=-1),
    "float32": Packing(dtype="float32", fill_value=float("nan")),
}


def some_codes(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        codes = rng.normal(200, 30, shape).astype(dtype)
        codes[rng.random(shape) < 0.05] = np.nan
        return codes
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


@pytest.fixture(scope="module", params=itertools.product(PACKINGS, ("fast", "small", "raw")), ids="-".join)
def stored(request, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A cube of a dtype and a codec: a flat channel that crop 1 lacks, and one with altitudes; crop 3 not written."""
    dtype, codec = request.param
    shape = (ROWS * PATCH, COLS * PATCH)
    pixels = {VIS: some_codes(dtype, (CROPS, *shape), 1), Z: some_codes(dtype, (CROPS, 3, *shape), 2)}
    flags = np.zeros((CROPS, ROWS, COLS), np.uint16)
    flags[1] = Flag.channel_absent
    small = {f"{VIS}_flags": flags, "status": np.array([0, 0, 0, 2, 0], np.uint8)}
    packings = dict.fromkeys(pixels, PACKINGS[dtype])
    path = tmp_path_factory.mktemp("quality") / "patches.zarr"
    write_cube(path, pixels, small=small, packings=packings, codec=codec, statistics={})
    plain = xr.open_zarr(path, chunks=None, mask_and_scale=False)
    values = {name: plain[name].values for name in pixels}
    for name in pixels:
        written = [0, 2, 4] if name == VIS else [0, 1, 2, 4]
        np.testing.assert_array_equal(values[name][written], pixels[name][written])
    return path, values


def indices(draw, ndim: int, crops: list[int]) -> np.ndarray:
    places = [st.sampled_from(crops), st.integers(0, ROWS - 1), st.integers(0, COLS - 1)]
    if ndim == 4:
        places.insert(1, st.integers(0, 2))
    return np.array(draw(st.lists(st.tuples(*places), min_size=1, max_size=20)))


@settings(max_examples=12, deadline=None)
@given(data=st.data(), name=st.sampled_from([VIS, Z]))
def test_patches_equal_plain_xarray(stored, data, name):
    path, values = stored
    index = indices(data.draw, values[name].ndim, [0, 2, 4])
    patches = PatchReader(path).read(name, index)
    assert patches.dtype == values[name].dtype
    for (*lead, row, col), patch in zip(index, patches, strict=True):
        y, x = (slice(i * PATCH, (i + 1) * PATCH) for i in (row, col))
        np.testing.assert_array_equal(patch, values[name][(*lead, y, x)])


@st.composite
def keys(draw, shape):
    """A basic index of integers and slices with positive steps."""
    out = []
    for n in shape:
        start, stop = sorted(draw(st.tuples(st.integers(-n, n), st.integers(-n, n))))
        sliced = slice(draw(st.sampled_from([start, None])), draw(st.sampled_from([stop, None])),
                       draw(st.integers(1, 5)))  # fmt: skip
        out.append(draw(st.sampled_from([sliced, draw(st.integers(-n, n - 1))])))
    return tuple(out)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), name=st.sampled_from([VIS, Z]))
def test_windows_equal_plain_xarray_fill_included(stored, data, name):
    path, values = stored
    key = data.draw(keys(values[name].shape))
    window = PatchReader(path).read_window(name, key)
    np.testing.assert_array_equal(window, values[name][key])
    assert window.shape == values[name][key].shape


def test_patches_of_crops_that_lack_the_channel_are_missing(stored):
    reader = PatchReader(stored[0])
    with pytest.raises(MissingChunkError, match=f"{VIS} at crop 1, row 0, col 0 is missing"):
        reader.read(VIS, np.array([[0, 0, 0], [1, 0, 0]]))
    with pytest.raises(MissingChunkError, match=f"{Z} at crop 3, altitude 0, row 0, col 0 is missing"):
        reader.read(Z, np.array([[3, 0, 0, 0]]))


def test_decoded_cube_equals_plain_xarray(stored):
    path, _ = stored
    ours, plain = open_cube(path), xr.open_zarr(path, chunks=None)
    for name in (VIS, Z):
        np.testing.assert_allclose(ours[name].values, plain[name].values.astype(np.float32), rtol=1e-5)


def test_samples_equal_plain_xarray(stored):
    path, values = stored
    data = PatchDataset(path)
    batch = data.__getitems__(range(len(data)))
    assert len(data) == (3 + 4 * 3) * ROWS * COLS
    table = zip(data.table.crop, data.table.row, data.table.col, data.table.channel, strict=True)
    for codes, (crop, row, col, channel) in zip(batch.codes.numpy()[:, 0], table, strict=True):
        y, x = (slice(i * PATCH, (i + 1) * PATCH) for i in (row, col))
        whole = values[VIS][crop] if channel == 0 else values[Z][crop, channel - 1]
        np.testing.assert_array_equal(codes, whole[y, x])


def test_only_the_flags_of_the_crops_asked_for_are_read(tmp_path):
    """Flags are in chunks of four crops here: those of others may be gone, or be gigabytes."""
    shape = (12, ROWS * PATCH, COLS * PATCH)
    codes = random_codes(IR, shape)
    store = write_cube(tmp_path / "s.zarr", {IR: codes})
    for name in (f"{IR}_flags", "status"):
        for path in (store / name).glob("c.*"):
            if not path.name.startswith("c.1"):
                path.write_bytes(b"not a chunk")
    reader = PatchReader(store)
    np.testing.assert_array_equal(reader.read_window(IR, (5, slice(0, 9), 3)), codes[5, :9, 3])
    np.testing.assert_array_equal(reader.absent(IR, np.array([4, 7, 4])), [False] * 3)
    np.testing.assert_array_equal(reader.read(IR, np.array([[11, 1, 2]]))[0], codes[11, 16:32, 32:48])
    with pytest.raises((ValueError, RuntimeError)):
        reader.read_window(IR, (9, 0, 0))


def test_arguments_that_do_not_fit_are_refused(stored):
    reader = PatchReader(stored[0])
    with pytest.raises(ValueError, match=f"{Z}: an index has 4 columns, got shape .2, 3."):
        reader.read(Z, np.zeros((2, 3), int))
    with pytest.raises(SchemaError, match=r"no channel 'rain'; this store has \['reflectivity', 'visible"):
        reader.read("rain", np.zeros((1, 3), int))
    with pytest.raises(IndexError, match=r"no chunk \[5, 0, 0\]"):
        reader.read(VIS, np.array([[CROPS, 0, 0]]))
    with pytest.raises(FileNotFoundError, match="no such store"):
        PatchReader(stored[0].parent / "nothing.zarr").read(VIS, np.zeros((1, 3), int))


def test_a_batch_that_is_not_contiguous_is_filled(stored):
    reader, index = PatchReader(stored[0]), np.indices((1, ROWS, COLS)).reshape(3, -1).T
    codes = reader.read(VIS, index)
    whole = np.zeros((len(index), 2, PATCH, PATCH), codes.dtype)
    assert reader.read_into(VIS, index, whole[:, 1]) == {}
    np.testing.assert_array_equal(whole[:, 1], codes)
    assert not whole[:, 0].any()


def test_a_batch_that_is_read_only_is_refused(stored):
    reader = PatchReader(stored[0])
    out = np.zeros_like(reader.read(VIS, np.zeros((1, 3), int)))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        reader.read_into(VIS, np.zeros((1, 3), int), out)


def test_a_channel_that_was_encoded_again_is_refused(tmp_path):
    path = write_cube(tmp_path / "s.zarr", {VIS: random_codes(VIS, (1, ROWS * PATCH, COLS * PATCH))})
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"][VIS]["codecs"] = [{"name": "bytes"}]
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(SchemaError, match=f"{VIS}: not stored in shards as gridrad-cube writes them"):
        PatchReader(path).read(VIS, np.zeros((1, 3), int))
