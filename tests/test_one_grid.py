"""Files whose positions differ by rounding alone lie on one grid of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small_data import make_scene

from gridrad_cube import pipeline, readers
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.store import open_grid, open_packed, verify

RECIPE = Recipe(tile=TileSpec(patch=16))


def write(
    folder: Path, names: dict[str, str], *, each: bool = False, shift: float = 0.0, step: float = 0.01
) -> Path:
    """Write scenes by name, each with axes of a dtype; ``each`` gives every pixel its position."""
    folder.mkdir(exist_ok=True)
    for name, dtype in names.items():
        scene = make_scene((48, 64))
        latitude, longitude = 45.003 - np.arange(48) * step + shift, -110.007 + np.arange(64) * step
        scene = scene.assign_coords(latitude=("y", latitude), longitude=("x", longitude))
        scene = scene.assign_coords(time=scene["time"] + np.timedelta64(len(name) * 60 + ord(name[-1]), "m"))
        if each:
            scene = scene.assign_coords(
                dict(
                    zip(("latitude", "longitude"), xr.broadcast(scene.latitude, scene.longitude), strict=True)
                )
            )
        scene = scene.assign_coords({n: scene[n].astype(dtype) for n in ("latitude", "longitude")})
        scene.to_netcdf(folder / f"{name}.nc")
    return folder


def grids_of(store: Path) -> list[str]:
    return [str(grid) for grid in open_packed(store)["grid"].values]


@pytest.mark.parametrize(("first", "each"), [("f4", False), ("f8", True)])
def test_float32_and_float64_are_one_grid(tmp_path, first, each):
    other = {"f4": "f8", "f8": "f4"}[first]
    sources = write(tmp_path / "sources", {"a": first, "b": other, "c": other}, each=each)
    store = tmp_path / "patches.zarr"
    assert not pipeline.preprocess(sources, store, recipe=RECIPE, workers=1).failed
    (grid,) = set(grids_of(store))
    header = readers.inspect(sources / "a.nc")
    assert grid == header.grid_id
    np.testing.assert_array_equal(open_grid(store, grid)["latitude"].values, header.latitude)
    cube = open_packed(store)
    for name in ("latitude", "longitude"):
        np.testing.assert_array_equal(cube[name][1:].values, cube[name][:-1].values)
    assert verify(store) == []


def test_later_files_take_the_grid_of_the_store(tmp_path):
    sources = write(tmp_path / "sources", {"a": "f8"})
    store = tmp_path / "patches.zarr"
    pipeline.preprocess(sources, store, recipe=RECIPE)
    (before,) = grids_of(store)
    write(sources, {"b": "f4"})
    assert not pipeline.preprocess(sources, store).failed
    assert grids_of(store) == [before, before]


def test_grids_that_differ_by_more_than_rounding_stay_apart(tmp_path):
    sources = write(tmp_path / "sources", {"a": "f8"})
    write(sources, {"b": "f8"}, shift=0.001)  # a tenth of a pixel
    write(sources, {"c": "f8"}, step=0.0101)
    write(sources, {"d": "f8"}, each=True)
    store = tmp_path / "patches.zarr"
    assert not pipeline.preprocess(sources, store, recipe=RECIPE).failed
    assert len(set(grids_of(store))) == 4


def test_names_of_grids_stay_what_they_are_in_existing_stores():
    axes = 45.003 - np.arange(48) * 0.01, -110.007 + np.arange(64) * 0.01
    assert readers.grid_id(*axes) == "dcc7b5ce25e0d739"
    assert readers.grid_id(*(axis.astype("f4").astype("f8") for axis in axes)) == "b943568ca38e1ddf"
    assert readers.grid_id(*np.meshgrid(*axes, indexing="ij")) == "61806a393ce6598d"
