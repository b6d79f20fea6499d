from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from evaluation_stores import write_embeddings
from matplotlib.collections import PatchCollection, PolyCollection
from matplotlib.colors import LogNorm, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from small_data import make_store, write_sources

from gridrad_cube import pipeline, plot, query, store
from gridrad_cube.cli import cli
from gridrad_cube.plot import canvas, charts, neighbors
from gridrad_cube.plot.canvas import PADDING
from gridrad_cube.plot.patches import _BADGES
from gridrad_cube.plot.vectors import _lab_to_rgb
from gridrad_cube.schema import CHANNELS, Flag, Recipe, SchemaError, TileSpec, default_reject

IR, VIS, RADAR = "ir_brightness_temperature", "visible_reflectance", "reflectivity_column_maximum"
#: Pixels of the scenes: their last row and column of patches of 32 are cut.
SHAPE, PATCH = (84, 150), 32


@pytest.fixture(scope="module")
def larc_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes by day and one by night, rows from north to south, 3 x 5 patches."""
    folder = tmp_path_factory.mktemp("larc")
    return make_store(folder, scenes=3, shape=SHAPE, patch=PATCH, start="2021-07-05T18:00", interval="6h")


@pytest.fixture(scope="module")
def radar_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GridRad: rows from south to north."""
    folder = tmp_path_factory.mktemp("radar")
    channels = (RADAR, "reflectivity@3.0km")
    return make_store(
        folder, scenes=2, shape=SHAPE, patch=PATCH, format="gridrad-v4.2", seed=1, channels=channels
    )


@pytest.fixture
def larc(larc_store: Path) -> xr.Dataset:
    return store.open_cube(larc_store)


@pytest.fixture
def radar(radar_store: Path) -> xr.Dataset:
    return store.open_cube(radar_store)


def embed(cube: xr.Dataset, channel: str, features: int = 16) -> xr.Dataset:
    """Embeddings of a cube as open_embeddings gives them, from statistics of the patches."""
    statistics = np.stack([cube[f"{channel}_{n}"].values for n in ("mean", "std", "minimum")], axis=-1)
    weights = np.random.default_rng(0).standard_normal((3, features))
    # Patches without echo have no statistics, but an embedding all the same.
    vectors = np.tanh(np.nan_to_num(statistics) / 100) @ weights
    vectors += 0.01 * np.random.default_rng(1).standard_normal(vectors.shape)
    out = xr.Dataset(
        {
            "embedding": (("crop", "channel", "row", "col", "feature"), vectors[:, None].astype(np.float16)),
            "flags": (("crop", "channel", "row", "col"), cube[f"{channel}_flags"].values[:, None]),
        },
        coords={k: v for k, v in cube.coords.items() if k != "altitude"}
        | {"channel": [channel], "variable": ("channel", [channel]), "altitude_km": ("channel", [np.nan])},
    )
    out.attrs["gridrad_cube"] = {**store.store_info(cube), "kind": "embeddings"}
    return out


def fake(
    latitude: np.ndarray, longitude: np.ndarray, *, edge: int = 16, name: str = RADAR, values: float = 30.0
) -> xr.Dataset:
    """A cube of one crop in memory."""
    rows, cols = latitude.shape
    return xr.Dataset(
        {
            name: (("crop", "y", "x"), np.full((1, rows * edge, cols * edge), values, np.float32)),
            f"{name}_flags": (("crop", "row", "col"), np.zeros((1, rows, cols), np.uint16)),
        },
        coords={
            "time": ("crop", np.array(["2020-01-01"], "datetime64[s]")),
            "latitude": (("crop", "row", "col"), latitude[None]),
            "longitude": (("crop", "row", "col"), longitude[None]),
        },
    )


def legend_texts(figure: Figure) -> list[str]:
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def pixel_axes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    grid = str(store.open_cube(path)["grid"].values[0])
    axes = xr.open_zarr(path, group=f"grids/{grid}", chunks=None, consolidated=False)
    return axes["latitude"].values, axes["longitude"].values


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def test_importing_plot_and_evaluation_leaves_heavy_packages_alone() -> None:
    code = (
        "import sys, gridrad_cube.evaluation, gridrad_cube.plot; "
        "print([m for m in ('matplotlib', 'sklearn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# scenes


def test_scene_draws_the_pixels_on_the_channel_s_own_scale(larc: xr.Dataset) -> None:
    figure = plot.scene(larc, 1)
    axes, bar = figure.axes
    image = axes.images[-1]
    values = larc[IR].values[1]
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), np.isnan(values))
    np.testing.assert_array_equal(image.get_array().compressed(), values[np.isfinite(values)])
    assert image.get_clim() == CHANNELS[IR].typical_range
    assert figure.get_suptitle() == "Infrared brightness temperature (K), 2021-07-06 00:00 UTC"
    assert figure.texts[1].get_text() == "crop 1 of 3, 3 × 5 patches"
    assert bar.get_ylabel() == "Infrared brightness temperature (K)"
    assert len(png(figure)) < 1_000_000


@pytest.mark.parametrize("which", ["larc_store", "radar_store"])
def test_scene_ticks_stand_at_the_pixels_of_their_degrees(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    cube = store.open_cube(path)
    axes = plot.scene(cube).axes[0]
    latitude, longitude = pixel_axes(path)
    for name, axis, pixels, letters in (
        ("y", axes.yaxis, latitude, "NS"),
        ("x", axes.xaxis, longitude, "EW"),
    ):
        where = axis.get_majorticklocs()
        assert len(where) > 1
        for place, text in zip(where, axis.get_majorticklabels(), strict=True):
            size, letter = text.get_text().split("°")
            degree = float(size) * (1 if letter == letters[0] else -1)
            # The edge of pixel n is n, its middle n + 0.5; ticks beyond the scene continue evenly.
            expected = (degree - pixels[0]) / (pixels[1] - pixels[0]) + 0.5 - int(cube[f"{name}_origin"][0])
            assert place == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("which", "south_first"), [("larc_store", False), ("radar_store", True)])
def test_scene_has_north_up(which: str, south_first: bool, request: pytest.FixtureRequest) -> None:
    cube = store.open_cube(request.getfixturevalue(which))
    assert bool(cube["latitude"].values[0, 1, 0] > cube["latitude"].values[0, 0, 0]) == south_first
    axes = plot.scene(cube).axes[0]
    row, latitude = axes.images[-1].get_extent()[3], axes.get_ylim()
    assert row == 0
    assert latitude == ((0, 96) if south_first else (96, 0))


