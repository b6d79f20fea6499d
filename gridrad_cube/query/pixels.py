"""Read pixels of a cube: crops and patches with exact positions, the flat view of patches, masked radar
states.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core import indexing

from gridrad_cube.geometry import wrap_longitude
from gridrad_cube.query.samples import (
    Lazy,
    Windows,
    check_pixels,
    collect,
    is_embeddings,
    names_along,
    patch_and_stride,
    position_of,
    select,
    writable,
)
from gridrad_cube.schema import ATTRIBUTE, CHANNELS, Packing, SchemaError
from gridrad_cube.selection import Reject, choose_labels, labels_of
from gridrad_cube.store import open_cube, open_grid, open_packed, source_path, store_info


def crop(dataset: xr.Dataset, number: int) -> xr.Dataset:
    """Return one crop of a cube with the exact position of every pixel.

    Parameters
    ----------
    dataset
        A cube of patches.
    number
        Number of the crop: its row in the store.

    Returns
    -------
    Channels on ``([altitude,] y, x)``, lazy, with ``latitude`` and ``longitude`` of pixels
    on ``y`` and ``x`` or on ``(y, x)`` as in the source, and ``scene_y``, ``scene_x``, their row and column
    there.
    Padding is left out. Latitude and longitude of a regular grid are indexes, so that
    ``sel(latitude=..., longitude=..., method="nearest")`` works. Across the date line longitudes continue beyond 180.
    Positions of patch centers become ``patch_latitude``, ``patch_longitude``.

    Raises
    ------
    SchemaError
        If there is no such crop, or the dataset does not know its store.
    """
    _require_cube(dataset)
    one = dataset.isel(crop=position_of(dataset, "crop", number))
    return _with_positions(one, dataset, (0, 0)).assign_coords(crop=int(number))


def patch(dataset: xr.Dataset, number: int, row: int, col: int) -> xr.Dataset:
    """Return one patch of a cube with the exact position of every pixel.

    Parameters
    ----------
    dataset
        A cube of patches.
    number
        Number of the crop.
    row, col
        Row and column of the patch in the crop.

    Returns
    -------
    As of `crop`.

    Raises
    ------
    SchemaError
        As of `crop`, or if there is no such patch.
    """
    _require_cube(dataset)
    i, r, c = (position_of(dataset, d, n) for d, n in (("crop", number), ("row", row), ("col", col)))
    size, _ = patch_and_stride(dataset)
    one = dataset.isel(
        crop=i, row=r, col=c, y=slice(r * size, (r + 1) * size), x=slice(c * size, (c + 1) * size)
    )
    return _with_positions(one, dataset, (r * size, c * size)).assign_coords(
        crop=int(number), row=int(row), col=int(col)
    )


def _require_cube(dataset: xr.Dataset) -> None:
    if is_embeddings(dataset):
        raise SchemaError(".gridrad: embeddings have no pixels. Open the cube they came from with open_cube.")
    needed = {"latitude", "longitude", "grid", "y_origin", "x_origin"} - set(dataset.variables)
    if needed or "row" not in dataset.dims:
        raise SchemaError(
            f".gridrad: the selection has lost {sorted(needed | ({'row'} - set(dataset.dims)))}. Take patches of the "
            "whole cube, and variables of the answer."
        )
    check_pixels(dataset)


def _with_positions(one: xr.Dataset, dataset: xr.Dataset, offset: tuple[int, int]) -> xr.Dataset:
    source, name = dataset.encoding.get("source"), str(one["grid"].values)
    if not source:
        raise SchemaError(
            ".gridrad: the dataset does not know its store (no encoding['source']). Use open_cube."
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SchemaError(f"{source}: {name!r} is not the name of a grid")
    try:
        grid = open_grid(source, name)
    except (FileNotFoundError, KeyError) as error:
        raise SchemaError(f"{source}: no grid {name!r} under grids/. Run gridrad-cube verify.") from error
    where = {
        f"scene_{a}": int(one[f"{a}_origin"]) + o + np.arange(one.sizes[a])
        for a, o in zip("yx", offset, strict=True)
    }
    # Leave padding out: pixels outside the scene, and rows and columns of patches without a pixel in it.
    inside = {name: (values >= 0) & (values < grid.sizes[name]) for name, values in where.items()}
    for (name, keep), cell in zip(inside.items(), ("row", "col"), strict=True):
        if not keep.any():
            raise SchemaError(
                f"{source}: the whole patch is padding, outside the scene {one['scene'].values}"
            )
        (pixels,) = np.nonzero(keep)
        one = one.isel({name[-1]: slice(int(pixels[0]), int(pixels[-1]) + 1)})
        if cell in one.dims:
            one = one.isel({cell: keep.reshape(one.sizes[cell], -1).any(axis=1)})
    where = {name: values[inside[name]] for name, values in where.items()}
    places = grid[["latitude", "longitude"]].isel({n: slice(v[0], v[-1] + 1) for n, v in where.items()})
    # Continuous, so that a crop across the date line can be drawn and searched: there longitudes exceed 180.
    longitude = wrap_longitude(places["longitude"].values)
    places["longitude"] = places["longitude"].copy(data=_continuous(longitude))
    out = one.rename(latitude="patch_latitude", longitude="patch_longitude")
    for place in places.data_vars.values():
        dims = [str(d).removeprefix("scene_") for d in place.dims]
        out = out.assign_coords({place.name: (dims, place.values, place.attrs)})
    out = out.assign_coords({name: (name[-1], values, {"units": "1"}) for name, values in where.items()})
    out = writable(out)
    for name in ("latitude", "longitude"):
        if out[name].ndim == 1:  # so that sel(latitude=..., longitude=..., method="nearest") works
            out = out.set_xindex(name)
    return out


def _continuous(longitude: np.ndarray) -> np.ndarray:
    """Return the longitudes of a crop without a jump at the date line: there the eastern part exceeds 180 degrees."""
    known = np.isfinite(longitude)
    east, west = longitude[known & (longitude >= 0)], longitude[known & (longitude < 0)]
    # The gap between the halves lies at the date line, or at the meridian of Greenwich.
    if not (east.size and west.size) or east.min() - west.max() < (west.min() + 360) - east.max():
        return longitude
    return np.where(longitude < 0, longitude + 360, longitude)


def patches(dataset: xr.Dataset, *, channel: Any = None, reject: Reject = None) -> xr.Dataset:
    """Return every patch of a cube on one dim: the flat lazy view ``(patch, [altitude,] y, x)``.

    Patches of padding and of crops that were not written are left out. Pixels are read on access, one patch
    at a time, so select first.

    Parameters
    ----------
    dataset
        A cube of patches.
    channel
        Names of channels, or labels such as ``"reflectivity@3.0km"``; None for all. A patch is selected if
        one of them has no rejecting flag, with all altitudes of the channel.
    reject
        Flags that exclude a patch; ``()`` for none, None for the default of each channel.

    Returns
    -------
    Channels, flags and statistics on ``patch``, with the coordinates of `within`.
    """
    _require_cube(dataset)
    mask = select(dataset, channel=channel, reject=reject)
    index = dict(zip(("crop", "row", "col"), np.nonzero(mask), strict=True))
    if channel is not None:
        known = labels_of(dataset)
        keep = {label.variable for label in choose_labels(known, channel, "patches")}
        owners = [label.variable for label in known]
        gone = [n for n in dataset.data_vars if _owner(str(n), owners) not in keep]
        dataset = dataset.drop_vars(gone)
    return collect(dataset, index, "patch")


def pixels(
    dataset: xr.Dataset, cube: xr.Dataset | str | os.PathLike[str] | None = None, *, channel: Any = None
) -> xr.Dataset:
    """Return the pixels of the samples of an answer, from the cube that was embedded.

    Parameters
    ----------
    dataset
        An answer of `search`, `within`, `track`, `follow` or `at` (with a place) on a store of embeddings.
    cube
        The cube as a dataset or its path; None takes the one that the embeddings were made from.
    channel
        Names of channels, or labels, which stand for all altitudes of their channel; None for all.

    Returns
    -------
    Channels of the cube on ``(..., [altitude,] y, x)`` instead of the variables of the answer, with its
    coordinates. For a store of level 2k these are whole crops. Lazy.

    Raises
    ------
    SchemaError
        If this is not an answer, or the cube is missing or not the one that was embedded.
    """
    needed = ["crop", "scene", "y_start", "y_stop", "x_start", "x_stop"]
    if not set(needed) <= set(dataset.variables):
        raise SchemaError("pixels: expected an answer of search, within, track, follow or at (with a place)")
    if dataset["y_start"].ndim > 1:
        raise SchemaError("pixels: the answer is of several queries. Take one: answer.isel(query=0).")
    opened = cube if isinstance(cube, xr.Dataset) else _open_source(dataset, cube)
    single = dataset["y_start"].ndim == 0
    answer = dataset.reset_coords()[needed]
    answer = answer.expand_dims("sample") if single else answer
    (dim,) = answer["y_start"].dims
    first = answer.isel({dim: 0})
    height, width = (int(first[f"{a}_stop"] - first[f"{a}_start"]) for a in "yx")
    rows = _rows_of(answer, opened)
    y, x = (answer[f"{a}_start"].values - opened[f"{a}_origin"].values[rows].astype(np.int64) for a in "yx")
    known = labels_of(opened)
    chosen = known if channel is None else choose_labels(known, channel, "pixels")
    pictures = {}
    for name in dict.fromkeys(label.variable for label in chosen):
        variable = opened[name].variable
        lazy = Windows(variable, rows, y, x, (height, width))
        data = indexing.LazilyIndexedArray(lazy)
        pictures[name] = xr.Variable((dim, *lazy.dims), data, variable.attrs)
    found = xr.Dataset(pictures)
    if "altitude" in found.dims:
        found = found.assign_coords(altitude=opened["altitude"])
    found = found.isel(sample=0) if single else found
    return dataset.drop_vars(list(dataset.data_vars)).merge(found, compat="override")


def _open_source(answer: xr.Dataset, cube: str | os.PathLike[str] | None) -> xr.Dataset:
    """Return the cube at a path, or the one that the answer's store names, relative to itself."""
    if cube is None:
        name = answer.attrs.get("cube") or (answer.attrs.get(ATTRIBUTE) and store_info(answer).get("source"))
        store = answer.attrs.get("store") or answer.encoding.get("source") or ""
        if not name:
            raise SchemaError("pixels: the answer does not say which cube it comes from. Pass cube=PATH.")
        cube = source_path(store, name)
    try:
        return open_cube(cube)
    except FileNotFoundError as error:
        raise SchemaError(
            f"pixels: no cube at {os.fspath(cube)}. If it has moved, pass its path: .gridrad.pixels(cube=PATH)."
        ) from error


