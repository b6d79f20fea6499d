"""The training command: in this process, in a separate process, or as two ranks that meet on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from gridrad_cube.cli import cli
from gridrad_cube.cli.training import _configure, train
from gridrad_cube.training import Config

PROJECT = Path(__file__).resolve().parents[1]


def parse_config(argv: list[str]) -> Config:
    """The configuration that a command line asks for."""
    return _configure(train.make_context("train", list(argv)).params)


def invoke_train(*argv: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["train", *argv])


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The records of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Stop:
    """Send this process a signal after a step: for ``train(..., progress=)``."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def __call__(self, step: int, steps: int, record: Any) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command(store: Path, out: Path, **options: Any) -> list[str]:
    """The training command with these options."""
    argv = [sys.executable, "-m", "gridrad_cube", "train", "--store", str(store), "--out", str(out)]
    return argv + [word for name, value in options.items() for word in (f"--{name}", str(value))]


def train_by_two(store: Path, out: Path, **options: Any) -> list[str]:
    """Train by two ranks as torchrun starts them, to the end; what each of them wrote to stdout."""
    world = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            command(store, out, **options), env=world | {"RANK": str(rank), "OMP_NUM_THREADS": "1"}, cwd=PROJECT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    return [out for out, _ in outputs]
