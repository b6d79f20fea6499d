"""What training may add to its objective: partners in time, spread features, targets for tokens; and mirrors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cubes import COLS, IR, PATCH, ROWS, VIS, random_codes, write_cube
from query_stores import make_embeddings, write
from ranks import metrics_of

from gridrad_cube.datasets import GridDataset, PairDataset, PatchDataset, followers
from gridrad_cube.models import (
    GridViewSpec,
    ViewSpec,
    draw_grid_views,
    draw_views,
    load_checkpoint,
)
from gridrad_cube.schema import CHANNELS, Flag, SchemaError
from gridrad_cube.training import Config, list_presets, load_config, train
from gridrad_cube.training.data import _is_handed, _PatchSource

PROJECT = Path(__file__).resolve().parents[1]
#: A network and views for the 16 px patches of `cubes`.
TINY = {
    "preset": "none", "arch": "vit_demo", "patch_size": 4, "global_size": 12, "local_size": 8,
    "local_crops_number": 2, "head_hidden_dim": 32, "out_dim": 64, "batch_size_per_gpu": 8, "warmup_epochs": 0,
    "warmup_teacher_temp_epochs": 0, "freeze_last_layer": 0, "precision": "fp32", "lr": 0.01, "log_steps": 1,
}  # fmt: skip
#: For ``save_minutes``.
EVERY_STEP = 1e-9
CROPS = 6
#: Of the crops, in minutes: 5 min apart, then a gap, then two sources at nearly one time.
MINUTES = np.array([0, 5, 10, 60, 64, 66])


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Six crops of one place and two channels, the last first; one infrared patch is all missing."""
    flags = np.zeros((CROPS, ROWS, COLS), np.uint16)
    flags[1, 0, 0] = Flag.all_missing
    start = np.datetime64("2024-05-01", "s").astype(np.int64)
    small = {"time": start + 60 * MINUTES[::-1], f"{IR}_flags": flags}
    shape = (CROPS, ROWS * PATCH, COLS * PATCH)
    return write_cube(
        tmp_path_factory.mktemp("cube") / "patches.zarr",
        {name: random_codes(name, shape) for name in (IR, VIS)},
        small=small,
        statistics={IR: {"mean": 270.0, "std": 20.0}, VIS: {"mean": 0.4, "std": 0.2}},
    )


@pytest.fixture(scope="module")
def grids(tmp_path_factory) -> Path:
    """Embeddings of three windows in turn, hourly; see `make_embeddings` for what is missing."""
    path = tmp_path_factory.mktemp("grids") / "embeddings.zarr"
    write(make_embeddings(rows=4, cols=5), path)
    return path


def config_for(store: Path, out: Path, **options) -> Config:
    return load_config(store=str(store), out=str(out), **TINY | options)


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
    missing = [
        getattr(table, name)[partner] == n
        for name, n in (("crop", 1), ("row", 0), ("col", 0), ("channel", 0))
    ]
    assert not np.logical_and.reduce(missing).any()


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
    with pytest.raises(SchemaError, match="no sample has a partner 600 min later"):
        followers(PatchDataset(cube), 600)
    with pytest.raises(SchemaError, match="no sample has a partner 5 min later"):
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


def test_followers_of_grids_are_those_of_the_same_window_and_channel(grids):
    data = GridDataset(grids, reject=())
    partner = followers(data, 60)
    for i, j in enumerate(partner):
        assert data.channel[i] == data.channel[j]
        # Crop 0 lacks a cell that its window has later, and crop 5 was not written.
        alone = data.crop[i] in (0, 2) or data.crop[i] >= 21
        assert data.crop[j] - data.crop[i] == (0 if alone else 3)


def test_later_global_views_are_drawn_from_the_partner():
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 3, 1, 16, 16, generator=generator)
    mask, other_mask = torch.rand(2, 3, 1, 16, 16, generator=generator) > 0.1
    spec = ViewSpec(global_size=12, local_size=8, local_views=2, blur=(0.5, 0.5, 0.5), flips="d4")
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


