"""Data sets: which patches are samples, what they hold and what damage does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cubes import (
    ALTITUDES,
    ALWAYS,
    COLS,
    IR,
    PATCH,
    ROWS,
    VIS,
    ZMAX,
    FakeDataset,
    Z,
    cell,
    clean_pixels,
    damaged_store,
    is_damaged,
    random_codes,
    write_cube,
)
from torch.utils.data import DataLoader

from gridrad_cube.datasets import (
    PatchDataset,
    PatchLoader,
    Stratum,
)
from gridrad_cube.schema import Flag, SchemaError, channel_label
from gridrad_cube.store import (
    MissingChunkError,
)


@pytest.fixture(scope="module")
def pixels() -> dict[str, np.ndarray]:
    """What `cube` holds."""
    return clean_pixels()


@pytest.fixture(scope="module")
def cube(tmp_path_factory, pixels) -> Path:
    """Five crops of infrared and of radar at three altitudes, all clean."""
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", pixels)


def test_dataset_each_has_a_sample_for_every_patch_and_label(cube, pixels):
    data = PatchDataset(cube)
    assert data.labels == (IR, "reflectivity@1.0km", "reflectivity@3.0km", "reflectivity@5.5km")
    assert len(data) == 5 * ROWS * COLS * 4
    index = [0, 3, len(data) - 1, 77, 3]
    batch = data.__getitems__(index)
    assert batch.codes.dtype == torch.uint16
    assert batch.codes.shape == (5, 1, PATCH, PATCH)
    for codes, i, channel in zip(batch.codes.numpy()[:, 0], index, batch.channel.tolist(), strict=True):
        crop, row, col = data.table.crop[i], data.table.row[i], data.table.col[i]
        source = pixels[IR][crop] if channel == 0 else pixels[Z][crop, channel - 1]
        np.testing.assert_array_equal(codes, cell(source, row, col))
    assert batch.index.tolist() == index


def test_dataset_stack_has_all_labels_in_the_order_asked(cube, pixels):
    labels = ["reflectivity@3.0km", IR, "reflectivity@1.0km"]
    data = PatchDataset(cube, channels=labels, channel_mode="stack")
    assert len(data) == 5 * ROWS * COLS
    batch = data.__getitems__([len(data) - 1, 21])
    assert batch.codes.shape == (2, 3, PATCH, PATCH)
    assert batch.channel.tolist() == [0, 0]
    for codes, i in zip(batch.codes.numpy(), batch.index.tolist(), strict=True):
        crop, row, col = data.table.crop[i], data.table.row[i], data.table.col[i]
        expected = [pixels[Z][crop, 1], pixels[IR][crop], pixels[Z][crop, 0]]
        np.testing.assert_array_equal(codes, cell(np.stack(expected), row, col))


def test_dataset_stack_of_one_variable_reads_its_levels(cube, pixels):
    data = PatchDataset(cube, channels=Z, channel_mode="stack")
    batch = data[7]
    crop, row, col = data.table.crop[7], data.table.row[7], data.table.col[7]
    np.testing.assert_array_equal(batch.codes.numpy()[0], cell(pixels[Z][crop], row, col))


@pytest.mark.parametrize("name", ["reflectivity@3km", "reflectivity@3.0km", "reflectivity@3.0"])
def test_dataset_takes_a_label_however_its_altitude_is_written(cube, name):
    assert PatchDataset(cube, channels=[name]).labels == ("reflectivity@3.0km",)


def test_dataset_selects_altitudes_and_leaves_flat_channels(cube):
    assert PatchDataset(cube, altitude=3).labels == (IR, "reflectivity@3.0km")
    heights = PatchDataset(cube, channels=Z, altitude=np.array([5.5, 1.0]))
    assert heights.labels == ("reflectivity@1.0km", "reflectivity@5.5km")
    for altitude in (4.0, [], [1.0, 2.0]):
        with pytest.raises(
            SchemaError, match=r"no (level|altitude).*; expected (one|some) of \[1.0, 3.0, 5.5\] km"
        ):
            PatchDataset(cube, altitude=altitude)
    with pytest.raises(SchemaError, match=r"no level at 3 km; expected one of \[\] km"):
        PatchDataset(cube, channels=IR, altitude=3.0)


def test_dataset_refuses_a_channel_that_the_store_lacks(cube):
    with pytest.raises(SchemaError, match=r"no channel 'visible_reflectance'; expected .*reflectivity@5.5km"):
        PatchDataset(cube, channels=VIS)
    with pytest.raises(SchemaError, match=r"no channel 'reflectivity@4.0km'"):
        PatchDataset(cube, channels=["reflectivity@4.0km"])
    with pytest.raises(SchemaError, match="no channel asked for"):
        PatchDataset(cube, channels=[])
    with pytest.raises(SchemaError, match="channel_mode: got 'both'"):
        PatchDataset(cube, channel_mode="both")
    with pytest.raises(SchemaError, match="coarsen: got 3; expected a divisor of the patch, 16"):
        PatchDataset(cube, coarsen=3)


@pytest.fixture(scope="module")
def flagged(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Infrared and visible with flags, crops that were not written, centres about the date line."""
    rng = np.random.default_rng(3)
    crops = 9
    flags = {
        f"{name}_flags": (1 << rng.integers(0, 15, (crops, ROWS, COLS))).astype(np.uint16)
        * (rng.random((crops, ROWS, COLS)) < 0.6)
        for name in (IR, VIS)
    }
    flags[f"{VIS}_flags"][4] = Flag.channel_absent
    small = {k: v.astype(np.uint16) for k, v in flags.items()}
    small["status"] = np.array([0, 0, 1, 0, 0, 2, 0, 0, 0], np.uint8)
    lon = 170.0 + 5 * np.arange(COLS)
    small["longitude"] = np.broadcast_to((lon + 180) % 360 - 180, (crops, ROWS, COLS)).copy()
    small["longitude"][0, 0, 0] = np.nan
    small["latitude"] = np.broadcast_to(10.0 * np.arange(ROWS)[:, None], (crops, ROWS, COLS))
    shape = (crops, ROWS * PATCH, COLS * PATCH)
    pixels = {IR: random_codes(IR, shape, 4), VIS: random_codes(VIS, shape, 5)}
    return write_cube(tmp_path_factory.mktemp("flagged") / "patches.zarr", pixels, small=small), small


