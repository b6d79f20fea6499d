"""Networks, losses, views and checkpoints of both levels. They import torch and, of this package, only the
schema.
"""

from gridrad_cube.models.checkpoints import (
    backbone_state,
    fingerprint,
    head_state,
    load_backbone,
    load_checkpoint,
    load_contrast_head,
    newest_checkpoint,
    save_checkpoint,
)
from gridrad_cube.models.grid_views import GridViewSpec, draw_grid_views
from gridrad_cube.models.objectives import (
    CodingRateLoss,
    ContrastHead,
    DINOHead,
    DINOLoss,
    ProjectionHead,
    clip_per_tensor_,
    contrast_loss,
    cosine_schedule,
    parameter_groups,
    update_teacher_,
)
from gridrad_cube.models.scattering import (
    FIELD_MULTIPLE,
    MAPS,
    LocalMaps,
    ScatteringStem,
    describe_maps,
    descriptor_identity,
    local_maps,
)
from gridrad_cube.models.views import (
    View,
    ViewSpec,
    cached_tensor,
    draw_views,
    sample_seeds,
    token_coverage,
    whole_view,
)
from gridrad_cube.models.vit import (
    ARCHITECTURES,
    NetworkInput,
    Pool,
    Stem,
    VisionTransformer,
    build,
    pool_tokens,
)

__all__ = [
    "ARCHITECTURES",
    "FIELD_MULTIPLE",
    "MAPS",
    "CodingRateLoss",
    "ContrastHead",
    "DINOHead",
    "DINOLoss",
    "GridViewSpec",
    "LocalMaps",
    "NetworkInput",
    "Pool",
    "ProjectionHead",
    "ScatteringStem",
    "Stem",
    "View",
    "ViewSpec",
    "VisionTransformer",
    "backbone_state",
    "build",
    "cached_tensor",
    "clip_per_tensor_",
    "contrast_loss",
    "cosine_schedule",
    "describe_maps",
    "descriptor_identity",
    "draw_grid_views",
    "draw_views",
    "fingerprint",
    "head_state",
    "load_backbone",
    "load_checkpoint",
    "load_contrast_head",
    "local_maps",
    "newest_checkpoint",
    "parameter_groups",
    "pool_tokens",
    "sample_seeds",
    "save_checkpoint",
    "token_coverage",
    "update_teacher_",
    "whole_view",
]


def __dir__() -> list[str]:
    return __all__
