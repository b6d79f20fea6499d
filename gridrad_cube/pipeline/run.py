"""Build a cube: plan the files, write the scenes that are missing, finish the store; extend and repair it.

A plan gives each scene, a file at one time, its rows of the store. The unit of work is a scene
(`gridrad_cube.pipeline.work`), and an interrupted run resumes with the scenes that are not written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gridrad_cube import quality, store
from gridrad_cube.pipeline.execution import Runner, executor
from gridrad_cube.pipeline.finalize import finalize, is_finished
from gridrad_cube.pipeline.find import find_sources, search
from gridrad_cube.pipeline.isolation import Limits
from gridrad_cube.pipeline.plan import (
    Plan,
    given_scenes,
    keep_plan,
    make_plan,
    recipe_of,
    stamp_of,
    under_known_names,
)
from gridrad_cube.pipeline.report import Estimate, Outcome, Report, failure, outcome_of, reason
from gridrad_cube.pipeline.work import FATAL, attempt, write_source
from gridrad_cube.progress import explain_interruption, progress_bar
from gridrad_cube.schema import Recipe, SchemaError
from gridrad_cube.sources import identities, identity
from gridrad_cube.storage import RemoteError
from gridrad_cube.store import Build, store_info, verify

if TYPE_CHECKING:
    from distributed import Client

_logger = logging.getLogger(__name__)

#: Kinds of scenes that a dry run processes, three scenes of each.
_SAMPLED_KINDS = 8
#: Whether child processes read source files. Tests that replace parts of the program read them in theirs.
_ISOLATES = True


def preprocess(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    client: Client | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    retries: int = 2,
    time_limit: float = 120.0,
    memory_limit: float = 4.0,
    progress: bool | None = None,
) -> Report:
    """Build a cube of patches from source files, or resume or extend one.

    Scenes that are already written and verified are kept, the other planned scenes are written, and new files
    are appended. A bad file does not stop the others; an error of the program does. Readers see the new
    scenes when all files are done.

    Parameters
    ----------
    sources
        Files and folders (searched for netCDF and GRIB2 files), local or by URL (``s3://bucket/folder``). An
        ``https://`` URL must name a file, because a web server cannot be listed.
    store
        Path or URL of the store.
    recipe
        Channels, crops and thresholds of the store; None takes that of an existing store, else the defaults.
    client
        Dask client to use. It is not closed.
    workers
        Number of processes without a client. With 1, the work runs in this process.
    scheduler
        Address of a running Dask scheduler, or the path of its scheduler file.
    retries
        How often a file is tried again after an error of disk or network.
    time_limit
        Processor time in seconds that a child process may take for a scene, a quarter of it for a header, and ten
        times as long by the clock. A file that takes longer fails. 0: neither limits nor child processes.
    memory_limit
        Memory in GiB that a child process may take for a scene.
    progress
        Whether to show progress bars on stderr; None shows them in a terminal and in a notebook.

    Returns
    -------
    The outcome of each scene. The traceback of each failure is logged at level DEBUG.

    Raises
    ------
    FileNotFoundError
        If a local source does not exist. A missing file that a URL names becomes a failed scene instead.
    OSError
        If a server of sources cannot be reached when they are listed.
    SchemaError
        If no source file is found, the store has another recipe, a written source has changed, two files hold
        the same scene, another process writes to the store, or worker processes cannot reach it.
    """
    if recipe is not None and recipe.radar.qc_constants:
        quality.RadarQualitySpec.of(recipe.radar)  # refuses an unknown constant before any file is read
    there = search(sources)
    build = Build(store)
    if not build.files.shared and (client is not None or scheduler or workers > 1):
        raise SchemaError(f"{store}: lives in this process alone; build it with workers=1 and no client")
    is_new = not build.files.exists()
    try:
        with (
            explained(build),
            executor(client, workers, scheduler, _limits(build, time_limit, memory_limit)) as run,
            build.lease() as held,
        ):
            build = Build(store)  # only under the lease are the changes of an earlier writer complete
            damaged = build.missing()
            build.mend()
            recipe = recipe_of(build, recipe)
            stamps = identities(there.files.values())
            found = under_known_names(build, there.files, stamps)
            try:
                plan = make_plan(build, recipe, found, stamps, run, progress, retries)
                check_unchanged(build, given_scenes(build, found, stamps), run)
                keep_plan(build, plan, found)
                outcomes = write_plan(build, found, run, progress, retries)
            finally:
                build.flush()
            if damaged or not is_finished(build):
                held.check()
                finalize(build, damaged=damaged)
    finally:
        if is_new and not build.is_planned:
            _remove_empty(build)
    refused = tuple(map(outcome_of, plan.refused))
    of = store_info(build.files.root).get("thresholds_of")
    return Report(
        os.fspath(store),
        (*outcomes, *refused),
        tuple(there.unread),
        tuple(there.other),
        (of[0], of[1]) if of else None,
    )


def explained(build: Build) -> contextlib.AbstractContextManager[None]:
    """Return a context in which an interruption names what a build keeps, and how to resume it.

    Parameters
    ----------
    build
        The build.

    Returns
    -------
    A context manager without a value.
    """

    def kept() -> str:
        now = Build(build.files.root)
        if not now.is_planned:
            return f"{now.files.root}: nothing is written yet. Run again to start."
        written = sum(map(now.is_written, range(len(now.entries))))
        return f"{now.files.root}: {written} of {len(now.entries)} scenes are written and kept. Run again to resume."

    return explain_interruption(kept)


def _remove_empty(build: Build) -> None:
    """Remove the folders of a build that was refused before anything was written to it."""
    if build.files.local:
        for key in ("_build/log", "_build/plan", "_build", ""):
            with contextlib.suppress(OSError):
                os.rmdir(build.files.path(key))


def estimate(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    workers: int = 1,
    retries: int = 2,
    time_limit: float = 120.0,
    memory_limit: float = 4.0,
    progress: bool | None = None,
) -> Estimate:
    """Return what `preprocess` with the same parameters would add to a store. Nothing is written.

    The headers of all new files are read, and a few scenes are processed to measure size and time. Files that
    are already written are not checked for changes.

    Parameters
    ----------
    sources, store, recipe, workers, retries, time_limit, memory_limit, progress
        As of `preprocess`.

    Returns
    -------
    Numbers of scenes and patches, bytes, and seconds.

    Raises
    ------
    FileNotFoundError, OSError, SchemaError
        As of `preprocess`.
    """
    there = search(sources)
    build = Build(store)
    recipe = recipe_of(build, recipe)
    stamps = identities(there.files.values())
    found = under_known_names(build, there.files, stamps)
    with executor(None, 1, None, _limits(build, time_limit, memory_limit)) as run:
        plan = make_plan(build, recipe, found, stamps, run, progress, retries)
        size, seconds = _extrapolate(build, plan, found, run)
    layout = plan.layout
    crops = sum(len(entry.windows) for entry in plan.entries)
    cells = layout.cells[0] * layout.cells[1]
    return Estimate(
        store=os.fspath(store),
        workers=workers,
        kept=len(build.entries),
        scenes=len(plan.entries),
        crops=crops,
        patches=crops * cells,
        channels=len(layout.channels),
        files=sum(len(entry.windows) * len(entry.channels) for entry in plan.entries),
        bytes=round(size),
        seconds=seconds,
        refused=tuple(map(outcome_of, plan.refused)),
        unread=tuple(there.unread),
        other=tuple(there.other),
    )


def _extrapolate(build: Build, plan: Plan, found: Mapping[str, str], run: Runner) -> tuple[float, float]:
    """Return the bytes of the shards of a plan and the seconds to write them, from a few scenes; 0 if none
    can be read.
    """
    kinds: dict[tuple[Any, ...], list[store.Entry]] = {}  # scenes of one grid and the same channels are alike
    for entry in plan.entries:
        kinds.setdefault((entry.grid, entry.channels), []).append(entry)
    known, size, seconds = 0, 0.0, 0.0
    for entries in sorted(kinds.values(), key=len, reverse=True)[:_SAMPLED_KINDS]:
        sizes, times = [], []
        for number in sorted({len(entries) // 4, len(entries) // 2, len(entries) * 3 // 4}):
            entry = entries[number]
            task = build.files.root, plan.layout, plan.recipe, entry, found[entry.file]
            ((_, record),) = run(functools.partial(write_source, dry=True), [task])
            if not isinstance(record, Exception):
                times.append(record.seconds)
                sizes.append(sum(shard[0] for shards in record.shards.values() for shard in shards if shard))
        if times:
            known += len(entries)
            size += float(np.mean(sizes)) * len(entries)
            seconds += float(np.median(times)) * len(entries)
    share = len(plan.entries) / known if known else 0.0
    return size * share, seconds * share


def repair(
    store: str | os.PathLike[str],
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    time_limit: float = 120.0,
    memory_limit: float = 4.0,
) -> list[Outcome]:
    """Write the damaged objects of a store again: shards from their sources, all else from plan and log.

    Parameters
    ----------
    store
        Path or URL of the cube.
    sources
        Root folders or files that the store was built from, local or by URL.
    time_limit, memory_limit
        As for `preprocess`.

    Returns
    -------
    The outcome of each source with a damaged object.

    Raises
    ------
    SchemaError
        If this is not a cube that was built from sources.
    """
    build = Build(store)
    if not build.is_planned:
        raise SchemaError(
            f"{build.files.root}: no build log in it, so nothing can be rebuilt from sources. Of embeddings, run "
            "gridrad-cube embed again with the same options: it replaces what is damaged."
        )
    with executor(None, 1, None, _limits(build, time_limit, memory_limit)) as run, build.lease() as held:
        build = Build(store)
        damages = verify(store)
        build.mend()
        build = Build(store)
        layout, recipe = build.layout, build.recipe
        damaged = {d.source for d in damages} | _without_axes(build, {d.key for d in damages})
        files = find_sources(sources)
        outcomes = []
        for number, entry in enumerate(build.entries):
            if entry.source not in damaged:
                continue
            result: Any
            try:
                if recipe.format == "predecessor":
                    raise SchemaError(
                        "converted from the predecessor's files: remove its damaged shards and convert it again"
                    )
                if entry.file not in files:
                    raise FileNotFoundError(f"{entry.file}: not under the folders that were given")
                path = files[entry.file]
                check_unchanged(build, {number: (path, identity(path))}, run)
                ((_, result),) = run(write_source, [(build.files.root, layout, recipe, entry, path)])
            except (OSError, ValueError) as error:
                result = error
            outcomes.append(_account(build, number, result))
        build.flush()
        if not build.lost:  # otherwise the store would lose what the log has lost
            if build.last is None and any(d.key == "zarr.json" for d in damages):
                _logger.warning(
                    "%s: root and manifest are both lost: thresholds are those of the recipe, drawn again; an earlier "
                    "reflag, and which sources were withdrawn, are forgotten",
                    build.files.root,
                )
            held.check()
            finalize(build, damaged={d.key for d in damages})
    return outcomes


def _without_axes(build: Build, damaged: Collection[str]) -> set[str]:
    """Return the sources to read for the axes of their grids, which are damaged and could not be restored."""
    out = {}
    for entry in build.entries:
        if store.grid_key(entry.grid) in damaged and entry.grid not in out:
            out[entry.grid] = None if build.mend_grid(entry.grid) else entry.source
    return {source for source in out.values() if source}


def _limits(build: Build, time_limit: float, memory_limit: float) -> Limits | None:
    """Return the limits of the child processes that read source files; None where they are read in this process."""
    return Limits(time_limit, memory_limit) if _ISOLATES and time_limit and build.files.shared else None


# --- source files


def check_unchanged(
    build: Build,
    found: Mapping[int, tuple[str, tuple[int, int]]],
    run: Runner,
    *,
    write: Callable[..., store.Record] | None = None,
) -> None:
    """Refuse written scenes whose source has changed since.

    A source with another size or time of modification may be a copy, or a file with additional times. So its
    scene is read again. If it gives the shards that were written, it is the same, and the log gets the new
    size and time.

    Parameters
    ----------
    build
        The build.
    found
        By number in the plan, path or URL of the source, its size and its time of modification (ns).
    run
        How to run tasks, as of `executor`.
    write
        As of `write_plan`.

    Raises
    ------
    SchemaError
        Names the first source that differs.
    """
    numbers = [n for n, (_, stamp) in found.items() if build.is_written(n) and stamp_of(build, n) != stamp]
    layout, recipe = (build.layout, build.recipe) if numbers else (None, None)
    task = write or write_source, build.files.root, layout, recipe
    tasks = [(2, _write_same, build.shards_of(n), *task, build.entries[n], found[n][0]) for n in numbers]
    for i, result in run(attempt, tasks):
        path, (size, mtime_ns) = found[numbers[i]]
        if isinstance(result, ValueError):
            raise SchemaError(
                f"{path}: changed since it was written to {build.files.root}: {reason(result)}. Put the old file back, "
                "or build a new store."
            ) from result
        if isinstance(result, Exception):
            raise result
        build.record(replace(result, size=size, mtime_ns=mtime_ns))


def _write_same(shards: Mapping[str, Any], write: Callable[..., store.Record], *task: Any) -> store.Record:
    """Return the record of a scene that still gives these shards; nothing is written."""
    record = write(*task, dry=True)
    for name, written in shards.items():
        if written != record.shards[name]:
            raise SchemaError(f"its pixels of {name} have changed")
    return record


# --- write scenes, and record their outcomes


def write_plan(
    build: Build,
    paths: Mapping[str, str],
    run: Runner,
    progress: bool | None,
    retries: int,
    *,
    write: Callable[..., store.Record] | None = None,
    title: str = "preprocess",
) -> list[Outcome]:
    """Write the scenes that the plan still lacks.

    Parameters
    ----------
    build
        The build.
    paths
        Path or URL of each given file, by its name in the plan.
    run
        How to run tasks, as of `executor`.
    progress
        Show a progress bar on stderr.
    retries
        How often a file is tried again after an error of disk or network.
    write
        Unit of work, with the parameters of `write_source`; None for `write_source`.
    title
        Title of the progress bar.

    Returns
    -------
    One outcome for each planned scene, in the order of the plan.
    """
    damaged = {shard.row for shard in build.shards() if shard.found != shard.size}
    outcomes: dict[int, Outcome] = {}
    todo = []
    for number, entry in enumerate(build.entries):
        if build.is_written(number) and damaged.isdisjoint(entry.rows):
            outcomes[number] = Outcome(entry.source, "kept", crops=len(entry.windows))
        elif entry.file in paths:
            todo.append(number)
        else:
            outcomes[number] = _not_given(build, number)
    if todo:
        task = retries, write or write_source, build.files.root, build.layout, build.recipe
        entries = (build.entries[number] for number in todo)
        tasks = [(*task, entry, paths[entry.file]) for entry in entries]
        results = run(attempt, tasks)
        with progress_bar(title, results, total=len(todo), unit="scene", progress=progress) as bar:
            for i, result in bar:
                outcomes[todo[i]] = _account(build, todo[i], result)
    return [outcomes[n] for n in range(len(build.entries))]


def _account(build: Build, number: int, result: Any) -> Outcome:
    """Write the result of a task to the log."""
    if isinstance(result, RemoteError):
        raise result
    # Errors of the place that is written to: no other file would fare better.
    refused = isinstance(result, PermissionError) and str(result.filename).startswith(build.files.root)
    if refused or (isinstance(result, OSError) and result.errno in FATAL):
        if "run again" in str(result.strerror):  # it says what to do
            raise result
        raise OSError(
            result.errno,
            f"{build.files.root}: {result.strerror}. Free some space or change the permissions, and run the "
            "same command again to resume",
        )
    entry = build.entries[number]
    if isinstance(result, Exception):
        result = failure(entry.source, result, size=entry.size, mtime_ns=entry.mtime_ns)
    if result.status == "written" or not build.is_written(number):
        build.record(
            result
        )  # a damaged crop that cannot be rebuilt keeps its record, so that verify finds it
    return outcome_of(result, entry)


def _not_given(build: Build, number: int) -> Outcome:
    """Return the outcome of a planned source that is not completely written and is not given now."""
    entry, record = build.entries[number], build.records[number]
    if build.is_written(number):
        why = "shards are missing or cut; run gridrad-cube verify --repair, or preprocess with this file"
        return Outcome(entry.source, "failed", why, len(entry.windows))
    if record is None and entry.source in build.lost:
        return Outcome(entry.source, "failed", "its record is missing from the build log; give this file")
    if record is None:
        return _account(build, number, FileNotFoundError("planned, not written, and not among SOURCE now"))
    return outcome_of(record, entry)
