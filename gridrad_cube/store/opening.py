"""Opening a finished store lazily, as an xarray Dataset."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from gridrad_cube.schema import Packing, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store.attributes import cube_info, store_info
from gridrad_cube.store.patches import PatchReader

_COORDINATES = frozenset(
    [
        "time",
        "status",
        "latitude",
        "longitude",
        "y_origin",
        "x_origin",
        "grid",
        "scene",
        "source",
        "observation_time",
        "solar_zenith_angle",
        "satellite_zenith_angle",
        "altitude",
        "crs",
        "channel",
        "variable",
        "altitude_km",
    ]
)


def _open(files: Files) -> xr.Dataset:
    dataset = xr.open_zarr(
        files.zarr(), chunks=None, consolidated=True, mask_and_scale=False, decode_times=False
    )
    # Times alone are decoded here: everything else keeps its codes for our own decoding.
    for name in [n for n in dataset.variables if "since" in str(dataset[n].attrs.get("units", ""))]:
        dataset[name] = xr.decode_cf(dataset[[name]])[name]
    dataset.encoding["source"] = files.root
    return dataset


def open_packed(store: str | os.PathLike[str]) -> xr.Dataset:
    """Open a cube lazily with its packed codes as they are stored; see `open_cube`."""
    cube_info(store)
    files = Files(store)
    dataset = _open(files)
    dataset = dataset.set_coords([n for n in dataset.variables if n in _COORDINATES])
    for name in cube_info(store)["channels"]:
        variable = dataset[name].variable
        lazy = _PixelArray(files.root, name, tuple(variable.shape), variable.dtype, None)
        dataset[name] = (variable.dims, indexing.LazilyIndexedArray(lazy), variable.attrs)
    return dataset


def open_cube(store: str | os.PathLike[str]) -> xr.Dataset:
    """Open a cube of patches lazily, decoded to float32, with every coordinate attached.

    Nothing is a dask array: select first, then ``.chunk()``. Pixels that were not observed, or lie outside
    the valid range, are NaN; radar codes without echo decode to about -99 dBZ
    (``.gridrad.reflectivity()`` masks them).

    Parameters
    ----------
    store
        Path or URL of a finished store.

    Returns
    -------
    ``<channel>(crop, [altitude,] y, x)`` with flags, statistics and coordinates per patch on
    ``(crop, [altitude,] row, col)``.

    Raises
    ------
    SchemaError
        If this is no finished cube. Reading a pixel whose chunk is missing or altered raises
        `MissingChunkError`.
    """
    dataset = open_packed(store)
    info = cube_info(store)
    files = Files(store)
    for name in info["channels"]:
        variable = dataset[name].variable
        packing = Packing.from_attributes(variable.attrs, variable.dtype)
        lazy = _PixelArray(files.root, name, tuple(variable.shape), np.dtype("float32"), packing)
        attributes = {k: v for k, v in variable.attrs.items() if k not in packing.to_attributes()}
        dataset[name] = (variable.dims, indexing.LazilyIndexedArray(lazy), attributes)
    return dataset


def open_embeddings(store: str | os.PathLike[str]) -> xr.Dataset:
    """Open an embedding store lazily, with every coordinate attached.

    Returns
    -------
    ``embedding(crop, channel, row, col, feature)`` at level 256, ``embedding(crop, channel, feature)`` at
    level 2k, as stored (float16, float32); NaN where there was nothing to embed. No dask arrays.

    Raises
    ------
    SchemaError
        If this is no finished embedding store, or one of int8, which earlier versions wrote.
    """
    info = store_info(store, "embeddings")
    if info.get("dtype") == "int8":
        raise SchemaError(
            f"{store}: embeddings of int8, which this version no longer reads; expected float16 or float32. Embed "
            "again with --dtype float16."
        )
    dataset = _open(Files(store))
    dataset = dataset.set_coords([n for n in dataset.variables if n in _COORDINATES])
    dataset.encoding["level"] = info.get("level")
    return dataset


def open_grid(store: str | os.PathLike[str], grid: str) -> xr.Dataset:
    """Open the pixel axes of a source grid of a cube lazily: ``latitude``, ``longitude``, 1-D or 2-D.

    Raises
    ------
    FileNotFoundError
        If the store has no such grid.
    """
    return xr.open_zarr(Files(store).zarr(), group=f"grids/{grid}", chunks=None, consolidated=False)


class _PixelArray(BackendArray):
    """Pixels of one channel, decoded if a packing is given. Picklable."""

    def __init__(
        self, root: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], packing: Packing | None
    ) -> None:
        self.root, self.name, self.shape, self.dtype, self.packing = root, name, shape, dtype, packing

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        # In the terms of this dataset's shape: the store may have grown since it was opened.
        exact = tuple(
            slice(*k.indices(n)) if isinstance(k, slice) else int(k)
            for k, n in zip(key, self.shape, strict=True)
        )
        codes = reader(self.root, self.shape[0]).read_window(self.name, exact)
        return codes if self.packing is None else self.packing.decode(codes)


_READERS: dict[tuple[int, str, int], PatchReader] = {}


def reader(root: str, crops: int) -> PatchReader:
    """The process's reader of a store of so many crops, opened once."""
    key = (os.getpid(), root, crops)
    if key not in _READERS:
        _READERS[key] = PatchReader(root)
    return _READERS[key]
