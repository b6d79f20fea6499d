"""What benchmarks of networks share: training to the end, and what is done to vectors before they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from gridrad_cube.similarity import unit_rows
from gridrad_cube.training import load_config, train

#: Principal components of pixels.
COMPONENTS = 64


@dataclass(frozen=True)
class Trial:
    """What is trained: words for the reader, options over those of a preset, and the share of the steps it takes."""

    words: str
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "demo"
    length: float = 1.0


def train_whole(cube: Path, out: Path, **options: Any) -> Path:
    """Train to the last step, or resume a run that was interrupted; the checkpoint."""
    result = train(load_config(store=str(cube), out=str(out), **options))
    if result["stopped"]:
        raise SystemExit(f"{out}: stopped at step {result['step']}; the same command resumes it")
    return out / "checkpoint.pth"


def standardized(vectors: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Features (..., D) less their mean, divided by their deviation, over those that a mask (...) says to fit."""
    scaler = StandardScaler().fit(_rows(vectors, fits).astype(np.float64))
    return np.asarray((vectors - scaler.mean_) / scaler.scale_)


def principal_components(vectors: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Components (..., `COMPONENTS`) of vectors (..., D) over those that a mask (...) says to fit."""
    rows = _rows(vectors, fits)
    pca = PCA(min(COMPONENTS, *rows.shape), svd_solver="covariance_eigh").fit(rows)
    return np.asarray((vectors - pca.mean_) @ pca.components_.T)


def _rows(vectors: np.ndarray, fits: np.ndarray) -> np.ndarray:
    rows = vectors[fits].reshape(-1, vectors.shape[-1])
    return np.asarray(rows[np.isfinite(rows).all(axis=1)])


def beside(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Unit vectors of both side by side."""
    return np.concatenate([unit_rows(one), unit_rows(other)], axis=-1)
