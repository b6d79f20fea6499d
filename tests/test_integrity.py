"""Damage of any object of a cube is found, named and repaired; commits change what readers see in one step."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from small_data import write_sources

import gridrad_cube
from gridrad_cube import pipeline, store
from gridrad_cube.cli import cli
from gridrad_cube.datasets import PatchDataset
from gridrad_cube.embedding import embed
from gridrad_cube.schema import Flag, QualitySpec, Recipe, SchemaError, TileSpec
from gridrad_cube.storage import Files
from gridrad_cube.store.integrity import checksum

RECIPE = Recipe(tile=TileSpec(patch=32))
IR, VIS = "ir_brightness_temperature", "visible_reflectance"
#: Thresholds by which both channels have other flags than by the defaults.
STRICT = QualitySpec(low_coverage=0.9, max_deviation_factor=1.0, night_solar_zenith=1.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, scenes=4, shape=(64, 96), start="2021-07-05T17:00", interval="10min")
    return folder


@pytest.fixture(scope="module")
def cube(sources, tmp_path_factory):
    path = tmp_path_factory.mktemp("cube") / "patches.zarr"
    pipeline.preprocess(sources, path, recipe=RECIPE)
    return path


@pytest.fixture
def copy(cube, tmp_path):
    return Path(shutil.copytree(cube, tmp_path / "p.zarr"))


def contents(path: Path) -> dict[str, bytes]:
    """Every object outside ``_build/``, without the history."""
    out = {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and "_build" not in p.relative_to(path).parts
    }
    root = json.loads(out["zarr.json"])
    del root["attributes"]["history"]
    return out | {"zarr.json": json.dumps(root).encode()}


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def one(path: Path, pattern: str) -> Path:
    return sorted(path.glob(pattern))[0]


def flags_of(opened: xr.Dataset) -> list[bytes]:
    return [opened[f"{name}_flags"].values.tobytes() for name in (IR, VIS)]


SMALL = [f"{IR}_flags/c.*", "latitude/c.*", "time/c.*", "source/c.*", f"{VIS}_mean/c.*", "crop/c.*"]


@pytest.mark.parametrize("pattern", SMALL)
def test_a_missing_chunk_is_an_error_by_name(cube, copy, sources, pattern):
    path = one(copy, pattern)
    name, data = path.parent.name, path.read_bytes()
    path.unlink()
    with pytest.raises(
        store.MissingChunkError, match=rf"chunk 0[.0]* of {name} is missing. Run: gridrad-cube"
    ):
        store.open_cube(copy)[name].values  # noqa: B018
    assert [(d.key, d.what) for d in store.verify(copy)] == [(f"{name}/{path.name}", "missing")]
    assert pipeline.preprocess(sources, copy, recipe=RECIPE).count("kept") == 4
    assert path.read_bytes() == data
    assert contents(copy) == contents(cube)


def test_a_missing_or_altered_chunk_of_a_grid_is_an_error(cube, copy, sources):
    grid = str(store.open_cube(cube)["grid"].values[0])
    one(copy, "grids/*/latitude/c*").unlink()
    flip(one(copy, "grids/*/longitude/c*"))
    for name, what in (("latitude", "is missing"), ("longitude", "its checksum differs")):
        with pytest.raises(store.MissingChunkError, match=what):
            store.open_grid(copy, grid)[name].values  # noqa: B018
    assert pipeline.repair(copy, sources) == []
    assert contents(copy) == contents(cube)


OBJECTS = {
    "plan": ("_build/plan/*", 0.5),
    "copy of the plan": ("_build/plan_copy/*", 0.5),
    "head of a record": ("_build/log/*", 0.0001),
    "values of a record": ("_build/log/*", 0.9999),
    "grid": ("_build/grids/*", 0.5),
    "manifest": ("_build/manifest/*", 0.5),
    "metadata": ("latitude/zarr.json", 0.5),
    "flags": (f"{IR}_flags/c.*", 0.5),
    "report": ("report/source/c.*", 0.5),
    "shard": (f"{IR}/c.0.0.0", 0.5),
}


@pytest.mark.parametrize(("pattern", "at"), OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("how", ["altered", "missing"])
def test_damage_of_any_object_is_found_and_mended(cube, copy, sources, pattern, at, how):
    path = one(copy, pattern)
    flip(path, at) if how == "altered" else path.unlink()
    assert store.verify(copy)
    pipeline.repair(copy, sources)
    assert store.verify(copy) == []
    assert contents(copy) == contents(cube)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"patch": 32', '"patch": 16'), ('"mean": 2', '"mean": 3'), ('"center": 2', '"center": 3')],
)
def test_an_altered_root_is_refused_and_restored_with_its_thresholds(copy, sources, old, new):
    pipeline.reflag(copy, STRICT)
    before, root = contents(copy), copy / "zarr.json"
    text = root.read_text()
    assert old in text
    root.write_text(text.replace(old, new, 1))
    with pytest.raises(SchemaError, match=r"zarr.json is not as it was written .*Run: gridrad-cube verify"):
        store.open_cube(copy)
    assert [d.key for d in store.verify(copy)] == ["zarr.json"]
    pipeline.repair(copy, sources)
    assert contents(copy) == before
    root.unlink()
    pipeline.repair(copy, sources)
    assert contents(copy) == before
    assert root.read_text().startswith(text[: text.index("history")])
    assert store.store_info(copy)["quality"]["low_coverage"] == 0.9


class _Killed(BaseException):
    pass


def test_a_reflag_that_is_killed_anywhere_leaves_the_old_state_or_the_new_one(cube, tmp_path, monkeypatch):
    done = Path(shutil.copytree(cube, tmp_path / "done.zarr"))
    pipeline.reflag(done, STRICT)
    states = [flags_of(store.open_cube(p)) for p in (cube, done)]
    assert states[0][0] != states[1][0]
    assert states[0][1] != states[1][1]
    seen, real = set(), {name: getattr(Files, name) for name in ("write", "copy", "remove")}
    for at in range(0, 1000, 19):
        path = Path(shutil.copytree(cube, tmp_path / f"{at}.zarr"))
        opened, left = store.open_cube(path), [at]

        def dies(name, left=left):
            def call(self, *arguments):
                left[0] -= 1
                if left[0] < 0:
                    raise _Killed
                return real[name](self, *arguments)

            return call

        for name in real:
            monkeypatch.setattr(Files, name, dies(name))
        killed = True
        try:
            pipeline.reflag(path, STRICT)
            killed = False
        except _Killed:
            pass
        finally:
            monkeypatch.undo()
        after = store.open_cube(path)
        state = states.index(flags_of(after))
        plain = xr.open_zarr(path, chunks=None, mask_and_scale=False)
        assert states.index(flags_of(plain)) == state
        quality = store.store_info(after)["quality"]
        assert quality["low_coverage"] == (STRICT if state else RECIPE.quality).low_coverage
        seen.add(state)
        if state:
            with pytest.raises(SchemaError, match="changed since it was opened"):
                flags_of(opened)
        else:
            assert flags_of(opened) == states[0]
        assert not [d for d in store.verify(path) if "c." in d.key]
        shutil.rmtree(path)
        if not killed:
            break
    assert not killed
    assert seen == {0, 1}


def test_a_withdrawn_source_is_rejected_until_it_is_taken_back(cube, copy, sources):
    names = sorted(set(store.open_cube(cube)["source"].values.tolist()))
    bad, other = names[1], names[2]
    mean = store.store_info(cube)["training_statistics"][IR]["mean"]
    reader = store.open_cube(copy)
    done = CliRunner().invoke(cli, ["withdraw", str(copy), bad.rpartition("/")[2], f"/somewhere/{other}"])
    assert (done.exit_code, done.output) == (0, f"{copy}: 2 sources are withdrawn: {bad}, {other}\n")
    with pytest.raises(SchemaError, match="changed since it was opened"):
        reader[f"{IR}_flags"].values  # noqa: B018
    opened = store.open_cube(copy)
    gone = np.array([source in (bad, other) for source in opened["source"].values.tolist()])
    for name in (IR, VIS):
        flags, before = opened[f"{name}_flags"], store.open_cube(cube)[f"{name}_flags"].values
        wanted = before | np.where(gone, np.uint16(Flag.withdrawn), np.uint16(0))[:, None, None]
        np.testing.assert_array_equal(flags.values, wanted)
        bits = dict(zip(flags.attrs["flag_meanings"].split(), flags.attrs["flag_masks"], strict=True))
        assert bits["withdrawn"] == Flag.withdrawn
    kept, every = (set(PatchDataset(path, channels=IR).crop.tolist()) for path in (copy, cube))
    assert kept == every - set(np.flatnonzero(gone).tolist()) != every
    info = store.store_info(copy)
    assert info["thresholds"] == store.store_info(cube)["thresholds"]
    assert info["training_statistics"][IR]["mean"] != mean
    assert "withdraw: " in opened.attrs["history"]
    # It stays so when the store is repaired, and when it is flagged again and back.
    one(copy, f"{IR}_flags/c.*").unlink()
    (copy / "zarr.json").unlink()
    pipeline.repair(copy, sources)
    pipeline.reflag(copy, STRICT)
    assert store.store_info(copy)["withdrawn"] == [bad, other]
    assert not (store.open_cube(copy)[f"{IR}_flags"].values[~gone] & Flag.withdrawn).any()
    pipeline.reflag(copy, QualitySpec())
    assert gridrad_cube.withdraw(copy, [bad, other], undo=True) == []
    assert flags_of(store.open_cube(copy)) == flags_of(store.open_cube(cube))
    assert store.store_info(copy)["training_statistics"] == store.store_info(cube)["training_statistics"]
    assert store.verify(copy) == []
    for name, undo, message in (
        ("no.nc", False, "no source 'no.nc'; expected"),
        (bad, True, "is not withdrawn"),
    ):
        with pytest.raises(SchemaError, match=message):
            gridrad_cube.withdraw(copy, name, undo=undo)


def test_an_array_that_a_user_added_is_recognized(cube, copy, sources):
    mine = xr.Dataset({"mine": ("crop", np.arange(store.open_cube(cube).sizes["crop"]))})
    mine.to_zarr(copy, mode="a")
    with pytest.raises(
        SchemaError, match=r"another program has added mine to the store.*To continue, run: gridrad-cube"
    ):
        store.open_cube(copy)
    pipeline.repair(copy, sources)
    assert contents(copy).items() >= contents(cube).items()
    assert (copy / "mine").is_dir()


#: Places in a root, and JSON of another shape.
SHAPES = [
    ((), []), ((), 3), ((), None), (("attributes",), []), (("attributes", "gridrad_cube"), {}),
    (("attributes", "gridrad_cube"), 3), (("consolidated_metadata",), "x"),
    (("consolidated_metadata", "metadata"), []),
    (("consolidated_metadata", "metadata", "latitude"), 1),
    (("consolidated_metadata", "metadata", "crop", "shape"), {}),
    (("consolidated_metadata", "metadata", "time", "codecs", 0), None),
    (("consolidated_metadata", "metadata", "time", "attributes"), [[]]),
    (("consolidated_metadata", "metadata", "status", "chunk_grid"), True),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), SHAPES)
def test_json_of_another_shape_is_one_error(copy, place, value):
    whole = {"root": json.loads((copy / "zarr.json").read_text())}
    inner = whole
    for step in (path := ("root", *place))[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with contextlib.suppress(
        KeyError, TypeError, AttributeError
    ):  # as a program would that knows the checksum
        whole["root"]["attributes"]["gridrad_cube"]["checksum"] = checksum(whole["root"])
    (copy / "zarr.json").write_text(json.dumps(whole["root"]))
    with pytest.raises(SchemaError):
        store.open_cube(copy)
    with pytest.raises(SchemaError):
        gridrad_cube.inspect_target(copy)
    assert store.verify(copy)
    key = one(copy, "_build/manifest/*")
    body = json.dumps(value).encode()
    key.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
    store.verify(copy)


def test_a_reader_follows_a_store_that_grows_and_refuses_one_that_is_flagged_again(cube, sources, tmp_path):
    early, path = tmp_path / "early", tmp_path / "p.zarr"
    for source in sorted(sources.rglob("*.nc"))[:2]:
        target = early / source.relative_to(sources)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    pipeline.preprocess(early, path, recipe=RECIPE)
    opened = store.open_cube(path)
    expected = flags_of(opened)
    latitude = opened["latitude"].values
    again, third = store.open_cube(path), store.open_cube(path)
    pipeline.preprocess(sources, path, recipe=RECIPE)
    assert store.open_cube(path).sizes["crop"] == 4
    assert flags_of(again) == expected
    np.testing.assert_array_equal(again["latitude"].values, latitude)
    assert again[IR][1].shape == (64, 96)
    later = store.open_cube(path)
    pipeline.reflag(path, STRICT)
    pipeline.reflag(path, QualitySpec(max_deviation_factor=1.0))
    for stale in (third, later):
        with pytest.raises(SchemaError, match="changed since it was opened"):
            flags_of(stale)
    assert {p.name[0] for p in (path / f"{IR}_flags").iterdir()} == {"c", "z"}


def test_a_lost_record_never_loses_what_is_committed(cube, copy, sources, tmp_path):
    one(copy, "_build/log/*").unlink()
    some = sorted(sources.rglob("*.nc"))[:3]
    with pytest.raises(SchemaError, match="records of 1 sources are missing from _build/log"):
        pipeline.preprocess(some, copy, recipe=RECIPE)
    with pytest.raises(SchemaError, match="are missing from _build/log"):
        pipeline.reflag(copy, STRICT)
    assert contents(copy) == contents(cube)
    pipeline.preprocess(sources, copy, recipe=RECIPE)
    assert store.verify(copy) == []
    assert contents(copy) == contents(cube)


def test_a_store_of_an_earlier_version_is_verified_and_extended(cube, copy, sources, caplog):
    for folder in ("manifest", "plan_copy"):
        shutil.rmtree(copy / "_build" / folder)
    root = json.loads((copy / "zarr.json").read_text())
    del root["attributes"]["gridrad_cube"]["checksum"]
    (copy / "zarr.json").write_text(json.dumps(root))
    with caplog.at_level(logging.WARNING):
        assert store.verify(copy) == []
    assert [r.getMessage().count("written by an earlier version") for r in caplog.records] == [1]
    one(copy, "longitude/c.*").unlink()
    assert [d.key for d in store.verify(copy)] == ["longitude"]
    pipeline.repair(copy, sources)
    assert store.verify(copy) == []
    assert contents(copy) == contents(cube)


def test_a_part_that_xarray_saved_opens(cube, tmp_path):
    """Xarray leaves chunks out that hold nothing but fill, under the attributes of the whole store."""
    embed(cube, out=tmp_path / "e.zarr", model="descriptor", coarsen=1)
    part = xr.open_zarr(tmp_path / "e.zarr", chunks=None).isel(crop=[0, 2])
    part["flags"][:] = 0
    part.to_zarr(tmp_path / "part.zarr")
    assert not (tmp_path / "part.zarr" / "flags" / "c").exists()
    for saved in (part, store.open_embeddings(tmp_path / "e.zarr").isel(crop=[0, 2])):
        saved.to_zarr(tmp_path / "part.zarr", mode="w")
        opened = store.open_embeddings(tmp_path / "part.zarr")
        np.testing.assert_array_equal(opened["embedding"].values, part["embedding"].values)
        assert not opened["flags"].values.any() or saved is not part
