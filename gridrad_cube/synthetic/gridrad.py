"""Write GridRad volumes: the sparse layouts of V3.1 and V4.2 and the dense one of V4.1."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic.files import MADE_UP, compression, replaced, to_second
from gridrad_cube.synthetic.noise import Float

#: GridRad counts seconds from here.
EPOCH = np.datetime64("2001-01-01T00:00:00", "s")
TIME_UNITS = "seconds since 2001-01-01 00:00:00"

#: Long name and units of every field of the sparse layouts.
FIELDS = {
    "Reflectivity": ("Radar reflectivity", "dBZ"),
    "SpectrumWidth": ("Radar velocity spectrum width", "m s-1"),
    "AzShear": ("Azimuthal shear of radial velocity", "s-1"),
    "Divergence": ("Radial divergence of radial velocity", "s-1"),
    "DifferentialReflectivity": ("Differential radar reflectivity", "dB"),
    "DifferentialPhase": ("Specific differential phase", "deg km-1"),
    "CorrelationCoefficient": ("Copolar correlation coefficient", "1"),
}
#: Fields of the dense layout, by the names of the sparse one. V4.1 calls vorticity what V4.2 calls shear.
DENSE_NAMES = {
    "Reflectivity": "ZH", "SpectrumWidth": "SW", "AzShear": "VOR", "Divergence": "DIV",
    "DifferentialReflectivity": "ZDR", "DifferentialPhase": "KDP", "CorrelationCoefficient": "RHV",
}  # fmt: skip
_DELTA = {"v3_1": (0.02, 0.02, 1.0), "v4_2": (1 / 48, 1 / 48, 0.5)}


def write_gridrad_sparse(
    path: str | os.PathLike[str], *, version: str = "v4_2", time: np.datetime64, latitude: npt.ArrayLike,
    longitude: npt.ArrayLike, altitude_km: npt.ArrayLike, fields: Mapping[str, npt.ArrayLike],
    nradobs: npt.ArrayLike, nradecho: npt.ArrayLike, weights: Mapping[str, npt.ArrayLike] | None = None,
    shuffle_index: bool = False, sources: Sequence[str] = (), deflate: int = 1,
) -> Path:  # fmt: skip
    """Write dense volumes in the sparse layout: bins with echo only, and an index.

    Parameters
    ----------
    path
        File to write; replaced when complete.
    version
        ``"v4_2"`` (float64 axes, ``sweeps_merged``) or ``"v3_1"`` (float32 axes, ``files_merged``).
    time
        Analysis time, UTC.
    latitude, longitude, altitude_km
        1-D axes, degrees (longitude either way round; written 0 to 360) and km, ascending.
    fields
        Volumes by GridRad's names (`FIELDS`), shape (altitude, latitude, longitude), NaN where there is no echo.
        A bin is listed when any of them is finite.
    nradobs, nradecho
        Sweeps that looked, and that saw echo, in the same shape.
    weights
        Volumes of bin weights by field; what is left out weighs as many looks as saw echo.
    shuffle_index
        List the bins in a random order instead of C order (readers must not trust the order).
    sources
        Names for ``sweeps_merged`` or ``files_merged``.
    deflate
        Compression level, 0 for none.

    Raises
    ------
    SchemaError
        If a volume does not fit the axes, or a field has no such name.
    """
    axes = tuple(np.asarray(axis, np.float64) for axis in (altitude_km, latitude, longitude))
    shape = tuple(axis.size for axis in axes)
    volumes: dict[str, np.ndarray] = {name: np.asarray(volume, np.float32) for name, volume in fields.items()}
    counts: dict[str, np.ndarray] = {
        "Nradobs": np.asarray(nradobs, np.int8),
        "Nradecho": np.asarray(nradecho, np.int8),
    }
    for name, volume in (volumes | counts).items():
        if volume.shape != shape:
            raise SchemaError(f"{name}: shape is {volume.shape}; expected {shape}, that of the axes")
    finite = np.zeros(shape, bool)
    for volume in volumes.values():
        finite |= np.isfinite(volume)
    index = np.flatnonzero(finite)
    if shuffle_index:
        index = np.random.default_rng(index.size).permutation(index)
    default = counts["Nradecho"].ravel()[index].astype(np.float32)
    given = {name: np.asarray(weight, np.float32) for name, weight in (weights or {}).items()}
    return write_gridrad_index(
        path, version=version, time=time, latitude=axes[1], longitude=axes[2], altitude_km=axes[0], index=index,
        fields={name: volume.ravel()[index] for name, volume in volumes.items()},
        weights={name: given[name].ravel()[index] if name in given else default for name in volumes},
        nradobs=counts["Nradobs"], nradecho=counts["Nradecho"], sources=sources, deflate=deflate,
    )  # fmt: skip


def write_gridrad_index(
    path: str | os.PathLike[str], *, version: str, time: np.datetime64, latitude: Float, longitude: Float,
    altitude_km: Float, index: npt.NDArray[np.integer], fields: Mapping[str, npt.NDArray[np.float32]],
    weights: Mapping[str, npt.NDArray[np.float32]], nradobs: npt.NDArray[np.int8], nradecho: npt.NDArray[np.int8],
    sources: Sequence[str] = (), deflate: int = 1,
) -> Path:  # fmt: skip
    """Write bins that are gathered already: ``fields`` and ``weights`` along ``index``. See `write_gridrad_sparse`."""
    import netCDF4

    if version not in _DELTA:
        raise SchemaError(f"version: got {version!r}; expected one of {sorted(_DELTA)}")
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise SchemaError(f"fields: unknown {unknown}; expected some of {sorted(FIELDS)}")
    path = Path(path)
    with replaced(path) as part, netCDF4.Dataset(os.fspath(part), "w") as file:
        file.set_fill_off()
        writer = _Writer(file, deflate)
        for name, size in (
            ("Longitude", longitude.size), ("Latitude", latitude.size), ("Altitude", altitude_km.size), ("time", 1),
            ("Index", index.size),
        ):  # fmt: skip
            file.createDimension(name, size)
        _write_axes(writer, version, time, (longitude, latitude, altitude_km))
        volume = ("Altitude", "Latitude", "Longitude")
        for name, counts, text in (
            ("Nradobs", nradobs, "Number of radar observations"), ("Nradecho", nradecho, "Number of radar echoes"),
        ):  # fmt: skip
            writer.add(name, "i1", volume, counts, {"long_name": text, "units": "1"})
        flat = {"long_name": "Flat index into (Altitude, Latitude, Longitude)"}
        writer.add("index", "i4", ("Index",), index.astype(np.int32), flat)
        for name, values in fields.items():
            text, units = FIELDS[name]
            attributes = {"long_name": text, "units": units, "missing_value": np.float32(np.nan)}
            writer.add(name, "f4", ("Index",), values, attributes)
            attributes = {"long_name": f"{name} bin weight", "units": "1", "missing_value": np.float32(0.0)}
            writer.add(f"w{name}", "f4", ("Index",), weights[name], attributes)
        _write_sources(writer, version, sources)
        file.setncatts(_global_attributes(version, time))
    return path


class _Writer:
    """Adds variables to an open file with one compression."""

    def __init__(self, file: Any, deflate: int) -> None:
        self.file = file
        self.compression = compression(deflate)

    def add(
        self,
        name: str,
        dtype: str,
        dims: tuple[str, ...],
        values: npt.ArrayLike,
        attributes: Mapping[str, object],
    ) -> None:
        options = self.compression if np.size(values) > 4096 else {}
        variable = self.file.createVariable(name, dtype, dims, fill_value=False, **options)
        variable.set_auto_maskandscale(False)
        variable.setncatts(attributes)
        variable[...] = values


def _write_axes(writer: _Writer, version: str, time: np.datetime64, axes: tuple[Float, Float, Float]) -> None:
    dtype = "f4" if version == "v3_1" else "f8"
    number = np.dtype(dtype).type
    values = (np.asarray(axes[0]) % 360.0, axes[1], axes[2])
    units = ("degrees_east", "degrees_north", "km")
    for name, axis, unit, delta in zip(
        ("Longitude", "Latitude", "Altitude"), values, units, _DELTA[version], strict=True
    ):
        writer.add(name, dtype, (name,), axis, {"long_name": name, "units": unit, "delta": number(delta)})
    attributes = {"long_name": "Time", "units": TIME_UNITS}
    writer.add("time", "f8", ("time",), seconds_since_2001(time), attributes)


def seconds_since_2001(time: np.datetime64) -> float:
    """A UTC time as GridRad's files count it."""
    return float((to_second(time) - EPOCH).astype(np.int64))