def test_second_global_view_of_a_sample_is_that_of_its_partner(cube, tmp_path):
    paired = _PatchSource(config_for(cube, tmp_path, temporal_positives=5))
    alone = _PatchSource(config_for(cube, tmp_path))
    partner = paired.loaded.partners
    index = np.flatnonzero(partner != np.arange(len(partner)))[:32]
    views = paired.draw(paired.loaded.__getitems__(index), index, epoch=1)
    own = alone.draw(alone.dataset.__getitems__(index), index, epoch=1)
    assert torch.equal(views[0].x, own[0].x)
    assert not (views[1].x == own[1].x).flatten(1).all(1).any()
    assert len(set(paired.dataset.table.channel[index])) == 2
    for i in index[:4]:
        one = paired.draw(paired.loaded.__getitems__([i]), np.array([i]), epoch=1)
        torch.testing.assert_close(one[1].x[0], views[1].x[index == i][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["dino", "coding-rate"])
def test_run_on_pairs_in_time_resumes_with_the_same_curve(cube, tmp_path, objective):
    options = {"objective": objective, "steps": 3, "save_minutes": EVERY_STEP, "temporal_positives": 5}
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


def test_level_2k_resumes_with_pairs_in_time(grids, tmp_path):
    common = {"preset": "none", "temporal_positives": 60, "batch_size_per_gpu": 16, "head_hidden_dim": 32}
    common |= {"out_dim": 64, "steps": 3, "save_minutes": EVERY_STEP, "log_steps": 1, "warmup_epochs": 0}
    common |= {"warmup_teacher_temp_epochs": 0, "precision": "fp32", "local_crops_number": 2}

    def run(out: str, **options) -> list[dict]:
        train(load_config(store=str(grids), out=str(tmp_path / out), **common | options))
        return metrics_of(tmp_path / out)

    whole = run("a")
    again = run("b", resume=str(tmp_path / "a" / "checkpoint_step0000001.pth"))
    assert [r["train_loss"] for r in again] == [r["train_loss"] for r in whole[1:]]


# mirrors


def test_views_of_wind_and_shear_are_never_mirrored(tmp_path, caplog):
    shape = (2, ROWS * PATCH, COLS * PATCH)
    names = ("azimuthal_shear", "divergence", "reflectivity_column_maximum")
    store = write_cube(
        tmp_path / "s.zarr", {name: random_codes(name, shape) for name in names},
        statistics={name: {"mean": 0.0, "std": 1.0} for name in names},
    )  # fmt: skip
    source = _PatchSource(config_for(store, tmp_path, flips="d4", channels=names))
    assert [spec.flips for spec in source.specs] == ["none", "d4", "d4"]
    assert "views of azimuthal_shear are not mirrored" in caplog.text
    stacked = _PatchSource(config_for(store, tmp_path, flips="h", channels=names, channel_mode="stack"))
    assert {spec.flips for spec in stacked.specs} == {"none"}
    assert _is_handed("eastward_wind")
    assert not any(_is_handed(name) for name in CHANNELS if name != "azimuthal_shear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal_positives": -5}, r"`temporal_positives`: got -5.0; expected at least 0"),
        (
            {"contrast_weight": 1, "objective": "contrast"},
            "`contrast_weight`: the objective is the contrast itself",
        ),
        (
            {"pool": "projection"},
            "`pool`: got 'projection', .* does not train. Pass `objective='contrast'`, or",
        ),
        ({"temporal_positives": 600}, r"no sample has a partner 600 min later"),
    ],
)
def test_extras_that_cannot_be_are_refused(cube, tmp_path, options, message):
    with pytest.raises(SchemaError, match=message):
        train(config_for(cube, tmp_path / "run", steps=1, **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", sorted(list_presets()))
def test_views_of_every_recipe_but_the_predecessors_keep_fields_physical(cube, tmp_path, preset):
    options = {"patch_size": 4, "global_size": 12, "local_size": 8, "image_size": "auto", "coarsen": 1}
    source = _PatchSource(load_config(preset=preset, store=str(cube), out=str(tmp_path), **options))
    for spec, rule in zip(source.specs, source.dataset.normalizations.values(), strict=True):
        physical = {
            "mode": spec.mode == "zoom",
            "zoom": 0.8 <= spec.zoom[0] <= spec.zoom[1] <= 1.25,
            "gain": 0 < spec.gain <= 1.0 / rule.std,  # 1 K, or less of a reflectance
            "solarize": spec.solarize == 0,
            "blur": not any(spec.blur),
        }
        wrong = [name for name, holds in physical.items() if not holds]
        if (
            preset == "demo" and wrong
        ):  # it shifts values on purpose: the ground's temperature says nothing of a storm
            assert wrong == ["gain"]
        else:
            assert wrong == (["mode", "gain", "solarize", "blur"] if preset == "predecessor" else [])
