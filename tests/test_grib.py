"""GRIB2 files: MRMS and HRRR by their native layout, several messages, and files that are not what they declare."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys

import grib_files as grib
import numpy as np
import pytest
from test_projections import write_abi

from gridrad_cube import readers
from gridrad_cube.readers import files as opening
from gridrad_cube.schema import CHANNELS, Packing, SchemaError

COLUMN, RAIN = "reflectivity_column_maximum", "precipitation_rate"
PACKINGS = (
    "grid_simple",
    "grid_png",
    "grid_jpeg",
    "grid_ccsds",
    "grid_ieee",
    "grid_complex_spatial_differencing",
)


def states_of(variable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a radar field is missing, without echo, and its echo."""
    packing = Packing.from_attributes(variable.attrs, variable.dtype)
    codes = variable.values
    return (
        packing.missing(codes),
        codes == packing.no_echo,
        np.where(packing.echo(codes), packing.decode(codes), np.nan),
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_mrms_mosaic_has_three_states_its_seconds_and_its_grid(tmp_path, packing):
    values = grib.mosaic()
    bits = 16 if packing == "grid_png" else 18
    path = grib.write(
        tmp_path / "MRMS_composite.grib2", [grib.message(values, grib.COMPOSITE, packing=packing, bits=bits)]
    )
    scene = readers.read_scene(path)
    assert list(scene.data_vars) == [COLUMN]
    assert scene.time.values == np.datetime64("2023-04-06T12:00:39")
    assert scene.attrs["product"] == f"MRMS ({COLUMN})"
    missing, no_echo, echo = states_of(scene[COLUMN])
    np.testing.assert_array_equal(missing, values == -999)
    np.testing.assert_array_equal(no_echo, values == -99)
    np.testing.assert_allclose(echo[values > 0], values[values > 0], atol=0.02)
    np.testing.assert_allclose(scene.latitude, 54.995 - 0.01 * np.arange(12), atol=1e-9)
    np.testing.assert_allclose(scene.longitude, -129.995 + 0.01 * np.arange(9), atol=1e-9)
    header = readers.inspect(path)
    assert (header.shape, header.channels, header.time) == ((12, 9), (COLUMN,), scene.time.values)


def test_a_bitmap_is_missing(tmp_path):
    values = grib.mosaic()
    path = grib.write(tmp_path / "a.grib2", [grib.message(values, grib.REFC, missing=-999.0)])
    missing, no_echo, _ = states_of(readers.read_scene(path)[COLUMN])
    np.testing.assert_array_equal(missing, values == -999)
    np.testing.assert_array_equal(no_echo, values == -99)


def test_gzip_is_the_same_scene_and_leaves_nothing_behind(tmp_path):
    plain = grib.write(tmp_path / "a.grib2", [grib.message(grib.mosaic(), grib.COMPOSITE)])
    packed = tmp_path / "a.grib2.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert readers.read_scene(plain).identical(readers.read_scene(packed))
    assert sorted(os.listdir(tmp_path)) == ["a.grib2", "a.grib2.gz"]


def test_rain_is_missing_without_coverage_and_zero_where_it_is_dry(tmp_path):
    values = grib.mosaic(missing=-3.0, no_echo=0.0)
    scene = readers.read_scene(grib.write(tmp_path / "a.grib2", [grib.message(values, grib.RAIN)]))
    missing, dry, rain = states_of(scene[RAIN])
    np.testing.assert_array_equal(missing, values == -3)
    np.testing.assert_array_equal(dry, values == 0)
    np.testing.assert_allclose(rain[values > 0], values[values > 0], atol=0.01)


def test_messages_are_channels_on_hrrrs_grid(tmp_path):
    shape = (12, 9)
    echo = np.full(shape, -10.0)
    echo[3:5] = 40.0
    rain = np.zeros(shape)
    rain[3:5] = 10.0 / 3600.0
    forecast = {"indicatorOfUnitOfTimeRange": 1, "forecastTime": 6}
    on = {"grid": grib.lambert(shape), "time": "2023-04-06T12:00:00"}
    packed = {"packing": "grid_complex_spatial_differencing", "bits": 16}
    path = grib.write(
        tmp_path / "hrrr.t12z.wrfsfcf06.grib2",
        [
            grib.message(echo, grib.REFC | forecast, **on, **packed),
            grib.message(rain, grib.PRATE | forecast, **on),
        ],
    )
    scene = readers.read_scene(path)
    assert set(scene.data_vars) == {COLUMN, RAIN}
    assert scene.time.values == np.datetime64("2023-04-06T18:00:00")  # when it is valid, not when it was made
    np.testing.assert_allclose(states_of(scene[COLUMN])[2][3:5], 40.0, atol=0.01)
    np.testing.assert_allclose(states_of(scene[RAIN])[2][3:5], 10.0, atol=0.02)
    # HRRR's south-western corner, as its grid description states it, and points 3 km apart.
    assert scene.latitude.shape == shape
    np.testing.assert_allclose(
        [scene.latitude[0, 0], scene.longitude[0, 0]], [21.138123, -122.719528], atol=1e-5
    )
    east = np.deg2rad(scene.longitude[0, 1] - scene.longitude[0, 0]) * np.cos(
        np.deg2rad(scene.latitude[0, 0])
    )
    assert np.hypot(
        east, np.deg2rad(scene.latitude[0, 1] - scene.latitude[0, 0])
    ) * 6371.229 == pytest.approx(3, rel=0.06)


def test_heights_of_a_mosaic_are_altitudes(tmp_path):
    levels = {500: 10.0, 1000: 20.0, 3000: 30.0}
    volume = [
        grib.message(
            np.full((12, 9), value),
            grib.COMPOSITE | {"parameterCategory": 9, "scaledValueOfFirstFixedSurface": height},
        )
        for height, value in levels.items()
    ]
    scene = readers.read_scene(grib.write(tmp_path / "a.grib2", volume[::-1]), channels=["reflectivity"])
    assert scene.altitude.values.tolist() == [0.5, 1.0, 3.0]
    packing = CHANNELS["reflectivity"].packing
    np.testing.assert_allclose(packing.decode(scene.reflectivity.values)[:, 0, 0], [10, 20, 30], atol=0.01)


def test_levels_and_sums_of_one_parameter_have_names_of_their_own(tmp_path):
    def at(height: int, number: int = 195) -> dict:
        keys = {"parameterCategory": 16, "parameterNumber": number, "typeOfFirstFixedSurface": 103}
        return grib.NCEP | keys | {"scaledValueOfFirstFixedSurface": height}

    path = grib.write(
        tmp_path / "a.grib2", [grib.message(np.full((12, 9), float(h) / 100), at(h)) for h in (1000, 4000)]
    )
    _, variables = readers.list_contents(path)
    assert {"refd_1000", "refd_4000"} <= set(variables)
    scene = readers.read_scene(path, variables=[("reflectivity", "refd_4000", None)])
    np.testing.assert_allclose(states_of(scene.reflectivity)[2], 40.0, atol=0.01)


def test_fields_of_one_message_are_told_apart(tmp_path):
    first, second = (grib.message(np.full((12, 9), value), grib.COMPOSITE) for value in (10.0, 30.0))
    start = 16 + int.from_bytes(second[16:20], "big") + int.from_bytes(second[37:41], "big")  # from section 4
    assert second[start + 4] == 4
    body = first[16:-4] + second[start:-4] + b"7777"
    both = first[:8] + (16 + len(body)).to_bytes(8, "big") + body
    _, variables = readers.list_contents(grib.write(tmp_path / "a.grib2", [both]))
    names = [name for name in variables if name.startswith("Merged")]
    assert names == ["MergedReflectivityQCComposite", "MergedReflectivityQCComposite_2"]
    scene = readers.read_scene(tmp_path / "a.grib2", variables=[(COLUMN, names[1], None)])
    np.testing.assert_allclose(states_of(scene[COLUMN])[2], 30.0, atol=0.01)


def test_times_of_a_file_are_scenes(tmp_path):
    def at(minutes: int, value: float, keys: dict) -> bytes:
        lead = {"indicatorOfUnitOfTimeRange": 0, "forecastTime": minutes}
        return grib.message(np.full((12, 9), value), keys | lead, time="2023-04-06T12:00:00")

    messages = [at(15, 20.0, grib.REFC), at(30, 30.0, grib.REFC), at(30, 0.001, grib.PRATE)]
    path = grib.write(tmp_path / "hrrr.t12z.wrfsubhf01.grib2", messages)
    times = np.array(["2023-04-06T12:15", "2023-04-06T12:30"], "datetime64[s]")
    np.testing.assert_array_equal(readers.inspect(path).times, times)
    for time, value in zip(times, (20.0, 30.0), strict=True):
        scene = readers.read_scene(path, time=time)
        np.testing.assert_allclose(states_of(scene[COLUMN])[2], value, atol=0.01)
        assert states_of(scene[RAIN])[0].all() == (value == 20.0)  # no message of this time: not observed
    assert scene.forecast_period.values == 0.5


def test_bytes_of_a_bulletin_between_messages_are_skipped(tmp_path):
    later = grib.message(grib.mosaic(), grib.COMPOSITE, time="2023-04-06T12:02:39")
    path = grib.write(
        tmp_path / "a.grib2", [b"\r\r\nYAUS85 KWBC 061200\r\r\n", whole(), bytes(40), later, bytes(9)]
    )
    assert readers.inspect(path).times.size == 2


# --- files that are not trusted


def patched(data: bytes, section: int, at: int, value: int, size: int = 4) -> bytes:
    """A message with another number in a section, at an octet that counts from 0."""
    position = 16
    while data[position + 4] != section:
        position += int.from_bytes(data[position : position + 4], "big")
    return data[: position + at] + value.to_bytes(size, "big") + data[position + at + size :]


def whole() -> bytes:
    return grib.message(grib.mosaic(), grib.COMPOSITE)


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: whole()[:-10], "cut off"),
        (
            lambda: whole()[:8] + (2**60).to_bytes(8, "big") + whole()[16:],
            "cut off: a message .* declares 11529",
        ),
        (lambda: whole()[:7] + b"\x01" + whole()[8:], "edition 1; expected edition 2.*grib_set"),
        (lambda: whole()[:-4] + b"8888", "does not end in 7777"),
        (lambda: patched(whole(), 3, 0, HUGE), "section 3 of 2147483647 bytes"),
        (lambda: whole() + bytes(2**17), "no GRIB message at byte"),
        (lambda: patched(whole(), 3, 30, HUGE), "a grid of 12 x 2147483647 declares 108 points"),
        (lambda: patched(patched(whole(), 3, 30, 2**20), 3, 6, 12 * 2**20), "values|declares"),
        (
            lambda: patched(patched(patched(whole(), 3, 30, 2**20), 3, 34, 2**14), 3, 6, HUGE),
            "declares|damaged",
        ),
        (lambda: patched(whole(), 3, 71, 0x10, 1), "regular_ll, points in another order than row by row"),
        (lambda: patched(whole(), 3, 12, 101, 2), "GRIB grids .*expected one of"),
        (lambda: patched(whole(), 5, 5, 10**6), "cannot be read .1000000 values for 108 points"),
        (lambda: patched(whole(), 5, 19, 200, 1), "bytes of values declared"),
        (lambda: patched(whole(), 5, 9, 999, 2), "packing template 999"),
        (
            lambda: patched(patched(whole(), 4, 17, 4, 1), 4, 18, 300),
            "expected a time from 1678 to 2199",
        ),  # years
        (
            lambda: patched(grib.message(grib.mosaic(), grib.COMPOSITE, packing="grid_png"), 7, 21, HUGE),
            "image of 2147",
        ),
        (
            lambda: patched(grib.message(grib.mosaic(), grib.COMPOSITE, packing="grid_jpeg"), 7, 13, HUGE),
            "image of 2147483647",
        ),
        (
            lambda: patched(
                grib.message(grib.mosaic(), grib.REFC, packing="grid_complex_spatial_differencing"),
                5,
                31,
                HUGE,
            ),
            "2147483647 groups",
        ),
    ],
)
def test_what_a_message_declares_is_checked_before_memory_is_taken(tmp_path, make, message, monkeypatch):
    monkeypatch.setattr(opening, "MAX_VARIABLE_BYTES", 2**28)
    path = grib.write(tmp_path / "a.grib2", [make()])
    with pytest.raises(SchemaError, match=message):
        readers.read_scene(path)


