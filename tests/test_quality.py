from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import split_into_patches

from gridrad_cube import quality, readers, tiling
from gridrad_cube.quality.statistics import _count_dead_lines as count_dead_lines
from gridrad_cube.quality.statistics import _may_hold_dead_line as may_hold_dead_line
from gridrad_cube.schema import (
    CHANNELS,
    HISTOGRAM_BINS,
    Flag,
    Packing,
    QualitySpec,
    SchemaError,
    default_reject,
    statistics_of,
)
from gridrad_cube.tiling import Window

PATCH = 64
SPEC = QualitySpec()
IR, VISIBLE, RADAR, RAIN = (
    CHANNELS[name]
    for name in ("ir_brightness_temperature", "visible_reflectance", "reflectivity", "precipitation_rate")
)
NOON = np.datetime64("2021-06-21T18:00:00", "s")  # local noon at 90 degrees west
MIDNIGHT = np.datetime64("2021-06-21T06:00:00", "s")


def smooth(shape=(PATCH, PATCH), seed=0):
    """A smooth field between -1 and 1."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    waves = [np.sin(2 * np.pi * (a * y + b * x + c)) for a, b, c in rng.uniform(-2, 2, (4, 3))]
    return sum(waves) / 4


def make_scene(
    channel, codes, packing=None, *, time=NOON, latitude=40.0, longitude=-90.0, step=0.02, **attributes
):
    dims = ("altitude", "y", "x")[-codes.ndim :]
    height, width = codes.shape[-2:]
    return xr.Dataset(
        {channel.name: (dims, codes, (packing or channel.packing).to_attributes() | channel.attributes())},
        {
            "latitude": ("y", latitude + step * (np.arange(height) - height / 2)),
            "longitude": ("x", longitude + step * (np.arange(width) - width / 2)),
            "time": time,
        },
        attrs=attributes,
    )


def assess(channel, codes, spec=SPEC, patch=PATCH, packing=None, window=None, **scene):
    scene = make_scene(channel, codes, packing, **scene)
    window = window or Window(0, 0, *codes.shape[-2:])
    return quality.assess(tiling.cut(scene, window, patch), spec)


def flag_of(channel, codes, spec=SPEC, **scene):
    """Flags of the one patch."""
    return Flag(
        int(assess(channel, codes, spec, **scene)[f"{channel.name}_flags"].values[..., 0, 0].squeeze())
    )


def kelvin(field):
    return IR.packing.encode(field)


def dbz(field):
    """Packed reflectivity; NaN is no echo."""
    return RADAR.packing.encode(field, no_echo=np.isnan(field))


def storm(seed=0):
    field = 30 + 25 * smooth(seed=seed)
    return np.where(field > 20, field, np.nan)


# statistics


def expected_statistics(codes, packing, channel):
    """The statistics of one patch by plain numpy in float64."""
    observed = packing.observed(codes)
    data = packing.echo(codes)
    values = codes[data].astype(np.float64) * packing.scale_factor + packing.add_offset
    with np.errstate(invalid="ignore", divide="ignore"):
        linear = (
            10 * np.log10(np.mean(10 ** (values / 10))) if channel.units == "dBZ" and values.size else np.nan
        )
        return {
            "valid_fraction": observed.mean(),
            "mean": values.mean() if values.size else np.nan,
            "std": values.std() if values.size else np.nan,
            "minimum": values.min(initial=np.inf) if values.size else np.nan,
            "maximum": values.max(initial=-np.inf) if values.size else np.nan,
            "echo_fraction": data.sum() / observed.sum() if observed.any() else np.nan,
            "mean_linear": linear if channel.units == "dBZ" else (values.mean() if values.size else np.nan),
            "mean_log10": np.log10(np.maximum(values, 0.01)).mean() if values.size else np.nan,
            "std_log10": np.log10(np.maximum(values, 0.01)).std() if values.size else np.nan,
        }


def all_codes(packing):
    special = [packing.fill_value, packing.no_echo, packing.low_confidence, packing.clutter]
    special += [packing.out_of_range, packing.non_finite]
    low = packing.echo_minimum or packing.valid_minimum or 0
    data = st.integers(int(low), int(packing.valid_maximum or 60000))
    return st.one_of(data, st.sampled_from([int(s) for s in special if s is not None]))


@settings(deadline=None, max_examples=150)
@given(
    st.data(),
    st.sampled_from([IR, VISIBLE, RADAR, RAIN, CHANNELS["echo_top_height"], CHANNELS["divergence"]]),
)
def test_statistics_equal_plain_numpy_on_decoded_values(data, channel):
    packing = channel.packing
    few = data.draw(st.lists(all_codes(packing), min_size=1, max_size=4))
    seed = data.draw(st.integers(0, 1000))
    codes = np.random.default_rng(seed).choice(np.array(few, np.uint16), (8, 12))
    found = quality.patch_statistics(codes, packing, channel, 4)
    assert set(found) == {*statistics_of(channel), "pixel_flags"}
    for row, col in np.ndindex(2, 3):
        cell = split_into_patches(codes, 4)[row, col]
        expected = expected_statistics(cell, packing, channel)
        for name in set(statistics_of(channel)) - {"dead_lines"}:
            assert found[name].dtype == np.float32
            assert found[name][row, col] == pytest.approx(expected[name], rel=1e-6, abs=1e-6, nan_ok=True), (
                name
            )


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
)
def test_statistics_of_every_dtype(dtype):
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype).kind
    codes = rng.integers(5, 120, (16, 16)).astype(dtype)
    if kind == "i":
        codes -= 50
    codes[3, 4:9] = np.nan if kind == "f" else -99 if kind == "i" else 127
    packing = Packing(
        dtype=dtype, scale_factor=1.0 if kind == "f" else -0.25, add_offset=0.0 if kind == "f" else 300.0,
        fill_value=None if kind == "f" else codes[3, 4], valid_minimum=-50, valid_maximum=120,
    )  # fmt: skip
    if kind == "u":
        packing = Packing(dtype=dtype, scale_factor=-0.25, add_offset=300.0, fill_value=127)
    found = quality.patch_statistics(codes, packing, IR, 16)
    expected = expected_statistics(codes, packing, IR)
    for name in ("valid_fraction", "mean", "std", "minimum", "maximum"):
        assert found[name].item() == pytest.approx(expected[name], rel=1e-6)


def test_statistics_are_exact_where_floats_cancel():
    codes = np.full((PATCH, PATCH), 34999, np.uint16)
    codes[0, 0] = 35000
    n = PATCH * PATCH
    found = quality.patch_statistics(codes, IR.packing, IR, PATCH)
    assert found["std"].item() == np.float32(0.01 * np.sqrt(n - 1) / n)


def test_statistics_of_a_patch_do_not_depend_on_its_neighbours():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 60000, (3, 64, 96)).astype(np.uint16)
    codes[rng.random(codes.shape) < 0.5] = 1
    whole = quality.patch_statistics(codes, RADAR.packing, RADAR, 32)
    for level, row, col in np.ndindex(3, 2, 3):
        cell = codes[level, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
        for layout in (cell.copy(), np.asfortranarray(cell), cell.astype(">u2")):
            alone = quality.patch_statistics(layout, RADAR.packing, RADAR, 32)
            for name, values in whole.items():
                np.testing.assert_array_equal(values[level, row, col], alone[name][0, 0], err_msg=name)


def test_statistics_of_a_large_patch_are_exact():
    codes = np.full((1600, 1600), 65533, np.uint16)  # the sum of squares is above 2**53
    codes[1000, 1000] -= 1
    found = quality.patch_statistics(codes, Packing(scale_factor=1.0, fill_value=65535), IR, 1600)
    n = codes.size
    assert found["std"].item() == np.float32(np.sqrt(n - 1) / n)


def test_mean_linear_weighs_strong_echoes_and_ignores_no_echo():
    field = np.full((4, 4), np.nan)
    field[0, 0], field[0, 1] = 10.0, 40.0
    found = quality.patch_statistics(dbz(field), RADAR.packing, RADAR, 4)
    assert found["mean"].item() == pytest.approx(25.0)
    assert found["mean_linear"].item() == pytest.approx(10 * np.log10((10 + 10**4) / 2))
    assert found["echo_fraction"].item() == pytest.approx(2 / 16)


def test_statistics_refuse_part_patches_and_other_dtypes():
    with pytest.raises(SchemaError, match=r"got 6 x 8 px; expected whole patches of 4 px"):
        quality.patch_statistics(np.zeros((6, 8), np.uint16), IR.packing, IR, 4)
    with pytest.raises(SchemaError, match="got int16; expected uint16"):
        quality.patch_statistics(np.zeros((4, 4), np.int16), IR.packing, IR, 4)


# faults: each planted one is found


def with_block(field, value, rows=slice(20, 30), cols=slice(10, 30)):
    field = field.copy()
    field[rows, cols] = value
    return field


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rough", [0.0, 3.0])
@pytest.mark.parametrize(
    ("value", "bit"),
    [
        (np.nan, Flag.some_missing),
        (np.inf, Flag.non_finite),
        (-np.inf, Flag.non_finite),
        (655.35, Flag.out_of_valid_range),
        (65535.0, Flag.out_of_valid_range),
        (9.969209968386869e36, Flag.out_of_valid_range),
        (-9999.0, Flag.out_of_valid_range),
    ],
)
def test_planted_block_sets_its_bit_and_no_other(seed, rough, value, bit):
    rng = np.random.default_rng(seed)
    field = 260 + 20 * smooth(seed=seed) + rough * rng.normal(size=(PATCH, PATCH))
    block = slice(*np.sort(rng.choice(PATCH * 2 // 3, 2, replace=False)))
    assert flag_of(IR, kelvin(with_block(field, value, block, block))) == bit
    assert flag_of(IR, kelvin(field)) == 0


@pytest.mark.parametrize(
    ("value", "bit"),
    [(np.nan, Flag.some_missing), (np.inf, Flag.non_finite), (9.97e36, Flag.out_of_valid_range),
     (-9999.0, Flag.out_of_valid_range)],
)  # fmt: skip
def test_planted_block_is_found_in_float_variables_without_a_range(value, bit):
    field = (260 + 20 * smooth()).astype(np.float32)
    packing = Packing(dtype="float32")
    assert flag_of(IR, with_block(field, value), packing=packing) == bit
    assert flag_of(IR, field, packing=packing) == 0


def test_planted_fill_code_of_an_integer_source_is_missing():
    codes = kelvin(260 + 20 * smooth())
    packing = Packing(scale_factor=0.01, fill_value=65535, valid_minimum=15000, valid_maximum=35000)
    assert flag_of(IR, with_block(codes, 65535), packing=packing) == Flag.some_missing
    assert flag_of(IR, with_block(codes, 14000), packing=packing) == Flag.out_of_valid_range


@pytest.mark.parametrize("rough", [0.0, 0.2, 3.0])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("first", "thick"), [(0, 1), (1, 1), (30, 1), (40, 12), (62, 2), (63, 1)])
def test_dead_lines_are_found_whatever_they_repeat(rough, turned, first, thick):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        field = 260 + 20 * smooth(seed=seed) + rough * rng.normal(size=(PATCH, PATCH))
        if turned:
            field = field.T.copy()
        value = [field.mean(), 200.0, 320.0, field[first].max(), 240.0][seed]
        field[first : first + thick] = value
        result = assess(IR, kelvin(field))
        assert result["ir_brightness_temperature_flags"].item() == Flag.local_outlier
        assert result["ir_brightness_temperature_dead_lines"].item() == thick


def test_dead_lines_are_counted_in_both_directions_and_next_to_missing_pixels():
    field = 260 + 20 * smooth()
    field[20] = 240.0
    field[:, 40] = np.nan
    field[:, 50] = 280.0
    field[20, 50] = 240.0
    field[:, 60:] = np.nan
    result = assess(IR, kelvin(field))
    assert result["ir_brightness_temperature_dead_lines"].item() == 1
    field[20] = 260 + 20 * smooth()[20]
    assert assess(IR, kelvin(field))["ir_brightness_temperature_dead_lines"].item() == 0
    field[20, 50] = 280.0
    assert assess(IR, kelvin(field))["ir_brightness_temperature_dead_lines"].item() == 1


def test_missing_line_is_some_missing():
    assert flag_of(IR, kelvin(with_block(260 + 20 * smooth(), np.nan, 10, slice(None)))) == Flag.some_missing


def test_dead_line_in_a_float_field_is_found():
    field = (260 + 20 * smooth()).astype(np.float32)
    field[30] = 251.5
    assert flag_of(IR, field, packing=Packing(dtype="float32")) == Flag.local_outlier


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, PATCH - 1), st.booleans(), st.integers(1, 12))
def test_quick_test_for_dead_lines_misses_none(seed, line, turned, every):
    rng = np.random.default_rng(seed)
    field = np.rint(2000 * smooth(seed=seed) + rng.normal(scale=20, size=(PATCH, PATCH)))
    field[line] = 5.0
    observed = rng.random(field.shape) < 0.8
    observed[line, ::every] = False  # also where the quick test looks
    turn = np.transpose if turned else np.asarray
    field, observed = turn(field), turn(observed)
    for mask in (None, observed):
        if count_dead_lines(field, mask, mask, 2.0):
            assert may_hold_dead_line(field, mask, mask)


# the histogram of clean patches


@pytest.mark.parametrize("levels", [(), (2,)])
@pytest.mark.parametrize("channel", [IR, RADAR, RAIN])
@pytest.mark.parametrize("dtype", [None, "int16", "int32", "float32"])
def test_clean_histogram_counts_every_data_pixel_of_clean_patches(channel, dtype, levels):
    rng = np.random.default_rng(3)
    low, high = channel.typical_range
    values = rng.uniform(low - 0.2 * (high - low), high + 0.2 * (high - low), (*levels, 8, 12))
    packing = channel.packing
    if dtype is not None:
        packing = Packing(dtype=dtype, scale_factor=1.0 if dtype == "float32" else 0.01, fill_value=-999)
    codes = (values / packing.scale_factor).astype(dtype) if dtype else packing.encode(values)
    codes[..., 2, 3] = packing.fill_value
    clean = rng.random((*levels, 2, 3)) < 0.7
    found = quality.clean_histogram(codes, packing, channel, clean)
    assert found.shape == (*levels, HISTOGRAM_BINS)
    assert found.dtype == np.int64
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    for level in np.ndindex(*levels):
        pixels = codes[level][np.kron(clean[level], np.ones((4, 4), bool))]
        data = pixels[packing.echo(pixels)].astype(np.float64) * packing.scale_factor + packing.add_offset
        assert found[level].tolist() == np.histogram(data, edges)[0].tolist()
        assert found[level].sum() > 0


# clean patches: no flag


@pytest.mark.parametrize("step", [0.01, 0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [0.05, 1.0, 25.0])
def test_clean_smooth_fields_have_no_flag_however_coarse_the_packing(step, size):
    packing = Packing(scale_factor=step, fill_value=65535)
    for seed in range(20):
        codes = packing.encode(260.3 + size * smooth(seed=seed))
        expected = Flag(0) if np.ptp(codes) else Flag.constant
        assert flag_of(IR, codes, packing=packing) == expected


@pytest.mark.parametrize("wavelength", [16, 24, 32, 64, 128, 512])
@pytest.mark.parametrize("step", [0.01, 0.5])
def test_level_lines_of_smooth_fields_are_no_dead_lines(wavelength, step):
    packing = Packing(scale_factor=step, fill_value=65535)
    y, x = np.mgrid[:PATCH, :PATCH] * 2 * np.pi / wavelength
    for field in (np.sin(y) * np.sin(x), np.sin(y) * np.cos(x), (1 - np.cos(y)) * np.sin(x), np.sin(y),
                  np.maximum(0, np.sin(y) * np.sin(x + 1)), y * x, y * y * x, np.sin(y) + np.cos(x)):  # fmt: skip
        for size in (0.2, 1.0, 20.0):
            codes = packing.encode(260 + size * field / np.abs(field).max())
            assert not flag_of(IR, codes, packing=packing) & Flag.local_outlier


def test_line_without_the_specks_of_its_neighbours_is_no_dead_line():
    field = np.zeros((PATCH, PATCH))
    field[np.arange(PATCH), np.arange(PATCH) * 7 % PATCH] = 0.01
    field[20] = 0.0
    result = assess(VISIBLE, VISIBLE.packing.encode(field))
    assert result["visible_reflectance_dead_lines"].item() == 0


def test_clean_gaussian_fields_have_no_flag():
    rng = np.random.default_rng(0)
    codes = kelvin(rng.normal(270, 10, (8 * PATCH, 8 * PATCH)))
    assert not assess(IR, codes)["ir_brightness_temperature_flags"].values.any()


def test_clean_storms_have_no_flag():
    for seed in range(10):
        assert flag_of(RADAR, dbz(storm(seed))) == 0
    rng = np.random.default_rng(0)
    rain = rng.lognormal(0, 1.5, (PATCH, PATCH)).clip(0.02, 600)
    assert flag_of(RAIN, RAIN.packing.encode(rain, no_echo=smooth() < 0)) == 0


# bits one by one


def test_all_missing_means_that_no_pixel_can_be_used():
    blank = np.full((PATCH, PATCH), np.nan)
    gone = Flag.all_missing | Flag.low_coverage
    assert flag_of(IR, kelvin(blank)) == gone | Flag.some_missing
    assert flag_of(IR, kelvin(with_block(blank, np.inf))) == gone | Flag.some_missing | Flag.non_finite
    assert flag_of(IR, kelvin(np.full_like(blank, -5.0))) == gone | Flag.out_of_valid_range
    assert not flag_of(IR, kelvin(with_block(blank, 260.0))) & Flag.all_missing


@pytest.mark.parametrize(("rows", "low"), [(31, True), (32, False), (33, False)])
def test_low_coverage_is_under_half(rows, low):
    field = 260 + 20 * smooth()
    field[rows:] = np.nan
    assert flag_of(IR, kelvin(field)) == (Flag.some_missing | Flag.low_coverage if low else Flag.some_missing)


def test_constant_is_one_value_in_all_observed_pixels():
    field = np.full((PATCH, PATCH), 260.0)
    assert flag_of(IR, kelvin(field)) == Flag.constant
    assert flag_of(IR, kelvin(with_block(field, np.nan))) == Flag.constant | Flag.some_missing
    assert not flag_of(IR, kelvin(with_block(field, 261.0))) & Flag.constant
    blank = np.full((PATCH, PATCH), np.nan)
    one, two = with_block(blank, 260.0, 3, 4), with_block(blank, 260.0, 3, slice(4, 6))
    assert not flag_of(IR, kelvin(one)) & Flag.constant
    assert flag_of(IR, kelvin(two)) & Flag.constant


def test_no_echo_is_not_constant_and_echo_beside_no_echo_is_neither():
    nothing = np.full((PATCH, PATCH), np.nan)
    assert flag_of(RADAR, dbz(nothing)) == Flag.no_echo
    assert flag_of(RADAR, with_block(dbz(nothing), 3)) == Flag.no_echo  # clutter that was removed
    assert flag_of(RADAR, with_block(dbz(nothing), 0)) == Flag.no_echo | Flag.some_missing
    assert flag_of(RADAR, dbz(with_block(nothing, 30.0))) == 0
    assert flag_of(RADAR, dbz(np.full_like(nothing, 30.0))) == Flag.constant
    assert flag_of(RADAR, np.zeros((PATCH, PATCH), np.uint16)) == (
        Flag.some_missing | Flag.all_missing | Flag.low_coverage
    )


def test_local_outlier_counts_deviations_of_echo_pixels_only():
    field = np.full((PATCH, PATCH), np.nan)
    field[:5, :5] = np.random.default_rng(0).normal(50, 3, (5, 5))
    assert flag_of(RADAR, dbz(field)) == 0  # a small storm on a quiet field is no outlier
    calm = np.random.default_rng(0).normal(20, 0.5, (PATCH, PATCH))
    assert flag_of(RADAR, dbz(with_block(calm, 70.0, 5, 5))) == Flag.local_outlier


@pytest.mark.parametrize(("factor", "found"), [(40.0, True), (70.0, False)])
def test_local_outlier_takes_its_factor(factor, found):
    field = np.where(np.indices((PATCH, PATCH)).sum(0) % 2, 260.0, 261.0)
    codes = kelvin(with_block(field, 300.0, 5, 5))
    values = codes * 0.01
    k = np.abs(values - values.mean()).max() / values.std()
    assert 40 < k < 70
    assert bool(flag_of(IR, codes, QualitySpec(max_deviation_factor=factor)) & Flag.local_outlier) == found


def test_one_step_of_a_coarse_packing_is_no_outlier():
    packing = Packing(scale_factor=0.5, fill_value=65535)
    field = with_block(np.full((PATCH, PATCH), 260.0), 260.5, slice(0, 2), slice(0, 3))
    assert flag_of(IR, packing.encode(field), packing=packing) == 0


def test_local_outlier_of_rain_is_in_the_logarithm():
    rain = np.random.default_rng(0).lognormal(-1, 0.3, (PATCH, PATCH))
    assert flag_of(RAIN, RAIN.packing.encode(with_block(rain, 3.0, 5, 5))) == 0  # 24 deviations, linearly
    assert flag_of(RAIN, RAIN.packing.encode(with_block(rain, 600.0, 5, 5))) == Flag.local_outlier


@pytest.mark.parametrize("time", [NOON, MIDNIGHT])
def test_night_depends_on_the_sun_and_never_on_values(time):
    dark = Flag.night | Flag.low_sun if time == MIDNIGHT else Flag(0)
    for level in (0.02, 0.8):
        codes = VISIBLE.packing.encode(level + 0.01 * smooth())
        assert flag_of(VISIBLE, codes, time=time) == dark
    assert flag_of(IR, kelvin(260 + smooth()), time=time) == 0


def test_night_and_low_sun_have_their_own_thresholds():
    codes = VISIBLE.packing.encode(0.2 + 0.01 * smooth())
    seen = {}
    for minute in range(0, 720, 5):
        result = assess(VISIBLE, codes, time=NOON + np.timedelta64(minute, "m"))
        seen[result.solar_zenith_angle.item(), result.solar_zenith_angle_maximum.item()] = Flag(
            int(result.visible_reflectance_flags.item())
        )
    assert len({tuple(Flag(f)) for f in seen.values()}) == 3
    for (centre, highest), flags in seen.items():
        assert bool(flags & Flag.night) == (centre > 85)
        assert bool(flags & Flag.low_sun) == (highest > 75)
        assert 0.4 < highest - centre < 1.0  # half the diagonal of 64 pixels of 0.02 degrees


def test_night_is_at_the_time_of_the_scan():
    codes = VISIBLE.packing.encode(0.2 + 0.01 * smooth((2 * PATCH, PATCH)))
    lines = np.repeat(np.array([NOON, MIDNIGHT]), PATCH)
    scene = make_scene(VISIBLE, codes, time=NOON).assign_coords(observation_time=("y", lines))
    result = quality.assess(tiling.cut(scene, Window(0, 0, *codes.shape), PATCH), SPEC)
    np.testing.assert_array_equal(
        result.visible_reflectance_flags.values.ravel() & Flag.night, [0, Flag.night]
    )


@pytest.mark.parametrize(("longitude", "limb"), [(-75.0, False), (-15.0, False), (-2.0, True), (60.0, True)])
def test_limb_needs_a_satellite_far_from_overhead(longitude, limb):
    codes = kelvin(260 + 20 * smooth())
    place = {"latitude": 10.0, "longitude": longitude}
    result = assess(IR, codes, satellite_longitude=-75.2, **place)
    assert result["ir_brightness_temperature_flags"].item() == (Flag.limb if limb else 0)
    assert (result.satellite_zenith_angle.item() > 70) == limb
    assert flag_of(IR, codes, **place) == 0
    assert "satellite_zenith_angle" not in assess(IR, codes, **place).coords


def test_padding_is_a_patch_with_nothing_of_the_scene():
    codes = kelvin(260 + 20 * smooth((PATCH, PATCH + 20)))
    result = assess(IR, codes, window=Window(0, 0, 2 * PATCH, 3 * PATCH))
    flags = result["ir_brightness_temperature_flags"].values
    nothing = Flag.padding | Flag.some_missing | Flag.all_missing | Flag.low_coverage
    edge = Flag.some_missing | Flag.low_coverage
    np.testing.assert_array_equal(flags, [[0, edge, nothing], [nothing] * 3])
    assert result["ir_brightness_temperature_valid_fraction"].values[0, 1] == np.float32(20 / PATCH)
    assert np.isnan(result.solar_zenith_angle.values[1]).all()


def test_every_level_of_a_volume_has_its_own_flags():
    codes = np.stack([dbz(storm()), dbz(np.full((PATCH, PATCH), np.nan))])
    result = assess(RADAR, codes)
    assert result["reflectivity_flags"].dims == ("altitude", "row", "col")
    np.testing.assert_array_equal(result["reflectivity_flags"].values.ravel(), [0, Flag.no_echo])


def test_assess_gives_what_a_store_keeps():
    result = assess(RADAR, dbz(storm()))
    names = {f"reflectivity_{name}" for name in (*statistics_of(RADAR), "flags")}
    assert set(result.data_vars) == names
    assert result["reflectivity_flags"].dtype == np.uint16
    assert {result[name].dtype for name in names - {"reflectivity_flags"}} == {np.dtype("float32")}
    assert result["reflectivity_flags"].attrs["standard_name"] == "quality_flag"
    assert result["reflectivity_mean"].attrs["units"] == "dBZ"
    assert result["reflectivity_echo_fraction"].attrs["units"] == "1"


def test_assess_refuses_what_is_no_crop():
    with pytest.raises(SchemaError, match=r"no coordinates \['padding'\].*tiling.cut"):
        quality.assess(make_scene(IR, kelvin(260 + smooth())), SPEC)


# the predecessor's rules


def test_predecessor_local_rule_is_the_unbiased_formula():
    rng = np.random.default_rng(0)
    codes = kelvin(rng.normal(270, 10, (4, 4)))
    values = codes * 0.01
    k = np.abs(values - values.mean()).max() / values.std(ddof=1)
    for factor in (0.999 * k, 1.001 * k):
        spec = QualitySpec(rule="predecessor", max_deviation_factor=factor)
        assert bool(flag_of(IR, codes, spec, patch=4) & Flag.local_outlier) == (factor < k)


def test_predecessor_global_rule_is_the_batch_formula():
    rng = np.random.default_rng(0)
    means = np.append(rng.normal(270, 1, 99), 275.0).astype(np.float32)
    statistics, flags = whole_store(means)
    flags[:3, 0, 0] = Flag.local_outlier, Flag.night, Flag.some_missing
    statistics["valid_fraction"][2] = 0.9
    means = means.astype(np.float64)
    kept = np.delete(means, [0, 2])  # what its earlier tests had left
    far = np.abs(means - kept.mean()) / kept.std()
    for factor in (0.999 * far.max(), 1.001 * far.max(), np.sort(far)[-5:-3].mean()):
        spec = QualitySpec(rule="predecessor", global_mean_deviation_factor=factor)
        thresholds = global_thresholds(statistics, flags, IR, spec)
        np.testing.assert_array_equal(quality.global_outliers(statistics, thresholds).ravel(), far > factor)


# global outliers and reflagging


def whole_store(means, shape=(-1, 1, 1), **more):
    means = np.asarray(means, np.float32).reshape(shape)
    statistics = {"mean": means, "valid_fraction": np.ones_like(means)}
    statistics |= {name: np.broadcast_to(np.float32(v), means.shape).copy() for name, v in more.items()}
    return statistics, np.zeros(means.shape, np.uint16)


def global_thresholds(statistics, flags, channel, spec):
    """Thresholds of a whole store, as building one draws them."""
    means = quality.global_population(statistics, flags, channel, spec)
    found = [quality.thresholds_of(level, channel, spec) for level in means]
    return {"levels": found} if flags.ndim == 4 else found[0]


def global_flags(statistics, flags, channel, spec, thresholds=None):
    used = thresholds or global_thresholds(statistics, flags, channel, spec)
    return np.where(
        quality.global_outliers(statistics, used), np.uint16(Flag.global_outlier), np.uint16(0)
    ), used


def test_global_outlier_is_far_from_the_median():
    means = [*np.random.default_rng(0).normal(270, 2, 500), 330.0, 200.0]
    statistics, flags = whole_store(means)
    bits, thresholds = global_flags(statistics, flags, IR, SPEC)
    np.testing.assert_array_equal(np.flatnonzero(bits), [500, 501])
    assert set(np.unique(bits)) == {0, Flag.global_outlier}
    assert thresholds["center"] == pytest.approx(np.median(means))
    assert thresholds["spread"] == pytest.approx(2, rel=0.1)
    assert json.loads(json.dumps(thresholds)) == thresholds


@settings(deadline=None)
@given(
    st.lists(st.floats(-50, 70, width=32), min_size=8, max_size=40),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_global_thresholds_do_not_depend_on_the_order(means, random, predecessor):
    spec = QualitySpec(rule="predecessor" if predecessor else "echo", global_mean_deviation_factor=3)
    order = random.sample(range(len(means)), len(means))
    first = global_thresholds(*whole_store(means, echo_fraction=0.5), RADAR, spec)
    mixed = [means[i] for i in order]
    assert global_thresholds(*whole_store(mixed, echo_fraction=0.5), RADAR, spec) == first


def test_frozen_thresholds_judge_later_patches_as_the_first_ones():
    means = np.random.default_rng(0).normal(270, 2, 100)
    thresholds = json.loads(json.dumps(global_thresholds(*whole_store(means), IR, SPEC)))
    later, flags = whole_store([270.0, 400.0, np.nan])
    bits, used = global_flags(later, flags, IR, SPEC, thresholds)
    np.testing.assert_array_equal(bits.ravel(), [0, Flag.global_outlier, 0])
    assert used == thresholds


@pytest.mark.parametrize(("means", "reason"), [([270.0] * 50, "do not spread"), ([1.0, 2.0, 3.0], "under 8")])
def test_global_rule_is_off_without_a_distribution_and_says_so(means, reason):
    statistics, flags = whole_store(means)
    bits, thresholds = global_flags(statistics, flags, IR, SPEC)
    assert thresholds["rule"] == "off"
    assert reason in thresholds["reason"]
    assert not bits.any()


def test_global_spread_falls_back_to_the_standard_deviation():
    means = [270.0] * 30 + [271.0, 269.0]
    thresholds = global_thresholds(*whole_store(means), IR, SPEC)
    assert thresholds["spread"] == pytest.approx(np.std(means))


def test_global_distribution_is_that_of_clean_patches_with_echo():
    rng = np.random.default_rng(0)
    statistics, flags = whole_store([*rng.normal(20, 1, 100), *rng.normal(90, 1, 200)], echo_fraction=0.5)
    flags[100:200] = Flag.low_coverage
    statistics["echo_fraction"][200:] = 0.001
    thresholds = global_thresholds(statistics, flags, RADAR, SPEC)
    assert thresholds["count"] == 100
    found = quality.global_outliers(statistics, thresholds).ravel()
    np.testing.assert_array_equal(found, np.repeat([False, True, False], 100))


def test_global_rule_of_rain_is_in_the_logarithm():
    means = np.random.default_rng(0).lognormal(0, 0.5, 300)
    thresholds = global_thresholds(*whole_store([*means, 100.0], echo_fraction=0.5), RAIN, SPEC)
    assert thresholds["center"] == pytest.approx(np.median(np.log10(means)), abs=0.01)
    later, _ = whole_store([100.0, 1000.0, 1e5], echo_fraction=0.5)
    np.testing.assert_array_equal(quality.global_outliers(later, thresholds).ravel(), [False, True, True])


def test_every_altitude_has_a_distribution_of_its_own():
    rng = np.random.default_rng(0)
    means = np.stack([rng.normal(30, 1, 50), rng.normal(5, 1, 50)], axis=1)
    means[7] = means[7, ::-1]
    statistics, flags = whole_store(means, shape=(50, 2, 1, 1), echo_fraction=0.5)
    bits, thresholds = global_flags(statistics, flags, RADAR, SPEC)
    assert [round(t["center"]) for t in thresholds["levels"]] == [30, 5]
    np.testing.assert_array_equal(np.unique(np.nonzero(bits)[0]), [7])
    assert (bits[7] == Flag.global_outlier).all()


def make_cube(channel, levels=0, crops=12):
    """A store's small variables: what `assess` gives for crops with every kind of fault."""
    rng = np.random.default_rng(3)
    parts = []
    for crop in range(crops):
        shape = (*([levels] if levels else []), 2 * PATCH, 2 * PATCH)
        field = np.broadcast_to(smooth(shape[-2:], seed=crop), shape) * rng.uniform(0.5, 1.5)
        field = field + rng.normal(0, 0.05, shape)
        low, high = {"radar": (0, 60), "visible": (0.05, 0.8), "rain": (0.1, 30)}.get(
            channel.kind, (200, 300)
        )
        field = np.clip(low + (high - low) * (field + 1.5) / 3, low, high)
        field[..., 10, : PATCH + 3] = low + 0.4 * (high - low)  # a dead line
        field[..., 5 + PATCH, 7] = high
        field[..., : 8 * (crop % 7), PATCH:] = np.nan
        none = np.zeros(shape, bool)
        if channel.has_echo:
            none = field < low + (high - low) * crop / 20
        codes = channel.packing.encode(field, **({"no_echo": none} if channel.has_echo else {}))
        window = Window(0, 0, 3 * PATCH, 2 * PATCH)
        time = NOON + np.timedelta64(40 * crop, "m")
        parts.append((codes, {"window": window, "time": time, "satellite_longitude": -20.0}))
    return parts


