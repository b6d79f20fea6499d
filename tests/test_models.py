"""Networks against the predecessor's golden numbers, losses and schedules against plain loops."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gridrad_cube import models
from gridrad_cube.models import (
    CodingRateLoss,
    DINOHead,
    DINOLoss,
    ProjectionHead,
    VisionTransformer,
    build,
    clip_per_tensor_,
    cosine_schedule,
    parameter_groups,
    update_teacher_,
)
from gridrad_cube.models.vit import _DropPath

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "predecessor.json").read_text())


def closed_form_weights(module: nn.Module) -> nn.Module:
    """Weights by the formula that the golden numbers were made with."""
    state = module.state_dict()
    for i, key in enumerate(sorted(state)):
        wave = 0.1 * (i + 1) + 0.37 * torch.arange(state[key].numel(), dtype=torch.float64)
        value = (0.02 * torch.sin(wave)).float().reshape(state[key].shape)
        if "norm" in key and key.endswith(".weight"):
            value = value + 1
        state[key] = torch.ones_like(value) if key.endswith("weight_g") else value
    module.load_state_dict(state)
    return module.eval()


@functools.cache
def golden_network(name: str) -> VisionTransformer:
    with torch.device("meta"):
        network = build(name)
    closed_form_weights(network.to_empty(device="cpu"))
    return network


def closed_form_input(*shape: int) -> Tensor:
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.cos(0.013 * n + 0.0001 * (n % 997)).float().reshape(shape)


def assert_golden(value: Tensor, record: dict[str, Any]) -> None:
    value = value.detach().double()
    if record["shape"] is not None:
        assert list(value.shape) == record["shape"]
    got = [*value.flatten()[:6].tolist(), value.mean().item(), value.std().item(), value.norm().item()]
    expected = [*record["first"], record["mean"], record["std"], record["l2"]]
    np.testing.assert_allclose(got, expected, atol=1e-4)


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [key for key in GOLDEN if key.startswith("vit") and " in(" in key])
def test_class_token_equals_the_predecessors(case: str) -> None:
    name, shape = case.removesuffix(")").split(" in(")
    network = golden_network(name)
    with torch.no_grad():
        assert_golden(network(closed_form_input(*map(int, shape.split(",")))), GOLDEN[case])


def test_attention_and_intermediate_layers_equal_the_predecessors() -> None:
    network = golden_network("vit_small")
    x = closed_form_input(1, 1, 256, 256)
    with torch.no_grad():
        attention = network.get_last_selfattention(x)
        layers = network.get_intermediate_layers(x, n=2)
        last = network.forward_tokens(x)
    assert_golden(attention, GOLDEN["vit_small last_selfattention (1,1,256,256)"])
    assert_golden(layers[0], GOLDEN["vit_small intermediate n=2 [0]"])
    torch.testing.assert_close(layers[1], last)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 6, 257))


@pytest.mark.parametrize(
    ("name", "channels", "patch", "count"),
    [
        ("vit_tiny", 1, None, 5_426_112),
        ("vit_tiny", 2, None, 5_475_264),
        ("vit_tiny", 3, None, 5_524_416),
        ("vit_tiny", 1, 8, 5_502_144),
        ("vit_small", 1, None, 21_469_056),
        ("vit_small", 2, None, 21_567_360),
        ("vit_small", 3, None, 21_665_664),
        ("vit_small", 1, 8, 21_621_120),
        ("vit_base", 1, None, 85_405_440),
        ("vit_base", 3, None, 85_798_656),
        ("vit_base", 1, 8, 85_709_568),
        ("vit2k_xs", None, None, 2_894_400),
        ("vit4k_xs", None, None, 2_781_504),
    ],
)
def test_number_of_parameters_is_the_predecessors(
    name: str, channels: int | None, patch: int | None, count: int
) -> None:
    with torch.device("meta"):
        network = build(name, channels, **({"patch_size": patch} if patch else {}))
    assert sum(p.numel() for p in network.parameters()) == count


def test_keys_are_those_of_dino() -> None:
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = [f"blocks.{i}.{part}" for i in range(6) for part in block] + ["norm"]

    def keys(first: str) -> set[str]:
        return {"cls_token", "pos_embed"} | {
            f"{m}.{p}" for m in [first, *modules] for p in ("weight", "bias")
        }

    assert set(build("vit_demo").state_dict()) == keys("patch_embed.proj")
    assert set(build("vit2k_xs").state_dict()) == keys("phi.0")
    assert set(build("vit2k_xs", mask_token=True).state_dict()) == keys("phi.0") | {"mask_token"}


@pytest.mark.parametrize("name", ["vit_demo", "vit2k_xs"])
def test_config_rebuilds_the_network(name: str) -> None:
    network = build(name, 5, image_size=32, depth=2, heads=4, position="exact", mask_token=True)
    again = build(**json.loads(json.dumps(network.config())))
    assert again.config() == network.config()
    again.load_state_dict(network.state_dict())


def test_default_width_of_level_2k_is_384_and_can_be_chosen() -> None:
    assert build("vit2k_xs")(torch.zeros(1, 384, 8, 8)).shape == (1, 192)
    assert build("vit2k_xs", in_channels=192)(torch.zeros(1, 192, 8, 11)).shape == (1, 192)
    assert build("vit2k_xs", in_channels=1).config()["in_channels"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_xs"}, r"unknown network 'vit_xs'; expected one of \['vit2k_xs', .*'vit_tiny'\]"),
        ({"name": "vit_demo", "heads": 5}, "embed_dim=192 is not divisible by heads=5"),
        ({"name": "vit_demo", "image_size": 60}, "image_size=60 is not a multiple of patch_size=8"),
        ({"name": "vit2k_xs", "patch_size": 16}, "each cell of a grid is a token"),
        ({"name": "vit_demo", "depth": 0}, "every size must be at least 1"),
        ({"name": "vit_demo", "position": "sine"}, "position='sine'"),
    ],
)
def test_build_refuses_what_does_not_go_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize("shape", [(2, 1, 60, 64), (2, 2, 64, 64), (1, 64, 64), (2, 1, 0, 64)])
def test_input_that_is_not_whole_patches_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"vit_demo: cannot read .* multiples of 8\. Pad or cut"):
        build("vit_demo", depth=1)(torch.zeros(shape))


def test_positions_are_learned_ones_at_the_reference_and_resampled_elsewhere() -> None:
    dino, exact = build("vit_demo", depth=1), build("vit_demo", depth=1, position="exact")
    exact.load_state_dict(dino.state_dict())
    with torch.no_grad():
        for network in (dino, exact):
            torch.testing.assert_close(network._positions(8, 8), network.pos_embed)
            assert network._positions(4, 12).shape == (1, 49, 192)

    # The exact rule treats both edges alike; DINO's samples a little towards the first row and column.
    def mirrored(network: VisionTransformer) -> Tensor:
        positions = network._positions(5, 16)[0, 1:].detach().unflatten(0, (5, 16))
        with torch.no_grad():
            learned = network.pos_embed[0, 1:].unflatten(0, (8, 8))
            learned.copy_(learned.flip(0, 1))
        return (network._positions(5, 16)[0, 1:].unflatten(0, (5, 16)).flip(0, 1) - positions).abs().max()

    assert mirrored(exact) < 1e-6
    assert mirrored(dino) > 1e-3


def test_level_2k_tells_rows_from_columns() -> None:
    network = golden_network("vit2k_xs")
    x = closed_form_input(1, 384, 8, 8)
    with torch.no_grad():
        assert (network(x) - network(x.mT)).abs().max() > 1e-3


def test_cells_outside_the_attention_mask_do_not_matter_even_as_nan() -> None:
    network = build("vit2k_xs", 16, depth=2)
    x, keep = torch.randn(3, 16, 4, 5), torch.rand(3, 4, 5) > 0.4
    spoiled = torch.where(keep[:, None], x, torch.nan)
    clean = network(x, attention_mask=keep)
    out = network(spoiled, attention_mask=keep.flatten(1))
    torch.testing.assert_close(out, clean)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    weights = network.get_last_selfattention(spoiled, attention_mask=keep)
    hidden = ~keep.flatten(1)[:, None, None].expand(-1, 6, 21, -1)
    assert (weights[..., 1:][hidden] == 0).all()


def test_a_grid_without_any_valid_cell_gives_a_finite_class_token() -> None:
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert build("vit2k_xs", 8, depth=2)(torch.randn(1, 8, 4, 4), attention_mask=nothing).isfinite().all()


@pytest.mark.parametrize("mask_token", [False, True])
def test_hidden_tokens_lose_their_content_and_keep_their_position(mask_token: bool) -> None:
    network = build("vit_demo", depth=2, mask_token=mask_token)
    x = torch.randn(2, 1, 32, 32)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True  # row 1, column 1 of 4 x 4
    changed = x.clone()
    changed[:, :, 8:16, 8:16] = 7.0
    torch.testing.assert_close(network(x, hidden), network(changed, hidden))
    assert not torch.allclose(network(x), network(changed))
    assert not torch.allclose(network(x, hidden), network(x, hidden.roll(1, 1)))


def test_mask_token_learns_and_starts_at_zero() -> None:
    network = build("vit_demo", depth=1, mask_token=True)
    assert network.mask_token is not None
    assert (network.mask_token == 0).all()
    network(torch.randn(2, 1, 32, 32), torch.ones(2, 16, dtype=torch.bool))[:, 0].sum().backward()
    assert network.mask_token.grad is not None
    assert network.mask_token.grad.abs().sum() > 0


def test_masks_of_a_wrong_shape_are_refused() -> None:
    network = build("vit_demo", depth=1)
    with pytest.raises(
        ValueError, match=r"token_mask: expected bool of shape \(2, 16\), got torch.bool \(2, 9\)"
    ):
        network(torch.zeros(2, 1, 32, 32), torch.zeros(2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"attention_mask: expected bool .* got torch\.float32"):
        network(torch.zeros(2, 1, 32, 32), attention_mask=torch.ones(2, 16))


def test_drop_path_acts_in_training_only_and_keeps_the_mean() -> None:
    network = build("vit_demo", drop_path_rate=0.5)
    drops = [module for module in network.modules() if isinstance(module, _DropPath)]
    np.testing.assert_allclose([drop.rate for drop in drops], np.linspace(0, 0.5, 6), atol=1e-7)
    x = torch.ones(20_000, 2)
    dropped = drops[-1](x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped[:, 0] == dropped[:, 1]).all()
    assert abs(dropped.mean().item() - 1) < 0.05
    network.eval()
    assert drops[-1](x) is x


def test_bf16_autocast_stays_close() -> None:
    network = build("vit_demo", depth=2).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)


# --- heads --------------------------------------------------------------------------------------------------


def test_head_equals_the_predecessors() -> None:
    head = closed_form_weights(DINOHead(384, 4096, norm_last_layer=False))
    with torch.no_grad():
        assert_golden(head(closed_form_input(3, 384)), GOLDEN["DINOHead(384,4096) in(3,384)"])


def test_head_has_dinos_keys_and_sizes() -> None:
    keys = {f"mlp.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")}
    assert set(DINOHead(8, 16).state_dict()) == keys | {"last_layer.weight_g", "last_layer.weight_v"}
    with torch.device("meta"):
        for width, count in ((192, 21_958_912), (384, 22_352_128), (768, 23_138_560)):
            assert sum(p.numel() for p in DINOHead(width, 65_536).parameters()) == count
    assert any(isinstance(m, nn.BatchNorm1d) for m in DINOHead(8, 16, use_bn=True).mlp)
    assert not DINOHead(8, 16).last_layer.weight_g.requires_grad
    assert DINOHead(8, 16, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_projection_is_of_unit_length_in_float32_under_autocast() -> None:
    head = ProjectionHead(8, 32, hidden_dim=64)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(torch.randn(5, 8))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(5))


# --- losses -------------------------------------------------------------------------------------------------


def test_dino_loss_equals_the_predecessors_with_its_moving_centre() -> None:
    record = next(value for key, value in GOLDEN.items() if key.startswith("DINOLoss"))
    loss = DINOLoss(64, 10, 0.04, 0.07, 5, 20)
    student, teacher = 3 * closed_form_input(20, 64), 2 * closed_form_input(4, 64)
    assert loss(student, teacher, 0).item() == pytest.approx(record["loss_epoch0"], abs=1e-4)
    assert loss(student, teacher, 7).item() == pytest.approx(record["loss_epoch7"], abs=1e-4)
    assert loss.center.shape == (1, 64)
    assert_golden(loss.center, record["center"])


def dino_loss_in_loops(
    student: Tensor, teacher: Tensor, center: Tensor, *, views: int, teacher_temp: float, student_temp: float
) -> float:
    batch = len(student) // views
    terms = []
    for t in range(len(teacher) // batch):
        for s in range(views):
            if s != t:
                for b in range(batch):
                    target = ((teacher[t * batch + b] - center) / teacher_temp).softmax(-1)
                    predicted = (student[s * batch + b] / student_temp).log_softmax(-1)
                    terms.append(-(target * predicted).sum().item())
    return float(np.mean(terms))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    teachers=st.integers(1, 3),
    local_views=st.integers(0, 4),
    temperature=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_dino_loss_equals_nested_loops(
    batch: int, teachers: int, local_views: int, temperature: float, seed: int
) -> None:
    views = max(teachers + local_views, 2)
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(views * batch, 12, generator=generator)
    teacher = torch.randn(teachers * batch, 12, generator=generator)
    loss = DINOLoss(12, views, temperature, temperature, 0, 3)
    loss.center.copy_(torch.randn(1, 12, generator=generator))
    expected = dino_loss_in_loops(
        student, teacher, loss.center[0], views=views, teacher_temp=temperature, student_temp=0.1
    )
    assert loss(student, teacher, 1).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_dino_loss_sends_gradients_to_the_student_only() -> None:
    student, teacher = torch.randn(6, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    DINOLoss(8, 3, 0.04, 0.04, 0, 1)(student, teacher, 0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_dino_loss_is_in_float32_under_autocast() -> None:
    loss = DINOLoss(64, 10, 0.04, 0.07, 5, 20)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(3 * closed_form_input(20, 64), 2 * closed_form_input(4, 64), 0)
    assert value.item() == pytest.approx(9.007390, abs=1e-4)


def test_a_nan_does_not_poison_the_centre() -> None:
    loss = DINOLoss(4, 2, 0.04, 0.04, 0, 1)
    teacher = torch.ones(4, 4)
    teacher[0, 1] = torch.nan
    loss(torch.randn(4, 4), teacher, 0)
    torch.testing.assert_close(loss.center, torch.tensor([[0.1, 0.0, 0.1, 0.1]]))


def test_dino_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="warmup_epochs=30 does not fit into epochs=20"):
        DINOLoss(4, 2, 0.04, 0.04, 30, 20)
    with pytest.raises(ValueError, match="5 rows are not whole batches of 2 views"):
        DINOLoss(4, 2, 0.04, 0.04, 0, 1)(torch.zeros(5, 4), torch.zeros(2, 4), 0)
    with pytest.raises(ValueError, match="no pair of different views"):
        DINOLoss(4, 1, 0.04, 0.04, 0, 1)(torch.zeros(2, 4), torch.zeros(2, 4), 0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_coding_rate_loss_equals_its_formula() -> None:
    views, batch, d, distortion = 4, 6, 5, 0.05
    student, teacher = unit(views * batch, d), unit(2 * batch, d, seed=1)
    z, t = student.reshape(views, batch, d), teacher.reshape(2, batch, d)
    pairs = [1 - (t[i, b] @ z[s, b]) for i in range(2) for s in range(views) if s != i for b in range(batch)]
    rates = []
    for s in range(2):
        scatter = sum(torch.outer(z[s, b], z[s, b]) for b in range(batch))
        rates.append(0.5 * torch.logdet(torch.eye(d) + d / (batch * distortion) * scatter))
    expected = torch.stack(pairs).mean() - (batch + d) / (batch * d) * torch.stack(rates).mean()
    loss = CodingRateLoss(views)
    torch.testing.assert_close(loss(student, teacher, 0), expected)


def test_coding_rate_loss_prefers_spread_features_to_collapsed_ones() -> None:
    spread = unit(8, 16)
    collapsed = spread[:1].expand(8, -1)
    loss = CodingRateLoss(2)
    assert loss(spread.repeat(2, 1), spread.repeat(2, 1)) < loss(
        collapsed.repeat(2, 1), collapsed.repeat(2, 1)
    )
    start = collapsed.repeat(2, 1).clone().requires_grad_()
    loss(start, collapsed.repeat(2, 1)).backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def _losses_of_one_rank(x: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the coding rate of a linear map, and DINO's centre, for samples (views, B, d)."""
    weight = weight.clone().requires_grad_()
    z = nn.functional.normalize(x @ weight, dim=-1)
    CodingRateLoss(len(x))(z.flatten(0, 1), teacher.flatten(0, 1)).backward()
    assert weight.grad is not None
    dino = DINOLoss(teacher.shape[-1], len(x), 0.04, 0.04, 0, 1)
    dino(z.detach().flatten(0, 1), teacher.flatten(0, 1), 0)
    return weight.grad, dino.center


