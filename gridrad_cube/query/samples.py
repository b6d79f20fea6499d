"""Samples of a store: where each is along the store's dims, and what the store holds there.

A sample is a patch of a channel in a store of patch embeddings, a crop of a channel in one of level 2k, and
a patch with all its channels in a cube. Samples are mappings from the store's dims to integer positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from gridrad_cube.geometry import mean_position, wrap_longitude
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.store import store_info

#: Positions of samples along each dim that tells them apart, arrays of one length.
Index = Mapping[str, np.ndarray]

SAMPLE_DIMS = ("crop", "channel", "row", "col")
#: Bytes that one read of scattered samples may take.
READ_BYTES = 64 * 2**20
#: Crops whose small variables are looked at together.
CROPS_AT_ONCE = 4096


def is_embeddings(dataset: xr.Dataset) -> bool:
    """Whether this is an embedding store (else a cube of patches).

    Raises
    ------
    SchemaError
        If it is neither.
    """
    if "crop" in dataset.dims and "embedding" in dataset.data_vars:
        return True
    if "crop" in dataset.dims and any({"crop", "y", "x"} <= set(v.dims) for v in dataset.data_vars.values()):
        return False
    raise SchemaError(
        f".gridrad: neither a store of embeddings nor a cube of patches, got dims {dict(dataset.sizes)}. Open it "
        "with open_embeddings or open_cube, and select crops by a list or slice so that the dimension stays."
    )


def sample_dims(dataset: xr.Dataset) -> tuple[str, ...]:
    """The dims that tell samples apart, in the order of the store."""
    if not is_embeddings(dataset):
        return ("crop", "row", "col")
    dims = tuple(d for d in SAMPLE_DIMS if d in dataset["embedding"].dims)
    if "row" in dims and "col" in dims:
        return dims
    if "row" in dims or "col" in dims:
        raise SchemaError(f".gridrad: embeddings on {dims}; select rows and columns by a list or slice")
    return dims


def cell_dims(dataset: xr.Dataset) -> tuple[str, ...]:
    """``("row", "col")`` where samples are patches, ``()`` where they are whole crops (level 2k)."""
    return tuple(d for d in sample_dims(dataset) if d in ("row", "col"))


def patch_and_stride(dataset: xr.Dataset) -> tuple[int, int]:
    """Edge of a patch, and the step from one to the next, in pixels of the source."""
    info = store_info(dataset)
    if "patch" not in info:
        raise SchemaError(f".gridrad: the store does not say its patch size, got attributes {sorted(info)}")
    return int(info["patch"]), int(info.get("stride") or info["patch"])


def labels(dataset: xr.Dataset, dim: str) -> np.ndarray:
    """What samples are called along a dim: its coordinate (a part of a store may keep one), else positions."""
    return dataset[dim].values if dim in dataset.coords else np.arange(dataset.sizes[dim])


def written(dataset: xr.Dataset) -> np.ndarray:
    """Which crops hold data: status written, and a time. Bool, (crop,)."""
    keep = ~np.isnat(dataset["time"].values)
    return keep & (dataset["status"].values == 0) if "status" in dataset.variables else keep


def seconds_of(times: Any) -> np.ndarray:
    """Times as int64 seconds since 1970."""
    return np.asarray(times).astype("datetime64[s]").astype(np.int64)


def crop_blocks(wanted: np.ndarray, size: int = CROPS_AT_ONCE) -> Iterator[slice]:
    """Slices that together hold every wanted crop, at most ``size`` long."""
    for start in range(0, len(wanted), size):
        some = np.flatnonzero(wanted[start : start + size])
        if len(some):
            yield slice(start + int(some[0]), start + int(some[-1]) + 1)


def positions(dataset: xr.Dataset, crops: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the samples of some crops, (crops, row, col) or, at level 2k, (crops,)."""
    latitude, longitude = (dataset[n].variable.isel(crop=crops).values for n in ("latitude", "longitude"))
    if cell_dims(dataset):
        return latitude, longitude
    # Each crop about a meridian of its own: one for all would cut some crop in two.
    cells = int(np.prod(longitude.shape[1:]))  # -1 in its place fails where there are no crops
    flat = longitude.reshape(len(longitude), cells)
    first = np.argmax(np.isfinite(flat), axis=1) if flat.size else np.zeros(len(flat), int)
    base = np.nan_to_num(flat[np.arange(len(flat)), first])
    latitude, offset = mean_position(latitude, wrap_longitude(longitude - base[:, None, None]), (1, 2))
    return latitude, wrap_longitude(offset + base)


