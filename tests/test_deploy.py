"""The scripts of deploy/hpc from end to end with stand-ins for the schedulers; how the package installs and starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from small_data import write_sources

import gridrad_cube
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.store import store_info

PROJECT = Path(__file__).resolve().parents[1]
HPC = PROJECT / "deploy" / "hpc"
STEPS = 2
SETTINGS = {
    "GRIDRAD_SITE": "polaris", "GRIDRAD_FILESYSTEMS": "home:eagle", "GRIDRAD_ACCOUNT": "storms",
    "GRIDRAD_QUEUE": "debug", "GRIDRAD_NODES": "2", "GRIDRAD_WALLTIME": "0:10:00", "GRIDRAD_RUNTIME": "venv",
    "GRIDRAD_CORES": "1", "GRIDRAD_GPUS": "0", "GRIDRAD_INTERFACE": "lo", "GRIDRAD_PREPROCESS": "(--patch 32)",
    "GRIDRAD_TRAIN": "(--preset none --channels ir_brightness_temperature --arch vit_demo --global-size 24 "
    "--local-size 16 --local-crops-number 2 --head-hidden-dim 32 --out-dim 64 --batch-size-per-gpu 4 "
    "--warmup-epochs 0 --warmup-teacher-temp-epochs 0 --freeze-last-layer 0 --precision fp32 --log-steps 1 "
    f"--steps {STEPS})",
}  # fmt: skip

pytestmark = [
    pytest.mark.timeout(
        900
    ),  # each step of a job starts several interpreters, on machines that others use too
    pytest.mark.skipif(
        sys.platform != "linux" or not all(shutil.which(tool) for tool in ("bash", "awk", "realpath")),
        reason="the scripts are for Linux with bash and coreutils",
    ),
]


class Machine:
    """A folder that stands for a machine with a scheduler: its users' settings, its jobs, their logs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.state = folder, folder / "work", folder / "state"
        for name in ("state", "home", "venv/bin", "scratch"):
            (folder / name).mkdir(parents=True)
        python = Path(sys.executable).parent
        (folder / "venv/bin/activate").write_text(f"export PATH={python}:$PATH PYTHONPATH={PROJECT}\n")
        self.environment = {
            "PATH": f"{PROJECT / 'tests' / 'stand_ins'}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "STAND_INS": str(self.state),
        }

    def settings(self, *, without: str = "", **changes: str) -> Path:
        values = SETTINGS | {
            "GRIDRAD_WORK": self.work, "GRIDRAD_SOURCES": f"({self.folder / 'sources'})",
            "GRIDRAD_VENV": self.folder / "venv", "GRIDRAD_SCRATCH": self.folder / "scratch",
        } | changes  # fmt: skip
        values.pop(without, None)
        path = self.folder / "settings.sh"
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        return path

    def run(
        self, *command: str | Path, timeout: float = 600, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command], env=self.environment | more, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip

    def submit(self, settings: Path, *steps: str, **more: str) -> str:
        """Submit; what went to standard output. Fails with the jobs' logs if a job did."""
        done = self.run(HPC / "submit.sh", settings, *steps, **more)
        logs = "\n".join(f"== {p}\n{p.read_text()}" for p in sorted(self.work.glob("logs/*.[Ol]*")))
        assert done.returncode == 0, done.stderr + logs
        statuses = {p.name: p.read_text().strip() for p in self.state.glob("*.status")}
        assert set(statuses.values()) == {"0"}, f"{statuses}\n{logs}"
        return done.stdout

    def calls(self) -> list[str]:
        return (self.state / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    (tmp_path / "sources").mkdir()
    return machine


@pytest.fixture(scope="module")
def polaris(tmp_path_factory):
    """A machine with PBS on which the road was gone to level 256: cube, run, embeddings."""
    machine = Machine(tmp_path_factory.mktemp("polaris"))
    write_sources(machine.folder / "sources", scenes=2)
    said = machine.submit(machine.settings(GRIDRAD_STAGE="yes"), "preprocess", "train", "embed")
    assert said.splitlines() == ["preprocess: 0.stand-in", "train: 1.stand-in", "embed: 2.stand-in"]
    return machine


def test_pbs_from_files_to_embeddings(polaris, tmp_path):
    recipe = Recipe(tile=TileSpec(patch=32))
    gridrad_cube.preprocess(polaris.folder / "sources", tmp_path / "here.zarr", recipe=recipe)
    cube = polaris.work / "patches.zarr"
    assert store_info(cube)["identity"] == store_info(tmp_path / "here.zarr")["identity"]
    with xr.open_zarr(polaris.work / "embeddings.zarr", chunks=None) as embeddings:
        assert dict(embeddings.embedding.sizes) == {
            "crop": 2, "channel": 1, "row": 3, "col": 5, "feature": 192
        }  # fmt: skip
        assert not embeddings.embedding.isnull().any()
    lines = (polaris.work / "runs/256/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == STEPS


def test_pbs_asks_for_what_polaris_wants(polaris):
    calls = polaris.calls()
    submitted = [call for call in calls if call.startswith("qsub")]
    for call in submitted:
        assert "-A storms -q debug -l walltime=0:10:00 -l select=2:system=polaris" in call
        assert "-l filesystems=home:eagle" in call
    assert "-W depend=afterok:0.stand-in" in submitted[1]
    assert "-W depend=afterok:1.stand-in" in submitted[2]
    assert calls.count("module load conda") == calls.count("conda activate base") == 3
    started = [call for call in calls if call.startswith("mpiexec -n 2 --ppn 1 --depth 1 --cpu-bind depth")]
    assert [re.search(r"dask worker|stage\.sh|train|embed", c).group() for c in started] == [
        "dask worker", "stage.sh", "train", "embed"
    ]  # fmt: skip


def test_training_reads_the_staged_copy(polaris):
    (copy,) = polaris.folder.glob("scratch/gridrad-cube-*/patches.zarr")
    assert (copy / "zarr.json").read_bytes() == (polaris.work / "patches.zarr/zarr.json").read_bytes()
    config = json.loads((polaris.work / "runs/256/config.json").read_text())
    assert config["store"] == str(copy)


def test_key_of_dasks_connections_goes_with_the_job(polaris):
    assert list((polaris.work / "jobs").iterdir()) == []
    log = (polaris.work / "logs/0.stand-in.OU").read_text()
    assert re.search(r"preprocess: 2 workers at tls://127\.0\.0\.1:\d+", log)


def test_slurm_saves_at_the_signal_queues_again_and_goes_on(polaris, tmp_path):
    machine = Machine(tmp_path)
    image = tmp_path / "gridrad-cube.sif"
    image.touch()
    metrics = machine.work / "runs/256/metrics.jsonl"
    settings = machine.settings(
        GRIDRAD_SITE="generic", GRIDRAD_RUNTIME="apptainer", GRIDRAD_IMAGE=str(image),
        GRIDRAD_CUBE=str(polaris.work / "patches.zarr"), GRIDRAD_NODES="1",
        GRIDRAD_BINDS="(/opt)",
        GRIDRAD_TRAIN=SETTINGS["GRIDRAD_TRAIN"].replace(f"--steps {STEPS}", "--steps 80"),
    )  # fmt: skip
    environment = {
        "PATH": f"{machine.environment['PATH'].split(':')[0]}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
    }
    machine.submit(settings, "train", STAND_IN_SIGNAL_WHEN=str(metrics), **environment)
    (log,) = machine.work.glob("logs/*.log")
    text = log.read_text()
    assert text.count("train: job 0 on 1 node(s)") == 2, text
    assert text.count("train: stopped by USR1; the same job resumes from here") == 1
    # Every step once: the second run resumed where the first had stopped.
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 81))
    (submitted,) = (call for call in machine.calls() if call.startswith("sbatch"))
    assert "-A storms -p debug -t 0:10:00 -N 1" in submitted
    assert f"apptainer exec --bind {machine.work}" in machine.calls()[1]
    assert f"--bind /opt --bind {machine.folder / 'scratch'} {image}" in machine.calls()[1]


