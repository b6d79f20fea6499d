"""The predecessor's files: what they hold is where it was, what is lost is marked, and nothing runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import predecessor_files as old
import pytest
import torch
from click.testing import CliRunner, Result

from gridrad_cube import (
    open_cube,
    open_embeddings,
    open_packed,
    plot,
    predecessor,
    read_scene,
    store,
    synthetic,
    tiling,
)
from gridrad_cube.cli import cli
from gridrad_cube.embedding import embed
from gridrad_cube.models import DINOHead, build, load_backbone, load_checkpoint
from gridrad_cube.predecessor import cube as cubes
from gridrad_cube.predecessor.arrays import IR, VISIBLE, _arrange_crops, _arrange_patches, _arrange_unordered
from gridrad_cube.readers import read_fields
from gridrad_cube.schema import CHANNELS, Flag, SchemaError

PATCH = 16
LOST = int(Flag.unreadable | Flag.all_missing)


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """Three scenes, the second at night: infrared alone."""
    return old.fields(3, patch=PATCH, night=[1])


@pytest.fixture(scope="module")
def cube(crops: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cube")
    old.write_npz(folder / "npz", crops, PATCH)
    assert not predecessor.from_npz(folder / "npz", folder / "patches.zarr").failed
    return folder / "patches.zarr"


def assert_holds(path: Path, crops: list[np.ndarray]) -> None:
    """Every value of every crop, to the step of the packing, in the order of times."""
    dataset = open_cube(path)
    assert dataset.sizes["crop"] == len(crops)
    for number, crop in enumerate(crops):
        np.testing.assert_allclose(dataset[IR].values[number], crop[0], rtol=0, atol=0.0051)
        absent = (dataset[f"{VISIBLE}_flags"].values[number] & int(Flag.channel_absent)) != 0
        assert absent.all() == (len(crop) == 1)
        if len(crop) == 2:
            np.testing.assert_allclose(100 * dataset[VISIBLE].values[number], crop[1], rtol=0, atol=0.0051)


# --- names and order -----------------------------------------------------------------------------------------


def test_slices_of_crops_are_told_apart_by_their_channels() -> None:
    assert _arrange_crops([IR, VISIBLE, IR, IR, VISIBLE, VISIBLE]) == [
        {IR: 0, VISIBLE: 1},
        {IR: 2},
        {IR: 3, VISIBLE: 4},
        {VISIBLE: 5},
    ]


def test_slices_of_patches_have_a_place_only_where_none_is_missing() -> None:
    day, night = [IR, VISIBLE] * 64, [IR] * 64
    first, second = _arrange_patches(day + night) or []
    assert first[VISIBLE][2, 3] == (2 * 8 + 3) * 2 + 1
    assert second.keys() == {IR}
    assert second[IR][7, 7] == 128 + 63
    assert _arrange_patches(day[1:] + night) is None
    assert _arrange_patches(day[:-1]) is None
    infrared, visible = _arrange_unordered(day[:-1])
    assert (visible[VISIBLE] >= 0).sum() == 63
    np.testing.assert_array_equal(infrared[IR].ravel(), np.arange(0, 128, 2))


# --- cubes ---------------------------------------------------------------------------------------------------


def test_npz_files_become_crops_in_the_order_of_their_times(cube: Path, crops: list[np.ndarray]) -> None:
    assert_holds(cube, crops)
    dataset = open_packed(cube)
    assert [str(t)[:16] for t in dataset["time"].values] == [
        "2021-07-05T10:00",
        "2021-07-05T10:10",
        "2021-07-05T10:20",
    ]
    assert list(dataset["scene"].values) == old.names(3)
    assert np.isnan(dataset["latitude"].values).all()
    assert set(dataset["grid"].values) == {"unknown-128x128"}
    # Steps of 0.01 K and 0.01 % are steps of the packing: the codes are exact.
    np.testing.assert_array_equal(dataset[IR].values[0], np.rint(100 * crops[0][0].astype(np.float64)))
    assert store.verify(cube) == []


def test_float32_keeps_every_bit(crops: list[np.ndarray], tmp_path: Path) -> None:
    shifted = [c + np.float32(0.0034) for c in crops]
    old.write_npz(tmp_path / "npz", shifted, PATCH)
    predecessor.from_npz(tmp_path / "npz", tmp_path / "c.zarr", dtype="float32")
    dataset = open_cube(tmp_path / "c.zarr")
    for number, crop in enumerate(shifted):
        np.testing.assert_array_equal(dataset[IR].values[number], crop[0])


def test_scenes_of_patches_and_crops(crops: list[np.ndarray], tmp_path: Path) -> None:
    old.write_scenes(tmp_path / "pt", crops[:2], PATCH)
    some = next((tmp_path / "pt" / "patches").iterdir())
    assert some.stat().st_size > 64 * PATCH**2 * 4  # the whole scene is in the file of each patch
    assert not predecessor.from_pt(tmp_path / "pt", tmp_path / "both.zarr").failed
    assert_holds(tmp_path / "both.zarr", crops[:2])
    assert not predecessor.from_pt(tmp_path / "pt" / "patches", tmp_path / "patches.zarr").failed
    assert_holds(tmp_path / "patches.zarr", crops[:2])
    assert not predecessor.from_pt(tmp_path / "pt" / "crops", tmp_path / "crops.zarr", patch=PATCH).failed
    assert_holds(tmp_path / "crops.zarr", crops[:2])


def test_deleted_and_broken_patches_are_marked_and_the_rest_keeps_its_place(
    crops: list[np.ndarray], tmp_path: Path
) -> None:
    old.write_scenes(tmp_path, crops[:2], PATCH, bloated=False)
    base, night = old.names(2)
    folder = tmp_path / "patches"
    (folder / f"{base}_patch_2_5_0.pt").unlink()
    whole = (folder / f"{base}_patch_0_7_1.pt").read_bytes()
    (folder / f"{base}_patch_0_7_1.pt").write_bytes(whole[: len(whole) // 2])
    for col in range(8):  # the names of this scene no longer show that there was a last row
        (folder / f"{night}_patch_7_{col}_0.pt").unlink()
    report = predecessor.from_pt(folder, tmp_path / "c.zarr")
    assert not report.failed
    dataset = open_cube(tmp_path / "c.zarr")
    lost = {name: (dataset[f"{name}_flags"].values & int(Flag.unreadable)) != 0 for name in (IR, VISIBLE)}
    assert np.argwhere(lost[IR][0]).tolist() == [[2, 5]]
    assert np.argwhere(lost[VISIBLE][0]).tolist() == [[0, 7]]
    assert np.argwhere(lost[IR][1]).tolist() == [[7, col] for col in range(8)]
    assert (dataset[f"{IR}_flags"].values[0, 2, 5] & LOST) == LOST
    found = dataset[IR].values[0]
    where = np.isnan(found)
    assert where.sum() == PATCH**2
    np.testing.assert_allclose(found[~where], crops[0][0][~where], atol=0.0051)
    # The crop has the same pixels: with it nothing is lost.
    predecessor.from_pt(tmp_path, tmp_path / "whole.zarr")
    assert_holds(tmp_path / "whole.zarr", crops[:2])


def test_chunks_of_the_earlier_version(crops: list[np.ndarray], tmp_path: Path) -> None:
    old.write_chunks(tmp_path, crops, PATCH)
    predecessor.from_pt(tmp_path / "Crops", tmp_path / "c.zarr", patch=PATCH)
    assert_holds(tmp_path / "c.zarr", crops)
    predecessor.from_pt(tmp_path / "Patches", tmp_path / "p.zarr")
    assert_holds(tmp_path / "p.zarr", crops)
    assert np.isnat(open_packed(tmp_path / "p.zarr")["time"].values).all()
    with pytest.raises(SchemaError, match="several copies of the same pixels"):
        predecessor.from_pt(tmp_path, tmp_path / "both.zarr")


def test_numbered_patches_have_places_until_the_filter_left_gaps(
    crops: list[np.ndarray], tmp_path: Path
) -> None:
    old.write_slices(tmp_path / "all", crops[:2], PATCH)
    predecessor.from_pt(tmp_path / "all", tmp_path / "all.zarr")
    assert_holds(tmp_path / "all.zarr", crops[:2])
    old.write_slices(tmp_path / "gaps", crops[:2], PATCH, dropped=[3, 130])
    predecessor.from_pt(tmp_path / "gaps", tmp_path / "gaps.zarr")
    dataset = open_cube(tmp_path / "gaps.zarr")
    assert set(dataset["grid"].values) == {"unordered-128x128"}
    # Nothing is lost: every slice that was kept is there, bit for bit, in some place.
    flat = old.flat_patches(crops[:2], PATCH)
    kept = np.delete(flat, [3, 130], axis=0)
    for name, scale, is_mine in ((IR, 1, kept.mean((1, 2)) > 140), (VISIBLE, 100, kept.mean((1, 2)) < 140)):
        values = scale * dataset[name].values.reshape(-1, 8, PATCH, 8, PATCH).swapaxes(2, 3)
        cells = values.reshape(-1, PATCH, PATCH)
        cells = cells[np.isfinite(cells).all((1, 2))]
        np.testing.assert_allclose(cells, kept[is_mine], atol=0.0051)


def test_codes_of_missing_data_that_a_lost_mask_let_through(crops: list[np.ndarray], tmp_path: Path) -> None:
    crop = crops[0].copy()
    crop[0, :4, :4] = [65535.0, 9.96921e36, -9999.0, np.nan]
    crop[0, 20, 20], crop[0, 21, 21] = 40000.0, np.inf
    old.write_npz(tmp_path, [crop], PATCH)
    predecessor.from_npz(tmp_path, tmp_path / "c.zarr")
    dataset = open_packed(tmp_path / "c.zarr")
    flags = dataset[f"{IR}_flags"].values[0]
    assert flags[0, 0] == int(Flag.some_missing)
    assert (dataset[IR].values[0, :4, :4] == 65535).all()
    assert flags[1, 1] & int(Flag.out_of_valid_range)
    assert flags[1, 1] & int(Flag.non_finite)
    assert np.count_nonzero(flags) == 2


def test_units_of_the_reflectance_are_told_by_its_values(crops: list[np.ndarray], tmp_path: Path) -> None:
    fraction = [np.stack([crops[0][0], crops[0][1] / 100])]
    old.write_npz(tmp_path / "npz", fraction, PATCH)
    predecessor.from_npz(tmp_path / "npz", tmp_path / "c.zarr")
    found = open_cube(tmp_path / "c.zarr")[VISIBLE].values[0]
    np.testing.assert_allclose(found, fraction[0][1], atol=1e-4)
    with pytest.raises(SchemaError, match="visible_units: store 1, asked percent"):
        predecessor.from_npz(tmp_path / "npz", tmp_path / "c.zarr", visible_units="percent")


def test_it_goes_on_extends_and_refuses_what_changed(
    crops: list[np.ndarray], tmp_path: Path, monkeypatch: Any
) -> None:
    paths = old.write_npz(tmp_path / "npz", crops, PATCH)
    last = paths[2].rename(tmp_path / "later.npz")
    path = tmp_path / "c.zarr"
    write = cubes._write_crops

    def killed(*task: Any) -> Any:
        if task[3].row == 1:
            raise KeyboardInterrupt
        return write(*task)

    monkeypatch.setattr(cubes, "_write_crops", killed)
    with pytest.raises(KeyboardInterrupt):
        predecessor.from_npz(tmp_path / "npz", path)
    with pytest.raises(SchemaError, match="not finished"):
        open_cube(path)
    monkeypatch.setattr(cubes, "_write_crops", write)
    assert [o.status for o in predecessor.from_npz(tmp_path / "npz", path).outcomes] == ["kept", "written"]
    last.rename(paths[2])
    report = predecessor.from_npz(tmp_path / "npz", path)
    assert [o.status for o in report.outcomes] == ["kept", "kept", "written"]
    assert_holds(path, crops)
    assert open_cube(path).attrs["history"].count("gridrad-cube convert") == 2
    # The same command replaces what is damaged.
    shard = path / IR / "c.1.0.0"
    shard.write_bytes(shard.read_bytes()[:-9])
    report = predecessor.from_npz(tmp_path / "npz", path)
    assert [o.status for o in report.outcomes] == ["kept", "written", "kept"]
    assert store.verify(path) == []
    os.utime(paths[0])
    assert predecessor.from_npz(tmp_path / "npz", path).count("kept") == 3
    old.write_npz(tmp_path / "npz", crops[::-1], PATCH)
    with pytest.raises(SchemaError, match="changed since it was written"):
        predecessor.from_npz(tmp_path / "npz", path)


def test_one_bad_file_stops_no_other(crops: list[np.ndarray], tmp_path: Path) -> None:
    paths = old.write_npz(tmp_path, [*crops, crops[0][:, :64]], PATCH)
    paths[1].write_bytes(paths[1].read_bytes()[:5000])
    report = predecessor.from_npz(tmp_path, tmp_path / "c.zarr")
    assert [o.status for o in report.outcomes] == ["written", "failed", "written", "failed"]
    assert "truncated or damaged" in report.failed[0].reason
    assert "(64, 128) pixels; this store has (128, 128)" in report.failed[1].reason
    flags = open_packed(tmp_path / "c.zarr")[f"{IR}_flags"].values[1]
    assert (flags == int(Flag.unreadable)).all()


# --- places --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    synthetic.write_scenes(folder, format="larc-goes", scenes=2, shape=(180, 200), start="2021-07-05T18:00")
    return folder


def test_crops_find_their_place_in_the_source_again(sources: Path, tmp_path: Path) -> None:
    paths = sorted(sources.rglob("*.nc"))
    origins = [(17, 31), (52, 0)]
    for path, (y, x) in zip(paths, origins, strict=True):
        scene = read_scene(path)
        codes = np.stack([scene[name].values for name in (IR, VISIBLE)])[:, y : y + 128, x : x + 128]
        crop = (codes * np.array([0.01, 0.01])[:, None, None]).astype(np.float32)
        crop[codes == 65535] = 65535.0
        np.savez_compressed(tmp_path / f"{path.stem}.npz", crop=crop, patches=old.patches_of(crop, PATCH))
    predecessor.from_npz(tmp_path, tmp_path / "c.zarr", source_root=sources)
    found = open_packed(tmp_path / "c.zarr")
    assert list(zip(found["y_origin"].values, found["x_origin"].values, strict=True)) == origins
    assert np.isfinite(found["latitude"].values).all()
    # The same as cutting the source there.
    own = tiling.cut(read_scene(paths[0]), tiling.Window(*origins[0], 128, 128), PATCH)
    for name in ("time", "latitude", "longitude", IR, VISIBLE):
        np.testing.assert_array_equal(found[name].values[0], own[name].values, err_msg=name)


def test_a_crop_that_is_not_in_its_source_has_no_place(
    sources: Path, crops: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = min(sources.rglob("*.nc")).stem
    np.savez_compressed(tmp_path / f"{name}.npz", crop=crops[0], patches=old.patches_of(crops[0], PATCH))
    predecessor.from_npz(tmp_path, tmp_path / "c.zarr", source_root=sources)
    assert open_packed(tmp_path / "c.zarr")["grid"].values[0].startswith("unknown")
    assert "1 of 1 sources have no place" in caplog.text


def test_a_field_of_one_value_has_no_place() -> None:
    flat = np.full((180, 200), 27000, np.uint16)
    assert cubes._find_window(flat, CHANNELS[IR].packing, np.full((64, 64), 270.0)) is None


# --- what is not trusted -------------------------------------------------------------------------------------


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/should-not-be-there",)


def _torch_file(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_files_that_are_something_else_are_refused_in_a_line(tmp_path: Path) -> None:
    bad: list[tuple[Path, str]] = []

    def add(name: str, data: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(data)
        bad.append((tmp_path / name, match))

    add("crop_1_0.pt", b"not a tensor at all", "begins with")
    add("crop_2_0.pt", pickle.dumps({"a": 1}), "begins with")
    add("crop_3_0.pt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer")
    bad.append((_torch_file(tmp_path / "crop_4_0.pt", _Runs()), "a safe load refuses"))
    bad.append((_torch_file(tmp_path / "crop_5_0.pt", {"a": torch.zeros(2)}), "from-features"))
    bad.append((_torch_file(tmp_path / "crop_6_0.pt", torch.zeros(4)), "expected 2 dimensions"))
    bad.append(
        (_torch_file(tmp_path / "crop_7_0.pt", torch.zeros(1).expand(10**6, 10**6)), "larger than its file")
    )
    with zipfile.ZipFile(tmp_path / "crop_8_0.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    bad.append((tmp_path / "crop_8_0.pt", "compressed inside"))
    for path, match in bad:
        with pytest.raises(SchemaError, match=match):
            predecessor.from_pt(path, tmp_path / "c.zarr")
    assert not Path("/tmp/should-not-be-there").exists()


def test_npz_files_that_declare_what_they_do_not_hold(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "objects.npz", crop=np.array([{}], object))
    np.savez(tmp_path / "shape.npz", crop=np.zeros((3, 4, 4)))
    header = (
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 9000, 9000), }"
    )
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("crop.npy", header.ljust(127) + b"\n" + bytes(64))
    for name, match in (
        ("other", "expected 'crop'"), ("objects", "of numbers"), ("shape", "1 or 2 channels"), ("short", "declares")
    ):  # fmt: skip
        with pytest.raises(SchemaError, match=match):
            predecessor.from_npz(tmp_path / f"{name}.npz", tmp_path / "c.zarr")


# --- embeddings ----------------------------------------------------------------------------------------------


def _features(crops: list[np.ndarray], width: int = 12) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(3)
    whole = torch.from_numpy(rng.standard_normal((2 * len(crops), 64, width)).astype(np.float32))
    return {
        f"{base}_crop_{c}.pt": whole[2 * n + c]  # views of all, as its script gathered them
        for n, (base, crop) in enumerate(zip(old.names(len(crops)), crops, strict=True))
        for c in range(len(crop))
    }


def test_features_with_the_cube(cube: Path, crops: list[np.ndarray], tmp_path: Path) -> None:
    features = _features(crops)
    torch.save(features, tmp_path / "output_features.pt")
    summary = predecessor.from_features(tmp_path / "output_features.pt", tmp_path / "e.zarr", cube=cube)
    assert (summary["level"], summary["embedded"], summary["unmatched"]) == ("256", 5, [])
    dataset = open_embeddings(tmp_path / "e.zarr")
    assert dataset["embedding"].sizes == {"crop": 3, "channel": 2, "row": 8, "col": 8, "feature": 12}
    expected = features[f"{old.names(3)[2]}_crop_1.pt"].reshape(8, 8, 12).numpy()
    np.testing.assert_array_equal(dataset["embedding"].values[2, 1], expected)
    assert np.isnan(dataset["embedding"].values[1, 1]).all()
    source = open_packed(cube)
    np.testing.assert_array_equal(dataset["flags"].values[:, 0], source[f"{IR}_flags"].values)
    np.testing.assert_array_equal(dataset["time"].values, source["time"].values)
    before = (tmp_path / "e.zarr" / "zarr.json").stat().st_mtime_ns
    assert (
        predecessor.from_features(tmp_path / "output_features.pt", tmp_path / "e.zarr", cube=cube) == summary
    )
    assert (tmp_path / "e.zarr" / "zarr.json").stat().st_mtime_ns == before


def test_features_of_both_levels_without_a_cube(crops: list[np.ndarray], tmp_path: Path) -> None:
    features = _features(crops)
    folder = tmp_path / "input_2k"
    folder.mkdir()
    for name, value in features.items():
        torch.save(value, folder / name)  # each the size of all of them together
    predecessor.from_features(folder, tmp_path / "e.zarr")
    dataset = open_embeddings(tmp_path / "e.zarr")
    assert list(dataset["scene"].values) == old.names(3)
    assert (dataset["flags"].values[1, 1] == int(Flag.channel_absent)).all()
    for name, value in features.items():
        at = old.names(3).index(name[: -len("_crop_0.pt")]), int(name[-4])
        np.testing.assert_array_equal(dataset["embedding"].values[at], value.reshape(8, 8, 12))
    upper = {name: value[0] for name, value in features.items()}
    torch.save(upper, tmp_path / "output_features_2k.pt")
    assert (
        predecessor.from_features(tmp_path / "output_features_2k.pt", tmp_path / "2k.zarr")["level"] == "2k"
    )
    above = open_embeddings(tmp_path / "2k.zarr")["embedding"].values
    np.testing.assert_array_equal(above[2, 1], upper[f"{old.names(3)[2]}_crop_1.pt"])


def test_features_that_do_not_fit_say_what(cube: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    for value, match in (
        ([torch.zeros(64, 4)], "expected a dict of embeddings"),
        ({"a_crop_0.pt": torch.zeros(60, 4)}, "Pass `grid`"),
        ({"a_crop_0.pt": torch.zeros(64, 4), "b_crop_0.pt": torch.zeros(64, 5)}, "as the first"),
        ({"crop_1_0.pt": torch.zeros(64, 4)}, "does not contain the channel"),
        ({}, "no embeddings"),
    ):
        torch.save(value, path)
        with pytest.raises(SchemaError, match=match):
            predecessor.from_features(path, tmp_path / "e.zarr")
    torch.save({"a_crop_0.pt": torch.zeros(64, 4)}, path)
    with pytest.raises(SchemaError, match="none of its names"):
        predecessor.from_features(path, tmp_path / "e.zarr", cube=cube)


# --- checkpoints ---------------------------------------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).parent / "golden" / "predecessor.json").read_text())


def _filled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the golden numbers' formula."""
    out = {}
    for i, (key, value) in enumerate(sorted(state.items())):
        filled = 0.02 * np.sin(0.1 * (i + 1) + 0.37 * np.arange(value.numel()))
        filled = filled + ("norm" in key and key.endswith(".weight"))
        out[key] = torch.from_numpy(filled.astype(np.float32)).reshape(value.shape)
    return out


