"""Embedding stores made by many processes; the grid's orientation; attention maps."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from embedding_data import (
    IR,
    PATCH,
    VIS,
    assert_same_store,
    checkpoint_2k,
    checkpoint_of,
    cube_of_five,
    one_thread,  # noqa: F401
    preprocess,
    scene_of,
    values_of,
    write_scenes,
)

from gridrad_cube import cli, query, store
from gridrad_cube.embedding import NO_PIXELS, Network, attention, embed
from gridrad_cube.embedding.run import _embed_share, _Job, _local_rank
from gridrad_cube.models import load_backbone
from gridrad_cube.schema import SchemaError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cube of five crops, its checkpoint, embeddings (float16) and a checkpoint of level 2k."""
    folder = tmp_path_factory.mktemp("stores")
    cube = cube_of_five(folder)
    checkpoint_of(folder / "256.pth", cube)
    embed(cube, folder / "256.pth", folder / "embeddings.zarr")
    checkpoint_2k(folder / "2k.pth", folder / "embeddings.zarr")
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    """One crop a block."""
    monkeypatch.setattr("gridrad_cube.store.embeddings._BLOCK_CROPS", {"256": 1, "2k": 1})


def test_int8_stores_of_earlier_versions_are_refused(folder, tmp_path):
    shutil.copytree(folder / "embeddings.zarr", tmp_path / "e.zarr")
    path = tmp_path / "e.zarr" / "zarr.json"
    root = json.loads(path.read_text())
    del root["attributes"]["gridrad_cube"]["checksum"]  # which such stores do not have
    root["attributes"]["gridrad_cube"]["dtype"] = "int8"
    path.write_text(json.dumps(root))
    shutil.rmtree(tmp_path / "e.zarr" / "_build" / "manifest")  # nor this
    with pytest.raises(SchemaError, match=r"holds 8-bit integers, .* embed again with float16"):
        store.open_embeddings(tmp_path / "e.zarr")
    with pytest.raises(SchemaError, match="dtype: got 'int8'; expected one of float16, float32"):
        embed(folder / "patches.zarr", folder / "256.pth", tmp_path / "f.zarr", dtype="int8")


def test_embeddings_can_be_saved_opened_again_and_read_in_chunks(folder, tmp_path):
    opened = store.open_embeddings(folder / "embeddings.zarr")
    assert opened["embedding"].chunks is None
    assert all(isinstance(value, str | int | float) for value in opened.attrs.values())
    part = opened.isel(crop=[1, 2], row=slice(0, 2))
    part.to_netcdf(tmp_path / "part.nc")
    part.to_zarr(tmp_path / "part.zarr", consolidated=False)
    found = [
        xr.open_dataset(tmp_path / "part.nc"),
        xr.open_zarr(tmp_path / "part.zarr", chunks=None, consolidated=False),
    ]
    for again in found:
        xr.testing.assert_equal(again.load(), part.load())
        assert store.store_info(again, "embeddings") == store.store_info(folder / "embeddings.zarr")
        assert "latitude" in again.coords
    chunked = store.open_embeddings(folder / "embeddings.zarr", chunks="auto")
    assert len(chunked["embedding"].chunks[0]) == 1
    assert chunked["latitude"].chunks is None
    chunked.isel(crop=[0, 2]).to_zarr(tmp_path / "chunked.zarr", consolidated=False)


# N in, N out, for any number of crops, processes and any order


def test_every_patch_has_a_row_for_any_number_of_ranks(folder, tmp_path, monkeypatch, small_blocks):
    cube, checkpoint, whole = folder / "patches.zarr", folder / "256.pth", folder / "embeddings.zarr"
    for ranks in (1, 3, 7):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        out = tmp_path / f"{ranks}.zarr"
        for rank in reversed(range(ranks)):  # the first block comes last
            monkeypatch.setenv("RANK", str(rank))
            assert embed(cube, checkpoint, out)["finished"] is (rank == 0)
        dataset = store.open_embeddings(out)
        assert dataset["embedding"].shape == (5, 2, 5, 7, 24)
        there = (dataset["flags"].values & int(NO_PIXELS)) == 0
        np.testing.assert_array_equal(np.isfinite(dataset["embedding"].values).all(axis=-1), there)
        np.testing.assert_array_equal(dataset["embedding"].values, values_of(whole))


