"""Does training learn? Storm systems with known attributes, held out by system: trained, untrained, and no network.

    python benchmarks/learn.py --quick                                                      (a minute: does it run)
    python benchmarks/learn.py --folder SCRATCH --out benchmarks/results/learn.md           (90 minutes on 2 cores)
    python benchmarks/learn.py --folder SCRATCH --trials --out benchmarks/results/learn.md  (and one seed of each trial)
    python benchmarks/learn.py --inputs --out benchmarks/results/inputs.md                  (4 minutes on one core)

Writes storm systems as GridRad files (`storms.py` says what they are), makes a cube of them with
``gridrad_cube.preprocess``, and trains networks on the first of them with
``gridrad_cube.training.train``, as users do. Systems after those choose the penalty of ridge regression, the last test.

retrieval at 1   a held-out system in one frame, looked for among all held-out systems in a frame 60 to 100 minutes
                 later: the share that comes first, by cosine of the vectors as they are, of vectors whose features are
                 standardized, and of vectors in units of change: times the inverse root of the covariance of what
                 differs between the frames of one training system, which takes no label but place and time
R2               of attributes of held-out systems by ridge regression on the vector: size (root mean square distance of
                 the rain), root of the area above 40 dBZ, logarithm of the scale of the cells
intervals        95 %, from drawing held-out systems anew and, where there are several, seeds

``--inputs`` compares vectors of `gridrad_cube.embed` with those of the same untrained network, and of the descriptor,
for block means of the same fields by numpy: whether the input path changes the measures.

Runs that are finished in --folder are not repeated; one that was interrupted resumes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads cost more than they give for small products

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import storms
import torch
from trials import COMPONENTS, Trial, beside, principal_components, standardized, train_whole

from gridrad_cube import pipeline, store
from gridrad_cube.embedding import embed
from gridrad_cube.evaluation import CHOOSE, FIT, TEST, describe_pixels, ridge
from gridrad_cube.models import describe_maps, load_backbone, load_checkpoint, local_maps, pool_tokens
from gridrad_cube.schema import CHANNELS, Packing, RadarSpec, Recipe
from gridrad_cube.similarity import rank_me, unit_rows

CHANNEL = "reflectivity_column_maximum"
#: Mosaics of 16 systems to fit, to choose, to test.
FULL, QUICK = (36, 6, 8), (2, 1, 1)
#: The same for ``--inputs``.
FEWER = (24, 4, 8)
#: Edge in pixels of the blocks that are averaged by ``--inputs``.
BLOCK = 4
#: Frames of one system that are at least an hour apart.
PAIRS = [(a, b) for a in range(storms.FRAMES) for b in range(storms.FRAMES) if (b - a) * storms.MINUTES >= 60]
DRAWS = 2000
#: Edge in blocks of the picture whose principal components are taken.
PICTURE = 32
COLUMNS = ("retrieval at 1", "standardized", "in units of change", "R2: size", "40 dBZ area", "cell scale")
#: Fields of 64 px (256 averaged in blocks of 4), the network of six layers of 192.
SMALL = {"arch": "vit_demo", "coarsen": 4, "image_size": 64}
#: The recipe of ``--preset demo`` before it trained the contrast.
EARLIER = {
    **SMALL, "objective": "coding-rate", "lr": 3e-3, "global_size": 48, "local_size": 32, "local_crops_number": 2,
    "zoom": (0.9, 1.1), "flips": "h", "warmup_epochs": 0.5, "momentum_teacher": 0.98, "weight_decay_end": 0.04,
    "drop_path_rate": 0.0, "out_dim": 1024, "head_hidden_dim": 512, "freeze_last_layer": 0.25,
    "warmup_teacher_temp": 0.03, "teacher_temp": 0.03, "warmup_teacher_temp_epochs": 0,
}  # fmt: skip


def earlier(words: str, length: float = 1.0, **options: Any) -> Trial:
    """A trial of the earlier recipe with other options."""
    return Trial(words, EARLIER | options, preset="none", length=length)


RUNS = {
    "untrained": earlier("the same network, untrained", length=0.0),
    "dino": earlier("earlier recipe, --objective dino --lr 2e-3", objective="dino", lr=2e-3),
    "coding-rate": earlier("earlier recipe"),
    "predecessor": Trial(
        "--preset predecessor, its views by a quarter (56 and 24 px), 1,024 prototypes, 4 x 16 a step",
        {**SMALL, "global_size": 56, "local_size": 24, "batch_size_per_gpu": 64, "out_dim": 1024,
         "head_hidden_dim": 512, "precision": "auto"},
        preset="predecessor",
    ),
    "longer": earlier(
        "earlier recipe, --flips none --temporal-positives 60 --global-size 56 --local-crops-number 0, 3 x the steps",
        3.0, flips="none", temporal_positives=60, global_size=56, local_crops_number=0,
    ),
}  # fmt: skip
_PAIRS: dict[str, Any] = {"flips": "none", "temporal_positives": 60}
#: What was tried besides `RUNS`: one seed each.
TRIALS = {
    "cr_t60": earlier("A: --flips none --temporal-positives 60", **_PAIRS),
    "cr_t60_lr1e3": earlier("A --lr 1e-3", **_PAIRS, lr=1e-3),
    "cr_t60_g56_l0": earlier(
        "A --global-size 56 --local-crops-number 0", **_PAIRS, global_size=56, local_crops_number=0
    ),
    "dino_t60": earlier("A --objective dino --lr 2e-3", **_PAIRS, objective="dino", lr=2e-3),
    "long": earlier("earlier recipe, 3 x the steps", 3.0),
    "p16_cr_t60": earlier("A --patch-size 16", 8 / 3, **_PAIRS, patch_size=16),
    "p16_cr_t60_lr1e3": earlier("A --patch-size 16 --lr 1e-3", 8 / 3, **_PAIRS, patch_size=16, lr=1e-3),
}


def build(folder: Path, parts: Sequence[int]) -> Path:
    """The cube of all systems."""
    for mosaic in range(sum(parts)):
        storms.write_mosaic(folder, mosaic)
    cube = folder / "patches.zarr"
    if not (cube / "zarr.json").exists():
        recipe = Recipe(format="gridrad", channels=(CHANNEL,), radar=RadarSpec(qc="none"))
        report = pipeline.preprocess(folder / "scenes", cube, recipe=recipe)
        assert not report.failed, report
    return cube


@dataclass(frozen=True)
class Data:
    """Systems, in the order of the truth: everything is (systems, frames, ...)."""

    cube: Path
    order: np.ndarray
    truth: np.ndarray
    part: np.ndarray
    train_until: str

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Rows in the order of (crop, row, col) of the cube as (systems, frames, features)."""
        rows = values.reshape(-1, values.shape[-1])[self.order]
        return rows.reshape(*self.truth.shape[:2], -1)


