"""What a run learns from: samples of a store, and the views drawn from them, at either level."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gridrad_cube.datasets import Batch, GridDataset, Normalization, PairDataset, PatchDataset, followers
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.models import (
    ARCHITECTURES,
    GridViewSpec,
    View,
    ViewSpec,
    draw_grid_views,
    draw_views,
    sample_seeds,
    token_coverage,
    whole_view,
)
from gridrad_cube.schema import CHANNELS, SchemaError
from gridrad_cube.selection import choose_labels, labels_of
from gridrad_cube.store import open_packed, store_info
from gridrad_cube.training.config import Config, Level, named_refusals, store_level

logger = logging.getLogger(__name__)

#: Largest random offset of a channel of each kind, in its units, of views that keep the scale.
GAIN = {"infrared": 1.0, "visible": 0.02}
#: The same for dBZ, and for log10 of mm/h by Z = 200 R^1.6 (Marshall and Palmer 1948).
GAIN_DBZ = 2.0
GAIN_LOG_RAIN = GAIN_DBZ / 10 / 1.6

#: Parts of the names of fields with a sense of direction or rotation.
_HANDED = ("wind", "velocity", "shear", "vorticity", "rotation")


@dataclass(frozen=True)
class DrawnView:
    """One view of a batch: the input, and the masks that `VisionTransformer` takes."""

    x: Tensor
    token_mask: Tensor | None
    attention_mask: Tensor | None


class Source(Protocol):
    """Samples of one store and the drawing of their views."""

    level: Level
    #: What the samples are, and what the loader reads: the same, or pairs in time.
    dataset: Any
    loaded: Any
    strata: int | np.ndarray
    #: Values a pixel or cell has, edge for which positions are learned, edge of a token.
    in_channels: int
    image_size: int
    #: Name of the network.
    arch: str
    patch_size: int
    global_views: int
    views: int
    #: Samples of an epoch.
    samples: int

    def draw(self, batch: Batch, index: np.ndarray, epoch: int) -> list[DrawnView]:
        """Global views of a batch, then local ones; ``index`` are its samples, known on the host."""
        ...

    def whole(self, batch: Batch) -> DrawnView:
        """Whole samples as one view, nothing about it random: what the network will embed."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the source: all that embedding needs to treat its inputs alike."""
        ...


