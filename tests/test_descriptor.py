"""Embedding without training: the descriptor against a plain version, and pooled vectors of crops."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from embedding_data import (
    IR,
    VIS,
    assert_same_store,
    checkpoint_of,
    cube_of_five,
    one_thread,  # noqa: F401
    values_of,
)
from scipy import ndimage
from small_data import make_scene, make_store

import gridrad_cube
from gridrad_cube import pipeline, store
from gridrad_cube.cli.embedding import embed as command
from gridrad_cube.embedding import embed
from gridrad_cube.models import describe_maps, local_maps
from gridrad_cube.schema import CHANNELS, Recipe, SchemaError, TileSpec
from gridrad_cube.selection import labels_of, reject_masks

CELL = 4


def block_means(x, edge, weight=None):
    """Means of blocks of pixels; of observed pixels only, if some of the block are observed."""
    if edge == 1:
        return x
    weight = np.ones_like(x) if weight is None else weight + 1e-6
    shape = (x.shape[0] // edge, edge, x.shape[1] // edge, edge)
    total, share = ((v).reshape(shape).mean(axis=(1, 3)) for v in (x * weight, weight))
    return total / share


def filters():
    """Morlet wavelets of three quarters of the highest frequency in six directions, 7 x 7, complex."""
    y, x = np.mgrid[-3:4, -3:4]
    for angle in np.pi * np.arange(6) / 6:
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        envelope = np.exp(-(along**2 + (0.5 * across) ** 2) / (2 * 0.8**2))
        envelope /= envelope.sum()
        wave = np.exp(0.75j * np.pi * along)
        yield envelope * (wave - (envelope * wave).sum())


def describe_plainly(field):
    """The 68 numbers of one field (H, W), scaled to -1..1, NaN where missing; numpy and scipy alone."""
    seen = np.isfinite(field)
    average = field[seen].mean()
    values, weight = np.where(seen, field, average), seen.astype(float)
    cells = [edge // CELL for edge in field.shape]
    maps = []
    x, w = values, weight
    for octave in range(4):
        if octave:
            share = w.reshape(w.shape[0] // 2, 2, w.shape[1] // 2, 2).mean(axis=(1, 3))
            total = (x * w).reshape(*share.shape[:1], 2, share.shape[1], 2).mean(axis=(1, 3))
            x, w = np.where(share > 0, total / np.maximum(share, 1e-6), average), share
        for kernel in filters():
            # scipy's "mirror" is torch's "reflect": the pixel at the edge is not repeated.
            real, imaginary = (
                ndimage.correlate(x, part, mode="mirror") for part in (kernel.real, kernel.imag)
            )
            modulus = block_means(np.hypot(real, imaginary), max(CELL >> octave, 1), w)
            maps.append(np.log(np.kron(modulus, np.ones((cells[0] // len(modulus),) * 2)) + 3e-3))
    mean = block_means(values, CELL, weight)
    deviation = values - np.kron(mean, np.ones((CELL, CELL)))
    maps += [mean, np.log(block_means(deviation**2, CELL, weight) + 1e-4)]
    place = (np.clip(values, -1, 1) + 1) * 3.5
    maps += [block_means(np.maximum(1 - abs(place - bin_), 0), CELL, weight) for bin_ in range(8)]
    share = block_means(weight, CELL).ravel()
    share /= share.sum()
    columns = np.array([m.ravel() for m in maps])
    means = columns @ share
    return np.concatenate([means, np.sqrt((columns - means[:, None]) ** 2 @ share)])


def cloud(seed, edge=64, scale=4.0):
    """A smooth field with some noise, about -1..1; its scale is in pixels."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((edge, edge)), scale, mode="wrap")
    return smooth / np.abs(smooth).max() + 0.02 * rng.standard_normal((edge, edge))


def describe(*fields):
    return describe_maps(local_maps(torch.tensor(np.stack(fields), dtype=torch.float32)[:, None])).numpy()


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.97])
def test_descriptor_is_that_of_a_plain_version(missing):
    field = cloud(0)
    rng = np.random.default_rng(1)
    field[rng.random(field.shape) < missing] = np.nan
    if missing:
        field[8:32, :24] = np.nan  # whole cells
    np.testing.assert_allclose(describe(field)[0], describe_plainly(field), atol=2e-3)


def test_missing_half_of_a_field_counts_for_nothing():
    """The vector is about that of the other half, for any fill of the missing pixels."""
    half = cloud(0)[:32]
    whole, part = np.concatenate([half, half[::-1]]), np.concatenate([half, np.full_like(half, np.nan)])
    full, found, filled = describe(whole, part, np.nan_to_num(part, nan=-1.0))
    assert np.linalg.norm(found - full) < 0.2 * np.linalg.norm(filled - full)
    assert (describe(np.full((64, 64), np.nan)) == 0).all()


