"""Channels of kind ``other``: variables of a file that are in no table, from the file to the cube and its readers."""

from __future__ import annotations

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from reader_files import (
    V42_ALTITUDES,
    cf_coordinates,
    write_cf,
    write_gridrad,
    write_gridrad_dense,
    write_larc,
)
from small_data import split_into_patches
from synthetic_files import add_other_variables

from gridrad_cube import datasets, info, pipeline, plot, quality, query, readers, store, synthetic, tiling
from gridrad_cube.datasets import normalizations
from gridrad_cube.schema import (
    OTHER_ATTRIBUTES,
    Flag,
    Packing,
    QualitySpec,
    RadarSpec,
    Recipe,
    SchemaError,
    TileSpec,
    channel_in,
    default_reject,
    statistics_of,
)
from gridrad_cube.training.data import _gain_of

IR, VIS = "ir_brightness_temperature", "visible_reflectance"
OT, TROPOPAUSE = "ot_id_number", "tropopause_temperature"
CHANNELS = (IR, VIS, OT, TROPOPAUSE)
PARALLAX = ("parallax_correction_latitude", "parallax_correction_longitude")
LARC_NAME = "NASALARC_GOES16_CONVECTION_DETECTION_20210705_1750.nc"
GRIDRAD_NAME = "nexrad_3d_v4_2_20110427T220000Z.nc"


def packing_of(variable):
    return Packing.from_attributes(variable.attrs, variable.dtype)


def on_grid(values, **attributes):
    return ("lat", "lon"), values, attributes


# Readers


def test_larc_numbers_of_tops_keep_dtype_codes_fill_and_units(tmp_path):
    numbers = np.zeros((12, 9), np.uint16)
    numbers[3:5, 2:4], numbers[7, 7] = 1, 9999
    path = write_larc(tmp_path / LARC_NAME, data={OT: numbers})
    scene = readers.read_scene(path, channels=(IR, VIS, OT, "not_there"))
    assert list(scene.data_vars) == [IR, VIS, OT]
    assert scene[OT].dtype == np.uint16
    np.testing.assert_array_equal(scene[OT].values, numbers)
    assert (
        scene[OT].attrs | {"units": "1", "role": "companion", "_FillValue": 0, "long_name": OT}
        == scene[OT].attrs
    )
    assert "role" not in scene[IR].attrs
    assert tuple(readers.inspect(path, channels=(IR, VIS, OT, "not_there")).channels) == (IR, VIS, OT)
    assert tuple(readers.inspect(path).channels) == (IR, VIS)
    assert list(readers.read_scene(path, channels=OT).data_vars) == [OT]


