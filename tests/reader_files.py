"""Small source files for the tests of the readers, each fault at the caller's wish."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

MJD_EPOCH = np.datetime64("1858-11-17T00:00:00", "s")


def mjd(time: str) -> float:
    return float((np.datetime64(time, "s") - MJD_EPOCH).astype(np.int64)) / 86400.0


def _put(
    dataset: netCDF4.Dataset,
    name: str,
    dims: tuple[str, ...],
    values: Any,
    dtype: str = "",
    **attributes: Any,
) -> None:
    values = np.asarray(values, dtype or None)
    fill = attributes.pop("_FillValue", None)
    variable = dataset.createVariable(
        name, values.dtype, dims, zlib=dataset.data_model == "NETCDF4", fill_value=fill
    )
    variable.set_auto_maskandscale(False)
    variable.setncatts(attributes)
    variable[...] = values


def larc_codes(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Codes of brightness temperature with missing, too low and too high ones among them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(18000, 31000, shape).astype(np.uint16)
    codes[0, 0], codes[0, 1], codes[1, 0] = 65535, 14000, 36000
    return codes


def write_larc(
    path: Path,
    *,
    shape: tuple[int, int] = (12, 9),
    time: str = "2021-07-05T17:50:17",
    visible: bool = True,
    infrared: bool = True,
    descending: bool = False,
    named_dims: bool = False,
    time_dim: bool = True,
    scan_time: bool = True,
    time_variable: bool = True,
    first: tuple[float, float] = (30.0 + 0.5 / 56, -105.0 + 0.5 / 56),
    data: Mapping[str, np.ndarray] | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write the LaRC layout of the CDL; ``data`` and ``attributes`` replace those of single variables."""
    data, more = dict(data or {}), dict(attributes or {})
    rows, columns = ("latitude", "longitude") if named_dims else ("nlines", "npixels")
    latitude = first[0] + np.arange(shape[0]) / 56
    longitude = first[1] + np.arange(shape[1]) / 56
    latitude = latitude[::-1] if descending else latitude
    with netCDF4.Dataset(path, "w") as f:
        for name, size in (("time", 1), (rows, shape[0]), (columns, shape[1])):
            f.createDimension(name, size)
        if time_variable:
            _put(f, "time", ("time",), [mjd(time)], date_time_stamp=time + "Z",
                 units="days since 1858-11-17T00:00:00.000")  # fmt: skip
        for name, dim, axis in (("latitude", rows, latitude), ("longitude", columns, longitude)):
            radians = np.deg2rad(axis).astype(np.float32)
            _put(f, name, (dim,), radians, scale_factor=np.float32(57.29578), _FillValue=np.float32(-999.0),
                 units={"latitude": "degrees_north", "longitude": "degrees_east"}[name])  # fmt: skip
        if scan_time:
            _put(f, "scan_time", (rows,), mjd(time) + np.arange(shape[0]) / 86400.0,
                 units="days since 1858-11-17T00:00:00.000")  # fmt: skip
        image = ("time", rows, columns) if time_dim else (rows, columns)
        specs: dict[str, tuple[np.ndarray, dict[str, Any]]] = {"ot_id_number": (
            np.zeros(shape, np.uint16), {"units": "unitless", "_FillValue": np.uint16(0)}
        )}  # fmt: skip
        if infrared:
            specs["ir_brightness_temperature"] = larc_codes(shape), {
                "valid_range": np.array([15000, 35000], np.uint16), "units": "degrees_Kelvin",
                "scale_factor": np.float32(0.01), "_FillValue": np.uint16(65535),
            }  # fmt: skip
        if visible:
            specs["visible_reflectance"] = larc_codes(shape, 1) // 4, {
                "units": "unitless", "scale_factor": np.float32(0.0001), "_FillValue": np.uint16(65535),
            }  # fmt: skip
        for name, (codes, attrs) in specs.items():
            values = data.get(name, codes)
            attrs = {k: v for k, v in (attrs | dict(more.get(name, {}))).items() if v is not None}
            _put(f, name, image, values.reshape((1, *shape) if time_dim else shape), **attrs)
    return path


V42_ALTITUDES = np.r_[np.arange(0.5, 7.01, 0.5), np.arange(8.0, 22.01, 1.0)]


