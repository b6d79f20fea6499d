"""Every step on synthetic storms, on CPU, in a few minutes: from files to a cube, embeddings and answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube import evaluation, pipeline, plot, query, store, synthetic
from gridrad_cube.embedding import embed
from gridrad_cube.schema import CHANNELS, Recipe, SchemaError
from gridrad_cube.similarity import unit_rows
from gridrad_cube.storage import open_for_writing, write_bytes
from gridrad_cube.training import load_config, train

__all__ = ["run"]

CHANNEL = "ir_brightness_temperature"
#: LaRC scenes, two hours apart: one planted storm in each, so that plants lie more than 6 h or 200 km apart.
SCENES, INTERVAL, PLANTS = 20, "2h", 20
#: Step in pixels between the windows that are embedded: half a patch, so that a storm across the edge of one
#: patch lies whole in the next window.
STRIDE = 128
#: Edge of the blocks of pixels that are averaged before the descriptor looks at them.
COARSEN = 4
#: Half the edge of a window in degrees: 128 pixels at 56 a degree.
HALF_EDGE = 128 / 56
#: In ranks, a window counts as a planted storm if its center is this near: half the edge of a patch at 40 degrees.
REACH_KM = 200.0
#: Windows nearer than this share pixels, or show the same storm a little later: neither is news.
APART = ("6h", "600km")
#: Answers to a question, and bins of the histogram, the simplest way to compare windows.
ANSWERS, BINS = 9, 32
#: Stores of embeddings, by what made them.
STORES = {"descriptor": "descriptor.zarr", "network": "embeddings.zarr"}

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
    say(f"gridrad-cube demo in {out}/ (seed {seed}): about three minutes on 2 cores")
    planted = synthetic.plant_table(seed, plants=PLANTS, scenes=SCENES, interval=INTERVAL)
    _synthesize(out, seed, say)
    _preprocess(out, workers, say)
    say("\n3. Descriptor: embeddings that need no training")
    _embed(out, "descriptor", say, model="descriptor", coarsen=COARSEN)
    answers = {"descriptor": _ask(out, "descriptor", planted, say)}
    say(f"   after {time.perf_counter() - start:.0f} s, without any training")
    _learn(out, seed, say)
    answers["network"] = _ask(out, "network", planted, say)
    _retrieval(out, planted, say)
    say("\nPictures:")
    for name, figure in _pictures(out, answers, planted).items():
        with open_for_writing(out / name) as file:
            figure.savefig(file, dpi=110)
        say(f"  {out / name}")
    say("Look further:")
    say(f"  gridrad-cube info {out}/patches.zarr")
    say(f"  gridrad-cube verify {out}/patches.zarr")
    say(f"  gridrad-cube query {out}/descriptor.zarr --like 3,4,5 -k 5")
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
            synthetic.write_scenes(folder, format=format_, scenes=count, seed=seed, **options)
        size = sum(f.stat().st_size for f in folder.rglob("*.nc"))
        say(f"   {folder}/: {count} {format_} files, {size / 1e6:.0f} MB")


def _preprocess(out: Path, workers: int, say: Say) -> None:
    say("\n2. Cubes: one chunk a patch, one shard a crop, flags, statistics and coordinates")
    radar = Recipe(channels=("reflectivity_column_maximum", "echo_top_height"))
    for folder, name, recipe in (("larc", "patches.zarr", None), ("radar", "radar.zarr", radar)):
        report = pipeline.preprocess(out / folder, out / name, recipe=recipe, workers=workers)
        say(f"   {report}")
        if report.failed:
            raise SchemaError(f"{out / folder}: a source of the demo failed; remove the folder and run again")


def _embed(out: Path, made_by: str, say: Say, *, stride: int | None = STRIDE, **options: Any) -> None:
    """Embed overlapping windows of the cube, and fit a readout for what is alike anywhere."""
    target = out / STORES[made_by]
    summary = embed(out / "patches.zarr", out=target, channels=CHANNEL, stride=stride, **options)
    say(f"   {target}: {summary['embedded']:,} windows, {summary['features']} numbers each")
    say(f"   readout: {query.fit_readout(target, whiten=True)[CHANNEL]}")


def _learn(out: Path, seed: int, say: Say) -> None:
    """Train and embed both levels."""
    say("\n4. Training and embedding, both levels")
    runs, embeddings = out / "runs", out / STORES["network"]
    options: dict[str, Any] = {"preset": "demo", "seed": seed}
    config = load_config(
        store=str(out / "patches.zarr"), out=str(runs / "256"), channels=(CHANNEL,), **options
    )
    say(f"   256: {train(config)['checkpoint']}")
    _embed(out, "network", say, checkpoint=runs / "256" / "checkpoint.pth")
    config = load_config(store=str(embeddings), out=str(runs / "2k"), **options)
    say(f"   2k: {train(config)['checkpoint']}")
    embed(embeddings, runs / "2k" / "checkpoint.pth", out / "embeddings_2k.zarr")


def _ask(out: Path, made_by: str, planted: np.ndarray, say: Say) -> xr.Dataset:
    """Return one query by place and time: the first planted storm."""
    embeddings = store.open_embeddings(out / STORES[made_by])
    place = {name: planted[0][name] for name in ("time", "latitude", "longitude")}
    answer = query.search(embeddings, place, ANSWERS, channel=CHANNEL, exclude=APART, separate=APART)
    say(
        f"   Which places and times look like {place['time']} UTC at {place['latitude']:.2f} N "
        f"{place['longitude']:.2f} E, where a storm was planted? By the {made_by}:"
    )
    say(query.format_answer(answer))
    say(f"   {sum(_holds_plant(answer, planted))} of {ANSWERS} hold the center of a planted storm.")
    return answer


def _holds_plant(answer: xr.Dataset, planted: np.ndarray) -> list[bool]:
    """Return which answers hold the center of a planted storm."""
    time, latitude, longitude = (answer[n].values[:, None] for n in ("time", "latitude", "longitude"))
    same = np.abs(time - planted["time"]) <= np.timedelta64(60, "s")
    for found, name in ((latitude, "latitude"), (longitude, "longitude")):
        same &= np.abs(found - planted[name]) <= HALF_EDGE
    return [bool(mark) for mark in same.any(axis=1)]


def _retrieval(out: Path, planted: np.ndarray, say: Say) -> None:
    """Print the median rank at which each planted storm finds the others, for several ways to compare windows."""
    ways, where = {}, None
    for made_by, name in STORES.items():
        where = query.within(store.open_embeddings(out / name), channel=CHANNEL).load()
        vectors, readout = where["embedding"].values, query.readout_of(out / name, CHANNEL)
        assert readout is not None
        if made_by == "descriptor":
            ways["histogram, standardized"] = _histograms(out, where)
        ways[f"{made_by}, as stored"] = vectors
        ways[f"{made_by}, with readout"] = readout.apply(vectors)
    both = [unit_rows(ways[f"{made_by}, with readout"]) for made_by in STORES]
    ways["mean cosine of both"] = np.concatenate(both, axis=1)
    say(
        "\n5. A storm planted again and again: more than 6 h and 200 km away, off the patch grid, mirrored, noisy"
    )
    results = {}
    for name, vectors in ways.items():
        ranks, candidates = evaluation.planted_retrieval(vectors, where, planted, reach_km=REACH_KM)
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


def _histograms(out: Path, flat: xr.Dataset) -> np.ndarray:
    """Return the square roots of the shares of pixels in bins of each window, standardized."""
    cube = store.open_cube(out / "patches.zarr")[CHANNEL]
    low, high = CHANNELS[CHANNEL].typical_range
    rows = np.empty((flat.sizes["patch"], BINS + 1))
    crop, row, col = (flat[n].values for n in ("crop", "row", "col"))
    for number in np.unique(crop):
        values = cube[number].values
        bins = np.where(np.isfinite(values), np.clip((values - low) / (high - low) * BINS, 0, BINS - 1), BINS)
        # A window is made of 2 x 2 blocks.
        height, width = (size // STRIDE for size in bins.shape)
        cut = bins.astype(np.int64).reshape(height, STRIDE, width, STRIDE)
        blocks = cut.swapaxes(1, 2).reshape(height * width, -1)
        blocks += (BINS + 1) * np.arange(height * width)[:, None]
        counts = np.bincount(blocks.ravel(), minlength=height * width * (BINS + 1)).reshape(height, width, -1)
        sums = counts[:-1] + counts[1:]
        sums = sums[:, :-1] + sums[:, 1:]
        here = crop == number
        rows[here] = np.sqrt(sums[row[here], col[here]] / (2 * STRIDE) ** 2)
    return (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-6)


def _pictures(out: Path, answers: dict[str, xr.Dataset], planted: np.ndarray) -> dict[str, Any]:
    cube, radar = (store.open_cube(out / name) for name in ("patches.zarr", "radar.zarr"))
    zenith = np.nanmean(cube["solar_zenith_angle"].values, axis=(1, 2))
    noon, dusk = int(zenith.argmin()), int(np.abs(zenith - 80).argmin())
    # Answers that hold the center of a planted storm are framed.
    asked = {
        f"query_{made_by}.png": plot.query(
            cube, answer, marks=_holds_plant(answer, planted), marks_text="planted"
        )
        for made_by, answer in answers.items()
    }
    return {
        "scene.png": plot.scene(cube, noon, channel=CHANNEL),
        "radar.png": plot.scene(radar, 0, channel="reflectivity_column_maximum"),
        "flags.png": plot.flags(cube, dusk, channel="visible_reflectance"),
        "training.png": plot.curves({"level 256": out / "runs" / "256", "level 2k": out / "runs" / "2k"}),
        **asked,
        "embeddings.png": plot.embeddings(store.open_embeddings(out / STORES["descriptor"]), noon, cube=cube),
    }
