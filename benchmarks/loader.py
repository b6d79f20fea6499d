"""Batches of random packed patches: out of a store, and out of loose ``.pt`` files in torch's DataLoader.

    python benchmarks/loader.py --out benchmarks/results/loader.md         (a minute)
    python benchmarks/loader.py --scenes 2 --shape 512 768 --batch 8 --repeats 1 --seconds 0.1

Synthetic satellite scenes are built into two stores (codecs ``fast`` and ``small``). Each clean infrared patch is
also saved as a ``.pt`` file, packed as in the store. Every way of reading gives the same random batches. The ways
take turns, so that a busy machine slows all of them alike: rates are medians, and ratios are taken within each turn
before their median. CPU time is that of this process alone. All files are in the page cache: this measures
processors, not disks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the Makefile has it; before torch reads it

import machine
import numpy as np
import torch
import xarray as xr
from torch.utils.data import DataLoader, Dataset

from gridrad_cube import pipeline, synthetic
from gridrad_cube.datasets import Batch, PatchDataset, PatchLoader
from gridrad_cube.schema import Recipe, TileSpec

CHANNEL = "ir_brightness_temperature"
CODECS: tuple[Literal["fast", "small"], ...] = ("fast", "small")


class LooseFiles(Dataset[torch.Tensor]):
    """One ``.pt`` file per patch."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = torch.load(self.folder / f"{index}.pt", weights_only=True)
        return tensor


class Shuffled:
    """Batches of indices without end: one permutation after the other."""

    def __init__(self, length: int, batch: int) -> None:
        self.length, self.batch = length, batch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(self.length)
            for start in range(0, self.length - self.batch + 1, self.batch):
                yield order[start : start + self.batch].tolist()


@dataclass
class Way:
    """A way of reading: a stream of batches, and what was measured of it in each turn."""

    name: str
    open: Callable[[], Iterator[Any]]
    stream: Iterator[Any] | None = None
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, batch: int, seconds: float) -> None:
        """Take batches for some seconds, after some that are not counted."""
        assert self.stream is not None
        for _ in range(8):
            next(self.stream)
        count, used, started = 0, time.process_time(), time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or count < 4:
            next(self.stream)
            count += 1
        self.rates.append(count * batch / elapsed)
        self.cpu.append(1e6 * (time.process_time() - used) / count / batch)


def build(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Make the stores and the ``.pt`` files of the same patches."""
    synthetic.write_scenes(folder / "sources", scenes=options.scenes, shape=tuple(options.shape))
    stores: dict[str, Path] = {codec: folder / f"{codec}.zarr" for codec in CODECS}
    for codec, path in stores.items():
        recipe = Recipe(channels=(CHANNEL,), codec=codec, tile=TileSpec(patch=options.patch))
        pipeline.preprocess(folder / "sources", path, recipe=recipe)
    data = PatchDataset(stores["fast"])
    (folder / "pt").mkdir()
    for i in range(len(data)):
        torch.save(data[i].codes[0, 0].clone(), folder / "pt" / f"{i}.pt")
    return stores


def by_workers(data: Dataset[Any], batches: Shuffled) -> Iterator[Any]:
    """Batches of torch's DataLoader with two workers, without end."""
    return iter(DataLoader(data, batch_sampler=batches, num_workers=2, multiprocessing_context="forkserver"))


def with_xarray(path: Path, batches: Shuffled) -> Iterator[np.ndarray]:
    """What xarray gives without this package, a patch at a time."""
    data = PatchDataset(path)
    table, edge = data.table, data.patch
    array = xr.open_zarr(path, chunks=None, mask_and_scale=False)[CHANNEL].variable
    for batch in batches:
        where = np.stack([table.crop[batch], edge * table.row[batch], edge * table.col[batch]], axis=1)
        yield np.stack([array[c, y : y + edge, x : x + edge].values for c, y, x in where.tolist()])


def loader(path: Path, batches: Shuffled) -> Iterator[Batch]:
    """Packed batches of `PatchLoader`."""
    return iter(PatchLoader(PatchDataset(path), batches))


def decoded(path: Path, batches: Shuffled) -> Iterator[Batch]:
    """The same, whose values are computed too, on the CPU."""
    data = PatchDataset(path)
    for batch in loader(path, batches):
        data.decode(batch)
        yield batch


def ways_of(stores: dict[str, Path], folder: Path, batch: int) -> list[Way]:
    """Every way of reading; the first is what the others are compared with."""
    length = len(PatchDataset(stores["fast"]))
    batches = Shuffled(length, batch)
    loose = LooseFiles(folder / "pt", length)
    ways = [Way(".pt files, DataLoader of 2 workers", partial(by_workers, loose, batches))]
    for codec, path in stores.items():
        ways += [
            Way(f"{codec}: xarray, a patch at a time", partial(with_xarray, path, batches)),
            Way(f"{codec}: DataLoader of 2 workers", partial(by_workers, PatchDataset(path), batches)),
            Way(f"{codec}: PatchLoader", partial(loader, path, batches)),
            Way(f"{codec}: PatchLoader, decoded to float32", partial(decoded, path, batches)),
        ]
    return ways


def check(ways: list[Way]) -> None:
    """Open every way, and see that all give the same first batch."""
    first: np.ndarray | None = None
    for way in ways:
        way.stream = way.open()
        batch = next(way.stream)
        codes = np.asarray(batch.codes[:, 0] if isinstance(batch, Batch) else batch)
        first = codes if first is None else first
        assert np.array_equal(codes, first), way.name


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Build, measure, and write the report."""
    stores = build(folder, options)
    ways = ways_of(stores, folder, options.batch)
    check(ways)
    for _ in range(options.repeats):
        for way in ways:
            way.measure(options.batch, options.seconds)
    rows: list[list[object]] = []
    for way in ways:
        way.stream = None  # ends its workers
        ratio = statistics.median(a / b for a, b in zip(way.rates, ways[0].rates, strict=True))
        cpu = "" if "workers" in way.name else f"{statistics.median(way.cpu):.0f}"
        rows.append([way.name, f"{statistics.median(way.rates):.0f}", f"{ratio:.2f}", cpu])
    return [
        f"{len(PatchDataset(stores['fast']))} patches of {options.patch} px, batches of {options.batch}, "
        f"{options.repeats} turns of {options.seconds} s each.",
        "",
        "Target: PatchLoader reads packed patches 4 times as fast (codec `fast`) and 3 times as fast (`small`) as a "
        "DataLoader with 2 workers reads `.pt` files.",
        "",
        *machine.table(["way", "patches/s", "x .pt", "CPU us/patch"], rows),
    ]


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--shape", type=int, nargs=2, default=(2240, 2856), help="of a scene, pixels")
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7, help="turns that the medians are taken of")
    parser.add_argument("--seconds", type=float, default=0.6, help="that each way is measured for in a turn")
    parser.add_argument(
        "--folder", type=Path, default=None, help="for scratch files; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="also write the table here")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(["gridrad_cube.datasets"])  # workers start from a warm process
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        machine.report("Loading patches", measure(folder, options), options.out)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
