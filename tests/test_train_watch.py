"""Watching a run: the arithmetic of a step, what metrics say, probes and the best checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_stores import write_embeddings
from ranks import Stop, invoke_train, metrics_of, train_by_two
from small_data import make_store, write_sources

from gridrad_cube import pipeline
from gridrad_cube.embedding import embed
from gridrad_cube.models import DINOHead, ProjectionHead, build, load_checkpoint
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.store import open_embeddings
from gridrad_cube.training import Config, load_config, loop, train
from gridrad_cube.training import probe as probing
from gridrad_cube.training.data import _PatchSource, open_source
from gridrad_cube.training.monitors import count_flops, peak_flops
from gridrad_cube.training.networks import _MultiView
from gridrad_cube.training.probe import Scores, _Pairs, _retrieval, draw_pairs, probe_interval

PROJECT = Path(__file__).resolve().parents[1]
IR = "ir_brightness_temperature"
DAYS = 18
#: A network and views that 16 px patches and a busy machine can bear.
TINY = {
    "preset": "none", "arch": "vit_demo", "patch_size": 4, "global_size": 12, "local_size": 8, "local_crops_number": 2,
    "head_hidden_dim": 32, "out_dim": 64, "batch_size_per_gpu": 16, "warmup_epochs": 0, "drop_path_rate": 0.0,
    "warmup_teacher_temp_epochs": 0, "freeze_last_layer": 0, "precision": "fp32", "lr": 0.01, "log_steps": 1,
    "channels": IR,
}  # fmt: skip
#: Metrics that say how fast it went.
TIMES = {"images_per_second", "seconds_waiting", "share_waiting", "mfu"}


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    """A scene at 18 and one at 19 UTC on each of some days, 4 x 5 patches of 16 px."""
    folder = tmp_path_factory.mktemp("watched")
    for day in range(DAYS):
        write_sources(
            folder / "sources" / str(day), scenes=2, shape=(64, 80), seed=day, interval="1h",
            start=f"2024-06-{day + 1:02d}T18:00",
        )  # fmt: skip
    recipe = Recipe(channels=(IR,), tile=TileSpec(patch=16))
    assert not pipeline.preprocess(folder / "sources", folder / "patches.zarr", recipe=recipe).failed
    return folder / "patches.zarr"


@pytest.fixture(scope="module")
def grids(cube) -> Path:
    """Embeddings of that cube: random, with something of each patch that stays for an hour."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * DAYS, 4, 5, 12))
    vectors += np.repeat(rng.standard_normal((DAYS, 4, 5, 12)), 2, axis=0)
    write_embeddings(cube.parent / "embeddings.zarr", cube, vectors)
    return cube.parent / "embeddings.zarr"


def config_for(store: Path, out: Path, **options) -> Config:
    return load_config(store=str(store), out=str(out), **TINY | options)


def without_times(folder: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in metrics_of(folder)]


# arithmetic of a step


