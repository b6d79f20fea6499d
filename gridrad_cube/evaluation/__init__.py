"""Compare embeddings with vectors that need no training, on days or events that no fit has seen."""

from gridrad_cube.evaluation.baselines import describe_pixels
from gridrad_cube.evaluation.measures import (
    CHOOSE,
    FIT,
    TEST,
    Spread,
    analogue_forecast,
    blocks_of,
    planted_retrieval,
    ridge,
    score_mean,
    score_r2,
    score_ranks,
    spread_of,
)
from gridrad_cube.evaluation.result import Cell, Evaluation, Row
from gridrad_cube.evaluation.run import LEADS, evaluate
from gridrad_cube.evaluation.sequels import sources_of

__all__ = [
    "CHOOSE",
    "FIT",
    "LEADS",
    "TEST",
    "Cell",
    "Evaluation",
    "Row",
    "Spread",
    "analogue_forecast",
    "blocks_of",
    "describe_pixels",
    "evaluate",
    "planted_retrieval",
    "ridge",
    "score_mean",
    "score_r2",
    "score_ranks",
    "sources_of",
    "spread_of",
]


def __dir__() -> list[str]:
    return __all__
