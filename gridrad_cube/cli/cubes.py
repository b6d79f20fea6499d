"""Commands that make and keep cubes: synthesize, preprocess, info, verify, reflag, withdraw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gridrad_cube.cli.arguments import (
    CHANNELS,
    JSON,
    PATH,
    SCHEDULER,
    SEED,
    WORKERS,
    combine,
    complete_store,
    finish,
    store_option,
)
from gridrad_cube.cli.messages import Command, echo
from gridrad_cube.schema import QualitySpec, RadarSpec, Recipe, TileSpec, printable

_FORMATS = ("larc-goes", "gridrad-v4.2", "gridrad-v3.1", "gridrad-v4.1")
#: Options of preprocess that --preset predecessor gives where the user does not.
_PREDECESSOR: dict[str, Any] = {
    "crop": "2048", "placement": "random", "rule": "predecessor", "max_deviation_factor": 3.0,
    "global_mean_deviation_factor": 3.0,
}  # fmt: skip
_THRESHOLDS: dict[str, tuple[Any, str]] = {
    "max_deviation_factor": (float, "local_outlier: standard deviations from the patch mean."),
    "global_mean_deviation_factor": (float, "global_outlier: deviations of the patch mean."),
    "rule": (click.Choice(["echo", "predecessor"]), "Formula of both."),
    "low_coverage": (float, "low_coverage: share of pixels observed."),
    "night_solar_zenith": (float, "night: degrees."),
    "low_sun_solar_zenith": (float, "low_sun: degrees."),
    "limb_satellite_zenith": (float, "limb: degrees."),
}
#: One option for each threshold of the flags, None where it is not given.
_thresholds = combine(*(
    click.option(
        f"--{name.replace('_', '-')}", type=kind, help=f"{text} [default: {getattr(QualitySpec(), name)}]"
    )
    for name, (kind, text) in _THRESHOLDS.items()
))  # fmt: skip


def _given_thresholds(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _THRESHOLDS if options[name] is not None}


@click.command(cls=Command)
@click.argument("out", type=PATH)
@click.option("--format", type=click.Choice(_FORMATS), default="larc-goes")
@click.option("--scenes", type=click.IntRange(1), default=6, help="Number of files.")
@click.option("--shape", type=int, nargs=2, help="Rows and columns; the format's own by default.")
@click.option("--start", help="Time of the first scene, UTC, such as 2021-07-05T12:00.")
@click.option("--interval", help="Time between scenes, such as 10min or 6h.")
@SEED
def synthesize(out: Path, **options: Any) -> None:
    """Write synthetic source files into OUT, faithful to the layouts of the archives.

    \b
    gridrad-cube synthesize demo/larc --scenes 12 --seed 1
    gridrad-cube synthesize demo/radar --format gridrad-v4.2 --scenes 3
    """
    from gridrad_cube import synthetic

    for path in synthetic.write_scenes(out, **options):
        echo(path)


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True)
@store_option("Path or URL of the cube to build, continue or extend.")
@click.option("--format", type=click.Choice(["auto", *_FORMATS, "cf"]), default="auto")
@CHANNELS
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="CHANNEL=NAME[:UNITS]",
    help="Which variable is a channel, and its units where the file lacks them. A file without it lacks the channel. "
    "time=NAME says which variable is the time.",
)
@click.option("--crop", default="scene", help="'scene', an edge, or 'HEIGHTxWIDTH' in pixels.")
@click.option(
    "--placement",
    type=click.Choice(["tiles", "cover", "random", "center"]),
    help="Where crops of a given size lie: tiles side by side, padded at the edges (default); cover, the same with the "
    "last ones moved inside, so that they overlap; random or center.",
)
@click.option("--patch", type=int, default=256, help="Edge of a patch in pixels.")
@click.option(
    "--qc",
    type=click.Choice(["fixed", "published", "none"]),
    default="fixed",
    help="Quality control of GridRad volumes.",
)
@click.option(
    "--qc-constant",
    "qc_constants",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another constant of the quality control, such as speckle_fraction=0.4 (repeatable).",
)
@_thresholds
@click.option(
    "--preset",
    type=click.Choice(["predecessor"]),
    help="Crops and thresholds of the predecessor, for options that are not given.",
)
@click.option("--codec", type=click.Choice(["fast", "small", "raw"]), default="fast")
@SEED
@WORKERS
@SCHEDULER
@click.option("--retries", type=click.IntRange(0), default=2, help="After an error of disk or network.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0),
    default=120.0,
    metavar="SECONDS",
    help="Processor time for a scene; a quarter of it for its header. 0: neither limits nor child processes.",
)
@click.option(
    "--memory-limit",
    type=click.FloatRange(0.1),
    default=4.0,
    metavar="GIB",
    help="Memory that a scene may take.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be added, how large it is and how long it takes."
)
@click.pass_context
def preprocess(context: click.Context, **options: Any) -> None:
    """Build a cube from SOURCES (files and folders, local or by URL), or resume or extend it.

    \b
    gridrad-cube preprocess data/ --store patches.zarr --workers 8
    gridrad-cube preprocess data/ --store crops.zarr --crop 2048 --placement random --seed 7

    The same command resumes an interrupted run. With no option that says how to build, an existing store keeps
    its own recipe. Exit status 1 if any file failed, and if a folder or a file that looks like data was not read.
    """
    from gridrad_cube import pipeline

    names = ("sources", "store", "workers", "scheduler", "retries", "time_limit", "memory_limit")
    how = {name: options.pop(name) for name in names}
    is_dry = options.pop("dry_run")
    given = {n for n in options if context.get_parameter_source(n) is not ParameterSource.DEFAULT}
    if options["preset"]:
        options |= {name: value for name, value in _PREDECESSOR.items() if name not in given}
    recipe = _recipe(options) if given else None
    if is_dry:
        how.pop("scheduler")
    work = pipeline.estimate if is_dry else pipeline.preprocess
    finish(work(list(how.pop("sources")), how.pop("store"), recipe=recipe, **how))


def _recipe(options: dict[str, Any]) -> Recipe:
    crop, placement = _crop(options["crop"]), options["placement"]
    if crop is None and placement:
        raise click.UsageError(f"--placement {placement} needs the size of a crop, such as --crop 2048")
    return Recipe(
        format=options["format"].replace("-", "_").replace(".", "_"),
        channels=tuple(" ".join(options["channels"]).replace(",", " ").split()),
        variables=tuple(_variable(text) for text in options["variables"]),
        tile=TileSpec(
            crop=crop,
            patch=options["patch"],
            placement=placement or ("tiles" if crop else "scene"),
            seed=options["seed"],
        ),
        quality=QualitySpec(**_given_thresholds(options)),
        radar=RadarSpec(qc=options["qc"], qc_constants=tuple(map(_constant, options["qc_constants"]))),
        codec=options["codec"],
    )


def _constant(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float({"true": "1", "false": "0"}.get(value.lower(), value))
    except ValueError as error:
        raise click.UsageError(
            f"--qc-constant {text!r}: expected NAME=VALUE, such as speckle_fraction=0.4"
        ) from error


def _crop(text: str) -> tuple[int, int] | None:
    if text == "scene":
        return None
    edges = re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower())
    if not edges:
        raise click.UsageError(f"--crop {text!r}: expected 'scene', an edge such as 2048, or HEIGHTxWIDTH")
    return int(edges[1]), int(edges[2] or edges[1])


def _variable(text: str) -> tuple[str, str, str | None]:
    parts = re.fullmatch(r"([^=]+)=([^:]+)(?::(.*))?", text)
    if not parts:
        raise click.UsageError(f"--variable {text!r}: expected CHANNEL=NAME or CHANNEL=NAME:UNITS")
    return parts[1], parts[2], parts[3] or None


@click.command(cls=Command)
@click.argument("target", shell_complete=complete_store)
@JSON
def info(target: str, as_json: bool) -> None:
    """Say what a store or a source file holds: channels, counts, time span, flags, completeness."""
    from gridrad_cube import store as stores
    from gridrad_cube.info import inspect_target

    facts = inspect_target(target)
    echo(json.dumps(facts, indent=1) if as_json else stores.as_text(facts))


@click.command(cls=Command)
@click.argument("store", shell_complete=complete_store)
@click.option(
    "--repair", is_flag=True, help="Restore what is damaged of a cube from its sources, plan and log."
)
@click.option("--source-root", multiple=True, help="Folder or URL that the sources lie under (repeatable).")
def verify(store: str, repair: bool, source_root: tuple[str, ...]) -> None:
    """Check every object of STORE against its checksum; restore what is damaged if asked to."""
    from gridrad_cube import pipeline
    from gridrad_cube import store as stores

    if repair and not source_root:
        raise click.UsageError("--repair needs --source-root DIR, the folder that preprocess was given")
    damages = stores.verify(store)
    for damage in damages:
        where = f" (crop {damage.row}, from {damage.source})" if damage.source else ""
        echo(printable(f"{damage.key}: {damage.what}{where}"))
    if damages and repair:
        for outcome in pipeline.repair(store, source_root):
            echo(printable(f"{outcome.source}: {outcome.status} {outcome.reason}".rstrip()))
        damages = stores.verify(store)
    echo(f"{store}: {'all shards as written' if not damages else f'{len(damages)} damaged objects'}")
    if damages:
        raise SystemExit(1)


@click.command(cls=Command)
@click.argument("store", shell_complete=complete_store)
@_thresholds
def reflag(store: str, **thresholds: Any) -> None:
    """Flag the patches of STORE by other thresholds, without reading pixels. Other thresholds stay.

    Thresholds of global outliers are computed again from all scenes, also if no threshold is given.
    """
    from gridrad_cube import pipeline
    from gridrad_cube import store as stores
    from gridrad_cube.schema import build_spec

    given = _given_thresholds(thresholds)
    pipeline.reflag(store, build_spec(QualitySpec, stores.store_info(store, "patches")["quality"] | given))
    changed = ", ".join(f"{k}={v}" for k, v in given.items()) or "the same thresholds, from all scenes"
    echo(f"{store}: flagged again by {changed}")


@click.command(cls=Command)
@click.argument("store")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--undo", is_flag=True, help="Take the withdrawal back.")
def withdraw(store: str, files: tuple[str, ...], undo: bool) -> None:
    """Withdraw source files of STORE: their patches get the flag withdrawn, which rejects by default.

    Nothing is deleted. FILE is a source as the store names it, a path that ends with that name, or its last part.
    """
    from gridrad_cube import pipeline

    left = pipeline.withdraw(store, files, undo=undo)
    echo(f"{store}: {len(left)} sources are withdrawn{': ' if left else ''}{', '.join(left)}")
