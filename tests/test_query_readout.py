"""The readout of a store: fitted, saved, used where samples are compared, and kept when the store grows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import gridrad_cube
from gridrad_cube import cli, query
from gridrad_cube.pipeline import repair
from gridrad_cube.readout import fit_arrays
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.similarity import unit_rows
from gridrad_cube.store import EmbeddingWriter, open_embeddings, verify

IR, VIS = "ir_brightness_temperature", "visible_reflectance"
ROWS, COLS, FEATURES = 2, 3, 10
#: Latitudes and longitudes of the first patch of two windows, far apart.
WINDOWS = ((40.0, -100.0), (10.0, 20.0))


def planted(times, *, channels=1, level="256", seed=0):
    """Vectors (crop, channel, [row, col,] feature) of hourly crops of two windows in turn.

    Each place has a state along three directions that drifts slowly, under changes along five others that are four
    times as large.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0]
    cells = (ROWS, COLS) if level == "256" else ()
    shape = (times, len(WINDOWS), channels, *cells)
    state = np.cumsum(rng.standard_normal((*shape, 3)) * 0.2, axis=0) + rng.standard_normal((*shape[1:], 3))
    change = 4 * rng.standard_normal((*shape, 5))
    noise = 0.05 * rng.standard_normal((*shape, FEATURES))
    vectors = state @ basis[:3] + change @ basis[3:8] + noise + 2
    return vectors.reshape(-1, *shape[2:], FEATURES).astype(np.float32)


def write(path, vectors, *, checkpoint="abc", flags=None, channels=(IR,), resume=True, step_hours=1):
    """An embedding store of planted vectors, as `gridrad_cube.embedding.embed` writes one."""
    crops, level = len(vectors), "256" if vectors.ndim == 5 else "2k"
    request = {
        "format_version": 1, "level": level, "dtype": "float32", "checkpoint": checkpoint, "key": "teacher",
        "pool": "class", "channels": list(channels), "patch": 32, "crop": [64, 96],
    }  # fmt: skip
    writer = EmbeddingWriter(path, request, crops=crops, shape=vectors.shape[1:])
    writer.begin(resume=resume)
    records = {
        number: writer.record(number) or writer.write(number, vectors[rows.start : rows.stop], {})
        for number, rows in enumerate(writer.blocks)
    }
    if resume and crops % len(writer.blocks[0]):  # the last block may have grown
        number = len(writer.blocks) - 1
        rows = writer.blocks[number]
        records[number] = writer.write(number, vectors[rows.start : rows.stop], {})
    number = np.arange(crops)
    window = number % len(WINDOWS)
    start = np.datetime64("2024-05-20T00:00:00", "s")
    row, col = np.meshgrid(np.arange(ROWS), np.arange(COLS), indexing="ij")
    lat, lon = np.array(WINDOWS).T[:, window, None, None]
    shape = (crops, len(channels), ROWS, COLS)
    table = {
        "time": start + (number // len(WINDOWS)) * np.timedelta64(3600 * step_hours, "s"),
        "status": np.zeros(crops, np.uint8), "latitude": lat - row, "longitude": lon + col,
        "y_origin": np.zeros(crops, np.int32), "x_origin": (1000 * window).astype(np.int32),
        "grid": np.full(crops, "g", object), "scene": np.array([f"s{i // 2}" for i in number], object),
        "source": np.array([f"s{i // 2}.nc" for i in number], object),
        "flags": np.zeros(shape, np.uint16) if flags is None else flags,
    }  # fmt: skip
    info = {"channels": {name: [name] for name in channels}, "source": "patches.zarr", "features": FEATURES}
    writer.finish(
        records, lambda rows: {n: v[rows.start : rows.stop] for n, v in table.items()}, info, event="test"
    )
    return path


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "e.zarr", planted(40))


def rank_one(path, readout, hours=1):
    """How often the nearest sample of a time is the one of the query's place."""
    emb = open_embeddings(path)
    times = emb["time"].values
    found = []
    for crop in range(0, emb.sizes["crop"] - 2 * hours, 7):
        later = times[crop] + np.timedelta64(hours, "h")
        answer = query.search(
            emb, (crop, 1, 1), 1, time=(later, later + np.timedelta64(1, "m")), exclude=None, readout=readout
        )
        same = int(answer["crop"][0]) % len(WINDOWS) == crop % len(WINDOWS)
        found.append(same and (int(answer["row"][0]), int(answer["col"][0])) == (1, 1))
    return np.mean(found)


