"""Preprocessing against the loose-file way, on the same synthetic LaRC files, all sides in one run.

    python benchmarks/preprocess.py --scenes 48 --workers 2 --out benchmarks/results/preprocess.md
    python benchmarks/preprocess.py --format gridrad-v4.2 --scenes 4 --workers 1

The old way, written here from its description: read both channels of a file, cut one random 2048 px crop into
256 px patches, ``np.savez_compressed`` of both, then one ``.pt`` file a crop and a patch, then a pass over all ``.pt``
files that loads each and tests its mean and deviation. Ours is `gridrad_cube.preprocess`, which keeps the whole scene
with flags, statistics and coordinates; once more with one random window a scene, the pixels that the old way keeps.

Each side runs in a separate process. "seconds" is all of it: Python, imports, workers, their end; "from first file"
leaves out what comes before the first file is opened. The floor is what nobody can leave out: inflating the file with
netCDF4 and compressing the patches, one process. With ``--format gridrad-v4.2`` there is no old way; the table has
time and memory of the column maximum and of all levels of reflectivity.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np

CHANNELS = ("ir_brightness_temperature", "visible_reflectance")
#: Files of the comparison with the floor.
FLOOR_SCENES = 12


def loose_archive(path: Path, out: Path, crop: int, patch: int) -> None:
    """Turn netCDF into one ``.npz`` of a random crop and its patches, float32."""
    import netCDF4

    with netCDF4.Dataset(path) as file:
        fields = [np.asarray(file[c][0].filled(np.nan), np.float32) for c in CHANNELS if c in file.variables]
    image = np.stack(fields)
    rng = np.random.default_rng(abs(hash(path.name)))
    y, x = (int(rng.integers(0, n - crop + 1)) for n in image.shape[1:])
    window = image[:, y : y + crop, x : x + crop]
    n = crop // patch
    patches = window.reshape(len(window), n, patch, n, patch).transpose(1, 3, 0, 2, 4)
    np.savez_compressed(out / f"{path.stem}.npz", crop=window, patches=patches)


def loose_tensors(path: Path, out: Path) -> None:
    """``.npz`` to one ``.pt`` file a crop and a patch."""
    import torch

    with np.load(path) as archive:
        crop, patches = archive["crop"], archive["patches"]
    for c in range(len(crop)):
        torch.save(torch.from_numpy(crop[c].copy()), out / f"{path.stem}_crop_{c}.pt")
        for i, j in np.ndindex(patches.shape[:2]):
            torch.save(torch.from_numpy(patches[i, j, c].copy()), out / f"{path.stem}_patch_{i}_{j}_{c}.pt")


def loose_check(path: Path) -> tuple[float, bool]:
    """Mean of one ``.pt`` file, and whether a pixel lies far from it."""
    import torch

    values = torch.load(path, weights_only=True).numpy()
    mean, deviation = values.mean(), values.std()
    return float(mean), bool((np.abs(values - mean) > 1e4 * deviation).any())


def _one_thread(*_: object) -> None:
    import netCDF4  # noqa: F401
    import torch

    torch.set_num_threads(1)


def _peak(_: object) -> float:
    return machine.peak_mb()


def run_loose(sources: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the loose-file way: three passes, each over all files."""
    archives, tensors = folder / "npz", folder / "pt"
    archives.mkdir(parents=True)
    tensors.mkdir()
    archive = functools.partial(loose_archive, out=archives, crop=options.crop, patch=options.patch)
    with multiprocessing.get_context("spawn").Pool(options.workers, initializer=_one_thread) as pool:
        pool.map(_one_thread, range(4 * options.workers), chunksize=1)
        start = time.perf_counter()
        pool.map(archive, sources)
        pool.map(functools.partial(loose_tensors, out=tensors), sorted(archives.iterdir()))
        pool.map(loose_check, sorted(tensors.iterdir()))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak": max(pool.map(_peak, range(4 * options.workers), chunksize=1))}


def _peak_of_both() -> float:
    """Return the peak memory of a worker and of the child process that reads for it, in MB."""
    return machine.peak_mb() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6


