from __future__ import annotations

from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import split_into_patches

from gridrad_cube import geometry, tiling
from gridrad_cube.geometry import wrap_longitude
from gridrad_cube.schema import CHANNELS, Packing, SchemaError, TileSpec
from gridrad_cube.tiling import Window

IR = CHANNELS["ir_brightness_temperature"].packing
shapes = st.tuples(st.integers(4, 40), st.integers(4, 40))


def make_scene(shape, *, two_d=False, west=-100.0, step=0.5, seed=0, levels=0):
    rng = np.random.default_rng(seed)
    latitude = 30.0 - step * np.arange(shape[0])
    longitude = wrap_longitude(west + step * np.arange(shape[1]))
    codes = rng.integers(15000, 35000, (*([levels] if levels else []), *shape)).astype(np.uint16)
    dims = (*(["altitude"] if levels else []), "y", "x")
    if two_d:
        latitude, longitude = np.meshgrid(latitude, longitude, indexing="ij")
        latitude = latitude + 0.01 * np.arange(shape[1])
    place = ("y", "x") if two_d else None
    return xr.Dataset(
        {"ir_brightness_temperature": (dims, codes, IR.to_attributes())},
        {
            "latitude": (place or "y", latitude),
            "longitude": (place or "x", longitude),
            "time": np.datetime64("2021-07-05T17:50:17", "s"),
        },
        attrs={"satellite_longitude": -75.2, "product": "test"},
    )


def covered(shape, found):
    count = np.zeros(shape, int)
    for w in found:
        count[max(w.y, 0) : w.y + w.height, max(w.x, 0) : w.x + w.width] += 1
    return count


def lattice(first, size):
    return (first + np.arange(size) + 0.5) / 48


# windows


@given(shapes, st.integers(1, 4))
def test_scene_window_holds_every_pixel_and_less_than_a_patch_more(shape, patch):
    spec = TileSpec(patch=patch)
    (window,) = tiling.windows(shape, spec, "a")
    assert (window.y, window.x) == (0, 0)
    assert (window.height, window.width) == tiling.crop_shape(shape, spec)
    for size, edge in zip(shape, (window.height, window.width), strict=True):
        assert edge % patch == 0
        assert 0 <= edge - size < patch


@given(shapes, st.integers(1, 3), st.integers(1, 3), st.integers(-500, 500), st.booleans())
def test_tiles_cover_every_pixel_once(shape, rows, cols, origin, snap):
    spec = TileSpec(patch=4, crop=(4 * rows, 4 * cols), placement="tiles")
    place = (origin, 3 * origin + 1) if snap else None
    found = tiling.windows(shape, spec, "a", place)
    assert (covered(shape, found) == 1).all()
    assert {(w.height, w.width) for w in found} == {spec.crop}
    if place:
        assert all((w.y + place[0]) % 4 == 0 and (w.x + place[1]) % 4 == 0 for w in found)


def test_larc_scene_gives_9_by_12_patches():
    assert tiling.crop_shape((2240, 2856), TileSpec()) == (9 * 256, 12 * 256)


@given(shapes, st.integers(0, 2**40), st.text(max_size=20))
def test_random_window_lies_inside_and_depends_on_seed_and_scene_alone(shape, seed, scene):
    spec = TileSpec(patch=4, crop=(8, 12), placement="random", seed=seed)
    (window,) = tiling.windows(shape, spec, scene)
    assert [window] == tiling.windows(shape, spec, scene)
    assert 0 <= window.y <= max(shape[0] - 8, 0)
    assert 0 <= window.x <= max(shape[1] - 12, 0)


def test_random_offsets_are_uniform_and_reach_both_ends():
    spec = TileSpec(patch=4, crop=(8, 8), placement="random")
    found = [tiling.windows((17, 12), spec, f"scene-{i}")[0] for i in range(5000)]
    y, x = np.bincount([w.y for w in found]), np.bincount([w.x for w in found])
    for counts in (y, x):
        expected = 5000 / len(counts)
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < len(counts) - 1 + 5 * np.sqrt(2 * len(counts))
    assert (len(y), len(x)) == (10, 5)
    assert abs(np.corrcoef([w.y for w in found], [w.x for w in found])[0, 1]) < 0.05


