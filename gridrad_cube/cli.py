"""The command line: results on stdout, progress and logs on stderr, one readable line for an error."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gridrad_cube import __version__
from gridrad_cube.schema import QualitySpec, RadarSpec, Recipe, TileSpec

FORMATS = ("auto", "larc-goes", "gridrad-v4.2", "gridrad-v3.1", "gridrad-v4.1", "cf")
#: Errors that are about what was asked for; anything else is a fault of the program and shows its traceback.
EXPECTED = (ValueError, OSError, ImportError)


class _Commands(click.Group):
    """A group that turns expected errors into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(_one_line(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


#: Options of preprocess that a preset gives where the user does not.
PRESETS: dict[str, dict[str, Any]] = {
    "predecessor": {
        "crop": "2048",
        "placement": "random",
        "rule": "predecessor",
        "max_deviation_factor": 3.0,
        "global_mean_deviation_factor": 3.0,
    }
}
_THRESHOLDS = {
    "max_deviation_factor": (float, "local_outlier: standard deviations from the patch mean."),
    "global_mean_deviation_factor": (float, "global_outlier: deviations of the patch mean."),
    "rule": (click.Choice(["echo", "predecessor"]), "Formula of both."),
    "low_coverage": (float, "low_coverage: share of pixels observed."),
    "night_solar_zenith": (float, "night: degrees."),
    "low_sun_solar_zenith": (float, "low_sun: degrees."),
    "limb_satellite_zenith": (float, "limb: degrees."),
}


def _thresholds(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each threshold of the flags, None where not said."""
    for name, (kind, text) in reversed(_THRESHOLDS.items()):
        standard = getattr(QualitySpec(), name)
        option = click.option(f"--{name.replace('_', '-')}", type=kind, help=f"{text} [default: {standard}]")
        command = option(command)
    return command


def _given_thresholds(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _THRESHOLDS if options[name] is not None}


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, package_name="gridrad-cube")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
def cli(debug: bool) -> None:
    """Gridded radar and satellite files to a Zarr cube, embeddings, and answers about them.

    \b
    The road:  synthesize (or your files) -> preprocess -> train -> embed -> train -> embed -> query
    See it run on synthetic storms:  gridrad-cube demo
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    type=click.Choice([f for f in FORMATS if f not in ("auto", "cf")]),
    default="larc-goes",
    show_default=True,
)
@click.option("--scenes", type=click.IntRange(1), default=6, show_default=True, help="Number of files.")
@click.option(
    "--shape", type=int, nargs=2, default=None, help="Rows and columns; the format's own by default."
)
@click.option("--start", default=None, help="Time of the first scene, UTC, such as 2021-07-05T12:00.")
@click.option("--interval", default=None, help="Time between scenes, such as 10min or 6h.")
@click.option("--plants", type=click.IntRange(0), default=0, help="Plant one storm complex so often.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--fault", "faults", multiple=True, help="Plant a fault (repeatable): truncated, text, empty, ..."
)
def synthesize(out: Path, format_: str, shape: tuple[int, int] | None, **options: Any) -> None:
    """Write faithful synthetic source files into OUT.

    \b
    gridrad-cube synthesize demo/larc --scenes 12 --seed 1
    gridrad-cube synthesize demo/radar --format gridrad-v4.2 --scenes 3
    """
    from tqdm import tqdm

    from gridrad_cube import synthetic

    paths = synthetic.iter_scenes(out, format=format_, shape=shape or None, **options)
    for path in tqdm(paths, total=options["scenes"], desc="synthesize", unit="file"):
        click.echo(path)


@cli.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--store", required=True, help="Path or URL of the cube to build, continue or extend.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="auto", show_default=True)
@click.option("--channels", "-c", multiple=True, help="Channel, such as reflectivity@3.0km (repeatable).")
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="CHANNEL=NAME[:UNITS]",
    help="Which variable of a CF file is a channel, and its units where the file lacks them.",
)
@click.option(
    "--crop", default="scene", show_default=True, help="'scene', an edge, or 'HEIGHTxWIDTH' in pixels."
)
@click.option(
    "--placement",
    type=click.Choice(["tiles", "random", "center", "list"]),
    default=None,
    help="Where crops of a given size lie (tiles unless said).",
)
@click.option(
    "--offset",
    "offsets",
    type=int,
    nargs=2,
    multiple=True,
    metavar="Y X",
    help="First pixel of a crop in its scene, for --placement list (repeatable).",
)
@click.option(
    "--crops-per-scene",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many --placement random draws.",
)
@click.option("--patch", type=int, default=256, show_default=True, help="Edge of a patch in pixels.")
@click.option(
    "--companion",
    "companions",
    multiple=True,
    metavar="NAME",
    help="Further variable of the files to carry beside the channels, such as ot_id_number (repeatable).",
)
@click.option("--echo-top-dbz", type=float, default=18.5, show_default=True, help="Threshold of echo tops.")
@click.option(
    "--qc",
    type=click.Choice(["fixed", "published", "none"]),
    default="fixed",
    show_default=True,
    help="Quality control of GridRad volumes.",
)
@click.option(
    "--qc-constant",
    "qc_constants",
    multiple=True,
    metavar="NAME=VALUE",
    help="A constant of the quality control other than published, such as speckle_fraction=0.4 (repeatable).",
)
@click.option(
    "--mixed-lattices",
    is_flag=True,
    help="Take GridRad v3.1 and v4 into one store; their pixels do not align.",
)
@_thresholds
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=None,
    help="Crops and thresholds of the predecessor, where not said otherwise.",
)
@click.option("--codec", type=click.Choice(["fast", "small", "raw"]), default="fast", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random placement.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine."
)
@click.option(
    "--scheduler", default=None, help="Address, or scheduler file, of a running Dask scheduler instead."
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="How often a file is tried again after an error of disk or network.",
)
@click.pass_context
def preprocess(context: click.Context, **options: Any) -> None:
    """Build a cube from SOURCES (files and folders), or continue or extend it.

    \b
    gridrad-cube preprocess data/ --store patches.zarr --workers 8
    gridrad-cube preprocess data/ --store crops.zarr --crop 2048 --placement random --seed 7

    An interrupted run continues when the same command is given again. Exit status 1 if any file failed.
    """
    from gridrad_cube import pipeline

    options |= {
        name: value
        for name, value in PRESETS.get(options["preset"], {}).items()
        if context.get_parameter_source(name) is ParameterSource.DEFAULT
    }
    report = pipeline.preprocess(
        list(options["sources"]),
        options["store"],
        recipe=_recipe(options),
        workers=options["workers"],
        scheduler=options["scheduler"],
        retries=options["retries"],
        progress=True,
    )
    click.echo(report)
    if report.failed:
        raise SystemExit(1)


