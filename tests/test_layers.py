"""The rules of the layout: imports run one way, packages are imported through their `__init__`, and sizes."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import gridrad_cube

PACKAGE = Path(gridrad_cube.__file__).parent
PROJECT = Path(__file__).resolve().parents[1]
LAYERS = {
    0: {
        "schema",
        "geometry",
        "storage",
        "lease",
        "launch",
        "progress",
        "selection",
        "sources",
        "versions",
        "accessor",
    },
    1: {"readers", "tiling", "quality", "store", "similarity", "readout", "models", "synthetic"},
    2: {"pipeline", "datasets", "query", "evaluation", "plot", "info"},
    3: {"training", "embedding", "predecessor"},
    4: {"cli", "demo", "__main__"},
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
#: Package -> modules that may import it, at any depth.
ONLY_IN = {
    "torch": {"launch", "models", "datasets", "evaluation", "training", "embedding", "predecessor", "demo"},
    "distributed": {"pipeline", "embedding"},
    "dask": {"pipeline", "embedding", "store"},
    "netCDF4": {"readers", "synthetic"},
    "h5py": {"readers"},
    "deflate": {"readers"},
    "fsspec": {"storage"},
    "obstore": {"storage"},
    "pyarrow": {"query"},
    "matplotlib": {"plot"},
    "click": {"cli"},
}
#: Limits of size. Each names the largest value that is allowed.
MODULES = 129
LINES = 29_980  # without docstrings
FILES_OF_A_PACKAGE = 13
LONGEST_CHAIN = 15
#: Test modules that look into several packages: the pipeline applies the quality control of volumes.
LOOK_INTO_SEVERAL = {"test_quality.py"}
#: Basenames of several modules that play the same part in their packages; modules of `cli` have the names of packages.
SHARED_BASENAMES = {
    "checkpoints",
    "embedding",
    "patches",
    "plan",
    "predecessor",
    "radar",
    "readout",
    "run",
    "training",
}


def files_of(folder):
    return sorted(path for path in (PROJECT / folder).rglob("*.py"))


def name_of(path):
    """Dotted name of a file of the package; a package for its `__init__`."""
    parts = ("gridrad_cube", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in files_of(PACKAGE)}


@functools.cache
def imports(path):
    """What a file imports, at any depth: (module, name) pairs, with the name "" for a whole module."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def exports(path):
    """Names that an `__init__` takes from its modules."""
    return {name for _, name in imports(path)} if path.name == "__init__.py" else set()


def files_imported(path):
    """Names of the files of the package that a file imports."""
    found = set()
    for module, name in imports(path):
        # `from package import name` is the function where the package has a module of that name too.
        is_export = module in FILES and name in exports(FILES[module]) and path.parent != FILES[module].parent
        found.add(module if is_export or f"{module}.{name}" not in FILES else f"{module}.{name}")
    return found & FILES.keys() - {"gridrad_cube"}


EDGES = {name: files_imported(path) - {name} for name, path in FILES.items()}


def top_of(name):
    """Module or package of this package in which a file lies: ``store`` for ``gridrad_cube.store.patches``."""
    return name.split(".")[1]


def deep_imports(path):
    """Imports of a file past the `__init__` of packages other than its own."""
    own = top_of(name_of(path)) if path.is_relative_to(PACKAGE) and path.parent != PACKAGE else None
    return [target for target in files_imported(path) if target.count(".") > 1 and top_of(target) != own]


def test_every_module_has_a_layer():
    assert {top_of(name) for name in FILES if name != "gridrad_cube"} == set(LAYER)


def test_imports_run_downwards():
    def may_import(module, other):
        return module == other or LAYER[other] < LAYER[module] or LAYER[other] == LAYER[module] != 1

    ours = [(name, other) for name, others in EDGES.items() if name != "gridrad_cube" for other in others]
    assert [(a, b) for a, b in ours if not may_import(top_of(a), top_of(b))] == []
    heavy = [
        (name, module.split(".")[0])
        for name, path in FILES.items()
        if name != "gridrad_cube"
        for module, _ in imports(path)
    ]
    assert [(a, b) for a, b in heavy if top_of(a) not in ONLY_IN.get(b, {top_of(a)})] == []


def test_no_cycle_within_a_layer():
    edges = defaultdict(set)
    for name, others in EDGES.items():
        if name != "gridrad_cube":
            edges[top_of(name)] |= {top_of(other) for other in others} - {top_of(name)}
    assert len(condense(edges)) == len(LAYER)


def condense(edges):
    """Groups of nodes that reach each other, each after all that it reaches."""
    index, low, stack, groups = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            start = stack.index(node)
            groups.append(set(stack[start:]))
            del stack[start:]

    for node in list(edges):
        if node not in index:
            visit(node)
    return groups


def test_chain_of_imports_is_short_and_has_no_cycle():
    chains = {}
    groups = condense(EDGES)
    for group in groups:
        below = {other for node in group for other in EDGES[node]} - group
        longest = max((chains[other] for other in below), key=len, default=[])
        chains |= {node: [min(group), *longest] for node in group}
    longest = max(chains.values(), key=len)
    assert len(longest) <= LONGEST_CHAIN, " > ".join(longest)
    assert [group for group in groups if len(group) > 1] == []


def test_packages_are_imported_through_their_init():
    assert [(name, target) for name, path in FILES.items() for target in deep_imports(path)] == []
    # A test or a benchmark may look into the one package that it is about.
    beside = [path for folder in ("tests", "benchmarks", "training") for path in files_of(folder)]
    packages = {path.name: {top_of(target) for target in deep_imports(path)} for path in beside}
    assert {name for name, tops in packages.items() if len(tops) > 1} <= LOOK_INTO_SEVERAL


def count_lines(text):
    """Lines of a module without its docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    described = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds) and ast.get_docstring(n)]
    docstrings = sum(n.body[0].end_lineno - n.body[0].lineno + 1 for n in described)
    return text.count("\n") - docstrings


def test_sizes_stay_within_limits():
    assert len(FILES) <= MODULES
    assert sum(count_lines(path.read_text()) for path in FILES.values()) <= LINES
    sizes = Counter(path.parent for path in FILES.values() if path.parent != PACKAGE)
    assert max(sizes.values()) <= FILES_OF_A_PACKAGE, sizes.most_common(3)


def test_modules_do_not_share_basenames():
    names = Counter(name.rpartition(".")[2] for name in FILES if not name.endswith("__main__"))
    assert {name for name, count in names.items() if count > 1} <= SHARED_BASENAMES


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gridrad_cube", ("torch", "distributed", "scipy", "matplotlib", "netCDF4", "obstore")),
        ("import gridrad_cube.readers.engines", ("torch", "distributed", "scipy", "matplotlib")),
        ("import gridrad_cube.pipeline", ("torch", "matplotlib")),
        ("import gridrad_cube.query", ("torch", "distributed", "matplotlib")),
        ("import gridrad_cube.cli", ("torch", "distributed", "scipy", "matplotlib", "netCDF4")),
    ],
)
def test_heavy_packages_are_imported_late(statement, absent):
    code = f"{statement}; import sys; print([m for m in {absent!r} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
