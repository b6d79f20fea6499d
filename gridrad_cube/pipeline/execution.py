"""Running many independent tasks: in this process, or over Dask with a bounded number under way."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client


#: Of ``malloc.h``.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Files a worker may have waiting, so that the graph stays small however many there are.
SUBMITTED_PER_WORKER = 4


Runner = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[int, Any]]]


@contextmanager
def executor(client: Client | None, workers: int, scheduler: str | None) -> Iterator[Runner]:
    """Give ``run(function, argument tuples)``, which yields (number, result or exception) as they come."""
    if client is None and scheduler is None and workers <= 1:
        yield _run_here
        return
    from distributed import Client, LocalCluster

    if client is not None:
        yield lambda f, args: _run_dask(client, f, args)
        return
    if scheduler is not None:
        by = {"scheduler_file": scheduler} if os.path.isfile(scheduler) else {"address": scheduler}
        with Client(**by, set_as_default=False) as connected:
            yield lambda f, args: _run_dask(connected, f, args)
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as own,
    ):
        yield lambda f, args: _run_dask(own, f, args)
        # Workers that are closed in the middle of a heartbeat log that as an error.
        own.run(_log_no_more)


def _log_no_more() -> None:
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


@functools.cache
def keep_memory() -> None:
    """Let this process keep the memory of arrays that it has let go of, up to 256 MiB, where glibc manages it.

    Dask's nannies set MALLOC_TRIM_THRESHOLD_, with which glibc asks the system for every array of 128 kB or more anew;
    faulting those pages in took half of the time of a scene.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
            mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def _run_here(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    for i, args in enumerate(arguments):
        yield i, _result(function, args)


def _result(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What a task gives, or its exception: a fault met in one file must not stop the others."""
    keep_memory()
    try:
        return function(*args)
    except Exception as error:
        return error


def _run_dask(
    client: Client, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    from distributed import as_completed

    workers = max(1, len(client.scheduler_info().get("workers", {})))
    waiting = iter(enumerate(arguments))
    futures: dict[Any, int] = {}

    def submit() -> Any:
        for i, args in waiting:
            future = client.submit(_result, function, args, pure=False)
            futures[future] = i
            return future
        return None

    pool = as_completed(loop=client.loop)
    for _ in range(min(workers * SUBMITTED_PER_WORKER, len(arguments))):
        pool.add(submit())
    for future in pool:
        i = futures.pop(future)
        error = future.exception()  # of Dask itself: a task that killed several workers
        yield i, future.result() if error is None else error
        following = submit()
        if following is not None:
            pool.add(following)
