"""Fields as files declare them: states of radar bins, odd attributes, limits, and several packings in a store."""

from __future__ import annotations

import dataclasses
from itertools import permutations
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import reader_files as files

from gridrad_cube import pipeline, readers, store
from gridrad_cube.schema import CHANNELS, Flag, Packing, Recipe, SchemaError, TileSpec

IR, Z, RAIN, TOPS = "ir_brightness_temperature", "reflectivity", "precipitation_rate", "echo_top_height"
GRID = ("lat", "lon")
SHAPE = (32, 32)
#: How ODIM packs reflectivity.
ODIM = {"scale_factor": 0.5, "add_offset": -32.0}
RECIPE = Recipe(tile=TileSpec(patch=32))


def write(path, name, values, hour=0, extra=None, **attributes):
    coordinates = files.cf_coordinates(np.shape(values))
    dims, time, about = coordinates["time"]
    coordinates["time"] = dims, time + 3600 * hour, about
    fields = {name: (GRID, values, {"units": CHANNELS[name].units, **attributes})} if name else {}
    return files.write_cf(path, fields | (extra or {}), coordinates)


def packing_of(variable):
    return Packing.from_attributes(variable.attrs, variable.dtype)


def states(path, name):
    """Each pixel: m(issing), n(o echo), e(cho), or o(ut of range)."""
    variable = readers.read_scene(path)[name]
    packing = packing_of(variable)
    out = np.full(variable.shape, "?")
    out[packing.out_of_valid_range(variable.values)] = "o"
    out[packing.observed(variable.values)] = "n"
    out[packing.echo(variable.values)] = "e"
    out[packing.missing(variable.values)] = "m"
    return ["".join(row) for row in out]


# --- the states of a radar bin