@pytest.mark.parametrize("which", ["larc_store", "radar_store"])
def test_scene_hatches_exactly_what_lies_outside_the_source(
    which: str, request: pytest.FixtureRequest
) -> None:
    cube = store.open_cube(request.getfixturevalue(which))
    figure = plot.scene(cube)
    outside = np.ones((cube.sizes["y"], cube.sizes["x"]), int)
    # Windows of GridRad start on a lattice that all scenes share, so there is padding before the scene too.
    y, x = -int(cube["y_origin"][0]), -int(cube["x_origin"][0])
    assert (y > 0) == (which == "radar_store")
    outside[y : y + SHAPE[0], x : x + SHAPE[1]] = 0
    hatched = np.zeros_like(outside)
    for patch in figure.axes[0].patches:
        assert patch.get_hatch() == PADDING["hatch"]
        left, top, width, height = (int(n) for n in patch.get_bbox().bounds)
        hatched[top : top + height, left : left + width] += 1
    np.testing.assert_array_equal(hatched, outside)
    assert "padding, outside the scene" in legend_texts(figure)


@pytest.mark.parametrize("format", ["larc-goes", "gridrad-v4.2"])
def test_crops_puts_every_crop_of_a_scene_in_its_place(tmp_path: Path, format: str) -> None:
    write_sources(tmp_path / "sources", scenes=1, shape=(100, 150), format=format)
    channel = IR if format == "larc-goes" else RADAR
    tile = TileSpec(crop=(64, 64), patch=32, placement="tiles")
    pipeline.preprocess(
        tmp_path / "sources", tmp_path / "c.zarr", recipe=Recipe(channels=(channel,), tile=tile)
    )
    cube = store.open_cube(tmp_path / "c.zarr")
    figure = plot.crops(cube, 1)
    axes = figure.axes[0]
    images = axes.images[1::2]
    assert len(images) == cube.sizes["crop"]
    for crop, image in enumerate(images):
        y, x = (int(cube[f"{a}_origin"][crop]) for a in "yx")
        assert image.get_extent() == [x, x + 64, y + 64, y]
        values = cube[channel].values[crop]
        known = values[values > -90]
        np.testing.assert_array_equal(image.get_array().compressed(), known)
    outlines = sorted((p for p in axes.patches if not p.get_fill()), key=lambda p: p.get_zorder())
    assert outlines[-1].get_edgecolor() == to_rgba(canvas.BLUE)
    assert outlines[-1].get_xy() == (int(cube["x_origin"][1]), int(cube["y_origin"][1]))
    assert sorted(t.get_text() for t in axes.texts) == sorted(str(i) for i in range(cube.sizes["crop"]))
    latitude, longitude = pixel_axes(tmp_path / "c.zarr")
    for axis, pixels, letters in ((axes.yaxis, latitude, "NS"), (axes.xaxis, longitude, "EW")):
        for place, text in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
            size, letter = text.get_text().split("°")
            degree = float(size) * (1 if letter == letters[0] else -1)
            assert place == pytest.approx((degree - pixels[0]) / (pixels[1] - pixels[0]) + 0.5, abs=0.02)
    assert (axes.get_ylim()[0] < axes.get_ylim()[1]) == (latitude[0] < latitude[1])
    png(figure)


def test_crops_needs_the_store_of_the_dataset(larc: xr.Dataset) -> None:
    loose = larc.copy()
    loose.encoding = {}
    with pytest.raises(SchemaError, match="does not know its store"):
        plot.crops(loose)


def test_scene_without_missing_pixels_does_not_explain_them() -> None:
    latitude, longitude = np.mgrid[40:36:-1, -100:-94:1].astype(float)
    assert legend_texts(plot.scene(fake(latitude, longitude))) == []


def test_scene_hatches_patches_of_padding() -> None:
    latitude, longitude = np.mgrid[40:36:-1, -100:-94:1].astype(float)
    latitude[:, -1] = longitude[:, -1] = np.nan
    cube = fake(latitude, longitude)
    cube[f"{RADAR}_flags"][0, :, -1] = int(Flag.padding)
    axes = plot.scene(cube).axes[0]
    boxes = [p.get_bbox().bounds for p in axes.patches if p.get_hatch() == PADDING["hatch"]]
    assert boxes == [(80, 0, 16, 64)]


def test_scene_without_a_known_source_finds_the_cut_of_even_centres_only() -> None:
    latitude, longitude = np.mgrid[40:36:-1, -100:-94:1].astype(float)
    cut = longitude.copy()
    cut[:, -1] -= 0.25  # half of the last patch is inside: its center lies a quarter nearer
    assert canvas.inside(fake(latitude, cut).isel(crop=0)) == ((0, 4), (0, pytest.approx(5.5)))
    np.testing.assert_allclose(canvas.positions(fake(latitude, cut).isel(crop=0))[1], longitude)
    cut[:, 0] += 0.375
    assert canvas.inside(fake(latitude, cut).isel(crop=0))[1] == (pytest.approx(0.75), pytest.approx(5.5))
    np.testing.assert_allclose(canvas.positions(fake(latitude, cut).isel(crop=0))[1], longitude)
    mercator = np.cumsum(np.array([0, 1, 1.02, 1.05, 1.09, 1.08]))[None] + np.zeros((4, 1))
    assert canvas.inside(fake(latitude, mercator).isel(crop=0)) == ((0, 4), (0, 6))


def test_scene_says_that_a_channel_is_absent(larc: xr.Dataset) -> None:
    night = plot.scene(larc, 2, channel=VIS)
    assert "visible reflectance is absent from this scene" in [t.get_text() for t in night.axes[0].texts]
    day = plot.scene(larc, 0, channel=VIS)
    assert not any("absent" in t.get_text() for t in day.axes[0].texts)


def test_scene_draws_the_altitude_that_a_label_names_and_no_other(radar: xr.Dataset) -> None:
    by_label = plot.scene(radar, channel="reflectivity@3.0km")
    lowest = plot.scene(radar, channel="reflectivity")
    assert by_label.get_suptitle().startswith("Radar reflectivity at 3.0 km (dBZ), ")
    assert by_label.get_suptitle() == lowest.get_suptitle()
    with pytest.raises(SchemaError, match=r"no channel 'reflectivity@17\.4km'; expected some of"):
        plot.scene(radar, channel="reflectivity@17.4km")


