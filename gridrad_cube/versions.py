"""Versions of what is installed, for the report of a fault."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata

__all__ = ["show_versions"]


def __dir__() -> list[str]:
    return __all__


#: Settings of the environment that change what the libraries do.
_SETTINGS = (
    "CUDA_VISIBLE_DEVICES", "HDF5_USE_FILE_LOCKING", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS", "TMPDIR",
)  # fmt: skip


def show_versions() -> None:
    """Print the versions of Python, this package and its dependencies, and the settings of the environment.

    Nothing is imported.
    """
    found = {
        "python": sys.version.replace("\n", " "),
        "system": platform.platform(),
        "cores": str(os.cpu_count()),
    }
    try:
        required = metadata.requires("gridrad-cube") or []
    except metadata.PackageNotFoundError:  # it runs from its folder
        required = []
    for name in ("gridrad-cube", *(re.split(r"[^\w.-]", requirement)[0] for requirement in required)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found |= {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    width = max(map(len, found))
    for name, version in found.items():
        print(f"{name:{width}}  {version}")