def _input(shape: tuple[int, ...]) -> torch.Tensor:
    n = np.arange(int(np.prod(shape)))
    return torch.from_numpy(np.cos(0.013 * n + 0.0001 * (n % 997)).astype(np.float32)).reshape(shape)


def _old_checkpoint(name: str, path: Path) -> None:
    network = build(name)
    state = _filled(network.state_dict())
    head = DINOHead(network.embed_dim, 16, hidden_dim=8).state_dict()
    torch.save(
        {
            "student": {f"module.backbone.{k}": v for k, v in state.items()}
            | {f"module.head.{k}": v for k, v in head.items()},
            "teacher": {f"backbone.{k}": v for k, v in state.items()}
            | {f"head.{k}": v for k, v in head.items()},
            "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-4), "params": [0]}]},
            "epoch": 7,
            "args": argparse.Namespace(arch=name, global_crops_scale=(0.4, 1.0), odd=argparse.Namespace()),
            "dino_loss": {"center": torch.ones(1, 16)},
        },
        path,
    )


@pytest.mark.parametrize(
    ("name", "case"),
    [("vit_tiny", "vit_tiny in(2,1,96,96)"), ("vit2k_xs", "vit2k_xs in(2,384,8,8)")],
)
def test_converted_checkpoints_give_the_golden_numbers(name: str, case: str, tmp_path: Path) -> None:
    _old_checkpoint(name, tmp_path / "old.pth")
    summary = predecessor.from_checkpoint(tmp_path / "old.pth", tmp_path / "ours.pth")
    assert (summary["epoch"], summary["left_out"]) == (7, ["args", "optimizer"])
    ours = load_checkpoint(tmp_path / "ours.pth")
    shape = tuple(int(n) for n in case.split("(")[1].rstrip(")").split(","))
    for key in ("teacher", "student"):
        with torch.no_grad():
            out = load_backbone(ours, key)(_input(shape)).double()
        expected = GOLDEN[case]
        np.testing.assert_allclose(out.flatten()[:6], expected["first"], atol=1e-4)
        np.testing.assert_allclose(out.norm(), expected["l2"], atol=1e-4)
    assert torch.equal(ours["dino_loss"]["center"], torch.ones(1, 16))
    with pytest.raises(SchemaError, match="of this program already"):
        predecessor.from_checkpoint(tmp_path / "ours.pth", tmp_path / "twice.pth")


