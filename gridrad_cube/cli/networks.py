"""Commands of networks: train, embed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.questions import numbers


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: Sequence[str]) -> None:
    """Train a network on a store; the same as python training/dino.py (see its --help)."""
    from gridrad_cube.training import main as train_main

    raise SystemExit(train_main(list(arguments)))


@click.command()
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
    from gridrad_cube import embedding as embedding

    options["channels"] = options["channels"] or None
    if attention:
        kept = {name: options[name] for name in ("channels", "key", "device", "normalize")}
        maps = embedding.attention(store, checkpoint, [numbers(a) for a in attention], out, **kept)
        click.echo(json.dumps({"out": out, **maps.sizes}))
        return
    summary = embedding.embed(store, checkpoint, out, progress="RANK" not in os.environ, **options)
    click.echo(json.dumps(summary))
