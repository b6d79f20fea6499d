"""Training: configuration, both levels on small stores, resuming a run, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ranks import Stop, invoke_train, metrics_of, parse_config
from small_data import make_store, write_sources

from gridrad_cube import pipeline, training
from gridrad_cube.cli import cli
from gridrad_cube.datasets import PatchDataset
from gridrad_cube.launch import World, choose_device, find_world
from gridrad_cube.models import DINOLoss, load_backbone, load_checkpoint, save_checkpoint
from gridrad_cube.schema import FORMAT_VERSION, QualitySpec, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store import ArraySpec, encode, write_array, write_root
from gridrad_cube.training import (
    Config,
    TrainingError,
    list_presets,
    load_config,
    store_level,
    train,
)
from gridrad_cube.training.config import FIELDS, _read_options
from gridrad_cube.training.data import _PatchSource, open_source
from gridrad_cube.training.monitors import Monitor
from gridrad_cube.training.networks import use_bf16
from gridrad_cube.training.plan import make_plan

PROJECT = Path(__file__).resolve().parents[1]
IR, VISIBLE = "ir_brightness_temperature", "visible_reflectance"
#: Every flag of the predecessor's two training scripts: a value as it was typed, and what it means now.
PREDECESSORS_FLAGS = {
    "arch": ("vit_tiny", "vit_tiny"), "patch_size": ("8", 8), "out_dim": ("65536", 65536),
    "norm_last_layer": ("False", False), "momentum_teacher": ("0.996", 0.996), "use_bn_in_head": ("True", True),
    "warmup_teacher_temp": ("4e-5", 4e-5), "teacher_temp": ("8e-5", 8e-5), "warmup_teacher_temp_epochs": ("19", 19),
    "use_fp16": ("False", "fp32"), "weight_decay": ("0.05", 0.05), "weight_decay_end": ("0.3", 0.3),
    "clip_grad": ("0", 0.0), "batch_size_per_gpu": ("16", 16), "epochs": ("20", 20), "freeze_last_layer": ("2", 2),
    "lr": ("2e-4", 2e-4), "warmup_epochs": ("0", 0), "min_lr": ("1e-6", 1e-6), "optimizer": ("sgd", "sgd"),
    "drop_path_rate": ("0.2", 0.2), "global_crops_scale": ("0.3 1.0", (0.3, 1.0)), "local_crops_number": ("6", 6),
    "local_crops_scale": ("0.05 0.3", (0.05, 0.3)), "output_dir": ("runs", "runs"), "saveckp_freq": ("5", 5),
    "seed": ("7", 7), "num_workers": ("10", 10), "save_best": ("True", None), "dist_url": ("env://", None),
    "local_rank": ("0", None), "local-rank": ("0", None),
}  # fmt: skip
#: For ``save_minutes``.
EVERY_STEP = 1e-9
#: A network and views that 32 px patches and a busy machine can bear.
TINY = {
    "preset": "none", "arch": "vit_demo", "global_size": 24, "local_size": 16, "local_crops_number": 2,
    "head_hidden_dim": 32, "out_dim": 64, "batch_size_per_gpu": 8, "warmup_epochs": 0,
    "warmup_teacher_temp_epochs": 0, "freeze_last_layer": 0, "precision": "fp32", "lr": 0.01, "log_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def cube(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("cube"), scenes=3)


def write_grids(path: Path, crops: int = 20, *, level: str = "256", shape: tuple[int, int] = (4, 5)) -> Path:
    """An embedding store of random vectors 12 wide, with a rejected and NaN corner in every crop."""
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((crops, 1, *shape, 12)).astype(np.float16)
    flags = np.zeros(embedding.shape[:-1], np.uint16)
    flags[:, :, 0, 0] = 2  # all_missing
    embedding[:, :, 0, 0] = np.nan
    start = np.datetime64("2024-05-01", "s").astype(np.int64)
    variables = {
        "embedding": (("crop", "channel", "row", "col", "feature"), embedding, {}),
        "flags": (("crop", "channel", "row", "col"), flags, {}),
        "status": (("crop",), np.zeros(crops, np.uint8), {}),
        "time": (("crop",), start + 3600 * np.arange(crops), {"units": "seconds since 1970-01-01"}),
        "source": (("crop",), np.array([f"{i}.nc" for i in range(crops)], object), {}),
        "channel": (("channel",), np.array([IR], object), {}),
        "variable": (("channel",), np.array([IR], object), {}),
    }
    files, specs = Files(path), {}
    for name, (dims, values, attributes) in variables.items():
        dtype = "string" if values.dtype == object else values.dtype.name
        spec = ArraySpec(
            name=name, dims=dims, shape=values.shape, dtype=dtype, chunks=values.shape,
            fill_value="" if dtype == "string" else 0, attributes=attributes,
        )  # fmt: skip
        if name == "embedding":
            spec = dataclasses.replace(spec, chunks=(1, *values.shape[1:]), shards=values.shape, codec="fast")
            files.write(spec.key(), encode(spec, values))
        else:
            write_array(files, spec, values)
        specs[name] = spec
    info = {"format_version": FORMAT_VERSION, "kind": "embeddings", "level": level, "checkpoint": "f" * 32,
            "channels": {IR: [IR]}}  # fmt: skip
    write_root(files, specs, {"gridrad_cube": info})
    return path


@pytest.fixture(scope="module")
def grids(tmp_path_factory) -> Path:
    return write_grids(tmp_path_factory.mktemp("grids") / "embeddings.zarr")


def config_for(store: Path, out: Path, **options) -> Config:
    return load_config(store=str(store), out=str(out), **TINY | {"channels": (IR,)} | options)


def grid_config(store: Path, out: Path, **options) -> Config:
    return config_for(store, out, **{"arch": "auto", "batch_size_per_gpu": 16} | options)


# configuration


def test_flags_take_dashes_and_underscores_and_the_predecessors_names(cube):
    common = ["--batch_size_per_gpu", "8", "--norm_last_layer", "False", "--global_crops_scale", "0.3", "1.0"]
    old = parse_config(["--data_path", str(cube), "--output_dir", "o", "--use_fp16", "False", *common])
    new = parse_config(
        ["--store", str(cube), "--out=o", "--precision", "fp32", *(w.replace("_", "-") for w in common)]
    )
    assert old == new
    assert old.batch_size_per_gpu == 8
    assert old.norm_last_layer is False
    assert old.precision == "fp32"
    assert old.global_crops_scale == (0.3, 1.0)


def test_every_flag_of_the_predecessor_is_taken_by_its_name(cube):
    names = {"use_fp16": "precision", "output_dir": "out"}
    for name, (typed, expected) in PREDECESSORS_FLAGS.items():
        words = ["--data_path", str(cube), "--output_dir", "o", f"--{name}", *typed.split()]
        config = parse_config(words)
        assert config.store == str(cube)
        if expected is not None:
            assert getattr(config, names.get(name, name)) == expected, name


#: The commands of its README, the launcher apart, which sets the environment and passes the rank.
LEVEL_1 = """--local-rank=0 --arch vit_small --epochs 20 --batch_size_per_gpu 16 --use_fp16 False
    --norm_last_layer False --teacher_temp 8e-5 --warmup_teacher_temp 4e-5 --lr 2e-4 --warmup_epochs 0
    --warmup_teacher_temp_epochs 19
    --num_workers 10 --dist_url env:// --save_best True"""
