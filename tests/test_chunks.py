"""Reading HDF5 chunks past the library: the same numbers, and nothing that is not plain."""

from __future__ import annotations

import zlib

import h5py
import netCDF4
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridrad_cube.readers import files
from gridrad_cube.schema import SchemaError

DTYPES = ["i1", "u1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8", "<f4", ">f4", "<f8"]


def values_of(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


def read(path, values, name="v"):
    with h5py.File(path) as file:
        return files._read_chunks(file, name, values.shape, values.dtype, range(len(values)))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shuffle=st.booleans(), ndim=st.integers(1, 3))
def test_every_chunking_is_what_the_library_reads(tmp_path, data, dtype, shuffle, ndim):
    shape = tuple(data.draw(st.integers(4, 9)) for _ in range(ndim))
    edges = tuple(data.draw(st.integers(max(1, n // 2), n)) for n in shape)
    values = values_of(shape, dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", data=values, chunks=edges, compression="gzip", shuffle=shuffle)
    found = read(tmp_path / "a.h5", values)
    if np.prod(edges) > 2 * np.prod(shape):
        assert found is None
        return
    assert found.dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "options",
    [
        {"fletcher32": True, "compression": "gzip"},
        {"compression": "lzf"},
        {"scaleoffset": 8},
        {"chunks": True},
        {},
        {"compression": "gzip", "chunks": (640, 640), "maxshape": (None, None)},
    ],
    ids=["checksum", "lzf", "scale-offset", "plain chunks", "contiguous", "chunks larger than the variable"],
)
def test_what_is_not_plainly_deflated_is_left_to_the_library(tmp_path, options):
    values = values_of((64, 64), "<i2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", data=values, **options)
    assert read(tmp_path / "a.h5", values) is None


def test_types_that_need_a_conversion_are_left_to_the_library(tmp_path):
    twelve = h5py.h5t.NATIVE_INT16.copy()
    twelve.set_precision(12)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((8, 8))
        plist.set_deflate(1)
        space = h5py.h5s.create_simple((8, 8))
        h5py.h5d.create(file.id, b"v", twelve, space, dcpl=plist)
        file["text"] = np.full(100, b"abc")
        file["v"][...] = 5
        assert file["v"].dtype == np.int16
    assert read(tmp_path / "a.h5", np.zeros((8, 8), np.int16)) is None
    assert read(tmp_path / "a.h5", np.zeros(100, "S3"), name="text") is None
    assert read(tmp_path / "a.h5", np.zeros((8, 8), np.int16), name="absent") is None


def test_another_shape_or_type_than_the_header_says_is_left_to_the_library(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("v", data=values_of((8, 8), "<i2"), compression="gzip")
    assert read(tmp_path / "a.h5", np.zeros((8, 9), np.int16)) is None
    assert read(tmp_path / "a.h5", np.zeros((8, 8), np.uint16)) is None
    assert read(tmp_path / "a.h5", np.zeros((8, 8), np.int16)) is not None


def test_chunks_that_are_absent_or_skip_a_filter_are_left_to_the_library(tmp_path):
    values = values_of((8, 8), "<i2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        partly = file.create_dataset("v", (8, 8), "<i2", chunks=(4, 8), compression="gzip")
        partly[:4] = values[:4]
        skips = file.create_dataset("w", (8, 8), "<i2", chunks=(8, 8), compression="gzip")
        skips.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=1)
    assert read(tmp_path / "a.h5", values) is None
    assert read(tmp_path / "a.h5", values, name="w") is None


@pytest.mark.parametrize("what", ["bomb", "short", "cut", "checksum"])
def test_a_chunk_of_another_size_or_a_damaged_one_is_refused(tmp_path, what):
    values = values_of((512, 512), "<u2")
    packed = zlib.compress(values.tobytes())
    bad = {
        "bomb": zlib.compress(bytes(10**8)),
        "short": zlib.compress(values.tobytes()[:-2]),
        "cut": packed[: len(packed) // 2],
        "checksum": packed[:-4] + b"abcd",
    }[what]
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("y", 512)
        file.createDimension("x", 512)
        variable = file.createVariable("v", "u2", ("y", "x"), zlib=True, shuffle=False, chunksizes=(512, 512))
        variable[:] = values
    with files.open_source(path) as source:
        np.testing.assert_array_equal(source.read("v"), values)
    with h5py.File(path, "a") as file:
        file["v"].id.write_direct_chunk((0, 0), bad)
    assert read(path, values) is None
    if what in ("cut", "checksum"):
        with files.open_source(path) as source, pytest.raises(SchemaError, match="the file is damaged"):
            source.read("v")


KEYS = [
    ...,
    (slice(None), slice(0, 640)),
    (0,),
    (slice(None), 1),
    (slice(1, 2), slice(None), 700),
    (slice(0, 2), slice(3, 600)),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_source_reads_large_variables_by_chunks_as_the_library_does(tmp_path, key, monkeypatch):
    values = values_of((3, 640, 701), "<i2")
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, length in zip("zyx", values.shape, strict=True):
            file.createDimension(name, length)
        variable = file.createVariable("v", "i2", tuple("zyx"), zlib=True, chunksizes=(2, 320, 351))
        variable[:] = values
    used = []

    def spied(*args):
        used.append(original(*args))
        return used[-1]

    original = files._read_chunks
    monkeypatch.setattr(files, "_read_chunks", spied)
    with files.open_source(tmp_path / "a.nc") as source:
        found = source.read("v", key)
        np.testing.assert_array_equal(found, source._dataset["v"][key])
    assert found.dtype == np.int16
    assert found.flags.c_contiguous
    assert [part is not None for part in used] == [True] * (key in KEYS[:3])  # whole planes
    np.testing.assert_array_equal(found, values[key])
