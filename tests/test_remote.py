"""Stores and source files on s3:// and http:// (server processes on loopback) and memory://."""

from __future__ import annotations

import functools
import http.server
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pytest
import xarray as xr
from embedding_data import checkpoint_of
from small_data import write_sources
from test_readme import blocks

from gridrad_cube import cli, lease, pipeline, query, readers, store
from gridrad_cube.datasets import PatchDataset, PatchLoader
from gridrad_cube.embedding import embed
from gridrad_cube.schema import Recipe, SchemaError, TileSpec
from gridrad_cube.sources import remove_copies
from gridrad_cube.storage import Files, RemoteError

pytestmark = pytest.mark.timeout(120)

RECIPE = Recipe(tile=TileSpec(patch=32))
IR = "ir_brightness_temperature"
SECRET = "never-to-be-shown"


def request(address, *, method="GET", data=None):
    """One request to the server."""
    headers = {"Content-Type": "text/plain"}
    call = urllib.request.Request(address, method=method, data=data, headers=headers)
    with urllib.request.urlopen(call, timeout=10) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def server():
    """Address of a server that speaks S3, in a separate process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < until, "the server did not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", autouse=True)
def environment(server):
    """What a user sets, and nothing of the machine's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", server)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield


@pytest.fixture(scope="module")
def bucket(server):
    request(f"{server}/cubes", method="PUT")
    return "s3://cubes"


