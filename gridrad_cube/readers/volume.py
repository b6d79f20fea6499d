"""GridRad volumes as they lie in their files: lists of bins with echo, and counts of looks.

A quality-control step takes a `RadarVolume`, says per listed bin what it removes (``states`` of `densify`) or
works on the dense codes, and hands them to `gridrad_cube.readers.gridrad.fields_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.fields import encode, read_array
from gridrad_cube.readers.files import Source, text
from gridrad_cube.readers.grids import Grid, make_grid, read_altitudes, read_degrees
from gridrad_cube.readers.times import agreed_time, only_time, parse_stamp, parse_time
from gridrad_cube.schema import CHANNELS, SchemaError

#: Variables of the sparse layout by channel; ``w`` before the name is the bin's weight.
SPARSE_NAMES = {
    "reflectivity": "Reflectivity",
    "spectrum_width": "SpectrumWidth",
    "azimuthal_shear": "AzShear",
    "divergence": "Divergence",
    "differential_reflectivity": "DifferentialReflectivity",
    "specific_differential_phase": "DifferentialPhase",  # K_DP in spite of its name
    "correlation_coefficient": "CorrelationCoefficient",
}
#: Variables of the dense layout of 4.1 by channel. Its vorticity is no azimuthal shear and is not read.
DENSE_NAMES = {
    "reflectivity": "ZH",
    "spectrum_width": "SW",
    "divergence": "DIV",
    "differential_reflectivity": "ZDR",
    "specific_differential_phase": "KDP",
    "correlation_coefficient": "RHV",
}
#: Pixels of v4 lie at ``(n + 1/2)/48`` degree, those of v3.1 at multiples of 0.02; a hundredth of a step off
#: is float noise.
LATTICE = (96, 50)
AXIS_TOLERANCE_DEGREES = 2e-4
_DIMS = ("Altitude", "Latitude", "Longitude")
_VERSION = re.compile(r"(\d+)[._](\d+)")


@dataclass(frozen=True, kw_only=True)
class VolumeGrid:
    """Header of a GridRad file: axes, time and layout."""

    path: str
    format: str
    time: np.datetime64
    grid: Grid
    altitude_km: npt.NDArray[np.float64]
    names: Mapping[str, str]

    @property
    def version(self) -> str:
        """GridRad's version, such as ``4.2``."""
        return self.format.removeprefix("gridrad_v").replace("_", ".")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Levels, rows and columns."""
        return self.altitude_km.size, *self.grid.shape


@dataclass(frozen=True, kw_only=True)
class RadarVolume:
    """Bins of a GridRad file that have a value, with how often each bin was looked at.

    ``index`` (strictly ascending; int32 where that holds the grid, half the memory of tens of millions of bins)
    counts in C order over (altitude, latitude, longitude) of the whole file; ``values`` and ``weights`` by channel
    lie on it, in the channel's units. ``nradobs`` and ``nradecho`` are dense, ``(levels, latitude, longitude)``,
    over ``levels`` alone: the contiguous range of levels that was read. They are None where the file has none or
    they were not asked for.
    """

    header: VolumeGrid
    levels: range
    index: npt.NDArray[np.int32] | npt.NDArray[np.int64] = field(repr=False)
    values: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    weights: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    nradobs: npt.NDArray[np.int8] | None = field(repr=False)
    nradecho: npt.NDArray[np.int8] | None = field(repr=False)

    @property
    def plane(self) -> int:
        """Bins of one level."""
        return self.header.shape[1] * self.header.shape[2]

    def part(self, level: int) -> slice:
        """Where the listed bins of one level of the file lie in ``index``."""
        return _between(self.index, level * self.plane, (level + 1) * self.plane)

    def at_bins(self, counts: npt.NDArray[np.int8], level: int) -> npt.NDArray[np.int8]:
        """``nradobs`` or ``nradecho`` at the listed bins of one level of the file, on ``index[part(level)]``."""
        plane = counts[level - self.levels.start].reshape(-1)
        return plane[self.index[self.part(level)] - level * self.plane]


def is_sparse(source: Source) -> bool:
    """Whether a file has GridRad's sparse layout."""
    return {"index", "Reflectivity"} <= set(source.variables)


def is_dense(source: Source) -> bool:
    """Whether a file has GridRad 4.1's dense layout."""
    return "ZH" in source.variables and set(_DIMS) <= set(source.variables["ZH"].dims)


