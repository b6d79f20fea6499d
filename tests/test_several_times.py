"""Files of several times: one file is several scenes, from the plan to the repair."""

from __future__ import annotations

import shutil
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

import gridrad_cube
from gridrad_cube import pipeline, query, readers, store
from gridrad_cube.readers.files import Source
from gridrad_cube.schema import Recipe, SchemaError, TileSpec

NAME = "ir_brightness_temperature"
SHAPE = (70, 90)
RECIPE = Recipe(tile=TileSpec(patch=32))
HOURS = (0, 2, 1, 3, 4)  # not in order


def write(path: Path, hours=HOURS, *, seed: int = 0, unlimited: bool = True, offset: int = 0) -> Path:
    """Write a file of several times; the pixels of an hour are the same in every file of a seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        file.title = f"imager {seed}"
        file.createDimension("time", None if unlimited else len(hours))
        for dim, axis in (("lat", 40 - 0.1 * np.arange(SHAPE[0])), ("lon", -100 + 0.1 * np.arange(SHAPE[1]))):
            file.createDimension(dim, len(axis))
            file.createVariable(dim, "f8", (dim,))[:] = axis
            file[dim].units = {"lat": "degrees_north", "lon": "degrees_east"}[dim]
        file.createVariable("time", "f8", ("time",))
        file["time"].setncatts({"units": "hours since 2019-12-25", "standard_name": "time"})
        file.createVariable(
            NAME, "u2", ("time", "lat", "lon"), zlib=True, fill_value=65535, chunksizes=(1, *SHAPE)
        )
        file[NAME].setncatts({"units": "K", "scale_factor": 0.01})
        file.set_auto_maskandscale(False)
    append(path, hours, seed=seed, offset=offset)
    return path


def append(path: Path, hours, *, seed: int = 0, offset: int = 0) -> None:
    with netCDF4.Dataset(path, "a") as file:
        file.set_auto_maskandscale(False)
        first = len(file["time"]) if file.dimensions["time"].isunlimited() else 0
        for number, hour in enumerate(hours, first):
            codes = np.random.default_rng((seed, hour)).integers(22_000, 30_000, SHAPE)
            file["time"][number], file[NAME][number] = hour, codes + offset


def split(path: Path, folder: Path) -> Path:
    """Write each time to a separate file."""
    folder.mkdir()
    with xr.open_dataset(path, decode_cf=False) as whole:
        for i in range(whole.sizes["time"]):
            one = whole.isel(time=[i])
            one.to_netcdf(folder / f"{path.stem}_{int(one.time[0])}.nc")
    return folder


def assert_same_scenes(one: Path, two: Path) -> None:
    """Everything equal but the names of scenes and files, row by row."""
    a, b = (xr.open_zarr(p, chunks=None, mask_and_scale=False, decode_times=False) for p in (one, two))
    assert set(a.variables) == set(b.variables)
    for name in set(a.variables) - {"source", "scene"}:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)
    for key in ("training_statistics", "thresholds", "identity"):
        assert store.store_info(one)[key] == store.store_info(two)[key]


def test_store_of_a_file_equals_that_of_its_times(tmp_path):
    file = write(tmp_path / "in" / "clouds" / "merg.nc")
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "a.zarr", recipe=RECIPE)
    assert [o.source for o in report.outcomes] == [f"clouds/merg.nc@2019-12-25T0{h}:00:00" for h in range(5)]
    assert (report.count("written"), report.failed) == (5, ())
    pipeline.preprocess(split(file, tmp_path / "split"), tmp_path / "b.zarr", recipe=RECIPE)
    assert_same_scenes(tmp_path / "a.zarr", tmp_path / "b.zarr")
    cube = gridrad_cube.open_cube(tmp_path / "a.zarr")
    assert set(cube.source.values) == {"clouds/merg.nc"}
    assert cube.scene.values[1] == "merg@2019-12-25T01:00:00"
    with netCDF4.Dataset(file) as raw:
        raw.set_auto_maskandscale(False)
        codes = store.open_packed(tmp_path / "a.zarr")[NAME].values
        for row in range(5):
            np.testing.assert_array_equal(codes[row, :70, :90], raw[NAME][HOURS.index(row)])
    answer = query.at(cube, time="2019-12-25T03:00", latitude=38.0, longitude=-98.0)
    assert (str(answer.source.values.ravel()[0]), str(answer.time.values.ravel()[0])[:13]) == (
        "clouds/merg.nc", "2019-12-25T03",
    )  # fmt: skip


def test_a_build_resumes_with_the_times_that_are_missing_and_repairs_single_ones(tmp_path, monkeypatch):
    file, path = write(tmp_path / "merg.nc"), tmp_path / "p.zarr"
    whole = tmp_path / "whole.zarr"
    pipeline.preprocess(file, whole, recipe=RECIPE)
    real, calls = pipeline.write_source, []

    def killed(*task):
        calls.append(task[3].source)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*task)

    monkeypatch.setattr(pipeline.run, "write_source", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.preprocess(file, path, recipe=RECIPE)
    report = pipeline.preprocess(file, path, recipe=RECIPE)
    assert [o.status for o in report.outcomes] == ["kept", "kept", "written", "written", "written"]
    assert_same_scenes(path, whole)
    shard = path / NAME / "c.3.0.0"
    shard.write_bytes(shard.read_bytes()[:100])
    assert [(d.row, d.source) for d in store.verify(path)] == [(3, "merg.nc@2019-12-25T03:00:00")]
    calls.clear()
    assert [o.status for o in pipeline.repair(path, file)] == ["written"]
    assert calls == ["merg.nc@2019-12-25T03:00:00"]
    assert store.verify(path) == []
    assert_same_scenes(path, whole)


@pytest.mark.parametrize("first", [1, 3])
def test_times_may_be_appended(tmp_path, first):
    file, path = write(tmp_path / "merg.nc", range(first)), tmp_path / "p.zarr"
    pipeline.preprocess(file, path, recipe=RECIPE)
    before = {p: p.stat().st_mtime_ns for p in (path / NAME).glob("c.*")}
    append(file, range(first, 6))
    report = pipeline.preprocess(file, path, recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (first, 6 - first)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    pipeline.preprocess(write(tmp_path / "new" / "merg.nc", range(6)), tmp_path / "new.zarr", recipe=RECIPE)
    a, b = (store.open_packed(p) for p in (path, tmp_path / "new.zarr"))
    for name in (NAME, "time", "latitude", "grid"):
        np.testing.assert_array_equal(a[name].values, b[name].values)
    assert pipeline.preprocess(file, path, recipe=RECIPE).count("kept") == 6


def test_times_that_changed_or_went_are_refused(tmp_path):
    file, path = write(tmp_path / "merg.nc"), tmp_path / "p.zarr"
    pipeline.preprocess(file, path, recipe=RECIPE)
    size = file.stat().st_size
    whole = tmp_path / "whole.nc"
    shutil.copy2(file, whole)
    for spoil, why in (
        (lambda: append(file, [7]) or rewrite(file, 2), f"its pixels of {NAME} have changed"),
        (lambda: write(file, HOURS[1:]), "no scene at 2019-12-25T00:00:00; it has 2019-12-25T02:00:00 to"),
        (lambda: file.write_bytes(b"x" * size), "not a netCDF file"),
    ):
        shutil.copy2(whole, file)
        spoil()
        with pytest.raises(SchemaError, match=f"merg.nc: changed since it was written to .*{why}"):
            pipeline.preprocess(file, path, recipe=RECIPE)
    shutil.copy(whole, file)  # the same bytes, another time of modification
    assert pipeline.preprocess(file, path, recipe=RECIPE).count("kept") == 5
    assert store.verify(path) == []


def rewrite(file: Path, number: int) -> None:
    with netCDF4.Dataset(file, "a") as data:
        data.set_auto_maskandscale(False)
        data[NAME][number, 3, 3] += 1


def test_a_file_of_many_times_is_planned_by_its_header(tmp_path, monkeypatch):
    file, count = tmp_path / "long.nc", 10_000
    write(file, [0], unlimited=False)
    with xr.open_dataset(file, decode_cf=False) as one:
        more = (
            one.drop_vars(NAME)
            .isel(time=[0] * count)
            .assign_coords(time=("time", np.arange(count), one.time.attrs))
        )
        more.to_netcdf(tmp_path / "many.nc")
    with netCDF4.Dataset(tmp_path / "many.nc", "a") as data:
        field = data.createVariable(NAME, "u2", ("time", "lat", "lon"), fill_value=65535, zlib=True)
        field.units = "K"
        field[0] = 30000
    reads, real = [], Source.read
    monkeypatch.setattr(Source, "read", lambda self, name, *key: reads.append(name) or real(self, name, *key))
    header = readers.inspect(tmp_path / "many.nc")
    assert header.times.size == count
    planned = pipeline.plan._read_header("many.nc", str(tmp_path / "many.nc"), RECIPE)
    assert len(planned.entries) == len({e.source for e in planned.entries}) == count
    assert NAME not in reads
    assert reads.count("lat") == reads.count("lon") == 4  # of the first and of the last time, in two calls


def test_one_time_is_read_without_the_others(tmp_path):
    file = write(tmp_path / "merg.nc", unlimited=False)
    with netCDF4.Dataset(file) as raw:
        raw.set_auto_maskandscale(False)
        expected = raw[NAME][1]
    offsets = []
    import h5py

    with h5py.File(file) as data:
        for i in range(data[NAME].id.get_num_chunks()):
            info = data[NAME].id.get_chunk_info(i)
            if info.chunk_offset[0] != 1:
                offsets.append((info.byte_offset, info.size))
    raw_bytes = bytearray(file.read_bytes())
    for start, size in offsets:  # the other times are damaged
        raw_bytes[start : start + size] = b"\0" * size
    file.write_bytes(raw_bytes)
    scene = readers.read_scene(file, time="2019-12-25T02:00")
    np.testing.assert_array_equal(scene[NAME].values, expected)
    with pytest.raises(SchemaError, match="cannot be read"):
        readers.read_scene(file, time="2019-12-25T03:00")
    report = pipeline.preprocess(file, tmp_path / "p.zarr", recipe=RECIPE)
    assert [o.status for o in report.outcomes].count("written") == 1
    assert len(report.failed) == 4


@pytest.mark.parametrize("chunks", [(1, 70, 90), (2, 35, 90), (3, 70, 30), (5, 70, 90), None])
def test_parts_of_chunked_variables_are_read_as_the_library_reads_them(tmp_path, monkeypatch, chunks):
    monkeypatch.setattr(readers.files, "_LARGE_BYTES", 1)
    file, values = tmp_path / "a.nc", np.random.default_rng(1).integers(0, 999, (5, *SHAPE)).astype("i2")
    xr.Dataset({"a": (("t", "y", "x"), values)}).to_netcdf(
        file, encoding={"a": {"zlib": True, "chunksizes": chunks} if chunks else {}}
    )
    with readers.files.open_source(file) as source:
        for key in (
            slice(2, 3),
            slice(1, 4),
            3,
            slice(0, 0),
            slice(None, None, 2),
            ...,
            (slice(1, 2), ..., slice(3)),
        ):
            np.testing.assert_array_equal(source.read("a", key), values[key], err_msg=str(key))
        for position in range(5):
            part = source.at("t", position)
            np.testing.assert_array_equal(part.read("a"), values[[position]])
            np.testing.assert_array_equal(part.read("a", (0, slice(2, 9))), values[position, 2:9])


def test_a_time_that_is_twice_in_a_file_is_refused(tmp_path):
    with pytest.raises(SchemaError, match="2019-12-25T01:00:00 is 2 times on its time axis 'time'"):
        readers.inspect(write(tmp_path / "merg.nc", (0, 1, 1, 2)))


@pytest.mark.parametrize("name", ["clouds/mergir_201912", "radar/mch_20170131", "radar/fmi_20170509"])
def test_real_files_of_several_times(real_data, name):
    path = real_data / f"{name}.nc"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    header = readers.inspect(path)
    (channel,) = header.channels
    with netCDF4.Dataset(path) as raw:
        raw.set_auto_maskandscale(False)
        assert header.times.size == len(raw["time"]) > 30
        for position in (0, 17, -1):
            scene = readers.read_scene(path, time=header.times[position])
            np.testing.assert_array_equal(scene[channel].values, raw[channel][position])
            assert int(scene["time"].values.astype("datetime64[s]").astype(int)) == raw["time"][position]
