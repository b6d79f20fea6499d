"""What a finished store says of itself: its ``gridrad_cube`` attributes, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gridrad_cube.schema import FORMAT_VERSION, SchemaError
from gridrad_cube.storage import Files


def store_info(store: str | os.PathLike[str], kind: str | None = None) -> dict[str, Any]:
    """The ``gridrad_cube`` attributes of a finished store.

    Parameters
    ----------
    kind
        ``"patches"`` or ``"embeddings"`` where the caller needs one of them.

    Raises
    ------
    FileNotFoundError
        If there is nothing at this place.
    SchemaError
        If it is not a store of ours, is not finished, is newer than this program, or of another kind.
    """
    files = Files(store)
    try:
        attributes = files.read_json("zarr.json").get("attributes", {})
    except (FileNotFoundError, NotADirectoryError):
        if files.exists("_build"):
            raise SchemaError(
                f"{store}: the store is not finished. Run the command that builds it again: it continues."
            ) from None
        if not files.exists():
            alone = "" if files.shared else " in this process, and others cannot see memory://"
            raise FileNotFoundError(f"{store}: no such store{alone}") from None
        raise SchemaError(f"{store}: not a Zarr v3 store (no zarr.json in it)") from None
    except ValueError as error:
        raise SchemaError(f"{store}: zarr.json cannot be read ({error}); run gridrad-cube verify") from error
    info = attributes.get("gridrad_cube")
    if not isinstance(info, Mapping):
        raise SchemaError(
            f"{store}: a Zarr store, but none that gridrad-cube wrote (no gridrad_cube attributes)"
        )
    if info.get("format_version", 0) > FORMAT_VERSION:
        raise SchemaError(
            f"{store}: written by a newer gridrad-cube (format {info['format_version']}, this one reads up to "
            f"{FORMAT_VERSION}). Upgrade gridrad-cube."
        )
    if kind is not None and info.get("kind") != kind:
        wanted = {
            "patches": "a cube of patches (gridrad-cube preprocess)",
            "embeddings": "an embedding store (gridrad-cube embed)",
        }[kind]
        raise SchemaError(f"{store}: holds {info.get('kind')}, but this needs {wanted}")
    return dict(info)


def cube_info(store: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``gridrad_cube`` attributes of a finished cube of patches."""
    return store_info(store, "patches")
