"""From store and checkpoint to embeddings: every patch a row, right place, right numbers, resumable."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from embedding_data import (
    FAILED,
    IR,
    NIGHT,
    PATCH,
    TOKEN,
    VIS,
    assert_same_store,
    checkpoint_2k,
    checkpoint_of,
    cube_of_five,
    one_thread,  # noqa: F401
    preprocess,
    values_of,
    write_scenes,
)
from small_data import make_store, write_sources

from gridrad_cube import pipeline, store
from gridrad_cube.datasets import GridDataset, Normalization, PatchDataset, normalizations
from gridrad_cube.embedding import NO_PIXELS, Network, embed
from gridrad_cube.embedding.inputs import PatchInput, _between, _between_times
from gridrad_cube.models import ViewSpec, build, load_backbone, save_checkpoint
from gridrad_cube.schema import TIME_FILL, Flag, Recipe, SchemaError, TileSpec


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    return cube_of_five(tmp_path_factory.mktemp("cube"))


@pytest.fixture(scope="module")
def checkpoint(cube):
    return checkpoint_of(cube.parent / "checkpoint.pth", cube)


@pytest.fixture(scope="module")
def embeddings(cube, checkpoint):
    out = cube.parent / "embeddings.zarr"
    summary = embed(cube, checkpoint, out, dtype="float32")
    assert summary["finished"]
    return out


@pytest.fixture(scope="module")
def embeddings_2k(embeddings):
    path = checkpoint_2k(embeddings.parent / "checkpoint_2k.pth", embeddings)
    out = embeddings.parent / "embeddings_2k.zarr"
    embed(embeddings, path, out, dtype="float32")
    return out


def cube_flags(cube):
    packed = store.open_packed(cube)
    return np.stack([packed[f"{name}_flags"].values for name in (IR, VIS)], axis=1)


def by_hand(state, codes, label):
    """One patch through the network with nothing of the embedding code: codes (y, x) to (24,)."""
    net = load_backbone(state)
    rule = Normalization.from_dict(state["normalization"][label])
    values, valid = rule.apply(codes)
    tokens = valid.reshape(2, TOKEN, 2, TOKEN).mean(axis=(1, 3)).reshape(1, 4)
    with torch.inference_mode():
        return net(torch.from_numpy(values)[None, None], torch.from_numpy(tokens < 0.5))[0].numpy()


def window(cube, label, crop, y, x):
    return store.open_packed(cube)[label][crop, y : y + PATCH, x : x + PATCH].values


def test_embedding_has_a_row_for_every_patch(cube, embeddings):
    dataset = store.open_embeddings(embeddings)
    assert dataset["embedding"].dims == ("crop", "channel", "row", "col", "feature")
    assert dataset["embedding"].shape == (5, 2, 5, 7, 24)
    assert dataset["channel"].values.tolist() == [IR, VIS]
    flags = cube_flags(cube)
    absent = (flags & int(NO_PIXELS)) != 0
    assert 0 < absent.sum() < absent.size
    np.testing.assert_array_equal(np.isnan(dataset["embedding"].values).all(axis=-1), absent)
    np.testing.assert_array_equal(np.isfinite(dataset["embedding"].values).all(axis=-1), ~absent)


def test_embedding_rejects_nothing_that_has_pixels(cube, embeddings):
    flags = cube_flags(cube)
    for flag, channel in ((Flag.night, 1), (Flag.low_coverage, 0), (Flag.constant, 0)):
        some = ((flags[:, channel] & int(flag)) != 0) & ((flags[:, channel] & int(NO_PIXELS)) == 0)
        assert some.any(), flag
        assert np.isfinite(values_of(embeddings)[:, channel][some]).all(), flag


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_embedding_does_not_depend_on_the_batch_size(cube, checkpoint, embeddings, tmp_path, batch_size):
    summary = embed(cube, checkpoint, tmp_path / "e.zarr", batch_size=batch_size, dtype="float32")
    assert summary["patches"] == 5 * 2 * 5 * 7
    expected = values_of(embeddings)
    assert summary["embedded"] == np.isfinite(expected).all(axis=-1).sum()
    np.testing.assert_allclose(values_of(tmp_path / "e.zarr"), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("label", "crop", "row", "col"),
    [(IR, 0, 0, 0), (IR, 0, 3, 5), (IR, 1, 2, 3), (IR, 0, 4, 6), (VIS, 1, 0, 0), (VIS, NIGHT, 2, 2)],
)
def test_embedding_is_that_of_its_patch_alone(cube, checkpoint, embeddings, label, crop, row, col):
    state = torch.load(checkpoint, weights_only=True)
    expected = by_hand(state, window(cube, label, crop, row * PATCH, col * PATCH), label)
    found = store.open_embeddings(embeddings).sel(channel=label)["embedding"][crop, row, col].values
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_embedding_decodes_as_training_does(cube, checkpoint, monkeypatch, tmp_path):
    seen = []

    def spy(values, valid, magnification, fill):
        seen.append(values.clone())
        return values, valid

    monkeypatch.setattr("gridrad_cube.embedding.network.whole_view", spy)
    embed(cube, checkpoint, tmp_path / "e.zarr", channels=IR, batch_size=1000)
    samples = PatchDataset(cube, channels=IR, reject=int(NO_PIXELS))
    state = torch.load(checkpoint, weights_only=True)
    samples.normalizations = {k: Normalization.from_dict(v) for k, v in state["normalization"].items()}
    trained, _ = samples.decode(samples.__getitems__(range(len(samples))))
    assert torch.equal(torch.cat(seen), trained)


def test_embedding_keeps_north_where_the_cube_has_it(cube, checkpoint, tmp_path, monkeypatch):
    """A network whose embedding is the mean of its patch gives back the cube's own means, cell by cell."""

    def mean(self, codes, channel, rules):
        packing = rules[0].packing
        values = np.where(packing.observed(codes), codes * packing.scale_factor, np.nan)
        return np.repeat(np.nanmean(values, axis=(1, 2, 3))[:, None], 24, axis=1).astype(np.float32)

    monkeypatch.setattr(Network, "embed", mean)
    embed(cube, checkpoint, tmp_path / "e.zarr", channels=[IR], dtype="float32")
    found = store.open_embeddings(tmp_path / "e.zarr").sel(channel=IR)
    packed = store.open_packed(cube)
    np.testing.assert_allclose(found["embedding"][..., 0].values, packed[f"{IR}_mean"].values, atol=1e-2)
    np.testing.assert_array_equal(found["latitude"].values, packed["latitude"].values)
    assert (np.diff(found["latitude"].values[0, :, 0]) < 0).all()
    assert (np.diff(found["longitude"].values[0, 0]) > 0).all()


