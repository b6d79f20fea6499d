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
from gridrad_cube.schema import PATCH_SIZE, Recipe, SchemaError
from gridrad_cube.training import load_config, train

CHANNEL = "ir_brightness_temperature"
#: LaRC scenes, two hours apart: one planted storm in each, so that plants lie more than 6 h or 200 km apart.
SCENES, INTERVAL, PLANTS = 20, "2h", 20
#: Step in pixels between the windows that are embedded: half a patch, so that a storm across the edge of one
#: patch lies whole in the next window.
STRIDE = 128
#: A window holds a planted storm if its centre is so near: half the edge of a patch at 40 degrees.
REACH_KM = 200.0
#: Windows nearer than this share pixels, or show the same storm a little later: neither is news.
APART = ("6h", "600km")
#: Components of the pixels' PCA, the baseline without any network.
COMPONENTS = 64


def run(out: str | Path, *, seed: int = 0, workers: int = 2, say: Callable[[str], Any]) -> None:
    """Build, train, embed and ask, from nothing; leave stores, runs and pictures in a folder.

    Runs again where it stopped: what is finished stays.

    Parameters
    ----------
    say
        Called with each line for the user.

    Raises
    ------
    SchemaError
        If the folder holds something else.
    """
    out = Path(out)
    start = time.perf_counter()
    _claim(out, {"seed": seed, "scenes": SCENES})
    say(f"gridrad-cube demo in {out}/ (seed {seed}): under five minutes on 2 cores")
    _synthesize(out, seed, say)
    _preprocess(out, workers, say)
    _learn(out, seed, say)
    _retrieval(out, seed, say)
    answer = _ask(out, seed, say)
    pictures = _pictures(out, answer, seed)
    say("\nPictures:")
    for path in pictures:
        say(f"  {path}")
    say("Look further:")
    for line in (
        f"gridrad-cube info {out}/patches.zarr",
        f"gridrad-cube verify {out}/patches.zarr",
        f"gridrad-cube query {out}/embeddings.zarr --like 3,4,5 -k 5",
    ):
        say(f"  {line}")
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
        mark.write_text(json.dumps(identity))


def _synthesize(out: Path, seed: int, say: Callable[[str], Any]) -> None:
    kinds: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
        ("larc", "larc-goes", SCENES, {"interval": INTERVAL, "plants": PLANTS}),
        ("radar", "gridrad-v4.2", 3, {}),
    )
    say("\n1. Source files: faithful synthetic netCDF")
    for folder, format_, count, options in kinds:
        if len(list((out / folder).rglob("*.nc"))) == count:
            continue
        synthetic.write_scenes(
            out / folder, format=format_, scenes=count, seed=seed, progress=True, **options
        )
    for folder, format_, _, _ in kinds:
        files = list((out / folder).rglob("*.nc"))
        size = sum(f.stat().st_size for f in files)
        say(f"   {out / folder}/: {len(files)} {format_} files, {size / 1e6:.0f} MB")


def _preprocess(out: Path, workers: int, say: Callable[[str], Any]) -> None:
    say("\n2. Cubes: one chunk a patch, one shard a crop, flags, statistics and coordinates")
    radar = Recipe(channels=("reflectivity_column_maximum", "echo_top_height"))
    for folder, name, recipe in (("larc", "patches.zarr", None), ("radar", "radar.zarr", radar)):
        report = pipeline.preprocess(out / folder, out / name, recipe=recipe, workers=workers, progress=True)
        say(f"   {report}")
        if report.failed:
            raise SchemaError(f"{out / folder}: a source of the demo failed")


def _learn(out: Path, seed: int, say: Callable[[str], Any]) -> None:
    """Both levels, and the same network untrained for comparison."""
    patches = str(out / "patches.zarr")
    options: dict[str, Any] = {"preset": "demo", "channels": (CHANNEL,), "seed": seed}
    say("\n3. Training and embedding, both levels")
    for folder, steps in (("256-untrained", 0), ("256", None)):
        run = train(
            load_config(store=patches, out=str(out / "runs" / folder), **options, steps=steps), progress=True
        )
        say(f"   level 256 ({folder}): {run['checkpoint']}")
    for folder, name in (("256-untrained", "embeddings_untrained.zarr"), ("256", "embeddings.zarr")):
        checkpoint = out / "runs" / folder / "checkpoint.pth"
        summary = embed(patches, checkpoint, out / name, stride=STRIDE, progress=True)
        say(f"   {out / name}: {json.dumps(summary)}")
    run = train(
        load_config(
            store=str(out / "embeddings.zarr"), out=str(out / "runs" / "2k"), preset="demo", seed=seed
        ),
        progress=True,
    )
    say(f"   level 2k: {run['checkpoint']}")
    summary = embed(
        out / "embeddings.zarr",
        out / "runs" / "2k" / "checkpoint.pth",
        out / "embeddings_2k.zarr",
        progress=True,
    )
    say(f"   {out / 'embeddings_2k.zarr'}: {json.dumps(summary)}")


def _places(seed: int) -> list[evaluation.Place]:
    table = synthetic.plant_table(seed, plants=PLANTS, scenes=SCENES, interval=INTERVAL)
    return [
        evaluation.Place(p["time"].astype("datetime64[s]"), float(p["latitude"]), float(p["longitude"]))
        for p in table
    ]


def _flat(embeddings: xr.Dataset) -> xr.Dataset:
    """Clean patches of the demo's channel on one dim, vectors in memory as float32."""
    return query.within(embeddings, channel=CHANNEL).load()