def assess_store(channel, parts, spec):
    results = [assess(channel, codes, spec, **scene) for codes, scene in parts]
    prefix = f"{channel.name}_"
    gathered = {
        name: np.stack([r[name].values for r in results])
        for name in (*results[0].data_vars, *results[0].coords)
    }
    statistics = {k.removeprefix(prefix): v for k, v in gathered.items() if k.startswith(prefix)}
    angles = {k: v for k, v in gathered.items() if "zenith" in k}
    flags = statistics.pop("flags")
    bits, thresholds = global_flags(statistics, flags, channel, spec)
    return flags | bits, statistics, angles, thresholds


@pytest.mark.parametrize(("channel", "levels"), [(IR, 0), (VISIBLE, 0), (RADAR, 2), (RAIN, 0)])
def test_reflagging_equals_assessing_again(channel, levels):
    parts = make_cube(channel, levels)
    specs = [
        QualitySpec(),
        QualitySpec(max_deviation_factor=3.5, global_mean_deviation_factor=1.5, low_coverage=0.9,
                    night_solar_zenith=60, low_sun_solar_zenith=50, limb_satellite_zenith=75),
        QualitySpec(rule="predecessor", max_deviation_factor=3, global_mean_deviation_factor=1),
    ]  # fmt: skip
    assessed = [assess_store(channel, parts, spec) for spec in specs]
    assert len({a[0].tobytes() for a in assessed}) == 3
    for old, (spec, new) in itertools.product(assessed, zip(specs, assessed, strict=True)):
        flags = quality.reflag(
            old[0], old[1], channel, channel.packing, spec, pixels=PATCH * PATCH, angles=old[2]
        )
        bits, thresholds = global_flags(old[1], flags, channel, spec)
        np.testing.assert_array_equal(flags | bits, new[0])
        assert thresholds == new[3]
        assert flags.dtype == np.uint16


