"""Running many tasks: in this process, in worker processes on this machine, or on the workers of a Dask cluster.

It says what is waited for where a scheduler or its workers do not answer, and stops after a while. What the tasks do
is written elsewhere (`gridrad_cube.pipeline.work`).
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import itertools
import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from gridrad_cube.pipeline.isolation import (
    Children,
    Limits,
    children_of_worker,
    close_children,
    ctrl_c_later,
    result_of,
)
from gridrad_cube.sources import remove_copies

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

_logger = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs a function on each tuple of arguments; gives (number, result or exception) in order of completion."""

    def __call__(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, share: float = 1.0
    ) -> Iterator[tuple[int, Any]]:
        """Run the function; ``share`` is the part of the time limit of a file that each task may take."""


#: Tasks a worker may have waiting, so that the graph stays small however many there are.
_SUBMITTED_PER_WORKER = 4
#: Errors of the program, not of a file.
_PROGRAM = (
    AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError, TypeError,
    ZeroDivisionError,
)  # fmt: skip
#: Seconds without an answer after which a line says what is waited for, and after which waiting ends.
_TOLD_AFTER, _GIVEN_UP_AFTER = 15.0, 300.0
#: Seconds to wait for a scheduler to answer, and for its file to appear.
_CONNECT_SECONDS, _FILE_SECONDS = 20.0, 60.0


@contextmanager
def executor(
    client: Client | None, workers: int, scheduler: str | None, limits: Limits | None = None
) -> Iterator[Runner]:
    """Give a `Runner` with a bounded number of running tasks: in this process for one worker, else over Dask; or, with
    limits, in child processes of this process or of the workers of Dask.

    If a task raises an error about its file, the error is its result. An error of the program (TypeError,
    KeyError and the like) is raised here and ends the run.

    Parameters
    ----------
    client
        Dask client to use; None to start workers. It is not closed.
    workers
        Number of processes.
    scheduler
        Address of a running Dask scheduler, or the path of its scheduler file.
    limits
        Of tasks that read source files; None for tasks that need no child processes.

    Yields
    ------
    The runner.

    Raises
    ------
    ConnectionError
        If a scheduler or its workers do not answer.
    SystemExit
        If worker processes would run the script again that starts them, since it does not guard its call.
    """
    if client is not None:
        yield functools.partial(_run_dask, client, limits)
        client.run(_clean_up)
    elif scheduler is not None:
        with _connected(scheduler) as found:
            yield functools.partial(_run_dask, found, limits)
            found.run(_clean_up)
    elif limits is not None:
        with _children_here(workers, limits) as run:
            yield run
    elif workers > 1:
        with _workers_here(workers) as own:
            yield functools.partial(_run_dask, own, None)
            own.run(remove_copies)
    else:
        try:
            yield _run_here
        finally:
            remove_copies()


# --- in this process


def _run_here(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, share: float = 1.0
) -> Iterator[tuple[int, Any]]:
    for i, args in enumerate(arguments):
        yield i, _checked(result_of(function, args))


def _checked(result: Any) -> Any:
    if isinstance(result, _PROGRAM):
        raise result
    return result


# --- child processes, which a file may crash


@contextmanager
def _children_here(count: int, limits: Limits) -> Iterator[Runner]:
    """Give a runner that has a thread for each child process, which waits for it."""
    children, pool = Children(limits), ThreadPoolExecutor(count)
    try:
        children.start(count)
        yield functools.partial(_run_children, children, pool, count)
    finally:
        children.close()
        pool.shutdown(cancel_futures=True)


def _run_children(
    children: Children,
    pool: ThreadPoolExecutor,
    count: int,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    share: float = 1.0,
) -> Iterator[tuple[int, Any]]:
    waiting = iter(enumerate(arguments))
    numbers: dict[Future[Any], int] = {}

    def submit(count: int) -> None:
        for i, args in itertools.islice(waiting, count):
            numbers[pool.submit(children.call, function, args, share)] = i

    submit(count * _SUBMITTED_PER_WORKER)
    while numbers:
        done, _ = wait(numbers, return_when=FIRST_COMPLETED)
        for future in done:
            yield numbers.pop(future), _checked(future.result())
            submit(1)


