"""Samples of a store: list them, select them, find the one at a place, and read their values.

A sample is a patch of a channel in a store of patch embeddings, a crop of a channel in one of level 2k, and
a patch with all its channels in a cube. Samples are mappings from the store's dims to integer positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from gridrad_cube.geometry import great_circle_km, mean_position, wrap_longitude
from gridrad_cube.schema import Flag, SchemaError, read_attribute
from gridrad_cube.selection import (
    Label,
    Selection,
    as_km,
    as_seconds,
    choose_labels,
    labels_of,
    reject_masks,
    times_of,
)

#: Positions of samples along each of their dims, arrays of one length.
Index = Mapping[str, np.ndarray]

_SAMPLE_DIMS = ("crop", "channel", "row", "col")
#: Largest size of one read of scattered samples, in bytes.
_READ_BYTES = 64 * 2**20
#: Crops whose small variables are read together.
_CROPS_AT_ONCE = 4096
#: Factor for corners that are further away than half the diagonal because meridians converge (a patch of 5
#: degrees).
_CORNER = 1.05
#: Entries of a variable's encoding about its values; the others are about chunks.
_PACKING = ("_FillValue", "add_offset", "dtype", "scale_factor")
#: Distances from places to samples that are computed together.
_DISTANCES = 2**21


# What a store is


def is_embeddings(dataset: xr.Dataset) -> bool:
    """Return whether this is an embedding store, not a cube of patches; an error if it is neither."""
    if "crop" in dataset.dims and "embedding" in dataset.data_vars:
        return True
    if "crop" in dataset.dims and any({"crop", "y", "x"} <= set(v.dims) for v in dataset.data_vars.values()):
        return False
    raise SchemaError(
        f".gridrad: neither a store of embeddings nor a cube of patches, got dims {dict(dataset.sizes)}. Open it "
        "with open_embeddings or open_cube, and select crops by a list or slice so that the dimension stays."
    )


def require_embeddings(dataset: xr.Dataset, name: str) -> None:
    """Refuse a cube of patches."""
    if not is_embeddings(dataset):
        raise SchemaError(
            f"{name}: a cube of patches has no embeddings. Run gridrad-cube embed, open that store."
        )


def sample_dims(dataset: xr.Dataset) -> tuple[str, ...]:
    """Return the dims of samples, in the order of the store.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.

    Returns
    -------
    Names of dims.

    Raises
    ------
    SchemaError
        If ``row`` or ``col`` is missing.
    """
    if "embedding" not in dataset.data_vars:
        return ("crop", "row", "col")
    dims = tuple(d for d in _SAMPLE_DIMS if d in dataset["embedding"].dims)
    if ("row" in dims) != ("col" in dims):
        raise SchemaError(f".gridrad: embeddings on {dims}; select rows and columns by a list or slice")
    return dims


def cell_dims(dataset: xr.Dataset) -> tuple[str, ...]:
    """Return ``("row", "col")`` if samples are patches, ``()`` if they are whole crops (level 2k)."""
    return tuple(d for d in sample_dims(dataset) if d in ("row", "col"))


def writable(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset in a form for ``to_netcdf`` and ``to_zarr``: attributes are text or numbers, without
    chunks.
    """
    out = dataset.drop_encoding()
    out.encoding = {k: v for k, v in dataset.encoding.items() if k in ("source", "level")}
    for name, value in out.attrs.items():
        if isinstance(value, Mapping):
            out.attrs[name] = json.dumps(value)
    for name, variable in out.variables.items():
        variable.encoding = {k: v for k, v in dataset[name].encoding.items() if k in _PACKING}
        if variable.dtype == np.float16:  # netCDF has no half precision
            variable.encoding["dtype"] = "float32"
    return out


def patch_and_stride(dataset: xr.Dataset) -> tuple[int, int]:
    """Return the edge of a patch, and the step from one to the next, in pixels of the source."""
    info = read_attribute(dataset.attrs, ".gridrad")
    if "patch" not in info:
        raise SchemaError(f".gridrad: the store does not say its patch size, got attributes {sorted(info)}")
    return int(info["patch"]), int(info.get("stride") or info["patch"])