def test_reflagging_keeps_the_dead_lines():
    codes = kelvin(with_block(260 + 20 * smooth(), 180.0, 10, slice(None)))
    flags, statistics, angles, _ = assess_store(IR, [(codes, {})], QualitySpec(max_deviation_factor=2))
    loose = QualitySpec(max_deviation_factor=1e6)
    new = quality.reflag(flags, statistics, IR, IR.packing, loose, pixels=PATCH**2, angles=angles)
    assert new.item() == Flag.local_outlier


def test_reflagging_leaves_what_was_never_read():
    parts = make_cube(IR)
    flags, statistics, angles, _ = assess_store(IR, parts, SPEC)
    flags[0], flags[1] = Flag.channel_absent | Flag.padding, Flag.unreadable
    for values in statistics.values():
        values[:2] = np.nan
    spec = QualitySpec(low_coverage=0.9, max_deviation_factor=1, global_mean_deviation_factor=0.1)
    new = quality.reflag(flags, statistics, IR, IR.packing, spec, pixels=PATCH**2, angles=angles)
    np.testing.assert_array_equal(new[:2], flags[:2])
    assert (new[2:] != flags[2:]).any()


def test_reflagging_without_an_angle_keeps_its_bit():
    flags, statistics, angles, _ = assess_store(VISIBLE, make_cube(VISIBLE), SPEC)
    del angles["solar_zenith_angle_maximum"]
    spec = QualitySpec(low_sun_solar_zenith=0, night_solar_zenith=0)
    new = quality.reflag(flags, statistics, VISIBLE, VISIBLE.packing, spec, pixels=PATCH**2, angles=angles)
    np.testing.assert_array_equal(new & Flag.low_sun, flags & Flag.low_sun)
    assert (new & Flag.night).astype(bool)[:, :2].all()


