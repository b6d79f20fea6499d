"""``kill -9`` at any moment of a build, again and again: no shard is lost, and readers never see half a store.

    python benchmarks/kill.py --kills 50 --out benchmarks/results/kill.md

Builds a store of small synthetic scenes with ``gridrad-cube preprocess``, then extends it by the same number. Each
command runs in a separate process group, which is killed with its Dask workers at a random moment of a chosen phase,
and then runs again. A reader reads the store all the time. A finished store is compared with one from an undisturbed
build, and the next build begins. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
import xarray as xr

import gridrad_cube
from gridrad_cube import store, synthetic
from gridrad_cube.schema import SchemaError

CHANNELS = ("ir_brightness_temperature", "visible_reflectance")
STAGES = ("first build", "extending")
#: What a build is at, in order, by what lies on the disk.
PHASES = ("starting", "planning", "writing", "finalizing", "after the commit")
#: Phases to kill in, in each stage of a store; every third store is killed after its commits as well.
TARGETS = ("planning", "writing", "finalizing")
LIMIT_S = 300.0


@dataclass(frozen=True)
class Sight:
    """What lies on the disk of a store, as far as a phase shows in it."""

    log: int
    shards: int
    root: int

    @classmethod
    def of(cls, path: Path) -> Sight:
        """Look at a store, which need not exist."""

        def changed(name: str) -> int:
            try:
                return (path / name).stat().st_mtime_ns
            except FileNotFoundError:
                return 0

        shards = sum(1 for name in CHANNELS for _ in (path / name).glob("c.*"))
        return cls(changed("_build"), shards, changed("zarr.json"))

    def phase(self, before: Sight, shards: int) -> str:
        """The phase of a run that found ``before`` and is to leave this number of shards."""
        if self.root != before.root:
            return "after the commit"
        if self == before:
            return "starting"
        if self.shards == shards:
            return "finalizing"
        return "writing" if self.shards > before.shards else "planning"


class Reader(threading.Thread):
    """Reads a random crop again and again; every state that it sees must be a complete store of the reference."""

    def __init__(self, path: Path, expected: dict[int, xr.Dataset]) -> None:
        super().__init__(daemon=True)
        self.path, self.expected = path, expected
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def run(self) -> None:
        """Look until `stop` is set."""
        rng = random.Random(0)
        while not self.stop.wait(0.05):
            try:
                self.seen[self.look(rng)] += 1
            except Exception as error:  # a reader must not meet any error
                self.wrong.append(f"{type(error).__name__}: {error}")

    def look(self, rng: random.Random) -> str:
        """Open the store and compare one crop; what was found."""
        try:
            cube = gridrad_cube.open_cube(self.path)
        except FileNotFoundError:
            return "no store"
        except SchemaError as error:
            if "not finished" in str(error):
                return "not finished"
            raise
        crops = cube.sizes["crop"]
        row = rng.randrange(crops)
        found, expected = cube.isel(crop=row).load(), self.expected[crops].isel(crop=row).load()
        if not found.equals(expected):
            raise AssertionError(f"crop {row} of {crops} differs from that of the undisturbed store")
        return f"{crops} crops"


def preprocess(sources: Sequence[Path], path: Path, workers: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the command in a separate process group."""
    command = [sys.executable, "-m", "gridrad_cube", "preprocess", *map(str, sources), "--store", str(path)]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "--patch", "32", "--workers", str(workers)],
            stdout=output, stderr=output, start_new_session=True, env=os.environ | {"TMPDIR": str(log.parent)},
        )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process group and wait until nothing of it is left."""
    group = process.pid
    os.killpg(group, signal.SIGKILL)
    process.wait()
    try:
        while True:
            os.killpg(group, 0)
            time.sleep(0.01)
    except ProcessLookupError:
        return


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a run that nobody kills."""
    if process.wait(LIMIT_S):
        raise SystemExit(f"preprocess failed with status {process.returncode}:\n{log.read_text()[-4000:]}")


def durations(sources: Sequence[Path], path: Path, shards: int, workers: int, log: Path) -> dict[str, float]:
    """Build undisturbed; seconds of each phase."""
    before, spent, last = Sight.of(path), dict.fromkeys(PHASES, 0.0), time.perf_counter()
    process = preprocess(sources, path, workers, log)
    while process.poll() is None:
        phase, now = Sight.of(path).phase(before, shards), time.perf_counter()
        spent[phase] += now - last
        last = now
        time.sleep(0.002)
    finish(process, log)
    return spent


