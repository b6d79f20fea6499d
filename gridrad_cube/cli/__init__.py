"""The command line: results on stdout, progress and logs on stderr, one readable line for an error."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from gridrad_cube import __version__
from gridrad_cube.cli.arguments import PATH, SEED
from gridrad_cube.cli.cubes import info, preprocess, reflag, synthesize, verify
from gridrad_cube.cli.embedding import attention, embed, readout
from gridrad_cube.cli.pictures import plot
from gridrad_cube.cli.predecessor import convert
from gridrad_cube.cli.questions import evaluate, query
from gridrad_cube.cli.training import train

__all__ = ["cli", "main"]

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


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, package_name="gridrad-cube")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Gridded radar and satellite files to a Zarr cube, embeddings, and answers about them.

    \b
    The steps:  synthesize (or your files) -> preprocess -> train -> embed -> train -> embed -> query
    See it run on synthetic storms:  gridrad-cube demo
    """
    training = ctx.invoked_subcommand == "train"  # its log says how the run goes, and when
    level = logging.DEBUG if debug else logging.INFO if training else logging.WARNING
    text = "%(asctime)s %(levelname)s %(message)s" if training else "%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=text, datefmt="%H:%M:%S")
    if not debug:  # Dask would log each worker and connection, in its processes too
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")


@click.command()
@click.argument("out", type=PATH, default=Path("demo"))
@SEED
@click.option("--workers", type=click.IntRange(1), default=2)
def demo(out: Path, seed: int, workers: int) -> None:
    """Run every step on synthetic storms, on CPU, and leave stores and pictures in OUT."""
    from gridrad_cube import demo as demonstration

    demonstration.run(out, seed=seed, workers=workers, say=click.echo)


for _command in (
    synthesize, preprocess, info, verify, reflag, train, embed, readout, attention, query, evaluate, plot, convert, demo
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli()
