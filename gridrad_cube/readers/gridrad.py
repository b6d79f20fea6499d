"""Read GridRad volumes: hourly v3.1 and v4.2, GridRad-Severe v4.2 (sparse), and v4.1 (dense).

Sparse files list the bins that have a value. In real files of GridRad-Severe v4.2, these are exactly the bins
whose
``Nradecho`` is above 0, in ascending order, and a moment is NaN where its weight is 0. Public files of
version 4.1 are
dense and have no counts of observations. They do not distinguish "observed without echo" from "not observed",
so every
bin without a value counts as not observed.
Both layouts become a `RadarVolume`, and then dense codes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.derived import derive
from gridrad_cube.readers.fields import Field, encode, read_array, read_codes
from gridrad_cube.readers.files import Source, text_of
from gridrad_cube.readers.header import (
    Header,
    Request,
    make_header,
    read_altitudes,
)
from gridrad_cube.readers.times import agreed_time, only_time, parse_stamp, parse_time
from gridrad_cube.schema import CHANNELS, SchemaError
from gridrad_cube.selection import DERIVED

#: Default channels of a scene.
_DEFAULT = ("reflectivity_column_maximum",)
#: Variables of the sparse layout by channel; ``w`` before the name is the bin's weight.
_SPARSE_NAMES = {
    "reflectivity": "Reflectivity",
    "spectrum_width": "SpectrumWidth",
    "azimuthal_shear": "AzShear",
    "divergence": "Divergence",
    "differential_reflectivity": "DifferentialReflectivity",
    "specific_differential_phase": "DifferentialPhase",  # holds K_DP, despite its name
    "correlation_coefficient": "CorrelationCoefficient",
}
#: Variables of the dense layout of 4.1 by channel. Its vorticity is not azimuthal shear and is not read.
_DENSE_NAMES = {
    "reflectivity": "ZH",
    "spectrum_width": "SW",
    "divergence": "DIV",
    "differential_reflectivity": "ZDR",
    "specific_differential_phase": "KDP",
    "correlation_coefficient": "RHV",
}
#: Pixels of v4 lie at ``(n + 1/2)/48`` degree, those of v3.1 at multiples of 0.02; a hundredth of a step off
#: is float noise.
_LATTICE = (96, 50)
_AXIS_TOLERANCE_DEGREES = 2e-4
_DIMS = ("Altitude", "Latitude", "Longitude")
_VERSION = re.compile(r"(\d+)[._](\d+)")


@dataclass(frozen=True, kw_only=True)
class RadarVolume:
    """Bins of a GridRad file that have a value, with the number of observations of each bin.

    ``index`` (strictly ascending; int32 where that holds the grid, half the memory of tens of millions of bins)
    counts in C order over (altitude, latitude, longitude) of the whole file; ``values`` and ``weights`` by channel
    lie on it, in the channel's units. ``nradobs`` and ``nradecho`` are dense, ``(levels, latitude, longitude)``,
    over ``levels`` alone: the contiguous range of levels that was read. They are None if the file lacks them
    or they were not requested.
    """

    header: Header
    levels: range
    index: npt.NDArray[np.int32] | npt.NDArray[np.int64] = field(repr=False)
    values: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    weights: Mapping[str, npt.NDArray[np.float32]] = field(repr=False)
    nradobs: npt.NDArray[np.int8] | None = field(repr=False)
    nradecho: npt.NDArray[np.int8] | None = field(repr=False)

    @property
    def version(self) -> str:
        """GridRad's version, such as ``4.2``."""
        return self.header.format.removeprefix("gridrad_v").replace("_", ".")

    @property
    def plane(self) -> int:
        """Bins of one level."""
        return math.prod(self.header.shape)

    def part(self, level: int) -> slice:
        """Return the position of the listed bins of one level in ``index``.

        Parameters
        ----------
        level
            Number of the level in the file.

        Returns
        -------
        Slice of ``index``.
        """
        return _between(self.index, level * self.plane, (level + 1) * self.plane)

    def at_bins(self, counts: npt.NDArray[np.int8], level: int) -> npt.NDArray[np.int8]:
        """Return counts at the listed bins of one level, ``index[part(level)]``.

        Parameters
        ----------
        counts
            ``nradobs`` or ``nradecho``.
        level
            Number of the level in the file.

        Returns
        -------
        Counts, one for each listed bin.
        """
        plane = counts[level - self.levels.start].reshape(-1)
        return plane[self.index[self.part(level)] - level * self.plane]


