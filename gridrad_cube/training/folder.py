"""The folder of a run: its checkpoints and its metrics, and whether it can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gridrad_cube.lease import Lease, lease
from gridrad_cube.models import load_checkpoint, newest_checkpoint, save_checkpoint
from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files, write_bytes

#: How many of the latest numbered checkpoints stay.
_KEPT = 3

#: Version of the layout of checkpoints; another one is refused.
CHECKPOINT_FORMAT = 1

#: Options that may differ when a run is resumed: where and how it runs, not what it computes. The batch of a process
#: may change with their number, as long as a step takes as many samples.
_FREE = frozenset((
    "preset", "store", "out", "num_workers", "on_damage", "device", "compile", "precision", "resume", "init_from",
    "saveckp_freq", "save_minutes", "log_steps", "batch_size_per_gpu", "probe_steps",
))  # fmt: skip


class RunFolder:
    """Checkpoints and metrics of one run.

    ``checkpoint.pth`` is the latest; ``checkpoint_step0001234.pth`` the last few; ``checkpoint0020.pth`` those that
    stay, by epochs done; ``checkpoint_best.pth`` the one that scored best in a probe.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.latest = self.path / "checkpoint.pth"
        self.best = self.path / "checkpoint_best.pth"
        self.metrics = self.path / "metrics.jsonl"
        self._held: Lease | None = None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the right to write to the folder (`gridrad_cube.lease`); another run is refused.

        What killed runs left of unfinished files is removed.

        Raises
        ------
        SchemaError
            If another run writes here, or this is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SchemaError(f"{self.path}: a file; expected a folder for the run. Pass another `out`.")
        files = Files(self.path)
        with lease(files) as self._held:
            files.remove_partials()
            yield

    def find(self, resume: str) -> Path | None:
        """Return the checkpoint from which to resume, or None for a new run.

        ``auto`` takes the newest one of the folder, a path that file, ``never`` none. A folder with a run that the new
        one would overwrite, or of which no checkpoint is readable, is refused.
        """
        here = sorted(self.path.glob("checkpoint*.pth"))
        if resume == "auto":
            found = newest_checkpoint(self.path) if here else None
            if here and found is None:
                raise SchemaError(
                    f"{self.path}: none of {len(here)} checkpoints is readable. Remove them, or pass another `out`."
                )
            return found
        chosen = None if resume == "never" else Path(resume)
        if here and (chosen is None or chosen.resolve().parent != self.path.resolve()):
            other = (
                "`resume='never'` starts a new one"
                if chosen is None
                else f"`resume` names {chosen} of another folder"
            )
            raise SchemaError(
                f"{self.path}: holds a run already ({here[0].name}), and {other}. Pass another `out`, or remove the "
                "folder."
            )
        return chosen

    def begin(self, config: Mapping[str, Any], step: int | None) -> None:
        """Write ``config.json`` and drop the metrics after ``step``, from which the run resumes; None for a new run."""
        write_bytes(self.path / "config.json", json.dumps(config, indent=2).encode() + b"\n")
        if self.metrics.exists():
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            write_bytes(
                self.metrics, b"".join(line for line in lines if step is not None and _step(line) <= step)
            )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one record to ``metrics.jsonl``."""
        self._check()
        Files(self.path).append(self.metrics.name, json.dumps(dict(metrics)).encode() + b"\n")

    def save(self, state: Mapping[str, Any], *, epochs: int | None = None, best: bool = False) -> None:
        """Write the numbered checkpoint of a step, make it the latest, and remove those before the last few.

        After ``epochs``, it stays under their number too; the ``best`` so far gets that name.
        """
        self._check()
        numbered = self.path / f"checkpoint_step{state['step']:07d}.pth"
        save_checkpoint(state, numbered)
        _link(numbered, self.latest)
        if epochs is not None:
            _link(numbered, self.path / f"checkpoint{epochs:04d}.pth")
        if best:
            self.mark_best(numbered)
        for old in sorted(self.path.glob("checkpoint_step*.pth"))[:-_KEPT]:
            old.unlink()

    def _check(self) -> None:
        """Make sure that the folder is still this run's."""
        if self._held is not None:
            self._held.check()

    def mark_best(self, path: Path) -> None:
        """Give a checkpoint the name of the best."""
        if path.resolve() != self.best.resolve():
            _link(path, self.best)


def _step(line: bytes) -> float:
    """Return the step of a record; infinite for half a line of a killed process."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of the file that had it."""
    Files(target.parent).copy(os.path.relpath(source, target.parent), target.name)


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint of a training run, with all that it needs to resume; weights alone are refused."""
    checkpoint = load_checkpoint(path)
    if checkpoint.get("format") != CHECKPOINT_FORMAT or "sampler" not in checkpoint:
        raise SchemaError(
            f"{path}: not a checkpoint of a run that can be resumed, format {checkpoint.get('format')!r}; expected "
            f"{CHECKPOINT_FORMAT}. To start from its weights pass `init_from='{path}'` and a new `out`."
        )
    return checkpoint


def check_same_run(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: Path) -> None:
    """Refuse to resume the run of another level, store or recipe; names what differs, there and here.

    ``theirs`` and ``ours`` have ``level``, ``config``, ``store`` and ``plan`` (``global_batch``), as checkpoints do.
    """
    remedy = "Pass another `out` to start a new run (`init_from` starts it from these weights)."
    old, new = theirs["config"], ours["config"]
    if theirs["level"] != ours["level"]:
        raise SchemaError(
            f"{where}: a run of level {theirs['level']}, but {new['store']} trains level {ours['level']}. "
            "Each level has its own `out`."
        )
    # The loss of DINO is a sum over samples; coding rate and contrast are those of each batch.
    of_samples = new["objective"] == "dino" and not new["contrast_weight"]
    free = _FREE | {"accumulate"} if of_samples else _FREE
    differing = [f"`{k}` {old[k]} there, {new[k]} here" for k in new if k not in free and old[k] != new[k]]
    there, here = (run["plan"]["global_batch"] for run in (theirs, ours))
    if there != here:
        counted = "(processes x `batch_size_per_gpu` x `accumulate`)"
        differing.append(f"{there} samples a step there, {here} here {counted}")
    if differing:
        raise SchemaError(f"{where}: a run of another configuration: {'; '.join(differing)}. {remedy}")
    store, identity = theirs["store"], ours["store"]["identity"]
    # Since checkpoints keep the samples, a store may change as long as it holds them.
    if store["identity"] != identity and "samples" not in theirs:
        raise SchemaError(
            f"{where}: a run on another store, {store['path']} (or on this one before it changed), identity "
            f"{store['identity']}; {new['store']} has {identity}. {remedy}"
        )
