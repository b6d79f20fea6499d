"""The lines of Python that README and docs show, run on small data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_data import make_store, write_sources

PROJECT = Path(__file__).resolve().parents[1]


def blocks(page):
    """Python blocks of a Markdown page."""
    return re.findall(r"```python\n(.*?)```", (PROJECT / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small files in ``data/`` and a cube of them in 32 px patches, 6 x 8 a crop, as the pages name them."""
    folder = tmp_path_factory.mktemp("readme")
    make_store(folder, scenes=2, shape=(192, 256))
    return folder


def test_readme_from_files_to_a_query(tmp_path, monkeypatch, capsys):
    write_sources(tmp_path / "data", scenes=16, shape=(256, 512))
    monkeypatch.chdir(tmp_path)
    code = blocks("README.md")[0]
    small = 'preset="demo", steps=2, batch_size_per_gpu=16'
    assert 'preset="small"' in code
    assert "workers=2" in code
    code = code.replace('preset="small"', small).replace(", workers=2", "").replace('"200km"', '"50km"')
    names = {"__name__": "__main__"}
    exec(compile(code, "README.md", "exec"), names)
    answer = names["answer"]
    assert answer.sizes["rank"] == 10
    assert (np.diff(answer["score"].values) <= 0).all()
    assert "16 written" in capsys.readouterr().out


def test_readme_in_the_cube(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(blocks("README.md")[1], names)
    assert names["plain"].sizes["crop"] == names["cube"].sizes["crop"] == 2
    assert names["storm"].sizes["y"] == 32


def test_format_page_with_plain_xarray(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = blocks("docs/cube-format.md")[-1]
    names = {}
    exec(code.replace("256", "32"), names)
    assert names["patch"].shape == (32, 32)
    assert names["latitude"].mean() == pytest.approx(float(names["one"].latitude[3, 5]))


def test_first_steps(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    look, learn = blocks("docs/first-steps.md")
    names = {}
    exec(compile(look, "docs/first-steps.md", "exec"), names)
    assert names["storm"].sizes["y"] == 32
    small = 'preset="demo", steps=1, batch_size_per_gpu=16'
    exec(compile(learn.replace('preset="demo"', small), "docs/first-steps.md", "exec"), names)
    assert names["answer"].sizes["rank"] == 5
    assert "source" in capsys.readouterr().out


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
