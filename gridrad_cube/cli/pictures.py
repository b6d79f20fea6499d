"""One command a picture: ``gridrad-cube plot ...``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.questions import asked


@click.group()
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
    from gridrad_cube.evaluation import sources_of

    question = asked(options | {"vector": None, "unlike": ()})
    dataset = stores.open_embeddings(embeddings)
    answer = asking.search(dataset, question, k, exclude=exclude, separate=separate)
    place, _ = sources_of(embeddings, cube)
    _save(drawing.answers(stores.open_cube(place), answer), out)


@_picture("attention")
@click.argument("maps")
@click.option("--sample", type=click.IntRange(0), default=0, show_default=True, help="Which of the maps.")
@click.option("--cube", default=None, help="Draw the field beside them, from here.")
def plot_attention(maps: str, out: Path, sample: int, cube: str | None) -> None:
    """What a network attends to: MAPS of gridrad-cube attention."""
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
