"""Reports: the outcome of a build for each scene, and an estimate of a build."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gridrad_cube import store
from gridrad_cube.schema import counted, printable

_logger = logging.getLogger(__name__)

#: Lines of reasons in a report at most; the store has all of them.
_MAX_LINES = 30
_TIME = re.compile(r"@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one scene: ``written``, ``kept`` (it was there already), ``skipped`` or ``failed``.

    ``source`` is its file, with the time if the file has several times.
    """

    source: str
    status: str
    reason: str = ""
    crops: int = 0


@dataclass(frozen=True)
class Report:
    """One outcome for each scene, in the order of the plan; files that could not be planned come last.

    ``unread`` lists files in the folders that look like data but have a suffix that is not read, and folders
    and files that cannot be opened. ``other`` lists further names in the folders. ``thresholds_of`` has the
    number of scenes that the thresholds of global outliers were computed from, and the number of planned
    scenes.
    """

    store: str
    outcomes: tuple[Outcome, ...]
    unread: tuple[Outcome, ...] = ()
    other: tuple[str, ...] = ()
    thresholds_of: tuple[int, int] | None = None

    def count(self, status: str) -> int:
        """Return the number of scenes with an outcome.

        Parameters
        ----------
        status
            ``"written"``, ``"kept"``, ``"skipped"`` or ``"failed"``.

        Returns
        -------
        The number.
        """
        return sum(o.status == status for o in self.outcomes)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Scenes that failed."""
        return tuple(o for o in self.outcomes if o.status == "failed")

    @property
    def is_complete(self) -> bool:
        """True if no scene failed and no file that looks like a source was left unread."""
        return not self.failed and not self.unread

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(s)} {s}" for s in ("written", "kept", "skipped", "failed"))
        crops = sum(o.crops for o in self.outcomes)
        head = f"{self.store}: {counted(len(self.outcomes), 'scene')}: {counts}; {counted(crops, 'crop')}"
        reasons = group((*self.outcomes, *self.unread))
        return "\n".join([head, *reasons, *_names(self.other), *self._thresholds()])

    def _thresholds(self) -> Iterator[str]:
        if self.thresholds_of and self.thresholds_of[0] < self.thresholds_of[1]:
            some, every = self.thresholds_of
            yield (
                f"  the thresholds of the flag global_outlier come from {some} of {every} scenes; when the others are "
                f"written, gridrad-cube reflag {self.store} computes them again from all"
            )


@dataclass(frozen=True)
class Estimate:
    """The estimated result of a build, by the headers of its sources.

    ``bytes`` and ``seconds`` are extrapolated from a few scenes that were processed without being written: the bytes
    of all shards, and the time of all workers together. They are 0 if none of these scenes could be read.
    ``refused`` lists files that could not be planned; ``unread`` and ``other`` are as of `Report`.
    """

    store: str
    workers: int
    kept: int
    scenes: int
    crops: int
    patches: int
    channels: int
    files: int
    bytes: int
    seconds: float
    refused: tuple[Outcome, ...] = ()
    unread: tuple[Outcome, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True if every file can be planned and no file that looks like a source was left unread."""
        return not self.unread and all(o.status != "failed" for o in self.refused)

    def __str__(self) -> str:
        rows = {
            "scenes": f"{self.scenes:,} new, {self.kept:,} planned before",
            "crops": f"{self.crops:,}",
            "patches": f"{self.patches:,} of {counted(self.channels, 'channel')}",
            "files": f"{self.files:,}",
            "bytes": f"about {_amount(self.bytes)} of pixels" if self.bytes else "not known",
            "time": f"roughly {_duration(self.seconds / self.workers)} with {counted(self.workers, 'worker')}, "
            "by a few scenes on this machine; a busy disk or a network may take several times as long"
            if self.seconds
            else "not known",
        }
        refused = [f"{counted(len(self.refused), 'file')} cannot be planned:"] if self.refused else []
        lines = [f"{self.store}: a dry run, nothing is written"]
        lines += [f"  {name:8}{value}" for name, value in rows.items()]
        return "\n".join([*lines, *refused, *group((*self.refused, *self.unread)), *_names(self.other)])


def group(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield the lines of the reasons of outcomes: equal ones, but for file and numbers, once with their count
    and an example.
    """
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.reason:
            # A message begins with the path of its file, which ends in the name of the source.
            _, found, text = outcome.reason.partition(_TIME.sub("", outcome.source))
            key = re.sub(r"\d+", "0", text if found else outcome.reason)
            groups.setdefault((outcome.status, key), []).append(outcome)
    for (status, _), members in list(groups.items())[:_MAX_LINES]:
        first = members[0]
        several = f"{len(members)} such, for example " if len(members) > 1 else ""
        yield printable(f"  {status:8}{several}{first.source}: {first.reason}")
    if len(groups) > _MAX_LINES:
        yield f"  and {len(groups) - _MAX_LINES} further reasons; the store has all in report/reason"


def _names(names: tuple[str, ...]) -> Iterator[str]:
    if names:
        yield printable(f"  {len(names)} other names are no sources, for example {names[0]}")


def _amount(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:,.0f} h"


def refusal(name: str, error: Exception, size: int | None = None) -> store.Record:
    """Return the record of a file that cannot be planned, or whose size is unknown. An empty file is skipped."""
    return failure(name, error, status="skipped" if size == 0 else "failed", size=size or 0)


def failure(
    source: str, error: Exception, *, status: str = "failed", size: int, mtime_ns: int = 0
) -> store.Record:
    """Return the record of a scene that failed; its traceback is logged at level DEBUG."""
    _logger.debug("%s failed", source, exc_info=error)
    return store.Record(source=source, status=status, size=size, mtime_ns=mtime_ns, reason=reason(error))


def outcome_of(record: store.Record, entry: store.Entry | None = None) -> Outcome:
    """Return the outcome that is in a record of the build log."""
    crops = len(entry.windows) if entry and record.status == "written" else 0
    return Outcome(record.source, record.status, record.reason, crops)


def reason(error: BaseException) -> str:
    """Return in one line why a file failed, with the type of the error if it is not an error about the file.

    Parameters
    ----------
    error
        The exception.

    Returns
    -------
    The text.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
