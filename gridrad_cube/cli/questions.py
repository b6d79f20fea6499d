"""Commands that ask embeddings: query, evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import (
    CHANNEL,
    CUBE,
    JSON,
    PATH,
    QUERY,
    SEED,
    complete_store,
    read_query,
    save_figure,
)
from gridrad_cube.cli.messages import Command, echo


@click.command(cls=Command)
@click.argument("embeddings", shell_complete=complete_store)
@QUERY
@click.option("--no-exclude", is_flag=True, help="Leave out only the query itself.")
@click.option("-k", type=click.IntRange(1), default=10, help="Number of answers.")
@click.option("--bbox", type=float, nargs=4, help="West, south, east, north of the answers.")
@click.option("--start", help="Answers not before this time.")
@click.option("--stop", help="Answers before this time.")
@click.option("--season", help="Months of the answers: JJA, AMJJAS, ...")
@CHANNEL
@click.option("--out", "-o", type=PATH, help="File for the answer: csv, json, geojson, parquet or nc.")
def query(embeddings: str, k: int, no_exclude: bool, out: Path | None, **options: Any) -> None:
    """Find the places and times of EMBEDDINGS that are most similar to the query.

    \b
    gridrad-cube query embeddings.zarr --time 2021-07-05T17:50 --latitude 38.5 --longitude -97.2 -k 5
    gridrad-cube query embeddings.zarr --like 12,3,4 --like 40,2,2 --unlike 7,0,0 --season JJA -o storms.geojson
    gridrad-cube query embeddings.zarr --like 12,3,4 -k 500 --separate 6h 200km -o storms.parquet
    """
    from gridrad_cube import query as asking
    from gridrad_cube import store as stores

    question = read_query(options)
    rules = {name: options[name] for name in ("bbox", "season", "channel", "separate") if options[name]}
    if options["start"] or options["stop"]:
        rules["time"] = (options["start"], options["stop"])
    exclude = None if no_exclude else options["exclude"]
    readout: Any = None if options["no_readout"] else "auto"
    answer = asking.search(
        stores.open_embeddings(embeddings), question, k, exclude=exclude, readout=readout, **rules
    )
    if out is None:
        echo(asking.format_answer(answer))
    else:
        asking.write_answer(answer, out)
        echo(f"{out}: {answer.sizes['rank']} answers")


@click.command(cls=Command)
@click.argument("embeddings", nargs=-1, required=True, shell_complete=complete_store)
@CUBE
@click.option("--patches", help="At level 2k: path of the level-256 embeddings, if they have moved.")
@CHANNEL
@click.option("--labels", help="Table (csv) or Dataset (nc, zarr) with times, places and labels.")
@click.option("--label", help="Column or variable of --labels to probe and to forecast.")
@click.option("--samples", type=click.IntRange(1), default=8000, help="Samples to draw at most.")
@click.option(
    "--gap",
    type=click.IntRange(0),
    default=1,
    help="Days to leave out between parts, if there are enough days.",
)
@SEED
@JSON
@click.option("--picture", type=PATH, help="Draw it too: PNG, PDF or SVG.")
def evaluate(embeddings: Sequence[str], as_json: bool, picture: Path | None, **options: Any) -> None:
    """Compare EMBEDDINGS with the histogram and the descriptor of the pixels, which need no training.

    The table holds retrieval of the same place later, analogue forecasts, linear probes and leaks of hour and
    latitude, on days or events that were held out, and the spread of the vectors. Vectors are compared as they are
    and after a readout, which is that of the store or one that is fitted on the days to fit. Of several stores of
    the same samples one is chosen.

    \b
    gridrad-cube evaluate embeddings.zarr
    gridrad-cube evaluate embeddings.zarr --labels rain.nc --label precipitation_rate
    gridrad-cube evaluate epoch20.zarr epoch50.zarr --json > evaluation.json
    """
    from gridrad_cube import evaluation as judging

    result = judging.evaluate(embeddings, **options)
    echo(json.dumps(result.to_dict(), indent=1) if as_json else str(result))
    if picture:
        from gridrad_cube import plot as drawing

        save_figure(drawing.evaluation(result.to_dict()), picture)
        echo(picture, err=as_json)
