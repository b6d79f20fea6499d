"""Attributes of pixels for probes, and baselines: vectors of pixels without training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gridrad_cube.geometry import reverse
from gridrad_cube.schema import Channel, Packing, SchemaError, channel_in
from gridrad_cube.selection import find_altitudes
from gridrad_cube.store import Orientation, PatchReader

if TYPE_CHECKING:
    from gridrad_cube.datasets import Normalization

#: Cloud tops colder than this, K, are those of deep convection; echo of 40 dBZ is its core.
_COLD_CLOUD_K, _CORE_DBZ, _ECHO_TOP_DBZ = 220.0, 40.0, 18.5
#: Pixels that are decoded at once.
_PIXELS = 2**22
#: Bins of the histogram.
_BINS = 32


@dataclass(frozen=True)
class Attribute:
    """A property of a patch (or a crop), computed from the first variable of ``sources`` that the cube has.

    ``yes_no`` says whether it is 0 or 1 instead of a number, and ``storm`` whether a positive value means deep
    convection.
    """

    long_name: str
    sources: tuple[str, ...]
    yes_no: bool = False
    storm: bool = False


_INFRARED, _RADAR = ("ir_brightness_temperature",), ("reflectivity_column_maximum", "reflectivity")
ATTRIBUTES = {
    "minimum_brightness_temperature": Attribute("minimum brightness temperature", _INFRARED),
    "cold_cloud_share": Attribute(f"share of pixels below {_COLD_CLOUD_K:g} K", _INFRARED, storm=True),
    "echo_top_height": Attribute("highest echo top", ("echo_top_height", "reflectivity")),
    "core_share": Attribute(f"share of pixels above {_CORE_DBZ:g} dBZ", _RADAR, storm=True),
    "overshooting_top": Attribute("overshooting top: yes or no", ("ot_id_number",), yes_no=True),
}


def describe_pixels(
    cube: xr.Dataset,
    crop: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    shape: tuple[int, int],
    members: tuple[str, ...],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the attributes of windows of a cube, and their pixels as vectors.

    Parameters
    ----------
    cube
        From `gridrad_cube.open_packed`.
    crop, y, x
        Position of the crop, and first row and column of pixels in it, of each window.
    shape
        Height and width of the windows.
    members
        Labels of the channels that an embedding is made of: the vectors are of these.

    Returns
    -------
    Attribute -> values (windows,), float64, NaN where under half of the window was observed; and ``histogram`` and
    ``descriptor`` -> (windows, features), float32. There is no descriptor where a channel has no typical range, or the
    edges of patches are not multiples of 8 pixels.
    """
    place = str(cube.encoding["source"])
    reader, rules, orientation = PatchReader(place), _rules(place, members), Orientation(cube)
    found = {name: [v for v in a.sources if v in cube.data_vars] for name, a in ATTRIBUTES.items()}
    told = {name: sources[0] for name, sources in found.items() if sources}
    levels = max([cube.sizes["altitude"] for v in told.values() if "altitude" in cube[v].dims], default=1)
    step = max(1, _PIXELS // (shape[0] * shape[1] * levels))
    attributes, vectors = defaultdict(list), defaultdict(list)
    # Once for no window: the numbers of features are known then.
    for start in range(0, max(len(crop), 1), step):
        some = slice(start, start + step)
        windows = crop[some], y[some], x[some], shape
        flips = orientation.of(crop[some])
        fields = {label: _read(cube, reader, flips, label, *windows) for label in {*members, *told.values()}}
        for name, source in told.items():
            attributes[name].append(_attribute(name, fields[source]))
        parts = [_histogram(fields[label]) for label in members]
        vectors["histogram"].append(np.concatenate(parts, axis=1).astype(np.float32))
        if rules:
            parts = [_descriptor(fields[label], rules[label], reader.patch) for label in members]
            vectors["descriptor"].append(np.concatenate(parts, axis=1))
    return (
        {name: np.concatenate(parts) for name, parts in attributes.items()},
        {name: np.concatenate(parts) for name, parts in vectors.items()},
    )


@dataclass(frozen=True)
class _Field:
    """A channel in windows: packed codes, values (NaN where not observed) and whether they are echo, (windows, levels,
    y, x).

    ``absent`` windows are of crops that lack the channel; altitudes of the levels in km, None for a channel without.
    """

    channel: Channel
    codes: np.ndarray
    values: np.ndarray
    echo: np.ndarray
    absent: np.ndarray
    altitudes: np.ndarray | None


def _read(
    cube: xr.Dataset, reader: PatchReader, flips: np.ndarray, label: str, crop: np.ndarray, y: np.ndarray,
    x: np.ndarray, shape: tuple[int, int],
) -> _Field:  # fmt: skip
    """Return a channel, at the altitude that the label names or at all that it has, north up and east right."""
    name, _, altitude = label.partition("@")
    variable, altitudes = cube[name], None
    levels: list[tuple[int, ...]] = [()]
    if "altitude" in variable.dims:
        altitudes = cube["altitude"].values
        wanted = [float(altitude.removesuffix("km"))] if altitude else altitudes
        levels = [(i,) for i in find_altitudes(altitudes, wanted, label)]
    absent, size = reader.absent(name, crop), reader.patch
    aligned = shape == (size, size) and not ((y % size).any() or (x % size).any())
    codes = np.zeros((len(crop), len(levels), *shape), variable.dtype)
    there = np.flatnonzero(~absent)
    for i, level in enumerate(levels):
        if aligned and len(there):
            index = [crop, *(np.full_like(crop, n) for n in level), y // size, x // size]
            codes[there, i] = reader.read(name, np.stack(index, axis=1)[there])
        else:
            for j in there:
                box = (slice(int(y[j]), int(y[j]) + shape[0]), slice(int(x[j]), int(x[j]) + shape[1]))
                codes[j, i] = reader.read_window(name, (int(crop[j]), *level, *box))
    packing, codes = Packing.from_attributes(variable.attrs, variable.dtype), reverse(codes, flips)
    values, echo = packing.decode(codes), packing.echo(codes)
    values[absent], echo[absent] = np.nan, False
    channel = channel_in(name, variable.attrs, variable.dtype)
    return _Field(channel, codes, values, echo, absent, altitudes)


def _attribute(name: str, field: _Field) -> np.ndarray:
    """Return an attribute of each window, float64; NaN where under half was observed, or where there is no
    value.
    """
    pixels = (len(field.values), field.values.shape[2] * field.values.shape[3])
    column = np.fmax.reduce(field.values, axis=1).reshape(pixels)  # the greatest of all levels
    observed = np.isfinite(column)
    count = np.maximum(observed.sum(axis=1), 1)
    if name == "overshooting_top":  # numbers of tops; 0 or missing without a top
        return np.where(field.absent, np.nan, (np.nan_to_num(column) > 0).any(axis=1))
    if name == "minimum_brightness_temperature":
        found = np.where(observed, column, np.inf).min(axis=1)
    elif name == "cold_cloud_share":
        found = (column < _COLD_CLOUD_K).sum(axis=1) / count
    elif name == "core_share":
        found = (column >= _CORE_DBZ).sum(axis=1) / count
    elif field.altitudes is None:
        found = np.where(field.echo, field.values, -np.inf).reshape(pixels).max(axis=1)
    else:
        high = (field.echo & (field.values >= _ECHO_TOP_DBZ)).any(axis=(2, 3))
        found = np.where(high, field.altitudes, -np.inf).max(axis=1)
    enough = observed.mean(axis=1) >= 0.5
    return np.where(enough & np.isfinite(found), found, np.nan).astype(np.float64)


def _histogram(field: _Field) -> np.ndarray:
    """Return the shares of pixels in bins over the channel's typical range, and of those without a value in
    one more.
    """
    rows, _, height, width = field.values.shape
    values, echo = (v[:, 0].reshape(rows, height * width) for v in (field.values, field.echo))
    low, high = field.channel.typical_range
    part = np.nan_to_num((values - low) / (high - low), nan=0.0, posinf=0.0, neginf=0.0)
    bins = np.where(echo, np.clip(part * _BINS, 0, _BINS - 1).astype(np.int64), _BINS)
    bins += np.arange(rows)[:, None] * (_BINS + 1)
    counts = np.bincount(bins.reshape(-1), minlength=rows * (_BINS + 1)).reshape(rows, _BINS + 1)
    return np.sqrt(counts / values.shape[1])  # Hellinger: differences of small shares count


def _rules(place: str, members: tuple[str, ...]) -> Mapping[str, Normalization]:
    """Return how the descriptor reads each channel; empty where it cannot."""
    from gridrad_cube.datasets import choose_coarsen, normalizations

    try:
        choose_coarsen(PatchReader(place).patch, None, place)
        return normalizations(place, members, scale="typical")
    except SchemaError:
        return {}


def _descriptor(field: _Field, rule: Normalization, patch: int) -> np.ndarray:
    """Return the descriptor of the channel, as `gridrad_cube.embedding.embed` makes it by default."""
    from gridrad_cube.datasets import choose_coarsen, describe

    coarsen, first = choose_coarsen(patch, None, "descriptor"), np.zeros(len(field.codes), np.int64)
    out = describe(field.codes, first, [rule], coarsen=coarsen, device="cpu")
    out[field.absent] = 0.0
    return out