LEVEL_2K = """--local-rank=0 --arch vit2k_xs --epochs 200 --batch_size_per_gpu 16 --use_fp16 False
    --norm_last_layer False --teacher_temp 8e-5 --warmup_teacher_temp 4e-5 --lr 2e-4 --warmup_epochs 10
    --warmup_teacher_temp_epochs 199 --num_workers 10 --dist_url env:// --save_best True"""


@pytest.mark.parametrize(("level", "line"), [("256", LEVEL_1), ("2k", LEVEL_2K)])
def test_command_lines_of_the_predecessors_readme_are_its_preset(cube, grids, caplog, level, line):
    store = {"256": cube, "2k": grids}[level]
    argv = ["--data_path", str(store), "--output_dir", "o", *line.split()]
    config = parse_config([*argv, "--preset", "predecessor"])
    expected = load_config(preset="predecessor", level=level, store=str(store), out="o", num_workers=10)
    assert dataclasses.replace(config, arch="auto") == expected
    (record,) = [r for r in caplog.records if r.name == "gridrad_cube.cli.training"]
    assert record.getMessage().startswith("no effect: --save-best (checkpoint_best.pth is kept")
    assert "--dist-url (processes find each other" in record.getMessage()
    assert "--local-rank (the rank is read" in record.getMessage()
    plain = parse_config(argv)  # under the default preset too its flags mean what they say
    assert (plain.preset, config.preset) == ("dino" if level == "256" else "small", "predecessor")
    for name in (
        "objective",
        "epochs",
        "batch_size_per_gpu",
        "norm_last_layer",
        "teacher_temp",
        "warmup_teacher_temp_epochs",
    ):
        assert getattr(plain, name) == getattr(expected, name), name


def test_epochs_asked_for_replace_the_steps_of_a_recipe(tmp_path, monkeypatch):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("steps = 1500\n")
    monkeypatch.setattr(training.config, "list_presets", lambda: {"mine": recipe})
    assert load_config(level="256", preset="mine").steps == 1500
    assert load_config(level="256", preset="mine", epochs=20).steps is None
    assert load_config(level="256", preset="mine", epochs=20, steps=7).steps == 7


def test_option_that_only_dino_uses_asks_for_dino(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file = tmp_path / "mine.toml"
    file.write_text("teacher_temp = 0.03\n")
    assert load_config(level="256").objective != "dino"
    config = load_config(level="256", file=file)
    assert (config.preset, config.objective, config.teacher_temp) == ("dino", "dino", 0.03)
    (record,) = caplog.records
    assert record.getMessage().startswith("`preset='dino'`, not small: only DINO uses `teacher_temp`.")
    file.write_text('objective = "coding-rate"\n')
    assert load_config(level="256", file=file, out_dim=512).objective == "coding-rate"
    assert "no effect with `objective='coding-rate'`: `out_dim`" in caplog.text


def test_terms_of_a_recipe_stay_only_where_the_objective_has_them(tmp_path, monkeypatch):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('objective = "contrast"\npool = "projection"\ntemporal_positives = [60]\nlr = 1.0\n')
    monkeypatch.setattr(training.config, "list_presets", lambda: {"mine": recipe})

    def objectives(**options) -> tuple:
        config = load_config(level="256", preset="mine", **options)
        assert config.lr == 1.0
        return config.objectives, config.pool, config.temporal_positives

    assert objectives() == ("contrast", "projection", (60.0,))
    assert objectives(objective="dino") == ("dino", "class", ())
    beside = objectives(objective="coding-rate", contrast_weight=1)
    assert beside == ("coding-rate + 1 x contrast", "projection", (60.0,))
    recipe.write_text("contrast_weight = 3.0\n")
    assert objectives(objective="contrast", lr=1.0) == ("contrast", "class", ())


def test_deit_is_vit_as_it_was_for_the_predecessor(cube):
    assert parse_config(["--store", str(cube), "--out", "o", "--arch", "deit_small"]).arch == "vit_small"


def test_flags_read_lists_numbers_and_words(cube):
    config = parse_config(
        ["--store", str(cube), "--out", "o", "--channels", f"{IR},{VISIBLE}", "--reject", "none",
         "--bbox", "-130", "20", "-60", "50", "--time", "2021-07-01", "2021-08-01", "--time", "2021-09",
         "--exclude_time", "2021-07-04", "2021-07-05", "2021-07-08", "2021-07-09", "--out-dim", "512",
         "--warmup-epochs", "auto", "--steps", "7", "--temporal-positives", "60", "180", "--coarsen", "auto"]
    )  # fmt: skip
    assert config.channels == (IR, VISIBLE)
    assert config.reject == ()
    assert config.bbox == (-130.0, 20.0, -60.0, 50.0)
    assert config.time == (("2021-07-01", "2021-08-01"), ("2021-09",))
    assert config.exclude_time == (("2021-07-04", "2021-07-05"), ("2021-07-08", "2021-07-09"))
    assert (
        Config(time=["2021-07-01", "2021-08-01"]).time == config.time[:1]
    )  # a pair, as earlier versions wrote it
    assert Config(time="2021-07").time == (("2021-07",),)
    assert (config.out_dim, config.warmup_epochs, config.steps) == (512, "auto", 7)
    assert (config.temporal_positives, config.coarsen) == ((60.0, 180.0), "auto")
    assert Config(temporal_positives=0).temporal_positives == ()


def test_config_prefers_flag_to_file_to_preset_to_default(cube, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("lr = 3e-3\nseed = 5\n[level.256]\nglobal-size = 192\n[level.2k]\nseed = 6\n")
    config = parse_config(
        ["--store", str(cube), "--out", "o", "--preset", "predecessor", "--config", str(file), "--seed", "7"]
    )
    assert config.min_lr == Config().min_lr  # default
    assert config.teacher_temp == 8e-5  # preset
    assert config.preset == "predecessor"
    assert (config.lr, config.global_size) == (3e-3, 192)  # file over preset
    assert config.seed == 7  # flag over file
    assert load_config(level="2k", file=file).seed == 6


@pytest.mark.parametrize("level", ["256", "2k"])
@pytest.mark.parametrize("preset", sorted(list_presets()))
def test_preset_holds_only_what_differs_from_the_defaults(preset, level):
    options = _read_options(list_presets()[preset], level)
    assert options
    plain, mine = Config().to_dict(), Config(**options).to_dict()
    assert [name for name in options if mine[name] == plain[name]] == []


def test_presets_come_with_the_package_and_lie_where_users_look():
    assert set(list_presets()) == {"demo", "dino", "gpu", "predecessor", "small"}
    beside = {p.name: p.read_text() for p in (PROJECT / "training" / "presets").glob("*.toml")}
    assert beside == {p.name: p.read_text() for p in list_presets().values()}


def test_config_survives_json():
    more = {"time": [("2021", "2022"), "2023-05"], "exclude_time": "2021-07"}
    config = load_config(level="256", preset="predecessor", reject=["night"], bbox=(1, 2, 3, 4), **more)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], r"unknown option --epoch; did you mean --epochs"),
        (["--teacher_tmp=3"], r"unknown option --teacher-tmp; did you mean --teacher-temp"),
        (["--zzzz"], r"unknown option --zzzz; see gridrad-cube train --help-all"),
        (
            ["--arch2k", "vit2k_xs"],
            r"option --arch2k no longer exists: the network of level 2k is --arch when",
        ),
        (["--optimizer", "lars"], r"--optimizer: got 'lars'; expected adamw or sgd"),
        (["--lr", "fast"], r"--lr: got 'fast'; expected a number"),
        (["--objective", "mae"], r"--objective: got 'mae'; expected one of dino, coding-rate, contrast"),
        (["--out-dim", "many"], r"--out-dim: got 'many'; expected a whole number or auto"),
        (
            ["--preset", "tiny"],
            r"--preset: got 'tiny'; expected one of \['demo', 'dino', 'gpu', 'predecessor', 'small'\] or none",
        ),
        (["--norm_last_layer", "maybe"], r"--norm-last-layer: got 'maybe'; expected true or false"),
        (["--time", "2021", "2022", "2023"], r"--time: got .*; expected a day, or pairs of START and STOP"),
        (["--batch-size-per-gpu", "0"], r"--batch-size-per-gpu: got 0; expected a number above 0"),
        (["--config", "/nowhere.toml"], r"/nowhere.toml: no such file"),
        (["stray"], r"unexpected argument 'stray'"),
    ],
)
def test_flags_refuse_in_one_line(cube, argv, message):
    done = invoke_train("--store", str(cube), "--out", "o", *argv)
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(message, line), line


