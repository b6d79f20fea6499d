"""Which time the fields of a file hold at: by meaning, units and calendar, and by its name."""

from __future__ import annotations

import cftime
import netCDF4
import numpy as np
import pytest
import xarray as xr

from gridrad_cube import pipeline, readers, store
from gridrad_cube.readers.times import parse_stamp
from gridrad_cube.schema import Recipe, SchemaError, TileSpec

NAME = "reflectivity_column_maximum"
UNITS = "hours since 2021-07-05 12:00"


def write(path, *times, size=64, dims=(), attributes=None):
    """Write a field of one time, and variables ``(name, value or values, attributes)`` with the dimension's name."""
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("lat", size)
        file.createDimension("lon", size)
        for name, values in (("lat", 50 - np.arange(size) / 32), ("lon", -100 + np.arange(size) / 32)):
            file.createVariable(name, "f8", (name,))[:] = values
            file[name].units = {"lat": "degrees_north", "lon": "degrees_east"}[name]
        for dim, count in dims:
            file.createDimension(dim, count)
        on = tuple(dim for dim, _ in dims)
        shape = tuple(count for _, count in dims)
        file.createVariable(NAME, "f4", (*on, "lat", "lon")).units = "dBZ"
        file[NAME][...] = np.arange(size**2).reshape(size, size) % 50 + np.zeros((*shape, size, size))
        for name, values, about, *where in times:
            variable = file.createVariable(name, "f8", tuple(where))
            variable.setncatts({k: v for k, v in about.items() if v is not None})
            variable[...] = values
        file.setncatts(attributes or {})
    return path


def initial(name="time", value=0.0, *dims):
    return (name, value, {"units": UNITS, "standard_name": "forecast_reference_time"}, *dims)


def lead(value, *dims, units="hours"):
    return ("step", value, {"units": units, "standard_name": "forecast_period"}, *dims)


def valid(name="valid_time", value=6.0, *dims):
    return (name, value, {"units": UNITS, "standard_name": "time"}, *dims)


def test_a_forecast_holds_at_its_valid_time_and_keeps_the_lead_time(tmp_path):
    path = write(tmp_path / "a.nc", initial(), lead(6.0), valid())
    header = readers.inspect(path)
    assert (str(header.time), header.lead_time) == ("2021-07-05T18:00:00", 6.0)
    assert readers.read_scene(path)["forecast_period"].item() == 6.0


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([initial(), lead(6.0)], "18:00"),  # the sum, where the valid time is left out
        ([initial("reftime"), valid("time")], "18:00"),
        ([initial(), lead(2.16e13, units="nanoseconds"), valid("t")], "18:00"),
        ([valid("time"), ("created", 9.0, {"units": UNITS})], "18:00"),
        ([("time", 6.0, {"units": UNITS}), valid("scan_time", np.arange(64.0), "lat")], "18:00"),
        ([("T", 6.0, {"units": UNITS, "axis": "T"})], "18:00"),
        ([("XTIME", 360.0, {"units": "minutes since 2021-07-05 12:00:00"})], "18:00"),
        ([valid("time", 6.0), valid("valid_time", 6.0)], "18:00"),
    ],
)  # fmt: skip
def test_time_by_meaning(tmp_path, times, expected):
    assert str(readers.inspect(write(tmp_path / "x_20200101_0000.nc", *times)).time)[11:16] == expected


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            [valid("time", 0.0), valid()],
            r"time 2021-07-05T12:00:00, valid_time 2021-07-05T18:00:00; expected one. Say which: "
            r"`variables=\(\('time', 'time', None\),\)`",
        ),
        (
            [("time", 0, {"units": UNITS}), ("valid_time", 6, {"units": UNITS})],
            "several variables may be the time",
        ),
        (
            [initial()],
            "'time' is the initial time of a forecast, and no variable has the valid time of its fields",
        ),
        ([initial(), lead(6.0, units="furlongs")], "expected lead times in units of time"),
    ],
)
def test_times_that_disagree_or_do_not_say_it_are_refused(tmp_path, times, message):
    with pytest.raises(SchemaError, match=message):
        readers.inspect(write(tmp_path / "x_20210705_1200.nc", *times))


