"""Random patches to a network: out of a store, out of loose ``.pt`` files and out of a raw memmap, in one run.

    python benchmarks/loader.py --out benchmarks/results/loader.md         (some minutes)
    python benchmarks/loader.py --scenes 2 --shape 512 768 --batch 8 --repeats 1 --seconds 0.1 --epochs 3

Synthetic satellite scenes are built into two stores (codecs ``fast`` and ``small``); from their clean infrared patches
one ``.pt`` file each (packed, as the store has them) and one float32 memmap are written. Every way of reading then
gives batches of patches drawn at random, in turns: all of them once, then all again, so that a busy machine slows
all alike. Rates are medians; ratios are taken within each turn, then their median. CPU time is this process's alone.
All files are in the page cache: this is about processors, not disks.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the Makefile has it; before torch reads it

import google_crc32c
import machine
import numpy as np
import torch
import xarray as xr
import zarr
from numcodecs import blosc
from torch.utils.data import DataLoader, Dataset

from gridrad_cube import pipeline, synthetic
from gridrad_cube.datasets import Batch, PatchDataset, PatchLoader
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.store import PatchReader

CHANNEL = "ir_brightness_temperature"
CODECS = ("fast", "small")
BASE = ".pt files, DataLoader of 2 workers"


class LooseFiles(Dataset[torch.Tensor]):
    """One ``.pt`` file a patch."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = torch.load(self.folder / f"{index}.pt", weights_only=True)
        return tensor