@pytest.fixture
def place(bucket):
    """A URL where nothing is yet."""
    return f"{bucket}/{uuid.uuid4().hex}/patches.zarr"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Five small files of two channels."""
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, scenes=5, shape=(70, 100), start="2021-07-05T17:00", interval="10min")
    return folder


@pytest.fixture(scope="module")
def local(sources, tmp_path_factory):
    """The cube of all of them on a local disk."""
    path = tmp_path_factory.mktemp("local") / "patches.zarr"
    pipeline.preprocess(sources, path, recipe=RECIPE)
    return path


@pytest.fixture(scope="module")
def cube(sources, bucket):
    """The same cube on s3; nobody changes it."""
    url = f"{bucket}/cube/patches.zarr"
    report = pipeline.preprocess(sources, url, recipe=RECIPE)
    assert report.count("written") == 5
    return url


def contents(root):
    """Every object of a finished store outside ``_build/``, the time of the run left out."""
    files, folders, out = Files(root), [""], {}
    while folders:
        folder = folders.pop()
        for name in files.names(folder):
            key = f"{folder}/{name}" if folder else name
            if name in files.sizes(folder):
                out[key] = files.read(key)
            elif key != "_build":
                folders.append(key)
    metadata = json.loads(out["zarr.json"])
    del metadata["attributes"]["history"]
    return out | {"zarr.json": metadata}


def shards(root):
    return sorted(k for k in contents(root) if k.startswith((f"{IR}/c.", "visible_reflectance/c.")))


def stop_at(patch, number, act):
    """Call ``act`` in place of the n-th writing of a shard."""
    kind = type(Files("s3://any"))
    write, count = kind.write, iter(range(1, 1000))

    def interrupted(files, key, data):
        if key.startswith((f"{IR}/c.", "visible_reflectance/c.")) and next(count) == number:
            act()
        write(files, key, data)

    patch.setattr(kind, "write", interrupted)


# Objects


@pytest.mark.parametrize("kind", ["disk", "memory", "s3"])
def test_objects_are_the_same_everywhere(kind, tmp_path, bucket):
    root = {
        "disk": str(tmp_path / "a b"),
        "memory": f"memory://{uuid.uuid4().hex}/a b",
        "s3": f"{bucket}/o/a %20#b",
    }
    files, data = Files(root[kind]), bytes(range(250)) * 10
    assert not files.exists()
    assert (files.names(), files.sizes("a"), files.size("a/b")) == ([], {}, None)
    assert files.create("a/b", data)
    assert not files.create("a/b", b"other")
    files.write("a/empty", b"")
    files.write("a/deep/er", b"12")
    files.write("top", b"1")
    assert files.exists()
    assert files.exists("a")
    assert files.exists("a/b")
    assert not files.exists("a/c")
    assert files.names() == ["a", "top"]
    assert files.names("a") == ["b", "deep", "empty"]
    assert files.sizes("a") == {"b": 2500, "empty": 0}
    assert files.size("a/b") == 2500
    assert files.read("a/b") == data
    for size in (4, 2500, 9000):
        assert files.read_tail("a/b", size) == data[-size:]
        assert files.read_tail("a/empty", size) == b""
    for ranges in (
        [(2000, 2499), (10, 20), (0, 3), (12, 15), (2400, 9000)],
        [(5, 9), (3000, 3001), (10**7, 10**7 + 2)],
    ):
        assert files.read_ranges("a/b", ranges) == [data[a:b] for a, b in ranges]
    for read in (files.read, lambda k: files.read_tail(k, 3), lambda k: files.read_ranges(k, [(0, 1)])):
        with pytest.raises(FileNotFoundError, match="absent"):
            read("a/absent")
    files.remove("a/b")
    files.remove("a/b")
    assert files.size("a/b") is None


def test_ranges_that_lie_far_apart(bucket):
    files = Files(f"{bucket}/wide")
    data = np.random.default_rng(0).bytes(6_000_000)
    files.write("object", data)
    ranges = [(5_000_000, 5_000_100), (0, 10), (1_500_000, 3_000_000), (5_999_990, 7_000_000), (20, 30)]
    assert files.read_ranges("object", ranges) == [data[a:b] for a, b in ranges]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_of_many_that_create_one_wins(kind, bucket):
    root = f"memory://{uuid.uuid4().hex}" if kind == "memory" else f"{bucket}/{uuid.uuid4().hex}"
    writers = [str(i).encode() for i in range(8)]
    ready = threading.Barrier(len(writers))

    def create(data):
        files = Files(root)
        ready.wait(30)
        return files.create("lease", data)

    with ThreadPoolExecutor(len(writers)) as pool:
        won = list(pool.map(create, writers))
    assert sum(won) == 1
    assert Files(root).read("lease") == writers[won.index(True)]


# Building


def test_a_cube_on_s3_is_the_local_cube(local, cube):
    assert contents(cube) == contents(local)
    assert store.verify(cube) == []


def test_two_workers_read_and_write_s3(archive, local, place, scratch, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(scratch))
    report = pipeline.preprocess(archive, place, recipe=RECIPE, workers=2)
    assert report.count("written") == 5
    assert contents(place) == contents(local)
    assert [path for path in scratch.iterdir() if path.name.startswith("gridrad_cube")] == []


def test_an_interrupted_build_goes_on(sources, local, place, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        stop_at(patch, 6, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.preprocess(sources, place, recipe=RECIPE)
    with pytest.raises(SchemaError, match="not finished"):
        store.open_cube(place)
    report = pipeline.preprocess(sources, place, recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (2, 3)
    assert contents(place) == contents(local)


_KILLED = """
import os, signal, sys
import pytest
from test_remote import RECIPE, stop_at
from gridrad_cube import pipeline
from gridrad_cube.pipeline import run
from gridrad_cube.store import log
run._ISOLATES = False  # so that the build runs in this process
log._RECORDS_AN_OBJECT = 2
stop_at(pytest.MonkeyPatch(), 6, lambda: os.kill(os.getpid(), signal.SIGKILL))
pipeline.preprocess(sys.argv[1], sys.argv[2], recipe=RECIPE)
"""


def test_a_killed_build_leaves_a_lease_that_is_taken_over(sources, local, place, monkeypatch):
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", _KILLED, str(sources), place]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": here}, timeout=90, check=False)
    assert killed.returncode == -signal.SIGKILL
    files, key = Files(place), "_build/lease.json"
    # As a process of another machine that touches its lease, and then as one that has stopped to.
    files.write(key, json.dumps(files.read_json(key) | {"boot": "another"}).encode())
    monkeypatch.setattr(lease, "_PATIENCE", 3.0)
    ended = threading.Event()

    def touch():
        while not ended.wait(0.3):
            files.write(key, files.read(key))

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(SchemaError, match=rf"since \d{{4}}-.* UTC, 0 h 0\d min ago.*remove {place}/{key}"):
        pipeline.preprocess(sources, place, recipe=RECIPE)
    ended.set()
    thread.join()
    report = pipeline.preprocess(sources, place, recipe=RECIPE)
    assert (report.count("kept"), report.count("written")) == (2, 3)
    assert contents(place) == contents(local)


def test_a_store_grows(sources, local, place, tmp_path):
    paths = sorted(sources.rglob("*.nc"))
    for path in paths[:3]:
        target = tmp_path / path.relative_to(sources)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    pipeline.preprocess(tmp_path, place, recipe=RECIPE)
    before = contents(place)
    report = pipeline.preprocess(sources, place)
    assert (report.count("kept"), report.count("written")) == (3, 2)
    after = contents(place)
    assert all(
        after[k] == before[k]
        for k in before
        if "/c." in k and k.startswith((f"{IR}/", "visible_reflectance/"))
    )
    assert set(after) == set(contents(local))
    np.testing.assert_array_equal(store.open_packed(place)[IR].values, store.open_packed(local)[IR].values)


def test_damage_is_found_and_mended_and_nothing_else_touched(sources, local, place):
    pipeline.preprocess(sources, place, recipe=RECIPE)
    files = Files(place)
    deleted, cut, altered, *_ = shards(place)
    whole = {key: files.read(key) for key in (cut, altered)}
    files.remove(deleted)
    files.write(cut, whole[cut][:-100])
    flipped = bytearray(whole[altered])
    flipped[50] ^= 1
    files.write(altered, bytes(flipped))
    found = {d.key: d.what for d in store.verify(place)}
    assert set(found) == {deleted, cut, altered}
    assert "missing" in found[deleted]
    assert "truncated" in found[cut]
    assert "altered" in found[altered]
    outcomes = pipeline.repair(place, sources)
    assert [o.status for o in outcomes] == ["written"] * 3
    assert store.verify(place) == []
    assert contents(place) == contents(local)


def test_a_second_writer_is_refused(sources, place):
    build = store.Build(place)
    with build.lease():
        with pytest.raises(
            SchemaError, match=rf"another process writes here.*{socket.gethostname()}.*{os.getpid()}"
        ):
            pipeline.preprocess(sources, place, recipe=RECIPE)
        assert Files(place).names() == ["_build"]
    assert not Files(place).exists()


def test_a_lease_whose_answer_was_lost_is_held(place, monkeypatch):
    """The server got the put, the answer was lost, and the client's second try finds the object there."""
    kind = type(Files(place))
    create = kind.create
    monkeypatch.setattr(kind, "create", lambda *a: create(*a) and False)
    with store.Build(place).lease():
        assert Files(place).exists("_build/lease.json")
    assert not Files(place).exists("_build/lease.json")


