"""Queries on a cube whose crops overlap, and what ``info`` suggests for a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_data import make_scene

from gridrad_cube import info, pipeline, query
from gridrad_cube.embedding import embed
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.store import open_embeddings, open_packed


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    """Scenes of 40 x 56 px in crops of 2 x 2 patches of 16 px: four crops a scene, which overlap."""
    folder = tmp_path_factory.mktemp("cover")
    (folder / "sources").mkdir()
    for hour in range(3):
        scene = make_scene((40, 56), seed=hour)
        scene = scene.assign_coords(time=scene["time"] + np.timedelta64(12 * hour, "h"))
        scene.to_netcdf(folder / "sources" / f"{hour}.nc")
    recipe = Recipe(tile=TileSpec(patch=16, crop=(32, 32), placement="cover"))
    report = pipeline.preprocess(folder / "sources", folder / "patches.zarr", recipe=recipe)
    assert not report.failed, report
    embed(folder / "patches.zarr", out=folder / "embeddings.zarr", model="descriptor")
    return folder / "patches.zarr", folder / "embeddings.zarr"


def test_every_patch_is_whole_and_says_where_it_is(stores):
    cube = open_packed(stores[0])
    assert (cube["ir_brightness_temperature_valid_fraction"].values == 1).all()
    origins = set(zip(cube["y_origin"].values.tolist(), cube["x_origin"].values.tolist(), strict=True))
    assert origins == {(0, 0), (0, 24), (8, 0), (8, 24)}


def test_queries_on_overlapping_patches(stores):
    embeddings = open_embeddings(stores[1])
    place = {"latitude": 45.0 - 20 / 56, "longitude": -110.0 + 28 / 56}
    here = query.at(embeddings, "2021-07-05T17:50:17", **place)
    window = [int(here[name]) for name in ("y_start", "y_stop", "x_start", "x_stop")]
    assert window[0] <= 20 < window[1]
    assert window[2] <= 28 < window[3]
    one = (int(here["crop"]), int(here["row"]), int(here["col"]))
    every = query.search(embeddings, one, k=100, exclude=None, separate=None)
    assert every.sizes["rank"] == 3 * 16 - 1
    # By default no answer overlaps the query within the time, nor another answer of its time. The centers of patches
    # that overlap by half are further apart than the distance.
    left = query.search(embeddings, one, k=100, exclude=("1h", "1km"))
    boxes = np.stack([left[name].values for name in ("y_start", "y_stop", "x_start", "x_stop")], axis=1)
    boxes, seconds = np.vstack([boxes, window]), np.append(left["time"].values, here["time"].values)
    for i, (box, when) in enumerate(zip(boxes, seconds, strict=True)):
        shared = (boxes[:, ::2] < box[1::2]) & (boxes[:, 1::2] > box[::2])
        beside = (np.abs(seconds - when) == np.timedelta64(0, "s")) & (np.arange(len(boxes)) != i)
        assert not (shared.all(axis=1) & beside).any()
    kept = [(int(c), int(r), int(q)) for c, r, q in zip(left.crop, left.row, left.col, strict=True)]
    for crop, row, col in zip(every.crop, every.row, every.col, strict=True):  # none is left out without need
        if (int(crop), int(row), int(col)) in kept:
            continue
        sample = every.where((every.crop == crop) & (every.row == row) & (every.col == col), drop=True)
        edges = [float(sample[name][0]) for name in ("y_start", "y_stop", "x_start", "x_stop")]
        same = seconds == sample["time"].values[0]
        shared = (boxes[:, ::2] < edges[1::2]) & (boxes[:, 1::2] > edges[::2])
        assert (shared.all(axis=1) & same).any()
    apart = query.search(embeddings, one, k=100, exclude=("1h", "1000km"), separate=("1h", "15km"))
    assert 2 <= apart.sizes["rank"] < 32
    times, latitude, longitude = (apart[n].values for n in ("time", "latitude", "longitude"))
    for i in range(len(times)):
        for j in range(i):
            far = np.hypot(latitude[i] - latitude[j], (longitude[i] - longitude[j]) * 0.7) * 111 > 14
            assert far or times[i] != times[j]


def test_info_suggests_how_to_cut_a_file(tmp_path):
    make_scene((825, 200)).to_netcdf(tmp_path / "a.nc")
    facts = info.inspect_target(tmp_path / "a.nc")
    assert facts["pixels"].startswith("1.99 x 1.")
    assert facts["suggested for preprocess"].startswith("--patch 32 --crop 416x128 --placement cover")
    assert facts["suggested for train"] == "--preset small (takes patches as they are, 64 km high)"
    make_scene((825, 825)).to_netcdf(tmp_path / "b.nc")
    facts = info.inspect_target(tmp_path / "b.nc")
    assert facts["suggested for preprocess"].startswith(
        "--patch 128 --crop 512x512 --placement cover (4 crops of 4 x 4 patches; whole scenes would leave 13 of 49"
    )
