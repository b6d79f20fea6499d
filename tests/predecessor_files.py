"""Files as the predecessor wrote them, made from the description of its layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

CELLS = (8, 8)


def fields(crops: int, *, patch: int = 16, seed: int = 0, night: Iterable[int] = ()) -> list[np.ndarray]:
    """Crops (channel, y, x): kelvin in steps of 0.01, percent in steps of 0.01, smooth and each its own."""
    rng = np.random.default_rng(seed)
    edge = CELLS[0] * patch
    y, x = np.meshgrid(np.linspace(0, 6, edge), np.linspace(0, 6, edge), indexing="ij")
    out = []
    for number in range(crops):
        wave = np.sin(y + number) * np.cos(x) + 0.1 * rng.standard_normal((edge, edge))
        codes = np.stack([np.rint(26500 + 2000 * wave), np.rint(4000 - 1500 * wave)])
        values = (codes * 0.01).astype(np.float32)
        out.append(values[:1] if number in night else values)
    return out


def patches_of(crop: np.ndarray, patch: int) -> np.ndarray:
    """(row, col, channel, y, x), as the predecessor has them."""
    channels, height, width = crop.shape
    blocks = crop.reshape(channels, height // patch, patch, width // patch, patch)
    return np.ascontiguousarray(blocks.transpose(1, 3, 0, 2, 4))


def names(count: int) -> list[str]:
    return [f"NASALARC_GOES16_CONVECTION_DETECTION_20210705_{10 + n // 6:02d}{n % 6}0" for n in range(count)]


def write_npz(folder: Path, crops: Sequence[np.ndarray], patch: int = 16) -> list[Path]:
    """``BASE.npz`` with ``crop`` and ``patches``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{base}.npz" for base in names(len(crops))]
    for path, crop in zip(paths, crops, strict=True):
        np.savez_compressed(path, crop=crop, patches=patches_of(crop, patch))
    return paths


def write_scenes(folder: Path, crops: Sequence[np.ndarray], patch: int = 16, *, bloated: bool = True) -> None:
    """``crops/BASE_crop_C.pt`` and ``patches/BASE_patch_I_J_C.pt``; bloated: each a view of all of its scene."""
    for part in ("crops", "patches"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for base, crop in zip(names(len(crops)), crops, strict=True):
        whole = torch.from_numpy(crop)
        tiles = torch.from_numpy(patches_of(crop, patch))
        for channel in range(len(crop)):
            torch.save(whole[channel], folder / "crops" / f"{base}_crop_{channel}.pt")
            for i, j in np.ndindex(CELLS):
                tile = tiles[i, j, channel]
                path = folder / "patches" / f"{base}_patch_{i}_{j}_{channel}.pt"
                torch.save(tile if bloated else tile.clone(), path)


def flat_patches(crops: Sequence[np.ndarray], patch: int = 16) -> np.ndarray:
    """Slices of all crops one after the other, ``(i * 8 + j) * channels + channel`` in each."""
    return np.concatenate([patches_of(crop, patch).reshape(-1, patch, patch) for crop in crops])


def write_chunks(folder: Path, crops: Sequence[np.ndarray], patch: int = 16, *, each: int = 2) -> None:
    """``Crops/crops_K.pt`` and ``Patches/patches_K.pt``, several patches in a file, K from 1."""
    for part in ("Crops", "Patches"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(crops), each), 1):
        some = crops[start : start + each]
        torch.save(torch.from_numpy(np.concatenate(some)), folder / "Crops" / f"crops_{number}.pt")
        torch.save(torch.from_numpy(flat_patches(some, patch)), folder / "Patches" / f"patches_{number}.pt")


def write_slices(
    folder: Path, crops: Sequence[np.ndarray], patch: int = 16, *, dropped: Iterable[int] = ()
) -> None:
    """``patch_1_N.pt`` as the filter left them: views of the whole chunk, renumbered past what it dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    chunk = torch.from_numpy(flat_patches(crops, patch))
    kept = [n for n in range(len(chunk)) if n not in set(dropped)]
    for number, index in enumerate(kept):
        torch.save(chunk[index], folder / f"patch_1_{number}.pt")
