"""What is installed here, for the report of a fault."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import TextIO

#: Settings of the environment that change what the libraries below do.
_SETTINGS = (
    "CUDA_VISIBLE_DEVICES", "HDF5_USE_FILE_LOCKING", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS", "TMPDIR",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions by name: Python, the system, this package and all that it asks for, extras among them.

    Nothing is imported. What is not installed is left out if an extra brings it, and is ``"missing"`` otherwise.
    """
    found = {
        "python": sys.version.replace("\n", " "),
        "system": platform.platform(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "gridrad-cube": _version("gridrad-cube") or "not installed, runs from its folder",
    }
    for requirement in _requirements():
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None, requirement
        version = _version(name.group())
        if version or "extra ==" not in requirement:
            found[name.group()] = version or "missing"
    return found | {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def show_versions(file: TextIO | None = None) -> None:
    """Print what is installed here, to be pasted into the report of a fault.

    Parameters
    ----------
    file
        Where to; standard output by default.
    """
    found = versions()
    width = max(map(len, found))
    for name, version in found.items():
        print(f"{name:{width}}  {version}", file=file or sys.stdout)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        requirements = metadata.requires("gridrad-cube") or []
    except metadata.PackageNotFoundError:
        return []
    return [r for r in requirements if not r.startswith("gridrad-cube")]