def test_same_step_again_waits_for_any_end_and_level_2k_is_told(machine):
    said = machine.run(
        HPC / "submit.sh", "-n", machine.settings(), "train", "train", "embed", "train-2k"
    ).stdout
    first, again, embed, above = said.splitlines()
    assert "depend" not in first
    assert "depend=afterany:JOB" in again
    assert "depend=afterok:JOB" in embed
    assert above.endswith(f"GRIDRAD_STEP=train-2k {HPC}/pbs/train.pbs")


@pytest.mark.parametrize(
    "name",
    ["GRIDRAD_SITE", "GRIDRAD_ACCOUNT", "GRIDRAD_QUEUE", "GRIDRAD_WORK", "GRIDRAD_SOURCES", "GRIDRAD_RUNTIME",
     "GRIDRAD_VENV", "GRIDRAD_NODES", "GRIDRAD_WALLTIME", "GRIDRAD_FILESYSTEMS"],
)  # fmt: skip
def test_missing_setting_is_refused_before_anything_is_queued(machine, name):
    done = machine.run(HPC / "submit.sh", machine.settings(without=name), "preprocess")
    assert done.returncode == 2
    assert f"submit.sh: {name} is not set: " in done.stderr
    assert str(machine.folder / "settings.sh") in done.stderr
    assert not (machine.state / "calls").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"GRIDRAD_SITE": "nowhere"}, r"GRIDRAD_SITE: no file .*sites/nowhere\.sh"),
        ({"GRIDRAD_RUNTIME": "docker"}, "GRIDRAD_RUNTIME: got 'docker'; expected venv or apptainer"),
        ({"GRIDRAD_WORK": "work"}, "GRIDRAD_WORK: got 'work'; expected an absolute path"),
        ({"GRIDRAD_SOURCES": "(/no/such)"}, "GRIDRAD_SOURCES: no file or folder /no/such"),
        ({"GRIDRAD_RUNTIME": "apptainer"}, "GRIDRAD_IMAGE is not set"),
    ],
)
def test_wrong_setting_is_refused(machine, changes, message):
    done = machine.run(HPC / "submit.sh", machine.settings(**changes), "preprocess")
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize("script", sorted(p.relative_to(HPC) for p in HPC.glob("*/*.[ps]b*")), ids=str)
def test_job_script_alone_says_what_it_needs(machine, script):
    done = machine.run("bash", HPC / script)
    assert done.returncode != 0
    assert "GRIDRAD_HPC: is not set" in done.stderr
    done = machine.run("bash", HPC / script, GRIDRAD_HPC=str(HPC))
    assert done.returncode == 2
    assert "GRIDRAD_SETTINGS is not set" in done.stderr
    done = machine.run("bash", HPC / script, GRIDRAD_HPC=str(HPC), GRIDRAD_SETTINGS=str(machine.settings()))
    assert done.returncode == 2
    assert "this is no job: neither PBS_JOBID nor SLURM_JOB_ID is set" in done.stderr