def test_random_offsets_do_not_follow_the_global_generator():
    spec = TileSpec(patch=4, crop=(8, 8), placement="random")
    np.random.seed(1)  # noqa: NPY002
    first = tiling.windows((100, 100), spec, "a")
    np.random.seed(2)  # noqa: NPY002
    assert tiling.windows((100, 100), spec, "a") == first
    assert tiling.windows((100, 100), replace(spec, seed=1), "a") != first
    assert tiling.windows((100, 100), spec, "b") != first


def test_random_offset_is_the_one_that_stores_were_built_with():
    spec = TileSpec(crop=(2048, 2048), placement="random", seed=7)
    assert tiling.windows((2240, 2856), spec, "202107/a.nc") == [Window(44, 790, 2048, 2048)]


def test_center_window_is_in_the_middle_or_padded_at_the_end():
    spec = TileSpec(patch=4, crop=(8, 12), placement="center")
    assert tiling.windows((20, 21), spec, "a") == [Window(6, 4, 8, 12)]
    assert tiling.windows((20, 6), spec, "a") == [Window(6, 0, 8, 12)]


@settings(deadline=None)
@given(shapes, st.integers(0, 2**40), st.text(max_size=20), st.integers(1, 40))
def test_several_random_windows_are_distinct_inside_and_go_on_from_fewer(shape, seed, scene, count):
    spec = TileSpec(patch=4, crop=(8, 12), placement="random", seed=seed)
    found = tiling.windows(shape, replace(spec, crops_per_scene=count), scene)
    free = max(shape[0] - 8, 0), max(shape[1] - 12, 0)
    assert len(set(found)) == len(found) == min(count, (free[0] + 1) * (free[1] + 1))
    assert all(0 <= w.y <= free[0] and 0 <= w.x <= free[1] for w in found)
    assert found[:1] == tiling.windows(shape, spec, scene)
    assert found == tiling.windows(shape, replace(spec, crops_per_scene=count + 3), scene)[: len(found)]


def test_more_random_windows_than_offsets_are_all_of_them():
    spec = TileSpec(patch=4, crop=(8, 8), placement="random", crops_per_scene=1000)
    found = tiling.windows((20, 14), spec, "a")
    assert {(w.y, w.x) for w in found} == {(y, x) for y in range(13) for x in range(7)}
    assert len(found) == 13 * 7


def test_second_random_window_is_as_uniform_as_the_first():
    spec = TileSpec(patch=4, crop=(8, 8), placement="random", crops_per_scene=2)
    pairs = [tiling.windows((16, 12), spec, f"scene-{i}") for i in range(4000)]
    cells = np.bincount([w.y * 5 + w.x for _, w in pairs], minlength=45)
    assert ((cells - 4000 / 45) ** 2 / (4000 / 45)).sum() < 44 + 5 * np.sqrt(88)
    first, second = (np.array([(p[k].y, p[k].x) for p in pairs]) for k in (0, 1))
    assert np.abs(np.corrcoef(first.T, second.T)[:2, 2:]).max() < 0.06


@settings(deadline=None)
@given(
    shapes, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5, unique=True)
)
def test_listed_windows_lie_where_the_list_says_or_are_refused(shape, offsets):
    spec = TileSpec(patch=4, crop=(8, 12), placement="list", offsets=offsets)
    outside = [(y, x) for y, x in offsets if y >= shape[0] or x >= shape[1]]
    if outside:
        with pytest.raises(
            SchemaError, match=r"events/a.nc: the windows at \[\(\d+, \d+\).*lie outside of its"
        ):
            tiling.windows(shape, spec, "events/a.nc", (3, 5))
        return
    assert tiling.windows(shape, spec, "events/a.nc", (3, 5)) == [Window(y, x, 8, 12) for y, x in offsets]


def test_listed_window_is_padded_at_the_far_end():
    scene = make_scene((10, 9))
    spec = TileSpec(patch=4, crop=(8, 8), placement="list", offsets=((6, 5), (0, 0)))
    first, second = (tiling.cut(scene, w, 4) for w in tiling.windows((10, 9), spec, "a"))
    name, codes = "ir_brightness_temperature", scene["ir_brightness_temperature"].values
    np.testing.assert_array_equal(first[name].values[:4, :4], codes[6:, 5:])
    assert (first[name].values[4:] == 65535).all()
    assert first["padding"].values.tolist() == [[False, True], [True, True]]
    np.testing.assert_array_equal(second[name].values, codes[:8, :8])


