"""Codes to the numbers that networks see: fixed per channel, kept in checkpoints, the same when embedding."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import avg_pool2d

from gridrad_cube.schema import Channel, Packing, SchemaError, build_spec, channel_in
from gridrad_cube.store import cube_info, open_packed

Rule = Literal["reflectivity", "rain", "standard"]

#: Rain rates below this, mm/h, count as no rain: log10 of it is the -1 that reflectivity has there too.
RAIN_FLOOR = 0.1
#: dBZ from here on are averaged as this: no echo comes near, and sums of linear Z stay finite in float32.
_LARGEST_DBZ = 300.0


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How the codes of one channel become the numbers a network sees.

    ``rule`` is one of

    - ``reflectivity``: ``(max(dBZ, 0) - mean) / std`` with mean and std 20, so that 0 dBZ is -1;
    - ``rain``: ``log10(max(mm/h, 0.1))``, so that no rain is -1 (mean and std are not used);
    - ``standard``: ``(value - mean) / std``.

    ``fill`` is what a pixel takes that was not observed, is out of range or not finite (it is not valid);
    ``no_echo`` what a pixel takes that was observed without echo, or whose echo quality control removed
    (it is valid). ``packing`` says what the codes mean.
    """

    rule: Rule
    mean: float
    std: float
    fill: float
    no_echo: float
    packing: Packing

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise SchemaError(
                f"normalization: unknown rule, got {self.rule!r}; expected one of {get_args(Rule)}"
            )
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise SchemaError(
                f"normalization: no spread to divide by, got mean {self.mean} and std {self.std}; expected "
                "finite numbers and a std above 0. Leave the channel out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from a checkpoint's dict; unknown keys are refused by name."""
        values = dict(data) | {"packing": build_spec(Packing, data.get("packing", {}))}
        return cast(Self, build_spec(cls, values))

    def apply(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised float32 values and the mask of valid pixels, in numpy; `decode` gives the same."""
        codes = codes.astype(self.packing.dtype, copy=False)
        echo, valid = self.packing.echo(codes), self.packing.observed(codes)
        values = np.empty(codes.shape, np.float32)
        if self.rule != "rain" and codes.dtype.kind in "iu" and codes.dtype.itemsize <= 2:
            _linear(codes, values, np.array(self.line, np.float32))
        else:
            values[...] = np.where(echo, self.packing.decode(codes), 0.0)
            if self.rule == "rain":
                values = np.log10(np.maximum(values, np.float32(RAIN_FLOOR)))
            else:
                if self.rule == "reflectivity":
                    values = np.maximum(values, np.float32(0))
                values = (values - np.float32(self.mean)) / np.float32(self.std)
        values[~echo] = self.no_echo
        values[~valid] = self.fill
        return values, valid

    @property
    def line(self) -> tuple[float, float, float]:
        """Slope, offset and least number of the rules that are linear in the code: two steps a pixel, not four."""
        slope = self.packing.scale_factor / self.std
        offset = (self.packing.add_offset - self.mean) / self.std
        return slope, offset, (0.0 - self.mean) / self.std if self.rule == "reflectivity" else -math.inf

    def amounts(self, codes: np.ndarray) -> np.ndarray:
        """What may be averaged (linear Z for dBZ), float32; NaN where not observed, infinite without echo."""
        codes = codes.astype(self.packing.dtype, copy=False)
        echo, observed = self.packing.echo(codes), self.packing.observed(codes)
        values = np.where(echo, self.packing.decode(codes).astype(np.float64), 0.0)
        if self.rule == "reflectivity":
            values = 10.0 ** (np.minimum(values, _LARGEST_DBZ) / 10.0)
        return np.where(observed, np.where(echo, values, np.inf), np.nan).astype(np.float32)


def normalizations(
    store: str | os.PathLike[str],
    channels: Sequence[str],
    *,
    like: Mapping[str, Normalization] | None = None,
) -> dict[str, Normalization]:
    """Fix the normalisation of channel labels, from a cube's training statistics and packing.

    Radar in dBZ takes the rule ``reflectivity``, rain ``rain``, everything else ``standard``. Missing pixels
    become -1 for radar and rain (as without echo: the edge of coverage is no edge of a storm), 0 for others.

    Parameters
    ----------
    store
        A finished cube.
    channels
        Labels, such as ``"ir_brightness_temperature"`` or ``"reflectivity@3.0km"``.
    like
        A checkpoint's normalisations: their rules and numbers are taken, with this store's packing.

    Raises
    ------
    SchemaError
        If a label is not in the store or not in ``like``, or its statistics are missing or have no spread.
    """
    dataset, statistics = open_packed(store), cube_info(store).get("training_statistics") or {}
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
        packing = Packing.from_attributes(dataset[variable].attrs, dataset[variable].dtype)
        if like is not None:
            out[label] = dataclasses.replace(like[label], packing=packing)
            continue
        try:
            array = dataset[variable]
            channel = channel_in(variable, array.attrs, array.dtype)
            out[label] = _fit(channel, array, packing, statistics.get(label))
        except SchemaError as error:
            raise SchemaError(f"{store}: {label}: {error}") from error
    return out


def _fit(
    channel: Channel, array: xr.DataArray, packing: Packing, statistics: Mapping[str, Any] | None
) -> Normalization:
    units = array.attrs.get("units", channel.units)
    if channel.kind == "radar" and units == "dBZ":
        return Normalization(
            rule="reflectivity", mean=20.0, std=20.0, fill=-1.0, no_echo=-1.0, packing=packing
        )
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


def decode(
    codes: torch.Tensor,
    channel: torch.Tensor,
    normalizations: Mapping[str, Normalization] | Sequence[Normalization],
    *,
    coarsen: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn packed codes into normalised values, on the device where they are.

    Codes of up to 16 bits go through tables of all 65,536 of them, made once per device from
    `Normalization.apply`: the values are those of numpy, bit for bit. Wider codes (int32, float32) take a
    detour over the host. Coarsening averages before it normalises: dBZ in linear Z over observed pixels with
    no echo as zero, rain over observed pixels, everything else over pixels that have a value.

    Parameters
    ----------
    codes
        Shape (B, C, H, W).
    channel
        Shape (B,): with C = 1, which of ``normalizations`` each sample takes. Where C is their number, each
        takes its own.
    normalizations
        One per label, in the order of the data set's labels.
    coarsen
        Edge in pixels of the blocks that are averaged; a divisor of H and W.
    dtype
        Of the values.

    Returns
    -------
    ``values`` (B, C, H / coarsen, W / coarsen), free of NaN, and ``valid``, bool, of the same shape: False
    where a pixel (or a whole block) has nothing observed and the value is the fill.

    Raises
    ------
    SchemaError
        If C fits neither 1 nor the number of normalisations, or ``coarsen`` does not divide the patch.
    """
    rules = tuple(normalizations.values()) if isinstance(normalizations, Mapping) else tuple(normalizations)
    which = _which(codes, channel, len(rules))
    if coarsen == 1:
        values, valid = _look_up(codes, which, rules, dtype=dtype)
    elif coarsen < 1 or codes.shape[2] % coarsen or codes.shape[3] % coarsen:
        raise SchemaError(
            f"coarsen: got {coarsen}; expected a divisor of the patch, {tuple(codes.shape[2:])}"
        )
    else:
        amounts, observed = _look_up(codes, which, rules, averaging=True)
        values, valid = _average(amounts, observed, which, rules, coarsen)
    return values.to(dtype), valid


def _which(codes: torch.Tensor, channel: torch.Tensor, labels: int) -> torch.Tensor:
    """Index of each plane's normalisation, (B, 1) or (1, C)."""
    planes = codes.shape[1]
    if planes == labels and labels > 1:
        return torch.arange(labels, device=codes.device)[None]
    if planes != 1:
        raise SchemaError(
            f"decode: codes have {planes} channels; expected 1, or one for each of {labels} labels"
        )
    return channel.to(codes.device)[:, None]


class _Tables:
    """Per distinct normalisation, what every 16-bit code becomes; and which label uses which."""

    def __init__(self, rules: tuple[Normalization, ...], averaging: bool, device: torch.device) -> None:
        distinct = list(dict.fromkeys(rules))
        codes = np.arange(2**16, dtype=np.uint16)
        values = [_masked(rule, codes, averaging) for rule in distinct]
        #: NaN where a code is not valid, (distinct normalisations, 65536).
        self.values = torch.from_numpy(np.stack(values)).to(device)
        self.fill = torch.tensor([0.0 if averaging else r.fill for r in distinct], device=device)
        self.row = torch.tensor([distinct.index(r) for r in rules], dtype=torch.int32, device=device)
        #: What `_linear` takes, (3, distinct normalisations).
        self.lines = np.array([rule.line for rule in distinct], np.float32).T
        #: The same by arithmetic, where that is quicker.
        self.arithmetic = [
            None if averaging else _Arithmetic.of(rule, table)
            for rule, table in zip(distinct, values, strict=True)
        ]


class _Arithmetic:
    """The numbers of a table by the arithmetic of its rule: on a CPU four times as fast as looking them up.

    Codes for which that does not give the table's very bits (fill, no echo, out of range) lie in a few ``runs``
    of neighbours that become the same number: first code, last code, number (NaN where not valid).
    """

    _MOST_RUNS = 8

    def __init__(self, rule: Normalization) -> None:
        self.rule, self.dtype = rule, np.dtype(rule.packing.dtype)
        self.runs: list[tuple[int, int, float]] = []

    @classmethod
    def of(cls, rule: Normalization, table: np.ndarray) -> Self | None:
        """For a rule and its table of all 65,536 codes; None where it does not pay."""
        out = cls(rule)
        if rule.rule == "rain" or out.dtype.kind not in "iu":
            return None
        info = np.iinfo(out.dtype)
        codes = np.arange(info.min, info.max + 1)
        values, right = np.empty(codes.shape, np.float32), table[codes & 0xFFFF]
        _linear(codes.astype(out.dtype), values, np.array(rule.line, np.float32))
        odd = np.flatnonzero(values != right)
        same = (right[odd[1:]] == right[odd[:-1]]) | (np.isnan(right[odd[1:]]) & np.isnan(right[odd[:-1]]))
        for run in np.split(odd, np.flatnonzero((np.diff(odd) != 1) | ~same) + 1):
            if len(run):
                out.runs.append((int(codes[run[0]]), int(codes[run[-1]]), float(right[run[0]])))
        return out if len(out.runs) <= cls._MOST_RUNS else None

    def mend(self, codes: np.ndarray, fill: float, values: np.ndarray, valid: np.ndarray) -> None:
        """Put right what the arithmetic gave for a plane of codes."""
        low, high = int(codes.min()), int(codes.max())
        for first, last, value in self.runs:
            if first > high or last < low:
                continue
            here = codes <= last
            if first > low:
                here &= codes >= first
            if math.isnan(value):
                np.copyto(valid, False, where=here)
            np.copyto(values, np.float32(fill if math.isnan(value) else value), where=here)


def _linear(codes: np.ndarray, out: np.ndarray, line: np.ndarray) -> None:
    """``max(codes * slope + offset, least)`` in float32; ``line`` (3, ...) fits the codes."""
    slope, offset, least = line
    np.copyto(out, codes, casting="unsafe")
    out *= slope
    out += offset
    if (least > -np.inf).any():
        np.maximum(out, least, out=out)


@functools.lru_cache(maxsize=16)
def _tables(rules: tuple[Normalization, ...], averaging: bool, device: torch.device) -> _Tables:
    with torch.inference_mode(False):
        return _Tables(rules, averaging, device)


def _masked(rule: Normalization, codes: np.ndarray, averaging: bool) -> np.ndarray:
    if averaging:
        return rule.amounts(codes)
    values, valid = rule.apply(codes)
    return np.where(valid, values, np.float32("nan"))


def _look_up(
    codes: torch.Tensor, which: torch.Tensor, rules: tuple[Normalization, ...], *, averaging: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values with the fill where not valid (0 for amounts), and the mask of valid pixels."""
    if any(np.dtype(rule.packing.dtype).itemsize > 2 for rule in rules):
        return _on_host(codes, which, rules, averaging=averaging)
    tables = _tables(rules, averaging, codes.device)
    if codes.device.type == "cpu":
        return _take(codes.contiguous(), which, tables, dtype)
    return _gather(codes, which, tables)


def _gather(codes: torch.Tensor, which: torch.Tensor, tables: _Tables) -> tuple[torch.Tensor, torch.Tensor]:
    index = codes.to(torch.int32)
    if codes.dtype not in (torch.uint8, torch.uint16):
        index = index & 0xFFFF
    row = tables.row[which]
    if len(tables.values) > 1:
        index = index + (row << 16)[:, :, None, None]
    values = tables.values.view(-1).index_select(0, index.reshape(-1)).reshape(codes.shape)
    valid = ~torch.isnan(values)
    return torch.where(valid, values, tables.fill[row][:, :, None, None]), valid


#: Pixels that are computed at a time: few enough for the cache, and enough that threads that read meanwhile do not
#: fight over Python's lock, which every step takes anew.
_TOGETHER = 2**19


def _take(
    codes: torch.Tensor, which: torch.Tensor, tables: _Tables, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    # numpy takes large arrays in large pages, which torch does not, and has no threads to wait for.
    packed = codes.numpy().reshape(-1, *codes.shape[2:])
    rows = tables.row[which].expand(codes.shape[:2]).reshape(-1).numpy()
    values, valid = np.empty(packed.shape, np.dtype(f"V{dtype.itemsize}")), np.empty(packed.shape, bool)
    out = torch.from_numpy(values.view(f"u{dtype.itemsize}")).view(dtype)
    step = max(1, _TOGETHER // max(1, packed[:1].size))
    scratch = np.empty((0 if dtype == torch.float32 else step, *packed.shape[1:]), np.float32)
    for start in range(0, len(packed), step):
        block = slice(start, start + step)
        part = values[block].view(np.float32) if dtype == torch.float32 else scratch[: len(packed[block])]
        _fill(packed[block], rows[block], tables, part, valid[block])
        if dtype != torch.float32:
            _convert(torch.from_numpy(part), out[block])
    return out.reshape(codes.shape), torch.from_numpy(valid.reshape(codes.shape))


def _fill(
    codes: np.ndarray, rows: np.ndarray, tables: _Tables, values: np.ndarray, valid: np.ndarray
) -> None:
    """Values and valid pixels of some planes, each with its normalisation."""
    quick = [t is not None and t.dtype == codes.dtype for t in tables.arithmetic]
    if any(quick[row] for row in rows):
        alike = (rows == rows[0]).all()  # one number is quicker than one for each plane
        _linear(codes, values, tables.lines[:, rows[0]] if alike else tables.lines[:, rows, None, None])
        valid[...] = True
        low, high = (f(codes.reshape(len(codes), -1), axis=1) for f in (np.min, np.max))
    for i, row in enumerate(rows.tolist()):
        arithmetic = tables.arithmetic[row]
        if arithmetic is not None and quick[row]:
            if any(first <= high[i] and last >= low[i] for first, last, _ in arithmetic.runs):
                arithmetic.mend(codes[i], float(tables.fill[row]), values[i], valid[i])
            continue
        np.take(tables.values[row].numpy(), _unsigned(codes[i]), out=values[i], mode="clip")
        np.equal(values[i], values[i], out=valid[i])
        if not valid[i].all():
            np.copyto(values[i], np.float32(tables.fill[row]), where=~valid[i])


def _convert(values: torch.Tensor, out: torch.Tensor) -> None:
    # In pieces that torch does not give to its threads, which cost more here than they save.
    for piece, target in zip(values.view(-1).split(2**15), out.view(-1).split(2**15), strict=True):
        target.copy_(piece)


def _unsigned(codes: np.ndarray) -> np.ndarray:
    """Places of codes in a table of 65,536."""
    if codes.dtype == np.int16:
        return codes.view(np.uint16)
    return codes.astype(np.int32) & 0xFFFF if codes.dtype.kind == "i" else codes


def _on_host(
    codes: torch.Tensor, which: torch.Tensor, rules: tuple[Normalization, ...], *, averaging: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    packed = codes.cpu().numpy()
    labels = which.expand(codes.shape[:2]).cpu().numpy()
    values = np.empty(packed.shape, np.float32)
    for label in np.unique(labels):
        chosen, rule = labels == label, rules[label]
        values[chosen] = _masked(rule, packed[chosen], averaging)
    valid = ~np.isnan(values)
    fill = np.array([0.0 if averaging else rule.fill for rule in rules], np.float32)
    values = np.where(valid, values, fill[labels][:, :, None, None])
    return torch.from_numpy(values).to(codes.device), torch.from_numpy(valid).to(codes.device)


@functools.lru_cache(maxsize=16)
def _parameters(rules: tuple[Normalization, ...], device: torch.device) -> dict[str, torch.Tensor]:
    """One number per label: its parameters, and the number of its rule."""
    with torch.inference_mode(False):
        out = {
            name: torch.tensor([getattr(rule, name) for rule in rules], dtype=torch.float32, device=device)
            for name in ("mean", "std", "fill", "no_echo")
        }
        return out | {
            "rule": torch.tensor([get_args(Rule).index(rule.rule) for rule in rules], device=device)
        }


def _average(
    amounts: torch.Tensor,
    observed: torch.Tensor,
    which: torch.Tensor,
    rules: tuple[Normalization, ...],
    edge: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    def total(x: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(x.to(torch.float32), edge, divisor_override=1)

    each = {name: p[which][:, :, None, None] for name, p in _parameters(rules, amounts.device).items()}
    rule = {name: each["rule"] == number for number, name in enumerate(get_args(Rule))}
    echo = observed & torch.isfinite(amounts)
    looked, seen = total(observed), total(echo)
    # Where a field has no value (no echo), it says nothing about the mean; radar and rain count it as zero.
    counted = torch.where(rule["standard"], seen, looked)
    mean = total(torch.where(echo, amounts, 0.0)) / counted.clamp(min=1)
    decibels = (10.0 * torch.log10(mean)).clamp(min=0.0)
    values = (torch.where(rule["reflectivity"], decibels, mean) - each["mean"]) / each["std"]
    values = torch.where(rule["rain"], torch.log10(mean.clamp(min=RAIN_FLOOR)), values)
    values = torch.where(seen > 0, values, each["no_echo"])
    return torch.where(looked > 0, values, each["fill"]), looked > 0
