"""Questions about a store by place, time and likeness; importing this registers the accessor ``.gridrad``."""

from gridrad_cube.query.accessor import GridradAccessor
from gridrad_cube.query.analogs import analogues
from gridrad_cube.query.answers import format_answer, write_geoparquet
from gridrad_cube.query.following import follow
from gridrad_cube.query.frequencies import frequency
from gridrad_cube.query.index import Index, build_index
from gridrad_cube.query.likeness import search
from gridrad_cube.query.nearby import Places
from gridrad_cube.query.pixels import crop, patch, patches, pixels, reflectivity
from gridrad_cube.query.places import at, track
from gridrad_cube.query.samples import collect, sample_dims
from gridrad_cube.query.selection import grid, select, within
from gridrad_cube.query.summary import describe
from gridrad_cube.selection import convective_day, split_by_day

__all__ = [
    "GridradAccessor",
    "Index",
    "Places",
    "analogues",
    "at",
    "build_index",
    "collect",
    "convective_day",
    "crop",
    "describe",
    "follow",
    "format_answer",
    "frequency",
    "grid",
    "patch",
    "patches",
    "pixels",
    "reflectivity",
    "sample_dims",
    "search",
    "select",
    "split_by_day",
    "track",
    "within",
    "write_geoparquet",
]
