"""Commands that make embeddings and what belongs to them: embed, readout, attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import (
    CHANNELS,
    PATH,
    SCHEDULER,
    WORKERS,
    combine,
    complete_store,
    numbers_of,
    store_option,
)
from gridrad_cube.cli.messages import Command, echo

_NETWORK = combine(
    click.option("--out", required=True, help="Store to write."),
    CHANNELS,
    click.option("--key", type=click.Choice(["teacher", "student"]), default="teacher"),
    click.option(
        "--normalize", type=click.Choice(["auto", "store", "none"]), default="auto",
        help="For checkpoints of the predecessor, which keep no statistics.",
    ),
    click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
)  # fmt: skip


@click.command(cls=Command)
@store_option("Cube of patches, or level-256 embeddings for level 2k.")
@click.option("--checkpoint", type=PATH, help="Embed by the network of a checkpoint.")
@click.option(
    "--model", type=click.Choice(["descriptor", "pool"]),
    help="Embed without training: the descriptor of patches, or mean and standard deviation of a crop's vectors.",
)  # fmt: skip
@_NETWORK
@click.option(
    "--coarsen", type=click.IntRange(1),
    help="With --model descriptor: average blocks of this edge first. By default patches keep at least 128 px.",
)  # fmt: skip
@click.option("--stride", type=int, help="Pixels between overlapping windows, a divisor of the patch.")
@click.option(
    "--pool", type=click.Choice(["auto", "class", "mean", "mean+std", "class+mean", "projection"]), default="auto",
    help="What becomes the embedding: the class token, the mean (and standard deviation) of the observed tokens, class "
    "token and mean, or the projection of the contrast. auto takes what the checkpoint says, or the class token.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16")
@click.option("--batch-size", type=click.IntRange(1), default=64)
@WORKERS
@SCHEDULER
@click.option("--part", type=int, nargs=2, metavar="I N", help="Embed share I of N: for job arrays.")
@click.option("--resume/--no-resume", default=True, help="--no-resume overwrites the embeddings in --out.")
def embed(store: str, checkpoint: Path | None, out: str, **options: Any) -> None:
    """Turn every patch (or every crop's grid of embeddings) of a store into an embedding.

    Pass --checkpoint to embed by a network, or --model to embed without training.

    \b
    gridrad-cube embed --store patches.zarr --model descriptor --out descriptors.zarr
    gridrad-cube embed --store patches.zarr --checkpoint runs/256/checkpoint.pth --out embeddings.zarr
    gridrad-cube embed --store embeddings.zarr --checkpoint runs/2k/checkpoint.pth --out embeddings_2k.zarr
    gridrad-cube embed --store embeddings.zarr --model pool --out pooled.zarr
    torchrun --nproc-per-node 4 -m gridrad_cube embed --store ... --checkpoint ... --out ...

    The same command resumes an interrupted run. Many processes may share a store: by --workers, --scheduler, a
    launcher (torchrun, srun, mpiexec) or --part.
    """
    from gridrad_cube import embedding

    options["channels"] = options["channels"] or None
    done = embedding.embed(store, checkpoint, out, **options)
    if not done["finished"]:
        echo(f"{done['out']}: this part is done; the store appears when the others are")
        return
    samples = "patches" if done["level"] == "256" else "crops"
    kept = f", {done['blocks_kept']} of {done['blocks']} blocks kept" if done["blocks_kept"] else ""
    echo(
        f"{done['out']}: {done['embedded']:,} of {done['patches']:,} {samples} embedded, {done['features']} numbers "
        f"for each channel ({', '.join(done['channels'])}){kept}"
    )


@click.command(cls=Command)
@click.argument("embeddings", shell_complete=complete_store)
@click.option(
    "--directions",
    type=click.IntRange(1),
    help="Directions to keep at most. By default 192, with --whiten 64.",
)
@click.option(
    "--within", help="Longest time over which change counts, such as 3h. By default three steps of the data."
)
@click.option(
    "--whiten", is_flag=True, help="Whiten by the covariance of all samples, to find similar storms anywhere."
)
@click.option(
    "--time", nargs=2, multiple=True, metavar="START STOP",
    help="Fit the readout on these times alone, STOP not included (repeatable).",
)  # fmt: skip
@click.option("--remove", is_flag=True, help="Remove the readout of the store instead.")
def readout(embeddings: str, remove: bool, time: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Fit a linear map of the vectors of EMBEDDINGS without labels, and save it with them.

    \b
    gridrad-cube readout embeddings.zarr
    gridrad-cube readout embeddings.zarr --time 2019-12-25 2019-12-29

    The readout reduces what changes at a place from one time to the next and keeps what differs between places and
    times, which helps to find the same storm later. With --whiten all directions count alike, which helps to find
    similar storms anywhere. query, evaluate and plot then compare vectors after the readout; --no-readout of query
    compares them as they are stored.
    """
    from gridrad_cube import query as asking

    if remove:
        asking.remove_readout(embeddings)
        echo(f"{embeddings}: no readout")
        return
    for channel, found in asking.fit_readout(embeddings, time=list(time) or None, **options).items():
        echo(f"{embeddings}: {channel}: {found}")


@click.command(cls=Command)
@click.argument("samples", nargs=-1, required=True, metavar="CROP[,ROW,COL]...")
@store_option("What the network reads: a cube, or level-256 embeddings.")
@click.option("--checkpoint", required=True, type=PATH)
@_NETWORK
def attention(samples: Sequence[str], store: str, checkpoint: Path, out: str, **options: Any) -> None:
    """Compute the attention of a network in some patches, or in all patches (or the grid) of some crops.

    \b
    gridrad-cube attention --store patches.zarr --checkpoint runs/256/checkpoint.pth --out attention.zarr 12,3,4
    gridrad-cube plot attention attention.zarr -o attention.png
    """
    from gridrad_cube import embedding
    from gridrad_cube.storage import Files, write_zarr

    if Files(out).names():
        raise click.ClickException(f"{out}: exists already; it was not changed. Pass another --out.")
    options["channels"] = options["channels"] or None
    maps = embedding.attention(store, checkpoint, [numbers_of(sample) for sample in samples], **options)
    write_zarr(maps, out)
    echo(f"{out}: {', '.join(f'{size} {name}' for name, size in maps.sizes.items())}")
