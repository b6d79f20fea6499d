"""From gridded radar and satellite files to a Zarr cube, embeddings, and questions about them.

``preprocess`` builds a cube from source files and ``open_cube`` opens it; ``gridrad_cube.training`` and
``gridrad_cube.embedding`` turn its patches into embeddings; ``open_embeddings`` opens those, and the accessor
``.gridrad`` of both answers questions by place, time and likeness. Importing this package imports neither
torch nor ``dask.distributed``: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridrad_cube.info import inspect_target
    from gridrad_cube.pipeline import preprocess
    from gridrad_cube.readers import read_scene
    from gridrad_cube.schema import QualitySpec, RadarSpec, Recipe, SchemaError, TileSpec
    from gridrad_cube.store import open_cube, open_embeddings, open_packed, verify
    from gridrad_cube.versions import show_versions

__version__ = "0.1.0"

_HOMES = {
    "QualitySpec": "schema",
    "RadarSpec": "schema",
    "Recipe": "schema",
    "SchemaError": "schema",
    "TileSpec": "schema",
    "inspect_target": "info",
    "open_cube": "store",
    "open_embeddings": "store",
    "open_packed": "store",
    "preprocess": "pipeline",
    "read_scene": "readers",
    "show_versions": "versions",
    "verify": "store",
}

__all__ = [
    "QualitySpec",
    "RadarSpec",
    "Recipe",
    "SchemaError",
    "TileSpec",
    "inspect_target",
    "open_cube",
    "open_embeddings",
    "open_packed",
    "preprocess",
    "read_scene",
    "show_versions",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("open_"):
        importlib.import_module(f"{__name__}.query")  # registers the accessor .gridrad
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
