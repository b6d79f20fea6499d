"""The accessor ``.gridrad`` of stores opened with xarray: each method is a function with the dataset first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import xarray as xr

from gridrad_cube.query import pixels as cube_pixels
from gridrad_cube.query import summary
from gridrad_cube.query.analogs import analogues
from gridrad_cube.query.following import follow
from gridrad_cube.query.frequencies import frequency
from gridrad_cube.query.likeness import search
from gridrad_cube.query.places import at, track
from gridrad_cube.query.selection import grid, within

P = ParamSpec("P")
R = TypeVar("R")


def _method(
    function: Callable[Concatenate[xr.Dataset, P], R],
) -> Callable[Concatenate[GridradAccessor, P], R]:
    """A function of a dataset as a method of the accessor, with its documentation and the rest of its parameters."""

    def method(self: GridradAccessor, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self._dataset, *args, **kwargs)

    signature = inspect.signature(function)
    first, *rest = signature.parameters.values()
    own: Any = method
    own.__signature__ = signature.replace(parameters=[first.replace(name="self"), *rest])
    own.__name__, own.__doc__ = function.__name__, function.__doc__
    own.__qualname__ = f"GridradAccessor.{function.__name__}"
    return method


@xr.register_dataset_accessor("gridrad")
class GridradAccessor:
    """Questions about a store of embeddings or a cube of patches, by place, time and likeness."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    at = _method(at)
    within = _method(within)
    track = _method(track)
    follow = _method(follow)
    grid = _method(grid)
    search = _method(search)
    analogues = _method(analogues)
    frequency = _method(frequency)
    pixels = _method(cube_pixels.pixels)
    crop = _method(cube_pixels.crop)
    patch = _method(cube_pixels.patch)
    patches = _method(cube_pixels.patches)
    reflectivity = _method(cube_pixels.reflectivity)
    describe = _method(summary.describe)

    def __repr__(self) -> str:
        return summary.as_text(self.describe())

    def _repr_html_(self) -> str:
        return summary.as_html(self.describe())
