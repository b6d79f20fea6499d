"""Random patches to a network: out of a store, out of loose ``.pt`` files and out of a raw memmap, in one run.

    python benchmarks/loader.py --out benchmarks/results/loader.txt        (some minutes)
    python benchmarks/loader.py --scenes 2 --shape 512 768 --repeats 1 --seconds 0.1 --epochs 3   (under one)

Synthetic satellite scenes are built into two stores (codecs ``fast`` and ``small``); from their clean infrared patches
one ``.pt`` file each (packed, as the store has them) and one float32 memmap are written. Every way of reading then
gives batches of 64 patches drawn at random, in turns: all of them once, then all again, so that a busy machine
slows all alike. Printed are medians; ratios are taken within each turn, then their median. All files are in the
page cache, so that this is about processors, not disks.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import tensorstore
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
MEMMAPS = ("memmap, numpy", "memmap, torch on all cores")


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

    def with_tensorstore(mode: str) -> Iterator[Any]:
        reader = PatchReader(path, direct=False)
        array = reader._array(CHANNEL)
        for batch in batches:
            if mode == "single":
                yield np.stack([array[window(i)].read().result() for i in batch])
            elif mode == "futures":
                futures = [array[window(i)].read() for i in batch]
                yield np.stack([future.result() for future in futures])
            else:
                yield reader.read(CHANNEL, where[batch])

    def direct(threads: int) -> Iterator[Any]:
        reader = PatchReader(path, threads=threads)
        return (reader.read(CHANNEL, where[batch]) for batch in batches)

    def direct_single() -> Iterator[Any]:
        reader = PatchReader(path, threads=1)
        return (np.concatenate([reader.read(CHANNEL, where[[i]]) for i in batch]) for batch in batches)

    return {
        "xarray, a patch at a time": with_xarray,
        "zarr-python, a patch at a time": with_zarr,
        "zarr-python, a batch at once (asyncio)": with_zarr_at_once,
        "zarr-python, oindex": with_oindex,
        "tensorstore, a patch at a time": lambda: with_tensorstore("single"),
        "tensorstore, futures": lambda: with_tensorstore("futures"),
        "tensorstore, Batch": lambda: with_tensorstore("batch"),
        "direct, a patch at a time": direct_single,
        "direct, 1 thread": lambda: direct(1),
        "direct, 2 threads": lambda: direct(2),
        "DataLoader of 2 workers, one at a time": lambda: loader(OneAtATime(data), batches, 2),
        "DataLoader of 2 workers, batched": lambda: loader(data, batches, 2),
        "DataLoader in process, batched": lambda: loader(data, batches, 0),
        "PatchLoader": lambda: iter(PatchLoader(data, batches.singles(), batches.batch)),
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

    ways = [Way(MEMMAPS[0], with_numpy), Way(MEMMAPS[1], with_torch)]
    return ways + [
        Way(f"{codec}: PatchLoader, decode", _decoding(PatchDataset(path), batches, dtype))
        for codec, path in stores.items()
    ]


def _decoding(data: PatchDataset, batches: Shuffled, dtype: torch.dtype) -> Callable[[], Iterator[Any]]:
    def stream() -> Iterator[torch.Tensor]:
        for batch in PatchLoader(data, batches.singles(), batches.batch):
            yield data.decode(batch, dtype=dtype)[0]

    return stream


def check(stores: dict[str, Path], ways: list[Way]) -> None:
    """Every way gives the same first batch."""
    first = None
    for way in ways:
        way.stream = way.open()
        batch = next(way.stream)
        codes = np.asarray(batch.codes if isinstance(batch, Batch) else batch).reshape(
            -1, *np.asarray(batch.codes if isinstance(batch, Batch) else batch).shape[-2:]
        )
        first = codes if first is None else first
        assert np.array_equal(codes, first), way.name


def run(ways: list[Way], options: argparse.Namespace) -> None:
    """Measure all ways, in turns."""
    for _ in range(options.repeats):
        for way in ways:
            way.measure(options.batch, options.seconds)


def table(ways: list[Way], base: list[Way], against: str) -> list[str]:
    """Lines of rates, ratios and CPU time."""
    best = [max(turn) for turn in zip(*(way.rates for way in base), strict=True)]
    lines = [f"{'':52}{'patches/s':>11}{against:>13}{'CPU us/patch':>14}"]
    for way in ways:
        ratio = statistics.median(rate / b for rate, b in zip(way.rates, best, strict=True))
        cpu = "" if "workers" in way.name else f"{statistics.median(way.cpu):14.0f}"
        lines.append(f"{way.name:52}{statistics.median(way.rates):11.0f}{ratio:13.2f}{cpu}")
    return lines


def where_time_goes(path: Path, batch: int) -> list[str]:
    """CPU time of the steps of one patch, each repeated alone in one thread."""
    data = PatchDataset(path)
    reader = PatchReader(path, threads=1)
    rng = np.random.default_rng(1)
    batch = min(batch, len(data))
    chosen = np.stack([rng.permutation(len(data))[:batch] for _ in range(8)])
    table = data.table
    places = [np.stack([table.crop[c], table.row[c], table.col[c]], axis=1) for c in chosen]
    reader.read(CHANNEL, places[0])
    shards = reader._shard_reader(CHANNEL)
    assert shards is not None
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

    steps: dict[str, Callable[[], Any]] = {
        "all of reading packed": lambda: [reader.read(CHANNEL, place) for place in places],
        "  open, pread from the page cache": read,
        "  CRC-32C": lambda: [google_crc32c.value(chunk) for chunk in chunks],
        "  decompress": lambda: [blosc.decompress(chunk, out) for chunk in chunks],
        "decode and normalise to float32": lambda: [data.decode(codes) for _ in places],
    }
    times = {}
    for name, step in steps.items():
        step()
        spent = []
        for _ in range(5):
            started = time.process_time()
            step()
            spent.append(time.process_time() - started)
        times[name] = 1e6 * statistics.median(spent) / len(chunks)
    parts = [times[name] for name in steps if name.startswith("  ")]
    lines = [f"{name:52}{spent:11.1f}" for name, spent in times.items()]
    lines.insert(4, f"{'  Python and the rest':52}{times['all of reading packed'] - sum(parts):11.1f}")
    share = times["  decompress"] / times["all of reading packed"]
    size = sum(size for _, _, size in ranges) / len(ranges)
    lines.append(
        f"decompression is {share:.0%} of reading; a patch of {out.nbytes} bytes takes {size:.0f} in the store"
    )
    return lines


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
        f"resident memory: {sizes[0]:.0f} MiB after epoch 1, {sizes[-1]:.0f} MiB after epoch {len(sizes)} "
        f"(most {max(sizes):.0f})"
    )


def machine() -> list[str]:
    """Facts that figures hang on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    packages = (np, torch, zarr, numcodecs, tensorstore)
    versions = ", ".join(f"{p.__name__} {getattr(p, '__version__', '?')}" for p in packages)
    return [
        f"{len(os.sched_getaffinity(0))} cores, {model}; {platform.system()}; Python {platform.python_version()}",
        versions,
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
        stores = build(folder, options)
        packed = packed_ways(stores, folder, options.batch)
        check(stores, packed)
        run(packed, options)
        count, given = len(PatchDataset(stores["fast"])), [a for a in sys.argv[1:] if a != "--out"]
        given = [a for a in given if options.out is None or a != str(options.out)]
        lines = [
            f"python benchmarks/loader.py {' '.join(given)}".rstrip(), *machine(),
            f"{count} patches of {options.patch} px, batches of {options.batch}, {options.repeats} turns of "
            f"{options.seconds} s each",
            "", "Packed codes, against .pt files in a DataLoader of 2 workers (to reach: 4 x, aim 6 x)",
            *table(packed, packed[:1], "x .pt"),
        ]  # fmt: skip
        for way in packed:
            way.stream = None  # ends its workers
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            ways = decoded_ways(stores, folder, options.batch, dtype)
            run(ways, options)
            lines += [
                "", f"Decoded and normalised to {name}, against the faster memmap (to reach: 0.5, aim 0.8)",
                *table(ways, ways[:2], "x memmap"),
            ]  # fmt: skip
        for codec in CODECS:
            lines += [
                "",
                f"CPU microseconds a patch, codec {codec}",
                *where_time_goes(stores[codec], options.batch),
            ]
        lines += ["", memory(stores["fast"], options)]
    finally:
        shutil.rmtree(folder)
    print("\n".join(lines))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
