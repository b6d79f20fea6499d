"""Commands of trained networks: embed, attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import CHANNELS, PATH, SCHEDULER, WORKERS, combine, numbers_of, store_option

_NETWORK = combine(
    click.option("--checkpoint", required=True, type=PATH),
    click.option("--out", required=True, help="Store to write."),
    CHANNELS,
    click.option("--key", type=click.Choice(["teacher", "student"]), default="teacher"),
    click.option(
        "--normalize", type=click.Choice(["auto", "store", "none"]), default="auto",
        help="For checkpoints of the predecessor, which keep no statistics.",
    ),
    click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
)  # fmt: skip


@click.command()
@store_option("Cube of patches, or level-256 embeddings for level 2k.")
@_NETWORK
@click.option("--stride", type=int, help="Pixels between overlapping windows, a divisor of the patch.")
@click.option(
    "--pool", type=click.Choice(["class", "mean", "class_mean"]), default="class",
    help="Class token, mean of the observed tokens, or both.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16")
@click.option("--batch-size", type=click.IntRange(1), default=64)
@WORKERS
@SCHEDULER
@click.option("--part", type=int, nargs=2, metavar="I N", help="Embed share I of N: for job arrays.")
@click.option("--resume/--no-resume", default=True, help="--no-resume overwrites the embeddings in --out.")
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
@store_option("What the network reads: a cube, or level-256 embeddings.")
@_NETWORK
def attention(samples: Sequence[str], store: str, checkpoint: Path, out: str, **options: Any) -> None:
    """Map what a network attends to in some patches, or in all patches (or the grid) of some crops.

    \b
    gridrad-cube attention --store patches.zarr --checkpoint runs/256/checkpoint.pth --out attention.zarr 12,3,4
    gridrad-cube plot attention attention.zarr -o attention.png
    """
    from gridrad_cube import embedding
    from gridrad_cube.storage import Files, write_zarr

    if Files(out).names():
        raise click.ClickException(f"{out}: exists already; it is left as it is. Pass another --out.")
    options["channels"] = options["channels"] or None
    maps = embedding.attention(store, checkpoint, [numbers_of(sample) for sample in samples], **options)
    write_zarr(maps, out)
    click.echo(json.dumps({"out": out, **maps.sizes}))