def _recipe(options: dict[str, Any]) -> Recipe:
    crop = _crop(options["crop"])
    if crop is None and options["placement"]:
        raise click.UsageError(
            f"--placement {options['placement']} needs the size of a crop, such as --crop 2048"
        )
    placement: Any = "scene" if crop is None else options["placement"] or "tiles"
    return Recipe(
        format=options["format_"].replace("-", "_").replace(".", "_"),
        channels=_words(options["channels"]),
        variables=tuple(_variable(v) for v in options["variables"]),
        tile=TileSpec(
            crop=crop,
            patch=options["patch"],
            placement=placement,
            seed=options["seed"],
            crops_per_scene=options["crops_per_scene"],
            offsets=options["offsets"],
        ),
        quality=QualitySpec(**_given_thresholds(options)),
        radar=RadarSpec(
            echo_top_dbz=options["echo_top_dbz"],
            qc=options["qc"],
            qc_constants=tuple(_constant(c) for c in options["qc_constants"]),
        ),
        codec=options["codec"],
        companions=_words(options["companions"]),
        mixed_lattices=options["mixed_lattices"],
    )


def _words(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in value.replace(",", " ").split())


def _constant(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    words = {"true": 1.0, "false": 0.0}
    try:
        return name.strip(), words[value.lower()] if value.lower() in words else float(value)
    except ValueError as error:
        raise click.UsageError(
            f"--qc-constant {text!r}: expected NAME=VALUE, such as speckle_fraction=0.4"
        ) from error


def _crop(text: str) -> tuple[int, int] | None:
    if text == "scene":
        return None
    edges = text.lower().split("x")
    if len(edges) not in (1, 2) or not all(e.isdigit() for e in edges):
        raise click.UsageError(f"--crop {text!r}: expected 'scene', an edge such as 2048, or HEIGHTxWIDTH")
    return int(edges[0]), int(edges[-1])


def _variable(text: str) -> tuple[str, str, str | None]:
    channel, equals, rest = text.partition("=")
    name, _, units = rest.partition(":")
    if not (channel and equals and name):
        raise click.UsageError(f"--variable {text!r}: expected CHANNEL=NAME or CHANNEL=NAME:UNITS")
    return channel, name, units or None


@cli.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def info(target: str, as_json: bool) -> None:
    """Say what a store or a source file holds: channels, counts, time span, flags, completeness."""
    from gridrad_cube import inspect_target

    summary = inspect_target(target)
    click.echo(json.dumps(summary.to_dict(), indent=1) if as_json else str(summary))


@cli.command()
@click.argument("store")
@click.option("--repair", is_flag=True, help="Rebuild damaged shards from the sources.")
@click.option(
    "--source-root",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Where the sources lie (repeatable).",
)
def verify(store: str, repair: bool, source_root: tuple[Path, ...]) -> None:
    """Check every shard of STORE against its checksum; rebuild what is damaged if asked to."""
    from gridrad_cube import pipeline
    from gridrad_cube import store as stores

    if repair and not source_root:
        raise click.UsageError("--repair needs --source-root DIR, the folder that preprocess was given")
    damages = stores.verify(store)
    for damage in damages:
        where = f" (crop {damage.row}, from {damage.source})" if damage.source else ""
        click.echo(f"{damage.key}: {damage.what}{where}")
    if damages and repair:
        for outcome in pipeline.repair(store, source_root):
            click.echo(f"{outcome.source}: {outcome.status} {outcome.reason}".rstrip())
        damages = stores.verify(store)
    click.echo(f"{store}: {'all shards as written' if not damages else f'{len(damages)} damaged shards'}")
    if damages:
        raise SystemExit(1)


@cli.command()
@click.argument("store")
@_thresholds
def reflag(store: str, **thresholds: Any) -> None:
    """Flag the patches of STORE by other thresholds, without reading a pixel; those not given stay."""
    from gridrad_cube import pipeline
    from gridrad_cube import store as stores
    from gridrad_cube.schema import build_spec

    given = _given_thresholds(thresholds)
    if not given:
        raise click.UsageError("give at least one threshold to change")
    pipeline.reflag(store, build_spec(QualitySpec, stores.cube_info(store)["quality"] | given))
    click.echo(f"{store}: flagged anew by {', '.join(f'{k}={v}' for k, v in given.items())}")


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: Sequence[str]) -> None:
    """Train a network on a store; the same as python training/dino.py (see its --help)."""
    from gridrad_cube.train import main as train_main

    raise SystemExit(train_main(list(arguments)))