def _rows_of(answer: xr.Dataset, cube: xr.Dataset) -> np.ndarray:
    """Return the positions in a cube of the crops of an answer's samples, checked to be those."""
    if is_embeddings(cube):
        raise SchemaError("pixels: got a store of embeddings as cube=; expected the cube they were made from")
    names, crop = names_along(cube, "crop"), np.broadcast_to(answer["crop"].values, answer["y_start"].shape)
    rows = pd.Index(names).get_indexer(crop)
    if (rows < 0).any():
        raise SchemaError(
            f"pixels: the cube has crops {names[0]} to {names[-1]}, not all that the answer names. Pass the whole cube."
        )
    scenes = np.broadcast_to(answer["scene"].values, crop.shape)
    for i in np.flatnonzero(cube["scene"].values[rows] != scenes)[:1]:
        raise SchemaError(
            f"pixels: this is not the cube that was embedded: its crop {crop[i]} is of scene "
            f"{cube['scene'].values[rows[i]]}, in the answer of {scenes[i]}. Pass cube= with the right one."
        )
    return np.asarray(rows)


def _owner(variable: str, fields: list[str]) -> str:
    """Return the field of a variable of a cube: the longest field name that the variable's name starts with."""
    owners = [n for n in (*CHANNELS, *fields) if variable == n or variable.startswith(f"{n}_")]
    return max(owners, key=len, default=variable)


