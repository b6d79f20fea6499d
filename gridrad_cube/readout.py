"""Readouts: linear maps after which the cosine of two embeddings compares weather, fitted without labels.

Features are standardized, whitened by the covariance of their change between near times at one place, and
reduced to
the directions that vary most between places and times. Whitening by the covariance within a class is
within-class
covariance normalization (Hatch et al. 2006, Interspeech) and relevant component analysis (Bar-Hillel et al.
2005,
Journal of Machine Learning Research 6). With the reduction it is the linear discriminant of Fisher (1936,
Annals of
Eugenics 7), where a class is the near times of one place. Whitening by the covariance of all samples instead
gives the distance of Mahalanobis (1936, Proceedings of the National Institute of Sciences of India 2).

An embedding store keeps the readouts of its channels in one file, ``readout.npz``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.schema import SchemaError, read_attribute
from gridrad_cube.selection import choose_labels, labels_of
from gridrad_cube.storage import Files

__all__ = [
    "Readout",
    "ReadoutChoice",
    "ReadoutFit",
    "fit_arrays",
    "network_of",
    "remove_readouts",
    "save_readouts",
    "saved_readout",
]

logger = logging.getLogger(__name__)


def __dir__() -> list[str]:
    return __all__


#: Directions that are kept by default. On real clouds, 128 to 256 directions of a network of 256 features find the same
#: place later more often than 64 (benchmarks/clouds.py); the descriptor has fewer features. Whitening gives each
#: direction the same weight, also those that hold noise, so it keeps fewer.
_DIRECTIONS, _WHITENED = 192, 64
#: Added to the covariance of change, as a share of its mean variance. It limits how much directions are
#: amplified that hardly change within the samples and may be rounding noise. It is fixed, because shrinkage
#: that is estimated from the number of samples (OAS) tends to zero in large stores.
_RIDGE = 1e-3
#: A feature whose deviation is below this share of its mean counts as constant: that is the rounding of
#: float32.
_CONSTANT = 1e-7
#: Rows of one product in float64, which bounds the memory.
_ROWS = 8192
#: Readouts of all channels are in one file, so that they are replaced in one step.
_FILE = "readout.npz"
_PARTS = ("mean", "scale", "matrix")
#: Attributes of a store that decide what its vectors mean.
_NETWORK = (
    "level", "checkpoint", "key", "pool", "normalization", "coarsen", "magnification", "patch", "source_checkpoint"
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Readout:
    """A linear map of embeddings: standardize the features, then multiply by a matrix.

    Attributes
    ----------
    mean, scale
        Mean and scale of each feature, shape (D,).
    matrix
        Shape (D, k), for standardized features. Its columns are in the order of their variance between places and
        times, in units of the change between near times.
    fitted
        Description of the samples, JSON types: numbers of ``samples`` and of ``pairs`` of successive samples
        of one place.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]
    fitted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        """Length of the projected vectors."""
        return int(self.matrix.shape[1])

    def __repr__(self) -> str:
        return f"<Readout of {len(self.mean)} features: {self}>"

    def __str__(self) -> str:
        said = self.fitted
        text = f"{self.directions} directions" if said.get("pairs") else "standardization"
        if said.get("whitened"):
            text = f"whitening, {self.directions} directions, fitted on {said['samples']:,} samples"
        elif "samples" in said:
            text += f", fitted on {said['samples']:,} samples and {said['pairs']:,} pairs"
        if "time" in said:
            text += f" of {' to '.join(said['time'])}"
        if said.get("changed"):
            text += f", in the first {said['crops']:,} crops, before the store changed"
        return text

    def apply(self, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Project vectors. A vector that holds a NaN becomes NaN.

        Products are float64, so that the result for a vector does not depend on the vectors beside it.

        Parameters
        ----------
        vectors
            Shape (..., D).

        Returns
        -------
        float32, shape (..., k).
        """
        rows = np.asarray(vectors)
        weights = self.matrix / self.scale[:, None].astype(np.float64)
        origin = self.mean @ weights
        flat = rows.reshape(-1, rows.shape[-1])
        out = np.empty((len(flat), self.directions), np.float32)
        for start in range(0, len(flat), _ROWS):
            part = slice(start, start + _ROWS)
            out[part] = flat[part].astype(np.float64) @ weights - origin
        return out.reshape(*rows.shape[:-1], self.directions)


#: Readout for samples before they are compared: ``"auto"`` for that of the store if it has one, a `Readout`,
#: or None.
ReadoutChoice = Readout | Literal["auto"] | None


class ReadoutFit:
    """Fit a readout to samples and groups that are added in blocks. Sums are float64, so the size of blocks
    does not matter.

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
        """Add samples.

        Parameters
        ----------
        samples
            Shape (N, D). Rows that are not finite do not count.
        """
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

    def add_change(self, samples: npt.ArrayLike, group: npt.ArrayLike) -> None:
        """Add groups of samples of one place at near times. Deviations from the mean of a group are change.

        Every group must be complete.

        Parameters
        ----------
        samples
            Shape (N, D); rows that are not finite do not count.
        group
            Number of the group of each sample, integers, shape (N,).
        """
        rows = np.asarray(samples)
        known = np.isfinite(rows).all(axis=1)
        _, group, count = np.unique(np.asarray(group)[known], return_inverse=True, return_counts=True)
        if not len(count):
            return
        order = np.argsort(group, kind="stable")
        deviations = rows[known][order].astype(np.float64)
        ends = np.cumsum(count)
        deviations -= np.repeat(np.add.reduceat(deviations, ends - count) / count[:, None], count, axis=0)
        self._changes += deviations.T @ deviations
        self.pairs += len(deviations) - len(count)

    def readout(self, directions: int | None = None, *, whiten: bool = False, **fitted: Any) -> Readout:
        """Return the readout of the added samples.

        Without pairs, or if no pair changes, the readout only standardizes.

        Parameters
        ----------
        directions
            Largest number of directions to keep; None is 192, or 64 with ``whiten``, and at most one for two samples.
        whiten
            Whiten by the covariance of all samples instead of the covariance of change.
        **fitted
            Entries of `Readout.fitted` beside the numbers of samples and pairs.

        Returns
        -------
        The readout.

        Raises
        ------
        SchemaError
            If no sample was added, or ``directions`` is less than 1.
        """
        if directions is not None and directions < 1:
            raise SchemaError(f"directions: got {directions}; expected at least 1")
        if self._shift is None:
            raise SchemaError("readout: no sample is finite and clean, so there is nothing to fit it on")
        if directions is None:
            # Of few samples with many features, most directions do not vary among the samples.
            directions = min(_WHITENED if whiten else _DIRECTIONS, max(1, self.samples // 2))
        offset = self._sum / self.samples
        mean, total = self._shift + offset, self._products / self.samples - np.outer(offset, offset)
        scale = np.sqrt(np.diag(total).clip(min=0.0))
        scale = np.where(scale > _CONSTANT * np.abs(mean), scale, 1.0)
        matrix = np.eye(len(mean))
        if whiten:
            standard = total / np.outer(scale, scale)
            matrix, fitted = _discriminant(standard, standard, directions), {"whitened": True, **fitted}
        elif self._changes.any():
            # A group of n samples has n - 1 independent deviations, and as many pairs of successive samples.
            change = self._changes / (self.pairs * np.outer(scale, scale))
            matrix = _discriminant(total / np.outer(scale, scale), change, directions)
        about = {"samples": self.samples, "pairs": self.pairs, **fitted}
        return Readout(mean.astype(np.float32), scale.astype(np.float32), matrix.astype(np.float32), about)


def fit_arrays(
    samples: npt.ArrayLike, earlier: npt.ArrayLike, later: npt.ArrayLike, directions: int | None = None
) -> Readout:
    """Fit a readout from arrays in memory.

    Parameters
    ----------
    samples
        Vectors of many places and times, shape (N, D).
    earlier, later
        Vectors of one place at two near times in each row, shape (M, D).
    directions
        Number of directions to keep, at most D; None is 192, and at most one for two samples.

    Returns
    -------
    Readout with ``matrix`` of shape (D, min(directions, D)). If M is 0, it only standardizes.

    Raises
    ------
    SchemaError
        If no sample is finite, or ``directions`` is less than 1.
    """
    fit = ReadoutFit(np.shape(samples)[1])
    fit.add(samples)
    first, second = np.asarray(earlier), np.asarray(later)
    for start in range(0, len(first), _ROWS):
        pairs = first[start : start + _ROWS], second[start : start + _ROWS]
        fit.add_change(np.concatenate(pairs), np.tile(np.arange(len(pairs[0])), 2))
    return fit.readout(directions)


def _discriminant(total: np.ndarray, change: np.ndarray, directions: int) -> np.ndarray:
    """Return the directions of largest total covariance in coordinates in which the covariance of change is
    the identity.

    The shape is (D, directions).
    """
    ridge = _RIDGE * np.trace(change) / len(change)
    values, vectors = np.linalg.eigh(change + ridge * np.eye(len(change)))
    white = vectors / np.sqrt(values)
    _, vectors = np.linalg.eigh(white.T @ total @ white)
    matrix = white @ vectors[:, ::-1][:, :directions]
    # The sign of a direction is arbitrary. Its largest weight is made positive, so that equal fits are equal.
    largest = np.take_along_axis(matrix, np.abs(matrix).argmax(axis=0)[None], axis=0)
    return np.asarray(matrix * np.sign(largest))


# Saved with a store


def save_readouts(store: str | os.PathLike[str], readouts: Mapping[str, Readout]) -> None:
    """Save the readouts of an embedding store in one step. They replace earlier readouts.

    Parameters
    ----------
    store
        Path or URL of an embedding store.
    readouts
        Readouts by label of the channel.
    """
    arrays = {f"{name}/{part}": getattr(r, part) for name, r in readouts.items() for part in _PARTS}
    about = json.dumps({name: r.fitted for name, r in readouts.items()}, allow_nan=False)
    Files(store).write_arrays(_FILE, {"about": np.array(about), **arrays})


def remove_readouts(store: str | os.PathLike[str]) -> None:
    """Remove the readouts of an embedding store, if there are any.

    Parameters
    ----------
    store
        Path or URL of an embedding store.
    """
    Files(store).remove(_FILE)


def saved_readout(dataset: xr.Dataset, channel: int | str | None = None) -> Readout | None:
    """Return the readout of a channel that is saved with the store of a dataset.

    Parameters
    ----------
    dataset
        Embeddings of a store, or a part of them.
    channel
        Label or position; None for the first channel.

    Returns
    -------
    None if the store or the channel has no readout, or if the readout was fitted on vectors of another
    network or of other options, which logs a warning. ``fitted["changed"]`` is true if the store has changed
    since the fit, for example by growth: the readout is of its first ``fitted["crops"]`` crops.

    Raises
    ------
    SchemaError
        If the file is damaged, or there is no such channel.
    """
    source = dataset.encoding.get("source")
    name = choose_labels(labels_of(dataset), channel, "readout")[0].name
    if not source:
        return None
    try:
        arrays = Files(source).read_arrays(_FILE)
        about = json.loads(arrays["about"].item())
        if name not in about:
            return None
        fitted = {"network": {}, "identity": "", **about[name]}
        mean, scale, matrix = (arrays[f"{name}/{part}"] for part in _PARTS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise SchemaError(
            f"{source}: the readout of this store is damaged ({error}). Fit it again (gridrad-cube readout), or pass "
            "readout=None."
        ) from error
    info = read_attribute(dataset.attrs, ".gridrad")
    if fitted["network"] != network_of(info):
        logger.warning(
            "%s: the readout of this store was fitted on embeddings of another network, or of other options, and is "
            "not used. Fit it again (gridrad-cube readout).", source,
        )  # fmt: skip
        return None
    changed = fitted["identity"] != info.get("identity")
    # The readout was fitted on all features, not on a part of them.
    whole = len(mean) == dataset.sizes["feature"]
    return Readout(mean, scale, matrix, fitted | {"changed": changed}) if whole else None


def network_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a store's ``gridrad_cube`` attribute that decides what its vectors mean.

    Parameters
    ----------
    info
        The attribute.

    Returns
    -------
    The entries of network, options and source.
    """
    return {name: info.get(name) for name in _NETWORK}