def _write_sources(writer: _Writer, version: str, sources: Sequence[str]) -> None:
    name, dims, width = (
        ("files_merged", ("File", "FileRef"), 32)
        if version == "v3_1"
        else ("sweeps_merged", ("Sweep", "SweepRef"), 29)
    )
    names = list(sources) or ["none"]
    writer.file.createDimension(dims[0], len(names))
    writer.file.createDimension(dims[1], width)
    letters = np.array([n[:width].ljust(width) for n in names], f"S{width}").view("S1").reshape(-1, width)
    writer.add(name, "S1", dims, letters, {})


def _global_attributes(version: str, time: np.datetime64) -> dict[str, str]:
    stamp = f"{to_second(time)}Z".replace("T", " ")
    shared = {
        "Analysis_time": stamp,
        "Analysis_time_window": "all azimuth scans (elevation angles) within 228 s of the analysis time",
        "File_creation_date": stamp,  # never the clock's: same seed, same bytes
        "Grid_scheme": "Regular longitude-latitude-altitude grid",
        "Algorithm_version": version,
        "Algorithm_description": "Space and time binning weighted by distances from radar and analysis time",
        "Data_source": MADE_UP, "Data_source_URL": "none", "Authors": MADE_UP,
        "Project_sponsor": "none", "Project_name": "gridrad-cube",
    }  # fmt: skip
    if version == "v3_1":
        return shared | {"NOAA_wct-export_Version": "none"}
    return {
        "Name": "GridRad", "Description": "Three-dimensional gridded NEXRAD radar reflectivity (synthetic)",
        **shared, "Storage_scheme": "netCDF-4, sparse",
    }  # fmt: skip


