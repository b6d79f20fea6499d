"""Places of many points at once: a tree of every sample of a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.geometry import great_circle_km, unit_vectors
from gridrad_cube.query.places import check_place, half_diagonals, lookup, time_step
from gridrad_cube.query.samples import cell_dims, crop_blocks, positions, seconds_of, written
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_km, as_seconds

_FOUND, _FAR, _UNSURE = 0, 1, 2
#: Samples whose reach is worked out together.
_AT_ONCE = 16384
#: How far one time lies from the next beside the unit sphere: further than any two places.
_APART = 4.0
#: Samples of a time that are looked at; equally near ones among them are told apart by their order.
_NEAREST = 4


class Places:
    """The places of a store's samples, to look up many points: what `at` finds for each, without a pass for each.

    Built from the coordinates as they are, in about a second for a million samples; it does not follow what
    is changed in them afterwards. It holds about 100 bytes a sample.

    Parameters
    ----------
    dataset
        A store of embeddings (level 256 or 2k) or a cube of patches.

    Raises
    ------
    SchemaError
        If no crop was written, or none has a position.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        from scipy.spatial import cKDTree

        keep = written(dataset)
        if not keep.any():
            raise SchemaError(".gridrad: no crop was written")
        seconds = seconds_of(dataset["time"].values)
        self._dataset, self._step = dataset, time_step(dataset)
        self._times = np.unique(seconds[keep])
        index: list[tuple[np.ndarray, ...]] = []
        place: list[np.ndarray] = []
        for crops in crop_blocks(keep):
            lat, lon = positions(dataset, crops)
            known = np.isfinite(lat) & keep[crops].reshape(-1, *(1 for _ in lat.shape[1:]))
            at = np.nonzero(known)
            index.append((at[0] + crops.start, *at[1:]))
            place.append(np.stack([lat[known], lon[known]]))
        self._index = tuple(np.concatenate(part) for part in zip(*index, strict=True))
        self._place = np.concatenate(place, axis=1)
        if not self._place.size:
            raise SchemaError(".gridrad: no crop that was written has a position")
        self._frame = np.searchsorted(self._times, seconds[self._index[0]])
        self._reach = np.concatenate([half_diagonals(dataset, part[0], part[1:]) for part in self._parts()])
        points = np.column_stack([unit_vectors(*self._place), _APART * self._frame])
        # Times lie further apart than places: the nearest point to one at a time is of that time.
        self._tree = cKDTree(points, balanced_tree=False, compact_nodes=False)

    def _parts(self) -> Iterator[tuple[np.ndarray, ...]]:
        """The samples, some after others, so that what is worked out of them stays small."""
        for start in range(0, len(self._index[0]), _AT_ONCE):
            yield tuple(i[start : start + _AT_ONCE] for i in self._index)

    def find(
        self,
        times: npt.NDArray[np.datetime64],
        latitude: npt.NDArray[np.float64],
        longitude: npt.NDArray[np.float64],
        *,
        tolerance: Any = None,
        time_tolerance: Any = None,
    ) -> tuple[dict[str, npt.NDArray[np.int64]], npt.NDArray[np.float64]]:
        """The sample at each place and time, and its distance in km; see `at` for the rules.

        Parameters
        ----------
        times, latitude, longitude
            Arrays of one length.

        Returns
        -------
        Positions along each dim of samples but ``channel``; -1, and a distance of NaN, where nothing is near.

        Raises
        ------
        SchemaError
            If a latitude or longitude is none.
        """
        for place in zip(latitude, longitude, strict=True):
            check_place(*place)
        seconds = seconds_of(times)
        limit = self._step if time_tolerance is None else as_seconds(time_tolerance)
        found, km = np.full(len(seconds), -1), np.full(len(seconds), np.nan)
        after = np.searchsorted(self._times, seconds)
        # Two fronts go out from each time, one back and one on; the nearer of the two is looked at.
        fronts = np.stack([after - 1, after])
        left = np.arange(len(seconds))
        points = unit_vectors(latitude, longitude)
        unsure: list[int] = []
        while len(left):
            away = self._away(fronts[:, left], seconds[left])
            side = np.argmin(away, axis=0)
            inside = away[side, np.arange(len(left))] <= limit
            left, side, away = left[inside], side[inside], away[:, inside]
            if not len(left):
                break
            frame = fronts[side, left]
            fronts[side, left] += np.where(side == 0, -1, 1)
            near, distance, status = self._near(
                points[left], frame, latitude[left], longitude[left], tolerance
            )
            # Where two times are equally far, the nearer sample of both counts: one by one.
            status[(away[0] == away[1]) & np.isfinite(away[0])] = _UNSURE
            unsure += left[status == _UNSURE].tolist()
            good = status == _FOUND
            found[left[good]], km[left[good]] = near[good], distance[good]
            left = left[status == _FAR]
        dims = ("crop", *cell_dims(self._dataset))
        out = {d: np.where(found >= 0, i[found], -1) for d, i in zip(dims, self._index, strict=True)}
        for i in unsure:
            one = lookup(
                self._dataset, times[i], latitude[i], longitude[i],
                tolerance=tolerance, time_tolerance=time_tolerance,
            )  # fmt: skip
            if one is not None:
                km[i] = one[1]
                for d in dims:
                    out[d][i] = one[0][d]
        return out, km

    def _away(self, fronts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Seconds from each time to the frames at both fronts; infinite past the first and the last."""
        inside = (fronts >= 0) & (fronts < len(self._times))
        return np.where(
            inside, np.abs(self._times[np.clip(fronts, 0, len(self._times) - 1)] - seconds), np.inf
        )

    def _near(
        self, points: np.ndarray, frame: np.ndarray, lat: np.ndarray, lon: np.ndarray, tolerance: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nearest sample of one time for each point, its distance, and what to make of it."""
        targets = np.column_stack([points, _APART * frame])
        _, near = self._tree.query(targets, k=min(_NEAREST, len(self._place[0])))
        near = near.reshape(len(points), -1)
        km = great_circle_km(lat[:, None], lon[:, None], *self._place[:, near])
        km[self._frame[near] != frame[:, None]] = np.inf
        best = np.lexsort((near, km), axis=1)[:, 0]
        at = np.arange(len(points))
        sample, distance = near[at, best], km[at, best]
        limits = self._reach[sample] if tolerance is None else np.full(len(points), as_km(tolerance))
        status = np.where(distance <= limits, _FOUND, _FAR)
        if tolerance is None:
            # A patch further away may be larger and reach here: the rule of `at` looks at every crop.
            status[(status == _FAR) & (distance <= self._reach.max(initial=0.0, where=self._reach > 0))] = (
                _UNSURE
            )
        status[(km == distance[:, None]).sum(axis=1) == _NEAREST] = _UNSURE
        status[~np.isfinite(distance)] = _FAR
        return sample, distance, status