@cli.command()
@click.option("--store", required=True, help="Cube of patches, or level-256 embeddings for level 2k.")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option(
    "--checkpoint-2k",
    type=click.Path(path_type=Path),
    default=None,
    help="Of level 2k: from the cube straight to one embedding a crop, nothing stored between.",
)
@click.option("--out", required=True, help="Embedding store to write, or to continue.")
@click.option("--device", default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32", "int8"]), default="float16", show_default=True
)
@click.option(
    "--channels", "-c", multiple=True, help="Of those the network knows; all by default (repeatable)."
)
@click.option("--key", type=click.Choice(["teacher", "student"]), default="teacher", show_default=True)
@click.option(
    "--pool",
    type=click.Choice(["class", "mean", "class_mean"]),
    default="class",
    show_default=True,
    help="Class token, mean of the observed tokens, or both.",
)
@click.option(
    "--stride", type=int, default=None, help="Pixels between overlapping windows, a divisor of the patch."
)
@click.option(
    "--normalize",
    type=click.Choice(["auto", "store", "none"]),
    default="auto",
    show_default=True,
    help="For checkpoints of the predecessor, which keep no statistics.",
)
@click.option(
    "--part",
    type=int,
    nargs=2,
    default=None,
    metavar="I N",
    help="Make the i-th of n shares of the work: for job arrays. torchrun gives each rank its own.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine."
)
@click.option(
    "--scheduler", default=None, help="Address or scheduler file of a running Dask cluster instead."
)
@click.option("--resume/--no-resume", default=True, show_default=True)
@click.option(
    "--attention",
    multiple=True,
    metavar="CROP[,ROW,COL]",
    help="Write attention maps of this patch or crop to OUT instead (repeatable).",
)
def embed(store: str, checkpoint: Path, out: str, attention: Sequence[str], **options: Any) -> None:
    """Turn every patch (or every crop's grid of embeddings) of a store into an embedding.

    \b
    gridrad-cube embed --store patches.zarr --checkpoint runs/256/checkpoint.pth --out embeddings.zarr
    gridrad-cube embed --store embeddings.zarr --checkpoint runs/2k/checkpoint.pth --out embeddings_2k.zarr
    torchrun --nproc-per-node 4 -m gridrad_cube embed --store ... --checkpoint ... --out ...

    An interrupted run continues when the same command is given again. Many processes may share a store: by --workers,
    --scheduler, torchrun or --part.
    """
    from gridrad_cube import embed as embedding

    options["channels"] = options["channels"] or None
    if attention:
        kept = {name: options[name] for name in ("channels", "key", "device", "normalize")}
        maps = embedding.attention(store, checkpoint, [_numbers(a) for a in attention], out, **kept)
        click.echo(json.dumps({"out": out, **maps.sizes}))
        return
    summary = embedding.embed(store, checkpoint, out, progress="RANK" not in os.environ, **options)
    click.echo(json.dumps(summary))


