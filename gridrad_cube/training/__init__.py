"""Training of both levels: a configuration, the loop, checkpoints that go on where they stopped."""

from gridrad_cube.training.config import Config, load_config, presets, store_level
from gridrad_cube.training.engine import TrainingError, train
from gridrad_cube.training.flags import main, parse_config

__all__ = [
    "Config",
    "TrainingError",
    "load_config",
    "main",
    "parse_config",
    "presets",
    "store_level",
    "train",
]
