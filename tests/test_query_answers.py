"""Answers beyond the Dataset: pictures from the cube, files, the command line, and what a notebook shows."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from query_stores import FEATURES, make_embeddings, write
from small_data import make_store

from gridrad_cube import cli, query
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import as_text, open_cube, open_embeddings, store_info

EMB = make_embeddings()
IR, VIS = "ir_brightness_temperature", "visible_reflectance"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cube of 3 crops of 3 x 5 patches, and embeddings of it that are the patches' statistics."""
    folder = tmp_path_factory.mktemp("answers")
    make_store(folder, scenes=3, shape=(90, 150))
    for name, level in (("embeddings", "256"), ("embeddings_2k", "2k")):
        embeddings_of(folder / "patches.zarr", level, folder / f"{name}.zarr")
    return folder


def embeddings_of(cube, level, path):
    opened = open_cube(cube)
    names = ("mean", "std", "minimum", "maximum")
    values = np.stack([opened[f"{IR}_{n}"].values for n in names], axis=-1)[:, None]
    values = values - np.nanmean(values, axis=(0, 1, 2, 3))
    dims = ("crop", "channel", "row", "col", "feature")
    if level == "2k":
        values, dims = np.nanmean(values, axis=(2, 3)), ("crop", "channel", "feature")
    dataset = xr.Dataset(
        {"embedding": (dims, values.astype("float32")),
         "flags": (("crop", "channel", "row", "col"), opened[f"{IR}_flags"].values[:, None])},
        coords={n: opened[n].variable for n in ("time", "status", "latitude", "longitude", "y_origin", "x_origin",
                                                "grid", "scene", "source")},
    ).assign_coords(channel=[IR], variable=("channel", [IR]))  # fmt: skip
    dataset.attrs = {"gridrad_cube": {"format_version": 1, "kind": "embeddings", "level": level, "patch": 32,
                                      "checkpoint": "abc", "source": "patches.zarr"}}  # fmt: skip
    for name in dataset.variables:
        dataset[name].attrs = {}
    return write(dataset, path)


# pictures


