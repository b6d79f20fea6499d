"""A store of very many crops: what planning, finishing, opening, describing and extending it cost.

    python benchmarks/scale.py --crops 1000000 --out benchmarks/results/scale.md

Makes a cube of two channels and 8 x 8 patches a crop with a plan, a log of plausible small values and no pixels but
those of the first crop. Each step then runs in a separate process, which reports its time and its peak memory,
Python's start and the imports included. The log is written without its fsync a record, which stands for disks that
were busy with pixels; nothing else is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STEPS = {
    "plan": "write the plan",
    "log": "write the log (no step of ours: it grows while files are preprocessed)",
    "resume": "read plan and log again, as every later run does first",
    "finalize": "finish for the first time",
    "open": "open, select a crop, read its first patch",
    "info": "gridrad-cube info",
    "append": "add 1,000 crops: read plan and log, record, finish",
    "dataset": "PatchDataset of one channel (17 bytes a sample)",
}
CHANNELS = ("ir_brightness_temperature", "visible_reflectance")
APPENDED = 1000


def layout_and_recipe():
    """Layout of a LaRC store of 2048 px crops, and its recipe."""
    from gridrad_cube import store
    from gridrad_cube.schema import CHANNELS as TABLE
    from gridrad_cube.schema import Recipe, TileSpec

    channels = {
        name: store.ChannelLayout(name=name, packing=TABLE[name].packing, attributes=TABLE[name].attributes())
        for name in CHANNELS
    }
    layout = store.CubeLayout(
        channels=channels,
        crop=(2048, 2048),
        patch=256,
        codec="fast",
        coordinates=tuple(store.COORDINATES),
    )
    recipe = Recipe(channels=CHANNELS, tile=TileSpec(crop=(2048, 2048), placement="random"))
    return recipe, dataclasses.replace(layout, rows_per_chunk=store.block_length(layout, 10**6))


def entries(first: int, count: int):
    """One entry a scene, ten minutes apart."""
    from gridrad_cube import store

    for i in range(first, first + count):
        seconds = 1_000_000_000 + 600 * i
        stamp = time.strftime("%Y%m%d_%H%M", time.gmtime(seconds))
        yield store.Entry(
            source=f"{stamp[:6]}/NASALARC_GOES16_CONVECTION_DETECTION_{stamp}.nc",
            size=12_345_678,
            mtime_ns=1_600_000_000_000_000_000 + i,
            time=seconds,
            grid="grid0",
            shape=(2240, 2856),
            product="LaRC convection detection",
            format="larc_goes",
            channels=CHANNELS,
            windows=((i % 190, i % 800),),
            row=i,
        )


def record(build, entry, pool, shards):
    """Log a source as written, with one of the pool's small values."""
    from gridrad_cube import store

    build.record(
        store.Record(
            source=entry.source,
            status="written",
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            seconds=0.2,
            shards=shards,
            values=pool[entry.row % len(pool)],
        )
    )


def value_pool(layout, size=257):
    """Packed rows of the record type with plausible statistics: noise that no compressor folds."""
    from gridrad_cube import store

    rng = np.random.default_rng(0)
    out = []
    for _ in range(size):
        rows = store.blank_rows(layout, 1)
        for name in rows.dtype.names:
            field = rows[name]
            if name.endswith("_flags"):
                field[...] = np.where(rng.random(field.shape) < 0.05, 1, 0)
            elif name.endswith("_histogram"):
                field[...] = rng.integers(0, 60_000, field.shape)
            elif name.endswith("_valid_fraction"):
                field[...] = 1.0
            elif field.dtype.kind == "f":
                field[...] = rng.normal(270.0, 20.0, field.shape)
            else:
                field[...] = 1_600_000_000 + rng.integers(0, 300, field.shape)
        out.append(store.pack_rows(rows))
    return out


def step_plan(path: Path, crops: int) -> None:
    """Plan all crops."""
    from gridrad_cube import store

    recipe, layout = layout_and_recipe()
    store.Build(path).begin(recipe, layout, list(entries(0, crops)))


