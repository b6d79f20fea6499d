"""Questions about a store by place, time and likeness; importing this registers the accessor ``.gridrad``."""

from gridrad_cube.query.accessor import GridradAccessor
from gridrad_cube.query.answers import format_answer
from gridrad_cube.query.following import follow
from gridrad_cube.query.likeness import search
from gridrad_cube.query.pixels import crop, patch, patches, reflectivity
from gridrad_cube.query.places import at, track
from gridrad_cube.query.selection import grid, within

__all__ = [
    "GridradAccessor",
    "at",
    "crop",
    "follow",
    "format_answer",
    "grid",
    "patch",
    "patches",
    "reflectivity",
    "search",
    "track",
    "within",
]
