"""The predecessor's files: ``gridrad-cube convert ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gridrad_cube.cli.arguments import PATH, WORKERS, combine, complete_store, finish
from gridrad_cube.cli.messages import Group, echo
from gridrad_cube.schema import counted


@click.group(cls=Group)
def convert() -> None:
    """Convert the predecessor's files to stores and checkpoints (docs/coming-from-the-predecessor.md).

    \b
    gridrad-cube convert from-npz output_npz/ patches.zarr --source-root netcdf/
    gridrad-cube convert from-features output_features.pt embeddings.zarr --cube patches.zarr

    The name says which files are meant, since old folders hold several copies of the same pixels.
    """


#: Arguments of from-npz and from-pt.
_PIXELS = combine(
    click.argument("sources", nargs=-1, required=True, type=PATH),
    click.argument("store", shell_complete=complete_store),
    click.option(
        "--source-root", type=PATH,
        help="Folder of the netCDF files: crops find their exact place in them by their pixels.",
    ),
    click.option("--visible-units", type=click.Choice(["auto", "percent", "1"]), default="auto"),
    click.option(
        "--dtype", type=click.Choice(["uint16", "float32"]), default="uint16",
        help="Packed in steps of 0.01 K and 0.0001, or as they are.",
    ),
    click.option("--patch", type=int, help="Edge of a patch [that of those found, or 256]."),
    WORKERS,
)  # fmt: skip
_CHANNELS = click.option(
    "--channel", "channels", multiple=True, help="Channel of suffix 0, 1, ... (repeatable)."
)


@convert.command("from-npz")
@_PIXELS
def from_npz(sources: tuple[Path, ...], store: str, **options: Any) -> None:
    """Convert BASE.npz files (and folders of them) to a cube. The same command resumes an interrupted one.

    \b
    gridrad-cube convert from-npz /data/output_npz patches.zarr --workers 4
    """
    from gridrad_cube import predecessor

    finish(predecessor.from_npz(sources, store, **options))


@convert.command("from-pt")
@_PIXELS
def from_pt(sources: tuple[Path, ...], store: str, **options: Any) -> None:
    """Convert crops and patches of any version (crops/, patches/, crops_K.pt, patch_K_N.pt, ...) to a cube.

    \b
    gridrad-cube convert from-pt output_folder/ patches.zarr
    gridrad-cube convert from-pt output_folder/patches patches.zarr   (patches alone: deleted ones are flagged)
    """
    from gridrad_cube import predecessor

    finish(predecessor.from_pt(sources, store, **options))


@convert.command("from-features")
@click.argument("source", type=PATH)
@click.argument("store", shell_complete=complete_store)
@click.option("--cube", help="Cube of the same crops: places, times and flags come from it.")
@click.option("--checkpoint", type=PATH, help="The network that made them.")
@_CHANNELS
@click.option("--grid", type=int, nargs=2, help="Rows and columns, where they are not equal.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float32")
def from_features(source: Path, store: str, **options: Any) -> None:
    """Convert output_features.pt (or _2k, or a folder such as input_2k/) to an embedding store.

    \b
    gridrad-cube convert from-features output_features.pt embeddings.zarr --cube patches.zarr
    """
    from gridrad_cube import predecessor

    given = {name: value for name, value in options.items() if value}
    done = predecessor.from_features(source, store, **given)
    echo(
        f"{done['out']}: {counted(done['embedded'], 'embedding')} of {counted(done['features'], 'number')}, of "
        f"{counted(done['crops'], 'crop')} and "
        f"{', '.join(done['channels'])}"
    )
    if done["unmatched"]:
        names = done["unmatched"]
        echo(f"  {len(names)} names belong to no patch of the cube, for example {names[0]}")


@convert.command("from-checkpoint")
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--inputs", type=click.Choice(["embedding", "training"]), default="embedding",
    help="Values as they are, as it embedded, or (x - 0.5) / 0.5, as it trained.",
)  # fmt: skip
@_CHANNELS
@click.option(
    "--visible-units", type=click.Choice(["percent", "1"]), default="percent",
    help="Of the reflectance in the old files.",
)  # fmt: skip
def from_checkpoint(source: Path, out: Path, **options: Any) -> None:
    """Convert checkpoint.pth of the predecessor to a checkpoint of this program, of either level.

    \b
    gridrad-cube convert from-checkpoint Checkpoints_1/checkpoint.pth old_256.pth
    gridrad-cube embed --store patches.zarr --checkpoint old_256.pth --out embeddings.zarr
    """
    from gridrad_cube import predecessor

    given = {name: value for name, value in options.items() if value}
    done = predecessor.from_checkpoint(source, out, **given)
    epoch = "" if done["epoch"] is None else f", epoch {done['epoch']}"
    echo(f"{done['out']}: {done['model']['name']}, level {done['level']}{epoch}")
    if done["left_out"]:
        echo(f"  left out: {', '.join(map(str, done['left_out']))}")
