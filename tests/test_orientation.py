"""Scenes lie north up and east right for networks and pictures, for any order of their files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from embedding_data import checkpoint_2k, checkpoint_of
from small_data import make_scene

from gridrad_cube import info, pipeline
from gridrad_cube.datasets import GridDataset, PatchDataset, WindowPairs
from gridrad_cube.embedding import attention, embed
from gridrad_cube.geometry import orientation, reverse
from gridrad_cube.models import load_checkpoint, save_checkpoint
from gridrad_cube.schema import Recipe, SchemaError, TileSpec
from gridrad_cube.store import NORTH_UP, Orientation, open_embeddings, open_packed
from gridrad_cube.training import train

IR, PATCH = "ir_brightness_temperature", 16
#: How files of one scene are written: rows and columns reversed, and a position for each pixel.
ORDERS = {
    "a": (False, False, False),
    "b": (True, False, False),
    "c": (False, True, False),
    "d": (True, True, True),
}


def write_orders(
    folder: Path, shape: tuple[int, int] = (64, 96), orders: str = "abcd", hours: int = 2
) -> None:
    """Write the same weather in several orders of rows and columns, a minute apart, some hours."""
    folder.mkdir(parents=True)
    for hour in range(hours):
        for minute, name in enumerate(orders):
            rows, columns, each = ORDERS[name]
            scene = make_scene(shape, seed=hour)
            time = scene["time"] + np.timedelta64(hour, "h") + np.timedelta64(minute, "m")
            scene = scene.assign_coords(time=time)
            if each:
                latitude, longitude = xr.broadcast(scene.latitude, scene.longitude)
                scene = scene.assign_coords(latitude=latitude, longitude=longitude)
            scene = scene.isel(
                y=slice(None, None, -1 if rows else 1), x=slice(None, None, -1 if columns else 1)
            )
            scene.to_netcdf(folder / f"{name}{hour}.nc")


def build(folder: Path, *, crop: tuple[int, int] | None = None, **options) -> Path:
    write_orders(folder / "sources", **options)
    tile = TileSpec(patch=PATCH, crop=crop, placement="tiles" if crop else "scene")
    report = pipeline.preprocess(folder / "sources", folder / "patches.zarr", recipe=Recipe(tile=tile))
    assert not report.failed, report
    return folder / "patches.zarr"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Scenes of 4 x 6 patches, two times in four orders."""
    return build(tmp_path_factory.mktemp("mixed"))


def vectors_of(store: Path) -> np.ndarray:
    """Embeddings (crop, row, col, feature), or (crop, feature), of the one channel."""
    return open_embeddings(store)["embedding"].values[:, 0].astype(np.float32)


def crops_of(store: Path | str, name: str) -> np.ndarray:
    opened = open_packed(store) if "patches" in str(store) else open_embeddings(store)
    return np.flatnonzero([str(source).startswith(name) for source in opened["source"].values])


# the rule


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("start", [-100.0, 178.0])
def test_orientation_of_axes(rows, columns, start):
    latitude = np.linspace(50, 40, 6)[:: -1 if rows else 1]
    longitude = (np.linspace(start, start + 8, 7)[:: -1 if columns else 1] + 180) % 360 - 180
    flips, known = orientation(latitude, longitude)
    assert flips.tolist() == [rows, columns]
    assert known.all()
    flips, known = orientation(latitude[:1], longitude)
    assert known.tolist() == [False, True]
    assert not flips[0]


