"""Inputs of the networks with their flags: patches of a cube (level 256), or grids of patch embeddings (level
2k).

Both kinds of input have the same members: ``shape`` (of a crop, without the features), ``tokens`` (of a
sample, down
and across), ``content`` (a hash of the inputs that decide the embeddings), ``small`` (coordinates and flags),
``batches``, and ``flips`` (crops that are reversed for the network). Rows and columns of samples are those of
the store.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from gridrad_cube import quality, tiling
from gridrad_cube.datasets import GridDataset, Normalization, normalizations
from gridrad_cube.geometry import reverse
from gridrad_cube.schema import TIME_FILL, Flag, Packing, QualitySpec, SchemaError, build_spec
from gridrad_cube.selection import Label, choose_labels, labels_of, reject_masks
from gridrad_cube.store import (
    COORDINATES,
    NORTH_UP,
    Orientation,
    PatchReader,
    open_embeddings,
    open_grid,
    open_packed,
    store_info,
)

logger = logging.getLogger(__name__)

#: Where the numbers that normalize come from; see `gridrad_cube.embedding.embed`.
Normalize = Literal["auto", "store", "none"]

#: A patch with one of these bits has no pixels to embed.
NO_PIXELS = Flag.padding | Flag.all_missing | Flag.channel_absent | Flag.unreadable
#: Bits that a stack of channels has only if all of its channels have them: there is nothing in the patch.
_SHARED = NO_PIXELS | Flag.no_echo | Flag.constant | Flag.low_coverage
#: Bits of an overlapping window that do not follow from its pixels.
_INHERITED = np.uint16(Flag.channel_absent | Flag.unreadable | Flag.limb | Flag.withdrawn)
#: Statistics of a patch that stand for its pixels in the hash of a block.
_CONTENT = ("valid_fraction", "mean", "std", "minimum", "maximum")
#: Coordinates that `tiling.cut` and `quality.assess` give; others vary smoothly and are taken between patches.
_CUT = ("latitude", "longitude", "solar_zenith_angle", "solar_zenith_angle_maximum")
#: Bytes of grids that are read together.
_READ_BYTES = 64 * 2**20

#: Where the samples of a batch belong in the embeddings of some crops, and what the network is called with.
_Batch = tuple[tuple[np.ndarray, ...], tuple[Any, ...]]


class PatchInput:
    """The patches of a cube, as a level-256 network reads them; options as of `gridrad_cube.embedding.embed`.

    Windows at a stride that divides the patch are the patches of several shifted tilings. Each of these is cut and
    assessed as a cube would be, so that an overlapping window has the flags and the position that a cube cut there has.

    Attributes
    ----------
    labels
        Labels of the embeddings' channel axis -> the channels that each is made of.
    members
        These channels, one after the other.
    stacked
        Whether an embedding is of several channels at once.
    overlapping
        Whether windows overlap. Then `small` takes long, and `embed` calls it once for each block.
    tokens
        Tokens of a patch, down and across.
    """

    level = "256"

    def __init__(
        self,
        store: str | os.PathLike[str],
        trained: Mapping[str, Any],
        *,
        channels: str | Sequence[str] | None = None,
        stride: int | None = None,
        normalize: Normalize = "auto",
    ) -> None:
        self.store, self.info = os.fspath(store), store_info(store, "patches")
        self.dataset, self.reader = open_packed(store), PatchReader(store)
        self.patch, crop = int(self.info["patch"]), self.info["crop"]
        self.stride = self.patch if stride is None else int(stride)
        if self.stride < 1 or self.patch % self.stride:
            raise SchemaError(
                f"stride: got {stride}; expected a divisor of the patch, {self.patch} px, such as {self.patch // 2}"
            )
        self.overlapping = self.stride != self.patch
        available = labels_of(self.dataset, list(self.info["channels"]))
        self.members = _choose(available, channels, trained, self.store)
        self.labels = _axis(self.members, stacked=trained["stacked"])
        self.stacked = len(self.labels) != len(self.members)
        self.tokens = (self._count_tokens(trained),) * 2
        self.rules = _rules(self.store, self.members, self.dataset, trained, normalize)
        self.normalization = {m.name: r.to_dict() for m, r in zip(self.members, self.rules, strict=True)}
        self._edge = (int(crop[0]), int(crop[1]))
        self.cells = tuple((edge - self.patch) // self.stride + 1 for edge in self._edge)
        self.shape = (len(self.labels), *self.cells)
        self._assessed = functools.lru_cache(1)(self._assess)
        self._plane = functools.lru_cache(len(self.members))(self._read_plane)  # of about one crop
        self._scene = functools.lru_cache(1)(self._open_scene)
        self._orientation = _orient_as(trained, self.dataset, self.store)

    @property
    def crops(self) -> int:
        """Number of crops in the cube."""
        return int(self.dataset.sizes["crop"])

    def _count_tokens(self, trained: Mapping[str, Any]) -> int:
        """Return the tokens along the edge of a patch; refuses channels and patches that the network does not
        read.
        """
        planes = max(len(m) for m in self.labels.values())
        if planes != trained["in_channels"]:
            raise SchemaError(
                f"{trained['path']}: its network reads {trained['in_channels']} channels at once, got {planes} "
                f"({[m.name for m in self.members]}). Pass channels=[...] with as many as it was trained on."
            )
        token, coarsen, magnification = trained["token"], trained["coarsen"], trained["magnification"]
        edge = self.patch / coarsen * magnification
        if self.patch % coarsen or round(edge) % token or abs(edge - round(edge)) > 1e-6:
            raise SchemaError(
                f"{self.store}: patches of {self.patch} px become {edge:g} px for this network (blocks of {coarsen}, "
                f"magnified by {magnification:g}); expected whole tokens of {token} px. Preprocess with the `patch` "
                "that the network was trained on."
            )
        return int(round(edge) // token)

    def content(self, rows: range) -> str:
        """Hash of the inputs that decide the embeddings of these crops: patches with pixels, and their
        statistics.
        """
        digest = hashlib.sha256()
        block = self.dataset.isel(crop=slice(rows.start, rows.stop))
        for variable in dict.fromkeys(m.variable for m in self.members):
            digest.update(((block[f"{variable}_flags"].values & int(NO_PIXELS)) != 0).tobytes())
            for name in _CONTENT:
                digest.update(np.ascontiguousarray(block[f"{variable}_{name}"].values).tobytes())
        _add_flips(digest, self.flips(rows))
        return digest.hexdigest()[:32]

    def flips(self, crops: range | np.ndarray) -> np.ndarray:
        """Return whether rows, and columns, of patches of these crops are reversed for the network, (N, 2)."""
        return _flips(self._orientation, crops)

    def small(self, rows: range) -> dict[str, np.ndarray]:
        """Return the coordinates, flags and fractions of these crops by name."""
        out = read_coordinates(self.dataset, rows)
        found = self._assessed(rows)
        if self.overlapping:
            step = self.patch // self.stride
            for name, values in out.items():
                if name in found:
                    out[name] = found[name]
                elif COORDINATES[name][0] == ("crop", "row"):
                    out[name] = _between_times(values, step, self.cells[0])
                elif COORDINATES[name][0] == ("crop", "row", "col"):
                    out[name] = _between(values, step)
        flags, fraction = found["flags"], found["valid_fraction"]
        if self.stacked:
            flags, fraction = _combine_flags(flags), fraction.mean(axis=1, keepdims=True)
        return out | {"flags": flags, "valid_fraction": fraction}

    def _assess(self, rows: range) -> dict[str, np.ndarray]:
        """Return the flags and fractions of every channel (crop, member, row, col), and of overlapping
        windows `_CUT`.
        """
        if self.overlapping:
            crops = [self._assess_windows(crop) for crop in rows]
            return {name: np.stack([crop[name] for crop in crops]) for name in crops[0]}
        names = ("flags", "valid_fraction")
        return {n: np.stack([self._stored(m, n, rows) for m in self.members], axis=1) for n in names}

    def _stored(self, label: Label, name: str, rows: range) -> np.ndarray:
        values: np.ndarray = self.dataset[f"{label.variable}_{name}"][rows.start : rows.stop].values
        return values if label.altitude is None else values[:, label.altitude]

    def _assess_windows(self, crop: int) -> dict[str, np.ndarray]:
        """Return the flags, fractions and positions of the overlapping windows of a crop, as a cube cut there
        has them.
        """
        one = self.dataset.isel(crop=crop)
        out: dict[str, np.ndarray] = {
            "flags": np.full((len(self.members), *self.cells), int(Flag.unreadable), np.uint16),
            "valid_fraction": np.full((len(self.members), *self.cells), np.nan, np.float32),
        }
        out |= {n: np.full(self.cells, np.nan, COORDINATES[n][1]) for n in _CUT if n in one.variables}
        if one["status"].values != 0:  # not written: it has no position
            return out
        step, spec = self.patch // self.stride, build_spec(QualitySpec, self.info["recipe"]["quality"])
        inherited = [self._inherited(crop, member) for member in self.members]
        for dy, dx in np.ndindex(step, step):
            at = (slice(dy, None, step), slice(dx, None, step))
            y, x = dy * self.stride, dx * self.stride
            height, width = (
                (n - i) // self.patch * self.patch for n, i in zip(self._edge, (y, x), strict=True)
            )
            if not height or not width:
                continue
            cut = self._cut(one, tiling.Window(y, x, height, width))
            for number, member in enumerate(self.members):
                attributes = self.dataset[member.variable].attrs
                codes = np.ascontiguousarray(self._plane(crop, number)[y : y + height, x : x + width])
                found = quality.assess(cut.assign({member.variable: (("y", "x"), codes, attributes)}), spec)
                flags = found[f"{member.variable}_flags"].values
                if (inherited[number] & int(Flag.channel_absent)).all():
                    flags = np.where(cut["padding"].values, int(Flag.padding), 0)
                else:
                    flags = flags | self._outliers(member, found)
                    out["valid_fraction"][number][at] = found[f"{member.variable}_valid_fraction"].values
                out["flags"][number][at] = flags | inherited[number][at]
                for name in set(_CUT) & set(out):
                    out[name][at] = found[name].values
        return out

    def _cut(self, one: xr.Dataset, part: tiling.Window) -> xr.Dataset:
        """Return the positions and times of a part of a crop, as `tiling.cut` gives them; without channels."""
        scene = self._scene(str(one["grid"].values)).assign_coords(time=one["time"].values)
        y, x = (int(one[name]) for name in ("y_origin", "x_origin"))
        cut = tiling.cut(scene, tiling.Window(y + part.y, x + part.x, part.height, part.width), self.patch)
        if "observation_time" in one:
            step = self.patch // self.stride
            times = _between_times(one["observation_time"].values[None], step, self.cells[0])[0]
            mine = times[part.y // self.stride :: step][: cut.sizes["row"]].astype("datetime64[s]")
            cut = cut.assign_coords(observation_time=("row", mine))
        return cut

    def _open_scene(self, grid: str) -> xr.Dataset:
        """Return the latitude and longitude of a source grid in memory, on the dimensions of scenes."""
        axes = open_grid(self.dataset.encoding["source"], grid).load()
        renamed = axes.rename({d: str(d).removeprefix("scene_") for d in axes.dims})
        return renamed.set_coords(["latitude", "longitude"])

    def _inherited(self, crop: int, member: Label) -> np.ndarray:
        """Return the bits that do not follow from pixels, (row, col): those of any of the patches that a
        window overlaps.
        """
        flags = self._stored(member, "flags", range(crop, crop + 1))[0] & _INHERITED
        near = [_neighbors(n, self.patch // self.stride)[:2] for n in self.cells]
        return np.bitwise_or.reduce([flags[row[:, None], col] for row in near[0] for col in near[1]])

    def _outliers(self, member: Label, assessed: xr.Dataset) -> np.ndarray:
        """Return the flag ``global_outlier`` by the thresholds of the store, (row, col)."""
        thresholds = (self.info.get("thresholds") or {}).get(member.variable)
        if thresholds is None:
            return np.zeros((), np.uint16)
        mine = thresholds["levels"][member.altitude] if "levels" in thresholds else thresholds
        prefix = f"{member.variable}_"
        statistics = {str(n).removeprefix(prefix): v.values for n, v in assessed.data_vars.items()}
        return quality.global_outliers(statistics, mine) * np.uint16(Flag.global_outlier)

    def batches(self, rows: range, size: int, wanted: np.ndarray | bool = True) -> Iterator[_Batch]:
        """Yield the patches of these crops that have pixels: packed codes, which rule each takes, and the
        rules.

        All, or those that are ``wanted``, (crop, label, row, col).
        """
        usable = (self._assessed(rows)["flags"] & int(NO_PIXELS)) == 0
        where = np.argwhere((usable.any(axis=1, keepdims=True) if self.stacked else usable) & wanted)
        for start in range(0, len(where), size):
            part = where[start : start + size]
            yield tuple(part.T), (self._read(rows.start, part, usable), part[:, 1], self.rules)

    def _read(self, first: int, where: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Return the packed patches (B, planes, patch, patch) at (crop, label, row, col), crops counted from
        ``first``.
        """
        planes = len(self.members) if self.stacked else 1
        dtype = np.result_type(*(self.dataset[m.variable].dtype for m in self.members))
        out = np.empty((len(where), planes, self.patch, self.patch), dtype)
        for number, member in enumerate(self.members):
            if self.stacked:
                some, plane = usable[where[:, 0], number, where[:, 2], where[:, 3]], number
                out[~some, plane] = self._fill(member)
            else:
                some, plane = where[:, 1] == number, 0
            if some.any():
                out[some, plane] = self._pixels(number, where[some][:, [0, 2, 3]] + [first, 0, 0])
        return reverse(out, self.flips(where[:, 0] + first))

    def _pixels(self, number: int, index: np.ndarray) -> np.ndarray:
        """Return the packed windows of one channel at (crop, row, col)."""
        if not self.overlapping:
            member = self.members[number]
            return self.reader.read(member.variable, _with_altitude(index, member))
        out = []
        for crop in np.unique(index[:, 0]):
            here = index[index[:, 0] == crop, 1:] * self.stride
            plane = self._plane(int(crop), number)
            views = np.lib.stride_tricks.sliding_window_view(plane, (self.patch, self.patch))
            out.append(views[here[:, 0], here[:, 1]])
        return np.concatenate(out)

    def _read_plane(self, crop: int, number: int) -> np.ndarray:
        """Return all packed pixels of one channel of a crop, (y, x); fill where the crop lacks it."""
        member = self.members[number]
        level = () if member.altitude is None else (member.altitude,)
        return self.reader.read_window(member.variable, (crop, *level, slice(None), slice(None)))

    def _fill(self, member: Label) -> float:
        array = self.dataset[member.variable]
        fill = Packing.from_attributes(array.attrs, array.dtype).fill_value
        return np.nan if fill is None else fill


