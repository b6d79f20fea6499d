"""Data sets: which patches are samples, what their codes become, in which order and how they are read."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gridrad_cube.datasets import (
    Batch,
    EpochSampler,
    GridDataset,
    Normalization,
    PatchDataset,
    PatchLoader,
    Stratum,
    decode,
    decode_grids,
    normalizations,
    open_dataset,
    permute,
)
from gridrad_cube.datasets.normalization import _gather, _tables, _take
from gridrad_cube.datasets.sampling import _key
from gridrad_cube.schema import CHANNELS, FORMAT_VERSION, Flag, Packing, SchemaError, channel_label
from gridrad_cube.store import (
    ArraySpec,
    ChannelLayout,
    CubeLayout,
    Files,
    MissingChunkError,
    encode,
    group_metadata,
    metadata,
    write_array,
    write_crop,
)
from gridrad_cube.store.commit import small_specs

IR, VIS, Z, ZMAX = (
    "ir_brightness_temperature", "visible_reflectance", "reflectivity", "reflectivity_column_maximum",
)  # fmt: skip
PATCH, ROWS, COLS = 16, 4, 5
COORDINATES = ("time", "status", "latitude", "longitude", "source")
ALTITUDES = (1.0, 3.0, 5.5)


def write_cube(
    path: Path,
    pixels: dict[str, np.ndarray],
    *,
    small: dict[str, np.ndarray] | None = None,
    packings: dict[str, Packing] | None = None,
    statistics: dict | None = None,
    patch: int = PATCH,
) -> Path:
    """A store with these codes, flags 0 and centres on a lattice, unless `small` says otherwise."""
    files = Files(path)
    channels = {}
    for name, codes in pixels.items():
        packing = (packings or {}).get(name, CHANNELS[name].packing)
        channels[name] = ChannelLayout(
            name=name, packing=packing, attributes=CHANNELS[name].attributes(),
            altitudes_km=ALTITUDES[: codes.shape[1]] if codes.ndim == 4 else (),
        )  # fmt: skip
    first = next(iter(pixels.values()))
    crops, (height, width) = len(first), first.shape[-2:]
    layout = CubeLayout(
        channels=channels, crop=(height, width), patch=patch, codec="fast", coordinates=COORDINATES,
        rows_per_chunk=4,
    )  # fmt: skip
    rows, cols = layout.cells
    values = {
        "time": np.datetime64("2024-05-01", "s").astype(np.int64) + 3600 * np.arange(crops),
        "status": np.zeros(crops, np.uint8),
        "latitude": np.broadcast_to(40.0 - np.arange(rows)[:, None], (crops, rows, cols)),
        "longitude": np.broadcast_to(-100.0 + np.arange(cols), (crops, rows, cols)),
        "source": np.array([f"day/{i:03d}.nc" for i in range(crops)], dtype=object),
    }
    for name, codes in pixels.items():
        echo = channels[name].packing.echo(codes).reshape(*codes.shape[:-2], rows, patch, cols, patch)
        values[f"{name}_echo_fraction"] = echo.mean(axis=(-3, -1)).astype(np.float32)
    values |= small or {}
    for row in np.flatnonzero(values["status"] == 0):
        present = {
            name: codes[row] for name, codes in pixels.items()
            if not (values.get(f"{name}_flags", np.zeros(crops, np.uint16))[row] & Flag.channel_absent).all()
        }  # fmt: skip
        write_crop(files, layout, int(row), present)
    members = {name: metadata(layout.pixels(name, crops)) for name in pixels}
    for name, spec in small_specs(layout, crops).items():
        dtype = object if spec.dtype == "string" else spec.dtype
        write_array(files, spec, np.asarray(values.get(name, np.zeros(spec.shape)), dtype))
        members[name] = metadata(spec)
    levels = max(len(channel.altitudes_km) for channel in channels.values())
    if levels:
        spec = ArraySpec(
            name="altitude", dims=("altitude",), shape=(levels,), dtype="float64", chunks=(levels,)
        )
        write_array(files, spec, np.array(ALTITUDES[:levels]))
        members["altitude"] = metadata(spec)
    known = {"ir_brightness_temperature": {"patches": 9, "mean": 270.0, "std": 20.0}}
    info = {
        "format_version": FORMAT_VERSION, "kind": "patches", "patch": patch, "crop": [height, width],
        "channels": {n: c.to_dict() for n, c in channels.items()},
        "training_statistics": known if statistics is None else statistics,
    }  # fmt: skip
    for name, value in members.items():
        files.write_json(f"{name}/zarr.json", value)
    files.write_json("zarr.json", group_metadata({"gridrad_cube": info}, members))
    return path


def random_codes(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Codes of a channel: data, with all its special codes among them."""
    packing, rng = CHANNELS[name].packing, np.random.default_rng(seed)
    low, high = (16, 17500) if packing.echo_minimum else (packing.valid_minimum, packing.valid_maximum)
    codes = rng.integers(low, high, shape).astype(packing.dtype)
    special = [packing.fill_value, packing.no_echo, packing.low_confidence, packing.clutter,
               packing.out_of_range, packing.non_finite]  # fmt: skip
    for code in special:
        if code is not None:
            codes[rng.random(shape) < 0.05] = code
    return codes


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Five crops of infrared and of radar at three altitudes, all clean."""
    shape = (ROWS * PATCH, COLS * PATCH)
    pixels = {IR: random_codes(IR, (5, *shape), 1), Z: random_codes(Z, (5, 3, *shape), 2)}
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", pixels)


@pytest.fixture(scope="module")
def pixels() -> dict[str, np.ndarray]:
    """What `cube` holds."""
    shape = (ROWS * PATCH, COLS * PATCH)
    return {IR: random_codes(IR, (5, *shape), 1), Z: random_codes(Z, (5, 3, *shape), 2)}


def cell(codes: np.ndarray, row: int, col: int) -> np.ndarray:
    return codes[..., row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]


# ---- selection


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
        with pytest.raises(SchemaError, match=r"no altitude .* km of .*; expected some of \[1.0, 3.0, 5.5\]"):
            PatchDataset(cube, altitude=altitude)
    with pytest.raises(SchemaError, match=r"no altitude \[3.0\] km of \['ir_bright.*some of \[\]"):
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


ALWAYS = (
    Flag.all_missing | Flag.channel_absent | Flag.non_finite | Flag.unreadable | Flag.constant | Flag.padding
    | Flag.low_coverage
)  # fmt: skip


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
    assert rows_of(chosen) == expected_rows(small, IR, Flag.night | Flag.limb | Flag.channel_absent)
    assert rows_of(PatchDataset(store, channels=IR, reject=Flag.night | Flag.limb)) == rows_of(chosen)
    everything = PatchDataset(store, channels=VIS, reject=())
    assert rows_of(everything) == expected_rows(small, VIS, Flag.channel_absent)
    assert 4 not in everything.table.crop
    assert everything.reject == {VIS: int(Flag.channel_absent)}
    with pytest.raises(SchemaError, match="unknown flag 'dark'"):
        PatchDataset(store, reject="dark")


def test_table_time_includes_start_and_not_stop(flagged):
    store, small = flagged
    data = PatchDataset(store, channels=IR, time=("2024-05-01T01:00Z", np.datetime64("2024-05-01T06:00")))
    assert rows_of(data) == expected_rows(small, IR, ALWAYS, lambda crop, row, col: 1 <= crop < 6)
    after = PatchDataset(store, channels=IR, time=("2024-05-01T06:00", None))
    assert not rows_of(after) & rows_of(data)
    with pytest.raises(
        SchemaError, match=r"no crop in the time .* from 2024-05-01T00:00:00 to 2024-05-01T08"
    ):
        PatchDataset(store, time=("2030-01-01", None))
    with pytest.raises(SchemaError, match="start is not before stop"):
        PatchDataset(store, time=("2024-05-02", "2024-05-01"))
    with pytest.raises(SchemaError, match="cannot read 'noon' as a time"):
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


def test_table_is_quick_and_small_for_many_crops():
    from gridrad_cube.datasets.table import Label, build_table

    crops, rng = 30_000, np.random.default_rng(0)
    import xarray as xr

    flags = (rng.random((crops, 9, 12)) < 0.3).astype(np.uint16) * np.uint16(Flag.night)
    echo = rng.random((crops, 9, 12)).astype(np.float32) ** 8
    small = xr.Dataset(
        {"r_flags": (("crop", "row", "col"), flags), "r_echo_fraction": (("crop", "row", "col"), echo)}
    )
    started = time.perf_counter()
    table = build_table(
        small,
        [Label("r", "r", None, "radar")],
        [int(Flag.night)],
        np.ones(crops, bool),
        stacked=False,
        bbox=None,
    )
    assert time.perf_counter() - started < 5
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


def damaged_store(folder):
    """Three crops of two channels: a shard gone, one with a chunk altered; and their codes."""
    shape = (3, ROWS * PATCH, COLS * PATCH)
    pixels = {name: random_codes(name, shape, seed) for seed, name in enumerate((IR, VIS))}
    statistics = {name: {"mean": 1.0, "std": 1.0} for name in pixels}
    store = write_cube(folder / "s.zarr", pixels, statistics=statistics)
    (store / IR / "c.1.0.0").unlink()
    path = store / VIS / "c.2.0.0"
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # in the first chunk
    path.write_bytes(data)
    return store, pixels


def is_damaged(data, index):
    name = data.labels[data.table.channel[index]]
    crop, row, col = (int(column[index]) for column in (data.table.crop, data.table.row, data.table.col))
    return (name, crop) == (IR, 1) or (name, crop, row, col) == (VIS, 2, 0, 0)


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
    loader = PatchLoader(data, range(len(data)), 12)
    seen = [i for batch in loader for i in batch.index.tolist()]
    assert loader.damaged == expected
    assert sorted(seen + expected) == list(range(len(data)))
    there = DataLoader(data, batch_size=12, num_workers=1, multiprocessing_context="forkserver")
    listed = [i for batch in there if batch.damaged is not None for i in batch.damaged.tolist()]
    assert listed == expected


def test_a_failing_disk_is_never_skipped(tmp_path):
    store, _ = damaged_store(tmp_path)
    (store / IR / "c.1.0.0").mkdir()
    data = PatchDataset(store, on_damage="skip")
    with pytest.raises(IsADirectoryError):
        data.__getitems__(range(len(data)))


# ---- normalisation and decoding


def slow_value(norm: Normalization, code) -> tuple[float, bool]:
    """One pixel, by the words of the rules, from Packing alone."""
    packing = norm.packing
    code = np.asarray([code], packing.dtype)
    if not packing.observed(code)[0]:
        return norm.fill, False
    if not packing.echo(code)[0]:
        return norm.no_echo, True
    value = packing.decode(code)[0]
    if norm.rule == "reflectivity":
        return (max(value, np.float32(0)) - np.float32(20)) / np.float32(20), True
    if norm.rule == "rain":
        return np.log10(max(value, np.float32(0.1))), True
    return (value - np.float32(norm.mean)) / np.float32(norm.std), True


def norm_of(name: str, **changes) -> Normalization:
    channel = CHANNELS[name]
    if channel.units == "dBZ":
        values = {"rule": "reflectivity", "mean": 20.0, "std": 20.0, "fill": -1.0, "no_echo": -1.0}
    elif channel.kind == "rain":
        values = {"rule": "rain", "mean": 0.0, "std": 1.0, "fill": -1.0, "no_echo": -1.0}
    else:
        values = {"rule": "standard", "mean": 13.3, "std": 7.1, "fill": 0.0, "no_echo": 0.25}
    return Normalization(**{**values, "packing": channel.packing, **changes})


SIGNED = Packing(
    dtype="int16", scale_factor=0.1, add_offset=5.0, fill_value=-32768, valid_minimum=-3000, valid_maximum=3000,
    no_echo=-32767, low_confidence=-32766, echo_minimum=-3000,
)  # fmt: skip
BYTES = Packing(dtype="int8", scale_factor=2.0, fill_value=-128)


@pytest.mark.parametrize("name", [Z, IR, VIS, "precipitation_rate", "echo_top_height", "azimuthal_shear"])
def test_decode_of_every_code_equals_the_slow_reference(name):
    norm = norm_of(name)
    codes = np.arange(65536, dtype=np.uint16).reshape(1, 1, 256, 256)
    values, valid = decode(torch.from_numpy(codes), torch.zeros(1, dtype=torch.int64), [norm])
    sample = np.concatenate([np.arange(300), np.arange(300, 65536, 97), np.arange(65500, 65536)])
    expected = [slow_value(norm, code) for code in sample]
    np.testing.assert_array_equal(
        values.reshape(-1).numpy()[sample], np.array([e[0] for e in expected], np.float32)
    )
    np.testing.assert_array_equal(valid.reshape(-1).numpy()[sample], [e[1] for e in expected])
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("packing", [SIGNED, BYTES])
def test_decode_of_signed_codes_equals_the_slow_reference(packing):
    norm = norm_of(IR, packing=packing)
    info = np.iinfo(packing.dtype)
    codes = np.arange(info.min, info.max + 1).astype(packing.dtype)
    codes = codes[:: max(1, len(codes) // 1024)].reshape(1, 1, 16, -1)
    values, valid = decode(torch.from_numpy(codes), torch.zeros(1, dtype=torch.int64), [norm])
    expected = [slow_value(norm, code) for code in codes.reshape(-1)]
    np.testing.assert_array_equal(values.reshape(-1), np.array([e[0] for e in expected], np.float32))
    np.testing.assert_array_equal(valid.reshape(-1), [e[1] for e in expected])


def test_decode_of_float_and_wide_codes_equals_the_slow_reference():
    float_norm = norm_of(Z, packing=Packing(dtype="float32", valid_minimum=-40.0, valid_maximum=90.0))
    wide_norm = norm_of(IR, packing=Packing(dtype="int32", scale_factor=0.001, fill_value=-1))
    rng = np.random.default_rng(0)
    floats = rng.uniform(-50, 100, (2, 1, 8, 8)).astype(np.float32)
    floats[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    wide = rng.integers(-1, 300_000, (2, 1, 8, 8)).astype(np.int32)
    for norm, codes in ((float_norm, floats), (wide_norm, wide)):
        values, valid = decode(torch.from_numpy(codes), torch.zeros(2, dtype=torch.int64), [norm])
        expected = [slow_value(norm, code) for code in codes.reshape(-1)]
        np.testing.assert_array_equal(values.reshape(-1), np.array([e[0] for e in expected], np.float32))
        np.testing.assert_array_equal(valid.reshape(-1), [e[1] for e in expected])


def test_decode_picks_each_sample_its_own_normalisation():
    norms = {IR: norm_of(IR), Z: norm_of(Z), "other": norm_of(IR, mean=0.0, std=2.0), "again": norm_of(Z)}
    codes = random_codes(Z, (6, 1, 8, 8))
    channel = torch.tensor([1, 0, 2, 3, 0, 1])
    values, valid = decode(torch.from_numpy(codes), channel, norms)
    for i, c in enumerate(channel.tolist()):
        alone, ok = list(norms.values())[c].apply(codes[i])
        np.testing.assert_array_equal(values[i], alone)
        np.testing.assert_array_equal(valid[i], ok)
    stacked = torch.from_numpy(np.concatenate([codes[:4]] * 1, axis=1).reshape(1, 4, 8, 8))
    values, valid = decode(stacked, torch.zeros(1, dtype=torch.int64), norms)
    for c, norm in enumerate(norms.values()):
        np.testing.assert_array_equal(values[0, c], norm.apply(stacked[0, c].numpy())[0])
    with pytest.raises(SchemaError, match="codes have 2 channels; expected 1, or one for each of 4"):
        decode(stacked[:, :2], torch.zeros(1, dtype=torch.int64), norms)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int8", "uint8", "int32"])
def test_decode_on_an_accelerator_gathers_the_same(dtype):
    packings = [
        Packing(dtype="int16", scale_factor=0.1),
        Packing(dtype="uint16", scale_factor=0.2, fill_value=7),
    ]
    if dtype in ("uint8", "int8"):
        packings = [
            Packing(dtype=dtype, scale_factor=0.1),
            Packing(dtype=dtype, scale_factor=0.2, fill_value=7),
        ]
    rules = tuple(norm_of(IR, packing=packing) for packing in packings)
    info = np.iinfo("int16" if dtype == "int32" else dtype)
    codes = np.random.default_rng(0).integers(info.min, info.max + 1, (5, 1, 4, 4)).astype(dtype)
    which = torch.tensor([0, 1, 1, 0, 1])[:, None]
    tables = _tables(rules, False, torch.device("cpu"))
    for here, there in zip(
        _take(torch.from_numpy(codes), which, tables),
        _gather(torch.from_numpy(codes), which, tables),
        strict=True,
    ):
        torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_decode_states_of_radar_bins_stay_apart():
    norm = norm_of(Z)
    packing = norm.packing
    special = {
        "missing": 0,
        "no echo": 1,
        "low confidence": 2,
        "clutter": 3,
        "out of range": 4,
        "not finite": 5,
    }
    codes = torch.tensor(
        [*special.values(), *packing.encode([-31.0, 0.0, 20.0, 60.0]).tolist()], dtype=torch.uint16
    )
    values, valid = decode(codes.reshape(1, 1, 1, -1), torch.zeros(1, dtype=torch.int64), [norm])
    assert values.flatten().tolist() == pytest.approx([-1, -1, -1, -1, -1, -1, -1, -1, 0, 2], abs=1e-5)
    assert valid.flatten().tolist() == [False, True, True, True, False, False, True, True, True, True]


def test_decode_gives_the_dtype_asked(cube):
    data = PatchDataset(cube, channels=Z)
    values, valid = data.decode(data.__getitems__([0, 1]), dtype=torch.bfloat16)
    assert values.dtype == torch.bfloat16
    assert valid.dtype == torch.bool
    torch.testing.assert_close(values, data.decode(data.__getitems__([0, 1]))[0].bfloat16(), rtol=0, atol=0)


def slow_average(norm: Normalization, block: np.ndarray) -> tuple[float, bool]:
    """One block of codes, by the words of the rules, in float64."""
    packing = norm.packing
    observed, echo = packing.observed(block), packing.echo(block)
    if not observed.any():
        return norm.fill, False
    if not echo.any():
        return norm.no_echo, True
    values = packing.decode(block)[echo].astype(float)
    if norm.rule == "reflectivity":
        dbz = 10 * np.log10((10 ** (values / 10)).sum() / observed.sum())
        return (max(dbz, 0) - 20) / 20, True
    if norm.rule == "rain":
        return np.log10(max(values.sum() / observed.sum(), 0.1)), True
    return (values.mean() - norm.mean) / norm.std, True


@pytest.mark.parametrize("name", [Z, IR, "precipitation_rate", "echo_top_height"])
@pytest.mark.parametrize("edge", [2, 4])
def test_coarsening_averages_before_it_normalises(name, edge):
    norm = norm_of(name)
    codes = random_codes(name, (3, 1, 16, 16), seed=edge)
    if norm.rule == "reflectivity":
        codes[codes > 15] = np.random.default_rng(1).integers(7000, 16000, (codes > 15).sum())
    codes[0, 0, :4, :4] = norm.packing.fill_value
    if norm.packing.no_echo:
        codes[0, 0, 4:8, :4] = norm.packing.no_echo
        codes[0, 0, 8:12, :4] = norm.packing.no_echo
        codes[0, 0, 8, 0] = norm.packing.fill_value
    values, valid = decode(torch.from_numpy(codes), torch.zeros(3, dtype=torch.int64), [norm], coarsen=edge)
    assert values.shape == (3, 1, 16 // edge, 16 // edge)
    for i, _, y, x in np.ndindex(values.shape):
        block = codes[i, 0, y * edge : (y + 1) * edge, x * edge : (x + 1) * edge]
        expected, ok = slow_average(norm, block)
        assert values[i, 0, y, x].item() == pytest.approx(expected, abs=2e-5)
        assert bool(valid[i, 0, y, x]) is ok


def test_coarsening_keeps_rules_apart_in_a_mixed_batch():
    norms = [norm_of(Z), norm_of(IR), norm_of("precipitation_rate")]
    codes = torch.from_numpy(random_codes(IR, (3, 1, 8, 8)))
    mixed, valid = decode(codes, torch.tensor([2, 0, 1]), norms, coarsen=4)
    for i, c in enumerate([2, 0, 1]):
        alone, ok = decode(codes[i : i + 1], torch.tensor([0]), [norms[c]], coarsen=4)
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=0, atol=0)
        assert torch.equal(valid[i : i + 1], ok)
    stacked, _ = decode(codes.reshape(1, 3, 8, 8), torch.tensor([0]), norms, coarsen=2)
    torch.testing.assert_close(
        stacked[:, 1:2], decode(codes[1:2], torch.tensor([0]), [norms[1]], coarsen=2)[0], rtol=0, atol=0
    )
    with pytest.raises(SchemaError, match="coarsen: got 3; expected a divisor"):
        decode(codes, torch.zeros(3, dtype=torch.int64), norms[:1], coarsen=3)


def test_coarsening_of_float_codes_equals_the_packed_ones():
    packed = norm_of(Z, packing=Packing(scale_factor=0.01, add_offset=-99.01, fill_value=0))
    floats = norm_of(Z, packing=Packing(dtype="float32"))
    codes = np.random.default_rng(0).integers(9000, 15000, (2, 1, 8, 8)).astype(np.uint16)
    codes[0, 0, :2, :2] = 0
    channel = torch.zeros(2, dtype=torch.int64)
    a, ok_a = decode(torch.from_numpy(codes), channel, [packed], coarsen=2)
    b, ok_b = decode(torch.from_numpy(packed.packing.decode(codes)), channel, [floats], coarsen=2)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(ok_a, ok_b)


def test_coarsening_of_absurd_echoes_stays_finite():
    codes = torch.full((1, 1, 16, 16), 65535, dtype=torch.uint16)
    values, _ = decode(codes, torch.zeros(1, dtype=torch.int64), [norm_of(Z)], coarsen=16)
    assert torch.isfinite(values).all()


def test_normalizations_follow_kind_units_and_statistics(tmp_path):
    shape = (1, ROWS * PATCH, COLS * PATCH)
    names = (IR, Z, "precipitation_rate", "echo_top_height", "spectrum_width")
    pixels = {n: random_codes(n, shape)[:, None] if n == Z else random_codes(n, shape) for n in names}
    statistics = {
        IR: {"mean": 270.0, "std": 20.0}, "echo_top_height": {"mean": 6.0, "std": 3.0},
        "spectrum_width": {"mean": 2.0, "std": 1.0},
    }  # fmt: skip
    store = write_cube(tmp_path / "s.zarr", pixels, statistics=statistics)
    norms = PatchDataset(store).normalizations
    assert [n.rule for n in norms.values()] == ["standard", "reflectivity", "rain", "standard", "standard"]
    assert list(norms)[1] == "reflectivity@1.0km"
    assert (norms[IR].mean, norms[IR].std, norms[IR].fill) == (270.0, 20.0, 0.0)
    assert norms["echo_top_height"].no_echo == -2.0  # 0 km
    assert norms["spectrum_width"].no_echo == 0.0
    assert norms[IR].packing == CHANNELS[IR].packing
    assert normalizations(store, [IR]) == {IR: norms[IR]}


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({}, "no training statistics"),
        ({IR: {"patches": 0, "mean": None, "std": None}}, "no training statistics"),
        (
            {IR: {"patches": 4, "mean": 270.0, "std": 0.0}},
            "no spread to divide by, got mean 270.0 and std 0.0",
        ),
    ],
)
def test_normalizations_refuse_missing_or_flat_statistics(tmp_path, statistics, message):
    store = write_cube(
        tmp_path / "s.zarr", {IR: random_codes(IR, (1, ROWS * PATCH, COLS * PATCH))}, statistics=statistics
    )
    with pytest.raises(SchemaError, match=f"{IR}: .*{message}"):
        normalizations(store, [IR])


def test_normalization_survives_a_checkpoint(cube, tmp_path):
    norms = PatchDataset(cube).normalizations
    text = json.dumps({label: norm.to_dict() for label, norm in norms.items()})
    back = {label: Normalization.from_dict(d) for label, d in json.loads(text).items()}
    assert back == norms
    torch.save({k: n.to_dict() for k, n in norms.items()}, tmp_path / "c.pt")
    loaded = torch.load(tmp_path / "c.pt", weights_only=True)
    assert {k: Normalization.from_dict(d) for k, d in loaded.items()} == norms
    with pytest.raises(SchemaError, match="unknown rule, got 'minmax'"):
        Normalization.from_dict({**norms[IR].to_dict(), "rule": "minmax"})
    with pytest.raises(SchemaError, match=r"unknown \['scale'\]"):
        Normalization.from_dict({**norms[IR].to_dict(), "scale": 1})


def test_normalizations_of_a_checkpoint_take_the_packing_of_the_store(cube):
    other = norm_of(IR, mean=250.0, std=5.0, packing=Packing(dtype="int16", scale_factor=0.1))
    data = PatchDataset(cube, channels=IR)
    data.normalizations = {IR: other}
    taken = data.normalizations[IR]
    assert (taken.mean, taken.std, taken.packing) == (250.0, 5.0, CHANNELS[IR].packing)
    with pytest.raises(SchemaError, match=r"'reflectivity@1.0km' was not trained on; the checkpoint knows"):
        normalizations(cube, [channel_label(Z, 1.0)], like={IR: other})


# ---- order


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), seed=st.integers(0, 2**62))
def test_permute_is_a_bijection(length, seed):
    out = permute(np.arange(length), length, _key(seed))
    assert sorted(out.tolist()) == list(range(length))


def test_permute_with_a_key_each_equals_one_at_a_time():
    keys = _key(5, np.arange(20))
    together = permute(np.arange(20) % 7, 7, keys)
    alone = [permute([i % 7], 7, keys[i : i + 1])[0] for i in range(20)]
    assert together.tolist() == alone


@pytest.mark.parametrize("length", [5, 16, 100])
def test_permute_spreads_evenly(length):
    """Chi-squared of where the first index goes, and of how far apart neighbours land, over 4000 keys."""
    keys = _key(1, np.arange(4000))
    first = permute(np.zeros(4000, int), length, keys)
    apart = (permute(np.ones(4000, int), length, keys) - first) % length
    for values, bins in ((first, length), (apart - 1, length - 1)):
        counts = np.bincount(values, minlength=bins)
        expected = 4000 / bins
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))


def whole_epoch(sampler: EpochSampler) -> list[int]:
    return [int(i) for i in sampler.order(np.arange(sampler.length))]


def test_sampler_takes_every_plain_sample_once_in_an_order_of_seed_and_epoch():
    sampler = EpochSampler(103, batch_size=4, seed=7)
    orders = [sampler.order(np.arange(103), epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert (
        orders[1] == EpochSampler(103, batch_size=9, seed=7, world_size=3).order(np.arange(103), 1).tolist()
    )
    assert orders[0] != EpochSampler(103, batch_size=4, seed=8).order(np.arange(103)).tolist()
    assert list(sampler) == orders[0][:100]


STRATA = np.array([1] * 600 + [2] * 300 + [3] * 100, np.uint8)[np.random.default_rng(0).permutation(1000)]


def test_sampler_draws_strata_by_their_shares():
    sampler = EpochSampler(STRATA, batch_size=10)
    assert sampler.length == 1000
    drawn = Counter(STRATA[whole_epoch(sampler)].tolist())
    assert drawn == {3: 800, 2: 150, 1: 50}
    repeats = Counter(i for i in whole_epoch(sampler) if STRATA[i] == 3)
    assert set(repeats.values()) == {8}


def test_sampler_goes_round_each_stratum_evenly_over_epochs():
    sampler = EpochSampler(STRATA, batch_size=10)
    seen = Counter()
    for epoch in range(12):
        seen.update(sampler.order(np.arange(1000), epoch).tolist())
    counts = np.array([seen[i] for i in range(1000)])
    assert (counts[STRATA == 3] == 96).all()
    assert (counts[STRATA == 2] == 6).all()
    assert (counts[STRATA == 1] == 1).all()


def test_sampler_gives_the_share_of_an_empty_stratum_to_the_others():
    strata = np.array([3] * 40 + [1] * 60, np.uint8)
    drawn = Counter(strata[whole_epoch(EpochSampler(strata, batch_size=5))].tolist())
    assert drawn == {3: 94, 1: 6}
    only = np.full(30, 1, np.uint8)
    assert sorted(whole_epoch(EpochSampler(only, batch_size=5))) == list(range(30))


def test_sampler_mixes_plain_samples_in_once_each():
    strata = np.concatenate([np.zeros(50, np.uint8), STRATA])
    order = np.array(whole_epoch(EpochSampler(strata, batch_size=10)))
    assert sorted(order[order < 50].tolist()) == list(range(50))
    assert (order >= 50).sum() == 1000
    # Drawn together, not one part after the other.
    assert 10 < (order[:525] < 50).sum() < 40


def test_sampler_without_shares_takes_every_sample_once():
    assert sorted(whole_epoch(EpochSampler(STRATA, batch_size=10, shares=None))) == list(range(1000))
    with pytest.raises(SchemaError, match="shares: got"):
        EpochSampler(STRATA, batch_size=10, shares={"echo": -1.0})
    with pytest.raises(SchemaError, match="one above 0 for a stratum that has samples"):
        EpochSampler(np.full(30, 1, np.uint8), batch_size=2, shares={"echo": 1.0})


def test_sampler_refuses_fewer_samples_than_a_step():
    with pytest.raises(SchemaError, match="fewer samples than a batch, got 15 for 4 ranks of batch size 4"):
        EpochSampler(15, batch_size=4, world_size=4)
    with pytest.raises(SchemaError, match="fewer samples than a batch, got 0"):
        EpochSampler(np.empty(0, np.uint8), batch_size=4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EpochSampler(15, batch_size=4, world_size=2, rank=2)


def steps(ranks: list[EpochSampler], count: int) -> list[int]:
    """Run ranks together for some steps; return the samples in global order."""
    out: list[int] = []
    streams = [s.batches() for s in ranks]
    for _ in range(count):
        batches = [next(stream) for stream in streams]
        assert len({len(b) for b in batches}) == 1
        out += np.stack(batches, axis=1).reshape(-1).tolist()
        for sampler in ranks:
            sampler.advance()
    assert len({(s.epoch, s.position) for s in ranks}) == 1
    return out


def make_ranks(world: int, batch: int, state=None, strata=STRATA, **options) -> list[EpochSampler]:
    ranks = [
        EpochSampler(strata, batch_size=batch, seed=3, rank=r, world_size=world, **options)
        for r in range(world)
    ]
    for sampler in ranks:
        if state is not None:
            sampler.load_state_dict(json.loads(json.dumps(state)))
    return ranks


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sampler_order_is_the_same_for_any_number_of_ranks(world):
    order = whole_epoch(EpochSampler(STRATA, batch_size=1, seed=3))
    ranks = make_ranks(world, 24 // world)
    assert steps(ranks, 1000 // 24) == order[: 1000 // 24 * 24]
    assert (ranks[0].epoch, ranks[0].position) == (1, 0)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1), (4, 4), (2, 1)])
def test_sampler_resumes_mid_epoch_with_another_world_size(before, after):
    order = whole_epoch(EpochSampler(STRATA, batch_size=1, seed=3))
    old = make_ranks(before, 7)
    done = steps(old, 5)
    new = make_ranks(after, 10, old[0].state_dict())
    rest = steps(new, new[0].steps_left)
    assert done + rest == order[: len(done) + len(rest)]
    assert 1000 - len(done) - len(rest) < 10 * after
    assert (new[0].epoch, new[0].position) == (1, 0)
    assert (
        steps(new, 1) == EpochSampler(STRATA, batch_size=1, seed=3).order(np.arange(10 * after), 1).tolist()
    )


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sampler_keeping_the_last_step_gives_ranks_equally_many(world):
    ranks = make_ranks(world, 16, strata=103, drop_last=False)
    assert len({len(list(s)) for s in ranks}) == 1
    count = ranks[0].steps_per_epoch
    done = steps(ranks, count)
    assert len(done) == 103 // world * world
    assert len(set(done)) == len(done)
    assert ranks[0].epoch == 1


def test_sampler_position_near_the_end_starts_the_next_epoch():
    sampler = EpochSampler(100, batch_size=30)
    state = {**sampler.state_dict(), "position": 90}
    sampler.load_state_dict(state)
    assert (sampler.epoch, sampler.position) == (1, 0)


def test_sampler_refuses_the_state_of_other_samples():
    state = EpochSampler(STRATA, batch_size=10).state_dict()
    with pytest.raises(SchemaError, match="the samples are not those of the saved run"):
        EpochSampler(STRATA[:-1], batch_size=10).load_state_dict(state)
    with pytest.raises(SchemaError, match="the samples are not those of the saved run"):
        EpochSampler(STRATA, batch_size=10, shares=None).load_state_dict(state)


def test_sampler_set_epoch_keeps_the_position_of_the_current_one():
    sampler = EpochSampler(100, batch_size=10)
    sampler.advance(3)
    sampler.set_epoch(0)
    assert sampler.position == 30
    assert len(sampler) == 70
    sampler.set_epoch(2)
    assert sampler.position == 0


def test_sampler_of_a_hundred_million_samples_starts_at_once():
    started = time.perf_counter()
    sampler = EpochSampler(100_000_000, batch_size=64, world_size=8, rank=3)
    assert len(next(sampler.batches())) == 64
    assert time.perf_counter() - started < 1


# ---- loading


class FakeDataset:
    """Samples that are their own index; sleeps at random, fails where told."""

    def __init__(self, length: int, *, fail: int | None = None, seconds: float = 0.0):
        self.length, self.fail, self.seconds = length, fail, seconds
        self.read: list[list[int]] = []

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, index) -> Batch:
        self.read.append(list(index))
        time.sleep(self.seconds * ((int(index[0]) * 7919) % 5))
        if self.fail is not None and self.fail in index:
            raise OSError(f"disk gone at {self.fail}")
        index = torch.as_tensor(np.asarray(index))
        return Batch(index[:, None, None, None].to(torch.uint16), index, torch.zeros_like(index))

    def describe(self, index: int) -> dict:
        return {"crop": index, "row": 1}


@pytest.mark.parametrize("threads", [1, 3])
def test_loader_hands_out_batches_in_order(threads):
    data = FakeDataset(200, seconds=0.002)
    loader = PatchLoader(data, range(200), 7, threads=threads, prefetch=5, device="cpu")
    out = [batch.index.tolist() for batch in loader]
    assert out == [list(range(i, i + 7)) for i in range(0, 196, 7)]
    assert len(out) == len(loader) == 28
    assert loader.seconds_waiting > 0
    kept = PatchLoader(data, range(200), 7, drop_last=False)
    assert len(kept) == len(list(kept)) == 29


def test_loader_reads_no_further_ahead_than_asked():
    data = FakeDataset(100)
    stream = iter(PatchLoader(data, range(100), 10, prefetch=2))
    next(stream)
    time.sleep(0.05)
    assert len(data.read) <= 3
    stream.close()


def test_loader_left_early_or_failed_leaves_no_thread():
    before = threading.active_count()
    stream = iter(PatchLoader(FakeDataset(1000, seconds=0.001), range(1000), 10, threads=2))
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(OSError, match="disk gone at 31"):
        list(PatchLoader(FakeDataset(1000, fail=31), range(1000), 10, threads=2))
    assert threading.active_count() == before


def test_loader_error_names_the_samples():
    with pytest.raises(OSError, match="disk gone") as caught:
        list(PatchLoader(FakeDataset(100, fail=31), range(100), 10))
    notes = " ".join(caught.value.__notes__)
    assert "[30, 31, 32, 33, 34, 35, 36, 37, 38, 39]" in notes
    assert "{'crop': 30, 'row': 1}" in notes


def test_loader_error_of_a_store_names_the_patch(tmp_path):
    store = write_cube(tmp_path / "s.zarr", {IR: random_codes(IR, (3, ROWS * PATCH, COLS * PATCH))})
    (shard,) = (store / IR).glob("c.2.*")
    shard.write_bytes(shard.read_bytes()[:100])
    data = PatchDataset(store)
    stream = iter(PatchLoader(data, range(len(data)), ROWS * COLS))
    next(stream)
    next(stream)
    with pytest.raises(MissingChunkError, match=f"{IR} at crop 2, row 0, col 0 cannot be read"):
        next(stream)


def test_loader_advances_the_sampler_by_what_it_hands_out(cube):
    data = PatchDataset(cube, channels=Z)
    sampler = EpochSampler(data.strata, batch_size=16, seed=1)
    expected = whole_epoch(sampler)
    loader = PatchLoader(data, sampler, 16, prefetch=6)
    assert len(loader) == 300 // 16
    seen = []
    for step, batch in enumerate(loader):
        seen += batch.index.tolist()
        assert sampler.state_dict()["position"] == 16 * (step + 1)
        if step == 4:
            break
    resumed = EpochSampler(data.strata, batch_size=16, seed=99)
    resumed.load_state_dict(sampler.state_dict())
    for batch in PatchLoader(data, resumed, 16):
        seen += batch.index.tolist()
    assert seen == expected[: 300 // 16 * 16]
    assert (resumed.epoch, resumed.position) == (1, 0)


def test_loader_refuses_what_does_not_fit():
    with pytest.raises(SchemaError, match="fewer samples than a batch, got 3 for batch size 4"):
        PatchLoader(FakeDataset(3), range(3), 4)
    with pytest.raises(ValueError, match="batch_size: got 8; expected the sampler's, 4"):
        PatchLoader(FakeDataset(30), EpochSampler(30, batch_size=4), 8)
    with pytest.raises(ValueError, match="threads 0"):
        PatchLoader(FakeDataset(30), range(30), 4, threads=0)


def test_dataset_pickles_without_its_open_reader(cube):
    data = PatchDataset(cube)
    expected = data.__getitems__([1, 2, 3])
    copy = pickle.loads(pickle.dumps(data))
    assert copy._reader is None
    assert torch.equal(copy.__getitems__([1, 2, 3]).codes, expected.codes)


@pytest.mark.timeout(120)
def test_dataloader_in_process_gives_whole_batches(cube):
    data = PatchDataset(cube)
    sampler = EpochSampler(data.strata, batch_size=32, seed=5)
    batches = list(DataLoader(data, batch_size=32, sampler=sampler, drop_last=True))
    assert [b.index.tolist() for b in batches] == [b.tolist() for b in sampler.batches()]
    assert batches[0].codes.shape == (32, 1, PATCH, PATCH)
    assert sampler.position == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("method", "workers"), [("spawn", 2), ("forkserver", 1)])
def test_dataloader_workers_give_the_same_batches(cube, method, workers):
    data = PatchDataset(cube)
    data.__getitems__([0])  # an open reader in the parent must not reach the workers
    sampler = EpochSampler(data.strata, batch_size=32, seed=5)
    loader = DataLoader(
        data, batch_size=32, sampler=sampler, num_workers=workers, multiprocessing_context=method
    )
    for batch, index in zip(loader, sampler.batches(), strict=False):
        assert batch.index.tolist() == index.tolist()
        assert torch.equal(batch.codes, data.__getitems__(index).codes)


def _read_after_fork(data: PatchDataset, answers) -> None:
    try:
        data.__getitems__([0])
    except RuntimeError as error:
        answers.put(str(error))
    else:
        answers.put("read")


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_dataset_read_before_a_fork_refuses_in_the_child(cube):
    data = PatchDataset(cube)
    data.__getitems__([0])
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_after_fork, args=(data, answers))
    child.start()
    assert "spawn" in answers.get(timeout=30)
    child.join(timeout=30)
    assert child.exitcode == 0


# ---- grids of embeddings


def write_embeddings(
    path: Path,
    embedding: np.ndarray,
    *,
    labels=(IR,),
    flags: np.ndarray | None = None,
    status=None,
    level: str = "256",
    made_of: dict[str, list[str]] | None = None,
) -> Path:
    """An embedding store of these vectors, on (crop, channel, row, col, feature)."""
    files, members = Files(path), {}
    crops = len(embedding)
    cells = ("row", "col") if embedding.ndim == 5 else ()
    variables = {
        "embedding": (("crop", "channel", *cells, "feature"), embedding.astype(np.float16)),
        "flags": (
            ("crop", "channel", *cells),
            np.zeros(embedding.shape[:-1], np.uint16) if flags is None else flags,
        ),
        "status": (("crop",), np.zeros(crops, np.uint8) if status is None else np.asarray(status, np.uint8)),
        "time": (("crop",), np.datetime64("2024-05-01", "s").astype(np.int64) + 3600 * np.arange(crops)),
        "source": (("crop",), np.array([f"{i}.nc" for i in range(crops)], dtype=object)),
        "channel": (("channel",), np.array(labels, dtype=object)),
        "variable": (("channel",), np.array([label.split("@")[0] for label in labels], dtype=object)),
    }
    for name, (dims, values) in variables.items():
        dtype = "string" if values.dtype == object else values.dtype.name
        fill = {"f": float("nan"), "s": ""}.get(dtype[0], 0)
        attributes = {"units": "seconds since 1970-01-01"} if name == "time" else {}
        spec = ArraySpec(
            name=name, dims=dims, shape=values.shape, dtype=dtype, chunks=(1, *values.shape[1:]), fill_value=fill,
            attributes=attributes,
        )  # fmt: skip
        if name == "embedding":
            spec = replace(
                spec, chunks=(2, 1, *values.shape[2:]), shards=(4, *values.shape[1:]), codec="fast"
            )
            for number, first in enumerate(range(0, crops, 4)):
                block = np.full(spec.shards, np.nan, np.float16)
                block[: crops - first] = values[first : first + 4]
                files.write(spec.key((number, *(0 for _ in values.shape[1:]))), encode(spec, block))
            files.write_json("embedding/zarr.json", metadata(spec))
        else:
            write_array(files, spec, values)
        members[name] = metadata(spec)
    info = {"format_version": FORMAT_VERSION, "kind": "embeddings", "level": level, "channels": made_of or {}}
    files.write_json("zarr.json", group_metadata({"gridrad_cube": info}, members))
    return path


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    scale = np.array([0.5, 1.0, 2.0, 10.0, 0.0, 3.0])
    return (rng.standard_normal((7, 2, 4, 5, 6)) * scale + 4.0).astype(np.float16)


@pytest.fixture(scope="module")
def grid_flags() -> np.ndarray:
    rng = np.random.default_rng(1)
    flags = np.where(rng.random((7, 2, 4, 5)) < 0.3, int(Flag.padding), 0).astype(np.uint16)
    flags[rng.random(flags.shape) < 0.3] |= int(Flag.night)
    flags[2, 1] = Flag.channel_absent
    return flags


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory, vectors, grid_flags) -> Path:
    return write_embeddings(
        tmp_path_factory.mktemp("emb") / "e.zarr", vectors, labels=(IR, VIS), flags=grid_flags,
        status=[0, 0, 0, 1, 0, 0, 0],
    )  # fmt: skip


@pytest.mark.parametrize("in_memory", [True, False])
def test_grids_are_crops_and_channels_with_their_valid_cells(embeddings, vectors, grid_flags, in_memory):
    data = GridDataset(embeddings, in_memory=in_memory)
    assert data.labels == (IR, VIS)
    assert data.shape == (6, 4, 5)
    rows = list(zip(data.crop.tolist(), data.channel.tolist(), strict=True))
    assert rows == [(c, k) for c in range(7) for k in range(2) if c != 3 and (c, k) != (2, 1)]
    batch = data.__getitems__(range(len(data)))
    for i, (crop, channel) in enumerate(rows):
        mask = ALWAYS | (Flag.night if channel else 0)
        np.testing.assert_array_equal(batch.valid[i], (grid_flags[crop, channel] & int(mask)) == 0)
        np.testing.assert_array_equal(batch.codes[i].numpy(), np.moveaxis(vectors[crop, channel], -1, 0))
    assert batch.codes.dtype == torch.float16


def test_grids_are_standardised_over_their_valid_cells(embeddings):
    data = GridDataset(embeddings)
    batch = data.__getitems__(range(len(data)))
    values, valid = data.decode(batch)
    assert torch.equal(valid, batch.valid)
    assert (values.permute(0, 2, 3, 1)[~valid] == 0).all()
    cells = values.permute(0, 2, 3, 1)[valid].double()
    torch.testing.assert_close(cells.mean(0), torch.zeros(6).double(), atol=1e-5, rtol=0)
    expected = torch.tensor([1.0, 1, 1, 1, 0, 1]).double()  # the fifth feature is dead
    torch.testing.assert_close(cells.std(0, unbiased=False), expected, atol=1e-5, rtol=0)
    again = GridDataset(embeddings, normalization=json.loads(json.dumps(data.normalization)))
    torch.testing.assert_close(again.decode(batch)[0], values, rtol=0, atol=0)
    lazy = GridDataset(embeddings, in_memory=False)
    assert lazy.normalization == data.normalization


@pytest.mark.parametrize("in_memory", [True, False])
def test_grids_that_are_missing_or_altered_are_named_never_fill(tmp_path, vectors, in_memory):
    store = write_embeddings(tmp_path / "e.zarr", vectors, labels=(IR, VIS))
    data = GridDataset(store, in_memory=in_memory)
    assert data.__getitems__([11, 0]).codes.shape == (2, 6, 4, 5)
    shards = sorted((store / "embedding").glob("c.*"))
    shards[0].write_bytes(b"x" + shards[0].read_bytes()[1:])
    with pytest.raises(
        MissingChunkError, match=r"embedding at crop 0, channel 0 cannot be read .its checksum"
    ):
        GridDataset(store, in_memory=in_memory).__getitems__([0])
    shards[1].unlink()
    with pytest.raises(
        MissingChunkError, match=r"embedding at crop 4, channel 1 is missing\. Run: gridrad-cube"
    ):
        GridDataset(store, channels=VIS, time=("2024-05-01T04", None), in_memory=in_memory)[0]


def test_grids_select_channels_time_and_flags(embeddings, grid_flags):
    data = GridDataset(embeddings, channels=VIS, reject=["padding"], time=("2024-05-01T04:00", None))
    assert data.crop.tolist() == [4, 5, 6]
    assert data.labels == (VIS,)
    np.testing.assert_array_equal(
        data.valid, (grid_flags[4:, 1] & int(Flag.padding | Flag.channel_absent)) == 0
    )
    assert data.describe(1) == {
        "store": str(embeddings), "crop": 5, "channel": VIS, "time": np.datetime64("2024-05-01T05:00:00", "s"),
        "source": "5.nc",
    }  # fmt: skip
    with pytest.raises(SchemaError, match=r"no channel 'reflectivity'; expected .*visible"):
        GridDataset(embeddings, channels="reflectivity")
    with pytest.raises(SchemaError, match="embeddings have 6 features; expected 2, as the checkpoint"):
        GridDataset(embeddings, normalization={"mean": [0, 0], "std": [1, 1]})


def test_grids_of_channels_embedded_together_go_by_their_members(tmp_path, vectors):
    label = f"{IR}+{VIS}"
    flags = np.full((7, 2, 4, 5), int(Flag.night), np.uint16)
    flags[:, :, 0, 0] = 0
    levels = "reflectivity@1.0-5.5km"
    store = write_embeddings(
        tmp_path / "e.zarr", vectors, labels=(label, levels), flags=flags,
        made_of={label: [IR, VIS], levels: [channel_label(Z, km) for km in ALTITUDES]},
    )  # fmt: skip
    data = GridDataset(store, channels=[levels, label])
    assert data.labels == (levels, label)
    assert GridDataset(store, channels=Z).labels == (levels,)
    counts = {data.labels[c]: int(v.sum()) for c, v in zip(data.channel, data.valid, strict=True)}
    assert counts == {label: 1, levels: 20}  # night rejects what visible went into


def test_grids_of_not_finite_embeddings_are_not_valid(tmp_path, vectors):
    vectors = vectors.copy()
    vectors[1, 0, 2, 3, 0] = np.nan
    data = GridDataset(write_embeddings(tmp_path / "e.zarr", vectors, labels=("a+b", "c")))
    values, valid = data.decode(data.__getitems__(range(len(data))))
    assert torch.isfinite(values).all()
    assert not valid[2, 2, 3]
    assert valid.sum() == valid.numel() - 1
    broken = GridDataset(
        write_embeddings(tmp_path / "n.zarr", np.full_like(vectors, np.nan), labels=("a", "b"))
    )
    with pytest.raises(SchemaError, match=r"every embedding of .* is NaN"):
        _ = broken.normalization


def test_grids_of_a_collapsed_network_are_refused(tmp_path):
    data = GridDataset(write_embeddings(tmp_path / "e.zarr", np.full((3, 1, 4, 4, 8), 0.3)))
    with pytest.raises(SchemaError, match="all 48 embeddings are alike"):
        _ = data.normalization


def test_grids_too_small_are_refused_by_name(tmp_path):
    store = write_embeddings(tmp_path / "small.zarr", np.zeros((2, 1, 3, 12, 8)))
    with pytest.raises(
        SchemaError, match=r"small.zarr: .* got 3 x 12 cells; expected at least 4 x 4.*--stride 128"
    ):
        GridDataset(store)


def test_grids_without_valid_cells_are_refused(tmp_path):
    flags = np.full((2, 1, 4, 4), int(Flag.all_missing), np.uint16)
    store = write_embeddings(tmp_path / "e.zarr", np.zeros((2, 1, 4, 4, 8)), flags=flags)
    with pytest.raises(SchemaError, match=r"no grid of .* has a valid cell, of 2 crops"):
        GridDataset(store)


def test_decode_grids_refuses_another_width():
    with pytest.raises(SchemaError, match="embeddings have 3 features; expected 2"):
        decode_grids(
            torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), {"mean": [0, 0], "std": [1, 1]}
        )


def test_grids_load_through_both_loaders(embeddings):
    data = GridDataset(embeddings)
    sampler = EpochSampler(data.strata, batch_size=4, seed=2)
    expected = [batch.tolist() for batch in sampler.batches()]
    got = list(DataLoader(data, batch_size=4, sampler=sampler, drop_last=True))
    assert [b.index.tolist() for b in got] == expected
    assert torch.equal(got[0].valid, data.__getitems__(expected[0]).valid)
    assert [b.index.tolist() for b in PatchLoader(data, sampler, 4)] == expected


def test_grids_pickle_without_the_embeddings_in_memory(embeddings):
    data = GridDataset(embeddings)
    batch = data.__getitems__([3, 0])
    copy = pickle.loads(pickle.dumps(data))
    assert copy._kept is None
    assert torch.equal(copy.__getitems__([3, 0]).codes, batch.codes)


def test_open_dataset_goes_by_the_kind_of_the_store(cube, embeddings, tmp_path):
    assert isinstance(open_dataset(cube, channels=Z, channel_mode="stack"), PatchDataset)
    assert isinstance(open_dataset(embeddings, time=(None, "2024-05-02")), GridDataset)
    with pytest.raises(SchemaError, match=r"holds embeddings, which take no \['bbox'\]"):
        open_dataset(embeddings, bbox=(0, 0, 1, 1))
    with pytest.raises(SchemaError, match="holds embeddings, but this needs a cube of patches"):
        PatchDataset(embeddings)
    with pytest.raises(SchemaError, match="holds patches, but this needs an embedding store"):
        GridDataset(cube)
    with pytest.raises(SchemaError, match="level '2k', one a crop; expected level '256'"):
        GridDataset(write_embeddings(tmp_path / "2k.zarr", np.zeros((3, 1, 8)), level="2k"))
    with pytest.raises(FileNotFoundError, match="no such store"):
        open_dataset(tmp_path / "nothing.zarr")


# ---- batches


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
