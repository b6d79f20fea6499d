"""What a run learns from: samples of a store, and the views drawn from them, at either level."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gridrad_cube.datasets import (
    Batch,
    GridDataset,
    Normalization,
    PairDataset,
    PatchDataset,
    SampleRecord,
    WindowPairs,
    followers,
    normalizations,
)
from gridrad_cube.geometry import pixel_spacing_km
from gridrad_cube.models import (
    ARCHITECTURES,
    GridViewSpec,
    NetworkInput,
    View,
    ViewSpec,
    draw_grid_views,
    draw_views,
    sample_seeds,
    token_coverage,
    whole_view,
)
from gridrad_cube.schema import CHANNELS, SchemaError
from gridrad_cube.selection import choose_labels, labels_of, stacks_altitudes
from gridrad_cube.store import NORTH_UP, compare_grids, open_packed, read_grids, store_info
from gridrad_cube.training.config import Config, Level, store_level

logger = logging.getLogger(__name__)

#: Largest random offset of a channel of each kind, in its units, of views that keep the scale.
_GAIN = {"infrared": 1.0, "visible": 0.02}
#: The same for dBZ, and for log10 of mm/h by Z = 200 R^1.6 (Marshall and Palmer 1948).
_GAIN_DBZ = 2.0
_GAIN_LOG_RAIN = _GAIN_DBZ / 10 / 1.6
#: What the predecessor does to the views of --views area: blur of first global, other global and local views.
_PHOTOGRAPHIC: dict[str, Any] = {"blur": (1.0, 0.1, 0.5), "solarize": 0.2}

#: Pairs of windows that a batch takes from one frame.
_PAIRS = 16
#: Samples that a stem is fitted to: these many pixels of views, within these numbers of samples.
_FIRST_PIXELS, _FIRST_SAMPLES = 512 * 64**2, (32, 512)
#: Parts of the names of fields with a sense of direction or rotation.
_HANDED = ("wind", "velocity", "shear", "vorticity", "rotation")


def store_state(store: str) -> dict[str, Any]:
    """Return what a checkpoint keeps of its store.

    ``identity`` differs between stores, and after a store has grown; ``checkpoint`` is that of embeddings.
    """
    info = store_info(store)
    text = json.dumps(info, sort_keys=True, default=str)
    identity = info.get("identity") or hashlib.sha256(text.encode()).hexdigest()[:32]
    made_by = info.get("checkpoint")
    return {"path": store, "identity": str(identity)} | ({"checkpoint": made_by} if made_by else {})


def open_source(config: Config, checkpoint: Mapping[str, Any] | None = None) -> _Source:
    """Open the store of a configuration for the level that it trains.

    Normalization and samples are those of the checkpoint from which a run resumes; worked out from the store if None.
    """
    kind = _PatchSource if store_level(config.store) == "256" else _GridSource
    source = kind(config, checkpoint)
    turned = source.dataset.orientation.of(np.unique(source.dataset.crop)).any()
    if turned and checkpoint is not None and checkpoint.get("orientation") != NORTH_UP:
        raise SchemaError(
            f"{config.store}: the run was begun by an earlier version, which left rows in the order of the files; this "
            "one turns crops to north up and east right, and the store has crops that lie otherwise. Finish the run "
            "with that version, or pass another `out` to start a new one (`init_from` starts it from these weights)."
        )
    return source


def _recorded(checkpoint: Mapping[str, Any]) -> SampleRecord | None:
    """Return the samples of a checkpoint; None for those of earlier versions, which lack them."""
    if "samples" not in checkpoint:
        return None
    record = checkpoint["samples"]
    return SampleRecord(record["crops"].numpy(), record["cells"].numpy(), tuple(record["shape"]))


class _Source(ABC):
    """Samples of one store, and how their views are drawn.

    ``dataset`` has the samples, ``loaded`` is what the loader reads: the same, or pairs in time. ``network`` has the
    arguments of `gridrad_cube.models.build` for the network that reads them; ``views`` counts those of a sample.
    An item of ``loaded`` stands for ``pairs`` samples, of which there are ``samples``. ``edge`` is that of a window
    in pixels of the store.
    """

    level: Level
    global_views = 2
    pairs = 1
    edge = 0

    def __init__(
        self, config: Config, dataset: Any, *, in_channels: int, patch_size: int, image_size: int
    ) -> None:
        self.config, self.dataset = config, dataset
        image_size = image_size if config.image_size == "auto" else config.image_size
        if image_size % patch_size:
            raise SchemaError(
                f"`image_size`: {image_size} px are not whole tokens of {patch_size} px. Pass a multiple, or another "
                "`patch_size`."
            )
        self.network: dict[str, Any] = {
            "name": _choose_arch(config, self.level), "in_channels": in_channels, "patch_size": patch_size,
            "image_size": image_size, "position": "dino_v1" if config.dino_v1 else "exact",
            "mask_token": self.level == "256" and not config.dino_v1,
        } | ({"stem": config.stem} if self.level == "256" else {})  # fmt: skip
        self.patch_size = patch_size
        self.samples = min(len(dataset), config.limit or len(dataset))
        strata = dataset.strata
        self.strata: int | np.ndarray = self.samples if isinstance(strata, int) else strata[: self.samples]
        self.local_views = 0 if config.objective == "contrast" else config.local_crops_number
        self.views = self.global_views + self.local_views
        self.loaded = dataset
        self.pairing = ""  # for the log: which samples have partners

    def pair_in_time(self) -> None:
        """Read each sample together with its partner in time, if the configuration asks for it."""
        if self.config.temporal_positives:
            minutes = self.config.temporal_positives[0]
            partners = followers(self.dataset, minutes)
            share = 100 * np.mean(partners != np.arange(len(partners)))
            self.pairing = f"{share:.0f} % of the samples have a partner {minutes:g} min later"
            self.loaded = PairDataset(self.dataset, partners)

    def draw(self, batch: Batch, index: np.ndarray, epoch: int) -> list[NetworkInput]:
        """Return the global views of a batch, then local ones; ``index`` are its samples, known on the host."""
        values, valid = self.dataset.decode(batch)
        partner, count = None, len(values)
        if self.loaded is not self.dataset:
            count //= 2
            partner = values[count:], valid[count:]
        seeds = sample_seeds(self.config.seed, epoch, batch.index[:count])
        return self._draw(values[:count], valid[:count], seeds, partner, index)

    def expand(self, index: np.ndarray) -> np.ndarray:
        """Return the numbers of the samples of items of ``loaded``."""
        return np.asarray((index[:, None] * self.pairs + np.arange(self.pairs)).ravel())

    def first_views(self) -> list[NetworkInput]:
        """Return the global views of some samples, evenly spread: what is fitted before the first step is
        fitted to them.
        """
        total, (least, most) = self.samples // self.pairs, _FIRST_SAMPLES
        samples = min(max(_FIRST_PIXELS // self.config.global_size**2, least), most)
        index = np.unique(np.linspace(0, total - 1, min(total, samples // self.pairs)).astype(np.int64))
        batch = self.loaded.__getitems__(index)
        return self.draw(batch, self.expand(index), 0)[: self.global_views]

    @abstractmethod
    def _draw(
        self, values: Tensor, valid: Tensor, seeds: Tensor, partner: View | None, index: np.ndarray
    ) -> list[NetworkInput]:
        """Draw views; the second global one from the partners, if there are any."""

    @abstractmethod
    def whole(self, batch: Batch) -> NetworkInput:
        """Return whole samples as one view without randomness, as embedding does."""

    @functools.cached_property
    def samples_state(self) -> dict[str, Any]:
        """The samples of the run, as a checkpoint keeps them."""
        record = self.dataset.record()
        cells = torch.from_numpy(record.cells)
        return {"crops": torch.from_numpy(record.crops), "cells": cells, "shape": list(record.shape)}

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the source: all that embedding needs to treat its inputs alike."""


