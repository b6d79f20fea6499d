"""Read batches of torch tensors from a store: select samples, order them, read ahead, and decode."""

from gridrad_cube.datasets.grids import GridDataset, decode_grids
from gridrad_cube.datasets.loader import Batch, PatchLoader
from gridrad_cube.datasets.normalization import (
    Normalization,
    choose_coarsen,
    decode,
    describe,
    normalizations,
)
from gridrad_cube.datasets.patches import PatchDataset
from gridrad_cube.datasets.sampling import (
    EpochSampler,
    PairDataset,
    followers,
    nearest_later,
)
from gridrad_cube.datasets.table import SampleRecord, SampleTable, Stratum
from gridrad_cube.datasets.windows import WindowPairs

__all__ = [
    "Batch",
    "EpochSampler",
    "GridDataset",
    "Normalization",
    "PairDataset",
    "PatchDataset",
    "PatchLoader",
    "SampleRecord",
    "SampleTable",
    "Stratum",
    "WindowPairs",
    "choose_coarsen",
    "decode",
    "decode_grids",
    "describe",
    "followers",
    "nearest_later",
    "normalizations",
]


def __dir__() -> list[str]:
    return __all__