def expected_rows(small, name: str, mask: int, keep=lambda crop, row, col: True) -> set[tuple[int, int, int]]:
    flags = small[f"{name}_flags"]
    return {
        (crop, row, col)
        for crop, row, col in np.ndindex(flags.shape)
        if small["status"][crop] == 0 and not flags[crop, row, col] & mask and keep(crop, row, col)
    }


def rows_of(data: PatchDataset) -> set[tuple[int, int, int]]:
    return set(zip(data.table.crop.tolist(), data.table.row.tolist(), data.table.col.tolist(), strict=True))


def test_table_keeps_what_the_default_of_each_kind_keeps(flagged):
    store, small = flagged
    assert rows_of(PatchDataset(store, channels=IR)) == expected_rows(small, IR, ALWAYS)
    visible = expected_rows(small, VIS, ALWAYS | Flag.night)
    assert rows_of(PatchDataset(store, channels=VIS)) == visible
    assert visible != expected_rows(small, VIS, ALWAYS)
    both = PatchDataset(store)
    assert len(both) == len(expected_rows(small, IR, ALWAYS)) + len(visible)
    assert len(
        set(zip(*(getattr(both.table, c).tolist() for c in ("crop", "row", "col", "channel")), strict=True))
    ) == len(both)


def test_table_stack_keeps_where_all_labels_are_clean(flagged):
    store, small = flagged
    both = expected_rows(small, IR, ALWAYS) & expected_rows(small, VIS, ALWAYS | Flag.night)
    data = PatchDataset(store, channel_mode="stack")
    assert rows_of(data) == both
    assert len(data) == len(both)


def test_table_reject_takes_names_masks_and_always_absence(flagged):
    store, small = flagged
    chosen = PatchDataset(store, channels=IR, reject=["night", "limb"])
    assert rows_of(chosen) == expected_rows(
        small, IR, Flag.night | Flag.limb | Flag.channel_absent | Flag.padding
    )
    assert rows_of(PatchDataset(store, channels=IR, reject=Flag.night | Flag.limb)) == rows_of(chosen)
    everything = PatchDataset(store, channels=VIS, reject=())
    assert rows_of(everything) == expected_rows(small, VIS, Flag.channel_absent | Flag.padding)
    assert 4 not in everything.table.crop
    assert everything.reject == {VIS: int(Flag.channel_absent | Flag.padding)}
    with pytest.raises(SchemaError, match="unknown flag 'dark'"):
        PatchDataset(store, reject="dark")


def test_table_time_includes_start_and_not_stop(flagged):
    store, small = flagged
    data = PatchDataset(store, channels=IR, time=("2024-05-01T01:00Z", np.datetime64("2024-05-01T06:00")))
    assert rows_of(data) == expected_rows(small, IR, ALWAYS, lambda crop, row, col: 1 <= crop < 6)
    after = PatchDataset(store, channels=IR, exclude_time=(None, "2024-05-01T06:00"))
    assert not rows_of(after) & rows_of(data)
    with pytest.raises(
        SchemaError, match=r"no crop in the time .* from 2024-05-01T00:00:00 to 2024-05-01T08"
    ):
        PatchDataset(store, time=("2030-01-01", None))
    with pytest.raises(SchemaError, match="start is not before stop"):
        PatchDataset(store, time=("2024-05-02", "2024-05-01"))
    with pytest.raises(SchemaError, match="time: cannot read 'noon'"):
        PatchDataset(store, time=("noon", None))