@cli.command()
@click.argument("embeddings")
@click.option("--time", "time_", default=None, help="Time of the query, UTC, such as 2021-07-05T17:50.")
@click.option("--latitude", type=float, default=None)
@click.option("--longitude", type=float, default=None)
@click.option(
    "--like",
    multiple=True,
    metavar="CROP[,ROW,COL][,CHANNEL]",
    help="A patch of the store as the query; several are examples of one thing (repeatable).",
)
@click.option(
    "--unlike", multiple=True, metavar="CROP[,ROW,COL][,CHANNEL]", help="What it should not be (repeatable)."
)
@click.option(
    "--vector", type=click.Path(exists=True, path_type=Path), help="File .npy with a vector as the query."
)
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Number of answers.")
@click.option("--bbox", type=float, nargs=4, default=None, help="West, south, east, north of the answers.")
@click.option(
    "--polygon", type=click.Path(exists=True, path_type=Path), help="GeoJSON file around the answers."
)
@click.option("--start", default=None, help="Answers not before this time.")
@click.option("--stop", default=None, help="Answers before this time.")
@click.option("--season", default=None, help="Months of the answers: JJA, AMJJAS, ...")
@click.option("--hour", type=float, nargs=2, default=None, help="Hours of the day, UTC: 18 24, or 21 3.")
@click.option("--solar-hour", type=float, nargs=2, default=None, help="The same in local mean solar time.")
@click.option("--convective-day", multiple=True, help="Date on which it begins, at 12 UTC (repeatable).")
@click.option("--channel", default=None)
@click.option(
    "--metric", type=click.Choice(["cosine", "euclidean", "dot"]), default="cosine", show_default=True
)
@click.option(
    "--exclude",
    nargs=2,
    default=("6h", "200km"),
    show_default=True,
    help="Leave out neighbours of the query: within both this time and this distance.",
)
@click.option(
    "--separate",
    nargs=2,
    default=None,
    metavar="TIME DISTANCE",
    help="The same among the answers, such as 6h 200km: one answer an event.",
)
@click.option("--no-exclude", is_flag=True, help="Leave out only the query itself.")
@click.option("--percentile", is_flag=True, help="Also the rank among random pairs of the same hour.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json", "csv", "geojson", "geoparquet"]),
    default=None,
    help="[table; geoparquet for --out NAME.parquet]",
)
@click.option("--json", "style", flag_value="json", help="--format json: one record an answer.")
@click.option("--csv", "style", flag_value="csv", help="--format csv.")
@click.option("--out", "-o", type=click.Path(path_type=Path), default=None, help="File for the answer.")
def query(embeddings: str, style: Any, out: Path | None, **options: Any) -> None:
    """Find the places and times of EMBEDDINGS that look most like the query.

    \b
    gridrad-cube query embeddings.zarr --time 2021-07-05T17:50 --latitude 38.5 --longitude -97.2 -k 5
    gridrad-cube query embeddings.zarr --like 12,3,4 --like 40,2,2 --unlike 7,0,0 --season JJA --json
    gridrad-cube query embeddings.zarr --like 12,3,4 -k 500 --separate 6h 200km -o storms.parquet
    """
    style = style or ("geoparquet" if out is not None and out.suffix == ".parquet" else "table")
    if style == "geoparquet" and out is None:
        raise click.UsageError("--format geoparquet needs --out FILE")
    from gridrad_cube import query as asking
    from gridrad_cube import store as stores

    question, where = _question(options), _where(options)
    answer = asking.search(
        stores.open_embeddings(embeddings),
        question,
        options["k"],
        exclude=None if options["no_exclude"] else options["exclude"],
        separate=options["separate"],
        metric=options["metric"],
        percentile=options["percentile"],
        **where,
    )
    if style == "geoparquet" and out is not None:
        asking.write_geoparquet(answer, out)
    elif out is not None:
        out.write_text(asking.format_answer(answer, style) + "\n")
    click.echo(
        asking.format_answer(answer, style) if out is None else f"{out}: {answer.sizes['rank']} answers"
    )