def test_file_with_an_unknown_key_is_refused_by_name(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[level.256]\nglobal_sise = 192\n")
    with pytest.raises(
        SchemaError, match=r"mine.toml: unknown option `global_sise`; did you mean `global_size`"
    ):
        load_config(level="256", file=file)
    file.write_text("[level.4k]\nlr = 1\n")
    with pytest.raises(SchemaError, match=r"unknown table \[level.4k\]"):
        load_config(level="256", file=file)
    file.write_text('preset = "demo"\n')
    with pytest.raises(SchemaError, match=r"mine.toml: .* Pass `preset` beside it"):
        load_config(level="256", file=file)
    file.write_text("lr = = 1\n")
    with pytest.raises(SchemaError, match="not a TOML file"):
        load_config(level="256", file=file)


def test_help_names_every_option_with_its_default():
    text = " ".join(invoke_train("--help-all").stdout.split())
    for name in FIELDS:
        assert f"--{name.replace('_', '-')}" in text
    assert "torchrun --nproc-per-node 4 -m gridrad_cube train" in text
    assert "--batch-size-per-gpu SAMPLES samples per process and batch (default: 128, level 2k: 16)" in text


def test_short_help_shows_what_matters_first():
    text = invoke_train("--help").stdout
    options = re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE)
    assert options == [
        "--store", "--out", "--preset", "--config", "--channels", "--epochs", "--steps", "--batch-size-per-gpu",
        "--device", "--resume", "--seed", "--help-all", "--help",
    ]  # fmt: skip
    assert "A loss that is not finite stops the run" in " ".join(text.split())


def test_flag_of_another_level_is_told_to_have_no_effect(grids, caplog):
    parse_config(["--store", str(grids), "--out", "o", "--patch_size", "1"])
    assert "--patch-size has no effect at level 2k" in caplog.text


# plan


@pytest.mark.parametrize(
    ("samples", "prototypes", "temperature"),
    [(5_000, 1024, 0.02), (20_001, 2048, 0.02), (160_000, 16384, 0.045), (1_280_000, 65536, 0.07)],
)
def test_plan_sizes_the_head_and_temperature_by_samples(samples, prototypes, temperature):
    plan = make_plan(load_config(level="256"), level="256", samples=samples)
    assert plan.out_dim == prototypes
    assert plan.teacher_temp == pytest.approx(temperature, abs=1e-3)
    assert make_plan(load_config(level="2k"), level="2k", samples=samples).out_dim == min(prototypes, 4096)


def test_plan_scales_the_rate_and_counts_in_steps():
    config = load_config(
        level="256", preset="none", lr=5e-4, batch_size_per_gpu=64, epochs=100, warmup_epochs=10
    )
    plan = make_plan(config, level="256", samples=1000, world_size=4)
    assert (plan.steps_per_epoch, plan.steps, plan.warmup_steps, plan.global_batch) == (3, 300, 30, 256)
    assert plan.lr == 5e-4
    auto = make_plan(load_config(level="256", preset="dino", epochs=100), level="256", samples=6400)
    assert (auto.warmup_steps, auto.temp_warmup_steps, auto.freeze_steps) == (1000, 3000, 500)
    # Half of the teacher is renewed in one epoch of 100 steps.
    assert auto.momentum_teacher**100 == pytest.approx(0.5, abs=0.14)


@pytest.mark.parametrize(
    ("level", "options", "samples", "message"),
    [
        ("256", {"preset": "dino"}, 63, r"63 clean patches .*, fewer than one step of 64 .* Lower `batch"),
        ("2k", {"batch_size_per_gpu": 8}, 99, r"one loss has 8 grids \(8 x 1 processes\); level 2k needs at least 16"),
        ("2k", {"batch_size_per_gpu": 16}, 12, r"12 grids \(crops x channels\), fewer .* at least 16: add scenes"),
        ("2k", {"batch_size_per_gpu": 64}, 40, r"Lower `batch_size_per_gpu`: it times `accumulate`, .* at most 40"),
        ("2k", {"objective": "contrast"}, 99, r"`objective`: got 'contrast'; expected dino or coding-rate at level 2k"),
        ("256", {"preset": "predecessor", "epochs": 5}, 99, r"`warmup_teacher_temp_epochs`: 19 epochs do not fit into "
         "`epochs=5`"),
    ],
)  # fmt: skip
def test_plan_refuses_what_cannot_be(level, options, samples, message):
    config = load_config(level=level, store="s.zarr", **options)
    with pytest.raises(SchemaError, match=message):
        make_plan(config, level=level, samples=samples)


