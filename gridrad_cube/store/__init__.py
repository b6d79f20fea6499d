"""Stores on disk: their layout, how they are built exactly once, verified, opened, read and described.

Only this package knows the layout on disk. A store is a path or a URL.
"""

from gridrad_cube.storage import Files, RemoteError
from gridrad_cube.store.build import (
    Build,
    Entry,
    check_duplicates,
    grid_key,
    read_grid,
    scene_of,
    write_crop,
    write_grid,
)
from gridrad_cube.store.embeddings import EmbeddingReader, EmbeddingWriter
from gridrad_cube.store.finish import blocks, finish, gather, keep_block, write_block
from gridrad_cube.store.integrity import Commit, read_root, store_info
from gridrad_cube.store.layout import (
    CODECS,
    COORDINATES,
    OPTIONAL_COORDINATES,
    STATUS,
    ArraySpec,
    ChannelLayout,
    CubeLayout,
    blank_rows,
    block_length,
    encode,
    small_specs,
    write_array,
    write_root,
)
from gridrad_cube.store.log import Record, pack_rows
from gridrad_cube.store.opening import open_cube, open_embeddings, open_packed, source_path
from gridrad_cube.store.orientation import (
    NORTH_UP,
    Grid,
    Orientation,
    compare_grids,
    grid_spacing,
    open_grid,
    read_grids,
)
from gridrad_cube.store.patches import PatchReader
from gridrad_cube.store.shards import MissingChunkError
from gridrad_cube.store.summary import Facts, as_html, as_text, describe
from gridrad_cube.store.verify import Damage, verify

__all__ = [
    "CODECS",
    "COORDINATES",
    "NORTH_UP",
    "OPTIONAL_COORDINATES",
    "STATUS",
    "ArraySpec",
    "Build",
    "ChannelLayout",
    "Commit",
    "CubeLayout",
    "Damage",
    "EmbeddingReader",
    "EmbeddingWriter",
    "Entry",
    "Facts",
    "Files",
    "Grid",
    "MissingChunkError",
    "Orientation",
    "PatchReader",
    "Record",
    "RemoteError",
    "as_html",
    "as_text",
    "blank_rows",
    "block_length",
    "blocks",
    "check_duplicates",
    "compare_grids",
    "describe",
    "encode",
    "finish",
    "gather",
    "grid_key",
    "grid_spacing",
    "keep_block",
    "open_cube",
    "open_embeddings",
    "open_grid",
    "open_packed",
    "pack_rows",
    "read_grid",
    "read_grids",
    "read_root",
    "scene_of",
    "small_specs",
    "source_path",
    "store_info",
    "verify",
    "write_array",
    "write_block",
    "write_crop",
    "write_grid",
    "write_root",
]


def __dir__() -> list[str]:
    return __all__