def reflectivity(
    dataset: xr.Dataset,
    *,
    no_echo: float = np.nan,
    low_confidence: float = np.nan,
    channel: str | None = None,
) -> xr.DataArray:
    """Return radar values with numbers in place of the states without echo. Lazy.

    Parameters
    ----------
    dataset
        A cube of patches.
    no_echo
        Value for bins that were observed without echo: NaN, or a number such as 0 or -30 dBZ.
    low_confidence
        Value for bins whose echo quality control removed (low confidence, clutter, speckle).
    channel
        A channel with echoes; None takes ``reflectivity``, or else ``reflectivity_column_maximum``.

    Returns
    -------
    float32; NaN where nothing was observed.

    Raises
    ------
    SchemaError
        If the cube has no such channel.
    """
    names = [n for n in CHANNELS if n in dataset.data_vars and CHANNELS[n].has_echo]
    asked = channel or next((n for n in ("reflectivity", "reflectivity_column_maximum") if n in names), None)
    if asked not in names:
        raise SchemaError(
            f"reflectivity: the dataset has no {asked or 'radar channel'}; expected some of {names}"
        )
    variable = dataset[asked].variable
    packing = _packing(dataset, asked)
    replaced = {"no_echo": no_echo, "low_confidence": low_confidence, "clutter": low_confidence}
    states = _States(variable, packing, {getattr(packing, state): value for state, value in replaced.items()})
    attributes = {k: v for k, v in variable.attrs.items() if k not in packing.to_attributes()}
    attributes["comment"] = f"without echo: {no_echo}; removed by quality control: {low_confidence}"
    out = xr.Variable(variable.dims, indexing.LazilyIndexedArray(states), attributes)
    return dataset.assign({asked: out})[asked]