def test_outliers_are_flagged_and_not_rejected():
    assert not default_reject("radar") & (Flag.local_outlier | Flag.global_outlier)


# radar quality control


def remove_clutter(codes, km, packing, mode="fixed", *, spec=None):
    """A cleaned copy of a volume."""
    out = codes.copy()
    quality.remove_clutter(out, km, packing, replace(spec or quality.RadarQualitySpec(), mode=mode))
    return out


def plain_filter(z, w, looked, saw, version, year):
    """The published filter, a bin at a time."""
    keep = []
    for zi, wi, ni, ei in zip(z, w, looked, saw, strict=True):
        value = 0.0 if np.isnan(zi) else zi
        frequency = ei / ni if ni > 0 else 0.0
        bad = frequency < 0.6 and ni > 2
        if version == "3.1":
            threshold = np.float32(1.33) if year >= 2009 else np.float32(0.33)
            bad = bad or wi < np.float32(0.1) or (wi < threshold and value <= 18.5)
        else:
            bad = bad or (wi < 1.5 and value < 15.0)
        keep.append(not bad)
    return np.array(keep)


@pytest.mark.parametrize(("version", "year"), [("3.1", 2008), ("3.1", 2009), ("4.2", 2008), ("4.1", 2017)])
def test_filter_equals_the_published_rules(version, year):
    rng = np.random.default_rng(0)
    z = rng.choice(np.float32([np.nan, 0, 14.9, 15, 15.1, 18.4, 18.5, 18.6, 40, -5]), 4000)
    w = rng.choice(np.float32([0.05, 0.1, 0.2, 0.33, 0.34, 1.0, 1.33, 1.34, 1.5, 1.6, 3]), 4000)
    looked = rng.integers(0, 12, 4000).astype(np.int8)
    saw = np.minimum(rng.integers(0, 12, 4000), looked).astype(np.int8)
    keep = quality.filter_low_confidence(z, w, looked, saw, version=version, year=year)
    expected = plain_filter(z, w, looked, saw, version, year)
    np.testing.assert_array_equal(keep, expected)
    assert 0 < expected.sum() < expected.size


