"""From a store to batches of torch tensors: which samples, in which order, read ahead, decoded."""

from __future__ import annotations

import os
from typing import Any

from gridrad_cube.datasets.grids import GridDataset, decode_grids
from gridrad_cube.datasets.loader import Batch, PatchLoader
from gridrad_cube.datasets.normalization import Normalization, decode, normalizations
from gridrad_cube.datasets.partners import PairDataset, followers
from gridrad_cube.datasets.patches import PatchDataset
from gridrad_cube.datasets.sampling import SHARES, EpochSampler, Stratum, permute
from gridrad_cube.datasets.table import SampleTable
from gridrad_cube.schema import SchemaError
from gridrad_cube.store import store_info

__all__ = [
    "SHARES",
    "Batch",
    "EpochSampler",
    "GridDataset",
    "Normalization",
    "PairDataset",
    "PatchDataset",
    "PatchLoader",
    "SampleTable",
    "Stratum",
    "decode",
    "decode_grids",
    "followers",
    "normalizations",
    "open_dataset",
    "permute",
]

_OPTIONS = {
    "patches": {
        "channels",
        "altitude",
        "reject",
        "time",
        "channel_mode",
        "bbox",
        "coarsen",
        "on_damage",
        "cache",
    },
    "embeddings": {"channels", "reject", "time", "normalization", "in_memory"},
}


def open_dataset(store: str | os.PathLike[str], **options: Any) -> PatchDataset | GridDataset:
    """Open the data set that a store is for: patches of a cube, or grids of an embedding store.

    Parameters
    ----------
    options
        Of `PatchDataset` or of `GridDataset`.

    Raises
    ------
    SchemaError
        If an option is for the other kind of store.
    """
    kind = str(store_info(store).get("kind"))
    if kind not in _OPTIONS:
        raise SchemaError(f"{store}: holds {kind!r}; expected one of {list(_OPTIONS)}")
    unknown = sorted(set(options) - _OPTIONS[kind])
    if unknown:
        raise SchemaError(
            f"{store}: holds {kind}, which take no {unknown}; expected some of {sorted(_OPTIONS[kind])}"
        )
    return PatchDataset(store, **options) if kind == "patches" else GridDataset(store, **options)
