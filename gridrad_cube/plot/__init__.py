"""Pictures: scenes with crops and patches, flags, statistics, curves, answers, embeddings, attention, evaluations.

Every function takes xarray objects (or the folder of a run) and returns a matplotlib figure; nothing is shown or
saved. North is up, colours are safe for the colour-blind, colour scales belong to the channel and not to the
picture, so that pictures compare. matplotlib comes with the extra ``plot`` and is imported when first drawn.
"""

from gridrad_cube.plot.attended import attention
from gridrad_cube.plot.badges import flags
from gridrad_cube.plot.canvas import packing_of
from gridrad_cube.plot.fields import source
from gridrad_cube.plot.judged import evaluation
from gridrad_cube.plot.likeness import answers, neighbours
from gridrad_cube.plot.mosaic import crops
from gridrad_cube.plot.principal import components
from gridrad_cube.plot.scenes import scene
from gridrad_cube.plot.tables import curves, read_metrics, statistics

__all__ = [
    "answers",
    "attention",
    "components",
    "crops",
    "curves",
    "evaluation",
    "flags",
    "neighbours",
    "packing_of",
    "read_metrics",
    "scene",
    "source",
    "statistics",
]