def test_processes_that_start_at_once_make_one_store(folder, tmp_path):
    """Real processes, as torchrun or a job array starts them: none refuses the other's beginnings."""
    code = (
        "import sys; from gridrad_cube.embedding import embed; import torch; torch.set_num_threads(1);"
        "from gridrad_cube.store import embeddings; embeddings._BLOCK_CROPS = {'256': 1, '2k': 1};"
        "print(embed(sys.argv[1], sys.argv[2], sys.argv[3])['finished'])"
    )
    out = tmp_path / "e.zarr"
    command = [sys.executable, "-c", code, str(folder / "patches.zarr"), str(folder / "256.pth"), str(out)]
    ranks = [
        subprocess.Popen(
            command, env=os.environ | {"RANK": str(r), "WORLD_SIZE": "2"}, stdout=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    said = [rank.communicate(timeout=200)[0].strip() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "True" in said
    np.testing.assert_array_equal(values_of(out), values_of(folder / "embeddings.zarr"))


@pytest.mark.parametrize(
    "key",
    [
        "embedding/c.0.0.0.0.0", "latitude/c.0.0.0", "flags/c.0.0.0.0", "zarr.json", "_build/blocks/000000.json",
        "_build/embed.json", "channel/zarr.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["altered", "missing"])
def test_damage_is_found_and_embed_again_mends_it(folder, tmp_path, key, how):
    copy = shutil.copytree(folder / "embeddings.zarr", tmp_path / "embeddings.zarr")
    for name in ("patches.zarr", "256.pth"):
        (tmp_path / name).symlink_to(folder / name)
    path = copy / key
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.unlink() if how == "missing" else path.write_bytes(data)
    assert key in [d.key for d in store.verify(copy)]
    if "/c." in key:
        name, what = (
            key.split("/")[0],
            "is missing" if how == "missing" else r"(is not as it was|cannot be read)",
        )
        with pytest.raises(
            store.MissingChunkError, match=rf"{name} .*{what}.* Run: gridrad-cube embed again"
        ):
            store.open_embeddings(copy)[name].values  # noqa: B018
    embed(tmp_path / "patches.zarr", tmp_path / "256.pth", copy)
    assert store.verify(copy) == []
    assert_same_store(copy, folder / "embeddings.zarr")


def test_a_place_is_claimed_by_one_request(folder, tmp_path):
    """Of many that begin at once with the same request none fails; one of another is refused."""
    barrier, errors = threading.Barrier(8), []

    def begin(dtype):
        request = {"level": "256", "dtype": dtype}
        writer = store.EmbeddingWriter(tmp_path / "e.zarr", request, crops=5, shape=(2, 5, 7, 24))
        barrier.wait()
        try:
            writer.begin(resume=True)
        except SchemaError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=begin, args=("float16" if i % 2 else "float32",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 4
    assert all("embeddings made with other options" in error for error in errors)


def test_a_part_does_not_finish_over_another_parts_old_blocks(folder, tmp_path, small_blocks):
    sources = tmp_path / "sources"
    write_scenes(sources, range(5))
    cube = preprocess(sources, tmp_path / "patches.zarr")  # the fourth scene failed
    embed(cube, folder / "256.pth", tmp_path / "e.zarr")
    from gridrad_cube import pipeline

    pipeline.preprocess(sources, cube)  # now it is there: its block belongs to the second part
    assert not embed(cube, folder / "256.pth", tmp_path / "e.zarr", part=(0, 2))["finished"]
    assert embed(cube, folder / "256.pth", tmp_path / "e.zarr", part=(1, 2))["finished"]
    assert store.open_embeddings(tmp_path / "e.zarr")["status"].values.tolist() == [0] * 5


def test_workers_of_dask_make_the_same_store(folder, tmp_path, small_blocks):
    from distributed import Client

    cube, checkpoint = folder / "patches.zarr", folder / "256.pth"
    embed(cube, checkpoint, tmp_path / "a.zarr")
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        summary = embed(cube, checkpoint, tmp_path / "w.zarr", client=client)
        assert (summary["finished"], summary["blocks"], summary["blocks_kept"]) == (True, 5, 0)
        (tmp_path / "w.zarr" / "_build" / "blocks" / "000002.json").unlink()
        assert embed(cube, checkpoint, tmp_path / "w.zarr", client=client)["blocks_kept"] == 4
        with pytest.raises(FileNotFoundError, match="no such"):
            embed(cube, tmp_path / "gone.pth", tmp_path / "v.zarr", client=client)
    assert_same_store(tmp_path / "a.zarr", tmp_path / "w.zarr")
    with pytest.raises(SchemaError, match="together with workers"):
        embed(cube, checkpoint, tmp_path / "w.zarr", workers=2, part=(0, 2))


# ranks and devices


class Chosen(Exception):
    pass


def spy_on_devices(monkeypatch, gpus):
    """Pretend that there is this number of GPUs; the device that a network is put on ends up in the list."""
    devices = []

    def choose(path, *, device, **options):
        devices.append(str(device))
        raise Chosen

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("gridrad_cube.embedding.run.Network", choose)
    return devices


@pytest.mark.parametrize(
    ("names", "local"),
    [
        (("RANK", "WORLD_SIZE"), "LOCAL_RANK"),
        (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), "SLURM_LOCALID"),
        (("PMI_RANK", "PMI_SIZE"), "PALS_LOCAL_RANKID"),
    ],
)
def test_ranks_of_every_launcher_make_their_share_on_their_gpu(
    folder, tmp_path, monkeypatch, small_blocks, names, local
):
    cube, checkpoint = folder / "patches.zarr", folder / "256.pth"
    for name, value in zip((*names, local), (1, 4, 1), strict=True):
        monkeypatch.setenv(name, str(value))
    summary = embed(cube, checkpoint, tmp_path / "e.zarr", channels=IR, device="cpu")
    assert (summary["blocks"], summary["finished"]) == (5, False)
    blocks = sorted(p.name for p in (tmp_path / "e.zarr" / "_build" / "blocks").iterdir())
    assert blocks == ["000001.json"]
    devices = spy_on_devices(monkeypatch, gpus=2)
    for number in range(4):
        monkeypatch.setenv(names[0], str(number))
        monkeypatch.setenv(local, str(number))
        with pytest.raises(Chosen):
            embed(cube, checkpoint, tmp_path / "e.zarr")
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_workers_of_a_machine_share_its_gpus(folder, tmp_path, monkeypatch):
    from distributed import Client

    ports = {
        f"tcp://10.0.0.{host}:{port}": {"host": f"10.0.0.{host}"} for host in (1, 2) for port in (1, 2, 3)
    }
    with monkeypatch.context() as patch:
        info = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": ports})
        patch.setattr("distributed.get_client", lambda: info)
        ranks = []
        for address in ports:
            patch.setattr("distributed.get_worker", lambda address=address: SimpleNamespace(address=address))
            ranks.append(_local_rank())
    assert ranks == [0, 1, 2, 0, 1, 2]
    devices = spy_on_devices(monkeypatch, gpus=2)
    options = dict.fromkeys(("channels", "stride", "key", "pool", "normalize", "dtype", "batch_size"))
    job = functools.partial(_Job, "a", "b", "c", **options, device="auto")
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        for worker in client.scheduler_info()["workers"]:
            done = client.submit(_embed_share, job, (0, 1), None, workers=[worker], pure=False)
            assert isinstance(done.exception(), Chosen)
    assert sorted(devices) == ["cuda:0", "cuda:1"]


# orientation


@pytest.mark.parametrize("north_first", [True, False])
def test_a_planted_gradient_keeps_its_direction(tmp_path, monkeypatch, north_first):
    """A field warmer to the north and east: its embeddings rise with latitude and longitude, not with row and col."""
    (tmp_path / "sources").mkdir()
    for number in range(2):
        scene = scene_of(0, shape=(80, 112))[[IR]]
        scene = scene.assign_coords(time=scene["time"] + np.timedelta64(number, "h"))
        scene[IR] = (
            20000 + 400 * (scene.latitude - scene.latitude.min()) + 100 * (scene.longitude - scene.longitude.min())
        ).astype(scene[IR].dtype).assign_attrs(scene[IR].attrs).transpose("y", "x")  # fmt: skip
        scene = scene if north_first else scene.isel(y=slice(None, None, -1))
        scene.to_netcdf(tmp_path / "sources" / f"s{number}.nc")
    from gridrad_cube import pipeline
    from gridrad_cube.schema import Recipe, TileSpec

    cube = tmp_path / "patches.zarr"
    pipeline.preprocess(
        tmp_path / "sources", cube, recipe=Recipe(format="cf", channels=(IR,), tile=TileSpec(patch=PATCH))
    )
    checkpoint = checkpoint_of(tmp_path / "256.pth", cube, channels=(IR,))

    def mean(self, codes, channel, rules):
        values = codes.astype(np.float64).mean(axis=(1, 2, 3))
        return np.repeat(values[:, None], 24, axis=1).astype(np.float32)

    monkeypatch.setattr(Network, "embed", mean)
    embed(cube, checkpoint, tmp_path / "e.zarr", dtype="float32")
    field = store.open_embeddings(tmp_path / "e.zarr").gridrad.grid(by="degree")
    assert field["embedding"].dims == ("time", "channel", "latitude", "longitude", "feature")
    assert (np.diff(field.latitude) < 0).all() == north_first
    warm = field["embedding"].isel(time=0, channel=0, feature=0)
    for name, slope in (("latitude", 400), ("longitude", 100)):
        rise = warm.differentiate(name)
        np.testing.assert_allclose(rise, slope, rtol=0.02)
    one = store.open_embeddings(tmp_path / "e.zarr").gridrad.at(
        "2021-07-05T18:50:17", float(field.latitude.max()), float(field.longitude.max())
    )
    assert float(one["embedding"][0, 0]) == float(field["embedding"].max())


# attention


def test_attention_of_patches_is_that_of_the_network(folder, tmp_path):
    cube, checkpoint = folder / "patches.zarr", folder / "256.pth"
    found = attention(cube, checkpoint, [(0, 1, 2), (4, 2, 2)])
    assert found["attention"].dims == ("sample", "head", "token_y", "token_x")
    assert found["attention"].shape == (4, 2, 2, 2)
    assert found["channel"].values.tolist() == [IR, VIS, IR, VIS]
    assert found["crop"].values.tolist() == [0, 0, 4, 4]
    assert found["y_start"].values.tolist() == [16, 16, 32, 32]
    shares = found["attention"].values.sum(axis=(2, 3))
    assert ((shares > 0) & (shares < 1)).all()
    state = torch.load(checkpoint, weights_only=True)
    packed = store.open_packed(cube)
    net = load_backbone(state)
    from gridrad_cube.datasets import Normalization

    codes = packed[IR][0, 16:32, 32:48].values
    values, valid = Normalization.from_dict(state["normalization"][IR]).apply(codes)
    assert valid.all()
    with torch.inference_mode():
        hidden = torch.zeros(1, 4, dtype=torch.bool)
        expected = net.get_last_selfattention(torch.from_numpy(values)[None, None], hidden)[0, :, 0, 1:]
    np.testing.assert_allclose(found["attention"][0], expected.reshape(2, 2, 2), atol=1e-5)
    np.testing.assert_array_equal(found["latitude"][::2], packed["latitude"].values[[0, 4], [1, 2], [2, 2]])
    found.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    found.to_netcdf(tmp_path / "a.nc")
    for plain in (
        xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False),
        xr.open_dataset(tmp_path / "a.nc"),
    ):
        np.testing.assert_array_equal(plain["attention"], found["attention"])
        assert plain["source"].values.tolist() == found["source"].values.tolist()


def test_attention_of_a_crop_an_answer_and_of_grids(folder, tmp_path):
    cube, checkpoint = folder / "patches.zarr", folder / "256.pth"
    whole = attention(cube, checkpoint, [2], channels=[IR, VIS])
    assert whole.sizes["sample"] == 5 * 7 * 2
    gone = (store.open_packed(cube)[f"{VIS}_flags"][2].values & int(NO_PIXELS)) != 0
    np.testing.assert_array_equal(np.isnan(whole["attention"][1::2]).all(axis=(1, 2, 3)), gone.ravel())
    answer = query.search(store.open_embeddings(folder / "embeddings.zarr"), (0, 1, 1, IR), 3, channel=IR)
    some = attention(cube, checkpoint, answer, channels=IR)
    assert some["row"].values.tolist() == answer["row"].values.tolist()
    grids = attention(folder / "embeddings.zarr", folder / "2k.pth", [0, 1])
    assert grids["attention"].dims == ("sample", "head", "row", "col")
    assert grids["attention"].shape == (4, 2, 5, 7)
    assert grids["crop"].values.tolist() == [0, 0, 1, 1]
    flags = store.open_embeddings(folder / "embeddings.zarr")["flags"].values[0, 0]
    assert (
        grids["attention"].values[0][:, (flags & int(NO_PIXELS)) != 0] == 0
    ).all()  # masked cells get none
    for samples, message in (
        ([(0, 9, 0)], r"no sample \(0, 9, 0\) in .*; it has crop 0 to 4, row 0 to 4, col 0 to 6"),
        ([], "no samples; expected"),
        (answer.drop_vars("row"), r"the answer has no \['row'\]"),
    ):
        with pytest.raises(SchemaError, match=message):
            attention(cube, checkpoint, samples)


# the command line


def run(*arguments):
    result = CliRunner().invoke(cli.cli, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_commands_embed_and_attention(folder, tmp_path):
    common = ("--store", folder / "patches.zarr", "--checkpoint", folder / "256.pth", "-c", IR)
    code, text, error = run("embed", *common, "--out", tmp_path / "e.zarr", "--dtype", "float32")
    assert code == 0, error
    assert text.endswith(f"numbers for each channel ({IR})\n")
    assert values_of(tmp_path / "e.zarr").dtype == np.float32
    code, text, error = run("attention", *common, "--out", tmp_path / "a.zarr", "0,1,2", "1,0,0")
    assert code == 0, error
    assert f"{tmp_path / 'a.zarr'}: 2 sample" in text
    assert xr.open_zarr(tmp_path / "a.zarr", chunks=None)["crop"].values.tolist() == [0, 1]
    code, _, error = run("attention", *common, "--out", tmp_path / "a.zarr", "0,1,2")
    assert (code, "exists already" in error) == (1, True)
    code, _, error = run("attention", *common, "--out", tmp_path / "b.zarr", "0,1")
    assert (code != 0, "expected CROP,ROW,COL" in error) == (True, True)