def _retrieval(out: Path, seed: int, say: Callable[[str], Any]) -> None:
    """Print the median rank at which each planted storm finds the others, for three ways to compare patches."""
    places = _places(seed)
    trained = _flat(store.open_embeddings(out / "embeddings.zarr"))
    untrained = _flat(store.open_embeddings(out / "embeddings_untrained.zarr"))
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
        result = evaluation.planted_retrieval(vectors, trained, places, reach_km=REACH_KM)
        results[name] = {
            "median_rank": result.median_rank,
            "candidates": int(np.median(result.candidates)),
            "within_10": result.within(10),
            "pairs": int(np.isfinite(result.ranks).sum()),
        }
    width = max(map(len, results))
    for name, r in results.items():
        say(
            f"   {name:{width}}  median rank {r['median_rank']:7.1f} of {r['candidates']}"
            f"   among the first ten {r['within_10']:.0%}   ({r['pairs']} pairs of {PLANTS} plants)"
        )
    (out / "retrieval.json").write_text(json.dumps(results, indent=1))


def _pca(out: Path, flat: xr.Dataset) -> np.ndarray:
    """Principal components of the same windows' pixels, coarsened and normalised as the network sees them."""
    checkpoint = torch.load(out / "runs" / "256" / "checkpoint.pth", weights_only=True, map_location="cpu")
    rules = {k: datasets.Normalization.from_dict(v) for k, v in checkpoint["normalization"].items()}
    coarsen = checkpoint["coarsen"]
    reader = store.PatchReader(out / "patches.zarr")
    edge, step = reader.patch // coarsen, STRIDE // coarsen
    rows = np.empty((flat.sizes["patch"], edge * edge), np.float32)
    crop, row, col = (flat[n].values for n in ("crop", "row", "col"))
    for number in np.unique(crop):
        codes = torch.from_numpy(reader.read_crop(CHANNEL, int(number)))[None, None]
        field, _ = datasets.decode(
            codes, torch.zeros(1, dtype=torch.int64), (rules[CHANNEL],), coarsen=coarsen
        )
        windows = np.lib.stride_tricks.sliding_window_view(field[0, 0].numpy(), (edge, edge))[::step, ::step]
        here = crop == number
        rows[here] = windows[row[here], col[here]].reshape(-1, edge * edge)
    return evaluation.principal_components(rows, COMPONENTS)


def _ask(out: Path, seed: int, say: Callable[[str], Any]) -> xr.Dataset:
    """One query by place and time: the first planted storm."""
    embeddings = store.open_embeddings(out / "embeddings.zarr")
    place = _places(seed)[0]
    question = {"time": place.time, "latitude": place.latitude, "longitude": place.longitude}
    answer = query.search(embeddings, question, 9, channel=CHANNEL, exclude=APART, separate=APART)
    say(
        f"\n5. Which places and times look like {place.time} UTC at {place.latitude:.2f} N {place.longitude:.2f} E, "
        "where a storm was planted?"
    )
    say(query.format_answer(answer))
    return answer


def _pictures(out: Path, answer: xr.Dataset, seed: int) -> list[Path]:
    cube = store.open_cube(out / "patches.zarr")
    radar = store.open_cube(out / "radar.zarr")
    embeddings = store.open_embeddings(out / "embeddings.zarr")
    noon = int(np.argmin(np.nanmean(cube["solar_zenith_angle"].values, axis=(1, 2))))
    dusk = int(np.argmin(np.abs(np.nanmean(cube["solar_zenith_angle"].values, axis=(1, 2)) - 80)))
    figures = {
        "scene.png": plot.scene(cube, noon, channel=CHANNEL),
        "radar.png": plot.scene(radar, 0, channel="reflectivity_column_maximum"),
        "flags.png": plot.flags(cube, dusk, channel="visible_reflectance"),
        "training.png": plot.curves({"level 256": out / "runs" / "256", "level 2k": out / "runs" / "2k"}),
        "query.png": _query_picture(cube, answer, out, seed),
        "embeddings.png": plot.components(embeddings, noon, cube=cube),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(out / name)
        figure.savefig(paths[-1], dpi=110)
    return paths


def _query_picture(cube: xr.Dataset, answer: xr.Dataset, out: Path, seed: int) -> Any:
    """The query beside its answers; those that hold a planted storm are framed."""
    places = _places(seed)
    time = answer["time"].values.astype("datetime64[s]")
    marks = np.zeros(answer.sizes["rank"], bool)
    for place in places:
        distance = great_circle_km(
            place.latitude, place.longitude, answer["latitude"].values, answer["longitude"].values
        )
        marks |= (np.abs(time - place.time) <= np.timedelta64(60, "s")) & (distance <= REACH_KM)
    embeddings = store.open_embeddings(out / "embeddings.zarr")
    own = query.at(embeddings, places[0].time, places[0].latitude, places[0].longitude)
    pictures = [_window(cube, answer.isel(rank=i)) for i in range(answer.sizes["rank"])]
    return plot.neighbours(
        pictures,
        answer,
        _window(cube, own),
        CHANNEL,
        query_place=(places[0].latitude, places[0].longitude),
        query_text=f"query: a planted storm\n{str(places[0].time)[:16].replace('T', ' ')} UTC",
        marks=marks.tolist(),
        dataset=cube,
    )


def _window(cube: xr.Dataset, one: xr.Dataset) -> np.ndarray:
    """Pixels of an answer: its window of the crop, physical units."""
    y, x = (int(one[n]) * STRIDE for n in ("row", "col"))
    edge = PATCH_SIZE
    return np.asarray(cube[CHANNEL][int(one["crop"]), y : y + edge, x : x + edge].values)
