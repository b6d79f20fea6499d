"""What a new user sees in a terminal, a notebook and a script: bars, interruptions, and one line for a mistake."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from small_data import write_sources

import gridrad_cube
from gridrad_cube import pipeline, progress, storage
from gridrad_cube.cli import cli, messages
from gridrad_cube.schema import Recipe, TileSpec

PACKAGE = Path(gridrad_cube.__file__).parent
TERMINALS = pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
IR = "ir_brightness_temperature"


class Terminal:
    """A program in a separate terminal, and all that it shows there."""

    def __init__(self, *command: object, folder: Path) -> None:
        ours, theirs = os.openpty()
        environment = os.environ | {"COLUMNS": "100", "LINES": "40", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=folder, env=environment, start_new_session=True,
            stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.screen, self.text = ours, ""

    def read(self, until: str | None = None) -> str:
        """All that is shown until a text appears, or until the program ends."""
        limit = time.monotonic() + 240
        while until is None or until not in self.text:
            assert time.monotonic() < limit, self.text
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    data = os.read(self.screen, 65536)
                except OSError:  # the program has ended
                    data = b""
                if not data:
                    break
                self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return self.text

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self.screen, b"\x03")

    def end(self) -> int:
        """Exit status."""
        self.read()
        os.close(self.screen)
        return self.process.wait(60)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight small files in ``data/`` and a cube of them."""
    folder = tmp_path_factory.mktemp("hour")
    write_sources(folder / "data", scenes=8, shape=(64, 96))
    recipe = Recipe(tile=TileSpec(patch=32))
    gridrad_cube.preprocess(folder / "data", folder / "patches.zarr", recipe=recipe)
    return folder


def shown(line: str) -> str:
    """What a terminal shows at last of a line that was overwritten from its beginning."""
    return line.rstrip("\r").rpartition("\r")[2]


# --- bars


@TERMINALS
@pytest.mark.timeout(300)
def test_commands_in_a_terminal_show_bars_that_end_and_nothing_else(folder):
    steps = (
        ("preprocess", "data", "--store", "new.zarr", "--patch", "32"),
        ("embed", "--store", "new.zarr", "--model", "descriptor", "--channels", IR, "--out", "d.zarr"),
        ("query", "d.zarr", "--like", "0,0,0", "--no-exclude", "-k", "3"),
    )
    script = "import sys, shlex\nfrom gridrad_cube.cli import cli\n"
    script += "".join(f"cli.main({list(step)!r}, standalone_mode=False)\n" for step in steps)
    terminal = Terminal("-c", script, folder=folder)
    assert terminal.end() == 0, terminal.text
    lines = [shown(line) for line in terminal.text.split("\n")]
    bars = {line.split(":")[0]: line for line in lines if "it/s" in line or re.search(r"\d/\d+ \[", line)}
    assert set(bars) == {"plan", "preprocess", "embed", "search"}, terminal.text
    assert all("100%" in bar for bar in bars.values()), bars
    rest = [line for line in lines if line and line not in bars.values()]
    assert re.match(r"new\.zarr: 8 scenes: 8 written", rest[0])
    assert re.match(r".*d\.zarr: 48 of 48 patches embedded, 68 numbers for each channel", rest[1])
    assert rest[2].startswith("rank")
    assert not [line for line in rest if "{" in line or "Warning" in line or "INFO" in line]


@pytest.mark.timeout(300)
def test_a_notebook_shows_bars_and_a_script_none(folder):
    code = (
        "import gridrad_cube\n"
        "from gridrad_cube.schema import Recipe, TileSpec\n"
        "print(gridrad_cube.preprocess('data', 'NAME.zarr', recipe=Recipe(tile=TileSpec(patch=32))))\n"
    )
    script = code.replace("NAME", "script")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "8 written" in done.stdout
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[docs]'")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.replace("NAME", "notebook"))])
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    said = {output["name"]: "" for output in notebook.cells[0].outputs}
    for output in notebook.cells[0].outputs:
        said[output["name"]] += output["text"]
    assert "8 written" in said["stdout"]
    assert "preprocess: 100%" in said["stderr"]
    assert "Warning" not in said["stderr"]


def test_bars_end_where_an_error_or_an_interruption_does(capsys):
    def fails() -> None:
        with progress.progress_bar("step", total=5, unit="file", progress=True) as bar:
            bar.update(2)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert re.search(r"step:  40%.*2/5 .*\n$", capsys.readouterr().err)
    with progress.progress_bar("none", [], total=0, unit="file", progress=True) as bar:
        assert list(bar) == []
    assert capsys.readouterr().err == ""