def read_data(folder: Path, cube: Path, parts: Sequence[int]) -> Data:
    """Which patch of the cube shows which system when, and the truth."""
    dataset = store.open_packed(cube)
    side, frames, mosaics = storms.SIDE, storms.FRAMES, sum(parts)
    latitude = dataset["latitude"].values
    crop_of = {np.datetime64(t, "s"): i for i, t in enumerate(dataset["time"].values.astype("M8[s]"))}
    order = []
    for mosaic, row, column, frame in np.ndindex(mosaics, side, side, frames):
        crop = crop_of[storms.frame_time(mosaic, frame)]
        from_south = np.argsort(latitude[crop, :, 0])
        order.append((crop * side + from_south[row]) * side + column)
    truth = storms.read_truth(folder, mosaics).reshape(mosaics * side**2, frames, -1)
    part = np.repeat([FIT, CHOOSE, TEST], [n * side**2 for n in parts])
    until = storms.START.astype("M8[D]") + parts[0]
    return Data(cube, np.array(order), truth, part, str(until))


def pixel_vectors(data: Data) -> dict[str, np.ndarray]:
    """What needs no network: (systems, frames, features)."""
    dataset = store.open_packed(data.cube)
    crops, side, edge = dataset.sizes["crop"], storms.SIDE, storms.PATCH
    crop, row, column = (a.ravel() for a in np.indices((crops, side, side)))
    _, found = describe_pixels(dataset, crop, row * edge, column * edge, (edge, edge), (CHANNEL,))
    reader = store.PatchReader(data.cube)
    packing = Packing.from_attributes(dataset[CHANNEL].attrs, dataset[CHANNEL].dtype)
    picture = np.empty((len(crop), PICTURE**2))
    for start in range(0, len(crop), 256):
        some = slice(start, start + 256)
        codes = reader.read(CHANNEL, np.stack([crop[some], row[some], column[some]], axis=1))
        for i, patch in enumerate(codes):
            values = np.where(packing.echo(patch), packing.decode(patch), 0.0)
            blocks = values.reshape(PICTURE, edge // PICTURE, PICTURE, edge // PICTURE)
            picture[start + i] = blocks.mean(axis=(1, 3)).ravel()
    out = {name: data.arrange(values) for name, values in found.items()}
    fit = data.part == FIT
    out["pca"] = principal_components(data.arrange(picture), fit)
    for name in found:
        out[name] = standardized(out[name], fit)
    return out


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])


