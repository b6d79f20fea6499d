"""Patches of a cube as inputs of a level-256 network: which there are, their flags, places and pixels."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from gridrad_cube import tiling
from gridrad_cube.datasets import Normalization, normalizations
from gridrad_cube.embedding.lattice import Lattice
from gridrad_cube.embedding.network import Network
from gridrad_cube.schema import Flag, Packing, SchemaError
from gridrad_cube.selection import Label, choose_labels, labels_of
from gridrad_cube.store import COORDINATES, PatchReader, cube_info, open_packed

logger = logging.getLogger(__name__)

#: Where the numbers that normalise come from; see `gridrad_cube.embedding.embed`.
Normalize = Literal["auto", "store", "none"]

#: A patch with one of these bits has no pixels to embed.
NO_PIXELS = Flag.padding | Flag.all_missing | Flag.channel_absent | Flag.unreadable
#: Bits that a stack of channels has only if all of its channels have them: there is nothing in the patch.
_SHARED = NO_PIXELS | Flag.no_echo | Flag.constant | Flag.low_coverage

_CONTENT = ("valid_fraction", "mean", "std", "minimum", "maximum")

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map`` whose next result is made in another thread while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class PatchInput:
    """The patches of a cube, as a level-256 network reads them.

    Parameters
    ----------
    store
        A finished cube.
    channels
        Some of the network's channels; None takes all.
    stride
        Step from one window to the next in pixels; None for the cube's own patches.
    normalize
        See `gridrad_cube.embedding.embed`.

    Attributes
    ----------
    labels
        Labels of the embeddings' channel axis -> the channels that each is made of.
    shape
        Of the embeddings of one crop.
    """

    level = "256"

    def __init__(
        self,
        store: str | os.PathLike[str],
        network: Network,
        *,
        channels: str | Sequence[str] | None = None,
        stride: int | None = None,
        normalize: Normalize = "auto",
    ) -> None:
        self.store, self.network = os.fspath(store), network
        self.info = cube_info(store)
        self.patch = int(self.info["patch"])
        self.dataset = open_packed(store)
        self.reader = PatchReader(store)
        self.members = _choose(self, channels)
        self.labels = _axis(self.members, stacked=network.stacked)
        self._check_sizes()
        self.rules, self.normalization = _rules(self, normalize)
        self.lattice = Lattice(self.dataset, self.info, stride)
        self.cells = self.lattice.cells
        self.shape = (len(self.labels), *self.cells, network.features)
        self.coordinates = [name for name in COORDINATES if name in self.dataset.variables]
        self._planes: dict[tuple[int, int], np.ndarray] = {}
        self._latest: tuple[range, np.ndarray, np.ndarray] | None = None

    @property
    def crops(self) -> int:
        """Number of crops in the cube."""
        return int(self.dataset.sizes["crop"])

    @property
    def stacked(self) -> bool:
        """Whether an embedding is of several channels at once."""
        return len(self.labels) != len(self.members)

    def _check_sizes(self) -> None:
        network, planes = self.network, max(len(m) for m in self.labels.values())
        if planes != network.in_channels:
            raise SchemaError(
                f"{network.path}: its network reads {network.in_channels} channels at once, got {planes} "
                f"({[m.name for m in self.members]}). Pass channels=[...] with as many as it was trained on."
            )
        edge, token = self.patch / network.coarsen * network.magnification, network.backbone.patch_size
        if self.patch % network.coarsen or round(edge) % token or abs(edge - round(edge)) > 1e-6:
            raise SchemaError(
                f"{self.store}: patches of {self.patch} px become {edge:g} px for this network (blocks of "
                f"{network.coarsen}, magnified by {network.magnification:g}); expected whole tokens of {token} px. "
                "Preprocess with the --patch that the network was trained on."
            )

    def content(self, rows: range) -> str:
        """Hash of what decides the embeddings of these crops: which patches have pixels, and their statistics."""
        digest = hashlib.sha256()
        block = self.dataset.isel(crop=slice(rows.start, rows.stop))
        for variable in dict.fromkeys(m.variable for m in self.members):
            digest.update(((block[f"{variable}_flags"].values & int(NO_PIXELS)) != 0).tobytes())
            for name in _CONTENT:
                digest.update(np.ascontiguousarray(block[f"{variable}_{name}"].values).tobytes())
        return digest.hexdigest()[:32]

    def small(self, rows: range) -> dict[str, np.ndarray]:
        """Coordinates, flags and fractions of these crops, by name, as they are stored."""
        out = self.lattice.coordinates(rows, self.coordinates)
        flags, fraction = self._members(rows)
        out["flags"], out["valid_fraction"] = flags, fraction
        if self.stacked:
            out["flags"], out["valid_fraction"] = _together(flags), fraction.mean(axis=1, keepdims=True)
        return out

    def _members(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Flags and valid fractions of every channel, (crop, member, row, col)."""
        if self._latest is not None and self._latest[0] == rows:
            return self._latest[1:]
        if self.lattice.stride == self.patch:
            parts = [
                [self._small(m, name, rows) for m in self.members] for name in ("flags", "valid_fraction")
            ]
        else:
            parts = self.lattice.assess(rows, self.members, self.plane)
        flags, fraction = (np.stack(p, axis=1) for p in parts)
        self._latest = (rows, flags, fraction)
        return flags, fraction

    def _small(self, label: Label, name: str, rows: range) -> np.ndarray:
        values = self.dataset[f"{label.variable}_{name}"][rows.start : rows.stop].values
        return values if label.altitude is None else values[:, label.altitude]

    def vectors(self, rows: range, batch_size: int, tick: Callable[[int], Any]) -> np.ndarray:
        """Embeddings of these crops, float32, (crop, *shape); NaN where there are no pixels.

        Parameters
        ----------
        tick
            Called with the number of patches done, again and again.
        """
        usable = (self._members(rows)[0] & int(NO_PIXELS)) == 0
        out = np.full((len(rows), *self.shape), np.nan, np.float32)
        where = np.argwhere(usable.any(axis=1, keepdims=True) if self.stacked else usable)
        tick(int(np.prod(out.shape[:-1])) - len(where))
        parts = [where[i : i + batch_size] for i in range(0, len(where), batch_size)]
        batches = ahead(lambda part: self._read(rows.start, part, usable), parts)
        for part, codes in zip(parts, batches, strict=True):
            out[tuple(part.T)] = self.network.patches(codes, part[:, 1], self.rules)
            tick(len(part))
        return out

    def codes(self, crop: int, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Packed patches of one crop at (label, row, col) that have pixels, and which of them do."""
        usable = (self._members(range(crop, crop + 1))[0] & int(NO_PIXELS)) == 0
        some = usable.any(axis=1, keepdims=True) if self.stacked else usable
        there = some[0][tuple(where.T)]
        return self._read(crop, np.insert(where[there], 0, 0, axis=1), usable), there

    def _read(self, first: int, where: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Packed patches (B, planes, patch, patch) at (crop, label, row, col), crops counted from ``first``."""
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
        return out

    def _pixels(self, number: int, index: np.ndarray) -> np.ndarray:
        """Packed windows of one channel at (crop, row, col)."""
        if self.lattice.stride == self.patch:
            member = self.members[number]
            return self.reader.read(member.variable, _with_altitude(index, member))
        out = []
        for crop in np.unique(index[:, 0]):
            plane = self.plane(int(crop), number)
            here = index[index[:, 0] == crop, 1:] * self.lattice.stride
            views = np.lib.stride_tricks.sliding_window_view(plane, (self.patch, self.patch))
            out.append(views[here[:, 0], here[:, 1]])
        return np.concatenate(out)

    def plane(self, crop: int, number: int) -> np.ndarray:
        """All packed pixels of one channel of a crop, (y, x); fill where a patch has none."""
        if (crop, number) in self._planes:
            return self._planes[crop, number]
        member, cells = self.members[number], self.lattice.patches
        flags = self._small(member, "flags", range(crop, crop + 1))[0]
        there = np.argwhere((flags & int(Flag.channel_absent | Flag.unreadable)) == 0)
        blocks = np.full(
            (*cells, self.patch, self.patch), self._fill(member), self.dataset[member.variable].dtype
        )
        if len(there):
            index = np.insert(there, 0, crop, axis=1)
            blocks[tuple(there.T)] = self.reader.read(member.variable, _with_altitude(index, member))
        while len(self._planes) >= len(self.members):  # the channels of about one crop
            self._planes.pop(next(iter(self._planes)))
        self._planes[crop, number] = tiling.assemble(blocks)
        return self._planes[crop, number]

    def _fill(self, member: Label) -> float:
        array = self.dataset[member.variable]
        fill = Packing.from_attributes(array.attrs, array.dtype).fill_value
        return np.nan if fill is None else fill


def _with_altitude(index: np.ndarray, member: Label) -> np.ndarray:
    return index if member.altitude is None else np.insert(index, 1, member.altitude, axis=1)


def _together(flags: np.ndarray) -> np.ndarray:
    """Flags of a stack (crop, 1, row, col) from those of its channels (crop, member, row, col)."""
    every = np.bitwise_and.reduce(flags, axis=1, keepdims=True) & np.uint16(_SHARED)
    some = np.bitwise_or.reduce(flags, axis=1, keepdims=True)
    out = every | (some & np.uint16(~_SHARED & 0xFFFF))
    lacking = ((some & int(NO_PIXELS)) != 0) & ((every & int(NO_PIXELS)) == 0)
    out[lacking] |= np.uint16(Flag.some_missing)
    return out


def _choose(source: PatchInput, channels: str | Sequence[str] | None) -> tuple[Label, ...]:
    """Channels to embed: those of the checkpoint, or the part of them that was asked for."""
    network, where = source.network, source.store
    available = labels_of(source.dataset, list(source.info["channels"]))
    names = [label.name for label in available]
    known = network.channels
    if known is None:
        return choose_labels(available, channels, where)
    asked = [label.name for label in choose_labels(available, channels, where)] if channels else list(known)
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise SchemaError(
            f"{network.path}: not trained on {unknown}; it knows {known}. Pass channels=[...] with some of these."
        )
    missing = [name for name in (known if network.stacked else asked) if name not in names]
    if missing:
        rest = [name for name in known if name in names]
        remedy = (
            f"Pass channels={rest}." if rest and not network.stacked else "Preprocess with these channels."
        )
        raise SchemaError(
            f"{where}: lacks channels {missing} that {network.path} was trained on; it has {names}. {remedy}"
        )
    if network.stacked and set(asked) != set(known):
        raise SchemaError(
            f"{network.path}: its network reads {known} at once, got channels={asked}. Leave channels out."
        )
    order = list(known) if network.stacked else asked
    return tuple(available[names.index(name)] for name in order)


def _axis(members: Sequence[Label], *, stacked: bool) -> dict[str, list[str]]:
    """Labels of the embeddings' channel axis, and the channels that each is made of."""
    if not stacked or len(members) == 1:
        return {member.name: [member.name] for member in members}
    parts = []
    for variable in dict.fromkeys(m.variable for m in members):
        heights = [m.name.partition("@")[2].removesuffix("km") for m in members if m.variable == variable]
        level = f"@{heights[0]}-{heights[-1]}km" if len(heights) > 1 else f"@{heights[0]}km"
        parts.append(variable + (level if heights[0] else ""))
    return {"+".join(parts): [member.name for member in members]}


def _rules(source: PatchInput, normalize: str) -> tuple[tuple[Normalization, ...], dict[str, Any]]:
    """Normalisation of each channel, with the store's packing; and as a dict to keep."""
    network, names = source.network, [m.name for m in source.members]
    if normalize not in get_args(Normalize):
        raise SchemaError(f"normalize: got {normalize!r}; expected one of {get_args(Normalize)}")
    kept = network.normalization
    if normalize == "auto" and kept is None:
        logger.warning(
            "%s keeps no normalisation: taking that of %s. Pass normalize='none' for the predecessor's raw input.",
            network.path, source.store,
        )  # fmt: skip
    if normalize == "none":
        rules = {name: _raw(source, name) for name in names}
    elif normalize == "auto" and kept is not None:
        like = {name: Normalization.from_dict(value) for name, value in kept.items()}
        rules = normalizations(source.store, names, like=like)
    else:
        rules = normalizations(source.store, names)
    return tuple(rules.values()), {name: rule.to_dict() for name, rule in rules.items()}


def _raw(source: PatchInput, name: str) -> Normalization:
    """Physical values as they are; what is missing becomes the mean of the store."""
    array = source.dataset[name.split("@")[0]]
    mean = (source.info.get("training_statistics") or {}).get(name, {}).get("mean")
    packing = Packing.from_attributes(array.attrs, array.dtype)
    return Normalization(rule="standard", mean=0.0, std=1.0, fill=mean or 0.0, no_echo=0.0, packing=packing)
