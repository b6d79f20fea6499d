"""Embed a store. Every patch keeps its row, every row its flags, and an interrupted run resumes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import torch
import xarray as xr

from gridrad_cube.embedding.inputs import Normalize, PatchInput, open_input, read_coordinates
from gridrad_cube.embedding.network import Network
from gridrad_cube.embedding.untrained import Descriptor, GridPool, Model
from gridrad_cube.geometry import pixel_spacing_km
from gridrad_cube.launch import World, choose_device, cores, find_world
from gridrad_cube.models import Pool
from gridrad_cube.pipeline import executor
from gridrad_cube.progress import explain_interruption, progress_bar
from gridrad_cube.schema import FORMAT_VERSION, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store import COORDINATES, EmbeddingWriter

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

#: How embeddings are stored.
Dtype = Literal["float16", "float32"]
#: Shares of the work for each process here, so that a fast process does not wait for a slow one; and on a cluster.
_SHARES, _REMOTE_SHARES = 2, 64
#: Share by which the pixel spacing of a store may differ from that of training without a warning.
_SPACING_TOLERANCE = 0.1

#: Registration of the ``geoemb:`` convention, https://github.com/geo-embeddings/embeddings-zarr-convention
_CONVENTION = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}
_OF_LEVEL_256 = ("checkpoint", "pool", "source", "source_identity")
_SOFTWARE = ("gridrad-cube", "numpy", "torch", "xarray", "zarr")

T = TypeVar("T")


def embed(
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    model: Model | None = None,
    channels: str | Sequence[str] | None = None,
    stride: int | None = None,
    coarsen: int | None = None,
    key: str = "teacher",
    pool: Pool | Literal["auto"] = "auto",
    normalize: Normalize = "auto",
    dtype: Dtype = "float16",
    batch_size: int = 64,
    device: str = "auto",
    workers: int = 1,
    scheduler: str | None = None,
    client: Client | None = None,
    part: tuple[int, int] | None = None,
    resume: bool = True,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Embed every patch of a cube, or every grid of an embedding store of level 256.

    The embeddings come from the network of a checkpoint, or from a ``model`` without training. The kind of
    the store decides the level, and the checkpoint must be of that level. Inputs are decoded, normalized,
    coarsened, magnified and masked as in training, which the checkpoint describes. Crops are turned to north
    up and east right as in training; a checkpoint of a version that did not turn them reads them in the order
    of the source. Patches with rejecting flags are embedded too, and every patch keeps its row and its flags.
    Only patches without pixels (flags ``padding``, ``all_missing``, ``channel_absent``, ``unreadable``) have
    NaN.

    The store is written in blocks of crops. The same call resumes an interrupted one. After the cube has
    grown or was repaired, it embeds the new crops and keeps the others.

    Parameters
    ----------
    store
        A finished cube of patches, or embedding store of level 256: path or URL.
    checkpoint
        Path of a checkpoint of this program or of the predecessor. Pass either this or ``model``.
    out
        Path or URL of the embedding store.
    model
        ``"descriptor"`` describes patches without training, by mean and standard deviation of local maps: 68 numbers
        for each channel (`gridrad_cube.models.describe_maps`), of fields scaled to the channel's typical range.
        ``"pool"`` gives for each crop of an embedding store of level 256 the mean and standard deviation of the
        vectors of its clean patches.
    channels
        Labels, or names of variables, of those that the network knows; None takes all of them. The descriptor takes
        any; the altitudes of a radar volume are one vector where training would stack them.
    stride
        Level 256: step in pixels between windows, a divisor of the patch, for overlapping windows; their
        flags and positions are those of a cube cut there. None embeds the cube's patches.
    coarsen
        Of the descriptor: edge in pixels of the blocks that are averaged first. None takes the largest that leaves
        patches of at least 128 px, 2 for patches of 256 px. A checkpoint has its own.
    key
        Network of the checkpoint: ``"teacher"`` or ``"student"``.
    pool
        Pooling of a network's tokens: ``"class"`` stores the class token, ``"mean"`` the mean of the tokens
        with at least half of
        their pixels observed (level 2k: of the cells that count), ``"mean+std"`` their mean and then their standard
        deviation, ``"class+mean"`` the class token and then the mean, ``"projection"`` the unit vector that the head
        of the contrast makes of mean and deviation. ``"auto"`` takes what the checkpoint says, and the class token if
        it says nothing.
    normalize
        ``"auto"`` takes the checkpoint's normalization, and the store's if it has none (the predecessor's);
        ``"store"`` the store's; ``"none"`` physical values as they are, as the predecessor embedded.
    dtype
        Data type of the stored embeddings: ``"float16"`` or ``"float32"``.
    batch_size
        Patches, or grids, that go through the network at once. It changes speed and memory only.
    device
        ``"auto"`` takes a GPU if there is one, and a different one for each rank or worker of a machine.
        Matrix products are bf16 on a GPU and float32 elsewhere.
    workers, scheduler, client
        Share the work among this number of processes here, or the workers of a Dask cluster (its address or scheduler
        file, or a client), which must all see ``store`` and ``out``. A share that is lost with its worker
        starts again elsewhere and keeps the blocks that it had finished.
    part
        ``(i, n)`` embeds only blocks i, i + n, ..., for n parallel processes. The process that ends last
        finishes the store. None takes all blocks, or the share of this rank under a launcher (``torchrun``,
        ``srun``, ``mpiexec``).
    resume
        Keep the blocks that ``out`` holds. Otherwise they are overwritten.
    progress
        Show a progress bar on stderr; None shows it in a terminal and in a notebook. Of several ranks, only the
        first one shows it.

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
    distributed = scheduler is not None or client is not None or workers > 1
    if distributed and part is not None:
        raise SchemaError(f"part: got {part} together with workers; expected one or the other")
    world = World() if distributed else find_world()
    share = part or (world.rank, world.size)
    if dtype not in get_args(Dtype):
        raise SchemaError(f"dtype: got {dtype!r}; expected one of {', '.join(get_args(Dtype))}")
    if batch_size < 1:
        raise SchemaError(f"batch_size: got {batch_size}; expected at least 1")
    if not 0 <= share[0] < share[1]:
        raise SchemaError(f"part: got {share}; expected (i, n) with 0 <= i < n")
    if not resume and share[1] > 1:
        raise SchemaError("resume=False: each part would overwrite the others. Remove the store first.")
    if (checkpoint is None) == (model is None):
        raise SchemaError(
            f"embed: got {'both' if model else 'neither'} a checkpoint {'and' if model else 'nor'} a model; expected "
            "one of them. Pass `checkpoint` to embed by a network, or `model='descriptor'`, or "
            "`model='pool'` for crops, to embed without training."
        )
    if out is None:
        raise SchemaError("out: got None; expected the path or URL of the store to write")
    if Files(store).root == Files(out).root:
        raise SchemaError(f"{out}: is the store that is to be embedded. Pass another `out`.")
    job = functools.partial(
        _Job, Files(store).root, None if checkpoint is None else os.path.abspath(checkpoint), Files(out).root,
        model=model, channels=channels, stride=stride, coarsen=coarsen, key=key, pool=pool, normalize=normalize,
        dtype=dtype, batch_size=batch_size, device=device,
    )  # fmt: skip
    if not world.is_main:
        progress = False
    here: _Job | None = None
    with explain_interruption(lambda: _kept(Files(out).root, here)), contextlib.ExitStack() as stack:
        here = job(world=world)
        held = stack.enter_context(here.writer.lease(shared=share[1] > 1))
        here.writer.begin(resume=resume)
        if distributed:
            blocks = range(len(here.writer.blocks))
            kept = sum(here.writer.record(number) is not None for number in blocks)
            _embed_elsewhere(job, len(blocks), workers, scheduler, client, progress=progress)
            here.embed_blocks(share, progress=False, trust=True)
        else:
            kept = here.embed_blocks(share, progress=progress)
        records = here.records(share)
        finished = len(records) == len(here.writer.blocks)
        if finished:
            held.check()
            here.finish(records)
        inputs = here.inputs
        return {
            "out": here.writer.files.root, "level": inputs.level, "checkpoint": here.embedder.fingerprint,
            "crops": inputs.crops, "channels": list(inputs.labels), "features": here.embedder.features,
            "patches": int(np.prod((inputs.crops, *inputs.shape))),
            "embedded": sum(r["embedded"] for r in records.values()), "blocks": len(here.writer.blocks),
            "blocks_kept": kept, "finished": finished, "seconds": round(time.monotonic() - started, 3),
        }  # fmt: skip


def _kept(out: str, job: _Job | None) -> str:
    """Return the text on what an interrupted run keeps, and how to resume it."""
    if job is None:
        return f"{out}: what it held before is kept. Run again to resume."
    blocks = range(len(job.writer.blocks))
    done = sum(job.writer.record(number) is not None for number in blocks)
    return f"{out}: {done} of {len(blocks)} blocks of crops are embedded and kept. Run again to resume."


def _open_embedder(
    store: str,
    checkpoint: str | None,
    *,
    model: Model | None = None,
    channels: str | Sequence[str] | None,
    coarsen: int | None = None,
    key: str,
    pool: Pool | Literal["auto"],
    normalize: Normalize,
    device: torch.device,
) -> Network | Descriptor | GridPool:
    """Return what makes vectors of the inputs; refuses options that do not belong to it."""
    if model not in (None, *get_args(Model)):
        raise SchemaError(f"model: got {model!r}; expected one of {', '.join(get_args(Model))}")
    if coarsen is not None and model != "descriptor":
        by = "the mean of vectors" if model else f"the network of {checkpoint}"
        raise SchemaError(
            f"coarsen: got {coarsen} for {by}; expected none. It is for model='descriptor'; a network reads fields as "
            "coarse as in training."
        )
    if checkpoint is not None:
        return Network(checkpoint, key=key, pool=pool, device=device)
    if (pool, normalize, key) != ("auto", "auto", "teacher"):
        raise SchemaError(
            f"embed: got pool {pool!r}, normalize {normalize!r} and key {key!r} with model {model!r}; expected none of "
            "them. They are for checkpoints."
        )
    if model == "descriptor":
        return Descriptor(store, channels=channels, coarsen=coarsen, device=device)
    return GridPool(store)


class _Job:
    """What is embedded, by what, into which store, in this process; see `embed` for the options."""

    def __init__(
        self,
        store: str,
        checkpoint: str | None,
        out: str,
        *,
        channels: str | Sequence[str] | None,
        stride: int | None,
        key: str,
        normalize: Normalize,
        dtype: Dtype,
        batch_size: int,
        device: str,
        world: World,
        **of_embedder: Any,
    ) -> None:
        embedder = _open_embedder(
            store, checkpoint, channels=channels, key=key, normalize=normalize,
            device=choose_device(device, world), **of_embedder,
        )  # fmt: skip
        trained = embedder.trained
        inputs = open_input(store, trained, channels=channels, stride=stride, normalize=normalize)
        self.inputs, self.embedder, self.batch_size = inputs, embedder, batch_size
        request = {
            "format_version": FORMAT_VERSION, "level": inputs.level, "checkpoint": embedder.fingerprint,
            "key": key if checkpoint else None, "pool": embedder.pool, "dtype": dtype, "channels": list(inputs.labels),
            "stride": inputs.stride if isinstance(inputs, PatchInput) else inputs.info.get("stride"),
            "patch": inputs.info["patch"], "crop": list(inputs.info["crop"]), "coarsen": trained["coarsen"],
            "magnification": trained["magnification"], "normalization": inputs.normalization,
            "source_checkpoint": inputs.info.get("checkpoint"),
        }  # fmt: skip
        self.writer = EmbeddingWriter(
            out, request, crops=inputs.crops, shape=(*inputs.shape, embedder.features)
        )

    def embed_blocks(self, part: tuple[int, int], *, progress: bool | None, trust: bool = False) -> int:
        """Embed the missing blocks of a part; return how many were there. ``trust`` does not read those."""
        each = int(np.prod(self.inputs.shape))
        mine = list(enumerate(self.writer.blocks))[part[0] :: part[1]]
        total = each * sum(len(rows) for _, rows in mine)
        unit = "patch" if self.inputs.level == "256" else "grid"
        kept = 0
        with progress_bar("embed", total=total, unit=unit, progress=progress) as bar:
            for number, rows in mine:
                if self._is_kept(number, rows, trust):
                    kept += 1
                    bar.update(each * len(rows))
                else:
                    self._embed_block(number, rows, bar.update)
        return kept

    def _is_kept(self, number: int, rows: range, trust: bool) -> bool:
        """Return whether a block is there, whole, and of these very crops as they are.

        A block that readers see and that is about to get other values takes the store out of their reach.

        Raises
        ------
        SchemaError
            If it is of other crops.
        """
        record = self.writer.record(number)
        if record is None:
            if number in self._committed:
                self.writer.uncommit()
            return False
        old = range(rows.start, rows.start + record["rows"])
        if record["rows"] > len(rows) or record["crops"] != _hash_crops(self.inputs.dataset, old):
            raise SchemaError(
                f"{self.writer.files.root}: holds embeddings of another store: rows {old.start} to {old.stop - 1} "
                f"are not those of {self.inputs.store}. Pass another `out`, or resume=False to overwrite it."
            )
        if record["content"] != self.inputs.content(old):
            self.writer.uncommit()
            return False
        return record["rows"] == len(rows) and (trust or self.writer.is_whole(record))

    @functools.cached_property
    def _committed(self) -> dict[int, dict[str, Any]]:
        """The blocks that readers see."""
        return self.writer.committed()[1]

    def _embed_block(self, number: int, rows: range, update: Callable[[int], Any]) -> None:
        inputs = self.inputs
        # Before anything is read: what changes meanwhile is embedded again by the next run.
        record = {"crops": _hash_crops(inputs.dataset, rows), "content": inputs.content(rows)}
        vectors = np.full((len(rows), *inputs.shape, self.embedder.features), np.nan, np.float32)
        done = 0
        for place, batch in _ahead(inputs.batches(rows, self.batch_size)):
            vectors[place] = self.embedder.embed(*batch)
            done += len(place[0])
            update(len(place[0]))
        update(int(np.prod(vectors.shape[:-1])) - done)
        values = None
        if inputs.overlapping:
            values = {n: v for n, v in inputs.small(rows).items() if COORDINATES.get(n, [()])[0] != ("crop",)}
        self.writer.write(number, vectors, record, values)

    def records(self, part: tuple[int, int]) -> dict[int, dict[str, Any]]:
        """Return the records of the blocks that are up to date; those of other parts are looked at too."""
        out = {}
        for number, rows in enumerate(self.writer.blocks):
            record = self.writer.record(number)
            if record is None or record["rows"] != len(rows):
                continue
            mine = number % part[1] == part[0]
            # Another process may not have come yet to a block of the time before the cube changed.
            if mine or record["content"] == self.inputs.content(rows):
                out[number] = record
        return out

    def finish(self, records: Mapping[int, Mapping[str, Any]]) -> None:
        """Commit the store, unless it is there as it would be."""
        inputs, embedder, request = self.inputs, self.embedder, self.writer.request
        spacing, small = self._spacing(), inputs.small
        if inputs.overlapping:  # what differs between windows is in the records
            small = functools.partial(read_coordinates, inputs.dataset, of_crops_alone=True)
        level, made_by, checkpoint_file = inputs.level, str(embedder.model["name"]), None
        if isinstance(embedder, Network):
            made_by, checkpoint_file = "checkpoint", os.path.basename(embedder.path)
        info = {
            "channels": inputs.labels, "channel_mode": "stack" if embedder.trained["stacked"] else "each",
            "features": embedder.features, "checkpoint_file": checkpoint_file, "model": embedder.model,
            "view": embedder.trained["view"], "orientation": embedder.trained["orientation"] or "as stored",
            **_describe_source(inputs.info, inputs.store, self.writer.files.root), "pixel_spacing_km": spacing,
        }  # fmt: skip
        self.writer.finish(
            records, small, info,
            event=f"gridrad-cube embed: {inputs.crops} crops to level {level} by {made_by} {embedder.fingerprint}",
            attributes=_geoemb(
                request, inputs.info, made_by=made_by, features=embedder.features, spacing_km=spacing
            ),
            history=inputs.dataset.attrs.get("history"), extends=self._extends(records, info),
        )  # fmt: skip

    def _extends(self, records: Mapping[int, Mapping[str, Any]], info: Mapping[str, Any]) -> bool:
        """Return whether the crops of the last commit have the embeddings and flags that they had."""
        old, blocks = self.writer.committed()
        if old.get("thresholds") != info["thresholds"]:
            return False
        for number, block in blocks.items():
            if number not in records:
                return False
            content, rows = records[number]["content"], self.writer.blocks[number]
            if block["rows"] != len(rows):
                content = self.inputs.content(range(rows.start, rows.start + block["rows"]))
            if block["content"] != content:
                return False
        return bool(blocks)

    def _spacing(self) -> float | None:
        """Return the distance of neighboring pixels, km; warns if training had another."""
        if not isinstance(self.inputs, PatchInput):
            return self.inputs.info.get("pixel_spacing_km")
        latitude, longitude = (self.inputs.dataset[n][:16].values for n in ("latitude", "longitude"))
        found = pixel_spacing_km(latitude, longitude, self.inputs.patch)
        trained = self.embedder.trained["view"].get("pixel_spacing_km")
        if found and trained and abs(found / trained - 1) > _SPACING_TOLERANCE:
            logger.warning(
                "%s has pixels of %.3g km, but %s was trained on pixels of %.3g km, which is another scale",
                self.inputs.store, found, self.embedder.trained["path"], trained,
            )  # fmt: skip
        return found


def _describe_source(info: Mapping[str, Any], source: str, out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the attributes about the store that was embedded, named relative to the embeddings where both
    lie on this disk.
    """
    there, here = Files(source), Files(out)
    name = os.path.basename(there.root) if there.local else there.root
    if there.local and here.local:
        name = os.path.relpath(there.root, os.path.dirname(here.root))
    below = {key: info.get(key) for key in _OF_LEVEL_256} if info.get("kind") == "embeddings" else None
    return {
        "source": name,
        "source_identity": info.get("identity"),
        "thresholds": info.get("thresholds"),
        "embedded_from": below,
        "software": {package: importlib.metadata.version(package) for package in _SOFTWARE},
    }