def test_scene_draws_meridians_where_the_grid_is_curved() -> None:
    row, col = np.mgrid[0:6, 0:8]
    x, y = (col - 3.5) * 300.0, (row + 4) * 250.0
    latitude = 90 - np.hypot(x, y) / 111
    longitude = (np.rad2deg(np.arctan2(x, y)) + 360) % 360 - 180
    cube = fake(latitude, longitude)
    figure = plot.scene(cube)
    axes = figure.axes[0]
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    texts = {t.get_text() for t in axes.texts}
    assert "75°N" in texts
    assert {"160°E", "160°W"} <= texts
    assert "padding, outside the scene" not in legend_texts(figure)


def test_scene_ticks_run_across_the_date_line() -> None:
    latitude, longitude = np.mgrid[60:52:-1, 170:190:2].astype(float)
    axes = plot.scene(fake(latitude, (longitude + 180) % 360 - 180)).axes[0]
    texts = [t.get_text() for t in axes.xaxis.get_majorticklabels()]
    assert texts[texts.index("178°E") :][:3] == ["178°E", "180°", "178°W"]


def test_scene_shows_radar_states_apart(radar: xr.Dataset, radar_store: Path) -> None:
    figure = plot.scene(radar, channel=RADAR)
    codes = store.open_packed(radar_store)[RADAR].values[0]
    states = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(states == 0, codes == 0)
    np.testing.assert_array_equal(states == 1, codes == 1)
    image = figure.axes[0].images[1]
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), codes < 16)
    assert image.get_array().min() > -30
    np.testing.assert_array_equal(states == 2, (codes == 2) | (codes == 3))
    states_there = ["not observed", "observed, no echo", "echo removed by QC"]
    assert legend_texts(figure) == [*states_there, "padding, outside the scene"]


def test_scene_takes_packed_cubes_too(radar: xr.Dataset, radar_store: Path) -> None:
    packed = plot.scene(store.open_packed(radar_store), channel=RADAR)
    decoded = plot.scene(radar, channel=RADAR)
    arrays = [f.axes[0].images[1].get_array() for f in (packed, decoded)]
    np.testing.assert_array_equal(arrays[0].filled(0), arrays[1].filled(0))


def test_removed_echo_is_a_state_of_its_own() -> None:
    packing = CHANNELS[RADAR].packing
    values = packing.decode(np.array([[0, 1, 2], [3, 16, 9000]], np.uint16))
    _, grid = canvas.new_figure(1, 1)
    _, handles = canvas.draw_field(grid[0, 0], values, CHANNELS[RADAR])
    assert grid[0, 0].images[0].get_array().tolist() == [[0, 1, 2], [2, 3, 3]]
    assert [h.get_label() for h in handles] == ["not observed", "observed, no echo", "echo removed by QC"]


def test_states_follow_the_packing_of_the_store() -> None:
    latitude, longitude = np.mgrid[40:37:-1, -100:-96:1].astype(float)
    cube = fake(latitude, longitude, name="precipitation_rate", values=0.0)
    cube["precipitation_rate"][0, 0, 0] = 0.1
    attributes = {"scale_factor": 0.1, "add_offset": 0.0, "no_echo_code": 0, "echo_minimum_code": 1}
    about = {"dtype": "int16", "attributes": attributes}
    cube.attrs["gridrad_cube"] = {"channels": {"precipitation_rate": about}}
    image = plot.scene(cube).axes[0].images[1]
    assert image.get_array().count() == 1
    assert isinstance(image.norm, LogNorm)
    about["attributes"] = {"scale_factor": 0.1, "add_offset": 0.0}  # zero is a value like any other
    assert plot.scene(cube).axes[0].images[1].get_array().count() == cube["precipitation_rate"].size


def test_colors_of_states_are_in_no_color_map() -> None:
    for channel in CHANNELS.values():
        colors = canvas._color_map(channel)(np.linspace(0, 1, 256))[:, :3]
        for state in (
            canvas._NOT_OBSERVED,
            *((canvas._NO_ECHO, canvas._REMOVED) if channel.has_echo else ()),
        ):
            assert np.abs(colors - to_rgb(state)).max(axis=1).min() > 0.05, channel.name


def test_infrared_turns_to_color_at_cold_tops() -> None:
    channel = CHANNELS[IR]
    scale, colors = canvas._color_scale(channel), canvas._color_map(channel)
    red, green, blue, _ = colors(float(scale(241.0)))
    assert red == green == blue
    red, green, blue, _ = colors(float(scale(239.0)))
    assert blue > green + 0.2
    assert colors(float(scale(310.0)))[0] < colors(float(scale(250.0)))[0]


def test_scene_refuses_what_the_cube_lacks(larc: xr.Dataset, radar: xr.Dataset) -> None:
    with pytest.raises(SchemaError, match=r"no channel 'rain'; expected some of \['ir_bright"):
        plot.scene(larc, channel="rain")
    with pytest.raises(SchemaError, match="no crop 3; expected 0 to 2"):
        plot.scene(larc, 3)
    with pytest.raises(SchemaError, match="no crop -1"):
        plot.flags(larc, -1)
    with pytest.raises(SchemaError, match="no channel in this dataset; expected a cube"):
        plot.scene(xr.Dataset())
    failed = larc.assign_coords(status=("crop", np.array([0, 2, 0], np.uint8)))
    with pytest.raises(SchemaError, match=r"crop 1 of .*\.NC was not written|crop 1 of .* was not written"):
        plot.scene(failed, 1)


# flags


def badges_of(figure: Figure) -> dict[str, list[tuple[float, float, float, float]]]:
    """Boxes of the badges by color."""
    out: dict[str, list[tuple[float, float, float, float]]] = {}
    for collection in figure.axes[0].collections:
        if isinstance(collection, PatchCollection):
            boxes = [p.get_extents().bounds for p in collection.get_paths()]
            out[str(to_rgba(collection.get_facecolor()[0]))] = boxes
    return out