def test_pixels_of_an_answer_are_those_of_its_patches(folder):
    answer = open_embeddings(folder / "embeddings.zarr").gridrad.search(
        (0, 1, 2, IR), 5, exclude=None, reject=()
    )
    pictures = answer.gridrad.pixels()
    assert pictures[IR].dims == ("rank", "y", "x")
    assert not isinstance(pictures[IR].variable._data, np.ndarray)
    cube = open_cube(folder / "patches.zarr")
    for i in range(5):
        crop, row, col = (int(answer[d][i]) for d in ("crop", "row", "col"))
        expected = cube[IR].values[crop, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
        np.testing.assert_array_equal(pictures[IR][i], expected)
    assert pictures["latitude"].identical(answer["latitude"])
    assert set(pictures.data_vars) == {IR, VIS}
    assert pictures[IR].attrs["units"] == "K"
    one = answer.isel(rank=2).gridrad.pixels(channel=VIS)
    assert one[VIS].dims == ("y", "x")
    assert set(one.data_vars) == {VIS}
    same = answer.gridrad.pixels(cube, channel=[IR])
    np.testing.assert_array_equal(same[IR], pictures[IR])


def test_pixels_of_other_answers_and_of_crops(folder, tmp_path):
    embeddings = open_embeddings(folder / "embeddings.zarr")
    cube = open_cube(folder / "patches.zarr")
    for answer in (
        embeddings.gridrad.within(reject=(), time=cube.time.values[1]),
        embeddings.gridrad.track(float(cube.latitude[0, 1, 2]), float(cube.longitude[0, 1, 2])),
    ):
        pictures = answer.gridrad.pixels()
        i = answer.sizes[answer.y_start.dims[0]] - 1
        crop, row, col = (int(answer[d][i]) for d in ("crop", "row", "col"))
        expected = cube[IR].values[crop, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
        np.testing.assert_array_equal(pictures[IR][i], expected)
    level_2k = open_embeddings(folder / "embeddings_2k.zarr")
    whole = level_2k.gridrad.search((0, IR), 2, exclude=None, reject=())
    pictures = whole.gridrad.pixels()
    np.testing.assert_array_equal(pictures[IR][0], cube[IR].values[int(whole.crop[0])])
    saved = embeddings.gridrad.search((0, 1, 2, IR), 2, exclude=None, reject=())
    saved.to_netcdf(tmp_path / "answer.nc")
    with xr.open_dataset(tmp_path / "answer.nc") as back:
        np.testing.assert_array_equal(back.gridrad.pixels()[IR], saved.gridrad.pixels()[IR])


def test_pixels_of_overlapping_windows(folder):
    """Windows at half a patch cross the borders of patches: their pixels are those of the window all the same."""
    embeddings = open_embeddings(folder / "embeddings.zarr")
    info = store_info(embeddings) | {"stride": 16}
    answer = embeddings.assign_attrs(gridrad_cube=info).gridrad.search(
        (0, 1, 3, IR), 4, exclude=None, reject=()
    )
    pictures = answer.gridrad.pixels()
    cube = open_cube(folder / "patches.zarr")
    for i in range(4):
        crop, row, col = (int(answer[d][i]) for d in ("crop", "row", "col"))
        expected = cube[IR].values[crop, 16 * row : 16 * row + 32, 16 * col : 16 * col + 32]
        np.testing.assert_array_equal(pictures[IR][i], expected)


def test_pixels_of_a_cube_that_has_moved_or_is_another(folder, tmp_path):
    shutil.copytree(folder / "embeddings.zarr", tmp_path / "embeddings.zarr")
    answer = open_embeddings(tmp_path / "embeddings.zarr").gridrad.search(
        (0, 1, 2, IR), 2, exclude=None, reject=()
    )
    with pytest.raises(SchemaError, match=r"no cube at .*patches.zarr\. If it has moved, pass its path"):
        answer.gridrad.pixels()
    assert answer.gridrad.pixels(folder / "patches.zarr").sizes["rank"] == 2
    with pytest.raises(SchemaError, match="no cube at"):
        answer.gridrad.pixels(tmp_path / "gone.zarr")
    with pytest.raises(SchemaError, match="holds embeddings, but this needs a cube"):
        answer.gridrad.pixels(folder / "embeddings.zarr")
    with pytest.raises(SchemaError, match="got a store of embeddings as cube="):
        answer.gridrad.pixels(open_embeddings(folder / "embeddings.zarr"))
    cube = open_cube(folder / "patches.zarr")
    with pytest.raises(SchemaError, match="this is not the cube that was embedded: its crop"):
        answer.gridrad.pixels(cube.assign_coords(scene=("crop", ["a", "b", "c"])))
    with pytest.raises(SchemaError, match="not all that the answer names"):
        answer.gridrad.pixels(cube.isel(crop=slice(0, 1)))
    with pytest.raises(SchemaError, match="pixels: no channel 'rain'; expected some of"):
        answer.gridrad.pixels(cube, channel="rain")
    with pytest.raises(SchemaError, match="does not say which cube"):
        answer.assign_attrs(cube="").gridrad.pixels()
    with pytest.raises(SchemaError, match="expected an answer of search"):
        query.pixels(cube)
    batch = EMB.gridrad.search(np.eye(FEATURES)[:2], 2)
    with pytest.raises(SchemaError, match=r"Take one: answer.isel\(query=0\)"):
        batch.gridrad.pixels(cube)


# text


def test_format_answer_table():
    lines = query.format_answer(EMB.gridrad.search((6, 1, 2, 0), 12)).splitlines()
    columns = "rank crop row col channel time latitude longitude score percentile source window"
    assert lines[0].split() == columns.split()
    assert len(lines) == 13
    assert lines[10].startswith("  10  ")
    assert "ir_brightness_temperature" in lines[1]
    assert lines[1].split()[5].endswith("Z")
    column = lines[0].index("source")
    assert {line[column : column + 6] for line in lines[1:]} == {"a/file"}
    first = EMB.gridrad.search((6, 1, 2, 0), 1).isel(rank=0)
    window = f"y {int(first.y_start)}:{int(first.y_stop)} x {int(first.x_start)}:{int(first.x_stop)}"
    assert lines[1].endswith(window)


def written(answer, path):
    """What `write_answer` writes: records of JSON, lines of CSV, or GeoJSON."""
    query.write_answer(answer, path)
    text = path.read_text()
    return list(csv.DictReader(io.StringIO(text))) if path.suffix == ".csv" else json.loads(text)


def test_json_and_csv_hold_the_same_records(tmp_path):
    answer = EMB.gridrad.search((6, 1, 2, 0), 3)
    rows = written(answer, tmp_path / "a.json")
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["score"] == pytest.approx(float(answer.score[0]), abs=1e-6)
    assert rows[0]["time"] == np.datetime_as_string(answer.time.values[0], "s") + "Z"
    assert {"crop", "row", "col", "channel", "source", "scene", "y_start", "x_stop", "flags"} <= set(rows[0])
    assert [{k: str(v) for k, v in row.items()} for row in rows] == written(answer, tmp_path / "a.csv")
    query.write_answer(answer, tmp_path / "a.nc")
    np.testing.assert_array_equal(xr.open_dataset(tmp_path / "a.nc").score, answer.score)
    frame = query.to_dataframe(answer)
    assert list(frame) == list(rows[0])
    assert str(frame["time"].dt.tz) == "UTC"


def test_format_answer_of_other_answers():
    one = EMB.gridrad.at("2024-05-20T02:10", 39.2, -98.1)
    assert query.to_dataframe(one)["time_difference"].tolist() == [-600]
    assert query.format_answer(one).splitlines()[0].split()[0] == "crop"
    assert len(query.format_answer(EMB.gridrad.track(39, -98)).splitlines()) == 9
    flat = EMB.gridrad.within((-180, 30, 0, 50), "2024-05-20T02", channel=0)
    assert len(query.to_dataframe(flat)) == 12
    level_2k = make_embeddings(level="2k").gridrad.search((6, 0), 2)
    assert len(query.format_answer(level_2k).splitlines()) == 3


def test_answers_write_missing_numbers_and_strange_names(tmp_path):
    answer = EMB.gridrad.search((6, 1, 2, 0), 1)
    answer = answer.assign_coords(
        latitude=("rank", [np.nan]),
        source=("rank", ['a\x1b[31m\nb,"c".nc']),
        time=("rank", [np.datetime64("NaT", "ns")]),
    )
    row = written(answer, tmp_path / "a.json")[0]
    assert row["latitude"] is None
    assert row["time"] is None
    assert row["source"] == 'a\x1b[31m\nb,"c".nc'
    table = query.format_answer(answer)
    assert len(table.splitlines()) == 2
    assert "\x1b" not in table
    assert written(answer, tmp_path / "a.csv")[0]["latitude"] == ""


def test_write_answer_refuses(tmp_path):
    answer = EMB.gridrad.search((6, 1, 2, 0), 1)
    with pytest.raises(
        SchemaError, match=r"got suffix '.xml'; expected one of .csv, .json, .geojson, .parquet, .nc"
    ):
        query.write_answer(answer, tmp_path / "a.xml")
    with pytest.raises(SchemaError, match="expected an answer of"):
        query.format_answer(EMB)


# files


def test_geojson_is_points_with_the_records(tmp_path):
    answer = EMB.gridrad.search((6, 1, 2, 0), 3, percentile=False)
    shape, rows = written(answer, tmp_path / "a.geojson"), written(answer, tmp_path / "a.json")
    assert shape["type"] == "FeatureCollection"
    for feature, row in zip(shape["features"], rows, strict=True):
        assert feature["geometry"] == {"type": "Point", "coordinates": [row["longitude"], row["latitude"]]}
        assert feature["properties"] == {k: v for k, v in row.items() if k not in ("latitude", "longitude")}
    lost = answer.assign_coords(latitude=("rank", [np.nan, 1, 2]))
    assert written(lost, tmp_path / "a.geojson")["features"][0]["geometry"] is None


def test_geoparquet_says_where_its_points_are(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    answer = EMB.gridrad.search((6, 1, 2, 0), 5)
    query.write_answer(answer, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    said = json.loads(table.schema.metadata[b"geo"])
    assert said["version"] == "1.1.0"
    assert said["primary_column"] == "geometry"
    assert said["columns"]["geometry"]["encoding"] == "WKB"
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        order, kind, x, y = struct.unpack("<BIdd", row["geometry"])
        assert (order, kind) == (1, 1)
        assert (x, y) == (float(answer.longitude[i]), float(answer.latitude[i]))
        assert row["time"].tzinfo is not None
        assert np.datetime64(row["time"].replace(tzinfo=None), "s") == answer.time.values[i].astype(
            "datetime64[s]"
        )
        assert row["crop"] == int(answer.crop[i])
        assert row["source"] == str(answer.source.values[i])
    lats, lons = answer.latitude.values, answer.longitude.values
    assert said["columns"]["geometry"]["bbox"] == [lons.min(), lats.min(), lons.max(), lats.max()]
    assert json.loads(table.schema.metadata[b"gridrad_cube"])["checkpoint"] == "abc"


def test_geoparquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SchemaError, match=r"pip install 'gridrad-cube\[geo\]'"):
        query.write_answer(EMB.gridrad.search((6, 1, 2, 0), 1), tmp_path / "a.parquet")


def test_percentiles_and_events_are_columns():
    dataset = make_embeddings(times=30)
    rows = query.to_dataframe(dataset.gridrad.search(np.ones(FEATURES), 3, percentile=True))
    assert rows["percentile"].between(0, 100).all()
    found = dataset.gridrad.analogues((6, 1, 2, 0), "1h", k=3)
    assert query.to_dataframe(found)["event"].tolist() == found.event.values.tolist()


def answers_of(folder):
    """An answer of each function, by its name."""
    emb, cube = open_embeddings(folder / "embeddings.zarr"), open_cube(folder / "patches.zarr")
    place = (emb.time.values[1], float(emb.latitude[1, 1, 2]), float(emb.longitude[1, 1, 2]))
    found = emb.gridrad.search((0, 1, 2), 3, exclude=None)
    return {
        "at": emb.gridrad.at(*place), "at a time": emb.gridrad.at(place[0]), "within": emb.gridrad.within(),
        "at of a cube": cube.gridrad.at(*place), "within of a cube": cube.gridrad.within(reject=()),
        "track": emb.gridrad.track(*place[1:]), "grid": emb.gridrad.grid(), "follow": emb.gridrad.follow((0, 1, 2)),
        "search": found, "batch": emb.gridrad.search([(0, 1, 2), (1, 1, 3)], 3, exclude=None, percentile=False),
        "analogues": emb.gridrad.analogues((0, 1, 2), "15min", exclude=None, time_tolerance="10min"),
        "frequency": emb.gridrad.frequency((0, 1, 2), 0.5), "pixels": found.gridrad.pixels(),
        "crop": cube.gridrad.crop(1), "patch": cube.gridrad.patch(1, 1, 2), "patches": cube.gridrad.patches(),
        "level 2k": open_embeddings(folder / "embeddings_2k.zarr").gridrad.search((0,), 2, exclude=None),
        "half precision": EMB.gridrad.within(),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of zarr about text and consolidated metadata
def test_every_answer_can_be_written_and_opened_again(folder, tmp_path):
    for name, answer in answers_of(folder).items():
        for kind in ("nc", "zarr"):
            path = tmp_path / f"{name}.{kind}"
            if kind == "nc":
                answer.to_netcdf(path)
            else:
                answer.to_zarr(path)
            again = xr.open_dataset(path, engine={"nc": None, "zarr": "zarr"}[kind])
            assert set(again.variables) == set(answer.variables), name
            for variable in answer.data_vars:
                np.testing.assert_array_equal(again[variable].values, answer[variable].values, err_msg=name)
            assert not any(isinstance(value, dict) for value in again.attrs.values()), name


# the command line


def run(*arguments):
    result = CliRunner().invoke(cli.cli, ["query", *map(str, arguments)])
    return result.exit_code, result.output


def test_command_line_of_examples_and_rules(folder, tmp_path):
    store = folder / "embeddings.zarr"
    emb = open_embeddings(store)
    code, text = run(
        store,
        "--like",
        f"0,1,2,{IR}",
        "--like",
        "1,1,3",
        "--unlike",
        "2,0,0",
        "--no-exclude",
        "-o",
        tmp_path / "a.json",
        "-k",
        3,
    )
    assert code == 0, text
    asked = {"positive": [(0, 1, 2, IR), (1, 1, 3)], "negative": [(2, 0, 0)]}
    answer = emb.gridrad.search(asked, 3, exclude=None)
    assert json.loads((tmp_path / "a.json").read_text()) == written(answer, tmp_path / "b.json")
    lat, lon = emb.latitude.values[0], emb.longitude.values[0]
    box = (float(lon[0, 0]) - 0.1, float(lat[0, 0]) - 0.1, float(lon[0, 2]) + 0.1, 89.0)
    code, text = run(store, "--like", f"0,1,2,{IR}", "--bbox", *box, "-k", 100, "--start", "2000", "--stop", "2100",
                     "--exclude", "1min", "1km", "--separate", "1min", "1km", "--channel", IR)  # fmt: skip
    assert code == 0, text
    expected = emb.gridrad.search(
        (0, 1, 2, IR), 100, bbox=box, channel=IR, exclude=("1min", "1km"), separate=("1min", "1km")
    )
    assert text.strip() == query.format_answer(expected)


def test_command_line_writes_files(folder, tmp_path):
    pytest.importorskip("pyarrow")
    store = folder / "embeddings.zarr"
    asked = (store, "--like", "0,1,2", "--no-exclude", "-k", 2)
    code, text = run(*asked, "-o", tmp_path / "a.parquet")
    assert (code, text.strip()) == (0, f"{tmp_path / 'a.parquet'}: 2 answers")
    assert (tmp_path / "a.parquet").read_bytes()[:4] == b"PAR1"
    code, text = run(*asked, "-o", tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text())["features"][1]["properties"]["rank"] == 2
    assert run(*asked)[1].splitlines()[0].split()[0] == "rank"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a query needs either --like CROP,ROW,COL or all of --time"),
        (("--like", "1,2"), "expected CROP,ROW,COL"),
        (("--like", "1,2,3", "--time", "2024"), "a query needs either --like"),
        (
            ("--like", "1,2,3", "--time", "2024", "--latitude", 40, "--longitude", -90),
            "a query needs either --like",
        ),
        (("--time", "2024"), "a query needs either --like"),
        (("--like", "0,1,2", "--no-exclude", "-o", "a.txt"), "got suffix '.txt'; expected one of .csv"),
        (("--like", "0,1,2", "--season", "XYZ"), "season: got 'XYZ'"),
        (("--like", "0,1,2", "--start", "May"), "time: cannot read 'May'"),
        (("--unlike", "0,1,2"), "a query needs either --like"),
        (("--like", "0,1,2", "--start", "2031"), "no crop in the time asked for"),
    ],
)
def test_command_line_refuses(folder, arguments, message):
    code, text = run(folder / "embeddings.zarr", *arguments)
    assert code != 0
    assert message in text
    assert "Traceback" not in text


# the accessor


@pytest.mark.parametrize(
    "imports", ["import gridrad_cube, xarray as xr", "import xarray as xr, gridrad_cube"]
)
def test_importing_the_package_registers_the_accessor_without_torch(folder, imports):
    code = f"""{imports}; import sys
store = xr.open_zarr({str(folder / "embeddings.zarr")!r}, chunks=None)
print(store.gridrad.within().sizes["patch"], "torch" in sys.modules)"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["45", "False"]


# what a notebook shows


def test_describe_says_what_both_kinds_of_store_hold(folder):
    facts = open_embeddings(folder / "embeddings.zarr").gridrad.describe()
    assert facts["kind"] == "embeddings of level 256"
    assert facts["crops"] == "3 written, 100.0% complete"
    assert facts["samples"] == "3 crop x 1 channel x 3 row x 5 col"
    assert "float32" in facts["variables"]["embedding"]
    cube = open_cube(folder / "patches.zarr")
    facts = cube.gridrad.describe()
    assert facts["kind"] == "cube of patches"
    assert facts["patches"] == "3 x 5 of 32 px a crop"
    assert set(facts["variables"]) == {IR, VIS}
    assert ", K, " in facts["variables"][IR]
    span = np.unique(cube.time.values).astype("datetime64[s]")
    assert facts["time"] == f"{span[0]} to {span[-1]} UTC, 3 times"
    flags = cube[f"{IR}_flags"].values
    assert facts["flags"][IR].startswith(f"no flag {(flags == 0).mean():.1%}")
    failed = EMB.gridrad.describe()
    assert failed["crops"] == "23 written, 1 failed, 95.8% complete"
    flags = EMB["flags"].values
    assert f"night {((flags & 256) != 0).mean():.1%}" in failed["flags"]["embedding"]
    assert "latitudes 8.00 to 89.50" in failed["place"]


def test_a_notebook_shows_a_table_and_nothing_of_it_runs(folder):
    cube = open_cube(folder / "patches.zarr")
    page = cube.gridrad._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == len(cube.gridrad.describe())
    assert "complete" in page
    assert repr(cube.gridrad) == as_text(cube.gridrad.describe())
    nasty = EMB.assign_attrs(
        gridrad_cube=EMB.attrs["gridrad_cube"] | {"checkpoint": "<script>alert(1)</script>"}
    )
    assert "<script>" not in nasty.gridrad._repr_html_()
    answer = EMB.gridrad.search((6, 1, 2, 0), 2)
    assert "2 rank" in repr(answer.gridrad)
    empty = EMB.isel(crop=slice(0, 0))
    assert "time: none" in repr(empty.gridrad)
