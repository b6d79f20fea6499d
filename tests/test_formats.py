"""The rows of docs/formats.md: each command, on a small file in the product's own layout or on a real one."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
from pathlib import Path

import grib_files as grib
import h5py
import numpy as np
import pytest
import reader_files as files
import xarray as xr
from click.testing import CliRunner
from test_projections import ABI, write_abi

from gridrad_cube import readers, store
from gridrad_cube.cli import cli
from gridrad_cube.schema import Packing

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "formats.md").read_text()
ROWS = {
    cells[1].strip(): cells[2].strip().strip("`")
    for cells in (
        line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and "gridrad-cube" in line
    )
}
SHAPE = (12, 20)
IR, COLUMN, Z, RAIN = (
    "ir_brightness_temperature",
    "reflectivity_column_maximum",
    "reflectivity",
    "precipitation_rate",
)
SINCE = {"units": "seconds since 1970-01-01", "standard_name": "time"}
MOMENT = 1560168000  # 2019-06-10T12:00
GEOSTATIONARY = {key: value for key, value in ABI.items() if key != "long_name"}


def kelvin(shape=SHAPE):
    return np.linspace(200.0, 300.0, int(np.prod(shape)), dtype="f4").reshape(shape)


def axes(names=("lat", "lon"), north=50.0, west=-100.0, step=0.1):
    units = ("degrees_north", "degrees_east")
    values = (north - step * np.arange(SHAPE[0]), west + step * np.arange(SHAPE[1]))
    return {
        name: ((name,), v.astype("f4"), {"units": u}) for name, v, u in zip(names, values, units, strict=True)
    }


def plane(y, x):
    about = {"units": "m", "standard_name": "projection_y_coordinate"}
    return {"y": (("y",), y, about), "x": (("x",), x, about | {"standard_name": "projection_x_coordinate"})}


def mrms(folder):
    data = grib.message(grib.mosaic(SHAPE), grib.COMPOSITE, packing="grid_png")
    (folder / "MRMS_MergedReflectivityQCComposite_00.50_20230406-120039.grib2.gz").write_bytes(
        gzip.compress(data)
    )


def thredds(folder):
    dims = ("time", "altitude_above_msl", "lat", "lon")
    states = {"units": "dBZ", "missing_value": np.float32(-99), "_FillValue": np.float32(-999)}
    field = grib.mosaic(SHAPE).astype("f4")[None, None]
    height = {"units": "m", "positive": "up"}
    files.write_cf(
        folder / "MRMS_BaseReflectivity_20180302_1600.nc",
        {"MergedBaseReflectivityQC_altitude_above_msl": (dims, field, states)},
        axes() | {
            "time": (("time",), [17.0], {"units": "Second since 2019-06-10T12:00:00Z", "standard_name": "time"}),
            "altitude_above_msl": (("altitude_above_msl",), np.array([500.0], "f4"), height),
        },
    )  # fmt: skip


def mergir(folder):
    times = (("time",), [0.0, 0.5], {"units": "hours since 2019-06-10 12:00:00", "standard_name": "time"})
    field = np.stack([kelvin(), kelvin() + 1])
    about = {"units": "K", "_FillValue": np.float32(-9999), "standard_name": "brightness_temperature"}
    files.write_cf(
        folder / "merg_2019061012_4km-pixel.nc4",
        {"Tb": (("time", "lat", "lon"), field, about)},
        axes() | {"time": times},
    )


def imerg(folder):
    with h5py.File(folder / "3B-HHR.MS.MRG.3IMERG.20190610-S120000-E122959.0720.V07B.HDF5", "w") as file:
        file.attrs["FileHeader"] = "DOI=10.5067/GPM/IMERG/3B-HH/07;"
        grid = file.create_group("Grid")
        values = {name: array for name, (_, array, _) in axes(north=-50.0, step=-0.1).items()}
        values["lon"] = -100.0 + 0.1 * np.arange(SHAPE[1], dtype="f4")
        for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
            grid[name] = values[name]
            grid[name].attrs["units"] = units
        grid["time"] = np.array([MOMENT], "i4")
        grid["time"].attrs["units"] = "seconds since 1970-01-01 00:00:00 UTC"
        rain = grib.mosaic(SHAPE, missing=-9999.9, no_echo=0.0).T[None].astype("f4")
        grid.create_dataset(
            "precipitation", data=rain, chunks=(1, *SHAPE[::-1]), compression="gzip", shuffle=True
        )
        grid["precipitation"].attrs.update({"units": "mm/hr", "_FillValue": np.float32(-9999.9)})
        for number, name in enumerate(("time", "lon", "lat")):
            grid[name].make_scale(name)
            grid["precipitation"].dims[number].attach_scale(grid[name])


def abi(folder):
    write_abi(folder / "OR_ABI-L2-CMIPF-M6C13_G16_s20201671200145_e20201671209465_c20201671209559.nc")


def satpy(folder, name="C13", longitude=-75.0, sweep="x"):
    mapping = GEOSTATIONARY | {"longitude_of_projection_origin": longitude, "sweep_angle_axis": sweep}
    y, x = (np.arange(n) * 3000.0 for n in SHAPE)
    field = {"units": "K", "standard_name": "toa_brightness_temperature", "grid_mapping": "disk"}
    coordinates = {
        **plane(3e6 - y, x - 1e6),
        "time": ((), float(MOMENT), SINCE),
    }
    for band, values in ((name, kelvin()), ("WV_062", kelvin() - 40.0)):
        files.write_cf(
            folder / f"{band}_20190610_120000.nc",
            {band: (("y", "x"), values, field), "disk": ((), np.int32(0), mapping)},
            coordinates,
        )


def seviri(folder):
    satpy(folder, "IR_108", longitude=0.0, sweep="y")


def odim(folder):
    source = folder.parent / "odim"
    source.mkdir()
    values = grib.mosaic(SHAPE)
    codes = np.where(values == -999, 255, np.where(values == -99, 0, np.rint((values + 32) / 0.5))).astype(
        "u1"
    )
    with h5py.File(source / "T_PAAH21_C_EUOC_20190610120000.h5", "w") as file:
        file["dataset1/data1/data"] = codes
        packing = {
            "quantity": np.bytes_("DBZH"),
            "gain": 0.5,
            "offset": -32.0,
            "nodata": 255.0,
            "undetect": 0.0,
        }
        file.create_group("dataset1/data1/what").attrs.update(packing)
        file.create_group("what").attrs.update(
            {"date": np.bytes_("20190610"), "time": np.bytes_("120000"), "object": np.bytes_("COMP")}
        )
        corner = {"UL_lon": -10.4345768386404, "UL_lat": 67.0228327624372, "xscale": 2000.0, "yscale": 2000.0}
        projection = (
            b"+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
        )
        file.create_group("where").attrs.update(corner | {"projdef": projection})
    run_block("OPERA, ODIM_H5")


def radklim(folder):
    mapping = {
        "grid_mapping_name": "polar_stereographic", "straight_vertical_longitude_from_pole": 10.0,
        "latitude_of_projection_origin": 90.0, "standard_parallel": 60.0, "false_easting": 0.0,
        "false_northing": 0.0, "earth_radius": 6370040.0,
    }  # fmt: skip
    rain = np.stack([grib.mosaic(SHAPE, missing=-1.0, no_echo=0.0)] * 2).astype("f4")
    about = {
        "units": "kg m-2",
        "standard_name": "rainfall_amount",
        "_FillValue": np.float32(-1),
        "grid_mapping": "crs",
    }
    y, x = -4658500.0 + 1000.0 * np.arange(SHAPE[0]), -442500.0 + 1000.0 * np.arange(SHAPE[1])
    times = (("time",), [12.0, 13.0], {"units": "hours since 2019-06-10 00:00:00", "standard_name": "time"})
    files.write_cf(
        folder / "RW_2017.002_201906.nc",
        {"RR": (("time", "y", "x"), rain, about), "crs": ((), np.int32(0), mapping)},
        {
            **plane(y, x),
            "time": times,
        },
    )


def meteonet(folder):
    source = folder.parent / "npz"
    source.mkdir()
    values = grib.mosaic(SHAPE, missing=255, no_echo=-99).astype("i2")
    dates = np.array([np.datetime64(MOMENT + 300 * i, "s").astype(object) for i in range(2)], object)
    np.savez(source / "reflectivity_old_SE_2016_08.3.npz", data=np.stack([values] * 2), dates=dates)
    latitude, longitude = (values for _, values, _ in axes(step=0.01).values())
    grid = np.meshgrid(longitude, latitude)
    np.savez(folder.parent / "radar_coords_SE.npz", lons=grid[0], lats=grid[1])
    run_block("MeteoNet")


def pysteps(folder):
    rain = np.stack([grib.mosaic(SHAPE, missing=np.nan, no_echo=0.0)] * 3).astype("f4")
    about = {
        "units": "mm h-1", "standard_name": "instantaneous_precipitation_rate", "grid_mapping": "projection",
        "coordinates": "y x", "_FillValue": np.float32(np.nan),
    }  # fmt: skip
    mapping = {
        "grid_mapping_name": "polar_stereographic", "straight_vertical_longitude_from_pole": 25.0,
        "latitude_of_projection_origin": 90.0, "standard_parallel": 60.0, "semi_major_axis": 6371288.0,
        "semi_minor_axis": 6371288.0, "false_easting": 380886.3, "false_northing": 3395677.9,
    }  # fmt: skip
    files.write_cf(
        folder / "nowcast_201906101200.nc",
        {"precip_intensity": (("time", "y", "x"), rain, about), "projection": ((), np.int32(0), mapping)},
        {
            **plane(1000.0 * np.arange(SHAPE[0])[::-1], 1000.0 * np.arange(SHAPE[1])),
            "time": (("time",), [0, 300, 600], {"units": "seconds since 2019-06-10 12:00:00"}),
        },
    )


def messages():
    forecast = {"indicatorOfUnitOfTimeRange": 1, "forecastTime": 6}
    on = {"grid": grib.lambert(SHAPE), "time": "2019-06-10T06:00:00"}
    echo = np.where(grib.mosaic(SHAPE) > 0, grib.mosaic(SHAPE), -10.0)
    window = grib.NCEP | {
        "discipline": 3,
        "parameterCategory": 192,
        "parameterNumber": 2,
        "typeOfFirstFixedSurface": 8,
    }
    return [
        grib.message(echo, grib.REFC | forecast, packing="grid_complex_spatial_differencing", **on),
        grib.message(np.where(echo > 0, echo / 3600, 0.0), grib.PRATE | forecast, **on),
        grib.message(kelvin().astype("f8"), window | forecast, **on),
    ]


def hrrr(folder):
    grib.write(folder / "hrrr.t06z.wrfsfcf06.grib2", messages())


def cfgrib(folder):
    path = grib.write(folder.parent / "hrrr.grib2", messages()[:1])
    with xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""}) as scene:
        scene.to_netcdf(folder / "hrrr.t06z.wrfsfcf06.nc")


def wgrib2(folder):
    echo = np.where(grib.mosaic(SHAPE) > 0, grib.mosaic(SHAPE), -10.0)[None].astype("f4")
    latitude, longitude = np.meshgrid(
        21.1 + 0.03 * np.arange(SHAPE[0]), 237.3 + 0.03 * np.arange(SHAPE[1]), indexing="ij"
    )
    about = {
        "_FillValue": np.float32(9.999e20), "short_name": "REFC_entireatmosphere", "units": "dB",
        "long_name": "Composite reflectivity", "level": "entire atmosphere",
    }  # fmt: skip
    verified = {"units": "seconds since 1970-01-01 00:00:00.0 0:00", "long_name": "verification time"}
    files.write_cf(
        folder / "hrrr.nc",
        {"REFC_entireatmosphere": (("time", "y", "x"), echo, about)},
        {
            "latitude": (("y", "x"), latitude, {"units": "degrees_north", "long_name": "latitude"}),
            "longitude": (("y", "x"), longitude, {"units": "degrees_east", "long_name": "longitude"}),
            **plane(3000.0 * np.arange(SHAPE[0]), 3000.0 * np.arange(SHAPE[1])),
            "time": (("time",), [float(MOMENT)], verified | {"reference_time": float(MOMENT - 6 * 3600)}),
        },
    )


def era5(folder):
    rain = np.stack([grib.mosaic(SHAPE, missing=0.0, no_echo=0.0) / 3600] * 2).astype("f4")
    dims = ("valid_time", "latitude", "longitude")
    files.write_cf(
        folder / "data_stream-oper_stepType-avg.nc",
        {
            "avg_tprate": (
                dims,
                rain,
                {"units": "kg m**-2 s**-1", "standard_name": "unknown", "GRIB_paramId": 235055},
            ),
            "cape": (dims, rain * 1000, {"units": "J kg**-1", "standard_name": "unknown"}),
        },
        axes(("latitude", "longitude"), step=0.25)
        | {
            "valid_time": (("valid_time",), [MOMENT, MOMENT + 3600], SINCE | {"long_name": "time"}),
            "number": ((), np.int64(0), {"standard_name": "realization", "units": "1"}),
        },
    )


def larc(folder):
    files.write_larc(
        folder / "NASALARC_GOES16_CONVECTION_DETECTION_20190610_1200.nc", time="2019-06-10T12:00:17"
    )


def gridrad(folder):
    echo = np.full((4, *SHAPE), 30.0)
    files.write_gridrad(folder / "nexrad_3d_v4_2_20190610T120000Z.nc", echo, time="2019-06-10T12:00:00")


#: Row -> writer, channels, number of scenes, whether the field is the mosaic of three states (missing, nothing, echo).
PRODUCTS = {
    "MRMS, GRIB2": (mrms, {COLUMN}, 1, "mosaic"),
    "MRMS, netCDF from THREDDS": (thredds, {Z}, 1, "mosaic"),
    "Merged infrared (GPM_MERGIR)": (mergir, {IR}, 2, "kelvin"),
    "IMERG, HDF5": (imerg, {RAIN}, 1, "mosaic"),
    "GOES ABI L2": (abi, {IR}, 1, ""),
    "GOES through satpy": (satpy, {IR}, 1, "kelvin"),
    "SEVIRI through satpy": (seviri, {IR}, 1, "kelvin"),
    "OPERA, ODIM_H5": (odim, {Z}, 1, "mosaic"),
    "RADOLAN (RADKLIM, netCDF)": (radklim, {RAIN}, 2, "mosaic"),
    "MeteoNet": (meteonet, {Z}, 2, "mosaic"),
    "pysteps": (pysteps, {RAIN}, 3, "mosaic"),
    "HRRR, GRIB2": (hrrr, {COLUMN, RAIN, IR}, 1, "echo"),
    "HRRR through cfgrib": (cfgrib, {COLUMN}, 1, "echo"),
    "HRRR through wgrib2": (wgrib2, {COLUMN}, 1, "echo"),
    "ERA5": (era5, {RAIN, "cape"}, 2, "rain"),
    "GridRad v4.2": (gridrad, {COLUMN}, 1, ""),
    "LaRC GOES": (larc, {IR, "visible_reflectance"}, 1, ""),
}


def run_block(title):
    """Run the first Python code under a heading of the page."""
    section = PAGE.partition(f"## {title}\n")[2]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], {})


def test_every_row_is_a_test():
    assert set(ROWS) == set(PRODUCTS)


@pytest.mark.parametrize("product", PRODUCTS)
def test_row(product, tmp_path, monkeypatch):
    write, channels, scenes, field = PRODUCTS[product]
    _, _, folder, _, place, *_ = command = shlex.split(ROWS[product])
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    write(tmp_path / folder)
    result = CliRunner().invoke(cli, [*command[1:], "--patch", "4"], catch_exceptions=False)  # small fields
    assert Path(place, "zarr.json").exists(), result.output
    cube = store.open_packed(place)
    written = cube.isel(crop=np.flatnonzero(cube.status.values == 0))
    assert written.sizes["crop"] == scenes, result.output
    assert channels <= set(written.data_vars)
    times = written.time.values.astype("datetime64[s]").astype(np.int64)
    expected = {"MRMS, GRIB2": 1680782439, "GOES ABI L2": 1592222415}.get(product, MOMENT)
    assert 0 <= times[0] - expected < 400
    for name in channels & {COLUMN, Z, RAIN, IR}:
        check(written[name].isel(crop=0), field)


def check(variable, field):
    """Hold the pixels of a scene, at the upper left of its crop, against what was written."""
    packing = Packing.from_attributes(variable.attrs, variable.dtype)
    codes = variable.values[: SHAPE[0], : SHAPE[1]]
    mosaic = grib.mosaic(SHAPE)
    if field == "kelvin" or (field == "echo" and variable.name == IR):
        np.testing.assert_allclose(packing.decode(codes), kelvin(), atol=0.011)
    elif field in ("mosaic", "echo", "rain"):
        if field == "mosaic":
            np.testing.assert_array_equal(packing.missing(codes), mosaic == -999)
            np.testing.assert_array_equal(codes == packing.no_echo, mosaic == -99)
        is_echo = mosaic > 0
        np.testing.assert_allclose(packing.decode(codes)[is_echo], mosaic[is_echo], atol=0.51)
    else:
        assert packing.observed(variable.values).any()


@pytest.mark.parametrize(
    ("name", "channel", "scenes"),
    [
        ("gridrad/nexrad_3d_v4_2_20100120T200000Z.nc", COLUMN, 1),
        ("mrms_reflectivity_20230406T120039Z.nc", Z, 1),
        ("radar/dwd_yw_20170816.nc", RAIN, 12),
    ],
)
def test_real_files(real_data, tmp_path, name, channel, scenes):
    if not (real_data / name).is_file():
        pytest.skip(f"{real_data / name} is not there")
    shutil.copy(real_data / name, tmp_path)
    header = readers.inspect(tmp_path / Path(name).name)
    assert channel in header.channels
    assert max(1, header.times.size) == scenes