def test_the_user_says_which_variable_is_the_time(tmp_path):
    path = write(
        tmp_path / "x.nc", valid("time", 0.0), valid("other", 6.0), valid("scan", np.arange(64.0), "lat")
    )
    for name, hour in (("time", "12"), ("other", "18")):
        assert str(readers.inspect(path, variables=(("time", name, None),)).time)[11:13] == hour
    recipe = Recipe(tile=TileSpec(patch=32), variables=(("time", "other", None),))
    pipeline.preprocess(path, tmp_path / "p.zarr", recipe=recipe)
    assert str(store.open_cube(tmp_path / "p.zarr").time.values[0])[11:13] == "18"
    for name in ("absent", "scan"):
        with pytest.raises(SchemaError, match=f"no '{name}' with a time for each field"):
            readers.inspect(path, variables=(("time", name, None),))
    with pytest.raises(SchemaError, match="got units 'h' of the time"):
        readers.inspect(path, variables=(("time", "other", "h"),))


@pytest.mark.parametrize(
    "times",
    [
        [initial(), lead([1.0, 2, 3], "step"), valid("valid_time", [1.0, 2, 3], "step")],
        [initial(), lead([1.0, 2, 3], "step")],
        [
            initial("time", [0.0], "time"),
            lead([1.0, 2, 3], "step"),
            valid("valid_time", [[1.0, 2, 3]], "time", "step"),
        ],
    ],
)
def test_each_lead_time_of_a_forecast_is_a_scene(tmp_path, times):
    dims = (("time", 1), ("step", 3)) if len(times) == 3 and times[0][3:] else (("step", 3),)
    path = write(tmp_path / "a.nc", *times, dims=dims)
    pipeline.preprocess(path, tmp_path / "p.zarr", recipe=Recipe(tile=TileSpec(patch=32)))
    cube = store.open_cube(tmp_path / "p.zarr")
    assert [str(t)[11:13] for t in cube.time.values] == ["13", "14", "15"]
    assert cube.forecast_period.values.tolist() == [1.0, 2.0, 3.0]
    assert cube.forecast_period.attrs["units"] == "h"


def test_runs_of_several_initial_times_are_refused(tmp_path):
    times = [[1.0, 2, 3], [7.0, 8, 9]]
    path = write(
        tmp_path / "a.nc", valid("valid_time", times, "time", "step"), dims=(("time", 2), ("step", 3))
    )
    with pytest.raises(
        SchemaError, match=r"expected a time axis of one dimension. Split the file: ds.isel\(time"
    ):
        readers.inspect(path)


def test_attributes_that_disagree_are_refused(tmp_path):
    attributes = {"time_coverage_start": "2021-07-05T12:00:00Z", "start_datetime": "2021-07-05T13:00:00Z"}
    path = write(tmp_path / "a.nc", attributes=attributes)
    with pytest.raises(
        SchemaError, match="time_coverage_start says 2021-07-05T12:00:00, attribute start_datetime says"
    ):
        readers.inspect(path)


@pytest.mark.parametrize(
    ("name", "time"),
    [
        (
            "OR_ABI-L2-CMIPF-M6C13_G16_s20202621950205_e20202621959525_c20202622000012.nc",
            "2020-09-18T19:50:20",
        ),
        (
            "OR_ABI-L2-CMIPF-M6C13_G16_s20191001200205_e20191001209513_c20191001210009.nc",
            "2019-04-10T12:00:20",
        ),
        ("3B-HHR.MS.MRG.3IMERG.20191225-S000000-E002959.0000.V06B.nc", "2019-12-25T00:00:00"),
        ("MOD021KM.A2019161.1210.nc", "2019-06-10T12:10:00"),
        ("rain_20210705_1200_c20210706_0300.nc", "2021-07-05T12:00:00"),
        ("rain_20210705_1200_20210705_1200.nc", "2021-07-05T12:00:00"),
        ("GITCO_d20120225_t1802319_e1803561.nc", "2012-02-25T18:02:31"),
        ("rain_c20210706_0300.nc", None),
        ("rain_20210705_1200_20210706_0000.nc", None),
        ("rain_20210705_1200_20210706_0300Z.nc", None),
        ("s20203671950205.nc", None),  # the year has 366 days
    ],
)
def test_time_of_file_names(tmp_path, name, time):
    assert parse_stamp(name) == (None if time is None else np.datetime64(time))
    path = write(tmp_path / name)
    if time is None:
        with pytest.raises(SchemaError, match=r"no time; expected one of .*Rename the file so that it holds"):
            readers.inspect(path)
    else:
        assert readers.inspect(path).time == np.datetime64(time)