# processes


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(rank=3, size=8, local_rank=1)),
        (
            {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"},
            World(rank=2, size=4, local_rank=2),
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
            World(),
        ),  # a batch script outside of srun is one process
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "PALS_LOCAL_RANKID": "1"}, World(rank=5, size=8, local_rank=1)),
        (  # Hydra
            {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"},
            World(rank=5, size=8, local_rank=1),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            World(rank=1, size=2),
        ),
        # Without a local rank the machine is taken to be the only one.
        ({"RANK": "3", "WORLD_SIZE": "8"}, World(rank=3, size=8, local_rank=3)),
        # torchrun within a step of srun decides.
        (
            {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            World(size=2),
        ),
    ],
)
def test_world_is_read_from_any_launcher(environment, world):
    assert find_world(environment) == world


def test_world_with_a_rank_beyond_its_size_is_refused():
    with pytest.raises(
        ValueError, match="torchrun: RANK=2 with WORLD_SIZE=2; expected a rank below the size"
    ):
        find_world({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match=r"torchrun: .*'two'; expected whole numbers in RANK, WORLD_SIZE"):
        find_world({"RANK": "two", "WORLD_SIZE": "2"})


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_processes_of_a_machine_share_its_gpus(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    worlds = [World(rank=4 + i, size=8, local_rank=i) for i in range(4)]
    assert choose_device("cpu", worlds[1]) == torch.device("cpu")
    if not gpus:
        assert choose_device("auto", worlds[1]) == torch.device("cpu")
        with pytest.raises(ValueError, match="device: 'cuda' asked for but torch sees no GPU"):
            choose_device("cuda", worlds[1])
        return
    for device in ("auto", "cuda"):
        assert [choose_device(device, world).index for world in worlds] == [i % gpus for i in range(4)]
    assert choose_device("cuda:0", worlds[1]) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="device: 'cuda:7' asked for but torch sees"):
        choose_device("cuda:7", worlds[1])
    with pytest.raises(ValueError, match="device: got 'gpu'; expected auto, cpu, cuda or cuda:N"):
        choose_device("gpu", worlds[1])


def test_precision_follows_the_flag_then_the_processor():
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("fp32", cpu)
    assert use_bf16("auto", cpu) == bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


# level 256


def test_training_from_patches_writes_all_that_embedding_needs(cube, tmp_path):
    summary = train(config_for(cube, tmp_path / "run", steps=3))
    assert summary["checkpoint"] == str(tmp_path / "run" / "checkpoint.pth")
    assert (summary["step"], summary["stopped"], summary["level"]) == (3, None, "256")
    assert summary["samples"] == len(PatchDataset(cube, channels=IR))
    checkpoint = load_checkpoint(summary["checkpoint"])
    assert checkpoint["channels"] == [IR]
    assert checkpoint["normalization"][IR] == PatchDataset(cube, channels=IR).normalizations[IR].to_dict()
    assert (checkpoint["coarsen"], checkpoint["channel_mode"]) == (1, "each")
    view = checkpoint["view"]
    assert (view["magnification"], view["mode"], view["global_size"]) == (1.0, "zoom", 24)
    assert view["pixel_spacing_km"] == pytest.approx(111.2 / 56, rel=0.01)  # 56 pixels a degree
    network = load_backbone(checkpoint)
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 192)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 3


def test_metrics_tell_how_training_goes(cube, tmp_path):
    train(config_for(cube, tmp_path, steps=4, log_steps=2))
    records = metrics_of(tmp_path)
    assert [r["step"] for r in records] == [2, 4]
    for r in records:
        assert r["teacher_entropy"] + r["teacher_kl_to_uniform"] == pytest.approx(math.log(64), rel=1e-5)
        assert r["headroom"] == pytest.approx(math.log(64) - r["train_loss"])
        assert 1 <= r["rankme"] <= 192
        assert 1 <= r["prototypes_used"] <= 64
        assert r["images_per_second"] > 0
        assert {"epoch", "train_lr", "train_wd", "feature_std", "grad_norm", "seconds_waiting"} <= r.keys()
    # 8 of a batch of 256: the peak is lr / 32, then half a cosine to min_lr.
    assert records[0]["train_lr"] == pytest.approx(
        1e-6 + 0.5 * (0.01 / 32 - 1e-6) * (1 + math.cos(math.pi / 4))
    )


def test_train_takes_options_or_a_config(cube, tmp_path):
    first = train(cube, tmp_path / "a", channels=[IR], steps=0, **TINY)
    second = train(config_for(cube, tmp_path / "b", steps=0))
    one, other = (load_checkpoint(summary["checkpoint"])["config"] for summary in (first, second))
    assert one | {"out": ""} == other | {"out": ""}
    with pytest.raises(TypeError, match="a Config holds every option"):
        train(config_for(cube, tmp_path / "c"), steps=0)
    with pytest.raises(SchemaError, match=r"`out`: missing\. Pass the folder of the run"):
        train(cube, steps=0)
    with pytest.raises(SchemaError, match=r"unknown option `step`; did you mean `steps`"):
        train(cube, tmp_path / "c", step=0)


def test_debug_shows_where_a_run_failed(cube, tmp_path, monkeypatch):
    argv = ["train", "--store", str(cube), "--out", str(tmp_path / "run"), "--time", "2001"]
    plain, debug = (CliRunner().invoke(cli, [*first, *argv]) for first in ([], ["--debug"]))
    assert plain.exit_code == 1
    assert plain.stderr.startswith("Error: ")
    assert isinstance(debug.exception, SchemaError)

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a fault of the program")

    monkeypatch.setattr(training, "train", fail)
    assert isinstance(CliRunner().invoke(cli, argv).exception, KeyError)


def test_no_steps_write_the_untrained_network(cube, tmp_path):
    summary = train(config_for(cube, tmp_path, steps=0))
    torch.manual_seed(0)
    checkpoint = load_checkpoint(summary["checkpoint"])
    assert checkpoint["step"] == 0
    for name, value in checkpoint["student"].items():
        assert torch.equal(value, checkpoint["teacher"][name])


@pytest.mark.parametrize("objective", ["dino", "coding-rate"])
def test_training_lowers_the_loss_and_moves_the_teacher(cube, tmp_path, objective):
    train(config_for(cube, tmp_path / "0", steps=0, objective=objective))
    train(config_for(cube, tmp_path / "n", steps=8, lr=0.03, momentum_teacher=0.9, objective=objective))
    losses = [r["train_loss"] for r in metrics_of(tmp_path / "n")]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    before, after = (load_checkpoint(tmp_path / d / "checkpoint.pth")["teacher"] for d in "0n")
    assert not torch.equal(before["backbone.norm.weight"], after["backbone.norm.weight"])


def test_last_layer_stays_as_long_as_it_is_frozen(cube, tmp_path):
    for name, steps in (("frozen", 2), ("free", 3)):  # an epoch: five steps of 8
        train(config_for(cube, tmp_path / name, steps=steps, freeze_last_layer=0.4))
    initial = train(config_for(cube, tmp_path / "0", steps=0))["checkpoint"]
    paths = [initial, tmp_path / "frozen" / "checkpoint.pth", tmp_path / "free" / "checkpoint.pth"]
    start, frozen, free = (load_checkpoint(p)["student"]["head.last_layer.weight_v"] for p in paths)
    assert torch.equal(start, frozen)
    assert not torch.equal(start, free)


