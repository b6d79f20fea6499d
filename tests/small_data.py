"""Small scenes, source files and stores of synthetic weather, for many test modules."""

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


def write_sources(folder: Path, **options: Any) -> list[Path]:
    """Write small source files; `options` are those of `gridrad_cube.synthetic.write_scenes`."""
    return synthetic.write_scenes(folder, **({"scenes": 3, "shape": (96, 160)} | options))


def make_store(folder: Path, *, patch: int = 32, channels: tuple[str, ...] = (), **options: Any) -> Path:
    """Build a small cube from source files in ``folder/sources``; return its path, ``folder/patches.zarr``."""
    write_sources(folder / "sources", **options)
    store = folder / "patches.zarr"
    recipe = Recipe(channels=channels, tile=TileSpec(patch=patch))
    report = pipeline.preprocess(folder / "sources", store, recipe=recipe)
    assert not report.failed, report
    return store


def split_into_patches(array: np.ndarray, patch: int) -> np.ndarray:
    """An array (..., height, width) as its patches: (..., row, col, patch, patch)."""
    *lead, height, width = array.shape
    return array.reshape(*lead, height // patch, patch, width // patch, patch).swapaxes(-3, -2)
