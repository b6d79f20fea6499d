"""Leases: one run at a time writes to a store or a folder.

A run that writes holds ``lease.json``, which names its process. The parts of one run, which are separate
processes,
hold ``lease-<token>.json`` each and share the place. A holder touches its file every few seconds. A process
that finds
a lease asks the system, if it can, whether the holder still runs: on the same boot of the same machine, in
the same
PID namespace, by number and time of start. On another machine, in another container or in a bucket, it
watches the file
and takes the lease over if nothing touches it for a minute. Clocks of machines are not compared.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files

__all__ = ["Lease", "lease"]


def __dir__() -> list[str]:
    return __all__


_logger = logging.getLogger(__name__)

#: Seconds between two touches of a lease, and without one after which its holder counts as gone.
_INTERVAL, _PATIENCE = 5.0, 60.0
#: Values that identify a process on all machines.
_PROCESS = ("boot", "pid_namespace", "pid", "start")
#: States in ``/proc`` of a process that has ended, while its parent has not read its status.
_ENDED = ("Z", "X")


class Lease:
    """The right to write that a process holds.

    Parameters
    ----------
    files
        The store or folder.
    key
        Of the file of this holder.
    payload
        Its bytes.
    """

    def __init__(self, files: Files, key: str, payload: bytes) -> None:
        self.files, self.key, self.payload = files, key, payload
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lease is still held, before something is written that readers see.

        Raises
        ------
        SchemaError
            If another run has taken it over, as where this process was suspended for long.
        """
        if _read(self.files, self.key) != self.payload:
            raise SchemaError(
                f"{self.files.root}: this run has lost its lease ({self.files.path(self.key)}): it was removed, or "
                "another run took it over while this process was suspended. Nothing more is written. Run the command "
                "again: it resumes."
            )

    def _touch(self) -> None:
        while not self._ended.wait(_INTERVAL):
            # What fails once is tried again: others wait for many intervals.
            with contextlib.suppress(OSError):
                if _read(self.files, self.key) != self.payload:
                    return
                if self.files.local:
                    os.utime(self.files.path(self.key))
                else:
                    self.files.write(self.key, self.payload)

    def release(self) -> None:
        """Give the lease back, unless another run has it."""
        self._ended.set()
        self._thread.join()
        if _read(self.files, self.key) == self.payload:
            self.files.remove(self.key)


@contextmanager
def lease(files: Files, folder: str = "", *, run: str = "") -> Iterator[Lease]:
    """Hold the right to write to a store or folder.

    Parameters
    ----------
    files
        The store or folder.
    folder
        Key of the folder in it where the lease lies.
    run
        Empty for a run of one process, which shares the place with none. Parts of one run give what they have in
        common, and share the place.

    Raises
    ------
    SchemaError
        If another run writes here; names host and process, and since when.
    """
    token = secrets.token_hex(8)
    key = "/".join(filter(None, (folder, f"lease-{token}.json" if run else "lease.json")))
    process = _this_process()
    mine = {"host": socket.gethostname(), **process, "since": int(time.time()), "run": run, "nonce": token}
    payload = json.dumps(mine).encode()
    made = files.local and [path for path in (files.path(folder), files.root) if not os.path.exists(path)]
    while not files.create(key, payload):
        found = _read(files, key)
        if found == payload:
            break  # the answer to the first put was lost, and the put repeated
        if found is not None:
            _refuse_living(files, {key: found})
            _remove(files, key, found)
    held = Lease(files, key, payload)
    try:
        _clear(files, folder, key, run)
        yield held
    finally:
        held.release()
        for path in made or ():
            with contextlib.suppress(OSError):  # something is in it
                os.rmdir(path)


def _clear(files: Files, folder: str, own: str, run: str) -> None:
    """Refuse to continue beside another active run; remove the leases of runs that ended."""
    others = {}
    for name in files.names(folder):
        key = f"{folder}/{name}" if folder else name
        if key == own or not (name == "lease.json" or (name.startswith("lease-") and name.endswith(".json"))):
            continue
        found = _read(files, key)
        if found is not None and not (run and _parse(found).get("run") == run):
            others[key] = found
    _refuse_living(files, others)
    for key, found in others.items():
        _remove(files, key, found)


