"""Bytes on disk and in memory: written whole or not at all, read by as few requests as will do."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridrad_cube import storage
from gridrad_cube.storage import Files, open_for_writing, scratch_folder, write_bytes


def fail(*_):
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_leaves_the_old_object(tmp_path, monkeypatch):
    files = Files(tmp_path)
    files.write("a/b", b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        files.write("a/b", b"new")
    assert files.read("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_single_file_is_written_whole(where, tmp_path, monkeypatch):
    folder = f"memory://{uuid.uuid4().hex}" if where == "memory" else str(tmp_path / "new")
    write_bytes(f"{folder}/a.txt", b"text")
    with open_for_writing(f"{folder}/a.npz") as file:
        np.savez(file, numbers=np.arange(3))
    with open_for_writing(f"{folder}/a.nc") as file, netCDF4.Dataset(file.name, "w") as dataset:
        dataset.createDimension("x", 3)
    with pytest.raises(TypeError), open_for_writing(f"{folder}/a.txt") as file:
        file.writelines([b"half", None])
    files = Files(folder)
    assert files.names() == ["a.nc", "a.npz", "a.txt"]
    assert files.read("a.txt") == b"text"
    assert files.read("a.npz")[:2] == b"PK"
    assert files.read("a.nc")[1:4] == b"HDF"
    monkeypatch.chdir(tmp_path)
    write_bytes("here", b"1")
    assert (tmp_path / "here").read_bytes() == b"1"


@settings(max_examples=100, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 30)), max_size=20), gap=st.integers(0, 20)
)
def test_ranges_are_joined_across_small_gaps_only(ranges, gap):
    files, data = Files("memory://ranges"), bytes(range(100))
    files.write("object", data)
    asked = []
    read = type(files)._read_ranges
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_GAP", gap)
        patch.setattr(
            type(files), "_read_ranges", lambda *a: asked.extend(zip(*a[2:], strict=True)) or read(*a)
        )
        spans = [(start, start + size) for start, size in ranges]
        assert files.read_ranges("object", spans) == [data[a:b] for a, b in spans]
    assert all(later[0] > before[1] + gap for before, later in itertools.pairwise(asked))
    wanted = {byte for a, b in spans for byte in range(a, b)}
    read_too = {byte for a, b in asked for byte in range(a, b)} - wanted
    assert wanted <= {byte for a, b in asked for byte in range(a, b)}
    assert len(read_too) <= gap * max(0, len(spans) - 1)


def test_only_local_files_grow(tmp_path):
    assert [Files(tmp_path).append("a/log", data) for data in (b"12", b"345", b"")] == [0, 2, 5]
    assert Files(tmp_path).read("a/log") == b"12345"
    with pytest.raises(NotImplementedError, match="only a local file can be appended to"):
        Files("memory://log").append("log", b"1")


@pytest.mark.parametrize("url", ["memory://name", "s3://bucket"])
def test_a_url_that_names_no_file_is_refused(url):
    with pytest.raises(ValueError, match="names no file; expected PROTOCOL://FOLDER/NAME"):
        write_bytes(url, b"1")


def test_a_url_with_a_password_is_refused():
    with pytest.raises(ValueError, match="credentials") as caught:
        Files("s3://user:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


_KILLED = """
import os, signal
from gridrad_cube.storage import scratch_folder
print(scratch_folder(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_killed_processes_are_removed_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = scratch_folder()
    (tmp_path / "another").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", _KILLED], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL
    assert left.is_dir()
    (left / "a").write_bytes(b"a")
    new = scratch_folder()
    assert sorted(map(str, tmp_path.iterdir())) == sorted([mine, new, str(tmp_path / "another")])


def test_arrays_that_declare_more_than_they_hold_are_refused(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(80))
    monkeypatch.setattr(storage, "_MOST_ARRAYS", 2**20)
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(2**20))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=f"{name}.*it is not read"):
            Files(tmp_path).read_arrays(name)
    Files(tmp_path).write_arrays("c.npz", {"x": np.arange(3), "empty": np.zeros((0, 2))})
    assert Files(tmp_path).read_arrays("c.npz")["x"].tolist() == [0, 1, 2]
