"""The metrics of a run for TensorBoard, where that is installed and asked for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from gridrad_cube.schema import SchemaError


def need_tensorboard() -> None:
    """Refuse in words if it is not installed.

    Raises
    ------
    SchemaError
        Says what to install.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise SchemaError(
            "--tensorboard: the package tensorboard is not installed. pip install 'gridrad-cube[tensorboard]', or "
            "leave --tensorboard out: metrics.jsonl holds the same numbers."
        )


class Board:
    """Event files of one run.

    Parameters
    ----------
    path
        Folder to write to.
    step
        Step that the run goes on from: what an earlier process wrote of later ones is struck out. None for a
        new run.
    """

    def __init__(self, path: str | os.PathLike[str], step: int | None) -> None:
        need_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(os.fspath(path), purge_step=0 if step is None else step + 1)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write one record, on disk when this returns."""
        for name, value in metrics.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, metrics["step"])
        self._writer.flush()

    def close(self) -> None:
        """End the writer's thread."""
        self._writer.close()
