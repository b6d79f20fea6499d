"""Types of the names that the package loads when they are first used."""

from gridrad_cube import plot
from gridrad_cube.embedding import embed
from gridrad_cube.evaluation import evaluate
from gridrad_cube.info import inspect_target
from gridrad_cube.pipeline import preprocess
from gridrad_cube.query import fit_readout, search
from gridrad_cube.readers import read_scene
from gridrad_cube.schema import (
    QualitySpec,
    RadarSpec,
    Recipe,
    SchemaError,
    TileSpec,
)
from gridrad_cube.store import (
    open_cube,
    open_embeddings,
    open_packed,
    verify,
)
from gridrad_cube.training import train
from gridrad_cube.versions import show_versions

__version__: str

__all__ = [
    "QualitySpec",
    "RadarSpec",
    "Recipe",
    "SchemaError",
    "TileSpec",
    "embed",
    "evaluate",
    "fit_readout",
    "inspect_target",
    "open_cube",
    "open_embeddings",
    "open_packed",
    "plot",
    "preprocess",
    "read_scene",
    "search",
    "show_versions",
    "train",
    "verify",
]
