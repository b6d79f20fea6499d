"""What training may add to its objective: partners in time, spread features, targets for single tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cubes import COLS, IR, PATCH, ROWS, random_codes, write_cube

from gridrad_cube.datasets import PairDataset, PatchDataset, followers
from gridrad_cube.models import GridViewSpec, ViewSpec, draw_grid_views, draw_views, koleo_loss
from gridrad_cube.models.checkpoints import load_checkpoint, save_checkpoint
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.train import Config, load_config, train
from gridrad_cube.train.sources import PatchSource

#: A network and views for the 16 px patches of `cubes`.
TINY = {
    "preset": "none", "arch": "vit_demo", "patch_size": 4, "global_size": 12, "local_size": 8,
    "local_crops_number": 2, "head_hidden_dim": 32, "out_dim": 64, "batch_size_per_gpu": 8, "warmup_epochs": 0,
    "warmup_teacher_temp_epochs": 0, "freeze_last_layer": 0, "precision": "fp32", "lr": 0.01, "log_steps": 1,
}  # fmt: skip
CROPS = 6
#: Of the crops, in minutes: 5 min apart, then a gap, then two sources at nearly one time.
MINUTES = np.array([0, 5, 10, 60, 64, 66])


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Six crops of one place out of order in time; one patch of the second is all missing."""
    flags = np.zeros((CROPS, ROWS, COLS), np.uint16)
    flags[1, 0, 0] = Flag.all_missing
    start = np.datetime64("2024-05-01", "s").astype(np.int64)
    small = {"time": start + 60 * MINUTES[::-1], f"{IR}_flags": flags}
    codes = random_codes(IR, (CROPS, ROWS * PATCH, COLS * PATCH))
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", {IR: codes}, small=small)


def config_for(store: Path, out: Path, **options) -> Config:
    return load_config(store=str(store), out=str(out), **TINY | options)


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# partners in time


def brute_followers(data: PatchDataset, minutes: float) -> list[int]:
    table, time = data.table, data._dataset["time"].values.astype("datetime64[s]").astype(np.int64)
    out = []
    for i in range(len(table)):
        same = [
            j for j in range(len(table))
            if all(getattr(table, n)[i] == getattr(table, n)[j] for n in ("row", "col", "channel"))
        ]  # fmt: skip
        away = {j: abs(time[table.crop[j]] - time[table.crop[i]] - 60 * minutes) for j in same}
        near = [j for j in same if away[j] <= 30 * minutes]
        out.append(min(near, key=lambda j: (away[j], time[table.crop[j]])) if near else i)
    return out


@pytest.mark.parametrize("minutes", [1.5, 3, 5, 6.5, 50, 60])
def test_follower_is_the_nearest_to_the_lead_at_the_same_place(cube, minutes):
    data = PatchDataset(cube)
    assert followers(data, minutes).tolist() == brute_followers(data, minutes)


def test_follower_is_clean_and_of_the_same_channel_and_place(cube):
    data = PatchDataset(cube)
    table, partner = data.table, followers(data, 5)
    has = partner != np.arange(len(data))
    assert 0 < has.sum() < len(data)
    for name in ("row", "col", "channel"):
        assert (getattr(table, name)[partner] == getattr(table, name)).all()
    assert not ((table.crop[partner] == 1) & (table.row[partner] == 0) & (table.col[partner] == 0)).any()
    assert (followers(data, 5, first=40) < np.maximum(40, np.arange(len(data)) + 1)).all()


def test_places_are_matched_by_position_not_by_row_and_column(tmp_path):
    """The second crop's window lies one patch further south and across the date line."""
    latitude = np.stack([40.0 - np.arange(ROWS), 39.0 - np.arange(ROWS)])[:, :, None]
    longitude = np.stack([178.0 + np.arange(COLS), 178.0 + np.arange(COLS)])[:, None]
    longitude[1] = (longitude[1] + 180) % 360 - 180
    shape = (2, ROWS, COLS)
    small = {"latitude": np.broadcast_to(latitude, shape), "longitude": np.broadcast_to(longitude, shape)}
    store = write_cube(
        tmp_path / "s.zarr", {IR: random_codes(IR, (2, ROWS * PATCH, COLS * PATCH))}, small=small
    )
    data = PatchDataset(store)
    partner = followers(data, 60)
    table = data.table
    for i in range(len(data)):
        if table.crop[i] == 0 and table.row[i] > 0:
            j = partner[i]
            assert (table.crop[j], table.row[j], table.col[j]) == (1, table.row[i] - 1, table.col[i])
        else:
            assert partner[i] == i


