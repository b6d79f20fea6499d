"""Many source files into one cube, over Dask: plan, read, tile, flag, write; resume, extend, repair."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gridrad_cube import store
from gridrad_cube.pipeline.execution import Runner, executor
from gridrad_cube.pipeline.finalise import finalise, reflag
from gridrad_cube.pipeline.plan import check_unchanged, plan, under_known_names
from gridrad_cube.pipeline.radar import quality_spec
from gridrad_cube.pipeline.report import Outcome, Report, outcome_of, reason
from gridrad_cube.pipeline.sources import Source, find_sources
from gridrad_cube.pipeline.work import write_crops, write_source
from gridrad_cube.schema import Recipe, SchemaError

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Outcome",
    "Report",
    "Source",
    "check_unchanged",
    "executor",
    "finalise",
    "find_sources",
    "is_finished",
    "preprocess",
    "reason",
    "reflag",
    "repair",
    "write_crops",
    "write_plan",
    "write_source",
]


#: Errors of the place that is written to: no other file would fare better.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def preprocess(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store_path: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    client: Client | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    retries: int = 2,
    progress: bool = False,
) -> Report:
    """Build a cube of patches from source files, or continue or extend one.

    What is already written and verified stays; the rest of the plan is done; new files are appended. One
    bad file never stops the others. The store appears, or grows, when all are done.

    Parameters
    ----------
    sources
        Files and folders (searched for netCDF files).
    store_path
        Path or URL of the store.
    recipe
        What to make of them; None takes that of an existing store, else the defaults.
    client
        Dask client to use; it is never closed here.
    workers
        Without a client: 1 works in this process, more start that many processes of one thread each.
    scheduler
        Address of a running Dask scheduler, or the path of its scheduler file.
    retries
        How often a file is tried again after an error of disk or network.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    What became of each file.

    Raises
    ------
    FileNotFoundError
        If a source is not there.
    SchemaError
        If no source file is found, the store has another recipe, a written source has changed, two files
        hold the same scene, somebody else writes to the store, or other processes could not reach it.
    """
    if recipe is not None:
        quality_spec(recipe.radar)  # a constant that there is not is told before any file is read
    found = find_sources(sources)
    build = _open_build(store_path)
    if not build.files.shared and (client is not None or scheduler or workers > 1):
        raise SchemaError(f"{store_path}: lives in this process alone; build it with workers=1 and no client")
    with executor(client, workers, scheduler) as run, build.lease():
        build = store.Build(store_path)  # what a writer before us did is seen only under the lease
        recipe = _recipe(build, recipe)
        found = under_known_names(build, found)
        try:
            refused = plan(build, recipe, found, run, progress)
            outcomes = write_plan(build, found, run, progress, retries)
        finally:
            build.flush()
        if not build.entries:
            raise SchemaError(_nothing(store_path, refused))
        if not is_finished(build):
            finalise(build)
    return Report(os.fspath(store_path), (*outcomes, *refused))


def _open_build(path: str | os.PathLike[str]) -> store.Build:
    build = store.Build(path)
    if build.layout is None and build.files.names() and not build.files.exists("_build"):
        raise SchemaError(
            f"{path}: there is something here that is no store under construction; give a new path"
        )
    return build


def is_finished(build: store.Build) -> bool:
    """Whether the store is there and was made from all that the log says."""
    try:
        return bool(store.cube_info(build.files.root).get("build_state") == build.state())
    except (SchemaError, FileNotFoundError):  # there is none, or it cannot be read
        return False


def _recipe(build: store.Build, wanted: Recipe | None) -> Recipe:
    if build.recipe is None:
        return wanted or Recipe()
    if wanted is None:
        return build.recipe
    if not wanted.channels:
        wanted = replace(wanted, channels=build.recipe.channels)
    if sorted(wanted.channels) == sorted(build.recipe.channels):  # their order means nothing
        wanted = replace(wanted, channels=build.recipe.channels)
    old, new = build.recipe.to_dict(), wanted.to_dict()
    changed = {k: (old[k], new[k]) for k in old if old[k] != new[k]}
    if changed:
        text = "; ".join(f"{k}: store {a}, asked {b}" for k, (a, b) in changed.items())
        hint = " Thresholds change with: gridrad-cube reflag." if "quality" in changed else ""
        raise SchemaError(f"{build.files.root}: built with another recipe ({text}). Use a new --store.{hint}")
    return build.recipe


def _nothing(path: str | os.PathLike[str], refused: Sequence[Outcome]) -> str:
    reasons = "\n".join(f"  {o.source}: {o.reason}" for o in refused[:10])
    return f"{path}: no file can be used, so there is no store:\n{reasons}"


def write_plan(
    build: store.Build,
    found: Sequence[Source],
    run: Runner,
    progress: bool,
    retries: int,
    *,
    write: Callable[..., store.Record] | None = None,
    title: str = "preprocess",
) -> list[Outcome]:
    """Do what the plan still lacks; return one outcome for each planned file, in the order of the plan.

    Parameters
    ----------
    write
        The unit of work, with the parameters of `write_source`, which it is if None.
    title
        Of the progress bar.
    """
    paths = {s.name: s.path for s in found}
    damaged = build.damaged_rows()
    outcomes: dict[int, Outcome] = {}
    todo = []
    for number, entry in enumerate(build.entries):
        rows = slice(entry.row, entry.rows.stop)
        if build.is_written(number) and not damaged[rows].any():
            outcomes[number] = Outcome(entry.source, "kept", crops=len(entry.windows))
        elif entry.source in paths:
            todo.append(number)
        else:
            outcomes[number] = _not_given(build, number)
    if todo:
        assert build.layout is not None
        assert build.recipe is not None
        tasks = [
            (
                retries,
                write or write_source,
                build.files.root,
                build.layout,
                build.recipe,
                build.entries[n],
                paths[build.entries[n].source],
            )
            for n in todo
        ]
        bar = tqdm(run(_attempt, tasks), total=len(tasks), desc=title, unit="file", disable=not progress)
        for i, result in bar:
            outcomes[todo[i]] = _account(build, todo[i], result)
    return [outcomes[n] for n in range(len(build.entries))]


def _attempt(retries: int, write: Callable[..., store.Record], *task: Any) -> store.Record:
    """Write a source, again after a fault of the disk or the network; what is wrong with a file stays wrong."""
    for attempt in range(retries + 1):
        try:
            return write(*task)
        except OSError as error:
            if attempt == retries or isinstance(error, FileNotFoundError) or error.errno in _FATAL:
                raise
            time.sleep(2.0**attempt / 4)
    raise AssertionError("unreachable")


def _is_of_the_store(build: store.Build, error: OSError) -> bool:
    """Whether an error is of the place that is written to, so that no other file would fare better."""
    refused = error.errno in (errno.EACCES, errno.EPERM)
    return error.errno in _FATAL or (refused and str(error.filename).startswith(build.files.root))


def _account(build: store.Build, number: int, result: Any) -> Outcome:
    """Put what became of a task into the log."""
    entry = build.entries[number]
    if isinstance(result, store.RemoteError):
        raise result
    if isinstance(result, OSError) and _is_of_the_store(build, result):
        raise OSError(
            result.errno,
            f"{build.files.root}: {result.strerror}. Make room, or see to the rights, and run again: it continues",
        )
    record: store.Record = _failure(entry, result) if isinstance(result, BaseException) else result
    if record.status == "written" or not build.is_written(number):
        build.record(record)  # a damaged crop that cannot be rebuilt now keeps its record, for verify
    return outcome_of(record, len(entry.windows))


def _not_given(build: store.Build, number: int) -> Outcome:
    """A planned source that is not written whole and not among SOURCE now: what is known of it stays."""
    entry = build.entries[number]
    if build.is_written(number):
        why = "shards are missing or cut; run gridrad-cube verify --repair, or preprocess with this file"
        return Outcome(entry.source, "failed", why, len(entry.windows))
    record = build.outcome(number)
    if record is None:
        record = _failure(entry, FileNotFoundError("planned, not written, and not among SOURCE now"))
        build.record(record)
    return outcome_of(record)


def _failure(entry: store.Entry, error: BaseException) -> store.Record:
    return store.Record(
        source=entry.source,
        status="failed",
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        reason=reason(error),
    )


def repair(
    store_path: str | os.PathLike[str], sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> list[Outcome]:
    """Rebuild damaged shards of a store from its sources, and only those.

    Parameters
    ----------
    sources
        Root folders (or files) that the store was built from.

    Returns
    -------
    What became of each source with a damaged shard.
    """
    roots = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    build = store.Build(store_path)
    if build.layout is None:
        raise SchemaError(f"{store_path}: no build log in it; nothing to repair by")
    with build.lease():
        damaged = {d.source for d in store.verify(store_path)}
        paths = {s.name: s for s in find_sources(roots)}
        outcomes = []
        assert build.recipe is not None
        for entry in (e for e in build.entries if e.source in damaged):
            try:
                if entry.source not in paths:
                    raise FileNotFoundError(f"{entry.source}: not under --source-root")
                check_unchanged(build, paths[entry.source])
                record = write_source(
                    build.files.root, build.layout, build.recipe, entry, paths[entry.source].path
                )
            except (OSError, ValueError) as error:
                outcomes.append(Outcome(entry.source, "failed", reason(error)))
                continue
            build.record(record)
            outcomes.append(outcome_of(record, len(entry.windows)))
        build.flush()
        finalise(build, anew=True)
    return outcomes
