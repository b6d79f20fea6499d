"""The whole road on synthetic storms, on CPU, in a few minutes: files to cube to embeddings to answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from gridrad_cube import datasets, evaluation, pipeline, plot, query, store, synthetic
from gridrad_cube.embedding import embed
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import Recipe, SchemaError
from gridrad_cube.storage import open_for_writing, write_bytes
from gridrad_cube.training import load_config, train

__all__ = ["run"]

CHANNEL = "ir_brightness_temperature"
#: LaRC scenes, two hours apart: one planted storm in each, so that plants lie more than 6 h or 200 km apart.
SCENES, INTERVAL, PLANTS = 20, "2h", 20
#: Step in pixels between the windows that are embedded: half a patch, so that a storm across the edge of one
#: patch lies whole in the next window.
STRIDE = 128
#: A window holds a planted storm if its center is this near: half the edge of a patch at 40 degrees.
REACH_KM = 200.0
#: Windows nearer than this share pixels, or show the same storm a little later: neither is news.
APART = ("6h", "600km")
#: Components of the pixels' PCA, the baseline without any network.
COMPONENTS = 64

Say = Callable[[str], Any]


def run(out: str | Path, *, seed: int = 0, workers: int = 2, say: Say) -> None:
    """Build, train, embed and ask, from nothing; leave stores, runs and pictures in a folder.

    A second run continues where the first stopped.

    Parameters
    ----------
    say
        Called with each line for the user.

    Raises
    ------
    SchemaError
        If the folder holds something else.
    """
    out, start = Path(out), time.perf_counter()
    _claim(out, {"seed": seed, "scenes": SCENES})
    say(f"gridrad-cube demo in {out}/ (seed {seed}): under five minutes on 2 cores")
    _synthesize(out, seed, say)
    _preprocess(out, workers, say)
    _learn(out, seed, say)
    planted = synthetic.plant_table(seed, plants=PLANTS, scenes=SCENES, interval=INTERVAL)
    _retrieval(out, planted, say)
    answer = _ask(out, planted, say)
    say("\nPictures:")
    for name, figure in _pictures(out, answer, planted).items():
        with open_for_writing(out / name) as file:
            figure.savefig(file, dpi=110)
        say(f"  {out / name}")
    say("Look further:")
    say(f"  gridrad-cube info {out}/patches.zarr")
    say(f"  gridrad-cube verify {out}/patches.zarr")
    say(f"  gridrad-cube query {out}/embeddings.zarr --like 3,4,5 -k 5")
    say(f"Done in {time.perf_counter() - start:.0f} s.")


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder that is not this demo's."""
    mark = out / "demo.json"
    if mark.exists():
        found = json.loads(mark.read_text())
        if found != identity:
            raise SchemaError(f"{out}: holds a demo with {found}, not {identity}; give another folder")
    elif out.exists() and any(out.iterdir()):
        raise SchemaError(f"{out}: the folder is not empty and holds no demo; give another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(mark, json.dumps(identity).encode())


def _synthesize(out: Path, seed: int, say: Say) -> None:
    say("\n1. Source files: faithful synthetic netCDF")
    larc: dict[str, Any] = {"interval": INTERVAL, "plants": PLANTS}
    for name, format_, count, options in (
        ("larc", "larc-goes", SCENES, larc),
        ("radar", "gridrad-v4.2", 3, {}),
    ):
        folder = out / name
        if len(list(folder.rglob("*.nc"))) != count:
            synthetic.write_scenes(folder, format=format_, scenes=count, seed=seed, progress=True, **options)
        size = sum(f.stat().st_size for f in folder.rglob("*.nc"))
        say(f"   {folder}/: {count} {format_} files, {size / 1e6:.0f} MB")


def _preprocess(out: Path, workers: int, say: Say) -> None:
    say("\n2. Cubes: one chunk a patch, one shard a crop, flags, statistics and coordinates")
    radar = Recipe(channels=("reflectivity_column_maximum", "echo_top_height"))
    for folder, name, recipe in (("larc", "patches.zarr", None), ("radar", "radar.zarr", radar)):
        report = pipeline.preprocess(out / folder, out / name, recipe=recipe, workers=workers, progress=True)
        say(f"   {report}")
        if report.failed:
            raise SchemaError(f"{out / folder}: a source of the demo failed; remove the folder and run again")


def _learn(out: Path, seed: int, say: Say) -> None:
    """Both levels, and the same network untrained for comparison."""
    patches, embeddings = out / "patches.zarr", out / "embeddings.zarr"
    channel: dict[str, Any] = {"channels": (CHANNEL,)}
    say("\n3. Training and embedding, both levels")
    for name, source, target, options, stride in (
        ("256-untrained", patches, out / "embeddings_untrained.zarr", channel | {"steps": 0}, STRIDE),
        ("256", patches, embeddings, channel, STRIDE),
        ("2k", embeddings, out / "embeddings_2k.zarr", {}, None),
    ):
        folder = out / "runs" / name
        config = load_config(store=str(source), out=str(folder), preset="demo", seed=seed, **options)
        say(f"   {name}: {train(config, progress=True)['checkpoint']}")
        summary = embed(source, folder / "checkpoint.pth", target, stride=stride, progress=True)
        say(f"   {target}: {json.dumps(summary)}")


def _retrieval(out: Path, planted: np.ndarray, say: Say) -> None:
    """Print the median rank at which each planted storm finds the others, for three ways to compare patches."""
    trained, untrained = (
        query.within(store.open_embeddings(out / name), channel=CHANNEL).load()
        for name in ("embeddings.zarr", "embeddings_untrained.zarr")
    )
    ways = {
        "trained network": trained["embedding"].values,
        "same network, untrained": untrained["embedding"].values,
        f"PCA of pixels ({COMPONENTS} components)": _pca(out, trained),
    }
    say(
        "\n4. A storm planted again and again: more than 6 h and 200 km away, off the patch grid, mirrored, noisy"
    )
    results = {}
    for name, vectors in ways.items():
        ranks, candidates = evaluation.planted_retrieval(vectors, trained, planted, reach_km=REACH_KM)
        known = ranks[np.isfinite(ranks)]
        results[name] = found = {
            "median_rank": float(np.median(known)),
            "candidates": int(np.median(candidates)),
            "within_10": float((known <= 10).mean()),
            "pairs": len(known),
        }
        say(
            f"   {name:{max(map(len, ways))}}  median rank {found['median_rank']:7.1f} of {found['candidates']}"
            f"   among the first ten {found['within_10']:.0%}   ({found['pairs']} pairs of {PLANTS} plants)"
        )
    write_bytes(out / "retrieval.json", json.dumps(results, indent=1).encode())


def _pca(out: Path, flat: xr.Dataset) -> np.ndarray:
    """Principal components of the same windows' pixels, coarsened and normalized as the network sees them."""
    from sklearn.decomposition import PCA

    checkpoint = torch.load(out / "runs" / "256" / "checkpoint.pth", weights_only=True, map_location="cpu")
    rule = datasets.Normalization.from_dict(checkpoint["normalization"][CHANNEL])
    coarsen = checkpoint["coarsen"]
    reader = store.PatchReader(out / "patches.zarr")
    edge, step = reader.patch // coarsen, STRIDE // coarsen
    rows = np.empty((flat.sizes["patch"], edge * edge), np.float32)
    crop, row, col = (flat[n].values for n in ("crop", "row", "col"))
    for number in np.unique(crop):
        codes = torch.from_numpy(reader.read_window(CHANNEL, (int(number), slice(None), slice(None))))[
            None, None
        ]
        field, _ = datasets.decode(codes, torch.zeros(1, dtype=torch.int64), (rule,), coarsen=coarsen)
        windows = np.lib.stride_tricks.sliding_window_view(field[0, 0].numpy(), (edge, edge))[::step, ::step]
        here = crop == number
        rows[here] = windows[row[here], col[here]].reshape(-1, edge * edge)
    return PCA(COMPONENTS, svd_solver="arpack", random_state=0).fit_transform(rows)


def _ask(out: Path, planted: np.ndarray, say: Say) -> xr.Dataset:
    """One query by place and time: the first planted storm."""
    embeddings = store.open_embeddings(out / "embeddings.zarr")
    place = {name: planted[0][name] for name in ("time", "latitude", "longitude")}
    answer = query.search(embeddings, place, 9, channel=CHANNEL, exclude=APART, separate=APART)
    say(
        f"\n5. Which places and times look like {place['time']} UTC at {place['latitude']:.2f} N "
        f"{place['longitude']:.2f} E, where a storm was planted?"
    )
    say(query.format_answer(answer))
    return answer


def _pictures(out: Path, answer: xr.Dataset, planted: np.ndarray) -> dict[str, Any]:
    cube, radar = (store.open_cube(out / name) for name in ("patches.zarr", "radar.zarr"))
    zenith = np.nanmean(cube["solar_zenith_angle"].values, axis=(1, 2))
    noon, dusk = int(zenith.argmin()), int(np.abs(zenith - 80).argmin())
    # Answers that hold a planted storm are framed.
    marks = np.zeros(answer.sizes["rank"], bool)
    for thing in planted:
        km = great_circle_km(
            thing["latitude"], thing["longitude"], answer["latitude"].values, answer["longitude"].values
        )
        marks |= (np.abs(answer["time"].values - thing["time"]) <= np.timedelta64(60, "s")) & (km <= REACH_KM)
    return {
        "scene.png": plot.scene(cube, noon, channel=CHANNEL),
        "radar.png": plot.scene(radar, 0, channel="reflectivity_column_maximum"),
        "flags.png": plot.flags(cube, dusk, channel="visible_reflectance"),
        "training.png": plot.curves({"level 256": out / "runs" / "256", "level 2k": out / "runs" / "2k"}),
        "query.png": plot.query(cube, answer, marks=marks.tolist(), marks_text="planted"),
        "embeddings.png": plot.embeddings(store.open_embeddings(out / "embeddings.zarr"), noon, cube=cube),
    }