def test_settings_as_they_come_are_refused(machine):
    shutil.copy(HPC / "settings.example.sh", machine.folder / "mine.sh")
    done = machine.run(HPC / "submit.sh", machine.folder / "mine.sh", "train")
    assert done.returncode == 2
    assert "GRIDRAD_SITE is not set" in done.stderr


@pytest.mark.parametrize(
    ("status", "host", "released"),
    [("0", "node-a", True), (None, "node-a", False), ("0", "node-b", False)],
    ids=["over", "still running", "another's"],
)
def test_claim_of_a_job_that_is_over_is_taken_away(machine, status, host, released):
    store = machine.work / "patches.zarr"
    lease = store / "_build/lease.json"
    lease.parent.mkdir(parents=True)
    lease.write_text(json.dumps({"host": host, "pid": 7, "since": 0, "nonce": "0"}))
    (machine.work / "logs").mkdir()
    (machine.work / "logs/preprocess.holder").write_text(f"4.stand-in node-a {store}\n")
    if status is not None:
        (machine.state / "4.stand-in.status").write_text(status)
    for tool in ({"PBS_JOBID": "5.stand-in"}, {"SLURM_JOB_ID": "5.stand-in"}):
        (machine.work / "logs/preprocess.holder").write_text(f"4.stand-in node-a {store}\n")
        lease.write_text(json.dumps({"host": host, "pid": 7, "since": 0, "nonce": "0"}))
        done = machine.run(
            "bash", "-euc", f'. {HPC}/env.sh; JOB=5.stand-in; release_claim "$1"', "bash", store,
            GRIDRAD_WORK=str(machine.work), GRIDRAD_STEP="preprocess", **tool,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert lease.exists() != released
        assert (machine.work / "logs/preprocess.holder").read_text().startswith("5.stand-in ")


@pytest.mark.parametrize(
    ("environment", "gpu"),
    [
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "PALS_LOCAL_RANKID": "1", "GRIDRAD_GPU_ORDER": "reversed"}, "2"),
        ({"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1"}, "1"),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "2,7"},
            "7",
        ),
    ],
    ids=["PALS, reversed", "PMI", "Slurm, some GPUs"],
)
def test_every_rank_gets_a_gpu_and_its_number(machine, environment, gpu):
    show = 'echo "$CUDA_VISIBLE_DEVICES $*"'
    command = (HPC / "rank.sh", "bash", "-c", show, "bash", "--part", "@RANK@", "@SIZE@")
    assert machine.run(*command, GRIDRAD_GPUS="4", **environment).stdout == f"{gpu} --part 5 8\n"