def test_a_server_that_overlooks_conditions_is_found_out(sources, place, monkeypatch):
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda place, key, data, mode=None: put(place, key, data))
    with pytest.raises(RemoteError, match="conditional writes"):
        pipeline.preprocess(sources, place, recipe=RECIPE)
    assert not Files(place).exists()


# Reading


def test_plain_xarray_opens_it(cube, local):
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    bucket, _, prefix = cube.removeprefix("s3://").partition("/")
    with xr.open_zarr(ObjectStore(S3Store(bucket, prefix=prefix), read_only=True), chunks=None) as opened:
        xr.testing.assert_equal(opened.load(), xr.open_zarr(local, chunks=None).load())


def test_a_cube_opens_alike(cube, local):
    remote, near = store.open_cube(cube), store.open_cube(local)
    xr.testing.assert_equal(remote.load(), near.load())
    grid = str(near["grid"].values[0])
    xr.testing.assert_equal(store.open_grid(cube, grid).load(), store.open_grid(local, grid).load())
    xr.testing.assert_equal(query.crop(remote, 2).load(), query.crop(near, 2).load())
    assert SECRET not in repr(remote.attrs) + repr(remote.encoding)


INDEX = np.array([[0, 0, 0], [4, 2, 1], [2, 1, 2], [0, 0, 0], [4, 0, 3]])


