"""Packed codes to normalised values, whole batches at a time, on the device where they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from gridrad_cube.datasets.normalization import RAIN_FLOOR, Normalization, Rule, linear
from gridrad_cube.schema import SchemaError


def decode(
    codes: torch.Tensor,
    channel: torch.Tensor,
    normalizations: Mapping[str, Normalization] | Sequence[Normalization],
    *,
    coarsen: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn packed codes into normalised values, on the device where they are.

    Integers of up to 16 bits go through tables of all 65,536 of them, made once per device from
    `Normalization.apply`: the values are those of numpy, bit for bit. Other codes (int32, float32) take a
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
        #: The same by arithmetic, which on a CPU is quicker: what `linear` takes, (3, distinct normalisations), and
        #: what `_span` says of each.
        self.lines = np.array([rule.line for rule in distinct], np.float32).T.copy()
        spans = [
            _NO_SPAN if averaging else _span(rule, table)
            for rule, table in zip(distinct, values, strict=True)
        ]
        self._spans = np.array([span[:2] for span in spans], np.int32).T.copy()
        self._alike = np.array([span[2] for span in spans])
        self._dtypes = [np.dtype(rule.packing.dtype) for rule in distinct]

    def known(self, dtype: np.dtype[Any]) -> tuple[np.ndarray, ...]:
        """Tables, lines, spans, whether no other code is valid, and fill, for codes of a dtype.

        Arithmetic applies to codes of a packing's own dtype; others take the table.
        """
        own = np.array([d == dtype for d in self._dtypes])
        spans = np.where(own, self._spans, np.array(_NO_SPAN[:2], np.int32)[:, None])
        return self.values.numpy(), self.lines, spans, self._alike & own, self.fill.numpy()


#: Of a normalisation that arithmetic does not serve; see `_span`.
_NO_SPAN = 1, 0, False


def _span(rule: Normalization, table: np.ndarray) -> tuple[int, int, bool]:
    """First and last of the longest run of codes whose arithmetic gives the table's very bits.

    Third, whether no other code is valid, so that all others become the fill.
    """
    dtype = np.dtype(rule.packing.dtype)
    if rule.rule == "rain":
        return _NO_SPAN
    info = np.iinfo(dtype)
    codes = np.arange(info.min, info.max + 1)
    values = np.empty(codes.shape, np.float32)
    linear(codes.astype(dtype), values, np.array(rule.line, np.float32))
    same = np.concatenate([[False], values == table[codes & 0xFFFF], [False]])
    starts, stops = np.flatnonzero(np.diff(same)).reshape(-1, 2).T
    if not len(starts):
        return _NO_SPAN
    longest = int(np.argmax(stops - starts))
    start, stop = int(starts[longest]), int(stops[longest])
    others = table[np.delete(codes, slice(start, stop)) & 0xFFFF]
    return int(codes[start]), int(codes[stop - 1]), bool(np.isnan(others).all())


@functools.lru_cache(maxsize=16)
def _tables(rules: tuple[Normalization, ...], averaging: bool, device: torch.device) -> _Tables:
    with torch.inference_mode(False):
        return _Tables(rules, averaging, device)


def _masked(rule: Normalization, codes: np.ndarray, averaging: bool) -> np.ndarray:
    if averaging:
        return rule.amounts(codes)
    values, valid = rule.apply(codes)
    return np.where(valid, values, np.float32("nan"))


def _tabled(rules: tuple[Normalization, ...]) -> bool:
    """Whether all codes are integers of at most 16 bits."""
    dtypes = [np.dtype(rule.packing.dtype) for rule in rules]
    return all(dtype.kind in "iu" and dtype.itemsize <= 2 for dtype in dtypes)


def _look_up(
    codes: torch.Tensor, which: torch.Tensor, rules: tuple[Normalization, ...], *, averaging: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values with the fill where not valid (0 for amounts), and the mask of valid pixels."""
    if not _tabled(rules):
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


#: Pixels that numpy computes at a time: few enough for the cache, and enough that threads that read meanwhile do not
#: fight over Python's lock, which every step takes anew.
_TOGETHER = 2**19


def _take(
    codes: torch.Tensor, which: torch.Tensor, tables: _Tables, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    values, valid = _empty(codes.shape, dtype), _empty(codes.shape, torch.bool)
    planes, pixels = math.prod(codes.shape[:2]), math.prod(codes.shape[2:])  # a batch may be empty
    packed, mask = codes.numpy().reshape(planes, pixels), valid.numpy().reshape(planes, pixels)
    rows = tables.row[which].expand(codes.shape[:2]).reshape(-1).numpy()
    out, known = values.reshape(planes, pixels), tables.known(packed.dtype)
    step = max(1, _TOGETHER // max(1, pixels))
    scratch = np.empty((step, pixels), np.float32)
    for start in range(0, planes, step):
        block = slice(start, start + step)
        part = out[block].numpy() if dtype == torch.float32 else scratch[: len(packed[block])]
        _with_numpy(packed[block], rows[block], known, part, mask[block])
        if dtype != torch.float32:
            _convert(torch.from_numpy(part), out[block])
    return values, valid


def _empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """As `torch.empty`, but in large pages where the system has them: numpy asks for them, torch does not."""
    return torch.from_numpy(np.empty(tuple(shape), f"u{dtype.itemsize}")).view(dtype)


def _with_numpy(
    codes: np.ndarray, rows: np.ndarray, known: Sequence[np.ndarray], values: np.ndarray, valid: np.ndarray
) -> None:
    """Decode planes of codes to float32.

    Parameters
    ----------
    codes
        Shape (planes, pixels).
    rows
        Which normalization each plane takes, shape (planes,).
    known
        Of each normalization, as `_Tables.known` gives them.
    values, valid
        Where to put values and valid pixels, shape (planes, pixels).
    """
    tables, lines, spans, alike, fill = known
    first, last = spans[:, rows]
    odd = (codes.min(axis=1) < first) | (codes.max(axis=1) > last)
    if (~odd | alike[rows]).any():
        one = (rows == rows[0]).all()  # one number is quicker than one for each plane
        linear(codes, values, lines[:, rows[0]] if one else lines[:, rows, None])
    valid[...] = True
    for i in np.flatnonzero(odd):
        row = rows[i]
        if alike[row]:
            np.less_equal(spans[0, row], codes[i], out=valid[i])
            valid[i] &= codes[i] <= spans[1, row]
        else:
            np.take(tables[row], _unsigned(codes[i]), out=values[i], mode="clip")
            np.equal(values[i], values[i], out=valid[i])
        np.copyto(values[i], fill[row], where=~valid[i])


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
