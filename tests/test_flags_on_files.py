"""Flags of patches of whole files: planted faults are all found, clean patches have none, storms are kept."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np
import pytest
from reader_files import cf_coordinates, write_cf, write_gridrad, write_larc
from small_data import split_into_patches

from gridrad_cube import pipeline, quality, readers, store, synthetic, tiling
from gridrad_cube.schema import (
    CHANNELS,
    Flag,
    Packing,
    QualitySpec,
    Recipe,
    SchemaError,
    TileSpec,
    default_reject,
)

PATCH, CELLS = 32, 6
SIZE = PATCH * CELLS
IR, VISIBLE = "ir_brightness_temperature", "visible_reflectance"


def flags_of(path, channel, patch=PATCH):
    scene = readers.read_scene(path, channels=channel)
    (window,) = tiling.windows((scene.sizes["y"], scene.sizes["x"]), TileSpec(patch=patch), "a")
    crop = tiling.cut(scene, window, patch)
    return quality.assess(crop, QualitySpec())[f"{channel}_flags"].values, crop


def clean_field(rough, seed):
    """A field of clouds without a fault: smooth waves, with or without Gaussian noise, 200 to 300 K."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 6, SIZE), np.linspace(0, 7, SIZE), indexing="ij")
    field = 250 + 25 * np.sin(y + seed) * np.cos(1.3 * x) + 10 * np.sin(2.1 * x + y)
    return field + rough * rng.normal(size=field.shape)


def plant(field, value, cells, rng):
    """Put a block of a value into each of some patches, anywhere in it and of any size from 1 x 1."""
    for row, col in cells:
        height, width = rng.integers(1, 12, 2)
        y, x = row * PATCH + rng.integers(PATCH - height + 1), col * PATCH + rng.integers(PATCH - width + 1)
        field[y : y + height, x : x + width] = value


def plant_dead_lines(field, cells, rng):
    for row, col in cells:
        thick, y = rng.integers(1, 5), rng.integers(PATCH - 5)
        rows = slice(row * PATCH + y, row * PATCH + y + thick)
        field[rows, col * PATCH : (col + 1) * PATCH] = rng.choice([205.0, 273.15, 299.0])


def spread(seed, kinds):
    """Cells of the lattice for each kind of fault, and those that stay clean."""
    cells = np.random.default_rng(seed).permutation(np.argwhere(np.ones((CELLS, CELLS), bool)))
    parts = np.array_split(cells[: 5 * CELLS], kinds)
    return [list(map(tuple, part.tolist())) for part in parts], list(map(tuple, cells[5 * CELLS :].tolist()))


FLOAT_FAULTS = {
    "nan": (np.nan, Flag.some_missing),
    "inf": (np.inf, Flag.non_finite),
    "code 65535": (65535.0, Flag.out_of_valid_range),
    "default fill": (9.969209968386869e36, Flag.some_missing),
    "-9999": (-9999.0, Flag.out_of_valid_range),
}