@given(shapes, st.integers(1, 4), st.integers(1, 4))
def test_cover_holds_every_pixel_in_whole_patches(shape, rows, cols):
    crop = 4 * min(rows, shape[0] // 4), 4 * min(cols, shape[1] // 4)
    spec = TileSpec(patch=4, crop=crop, placement="cover")
    found = tiling.windows(shape, spec, "a")
    assert len(set(found)) == len(found) == -(-shape[0] // crop[0]) * -(-shape[1] // crop[1])
    seen = np.zeros(shape, int)
    for window in found:
        assert (window.height, window.width) == crop
        assert window.y >= 0
        assert window.x >= 0
        part = seen[window.y : window.y + window.height, window.x : window.x + window.width]
        assert part.shape == crop
        part += 1
    assert seen.min() == 1
    assert found == tiling.windows(shape, spec, "b", (3, 5))  # no scene, and no lattice, changes it


def test_cover_of_a_scene_that_is_smaller_than_the_crop_is_padded():
    spec = TileSpec(patch=4, crop=(8, 8), placement="cover")
    assert tiling.windows((6, 20), spec, "a") == [Window(0, x, 8, 8) for x in (0, 8, 12)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((825, 825), TileSpec(patch=128, crop=(512, 512), placement="cover")),
        ((1024, 1900), TileSpec(patch=256, crop=(1024, 1024), placement="cover")),
        ((2048, 1024), TileSpec(patch=256)),
        ((1200, 1200), TileSpec(patch=256)),  # the last patches are cut, and more than half of each is there
        ((640, 710), TileSpec(patch=128)),
        ((70, 90), TileSpec(patch=16, crop=(48, 48), placement="cover")),
    ],
)
def test_suggestions_fit_the_scene(shape, expected):
    found = tiling.suggest(shape)
    assert found == expected
    assert tiling.suggest(shape, (3, 5)).placement == "scene"
    few, every = tiling.count_leftovers(shape, found.patch)
    assert found.crop or few <= 0.1 * every


def test_leftovers_of_a_scene():
    assert tiling.count_leftovers((825, 825), 256) == (7, 16)
    assert tiling.count_leftovers((512, 512), 256) == (0, 4)
    with pytest.raises(SchemaError, match="expected at least 16 px"):
        tiling.suggest((15, 100))


@pytest.mark.parametrize("placement", ["scene", "tiles", "random", "center", "list"])
@pytest.mark.parametrize("shape", [(255, 300), (300, 255)])
def test_scene_smaller_than_a_patch_is_refused(placement, shape):
    spec = TileSpec(
        placement=placement,
        crop=None if placement == "scene" else (256, 256),
        offsets=((0, 0),) if placement == "list" else (),
    )
    with pytest.raises(
        SchemaError, match=f"{shape[0]} x {shape[1]} px.*256 x 256.*smaller `patch`, at most 255"
    ):
        tiling.windows(shape, spec, "a")


# lattice


def test_lattice_origin_counts_from_zero_degrees():
    assert geometry.lattice_origin(lattice(1320, 792), lattice(-4440, 792)) == (1320, -4440)


def test_lattice_origin_takes_axes_of_float32():
    axes = lattice(1320, 792).astype(np.float32), lattice(-4440, 792).astype(np.float32)
    assert geometry.lattice_origin(*axes) == (1320, -4440)


def test_lattice_origin_crosses_the_date_line():
    assert geometry.lattice_origin(lattice(0, 5), wrap_longitude(lattice(8638, 5))) == (0, 8638)


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        (lattice(1320, 50)[::-1], lattice(-4440, 50)),
        (lattice(1320, 50), lattice(-4440, 50) + 0.25 / 48),
        (25 + 0.02 * np.arange(50), -115 + 0.02 * np.arange(50)),
        (np.zeros((5, 5)), np.zeros((5, 5))),
        (np.array([np.nan, 1.0]), lattice(0, 2)),
    ],
    ids=["descending", "between", "version 3.1", "two-dimensional", "missing"],
)
def test_lattice_origin_is_none_off_the_lattice(latitude, longitude):
    assert geometry.lattice_origin(latitude, longitude) is None


