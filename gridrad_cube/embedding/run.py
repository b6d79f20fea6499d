"""Embedding a store: every patch a row, every row its flag, an interrupted run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from gridrad_cube.embedding.attributes import describe, geoemb, label_arrays, spacing_km
from gridrad_cube.embedding.network import Pool
from gridrad_cube.embedding.output import Output, row_groups
from gridrad_cube.embedding.patches import Normalize, PatchInput
from gridrad_cube.embedding.work import Blocks, Dtype, Source, Work, make_share, overlaps
from gridrad_cube.schema import FORMAT_VERSION, SchemaError
from gridrad_cube.store import COORDINATES, Files

if TYPE_CHECKING:
    from distributed import Client

#: Shares of the work for each process here, so that none waits long for another; and on a cluster.
SHARES, REMOTE_SHARES = 2, 64


def embed(
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    batch_size: int = 64,
    channels: str | Sequence[str] | None = None,
    checkpoint_2k: str | os.PathLike[str] | None = None,
    dtype: Dtype = "float16",
    key: str = "teacher",
    pool: Pool = "class",
    stride: int | None = None,
    normalize: Normalize = "auto",
    part: tuple[int, int] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    client: Client | None = None,
    progress: bool = False,
    resume: bool = True,
) -> dict[str, Any]:
    """Embed every patch of a cube, or every grid of an embedding store of level 256.

    The kind of the store says the level, and the checkpoint must be of it. From a cube straight to level 2k: give
    both checkpoints; the result is that of embedding twice, and nothing is stored between. Inputs are decoded,
    normalised, coarsened, magnified and masked as the checkpoint says training did. Nothing is rejected: patches with
    rejecting flags are embedded too, and every patch keeps its row and its flags. Only where there are no
    pixels (flags ``padding``, ``all_missing``, ``channel_absent``, ``unreadable``) is the embedding NaN.

    Written a block of crops at a time. The same call goes on with an interrupted one; after the cube has
    grown or was repaired it makes what is new and keeps the rest.

    Parameters
    ----------
    store
        A finished cube of patches, or embedding store of level 256: path or URL.
    checkpoint
        Path of a checkpoint of this program or of the predecessor.
    out
        Path or URL of the embedding store.
    device
        ``"auto"`` takes CUDA where there is one. Matrix products are bf16 there and float32 elsewhere.
    batch_size
        Patches, or grids, that go through the network at once. It changes speed and memory only.
    channels
        Labels, or names of variables, of those that the network knows; None takes all of them.
    checkpoint_2k
        Of level 2k: embed the grids that ``checkpoint`` makes of the patches of a cube. ``stride`` and
        ``pool`` are then those of the patches; grids give their class token.
    dtype
        Of the stored embeddings. ``"int8"`` stores a factor for each vector beside its codes, which
        `open_embeddings` decodes; it takes half the space of float16 and is off by up to 1/254 of a vector's
        largest value.
    key
        Which network of the checkpoint: ``"teacher"`` or ``"student"``.
    pool
        ``"class"`` stores the class token, ``"mean"`` the mean of the tokens with at least half of their
        pixels observed (level 2k: of the cells that count), ``"class_mean"`` one after the other.
    stride
        Level 256: step in pixels between windows, a divisor of the patch, for overlapping windows; their
        flags and positions are those of a cube cut there. None embeds the cube's patches.
    normalize
        ``"auto"`` takes the checkpoint's normalisation, and the store's if it has none (the predecessor's);
        ``"store"`` the store's; ``"none"`` physical values as they are, as the predecessor embedded.
    part
        ``(i, n)`` makes blocks i, i + n, ... only, for n processes side by side. Whichever ends last finishes
        the store. None: all of it, or under ``torchrun`` the share of this rank, on the GPU of its local rank.
    workers, scheduler, client
        Share the work among so many processes here, or the workers of a Dask cluster (its address or scheduler
        file, or a client), which must all see ``store`` and ``out``. A share that is lost with its worker
        starts again elsewhere and keeps what it had made.
    progress
        Whether to show a bar on stderr.
    resume
        Whether to go on with what ``out`` holds. If not, embeddings there are made anew.

    Returns
    -------
    JSON types: ``out``, ``level``, ``checkpoint``, ``crops``, ``channels``, ``features``, ``patches`` (rows of the
    store), ``embedded`` (those that are not NaN), ``blocks``, ``blocks_kept``, ``finished``, ``seconds``.

    Raises
    ------
    FileNotFoundError
        If there is no such store or checkpoint.
    SchemaError
        If the store is not finished, the checkpoint is not of its level or does not fit, a channel is missing,
        or ``out`` holds something else.
    """
    started = time.monotonic()
    together = scheduler is not None or client is not None or workers > 1
    if together and part is not None:
        raise SchemaError(f"part: got {part} together with workers; expected one or the other")
    share, device = (part, device) if part is not None or together else _rank(device)
    share = share or (0, 1)
    _check_options(store, out, dtype=dtype, batch_size=batch_size, part=share, resume=resume)
    work = Work(
        store=os.fspath(store), checkpoint=os.fspath(checkpoint), out=os.fspath(out), device=device,
        checkpoint_2k=None if checkpoint_2k is None else os.fspath(checkpoint_2k), batch_size=batch_size,
        channels=channels, dtype=dtype, key=key, pool=pool, stride=stride, normalize=normalize,
    )  # fmt: skip
    source, output = work.open()
    request = _request(source, dtype)
    output.begin(request, resume=resume)
    there = None
    if together:
        there = sum(output.record(number) is not None for number in range(len(output.blocks)))
        _make_elsewhere(work, len(output.blocks), workers, scheduler, client)
    kept = Blocks(source, output, batch_size).make(share, progress=progress and not together)
    kept = kept if there is None else there
    done = _done(source, output, share)
    finished = len(done) == len(output.blocks)
    if finished:
        _finish(source, output, request, done)
    return {
        "out": output.files.root, "level": source.level, "checkpoint": source.network.fingerprint,
        "crops": source.crops, "channels": list(source.labels), "features": source.network.features,
        "patches": int(np.prod((source.crops, *source.shape[:-1]))),
        "embedded": sum(r["embedded"] for r in done.values()), "blocks": len(output.blocks), "blocks_kept": kept,
        "finished": finished, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def _rank(device: str) -> tuple[tuple[int, int] | None, str]:
    """The share and the device of this process under ``torchrun``; no share elsewhere."""
    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return None, device
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"
    return (rank, world), device


def _make_elsewhere(
    work: Work, blocks: int, workers: int, scheduler: str | None, client: Client | None
) -> None:
    """Make all blocks by other processes, some shares for each."""
    from gridrad_cube.pipeline.execution import executor

    here = client is None and scheduler is None
    threads = max(1, (os.cpu_count() or 1) // workers) if here else None
    shares = min(blocks, SHARES * workers if here else REMOTE_SHARES)
    work = replace(
        work, store=Files(work.store).root, out=Files(work.out).root
    )  # workers may stand elsewhere
    above = work.checkpoint_2k and os.path.abspath(work.checkpoint_2k)
    work = replace(work, checkpoint=os.path.abspath(work.checkpoint), checkpoint_2k=above)
    with executor(client, workers, scheduler) as run:
        results = [r for _, r in run(make_share, [(work, (i, shares), threads) for i in range(shares)])]
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _done(source: Source, output: Output, share: tuple[int, int]) -> dict[int, dict[str, Any]]:
    """Records of the blocks that are there as they should be; those of others are looked at too."""
    out = {}
    for number, rows in enumerate(output.blocks):
        record = output.record(number)
        if record is None or record["rows"] != len(rows):
            continue
        mine = number % share[1] == share[0]
        # Another process may not have come yet to a block of the time before the cube changed.
        if mine or record["content"] == source.content(rows):
            out[number] = record
    return out


def _check_options(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str,
    batch_size: int,
    part: tuple[int, int],
    resume: bool,
) -> None:
    if dtype not in get_args(Dtype):
        raise SchemaError(f"dtype: got {dtype!r}; expected one of {', '.join(get_args(Dtype))}")
    if batch_size < 1:
        raise SchemaError(f"batch_size: got {batch_size}; expected at least 1")
    if not 0 <= part[0] < part[1]:
        raise SchemaError(f"part: got {part}; expected (i, n) with 0 <= i < n")
    if not resume and part[1] > 1:
        raise SchemaError("resume=False: each part would undo the others. Remove the store first.")
    if Files(store).root == Files(out).root:
        raise SchemaError(f"{out}: is the store that is to be embedded. Pass another --out.")


def _request(source: Source, dtype: str) -> dict[str, Any]:
    """What must be the same for a run to go on with what another left."""
    network = source.network
    return {
        "format_version": FORMAT_VERSION,
        "level": source.level,
        "checkpoint": network.fingerprint,
        "key": network.key,
        "pool": network.pool,
        "dtype": dtype,
        "channels": list(source.labels),
        "stride": source.lattice.stride if isinstance(source, PatchInput) else source.info.get("stride"),
        "patch": source.info["patch"],
        "crop": list(source.info["crop"]),
        "coarsen": network.coarsen,
        "magnification": network.magnification,
        "normalization": source.normalization,
        "source_checkpoint": source.info.get("checkpoint"),
    }


def _finish(
    source: Source,
    output: Output,
    request: Mapping[str, Any],
    records: Mapping[int, Mapping[str, Any]],
) -> None:
    """Commit the store, unless it is there as it would be."""
    network = source.network
    spacing = spacing_km(source, network)
    ours = describe(source, network, output, request) | {
        "pixel_spacing_km": spacing, "identity": output.identity(request, records)
    }  # fmt: skip
    old = _attributes(output.files) if output.files.exists("zarr.json") else {}
    if old.get("gridrad_cube") == json.loads(json.dumps(ours)):
        return

    def small(rows: range) -> dict[str, np.ndarray]:
        kept = output.gather(records, rows)
        if not overlaps(source):
            return source.small(rows) | kept
        assert isinstance(source, PatchInput)
        plain = [name for name in source.coordinates if COORDINATES[name][0] == ("crop",)]
        return source.lattice.coordinates(rows, plain) | kept

    before = old.get("history") or _attributes(Files(source.store)).get("history")
    stamp = np.datetime_as_string(np.datetime64("now", "s"), timezone="UTC")
    event = (
        f"{stamp} gridrad-cube embed: {source.crops} crops to level {source.level} by {network.fingerprint}"
    )
    attributes = {
        "Conventions": "CF-1.11",
        "title": f"Embeddings of level {source.level} of gridded radar and satellite fields",
        "history": f"{before}\n{event}" if before else event,
        "gridrad_cube": ours,
        **geoemb(source, network, dtype=output.dtype, spacing_km=spacing),
    }
    output.commit(label_arrays(source), row_groups(source.crops, small), attributes)


def _attributes(files: Files) -> dict[str, Any]:
    return dict(files.read_json("zarr.json").get("attributes", {}))