def gridrad_axes(version: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude (0 to 360) on the lattice of a version."""
    if version.startswith("v3"):
        return 25.0 + np.arange(shape[0]) * 0.02, 245.0 + np.arange(shape[1]) * 0.02
    return (1320.5 + np.arange(shape[0])) / 48, (12840.5 + np.arange(shape[1])) / 48


def write_gridrad(
    path: Path,
    values: np.ndarray,
    *,
    nradobs: np.ndarray | None = None,
    altitude_km: Any = None,
    version: str = "v4_2",
    time: str = "2011-04-27T22:00:00",
    latitude: np.ndarray | None = None,
    longitude: np.ndarray | None = None,
    axis_dtype: str = "f8",
    order: np.random.Generator | None = None,
    index: np.ndarray | None = None,
    index_dtype: str = "i4",
    listed: np.ndarray | None = None,
    moments: Mapping[str, np.ndarray] | None = None,
    time_variable: bool = True,
    attributes: Mapping[str, Any] | None = None,
    nradecho: bool = True,
) -> Path:
    """Write GridRad's sparse layout from dense values (altitude, latitude, longitude), NaN where not listed."""
    shape = values.shape
    default_latitude, default_longitude = gridrad_axes(version, shape[1:])
    latitude = default_latitude if latitude is None else latitude
    longitude = default_longitude if longitude is None else longitude
    altitude = np.asarray(V42_ALTITUDES[: shape[0]] if altitude_km is None else altitude_km)
    listed = np.isfinite(values) if listed is None else listed
    flat = np.flatnonzero(listed)
    if order is not None:
        flat = order.permutation(flat)
    with netCDF4.Dataset(path, "w") as f:
        sizes = {
            "Longitude": shape[2],
            "Latitude": shape[1],
            "Altitude": shape[0],
            "time": 1,
            "Index": flat.size,
        }
        for name, size in sizes.items():
            f.createDimension(name, size)
        for name, axis, units in (
            ("Longitude", longitude, "degrees_east"),
            ("Latitude", latitude, "degrees_north"),
            ("Altitude", altitude, "km"),
        ):
            _put(f, name, (name,), axis, axis_dtype, long_name=name, units=units)
        if time_variable:
            # Minutes as in a real file of V4.2; seconds as programs read V3.1.
            unit, epoch = ("m", "2000-01-01") if version == "v4_2" else ("s", "2001-01-01")
            value = (np.datetime64(time, "s") - np.datetime64(epoch)) / np.timedelta64(1, unit)
            units = f"{'minutes' if unit == 'm' else 'seconds'} since {epoch} 00:00:00"
            _put(f, "time", ("time",), [value], units=units)
        cube = ("Altitude", "Latitude", "Longitude")
        counts = np.where(listed, 3, 0) if nradobs is None else nradobs
        _put(f, "Nradobs", cube, counts, "i1")
        if nradecho:
            _put(f, "Nradecho", cube, np.where(listed, 3, 0), "i1")
        _put(f, "index", ("Index",), flat if index is None else index, index_dtype)
        for name, field in {"Reflectivity": values, **dict(moments or {})}.items():
            _put(
                f, name, ("Index",), field.ravel()[flat], "f4", units="...", missing_value=np.float32(np.nan)
            )
            _put(
                f, f"w{name}", ("Index",), np.linspace(0.1, 3.0, flat.size), "f4", missing_value=np.float32(0)
            )
        defaults = {"Analysis_time": time.replace("T", " ") + "Z", "Algorithm_version": version}
        f.setncatts({k: v for k, v in (defaults | dict(attributes or {})).items() if v is not None})
    return path


def write_gridrad_dense(path: Path, values: np.ndarray, *, missing: float = math.nan) -> Path:
    """Write the dense layout of GridRad 4.1."""
    latitude, longitude = gridrad_axes("v4_1", values.shape[1:])
    with netCDF4.Dataset(path, "w") as f:
        for name, size in zip(("time", "Altitude", "Latitude", "Longitude"), (1, *values.shape), strict=True):
            f.createDimension(name, size)
        _put(f, "time", ("time",), [512395200.0], units="seconds since 2001-01-01 00:00:00")
        _put(f, "Longitude", ("Longitude",), longitude)
        _put(f, "Latitude", ("Latitude",), latitude)
        _put(f, "Altitude", ("Altitude",), V42_ALTITUDES[: values.shape[0]])
        dims = ("time", "Altitude", "Latitude", "Longitude")
        filled = np.where(np.isfinite(values), values, missing)
        _put(f, "ZH", dims, filled[None], "f4")
        _put(f, "VOR", dims, np.zeros_like(filled)[None], "f4")
    return path


def write_cf(
    path: Path,
    fields: Mapping[str, tuple[tuple[str, ...], Any, Mapping[str, Any]]],
    coordinates: Mapping[str, tuple[tuple[str, ...], Any, Mapping[str, Any]]] | None = None,
    *,
    format: str = "NETCDF4",
    **attributes: Any,
) -> Path:
    """Write variables as ``name: (dims, values, attributes)``; latitude, longitude and time unless replaced."""
    everything = dict(coordinates if coordinates is not None else cf_coordinates()) | dict(fields)
    with netCDF4.Dataset(path, "w", format=format) as f:
        for dims, values, _ in everything.values():
            for dim, size in zip(dims, np.shape(values), strict=True):
                if dim not in f.dimensions:
                    f.createDimension(dim, size)
        for name, (dims, values, attrs) in everything.items():
            _put(f, name, dims, values, **attrs)
        f.setncatts(attributes)
    return path


def cf_coordinates(shape: tuple[int, int] = (6, 5)) -> dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]]:
    return {
        "lat": (("lat",), 40.0 - np.arange(shape[0]) * 0.1, {"units": "degrees_north"}),
        "lon": (("lon",), 260.0 + np.arange(shape[1]) * 0.1, {"units": "degrees_east"}),
        "time": ((), 1560124800.0, {"units": "seconds since 1970-01-01", "standard_name": "time"}),
    }


