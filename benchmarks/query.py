"""Questions to a store of a million embeddings: likeness, one and many at once, and places; beside other programs.

    python benchmarks/query.py --out benchmarks/results/query.md                            (some minutes, 6 GB)
    python benchmarks/query.py --samples 20000                                              (a quick look)

Writes an embedding store as ``gridrad-cube embed`` does: crops of 8 x 8 patches, one channel, float16, vectors of 384
features that lie about some hundred centres. Then, each step in a separate process, which reports its time and its
peak memory (Python and imports included):

zarr      open the store and search it on disk, one query and 64
resident  the same with all embeddings in memory as float32, and the same by a plain product of numpy, by faiss
          (flat) and by usearch (exact), over the same vectors; says whether all agree
places    the nearest patch to 1,000 places and times among all
readout   fit the readout of the store, by the program's defaults, and save it in the store

faiss-cpu and usearch are needed for this benchmark alone: pip install faiss-cpu usearch. Without them their rows are
left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np

SIDE, FEATURES, K, MANY, POINTS = 8, 384, 10, 64, 1000


def write_store(out: Path, samples: int) -> None:
    """An embedding store of plausible vectors, places and times, by the writer of ``gridrad-cube embed``."""
    from gridrad_cube.store import EmbeddingWriter

    crops = max(1, samples // SIDE**2)
    request = {
        "format_version": 1,
        "level": "256",
        "dtype": "float16",
        "patch": 256,
        "checkpoint": "benchmark",
    }
    writer = EmbeddingWriter(out, request, crops=crops, shape=(1, SIDE, SIDE, FEATURES))
    writer.begin(resume=True)
    centres = np.random.default_rng(0).standard_normal((300, FEATURES)).astype(np.float32)

    def vectors(rows: range) -> np.ndarray:
        rng = np.random.default_rng(rows.start + 1)
        shape = (len(rows), 1, SIDE, SIDE)
        noise = rng.standard_normal((*shape, FEATURES), dtype=np.float32)
        return centres[rng.integers(0, len(centres), shape)] + noise

    def small(rows: range) -> dict[str, np.ndarray]:
        count = len(rows)
        row, col = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
        # 100 crops of each place, one after the other: the readout compares a place with itself a little later.
        places = np.arange(rows.start, rows.stop) // 100
        drawn = [np.random.default_rng(place).random(4) for place in np.unique(places)]
        where = np.stack(drawn)[np.unique(places, return_inverse=True)[1]]
        north, west = (35 + 15 * where[:, 0, None, None], -125 + 45 * where[:, 1, None, None])
        step = 256 / 56
        cells = (count, 1, SIDE, SIDE)
        return {
            "time": 1_600_000_000 + 300 * np.arange(rows.start, rows.stop),
            "status": np.zeros(count, np.uint8),
            "latitude": north - step * row, "longitude": west + step * col,
            "y_origin": (500 * where[:, 2]).astype(int), "x_origin": (500 * where[:, 3]).astype(int),
            "grid": np.full(count, "a", object), "scene": np.array([f"scene{i}" for i in rows], object),
            "source": np.array([f"2020/file{i}.nc" for i in rows], object),
            "flags": np.zeros(cells, np.uint16), "valid_fraction": np.ones(cells, np.float32),
        }  # fmt: skip

    records = {n: writer.write(n, vectors(rows), {}) for n, rows in enumerate(writer.blocks)}
    channels = {"ir_brightness_temperature": ["ir_brightness_temperature"]}
    writer.finish(records, small, {"channels": channels}, event="benchmark")


def best_of(function: Callable[[], Any], times: int) -> list[float]:
    """Fewest seconds, and fewest seconds of processors, of several calls: what is left when nothing else runs."""
    spent, worked = [], []
    for _ in range(times):
        start = time.perf_counter(), time.process_time()
        function()
        spent.append(time.perf_counter() - start[0])
        worked.append(time.process_time() - start[1])
    return [min(spent), min(worked)]


def queries(store: Path) -> tuple[Any, list[tuple[int, ...]], np.ndarray]:
    """The store, samples to ask, and their vectors."""
    import gridrad_cube

    embeddings = gridrad_cube.open_embeddings(store)
    crops = np.random.default_rng(5).integers(0, embeddings.sizes["crop"], MANY)
    asked = [(int(c), int(c) % SIDE, int(c) // SIDE % SIDE, 0) for c in crops]
    vectors = np.stack([embeddings["embedding"][c, 0, r, q].values for c, r, q, _ in asked]).astype(
        np.float32
    )
    return embeddings, asked, vectors


def step_zarr(store: Path, repeats: int) -> dict[str, Any]:
    """From Zarr: nothing is kept between calls."""
    embeddings, asked, _ = queries(store)
    start = time.perf_counter()
    embeddings.gridrad.search(asked[0], K)
    first = time.perf_counter() - start
    memory = machine.peak_mb()
    again = best_of(lambda: embeddings.gridrad.search(asked[0], K), repeats)
    many = best_of(lambda: embeddings.gridrad.search(asked, K), 2)
    return {"first": first, "one": again, "many": many, "peak_mb": memory, "peak_many_mb": machine.peak_mb()}


def step_resident(store: Path, repeats: int) -> dict[str, Any]:
    """All embeddings in memory as float32, for everybody."""
    from gridrad_cube import similarity

    embeddings, asked, vectors = queries(store)
    embeddings = embeddings.assign(embedding=embeddings["embedding"].astype(np.float32)).load()
    rows = embeddings["embedding"].values.reshape(-1, FEATURES)
    exclude = {"exclude": None}  # so that all find the same
    out: dict[str, Any] = {"samples": len(rows)}
    out["search"] = [
        best_of(lambda: embeddings.gridrad.search(asked[0], K, **exclude), repeats),
        best_of(lambda: embeddings.gridrad.search(asked, K, **exclude), 3),
    ]
    out["nearest"] = [
        best_of(lambda: similarity.nearest(rows, vectors[0], K), repeats),
        best_of(lambda: similarity.nearest(rows, vectors, K), 3),
    ]
    ours = similarity.nearest(rows, vectors, K)[0]
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))

    def brute(several: np.ndarray) -> np.ndarray:
        scores = rows @ several.T / lengths[:, None]
        return np.argpartition(-scores, K, axis=0)[:K].T

    out["numpy"] = [best_of(lambda: brute(vectors[:1]), repeats), best_of(lambda: brute(vectors), 2)]
    found = {"numpy": brute(vectors)}
    unit = rows / lengths[:, None]
    asked_unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    try:
        import faiss

        flat = faiss.IndexFlatIP(FEATURES)
        flat.add(unit)
        out["faiss flat"] = [
            best_of(lambda: flat.search(asked_unit[:1], K), repeats),
            best_of(lambda: flat.search(asked_unit, K), 3),
        ]
        found["faiss flat"] = flat.search(asked_unit, K)[1]
    except ModuleNotFoundError:
        pass
    try:
        from usearch.index import MetricKind, search

        def exact(several: np.ndarray) -> Any:
            return search(unit, several, K, MetricKind.IP, exact=True)

        out["usearch exact"] = [
            best_of(lambda: exact(asked_unit[0]), repeats),
            best_of(lambda: exact(asked_unit), 3),
        ]
        found["usearch exact"] = exact(asked_unit).keys
    except ModuleNotFoundError:
        pass
    out["agree"] = {
        name: float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(ours, other, strict=True)]))
        for name, other in found.items()
    }
    return out


def step_places(store: Path, repeats: int) -> dict[str, Any]:
    """The patch at many places and times."""
    from gridrad_cube.geometry import great_circle_km
    from gridrad_cube.query import locate

    embeddings, _, _ = queries(store)
    for name in embeddings.coords:
        embeddings[name].load()
    rng = np.random.default_rng(6)
    crop = rng.integers(0, embeddings.sizes["crop"], POINTS)
    times = embeddings["time"].values[crop].astype("datetime64[s]") + np.timedelta64(60, "s")
    lat = embeddings["latitude"].values[crop, 3, 3] + rng.uniform(-1.5, 1.5, POINTS)
    lon = embeddings["longitude"].values[crop, 3, 3] + rng.uniform(-1.5, 1.5, POINTS)
    spent, worked = best_of(lambda: locate(embeddings, times, lat, lon), max(repeats, 5))
    found, km = locate(embeddings, times, lat, lon)
    lats, lons = (embeddings[n].values for n in ("latitude", "longitude"))
    start = time.perf_counter()
    brute = [
        float(np.min(great_circle_km(lat[i], lon[i], lats[crop[i]], lons[crop[i]]))) for i in range(POINTS)
    ]
    one_crop = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(3):
        great_circle_km(lat[i], lon[i], lats, lons).argmin()
    every = (time.perf_counter() - start) / 3 * POINTS
    assert (found["crop"] == crop).all(), "a point was found at another time"
    assert np.allclose(km, brute, atol=1e-6), "a point was found elsewhere"
    return {
        "find": spent,
        "worked": worked,
        "loop": one_crop,
        "every": every,
        "peak_mb": machine.peak_mb(),
    }


def step_readout(store: Path, repeats: int) -> dict[str, Any]:
    """Fitted once, on all embeddings; nothing is read before."""
    import gridrad_cube

    start = time.perf_counter()
    gridrad_cube.fit_readout(store)
    return {"seconds": time.perf_counter() - start, "peak_mb": machine.peak_mb()}


STEPS = {"zarr": step_zarr, "resident": step_resident, "places": step_places, "readout": step_readout}


def run(step: str, store: Path, repeats: int) -> dict[str, Any]:
    """One step in a separate process."""
    command = [sys.executable, __file__, "--step", step, "--store", str(store), "--repeats", str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Write the store, run the steps, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--folder", type=Path, default=None, help="scratch folder; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, default=None, help="write the tables here too")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.store, options.repeats)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Path(folder) / "embeddings.zarr"
        write_store(store, options.samples)
        size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
        results = {name: run(name, store, options.repeats) for name in STEPS}
    machine.report("Questions to a store of embeddings", lines(results, size, options), options.out)


def lines(results: dict[str, dict[str, Any]], size: int, options: argparse.Namespace) -> list[str]:
    """The report."""
    zarr, resident, places, readout = (results[name] for name in STEPS)
    count = resident["samples"]
    out = [
        f"{count:,} embeddings of {FEATURES} features, {size / 1e6:,.0f} MB on disk as float16; the {K} nearest. "
        f"Best of {options.repeats} calls, of 3 for {MANY} queries; in brackets seconds of processors, all "
        "cores together.",
        "",
    ]
    rows = [
        [name, *map(_cell, (one, many)), f"{resident['agree'].get(label, 1):.4f}"]
        for label, name in (("search", "`.gridrad.search`, resident float32"), ("nearest", "`similarity.nearest`"),
                            ("numpy", "numpy: product, then argpartition"), ("faiss flat", "faiss, flat"),
                            ("usearch exact", "usearch, exact"))
        if label in resident for one, many in [resident[label]]
    ]  # fmt: skip
    rows.append(["`.gridrad.search`, from Zarr", _cell(zarr["one"]), _cell(zarr["many"]), "1.0000"])
    out += machine.table(["what", "one query, s", f"{MANY} queries, s", "share of ours found"], rows)
    out += [
        "",
        f"From Zarr, the first search in a new process: {zarr['first']:.2f} s; peak memory {zarr['peak_mb']:.0f} MB, "
        f"with {MANY} queries {zarr['peak_many_mb']:.0f} MB.",
        "",
        f"The nearest patch to {POINTS:,} places and times: {1000 * places['find']:.1f} ms "
        f"({1000 * places['worked']:.1f}). Looking at the one crop of each point by hand "
        f"{1000 * places['loop']:.0f} ms, at all samples for each point {places['every']:.0f} s.",
        "",
        f"`fit_readout`: {readout['seconds']:.0f} s; peak memory {readout['peak_mb']:.0f} MB.",
    ]
    return out


def _cell(spent: list[float]) -> str:
    return f"{spent[0]:.3f} ({spent[1]:.3f})"


if __name__ == "__main__":
    main()
