"""Grids of embeddings as samples."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cubes import ALTITUDES, ALWAYS, IR, VIS, Z, clean_pixels, write_cube
from torch.utils.data import DataLoader

from gridrad_cube.datasets import (
    EpochSampler,
    GridDataset,
    PatchDataset,
    PatchLoader,
    decode_grids,
)
from gridrad_cube.schema import FORMAT_VERSION, Flag, SchemaError, channel_label
from gridrad_cube.store import (
    ArraySpec,
    Files,
    MissingChunkError,
    encode,
    write_array,
    write_root,
)


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Five crops of infrared and of radar at three altitudes, all clean."""
    return write_cube(tmp_path_factory.mktemp("cube") / "patches.zarr", clean_pixels())


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
    files, specs = Files(path), {}
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
                files.write(spec.key(number), encode(spec, block))
        else:
            write_array(files, spec, values)
        specs[name] = spec
    info = {"format_version": FORMAT_VERSION, "kind": "embeddings", "level": level, "channels": made_of or {}}
    write_root(files, specs, {"gridrad_cube": info})
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


def limit_memory(monkeypatch, in_memory: bool) -> None:
    """Have embeddings kept in memory, or read as they are asked for."""
    if not in_memory:
        monkeypatch.setattr("gridrad_cube.datasets.grids._IN_MEMORY_BYTES", 0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_grids_are_crops_and_channels_with_their_valid_cells(
    embeddings, vectors, grid_flags, in_memory, monkeypatch
):
    limit_memory(monkeypatch, in_memory)
    data = GridDataset(embeddings)
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


def test_grids_are_standardized_over_their_valid_cells(embeddings):
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


@pytest.mark.parametrize("in_memory", [True, False])
def test_grids_that_are_missing_or_altered_are_named_never_fill(tmp_path, vectors, in_memory, monkeypatch):
    limit_memory(monkeypatch, in_memory)
    store = write_embeddings(tmp_path / "e.zarr", vectors, labels=(IR, VIS))
    data = GridDataset(store)
    assert data.__getitems__([11, 0]).codes.shape == (2, 6, 4, 5)
    shards = sorted((store / "embedding").glob("c.*"))
    shards[0].write_bytes(b"x" + shards[0].read_bytes()[1:])
    with pytest.raises(
        MissingChunkError, match=r"embedding at crop 0, channel 0 cannot be read .its checksum"
    ):
        GridDataset(store).__getitems__([0])
    shards[1].unlink()
    with pytest.raises(
        MissingChunkError, match=r"embedding at crop 4, channel 1 is missing\. Run: gridrad-cube"
    ):
        GridDataset(store, channels=VIS, time=("2024-05-01T04", None))[0]


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
        SchemaError, match=r"small.zarr: .* got 3 x 12 cells; expected at least 4 x 4.*`stride=128`"
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
    assert [b.index.tolist() for b in PatchLoader(data, sampler)] == expected


def test_grids_pickle_without_the_embeddings_in_memory(embeddings):
    data = GridDataset(embeddings)
    batch = data.__getitems__([3, 0])
    copy = pickle.loads(pickle.dumps(data))
    assert "_kept" not in vars(copy)
    assert torch.equal(copy.__getitems__([3, 0]).codes, batch.codes)


def test_stores_of_another_kind_are_refused(cube, embeddings, tmp_path):
    with pytest.raises(SchemaError, match="holds embeddings, but this needs a cube of patches"):
        PatchDataset(embeddings)
    with pytest.raises(SchemaError, match="holds patches, but this needs an embedding store"):
        GridDataset(cube)
    with pytest.raises(SchemaError, match="level '2k', one a crop; expected level '256'"):
        GridDataset(write_embeddings(tmp_path / "2k.zarr", np.zeros((3, 1, 8)), level="2k"))
    with pytest.raises(FileNotFoundError, match="no such store"):
        GridDataset(tmp_path / "nothing.zarr")