def test_filter_takes_its_constants_from_the_spec():
    bins = [np.float32([14.0]), np.float32([1.0]), np.int8([5]), np.int8([5])]
    assert not quality.filter_low_confidence(*bins, version="4.2", year=2011).any()
    spec = quality.RadarQualitySpec(v4_light_weight=0.5)
    assert quality.filter_low_confidence(*bins, version="4.2", year=2011, spec=spec).all()


def test_filter_of_another_version_is_refused():
    with pytest.raises(SchemaError, match=r"got '5\.0'; expected 3\.1, 4\.1 or 4\.2"):
        quality.filter_low_confidence(*[np.zeros(1)] * 4, version="5.0", year=2020)


def test_dual_polarization_filter_equals_the_published_rules():
    z, rho, km = (
        np.float32(v).ravel()
        for v in np.meshgrid(
            [np.nan, 10, 24.9, 25, 39.9, 40, 60], [np.nan, 0.5, 0.89, 0.91, 0.94, 0.96], [1, 9, 10, 11]
        )
    )
    keep = quality.filter_dual_polarization(z, rho, km)
    for zi, ri, ki, found in zip(z, rho, km, keep, strict=True):
        assert found == (not ((zi < 40 and ri < 0.9) or (zi < 25 and ri < 0.95 and ki >= 10)))
    assert 0 < keep.sum() < keep.size


