"""Small GRIB2 files for tests, written with ecCodes as MRMS and HRRR write theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gridrad_cube.readers.grib import load_pyproj

load_pyproj()
import eccodes  # noqa: E402

MRMS = {"centre": 161, "discipline": 209, "typeOfFirstFixedSurface": 102}
COMPOSITE = MRMS | {"parameterCategory": 10, "parameterNumber": 0, "scaledValueOfFirstFixedSurface": 500}
RAIN = MRMS | {"parameterCategory": 6, "parameterNumber": 1, "scaledValueOfFirstFixedSurface": 0}
NCEP = {"centre": "kwbc", "discipline": 0}
REFC = NCEP | {"parameterCategory": 16, "parameterNumber": 196, "typeOfFirstFixedSurface": 200}
PRATE = NCEP | {"parameterCategory": 1, "parameterNumber": 7, "typeOfFirstFixedSurface": 1}


def degrees(
    shape: tuple[int, int], north: float = 55.0, west: float = 230.0, step: float = 0.01
) -> dict[str, Any]:
    """Keys of a latitude-longitude grid, north first, of cell centers as MRMS has them."""
    rows, columns = shape
    return {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": round(north - step / 2, 6),
        "latitudeOfLastGridPointInDegrees": round(north - step / 2 - (rows - 1) * step, 6),
        "longitudeOfFirstGridPointInDegrees": round(west + step / 2, 6),
        "longitudeOfLastGridPointInDegrees": round(west + step / 2 + (columns - 1) * step, 6),
        "iDirectionIncrementInDegrees": step,
        "jDirectionIncrementInDegrees": step,
    }


def lambert(shape: tuple[int, int]) -> dict[str, Any]:
    """Keys of HRRR's grid (3 km, 38.5 N, 97.5 W), of fewer points, south first."""
    return {
        "shapeOfTheEarth": 6,
        "Nx": shape[1],
        "Ny": shape[0],
        "latitudeOfFirstGridPointInDegrees": 21.138123,
        "longitudeOfFirstGridPointInDegrees": 237.280472,
        "LaDInDegrees": 38.5,
        "LoVInDegrees": 262.5,
        "DxInMetres": 3000,
        "DyInMetres": 3000,
        "Latin1InDegrees": 38.5,
        "Latin2InDegrees": 38.5,
        "jScansPositively": 1,
        "iScansNegatively": 0,
    }


def message(
    values: np.ndarray,
    keys: Mapping[str, Any],
    *,
    grid: Mapping[str, Any] | None = None,
    time: str = "2023-04-06T12:00:39",
    packing: str = "grid_simple",
    bits: int = 16,
    missing: float | None = None,
) -> bytes:
    """One GRIB2 message; ``missing`` is the value that a bitmap leaves out."""
    grid = degrees(values.shape) if grid is None else grid
    handle = eccodes.codes_grib_new_from_samples("GRIB2")
    gridless = {"gridType": "lambert"} if "LoVInDegrees" in grid else {"gridType": "regular_ll"}
    date, clock = time.split("T")
    stamp = dict(zip(("year", "month", "day"), map(int, date.split("-")), strict=True))
    stamp |= dict(zip(("hour", "minute", "second"), map(int, clock.split(":")), strict=True))
    keys = {"scaleFactorOfFirstFixedSurface": 0, "scaledValueOfFirstFixedSurface": 0} | dict(keys)
    try:
        for key, value in (gridless | dict(grid) | stamp | keys).items():
            eccodes.codes_set(handle, key, value)
        if missing is not None:
            eccodes.codes_set(handle, "bitmapPresent", 1)
            eccodes.codes_set(handle, "missingValue", missing)
        eccodes.codes_set(handle, "packingType", packing)
        eccodes.codes_set(handle, "bitsPerValue", bits)
        eccodes.codes_set_values(handle, np.asarray(values, np.float64).ravel())
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)


def write(path: Path, messages: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(messages))
    return path


def mosaic(shape: tuple[int, int] = (12, 9), missing: float = -999.0, no_echo: float = -99.0) -> np.ndarray:
    """A radar mosaic: no coverage in the first two columns, echo in a block, nothing detected elsewhere."""
    values = np.full(shape, no_echo)
    values[:, :2] = missing
    values[4:7, 3:8] = np.arange(15).reshape(3, 5) * 2.5 + 5.0
    return values