def _refuse_living(files: Files, leases: dict[str, bytes]) -> None:
    """Raise an error for the first of some leases with a running holder; watch the others if necessary."""
    unknown = {}
    for key, found in leases.items():
        lives = _lives(_parse(found))
        if lives:
            raise _refusal(files, key, found)
        if lives is None:
            unknown[key] = _stamp(files, key)
    if not unknown:
        return
    key = next(iter(unknown))
    _logger.warning(
        "%s: a process that cannot be looked at from here has the lease (%s). Waiting up to %d s to see whether it "
        "lives.", files.root, _describe(leases[key]), _PATIENCE,
    )  # fmt: skip
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        time.sleep(min(1.0, _INTERVAL / 5))
        for key, before in unknown.items():
            now = _stamp(files, key)
            if now is not None and now != before:
                raise _refusal(files, key, leases[key])
        if all(_stamp(files, key) is None for key in unknown):
            return


def _refusal(files: Files, key: str, found: bytes) -> SchemaError:
    return SchemaError(
        f"{files.root}: another process writes here ({_describe(found)}). Wait for it; if it is gone, remove "
        f"{files.path(key)}"
    )


def _describe(found: bytes) -> str:
    holder = _parse(found)
    since = holder.get("since")
    if not isinstance(since, int) or not 0 <= since < 2**40:
        return "its lease cannot be read"
    hours, minutes = divmod(max(0, int(time.time()) - since) // 60, 60)
    return (
        f"host {holder.get('host')}, process {holder.get('pid')}, since {np.datetime64(since, 's')} UTC, {hours} h "
        f"{minutes:02} min ago"
    )


def _remove(files: Files, key: str, found: bytes) -> None:
    """Remove the lease of a process that has ended, unless another one has taken it over meanwhile."""
    if not files.local:
        if _read(files, key) == found:
            files.remove(key)
        return
    path = files.path(key)
    aside = os.path.join(os.path.dirname(path), f".lease-{secrets.token_hex(4)}.partial")
    # A rename succeeds for one process alone; the other finds nothing, or a lease that lives.
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if Path(aside).read_bytes() == found:
            os.unlink(aside)
        else:
            os.rename(aside, path)


def _read(files: Files, key: str) -> bytes | None:
    try:
        return files.read(key)
    except FileNotFoundError:
        return None


def _stamp(files: Files, key: str) -> Any:
    """Return what differs once a lease was touched. Reading it first makes NFS ask the server."""
    return None if _read(files, key) is None else files.stamp(key)


def _parse(found: bytes) -> dict[str, Any]:
    """Return the content of a lease; nothing if it cannot be read."""
    with contextlib.suppress(ValueError):
        holder = json.loads(found)
        if isinstance(holder, dict):
            return holder
    return {}


def _lives(holder: dict[str, Any]) -> bool | None:
    """Return whether the process that holds a lease runs; None if that must be watched."""
    pid, here = holder.get("pid"), _this_process()
    if not holder:
        return None
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False  # no process has such a number
    if "boot" not in holder:  # of an earlier version, which does not touch its lease
        if holder.get("host") != socket.gethostname():
            return True
        return _exists(pid) and _stat(pid)[0] not in _ENDED
    if any(holder.get(name) != here[name] or not here[name] for name in ("boot", "pid_namespace")):
        return None
    state, start = _stat(pid)
    if state is None:  # hidden from this user, unless it is not there
        return None if _exists(pid) else False
    return state not in _ENDED and start == holder.get("start")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # of another user
    return True


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {**dict(zip(_PROCESS, (*_machine(pid), pid, _stat(pid)[1]), strict=True))}


@functools.lru_cache(maxsize=1)
def _machine(pid: int) -> tuple[str, str]:
    """Return the boot of this machine and the PID namespace of a process; empty if the system does not report
    them.

    Where ``/proc`` is that of another namespace, its numbers are not ours.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        if os.readlink("/proc/self") == str(pid):
            return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        pass
    return "", ""


def _stat(pid: int) -> tuple[str | None, int | None]:
    """Return the state of a process and its start in ticks since boot; None if the system does not report
    them.
    """
    try:
        # The name of the program, which is in parentheses, can contain anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return None, None