def read_volume_grid(source: Source) -> VolumeGrid:
    """Axes, time and layout of a GridRad file, without its bins."""
    source.require(("Longitude", "Latitude", "Altitude"), "a GridRad file")
    altitude = read_altitudes(source, "Altitude", ascending=True, units="km")
    latitude, longitude = read_degrees(source, "Latitude"), read_degrees(source, "Longitude")
    if latitude.ndim != 1 or longitude.ndim != 1:
        raise SchemaError(
            f"{source.path}: Latitude and Longitude have {latitude.ndim} dimensions; expected 1-D axes"
        )
    known = SPARSE_NAMES if is_sparse(source) else DENSE_NAMES
    header = VolumeGrid(
        path=source.path,
        format=format_of(source),
        time=agreed_time(
            source,
            [
                ("the time variable", only_time(source, "time") if "time" in source.variables else None, 0),
                ("Analysis_time", parse_time(text(source.attributes, "Analysis_time")), 1),
                ("the file name", parse_stamp(source.name), 60),
            ],
        ),
        grid=make_grid(
            latitude,
            longitude,
            where=source.path,
            lattice=LATTICE,
            tolerance=AXIS_TOLERANCE_DEGREES,
            rebuild=True,
        ),
        altitude_km=altitude,
        names={channel: name for channel, name in known.items() if name in source.variables},
    )
    _check_shapes(source, header)
    return header


def format_of(source: Source) -> str:
    """Version by ``Algorithm_version`` where it says one, else by what only one version has."""
    if not is_sparse(source):
        return "gridrad_v4_1"
    match = _VERSION.search(text(source.attributes, "Algorithm_version"))
    if match:
        return "gridrad_v3_1" if match[1] == "3" else "gridrad_v4_2"
    is_old = "files_merged" in source.variables and "SpectrumWidth" not in source.variables
    return "gridrad_v3_1" if is_old else "gridrad_v4_2"


def _check_shapes(source: Source, header: VolumeGrid) -> None:
    if is_sparse(source):
        length = source.variables["index"].shape
        for name in header.names.values():
            if len(length) != 1 or source.variables[name].shape != length:
                raise SchemaError(
                    f"{source.path}: {name} has shape {source.variables[name].shape}, index {length}; expected the "
                    "same one dimension"
                )
    for name in ("Nradobs", "Nradecho") if is_sparse(source) else tuple(header.names.values()):
        if name in source.variables:
            shape = source.variables[name].shape[-3:]
            if shape != header.shape:
                raise SchemaError(
                    f"{source.path}: {name} has shape {shape}; expected {header.shape} of the axes"
                )


def read_volume(
    source: Source,
    header: VolumeGrid,
    fields: Sequence[str] = ("reflectivity",),
    *,
    weights: bool = False,
    nradecho: bool = False,
    levels: range | None = None,
) -> RadarVolume:
    """Read the bins of some channels.

    The order of ``index`` in the file does not matter. Dense files (4.1) are gathered: their finite values
    are the listed bins, and they count no looks.

    Parameters
    ----------
    fields
        Channels (keys of ``header.names``).
    weights, nradecho
        Whether to read the weights of reflectivity, and the counts of echoes, too; quality control needs these.
    levels
        Contiguous levels to read; all by default.

    Raises
    ------
    SchemaError
        If ``index`` repeats a bin or leaves the grid, or a channel is not in the file.
    """
    for name in fields:
        if name not in header.names:
            raise SchemaError(f"{source.path}: no {name!r}; expected one of {sorted(header.names)}")
    levels = range(header.shape[0]) if levels is None else levels
    if not is_sparse(source):
        return _gather_dense(source, header, fields, levels)
    index, take = _read_index(source, header, levels)
    return RadarVolume(
        header=header,
        levels=levels,
        index=index,
        values={name: _listed(source, header.names[name], take) for name in fields},
        weights={
            name: _listed(source, f"w{header.names[name]}", take)
            for name in ("reflectivity",)
            if weights and name in fields and f"w{header.names[name]}" in source.variables
        },
        nradobs=_counts(source, "Nradobs", levels),
        nradecho=_counts(source, "Nradecho", levels) if nradecho else None,
    )


def _read_index(
    source: Source, header: VolumeGrid, levels: range
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | slice]:
    """Flat positions on the levels, ascending, and how to take values in that order from the file."""
    index = source.read("index")
    size = int(np.prod(header.shape, dtype=np.int64))
    if index.size and (index.min() < 0 or index.max() >= size):
        raise SchemaError(
            f"{source.path}: index runs from {index.min()} to {index.max()}; expected 0 to {size - 1} for "
            f"{header.shape}. The file is damaged."
        )
    index = index.astype(np.int32 if size <= np.iinfo(np.int32).max else np.int64, copy=False)
    order = None
    if (index[1:] < index[:-1]).any():
        order = np.argsort(index, kind="stable")
        index = index[order]
    if (index[1:] == index[:-1]).any():
        twice = index[:-1][index[1:] == index[:-1]]
        raise SchemaError(
            f"{source.path}: index lists {twice.size} bins twice, {twice[0]} first; the file is damaged"
        )
    plane = header.shape[1] * header.shape[2]
    part = _between(index, levels.start * plane, levels.stop * plane)
    return index[part], (part if order is None else order[part])


def _between(index: npt.NDArray[Any], start: int, stop: int) -> slice:
    """Where positions from start to before stop lie; in the index's own type, which spares a copy of it."""
    low, high = np.searchsorted(index, np.array([start, stop], index.dtype))
    return slice(int(low), int(high))


