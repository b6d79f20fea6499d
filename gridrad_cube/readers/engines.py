"""The readers as xarray engines: ``xr.open_dataset(path, engine="gridrad")`` and ``engine="larc_goes"``.

Lazy: a variable reads, densifies and decodes what is asked of it when it is asked, under the process's one
lock, and opens the file for just that long. So datasets pickle, work with dask and ``open_mfdataset``, and
keep no file open.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from gridrad_cube.readers import gridrad, larc_goes, volume
from gridrad_cube.readers.fields import field_packing, read_array, read_field
from gridrad_cube.readers.files import Source, Variable, open_source
from gridrad_cube.readers.request import Request
from gridrad_cube.readers.scenes import Description
from gridrad_cube.schema import CHANNELS, Packing, SchemaError
from gridrad_cube.selection import DERIVED

Array = npt.NDArray[Any]
#: The part of a variable that is read, a slice without step for every dimension.
Spans = tuple[slice, ...]
_VOLUME = ("altitude", "latitude", "longitude")


class LazyArray(BackendArray):
    """A variable of a file that reads itself when indexed.

    Parameters
    ----------
    read
        ``read(path, spans, **options)`` gives the array on these spans; a module-level function, so that the
        array pickles.
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        read: Callable[..., Array],
        **options: Any,
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._read, self._options = read, options

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Values at an xarray index."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._get)

    def _get(self, key: tuple[int | slice, ...]) -> Array:
        wanted = [
            range(size)[k] if isinstance(k, slice) else range(k % size, k % size + 1)
            for k, size in zip(key, self.shape, strict=True)
        ]
        if not all(wanted):
            return np.empty(self.shape, self.dtype)[key]
        spans = tuple(slice(min(r), max(r) + 1) for r in wanted)
        values = self._read(self.path, spans, **self._options)
        return values[
            tuple(
                0 if not isinstance(k, slice) else slice(None, None, r.step if len(r) > 1 else 1)
                for k, r in zip(key, wanted, strict=True)
            )
        ]


def _decode(codes: Array, packing: Packing, no_echo: float) -> npt.NDArray[np.float32]:
    """Physical values; the states "observed, nothing there" and "removed" become ``no_echo``."""
    values = packing.decode(codes)
    if packing.echo_minimum is not None:
        values[packing.observed(codes) & ~packing.echo(codes)] = no_echo
    return values


def _read_packed(
    path: str,
    spans: Spans,
    *,
    name: str,
    channel: str,
    units: tuple[float, float],
    dims: tuple[str, str],
    no_echo: float | None,
) -> Array:
    with open_source(path) as source:
        field = read_field(source, name, CHANNELS[channel], units, dims, spans=spans)
    return field.codes if no_echo is None else _decode(field.codes, field.packing, no_echo)


def _read_raw(path: str, spans: Spans, *, name: str, dims: tuple[str, ...]) -> Array:
    with open_source(path) as source:
        return read_array(source, source.variables[name], dims, spans=spans)


def _read_radar(path: str, spans: Spans, *, channel: str, no_echo: float | None) -> Array:
    levels = range(spans[0].start, spans[0].stop)
    with open_source(path) as source:
        bins = volume.read_volume(source, volume.read_volume_grid(source), (channel,), levels=levels)
    codes = volume.densify(bins, channel)[(slice(None), *spans[1:])]
    return codes if no_echo is None else _decode(codes, CHANNELS[channel].packing, no_echo)


def _read_weight(path: str, spans: Spans, *, name: str) -> Array:
    with open_source(path) as source:
        header = volume.read_volume_grid(source)
        weights = volume.read_dense_weights(source, header, name, range(spans[0].start, spans[0].stop))
    return weights[(slice(None), *spans[1:])]


def _read_derived(path: str, spans: Spans, *, channel: str, no_echo: float | None) -> Array:
    with open_source(path) as source:
        request = Request(channels=(channel,))
        field = gridrad.read(source, gridrad.describe(source, request), request)[channel]
    codes = field.codes[spans]
    return codes if no_echo is None else _decode(codes, field.packing, no_echo)


