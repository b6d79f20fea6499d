"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real radar and satellite files; without it the test is skipped."""
    folder = Path(os.environ.get("GRIDRAD_CUBE_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real files: set GRIDRAD_CUBE_REAL_DATA to their folder (looked in {folder})")
    return folder


@pytest.fixture(scope="session", autouse=True)
def read_in_this_process():
    """Source files are read by the process of the tests, in which they replace parts of the program."""
    from gridrad_cube.pipeline import run

    run._ISOLATES = False