def store_identity(store: str) -> str:
    """Hash that tells this store from another, or from itself after it grew or was embedded anew."""
    info = store_info(store)
    if "identity" in info:
        return str(info["identity"])
    text = json.dumps(info, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def store_state(store: str) -> dict[str, Any]:
    """What a checkpoint keeps of its store; ``checkpoint`` is that of the network that made embeddings."""
    made_by = store_info(store).get("checkpoint")
    return {"path": store, "identity": store_identity(store)} | ({"checkpoint": made_by} if made_by else {})


def open_source(config: Config, normalization: Mapping[str, Any] | None = None) -> Source:
    """Open a configuration's store for the level that it trains.

    Parameters
    ----------
    normalization
        A checkpoint's, to go on with; worked out from the store if None.
    """
    kind = PatchSource if store_level(config.store) == "256" else GridSource
    with named_refusals():
        return kind(config, normalization)


def _selection(config: Config) -> dict[str, Any]:
    return {
        "channels": config.channels or None,
        "reject": config.reject,
        "time": tuple(config.time) or None,
    }


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _number(strata: int | np.ndarray) -> int:
    return strata if isinstance(strata, int) else len(strata)


def _with_partners(dataset: Any, config: Config) -> Any:
    """The data set, or pairs of its samples in time."""
    if not config.temporal_positives:
        return dataset
    partners = followers(dataset, config.temporal_positives)
    share = np.mean(partners != np.arange(len(partners)))
    logger.info("%.0f %% of the samples have a partner %g min later", 100 * share, config.temporal_positives)
    return PairDataset(dataset, partners)


def _split(
    values: Tensor, valid: Tensor, batch: Batch, config: Config, epoch: int
) -> tuple[Tensor, Tensor, Tensor, View | None]:
    """Samples of a batch, their mask and seeds, and what their second global view is drawn from, if not them."""
    if not config.temporal_positives:
        return values, valid, sample_seeds(config.seed, epoch, batch.index), None
    half = len(values) // 2
    seeds = sample_seeds(config.seed, epoch, batch.index[:half])
    return values[:half], valid[:half], seeds, (values[half:], valid[half:])


def _arch(config: Config, level: Level, default: str) -> str:
    name = default if config.arch == "auto" else config.arch
    if name not in ARCHITECTURES:
        raise SchemaError(
            f"--arch: got {name!r}; expected one of {sorted(ARCHITECTURES)}. Networks of torchvision and torch.hub "
            "(xcit) are not built here: attention and masked tokens need a transformer of this list."
        )
    if ARCHITECTURES[name].cells != (level == "2k"):
        fitting = sorted(n for n, a in ARCHITECTURES.items() if a.cells == (level == "2k"))
        what = "embeddings, level 2k" if level == "2k" else "patches, level 256"
        raise SchemaError(
            f"--arch: {name} is not for {config.store}, which holds {what}; expected one of {fitting}. "
            "Pass another --store, or leave --arch out."
        )
    return name


class PatchSource:
    """Patches of a cube: level 256."""

    level: Level = "256"

    def __init__(self, config: Config, normalization: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.arch = _arch(config, self.level, "vit_small")
        reference = ARCHITECTURES[self.arch]
        self.patch_size = reference.patch_size if config.patch_size == "auto" else config.patch_size
        self.image_size = config.global_size if config.image_size == "auto" else config.image_size
        options = _selection(config)
        self.dataset = PatchDataset(
            config.store, **options, channel_mode=self._mode(options["channels"]), coarsen=config.coarsen,
            bbox=tuple(config.bbox) or None, on_damage=config.on_damage,  # type: ignore[arg-type]
        )  # fmt: skip
        if normalization is not None:
            self.dataset.normalizations = {k: Normalization.from_dict(v) for k, v in normalization.items()}
        self.strata = self.dataset.strata
        self.samples = _number(self.strata)
        self.in_channels = self.dataset.planes
        self.field = self.dataset.patch // config.coarsen
        self.global_views, self.views = 2, 2 + config.local_crops_number
        self._check_sizes()
        self.loaded = _with_partners(self.dataset, config)
        self._specs = [self._spec(label) for label in self.dataset.labels]

    def _mode(self, channels: Any) -> Any:
        """One channel a sample, or the altitudes of a radar volume stacked."""
        if self.config.channel_mode != "auto":
            return self.config.channel_mode
        dataset = open_packed(self.config.store)
        names = list(store_info(self.config.store)["channels"])
        labels = choose_labels(labels_of(dataset, names), channels, self.config.store)
        sky = any(label.kind in ("infrared", "visible") for label in labels)
        return "stack" if not sky and any(label.altitude is not None for label in labels) else "each"

    def _check_sizes(self) -> None:
        c, token = self.config, self.patch_size
        if c.views == "zoom" and c.global_size > self.field:
            raise SchemaError(
                f"--global-size: a view covers {c.global_size} px, but a field has {self.field} ({self.dataset.patch} "
                f"px by blocks of {c.coarsen}). Lower --global-size or --coarsen."
            )
        for name, edge in (
            ("--global-size", c.global_size),
            ("--local-size", c.local_size),
            ("--coarsen", self.field),
        ):
            if edge % token:
                raise SchemaError(
                    f"{name}: {edge} px are not whole tokens of {token} px. Pass a multiple, or another --patch-size."
                )

    def _spec(self, label: str) -> ViewSpec:
        """How to draw views of one channel; of all of them where they are stacked."""
        c, rules = self.config, self.dataset.normalizations
        labels = list(rules) if self.in_channels > 1 else [label]
        gains = tuple(gain_of(name, rules[name]) if c.views == "zoom" else 0.0 for name in labels)
        photographic = {"blur": (1.0, 0.1, 0.5), "solarize": 0.2} if c.views == "area" else {}
        floors = [rules[name].no_echo for name in labels if rules[name].rule in ("reflectivity", "rain")]
        return ViewSpec(
            global_size=c.global_size, local_size=c.local_size, local_views=c.local_crops_number, mode=c.views,
            zoom=_pair(c.zoom), global_area=_pair(c.global_crops_scale),
            local_area=_pair(c.local_crops_scale), gain=gains if len(gains) > 1 else gains[0],
            gain_floor=min(floors, default=None), flips=self._flips(labels),
            fill=rules[labels[0]].fill, **photographic,
        )  # fmt: skip

    def _flips(self, labels: list[str]) -> Any:
        """As configured, but mirrored wind is another wind: its sign says which way it blows or turns."""
        if self.config.flips == "none":
            return "none"
        stored = open_packed(self.config.store)
        variables = sorted({label.split("@")[0] for label in labels})
        names = {name: (name, str(stored[name].attrs.get("standard_name"))) for name in variables}
        handed = [name for name in variables if any(is_handed(text) for text in names[name])]
        if handed:
            logger.warning(
                "--flips: views of %s are not mirrored, that would turn them about", ", ".join(handed)
            )
        return "none" if handed else self.config.flips

    def draw(self, batch: Batch, index: np.ndarray, epoch: int) -> list[DrawnView]:
        """Decode, draw and mask: see `Source.draw`."""
        values, valid = self.dataset.decode(batch)
        values, valid, seeds, partner = _split(values, valid, batch, self.config, epoch)
        views = self._draw(values, valid, seeds, partner, index)
        return [DrawnView(x, self._missing(seen), None) for x, seen in views]

    def _missing(self, seen: Tensor) -> Tensor | None:
        """Tokens of which less than half was observed; None for a network without a content for them."""
        return None if self.config.dino_v1 else token_coverage(seen, self.patch_size) < 0.5

    def whole(self, batch: Batch) -> DrawnView:
        """See `Source.whole`; `gridrad_cube.embedding` does the same."""
        values, valid = self.dataset.decode(batch)
        rules = list(self.dataset.normalizations.values())
        fill: float | Tensor = rules[0].fill
        if self.in_channels == 1:
            fill = torch.tensor([rule.fill for rule in rules], device=values.device)[batch.channel]
        x, seen = whole_view(values, valid, fill=fill)
        return DrawnView(x, self._missing(seen), None)

    def _draw(
        self, values: Tensor, valid: Tensor, seeds: Tensor, partner: View | None, index: np.ndarray
    ) -> list[View]:
        kinds = list(dict.fromkeys(self._specs))
        if len(kinds) == 1 or self.in_channels > 1:
            return draw_views(values, valid, kinds[0], seeds, partner)
        # Channels of one batch differ in gain and fill; the seeds are the samples', so parts draw what the
        # whole would.
        of = np.array([kinds.index(spec) for spec in self._specs])[self.dataset.table.channel[index]]
        out: list[View] = []
        for number in np.unique(of).tolist():
            rows = _to_device(np.flatnonzero(of == number), values.device)
            other = None if partner is None else (partner[0][rows], partner[1][rows])
            part = draw_views(values[rows], valid[rows], kinds[number], seeds[rows], other)
            if not out:
                out = [tuple(t.new_zeros((len(values), *t.shape[1:])) for t in view) for view in part]  # type: ignore[misc]
            for whole, view in zip(out, part, strict=True):
                for target, piece in zip(whole, view, strict=True):
                    target[rows] = piece
        return out

    def state(self) -> dict[str, Any]:
        """See `Source.state`."""
        return {
            "normalization": {k: v.to_dict() for k, v in self.dataset.normalizations.items()},
            "channels": list(self.dataset.labels),
            "channel_mode": self.dataset.channel_mode,
            "coarsen": self.config.coarsen,
            "view": {
                **dataclasses.asdict(self._specs[0]), "pixel_spacing_km": pixel_spacing_km(self.config.store),
                "field": self.field,
            },
        }  # fmt: skip


class GridSource:
    """Grids of patch embeddings: level 2k."""

    level: Level = "2k"
    patch_size = 1

    def __init__(self, config: Config, normalization: Mapping[str, Any] | None = None) -> None:
        if config.bbox:
            raise SchemaError("--bbox: grids are whole crops; choose them by --time, or embed a smaller cube")
        self.config = config
        self.arch = _arch(config, self.level, "vit2k_xs")
        self.dataset = GridDataset(config.store, **_selection(config), normalization=normalization)
        self.strata = self.dataset.strata
        self.samples = _number(self.strata)
        self.in_channels = self.dataset.shape[0]
        self.image_size = max(self.dataset.shape[1:]) if config.image_size == "auto" else config.image_size
        self.loaded = _with_partners(self.dataset, config)
        self.global_views, self.views = 2, 2 + config.local_crops_number
        if config.flips == "d4":
            raise SchemaError(
                "--flips: got 'd4'; expected none or h at level 2k, whose cells cannot be turned"
            )
        whole = {"global_fraction": 1.0, "token_dropout": 0.0} if config.views == "area" else {}
        self._spec = GridViewSpec(local_views=config.local_crops_number, flips=config.flips, **whole)

    def draw(self, batch: Batch, index: np.ndarray, epoch: int) -> list[DrawnView]:
        """Standardise and draw; cells that do not count are masked in attention. See `Source.draw`."""
        values, cells, seeds, partner = _split(*self.dataset.decode(batch), batch, self.config, epoch)
        views = draw_grid_views(values, cells, self._spec, seeds, partner)
        return [DrawnView(x, None, kept) for x, kept in views]

    def whole(self, batch: Batch) -> DrawnView:
        """See `Source.whole`; `gridrad_cube.embedding` does the same."""
        values, cells = self.dataset.decode(batch)
        return DrawnView(values, None, cells)

    def state(self) -> dict[str, Any]:
        """See `Source.state`."""
        return {
            "normalization": self.dataset.normalization,
            "channels": list(self.dataset.labels),
            "channel_mode": "each",
            "coarsen": 1,
            "view": {**dataclasses.asdict(self._spec), "grid": list(self.dataset.shape[1:])},
        }


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    return values[0], values[1]


def is_handed(name: str) -> bool:
    """Whether a field of this name, or CF standard name, changes its sign in a mirror: wind, shear, rotation."""
    return any(word in name.lower() for word in _HANDED)


def gain_of(label: str, rule: Normalization) -> float:
    """Largest random offset of a channel in the numbers that a network sees."""
    if rule.rule == "reflectivity":
        return GAIN_DBZ / rule.std
    if rule.rule == "rain":
        return GAIN_LOG_RAIN
    channel = CHANNELS.get(label.split("@")[0])  # kind "other" has no gain
    return GAIN.get(channel.kind, 0.0) / rule.std if channel else 0.0


def pixel_spacing_km(store: str, crops: int = 16) -> float | None:
    """Distance of neighbouring pixels in the middle of a cube's first crops, km; None for one-patch crops."""
    dataset = open_packed(store)
    place = dataset[["latitude", "longitude"]].isel(crop=slice(0, crops))
    latitude, longitude = place["latitude"].values, place["longitude"].values
    patch = int(store_info(store)["patch"])
    for axis in (1, 2):
        low, high = (np.arange(latitude.shape[axis])[s] for s in (slice(None, -1), slice(1, None)))
        a, b = ([np.take(v, i, axis) for v in (latitude, longitude)] for i in (low, high))
        step = great_circle_km(a[0], a[1], b[0], b[1]) / patch
        if np.isfinite(step).any():
            return float(np.nanmedian(step))
    return None
