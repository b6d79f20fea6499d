"""Grids of patch embeddings as inputs of a level-2k network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gridrad_cube.datasets import GridDataset
from gridrad_cube.datasets.table import kind_of
from gridrad_cube.embed.network import Network
from gridrad_cube.schema import Flag, SchemaError, reject_mask
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
        self.store, self.network = os.fspath(store), network
        self.info = store_info(store, "embeddings")
        self.dataset = open_embeddings(store)
        _check_source(self)
        names = [str(name) for name in self.dataset["channel"].values]
        chosen = _choose(names, network, channels, self.store)
        self._columns = [names.index(name) for name in chosen]
        self.labels = {name: list(self.info["channels"][name]) for name in chosen}
        config = network.checkpoint.get("config")
        reject = config.get("reject") if isinstance(config, Mapping) else None
        bits = [reject_mask(reject, kind_of(m)) | int(Flag.channel_absent) for m in self.labels.values()]
        self._reject = np.array(bits, np.uint16)[None, :, None, None]
        self.normalization = _normalization(self, normalize)
        self.shape = (len(chosen), network.features)
        self.cells = (int(self.dataset.sizes["row"]), int(self.dataset.sizes["col"]))
        self.coordinates = [name for name in COORDINATES if name in self.dataset.variables]

    @property
    def crops(self) -> int:
        """Number of crops in the store."""
        return int(self.dataset.sizes["crop"])

    def _block(self, name: str, rows: range) -> np.ndarray:
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

    def _parts(self, rows: range) -> Iterator[range]:
        """Some of the rows after others, so that their grids fit into memory."""
        each = self.dataset["embedding"].nbytes // max(self.crops, 1)
        step = max(1, READ_BYTES // max(each, 1))
        for start in range(rows.start, rows.stop, step):
            yield range(start, min(start + step, rows.stop))

    def _embed(self, rows: range, out: np.ndarray, batch_size: int, tick: Callable[[int], Any]) -> None:
        grids = self._block("embedding", rows)
        filled = np.isfinite(grids).all(axis=-1)
        cells = filled & ((self._block("flags", rows) & self._reject) == 0)
        cells = np.where(cells.any(axis=(2, 3), keepdims=True), cells, filled)
        where = np.argwhere(cells.any(axis=(2, 3)))
        tick(out.shape[0] * out.shape[1] - len(where))
        for start in range(0, len(where), batch_size):
            part = tuple(where[start : start + batch_size].T)
            out[part] = self.network.grids(grids[part], cells[part], self.normalization)
            tick(len(part[0]))


def _check_source(source: GridInput) -> None:
    """Refuse embeddings that the network cannot read, or that another network made."""
    network, info, where = source.network, source.info, source.store
    if "row" not in source.dataset["embedding"].dims:
        raise SchemaError(
            f"{where}: holds embeddings of level {info.get('level')!r}, one a crop; {network.path} reads grids of "
            "level '256'. Pass the store that gridrad-cube embed made from the patches."
        )
    features = source.dataset.sizes["feature"]
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