#: Quality control before fields are derived: a function of a volume with all levels, weights and counts, and
#: of the requested channels. It returns dense codes of all levels by channel, for the channels that it
#: changes.
Clean: TypeAlias = Callable[[RadarVolume, Collection[str]], Mapping[str, npt.NDArray[np.uint16]]]


def _is_sparse(source: Source) -> bool:
    return {"index", "Reflectivity"} <= set(source.variables)


def describe(source: Source, request: Request) -> Header:
    """Read the header. See `gridrad_cube.readers.inspect`."""
    vertical, row, column = source.dims_of(_DIMS, "a GridRad file")
    altitude = read_altitudes(source, "Altitude", ascending=True, units="km")
    time = agreed_time(
        source,
        [
            ("the time variable", only_time(source, request.time_variable), 0),
            ("Analysis_time", parse_time(text_of(source.attributes, "Analysis_time")), 1),
            ("the file name", parse_stamp(source.name), 60),
        ],
    )
    moments = _moments_of(source, request)
    _check_shapes(source, tuple(source.variables[name].shape[0] for name in _DIMS), moments.values())
    # The user's choice is binding: if the file lacks the variable, it lacks the channel.
    named = {channel: name for channel, (name, _) in request.named().items()}
    available = {channel: True for channel, name in moments.items() if named.get(channel, name) == name}
    if "reflectivity" in available:
        available |= {name: False for name in DERIVED if name not in named}

    def field_of(name: str) -> Field:
        channel, variable = CHANNELS[name], moments.get(name, moments["reflectivity"])
        dims = (vertical, row, column) if available[name] else (row, column)
        return Field(channel, variable, dims, channel.packing, channel.attributes())

    form = str(find_format(source))
    return make_header(
        source,
        request,
        axes=("Latitude", "Longitude"),
        dims=(row, column),
        vertical=vertical,
        listed=source.variables["index"].dims[0] if _is_sparse(source) else None,
        available=available,
        field_of=field_of,
        default=_DEFAULT,
        altitude_km=altitude,
        lattice=_LATTICE,
        tolerance=_AXIS_TOLERANCE_DEGREES,
        format=form,
        product=f"GridRad v{form.removeprefix('gridrad_v').replace('_', '.')}",
        time=time,
    )


def _moments_of(source: Source, request: Request) -> dict[str, str]:
    """Return the variables of a file by channel: those that the user names, then those of the layout."""
    known = dict(_SPARSE_NAMES if _is_sparse(source) else _DENSE_NAMES)
    named = {channel: name for channel, (name, _) in request.named().items() if name in source.variables}
    known |= {channel: name for channel, name in named.items() if channel not in DERIVED}
    return {channel: name for channel, name in known.items() if name in source.variables}


def find_format(source: Source) -> str | None:
    """Return the version by ``Algorithm_version``, else by properties that only one version has; None for
    other files.
    """
    if not _is_sparse(source):
        is_dense = "ZH" in source.variables and set(_DIMS) <= set(source.variables["ZH"].dims)
        return "gridrad_v4_1" if is_dense else None
    match = _VERSION.search(text_of(source.attributes, "Algorithm_version"))
    if match:
        return "gridrad_v3_1" if match[1] == "3" else "gridrad_v4_2"
    is_old = "files_merged" in source.variables and "SpectrumWidth" not in source.variables
    return "gridrad_v3_1" if is_old else "gridrad_v4_2"


def _check_shapes(source: Source, shape: tuple[int, ...], moments: Iterable[str]) -> None:
    expected = dict.fromkeys(moments, shape)
    if _is_sparse(source):
        listed = source.variables["index"].shape[:1]
        expected = dict.fromkeys(("index", *moments), listed) | {"Nradobs": shape, "Nradecho": shape}
    for name, size in expected.items():
        if name in source.variables and (found := source.variables[name].shape[-3:]) != size:
            owner = "the axes" if len(size) == 3 else "index"
            raise SchemaError(f"{source.path}: {name} has shape {found}; expected {size}, that of {owner}")