@pytest.mark.parametrize("angle", np.arange(0, 360, 20))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_grids_are_never_mirrored_and_at_most_half_a_right_angle_off(angle, mirrored):
    y, x = np.meshgrid(np.arange(5.0), np.arange(6.0), indexing="ij")
    x = -x if mirrored else x
    turn = np.deg2rad(angle)
    latitude = 10 - 0.1 * (np.cos(turn) * y + np.sin(turn) * x)
    longitude = 20 + 0.1 * (np.cos(turn) * x - np.sin(turn) * y)
    flips, _ = orientation(latitude, longitude)
    latitude, longitude = (reverse(v[None].copy(), flips[None])[0] for v in (latitude, longitude))
    down, right = latitude[1, 0] - latitude[0, 0], longitude[0, 1] - longitude[0, 0]
    other = (latitude[0, 1] - latitude[0, 0]) * (longitude[1, 0] - longitude[0, 0])
    assert down * right - other < 0  # as a map seen from above
    assert right - down >= -1e-9


def test_hemisphere_around_a_pole_is_turned_crop_by_crop():
    x = np.linspace(-1, 1, 40)
    east, north = np.meshgrid(x, -x)
    latitude, longitude = 90 - 50 * np.hypot(east, north), np.rad2deg(np.arctan2(east, -north))
    assert not orientation(latitude[30:], longitude[30:])[0].any()
    assert orientation(latitude[:10], longitude[:10])[0].all()
    assert orientation(latitude[::-1][:10], longitude[::-1][:10])[0].tolist() == [True, False]


# data sets


def test_patches_of_the_same_weather_are_equal_in_every_order(mixed):
    dataset = PatchDataset(mixed)
    stored = open_packed(mixed)
    expected = stored[IR].values[crops_of(mixed, "a0")[0]]
    table, source = dataset.table, stored["source"].values
    for name in ("a0", "b0", "c0", "d0"):
        (crop,) = crops_of(mixed, name)
        rows, columns, _ = ORDERS[name[0]]
        for sample in np.flatnonzero(table.crop == crop):
            row, col = int(table.row[sample]), int(table.col[sample])
            here = dataset.describe(sample)
            assert (here["row"], here["col"], here["source"]) == (row, col, source[crop])
            assert here["latitude"] == pytest.approx(float(stored["latitude"][crop, row, col]))
            y, x = (3 - row if rows else row) * PATCH, (5 - col if columns else col) * PATCH
            codes = dataset[sample].codes[0, 0].numpy()
            np.testing.assert_array_equal(codes, expected[y : y + PATCH, x : x + PATCH])


def test_windows_of_a_place_are_equal_in_every_order(mixed):
    dataset = PatchDataset(mixed)
    assert len(set(dataset.crop_places.tolist())) == 1
    windows = WindowPairs(dataset, [60], move=8, pairs=8, seed=1)
    batch = windows.__getitems__(range(len(windows)))
    stored = open_packed(mixed)
    (first,) = crops_of(mixed, "a0")
    (second,) = crops_of(mixed, "a1")
    seconds = dataset.crop_seconds
    sources = {
        int(second): str(name)[1] for second, name in zip(seconds, stored["source"].values, strict=True)
    }
    fields = {"0": stored[IR].values[first], "1": stored[IR].values[second]}
    for codes, (_, time, top, left) in zip(batch.codes, batch.window.tolist(), strict=True):
        expected = fields[sources[time]][top : top + PATCH, left : left + PATCH]
        np.testing.assert_array_equal(codes[0], expected)


def test_crops_of_one_patch_lie_as_their_grids(tmp_path):
    store = build(tmp_path, crop=(PATCH, PATCH), shape=(32, 32), orders="ad", hours=1)
    dataset = PatchDataset(store)
    (a, d) = (crops_of(store, name) for name in "ad")
    found = {int(table): dataset[i].codes.numpy() for i, table in enumerate(dataset.table.crop)}
    for number, crop in enumerate(a):
        np.testing.assert_array_equal(found[int(crop)], found[int(d[::-1][number])])


# embeddings


@pytest.fixture(scope="module")
def embedded(mixed, tmp_path_factory) -> tuple[Path, Path, Path]:
    """The cube, a checkpoint of this version, its embeddings."""
    folder = tmp_path_factory.mktemp("embedded")
    checkpoint = checkpoint_of(folder / "new.pth", mixed, channels=(IR,), orientation=NORTH_UP)
    embed(mixed, checkpoint, folder / "new.zarr", dtype="float32")
    return mixed, checkpoint, folder / "new.zarr"


