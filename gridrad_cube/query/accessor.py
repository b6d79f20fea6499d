"""The accessor ``.gridrad`` of stores opened with xarray: each method is one call of a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.query import following, likeness, pixels, places, selection
from gridrad_cube.query.selection import Reject
from gridrad_cube.query.units import Box
from gridrad_cube.similarity import Metric


@xr.register_dataset_accessor("gridrad")
class GridradAccessor:
    """Questions about a store of embeddings or a cube of patches, by place, time and likeness."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def at(
        self,
        time: Any = None,
        latitude: npt.ArrayLike | None = None,
        longitude: npt.ArrayLike | None = None,
        tolerance: Any = None,
        time_tolerance: Any = None,
    ) -> xr.Dataset:
        """What stands at a place and time; see `gridrad_cube.query.at`."""
        return self._dataset.pipe(
            places.at, time, latitude, longitude, tolerance=tolerance, time_tolerance=time_tolerance
        )

    def within(
        self, bbox: Box | None = None, time: Any = None, *, channel: Any = None, reject: Reject = None
    ) -> xr.Dataset:
        """Every sample in a box and a period; see `gridrad_cube.query.within`."""
        return self._dataset.pipe(selection.within, bbox, time, channel=channel, reject=reject)

    def track(
        self, latitude: float, longitude: float, *, time: Any = None, tolerance: Any = None
    ) -> xr.Dataset:
        """One place through time; see `gridrad_cube.query.track`."""
        return self._dataset.pipe(places.track, latitude, longitude, time=time, tolerance=tolerance)

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        bbox: Box | None = None,
        time: Any = None,
        channel: Any = None,
        reject: Reject = None,
        exclude: Any = likeness.EXCLUDE,
        separate: Any = None,
        metric: Metric = "cosine",
    ) -> xr.Dataset:
        """The samples most like a query; see `gridrad_cube.query.search`."""
        return self._dataset.pipe(
            likeness.search, query, k, bbox=bbox, time=time, channel=channel, reject=reject, exclude=exclude,
            separate=separate, metric=metric,
        )  # fmt: skip

    def follow(
        self, query: Any, *, steps: int | None = None, channel: Any = None, time_tolerance: Any = None
    ) -> xr.Dataset:
        """A pattern from frame to frame; see `gridrad_cube.query.follow`."""
        return self._dataset.pipe(
            following.follow, query, steps=steps, channel=channel, time_tolerance=time_tolerance
        )

    def grid(self, time: Any = None) -> xr.Dataset:
        """Crops that lie on one another as a field in time; see `gridrad_cube.query.grid`."""
        return self._dataset.pipe(selection.grid, time)

    def crop(self, crop: int) -> xr.Dataset:
        """One crop with exact pixel positions; see `gridrad_cube.query.crop`."""
        return self._dataset.pipe(pixels.crop, crop)

    def patch(self, crop: int, row: int, col: int) -> xr.Dataset:
        """One patch with exact pixel positions; see `gridrad_cube.query.patch`."""
        return self._dataset.pipe(pixels.patch, crop, row, col)

    def patches(self, *, channel: Any = None, reject: Reject = ()) -> xr.Dataset:
        """Every patch on one dim, lazily; see `gridrad_cube.query.patches`."""
        return self._dataset.pipe(pixels.patches, channel=channel, reject=reject)

    def reflectivity(
        self, no_echo: float = np.nan, low_confidence: float = np.nan, *, channel: str | None = None
    ) -> xr.DataArray:
        """Radar values with what is no echo replaced; see `gridrad_cube.query.reflectivity`."""
        return self._dataset.pipe(
            pixels.reflectivity, no_echo=no_echo, low_confidence=low_confidence, channel=channel
        )