def in_units_of_change(values: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Vectors in which the frames of one system to fit differ equally in every direction."""
    values = standardized(values, fit)
    change = _rows(values[fit] - values[fit].mean(axis=1, keepdims=True))
    covariance = change.T @ change / len(change)
    size = len(covariance)
    floor = 1e-3 * np.trace(covariance) / size  # directions that never change would outweigh all others
    root = np.linalg.cholesky(np.linalg.inv(covariance + floor * np.eye(size)))
    return np.asarray(values @ root)


def run(data: Data, folder: Path, trial: Trial, seed: int, steps: int) -> np.ndarray:
    """Train and embed: class token and mean of tokens one after the other, (systems, frames, features)."""
    steps = round(steps * trial.length)
    options: dict[str, Any] = {"preset": trial.preset, **trial.options}
    if steps <= 3:
        options |= {"batch_size_per_gpu": 8, "patch_size": 16}  # --quick
    options |= schedule(trial, steps, int((data.part == FIT).sum()) * storms.FRAMES)
    checkpoint = train_whole(
        data.cube, folder, channels=(CHANNEL,), time=("2020-01-01", data.train_until), seed=seed, steps=steps,
        saveckp_freq=0, **options,
    )  # fmt: skip
    embed(data.cube, checkpoint, folder / "embeddings.zarr", pool="class+mean", dtype="float32")
    return data.arrange(store.open_embeddings(folder / "embeddings.zarr")["embedding"].values)


def schedule(trial: Trial, steps: int, samples: int) -> dict[str, Any]:
    """The predecessor's lengths, 19 and 1 of 20 epochs, as shares of the steps."""
    if trial.preset != "predecessor":
        return {}
    epochs = steps * trial.options["batch_size_per_gpu"] / samples
    return {"warmup_teacher_temp_epochs": 19 / 20 * epochs, "freeze_last_layer": epochs / 20}


def hits(vectors: np.ndarray) -> np.ndarray:
    """Share of the pairs of frames in which each system finds itself an hour or more later, (systems,)."""
    unit = unit_rows(vectors)
    found = [(unit[:, a] @ unit[:, b].T).argmax(axis=1) == np.arange(len(unit)) for a, b in PAIRS]
    return np.asarray(np.mean(found, axis=0))


def errors(vectors: np.ndarray, data: Data) -> np.ndarray:
    """Of the ridge regression of each attribute on test systems: squared errors, (targets, systems, frames)."""
    x, part = _rows(vectors), np.repeat(data.part, storms.FRAMES)
    out = []
    for target in np.moveaxis(data.truth, -1, 0):
        y = target.reshape(-1, 1)
        out.append(((ridge(x, y, part) - y) ** 2).reshape(target.shape)[data.part == TEST])
    return np.stack(out)


@dataclass(frozen=True)
class Measured:
    """Of test systems: hits in three ways (ways, seeds, systems), errors (seeds, targets, systems, frames)."""

    hits: np.ndarray
    errors: np.ndarray
    rank: float

    def draws(self, truth: np.ndarray) -> np.ndarray:
        """All of `COLUMNS`, (1 + DRAWS, columns): first as they are, then with systems and seeds drawn anew.

        The draws of all that is measured are the same, so that differences are of pairs.
        """
        rng = np.random.default_rng(0)
        seeds, systems = self.hits.shape[1:]
        counts = rng.multinomial(systems, np.full(systems, 1 / systems), DRAWS)
        weights = np.concatenate([np.ones((1, systems)), counts])
        share = np.random.default_rng(1).multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)
        share = np.concatenate([np.ones((1, seeds)), share]) / seeds
        retrieval = [weights @ found.T / systems for found in self.hits]  # (draws, seeds)
        y = np.moveaxis(truth, -1, 0)  # (targets, systems, frames)
        total = weights.sum(axis=1, keepdims=True) * y.shape[2]
        spread = np.einsum("ds,ksf->dk", weights, y**2) - np.einsum("ds,ksf->dk", weights, y) ** 2 / total
        wrong = np.einsum("ds,nks->dnk", weights, self.errors.sum(axis=-1))
        values = np.concatenate([np.stack(retrieval, axis=-1), 1 - wrong / spread[:, None]], axis=2)
        return np.asarray(np.einsum("dnk,dn->dk", values, share))