def test_coordinates_and_flags_are_those_of_the_cube(cube, embeddings):
    packed, found = store.open_packed(cube), store.open_embeddings(embeddings)
    names = [n for n in store.COORDINATES if n in packed.variables]
    assert {"time", "status", "latitude", "y_origin", "grid", "source", "solar_zenith_angle"} <= set(names)
    for name in names:
        np.testing.assert_array_equal(found[name].values, packed[name].values, err_msg=name)
        assert name in found.coords
    np.testing.assert_array_equal(found["flags"].values, cube_flags(cube))
    assert found["flags"].dtype == np.uint16
    assert (found["flags"].values[FAILED] == int(Flag.unreadable)).all()
    assert (found["flags"].values[2, 1] & int(Flag.channel_absent)).all()
    fraction = packed[f"{VIS}_valid_fraction"].values
    np.testing.assert_array_equal(found["valid_fraction"].sel(channel=VIS).values, fraction)


def test_plain_xarray_opens_the_store_with_its_coordinates(embeddings, embeddings_2k):
    for path in (embeddings, embeddings_2k):
        plain = xr.open_zarr(path, chunks=None)
        assert {"time", "latitude", "longitude", "source", "variable", "channel"} <= set(plain.coords)
        assert plain["time"].dtype.kind == "M"
        assert plain.sel(channel=IR)["embedding"].shape[0] == 5
        assert plain["flags"].attrs["standard_name"] == "quality_flag"


def test_attributes_say_where_the_embeddings_come_from(cube, checkpoint, embeddings):
    info = store.store_info(embeddings, "embeddings")
    assert info["level"] == "256"
    assert info["source"] == "patches.zarr"
    assert info["source_identity"] == store.store_info(cube)["identity"]
    assert info["checkpoint"] == Network(checkpoint).fingerprint
    assert build(**info["model"]).embed_dim == 24
    assert info["normalization"] == torch.load(checkpoint, weights_only=True)["normalization"]
    assert info["thresholds"] == store.store_info(cube)["thresholds"]
    assert len(info["identity"]) == 32


def test_attributes_follow_the_geoemb_convention(embeddings, embeddings_2k):
    for path, size in ((embeddings, [16, 16]), (embeddings_2k, [80, 112])):
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        assert attributes["zarr_conventions"][0]["uuid"] == "61c12cc5-0e28-4056-999a-480cf3fb7e4c"
        assert attributes["geoemb:type"] == "chip"
        assert attributes["geoemb:dimensions"] == 24
        assert attributes["geoemb:model"].startswith("urn:")
        assert attributes["geoemb:source_data"][0].startswith("urn:")
        assert attributes["geoemb:data_type"] == "float32"
        assert attributes["geoemb:chip_layout"]["chip_size"] == size
        assert attributes["geoemb:gsd"] == pytest.approx(1985.6, rel=1e-3)  # 1/56 degree