def test_two_times_in_a_name_are_both_named(tmp_path):
    with pytest.raises(SchemaError, match="holds several: 2021-07-05T12:00:00, 2021-07-06T00:00:00"):
        readers.inspect(write(tmp_path / "rain_20210705_1200_20210706_0000.nc"))


@pytest.mark.parametrize(
    ("units", "value"),
    [
        ("seconds since 1970-01-01 00:00:00.0 0:00", 1560168000),  # every file of wgrib2 -netcdf
        ("nanoseconds since 1970-01-01", 1560168000e9),
        ("ns since 1970-01-01 00:00", 1560168000e9),
        ("us since 1970-01-01", 1560168000e6),
        ("seconds since 1970-01-01 00:00:00 +00", 1560168000),
        ("seconds since 1970-01-01T00:00:00Z", 1560168000),
        ("hours since 1970-01-01 00", 433380),
        ("hours since 1-1-1 00:00:0.0", 17693316),
        ("days since 20190610", 0.5),
        ("hours after 20190610T10Z", 2),
        ("sec @ 2019-06-10 12:00", 0),
        ("hours since 2009-8-31 7", 85685),
        ("hours since 2019-06-10 06:00 -6:00", 0),
        ("hours since 2019-06-10 17:30 +0530", 0),
        ("Hours Since 2019-06-10_11:00:00", 1),
        ("d since 2019-06-10 UTC", 0.5),
        ("weeks since 2019-06-03T12Z", 1),
    ],
)
def test_units_as_udunits_reads_them(tmp_path, units, value):
    path = write(
        tmp_path / "a.nc",
        ("time", value, {"units": units}),
    )
    assert readers.inspect(path).time == np.datetime64("2019-06-10T12:00:00")


@pytest.mark.parametrize(
    ("calendar", "reference"),
    [
        (calendar, reference)
        for calendar in ("standard", "gregorian", "proleptic_gregorian", "julian")
        for reference in ("0001-01-01", "1500-03-01", "1970-01-01")
    ],
)
def test_calendars_as_xarray_decodes_them(tmp_path, calendar, reference):
    moment = cftime.datetime(2019, 6, 10, 12, 30, calendar=calendar)
    units = f"hours since {reference} 00:00:00.0"
    path = write(
        tmp_path / "a.nc", ("time", cftime.date2num(moment, units), {"units": units, "calendar": calendar})
    )
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    with xr.open_dataset(path, decode_times=coder) as dataset:
        decoded = dataset.time.item()
    expected = decoded.change_calendar("proleptic_gregorian").isoformat()
    assert str(readers.inspect(path).time) == expected
    assert expected.startswith("2019-06-23" if calendar == "julian" else "2019-06-10")


@pytest.mark.parametrize("year", ["0001", "1600", "2300", "9999"])
def test_years_that_are_no_time_fail_the_file_alone(tmp_path, year):
    write(tmp_path / "good.nc", valid())
    write(tmp_path / "bad.nc", ("time", 0.5, {"units": f"days since {year}-01-01"}))
    report = pipeline.preprocess(tmp_path, tmp_path / "p.zarr", recipe=Recipe(tile=TileSpec(patch=32)))
    assert [o.status for o in report.outcomes] == ["written", "failed"]
    assert "expected a time from 1678 to 2199" in report.failed[0].reason
    assert store.open_cube(tmp_path / "p.zarr").time.dtype.kind == "M"
