"""What the codes become: normalization, decoding, coarsening."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cubes import COLS, IR, PATCH, ROWS, VIS, Z, clean_pixels, random_codes, write_cube
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridrad_cube.datasets import (
    Normalization,
    PatchDataset,
    decode,
    normalizations,
)
from gridrad_cube.schema import CHANNELS, Packing, SchemaError, channel_label


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Five crops of infrared and of radar at three altitudes, all clean."""
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", clean_pixels())


def slow_value(norm: Normalization, code) -> tuple[float, bool]:
    """One pixel, by the words of the rules in float64, from Packing alone."""
    packing = norm.packing
    code = np.asarray([code], packing.dtype)
    if not packing.observed(code)[0]:
        return norm.fill, False
    if not packing.echo(code)[0]:
        return norm.no_echo, True
    value = float(code[0]) * packing.scale_factor + packing.add_offset
    if norm.rule in ("reflectivity", "decibel"):
        return (max(value, 0.0) - 20.0) / 20.0, True
    if norm.rule == "rain":
        return np.log10(max(value, 0.1)), True
    return (value - norm.mean) / norm.std, True


def assert_equal_but_for_rounding(values, expected, norm):
    """As far apart as a few roundings of the largest number on the way make them."""
    expected = np.array(expected)
    largest = np.abs(expected) + abs((norm.packing.add_offset - norm.mean) / norm.std) + 1
    assert (np.abs(np.asarray(values, np.float64) - expected) <= 2.0**-22 * largest).all()


def norm_of(name: str, **changes) -> Normalization:
    channel = CHANNELS[name]
    if channel.units == "dBZ":
        values = {"rule": "decibel", "mean": 20.0, "std": 20.0, "fill": -1.0, "no_echo": -1.0}
    elif channel.kind == "rain":
        values = {"rule": "rain", "mean": 0.0, "std": 1.0, "fill": -1.0, "no_echo": -1.0}
    else:
        values = {"rule": "standard", "mean": 13.3, "std": 7.1, "fill": 0.0, "no_echo": 0.25}
    return Normalization(**{**values, "packing": channel.packing, **changes})


SIGNED = Packing(
    dtype="int16", scale_factor=0.1, add_offset=5.0, fill_value=-32768, valid_minimum=-3000, valid_maximum=3000,
    no_echo=-32767, low_confidence=-32766, echo_minimum=-3000,
)  # fmt: skip
BYTES = Packing(dtype="int8", scale_factor=2.0, fill_value=-128)