def read_elsewhere(reader, queue):
    queue.put(reader.read(IR, INDEX))


def test_patches_in_this_process_and_in_a_spawned_one(cube, local):
    expected = store.PatchReader(local).read(IR, INDEX)
    reader = store.PatchReader(cube)
    np.testing.assert_array_equal(reader.read(IR, INDEX), expected)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=read_elsewhere, args=(reader, queue))
    child.start()
    try:
        np.testing.assert_array_equal(queue.get(timeout=60), expected)
    finally:
        child.join(30)
        child.kill()


def test_a_fork_after_reading_is_refused_and_does_not_hang(cube):
    files = Files(cube)
    files.read("zarr.json")
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def read():
        try:
            sending.send(files.read("zarr.json"))
        except RuntimeError as error:
            sending.send(str(error))

    child = context.Process(target=read)
    child.start()
    try:
        assert receiving.poll(30)
        assert "spawn" in receiving.recv()
    finally:
        child.kill()
        child.join()


def test_a_damaged_shard_is_an_error_where_it_is_read(sources, place):
    pipeline.preprocess(sources, place, recipe=RECIPE)
    files = Files(place)
    deleted, cut, *_ = shards(place)
    files.remove(deleted)
    files.write(cut, files.read(cut)[:2000])
    for key in (deleted, cut):
        crop = int(key.split("/c.")[1].split(".")[0])
        with pytest.raises(store.MissingChunkError, match=rf"{place}: {IR} at crop {crop}, row 0, col 0"):
            store.PatchReader(place).read(IR, np.array([[crop, 0, 0]]))
        with pytest.raises(store.MissingChunkError):
            store.open_cube(place)[IR][crop].load()


def test_samples_are_those_of_the_local_cube(cube, local):
    remote, near = PatchDataset(cube, channels=IR), PatchDataset(local, channels=IR)
    assert len(remote) == len(near) > 10
    order = np.random.default_rng(0).permutation(len(near))[:10]
    np.testing.assert_array_equal(
        remote.__getitems__(order).codes.numpy(), near.__getitems__(order).codes.numpy()
    )


@pytest.fixture(scope="module")
def checkpoint(local, tmp_path_factory):
    """A small network with random weights, for infrared patches of 32 pixels."""
    return checkpoint_of(tmp_path_factory.mktemp("checkpoint") / "checkpoint.pth", local, channels=(IR,))


def nearest(url, crop):
    """The scenes most like one patch of an embedding store."""
    opened = store.open_embeddings(url)
    like = opened["embedding"].isel(crop=crop, channel=0, row=1, col=1)
    return query.search(opened, like, k=5, exclude=None)


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_embeddings_are_written_there_and_queried(kind, local, cube, checkpoint, place, tmp_path):
    out = place if kind == "s3" else f"memory://{uuid.uuid4().hex}.zarr"
    summary = embed(cube, checkpoint, out)
    assert summary["finished"]
    assert summary["blocks_kept"] == 0
    assert embed(cube, checkpoint, out)["blocks_kept"] == summary["blocks"]
    embed(local, checkpoint, tmp_path / "near.zarr")
    here, there = store.open_embeddings(tmp_path / "near.zarr"), store.open_embeddings(out)
    np.testing.assert_array_equal(here["embedding"].values, there["embedding"].values)
    assert store.store_info(there)["source"] == cube
    xr.testing.assert_equal(nearest(out, 3).load(), nearest(tmp_path / "near.zarr", 3).load())


# In memory


def test_a_cube_in_memory(sources, local):
    url = f"memory://{uuid.uuid4().hex}/patches.zarr"
    assert pipeline.preprocess(sources, url, recipe=RECIPE).count("written") == 5
    assert contents(url) == contents(local)
    assert store.verify(url) == []
    xr.testing.assert_equal(store.open_cube(url).load(), store.open_cube(local).load())
    xr.testing.assert_equal(xr.open_zarr(url, chunks=None).load(), xr.open_zarr(local, chunks=None).load())
    data = PatchDataset(url)
    loader = PatchLoader(data, [range(4), range(4, len(data))])
    codes = np.concatenate([batch.codes.numpy() for batch in loader])
    np.testing.assert_array_equal(codes, PatchDataset(local).__getitems__(range(len(data))).codes.numpy())


