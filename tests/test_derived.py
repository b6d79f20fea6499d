"""Fields derived from reflectivity on altitudes, against loops over single columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridrad_cube.readers.derived import derive
from gridrad_cube.schema import CHANNELS, Packing

DBZ = CHANNELS["reflectivity"].packing
TOP = CHANNELS["echo_top_height"].packing
#: As MRMS packs reflectivity: signed, with the codes in another order than the radar table's.
MRMS = Packing(
    dtype="int16",
    scale_factor=0.01,
    fill_value=-32768,
    valid_minimum=-9900,
    valid_maximum=32767,
    no_echo=-9900,
    echo_minimum=-9899,
)
#: A fill above every echo.
HIGH_FILL = Packing(
    dtype="uint16", scale_factor=0.5, add_offset=-100.0, fill_value=65535, no_echo=2, echo_minimum=3
)
#: The radar table's codes with an upper bound: larger values have another code.
BOUNDED = replace(DBZ, valid_minimum=16, valid_maximum=19901)
HEIGHTS = np.array([0.5, 1.0, 2.0, 4.0, 7.0, 9.0])


def column_maximum(codes, packing):
    return derive("reflectivity_column_maximum", codes, HEIGHTS[: len(codes)], 18.5, packing)


def echo_top_height(codes, heights, threshold, packing):
    return derive("echo_top_height", codes, heights, threshold, packing)


def random_volume(seed: int, packing: Packing, shape=(6, 4, 5)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dbz = rng.uniform(-30, 60, shape)
    codes = packing.encode(dbz)
    state = rng.uniform(size=shape)
    codes[state < 0.3] = packing.no_echo
    codes[state < 0.15] = packing.fill_value
    return codes


@given(seed=st.integers(0, 2**32 - 1), packing=st.sampled_from([DBZ, MRMS, HIGH_FILL, BOUNDED]))
def test_column_maximum_is_missing_only_where_every_level_is(seed, packing):
    codes = random_volume(seed, packing)
    out = column_maximum(codes, packing)
    assert out.dtype == codes.dtype
    for y, x in np.ndindex(out.shape):
        column = codes[:, y, x]
        echo = column[packing.echo(column)]
        if len(echo):
            assert out[y, x] == echo.max()
        elif packing.observed(column).any():
            assert out[y, x] == packing.no_echo
        else:
            assert out[y, x] == packing.fill_value


def test_column_maximum_keeps_removed_states_apart_and_echo_wins():
    codes = np.array([[[0, 1, 2, 3, 4, 5, 2]], [[0, 0, 1, 1, 1, 1, 900]]], np.uint16)
    assert column_maximum(codes, DBZ).tolist() == [[0, 1, 2, 3, 4, 5, 900]]


def test_column_maximum_never_takes_a_value_out_of_the_valid_range():
    codes = np.array([[[-20000, -20000, 30000]], [[-32768, 2500, 2500]]], np.int16)
    packing = Packing(
        dtype="int16", scale_factor=0.01, fill_value=-32768, valid_minimum=-9900, valid_maximum=8000, no_echo=-9900,
        echo_minimum=-9899,
    )  # fmt: skip
    assert column_maximum(codes, packing).tolist() == [[-20000, 2500, 2500]]


@given(
    seed=st.integers(0, 2**32 - 1),
    packing=st.sampled_from([DBZ, MRMS, HIGH_FILL]),
    threshold=st.sampled_from([-10.0, 5.0, 18.5, 40.0]),
)
def test_echo_top_has_echo_at_the_two_levels_below(seed, packing, threshold):
    codes = random_volume(seed, packing)
    out = echo_top_height(codes, HEIGHTS, threshold, packing)
    values = packing.decode(codes)
    echo = packing.echo(codes)
    for y, x in np.ndindex(out.shape):
        tops = [
            k for k in range(2, len(HEIGHTS))
            if echo[k - 2 : k + 1, y, x].all() and values[k, y, x] >= threshold - 1e-4
        ]  # fmt: skip
        if tops:
            assert TOP.decode(out[y, x][None])[0] == pytest.approx(HEIGHTS[tops[-1]], abs=1e-4)
        else:
            assert out[y, x] == (TOP.no_echo if packing.observed(codes[:, y, x]).any() else TOP.fill_value)


def test_echo_top_at_the_threshold_counts_and_a_gap_below_does_not():
    column = DBZ.encode(np.array([20.0, 20.0, 18.5, 18.49, 30.0]))
    assert TOP.decode(echo_top_height(column[:, None, None], HEIGHTS[:5], 18.5, DBZ)).item() == pytest.approx(
        7.0, abs=1e-4
    )
    column[3] = 2  # removed as low confidence: no echo at the level below
    assert TOP.decode(echo_top_height(column[:, None, None], HEIGHTS[:5], 18.5, DBZ)).item() == pytest.approx(
        2.0, abs=1e-4
    )