def read(
    source: Source, header: Header, request: Request, clean: Clean | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Read, densify and derive the codes of the header's channels; see `Clean` for ``clean``."""
    moments = [name for name, about in header.fields.items() if about.channel.kind != "other"]
    wanted = tuple(dict.fromkeys("reflectivity" if name in DERIVED else name for name in moments))
    codes: dict[str, npt.NDArray[Any]] = {}
    if wanted:
        levels = range(header.altitude_km.size)
        if clean is None and not set(DERIVED) & set(moments):
            levels = range(min(header.levels), max(header.levels) + 1)
        volume = _read_volume(source, header, request, wanted, levels, for_cleaning=clean is not None)
        cleaned = {} if clean is None else clean(volume, wanted)
        codes = _channels_of(volume, moments, request.radar.echo_top_dbz, dict(cleaned))
    for name, about in header.fields.items():
        if name not in codes and len(source.variables[about.variable].dims) == 1:
            codes[name] = _read_dense_weights(source, header, name)
        elif name not in codes:
            codes[name] = read_codes(source, about, header.levels)
    return codes


def _channels_of(
    volume: RadarVolume, names: Sequence[str], echo_top_dbz: float, cleaned: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Return the codes of channels from a volume, or from those of all levels that quality control has made."""
    altitudes, levels = volume.header.altitude_km, volume.header.levels
    if set(DERIVED) & set(names) and "reflectivity" not in cleaned:
        cleaned["reflectivity"] = densify(volume, "reflectivity")
    packing = CHANNELS["reflectivity"].packing
    codes = {}
    for name in names:
        if name in DERIVED:
            codes[name] = derive(name, cleaned["reflectivity"], altitudes, echo_top_dbz, packing)
        elif name in cleaned:
            whole = cleaned[name]
            codes[name] = whole if len(levels) == len(whole) else whole[list(levels)]
        else:
            codes[name] = densify(volume, name, levels=levels)
    return codes


def _read_volume(
    source: Source,
    header: Header,
    request: Request,
    names: Sequence[str],
    levels: range,
    *,
    for_cleaning: bool,
) -> RadarVolume:
    """Read the bins of some channels on contiguous levels, and for quality control also weights and counts.

    The order of ``index`` in the file does not matter; repeated bins, and bins off the grid, are refused. For
    dense files (4.1) the bins with finite values are listed, and there are no counts.
    """
    moments = _moments_of(source, request)
    if for_cleaning:
        every = dict.fromkeys((*names, "reflectivity", "correlation_coefficient"))
        names = [name for name in every if name in moments]
    is_sparse = _is_sparse(source)
    if is_sparse:
        index, take = _read_index(source, header, levels)
        values = {name: _listed(source, moments[name], take) for name in names}
    else:
        dense = {name: _read_floats(source, moments[name], levels) for name in names}
        listed = np.flatnonzero(functools.reduce(np.logical_or, (~np.isnan(v) for v in dense.values())))
        index = listed + levels.start * math.prod(header.shape)
        values = {name: moment.ravel()[listed] for name, moment in dense.items()}
    weighed = ["reflectivity"] if for_cleaning and is_sparse and "wReflectivity" in source.variables else []
    return RadarVolume(
        header=header,
        levels=levels,
        index=index,
        values=values,
        weights={name: _listed(source, f"w{moments[name]}", take) for name in weighed},
        nradobs=_counts(source, "Nradobs", levels) if is_sparse else None,
        nradecho=_counts(source, "Nradecho", levels) if is_sparse and for_cleaning else None,
    )


def _read_index(
    source: Source, header: Header, levels: range
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | slice]:
    """Return the flat positions on the levels, ascending, and how to take values in that order from the file."""
    index = source.read("index")
    shape = (header.altitude_km.size, *header.shape)
    size = math.prod(shape)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise SchemaError(
            f"{source.path}: index runs from {index.min()} to {index.max()}; expected 0 to {size - 1} for "
            f"{shape}. The file is damaged."
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
    plane = math.prod(header.shape)
    part = _between(index, levels.start * plane, levels.stop * plane)
    return index[part], (part if order is None else order[part])


def _between(index: npt.NDArray[Any], start: int, stop: int) -> slice:
    """Return the slice of positions from start to before stop. Comparing in the type of the index avoids a
    copy.
    """
    low, high = np.searchsorted(index, np.array([start, stop], index.dtype))
    return slice(int(low), int(high))


def _listed(source: Source, name: str, take: npt.NDArray[np.int64] | slice) -> npt.NDArray[np.float32]:
    """Return the values of listed bins; NaN where the file has a missing value."""
    variable = source.variables[name]
    if variable.shape != source.variables["index"].shape:
        raise SchemaError(f"{source.path}: {name} has shape {variable.shape}; expected that of index")
    raw = source.read(name, take) if isinstance(take, slice) else source.read(name)[take]
    return _without_fills(raw.astype(np.float32, copy=False), source, name)


def _read_dense_weights(source: Source, header: Header, name: str) -> npt.NDArray[np.float32]:
    """Return the weights of a moment (``wReflectivity``) on the scene's levels: 0 in bins that are not
    listed.

    A weight is a sum over gates. A bin that is not listed has no gate, so its weight is 0; so is a missing
    weight.
    """
    span = range(min(header.levels), max(header.levels) + 1)
    index, take = _read_index(source, header, span)
    plane = math.prod(header.shape)
    out = np.zeros(len(span) * plane, np.float32)
    out[index - span.start * plane] = np.nan_to_num(_listed(source, name, take), nan=0.0)
    dense = out.reshape(len(span), *header.shape)
    return dense if len(header.levels) == len(span) else dense[[n - span.start for n in header.levels]]


def _without_fills(values: npt.NDArray[np.float32], source: Source, name: str) -> npt.NDArray[np.float32]:
    is_weight = name.startswith("w")  # a missing weight means 0
    for fill in (*(() if is_weight else source.variables[name].fills), -9999.0):
        values[values == np.float32(fill)] = np.nan
    return values


def _counts(source: Source, name: str, levels: range) -> npt.NDArray[np.int8] | None:
    if name not in source.variables:
        return None
    variable = source.variables[name]
    return read_array(source, variable, variable.dims[-3:], levels)


def _read_floats(source: Source, name: str, levels: range) -> npt.NDArray[np.float32]:
    raw = read_array(source, source.variables[name], _DIMS, levels)
    return _without_fills(raw.astype(np.float32, copy=False), source, name)


def densify(
    volume: RadarVolume,
    field: str,
    *,
    levels: Sequence[int] | None = None,
    states: npt.NDArray[np.uint8] | None = None,
    encoding: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint16]] | None = None,
) -> npt.NDArray[np.uint16]:
    """Return the dense codes of a channel, with different codes for the three states of a bin.

    A bin that is not listed is "observed without echo" if it has observations, else "not observed". A listed
    value is kept even if the count of observations is zero. A listed bin without a value had an echo of
    unknown strength, and is "not observed". Without counts (4.1, dense), every bin without a value is "not
    observed".

    Parameters
    ----------
    volume
        The volume.
    field
        Name of the channel.
    levels
        Levels of the file, in the requested order; None for all that were read.
    states
        For each listed bin the code of a state that replaces its value (`Packing.low_confidence`,
        `Packing.clutter`), or 0 to keep the value.
    encoding
        Packing of the codes; None for the channel's.

    Returns
    -------
    ``(levels, latitude, longitude)``, codes of ``CHANNELS[field].packing``.

    Raises
    ------
    SchemaError
        If a level was not read.
    """
    wanted = list(volume.levels) if levels is None else list(levels)
    if any(level not in volume.levels for level in wanted):
        raise SchemaError(
            f"{volume.header.path}: levels {wanted}; expected some of {volume.levels} that were read"
        )
    packing = CHANNELS[field].packing
    assert packing.no_echo is not None
    assert packing.fill_value is not None
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
    return out.reshape(len(wanted), *volume.header.shape)
