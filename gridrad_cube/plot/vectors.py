"""Draw vectors of a network: embeddings as color, and attention."""

from __future__ import annotations

from dataclasses import dataclass
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
    draw_padding,
    extend,
    finish_axes,
    inside,
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
from gridrad_cube.schema import ATTRIBUTE, SchemaError, read_attribute
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
    ax: Axes | None = None,
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
    ax
        Axes to draw the embeddings into, without the field; a new figure if None.

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
    patch, step = _patch_and_stride(embeddings)
    after = "" if used is None else " after the readout"
    title = f"Embeddings of patches, {stamp(one['time'].values)}"
    if ax is not None:
        handles = _draw_cells(ax, colors, one, label, patch, step)
        _draw_lattice(ax, one, patch, step)
        return finish_axes(ax, title, handles)
    width, height = map_size(one, 6.2, 6.2)
    across = LEFT + width + (0.5 if cube is None else 1.3 + width + 1.7)
    figure, _ = new_figure(by_hand=True, figsize=(max(across, 6.6), TOP + height + BOTTOM + 0.3))
    text = f"{title_of(label.name)}; colors: principal components{after}"
    write_title(figure, title, text)
    axes = add_axes(figure, LEFT, TOP, width, height)
    handles = _draw_cells(axes, colors, one, label, patch, step)
    if cube is None:
        _draw_lattice(axes, one, patch, step)
    else:
        field = select(cube, crop, label.name, one)
        # The cube knows where the scene ends; so both panels have its axes and its padding.
        overlapping = step if step != patch else 0.0
        image, more = draw_crop(add_axes(figure, LEFT + width + 1.3, TOP, width, height), field, overlapping)
        bar = add_axes(figure, LEFT + 2 * width + 2.0, TOP, 0.2, height)
        color_bar(image, field.label, field.channel, cax=bar)
        edge = field.one.sizes["y"] / field.one.sizes["row"]
        draw_lattice(axes, field.one, edge, step=overlapping)
        (top, bottom), (left, right) = (tuple(round(n * edge) for n in ends) for ends in inside(field.one))
        draw_padding(axes, (0, field.one.sizes["x"], 0, field.one.sizes["y"]), (left, right, top, bottom))
        handles += more
    said = ("lightness", "blue to yellow", "green to magenta")
    parts = [f"{w}: PC {i} ({100 * s:.0f} %)" for i, (w, s) in enumerate(zip(said, shares, strict=False), 1)]
    wide, tall = figure.get_size_inches()
    figure.text(LEFT / wide, 0.36 / tall, f"{', '.join(parts)} of the variance", fontsize=9)
    write_legend(figure, handles)
    return figure


def _patch_and_stride(embeddings: xr.Dataset) -> tuple[int, int]:
    """Return the edge of a patch, and the distance of patches, in pixels."""
    info = read_attribute(embeddings.attrs, "plot") if ATTRIBUTE in embeddings.attrs else {}
    patch = int(info.get("patch", 1))
    return patch, int(info.get("stride") or patch)


def _draw_lattice(axes: Axes, one: xr.Dataset, patch: int, step: int) -> None:
    """Draw the lattice of a crop's embeddings alone, on the axes of its pixels."""
    draw_lattice(axes, one, step, offset=(patch - step) / 2)