class Interruption(Exception):
    pass


def interrupt_after(patch, batches):
    """Let the network embed this number of batches, then fail."""
    real, left = Network.embed, [batches]

    def patches(self, *arguments):
        if not left[0]:
            raise Interruption
        left[0] -= 1
        return real(self, *arguments)

    patch.setattr(Network, "embed", patches)


@pytest.fixture
def small_blocks(monkeypatch):
    """One crop a block."""
    monkeypatch.setattr("gridrad_cube.store.embeddings._BLOCK_CROPS", {"256": 1, "2k": 1})


def test_an_interrupted_run_goes_on_and_ends_as_an_undisturbed_one(cube, checkpoint, tmp_path, small_blocks):
    whole, broken = tmp_path / "a.zarr", tmp_path / "b.zarr"
    embed(cube, checkpoint, whole)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)  # two batches a crop
        with pytest.raises(Interruption):
            embed(cube, checkpoint, broken)
    with pytest.raises(SchemaError, match="not finished"):
        store.open_embeddings(broken)
    summary = embed(cube, checkpoint, broken)
    assert (summary["blocks"], summary["blocks_kept"]) == (5, 2)
    assert_same_store(whole, broken)


def test_a_finished_store_stays_as_it_is(cube, checkpoint, tmp_path):
    embed(cube, checkpoint, tmp_path / "e.zarr")
    before = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "e.zarr").rglob("*")) if p.is_file()}
    assert embed(cube, checkpoint, tmp_path / "e.zarr")["blocks_kept"] == 1
    after = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "e.zarr").rglob("*")) if p.is_file()}
    assert before == after


def test_a_truncated_block_is_made_again(cube, checkpoint, tmp_path, small_blocks):
    out = tmp_path / "e.zarr"
    embed(cube, checkpoint, out)
    expected = values_of(out)
    shard = out / "embedding" / "c.1.0.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert embed(cube, checkpoint, out)["blocks_kept"] == 4
    np.testing.assert_array_equal(values_of(out), expected)


def test_a_grown_cube_keeps_its_embeddings(cube, checkpoint, tmp_path, small_blocks):
    sources = tmp_path / "sources"
    write_scenes(sources, range(2))
    grown = preprocess(sources, tmp_path / "patches.zarr")
    embed(grown, checkpoint, tmp_path / "e.zarr")
    old = values_of(tmp_path / "e.zarr")
    write_scenes(sources, [2, NIGHT])
    preprocess(sources, grown)
    summary = embed(grown, checkpoint, tmp_path / "e.zarr")
    assert (summary["blocks"], summary["blocks_kept"]) == (4, 2)
    np.testing.assert_array_equal(values_of(tmp_path / "e.zarr")[:2], old)
    embed(grown, checkpoint, tmp_path / "fresh.zarr")
    assert_same_store(tmp_path / "e.zarr", tmp_path / "fresh.zarr")


def test_a_block_that_grew_is_made_again(checkpoint, tmp_path):
    sources = tmp_path / "sources"
    write_scenes(sources, range(2))
    grown = preprocess(sources, tmp_path / "patches.zarr")
    embed(grown, checkpoint, tmp_path / "e.zarr")
    write_scenes(sources, [2])
    preprocess(sources, grown)
    assert embed(grown, checkpoint, tmp_path / "e.zarr")["blocks_kept"] == 0
    assert values_of(tmp_path / "e.zarr").shape[0] == 3


def test_a_crop_that_failed_and_was_mended_is_embedded(cube, checkpoint, tmp_path, small_blocks):
    mended = tmp_path / "patches.zarr"
    shutil.copytree(cube, mended)
    embed(mended, checkpoint, tmp_path / "e.zarr")
    pipeline.preprocess(cube.parent / "sources", mended)
    summary = embed(mended, checkpoint, tmp_path / "e.zarr")
    assert summary["blocks_kept"] == 4
    dataset = store.open_embeddings(tmp_path / "e.zarr")
    assert np.isfinite(dataset["embedding"].values[FAILED, 0, 0, 0]).all()
    assert dataset["status"].values[FAILED] == 0
    assert not (dataset["flags"].values[FAILED] & int(Flag.unreadable)).any()