def test_lead_that_no_sample_has_is_refused(cube):
    with pytest.raises(
        SchemaError, match=r"no sample has a partner 600 min later .* a place are 5 min apart"
    ):
        followers(PatchDataset(cube), 600)
    with pytest.raises(SchemaError, match="no place comes at two times"):
        followers(PatchDataset(cube, time=("2024-05-01", "2024-05-01T00:01")), 5)


def test_pairs_are_samples_then_their_partners(cube):
    data = PatchDataset(cube)
    partner = followers(data, 5)
    pairs = PairDataset(data, partner)
    index = np.array([7, 3, 60])
    batch = pairs.__getitems__(index)
    assert batch.index.tolist() == [*index, *partner[index]]
    assert torch.equal(batch.codes, data.__getitems__([*index, *partner[index]]).codes)
    assert (len(pairs), pairs.describe(3)) == (len(data), data.describe(3))


def test_pairs_of_a_damaged_store_stay_pairs(tmp_path):
    codes = random_codes(IR, (2, ROWS * PATCH, COLS * PATCH))
    store = write_cube(tmp_path / "s.zarr", {IR: codes})
    shard = store / IR / "c.1.0.0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1  # in the first patch of the later crop
    shard.write_bytes(data)
    dataset = PatchDataset(store, on_damage="skip")
    assert (dataset.table.row[0], dataset.table.col[0]) == (0, 0)
    partners = followers(dataset, 60)
    batch = PairDataset(dataset, partners).__getitems__([3, 0, int(partners[0])])
    assert batch.index.tolist() == [3, 0, partners[3], 0]
    assert batch.damaged.tolist() == [partners[0]]
    assert torch.equal(batch.codes[1], batch.codes[3])


def test_later_global_views_are_drawn_from_the_partner():
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 3, 1, 16, 16, generator=generator)
    mask, other_mask = torch.rand(2, 3, 1, 16, 16, generator=generator) > 0.1
    spec = ViewSpec(
        global_size=12, local_size=8, local_views=2, blur=(0.5, 0.5, 0.5), row_dropout=0.1, flips="d4"
    )
    seeds = torch.arange(3)
    first, second = (draw_views(*field, spec, seeds) for field in ((x, mask), (other, other_mask)))
    both = draw_views(x, mask, spec, seeds, (other, other_mask))
    for got, expected in zip(both, [first[0], second[1], *first[2:]], strict=True):
        torch.testing.assert_close(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_later_global_views_of_grids_are_drawn_from_the_partner():
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 3, 6, 5, 5, generator=generator)
    cells, other_cells = torch.rand(2, 3, 5, 5, generator=generator) > 0.2
    spec, seeds = GridViewSpec(local_views=2, flips="h"), torch.arange(3)
    first, second = (draw_grid_views(*grid, spec, seeds) for grid in ((x, cells), (other, other_cells)))
    both = draw_grid_views(x, cells, spec, seeds, (other, other_cells))
    for got, expected in zip(both, [first[0], second[1], *first[2:]], strict=True):
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_samples_takes_partners_by_seed_and_epoch_alone(cube, tmp_path, share):
    options = {"temporal_positives": 5, "flips": "none", "gain": 0.0}
    paired = PatchSource(config_for(cube, tmp_path, temporal_share=share, **options))
    alone = PatchSource(config_for(cube, tmp_path))
    partner = paired.loaded.partners
    index = np.flatnonzero(partner != np.arange(len(partner)))[:32]
    views = paired.draw(paired.loaded.__getitems__(index), index, epoch=1)
    own = PatchSource(dataclasses.replace(alone.config, gain=0.0)).draw(
        alone.dataset.__getitems__(index), index, epoch=1
    )
    assert torch.equal(views[0].x, own[0].x)
    same = (views[1].x == own[1].x).flatten(1).all(1)
    assert {0.0: same.all(), 0.5: same.any() and not same.all(), 1.0: not same.any()}[share]
    for i in index[:4]:
        one = paired.draw(paired.loaded.__getitems__([i]), np.array([i]), epoch=1)
        torch.testing.assert_close(one[1].x[0], views[1].x[index == i][0])


