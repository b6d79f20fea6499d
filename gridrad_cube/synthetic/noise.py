"""Periodic noise and smooth random fields on a global lattice.

The fields are anchored to the Earth, not to a scene: two scenes that share a place see the same values there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]
#: A field on a grid, given for some rows at a time, shape (rows, columns).
Rows = Callable[[slice], Float32]

#: Nodes of a smooth field, one per degree; the field repeats after as many degrees.
_PERIOD = (60, 120)


def spectral_tile(
    seed: list[int], shape: tuple[int, int], *, slope: float, longest: float, shortest: float,
    stretch: float = 1.0, angle: float = 0.0,
) -> Float32:  # fmt: skip
    """Draw periodic Gaussian noise of zero mean and unit deviation with a power-law spectrum.

    Parameters
    ----------
    seed
        Entropy of the generator.
    shape
        Rows and columns, after which the tile repeats.
    slope
        Power falls as the wavenumber to the power of ``-slope``.
    longest, shortest
        Range of wavelengths in pixels.
    stretch, angle
        Ratio of the length of structures to their width, and the direction of the length in radians from the
        axis of the columns towards growing rows.

    Returns
    -------
    float64 of this shape.
    """
    rng = np.random.default_rng(seed)
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    along = kx * math.cos(angle) + ky * math.sin(angle)
    across = ky * math.cos(angle) - kx * math.sin(angle)
    k = np.hypot(along * stretch**0.5, across / stretch**0.5)
    k[0, 0] = np.inf
    amplitude = (1.0 / k) ** (slope / 2) * np.exp(-((1.0 / (longest * k)) ** 2) - (k * shortest) ** 2)
    phases = rng.standard_normal((2, *k.shape), dtype=np.float32)
    field = np.fft.irfft2(amplitude * (phases[0] + 1j * phases[1]), s=shape)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def cut_tile(tile: Float32, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Float32:
    """Select rows and columns of a tile that repeats in both directions.

    Parameters
    ----------
    tile
        The tile.
    rows, columns
        Numbers of rows and columns, which may lie outside of the tile.

    Returns
    -------
    Shape (rows, columns).
    """
    return tile.take(rows % tile.shape[0], axis=0).take(columns % tile.shape[1], axis=1)


def axis_box(offsets: Float, low: float, high: float) -> slice:
    """Find where a monotonic axis lies between two ends; an empty slice where it does not."""
    inside = np.flatnonzero((offsets >= low) & (offsets <= high))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def lay_tile(tile: Float32, axes: tuple[Float, Float], drift: tuple[float, float] = (0.0, 0.0)) -> Rows:
    """Lay a tile on a grid of 1-D axes, moved by ``drift`` (northward, eastward) degrees."""
    # Pixels are counted on the lattice of the axis, so that the texture stays with the Earth in every scene.
    steps = [abs(float(axis[-1] - axis[0])) / max(axis.size - 1, 1) or 1.0 for axis in axes]
    rows, columns = (
        np.rint((axis - moved) / step).astype(np.int64)
        for axis, moved, step in zip(axes, drift, steps, strict=True)
    )
    cut, rows = tile.take(columns % tile.shape[1], axis=1), rows % tile.shape[0]
    return lambda part: cut.take(rows[part], axis=0)


class SmoothField:
    """A smooth random field of unit deviation that drifts and changes slowly.

    ``drift`` is (northward, eastward) in degrees per hour. After ``hours`` the field has become its opposite.
    ``spectrum`` are the options of `spectral_tile`, lengths in degrees.
    """

    def __init__(
        self,
        seed: list[int],
        drift: tuple[float, float] = (0.0, 0.0),
        hours: float = math.inf,
        **spectrum: float,
    ) -> None:
        self.drift, self.hours = drift, hours
        tiles = (spectral_tile([*seed, k], _PERIOD, slope=3.0, **spectrum) for k in (0, 1))
        self.nodes = [tile.astype(np.float64) for tile in tiles]

    def points(self, seconds: float, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Float:
        """Return the values at points, shape (n,)."""
        nodes, north, east = self._at(seconds)
        rows, row_weights = _spline(np.atleast_1d(np.asarray(latitude, np.float64)) - north)
        columns, column_weights = _spline(np.atleast_1d(np.asarray(longitude, np.float64)) - east)
        picked = nodes[rows[:, :, None] % nodes.shape[0], columns[:, None, :] % nodes.shape[1]]
        return np.einsum("nij,ni,nj->n", picked, row_weights, column_weights)

    def on_grid(self, seconds: float, axes: tuple[Float, Float]) -> Rows:
        """Prepare the field for a grid of 1-D axes."""
        nodes, north, east = self._at(seconds)
        rows, row_weights = _spline(axes[0] - north)
        columns, column_weights = _spline(axes[1] - east)
        first = int(rows.min())
        weights = np.zeros((axes[0].size, int(rows.max()) - first + 1))
        np.put_along_axis(weights, rows - first, row_weights, axis=1)
        weights = weights.astype(np.float32)
        here = nodes[np.arange(first, first + weights.shape[1]) % nodes.shape[0]]
        across = np.einsum("rnk,nk->rn", here[:, columns % nodes.shape[1]], column_weights)
        across = np.ascontiguousarray(across, dtype=np.float32)

        def rows_of(part: slice) -> Float32:
            used = np.flatnonzero(weights[part].any(axis=0))
            return weights[part][:, used] @ across[used]

        return rows_of

    def _at(self, seconds: float) -> tuple[Float, float, float]:
        hours = seconds / 3600.0
        angle = math.pi * hours / self.hours
        mixed = math.cos(angle) * self.nodes[0] + math.sin(angle) * self.nodes[1]
        return mixed, (self.drift[0] * hours) % _PERIOD[0], (self.drift[1] * hours) % _PERIOD[1]


def _spline(position: Float) -> tuple[npt.NDArray[np.int64], Float]:
    # A cubic B-spline is twice differentiable: the fields have no creases along the lines of nodes.
    base = np.floor(position).astype(np.int64)
    u = position - base
    weights = (
        np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], -1) / 6
    )
    return base[:, None] + np.arange(-1, 3), weights


class _Textures(NamedTuple):
    """Noise at the scale of pixels."""

    cumulus: Float32
    rough: Float32
    streaks: Float32
    sensor: Float32


@functools.lru_cache(maxsize=4)
def draw_textures(seed: int, angle: float) -> _Textures:
    """Draw the tiles of a seed; ``angle`` is the direction of the cirrus streaks, radians from east to north."""
    rng = np.random.default_rng([seed, 13])
    return _Textures(
        cumulus=spectral_tile([seed, 10], (640, 640), slope=2.2, longest=70, shortest=3.0),
        rough=spectral_tile([seed, 11], (768, 768), slope=3.0, longest=110, shortest=2.0),
        streaks=spectral_tile(
            [seed, 12], (768, 1024), slope=3.4, longest=150, shortest=3.0, stretch=3.0, angle=angle
        ),
        sensor=rng.standard_normal((241, 1021), dtype=np.float32),
    )