class OneAtATime(Dataset[Batch]):
    """A `PatchDataset` that a DataLoader can only ask for one sample after the other."""

    def __init__(self, data: PatchDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Batch:
        return self.data[index]


class Shuffled:
    """Batches of indices without end: one permutation after the other."""

    def __init__(self, length: int, batch: int, seed: int = 0) -> None:
        self.length, self.batch, self.seed = length, batch, seed

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(self.seed)
        while True:
            order = rng.permutation(self.length)
            for start in range(0, self.length - self.batch + 1, self.batch):
                yield order[start : start + self.batch].tolist()

    def singles(self) -> Iterator[int]:
        """The same, one after the other."""
        for batch in self:
            yield from batch


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
        if self.stream is None:
            self.stream = self.open()
        for _ in range(8):
            next(self.stream)
        count, used, started = 0, time.process_time(), time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or count < 4:
            next(self.stream)
            count += 1
        self.rates.append(count * batch / elapsed)
        self.cpu.append(1e6 * (time.process_time() - used) / count / batch)


def build(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Make the stores, ``.pt`` files and the memmap of the same patches."""
    synthetic.write_scenes(folder / "sources", scenes=options.scenes, shape=tuple(options.shape))
    tile = TileSpec(patch=options.patch)
    stores = {}
    for codec in CODECS:
        stores[codec] = folder / f"{codec}.zarr"
        recipe = Recipe(channels=(CHANNEL,), codec=codec, tile=tile)
        pipeline.preprocess(folder / "sources", stores[codec], recipe=recipe)
    data = PatchDataset(stores["fast"])
    (folder / "pt").mkdir()
    shape = (len(data), options.patch, options.patch)
    values = np.lib.format.open_memmap(folder / "raw.npy", mode="w+", dtype=np.float32, shape=shape)
    packing = data.normalizations[CHANNEL].packing
    for i in range(len(data)):
        codes = data[i].codes[0, 0]
        torch.save(codes.clone(), folder / "pt" / f"{i}.pt")
        values[i] = packing.decode(codes.numpy())
    values.flush()
    return stores


def loader(data: Dataset[Any], batches: Shuffled, workers: int) -> Iterator[Any]:
    """Batches of torch's DataLoader, without end."""
    context = "forkserver" if workers else None
    return iter(
        DataLoader(data, batch_sampler=batches, num_workers=workers, multiprocessing_context=context)  # type: ignore[arg-type]
    )


def packed_ways(stores: dict[str, Path], folder: Path, batch: int) -> list[Way]:
    """Every way to packed patches."""
    length = len(PatchDataset(stores["fast"]))
    batches = Shuffled(length, batch)
    loose = LooseFiles(folder / "pt", length)
    ways = [
        Way(BASE, lambda: loader(loose, batches, 2)),
        Way(".pt files, in process", lambda: loader(loose, batches, 0)),
    ]
    for codec, path in stores.items():
        ways += [Way(f"{codec}: {name}", open) for name, open in _ways_of(path, batches).items()]
    return ways


def _ways_of(path: Path, batches: Shuffled) -> dict[str, Callable[[], Iterator[Any]]]:
    data = PatchDataset(path)
    table, edge = data.table, data.patch
    where = np.stack([table.crop, table.row, table.col], axis=1)

    def window(i: int) -> tuple[Any, ...]:
        crop, row, col = where[i].tolist()
        return crop, slice(row * edge, (row + 1) * edge), slice(col * edge, (col + 1) * edge)

    def with_xarray() -> Iterator[Any]:
        array = xr.open_zarr(path, chunks=None, mask_and_scale=False)[CHANNEL].variable
        return (np.stack([array[window(i)].values for i in batch]) for batch in batches)

    def with_zarr() -> Iterator[Any]:
        array = zarr.open_array(path / CHANNEL, mode="r")
        return (np.stack([array[window(i)] for i in batch]) for batch in batches)

    def with_zarr_at_once() -> Iterator[Any]:
        array = zarr.open_array(path / CHANNEL, mode="r").async_array

        async def all_of(batch: list[int]) -> Any:
            return np.stack(await asyncio.gather(*(array.getitem(window(i)) for i in batch)))

        return (asyncio.run(all_of(batch)) for batch in batches)

    def with_oindex() -> Iterator[Any]:
        array = zarr.open_array(path / CHANNEL, mode="r")
        for batch in batches:
            chosen, out = where[batch], np.empty((len(batch), edge, edge), data._dtype)
            for row, col in np.unique(chosen[:, 1:], axis=0).tolist():
                mine = np.flatnonzero((chosen[:, 1] == row) & (chosen[:, 2] == col))
                y, x = window(batch[mine[0]])[1:]
                out[mine] = array.oindex[chosen[mine, 0], y, x]
            yield out

    def direct(threads: int) -> Iterator[Any]:
        reader = PatchReader(path, threads=threads)
        return (reader.read(CHANNEL, where[batch]) for batch in batches)

    def patch_loader() -> Iterator[Any]:
        return iter(PatchLoader(PatchDataset(path), batches.singles(), batches.batch))

    def direct_single() -> Iterator[Any]:
        reader = PatchReader(path, threads=1)
        return (np.concatenate([reader.read(CHANNEL, where[[i]]) for i in batch]) for batch in batches)

    return {
        "xarray, a patch at a time": with_xarray,
        "zarr-python, a patch at a time": with_zarr,
        "zarr-python, a batch at once (asyncio)": with_zarr_at_once,
        "zarr-python, oindex": with_oindex,
        "direct, a patch at a time": direct_single,
        "direct, 1 thread": lambda: direct(1),
        "direct, 2 threads": lambda: direct(2),
        "DataLoader of 2 workers, one at a time": lambda: loader(OneAtATime(data), batches, 2),
        "DataLoader of 2 workers, batched": lambda: loader(data, batches, 2),
        "DataLoader in process, batched": lambda: loader(data, batches, 0),
        "PatchLoader": patch_loader,
    }


def decoded_ways(stores: dict[str, Path], folder: Path, batch: int, dtype: torch.dtype) -> list[Way]:
    """Ways to normalised values: a memmap gathered, and stores decoded."""
    data = PatchDataset(stores["fast"])
    batches, rule = Shuffled(len(data), batch), data.normalizations[CHANNEL]
    values = np.load(folder / "raw.npy", mmap_mode="r")
    mean, std = np.float32(rule.mean), np.float32(rule.std)

    def with_numpy() -> Iterator[torch.Tensor]:
        for chosen in batches:
            out = values[chosen]
            out -= mean
            out /= std
            yield torch.from_numpy(out).to(dtype)

    def with_torch() -> Iterator[torch.Tensor]:
        whole = torch.from_numpy(np.load(folder / "raw.npy", mmap_mode="r+"))
        for chosen in batches:
            out = whole.index_select(0, torch.tensor(chosen))
            yield out.sub_(float(mean)).div_(float(std)).to(dtype)

    def decoded(path: Path) -> Iterator[torch.Tensor]:
        data = PatchDataset(path)
        for batch in PatchLoader(data, batches.singles(), batches.batch):
            yield data.decode(batch, dtype=dtype)[0]

    ways = [Way("memmap, numpy", with_numpy), Way("memmap, torch on all cores", with_torch)]
    return ways + [
        Way(f"{codec}: PatchLoader, decoded", functools.partial(decoded, path))
        for codec, path in stores.items()
    ]


def check(ways: list[Way]) -> None:
    """Every way gives the same first batch."""
    first: np.ndarray | None = None
    for way in ways:
        way.stream = way.open()
        batch = next(way.stream)
        codes = np.asarray(batch.codes if isinstance(batch, Batch) else batch)
        codes = codes.reshape(-1, *codes.shape[-2:])
        first = codes if first is None else first
        assert np.array_equal(codes, first), way.name


def run(ways: list[Way], options: argparse.Namespace) -> None:
    """Measure all ways, in turns."""
    for _ in range(options.repeats):
        for way in ways:
            way.measure(options.batch, options.seconds)


def rows_of(ways: list[Way]) -> list[list[object]]:
    """Rows of a table: rate, rate against the first way, CPU time."""
    rows: list[list[object]] = []
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(way.rates, ways[0].rates, strict=True))
        cpu = "" if "workers" in way.name else f"{statistics.median(way.cpu):.0f}"
        rows.append([way.name, f"{statistics.median(way.rates):.0f}", f"{ratio:.2f}", cpu])
    return rows


STEPS = (
    "all of reading packed", "open, pread from the page cache", "CRC-32C", "decompress", "Python and the rest",
    "bytes in the store", "decode to float32",
)  # fmt: skip


def where_time_goes(path: Path, batch: int) -> list[float]:
    """CPU microseconds of the `STEPS` of one patch, each repeated alone in one thread."""
    data = PatchDataset(path)
    reader = PatchReader(path, threads=1)
    rng = np.random.default_rng(1)
    batch = min(batch, len(data))
    chosen = np.stack([rng.permutation(len(data))[:batch] for _ in range(8)])
    table = data.table
    places = [np.stack([table.crop[c], table.row[c], table.col[c]], axis=1) for c in chosen]
    shards = reader._shard_reader(CHANNEL)
    index_bytes, chunks, ranges = shards.layout.index_bytes, [], []
    for crop, row, col in np.concatenate(places).tolist():
        file = path / shards.layout.key(crop)
        index = np.frombuffer(file.read_bytes()[-index_bytes:-4], "<u8").reshape(-1, 2)
        offset, size = index[row * shards.layout.chunks[2] + col].tolist()
        chunks.append(np.frombuffer(file.read_bytes()[offset : offset + size - 4], np.uint8))
        ranges.append((file, offset, size))
    out, codes = np.empty((data.patch, data.patch), data._dtype), data.__getitems__(chosen[0])
    data.decode(codes)

    def read() -> None:
        for file, offset, size in ranges:
            descriptor = os.open(file, os.O_RDONLY)
            os.fstat(descriptor)
            os.pread(descriptor, size, offset)
            os.close(descriptor)

    steps: list[Callable[[], Any]] = [
        lambda: [reader.read(CHANNEL, place) for place in places],
        read,
        lambda: [google_crc32c.value(chunk) for chunk in chunks],
        lambda: [blosc.decompress(chunk, out) for chunk in chunks],
        lambda: [data.decode(codes) for _ in places],
    ]
    times = []
    for step in steps:
        step()
        spent = []
        for _ in range(7):
            started = time.process_time()
            step()
            spent.append(time.process_time() - started)
        times.append(1e6 * min(spent) / len(chunks))
    whole, *parts, decode = times
    size = sum(size for _, _, size in ranges) / len(ranges)
    return [whole, *parts, whole - sum(parts), size, decode]


def _memory(path: str, batch: int, epochs: int, answers: Any) -> None:
    data = PatchDataset(path)
    sizes = []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(data))
        for samples in PatchLoader(data, order, batch):
            data.decode(samples)
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
    answers.put(sizes)


