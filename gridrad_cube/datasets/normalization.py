"""Normalize channels for a network or the descriptor: the rule of each channel, and decoding by it.

Rules are fixed for each channel and kept in checkpoints, so that training and embedding decode alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import avg_pool2d

from gridrad_cube.models import FIELD_MULTIPLE, describe_maps, local_maps
from gridrad_cube.schema import Packing, SchemaError, build_spec, channel_in
from gridrad_cube.store import open_packed, store_info

_Rule = Literal["reflectivity", "decibel", "rain", "standard"]
_RULES = get_args(_Rule)
_Scale = Literal["statistics", "typical"]

#: Rain rates below this, mm/h, count as no rain: log10 of it is the -1 that reflectivity has there too.
_RAIN_FLOOR = 0.1
#: Largest dBZ in averages. No real echo is as strong, and it keeps sums of linear Z finite in float32.
_LARGEST_DBZ = 300.0


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The rule that turns the codes of one channel into the input of a network.

    ``rule`` is one of

    - ``decibel``: ``(max(dBZ, 0) - mean) / std``; with mean and std 20, 0 dBZ is -1;
    - ``reflectivity``: the same, but coarsening averages linear Z instead of dBZ; earlier checkpoints have it;
    - ``rain``: ``(log10(max(mm/h, 0.1)) - mean) / std``; with mean 0 and std 1 no rain is -1;
    - ``standard``: ``(value - mean) / std``.

    ``fill`` is the value of pixels that were not observed, are out of range or not finite (they are not
    valid). ``no_echo`` is the value of pixels that were observed without echo, or whose echo quality control
    removed (they are valid). ``packing`` defines the codes.
    """

    rule: _Rule
    mean: float
    std: float
    fill: float
    no_echo: float
    packing: Packing

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise SchemaError(f"normalization: unknown rule, got {self.rule!r}; expected one of {_RULES}")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise SchemaError(
                f"normalization: no spread to divide by, got mean {self.mean} and std {self.std}; expected "
                "finite numbers and a std above 0. Leave the channel out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict of JSON types, the inverse of `from_dict`.

        Returns
        -------
        The dict.
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from a checkpoint's dict; unknown keys are refused by name."""
        values = dict(data) | {"packing": build_spec(Packing, data.get("packing", {}))}
        return cast(Self, build_spec(cls, values))

    def apply(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normalized values, and which pixels are valid. `decode` returns the same values.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        Values, float32, and booleans of the same shape.
        """
        codes = codes.astype(self.packing.dtype, copy=False)
        echo, valid = self.packing.echo(codes), self.packing.observed(codes)
        if self.rule != "rain" and _has_table(self):
            values = codes.astype(np.float32)
            values *= np.float32(self.packing.scale_factor / self.std)
            values += np.float32((self.packing.add_offset - self.mean) / self.std)
        else:
            values = np.where(echo, self.packing.decode(codes), np.float32(0))
            if self.rule == "rain":
                values = np.log10(np.maximum(values, np.float32(_RAIN_FLOOR)))
            values = (values - np.float32(self.mean)) / np.float32(self.std)
        if self.rule in ("reflectivity", "decibel"):
            values = np.maximum(values, np.float32((0.0 - self.mean) / self.std))
        values[~echo] = self.no_echo
        values[~valid] = self.fill
        return values, valid

    def amounts(self, codes: np.ndarray) -> np.ndarray:
        """Return the values that coarsening averages.

        Parameters
        ----------
        codes
            Packed codes of any shape.

        Returns
        -------
        float32; NaN where not observed, infinite without echo.
        """
        codes = codes.astype(self.packing.dtype, copy=False)
        echo, observed = self.packing.echo(codes), self.packing.observed(codes)
        values = np.where(echo, self.packing.decode(codes).astype(np.float64), 0.0)
        if self.rule == "reflectivity":
            values = 10.0 ** (np.minimum(values, _LARGEST_DBZ) / 10.0)
        elif self.rule == "decibel":
            values = np.maximum(values, 0.0)
        return np.where(observed, np.where(echo, values, np.inf), np.nan).astype(np.float32)


#: Smallest edge of a patch in pixels after coarsening, by default. Smaller patches lose fine texture.
_DESCRIBED_EDGE = 128
#: Pixels that are described together, so that the work fits into the cache of a core.
_DESCRIBED_TOGETHER = 2**17

_Rules = tuple[Normalization, ...]
_Function = Callable[[Normalization, np.ndarray], np.ndarray]


def normalizations(
    store: str | os.PathLike[str],
    channels: Sequence[str],
    *,
    like: Mapping[str, Normalization] | None = None,
    scale: _Scale = "statistics",
) -> dict[str, Normalization]:
    """Fix the normalization of channel labels, from a cube's packing and its training statistics or typical
    ranges.

    Radar in dBZ has the rule ``reflectivity``, rain ``rain``, and every other channel ``standard``. Missing
    pixels become -1 for radar and rain, as pixels without echo do, so that the edge of coverage does not look
    like that of a storm. In other channels they become 0.

    Parameters
    ----------
    store
        A finished cube.
    channels
        Labels, such as ``"ir_brightness_temperature"`` or ``"reflectivity@3.0km"``.
    like
        Normalizations of a checkpoint, whose rules and numbers are used with the packing of this store.
    scale
        ``"statistics"`` divides by the standard deviation of the store's clean patches (reflectivity by 20
        dBZ);
        ``"typical"`` takes the typical range of the channel to -1 and 1, alike for every store: reflectivity
        from
        0 dBZ, rain from 0.1 mm/h on a logarithmic scale.

    Returns
    -------
    One for each label.

    Raises
    ------
    SchemaError
        If a label is not in the store or not in ``like``, or its statistics are missing or have no spread.
    """
    dataset, statistics = open_packed(store), store_info(store, "patches").get("training_statistics") or {}
    out = {}
    for label in channels:
        variable = label.split("@", 1)[0]
        if variable not in dataset:
            raise SchemaError(f"{store}: no channel {label!r}")
        if like is not None and label not in like:
            raise SchemaError(
                f"{store}: channel {label!r} was not trained on; the checkpoint knows {list(like)}. "
                "Pass channels=... with some of these."
            )
        array = dataset[variable]
        packing = Packing.from_attributes(array.attrs, array.dtype)
        try:
            if like is not None:
                rule = like[label]
            elif scale == "typical":
                rule = _fit_typical(variable, array, packing)
            else:
                rule = _fit(variable, array, packing, statistics.get(label))
        except SchemaError as error:
            raise SchemaError(f"{store}: {label}: {error}") from error
        out[label] = dataclasses.replace(rule, packing=packing)
    return out


def _fit(
    variable: str, array: xr.DataArray, packing: Packing, statistics: Mapping[str, Any] | None
) -> Normalization:
    channel = channel_in(variable, array.attrs, array.dtype)
    units = array.attrs.get("units", channel.units)
    if channel.kind == "radar" and units == "dBZ":
        return Normalization(rule="decibel", mean=20.0, std=20.0, fill=-1.0, no_echo=-1.0, packing=packing)
    if channel.kind == "rain":
        return Normalization(rule="rain", mean=0.0, std=1.0, fill=-1.0, no_echo=-1.0, packing=packing)
    if not statistics or statistics.get("mean") is None or statistics.get("std") is None:
        raise SchemaError(
            "no training statistics: the store has no clean patch of it. Leave the channel out, or build the "
            "store from files that have it."
        )
    mean, std = float(statistics["mean"]), float(statistics["std"])
    # A radar height where no echo stands is 0 km; a moment there is unknown, so it takes the mean.
    no_echo = (0.0 - mean) / std if channel.kind == "radar" and std else 0.0
    return Normalization(rule="standard", mean=mean, std=std, fill=0.0, no_echo=no_echo, packing=packing)


def _fit_typical(variable: str, array: xr.DataArray, packing: Packing) -> Normalization:
    """Return the rule that takes the typical range of a channel to -1 and 1."""
    channel = channel_in(variable, array.attrs, array.dtype)
    (low, high), units = channel.typical_range, array.attrs.get("units", channel.units)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SchemaError(
            f"its typical range is not known, got {low} to {high}; expected finite numbers. State valid_min and "
            "valid_max in the source files, or leave the channel out"
        )
    rule: _Rule = "standard"
    if channel.kind == "radar" and units == "dBZ":
        rule, low = "decibel", 0.0
    elif channel.kind == "rain":
        rule, low, high = "rain", math.log10(_RAIN_FLOOR), math.log10(high)
    mean, std = (low + high) / 2, (high - low) / 2
    no_echo = -1.0 if rule != "standard" else (0.0 - mean) / std if channel.kind == "radar" else 0.0
    fill = 0.0 if rule == "standard" else -1.0
    return Normalization(rule=rule, mean=mean, std=std, fill=fill, no_echo=no_echo, packing=packing)


def decode(
    codes: torch.Tensor,
    channel: torch.Tensor,
    normalizations: Mapping[str, Normalization] | Sequence[Normalization],
    *,
    coarsen: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn packed codes into normalized values, on the device where they are.

    Integers of up to 16 bits are looked up in tables of all 65,536 codes, which `Normalization.apply` fills once
    per device: the values equal those of numpy bit for bit. Other codes (int32, float32) are decoded on the host.
    Coarsening averages before it normalizes. Reflectivity in dBZ is averaged over observed pixels, with 0 dBZ
    for lower values and for no echo; rain in mm/h over observed pixels; other channels over pixels with a
    value. The mean of dBZ keeps more of the texture of a storm than that of linear Z, which depends mostly on
    the strongest pixels (``benchmarks/results/inputs.md``).

    Parameters
    ----------
    codes
        Shape (B, C, H, W).
    channel
        Shape (B,): with C = 1, the position in ``normalizations`` for each sample. If C is their number,
        channel i has the normalization i.
    normalizations
        One per label, in the order of the labels of the data set.
    coarsen
        Edge in pixels of the blocks that are averaged; a divisor of H and W.
    dtype
        Data type of the values.

    Returns
    -------
    values : (B, C, H / coarsen, W / coarsen)
        Free of NaN.
    valid : bool, of the same shape
        False where no part of a pixel or block was observed; its value is the fill.

    Raises
    ------
    SchemaError
        If C is neither 1 nor the number of normalizations, or ``coarsen`` does not divide the patch.
    """
    rules = tuple(normalizations.values()) if isinstance(normalizations, Mapping) else tuple(normalizations)
    channels, height, width = codes.shape[1:]
    if channels == len(rules) > 1:
        which = torch.arange(channels, device=codes.device)[None]
    elif channels == 1:
        which = channel.to(codes.device)[:, None]
    else:
        raise SchemaError(
            f"decode: codes have {channels} channels; expected 1, or one for each of {len(rules)} labels"
        )
    if coarsen < 1 or height % coarsen or width % coarsen:
        raise SchemaError(f"coarsen: got {coarsen}; expected a divisor of the patch, {(height, width)}")
    fill, no_echo, mean, std, rule = _parameters(rules, codes.device)[:, which, None, None]
    if coarsen == 1:
        values, valid = _look_up(codes, which, rules, _normalized)
    else:
        amounts, observed = _look_up(codes, which, rules, Normalization.amounts)
        echo = observed & torch.isfinite(amounts)
        looked, seen = (avg_pool2d(mask.float(), coarsen, divisor_override=1) for mask in (observed, echo))
        # Pixels without a value (no echo) do not count in the mean; for radar and rain they count as zero.
        counted = torch.where(rule == _RULES.index("standard"), seen, looked)
        total = avg_pool2d(torch.where(echo, amounts, 0.0), coarsen, divisor_override=1)
        average = total / counted.clamp(min=1)
        decibels = (10.0 * torch.log10(average)).clamp(min=0.0)
        values = (torch.where(rule == _RULES.index("reflectivity"), decibels, average) - mean) / std
        rain = (torch.log10(average.clamp(min=_RAIN_FLOOR)) - mean) / std
        values = torch.where(rule == _RULES.index("rain"), rain, values)
        valid = looked > 0
        values = torch.where(valid, torch.where(seen > 0, values, no_echo), fill)
    return values.to(dtype), valid


def describe(
    codes: np.ndarray,
    channel: np.ndarray,
    rules: Sequence[Normalization],
    *,
    coarsen: int,
    device: torch.device | str,
) -> np.ndarray:
    """Describe packed patches by the mean and standard deviation of their local maps; see `describe_maps`.

    Parameters
    ----------
    codes
        Shape (B, C, H, W), H and W multiples of 8 times ``coarsen``.
    channel, rules
        As for `decode`; the rules are those of `normalizations` with ``scale="typical"``.
    coarsen
        Edge in pixels of the blocks that are averaged first.
    device
        Where the maps are computed.

    Returns
    -------
    float32, (B, C * 68).
    """
    each, out = max(1, _DESCRIBED_TOGETHER * coarsen**2 // max(codes[:1].size, 1)), []
    with torch.inference_mode():
        for start in range(0, len(codes), each):
            some = slice(start, start + each)
            which = torch.from_numpy(np.asarray(channel[some], np.int64))
            packed = torch.from_numpy(codes[some]).to(device)
            values, valid = decode(packed, which, rules, coarsen=coarsen)
            fields = torch.where(valid, values, math.nan)
            out.append(describe_maps(local_maps(fields)).cpu().numpy())
    return np.concatenate(out)


def choose_coarsen(patch: int, coarsen: int | None, where: str) -> int:
    """Return the factor by which the descriptor averages patches before it describes them.

    Parameters
    ----------
    patch
        Edge of the patches in pixels.
    coarsen
        The requested factor; None for the largest that leaves edges of 128 px, 2 for patches of 256 px.
    where
        Name for the error.

    Returns
    -------
    The factor.

    Raises
    ------
    SchemaError
        If the edge of a coarsened patch would not be a multiple of 8.
    """
    fitting = [c for c in range(1, patch + 1) if patch % (c * FIELD_MULTIPLE) == 0]
    if coarsen is None and fitting:
        return max((c for c in fitting if patch // c >= _DESCRIBED_EDGE), default=1)
    if coarsen not in fitting:
        raise SchemaError(
            f"{where}: coarsen: got {coarsen} for patches of {patch} px; expected one of {fitting}, so that the edge "
            f"of a coarsened patch is a multiple of {FIELD_MULTIPLE}"
        )
    return coarsen


def _normalized(rule: Normalization, codes: np.ndarray) -> np.ndarray:
    """Return the normalized values, NaN where not valid."""
    values, valid = rule.apply(codes)
    return np.where(valid, values, np.float32("nan"))


def _has_table(rule: Normalization) -> bool:
    """Return whether codes are integers of at most 16 bits."""
    dtype = np.dtype(rule.packing.dtype)
    return dtype.kind in "iu" and dtype.itemsize <= 2


def _look_up(
    codes: torch.Tensor, which: torch.Tensor, rules: _Rules, function: _Function
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a function of each code under the normalization of its plane, the fill where it is NaN; and
    where it is not.
    """
    has_tables = all(map(_has_table, rules))
    if has_tables and codes.device.type != "cpu":
        tables, row = _tables(rules, function, codes.device)
        index = (codes.to(torch.int32) & 0xFFFF) + (row[which] << 16)[:, :, None, None]
        values = tables.view(-1).index_select(0, index.view(-1)).view(codes.shape)
        valid = ~torch.isnan(values)
        return torch.where(valid, values, _parameters(rules, codes.device)[0, which, None, None]), valid
    packed, labels = codes.cpu().numpy(), which.expand(codes.shape[:2]).cpu().numpy()
    found, is_nan = np.empty(packed.shape, np.float32), np.empty(packed.shape, bool)
    if has_tables:
        lists, number = (tensor.numpy() for tensor in _tables(rules, function, codes.device))
    for plane, label in np.ndenumerate(labels):  # one plane after another: each stays in the cache
        out, missing = found[plane], is_nan[plane]
        if has_tables:
            np.take(lists[number[label]], packed[plane], out=out, mode="wrap")
        else:
            out[:] = function(rules[label], packed[plane])
        if np.isnan(out, out=missing).any():
            np.copyto(out, np.float32(rules[label].fill), where=missing)
    is_valid = np.logical_not(is_nan, out=is_nan)
    return torch.from_numpy(found).to(codes.device), torch.from_numpy(is_valid).to(codes.device)


@functools.lru_cache(maxsize=16)
def _tables(rules: _Rules, function: _Function, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a function of all 16-bit codes under each distinct normalization, and which of these each label
    has.
    """
    distinct, codes = list(dict.fromkeys(rules)), np.arange(2**16, dtype=np.uint16)
    tables = np.stack([function(rule, codes) for rule in distinct])
    rows = [distinct.index(rule) for rule in rules]
    with torch.inference_mode(False):
        return torch.from_numpy(tables).to(device), torch.tensor(rows, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=16)
def _parameters(rules: _Rules, device: torch.device) -> torch.Tensor:
    """Return fill, value without echo, mean, standard deviation and number of the rule of each label, (5,
    labels).
    """
    rows = [(r.fill, r.no_echo, r.mean, r.std, _RULES.index(r.rule)) for r in rules]
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.float32, device=device).T