def test_rank_without_a_launcher_is_refused(machine):
    done = machine.run(HPC / "rank.sh", "true")
    assert done.returncode == 2
    assert "neither mpiexec (PMI_RANK) nor srun" in done.stderr


def test_stage_copies_once_and_anew_after_a_change(machine):
    store, scratch = machine.folder / "a store.zarr", machine.folder / "scratch/mine"
    (store / "x/c").mkdir(parents=True)
    (store / "_build").mkdir()
    (store / "_build/plan").touch()
    done = machine.run(HPC / "stage.sh", store, scratch)
    assert done.returncode == 2
    assert "no finished store" in done.stderr
    for text in ("one", "two"):
        (store / "zarr.json").write_text(text)
        (store / "x/c/0").write_text(text)
        assert "staged" in machine.run(HPC / "stage.sh", store, scratch).stdout
        copied = sorted(p.relative_to(scratch) for p in scratch.rglob("*") if p.is_file())
        assert copied == [Path("a store.zarr/x/c/0"), Path("a store.zarr/zarr.json")]
        assert (scratch / "a store.zarr/x/c/0").read_text() == text
        assert machine.run(HPC / "stage.sh", store, scratch).stdout == ""


# ---- the package itself --------------------------------------------------------------------------------------------


def test_python_m_is_the_command(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "gridrad_cube", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.endswith(f"version {gridrad_cube.__version__}\n")


def test_show_versions_names_python_and_what_is_needed(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    gridrad_cube.show_versions()
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["python"].startswith(sys.version.split()[0])
    assert shown["gridrad-cube"] == gridrad_cube.__version__
    assert shown["OMP_NUM_THREADS"] == "7"
    assert {"numpy", "xarray", "zarr", "dask", "torch", "matplotlib"} <= set(shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    from click.testing import CliRunner

    from gridrad_cube.cli import cli

    words = {"COMP_WORDS": "gridrad-cube pre", "COMP_CWORD": "pre" if shell == "fish" else "1"}
    environment = {"_GRIDRAD_CUBE_COMPLETE": f"{shell}_complete", **words}
    done = CliRunner().invoke(cli, [], prog_name="gridrad-cube", env=environment)
    assert "preprocess" in done.output
    assert "reflag" not in done.output


def test_wheel_runs_from_another_folder(tmp_path):
    """Everything that the package reads lies in the wheel, and nothing of the tests and scripts beside it."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building a wheel without a network needs setuptools"
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns(
        ".git", ".venv*", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    ))  # fmt: skip
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(pip + build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=120
    )
    assert sorted(p.name for p in target.iterdir() if "dist-info" not in p.name) == ["bin", "gridrad_cube"]
    code = (
        "import gridrad_cube, gridrad_cube.training as t; from pathlib import Path;"
        f"assert Path(gridrad_cube.__file__).is_relative_to({str(target)!r});"
        "assert (Path(gridrad_cube.__file__).parent / 'py.typed').exists();"
        "print(*t.list_presets()); t.load_config(preset='small', level='256')"
    )
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= {"demo", "predecessor", "small"}
