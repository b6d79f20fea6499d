"""Cut scenes into crops of whole patches with all coordinates. This module reads no file and does not import
torch.

A window is a rectangle of pixels of a scene, a whole number of patches high and wide. It may extend beyond
the scene,
where the crop holds the code for "not observed".
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gridrad_cube.geometry import mean_position, wrap_longitude
from gridrad_cube.schema import Packing, SchemaError, TileSpec

__all__ = ["Window", "assemble", "count_leftovers", "crop_shape", "cut", "suggest", "windows"]

#: What `suggest` chooses from: edges of patches, patches along an edge of a crop at least, share of leftovers at most.
_EDGES, _CELLS, _FEW = (256, 128, 64, 32, 16), 4, 0.1


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels of a scene. ``y`` and ``x`` may be negative, and the ends may lie beyond the
    scene.
    """

    y: int
    x: int
    height: int
    width: int


def crop_shape(
    shape: tuple[int, int], spec: TileSpec, lattice_origin: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the height and width in pixels of every window that `windows` gives for a scene of this shape.

    This is ``spec.crop`` if it is given, else the scene's shape, padded to whole patches. With a
    ``lattice_origin`` the padding before the scene counts too, so two scenes of one shape may differ. All
    crops of a store have the same shape: take the largest shape of all scenes and put it into every window
    (``dataclasses.replace(window, height=..., width=...)``); the rest is padding.

    Parameters
    ----------
    shape
        Height and width of the scene in pixels.
    spec
        How scenes become crops.
    lattice_origin
        As of `windows`.

    Returns
    -------
    Height and width in pixels.

    Raises
    ------
    SchemaError
        If the scene is smaller than one patch.
    """
    if min(shape) < spec.patch:
        raise SchemaError(
            f"scene: smaller than one patch, got {shape[0]} x {shape[1]} px; expected at least {spec.patch} x "
            f"{spec.patch}. Pass a smaller `patch`, at most {min(shape)}."
        )
    if spec.crop is not None:
        return spec.crop
    before = _before(spec, lattice_origin)
    height, width = (
        -(-(size + pad) // spec.patch) * spec.patch for size, pad in zip(shape, before, strict=True)
    )
    return height, width


def windows(
    shape: tuple[int, int], spec: TileSpec, scene_id: str, lattice_origin: tuple[int, int] | None = None
) -> list[Window]:
    """Return the place the windows of a scene.

    ``scene``: one window of all pixels. ``tiles``: windows of ``spec.crop`` side by side until all pixels are
    covered, in raster order. ``cover``: the same, but the last ones are moved inside, so that they overlap
    the ones
    before and no patch reaches past the scene. ``center``: one in the middle. ``random``:
    ``spec.crops_per_scene``
    different ones, uniform over the offsets that keep them inside the scene (all of these if they are no
    more); they
    are a function of ``(spec.seed, scene_id)`` alone, so no worker, order or resume can change them, and
    asking for
    more keeps the first. ``list``: one at each of ``spec.offsets``. A scene smaller than the window in a
    direction has
    it at offset 0 there, padded; so has a listed window that reaches past the scene's end.

    Parameters
    ----------
    shape
        Height and width of the scene in pixels.
    spec
        How scenes become crops.
    scene_id
        A unique name of the scene, such as its path below the source root.
    lattice_origin
        Where the scene's pixel (0, 0) lies on a lattice that scenes share (see
        `gridrad_cube.geometry.lattice_origin`). Windows of
        ``scene`` and ``tiles`` then start at multiples of ``spec.patch`` on the lattice, up to one patch
        before
        the scene, so that the patches of overlapping scenes coincide. The others do not use it.

    Returns
    -------
    Windows in raster order; in the order of drawing or of the list for ``random`` and ``list``.

    Raises
    ------
    SchemaError
        If the scene is smaller than one patch, or a listed window lies outside of it.
    """
    height, width = crop_shape(shape, spec, lattice_origin)
    if spec.placement in ("scene", "tiles"):
        top, left = _before(spec, lattice_origin)
        return [
            Window(y, x, height, width)
            for y in range(-top, shape[0], height)
            for x in range(-left, shape[1], width)
        ]
    if spec.placement == "list":
        outside = [offset for offset in spec.offsets if offset[0] >= shape[0] or offset[1] >= shape[1]]
        if outside:
            raise SchemaError(
                f"{scene_id}: the windows at {outside} (y, x) lie outside of its {shape[0]} x {shape[1]} px; expected "
                "offsets inside every scene. Leave them out of the list."
            )
        return [Window(y, x, height, width) for y, x in spec.offsets]
    if spec.placement == "cover":
        starts = [[*range(0, n - e, e), max(n - e, 0)] for n, e in zip(shape, (height, width), strict=True)]
        return [Window(y, x, height, width) for y, x in itertools.product(*starts)]
    free_y, free_x = max(shape[0] - height, 0), max(shape[1] - width, 0)
    if spec.placement == "center":
        return [Window(free_y // 2, free_x // 2, height, width)]
    count = min(spec.crops_per_scene, (free_y + 1) * (free_x + 1))
    found: dict[Window, None] = {}
    for number in itertools.count():
        y, x = _draw(spec.seed, scene_id, number, (free_y + 1, free_x + 1))
        found[Window(y, x, height, width)] = None
        if len(found) == count:
            break
    return list(found)


def count_leftovers(shape: tuple[int, int], patch: int) -> tuple[int, int]:
    """Count the patches of placement ``scene`` that lie less than half inside a scene, and all patches.

    Parameters
    ----------
    shape
        Height and width of the scene in pixels.
    patch
        Edge of a patch in pixels.

    Returns
    -------
    Number of patches that lie less than half inside, and number of all patches.
    """
    parts = [np.minimum(n - np.arange(0, n, patch), patch) / patch for n in shape]
    share = np.multiply.outer(*parts)
    return int((share < 0.5).sum()), share.size


def suggest(shape: tuple[int, int], lattice_origin: tuple[int, int] | None = None) -> TileSpec:
    """Suggest how to cut scenes of a shape into crops of at least 4 x 4 patches, which level 2k needs.

    Patches are the largest of 256, 128, 64, 32 and 16 px for which there are such crops. Scenes stay whole if
    they
    share a lattice (`windows`), or if at most a tenth of their patches lies less than half in the scene.
    Otherwise
    overlapping windows cover the scene (``cover``): two in a direction that whole patches do not fill, so
    that there
    are hardly more patches than in a whole scene.

    Parameters
    ----------
    shape
        Height and width of the scene in pixels.
    lattice_origin
        As of `windows`.

    Returns
    -------
    The suggested spec.

    Raises
    ------
    SchemaError
        If the scene is smaller than 16 px.
    """
    fitting = [edge for edge in _EDGES if edge <= min(shape)]
    if not fitting:
        raise SchemaError(f"scene: got {shape[0]} x {shape[1]} px; expected at least {_EDGES[-1]} px")
    for patch in fitting:
        few, every = count_leftovers(shape, patch)
        count = [-(-n // patch) for n in shape]
        whole = lattice_origin is not None or few <= _FEW * every
        cells = (
            count
            if whole
            else [c if n % patch == 0 else -(-c // 2) for n, c in zip(shape, count, strict=True)]
        )
        if min(cells) >= _CELLS:
            break
    if whole:
        return TileSpec(patch=patch)
    return TileSpec(crop=(cells[0] * patch, cells[1] * patch), patch=patch, placement="cover")


def _draw(seed: int, scene_id: str, number: int, choices: tuple[int, int]) -> tuple[int, int]:
    """Return the offsets of the n-th random window of a scene, each uniform below its number of choices."""
    text, salt = f"{seed}\n{scene_id}".encode(), number.to_bytes(16, "little")
    digest = hashlib.blake2b(text, digest_size=32, person=salt).digest()
    draws = int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:], "little")
    # A 128-bit integer times the number of offsets, shifted: uniform but for one part in 2**100.
    return draws[0] * choices[0] >> 128, draws[1] * choices[1] >> 128


def cut(scene: xr.Dataset, window: Window, patch: int) -> xr.Dataset:
    """Cut a window out of a scene as a crop, padded where it reaches past the scene.

    Reads the window of each channel and no more (lazy scenes stay on disk otherwise). A channel whose window
    needs no padding and is contiguous in memory is returned as a view of the scene.

    Parameters
    ----------
    scene
        Channels of packed codes on ``(y, x)`` or ``(altitude, y, x)``; ``latitude`` and ``longitude`` on
        ``y`` and
        ``x``, or both on ``(y, x)``; scalar ``time``; optional scalar ``forecast_period`` and
        ``observation_time (y)``.
    window
        Whole patches high and wide.
    patch
        Edge of a patch in pixels.

    Returns
    -------
    The channels with exactly the window's shape, outside the scene filled with the packing's not-observed
    code; with coordinates on ``(row, col)``: ``latitude`` and ``longitude``, the mean position of the patch's
    pixels inside the scene (NaN where it has none); ``padding``, whether it has none; ``corner_latitude`` and
    ``corner_longitude (row, col, corner)``, its outermost pixels inside the scene. Further ``time``,
    ``forecast_period``, ``y_origin`` and ``x_origin`` (the window's place in the scene), ``observation_time
    (row)``,
    the mean of its lines, and the scene's attributes.

    Raises
    ------
    SchemaError
        If the window is not whole patches, or padding is needed and a packing has no code for it.
    """
    if window.height % patch or window.width % patch:
        raise SchemaError(
            f"window: got {window.height} x {window.width} px; expected whole patches of {patch} px. "
            "Take windows() of the same spec."
        )
    shape = scene.sizes["y"], scene.sizes["x"]
    rows = _blocks(window.y, window.height, patch, shape[0])
    cols = _blocks(window.x, window.width, patch, shape[1])
    channels = {
        str(name): _cut_channel(variable, window)
        for name, variable in scene.data_vars.items()
        if variable.dims[-2:] == ("y", "x")
    }
    coords = {**_positions(scene, rows, cols), "y_origin": ((), window.y), "x_origin": ((), window.x)}
    coords |= {n: scene[n].variable for n in ("time", "forecast_period", "altitude") if n in scene.coords}
    if "observation_time" in scene.coords:
        coords["observation_time"] = ("row", _mean_times(scene["observation_time"].values, rows))
    return xr.Dataset(channels, coords, attrs=dict(scene.attrs))


def assemble(blocks: np.ndarray) -> np.ndarray:
    """Assemble patches into one array.

    Parameters
    ----------
    blocks
        Shape (..., row, col, patch, patch).

    Returns
    -------
    Shape (..., row * patch, col * patch).
    """
    *lead, rows, cols, height, width = blocks.shape
    return blocks.swapaxes(-3, -2).reshape(*lead, rows * height, cols * width)


def _before(spec: TileSpec, origin: tuple[int, int] | None) -> tuple[int, int]:
    # Pixels of padding before the scene, so that windows start on the lattice of patches.
    if origin is None or spec.placement not in ("scene", "tiles"):
        return 0, 0
    return origin[0] % spec.patch, origin[1] % spec.patch


def _blocks(offset: int, length: int, patch: int, size: int) -> list[tuple[int, int]]:
    # Start and stop of each patch on one axis of the scene; start == stop where it lies outside.
    edges = np.clip(np.arange(offset, offset + length + 1, patch), 0, size)
    return list(itertools.pairwise(edges.tolist()))


def _cut_channel(variable: xr.DataArray, window: Window) -> tuple[tuple[str, ...], np.ndarray, dict]:
    height, width = variable.shape[-2:]
    ((y0, y1),) = _blocks(window.y, window.height, window.height, height)
    ((x0, x1),) = _blocks(window.x, window.width, window.width, width)
    dims = tuple(str(dim) for dim in variable.dims)
    inside = variable.variable[..., y0:y1, x0:x1].values
    if inside.shape[-2:] == (window.height, window.width):
        return dims, np.ascontiguousarray(inside), variable.attrs
    fill: float | None = np.nan
    if variable.dtype.kind != "f":
        fill = Packing.from_attributes(variable.attrs, variable.dtype).fill_value
    if fill is None:
        raise SchemaError(
            f"{variable.name}: the window needs padding but the packing has no code for a missing pixel, "
            f"got attributes {sorted(variable.attrs)}; expected _FillValue. "
            "Give the variable one, or take a crop that fits into the scene."
        )
    out = np.full((*variable.shape[:-2], window.height, window.width), fill, variable.dtype)
    out[..., y0 - window.y : y1 - window.y, x0 - window.x : x1 - window.x] = inside
    return dims, out, variable.attrs


def _positions(scene: xr.Dataset, rows: list[tuple[int, int]], cols: list[tuple[int, int]]) -> dict:
    latitude, longitude = (np.asarray(scene[name].values, np.float64) for name in ("latitude", "longitude"))
    center = np.full((2, len(rows), len(cols)), np.nan)
    corner = np.full((2, len(rows), len(cols), 4), np.nan)
    if latitude.ndim == 1:
        mean_latitude = [_mean_position(latitude[a:b], np.zeros(b - a))[0] for a, b in rows]
        mean_longitude = [_mean_position(np.zeros(b - a), longitude[a:b])[1] for a, b in cols]
    for r, (y0, y1) in enumerate(rows):
        for c, (x0, x1) in enumerate(cols):
            if y0 == y1 or x0 == x1:
                continue
            ys, xs = [y0, y0, y1 - 1, y1 - 1], [x0, x1 - 1, x0, x1 - 1]
            if latitude.ndim == 1:
                center[:, r, c] = mean_latitude[r], mean_longitude[c]
                corner[:, r, c] = latitude[ys], longitude[xs]
            else:
                center[:, r, c] = _mean_position(latitude[y0:y1, x0:x1], longitude[y0:y1, x0:x1])
                corner[:, r, c] = latitude[ys, xs], longitude[ys, xs]
    empty = [[y0 == y1 or x0 == x1 for x0, x1 in cols] for y0, y1 in rows]
    north, east = {"units": "degrees_north"}, {"units": "degrees_east"}
    return {
        "latitude": (("row", "col"), center[0], north | {"standard_name": "latitude"}),
        "longitude": (("row", "col"), center[1], east | {"standard_name": "longitude"}),
        "corner_latitude": (("row", "col", "corner"), corner[0], north),
        "corner_longitude": (("row", "col", "corner"), corner[1], east),
        "padding": (("row", "col"), np.array(empty)),
    }


def _mean_position(latitude: np.ndarray, longitude: np.ndarray) -> tuple[float, float]:
    # One patch at a time: a patch is narrow, a whole crop may go round the globe.
    if not latitude.size:
        return np.nan, np.nan
    low, high = longitude.min(), longitude.max()  # NaN where any is
    if high - low < 180.0 and not np.isnan(latitude.min()):
        return float(latitude.mean()), float(wrap_longitude(longitude.mean()))
    lat, lon = mean_position(latitude, longitude, axis=tuple(range(latitude.ndim)))
    return float(lat), float(lon)


def _mean_times(times: np.ndarray, rows: list[tuple[int, int]]) -> np.ndarray:
    out = np.full(len(rows), "NaT", "datetime64[s]")
    for r, (start, stop) in enumerate(rows):
        known = times[start:stop].astype("datetime64[s]")
        known = known[~np.isnat(known)]
        if known.size:
            out[r] = known[0] + np.timedelta64(round(float((known - known[0]).astype(np.int64).mean())), "s")
    return out
