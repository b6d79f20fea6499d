"""The dependency rule: imports run one way, heavy packages stay behind their doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gridrad_cube

PACKAGE = Path(gridrad_cube.__file__).parent
LAYERS = {
    0: {"schema", "geometry", "storage", "launch", "selection", "versions"},
    1: {"readers", "tiling", "quality", "store", "similarity", "models", "synthetic"},
    2: {"pipeline", "datasets", "query", "evaluation", "plot", "info"},
    3: {"training", "embedding", "predecessor", "testing"},
    4: {"cli", "demo", "__main__"},
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
#: Package -> modules that may import it, at any depth.
ONLY_IN = {
    "torch": {"launch", "models", "datasets", "evaluation", "training", "embedding", "predecessor", "demo"},
    "distributed": {"pipeline", "embedding"},
    "dask": {"pipeline", "embedding"},
    "netCDF4": {"readers", "synthetic"},
    "h5py": {"readers"},
    "deflate": {"readers"},
    "fsspec": {"storage"},
    "obstore": {"storage"},
    "faiss": {"query"},
    "pyarrow": {"query"},
    "matplotlib": {"plot"},
    "click": {"cli"},
}


def modules():
    """(module of the package, file) for every file that is not the package's own __init__."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def imports(path):
    """Every module that a file imports, at any depth: dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "gridrad_cube":
                yield from (f"gridrad_cube.{alias.name}" for alias in node.names)


def ours(name):
    """The module of this package that a dotted name lies in, or None."""
    parts = name.split(".")
    return parts[1] if parts[0] == "gridrad_cube" and len(parts) > 1 and parts[1] in LAYER else None


def test_every_module_has_a_layer():
    assert {name for name, _ in modules()} == set(LAYER)


@pytest.mark.parametrize(
    ("module", "path"), list(modules()), ids=lambda v: v if isinstance(v, str) else v.name
)
def test_imports_run_downwards(module, path):
    for name in imports(path):
        other = ours(name)
        if other is not None and other != module:
            same_layer = LAYER[other] == LAYER[module]
            assert LAYER[other] < LAYER[module] or (same_layer and LAYER[module] != 1), (
                f"{path} imports {name}"
            )
        top = name.split(".")[0]
        assert module in ONLY_IN.get(top, {module}), f"{path} imports {top}"


def test_no_cycle_within_a_layer():
    edges = {}
    for module, path in modules():
        edges.setdefault(module, set()).update(o for n in imports(path) if (o := ours(n)) and o != module)
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, f"imports go round: {[*under_way, module]}"
        if module not in done:
            under_way.append(module)
            for other in edges.get(module, ()):
                visit(other)
            under_way.pop()
            done.add(module)

    for module in edges:
        visit(module)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import gridrad_cube",
            ("torch", "distributed", "scipy", "matplotlib", "netCDF4", "obstore"),
        ),
        ("import gridrad_cube.readers.engines", ("torch", "distributed", "scipy", "matplotlib")),
        ("import gridrad_cube.pipeline", ("torch", "matplotlib")),
        ("import gridrad_cube.query", ("torch", "distributed", "matplotlib")),
        ("import gridrad_cube.cli", ("torch", "distributed", "matplotlib", "xarray")),
    ],
)
def test_light_doors_stay_light(statement, absent):
    code = f"{statement}; import sys; print([m for m in {absent!r} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_public_names_are_sorted_and_there():
    assert gridrad_cube.__all__ == sorted(gridrad_cube.__all__)
    for name in gridrad_cube.__all__:
        assert getattr(gridrad_cube, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gridrad_cube.nothing  # noqa: B018