EXTRAS = {
    "temporal": {"temporal_positives": 5, "temporal_share": 0.7},
    "koleo": {"koleo": 0.1},
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("objective", ["dino", "coding-rate"])
def test_run_with_extras_goes_on_as_if_nothing_had_been(cube, tmp_path, objective, extra):
    options = {"objective": objective, "steps": 3, "save_steps": 1, **EXTRAS[extra]}
    whole = train(config_for(cube, tmp_path / "a", **options))
    train(
        config_for(cube, tmp_path / "b", **options, resume=str(tmp_path / "a" / "checkpoint_step0000001.pth"))
    )
    assert [r["train_loss"] for r in metrics_of(tmp_path / "a")][1:] == [
        r["train_loss"] for r in metrics_of(tmp_path / "b")
    ]
    a, b = load_checkpoint(whole["checkpoint"]), load_checkpoint(tmp_path / "b" / "checkpoint.pth")
    for key in ("student", "teacher", "dino_loss"):
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), name


def test_checkpoint_from_before_an_option_goes_on(cube, tmp_path):
    path = Path(train(config_for(cube, tmp_path, steps=2, save_steps=1))["checkpoint"])
    old = load_checkpoint(path.with_name("checkpoint_step0000001.pth"))
    for name in ("temporal_positives", "temporal_share", "koleo"):
        del old["config"][name]
    (tmp_path / "old").mkdir()
    save_checkpoint(old, tmp_path / "old" / "checkpoint.pth")
    assert train(config_for(cube, tmp_path / "old", steps=2))["step"] == 2
    with pytest.raises(SchemaError, match=r"--temporal-positives 0.0 there, 5.0 here"):
        train(config_for(cube, tmp_path / "old", steps=2, temporal_positives=5))


# spread features


def brute_koleo(features: np.ndarray) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    return -float(np.mean(np.log(nearest)))


def test_koleo_is_the_mean_logarithm_of_nearest_distances():
    features = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    expected = np.mean([brute_koleo(part.numpy()) for part in features.chunk(2)])
    assert float(koleo_loss(features, 2)) == pytest.approx(expected, rel=1e-4)
    assert float(koleo_loss(7 * features, 2)) == pytest.approx(expected, rel=1e-4)


def test_koleo_is_float32_under_autocast_and_pushes_neighbours_apart():
    features = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = koleo_loss(features, 1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = koleo_loss(features, 1)
    assert torch.equal(plain, rounded)
    assert plain.dtype == torch.float32
    plain.backward()
    with torch.no_grad():
        assert koleo_loss(features - 1e-2 * features.grad, 1) < plain


def test_koleo_leaves_duplicates_alone():
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    features[1] = features[0]
    features.requires_grad_()
    loss = koleo_loss(features, 1)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert features.grad[1].abs().max() < 1e-6  # no sample but its double is its neighbour


def test_koleo_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="a batch of one sample has no neighbours"):
        koleo_loss(torch.ones(2, 4), 2)


def test_terms_of_the_loss_are_told_apart(cube, tmp_path):
    train(config_for(cube, tmp_path, steps=2, koleo=0.5))
    for record in metrics_of(tmp_path):
        total = record["loss_views"] + 0.5 * record["loss_koleo"]
        assert record["train_loss"] == pytest.approx(total, rel=1e-5)
        assert record["headroom"] == pytest.approx(np.log(64) - record["loss_views"], rel=1e-5)
