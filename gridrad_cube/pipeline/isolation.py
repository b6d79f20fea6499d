"""Child processes that read source files, so that a file that crashes or blocks a C library fails alone.

HDF5, netCDF and ecCodes may crash, loop or allocate without end on bytes that were damaged or written to do so. Such a
call cannot be stopped within the process that makes it. So a few child processes, which live as long as the run, do
the work on source files. A child that ends or exceeds its limits is replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import scratch_folder

try:
    import resource
except ImportError:  # Windows: the clock alone limits a child
    resource = None  # type: ignore[assignment]

#: A task may take this many times its processor time by the clock: it waits for disks and servers.
_WAITING = 10
#: How often a task is given to a child: another process, or the system, may have ended the first one.
_TRIES = 2
#: Of ``prctl.h``.
_PR_SET_PDEATHSIG = 1
#: Constant of ``malloc.h``.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_START = "import sys; sys.path[:] = {path!r}; from gridrad_cube.pipeline.isolation import _serve; _serve({fd}, {gib})"


@contextlib.contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Keep Ctrl-C from this thread, and for good from what starts meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Limits:
    """What a child process may use for one file: seconds of processor time, and GiB of memory."""

    seconds: float
    gib: float


class Children:
    """Child processes that do tasks, one at a time each; started when they are needed, and replaced when they end."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._every: set[_Child] = set()
        self._idle: list[_Child] = []
        self._is_closed = False
        self._folder = scratch_folder()  # temporary files of children, which may be killed

    def start(self, count: int) -> None:
        """Start children before there is work for them."""
        self._idle += [self._new() for _ in range(count)]

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], share: float = 1.0) -> Any:
        """Return what a function returns or raises in a child that may use ``share`` of the time limit.

        If the child ends or exceeds its limits, that is an error about the file, which is returned too.
        """
        for number in range(_TRIES):
            with self._lock:
                child = self._idle.pop() if self._idle else None
            try:
                child = child or self._new()
                result = child.call(function, args, self._limits.seconds * share)
            except _Ended as error:
                with self._lock:
                    self._every -= {child}
                if error.is_final or self._is_closed or number == _TRIES - 1:
                    return SchemaError(str(error))
            else:
                with self._lock:
                    self._idle.append(child)
                return result
        raise AssertionError("unreachable")

    def _new(self) -> _Child:
        with self._lock:
            if self._is_closed:
                raise _Ended("the run was stopped", True)
            child = _Child(self._limits, self._folder)
            self._every.add(child)
            return child

    def close(self) -> None:
        """End all children, and remove their temporary files."""
        with self._lock:
            self._is_closed = True
            every = list(self._every)
        for child in every:
            child.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Ended(Exception):
    """A child did not return a result. ``is_final`` says that it would not do so in another try."""

    def __init__(self, message: str, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class _Child:
    """One child process, which does tasks until its pipe is closed."""

    def __init__(self, limits: Limits, folder: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        # Not multiprocessing.Process: it runs the user's script again, and is forbidden in the processes of Dask.
        with ctrl_c_later():  # it is for this process, which ends its children
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, fd=theirs.fileno(), gib=limits.gib)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=os.environ | {"TMPDIR": folder},
            )
        theirs.close()
        self._is_ready = False

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Any:
        try:
            if not self._is_ready:  # the clock of the first task does not count the start of Python
                self._pipe.recv()
                self._is_ready = True
            self._pipe.send((function, args, seconds))
            if not self._pipe.poll(_WAITING * seconds):
                self.kill()
                raise _Ended(_too_long(f"{_WAITING * seconds:g} s"), True)
            return self._pipe.recv()
        except (EOFError, OSError):
            code = self._wait()
        if code == -signal.SIGXCPU:
            raise _Ended(_too_long(f"{seconds:g} s of processor time"), True)
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise _Ended(
            f"the process that read it ended ({name}): a damaged file can crash a library. Download the "
            "file again, or leave it out.",
            False,
        )

    def _wait(self) -> int:
        """Return the exit status of a child that has closed its pipe, or is to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(5)
        self._process.kill()
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _too_long(time: str) -> str:
    return (
        f"took more than {time}; a damaged file can block a library without end. Leave the file out, or raise "
        "`time_limit`."
    )


_OF_WORKER: dict[Limits, Children] = {}
_OF_WORKER_LOCK = threading.Lock()


def children_of_worker(limits: Limits) -> Children:
    """Return the children of this process that is a worker of Dask; they live until `close_children`."""
    with _OF_WORKER_LOCK:
        if limits not in _OF_WORKER:
            _OF_WORKER[limits] = Children(limits)
            atexit.register(close_children)
        return _OF_WORKER[limits]


def close_children() -> None:
    """End the children of this process that is a worker of Dask."""
    with _OF_WORKER_LOCK:
        while _OF_WORKER:
            _OF_WORKER.popitem()[1].close()


# --- in the process that does a task


def result_of(function: Callable[..., Any], args: tuple[Any, ...], *, in_worker: bool = False) -> Any:
    """Return the result of a task, or its exception, because an error in one file must not stop the others."""
    _keep_memory()
    try:
        return function(*args)
    except Exception as error:
        if in_worker:  # pickling drops the traceback
            error.add_note("In the worker:\n" + traceback.format_exc())
        return error


@functools.cache
def _keep_memory() -> None:
    """Let this process keep up to 256 MiB of freed memory, with glibc.

    Dask's nannies set MALLOC_TRIM_THRESHOLD_, with which glibc asks the system again for every array of 128 kB or more;
    faulting those pages in took half of the time of a scene.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
            mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def _serve(fd: int, gib: float) -> None:
    """Do the tasks that come through a pipe, until it is closed."""
    pipe = Connection(fd)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _limit_memory(gib)
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send("ready")
        while True:
            function, args, seconds = pipe.recv()
            _limit_time(seconds)
            result = result_of(function, args, in_worker=True)
            if isinstance(result, MemoryError):
                result = SchemaError(
                    f"needs more than {gib:g} GiB of memory. Leave the file out, or raise `memory_limit`."
                )
            try:
                pipe.send(result)
            except (pickle.PicklingError, TypeError, AttributeError):
                pipe.send(RuntimeError(f"{type(result).__name__}: {result}"))


def _limit_memory(gib: float) -> None:
    """Limit the data of this process to what it has now and so much more, where the system can."""
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError, StopIteration):  # no /proc, or a lower limit is set
        with open("/proc/self/status") as file:
            used = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (used + int(gib * 2**30), most))


def _limit_time(seconds: float) -> None:
    """Limit the processor time of this process to what it has used and so much more."""
    if resource is not None:
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, most))