def measure(vectors: Sequence[np.ndarray], data: Data) -> Measured:
    """One array of vectors for each seed."""
    test, fit = data.part == TEST, data.part == FIT
    ways = [vectors, *([change(v, fit) for v in vectors] for change in (standardized, in_units_of_change))]
    return Measured(
        np.stack([[hits(w[test]) for w in way] for way in ways]),
        np.stack([errors(v, data) for v in vectors]),
        float(np.mean([rank_me(_rows(v[test])) for v in vectors])),
    )


def together(one: Sequence[np.ndarray], other: np.ndarray, fit: np.ndarray) -> list[np.ndarray]:
    """Vectors of each seed beside others, both standardized and of equal length."""
    return [beside(standardized(v, fit), standardized(other, fit)) for v in one]


def cells(draws: np.ndarray, *, signed: bool = False) -> list[str]:
    """A number and its 95 % interval for each column."""
    low, high = np.quantile(draws[1:], [0.025, 0.975], axis=0)
    form = "{:+.2f} ({:+.2f} to {:+.2f})" if signed else "{:.2f} ({:.2f} to {:.2f})"
    return [form.format(*found) for found in zip(draws[0], low, high, strict=True)]


#: What an embedding with ``pool="class+mean"`` holds, half and half.
POOLS = ("class token", "mean of tokens")