def names_along(dataset: xr.Dataset, dim: str) -> np.ndarray:
    """Return the names of samples along a dim: its coordinate (a part of a store may have one), else
    positions.
    """
    return dataset[dim].values if dim in dataset.coords else np.arange(dataset.sizes[dim])


def position_of(dataset: xr.Dataset, dim: str, name: Any) -> int:
    """Return the position of a name along a dim; refuse a name that does not exist."""
    names = names_along(dataset, dim)
    if not len(names):
        raise SchemaError(f".gridrad: the selection is empty, it has no {dim}")
    found = np.flatnonzero(names == name)
    if not len(found):
        raise SchemaError(f".gridrad: no {dim} {name!r}; the store has {names[0]} to {names[-1]}")
    return int(found[0])


def seconds_of(times: Any) -> np.ndarray:
    """Return the times as int64 seconds since 1970."""
    return np.asarray(times).astype("datetime64[s]").astype(np.int64)


def time_step(dataset: xr.Dataset) -> float:
    """Return the median seconds from one time of the store to the next; an hour if it has only one time."""
    times = np.unique(times_of(dataset))
    steps = np.diff(seconds_of(times[~np.isnat(times)]))
    return float(np.median(steps)) if len(steps) else 3600.0


def _crop_blocks(wanted: np.ndarray, size: int = _CROPS_AT_ONCE) -> Iterator[slice]:
    """Yield the slices that together hold every wanted crop, at most ``size`` long."""
    for start in range(0, len(wanted), size):
        some = np.flatnonzero(wanted[start : start + size])
        if len(some):
            yield slice(start + int(some[0]), start + int(some[-1]) + 1)


