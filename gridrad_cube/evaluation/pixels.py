"""What the pixels of samples say: attributes for probes, and the vectors that a network has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from gridrad_cube.schema import Channel, Packing, channel_in
from gridrad_cube.store import PatchReader

#: Pixels that are decoded at once.
_PIXELS = 2**22
#: Cloud tops colder than this, K, are those of deep convection; echo of 40 dBZ is its core.
COLD_CLOUD_K, CORE_DBZ, ECHO_TOP_DBZ = 220.0, 40.0, 18.5
#: Bins of the histogram, and edge in blocks of the picture that principal components are taken of.
_BINS, _EDGE = 32, 32


@dataclass(frozen=True)
class Attribute:
    """Something that a patch (or a crop) has, told from its pixels.

    Attributes
    ----------
    yes_no
        Whether it is there or not; else a number in ``units``.
    storm
        Whether a positive value means deep convection.
    """

    name: str
    long_name: str
    units: str
    yes_no: bool = False
    storm: bool = False


ATTRIBUTES = {
    a.name: a
    for a in (
        Attribute("minimum_brightness_temperature", "minimum brightness temperature", "K"),
        Attribute("cold_cloud_share", f"share of pixels below {COLD_CLOUD_K:g} K", "1", storm=True),
        Attribute("echo_top_height", "highest echo top", "km"),
        Attribute("core_share", f"share of pixels above {CORE_DBZ:g} dBZ", "1", storm=True),
        Attribute("overshooting_top", "overshooting top: yes or no", "1", yes_no=True),
    )
}
#: Which attributes a variable of the cube tells, best first; of two variables that tell the same the first is read.
_TOLD_BY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ir_brightness_temperature", ("minimum_brightness_temperature", "cold_cloud_share")),
    ("echo_top_height", ("echo_top_height",)),
    ("reflectivity_column_maximum", ("core_share",)),
    ("reflectivity", ("echo_top_height", "core_share")),
    ("ot_id_number", ("overshooting_top",)),
)


@dataclass(frozen=True)
class Windows:
    """Windows of a cube's crops, all of one size: patches, or whole crops.

    Attributes
    ----------
    crop, y, x
        Position of the crop, and first row and column of pixels in it, of each.
    shape
        Height and width in pixels.
    """

    crop: np.ndarray
    y: np.ndarray
    x: np.ndarray
    shape: tuple[int, int]


def told(cube: xr.Dataset) -> dict[str, tuple[str, ...]]:
    """Which variables of a cube to read for which attributes."""
    out: dict[str, tuple[str, ...]] = {}
    known: set[str] = set()
    for variable, names in _TOLD_BY:
        new = tuple(n for n in names if n not in known)
        if variable in cube.data_vars and new and {"y", "x"} <= set(cube[variable].dims):
            out[variable] = new
            known |= set(new)
    return out


def look(
    cube: xr.Dataset, windows: Windows, members: Sequence[str], *, block: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Attributes of windows, and what their pixels are as vectors.

    Parameters
    ----------
    cube
        From `gridrad_cube.open_packed`.
    members
        Labels of the channels that an embedding is made of: the vectors are of these.
    block
        Windows whose pixels are read together; None for about four million pixels. Results do not depend on it.

    Returns
    -------
    Attribute -> values (windows,), float64, NaN where under half of the window was observed; and ``moments``,
    ``histogram`` and ``picture`` (block means) -> (windows, features), float32.
    """
    reader = PatchReader(str(cube.encoding["source"]))
    step = block or max(1, _PIXELS // (windows.shape[0] * windows.shape[1]))
    attributes: dict[str, list[np.ndarray]] = {}
    vectors: dict[str, list[np.ndarray]] = {"moments": [], "histogram": [], "picture": []}
    for start in range(0, max(len(windows.crop), 1), step):  # once for none: the shapes are known then
        some = slice(start, start + step)
        part = Windows(windows.crop[some], windows.y[some], windows.x[some], windows.shape)
        fields = {label: _field(cube, reader, label, part) for label in members}
        for variable, names in told(cube).items():
            for name, values in _attributes(cube, reader, variable, names, part, fields).items():
                attributes.setdefault(name, []).append(values)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in vectors}
        for f in fields.values():
            parts["moments"].append(_moments(f.values, f.echo, f.channel))
            parts["histogram"].append(_histogram(f.values, f.echo, f.channel))
            parts["picture"].append(_picture(f.values, f.echo, f.channel, windows.shape))
        for name, columns in parts.items():
            vectors[name].append(np.concatenate(columns, axis=1).astype(np.float32))
    return (
        {name: np.concatenate(found) for name, found in attributes.items()},
        {name: np.concatenate(found) for name, found in vectors.items()},
    )