def test_embeddings_of_the_same_weather_are_equal_in_every_order(embedded):
    _, _, out = embedded
    vectors, flips = vectors_of(out), Orientation(open_embeddings(out))
    expected = vectors[crops_of(out, "a0")[0]]
    for name in "bcd":
        (crop,) = crops_of(out, name + "0")
        turned = reverse(vectors[[crop]], flips.of([crop]), rows=-3)[0]
        np.testing.assert_allclose(turned, expected, atol=1e-5)
    assert info.inspect_target(out)["inputs were"] == NORTH_UP


def test_checkpoint_of_an_earlier_version_reads_crops_as_stored(embedded, tmp_path, caplog):
    cube, checkpoint, out = embedded
    state = load_checkpoint(checkpoint)
    save_checkpoint({k: v for k, v in state.items() if k != "orientation"}, tmp_path / "old.pth")
    with caplog.at_level(logging.WARNING):
        report = embed(cube, tmp_path / "old.pth", tmp_path / "old.zarr", dtype="float32")
    assert "of its 8 crops 6 have south up or east left" in caplog.text
    new, old = (vectors_of(path) for path in (out, tmp_path / "old.zarr"))
    same = crops_of(out, "a")
    np.testing.assert_array_equal(old[same], new[same])
    (b,) = crops_of(out, "b0")
    assert np.abs(old[b] - new[b]).max() > 1e-3
    # One that turns nothing has what it had: the same request, the same record of each block.
    assert (
        embed(cube, tmp_path / "old.pth", tmp_path / "old.zarr", dtype="float32")["blocks_kept"]
        == report["blocks"]
    )


def test_embeddings_of_an_earlier_version_are_kept_where_nothing_is_turned(tmp_path, monkeypatch):
    north, south = build(tmp_path / "n", orders="a", hours=1), build(tmp_path / "s", orders="b", hours=1)
    with monkeypatch.context() as patch:  # what earlier versions did
        patch.setattr(Orientation, "of", lambda self, crops: np.zeros((len(crops), 2), bool))
        for name, store in (("north", north), ("south", south)):
            embed(store, out=tmp_path / f"{name}.zarr", model="descriptor")
    before = vectors_of(tmp_path / "south.zarr")
    kept = {
        name: embed(store, out=tmp_path / f"{name}.zarr", model="descriptor")["blocks_kept"]
        for name, store in (("north", north), ("south", south))
    }
    assert kept == {"north": 1, "south": 0}
    after = vectors_of(tmp_path / "south.zarr")
    assert np.abs(after - before).max() > 1e-3
    expected = vectors_of(tmp_path / "north.zarr")[0]
    np.testing.assert_allclose(after[0][::-1], expected, atol=2e-3)


def test_grids_of_embeddings_are_turned(embedded, tmp_path):
    _, _, out = embedded
    dataset = GridDataset(out)
    batch = dataset.__getitems__(range(len(dataset)))
    crops = dataset.crop
    expected = batch.codes[int(np.flatnonzero(crops == crops_of(out, "a0")[0])[0])]
    for name in "bcd":
        i = int(np.flatnonzero(crops == crops_of(out, name + "0")[0])[0])
        np.testing.assert_allclose(batch.codes[i], expected, atol=1e-5)

    checkpoint = checkpoint_2k(tmp_path / "2k.pth", out, orientation=NORTH_UP)
    embed(out, checkpoint, tmp_path / "2k.zarr", dtype="float32")
    vectors = vectors_of(tmp_path / "2k.zarr")
    of_first = vectors[[int(crops_of(out, name + "0")[0]) for name in "abcd"]]
    np.testing.assert_allclose(of_first, np.broadcast_to(of_first[:1], of_first.shape), atol=1e-4)


