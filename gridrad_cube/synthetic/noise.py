"""Periodic noise tiles and smooth fields on a global lattice: the raw material of the weather.

A field anchored to the Earth, not to a scene: two scenes that share a place see the same values there.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]

#: Nodes of a large-scale field, one a degree; the field repeats after so many degrees.
PERIOD_DEGREES = (60, 120)


def spectral_tile(
    seed: list[int], shape: tuple[int, int], *, slope: float, longest: float, shortest: float, stretch: float = 1.0,
    angle: float = 0.0,
) -> Float32:  # fmt: skip
    """Make periodic Gaussian noise of zero mean and unit deviation with a power-law spectrum.

    Parameters
    ----------
    seed
        Entropy of the generator.
    shape
        Rows and columns; the tile repeats after them.
    slope
        Power falls as wavenumber to the minus this.
    longest, shortest
        Wavelengths in pixels between which the spectrum lies.
    stretch, angle
        How much longer structures are along a direction than across it, and that direction in radians from
        the columns' axis towards growing rows.
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


def window(tile: Float32, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Float32:
    """Cut rows and columns out of a tile that repeats for ever, shape (rows, columns)."""
    return tile.take(rows % tile.shape[0], axis=0).take(columns % tile.shape[1], axis=1)


def _pixel_numbers(axis: Float, drift_degrees: float) -> npt.NDArray[np.int64]:
    # On the lattice of the axis's spacing, so that a texture stays with the Earth whatever the scene.
    step = abs(float(axis[-1] - axis[0])) / max(axis.size - 1, 1) or 1.0
    return np.rint((axis - drift_degrees) / step).astype(np.int64)


class Drifting:
    """A texture tile laid over a grid of 1-D axes, carried by the wind, read some rows at a time.

    ``drift`` is how far it has moved, (northward, eastward) in degrees.
    """

    def __init__(
        self, tile: Float32, axes: tuple[Float, Float], drift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        rows, columns = _pixel_numbers(axes[0], drift[0]), _pixel_numbers(axes[1], drift[1])
        self.tile, self.row_numbers = tile.take(columns % tile.shape[1], axis=1), rows % tile.shape[0]

    def rows(self, part: slice) -> Float32:
        """Values on some rows and every column, shape (rows, columns)."""
        return self.tile.take(self.row_numbers[part], axis=0)


def box(offsets: Float, low: float, high: float) -> slice:
    """Where a monotonic axis lies between two ends; an empty slice where it does not."""
    inside = np.flatnonzero((offsets >= low) & (offsets <= high))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def _spline(position: Float) -> tuple[npt.NDArray[np.int64], Float]:
    # Cubic B-spline: twice differentiable, so that nothing in the sky has creases along node lines.
    base = np.floor(position).astype(np.int64)
    u = position - base
    weights = (
        np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], -1) / 6
    )
    return base[:, None] + np.arange(-1, 3), weights


@dataclass(frozen=True, eq=False)
class Sampler:
    """A large-scale field ready to be read on a latitude-longitude grid, some rows at a time."""

    row_weights: Float32
    columns: Float32

    def rows(self, part: slice) -> Float32:
        """Values on some rows and every column, shape (rows, columns)."""
        weights = self.row_weights[part]
        used = np.flatnonzero(weights.any(axis=0))
        return weights[:, used] @ self.columns[used]


@dataclass(frozen=True, eq=False)
class LargeScale:
    """A smooth random field of unit deviation that drifts and slowly turns into another one.

    ``drift`` is (northward, eastward) in degrees an hour, ``hours`` the time after which it has changed
    into its opposite; 0 stands still.
    """

    nodes: Float
    drift: tuple[float, float] = (0.0, 0.0)
    hours: float = 0.0

    @classmethod
    def draw(
        cls, seed: list[int], *, longest: float, shortest: float, drift: tuple[float, float] = (0.0, 0.0),
        hours: float = 0.0, stretch: float = 1.0, angle: float = 0.0,
    ) -> LargeScale:  # fmt: skip
        """Draw a field whose structures measure ``shortest`` to ``longest`` degrees."""
        tiles = [
            spectral_tile(
                [*seed, k],
                PERIOD_DEGREES,
                slope=3.0,
                longest=longest,
                shortest=shortest,
                stretch=stretch,
                angle=angle,
            )
            for k in (0, 1)
        ]
        return cls(np.stack(tiles).astype(np.float64), drift, hours)

    def _at(self, seconds: float) -> tuple[Float, float, float]:
        hours = seconds / 3600.0
        angle = math.pi * hours / self.hours if self.hours else 0.0
        mixed = math.cos(angle) * self.nodes[0] + math.sin(angle) * self.nodes[1]
        return mixed, (self.drift[0] * hours) % PERIOD_DEGREES[0], (self.drift[1] * hours) % PERIOD_DEGREES[1]

    def points(self, seconds: float, latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Float:
        """Values at points, shape (n,)."""
        nodes, north, east = self._at(seconds)
        rows, row_weights = _spline(np.atleast_1d(np.asarray(latitude, np.float64)) - north)
        columns, column_weights = _spline(np.atleast_1d(np.asarray(longitude, np.float64)) - east)
        picked = nodes[rows[:, :, None] % nodes.shape[0], columns[:, None, :] % nodes.shape[1]]
        return np.einsum("nij,ni,nj->n", picked, row_weights, column_weights)

    def sampler(self, seconds: float, latitude: Float, longitude: Float) -> Sampler:
        """Prepare the field for a grid of 1-D axes."""
        nodes, north, east = self._at(seconds)
        rows, row_weights = _spline(latitude - north)
        columns, column_weights = _spline(longitude - east)
        first = int(rows.min())
        dense = np.zeros((latitude.size, int(rows.max()) - first + 1))
        np.put_along_axis(dense, rows - first, row_weights, axis=1)
        used = nodes[np.arange(first, first + dense.shape[1]) % nodes.shape[0]]
        across = np.einsum("rnk,nk->rn", used[:, columns % nodes.shape[1]], column_weights)
        return Sampler(dense.astype(np.float32), np.ascontiguousarray(across, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class Textures:
    """Small-scale noise in pixels: cumulus cells, storm tops, cirrus streaks, sensor noise."""

    cumulus: Float32
    rough: Float32
    streaks: Float32
    sensor: Float32

    @classmethod
    @functools.lru_cache(maxsize=4)
    def draw(cls, seed: int, angle: float) -> Textures:
        """Draw the tiles of a seed; cirrus streaks lie along ``angle``, in radians from east to north."""
        rng = np.random.default_rng([seed, 13])
        return cls(
            cumulus=spectral_tile([seed, 10], (640, 640), slope=2.2, longest=70, shortest=3.0),
            rough=spectral_tile([seed, 11], (768, 768), slope=3.0, longest=110, shortest=2.0),
            streaks=spectral_tile(
                [seed, 12], (768, 1024), slope=3.4, longest=150, shortest=3.0, stretch=3.0, angle=angle
            ),
            sensor=rng.standard_normal((241, 1021), dtype=np.float32),
        )