def test_flags_counts_every_flag_of_the_crop(larc: xr.Dataset) -> None:
    figure = plot.flags(larc, channel=VIS)
    bits = larc[f"{VIS}_flags"].values[0]
    reject = int(default_reject("visible"))
    side = [t.get_text() for t in figure.axes[1].texts]
    assert f"Rejected in training: {int(((bits & reject) != 0).sum())} of 15" in side
    assert f"Other flags; clean patches: {int(((bits & reject) == 0).sum())}" in side
    drawn = badges_of(figure)
    for flag, (letters, color) in _BADGES.items():
        count = int(((bits & flag) != 0).sum())
        name = str(flag.name).replace("_", " ")
        assert (f"{name}: {count}" in side) == (count > 0)
        assert (letters in side) == (count > 0)
        assert len(drawn.get(str(to_rgba(color)), [])) == count
    assert figure.get_suptitle() == "Flags of visible reflectance, 2021-07-05 18:00 UTC"
    assert len(figure.axes) == 2


def test_flags_veils_what_training_rejects(larc: xr.Dataset) -> None:
    bits = larc[f"{VIS}_flags"].values[0]
    figure = plot.flags(larc, channel=VIS)
    veils = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_alpha() is not None]
    cells = {(round(p.get_y() / PATCH), round(p.get_x() / PATCH)) for p in veils}
    assert cells == {tuple(c) for c in np.argwhere(bits & int(default_reject("visible"))).tolist()}
    assert "veiled: rejected in training" in legend_texts(figure)


@pytest.mark.parametrize("south_first", [False, True])
def test_all_flags_of_one_patch_have_places_of_their_own_inside_it(south_first: bool) -> None:
    latitude, longitude = np.mgrid[40:36:-1, -100:-94:1].astype(float)
    cube = fake(latitude[::-1] if south_first else latitude, longitude)
    cube[f"{RADAR}_flags"][0, 2, 3] = sum(int(f) for f in Flag)
    figure = plot.flags(cube)
    boxes = [box for group in badges_of(figure).values() for box in group]
    assert len(boxes) == len(_BADGES) == len(Flag)
    for i, (x, y, width, height) in enumerate(boxes):
        assert x >= 48
        assert x + width <= 64
        assert y >= 32
        assert y + height <= 48
        for a, b, across, down in boxes[:i]:
            assert x >= a + across or a >= x + width or y >= b + down or b >= y + height
    top = boxes[0][1]
    assert (top > 40) == south_first  # the first badge is in the upper left corner of the picture
    letters = [t.get_text() for t in figure.axes[0].texts]
    assert all(letters.count(code) == 1 for code, _ in _BADGES.values())


def test_badges_differ_in_letters_and_colors() -> None:
    assert set(_BADGES) == set(Flag)
    assert len({letters for letters, _ in _BADGES.values()}) == len(_BADGES)
    assert len({color for _, color in _BADGES.values()}) == len(_BADGES)


def test_flags_of_an_absent_channel(larc: xr.Dataset) -> None:
    figure = plot.flags(larc, 2, channel=VIS)
    assert "channel absent: 15" in [t.get_text() for t in figure.axes[1].texts]
    assert "none" in [t.get_text() for t in figure.axes[1].texts]
    assert "visible reflectance is absent from this scene" in [t.get_text() for t in figure.axes[0].texts]


# training statistics and curves


def test_statistics_draws_the_histogram_of_each_channel(larc: xr.Dataset) -> None:
    figure = plot.statistics(larc)
    found = store.store_info(larc)["training_statistics"]
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == len(found) == 2
    for ax, (label, numbers) in zip(shown, found.items(), strict=True):
        steps = next(p for p in ax.patches if isinstance(p, StepPatch)).get_data()
        counts = np.array(numbers["histogram"])
        np.testing.assert_allclose(steps.values, 100 * counts / counts.sum())
        assert (steps.edges[0], steps.edges[-1]) == CHANNELS[label].typical_range == ax.get_xlim()
        assert f"{numbers['patches']} clean patches" in ax.get_title(loc="left")
        assert f"mean {numbers['mean']:.4g} (line)" in ax.get_title(loc="left")
    assert shown[0].get_xlabel() == "Infrared brightness temperature (K)"


def test_statistics_of_rain_is_on_a_logarithmic_scale_and_may_be_empty() -> None:
    numbers = {"patches": 1, "mean": 2.0, "std": 1.0, "minimum": 0.1, "maximum": 9.0, "histogram": [9, 1]}
    nothing = dict.fromkeys(("mean", "std", "minimum", "maximum", "histogram")) | {"patches": 0}
    found = {"precipitation_rate": numbers, IR: nothing}
    rain, empty, *_ = plot.statistics(xr.Dataset(attrs={"gridrad_cube": {"training_statistics": found}})).axes
    assert rain.get_yscale() == "log"
    assert rain.get_xlabel() == "Precipitation rate (mm h⁻¹)"
    assert [t.get_text() for t in empty.texts] == ["no clean pixel"]


def test_statistics_needs_the_attributes_of_a_cube() -> None:
    with pytest.raises(SchemaError, match="no training statistics among the attributes"):
        plot.statistics(xr.Dataset())


def write_run(folder: Path, steps: range, prototypes: float, **more: float) -> Path:
    folder.mkdir()
    records = [
        {"step": s, "train_loss": 5 - s / 10, "train_lr": 1e-3, "teacher_entropy": 3.0, "feature_std": 0.7,
         "teacher_kl_to_uniform": np.log(prototypes) - 3.0, "rankme": 10.0, "images_per_second": 50.0,
         "probe_retrieval": 0.3 + s / 100, "probe_baseline": 0.6, **more}
        for s in steps
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_curves_draws_every_record_of_every_run(tmp_path: Path) -> None:
    runs = {
        "one": write_run(tmp_path / "a", range(1, 6), 1024),
        "two": write_run(tmp_path / "b", range(2, 9), 256),
    }
    figure = plot.curves(runs)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list(charts._CURVES.values())
    loss = figure.axes[0]
    lines = {line.get_label(): line for line in loss.get_lines()}
    np.testing.assert_array_equal(lines["one"].get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(lines["two"].get_ydata(), 5 - np.arange(2, 9) / 10)
    assert lines["one: ln K = 6.93"].get_ydata()[0] == pytest.approx(np.log(1024))
    assert lines["two: ln K = 5.55"].get_ydata()[0] == pytest.approx(np.log(256))
    assert legend_texts(figure) == ["one", "one: ln K = 6.93", "two", "two: ln K = 5.55"]
    assert figure.axes[3].get_ylim()[0] == 0
    probe = figure.axes[list(charts._CURVES).index("probe_retrieval")]
    assert [line.get_ydata()[0] for line in probe.get_lines()] == pytest.approx([0.31, 0.6, 0.32, 0.6])
    assert all(ax.get_xlabel() == "step" for ax in shown)


def test_curves_of_one_run_need_no_name_at_ln_k(tmp_path: Path) -> None:
    figure = plot.curves(write_run(tmp_path / "256", range(1, 4), 1024))
    assert legend_texts(figure) == ["256", "ln K = 6.93"]


def test_curves_takes_one_folder_and_leaves_out_what_was_not_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "train_loss": 2.0}\n{"step": 2, "train_loss": 1.0}\n{"st'
    )
    figure = plot.curves(folder)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == ["Training loss"]
    assert legend_texts(figure) == ["run"]
    assert [line.get_marker() for line in shown[0].get_lines()] == ["o"]  # two records would hardly be seen


def test_curves_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no metrics\.jsonl; expected the folder of a training run"):
        plot.curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"st\n{"step": 2}\n')
    with pytest.raises(SchemaError, match="line 1 is not JSON"):
        plot.curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SchemaError, match="no metrics yet"):
        plot.curves(tmp_path)