def check_scene(scene: Any) -> None:
    """Hold a scene against what every reader promises."""
    import xarray as xr

    from gridrad_cube.schema import CHANNELS, Packing

    assert scene.sizes["y"] > 0
    assert scene.sizes["x"] > 0
    assert scene.data_vars
    assert set(scene.dims) <= {"altitude", "y", "x"}
    for name, variable in scene.data_vars.items():
        channel = CHANNELS[str(name)]
        assert variable.dims in (("y", "x"), ("altitude", "y", "x"))
        packing = Packing.from_attributes(variable.attrs, variable.dtype)
        assert packing.fill_value is not None or variable.dtype.kind == "f", (
            "padding needs a code for missing"
        )
        assert variable.attrs == packing.to_attributes() | channel.attributes()
        observed = packing.observed(variable.values)
        assert not (observed & packing.missing(variable.values)).any()
        if channel.kind in ("radar", "rain"):
            assert packing.echo_minimum is not None
    lat, lon = scene["latitude"], scene["longitude"]
    assert (lat.dims, lon.dims) in ((("y",), ("x",)), (("y", "x"), ("y", "x")))
    assert lat.dtype == lon.dtype == np.float64
    finite = np.isfinite(lon.values)
    assert (np.abs(lat.values[np.isfinite(lat.values)]) <= 90).all()
    assert ((lon.values[finite] >= -180) & (lon.values[finite] < 180)).all()
    assert scene["time"].dims == ()
    assert scene["time"].dtype == "datetime64[s]"
    if "altitude" in scene.dims:
        assert (np.diff(scene["altitude"].values) > 0).all()
        assert scene["altitude"].dtype == np.float64
    if "observation_time" in scene.coords:
        assert scene["observation_time"].dims == ("y",)
        assert scene["observation_time"].dtype == "datetime64[s]"
    assert scene.attrs["source_format"] in ("larc_goes", "gridrad_v3_1", "gridrad_v4_1", "gridrad_v4_2", "cf")
    assert scene.attrs["product"]
    decoded = xr.decode_cf(scene)
    for name, variable in scene.data_vars.items():
        packing = Packing.from_attributes(variable.attrs, variable.dtype)
        ours = packing.decode(variable.values)
        known = np.isfinite(ours)
        np.testing.assert_allclose(decoded[name].values[known], ours[known], rtol=1e-6, atol=1e-5)