def report(data: Data, pixels: Mapping[str, np.ndarray], runs: Mapping[str, list[np.ndarray]]) -> list[str]:
    """The tables of the runs of several seeds."""
    truth, fit = data.truth[data.part == TEST], data.part == FIT
    halves = {
        (name, pool): [np.split(v, 2, axis=-1)[i] for v in vectors]
        for name, vectors in runs.items()
        for i, pool in enumerate(POOLS)
    }
    draws = {key: measure(vectors, data) for key, vectors in halves.items()}
    found = {key: m.draws(truth) for key, m in draws.items()}
    rows = [[f"{n}: {pool}", *cells(d), f"{draws[n, pool].rank:.0f}"] for (n, pool), d in found.items()]
    plain = {name: measure([pixels[name]], data) for name in ("pca", "histogram", "descriptor")}
    words = {"pca": f"PCA of pixels, {COMPONENTS}"}
    rows += [[words.get(n, n), *cells(m.draws(truth)), f"{m.rank:.0f}"] for n, m in plain.items()]
    lines = ["## Held-out systems", "", *machine.table(["vector", *COLUMNS, "rank"], rows), ""]
    rows = [
        [f"{n}: {pool}", *cells(d - found["untrained", pool], signed=True)]
        for (n, pool), d in found.items()
        if n != "untrained"
    ]
    lines += ["## Gain over the same network untrained", "", *machine.table(["vector", *COLUMNS], rows), ""]
    rows = []
    for other in ("descriptor", "histogram"):
        alone = plain[other].draws(truth)
        for (name, pool), vectors in halves.items():
            both = measure(together(vectors, pixels[other], fit), data)
            gain = cells(both.draws(truth) - alone, signed=True)
            rows.append([f"{other} + {name}: {pool}", *gain[1:]])
    lines += [
        "## Gain of both together over the descriptor, or the histogram, alone", "",
        *machine.table(["vectors", *COLUMNS[1:]], rows), "",
    ]  # fmt: skip
    return lines


def tried(data: Data, found: Mapping[str, np.ndarray]) -> list[str]:
    """The table of the trials of one seed."""
    truth = data.truth[data.part == TEST]
    rows = [
        [TRIALS[name].words, pool, *cells(measure([half], data).draws(truth))]
        for name, vectors in found.items()
        for pool, half in zip(POOLS, np.split(vectors, 2, axis=-1), strict=True)
    ]
    return [
        "## Trials of one seed", "",
        "A is the earlier recipe with the first row's options; those with tokens of 16 px took 8/3 of the steps, in "
        "the same time.", "", *machine.table(["options", "vector", *COLUMNS], rows), "",
    ]  # fmt: skip


def drawn_fields(parts: Sequence[int]) -> Iterator[np.ndarray]:
    """Fields of dBZ as they were drawn, before any file: 16 at a time, in the order of `Data`; 0 without echo."""
    for number in range(sum(parts) * storms.SIDE**2):
        fields = [storms.draw_frame(0, number, frame)[0] for frame in range(storms.FRAMES)]
        yield np.nan_to_num(np.stack(fields))


def stored_fields(data: Data) -> Iterator[np.ndarray]:
    """The same from the cube, decoded by xarray's rules alone; -99 without echo."""
    dataset = store.open_cube(data.cube)[CHANNEL]
    side = storms.SIDE
    for rows in data.order.reshape(-1, storms.FRAMES):
        crop, place = np.divmod(rows, side**2)
        row, column = np.divmod(place, side)
        patches = [
            dataset[c, r * storms.PATCH : (r + 1) * storms.PATCH, k * storms.PATCH : (k + 1) * storms.PATCH]
            for c, r, k in zip(crop, row, column, strict=True)
        ]
        yield np.nan_to_num(np.stack([patch.values for patch in patches]))


def mean_of_decibels(fields: np.ndarray) -> np.ndarray:
    """Means of blocks of dBZ, of which less than 0 counts as 0."""
    return _block_means(np.maximum(fields, 0))


def mean_of_linear(fields: np.ndarray) -> np.ndarray:
    """Means of blocks of linear Z, as dBZ and at least 0; no echo counts as nothing."""
    z = np.where(fields == 0, 0, 10 ** (fields / 10))
    return np.maximum(10 * np.log10(np.maximum(_block_means(z), 1)), 0)


def _block_means(fields: np.ndarray) -> np.ndarray:
    edge = fields.shape[-1] // BLOCK
    return np.asarray(fields.reshape(-1, edge, BLOCK, edge, BLOCK).mean(axis=(2, 4), dtype=np.float64))