# likeness


@pytest.fixture
def searched(radar: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    embeddings = embed(radar, RADAR)
    return embeddings, query.search(embeddings, (0, 1, 1), 4, exclude=None, reject=())


def panels_of(figure: Figure) -> list[np.ma.MaskedArray]:
    """Pixels of the panels, the query's first, as they lie on the screen."""
    return [ax.images[-1].get_array() for ax in figure.axes if len(ax.images) == 2]


def test_query_reads_the_patches_with_north_up(
    radar: xr.Dataset, searched: tuple[xr.Dataset, xr.Dataset]
) -> None:
    answer = searched[1]
    figure = plot.query(radar, answer)
    asked = [(0, 1, 1), *zip(*(answer[n].values.tolist() for n in ("crop", "row", "col")), strict=True)]
    for pixels, (crop, row, col) in zip(panels_of(figure), asked, strict=True):
        y, x = (slice(i * PATCH, (i + 1) * PATCH) for i in (row, col))
        first = [int(radar[f"{a}_origin"][crop]) for a in "yx"]  # padding is left out
        y, x = (
            slice(max(w.start, -o), min(w.stop, n - o)) for w, o, n in zip((y, x), first, SHAPE, strict=True)
        )
        values = radar[RADAR].values[crop, y, x][::-1]  # rows run from south to north in the store
        np.testing.assert_array_equal(pixels.filled(0), np.where(values > -90, values, 0))


def test_query_has_one_color_scale_and_a_panel_for_each(
    radar: xr.Dataset, searched: tuple[xr.Dataset, xr.Dataset]
) -> None:
    answer = searched[1]
    figure = plot.query(radar, answer, marks=[False, True, False, True], marks_text="planted")
    panels = [ax for ax in figure.axes if len(ax.images) == 2]
    assert len(panels) == 5
    assert {ax.images[1].get_clim() for ax in panels} == {CHANNELS[RADAR].typical_range}
    assert panels[0].get_title().startswith("query\n")
    assert panels[2].get_title().startswith(f"2: score {float(answer['score'][1]):.3f}")
    framed = [ax.spines["left"].get_linewidth() > 1 for ax in panels]
    assert framed == [True, False, True, False, True]
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert {"Where they are", "When they are"} <= set(titles)
    assert [ax.get_ylabel() for ax in figure.axes].count("Column maximum reflectivity (dBZ)") == 1
    assert {"answer", "answer, planted", "query", "crops of the store"} <= set(legend_texts(figure))
    for title in ("Where they are", "When they are"):
        texts = figure.axes[titles.index(title)].texts
        assert sorted(n for t in texts for n in t.get_text().split(", ")) == ["1", "2", "3", "4"]
    with pytest.raises(SchemaError, match="got 2 marks for 4 answers; expected one for each"):
        plot.query(radar, answer, marks=[True, False])


def test_query_draws_no_more_than_fit_and_goes_on_across_the_date_line(larc: xr.Dataset) -> None:
    east = larc.assign_coords(longitude=(larc["longitude"] + 278) % 360 - 180)  # 177 E to 173 W
    answer = query.search(embed(east, IR), (0, 1, 1), 12, exclude=None, reject=())
    figure = plot.query(east, answer)
    assert len(panels_of(figure)) == 10
    where = next(ax for ax in figure.axes if ax.get_title(loc="left") == "Where they are")
    west, east_edge = where.get_xlim()
    assert east_edge - west < 40  # the date line lies between query and answers, not the whole Earth


def test_query_refuses_a_search_by_vector(radar: xr.Dataset, searched: tuple[xr.Dataset, xr.Dataset]) -> None:
    answer = query.search(searched[0], np.ones(16), 2, reject=())
    with pytest.raises(SchemaError, match="the query of this answer is not a sample of the store"):
        plot.query(radar, answer)


def test_query_of_whole_crops_and_of_examples(larc: xr.Dataset) -> None:
    patches = embed(larc, IR)
    crops = patches.assign(embedding=patches["embedding"].isel(row=0, col=0))
    crops.attrs["gridrad_cube"] = store.store_info(crops) | {"level": "2k"}
    answer = query.search(crops, (0,), 2, exclude=None, reject=())
    found = panels_of(plot.query(larc, answer))
    for pixels, crop in zip(found, [0, *answer["crop"].values], strict=True):
        values = larc[IR].values[crop]
        np.testing.assert_array_equal(pixels.compressed(), values[np.isfinite(values)])
    examples = {"positive": [(1, 0, 2), (0, 1, 1)], "negative": []}
    several = query.search(patches, examples, 2, exclude=None, reject=())
    figure = plot.query(larc, several)
    assert figure.axes[0].get_title().startswith("query: first of 2 examples")
    np.testing.assert_array_equal(
        panels_of(figure)[0].filled(0), np.nan_to_num(larc[IR].values[1, :PATCH, 64:96])
    )


@pytest.mark.parametrize("which", ["larc_store", "radar_store"])
def test_map_outlines_crops_where_their_scene_is(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    rings = list(neighbors._outlines(store.open_cube(path)))
    assert len(rings) == 1  # all crops lie at the same place
    for ring, pixels in zip(rings[0], pixel_axes(path), strict=True):
        half = abs(pixels[1] - pixels[0]) / 2
        assert ring.max() == pytest.approx(pixels.max() + half, abs=1e-6)
        assert ring.min() == pytest.approx(pixels.min() - half, abs=1e-6)


def test_map_fills_outlines_and_names_them_once(searched: tuple[xr.Dataset, xr.Dataset]) -> None:
    latitude, longitude = np.mgrid[40:36:-1, -100:-94:1].astype(float)
    two = xr.concat([fake(latitude, longitude), fake(latitude + 10, longitude)], "crop")
    figure, grid = canvas.new_figure(1, 1)
    neighbors._draw_map(grid[0, 0], searched[1], (38.0, -97.0), [False] * 4, "", two)
    assert len(grid[0, 0].patches) == 2
    _, labels = grid[0, 0].get_legend_handles_labels()
    assert labels.count("crops of the store") == 1
    png(figure)


def test_numbers_keep_clear_of_each_other_and_of_points() -> None:
    figure, grid = canvas.new_figure(1, 1, figsize=(6, 5))
    axes = grid[0, 0]
    axes.set(xlim=(0, 100), ylim=(0, 100))
    places = [(50, 50), (50, 50), (53, 50), (50, 53), (53, 53), (20, 20)]
    neighbors._write_numbers(axes, [(x, y, str(i + 1), "black") for i, (x, y) in enumerate(places)])
    png(figure)
    assert "1, 2" in [t.get_text() for t in axes.texts]
    boxes = [t.get_window_extent() for t in axes.texts]
    dots = axes.transData.transform(places)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*dot) for dot in dots)