def _choose_arch(config: Config, level: Level) -> str:
    cells = level == "2k"
    name = config.arch if config.arch != "auto" else "vit2k_xs" if cells else "vit_small"
    if name not in ARCHITECTURES:
        raise SchemaError(
            f"`arch`: got {name!r}; expected one of {sorted(ARCHITECTURES)}. Networks of torchvision and torch.hub "
            "(xcit) are not built here: attention and masked tokens need a transformer of this list."
        )
    if ARCHITECTURES[name].cells != cells:
        fitting = sorted(n for n, a in ARCHITECTURES.items() if a.cells == cells)
        what = "embeddings, level 2k" if cells else "patches, level 256"
        raise SchemaError(
            f"`arch`: {name} is not for {config.store}, which holds {what}; expected one of {fitting}. "
            "Pass another `store`, or leave `arch` out."
        )
    return name


def _selection(config: Config) -> dict[str, Any]:
    times = {
        name: [slice(r[0], r[0]) if len(r) == 1 else r for r in ranges] or None
        for name, ranges in (("time", config.time), ("exclude_time", config.exclude_time))
    }
    return {"channels": config.channels or None, "reject": config.reject, **times}


class _PatchSource(_Source):
    """Patches of a cube: level 256."""

    level: Level = "256"

    def __init__(self, config: Config, checkpoint: Mapping[str, Any] | None = None) -> None:
        checkpoint = checkpoint or {}
        arch = _choose_arch(config, self.level)
        patch_size = ARCHITECTURES[arch].patch_size if config.patch_size == "auto" else config.patch_size
        dataset = PatchDataset(
            config.store, **_selection(config), channel_mode=_choose_mode(config),
            coarsen=_choose_coarsen(config, arch), bbox=config.bbox or None, on_damage=config.on_damage,
            samples=_recorded(checkpoint),
        )  # fmt: skip
        if "normalization" in checkpoint:
            rules = checkpoint["normalization"].items()
            dataset.normalizations = {k: Normalization.from_dict(v) for k, v in rules}
        elif config.stem == "scattering":
            dataset.normalizations = normalizations(config.store, dataset.labels, scale="typical")
        self.field = dataset.patch // dataset.coarsen
        super().__init__(
            config, dataset, in_channels=dataset.planes, patch_size=patch_size, image_size=config.global_size
        )
        self._check_sizes()
        if config.pairs_windows:
            self._pair_windows()
        else:
            self.pair_in_time()
        self.specs = [self._spec(label) for label in dataset.labels]
        grids, _ = read_grids(open_packed(config.store), np.unique(dataset.crop))
        if problem := compare_grids(grids):
            logger.warning(
                "%s has scenes with %s: a network treats them as one scale. Build a store of each, or "
                "choose scenes by `time` or `bbox`", config.store, problem,
            )  # fmt: skip

    def _pair_windows(self) -> None:
        """Read pairs of windows of near times in place of patches."""
        c, dataset = self.config, self.dataset
        leads = list(c.temporal_positives) or _default_leads(dataset)
        move = dataset.patch // 2 if c.move == "auto" else c.move
        self.pairs, self.edge = math.gcd(_PAIRS, c.batch_size_per_gpu), dataset.patch
        self.loaded = WindowPairs(dataset, leads, move=move, pairs=self.pairs, seed=c.seed)
        groups = len(self.loaded) if c.limit is None else min(len(self.loaded), max(1, c.limit // self.pairs))
        self.strata, self.samples = self.loaded.strata[:groups], groups * self.pairs
        words = ", ".join(f"{minutes:g}" for minutes in leads)
        self.pairing = f"pairs of windows {words} min apart, the second moved by up to {move} px"

    def _check_sizes(self) -> None:
        c, token = self.config, self.patch_size
        if c.views == "zoom" and c.global_size > self.field:
            raise SchemaError(
                f"`global_size`: a view covers {c.global_size} px, but a field has {self.field} ({self.dataset.patch} "
                f"px by blocks of {self.dataset.coarsen}). Lower `global_size` or `coarsen`."
            )
        sizes = {"`global_size`": c.global_size, "`local_size`": c.local_size, "`coarsen`": self.field}
        for name, edge in sizes.items():
            if edge % token:
                raise SchemaError(
                    f"{name}: {edge} px are not whole tokens of {token} px. Pass a multiple, or another `patch_size`."
                )

    def _spec(self, label: str) -> ViewSpec:
        """Return how to draw views of one channel; of all of them where they are stacked."""
        c, rules = self.config, self.dataset.normalizations
        labels = list(rules) if self.dataset.planes > 1 else [label]
        gains = tuple(_gain_of(name, rules[name]) for name in labels)
        if c.views != "zoom" or c.offset is not None:
            gains = (c.offset or 0.0,) * len(labels)
        floors = [rules[name].no_echo for name in labels if rules[name].rule != "standard"]
        ranges: Any = {"zoom": c.zoom, "global_area": c.global_crops_scale, "local_area": c.local_crops_scale}
        return ViewSpec(
            global_size=c.global_size, local_size=c.local_size, local_views=self.local_views, mode=c.views,
            gain=gains if len(gains) > 1 else gains[0], gain_floor=min(floors, default=None),
            flips=self._flips(labels), fill=rules[labels[0]].fill, **ranges,
            **(_PHOTOGRAPHIC if c.views == "area" else {}),
        )  # fmt: skip

    def _flips(self, labels: list[str]) -> Any:
        """Return the configured flips, or none for wind and shear, whose signs are directions."""
        if self.config.flips == "none":
            return "none"
        stored = open_packed(self.config.store)
        variables = sorted({label.split("@")[0] for label in labels})
        handed = [
            v for v in variables if _is_handed(v) or _is_handed(str(stored[v].attrs.get("standard_name")))
        ]
        if handed:
            names = ", ".join(handed)
            logger.warning("`flips`: views of %s are not mirrored: their direction would change", names)
        return "none" if handed else self.config.flips

    def _draw(
        self, values: Tensor, valid: Tensor, seeds: Tensor, partner: View | None, index: np.ndarray
    ) -> list[NetworkInput]:
        specs = self.specs
        if self.config.stem == "scattering":  # local maps leave missing pixels out
            specs = [dataclasses.replace(spec, fill=math.nan) for spec in specs]
        kinds = list(dict.fromkeys(specs))
        if len(kinds) == 1 or self.dataset.planes > 1:
            views = draw_views(values, valid, kinds[0], seeds, partner)
        else:
            views = self._draw_by_channel(specs, values, valid, seeds, partner, index)
        return [NetworkInput(x, self._missing(seen)) for x, seen in views]

    def _draw_by_channel(
        self, specs: list[ViewSpec], values: Tensor, valid: Tensor, seeds: Tensor, partner: View | None,
        index: np.ndarray,
    ) -> list[View]:  # fmt: skip
        """Draw a batch of channels that differ in gain and fill, each as it would be drawn alone."""
        kinds = list(dict.fromkeys(specs))
        channel = self.dataset.table.channel
        channels = self.loaded.channels_of(index) if isinstance(self.loaded, WindowPairs) else channel[index]
        kind_of = np.array([kinds.index(spec) for spec in specs])[channels]
        out: list[View] = []
        for number in np.unique(kind_of).tolist():
            rows = torch.from_numpy(np.flatnonzero(kind_of == number))
            if values.device.type == "cuda":  # without waiting for the device
                rows = rows.pin_memory().to(values.device, non_blocking=True)
            other = None if partner is None else (partner[0][rows], partner[1][rows])
            part = draw_views(values[rows], valid[rows], kinds[number], seeds[rows], other)
            if not out:
                out = [
                    (x.new_zeros(len(values), *x.shape[1:]), s.new_zeros(len(values), *s.shape[1:]))
                    for x, s in part
                ]
            for whole, view in zip(out, part, strict=True):
                for target, piece in zip(whole, view, strict=True):
                    target[rows] = piece
        return out

    def _missing(self, seen: Tensor) -> Tensor | None:
        """Return the tokens of which less than half was observed; None for a network without a content for
        them.
        """
        return None if self.config.dino_v1 else token_coverage(seen, self.patch_size) < 0.5

    def whole(self, batch: Batch) -> NetworkInput:
        """See `Source.whole`."""
        values, valid = self.dataset.decode(batch)
        fills = [rule.fill for rule in self.dataset.normalizations.values()]
        fill = (
            torch.tensor(fills, device=values.device)[batch.channel] if self.dataset.planes == 1 else fills[0]
        )
        x, seen = whole_view(values, valid, fill=math.nan if self.config.stem == "scattering" else fill)
        return NetworkInput(x, self._missing(seen))

    def state(self) -> dict[str, Any]:
        """See `Source.state`."""
        stored = open_packed(self.config.store).isel(crop=slice(0, 16))
        spacing = pixel_spacing_km(stored["latitude"].values, stored["longitude"].values, self.dataset.patch)
        view = dataclasses.asdict(self.specs[0]) | {"pixel_spacing_km": spacing, "field": self.field}
        return {
            "normalization": {k: v.to_dict() for k, v in self.dataset.normalizations.items()},
            "channels": list(self.dataset.labels), "channel_mode": self.dataset.channel_mode,
            "coarsen": self.dataset.coarsen, "view": view,
        }  # fmt: skip


def _default_leads(dataset: PatchDataset) -> list[float]:
    """Return one, two and three times the most frequent time step of a place, in minutes, where places have such
    pairs of times.
    """
    table = pd.DataFrame({"place": dataset.crop_places, "seconds": dataset.crop_seconds})
    table = table.iloc[np.unique(dataset.table.crop)].drop_duplicates().sort_values(["place", "seconds"])
    times = table.groupby("place")["seconds"]
    later = np.stack([times.diff(n) / 60 for n in (1, 2, 3)])
    steps = pd.Series(later[0]).mode()
    if steps.empty:
        raise SchemaError(
            f"{dataset.store}: every place is seen at one time only, and the contrast learns from two near times. Pass "
            "`objective='coding-rate'`, or add scenes of the same places."
        )
    step = float(steps.iloc[0])
    return [n * step for n in (1, 2, 3) if (np.abs(later - n * step) < step / 2).any()]


def _choose_mode(config: Config) -> Any:
    """Return one channel a sample, or the altitudes of a radar volume stacked."""
    if config.channel_mode != "auto":
        return config.channel_mode
    available = labels_of(open_packed(config.store), list(store_info(config.store)["channels"]))
    labels = choose_labels(available, config.channels or None, config.store)
    return "stack" if stacks_altitudes(labels) else "each"


def _choose_coarsen(config: Config, arch: str) -> int:
    """Return the edge of the blocks that are averaged; auto: a patch becomes as large as the images that the
    network is for.
    """
    if config.coarsen != "auto":
        return config.coarsen
    image = ARCHITECTURES[arch].image_size if config.image_size == "auto" else config.image_size
    return max(1, int(store_info(config.store)["patch"]) // image)


def _is_handed(name: str) -> bool:
    """Return whether a field of this name, or CF standard name, changes its sign in a mirror: wind, shear,
    rotation.
    """
    return any(word in name.lower() for word in _HANDED)


def _gain_of(label: str, rule: Normalization) -> float:
    """Return the largest random offset of a channel in the numbers that a network sees."""
    if rule.rule in ("reflectivity", "decibel"):
        return _GAIN_DBZ / rule.std
    if rule.rule == "rain":
        return _GAIN_LOG_RAIN / rule.std
    channel = CHANNELS.get(label.split("@")[0])  # kind "other" has no gain
    return _GAIN.get(channel.kind, 0.0) / rule.std if channel else 0.0


class _GridSource(_Source):
    """Grids of patch embeddings: level 2k."""

    level: Level = "2k"

    def __init__(self, config: Config, checkpoint: Mapping[str, Any] | None = None) -> None:
        checkpoint = checkpoint or {}
        if config.bbox:
            raise SchemaError("`bbox`: grids are whole crops; choose them by `time`, or embed a smaller cube")
        if config.flips == "d4":
            raise SchemaError(
                "`flips`: got 'd4'; expected none or h at level 2k, whose cells cannot be turned"
            )
        _choose_arch(config, self.level)  # before a store is read for the wrong network
        dataset = GridDataset(
            config.store, **_selection(config), normalization=checkpoint.get("normalization"),
            samples=_recorded(checkpoint),
        )  # fmt: skip
        features, *shape = dataset.shape
        super().__init__(config, dataset, in_channels=features, patch_size=1, image_size=max(shape))
        whole: Any = {"global_fraction": 1.0, "token_dropout": 0.0} if config.views == "area" else {}
        self._spec = GridViewSpec(local_views=self.local_views, flips=config.flips, **whole)
        self.pair_in_time()

    def _draw(
        self, values: Tensor, valid: Tensor, seeds: Tensor, partner: View | None, index: np.ndarray
    ) -> list[NetworkInput]:
        views = draw_grid_views(values, valid, self._spec, seeds, partner)
        return [NetworkInput(x, attention_mask=kept) for x, kept in views]

    def whole(self, batch: Batch) -> NetworkInput:
        """See `Source.whole`."""
        values, cells = self.dataset.decode(batch)
        return NetworkInput(values, attention_mask=cells)

    def state(self) -> dict[str, Any]:
        """See `Source.state`."""
        view = dataclasses.asdict(self._spec) | {"grid": list(self.dataset.shape[1:])}
        return {
            "normalization": self.dataset.normalization, "channels": list(self.dataset.labels),
            "channel_mode": "each", "coarsen": 1, "view": view,
        }  # fmt: skip