def test_a_grid_that_is_too_large_is_refused(tmp_path):
    shape = (2**14, 2**17)
    keys = grib.degrees((12, 9)) | {"Ni": 9, "Nj": 12}
    data = grib.message(np.zeros((12, 9)), grib.COMPOSITE, grid=keys)
    for at, value in ((30, shape[1]), (34, shape[0]), (6, shape[0] * shape[1])):
        data = patched(data, 3, at, value)
    path = grib.write(tmp_path / "a.grib2", [patched(data, 5, 5, shape[0] * shape[1])])
    with pytest.raises(SchemaError, match=r"declares 8.0 GiB"):
        readers.read_scene(path)


def test_an_unpacked_file_has_a_bounded_size(tmp_path, monkeypatch):
    path = tmp_path / "a.grib2.gz"
    path.write_bytes(gzip.compress(whole() + bytes(3 * 2**20)))
    monkeypatch.setattr(opening, "_MAX_UNPACKED_BYTES", 2**21)
    with pytest.raises(SchemaError, match="when unpacked; refused"):
        readers.read_scene(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(whole())[:-20], "damaged gzip"),
        (gzip.compress(b"text"), "gzip of no GRIB file"),
        (b"\x1f\x8b" + bytes(60), "damaged gzip"),
    ],
)
def test_gzip_of_something_else_or_cut(tmp_path, data, message):
    path = tmp_path / "a.grib2.gz"
    path.write_bytes(data)
    with pytest.raises(SchemaError, match=message):
        readers.read_scene(path)


def test_without_eccodes_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = grib.write(tmp_path / "a.grib2", [whole()])
    monkeypatch.setitem(sys.modules, "eccodes", None)
    with pytest.raises(SchemaError, match=r"pip install 'gridrad-cube\[grib\]'"):
        readers.read_scene(path)


# --- two PROJ libraries in one process


@pytest.mark.parametrize(
    "first",
    ["from gridrad_cube import readers; readers.read_scene('a.grib2')", "import cfgrib"],
    ids=["a GRIB file is read", "the program imports cfgrib, and so ecCodes"],
)
def test_a_projected_file_is_read_after_ecCodes_was_imported(tmp_path, first):
    grib.write(tmp_path / "a.grib2", [whole()])
    write_abi(tmp_path / "abi.nc", slice(30, 38), slice(40, 52))
    expected = readers.read_scene(tmp_path / "abi.nc").latitude.values[2, 3]
    code = f"{first}\nfrom gridrad_cube import readers\nprint(readers.read_scene('abi.nc').latitude.values[2, 3])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == expected