def step_log(path: Path, crops: int) -> None:
    """Log all crops, write the pixels of the first."""
    from gridrad_cube import store

    os.fsync = lambda _: None
    build = store.Build(path)
    pool = value_pool(build.layout)
    pixels = np.random.default_rng(0).integers(20000, 30000, (2048, 2048)).astype(np.uint16)
    store.write_grid(build.files, "grid0", np.linspace(50, 10, 2240), np.linspace(-120, -69, 2856))
    shard = store.write_crop(build.files, build.layout, 0, dict.fromkeys(CHANNELS, pixels))
    for entry in build.entries:
        record(build, entry, pool, {name: [shard[name]] for name in CHANNELS})
    build.flush()


def step_resume(path: Path, crops: int) -> None:
    """Read plan and log."""
    from gridrad_cube import store

    build = store.Build(path)
    assert build.written == build.rows == crops
    build.state()


def step_finalize(path: Path, crops: int) -> None:
    """Finish the store for the first time."""
    from gridrad_cube import pipeline, store

    pipeline.finalize(store.Build(path))


def step_open(path: Path, crops: int) -> None:
    """Open the store and read its first patch."""
    import gridrad_cube

    cube = gridrad_cube.open_cube(path)
    assert cube.sizes["crop"] == crops
    patch = cube.gridrad.patch(0, 0, 0)
    assert np.isfinite(patch["ir_brightness_temperature"].values).all()


def step_info(path: Path, crops: int) -> None:
    """Describe the store."""
    import gridrad_cube

    assert "ir_brightness_temperature" in str(gridrad_cube.inspect_target(path))


def step_append(path: Path, crops: int) -> None:
    """Add crops to the finished store."""
    from gridrad_cube import pipeline, store

    build = store.Build(path)
    pool = value_pool(build.layout, 7)
    more = list(entries(crops, APPENDED))
    store.check_duplicates(build.entries, more)
    build.extend(more)
    for entry in more:
        record(build, entry, pool, {name: [(1000, 7)] for name in CHANNELS})
    pipeline.finalize(build)
    assert store.open_packed(path).sizes["crop"] == crops + APPENDED


def step_dataset(path: Path, crops: int) -> None:
    """List the samples of one channel."""
    from gridrad_cube.datasets import PatchDataset

    assert len(PatchDataset(path, channels=CHANNELS[:1])) > crops


def measure(step: str, path: Path, crops: int) -> dict[str, float]:
    """Run one step in a separate process."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(path), "--crops", str(crops)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Run every step, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crops", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="write the table here too")
    parser.add_argument("--step", choices=STEPS, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        globals()[f"step_{options.step}"](options.folder, options.crops)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps({"peak_mb": peak, "cpu": time.process_time()}))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        path = folder / "patches.zarr"
        lines = [
            f"Command: `python benchmarks/scale.py --crops {options.crops}`",
            f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "",
            "| step | seconds | CPU seconds | peak MB |",
            "|---|---|---|---|",
        ]
        for step, what in STEPS.items():
            found = measure(step, path, options.crops)
            lines.append(f"| {what} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['peak_mb']:.0f} |")
            print(lines[-1], flush=True)
        sizes = {
            name: sum(p.stat().st_size for p in (path / name).rglob("*") if p.is_file()) / 1e6
            for name in ("_build/plan", "_build/log")
        }
        whole = [p.stat().st_size for p in path.rglob("*") if p.is_file()]
        lines += [
            "",
            f"On disk: plan {sizes['_build/plan']:.0f} MB, log {sizes['_build/log']:.0f} MB, all "
            f"{sum(whole) / 1e6:.0f} MB in {len(whole)} files (pixels of one crop among them).",
        ]
        text = "\n".join(lines) + "\n"
        print(text)
        if options.out:
            options.out.write_text(f"# A store of {options.crops:,} crops\n\n{text}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
