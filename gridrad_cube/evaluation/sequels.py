"""The samples of an evaluation: stores of embeddings and their cube, clean samples, their sequels, and
labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from gridrad_cube.geometry import EARTH_RADIUS_KM, pixel_spacing_km
from gridrad_cube.query import collect, locate, sample_dims, select
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import choose_labels, labels_of
from gridrad_cube.store import open_embeddings, open_packed, source_path, store_info

PathLike = str | os.PathLike[str]
_Kind = Literal["patches", "embeddings"]
#: Names that the result has for vectors that no store holds.
_TAKEN = {"histogram", "descriptor", "pool", "persistence", "climatology", "regression", "chance"}
#: Labels are of the time nearest to a sample's: within half a step of the store, and at most this many seconds.
_LABEL_SECONDS = 3600


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
        """Return some of the samples, by a mask."""
        crop, y, x = (v[keep] for v in self.windows)
        vectors, attributes = ({n: v[keep] for n, v in d.items()} for d in (self.vectors, self.attributes))
        time, latitude, longitude = (v[keep] for v in self.places)
        return Samples(self.rows[keep], time, latitude, longitude, (crop, y, x), vectors, attributes)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of rows among these; -1 for one that is not there."""
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
        """Return the vectors and places of samples, by their rows in ascending order."""
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
            vectors["pool"] = _pool_patches(self.patches, self.label, crop)
        time = where["time"].values.astype("datetime64[s]")
        latitude, longitude = where["latitude"].values, where["longitude"].values
        return Samples(rows, time, latitude, longitude, (crop, y, x), vectors, {})

    def after(self, samples: Samples, seconds: float) -> np.ndarray:
        """Return the row of the clean sample at each place some seconds later, within a quarter of them; -1
        for none.
        """
        later = (samples.time + np.timedelta64(int(seconds), "s")).astype("datetime64[s]")
        index, _ = locate(
            self.first, later, samples.latitude, samples.longitude, time_tolerance=f"{seconds / 4}s"
        )
        return self._rows(index)

    def around(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of the 3 x 3 clean cells about each row, (rows, 9); -1 for those that are missing."""
        return np.stack([self._beside(rows, y - 1, x - 1) for y, x in np.ndindex(3, 3)], axis=1)

    @cached_property
    def stride(self) -> int:
        """Pixels from one window to the next."""
        info = store_info(self.first)
        return int(info.get("stride") or info["patch"])

    @cached_property
    def move(self) -> int:
        """Pixels by which windows are moved for retrieval: about a quarter of their edge; 0 if none overlap."""
        patch = int(store_info(self.first)["patch"])
        overlapping = self.patches is None and self.stride < patch
        return max(1, round(patch / 4 / self.stride)) * self.stride if overlapping else 0

    def moved(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of the clean windows that lie `move` pixels below and beside others; -1 for those
        that are missing.
        """
        cells = self.move // self.stride
        return self._beside(rows, cells, cells) if cells else np.full(rows.shape, -1)

    def _beside(self, rows: np.ndarray, down: int, across: int) -> np.ndarray:
        """Return the rows of the clean cells at an offset in rows and columns from others; -1 for those that
        are missing.
        """
        at = np.unravel_index(np.maximum(rows, 0), self.mask.shape)
        index = dict(zip(sample_dims(self.first), at, strict=True))
        index |= {"row": index["row"] + down, "col": index["col"] + across}
        inside = [(index[d] >= 0) & (index[d] < self.first.sizes[d]) for d in ("row", "col")]
        there = np.all([rows >= 0, *inside], axis=0)
        return self._rows({d: np.where(there, i, -1) for d, i in index.items()})

    def _rows(self, index: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the rows of clean samples at positions along the sample dims; -1 where a position is -1."""
        there = index["crop"] >= 0
        index = {"channel": np.full(len(there), self.channel), **index}
        at = tuple(np.maximum(index[d], 0) for d in sample_dims(self.first))
        return np.where(there & self.mask[at], np.ravel_multi_index(at, self.mask.shape), -1)


def draw(positions: np.ndarray, most: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Return at most ``most`` of some positions, at random, in order."""
    if len(positions) <= most:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, most, replace=False))


def _pool_patches(dataset: xr.Dataset, label: str, crops: np.ndarray) -> np.ndarray:
    """Return the mean, then standard deviation, of the embeddings of each crop's clean patches; zeros without
    clean patches.

    If no patch of a crop is clean, all that have an embedding count.
    """
    names = [one.name for one in labels_of(dataset)]
    channel = names.index(label) if label in names else 0
    variable = dataset["embedding"].isel(channel=channel)
    mask = select(dataset, channel=names[channel])
    clean = np.take(mask, channel, axis=sample_dims(dataset).index("channel"))
    out = np.zeros((len(crops), 2 * variable.sizes["feature"]), np.float32)
    for i, crop in enumerate(crops):
        values = variable.isel(crop=int(crop)).transpose("row", "col", "feature").values
        known = np.isfinite(values).all(axis=-1)
        both = known & clean[crop]
        known = both if both.any() else known
        if known.any():
            some = values[known].astype(np.float64)
            out[i] = np.concatenate([some.mean(axis=0), some.std(axis=0)])
    return out


