"""GridRad: hourly v3.1 and v4.2, GridRad-Severe v4.2 (sparse), and v4.1 (dense).

Detected by content. Version 4.1 as it is circulated is dense and counts no looks, so that "observed without
echo" and "not observed" cannot be told apart in it: every bin without a value is not observed there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gridrad_cube.readers.companions import fields_on_grid, find_companions, read_companion
from gridrad_cube.readers.derived import column_maximum, echo_top_height
from gridrad_cube.readers.fields import Field
from gridrad_cube.readers.files import Source
from gridrad_cube.readers.request import Request, Selection, select, with_levels
from gridrad_cube.readers.scenes import Description
from gridrad_cube.readers.volume import (
    RadarVolume,
    VolumeGrid,
    densify,
    is_dense,
    is_sparse,
    read_dense_weights,
    read_volume,
    read_volume_grid,
)
from gridrad_cube.schema import CHANNELS, Packing, RadarSpec
from gridrad_cube.selection import DERIVED

#: A quality control between reading and everything derived.
Clean: TypeAlias = Callable[[RadarVolume, Collection[str]], Mapping[str, npt.NDArray[np.uint16]]]
#: What a scene holds when no channel is asked for.
DEFAULT = ("reflectivity_column_maximum",)


def matches(source: Source) -> bool:
    """Whether a file has one of GridRad's layouts."""
    return is_sparse(source) or is_dense(source)


def _describe(source: Source, header: VolumeGrid, request: Request) -> Description:
    available = dict.fromkeys(header.names, True)
    if "reflectivity" in available:
        available |= dict.fromkeys(DERIVED, False)
    selection = select(
        request,
        available,
        header.altitude_km,
        default=DEFAULT,
        where=source.path,
        listing=f"{sorted(available)}",
    )
    vertical, *dims = (source.variables[name].dims[0] for name in ("Altitude", "Latitude", "Longitude"))
    listed = source.variables["index"].dims[0] if is_sparse(source) else None
    companions = find_companions(
        source, request.companions, (dims[0], dims[1]), vertical=vertical, listed=listed
    )
    if any(companion.dims != tuple(dims) for companion in companions.values()):
        selection = with_levels(selection, request.radar, header.altitude_km, source.path)
    return Description(
        format=header.format,
        product=f"GridRad v{header.version}",
        time=header.time,
        grid=header.grid,
        selection=selection,
        variables={name: (header.names.get(name, name), (1.0, 0.0)) for name in selection.variables},
        companions=companions,
        further=tuple(fields_on_grid(source, (dims[0], dims[1]), vertical, listed)),
    )


def describe(source: Source, request: Request) -> Description:
    """Read the header. See `gridrad_cube.readers.inspect`."""
    return _describe(source, read_volume_grid(source), request)


def read(
    source: Source, description: Description, request: Request, clean: Clean | None = None
) -> dict[str, Field]:
    """Read, densify and derive the channels of a description, and read its companion fields.

    ``clean`` is a quality control: it takes the volume with all levels, weights and counts, and the channels that
    are wanted of it, and gives dense codes of all levels by channel for those it has an opinion on.
    """
    header = read_volume_grid(source)
    selection = description.selection
    if clean is not None:
        wanted = fields_needed(selection)
        every = dict.fromkeys((*wanted, "reflectivity", "correlation_coefficient"))
        names = tuple(name for name in every if name in header.names)
        volume = read_volume(source, header, names, weights=True, nradecho=True)
        channels = fields_of(volume, selection, request.radar, dense=clean(volume, wanted))
    else:
        volume = read_volume(
            source, header, fields_needed(selection), levels=levels_needed(selection, header)
        )
        channels = fields_of(volume, selection, request.radar)
    return channels | _read_companions(source, header, description)


def _read_companions(source: Source, header: VolumeGrid, description: Description) -> dict[str, Field]:
    fields, levels = {}, description.selection.levels
    for name, companion in description.companions.items():
        if len(companion.dims) > 1:
            fields[name] = read_companion(source, companion, levels)
            continue
        span = range(min(levels), max(levels) + 1)
        weights = read_dense_weights(source, header, name, span)
        weights = weights if len(levels) == len(span) else weights[[level - span.start for level in levels]]
        fields[name] = Field(weights, Packing(dtype="float32"))
    return fields


def fields_needed(selection: Selection) -> tuple[str, ...]:
    """Channels of the file that a selection is made of."""
    names = ("reflectivity" if name in DERIVED else name for name in selection.variables)
    return tuple(dict.fromkeys(names))


def levels_needed(selection: Selection, header: VolumeGrid) -> range:
    """The smallest contiguous range of levels that a selection needs: all for derived channels."""
    if any(name in DERIVED for name in selection.variables):
        return range(header.shape[0])
    return range(min(selection.levels), max(selection.levels) + 1)


def fields_of(
    volume: RadarVolume,
    selection: Selection,
    radar: RadarSpec,
    *,
    dense: Mapping[str, npt.NDArray[np.uint16]] | None = None,
) -> dict[str, Field]:
    """Channels of a scene from a volume.

    Parameters
    ----------
    dense
        Codes of all levels by channel, where quality control has made them; taken in place of `densify`.
    """
    dense = dict(dense or {})
    derived = [name for name in selection.variables if name in DERIVED]
    if derived and "reflectivity" not in dense:
        dense["reflectivity"] = densify(volume, "reflectivity")
    fields = {}
    for name in selection.variables:
        if name == "reflectivity_column_maximum":
            codes = column_maximum(dense["reflectivity"], CHANNELS["reflectivity"].packing)
        elif name == "echo_top_height":
            codes = echo_top_height(
                dense["reflectivity"],
                volume.header.altitude_km,
                radar.echo_top_dbz,
                CHANNELS["reflectivity"].packing,
            )
        elif name in dense:
            codes = (
                dense[name]
                if len(selection.levels) == len(dense[name])
                else dense[name][list(selection.levels)]
            )
        else:
            codes = densify(volume, name, levels=selection.levels)
        fields[name] = Field(codes, CHANNELS[name].packing)
    return fields
