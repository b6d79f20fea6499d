"""Orientation and pixel spacing of the scenes of a store.

A store keeps the order of its source files. Readers of pixels for a network or a picture turn each crop to
north up
and east right by `Orientation`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from gridrad_cube.geometry import orientation, pixel_spacing_km
from gridrad_cube.storage import Files
from gridrad_cube.store.integrity import CheckedStore, read_root

#: Name, in checkpoints and stores of embeddings, of inputs that were turned by `Orientation`.
NORTH_UP = "north up, east right"
#: Crops whose positions are read at once, if the chunks are unknown.
_CROPS_AT_ONCE = 1024
#: Largest number of grids of a store that are compared, evenly spread.
_GRIDS = 64
#: Pixels of a grid that are read, in either direction.
_SAMPLE = 64
#: Relative difference up to which pixel spacings count as equal.
_SPACING_TOLERANCE = 0.1


class Orientation:
    """Whether rows and columns of the crops of a store are reversed when they are read.

    If the grid of a crop has latitude and longitude axes, they decide. On any other grid the positions of its
    patches decide (`gridrad_cube.geometry.orientation`), unless it has only one row or column of them.
    Positions are read by blocks of crops, at the first access.

    Parameters
    ----------
    dataset
        A cube, or embeddings of its patches, as this package opens them.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset
        chunks = dataset["time"].encoding.get("preferred_chunks", {})
        self._block = int(chunks.get("crop", _CROPS_AT_ONCE))
        self._known: dict[int, npt.NDArray[np.bool_]] = {}

    def of(self, crops: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return whether rows, and columns, of these crops (N,) are reversed, (N, 2), for
        `gridrad_cube.geometry.reverse`.

        Parameters
        ----------
        crops
            Numbers of the crops.

        Returns
        -------
        Booleans, (N, 2).
        """
        crops = np.asarray(crops, np.int64)
        out = np.zeros((len(crops), 2), bool)
        blocks = crops // self._block
        for number in np.unique(blocks).tolist():
            if number not in self._known:
                first = number * self._block
                self._known[number] = _orient(self._dataset.isel(crop=slice(first, first + self._block)))
            here = blocks == number
            out[here] = self._known[number][crops[here] % self._block]
        return out

    @classmethod
    def of_one(cls, one: xr.Dataset) -> tuple[bool, bool]:
        """Return whether rows, and columns, of a single crop, without the dimension ``crop``, are reversed."""
        rows, columns = _orient(one).tolist()
        return rows, columns


def _orient(crops: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Return the orientation of crops, or of one without the dimension ``crop``, ([crop,] 2)."""
    if not {"latitude", "longitude"} <= set(crops.variables):
        return np.zeros((*(n for d, n in crops.sizes.items() if d == "crop"), 2), bool)
    grids, source = None, crops.encoding.get("source")
    if "grid" in crops.variables and source:
        which, names = pd.factorize(np.asarray(crops["grid"].values, object).reshape(-1))
        grids = [_orient_grid(str(source), str(name)) for name in names]
        of_grid = np.array([flips for flips, _ in grids])[which.reshape(crops["grid"].shape)]
        if all(is_regular for _, is_regular in grids):
            return of_grid
    positions = [crops[name].transpose(..., "row", "col").values for name in ("latitude", "longitude")]
    flips, known = orientation(*positions)
    if grids is not None:
        placed = np.isfinite(positions[0]).any(axis=(-2, -1))
        flips = np.where((placed & ~known.all(axis=-1))[..., None], of_grid, flips)
    return flips


def open_grid(store: str | os.PathLike[str], grid: str) -> xr.Dataset:
    """Open the pixel axes of a source grid of a cube lazily: ``latitude``, ``longitude``, 1-D or 2-D.

    Parameters
    ----------
    store
        Path or URL of a cube.
    grid
        Name of the grid.

    Returns
    -------
    Dataset with ``latitude`` and ``longitude``. Lazy.

    Raises
    ------
    FileNotFoundError
        If the store has no such grid.
    """
    files = Files(store)
    there = CheckedStore(files, read_root(files))
    return xr.open_zarr(there, group=f"grids/{grid}", chunks=None, consolidated=False)


@functools.lru_cache(maxsize=4096)
def _orient_grid(source: str, grid: str) -> tuple[tuple[bool, bool], bool]:
    """Return the orientation of a source grid, and whether it has axes; not reversed if the store lacks the
    grid.
    """
    found = _open(source, grid)
    if found is None:
        return (False, False), False
    step = max(1, max(values.shape[0] for values in found) // _SAMPLE)
    flips = orientation(*(values[(slice(None, None, step),) * values.ndim] for values in found))[0]
    rows, columns = flips.tolist()
    return (rows, columns), found[0].ndim == 1


def _open(source: str, grid: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return latitude and longitude of a source grid, axes or on ``(y, x)``; None if the store lacks the
    grid.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", grid):
        return None
    try:
        opened = open_grid(source, grid)
    except (FileNotFoundError, KeyError):
        return None
    return opened["latitude"].values, opened["longitude"].values


@dataclass(frozen=True)
class Grid:
    """A source grid: rows and columns, distance of neighboring pixels in km down and across, and whether it has axes.

    ``regular`` is a grid of latitude and longitude axes; any other has a position for each pixel.
    """

    shape: tuple[int, int]
    spacing_km: tuple[float | None, float | None]
    regular: bool

    def __str__(self) -> str:
        down, across = ("?" if s is None else f"{s:.3g}" for s in self.spacing_km)
        kind = "latitude and longitude axes" if self.regular else "a position for each pixel"
        return f"{self.shape[0]} x {self.shape[1]} px of {down} x {across} km, {kind}"


def read_grids(dataset: xr.Dataset, crops: npt.NDArray[np.int64] | None = None) -> tuple[list[Grid], int]:
    """Return the different source grids of some crops of a cube, or of all, and the number of grids.

    Of more than 64 grids, only 64 are read. A dataset without a known store has none.

    Parameters
    ----------
    dataset
        The cube.
    crops
        Numbers of the crops; None for all.

    Returns
    -------
    Grids, and the number of all grids.
    """
    source = dataset.encoding.get("source")
    if not source or "grid" not in dataset.variables:
        return [], 0
    every = dataset["grid"].values if crops is None else dataset["grid"].values[crops]
    names = [str(name) for name in dict.fromkeys(every.tolist()) if name]
    step = max(1, -(-len(names) // _GRIDS))
    found = [grid for name in names[::step] if (grid := _read_grid(str(source), name)) is not None]
    return list(dict.fromkeys(found)), len(names)


def _read_grid(source: str, name: str) -> Grid | None:
    found = _open(source, name)
    if found is None:
        return None
    latitude, longitude = found
    down, across = grid_spacing(latitude, longitude)
    shape = latitude.shape[0], longitude.shape[-1]
    return Grid(shape, (_rounded(down), _rounded(across)), regular=latitude.ndim == 1)


def grid_spacing(latitude: np.ndarray, longitude: np.ndarray) -> tuple[float | None, float | None]:
    """Return the distance of pixels from row to row and from column to column in the middle of a grid.

    Parameters
    ----------
    latitude, longitude
        Two axes, or both on ``(y, x)``, degrees.

    Returns
    -------
    Two distances in km; None if unknown.
    """
    if latitude.ndim == 1:
        latitude, longitude = np.broadcast_arrays(latitude[:, None], longitude)
    near = tuple(slice(max(0, (n - _SAMPLE) // 2), (n + _SAMPLE) // 2) for n in latitude.shape)
    latitude, longitude = latitude[near], longitude[near]
    down = pixel_spacing_km(latitude[None], longitude[None], 1)
    across = pixel_spacing_km(latitude.T[None], longitude.T[None], 1)
    return down, across


def _rounded(value: float | None) -> float | None:
    """Round a number to three digits, so that grids that differ by rounding are listed once."""
    return None if value is None else float(f"{value:.3g}")


def compare_grids(grids: Sequence[Grid]) -> str:
    """Describe in words how the scenes of a store differ in pixel spacing or in kind of grid.

    Only the spacing from row to row counts. On a grid of axes, the spacing along a row changes with latitude.

    Parameters
    ----------
    grids
        Grids as of `read_grids`.

    Returns
    -------
    Text; empty if they do not differ.
    """
    spacings = sorted({grid.spacing_km[0] for grid in grids if grid.spacing_km[0]})
    problems = []
    if spacings and spacings[-1] > spacings[0] * (1 + _SPACING_TOLERANCE):
        problems.append(f"pixels of {', '.join(f'{s:g}' for s in spacings)} km")
    if len({grid.regular for grid in grids}) > 1:
        problems.append("grids of latitude and longitude axes beside projections")
    return " and ".join(problems)
