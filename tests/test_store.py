"""The cube on disk: bytes, arrays, the build log, opening, reading, damage."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gridrad_cube import store
from gridrad_cube.schema import CHANNELS, Flag, Packing, Recipe, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store import ArraySpec


def make_layout(**options):
    channel = CHANNELS["ir_brightness_temperature"]
    channels = {
        channel.name: store.ChannelLayout(
            name=channel.name, packing=channel.packing, attributes=channel.attributes()
        )
    }
    values = {"channels": channels, "crop": (32, 48), "patch": 16, "codec": "fast", "rows_per_chunk": 4,
              "coordinates": tuple(n for n in store.COORDINATES if n != "satellite_zenith_angle")}  # fmt: skip
    return store.CubeLayout(**{**values, **options})


def make_entry(row, **options):
    values = {"source": f"a/{row}.nc", "size": 10, "mtime_ns": 1, "time": 1_600_000_000 + 600 * row, "grid": "g",
              "shape": (30, 40), "product": "p", "format": "cf", "channels": ("ir_brightness_temperature",),
              "windows": ((0, 0),), "row": row}  # fmt: skip
    return store.Entry(**{**values, **options})


def codes_of(row, shape=(32, 48)):
    return (20000 + np.arange(np.prod(shape)).reshape(shape) % 5000 + row).astype(np.uint16)


def write_entry(build, entry):
    layout, files = build.layout, build.files
    rows = store.blank_rows(layout, 1)
    values = {
        "latitude": 40.0 + entry.row, "longitude": -90.0, "solar_zenith_angle": 30, "observation_time": entry.time + 1,
        "ir_brightness_temperature_flags": 0,
        **{f"ir_brightness_temperature_{s}": 0.5 for s in ("valid_fraction", "mean", "std", "minimum", "maximum")},
    }  # fmt: skip
    for name, value in values.items():
        rows[name] = value
    store.write_grid(files, entry.grid, 40 - np.arange(30) / 56, -90 + np.arange(40) / 56)
    shards = store.write_crop(files, layout, entry.row, {"ir_brightness_temperature": codes_of(entry.row)})
    build.record(
        store.Record(
            source=entry.source, status="written", size=entry.size, mtime_ns=entry.mtime_ns,
            shards={name: [shard] for name, shard in shards.items()}, values=store.pack_rows(rows),
        )
    )  # fmt: skip


def finish(build):
    commit = store.Commit(build.files)
    for rows in store.blocks(build):
        store.write_block(commit, build, rows, store.gather(build, rows))
    attributes = {"gridrad_cube": {
        "channels": {n: c.to_dict() for n, c in build.layout.channels.items()}, "crop": list(build.layout.crop),
        "patch": build.layout.patch, "identity": build.identity(),
    }}  # fmt: skip
    store.finish(commit, build, attributes)


@pytest.fixture
def cube(tmp_path):
    """A finished store of three crops; the middle one was never written."""
    build = store.Build(tmp_path / "patches.zarr")
    entries = [make_entry(i) for i in range(3)]
    build.begin(Recipe(), make_layout(), entries)
    for entry in (entries[2], entries[0]):
        write_entry(build, entry)
    build.record(store.Record(source=entries[1].source, status="failed", reason="no disk"))
    finish(build)
    return tmp_path / "patches.zarr"


@settings(max_examples=10, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32", "float64"]),
    codec=st.sampled_from(["fast", "small", "raw"]),
    levels=st.sampled_from([(), (3,)]),
    seed=st.integers(0, 99),
    empty=st.booleans(),
)
def test_encode_gives_shards_that_zarr_reads_back(tmp_path_factory, dtype, codec, levels, seed, empty):
    shape = (1, *levels, 8, 12)
    spec = ArraySpec(name="v", dims=("crop", *("altitude" for _ in levels), "y", "x"),
                     shape=(2, *shape[1:]), dtype=dtype, codec=codec, shards=shape, fill_value=0,
                     chunks=(1, *(1 for _ in levels), 4, 4))  # fmt: skip
    values = np.random.default_rng(seed).integers(0, 100 if dtype == "uint8" else 30000, shape).astype(dtype)
    values *= not empty
    files = Files(tmp_path_factory.mktemp("z"))
    files.write(spec.key(1), store.encode(spec, values))
    store.write_root(files, {"v": spec}, {})
    opened = xr.open_zarr(files.root, chunks=None)["v"]
    np.testing.assert_array_equal(opened[1].values, values[0])
    assert (opened[0].values == 0).all()


@pytest.mark.parametrize("codec", ["fast", "small", "raw"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "string"])
def test_encode_gives_the_chunks_that_zarr_gives(tmp_path, codec, dtype):
    spec = ArraySpec(name="v", dims=("crop", "row"), shape=(8, 5), dtype=dtype, chunks=(4, 5), codec=codec,
                     fill_value="" if dtype == "string" else 0)  # fmt: skip
    values = np.arange(20).reshape(4, 5).astype(dtype if dtype != "string" else object)
    values = (
        values if dtype != "string" else np.vectorize("scene {} \N{DEGREE SIGN}".format, otypes="O")(values)
    )
    files = Files(tmp_path)
    store.write_root(files, {"v": spec}, {})
    zarr.open_array(tmp_path, path="v", mode="r+")[:4] = values
    assert store.encode(spec, values) == files.read("v/c.0.0")


@pytest.mark.parametrize("codec", ["fast", "small", "raw"])
def test_encode_gives_the_chunks_of_a_shard_that_zarr_gives(tmp_path, codec):
    spec = ArraySpec(name="v", dims=("crop", "y", "x"), shape=(1, 192, 128), dtype="uint16", chunks=(1, 64, 64),
                     shards=(1, 192, 128), codec=codec)  # fmt: skip
    values = (np.arange(192 * 128).reshape(1, 192, 128) ** 2 % 40000).astype("uint16")
    files = Files(tmp_path)
    store.write_root(files, {"v": spec}, {})
    zarr.open_array(tmp_path, path="v", mode="r+")[...] = values
    ours, theirs = store.encode(spec, values), files.read("v/c.0.0.0")
    assert len(ours) == len(theirs)

    def chunks(shard):
        index = np.frombuffer(shard[-6 * 16 - 4 : -4], "<u8").reshape(6, 2).tolist()
        return [shard[offset : offset + size] for offset, size in index]

    assert chunks(ours) == chunks(theirs)  # zarr lays them in another order
    assert b"".join(chunks(ours)) == ours[: -6 * 16 - 4]


def test_cube_keeps_packed_values_bit_for_bit(cube):
    packed = store.open_packed(cube)
    for row in (0, 2):
        np.testing.assert_array_equal(packed["ir_brightness_temperature"][row].values, codes_of(row))
    np.testing.assert_allclose(
        store.open_cube(cube)["ir_brightness_temperature"][2].values,
        codes_of(2) * np.float32(0.01),
        rtol=1e-6,
    )


def test_cube_opens_with_plain_xarray_and_carries_cf_attributes(cube):
    plain = xr.open_zarr(cube, chunks=None)
    field = plain["ir_brightness_temperature"]
    assert field.dims == ("crop", "y", "x")
    assert field.attrs["standard_name"] == "toa_brightness_temperature"
    assert field.attrs["units"] == "K"
    np.testing.assert_allclose(field[0].values, codes_of(0) * 0.01)
    assert np.isnan(field[1].values).all()  # never written: fill, and the status says so
    assert plain["status"].values.tolist() == [0, 2, 0]
    flags = plain["ir_brightness_temperature_flags"]
    assert flags.attrs["standard_name"] == "quality_flag"
    assert "_FillValue" not in flags.attrs
    assert (flags[1].values == Flag.unreadable).all()
    assert plain["time"].values[0] == np.datetime64(1_600_000_000, "s")
    assert plain["source"].values.tolist() == ["a/0.nc", "a/1.nc", "a/2.nc"]
    grid = xr.open_zarr(cube, group="grids/g", chunks=None)
    assert grid["latitude"].dims == ("scene_y",)
    tree = xr.open_datatree(cube, engine="zarr", chunks=None)
    assert "grids" in tree


def test_cube_opens_lazily_without_dask(cube):
    opened = store.open_cube(cube)
    assert opened["ir_brightness_temperature"].chunks is None
    assert not opened["ir_brightness_temperature"].variable._in_memory
    assert opened["ir_brightness_temperature"].dtype == np.float32
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(
        again["ir_brightness_temperature"][0].values, opened["ir_brightness_temperature"][0].values
    )


@pytest.mark.parametrize("opens", [store.open_cube, store.open_packed])
@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_what_is_opened_can_be_saved_and_opened_again(cube, tmp_path, opens, kind):
    part = opens(cube).isel(crop=[2], y=slice(0, 16), row=[0])
    assert all(isinstance(value, str | int | float) for value in part.attrs.values())
    assert "solar_zenith_angle_maximum" in part.coords
    if kind == "netcdf":
        part.to_netcdf(tmp_path / "part.nc")
        again = xr.open_dataset(tmp_path / "part.nc", mask_and_scale=opens is not store.open_packed)
    else:
        part.to_zarr(tmp_path / "part.zarr", consolidated=False)
        again = xr.open_zarr(
            tmp_path / "part.zarr", chunks=None, mask_and_scale=opens is not store.open_packed
        )
    xr.testing.assert_equal(again.load(), part.load())
    assert store.store_info(again) == store.store_info(part) == store.store_info(cube)
    assert store.store_info(xr.open_zarr(cube, chunks=None), "patches") == store.store_info(cube)
    with pytest.raises(SchemaError, match="has no attribute gridrad_cube; expected a store"):
        store.store_info(part.drop_attrs())
    with pytest.raises(SchemaError, match="holds patches, but this needs an embedding store"):
        store.store_info(again, "embeddings")


@pytest.mark.parametrize(
    ("chunks", "crops", "rows"),
    [("auto", (3,), (32,)), (2, (2, 1), (32,)), ({"y": 16}, (1, 1, 1), (16, 16)), ({}, (1, 1, 1), (32,))],
)
def test_chunks_are_whole_crops_unless_asked_otherwise(cube, tmp_path, chunks, crops, rows):
    opened = store.open_cube(cube, chunks=chunks)
    assert opened["ir_brightness_temperature"].chunks == (crops, rows, (48,))
    assert opened["ir_brightness_temperature_flags"].chunks[0] == crops
    assert opened["latitude"].chunks is None
    part = opened.isel(crop=[0, 2])
    part.to_zarr(tmp_path / "part.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "part.zarr", chunks=None)
    xr.testing.assert_equal(again.load(), store.open_cube(cube).isel(crop=[0, 2]).load())
    with pytest.raises(ValueError, match="chunks: got 'some'"):
        store.open_cube(cube, chunks="some")


_FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
import numpy as np
from gridrad_cube.store import PatchReader
readers = [PatchReader(sys.argv[1]) for _ in range(40)]
index = np.array([[0, 0, 0], [2, 0, 0]])
for reader in readers:
    assert reader.read("ir_brightness_temperature", index).any()
"""