def _where(options: dict[str, Any]) -> dict[str, Any]:
    """Rules of the selection that were given."""
    span = (options["start"], options["stop"]) if options["start"] or options["stop"] else None
    rules = {
        "bbox": options["bbox"],
        "time": span,
        "polygon": options["polygon"] and options["polygon"].read_text(),
        "convective_day": list(options["convective_day"]),
    }
    rules |= {name: options[name] for name in ("season", "hour", "solar_hour", "channel")}
    return {name: rule for name, rule in rules.items() if rule}


def _question(options: dict[str, Any]) -> Any:
    place = {
        k: options[o] for k, o in (("time", "time_"), ("latitude", "latitude"), ("longitude", "longitude"))
    }
    at_place = any(v is not None for v in place.values())
    if at_place + bool(options["like"]) + (options["vector"] is not None) > 1:
        raise click.UsageError("give one of --like, --vector, or a time and place, not both")
    if at_place and None in place.values():
        raise click.UsageError("a place needs all of --time, --latitude and --longitude")
    if options["vector"] is not None:
        import numpy as np

        asked: Any = np.load(options["vector"], allow_pickle=False)
    elif at_place:
        asked = place
    else:
        asked = [_sample(text) for text in options["like"]]
    if not at_place and not len(asked):
        raise click.UsageError(
            "a query needs --like CROP,ROW,COL, --vector FILE, or all of --time, --latitude and --longitude"
        )
    several = asked if isinstance(asked, list) else [asked]
    if len(several) == 1 and not options["unlike"]:
        return several[0]
    return {"positive": several, "negative": [_sample(text) for text in options["unlike"]]}


def _sample(text: str) -> tuple[Any, ...]:
    """``CROP,ROW,COL``, ``CROP`` alone at level 2k, and perhaps a channel after it."""
    parts = [p.strip() for p in text.split(",")]
    channel = [] if parts[-1].isdigit() else [parts.pop()]
    return (*_numbers(",".join(parts), text), *channel)


def _numbers(text: str, whole: str | None = None) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",")]
    if len(parts) not in (1, 3) or not all(p.isdigit() for p in parts):
        raise click.UsageError(
            f"{whole or text!r}: expected CROP,ROW,COL (CROP alone at level 2k), and ,CHANNEL after it where the store "
            "has several"
        )
    return tuple(map(int, parts))


@cli.command()
@click.argument("embeddings", nargs=-1, required=True)
@click.option("--cube", default=None, help="Where the cube is that they were made from, if it has moved.")
@click.option(
    "--patches", default=None, help="Level 2k: where the level-256 embeddings are, if they have moved."
)
@click.option("--channel", default=None, help="Label of the channel; the first by default.")
@click.option(
    "--samples", type=click.IntRange(1), default=8000, show_default=True, help="Samples to draw at most."
)
@click.option("--lead", "leads", multiple=True, help="Time after, such as 30min (repeatable).")
@click.option(
    "--gap", type=click.IntRange(0), default=1, show_default=True, help="Convective days between parts."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of the table.")
@click.option(
    "--picture", type=click.Path(path_type=Path), default=None, help="Draw it too: PNG, PDF or SVG."
)
def evaluate(
    embeddings: Sequence[str], leads: Sequence[str], as_json: bool, picture: Path | None, **options: Any
) -> None:
    """Judge EMBEDDINGS without labels, beside baselines that need no network.

    Spread, retrieval of the same place later, analogue forecasts, linear probes of what the pixels hold, leaks of
    hour and latitude, on convective days apart. Several stores of the same samples: one is chosen.

    \b
    gridrad-cube evaluate embeddings.zarr
    gridrad-cube evaluate epoch20.zarr epoch50.zarr --json > evaluation.json
    """
    from gridrad_cube import evaluate as judging

    result = judging.evaluate(embeddings, leads=leads or judging.LEADS, **options)
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else str(result))
    if picture:
        from gridrad_cube import plot as drawing

        drawing.evaluation(result.to_dict()).savefig(picture, dpi=110)
        click.echo(picture, err=as_json)


