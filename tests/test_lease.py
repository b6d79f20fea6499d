"""One run at a time writes to a store or a folder, on any machine."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gridrad_cube import lease as leases
from gridrad_cube import store
from gridrad_cube.lease import lease
from gridrad_cube.schema import SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.training.folder import RunFolder

#: Holds the lease of a folder, as a separate process, until it is killed.
_HOLDER = (
    "import sys, time; from gridrad_cube.lease import lease; from gridrad_cube.storage import Files\n"
    "with lease(Files(sys.argv[1]), run=sys.argv[2]):\n    print('held', flush=True); time.sleep(300)"
)
REFUSED = pytest.raises(SchemaError, match="another process writes here")
linux = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="asks /proc about processes")


@pytest.fixture
def hold():
    """Start processes that hold a lease; all are ended."""
    started = []

    def start(folder, run="", *, prefix=()):
        command = [*prefix, sys.executable, "-c", _HOLDER, str(folder), run]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def impatient(monkeypatch):
    """Leases that are touched, and taken for those of dead processes, sooner."""
    monkeypatch.setattr(leases, "_INTERVAL", 0.05)
    monkeypatch.setattr(leases, "_PATIENCE", 1.0)


def change(folder, **values):
    """Alter what the lease of a folder says; None leaves a value out."""
    path = Path(folder, "lease.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@linux
def test_a_process_that_is_suspended_lives_and_one_that_was_killed_does_not(hold, tmp_path):
    holder = hold(tmp_path)
    os.kill(holder.pid, signal.SIGSTOP)
    with REFUSED, lease(Files(tmp_path)):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
    with lease(Files(tmp_path)) as held:
        held.check()
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_number_that_another_process_has_by_now_is_no_holder(hold, tmp_path):
    holder = hold(tmp_path)
    change(tmp_path, start=json.loads((tmp_path / "lease.json").read_text())["start"] - 1)
    with lease(Files(tmp_path)):
        pass
    assert holder.poll() is None


@pytest.mark.parametrize(
    "what", [{"boot": "another"}, {"pid_namespace": "pid:[1]"}, {"host": "h", "boot": ""}]
)
def test_a_holder_that_cannot_be_looked_at_is_watched(hold, tmp_path, what, impatient):
    holder = hold(tmp_path)
    change(tmp_path, **what)  # which its process takes for the lease of another: it touches it no more
    path = tmp_path / "lease.json"
    ended = threading.Event()

    def touch():
        while not ended.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    with REFUSED, lease(Files(tmp_path)):
        pass
    ended.set()
    thread.join()
    with lease(Files(tmp_path)):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert holder.poll() is None


def test_a_holder_touches_its_lease(tmp_path, impatient):
    with lease(Files(tmp_path)):
        before = os.stat(tmp_path / "lease.json").st_mtime_ns
        change_is_seen = threading.Event()
        for _ in range(1000):
            if os.stat(tmp_path / "lease.json").st_mtime_ns != before:
                change_is_seen.set()
                break
            threading.Event().wait(0.01)
        assert change_is_seen.is_set()


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"host": 3', b"null"])
def test_a_lease_that_cannot_be_read_is_watched_too(tmp_path, damage, impatient):
    (tmp_path / "lease.json").write_bytes(damage)
    with lease(Files(tmp_path)) as held:
        held.check()


def test_a_run_that_has_lost_its_lease_says_so_and_leaves_that_of_another(tmp_path):
    with lease(Files(tmp_path)) as held:
        (tmp_path / "lease.json").write_text("another's")
        with pytest.raises(SchemaError, match=r"has lost its lease .*Run the command again"):
            held.check()
    assert (tmp_path / "lease.json").read_text() == "another's"


@linux
def test_parts_of_one_run_share_a_place(hold, tmp_path):
    files = Files(tmp_path)
    holder = hold(tmp_path, "one")
    with lease(files, run="one"):
        pass
    for other in ("two", ""):
        with REFUSED, lease(files, run=other):
            pass
    holder.kill()
    holder.wait()
    with lease(files), REFUSED, lease(files, run="one"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_links_have_leases(tmp_path, monkeypatch, code):
    def link(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    with lease(Files(tmp_path), "deep"), REFUSED, lease(Files(tmp_path), "deep"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    left = [tmp_path / "_build/.lease.json.12.partial", tmp_path / "flags/.c.0.0.0.12.partial"]
    for path in left:
        path.parent.mkdir()
        path.touch()
    with store.Build(tmp_path).lease():
        assert not any(path.exists() for path in left)
    left = tmp_path / ".checkpoint.pth.12.partial"
    left.touch()
    with RunFolder(tmp_path).lease():
        assert not left.exists()


def test_a_second_run_in_a_folder_is_refused(hold, tmp_path):
    hold(tmp_path / "run")
    with REFUSED, RunFolder(tmp_path / "run").lease():
        pass


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace, which needs root")
def test_another_container_with_the_same_host_name(hold, tmp_path, impatient):
    space = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("PID namespaces cannot be made here")
    holder = hold(tmp_path, prefix=space)
    os.utime(tmp_path / "lease.json", (0, 0))
    holder.kill()
    holder.wait()
    with lease(Files(tmp_path)):
        pass
