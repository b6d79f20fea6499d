"""Grids of patch embeddings as inputs of a level-2k network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gridrad_cube.datasets import GridDataset
from gridrad_cube.embedding.network import Network
from gridrad_cube.embedding.patches import PatchInput
from gridrad_cube.schema import Flag, SchemaError, reject_mask
from gridrad_cube.selection import kind_of
from gridrad_cube.store import COORDINATES, open_embeddings, store_info

#: Bytes of grids that are read together.
READ_BYTES = 64 * 2**20


class GridInput:
    """The grids of an embedding store, as a level-2k network reads them; see `PatchInput` for the members.

    Cells that training would not have used (by the flags it rejected) are masked, as in training. A grid that
    has no other cells is embedded from those, so that whatever has an embedding at level 256 has one here.
    """

    level = "2k"

    def __init__(
        self,
        store: str | os.PathLike[str],
        network: Network,
        *,
        channels: str | Sequence[str] | None = None,
        normalize: str = "auto",
    ) -> None:
        dataset = open_embeddings(store)
        if "row" not in dataset["embedding"].dims:
            level = store_info(store, "embeddings").get("level")
            raise SchemaError(
                f"{os.fspath(store)}: holds embeddings of level {level!r}, one a crop; {network.path} reads grids of "
                "level '256'. Pass the store that gridrad-cube embed made from the patches."
            )
        self.dataset = dataset
        self._prepare(
            os.fspath(store), network, store_info(store, "embeddings"), channels, normalize,
            features=int(dataset.sizes["feature"]), cells=(int(dataset.sizes["row"]), int(dataset.sizes["col"])),
        )  # fmt: skip
        self.coordinates = [name for name in COORDINATES if name in self.dataset.variables]

    def _prepare(
        self,
        store: str,
        network: Network,
        info: Mapping[str, Any],
        channels: str | Sequence[str] | None,
        normalize: str,
        *,
        features: int,
        cells: tuple[int, int],
    ) -> None:
        """Check that a network reads grids of this kind, and choose what it reads.

        ``info`` is what the store of the grids says of itself, or would say.
        """
        self.store, self.network, self.info, self.cells = store, network, dict(info), cells
        _check_source(self, features)
        names = list(self.info["channels"])
        chosen = _choose(names, network, channels, self.store)
        self._columns = [names.index(name) for name in chosen]
        self.labels = {name: list(self.info["channels"][name]) for name in chosen}
        config = network.checkpoint.get("config")
        reject = config.get("reject") if isinstance(config, Mapping) else None
        bits = [
            reject_mask(reject, kind_of(" ".join(m))) | int(Flag.channel_absent) for m in self.labels.values()
        ]
        self._reject = np.array(bits, np.uint16)[None, :, None, None]
        self.normalization = _normalization(self, normalize)
        self.shape = (len(chosen), network.features)
        self._bytes_each = 4 * len(names) * cells[0] * cells[1] * features

    @property
    def crops(self) -> int:
        """Number of crops in the store."""
        return int(self.dataset.sizes["crop"])

    def _block(self, name: str, rows: range) -> np.ndarray:
        """Embeddings, flags or fractions of some crops, of the channels that are read."""
        return np.asarray(self.dataset[name][rows.start : rows.stop, self._columns].values)

    def content(self, rows: range) -> str:
        """Hash of what decides the embeddings of these crops: the grids, and which cells count."""
        digest = hashlib.sha256()
        for some in self._parts(rows):
            digest.update(self._block("embedding", some).tobytes())
            digest.update((self._block("flags", some) & self._reject).tobytes())
        return digest.hexdigest()[:32]

    def small(self, rows: range) -> dict[str, np.ndarray]:
        """Coordinates, flags and fractions of these crops, by name, as they are stored."""
        out = {}
        for name in self.coordinates:
            values = self.dataset[name][rows.start : rows.stop].values
            is_time = values.dtype.kind == "M"
            out[name] = values.astype("datetime64[s]").astype(np.int64) if is_time else values
        for name in ("flags", "valid_fraction"):
            if name in self.dataset.variables:
                out[name] = self._block(name, rows)
        return out

    def vectors(self, rows: range, batch_size: int, tick: Callable[[int], Any]) -> np.ndarray:
        """Embeddings of these crops, float32, (crop, *shape); NaN where no cell has one. See `PatchInput`."""
        out = np.full((len(rows), *self.shape), np.nan, np.float32)
        for some in self._parts(rows):
            first = some.start - rows.start
            self._embed(some, out[first : first + len(some)], batch_size, tick)
        return out

    def cells_of(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Grids of some crops (crop, channel, row, col, D), and which of their cells the network reads."""
        grids = self._block("embedding", rows)
        filled = np.isfinite(grids).all(axis=-1)
        cells = filled & ((self._block("flags", rows) & self._reject) == 0)
        cells = np.where(cells.any(axis=(2, 3), keepdims=True), cells, filled)
        return grids, cells

    def _parts(self, rows: range) -> Iterator[range]:
        """Some of the rows after others, so that their grids fit into memory."""
        step = max(1, READ_BYTES // self._bytes_each)
        for start in range(rows.start, rows.stop, step):
            yield range(start, min(start + step, rows.stop))

    def _embed(self, rows: range, out: np.ndarray, batch_size: int, tick: Callable[[int], Any]) -> None:
        grids, cells = self.cells_of(rows)
        where = np.argwhere(cells.any(axis=(2, 3)))
        tick(out.shape[0] * out.shape[1] - len(where))
        for start in range(0, len(where), batch_size):
            part = tuple(where[start : start + batch_size].T)
            out[part] = self.network.grids(grids[part], cells[part], self.normalization)
            tick(len(part[0]))


class GridsOfPatches(GridInput):
    """Grids as they come from the patches of a cube: both levels in one go, nothing written between.

    Parameters
    ----------
    patches
        The cube, as a network of level 256 reads it.
    network
        Of level 2k.
    batch_size
        Patches that go through the first network at once.

    The embeddings of patches are rounded as a store of them would be, to float16, so that the result is that of
    embedding twice.
    """

    def __init__(
        self,
        patches: PatchInput,
        network: Network,
        *,
        channels: str | Sequence[str] | None = None,
        normalize: str = "auto",
        batch_size: int = 64,
    ) -> None:
        if normalize == "store":
            raise SchemaError(
                "normalize='store': from patches to level 2k in one go there is no store of embeddings to take the "
                "statistics from. Embed the patches first."
            )
        first = patches.network
        self.patches, self.batch_size, self.dataset = patches, batch_size, patches.dataset
        info = dict(patches.info) | {
            "level": "256", "channels": patches.labels, "checkpoint": first.fingerprint, "pool": first.pool,
            "stride": patches.lattice.stride, "source_identity": patches.info.get("identity"),
        }  # fmt: skip
        self._prepare(
            patches.store, network, info, channels, normalize, features=first.features, cells=patches.cells
        )
        self.coordinates = patches.coordinates

    def content(self, rows: range) -> str:
        """Hash of what decides the embeddings of these crops; see `GridInput.content`."""
        digest = hashlib.sha256(self.patches.content(rows).encode())
        digest.update((self._block("flags", rows) & self._reject).tobytes())
        return digest.hexdigest()[:32]

    def small(self, rows: range) -> dict[str, np.ndarray]:
        """Coordinates, flags and fractions of these crops, by name, as they are stored."""
        out = self.patches.small(rows)
        return out | {name: out[name][:, self._columns] for name in ("flags", "valid_fraction")}

    def _block(self, name: str, rows: range) -> np.ndarray:
        if name != "embedding":
            return self.patches.small(rows)[name][:, self._columns]
        vectors = self.patches.vectors(rows, self.batch_size, lambda done: None)
        return vectors[:, self._columns].astype(np.float16)


def _check_source(source: GridInput, features: int) -> None:
    """Refuse embeddings that the network cannot read, or that another network made."""
    network, info, where = source.network, source.info, source.store
    if features != network.in_channels:
        raise SchemaError(
            f"{where}: embeddings have {features} features, but {network.path} reads {network.in_channels}. Pass "
            "the embeddings of the network that it was trained on."
        )
    trained = (network.checkpoint.get("store") or {}).get("checkpoint")
    if trained is not None and trained != info["checkpoint"]:
        raise SchemaError(
            f"{where}: embeddings of checkpoint {info['checkpoint']}, but {network.path} was trained on those of "
            f"{trained}; they mean different things. Embed the patches with that checkpoint first."
        )


def _choose(
    names: Sequence[str], network: Network, channels: str | Sequence[str] | None, where: str
) -> list[str]:
    """Labels to embed: those of the checkpoint, or the part of them that was asked for."""
    known = network.channels
    wanted = [channels] if isinstance(channels, str) else list(channels or known or names)
    asked = [
        n for w in wanted for n in ([w] if w in names else [k for k in names if k.split("@")[0] == w] or [w])
    ]
    missing = [name for name in asked if name not in names]
    if missing:
        raise SchemaError(
            f"{where}: no channels {missing}; it has {list(names)}. Pass channels=[...] with some."
        )
    unknown = sorted(set(asked) - set(known)) if known is not None else []
    if unknown:
        raise SchemaError(
            f"{network.path}: not trained on {unknown}; it knows {known}. Pass channels=[...] with some of these."
        )
    return list(dict.fromkeys(asked))


def _normalization(source: GridInput, normalize: str) -> dict[str, Any]:
    kept, features = source.network.normalization, source.network.in_channels
    if normalize == "store":
        return dict(GridDataset(source.store, channels=list(source.labels)).normalization)
    if normalize == "none" or kept is None:
        return {"mean": [0.0] * features, "std": [1.0] * features}  # the predecessor's raw input
    return {name: list(map(float, kept[name])) for name in ("mean", "std")}
