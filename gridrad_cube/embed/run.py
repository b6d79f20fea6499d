"""Embedding a store: every patch a row, every row its flag, an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from gridrad_cube.embed.attributes import describe, geoemb, label_arrays, spacing_km
from gridrad_cube.embed.grids import GridInput
from gridrad_cube.embed.network import Network, Pool
from gridrad_cube.embed.output import Output, pack_values, row_groups
from gridrad_cube.embed.patches import Normalize, PatchInput
from gridrad_cube.schema import FORMAT_VERSION, SchemaError
from gridrad_cube.store import COORDINATES, Files, store_info


def embed(
    store: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    batch_size: int = 64,
    channels: str | Sequence[str] | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    key: str = "teacher",
    pool: Pool = "class",
    stride: int | None = None,
    normalize: Normalize = "auto",
    part: tuple[int, int] = (0, 1),
    progress: bool = False,
    resume: bool = True,
) -> dict[str, Any]:
    """Embed every patch of a cube, or every grid of an embedding store of level 256.

    The kind of the store says the level, and the checkpoint must be of it. Inputs are decoded, normalised,
    coarsened, magnified and masked as the checkpoint says training did. Nothing is rejected: patches with
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
    dtype
        Of the stored embeddings.
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
        the store.
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
    _check_options(store, out, dtype=dtype, batch_size=batch_size, part=part, resume=resume)
    level = _level_above(store)
    network = Network(checkpoint, key=key, pool=pool, device=device)
    _check_level(store, level, network)
    source: PatchInput | GridInput
    if level == "256":
        source = PatchInput(store, network, channels=channels, stride=stride, normalize=normalize)
    else:
        if stride is not None:
            raise SchemaError(
                f"stride: got {stride}; grids are whole crops. Pass it when embedding the patches."
            )
        source = GridInput(store, network, channels=channels, normalize=normalize)
    dims = ("channel", "row", "col", "feature") if level == "256" else ("channel", "feature")
    output = Output(out, level=level, crops=source.crops, dims=dims, shape=source.shape, dtype=dtype)
    request = _request(source, network, dtype)
    output.begin(request, resume=resume)
    kept = _Job(source, output, batch_size).run(part, progress=progress)
    records = {n: output.record(n) for n in range(len(output.blocks))}
    done = {n: r for n, r in records.items() if r is not None and r["rows"] == len(output.blocks[n])}
    finished = len(done) == len(records)
    if finished:
        _finish(source, network, output, request, done)
    return {
        "out": output.files.root, "level": level, "checkpoint": network.fingerprint, "crops": source.crops,
        "channels": list(source.labels), "features": network.features,
        "patches": int(np.prod((source.crops, *source.shape[:-1]))),
        "embedded": sum(r["embedded"] for r in done.values()), "blocks": len(records), "blocks_kept": kept,
        "finished": finished, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def _check_options(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str,
    batch_size: int,
    part: tuple[int, int],
    resume: bool,
) -> None:
    if dtype not in ("float16", "float32"):
        raise SchemaError(f"dtype: got {dtype!r}; expected 'float16' or 'float32'")
    if batch_size < 1:
        raise SchemaError(f"batch_size: got {batch_size}; expected at least 1")
    if not 0 <= part[0] < part[1]:
        raise SchemaError(f"part: got {part}; expected (i, n) with 0 <= i < n")
    if not resume and part[1] > 1:
        raise SchemaError("resume=False: each part would undo the others. Remove the store first.")
    if Files(store).root == Files(out).root:
        raise SchemaError(f"{out}: is the store that is to be embedded. Pass another --out.")


def _level_above(store: str | os.PathLike[str]) -> str:
    """The level that embedding this store makes."""
    info = store_info(store)
    if info.get("kind") == "patches":
        return "256"
    if info.get("level") == "256":
        return "2k"
    raise SchemaError(
        f"{store}: holds embeddings of level {info.get('level')!r}, above which there is none; expected a cube of "
        "patches, or embeddings of level '256'"
    )


def _check_level(store: str | os.PathLike[str], level: str, network: Network) -> None:
    if network.level == level:
        return
    if level == "256":
        raise SchemaError(
            f"{network.path}: a network of level 2k, which reads embeddings, but {store} is a cube of patches. "
            "Embed the cube with a checkpoint of level 256 first, then pass that embedding store."
        )
    raise SchemaError(
        f"{network.path}: a network of level 256, which reads patches, but {store} holds embeddings. Pass the cube "
        f"that they were made from ({store_info(store).get('source')}), or a checkpoint of level 2k."
    )


class _Job:
    """The blocks of one call."""

    def __init__(self, source: PatchInput | GridInput, output: Output, batch_size: int) -> None:
        self.source, self.output, self.batch_size = source, output, batch_size

    def run(self, part: tuple[int, int], *, progress: bool) -> int:
        """Make the missing blocks of a part; return how many were there."""
        each = int(np.prod(self.source.shape[:-1]))
        mine = list(enumerate(self.output.blocks))[part[0] :: part[1]]
        kept = 0
        unit = "patch" if self.source.level == "256" else "grid"
        total = each * sum(len(rows) for _, rows in mine)
        with tqdm(total=total, desc="embed", unit=unit, disable=not progress) as bar:
            for number, rows in mine:
                if self._kept(number, rows):
                    kept += 1
                    bar.update(each * len(rows))
                else:
                    self._make(number, rows, bar.update)
        return kept

    def _kept(self, number: int, rows: range) -> bool:
        """Whether a block is there, whole, and of these very crops.

        Raises
        ------
        SchemaError
            If it is of other crops.
        """
        record = self.output.record(number)
        if record is None:
            return False
        old = range(rows.start, rows.start + record["rows"])
        if record["rows"] > len(rows) or record["crops"] != self._crops(old):
            raise SchemaError(
                f"{self.output.files.root}: holds embeddings of another store: rows {old.start} to {old.stop - 1} "
                f"are not those of {self.source.store}. Pass another --out, or resume=False to make it anew."
            )
        return record["rows"] == len(rows) and record["content"] == self.source.content(rows)

    def _make(self, number: int, rows: range, tick: Callable[[int], Any]) -> None:
        vectors = self.source.vectors(rows, self.batch_size, tick)
        record: dict[str, Any] = {
            "first": rows.start, "rows": len(rows), "crops": self._crops(rows), "content": self.source.content(rows)
        }  # fmt: skip
        if _overlaps(self.source):
            values = self.source.small(rows)
            record["values"] = pack_values({name: values[name] for name in _window_names(self.source)})
        self.output.write(number, vectors, record)

    def _crops(self, rows: range) -> str:
        """Hash of which crops these are."""
        block = self.source.dataset.isel(crop=slice(rows.start, rows.stop))
        names = ("scene", "source", "grid", "y_origin", "x_origin")
        seconds = block["time"].values.astype("datetime64[s]").astype(np.int64).tolist()
        text = json.dumps([seconds, *(block[name].values.tolist() for name in names)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _overlaps(source: PatchInput | GridInput) -> bool:
    """Whether flags and places were worked out from pixels, which is not done twice."""
    return isinstance(source, PatchInput) and source.lattice.stride != source.patch


def _window_names(source: PatchInput | GridInput) -> list[str]:
    """What was worked out window by window."""
    return [n for n in source.coordinates if COORDINATES[n][0] != ("crop",)] + ["flags", "valid_fraction"]


def _request(source: PatchInput | GridInput, network: Network, dtype: str) -> dict[str, Any]:
    """What must be the same for a run to go on with what another left."""
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
    source: PatchInput | GridInput,
    network: Network,
    output: Output,
    request: Mapping[str, Any],
    records: Mapping[int, Mapping[str, Any]],
) -> None:
    """Commit the store, unless it is there as it would be."""
    spacing = spacing_km(source, network)
    ours = describe(source, network, output, request) | {
        "pixel_spacing_km": spacing, "identity": output.identity(request, records)
    }  # fmt: skip
    old = _attributes(output.files) if output.files.exists("zarr.json") else {}
    if old.get("gridrad_cube") == json.loads(json.dumps(ours)):
        return

    def recorded(rows: range) -> dict[str, np.ndarray]:
        assert isinstance(source, PatchInput)
        plain = [name for name in source.coordinates if COORDINATES[name][0] == ("crop",)]
        return source.lattice.coordinates(rows, plain) | output.gather(records, rows)

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
    small = row_groups(source.crops, recorded if _overlaps(source) else source.small)
    output.commit(label_arrays(source), small, attributes)


def _attributes(files: Files) -> dict[str, Any]:
    return dict(files.read_json("zarr.json").get("attributes", {}))
