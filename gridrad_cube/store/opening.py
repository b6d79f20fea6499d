"""Open a finished store lazily, as an xarray Dataset."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from gridrad_cube.schema import Packing, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store.embeddings import EmbeddingReader
from gridrad_cube.store.integrity import CheckedStore, follow, info_of, read_root, remedy, store_info
from gridrad_cube.store.layout import COORDINATES
from gridrad_cube.store.patches import PatchReader

#: Dask chunks of an opened store: None for none, ``"auto"``, a number of crops, or a size for each dimension.
Chunks = Literal["auto"] | int | Mapping[str, int] | None

_COORDINATES = frozenset({*COORDINATES, "altitude", "crs", "channel", "variable", "altitude_km"})
#: Largest number of bytes of embeddings that are read at once, unless one chunk has more.
_READ_BYTES = 64 * 2**20
#: Entries of a variable's encoding that are valid for any part of it, in any format.
_KEPT_ENCODING = frozenset({"units", "calendar", "dtype", "_FillValue", "preferred_chunks"})


def open_packed(store: str | os.PathLike[str]) -> xr.Dataset:
    """Open a cube lazily with its packed codes, as they are stored.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    chunks
        As of `open_cube`.

    Returns
    -------
    As of `open_cube`, with codes in place of values.

    Raises
    ------
    SchemaError
        If this is not a finished cube.
    """
    dataset, info = _open(store, "patches")
    for name in info["channels"]:
        dataset[name] = _pixels(dataset, name, None)
    return dataset


def open_cube(store: str | os.PathLike[str], *, chunks: Chunks = None) -> xr.Dataset:
    """Open a cube of patches lazily, decoded to float32, with every coordinate attached.

    Pixels that were not observed, or lie outside the valid range, are NaN; radar codes without echo decode to about
    -99 dBZ (``.gridrad.reflectivity()`` masks them).

    Parameters
    ----------
    store
        Path or URL of a finished store.
    chunks
        None returns lazy arrays without Dask: select first, then load. ``"auto"`` returns Dask arrays with
        chunks of as many whole crops as fit in Dask's ``array.chunk-size``. A number sets the crops of a
        chunk, and a mapping the sizes as of ``Dataset.chunk``. Coordinates are never Dask arrays.

    Returns
    -------
    ``<channel>(crop, [altitude,] y, x)`` with flags, statistics and coordinates per patch on
    ``(crop, [altitude,] row, col)``. Attributes are text and numbers, so that any part can be saved; the attribute
    ``gridrad_cube`` is JSON, which `store_info` parses.

    Raises
    ------
    SchemaError
        If this is not a finished cube. Reading a pixel whose chunk is missing or altered raises
        `MissingChunkError`.
    """
    dataset = open_packed(store)
    for name in store_info(dataset)["channels"]:
        variable = dataset[name].variable
        dataset[name] = _pixels(dataset, name, Packing.from_attributes(variable.attrs, variable.dtype))
    return _chunked(dataset, chunks, block=1)


def open_embeddings(store: str | os.PathLike[str], *, chunks: Chunks = None) -> xr.Dataset:
    """Open an embedding store lazily, with every coordinate attached.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    chunks
        As for `open_cube`; ``"auto"`` takes whole shards.

    Returns
    -------
    ``embedding(crop, channel, row, col, feature)`` at level 256, ``embedding(crop, channel, feature)`` at
    level 2k, float16 or float32 as stored; NaN for samples without an embedding. Attributes are as of
    `open_cube`.

    Raises
    ------
    SchemaError
        If this is not a finished embedding store, or holds 8-bit integers.
    """
    dataset, _ = _open(store, "embeddings")
    dataset["embedding"] = _vectors(dataset)
    if dataset["embedding"].dtype == np.float16:  # which netCDF does not have
        dataset["embedding"].encoding["dtype"] = np.dtype(np.float32)
    return _chunked(dataset, chunks, block=dataset["embedding"].encoding["preferred_chunks"].get("crop", 1))


def source_path(store: str | os.PathLike[str], source: str) -> str:
    """Return the path or URL of the source of a store. A local store names a local source relative to itself.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    source
        Source as the store names it.

    Returns
    -------
    Path or URL.
    """
    store = os.fspath(store)
    if not store or "://" in store or "://" in source:
        return source
    return os.path.normpath(os.path.join(os.path.dirname(store), source))


def _open(store: str | os.PathLike[str], kind: str) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return a store without decoding, except for times, and its ``gridrad_cube`` attribute."""
    files = Files(store)
    root = read_root(files)
    info = info_of(root.attributes, os.fspath(store), kind)
    try:
        dataset = xr.open_zarr(
            CheckedStore(files, root),
            chunks=None,
            consolidated=True,
            mask_and_scale=False,
            decode_times=False,
        )
    except SchemaError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        raise SchemaError(
            f"{files.root}: the metadata of its arrays cannot be read ({error!r}). Run: {remedy(files)}"
        ) from error
    # Only times are decoded here; other variables keep their codes for the decoding of this package.
    for name in [n for n in dataset.variables if "since" in str(dataset[n].attrs.get("units", ""))]:
        dataset[name] = xr.decode_cf(dataset[[name]])[name]
    dataset = dataset.set_coords([n for n in dataset.variables if n in _COORDINATES])
    for variable in dataset.variables.values():
        edges = variable.encoding.get("shards") or variable.encoding["chunks"]
        encoding = variable.encoding | {"preferred_chunks": dict(zip(variable.dims, edges, strict=True))}
        variable.encoding = {k: v for k, v in encoding.items() if k in _KEPT_ENCODING}
    dataset.attrs = {
        # Text and numbers, which all formats can hold.
        name: value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in dataset.attrs.items()
    }
    dataset.encoding = {"source": files.root}
    return dataset, info


