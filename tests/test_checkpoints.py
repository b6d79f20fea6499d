"""Checkpoints: whole or not at all, no code run, every weight accounted for."""

from __future__ import annotations

import argparse
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gridrad_cube.models import (
    DINOHead,
    VisionTransformer,
    backbone_state,
    build,
    fingerprint,
    head_state,
    load_backbone,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from gridrad_cube.schema import SchemaError


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def predecessor_checkpoint(network: nn.Module, head: nn.Module) -> dict[str, Any]:
    """Laid out as the predecessor's scripts do, numpy scalars and arguments included."""
    backbone, projection = network.state_dict(), head.state_dict()
    return {
        "student": prefixed("module.backbone.", backbone) | prefixed("module.head.", projection),
        "teacher": prefixed("backbone.", {k: v + 1 for k, v in backbone.items()})
        | prefixed("head.", projection),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(5e-4), "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", global_crops_scale=(0.4, 1.0)),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def assert_same_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    assert own.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(own[name], value), name


@pytest.fixture
def network() -> VisionTransformer:
    torch.manual_seed(0)
    return build("vit2k_xs", 16)


@pytest.fixture
def saved(network: VisionTransformer, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"teacher": network.state_dict(), "model": network.config()}, path)
    return path


# --- loading ------------------------------------------------------------------------------------------------


@given(parts=st.lists(st.sampled_from(["module.", "backbone.", "_orig_mod."]), max_size=4))
@settings(max_examples=20, deadline=None)
def test_every_mix_of_prefixes_comes_off(parts: list[str]) -> None:
    network = build("vit2k_xs", 16, embed_dim=12, depth=2)
    state = network.state_dict()
    weights = prefixed("".join(parts), state) | {"module.head.mlp.0.weight": torch.zeros(2)}
    assert_same_weights(load_backbone({"teacher": weights, "model": network.config()}), state)


