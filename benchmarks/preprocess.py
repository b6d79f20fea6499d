"""Preprocessing against the loose-file way, on the same synthetic LaRC files, both sides in one run.

    python benchmarks/preprocess.py --scenes 12 --workers 2

The old way, written here from its description: read both channels of a file, cut one random 2048 px crop into
256 px patches, ``np.savez_compressed``, then one ``.pt`` file a crop and a patch, then a pass over all ``.pt`` files
that loads each and computes its mean and deviation. Ours is `gridrad_cube.preprocess`, which keeps the whole scene
with flags, statistics and coordinates. Prints a table; the ratio is what to look at, since machines differ.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

import netCDF4
import numpy as np
import torch

from gridrad_cube import pipeline, synthetic

CHANNELS = ("ir_brightness_temperature", "visible_reflectance")
CROP, PATCH = 2048, 256


def loose_archive(path: Path, out: Path) -> None:
    """Turn netCDF into one ``.npz`` of a random crop and its patches, float32."""
    with netCDF4.Dataset(path) as file:
        fields = [np.asarray(file[c][0].filled(np.nan), np.float32) for c in CHANNELS if c in file.variables]
    image = np.stack(fields)
    rng = np.random.default_rng(abs(hash(path.name)))
    y, x = (int(rng.integers(0, n - CROP + 1)) for n in image.shape[1:])
    crop = image[:, y : y + CROP, x : x + CROP]
    n = CROP // PATCH
    patches = crop.reshape(len(crop), n, PATCH, n, PATCH).transpose(1, 3, 0, 2, 4)
    np.savez_compressed(out / f"{path.stem}.npz", crop=crop, patches=patches)


def loose_tensors(path: Path, out: Path) -> None:
    """``.npz`` to one ``.pt`` file a crop and a patch."""
    with np.load(path) as archive:
        crop, patches = archive["crop"], archive["patches"]
    for c in range(len(crop)):
        torch.save(torch.from_numpy(crop[c].copy()), out / f"{path.stem}_crop_{c}.pt")
        for i, j in np.ndindex(patches.shape[:2]):
            torch.save(torch.from_numpy(patches[i, j, c].copy()), out / f"{path.stem}_patch_{i}_{j}_{c}.pt")


def loose_check(path: Path) -> tuple[float, float]:
    """Mean and deviation of one ``.pt`` file."""
    values = torch.load(path, weights_only=True).numpy()
    return float(values.mean()), float(values.std())


def loose(sources: list[Path], folder: Path, workers: int) -> None:
    """Run the loose-file way: three passes, each over all files."""
    archives, tensors = folder / "npz", folder / "pt"
    archives.mkdir(parents=True)
    tensors.mkdir()
    with multiprocessing.get_context("spawn").Pool(
        workers, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pool.map(functools.partial(loose_archive, out=archives), sources)
        pool.map(functools.partial(loose_tensors, out=tensors), sorted(archives.iterdir()))
        pool.map(loose_check, sorted(tensors.iterdir()))


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes and number of files under a folder."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files), len(files)


def main() -> None:
    """Write the files, run both sides, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        sources = synthetic.write_scenes(folder / "sources", scenes=options.scenes)
        rows = {}
        start = time.perf_counter()
        loose(sources, folder / "loose", options.workers)
        rows["loose .npz and .pt files"] = (time.perf_counter() - start, *size_of(folder / "loose"))
        start = time.perf_counter()
        report = pipeline.preprocess(folder / "sources", folder / "patches.zarr", workers=options.workers)
        rows["gridrad-cube"] = (time.perf_counter() - start, *size_of(folder / "patches.zarr"))
        assert report.count("written") == options.scenes, report
        print(f"{options.scenes} LaRC files of 2240 x 2856, {options.workers} workers, start-up included")
        print(f"{'':28}{'seconds':>10}{'s/file':>9}{'MB':>9}{'files':>8}")
        for name, (seconds, size, files) in rows.items():
            print(f"{name:28}{seconds:10.1f}{seconds / options.scenes:9.2f}{size / 1e6:9.0f}{files:8d}")
        old, new = rows.values()
        print(f"{'ratio':28}{old[0] / new[0]:10.1f}{'':9}{old[1] / new[1]:9.1f}{old[2] / new[2]:8.1f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
