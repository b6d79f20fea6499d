"""Select samples by place and time: at a point, in an area, along time, and as a field in time."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.query.samples import (
    cell_dims,
    collect,
    is_embeddings,
    locate,
    sample_dims,
    seconds_away,
    seconds_of,
    select,
    too_far,
    writable,
)
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import Box, Selection, as_time, times_of

#: Largest difference of latitudes along a row, in degrees, for which they still form an axis.
_STRAIGHT = 1e-6
_DISTANCE = {"units": "km", "long_name": "great-circle distance from the requested place"}


def at(
    dataset: xr.Dataset,
    time: Any = None,
    latitude: npt.ArrayLike | None = None,
    longitude: npt.ArrayLike | None = None,
    tolerance: Any = None,
    time_tolerance: Any = None,
) -> xr.Dataset:
    """Find the sample at a place and time.

    Of the patches within ``tolerance``, this is the nearest in time, and of those the nearest in space.
    Distances are great-circle distances to patch centers. Crops that were not written are ignored.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    time
        UTC; a time with a zone is converted. None takes every time (`track`).
    latitude, longitude
        Degrees: two numbers, or two arrays of equal length (with one time, or one for each place). None takes
        every patch of the crops nearest in time.
    tolerance
        Kilometers. None: half the diagonal of the patch that was found (of the crop at level 2k).
    time_tolerance
        Duration such as ``"30min"``. None: the store's median time step.

    Returns
    -------
    The dataset at the patch, with ``crop``, ``row``, ``col``, position, source file and pixel window,
    ``distance`` (km) and ``time_difference``; on dim ``point`` for arrays. Data variables are lazy.

    Raises
    ------
    SchemaError
        If nothing is near enough (the message names the nearest), or the place or time cannot be read.
    """
    if (latitude is None) != (longitude is None):
        raise SchemaError("at: latitude and longitude belong together; got one of them")
    if latitude is None or longitude is None:
        if time is None:
            raise SchemaError(
                "at: got neither time nor place; pass time=, or latitude= and longitude=, or all"
            )
        is_embeddings(dataset)
        away = seconds_away(dataset, as_time(time), time_tolerance)
        return writable(dataset.isel(crop=np.flatnonzero(away == np.nanmin(away))))
    if time is None:
        if np.ndim(latitude):
            raise SchemaError("at: an array of places needs time=; expected one time, or one a place")
        return track(dataset, float(np.asarray(latitude)), float(np.asarray(longitude)), tolerance=tolerance)
    times, lats, lons, scalar = _points(time, latitude, longitude)
    index, km = locate(
        dataset, times, lats, lons, tolerance=tolerance, time_tolerance=time_tolerance, required=True
    )
    out = collect(dataset, index, "point")
    out.coords["distance"] = ("point", km, _DISTANCE)
    difference = out["time"].values.astype("datetime64[s]") - times
    said = {"long_name": "time of the patch minus the requested time"}
    out.coords["time_difference"] = ("point", difference, said)
    return out.isel(point=0) if scalar else out


def _points(time: Any, latitude: Any, longitude: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    lat, lon = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    several = not isinstance(time, str) and np.ndim(time) == 1
    times = np.array([as_time(t) for t in time] if several else as_time(time), "datetime64[s]")
    try:
        times, lat, lon = np.broadcast_arrays(times, lat, lon)
    except ValueError:
        times = times[None, None]
    if times.ndim > 1 or not times.size:
        raise SchemaError(
            f"at: got time, latitude and longitude of shapes {np.shape(time)}, {np.shape(latitude)} and "
            f"{np.shape(longitude)}; expected single values, or 1-D arrays of one length"
        )
    return np.atleast_1d(times), np.atleast_1d(lat), np.atleast_1d(lon), times.ndim == 0


def track(
    dataset: xr.Dataset, latitude: float, longitude: float, *, time: Any = None, tolerance: Any = None
) -> xr.Dataset:
    """Return the series of one place through time: the nearest patch at every time that has one within the
    tolerance.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    latitude, longitude
        Degrees.
    time
        A pair (start, stop), stop not included, a slice, or one value; see `within`.
    tolerance
        Kilometers; see `at`.

    Returns
    -------
    The dataset on dim ``time``, ascending, with ``distance`` in km. Data variables are lazy.

    Raises
    ------
    SchemaError
        If no patch is near enough at any time.
    """
    is_embeddings(dataset)
    times = times_of(dataset)
    every = np.unique(times[Selection(time=time).in_time(times)])
    places = (np.full(len(every), float(v)) for v in (latitude, longitude))
    index, km = locate(dataset, every, *places, tolerance=tolerance, time_tolerance="0s")
    there = index["crop"] >= 0
    if not there.any():
        crops = np.flatnonzero(np.isin(times, every))
        raise too_far(dataset, crops, latitude, longitude, tolerance, " at any time")
    out = collect(dataset, {d: i[there] for d, i in index.items()}, "time")
    return out.assign_coords(distance=("time", km[there], _DISTANCE))


def within(dataset: xr.Dataset, bbox: Box | None = None, time: Any = None, **where: Any) -> xr.Dataset:
    """Select every sample whose center is in an area and whose crop is in a time range.

    The same rules narrow `search`, `analogues` and `frequency`.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    bbox
        ``(west, south, east, north)`` in degrees, edges included; west above east crosses the date line.
    time
        A pair ``(start, stop)``, stop not included; a ``slice``, both ends included; one value, which stands for
        its whole period (``"2024-05-20"`` for the day); or a list of pairs. UTC.
    **where
        ``polygon``, ``season``, ``hour``, ``solar_hour``, ``convective_day``, ``channel``, ``altitude`` and
        ``reject``, as of `gridrad_cube.selection.Selection`. A patch of a cube is selected if one of its channels is
        clean.

    Returns
    -------
    The dataset on dim ``patch`` (crop, channel, row, col in order), with position, source file and pixel
    window of each. Data variables are lazy.

    Raises
    ------
    SchemaError
        If no sample is selected; the message names the rule that excluded the last ones.
    """
    mask = select(dataset, bbox=bbox, time=time, **where)
    index = dict(zip(sample_dims(dataset), np.nonzero(mask), strict=True))
    return collect(dataset, index, "patch")


def grid(dataset: xr.Dataset, time: Any = None, *, by: Literal["cell", "degree"] = "cell") -> xr.Dataset:
    """Arrange the crops of one window of one grid as a field in time: ``(time, [channel,] row, col[,
    feature])``.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    time
        A time range; see `within`.
    by
        ``"cell"`` keeps ``row`` and ``col``. ``"degree"`` names them ``latitude`` and ``longitude``, so that
        ``sel(latitude=..., longitude=..., method="nearest")`` works. It needs one latitude in every row and
        one longitude in every column. Across the date line longitudes continue beyond 180.

    Returns
    -------
    The dataset on dim ``time``, ascending, in place of ``crop``; ``latitude`` and ``longitude`` on
    ``(row, col)``, or as axes. Lazy.

    Raises
    ------
    SchemaError
        If the crops are not all of one window, two have the same time, or there are no such axes.
    """
    if by not in ("cell", "degree"):
        raise SchemaError(f"grid: by={by!r}; expected 'cell' or 'degree'")
    is_embeddings(dataset)
    crops = np.flatnonzero(Selection(time=time).in_time(times_of(dataset)))
    lat, lon = (dataset[n].variable.isel(crop=crops).values for n in ("latitude", "longitude"))
    for name, values in (("latitude", lat), ("longitude", lon)):
        if not np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=True):
            places = len(np.unique(values.reshape(len(values), -1), axis=0))
            raise SchemaError(
                f"grid: the crops are not all of one window, got {places} different {name}s of patches. Select those "
                "of one window and grid first: ds.isel(crop=(ds.grid == ds.grid[0]) & (ds.y_origin == 0) & ...)."
            )
    times = seconds_of(dataset["time"].values[crops])
    if len(np.unique(times)) < len(times):
        raise SchemaError(
            "grid: several crops have the same time. First select one crop for each time, or a shorter period."
        )
    out = writable(dataset.isel(crop=crops[np.argsort(times)]))
    # Rows and columns of padding have no position, with which nothing can be drawn or selected.
    known = np.isfinite(lat[0])
    for axis, (dim, pixels) in enumerate((("row", "y"), ("col", "x"))):
        (inside,) = np.nonzero(known.any(axis=1 - axis))
        if len(inside) and dim in out.dims:
            part = slice(int(inside[0]), int(inside[-1]) + 1)
            if pixels in out.dims:
                size = out.sizes[pixels] // out.sizes[dim]
                out = out.isel({pixels: slice(part.start * size, part.stop * size)})
            out = out.isel({dim: part})
            lat, lon = (np.take(v, np.arange(part.start, part.stop), axis + 1) for v in (lat, lon))
    if by == "cell":
        lat_lon = {"latitude": lat[0], "longitude": lon[0]}
        centers = {n: (("row", "col"), values, dataset[n].attrs) for n, values in lat_lon.items()}
        return out.assign_coords(centers).swap_dims(crop="time")
    if not cell_dims(dataset):
        raise SchemaError("grid: by='degree' needs patches; at level 2k a crop is one place")
    axes = {"latitude": lat[0][:, 0], "longitude": np.unwrap(lon[0][0], period=360)}
    spread = max(np.ptp(lat[0], axis=1).max(), np.ptp(lon[0], axis=0).max())
    if not spread < _STRAIGHT:  # NaN of padding included
        raise SchemaError(
            f"grid: by='degree', but latitudes along a row or longitudes along a column differ by {spread:.3g} degrees "
            "(NaN: a patch has no position). Use by='cell', or leave out rows and columns with isel."
        )
    out = out.drop_vars(["latitude", "longitude", "row", "col"], errors="ignore").swap_dims(crop="time")
    return out.rename(row="latitude", col="longitude").assign_coords(
        {name: (name, values, dataset[name].attrs) for name, values in axes.items()}
    )
