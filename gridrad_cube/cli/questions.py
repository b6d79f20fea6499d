"""Commands that ask embeddings: query, evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import read_query
from gridrad_cube.cli.pictures import save_figure


@click.command()
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
@click.option("--channel", default=None, help="Label such as reflectivity@3.0km, or a variable's name.")
@click.option(
    "--metric", type=click.Choice(["cosine", "euclidean", "dot"]), default="cosine", show_default=True
)
@click.option(
    "--exclude",
    nargs=2,
    default=("6h", "200km"),
    show_default=True,
    help="Leave out neighbors of the query: within both this time and this distance.",
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
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="File for the answer, in the format of its suffix: csv, json, geojson, parquet or nc. [a table is printed]",
)
def query(embeddings: str, out: Path | None, **options: Any) -> None:
    """Find the places and times of EMBEDDINGS that look most like the query.

    \b
    gridrad-cube query embeddings.zarr --time 2021-07-05T17:50 --latitude 38.5 --longitude -97.2 -k 5
    gridrad-cube query embeddings.zarr --like 12,3,4 --like 40,2,2 --unlike 7,0,0 --season JJA -o storms.geojson
    gridrad-cube query embeddings.zarr --like 12,3,4 -k 500 --separate 6h 200km -o storms.parquet
    """
    from gridrad_cube import query as asking
    from gridrad_cube import store as stores

    question, where = read_query(options), _where(options)
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
    if out is not None:
        asking.write_answer(answer, out)
    click.echo(asking.format_answer(answer) if out is None else f"{out}: {answer.sizes['rank']} answers")


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


@click.command()
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
    from gridrad_cube import evaluation as judging

    result = judging.evaluate(embeddings, leads=leads or judging.LEADS, **options)
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else str(result))
    if picture:
        from gridrad_cube import plot as drawing

        save_figure(drawing.evaluation(result.to_dict()), picture)
        click.echo(picture, err=as_json)