@cli.group()
def plot() -> None:
    """Draw pictures: PNG, PDF or SVG by the name of --out.

    \b
    gridrad-cube plot scene patches.zarr --crop 3 -o scene.png
    gridrad-cube plot query embeddings.zarr --like 12,3,4 -o neighbours.png
    gridrad-cube plot curves runs/256 runs/2k
    """


def _picture(name: str, *, crop: bool = False) -> Callable[..., Any]:
    """A command of plot: its --out (NAME.png by default), and where it draws one crop, --crop and --channel."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        if crop:
            command = click.option("--channel", default=None, help="Name or label; the first by default.")(
                command
            )
            command = click.option(
                "--crop", type=click.IntRange(0), default=0, show_default=True, help="Row of the crop."
            )(command)
        path = click.Path(path_type=Path)
        command = click.option("--out", "-o", type=path, default=Path(f"{name}.png"), show_default=True)(
            command
        )
        return plot.command(name)(command)

    return decorate


def _save(figure: Any, out: Path) -> None:
    figure.savefig(out, dpi=110)
    click.echo(out)


@_picture("source")
@click.argument("file")
def plot_source(file: str, out: Path) -> None:
    """Every 2-D field of a source FILE at a glance."""
    from gridrad_cube import plot as drawing
    from gridrad_cube import readers

    _save(drawing.source(readers.read_fields(file)), out)


@_picture("scene", crop=True)
@click.argument("cube")
def plot_scene(cube: str, out: Path, crop: int, channel: str | None) -> None:
    """A crop of CUBE with its patches."""
    from gridrad_cube import plot as drawing
    from gridrad_cube import store as stores

    _save(drawing.scene(stores.open_cube(cube), crop, channel=channel), out)


@_picture("crops", crop=True)
@click.argument("cube")
def plot_crops(cube: str, out: Path, crop: int, channel: str | None) -> None:
    """The scene of a crop, with all of its crops and patches."""
    from gridrad_cube import plot as drawing
    from gridrad_cube import store as stores

    _save(drawing.crops(stores.open_cube(cube), crop, channel=channel), out)


@_picture("flags", crop=True)
@click.argument("cube")
def plot_flags(cube: str, out: Path, crop: int, channel: str | None) -> None:
    """The flags of a crop's patches, on its pixels."""
    from gridrad_cube import plot as drawing
    from gridrad_cube import store as stores

    _save(drawing.flags(stores.open_cube(cube), crop, channel=channel), out)


@_picture("statistics")
@click.argument("cube")
def plot_statistics(cube: str, out: Path) -> None:
    """How the values of each channel of CUBE are distributed."""
    from gridrad_cube import plot as drawing
    from gridrad_cube import store as stores

    _save(drawing.statistics(stores.open_cube(cube)), out)


@_picture("curves")
@click.argument("runs", nargs=-1, required=True)
def plot_curves(runs: Sequence[str], out: Path) -> None:
    """The training curves of one run, or of several."""
    from gridrad_cube import plot as drawing

    _save(drawing.curves({Path(run).name if len(runs) == 1 else run: run for run in runs}), out)


@_picture("embeddings", crop=True)
@click.argument("embeddings")
@click.option("--cube", default=None, help="Draw the field beside them, from here.")
def plot_embeddings(embeddings: str, out: Path, crop: int, channel: str | None, cube: str | None) -> None:
    """A crop's embeddings as colour, a cell a patch.

    Lightness is the first principal component, blue to yellow the second, green to magenta the third.
    """
    from gridrad_cube import plot as drawing
    from gridrad_cube import store as stores

    field = stores.open_cube(cube) if cube else None
    _save(drawing.components(stores.open_embeddings(embeddings), crop, channel=channel or 0, cube=field), out)