def test_descriptor_of_a_moved_window_changes_little():
    """By 5 px, no multiple of a cell, against fields of another scale."""
    large = [cloud(seed, edge=128, scale=scale) for seed in range(3) for scale in (2.0, 8.0)]
    here, moved = (describe(*(x[i : i + 64, i : i + 64] for x in large)) for i in (0, 5))
    apart = np.linalg.norm(here[:, None] - moved, axis=2)
    assert np.diag(apart).mean() < 0.3 * apart[0::2, 1::2].mean()


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    return cube_of_five(tmp_path_factory.mktemp("cube"))


@pytest.fixture(scope="module")
def descriptors(cube):
    out = cube.parent / "descriptors.zarr"
    summary = gridrad_cube.embed(cube, out=out, model="descriptor", dtype="float32")
    assert (summary["finished"], summary["features"], summary["channels"]) == (True, 68, [IR, VIS])
    return out


def physical(cube, channel, crop, row, col):
    """Pixels of a patch scaled so that the typical range of the channel is -1..1."""
    low, high = CHANNELS[channel].typical_range
    pixels = store.open_cube(cube)[channel][crop, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16].values
    return (2 * (pixels.astype(float) - low) / (high - low) - 1).astype(np.float32)


@pytest.mark.parametrize("place", [(IR, 0, 0, 0), (IR, 1, 2, 3), (IR, 0, 4, 6), (VIS, 1, 0, 0)])
def test_store_holds_the_descriptor_of_each_patch(cube, descriptors, place):
    """Gaps and padding count as missing."""
    found = store.open_embeddings(descriptors).sel(channel=place[0])["embedding"][place[1:]].values
    np.testing.assert_allclose(found, describe(physical(cube, *place))[0], atol=1e-4)


def test_store_is_like_that_of_a_network(cube, descriptors):
    checkpoint = checkpoint_of(cube.parent / "checkpoint.pth", cube)
    embed(cube, checkpoint, cube.parent / "embeddings.zarr", dtype="float32")
    one, other = store.open_embeddings(descriptors), store.open_embeddings(cube.parent / "embeddings.zarr")
    for name in set(other.variables) - {"embedding"}:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=name)
    np.testing.assert_array_equal(np.isnan(one["embedding"][..., 0]), np.isnan(other["embedding"][..., 0]))
    mine, theirs = store.store_info(descriptors), store.store_info(cube.parent / "embeddings.zarr")
    assert mine.keys() == theirs.keys()
    assert (mine["model"], mine["pool"], mine["checkpoint_file"]) == (
        {"name": "descriptor"},
        "mean+std",
        None,
    )
    assert one.attrs["geoemb:model"] == f"urn:gridrad-cube:descriptor:{mine['checkpoint']}"


def test_parts_and_workers_make_the_same_store(cube, descriptors, tmp_path, monkeypatch):
    monkeypatch.setattr("gridrad_cube.store.embeddings._BLOCK_CROPS", {"256": 1, "2k": 1})
    options = {"model": "descriptor", "dtype": "float32"}
    for part in ((1, 2), (0, 2)):
        summary = embed(cube, out=tmp_path / "parts.zarr", part=part, **options)
    assert summary["finished"]
    np.testing.assert_array_equal(values_of(tmp_path / "parts.zarr"), values_of(descriptors))
    again = embed(cube, out=tmp_path / "parts.zarr", **options)
    assert again["blocks_kept"] == again["blocks"] == 5


def test_windows_at_a_stride_are_described(cube, descriptors, tmp_path):
    embed(cube, out=tmp_path / "d.zarr", model="descriptor", stride=8, channels=IR, dtype="float32")
    found, expected = values_of(tmp_path / "d.zarr"), values_of(descriptors)[:, :1]
    assert found.shape == (5, 1, 9, 13, 68)
    np.testing.assert_allclose(found[:, :, ::2, ::2], expected, atol=1e-4)


def test_coarsening_is_chosen_by_the_patch(tmp_path):
    """Patches of 256 px become 128 px; blocks are averaged before they are scaled."""
    scene = make_scene((256, 256), channels=(IR,))
    scene.to_netcdf(tmp_path / "s.nc")
    recipe = Recipe(format="cf", channels=(IR,), tile=TileSpec(patch=256))
    pipeline.preprocess(tmp_path / "s.nc", tmp_path / "p.zarr", recipe=recipe)
    embed(tmp_path / "p.zarr", out=tmp_path / "d.zarr", model="descriptor", dtype="float32")
    low, high = CHANNELS[IR].typical_range
    pixels = store.open_cube(tmp_path / "p.zarr")[IR][0].values.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    expected = describe(2 * (pixels - low) / (high - low) - 1)[0]
    np.testing.assert_allclose(values_of(tmp_path / "d.zarr")[0, 0, 0, 0], expected, atol=1e-3)
    assert store.store_info(tmp_path / "d.zarr")["coarsen"] == 2
    embed(tmp_path / "p.zarr", out=tmp_path / "1.zarr", model="descriptor", coarsen=1)
    assert store.store_info(tmp_path / "1.zarr")["coarsen"] == 1


