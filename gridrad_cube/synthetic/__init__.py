"""Synthetic weather as source files of every format, faithful to the layouts of the archives.

Storms are born, move, grow and die; day and night pass; the limb of the satellite and the gaps between radars stay
empty. Everything follows from a seed. `write_scenes` with a small ``shape`` makes small files for tests.
"""

from __future__ import annotations

from gridrad_cube.synthetic.noise import cut_tile, spectral_tile
from gridrad_cube.synthetic.radar import RadarVolume, storm_columns
from gridrad_cube.synthetic.scenes import FORMATS, plant_table, write_gridrad, write_scenes
from gridrad_cube.synthetic.storms import KINDS, Kind, Storm, draw_storm

__all__ = [
    "FORMATS",
    "KINDS",
    "Kind",
    "RadarVolume",
    "Storm",
    "cut_tile",
    "draw_storm",
    "plant_table",
    "spectral_tile",
    "storm_columns",
    "write_gridrad",
    "write_scenes",
]


def __dir__() -> list[str]:
    return __all__
