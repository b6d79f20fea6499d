"""A campaign of faults: kills, full disks, damage, two writers at once, hostile files, and what follows from each.

    python benchmarks/faults.py --out benchmarks/results/faults.md
    python benchmarks/faults.py --only damage --trials 500 --seed 7

Every class of faults runs a number of trials on small stores of synthetic scenes. A trial is *detected* if a command
or `verify` reports the fault, *recovered* if the store is at the end that of an undisturbed run, and *lost or wrong* if
a reader gets other values, a command ends with a traceback or hangs, or the store cannot be restored. Exit status 1 if
anything is lost or wrong. The seed determines what is tried; the moments of kills depend on the machine as well.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import numpy as np
import psutil
import torch

import gridrad_cube
from gridrad_cube import models, pipeline, store, synthetic
from gridrad_cube.schema import Flag, QualitySpec, Recipe, TileSpec
from gridrad_cube.storage import Files

IR, VISIBLE = "ir_brightness_temperature", "visible_reflectance"
SECRET = "never-to-be-shown"
#: After which a command counts as one that hangs.
LIMIT_S = 120.0
#: Errors that name what is wrong; any other is an error of the program.
EXPECTED = (ValueError, OSError)
TRAIN = (  # noqa: SIM905
    "--preset none --arch vit_demo --global_size 24 --local_size 16 --local_crops_number 2 --head_hidden_dim 32 "
    "--out_dim 64 --batch_size_per_gpu 8 --warmup_epochs 0 --warmup_teacher_temp_epochs 0 --freeze_last_layer 0 "
    "--precision fp32 --save-minutes 0.005 --log_steps 1"
).split()
#: Children are forked from a process that has imported the package, and start at once.
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass
class Row:
    """One line of the table."""

    name: str
    tried: int = 0
    detected: int = 0
    recovered: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, *, detected: bool = False, recovered: bool = False, wrong: str = "") -> None:
        """Count one trial."""
        self.tried += 1
        self.detected += detected
        self.recovered += recovered
        if wrong:
            self.wrong.append(f"{self.name}, {what}: {wrong}")


# --- commands in child processes


def run_command(
    arguments: Sequence[str], log: str, file_limit: int | None = None, full_after: int | None = None
) -> None:
    """Run the command line in this process, which is a child; a disk may be full after a number of writes."""
    os.setsid()
    os.environ["TMPDIR"] = str(Path(log).parent)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if full_after is not None:
        fill_disk(full_after)
    sys.argv = ["gridrad-cube", *arguments]
    from gridrad_cube.cli import main

    main()


def fill_disk(after: int) -> None:
    """Let every synchronization of a file fail after a number of them, as on a disk that is full."""
    done, real = iter(range(after)), os.fsync

    def fsync(descriptor: int) -> None:
        if next(done, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    os.fsync = fsync


class Command:
    """The command line in a child process with its own session and log."""

    def __init__(self, arguments: Sequence[object], log: Path, **faults: int | None) -> None:
        self.log = log
        self.log.unlink(missing_ok=True)
        given = [str(argument) for argument in arguments]
        self.process = PROCESSES.Process(target=run_command, args=(given, str(log)), kwargs=faults)
        self.process.start()

    def finish(self) -> int | None:
        """Wait; the exit status, or None of a command that hangs."""
        self.process.join(LIMIT_S)
        if self.process.exitcode is None:
            self.kill()
            return None
        return self.process.exitcode

    def kill(self) -> None:
        """Kill the process and its children, and wait until nothing of them is left."""
        group = self.process.pid
        while True:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                break
            self.process.join(0.01)
        self.process.join()

    @property
    def output(self) -> str:
        """What the command printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


# --- what a store holds


