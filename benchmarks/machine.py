"""What every benchmark says beside its figures: the machine, the versions, the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

VERSIONS = (
    "numpy",
    "zarr",
    "numcodecs",
    "h5py",
    "netCDF4",
    "deflate",
    "xarray",
    "distributed",
    "torch",
)


def facts() -> list[str]:
    """Lines on the machine, the versions, and the command that is running."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    own = ("--folder", "--out")  # say nothing of this machine
    pairs = zip(sys.argv, sys.argv[1:], strict=False)
    given = [_shown(a) for b, a in pairs if a not in own and b not in own]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])
    return [
        f"Command: `{command}`",
        "",
        f"Machine: {cores} cores, {_processor()}, {platform.system()}{load}. Python "
        f"{platform.python_version()}, {versions}.",
    ]


def _shown(argument: str) -> str:
    """An argument without what it says of this machine: a folder as such, the name of a file."""
    path = Path(argument)
    return "FOLDER" if path.is_dir() else path.name if path.is_file() else argument


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # the peak of `resource` is inherited from the parent there
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table whose columns align as text too."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def report(title: str, lines: Sequence[str], out: Path | None) -> None:
    """Print a report, and write it to a file if one is given."""
    text = "\n".join([f"# {title}", "", *facts(), "", *lines]) + "\n"
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
