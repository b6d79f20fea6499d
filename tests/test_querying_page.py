"""The lines of Python and the commands that docs/querying.md shows, run on a small store."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from conftest import PROJECT
from query_stores import write
from small_data import make_store

from gridrad_cube.cli import cli
from gridrad_cube.store import open_cube

NAMES = ("ir_brightness_temperature", "visible_reflectance")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hourly crops over two days, 4 x 6 patches of 32 px, and as embeddings what four statistics say of a patch."""
    folder = tmp_path_factory.mktemp("page")
    make_store(folder, scenes=40, shape=(128, 192), interval="1h")
    cube = open_cube(folder / "patches.zarr")
    values = np.stack([
        np.stack([cube[f"{name}_{n}"].values for n in ("mean", "std", "minimum", "maximum")], axis=-1) for name in NAMES
    ], axis=1)  # fmt: skip
    values = (values - np.nanmean(values, axis=(0, 2, 3), keepdims=True)) / np.nanstd(
        values, axis=(0, 2, 3), keepdims=True
    )
    coordinates = (
        "time",
        "status",
        "latitude",
        "longitude",
        "y_origin",
        "x_origin",
        "grid",
        "scene",
        "source",
    )
    flags = np.stack([cube[f"{name}_flags"].values for name in NAMES], axis=1)
    dataset = xr.Dataset(
        {"embedding": (("crop", "channel", "row", "col", "feature"), values.astype("float16")),
         "flags": (("crop", "channel", "row", "col"), flags)},
        coords={n: (cube[n].dims, cube[n].values) for n in coordinates},
    ).assign_coords(channel=list(NAMES), variable=("channel", list(NAMES)))  # fmt: skip
    info = {"format_version": 1, "kind": "embeddings", "level": "256", "patch": 32, "source": "patches.zarr"}
    write(dataset.assign_attrs(gridrad_cube=info), folder / "embeddings.zarr")
    return folder


def test_every_question_of_the_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    for block in re.findall(
        r"```python\n(.*?)```", (PROJECT / "docs" / "querying.md").read_text(), re.DOTALL
    ):
        exec(compile(block, "docs/querying.md", "exec"), names)
    said = capsys.readouterr().out
    assert "rank" in said
    assert names["field"].embedding.dims == ("time", "channel", "latitude", "longitude", "feature")
    assert names["path"].sizes["time"] == 7
    assert names["answers"].score.dims == ("query", "rank")
    assert names["pictures"].shape == (10, 32, 32)
    assert names["sequel"].events.values.min() >= 1
    assert np.isfinite(names["sequel"].observed).all()
    assert names["daily"].observed.sum() > 0
    assert set(np.unique(names["part"])) == {0, 1}
    assert names["corner"].sizes["patch"] > 0
    assert names["plains"].sizes["patch"] > 0
    assert names["storms"].sizes["patch"] > 0


def test_commands_of_the_page(folder, monkeypatch):
    """After the lines of Python, since `readout --remove` comes last."""
    monkeypatch.chdir(folder)
    page = (PROJECT / "docs" / "querying.md").read_text()
    commands = re.findall(r"^gridrad-cube ((?:readout|query) embeddings.zarr.*)$", page, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        done = CliRunner().invoke(cli, shlex.split(command, comments=True), catch_exceptions=False)
        assert done.exit_code == 0, f"{command}\n{done.output}"
    assert (folder / "storms.geojson").exists()
    assert (folder / "storms.parquet").exists()