@pytest.mark.parametrize(
    ("dtype", "stored", "fill"),
    [
        ("i1", "int16", -32768), ("u1", "uint16", 65535), ("i2", "int16", -32767), ("u2", "uint16", 65535),
        ("i4", "int32", -2147483647), ("u4", "uint32", 4294967295), ("i8", "int64", -9223372036854775806),
        ("u8", "uint64", 18446744073709551614),
    ],
)  # fmt: skip
def test_integers_without_a_fill_keep_every_code(tmp_path, dtype, stored, fill):
    limits = np.iinfo(dtype)
    values = np.resize(np.array([0, 1, 7, limits.max // 2, limits.min // 2], dtype), (6, 5))
    path = write_cf(
        tmp_path / "a.nc",
        {"precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"), "n": on_grid(values)},
    )
    found = readers.read_scene(path, channels="n")["n"]
    assert found.dtype == stored
    np.testing.assert_array_equal(found.values.astype(dtype), values)
    assert found.attrs["_FillValue"] == fill
    assert found.attrs["units"] == "1"
    assert packing_of(found).observed(found.values).all()


def test_packed_integers_keep_scale_valid_range_and_second_missing_code(tmp_path):
    codes = np.resize(np.array([0, 5, 50, -9, -8, 300], "i2"), (6, 5))
    attributes = {
        "_FillValue": np.int16(-9), "missing_value": np.int16(-8), "scale_factor": np.float32(0.1),
        "add_offset": np.float32(200.0), "valid_range": np.array([0, 100], "i2"), "units": "K",
        "standard_name": "tropopause_air_temperature", "long_name": "temperature of the tropopause",
    }  # fmt: skip
    fields = {
        "precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"),
        "t": on_grid(codes, **attributes),
    }
    scene = readers.read_scene(write_cf(tmp_path / "a.nc", fields), channels="t")
    found, packing = scene["t"], packing_of(scene["t"])
    np.testing.assert_array_equal(found.values, np.where(codes == -8, -9, codes))
    assert (packing.scale_factor, packing.add_offset, packing.fill_value) == (0.1, 200.0, -9)
    assert (packing.valid_minimum, packing.valid_maximum) == (0, 100)
    assert {k: found.attrs[k] for k in ("units", "standard_name", "long_name")} == {
        k: attributes[k] for k in ("units", "standard_name", "long_name")
    }
    expected = np.where((codes < 0) | (codes > 100), np.nan, codes * 0.1 + 200.0)
    np.testing.assert_allclose(packing.decode(found.values), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_are_values_bit_for_bit_and_nan_where_missing(tmp_path, dtype):
    values = np.random.default_rng(0).normal(210, 5, (6, 5)).astype(dtype)
    values[0, :4] = -999.0, 9.969209968386869e36, np.nan, np.inf
    attributes = {
        "_FillValue": values.dtype.type(-999.0),
        "valid_range": np.array([100.0, 300.0], dtype),
        "units": "K",
    }
    fields = {
        "precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"),
        "t": on_grid(values, **attributes),
    }
    found = readers.read_scene(write_cf(tmp_path / "a.nc", fields), channels="t")["t"]
    expected = values.copy()
    expected[0, :3] = np.nan
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.values, expected)
    assert found.attrs["valid_range"] == [100.0, 300.0]
    assert "_FillValue" not in found.attrs
    assert packing_of(found).not_finite(found.values).sum() == 1


def test_scaled_floats_are_unpacked(tmp_path):
    raw = np.arange(30, dtype="f4").reshape(6, 5)
    attributes = {
        "scale_factor": np.float32(-2.0),
        "add_offset": np.float32(10.0),
        "valid_min": np.float32(3.0),
    }
    fields = {
        "precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"),
        "t": on_grid(raw, **attributes),
    }
    found = readers.read_scene(write_cf(tmp_path / "a.nc", fields), channels="t")["t"]
    np.testing.assert_array_equal(found.values, 10.0 - 2.0 * raw)
    packing = packing_of(found)
    assert (packing.valid_minimum, packing.valid_maximum) == (None, None)  # one bound alone is no range of CF


def test_categories_keep_their_meanings(tmp_path):
    attributes = {"flag_values": np.array([0, 1, 2], "i1"), "flag_meanings": "clear cloud overshoot"}
    fields = {"precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"),
              "kind": on_grid(np.ones((6, 5), "i1"), **attributes)}  # fmt: skip
    found = readers.read_scene(write_cf(tmp_path / "a.nc", fields), channels="kind")["kind"]
    assert found.attrs["flag_values"] == [0, 1, 2]
    assert found.attrs["flag_meanings"] == "clear cloud overshoot"


@pytest.fixture
def volume(tmp_path):
    values = np.where(np.random.default_rng(1).random((6, 10, 12)) < 0.3, 20.0, np.nan)
    counts = np.random.default_rng(2).integers(0, 5, values.shape).astype("i1")
    return write_gridrad(tmp_path / GRIDRAD_NAME, values, nradobs=counts), values, counts