def _in_child_of_worker(
    limits: Limits, function: Callable[..., Any], args: tuple[Any, ...], share: float
) -> Any:
    return children_of_worker(limits).call(function, args, share)


def _clean_up() -> None:
    """Remove what tasks leave in a process of Dask: copies of remote files, and child processes."""
    remove_copies()
    close_children()


# --- worker processes on this machine


@contextmanager
def _workers_here(count: int) -> Iterator[Client]:
    """Start worker processes that are killed at the end. This is safe, because all their writes are complete
    at any moment.
    """
    _check_guarded(count)
    import dask
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    # Ctrl-C reaches all processes of a terminal. Threads and processes that start here never see it, and it leaves no
    # cluster behind that is half started.
    with ctrl_c_later(), dask.config.set({"distributed.scheduler.worker-ttl": "60s"}):
        cluster = LocalCluster(
            n_workers=0, threads_per_worker=1, memory_limit=MEMORY_LIMIT // count, silence_logs=logging.ERROR,
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
        )  # fmt: skip
        # By its address, so that it does not wait for workers.
        client = Client(cluster.scheduler_address, set_as_default=False)
        cluster.scale(count)
    try:
        yield client
    finally:
        with _dask_silent():
            _kill_workers(cluster)
            client.close()
            cluster.close()


@contextmanager
def _dask_silent() -> Iterator[None]:
    """Keep Dask from logging what this package says itself, or does on purpose."""
    names = ("distributed", "distributed.client", "tornado.application", "asyncio")  # Dask gives each a level
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _kill_workers(cluster: LocalCluster) -> None:
    """End the workers at once: Dask would give each of them seconds to end a task that nobody waits for."""

    def nannies() -> list[Any]:
        return list(cluster._created)  # also those that are about to start; `workers` has the others alone

    async def close() -> None:
        await asyncio.gather(*(nanny.close(timeout=1) for nanny in nannies()), return_exceptions=True)

    closing = threading.Thread(target=cluster.sync, args=(close,), daemon=True)
    closing.start()
    while closing.is_alive():
        for nanny in nannies():
            nanny.auto_restart = False
            process = nanny.process and nanny.process.process
            with contextlib.suppress(Exception):  # it is not started yet, or ends at the same time
                os.kill(process.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        closing.join(0.02)


def _check_guarded(workers: int) -> None:
    """Refuse to start processes from the body of a script that they would run again.

    A new process imports the script of its parent under another name. What is not below ``if __name__ == "__main__"``
    runs there too, and would start processes again.
    """
    script = sys.modules["__main__"]
    path = getattr(script, "__file__", None)
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_globals is vars(script) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is None or path is None:  # a notebook, an interactive session, or another thread
        return
    try:
        with open(path, encoding="utf-8") as file:
            body = ast.parse(file.read()).body
    except (OSError, ValueError, SyntaxError):
        return
    for statement in body:
        if statement.lineno <= frame.f_lineno <= (statement.end_lineno or 0):
            if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
                return
            # More than a line, such as a traceback, would hide what to do.
            raise SystemExit(
                f"{path}, line {frame.f_lineno}: {workers} worker processes would run this script again, from its "
                'first line. Put the lines that do something below `if __name__ == "__main__":`, or pass workers=1.'
            )


# --- a Dask cluster


@contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    """Connect to a running scheduler, by its address or its file."""
    from distributed import Client

    is_address = "://" in scheduler or re.fullmatch(r"[^/\\]*:\d+", scheduler)
    address = scheduler if is_address else _address_in(scheduler)
    with _dask_silent():
        try:
            client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"{scheduler}: no Dask scheduler answers at {address} ({_first_line(error)}). Start one there, or "
                "pass its address or its file as `scheduler`."
            ) from error
        with client:
            yield client