def write_gridrad_dense(
    path: str | os.PathLike[str], *, time: np.datetime64, latitude: npt.ArrayLike, longitude: npt.ArrayLike,
    altitude_km: npt.ArrayLike, fields: Mapping[str, npt.ArrayLike], missing_value: float = float("nan"),
    deflate: int = 1,
) -> Path:  # fmt: skip
    """Write volumes in the dense layout of V4.1 (``ZH`` and the rest, one value a bin).

    Parameters
    ----------
    path
        File to write; replaced when complete.
    time
        Analysis time, UTC.
    latitude, longitude, altitude_km
        1-D axes, degrees (longitude written 0 to 360) and km, ascending.
    fields
        Volumes by the names of `FIELDS`, shape (altitude, latitude, longitude), NaN where there is no echo.
    missing_value
        What stands where there is no echo.
    deflate
        Compression level, 0 for none.
    """
    import netCDF4

    path = Path(path)
    with replaced(path) as part, netCDF4.Dataset(os.fspath(part), "w") as file:
        file.set_fill_off()
        writer = _Writer(file, deflate)
        dims = ("time", "Altitude", "Latitude", "Longitude")
        axes = {
            "Altitude": altitude_km,
            "Latitude": latitude,
            "Longitude": np.asarray(longitude, np.float64) % 360.0,
        }
        file.createDimension("time", 1)
        for name, axis in axes.items():
            file.createDimension(name, np.size(axis))
        writer.add("time", "f8", ("time",), seconds_since_2001(time), {"units": TIME_UNITS})
        for name in ("Longitude", "Latitude", "Altitude"):
            writer.add(name, "f8", (name,), axes[name], {})
        for name, volume in fields.items():
            values = np.asarray(volume, np.float32)[None]
            if not np.isnan(missing_value):
                values = np.where(np.isnan(values), np.float32(missing_value), values)
            writer.add(DENSE_NAMES[name], "f4", dims, values, {})
        file.setncatts({"history": MADE_UP})
    return path
