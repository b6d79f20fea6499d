"""Describe a store or a source file in a few lines, from metadata alone."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import xarray as xr

from gridrad_cube import readers, store, tiling
from gridrad_cube.readout import saved_readout
from gridrad_cube.schema import ATTRIBUTE, SchemaError, counted
from gridrad_cube.selection import labels_of
from gridrad_cube.storage import is_url

__all__ = ["inspect_target"]

#: Edge in pixels to which the preset `small` of training averages patches.
_FIELD = 64


def __dir__() -> list[str]:
    return __all__


def inspect_target(target: str | os.PathLike[str]) -> store.Facts:
    """Describe a store (cube or embeddings) or a source file. Reads no pixels.

    Parameters
    ----------
    target
        Path or URL of a store, or path of a source file.

    Returns
    -------
    Texts by name, as of `gridrad_cube.store.describe`, which ``gridrad_cube.store.as_text`` writes as lines.

    Raises
    ------
    SchemaError
        If it is neither a store of this package nor a netCDF file.
    FileNotFoundError
        If there is no such store or file.
    """
    path = os.fspath(target)
    if not os.path.isfile(path) and not (is_url(path) and path.lower().endswith(readers.SUFFIXES)):
        if store.store_info(target).get("kind") == "patches":
            return store.describe(store.open_packed(target))
        embeddings = store.open_embeddings(target)
        if "crop" not in embeddings.dims:  # a selection that was saved
            return store.describe(embeddings)
        readouts = {
            label.name: str(saved_readout(embeddings, i) or "none")
            for i, label in enumerate(labels_of(embeddings))
        }
        return store.describe(embeddings) | {"readout": readouts}
    attributes, variables = readers.list_contents(path)
    if ATTRIBUTE in attributes:  # a selection that was saved as netCDF
        with xr.open_dataset(path) as dataset:
            return store.describe(dataset)
    facts: store.Facts = {"kind": "source file", "file": path}
    try:
        header = readers.inspect(path)
    except SchemaError as error:  # any netCDF file can be looked into
        facts["format"] = f"no scene that a reader knows: {error}"
    else:
        facts |= {
            "format": header.format,
            "time": _times(header),
            "shape": f"{header.shape[0]} x {header.shape[1]} pixels",
            "channels": ", ".join(header.channels),
            "grid": header.grid_id,
            **_suggestion(header),
            "product": header.product,
        }
        if header.further:
            facts["further channels (--channels)"] = ", ".join(header.further)
    facts["variables"] = {name: _variable(variable) for name, variable in variables.items()}
    facts["attributes"] = {name: _shorten(value) for name, value in attributes.items()}
    return facts


def _suggestion(header: readers.Header) -> store.Facts:
    """Return the distance of pixels, and suggested options for cutting scenes of this grid; nothing if it is
    too small.
    """
    down, across = store.grid_spacing(header.latitude, header.longitude)
    facts: store.Facts = {}
    if down and across:
        facts["pixels"] = f"{down:.3g} x {across:.3g} km"
    try:
        tile = tiling.suggest(header.shape, header.lattice)
    except SchemaError:
        return facts
    windows = tiling.windows(header.shape, tile, "", header.lattice)
    rows, cols = (edge // tile.patch for edge in (windows[0].height, windows[0].width))
    few, every = tiling.count_leftovers(header.shape, tile.patch)
    crop = f" --crop {tile.crop[0]}x{tile.crop[1]} --placement {tile.placement}" if tile.crop else ""
    words = (
        f"{counted(len(windows), 'crop')} of {rows} x {cols} patches"
        if tile.crop
        else f"{rows} x {cols} patches"
    )
    if tile.crop:
        words += f"; whole scenes would leave {few} of {every} patches less than half observed"
    facts["suggested for preprocess"] = f"--patch {tile.patch}{crop} ({words})"
    coarsen = max(1, tile.patch // _FIELD)
    wide = f", {tile.patch * down:,.0f} km high" if down else ""
    averages = (
        f"averages patches to {tile.patch // coarsen} px" if coarsen > 1 else "takes patches as they are"
    )
    facts["suggested for train"] = f"--preset small ({averages}{wide})"
    return facts


def _times(header: readers.Header) -> str:
    times = header.times
    return (
        f"{times.min()} to {times.max()}, {counted(times.size, 'time')}" if times.size else str(header.time)
    )


def _variable(variable: Any) -> str:
    dims = ", ".join(f"{d} {n}" for d, n in zip(variable.dims, variable.shape, strict=True))
    units, name = (variable.attributes.get(k) for k in ("units", "long_name"))
    words = [_shorten(word) for word in (name, units and f"[{units}]") if word]
    return "  ".join([f"{variable.dtype.name} ({dims})", *([" ".join(words)] if words else [])])


def _shorten(value: Any) -> str:
    return textwrap.shorten(str(value), 100, placeholder="...")