def test_rejected_patches_never_reach_training(cube, tmp_path):
    rejected = PatchDataset(cube, channels=IR, reject=["some_missing"])
    everything = PatchDataset(cube, channels=IR, reject=[])
    assert len(rejected) < len(everything)
    source = open_source(config_for(cube, tmp_path, reject=("some_missing",)))
    places = {tuple(v) for v in zip(rejected.table.crop, rejected.table.row, rejected.table.col, strict=True)}
    table = source.dataset.table
    assert {tuple(v) for v in zip(table.crop, table.row, table.col, strict=True)} == places
    assert source.samples == len(rejected)


def test_channels_of_one_batch_keep_their_own_gain_and_fill(cube, tmp_path):
    source = _PatchSource(config_for(cube, tmp_path, channels=()))
    gains = {label: spec.gain for label, spec in zip(source.dataset.labels, source.specs, strict=True)}
    rules = source.dataset.normalizations
    assert gains == pytest.approx({IR: 1.0 / rules[IR].std, VISIBLE: 0.02 / rules[VISIBLE].std})
    for views, gain in (("zoom", 0.4), ("area", 0.4), ("zoom", 0.0)):
        larger = _PatchSource(config_for(cube, tmp_path, offset=gain, views=views))
        assert {spec.gain for spec in larger.specs} == {gain}
    index = np.arange(12)
    assert len(set(source.dataset.table.channel[index])) == 2
    together = source.draw(source.dataset.__getitems__(index), index, epoch=3)
    for i in index:
        alone = source.draw(source.dataset.__getitems__([i]), np.array([i]), epoch=3)
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole.x[i], part.x[0], rtol=1e-4, atol=1e-5)
            assert torch.equal(whole.token_mask[i], part.token_mask[0])


def test_altitudes_of_radar_are_stacked(tmp_path):
    store = make_store(tmp_path, scenes=2, shape=(96, 96), format="gridrad-v3.1", channels=("reflectivity",))
    config = config_for(store, tmp_path / "run", channels=("reflectivity@2.0km", "reflectivity@4.0km"), steps=1,
                        batch_size_per_gpu=2, reject=("all_missing",))  # fmt: skip
    checkpoint = load_checkpoint(train(config)["checkpoint"])
    assert checkpoint["channel_mode"] == "stack"
    assert checkpoint["model"]["in_channels"] == 2
    assert checkpoint["view"]["gain"] == [pytest.approx(0.1)] * 2 or checkpoint["view"]["gain"] == (0.1, 0.1)
    assert checkpoint["view"]["gain_floor"] == -1.0


# resuming


def test_interrupted_run_goes_on_as_if_nothing_had_been(cube, tmp_path):
    options = {"steps": 7, "drop_path_rate": 0.2, "log_steps": 2}  # 5 steps an epoch
    whole = train(config_for(cube, tmp_path / "whole", **options))
    first = train(config_for(cube, tmp_path / "parts", **options), progress=Stop(1))
    assert first["stopped"] == "SIGTERM"
    second = train(config_for(cube, tmp_path / "parts", **options), progress=Stop(4))
    assert 1 < first["step"] < 4 < second["step"] < 7
    third = train(config_for(cube, tmp_path / "parts", **options))
    assert third["step"] == 7
    ours, theirs = (metrics_of(tmp_path / name) for name in ("parts", "whole"))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == [2, 4, 6, 7]
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("epoch", "train_loss", "train_lr", "train_wd", "teacher_entropy"):
            assert mine[key] == other[key], key
    a, b = (load_checkpoint(s["checkpoint"]) for s in (whole, third))
    for key in ("student", "teacher", "dino_loss"):
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), name
    assert a["sampler"] == b["sampler"]