@pytest.mark.parametrize(
    ("name", "values", "attributes", "expected"),
    [
        (Z, [-999, -99, 0, 50], {"_FillValue": -999, "missing_value": -99}, "mnee"),
        (Z, [-999, -99, 0, 50], {"_FillValue": -99, "missing_value": -999}, "mnee"),
        (Z, [np.nan, -99, 0, 50], {"_FillValue": np.nan, "missing_value": -99}, "mnee"),
        (Z, [-999, -99, 0, 50], {"_FillValue": -999}, "mnee"),
        (Z, [-99903, -99900, 0, 50], {"_FillValue": -99903, "missing_value": -99900}, "mnee"),
        (Z, [-999, -99, 0, 50], {"_FillValue": -99}, "mmee"),  # nothing else says what is missing
        (Z, [-9999000, -8888000, -31.5, 50], {"_FillValue": -9999000, "_Undetect": -8888000}, "mnee"),
        (Z, [-999, -32, -31.5, 50], {"_FillValue": -999, "_Undetect": -32}, "mnee"),
        (TOPS, [-3, -1, 0, 12], {"_FillValue": -3, "missing_value": -1}, "mnee"),
        (TOPS, [-3, -1, 0, 12], {}, "mnee"),
        (RAIN, [-1, 0, 0.1, 50], {"_FillValue": -1}, "mnee"),
        (RAIN, [-3, -1, 0, 50], {}, "mone"),
        (RAIN, [-1, 0, 0.1, 50], {"_FillValue": -1, "missing_value": 0}, "mnee"),
        (RAIN, [-3, -1, 0, 50], {"_FillValue": -3, "missing_value": -1}, "mmne"),
        (RAIN, [-9999000, -8888000, 0, 50], {"_FillValue": -9999000, "_Undetect": -8888000}, "mnne"),
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_three_states_of_floats_however_they_are_declared(
    tmp_path, name, values, attributes, expected, dtype
):
    attributes = {key: np.dtype(dtype).type(value) for key, value in attributes.items()}
    path = write(tmp_path / "a.nc", name, np.array([values, values], dtype), **attributes)
    assert states(path, name) == [expected, expected]


@pytest.mark.parametrize(
    ("name", "dtype", "codes", "attributes", "expected"),
    [
        (Z, "u1", [255, 0, 1, 164], ODIM | {"_FillValue": 255, "_Undetect": 0}, "mnee"),
        (Z, "u1", [0, 1, 2, 164], ODIM | {"_FillValue": 0, "_Undetect": 1}, "mnee"),
        (Z, "u1", [0, 0, 1, 164], ODIM | {"_Undetect": 0.0}, "nnee"),
        (Z, "u2", [65535, 0, 1, 164], ODIM | {"_FillValue": 65535, "_Undetect": 0.0}, "mnee"),
        (Z, "i2", [-32768, -9900, 0, 50], {"scale_factor": 0.01, "_FillValue": -32768}, "mnee"),
        (Z, "i2", [-999, -99, 0, 50], {"_FillValue": -999, "missing_value": -99}, "mnee"),
        (Z, "i2", [-999, -99, 0, 50], {"_FillValue": -99, "missing_value": -999}, "mnee"),
        (Z, "i4", [-9990, -990, 0, 500], {"scale_factor": 0.1, "_FillValue": -9990, "missing_value": -990}, "mnee"),
        (TOPS, "i2", [-30, -10, 0, 120], {"scale_factor": 0.1, "_FillValue": -30, "missing_value": -10}, "mnee"),
        (RAIN, "u2", [9, 0, 1, 50], {"scale_factor": 0.1, "add_offset": -0.1, "_FillValue": 9, "_Undetect": 0}, "mnne"),
        (RAIN, "i2", [-1, 0, 1, 50], {"scale_factor": 0.1, "_FillValue": -1, "missing_value": 0}, "mnee"),
        (RAIN, "u2", [65535, 65534, 0, 50], {"scale_factor": 0.1, "_FillValue": 65535, "missing_value": 65534}, "mmne"),
    ],
)  # fmt: skip
def test_three_states_of_integers_however_they_are_declared(
    tmp_path, name, dtype, codes, attributes, expected
):
    attributes = {
        key: np.dtype(dtype).type(value) if key in ("_FillValue", "missing_value") else value
        for key, value in attributes.items()
    }
    path = write(tmp_path / "a.nc", name, np.array([codes, codes], dtype), **attributes)
    if name == TOPS:  # -1 km lies below heights of 0 km, but codes below it may be heights too
        with pytest.warns(UserWarning, match="packed again exactly"):
            assert states(path, name) == [expected, expected]
        return
    assert states(path, name) == [expected, expected]
    kept = readers.read_scene(path)[name].values[0]
    assert kept.tolist() == [
        code if state != "m" else kept[0] for code, state in zip(codes, expected, strict=True)
    ]


@pytest.mark.parametrize(
    ("codes", "attributes"),
    [
        ([255, 254, 0, 164], {"scale_factor": 0.5, "_FillValue": np.uint8(255), "_Undetect": 254}),
        ([255, 198, 131, 0], {"scale_factor": -0.5, "_FillValue": np.uint8(255)}),
    ],
)
def test_integers_whose_echoes_are_not_above_no_echo_are_packed_again(tmp_path, codes, attributes):
    path = write(tmp_path / "a.nc", Z, np.array([codes, codes], np.uint8), **attributes)
    with pytest.warns(UserWarning, match=r"packed again exactly, as uint16 in steps of 0.01"):
        scene = readers.read_scene(path)
    assert packing_of(scene[Z]) == CHANNELS[Z].packing
    found = scene[Z].values[0]
    assert found[:2].tolist() == [0, 1]
    expected = np.array(codes[2:]) * attributes["scale_factor"]
    np.testing.assert_allclose(packing_of(scene[Z]).decode(found[2:]), expected, atol=1e-4)


# --- attributes


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("i8", -(2**63) + 2), ("i8", 2**63 - 1), ("u8", 2**64 - 1), ("u8", 2**64 - 2), ("i8", 2**53 + 1)],
)
def test_fills_of_64_bit_integers_are_exact(tmp_path, dtype, fill):
    ids = np.full(SHAPE, 2**53, dtype)
    ids[0, 0] = fill
    about = {"_FillValue": np.dtype(dtype).type(fill), "valid_range": np.array([0, 2**53], dtype)}
    kelvin = np.full(SHAPE, 250, "f4")
    path = write(tmp_path / "a.nc", IR, kelvin, extra={"ids": (GRID, ids, about)})
    found = readers.read_scene(path, channels=(IR, "ids"))["ids"]
    packing = packing_of(found)
    assert (packing.fill_value, packing.valid_maximum) == (fill, 2**53)
    assert packing.missing(found.values).sum() == 1
    assert packing.missing(found.values)[0, 0]


