"""Which samples are neighbors: close in time, and close or overlapping in space.

The one rule by which a search leaves out what surrounds the query, and answers that repeat a better one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.geometry import great_circle_km, wrap_longitude
from gridrad_cube.query.samples import (
    Index,
    cell_dims,
    extents_of,
    places_of,
    sample_dims,
    seconds_of,
    windows_of,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import times_of

#: Seconds and kilometers within which two samples are neighbors.
Rule = tuple[float, float]

#: Crops whose samples are compared at once.
_CROPS_AT_ONCE = 4096
#: Of a window: first row, row after the last, first column, column after the last.
_WINDOW = ("y_start", "y_stop", "x_start", "x_stop")


@dataclass(frozen=True)
class Footprints:
    """When and where samples are, arrays of one length.

    ``window`` (N, 4) is the first row of pixels, the row after the last, and the same of columns, in the source grid
    ``grid``, which is empty where it is not known. ``extent`` (N, 2) is half of the height and half of the width in
    degrees, NaN where it is not known.
    """

    seconds: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    grid: np.ndarray
    window: np.ndarray
    extent: np.ndarray

    def take(self, which: npt.ArrayLike) -> Footprints:
        """Return some of them, by position or by a mask."""
        return Footprints(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def overlap(self, one: Footprints) -> npt.NDArray[np.bool_]:
        """Return which of these cover a part of what one footprint covers.

        Windows of one source grid are compared by their pixels, others by latitude and longitude: a window that is
        turned against the meridians counts as the box around it.
        """
        first, last = self.window[:, ::2], self.window[:, 1::2]
        pixels = ((first < one.window[:, 1::2]) & (last > one.window[:, ::2])).all(axis=1)
        same = (self.grid == one.grid) & (self.grid != "")
        if same.all():
            return np.asarray(pixels)
        apart = [self.latitude - one.latitude, wrap_longitude(self.longitude - one.longitude)]
        degrees = (np.abs(np.stack(apart, axis=1)) < self.extent + one.extent).all(axis=1)
        return np.where(same, pixels, degrees)

    def near(self, one: Footprints, rule: Rule) -> npt.NDArray[np.bool_]:
        """Return which of these are neighbors of one footprint.

        Neighbors are less than ``rule[0]`` seconds apart, or at the same time; and their centers are less than
        ``rule[1]`` kilometers apart, or they overlap.

        Raises
        ------
        SchemaError
            If the rule has a distance and the position is not known.
        """
        seconds, km = rule
        if 0 < km < np.inf and np.isnan(one.latitude).any():
            raise SchemaError(
                f"search: no position is known of a sample that must be {km:g} km away from. Pass "
                "exclude=None and separate=None, or a time alone, such as ('3h', None)."
            )
        apart = np.abs(self.seconds - one.seconds)
        near = (apart < seconds) | (apart == 0)
        if km == np.inf:
            return near
        places = one.latitude, one.longitude, self.latitude, self.longitude
        return near & ((great_circle_km(*places) < km) | self.overlap(one))


def footprints_of(dataset: xr.Dataset, index: Index) -> Footprints:
    """Return when and where samples of a store are."""
    grid = np.full(len(index["crop"]), "", object)
    if "grid" in dataset.variables:
        grid = dataset["grid"].values[index["crop"]].astype(object)
    windows = windows_of(dataset, index)
    return Footprints(
        *places_of(dataset, index),
        grid,
        np.stack([windows[name] for name in _WINDOW], axis=1),
        extents_of(dataset, index),
    )


def footprint_of_array(vector: xr.DataArray) -> Footprints | None:
    """Return when and where an embedding of an answer is, by its coordinates; None if they do not say."""
    names = ("time", "latitude", "longitude")
    if not all(n in vector.coords and vector[n].ndim == 0 for n in names):
        return None
    time, latitude, longitude = (vector[n].values[()] for n in names)
    if np.isnat(time) or not np.isfinite([latitude, longitude]).all():
        return None
    grid, window = "", [0, 0, 0, 0]
    if "grid" in vector.coords and all(n in vector.coords and vector[n].ndim == 0 for n in _WINDOW):
        grid, window = str(vector["grid"].values), [int(vector[n]) for n in _WINDOW]
    seconds, latitude, longitude = (np.array([value]) for value in (seconds_of(time), latitude, longitude))
    return Footprints(
        seconds, latitude, longitude, np.array([grid], object), np.array([window]), np.full((1, 2), np.nan)
    )


def neighbors(dataset: xr.Dataset, one: Footprints, rule: Rule) -> npt.NDArray[np.int64]:
    """Return the rows of samples, flat over the sample dims, that are neighbors of one footprint; ascending."""
    dims = sample_dims(dataset)
    shape = tuple(dataset.sizes[d] for d in dims)
    cells = tuple(dataset.sizes[d] for d in cell_dims(dataset))
    times = times_of(dataset)
    apart = np.abs(seconds_of(times) - one.seconds)
    crops = np.flatnonzero(~np.isnat(times) & ((apart < rule[0]) | (apart == 0)))
    out = [np.empty(0, np.int64)]
    for start in range(0, len(crops), _CROPS_AT_ONCE):
        some = crops[start : start + _CROPS_AT_ONCE]
        places = np.unravel_index(np.arange(len(some) * int(np.prod(cells))), (len(some), *cells))
        index = dict(zip(("crop", *cell_dims(dataset)), (some[places[0]], *places[1:]), strict=True))
        near = footprints_of(dataset, index).near(one, rule)
        found = {d: i[near] for d, i in index.items()}
        channels = np.arange(dataset.sizes["channel"] if "channel" in dims else 1)[:, None]
        at = [channels if d == "channel" else found[d] for d in dims]
        out.append(np.ravel_multi_index(tuple(np.broadcast_arrays(*at)), shape).reshape(-1))
    return np.sort(np.concatenate(out))