def _run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    x, teacher, weight = torch.load(f"{folder}/data.pt")
    half = slice(rank * 4, rank * 4 + 4)
    torch.save(_losses_of_one_rank(x[:, half], teacher[:, half], weight), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_gradient_and_the_centre_of_one(tmp_path: Path) -> None:
    x, teacher, weight = torch.randn(3, 8, 5), unit(2, 8, 6), torch.randn(5, 6)
    torch.save((x, teacher, weight), tmp_path / "data.pt")
    torch.multiprocessing.spawn(_run_rank, (str(tmp_path),), nprocs=2)
    gradients, centers = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    gradient, center = _losses_of_one_rank(x, teacher, weight)
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient)  # what DDP does
    torch.testing.assert_close(centers[0], center)
    torch.testing.assert_close(centers[1], center)


# --- schedules, groups, clipping, teacher -------------------------------------------------------------------


def test_schedules_equal_the_predecessors() -> None:
    learning_rate = cosine_schedule(5e-4, 1e-6, 70, 14)
    expected = GOLDEN["cosine_scheduler(5e-4,1e-6,10,7,2) idx 0,13,14,69"]
    np.testing.assert_allclose(learning_rate[[0, 13, 14, 69]], expected, rtol=1e-12)
    momentum = cosine_schedule(0.996, 1, 70)
    np.testing.assert_allclose(
        momentum[[0, 35, 69]], GOLDEN["momentum cosine(0.996,1,10,7) idx 0,35,69"], rtol=1e-12
    )