def _pixels(dataset: xr.Dataset, name: str, packing: Packing | None) -> xr.Variable:
    """Return a channel's pixels lazily: packed codes, or values if a packing is given."""
    variable = dataset[name].variable
    dtype = variable.dtype if packing is None else np.dtype(np.float32)
    state = store_info(dataset).get("checksum")
    lazy = _PixelArray(dataset.encoding["source"], state, name, tuple(variable.shape), dtype, packing)
    coded = {} if packing is None else packing.to_attributes()
    attributes = {k: v for k, v in variable.attrs.items() if k not in coded}
    return xr.Variable(variable.dims, indexing.LazilyIndexedArray(lazy), attributes)


def _vectors(dataset: xr.Dataset) -> xr.Variable:
    """Return the embeddings as a lazy array that is read by chunk, so that errors name crop and channel of a
    chunk.

    If another program wrote the store in other chunks, zarr-python reads them.
    """
    variable, source = dataset["embedding"].variable, dataset.encoding["source"]
    state = store_info(dataset).get("checksum")
    try:
        _embedding_reader(os.getpid(), source, state).together  # noqa: B018 (refuses chunks that it cannot read)
    except SchemaError:
        return variable
    lazy = _EmbeddingArray(source, state, tuple(variable.shape), variable.dtype)
    return xr.Variable(variable.dims, indexing.LazilyIndexedArray(lazy), variable.attrs, variable.encoding)


def _chunked(dataset: xr.Dataset, chunks: Chunks, *, block: int) -> xr.Dataset:
    """Return the data variables as Dask arrays of whole crops, by default a multiple of ``block`` in a chunk."""
    if chunks is None:
        return dataset
    import dask  # it would double the time of opening

    if isinstance(chunks, str):
        if chunks != "auto":
            raise ValueError(f"chunks: got {chunks!r}; expected 'auto', a number of crops, a mapping or None")
        largest = max(math.prod(v.shape[1:]) * v.dtype.itemsize for v in dataset.data_vars.values())
        crops = dask.utils.parse_bytes(dask.config.get("array.chunk-size")) // max(1, largest)
        sizes = {"crop": max(block, crops // block * block)}
    else:
        sizes = {"crop": chunks} if isinstance(chunks, int) else {"crop": block, **chunks}
    return dataset.assign(
        {
            name: variable.chunk({dim: n for dim, n in sizes.items() if dim in variable.dims})
            for name, variable in dataset.variables.items()
            if name in dataset.data_vars
        }
    )


class _PixelArray(BackendArray):
    """Pixels of one channel, decoded if a packing is given. Picklable."""

    def __init__(
        self,
        root: str,
        state: str | None,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        packing: Packing | None,
    ) -> None:
        self.root, self.state, self.name = root, state, name
        self.shape, self.dtype, self.packing = shape, dtype, packing

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        # In the terms of this dataset's shape: the store may have grown since it was opened.
        exact = tuple(
            slice(*k.indices(n)) if isinstance(k, slice) else int(k)
            for k, n in zip(key, self.shape, strict=True)
        )
        codes = _reader(os.getpid(), self.root, self.shape[0], self.state).read_window(self.name, exact)
        return codes if self.packing is None else self.packing.decode(codes)


class _EmbeddingArray(BackendArray):
    """Embeddings of one state of a store. Picklable."""

    def __init__(self, root: str, state: str | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.root, self.state, self.shape, self.dtype = root, state, shape, dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[int | slice | np.ndarray, ...]) -> np.ndarray:
        crops, channels, *rest = (
            np.atleast_1d(np.arange(n)[k]) for k, n in zip(key, self.shape, strict=True)
        )
        whole = self.shape[2:]
        inner: tuple[Any, ...] = (
            np.ix_(*rest) if any(len(r) != n for r, n in zip(rest, whole, strict=True)) else ()
        )
        reader = _embedding_reader(os.getpid(), self.root, self.state)
        out = np.empty([len(crops), len(channels), *map(len, rest)], self.dtype)
        each = len(channels) * math.prod(whole) * self.dtype.itemsize
        step = max(1, _READ_BYTES // max(each * reader.together, 1)) * reader.together
        for first in range(0, len(crops), step):
            some = crops[first : first + step]
            index = np.repeat(some, len(channels)), np.tile(channels, len(some))
            vectors = reader.read(*index).reshape(len(some), len(channels), *whole)
            out[first : first + step] = vectors[(..., *inner)]
        if reader.files.stamp("zarr.json") != reader.root.stamp:
            reader.root = follow(reader.files, self.state)
        return out[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]


@functools.lru_cache(maxsize=16)
def _embedding_reader(pid: int, root: str, state: str | None) -> EmbeddingReader:
    """Return the process's reader of an embedding store in a state, opened once."""
    reader = EmbeddingReader(root)
    reader.root = follow(reader.files, state)
    return reader


@functools.lru_cache(maxsize=16)
def _reader(pid: int, root: str, crops: int, state: str | None) -> PatchReader:
    """Return the process's reader of a store with this number of crops in a state, opened once."""
    reader = PatchReader(root)
    reader.root = follow(reader.files, state)
    return reader
