"""Judging embeddings without labels: what a network adds to pixels, on days and places it has not seen."""

from gridrad_cube.evaluation.planted import Place, Retrieval, patches_at, planted_retrieval
from gridrad_cube.evaluation.result import SECTIONS, Cell, Evaluation, Row
from gridrad_cube.evaluation.run import LEADS, evaluate
from gridrad_cube.evaluation.vectors import feature_spread, principal_components, rank_me

__all__ = [
    "LEADS",
    "SECTIONS",
    "Cell",
    "Evaluation",
    "Place",
    "Retrieval",
    "Row",
    "evaluate",
    "feature_spread",
    "patches_at",
    "planted_retrieval",
    "principal_components",
    "rank_me",
]