# --- Ctrl-C

SLOW = """
import time
from gridrad_cube import pipeline

def slow(*task, **options):
    time.sleep(0.5)
    return pipeline.write_source(*task, **options)
"""
SCRIPT = """
import sys
import gridrad_cube
from gridrad_cube.pipeline import run
from gridrad_cube.schema import Recipe, TileSpec
from slow_write import slow

if __name__ == "__main__":
    import functools
    run.write_plan = functools.partial(run.write_plan, write=slow)
    gridrad_cube.preprocess("data", sys.argv[1], recipe=Recipe(tile=TileSpec(patch=32)), workers=int(sys.argv[2]))
"""


@TERMINALS
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("workers", "moment"),
    [(1, "preprocess:  12%"), (2, "preprocess:  12%"), (2, "")],
    ids=["here", "workers", "start of workers"],
)
def test_ctrl_c_says_what_is_kept_and_a_second_run_resumes(folder, tmp_path, workers, moment):
    (tmp_path / "slow_write.py").write_text(SLOW)
    (tmp_path / "script.py").write_text(SCRIPT + "    print('done')\n")
    store = tmp_path / "i.zarr"
    program = Terminal(tmp_path / "script.py", store, workers, folder=folder)
    if moment:
        program.read(until=moment)
    else:
        while not list(store.glob("_build*")) and program.process.poll() is None:  # its lease is there
            time.sleep(0.01)
    program.interrupt()
    assert program.end() == -signal.SIGINT, program.text
    last = program.text.splitlines()[-1]
    kept = r"\d of 8 scenes are written and kept\. Run again to resume\." if moment else ".* Run again to .*"
    assert re.fullmatch(rf"KeyboardInterrupt: Interrupted\. .*i\.zarr: {kept}", last), program.text
    assert program.text.count("Traceback") == 1
    assert "distributed" not in program.text
    if workers == 1:
        again = Terminal(tmp_path / "script.py", store, workers, folder=folder)
        assert again.end() == 0
        assert again.text.splitlines()[-1] == "done"


def test_an_interrupted_command_is_one_line_and_status_130(folder, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        with progress.explain_interruption(lambda: "s.zarr: 2 of 3 scenes are written and kept."):
            raise KeyboardInterrupt

    monkeypatch.setattr("gridrad_cube.pipeline.preprocess", interrupted)
    done = CliRunner().invoke(cli, ["preprocess", str(folder / "data"), "--store", "s.zarr"])
    assert done.exit_code == 130
    assert done.stderr == "Interrupted. s.zarr: 2 of 3 scenes are written and kept.\n"


# --- mistakes


@pytest.mark.timeout(120)
def test_a_script_without_a_guard_is_told_in_one_line(folder, tmp_path):
    call = "gridrad_cube.embed('patches.zarr', out='guard.zarr', model='descriptor', workers=2)\n"
    (tmp_path / "script.py").write_text("import gridrad_cube\n\ndef main():\n    " + call + "\nmain()\n")
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"{tmp_path / 'script.py'}, line 6: 2 worker processes would run this script again"
    )
    assert 'if __name__ == "__main__":' in line


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("preprocess", "patch: got 5; expected 16", "--patch: got 5; expected 16"),
        ("preprocess", "Pass a smaller `patch`.", "Pass a smaller --patch."),
        ("preprocess", "Pass `placement='cover'`, `workers=1`.", "Pass --placement cover, --workers 1."),
        ("preprocess", "which: `variables=(('time', 'T', None),)`.", "which: --variable time=T."),
        ("preprocess", "a/time=2019/x.nc: `reject` is bad", "a/time=2019/x.nc: `reject` is bad"),
        ("embed", "Pass another `out`, or resume=False.", "Pass another --out, or --no-resume."),
        ("embed", "model='pool' for crops", "--model pool for crops"),
        ("embed", "Preprocess with the `patch` 64.", "Preprocess with the --patch 64."),
        ("query", "exclude=None or readout=None; `embeddings`", "--no-exclude or --no-readout; EMBEDDINGS"),
        ("query", "separate=None", "no --separate"),
    ],
)
def test_messages_name_options_on_the_command_line(command, text, expected):
    context = click.Context(cli.commands[command], parent=click.Context(cli))
    assert messages.spell(text, context) == expected


