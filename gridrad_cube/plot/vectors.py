"""Draw vectors of a network: embeddings as color, and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gridrad_cube.plot.canvas import (
    BOTTOM,
    LEFT,
    TOP,
    Field,
    add_axes,
    check_crop,
    color_bar,
    draw_crop,
    draw_field,
    draw_lattice,
    extend,
    map_size,
    mark_axis,
    new_figure,
    positions,
    select,
    stamp,
    title_of,
    turn,
    write_legend,
    write_title,
)
from gridrad_cube.readout import Readout, ReadoutChoice, saved_readout
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import Label, choose_labels, labels_of, reject_masks
from gridrad_cube.store import Orientation

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Color of cells without an embedding.
_NO_EMBEDDING = "#c9c9c9"
#: Largest number of vectors for the principal components.
_SAMPLE = 20_000
#: Inches: edge of the large panels and of the heads, room for degrees, for a color bar with its label.
_LARGE, _SMALL, _LEFT, _BAR, _TOP, _FOOT = 3.9, 1.8, 0.75, 1.15, 0.95, 0.25
#: Heads in a line.
_LINE = 6


def embeddings(
    embeddings: xr.Dataset,
    crop: int = 0,
    *,
    channel: int | str | None = None,
    cube: xr.Dataset | None = None,
    readout: ReadoutChoice = "auto",
) -> Figure:
    """Draw a crop's embeddings as color, one cell for each patch, beside the field that they were made from.

    Lightness is the first principal component of the channel's embeddings, blue to yellow the second, green
    to magenta the third. Patches of similar color have similar embeddings. Each component is stretched from
    its 2nd to its 98th percentile over the store.

    Parameters
    ----------
    embeddings
        From `gridrad_cube.open_embeddings`, level 256.
    crop
        Number of the crop.
    channel
        Label or position; the first if None.
    cube
        From `gridrad_cube.open_cube`, to draw the field; no field if None.
    readout
        Readout of the vectors: ``"auto"`` for the one that is saved with the store, if there is one; a
        `Readout`; or None.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If the store is of level 2k, has no such channel or crop, or no embedding of it is finite.
    """
    if "row" not in embeddings["embedding"].dims:
        raise SchemaError(
            "plot: got embeddings of whole crops; expected one a patch, of a store of level 256"
        )
    check_crop(embeddings, crop)
    known = labels_of(embeddings)
    label = choose_labels(known, channel, "plot")[0]
    of_channel = embeddings.isel(channel=known.index(label))
    used = readout if isinstance(readout, Readout | None) else saved_readout(of_channel)
    colors, shares = _colors(of_channel["embedding"], crop, label.name, used)
    one = of_channel.isel(crop=crop)
    width, height = map_size(one, 6.2, 6.2)
    across = LEFT + width + (0.5 if cube is None else 1.3 + width + 1.7)
    figure, _ = new_figure(by_hand=True, figsize=(max(across, 6.6), TOP + height + BOTTOM + 0.3))
    after = "" if used is None else " after the readout"
    text = f"{title_of(label.name)}; like colors: alike in the first three principal components{after}"
    write_title(figure, f"Embeddings of patches, {stamp(one['time'].values)}", text)
    axes, lattice = add_axes(figure, LEFT, TOP, width, height), one
    more: list[Artist] = []
    if cube is not None:
        field = select(cube, crop, label.name, one)
        image, more = draw_crop(add_axes(figure, LEFT + width + 1.3, TOP, width, height), field)
        bar = add_axes(figure, LEFT + 2 * width + 2.0, TOP, 0.2, height)
        color_bar(image, field.label, field.channel, cax=bar)
        # The cube knows where the scene ends; embeddings of overlapping patches have another lattice.
        lattice = field.one if field.one["latitude"].shape == one["latitude"].shape else one
    handles = _draw_cells(axes, colors, one, label)
    draw_lattice(axes, lattice, 1.0)
    said = ("lightness", "blue to yellow", "green to magenta")
    parts = [f"{w}: PC {i} ({100 * s:.0f} %)" for i, (w, s) in enumerate(zip(said, shares, strict=False), 1)]
    wide, tall = figure.get_size_inches()
    figure.text(LEFT / wide, 0.36 / tall, f"{', '.join(parts)} of the variance", fontsize=9)
    write_legend(figure, [*handles, *more])
    return figure


def _draw_cells(axes: Axes, colors: np.ndarray, one: xr.Dataset, label: Label) -> list[Artist]:
    """Draw the cells and cross out patches that training rejects; return handles for the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows, cols = colors.shape[:2]
    axes.set_facecolor(_NO_EMBEDDING)
    axes.imshow(colors, interpolation="nearest", extent=(0, cols, rows, 0))
    empty = colors[..., 3] == 0
    handles: list[Artist] = []
    if empty.any():
        handles.append(Patch(facecolor=_NO_EMBEDDING, edgecolor="0.5", linewidth=0.5, label="no embedding"))
    if "flags" in one:
        bits = one["flags"].transpose("row", "col").values
        cells = np.argwhere(((bits & reject_masks([label], None)[0]) != 0) & ~empty)
        style: dict[str, Any] = {
            "marker": "X", "markersize": 9, "color": "black", "markeredgecolor": "white", "linestyle": "none"
        }  # fmt: skip
        if len(cells):
            axes.plot(cells[:, 1] + 0.5, cells[:, 0] + 0.5, **style)
            handles.append(Line2D([], [], label="rejected in training", **style))
    return handles