class GridInput:
    """The grids of an embedding store, as a level-2k network reads them; members as of `PatchInput`.

    Cells with flags that training rejected are masked, as in training. A grid without other cells is embedded
    from these, so that every crop with an embedding at level 256 has one here.
    """

    level, overlapping = "2k", False

    def __init__(
        self,
        store: str | os.PathLike[str],
        trained: Mapping[str, Any],
        *,
        channels: str | Sequence[str] | None = None,
        normalize: Normalize = "auto",
    ) -> None:
        self.store, self.info = os.fspath(store), store_info(store, "embeddings")
        self.dataset = open_embeddings(store)
        self._check_source(trained)
        available = labels_of(self.dataset)
        chosen = _choose(available, channels, trained, self.store)
        self._columns = [available.index(label) for label in chosen]
        self.labels = {label.name: list(self.info["channels"][label.name]) for label in chosen}
        self._orientation = _orient_as(trained, self.dataset, self.store)
        self._reject = np.array(reject_masks(chosen, trained["reject"]), np.uint16)[None, :, None, None]
        self.normalization = self._normalize(trained, normalize)
        sizes = self.dataset.sizes
        self.cells, self.shape = (sizes["row"], sizes["col"]), (len(chosen),)
        self.tokens = self.cells
        bytes_each = 4 * len(available) * sizes["row"] * sizes["col"] * sizes["feature"]
        self._together = max(1, _READ_BYTES // bytes_each)

    @property
    def crops(self) -> int:
        """Number of crops in the store."""
        return int(self.dataset.sizes["crop"])

    def _check_source(self, trained: Mapping[str, Any]) -> None:
        """Refuse embeddings that the network cannot read, or that another network made."""
        features = self.dataset.sizes["feature"]
        if features != trained["in_channels"]:
            raise SchemaError(
                f"{self.store}: embeddings have {features} features, but {trained['path']} reads "
                f"{trained['in_channels']}. Pass the embeddings of the network that it was trained on."
            )
        below = trained["store"].get("checkpoint")
        if below is not None and below != self.info["checkpoint"]:
            raise SchemaError(
                f"{self.store}: embeddings of checkpoint {self.info['checkpoint']}, but {trained['path']} was trained "
                f"on those of {below}; they mean different things. Embed the patches with that checkpoint first."
            )

    def _normalize(self, trained: Mapping[str, Any], normalize: str) -> dict[str, Any]:
        kept, features = trained["normalization"], trained["in_channels"]
        if normalize == "store":
            return dict(GridDataset(self.store, channels=list(self.labels)).normalization)
        if normalize == "none" or kept is None:
            return {"mean": [0.0] * features, "std": [1.0] * features}  # the predecessor's raw input
        return {name: list(map(float, kept[name])) for name in ("mean", "std")}

    def _block(self, name: str, rows: range) -> np.ndarray:
        """Return the embeddings, flags or fractions of some crops, of the channels that are read."""
        return np.asarray(self.dataset[name][rows.start : rows.stop, self._columns].values)

    def content(self, rows: range) -> str:
        """Hash of the inputs that decide the embeddings of these crops: the grids, and the cells that count."""
        digest = hashlib.sha256()
        for some in self._parts(rows):
            digest.update(self._block("embedding", some).tobytes())
            digest.update((self._block("flags", some) & self._reject).tobytes())
        _add_flips(digest, self.flips(rows))
        return digest.hexdigest()[:32]

    def flips(self, crops: range | np.ndarray) -> np.ndarray:
        """Return whether rows, and columns, of grids of these crops are reversed for the network, (N, 2)."""
        return _flips(self._orientation, crops)

    def small(self, rows: range) -> dict[str, np.ndarray]:
        """Return the coordinates, flags and fractions of these crops by name."""
        out = read_coordinates(self.dataset, rows)
        cells = [name for name in ("flags", "valid_fraction") if name in self.dataset.variables]
        return out | {name: self._block(name, rows) for name in cells}

    def batches(self, rows: range, size: int, wanted: np.ndarray | bool = True) -> Iterator[_Batch]:
        """Yield the grids of these crops that have a cell to read: embeddings, cells, and the normalization.

        All, or those that are ``wanted``, (crop, label).
        """
        needed = np.broadcast_to(wanted, (len(rows), *self.shape))
        for some in self._parts(rows):
            first, grids = some.start - rows.start, self._block("embedding", some)
            filled = np.isfinite(grids).all(axis=-1)
            cells = filled & ((self._block("flags", some) & self._reject) == 0)
            cells = np.where(cells.any(axis=(2, 3), keepdims=True), cells, filled)
            where = np.argwhere(cells.any(axis=(2, 3)) & needed[first : first + len(some)])
            for start in range(0, len(where), size):
                part = tuple(where[start : start + size].T)
                flips = self.flips(part[0] + some.start)
                mine = reverse(grids[part], flips, rows=-3), reverse(cells[part], flips)
                yield (part[0] + first, part[1]), (*mine, self.normalization)

    def _parts(self, rows: range) -> Iterator[range]:
        """Yield some of the rows after others, so that their grids fit into memory."""
        for start in range(rows.start, rows.stop, self._together):
            yield range(start, min(start + self._together, rows.stop))


def open_input(
    store: str | os.PathLike[str],
    trained: Mapping[str, Any],
    *,
    channels: str | Sequence[str] | None = None,
    stride: int | None = None,
    normalize: Normalize = "auto",
) -> PatchInput | GridInput:
    """Return what a network reads of a store: patches of a cube, or grids of an embedding store of level 256."""
    if normalize not in get_args(Normalize):
        raise SchemaError(f"normalize: got {normalize!r}; expected one of {get_args(Normalize)}")
    info, level = store_info(store), trained["level"]
    patches = info.get("kind") == "patches"
    if level != ("256" if patches else "2k") or not (patches or info.get("level") == "256"):
        holds = (
            "a cube"
            if patches
            else f"embeddings of level {info.get('level')}, made from {info.get('source')}"
        )
        raise SchemaError(
            f"{trained['path']}: a network of level {level}, but {store} holds {holds}. A network of level 256 reads a "
            "cube of patches, one of level 2k the embeddings of level 256 that were made from it."
        )
    if patches:
        return PatchInput(store, trained, channels=channels, stride=stride, normalize=normalize)
    if stride is not None:
        raise SchemaError(f"stride: got {stride}; grids are whole crops. Pass it when embedding the patches.")
    return GridInput(store, trained, channels=channels, normalize=normalize)


def _orient_as(trained: Mapping[str, Any], dataset: xr.Dataset, store: str) -> Orientation | None:
    """Return the orientation of crops for a network, which is that of training. None keeps the order of the
    store.
    """
    orientation = Orientation(dataset)
    if trained["orientation"] == NORTH_UP:
        return orientation
    flips = orientation.of(np.arange(dataset.sizes["crop"]))
    if flips.any():
        logger.warning(
            "%s was trained by a version that left rows in the order of the files. So %s is read as stored; of its "
            "%d crops %d have south up or east left", trained["path"], store, len(flips), flips.any(axis=1).sum(),
        )  # fmt: skip
    return None


def _flips(orientation: Orientation | None, crops: range | np.ndarray) -> np.ndarray:
    return np.zeros((len(crops), 2), bool) if orientation is None else orientation.of(np.asarray(crops))


def _add_flips(digest: Any, flips: np.ndarray) -> None:
    """Add to a hash which crops are reversed; nothing where none is, as in earlier versions."""
    if flips.any():
        digest.update(flips.tobytes())


def _choose(
    available: Sequence[Label], channels: str | Sequence[str] | None, trained: Mapping[str, Any], store: str
) -> tuple[Label, ...]:
    """Return the channels to embed: those that the network was trained on, or the part of them that was asked
    for.
    """
    known, path = trained["channels"], trained["path"]
    if known is None:
        return choose_labels(available, channels, store)
    names = [label.name for label in available]
    asked = [label.name for label in choose_labels(available, channels, store)] if channels else list(known)
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise SchemaError(
            f"{path}: not trained on {unknown}; it knows {known}. Pass channels=[...] with some of these."
        )
    stacked = trained["level"] == "256" and trained["stacked"]
    missing = [name for name in (known if stacked else asked) if name not in names]
    if missing:
        rest = [name for name in known if name in names]
        remedy = f"Pass channels={rest}." if rest and not stacked else "Preprocess with these channels."
        raise SchemaError(
            f"{store}: lacks channels {missing} that {path} was trained on; it has {names}. {remedy}"
        )
    if stacked and set(asked) != set(known):
        raise SchemaError(
            f"{path}: its network reads {known} at once, got channels={asked}. Leave channels out."
        )
    return tuple(available[names.index(name)] for name in (known if stacked else asked))


def _axis(members: Sequence[Label], *, stacked: bool) -> dict[str, list[str]]:
    """Return the labels of the embeddings' channel axis, and the channels that each is made of."""
    if not stacked or len(members) == 1:
        return {member.name: [member.name] for member in members}
    parts = []
    for variable in dict.fromkeys(m.variable for m in members):
        heights = [m.name.partition("@")[2].removesuffix("km") for m in members if m.variable == variable]
        level = f"@{heights[0]}-{heights[-1]}km" if len(heights) > 1 else f"@{heights[0]}km"
        parts.append(variable + (level if heights[0] else ""))
    return {"+".join(parts): [member.name for member in members]}


def _rules(
    store: str, members: Sequence[Label], dataset: xr.Dataset, trained: Mapping[str, Any], normalize: str
) -> tuple[Normalization, ...]:
    """Return the normalization of each channel, with the store's packing."""
    names, kept = [m.name for m in members], trained["normalization"]
    if normalize == "none":
        return tuple(_raw(store, dataset[m.variable], m.name) for m in members)
    if normalize == "auto" and kept is not None:
        like = {name: Normalization.from_dict(value) for name, value in kept.items()}
        return tuple(normalizations(store, names, like=like).values())
    if normalize == "auto":
        logger.warning(
            "%s keeps no normalization: taking that of %s. Pass normalize='none' for the predecessor's raw input.",
            trained["path"], store,
        )  # fmt: skip
    return tuple(normalizations(store, names).values())


def _raw(store: str, array: xr.DataArray, name: str) -> Normalization:
    """Return the physical values as they are; what is missing becomes the mean of the store."""
    mean = (store_info(store, "patches").get("training_statistics") or {}).get(name, {}).get("mean")
    packing = Packing.from_attributes(array.attrs, array.dtype)
    return Normalization(rule="standard", mean=0.0, std=1.0, fill=mean or 0.0, no_echo=0.0, packing=packing)


def _combine_flags(flags: np.ndarray) -> np.ndarray:
    """Return the flags of a stack (crop, 1, row, col) from those of its channels (crop, member, row, col)."""
    every = np.bitwise_and.reduce(flags, axis=1, keepdims=True) & np.uint16(_SHARED)
    some = np.bitwise_or.reduce(flags, axis=1, keepdims=True)
    out: np.ndarray = every | (some & np.uint16(~_SHARED & 0xFFFF))
    lacking = ((some & int(NO_PIXELS)) != 0) & ((every & int(NO_PIXELS)) == 0)
    out[lacking] |= np.uint16(Flag.some_missing)
    return out


def read_coordinates(
    dataset: xr.Dataset, rows: range, *, of_crops_alone: bool = False
) -> dict[str, np.ndarray]:
    """Return the coordinates of some crops by name: all, or those that patches do not differ in."""
    names = [n for n in COORDINATES if not of_crops_alone or COORDINATES[n][0] == ("crop",)]
    return {n: dataset[n][rows.start : rows.stop].values for n in names if n in dataset.variables}


def _with_altitude(index: np.ndarray, member: Label) -> np.ndarray:
    return index if member.altitude is None else np.insert(index, 1, member.altitude, axis=1)


def _neighbors(cells: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two patches that each window lies between, and how far it is on the way to the second."""
    place = np.arange(cells)
    return place // step, -(-place // step), (place % step) / step


def _between_times(times: np.ndarray, step: int, cells: int) -> np.ndarray:
    """Return the times (crop, row) of patches at the windows between them, int64 seconds; missing where one
    of two is.
    """
    low, high, share = _neighbors(cells, step)
    seconds = times.astype("datetime64[s]").astype(np.int64)
    before, after = seconds[:, low], seconds[:, high]
    missing = (before == TIME_FILL) | (after == TIME_FILL)
    first, last = np.where(missing, 0, before), np.where(missing, 0, after)
    return np.where(missing, TIME_FILL, first + np.rint((last - first) * share).astype(np.int64))


def _between(values: np.ndarray, step: int) -> np.ndarray:
    """Return a smooth field of patches (crop, row, col) at the windows between them, from those that are not
    NaN.
    """
    for axis in (1, 2):
        low, high, share = _neighbors((values.shape[axis] - 1) * step + 1, step)
        share = share.reshape(-1, *(1 for _ in range(2 - axis)))
        before, after = np.take(values, low, axis), np.take(values, high, axis)
        mixed = before * (1 - share) + after * share
        mixed = np.where(np.isnan(before), after, np.where(np.isnan(after), before, mixed))
        values = mixed.astype(values.dtype)
    return values
