"""What files and arguments bring to a terminal and to spreadsheets: no control characters, secrets or formulas."""

from __future__ import annotations

import csv

import netCDF4
import numpy as np
import pytest
from click.testing import CliRunner
from query_stores import make_embeddings

from gridrad_cube import query, synthetic
from gridrad_cube.cli import cli
from gridrad_cube.query import write_answer
from gridrad_cube.schema import mask_secrets
from gridrad_cube.storage import Files, is_url

ESCAPES = "\x1b\x07\r\x9b\u202e"
SECRET = "S3CRET"


def run(*arguments):
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert not isinstance(result.exception, (ValueError, OSError)), result.exception
    return result.exit_code, result.output


def test_names_and_attributes_of_files_do_not_control_the_terminal(tmp_path):
    (good,) = synthetic.write_scenes(tmp_path / "in", scenes=1, shape=(64, 64))
    with netCDF4.Dataset(good, "a") as ds:
        ds.title = f"\x1b]0;owned{ESCAPES}\n  a row"
    bad = good.with_name(f"x\n  written  fine\x1b[2J{ESCAPES}{good.name}")
    bad.write_bytes(b"<html>")
    other = good.with_name(f"y{ESCAPES}_{good.name}")
    store = tmp_path / "cube.zarr"
    outputs = [run("preprocess", tmp_path / "in", "--store", store, "--patch", 32), run("info", good)]
    other.write_bytes(good.read_bytes())
    outputs += [run("preprocess", tmp_path / "in", "--store", tmp_path / "b.zarr", "--patch", 32)]
    outputs += [run("info", bad), run(f"no{ESCAPES}"), run("info", good, f"--no{ESCAPES}")]
    assert [code for code, _ in outputs] == [1, 0, 1, 1, 2, 2]
    for _, text in outputs:
        assert not set(ESCAPES) & set(text), text
    assert "\n  a row" not in outputs[1][1]
    assert "\n  written  fine" not in outputs[0][1]


@pytest.mark.parametrize(
    "place",
    [
        "s3://KEY:{}@bucket/x", "S3://KEY:{}@bucket/x", "s3:/KEY:{}@bucket/x", " s3://KEY:{}@bucket/x", "s3:KEY:{}@b/x",
        "s3://KEY:a/{}@bucket/x", "simplecache::s3://KEY:{}@bucket/x", "file://user:{}@host/x", "abfs://{}@acct/x",
        "FILE:///{}", "'https://user:{}@host/x", "https://host/x?X-Amz-Signature={}", "s3:///KEY:{}@bucket",
    ],
)  # fmt: skip
def test_urls_never_become_folders_and_show_no_secret(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = place.format(SECRET)
    with pytest.raises(ValueError, match=r"URL|names no bucket") as caught:
        Files(place)
    assert SECRET not in str(caught.value)
    sources = tmp_path / "in"
    sources.mkdir()
    for arguments in (["preprocess", place, "--store", "a.zarr"], ["preprocess", sources, "--store", place]):
        code, text = run(*arguments)
        assert code == 1
        assert SECRET not in text
    assert sorted(tmp_path.iterdir()) == [sources]


def test_paths_and_times_are_neither_urls_nor_secrets():
    for path in ("./s3:/x", "/a/s3:/x", "2021-07-05T15:00.zarr", "C:/x", "a:b"):
        assert not is_url(path)
    for text in (
        "s3://b/x.nc@2021-07-05T00:00:00",
        "http://h:9000/x.nc@2021-07-05T00:00:00",
        "dbz: got dbz@3.0km",
    ):
        assert mask_secrets(text) == text
    assert mask_secrets(f"s3://KEY:a/{SECRET}@b/x is not there") == "s3://...@b/x is not there"


def test_csv_has_no_formulas_and_keeps_numbers(tmp_path):
    names = ["=1+2", "+cmd", "-x", "@SUM(A1)", "-5", "a=b"]
    answer = make_embeddings().gridrad.search((6, 1, 2, 0), 6)
    answer = answer.assign_coords(source=("rank", names), latitude=("rank", np.full(6, -33.5)))
    write_answer(answer, tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["'=1+2", "'+cmd", "'-x", "'@SUM(A1)", "-5", "a=b"]
    assert {row["latitude"] for row in rows} == {"-33.5"}
    assert query.to_dataframe(answer)["source"].tolist() == names