@pytest.mark.parametrize("dtype", ["f4", "i2"])
@pytest.mark.parametrize(
    ("attributes", "missing", "message"),
    [
        ({"missing_value": [7, 8]}, 2, "'missing_value' has 2 numbers: each of them is missing"),
        ({"missing_value": "none"}, 0, "'missing_value' is 'none', not numbers: it is ignored"),
        ({"valid_range": "0 to 400"}, 0, "'valid_range' is '0 to 400', not numbers: it is ignored"),
        ({"valid_range": [1, 2, 3]}, 0, r"'valid_range' is \[1.*\], not two numbers: it is ignored"),
        ({"valid_min": [1, 2]}, 0, r"'valid_min' is \[1.*\], not one number: it is ignored"),
        ({"valid_max": "high"}, 0, "'valid_max' is 'high', not numbers: it is ignored"),
    ],
)
def test_optional_attributes_that_cannot_be_used_are_warned_about(
    tmp_path, dtype, attributes, missing, message
):
    attributes = {k: v if isinstance(v, str) else np.array(v, dtype) for k, v in attributes.items()}
    values = np.full(SHAPE, 250, dtype)
    values[0, :2] = 7, 8
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.nc", IR, values, **attributes)
    with pytest.warns(UserWarning, match=f"variable '{IR}': attribute {message}"):
        scene = readers.read_scene(path)
    assert packing_of(scene[IR]).missing(scene[IR].values).sum() == missing
    assert len(scene.attrs["notes"]) == 1
    with pytest.warns(UserWarning, match=message):
        report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    assert report.count("written") == 1
    assert report.outcomes[0].reason == scene.attrs["notes"][0]


@pytest.mark.parametrize(
    ("dtype", "fill"), [("f4", 9.969209968386869e36), ("f8", 9.969209968386869e36), ("i4", -2147483647)]
)
def test_default_fills_in_two_dimensional_coordinates_are_missing(tmp_path, dtype, fill):
    scale = {} if dtype[0] == "f" else {"scale_factor": 1e-4}
    coordinates = {}
    for name, start in (("latitude", 40.0), ("longitude", -100.0)):
        grid = (
            np.meshgrid(np.arange(32) * 0.1, np.arange(32) * 0.1, indexing="ij")[name == "longitude"] + start
        )
        stored = (grid / scale.get("scale_factor", 1.0)).astype(dtype)
        stored[0, :3] = np.dtype(dtype).type(fill)
        coordinates[name] = (("y", "x"), stored, {"standard_name": name, **scale})
    coordinates["time"] = files.cf_coordinates()["time"]
    fields = {IR: (("y", "x"), np.full(SHAPE, 250, "f4"), {"units": "K"})}
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", fields, coordinates))
    assert np.isnan(scene["latitude"].values).sum() == np.isnan(scene["longitude"].values).sum() == 3
    assert np.nanmax(scene["latitude"].values) < 44


# --- limits