def test_signal_saves_and_exits_zero(cube, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", lambda config: train(config, progress=Stop(2)))
    old = signal.getsignal(signal.SIGTERM)
    argv = ["--store", str(cube), "--out", str(tmp_path), "--channels", IR, "--steps", "50"]
    argv += [w for k, v in TINY.items() for w in ("--" + k, str(v))]
    done = invoke_train(*argv)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(tmp_path / "checkpoint.pth")
    assert 2 <= load_checkpoint(tmp_path / "checkpoint.pth")["step"] < 5
    assert signal.getsignal(signal.SIGTERM) == old


def test_interrupt_saves_before_it_interrupts(cube, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"step [2-4] of 50 is saved\. Run again to resume"):
        train(config_for(cube, tmp_path, steps=50), progress=Stop(2, signal.SIGINT))
    assert 2 <= load_checkpoint(tmp_path / "checkpoint.pth")["step"] < 5


def test_metrics_of_steps_done_again_are_dropped(cube, tmp_path):
    config = config_for(cube, tmp_path, steps=4, save_minutes=EVERY_STEP)
    train(config)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "train_loss": 0.0}\n{"step": 10')  # a later step, and a killed write
    train(dataclasses.replace(config, resume=str(tmp_path / "checkpoint_step0000002.pth")))
    assert [r["step"] for r in metrics_of(tmp_path)] == [1, 2, 3, 4]


def test_finished_run_is_left_as_it_is(cube, tmp_path):
    config = config_for(cube, tmp_path, steps=2)
    first = train(config)
    before = Path(first["checkpoint"]).stat().st_mtime_ns
    assert train(config)["step"] == 2
    assert Path(first["checkpoint"]).stat().st_mtime_ns == before


def test_last_checkpoints_and_those_for_good_are_kept(cube, tmp_path):
    options = {"steps": 7, "batch_size_per_gpu": 16, "save_minutes": EVERY_STEP, "saveckp_freq": 1}
    train(config_for(cube, tmp_path, **options))
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [
        "checkpoint.pth", "checkpoint0001.pth", "checkpoint0002.pth", "checkpoint0003.pth",
        "checkpoint_step0000005.pth", "checkpoint_step0000006.pth", "checkpoint_step0000007.pth",
    ]  # fmt: skip
    assert load_checkpoint(tmp_path / "checkpoint0002.pth")["step"] == 4  # two steps an epoch


def test_damaged_latest_checkpoint_falls_back_to_the_one_before(cube, tmp_path, caplog):
    config = config_for(cube, tmp_path, steps=4, save_minutes=EVERY_STEP)
    train(config)
    (tmp_path / "checkpoint.pth").unlink()
    path = tmp_path / "checkpoint_step0000004.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    assert train(config)["step"] == 4
    assert "skipped a checkpoint" in caplog.text
    assert [r["step"] for r in metrics_of(tmp_path)] == [1, 2, 3, 4]


def test_more_processes_with_smaller_batches_may_go_on(cube, tmp_path):
    from gridrad_cube.training.folder import check_same_run

    config = config_for(cube, tmp_path, steps=1)
    checkpoint = load_checkpoint(train(config)["checkpoint"])
    half = dataclasses.replace(config, batch_size_per_gpu=4, out="elsewhere", device="cpu").to_dict()
    check_same_run(checkpoint, checkpoint | {"config": half}, tmp_path)
    with pytest.raises(SchemaError, match="8 samples a step there, 4 here"):
        check_same_run(checkpoint, checkpoint | {"config": half, "plan": {"global_batch": 4}}, tmp_path)


#: The options of an earlier version that there are no more, at their defaults of that time.
EARLIER = {
    "shuffle_block": 1, "cache": None, "cache_gib": 50.0, "position": "exact", "mask_tokens": True,
    "student_temp": 0.1, "teacher_temp_by": "step", "center_momentum": 0.9, "coding_distortion": 0.05,
    "coding_weight": 1.0, "koleo": 0.0, "token_weight": 0.0, "token_share": 0.3, "clip_by": "global",
    "magnification": 1.0, "gain": 1.0, "blur": [0.0, 0.0, 0.0], "solarize": 0.0, "row_dropout": 0.0,
    "global_fraction": 0.75, "local_fraction": 0.25, "token_dropout": 0.25, "temporal_share": 1.0, "save_steps": 1000,
    "keep_checkpoints": 3,
}  # fmt: skip


#: Options that an earlier version did not have.
LATER = {
    "dino_v1", "preset", "exclude_time", "stem", "pool", "contrast_weight", "temperature", "move",
}  # fmt: skip


def earlier(config: Config, **options) -> dict:
    """The options of a run as an earlier version wrote them."""
    known = {name: value for name, value in config.to_dict().items() if name not in LATER}
    known |= {
        "time": [text for one in config.time for text in one],
        "temporal_positives": 0.0,
    }  # one range, one lead
    return known | EARLIER | options


#: What the preset predecessor of an earlier version said in options that no longer exist, at both levels.
EARLIER_PREDECESSOR = {
    "position": "dino_v1", "mask_tokens": False, "clip_by": "tensor", "teacher_temp_by": "epoch",
}  # fmt: skip
EARLIER_AREA = {
    "256": {"views": "area", "gain": 0.0, "blur": [1.0, 0.1, 0.5], "solarize": 0.2},
    "2k": {"views": "zoom", "global_fraction": 1.0, "token_dropout": 0.0},
}


@pytest.mark.parametrize("level", ["256", "2k"])
def test_options_of_the_predecessor_of_an_earlier_version_are_those_of_its_preset(level):
    config = load_config(level=level, preset="predecessor", store="s", out="o")
    old = earlier(config, **EARLIER_PREDECESSOR, **EARLIER_AREA[level])
    assert Config.from_dict(old) == dataclasses.replace(config, preset="none")
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("level", ["256", "2k"])
def test_run_of_the_predecessor_of_an_earlier_version_resumes(cube, grids, tmp_path, level):
    store = {"256": cube, "2k": grids}[level]
    more = {"steps": 3, "warmup_epochs": 0, "warmup_teacher_temp_epochs": 0, "save_minutes": EVERY_STEP}
    more |= {"log_steps": 1, "out_dim": 64, "head_hidden_dim": 32, "local_crops_number": 2}
    small = {"arch": "vit_demo", "global_size": 32, "local_size": 16} if level == "256" else {}
    config = load_config(
        preset="predecessor", store=str(store), out=str(tmp_path / "run"), level=level, **more, **small
    )
    whole = load_checkpoint(train(config)["checkpoint"])
    old = load_checkpoint(tmp_path / "run" / "checkpoint_step0000001.pth")
    old["config"] = earlier(config, **EARLIER_PREDECESSOR, **EARLIER_AREA[level])
    save_checkpoint(old, tmp_path / "old" / "checkpoint.pth")
    new = load_checkpoint(train(dataclasses.replace(config, out=str(tmp_path / "old")))["checkpoint"])
    for name, value in whole["teacher"].items():
        assert torch.equal(value, new["teacher"][name]), name


def test_patches_are_averaged_to_the_images_of_the_network(cube):
    options = {"coarsen": "auto", "image_size": 16, "global_size": 16}
    assert open_source(config_for(cube, Path("o"), **options)).state()["coarsen"] == 2
    assert (
        open_source(config_for(cube, Path("o"), coarsen="auto")).dataset.coarsen == 1
    )  # as large as 64 px at most


def test_limit_trains_on_the_first_samples(cube, tmp_path):
    summary = train(config_for(cube, tmp_path, limit=20, batch_size_per_gpu=4, epochs=1, steps=None))
    assert (summary["samples"], summary["steps"]) == (20, 5)


def test_run_of_an_earlier_version_resumes(cube, tmp_path):
    config = config_for(cube, tmp_path / "run", steps=2, save_minutes=EVERY_STEP, time=("2000", "2100"))
    whole = load_checkpoint(train(config)["checkpoint"])
    old = load_checkpoint(tmp_path / "run" / "checkpoint_step0000001.pth")
    old["config"] = earlier(config, save_steps=7, cache="/fast")
    old["sampler"]["block"] = [1, 1]
    (tmp_path / "old").mkdir()
    save_checkpoint(old, tmp_path / "old" / "checkpoint.pth")
    new = load_checkpoint(train(dataclasses.replace(config, out=str(tmp_path / "old")))["checkpoint"])
    for name, value in whole["student"].items():
        assert torch.equal(value, new["student"][name]), name
    for other, message in (
        ({"temporal_positives": 5}, r"`temporal_positives` \[\] there, \[5.0\] here"),
        ({"exclude_time": "2001"}, r"`exclude_time` \[\] there, \[\['2001'\]\] here"),
    ):
        with pytest.raises(SchemaError, match=message):
            train(dataclasses.replace(config, out=str(tmp_path / "old"), **other))
    old["config"]["koleo"] = 0.1
    save_checkpoint(old, tmp_path / "old" / "checkpoint.pth")
    with pytest.raises(SchemaError, match=r"of an earlier version, with `koleo` 0.1; expected the defaults"):
        train(
            dataclasses.replace(
                config, out=str(tmp_path / "old"), resume=str(tmp_path / "old/checkpoint.pth")
            )
        )


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ({}, None),
        ({"cache": "/fast", "save_steps": 5, "keep_checkpoints": 1}, None),
        ({"clip_by": "tensor"}, "`clip_by` tensor"),
        ({"views": "area"}, "`views` area"),
        ({"gain": 0.0}, "`gain` 0.0"),
        ({"student_temp": 0.2, "koleo": 0.1}, "`student_temp` 0.2, `koleo` 0.1"),
    ],
)
def test_options_of_an_earlier_version_are_accepted_at_their_defaults(cube, old, message):
    config = config_for(cube, Path("o"))
    if message is None:
        assert Config.from_dict(earlier(config, **old)) == config
    else:
        with pytest.raises(
            SchemaError, match=f"of an earlier version, with {message}; expected the defaults"
        ):
            Config.from_dict(earlier(config, **old))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.02}, r"a run of another configuration: `lr` 0.01 there, 0.02 here. Pass another `out`"),
        ({"arch": "vit_tiny", "patch_size": 8}, r"`arch` vit_demo there, vit_tiny here"),
        (
            {"channels": (VISIBLE,)},
            r"`channels` \['ir_brightness_temperature'\] there, \['visible_reflectance'\] here",
        ),
        (
            {"resume": "never"},
            r"holds a run already \(checkpoint.pth\), and `resume='never'` starts a new one",
        ),
    ],
)
def test_folder_of_another_run_is_refused(cube, tmp_path, options, message):
    train(config_for(cube, tmp_path, steps=1))
    with pytest.raises(SchemaError, match=message):
        train(config_for(cube, tmp_path, **{"steps": 1} | options))