def plain_speckle(z, published):
    height, width = z.shape[1:]
    out = z.copy()
    for k, j, i in np.ndindex(z.shape):
        count = cells = 0
        for dj, di in itertools.product(range(-2, 3), repeat=2):
            y, x = j + dj, i + di
            if published:
                y, x = y % height, x % width
            elif not (0 <= y < height and 0 <= x < width):
                continue
            cells += 1
            count += bool(np.isfinite(z[k, y, x]))
        if count / (25 if published else cells) <= 0.32:
            out[k, j, i] = np.nan
    return out


def plain_columns(z, km, published):
    out = z.copy()
    for j, i in np.ndindex(z.shape[1:]):
        column = [0.0 if np.isnan(v) else v for v in z[:, j, i]]
        top = {t: max([a for a, v in zip(km, column, strict=True) if v > t], default=0.0) for t in (0, 5, 15)}
        if published:
            base = min(a if v > 0 else 0.0 for a, v in zip(km, column, strict=True))
        else:
            base = min([a for a, v in zip(km, column, strict=True) if v > 0], default=0.0)
        if (
            (max(column) < 20 and top[0] <= 4 and base <= 3)
            or (max(column) < 10 and top[0] <= 5 and base <= 3)
            or (0 < top[5] <= 5 and top[15] <= 3)
            or (0 < top[15] < 2)
        ):
            out[:, j, i] = np.nan
    return out