@pytest.mark.parametrize("options", [{"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}])
def test_memory_is_not_shared_with_workers(sources, options):
    with pytest.raises(SchemaError, match="this process alone"):
        pipeline.preprocess(sources, "memory://shared.zarr", recipe=RECIPE, **options)
    assert not Files("memory://shared.zarr").exists()


# Source files at URLs


def paths_of(sources):
    return sorted(sources.rglob("*.nc"))


@pytest.fixture(scope="module")
def archive(sources, bucket):
    """The source files in a bucket, beside another file."""
    files = Files(f"{bucket}/archive")
    for path in paths_of(sources):
        files.write(path.relative_to(sources).as_posix(), path.read_bytes())
    files.write("readme.txt", b"no source")
    return f"{bucket}/archive"


class _Silent(http.server.SimpleHTTPRequestHandler):
    """A web server whose answers a test may spoil: ``spoil`` says whether it has answered."""

    def log_message(self, *_):
        pass

    def spoil(self):
        return False

    def do_GET(self):
        if not self.spoil():
            super().do_GET()


@pytest.fixture
def web(sources):
    """Address of a web server of the source files, and its handler."""
    handler = type("Handler", (_Silent,), {})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=paths_of(sources)[0].parent)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The temporary folder, empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    remove_copies()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def small(store):
    """Everything that a store says in text."""
    return "".join(
        path.read_text("latin1")
        for path in Path(store).rglob("*")
        if path.is_file() and path.stat().st_size < 10**5
    )


def test_sources_in_a_bucket_give_the_cube_of_the_files(archive, sources, local, tmp_path, scratch):
    place = tmp_path / "a.zarr"
    report = pipeline.preprocess(archive, place, recipe=RECIPE)
    names = [path.relative_to(sources).as_posix() for path in paths_of(sources)]
    assert [(o.source, o.status) for o in report.outcomes] == [(name, "written") for name in names]
    assert contents(place) == contents(local)
    assert list(scratch.iterdir()) == []
    assert SECRET not in small(place)
    assert "s3://" not in small(place)
    again = pipeline.preprocess(
        [f"{archive}/{name}" for name in names], place
    )  # under the names that they have
    assert again.count("kept") == 5
    assert list(scratch.iterdir()) == []


def test_sources_of_a_web_server(web, sources, local, tmp_path, scratch):
    address, _ = web
    urls = [f"{address}/{path.name}" for path in paths_of(sources)]
    pipeline.preprocess(urls, tmp_path / "a.zarr", recipe=RECIPE)
    assert shards(tmp_path / "a.zarr") == shards(local)
    assert all(Files(tmp_path / "a.zarr").read(key) == Files(local).read(key) for key in shards(local))
    assert list(scratch.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="cannot be listed; give the URL of each file"):
        pipeline.preprocess(f"{address}/", tmp_path / "b.zarr", recipe=RECIPE)
    report = pipeline.preprocess([*urls[:1], f"{address}/none.nc"], tmp_path / "b.zarr", recipe=RECIPE)
    assert [(o.source, o.status) for o in report.outcomes][1:] == [("none.nc", "failed")]
    assert "no such object" in report.failed[0].reason


def test_a_public_bucket_is_read_without_credentials(sources, server, tmp_path, monkeypatch):
    path = paths_of(sources)[0]
    for key, data in (("public", b""), (f"public/{path.name}", path.read_bytes())):
        to_all = {"x-amz-acl": "public-read", "Content-Type": "text/plain"}
        urllib.request.urlopen(
            urllib.request.Request(f"{server}/{key}", method="PUT", data=data, headers=to_all), timeout=10
        ).close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert pipeline.preprocess("s3://public", tmp_path / "a.zarr", recipe=RECIPE).count("written") == 1


def test_an_answer_that_breaks_off_is_asked_for_again(web, sources, tmp_path):
    address, handler = web
    asked = []

    def spoil(self):
        asked.append(self.path)
        if asked.count(self.path) > 2:
            return False
        if asked.count(self.path) == 1:
            self.send_error(503)
        else:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        return True

    handler.spoil = spoil
    names = [path.name for path in paths_of(sources)][:2]
    report = pipeline.preprocess([f"{address}/{n}" for n in names], tmp_path / "a.zarr", recipe=RECIPE)
    assert report.count("written") == 2, report


def test_one_source_that_is_refused_stops_no_other(web, sources, tmp_path):
    address, handler = web
    names = [path.name for path in paths_of(sources)][:2]

    def spoil(self):
        if self.path.endswith(names[0]):
            self.send_error(403)
            return True
        return False

    handler.spoil = spoil
    report = pipeline.preprocess([f"{address}/{n}" for n in names], tmp_path / "a.zarr", recipe=RECIPE)
    assert [(o.source, o.status) for o in report.outcomes] == [(names[1], "written"), (names[0], "failed")]
    assert "access refused (403)" in report.failed[0].reason


def test_a_source_that_was_changed_is_not_the_same(bucket, sources, tmp_path):
    path = paths_of(sources)[0]
    place = Files(f"{bucket}/{uuid.uuid4().hex}")
    place.write("a.nc", path.read_bytes())
    first = place.identity("a.nc")
    place.write("a.nc", path.read_bytes()[:-1] + b"x")  # of the same size, perhaps within the same second
    assert place.identity("a.nc") != first
    assert place.identity("a.nc")[0] == first[0] == path.stat().st_size


def test_names_in_a_bucket_that_are_not_read_are_told(bucket, sources, tmp_path):
    place = Files(f"{bucket}/{uuid.uuid4().hex}")
    for name in ("in/a.nc.gz", "in/README", "in/s.zarr/zarr.json"):
        place.write(name, b"x")
    place.write("in/a.nc", paths_of(sources)[0].read_bytes())
    report = pipeline.preprocess(place.path("in"), tmp_path / "a.zarr", recipe=RECIPE)
    assert (report.count("written"), report.is_complete) == (1, False)
    assert [(o.source, o.status) for o in report.unread] == [(place.path("in/a.nc.gz"), "skipped")]
    assert report.other == (place.path("in/README"),)


def test_verify_repairs_from_a_bucket(archive, tmp_path):
    place = tmp_path / "a.zarr"
    pipeline.preprocess(archive, place, recipe=RECIPE)
    whole = contents(place)
    Files(place).remove(shards(place)[0])
    assert [o.status for o in pipeline.repair(place, archive)] == ["written"]
    assert contents(place) == whole


def test_copies_are_bounded(archive, web, sources, scratch, monkeypatch):
    address, _ = web
    sizes = {path.name: path.stat().st_size for path in paths_of(sources)}
    monkeypatch.setattr("gridrad_cube.sources._MOST_BYTES", max(sizes.values()))
    kept = []
    for name in sizes:
        readers.inspect(f"{address}/{name}")
        kept.append(sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()))
    assert 0 < max(kept) <= max(sizes.values())
    monkeypatch.setattr("gridrad_cube.sources._MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="expected at most"):
        readers.inspect(f"{address}/{next(iter(sizes))}")
    remove_copies()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@127.0.0.1/a.nc", f"https://host/a.nc?token={SECRET}", f"s3://me:{SECRET}@b/x",
        f"abfs://{SECRET}@account/x", f"S3://me:{SECRET}@b/x", f"s3:/me:{SECRET}@b/x", f" s3://me:{SECRET}@b/x",
        f"simplecache::s3://me:{SECRET}@b/x", f"file://me:{SECRET}@host/x",
    ],
)  # fmt: skip
def test_a_place_with_a_secret_in_it_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for do in (Files, store.open_cube, readers.inspect, lambda u: pipeline.preprocess(u, "a.zarr")):
        with pytest.raises(ValueError, match=r"credentials|looks like a URL") as error:
            do(url)
        one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_source_at_a_url_is_described(archive, sources, capsys, monkeypatch):
    name = paths_of(sources)[0].relative_to(sources).as_posix()
    monkeypatch.setattr(sys, "argv", ["gridrad-cube", "info", f"{archive}/{name}"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "source file" in (out := capsys.readouterr().out)
    assert f"{archive}/{name}" in out


# What a user can get wrong


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    assert SECRET not in text
    assert "somebody" not in text
    return text


def test_a_bucket_that_is_not_there(sources, bucket):
    with pytest.raises(RemoteError) as error:
        pipeline.preprocess(sources, "s3://no-such-bucket/patches.zarr", recipe=RECIPE)
    assert "no such bucket" in one_line(error)


def test_nothing_at_a_place(bucket):
    with pytest.raises(FileNotFoundError, match=r"s3://cubes/nothing: no such store"):
        store.open_cube(f"{bucket}/nothing")


def test_credentials_that_are_refused(sources, server, place):
    request(f"{server}/moto-api/reset-auth", method="POST", data=b"0")  # from now on the server checks them
    try:
        with pytest.raises(RemoteError, match="access refused") as error:
            pipeline.preprocess(sources, place, recipe=RECIPE)
    finally:
        request(f"{server}/moto-api/reset-auth", method="POST", data=b"inf")
    assert "InvalidAccessKeyId" in one_line(error)


@pytest.mark.parametrize("do", ["build", "open"])
def test_a_server_that_is_down(do, sources, place, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://somebody:" + SECRET + "@127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(RemoteError) as error:
        pipeline.preprocess(sources, place, recipe=RECIPE) if do == "build" else store.open_cube(place)
    assert "127.0.0.1:9 cannot be reached" in one_line(error)
    assert time.monotonic() - start < 20


def test_an_error_met_by_zarr_is_one_line_too(cube, monkeypatch):
    opened = store.open_cube(cube)
    monkeypatch.setattr(
        obstore, "get_async", failing_with("403 Forbidden: <Code>ExpiredToken</Code>" + SECRET)
    )
    with pytest.raises(RemoteError, match="403 ExpiredToken") as error:
        opened["latitude"].load()
    one_line(error)


def failing_with(text):
    async def fail(*args, **options):
        raise obstore.exceptions.GenericError(
            f"Generic S3 error: ... - non-2xx status code: {text}\n\nDebug source"
        )

    return fail


def test_plain_http_has_to_be_asked_for(cube, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(RemoteError) as error:
        store.open_cube(cube)
    assert "AWS_ALLOW_HTTP=true" in one_line(error)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    store.open_cube(cube)  # what failed is not remembered


@pytest.mark.parametrize(
    "url", [f"s3://me:{SECRET}@cubes/x", f"az://cubes/x?sig={SECRET}", f"abfs://c:{SECRET}@a/x"]
)
def test_a_secret_in_a_url_is_refused(url):
    with pytest.raises(ValueError, match="credentials") as error:
        Files(url)
    one_line(error)


@pytest.mark.parametrize(("url", "message"), [("s3:///x", "no bucket"), ("nowhere://x", "no such protocol")])
def test_a_url_that_leads_nowhere(url, message):
    with pytest.raises(ValueError, match=message):
        store.open_cube(url)


def test_the_command_line_says_it_in_one_line(sources, place, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gridrad-cube", "info", "s3://no-such-bucket/x"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_obstore(cube, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ImportError, match=r"pip install 'gridrad-cube\[s3\]'"):
        store.open_cube(cube)
    assert Files("memory://still-works").names() == []


def test_files_show_and_pickle_nothing_but_the_url(cube):
    files = Files(cube)
    files.read("zarr.json")
    text = repr(files).encode() + pickle.dumps(files)
    assert SECRET.encode() not in text
    assert pickle.loads(pickle.dumps(files)).read("zarr.json") == files.read("zarr.json")


def test_the_page_about_remote_stores(cube):
    page = blocks("docs/remote-stores.md")
    assert len(page) == 2
    bucket, _, prefix = cube.removeprefix("s3://").partition("/")
    names = {}
    for code in page:
        code = code.replace('"s3://my-bucket/patches.zarr"', repr(cube))
        exec(code.replace('"my-bucket", prefix="patches.zarr"', f"{bucket!r}, prefix={prefix!r}"), names)
    assert names["storm"].shape == (64, 64)
    assert names["plain"].sizes["crop"] == 5
