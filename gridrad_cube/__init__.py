"""From gridded radar and satellite files to a Zarr cube, embeddings, and questions about them.

`preprocess` builds a cube from source files and `open_cube` opens it; `train` trains a network on its patches and
`embed` applies it; `open_embeddings` opens the result, and `search` and the accessor ``.gridrad`` of both stores
answer questions by place, time and similarity. Importing this package imports xarray, but neither torch nor
``dask.distributed``: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from gridrad_cube import accessor as _accessor  # noqa: F401  (registers .gridrad with xarray)

__version__ = "0.1.0"

__all__ = [
    "QualitySpec",
    "RadarSpec",
    "Recipe",
    "SchemaError",
    "TileSpec",
    "embed",
    "evaluate",
    "fit_readout",
    "inspect_target",
    "open_cube",
    "open_embeddings",
    "open_packed",
    "plot",
    "preprocess",
    "read_scene",
    "search",
    "show_versions",
    "train",
    "verify",
    "withdraw",
]
_HOMES = {
    "embed": "embedding", "evaluate": "evaluation", "fit_readout": "query", "inspect_target": "info",
    "open_cube": "store", "open_embeddings": "store", "open_packed": "store", "preprocess": "pipeline",
    "read_scene": "readers", "search": "query", "show_versions": "versions", "train": "training", "verify": "store",
    "withdraw": "pipeline",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "plot":
        return importlib.import_module(f"{__name__}.plot")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'schema')}"), name)


def __dir__() -> list[str]:
    return __all__