@given(base=st.floats(0, 1), final=st.floats(0, 1), steps=st.integers(0, 200), share=st.floats(0, 1))
def test_schedules_have_one_value_a_step_within_their_ends(
    base: float, final: float, steps: int, share: float
) -> None:
    values = cosine_schedule(base, final, steps, int(share * steps))
    assert values.shape == (steps,)
    assert ((values >= -1e-12) & (values <= max(base, final) + 1e-12)).all()


def test_schedule_refuses_a_warm_up_longer_than_the_run() -> None:
    with pytest.raises(ValueError, match=r"warm-up of 70 steps does not fit into 35\. Lower `warmup_epochs`"):
        cosine_schedule(1.0, 0.0, 35, 70)


def test_parameter_groups_are_dinos() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"backbone": build("vit_small"), "head": DINOHead(384, 65_536, norm_last_layer=False)}
        )
    decayed, spared = parameter_groups(model)
    assert (len(decayed["params"]), len(spared["params"])) == (56, 102)
    assert "weight_decay" not in decayed
    assert spared["weight_decay"] == 0.0
    assert any(p is model["backbone"].pos_embed for p in decayed["params"])
    frozen, _ = parameter_groups(DINOHead(8, 16))
    assert len(frozen["params"]) == 4


def with_gradients() -> list[Tensor]:
    parameters = [torch.zeros(3, 4), torch.zeros(5), torch.zeros(2), torch.zeros(1)]
    generator = torch.Generator().manual_seed(3)
    for parameter, size in zip(parameters, (10.0, 0.1, 0.0), strict=False):
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)
    return parameters  # the last has none