@pytest.mark.parametrize(
    ("bbox", "inside"),
    [
        ((174, -90, -174, 90), {1, 2, 3}),
        ((174, -90, 186, 90), {1, 2, 3}),
        ((-180, -90, 180, 90), {0, 1, 2, 3, 4}),
        ((0, -90, 360, 90), {0, 1, 2, 3, 4}),
        ((-180, -90, -170, 90), {2, 3, 4}),
        ((170, -90, 170, 90), {0}),
    ],
)
def test_table_bbox_crosses_the_date_line(flagged, bbox, inside):
    store, small = flagged
    expected = expected_rows(
        small,
        IR,
        ALWAYS,
        lambda crop, row, col: col in inside and np.isfinite(small["longitude"][crop, row, col]),
    )
    assert expected
    assert rows_of(PatchDataset(store, channels=IR, bbox=bbox)) == expected


def test_table_bbox_bounds_latitude_and_refuses_nonsense(flagged):
    store, small = flagged
    data = PatchDataset(store, channels=IR, bbox=(-180, 5, 180, 20))
    assert rows_of(data) == expected_rows(small, IR, ALWAYS, lambda crop, row, col: row in (1, 2))
    for box in [(0, 10, 10, 5), (-400, 0, 10, 5), (0, 0, float("nan"), 5)]:
        with pytest.raises(SchemaError, match=r"bbox: got .* expected .west, south, east, north"):
            PatchDataset(store, bbox=box)


def test_dataset_without_clean_patches_counts_the_flags(tmp_path):
    flags = np.zeros((2, ROWS, COLS), np.uint16)
    flags[0] = Flag.low_coverage
    flags[1] = Flag.padding | Flag.all_missing
    codes = random_codes(IR, (2, ROWS * PATCH, COLS * PATCH))
    store = write_cube(tmp_path / "s.zarr", {IR: codes}, small={f"{IR}_flags": flags})
    with pytest.raises(
        SchemaError, match=r"2 crops chosen .* 40 patches.*all_missing 20, low_coverage 20, padding 20"
    ):
        PatchDataset(store)
    with pytest.raises(SchemaError, match=r"no clean patch.*0 patches in place; rejected by flag: none"):
        PatchDataset(store, bbox=(0, 0, 1, 1))


def test_table_of_several_blocks_of_crops_has_17_bytes_a_row():
    from gridrad_cube.datasets.table import build_table
    from gridrad_cube.selection import Label

    crops, rng = 9000, np.random.default_rng(0)
    import xarray as xr

    flags = (rng.random((crops, 9, 12)) < 0.3).astype(np.uint16) * np.uint16(Flag.night)
    echo = rng.random((crops, 9, 12)).astype(np.float32) ** 8
    small = xr.Dataset(
        {"r_flags": (("crop", "row", "col"), flags), "r_echo_fraction": (("crop", "row", "col"), echo)}
    )
    table = build_table(
        small,
        [Label("r", "r", None, "radar")],
        [int(Flag.night)],
        np.ones(crops, bool),
        stacked=False,
        bbox=None,
    )
    assert len(table) == int((flags == 0).sum())
    assert sum(
        getattr(table, name).nbytes for name in ("crop", "row", "col", "channel", "stratum")
    ) == 17 * len(table)
    some = rng.integers(0, len(table), 1000)
    f = echo[table.crop[some], table.row[some], table.col[some]]
    np.testing.assert_array_equal(table.stratum[some], np.where(f >= 0.01, 3, np.where(f > 0, 2, 1)))


def test_strata_follow_echo_fraction(tmp_path):
    codes = np.full((1, 4 * PATCH, 4 * PATCH), 1, np.uint16)
    codes[0, 0, 0] = 5000  # 1 of 256 pixels
    codes[0, :PATCH, PATCH : 2 * PATCH] = 5000
    store = write_cube(tmp_path / "s.zarr", {ZMAX: codes})
    strata = PatchDataset(store).strata
    assert strata[0] == Stratum.weak
    assert strata[1] == Stratum.echo
    assert (strata[2:] == Stratum.empty).all()