def positions(dataset: xr.Dataset, crops: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the latitude and longitude of the samples of some crops, (crops, row, col) or, at level 2k,
    (crops,).
    """
    latitude, longitude = (dataset[n].variable.isel(crop=crops).values for n in ("latitude", "longitude"))
    return (latitude, longitude) if cell_dims(dataset) else mean_position(latitude, longitude, (1, 2))


def places_of(dataset: xr.Dataset, index: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the seconds since 1970, latitude and longitude of samples."""
    crops, inverse = np.unique(index["crop"], return_inverse=True)
    at = (inverse, *(index[d] for d in cell_dims(dataset)))
    latitude, longitude = (degrees[at] for degrees in positions(dataset, crops))
    return seconds_of(dataset["time"].values[index["crop"]]), latitude, longitude


def sample_flags(dataset: xr.Dataset, crops: slice | np.ndarray) -> np.ndarray:
    """Return the flags of the samples of some crops on the sample dims; at level 2k the bits that all patches
    share.
    """
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


# Which samples a selection takes


def select(dataset: xr.Dataset, **where: Any) -> npt.NDArray[np.bool_]:
    """Return which samples a `gridrad_cube.selection.Selection` selects.

    In a cube, a patch is selected if one of the requested channels has no rejecting flag.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    where
        The rules.

    Returns
    -------
    Booleans on the sample dims, at least one of them true.

    Raises
    ------
    SchemaError
        If no sample is selected; the message names the rule that excluded the last ones.
    """
    wanted = Selection(**where)
    is_embeddings(dataset)
    times = times_of(dataset)
    keep = wanted.in_time(times)
    dims, known = sample_dims(dataset), labels_of(dataset)
    chosen = choose_labels(known, wanted.channel, "channel", altitude=wanted.altitude)
    bits = dict(zip(chosen, reject_masks(chosen, wanted.reject), strict=True))
    mask = np.zeros(tuple(dataset.sizes[d] for d in dims), bool)
    placed = 0
    for crops in _crop_blocks(keep):
        cells = wanted.in_place(*positions(dataset, crops), times[crops])
        cells &= keep[crops].reshape(-1, *(1 for _ in cells.shape[1:]))
        placed += int(np.count_nonzero(cells))
        if cells.any():
            mask[crops] = _clean(dataset, crops, known, bits)
            mask[crops] &= cells[:, None] if "channel" in dims else cells
    if not mask.any():
        raise SchemaError(_why_nothing(dataset, keep, placed, wanted))
    return mask


def _clean(
    dataset: xr.Dataset, crops: slice, known: Sequence[Label], bits: Mapping[Label, int]
) -> np.ndarray:
    """Return which samples of some crops belong to a requested channel and have none of its rejecting flags."""
    if "embedding" in dataset.data_vars:
        flags = sample_flags(dataset, crops)
        out = np.zeros(flags.shape, bool)
        for i, label in enumerate(known):
            part = (slice(None), i) if "channel" in sample_dims(dataset) else ...
            out[part] = label in bits and (flags[part] & np.uint16(bits[label])) == 0
        return out
    names = {f"{label.variable}_flags" for label in bits}
    stored, clean = dataset[list(names)].reset_coords(drop=True).isel(crop=crops).load(), []
    for label, rejecting in bits.items():
        some = stored[f"{label.variable}_flags"]
        some = some if label.altitude is None else some.isel(altitude=label.altitude)
        clean.append((some.transpose("crop", "row", "col").values & np.uint16(rejecting)) == 0)
    return np.any(clean, axis=0)


def _why_nothing(dataset: xr.Dataset, keep: np.ndarray, placed: int, wanted: Selection) -> str:
    crops = f"{np.count_nonzero(keep)} of {len(keep)} crops are in the requested time"
    if placed:
        return (
            f"within: none of {placed} patches remains in the requested box and time: reject={wanted.reject!r} and "
            "channel= rule out all of them. Pass reject=() to keep every patch."
        )
    lats, lons = (dataset[n].values[keep] for n in ("latitude", "longitude"))
    if not np.isfinite(lats).any():
        return f"within: {crops}, but no patch of them has a position"
    asked = {name: getattr(wanted, name) for name in ("bbox", "polygon", "solar_hour")}
    rules = " and ".join(f"{name} {rule!r:.80}" for name, rule in asked.items() if rule is not None)
    return (
        f"within: no patch center in {rules}; {crops}, and their patches lie at latitudes {np.nanmin(lats):.2f} to "
        f"{np.nanmax(lats):.2f}, longitudes {np.nanmin(lons):.2f} to {np.nanmax(lons):.2f}"
    )


# The sample at a place


def locate(
    dataset: xr.Dataset,
    times: npt.ArrayLike,
    latitude: npt.ArrayLike,
    longitude: npt.ArrayLike,
    *,
    tolerance: Any = None,
    time_tolerance: Any = None,
    required: bool = False,
) -> tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.float64]]:
    """Return the sample at each of many places and times, by the rules of `at`.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    times, latitude, longitude
        Arrays of one length.
    tolerance
        Kilometers; None as of `at`.
    time_tolerance
        Seconds; None as of `at`.
    required
        Raise an error if a place has no sample near enough.

    Returns
    -------
    Positions along each dim of samples except ``channel``, and distances in km; -1 and NaN if no sample is
    near enough.

    Raises
    ------
    SchemaError
        If no crop was written, a latitude or longitude is not valid, or a required sample is missing.
    """
    is_embeddings(dataset)
    seconds, lat, lon = seconds_of(times), np.asarray(latitude, float), np.asarray(longitude, float)
    wrong = np.flatnonzero(~((np.abs(lat) <= 90) & (np.abs(lon) <= 360)))
    if len(wrong):
        raise SchemaError(f"place: got latitude {lat[wrong[0]]}, longitude {lon[wrong[0]]}; expected degrees")
    known = times_of(dataset)
    crops = np.flatnonzero(~np.isnat(known))
    if not len(crops):
        raise SchemaError(".gridrad: no crop was written")
    crops = crops[np.argsort(known[crops], kind="stable")]
    frames, first, count = np.unique(seconds_of(known[crops]), return_index=True, return_counts=True)
    limit = time_step(dataset) if time_tolerance is None else as_seconds(time_tolerance)
    dims = ("crop", *cell_dims(dataset))
    out, distance = {d: np.full(len(seconds), -1) for d in dims}, np.full(len(seconds), np.nan)
    # Frames are searched backward and forward from each time, the nearer one first.
    after = np.searchsorted(frames, seconds)
    fronts, left = np.stack([after - 1, after]), np.arange(len(seconds))
    while len(left):
        here = fronts[:, left]
        away = np.abs(frames[np.clip(here, 0, len(frames) - 1)] - seconds[left]).astype(float)
        away[(here < 0) | (here >= len(frames))] = np.inf
        within = away.min(axis=0) <= limit
        left, here, away = left[within], here[:, within], away[:, within]
        side, at = np.nonzero(away == away.min(axis=0, initial=np.inf))  # both if they are equally far
        fronts[side, left[at]] += 2 * side - 1
        # Every point with every crop of its frame.
        frame, point = here[side, at], left[at]
        pair = np.repeat(np.arange(len(point)), count[frame])
        nth = np.arange(len(pair)) - np.repeat(np.cumsum(count[frame]) - count[frame], count[frame])
        crop, point = crops[first[frame][pair] + nth], point[pair]
        km, cells, limits = _nearest_cells(dataset, crop, lat[point], lon[point], tolerance)
        near = np.flatnonzero(km <= limits)
        near = near[np.lexsort((crop[near], km[near], point[near]))]
        near = near[np.unique(point[near], return_index=True)[1]]
        distance[point[near]] = km[near]
        for d, values in zip(dims, (crop, *cells), strict=True):
            out[d][point[near]] = values[near]
        left = left[out["crop"][left] < 0]
    if required and (out["crop"] < 0).any():
        i, times = int(out["crop"].argmin()), seconds.astype("datetime64[s]")
        some = np.flatnonzero(np.isfinite(seconds_away(dataset, times[i], time_tolerance)))
        raise too_far(dataset, some, lat[i], lon[i], tolerance, f" near {times[i]}")
    return out, distance