def _listed(source: Source, name: str, take: npt.NDArray[np.int64] | slice) -> npt.NDArray[np.float32]:
    """Values of listed bins; NaN where the file has a missing value."""
    variable = source.variables[name]
    if variable.shape != source.variables["index"].shape:
        raise SchemaError(f"{source.path}: {name} has shape {variable.shape}; expected that of index")
    raw = source.read(name, take) if isinstance(take, slice) else source.read(name)[take]
    return _without_fills(raw.astype(np.float32, copy=False), source, name)


def read_dense_weights(
    source: Source, header: VolumeGrid, name: str, levels: range
) -> npt.NDArray[np.float32]:
    """Weights of a moment (``wReflectivity``) on ``(levels, latitude, longitude)``: 0 in bins that are not listed.

    A weight is a sum over gates, and no gate gave such a bin a value; a missing weight is 0 as well.
    """
    index, take = _read_index(source, header, levels)
    _, rows, columns = header.shape
    out = np.zeros(len(levels) * rows * columns, np.float32)
    out[index - levels.start * rows * columns] = np.nan_to_num(_listed(source, name, take), nan=0.0)
    return out.reshape(len(levels), rows, columns)


def _without_fills(values: npt.NDArray[np.float32], source: Source, name: str) -> npt.NDArray[np.float32]:
    attributes = source.variables[name].attributes
    is_weight = name.startswith("w")  # a weight's missing value is 0, which is what it means
    declared = [attributes[n] for n in ("_FillValue", "missing_value") if n in attributes and not is_weight]
    for fill in (*declared, np.float32(-9999.0)):
        fill = np.float32(np.asarray(fill).ravel()[0])
        if np.isfinite(fill):
            values[values == fill] = np.nan
    return values


def _counts(source: Source, name: str, levels: range) -> npt.NDArray[np.int8] | None:
    if name not in source.variables:
        return None
    variable = source.variables[name]
    return read_array(source, variable, variable.dims[-3:], levels)


def _gather_dense(source: Source, header: VolumeGrid, fields: Sequence[str], levels: range) -> RadarVolume:
    plane = header.shape[1] * header.shape[2]
    dense = {}
    for name in fields:
        variable = source.variables[header.names[name]]
        raw = read_array(source, variable, _DIMS, levels).astype(np.float32, copy=False)
        dense[name] = _without_fills(raw, source, variable.name)
    listed = np.zeros((len(levels), *header.shape[1:]), bool)
    for values in dense.values():
        listed |= ~np.isnan(values)
    index = np.flatnonzero(listed)
    return RadarVolume(
        header=header,
        levels=levels,
        index=index + levels.start * plane,
        values={name: values.ravel()[index] for name, values in dense.items()},
        weights={},
        nradobs=None,
        nradecho=None,
    )


def densify(
    volume: RadarVolume,
    field: str,
    *,
    levels: Sequence[int] | None = None,
    states: npt.NDArray[np.uint8] | None = None,
    encoding: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint16]] | None = None,
) -> npt.NDArray[np.uint16]:
    """Dense codes of a channel, three states of a bin apart.

    Looked at and not listed: observed, no echo. Never looked at and not listed: not observed. A listed value stands
    even where the count of looks is zero; a bin that is listed without one had an echo that nobody knows, which is
    not observed. Without counts (4.1, dense) every bin without a value is not observed.

    Parameters
    ----------
    levels
        Levels of the file, in the order wanted; all that were read by default.
    states
        Per listed bin the code of a state to set in place of its value (`Packing.low_confidence`,
        `Packing.clutter`), or 0 to leave it.
    encoding
        Codes of listed values, 0 for none, in place of those of the channel's packing.

    Returns
    -------
    ``(levels, latitude, longitude)``, codes of ``CHANNELS[field].packing``.
    """
    wanted = list(volume.levels) if levels is None else list(levels)
    if any(level not in volume.levels for level in wanted):
        raise SchemaError(
            f"{volume.header.path}: levels {wanted}; expected some of {volume.levels} that were read"
        )
    packing = CHANNELS[field].packing
    assert packing.no_echo is not None
    assert packing.fill_value is not None
    _, rows, columns = volume.header.shape
    out = np.full((len(wanted), volume.plane), packing.fill_value, packing.dtype)
    for target, level in zip(out, wanted, strict=True):
        if volume.nradobs is not None:
            # Not "> 0": a count past 127 is negative as int8.
            looked = volume.nradobs[level - volume.levels.start].ravel() != 0
            target[looked] = packing.no_echo
        part = volume.part(level)
        values = volume.values[field][part]
        codes = encode(values, CHANNELS[field]) if encoding is None else encoding(values)
        if states is not None:
            removed = states[part] != 0
            codes[removed] = states[part][removed]
        target[volume.index[part] - level * volume.plane] = codes
    return out.reshape(len(wanted), rows, columns)