def test_open_shards_of_all_readers_together_are_few(cube):
    subprocess.run([sys.executable, "-c", _FEW_FILES, str(cube)], check=True, timeout=60)


def test_reader_gives_patches_in_the_order_asked(cube):
    reader = store.PatchReader(cube)
    index = np.array([[2, 1, 2], [0, 0, 0], [2, 0, 1]])
    patches = reader.read("ir_brightness_temperature", index)
    for (crop, row, col), patch in zip(index, patches, strict=True):
        np.testing.assert_array_equal(
            patch, codes_of(crop)[row * 16 : row * 16 + 16, col * 16 : col * 16 + 16]
        )
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read("ir_brightness_temperature", index), patches)
    whole = reader.read_window("ir_brightness_temperature", (2, slice(None), slice(None)))
    np.testing.assert_array_equal(whole, codes_of(2))


def test_reader_names_a_missing_shard(cube):
    with pytest.raises(
        store.MissingChunkError, match="ir_brightness_temperature at crop 1, row 0, col 2 is missing"
    ):
        store.PatchReader(cube).read("ir_brightness_temperature", np.array([[1, 0, 2]]))


def test_reader_refuses_a_flipped_bit(cube):
    path = cube / "ir_brightness_temperature" / "c.0.0.0"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(store.MissingChunkError, match="crop 0, row 0, col 0 cannot be read"):
        store.PatchReader(cube).read("ir_brightness_temperature", np.array([[0, 0, 0]]))
    damages = store.verify(cube)
    assert [(d.row, d.what) for d in damages] == [(0, "altered (checksum differs)")]