def sample_flags(dataset: xr.Dataset, crops: slice | np.ndarray) -> np.ndarray:
    """Flags of the samples of some crops on the sample dims; at level 2k the bits that all patches share."""
    dims = sample_dims(dataset)
    if "flags" not in dataset.variables:
        sizes = dict(dataset.sizes) | {"crop": len(np.arange(dataset.sizes["crop"])[crops])}
        return np.zeros(tuple(sizes[d] for d in dims), np.uint16)
    flags = dataset["flags"].variable.isel(crop=crops)
    if "row" in dims or "row" not in flags.dims:
        return np.asarray(flags.transpose(*dims).values)
    values = flags.transpose(*dims, "row", "col").values
    padding = (values & int(Flag.padding)) != 0
    shared = np.bitwise_and.reduce(np.where(padding, np.uint16(0xFFFF), values), axis=(-2, -1))
    return np.where(padding.all(axis=(-2, -1)), np.uint16(Flag.padding), shared).astype(np.uint16)


def flag_names(flags: int) -> str:
    """Names of the bits, for messages."""
    return ", ".join(f.name for f in Flag if f & flags and f.name) or "no flags"


def read_points(variable: xr.Variable, index: Index) -> np.ndarray:
    """Values of a variable at samples, shape (samples, *other dims), reading each crop once.

    Memory beyond the answer stays within `READ_BYTES` (or one crop).
    """
    here = [d for d in SAMPLE_DIMS if d in variable.dims and d in index]
    rest = [d for d in variable.dims if d not in here]
    if variable.dims != (*here, *rest):
        variable = variable.transpose(*here, *rest)
    count = len(next(iter(index.values())))
    if "crop" not in here:
        return np.asarray(variable.values[tuple(index[d] for d in here)])
    crops, inverse = np.unique(index["crop"], return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.searchsorted(inverse[order], np.arange(len(crops) + 1))
    out = np.empty((count, *(variable.sizes[d] for d in rest)), variable.dtype)
    each = max(variable.nbytes // max(variable.sizes["crop"], 1), 1)
    step = int(max(READ_BYTES // each, 1))
    for i in range(0, len(crops), step):
        some = crops[i : i + step]
        run = int(some[-1]) - int(some[0]) + 1 == len(some)
        block = variable.isel(crop=slice(int(some[0]), int(some[-1]) + 1) if run else some).values
        at = order[ends[i] : ends[i + len(some)]]
        out[at] = block[(inverse[at] - i, *(index[d][at] for d in here[1:]))]
    return out


class _Points(BackendArray):
    """Values of a variable at samples, ``(sample, *other dims)``, read when asked for."""

    def __init__(self, variable: xr.Variable, index: Index) -> None:
        self.variable = variable
        self.index = {d: np.asarray(i) for d, i in index.items() if d in variable.dims}
        rest = [str(d) for d in variable.dims if d not in self.index]
        count = len(next(iter(self.index.values())))
        self.dims, self.dtype = rest, variable.dtype
        self.shape = (count, *(variable.sizes[d] for d in rest))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        which = np.arange(self.shape[0])[key[0]]
        keys = zip(self.dims, key[1:], strict=True)
        rest = {d: k for d, k in keys if isinstance(k, (int, np.integer, slice))}
        index = {d: i[np.atleast_1d(which)] for d, i in self.index.items()}
        values = self._values(index, rest)
        for d, k in reversed(list(zip(self.dims, key[1:], strict=True))):
            if d not in rest:
                axis = 1 + [n for n in self.dims if not isinstance(rest.get(n), (int, np.integer))].index(d)
                values = np.take(values, k, axis=axis)
        return values[0] if np.ndim(which) == 0 else values

    def _values(self, index: Index, rest: dict[str, Any]) -> np.ndarray:
        return read_points(self.variable.isel(rest), index)


def check_pixels(dataset: xr.Dataset) -> None:
    """Refuse a cube whose patches and pixels were cut differently: its pixels would be another patch's.

    Raises
    ------
    SchemaError
        If rows and columns of patches are not all there, in order, with all their pixels.
    """
    size, _ = patch_and_stride(dataset)
    for dim, axis in (("row", "y"), ("col", "x")):
        if dim not in dataset.dims or axis not in dataset.dims:
            continue
        whole = np.array_equal(labels(dataset, dim), np.arange(dataset.sizes[dim]))
        if not whole or dataset.sizes[axis] != dataset.sizes[dim] * size:
            raise SchemaError(
                f".gridrad: the cube was cut along {dim} or {axis}, so patches and pixels no longer match. Select "
                "crops by isel or sel, and patches by .gridrad.patch, .patches or .within."
            )


class Windows(_Points):
    """Pixels of windows of crops, ``(sample, [altitude,] y, x)``, read a window at a time when asked for.

    Parameters
    ----------
    variable
        Pixels of a cube, ``(crop, [altitude,] y, x)``.
    crop, y, x
        Position of the crop, and first pixel, of each window.
    shape
        Of a window, pixels.
    """

    def __init__(
        self, variable: xr.Variable, crop: np.ndarray, y: np.ndarray, x: np.ndarray, shape: tuple[int, int]
    ) -> None:
        super().__init__(variable, {"crop": crop})
        self.index |= {"first_y": y, "first_x": x}
        self.window = shape
        sizes: dict[Any, int] = dict(variable.sizes) | dict(zip(("y", "x"), shape, strict=True))
        self.shape = (self.shape[0], *(sizes[d] for d in self.dims))

    def _values(self, index: Index, rest: dict[str, Any]) -> np.ndarray:
        keys = {d: k for d, k in rest.items() if d not in ("y", "x")}
        inner = tuple(rest.get(d, slice(None)) for d in ("y", "x"))
        out = []
        for crop, *first in zip(index["crop"], index["first_y"], index["first_x"], strict=True):
            y, x = (slice(int(f), int(f) + n) for f, n in zip(first, self.window, strict=True))
            out.append(self.variable.isel(crop=int(crop), y=y, x=x, **keys).values[(..., *inner)])
        if out:
            return np.stack(out)
        dims = [n for n in self.dims if not isinstance(rest.get(n), (int, np.integer))]
        return np.empty((0, *(self.shape[1 + self.dims.index(d)] for d in dims)), self.dtype)


def collect(dataset: xr.Dataset, index: Index, dim: str) -> xr.Dataset:
    """All that a store holds at samples, on one dim ``dim``.

    Data variables stay lazy. Coordinates say which sample each is (``crop``, ``channel``, ``row``, ``col``),
    when and where it is, and where its pixels lie: ``source``, ``scene``, and the window ``y_start``,
    ``y_stop``, ``x_start``, ``x_stop`` in the source's pixels (the stop of a padded patch lies past the end
    of the scene).
    """
    if not is_embeddings(dataset):
        check_pixels(dataset)
    level_2k = not cell_dims(dataset)
    out: dict[str, Any] = {}
    for name, variable in dataset.variables.items():
        dims = set(variable.dims)
        if name in ("status", "y_origin", "x_origin", *SAMPLE_DIMS, "y", "x"):
            continue
        if level_2k and dims & {"row", "col"}:  # of single patches: their mean comes below
            continue
        if {"crop", "y", "x"} <= dims:
            size, _ = patch_and_stride(dataset)
            crop, y, x = (np.asarray(index[d]) * n for d, n in (("crop", 1), ("row", size), ("col", size)))
            lazy: _Points = Windows(variable, crop, y, x, (size, size))
        elif dims & set(index) and name in dataset.data_vars:
            lazy = _Points(variable, index)
        elif dims & set(index):
            rest = tuple(d for d in variable.dims if d not in index)
            out[str(name)] = xr.Variable((dim, *rest), read_points(variable, index), variable.attrs)
            continue
        else:
            out[str(name)] = variable
            continue
        data = indexing.LazilyIndexedArray(lazy)
        out[str(name)] = xr.Variable((dim, *lazy.dims), data, variable.attrs)
    out |= _identity(dataset, index, dim)
    if "channel" in dataset.coords and "channel" not in index:
        out["channel"] = dataset["channel"].variable
    coords = [n for n in out if n not in dataset.data_vars]
    result = xr.Dataset(out, attrs=dataset.attrs).set_coords(coords)
    result.encoding = {k: v for k, v in dataset.encoding.items() if k in ("source", "level")}
    return result


def _identity(dataset: xr.Dataset, index: Index, dim: str) -> dict[str, xr.Variable]:
    """Which samples these are: names along the store's dims, position, flags, and window of pixels."""
    out: dict[str, tuple[Any, ...]] = {
        d: (dim, labels(dataset, d)[i], dataset[d].attrs if d in dataset.coords else {})
        for d, i in index.items()
    }
    crops, inverse = np.unique(index["crop"], return_inverse=True)
    cells = cell_dims(dataset)
    latitude, longitude = positions(dataset, crops)
    at = (inverse, *(index[d] for d in cells))
    out["latitude"] = (dim, latitude[at], {"units": "degrees_north", "standard_name": "latitude"})
    out["longitude"] = (dim, longitude[at], {"units": "degrees_east", "standard_name": "longitude"})
    if is_embeddings(dataset) and not cells and "flags" in dataset.variables:
        dims = [d for d in sample_dims(dataset) if d not in index]
        flags = sample_flags(dataset, crops)
        some = (inverse, index["channel"]) if "channel" in index else (inverse,)
        out["flags"] = ((dim, *dims), flags[some], dataset["flags"].attrs)
    patch, stride = patch_and_stride(dataset)
    for axis, cell in (("y", "row"), ("x", "col")):
        origin = read_points(dataset[f"{axis}_origin"].variable, index).astype(np.int64)
        if cells:
            start, length = origin + labels(dataset, cell)[index[cell]].astype(np.int64) * stride, patch
        else:
            start, length = origin, (dataset.sizes[cell] - 1) * stride + patch
        name = {"y": "row", "x": "column"}[axis]
        out[f"{axis}_start"] = (dim, start, {"long_name": f"first pixel {name} in the source", "units": "1"})
        out[f"{axis}_stop"] = (
            dim,
            start + length,
            {"long_name": f"pixel {name} after the last", "units": "1"},
        )
    return {name: xr.Variable(*value) for name, value in out.items()}
