"""The samples of an evaluation: which there are, what came after, and all that is known of them, in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from gridrad_cube.evaluation.pixels import Windows, look
from gridrad_cube.query.likeness import Rows
from gridrad_cube.query.nearby import Places
from gridrad_cube.query.samples import (
    cell_dims,
    collect,
    labels,
    patch_and_stride,
    sample_dims,
    seconds_of,
    store_info,
)
from gridrad_cube.query.selection import channel_positions, select
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import solar_hour_of
from gridrad_cube.store import open_embeddings, open_packed
from gridrad_cube.store import store_info as read_store_info

#: Names that the result has for what is no store.
_TAKEN = {"moments", "histogram", "picture", "mean of patches", "persistence", "mean", "chance"}


@dataclass(frozen=True)
class Stores:
    """What is evaluated: stores of embeddings of one cube, sample for sample, and the cube.

    Attributes
    ----------
    datasets
        By the names that the result gives them.
    channel
        Position of the channel along ``channel``.
    label
        Its label.
    members
        Labels of the cube's channels that it is made of.
    patches
        At level 2k: the level-256 store that the first one was made from.
    mask
        Samples of this channel that are clean, on the sample dims of the stores.
    """

    datasets: dict[str, xr.Dataset]
    channel: int
    label: str
    members: tuple[str, ...]
    cube: xr.Dataset
    patches: xr.Dataset | None
    mask: np.ndarray

    @property
    def first(self) -> xr.Dataset:
        """The store that says where samples are."""
        return next(iter(self.datasets.values()))


def open_stores(
    stores: Sequence[str | os.PathLike[str]],
    cube: str | os.PathLike[str] | None = None,
    patches: str | os.PathLike[str] | None = None,
    channel: str | None = None,
) -> Stores:
    """Open stores of embeddings and, by the first one's record of its source, the cube.

    Raises
    ------
    SchemaError
        If the stores are not of the same samples, the channel is in none, or the cube is not where the store
        says, or is another.
    """
    paths = [os.fspath(s) for s in stores]
    datasets = dict(zip(_names(paths), map(open_embeddings, paths), strict=True))
    first = next(iter(datasets.values()))
    for path, dataset in zip(paths, datasets.values(), strict=True):
        _check_alike(path, dataset, first)
    names = [str(n) for n in np.atleast_1d(labels(first, "channel"))]
    at = 0 if channel is None else int(channel_positions(first, channel)[0])
    members = _members(first, [names[at]])
    place, below = sources_of(paths[0], cube, patches)
    between = None
    if below is not None:
        between = open_embeddings(below)
        _check_scenes(paths[0], first, between, "--patches")
        members = _members(between, members)
    opened = open_packed(place)
    _check_scenes(paths[0], first, opened, "--cube")
    lacking = [m for m in members if m.split("@")[0] not in opened.data_vars]
    if lacking:
        raise SchemaError(f"evaluate: the cube {opened.encoding['source']} lacks {lacking} of {paths[0]}")
    mask = select(first, channel=names[at])
    return Stores(datasets, at, names[at], tuple(members), opened, between, mask)


def _names(paths: Sequence[str]) -> list[str]:
    """Short names that tell paths apart."""
    if len(paths) == 1:
        return ["embedding"]
    if len(set(paths)) < len(paths):
        raise SchemaError(f"evaluate: got {list(paths)}; expected each store once")
    short = [os.path.basename(p.rstrip("/")).removesuffix(".zarr") for p in paths]
    plain = len(set(short)) == len(short) and not set(short) & _TAKEN
    return short if plain else list(paths)


def _check_alike(path: str, dataset: xr.Dataset, first: xr.Dataset) -> None:
    dims = sample_dims(first)
    if sample_dims(dataset) != dims or any(dataset.sizes[d] != first.sizes[d] for d in dims):
        raise SchemaError(
            f"evaluate: {path} has samples {_sizes(dataset)}, the first store {_sizes(first)}; expected stores of the "
            "same samples (the same cube, channels and stride)"
        )
    if [str(n) for n in labels(dataset, "channel")] != [str(n) for n in labels(first, "channel")]:
        raise SchemaError(f"evaluate: {path} has other channels than the first store")
    if not np.array_equal(dataset["scene"].values, first["scene"].values):
        raise SchemaError(f"evaluate: {path} was not made from the cube of the first store: other scenes")


def _sizes(dataset: xr.Dataset) -> str:
    return " x ".join(f"{dataset.sizes[d]} {d}" for d in sample_dims(dataset))


def _members(dataset: xr.Dataset, names: Sequence[str]) -> list[str]:
    """Labels of what channels are made of, as the store says."""
    made = store_info(dataset).get("channels") or {}
    return [m for n in names for m in made.get(n) or [n]]


def sources_of(
    path: str, cube: str | os.PathLike[str] | None = None, patches: str | os.PathLike[str] | None = None
) -> tuple[str, str | None]:
    """Where the cube of a store of embeddings is and, at level 2k, the level-256 store between them.

    Parameters
    ----------
    path
        Of the store of embeddings.
    cube, patches
        Where they are, if they have moved; None for where the store says.

    Raises
    ------
    SchemaError
        If one of them is not there, or the store does not say where.
    """
    between = None
    if not cell_dims(open_embeddings(path)):
        path = between = _source(path, patches, "embeddings", "--patches")
    return _source(path, cube, "patches", "--cube"), between


def _source(path: str, given: str | os.PathLike[str] | None, kind: str, flag: str) -> str:
    """What a store was made from: as given, or as it says, relative to itself."""
    name = given or read_store_info(path).get("source")
    if not name:
        raise SchemaError(f"evaluate: {path} does not say what it was made from. Pass {flag} PATH.")
    place = os.fspath(name)
    if given is None and "://" not in path and "://" not in place:
        place = os.path.normpath(os.path.join(os.path.dirname(path), place))
    try:
        read_store_info(place, kind)
    except FileNotFoundError as error:
        what = "cube" if kind == "patches" else "level-256 embeddings"
        raise SchemaError(
            f"evaluate: no {what} at {place}, which {path} was made from; moved? Pass {flag} PATH."
        ) from error
    return place


def _check_scenes(path: str, dataset: xr.Dataset, other: xr.Dataset, flag: str) -> None:
    """Refuse a source whose crops and patches are not those of the store."""
    count = dataset.sizes["crop"]
    same = other.sizes["crop"] >= count and patch_and_stride(other)[0] == patch_and_stride(dataset)[0]
    for name in ("scene", "y_origin", "x_origin"):
        same = same and np.array_equal(other[name].values[:count], dataset[name].values)
    if not same:
        raise SchemaError(
            f"evaluate: {other.encoding.get('source')} is not what {path} was made from: its crops are of other "
            f"scenes or windows. Pass {flag} with the right one."
        )


@dataclass(frozen=True)
class Gathered:
    """All that is known of some samples, each on the first axis.

    Attributes
    ----------
    rows
        Their numbers in the store (flat over its sample dims), ascending.
    vectors
        By the name of what they are: stores of embeddings, then the baselines' raw material.
    attributes
        By name, float64, NaN where not known.
    """

    rows: np.ndarray
    time: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    vectors: dict[str, np.ndarray]
    attributes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def solar_hour(self) -> np.ndarray:
        """Local mean solar time, hours."""
        return solar_hour_of(self.time, self.longitude)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Positions of rows among these; -1 for one that is not there."""
        if not len(self.rows):
            return np.full(rows.shape, -1)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[at] == rows, at, -1)