def test_altitudes_of_a_volume_are_one_vector(tmp_path):
    cube = make_store(tmp_path, channels=("reflectivity",), format="gridrad-v4.2", scenes=1, shape=(32, 64))
    labels = store.open_packed(cube)["reflectivity"]["altitude"].values
    channels = [f"reflectivity@{km}km" for km in labels[:2]]
    summary = embed(cube, out=tmp_path / "d.zarr", model="descriptor", channels=channels, dtype="float32")
    assert len(summary["channels"]) == 1
    assert summary["features"] == 136
    embed(cube, out=tmp_path / "one.zarr", model="descriptor", channels=channels[1], dtype="float32")
    np.testing.assert_allclose(
        values_of(tmp_path / "d.zarr")[..., 68:], values_of(tmp_path / "one.zarr"), atol=1e-5
    )


def test_pool_is_mean_and_deviation_of_the_clean_cells(descriptors, tmp_path):
    summary = embed(descriptors, out=tmp_path / "p.zarr", model="pool", dtype="float32")
    assert (summary["level"], summary["features"]) == ("2k", 136)
    patches = store.open_embeddings(descriptors)
    vectors, flags = patches["embedding"].values, patches["flags"].values
    reject = np.array(reject_masks(labels_of(patches), None), np.uint16)[:, None, None]
    clean = np.isfinite(vectors).all(axis=-1) & ((flags & reject) == 0)
    found, used = values_of(tmp_path / "p.zarr"), 0
    for crop, channel in np.ndindex(*found.shape[:2]):
        some = vectors[crop, channel][clean[crop, channel]].astype(float)
        if len(some):
            used += 1
            expected = np.concatenate([some.mean(axis=0), some.std(axis=0)])
            np.testing.assert_allclose(found[crop, channel], expected, atol=1e-5)
    assert used >= 4
    info = store.store_info(tmp_path / "p.zarr")
    assert info["model"] == {"name": "pool"}
    assert info["embedded_from"]["checkpoint"] == store.store_info(descriptors)["checkpoint"]


def test_what_does_not_go_together_is_refused(cube, descriptors, tmp_path):
    out, checkpoint = tmp_path / "e.zarr", tmp_path / "c.pth"
    for words, arguments in {
        "expected one of them": {},
        "Pass `checkpoint` to embed by a network": {"checkpoint": checkpoint, "model": "descriptor"},
        "model: got 'cnn'; expected one of descriptor, pool": {"model": "cnn"},
        "They are for checkpoints": {"model": "descriptor", "pool": "mean"},
        "got pool 'auto', normalize 'auto' and key 'student'": {"model": "descriptor", "key": "student"},
        r"coarsen: got 3 for patches of 16 px; expected one of \[1, 2\]": {
            "model": "descriptor",
            "coarsen": 3,
        },
        "holds a cube, but model='pool' reads embeddings of level 256": {"model": "pool"},
        "coarsen: got 2 for the network of": {"checkpoint": checkpoint, "coarsen": 2},
    }.items():
        with pytest.raises(SchemaError, match=words):
            embed(cube, out=out, **arguments)
    with pytest.raises(SchemaError, match="holds embeddings, but the descriptor describes patches"):
        embed(descriptors, out=out, model="descriptor")
    assert not out.exists()


def test_pool_auto_is_that_of_the_checkpoint(cube, tmp_path):
    for name, entry in (("said", {"pool": "mean+std"}), ("silent", {})):
        path = checkpoint_of(tmp_path / f"{name}.pth", cube, **entry)
        embed(cube, path, tmp_path / f"{name}.zarr")
    infos = [store.store_info(tmp_path / f"{name}.zarr") for name in ("said", "silent")]
    assert [(info["pool"], info["features"]) for info in infos] == [("mean+std", 48), ("class", 24)]


def test_stores_that_say_class_mean_are_extended(cube, tmp_path):
    """An earlier name of class+mean; the store keeps it, and its identity."""
    path, out = checkpoint_of(tmp_path / "c.pth", cube), tmp_path / "e.zarr"
    embed(cube, path, out, pool="class+mean")
    for name in ("zarr.json", "_build/embed.json"):
        text = (out / name).read_text()
        assert "class+mean" in text
        (out / name).write_text(text.replace("class+mean", "class_mean"))
    root = json.loads((out / "zarr.json").read_text())
    del root["attributes"]["gridrad_cube"]["checksum"]  # which stores of that time do not have
    (out / "zarr.json").write_text(json.dumps(root))
    shutil.rmtree(out / "_build" / "manifest")
    assert embed(cube, path, out, pool="class+mean")["blocks_kept"] == 1
    assert store.store_info(out)["pool"] == "class_mean"
    with pytest.raises(SchemaError, match="made with other options"):
        embed(cube, path, out, pool="mean")


def test_command_embeds_without_a_checkpoint(cube, descriptors, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    found = run("--store", cube, "--model", "descriptor", "--out", tmp_path / "d.zarr", "--dtype", "float32")
    assert "patches embedded, 68 numbers for each channel" in found
    assert_same_store(tmp_path / "d.zarr", descriptors)
    found = run("--store", tmp_path / "d.zarr", "--model", "pool", "--out", tmp_path / "p.zarr")
    assert "crops embedded, 136 numbers for each channel" in found