def test_run_on_another_store_is_refused(cube, grids, tmp_path):
    train(config_for(cube, tmp_path / "run", steps=1))
    other = make_store(tmp_path / "other", scenes=3, seed=1)
    gone = r"does not hold the samples that the run was trained on: 3 of 3 crops are missing, or have other pixels"
    with pytest.raises(SchemaError, match=gone):
        train(config_for(other, tmp_path / "run", steps=1))
    path = tmp_path / "run" / "checkpoint.pth"
    earlier = load_checkpoint(path)
    del earlier["samples"]
    torch.save(earlier, path)
    with pytest.raises(SchemaError, match=r"a run on another store, .* identity [0-9a-f]{32}"):
        train(config_for(other, tmp_path / "run", steps=1, resume=str(path)))
    train(grid_config(grids, tmp_path / "2k", steps=1))
    for other, problem in (
        (write_grids(tmp_path / "fewer.zarr", 18), "2 of 20 crops are missing"),
        (write_grids(tmp_path / "wider.zarr", shape=(4, 6)), r"its crops have \(4, 6, 1\) rows"),
    ):
        with pytest.raises(SchemaError, match=problem):
            train(grid_config(other, tmp_path / "2k", steps=1))


@pytest.mark.parametrize("objective", ["dino", "contrast"])
def test_run_keeps_its_samples_when_its_store_changes(tmp_path, objective):
    cube = make_store(tmp_path, scenes=3, channels=(IR,))
    options = {"steps": 4, "objective": objective, "limit": 16, "reject": ("local_outlier",)}
    whole = train(config_for(cube, tmp_path / "whole", **options))
    first = train(config_for(cube, tmp_path / "parts", **options), progress=Stop(1))
    assert first["step"] < 4
    before = len(PatchDataset(cube, reject="local_outlier"))
    pipeline.reflag(cube, QualitySpec(max_deviation_factor=2.0))
    assert 0 < len(PatchDataset(cube, reject="local_outlier")) < before
    write_sources(tmp_path / "sources", scenes=1, start="2021-07-06T18:00")
    pipeline.preprocess(tmp_path / "sources", cube)
    train(config_for(cube, tmp_path / "parts", **options))
    ours, theirs = (metrics_of(tmp_path / name) for name in ("parts", "whole"))
    assert [r["train_loss"] for r in ours] == [r["train_loss"] for r in theirs]
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("whole", "parts"))
    assert whole["step"] == 4
    assert all(torch.equal(value, b["student"][name]) for name, value in a["student"].items())


def test_grids_of_a_run_stay_when_the_store_grows(grids, tmp_path):
    options = {"steps": 3, "log_steps": 1}
    train(grid_config(grids, tmp_path / "whole", **options))
    train(grid_config(grids, tmp_path / "parts", **options), progress=Stop(1))
    train(grid_config(write_grids(tmp_path / "grown.zarr", 24), tmp_path / "parts", **options))
    ours, theirs = (metrics_of(tmp_path / name) for name in ("parts", "whole"))
    assert [r["train_loss"] for r in ours] == [r["train_loss"] for r in theirs]


def test_run_of_another_level_is_refused(cube, grids, tmp_path):
    train(config_for(cube, tmp_path, steps=1))
    with pytest.raises(
        SchemaError, match=r"a run of level 256, but .* trains level 2k. Each level has its own `out`"
    ):
        train(grid_config(grids, tmp_path, steps=1))


