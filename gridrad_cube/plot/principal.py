"""Embeddings as colour: the first principal components of a store, a cell a patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    add_axes,
    colour_bar,
    new_figure,
    select,
    stamp,
    title_of,
    write_legend,
    write_title,
)
from gridrad_cube.plot.lattice import draw_lattice
from gridrad_cube.plot.likeness import field_label
from gridrad_cube.plot.scenes import BOTTOM, LEFT, TOP, draw_crop, map_size
from gridrad_cube.schema import CHANNELS, SchemaError, reject_mask

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Behind cells without an embedding.
_NO_EMBEDDING = "#c9c9c9"
#: Vectors that principal components are taken from at most.
_SAMPLE = 20_000


def components(
    embeddings: xr.Dataset, crop: int = 0, *, channel: int | str = 0, cube: xr.Dataset | None = None
) -> Figure:
    """Draw a crop's embeddings as colour, a cell a patch, beside the field that they were made from.

    Lightness is the first principal component of the channel's embeddings, blue to yellow the second, green to
    magenta the third: patches of one colour are alike. Each component is stretched from its 2nd to its 98th
    percentile over the store.

    Parameters
    ----------
    embeddings
        From `gridrad_cube.open_embeddings`, level 256.
    channel
        Position or label.
    cube
        From `gridrad_cube.open_cube`, to draw the field; no field if None.

    Raises
    ------
    SchemaError
        If the store is of level 2k, has no such channel or crop, or no embedding of it is finite.
    """
    colours, shares, label = _colours(embeddings, crop, channel)
    one = embeddings.isel(crop=crop, channel=_at(embeddings, channel))
    width, height = map_size(one, 6.2, 6.2)
    across = LEFT + width + (0.5 if cube is None else 1.3 + width + 1.7)
    figure, _ = new_figure(by_hand=True, figsize=(max(across, 6.6), TOP + height + BOTTOM + 0.3))
    name = title_of(label) if label.split("@")[0] in CHANNELS else label
    title = f"Embeddings of patches, {stamp(one['time'].values)}"
    write_title(
        figure, title, f"{name}; like colours: alike in the first three principal components", left=LEFT
    )
    axes, lattice = add_axes(figure, LEFT, TOP, width, height), one
    more: list[Artist] = []
    if cube is not None:
        field, drawn, level = select(cube, crop, field_label(cube, label, one), 0)
        beside = add_axes(figure, LEFT + width + 1.3, TOP, width, height)
        name, image, more = draw_crop(beside, field, drawn, level)
        colour_bar(image, name, channel=drawn, cax=add_axes(figure, LEFT + 2 * width + 2.0, TOP, 0.2, height))
        # The cube knows where the scene ends; embeddings of overlapping patches have a lattice of their own.
        lattice = field if field["latitude"].shape == one["latitude"].shape else one
    handles = _draw_cells(axes, colours, one, label)
    draw_lattice(axes, lattice, 1.0)
    said = ("lightness", "blue to yellow", "green to magenta")
    parts = [f"{w}: PC {i} ({100 * s:.0f} %)" for i, (w, s) in enumerate(zip(said, shares, strict=False), 1)]
    wide, tall = figure.get_size_inches()
    figure.text(LEFT / wide, 0.36 / tall, f"{', '.join(parts)} of the variance", fontsize=9)
    write_legend(figure, [*handles, *more], left=LEFT)
    return figure


def _draw_cells(axes: Axes, colours: np.ndarray, one: xr.Dataset, label: str) -> list[Artist]:
    """Draw the cells and cross out patches that training rejects; handles of what needs explaining."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows, cols = colours.shape[:2]
    axes.set_facecolor(_NO_EMBEDDING)
    axes.imshow(colours, interpolation="nearest", extent=(0, cols, rows, 0))
    empty = colours[..., 3] == 0
    handles: list[Artist] = []
    if empty.any():
        handles.append(Patch(facecolor=_NO_EMBEDDING, edgecolor="0.5", linewidth=0.5, label="no embedding"))
    if "flags" in one:
        kind = CHANNELS[label.split("@")[0]].kind if label.split("@")[0] in CHANNELS else "field"
        bits = one["flags"].transpose("row", "col").values
        cells = np.argwhere(((bits & reject_mask(None, kind)) != 0) & ~empty)
        if len(cells):
            style: dict[str, Any] = {
                "marker": "X",
                "markersize": 9,
                "color": "black",
                "markeredgecolor": "white",
            }
            axes.plot(cells[:, 1] + 0.5, cells[:, 0] + 0.5, linestyle="none", **style)
            handles.append(Line2D([], [], label="rejected in training", linestyle="none", **style))
    return handles


