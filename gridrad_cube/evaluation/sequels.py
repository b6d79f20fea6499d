"""The samples of an evaluation: stores of embeddings and their cube, clean samples, and what came after them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import xarray as xr

from gridrad_cube.geometry import pixel_spacing_km
from gridrad_cube.query import collect, locate, sample_dims, select
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import choose_labels, labels_of
from gridrad_cube.store import open_embeddings, open_packed, source_path, store_info

PathLike = str | os.PathLike[str]
_Kind = Literal["patches", "embeddings"]
#: Names that the result has for vectors that no store holds.
_TAKEN = {"moments", "histogram", "picture", "mean of patches", "persistence", "mean", "chance"}


@dataclass(frozen=True)
class Samples:
    """Some samples, each on the first axis.

    ``rows`` are their numbers in the store (flat over its sample dims), ascending; ``windows`` the crop of each in the
    cube, and first row and column of pixels in it; ``vectors`` those of stores and of baselines by name; ``attributes``
    NaN where not known.
    """

    rows: np.ndarray
    time: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    windows: tuple[np.ndarray, np.ndarray, np.ndarray]
    vectors: Mapping[str, np.ndarray]
    attributes: Mapping[str, np.ndarray]

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Time, latitude and longitude."""
        return self.time, self.latitude, self.longitude

    def take(self, keep: np.ndarray) -> Samples:
        """Some of the samples, by a mask."""
        crop, y, x = (v[keep] for v in self.windows)
        vectors, attributes = ({n: v[keep] for n, v in d.items()} for d in (self.vectors, self.attributes))
        time, latitude, longitude = (v[keep] for v in self.places)
        return Samples(self.rows[keep], time, latitude, longitude, (crop, y, x), vectors, attributes)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Positions of rows among these; -1 for one that is not there."""
        if not len(self.rows):
            return np.full(rows.shape, -1)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[at] == rows, at, -1)


@dataclass(frozen=True)
class Stores:
    """What is evaluated: stores of embeddings of one cube, sample for sample, and the cube.

    ``datasets`` have the names that the result gives them. Their ``channel`` (a position) has a ``label``, and is made
    of the cube's channels ``members``. At level 2k ``patches`` is the level-256 store that the first one was made from.
    ``mask`` marks the clean samples of the channel, on the sample dims of the stores.
    """

    datasets: Mapping[str, xr.Dataset]
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

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels of a sample, high and wide."""
        if self.patches is not None:
            return self.cube.sizes["y"], self.cube.sizes["x"]
        return (self.cube.sizes["y"] // self.cube.sizes["row"],) * 2

    @cached_property
    def edge_km(self) -> float:
        """Root mean square of height and width of a sample, by the spacing of pixels; 0 if it is not known."""
        latitude, longitude = (self.cube[n][:256].values for n in ("latitude", "longitude"))
        spacing = pixel_spacing_km(latitude, longitude, self.cube.sizes["y"] // self.cube.sizes["row"])
        return (spacing or 0.0) * float(np.sqrt(np.mean(np.square(self.shape))))

    @cached_property
    def step(self) -> float:
        """Median seconds from one time of the store to the next; infinite for one time."""
        times = np.unique(self.first["time"].values.astype("datetime64[s]"))
        steps = np.diff(times[~np.isnat(times)]) / np.timedelta64(1, "s")
        return float(np.median(steps)) if len(steps) else np.inf

    def read(self, rows: np.ndarray) -> Samples:
        """Vectors and places of samples, by their rows in ascending order."""
        at = np.unravel_index(rows, self.mask.shape)
        index, found = dict(zip(sample_dims(self.first), at, strict=True)), {}
        for name, dataset in self.datasets.items():
            others = [v for v in dataset.data_vars if v != "embedding"]
            found[name] = collect(dataset.drop_vars(others), index, "sample")
        vectors = {name: d["embedding"].values.astype(np.float32) for name, d in found.items()}
        where, crop = next(iter(found.values())), index["crop"]
        y = x = np.zeros_like(crop)
        if self.patches is None:
            y, x = (where[f"{a}_start"].values - self.cube[f"{a}_origin"].values[crop] for a in "yx")
        else:
            vectors["mean of patches"] = _mean_of_patches(self.patches, self.label, crop)
        time = where["time"].values.astype("datetime64[s]")
        latitude, longitude = where["latitude"].values, where["longitude"].values
        return Samples(rows, time, latitude, longitude, (crop, y, x), vectors, {})

    def after(self, samples: Samples, seconds: float) -> np.ndarray:
        """Row of the clean sample at each place some seconds later, within a quarter of them; -1 for none."""
        later = (samples.time + np.timedelta64(int(seconds), "s")).astype("datetime64[s]")
        index, _ = locate(
            self.first, later, samples.latitude, samples.longitude, time_tolerance=f"{seconds / 4}s"
        )
        return self._rows(index)

    def around(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the 3 x 3 clean cells about each row, (rows, 9); -1 for those that are missing."""
        at = np.unravel_index(np.maximum(rows, 0), self.mask.shape)
        index = dict(zip(sample_dims(self.first), at, strict=True))
        out = []
        for dy, dx in np.ndindex(3, 3):
            moved = index | {"row": index["row"] + dy - 1, "col": index["col"] + dx - 1}
            missing = rows < 0
            for dim in ("row", "col"):
                missing |= (moved[dim] < 0) | (moved[dim] >= self.first.sizes[dim])
            out.append(self._rows({d: np.where(missing, -1, i) for d, i in moved.items()}))
        return np.stack(out, axis=1)

    def _rows(self, index: Mapping[str, np.ndarray]) -> np.ndarray:
        """Rows of clean samples at positions along the sample dims; -1 where a position is -1."""
        there = index["crop"] >= 0
        index = {"channel": np.full(len(there), self.channel), **index}
        at = tuple(np.maximum(index[d], 0) for d in sample_dims(self.first))
        return np.where(there & self.mask[at], np.ravel_multi_index(at, self.mask.shape), -1)


def draw(positions: np.ndarray, most: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """At most ``most`` of some positions, at random, in order."""
    if len(positions) <= most:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, most, replace=False))


def _mean_of_patches(dataset: xr.Dataset, label: str, crops: np.ndarray) -> np.ndarray:
    """Mean of the embeddings of each crop's patches; zeros where there are none."""
    names = [one.name for one in labels_of(dataset)]
    variable = dataset["embedding"].isel(channel=names.index(label) if label in names else 0)
    out = np.zeros((len(crops), variable.sizes["feature"]), np.float32)
    for i, crop in enumerate(crops):
        values = variable.isel(crop=int(crop)).transpose("row", "col", "feature").values
        known = np.isfinite(values).all(axis=-1)
        out[i] = values[known].mean(axis=0, dtype=np.float64) if known.any() else 0.0
    return out


def open_stores(
    stores: Sequence[PathLike],
    cube: PathLike | None = None,
    patches: PathLike | None = None,
    channel: str | None = None,
) -> Stores:
    """Open stores of embeddings of the same samples and, by the first one's record of its source, the cube."""
    paths = [os.fspath(s) for s in stores]
    datasets = dict(zip(_names(paths), map(open_embeddings, paths), strict=True))
    first = next(iter(datasets.values()))
    for path, dataset in zip(paths, datasets.values(), strict=True):
        sizes, expected = ({d: o.sizes[d] for d in sample_dims(o)} for o in (dataset, first))
        if sizes != expected or labels_of(dataset) != labels_of(first) or not _same_crops(dataset, first):
            raise SchemaError(
                f"evaluate: {path} has samples {sizes}, the first store {expected}; expected stores of the same "
                "samples (the same cube, channels and stride)"
            )
    labels = labels_of(first)
    label = choose_labels(labels, channel, "evaluate")[0]
    name = label.name
    place, below = sources_of(paths[0], cube, patches)
    members, between = _members(paths[0], [name]), None
    if below is not None:
        between, members = open_embeddings(below), _members(below, members)
    opened = open_packed(place)
    for other, flag in ((between, "--patches"), (opened, "--cube")):
        if other is not None and not _same_crops(first, other):
            raise SchemaError(
                f"evaluate: {other.encoding.get('source')} is not what {paths[0]} was made from: its crops are of "
                f"other scenes or windows. Pass {flag} with the right one."
            )
    if lacking := [m for m in members if m.split("@")[0] not in opened.data_vars]:
        raise SchemaError(
            f"evaluate: the cube {place} lacks {lacking} of {paths[0]}; expected all its channels"
        )
    mask = select(first, channel=name)
    return Stores(datasets, labels.index(label), name, tuple(members), opened, between, mask)


def _names(paths: Sequence[str]) -> list[str]:
    """Short names that tell paths apart."""
    if len(paths) == 1:
        return ["embedding"]
    if len(set(paths)) < len(paths):
        raise SchemaError(f"evaluate: got {list(paths)}; expected each store once")
    short = [os.path.basename(p.rstrip("/")).removesuffix(".zarr") for p in paths]
    return short if len(set(short)) == len(short) and not set(short) & _TAKEN else list(paths)


def _same_crops(dataset: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether the first crops of another store are the crops of this one."""
    count = dataset.sizes["crop"]
    names = ("scene", "y_origin", "x_origin")
    return all(np.array_equal(other[n].values[:count], dataset[n].values) for n in names)


def _members(path: PathLike, names: Sequence[str]) -> list[str]:
    """Labels of what channels are made of, as the store says."""
    made = store_info(path).get("channels") or {}
    return [m for n in names for m in made.get(n) or [n]]


def sources_of(
    path: PathLike, cube: PathLike | None = None, patches: PathLike | None = None
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
    if store_info(path, "embeddings").get("level") == "2k":
        path = between = _source(path, patches, "embeddings", "--patches")
    return _source(path, cube, "patches", "--cube"), between


def _source(path: PathLike, given: PathLike | None, kind: _Kind, flag: str) -> str:
    """What a store was made from: as given, or as it says, relative to itself."""
    source = str(store_info(path).get("source") or "")
    if not (given or source):
        raise SchemaError(f"evaluate: {path} does not say what it was made from. Pass {flag} PATH.")
    place = os.fspath(given or source_path(path, source))
    try:
        store_info(place, kind)
    except FileNotFoundError as error:
        what = "cube" if kind == "patches" else "level-256 embeddings"
        raise SchemaError(
            f"evaluate: no {what} at {place}, which {path} was made from; moved? Pass {flag} PATH."
        ) from error
    return place