@pytest.mark.parametrize(
    ("name", "dtype", "scale", "clean", "wrong"),
    [
        (RAIN, "i4", 0.1, 1800.0, 8647.0), (RAIN, "u2", 0.2, 1872.0, 1872.2), (RAIN, "f4", 1.0, 600.0, 8647.0),
        (Z, "i2", 0.01, 95.0, 95.01), (Z, "f4", 1.0, 94.5, 95.5), (Z, "i2", -0.01, 95.0, 96.0),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*packed again")
def test_values_above_the_physical_maximum_are_out_of_the_valid_range(
    tmp_path, name, dtype, scale, clean, wrong
):
    (tmp_path / "in").mkdir()
    for hour, value in enumerate((clean, wrong)):
        values = np.random.default_rng(hour).uniform(1, 40, SHAPE)
        values[5, 5] = value
        about = {"scale_factor": scale} if dtype[0] != "f" else {}
        stored = values.astype(dtype) if dtype[0] == "f" else np.rint(values / scale).astype(dtype)
        write(tmp_path / "in" / f"{hour}.nc", name, stored, hour, **about)
    pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    cube = store.open_cube(tmp_path / "s.zarr")
    flagged = (cube[f"{name}_flags"].values & int(Flag.out_of_valid_range)).ravel() != 0
    assert flagged.tolist() == [False, True]
    assert cube[f"{name}_maximum"].values.ravel()[1] < 41
    assert np.isnan(cube[name].values[:, 5, 5]).tolist() == [False, True]


def test_limits_of_an_existing_store_stay(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(1, 400, SHAPE).astype("i4")
    values[5, 5] = 86470
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "0.nc", RAIN, values, 0, scale_factor=0.1)
    with monkeypatch.context() as m:
        m.setitem(CHANNELS, RAIN, dataclasses.replace(CHANNELS[RAIN], physical_maximum=np.inf))
        pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    write(tmp_path / "in" / "1.nc", RAIN, values, 1, scale_factor=0.1)
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    assert [o.reason for o in report.outcomes] == ["", ""]
    packed = store.open_packed(tmp_path / "s.zarr")
    np.testing.assert_array_equal(packed[RAIN].values, [values, values])
    assert np.unique(packed[f"{RAIN}_flags"].values & int(Flag.out_of_valid_range)).tolist() == [0]


# --- the user's word on variables


def test_a_file_without_the_variable_named_is_a_file_without_the_channel(tmp_path):
    (tmp_path / "in").mkdir()
    about = {"units": "K", "standard_name": "toa_brightness_temperature"}
    rain = {RAIN: (GRID, np.ones(SHAPE, "f4"), {"units": "mm h-1"})}
    for hour, band in enumerate(("C13", "C08", IR)):
        extra = {band: (GRID, np.full(SHAPE, 200 + 10 * hour, "f4"), about), **rain}
        write(tmp_path / "in" / f"{hour}.nc", "", np.ones(SHAPE), hour, extra)
    recipe = dataclasses.replace(RECIPE, variables=((IR, "C13", None),))
    pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=recipe)
    cube = store.open_packed(tmp_path / "s.zarr")
    absent = (cube[f"{IR}_flags"].values & int(Flag.channel_absent)).ravel() != 0
    assert absent.tolist() == [False, True, True]
    with pytest.raises(SchemaError, match=r"the requested variables \['C13'\] are missing"):
        readers.read_scene(tmp_path / "in" / "1.nc", channels=(IR,), variables=((IR, "C13", None),))


def test_the_users_word_binds_gridrad_files_too(tmp_path):
    dbz = np.full((4, 6, 5), np.nan, "f4")
    dbz[:3, 2, 2] = 30.0
    path = files.write_gridrad(
        tmp_path / "nexrad_3d_v4_2_20110427T220000Z.nc",
        dbz,
        moments={"Second": dbz + 5, "SpectrumWidth": dbz},
    )
    other = readers.read_scene(path, variables=((Z, "Second", None),))["reflectivity_column_maximum"]
    assert np.nanmax(packing_of(other).decode(other.values)) == pytest.approx(35.0, abs=0.01)
    both = readers.read_scene(path, channels=(Z, "spectrum_width"), variables=((Z, "Lost", None),))
    assert tuple(both.data_vars) == ("spectrum_width",)
    with pytest.raises(SchemaError, match="none of the channels"):
        readers.read_scene(path, variables=((Z, "Lost", None),))


# --- several packings in one store


def write_packed(
    folder: Path, hour: int, kelvin, dtype: str, scale: float = 1.0, offset: float = 0.0, **more
):
    if dtype[0] == "f":
        return write(folder / f"{hour}.nc", IR, kelvin.astype(dtype), hour)
    codes = np.rint((kelvin - offset) / scale).astype(dtype)
    return write(folder / f"{hour}.nc", IR, codes, hour, scale_factor=scale, add_offset=offset, **more)


def kelvins(count):
    """Whole hundredths of a kelvin, which every packing below can hold."""
    return [np.random.default_rng(n).integers(20000, 30000, SHAPE) / 100 for n in range(count)]


PACKINGS = [("u2", 0.01), ("i2", 0.01, 200.0), ("i4", 0.01), ("f8",), ("u2", 0.01, 150.0)]


@pytest.mark.parametrize("order", list(permutations(range(5)))[::24])
def test_files_of_several_packings_make_one_store_whatever_comes_first(tmp_path, order):
    (tmp_path / "in").mkdir()
    fields = kelvins(5)
    for hour, (kelvin, kind) in enumerate(zip(fields, order, strict=True)):
        write_packed(tmp_path / "in", hour, kelvin, *PACKINGS[kind])
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    assert report.count("written") == 5
    packed = store.open_packed(tmp_path / "s.zarr")
    assert packing_of(packed[IR]) == CHANNELS[IR].packing
    expected = CHANNELS[IR].packing.encode(np.stack(fields))
    np.testing.assert_array_equal(packed[IR].values, expected)
    assert all("error" not in o.reason for o in report.outcomes)
    assert store.verify(tmp_path / "s.zarr") == []


def test_packings_of_reanalysis_files_state_their_error(tmp_path):
    (tmp_path / "in").mkdir()
    fields = [np.random.default_rng(n).uniform(200, 300 - n, SHAPE) for n in range(3)]
    for hour, kelvin in enumerate(fields):
        scale, offset = np.ptp(kelvin) / 65530, (kelvin.max() + kelvin.min()) / 2
        write_packed(tmp_path / "in", hour, kelvin, "i2", scale, offset, _FillValue=np.int16(-32767))
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    assert report.count("written") == 3
    assert all(
        "packed again with an error of at most 0.005 K, as uint16" in o.reason for o in report.outcomes
    )
    assert "error of at most 0.005 K" in str(report)
    cube = store.open_cube(tmp_path / "s.zarr")
    np.testing.assert_allclose(cube[IR].values, fields, atol=0.005 + 0.001 + 2e-5)


def test_one_odd_packing_for_all_files_keeps_every_code(tmp_path):
    (tmp_path / "in").mkdir()
    for hour, kelvin in enumerate(kelvins(2)):
        write_packed(tmp_path / "in", hour, kelvin, "i4", 0.003, 17.0)
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    assert [o.reason for o in report.outcomes] == ["", ""]
    packed = store.open_packed(tmp_path / "s.zarr")
    assert packed[IR].dtype == np.int32
    for hour in range(2):
        with netCDF4.Dataset(tmp_path / "in" / f"{hour}.nc") as file:
            file.set_auto_maskandscale(False)
            np.testing.assert_array_equal(packed[IR].values[hour], file[IR][...])


def test_a_file_of_another_packing_is_added_to_a_store_or_refused_with_the_remedy(tmp_path):
    (tmp_path / "in").mkdir()
    first, exact, rounded, far = kelvins(4)
    far[3, 3] = 340.0
    write_packed(tmp_path / "in", 0, first, "u1", 1.0, 75.0, _FillValue=np.uint8(255))
    pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    write_packed(tmp_path / "in", 1, np.rint(exact), "i2", 0.5, 100.0)
    write_packed(tmp_path / "in", 2, rounded, "f4")
    write_packed(tmp_path / "in", 3, far, "f4")
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    reasons = [o.reason for o in report.outcomes]
    assert "with an error of at most 0.5 K, as uint8 in steps of 1" in reasons[1]
    assert "with an error of at most 0.5 K, as uint8 in steps of 1" in reasons[2]
    assert report.failed == (report.outcomes[3],)
    assert (
        "has a value of 340 K that the packing of the store (uint8 in steps of 1) has no code for"
        in reasons[3]
    )
    assert "Build a new store from all of the files" in reasons[3]
    cube = store.open_cube(tmp_path / "s.zarr")
    np.testing.assert_array_equal(cube[IR].values[1], np.rint(exact))
    np.testing.assert_allclose(cube[IR].values[2], rounded, atol=0.501)
    pipeline.preprocess(tmp_path / "in", tmp_path / "again.zarr", recipe=RECIPE)
    again = store.open_cube(tmp_path / "again.zarr")
    np.testing.assert_allclose(again[IR].values[3], far, atol=0.0051)


def test_states_of_rain_survive_another_packing(tmp_path):
    (tmp_path / "in").mkdir()
    rain = np.zeros(SHAPE)
    rain[10:20, 10:20] = 12.3
    rain[0] = np.nan
    write(tmp_path / "in" / "0.nc", RAIN, rain.astype("f4"), 0)
    for hour, dtype in ((1, "i2"), (2, "u2"), (3, "i4")):
        codes = np.rint(np.where(np.isnan(rain), 0, rain) * 10).astype(dtype)
        fill = np.iinfo(dtype).max
        codes[0] = fill
        write(
            tmp_path / "in" / f"{hour}.nc",
            RAIN,
            codes,
            hour,
            scale_factor=0.1,
            _FillValue=np.dtype(dtype).type(fill),
        )
    pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=RECIPE)
    packed = store.open_packed(tmp_path / "s.zarr")[RAIN]
    assert packing_of(packed) == CHANNELS[RAIN].packing
    for hour in range(1, 4):
        np.testing.assert_array_equal(packed.values[hour], packed.values[0])


def test_labels_of_several_types_become_floats_that_hold_them(tmp_path):
    (tmp_path / "in").mkdir()
    for hour, dtype in enumerate(("i2", "u2", "u1")):
        numbers = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(dtype) // 8
        extra = {"cells": (GRID, numbers, {"long_name": "number of the cell"})}
        write(tmp_path / "in" / f"{hour}.nc", IR, np.full(SHAPE, 250, "f4"), hour, extra)
    recipe = dataclasses.replace(RECIPE, channels=(IR, "cells"))
    report = pipeline.preprocess(tmp_path / "in", tmp_path / "s.zarr", recipe=recipe)
    assert report.count("written") == 3
    assert all("cells: packed again exactly" in o.reason for o in report.outcomes)
    cells = store.open_cube(tmp_path / "s.zarr")["cells"].values
    np.testing.assert_array_equal(cells[0], np.arange(1024).reshape(SHAPE) // 8)
    np.testing.assert_array_equal(cells[1], cells[0])