def draw(stores: Stores, most: int, seed: int) -> np.ndarray:
    """At most so many clean samples, at random, ascending rows."""
    rows = np.flatnonzero(stores.mask)
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def gather(stores: Stores, rows: np.ndarray, *, block: int | None = None) -> Gathered:
    """Read vectors and pixels of samples; those that lack a finite vector with a length in some store fall out.

    Parameters
    ----------
    rows
        Ascending.
    block
        See `gridrad_cube.evaluation.pixels.look`.
    """
    vectors = {name: _read(dataset, rows) for name, dataset in stores.datasets.items()}
    usable = np.ones(len(rows), bool)
    for values in vectors.values():
        usable &= np.isfinite(values).all(axis=1) & values.any(axis=1)
    rows = rows[usable]
    index = dict(zip(sample_dims(stores.first), np.unravel_index(rows, stores.mask.shape), strict=True))
    small = stores.first.drop_vars(list(stores.first.data_vars))
    small["embedding"] = stores.first["embedding"]
    where = collect(small, index, "sample")
    attributes, pixels = look(stores.cube, _windows(stores, index, where), stores.members, block=block)
    made = {name: values[usable] for name, values in vectors.items()} | pixels
    if stores.patches is not None:
        made["mean of patches"] = _mean_of_patches(stores.patches, stores.label, index["crop"])
    return Gathered(
        rows,
        where["time"].values.astype("datetime64[s]"),
        where["latitude"].values,
        where["longitude"].values,
        made,
        attributes,
    )