def _imported() -> None:
    import xarray as xr

    import gridrad_cube.pipeline  # noqa: F401

    xr.Dataset({"v": ("x", np.zeros(1))})  # its first array makes xarray look for Dask


def run_cube(sources: list[Path], folder: Path, options: argparse.Namespace, **recipe: Any) -> dict[str, Any]:
    """Run `gridrad_cube.preprocess`, in this process or with workers that are up already."""
    from gridrad_cube import pipeline
    from gridrad_cube.schema import Recipe, TileSpec

    recipe = {"tile": TileSpec(patch=options.patch), "codec": options.codec} | recipe
    run = functools.partial(pipeline.preprocess, sources, folder, recipe=Recipe(**recipe))

    def measured(**how: Any) -> dict[str, Any]:
        start, cpu = time.perf_counter(), time.process_time()
        found = run(**how)
        assert found.count("written") == len(sources), found
        return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}

    if options.workers == 1:
        _imported()
        return measured(time_limit=0) | {"peak": machine.peak_mb()}  # without a child process
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.run(_imported)
        return measured(client=client) | {"peak": max(client.run(_peak_of_both).values())}


def run_cube_window(sources: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the same on one random window a scene, as the old way keeps it."""
    from gridrad_cube.schema import TileSpec

    tile = TileSpec(crop=(options.crop, options.crop), patch=options.patch, placement="random")
    return run_cube(sources, folder, options, tile=tile)


def run_cube_levels(sources: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run it on all levels of reflectivity."""
    return run_cube(sources, folder, options, channels=("reflectivity",))


def run_floor(sources: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Inflate each file with netCDF4 and compress its patches; keep nothing."""
    import netCDF4
    from numcodecs import Blosc

    from gridrad_cube import store

    blosc = store.CODECS[options.codec]
    codecs = [Blosc(**blosc)] if blosc else []
    patch = options.patch
    start, cpu = time.perf_counter(), time.process_time()
    for path in sources:
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            for name in CHANNELS:
                if name not in file.variables:
                    continue
                field = np.squeeze(file[name][:])
                for y, x in itertools.product(
                    range(0, field.shape[0], patch), range(0, field.shape[1], patch)
                ):
                    data = np.ascontiguousarray(field[y : y + patch, x : x + patch])
                    for codec in codecs:
                        data = codec.encode(data)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "peak": machine.peak_mb()}


SIDES: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "loose": ("loose .npz and .pt files", run_loose),
    "cube": ("gridrad-cube, whole scenes", run_cube),
    "window": ("gridrad-cube, the same windows", run_cube_window),
    "levels": ("gridrad-cube, all levels of reflectivity", run_cube_levels),
    "floor": ("inflate and compress alone", run_floor),
}


def run_side(
    side: str, sources: Path, folder: Path, options: argparse.Namespace, **changed: Any
) -> dict[str, Any]:
    """Run one side in a separate process; its figures, with those of the folder that it leaves."""
    given = vars(options) | changed
    names = ("workers", "crop", "patch", "codec", "scenes")
    arguments = [text for name in names for text in (f"--{name}", str(given[name]))]
    command = [sys.executable, __file__, "--side", side, "--sources", str(sources), "--folder", str(folder)]
    start = time.perf_counter()
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    whole = time.perf_counter() - start
    files = [p for p in folder.rglob("*") if p.is_file()]
    sizes = [p.stat().st_size for p in files]
    pixels = [p.stat().st_size for p in files if p.parent.name in CHANNELS and p.name.startswith("c.")]
    return json.loads(done.stdout.splitlines()[-1]) | {
        "whole": whole,
        "bytes": sum(sizes),
        "files": len(sizes),
        "other": (len(sizes) - len(pixels), sum(sizes) - sum(pixels)),
    }


def rows_of(found: dict[str, dict[str, Any]], scenes: int) -> list[list[object]]:
    """One row of the table for each side."""
    return [
        [
            SIDES[side][0], f"{f['whole']:.2f}", f"{f['seconds']:.2f}", f"{f['seconds'] / scenes:.3f}",
            f"{f['bytes'] / 1e6:.0f}", f["files"], f"{f['peak']:.0f}",
        ]
        for side, f in found.items()
    ]  # fmt: skip


HEADER = ("", "seconds", "from first file", "a file", "MB", "files", "peak MB of a worker")


def compare(sources: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """Lines of the comparison with the loose way and with the floor."""
    found = {}
    for side in ("loose", "cube", "window"):
        found[side] = run_side(side, sources, folder / side, options)
        if side == "loose":
            shutil.rmtree(folder / side)
    old, whole = found["loose"], found["cube"]
    rows = rows_of(found, options.scenes)
    for side in ("cube", "window"):
        new = found[side]
        whole_, first, size, files = (
            f"{old[key] / new[key]:.1f} x" for key in ("whole", "seconds", "bytes", "files")
        )
        rows.append([f"loose / {SIDES[side][0]}", whole_, first, "", size, files, ""])
    few = min(options.scenes, FLOOR_SCENES)
    floor, one = (
        run_side(side, sources, folder / f"{side}1", options, scenes=few, workers=1)
        for side in ("floor", "cube")
    )
    kept = len(CHANNELS) * options.crop**2, len(CHANNELS) * options.shape[0] * options.shape[1]
    others, bytes_of_others = whole["other"]
    a_pixel = [f["bytes"] / options.scenes / pixels for f, pixels in zip((old, whole), kept, strict=True)]
    return [
        f"{options.scenes} LaRC files of {options.shape[0]} x {options.shape[1]} px with two channels, "
        f"{options.workers} workers, codec `{options.codec}`.",
        "",
        *machine.table(HEADER, rows),
        "",
        f"The whole scene is {kept[1] / kept[0]:.2f} times the window: {a_pixel[0]:.2f} bytes for each pixel kept by "
        f"the old way, {a_pixel[1]:.2f} by ours, {a_pixel[0] / a_pixel[1]:.1f} times less. Of the cube's files "
        f"{others} ({bytes_of_others / 1e6:.1f} MB) hold no pixels: metadata, flags, statistics, coordinates, plan and "
        "log, whose number does not grow with the scenes.",
        "",
        f"CPU time of one process, {few} files: {one['cpu'] / few:.3f} s a file, planning and finishing included; "
        f"inflating with netCDF4 and compressing alone {floor['cpu'] / few:.3f} s; "
        f"{one['cpu'] / floor['cpu']:.2f} times the floor.",
    ]  # fmt: skip


def volumes(sources: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """Lines of the table of GridRad volumes."""
    found = {side: run_side(side, sources, folder / side, options) for side in ("cube", "levels")}
    return [
        f"{options.scenes} GridRad v4.2 volumes of 29 x {options.shape[0]} x {options.shape[1]} bins, quality control "
        f"`fixed`, {options.workers} workers, codec `{options.codec}`; 'whole scenes' is the column maximum.",
        "",
        *machine.table(HEADER, rows_of(found, options.scenes)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files, run every side, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("larc-goes", "gridrad-v4.2"), default="larc-goes")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=2, default=None, help="rows and columns of a scene")
    parser.add_argument("--crop", type=int, default=2048, help="edge of the old way's window")
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--codec", choices=("fast", "small", "raw"), default="fast")
    parser.add_argument("--out", type=Path, default=None, help="write the table here too")
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--sources", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        sources = sorted(options.sources.rglob("*.nc"))[: options.scenes]
        print(json.dumps(SIDES[options.side][1](sources, options.folder, options)))
        return
    from gridrad_cube import synthetic

    is_radar = options.format != "larc-goes"
    options.shape = options.shape or ((1248, 2832) if is_radar else (2240, 2856))
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        given = {"format": options.format, "scenes": options.scenes, "shape": tuple(options.shape)}
        synthetic.write_scenes(folder / "sources", **given)
        lines = (volumes if is_radar else compare)(folder / "sources", folder, options)
        machine.report("Preprocessing", lines, options.out)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
