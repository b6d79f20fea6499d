"""A readout: a linear map after which the cosine of two embeddings compares weather, fitted without labels.

Features are standardized, whitened by the covariance of their change between near times at one place, and reduced to
the directions that vary most between places and times. Whitening by the covariance within a class is within-class
covariance normalization (Hatch et al. 2006, Interspeech) and relevant component analysis (Bar-Hillel et al. 2005,
Journal of Machine Learning Research 6); with the reduction it is the linear discriminant of Fisher (1936, Annals of
Eugenics 7), whose classes are here the near times of one place. This module imports numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import SchemaError

__all__ = ["Readout", "ReadoutFit", "fit_arrays"]


def __dir__() -> list[str]:
    return __all__


#: Added to the covariance of change, as a share of its mean variance: directions that hardly change within the
#: samples, and may be noise of rounding, are not amplified without bound. It is fixed, not estimated: shrinkage
#: estimated from the number of samples (OAS) tends to zero in large stores.
_RIDGE = 1e-2
#: Share of its mean below which the deviation of a feature is rounding of float32: the feature is constant.
_CONSTANT = 1e-7
#: Rows whose products are summed at once.
_ROWS = 8192


@dataclass(frozen=True)
class Readout:
    """A linear map of embeddings: standardize, then multiply.

    Attributes
    ----------
    mean, scale
        Of each feature, shape (D,).
    matrix
        Shape (D, k), for standardized features. Its columns are in the order of their variance between places and
        times, in units of the change between near times.
    fitted
        What it was fitted on, JSON types; ``samples`` and ``pairs`` are their numbers.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        """Length of the vectors that it gives."""
        return int(self.matrix.shape[1])

    def apply(self, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Project vectors (..., D) to float32 (..., k); a vector that holds a NaN becomes NaN."""
        rows = np.asarray(vectors, np.float32) - self.mean
        rows /= self.scale
        return np.asarray(rows @ self.matrix, np.float32)


class ReadoutFit:
    """Fit a readout from blocks of samples and of pairs; sums are float64, so that the blocks do not matter.

    Parameters
    ----------
    features
        Length of the vectors.
    """

    def __init__(self, features: int) -> None:
        self.samples, self.pairs = 0, 0
        self._shift: np.ndarray | None = None
        self._sum = np.zeros(features)
        self._products, self._changes = np.zeros((2, features, features))

    def add(self, samples: npt.ArrayLike) -> None:
        """Add samples, shape (N, D); rows that are not finite do not count."""
        rows = np.asarray(samples)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if self._shift is None and len(rows):
            # Near the mean, so that products do not cancel.
            self._shift = rows[:_ROWS].mean(axis=0, dtype=np.float64)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS] - self._shift
            self._sum += part.sum(axis=0)
            self._products += part.T @ part
        self.samples += len(rows)

    def add_change(self, earlier: npt.ArrayLike, later: npt.ArrayLike) -> None:
        """Add pairs of samples of one place at near times, each (M, D); pairs that are not finite do not count."""
        first, second = np.asarray(earlier), np.asarray(later)
        known = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        first, second = first[known], second[known]
        for start in range(0, len(first), _ROWS):
            part = second[start : start + _ROWS].astype(np.float64) - first[start : start + _ROWS]
            self._changes += part.T @ part
        self.pairs += len(first)

    def readout(self, directions: int = 64, **fitted: Any) -> Readout:
        """Make the readout of what was added; standardization alone where no pair was, or no pair changes.

        Parameters
        ----------
        directions
            Number of directions to keep at most.
        fitted
            What the readout says of itself beside the numbers of samples and pairs.

        Raises
        ------
        SchemaError
            If no sample was added, or ``directions`` is less than 1.
        """
        if directions < 1:
            raise SchemaError(f"directions: got {directions}; expected at least 1")
        if self._shift is None:
            raise SchemaError("readout: no sample is finite and clean, so there is nothing to fit it on")
        offset = self._sum / self.samples
        mean, total = self._shift + offset, self._products / self.samples - np.outer(offset, offset)
        scale = np.sqrt(np.diag(total).clip(min=0.0))
        scale = np.where(scale > _CONSTANT * np.abs(mean), scale, 1.0)
        matrix = np.eye(len(mean))
        if self._changes.any():
            # Half of the mean square of a difference is the variance about the mean of the two.
            change = self._changes / (2 * self.pairs * np.outer(scale, scale))
            matrix = _discriminant(total / np.outer(scale, scale), change, directions)
        about = {"samples": self.samples, "pairs": self.pairs, **fitted}
        return Readout(mean.astype(np.float32), scale.astype(np.float32), matrix.astype(np.float32), about)


def fit_arrays(
    samples: npt.ArrayLike, earlier: npt.ArrayLike, later: npt.ArrayLike, directions: int = 64
) -> Readout:
    """Fit a readout from arrays in memory.

    Parameters
    ----------
    samples
        Vectors of many places and times, shape (N, D).
    earlier, later
        Vectors of one place at two near times in each row, shape (M, D).
    directions
        Number of directions to keep, at most D.

    Returns
    -------
    With ``matrix`` of shape (D, min(directions, D)); standardization alone where M is 0.

    Raises
    ------
    SchemaError
        If no sample is finite, or ``directions`` is less than 1.
    """
    fit = ReadoutFit(np.shape(samples)[1])
    fit.add(samples)
    fit.add_change(earlier, later)
    return fit.readout(directions)


def _discriminant(total: np.ndarray, change: np.ndarray, directions: int) -> np.ndarray:
    """The directions of largest total covariance where the covariance of change is the identity (D, directions)."""
    ridge = _RIDGE * np.trace(change) / len(change)
    values, vectors = np.linalg.eigh(change + ridge * np.eye(len(change)))
    white = vectors / np.sqrt(values)
    _, vectors = np.linalg.eigh(white.T @ total @ white)
    matrix = white @ vectors[:, ::-1][:, :directions]
    # A direction has no sign of its own: its largest weight is positive, so that equal fits are equal.
    largest = np.take_along_axis(matrix, np.abs(matrix).argmax(axis=0)[None], axis=0)
    return np.asarray(matrix * np.sign(largest))