def test_clipping_per_tensor_scales_each_gradient_by_its_own_norm() -> None:
    parameters, reference = with_gradients(), with_gradients()
    norms = [p.grad.norm() for p in reference if p.grad is not None]
    total = clip_per_tensor_(parameters, 3.0)
    assert total.item() == pytest.approx(torch.stack(norms).norm().item())
    assert parameters[0].grad is not None
    assert parameters[0].grad.norm().item() == pytest.approx(3.0, rel=1e-5)
    torch.testing.assert_close(parameters[1].grad, reference[1].grad)
    torch.testing.assert_close(parameters[2].grad, reference[2].grad)
    assert clip_per_tensor_([torch.zeros(2)], 3.0) == 0


def test_teacher_follows_in_parameters_and_not_in_buffers() -> None:
    student, teacher = DINOHead(4, 8, use_bn=True), DINOHead(4, 8, use_bn=True)
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    for buffer in student.buffers():
        buffer.fill_(7)
    update_teacher_(student, teacher, 0.9)
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * student.get_parameter(name))
    assert not any((buffer == 7).any() for buffer in teacher.buffers())
    with pytest.raises(ValueError, match="do not match"):
        update_teacher_(student, DINOHead(5, 8), 0.9)


def test_one_step_of_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    network, head = build("vit_demo", depth=1), DINOHead(192, 32, hidden_dim=64)
    views, targets = torch.randn(3 * 4, 1, 16, 16), torch.randn(2 * 4, 32)
    loss = DINOLoss(32, 3, 0.1, 0.1, 0, 1)
    optimizer = torch.optim.AdamW(parameter_groups(nn.ModuleList([network, head])), lr=1e-3)
    values = []
    for _ in range(5):
        value: Tensor = loss(head(network(views)), targets, 0)
        optimizer.zero_grad()
        value.backward()
        clip_per_tensor_(network.parameters(), 3.0)
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]


def test_public_names_are_sorted_and_exist() -> None:
    assert sorted(models.__all__) == dir(models)
    assert all(hasattr(models, name) for name in models.__all__)


def test_attention_in_bf16_equals_that_in_float32() -> None:
    torch.manual_seed(0)
    network = build("vit_mini", image_size=32).eval()
    x, mask = torch.randn(3, 1, 32, 32), torch.ones(3, 16, dtype=torch.bool)
    mask[0, 5:] = False
    expected = network(x, attention_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, attention_mask=mask)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
