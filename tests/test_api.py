"""The public names: what `dir()` shows, docstrings, and the same name and default for the same thing everywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest

import gridrad_cube

PACKAGE = Path(gridrad_cube.__file__).parent

MODULES = (
    "accessor", "datasets", "embedding", "evaluation", "geometry", "info", "launch", "models", "pipeline", "plot",
    "predecessor", "progress", "quality", "query", "readers", "readout",
    "schema", "selection", "similarity", "storage", "store", "synthetic", "tiling",
    "training", "versions",
)  # fmt: skip
#: Parameters that mean the same in all functions, and their default where they have one.
DEFAULTS = {
    "bbox": None, "batch_size": 64, "channel": None, "channels": None, "client": None, "device": "auto",
    "metric": "cosine", "progress": None, "readout": "auto", "reject": None, "scheduler": None, "seed": 0,
    "time": None, "workers": 1,
}  # fmt: skip
#: Words for parameters that have a name already.
OTHER_WORDS = {
    "dest",
    "n_workers",
    "output",
    "random_state",
    "store_path",
    "verbose",
    "zarr_path",
}
#: Exceptions, by function and parameter.
EXCEPTIONS = {
    ("embedding.Network", "device"): "cpu",
    ("datasets.PatchLoader", "device"): None,  # batches stay where they are read
    # Requests that are stored as JSON: empty for all.
    ("schema.Recipe", "channels"): (),
    ("readers.inspect", "channels"): (),
    ("readers.read_scene", "channels"): (),
    ("training.Config", "bbox"): (),
    ("training.Config", "channels"): (),
    ("training.Config", "time"): (),
    # The predecessor's two channels.
    ("predecessor.from_checkpoint", "channels"): ("ir_brightness_temperature", "visible_reflectance"),
    ("predecessor.from_features", "channels"): ("ir_brightness_temperature", "visible_reflectance"),
}


def public(package):
    """Public functions and classes of a package, by name."""
    module = importlib.import_module(f"gridrad_cube.{package}")
    return {name: getattr(module, name) for name in module.__all__}


def signatures():
    """Signature of every public function and class, by ``package.name``."""
    for package in MODULES:
        for name, value in public(package).items():
            if inspect.isfunction(value) or (inspect.isclass(value) and "__init__" in vars(value)):
                yield f"{package}.{name}", inspect.signature(value)


def rank(name):
    """Key of the order of ``__all__``: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("package", ["", *MODULES])
def test_public_names_are_sorted_and_described(package):
    module = importlib.import_module(f"gridrad_cube.{package}".rstrip("."))
    assert module.__doc__
    names = list(module.__all__)
    assert names == sorted(set(names), key=rank)
    assert dir(module) == sorted(names)
    values = [getattr(module, name) for name in names]
    described = [value for value in values if inspect.isfunction(value) or inspect.isclass(value)]
    assert [value for value in described if not inspect.getdoc(value)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_functions_at_the_top_are_those_of_the_packages():
    for package, name in (
        ("pipeline", "preprocess"), ("store", "open_cube"), ("store", "open_embeddings"), ("training", "train"),
        ("embedding", "embed"), ("query", "search"), ("evaluation", "evaluate"), ("query", "fit_readout"),
    ):  # fmt: skip
        assert getattr(gridrad_cube, name) is public(package)[name]
    assert inspect.ismodule(gridrad_cube.plot)


def test_the_same_thing_has_the_same_name_and_default():
    found = defaultdict(dict)
    for function, signature in signatures():
        assert not OTHER_WORDS & signature.parameters.keys(), function
        for name, parameter in signature.parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                found[name][function] = parameter.default
    assert set(DEFAULTS) <= set(found)
    wrong = {
        (function, name): default
        for name, expected in DEFAULTS.items()
        for function, default in found[name].items()
        if default != expected
    }
    assert wrong == EXCEPTIONS


#: Names that users meet although no package exports them, and why.
SEEN = {
    "readers/files.MAX_VARIABLE_BYTES",  # an error names it
    "readers/engines.GridRadBackend",  # xarray finds them by entry points
    "readers/engines.LarcGoesBackend",
    "training/loop.Progress",  # the type of a parameter of `train`
}


def test_what_no_package_exports_is_private_by_name():
    """A name without underscore in a module of a package is exported, or a module beside it uses it."""
    found = set()
    for package in (path.parent for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli"):
        exported = set(importlib.import_module(f"gridrad_cube.{package.name}").__all__) | {"logger"}
        texts = {path: path.read_text() for path in package.glob("*.py")}
        for path, text in texts.items():
            words = set(
                re.findall(r"\w+", "\n".join(other for beside, other in texts.items() if beside != path))
            )
            for node in ast.parse(text).body:
                targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
                names = {getattr(node, "name", "_"), *(t.id for t in targets if isinstance(t, ast.Name))}
                unused = {name for name in names if name[0] != "_"} - exported - words
                found |= {f"{package.name}/{path.stem}.{name}" for name in unused}
    assert found == SEEN
