"""The readers as xarray engines: ``xr.open_dataset(path, engine="gridrad")`` and ``engine="larc_goes"``.

A dataset has every channel of the file, on ``(time, [altitude,] y, x)``, so that ``xr.open_mfdataset(files,
engine="gridrad")`` joins files along time. Variables are lazy: each access opens the file, reads what it
needs and closes the file. So datasets can be pickled and work with dask.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from gridrad_cube.readers import check_one_time, open_scene, read_channels
from gridrad_cube.readers.files import open_source
from gridrad_cube.readers.header import Header, Request, make_scene
from gridrad_cube.schema import Packing, SchemaError


class _LazyChannel(BackendArray):
    """One channel of a file on ``(time, [altitude,] y, x)``, read when it is indexed.

    Parameters
    ----------
    header
        Header of the file, with all channels.
    decodes
        Whether values are physical values; codes otherwise.
    """

    def __init__(self, header: Header, format: str, name: str, decodes: bool) -> None:
        about = header.fields[name]
        self._path, self._format, self._name = header.path, format, name
        self._packing: Packing | None = about.packing if decodes else None
        levels = (len(header.levels),) if len(about.dims) == 3 else ()
        self.shape = (1, *levels, *header.shape)
        self.dtype = np.dtype("float32" if decodes else about.packing.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the values at an xarray index."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._get)

    def _get(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        values = np.empty(self.shape, self.dtype)  # levels that are not read take no memory
        if len(self.shape) == 3:
            values[0] = self._read()
        elif (levels := np.unique(np.arange(self.shape[1])[key[1]])).size:
            values[0, levels] = self._read(levels.tolist())
        return values[key]

    def _read(self, levels: Iterable[int] = ()) -> npt.NDArray[Any]:
        with open_source(self._path) as source:
            request = Request(channels=(self._name,))
            scene, header = open_scene(source, self._format, request)
            fields = {self._name: header.fields[self._name]}
            header = replace(header, fields=fields, levels=tuple(header.levels[level] for level in levels))
            codes = read_channels(scene, header, request)[self._name]
        return codes if self._packing is None else self._packing.decode(codes)


def _open(path: Any, format: str, drop: str | Iterable[str] | None, decodes: bool) -> xr.Dataset:
    if not isinstance(path, str | os.PathLike):
        raise SchemaError(f"filename_or_obj: got a {type(path).__name__}; expected the path of a local file")
    path = os.path.abspath(os.fspath(path))
    with open_source(path) as source:
        header = open_scene(source, format, Request())[1]
        check_one_time(header)
        header = open_scene(source, format, Request(channels=(*header.channels, *header.further)))[1]
    variables = {}
    for name, about in header.fields.items():
        lazy = indexing.LazilyIndexedArray(_LazyChannel(header, format, name, decodes))
        dims = ("time", "altitude", "y", "x") if len(about.dims) == 3 else ("time", "y", "x")
        packing, attributes, encoding = about.packing, dict(about.attributes), {}
        if not decodes:
            attributes = packing.to_attributes() | attributes
        elif np.dtype(packing.dtype).kind != "f":
            encoding = {
                "dtype": np.dtype(packing.dtype), "scale_factor": packing.scale_factor,
                "add_offset": packing.add_offset, "_FillValue": packing.fill_value,
            }  # fmt: skip
        variables[name] = xr.Variable(dims, lazy, attributes, encoding)
    scene = make_scene(replace(header, fields={}), {})
    lines = [name for name in ("observation_time", "forecast_period") if name in scene.coords]
    scene = scene.reset_coords(lines).expand_dims("time").set_coords(lines)
    dataset = xr.Dataset(variables, scene.coords, scene.attrs)
    dropped = {drop} if isinstance(drop, str) else set(drop or ())
    dataset = dataset.drop_vars(dropped & set(dataset.variables))
    dataset.encoding["source"] = path
    dataset.set_close(_close_nothing)  # open_mfdataset calls what it finds
    return dataset


def _close_nothing() -> None:
    """Do nothing: no file stays open between reads."""


class _Backend(BackendEntrypoint):
    """An xarray engine for one format of the readers."""

    open_dataset_parameters: ClassVar[tuple | None] = ("filename_or_obj", "drop_variables", "mask_and_scale")
    _format: ClassVar[str]
    _name: ClassVar[str]

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool = True,
    ) -> xr.Dataset:
        """Open a file lazily.

        Values are decoded as by `gridrad_cube.open_cube`; ``mask_and_scale=False`` returns packed codes with
        their attributes.
        """
        return _open(filename_or_obj, self._format, drop_variables, mask_and_scale)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether the name of a file identifies its format."""
        is_path = isinstance(filename_or_obj, str | os.PathLike)
        return is_path and re.match(self._name, os.path.basename(os.fspath(filename_or_obj))) is not None


class GridRadBackend(_Backend):
    """GridRad volumes: moments on ``(time, altitude, y, x)``, derived fields, weights and counts.

    Each access reads the list of bins again: call ``load`` on variables that are used more than once.
    """

    description: ClassVar[str] = "GridRad v3.1, v4.1 and v4.2 radar volumes"
    _format = "gridrad"
    _name = r"nexrad_3d_v?\d+_\d+_.*\.nc$"


class LarcGoesBackend(_Backend):
    """LaRC GOES convection detection: images on ``(time, y, x)``."""

    description: ClassVar[str] = "NASA LaRC GOES convection detection"
    _format = "larc_goes"
    _name = r"NASALARC_GOES.*\.nc$"
