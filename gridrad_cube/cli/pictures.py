"""One command a picture: ``gridrad-cube plot ...``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import read_query


@click.group()
def plot() -> None:
    """Draw pictures: PNG, PDF or SVG by the name of --out.

    \b
    gridrad-cube plot scene patches.zarr --crop 3 -o scene.png
    gridrad-cube plot query embeddings.zarr --like 12,3,4 -o neighbors.png
    gridrad-cube plot curves runs/256 runs/2k
    """


def _picture(name: str, *, crop: bool = False) -> Callable[..., Any]:
    """A command of plot: its --out (NAME.png by default), and where it draws one crop, --crop and --channel."""
    path = click.Path(path_type=Path)
    options = [click.option("--out", "-o", type=path, default=Path(f"{name}.png"), show_default=True)]
    if crop:
        row = click.IntRange(0)
        options += [
            click.option("--crop", type=row, default=0, show_default=True, help="Row of the crop."),
            click.option("--channel", default=None, help="Name or label; the first by default."),
        ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return plot.command(name)(command)

    return decorate


def save_figure(figure: Any, out: Path) -> None:
    """Write a figure in the format of the suffix."""
    from gridrad_cube.storage import open_for_writing

    with open_for_writing(out) as file:
        figure.savefig(file, format=out.suffix[1:] or "png", dpi=110)


def _draw(name: str, out: Path, *arguments: Any, **options: Any) -> None:
    """Save what a function of `gridrad_cube.plot` draws."""
    from gridrad_cube import plot as drawing

    save_figure(getattr(drawing, name)(*arguments, **options), out)
    click.echo(out)


def _open_cube(path: str | None) -> Any:
    from gridrad_cube.store import open_cube

    return open_cube(path) if path else None


@_picture("source")
@click.argument("file")
def plot_source(file: str, out: Path) -> None:
    """Every 2-D field of a source FILE at a glance."""
    from gridrad_cube.readers import read_fields

    _draw("source", out, read_fields(file))


@_picture("scene", crop=True)
@click.argument("cube")
def plot_scene(cube: str, out: Path, crop: int, channel: str | None) -> None:
    """A crop of CUBE with its patches."""
    _draw("scene", out, _open_cube(cube), crop, channel=channel)


@_picture("crops", crop=True)
@click.argument("cube")
def plot_crops(cube: str, out: Path, crop: int, channel: str | None) -> None:
    """The scene of a crop, with all of its crops and patches."""
    _draw("crops", out, _open_cube(cube), crop, channel=channel)


@_picture("flags", crop=True)
@click.argument("cube")
def plot_flags(cube: str, out: Path, crop: int, channel: str | None) -> None:
    """The flags of a crop's patches, on its pixels."""
    _draw("flags", out, _open_cube(cube), crop, channel=channel)


@_picture("statistics")
@click.argument("cube")
def plot_statistics(cube: str, out: Path) -> None:
    """How the values of each channel of CUBE are distributed."""
    _draw("statistics", out, _open_cube(cube))


@_picture("curves")
@click.argument("runs", nargs=-1, required=True)
def plot_curves(runs: Sequence[str], out: Path) -> None:
    """The training curves of one run, or of several."""
    _draw("curves", out, runs[0] if len(runs) == 1 else {run: run for run in runs})


@_picture("embeddings", crop=True)
@click.argument("embeddings")
@click.option("--cube", default=None, help="Draw the field beside them, from here.")
def plot_embeddings(embeddings: str, out: Path, crop: int, channel: str | None, cube: str | None) -> None:
    """A crop's embeddings as color, a cell a patch.

    Lightness is the first principal component, blue to yellow the second, green to magenta the third.
    """
    from gridrad_cube.store import open_embeddings

    _draw("embeddings", out, open_embeddings(embeddings), crop, channel=channel, cube=_open_cube(cube))


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
    """A patch beside the nearest ones, on a map."""
    from gridrad_cube.evaluation import sources_of
    from gridrad_cube.query import search
    from gridrad_cube.store import open_embeddings

    question = read_query(options | {"vector": None, "unlike": ()})
    answer = search(open_embeddings(embeddings), question, k, exclude=exclude, separate=separate)
    _draw("query", out, _open_cube(sources_of(embeddings, cube)[0]), answer)


@_picture("attention")
@click.argument("maps")
@click.option("--sample", type=click.IntRange(0), default=0, show_default=True, help="Which of the maps.")
@click.option("--cube", default=None, help="Draw the field beside them, from here.")
def plot_attention(maps: str, out: Path, sample: int, cube: str | None) -> None:
    """What a network attends to: MAPS of gridrad-cube attention."""
    import xarray as xr

    _draw("attention", out, xr.open_zarr(maps, chunks=None), sample, cube=_open_cube(cube))


@_picture("evaluation")
@click.argument("result", type=click.Path(exists=True, path_type=Path))
def plot_evaluation(result: Path, out: Path) -> None:
    """What evaluate --json wrote, with intervals."""
    _draw("evaluation", out, result)