def test_the_package_names_no_option_outside_of_the_command_line():
    """A message of a function is for Python too; the words of a whole command to run are for both."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cli" or path.name in ("demo.py", "info.py", "config.py"):
            continue
        code = re.sub(r'"""[\s\S]*?"""|^\s*#.*$', "", path.read_text(), flags=re.MULTILINE)
        found += [
            f"{path.name}: {line.strip()}"
            for line in code.splitlines()
            if re.search(r"(?<![\w-])--[a-z]", line)
            and not re.search(r"gridrad-cube|verify STORE|dask ", line)
        ]
    assert found == []


def test_an_error_that_python_names_by_parameter_the_command_names_by_option(folder, tmp_path):
    with pytest.raises(gridrad_cube.SchemaError, match="stride: got 5"):
        gridrad_cube.embed(folder / "patches.zarr", out=tmp_path / "e.zarr", model="descriptor", stride=5)
    arguments = ["embed", "--store", folder / "patches.zarr", "--out", tmp_path / "e.zarr"]
    done = CliRunner().invoke(cli, [*map(str, arguments), "--model", "descriptor", "--stride", "5"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: --stride: got 5; expected a divisor of the patch")


def test_five_hundred_equal_errors_are_one_line(folder, tmp_path):
    source = tmp_path / "s"
    write_sources(source, scenes=1, shape=(64, 96))
    for number in range(50):
        (source / f"bad{number}.nc").write_bytes(b"no netCDF")
    done = CliRunner().invoke(
        cli, ["preprocess", str(source), "--store", str(tmp_path / "p.zarr"), "--patch", "32"]
    )
    assert done.exit_code == 1
    assert done.stdout.count("bad") == 2  # the name of one file, and its message
    assert "failed  50 such, for example bad0.nc: " in done.stdout


def test_commands_let_threads_wait_asleep_before_torch_is_imported():
    code = (
        "import os, sys\nfrom gridrad_cube.cli import cli\n"
        "try:\n    cli.main(['info', 'nowhere'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules\nprint(os.environ['OMP_WAIT_POLICY'])\n"
    )
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": given} if given else {}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{expected}\n"


# --- clusters that do not answer, and full disks


@pytest.mark.timeout(120)
def test_a_scheduler_that_does_not_answer_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pipeline.execution, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(pipeline.execution, "_FILE_SECONDS", 0.3)
    for scheduler, message in (
        ("127.0.0.1:9", r"127\.0\.0\.1:9: no Dask scheduler answers at 127\.0\.0\.1:9"),
        (str(tmp_path / "s.json"), r"s\.json: no such scheduler file, and none appeared"),
    ):
        with pytest.raises(ConnectionError, match=message):
            pipeline.executor(None, 1, scheduler).__enter__()
    assert "s.json: no such scheduler file; waiting" in caplog.text


@pytest.mark.timeout(120)
def test_a_cluster_without_workers_is_told_and_given_up(monkeypatch, caplog):
    from distributed import Client, LocalCluster

    monkeypatch.setattr(pipeline.execution, "_TOLD_AFTER", 0.5)
    monkeypatch.setattr(pipeline.execution, "_GIVEN_UP_AFTER", 3.0)
    local = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        LocalCluster(n_workers=0, processes=False, **local) as cluster,
        Client(cluster) as client,
        pipeline.executor(client, 1, None) as run,
    ):
        with pytest.raises(
            ConnectionError, match=r"has no worker, for \d s\. What is written is kept; start"
        ):
            list(run(len, [("a",)]))
        client.run = lambda *_: None  # which waits for workers
    (line,) = [
        r.message for r in caplog.records if r.levelno == logging.WARNING and "has no worker" in r.message
    ]
    assert line.endswith("has no worker; waiting for up to 3 s")


def test_a_full_disk_names_the_file_and_says_that_the_run_resumes(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: storage.write_bytes(tmp_path / "a.json", b"x"),
        lambda: storage.Files(tmp_path).append("a.json", b"x"),
        lambda: storage.Files(tmp_path).create("a.json", b"x"),
    ):
        with pytest.raises(OSError, match=r"No space left .*run again.*resumes: '.*a\.json'"):
            write()
    assert [path.name for path in tmp_path.iterdir()] in ([], ["a.json"])