@_picture("query")
@click.argument("embeddings")
@click.option("--like", multiple=True, metavar="CROP[,ROW,COL][,CHANNEL]", help="As of query (repeatable).")
@click.option("--time", "time_", default=None, help="Time of the query, UTC.")
@click.option("--latitude", type=float, default=None)
@click.option("--longitude", type=float, default=None)
@click.option("-k", type=click.IntRange(1, 9), default=9, show_default=True, help="Number of answers.")
@click.option("--exclude", nargs=2, default=("6h", "200km"), show_default=True, help="As of query.")
@click.option("--separate", nargs=2, default=None, metavar="TIME DISTANCE", help="As of query.")
@click.option("--cube", default=None, help="Where the cube is that they were made from, if it has moved.")
def plot_query(
    embeddings: str, out: Path, k: int, exclude: Any, separate: Any, cube: str | None, **options: Any
) -> None:
    """A patch beside those most like it, on a map."""
    from gridrad_cube import plot as drawing
    from gridrad_cube import query as asking
    from gridrad_cube import store as stores
    from gridrad_cube.evaluate.samples import sources_of

    question = _question(options | {"vector": None, "unlike": ()})
    dataset = stores.open_embeddings(embeddings)
    answer = asking.search(dataset, question, k, exclude=exclude, separate=separate)
    place, _ = sources_of(embeddings, cube)
    _save(drawing.answers(stores.open_cube(place), answer), out)


@_picture("attention")
@click.argument("maps")
@click.option("--sample", type=click.IntRange(0), default=0, show_default=True, help="Which of the maps.")
@click.option("--cube", default=None, help="Draw the field beside them, from here.")
def plot_attention(maps: str, out: Path, sample: int, cube: str | None) -> None:
    """What a network looks at: MAPS of embed --attention."""
    import xarray as xr

    from gridrad_cube import plot as drawing
    from gridrad_cube import store as stores

    field = stores.open_cube(cube) if cube else None
    _save(drawing.attention(xr.open_zarr(maps, chunks=None), sample, cube=field), out)


@_picture("evaluation")
@click.argument("result", type=click.Path(exists=True, path_type=Path))
def plot_evaluation(result: Path, out: Path) -> None:
    """What evaluate --json wrote, with intervals."""
    from gridrad_cube import plot as drawing

    _save(drawing.evaluation(result), out)


@cli.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("demo"))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
def demo(out: Path, seed: int, workers: int) -> None:
    """Run the whole road on synthetic storms, on CPU, and leave stores and pictures in OUT."""
    from gridrad_cube import demo as demonstration

    demonstration.run(out, seed=seed, workers=workers, say=click.echo)


@cli.group()
def convert() -> None:
    """The predecessor's files to stores and checkpoints, and back (docs/coming-from-the-predecessor.md).

    \b
    gridrad-cube convert from-npz output_npz/ patches.zarr --source-root netcdf/
    gridrad-cube convert from-features output_features.pt embeddings.zarr --cube patches.zarr

    The name says which files are meant, since old folders hold several copies of the same pixels.
    """


_VISIBLE_UNITS = click.option(
    "--visible-units",
    type=click.Choice(["percent", "1"]),
    default="percent",
    show_default=True,
    help="Of the reflectance in the old files.",
)
_PROGRESS: dict[str, Any] = {"progress": True}