def test_embeddings_gives_like_cells_like_colors(larc: xr.Dataset) -> None:
    embeddings = embed(larc, IR)
    values = embeddings["embedding"].values
    values[0, 0, 0, 0] = values[0, 0, 2, 3]
    values[0, 0, 1, 1] = np.nan
    colors = plot.embeddings(embeddings).axes[0].images[0].get_array()
    assert colors.shape == (3, 5, 4)
    np.testing.assert_array_equal(colors[0, 0], colors[2, 3])
    assert colors[1, 1, 3] == 0
    assert np.delete(colors[..., 3].ravel(), 6).tolist() == [1.0] * 14
    assert colors[..., :3].std(axis=(0, 1)).min() > 0.02


def test_embeddings_explains_its_colors_and_marks_rejected_patches(larc: xr.Dataset) -> None:
    embeddings = embed(larc, IR)
    bits = embeddings["flags"].values[0, 0]
    bits[0, 1] |= int(Flag.constant)
    embeddings["embedding"].values[0, 0, 2, 0] = np.nan
    figure = plot.embeddings(embeddings, channel=IR)
    assert len(figure.axes) == 1
    vectors = embeddings["embedding"].values.reshape(-1, 16).astype(np.float64)
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    squares = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    share = f"lightness: PC 1 ({100 * squares[0] / squares.sum():.0f} %)"
    assert any(t.get_text().startswith(share) for t in figure.texts)
    crosses = figure.axes[0].get_lines()[0]
    rejected = np.argwhere(bits & int(default_reject("infrared")))
    np.testing.assert_allclose(np.sort(crosses.get_xdata()), np.sort((rejected[:, 1] + 0.5) * PATCH))
    assert legend_texts(figure) == ["no embedding", "rejected in training"]


def test_embeddings_stands_beside_the_field(larc: xr.Dataset) -> None:
    figure = plot.embeddings(embed(larc, IR), 1, cube=larc)
    cells, field, _ = figure.axes
    assert [t.get_text() for t in cells.get_xticklabels()] == [t.get_text() for t in field.get_xticklabels()]
    for axis in ("get_xticks", "get_yticks", "get_xlim", "get_ylim"):
        np.testing.assert_allclose(getattr(cells, axis)(), getattr(field, axis)())
    values = larc[IR].values[1]
    assert field.images[-1].get_array().count() == np.isfinite(values).sum()