@dataclass(frozen=True)
class _Field:
    """Pixels of windows, (windows, pixels): values, NaN where not observed; where they are echoes; which are absent."""

    values: np.ndarray
    echo: np.ndarray
    absent: np.ndarray
    channel: Channel


def _field(cube: xr.Dataset, reader: PatchReader, label: str, windows: Windows) -> _Field:
    name, _, height = label.partition("@")
    variable = cube[name]
    level = (
        int(np.abs(cube["altitude"].values - float(height.removesuffix("km"))).argmin()) if height else None
    )
    codes, absent = _codes(reader, name, variable.dtype, windows, level)
    packing = Packing.from_attributes(variable.attrs, variable.dtype)
    values = packing.decode(codes)
    values[absent] = np.nan
    echo = packing.echo(codes) & ~absent[:, None]
    return _Field(values, echo, absent, channel_in(name, variable.attrs, variable.dtype))


def _codes(
    reader: PatchReader, name: str, dtype: np.dtype, windows: Windows, level: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Packed pixels (windows, pixels), and which windows are of crops that lack the channel."""
    absent = reader.absent(name, windows.crop)
    at = [] if level is None else [level]
    (height, width), size = windows.shape, reader.patch
    aligned = (height, width) == (size, size) and not ((windows.y % size).any() or (windows.x % size).any())
    there = np.flatnonzero(~absent)
    out = np.zeros((len(windows.crop), height, width), dtype)
    if aligned:
        columns = [
            windows.crop,
            *(np.full(len(windows.crop), a) for a in at),
            windows.y // size,
            windows.x // size,
        ]
        if len(there):
            out[there] = reader.read(name, np.stack(columns, axis=1)[there])
    else:
        for i in there:
            y, x = int(windows.y[i]), int(windows.x[i])
            box = (slice(y, y + height), slice(x, x + width))
            out[i] = reader.read_window(name, (int(windows.crop[i]), *at, *box))
    return out.reshape(len(out), height * width), absent


def _attributes(
    cube: xr.Dataset,
    reader: PatchReader,
    variable: str,
    names: tuple[str, ...],
    windows: Windows,
    fields: Mapping[str, _Field],
) -> dict[str, np.ndarray]:
    """The attributes that a variable tells."""
    if "altitude" in cube[variable].dims:
        return _of_volume(cube, reader, variable, names, windows)
    field = fields.get(variable) or _field(cube, reader, variable, windows)
    if names == ("overshooting_top",):  # numbers of tops; 0 or missing where there is none
        return {names[0]: np.where(field.absent, np.nan, (np.nan_to_num(field.values) > 0).any(axis=1))}
    out = {}
    for name in names:
        if name == "minimum_brightness_temperature":
            found = np.where(np.isfinite(field.values), field.values, np.inf).min(axis=1)
        elif name == "cold_cloud_share":
            found = _share(field.values < COLD_CLOUD_K, field.values)
        elif name == "core_share":
            found = _share(field.echo & (field.values >= CORE_DBZ), field.values)
        else:
            found = np.where(field.echo, field.values, -np.inf).max(axis=1)
        out[name] = _where_observed(found, field.values)
    return out


def _of_volume(
    cube: xr.Dataset, reader: PatchReader, variable: str, names: tuple[str, ...], windows: Windows
) -> dict[str, np.ndarray]:
    """Echo top and core of a field on altitudes: the highest level with an echo, and the maximum of the column."""
    count, pixels = len(windows.crop), windows.shape[0] * windows.shape[1]
    most = np.full((count, pixels), np.nan, np.float32)
    top = np.full(count, -np.inf)
    for height in cube["altitude"].values:
        field = _field(cube, reader, f"{variable}@{float(height)}km", windows)
        top = np.where(
            (field.echo & (field.values >= ECHO_TOP_DBZ)).any(axis=1), np.maximum(top, height), top
        )
        most = np.fmax(most, field.values)
    found = {"echo_top_height": top, "core_share": _share(most >= CORE_DBZ, most)}
    return {name: _where_observed(found[name], most) for name in names}


def _share(which: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of the observed pixels."""
    return np.asarray(which.sum(axis=1) / np.maximum(np.isfinite(values).sum(axis=1), 1))


def _where_observed(found: np.ndarray, values: np.ndarray) -> np.ndarray:
    """NaN where under half was observed, and where there is no value (no echo has no top)."""
    enough = np.isfinite(values).sum(axis=1) >= values.shape[1] / 2
    return np.where(enough & np.isfinite(found), found, np.nan).astype(np.float64)


def _quiet(values: np.ndarray, echo: np.ndarray, channel: Channel) -> np.ndarray:
    """Values with what is no echo at the foot of the channel's range, and what was not observed at the mean."""
    if channel.has_echo:
        low = np.float32(channel.typical_range[0])
        values = np.where(echo, np.maximum(values, low), np.where(np.isfinite(values), low, np.nan))
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(axis=1, dtype=np.float64) / np.maximum(known.sum(axis=1), 1)
    return np.where(known, values, mean[:, None]).astype(np.float32)


def _moments(values: np.ndarray, echo: np.ndarray, channel: Channel) -> np.ndarray:
    """Mean, deviation, skewness, kurtosis, minimum, maximum, shares observed and of echo."""
    filled = _quiet(values, echo, channel).astype(np.float64)
    mean, std = filled.mean(axis=1), filled.std(axis=1)
    scaled = (filled - mean[:, None]) / np.where(std > 0, std, 1.0)[:, None]
    shares = [np.isfinite(values).mean(axis=1), echo.mean(axis=1)]
    squares = scaled * scaled
    third, fourth = (squares * scaled).mean(axis=1), (squares * squares).mean(axis=1)
    return np.stack([mean, std, third, fourth, filled.min(axis=1), filled.max(axis=1), *shares], axis=1)


def _histogram(values: np.ndarray, echo: np.ndarray, channel: Channel) -> np.ndarray:
    """Shares of pixels in bins over the channel's typical range, and of those without a value in one more."""
    low, high = channel.typical_range
    part = np.nan_to_num((values - low) / (high - low), nan=0.0, posinf=0.0, neginf=0.0)
    bins = np.where(echo, np.clip(part * _BINS, 0, _BINS - 1).astype(np.int64), _BINS)
    rows = len(values)
    bins += np.arange(rows)[:, None] * (_BINS + 1)
    counts = np.bincount(bins.reshape(-1), minlength=rows * (_BINS + 1)).reshape(rows, _BINS + 1)
    return np.sqrt(counts / values.shape[1])  # Hellinger: differences of small shares count


def _picture(values: np.ndarray, echo: np.ndarray, channel: Channel, shape: tuple[int, int]) -> np.ndarray:
    """Means of about 32 x 32 blocks: what principal components of pixels are taken of."""
    out = _quiet(values, echo, channel).astype(np.float64).reshape(len(values), *shape)
    for axis, edge in ((1, shape[0]), (2, shape[1])):
        starts = np.linspace(0, edge, min(edge, _EDGE), endpoint=False).astype(int)
        sizes = np.diff([*starts, edge])
        out = np.add.reduceat(out, starts, axis=axis) / (sizes[:, None] if axis == 1 else sizes)
    return np.asarray(out.reshape(len(out), out.shape[1] * out.shape[2]))