def compare_inputs(folder: Path, parts: Sequence[int]) -> list[str]:
    """The table of ``--inputs``."""
    cube = build(folder, parts)
    data = read_data(folder, cube, parts)
    options = {"preset": "demo", "coarsen": BLOCK, "steps": 0, "channels": (CHANNEL,)}
    path, rows = train_whole(cube, folder / "run", **options), []
    checkpoint = load_checkpoint(path)
    network, rule = load_backbone(checkpoint), checkpoint["normalization"][CHANNEL]
    high = CHANNELS[CHANNEL].typical_range[1]
    every = torch.zeros(0, dtype=torch.bool)

    def by_network(dbz: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy((dbz - rule["mean"]) / rule["std"]).float()[:, None]
        tokens = (x.shape[-1] // network.patch_size) ** 2
        return pool_tokens(network.forward_tokens(x, every.new_zeros(len(x), tokens)), None, "mean")

    def by_descriptor(dbz: np.ndarray) -> torch.Tensor:
        return describe_maps(local_maps(torch.from_numpy(2 * dbz / high - 1).float()[:, None]))

    def directly(
        fields: Iterator[np.ndarray], average: Any, function: Callable[..., torch.Tensor]
    ) -> np.ndarray:
        with torch.inference_mode():
            found = [function(average(some)).numpy() for some in fields]
        return np.stack(found)

    def embedded(name: str, **options: Any) -> np.ndarray:
        embed(data.cube, out=folder / name, **options)
        values = store.open_embeddings(folder / name)["embedding"].values
        return data.arrange(values.astype(np.float32))

    vectors = {}
    for words, function, embedder in (
        ("network", by_network, {"checkpoint": path, "pool": "mean"}),
        ("descriptor", by_descriptor, {"model": "descriptor", "coarsen": BLOCK}),
    ):
        stored = vectors[f"{words}: embed"] = embedded(f"{words}.zarr", dtype="float32", **embedder)
        vectors[f"{words}: embed, float16"] = embedded(f"{words}-16.zarr", **embedder)
        vectors[f"{words}: numpy, mean of dBZ"] = directly(stored_fields(data), mean_of_decibels, function)
        vectors[f"{words}: numpy, mean of linear Z"] = directly(stored_fields(data), mean_of_linear, function)
        if function is by_descriptor:
            fields = drawn_fields(parts)
            vectors[f"{words}: numpy, mean of dBZ, from the fields before any file"] = directly(
                fields, mean_of_decibels, function
            )
        spread = _rows(stored).std(axis=0)
        for name in [n for n in vectors if n.startswith(words)]:
            found = measure([vectors[name]], data).draws(data.truth[data.part == TEST])
            apart = np.sqrt(np.mean((_rows(vectors[name] - stored) / np.maximum(spread, 1e-6)) ** 2))
            rows.append([name, *cells(found), f"{apart:.1e}"])
    fit, choose, test = (n * storms.SIDE**2 for n in parts)
    return [
        f"{fit} systems to fit, {choose} to choose, {test} to test; fields of {storms.PATCH} px averaged in blocks of "
        f"{BLOCK} px; an untrained network of `--preset demo` (mean of tokens) and the descriptor. The last column is "
        "the root mean square difference from the first row of each, in standard deviations of a feature. Checkpoints "
        "whose rule is `reflectivity` average linear Z, those with `decibel` dBZ.", "",
        *machine.table(["vector", *COLUMNS, "apart"], rows), "",
    ]  # fmt: skip


def smoke(folder: Path, mrms: Path, steps: int) -> list[str]:
    """Train on the west of real frames and test on the east: whether the program works on real files."""
    cube, channel = folder / "mrms.zarr", "precipitation_rate"
    pipeline.preprocess(sorted(mrms.glob("mrms_precipitation_rate_*.nc")), cube)
    dataset = store.open_packed(cube)
    longitude = dataset["longitude"].values
    middle = float(np.nanmedian(longitude))
    wet = dataset[f"{channel}_echo_fraction"].values >= 0.05
    east = wet[0] & wet[-1] & (longitude[0] > middle)
    found = {}
    for words, length in (("trained", steps), ("untrained", 0)):
        out = folder / f"mrms-{length}"
        options = {"preset": "demo", "bbox": (-180, -90, middle, 90), "steps": length, "channels": (channel,)}
        embed(cube, train_whole(cube, out, **options), out / "embeddings.zarr", pool="mean")
        vectors = store.open_embeddings(out / "embeddings.zarr")["embedding"].values[:, 0]
        unit = [unit_rows(v[east].astype(np.float32)) for v in (vectors[0], vectors[-1])]
        found[words] = float(np.mean((unit[0] @ unit[1].T).argmax(axis=1) == np.arange(east.sum())))
    return [
        "## Smoke test on real frames", "",
        f"{len(dataset['time'])} MRMS rain rates of ten minutes, {steps} steps on the west: of {east.sum()} patches of "
        f"the east with rain, {found['trained']:.0%} find themselves ten minutes later (mean of tokens; untrained "
        f"{found['untrained']:.0%}). Ten minutes change little: this shows that real files work, not that the "
        "network learned.", "",
    ]  # fmt: skip


def main() -> None:
    """Make the systems, train, embed, measure, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150, help="of every run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="few systems, few runs of one step: whether it runs"
    )
    parser.add_argument("--trials", action="store_true", help="also one seed of everything that was tried")
    parser.add_argument(
        "--inputs", action="store_true", help="only whether the input path of a network changes the measures"
    )
    parser.add_argument("--mrms", type=Path, help="folder of MRMS rain rates: a smoke test on real frames")
    parser.add_argument("--folder", type=Path, help="scratch folder, kept; a temporary one by default")
    parser.add_argument("--out", type=Path, help="write the tables here too")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if options.inputs:
            parts = QUICK if options.quick else FEWER
            lines = compare_inputs(folder / f"inputs{'-quick' * options.quick}", parts)
            machine.report("Does the input path of a network change the measures?", lines, options.out)
        else:
            machine.report("Does training learn?", evaluate(folder, options), options.out)


def evaluate(folder: Path, options: argparse.Namespace) -> list[str]:
    """All runs, and the lines on them."""
    parts, steps, seeds = (QUICK, 1, 1) if options.quick else (FULL, options.steps, options.seeds)
    folder = folder / ("quick" if options.quick else "full")
    cube = build(folder, parts)
    data = read_data(folder, cube, parts)
    pixels = pixel_vectors(data)
    runs = {
        name: [run(data, folder / f"{name}-{steps}-{seed}", trial, seed, steps) for seed in range(seeds)]
        for name, trial in RUNS.items()
        if not options.quick or name in ("untrained", "coding-rate")
    }
    lines = intro(data, parts, steps, seeds)
    lines += report(data, pixels, runs)
    if options.trials:
        found = {n: run(data, folder / f"{n}-{steps}-0", trial, 0, steps) for n, trial in TRIALS.items()}
        lines += tried(data, found)
    if options.mrms:
        lines += smoke(folder, options.mrms, min(steps, 60))
    return lines


def intro(data: Data, parts: Sequence[int], steps: int, seeds: int) -> list[str]:
    """What was made and done."""
    fit, choose, test = (n * storms.SIDE**2 for n in parts)
    return [
        f"{fit} systems to fit, {choose} to choose, {test} to test, {storms.FRAMES} frames each, {storms.MINUTES} "
        f"minutes apart; {steps} steps of 64, {seeds} seed{'s' * (seeds > 1)}. Retrieval by chance: {1 / test:.3f}.",
        "",
        *(f"- {name}: {trial.words}" for name, trial in RUNS.items()),
        "",
    ]


if __name__ == "__main__":
    main()