def test_describe_names_the_place_of_a_sample(cube):
    data = PatchDataset(cube)
    i = 4 * (2 * ROWS * COLS + 1 * COLS + 3) + 2
    assert data.describe(i) == {
        "store": str(cube), "crop": 2, "row": 1, "col": 3, "channel": "reflectivity@3.0km",
        "time": np.datetime64("2024-05-01T02:00:00", "s"), "latitude": 39.0, "longitude": -97.0,
        "source": "day/002.nc",
    }  # fmt: skip
    stacked = PatchDataset(cube, channels=Z, channel_mode="stack")
    assert stacked.describe(0)["channel"] == [channel_label(Z, km) for km in ALTITUDES]


def test_dataset_refuses_an_index_outside(cube):
    data = PatchDataset(cube)
    for index in (-1, len(data)):
        with pytest.raises(IndexError, match="no sample"):
            data[index]


def test_read_of_a_missing_chunk_names_the_patch(tmp_path):
    store = write_cube(tmp_path / "s.zarr", {IR: random_codes(IR, (3, ROWS * PATCH, COLS * PATCH))})
    data = PatchDataset(store)
    (shard,) = (store / IR).glob("c.1.*")
    shard.unlink()
    with pytest.raises(MissingChunkError, match=f"{IR} at crop 1, row 2, col 3 is missing"):
        data.__getitems__([0, 1 * ROWS * COLS + 2 * COLS + 3])


def test_damage_is_left_out_and_listed_on_request(tmp_path):
    store, pixels = damaged_store(tmp_path)
    data = PatchDataset(store, on_damage="skip")
    batch = data.__getitems__(range(len(data)))
    expected = [i for i in range(len(data)) if is_damaged(data, i)]
    assert len(expected) == ROWS * COLS + 1
    assert batch.damaged.tolist() == expected
    assert sorted([*batch.index.tolist(), *expected]) == list(range(len(data)))
    for codes, i, channel in zip(batch.codes.numpy()[:, 0], batch.index.tolist(), batch.channel, strict=True):
        crop, row, col = data.table.crop[i], data.table.row[i], data.table.col[i]
        np.testing.assert_array_equal(codes, cell(pixels[data.labels[channel]][crop], row, col))
    assert len(data[expected[0]]) == 0
    assert data.__getitems__([0, 1]).damaged is None
    with pytest.raises(MissingChunkError, match=f"{VIS} at crop 2, row 0, col 0 cannot be read"):
        PatchDataset(store, channels=VIS).__getitems__(range(len(data) // 2))
    with pytest.raises(SchemaError, match=r"on_damage: got 'fill'; expected one of \('raise', 'skip'\)"):
        PatchDataset(store, on_damage="fill")


def test_damage_of_any_channel_leaves_out_a_stack(tmp_path):
    store, _ = damaged_store(tmp_path)
    data = PatchDataset(store, on_damage="skip", channel_mode="stack")
    batch = data.__getitems__(range(len(data)))
    gone = (data.table.crop == 1) | ((data.table.crop == 2) & (data.table.row == 0) & (data.table.col == 0))
    assert batch.damaged.tolist() == np.flatnonzero(gone).tolist()
    assert batch.index.tolist() == np.flatnonzero(~gone).tolist()


@pytest.mark.timeout(120)
def test_damage_is_counted_by_both_loaders(tmp_path):
    store, _ = damaged_store(tmp_path)
    data = PatchDataset(store, on_damage="skip")
    expected = [i for i in range(len(data)) if is_damaged(data, i)]
    loader = PatchLoader(data, np.split(np.arange(len(data)), range(12, len(data), 12)))
    seen = [i for batch in loader for i in batch.index.tolist()]
    assert loader.damaged == expected
    assert sorted(seen + expected) == list(range(len(data)))
    there = DataLoader(data, batch_size=12)
    listed = [i for batch in there if batch.damaged is not None for i in batch.damaged.tolist()]
    assert listed == expected


def test_a_failing_disk_is_never_skipped(tmp_path):
    store, _ = damaged_store(tmp_path)
    (store / IR / "c.1.0.0").mkdir()
    data = PatchDataset(store, on_damage="skip")
    with pytest.raises(IsADirectoryError):
        data.__getitems__(range(len(data)))


def test_batches_split_and_join():
    batch = FakeDataset(9).__getitems__([4, 5, 6])
    assert [b.index.item() for b in batch] == [4, 5, 6]
    from torch.utils.data import default_collate

    joined = default_collate([batch[0], batch[-1]])
    assert joined.index.tolist() == [4, 6]
    assert default_collate(batch) is batch
    assert len(joined.to("cpu")) == 2
    left_out = replace(batch, damaged=torch.tensor([8]))
    assert left_out[1].damaged is None
    assert default_collate([left_out, batch, left_out]).damaged.tolist() == [8, 8]
