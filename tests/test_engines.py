"""The readers as xarray engines: lazy, picklable, and the same values as a scene."""

from __future__ import annotations

import pickle

import netCDF4
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
    scene = readers.read_scene(radar, channels=(Z, COLUMN, "echo_top_height"))
    with xr.open_dataset(radar, engine="gridrad") as ds:
        for name in scene.data_vars:
            assert ds[name].dtype == np.float32
            np.testing.assert_allclose(ds[name].values, decoded(scene, name), rtol=0, atol=2e-5)
        assert ds[Z].dims == ("altitude", "latitude", "longitude")
        np.testing.assert_array_equal(ds["latitude"].values, scene["latitude"].values)
        np.testing.assert_array_equal(ds["longitude"].values, scene["longitude"].values)
        assert ds["time"].values == scene["time"].values
        assert ds[Z].attrs["units"] == "dBZ"
        with netCDF4.Dataset(radar) as f:
            np.testing.assert_array_equal(ds["nradobs"].values, f["Nradobs"][:])
            listed = ds["reflectivity_weight"].values != 0
            assert listed.sum() == f.dimensions["Index"].size
            np.testing.assert_array_equal(
                ds["reflectivity_weight"].values.ravel()[f["index"][:]], f["wReflectivity"][:]
            )


@pytest.mark.parametrize(
    "key",
    [
        {"altitude": 2},
        {"altitude": -1, "latitude": slice(2, 7, 2)},
        {"altitude": slice(1, 6, 2), "longitude": 3},
        {"altitude": [4, 1, 1], "latitude": [0, 5]},
        {"altitude": slice(None, None, -2), "latitude": slice(None, None, -1)},
        {"altitude": slice(3, 3)},
        {"latitude": 4, "longitude": 7},
    ],
)
def test_gridrad_engine_indexes_as_an_array_does(radar, key):
    whole = xr.open_dataset(radar, engine="gridrad").load()
    part = xr.open_dataset(radar, engine="gridrad").isel(key).load()
    xr.testing.assert_identical(part, whole.isel(key))


def test_gridrad_engine_can_leave_no_echo_missing_or_everything_packed(radar):
    default = xr.open_dataset(radar, engine="gridrad")[Z].values
    blank = xr.open_dataset(radar, engine="gridrad", no_echo=np.nan)[Z].values
    assert (default[~np.isnan(default)] >= -99.0).all()
    assert (default == -99.0).any()
    np.testing.assert_array_equal(blank, np.where(default == -99.0, np.nan, default))
    packed = xr.open_dataset(radar, engine="gridrad", mask_and_scale=False)
    scene = readers.read_scene(radar, channels=(Z,))
    assert packed[Z].dtype == np.uint16
    assert packed[Z].attrs == scene[Z].attrs
    np.testing.assert_array_equal(packed[Z].values, scene[Z].values)


def test_larc_engine_masks_by_the_packed_valid_range(larc):
    scene = readers.read_scene(larc)
    with xr.open_dataset(larc, engine="larc_goes") as ds:
        assert ds[IR].dims == ("latitude", "longitude")
        for name in (IR, VIS):
            assert ds[name].dtype == np.float32
            np.testing.assert_array_equal(ds[name].values, decoded(scene, name))
        assert np.isnan(ds[IR].values[[0, 0, 1], [0, 1, 0]]).all()
        assert ds["ot_id_number"].dtype == np.uint16
        assert ds["observation_time"].dims == ("latitude",)
        assert ds.attrs["satellite_longitude"] == -75.2
        assert float(ds[IR].sel(latitude=30.1, longitude=-104.9, method="nearest")) > 150


@pytest.mark.parametrize(("name", "engine"), [("radar", "gridrad"), ("larc", "larc_goes")])
def test_engine_opens_without_reading_a_pixel_and_pickles(request, monkeypatch, name, engine):
    path = request.getfixturevalue(name)
    eager = xr.open_dataset(path, engine=engine).load()
    with monkeypatch.context() as patch:
        for reader in ("_read_packed", "_read_raw", "_read_radar", "_read_weight", "_read_derived"):
            patch.setattr(engines, reader, lambda *a, **k: pytest.fail("a pixel was read"))
        xr.open_dataset(path, engine=engine)
    lazy = pickle.loads(pickle.dumps(xr.open_dataset(path, engine=engine)))
    xr.testing.assert_identical(lazy.load(), eager)


@pytest.mark.parametrize(("name", "engine"), [("radar", "gridrad"), ("larc", "larc_goes")])
def test_engine_works_with_dask_threads(request, name, engine):
    path = request.getfixturevalue(name)
    eager = xr.open_dataset(path, engine=engine).load()
    chunked = xr.open_dataset(path, engine=engine, chunks={"latitude": 4})
    assert chunked.chunks
    xr.testing.assert_identical(chunked.compute(scheduler="threads"), eager)


def test_engine_joins_files_along_time(tmp_path):
    times = ("2021-07-05T17:50:17", "2021-07-05T18:00:17", "2021-07-05T18:10:17")
    paths = [
        files.write_larc(tmp_path / f"x_{t[:10].replace('-', '')}_{t[11:16].replace(':', '')}.nc", time=t)
        for t in times
    ]
    with xr.open_mfdataset(
        paths,
        engine="larc_goes",
        combine="nested",
        concat_dim="time",
        preprocess=lambda ds: ds[[IR]].drop_vars("observation_time").expand_dims("time"),
    ) as ds:
        assert ds[IR].dims == ("time", "latitude", "longitude")
        np.testing.assert_array_equal(ds["time"].values, np.array(times, "datetime64[s]"))
        np.testing.assert_array_equal(
            ds[IR].values[1], xr.open_dataset(paths[1], engine="larc_goes")[IR].values
        )


def test_engine_result_can_be_written_and_read_again(larc, tmp_path):
    ds = xr.open_dataset(larc, engine="larc_goes").load()
    ds.to_netcdf(tmp_path / "copy.nc")
    with xr.open_dataset(tmp_path / "copy.nc", engine="netcdf4") as copy:
        assert copy[IR].encoding["dtype"] == np.uint16
        np.testing.assert_allclose(copy[IR].values, ds[IR].values, atol=1e-4)


def test_engine_drops_variables_and_refuses_other_files(radar, larc):
    ds = xr.open_dataset(radar, engine="gridrad", drop_variables=[Z, "nradecho"])
    assert Z not in ds
    assert "nradecho" not in ds
    assert COLUMN in ds
    with pytest.raises(SchemaError, match=r"not a GridRad file, got variables"):
        xr.open_dataset(larc, engine="gridrad")
    with pytest.raises(SchemaError, match=r"no variable 'latitude'; expected a LaRC GOES file"):
        xr.open_dataset(radar, engine="larc_goes")
    with pytest.raises(SchemaError, match=r"got a bytes; expected the path of a local file"):
        engines.GridRadBackend().open_dataset(b"CDF")


def test_dense_gridrad_files_open_too(tmp_path):
    values = np.full((3, 4, 5), np.nan)
    values[1, 2, 3] = 40.0
    ds = xr.open_dataset(files.write_gridrad_dense(tmp_path / "dense.nc", values), engine="gridrad")
    np.testing.assert_allclose(ds[Z].values, values, atol=0.0051)
    assert "nradobs" not in ds


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
