"""Small stores of known values, and data sets that misbehave, for several test modules."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from gridrad_cube.datasets import (
    Batch,
    EpochSampler,
)
from gridrad_cube.schema import CHANNELS, FORMAT_VERSION, Flag, Packing
from gridrad_cube.store import (
    ArraySpec,
    ChannelLayout,
    CubeLayout,
    Files,
    small_specs,
    write_array,
    write_crop,
    write_root,
)

IR, VIS, Z, ZMAX = (
    "ir_brightness_temperature", "visible_reflectance", "reflectivity", "reflectivity_column_maximum",
)  # fmt: skip
PATCH, ROWS, COLS = 16, 4, 5
COORDINATES = ("time", "status", "latitude", "longitude", "source")
ALTITUDES = (1.0, 3.0, 5.5)
#: What every channel rejects by default.
ALWAYS = (
    Flag.all_missing | Flag.channel_absent | Flag.non_finite | Flag.unreadable | Flag.constant | Flag.padding
    | Flag.low_coverage
)  # fmt: skip


def write_cube(
    path: Path,
    pixels: dict[str, np.ndarray],
    *,
    small: dict[str, np.ndarray] | None = None,
    packings: dict[str, Packing] | None = None,
    statistics: dict | None = None,
    patch: int = PATCH,
    codec: str = "fast",
) -> Path:
    """A store with these codes, flags 0 and centres on a lattice, unless `small` says otherwise."""
    files = Files(path)
    channels = {}
    for name, codes in pixels.items():
        packing = (packings or {}).get(name, CHANNELS[name].packing)
        channels[name] = ChannelLayout(
            name=name, packing=packing, attributes=CHANNELS[name].attributes(),
            altitudes_km=ALTITUDES[: codes.shape[1]] if codes.ndim == 4 else (),
        )  # fmt: skip
    first = next(iter(pixels.values()))
    crops, (height, width) = len(first), first.shape[-2:]
    layout = CubeLayout(
        channels=channels, crop=(height, width), patch=patch, codec=codec, coordinates=COORDINATES,
        rows_per_chunk=4,
    )  # fmt: skip
    rows, cols = layout.cells
    values = {
        "time": np.datetime64("2024-05-01", "s").astype(np.int64) + 3600 * np.arange(crops),
        "status": np.zeros(crops, np.uint8),
        "latitude": np.broadcast_to(40.0 - np.arange(rows)[:, None], (crops, rows, cols)),
        "longitude": np.broadcast_to(-100.0 + np.arange(cols), (crops, rows, cols)),
        "source": np.array([f"day/{i:03d}.nc" for i in range(crops)], dtype=object),
    }
    for name, codes in pixels.items():
        echo = channels[name].packing.echo(codes).reshape(*codes.shape[:-2], rows, patch, cols, patch)
        values[f"{name}_echo_fraction"] = echo.mean(axis=(-3, -1)).astype(np.float32)
    values |= small or {}
    for row in np.flatnonzero(values["status"] == 0):
        present = {
            name: codes[row] for name, codes in pixels.items()
            if not (values.get(f"{name}_flags", np.zeros(crops, np.uint16))[row] & Flag.channel_absent).all()
        }  # fmt: skip
        write_crop(files, layout, int(row), present)
    specs = {name: layout.pixels(name, crops) for name in pixels}
    for name, spec in small_specs(layout, crops).items():
        dtype = object if spec.dtype == "string" else spec.dtype
        write_array(files, spec, np.asarray(values.get(name, np.zeros(spec.shape)), dtype))
        specs[name] = spec
    levels = max(len(channel.altitudes_km) for channel in channels.values())
    if levels:
        spec = ArraySpec(
            name="altitude", dims=("altitude",), shape=(levels,), dtype="float64", chunks=(levels,)
        )
        write_array(files, spec, np.array(ALTITUDES[:levels]))
        specs["altitude"] = spec
    known = {"ir_brightness_temperature": {"patches": 9, "mean": 270.0, "std": 20.0}}
    info = {
        "format_version": FORMAT_VERSION, "kind": "patches", "patch": patch, "crop": [height, width],
        "channels": {n: c.to_dict() for n, c in channels.items()},
        "training_statistics": known if statistics is None else statistics,
    }  # fmt: skip
    write_root(files, specs, {"gridrad_cube": info})
    return path


def random_codes(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Codes of a channel: data, with all its special codes among them."""
    packing, rng = CHANNELS[name].packing, np.random.default_rng(seed)
    low, high = (16, 17500) if packing.echo_minimum else (packing.valid_minimum, packing.valid_maximum)
    codes = rng.integers(low, high, shape).astype(packing.dtype)
    special = [packing.fill_value, packing.no_echo, packing.low_confidence, packing.clutter,
               packing.out_of_range, packing.non_finite]  # fmt: skip
    for code in special:
        if code is not None:
            codes[rng.random(shape) < 0.05] = code
    return codes


def cell(codes: np.ndarray, row: int, col: int) -> np.ndarray:
    return codes[..., row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]


class FakeDataset:
    """Samples that are their own index; sleeps at random, fails where told."""

    def __init__(self, length: int, *, fail: int | None = None, seconds: float = 0.0):
        self.length, self.fail, self.seconds = length, fail, seconds
        self.read: list[list[int]] = []

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, index) -> Batch:
        self.read.append(list(index))
        time.sleep(self.seconds * ((int(index[0]) * 7919) % 5))
        if self.fail is not None and self.fail in index:
            raise OSError(f"disk gone at {self.fail}")
        index = torch.as_tensor(np.asarray(index))
        return Batch(index[:, None, None, None].to(torch.uint16), index, torch.zeros_like(index))

    def describe(self, index: int) -> dict:
        return {"crop": index, "row": 1}


def whole_epoch(sampler: EpochSampler) -> list[int]:
    return [int(i) for i in sampler.order(np.arange(sampler.length))]


def damaged_store(folder):
    """Three crops of two channels: a shard gone, one with a chunk altered; and their codes."""
    shape = (3, ROWS * PATCH, COLS * PATCH)
    pixels = {name: random_codes(name, shape, seed) for seed, name in enumerate((IR, VIS))}
    statistics = {name: {"mean": 1.0, "std": 1.0} for name in pixels}
    store = write_cube(folder / "s.zarr", pixels, statistics=statistics)
    (store / IR / "c.1.0.0").unlink()
    path = store / VIS / "c.2.0.0"
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # in the first chunk
    path.write_bytes(data)
    return store, pixels


def is_damaged(data, index):
    name = data.labels[data.table.channel[index]]
    crop, row, col = (int(column[index]) for column in (data.table.crop, data.table.row, data.table.col))
    return (name, crop) == (IR, 1) or (name, crop, row, col) == (VIS, 2, 0, 0)


def clean_pixels() -> dict[str, np.ndarray]:
    """Five crops of infrared and of radar at three altitudes."""
    shape = (ROWS * PATCH, COLS * PATCH)
    return {IR: random_codes(IR, (5, *shape), 1), Z: random_codes(Z, (5, 3, *shape), 2)}
