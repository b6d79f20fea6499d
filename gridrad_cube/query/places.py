"""What stands at a place and time, and at one place through time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.samples import (
    cell_dims,
    collect,
    crop_blocks,
    is_embeddings,
    patch_and_stride,
    positions,
    seconds_of,
    written,
)
from gridrad_cube.query.selection import in_period
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_km, as_seconds, as_time

#: How far in time an answer may be where the store's times do not tell.
TIME_TOLERANCE = 3600.0
#: A corner lies this much further than half the diagonal where meridians converge (a patch of 5 degrees).
_CORNER = 1.05
#: Crops whose distances to a point are taken together, nearest in time first.
_CROPS_NEAR = 256
#: So many points and more are looked up in a tree of all places.
_MANY = 64

#: Distance, crop and cell of the nearest patch so far.
_Best = tuple[float, int, tuple[int, ...]]


def at(
    dataset: xr.Dataset,
    time: Any = None,
    latitude: npt.ArrayLike | None = None,
    longitude: npt.ArrayLike | None = None,
    tolerance: Any = None,
    time_tolerance: Any = None,
) -> xr.Dataset:
    """What stands at a place and time: of the patches near enough, those nearest in time; of these the nearest.

    Great-circle distance to patch centres, in a crop that was written. Nothing nearer than the tolerance is
    an error, never a far answer.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.
    time
        UTC; a time with a zone is converted, one without is UTC. None takes every time (`track`).
    latitude, longitude
        Degrees: two numbers, or two arrays of one length (with one time, or as many). None takes every
        patch of the crops nearest in time.
    tolerance
        Kilometres. None: half the diagonal of the patch that was found (of the crop at level 2k).
    time_tolerance
        Such as ``"30min"``. None: the store's median step in time.

    Returns
    -------
    The dataset at the patch, with ``crop``, ``row``, ``col``, position, source file and pixel window,
    ``distance`` (km) and ``time_difference``; on dim ``point`` for arrays. Data variables are lazy.

    Raises
    ------
    SchemaError
        If nothing is near enough (it names the nearest), or the place or time cannot be read.
    """
    if (latitude is None) != (longitude is None):
        raise SchemaError("at: latitude and longitude belong together; got one of them")
    if latitude is None or longitude is None:
        if time is None:
            raise SchemaError(
                "at: got neither time nor place; pass time=, or latitude= and longitude=, or all"
            )
        return _at_time(dataset, as_time(time), time_tolerance)
    if time is None:
        if np.ndim(latitude):
            raise SchemaError("at: an array of places needs time=; expected one time, or one a place")
        return track(dataset, float(np.asarray(latitude)), float(np.asarray(longitude)), tolerance=tolerance)
    times, lats, lons, scalar = _points(time, latitude, longitude)
    if len(times) >= _MANY:
        from gridrad_cube.query.nearby import Places

        tree = Places(dataset)
        index, km = tree.find(times, lats, lons, tolerance=tolerance, time_tolerance=time_tolerance)
        if (lost := np.flatnonzero(index["crop"] < 0)).size:  # says what is nearest
            i = int(lost[0])
            find(dataset, times[i], lats[i], lons[i], tolerance=tolerance, time_tolerance=time_tolerance)
    else:
        found = [
            find(dataset, t, y, x, tolerance=tolerance, time_tolerance=time_tolerance)
            for t, y, x in zip(times, lats, lons, strict=True)
        ]
        index = {d: np.array([f[0][d] for f in found]) for d in found[0][0]}
        km = np.array([f[1] for f in found])
    out = collect(dataset, index, "point")
    said = {"units": "km", "long_name": "great-circle distance from the place asked for"}
    out.coords["distance"] = ("point", km, said)
    difference = out["time"].values.astype("datetime64[s]") - times
    out.coords["time_difference"] = (
        "point",
        difference,
        {"long_name": "time of the patch less that asked for"},
    )
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


def _at_time(dataset: xr.Dataset, time: np.datetime64, time_tolerance: Any) -> xr.Dataset:
    is_embeddings(dataset)
    away = _seconds_away(dataset, time, time_tolerance)
    return dataset.isel(crop=np.flatnonzero(away == np.nanmin(away)))


def _seconds_away(
    dataset: xr.Dataset, time: np.datetime64, tolerance: Any, *, strict: bool = True
) -> np.ndarray:
    """Seconds from each crop to a time; NaN beyond the tolerance and where nothing was written."""
    keep = written(dataset)
    times = seconds_of(dataset["time"].values)
    if not keep.any():
        raise SchemaError(".gridrad: no crop was written")
    away = np.where(keep, np.abs(times - seconds_of(time)).astype(np.float64), np.nan)
    limit = as_seconds(tolerance) if tolerance is not None else time_step(dataset)
    nearest = int(np.nanargmin(away))
    if away[nearest] > limit and strict:
        stamp = np.datetime_as_string(dataset["time"].values[nearest], "s")
        raise SchemaError(
            f"at: nothing within {_span(limit)} of {time}; the nearest time is {stamp}, {_span(away[nearest])} away. "
            "Pass time_tolerance=."
        )
    away[away > limit] = np.nan
    return away


def time_step(dataset: xr.Dataset) -> float:
    """Median seconds from one time of the store to the next; an hour where it has one time only."""
    steps = np.diff(np.unique(seconds_of(dataset["time"].values[written(dataset)])))
    return float(np.median(steps)) if len(steps) else TIME_TOLERANCE


def _span(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{minutes:.4g} min" if hours < 2 else f"{hours:.4g} h" if hours < 72 else f"{hours / 24:.4g} days"


def find(
    dataset: xr.Dataset,
    time: np.datetime64,
    latitude: float,
    longitude: float,
    *,
    tolerance: Any = None,
    time_tolerance: Any = None,
) -> tuple[dict[str, int], float]:
    """Positions of the patch at a place and time, and its distance in km; see `at`."""
    away = _seconds_away(dataset, time, time_tolerance)
    found, best = _look(dataset, away, latitude, longitude, tolerance)
    if found is None:
        raise SchemaError(_too_far(dataset, best, (latitude, longitude), tolerance, f" near {time}"))
    return found


def lookup(
    dataset: xr.Dataset,
    time: np.datetime64,
    latitude: float,
    longitude: float,
    *,
    tolerance: Any = None,
    time_tolerance: Any = None,
) -> tuple[dict[str, int], float] | None:
    """What `find` finds; None where nothing is near enough."""
    away = _seconds_away(dataset, time, time_tolerance, strict=False)
    return _look(dataset, away, latitude, longitude, tolerance)[0]


def _look(
    dataset: xr.Dataset, away: np.ndarray, latitude: float, longitude: float, tolerance: Any
) -> tuple[tuple[dict[str, int], float] | None, _Best]:
    """The patch that `at` takes, if one is near enough; and the nearest that is not, where none is.

    ``away`` is how far each crop is in time, NaN for those that do not count.
    """
    check_place(latitude, longitude)
    order = np.argsort(away, kind="stable")[: np.count_nonzero(np.isfinite(away))]
    best: _Best = (np.inf, -1, ())
    start = 0
    while start < len(order):
        stop = min(start + _CROPS_NEAR, len(order))
        stop = int(np.searchsorted(away[order], away[order[stop - 1]], side="right"))
        crops = np.sort(order[start:stop])
        km, cells, limits = _nearest_cells(dataset, crops, latitude, longitude, tolerance)
        near = np.flatnonzero(km <= limits)
        if len(near):
            i = near[np.lexsort((km[near], away[crops[near]]))[0]]
            where = dict(zip(cell_dims(dataset), (int(c[i]) for c in cells), strict=True))
            return ({"crop": int(crops[i])} | where, float(km[i])), best
        i = int(np.argmin(km))
        if km[i] < best[0]:
            best = (float(km[i]), int(crops[i]), tuple(int(c[i]) for c in cells))
        start = stop
    return None, best


def check_place(latitude: float, longitude: float) -> None:
    """Refuse what is no latitude and longitude in degrees."""
    if not (-90 <= latitude <= 90 and -360 <= longitude <= 360):
        raise SchemaError(f"place: got latitude {latitude}, longitude {longitude}; expected degrees")


def _nearest_cells(
    dataset: xr.Dataset, crops: np.ndarray, latitude: float, longitude: float, tolerance: Any
) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    """The nearest sample of each crop: its distance (inf for none), its row and column, and how far it reaches."""
    lat, lon = positions(dataset, crops)
    km = great_circle_km(latitude, longitude, lat, lon).reshape(len(crops), -1)
    km = np.where(np.isnan(km), np.inf, km)
    flat = np.argmin(km, axis=1)
    cells = np.unravel_index(flat, lat.shape[1:]) if lat.ndim > 1 else ()
    limits = (
        half_diagonals(dataset, crops, cells) if tolerance is None else np.full(len(crops), as_km(tolerance))
    )
    return km[np.arange(len(crops)), flat], tuple(cells), limits


def half_diagonals(dataset: xr.Dataset, crops: np.ndarray, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Half the diagonal of one patch of each crop (at level 2k of the crop), km, from the patches beside it."""
    some, at = np.unique(crops, return_inverse=True)
    lat, lon = (dataset[n].variable.isel(crop=some).values for n in ("latitude", "longitude"))
    n, (rows, cols) = len(crops), lat.shape[1:]
    row, col = cells if len(cells) else (np.full(n, rows // 2), np.full(n, cols // 2))
    steps = []
    for dy, dx in ((1, 0), (0, 1)):
        sides = [np.zeros(n)]
        for sign in (-1, 1):
            r, c = row + sign * dy, col + sign * dx
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < cols)
            r, c = np.clip(r, 0, rows - 1), np.clip(c, 0, cols - 1)
            km = great_circle_km(lat[at, row, col], lon[at, row, col], lat[at, r, c], lon[at, r, c])
            sides.append(np.where(inside & np.isfinite(km), km, 0.0))
        steps.append(np.max(sides, axis=0))
    height, width = steps
    height, width = np.where(height == 0, width, height), np.where(width == 0, height, width)
    patch, stride = patch_and_stride(dataset)
    scale = patch / stride
    if not len(cells):
        height, width, scale = height * rows, width * cols, 1.0
    return np.where(height > 0, _CORNER * 0.5 * scale * np.hypot(height, width), np.nan)


def _too_far(
    dataset: xr.Dataset,
    best: _Best,
    place: tuple[float, float],
    tolerance: Any,
    when: str,
) -> str:
    km, crop, cell = best
    point = f"latitude {place[0]:g}, longitude {place[1]:g}"
    if crop < 0:
        return f"at: no patch with a position{when}; the store has none near {point}"
    lat, lon = (p[(0, *cell)] for p in positions(dataset, np.array([crop])))
    cells = tuple(np.array([c]) for c in cell)
    limit = as_km(tolerance) if tolerance is not None else half_diagonals(dataset, np.array([crop]), cells)[0]
    stamp = np.datetime_as_string(dataset["time"].values[crop], "s")
    nearest = (
        f"the nearest is centred at latitude {lat:.4f}, longitude {lon:.4f} (time {stamp}), {km:.1f} km away"
    )
    if np.isnan(limit):
        return f"at: a single patch does not tell its size; {nearest}. Pass tolerance= in km."
    kind = "tolerance" if tolerance is not None else "half the diagonal of a patch"
    return f"at: nothing within {limit:.1f} km ({kind}) of {point}{when}; {nearest}. Pass tolerance= in km."


def track(
    dataset: xr.Dataset, latitude: float, longitude: float, *, time: Any = None, tolerance: Any = None
) -> xr.Dataset:
    """One place through time: the nearest patch at every time that has one near enough.

    Parameters
    ----------
    latitude, longitude
        Degrees.
    time
        A pair (start, stop), stop not included, a slice, or one value; see `within`.
    tolerance
        Kilometres; see `at`.

    Returns
    -------
    The dataset on dim ``time``, ascending, with ``distance`` in km. Data variables are lazy.

    Raises
    ------
    SchemaError
        If no patch is near enough at any time.
    """
    check_place(latitude, longitude)
    keep = in_period(dataset, time)
    found: list[tuple[np.ndarray, ...]] = []
    best: _Best = (np.inf, -1, ())
    for block in crop_blocks(keep):
        crops = np.arange(block.start, block.stop)[keep[block]]
        km, cells, limits = _nearest_cells(dataset, crops, latitude, longitude, tolerance)
        near = km <= limits
        found.append(tuple(a[near] for a in (crops, km, *cells)))
        i = int(np.argmin(km))
        if km[i] < best[0]:
            best = (float(km[i]), int(crops[i]), tuple(int(c[i]) for c in cells))
    crops, km, *at_cells = (np.concatenate(part) for part in zip(*found, strict=True))
    if not len(crops):
        raise SchemaError(_too_far(dataset, best, (latitude, longitude), tolerance, " at any time"))
    times = seconds_of(dataset["time"].values[crops])
    order = np.lexsort((crops, km, times))
    first = order[np.concatenate([[True], np.diff(times[order]) != 0])]
    index = {d: i[first] for d, i in zip(("crop", *cell_dims(dataset)), (crops, *at_cells), strict=True)}
    out = collect(dataset, index, "time")
    km_attrs = {"units": "km", "long_name": "great-circle distance from the place asked for"}
    return out.assign_coords(distance=("time", km[first], km_attrs))
