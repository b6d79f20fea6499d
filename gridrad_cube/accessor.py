"""The accessor ``.gridrad`` of datasets: the functions of `gridrad_cube.query` as methods, loaded when used."""

from __future__ import annotations

import importlib
from types import MethodType
from typing import Any

import xarray as xr

__all__ = ["GridradAccessor"]


def __dir__() -> list[str]:
    return __all__


#: Methods by what the dataset is.
_METHODS = {
    "embeddings": ("analogues", "at", "describe", "follow", "frequency", "grid", "search", "track", "within"),
    "patches": (
        "at", "crop", "describe", "grid", "patch", "patches", "reflectivity", "track", "within",
    ),
    "answer": ("describe", "pixels", "reflectivity"),
    "other": ("describe",),
}  # fmt: skip
_SOURCES = {
    "embeddings": "a store of embeddings (gridrad_cube.open_embeddings)",
    "patches": "a cube of patches (gridrad_cube.open_cube)",
    "answer": "an answer of at, within, track, follow or search",
}


@xr.register_dataset_accessor("gridrad")
class GridradAccessor:
    """Questions about a store of embeddings or a cube of patches, by place, time and similarity.

    It has the methods that the dataset can answer: ``dir(dataset.gridrad)`` lists them.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def _kind(self) -> str:
        variables = self._dataset.variables
        if "crop" in self._dataset.dims:
            if "embedding" in variables:
                return "embeddings"
            if any({"crop", "y", "x"} <= set(v.dims) for v in variables.values()):
                return "patches"
        return "answer" if {"crop", "scene", "y_start", "x_start"} <= set(variables) else "other"

    def __dir__(self) -> list[str]:
        return list(_METHODS[self._kind])

    def __getattr__(self, name: str) -> Any:
        if name in _METHODS[self._kind]:
            home = importlib.import_module(f"gridrad_cube.{'store' if name == 'describe' else 'query'}")
            return MethodType(getattr(home, name), self._dataset)
        homes = [source for kind, source in _SOURCES.items() if name in _METHODS[kind]]
        if not homes:
            raise AttributeError(f".gridrad has no {name!r}; this dataset has {', '.join(dir(self))}")
        have = f"this dataset is not {' or '.join(homes)}; it has {', '.join(dir(self))}."
        if self._kind == "other":
            have += " Select crops by a list or slice, so that their dimension stays."
        raise AttributeError(f".gridrad.{name}: {have}")

    def __repr__(self) -> str:
        return str(importlib.import_module("gridrad_cube.store").as_text(self.describe()))

    def _repr_html_(self) -> str:
        return str(importlib.import_module("gridrad_cube.store").as_html(self.describe()))
