"""What the writers of all formats share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Said in every file: nobody should take it for data.
MADE_UP = "gridrad-cube synthesize: made-up weather, not an observation"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a file and move it there at the end, unless something failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_second(time: str | np.datetime64) -> np.datetime64:
    """Read a UTC time as ``datetime64`` of whole seconds."""
    return np.datetime64(str(time), "s")


def compression(deflate: int) -> dict[str, Any]:
    """Options of ``createVariable`` for a deflate level; 0 is none."""
    return {"compression": "zlib", "complevel": deflate, "shuffle": True} if deflate else {}