def _variable(
    dims: tuple[str, ...], array: LazyArray, channel: str, packing: Packing, no_echo: float | None
) -> xr.Variable:
    """A lazy variable: decoded, with the packing as encoding, or packed, with it as attributes."""
    lazy = indexing.LazilyIndexedArray(array)
    attributes = CHANNELS[channel].attributes()
    if no_echo is None:
        return xr.Variable(dims, lazy, packing.to_attributes() | attributes)
    encoding = {} if np.dtype(packing.dtype).kind == "f" else {
        "dtype": np.dtype(packing.dtype), "scale_factor": packing.scale_factor, "add_offset": packing.add_offset,
        "_FillValue": packing.fill_value,
    }  # fmt: skip
    return xr.Variable(dims, lazy, attributes, encoding)


def _dataset(
    path: str, description: Description, variables: dict[str, xr.Variable], altitude: Array | None, drop: Any
) -> xr.Dataset:
    grid = description.grid
    coords: dict[str, Any] = {
        "latitude": ("latitude", grid.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", grid.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
        "time": ((), description.time, {"standard_name": "time"}),
    }
    if altitude is not None:
        coords["altitude"] = (
            "altitude", altitude, {"units": "km", "standard_name": "altitude", "positive": "up"},
        )  # fmt: skip
    if description.observation_time is not None:
        coords["observation_time"] = ("latitude", description.observation_time)
    attributes: dict[str, Any] = {"source_format": description.format, "product": description.product}
    if description.satellite_longitude is not None:
        attributes["satellite_longitude"] = description.satellite_longitude
    dropped = {drop} if isinstance(drop, str) else set(drop or ())
    kept = {name: variable for name, variable in variables.items() if name not in dropped}
    dataset = xr.Dataset(kept, {n: c for n, c in coords.items() if n not in dropped}, attributes)
    dataset.encoding["source"] = path
    dataset.set_close(_close_nothing)  # open_mfdataset calls what it finds
    return dataset


def _close_nothing() -> None:
    """No file stays open between reads."""


def _path_of(filename_or_obj: Any) -> str:
    if not isinstance(filename_or_obj, str | os.PathLike):
        raise SchemaError(
            f"filename_or_obj: got a {type(filename_or_obj).__name__}; expected the path of a local file"
        )
    return os.path.abspath(os.fspath(filename_or_obj))


def _basename(filename_or_obj: Any) -> str:
    return (
        os.path.basename(os.fspath(filename_or_obj)) if isinstance(filename_or_obj, str | os.PathLike) else ""
    )


def _channels(path: str, header: volume.VolumeGrid, no_echo: float | None) -> dict[str, xr.Variable]:
    """Moments on altitudes and what is derived from reflectivity; packed where ``no_echo`` is None."""
    out = {}
    for channel in (*header.names, *(DERIVED if "reflectivity" in header.names else ())):
        is_derived = channel in DERIVED
        packing = CHANNELS[channel].packing
        array = LazyArray(
            path,
            header.shape[1:] if is_derived else header.shape,
            packing.dtype if no_echo is None else "float32",
            _read_derived if is_derived else _read_radar,
            channel=channel,
            no_echo=no_echo,
        )
        out[channel] = _variable(_VOLUME[1:] if is_derived else _VOLUME, array, channel, packing, no_echo)
    return out


def _weights_and_counts(path: str, header: volume.VolumeGrid, source: Source) -> dict[str, xr.Variable]:
    out = {}
    for channel, name in header.names.items():
        if f"w{name}" in source.variables:
            array = LazyArray(path, header.shape, "float32", _read_weight, name=f"w{name}")
            attributes = {"units": "1", "long_name": f"weight of {CHANNELS[channel].long_name}"}
            out[f"{channel}_weight"] = xr.Variable(_VOLUME, indexing.LazilyIndexedArray(array), attributes)
    for name in ("Nradobs", "Nradecho"):
        if name in source.variables:
            counts = source.variables[name]
            array = LazyArray(path, header.shape, counts.dtype, _read_raw, name=name, dims=counts.dims[-3:])
            out[name.lower()] = xr.Variable(_VOLUME, indexing.LazilyIndexedArray(array), {"units": "1"})
    return out


class GridRadBackend(BackendEntrypoint):
    """GridRad volumes: moments on ``(altitude, latitude, longitude)``, decoded on access.

    Options of ``open_dataset``: ``mask_and_scale=False`` gives packed codes with their attributes;
    ``no_echo`` is the value of bins that were observed without echo (-99 by default, as MRMS writes them;
    pass NaN to drop the difference from bins that were not observed). Each access reads the list of bins
    anew: load what is used more than once.
    """

    description: ClassVar[str] = "GridRad v3.1, v4.1 and v4.2 radar volumes"
    open_dataset_parameters: ClassVar[tuple | None] = (
        "filename_or_obj", "drop_variables", "mask_and_scale", "no_echo",
    )  # fmt: skip

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool = True,
        no_echo: float = -99.0,
    ) -> xr.Dataset:
        """Open a file lazily."""
        path = _path_of(filename_or_obj)
        with open_source(path) as source:
            if not gridrad.matches(source):
                raise SchemaError(
                    f"{path}: not a GridRad file, got {source.listing()}; expected index and Reflectivity, or ZH"
                )
            header = volume.read_volume_grid(source)
            description = gridrad.describe(source, Request(channels=tuple(header.names)))
            variables = _channels(path, header, no_echo if mask_and_scale else None)
            variables |= _weights_and_counts(path, header, source)
        return _dataset(path, description, variables, header.altitude_km, drop_variables)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is unmistakably GridRad's."""
        return re.match(r"nexrad_3d_v?\d+_\d+_.*\.nc$", _basename(filename_or_obj)) is not None