def seconds_away(dataset: xr.Dataset, time: np.datetime64, tolerance: Any) -> np.ndarray:
    """Return the seconds from each crop to a time; NaN beyond the tolerance and for crops that were not
    written.
    """
    times = times_of(dataset)
    away = np.abs(times - time) / np.timedelta64(1, "s")
    if np.isnan(away).all():
        raise SchemaError(".gridrad: no crop was written")
    limit = time_step(dataset) if tolerance is None else as_seconds(tolerance)
    nearest = int(np.nanargmin(away))
    if away[nearest] > limit:
        raise SchemaError(
            f"at: nothing within {_span(limit)} of {time}; the nearest time is {times[nearest]}, "
            f"{_span(away[nearest])} away. Pass time_tolerance=."
        )
    away[away > limit] = np.nan
    return away


def _span(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{minutes:.4g} min" if hours < 2 else f"{hours:.4g} h" if hours < 72 else f"{hours / 24:.4g} days"


def too_far(
    dataset: xr.Dataset, crops: np.ndarray, latitude: float, longitude: float, tolerance: Any, when: str
) -> SchemaError:
    """Return the error that no sample of some crops is near enough to a place; it says which one is nearest."""
    point = f"latitude {latitude:g}, longitude {longitude:g}"
    km, cells, limits = _nearest_cells(dataset, crops, latitude, longitude, tolerance)
    i = int(np.argmin(km))
    if np.isinf(km[i]):
        return SchemaError(f"at: no patch with a position{when}; the store has none near {point}")
    index = dict(zip(("crop", *cell_dims(dataset)), (c[i : i + 1] for c in (crops, *cells)), strict=True))
    _, (lat,), (lon,) = places_of(dataset, index)
    nearest = (
        f"the nearest is centered at latitude {lat:.4f}, longitude {lon:.4f} (time {times_of(dataset)[crops[i]]}), "
        f"{km[i]:.1f} km away. Pass tolerance= in km."
    )
    if np.isnan(limits[i]):
        return SchemaError(f"at: the size of a single patch is unknown; {nearest}")
    kind = "half the diagonal of a patch" if tolerance is None else "tolerance"
    return SchemaError(f"at: nothing within {limits[i]:.1f} km ({kind}) of {point}{when}; {nearest}")


def _nearest_cells(
    dataset: xr.Dataset, crops: np.ndarray, latitude: npt.ArrayLike, longitude: npt.ArrayLike, tolerance: Any
) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    """Return the sample of each crop that is nearest to one place, or to a place for each crop.

    Returns its distance in km (infinite if the crop has no position), its row and column, and the distance
    within which it is near enough.
    """
    lat, lon = (np.broadcast_to(np.asarray(v, float), crops.shape) for v in (latitude, longitude))
    shape = tuple(dataset.sizes[d] for d in cell_dims(dataset))
    step = max(_DISTANCES // math.prod(shape), 1)
    parts: list[list[np.ndarray]] = []
    for start in range(0, max(len(crops), 1), step):
        part = slice(start, start + step)
        some, inverse = np.unique(crops[part], return_inverse=True)
        here = (p.reshape(len(some), math.prod(shape))[inverse] for p in positions(dataset, some))
        km = great_circle_km(lat[part, None], lon[part, None], *here)
        km = np.where(np.isnan(km), np.inf, km)
        cells = np.unravel_index(km.argmin(axis=1), shape) if shape else ()
        limits = np.full(len(km), as_km(tolerance))
        if tolerance is None:
            limits = _half_diagonals(dataset, crops[part], cells)
        parts.append([km.min(axis=1), limits, *cells])
    nearest, limits, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return nearest, tuple(columns), limits


def _half_diagonals(dataset: xr.Dataset, crops: np.ndarray, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Return half the diagonal of one patch of each crop (at level 2k of the crop), km, from the patches
    beside it.
    """
    some, at = np.unique(crops, return_inverse=True)
    lat, lon = (dataset[n].variable.isel(crop=some).values for n in ("latitude", "longitude"))
    rows, cols = lat.shape[1:]
    row, col = cells or (rows // 2, cols // 2)
    edges = []
    for axis in (1, 2):
        one, other = (np.arange(lat.shape[axis] - 1) + i for i in (0, 1))
        km = great_circle_km(*(v.take(side, axis) for side in (one, other) for v in (lat, lon)))
        km = np.nan_to_num(km)
        before, after = (np.insert(km, end, 0.0, axis) for end in (0, km.shape[axis]))
        edges.append(np.maximum(before, after)[at, row, col])
    height, width = edges
    height, width = np.where(height == 0, width, height), np.where(width == 0, height, width)
    patch, stride = patch_and_stride(dataset)
    scale = patch / stride
    if not len(cells):
        height, width, scale = height * rows, width * cols, 1.0
    return np.where(height > 0, _CORNER * 0.5 * scale * np.hypot(height, width), np.nan)


def extents_of(dataset: xr.Dataset, index: Index) -> npt.NDArray[np.float64]:
    """Return half of the height and half of the width of samples in degrees, (N, 2), from the patches beside them.

    That is the box around a sample on a grid that is turned against the meridians. NaN for the only patch of a crop.
    """
    some, at = np.unique(index["crop"], return_inverse=True)
    lat, lon = (dataset[n].variable.isel(crop=some).values for n in ("latitude", "longitude"))
    rows, cols = lat.shape[1:]
    cell = at, index.get("row", rows // 2), index.get("col", cols // 2)
    patch, stride = patch_and_stride(dataset)
    counts = (patch / stride,) * 2 if "row" in index else (rows, cols)
    out = np.zeros((len(at), 2))
    for axis, count in zip((1, 2), counts, strict=True):
        for i, steps in enumerate((np.diff(lat, axis=axis), wrap_longitude(np.diff(lon, axis=axis)))):
            steps = np.abs(np.nan_to_num(steps))
            before, after = (np.insert(steps, end, 0.0, axis) for end in (0, steps.shape[axis]))
            out[:, i] += 0.5 * count * np.maximum(before, after)[cell]
    # Of a single row or column of patches the other edge is not known: patches are about square.
    shrink = np.cos(np.deg2rad(np.nan_to_num(lat[cell])))
    height, width = out.T
    square = np.where(height == 0, width * shrink, height), np.where(width == 0, height / shrink, width)
    out = np.stack(square, axis=1)
    return np.where(out > 0, out, np.nan)


def windows_of(dataset: xr.Dataset, index: Index) -> dict[str, npt.NDArray[np.int64]]:
    """Return the windows of samples in the source, in pixels: the first row and column, and those after the last.

    The stop of a padded patch lies past the end of the scene.
    """
    patch, stride = patch_and_stride(dataset)
    cells, out = cell_dims(dataset), {}
    for axis, cell in (("y", "row"), ("x", "col")):
        start = read_points(dataset[f"{axis}_origin"].variable, index).astype(np.int64)
        length = patch if cells else (dataset.sizes[cell] - 1) * stride + patch
        if cells:
            start = start + names_along(dataset, cell)[index[cell]].astype(np.int64) * stride
        out[f"{axis}_start"], out[f"{axis}_stop"] = start, start + length
    return out


# Values of a store at samples


def read_points(variable: xr.Variable, index: Index) -> np.ndarray:
    """Return the values of a variable at samples, shape (samples, *other dims), reading each crop once.

    Besides the result, memory is at most `_READ_BYTES` (or one crop).
    """
    here = [d for d in _SAMPLE_DIMS if d in variable.dims and d in index]
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
    step = int(max(_READ_BYTES // each, 1))
    for i in range(0, len(crops), step):
        some = crops[i : i + step]
        run = int(some[-1]) - int(some[0]) + 1 == len(some)
        block = variable.isel(crop=slice(int(some[0]), int(some[-1]) + 1) if run else some).values
        at = order[ends[i] : ends[i + len(some)]]
        out[at] = block[(inverse[at] - i, *(index[d][at] for d in here[1:]))]
    return out


class Lazy(BackendArray):
    """A lazy array of a shape and dtype, read by ``_read``."""

    shape: tuple[int, ...]
    _read: Callable[..., np.ndarray]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)


class _Points(Lazy):
    """A lazy array of the values of a variable at samples, ``(sample, *other dims)``."""

    def __init__(self, variable: xr.Variable, index: Index) -> None:
        self.variable = variable
        self.index = {d: np.asarray(i) for d, i in index.items() if d in variable.dims}
        self.dims, self.dtype = [str(d) for d in variable.dims if d not in self.index], variable.dtype
        count = len(next(iter(self.index.values())))
        self.shape = (count, *(variable.sizes[d] for d in self.dims))

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        which = np.arange(self.shape[0])[key[0]]
        values = self._values({d: i[np.atleast_1d(which)] for d, i in self.index.items()}, key[1:])
        return values if np.ndim(which) else values[0]

    def _values(self, index: Index, rest: tuple[Any, ...]) -> np.ndarray:
        return _take(read_points(self.variable, index), rest)


def _take(values: np.ndarray, keys: tuple[Any, ...]) -> np.ndarray:
    """Return a part of the last axes of an array, by one key for each axis."""
    for axis, key in zip(range(values.ndim - 1, 0, -1), reversed(keys), strict=False):
        values = values[(slice(None),) * axis + (key,)]
    return values


def check_pixels(dataset: xr.Dataset) -> None:
    """Refuse a cube whose patches and pixels were cut differently, because its pixels would be those of other
    patches.
    """
    size, _ = patch_and_stride(dataset)
    for dim, axis in (("row", "y"), ("col", "x")):
        if dim not in dataset.dims or axis not in dataset.dims:
            continue
        whole = np.array_equal(names_along(dataset, dim), np.arange(dataset.sizes[dim]))
        if not whole or dataset.sizes[axis] != dataset.sizes[dim] * size:
            raise SchemaError(
                f".gridrad: the cube was cut along {dim} or {axis}, so patches and pixels no longer match. Select "
                "crops by isel or sel, and patches by .gridrad.patch, .patches or .within."
            )


class Windows(_Points):
    """A lazy array of the pixels of windows of crops, ``(sample, [altitude,] y, x)``, which reads one window
    at a time.

    The variable is on ``(crop, [altitude,] y, x)``; ``y`` and ``x`` are the first pixel of each window.
    """

    def __init__(
        self, variable: xr.Variable, crop: np.ndarray, y: np.ndarray, x: np.ndarray, shape: tuple[int, int]
    ) -> None:
        super().__init__(variable, {"crop": crop})
        self.index |= {"first_y": y, "first_x": x}
        self.shape = (*self.shape[:-2], *shape)

    def _values(self, index: Index, rest: tuple[Any, ...]) -> np.ndarray:
        height, width = self.shape[-2:]
        levels = rest[:-2]
        shape = self.variable[(0, *levels, slice(height), slice(width))].shape  # lazily
        out = np.empty((len(index["crop"]), *shape), self.dtype)
        for i, (crop, y, x) in enumerate(zip(*index.values(), strict=True)):
            window = slice(int(y), int(y) + height), slice(int(x), int(x) + width)
            out[i] = self.variable[(int(crop), *levels, *window)].values
        return _take(out, rest[-2:])


def collect(dataset: xr.Dataset, index: Index, dim: str) -> xr.Dataset:
    """Return all variables of a store at samples, on one dimension.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    index
        Positions of the samples along each dim.
    dim
        Name of the dimension.

    Returns
    -------
    Data variables are lazy. Coordinates are the names of each sample (``crop``, ``channel``, ``row``,
    ``col``), its time and position, and its pixels: ``source``, ``scene``, and the window ``y_start``,
    ``y_stop``, ``x_start``, ``x_stop`` in pixels of the source. The stop of a padded patch is beyond the end
    of the scene.
    """
    if "embedding" not in dataset.data_vars:
        check_pixels(dataset)
    size, _ = patch_and_stride(dataset)
    dropped = {"status", "y_origin", "x_origin", "y", "x", *_SAMPLE_DIMS}
    out: dict[str, Any] = {}
    for name, variable in dataset.variables.items():
        dims = set(variable.dims)
        if name in dropped or (
            not cell_dims(dataset) and dims & {"row", "col"}
        ):  # at level 2k, of single patches
            continue
        if not dims & set(index):
            out[str(name)] = variable
        elif name not in dataset.data_vars:
            rest = tuple(d for d in variable.dims if d not in index)
            out[str(name)] = xr.Variable((dim, *rest), read_points(variable, index), variable.attrs)
        else:
            lazy = _Points(variable, index)
            if {"crop", "y", "x"} <= dims:
                lazy = Windows(
                    variable, index["crop"], index["row"] * size, index["col"] * size, (size, size)
                )
            data = indexing.LazilyIndexedArray(lazy)
            out[str(name)] = xr.Variable((dim, *lazy.dims), data, variable.attrs, variable.encoding)
    out |= _identity(dataset, index, dim)
    if "channel" in dataset.coords and "channel" not in index:
        out["channel"] = dataset["channel"].variable
    coords = [n for n in out if n not in dataset.data_vars]
    result = xr.Dataset(out, attrs=dataset.attrs).set_coords(coords)
    result.encoding = dict(dataset.encoding)
    return writable(result)


def _identity(dataset: xr.Dataset, index: Index, dim: str) -> dict[str, xr.Variable]:
    """Return coordinates that identify samples: names along the store's dims, position, flags, and window of
    pixels.
    """
    out: dict[str, tuple[Any, ...]] = {
        d: (dim, names_along(dataset, d)[i], dataset[d].attrs if d in dataset.coords else {})
        for d, i in index.items()
    }
    _, latitude, longitude = places_of(dataset, index)
    out["latitude"] = (dim, latitude, {"units": "degrees_north", "standard_name": "latitude"})
    out["longitude"] = (dim, longitude, {"units": "degrees_east", "standard_name": "longitude"})
    cells = cell_dims(dataset)
    if not cells and "flags" in dataset.variables:
        dims = [d for d in sample_dims(dataset) if d not in index]
        crops, inverse = np.unique(index["crop"], return_inverse=True)
        flags = sample_flags(dataset, crops)
        some = (inverse, index["channel"]) if "channel" in index else (inverse,)
        out["flags"] = ((dim, *dims), flags[some], dataset["flags"].attrs)
    for name, values in windows_of(dataset, index).items():
        axis = "row" if name[0] == "y" else "column"
        said = f"pixel {axis} after the last" if "stop" in name else f"first pixel {axis} in the source"
        out[name] = (dim, values, {"long_name": said, "units": "1"})
    return {name: xr.Variable(*value) for name, value in out.items()}
