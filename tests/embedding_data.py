"""Small cubes, checkpoints with random weights, and embedding stores, for tests of what embeds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import xarray as xr
from small_data import make_scene

from gridrad_cube import pipeline, readers, store
from gridrad_cube.datasets import GridDataset, normalizations
from gridrad_cube.models import ViewSpec, build, save_checkpoint
from gridrad_cube.schema import CHANNELS, Recipe, SchemaError, TileSpec

IR, VIS = "ir_brightness_temperature", "visible_reflectance"
PATCH, TOKEN = 16, 8
#: Crops by their outcome.
FAILED, NIGHT = 3, 4


def scene_of(number, shape=(70, 100)):
    """One scene: the last row and column of patches are partly padding."""
    scene = make_scene(shape, channels=(IR, VIS), seed=number)
    hours = np.timedelta64(3600 * number, "s")
    scene = scene.assign_coords(time=scene["time"] + hours)
    missing = {name: int(CHANNELS[name].packing.fill_value) for name in (IR, VIS)}
    if number == 1:
        scene[IR][16:32, 32:48] = missing[IR]  # a whole patch
        scene[IR][32:48, 48:57] = missing[IR]  # more than half of one
        scene[VIS][0:5, 0:3] = missing[VIS]
    if number == 2:
        scene = scene.drop_vars(VIS)
    if number == NIGHT:
        scene = scene.assign_coords(time=scene["time"] + np.timedelta64(6 * 3600, "s"))  # night
        scene[IR][0:16, 0:16] = 20000
    return scene


def write_scenes(folder, numbers, cut=0):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        scene_of(number).isel(y=slice(cut, None), x=slice(cut, None)).to_netcdf(folder / f"s{number}.nc")


def preprocess(folder, path):
    recipe = Recipe(format="cf", channels=(IR, VIS), tile=TileSpec(patch=PATCH))
    read = readers.read_scene

    def broken(path, **options):
        if path.endswith(f"s{FAILED}.nc"):
            raise SchemaError("planted fault")
        return read(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "read_scene", broken)
        pipeline.preprocess(folder, path, recipe=recipe)
    return path


def cube_of_five(folder):
    """Five crops of 5 x 7 patches of 16 px: with gaps, without visible, at night, and one that failed."""
    write_scenes(folder / "sources", range(5))
    return preprocess(folder / "sources", folder / "patches.zarr")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they give for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def checkpoint_of(path, cube, *, channels=(IR, VIS), mode="each", seed=0, view=None, **changes):
    """A small network with random weights, as training saves one."""
    torch.manual_seed(seed)
    planes = len(channels) if mode == "stack" else 1
    net = build("vit_demo", planes, embed_dim=24, depth=2, heads=2, image_size=PATCH, mask_token=True)
    torch.nn.init.normal_(net.mask_token)
    view = dataclasses.asdict(ViewSpec(**(view or {})))
    state = {
        "format": 1, "level": "256", "model": net.config(), "channels": list(channels), "channel_mode": mode,
        "teacher": {f"backbone.{k}": v for k, v in net.state_dict().items()}, "coarsen": 1, "view": view,
        "normalization": {k: v.to_dict() for k, v in normalizations(cube, channels).items()},
        "config": {"reject": None}, "store": {"path": "x", "identity": "y"},
    }  # fmt: skip
    save_checkpoint(state | changes, path)
    return path


def checkpoint_2k(path, embeddings, *, features=24, **changes):
    torch.manual_seed(5)
    net = build("vit2k_xs", features, embed_dim=24, depth=2, heads=2, image_size=8)
    grids = GridDataset(embeddings)
    state = {
        "format": 1, "level": "2k", "model": net.config(), "channels": list(grids.labels), "channel_mode": "each",
        "teacher": {f"module.backbone.{k}": v for k, v in net.state_dict().items()}, "coarsen": 1, "view": {},
        "normalization": grids.normalization, "config": {"reject": None},
        "store": {"path": "x", "identity": "y", "checkpoint": store.store_info(embeddings)["checkpoint"]},
    }  # fmt: skip
    save_checkpoint(state | changes, path)
    return path


def values_of(path):
    with store.open_embeddings(path) as dataset:
        return dataset["embedding"].values


def assert_same_store(a, b):
    """Every variable and attribute equal, history apart."""
    one, two = (xr.open_zarr(p, chunks=None, mask_and_scale=False, decode_times=False) for p in (a, b))
    for dataset in (one, two):
        dataset.attrs.pop("history")
        for name in ("source", "checksum"):  # the checksum covers the source
            del dataset.attrs["gridrad_cube"][name]
    assert json.dumps(one.attrs, sort_keys=True) == json.dumps(two.attrs, sort_keys=True)
    assert set(one.variables) == set(two.variables)
    for name in one.variables:
        np.testing.assert_array_equal(one[name].values, two[name].values, err_msg=name)