def plain_anvils(z, km, published):
    out = z.copy()
    levels = [k for k, a in enumerate(km) if a >= 4]
    if not levels:
        return out
    k4, nz = levels[0], len(km)
    for j, i in np.ndindex(z.shape[1:]):
        echo = np.isfinite(z[:, j, i])
        above = echo[k4 : nz - 1] if published else echo[k4:]
        below = echo[: k4 - 1] if published else echo[:k4]
        if not echo[k4] and above.any() and below.any():
            out[: k4 + 1, j, i] = np.nan
    return out


def plain_clutter(z, km, mode, weak=True):
    """The published removal, slowly, on dBZ with NaN for no echo."""
    published = mode == "published"
    z = plain_speckle(z, published)
    if weak:
        for k, a in enumerate(km):
            if a <= 4:
                z[k][z[k] < 10] = np.nan
        z = plain_columns(z, km, published)
    z = plain_anvils(z, km, published)
    return plain_speckle(z, published)


KM = np.array([*np.arange(0.5, 7.1, 0.5), *np.arange(8, 13)])


def random_volume(seed, km=KM, shape=(15, 20)):
    """Blocks of 5 x 5 columns, each with its own echo levels and strength; then noise, holes and gaps."""
    rng = np.random.default_rng(seed)
    z = np.full((len(km), *shape), np.nan)
    for j, i in itertools.product(range(0, shape[0], 5), range(0, shape[1], 5)):
        levels = rng.random(len(km)) < rng.choice([0.15, 0.5, 0.8, 1.0])
        levels &= (km >= rng.choice([0, 1, 3.5, 5])) & (km <= rng.choice([2, 3, 4, 5, 13]))
        size = rng.uniform(1, 8)
        z[levels, j : j + 5, i : i + 5] = rng.uniform(-3, 30) + size * rng.normal(size=(levels.sum(), 5, 5))
        if rng.random() < 0.3:
            z[-1, j : j + 5, i : i + 5] = 30.0
    z[rng.random(z.shape) < 0.15] = np.nan
    exact = np.isfinite(z) & (rng.random(z.shape) < 0.1)
    z[exact] = rng.choice([0.0, 5.0, 10.0, 15.0, 20.0], exact.sum())
    return np.round(z, 2)


@pytest.mark.parametrize("mode", ["published", "fixed"])
@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_clutter_removal_equals_the_plain_rules(mode, weak, seed):
    z = random_volume(seed)
    codes = dbz(z)
    spec = quality.RadarQualitySpec(weak_low_level_echo=weak)
    found = remove_clutter(codes, KM, RADAR.packing, mode, spec=spec)
    kept = np.isfinite(plain_clutter(z, KM, mode, weak))
    np.testing.assert_array_equal(found >= 16, kept)
    np.testing.assert_array_equal(found[kept], codes[kept])
    np.testing.assert_array_equal(found[~kept & (codes >= 16)], 3)
    np.testing.assert_array_equal(found[codes < 16], codes[codes < 16])
    assert 0 < kept.sum() < np.isfinite(z).sum()