def test_a_converted_checkpoint_embeds_values_as_the_predecessor_did(
    crops: list[np.ndarray], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = build("vit_tiny").eval()
    torch.save(
        {"teacher": {f"backbone.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "old.pth"
    )
    old.write_npz(tmp_path / "npz", crops[:1], PATCH)
    predecessor.from_npz(tmp_path / "npz", tmp_path / "c.zarr")
    predecessor.from_checkpoint(tmp_path / "old.pth", tmp_path / "ours.pth")
    embed(tmp_path / "c.zarr", tmp_path / "ours.pth", tmp_path / "e.zarr", dtype="float32")
    found = open_embeddings(tmp_path / "e.zarr")
    assert list(found["channel"].values) == [IR, VISIBLE]
    tiles = torch.from_numpy(old.patches_of(crops[0], PATCH))  # kelvin and percent, unscaled
    for number in range(2):
        with torch.no_grad():
            expected = network(tiles[2, :4, number, None])
        np.testing.assert_allclose(found["embedding"].values[0, number, 2, :4], expected, atol=2e-3)


def test_networks_of_other_channels_are_refused(tmp_path: Path) -> None:
    network = build("vit_tiny", 3, image_size=96)
    torch.save({"teacher": network.state_dict()}, tmp_path / "three.pth")
    with pytest.raises(SchemaError, match="reads 3 channels at once"):
        predecessor.from_checkpoint(tmp_path / "three.pth", tmp_path / "x.pth")


# --- commands and pictures -----------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_commands(crops: list[np.ndarray], tmp_path: Path) -> None:
    old.write_npz(tmp_path / "npz", crops[:1], PATCH)
    store_path, base = tmp_path / "c.zarr", old.names(1)[0]
    done = run("convert", "from-npz", tmp_path / "npz", store_path)
    assert (done.exit_code, "1 written" in done.output) == (0, True), done.output
    torch.save({f"{base}_crop_1.pt": torch.ones(64, 4)}, tmp_path / "f.pt")
    done = run("convert", "from-features", tmp_path / "f.pt", tmp_path / "e.zarr", "--cube", store_path)
    assert f"1 embedding of 4 numbers, of 1 crop and {VISIBLE}\n" in done.stdout
    done = run("convert", "from-pt", tmp_path / "npz", tmp_path / "x.zarr")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "no file with a name of the predecessor's" in done.output


def test_a_file_that_failed_shows_in_the_exit_status(crops: list[np.ndarray], tmp_path: Path) -> None:
    paths = old.write_npz(tmp_path / "npz", crops[:2], PATCH)
    paths[0].write_bytes(b"nothing")
    done = run("convert", "from-npz", tmp_path / "npz", tmp_path / "c.zarr")
    assert done.exit_code == 1
    assert f"failed  {paths[0].name}" in done.output


def test_everything_in_a_source_file_at_a_glance(sources: Path, tmp_path: Path) -> None:
    path = min(sources.rglob("*.nc"))
    listed = run("info", path).stdout
    for name in ("scan_time", "ot_id_number", "uint16 (time 1, nlines 180, npixels 200)", "attributes:"):
        assert name in listed
    figure = plot.source(read_fields(path))
    titles = " ".join(ax.get_title("left") for ax in figure.axes)
    for name in ("Infrared brightness temperature (K)", "Visible reflectance", "ot_id_number"):
        assert name in titles
    assert run("plot", "source", path, "-o", tmp_path / "s.png").exit_code == 0
    assert (tmp_path / "s.png").stat().st_size > 10_000
    with pytest.raises(SchemaError, match="no 2-D field"):
        plot.source(read_fields(path)[[]])


def test_any_netcdf_file_can_be_looked_into(tmp_path: Path) -> None:
    import xarray as xr

    xr.Dataset({"depth": ("station", np.arange(3.0), {"units": "m"})}).to_netcdf(tmp_path / "x.nc")
    listed = run("info", tmp_path / "x.nc").stdout
    assert "no scene that a reader knows" in listed
    assert "float64 (station 3)  [m]" in listed


def test_crops_without_a_time_can_be_drawn(crops: list[np.ndarray], tmp_path: Path) -> None:
    old.write_chunks(tmp_path, crops[:1], PATCH)
    predecessor.from_pt(tmp_path / "Crops", tmp_path / "c.zarr", patch=PATCH)
    assert run("plot", "scene", tmp_path / "c.zarr", "-o", tmp_path / "c.png").exit_code == 0


# --- the page ------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-the-predecessor.md").read_text()
#: Flags of its scripts, functions of its dataset/utils.py, and its files.
OLD_FLAGS = """
    arch patch_size out_dim norm_last_layer momentum_teacher use_bn_in_head warmup_teacher_temp teacher_temp
    warmup_teacher_temp_epochs use_fp16 weight_decay weight_decay_end clip_grad batch_size_per_gpu epochs
    freeze_last_layer lr warmup_epochs min_lr optimizer drop_path_rate global_crops_scale local_crops_number
    local_crops_scale data_path output_dir save_best saveckp_freq seed num_workers dist_url pretrained_weights
    checkpoint_key model_path arch2k patch_size2k pretrained_weights2k checkpoint_key2k out_dim2k norm_last_layer2k
"""
OLD_FUNCTIONS = """
    print_netcdf_info open_netcdf close_netcdf plot_2d_variables random_crop_and_partition process_nc_file
    plot_crop_and_patches process_nc_file_two_channels process_single_file process_directory_tree process_file
    process_npz_folder_parallel sanity_check_pt_files get_next_chunk_index flush_chunk process_npz_files_progressive
    process_all_chunks_to_individual_files check_and_remove_tensor_files_parallel process_npz_files_parallel
    main_dino.py main_dino2k.py main_dino4k.py From_ViT16_to_ViT256.py From_ViT256_to_ViT2k.py xcit deit_small
"""


def test_the_page_names_everything_old() -> None:
    words = set(re.findall(r"[\w.]+|--[\w-]+", PAGE))
    assert [f for f in OLD_FLAGS.split() if f"`--{f}`" not in PAGE] == []
    assert [name for name in OLD_FUNCTIONS.split() if name not in words] == []


def test_what_the_page_says_can_be_typed() -> None:
    from gridrad_cube.training import FIELDS

    spans = re.findall(r"`(gridrad-cube [^`]+)`", PAGE) + re.findall(r"^(gridrad-cube .+)$", PAGE, re.M)
    assert len(spans) > 20
    for span in spans:
        command, words = cli, span.split()[1:]
        while words and hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        flags = {word for word in words if word.startswith("--")}
        known = {option for p in command.params for option in p.opts}
        if command.name == "train":
            known = {f"--{name.replace('_', '-')}" for name in (*FIELDS, "preset")}
        assert flags <= known, span


def test_python_names_of_the_page_exist() -> None:
    names = sorted(set(re.findall(r"`(gridrad_cube(?:\.\w+)+)", PAGE)))
    assert len(names) > 5
    for name in names:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[count:]:
                value = getattr(value, attribute)
            break
