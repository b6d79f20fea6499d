"""Compare trained and untrained networks with descriptors on storm systems of known attributes, held out by system.

    python benchmarks/learn.py --quick                                             (a minute: checks that it runs)
    python benchmarks/learn.py --folder SCRATCH --out benchmarks/results/learn.md  (40 minutes on one core)
    python benchmarks/learn.py --inputs --out benchmarks/results/inputs.md         (4 minutes on one core)

Writes storm systems as GridRad files (`storms.py` says what they are), makes a cube of them with
``gridrad_cube.preprocess``, and trains networks on the first of them with
``gridrad_cube.training.train``, as users do. Systems after those choose the penalty of ridge regression, the last test.

retrieval at 1   a held-out system in one frame, looked for among all held-out systems in a frame 60 to 100 minutes
                 later: the share that comes first, by cosine of the vectors as they are, of vectors whose features are
                 standardized, and of vectors in units of change: times the inverse root of the covariance of what
                 differs between the frames of one training system, which takes no label but place and time
R2               of attributes of held-out systems by ridge regression on the vector: size (root mean square distance of
                 the rain), root of the area above 40 dBZ, logarithm of the scale of the cells
intervals        95 %, from drawing held-out systems and, if there are several, seeds again

``--inputs`` compares vectors of `gridrad_cube.embed` with those of the same untrained network, and of the descriptor,
for block means of the same fields by numpy: whether the input path changes the measures.

The program does not repeat runs that are finished in --folder, and resumes one that was interrupted.
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
#: What a network is compared with.
BASELINE = "descriptor"
#: Frames of one system that are at least an hour apart.
PAIRS = [(a, b) for a in range(storms.FRAMES) for b in range(storms.FRAMES) if (b - a) * storms.MINUTES >= 60]
DRAWS = 2000
#: Edge in blocks of the picture whose principal components are taken.
PICTURE = 32
COLUMNS = ("retrieval at 1", "standardized", "in units of change", "R2: size", "40 dBZ area", "cell scale")
#: The objectives that are compared: the network, its stem, the fields and the number of steps are those of small.
_DINO = {"objective": "dino", "head_hidden_dim": 512, "local_crops_number": 2}
RUNS = {
    "untrained": Trial("--preset small, untrained", preset="small", length=0.0),
    "small": Trial("--preset small: contrast across time", preset="small"),
    "dino-contrast": Trial(
        "--objective dino --contrast-weight 1", {**_DINO, "contrast_weight": 1.0}, preset="small"
    ),
    "dino": Trial(
        "--objective dino --temporal-positives 20 --pool mean+std",
        {**_DINO, "temporal_positives": 20, "pool": "mean+std"},
        preset="small",
    ),
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
    return out | {name: standardized(out[name], fit) for name in found}


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
    """Train and embed: (systems, frames, features)."""
    options: dict[str, Any] = {"preset": trial.preset, **trial.options}
    if steps <= 3:
        options |= {"batch_size_per_gpu": 8}  # --quick
    checkpoint = train_whole(
        data.cube, folder, channels=(CHANNEL,), time=("2020-01-01", data.train_until), seed=seed,
        steps=round(steps * trial.length), saveckp_freq=0, **options,
    )  # fmt: skip
    embed(data.cube, checkpoint, folder / "embeddings.zarr", dtype="float32")
    return data.arrange(store.open_embeddings(folder / "embeddings.zarr")["embedding"].values)


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
        """All of `COLUMNS`, (1 + DRAWS, columns): first as they are, then with systems and seeds drawn again.

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


def report(data: Data, pixels: Mapping[str, np.ndarray], runs: Mapping[str, list[np.ndarray]]) -> list[str]:
    """The tables of the runs of several seeds."""
    truth, fit = data.truth[data.part == TEST], data.part == FIT
    measured = {name: measure(vectors, data) for name, vectors in runs.items()}
    words = {"pca": f"PCA of pixels, {COMPONENTS}"}
    for name in ("pca", "histogram", BASELINE):
        measured[words.get(name, name)] = measure([pixels[name]], data)
    found = {name: m.draws(truth) for name, m in measured.items()}
    rows = [[name, *cells(found[name]), f"{m.rank:.0f}"] for name, m in measured.items()]
    lines = ["## Held-out systems", "", *machine.table(["vector", *COLUMNS, "rank"], rows), ""]
    for other in ("untrained", BASELINE):
        rows = [
            [name, *cells(found[name] - found[other], signed=True)]
            for name in runs
            if name not in (other, "untrained")
        ]
        lines += [f"## Gain over: {other}", "", *machine.table(["vector", *COLUMNS], rows), ""]
    rows = []
    for name, vectors in runs.items():
        both = measure(together(vectors, pixels[BASELINE], fit), data)
        rows.append([f"{BASELINE} + {name}", *cells(both.draws(truth) - found[BASELINE], signed=True)[1:]])
    lines += [f"## Gain of both side by side over: {BASELINE}", ""]
    return [*lines, *machine.table(["vectors", *COLUMNS[1:]], rows), ""]


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


def main() -> None:
    """Make the systems, train, embed, measure, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of every run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few systems, two runs of three steps: checks that the program runs",
    )
    parser.add_argument(
        "--inputs", action="store_true", help="only whether the input path of a network changes the measures"
    )
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
    parts, steps, seeds = (QUICK, 3, 1) if options.quick else (FULL, options.steps, options.seeds)
    folder = folder / ("quick" if options.quick else "full")
    cube = build(folder, parts)
    data = read_data(folder, cube, parts)
    pixels = pixel_vectors(data)
    runs = {
        name: [run(data, folder / f"{name}-{steps}-{seed}", trial, seed, steps) for seed in range(seeds)]
        for name, trial in RUNS.items()
        if not options.quick or name in ("untrained", "small")
    }
    lines = intro(data, parts, steps, seeds)
    lines += report(data, pixels, runs)
    return lines


def intro(data: Data, parts: Sequence[int], steps: int, seeds: int) -> list[str]:
    """What was made and done."""
    fit, choose, test = (n * storms.SIDE**2 for n in parts)
    return [
        f"{fit} systems to fit, {choose} to choose, {test} to test, {storms.FRAMES} frames each, {storms.MINUTES} "
        f"minutes apart; {steps} steps of 128, {seeds} seed{'s' * (seeds > 1)}. Retrieval by chance: {1 / test:.3f}.",
        "",
        *(f"- {name}: {trial.words}" for name, trial in RUNS.items()),
        "",
    ]


if __name__ == "__main__":
    main()