def _geoemb(
    request: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    made_by: str,
    features: int,
    spacing_km: float | None,
) -> dict[str, Any]:
    """Return the attributes of the ``geoemb:`` convention, version 1, for a request of `EmbeddingWriter` and
    its source's info.
    """
    layout: dict[str, Any] = {"layout_type": "irregular", "chip_size": request["crop"]}
    if request["level"] == "256":
        patch, step = request["patch"], request["stride"]
        layout = {"layout_type": "regular_grid", "chip_size": [patch, patch], "stride": [step, step]}
    return {
        "zarr_conventions": [_CONVENTION],
        "geoemb:type": "chip",
        "geoemb:dimensions": features,
        "geoemb:model": f"urn:gridrad-cube:{made_by}:{request['checkpoint']}",
        "geoemb:source_data": [f"urn:gridrad-cube:store:{info.get('identity')}"],
        "geoemb:data_type": request["dtype"],
        "geoemb:chip_layout": layout,
        "geoemb:build_version": importlib.metadata.version("gridrad-cube"),
        **({"geoemb:gsd": round(1000 * spacing_km, 3)} if spacing_km else {}),
    }


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator, whose next one is made in another thread while this one is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def _hash_crops(dataset: xr.Dataset, rows: range) -> str:
    """Hash of which crops these are."""
    block = dataset.isel(crop=slice(rows.start, rows.stop))
    names = ("scene", "source", "grid", "y_origin", "x_origin")
    seconds = block["time"].values.astype("datetime64[s]").astype(np.int64).tolist()
    text = json.dumps([seconds, *(block[name].values.tolist() for name in names)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _embed_elsewhere(
    job: Callable[..., _Job],
    blocks: int,
    workers: int,
    scheduler: str | None,
    client: Client | None,
    *,
    progress: bool | None,
) -> None:
    """Embed all blocks by other processes, some shares for each."""
    here = client is None and scheduler is None
    threads = max(1, cores() // workers) if here else None
    shares = min(blocks, _SHARES * workers if here else _REMOTE_SHARES)
    tasks = [(job, (i, shares), threads) for i in range(shares)]
    with executor(client, workers, scheduler) as run:
        shown = progress_bar("embed", run(_embed_share, tasks), total=shares, unit="share", progress=progress)
        with shown as bar:
            results = [result for _, result in bar]
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _embed_share(job: Callable[..., _Job], share: tuple[int, int], threads: int | None) -> None:
    """Embed one share of the blocks in a worker. The process that asked for it finishes the store."""
    if threads is not None:
        torch.set_num_threads(threads)
    job(world=World(local_rank=_local_rank())).embed_blocks(share, progress=False)


def _local_rank() -> int:
    """Return the number of this process among the Dask workers of its machine, so that they share its GPUs;
    else 0.
    """
    from distributed import get_client, get_worker

    try:
        mine = get_worker().address
    except ValueError:
        return 0
    workers = get_client().scheduler_info(n_workers=-1)["workers"]
    host = workers[mine]["host"]
    return sum(about["host"] == host and address < mine for address, about in workers.items())
