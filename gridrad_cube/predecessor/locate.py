"""Where a crop lies in the scene that it was cut from, found by its pixels."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from gridrad_cube import readers
from gridrad_cube.schema import Packing

#: Pixels compared at every offset before whole crops are: each leaves about one offset in a thousand of noise.
PROBES = 64


class Scene(NamedTuple):
    """One channel of a source file as packed codes (y, x), and where it lies."""

    codes: np.ndarray
    packing: Packing
    grid: str
    shape: tuple[int, int]
    time: int
    latitude: np.ndarray
    longitude: np.ndarray


def open_scene(path: str | os.PathLike[str], channel: str) -> Scene:
    """Read one channel of a source file; raises as `gridrad_cube.readers.read_scene`."""
    header = readers.inspect(path, channels=(channel,))
    scene = readers.read_scene(path, channels=(channel,))
    variable = scene[channel]
    return Scene(
        variable.values,
        Packing.from_attributes(variable.attrs, variable.dtype),
        header.grid_id,
        header.shape,
        int(header.time.astype("datetime64[s]").astype(np.int64)),
        scene["latitude"].values,
        scene["longitude"].values,
    )


def find_window(scene: Scene, crop: np.ndarray) -> tuple[int, int] | None:
    """First row and column of a crop in its scene; None if it is not there, or could be at several places.

    Exact: at that place every code of the scene equals that of the crop, wherever the crop holds a value.

    Parameters
    ----------
    crop
        Values in the channel's units (y, x), NaN where there is none.
    """
    height, width = crop.shape
    down, across = (n - m + 1 for n, m in zip(scene.codes.shape, crop.shape, strict=True))
    codes = scene.packing.encode(crop)
    known = np.isfinite(crop) & scene.packing.observed(codes)
    places = np.flatnonzero(known)
    if down < 1 or across < 1 or not len(places):
        return None
    fits = np.ones((down, across), bool)
    for place in np.random.default_rng(0).choice(places, PROBES):
        y, x = divmod(int(place), width)
        fits &= scene.codes[y : y + down, x : x + across] == codes[y, x]
    if fits.sum() > PROBES:  # a field of one value
        return None
    found = [
        (int(y), int(x))
        for y, x in np.argwhere(fits)
        if ((scene.codes[y : y + height, x : x + width] == codes) | ~known).all()
    ]
    return found[0] if len(found) == 1 else None