def test_parts_make_one_store(cube, checkpoint, tmp_path, small_blocks):
    first = embed(cube, checkpoint, tmp_path / "a.zarr", part=(0, 2))
    assert not first["finished"]
    assert not (tmp_path / "a.zarr" / "zarr.json").exists()
    assert embed(cube, checkpoint, tmp_path / "a.zarr", part=(1, 2))["finished"]
    embed(cube, checkpoint, tmp_path / "b.zarr")
    assert_same_store(tmp_path / "a.zarr", tmp_path / "b.zarr")
    with pytest.raises(SchemaError, match="each part would overwrite the others"):
        embed(cube, checkpoint, tmp_path / "a.zarr", part=(0, 2), resume=False)
    with pytest.raises(SchemaError, match="part: got"):
        embed(cube, checkpoint, tmp_path / "c.zarr", part=(2, 2))


def test_embeddings_of_another_checkpoint_are_refused(cube, checkpoint, tmp_path):
    other = checkpoint_of(tmp_path / "other.pth", cube, seed=9)
    embed(cube, checkpoint, tmp_path / "e.zarr")
    before = values_of(tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match=r"holds embeddings of another checkpoint .*resume=False"):
        embed(cube, other, tmp_path / "e.zarr")
    np.testing.assert_array_equal(values_of(tmp_path / "e.zarr"), before)
    embed(cube, other, tmp_path / "e.zarr", resume=False)
    assert not np.allclose(values_of(tmp_path / "e.zarr"), before, equal_nan=True)


def test_embeddings_of_another_store_are_refused(cube, checkpoint, tmp_path):
    write_scenes(tmp_path / "sources", range(5))
    (tmp_path / "sources" / "s0.nc").rename(tmp_path / "sources" / "another.nc")
    other = preprocess(tmp_path / "sources", tmp_path / "patches.zarr")
    embed(cube, checkpoint, tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match="holds embeddings of another store"):
        embed(other, checkpoint, tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match='dtype "float16" there, "float32" here'):
        embed(cube, checkpoint, tmp_path / "e.zarr", dtype="float32")


