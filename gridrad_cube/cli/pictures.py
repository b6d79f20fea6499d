"""One command a picture: ``gridrad-cube plot ...``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import (
    CHANNEL,
    CUBE,
    DPI,
    PATH,
    QUERY,
    combine,
    complete_store,
    read_query,
    save_figure,
)
from gridrad_cube.cli.messages import Group, echo


@click.group(cls=Group)
def plot() -> None:
    """Draw pictures: PNG, PDF or SVG by the name of --out.

    \b
    gridrad-cube plot scene patches.zarr --crop 3 -o scene.png
    gridrad-cube plot query embeddings.zarr --like 12,3,4 -o neighbors.png
    gridrad-cube plot curves runs/256 runs/2k
    """


_CROP = combine(click.option("--crop", type=click.IntRange(0), default=0, help="Row of the crop."), CHANNEL)
_FIELD = click.option("--cube", help="Draw the field beside them, from here.")


def _picture(name: str, **about: Any) -> Callable[[Any], Any]:
    """Make a command of plot, with --out (NAME.png by default)."""
    out = click.option("--out", "-o", type=PATH, default=Path(f"{name}.png"))
    dpi = click.option(
        "--dpi", type=click.IntRange(10, 1200), default=DPI, help="Dots per inch of PNG files.", expose_value=False,
        callback=lambda ctx, _, value: ctx.meta.update(dpi=value),
    )  # fmt: skip
    return combine(plot.command(name, **about), out, dpi)


def _draw(name: str, out: Path, *arguments: Any, **options: Any) -> None:
    """Save what a function of `gridrad_cube.plot` draws."""
    from gridrad_cube import plot as drawing

    dpi = click.get_current_context().meta["dpi"]
    save_figure(getattr(drawing, name)(*arguments, **options), out, dpi)
    echo(out)


def _open_cube(path: str | None) -> Any:
    from gridrad_cube.store import open_cube

    return open_cube(path) if path else None


@_picture("source")
@click.argument("file")
def plot_source(file: str, out: Path) -> None:
    """Draw every 2-D field of a source FILE."""
    from gridrad_cube.readers import read_fields

    _draw("source", out, read_fields(file))


def _add_picture_of_crop(name: str, text: str) -> None:
    @_picture(name, help=text)
    @click.argument("cube", shell_complete=complete_store)
    @_CROP
    def plot_crop(cube: str, out: Path, crop: int, channel: str | None) -> None:
        _draw(name, out, _open_cube(cube), crop, channel=channel)


_add_picture_of_crop("scene", "Draw a crop of CUBE with its patches.")
_add_picture_of_crop("crops", "Draw the scene of a crop, with all of its crops and patches.")
_add_picture_of_crop("flags", "Draw the flags of a crop's patches, on its pixels.")


@_picture("statistics")
@click.argument("cube", shell_complete=complete_store)
def plot_statistics(cube: str, out: Path) -> None:
    """Draw the distribution of the values of each channel of CUBE."""
    _draw("statistics", out, _open_cube(cube))


@_picture("curves")
@click.argument("runs", nargs=-1, required=True)
def plot_curves(runs: Sequence[str], out: Path) -> None:
    """Draw the training curves of one run, or of several."""
    _draw("curves", out, runs[0] if len(runs) == 1 else {run: run for run in runs})


@_picture("embeddings")
@click.argument("embeddings", shell_complete=complete_store)
@_CROP
@_FIELD
def plot_embeddings(embeddings: str, out: Path, crop: int, channel: str | None, cube: str | None) -> None:
    """Draw the embeddings of a crop as color, one cell for each patch.

    Lightness is the first principal component, blue to yellow the second, green to magenta the third.
    """
    from gridrad_cube.store import open_embeddings

    _draw("embeddings", out, open_embeddings(embeddings), crop, channel=channel, cube=_open_cube(cube))


@_picture("query")
@click.argument("embeddings", shell_complete=complete_store)
@QUERY
@click.option("-k", type=click.IntRange(1, 9), default=9, help="Number of answers.")
@CUBE
def plot_query(embeddings: str, out: Path, k: int, cube: str | None, **options: Any) -> None:
    """Draw a patch beside the most similar ones, with a map."""
    from gridrad_cube.evaluation import sources_of
    from gridrad_cube.query import search
    from gridrad_cube.store import open_embeddings

    apart = {name: options[name] for name in ("exclude", "separate")}
    readout: Any = None if options["no_readout"] else "auto"
    answer = search(open_embeddings(embeddings), read_query(options), k, readout=readout, **apart)
    _draw("query", out, _open_cube(sources_of(embeddings, cube)[0]), answer)


@_picture("attention")
@click.argument("maps")
@click.option("--sample", type=click.IntRange(0), default=0, help="Which of the maps.")
@_FIELD
def plot_attention(maps: str, out: Path, sample: int, cube: str | None) -> None:
    """Draw the attention of a network: MAPS of gridrad-cube attention."""
    import xarray as xr

    _draw("attention", out, xr.open_zarr(maps, chunks=None), sample, cube=_open_cube(cube))


@_picture("evaluation")
@click.argument("result", type=click.Path(exists=True, path_type=Path))
def plot_evaluation(result: Path, out: Path) -> None:
    """Draw the result of evaluate --json, with intervals."""
    _draw("evaluation", out, result)
