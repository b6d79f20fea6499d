"""Train both levels: a configuration, the training loop, and checkpoints to resume from."""

from gridrad_cube.training.config import (
    ALIASES,
    FIELDS,
    HINTS,
    IDLE,
    Config,
    TimeRanges,
    list_presets,
    load_config,
    store_level,
    unknown_option,
)
from gridrad_cube.training.loop import TrainingError, train

__all__ = [
    "ALIASES",
    "FIELDS",
    "HINTS",
    "IDLE",
    "Config",
    "TimeRanges",
    "TrainingError",
    "list_presets",
    "load_config",
    "store_level",
    "train",
    "unknown_option",
]


def __dir__() -> list[str]:
    return __all__