def memory(path: Path, options: argparse.Namespace) -> str:
    """Resident memory of a process of its own after the first epoch and the last."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_memory, args=(str(path), options.batch, options.epochs, answers))
    child.start()
    sizes = answers.get(timeout=600)
    child.join()
    return (
        f"Resident memory of PatchLoader and decode: {sizes[0]:.0f} MiB after epoch 1, {sizes[-1]:.0f} MiB after "
        f"epoch {len(sizes)} (most {max(sizes):.0f})."
    )


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
    parser.add_argument("--epochs", type=int, default=20, help="of the test that memory stays flat")
    parser.add_argument(
        "--folder", type=Path, default=None, help="for scratch files; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    multiprocessing.set_forkserver_preload(["gridrad_cube.datasets"])  # workers start from a warm process
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        machine.report("Loading patches", measure(folder, options), options.out)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Build, measure and tell."""
    stores = build(folder, options)
    packed = packed_ways(stores, folder, options.batch)
    check(packed)
    run(packed, options)
    for way in packed:
        way.stream = None  # ends its workers
    lines = [
        f"{len(PatchDataset(stores['fast']))} patches of {options.patch} px, batches of {options.batch}, "
        f"{options.repeats} turns of {options.seconds} s each.",
        "",
        "Packed codes. To reach: PatchLoader 4 times the rate of `.pt` files in a DataLoader with 2 workers for codec "
        "`fast`, 3 times for `small`.",
        "",
        *machine.table(["way", "patches/s", "x .pt", "CPU us/patch"], rows_of(packed)),
    ]
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        ways = decoded_ways(stores, folder, options.batch, dtype)
        run(ways, options)
        lines += [
            "",
            f"Decoded and normalised to {name}. To reach: half the rate of a float32 memmap that numpy gathers and "
            "normalises (it looks for no missing pixels and takes three times the space); aim 0.8.",
            "",
            *machine.table(["way", "patches/s", "x memmap", "CPU us/patch"], rows_of(ways)),
        ]
    steps = [where_time_goes(path, options.batch) for path in stores.values()]
    rows = [[name, *(f"{of[i]:.1f}" for of in steps)] for i, name in enumerate(STEPS)]
    step = dict(zip(STEPS, steps[0], strict=True))
    whole, decompress = step["all of reading packed"], step["decompress"]
    return [
        *lines,
        "",
        "Where the time of a patch goes: CPU microseconds in one thread, the least of seven trials.",
        "",
        *machine.table(["step", *CODECS], rows),
        "",
        f"Decompression bounds reading: {decompress / whole:.0%} of it for `fast`. Of {options.patch**2 * 2} bytes a "
        f"patch, a core decompresses {options.patch**2 * 2e-3 / decompress:.1f} GB/s. Decoding adds "
        f"{step['decode to float32'] / whole:.0%} of reading; in training a GPU does it.",
        "",
        memory(stores["fast"], options),
    ]


if __name__ == "__main__":
    main()
