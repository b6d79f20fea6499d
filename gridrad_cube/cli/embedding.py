"""Commands of trained networks: embed, attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import numbers

_KEY = click.option("--key", type=click.Choice(["teacher", "student"]), default="teacher", show_default=True)
_CHANNELS = click.option(
    "--channels", "-c", multiple=True, help="Of those that the network knows; all by default (repeatable)."
)
_NORMALIZE = click.option(
    "--normalize",
    type=click.Choice(["auto", "store", "none"]),
    default="auto",
    show_default=True,
    help="For checkpoints of the predecessor, which keep no statistics.",
)
_DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")


@click.command()
@click.option("--store", required=True, help="Cube of patches, or level-256 embeddings for level 2k.")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, help="Embedding store to write, or to continue.")
@_CHANNELS
@click.option(
    "--stride", type=int, default=None, help="Pixels between overlapping windows, a divisor of the patch."
)
@_KEY
@click.option(
    "--pool",
    type=click.Choice(["class", "mean", "class_mean"]),
    default="class",
    show_default=True,
    help="Class token, mean of the observed tokens, or both.",
)
@_NORMALIZE
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@_DEVICE
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes on this machine; they share its GPUs.",
)
@click.option(
    "--scheduler", default=None, help="Address or scheduler file of a running Dask cluster instead."
)
@click.option(
    "--part",
    type=int,
    nargs=2,
    default=None,
    metavar="I N",
    help="Embed the i-th of n shares: for job arrays. Ranks of torchrun, srun or mpiexec take theirs by themselves.",
)
@click.option("--resume/--no-resume", default=True, show_default=True)
def embed(store: str, checkpoint: Path, out: str, **options: Any) -> None:
    """Turn every patch (or every crop's grid of embeddings) of a store into an embedding.

    \b
    gridrad-cube embed --store patches.zarr --checkpoint runs/256/checkpoint.pth --out embeddings.zarr
    gridrad-cube embed --store embeddings.zarr --checkpoint runs/2k/checkpoint.pth --out embeddings_2k.zarr
    torchrun --nproc-per-node 4 -m gridrad_cube embed --store ... --checkpoint ... --out ...

    The same command resumes an interrupted run. Many processes may share a store: by --workers, --scheduler, a
    launcher (torchrun, srun, mpiexec) or --part.
    """
    from gridrad_cube import embedding
    from gridrad_cube.launch import find_world

    options["channels"] = options["channels"] or None
    summary = embedding.embed(store, checkpoint, out, progress=find_world().size == 1, **options)
    click.echo(json.dumps(summary))


@click.command()
@click.argument("samples", nargs=-1, required=True, metavar="CROP[,ROW,COL]...")
@click.option("--store", required=True, help="What the network reads: a cube, or level-256 embeddings.")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, help="Store of the maps; must not exist.")
@_CHANNELS
@_KEY
@_NORMALIZE
@_DEVICE
def attention(samples: Sequence[str], store: str, checkpoint: Path, out: str, **options: Any) -> None:
    """Map what a network attends to in some patches, or in all patches (or the grid) of some crops.

    \b
    gridrad-cube attention --store patches.zarr --checkpoint runs/256/checkpoint.pth --out attention.zarr 12,3,4
    gridrad-cube plot attention attention.zarr -o attention.png
    """
    from gridrad_cube import embedding
    from gridrad_cube.storage import Files

    if Files(out).names():
        raise click.ClickException(f"{out}: exists already; it is left as it is. Pass another --out.")
    options["channels"] = options["channels"] or None
    maps = embedding.attention(store, checkpoint, [numbers(sample) for sample in samples], **options)
    maps.to_zarr(out, mode="w-", zarr_format=3, consolidated=True)
    click.echo(json.dumps({"out": out, **maps.sizes}))
