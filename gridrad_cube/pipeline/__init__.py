"""Build a cube from many source files: plan, read, cut, flag and write scenes; resume, extend and repair the
store.

The work runs in this process or over Dask.
"""

from __future__ import annotations

from gridrad_cube.pipeline.execution import executor
from gridrad_cube.pipeline.finalize import finalize, is_finished, reflag, withdraw
from gridrad_cube.pipeline.find import find_sources
from gridrad_cube.pipeline.report import Estimate, Outcome, Report, reason
from gridrad_cube.pipeline.run import (
    check_unchanged,
    estimate,
    explained,
    preprocess,
    repair,
    write_plan,
)
from gridrad_cube.pipeline.work import write_crops, write_source

__all__ = [
    "Estimate",
    "Outcome",
    "Report",
    "check_unchanged",
    "estimate",
    "executor",
    "explained",
    "finalize",
    "find_sources",
    "is_finished",
    "preprocess",
    "reason",
    "reflag",
    "repair",
    "withdraw",
    "write_crops",
    "write_plan",
    "write_source",
]


def __dir__() -> list[str]:
    return __all__
