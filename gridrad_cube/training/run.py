"""The folder of a run: its checkpoints, its metrics, and whether it may be gone on with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gridrad_cube.models import load_checkpoint, newest_checkpoint, save_checkpoint
from gridrad_cube.schema import SchemaError
from gridrad_cube.training.board import Board, need_tensorboard
from gridrad_cube.training.config import Config, upgrade
from gridrad_cube.training.values import flag

#: How many of the latest numbered checkpoints stay.
KEPT = 3

#: Version of the checkpoint's layout; another one is refused.
CHECKPOINT_FORMAT = 1

#: Options that may differ when a run goes on: where and how it runs, not what it computes. The batch of a
#: process may change with their number, as long as a step takes as many samples.
_FREE = frozenset((
    "store", "out", "num_workers", "on_damage", "device",
    "compile", "precision", "resume", "init_from", "saveckp_freq",
    "save_minutes", "log_steps", "batch_size_per_gpu", "tensorboard", "probe_steps",
))  # fmt: skip


class RunFolder:
    """Checkpoints and metrics of one run; those for TensorBoard too, if ``tensorboard``.

    ``checkpoint.pth`` is the latest; ``checkpoint_step0001234.pth`` the last few; ``checkpoint0020.pth`` those
    kept for good, by epochs done; ``checkpoint_best.pth`` the one that scored best in a probe. Files are replaced
    whole.
    """

    def __init__(self, path: str | os.PathLike[str], *, tensorboard: bool = False) -> None:
        if tensorboard:
            need_tensorboard()
        self.path = Path(path)
        self._tensorboard = tensorboard
        self._board: Board | None = None
        self.latest = self.path / "checkpoint.pth"
        self.best = self.path / "checkpoint_best.pth"
        self.metrics = self.path / "metrics.jsonl"

    def find(self, resume: str) -> Path | None:
        """The checkpoint to go on from, or None for a new run.

        ``auto`` takes the newest one of the folder, a path that file, ``never`` none.

        Raises
        ------
        SchemaError
            If the folder holds a run that the new one would overwrite, or no checkpoint of it is readable.
        FileNotFoundError
            If there is no file at the path.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SchemaError(f"{self.path}: a file; expected a folder for the run. Pass another --out.")
        here = sorted(self.path.glob("checkpoint*.pth"))
        if resume == "auto":
            found = newest_checkpoint(self.path) if here else None
            if here and found is None:
                raise SchemaError(
                    f"{self.path}: none of {len(here)} checkpoints is readable. Remove them, or pass another --out."
                )
            return found
        if resume == "never":
            if here:
                raise SchemaError(
                    f"{self.path}: holds a run already ({here[0].name}), and --resume never starts a new one. "
                    "Pass another --out, or remove the folder."
                )
            return None
        chosen = Path(resume)
        if here and chosen.resolve().parent != self.path.resolve():
            raise SchemaError(
                f"{self.path}: holds a run already ({here[0].name}) and --resume names {chosen} of another folder. "
                "Pass another --out."
            )
        return chosen

    def begin(self, config: Config, step: int | None) -> None:
        """Make the folder, write ``config.json`` and drop metrics of steps that will be done again.

        Parameters
        ----------
        step
            That the run goes on from; None for a new one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.path / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        if self._tensorboard:
            self._board = Board(self.path / "tensorboard", step)
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # half a line of a killed process
            if step is not None and record["step"] <= step:
                kept.append(line + "\n")
        _replace(self.metrics, "".join(kept))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one record to ``metrics.jsonl``."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(metrics)) + "\n")
        if self._board is not None:
            self._board.log(metrics)

    def close(self) -> None:
        """Nothing will be logged any more."""
        if self._board is not None:
            self._board.close()

    def save(self, state: Mapping[str, Any], *, for_good: int | None = None, best: bool = False) -> Path:
        """Write the numbered checkpoint of a step, make it the latest, and drop those past the last few.

        Parameters
        ----------
        for_good
            Epochs done, if this checkpoint is to stay.
        best
            Whether it is the best so far.
        """
        numbered = self.path / f"checkpoint_step{state['step']:07d}.pth"
        save_checkpoint(state, numbered)
        _link(numbered, self.latest)
        if for_good is not None:
            _link(numbered, self.path / f"checkpoint{for_good:04d}.pth")
        if best:
            self.mark_best(numbered)
        for old in sorted(self.path.glob("checkpoint_step*.pth"))[:-KEPT]:
            old.unlink()
        return self.latest

    def mark_best(self, path: Path) -> None:
        """Give a checkpoint the name of the best."""
        if path.resolve() != self.best.resolve():
            _link(path, self.best)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of whatever had it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of a training run, with all that going on needs.

    Raises
    ------
    SchemaError
        If it is no such checkpoint: weights alone, or of another version.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.get("format") != CHECKPOINT_FORMAT or "sampler" not in checkpoint:
        raise SchemaError(
            f"{path}: no checkpoint of a run that can be gone on with, format {checkpoint.get('format')!r}; expected "
            f"{CHECKPOINT_FORMAT}. To start from its weights pass --init-from {path} and a new --out."
        )
    return checkpoint


def check_same_run(
    checkpoint: Mapping[str, Any], config: Config, where: Path, *, level: str, identity: str, batch: int
) -> None:
    """Refuse to go on with the run of another level, store or recipe.

    Parameters
    ----------
    level, identity, batch
        Of the run that wants to go on: its level, its store's identity, samples a step.

    Raises
    ------
    SchemaError
        Names what differs, there and here.
    """
    remedy = "Pass another --out to start a new run (--init-from takes its weights along)."
    if checkpoint["level"] != level:
        raise SchemaError(
            f"{where}: a run of level {checkpoint['level']}, but {config.store} trains level {level}. "
            "Each level has its own --out."
        )
    # Options newer than the checkpoint count as their defaults there.
    old = Config().to_dict() | upgrade(checkpoint["config"], where, checkpoint["level"])
    new = config.to_dict()
    # DINO's loss is a sum over samples; the coding rate is that of each batch.
    free = _FREE | {"accumulate"} if config.objective == "dino" else _FREE
    differing = [
        f"{flag(k)} {old[k]} there, {new[k]} here" for k in new if k not in free and old[k] != new[k]
    ]
    if checkpoint["plan"]["global_batch"] != batch:
        differing.append(
            f"{checkpoint['plan']['global_batch']} samples a step there, {batch} here (processes x "
            "--batch-size-per-gpu x --accumulate)"
        )
    if differing:
        raise SchemaError(f"{where}: a run of another configuration: {'; '.join(differing)}. {remedy}")
    if checkpoint["store"]["identity"] != identity:
        raise SchemaError(
            f"{where}: a run on another store, {checkpoint['store']['path']} (or on this one before it changed), "
            f"identity {checkpoint['store']['identity']}; {config.store} has {identity}. {remedy}"
        )
