"""From gridded radar and satellite files to a Zarr cube, embeddings, and questions about them.

`preprocess` builds a cube from source files and `open_cube` opens it; `train` trains a network on its patches and
`embed` applies it; `open_embeddings` opens the result, and `search` and the accessor ``.gridrad`` of both stores
answer questions by place, time and likeness. Importing this package imports neither torch nor
``dask.distributed``: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "QualitySpec",
    "RadarSpec",
    "Recipe",
    "SchemaError",
    "TileSpec",
    "embed",
    "evaluate",
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
]
_HOMES = {
    "embed": "embedding", "evaluate": "evaluation", "inspect_target": "info", "open_cube": "store",
    "open_embeddings": "store", "open_packed": "store", "preprocess": "pipeline", "read_scene": "readers",
    "search": "query", "show_versions": "versions", "train": "training", "verify": "store",
}  # fmt: skip


class _Registration(importlib.abc.MetaPathFinder):
    """Registers the accessor when xarray is imported: this package starts without it, for a quick command line."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "xarray":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("gridrad_cube.accessor")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "xarray" in sys.modules:
    importlib.import_module(f"{__name__}.accessor")
else:
    sys.meta_path.insert(0, _Registration())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "plot":
        return importlib.import_module(f"{__name__}.plot")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'schema')}"), name)


def __dir__() -> list[str]:
    return __all__