def test_the_fit_of_a_store_is_that_of_its_arrays(store, monkeypatch):
    monkeypatch.setattr("gridrad_cube.query.readout._ROWS", 30)  # several batches
    vectors = open_embeddings(store)["embedding"].values[:, 0]
    found = gridrad_cube.fit_readout(store, directions=3, within="1h")[IR]
    series = vectors.reshape(-1, len(WINDOWS), ROWS, COLS, FEATURES)
    pairs = [series[i::2][: len(series) // 2].reshape(-1, FEATURES) for i in (0, 1)]  # runs of two hours
    expected = fit_arrays(vectors.reshape(-1, FEATURES), *pairs, directions=3)
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    assert (found.fitted["samples"], found.fitted["pairs"]) == (480, 240)
    assert found.fitted["time"] == ["2024-05-20T00:00:00Z", "2024-05-21T15:00:00Z"]
    assert found.fitted["within_hours"] == 1
    assert "padding" in found.fitted["reject"]
    saved = query.readout_of(store)
    np.testing.assert_array_equal(saved.matrix, found.matrix)
    assert saved.fitted == found.fitted | {"changed": False}


def test_search_uses_it_and_says_so(store):
    emb = open_embeddings(store)
    before = query.search(emb, (3, 1, 1), 5)
    assert "readout" not in before.attrs
    fitted = gridrad_cube.fit_readout(store, directions=3)[IR]
    after = query.search(emb, (3, 1, 1), 5)
    assert after.attrs["readout"] == str(fitted)
    assert str(fitted).startswith("3 directions, fitted on 480 samples and 360 pairs of 2024-05-20T00:00:00Z")
    assert str(fitted) in query.format_answer(after)
    assert after["score"].attrs["long_name"] == "similarity to the query (cosine after the readout)"
    xr.testing.assert_identical(query.search(emb, (3, 1, 1), 5, readout=None), before)
    assert rank_one(store, "auto") > 2 * rank_one(store, None)
    # The nearest of the projected vectors, and no others.
    points = unit_rows(fitted.apply(emb["embedding"].values.reshape(-1, FEATURES)))
    best = np.argsort(-(points @ points[3 * ROWS * COLS + 4]), kind="stable")
    everything = query.search(emb, (3, 1, 1), 480, exclude=None)
    rows = [
        np.ravel_multi_index(i, (80, ROWS, COLS))
        for i in zip(*(everything[d].values for d in ("crop", "row", "col")), strict=True)
    ]
    np.testing.assert_array_equal(rows, best[1:])


def test_vectors_other_metrics_and_a_given_readout(store):
    emb = open_embeddings(store)
    vector = emb["embedding"][3, 0, 1, 1].values
    raw = [query.search(emb, vector, 5), query.search(emb, (3, 1, 1), 5, metric="euclidean")]
    fitted = gridrad_cube.fit_readout(store, directions=3)[IR]
    xr.testing.assert_identical(query.search(emb, vector, 5), raw[0])
    xr.testing.assert_identical(query.search(emb, (3, 1, 1), 5, metric="euclidean"), raw[1])
    given = query.search(emb, vector, 5, readout=fitted, exclude=None)
    assert int(given["crop"][0]) == 3
    assert given["score"][0] == pytest.approx(1)
    with pytest.raises(SchemaError, match="readout: got one of 10 features and metric 'dot'"):
        query.search(emb, vector, 5, readout=fitted, metric="dot")
    with pytest.raises(SchemaError, match="readout: got 'yes'"):
        query.search(emb, vector, 5, readout="yes")


def test_batches_examples_and_percentiles(store):
    gridrad_cube.fit_readout(store, directions=3)
    emb = open_embeddings(store)
    batch = query.search(emb, [(3, 1, 1), (8, 0, 2)], 4)
    one = query.search(emb, (8, 0, 2), 4, percentile=True)
    np.testing.assert_array_equal(batch["score"][1], one["score"])
    assert float(one["percentile"][0]) > 90
    examples = {"positive": [(3, 1, 1), (5, 1, 1)], "negative": [(8, 0, 0)]}
    assert query.search(emb, examples, 4).attrs["readout"] == batch.attrs["readout"]
    mixed = {"positive": [(3, 1, 1), emb["embedding"][5, 0, 1, 1].values]}
    assert "readout" not in query.search(emb, mixed, 4).attrs


def test_other_questions_use_it(store):
    emb = open_embeddings(store)
    fitted = gridrad_cube.fit_readout(store, directions=3)[IR]
    path = query.follow(emb, (2, 1, 1), steps=4)
    assert path.attrs["readout"] == str(fitted)
    cells = [
        fitted.apply(emb["embedding"][int(c), 0, int(r), int(q)].values)
        for c, r, q in zip(path["crop"], path["row"], path["col"], strict=True)
    ]
    np.testing.assert_allclose(
        path["score"][1], np.prod([unit_rows(c) for c in cells[:2]], axis=0).sum(), rtol=1e-5
    )
    assert "readout" not in query.follow(emb, (2, 1, 1), steps=4, readout=None).attrs
    what = query.analogues(emb, (20, 1, 1), "1h", 5)
    assert what.attrs["readout"] == str(fitted)
    now, came = (unit_rows(fitted.apply(emb["embedding"][c, 0, 1, 1].values)) for c in (20, 22))
    assert float(what["persistence"][0]) == pytest.approx(float(now @ came), rel=1e-5)
    raw = query.analogues(emb, (20, 1, 1), "1h", 5, readout=None)
    assert float(what["persistence"][0]) > 0.8 > float(raw["persistence"][0])
    often = query.frequency(emb, (20, 1, 1), 0.9)
    assert often.attrs["readout"] == str(fitted)
    assert int(often["count"].sum()) > int(query.frequency(emb, (20, 1, 1), 0.9, readout=None)["count"].sum())


def test_each_channel_has_its_own(tmp_path):
    vectors = planted(20, channels=2)
    flags = np.zeros((40, 2, ROWS, COLS), np.uint16)
    flags[:, 1, 0] = int(Flag.night)
    flags[:, 1, 1, 0] = int(Flag.low_coverage)
    store = write(tmp_path / "e.zarr", vectors, flags=flags, channels=(IR, VIS))
    found = gridrad_cube.fit_readout(store, directions=3)
    assert [found[name].fitted["samples"] for name in (IR, VIS)] == [240, 80]
    assert "night" in found[VIS].fitted["reject"]
    emb = open_embeddings(store)
    assert query.search(emb, (3, 1, 1, VIS), 3).attrs["readout"] == str(found[VIS])
    np.testing.assert_array_equal(query.readout_of(emb, IR).matrix, found[IR].matrix)
    one = emb.sel(channel=VIS)
    np.testing.assert_array_equal(query.readout_of(one).matrix, found[VIS].matrix)
    np.testing.assert_array_equal(
        query.search(one, (3, 1, 1), 3)["score"], query.search(emb, (3, 1, 1, VIS), 3)["score"]
    )
    both = query.search(emb, [(3, 1, 1, IR), (3, 1, 1, VIS)], 3, channel=[IR, VIS])
    assert "readout" not in both.attrs
    assert query.readout_of(emb.isel(feature=slice(5))) is None


def test_level_2k(tmp_path):
    store = write(tmp_path / "e.zarr", planted(40, level="2k"))
    found = gridrad_cube.fit_readout(store, directions=3)[IR]
    assert (found.fitted["samples"], found.fitted["pairs"]) == (80, 60)
    assert query.search(open_embeddings(store), (3,), 3).attrs["readout"] == str(found)


def test_one_time_alone_is_standardized(tmp_path, caplog):
    store = write(tmp_path / "e.zarr", planted(1))
    found = gridrad_cube.fit_readout(store)[IR]
    np.testing.assert_array_equal(found.matrix, np.eye(FEATURES))
    (said,) = caplog.records
    assert "has no place with two times within 3 h, so its readout only standardizes" in said.getMessage()
    assert str(found).startswith("standardization, fitted on 12 samples")


def test_a_part_of_the_times(store):
    found = gridrad_cube.fit_readout(store, time=("2024-05-20T06", "2024-05-20T08"))[IR]
    assert (found.fitted["samples"], found.fitted["pairs"]) == (24, 12)
    with pytest.raises(SchemaError, match="no crop in the time asked for"):
        gridrad_cube.fit_readout(store, time=("2025", None))


def test_a_store_that_grew_keeps_it(tmp_path):
    vectors = planted(40)
    store = write(tmp_path / "e.zarr", vectors[:40])
    found = gridrad_cube.fit_readout(store, directions=3)[IR]
    write(store, vectors)
    emb = open_embeddings(store)
    answer = query.search(emb, (70, 1, 1), 3)
    assert emb.sizes["crop"] == 80
    assert answer.attrs["readout"] == f"{found}, in the first 40 crops, before the store changed"
    assert verify(store) == []
    with xr.open_zarr(store, chunks=None) as plain:
        assert plain.sizes["crop"] == 80


def test_it_is_not_used_for_another_network(store, caplog):
    gridrad_cube.fit_readout(store, directions=3)
    write(store, planted(40), checkpoint="another", resume=False)
    answer = query.search(open_embeddings(store), (3, 1, 1), 3)
    assert "readout" not in answer.attrs
    assert "was fitted on embeddings of another network" in caplog.text
    assert query.readout_of(store) is None


def test_damage_is_found(store):
    gridrad_cube.fit_readout(store, directions=3)
    assert verify(store) == []
    file, emb = store / "readout.npz", open_embeddings(store)
    whole, matrix = file.read_bytes(), query.readout_of(store).matrix
    file.write_bytes(whole[:-10])
    assert [(d.key, d.row) for d in verify(store)] == [("readout.npz", -1)]
    with pytest.raises(SchemaError, match=r"readout of this store is damaged.*gridrad-cube readout"):
        query.search(emb, (3, 1, 1), 3)
    assert "readout" not in query.search(emb, (3, 1, 1), 3, readout=None).attrs
    found = 0
    for at in range(7, len(whole), 101):  # what is not found, such as the time of a member, changes nothing
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        if verify(store):
            found += 1
        else:
            np.testing.assert_array_equal(query.readout_of(store).matrix, matrix)
    assert found > 5
    np.savez(file, about=np.array(json.dumps({IR: 3})))  # whole, but not a readout
    with pytest.raises(SchemaError, match="readout of this store is damaged"):
        query.readout_of(store)
    file.write_bytes(whole)
    shard = store / "embedding" / "c.1.0.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [(d.key, d.row) for d in verify(store)] == [("embedding/c.1.0.0.0.0", 64)]
    with pytest.raises(SchemaError, match="run gridrad-cube embed again"):
        repair(store, store)


def test_an_interrupted_write_leaves_the_old_one(store, monkeypatch):
    before = gridrad_cube.fit_readout(store, directions=3)[IR]

    def stop(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gridrad_cube.storage.os.fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            gridrad_cube.fit_readout(store, directions=2)
    np.testing.assert_array_equal(query.readout_of(store).matrix, before.matrix)
    assert verify(store) == []


def test_commands(store, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(cli.cli, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    plain = run("query", store, "--like", "3,1,1")
    said = run("readout", store, "--directions", 3, "--within", "2h", "--time", "2024-05-20", "2024-05-21")
    text = "3 directions, fitted on 288 samples and 192 pairs of 2024-05-20T00:00:00Z to 2024-05-20T23:00:00Z"
    assert said == f"{store}: {IR}: {text}\n"
    assert run("query", store, "--like", "3,1,1").endswith(f"\nreadout: {text}\n")
    assert run("query", store, "--like", "3,1,1", "--no-readout") == plain
    assert text in run("info", store)
    assert "all shards as written" in run("verify", store)
    run("plot", "embeddings", store, "-o", tmp_path / "e.svg")
    assert "principal components after the readout" in (tmp_path / "e.svg").read_text()
    assert "whitening, 10 directions, fitted on 480 samples of 2024-05-20" in run(
        "readout", store, "--whiten"
    )
    assert run("readout", store, "--remove") == f"{store}: no readout\n"
    assert run("query", store, "--like", "3,1,1") == plain