def test_embeddings_of_overlapping_patches_lie_on_their_pixels(larc: xr.Dataset) -> None:
    fine = np.concatenate([larc[IR + "_mean"].values] * 2, axis=2)[:, :, :9].repeat(2, axis=1)[:, :5]
    overlapping = xr.Dataset(
        {"embedding": (("crop", "channel", "row", "col", "feature"), np.stack([fine, fine**2], -1)[:, None])},
        coords={"time": larc["time"], "channel": [IR]},
        attrs={"gridrad_cube": {**store.store_info(larc), "kind": "embeddings", "stride": PATCH // 2}},
    )
    for name in ("latitude", "longitude"):
        every = np.repeat(np.repeat(larc[name].values, 2, 1)[:, :5], 2, 2)[:, :, :9]
        overlapping = overlapping.assign_coords({name: (("crop", "row", "col"), every)})
    overlapping["embedding"] = overlapping["embedding"].fillna(0.0)
    cells, field, _ = plot.embeddings(overlapping, 1, cube=larc).axes
    assert cells.get_xlim() == field.get_xlim() == (0, 5 * PATCH)
    left, right, bottom, top = cells.images[0].get_extent()
    assert (left, right, top, bottom) == (PATCH / 4, 4.75 * PATCH, PATCH / 4, 2.75 * PATCH)
    for axes in (cells, field):  # the numbers of --like CROP,ROW,COL, in both panels
        assert {"8"} == {t.get_text() for t in axes.texts if t.xy[0] == 4.5 * PATCH}


def test_maps_draw_into_the_axes_of_a_caller(larc: xr.Dataset) -> None:
    figure = Figure(layout="constrained")
    panels = figure.subplots(2, 2)
    assert plot.scene(larc, 1, ax=panels[0, 0]) is figure
    plot.crops(larc, 1, ax=panels[0, 1])
    plot.flags(larc, 1, ax=panels[1, 0])
    plot.embeddings(embed(larc, IR), 1, ax=panels[1, 1])
    titles = [ax.get_title(loc="left") for ax in panels.flat]
    assert all(title.endswith("2021-07-06 00:00 UTC") for title in titles)
    assert all(ax.images and ax.get_legend() for ax in panels.flat)
    png(figure)


def test_embeddings_do_not_depend_on_the_crop_that_is_drawn(larc: xr.Dataset) -> None:
    embeddings = embed(larc, IR)
    embeddings["embedding"].values[1] = embeddings["embedding"].values[0]
    first, second = (plot.embeddings(embeddings, i).axes[0].images[0].get_array() for i in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_embeddings_of_a_composite_channel_draw_its_first_field(radar: xr.Dataset) -> None:
    embeddings = embed(radar, RADAR)
    embeddings = embeddings.assign_coords(channel=["stack"], variable=("channel", [f"{RADAR}+reflectivity"]))
    figure = plot.embeddings(embeddings, cube=radar)
    assert figure.axes[2].get_ylabel() == "Column maximum reflectivity (dBZ)"
    assert any(t.get_text().startswith("stack; ") for t in figure.texts)


def test_embeddings_refuses_what_has_no_grid_of_embeddings(larc: xr.Dataset) -> None:
    embeddings = embed(larc, IR)
    with pytest.raises(SchemaError, match="got embeddings of whole crops; expected one a patch"):
        plot.embeddings(embeddings.isel(row=0, col=0))
    with pytest.raises(SchemaError, match=r"no channel 'x'; expected some of \['ir_"):
        plot.embeddings(embeddings, channel="x")
    with pytest.raises(SchemaError, match="no channel 1; expected some of"):
        plot.embeddings(embeddings, channel=1)
    with pytest.raises(SchemaError, match="no crop 9; expected 0 to 2"):
        plot.embeddings(embeddings, 9)
    with pytest.raises(SchemaError, match="no embedding of ir_brightness_temperature is finite"):
        plot.embeddings(embeddings.assign(embedding=embeddings["embedding"] * np.nan))


def test_lab_colors_match_known_ones() -> None:
    # Grey of CIE lightness 56 is sRGB 0.527 (134.4 of 255).
    np.testing.assert_allclose(_lab_to_rgb(np.array([0.5, 0.5, 0.5])), 0.5271, atol=2e-3)
    dark, light = _lab_to_rgb(np.array([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]]))
    assert dark.max() < 0.25
    assert light.min() > 0.85
    blue, yellow = _lab_to_rgb(np.array([[0.5, 0.0, 0.5], [0.5, 1.0, 0.5]]))
    assert blue[2] > blue[0] + 0.2
    assert yellow[0] > yellow[2] + 0.2


# attention


def attention_maps(
    cube: xr.Dataset, sample: tuple[int, ...], shape: tuple[int, int], channel: str
) -> xr.Dataset:
    """Maps of one sample as `gridrad_cube.embedding.attention` gives them."""
    values = np.random.default_rng(0).random((1, 3, *shape)).astype(np.float32)
    dims = ("token_y", "token_x") if len(sample) == 3 else ("row", "col")
    names = ("crop", "row", "col")[: len(sample)]
    coords = {n: ("sample", [i]) for n, i in zip(names, sample, strict=True)}
    coords |= {"channel": ("sample", [channel]), "time": ("sample", cube["time"].values[[sample[0]]])}
    return xr.Dataset({"attention": (("sample", "head", *dims), values / values.sum() / 2)}, coords=coords)


@pytest.mark.parametrize("which", ["larc", "radar"])
def test_attention_draws_field_mean_and_heads_on_one_scale(
    which: str, request: pytest.FixtureRequest
) -> None:
    cube = request.getfixturevalue(which)
    channel = IR if which == "larc" else RADAR
    figure = plot.attention(attention_maps(cube, (0, 1, 2), (4, 4), channel), cube=cube)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert {"mean of the heads", "head 0", "head 1", "head 2"} <= set(titles)
    drawn = [ax.images[0] for ax in figure.axes if ax.get_title(loc="left").startswith(("head", "mean"))]
    assert len({i.get_clim() for i in drawn}) == 1
    assert all(i.get_array().mean() == pytest.approx(1, abs=0.3) for i in drawn[1:])
    field = figure.axes[0]
    values = cube[channel].values[0, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH]
    np.testing.assert_array_equal(field.images[-1].get_array().compressed(), values[values > -90])
    south_first = which == "radar"
    assert (field.get_ylim()[0] < field.get_ylim()[1]) == south_first
    # Ticks of the patch stand where those of the pixels are.
    pixels = pixel_axes(request.getfixturevalue(f"{which}_store"))[0]
    origin = int(cube["y_origin"][0]) + PATCH
    for place, text in zip(field.get_yticks(), field.get_yticklabels(), strict=True):
        degree = float(text.get_text().split("°")[0])
        expected = (degree - pixels[0]) / (pixels[1] - pixels[0]) + 0.5 - origin
        assert place == pytest.approx(expected, abs=0.5)
    assert field.get_yticks().size
    png(figure)


def test_attention_of_a_crop_and_without_a_cube(larc: xr.Dataset) -> None:
    figure = plot.attention(attention_maps(larc, (1,), (3, 5), IR), cube=larc)
    values = larc[IR].values[1]
    np.testing.assert_array_equal(
        figure.axes[0].images[-1].get_array().compressed(), values[np.isfinite(values)]
    )
    assert figure.axes[0].get_xticks().size
    png(plot.attention(attention_maps(larc, (1,), (3, 5), IR)))


def test_attention_refuses_what_has_no_maps(larc: xr.Dataset) -> None:
    maps = attention_maps(larc, (0, 1, 2), (4, 4), IR)
    with pytest.raises(SchemaError, match="these are not attention maps"):
        plot.attention(larc)
    with pytest.raises(SchemaError, match="no sample 1; expected 0 to 0"):
        plot.attention(maps, 1)
    with pytest.raises(SchemaError, match="attention of sample 0 is NaN"):
        plot.attention(maps * np.nan)


# evaluations


def judged() -> dict[str, object]:
    """An evaluation as JSON holds it: numbers of a retrieval and of a forecast, words of a probe."""

    def cell(
        value: float | None, low: float | None = None, high: float | None = None, words: str = ""
    ) -> dict[str, object]:
        return {
            "value": value,
            "low": low,
            "high": high,
            "cases": 50,
            "blocks": 9,
            "words": words,
            "more": {},
        }

    def row(section: str, question: str, cells: dict[str, object]) -> dict[str, object]:
        return {"section": section, "question": question, "measure": "m", "better": "higher",
                "cells": cells, "gain": None, "baseline": ""}  # fmt: skip

    return {
        "about": {"stores": ["a/e.zarr"], "channel": IR, "level": "256", "samples": "9", "days": "9"},
        "chosen": "", "notes": [],
        "rows": [
            row("retrieval", "same place after 30min",
                {"embedding": cell(0.5, 0.4, 0.6), "histogram": cell(0.2, 0.1, 0.3)}),
            row("probe", "minimum", {"embedding": cell(None, words="too few days")}),
            row("probe", "maximum", {"embedding": cell(-3.0, -5.0, 0.4), "histogram": cell(0.9, 0.8, 0.95)}),
            row("forecast", "minimum after 30min",
                {"embedding": cell(0.5, 0.4, 0.6), "persistence": cell(0.3, 0.2, 0.4)}),
        ],
    }  # fmt: skip


def test_evaluation_draws_numbers_with_intervals_and_words(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps(judged()))
    figure = plot.evaluation(path)
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    retrieval = next(ax for t, ax in panels.items() if t.startswith("Retrieval"))
    lines = [line.get_xdata() for line in retrieval.get_lines()]
    assert [0.4, 0.6] in [list(x) for x in lines]
    assert [0.5] in [list(x) for x in lines]
    probe = next(ax for t, ax in panels.items() if t.startswith("Probes: linear"))
    assert "too few days" in [t.get_text() for t in probe.texts]
    assert retrieval.get_xlim() == probe.get_xlim()  # all shares are on one scale
    assert probe.get_xlim()[0] > -0.6  # however bad a probe is
    assert any(list(line.get_xdata()) == [-0.5] and line.get_marker() == "<" for line in probe.get_lines())
    forecast = next(ax for t, ax in panels.items() if t.startswith("Forecasts: mean"))
    assert forecast.get_xlabel() == "R²"
    assert legend_texts(figure) == ["embedding", "histogram", "persistence"]
    png(figure)


def test_evaluation_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text("{}")
    with pytest.raises(SchemaError, match="this is not an evaluation"):
        plot.evaluation(path)
    path.write_text("nothing")
    with pytest.raises(SchemaError, match="not JSON"):
        plot.evaluation(path)


# the command line


def test_every_picture_has_a_command(larc_store: Path, tmp_path: Path) -> None:
    cube = store.open_cube(larc_store)
    embeddings = tmp_path / "embeddings.zarr"
    vectors = np.nan_to_num(embed(cube, IR)["embedding"].values[:, 0])
    write_embeddings(embeddings, larc_store, vectors, source=str(larc_store))
    maps, run, judgement = (
        tmp_path / "maps.zarr",
        write_run(tmp_path / "run", range(1, 4), 64),
        tmp_path / "e.json",
    )
    attended = attention_maps(cube, (0, 1, 2), (4, 4), IR)
    attended.assign_coords(channel=attended["channel"].astype(np.dtypes.StringDType())).to_zarr(
        maps, zarr_format=3
    )
    judgement.write_text(json.dumps(judged()))
    commands = {
        "source": [next((larc_store.parent / "sources").rglob("*.nc"))],
        "scene": [larc_store, "--crop", 1], "crops": [larc_store], "flags": [larc_store, "--channel", IR],
        "statistics": [larc_store], "curves": [run], "embeddings": [embeddings, "--cube", larc_store],
        "query": [embeddings, "--like", "0,1,1", "-k", 3, "--separate", "1h", "50km"],
        "attention": [maps, "--cube", larc_store], "evaluation": [judgement],
    }  # fmt: skip
    for name, arguments in commands.items():
        out = tmp_path / f"{name}.png"
        done = CliRunner().invoke(cli, ["plot", name, *map(str, arguments), "-o", str(out)])
        assert done.exit_code == 0, (name, done.output)
        assert done.output.strip().endswith(str(out))
        assert out.read_bytes().startswith(b"\x89PNG")
    assert set(commands) == set(cli.commands["plot"].commands)
    refused = CliRunner().invoke(cli, ["plot", "scene", str(larc_store), "--crop", "99"])
    assert refused.exit_code == 1
    assert "no crop 99" in refused.output


# words


@pytest.mark.parametrize(
    ("value", "letters", "text"),
    [(40.0, "NS", "40.0°N"), (-3.25, "NS", "3.2°S"), (0.0, "NS", "0.0°"), (-97.5, "EW", "97.5°W"),
     (190.0, "EW", "170.0°W"), (180.0, "EW", "180.0°"), (np.nan, "EW", "")],
)  # fmt: skip
def test_degrees_are_written_with_their_side(value: float, letters: str, text: str) -> None:
    assert canvas.degrees(value, letters) == text


def test_units_times_and_titles_are_written_for_reading() -> None:
    assert canvas.write_units("mm h-1") == "mm h⁻¹"
    assert canvas.write_units("degree km-1") == "degree km⁻¹"
    assert canvas.write_units("dBZ") == "dBZ"
    assert canvas.stamp(np.datetime64("2021-07-05T17:50:17")) == "2021-07-05 17:50 UTC"
    assert canvas.stamp(np.datetime64("NaT")) == "no time"
    assert canvas.title_of("reflectivity@3.0km", units=True) == "Radar reflectivity at 3.0 km (dBZ)"
    assert canvas.title_of(VIS, units=True) == "Visible reflectance"


@pytest.mark.parametrize(
    ("span", "most", "step"), [(41.0, 8, 10), (7.9, 8, 1), (0.3, 8, 0.05), (360.0, 8, 45)]
)
def test_steps_are_round(span: float, most: int, step: float) -> None:
    assert canvas.nice_step(span, most) == step


def test_large_scenes_are_thinned_but_keep_their_extent() -> None:
    values = np.full((1600, 3200), 250.0, np.float32)
    _, grid = canvas.new_figure(1, 1)
    image, _ = canvas.draw_field(grid[0, 0], values, CHANNELS[IR])
    assert image.get_array().shape == (800, 1600)
    assert image.get_extent() == [0, 3200, 1600, 0]
    assert not any(isinstance(c, PolyCollection) for c in grid[0, 0].collections)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --temporal", {"--temporal-positives"}),
        ("plot scene STORE --channel vis", {VIS}),
        ("train --store STORE --channels ir", {IR}),
        ("plot scene pat", {"pat"}),  # the shell completes folders
    ],
)
def test_the_shell_completes_options_channels_and_stores(
    line: str, expected: set[str], larc_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["gridrad-cube", *line.replace("STORE", str(larc_store)).split()]
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    complete = ShellComplete(cli, {}, "gridrad-cube", "_GRIDRAD_CUBE_COMPLETE")
    assert {item.value for item in complete.get_completions(words[1:-1], words[-1])} == expected