@pytest.mark.parametrize("rough", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_every_fault_planted_in_a_file_of_floats_is_flagged_and_nothing_else(tmp_path, rough, seed):
    rng = np.random.default_rng(seed)
    field = clean_field(rough, seed)
    cells, clean = spread(seed, len(FLOAT_FAULTS) + 1)
    for (value, _), where in zip(FLOAT_FAULTS.values(), cells, strict=False):
        plant(field, value, where, rng)
    plant_dead_lines(field, cells[-1], rng)
    path = write_cf(tmp_path / "a.nc", {IR: (("lat", "lon"), field.astype("f4"), {"units": "K"})},
                    cf_coordinates((SIZE, SIZE)))  # fmt: skip
    flags, _ = flags_of(path, IR)
    for (name, (_, bit)), where in zip(FLOAT_FAULTS.items(), cells, strict=False):
        assert {int(flags[c]) for c in where} == {int(bit)}, name
    assert {int(flags[c]) for c in cells[-1]} == {int(Flag.local_outlier)}
    assert not any(flags[c] for c in clean)


@pytest.mark.parametrize("rough", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_every_fault_planted_in_packed_codes_is_flagged_and_nothing_else(tmp_path, rough, seed):
    rng = np.random.default_rng(seed)
    field = clean_field(rough, seed)
    cells, clean = spread(seed, 4)
    plant_dead_lines(field, cells[0], rng)
    codes = np.rint(field * 100).astype(np.uint16)
    plant(codes, 65535, cells[1], rng)
    plant(codes, 0, cells[2], rng)
    plant(codes, 36000, cells[3], rng)
    name = "NASALARC_GOES16_CONVECTION_DETECTION_20210705_1750.nc"
    flags, _ = flags_of(write_larc(tmp_path / name, shape=(SIZE, SIZE), data={IR: codes}, visible=False), IR)
    expected = (Flag.local_outlier, Flag.some_missing, Flag.out_of_valid_range, Flag.out_of_valid_range)
    for bit, where in zip(expected, cells, strict=True):
        assert {int(flags[c]) for c in where} == {int(bit)}
    assert not any(flags[c] for c in clean)


RADAR_FAULTS = {
    "nan": (np.nan, Flag.some_missing),
    "-9999": (-9999.0, Flag.some_missing),
    "default fill": (9.969209968386869e36, Flag.some_missing),
    "inf": (np.inf, Flag.non_finite),
    "65535": (65535.0, Flag.out_of_valid_range),
}


@pytest.mark.parametrize("fault", RADAR_FAULTS)
@pytest.mark.parametrize("seed", range(2))
def test_every_fault_planted_in_a_volume_is_flagged_and_nothing_else(tmp_path, fault, seed):
    """Every other patch of every level gets a block; the sky is looked at everywhere, and half of it has echo."""
    rng = np.random.default_rng(seed)
    value, bit = RADAR_FAULTS[fault]
    field = np.stack([clean_field(2.0, seed + level) for level in range(3)]) - 230  # -10 to 60
    listed = field > 0
    listed[:, : SIZE // 2] = True  # echo all over in the south, clear air among it in the north
    spoilt = np.zeros((3, CELLS, CELLS), bool)
    for level, row, col in np.argwhere(np.indices(spoilt.shape).sum(axis=0) % 2):
        block = np.full((SIZE, SIZE), 0.0)
        plant(block, 1.0, [(row, col)], rng)
        field[level][(block == 1.0) & listed[level]] = value
        spoilt[level, row, col] = ((block == 1.0) & listed[level]).any()
    counts = np.full(field.shape, 4, np.int8)
    path = write_gridrad(
        tmp_path / "nexrad_3d_v4_2_20110427T220000Z.nc", field, nradobs=counts, listed=listed
    )
    flags, _ = flags_of(path, "reflectivity")
    assert spoilt.sum() > 40
    assert {int(f) for f in flags[spoilt]} == {int(bit)}
    assert set(flags[~spoilt].tolist()) <= {0, int(Flag.no_echo)}


#: A patch has a storm where at least this many pixels (about 100 km2) are of convective strength: 40 dBZ as
#: Steiner et al. (1995, doi:10.1175/1520-0450(1995)034<1978:CCOTDS>2.0.CO;2) have it, or 10 mm/h.
STORM_PIXELS = 100
CONVECTIVE = {"radar": 40.0, "rain": 10.0}
MRMS = {
    "mrms_reflectivity_20230406T120039Z.nc": "reflectivity",
    **{
        f"mrms_precipitation_rate_20190610T00{minute:02d}00Z.nc": "precipitation_rate"
        for minute in range(0, 11, 2)
    },
}


@pytest.mark.parametrize("name", MRMS)
def test_no_patch_with_a_storm_is_rejected_on_real_files(real_data: Path, name: str):
    channel = CHANNELS[MRMS[name]]
    flags, crop = flags_of(real_data / name, channel.name, 256)
    variable = crop[channel.name]
    packing = Packing.from_attributes(variable.attrs, variable.dtype)
    strong = packing.decode(variable.values) >= CONVECTIVE[channel.kind]
    pixels = split_into_patches(strong, 256).sum(axis=(-2, -1))
    rejected = (flags & int(default_reject(channel.kind))) != 0
    assert (pixels >= STORM_PIXELS).sum() >= 8
    assert not (rejected & (pixels >= STORM_PIXELS)).any()
    # With a single such pixel, only patches that were hardly looked at are.
    few = rejected & (pixels > 0)
    assert (flags[few] & int(default_reject(channel.kind)) == int(Flag.low_coverage)).all()


def test_flags_do_not_depend_on_the_order_of_the_files(tmp_path):
    paths = synthetic.write_scenes(tmp_path / "sources", scenes=4, shape=(96, 160), start="2021-07-05T23:40",
                                   interval="30min")  # fmt: skip
    recipe = Recipe(tile=TileSpec(patch=32), quality=QualitySpec(global_mean_deviation_factor=1.0))
    cubes, thresholds = [], []
    for number, order in enumerate(([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])):
        path = tmp_path / f"{number}.zarr"
        assert not pipeline.preprocess([paths[i] for i in order], path, recipe=recipe).failed
        cubes.append(store.open_packed(path).load())
        thresholds.append(store.store_info(path)["thresholds"])
    assert (cubes[0][f"{IR}_flags"].values & int(Flag.global_outlier)).any()
    for cube, found in zip(cubes[1:], thresholds[1:], strict=True):
        assert found == thresholds[0]
        assert set(cube.variables) == set(cubes[0].variables)
        for name, variable in cube.variables.items():
            np.testing.assert_array_equal(variable.values, cubes[0][name].values, err_msg=str(name))


# Visible: units, sun


def larc(tmp_path, stamp="20210705_1750", **options):
    return write_larc(
        tmp_path / f"NASALARC_GOES16_CONVECTION_DETECTION_{stamp}.nc", shape=(64, 96), **options
    )


@pytest.mark.parametrize(
    ("units", "scale"),
    [
        ("unitless", 1e-4),
        ("1", 1e-4),
        ("dimensionless", 1e-4),
        ("fraction", 1e-4),
        ("%", 1e-2),
        ("percent", 1e-2),
    ],
)
def test_visible_of_any_known_units_is_the_same_reflectance(tmp_path, units, scale):
    codes = np.linspace(0, 12000, 64 * 96).astype(np.uint16).reshape(64, 96)
    attributes = {VISIBLE: {"units": units, "scale_factor": np.float32(scale)}}
    scene = readers.read_scene(larc(tmp_path, data={VISIBLE: codes}, attributes=attributes))
    packing = Packing.from_attributes(scene[VISIBLE].attrs, scene[VISIBLE].dtype)
    assert scene[VISIBLE].attrs["units"] == "1"
    np.testing.assert_array_equal(scene[VISIBLE].values, codes)
    np.testing.assert_allclose(packing.decode(codes), codes * 1e-4, rtol=1e-6)


@pytest.mark.parametrize("units", [None, "", "counts", "W m-2 sr-1"])
def test_visible_of_no_or_other_units_is_refused_never_guessed(tmp_path, units):
    path = larc(tmp_path, attributes={VISIBLE: {"units": units}})
    with pytest.raises(
        SchemaError, match=r"variable 'visible_reflectance'.*units.*expected some of.*Pass variables="
    ):
        readers.inspect(path)
    scene = readers.read_scene(path, variables=((VISIBLE, VISIBLE, "percent"),))
    assert scene[VISIBLE].attrs["scale_factor"] == 1e-6
    assert IR in readers.read_scene(path, channels=IR)  # the rest of the file stays of use


def set_scan_time(path, change, **attributes):
    with netCDF4.Dataset(path, "a") as file:
        variable = file["scan_time"]
        variable.setncatts(attributes)
        variable[:] = change(variable[:])


def test_each_row_of_patches_is_seen_by_the_sun_of_its_own_scan(tmp_path):
    """The sun sets while the imager scans: rows of patches are night by their own time."""
    path = larc(tmp_path, "20210706_0216", time="2021-07-06T02:16:00")
    set_scan_time(path, lambda days: np.repeat(days[0] + np.array([-55, 55]) / 1440, 32))
    scene = readers.read_scene(path)
    crop = tiling.cut(scene, tiling.Window(0, 0, 64, 96), 32)
    np.testing.assert_array_equal(
        crop["observation_time"].values, np.array(["2021-07-06T01:21", "2021-07-06T03:11"], "M8[s]")
    )
    found = quality.assess(crop, QualitySpec())
    zenith = found["solar_zenith_angle"].values
    assert (zenith[0] < 85).all()
    assert (zenith[1] > 85).all()
    night = (found[f"{VISIBLE}_flags"].values & int(Flag.night)) != 0
    np.testing.assert_array_equal(night, [[False] * 3, [True] * 3])
    assert ((found[f"{VISIBLE}_flags"].values & int(Flag.low_sun)) != 0).all()
    assert not (found[f"{IR}_flags"].values & int(Flag.night | Flag.low_sun)).any()
    assert found["satellite_zenith_angle"].shape == (2, 3)


def test_scan_times_that_are_none_give_way_to_the_time_of_the_scene(tmp_path):
    path = larc(tmp_path)
    set_scan_time(path, lambda days: np.r_[np.zeros(20), np.full(12, -999.0), np.full(31, np.nan), days[63:]])
    scene = readers.read_scene(path)
    known = ~np.isnat(scene["observation_time"].values)
    np.testing.assert_array_equal(np.flatnonzero(known), [63])
    crop = tiling.cut(scene, tiling.Window(0, 0, 64, 96), 32)
    assert np.isnat(crop["observation_time"].values).tolist() == [True, False]
    at_once = quality.assess(crop.drop_vars("observation_time"), QualitySpec())["solar_zenith_angle"].values
    found = quality.assess(crop, QualitySpec())["solar_zenith_angle"].values
    np.testing.assert_array_equal(found[0], at_once[0])
    assert (found[1] != at_once[1]).all()