def test_attention_maps_are_in_the_order_of_the_store(embedded):
    cube, checkpoint, _ = embedded
    a, b = (int(crops_of(cube, name)[0]) for name in ("a0", "b0"))
    maps = attention(cube, checkpoint, [(a, 0, 2), (b, 3, 2)])["attention"].values
    np.testing.assert_allclose(maps[1][:, ::-1], maps[0], atol=1e-5)
    assert np.abs(maps[1] - maps[0]).max() > 1e-4


# training


def test_training_records_the_orientation_and_does_not_resume_a_run_without(mixed, tmp_path):
    options = {
        "preset": "demo", "coarsen": 1, "patch_size": 8, "image_size": 16, "global_size": 16, "local_size": 8,
        "batch_size_per_gpu": 4, "probe_steps": 0, "device": "cpu",
    }  # fmt: skip
    train(mixed, tmp_path / "run", steps=1, **options)
    path = tmp_path / "run" / "checkpoint.pth"
    state = load_checkpoint(path)
    assert state["orientation"] == NORTH_UP
    del state["orientation"]
    save_checkpoint(state, path)
    with pytest.raises(
        SchemaError, match="begun by an earlier version, which left rows in the order of the files"
    ):
        train(mixed, tmp_path / "run", steps=1, **options)


def test_scenes_of_different_spacing_or_kind_are_reported(tmp_path, caplog):
    (tmp_path / "sources").mkdir()
    for number, step in enumerate((0.005, 0.01, 0.1)):
        scene = make_scene((64, 96), seed=number)
        axes = {"latitude": ("y", 45 - np.arange(64) * step), "longitude": ("x", -110 + np.arange(96) * step)}
        scene = scene.assign_coords(axes | {"time": scene["time"] + np.timedelta64(number, "h")})
        if number == 2:
            latitude, longitude = xr.broadcast(scene.latitude, scene.longitude)
            scene = scene.assign_coords(latitude=latitude, longitude=longitude)
        scene.to_netcdf(tmp_path / "sources" / f"{number}.nc")
    store = tmp_path / "patches.zarr"
    pipeline.preprocess(tmp_path / "sources", store, recipe=Recipe(tile=TileSpec(patch=PATCH)))
    facts = info.inspect_target(store)
    words = "pixels of 0.556, 1.11, 11.1 km and grids of latitude and longitude axes beside projections"
    assert words in facts["scenes differ"]
    assert facts["grids"].startswith("3: 64 x 96 px of 0.556 x 0.394 km, latitude and longitude axes; ")
    assert facts["orientation"] == "north first, west first"
    with caplog.at_level(logging.WARNING):
        train(
            store, tmp_path / "run", steps=1, preset="dino", coarsen=1, patch_size=8, image_size=16, global_size=16,
            local_size=8, batch_size_per_gpu=4, probe_steps=0, device="cpu", arch="vit_demo",
        )  # fmt: skip
    assert f"has scenes with {words}" in caplog.text


def test_one_product_at_different_latitudes_is_one_scale(mixed):
    from gridrad_cube.store import compare_grids, read_grids

    grids, count = read_grids(open_packed(mixed))
    assert count == 4
    assert len(grids) == 2  # axes, and a position for each pixel
    assert "beside projections" in compare_grids(grids)
    facts = info.inspect_target(mixed)
    assert (
        facts["orientation"]
        == "6 crops are south first or east first, and are turned for networks and pictures"
    )


def test_pictures_lie_north_up_and_east_right(mixed):
    from gridrad_cube import plot
    from gridrad_cube.store import open_cube

    cube = open_cube(mixed)
    for name, (rows, columns, _) in ORDERS.items():
        (crop,) = crops_of(mixed, f"{name}0")
        axes = plot.crops(cube, int(crop)).axes[0]
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert (left > right, bottom < top) == (columns, rows)
