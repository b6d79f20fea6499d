"""One file in, one scene out: every layout, every tolerated variation, every fault by its message."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import reader_files as files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridrad_cube import readers
from gridrad_cube.readers import files as safety
from gridrad_cube.readers.header import Header, _make_grid
from gridrad_cube.readers.times import parse_stamp, parse_time
from gridrad_cube.schema import CHANNELS, Packing, RadarSpec, SchemaError

LARC_NAME = "NASALARC_GOES16_CONVECTION_DETECTION_20210705_1750.nc"
GRIDRAD_NAME = "nexrad_3d_v4_2_20110427T220000Z.nc"
IR, VIS, Z, COLUMN = (
    "ir_brightness_temperature",
    "visible_reflectance",
    "reflectivity",
    "reflectivity_column_maximum",
)
in_any_folder = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def packing_of(variable) -> Packing:
    return Packing.from_attributes(variable.attrs, variable.dtype)


# --- LaRC GOES ------------------------------------------------------------------------------------------------


def test_larc_scene_keeps_the_contract_and_agrees_with_its_header(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME)
    scene, header = readers.read_scene(path), readers.inspect(path)
    files.check_scene(scene)
    assert header.format == scene.attrs["source_format"] == "larc_goes"
    assert header.channels == tuple(scene.data_vars) == (IR, VIS)
    assert header.shape == (scene.sizes["y"], scene.sizes["x"]) == (12, 9)
    assert header.time == scene["time"].values
    assert header.product == scene.attrs["product"]
    assert header.altitudes == ()


def test_larc_codes_stay_bit_for_bit_and_the_valid_range_is_in_codes(tmp_path):
    codes = files.larc_codes((12, 9))
    scene = readers.read_scene(files.write_larc(tmp_path / LARC_NAME))
    assert scene[IR].dtype == np.uint16
    np.testing.assert_array_equal(scene[IR].values, codes)
    packing = packing_of(scene[IR])
    assert (packing.scale_factor, packing.fill_value) == (0.01, 65535)  # 0.01 and not float32's 0.00999
    assert (packing.valid_minimum, packing.valid_maximum) == (15000, 35000)
    assert scene[IR].attrs["units"] == "K"
    values = packing.decode(codes)
    assert np.isnan(values[[0, 0, 1], [0, 1, 0]]).all()  # missing, 140 K, 360 K
    assert np.isfinite(values).sum() == codes.size - 3


@pytest.mark.parametrize(
    ("named_dims", "time_dim", "scan_time"), list(itertools.product((False, True), repeat=3))
)
def test_larc_variations_of_the_layout_read_alike(tmp_path, named_dims, time_dim, scan_time):
    plain = readers.read_scene(files.write_larc(tmp_path / "a_20210705_1750.nc"))
    path = files.write_larc(
        tmp_path / "b_20210705_1750.nc", named_dims=named_dims, time_dim=time_dim, scan_time=scan_time
    )
    scene = readers.read_scene(path)
    files.check_scene(scene)
    assert ("observation_time" in scene.coords) == scan_time
    assert scene.drop_vars("observation_time", errors="ignore").identical(plain.drop_vars("observation_time"))


def test_larc_axes_are_rebuilt_on_the_lattice_in_float64(tmp_path):
    scene = readers.read_scene(files.write_larc(tmp_path / LARC_NAME, shape=(300, 200)))
    np.testing.assert_array_equal(scene["latitude"].values, (2 * 1680 + 1 + 2 * np.arange(300)) / 112)
    np.testing.assert_array_equal(scene["longitude"].values, (-2 * 5880 + 1 + 2 * np.arange(200)) / 112)


def test_larc_rows_keep_their_order_and_longitudes_are_wrapped(tmp_path):
    north_up = readers.read_scene(files.write_larc(tmp_path / "n_20210705_1750.nc", descending=True))
    assert (np.diff(north_up["latitude"]) < 0).all()
    east = files.write_larc(tmp_path / "e_20210705_1750.nc", first=(30 + 0.5 / 56, 255 + 0.5 / 56))
    west = files.write_larc(tmp_path / "w_20210705_1750.nc")
    assert readers.inspect(east).grid_id == readers.inspect(west).grid_id
    assert readers.inspect(tmp_path / "n_20210705_1750.nc").grid_id != readers.inspect(west).grid_id


@given(latitude=st.floats(-60, 50), longitude=st.floats(-179, 150))
@in_any_folder
def test_larc_axes_never_move_a_pixel(tmp_path, latitude, longitude):
    path = files.write_larc(tmp_path / LARC_NAME, shape=(40, 30), first=(latitude, longitude))
    scene = readers.read_scene(path, channels=(IR,))
    assert np.abs(scene["latitude"].values - (latitude + np.arange(40) / 56)).max() < 1e-3
    assert np.abs(scene["longitude"].values - (longitude + np.arange(30) / 56)).max() < 1e-3
    assert np.ptp(np.diff(scene["latitude"].values)) < 1e-9  # no float32 jitter


def test_larc_irregular_axis_is_kept_as_it_is():
    latitude = np.array([30.0, 30.01, 30.05])
    found, _ = _make_grid(latitude, latitude + 10, where="x", lattice=(112,), tolerance=1e-4)
    np.testing.assert_array_equal(found, latitude)


def test_larc_channel_missing_from_a_file_is_left_out(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME, visible=False)
    assert readers.inspect(path).channels == (IR,)
    assert readers.inspect(path, channels=(VIS, IR)).channels == (IR,)
    assert tuple(readers.read_scene(path, channels=(VIS, IR)).data_vars) == (IR,)
    with pytest.raises(
        SchemaError, match=r"none of the channels \['visible_reflectance'\]; got variables \[ir_br"
    ):
        readers.read_scene(path, channels=(VIS,))


def test_larc_file_with_neither_channel_says_what_it_has(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME, visible=False, infrared=False)
    with pytest.raises(
        SchemaError, match=r"neither channel .* variables \[latitude, longitude, ot_id_number"
    ):
        readers.inspect(path)


def test_larc_time_is_rounded_to_the_second(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME, time="2021-07-05T17:50:17")
    scene = readers.read_scene(path)
    assert scene["time"].values == np.datetime64("2021-07-05T17:50:17", "s")
    expected = np.datetime64("2021-07-05T17:50:17", "s") + np.arange(12).astype("timedelta64[s]")
    np.testing.assert_array_equal(scene["observation_time"].values, expected)


def test_larc_time_is_held_against_the_file_name(tmp_path):
    assert readers.inspect(files.write_larc(tmp_path / "x_20210705_1742.nc"))
    assert readers.inspect(files.write_larc(tmp_path / "no_stamp.nc")).time == np.datetime64(
        "2021-07-05T17:50:17"
    )
    late = files.write_larc(tmp_path / "x_20210705_1730.nc")
    with pytest.raises(
        SchemaError, match="time variable says 2021-07-05T17:50:17, the file name says 2021-07-05T17:30"
    ):
        readers.inspect(late)


def test_larc_time_falls_back_to_the_file_name(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME, time_variable=False)
    assert readers.inspect(path).time == np.datetime64("2021-07-05T17:50:00")
    with pytest.raises(SchemaError, match=r"no time; expected one of .*Rename the file"):
        readers.inspect(files.write_larc(tmp_path / "none.nc", time_variable=False))


def test_larc_satellite_is_known_by_name_only(tmp_path):
    goes = readers.read_scene(files.write_larc(tmp_path / LARC_NAME))
    assert goes.attrs["satellite_longitude"] == -75.2
    plain = readers.read_scene(files.write_larc(tmp_path / "plain.nc"))
    assert "satellite_longitude" not in plain.attrs
    assert plain.attrs["product"] == goes.attrs["product"]  # a copy by another name is a duplicate


def test_larc_visible_percent_is_composed_into_the_scale(tmp_path):
    units = {VIS: {"units": "percent", "scale_factor": np.float32(0.01)}}
    path = files.write_larc(tmp_path / LARC_NAME, attributes=units)
    scene = readers.read_scene(path)
    assert scene[VIS].attrs["units"] == "1"
    assert packing_of(scene[VIS]).scale_factor == 0.0001
    np.testing.assert_array_equal(scene[VIS].values, files.larc_codes((12, 9), 1) // 4)


def test_larc_visible_without_units_is_refused_and_the_remedy_works(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME, attributes={VIS: {"units": None}})
    with pytest.raises(SchemaError, match=r"no units; expected some of .*Pass variables="):
        readers.read_scene(path)
    scene = readers.read_scene(path, variables=((VIS, VIS, "%"),))
    assert packing_of(scene[VIS]).scale_factor == pytest.approx(1e-6)


def test_larc_unpacked_floats_are_packed_by_the_table(tmp_path):
    kelvin = np.full((12, 9), 250.004, np.float32)
    kelvin[0, :4] = np.nan, 100.0, 400.0, np.inf
    attributes = {IR: {"scale_factor": None, "valid_range": None, "_FillValue": np.float32(np.nan)}}
    path = files.write_larc(tmp_path / LARC_NAME, data={IR: kelvin}, attributes=attributes)
    codes = readers.read_scene(path)[IR]
    assert packing_of(codes) == CHANNELS[IR].packing
    assert codes.values[0, :5].tolist() == [65535, 65534, 65534, 65533, 25000]


# --- GridRad --------------------------------------------------------------------------------------------------


def radar_values(shape=(6, 10, 12), seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-20, 60, shape).astype(np.float32)
    values[rng.uniform(size=shape) < 0.6] = np.nan
    return values


def looked_at(values: np.ndarray) -> np.ndarray:
    counts = np.full(values.shape, 4, np.int8)
    counts[:, :3] = 0
    return np.where(np.isfinite(values), np.maximum(counts, 1), counts)


def expected_codes(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    out = np.where(counts != 0, 1, 0).astype(np.uint16)
    listed = np.isfinite(values)
    out[listed] = CHANNELS[Z].packing.encode(values[listed])
    return out


@pytest.fixture
def volume(tmp_path):
    values = radar_values()
    counts = looked_at(values)
    path = files.write_gridrad(tmp_path / GRIDRAD_NAME, values, nradobs=counts)
    return path, values, counts


def test_gridrad_bins_keep_three_states(volume):
    path, values, counts = volume
    scene = readers.read_scene(path, channels=(Z,))
    files.check_scene(scene)
    codes = scene[Z].values
    np.testing.assert_array_equal(codes, expected_codes(values, counts))
    assert scene["altitude"].values.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    decoded = packing_of(scene[Z]).decode(codes)
    assert np.isnan(decoded[codes == 0]).all()
    np.testing.assert_allclose(decoded[codes == 1], -99.0)
    listed = np.isfinite(values)
    np.testing.assert_allclose(decoded[listed], values[listed], atol=0.0051)


def test_gridrad_default_is_the_column_maximum(volume):
    path, values, counts = volume
    scene, header = readers.read_scene(path), readers.inspect(path)
    files.check_scene(scene)
    assert header.channels == tuple(scene.data_vars) == (COLUMN,)
    assert header.altitudes == ()
    assert header.format == "gridrad_v4_2"
    codes = expected_codes(values, counts)
    np.testing.assert_array_equal(scene[COLUMN].values, codes.max(axis=0))
    unseen = scene[COLUMN].values == 0
    np.testing.assert_array_equal(unseen, (codes == 0).all(axis=0))


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["i4", "u4", "i8"]))
@in_any_folder
def test_gridrad_order_and_dtype_of_the_index_do_not_matter(tmp_path, seed, dtype):
    values = radar_values(seed=seed)
    counts = looked_at(values)
    path = files.write_gridrad(
        tmp_path / GRIDRAD_NAME, values, nradobs=counts, order=np.random.default_rng(seed), index_dtype=dtype
    )
    np.testing.assert_array_equal(
        readers.read_scene(path, channels=(Z,))[Z].values, expected_codes(values, counts)
    )
    some = readers.read_scene(path, channels=("reflectivity@1.0km", "reflectivity@2km"))
    np.testing.assert_array_equal(some[Z].values, expected_codes(values, counts)[[1, 3]])


def test_gridrad_listed_bins_without_value_or_without_looks(tmp_path):
    values = np.full((3, 2, 2), np.nan, np.float32)
    values[0, 0, 0], values[1, 0, 0] = 20.0, np.inf
    listed = np.isfinite(values)
    listed[:, 0] = True
    counts = np.ones(values.shape, np.int8)
    counts[0, 0, 0], counts[2, 0, 1], counts[2, 1, 1] = 0, 0, -56  # 200 sweeps as int8
    path = files.write_gridrad(tmp_path / GRIDRAD_NAME, values, nradobs=counts, listed=listed)
    codes = readers.read_scene(path, channels=(Z,))[Z].values
    assert codes[0, 0, 0] == CHANNELS[Z].packing.encode(20.0)  # a value was given, also with another count
    assert codes[0, 0, 1] == 0  # listed, looked at, no value: an echo that is not known
    assert codes[2, 0, 1] == 0  # listed, never looked at, no value
    assert codes[1, 0, 0] == 5  # not finite
    assert codes[2, 1, 1] == 1


def test_gridrad_volume_without_any_echo_reads(tmp_path):
    values = np.full((3, 4, 5), np.nan, np.float32)
    path = files.write_gridrad(tmp_path / GRIDRAD_NAME, values, nradobs=np.ones(values.shape))
    assert (readers.read_scene(path)[COLUMN].values == 1).all()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.r_[0:5, 5 * 6 * 7], "index runs from 0 to 210; expected 0 to 209"),
        (np.r_[-1, 0:5], "index runs from -1"),
        (np.array([3, 7, 7, 9, 2, 11]), "index lists 1 bins twice, 7 first"),
    ],
)
def test_gridrad_broken_index_is_refused(tmp_path, index, message):
    values = np.full((5, 6, 7), np.nan, np.float32)
    values.ravel()[:6] = 10.0
    path = files.write_gridrad(tmp_path / GRIDRAD_NAME, values, index=index)
    with pytest.raises(SchemaError, match=message):
        readers.read_scene(path)


def test_gridrad_wrong_shapes_are_refused(tmp_path, volume):
    path, _, _ = volume
    with netCDF4.Dataset(path, "a") as f:
        f.createDimension("Short", 4)
        f.createVariable("SpectrumWidth", "f4", ("Short",))
    with pytest.raises(SchemaError, match=r"SpectrumWidth has shape .*expected .*, that of index"):
        readers.inspect(path)


def test_gridrad_longitudes_and_float32_axes_snap_to_the_lattice(tmp_path):
    values = radar_values((2, 9, 11))
    v4 = readers.read_scene(files.write_gridrad(tmp_path / "a.nc", values, axis_dtype="f4"))
    np.testing.assert_array_equal(v4["latitude"].values, (2641 + 2 * np.arange(9)) / 96)
    np.testing.assert_array_equal(v4["longitude"].values, (25681 + 2 * np.arange(11) - 360 * 96) / 96)
    path = files.write_gridrad(tmp_path / "b.nc", values, version="v3_1", altitude_km=[1, 2], axis_dtype="f4")
    v3 = readers.read_scene(path)
    np.testing.assert_array_equal(v3["latitude"].values, (1250 + np.arange(9)) / 50)
    np.testing.assert_array_equal(v3["longitude"].values, (12250 + np.arange(11) - 18000) / 50)
    west = files.write_gridrad(
        tmp_path / "c.nc", values, longitude=(25681 + 2 * np.arange(11) - 360 * 96) / 96
    )
    assert readers.inspect(west).grid_id == readers.inspect(tmp_path / "a.nc").grid_id
    assert v3.attrs["source_format"] == "gridrad_v3_1"


def test_gridrad_version_is_found_by_content(tmp_path):
    values = radar_values((2, 9, 11))
    plain = files.write_gridrad(tmp_path / "a.nc", values, attributes={"Algorithm_version": None})
    assert readers.inspect(plain).format == "gridrad_v4_2"
    with netCDF4.Dataset(plain, "a") as f:
        f.createDimension("File", 2)
        f.createVariable("files_merged", "i1", ("File",))
    assert readers.inspect(plain).format == "gridrad_v3_1"
    said = files.write_gridrad(tmp_path / "b.nc", values, attributes={"Algorithm_version": "Version 3.1"})
    assert readers.inspect(said).format == "gridrad_v3_1"
    with pytest.raises(SchemaError, match="the file is gridrad_v3_1, got format='gridrad_v4_2'"):
        readers.inspect(said, format="gridrad_v4_2")
    assert readers.inspect(said, format="gridrad").format == "gridrad_v3_1"


def test_gridrad_time_falls_back_and_is_held_together(tmp_path):
    values = radar_values((2, 3, 4))
    write = files.write_gridrad
    by_attribute = write(tmp_path / "a.nc", values, time_variable=False)
    assert readers.inspect(by_attribute).time == np.datetime64("2011-04-27T22:00:00")
    silent = {"Analysis_time": "..."}
    by_name = write(tmp_path / GRIDRAD_NAME, values, time_variable=False, attributes=silent)
    assert readers.inspect(by_name).time == np.datetime64("2011-04-27T22:00:00")
    with pytest.raises(SchemaError, match="no time; expected one of"):
        readers.inspect(write(tmp_path / "b.nc", values, time_variable=False, attributes=silent))
    wrong = write(tmp_path / "c.nc", values, attributes={"Analysis_time": "2011-04-27 22:05:00Z"})
    with pytest.raises(
        SchemaError, match=r"the time variable says 2011-04-27T22:00:00, Analysis_time says .*22:05"
    ):
        readers.inspect(wrong)
    renamed = write(tmp_path / "nexrad_3d_v4_2_20110427T230000Z.nc", values)
    with pytest.raises(
        SchemaError, match="the file name says 2011-04-27T23:00:00; expected them within 60 s"
    ):
        readers.inspect(renamed)


def test_gridrad_altitudes_are_matched_or_refused_with_the_list(volume):
    path, values, counts = volume
    codes = expected_codes(values, counts)
    labels = ("reflectivity@2.5km", "reflectivity@1.009km")
    scene, header = readers.read_scene(path, channels=labels), readers.inspect(path, channels=labels)
    files.check_scene(scene)
    assert header.altitudes == (1.0, 2.5)
    assert header.channels == (Z,)
    np.testing.assert_array_equal(scene[Z].values, codes[[1, 4]])
    by_spec = readers.read_scene(path, channels=(Z,), radar=RadarSpec(altitudes_km=(2.5, 1.0)))
    assert by_spec.identical(scene)
    with pytest.raises(
        SchemaError, match=r"no level at 3.011 km; expected one of \[0.5, 1.0, .* not interpolated"
    ):
        readers.inspect(path, channels=("reflectivity@3.011km",))
    with pytest.raises(SchemaError, match="reflectivity_column_maximum has no altitude"):
        readers.inspect(path, channels=("reflectivity_column_maximum@3km",))
    with pytest.raises(SchemaError, match="expected a name or name@altitude"):
        readers.inspect(path, channels=("reflectivity@low",))


def test_gridrad_moments_share_the_index_and_one_list_of_altitudes(tmp_path):
    values = radar_values()
    counts = looked_at(values)
    moments = {
        "SpectrumWidth": np.abs(values) / 10,
        "AzShear": values / 1e4,
        "CorrelationCoefficient": values / 70,
    }
    path = files.write_gridrad(
        tmp_path / GRIDRAD_NAME, values, nradobs=counts, moments=moments, order=np.random.default_rng(1)
    )
    asked = ("spectrum_width", "azimuthal_shear", "correlation_coefficient", "echo_top_height")
    scene = readers.read_scene(path, channels=asked)
    files.check_scene(scene)
    assert tuple(scene.data_vars) == asked
    listed = np.isfinite(values)
    for name, field, step in (
        ("spectrum_width", "SpectrumWidth", 0.01),
        ("azimuthal_shear", "AzShear", 1e-5),
    ):
        codes = scene[name].values
        np.testing.assert_array_equal(codes[~listed], np.where(counts != 0, 1, 0)[~listed])
        np.testing.assert_allclose(
            packing_of(scene[name]).decode(codes)[listed], moments[field][listed], atol=0.51 * step
        )
    with pytest.raises(SchemaError, match="ask for different altitudes; expected one list"):
        readers.inspect(path, channels=("reflectivity@1.0km", "spectrum_width"))
    with pytest.raises(SchemaError, match=r"none of the channels \['divergence'\]"):
        readers.inspect(path, channels=("divergence",))


@pytest.mark.parametrize("missing", [np.nan, -9999.0])
def test_gridrad_dense_files_cannot_tell_no_echo_from_not_observed(tmp_path, missing):
    values = radar_values()
    path = files.write_gridrad_dense(tmp_path / "nexrad_3d_4_1_20170328T120000Z.nc", values, missing=missing)
    scene = readers.read_scene(path, channels=(Z, COLUMN))
    files.check_scene(scene)
    assert scene.attrs["source_format"] == "gridrad_v4_1"
    listed = np.isfinite(values)
    assert (scene[Z].values[~listed] == 0).all()
    np.testing.assert_array_equal(scene[Z].values[listed], CHANNELS[Z].packing.encode(values[listed]))
    one = readers.read_scene(path, channels=("reflectivity@2.0km",))
    np.testing.assert_array_equal(one[Z].values[0], scene[Z].values[3])
    with pytest.raises(SchemaError, match=r"none of the channels \['azimuthal_shear'\]"):
        readers.inspect(path, channels=("azimuthal_shear",))


def test_volume_lets_quality_control_come_between_reading_and_deriving(volume):
    path, values, counts = volume
    volumes = []

    def look(bins, wanted):
        volumes.append(bins)
        return {}

    readers.read_scene(path, channels=(COLUMN,), clean=look)
    (bins,) = volumes
    assert bins.version == "4.2"
    assert (np.diff(bins.index) > 0).all()
    np.testing.assert_array_equal(bins.values[Z], values.ravel()[bins.index])
    at_levels = [bins.at_bins(bins.nradobs, level) for level in bins.levels]
    np.testing.assert_array_equal(np.concatenate(at_levels), counts.ravel()[bins.index])
    for level in bins.levels:
        assert set(bins.index[bins.part(level)] // 120) <= {level}
    states = np.where(bins.values[Z] < 10, 2, 0).astype(np.uint8)
    dense = readers.densify(bins, Z, states=states)
    np.testing.assert_array_equal(dense == 2, values < 10)
    np.testing.assert_array_equal(dense[dense != 2], expected_codes(values, counts)[dense != 2])

    seen = []

    def clean(bins, wanted):
        seen.append((set(bins.weights), wanted))
        states = np.where(bins.values[Z] < 10, 2, 0).astype(np.uint8)
        return {Z: readers.densify(bins, Z, states=states)}

    scene = readers.read_scene(path, channels=(COLUMN, "reflectivity@1.0km"), clean=clean)
    assert seen == [({Z}, (Z,))]
    np.testing.assert_array_equal(scene[COLUMN].values, dense.max(axis=0))
    np.testing.assert_array_equal(scene[Z].values[0], dense[1])


# --- CF -------------------------------------------------------------------------------------------------------

GRID = ("lat", "lon")


def ramp(dtype="f4", shape=(6, 5)) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_cf_scene_keeps_the_contract(tmp_path):
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, title="mosaic")
    scene, header = readers.read_scene(path), readers.inspect(path)
    files.check_scene(scene)
    assert header.format == "cf"
    assert scene["time"].values == np.datetime64("2019-06-10T00:00:00")
    assert scene["longitude"].values[0] == pytest.approx(-100.0)
    assert (np.diff(scene["latitude"]) < 0).all()
    assert header.product == "mosaic (reflectivity)"
    np.testing.assert_allclose(packing_of(scene[Z]).decode(scene[Z].values), ramp(), atol=0.006)


def test_cf_integer_rain_keeps_its_codes(tmp_path):
    codes = ramp("i2") - 3
    codes[0, :2] = -32768, 0
    attributes = {"units": "mm/h", "scale_factor": 0.1, "_FillValue": np.int16(-32768)}
    scene = readers.read_scene(
        files.write_cf(tmp_path / "a.nc", {"precipitation_rate": (GRID, codes, attributes)})
    )
    files.check_scene(scene)
    rain = scene["precipitation_rate"]
    assert rain.dtype == np.int16
    np.testing.assert_array_equal(rain.values, codes)
    packing = packing_of(rain)
    assert (packing.no_echo, packing.echo_minimum, packing.fill_value) == (0, 1, -32768)
    assert packing.out_of_valid_range(codes).sum() == 1  # -1; -3 and -2 were overwritten
    np.testing.assert_array_equal(packing.echo(codes), codes > 0)


def test_cf_integer_reflectivity_has_its_no_echo_code(tmp_path):
    codes = (ramp("i2") * 100).astype("i2")
    codes[0, :3] = -32768, -9900, -3100
    attributes = {"units": "dBZ", "scale_factor": 0.01, "_FillValue": np.int16(-32768)}
    packing = packing_of(
        readers.read_scene(files.write_cf(tmp_path / "a.nc", {Z: (GRID, codes, attributes)}))[Z]
    )
    assert (packing.no_echo, packing.echo_minimum) == (-9900, -9899)
    assert packing.missing(codes).sum() == 1
    assert packing.echo(codes).sum() == 28
    assert packing.observed(codes).sum() == 29


def test_cf_byte_reflectivity_without_a_code_for_no_echo_is_all_echo(tmp_path):
    codes = ramp("u1")
    attributes = {"units": "dBZ", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": np.uint8(255)}
    variable = readers.read_scene(files.write_cf(tmp_path / "a.nc", {Z: (GRID, codes, attributes)}))[Z]
    assert variable.dtype == np.uint8
    packing = packing_of(variable)
    assert packing.no_echo is None
    assert packing.echo(codes).all()


def test_cf_float_radar_and_rain_states(tmp_path):
    dbz = np.array([[np.nan, -9999, -999, -99, -31, 50.0]], np.float32).repeat(2, axis=0)
    rain = np.array([[np.nan, -9999, -1, 0.0, 0.004, 0.01]], np.float32).repeat(2, axis=0)
    fill = {"_FillValue": np.float32(-9999)}
    path = files.write_cf(
        tmp_path / "a.nc",
        {Z: (GRID, dbz, {"units": "dBZ"}), "precipitation_rate": (GRID, rain, {"units": "mm h-1", **fill})},
        files.cf_coordinates((2, 6)),
    )
    scene = readers.read_scene(path)
    files.check_scene(scene)
    assert scene[Z].values[0].tolist() == [0, 0, 0, 1, 6801, 14901]
    assert scene["precipitation_rate"].values[0].tolist() == [0, 0, 65534, 1, 1, 2]


@pytest.mark.parametrize(
    ("channel", "units", "factor", "offset"),
    [
        (IR, "degC", 1.0, 273.15),
        (IR, "Celsius", 1.0, 273.15),
        (IR, "kelvin", 1.0, 0.0),
        (VIS, "%", 0.01, 0.0),
        ("echo_top_height", "m", 0.001, 0.0),
        ("precipitation_rate", "kg m-2 s-1", 3600.0, 0.0),
        ("precipitation_rate", "mm hr^-1", 1.0, 0.0),
        ("spectrum_width", "m/s", 1.0, 0.0),
    ],
)
def test_cf_units_are_composed_into_the_packing_of_integers(tmp_path, channel, units, factor, offset):
    codes = ramp("i2") + 10
    attributes = {"units": units, "scale_factor": 0.5, "add_offset": 2.0, "_FillValue": np.int16(-1)}
    variable = readers.read_scene(files.write_cf(tmp_path / "a.nc", {channel: (GRID, codes, attributes)}))[
        channel
    ]
    np.testing.assert_array_equal(variable.values, codes)
    assert variable.attrs["units"] == CHANNELS[channel].units
    packing = packing_of(variable)
    assert packing.scale_factor == pytest.approx(0.5 * factor)
    assert packing.add_offset == pytest.approx(2.0 * factor + offset)


def test_cf_units_that_are_unknown_or_absent_are_refused(tmp_path):
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp(), {"units": "furlongs"})})
    with pytest.raises(SchemaError, match="units 'furlongs' for reflectivity; expected some of"):
        readers.read_scene(path)
    own_name = files.write_cf(tmp_path / "b.nc", {Z: (GRID, ramp(), {})})
    assert tuple(readers.read_scene(own_name).data_vars) == (Z,)
    visible = files.write_cf(tmp_path / "c.nc", {VIS: (GRID, ramp(), {})})
    with pytest.raises(SchemaError, match="no units"):
        readers.read_scene(visible)
    other = files.write_cf(tmp_path / "d.nc", {"DBZ": (GRID, ramp(), {})})
    with pytest.raises(SchemaError, match=r"no units; .*Pass variables="):
        readers.read_scene(other, variables=((Z, "DBZ", None),))
    assert tuple(readers.read_scene(other, variables=((Z, "DBZ", "dBZ"),)).data_vars) == (Z,)


def test_cf_fields_are_found_by_standard_name_or_the_user_says(tmp_path):
    standard = {"standard_name": "rainfall_rate", "units": "mm h-1"}
    path = files.write_cf(tmp_path / "a.nc", {"rr": (GRID, ramp(), standard), "q": (GRID, ramp(), {})})
    assert tuple(readers.read_scene(path).data_vars) == ("precipitation_rate",)
    two = files.write_cf(tmp_path / "b.nc", {"rr": (GRID, ramp(), standard), "qpe": (GRID, ramp(), standard)})
    with pytest.raises(SchemaError, match=r"\['rr', 'qpe'\] may each be precipitation_rate"):
        readers.read_scene(two)
    chosen = readers.read_scene(two, variables=(("precipitation_rate", "qpe", None),))
    assert tuple(chosen.data_vars) == ("precipitation_rate",)
    nothing = files.write_cf(tmp_path / "c.nc", {"q": (GRID, ramp(), {})})
    with pytest.raises(SchemaError, match=r"none of the channels .* variables \[lat, lon, q, time\]"):
        readers.read_scene(nothing)


def test_cf_two_dimensional_and_transposed_coordinates(tmp_path):
    lat, lon = np.meshgrid(40 - np.arange(6) * 0.1, 260 + np.arange(5) * 0.1, indexing="ij")
    lat[0, 0] = lon[0, 0] = np.nan
    coordinates = {
        "latitude": (("y", "x"), lat, {}), "longitude": (("y", "x"), lon, {}),
        "time": files.cf_coordinates()["time"],
    }  # fmt: skip
    fields = {Z: (("x", "y"), ramp().T, {"units": "dBZ"})}
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", fields, coordinates))
    files.check_scene(scene)
    assert scene["latitude"].dims == ("y", "x")
    assert np.isnan(scene["latitude"].values[0, 0])
    plain = readers.read_scene(
        files.write_cf(tmp_path / "b.nc", {Z: (("lon", "lat"), ramp().T, {"units": "dBZ"})})
    )
    np.testing.assert_array_equal(scene[Z].values, plain[Z].values)
    np.testing.assert_allclose(packing_of(plain[Z]).decode(plain[Z].values), ramp(), atol=0.006)


def test_cf_projected_axes_without_a_projection_are_refused_with_a_remedy(tmp_path):
    metres = {"units": "m", "standard_name": "projection_x_coordinate"}
    coordinates = {"x": (("x",), np.arange(5.0), metres), "y": (("y",), np.arange(6.0), {"units": "m"})}
    path = files.write_cf(tmp_path / "a.nc", {Z: (("y", "x"), ramp(), {"units": "dBZ"})}, coordinates)
    with pytest.raises(
        SchemaError, match=r"lies on coordinates of a projection.*or latitude\(y, x\) and longitude\(y, x\)"
    ):
        readers.read_scene(path)
    bare = files.write_cf(tmp_path / "b.nc", {Z: (("a", "b"), ramp(), {"units": "dBZ"})}, {})
    with pytest.raises(SchemaError, match="no latitude and longitude that make a grid"):
        readers.read_scene(bare)


def test_a_file_of_several_times_is_several_scenes(tmp_path):
    values = ramp(shape=(3, 6, 5)) + np.array([0, 1, 2], np.float32)[:, None, None]
    times = {"time": (("time",), [0.0, 120.0, 60.0], {"units": "seconds since 2019-06-10"})}
    path = files.write_cf(
        tmp_path / "a.nc", {Z: (("time", *GRID), values, {"units": "dBZ"})}, files.cf_coordinates() | times
    )
    header = readers.inspect(path)
    assert [str(t)[-5:] for t in header.times] == ["00:00", "02:00", "01:00"]
    assert header.time == header.times[0]
    for position, time in enumerate(header.times):
        coordinates = files.cf_coordinates() | {
            "time": ((), 60.0 * (0, 2, 1)[position], {"units": "seconds since 2019-06-10"})
        }
        alone = files.write_cf(
            tmp_path / f"{position}.nc", {Z: (GRID, values[position], {"units": "dBZ"})}, coordinates
        )
        assert readers.inspect(path, time=time).time == time
        assert readers.read_scene(path, time=time).identical(readers.read_scene(alone))
    with pytest.raises(
        SchemaError, match=r"3 times, 2019-06-10T00:00:00 to .*Pass time='2019-06-10T00:00:00'"
    ):
        readers.read_scene(path)
    for file, there in (
        (path, "it has 2019-06-10T00:00:00 to 2019-06-10T00:01:00, 3 times"),
        (alone, "it has 2019"),
    ):
        with pytest.raises(SchemaError, match=f"no scene at 2019-06-11T00:00:00; {there}"):
            readers.read_scene(file, time="2019-06-11")


def test_cf_members_are_refused_with_a_remedy(tmp_path):
    coordinates = files.cf_coordinates()
    members = files.write_cf(
        tmp_path / "b.nc", {Z: (("member", *GRID), ramp(shape=(2, 6, 5)), {"units": "dBZ"})}, coordinates
    )
    with pytest.raises(SchemaError, match="expected a row, a column and at most an altitude"):
        readers.inspect(members)


@pytest.mark.parametrize(
    ("name", "attributes", "time"),
    [
        ("a.nc", {"time_coverage_start": "2020-01-02T03:04:05Z"}, "2020-01-02T03:04:05"),
        ("a.nc", {"start_datetime": "Fri Sep 18 19:50:20 2020"}, "2020-09-18T19:50:20"),
        ("mosaic_20200102_0304.nc", {}, "2020-01-02T03:04:00"),
        ("mosaic_20200102-030405Z.nc", {}, "2020-01-02T03:04:05"),
    ],
)
def test_cf_time_without_a_variable(tmp_path, name, attributes, time):
    coordinates = {k: v for k, v in files.cf_coordinates().items() if k != "time"}
    path = files.write_cf(tmp_path / name, {Z: (GRID, ramp(), {"units": "dBZ"})}, coordinates, **attributes)
    assert readers.inspect(path).time == np.datetime64(time)


@pytest.mark.parametrize(
    ("attributes", "value", "message"),
    [
        (
            {"units": "fortnights since 2000-01-01"},
            1.0,
            "units 'fortnights since 2000-01-01'; expected weeks",
        ),
        ({"units": "days since 2000-01-01", "calendar": "noleap"}, 1.0, "calendar 'noleap'"),
        ({"units": ""}, 1.0, "units ''; expected weeks"),
        ({"units": "days since yesterday"}, 1.0, "units 'days since yesterday'; expected weeks"),
        ({"units": "days since 2000"}, 1.0, "units 'days since 2000'; expected weeks"),
        ({"units": "days since 2000-01-01"}, np.nan, "nan days since 2000-01-01; expected a time"),
        ({"units": "days since 2000-01-01"}, 1e9, "expected a time from 1678 to 2199"),
    ],
)
def test_cf_time_that_is_none_is_refused(tmp_path, attributes, value, message):
    coordinates = files.cf_coordinates() | {"time": ((), value, attributes)}
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, coordinates)
    with pytest.raises(SchemaError, match=message):
        readers.inspect(path)


@pytest.mark.parametrize(
    ("units", "calendar", "value", "time"),
    [
        ("days since 1-1-1", "standard", 737792.5, "2021-01-01T12:00:00"),  # two days lost in 1582
        ("days since 0001-01-01", "proleptic_gregorian", 737792.5, "2021-01-03T12:00:00"),
        ("hours since 2021-06-22", "julian", 1, "2021-07-05T01:00:00"),
        ("hrs since 2021-07-05 00:00:00 UTC", "gregorian", 1, "2021-07-05T01:00:00"),
        ("msecs since 2021-07-05T00:00:00+01:00", "", 1500, "2021-07-04T23:00:02"),
    ],
)
def test_cf_times_in_the_calendars_and_units_of_cftime(tmp_path, units, calendar, value, time):
    coordinates = files.cf_coordinates() | {
        "time": ((), value, {"units": units, "calendar": calendar, "standard_name": "time"})
    }
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, coordinates)
    assert readers.inspect(path).time == np.datetime64(time)


@pytest.mark.parametrize("order", [1, -1])
def test_cf_altitudes_in_metres_and_derived_channels(tmp_path, order):
    values = np.full((4, 6, 5), np.nan, np.float32)
    values[:3, 2, 2] = 30, 35, 25
    values[:, 3, 3] = -99.0
    coordinates = files.cf_coordinates() | {
        "z": (("z",), np.array([500.0, 1000, 1500, 2500])[::order], {"units": "m", "axis": "Z"})
    }
    path = files.write_cf(
        tmp_path / "a.nc", {Z: (("z", *GRID), values[::order], {"units": "dBZ"})}, coordinates
    )
    assert readers.inspect(path).altitudes == (0.5, 1.0, 1.5, 2.5)
    scene = readers.read_scene(path, channels=("reflectivity@1.5km", COLUMN, "echo_top_height"))
    files.check_scene(scene)
    decode = {name: packing_of(v).decode(v.values) for name, v in scene.data_vars.items()}
    assert decode[Z][0, 2, 2] == pytest.approx(25, abs=0.01)
    assert decode[COLUMN][2, 2] == pytest.approx(35, abs=0.01)
    assert decode["echo_top_height"][2, 2] == pytest.approx(1.5, abs=0.001)
    assert scene["echo_top_height"].values[3, 3] == 1
    assert scene["echo_top_height"].values[0, 0] == 0


def test_cf_pressure_levels_are_refused(tmp_path):
    coordinates = files.cf_coordinates() | {"lev": (("lev",), [1000.0, 500.0], {"units": "hPa"})}
    path = files.write_cf(
        tmp_path / "a.nc", {Z: (("lev", *GRID), ramp(shape=(2, 6, 5)), {"units": "dBZ"})}, coordinates
    )
    with pytest.raises(SchemaError, match="lev in 'hpa'; expected an altitude axis in km or m"):
        readers.inspect(path)


def test_cf_codes_of_bytes_and_of_unsigned_attributes(tmp_path):
    full = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", {IR: (GRID, full, {"units": "K"})}))
    assert scene[IR].dtype == np.uint16  # widened: a byte has no code left for "missing"
    np.testing.assert_array_equal(scene[IR].values, full)
    codes = np.full((6, 5), -1, np.int16)
    codes[0, 0] = -30000
    attributes = {"units": "K", "_Unsigned": "true", "scale_factor": 0.01, "_FillValue": np.int16(-1)}
    scene = readers.read_scene(
        files.write_cf(tmp_path / "b.nc", {IR: (GRID, codes, attributes)}, format="NETCDF3_CLASSIC")
    )
    assert scene[IR].dtype == np.uint16
    assert scene[IR].values[0, 0] == 35536
    assert packing_of(scene[IR]).missing(scene[IR].values).sum() == 29


def test_cf_second_missing_code_becomes_the_fill(tmp_path):
    codes = ramp("i2")
    attributes = {"units": "K", "_FillValue": np.int16(-1), "missing_value": np.int16(7)}
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", {IR: (GRID, codes, attributes)}))
    np.testing.assert_array_equal(scene[IR].values, np.where(codes == 7, -1, codes))


@pytest.mark.parametrize(
    ("attributes", "low", "high"),
    [
        ({"valid_range": np.array([5, 20], np.int16)}, 5, 20),
        ({"valid_min": np.int16(5)}, 5, 32767),
        ({"valid_range": np.array([2.5, 10.0])}, 5, 20),  # floats: of the unpacked values
        ({}, None, None),
    ],
)
def test_cf_valid_range_is_kept_in_codes(tmp_path, attributes, low, high):
    attributes = {"units": "K", "scale_factor": 0.5, **attributes}
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", {IR: (GRID, ramp("i2"), attributes)}))
    packing = packing_of(scene[IR])
    assert (packing.valid_minimum, packing.valid_maximum) == (low, high)


def test_cf_valid_range_of_floats_is_applied(tmp_path):
    kelvin = np.full((6, 5), 250.0, np.float32)
    kelvin[0, :2] = 199.0, 200.0
    attributes = {"units": "K", "valid_min": np.float32(200.0)}
    scene = readers.read_scene(files.write_cf(tmp_path / "a.nc", {IR: (GRID, kelvin, attributes)}))
    assert scene[IR].values[0, :3].tolist() == [65534, 20000, 25000]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale_factor": "big"}, "attribute 'scale_factor' is 'big'; expected one number"),
        ({"scale_factor": 0.0}, "expected finite, not zero"),
    ],
)
def test_cf_broken_attributes_are_refused(tmp_path, attributes, message):
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp("i2"), {"units": "dBZ", **attributes})})
    with pytest.raises(SchemaError, match=message):
        readers.read_scene(path)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            np.array([40, 39.9, 39.9, 39.7, 39.6, 39.5]),
            "not strictly monotone.*: value 2 is 39.9, after 39.9",
        ),
        (
            np.array([40, 39.9, 40.1, 39.7, 39.6, 39.5]),
            "value 2 is 40.1, after 39.9; expected it to.*Sort the file",
        ),
        (np.array([40, 40, 40, 40, 40, 40.0]), "value 1 is 40.0, after 40.0"),
        (np.array([40, 39.9, np.nan, 39.7, 39.6, 39.5]), "not strictly monotone and finite: value 2 is nan"),
        (
            np.array([140, 139.9, 139.8, 139.7, 139.6, 139.5]),
            "latitude has 140.0; expected degrees within 90",
        ),
    ],
)
def test_broken_axes_are_refused(tmp_path, axis, message):
    coordinates = files.cf_coordinates() | {"lat": (("lat",), axis, {"units": "degrees_north"})}
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, coordinates)
    with pytest.raises(SchemaError, match=message):
        readers.inspect(path)


def test_axis_across_the_date_line_keeps_its_order(tmp_path):
    longitude = np.array([179.8, 179.9, -180.0, -179.9, -179.8])
    coordinates = files.cf_coordinates() | {"lon": (("lon",), longitude, {"units": "degrees_east"})}
    path = files.write_cf(tmp_path / "a.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, coordinates)
    np.testing.assert_array_equal(readers.read_scene(path)["longitude"].values, longitude)
    coordinates["lon"] = (("lon",), longitude[[0, 2, 1, 3, 4]], {"units": "degrees_east"})
    with pytest.raises(SchemaError, match="longitude of 5 values is not strictly monotone"):
        readers.inspect(files.write_cf(tmp_path / "b.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, coordinates))


def grid_id(latitude, longitude) -> str:
    latitude, longitude = _make_grid(latitude, longitude, where="x")
    time = np.datetime64("2021-07-05", "s")
    return Header(
        path="x", format="cf", product="x", time=time, latitude=latitude, longitude=longitude, fields={}
    ).grid_id


@given(shift=st.floats(-4e-7, 4e-7), step=st.sampled_from([0.01, 0.02, 0.25]))
def test_grid_id_is_of_the_positions_not_of_the_floats(shift, step):
    lat, lon = 20.0 + step * np.arange(40), -100.0 + step * np.arange(30)
    base = grid_id(lat, lon)
    assert grid_id(lat + shift, lon + 360.0) == base
    assert grid_id(lat + step, lon) != base
    assert grid_id(lat[:-1], lon) != base
    lat2, lon2 = np.meshgrid(lat, lon, indexing="ij")
    assert grid_id(lat2, lon2) != base


def test_longitudes_in_range_keep_their_bits():
    lon = -129.995 + 0.01 * np.arange(7000)
    assert (_make_grid(np.arange(3.0), lon, where="x")[1] == lon).all()
    assert _make_grid(np.arange(3.0), np.array([179.0, 180.0, 181.0]), where="x")[1].tolist() == [
        179,
        -180,
        -179,
    ]


# --- times ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stamp"),
    [
        (GRIDRAD_NAME, "2011-04-27T22:00:00"),
        ("nexrad_3d_4_1_20170328T121000Z.nc", "2017-03-28T12:10:00"),
        (LARC_NAME, "2021-07-05T17:50:00"),
        ("cor1goecnvv2X1.a1.20190422.115957.cdf", "2019-04-22T11:59:57"),
        ("MRMS_x_00.50_20230406-120039.nc", "2023-04-06T12:00:39"),
        ("OR_ABI-L1b-RadF-M6C14_G16_s20202621950205.nc", "2020-09-18T19:50:20"),
        ("version_20211399_2560.nc", None),
        ("plain.nc", None),
    ],
)
def test_stamp_of_file_names(name, stamp):
    assert parse_stamp(name) == (None if stamp is None else np.datetime64(stamp))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2011-04-27 22:00:00Z", "2011-04-27T22:00:00"),
        ("1858-11-17T00:00:00.000", "1858-11-17T00:00:00"),
        ("2001-1-1 0:0:0", "2001-01-01T00:00:00"),
        ("2020-01-01T00:00:00+01:00", "2019-12-31T23:00:00"),
        ("2020-01-01", "2020-01-01T00:00:00"),
        ("2020-13-01", None),
        ("...", None),
    ],
)
def test_written_times(text, time):
    assert parse_time(text) == (None if time is None else np.datetime64(time))


@given(st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2060, 1, 1)))
def test_stamps_round_trip(moment):
    second = np.datetime64(moment, "s")
    assert parse_stamp(f"x_v4_2_{moment:%Y%m%dT%H%M%S}Z.nc") == second
    assert parse_time(f"{moment:%Y-%m-%d %H:%M:%S}Z") == second


# --- safety ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file: GridRad writes these where there was no valid data"),
        (b"<!DOCTYPE html><html>Please log in</html>", "not a netCDF file .*an HTML or XML page"),
        (b"station,rain\n1,2\n", "starts with b'station,rain.*: text"),
        (b"PK\x03\x04" + bytes(60), "a zip archive; unpack it first"),
        (bytes(100), r"not a netCDF file \(starts with b'.x00"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged or cut HDF5 file"),
        (b"CDF\x01" + b"\xff" * 50, "damaged classic netCDF file"),
        (b"CDF\x01\x00", "damaged classic netCDF file: the header is cut off"),
    ],
)
def test_file_that_is_no_netcdf_is_named(tmp_path, content, message):
    path = tmp_path / LARC_NAME
    path.write_bytes(content)
    for act in (readers.inspect, readers.read_scene, readers.list_contents):
        with pytest.raises(SchemaError, match=message):
            act(path)


def test_missing_path_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        readers.inspect(tmp_path / "none.nc")
    with pytest.raises(SchemaError, match="a directory, not a file"):
        readers.inspect(tmp_path)


@pytest.mark.parametrize(
    "format", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
)
def test_cut_file_is_refused_wherever_it_is_cut(tmp_path, format):
    fields = {Z: (GRID, ramp(), {"units": "dBZ"})}
    path = files.write_cf(tmp_path / "a.nc", fields, format=format)
    files.check_scene(readers.read_scene(path))
    whole = path.read_bytes()
    for part in np.linspace(0.02, 0.99, 40):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(SchemaError, match=r"cut|damaged|not a netCDF file"):
            readers.read_scene(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(SchemaError, match=r"cut|damaged"):
        readers.read_scene(path)


def test_classic_file_with_records_is_measured(tmp_path):
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as f:
        f.createDimension("time", None)
        for name, dtype in (("one", "i1"), ("two", "i2")):
            f.createDimension(name, 3)
            f.createVariable(name, dtype, ("time", name))[:] = np.ones((4, 3))
    with path.open("rb") as file:
        assert safety._required_bytes(file) in (
            path.stat().st_size,
            path.stat().st_size - 2,
        )  # the last padding


def test_absurd_size_is_refused_before_reading(tmp_path):
    path = tmp_path / "bomb.nc"
    with netCDF4.Dataset(path, "w") as f:
        f.createDimension("y", 2**20)
        f.createDimension("x", 2**20)
        f.createVariable(Z, "f4", ("y", "x"), chunksizes=(100, 100))
    with pytest.raises(
        SchemaError, match=r"variable 'reflectivity' declares 4096.0 GiB; expected at most 4 GiB"
    ):
        readers.inspect(path)


def test_file_that_reaches_out_of_itself_is_refused(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(800))
    external, link, virtual = (tmp_path / f"{n}.nc" for n in ("external", "link", "virtual"))
    with h5py.File(external, "w") as f:
        f.create_dataset("inner/data", (8,), "u1", external=[(str(secret), 0, 8)])
    with h5py.File(link, "w") as f:
        f["data"] = h5py.ExternalLink("elsewhere.nc", "/data")
    layout = h5py.VirtualLayout((8,), "u1")
    layout[:] = h5py.VirtualSource("elsewhere.nc", "data", (8,))
    with h5py.File(virtual, "w") as f:
        f.create_virtual_dataset("data", layout)
    for path, message in (
        (external, "/inner/data keeps its bytes in another file, .*secret.bin"),
        (link, "/data is a link to another file, 'elsewhere.nc'"),
        (virtual, "/data is a virtual dataset of the files .'elsewhere.nc'"),
    ):
        with pytest.raises(SchemaError, match=message):
            readers.inspect(path)


def link_in_a_circle(f):
    f["loop/inner"] = f["/"].create_group("group")
    f["group/back"] = f["loop"]


def link_softly_in_a_circle(f):
    f["group/soft"] = h5py.SoftLink("/nowhere")  # this one alone is harmless
    f["group/back"] = h5py.SoftLink("/")


def link_the_root(f):
    f["group/back"] = f["/"]


def link_often(f):
    for number in range(10_001):
        f[f"s{number}"] = f["latitude"]


def refer_to_itself(f):
    layout = h5py.VirtualLayout(f[IR].shape, f[IR].dtype)
    layout[:] = h5py.VirtualSource(".", IR, f[IR].shape)
    del f[IR]
    f.create_virtual_dataset(IR, layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_in_a_circle, "is a group with several links"),
        (link_softly_in_a_circle, "/group/back is a second link to a group"),
        (link_the_root, "/ is a group with several links"),
        (link_often, "more than 10000 objects"),
        (refer_to_itself, "is a virtual dataset of the files"),
    ],
)
def test_what_crashes_or_blocks_the_netcdf_library_is_refused_before_it_opens_the_file(
    tmp_path, change, message
):
    path = files.write_larc(tmp_path / LARC_NAME)
    with h5py.File(path, "a") as f:
        change(f)
    with pytest.raises(SchemaError, match=message):
        readers.inspect(path)


def write_grid(path, edge, *, write, **storage):
    """A CF file of a square of infrared, written in one corner or not at all."""
    with netCDF4.Dataset(path, "w") as f:
        for name, start, units in (("lat", 10.0, "degrees_north"), ("lon", 20.0, "degrees_east")):
            f.createDimension(name, edge)
            axis = f.createVariable(name, "f8", (name,))
            axis[:] = start + np.arange(edge) * 1e-4
            axis.units = units
        f.createVariable("time", "f8", ()).units = "seconds since 2020-01-01"
        f["time"][...] = 0
        field = f.createVariable(IR, "u2", ("lat", "lon"), **storage)
        field.units = "K"
        if write:
            field[:10, :10] = 250
    return path


def test_fields_that_nobody_wrote_are_refused_by_the_header(tmp_path):
    chunked = {"zlib": True, "chunksizes": (64, 64)}
    readers.inspect(write_grid(tmp_path / "good.nc", 128, write=True, **chunked))
    for name, storage in (("a.nc", chunked), ("b.nc", {})):
        with pytest.raises(SchemaError, match="was declared and never written"):
            readers.inspect(write_grid(tmp_path / name, 128, write=False, **storage))
    with pytest.raises(SchemaError, match=r"declares 3,052 MiB in a file of .* bytes; expected at most"):
        readers.inspect(write_grid(tmp_path / "c.nc", 40_000, write=True, **chunked))


def test_damaged_data_is_refused_when_read(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME, shape=(64, 64))
    with h5py.File(path) as f:
        offset = f[IR].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 10 : offset + 40] = bytes(30)
    path.write_bytes(raw)
    readers.inspect(path)
    with pytest.raises(SchemaError, match=f"variable '{IR}' cannot be read .*the file is damaged"):
        readers.read_scene(path)


FLIPS = """
import random, sys
from pathlib import Path
from gridrad_cube import readers
from gridrad_cube.schema import SchemaError
rng, target = random.Random(5), Path(sys.argv[1]) / "flipped_20210705_1750.nc"
sources = [Path(p).read_bytes() for p in sys.argv[2:]]
refused = 0
for trial in range(400):
    raw = bytearray(rng.choice(sources))
    for _ in range(rng.randint(1, 6)):
        raw[rng.randrange(min(len(raw), rng.choice([2000, 10**9])))] = rng.randrange(256)
    target.write_bytes(raw)
    try:
        readers.read_scene(target)
    except SchemaError:
        refused += 1
