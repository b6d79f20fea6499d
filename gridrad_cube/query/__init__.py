"""Query a store by place, time and similarity. The accessor ``.gridrad`` has these functions as methods."""

from gridrad_cube.query.analogues import analogues, frequency
from gridrad_cube.query.answers import format_answer, to_dataframe, write_answer
from gridrad_cube.query.at import at, grid, track, within
from gridrad_cube.query.pixels import crop, patch, patches, pixels, reflectivity
from gridrad_cube.query.readout import fit_readout, readout_of, remove_readout
from gridrad_cube.query.samples import collect, locate, sample_dims, select
from gridrad_cube.query.search import follow, search
from gridrad_cube.selection import convective_day, split_by_day

__all__ = [
    "analogues",
    "at",
    "collect",
    "convective_day",
    "crop",
    "fit_readout",
    "follow",
    "format_answer",
    "frequency",
    "grid",
    "locate",
    "patch",
    "patches",
    "pixels",
    "readout_of",
    "reflectivity",
    "remove_readout",
    "sample_dims",
    "search",
    "select",
    "split_by_day",
    "to_dataframe",
    "track",
    "within",
    "write_answer",
]


def __dir__() -> list[str]:
    return __all__
