"""Commands that make and keep cubes: synthesize, preprocess, info, verify, reflag."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gridrad_cube.schema import QualitySpec, RadarSpec, Recipe, TileSpec

FORMATS = ("auto", "larc-goes", "gridrad-v4.2", "gridrad-v3.1", "gridrad-v4.1", "cf")


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


@click.command()
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
@click.option(
    "--plants",
    type=click.IntRange(0),
    default=0,
    help="Number of times that one storm complex is planted (larc-goes): later, elsewhere, mirrored and with noise.",
)
@click.option("--seed", type=int, default=0, show_default=True)
def synthesize(out: Path, format_: str, shape: tuple[int, int] | None, **options: Any) -> None:
    """Write synthetic source files into OUT, faithful to the layouts of the archives.

    \b
    gridrad-cube synthesize demo/larc --scenes 12 --seed 1
    gridrad-cube synthesize demo/radar --format gridrad-v4.2 --scenes 3
    """
    from gridrad_cube import synthetic

    for path in synthetic.write_scenes(out, format=format_, shape=shape, progress=True, **options):
        click.echo(path)


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--store", required=True, help="Path or URL of the cube to build, continue or extend.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="auto", show_default=True)
@click.option(
    "--channels",
    "-c",
    multiple=True,
    help="Channel, such as reflectivity@3.0km, or another variable of the files such as ot_id_number (repeatable).",
)
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


@click.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def info(target: str, as_json: bool) -> None:
    """Say what a store or a source file holds: channels, counts, time span, flags, completeness."""
    from gridrad_cube import store as stores
    from gridrad_cube.info import inspect_target

    facts = inspect_target(target)
    click.echo(json.dumps(facts, indent=1) if as_json else stores.as_text(facts))


@click.command()
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


@click.command()
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
    pipeline.reflag(store, build_spec(QualitySpec, stores.store_info(store, "patches")["quality"] | given))
    click.echo(f"{store}: flagged again by {', '.join(f'{k}={v}' for k, v in given.items())}")
