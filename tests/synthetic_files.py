"""Synthetic source files with faults and with further variables, for several test modules."""

from __future__ import annotations

import os
from pathlib import Path

import netCDF4
import numpy as np


def spoil(path: Path, fault: str) -> None:
    """Spoil a LaRC file in place, in one of the ways in which files of real archives are spoiled."""
    if fault == "truncated":
        os.truncate(path, int(path.stat().st_size * 0.6))
    elif fault == "text":
        path.write_text(
            "<html><head><title>401 Unauthorized</title></head><body>Please log in.</body></html>\n"
        )
    elif fault == "no_channels":
        with netCDF4.Dataset(path, "a") as file:
            file.renameVariable("ir_brightness_temperature", "one")
            file.renameVariable("visible_reflectance", "other")
    elif fault == "wrong_time":
        with netCDF4.Dataset(path, "a") as file:
            file.set_auto_maskandscale(False)
            stamp = np.datetime64(file["time"].date_time_stamp.rstrip("Z"), "s") + np.timedelta64(3, "h")
            file["time"].date_time_stamp = f"{stamp}Z"
            for name in ("time", "scan_time"):
                file[name][:] = file[name][:] + 3 / 24
    else:
        raise ValueError(fault)


def add_other_variables(path: Path) -> Path:
    """Add the temperature of the tropopause and the correction for parallax to a LaRC file."""
    with netCDF4.Dataset(path, "a") as file:
        kelvin = np.ma.filled(file["ir_brightness_temperature"][0].astype("f4"), np.nan)
        height = np.clip((290 - kelvin) / 6.5, 0, 18)
        tropopause = np.linspace(200, 220, height.size, dtype="f4").reshape(height.shape)
        for name, values, units in (
            ("tropopause_temperature", tropopause, "degrees_Kelvin"),
            ("parallax_correction_latitude", -0.02 * height, "degrees"),
            ("parallax_correction_longitude", 0.01 * height, "degrees"),
        ):
            dims = ("time", "nlines", "npixels")
            variable = file.createVariable(name, "f4", dims, fill_value=np.float32(-999), zlib=True)
            title = name.replace("_", " ").title()
            variable.setncatts({"long_name": title, "units": units, "coordinates": "longitude latitude time"})
            variable[0] = np.nan_to_num(values, nan=-999)
    return path