def _address_in(file: str) -> str:
    """Return the address that a scheduler wrote into its file. Waits a while for a scheduler that is
    starting.
    """
    path, until = os.path.expanduser(file), time.monotonic() + _FILE_SECONDS
    told = False
    while True:
        try:
            with open(path, encoding="utf-8") as opened:
                return str(json.load(opened)["address"])
        except FileNotFoundError:
            problem = "no such scheduler file"
        except (ValueError, KeyError, TypeError):
            problem = "no scheduler file, which is JSON with an address"
        if time.monotonic() > until:
            raise ConnectionError(
                f"{file}: {problem}, and none appeared in {_FILE_SECONDS:.0f} s. Start a scheduler with "
                f"dask scheduler --scheduler-file {file}."
            )
        if not told:
            _logger.warning("%s: %s; waiting %.0f s for it", file, problem, _FILE_SECONDS)
            told = True
        time.sleep(0.2)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _run_dask(
    client: Client,
    limits: Limits | None,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    share: float = 1.0,
) -> Iterator[tuple[int, Any]]:
    waiting = iter(enumerate(arguments))
    numbers: dict[Any, int] = {}
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    watch = _Watch(client)

    def submit(count: int) -> None:
        for i, args in itertools.islice(waiting, count):
            if limits is None:
                future = client.submit(result_of, function, args, in_worker=True, pure=False)
            else:
                future = client.submit(_in_child_of_worker, limits, function, args, share, pure=False)
            numbers[future] = i
            future.add_done_callback(done.put)

    while True:
        submit(max(0, max(1, watch.workers) * _SUBMITTED_PER_WORKER - len(numbers)))
        if not numbers:
            return
        try:
            future = done.get(timeout=1.0)
        except queue.Empty:
            watch.look()
            continue
        if (
            future.cancelled()
        ):  # with the scheduler; what is not known to be done is done again by the next run
            watch.look(lost=True)
            continue
        watch.answered()
        i = numbers.pop(future)
        error = future.exception()  # of Dask itself: a task that killed several workers
        yield i, _checked(future.result() if error is None else error)


class _Watch:
    """Whether a scheduler and its workers answer, while results are waited for."""

    def __init__(self, client: Client) -> None:
        self.client, self.address = client, client.scheduler.address
        self._silent_since: float | None = None
        self._beats: dict[
            str, tuple[float, float]
        ] = {}  # of each worker: its latest sign of life, and when it came
        self._told: set[str] = set()

    @property
    def workers(self) -> int:
        """Number of workers that the scheduler knows."""
        return len(self._known())

    def _known(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.scheduler_info(n_workers=-1).get("workers", {})
        return found

    def answered(self) -> None:
        """Note a result."""
        self._silent_since = None

    def look(self, *, lost: bool = False) -> None:
        """Say what is waited for, once; give up after a while.

        Raises
        ------
        ConnectionError
            If nothing has answered for too long, or the scheduler is lost with what it had to do.
        """
        now = time.monotonic()
        if lost or self.client.status in ("closing", "closed"):
            raise ConnectionError(
                f"{self.address}: the Dask scheduler is gone. What is written is kept; start a scheduler and run again "
                "to resume."
            )
        problem = "does not answer"
        if self.client.status == "running":
            quiet = self._quiet(now)
            if quiet is not None and len(quiet) < len(self._beats):
                for name in quiet - self._told:
                    _logger.warning(
                        "the worker %s does not answer; its tasks go to another one if that lasts", name
                    )
                self._told |= quiet
                self._silent_since = None
                return
            problem = "has no worker" if not self._beats else "has workers, but none answers"
        if self._silent_since is None:
            self._silent_since = now
        waited = now - self._silent_since
        what = f"the Dask scheduler at {self.address} {problem}"
        if waited > _GIVEN_UP_AFTER:
            raise ConnectionError(
                f"{what}, for {waited:.0f} s. What is written is kept; start workers (dask worker {self.address}) and "
                "run again to resume."
            )
        if waited > _TOLD_AFTER and what not in self._told:
            _logger.warning("%s; waiting for up to %.0f s", what, _GIVEN_UP_AFTER)
            self._told.add(what)

    def _quiet(self, now: float) -> set[str] | None:
        """Workers without a sign of life for a while; None where there is no worker."""
        known = self._known()
        self._beats = {
            name: self._beats[name]
            if name in self._beats and self._beats[name][0] == about.get("last_seen")
            else (about.get("last_seen", 0.0), now)
            for name, about in known.items()
        }
        return (
            {name for name, (_, came) in self._beats.items() if now - came > _TOLD_AFTER} if known else None
        )