@pytest.mark.parametrize("mode", ["published", "fixed"])
def test_clean_compares_the_floats_of_the_file_and_not_the_codes(mode):
    from gridrad_cube.pipeline import work

    rng = np.random.default_rng(5)
    km = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0])
    thresholds = np.float32([0, 5, 10, 15, 20])
    near = np.concatenate([thresholds, np.nextafter(thresholds, np.float32(-99)), thresholds - np.float32(0.004),
                           np.nextafter(thresholds, np.float32(99)), thresholds + np.float32(0.004)])  # fmt: skip
    dense = rng.choice(np.concatenate([near, np.float32([30.0, 40.0])]), (len(km), 24, 26)).astype(np.float32)
    dense[rng.random(dense.shape) < 0.3] = np.nan
    index = np.flatnonzero(np.isfinite(dense))
    counts = np.full(dense.shape, 1, np.int8)  # one look: the filter keeps what is heavy
    header = SimpleNamespace(
        shape=dense.shape[1:],
        altitude_km=km,
        format="gridrad_v4_2",
        time=np.datetime64("2011-04-27", "s"),
        path="x",
    )
    volume = readers.RadarVolume(
        header=header, levels=range(len(km)), index=index, values={"reflectivity": dense.ravel()[index]},
        weights={"reflectivity": np.full(index.size, 3, np.float32)}, nradobs=counts, nradecho=counts,
    )  # fmt: skip
    spec = quality.RadarQualitySpec(mode=mode)
    cleaned = work._clean(volume, ["reflectivity"], spec)["reflectivity"]
    expected = np.isfinite(plain_clutter(dense.astype(np.float64), km, mode))
    np.testing.assert_array_equal(cleaned >= 16, expected)
    assert 0 < expected.sum() < index.size
    by_codes = remove_clutter(RADAR.packing.encode(dense), km, RADAR.packing, mode)
    assert ((by_codes >= 16) != expected).any()  # so the floats do decide


def test_random_volumes_reach_every_difference_between_the_modes():
    volumes = [random_volume(seed) for seed in range(8)]

    def differ(step):
        return [(np.isfinite(step(z, True)) != np.isfinite(step(z, False))).any() for z in volumes]

    assert any(differ(plain_speckle))
    assert any(differ(lambda z, published: plain_columns(z, KM, published)))
    assert any(differ(lambda z, published: plain_anvils(z, KM, published)))


def column(values):
    """A volume that is one column everywhere."""
    z = np.full((len(KM), 7, 7), np.nan)
    for km, value in values.items():
        z[km == KM] = value
    return z


def survives(z, mode="fixed"):
    return (remove_clutter(dbz(z), KM, RADAR.packing, mode) >= 16).any()


def test_deep_storm_survives_whole():
    z = column({km: 35.0 for km in KM})
    for mode in ("published", "fixed"):
        codes = dbz(z)
        np.testing.assert_array_equal(remove_clutter(codes, KM, RADAR.packing, mode), codes)


def test_weak_column_aloft_survives_in_fixed_mode_only():
    z = column({3.5: 16.0, 4.0: 16.0})
    assert survives(z)
    assert not survives(z, "published")


def test_echo_at_the_top_counts_as_above_in_fixed_mode_only():
    z = column({1.0: 30.0, 1.5: 30.0, 2.0: 30.0, 2.5: 30.0, 3.5: 30.0, 12.0: 30.0})
    fixed = remove_clutter(dbz(z), KM, RADAR.packing, "fixed")
    published = remove_clutter(dbz(z), KM, RADAR.packing, "published")
    np.testing.assert_array_equal((fixed >= 16).any(axis=(1, 2)), KM == 12.0)
    np.testing.assert_array_equal(published, dbz(z))


def test_speckle_at_the_edge_wraps_in_published_mode_only():
    z = np.full((len(KM), 20, 20), np.nan)
    z[:, 5:10, :2] = 35.0
    z[:, 5:10, -1] = 35.0
    lone = z.copy()
    lone[:, :, :2] = np.nan
    assert not survives(lone, "published")
    kept = remove_clutter(dbz(z), KM, RADAR.packing, "published") >= 16
    assert kept[:, 7, -1].all()
    corner = np.full_like(z, np.nan)
    corner[:, :2, :2] = 35.0  # 4 of the 9 bins that its corner has, of 25 that it would need 9
    assert survives(corner, "fixed")
    assert not survives(corner, "published")


def test_removed_bins_of_low_confidence_count_as_no_echo_and_keep_their_code():
    codes = dbz(column({km: 35.0 for km in KM}))
    codes[:, :, ::2] = 2
    codes[:, ::2, :] = 0
    found = remove_clutter(codes, KM, RADAR.packing)
    np.testing.assert_array_equal(found[codes < 16], codes[codes < 16])
    assert (found[codes >= 16] == 3).any()


@pytest.mark.parametrize("mode", ["published", "fixed"])
def test_weak_columns_of_volumes_that_begin_aloft_survive(mode):
    codes = dbz(np.full((2, 7, 7), 16.0))
    np.testing.assert_array_equal(remove_clutter(codes, [3.5, 4.0], RADAR.packing, mode), codes)


def test_volumes_below_four_km_skip_the_anvils():
    km = KM[:6]
    z = random_volume(0)[:6]
    found = remove_clutter(dbz(z), km, RADAR.packing, "fixed")
    np.testing.assert_array_equal(found >= 16, np.isfinite(plain_clutter(z, km, "fixed")))


def test_clutter_removal_refuses_what_it_cannot_know():
    codes = np.zeros((3, 8, 8), np.uint16)
    with pytest.raises(
        SchemaError, match=r"altitude_km: got .*expected ascending values, one for each of the 3"
    ):
        remove_clutter(codes, [3, 2, 1], RADAR.packing)
    with pytest.raises(SchemaError, match="altitude_km"):
        remove_clutter(codes, [1, 2], RADAR.packing)
    with pytest.raises(SchemaError, match="expected a code for clutter below those of echoes"):
        remove_clutter(codes, [1, 2, 3], IR.packing)
    with pytest.raises(SchemaError, match="mode: got 'other'"):
        remove_clutter(codes, [1, 2, 3], RADAR.packing, "other")
    with pytest.raises(SchemaError, match="speckle_window: got 4"):
        quality.RadarQualitySpec(speckle_window=4)


def test_radar_constants_are_saved_as_json():
    spec = quality.RadarQualitySpec(mode="published")
    assert quality.RadarQualitySpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
