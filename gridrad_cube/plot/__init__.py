"""Pictures: scenes with crops and patches, flags, statistics, curves, answers, embeddings, attention,
evaluations.

Every function takes xarray objects (or the folder of a run) and returns a matplotlib figure. Nothing is shown
or
saved. The commands of ``gridrad-cube plot`` have the same names. North is up, colors are safe for color-blind
readers,
and a channel has the same color scale in every picture, so that pictures can be compared. matplotlib comes
with the
extra ``plot`` and is imported when a function first draws.
"""

from gridrad_cube.plot.charts import curves, statistics
from gridrad_cube.plot.neighbors import query
from gridrad_cube.plot.patches import crops, flags, scene, source
from gridrad_cube.plot.scores import evaluation
from gridrad_cube.plot.vectors import attention, embeddings

__all__ = [
    "attention",
    "crops",
    "curves",
    "embeddings",
    "evaluation",
    "flags",
    "query",
    "scene",
    "source",
    "statistics",
]


def __dir__() -> list[str]:
    return __all__