def kill_in(
    target: str, length: float, sources: Sequence[Path], path: Path, shards: int, workers: int, log: Path
) -> str | None:
    """Run, and kill at a random moment of a phase; the phase that it landed in, None if it was done before."""
    before = Sight.of(path)
    process = preprocess(sources, path, workers, log)
    limit = time.perf_counter() + LIMIT_S
    while process.poll() is None:
        if PHASES.index(Sight.of(path).phase(before, shards)) >= PHASES.index(target):
            break
        if time.perf_counter() > limit:
            raise SystemExit(
                f"preprocess did not reach {target} in {LIMIT_S:.0f} s:\n{log.read_text()[-4000:]}"
            )
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, length))
    if process.poll() is not None:
        finish(process, log)
        return None
    kill(process)
    return Sight.of(path).phase(before, shards)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two stores: arrays and attributes of every group, history apart."""
    raw = {"engine": "zarr", "chunks": None, "mask_and_scale": False, "decode_times": False}
    trees = [xr.open_datatree(path, **raw) for path in (one, other)]
    out = []
    if set(trees[0].groups) != set(trees[1].groups):
        return [f"groups {trees[0].groups} and {trees[1].groups}"]
    for group in trees[0].groups:
        a, b = (tree[group].to_dataset() for tree in trees)
        attributes = ({k: v for k, v in d.attrs.items() if k != "history"} for d in (a, b))
        if len({json.dumps(d, sort_keys=True) for d in attributes}) > 1:
            out.append(f"attributes of {group}")
        if set(a.variables) != set(b.variables):
            out.append(f"variables of {group}")
            continue
        out += [
            f"{group}/{name}"
            for name in a.variables
            if a[name].attrs != b[name].attrs
            or a[name].dtype != b[name].dtype
            or not np.array_equal(a[name].values, b[name].values, equal_nan=a[name].dtype.kind == "f")
        ]
    return out


def moments(kills: int, *, after: bool) -> list[list[str]]:
    """Phases to kill in, for each stage of one store; spread over both if only few kills are left."""
    targets = (*TARGETS, "after the commit") if after else TARGETS
    all_ = [(stage, target) for stage in range(len(STAGES)) for target in targets]
    some = all_ if kills >= len(all_) else [all_[i * len(all_) // kills] for i in range(kills)]
    return [[target for at, target in some if at == stage] for stage in range(len(STAGES))]


def main() -> None:
    """Kill and continue until there were enough kills and the last store is finished; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--scenes", type=int, default=16, help="half of them build the store, half extend it")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn by default")
    parser.add_argument("--out", type=Path, default=None, help="write the table here too")
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    options = parser.parse_args()
    random.seed(options.seed)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        lines, failed = torture(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine.report("Kills", lines, options.out)
    sys.exit(failed)


def torture(folder: Path, options: argparse.Namespace) -> tuple[list[str], bool]:
    """Do it all in a folder; the report, and whether something was wrong."""
    log, half = folder / "log.txt", options.scenes // 2
    early, late = folder / "early", folder / "late"
    synthetic.write_scenes(early, scenes=half, shape=(96, 150), start="2021-07-05T15:00", interval="10min")
    synthetic.write_scenes(late, scenes=half, shape=(96, 150), start="2021-07-06T15:00", interval="10min")
    given, shards = ([early], [early, late]), (2 * half, 4 * half)
    reference, expected, lengths = folder / "reference.zarr", {}, []
    for stage in range(2):
        lengths.append(durations(given[stage], reference, shards[stage], options.workers, log))
        kept = shutil.copytree(reference, folder / f"reference-{stage}.zarr")
        expected[half * (stage + 1)] = gridrad_cube.open_cube(kept)

    landed: Counter[tuple[str, str]] = Counter()
    wrong, stores, runs, start = [], 0, 0, time.perf_counter()
    seen: Counter[str] = Counter()
    while sum(landed.values()) < options.kills:
        path = folder / f"store-{stores}.zarr"
        reader = Reader(path, expected)
        reader.start()
        plan = moments(options.kills - sum(landed.values()), after=stores % 3 == 0)
        for stage, name in enumerate(STAGES):
            for target in plan[stage]:
                phase = kill_in(
                    target, lengths[stage][target], given[stage], path, shards[stage], options.workers, log
                )
                runs += 1
                if phase is None:
                    break  # it was done sooner than the kill came
                landed[name, phase] += 1
            finish(preprocess(given[stage], path, options.workers, log), log)
            runs += 1
        reader.stop.set()
        reader.join()
        seen += reader.seen
        wrong += [f"store {stores}, reader: {what}" for what in reader.wrong]
        wrong += [f"store {stores}, verify: {damage}" for damage in store.verify(path)]
        wrong += [f"store {stores} differs: {what}" for what in differences(reference, path)]
        shutil.rmtree(path)
        stores += 1
    rows = [[phase, *(landed[stage, phase] for stage in STAGES)] for phase in PHASES]
    lines = [
        f"{sum(landed.values())} kills in {runs} runs with `--workers {options.workers}`; {stores} stores of {half}, "
        f"then {2 * half} scenes; {time.perf_counter() - start:.0f} s.",
        "",
        *machine.table(("killed while", *STAGES), [*rows, ["all", *(sum(r[i] for r in rows) for i in (1, 2))]]),
        "",
        "A reader meanwhile saw: " + ", ".join(f"{what} {times} times" for what, times in sorted(seen.items())) + ".",
        "",
        f"Unreadable shards, differences from undisturbed stores, wrong reads: {len(wrong)}.",
        *(f"- {what}" for what in wrong[:50]),
    ]  # fmt: skip
    return lines, bool(wrong)


if __name__ == "__main__":
    main()