@pytest.mark.parametrize(
    ("channels", "altitudes", "levels"),
    [
        (("reflectivity_column_maximum",), (), range(6)),
        ((), (2.0, 1.0), [1, 3]),
        (("reflectivity@1.5km",), (), [2]),
        (("reflectivity",), (1.0, 2.5), [1, 4]),
        (("reflectivity_column_maximum", "reflectivity@3.0km"), (), [5]),
    ],
)
def test_gridrad_counts_lie_on_the_levels_of_the_request(volume, channels, altitudes, levels):
    path, values, counts = volume
    options = {
        "channels": (*channels, "Nradobs", "Nradecho"),
        "radar": RadarSpec(altitudes_km=altitudes),
    }
    scene = readers.read_scene(path, **options)
    levels = list(levels)
    np.testing.assert_array_equal(scene["Nradobs"].values, counts[levels])
    np.testing.assert_array_equal(scene["Nradecho"].values, np.where(np.isfinite(values), 3, 0)[levels])
    np.testing.assert_array_equal(scene["altitude"].values, V42_ALTITUDES[levels])
    assert readers.inspect(path, **options).altitudes == tuple(V42_ALTITUDES[levels])


def test_gridrad_no_look_is_missing_and_no_echo_is_a_count(volume):
    path, _, counts = volume
    scene = readers.read_scene(path, channels=("Nradobs", "Nradecho"))
    looked, saw = scene["Nradobs"], scene["Nradecho"]
    assert looked.dtype == np.int8
    np.testing.assert_array_equal(packing_of(looked).missing(looked.values), counts == 0)
    assert saw.dtype == np.int16  # bytes without a fill are widened, to keep 0 as a count
    assert packing_of(saw).observed(saw.values).all()


def test_gridrad_weights_are_zero_where_no_bin_is_listed(tmp_path):
    values = np.where(np.random.default_rng(1).random((6, 10, 12)) < 0.3, 20.0, np.nan)
    path = write_gridrad(tmp_path / GRIDRAD_NAME, values, order=np.random.default_rng(3))
    weights = readers.read_scene(path, channels="wReflectivity", radar=RadarSpec(altitudes_km=(1.0, 3.0)))
    found = weights["wReflectivity"].values
    with xr.open_dataset(path, engine="netcdf4", decode_times=False) as raw:
        expected = np.zeros(values.size, np.float32)
        expected[raw["index"].values] = raw["wReflectivity"].values
    np.testing.assert_array_equal(found, expected.reshape(values.shape)[[1, 5]])
    assert np.isfinite(found).all()


def test_gridrad_counts_survive_quality_control_as_they_are(volume):
    path, _, counts = volume

    def clean(bins, fields):
        return {"reflectivity": readers.densify(bins, "reflectivity")}

    scene = readers.read_scene(path, channels=("reflectivity_column_maximum", "Nradobs"), clean=clean)
    np.testing.assert_array_equal(scene["Nradobs"].values, counts)


def test_gridrad_dense_files_carry_what_is_no_channel(tmp_path):
    path = write_gridrad_dense(tmp_path / "dense.nc", np.full((4, 6, 5), 10.0))
    scene = readers.read_scene(path, channels=("reflectivity@1.0km", "VOR"))
    assert scene["VOR"].shape == (1, 6, 5)
    assert scene["VOR"].dtype == np.float32


def test_cf_channel_of_kind_other_alone_brings_the_altitudes(tmp_path):
    heights = np.array([3000.0, 2000.0, 1000.0])
    values = np.arange(90, dtype="i4").reshape(3, 6, 5)
    coordinates = cf_coordinates() | {"height": (("height",), heights, {"units": "m"})}
    fields = {"precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"),
              "kind": (("height", "lat", "lon"), values, {})}  # fmt: skip
    path = write_cf(tmp_path / "a.nc", fields, coordinates)
    channels = ("precipitation_rate", "kind")
    scene = readers.read_scene(path, channels=channels)
    assert scene["precipitation_rate"].dims == ("y", "x")
    assert scene["altitude"].values.tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(scene["kind"].values, values[::-1])
    assert readers.inspect(path, channels=channels).altitudes == (1.0, 2.0, 3.0)
    assert readers.inspect(path).altitudes == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Reflectivity", r"that is a known channel. Pass channels=\('reflectivity',\)"),
        ("time", "stores have something else of this name.*rename the variable"),
        ("Latitude", "stores have something else of this name"),
        ("crop", "stores have something else"),
        ("ot_flags", "stores have something else"),
        ("visible_reflectance_mean", "stores have a statistic of this name"),
        ("2nd", "expected a letter, then letters, digits and _"),
        ("ot/../..", "expected a letter"),
        ("ot id", "expected a letter"),
        ("", "expected a letter"),
    ],
)
def test_names_that_a_store_cannot_have_are_refused(tmp_path, name, message):
    path = write_larc(tmp_path / LARC_NAME)
    for read in (readers.inspect, readers.read_scene):
        with pytest.raises(
            SchemaError, match=f"channels: got '{name}'; .*{message}".replace("/../", "/[.][.]/")
        ):
            read(path, channels=(name,))


