"""The command line: results on stdout, progress and logs on stderr, one readable line for an error."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import click

from gridrad_cube import __version__
from gridrad_cube.cli.arguments import PATH, SEED
from gridrad_cube.cli.cubes import info, preprocess, reflag, synthesize, verify, withdraw
from gridrad_cube.cli.embedding import attention, embed, readout
from gridrad_cube.cli.messages import Command, Formatter, Group, echo
from gridrad_cube.cli.pictures import plot
from gridrad_cube.cli.predecessor import convert
from gridrad_cube.cli.questions import evaluate, query
from gridrad_cube.cli.training import train

__all__ = ["cli", "main"]


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, package_name="gridrad-cube")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Turn gridded radar and satellite files into a Zarr cube and embeddings, and query them.

    \b
    The steps:  synthesize (or your files) -> preprocess -> train -> embed -> train -> embed -> query
    See it run on synthetic storms:  gridrad-cube demo
    """
    training = ctx.invoked_subcommand == "train"  # its log says how the run goes, and when
    level = logging.DEBUG if debug else logging.INFO if training else logging.WARNING
    text = "%(asctime)s %(levelname)s %(message)s" if training else "%(levelname)s %(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(text, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])
    # Threads that wait asleep: spinning ones take the cores of others. It counts when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not debug:
        # Dask would log each worker and connection, in its processes too; and libraries warn of what only developers
        # can change.
        os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
        warnings.simplefilter("ignore")


@click.command(cls=Command)
@click.argument("out", type=PATH, default=Path("demo"))
@SEED
@click.option("--workers", type=click.IntRange(1), default=2)
def demo(out: Path, seed: int, workers: int) -> None:
    """Run every step on synthetic storms, on CPU, and leave stores and pictures in OUT."""
    from gridrad_cube import demo as demonstration

    demonstration.run(out, seed=seed, workers=workers, say=echo)


for _command in (
    synthesize, preprocess, info, verify, reflag, withdraw, train, embed, readout, attention, query, evaluate, plot,
    convert, demo,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli()