def contents(place: Path | str) -> dict[str, object]:
    """All values and attributes that a reader gets from a store, or the losses of a training."""
    if (path := Path(place) / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {"losses": [(line["step"], line.get("train_loss")) for line in lines]}
    kind = Files(place).read_json("zarr.json")["attributes"]["gridrad_cube"]["kind"]
    opened = gridrad_cube.open_embeddings(place) if "embedding" in kind else gridrad_cube.open_packed(place)
    found: dict[str, object] = {
        name: (v.dtype.str, np.asarray(v.values).tolist() if v.dtype.kind in "OTU" else v.values.tobytes())
        for name, v in opened.variables.items()
    }
    return found | {key: value for key, value in opened.attrs.items() if key != "history"}


def look(place: Path | str, *states: object) -> str:
    """Whether a store is in one of some states, or refused: 'equal', 'refused', or what is wrong."""
    try:
        return "equal" if contents(place) in states else "a reader gets other values"
    except EXPECTED:
        return "refused"


@dataclass(frozen=True)
class Writer:
    """A command that writes, the store or folder that it begins with, and the one that it ends with."""

    name: str
    base: Path | None
    arguments: tuple[object, ...]
    before: object
    after: object
    seconds: float


class Campaign:
    """The stores that all classes of faults begin with, under one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.place = folder / "trial"
        self.early, self.late = folder / "early", folder / "late"
        options: dict[str, Any] = {"scenes": 3, "shape": (64, 96), "interval": "10min"}
        self.sources = [
            *synthetic.write_scenes(self.early, start="2021-07-05T15:00", **options),
            *synthetic.write_scenes(self.late, start="2021-07-06T15:00", **options),
        ]
        self.one, self.two = folder / "one.zarr", folder / "two.zarr"
        self.embedded = folder / "embedded.zarr"
        self.run("preprocess", self.early, "--store", self.one, "--patch", 32)
        self.run("preprocess", self.early, self.late, "--store", self.two, "--patch", 32)
        self.run(*self.embed(self.embedded))

    def embed(self, out: Path | str, *more: object) -> tuple[object, ...]:
        """Arguments of a command that embeds."""
        return ("embed", "--store", self.two, "--model", "descriptor", "--coarsen", 1, "--out", out, *more)

    def command(self, *arguments: object, **faults: int | None) -> Command:
        """Start a command."""
        return Command(arguments, self.folder / "log.txt", **faults)

    def run(self, *arguments: object) -> Command:
        """Run a command that nothing disturbs."""
        command = self.command(*arguments)
        if status := command.finish():
            raise SystemExit(f"{arguments[0]} ended with status {status}:\n{command.output[-3000:]}")
        return command

    def begin(self, base: Path | None) -> Path:
        """A new copy of a store, or nothing."""
        shutil.rmtree(self.place, ignore_errors=True)
        if base is not None:
            shutil.copytree(base, self.place)
        return self.place

    def writers(self) -> Iterator[Writer]:
        """Every command that writes, measured once."""
        place, old = self.place, self.folder / "npz"
        old.mkdir(exist_ok=True)
        wave = np.sin(np.arange(128) / 9)[:, None] * np.cos(np.arange(128) / 7)
        crop = np.stack([np.rint(26500 + 2000 * wave), np.rint(4000 - 1500 * wave)]).astype(np.float32)
        crop *= np.float32(0.01)
        patches = crop.reshape(2, 8, 16, 8, 16).transpose(1, 3, 0, 2, 4)
        for number in range(3):
            name = f"NASALARC_GOES16_CONVECTION_DETECTION_20210705_1{number}00.npz"
            np.savez(old / name, crop=crop, patches=patches)
        source = self.sources[0].name
        broken = self.folder / "broken.zarr"
        shutil.copytree(self.two, broken, dirs_exist_ok=True)
        for shard in (broken / IR).glob("c.*"):
            shard.unlink()
        several = "--workers", 2
        for name, base, arguments in (
            ("preprocess", None, ("preprocess", self.early, "--store", place, "--patch", 32, *several)),
            ("extend", self.one, ("preprocess", self.early, self.late, "--store", place, "--patch", 32)),
            ("reflag", self.two, ("reflag", place, "--low-coverage", 0.9)),
            ("withdraw", self.two, ("withdraw", place, source)),
            ("repair", broken, ("verify", place, "--repair", "--source-root", self.early,
                                "--source-root", self.late)),
            ("embed", None, self.embed(place)),
            ("convert", None, ("convert", "from-npz", old, place)),
            ("train", None, ("train", "--store", self.two, "--out", place, *TRAIN, "--steps", 8)),
        ):  # fmt: skip
            self.begin(base)
            try:
                before: object = contents(place)
            except EXPECTED:
                before = None
            command = self.command(*arguments)
            start = self.wait_for_lease(command)
            command.finish()
            if command.process.exitcode and name != "repair":  # which ends with 1, as it found damage
                raise SystemExit(f"{name} failed:\n{command.output[-3000:]}")
            yield Writer(name, base, arguments, before, contents(place), time.perf_counter() - start)

    def wait_for_lease(self, command: Command) -> float:
        """Wait until a command writes, or has ended; the time of it."""
        while command.process.is_alive() and not any(self.place.rglob("lease*.json")):
            time.sleep(0.001)
        return time.perf_counter()

    def mend(self, place: Path | str, base: Path) -> None:
        """Restore a damaged store, by the means that its kind has."""
        if base == self.embedded:
            embedding = {"model": "descriptor", "coarsen": 1}
            gridrad_cube.embed(self.two, out=place, progress=False, **embedding)
        else:
            pipeline.repair(place, [self.early, self.late])


def judge_resumed(campaign: Campaign, writer: Writer, row: Row, what: str, *, detected: bool) -> None:
    """Look at a store after a fault, run its writer again, and count what follows."""
    seen = "equal"
    if writer.name != "train":
        states = [state for state in (writer.before, writer.after) if state is not None]
        seen = look(campaign.place, *states)
        if seen == "refused" and writer.before is None:
            seen = "equal"  # of a first build there may be nothing yet
    again = campaign.command(*writer.arguments)
    status = again.finish()
    end = look(campaign.place, writer.after)
    left = [] if writer.name == "train" else store.verify(campaign.place)
    traces = "Traceback" in again.output
    recovered = end == "equal" and not left and not traces and status is not None
    wrong = "" if seen == "equal" else f"after the fault: {seen}"
    if not recovered:
        wrong += f"; at the end: {end}, status {status}, {len(left)} objects damaged: {again.output[-400:]!r}"
    row.add(what, detected=detected, recovered=recovered, wrong=wrong)


# --- the classes of faults


def kills(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Kill every writer at random moments after it took its lease, and run it again."""
    for writer in campaign.writers():
        row = Row(f"kill: {writer.name}")
        for _ in range(trials):
            campaign.begin(writer.base)
            command = campaign.command(*writer.arguments)
            campaign.wait_for_lease(command)
            moment = campaign.random.uniform(0, writer.seconds)
            command.process.join(moment)
            killed = command.process.is_alive()
            command.kill()
            judge_resumed(campaign, writer, row, f"after {moment:.3f} s", detected=killed)
        yield row


def disks(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Fill the disk at a random moment: no more space, or a limit on the size of a file."""
    for writer in campaign.writers():
        row = Row(f"full disk: {writer.name}")
        for number in range(trials):
            campaign.begin(writer.base)
            fault: dict[str, int | None]
            if number % 2:
                fault = {"file_limit": int(2 ** campaign.random.uniform(6, 14))}
            else:
                fault = {"full_after": campaign.random.randrange(12)}
            command = campaign.command(*writer.arguments, **fault)
            status, text = command.finish(), command.output
            judge_resumed(campaign, writer, row, str(fault), detected=bool(status))
            if status is None or "Traceback" in text:
                row.wrong.append(f"{row.name}, {fault}: status {status}: {text[-400:]!r}")
        yield row


def kinds_of(keys: Sequence[str]) -> dict[str, list[str]]:
    """Keys of a store by the kind of object."""
    found: dict[str, list[str]] = {}
    for key in keys:
        kind = re.sub(r"(^|/)c(\.[\d.]+)?$", "/chunk", key)
        found.setdefault(re.sub(r"[0-9a-f]{12,}|\d{4,}", "N", kind), []).append(key)
    return found


def harm(files: Files, key: str, how: str, rng: random.Random) -> None:
    """Damage one object."""
    data = bytearray(files.read(key))
    if how == "delete" or not data:
        files.remove(key)
        return
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    files.write(key, bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(how, len(data))]))


def damage_one(campaign: Campaign, place: Path | str, base: Path, key: str, how: str, row: Row) -> None:
    """Damage an object, read, verify, restore, and read again."""
    reference = contents(place)
    harm(Files(place), key, how, campaign.random)
    seen = look(place, reference)
    found = len(store.verify(place))
    try:
        campaign.mend(place, base)
        problem = ""
    except EXPECTED as error:
        problem = f"; it is not restored: {error}"
    end = look(place, reference)
    left = len(store.verify(place))
    recovered = end == "equal" and not left
    wrong = seen if seen not in ("equal", "refused") else ""
    wrong += "" if recovered else f"; at the end: {end}, {left} objects damaged{problem}"
    wrong += "" if found or seen == "refused" else "; verify does not find it"
    row.add(f"{how} {key}", detected=bool(found) or seen == "refused", recovered=recovered, wrong=wrong)


def damage(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Delete, flip, cut and empty each kind of object of a cube and of embeddings."""
    for name, base in (("cube", campaign.two), ("embeddings", campaign.embedded)):
        row = Row(f"damage: {name}")
        kinds = kinds_of(Files(base).below())
        cases = [(kind, how) for kind in kinds for how in ("delete", "flip", "cut", "empty")]
        campaign.random.shuffle(cases)
        for kind, how in cases[:trials]:
            key = campaign.random.choice(kinds[kind])
            damage_one(campaign, campaign.begin(base), base, key, how, row)
        yield row


def buckets(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Damage objects of a store in a bucket."""
    row = Row("damage: cube in a bucket")
    with bucket() as address:
        for number in range(trials):
            place = f"{address}/{number}.zarr"
            files = Files(place)
            for key in Files(campaign.two).below():
                files.write(key, Files(campaign.two).read(key))
            key, how = (
                campaign.random.choice(files.below()),
                campaign.random.choice(("delete", "flip", "cut")),
            )
            damage_one(campaign, place, campaign.two, key, how, row)
    yield row


@contextmanager
def bucket() -> Iterator[str]:
    """A bucket of a server that speaks S3, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET,
    }  # fmt: skip
    try:
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/faults", method="PUT")).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield "s3://faults"
    finally:
        server.kill()
        server.wait()


def writers(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Start each writer twice at the same time while a reader reads."""
    for writer in campaign.writers():
        if writer.name == "train":
            continue
        row = Row(f"two writers: {writer.name}")
        for _ in range(trials):
            campaign.begin(writer.base)
            both = [Command(writer.arguments, campaign.folder / f"log{i}.txt") for i in range(2)]
            seen, stop = set(), threading.Event()
            states = [state for state in (writer.before, writer.after) if state is not None]

            def read(seen=seen, stop=stop, states=states) -> None:
                while not stop.wait(0.02):
                    seen.add(look(campaign.place, *states))

            reader = threading.Thread(target=read)
            reader.start()
            status = [command.finish() for command in both]
            stop.set()
            reader.join()
            judge_resumed(campaign, writer, row, "two at once", detected=any(status))
            text = "".join(command.output for command in both)
            if None in status or "Traceback" in text or "a reader gets other values" in seen:
                row.wrong.append(f"{row.name}: status {status}, readers: {seen}, {text[-400:]!r}")
        yield row


def fuzz(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, blank or repeat some bytes."""
    out = bytearray(data)
    where, length = rng.randrange(len(out)), rng.randrange(1, 200)
    how = rng.choice(("flip", "flip", "cut", "blank", "ones", "repeat"))
    if how == "flip":
        for _ in range(rng.randrange(1, 20)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del out[where:]
    elif how == "repeat":
        out[where:where] = out[where : where + length]
    else:
        out[where : where + length] = (b"\0" if how == "blank" else b"\xff") * length
    return bytes(out)


def files(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Preprocess fuzzed files beside good ones, whose rows must be as they are without them."""
    row, folder, place = Row("fuzzed source files"), campaign.folder / "fuzzed", campaign.place
    good = campaign.sources[-1]
    reference = gridrad_cube.open_packed(campaign.one).load()
    for _ in range(math.ceil(trials / 4)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number in range(4):
            data = fuzz(good.read_bytes(), campaign.random)
            (folder / good.name.replace("2021", str(2010 + number))).write_bytes(data)
        campaign.begin(None)
        command = campaign.command(
            "preprocess", campaign.early, folder, "--store", place, "--patch", 32, "-c", IR, "-c", VISIBLE,
            "--time-limit", 20, "--memory-limit", 1,
        )  # fmt: skip
        status, problem = command.finish(), ""
        if status not in (0, 1) or "Traceback" in command.output:
            problem = f"status {status}: {command.output[-400:]!r}"
        else:
            cube = gridrad_cube.open_packed(place)
            rows = np.flatnonzero(np.isin(cube["source"].values, reference["source"].values))
            if not np.array_equal(cube[IR].values[rows], reference[IR].values):
                problem = "the rows of good files differ"
        for number in range(4):
            row.add(
                "fuzzed bytes", detected=bool(status), recovered=not problem, wrong=problem * (not number)
            )
    yield row


class _Runs:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["GRIDRAD_CUBE_FAULTS_RAN"],)


def checkpoints(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Load checkpoints that run code, hold nothing but zeros, or are damaged."""
    row, path = Row("hostile checkpoints"), campaign.folder / "hostile.pth"
    ran = campaign.folder / "ran"
    os.environ["GRIDRAD_CUBE_FAULTS_RAN"] = str(ran)
    plain = io.BytesIO()
    torch.save({"teacher": {"weight": torch.ones(64, 64)}}, plain)
    evil, bomb = io.BytesIO(), io.BytesIO()
    torch.save({"teacher": _Runs()}, evil)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(2**28))
    cases = {
        "code": evil.getvalue(), "bare pickle": pickle.dumps(_Runs()), "bomb": bomb.getvalue(), "empty": b"",
        "text": b"not a checkpoint", "cut": plain.getvalue()[:-100],
    }  # fmt: skip
    for number in range(max(trials, len(cases))):
        name = list(cases)[number] if number < len(cases) else "fuzzed"
        path.write_bytes(
            cases.get(name) or (b"" if name == "empty" else fuzz(plain.getvalue(), campaign.random))
        )
        detected, problem = False, ""
        try:
            models.load_checkpoint(path)
        except EXPECTED:
            detected = True
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if ran.exists():
            problem = "code of a checkpoint ran"
            ran.rmdir()
        if name != "fuzzed" and not detected:
            problem = problem or "it is loaded"
        row.add(name, detected=detected, recovered=not problem, wrong=problem)
    yield row


WRONG_JSON: tuple[Any, ...] = ([], {}, 3, None, "x", True, [1, 2], {"a": 1}, -1, 1e300, [[]], "")


def replace_somewhere(value: Any, rng: random.Random) -> Any:
    """Put a value of another type somewhere into JSON."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not keys or rng.random() < 0.25:
        return rng.choice(WRONG_JSON)
    key = rng.choice(keys)
    value[key] = replace_somewhere(value[key], rng)
    return value


def stores(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Give the JSON of stores another shape: open, verify, describe and restore them without a traceback."""
    row = Row("hostile stores")
    for _ in range(trials):
        base = campaign.random.choice((campaign.two, campaign.embedded))
        place = campaign.begin(base)
        keys = [key for key in Files(place).below() if key.endswith((".json", ".jsonl"))]
        key = campaign.random.choice(keys + ["zarr.json"] * len(keys))
        lines = (
            (place / key).read_bytes().splitlines()
            if key.endswith(".jsonl")
            else [(place / key).read_bytes()]
        )
        try:
            lines[0] = json.dumps(replace_somewhere(json.loads(lines[0]), campaign.random)).encode()
        except ValueError:  # a checksum precedes it
            lines[0] = campaign.random.choice((b"[]", b"{}", b"null", b"3"))
        (place / key).write_bytes(b"\n".join(lines))
        refused, problem = False, ""
        for act in (
            contents,
            store.verify,
            gridrad_cube.inspect_target,
            lambda p, b=base: campaign.mend(p, b),
        ):
            try:
                refused |= act is store.verify and bool(act(place))
                act(place)
            except EXPECTED:
                refused = True
            except Exception as error:
                if act is not contents or not isinstance(error, (KeyError, TypeError)):
                    problem += f"{type(error).__name__}: {error}; "
        row.add(key, detected=refused, recovered=not problem, wrong=problem)
    yield row


def secrets(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Give URLs with a password in every spelling: no message shows it, and no local folder gets its name."""
    row, home = Row("secrets in messages"), campaign.folder / "here"
    home.mkdir(exist_ok=True)
    spellings = ["http://user:{}@127.0.0.1:9/a.zarr", "HTTP://user:{}@127.0.0.1:9/a", " s3://key:{}@bucket/a.zarr",
                 "S3://key:{}@bucket/a.zarr", "s3:/key:{}@bucket/a.zarr", "file://user:{}@host/a.zarr",
                 "simplecache::http://user:{}@127.0.0.1:9/a.zarr", "ftp://user:{}@127.0.0.1:9/a",
                 "http://127.0.0.1:9/a.zarr?token={}", "unknown://user:{}@host/a"]  # fmt: skip
    os.chdir(home)
    try:
        for number in range(max(trials, len(spellings))):
            url = spellings[number % len(spellings)].format(SECRET)
            acts = (["info", url], ["verify", url], ["preprocess", campaign.early, "--store", url], ["preprocess", url,
                    "--store", campaign.place])  # fmt: skip
            arguments = acts[number // len(spellings) % len(acts)]
            campaign.begin(None)
            text = ""
            output = io.StringIO()
            try:
                with redirect_stdout(output), redirect_stderr(output):
                    invoke(arguments)
            except SystemExit as end:
                text = "failed" if end.code else ""
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            shown = SECRET in output.getvalue() + text
            made = [path.name for path in home.iterdir()]
            wrong = "the secret is shown" if shown else f"local folders {made}" if made else ""
            row.add(url.replace(SECRET, "***"), detected=bool(text), recovered=not wrong, wrong=wrong)
    finally:
        os.chdir(campaign.folder)
    yield row


def invoke(arguments: Sequence[object]) -> None:
    """Run a command in this process."""
    from gridrad_cube.cli import cli

    cli.main([str(a) for a in arguments], "gridrad-cube")


def long_runs(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Open, read, verify and flag a store again and again: memory, descriptors and threads stay flat."""
    row, process, place = Row("long runs"), psutil.Process(), campaign.begin(campaign.two)

    def usage() -> tuple[float, int, int]:
        return process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()

    for number in range(trials + 10):
        if number == 10:  # by then caches are filled
            before = usage()
        contents(place)
        store.verify(place)
        pipeline.reflag(place, QualitySpec(low_coverage=0.5 + 0.4 * (number % 2)))
    after = usage()
    flat = after[0] < before[0] + 50 and after[1] <= before[1] + 5 and after[2] <= before[2] + 2
    wrong = "" if flat else f"MB, descriptors and threads were {before}, and are {after}"
    for number in range(trials):
        row.add("round", recovered=flat, wrong=wrong * (not number))
    yield row


def machines(campaign: Campaign, trials: int) -> Iterator[Row]:
    """Drive a cube through random sequences of steps beside a model in numpy (see `CubeModel`)."""
    from hypothesis import HealthCheck, seed, settings
    from hypothesis.stateful import (
        RuleBasedStateMachine,
        invariant,
        precondition,
        rule,
        run_state_machine_as_test,
    )
    from hypothesis.strategies import integers, sampled_from

    row = Row("state machine")
    sources = campaign.sources
    full = gridrad_cube.open_packed(campaign.two).load()
    planes = {
        str(name).rpartition("/")[2]: full[IR].values[i] for i, name in enumerate(full["source"].values)
    }
    recipe = Recipe(tile=TileSpec(patch=32))

    class CubeModel(RuleBasedStateMachine):
        """The model: which sources are in the store, in which order, and which of them are withdrawn."""

        def __init__(self) -> None:
            super().__init__()
            self.place = campaign.begin(None)
            self.given: list[Path] = []
            self.rows: list[str] = []
            self.withdrawn: set[str] = set()

        def built(self) -> bool:
            return bool(self.rows)

        @precondition(lambda self: len(self.given) < len(sources))
        @rule(moment=integers(0, 40))
        def append(self, moment: int) -> None:
            """Add the next source, by a run that may be killed and then resumes."""
            self.given = sources[: len(self.given) + 1]
            command = campaign.command("preprocess", *self.given, "--store", self.place, "--patch", 32)
            if moment:
                campaign.wait_for_lease(command)
                command.process.join(moment / 100)
                command.kill()
                row.detected += 1
                self.check(in_between=True)
            else:
                command.finish()
            pipeline.preprocess(self.given, self.place, recipe=recipe, progress=False)
            self.rows = [path.name for path in self.given]

        @precondition(built)
        @rule(coverage=sampled_from((0.5, 0.7, 0.9)))
        def reflag(self, coverage: float) -> None:
            pipeline.reflag(self.place, QualitySpec(low_coverage=coverage))

        @precondition(built)
        @rule(number=integers(0, 5), undo=sampled_from((False, True)))
        def withdraw(self, number: int, undo: bool) -> None:
            name = self.rows[number % len(self.rows)]
            if undo == (name in self.withdrawn):
                pipeline.withdraw(self.place, name, undo=undo)
                self.withdrawn ^= {name}

        @precondition(built)
        @rule(number=integers(0, 10**6), how=sampled_from(("delete", "flip", "cut", "empty")))
        def damage_and_repair(self, number: int, how: str) -> None:
            files = Files(self.place)
            keys = files.below()
            harm(files, keys[number % len(keys)], how, random.Random(number))
            row.detected += bool(store.verify(self.place))
            pipeline.repair(self.place, [campaign.early, campaign.late])
            assert store.verify(self.place) == []

        @invariant()
        def holds(self) -> None:
            row.tried += 1
            self.check()
            row.recovered += 1

        def check(self, in_between: bool = False) -> None:
            """Compare what a reader gets with the model; a killed run may have committed one row more."""
            if not self.rows:
                return
            cube = gridrad_cube.open_packed(self.place)
            names = [str(name).rpartition("/")[2] for name in cube["source"].values]
            expected = [self.rows, [path.name for path in self.given]] if in_between else [self.rows]
            assert names in expected, (names, expected)
            for i, name in enumerate(names):
                assert np.array_equal(cube[IR].values[i], planes[name])
                flagged = (cube[f"{IR}_flags"].values[i] & Flag.withdrawn) > 0
                assert flagged.all() if name in self.withdrawn else not flagged.any()

    steps = settings(
        max_examples=max(1, trials // 10), stateful_step_count=10, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    try:
        seed(campaign.random.randrange(2**32))(CubeModel)
        run_state_machine_as_test(CubeModel, settings=steps)
    except Exception as error:
        row.wrong.append(f"{row.name}: {type(error).__name__}: {error} {getattr(error, '__notes__', '')}")
    yield row


#: Classes of faults: their function, trials of the whole campaign, and of the short one.
CLASSES: dict[str, tuple[Callable[[Campaign, int], Iterator[Row]], int, int]] = {
    "kills": (kills, 15, 1),
    "disks": (disks, 6, 0),
    "damage": (damage, 400, 8),
    "buckets": (buckets, 20, 0),
    "writers": (writers, 4, 0),
    "files": (files, 80, 4),
    "checkpoints": (checkpoints, 200, 20),
    "stores": (stores, 100, 6),
    "secrets": (secrets, 40, 10),
    "long": (long_runs, 100, 2),
    "machine": (machines, 150, 10),
}


def main() -> None:
    """Run the classes of faults and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CLASSES, default=list(CLASSES), metavar="CLASS",
                        help=f"of {', '.join(CLASSES)}; all by default")  # fmt: skip
    parser.add_argument("--trials", type=int, help="of each class, and of each of its writers")
    parser.add_argument("--short", action="store_true", help="a minute: a few trials of the cheap classes")
    parser.add_argument("--seed", type=int, default=None, help="drawn by default")
    parser.add_argument("--out", type=Path, default=None, help="write the table here too")
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    logging.disable(logging.WARNING)
    PROCESSES.set_forkserver_preload(
        ["gridrad_cube.cli", "gridrad_cube.pipeline", "gridrad_cube.training.loop"]
    )
    folder = Path(tempfile.mkdtemp(dir=options.folder)).resolve()
    start, rows = time.perf_counter(), []
    try:
        campaign = Campaign(folder, seed)
        for name in options.only:
            run, full, short = CLASSES[name]
            trials = options.trials if options.trials is not None else short if options.short else full
            if not trials:
                continue
            for row in run(campaign, trials):
                rows.append(row)
                passed = time.perf_counter() - start
                print(f"{passed:5.0f} s  {row.name}: {row.tried} tried, {len(row.wrong)} wrong", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wrong = [what for row in rows for what in row.wrong]
    table = [(r.name, r.tried, r.detected, r.recovered, len(r.wrong)) for r in rows]
    lines = [
        f"Seed {seed}, {time.perf_counter() - start:.0f} s.",
        "",
        *machine.table(("class", "tried", "detected", "recovered", "lost or wrong"), table),
        "",
        *(f"- {what}" for what in wrong[:50]),
        f"Lost or wrong: {len(wrong)}.",
    ]
    machine.report("Faults", lines, options.out)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