def test_patches_of_overlapping_events_coincide():
    spec = TileSpec(patch=256)
    centres = []
    for north, east in ((1320, -4440), (1333, -4500)):
        latitude, longitude = lattice(north, 792), lattice(east, 700)
        scene = make_scene((792, 700)).assign_coords(latitude=("y", latitude), longitude=("x", longitude))
        origin = geometry.lattice_origin(latitude, longitude)
        (window,) = tiling.windows((792, 700), spec, "a", origin)
        assert (window.height, window.width) == tiling.crop_shape((792, 700), spec, origin)
        assert (covered((792, 700), [window]) == 1).all()
        crop = tiling.cut(scene, window, 256)
        whole = crop["ir_brightness_temperature"].values != 65535
        full = split_into_patches(whole, 256).all(axis=(-1, -2))
        centres.append(
            {
                (round(a, 6), round(b, 6))
                for a, b in zip(crop.latitude.values[full], crop.longitude.values[full], strict=True)
            }
        )
    assert len(centres[0] & centres[1]) >= 2


# cut


@settings(deadline=None)
@given(
    shapes,
    st.integers(-5, 45),
    st.integers(-5, 45),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2),
)
def test_cut_equals_padding_and_slicing(shape, y, x, rows, cols, two_d, levels):
    scene = make_scene(shape, two_d=two_d, levels=levels)
    crop = tiling.cut(scene, Window(y, x, 4 * rows, 4 * cols), 4)
    field = scene["ir_brightness_temperature"].values
    padded = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(60, 60)] * 2, constant_values=65535)
    expected = padded[..., 60 + y : 60 + y + 4 * rows, 60 + x : 60 + x + 4 * cols]
    np.testing.assert_array_equal(crop["ir_brightness_temperature"].values, expected)
    assert crop["ir_brightness_temperature"].dtype == np.uint16
    assert (int(crop.y_origin), int(crop.x_origin)) == (y, x)
    assert crop.attrs == scene.attrs
    assert crop["ir_brightness_temperature"].attrs == scene["ir_brightness_temperature"].attrs


@settings(deadline=None)
@given(
    shapes,
    st.booleans(),
    st.sampled_from([-100.0, 175.0, 179.9, -180.0]),
    st.integers(-7, 3),
    st.integers(-7, 3),
)
def test_patch_centre_is_the_mean_of_its_pixels_inside_the_scene(shape, two_d, west, y, x):
    scene = make_scene(shape, two_d=two_d, west=west)
    crop = tiling.cut(scene, Window(y, x, 16, 20), 4)
    lat, lon = (scene[name].values for name in ("latitude", "longitude"))
    if not two_d:
        lat, lon = np.meshgrid(lat, lon, indexing="ij")
    for r in range(4):
        for c in range(5):
            rows, cols = (slice(max(o + 4 * i, 0), max(o + 4 * i + 4, 0)) for o, i in ((y, r), (x, c)))
            cell = {name: float(crop[name][r, c]) for name in ("latitude", "longitude")}
            assert bool(crop.padding[r, c]) == (lat[rows, cols].size == 0)
            if not lat[rows, cols].size:
                assert np.isnan(cell["latitude"])
                assert np.isnan(cell["longitude"])
                assert np.isnan(crop.corner_latitude[r, c]).all()
                continue
            assert cell["latitude"] == pytest.approx(lat[rows, cols].mean(), abs=1e-9)
            east = (lon[rows, cols] - west + 1.0) % 360.0 - 1.0  # east of the first column: no jump
            away = (cell["longitude"] - west - east.mean() + 180) % 360 - 180
            assert abs(away) < 1e-9
            assert -180 <= cell["longitude"] < 180
            corners = set(
                zip(crop.corner_latitude.values[r, c], crop.corner_longitude.values[r, c], strict=True)
            )
            ends = [(lat[rows, cols][i, j], lon[rows, cols][i, j]) for i in (0, -1) for j in (0, -1)]
            assert corners == set(ends)


def test_patch_centres_of_a_grid_round_the_globe_are_right_everywhere():
    scene = make_scene((4, 360), west=-0.0, step=1.0)
    crop = tiling.cut(scene, Window(0, 0, 4, 360), 4)
    expected = wrap_longitude(np.arange(90) * 4 + 1.5)
    np.testing.assert_allclose(crop.longitude.values[0], expected, atol=1e-9)