def _draw_cells(
    axes: Axes, colors: np.ndarray, one: xr.Dataset, label: Label, patch: int, step: int
) -> list[Artist]:
    """Draw the cells and cross out patches that training rejects; return handles for the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows, cols = colors.shape[:2]
    axes.set_facecolor(_NO_EMBEDDING)
    first = (patch - step) / 2  # cells are as far apart as patches, and lie about their centers
    extent = (first, first + cols * step, first + rows * step, first)
    axes.imshow(colors, interpolation="nearest", extent=extent)
    empty = colors[..., 3] == 0
    handles: list[Artist] = []
    if empty.any() or step != patch:
        handles.append(Patch(facecolor=_NO_EMBEDDING, edgecolor="0.5", linewidth=0.5, label="no embedding"))
    if "flags" in one:
        bits = one["flags"].transpose("row", "col").values
        cells = np.argwhere(((bits & reject_masks([label], None)[0]) != 0) & ~empty)
        style: dict[str, Any] = {
            "marker": "X", "markersize": 9, "color": "black", "markeredgecolor": "white", "linestyle": "none"
        }  # fmt: skip
        if len(cells):
            axes.plot(first + (cells[:, 1] + 0.5) * step, first + (cells[:, 0] + 0.5) * step, **style)
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
    crop = None if cube is None else cube.isel(crop=int(one["crop"]))
    frame = _frame(one, crop, (heads.shape[1], heads.shape[2]))
    shape = frame.shown[1] - frame.shown[0], frame.shown[3] - frame.shown[2]
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
    if cube is not None:
        axes = add_axes(figure, _LEFT, _TOP, *large)
        field = select(cube, int(one["crop"]), label, one)
        pixels = _window(field, one)
        image, handles = draw_field(axes, pixels, field.channel, inside=frame.pixels)
        axes.set_aspect("auto")
        _mark_window(axes, field.title, one, crop, frame)
        bar = add_axes(figure, _LEFT + large[0] + 0.15, _TOP, 0.16, large[1])
        color_bar(image, field.label, field.channel, cax=bar)
        write_legend(figure, handles, left=_LEFT)
    look: dict[str, Any] = {
        "cmap": "cividis", "vmin": np.nanmin(heads), "vmax": np.nanmax(heads), "extent": frame.extent,
        "interpolation": "nearest", "aspect": "auto",
    }  # fmt: skip
    axes = add_axes(figure, _LEFT + beside, _TOP, *large)
    axes.set_facecolor("0.8")
    image = axes.imshow(np.nanmean(heads, axis=0), **look)
    _mark_window(axes, "mean of the heads", one, crop, frame)
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


@dataclass(frozen=True)
class _Frame:
    """The axes of a sample of attention, in pixels: ``extent`` of the map as of imshow, and what is ``shown`` of it
    (top, bottom, left, right), which is the scene without padding.
    """

    extent: tuple[float, float, float, float]
    shown: tuple[float, float, float, float]

    @property
    def pixels(self) -> tuple[slice, slice]:
        """The pixels that are shown."""
        top, bottom, left, right = (round(n) for n in self.shown)
        return slice(top, bottom), slice(left, right)


def _frame(one: xr.Dataset, crop: xr.Dataset | None, shape: tuple[int, int]) -> _Frame:
    """Return the axes of one sample with a map of some rows and columns; a unit is a token without a cube."""
    if crop is None:
        return _Frame((0, shape[1], shape[0], 0), (0, shape[0], 0, shape[1]))
    sizes = [crop.sizes[a] for a in "yx"]
    patch = sizes[0] // crop.sizes["row"]
    ends = [[n * patch for n in pair] for pair in inside(crop)]
    if "row" in one.coords and one["row"].ndim == 0:  # tokens fill a patch
        firsts = [int(one[d]) * patch for d in ("row", "col")]
        shown = [(max(a - f, 0), min(b - f, patch)) for f, (a, b) in zip(firsts, ends, strict=True)]
        return _Frame((0, patch, patch, 0), (*shown[0], *shown[1]))
    # Cells of a grid of embeddings lie about the centers of their patches, which may overlap.
    steps = [(n - patch) / (count - 1) if count > 1 else patch for n, count in zip(sizes, shape, strict=True)]
    (top, bottom), (left, right) = (
        ((patch - step) / 2, (patch - step) / 2 + count * step)
        for step, count in zip(steps, shape, strict=True)
    )
    return _Frame((left, right, bottom, top), (ends[0][0], ends[0][1], ends[1][0], ends[1][1]))


def _mark_window(axes: Axes, title: str, one: xr.Dataset, crop: xr.Dataset | None, frame: _Frame) -> None:
    """Add a title. If the crop is known, turn the axes north up and add round degrees along the edges."""
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set(xticks=[], yticks=[])
    axes.tick_params(labelsize=8)
    top, bottom, left, right = frame.shown
    axes.set(xlim=(left, right), ylim=(bottom, top))
    if crop is None:
        return
    turn(axes, (left, right, top, bottom), Orientation.of_one(crop))
    latitude, longitude = positions(crop)
    for axis, values, letters, dim, (low, high) in (
        (axes.yaxis, latitude, "NS", "row", (top, bottom)), (axes.xaxis, longitude.T, "EW", "col", (left, right)),
    ):  # fmt: skip
        line = np.nanmean(values, axis=1)
        known = np.flatnonzero(np.isfinite(line))
        if len(known) < 2:
            continue
        patch = crop.sizes["y"] // crop.sizes["row"]
        first = int(one[dim]) if dim in one.coords and one[dim].ndim == 0 else 0
        # Positions of pixels, from those of the centers of patches.
        centers = np.arange(round(low), round(high)) + 0.5
        degree = extend(first + centers / patch - 0.5, known.astype(float), line[known])
        mark_axis(axis, degree, 1.0, letters, most=5, offset=round(low))