def _from_pixels(command: Any) -> Any:
    """Options of from-npz and from-pt."""
    options = (
        click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.argument("store"),
        click.option(
            "--source-root",
            type=click.Path(path_type=Path),
            help="Folder of the netCDF files: crops find their exact place in them by their pixels.",
        ),
        click.option(
            "--visible-units", type=click.Choice(["auto", "percent", "1"]), default="auto", show_default=True
        ),
        click.option(
            "--dtype",
            type=click.Choice(["uint16", "float32"]),
            default="uint16",
            show_default=True,
            help="Packed in steps of 0.01 K and 0.0001, or as they are.",
        ),
        click.option(
            "--patch", type=int, default=None, help="Edge of a patch [that of those found, or 256]."
        ),
        click.option(
            "--codec", type=click.Choice(["fast", "small", "raw"]), default="fast", show_default=True
        ),
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _report(report: Any) -> None:
    click.echo(report)
    if report.failed:
        raise SystemExit(1)


@convert.command("from-npz")
@_from_pixels
def from_npz(sources: tuple[Path, ...], store: str, **options: Any) -> None:
    """BASE.npz files (and folders of them) to a cube. The same command goes on with an interrupted one.

    \b
    gridrad-cube convert from-npz /data/output_npz patches.zarr --workers 4
    """
    from gridrad_cube import convert as converting

    _report(converting.from_npz(sources, store, **options, **_PROGRESS))


@convert.command("from-pt")
@_from_pixels
def from_pt(sources: tuple[Path, ...], store: str, **options: Any) -> None:
    """Crops and patches of any version (crops/, patches/, crops_K.pt, patch_K_N.pt, ...) to a cube.

    \b
    gridrad-cube convert from-pt output_folder/ patches.zarr
    gridrad-cube convert from-pt output_folder/patches patches.zarr   (patches alone: deleted ones are flagged)
    """
    from gridrad_cube import convert as converting

    _report(converting.from_pt(sources, store, **options, **_PROGRESS))


@convert.command("from-features")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("store")
@click.option("--cube", default=None, help="Cube of the same crops: places, times and flags come from it.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The network that made them.")
@click.option(
    "--channel", "channels", multiple=True, help="What suffix 0, 1, ... of the names is (repeatable)."
)
@click.option("--grid", type=int, nargs=2, default=None, help="Rows and columns, where they are not as many.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float32", show_default=True)
def from_features(source: Path, store: str, **options: Any) -> None:
    """output_features.pt (or _2k, or a folder such as input_2k/) to an embedding store.

    \b
    gridrad-cube convert from-features output_features.pt embeddings.zarr --cube patches.zarr
    """
    from gridrad_cube import convert as converting

    given = {name: value for name, value in options.items() if value}
    click.echo(json.dumps(converting.from_features(source, store, **given, **_PROGRESS)))


@convert.command("from-checkpoint")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Choice(["embedding", "training"]),
    default="embedding",
    show_default=True,
    help="Values as they are, as it embedded, or (x - 0.5) / 0.5, as it trained.",
)
@click.option("--channel", "channels", multiple=True, help="That it was trained on (repeatable) [both].")
@_VISIBLE_UNITS
def from_checkpoint(source: Path, out: Path, **options: Any) -> None:
    """checkpoint.pth of the predecessor to one of ours, of either level.

    \b
    gridrad-cube convert from-checkpoint Checkpoints_1/checkpoint.pth old_256.pth
    gridrad-cube embed --store patches.zarr --checkpoint old_256.pth --out embeddings.zarr
    """
    from gridrad_cube import convert as converting

    given = {name: value for name, value in options.items() if value}
    click.echo(json.dumps(converting.from_checkpoint(source, out, **given)))


_CHANNELS = click.option(
    "--channels", "-c", multiple=True, help="In this order; all by default (repeatable)."
)
_FILL = click.option(
    "--fill", type=float, default=float("nan"), show_default=True, help="For missing pixels."
)


@convert.command("to-npz")
@click.argument("store")
@click.argument("out", type=click.Path(path_type=Path))
@_CHANNELS
@_VISIBLE_UNITS
@_FILL
def to_npz(store: str, out: Path, **options: Any) -> None:
    """A cube to SCENE.npz files with crop and patches."""
    from gridrad_cube import convert as converting

    click.echo(json.dumps(converting.to_npz(store, out, **options, **_PROGRESS)))


@convert.command("to-pt")
@click.argument("store")
@click.argument("out", type=click.Path(path_type=Path))
@_CHANNELS
@_VISIBLE_UNITS
@_FILL
@click.option("--what", type=click.Choice(["both", "crops", "patches"]), default="both", show_default=True)
@click.option("--clean", is_flag=True, help="Leave out patches that training would reject.")
def to_pt(store: str, out: Path, **options: Any) -> None:
    """A cube to crops/SCENE_crop_C.pt and patches/SCENE_patch_I_J_C.pt."""
    from gridrad_cube import convert as converting

    click.echo(json.dumps(converting.to_pt(store, out, **options, **_PROGRESS)))


@convert.command("to-features")
@click.argument("store")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--fill", type=float, default=None, help="For cells without an embedding [such crops are left out]."
)
def to_features(store: str, out: Path, fill: float | None) -> None:
    """Embeddings to output_features.pt (OUT ends in .pt) or to a folder of one file a crop (input_2k/)."""
    from gridrad_cube import convert as converting

    click.echo(json.dumps(converting.to_features(store, out, fill=fill, **_PROGRESS)))


@convert.command("to-checkpoint")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--channel", default=None, help="Level 256: put its normalisation into the first layer.")
@_VISIBLE_UNITS
def to_checkpoint(source: Path, out: Path, **options: Any) -> None:
    """A checkpoint of ours to one that the predecessor's scripts load (--pretrained_weights)."""
    from gridrad_cube import convert as converting

    click.echo(json.dumps(converting.to_checkpoint(source, out, **options)))


def main() -> None:
    """Run the command line."""
    cli()