def test_names_that_collide_are_refused(tmp_path):
    path = write_larc(tmp_path / LARC_NAME)
    with pytest.raises(SchemaError, match="'ot'; it is given twice"):
        readers.inspect(path, channels=("ot", "OT"))
    with pytest.raises(SchemaError, match="'ot_std'; stores have a statistic of this name"):
        readers.inspect(path, channels=("ot", "ot_std"))


def test_variables_off_the_grid_are_refused_with_those_that_would_do(tmp_path):
    path = write_larc(tmp_path / LARC_NAME)
    with pytest.raises(
        SchemaError, match=r"'scan_time' holds float64 on \('nlines',\).*The file has \['ir_bright.*'ot"
    ):
        readers.read_scene(path, channels="scan_time")
    text = np.array([[b"a"] * 5] * 6, "S1")
    fields = {"precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"), "words": on_grid(text)}
    with pytest.raises(SchemaError, match="'words' holds"):
        readers.read_scene(write_cf(tmp_path / "a.nc", fields), channels="words")
    values = np.full((2, 6, 5), 20.0)
    sparse = write_gridrad(tmp_path / GRIDRAD_NAME, values)
    with pytest.raises(SchemaError, match=r"'index' holds int32 on \('Index',\).*Nradobs.*wReflectivity"):
        readers.inspect(sparse, channels="index")


def test_parallax_correction_comes_along_unasked(tmp_path):
    path = add_other_variables(*synthetic.write_scenes(tmp_path, scenes=1, shape=(96, 160)))
    assert tuple(readers.inspect(path).channels) == (IR, VIS, *PARALLAX)
    scene = readers.read_scene(path, channels=(IR, VIS, TROPOPAUSE, PARALLAX[1]))
    assert list(scene.data_vars)[2:] == [TROPOPAUSE, PARALLAX[1], PARALLAX[0]]
    assert scene[PARALLAX[0]].attrs["units"] == "degrees"
    assert scene[TROPOPAUSE].attrs["units"] == "degrees_Kelvin"
    missing = Packing.from_attributes(scene[IR].attrs, scene[IR].dtype).missing(scene[IR].values)
    np.testing.assert_array_equal(np.isnan(scene[PARALLAX[0]].values), missing)


def test_header_says_what_else_could_be_carried(tmp_path, volume):
    path = add_other_variables(*synthetic.write_scenes(tmp_path, scenes=1, shape=(96, 160)))
    header = readers.inspect(path, channels=IR)
    assert header.further == (VIS, OT, TROPOPAUSE)
    assert header.satellite_longitude == -75.2
    assert header.observation_time.shape == header.shape[:1]
    assert "ot_id_number" in info.inspect_target(path)["further channels (--channels)"]
    header = readers.inspect(volume[0])
    moments = ("reflectivity", "echo_top_height")
    assert header.further == (*moments, "Nradecho", "Nradobs", "wReflectivity")
    assert (header.satellite_longitude, header.observation_time) == (None, None)
    fields = {"precipitation_rate": on_grid(np.ones((6, 5), "f4"), units="mm/h"), "n": on_grid(np.ones((6, 5), "i2")),
              "row": on_grid(np.ones((6, 5), "i2")), "line": (("lat",), np.ones(6), {})}  # fmt: skip
    assert readers.inspect(write_cf(tmp_path / "a.nc", fields)).further == ("n",)


