"""Make up weather and write it as source files of every format, faithful to the layouts of the archives.

Storms are born, move, grow and die; day and night pass; the satellite's limb and the gaps between radars stay
empty; and what goes wrong with real files can be planted on request. Everything follows from a seed.
"""

from __future__ import annotations

from gridrad_cube.synthetic.faults import FAULTS, PlantedFault, plant_fault
from gridrad_cube.synthetic.gridrad import write_gridrad_dense, write_gridrad_sparse
from gridrad_cube.synthetic.larc_goes import write_larc_goes
from gridrad_cube.synthetic.radar import RadarNetwork, RadarVolume, render_radar
from gridrad_cube.synthetic.runs import FORMATS, Format, Run, make_axes, make_run, plant_table
from gridrad_cube.synthetic.satellite import SatelliteImage, render_satellite
from gridrad_cube.synthetic.scenes import iter_scenes, read_truth, write_scenes
from gridrad_cube.synthetic.weather import Plant, Weather, storms_at

__all__ = [
    "FAULTS",
    "FORMATS",
    "Format",
    "Plant",
    "PlantedFault",
    "RadarNetwork",
    "RadarVolume",
    "Run",
    "SatelliteImage",
    "Weather",
    "iter_scenes",
    "make_axes",
    "make_run",
    "plant_fault",
    "plant_table",
    "read_truth",
    "render_radar",
    "render_satellite",
    "storms_at",
    "write_gridrad_dense",
    "write_gridrad_sparse",
    "write_larc_goes",
    "write_scenes",
]