assert refused > 50, refused
"""


def test_flipped_bytes_give_a_scene_or_one_clear_error(tmp_path):
    values = radar_values()
    sources = [
        files.write_larc(tmp_path / "a.nc"),
        files.write_gridrad(tmp_path / "b.nc", values, time="2021-07-05T17:50:00"),
        files.write_cf(tmp_path / "c.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}),
        files.write_cf(tmp_path / "d.nc", {Z: (GRID, ramp(), {"units": "dBZ"})}, format="NETCDF3_CLASSIC"),
    ]
    done = subprocess.run(  # in a separate process: the HDF5 library may crash on damaged files
        [sys.executable, "-c", FLIPS, str(tmp_path), *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_threads_share_one_lock(tmp_path):
    paths = [files.write_larc(tmp_path / f"x{i}.nc", shape=(80, 70)) for i in range(4)]
    codes, errors = files.larc_codes((80, 70)), []

    def work():
        try:
            for path in paths * 3:
                np.testing.assert_array_equal(readers.read_scene(path)[IR].values, codes)
        except Exception as error:  # a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_unknown_format_and_wrong_format_are_refused(tmp_path):
    path = files.write_larc(tmp_path / LARC_NAME)
    with pytest.raises(SchemaError, match="format: got 'grib'; expected one of"):
        readers.inspect(path, format="grib")
    with pytest.raises(SchemaError, match="the file is larc_goes, got format='gridrad'"):
        readers.inspect(path, format="gridrad")
    assert readers.inspect(path, format="cf").format == "cf"  # its header is CF enough


def test_importing_the_readers_stays_light():
    heavy = ("torch", "distributed", "dask.distributed", "scipy", "matplotlib", "netCDF4", "h5py")
    code = f"import sys, gridrad_cube.readers.engines; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["larc-goes", "gridrad-v4.2", "gridrad-v3.1", "gridrad-v4.1"])
def test_synthetic_archives_read(tmp_path, name):
    from gridrad_cube import synthetic

    path = synthetic.write_scenes(tmp_path, format=name, scenes=1, shape=(64, 80))[0]
    scene, header = readers.read_scene(path), readers.inspect(path)
    files.check_scene(scene)
    assert header.format == name.replace("-", "_").replace(".", "_")
    assert header.shape == (64, 80)
    assert parse_stamp(path.name).astype("datetime64[m]") == header.time.astype("datetime64[m]")


# --- real files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minute", range(0, 11, 2))
def test_real_rain_rates_keep_their_codes(real_data: Path, minute):
    path = real_data / f"mrms_precipitation_rate_20190610T00{minute:02d}00Z.nc"
    scene, header = readers.read_scene(path), readers.inspect(path)
    files.check_scene(scene.isel(y=slice(0, 400), x=slice(2000, 2500)))
    assert header.time == np.datetime64(f"2019-06-10T00:{minute:02d}:00")
    assert header.shape == (3500, 7000)
    rain = scene["precipitation_rate"]
    with netCDF4.Dataset(path) as f:
        f.set_auto_maskandscale(False)
        raw = f["precipitation_rate"][0]
    assert rain.dtype == np.int16
    np.testing.assert_array_equal(rain.values, raw)
    packing = packing_of(rain)
    assert (packing.fill_value, packing.no_echo, packing.echo_minimum) == (-32768, 0, 1)
    assert packing.scale_factor == 0.1
    assert not packing.out_of_valid_range(raw).any()


def test_real_rain_rates_lie_on_one_grid(real_data: Path):
    paths = sorted(real_data.glob("mrms_precipitation_rate_*.nc"))
    headers = [readers.inspect(path) for path in paths]
    assert len({h.grid_id for h in headers}) == len({h.product for h in headers}) == 1
    assert len({h.time for h in headers}) == len(paths) == 6


def test_real_reflectivity_keeps_its_codes(real_data: Path):
    path = real_data / "mrms_reflectivity_20230406T120039Z.nc"
    scene = readers.read_scene(path)
    assert scene["time"].values == np.datetime64("2023-04-06T12:00:39")
    codes, packing = scene[Z].values, packing_of(scene[Z])
    assert codes.dtype == np.int16
    assert (packing.fill_value, packing.no_echo, packing.echo_minimum) == (-32768, -9900, -9899)
    missing, echo = packing.missing(codes), packing.echo(codes)
    assert (missing.sum(), (codes == -9900).sum()) == (8528048, 15041671)  # counted in the file with netCDF4
    assert packing.decode(codes[echo]).min() == pytest.approx(-31.0)
    assert packing.decode(codes[echo]).max() == pytest.approx(60.0)
    assert scene["latitude"].values[0] == 54.995
    assert scene["longitude"].values[0] == -129.995


def test_real_infrared_in_celsius_on_two_dimensional_coordinates(real_data: Path):
    path = real_data / "goes16_infrared_20200918T1950Z.nc"
    asked = {"variables": ((IR, "Infrared", "degC"),)}
    with pytest.raises(SchemaError, match="none of the channels"):
        readers.inspect(path)
    scene, header = readers.read_scene(path, **asked), readers.inspect(path, **asked)
    files.check_scene(scene)
    assert header.time == np.datetime64("2020-09-18T19:50:20")
    assert header.shape == (300, 300)
    assert scene["latitude"].dims == ("y", "x")
    assert scene.attrs["satellite_longitude"] == -75.2
    with netCDF4.Dataset(path) as f:
        celsius = f["Infrared"][:].filled(np.nan)
    kelvin = packing_of(scene[IR]).decode(scene[IR].values)
    np.testing.assert_array_equal(np.isnan(kelvin), np.isnan(celsius))
    known = ~np.isnan(celsius)
    np.testing.assert_allclose(kelvin[known], celsius[known] + 273.15, atol=0.0051)


def test_real_radar_volume_reads_back_bin_for_bin_through_the_sparse_layout(real_data: Path, tmp_path):
    with netCDF4.Dataset(real_data / "radar_volume_cpol_20060120T0050Z.nc") as f:
        values = f["DT"][0].filled(np.nan).astype(np.float32)
        metres = {name: f[name][:].filled() for name in ("x", "y", "z")}
        lat0, lon0 = float(f["origin_latitude"][0]), float(f["origin_longitude"][0])
    counts = np.ones(values.shape, np.int8)
    counts[:, (metres["y"][:, None] ** 2 + metres["x"] ** 2) > 60e3**2] = 0
    path = files.write_gridrad(
        tmp_path / "nexrad_3d_v4_2_20060120T005008Z.nc",
        values,
        nradobs=counts,
        altitude_km=metres["z"] / 1000,
        latitude=lat0 + metres["y"] / 111.2e3,
        longitude=lon0 + metres["x"] / (111.2e3 * np.cos(np.deg2rad(lat0))),
        order=np.random.default_rng(0),
        time="2006-01-20T00:50:08",
    )
    scene = readers.read_scene(path, channels=(Z, COLUMN, "echo_top_height"))
    files.check_scene(scene)
    np.testing.assert_array_equal(scene["latitude"].values, lat0 + metres["y"] / 111.2e3)
    assert scene["altitude"].values.tolist() == (metres["z"] / 1000).tolist()
    np.testing.assert_array_equal(scene[Z].values, expected_codes(values, counts))
    decoded = packing_of(scene[Z]).decode(scene[Z].values)
    listed = np.isfinite(values)
    assert 0.3 < listed.mean() < 0.4
    assert np.abs(decoded[listed] - values[listed]).max() < 0.0051
    assert scene[COLUMN].values.max() == expected_codes(values, counts).max()


def test_real_gridrad_volume_reads_bin_for_bin(real_data: Path):
    path = next((real_data / "gridrad").glob("nexrad_3d_v4_2_*.nc"))
    moments = {
        Z: "Reflectivity", "spectrum_width": "SpectrumWidth", "azimuthal_shear": "AzShear", "divergence": "Divergence",
    }  # fmt: skip
    scene, header = readers.read_scene(path, channels=(*moments, COLUMN, "Nradobs")), readers.inspect(path)
    assert (header.format, header.product) == ("gridrad_v4_2", "GridRad v4.2")
    assert header.time == np.datetime64("2010-01-20T20:00:00")
    with netCDF4.Dataset(path) as f:
        f.set_auto_maskandscale(False)
        looks, index = f["Nradobs"][:], f["index"][:]
        listed = {channel: f[name][:] for channel, name in moments.items()}
        axes = {name: f[name][:] for name in ("Latitude", "Longitude", "Altitude")}
    assert scene["altitude"].values.tolist() == axes["Altitude"].tolist()
    for name, axis in (("latitude", axes["Latitude"]), ("longitude", axes["Longitude"] - 360.0)):
        np.testing.assert_allclose(scene[name].values, axis, rtol=0, atol=1e-9)
        whole = scene[name].values * 96
        np.testing.assert_allclose(whole, np.rint(whole), atol=1e-9)
    for channel, values in listed.items():
        packing = packing_of(scene[channel])
        expected = np.where(looks.ravel() > 0, packing.no_echo, packing.fill_value)
        steps = np.rint((values.astype("f8") - packing.add_offset) / packing.scale_factor)
        expected[index] = np.where(np.isnan(values), packing.fill_value, steps)
        np.testing.assert_array_equal(scene[channel].values.ravel(), expected, err_msg=channel)
    np.testing.assert_array_equal(scene[COLUMN].values, scene[Z].values.max(axis=0))
    np.testing.assert_array_equal(scene["Nradobs"].values, looks)
    assert np.count_nonzero(packing_of(scene[Z]).echo(scene[Z].values)) == index.size == 68058


def test_real_gridrad_volume_keeps_the_columns_of_the_published_quality_control(real_data: Path, tmp_path):
    from gridrad_cube import pipeline, store
    from gridrad_cube.schema import RadarSpec, Recipe

    recipe = Recipe(channels=(COLUMN,), radar=RadarSpec(qc="published"))
    report = pipeline.preprocess(real_data / "gridrad", tmp_path / "s.zarr", recipe=recipe)
    assert [o.status for o in report.outcomes] == ["written"]
    column = store.open_packed(tmp_path / "s.zarr")[COLUMN]
    assert np.count_nonzero(packing_of(column).echo(column.values)) == 1057  # of the published programs


@pytest.mark.parametrize(
    ("variable", "format"), [("GRIDRAD_SAMPLE", "gridrad"), ("LARC_SAMPLE", "larc_goes")]
)
def test_users_own_sample_reads(monkeypatch, variable, format):
    import os

    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"set {variable} to a file of that format")
    assert readers.inspect(path).format.startswith(format)
    files.check_scene(readers.read_scene(path))