def _packing(dataset: xr.Dataset, name: str) -> Packing:
    """Return the packing of a channel, from the attributes of the variable or else of the store."""
    attributes = dict(dataset[name].attrs)
    if "echo_minimum_code" not in attributes and dataset.encoding.get("source"):
        attributes = dict(open_packed(dataset.encoding["source"])[name].attrs)
    if "echo_minimum_code" not in attributes:
        return CHANNELS[name].packing
    for key in ("scale_factor", "add_offset", "_FillValue"):  # xarray's own decoding moves them to encoding
        if key in dataset[name].encoding:
            attributes.setdefault(key, dataset[name].encoding[key])
    return Packing.from_attributes(attributes, CHANNELS[name].packing.dtype)


class _States(Lazy):
    """A radar variable, decoded, with the codes that are no echo replaced by values."""

    def __init__(self, variable: xr.Variable, packing: Packing, values: Mapping[float | None, float]) -> None:
        self.variable, self.packing, self.values = variable, packing, values
        self.shape, self.dtype = variable.shape, np.dtype(np.float32)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        codes = self.variable[key].values
        if codes.dtype.kind in "iu":
            out = self.packing.decode(codes)
        else:  # already decoded; its codes are used only below the first echo
            out = codes.astype(np.float32)
            codes = np.rint((codes.astype(np.float64) - self.packing.add_offset) / self.packing.scale_factor)
        for code, value in self.values.items():
            if code is not None:
                out[codes == code] = value
        return out