# Labels


def _nothing(_: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (np.empty(0),) * 3


@dataclass(frozen=True)
class Labels:
    """Labels of samples: values on the sample dims of the stores, or values at times and places.

    ``yes_no`` says whether all values are 0 or 1; ``read`` gives latitude, longitude and values of one of the times.
    """

    name: str
    yes_no: bool
    at_samples: np.ndarray | None = None
    times: np.ndarray = field(default_factory=lambda: np.empty(0, "datetime64[s]"))
    read: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]] = _nothing

    def of(self, stores: Stores, samples: Samples) -> np.ndarray:
        """Return the label of each sample, float64; NaN for none.

        Of values at times and places: the mean of those of the nearest time that lie less than half an edge from the
        center of the sample; 1 if one of them is, where all are 0 or 1.
        """
        if self.at_samples is not None:
            return self.at_samples.reshape(-1)[samples.rows]
        from scipy.spatial import cKDTree

        out, radius = np.full(len(samples.rows), np.nan), stores.edge_km / 2 / EARTH_RADIUS_KM
        limit = np.timedelta64(int(min(stores.step / 2, _LABEL_SECONDS)), "s")
        for time in np.unique(samples.time):
            first, stop = np.searchsorted(self.times, [time - limit, time + limit + np.timedelta64(1, "s")])
            left = np.flatnonzero(samples.time == time)
            for i in first + np.argsort(np.abs(self.times[first:stop] - time), kind="stable"):
                latitude, longitude, values = self.read(int(i))
                if len(left) and len(values):
                    centers = _on_sphere(samples.latitude[left], samples.longitude[left])
                    inside = cKDTree(_on_sphere(latitude, longitude)).query_ball_point(centers, radius)
                    out[left] = [values[near].mean() if near else np.nan for near in inside]
                    left = left[np.isnan(out[left])]
        return np.where(out > 0, 1.0, out) if self.yes_no else out