def _read(dataset: xr.Dataset, rows: np.ndarray) -> np.ndarray:
    return Rows(dataset["embedding"].variable).take(rows).astype(np.float32)


def _windows(stores: Stores, index: dict[str, np.ndarray], where: xr.Dataset) -> Windows:
    crop = index["crop"]
    if stores.patches is not None:
        shape = (stores.cube.sizes["y"], stores.cube.sizes["x"])
        return Windows(crop, np.zeros_like(crop), np.zeros_like(crop), shape)
    patch, _ = patch_and_stride(stores.first)
    origin = {a: stores.cube[f"{a}_origin"].values[crop].astype(np.int64) for a in "yx"}
    return Windows(
        crop, where["y_start"].values - origin["y"], where["x_start"].values - origin["x"], (patch, patch)
    )


def _mean_of_patches(dataset: xr.Dataset, label: str, crops: np.ndarray) -> np.ndarray:
    """Mean of the embeddings of each crop's patches, where there are some; zeros where there are none."""
    names = [str(n) for n in labels(dataset, "channel")]
    at = names.index(label) if label in names else 0
    variable = dataset["embedding"].isel(channel=at).transpose("crop", "row", "col", "feature").variable
    out = np.zeros((len(crops), variable.sizes["feature"]), np.float32)
    for i, crop in enumerate(crops):
        values = variable.isel(crop=int(crop)).values.reshape(-1, out.shape[1]).astype(np.float64)
        known = values[np.isfinite(values).all(axis=1)]
        out[i] = known.mean(axis=0) if len(known) else 0.0
    return out


class Sequels:
    """The samples at the same place some time later."""

    def __init__(self, stores: Stores) -> None:
        self._stores, self._places = stores, Places(stores.first)
        self.step = float(np.median(np.diff(self._times()))) if len(self._times()) > 1 else np.inf

    def _times(self) -> np.ndarray:
        seconds = seconds_of(self._stores.first["time"].values)
        return np.unique(seconds[seconds > np.iinfo(np.int64).min])

    def after(self, pool: Gathered, lead: float) -> np.ndarray:
        """Row of the clean sample at each place ``lead`` seconds later, within a quarter of it; -1 for none."""
        index, _ = self._places.find(
            (pool.time + np.timedelta64(int(lead), "s")).astype("datetime64[s]"),
            pool.latitude,
            pool.longitude,
            time_tolerance=f"{lead / 4}s",
        )
        return self._rows(index)

    def around(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the 3 x 3 clean cells about each row, (rows, 9); -1 for those that are none."""
        dims, shape = sample_dims(self._stores.first), self._stores.mask.shape
        at = dict(zip(dims, np.unravel_index(np.maximum(rows, 0), shape), strict=True))
        out = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                moved = at | {"row": at["row"] + dy, "col": at["col"] + dx}
                gone = rows < 0
                for d in ("row", "col"):
                    size = shape[dims.index(d)]
                    gone |= (moved[d] < 0) | (moved[d] >= size)
                    moved[d] = np.clip(moved[d], 0, size - 1)
                out.append(self._rows({d: np.where(gone, -1, i) for d, i in moved.items() if d != "channel"}))
        return np.stack(out, axis=1)

    def _rows(self, index: dict[str, np.ndarray]) -> np.ndarray:
        dims, mask = sample_dims(self._stores.first), self._stores.mask
        there = index["crop"] >= 0
        at = {d: np.maximum(i, 0) for d, i in index.items()}
        if "channel" in dims:
            at["channel"] = np.full(len(there), self._stores.channel)
        rows = np.ravel_multi_index(tuple(at[d] for d in dims), mask.shape)
        return np.where(there & mask.reshape(-1)[rows], rows, -1)