def test_prefixes_come_off_in_front_only() -> None:
    state = backbone_state({"teacher": {"module.blocks.0.module.backbone.weight": torch.zeros(1)}})
    assert list(state) == ["blocks.0.module.backbone.weight"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny", {}),
        ("vit_tiny", {"in_channels": 3, "patch_size": 8}),
        ("vit_small", {"image_size": 256}),
        ("vit_base", {"image_size": 32}),
        ("vit_demo", {}),
        ("vit2k_xs", {}),
        ("vit2k_xs", {"in_channels": 192}),
        ("vit4k_xs", {}),
    ],
)
def test_the_network_is_inferred_from_shapes(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        expected = build(name, **options)
    state = {key: torch.zeros(value.shape) for key, value in expected.state_dict().items()}
    assert load_backbone({"teacher": state}).config() == expected.config()


def test_a_predecessors_file_loads_with_its_arguments_and_either_network(
    network: VisionTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(predecessor_checkpoint(network, DINOHead(192, 8, hidden_dim=4)), path)
    checkpoint = load_checkpoint(path)
    assert checkpoint["args"].arch == "vit_small"
    assert checkpoint["optimizer"]["param_groups"][0]["lr"] == 5e-4
    state = network.state_dict()
    assert_same_weights(load_backbone(path, "student"), state)
    teacher = load_backbone(str(path))
    assert_same_weights(teacher, {key: value + 1 for key, value in state.items()})
    assert not teacher.training


def test_numpy_1_files_load(tmp_path: Path) -> None:
    save_checkpoint({"lr": np.float64(0.25)}, tmp_path / "2.pth")
    with zipfile.ZipFile(tmp_path / "2.pth") as new, zipfile.ZipFile(tmp_path / "1.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_checkpoint(tmp_path / "1.pth") == load_checkpoint(tmp_path / "2.pth") == {"lr": 0.25}


def test_ours_rebuilds_what_shapes_do_not_tell(tmp_path: Path) -> None:
    network = build("vit_demo", depth=2, heads=4, position="exact", mask_token=True)
    save_checkpoint({"teacher": network.state_dict(), "model": network.config()}, tmp_path / "c.pth")
    again = load_backbone(tmp_path / "c.pth")
    assert again.config() == network.config()
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(again(x), network.eval()(x))


def test_a_bare_backbone_loads(network: VisionTransformer) -> None:
    assert_same_weights(load_backbone(network.state_dict()), network.state_dict())


def test_a_missing_mask_token_alone_is_allowed_and_zero(network: VisionTransformer) -> None:
    target = build("vit2k_xs", 16, mask_token=True)
    nn.init.ones_(target.mask_token)  # type: ignore[arg-type]
    loaded = load_backbone(network.state_dict(), model=target)
    assert loaded is target
    assert target.mask_token is not None
    assert (target.mask_token == 0).all()


def test_a_misfit_names_what_is_missing_unexpected_and_of_another_shape(network: VisionTransformer) -> None:
    state = network.state_dict()
    del state["norm.bias"]
    state["registers"] = torch.zeros(1)
    state["phi.0.weight"] = torch.zeros(192, 17)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    message = (
        r"checkpoint: 'teacher' does not fit vit2k_xs: missing: norm\.bias; unexpected: registers; "
        r"differing in shape: phi\.0\.weight \(192, 17\) for \(192, 16\)\. Nothing was loaded\."
    )
    with pytest.raises(SchemaError, match=message):
        load_backbone(state, model=network)
    assert_same_weights(network, before)


def test_a_long_list_of_misfits_is_capped() -> None:
    with pytest.raises(SchemaError, match=r"missing: blocks\.2\.[^;]* and 19 more"):
        load_backbone(build("vit_demo", depth=2).state_dict(), model=build("vit_demo", depth=4))


def test_an_empty_or_foreign_checkpoint_never_gives_a_random_network(network: VisionTransformer) -> None:
    state = network.state_dict()
    with pytest.raises(SchemaError, match=r"no weights under 'teacher'; expected one of \['student'\]"):
        load_backbone({"student": state, "dino_loss": {"center": torch.zeros(1)}})
    with pytest.raises(SchemaError, match=r"no weights under 'teacher'; expected one of \[\]"):
        load_backbone({})
    with pytest.raises(SchemaError, match=r"not a vision transformer; .* got conv\.weight"):
        load_backbone({"conv.weight": torch.zeros(3)})
    with pytest.raises(SchemaError, match="no known network is 192 wide and 2 layers deep"):
        load_backbone(build("vit_demo", depth=2).state_dict())
    with pytest.raises(SchemaError, match=r"describes no network that can be built: .*'vit_huge'"):
        load_backbone({"teacher": state, "model": {"name": "vit_huge"}})
    with pytest.raises(SchemaError, match="describes no network that can be built"):
        load_backbone({"teacher": state, "model": {"layers": 3}})
    with pytest.raises(SchemaError, match="holds two networks"):
        load_backbone({"teacher": state | prefixed("module.", state)})


# --- heads --------------------------------------------------------------------------------------------------


def test_heads_load_with_old_and_new_names_of_weight_normalisation() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(256, 8, bias=False))
    nn.init.constant_(linear.parametrizations["weight"].original0, 2.0)
    source = DINOHead(4, 8, hidden_dim=16)
    new = {k: v for k, v in source.state_dict().items() if k.startswith("mlp")}
    new |= prefixed("last_layer.", linear.state_dict())
    head = DINOHead(4, 8, hidden_dim=16)
    head.load_state_dict(head_state({"student": prefixed("module.head.", new)}, "student"))
    x = torch.randn(3, 4)
    expected = linear(nn.functional.normalize(source.mlp(x), dim=-1))
    torch.testing.assert_close(head(x), expected)
    head.load_state_dict(head_state({"teacher": prefixed("head.", source.state_dict())}))
    torch.testing.assert_close(head(x), source(x))


def test_a_backbone_alone_has_no_head(network: VisionTransformer) -> None:
    assert head_state(network.state_dict()) == {}


# --- reading files ------------------------------------------------------------------------------------------


def test_a_missing_file_is_one_readable_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^.*nothing\.pth: no such checkpoint\. Check its path"):
        load_backbone(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint, begins with b''"),
        (b"hello world", "not a checkpoint, begins with b'hello wo'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=rf"^.*checkpoint\.pth: {message}[^\n]*$"):
        load_checkpoint(path)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_refused_or_read_right(place: float, bit: int, cut: bool, tmp_path: Path) -> None:
    path, weights = tmp_path / "checkpoint.pth", torch.arange(500.0)
    save_checkpoint({"teacher": {"w": weights}, "step": 7}, path)
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    content[position] ^= 1 << bit
    path.write_bytes(content[:position] if cut else content)
    try:
        checkpoint = load_checkpoint(path)
    except SchemaError:
        return
    assert not cut
    assert torch.equal(checkpoint["teacher"]["w"], weights)  # the flip was in padding between records
    assert checkpoint["step"] == 7


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo code was run > ran.txt",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": Payload()}, "checkpoint.pth")
    with pytest.raises(SchemaError, match=r"^checkpoint\.pth: holds a (posix|nt)\.system, which a safe load"):
        load_checkpoint("checkpoint.pth")
    assert not Path("ran.txt").exists()


def test_a_file_that_holds_no_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(SchemaError, match="holds a list; expected a dict"):
        load_checkpoint(tmp_path / "list.pth")


# --- writing files ------------------------------------------------------------------------------------------


def test_saving_and_loading_gives_the_same_and_leaves_no_other_file(tmp_path: Path) -> None:
    state = {"teacher": {"w": torch.randn(3)}, "step": 12, "names": ["a", "b"], "loss": 0.5, "none": None}
    path = tmp_path / "checkpoint.pth"
    for _ in range(2):
        save_checkpoint(state, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.pop("teacher")["w"], state.pop("teacher")["w"])  # type: ignore[index]
    assert loaded == state
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_save_that_fails_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    with pytest.raises(SchemaError, match=r"checkpoint\.pth: holds a .*Path, which a safe load refuses"):
        save_checkpoint({"store": Path("patches.zarr")}, saved)
    with pytest.raises(AttributeError, match="local object"):
        save_checkpoint({"schedule": lambda step: step}, saved)

    def no_space(state: Any, file: Any) -> None:
        file.write(b"PK\x03\x04")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({"step": 1}, saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint.pth"]


def test_the_new_file_is_complete_before_it_takes_the_name(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def replace(source: Path, target: Path) -> None:
        seen["new"], seen["old"] = torch.load(source), load_checkpoint(target)
        raise KeyboardInterrupt  # the process dies here

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"step": 2}, saved)
    assert seen["new"] == {"step": 2}
    assert "teacher" in load_checkpoint(saved)


# --- identity and the newest --------------------------------------------------------------------------------


def test_fingerprint_survives_copies_and_sees_every_change(network: VisionTransformer, saved: Path) -> None:
    state = network.state_dict()
    identity = fingerprint(state)
    assert len(identity) == 32
    assert int(identity, 16) > 0
    assert fingerprint(backbone_state(load_checkpoint(saved))) == identity
    assert fingerprint(dict(reversed(state.items()))) == identity
    assert fingerprint({**state, "norm.bias": state["norm.bias"] + 1e-7}) != identity
    assert fingerprint({**state, "norm.bias": state["norm.bias"].half()}) != identity
    assert fingerprint({**state, "norm.bias": state["norm.bias"][None]}) != identity
    assert fingerprint({"a": torch.zeros(())}) != fingerprint({"b": torch.zeros(())})
    assert fingerprint({"a": torch.eye(3).mT}) == fingerprint({"a": torch.eye(3)})


def test_fingerprint_is_fixed_for_good() -> None:
    state = {"w": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(2, dtype=torch.bfloat16)}
    assert fingerprint(state) == "aba5353f01e9d104dbe789a9fee4d214"


def test_newest_readable_checkpoint_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
    for age, name in enumerate(["checkpoint.pth", "checkpoint0020.pth", "checkpoint_best0010.pth"]):
        save_checkpoint({"step": age}, tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / ".checkpoint.pth.1.tmp").write_bytes(b"PK")
    (tmp_path / "log.txt").write_text("{}")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint.pth"
    content = (tmp_path / "checkpoint.pth").read_bytes()
    (tmp_path / "checkpoint.pth").write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING, logger="gridrad_cube"):
        assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint0020.pth"
    assert "skipped a checkpoint: " in caplog.text
    assert "checkpoint.pth: truncated or damaged" in caplog.text


def test_a_file_that_expands_in_memory_is_refused(tmp_path: Path) -> None:
    size = 2**40
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"teacher": {"a": torch.zeros(1000)}}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    pickles = {
        "bytes": b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n\x8a\x06"
        + size.to_bytes(6, "little")
        + b"\x85Rs.",
        "tensor": b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\n\x8a\x06"
        + size.to_bytes(6, "little")
        + b"\x85Rs.",
    }
    for name, data in pickles.items():
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / f"{name}.pth", "w") as new:
            for record in old.namelist():
                new.writestr(record, data if record.endswith("data.pkl") else old.read(record))
    torch.save({"teacher": {"a": torch.zeros(1).expand(size)}}, tmp_path / "view.pth")
    torch.save({"teacher": {f"{i}": torch.zeros(9000)[:] for i in range(2)}}, tmp_path / "fits.pth")
    shared = torch.zeros(9000)
    torch.save({"teacher": {f"{i}": shared[i:] for i in range(40)}}, tmp_path / "shared.pth")
    torch.save({"teacher": {"a": torch.sparse_coo_tensor(size=(size,))}}, tmp_path / "sparse.pth")
    torch.save({"teacher": {"a": torch.empty(size, device="meta")}}, tmp_path / "meta.pth")
    for name in ("z", "bytes", "tensor", "view", "shared", "sparse", "meta"):
        with pytest.raises(SchemaError, match=r"compressed|asks for memory|times the size"):
            load_checkpoint(tmp_path / f"{name}.pth")
    assert load_checkpoint(tmp_path / "fits.pth")
