"""What is to be embedded, by which networks, how; and the blocks of it that one process makes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from gridrad_cube.embedding.grids import GridInput, GridsOfPatches
from gridrad_cube.embedding.network import Network, Pool
from gridrad_cube.embedding.output import Output, pack_values
from gridrad_cube.embedding.patches import Normalize, PatchInput
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import COORDINATES, store_info

#: How embeddings are stored.
Dtype = Literal["float16", "float32", "int8"]
#: What a network reads.
Source = PatchInput | GridInput


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be embedded and how, as `embed` was asked: paths and plain values, so that any process can do it."""

    store: str
    checkpoint: str
    checkpoint_2k: str | None
    out: str
    device: str
    batch_size: int
    channels: str | Sequence[str] | None
    dtype: Dtype
    key: str
    pool: Pool
    stride: int | None
    normalize: Normalize

    def open(self) -> tuple[Source, Output]:
        """The inputs, with the network that gives the embeddings, and the store for these."""
        source = self.source()
        dims = ("channel", "row", "col", "feature") if source.level == "256" else ("channel", "feature")
        output = Output(
            self.out, level=source.level, crops=source.crops, dims=dims, shape=source.shape, dtype=self.dtype
        )
        return source, output

    def source(self) -> Source:
        """The inputs, with the network that reads them."""
        level = _level_above(self.store)
        network = Network(self.checkpoint, key=self.key, pool=self.pool, device=self.device)
        _check_level(self.store, level, network)
        if level == "2k":
            if self.stride is not None:
                raise SchemaError(
                    f"stride: got {self.stride}; grids are whole crops. Pass it when embedding the patches."
                )
            if self.checkpoint_2k is not None:
                raise SchemaError(
                    f"{self.store}: holds embeddings, so that one checkpoint of level 2k is enough: pass it alone, "
                    "or both with the cube."
                )
            return GridInput(self.store, network, channels=self.channels, normalize=self.normalize)
        channels = self.channels if self.checkpoint_2k is None else None
        patches = PatchInput(
            self.store, network, channels=channels, stride=self.stride, normalize=self.normalize
        )
        if self.checkpoint_2k is None:
            return patches
        above = Network(self.checkpoint_2k, key=self.key, device=self.device)
        if above.level != "2k":
            raise SchemaError(
                f"{above.path}: a network of level {above.level}, but checkpoint_2k= takes one of 2k"
            )
        return GridsOfPatches(
            patches, above, channels=self.channels, normalize=self.normalize, batch_size=self.batch_size
        )


def make_share(work: Work, share: tuple[int, int], threads: int | None) -> None:
    """One share of the blocks, in a worker; whoever asked for it finishes the store."""
    if threads is not None:
        torch.set_num_threads(threads)
    source, output = work.open()
    Blocks(source, output, work.batch_size).make(share, progress=False)


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


class Blocks:
    """The blocks of an embedding store, made one after the other."""

    def __init__(self, source: Source, output: Output, batch_size: int) -> None:
        self.source, self.output, self.batch_size = source, output, batch_size

    def make(self, part: tuple[int, int], *, progress: bool) -> int:
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
        if overlaps(self.source):
            values = self.source.small(rows)
            record["values"] = pack_values({name: values[name] for name in window_names(self.source)})
        self.output.write(number, vectors, record)

    def _crops(self, rows: range) -> str:
        """Hash of which crops these are."""
        block = self.source.dataset.isel(crop=slice(rows.start, rows.stop))
        names = ("scene", "source", "grid", "y_origin", "x_origin")
        seconds = block["time"].values.astype("datetime64[s]").astype(np.int64).tolist()
        text = json.dumps([seconds, *(block[name].values.tolist() for name in names)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def overlaps(source: Source) -> bool:
    """Whether flags and places were worked out from pixels, which is not done twice."""
    return isinstance(source, PatchInput) and source.lattice.stride != source.patch


def window_names(source: Source) -> list[str]:
    """What was worked out window by window."""
    return [n for n in source.coordinates if COORDINATES[n][0] != ("crop",)] + ["flags", "valid_fraction"]