def test_positions_of_a_disk_ignore_pixels_off_the_earth():
    scene = make_scene((8, 8), two_d=True)
    for name in ("latitude", "longitude"):
        scene[name].values[:2] = np.nan
        scene[name].values[4:, 4:] = np.nan
    crop = tiling.cut(scene, Window(0, 0, 8, 8), 4)
    assert float(crop.latitude[0, 0]) == pytest.approx(scene.latitude.values[2:4, :4].mean())
    assert np.isnan(crop.latitude[1, 1])
    assert not bool(crop.padding[1, 1])


def test_observation_time_is_the_mean_of_the_lines():
    scene = make_scene((10, 8))
    lines = np.datetime64("2021-07-05T17:50:00", "s") + 4 * np.arange(10)
    lines[5:8] = np.datetime64("NaT", "s")
    crop = tiling.cut(scene.assign_coords(observation_time=("y", lines)), Window(-4, 0, 16, 8), 4)
    expected = np.array(
        ["NaT", "2021-07-05T17:50:06", "2021-07-05T17:50:16", "2021-07-05T17:50:34"], "datetime64[s]"
    )
    np.testing.assert_array_equal(crop.observation_time.values, expected)
    assert crop.time.values == scene.time.values


def test_whole_window_of_a_numpy_scene_is_not_copied():
    scene = make_scene((16, 16))
    crop = tiling.cut(scene, Window(0, 0, 16, 16), 4)
    assert np.shares_memory(
        crop["ir_brightness_temperature"].values, scene["ir_brightness_temperature"].values
    )


def test_cut_reads_only_the_window_of_a_lazy_scene():
    scene = make_scene((40, 40))
    field = scene["ir_brightness_temperature"]
    read = []

    def block(values, block_info=None):
        read.append(block_info[0]["chunk-location"])
        return values

    chunks = da.from_array(field.values, chunks=4).map_blocks(block, meta=field.values[:0])
    crop = tiling.cut(scene.assign(ir_brightness_temperature=field.copy(data=chunks)), Window(8, 12, 8, 8), 4)
    np.testing.assert_array_equal(crop["ir_brightness_temperature"].values, field.values[8:16, 12:20])
    assert sorted(read) == [(2, 3), (2, 4), (3, 3), (3, 4)]


def test_float_scene_is_padded_with_nan():
    scene = xr.Dataset(
        {"f": (("y", "x"), np.ones((5, 4), np.float32))},
        {"latitude": ("y", np.arange(5.0)), "longitude": ("x", np.arange(4.0))},
    )
    crop = tiling.cut(scene, Window(0, 0, 8, 4), 4)
    assert np.isnan(crop.f.values[5:]).all()
    assert (crop.f.values[:5] == 1).all()


def test_padding_needs_a_code_for_missing_pixels():
    scene = make_scene((5, 8))
    scene["ir_brightness_temperature"].attrs = Packing().to_attributes()
    with pytest.raises(SchemaError, match=r"no code for a missing pixel.*expected _FillValue"):
        tiling.cut(scene, Window(0, 0, 8, 8), 4)
    tiling.cut(scene, Window(0, 0, 4, 8), 4)


def test_window_of_part_patches_is_refused():
    with pytest.raises(SchemaError, match=r"got 6 x 8 px; expected whole patches of 4 px"):
        tiling.cut(make_scene((8, 8)), Window(0, 0, 6, 8), 4)


# patches


@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_patches_then_assemble_is_the_identity(lead, rows, cols, patch):
    array = np.arange(np.prod([*lead, rows * patch, cols * patch])).reshape(*lead, rows * patch, cols * patch)
    blocks = split_into_patches(array, patch)
    assert blocks.shape == (*lead, rows, cols, patch, patch)
    assert np.shares_memory(blocks, array)
    np.testing.assert_array_equal(tiling.assemble(blocks), array)
    last = blocks[..., -1, 0, :, :]
    np.testing.assert_array_equal(last, array[..., (rows - 1) * patch :, :patch])