def flops_by_hand(name: str, sizes: dict, head: list[int], shape: tuple[int, int]) -> float:
    """FLOP of a forward pass over one view: two for each multiplication with its addition in a matrix product."""
    a = build(name, **sizes).architecture
    tokens = (shape[0] // a.patch_size) * (shape[1] // a.patch_size)
    entry = tokens * a.in_channels * a.patch_size**2 * a.embed_dim
    tokens += 1  # the class token
    block = tokens * (12 * a.embed_dim**2 + 2 * tokens * a.embed_dim)
    return 2.0 * (entry + a.depth * block + sum(m * n for m, n in itertools.pairwise(head)))


def test_flops_of_the_reference_network_are_those_published():
    student = _MultiView(build("vit_small"), DINOHead(384, 65_536))
    large, small = (flops_by_hand("vit_small", {}, [], (edge, edge)) for edge in (224, 96))
    assert large == pytest.approx(9.12e9, rel=0.002)
    assert small == pytest.approx(1.60e9, rel=0.005)
    assert count_flops(student, [(224, 224)] * 2 + [(96, 96)] * 8) == pytest.approx(112.9e9, rel=0.001)


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("vit_demo", {"in_channels": 3}, (48, 32)),
        ("vit_tiny", {"patch_size": 8, "image_size": 32, "depth": 2}, (32, 24)),
        ("vit2k_xs", {"in_channels": 12, "image_size": 5}, (4, 5)),
    ],
)
@pytest.mark.parametrize(
    ("head", "widths"),
    [
        (DINOHead(192, 50), [192, 2048, 2048, 256, 50]),
        (ProjectionHead(192, 64, hidden_dim=32, use_bn=True), [192, 32, 32, 64]),
    ],
)
def test_flops_count_the_student_three_times_and_the_teacher_once(name, sizes, shape, head, widths):
    student = _MultiView(build(name, drop_path_rate=0.1, **sizes), head)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    small = (shape[0] // 2, shape[1]) if shape[0] > 8 else (2, 2)
    counted = count_flops(student, [shape, shape, small])
    large, less = (flops_by_hand(name, sizes, widths, one) for one in (shape, small))
    assert counted == pytest.approx(4 * 2 * large + 3 * less)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training


@pytest.mark.parametrize(
    ("name", "bf16", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", True, 989.4),
        ("NVIDIA H100 PCIe", True, 756),
        ("NVIDIA H200", True, 989.4),
        ("NVIDIA H200 NVL", True, 835.5),
        ("NVIDIA GH200 480GB", True, 989.4),
        ("NVIDIA A100-SXM4-40GB", True, 312),
        ("NVIDIA A100-SXM4-40GB", False, None),
        ("Tesla V100-SXM2-32GB", True, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", True, None),
        ("NVIDIA GeForce GTX 1080", True, None),
    ],
)
def test_peak_is_that_of_the_gpu_in_bf16(name, bf16, tflops):
    assert peak_flops(name, bf16=bf16) == (tflops and pytest.approx(tflops * 1e12))


def test_peak_of_a_cpu_is_unknown():
    assert peak_flops(torch.device("cpu"), bf16=True) is None


# what metrics say


def test_metrics_hold_every_quantity(cube, tmp_path):
    train(config_for(cube, tmp_path, steps=3))
    records = metrics_of(tmp_path)
    assert [r["step"] for r in records] == [1, 2, 3]
    named = {
        "train_loss", "train_lr", "teacher_entropy", "teacher_kl_to_uniform", "headroom", "feature_std", "rankme",
        "prototypes_used", "images_per_second", "seconds_waiting", "share_waiting", "mfu",
    }  # fmt: skip
    for r in records:
        assert named <= r.keys()
        assert 0 <= r["share_waiting"] <= 1
        assert r["headroom"] == pytest.approx(np.log(64) - r["train_loss"])
        assert r["teacher_kl_to_uniform"] == pytest.approx(np.log(64) - r["teacher_entropy"], abs=1e-6)
        assert r["mfu"] is None  # nobody knows the peak of a CPU


def test_utilisation_is_the_share_of_the_peak(cube, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device, *, bf16: 1e12)
    train(config_for(cube, tmp_path, steps=2))
    student = _MultiView(build("vit_demo", patch_size=4, image_size=12), DINOHead(192, 64, hidden_dim=32))
    sample = count_flops(student, [(12, 12)] * 2 + [(8, 8)] * 2)
    for r in metrics_of(tmp_path):
        assert r["mfu"] == pytest.approx(r["images_per_second"] * sample / 1e12)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(cube, tmp_path, monkeypatch):
    draw, calls = _PatchSource.draw, []

    def spoil(self, batch, index, epoch):
        views = draw(self, batch, index, epoch)
        calls.append(index)
        if len(calls) == 3:
            views[0].x[0] = torch.nan
        return views

    monkeypatch.setattr(_PatchSource, "draw", spoil)
    argv = [w for k, v in (TINY | {"steps": 5, "save_minutes": 1e-9}).items() for w in (f"--{k}", str(v))]
    done = invoke_train("--store", str(cube), "--out", str(tmp_path), *argv)
    assert done.exit_code == 1
    error = done.stderr
    where = open_source(config_for(cube, tmp_path)).dataset.describe(int(calls[2][0]))
    assert "step 3: the loss is nan" in error
    assert f"crop {where['crop']}, row {where['row']}, col {where['col']}" in error
    assert [r["step"] for r in metrics_of(tmp_path)] == [1, 2]
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pth")
    assert checkpoint["step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["teacher"].values())


def test_run_says_what_it_does_and_how_long_it_takes(cube, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(loop, "_PATIENCE_SECONDS", 0.0)
    train(config_for(cube, tmp_path, steps=7, temporal_positives=60))
    messages = [r.getMessage() for r in caplog.records]
    first = f"level 256, preset none, objective dino, cpu ({torch.get_num_threads()} threads, fp32, processes: 1, first"
    assert messages[0].startswith(first)
    assert messages[0].endswith(f"{DAYS * 40} samples of {IR}")
    assert messages[1] == "50 % of the samples have a partner 60 min later"
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("step 6: ")
    assert "a step; the other 1 take about" in warning
    assert "too long for a CPU. Pass `preset='demo'` or `coarsen` (average pixels) for less arith" in warning


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.053, "0.053 s"), (75, "75 s"), (95, "1.6 min"), (7300, "2 h"), (2.2e7, "255 days")],
)
def test_lengths_of_time_have_a_fitting_unit(seconds, text):
    assert loop._duration(seconds) == text


# pairs of a probe


def test_pairs_are_samples_and_what_was_there_an_hour_later(cube):
    source = open_source(config_for(cube, Path("o")))
    pairs = draw_pairs(source.dataset, seed=0)
    assert len(pairs.query) == 16 * 20 // 32 * 32 - 64  # 256 of the 360 there are, in groups of 32
    assert pairs.minutes == 60
    assert len(np.unique(pairs.query)) == len(pairs.query)
    places = [source.dataset.describe(i) for i in pairs.query]
    sequels = [source.dataset.describe(i) for i in pairs.sequel]
    for here, there in zip(places, sequels, strict=True):
        assert there["time"] - here["time"] == np.timedelta64(1, "h")
        assert all(here[k] == there[k] for k in ("row", "col", "channel"))
    assert len({p["time"].astype("datetime64[D]") for p in places}) > DAYS / 2
    # Rivals are 31 of the same hour and never the sample's own sequel.
    assert (pairs.rival.sum(1) == 31).all()
    assert not pairs.rival.diagonal().any()
    assert (pairs.rival == pairs.rival.T).all()
    assert pairs.chance == pytest.approx(sum(1 / n for n in range(1, 33)) / 32)


def test_pairs_are_the_same_for_a_seed(cube):
    source = open_source(config_for(cube, Path("o")))
    one, again, other = (draw_pairs(source.dataset, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.query, again.query)
    np.testing.assert_array_equal(one.rival, again.rival)
    assert not np.array_equal(one.query, other.query)


def test_rivals_are_of_the_group_and_not_of_the_same_place_and_time():
    rng = np.random.default_rng(0)
    group, place = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    before = 1800 * rng.integers(0, 100, 40)
    after = before + 3600
    rival = probing._rivals(group, place, before, after)
    for i in range(40):
        for j in range(40):
            near = min(abs(after[j] - before[i]), abs(after[j] - after[i])) < 6 * 3600
            assert rival[i, j] == (i != j and group[i] == group[j] and not (place[i] == place[j] and near))


def test_radar_pairs_have_echo_at_both_times(cube):
    source = open_source(config_for(cube, Path("o")))
    table = source.dataset.table
    rng = np.random.default_rng(0)
    stratum = np.where(rng.random(len(table)) < 0.7, np.uint8(3), np.uint8(1))
    source.dataset.table = dataclasses.replace(table, stratum=stratum)
    pairs = draw_pairs(source.dataset, seed=0)
    assert len(pairs.query) > 100
    assert (stratum[pairs.query] == 3).all()
    assert (stratum[pairs.sequel] == 3).all()


def test_grids_are_paired_with_those_of_other_days_as_rivals(grids):
    source = open_source(config_for(grids, Path("o"), arch="auto", patch_size="auto"))
    pairs = draw_pairs(source.dataset, seed=0)
    assert sorted(pairs.query.tolist()) == list(range(0, 2 * DAYS, 2))
    np.testing.assert_array_equal(pairs.sequel, pairs.query + 1)
    assert (pairs.rival.sum(1) == DAYS - 1).all()


# scores


def some_pairs(count: int, seed: int = 0) -> _Pairs:
    rival = np.random.default_rng(seed).random((count, count)) < 0.5
    np.fill_diagonal(rival, False)
    return _Pairs(np.arange(count), np.arange(count, 2 * count), rival, 60)


def test_retrieval_is_the_mean_reciprocal_rank():
    pairs = some_pairs(30)
    rng = np.random.default_rng(2)
    query, sequel = rng.standard_normal((2, 30, 5))
    sequel[7] = 2 * sequel[3]  # as similar to anything
    reciprocal = []
    for i in np.flatnonzero(pairs.asked):
        cosine = sequel @ query[i] / np.linalg.norm(sequel, axis=1)
        among = cosine[pairs.rival[i]]
        equal = np.isclose(among, cosine[i], rtol=0, atol=1e-9)
        reciprocal.append(1 / (1 + (among[~equal] > cosine[i]).sum() + equal.sum() / 2))
    assert len(reciprocal) > 20
    assert _retrieval(query, sequel, pairs) == pytest.approx(np.mean(reciprocal))
    assert _retrieval(query, query, pairs) == 1.0


def test_retrieval_by_chance_and_by_features_that_are_all_alike():
    rival = ~np.eye(32, dtype=bool)
    pairs = _Pairs(np.arange(32), np.arange(32), rival, 60)
    draws = torch.randn(200, 2, 32, 16, generator=torch.Generator().manual_seed(0))
    assert np.mean([_retrieval(*d, pairs) for d in draws]) == pytest.approx(pairs.chance, abs=0.01)
    assert _retrieval(torch.ones(32, 4), torch.ones(32, 4), pairs) == pytest.approx(1 / (1 + 31 / 2))


def test_retrieval_leaves_out_samples_that_could_not_be_read():
    pairs = some_pairs(40)
    query, sequel = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
    sequel[4] = torch.nan
    without = np.arange(40) != 4
    rest = _Pairs(pairs.query[without], pairs.sequel[without], pairs.rival[np.ix_(without, without)], 60)
    assert (rest.asked == pairs.asked[without]).all()
    assert _retrieval(query, sequel, pairs) == pytest.approx(
        _retrieval(query[without], sequel[without], rest)
    )


def test_best_is_the_highest_score_of_a_trained_network():
    scores = Scores()
    for step, score in ((0, 0.9), (5, 0.3), (10, 0.4), (15, 0.4), (20, 0.35)):
        scores = scores.with_score(score, step)
    assert scores == Scores(start=0.9, best=0.4, best_step=10)


@pytest.mark.parametrize(
    ("steps", "batch", "every"),
    [
        (180, 64, 0),
        (320, 64, 320),
        (3_200, 64, 169),
        (100_000, 64, 2_000),
        (1_000, 16, 0),
        (20_000, 8, 1_429),
    ],
)
def test_probes_take_a_share_of_the_samples_by_default(steps, batch, every):
    assert probe_interval(steps, batch) == every
    if every:
        probes = 1 + -(-steps // every)
        assert probes * 2 * probing._PAIRS <= 0.05 * steps * batch * 1.0001


# probes of a run


def test_probe_scores_what_embedding_will_give(cube, tmp_path):
    summary = train(config_for(cube, tmp_path / "run", steps=4, probe_steps=4, pool="mean+std"))
    embed(cube, summary["best"], tmp_path / "embeddings.zarr", dtype="float32", pool="mean+std")
    source = open_source(config_for(cube, tmp_path / "run"))
    pairs, table = draw_pairs(source.dataset, seed=0), source.dataset.table
    vectors = torch.from_numpy(open_embeddings(tmp_path / "embeddings.zarr")["embedding"].values[:, 0])
    features = vectors[table.crop, table.row, table.col]
    record = metrics_of(tmp_path / "run")[-1]
    assert record["probe_retrieval"] == pytest.approx(
        _retrieval(features[pairs.query], features[pairs.sequel], pairs), rel=1e-3
    )


def test_probe_finds_its_way_by_the_histogram(cube, tmp_path):
    train(config_for(cube, tmp_path, steps=1, probe_steps=1))
    source = open_source(config_for(cube, tmp_path))
    pairs = draw_pairs(source.dataset, seed=0)
    values, _ = source.dataset.decode(source.dataset.__getitems__(np.arange(len(source.dataset))))
    edges = np.linspace(-3, 3, 33)
    edges[[0, -1]] = -np.inf, np.inf
    shares = np.sqrt([np.histogram(v, edges)[0] / v.numel() for v in values])
    expected = _retrieval(torch.tensor(shares[pairs.query]), torch.tensor(shares[pairs.sequel]), pairs)
    assert [r["probe_baseline"] for r in metrics_of(tmp_path)] == pytest.approx([expected] * 2, rel=1e-3)


def test_probe_of_grids_reports_the_mean_of_their_cells(grids, tmp_path):
    train(config_for(grids, tmp_path, arch="auto", patch_size="auto", steps=2, probe_steps=1))
    source = open_source(config_for(grids, tmp_path, arch="auto", patch_size="auto"))
    pairs = draw_pairs(source.dataset, seed=0)
    rule = source.dataset.normalization
    vectors = open_embeddings(grids)["embedding"].values[:, 0].astype(np.float64)
    means = torch.tensor(((vectors - rule["mean"]) / rule["std"]).mean((1, 2)))
    expected = _retrieval(means[pairs.query], means[pairs.sequel], pairs)
    assert expected > 2 * pairs.chance
    assert [r["probe_baseline"] for r in metrics_of(tmp_path)] == pytest.approx([expected] * 3, rel=1e-4)


def test_probes_and_the_best_checkpoint_are_kept(cube, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    summary = train(config_for(cube, tmp_path, steps=7, probe_steps=2, log_steps=3))
    records = {r["step"]: r for r in metrics_of(tmp_path)}
    assert list(records) == [0, 2, 3, 4, 6, 7]
    probed = {s: r["probe_retrieval"] for s, r in records.items() if "probe_retrieval" in r}
    assert list(probed) == [0, 2, 4, 6, 7]
    assert {r["probe_at_start"] for r in records.values() if "probe_at_start" in r} == {probed[0]}
    assert all(1 <= records[s]["probe_rankme"] <= 192 for s in probed)
    del probed[0]
    best = max(probed, key=lambda s: probed[s])
    assert records[7]["probe_best"] == probed[best]
    assert summary["best"] == str(tmp_path / "checkpoint_best.pth")
    checkpoint = load_checkpoint(summary["best"])
    assert checkpoint["step"] == best
    assert checkpoint["scores"]["best"] == probed[best]
    assert f"step {best}: probe {probed[best]:.3f}" in caplog.text
    assert "256 samples look for themselves 60 min later" in caplog.text


def test_probing_changes_nothing_in_training(cube, tmp_path):
    train(config_for(cube, tmp_path / "with", steps=4, probe_steps=1, drop_path_rate=0.1))
    train(config_for(cube, tmp_path / "without", steps=4, probe_steps=0, drop_path_rate=0.1))
    ours, theirs = (without_times(tmp_path / name) for name in ("with", "without"))
    assert [{k: v for k, v in r.items() if not k.startswith("probe")} for r in ours[1:]] == theirs
    one, other = (load_checkpoint(tmp_path / n / "checkpoint.pth") for n in ("with", "without"))
    for name, value in one["student"].items():
        assert torch.equal(value, other["student"][name]), name
    assert not (tmp_path / "without" / "checkpoint_best.pth").exists()


def test_interrupted_run_ends_with_the_same_metrics_and_the_same_best(cube, tmp_path):
    options = {"steps": 8, "probe_steps": 2}
    whole = train(config_for(cube, tmp_path / "whole", **options))
    other = load_checkpoint(whole["best"])
    for step in (3, 4):
        folder = tmp_path / f"stopped after {step}"
        assert train(config_for(cube, folder, **options), progress=Stop(step))["stopped"]
        parts = train(config_for(cube, folder, **options))
        assert without_times(folder) == without_times(tmp_path / "whole")
        one = load_checkpoint(parts["best"])
        assert one["scores"] == other["scores"]
        assert one["step"] == other["step"] == one["scores"]["best_step"]
        for name, value in one["teacher"].items():
            assert torch.equal(value, other["teacher"][name]), name


def test_run_killed_before_it_could_name_the_best_names_it_when_it_goes_on(cube, tmp_path):
    options = {"steps": 4, "probe_steps": 2}
    train(config_for(cube, tmp_path, **options))
    best = load_checkpoint(tmp_path / "checkpoint_best.pth")["step"]
    for path in tmp_path.glob("*.pth"):
        if path.name != f"checkpoint_step{best:07d}.pth":
            path.unlink()
    train(config_for(cube, tmp_path, **options))
    assert load_checkpoint(tmp_path / "checkpoint_best.pth")["step"] == best


def test_run_killed_before_its_first_checkpoint_starts_its_metrics_anew(cube, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "epoch": 0, "probe_retrieval": 0.5}\n{"step": 1}\n')
    train(config_for(cube, tmp_path, steps=1, probe_steps=1))
    assert [r["step"] for r in metrics_of(tmp_path)] == [0, 1]
    assert "probe_at_start" in metrics_of(tmp_path)[0]


def test_network_that_is_never_better_than_at_its_start_is_told_so(cube, tmp_path, monkeypatch, caplog):
    scores = iter([0.9, 0.3, 0.4])
    monkeypatch.setattr(
        probing, "_retrieval", lambda query, sequel, pairs: next(scores) if query.shape[1] == 192 else 0.5
    )
    train(config_for(cube, tmp_path, steps=2, probe_steps=1))
    assert "no probe found the network better than at its start" in caplog.text
    assert load_checkpoint(tmp_path / "checkpoint_best.pth")["step"] == 2


def test_store_that_is_too_small_for_probes_says_so_and_is_trained_from(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = make_store(tmp_path / "one", scenes=1, shape=(64, 80), patch=16, channels=(IR,))
    summary = train(config_for(store, tmp_path / "run", steps=2, probe_steps=1))
    assert summary["best"] is None
    assert caplog.text.count("no probes and no best checkpoint: too few samples are seen") == 1
    assert [r["step"] for r in metrics_of(tmp_path / "run")] == [1, 2]


def test_two_processes_follow_the_curve_and_the_probes_of_one(cube, tmp_path):
    options = {"steps": 3, "probe_steps": 2, "temporal_positives": 60}
    one = train(config_for(cube, tmp_path / "one", **options))
    outputs = train_by_two(cube, tmp_path / "two", **TINY | {"batch_size_per_gpu": 8} | options)
    assert [out.strip() for out in outputs] == [str(tmp_path / "two" / "checkpoint.pth"), ""]
    ours, theirs = (metrics_of(tmp_path / name) for name in ("two", "one"))
    assert [r["step"] for r in ours] == [0, 1, 2, 3]
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=2e-4)
    scores = [[r["probe_retrieval"] for r in records if "probe_retrieval" in r] for records in (ours, theirs)]
    assert scores[0] == pytest.approx(scores[1], rel=0.02)
    a, b = load_checkpoint(one["checkpoint"]), load_checkpoint(tmp_path / "two" / "checkpoint.pth")
    torch.testing.assert_close(a["dino_loss"]["center"], b["dino_loss"]["center"], rtol=1e-2, atol=1e-4)
    best = load_checkpoint(tmp_path / "two" / "checkpoint_best.pth")
    assert best["scores"]["best"] == ours[-1]["probe_best"]