@pytest.mark.parametrize("name", [Z, IR, VIS, "precipitation_rate", "echo_top_height", "azimuthal_shear"])
def test_decode_of_every_code_equals_the_slow_reference(name):
    norm = norm_of(name)
    codes = np.arange(65536, dtype=np.uint16).reshape(1, 1, 256, 256)
    values, valid = decode(torch.from_numpy(codes), torch.zeros(1, dtype=torch.int64), [norm])
    sample = np.concatenate([np.arange(300), np.arange(300, 65536, 97), np.arange(65500, 65536)])
    expected = [slow_value(norm, code) for code in sample]
    assert_equal_but_for_rounding(values.reshape(-1)[sample], [e[0] for e in expected], norm)
    np.testing.assert_array_equal(values, norm.apply(codes)[0])
    np.testing.assert_array_equal(valid.reshape(-1).numpy()[sample], [e[1] for e in expected])
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("packing", [SIGNED, BYTES])
def test_decode_of_signed_codes_equals_the_slow_reference(packing):
    norm = norm_of(IR, packing=packing)
    info = np.iinfo(packing.dtype)
    codes = np.arange(info.min, info.max + 1).astype(packing.dtype)
    codes = codes[:: max(1, len(codes) // 1024)].reshape(1, 1, 16, -1)
    values, valid = decode(torch.from_numpy(codes), torch.zeros(1, dtype=torch.int64), [norm])
    expected = [slow_value(norm, code) for code in codes.reshape(-1)]
    assert_equal_but_for_rounding(values.reshape(-1), [e[0] for e in expected], norm)
    np.testing.assert_array_equal(values, norm.apply(codes)[0])
    np.testing.assert_array_equal(valid.reshape(-1), [e[1] for e in expected])


def test_decode_of_float_and_wide_codes_equals_the_slow_reference():
    float_norm = norm_of(Z, packing=Packing(dtype="float32", valid_minimum=-40.0, valid_maximum=90.0))
    half_norm = norm_of(Z, packing=Packing(dtype="float16", valid_minimum=-40.0, valid_maximum=90.0))
    wide_norm = norm_of(IR, packing=Packing(dtype="int32", scale_factor=0.001, fill_value=-1))
    rng = np.random.default_rng(0)
    floats = rng.uniform(-50, 100, (2, 1, 8, 8)).astype(np.float32)
    floats[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    wide = rng.integers(-1, 300_000, (2, 1, 8, 8)).astype(np.int32)
    for norm, codes in ((float_norm, floats), (half_norm, floats.astype(np.float16)), (wide_norm, wide)):
        values, valid = decode(torch.from_numpy(codes), torch.zeros(2, dtype=torch.int64), [norm])
        expected = [slow_value(norm, code) for code in codes.reshape(-1)]
        assert_equal_but_for_rounding(values.reshape(-1), [e[0] for e in expected], norm)
        np.testing.assert_array_equal(valid.reshape(-1), [e[1] for e in expected])


def test_decode_picks_each_sample_its_own_normalization():
    norms = {IR: norm_of(IR), Z: norm_of(Z), "other": norm_of(IR, mean=0.0, std=2.0), "again": norm_of(Z)}
    codes = random_codes(Z, (6, 1, 8, 8))
    channel = torch.tensor([1, 0, 2, 3, 0, 1])
    values, valid = decode(torch.from_numpy(codes), channel, norms)
    for i, c in enumerate(channel.tolist()):
        alone, ok = list(norms.values())[c].apply(codes[i])
        np.testing.assert_array_equal(values[i], alone)
        np.testing.assert_array_equal(valid[i], ok)
    stacked = torch.from_numpy(np.concatenate([codes[:4]] * 1, axis=1).reshape(1, 4, 8, 8))
    values, valid = decode(stacked, torch.zeros(1, dtype=torch.int64), norms)
    for c, norm in enumerate(norms.values()):
        np.testing.assert_array_equal(values[0, c], norm.apply(stacked[0, c].numpy())[0])
    with pytest.raises(SchemaError, match="codes have 2 channels; expected 1, or one for each of 4"):
        decode(stacked[:, :2], torch.zeros(1, dtype=torch.int64), norms)


def test_decode_states_of_radar_bins_stay_apart():
    norm = norm_of(Z)
    packing = norm.packing
    special = {
        "missing": 0,
        "no echo": 1,
        "low confidence": 2,
        "clutter": 3,
        "out of range": 4,
        "not finite": 5,
    }
    codes = torch.tensor(
        [*special.values(), *packing.encode([-31.0, 0.0, 20.0, 60.0]).tolist()], dtype=torch.uint16
    )
    values, valid = decode(codes.reshape(1, 1, 1, -1), torch.zeros(1, dtype=torch.int64), [norm])
    assert values.flatten().tolist() == pytest.approx([-1, -1, -1, -1, -1, -1, -1, -1, 0, 2], abs=1e-5)
    assert valid.flatten().tolist() == [False, True, True, True, False, False, True, True, True, True]


def test_decode_gives_the_dtype_asked(cube):
    data = PatchDataset(cube, channels=Z)
    values, valid = data.decode(data.__getitems__([0, 1]), dtype=torch.bfloat16)
    assert values.dtype == torch.bfloat16
    assert valid.dtype == torch.bool
    torch.testing.assert_close(values, data.decode(data.__getitems__([0, 1]))[0].bfloat16(), rtol=0, atol=0)


def slow_average(norm: Normalization, block: np.ndarray) -> tuple[float, bool]:
    """One block of codes, by the words of the rules, in float64."""
    packing = norm.packing
    observed, echo = packing.observed(block), packing.echo(block)
    if not observed.any():
        return norm.fill, False
    if not echo.any():
        return norm.no_echo, True
    values = packing.decode(block)[echo].astype(float)
    if norm.rule == "decibel":
        return (np.maximum(values, 0).sum() / observed.sum() - 20) / 20, True
    if norm.rule == "reflectivity":
        dbz = 10 * np.log10((10 ** (values / 10)).sum() / observed.sum())
        return (max(dbz, 0) - 20) / 20, True
    if norm.rule == "rain":
        return np.log10(max(values.sum() / observed.sum(), 0.1)), True
    return (values.mean() - norm.mean) / norm.std, True


@pytest.mark.parametrize(
    ("name", "changes"),
    [(Z, {}), (Z, {"rule": "reflectivity"}), (IR, {}), ("precipitation_rate", {}), ("echo_top_height", {})],
)
@pytest.mark.parametrize("edge", [2, 4])
def test_coarsening_averages_before_it_normalizes(name, changes, edge):
    norm = norm_of(name, **changes)
    codes = random_codes(name, (3, 1, 16, 16), seed=edge)
    if norm.rule in ("reflectivity", "decibel"):
        codes[codes > 15] = np.random.default_rng(1).integers(7000, 16000, (codes > 15).sum())
    codes[0, 0, :4, :4] = norm.packing.fill_value
    if norm.packing.no_echo:
        codes[0, 0, 4:8, :4] = norm.packing.no_echo
        codes[0, 0, 8:12, :4] = norm.packing.no_echo
        codes[0, 0, 8, 0] = norm.packing.fill_value
    values, valid = decode(torch.from_numpy(codes), torch.zeros(3, dtype=torch.int64), [norm], coarsen=edge)
    assert values.shape == (3, 1, 16 // edge, 16 // edge)
    for i, _, y, x in np.ndindex(values.shape):
        block = codes[i, 0, y * edge : (y + 1) * edge, x * edge : (x + 1) * edge]
        expected, ok = slow_average(norm, block)
        assert values[i, 0, y, x].item() == pytest.approx(expected, abs=2e-5)
        assert bool(valid[i, 0, y, x]) is ok


def test_coarsening_keeps_rules_apart_in_a_mixed_batch():
    norms = [norm_of(Z), norm_of(IR), norm_of("precipitation_rate")]
    codes = torch.from_numpy(random_codes(IR, (3, 1, 8, 8)))
    mixed, valid = decode(codes, torch.tensor([2, 0, 1]), norms, coarsen=4)
    for i, c in enumerate([2, 0, 1]):
        alone, ok = decode(codes[i : i + 1], torch.tensor([0]), [norms[c]], coarsen=4)
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=0, atol=0)
        assert torch.equal(valid[i : i + 1], ok)
    stacked, _ = decode(codes.reshape(1, 3, 8, 8), torch.tensor([0]), norms, coarsen=2)
    torch.testing.assert_close(
        stacked[:, 1:2], decode(codes[1:2], torch.tensor([0]), [norms[1]], coarsen=2)[0], rtol=0, atol=0
    )
    with pytest.raises(SchemaError, match="coarsen: got 3; expected a divisor"):
        decode(codes, torch.zeros(3, dtype=torch.int64), norms[:1], coarsen=3)


def test_coarsening_of_float_codes_equals_the_packed_ones():
    packed = norm_of(Z, packing=Packing(scale_factor=0.01, add_offset=-99.01, fill_value=0))
    floats = norm_of(Z, packing=Packing(dtype="float32"))
    codes = np.random.default_rng(0).integers(9000, 15000, (2, 1, 8, 8)).astype(np.uint16)
    codes[0, 0, :2, :2] = 0
    channel = torch.zeros(2, dtype=torch.int64)
    a, ok_a = decode(torch.from_numpy(codes), channel, [packed], coarsen=2)
    b, ok_b = decode(torch.from_numpy(packed.packing.decode(codes)), channel, [floats], coarsen=2)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(ok_a, ok_b)


def test_coarsening_of_absurd_echoes_stays_finite():
    codes = torch.full((1, 1, 16, 16), 65535, dtype=torch.uint16)
    values, _ = decode(
        codes, torch.zeros(1, dtype=torch.int64), [norm_of(Z, rule="reflectivity")], coarsen=16
    )
    assert torch.isfinite(values).all()


def test_normalizations_follow_kind_units_and_statistics(tmp_path):
    shape = (1, ROWS * PATCH, COLS * PATCH)
    names = (IR, Z, "precipitation_rate", "echo_top_height", "spectrum_width")
    pixels = {n: random_codes(n, shape)[:, None] if n == Z else random_codes(n, shape) for n in names}
    statistics = {
        IR: {"mean": 270.0, "std": 20.0}, "echo_top_height": {"mean": 6.0, "std": 3.0},
        "spectrum_width": {"mean": 2.0, "std": 1.0},
    }  # fmt: skip
    store = write_cube(tmp_path / "s.zarr", pixels, statistics=statistics)
    norms = PatchDataset(store).normalizations
    assert [n.rule for n in norms.values()] == ["standard", "decibel", "rain", "standard", "standard"]
    assert list(norms)[1] == "reflectivity@1.0km"
    assert (norms[IR].mean, norms[IR].std, norms[IR].fill) == (270.0, 20.0, 0.0)
    assert norms["echo_top_height"].no_echo == -2.0  # 0 km
    assert norms["spectrum_width"].no_echo == 0.0
    assert norms[IR].packing == CHANNELS[IR].packing
    assert normalizations(store, [IR]) == {IR: norms[IR]}


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({}, "no training statistics"),
        ({IR: {"patches": 0, "mean": None, "std": None}}, "no training statistics"),
        (
            {IR: {"patches": 4, "mean": 270.0, "std": 0.0}},
            "no spread to divide by, got mean 270.0 and std 0.0",
        ),
    ],
)
def test_normalizations_refuse_missing_or_flat_statistics(tmp_path, statistics, message):
    store = write_cube(
        tmp_path / "s.zarr", {IR: random_codes(IR, (1, ROWS * PATCH, COLS * PATCH))}, statistics=statistics
    )
    with pytest.raises(SchemaError, match=f"{IR}: .*{message}"):
        normalizations(store, [IR])


def test_normalization_survives_a_checkpoint(cube, tmp_path):
    norms = PatchDataset(cube).normalizations
    text = json.dumps({label: norm.to_dict() for label, norm in norms.items()})
    back = {label: Normalization.from_dict(d) for label, d in json.loads(text).items()}
    assert back == norms
    torch.save({k: n.to_dict() for k, n in norms.items()}, tmp_path / "c.pt")
    loaded = torch.load(tmp_path / "c.pt", weights_only=True)
    assert {k: Normalization.from_dict(d) for k, d in loaded.items()} == norms
    with pytest.raises(SchemaError, match="unknown rule, got 'minmax'"):
        Normalization.from_dict({**norms[IR].to_dict(), "rule": "minmax"})
    with pytest.raises(SchemaError, match=r"unknown \['scale'\]"):
        Normalization.from_dict({**norms[IR].to_dict(), "scale": 1})


def test_normalizations_of_a_checkpoint_take_the_packing_of_the_store(cube):
    other = norm_of(IR, mean=250.0, std=5.0, packing=Packing(dtype="int16", scale_factor=0.1))
    data = PatchDataset(cube, channels=IR)
    data.normalizations = {IR: other}
    taken = data.normalizations[IR]
    assert (taken.mean, taken.std, taken.packing) == (250.0, 5.0, CHANNELS[IR].packing)
    with pytest.raises(SchemaError, match=r"'reflectivity@1.0km' was not trained on; the checkpoint knows"):
        normalizations(cube, [channel_label(Z, 1.0)], like={IR: other})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_of_many_planes_of_many_channels_equals_numpy(dtype):
    """Planes with and without special codes."""
    names = (IR, Z, "precipitation_rate", "echo_top_height", VIS)
    norms = [norm_of(name) for name in names]
    rng = np.random.default_rng(3)
    channel = rng.integers(0, len(names), 40)
    codes = np.stack([random_codes(names[c], (1, 8, 16), seed=i) for i, c in enumerate(channel)])
    for i in range(0, 40, 3):  # nothing special in these
        codes[i] = np.clip(codes[i], 16000, 17000)
    values, valid = decode(torch.from_numpy(codes), torch.from_numpy(channel), norms, dtype=dtype)
    assert values.dtype == dtype
    for i, c in enumerate(channel):
        expected, ok = norms[c].apply(codes[i])
        assert torch.equal(values[i], torch.from_numpy(expected).to(dtype))
        np.testing.assert_array_equal(valid[i], ok)


CODES = ("uint8", "int8", "uint16", "int16")


@st.composite
def some_norms(draw) -> list[Normalization]:
    """Normalizations of packings of one or several dtypes, with special codes anywhere."""

    def norm(dtype: str) -> Normalization:
        info = np.iinfo(dtype)
        code = st.none() | st.integers(info.min, info.max) | st.sampled_from([0, 1, info.min, info.max])
        names = ("fill_value", "valid_minimum", "valid_maximum", "no_echo", "low_confidence", "out_of_range",
                 "non_finite", "echo_minimum")  # fmt: skip
        packing = Packing(
            dtype=dtype, scale_factor=draw(st.sampled_from([0.01, 1.0, -0.5, 3.3])),
            add_offset=draw(st.sampled_from([0.0, -99.01, 273.15])), **{name: draw(code) for name in names},
        )  # fmt: skip
        return Normalization(
            rule=draw(st.sampled_from(["reflectivity", "decibel", "rain", "standard"])), packing=packing,
            mean=draw(st.sampled_from([20.0, 0.0, -3.7])), std=draw(st.sampled_from([20.0, 1.0, 0.3])),
            fill=draw(st.sampled_from([-1.0, 0.0])), no_echo=draw(st.sampled_from([-1.0, 0.25])),
        )  # fmt: skip

    dtypes = draw(st.sampled_from([[d] for d in CODES]) | st.just(CODES))
    return [norm(draw(st.sampled_from(dtypes))) for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    norms=some_norms(),
    planes=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_decode_equals_numpy_whatever_the_packing(data, norms, planes, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    channel = rng.integers(0, len(norms), planes)
    codes = np.empty((planes, 1, 4, 8), np.result_type(*(norm.packing.dtype for norm in norms)))
    expected, valid = np.empty(codes.shape, np.float32), np.empty(codes.shape, bool)
    for i, norm in enumerate(norms[c] for c in channel):
        info = np.iinfo(norm.packing.dtype)
        packing = norm.packing
        special = (packing.fill_value, packing.no_echo, packing.echo_minimum, packing.valid_maximum)
        edges = [code + step for code in special if code is not None for step in (-1, 0, 1)]
        if edges and data.draw(st.booleans()):
            some = rng.choice(edges, (4, 8))
        else:
            some = rng.integers(info.min, info.max, (4, 8), endpoint=True)
        codes[i, 0] = np.clip(some, info.min, info.max)
        expected[i], valid[i] = norm.apply(codes[i])
    got, ok = decode(torch.from_numpy(codes), torch.from_numpy(channel), norms, dtype=dtype)
    assert torch.equal(got, torch.from_numpy(expected).to(dtype))
    np.testing.assert_array_equal(ok, valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coarsen", [1, 2])
def test_a_batch_of_damaged_samples_alone_decodes_to_nothing(tmp_path, dtype, coarsen):
    store = write_cube(tmp_path / "s.zarr", {IR: random_codes(IR, (1, ROWS * PATCH, COLS * PATCH))})
    (shard,) = (store / IR).glob("c.*")
    shard.write_bytes(shard.read_bytes()[:100])
    data = PatchDataset(store, on_damage="skip", coarsen=coarsen)
    batch = data.__getitems__([0, 1])
    assert batch.damaged.tolist() == [0, 1]
    values, valid = data.decode(batch, dtype=dtype)
    assert (values.shape, values.dtype) == ((0, 1, PATCH // coarsen, PATCH // coarsen), dtype)
    assert (valid.shape, valid.dtype) == (values.shape, torch.bool)
