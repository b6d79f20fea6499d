"""The oldest versions that pyproject.toml promises, as constraints for pip; arguments replace some of them."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def minimum(project: dict, extras: tuple[str, ...] = ("plot",)) -> dict[str, str]:
    """Name and oldest version of every dependency, and of those of some extras."""
    wanted = [*project["dependencies"], *(d for e in extras for d in project["optional-dependencies"][e])]
    found = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement) for requirement in wanted)
    return {match[1]: match[2] for match in found if match}


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "pyproject.toml"
    versions = minimum(tomllib.loads(path.read_text())["project"])
    versions |= dict(given.split("==") for given in sys.argv[1:])
    print("\n".join(f"{name}=={version}" for name, version in versions.items()))