def test_reader_names_the_channels_there_are(cube):
    with pytest.raises(SchemaError, match=r"no channel 'reflectivity'; this store has \['ir_bright"):
        store.PatchReader(cube).read("reflectivity", np.zeros((1, 3), int))


def _read_in_child(reader, queue):
    try:
        reader.read("ir_brightness_temperature", np.array([[0, 0, 0]]))
        queue.put("read")
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.parametrize(
    ("method", "expected"), [("fork", "opened before the process forked"), ("spawn", "read")]
)
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_reader_in_a_child_reads_or_refuses(cube, method, expected):
    reader = store.PatchReader(cube)
    reader.read("ir_brightness_temperature", np.array([[0, 0, 0]]))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(reader, queue))
    child.start()
    assert expected in queue.get(timeout=50)
    child.join(10)


def test_verify_finds_missing_and_truncated_shards(cube):
    assert store.verify(cube) == []
    folder = cube / "ir_brightness_temperature"
    (folder / "c.0.0.0").unlink()
    (folder / "c.2.0.0").write_bytes((folder / "c.2.0.0").read_bytes()[:100])
    assert [d.what.split(" ")[0] for d in store.verify(cube)] == ["missing", "truncated"]


def test_store_info_says_what_is_wrong(tmp_path, cube):
    with pytest.raises(FileNotFoundError, match="no such store"):
        store.open_cube(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SchemaError, match="not a Zarr v3 store"):
        store.open_cube(tmp_path / "folder")
    xr.Dataset({"a": ("x", [1])}).to_zarr(tmp_path / "foreign.zarr")
    with pytest.raises(
        SchemaError, match="has no attribute gridrad_cube; expected a store that gridrad-cube wrote"
    ):
        store.open_cube(tmp_path / "foreign.zarr")
    with pytest.raises(SchemaError, match="holds patches, but this needs an embedding store"):
        store.open_embeddings(cube)
    build = store.Build(tmp_path / "half.zarr")
    build.begin(Recipe(), make_layout(), [make_entry(0)])
    with pytest.raises(SchemaError, match="not finished"):
        store.open_cube(tmp_path / "half.zarr")
    root = json.loads((cube / "zarr.json").read_text())
    root["attributes"]["gridrad_cube"]["format_version"] = 99
    (cube / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(SchemaError, match=r"newer gridrad-cube \(format 99"):
        store.open_cube(cube)


@pytest.mark.parametrize(
    "cut", [1, 20, 10_000], ids=["in the values", "in the values' middle", "in the line"]
)
def test_build_log_survives_half_a_record(tmp_path, cut):
    build = store.Build(tmp_path)
    entries = [make_entry(0), make_entry(1)]
    build.begin(Recipe(), make_layout(), entries)
    for entry in entries:
        write_entry(build, entry)
    log = next((tmp_path / "_build" / "log").iterdir())
    data = log.read_bytes()
    second = data.index(b'{"source": "a/1.nc"')
    log.write_bytes(data[: max(len(data) - cut, second + 7)])
    again = store.Build(tmp_path)
    assert [again.is_written(number) for number in (0, 1)] == [True, False]
    assert again.entries == entries
    write_entry(again, entries[1])
    assert store.Build(tmp_path).identity() == build.identity()


def test_build_notices_lost_and_cut_shards(tmp_path):
    build = store.Build(tmp_path)
    entries = [make_entry(row) for row in range(3)]
    build.begin(Recipe(), make_layout(), entries)
    for entry in entries:
        write_entry(build, entry)
    assert all(shard.found == shard.size for shard in build.shards())
    (tmp_path / "ir_brightness_temperature" / "c.0.0.0").unlink()
    cut = tmp_path / "ir_brightness_temperature" / "c.2.0.0"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert {shard.row for shard in build.shards() if shard.found != shard.size} == {0, 2}


def test_build_of_an_older_log_is_refused_and_its_store_still_read(cube):
    plan = cube / "_build" / "plan" / "0000.jsonl"
    plan.write_text(plan.read_text().replace('"format": 2', '"format": 1', 1))
    for folder in ("plan_copy", "manifest"):  # which such stores do not have
        shutil.rmtree(cube / "_build" / folder)
    assert store.open_cube(cube).sizes["crop"] == 3
    with pytest.raises(SchemaError, match=r"its build log has format 1.*build it again"):
        store.Build(cube)


def test_damaged_values_in_the_log_are_named(tmp_path):
    build = store.Build(tmp_path)
    build.begin(Recipe(), make_layout(), [make_entry(0)])
    write_entry(build, make_entry(0))
    log = next((tmp_path / "_build" / "log").iterdir())
    log.write_bytes(log.read_bytes()[:-1] + b"?")
    with pytest.raises(SchemaError, match=r"the record at byte [0-9]+ is damaged"):
        store.gather(store.Build(tmp_path), range(1))


def test_last_record_of_a_source_counts(tmp_path):
    build = store.Build(tmp_path)
    build.begin(Recipe(), make_layout(), [make_entry(0), make_entry(1)])
    write_entry(build, make_entry(1))
    build.record(store.Record(source="a/0.nc", status="failed", reason="no disk"))
    build.record(store.Record(source="b.nc", status="failed", reason="not planned"))
    for seen in (build, store.Build(tmp_path)):
        assert (seen.records[0].status, seen.records[0].reason, seen.written) == ("failed", "no disk", 1)
        assert seen.refused["b.nc"].reason == "not planned"
    before = build.state()
    write_entry(build, make_entry(0))
    again = store.Build(tmp_path)
    assert (again.records[0].status, again.records[0].reason, again.written) == ("written", "", 2)
    assert again.state() == build.state() != before


def test_lease_refuses_a_second_writer_and_takes_over_from_a_dead_one(tmp_path):
    build = store.Build(tmp_path)
    expected = pytest.raises(SchemaError, match=f"another process writes here .*process {os.getpid()}")
    with build.lease(), expected, store.Build(tmp_path).lease():
        pass
    lease = tmp_path / "_build" / "lease.json"
    assert not lease.exists()
    # As earlier versions wrote them: a process that is gone, and numbers that none can have.
    for pid in (2**22 - 1, None, 2**70, "7", -1):
        lease.parent.mkdir(exist_ok=True)
        lease.write_text(json.dumps({"host": os.uname().nodename, "pid": pid, "since": 0}))
        with build.lease():
            assert json.loads(lease.read_text())["pid"] == os.getpid()
    lease.parent.mkdir(exist_ok=True)
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": 0}))
    with pytest.raises(SchemaError, match="elsewhere"), build.lease():
        pass


def test_check_duplicates_names_both_files():
    twice = [make_entry(0), make_entry(1, time=make_entry(0).time)]
    with pytest.raises(SchemaError, match=r"a/1.nc: the same time, grid, window and product as a/0.nc"):
        store.check_duplicates([], twice)
    with pytest.raises(SchemaError, match=r"a/1.nc: the same time, grid, window and product as a/0.nc"):
        store.check_duplicates(twice[:1], twice[1:])
    store.check_duplicates(twice[:1], [make_entry(1)])


def test_extending_changes_no_chunk_of_full_blocks(tmp_path):
    build = store.Build(tmp_path)
    entries = [make_entry(i) for i in range(5)]
    build.begin(Recipe(), make_layout(), entries)
    for entry in entries:
        write_entry(build, entry)
    finish(build)
    before = {p: p.read_bytes() for p in tmp_path.glob("[!r]*/c.0*")}
    shape = xr.open_zarr(tmp_path, chunks=None).sizes["crop"]
    more = store.Build(tmp_path)
    more.extend([make_entry(5), make_entry(6)])
    for row in (5, 6):
        write_entry(more, make_entry(row))
    assert xr.open_zarr(tmp_path, chunks=None).sizes["crop"] == shape == 5
    finish(more)
    assert xr.open_zarr(tmp_path, chunks=None).sizes["crop"] == 7
    assert len(before) > 12
    assert all(p.read_bytes() == data for p, data in before.items())


def test_layout_and_entry_survive_json():
    layout = make_layout()
    assert store.CubeLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_identity_follows_content(cube):
    build = store.Build(cube)
    first = build.identity()
    changed = {"ir_brightness_temperature": [(int(build.shard_bytes[0, 0]), int(build.shard_crc[0, 0]) ^ 1)]}
    build.record(dataclasses.replace(build.records[0], shards=changed, values=build.values(0)))
    assert build.identity() != first


def test_packing_of_every_channel_survives_attributes():
    for channel in CHANNELS.values():
        attributes = json.loads(json.dumps(channel.packing.to_attributes()))
        assert Packing.from_attributes(attributes, channel.packing.dtype) == channel.packing


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_created_object_appears_whole_and_once(tmp_path, monkeypatch, links):
    if not links:

        def refuses(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuses)
    files = Files(tmp_path)
    assert files.create("a/lease.json", b"mine")
    assert not files.create("a/lease.json", b"yours")
    assert files.read("a/lease.json") == b"mine"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["lease.json"]


def test_a_summary_says_what_a_store_holds_and_escapes_it(cube):
    facts = store.describe(store.open_packed(cube))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["kind"], facts["crops"]) == ("cube of patches", "2 written, 1 failed, 66.7% complete")
    assert facts["patches"] == "2 x 3 of 16 px a crop"
    assert facts["variables"] == {"ir_brightness_temperature": "3 crop x 32 y x 48 x, uint16, K, 0.0 MiB"}
    assert facts["flags"] == {"ir_brightness_temperature": "no flag 66.7%, unreadable 33.3%"}
    assert "crops: 2 written, 1 failed" in store.as_text(facts)
    part = store.open_cube(cube).isel(crop=[0]).rename(ir_brightness_temperature="<script>")
    assert "<script>" not in store.as_html(store.describe(part))
    assert store.describe(part.isel(crop=0))["kind"] == "an answer or a part of a store"
