"""What the codes of a channel become for a network: fixed per channel, kept in checkpoints, the same when embedding."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import xarray as xr

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
            linear(codes, values, np.array(self.line, np.float32))
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


def linear(codes: np.ndarray, out: np.ndarray, line: np.ndarray) -> None:
    """``max(codes * slope + offset, least)`` in float32; ``line`` (3, ...) fits the codes."""
    slope, offset, least = line
    np.copyto(out, codes, casting="unsafe")
    out *= slope
    out += offset
    if (least > -np.inf).any():
        np.maximum(out, least, out=out)