def test_a_place_that_holds_something_else_is_left_alone(cube, checkpoint, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("notes", "file"):
        with pytest.raises(SchemaError, match="did not write"):
            embed(cube, checkpoint, tmp_path / place, resume=False)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    with pytest.raises(SchemaError, match="is the store that is to be embedded"):
        embed(cube, checkpoint, cube)


def test_a_network_of_the_other_level_is_refused(cube, checkpoint, embeddings, embeddings_2k, tmp_path):
    second = embeddings.parent / "checkpoint_2k.pth"
    with pytest.raises(SchemaError, match=r"network of level 2k, but .* holds a cube\. .* 2k the embeddings"):
        embed(cube, second, tmp_path / "e.zarr")
    with pytest.raises(
        SchemaError, match=r"network of level 256, but .* of level 256, made from patches\.zarr"
    ):
        embed(embeddings, checkpoint, tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match=r"network of level 2k, but .* holds embeddings of level 2k"):
        embed(embeddings_2k, second, tmp_path / "e.zarr")
    assert not (tmp_path / "e.zarr").exists()


def test_a_checkpoint_that_does_not_fit_is_an_error(cube, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    del state["teacher"]["backbone.blocks.1.norm1.weight"]
    save_checkpoint(state, tmp_path / "broken.pth")
    with pytest.raises(SchemaError, match=r"broken\.pth: .*does not fit vit_demo: missing: blocks\.1\.norm1"):
        embed(cube, tmp_path / "broken.pth", tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match="no weights under 'student'"):
        embed(cube, checkpoint, tmp_path / "e.zarr", key="student")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        embed(cube, tmp_path / "none.pth", tmp_path / "e.zarr")
    with pytest.raises(FileNotFoundError, match="no such store"):
        embed(tmp_path / "none.zarr", checkpoint, tmp_path / "e.zarr")
    state = torch.load(checkpoint, weights_only=True)
    state["teacher"]["backbone.norm.bias"][:] = float("nan")
    save_checkpoint(state, tmp_path / "nan.pth")
    with pytest.raises(SchemaError, match=r"nan\.pth: .*not finite for finite inputs"):
        embed(cube, tmp_path / "nan.pth", tmp_path / "nan.zarr")
    altered = checkpoint_of(tmp_path / "altered.pth", cube, level="2k")
    with pytest.raises(SchemaError, match="says level 2k"):
        embed(cube, altered, tmp_path / "e.zarr")
    assert not (tmp_path / "e.zarr").exists()


def test_an_unfinished_cube_is_refused(cube, checkpoint, tmp_path):
    shutil.copytree(cube, tmp_path / "patches.zarr")
    (tmp_path / "patches.zarr" / "zarr.json").unlink()
    with pytest.raises(SchemaError, match="not finished"):
        embed(tmp_path / "patches.zarr", checkpoint, tmp_path / "e.zarr")


def test_a_missing_chunk_stops_the_run(cube, checkpoint, tmp_path):
    shutil.copytree(cube, tmp_path / "patches.zarr")
    (tmp_path / "patches.zarr" / IR / "c.1.0.0").unlink()
    with pytest.raises(store.MissingChunkError, match=f"{IR} at crop 1"):
        embed(tmp_path / "patches.zarr", checkpoint, tmp_path / "e.zarr")


def test_channels_that_the_store_or_the_network_lacks_are_named(cube, checkpoint, tmp_path):
    rules = torch.load(checkpoint, weights_only=True)["normalization"]
    further = checkpoint_of(
        tmp_path / "c.pth", cube, channels=[IR], normalization={IR: rules[IR], "echo_top_height": rules[IR]}
    )
    state = torch.load(further, weights_only=True) | {"channels": [IR, "echo_top_height"]}
    save_checkpoint(state, further)
    with pytest.raises(SchemaError, match=r"lacks channels \['echo_top_height'\].*Pass channels=\['ir_"):
        embed(cube, further, tmp_path / "e.zarr")
    assert embed(cube, further, tmp_path / "e.zarr", channels=[IR])["channels"] == [IR]
    with pytest.raises(SchemaError, match=r"not trained on \['visible_reflectance'\]"):
        embed(cube, further, tmp_path / "f.zarr", channels=[VIS])
    with pytest.raises(SchemaError, match="no channel 'reflectivity'"):
        embed(cube, checkpoint, tmp_path / "f.zarr", channels=["reflectivity"])


def test_wrong_options_are_refused(cube, checkpoint, embeddings, tmp_path):
    for options, message in (
        ({"dtype": "float64"}, "dtype: got 'float64'"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"pool": "max"}, "pool: got 'max'"),
        ({"normalize": "maybe"}, "normalize: got 'maybe'"),
        ({"device": "abacus"}, "device: got 'abacus'"),
        ({"stride": 5}, "stride: got 5; expected a divisor of the patch, 16 px"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(cube, checkpoint, tmp_path / "e.zarr", **options)
    with pytest.raises(SchemaError, match="grids are whole crops"):
        embed(embeddings, checkpoint_2k(tmp_path / "2k.pth", embeddings), tmp_path / "e.zarr", stride=8)


def test_vectors_that_do_not_fit_the_dtype_are_refused(cube, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Network, "embed", lambda self, codes, *_: np.full((len(codes), 24), 1e6, np.float32))
    with pytest.raises(
        SchemaError, match=r"'crop': 0, 'channel': 0.* too large for float16\. Pass dtype='float32'"
    ):
        embed(cube, checkpoint, tmp_path / "e.zarr")
    assert embed(cube, checkpoint, tmp_path / "f.zarr", dtype="float32")["finished"]


def test_half_precision_is_the_rounded_single(cube, checkpoint, embeddings, tmp_path):
    embed(cube, checkpoint, tmp_path / "e.zarr")
    found = values_of(tmp_path / "e.zarr")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, values_of(embeddings).astype(np.float16), atol=2e-3)


def test_pools_are_class_token_and_mean_of_observed_tokens(cube, checkpoint, embeddings, tmp_path):
    for pool, width in (("mean", 24), ("class+mean", 48), ("mean+std", 48)):
        embed(cube, checkpoint, tmp_path / f"{pool}.zarr", pool=pool, dtype="float32")
        assert values_of(tmp_path / f"{pool}.zarr").shape[-1] == width
    both, mean = values_of(tmp_path / "class+mean.zarr"), values_of(tmp_path / "mean.zarr")
    np.testing.assert_allclose(both[..., :24], values_of(embeddings), atol=2e-5)
    np.testing.assert_allclose(both[..., 24:], mean, atol=2e-5)
    state = torch.load(checkpoint, weights_only=True)
    values, valid = Normalization.from_dict(state["normalization"][IR]).apply(window(cube, IR, 1, 32, 48))
    seen = torch.from_numpy(valid.reshape(2, TOKEN, 2, TOKEN).mean(axis=(1, 3)).reshape(1, 4) >= 0.5)
    assert 0 < seen.sum() < 4
    with torch.inference_mode():
        tokens = load_backbone(state).forward_tokens(torch.from_numpy(values)[None, None], ~seen)[0, 1:]
    np.testing.assert_allclose(mean[1, 0, 2, 3], tokens[seen[0]].mean(0).numpy(), atol=2e-5)


def test_magnification_is_that_of_training(cube, tmp_path):
    path = checkpoint_of(tmp_path / "c.pth", cube, view={"magnification": 2.0})
    embed(cube, path, tmp_path / "e.zarr", channels=IR, dtype="float32")
    state = torch.load(path, weights_only=True)
    values, valid = Normalization.from_dict(state["normalization"][IR]).apply(window(cube, IR, 0, 16, 16))
    assert valid.all()
    larger = F.interpolate(
        torch.from_numpy(values)[None, None], scale_factor=2, mode="bilinear", antialias=True
    )
    with torch.inference_mode():
        expected = load_backbone(state)(larger)[0].numpy()
    np.testing.assert_allclose(values_of(tmp_path / "e.zarr")[0, 0, 1, 1], expected, atol=2e-5)
    odd = checkpoint_of(tmp_path / "odd.pth", cube, view={"magnification": 1.1})
    with pytest.raises(SchemaError, match=r"become 17\.6 px for this network"):
        embed(cube, odd, tmp_path / "f.zarr")


def test_a_stack_of_channels_has_one_label_and_its_list(cube, tmp_path):
    path = checkpoint_of(tmp_path / "c.pth", cube, mode="stack")
    embed(cube, path, tmp_path / "e.zarr", dtype="float32")
    found = store.open_embeddings(tmp_path / "e.zarr")
    label = f"{IR}+{VIS}"
    assert found["channel"].values.tolist() == [label]
    assert store.store_info(tmp_path / "e.zarr")["channels"] == {label: [IR, VIS]}
    flags, values = cube_flags(cube), found["embedding"].values[:, 0]
    nothing = ((flags & int(NO_PIXELS)) != 0).all(axis=1)
    np.testing.assert_array_equal(np.isnan(values).all(axis=-1), nothing)
    together = found["flags"].values[:, 0]
    np.testing.assert_array_equal((together & int(NO_PIXELS)) != 0, nothing)
    assert (together[2][~nothing[2]] & int(Flag.some_missing)).all()  # no visible there
    night = (flags[:, 1] & int(Flag.night)) != 0
    np.testing.assert_array_equal((together & int(Flag.night)) != 0, night)

    state = torch.load(path, weights_only=True)
    for crop in (0, 2):
        planes = []
        for name in (IR, VIS):
            rule = Normalization.from_dict(state["normalization"][name])
            absent = crop == 2 and name == VIS
            codes = np.full((16, 16), 65535, np.uint16) if absent else window(cube, name, crop, 16, 32)
            planes.append(rule.apply(codes)[0])
        with torch.inference_mode():
            expected = load_backbone(state)(torch.from_numpy(np.stack(planes))[None])[0].numpy()
        np.testing.assert_allclose(values[crop, 1, 2], expected, atol=2e-5)
    with pytest.raises(SchemaError, match=r"reads .* at once"):
        embed(cube, path, tmp_path / "f.zarr", channels=[IR])


def test_altitudes_are_channels_or_one_stack(tmp_path):
    wanted = ("reflectivity@2.0km", "reflectivity@4.0km")
    radar = make_store(tmp_path, format="gridrad-v4.2", channels=wanted, scenes=1, shape=(64, 64), patch=32)
    packed = store.open_packed(radar)
    each = checkpoint_of(tmp_path / "each.pth", radar, channels=wanted)
    embed(radar, each, tmp_path / "each.zarr", dtype="float32")
    found = store.open_embeddings(tmp_path / "each.zarr")
    assert found["channel"].values.tolist() == list(wanted)
    assert found["variable"].values.tolist() == ["reflectivity"] * 2
    assert found["altitude_km"].values.tolist() == [2.0, 4.0]
    np.testing.assert_array_equal(found["flags"].values, packed["reflectivity_flags"].values)
    state = torch.load(each, weights_only=True)
    rule = Normalization.from_dict(state["normalization"][wanted[1]])
    values, valid = rule.apply(packed["reflectivity"][0, 1, 32:64, 0:32].values)
    hidden = torch.from_numpy(valid.reshape(4, 8, 4, 8).mean(axis=(1, 3)).reshape(1, 16) < 0.5)
    with torch.inference_mode():
        expected = load_backbone(state)(torch.from_numpy(values)[None, None], hidden)[0].numpy()
    np.testing.assert_allclose(found["embedding"].values[0, 1, 1, 0], expected, atol=2e-5)

    stack = checkpoint_of(tmp_path / "stack.pth", radar, channels=wanted, mode="stack")
    embed(radar, stack, tmp_path / "stack.zarr")
    found = store.open_embeddings(tmp_path / "stack.zarr")
    assert found["channel"].values.tolist() == ["reflectivity@2.0-4.0km"]
    assert np.isnan(found["altitude_km"].values).all()


def test_overlapping_windows_are_those_of_a_cube_cut_there(cube, checkpoint, embeddings, tmp_path):
    out = tmp_path / "e.zarr"
    embed(cube, checkpoint, out, stride=8, dtype="float32")
    fine, plain = store.open_embeddings(out), store.open_embeddings(embeddings)
    assert fine["embedding"].shape == (5, 2, 9, 13, 24)
    at = {"row": slice(0, None, 2), "col": slice(0, None, 2)}
    places = [n for n, v in plain.coords.items() if v.dims == ("crop", "row", "col")]
    assert {"latitude", "longitude", "solar_zenith_angle"} <= set(places)
    for name in ("embedding", *places, "valid_fraction"):
        np.testing.assert_allclose(fine[name].isel(at).values, plain[name].values, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(fine["flags"].isel(at).values, plain["flags"].values)

    write_scenes(tmp_path / "sources", range(5), cut=8)
    shifted = preprocess(tmp_path / "sources", tmp_path / "patches.zarr")
    state = torch.load(checkpoint, weights_only=True)
    save_checkpoint(state, tmp_path / "c.pth")
    embed(shifted, tmp_path / "c.pth", tmp_path / "s.zarr", dtype="float32")
    other = store.open_embeddings(tmp_path / "s.zarr")
    at = {"row": slice(1, None, 2), "col": slice(1, None, 2)}
    for name in ("embedding", *places, "valid_fraction"):
        np.testing.assert_allclose(fine[name].isel(at).values, other[name].values, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(fine["flags"].isel(at).values, other["flags"].values)
    assert store.store_info(out)["stride"] == 8
    assert embed(cube, checkpoint, out, stride=8, dtype="float32")["blocks_kept"] == 1


def test_overlapping_windows_inherit_what_pixels_cannot_tell(cube, checkpoint):
    source = PatchInput(cube, Network(checkpoint).trained, channels=IR, stride=8)
    flags = source.dataset[f"{IR}_flags"].values.copy()
    flags[0, 1, 2] |= int(Flag.limb)
    source.dataset[f"{IR}_flags"] = (("crop", "row", "col"), flags)
    found = source.small(range(1))["flags"][:, 0]
    expected = np.zeros((9, 13), bool)
    expected[1:4, 3:6] = True
    np.testing.assert_array_equal((found[0] & int(Flag.limb)) != 0, expected)


def test_overlapping_windows_have_observation_times_between_those_of_patches(tmp_path):
    write_sources(tmp_path / "sources", format="larc-goes", scenes=1, shape=(96, 96))
    cube = tmp_path / "patches.zarr"
    pipeline.preprocess(tmp_path / "sources", cube, recipe=Recipe(channels=(IR,), tile=TileSpec(patch=32)))
    path = checkpoint_of(tmp_path / "c.pth", cube, channels=(IR,))
    embed(cube, path, tmp_path / "e.zarr", stride=16)
    rows, windows = (
        d["observation_time"].values[0]
        for d in (store.open_packed(cube), store.open_embeddings(tmp_path / "e.zarr"))
    )
    np.testing.assert_array_equal(windows[::2], rows)
    assert (windows[1::2] > rows[:-1]).all()
    assert (windows[1::2] < rows[1:]).all()


def test_times_and_angles_between_patches():
    times = np.array([[0, 10, TIME_FILL]])
    assert _between_times(times, 2, 5).tolist() == [[0, 5, 10, TIME_FILL, TIME_FILL]]
    angles = np.array([[[0.0, 2.0, np.nan], [4.0, 6.0, np.nan]]], np.float32)
    found = _between(angles, 2)
    assert found.shape == (1, 3, 5)
    assert found[0, 1].tolist()[:4] == [2.0, 3.0, 4.0, 4.0]
    assert np.isnan(found[0, :, 4]).all()


def predecessor(path, cells=False):
    """The predecessor's checkpoint: no config, its prefixes, its arguments apart."""
    torch.manual_seed(3)
    net = build("vit2k_xs", 24) if cells else build("vit_demo")
    save_checkpoint({"teacher": {f"backbone.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, path)
    return path, net.eval()


def test_the_predecessors_checkpoint_takes_the_stores_normalisation(cube, tmp_path, caplog):
    path, net = predecessor(tmp_path / "old.pth")
    embed(cube, path, tmp_path / "e.zarr", channels=IR, dtype="float32")
    assert "keeps no normalization" in caplog.text
    rule = normalizations(cube, [IR])[IR]
    codes = window(cube, IR, 0, 16, 16)
    with torch.inference_mode():
        expected = net(torch.from_numpy(rule.apply(codes)[0])[None, None])[0].numpy()
        raw = net(torch.from_numpy(codes * np.float32(0.01))[None, None])[0].numpy()
    np.testing.assert_allclose(values_of(tmp_path / "e.zarr")[0, 0, 1, 1], expected, atol=1e-4)
    embed(cube, path, tmp_path / "raw.zarr", channels=IR, dtype="float32", normalize="none")
    np.testing.assert_allclose(values_of(tmp_path / "raw.zarr")[0, 0, 1, 1], raw, atol=1e-3)


def test_grids_are_embedded_with_the_cells_that_training_uses(embeddings, embeddings_2k):
    found, source = store.open_embeddings(embeddings_2k), store.open_embeddings(embeddings)
    assert found["embedding"].dims == ("crop", "channel", "feature")
    assert found["embedding"].shape == (5, 2, 24)
    values = found["embedding"].values
    assert np.isnan(values[FAILED]).all()
    assert np.isnan(values[2, 1]).all()
    assert np.isfinite(values[[0, 1, NIGHT]]).all()
    for name in ("flags", "latitude", "time", "source", "altitude_km"):
        np.testing.assert_array_equal(found[name].values, source[name].values, err_msg=name)

    state = torch.load(embeddings.parent / "checkpoint_2k.pth", weights_only=True)
    net, grids = load_backbone(state), GridDataset(embeddings)
    batch = grids.__getitems__(range(len(grids)))
    with torch.inference_mode():
        inputs, cells = grids.decode(batch)
        expected = net(inputs, attention_mask=cells).numpy()
    assert not cells.all()
    np.testing.assert_allclose(values[grids.crop, grids.channel], expected, atol=2e-5)
    assert (
        NIGHT not in grids.crop[grids.channel == 1]
    )  # every visible cell at night is rejected, and embedded


def test_level_2k_says_what_it_was_made_from(embeddings, embeddings_2k):
    info, source = store.store_info(embeddings_2k), store.store_info(embeddings)
    assert info["level"] == "2k"
    assert info["source"] == "embeddings.zarr"
    assert info["source_identity"] == source["identity"]
    assert info["embedded_from"]["checkpoint"] == source["checkpoint"]
    assert (info["patch"], info["crop"]) == (16, [80, 112])


def test_grids_of_another_network_are_refused(cube, embeddings, embeddings_2k, tmp_path):
    second = embeddings.parent / "checkpoint_2k.pth"
    other = checkpoint_of(tmp_path / "other.pth", cube, seed=9)
    embed(cube, other, tmp_path / "other.zarr")
    with pytest.raises(SchemaError, match=r"was trained on those of .* they mean different things"):
        embed(tmp_path / "other.zarr", second, tmp_path / "e.zarr")
    wide = checkpoint_of(tmp_path / "wide.pth", cube)
    embed(cube, wide, tmp_path / "wide.zarr", pool="class+mean")
    with pytest.raises(SchemaError, match=r"embeddings have 48 features, but .* reads 24"):
        embed(tmp_path / "wide.zarr", second, tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match="no channel 'echo_top_height'"):
        embed(embeddings, second, tmp_path / "e.zarr", channels="echo_top_height")


def test_the_predecessors_second_level_takes_raw_embeddings(embeddings, tmp_path):
    path, net = predecessor(tmp_path / "old.pth", cells=True)
    embed(embeddings, path, tmp_path / "e.zarr", channels=IR, dtype="float32")
    embed(embeddings, path, tmp_path / "normal.zarr", channels=IR, normalize="store")
    kept = store.store_info(tmp_path / "normal.zarr")["normalization"]
    assert kept == GridDataset(embeddings, channels=[IR]).normalization
    grid = torch.from_numpy(values_of(embeddings)[0, 0]).permute(2, 0, 1)[None]
    cells = torch.from_numpy(
        store.open_embeddings(embeddings)["flags"].values[0, 0] & int(Flag.low_coverage) == 0
    )
    with torch.inference_mode():
        expected = net(grid, attention_mask=cells[None])[0].numpy()
    np.testing.assert_allclose(values_of(tmp_path / "e.zarr")[0, 0], expected, atol=1e-4)


def test_a_store_of_another_scale_is_warned_about(cube, tmp_path, caplog):
    view = dataclasses.asdict(ViewSpec()) | {"pixel_spacing_km": 1.0}
    path = checkpoint_of(tmp_path / "c.pth", cube)
    save_checkpoint(torch.load(path, weights_only=True) | {"view": view}, path)
    embed(cube, path, tmp_path / "e.zarr")
    assert "was trained on pixels of 1 km" in caplog.text
