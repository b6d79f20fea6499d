"""Write NASA LaRC GOES convection-detection files, in the layout of ``NASALARC_GOES16_CONVECTION_DETECTION``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic.files import MADE_UP, compression, replaced, to_second
from gridrad_cube.synthetic.noise import Float

#: Degrees a radian as the files' float32 ``scale_factor`` has it.
DEGREES_PER_RADIAN = 57.29578
#: Day 0 of the files' Modified Julian Days.
MJD_EPOCH = np.datetime64("1858-11-17T00:00:00", "ms")
MJD_UNITS = "days since 1858-11-17T00:00:00.000"
#: Code of a pixel without data.
FILL = 65535
#: Value of a pixel without data in fields of floats.
FLOAT_FILL = -999.0
#: A slot's scan starts so many seconds after the minute in the file's name.
SCAN_OFFSET_SECONDS = 17
#: Seconds that the imager takes from the first line to the last.
SCAN_SECONDS = 240.0

# Rows packed at once: few enough to stay in the processor's cache.
_BLOCK = 64
_COORDINATES = "longitude latitude time"


def write_larc_goes(
    path: str | os.PathLike[str], *, time: np.datetime64, latitude: npt.ArrayLike, longitude: npt.ArrayLike,
    ir: npt.ArrayLike | None = None, visible: npt.ArrayLike | None = None, overshoots: npt.ArrayLike | None = None,
    tropopause: npt.ArrayLike | None = None, parallax: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    scan_time: npt.ArrayLike | None = None, deflate: int = 1,
) -> Path:  # fmt: skip
    """Write one scene, packed as the archive packs it.

    Parameters
    ----------
    path
        File to write; replaced when complete.
    time
        Nominal time of the scan, UTC, to the second.
    latitude, longitude
        1-D axes in degrees, shapes (nlines,) and (npixels,).
    ir
        Brightness temperature, shape (nlines, npixels): uint16 codes of 0.01 K, or floats in K with NaN where
        there is no data. Left out, the file has no such variable.
    visible
        Reflectance in the same way: uint16 codes of 0.0001, or floats.
    overshoots
        Numbers of overshooting tops, uint16, 0 where there is none.
    tropopause
        Temperature of the tropopause in K, floats, NaN where there is none.
    parallax
        Degrees of latitude and of longitude to add to where a cloud seems to stand, floats, NaN where there is none.
    scan_time
        Observation time of every line, ``datetime64``; by default north to south in four minutes.
    deflate
        Compression level, 0 for none.

    Raises
    ------
    SchemaError
        If an image does not fit the axes.
    """
    latitude, longitude = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    shape = (latitude.size, longitude.size)
    images: dict[str, npt.NDArray[Any] | None] = {
        "ir_brightness_temperature": None if ir is None else _codes(ir, 0.01),
        "ot_id_number": None if overshoots is None else np.asarray(overshoots, np.uint16),
        "visible_reflectance": None if visible is None else _codes(visible, 0.0001),
        "tropopause_temperature": None if tropopause is None else _floats(tropopause),
    }
    for axis, correction in zip(("latitude", "longitude"), parallax or (), strict=False):
        images[f"parallax_correction_{axis}"] = _floats(correction)
    for name, image in images.items():
        if image is not None and image.shape != shape:
            raise SchemaError(f"{name}: shape is {image.shape}; expected {shape}, that of the axes")
    if scan_time is None:
        seconds = np.linspace(0.0, SCAN_SECONDS, shape[0])
        scan_time = to_second(time) + (1000 * seconds).astype("timedelta64[ms]")
    path = Path(path)
    with replaced(path) as part:
        _write(part, to_second(time), (latitude, longitude), images, np.asarray(scan_time), deflate)
    return path


def _codes(values: npt.ArrayLike, scale: float) -> npt.NDArray[np.uint16]:
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return values.astype(np.uint16)
    codes = np.empty(values.shape, np.uint16)
    for start in range(0, len(values), _BLOCK):
        scaled = values[start : start + _BLOCK] * np.float32(1.0 / scale)
        np.fmin(np.fmax(scaled, 0.0), FILL - 1, out=scaled)
        codes[start : start + _BLOCK] = np.rint(scaled, out=scaled)
        codes[start : start + _BLOCK][np.isnan(values[start : start + _BLOCK])] = FILL
    return codes


def _floats(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    out = np.array(values, np.float32)
    out[np.isnan(out)] = FLOAT_FILL
    return out


def modified_julian_day(time: npt.ArrayLike) -> Float:
    """Days since 1858-11-17, fractional, of UTC times."""
    return (np.asarray(time).astype("datetime64[ms]") - MJD_EPOCH).astype(np.float64) / 86_400_000.0


def _write(
    path: Path, time: np.datetime64, axes: tuple[Float, Float], images: dict[str, npt.NDArray[Any] | None],
    scan_time: np.ndarray, deflate: int,
) -> None:  # fmt: skip
    import netCDF4

    with netCDF4.Dataset(os.fspath(path), "w") as file:
        file.set_fill_off()
        for name, size in (("time", 1), ("nlines", axes[0].size), ("npixels", axes[1].size)):
            file.createDimension(name, size)
        stamp = file.createVariable("time", "f8", ("time",))
        stamp.setncatts({
            "date_time_stamp": f"{time}Z", "units": MJD_UNITS,
            "long_name": "Modified Julian Day of the Nominal Satellite Image Timestamp",
            "definition": "http://tycho.usno.navy.mil/mjd.html", "comments": "MJD equals 51544.0 at Jan/01/2000 00:00",
        })  # fmt: skip
        stamp[:] = modified_julian_day(time)
        for name, dim, units, axis in (
            ("latitude", "nlines", "degrees_north", axes[0]), ("longitude", "npixels", "degrees_east", axes[1]),
        ):  # fmt: skip
            variable = file.createVariable(name, "f4", (dim,), fill_value=np.float32(-999.0))
            variable.set_auto_maskandscale(False)
            variable.setncatts({
                "long_name": name.capitalize(), "scale_factor": np.float32(DEGREES_PER_RADIAN), "units": units,
            })  # fmt: skip
            variable[:] = (axis / DEGREES_PER_RADIAN).astype(np.float32)
        lines = file.createVariable("scan_time", "f8", ("nlines",))
        lines.setncatts({"long_name": "Observation Time (MJD) for Current Line", "units": MJD_UNITS})
        lines[:] = modified_julian_day(scan_time)
        for name, image in images.items():
            if image is not None:
                _write_image(file, name, image, deflate)
        file.history = MADE_UP


def _write_image(file: Any, name: str, image: npt.NDArray[Any], deflate: int) -> None:
    fill, attributes = _IMAGES[name]
    variable = file.createVariable(
        name, image.dtype, ("time", "nlines", "npixels"), fill_value=image.dtype.type(fill), **compression(deflate)
    )  # fmt: skip
    variable.set_auto_maskandscale(False)
    variable.setncatts(attributes | {"coordinates": _COORDINATES})
    variable[0] = image


_IMAGES: dict[str, tuple[float, dict[str, Any]]] = {
    "ir_brightness_temperature": (FILL, {
        "long_name": "IR Brightness Temperature Image", "valid_range": np.array([15000, 35000], np.uint16),
        "units": "degrees_Kelvin", "scale_factor": np.float32(0.01),
    }),
    "ot_id_number": (0, {
        "long_name": "IR Overshooting Top Identification Number", "valid_range": np.array([1, 9999], np.uint16),
        "units": "unitless",
    }),
    "visible_reflectance": (FILL, {"units": "unitless", "scale_factor": np.float32(0.0001)}),
    "tropopause_temperature": (FLOAT_FILL, {"long_name": "Tropopause Temperature", "units": "degrees_Kelvin"}),
    "parallax_correction_latitude": (FLOAT_FILL, {
        "long_name": "Parallax Correction of Latitude, to Be Added", "units": "degrees",
    }),
    "parallax_correction_longitude": (FLOAT_FILL, {
        "long_name": "Parallax Correction of Longitude, to Be Added", "units": "degrees",
    }),
}  # fmt: skip
