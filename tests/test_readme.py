"""The lines of Python and of the shell that README and docs show, run on small data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_data import make_store, write_sources

from gridrad_cube.cli import cli

PROJECT = Path(__file__).resolve().parents[1]
#: In place of a preset: a run that takes a second.
SHORT = 'preset="demo", steps=2, batch_size_per_gpu=16'
SHORT_FLAGS = "--preset demo --steps 2 --batch-size-per-gpu 16"


def blocks(page):
    """Python blocks of a Markdown page."""
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


def text(page):
    return (PROJECT / page).read_text()


def within_small_scenes(code):
    """Write 16 small scenes, cut into patches of 64 px, and move the place of the query into them."""
    code = code.replace("--scenes 24", "--scenes 16 --shape 320 448").replace("-107.0", "-97.0")
    return re.sub(
        r"(gridrad-cube preprocess .*--store patches.zarr)$", r"\1 --patch 64", code, flags=re.MULTILINE
    )


def run_commands(code):
    """Run lines of a page that begin with gridrad-cube, and return what they print."""
    printed = ""
    for line in within_small_scenes(code).splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "gridrad-cube", line
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        printed += done.stdout
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small files in ``data/`` and a cube of them in 32 px patches, 6 x 8 a crop, as the pages name them."""
    folder = tmp_path_factory.mktemp("readme")
    make_store(folder, scenes=2, shape=(192, 256))
    return folder


def test_readme_in_python(tmp_path, monkeypatch, capsys):
    write_sources(tmp_path / "data", scenes=10, shape=(256, 512), interval="2h")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md")
    assert 'preset="demo"' in code
    assert "workers=2" in code
    code = within_small_scenes(code.replace('preset="demo"', SHORT).replace(", workers=2", ""))
    names = {"__name__": "__main__"}
    exec(compile(code, "README.md", "exec"), names)
    answer = names["answer"]
    assert answer.sizes["rank"] == 10
    assert (np.diff(answer["score"].values) <= 0).all()
    assert "10 written" in capsys.readouterr().out


def test_readme_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"## On the command line\n\n```\n(.*?)```", text("README.md"), re.DOTALL)
    printed = run_commands(code)
    assert "ir_brightness_temperature" in printed
    assert (tmp_path / "answer.png").stat().st_size > 10_000


def test_format_page_with_plain_xarray(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = blocks("docs/cube-format.md")[-1]
    names = {}
    exec(code.replace("256", "32"), names)
    assert names["patch"].shape == (32, 32)
    assert names["latitude"].mean() == pytest.approx(float(names["one"].latitude[3, 5]))


def test_getting_started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page, own_files = text("docs/getting-started.md").split("## Use your own files")
    assert "preprocess mrms/" in own_files  # tests/test_pipeline.py builds a cube of such files
    shell = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    look, plain, learn = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    training = [number for number, code in enumerate(shell) if "gridrad-cube train" in code]
    printed = run_commands("".join(shell[: training[0]]))
    assert "16 written, 100.0% complete" in printed
    assert (tmp_path / "scene.png").stat().st_size > 10_000
    assert (tmp_path / "answer.png").stat().st_size > 10_000
    names = {}
    exec(compile(within_small_scenes(look), "docs/getting-started.md", "exec"), names)
    assert "patches have a pixel below 200 K" in capsys.readouterr().out
    exec(plain, names)
    assert names["plain"].sizes["crop"] == 16
    exec(compile(learn.replace('preset="demo"', SHORT), "docs/getting-started.md", "exec"), names)
    assert (tmp_path / "embeddings.zarr").is_dir()
    # The commands find the run complete, and the embeddings too.
    run_commands(shell[training[0]].replace("--preset demo", SHORT_FLAGS))
    run_commands(shell[training[1]].replace("--preset demo", SHORT_FLAGS))


def test_quality_page_selects_by_flags(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = blocks("docs/quality-control.md")
    names = {}
    exec(code, names)
    assert "cold patches without an outlier" in capsys.readouterr().out
    assert names["outliers"].dims == ("crop", "row", "col")


def test_loading_page_reads_and_resumes(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    read, workers, resume = blocks("docs/loading.md")
    names = {}
    exec(read, names)
    assert names["values"].shape == names["valid"].shape == (16, 1, 32, 32)
    assert "s for data" in capsys.readouterr().out
    exec(workers + "\nlengths = [len(batch) for batch in batches]", names)
    assert names["lengths"] == [16] * names["sampler"].steps_per_epoch
    exec(resume, names)