@settings(deadline=None)
@given(shapes, st.sampled_from(["scene", "tiles"]))
def test_tiling_a_scene_then_assembling_gives_it_back(shape, placement):
    scene = make_scene(shape)
    spec = TileSpec(patch=4, crop=None if placement == "scene" else (8, 8), placement=placement)
    out = np.zeros((shape[0] + 8, shape[1] + 8), np.uint16)
    for window in tiling.windows(shape, spec, "a"):
        crop = tiling.cut(scene, window, 4)["ir_brightness_temperature"].values
        place = slice(window.y, window.y + window.height), slice(window.x, window.x + window.width)
        out[place] = tiling.assemble(split_into_patches(crop, 4))
    np.testing.assert_array_equal(out[: shape[0], : shape[1]], scene["ir_brightness_temperature"].values)


PLACEMENTS = {
    "scene": {},
    "tiles": {},
    "random": {"crops_per_scene": 3, "seed": 5},
    "center": {},
    "list": {"offsets": ((0, 0), (1, 2))},
}


@settings(deadline=None)
@given(
    shapes,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(sorted(PLACEMENTS)),
    st.booleans(),
)
def test_crops_of_any_whole_number_of_patches_hold_the_scene_and_padding_alone(
    shape, patch, rows, cols, placement, two_d
):
    scene = make_scene(shape, two_d=two_d)
    codes = scene["ir_brightness_temperature"].values
    padded = np.full((shape[0] + 80, shape[1] + 80), 65535, np.uint16)
    padded[: shape[0], : shape[1]] = codes
    crop = None if placement == "scene" else (rows * patch, cols * patch)
    spec = TileSpec(patch=patch, crop=crop, placement=placement, **PLACEMENTS[placement])
    for window in tiling.windows(shape, spec, "a"):
        found = tiling.cut(scene, window, patch)
        expected = padded[window.y : window.y + window.height, window.x : window.x + window.width]
        np.testing.assert_array_equal(found["ir_brightness_temperature"].values, expected)
        inside = np.zeros_like(padded, bool)
        inside[: shape[0], : shape[1]] = True
        inside = inside[window.y : window.y + window.height, window.x : window.x + window.width]
        some = split_into_patches(inside, patch).any(axis=(-2, -1))
        np.testing.assert_array_equal(found["padding"].values, ~some)
        np.testing.assert_array_equal(np.isfinite(found["latitude"].values), some)


@pytest.mark.parametrize("placement", ["tiles", "random", "center"])
@pytest.mark.parametrize("shape", [(792, 792), (528, 672), (1248, 2832)])
def test_gridrad_domains_fit_into_classic_crops(placement, shape):
    scene = make_scene(shape, step=1 / 48)
    spec = TileSpec(crop=(2048, 2048), placement=placement)
    found = tiling.windows(shape, spec, "event", (1320, 12840) if placement == "tiles" else None)
    seen = 0
    for window in found:
        crop = tiling.cut(scene, window, 256)
        assert (crop.sizes["row"], crop.sizes["col"]) == (8, 8)
        seen += int((crop["ir_brightness_temperature"].values != 65535).sum())
        assert crop["padding"].values.any()
    whole = int((scene["ir_brightness_temperature"].values != 65535).sum())
    assert seen == whole if shape[1] < 2048 or placement == "tiles" else 0 < seen < whole


@settings(deadline=None)
@given(st.lists(st.tuples(shapes, st.booleans()), min_size=2, max_size=4))
def test_scenes_on_different_grids_share_the_largest_crop(scenes):
    """A store has one crop shape: smaller scenes are padded further, and keep pixels and positions."""
    spec = TileSpec(patch=4)
    edges = [tiling.crop_shape(shape, spec) for shape, _ in scenes]
    largest = max(h for h, _ in edges), max(w for _, w in edges)
    for seed, (shape, two_d) in enumerate(scenes):
        scene = make_scene(shape, two_d=two_d, seed=seed, west=-100.0 + 7 * seed)
        (window,) = tiling.windows(shape, spec, "a")
        own = tiling.cut(scene, window, 4)
        crop = tiling.cut(scene, replace(window, height=largest[0], width=largest[1]), 4)
        assert (crop.sizes["y"], crop.sizes["x"]) == largest
        mine = {"row": slice(own.sizes["row"]), "col": slice(own.sizes["col"])}
        pixels = {"y": slice(own.sizes["y"]), "x": slice(own.sizes["x"])}
        xr.testing.assert_identical(crop.isel(**mine, **pixels), own)
        assert (
            crop["padding"].values.sum() - own["padding"].values.sum()
            == crop["padding"].size - own["padding"].size
        )
