"""Embedders without a network: the descriptor of patches, and the pooled vectors of a crop's patches.

They have the members of `Network` that `gridrad_cube.embedding.embed` needs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from gridrad_cube.datasets import Normalization, choose_coarsen, describe, normalizations
from gridrad_cube.models import FIELD_MULTIPLE, MAPS, descriptor_identity
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import choose_labels, labels_of, stacks_altitudes
from gridrad_cube.store import NORTH_UP, open_packed, store_info

#: What embeds without a checkpoint.
Model = Literal["descriptor", "pool"]


class Descriptor:
    """The descriptor of patches: for each channel mean and standard deviation of its local maps, 68 numbers.

    The members are those of `Network`; ``trained`` says how the patches of this store are read.

    Parameters
    ----------
    store
        A finished cube.
    channels
        As for `gridrad_cube.embedding.embed`. Where training would stack the altitudes of a radar volume, their
        descriptors are one vector, one after the other.
    coarsen
        Edge in pixels of the blocks that are averaged first. By default the largest that leaves patches of at least
        128 px: 2 for patches of 256 px.
    device
        Where the maps are computed.

    Raises
    ------
    SchemaError
        If the store is not a cube, a channel has no typical range, or the coarsened patch has no edge that is a
        multiple of 8.
    """

    level, pool, model = "256", "mean+std", {"name": "descriptor"}

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        channels: str | Sequence[str] | None = None,
        coarsen: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        info = store_info(store)
        if info.get("kind") != "patches":
            raise SchemaError(
                f"{store}: holds embeddings, but the descriptor describes patches. Pass a cube, or model='pool' for "
                "level 2k without training."
            )
        self.device, self.fingerprint = torch.device(device), descriptor_identity()
        labels = choose_labels(labels_of(open_packed(store), list(info["channels"])), channels, str(store))
        names = [label.name for label in labels]
        stacked = len(labels) > 1 and stacks_altitudes(labels)
        rules = normalizations(store, names, scale="typical")
        self.trained: dict[str, Any] = {
            "path": "descriptor", "level": "256", "channels": names, "stacked": stacked,
            "in_channels": len(names) if stacked else 1, "token": FIELD_MULTIPLE,
            "coarsen": choose_coarsen(int(info["patch"]), coarsen, str(store)), "magnification": 1.0, "view": {},
            "normalization": {name: rule.to_dict() for name, rule in rules.items()}, "reject": None, "store": {},
            "orientation": NORTH_UP,
        }  # fmt: skip
        self.features = 2 * MAPS * self.trained["in_channels"]

    def embed(self, codes: np.ndarray, channel: np.ndarray, rules: Sequence[Normalization]) -> np.ndarray:
        """Describe packed patches (B, C, patch, patch); see `Network.embed`."""
        coarsen = self.trained["coarsen"]
        return describe(codes, channel, rules, coarsen=coarsen, device=self.device)


class GridPool:
    """Mean, then standard deviation, of the vectors of a crop's clean patches: level 2k without training.

    The members are those of `Network`. If no patch of a crop is clean, all that have a vector count.

    Parameters
    ----------
    store
        A finished embedding store of level 256.

    Raises
    ------
    SchemaError
        If the store holds anything else.
    """

    level, pool, model = "2k", "mean+std", {"name": "pool"}

    def __init__(self, store: str | os.PathLike[str]) -> None:
        info = store_info(store)
        if info.get("kind") != "embeddings" or info.get("level") != "256":
            holds = "a cube" if info.get("kind") == "patches" else f"embeddings of level {info.get('level')}"
            raise SchemaError(
                f"{store}: holds {holds}, but model='pool' reads embeddings of level 256. Pass those, or "
                "model='descriptor' for a cube."
            )
        self.fingerprint = hashlib.sha256(b"mean and standard deviation, 1").hexdigest()[:32]
        features = int(info["features"])
        self.trained: dict[str, Any] = {
            "path": "pool", "level": "2k", "channels": None, "stacked": False, "in_channels": features, "coarsen": 1,
            "magnification": 1.0, "view": {}, "normalization": None, "reject": None, "store": {},
            "orientation": NORTH_UP,
        }  # fmt: skip
        self.features = 2 * features

    def embed(self, grids: np.ndarray, cells: np.ndarray, normalization: Any) -> np.ndarray:
        """Pool grids (B, rows, cols, D) over their cells (B, rows, cols), at least one of each; float32, (B, 2 D)."""
        weight = cells / cells.sum(axis=(1, 2), keepdims=True)
        vectors = np.where(cells[..., None], grids, 0).astype(np.float64)
        mean = np.einsum("brc,brcd->bd", weight, vectors)
        variance = np.einsum("brc,brcd->bd", weight, (vectors - mean[:, None, None]) ** 2)
        return np.concatenate([mean, np.sqrt(variance)], axis=1).astype(np.float32)