def _colors(
    vectors: xr.DataArray, crop: int, label: str, readout: Readout | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors of a crop's cells (row, col, RGBA), and shares of the variance."""
    from sklearn.decomposition import PCA

    vectors = vectors.transpose("crop", "row", "col", "feature")
    step = max(1, -(-vectors[..., 0].size // _SAMPLE))
    sample = vectors.isel(crop=slice(None, None, step)).values.astype(np.float32)
    flat = sample.reshape(-1, sample.shape[-1])
    flat = flat if readout is None else readout.apply(flat)
    flat = flat[np.isfinite(flat).all(axis=1)]
    if not len(flat):
        raise SchemaError(f"plot: no embedding of {label} is finite, so there is nothing to draw")
    # The solver makes the largest weight of a component positive, so that pictures compare.
    pca = PCA(min(3, *flat.shape), svd_solver="covariance_eigh").fit(flat)
    low, high = np.percentile(pca.transform(flat), [2, 98], axis=0)
    mine = vectors.isel(crop=crop).values.astype(np.float32)
    mine = mine if readout is None else readout.apply(mine)
    known = np.asarray(np.isfinite(mine).all(axis=-1))
    part = np.zeros((*known.shape, 3))
    if known.any():
        scores = (pca.transform(mine[known]) - low) / np.maximum(high - low, 1e-9)
        part[known, : scores.shape[1]] = np.clip(scores, 0, 1)
    return np.concatenate([_lab_to_rgb(part), known[..., None]], axis=-1), pca.explained_variance_ratio_


def _lab_to_rgb(parts: np.ndarray) -> np.ndarray:
    """Return the colors of three numbers in [0, 1]: CIE lightness 20 to 92, blue to yellow, green to magenta.

    CIELAB under D65 to sRGB (IEC 61966-2-1), clipped to what a screen shows.
    """
    lightness, yellow, magenta = 20 + 72 * parts[..., 0], 100 * parts[..., 1] - 50, 80 * parts[..., 2] - 40
    y = (lightness + 16) / 116
    t = np.stack([y + magenta / 500, y, y - yellow / 200], axis=-1)
    xyz = np.where(t > 6 / 29, t**3, 3 * (6 / 29) ** 2 * (t - 4 / 29)) * [0.95047, 1.0, 1.08883]
    matrix = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = np.clip(xyz @ np.transpose(matrix), 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def attention(maps: xr.Dataset, sample: int = 0, *, cube: xr.Dataset | None = None) -> Figure:
    """Draw the attention of one sample: the field, the mean of the heads, and each head, on one scale.

    Attention is counted in parts of an even one: 1 where a token (or cell) gets as much as if all had the
    same.

    Parameters
    ----------
    maps
        From `gridrad_cube.embedding.attention`, or the store that ``gridrad-cube attention`` wrote.
    sample
        Number of the sample.
    cube
        From `gridrad_cube.open_cube`, to draw the field; no field if None.

    Returns
    -------
    The figure.

    Raises
    ------
    SchemaError
        If these are not attention maps, there is no such sample, or its attention is missing.
    """
    if "attention" not in maps or not {"sample", "head"} <= set(maps["attention"].dims):
        raise SchemaError("plot: these are not attention maps; expected what gridrad-cube attention wrote")
    if not 0 <= sample < maps.sizes["sample"]:
        raise SchemaError(f"plot: no sample {sample}; expected 0 to {maps.sizes['sample'] - 1}")
    one = maps.isel(sample=sample)
    heads = one["attention"].values.astype(np.float64)
    if not np.isfinite(heads).any():
        raise SchemaError(f"plot: the attention of sample {sample} is NaN; expected a sample with pixels")
    heads = heads / np.nansum(heads, axis=(1, 2), keepdims=True) * np.isfinite(heads[0]).sum()
    shape = (heads.shape[1], heads.shape[2])
    large, small = ([max(n * edge / max(shape), 0.6) for n in shape[::-1]] for edge in (_LARGE, _SMALL))
    lines = -(-len(heads) // _LINE)
    beside = 0.0 if cube is None else large[0] + _BAR + _LEFT
    across = max(_LEFT + beside + large[0] + _BAR, _LEFT + min(len(heads), _LINE) * (small[0] + 0.12) + 0.2)
    down = _TOP + large[1] + 0.75 + lines * (small[1] + 0.32) + _FOOT
    figure, _ = new_figure(by_hand=True, figsize=(across, down))
    label = str(one["channel"].values)
    which = ", ".join(f"{d} {int(one[d])}" for d in ("crop", "row", "col") if d in one.coords)
    title = f"Attention of the last block, {stamp(one['time'].values)}"
    write_title(figure, title, f"{title_of(label)}; {which}", left=_LEFT)
    crop = None if cube is None else cube.isel(crop=int(one["crop"]))
    if cube is not None:
        axes = add_axes(figure, _LEFT, _TOP, *large)
        field = select(cube, int(one["crop"]), label, one)
        image, handles = draw_field(
            axes, _window(field, one), field.channel, extent=(0, shape[1], shape[0], 0)
        )
        axes.set_aspect("auto")
        _mark_window(axes, field.title, one, crop, shape)
        bar = add_axes(figure, _LEFT + large[0] + 0.15, _TOP, 0.16, large[1])
        color_bar(image, field.label, field.channel, cax=bar)
        write_legend(figure, handles, left=_LEFT)
    look: dict[str, Any] = {
        "cmap": "cividis", "vmin": np.nanmin(heads), "vmax": np.nanmax(heads), "extent": (0, shape[1], shape[0], 0),
        "interpolation": "nearest", "aspect": "auto",
    }  # fmt: skip
    axes = add_axes(figure, _LEFT + beside, _TOP, *large)
    axes.set_facecolor("0.8")
    image = axes.imshow(np.nanmean(heads, axis=0), **look)
    _mark_window(axes, "mean of the heads", one, crop, shape)
    bar = add_axes(figure, _LEFT + beside + large[0] + 0.15, _TOP, 0.16, large[1])
    figure.colorbar(image, cax=bar, label="attention (1: as if even)")
    for i, head in enumerate(heads):
        left = _LEFT + (i % _LINE) * (small[0] + 0.12)
        top = _TOP + large[1] + 0.75 + (i // _LINE) * (small[1] + 0.32)
        small_axes = add_axes(figure, left, top, *small)
        small_axes.set(facecolor="0.8", xticks=[], yticks=[])
        small_axes.imshow(head, **look)
        small_axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        small_axes.set_title(f"head {i}", fontsize=8.5, loc="left", pad=3)
    return figure


def _window(field: Field, one: xr.Dataset) -> np.ndarray:
    """Return the pixels that a sample is made of."""
    window = {}
    for axis, dim in (("y", "row"), ("x", "col")):
        if dim in one.coords and one[dim].ndim == 0:
            size = field.one.sizes[axis] // field.one.sizes[dim]
            window[axis] = slice(int(one[dim]) * size, (int(one[dim]) + 1) * size)
    return field.values(window)


def _mark_window(
    axes: Axes, title: str, one: xr.Dataset, crop: xr.Dataset | None, shape: tuple[int, int]
) -> None:
    """Draw a title, and round degrees along the edges of a sample, north up, if its crop is known."""
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set(xticks=[], yticks=[])
    axes.tick_params(labelsize=8)
    if crop is None:
        return
    turn(axes, (0, shape[1], 0, shape[0]), Orientation.of_one(crop))
    latitude, longitude = positions(crop)
    for axis, values, letters, dim, count in (
        (axes.yaxis, latitude, "NS", "row", shape[0]), (axes.xaxis, longitude.T, "EW", "col", shape[1]),
    ):  # fmt: skip
        line = np.nanmean(values, axis=1)
        if dim in one.coords and one[dim].ndim == 0:  # positions of tokens from those of patches
            known = np.flatnonzero(np.isfinite(line))
            if len(known) < 2:
                continue
            line = extend(int(one[dim]) + (np.arange(count) + 0.5) / count - 0.5, known, line[known])
        mark_axis(axis, line, 1.0, letters, most=5)