def _on_sphere(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return the points of the unit sphere, (places, 3)."""
    lat, lon = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def open_labels(source: PathLike | pd.DataFrame | xr.Dataset, name: str, stores: Stores) -> Labels:
    """Return the labels from a table or a variable.

    Both have ``time``, ``latitude`` and ``longitude``, or the sample dims of the stores (``crop``, ``row``, ``col``).
    """
    found = _read_labels(source) if isinstance(source, (str, os.PathLike)) else source
    words = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "labels"
    if name not in found:
        names = sorted(found.columns if isinstance(found, pd.DataFrame) else found.data_vars)
        raise SchemaError(f"{words}: no label {name!r}; it has {names}. Pass `label` with one of these.")
    if not pd.api.types.is_numeric_dtype(found[name].dtype):
        raise SchemaError(f"{words}: {name} holds {found[name].dtype}; expected numbers or booleans")
    dims = [d for d in sample_dims(stores.first) if d != "channel"]
    sizes = {d: stores.first.sizes[d] for d in dims}
    if isinstance(found, pd.DataFrame) and set(dims) <= set(found.columns):
        found = found.dropna(subset=[*dims, name])
        index = tuple(found[d].to_numpy(np.int64) for d in dims)
        if any((i < 0).any() or (i >= sizes[d]).any() for d, i in zip(dims, index, strict=True)):
            raise SchemaError(f"{words}: {dims} reach beyond the samples, {sizes}; expected positions from 0")
        grid = np.full(list(sizes.values()), np.nan)
        grid[index] = found[name].to_numpy(np.float64)
        return _at_samples(name, grid, stores)
    if isinstance(found, xr.Dataset) and set(found[name].dims) == set(dims):
        variable = found[name].transpose(*dims)
        if dict(variable.sizes) != sizes:
            raise SchemaError(
                f"{words}: {name} has {dict(variable.sizes)}, the samples {sizes}; expected one a sample"
            )
        return _at_samples(name, variable.values.astype(np.float64), stores)
    needed = ("time", "latitude", "longitude")
    if missing := [n for n in needed if n not in found]:
        raise SchemaError(f"{words}: lacks {missing}; expected {', '.join(needed)}, or {', '.join(dims)}")
    if isinstance(found, xr.Dataset):
        return _of_variable(found, name, words)
    found = found.dropna(subset=[*needed, name])
    try:
        stamps = (
            pd.to_datetime(found["time"], utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[s]")
        )
    except ValueError as error:
        raise SchemaError(f"{words}: time: {error}; expected UTC such as 2021-06-01T18:00:00") from error
    order = np.argsort(stamps, kind="stable")
    times, first = np.unique(stamps[order], return_index=True)
    places = [found[n].to_numpy(np.float64)[order] for n in ("latitude", "longitude", name)]
    ends = np.append(first[1:], len(order))

    def read(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        latitude, longitude, values = (v[first[i] : ends[i]] for v in places)
        return latitude, longitude, values

    return Labels(name, _yes_no(places[2]), times=times, read=read)


def _of_variable(found: xr.Dataset, name: str, words: str) -> Labels:
    """Return the labels of a variable with a dim ``time`` and coordinates ``latitude`` and ``longitude``, in
    one or two dims.
    """
    if "time" not in found[name].dims:
        raise SchemaError(f"{words}: {name} has dims {found[name].dims}; expected one that is called time")
    variable = found[name].sortby("time")
    times = variable["time"].values.astype("datetime64[s]")

    def read(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one = variable.isel(time=i)
        latitude, longitude = (one[n].broadcast_like(one).values.ravel() for n in ("latitude", "longitude"))
        values = one.values.astype(np.float64).ravel()
        known = np.isfinite(latitude) & np.isfinite(longitude) & np.isfinite(values)
        return latitude[known], longitude[known], values[known]

    yes_no = all(_yes_no(read(i)[2]) for i in range(len(times)))
    return Labels(name, yes_no, times=times, read=read)


def _at_samples(name: str, values: np.ndarray, stores: Stores) -> Labels:
    """Return the labels on the dims of samples, alike for all channels."""
    axis = sample_dims(stores.first).index("channel")
    values = np.broadcast_to(np.expand_dims(values, axis), stores.mask.shape)
    return Labels(name, _yes_no(values), np.ascontiguousarray(values))


def _yes_no(values: np.ndarray) -> bool:
    return bool(np.isin(values[np.isfinite(values)], (0, 1)).all())


def _read_labels(path: PathLike) -> pd.DataFrame | xr.Dataset:
    """Return a table or a Dataset, by the suffix."""
    suffix = os.path.splitext(os.fspath(path).rstrip("/"))[1]
    if suffix == ".csv":
        return pd.read_csv(path)
    if suffix == ".zarr":
        return xr.open_zarr(path)
    if suffix == ".nc":
        return xr.open_dataset(path)
    raise SchemaError(f"{path}: labels: got a file {suffix or 'without suffix'}; expected .csv, .nc or .zarr")


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
    for other, flag in ((between, "`patches`"), (opened, "`cube`")):
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
    """Return short names that distinguish paths."""
    if len(paths) == 1:
        return ["embedding"]
    if len(set(paths)) < len(paths):
        raise SchemaError(f"evaluate: got {list(paths)}; expected each store once")
    short = [os.path.basename(p.rstrip("/")).removesuffix(".zarr") for p in paths]
    return short if len(set(short)) == len(short) and not set(short) & _TAKEN else list(paths)


def _same_crops(dataset: xr.Dataset, other: xr.Dataset) -> bool:
    """Return whether the first crops of another store are the crops of this one."""
    count = dataset.sizes["crop"]
    names = ("scene", "y_origin", "x_origin")
    return all(np.array_equal(other[n].values[:count], dataset[n].values) for n in names)


def _members(path: PathLike, names: Sequence[str]) -> list[str]:
    """Return the labels of what channels are made of, as the store says."""
    made = store_info(path).get("channels") or {}
    return [m for n in names for m in made.get(n) or [n]]


def sources_of(
    path: PathLike, cube: PathLike | None = None, patches: PathLike | None = None
) -> tuple[str, str | None]:
    """Return the path of the cube of a store of embeddings and, at level 2k, of the level-256 store between
    them.

    Parameters
    ----------
    path
        Path or URL of the store of embeddings.
    cube, patches
        Their paths, if they have moved; None for those that the store names.

    Returns
    -------
    Two paths; the second is None at level 256.

    Raises
    ------
    SchemaError
        If one of them is missing, or the store does not name it.
    """
    between = None
    if store_info(path, "embeddings").get("level") == "2k":
        path = between = _source(path, patches, "embeddings", "`patches`")
    return _source(path, cube, "patches", "`cube`"), between


def _source(path: PathLike, given: PathLike | None, kind: _Kind, flag: str) -> str:
    """Return what a store was made from: as given, or as it says, relative to itself."""
    source = str(store_info(path).get("source") or "")
    if not (given or source):
        raise SchemaError(f"evaluate: {path} does not say what it was made from. Pass {flag} with its path.")
    place = os.fspath(given or source_path(path, source))
    try:
        store_info(place, kind)
    except FileNotFoundError as error:
        what = "cube" if kind == "patches" else "level-256 embeddings"
        raise SchemaError(
            f"evaluate: no {what} at {place}, which {path} was made from; moved? Pass {flag} with its path."
        ) from error
    return place
