"""Small real files and stores for tests, of this package and of programs that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube import pipeline, synthetic
from gridrad_cube.schema import CHANNELS, Recipe, TileSpec


def make_scene(
    shape: tuple[int, int] = (64, 96),
    *,
    channels: tuple[str, ...] = ("ir_brightness_temperature",),
    seed: int = 0,
) -> xr.Dataset:
    """Make a clean scene in memory, as a reader gives it: packed codes, 1-D axes, a time.

    Values are smooth waves with noise inside each channel's typical range; every pixel is observed and, for
    radar, an echo.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 3, shape[0]), np.linspace(0, 4, shape[1]), indexing="ij")
    scene = xr.Dataset(
        coords={
            "latitude": ("y", 45.0 - np.arange(shape[0]) / 56),
            "longitude": ("x", -110.0 + np.arange(shape[1]) / 56),
            "time": np.datetime64("2021-07-05T17:50:17", "s"),
        },
        attrs={"source_format": "cf", "product": "test"},
    )
    for name in channels:
        channel = CHANNELS[name]
        low, high = channel.typical_range
        wave = 0.5 + 0.3 * np.sin(y + seed) * np.cos(x) + 0.02 * rng.standard_normal(shape)
        codes = channel.packing.encode(low + (high - low) * np.clip(wave, 0.05, 0.95))
        scene[name] = (("y", "x"), codes, channel.attributes() | channel.packing.to_attributes())
    return scene


def write_sources(
    folder: str | Path,
    *,
    scenes: int = 3,
    shape: tuple[int, int] = (96, 160),
    format: str = "larc-goes",
    seed: int = 0,
    **options: Any,
) -> list[Path]:
    """Write small faithful source files of a format; see `gridrad_cube.synthetic.write_scenes`."""
    return synthetic.write_scenes(folder, format=format, scenes=scenes, shape=shape, seed=seed, **options)


def make_store(
    folder: str | Path,
    *,
    scenes: int = 3,
    shape: tuple[int, int] = (96, 160),
    patch: int = 32,
    format: str = "larc-goes",
    channels: tuple[str, ...] = (),
    seed: int = 0,
    **options: Any,
) -> Path:
    """Build a small cube from synthetic source files; return its path, ``folder/patches.zarr``."""
    folder = Path(folder)
    write_sources(folder / "sources", scenes=scenes, shape=shape, format=format, seed=seed, **options)
    store = folder / "patches.zarr"
    report = pipeline.preprocess(
        folder / "sources", store, recipe=Recipe(channels=channels, tile=TileSpec(patch=patch))
    )
    if report.failed:
        raise RuntimeError(str(report))
    return store