def test_resume_names_a_checkpoint_of_a_run(cube, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        train(config_for(cube, tmp_path, steps=1, resume=str(tmp_path / "none.pth")))
    save_checkpoint({"teacher": {"norm.weight": torch.zeros(3)}}, tmp_path / "weights.pth")
    with pytest.raises(SchemaError, match=r"not a checkpoint of a run that can be resumed.*`init_from="):
        train(config_for(cube, tmp_path / "new", steps=1, resume=str(tmp_path / "weights.pth")))


def test_init_from_takes_weights_and_starts_a_new_run(cube, tmp_path):
    first = train(config_for(cube, tmp_path / "a", steps=3))
    second = train(config_for(cube, tmp_path / "b", steps=0, seed=9, init_from=first["checkpoint"]))
    old, new = (load_checkpoint(s["checkpoint"]) for s in (first, second))
    assert new["step"] == 0
    for name, value in old["teacher"].items():
        assert torch.equal(value, new["student"][name]), name
        assert torch.equal(value, new["teacher"][name]), name
    other_head = train(config_for(cube, tmp_path / "c", steps=0, out_dim=32, init_from=first["checkpoint"]))
    assert load_checkpoint(other_head["checkpoint"])["teacher"]["head.last_layer.weight_v"].shape == (32, 256)


def test_init_from_another_architecture_is_refused(cube, tmp_path):
    first = train(config_for(cube, tmp_path / "a", steps=0))
    with pytest.raises(SchemaError, match=r"does not fit vit_tiny: missing: .*Nothing was loaded"):
        train(
            config_for(
                cube, tmp_path / "b", arch="vit_tiny", patch_size=8, steps=0, init_from=first["checkpoint"]
            )
        )


# level 2k


def test_training_from_embeddings_takes_its_width_from_the_store(grids, tmp_path):
    summary = train(grid_config(grids, tmp_path, steps=3))
    assert (summary["level"], summary["samples"]) == ("2k", 20)
    checkpoint = load_checkpoint(summary["checkpoint"])
    assert checkpoint["model"]["name"] == "vit2k_xs"
    assert (checkpoint["model"]["in_channels"], checkpoint["model"]["image_size"]) == (12, 5)
    assert np.isfinite([checkpoint["normalization"][k] for k in ("mean", "std")]).all()
    assert checkpoint["store"]["checkpoint"] == "f" * 32
    assert np.isfinite([r["train_loss"] for r in metrics_of(tmp_path)]).all()


def test_rejected_cells_are_masked_in_attention(grids, tmp_path):
    source = open_source(grid_config(grids, tmp_path, views="area"))
    index = np.arange(16)
    views = source.draw(source.dataset.__getitems__(index), index, epoch=0)
    assert [tuple(v.x.shape) for v in views] == [(16, 12, 4, 5)] * 2 + [(16, 12, 2, 3)] * 2
    for view in views[:2]:
        assert not view.attention_mask[:, 0, 0].any()
        assert view.attention_mask.sum() == 16 * 19
        assert (view.x[:, :, 0, 0] == 0).all()


def test_interrupted_level_2k_goes_on_the_same(grids, tmp_path):
    whole = train(grid_config(grids, tmp_path / "whole", steps=4))
    train(grid_config(grids, tmp_path / "parts", steps=4), progress=Stop(1))
    train(grid_config(grids, tmp_path / "parts", steps=4))
    assert [r["train_loss"] for r in metrics_of(tmp_path / "parts")] == [
        r["train_loss"] for r in metrics_of(Path(whole["checkpoint"]).parent)
    ]


# what stops


def test_loss_that_is_not_finite_names_the_samples(cube, tmp_path, monkeypatch):
    draw = _PatchSource.draw

    def spoil(self, batch, index, epoch):
        views = draw(self, batch, index, epoch)
        where = np.flatnonzero(index == index.max())
        views[0].x[torch.from_numpy(where)] = torch.inf
        self.spoilt = self.dataset.describe(int(index.max()))
        return views

    monkeypatch.setattr(_PatchSource, "draw", spoil)
    with pytest.raises(
        TrainingError, match=r"step 1: the loss is nan; expected a finite number.*crop \d+, row"
    ) as e:
        train(config_for(cube, tmp_path, steps=5))
    assert "process 0, 1)" in str(e.value)
    assert "Last checkpoint: none" in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("reflectivity",)}, r"no channel 'reflectivity'; expected some of"),
        (
            {"arch": "vit2k_xs"},
            r"`arch`: vit2k_xs is not for .*, which holds patches, level 256; expected one of",
        ),
        ({"arch": "vit_huge"}, r"`arch`: got 'vit_huge'; expected one of"),
        (
            {"arch": "resnet50"},
            r"`arch`: got 'resnet50'; .* Networks of torchvision and torch.hub \(xcit\) are not",
        ),
        ({"batch_size_per_gpu": 500}, r"clean patches \(of all channels\), fewer than one step of 500"),
        ({"time": ("2001-01-01", "2001-02-01")}, r"no crop in the time asked for"),
        ({"bbox": (0, 0, 1, 1)}, r"no clean patch of"),
        ({"global_size": 48}, r"`global_size`: a view covers 48 px, but a field has 32"),
        ({"local_size": 20}, r"`local_size`: 20 px are not whole tokens of 8 px"),
        ({"zoom": (0.0, 1.0)}, r"`zoom`: got 0.0 1.0; expected 0 < LOW <= HIGH"),
        ({"image_size": 20}, r"`image_size`: 20 px are not whole tokens of 8 px"),
        ({"coarsen": 3}, r"coarsen: got 3; expected a divisor of the patch, 32 px"),
        ({"device": "cuda"}, r"device: 'cuda' asked for but torch sees no GPU"),
    ],
)
def test_training_refuses_in_words(cube, tmp_path, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        train(config_for(cube, tmp_path / "run", steps=1, **options))
    assert not (tmp_path / "run").exists()


def test_store_that_cannot_be_trained_from_is_refused(cube, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such store"):
        store_level(str(tmp_path / "none.zarr"))
    unfinished = tmp_path / "unfinished.zarr"
    shutil.copytree(cube, unfinished)
    (unfinished / "zarr.json").unlink()
    with pytest.raises(
        SchemaError, match=r"the store is not finished\. Run the command that builds it again"
    ):
        store_level(str(unfinished))
    above = write_grids(tmp_path / "embeddings_2k.zarr", level="2k")
    with pytest.raises(SchemaError, match="holds embeddings of level 2k, above which no level trains"):
        store_level(str(above))


def test_level_2k_refuses_in_words(grids, tmp_path):
    with pytest.raises(SchemaError, match="level 2k needs at least 16"):
        train(grid_config(grids, tmp_path / "a", batch_size_per_gpu=8, steps=1))
    with pytest.raises(SchemaError, match=r"vit_small is not for .*, which holds embeddings, level 2k"):
        train(grid_config(grids, tmp_path / "a", arch="vit_small", steps=1))
    few = write_grids(tmp_path / "few.zarr", crops=6)
    with pytest.raises(SchemaError, match=r"6 grids \(crops x channels\), fewer .* add scenes or channels"):
        train(grid_config(few, tmp_path / "a", steps=1))
    small = write_grids(tmp_path / "small.zarr", shape=(3, 5))
    with pytest.raises(SchemaError, match="grids are too small"):
        train(grid_config(small, tmp_path / "a", steps=1))


# monitors


def test_monitor_keeps_the_latest_features():
    monitor = Monitor(2, queue=4)
    for k in range(3):
        monitor.add(torch.full((6, 2), float(k)), views=2)  # three samples a step
    assert sorted(monitor._queue[:, 0].tolist()) == [1.0, 2.0, 2.0, 2.0]


def test_monitor_warns_of_collapse_once_it_lasts(caplog):
    monitor, caplog.handler.level = Monitor(4), logging.WARNING
    features = torch.ones(16, 4)
    monitor.add(features, views=2)
    loss = DINOLoss(8, 4, 0.04, 0.04, 0, 1)
    record = monitor.describe(features, 2) | {"train_loss": math.log(8)}
    record |= monitor.describe_targets(torch.zeros(16, 8), loss.center, 0.04, math.log(8))
    assert monitor.warn(record, 1) == []
    messages = monitor.warn(record, 2)
    assert len(messages) == 2
    assert "all features are nearly alike" in caplog.text
    assert "uniform target and the loss stays at ln K" in caplog.text
    assert monitor.warn(record, 3) == []
    one = record | {"teacher_kl_to_uniform": 2.0, "prototypes_used": 1.0}
    monitor.warn(one, 4)
    assert "the same one prototype" in monitor.warn(one, 5)[0]


def test_monitor_finds_nothing_wrong_with_healthy_features():
    monitor = Monitor(16)
    features = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    monitor.add(features, views=2)
    record = monitor.describe(features, 2)
    assert record["view_retrieval"] == 1.0
    assert record["feature_std"] == pytest.approx(1.0, abs=0.05)
    assert record["feature_cosine"] == pytest.approx(0.0, abs=0.05)
    flat = monitor.describe(
        features[:, :1] * torch.ones(16), 2
    )  # of one dimension, yet samples differ in them
    assert (
        monitor.warn(record, 1)
        == monitor.warn(record, 2)
        == monitor.warn(flat, 3)
        == monitor.warn(flat, 4)
        == []
    )


# programs


def test_script_prints_the_checkpoint_alone(cube, tmp_path):
    argv = [
        sys.executable,
        str(PROJECT / "training" / "dino.py"),
        "--store",
        str(cube),
        "--out",
        str(tmp_path / "run"),
    ]
    argv += ["--steps", "2", "--channels", IR]
    argv += [w for k, v in TINY.items() for w in ("--" + k, str(v))]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'checkpoint.pth'}\n"
    assert "step 2 of 2" in done.stderr
