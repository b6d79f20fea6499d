"""Views: a function of the seed alone, never made of missing pixels, with place, direction and scale kept."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gridrad_cube.models import (
    GridViewSpec,
    ViewSpec,
    build,
    draw_grid_views,
    draw_views,
    sample_seeds,
    token_coverage,
)
from gridrad_cube.models.grid_views import _global_window, _local_window
from gridrad_cube.models.views import _mix, uniforms
from gridrad_cube.schema import build_spec

#: Few and small views, so that tests are quick.
SMALL: dict[str, Any] = {"global_size": 24, "local_size": 12, "local_views": 3}
#: The predecessor's augmentation.
AREA: dict[str, Any] = {**SMALL, "mode": "area", "flips": "h", "blur": (1.0, 0.1, 0.5), "solarize": 0.2}
#: Everything at once.
ALL: dict[str, Any] = {**SMALL, "flips": "d4", "blur": (0.5, 0.5, 0.5), "gain": 0.1}
SPECS = [ViewSpec(**SMALL), ViewSpec(**AREA), ViewSpec(**ALL)]


def seeds(count: int, seed: int = 0) -> Tensor:
    return sample_seeds(seed, 0, torch.arange(count))


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(len(x), *x.shape[2:], dtype=torch.bool)


def ramp(batch: int, height: int, width: int, axis: int) -> Tensor:
    """Pixel coordinates (centres) along an axis: 0 down the rows, 1 along the columns."""
    places = torch.arange(height if axis == 0 else width) + 0.5
    field = places[:, None].expand(height, width) if axis == 0 else places.expand(height, width)
    return field.expand(batch, 1, height, width)


# --- random numbers -----------------------------------------------------------------------------------------


def test_hash_is_splitmix64() -> None:
    step, first = 0x9E3779B97F4A7C15, 1234567
    states = [(first + i * step) % 2**64 for i in range(2)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert [v % 2**64 for v in _mix(signed).tolist()] == [6457827717110365317, 3203168211198807973]
    assert _mix(torch.tensor([0])).item() % 2**64 == 0xE220A8397B1DCDAF


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    numbers = uniforms(seeds(20_000), 3, 2, 4).flatten(1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    expected = numbers.numel() / 20
    assert ((counts - expected).square() / expected).sum() < 50  # chi-squared, 19 degrees: p = 1e-4
    assert (torch.corrcoef(numbers.T) - torch.eye(8)).abs().max() < 0.04


def test_seeds_differ_by_run_epoch_and_sample() -> None:
    index = torch.arange(1000)
    drawn = torch.cat([sample_seeds(seed, epoch, index) for seed in range(3) for epoch in range(3)])
    assert len(drawn.unique()) == len(drawn)


# --- views of fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=["zoom", "area", "all"])
def test_views_depend_on_the_sample_alone(spec: ViewSpec) -> None:
    x, mask = torch.randn(5, 2, 40, 48), torch.rand(5, 40, 48) > 0.1
    together = draw_views(x, mask, spec, seeds(5))
    order = torch.tensor([3, 0])
    apart = draw_views(x[order], mask[order], spec, seeds(5)[order])
    assert len(together) == spec.global_views + spec.local_views
    for (view, valid), (view_apart, valid_apart) in zip(together, apart, strict=True):
        torch.testing.assert_close(view[order], view_apart, atol=1e-5, rtol=1e-5)
        assert torch.equal(valid[order], valid_apart)


def test_views_of_one_sample_differ_and_global_ones_ignore_the_number_of_local_ones() -> None:
    x = torch.randn(1, 1, 40, 40)
    views = draw_views(x, everywhere(x), ViewSpec(**SMALL), seeds(1))
    assert not torch.allclose(views[0][0], views[1][0])
    assert not torch.allclose(views[2][0], views[3][0])
    assert not torch.allclose(
        views[0][0], draw_views(x, everywhere(x), ViewSpec(**SMALL), seeds(1, seed=1))[0][0]
    )
    fewer = draw_views(x, everywhere(x), ViewSpec(**{**SMALL, "local_views": 0}), seeds(1))
    assert len(fewer) == 2
    assert torch.equal(fewer[1][0], views[1][0])


@settings(max_examples=40, deadline=None)
@given(
    options=st.sampled_from([SMALL, AREA, {**ALL, "gain": 0.0}]),
    height=st.integers(5, 50),
    width=st.integers(5, 50),
    observed=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
    per_channel=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_views_are_finite_and_made_of_observed_pixels_only(
    options: dict[str, Any], height: int, width: int, observed: float, per_channel: bool, seed: int
) -> None:
    spec = ViewSpec(**{**options, "solarize": 0.0, "fill": -5.0})
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 2, height, width, generator=generator)
    shape = (2, 2, height, width) if per_channel else (2, height, width)
    mask = torch.rand(shape, generator=generator) < observed
    full = mask if per_channel else mask[:, None].expand(-1, 2, -1, -1)
    spoiled = torch.where(full, x, torch.nan)
    low, high = (x[full].min(), x[full].max()) if full.any() else (0.0, 0.0)
    for (view, valid), size in zip(
        draw_views(spoiled, mask, spec, seeds(2, seed)), [24, 24, 12, 12, 12], strict=True
    ):
        assert view.shape == (2, 2, size, size)
        assert valid.shape == (2, 1, size, size)
        assert view.isfinite().all()
        filled = view == -5.0
        assert torch.equal(filled.all(1, keepdim=True), ~valid)
        assert ((view >= low - 1e-4) & (view <= high + 1e-4) | filled).all()


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1]], ids=["zoom", "area"])
def test_a_constant_field_with_holes_stays_constant(spec: ViewSpec) -> None:
    spec = dataclasses.replace(spec, solarize=0.0, fill=0.0)
    x, mask = torch.full((4, 1, 64, 64), 3.0), torch.rand(4, 64, 64) > 0.3
    for view, valid in draw_views(x, mask, spec, seeds(4)):
        assert valid.float().mean() > 0.5
        torch.testing.assert_close(view[valid], torch.full_like(view[valid], 3.0))
        assert (view[~valid] == 0).all()


def test_a_pixel_that_is_not_finite_counts_as_missing() -> None:
    x = torch.full((1, 2, 32, 32), 2.0)
    x[0, 1, 10:20] = torch.inf
    for per_channel in (True, False):
        mask = torch.ones_like(x, dtype=torch.bool) if per_channel else everywhere(x)
        for view, valid in draw_views(x, mask, ViewSpec(**SMALL, fill=0.0), seeds(1)):
            assert ((view == 0) | ((view - 2).abs() < 1e-5)).all()
            assert valid.all() == per_channel


@pytest.mark.parametrize("mode", ["zoom", "area"])
def test_without_flips_directions_are_kept(mode: Any) -> None:
    spec = ViewSpec(**{**SMALL, "mode": mode})
    down, along = ramp(8, 50, 60, 0), ramp(8, 50, 60, 1)
    both = torch.cat([down, along], dim=1)
    for view, _ in draw_views(both, everywhere(both), spec, seeds(8)):
        # The outermost pixels may lean on the edge of the field.
        rows, columns = view[:, 0, 1:-1, 1:-1], view[:, 1, 1:-1, 1:-1]
        assert (rows.diff(dim=1) > 0).all()
        assert (rows.diff(dim=2).abs() < 1e-3).all()
        assert (columns.diff(dim=2) > 0).all()
        assert (columns.diff(dim=1).abs() < 1e-3).all()


@pytest.mark.parametrize("magnification", [1.0, 2.0])
def test_zoom_keeps_scale_within_its_range_and_uses_all_of_it(magnification: float) -> None:
    spec = ViewSpec(**SMALL, magnification=magnification)
    field = ramp(64, 64, 64, 1)
    for view, _ in draw_views(field, everywhere(field), spec, seeds(64)):
        step = view[:, 0].diff(dim=-1)[..., 3:-3].mean((1, 2)) * magnification  # field pixels a view pixel
        # Shrunk by a fraction, the kernel keeps a ramp to about a percent.
        assert ((step > 1 / 1.25 - 0.02) & (step < 1 / 0.8 + 0.02)).all()
        assert step.min() < 0.85
        assert step.max() > 1.18


def test_windows_lie_everywhere_in_the_field() -> None:
    spec = ViewSpec(**SMALL, zoom=(1.0, 1.0))
    field = ramp(200, 64, 64, 0)
    centres = draw_views(field, everywhere(field), spec, seeds(200))[0][0].mean((1, 2, 3))
    assert ((centres >= 12) & (centres <= 52)).all()
    assert np.histogram(centres, 4, (12, 52))[0].min() > 25


def test_a_window_is_cut_to_the_field() -> None:
    spec = ViewSpec(global_size=32, local_views=0, zoom=(0.5, 0.5))
    x = torch.randn(2, 1, 32, 32)
    for view, valid in draw_views(x, everywhere(x), spec, seeds(2)):
        torch.testing.assert_close(view, x)
        assert valid.all()


def test_area_covers_the_share_of_the_field_that_was_asked_for() -> None:
    spec = ViewSpec(**{**SMALL, "mode": "area", "local_area": (0.1, 0.3)})
    both = torch.cat([ramp(200, 64, 64, 0), ramp(200, 64, 64, 1)], dim=1)
    view = draw_views(both, everywhere(both), spec, seeds(200))[2][0][..., 3:-3, 3:-3]
    height, width = 12 * view[:, 0].diff(dim=1).mean((1, 2)), 12 * view[:, 1].diff(dim=2).mean((1, 2))
    share, aspect = height * width / 64**2, width / height
    assert ((share > 0.1 - 1e-3) & (share < 0.3 + 1e-3)).all()
    assert ((aspect > 3 / 4 - 1e-3) & (aspect < 4 / 3 + 1e-3)).all()
    assert abs(share.mean() - 0.2) < 0.01


@pytest.mark.parametrize(("flips", "kinds"), [("none", 1), ("h", 2), ("d4", 8)])
def test_flips_draw_every_symmetry_alike(flips: Any, kinds: int) -> None:
    spec = ViewSpec(global_size=16, local_views=0, zoom=(1.0, 1.0), flips=flips)
    field = torch.randn(1, 1, 16, 16).expand(400, -1, -1, -1)
    view = draw_views(field, everywhere(field), spec, seeds(400))[0][0]
    turned = [m.flip(dims) for m in (field[0, 0], field[0, 0].mT) for dims in ([], [0], [1], [0, 1])]
    counts = [int(torch.isclose(view[:, 0], kind, atol=1e-5).all((1, 2)).sum()) for kind in turned]
    assert sum(counts) == 400
    assert sum(count > 0 for count in counts) == kinds
    assert min(count for count in counts if count) > 0.6 * 400 / kinds


def test_minified_views_are_antialiased() -> None:
    spec = ViewSpec(global_size=16, local_views=0, mode="area", global_area=(1.0, 1.0), aspect=(1.0, 1.0))
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1).expand(1, 1, 64, 64)
    view = draw_views(checkers, everywhere(checkers), spec, seeds(1))[0][0]
    assert view[..., 1:-1, 1:-1].abs().max() < 0.01


def test_gain_is_one_offset_a_view_and_channel_and_spares_the_floor() -> None:
    x = torch.zeros(50, 2, 32, 32)
    x[:, :, :16] = -1.0  # no echo
    spec = ViewSpec(**SMALL, gain=(0.1, 0.2))
    view = draw_views(x, everywhere(x), spec, seeds(50))[0][0]
    offset = view[:, :, -1, 0]
    assert ((view[:, :, -1] - offset[..., None]).abs() < 1e-6).all()
    torch.testing.assert_close(offset[:, 1], 2 * offset[:, 0])
    assert offset[:, 0].abs().max() <= 0.1
    assert offset[:, 0].min() < -0.05
    assert offset[:, 0].max() > 0.05
    spared = draw_views(x, everywhere(x), dataclasses.replace(spec, gain_floor=-1.0), seeds(50))[0][0]
    assert (spared >= -1).all()
    torch.testing.assert_close(spared[:, :, 0], torch.full((50, 2, 24), -1.0))
    torch.testing.assert_close(spared[:, :, -1, 0], offset)
    with pytest.raises(ValueError, match=r"gain=.* for 3 channels"):
        draw_views(torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool), spec, seeds(1))


def test_blur_smooths_the_views_that_it_is_meant_for_and_keeps_their_mean() -> None:
    x = torch.randn(4, 1, 32, 32)
    options: dict[str, Any] = {"global_size": 32, "local_size": 32, "local_views": 1, "zoom": (1.0, 1.0)}
    sharp = draw_views(x, everywhere(x), ViewSpec(**options), seeds(4))
    spec = ViewSpec(**options, blur=(1.0, 0.0, 1.0), blur_sigma=(2.0, 2.0))
    blurred = draw_views(x, everywhere(x), spec, seeds(4))
    assert torch.equal(blurred[1][0], sharp[1][0])
    taps = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0]).square() / 4)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, kernel[None, None])
    for i in (0, 2):
        torch.testing.assert_close(blurred[i][0], expected)


def test_solarize_mirrors_high_values_of_the_second_global_view() -> None:
    x = torch.rand(3, 1, 24, 24)
    spec = ViewSpec(global_size=24, local_size=24, local_views=1, zoom=(1.0, 1.0), solarize=1.0)
    first, second, local = (view for view, _ in draw_views(x, everywhere(x), spec, seeds(3)))
    torch.testing.assert_close(first, x)
    torch.testing.assert_close(second, torch.where(x > 0.5, 1 - x, x))
    torch.testing.assert_close(local, x)


def test_views_stay_in_float32_under_autocast() -> None:
    x = torch.randn(2, 1, 32, 32)
    expected = draw_views(x, everywhere(x), ViewSpec(**SMALL), seeds(2))[0][0]
    with torch.autocast("cpu", torch.bfloat16):
        view = draw_views(x.half(), everywhere(x), ViewSpec(**SMALL), seeds(2))[0][0]
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, expected, atol=2e-3, rtol=2e-3)


def test_token_coverage_counts_pixels_in_the_order_of_the_tokens() -> None:
    valid = torch.ones(1, 1, 16, 24, dtype=torch.bool)
    valid[:, :, 8:12, 16:] = False  # half of the last token of the second row
    coverage = token_coverage(valid, 8)
    torch.testing.assert_close(coverage, torch.tensor([[1, 1, 1, 1, 1, 0.5]]))
    assert torch.equal(token_coverage(valid[:, 0], 8), coverage)


def test_views_feed_the_network() -> None:
    x = torch.randn(2, 1, 64, 64)
    network = build("vit_demo", depth=1, mask_token=True)
    for view, valid in draw_views(
        x, torch.rand(2, 64, 64) > 0.5, ViewSpec(global_size=48, local_size=24), seeds(2)
    ):
        assert network(view, token_coverage(valid, 8) < 0.5).shape == (2, 192)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "crop"}, "expected mode zoom or area .* got ViewSpec.*mode='crop'"),
        ({"flips": "v"}, "flips='v'"),
    ],
)
def test_spec_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewSpec(**options)


def test_specs_survive_json() -> None:
    specs: list[ViewSpec | GridViewSpec] = [*SPECS, GridViewSpec(token_dropout=0.5)]
    for spec in specs:
        assert build_spec(type(spec), json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_fields_and_seeds_of_a_wrong_shape_are_refused() -> None:
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"draw_views: expected x .* got \(2, 1, 8, 8\) and torch.bool \(2, 1, 8, 9\)"
    ):
        draw_views(x, torch.ones(2, 8, 9, dtype=torch.bool), ViewSpec(**SMALL), seeds(2))
    with pytest.raises(ValueError, match=r"expected 2 int64 seeds, got torch\.int64"):
        draw_views(x, everywhere(x), ViewSpec(**SMALL), seeds(3))


# --- views of grids -----------------------------------------------------------------------------------------


def numbered(batch: int, rows: int, columns: int) -> Tensor:
    """Grids whose embeddings contain row and column, from 1."""
    row, column = torch.meshgrid(torch.arange(rows) + 1.0, torch.arange(columns) + 1.0, indexing="ij")
    return torch.stack([row, column]).expand(batch, -1, -1, -1)


def all_cells(x: Tensor) -> Tensor:
    return torch.ones(len(x), *x.shape[2:], dtype=torch.bool)


def test_grid_views_are_windows_with_rows_and_columns_in_place() -> None:
    x = numbered(100, 8, 11)
    views = draw_grid_views(x, all_cells(x), GridViewSpec(token_dropout=0.0), seeds(100))
    assert [tuple(view.shape) for view, _ in views] == 2 * [(100, 2, 7, 10)] + 8 * [(100, 2, 4, 6)]
    for view, valid in views:
        assert valid.all()
        assert (view[:, 0].diff(dim=1) == 1).all()
        assert (view[:, 0].diff(dim=2) == 0).all()
        assert (view[:, 1].diff(dim=2) == 1).all()
        assert (view[:, 1].diff(dim=1) == 0).all()
    for axis, (rows, offsets) in enumerate([(8, 5), (11, 6)]):
        corners, counts = views[2][0][:, axis, 0, 0].unique(return_counts=True)
        assert corners.tolist() == list(range(1, offsets + 1)), rows
        assert counts.min() > 5
    assert not torch.equal(views[0][0], views[1][0])


def test_grid_views_depend_on_the_sample_alone() -> None:
    x, cells = torch.randn(5, 3, 6, 6), torch.rand(5, 6, 6) > 0.3
    together = draw_grid_views(x, cells, GridViewSpec(), seeds(5))
    apart = draw_grid_views(x[2:3], cells[2:3], GridViewSpec(), seeds(5)[2:3])
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[0][2:3], part[0])
        assert torch.equal(whole[1][2:3], part[1])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(4, 12),
    columns=st.integers(4, 12),
    valid_share=st.sampled_from([0.02, 0.2, 0.8, 1.0]),
    dropout=st.sampled_from([0.0, 0.5, 1.0]),
    flips=st.sampled_from(["none", "h"]),
    seed=st.integers(0, 2**31),
)
def test_grid_views_hold_a_valid_cell_and_nothing_of_the_others(
    rows: int, columns: int, valid_share: float, dropout: float, flips: Any, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(3, rows, columns, generator=generator) < valid_share
    cells[:, rows // 2, 0] = True
    x = torch.where(cells[:, None], numbered(3, rows, columns), torch.nan)
    spec = GridViewSpec(token_dropout=dropout, flips=flips, local_views=3)
    for view, valid in draw_grid_views(x, cells, spec, seeds(3, seed)):
        assert valid.any((1, 2)).all()
        assert view.isfinite().all()
        assert torch.equal((view != 0).all(1), valid)
        for sample in range(3):
            row, column = (view[sample, axis][valid[sample]].long() - 1 for axis in range(2))
            assert cells[sample, row, column].all()


@given(rows=st.integers(4, 40), columns=st.integers(4, 40))
def test_windows_hold_the_share_that_was_asked_for(rows: int, columns: int) -> None:
    for fraction, window in ((0.75, _global_window), (0.25, _local_window)):
        height, width = window(rows, columns, fraction)
        assert 2 <= height <= rows
        assert 2 <= width <= columns
        if window is _global_window:
            assert height * width >= 0.75 * rows * columns
        else:
            assert 0.1 <= height * width / (rows * columns) <= 0.4
    assert _global_window(8, 8, 0.75) == (7, 7)
    assert _global_window(8, 8, 1.0) == (8, 8)
    assert _local_window(4, 4, 0.25) == (2, 2)


def test_token_dropout_leaves_out_cells_of_global_views_only() -> None:
    x = numbered(200, 8, 8)
    views = draw_grid_views(x, all_cells(x), GridViewSpec(token_dropout=0.25), seeds(200))
    for view, valid in views[:2]:
        assert abs(valid.float().mean() - 0.75) < 0.02
        assert (view.mT[~valid.mT[:, None].expand_as(view)] == 0).all()
    assert all(valid.all() for _, valid in views[2:])


def test_a_grid_without_valid_cells_gives_empty_views() -> None:
    x = torch.full((1, 2, 4, 4), torch.nan)
    for view, valid in draw_grid_views(x, torch.zeros(1, 4, 4, dtype=torch.bool), GridViewSpec(), seeds(1)):
        assert not valid.any()
        assert (view == 0).all()


def test_flipped_grids_are_mirror_images() -> None:
    x = numbered(50, 6, 6)
    spec = GridViewSpec(global_fraction=1.0, token_dropout=0.0, flips="h")
    view = draw_grid_views(x, all_cells(x), spec, seeds(50))[0][0]
    mirrored = (view == x.flip(-1)).all((1, 2, 3))
    assert ((view == x).all((1, 2, 3)) ^ mirrored).all()
    assert 10 < mirrored.sum() < 40


def test_cells_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bool cells .* got \(1, 2, 8, 8\) and torch.bool \(1, 8, 7\)"):
        draw_grid_views(numbered(1, 8, 8), torch.ones(1, 8, 7, dtype=torch.bool), GridViewSpec(), seeds(1))
