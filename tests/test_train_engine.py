"""The training loop: steps of several batches, compiled networks, no waiting, many processes, reading, refusals."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from ranks import metrics_of
from small_data import make_store
from test_train import (
    EVERY_STEP,
    IR,
    PROJECT,
    TINY,
    VISIBLE,
    config_for,
    grid_config,
    write_grids,
)
from torch.utils._python_dispatch import TorchDispatchMode

from gridrad_cube import launch
from gridrad_cube.datasets import Batch, PatchDataset
from gridrad_cube.launch import World
from gridrad_cube.models import CodingRateLoss, DINOLoss, load_checkpoint
from gridrad_cube.schema import SchemaError
from gridrad_cube.training import TrainingError, load_config, train
from gridrad_cube.training.data import open_source
from gridrad_cube.training.loop import _Run, _Signals
from gridrad_cube.training.networks import _make_dino_loss as make_loss
from gridrad_cube.training.networks import make_networks
from gridrad_cube.training.plan import make_plan

#: 30 infrared patches of 45.
TWO_SCENES = ("2021-07-05T17:50", "2021-07-05T18:05")
#: A step of eight samples in two batches, and all at once.
HALVES, WHOLE = {"batch_size_per_gpu": 4, "accumulate": 2}, {"batch_size_per_gpu": 8}


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("cube"), scenes=3)


@pytest.fixture(scope="module")
def grids(tmp_path_factory) -> Path:
    return write_grids(tmp_path_factory.mktemp("grids") / "embeddings.zarr")


def losses_of(folder: Path) -> list[float]:
    return [r["train_loss"] for r in metrics_of(folder)]


def assert_same_weights(a: str, b: str, **tolerance) -> None:
    one, other = load_checkpoint(a), load_checkpoint(b)
    assert one["sampler"] == other["sampler"]
    for key in ("student", "teacher", "dino_loss"):
        for name, value in one[key].items():
            torch.testing.assert_close(
                value, other[key][name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


def command(store: Path, out: Path, **options) -> list[str]:
    """The command line of a small run."""
    return ranks.command(store, out, **TINY | {"channels": IR} | options)


# steps of several batches


@pytest.mark.parametrize("more", [{}, {"temporal_positives": 10}])  # pairs: twice as many rows a batch
def test_step_of_two_batches_follows_the_curve_of_one_large_batch(cube, tmp_path, more):
    options = {"steps": 5, "drop_path_rate": 0.0, "time": TWO_SCENES, **more}  # three steps an epoch
    whole = train(config_for(cube, tmp_path / "whole", **WHOLE, **options))
    halves = train(config_for(cube, tmp_path / "halves", **HALVES, **options))
    assert losses_of(tmp_path / "halves") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-5)
    # Adam divides by the size of a gradient: where it is nearly zero, rounding decides.
    assert_same_weights(whole["checkpoint"], halves["checkpoint"], rtol=1e-2, atol=1e-3)


def test_step_of_two_batches_goes_on_in_the_middle_of_an_epoch(cube, tmp_path):
    options = HALVES | {"steps": 5, "drop_path_rate": 0.2, "time": TWO_SCENES, "save_minutes": EVERY_STEP}
    whole = train(config_for(cube, tmp_path / "whole", **options))
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_step0000004.pth", tmp_path / "parts")
    parts = train(config_for(cube, tmp_path / "parts", **options))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")[4:]
    assert_same_weights(whole["checkpoint"], parts["checkpoint"], rtol=0, atol=0)


def test_level_2k_takes_several_batches_a_step(grids, tmp_path):
    train(grid_config(grids, tmp_path / "whole", steps=3, drop_path_rate=0.0))
    train(grid_config(grids, tmp_path / "halves", steps=3, drop_path_rate=0.0, **HALVES | {"accumulate": 4}))
    assert losses_of(tmp_path / "halves") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)


def test_dino_moves_its_centre_once_a_step_by_the_mean_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(v, 7, 12, generator=generator) for v in (4, 2))
    whole, parts = (DINOLoss(12, 4, 0.04, 0.04, 0, 1) for _ in range(2))
    for _ in range(2):
        expected = whole(student.flatten(0, 1), teacher.flatten(0, 1), 0)
        got, before = torch.zeros(()), parts.center.clone()
        for rows in (slice(0, 4), slice(4, 7)):
            assert torch.equal(parts.center, before)
            last = rows.stop == 7
            share = (rows.stop - rows.start) / 7
            got += share * parts(student[:, rows].flatten(0, 1), teacher[:, rows].flatten(0, 1), 0, last=last)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(parts.center, whole.center)


def test_coding_rate_of_a_step_is_the_mean_of_its_batches(cube, tmp_path):
    run = train(config_for(cube, tmp_path, objective="coding-rate", steps=1, drop_path_rate=0.0, **HALVES))
    config = config_for(cube, tmp_path, objective="coding-rate", steps=1, drop_path_rate=0.0, **HALVES)
    source = open_source(config)
    torch.manual_seed(0)
    networks = make_networks(
        config, make_plan(config, level="256", samples=source.samples), source.network, source.views
    )
    order = _Run(
        dataclasses.replace(config, out=str(tmp_path / "other")), World(), torch.device("cpu")
    ).sampler
    index, expected = next(order.batches()), []
    for rows in (index[:4], index[4:]):
        views = source.draw(source.dataset.__getitems__(rows), rows, epoch=0)
        student, teacher = networks.student(views).heads, networks.teacher(views[:2]).heads
        expected.append(CodingRateLoss(4)(student, teacher).item())
    assert run["train_loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_plan_counts_all_batches_of_a_step():
    config = load_config(level="256", preset="none", batch_size_per_gpu=16, accumulate=4, epochs=30)
    plan = make_plan(config, level="256", samples=1000, world_size=2)
    assert (plan.global_batch, plan.steps_per_epoch, plan.steps, plan.lr) == (128, 7, 210, 2.5e-4)
    with pytest.raises(SchemaError, match=r"fewer than one step of 128 \(16 x 2 processes x 4 accumulated\)"):
        make_plan(config, level="256", samples=100, world_size=2)
    few = load_config(level="2k", batch_size_per_gpu=8, accumulate=2)
    assert make_plan(few, level="2k", samples=100).global_batch == 16
    spread = dataclasses.replace(few, objective="coding-rate")
    with pytest.raises(
        SchemaError, match=r"one loss has 8 grids \(8 x 1 processes x 2 accumulated\); level 2k needs at"
    ):
        make_plan(spread, level="2k", samples=100)


def test_predecessors_temperature_rises_epoch_by_epoch_and_small_ones_step_by_step():
    old = load_config(level="256", preset="predecessor")  # 16 a step, 20 epochs, 19 of them warm-up
    plan = make_plan(old, level="256", samples=170)
    expected = np.concatenate([np.linspace(4e-5, 8e-5, 19), [8e-5]]).repeat(10)
    np.testing.assert_allclose(make_loss(old, plan, 10).teacher_temps, expected)
    by_step = dataclasses.replace(old, dino_v1=False)
    expected = np.concatenate([np.linspace(4e-5, 8e-5, 190), np.full(10, 8e-5)])
    np.testing.assert_allclose(make_loss(by_step, plan, 10).teacher_temps, expected)
    cut = dataclasses.replace(old, steps=195)
    assert len(make_loss(cut, make_plan(cut, level="256", samples=170), 10).teacher_temps) == 195


def test_batches_of_a_step_may_change_when_a_run_goes_on_with_dino_alone(cube, tmp_path):
    train(config_for(cube, tmp_path / "dino", steps=2, save_minutes=EVERY_STEP, **WHOLE))
    (tmp_path / "dino" / "checkpoint.pth").unlink()
    (tmp_path / "dino" / "checkpoint_step0000002.pth").unlink()
    assert train(config_for(cube, tmp_path / "dino", steps=2, **HALVES))["step"] == 2
    with pytest.raises(
        SchemaError, match=r"8 samples a step there, 16 here \(processes x `batch_size_per_gpu` x"
    ):
        train(config_for(cube, tmp_path / "dino", steps=2, **HALVES | {"accumulate": 4}))
    options = {"objective": "coding-rate", "steps": 1}
    train(config_for(cube, tmp_path / "rate", **options, **WHOLE))
    with pytest.raises(SchemaError, match=r"another configuration: `accumulate` 1 there, 2 here"):
        train(config_for(cube, tmp_path / "rate", **options, **HALVES))


@pytest.mark.parametrize(("length", "parts", "runs"), [(8, 2, 1), (7, 3, 1), (10, 2, 2), (3, 1, 3)])
def test_batch_splits_into_parts_that_have_all_of_it(length, parts, runs):
    codes = torch.arange(length)
    batch = Batch(codes[:, None, None, None], codes, codes * 2, damaged=torch.tensor([99]))
    pieces = batch.split(parts, runs)
    expected = [np.concatenate(p) for p in zip(*(np.array_split(r, parts) for r in np.split(codes.numpy(), runs)),
                                               strict=True)] if parts > 1 else [codes.numpy()]  # fmt: skip
    for piece, rows in zip(pieces, expected, strict=True):
        assert piece.index.tolist() == piece.codes[:, 0, 0, 0].tolist() == rows.tolist()
        assert piece.channel.tolist() == (2 * rows).tolist()


# compiled networks


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_networks_follow_the_curve_of_those_that_are_not(cube, tmp_path, monkeypatch):
    # The kernels of one small function are compiled as for a run; those of the networks would take minutes.
    compiles = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kw: compiles(self, backend="aot_eager", **kw)
    )
    options = {"steps": 3, "drop_path_rate": 0.0}
    plain = train(config_for(cube, tmp_path / "plain", **options))
    compiled = train(config_for(cube, tmp_path / "compiled", compile=True, **options))
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-4)
    assert_same_weights(plain["checkpoint"], compiled["checkpoint"], rtol=1e-2, atol=1e-3)


def test_compiling_without_a_compiler_is_refused_in_one_line(cube, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC")}
    environment |= {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    argv = command(cube, tmp_path / "run", compile=True, device="cpu", steps=1)
    done = subprocess.run(argv, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("Error")]
    assert line.startswith("Error: --compile: torch cannot compile for cpu here (")
    assert line.endswith("Install a C++ compiler (for a GPU Triton too), or leave --compile out.")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# no waiting for the device


class _Waits(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU: its numbers, and shapes that depend on them."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if by_mask or name.startswith(self.REFUSED):
            raise AssertionError(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


def copies(name: str):
    """A function of torch that refuses to put numbers of the host on a device, for which the host would wait."""
    function = getattr(torch, name)

    def refuse(*args, device=None, **kwargs):
        assert device is None, f"torch.{name} makes the host wait for the device"
        return function(*args, **kwargs)

    return refuse


def open_run(config, device: str = "cpu") -> tuple[_Run, np.ndarray, Batch]:
    """A run, and the samples and the batch of its first step."""
    run = _Run(config, World(), torch.device(device))
    run._signals = _Signals()
    index = next(run.sampler.batches())
    run._saved_at = time.monotonic()
    return run, index, run.source.dataset.__getitems__(index).to(device)


@pytest.mark.parametrize("level", ["256", "2k"])
@pytest.mark.parametrize("objective", ["dino", "coding-rate"])
@pytest.mark.parametrize("more", [{}, {"views": "area"}])
def test_step_waits_for_no_number_on_the_device(cube, grids, tmp_path, monkeypatch, level, objective, more):
    options = {"objective": objective, "steps": 5, **more}
    config = config_for(cube, tmp_path, channels=(IR, VISIBLE), flips="d4", **options)
    if level == "2k":
        config = grid_config(grids, tmp_path, flips="h", **options)
    run, index, batch = open_run(config)
    run._train_step(index, batch, 0)  # constants are put on the device once
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, copies(name))
    # The seed of the networks' own randomness is made on the host.
    monkeypatch.setattr("gridrad_cube.training.loop.sample_seeds", lambda *_: 0)
    with _Waits():
        outcomes = [run._train_step(index, batch, 0) for _ in range(2)]
    assert np.isfinite([outcome.wait()[0] for outcome in outcomes]).all()


def test_what_makes_a_host_wait_is_noticed():
    x = torch.zeros(3)
    for waits in (lambda: x.sum().item(), lambda: x[x > 0], x.nonzero):
        with pytest.raises(AssertionError, match="makes the host wait"), _Waits():
            waits()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("level", ["256", "2k"])
@pytest.mark.parametrize("objective", ["dino", "coding-rate"])
def test_step_never_waits_for_the_gpu(cube, grids, tmp_path, level, objective):
    options = {
        "objective": objective,
        "steps": 5,
        "precision": "auto",
        **HALVES,
    }
    config = config_for(cube, tmp_path, channels=(IR, VISIBLE), **options)
    if level == "2k":
        config = grid_config(grids, tmp_path, objective=objective, steps=5, precision="auto")
    run, index, batch = open_run(config, "cuda")
    run._train_step(index, batch, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes = [run._train_step(index, batch, 0) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite([outcome.wait()[0] for outcome in outcomes]).all()


# reading


@pytest.fixture
def damaged(cube, tmp_path) -> Path:
    """The cube with one infrared shard cut short."""
    store = tmp_path / "damaged.zarr"
    shutil.copytree(cube, store)
    path = store / IR / "c.1.0.0"
    path.write_bytes(path.read_bytes()[:200])
    return store


def test_damaged_patches_stop_a_run_or_are_left_out(damaged, tmp_path, caplog):
    config = config_for(damaged, tmp_path / "run", drop_path_rate=0.0, epochs=1)
    with pytest.raises(SchemaError, match=r"ir_brightness_temperature.*`on_damage='skip'`"):
        train(config)
    summary = train(dataclasses.replace(config, on_damage="skip"))
    assert summary["step"] == summary["steps"]
    assert np.isfinite(losses_of(tmp_path / "run")).all()
    warnings = [r.getMessage() for r in caplog.records if "damaged in the store" in r.getMessage()]
    assert "left out" in warnings[0]
    assert "'crop': 1" in warnings[0]
    counts = [int(w.rsplit(";", 1)[1].split()[0]) for w in warnings]
    assert counts == sorted(set(counts))
    data = PatchDataset(damaged, channels=IR)
    assert 0 < counts[-1] <= (data.table.crop == 1).sum()


def test_step_of_which_nothing_can_be_read_says_so(damaged, tmp_path):
    for crop in (0, 2):
        (damaged / IR / f"c.{crop}.0.0").unlink()
    with pytest.raises(
        TrainingError, match=r"step 1: 0 of 8 samples can be read; expected at least 2\. Repair"
    ):
        train(config_for(damaged, tmp_path / "run", steps=1, on_damage="skip", **HALVES))


# many processes


def start_two(folder: Path, argv: list[str]) -> list[subprocess.Popen]:
    """Two processes as PBS starts them: the port comes from the job's number, the address from the list of nodes."""
    (folder / "nodes").write_text("127.0.0.1\n127.0.0.1\n")
    base = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PBS_", "SLURM_", "PMI_", "OMPI_", "MASTER_"))
    }
    base |= {
        "OMP_NUM_THREADS": "1",
        "PBS_NODEFILE": f"{folder}/nodes",
        "PBS_JOBID": f"{ranks.free_port()}.pbs",
    }
    return [
        subprocess.Popen(
            argv, env=base | {"PMI_RANK": str(rank), "PMI_SIZE": "2", "PALS_LOCAL_RANKID": str(rank)}, cwd=PROJECT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def test_processes_meet_where_the_scheduler_says(tmp_path, monkeypatch):
    for name in ("PBS_NODEFILE", "PBS_JOBID", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (launch._master_address(), launch._master_port()) == ("127.0.0.1", 29500)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7")
    monkeypatch.setenv("SLURM_JOB_ID", "4123")
    assert (launch._master_address(), launch._master_port()) == ("10.0.0.7", 29623)
    (tmp_path / "nodes").write_text("x3001.hsn\nx3002.hsn\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    monkeypatch.setenv("PBS_JOBID", "2001.polaris-pbs-01")
    assert (launch._master_address(), launch._master_port()) == ("x3001.hsn", 29501)


def test_terminated_run_of_two_processes_goes_on_with_one(cube, tmp_path):
    """SIGTERM reaches one of two processes in the middle of an epoch; both save and exit 0; one resumes."""
    options = {"steps": 40, "drop_path_rate": 0.0, "batch_size_per_gpu": 2, "accumulate": 2}  # 8 a step
    options |= {"local_crops_number": 1}
    started = start_two(tmp_path, command(cube, tmp_path / "run", **options))
    deadline, metrics = time.monotonic() + 100, tmp_path / "run" / "metrics.jsonl"
    try:
        while not metrics.exists() and time.monotonic() < deadline and all(r.poll() is None for r in started):
            time.sleep(0.02)
        started[1].send_signal(signal.SIGTERM)
        outputs = [rank.communicate(timeout=100) for rank in started]
    finally:
        for rank in started:
            rank.kill()
    assert [rank.returncode for rank in started] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == [str(tmp_path / "run" / "checkpoint.pth"), ""]
    stopped = load_checkpoint(tmp_path / "run" / "checkpoint.pth")
    assert 0 < stopped["step"] < 40
    one = options | {"batch_size_per_gpu": 8, "accumulate": 1}
    assert train(config_for(cube, tmp_path / "run", **one))["step"] == 40
    whole = train(config_for(cube, tmp_path / "whole", **one))
    assert [r["step"] for r in metrics_of(tmp_path / "run")] == list(range(1, 41))
    ours, theirs = losses_of(tmp_path / "run"), losses_of(tmp_path / "whole")
    assert ours == pytest.approx(theirs, rel=2e-2)
    # Step for step the same samples: rounding has not grown yet over the first steps.
    assert ours[:6] == pytest.approx(theirs[:6], rel=2e-4)
    a, b = load_checkpoint(whole["checkpoint"]), load_checkpoint(tmp_path / "run" / "checkpoint.pth")
    assert a["sampler"] == b["sampler"]


# what cannot be done, by the command line


@pytest.fixture(scope="module")
def run(cube, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    train(config_for(cube, folder, steps=1))
    return folder


REFUSALS = {
    "no clean patch": (
        {"store": "DAWN", "channels": VISIBLE},
        r"no clean patch of \['visible_reflectance'\]: .* rejected by flag: night 15\. Pass other channels"),
    "store that is no store": ({"store": "FOLDER"}, r"FOLDER: not a Zarr v3 store \(no zarr\.json in it\)"),
    "store that is not there": ({"store": "/nowhere.zarr"}, r"/nowhere\.zarr: no such store"),
    "checkpoint as a store": ({"store": "RUN/checkpoint.pth"}, r"checkpoint\.pth: "),
    "weights of another network": (
        {"init_from": "RUN/checkpoint.pth", "arch": "vit_tiny", "patch_size": 8}, r"does not fit vit_tiny: "),
    "weights that are not there": ({"init_from": "/nowhere.pth"}, r"/nowhere\.pth: no such"),
    "weights of another kind": ({"init_from": "RUN/metrics.jsonl"}, r"metrics\.jsonl: "),
    "folder that is a file": ({"out": "RUN/metrics.jsonl"}, r"a file; expected a folder"),
    "folder that cannot be made": ({"out": "/proc/run"}, r"/proc/run"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSALS))
def test_command_that_cannot_be_done_is_told_in_one_line(cube, grids, run, tmp_path, caplog, case):
    options, message = REFUSALS[case]
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    places = {
        "GRIDS": str(grids),
        "RUN": str(run),
        "FOLDER": str(tmp_path),
        "DAWN": str(tmp_path / "patches.zarr"),
    }
    if options.get("store") == "DAWN":  # too dark for the visible channel
        make_store(tmp_path, scenes=1, start="2021-07-05T11:30")

    def placed(text: str) -> str:
        for word, path in places.items():
            text = text.replace(word, path)
        return text

    words = {"store": str(cube), "out": str(tmp_path / "out"), "channels": IR, "steps": 1} | TINY | options
    argv = [w for k, v in words.items() for w in ("--" + k, *placed(str(v)).split())]
    done = ranks.invoke_train(*argv)
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(message.replace("FOLDER", re.escape(str(tmp_path))), line), line
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
    assert not (tmp_path / "out").exists()
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before
