"""What became of each source file."""

from __future__ import annotations

from dataclasses import dataclass

from gridrad_cube.store import Record


@dataclass(frozen=True)
class Outcome:
    """What became of one source file: ``written``, ``kept`` (already there), ``skipped`` or ``failed``."""

    source: str
    status: str
    reason: str = ""
    crops: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """One row a source file, in the order of the plan; files that could not be planned come last."""

    store: str
    outcomes: tuple[Outcome, ...]

    def count(self, status: str) -> int:
        """Number of files with this outcome."""
        return sum(o.status == status for o in self.outcomes)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Files that failed."""
        return tuple(o for o in self.outcomes if o.status == "failed")

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(s)} {s}" for s in ("written", "kept", "skipped", "failed"))
        crops = sum(o.crops for o in self.outcomes)
        lines = [f"{self.store}: {len(self.outcomes)} files: {counts}; {crops} crops"]
        lines += [f"  {o.status:8}{o.source}: {o.reason}" for o in self.outcomes if o.reason]
        return "\n".join(lines)


def reason(error: BaseException) -> str:
    """Say in one line why a file failed; the type too where it is no error about the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def outcome_of(record: Record, crops: int = 0) -> Outcome:
    """Row of the report for a record of the build log; ``crops`` is how many it planned."""
    return Outcome(
        record.source,
        record.status,
        record.reason,
        crops if record.status == "written" else 0,
        record.bytes,
        record.seconds,
    )