# Flags and statistics


def labeled_scene(codes, **attributes):
    height, width = codes.shape
    return xr.Dataset(
        {"label": (("y", "x"), codes, {"units": "1", **attributes} | OTHER_ATTRIBUTES)},
        {"latitude": ("y", 40 + np.arange(height) / 56), "longitude": ("x", -90 + np.arange(width) / 56),
         "time": np.datetime64("2021-06-21T06:00:00", "s")},
        {"satellite_longitude": 100.0},  # on the other side of the Earth: every patch is beyond the limb
    )  # fmt: skip


def assessed(codes, patch=16, **attributes):
    crop = tiling.cut(labeled_scene(codes, **attributes), tiling.Window(0, 0, 64, 64), patch)
    return crop, quality.assess(crop, QualitySpec())


def bits(found):
    return found["label_flags"].values


def test_categories_get_only_the_flags_of_their_pixels():
    codes = np.zeros((64, 64), np.uint16)
    codes[16:32, 16:32] = 7  # one label everywhere
    codes[40, 32:48] = 3  # a line of one value, as dead lines are
    codes[50, 50] = 60000  # far from everything
    codes[51, 51] = 1
    _, found = assessed(codes, _FillValue=0)
    expected = np.full((4, 4), int(Flag.some_missing | Flag.all_missing | Flag.low_coverage))
    expected[1, 1] = Flag.constant
    expected[2, 2] = Flag.some_missing | Flag.constant | Flag.low_coverage
    expected[3, 3] = Flag.some_missing | Flag.low_coverage
    np.testing.assert_array_equal(bits(found), expected)
    assert set(found.data_vars) == {
        "label_flags", *(f"label_{s}" for s in ("valid_fraction", "mean", "std", "minimum", "maximum"))
    }  # fmt: skip
    assert found["label_maximum"].values[3, 3] == 60000


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_statistics_of_every_dtype_are_those_of_plain_numpy(dtype):
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 100, (64, 64)).astype(dtype)
    missing = rng.random((64, 64)) < 0.2
    codes[missing] = np.nan if codes.dtype.kind == "f" else 0
    codes[5] = 50  # a line of one value
    missing[5] = False
    attributes = {} if codes.dtype.kind == "f" else {"_FillValue": 0}
    _, found = assessed(codes, **attributes)
    values, seen = split_into_patches(codes.astype(np.float64), 16), split_into_patches(~missing, 16)
    for row, col in np.ndindex(4, 4):
        cell = values[row, col][seen[row, col]]
        for name, expected in (
            ("mean", cell.mean()), ("std", cell.std()), ("minimum", cell.min()), ("maximum", cell.max()),
            ("valid_fraction", seen[row, col].mean()),
        ):  # fmt: skip
            assert found[f"label_{name}"].values[row, col] == pytest.approx(expected, rel=1e-5), name
    np.testing.assert_array_equal(bits(found), int(Flag.some_missing))


def test_planted_values_of_floats_are_flagged_and_padding_is_missing():
    values = np.random.default_rng(0).normal(210, 3, (60, 64)).astype(np.float32)
    values[2, 2], values[20, 20], values[40, 40] = np.nan, np.inf, 999.0
    crop, found = assessed(values, valid_range=[100.0, 300.0])
    assert np.isnan(crop["label"].values[60:]).all()
    expected = np.zeros((4, 4), int)
    expected[0, 0], expected[1, 1], expected[2, 2] = (
        Flag.some_missing,
        Flag.non_finite,
        Flag.out_of_valid_range,
    )
    expected[3] |= int(Flag.some_missing)
    np.testing.assert_array_equal(bits(found), expected)


