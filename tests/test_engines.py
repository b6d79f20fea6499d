"""The readers as xarray engines: lazy, picklable, and the same values as a scene."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import reader_files as files
import xarray as xr

from gridrad_cube import readers
from gridrad_cube.readers import engines
from gridrad_cube.schema import Packing, SchemaError

IR, VIS, Z, COLUMN = (
    "ir_brightness_temperature",
    "visible_reflectance",
    "reflectivity",
    "reflectivity_column_maximum",
)
LARC_NAME = "NASALARC_GOES16_CONVECTION_DETECTION_20210705_1750.nc"
GRIDRAD_NAME = "nexrad_3d_v4_2_20110427T220000Z.nc"


def decoded(scene: xr.Dataset, name: str) -> np.ndarray:
    variable = scene[name]
    return Packing.from_attributes(variable.attrs, variable.dtype).decode(variable.values)


@pytest.fixture
def radar(tmp_path):
    rng = np.random.default_rng(2)
    values = rng.uniform(0, 60, (6, 10, 12)).astype(np.float32)
    values[rng.uniform(size=values.shape) < 0.5] = np.nan
    counts = np.where(np.isfinite(values), 3, rng.integers(0, 2, values.shape))
    return files.write_gridrad(tmp_path / GRIDRAD_NAME, values, nradobs=counts, order=rng)


@pytest.fixture
def larc(tmp_path):
    return files.write_larc(tmp_path / LARC_NAME)


def test_engines_are_registered():
    assert {"gridrad", "larc_goes"} <= set(xr.backends.list_engines())


def test_gridrad_engine_gives_the_values_of_the_scene(radar):
    scene = readers.read_scene(radar, channels=(Z, COLUMN, "echo_top_height", "Nradobs", "wReflectivity"))
    with xr.open_dataset(radar, engine="gridrad") as ds:
        for name in scene.data_vars:
            assert ds[name].dtype == np.float32
            assert ds[name].dims == ("time", *scene[name].dims)
            np.testing.assert_array_equal(ds[name].values[0], decoded(scene, name))
        for name in ("latitude", "longitude", "altitude"):
            xr.testing.assert_identical(ds[name].variable, scene[name].variable)
        assert ds["time"].values == scene["time"].values
        assert ds[Z].attrs["units"] == "dBZ"


@pytest.mark.parametrize(
    "key",
    [
        {"altitude": 2},
        {"altitude": -1, "y": slice(2, 7, 2)},
        {"altitude": slice(1, 6, 2), "x": 3},
        {"altitude": [4, 1, 1], "y": [0, 5]},
        {"altitude": slice(None, None, -2), "y": slice(None, None, -1)},
        {"altitude": slice(3, 3)},
        {"time": 0, "altitude": 2, "y": 4, "x": 7},
    ],
)
def test_gridrad_engine_indexes_as_an_array_does(radar, key):
    whole = xr.open_dataset(radar, engine="gridrad").load()
    part = xr.open_dataset(radar, engine="gridrad").isel(key).load()
    xr.testing.assert_identical(part, whole.isel(key))


def test_gridrad_engine_can_leave_everything_packed(radar):
    packed = xr.open_dataset(radar, engine="gridrad", mask_and_scale=False)
    scene = readers.read_scene(radar, channels=(Z, "Nradobs"))
    for name in scene.data_vars:
        assert packed[name].dtype == scene[name].dtype
        assert packed[name].attrs == scene[name].attrs
        np.testing.assert_array_equal(packed[name].values[0], scene[name].values)


def test_larc_engine_masks_by_the_packed_valid_range(larc):
    scene = readers.read_scene(larc)
    with xr.open_dataset(larc, engine="larc_goes") as ds:
        assert ds[IR].dims == ("time", "y", "x")
        for name in (IR, VIS):
            assert ds[name].dtype == np.float32
            np.testing.assert_array_equal(ds[name].values[0], decoded(scene, name))
        assert np.isnan(ds[IR].values[0, [0, 0, 1], [0, 1, 0]]).all()
        assert np.isnan(ds["ot_id_number"].values).all()  # its fill
        assert ds["observation_time"].dims == ("time", "y")
        assert ds.attrs["satellite_longitude"] == -75.2


@pytest.mark.parametrize(("name", "engine"), [("radar", "gridrad"), ("larc", "larc_goes")])
def test_engine_opens_without_reading_a_pixel_and_pickles(request, monkeypatch, name, engine):
    path = request.getfixturevalue(name)
    eager = xr.open_dataset(path, engine=engine).load()
    with monkeypatch.context() as patch:
        patch.setattr(engines, "read_channels", lambda *a, **k: pytest.fail("a pixel was read"))
        xr.open_dataset(path, engine=engine)
    lazy = pickle.loads(pickle.dumps(xr.open_dataset(path, engine=engine)))
    xr.testing.assert_identical(lazy.load(), eager)


@pytest.mark.parametrize(("name", "engine"), [("radar", "gridrad"), ("larc", "larc_goes")])
def test_engine_works_with_dask_threads(request, name, engine):
    path = request.getfixturevalue(name)
    eager = xr.open_dataset(path, engine=engine).load()
    chunked = xr.open_dataset(path, engine=engine, chunks={"y": 4})
    assert chunked.chunks
    xr.testing.assert_identical(chunked.compute(scheduler="threads"), eager)


def test_files_join_along_time_without_an_option(tmp_path):
    times = ("2021-07-05T17:50:17", "2021-07-05T18:00:17", "2021-07-05T18:10:17")
    paths = [
        files.write_larc(tmp_path / f"x_{t[:10].replace('-', '')}_{t[11:16].replace(':', '')}.nc", time=t)
        for t in times
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_mfdataset(paths[::-1], engine="larc_goes") as ds:
            assert ds[IR].dims == ("time", "y", "x")
            assert ds["latitude"].dims == ("y",)
            assert ds["observation_time"].dims == ("time", "y")
            np.testing.assert_array_equal(ds["time"].values, np.array(times, "datetime64[s]"))
            one = xr.open_dataset(paths[1], engine="larc_goes")
            np.testing.assert_array_equal(ds[IR].values[1], one[IR].values[0])
    values = np.where(np.random.default_rng(0).random((3, 4, 5)) < 0.5, 20.0, np.nan)
    paths = [
        files.write_gridrad(
            tmp_path / f"nexrad_3d_v4_2_20110427T{hour}0000Z.nc", values, time=f"2011-04-27T{hour}:00:00"
        )
        for hour in (21, 22)
    ]
    with xr.open_mfdataset(paths, engine="gridrad") as ds:
        assert ds[Z].dims == ("time", "altitude", "y", "x")
        assert ds["altitude"].dims == ("altitude",)
        np.testing.assert_array_equal(ds[Z].values[0], ds[Z].values[1])


def test_engine_result_can_be_written_and_read_again(larc, tmp_path):
    ds = xr.open_dataset(larc, engine="larc_goes").load()
    ds.to_netcdf(tmp_path / "copy.nc")
    with xr.open_dataset(tmp_path / "copy.nc", engine="netcdf4") as copy:
        assert copy[IR].encoding["dtype"] == np.uint16
        np.testing.assert_allclose(copy[IR].values, ds[IR].values, atol=1e-4)


def test_engine_drops_variables_and_refuses_other_files(radar, larc):
    ds = xr.open_dataset(radar, engine="gridrad", drop_variables=[Z, "Nradecho"])
    assert Z not in ds
    assert "Nradecho" not in ds
    assert COLUMN in ds
    with pytest.raises(SchemaError, match=r"the file is larc_goes, got format='gridrad'"):
        xr.open_dataset(larc, engine="gridrad")
    with pytest.raises(SchemaError, match=r"no 1-D variable 'latitude'; expected a LaRC GOES file"):
        xr.open_dataset(radar, engine="larc_goes")
    with pytest.raises(SchemaError, match=r"got a bytes; expected the path of a local file"):
        engines.GridRadBackend().open_dataset(b"CDF")


def test_dense_gridrad_files_open_too(tmp_path):
    values = np.full((3, 4, 5), np.nan)
    values[1, 2, 3] = 40.0
    ds = xr.open_dataset(files.write_gridrad_dense(tmp_path / "dense.nc", values), engine="gridrad")
    np.testing.assert_allclose(ds[Z].values[0], values, atol=0.0051)
    assert "Nradobs" not in ds


@pytest.mark.parametrize(
    ("name", "radar", "larc"),
    [
        (GRIDRAD_NAME, True, False),
        ("/data/nexrad_3d_4_1_20170328T121000Z.nc", True, False),
        (LARC_NAME, False, True),
        ("nexrad_3d.nc", False, False),
        ("other.nc", False, False),
    ],
)
def test_engine_guesses_by_unmistakable_names_only(name, radar, larc):
    assert engines.GridRadBackend().guess_can_open(name) is radar
    assert engines.LarcGoesBackend().guess_can_open(name) is larc
