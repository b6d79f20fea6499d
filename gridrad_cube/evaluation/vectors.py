"""Vectors of samples: their directions, their principal components, and how many dimensions they fill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Rows that are projected at once.
_ROWS = 4096


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float64; rows of zeros stay."""
    out = np.asarray(vectors, np.float64)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return np.asarray(out / np.where(length > 0, length, 1.0))


def principal_components(values: np.ndarray, count: int) -> np.ndarray:
    """Project rows on the principal components of all rows: shape (rows, count), float32.

    The baseline that a network has to beat: it needs no training and no choice but the count.
    """
    from scipy.linalg import eigh

    centred = values.astype(np.float32) - values.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows, columns = centred.shape
    few = min(rows, columns)
    products = centred @ centred.T if rows < columns else centred.T @ centred
    weights, vectors = eigh(products, subset_by_index=(max(few - count, 0), few - 1), check_finite=False)
    weights, vectors = weights[::-1], vectors[:, ::-1]
    if rows < columns:
        return np.asarray(vectors * np.sqrt(np.maximum(weights, 0)))
    return np.asarray(centred @ vectors)


@dataclass(frozen=True)
class Axes:
    """A projection of rows: less a mean, on axes; of the rows that it was made from the principal components."""

    mean: np.ndarray
    axes: np.ndarray

    def project(self, values: np.ndarray) -> np.ndarray:
        """Rows in the new coordinates, float32 (rows, axes)."""
        out = np.empty((len(values), self.axes.shape[1]), np.float32)
        for start in range(0, len(values), _ROWS):
            part = slice(start, start + _ROWS)
            out[part] = (values[part].astype(np.float64) - self.mean) @ self.axes
        return out


def principal_axes(values: np.ndarray, count: int) -> Axes:
    """The principal axes of rows, to project other rows on: at most ``count``, and only those with variance."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = values - mean
    weights, vectors = np.linalg.eigh(centred.T @ centred)
    least = max(1e-10 * weights[-1], 1e-20 * len(values) * float(mean @ mean), 1e-300)  # else it is rounding
    kept = np.flatnonzero(weights > least)[::-1][:count]
    return Axes(mean, vectors[:, kept])


def standard_axes(values: np.ndarray) -> Axes:
    """Each column less its mean, by its standard deviation; columns that do not vary are left out."""
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    kept = np.flatnonzero(std > 1e-12 * np.maximum(np.abs(mean), 1.0))
    return Axes(mean, np.eye(len(mean))[:, kept] / std[kept])


def rank_me(vectors: np.ndarray) -> float:
    """Effective number of dimensions: the exponential of the entropy of the singular values (arXiv 2210.02885).

    From 1 to the number of features; 1 if all vectors are zero. Vectors that are not finite do not count.
    """
    values = np.linalg.svd(vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), 1e-300)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def feature_spread(vectors: np.ndarray) -> float:
    """Mean deviation of unit vectors times the root of their length: 1 if evenly spread, 0 if all are alike."""
    unit = unit_vectors(vectors)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))
