"""Judging embeddings without labels: what a network adds to pixels, on days that it has not seen."""

from gridrad_cube.evaluation.baselines import describe_pixels
from gridrad_cube.evaluation.measures import (
    CHOOSE,
    FIT,
    TEST,
    analogue_forecast,
    blocks_of,
    feature_spread,
    planted_retrieval,
    ridge,
    score_r2,
    score_ranks,
    score_skill,
)
from gridrad_cube.evaluation.result import SECTIONS, Cell, Evaluation, Row
from gridrad_cube.evaluation.run import LEADS, evaluate
from gridrad_cube.evaluation.sequels import sources_of

__all__ = [
    "CHOOSE",
    "FIT",
    "LEADS",
    "SECTIONS",
    "TEST",
    "Cell",
    "Evaluation",
    "Row",
    "analogue_forecast",
    "blocks_of",
    "describe_pixels",
    "evaluate",
    "feature_spread",
    "planted_retrieval",
    "ridge",
    "score_r2",
    "score_ranks",
    "score_skill",
    "sources_of",
]


def __dir__() -> list[str]:
    return __all__
