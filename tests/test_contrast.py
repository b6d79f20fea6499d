"""The contrast between windows of one place at near times: its loss, its pairs of windows, its training."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import Stop, free_port, metrics_of
from small_data import make_store

from gridrad_cube.datasets import PatchDataset, WindowPairs
from gridrad_cube.embedding import embed
from gridrad_cube.models import contrast_loss, load_checkpoint
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import open_embeddings, open_packed
from gridrad_cube.training import train

EDGE, CHANNELS = 32, ("ir_brightness_temperature",)


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """Crops of 3 x 5 patches of 32 px at five times, ten minutes apart."""
    return make_store(tmp_path_factory.mktemp("contrast"), patch=EDGE, scenes=5, channels=CHANNELS)


# the loss


def pairs(
    seed: int = 0, count: int = 12
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Unit vectors of pairs, and windows of three frames of two places; some windows of a frame overlap."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        F.normalize(torch.randn(count, 6, generator=generator), dim=1).double() for _ in range(2)
    )
    place = torch.arange(count) % 2
    time = torch.arange(count) // 4 * 3600
    corner = torch.randint(0, 100, (count, 2), generator=generator)
    here = torch.cat([place[:, None], time[:, None], corner], dim=1)
    moved = torch.randint(-16, 17, (count, 2), generator=generator)
    there = torch.cat([place[:, None], time[:, None] + 600, corner + moved], dim=1)
    return first, second, (here, there)


def plain_loss(first, second, windows, temperature: float) -> torch.Tensor:
    """The loss in loops, as its documentation has it."""
    terms = []
    for a, b, other in ((first, second, windows[1]), (second, first, windows[0])):
        for i in range(len(a)):
            scores = [a[i] @ b[i] / temperature]
            for j in range(len(a)):
                place, seconds, *corner = (other[i] - other[j]).abs().tolist()
                overlaps = place == 0 and max(corner) < EDGE
                if j != i and not (overlaps and seconds <= 2 * 600):
                    scores.append(a[i] @ b[j] / temperature)
            terms.append(torch.stack(scores).logsumexp(0) - scores[0])
    return torch.stack(terms).mean()


def test_loss_and_gradient_equal_a_plain_version():
    first, second, windows = pairs()
    own = [x.clone().float().requires_grad_() for x in (first, second)]
    loss = contrast_loss(*own, windows, edge=EDGE, temperature=0.2)
    loss.backward()
    plain = [x.clone().requires_grad_() for x in (first, second)]
    expected = plain_loss(*plain, windows, 0.2)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for found, right in zip(own, plain, strict=True):
        torch.testing.assert_close(found.grad.double(), right.grad, atol=1e-5, rtol=1e-4)


def test_overlapping_windows_are_no_wrong_answers():
    first, second, _ = pairs(count=2)
    same = torch.tensor([[0, 0, 0, 0], [0, 0, 10, 10]])
    later = same + torch.tensor([0, 600, 0, 0])
    assert contrast_loss(first.float(), second.float(), (same, later), edge=EDGE).item() == 0.0
    for changed in ((1, 0, 0, 0), (0, 0, EDGE, 0), (0, 100 * 600, 0, 0)):  # place, position, time
        other = later.clone()
        other[1] += torch.tensor(changed)
        moved = same.clone()
        moved[1] += torch.tensor(changed)
        assert contrast_loss(first.float(), second.float(), (moved, other), edge=EDGE).item() > 0


def gradients_of_rank(rank: int, port: int, results) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    first, second, windows = pairs()
    rows = slice(rank * 6, rank * 6 + 6)
    own = [x[rows].float().requires_grad_() for x in (first, second)]
    loss = contrast_loss(*own, (windows[0][rows], windows[1][rows]), edge=EDGE)
    loss.backward()
    results.put((rank, loss.item(), [x.grad.numpy() for x in own]))
    dist.destroy_process_group()


def test_two_ranks_equal_one():
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    ranks = [context.Process(target=gradients_of_rank, args=(rank, port, results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = dict((rank, (loss, grads)) for rank, loss, grads in (results.get(timeout=120) for _ in ranks))
    for rank in ranks:
        rank.join()
    first, second, windows = pairs()
    own = [x.float().requires_grad_() for x in (first, second)]
    loss = contrast_loss(*own, windows, edge=EDGE)
    loss.backward()
    assert [found[rank][0] for rank in range(2)] == pytest.approx([loss.item()] * 2, abs=1e-6)
    for number, tensor in enumerate(own):
        # DDP averages over the two ranks.
        both = np.concatenate([found[rank][1][number] for rank in range(2)]) / 2
        np.testing.assert_allclose(both, tensor.grad.numpy(), atol=1e-6)


# pairs of windows


def test_windows_are_cut_from_crops_and_pairs_belong_together(cube):
    dataset = PatchDataset(cube)
    windows = WindowPairs(dataset, [10], move=8, pairs=4, seed=3)
    assert len(windows) == 4 * -(-15 // 4)  # groups of four frames that have a later one
    batch = windows.__getitems__([0, 5, len(windows) - 1])
    stored = open_packed(cube)
    crops = stored["ir_brightness_temperature"].values
    seconds = dataset.crop_seconds
    for codes, (place, time, top, left) in zip(batch.codes, batch.window.tolist(), strict=True):
        crop = np.flatnonzero((seconds == time) & (dataset.crop_places == place))
        assert len(crop) == 1
        np.testing.assert_array_equal(codes[0], crops[crop[0], top : top + EDGE, left : left + EDGE])
    here, there = batch.window.chunk(2)
    assert torch.equal(here[:, 0], there[:, 0])
    assert (there[:, 1] - here[:, 1] == 600).all()
    assert ((there - here)[:, 2:].abs() <= 8).all()
    assert len({tuple(row) for row in here[:4, 2:].tolist()}) > 1
    assert (here[:4, 1] == here[0, 1]).all()  # one group, one frame
    assert batch.index.tolist() == [*range(4), *range(20, 24), *batch.index[8:12].tolist()] * 2


def test_pairs_of_the_same_time_need_no_second_one(tmp_path):
    one = make_store(tmp_path, patch=EDGE, scenes=1, channels=CHANNELS)
    windows = WindowPairs(PatchDataset(one), [0], move=8, pairs=4)
    here, there = windows.__getitems__([0]).window.chunk(2)
    assert torch.equal(here[:, :2], there[:, :2])
    assert ((there - here)[:, 2:] != 0).any()
    train(one, tmp_path / "run", **OPTIONS | {"temporal_positives": 0, "batch_size_per_gpu": 4, "steps": 1})
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.parametrize(("scenes", "leads"), [(2, "10"), (3, "10, 20"), (5, "10, 20, 30")])
def test_leads_are_three_time_steps_by_default(tmp_path, caplog, scenes, leads):
    store = make_store(tmp_path, patch=EDGE, scenes=scenes, channels=CHANNELS)
    options = OPTIONS | {"temporal_positives": (), "batch_size_per_gpu": 4, "steps": 1}
    with caplog.at_level("INFO"):
        train(store, tmp_path / "run", **options)
    assert f"pairs of windows {leads} min apart" in caplog.text


def test_draws_depend_on_seed_epoch_and_number_alone(cube):
    dataset = PatchDataset(cube)
    windows = WindowPairs(dataset, [10, 20], move=16, pairs=4)
    one = windows.__getitems__([2, 3])
    assert torch.equal(one.window[4:8], windows.__getitems__([3]).window[:4])
    windows.set_epoch(1)
    assert not torch.equal(one.window, windows.__getitems__([2, 3]).window)
    windows.set_epoch(0)
    assert torch.equal(one.window, windows.__getitems__([2, 3]).window)
    assert not torch.equal(
        one.window, WindowPairs(dataset, [10, 20], move=16, pairs=4, seed=1).__getitems__([2, 3]).window
    )
    leads = {
        int(b - a)
        for g in range(len(windows))
        for a, b in zip(*windows.__getitems__([g]).window[:, 1].chunk(2), strict=True)
    }
    assert leads == {600, 1200}


def test_patches_that_are_not_clean_are_missing_in_windows(cube):
    dataset = PatchDataset(cube)
    table = dataset.table
    keep = ~((table.row == 1) & (table.col == 2))
    dataset.table = type(table)(*(getattr(table, f.name)[keep] for f in dataclasses.fields(table)))
    crops = open_packed(cube)["ir_brightness_temperature"].values
    clean = np.zeros((len(crops), *dataset.cells), bool)
    clean[dataset.table.crop, dataset.table.row, dataset.table.col] = True
    pixels = clean.repeat(EDGE, 1).repeat(EDGE, 2)
    expected = np.where(pixels, crops, dataset.missing_codes[0])
    windows, touched = WindowPairs(dataset, [10], move=8, pairs=8), 0
    for group in range(len(windows)):
        batch = windows.__getitems__([group])
        for codes, (place, time, top, left) in zip(batch.codes, batch.window.tolist(), strict=True):
            (crop,) = np.flatnonzero((dataset.crop_seconds == time) & (dataset.crop_places == place))
            area = (crop, slice(top, top + EDGE), slice(left, left + EDGE))
            np.testing.assert_array_equal(codes[0], expected[area])
            touched += not pixels[area].all()
    assert touched


# training

OPTIONS = {
    "preset": "none", "objective": "contrast", "stem": "scattering", "arch": "vit_mini", "pool": "projection",
    "global_size": 32, "image_size": 32, "zoom": (1.0, 1.0), "batch_size_per_gpu": 16, "steps": 6, "warmup_epochs": 0,
    "log_steps": 1, "probe_steps": 0, "lr": 4e-3, "device": "cpu", "num_workers": 1, "freeze_last_layer": 0,
    "warmup_teacher_temp_epochs": 0, "save_minutes": 0,
}  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [record["train_loss"] for record in metrics_of(folder)]


def test_run_resumes_in_the_middle_of_an_epoch_with_the_same_curve(cube, tmp_path):
    train(cube, tmp_path / "whole", **OPTIONS)
    stopped = train(cube, tmp_path / "parts", progress=Stop(2), **OPTIONS)
    assert stopped["stopped"] == "SIGTERM"
    assert stopped["step"] < 6
    train(cube, tmp_path / "parts", **OPTIONS)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    # What it embeds are unit vectors of the head, or the tokens that it reads.
    checkpoint = tmp_path / "whole" / "checkpoint.pth"
    said = embed(cube, checkpoint, tmp_path / "e.zarr", dtype="float32")
    assert said["features"] == 128
    assert embed(cube, checkpoint, tmp_path / "m.zarr", pool="mean+std")["features"] == 256
    vectors = open_embeddings(tmp_path / "e.zarr")["embedding"].values
    vectors = vectors[np.isfinite(vectors).all(-1)]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(("objective", "local_size"), [("dino", 16), ("coding-rate", 32)])
def test_contrast_beside_another_objective(cube, tmp_path, objective, local_size):
    options = OPTIONS | {
        "objective": objective, "contrast_weight": 1.0, "local_crops_number": 1, "local_size": local_size, "steps": 2,
        "out_dim": 32, "head_hidden_dim": 16, "pool": "mean+std",
    }  # fmt: skip
    train(cube, tmp_path / "run", **options)
    assert np.isfinite(losses(tmp_path / "run")).all()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["contrast_weight"] == 1.0


def test_a_run_starts_from_the_heads_of_another(cube, tmp_path):
    train(cube, tmp_path / "first", **OPTIONS | {"steps": 1})
    start = str(tmp_path / "first" / "checkpoint.pth")
    still = {"steps": 1, "lr": 1e-12, "min_lr": 1e-12, "seed": 1}
    train(cube, tmp_path / "second", init_from=start, **OPTIONS | still)
    old, new = (load_checkpoint(tmp_path / n / "checkpoint.pth")["teacher"] for n in ("first", "second"))
    heads = [name for name in old if name.startswith("contrast_head.")]
    assert heads
    for name in (*heads, "backbone.stem.mean"):
        torch.testing.assert_close(new[name], old[name])


def test_store_with_one_time_is_refused_with_what_to_do(tmp_path):
    one = make_store(tmp_path, patch=EDGE, scenes=1, channels=CHANNELS)
    with pytest.raises(
        SchemaError, match=r"seen at one time only.*Pass `objective='coding-rate'`, or add scenes"
    ):
        train(one, tmp_path / "run", **OPTIONS)
    with pytest.raises(SchemaError, match="`pool`: got 'projection'"):
        train(one, tmp_path / "run", **OPTIONS | {"objective": "coding-rate"})