def _at(embeddings: xr.Dataset, channel: int | str) -> int:
    names = [str(n) for n in np.atleast_1d(embeddings["channel"].values)]
    if isinstance(channel, str):
        if channel not in names:
            raise SchemaError(f"plot: no channel {channel!r} in these embeddings; expected some of {names}")
        return names.index(channel)
    if not 0 <= channel < len(names):
        raise SchemaError(f"plot: no channel {channel}; expected 0 to {len(names) - 1}, or some of {names}")
    return channel


def _colours(embeddings: xr.Dataset, crop: int, channel: int | str) -> tuple[np.ndarray, np.ndarray, str]:
    """Colours of a crop's cells (row, col, RGBA), shares of the variance, and the channel's label."""
    if "row" not in embeddings["embedding"].dims:
        raise SchemaError(
            "plot: got embeddings of whole crops; expected one a patch, of a store of level 256"
        )
    if not 0 <= crop < embeddings.sizes["crop"]:
        raise SchemaError(f"plot: no crop, got {crop}; expected 0 to {embeddings.sizes['crop'] - 1}")
    at = _at(embeddings, channel)
    vectors = embeddings["embedding"].isel(channel=at).transpose("crop", "row", "col", "feature")
    per_crop = vectors.sizes["row"] * vectors.sizes["col"]
    step = max(1, -(-vectors.sizes["crop"] * per_crop // _SAMPLE))
    sample = vectors.isel(crop=slice(None, None, step)).values.astype(np.float32)
    flat = sample.reshape(-1, sample.shape[-1])
    flat = flat[np.isfinite(flat).all(axis=1)]
    label = str(embeddings["channel"].values[at])
    if not len(flat):
        raise SchemaError(f"plot: no embedding of {label} is finite; nothing to draw")
    mean = flat.mean(axis=0)
    weights, axes3 = np.linalg.eigh((flat - mean).T @ (flat - mean))
    axes3 = axes3[:, :-4:-1]
    # A component's sign is anybody's guess: make its largest weight positive, so that pictures compare.
    axes3 = axes3 * np.sign(axes3[np.abs(axes3).argmax(axis=0), np.arange(axes3.shape[1])])
    low, high = np.percentile((flat - mean) @ axes3, [2, 98], axis=0)
    mine = (vectors.isel(crop=crop).values.astype(np.float32) - mean) @ axes3
    part = np.clip((mine - low) / np.maximum(high - low, 1e-9), 0, 1)
    known = np.isfinite(part).all(axis=-1, keepdims=True)
    colours = np.concatenate([lab_to_rgb(np.nan_to_num(part)), known], axis=-1)
    return colours, weights[:-4:-1] / max(weights.sum(), 1e-30), label


def lab_to_rgb(parts: np.ndarray) -> np.ndarray:
    """Colours of three numbers in [0, 1]: CIE lightness 20 to 92, blue to yellow, green to magenta.

    CIELAB under D65 to sRGB (IEC 61966-2-1), clipped to what a screen shows.
    """
    lightness, yellow, magenta = 20 + 72 * parts[..., 0], 100 * parts[..., 1] - 50, 80 * parts[..., 2] - 40
    y = (lightness + 16) / 116
    t = np.stack([y + magenta / 500, y, y - yellow / 200], axis=-1)
    xyz = np.where(t > 6 / 29, t**3, 3 * (6 / 29) ** 2 * (t - 4 / 29)) * [0.95047, 1.0, 1.08883]
    matrix = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = np.clip(xyz @ np.transpose(matrix), 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