def _image(
    path: str,
    variable: Variable,
    description: Description,
    channel: str,
    units: tuple[float, float],
    no_echo: float | None,
) -> xr.Variable:
    packing, _ = field_packing(variable, CHANNELS[channel], units, f"{path}: {variable.name}")
    array = LazyArray(
        path,
        description.grid.shape,
        packing.dtype if no_echo is None else "float32",
        _read_packed,
        name=variable.name,
        channel=channel,
        units=units,
        dims=description.dims,
        no_echo=no_echo,
    )
    return _variable(_VOLUME[1:], array, channel, packing, no_echo)


def _is_image(variable: Variable, description: Description) -> bool:
    others = [n for d, n in zip(variable.dims, variable.shape, strict=True) if d not in description.dims]
    return set(description.dims) <= set(variable.dims) and variable.is_numeric and all(n == 1 for n in others)


def _further_image(path: str, variable: Variable, description: Description) -> xr.Variable:
    dtype = variable.dtype.newbyteorder("=")
    array = LazyArray(
        path, description.grid.shape, dtype, _read_raw, name=variable.name, dims=description.dims
    )
    attributes = {k: v for k, v in variable.attributes.items() if k != "coordinates"}
    return xr.Variable(_VOLUME[1:], indexing.LazilyIndexedArray(array), attributes)


class LarcGoesBackend(BackendEntrypoint):
    """LaRC GOES convection detection: images on ``(latitude, longitude)``, decoded on access.

    Codes outside of the packed ``valid_range`` are NaN. Further images of the file keep their integers.
    ``mask_and_scale=False`` gives packed codes with their attributes.
    """

    description: ClassVar[str] = "NASA LaRC GOES convection detection"
    open_dataset_parameters: ClassVar[tuple | None] = ("filename_or_obj", "drop_variables", "mask_and_scale")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool = True,
    ) -> xr.Dataset:
        """Open a file lazily."""
        path = _path_of(filename_or_obj)
        fill = np.nan if mask_and_scale else None
        with open_source(path) as source:
            description = larc_goes.describe(source, Request())
            variables = {
                channel: _image(path, source.variables[name], description, channel, units, fill)
                for channel, (name, units) in description.variables.items()
            }
            images = [
                v for v in source.variables.values() if _is_image(v, description) and v.name not in variables
            ]
            variables |= {v.name: _further_image(path, v, description) for v in images}
        return _dataset(path, description, variables, None, drop_variables)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name is unmistakably LaRC's."""
        return re.match(r"NASALARC_GOES.*\.nc$", _basename(filename_or_obj)) is not None