def test_other_channels_have_no_global_outliers():
    codes = np.random.default_rng(0).integers(1, 9, (64, 64)).astype(np.uint16)
    codes[:16, :16] = 60000
    crop, found = assessed(codes, _FillValue=0)
    channel = channel_in("label", crop["label"].attrs, crop["label"].dtype)
    statistics = {s: found[f"label_{s}"].values[None] for s in statistics_of(channel)}
    (means,) = quality.global_population(statistics, bits(found)[None], channel, QualitySpec())
    thresholds = quality.thresholds_of(means, channel, QualitySpec())
    assert thresholds["rule"] == "off"
    assert not quality.global_outliers(statistics, thresholds).any()
    tall = {s: values[:, None] for s, values in statistics.items()}
    again = quality.reflag(
        bits(found)[None, None], tall, channel, packing_of(crop["label"]), QualitySpec(low_coverage=1.0),
        pixels=256, angles={"satellite_zenith_angle": np.full((1, 4, 4), 90.0, np.float32)},
    )  # fmt: skip
    np.testing.assert_array_equal(again[0, 0], bits(found))


# A cube


def test_recipes_keep_the_format_of_stores_with_companions():
    stored = Recipe().to_dict() | {"channels": [IR], "companions": [OT]}
    recipe = Recipe.from_dict(stored)
    assert recipe.channels == (IR, OT)
    assert recipe.to_dict() == stored | {"channels": (IR,), "companions": (OT,)}
    assert list(recipe.to_dict()) == list(stored)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three files with tops in two patches of each; the second lacks their variable."""
    folder = tmp_path_factory.mktemp("sources")
    paths = synthetic.write_scenes(folder, scenes=3, shape=(96, 160), start="2021-07-05T18:00")
    for number, path in enumerate(paths, 1):
        add_other_variables(path)
        with netCDF4.Dataset(path, "a") as file:
            file.set_auto_maskandscale(False)
            file[OT][:] = 0
            file[OT][0, 10:14, 60:70] = number
            if number == 2:
                file.renameVariable(OT, "something_else")
    return paths


@pytest.fixture(scope="module")
def scenes(sources):
    return [readers.read_scene(path, channels=CHANNELS) for path in sources]


@pytest.fixture(scope="module")
def cube(sources, tmp_path_factory):
    """A cube with other channels of two dtypes, one of which a scene lacks."""
    path = tmp_path_factory.mktemp("cube") / "patches.zarr"
    recipe = Recipe(tile=TileSpec(patch=32), channels=CHANNELS)
    report = pipeline.preprocess(sources, path, recipe=recipe)
    assert not report.failed
    return path


def test_layout_of_other_channels_round_trips(cube):
    channels = store.store_info(cube)["channels"]
    found = {name: store.ChannelLayout.from_dict(name, about) for name, about in channels.items()}
    assert {n for n, c in found.items() if c.channel.kind == "other"} == {OT, TROPOPAUSE, *PARALLAX}
    assert found[OT].packing.dtype == "uint16"
    assert found[TROPOPAUSE].packing.dtype == "float32"
    assert np.isnan(found[TROPOPAUSE].fill)


def test_cube_holds_other_channels_bit_for_bit(cube, scenes):
    packed = store.open_packed(cube)
    for name in (OT, TROPOPAUSE, *PARALLAX):
        assert packed[name].dtype == scenes[0][name].dtype
        for crop in (0, 2):
            np.testing.assert_array_equal(packed[name].values[crop], scenes[crop][name].values)
        assert packed[name].attrs["role"] == "companion"
    assert (packed[OT].values[1] == 0).all()
    assert ((packed[f"{OT}_flags"].values[1] & int(Flag.channel_absent)) != 0).all()
    decoded = store.open_cube(cube)
    numbers = scenes[0][OT].values
    np.testing.assert_array_equal(decoded[OT].values[0], np.where(numbers == 0, np.nan, numbers))
    plain = xr.open_zarr(cube, chunks=None)
    np.testing.assert_array_equal(plain[TROPOPAUSE].values[0], scenes[0][TROPOPAUSE].values)


def test_training_leaves_other_channels_out_unless_asked(cube, scenes):
    assert datasets.PatchDataset(cube).labels == (IR, "visible_reflectance")
    both = datasets.PatchDataset(cube, channels=(IR, TROPOPAUSE), channel_mode="stack", reject=())
    batch = both[0]
    values, valid = both.decode(batch)
    assert values.shape == (1, 2, 32, 32)
    truth = scenes[0][TROPOPAUSE].values[:32, :32]
    statistics = store.store_info(cube)["training_statistics"][TROPOPAUSE]
    np.testing.assert_allclose(
        values[0, 1].numpy(), (truth - statistics["mean"]) / statistics["std"], rtol=1e-4, atol=1e-4
    )
    assert valid[0, 1].all()


def test_category_asked_for_is_normalised_and_masked_where_it_is_none(cube, scenes):
    numbers = datasets.PatchDataset(cube, channels=OT, reject=())
    assert len(numbers) == 2 * 15  # the scene that lacks it gives no sample, however little is rejected
    assert len(datasets.PatchDataset(cube, channels=OT)) == 2 * 15  # no top in a patch is an answer too
    batch = numbers.__getitems__(range(15))
    _, valid = numbers.decode(batch)
    truth = split_into_patches(scenes[0][OT].values, 32).reshape(15, 32, 32)
    np.testing.assert_array_equal(valid[:, 0].numpy(), truth != 0)
    np.testing.assert_array_equal(batch.codes[:, 0].to(torch.int32).numpy(), truth)
    rule = normalizations(cube, [OT])[OT]
    assert rule.rule == "standard"
    assert _gain_of(OT, rule) == 0.0
    assert _gain_of(IR, normalizations(cube, [IR])[IR]) > 0.0


def test_queries_carry_other_channels_and_judge_by_known_ones(cube, scenes):
    decoded = store.open_cube(cube)
    one = query.patch(decoded, 0, 1, 2)
    np.testing.assert_array_equal(one[TROPOPAUSE].values, scenes[0][TROPOPAUSE].values[32:64, 64:96])
    assert OT in query.crop(decoded, 2)
    everything = query.patches(decoded, reject=None)
    assert {IR, OT, TROPOPAUSE, f"{OT}_flags", f"{OT}_mean"} <= set(everything.data_vars)
    clean = (decoded[f"{IR}_flags"].values & int(default_reject("infrared"))) == 0
    clean |= (decoded["visible_reflectance_flags"].values & int(default_reject("visible"))) == 0
    assert everything.sizes["patch"] == clean.sum()
    labelled = query.patches(decoded, channel=OT, reject=None)
    assert {str(n) for n in labelled.data_vars} == {
        OT,
        *(n for n in map(str, decoded.data_vars) if n.startswith(f"{OT}_")),
    }
    assert labelled.sizes["patch"] == 2 * 15


@pytest.mark.parametrize("opened", [store.open_cube, store.open_packed])
@pytest.mark.parametrize("name", [OT, TROPOPAUSE])
def test_pictures_of_other_channels(cube, scenes, opened, name):
    pytest.importorskip("matplotlib")
    figure = plot.scene(opened(cube), 0, channel=name)
    drawn, values = figure.axes[0].images[-1].get_array(), scenes[0][name].values
    values = np.where(values == 0, np.nan, values)
    np.testing.assert_array_equal(np.ma.filled(drawn.astype(float), np.nan), values)
    title = {OT: "IR Overshooting Top Identification Number", TROPOPAUSE: "Tropopause Temperature"}[name]
    assert figure.get_suptitle().startswith(title)
    flags = plot.flags(opened(cube), 0, channel=name)
    assert flags.get_suptitle().startswith(f"Flags of {title}")
    assert plot.scene(opened(cube)).get_suptitle().startswith("Infrared")


def test_statistics_are_drawn_of_channels_alone(cube):
    pytest.importorskip("matplotlib")
    figure = plot.statistics(store.open_cube(cube))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert len(titles) == 2


def test_info_lists_other_channels_apart(cube):
    facts = info.inspect_target(cube)
    assert set(facts["other channels"]) == {OT, TROPOPAUSE, *PARALLAX}
    assert OT not in facts["flags"]
    assert facts["other channels"][OT] == "uint16, in 4 of 45 patches"
    assert facts["other channels"][TROPOPAUSE] == "float32, degrees_Kelvin, in 45 of 45 patches"
