"""Networks that benchmarks train: what is tried, and its training to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gridrad_cube.training import load_config, train


@dataclass(frozen=True)
class Trial:
    """What is trained: words for the reader, options over those of a preset, and the share of the steps it takes."""

    words: str
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "demo"
    length: float = 1.0


def train_whole(cube: Path, out: Path, **options: Any) -> Path:
    """Train to the last step, or resume a run that was interrupted; the checkpoint."""
    result = train(load_config(store=str(cube), out=str(out), **options))
    if result["stopped"]:
        raise SystemExit(f"{out}: stopped at step {result['step']}; the same command resumes it")
    return out / "checkpoint.pth"
