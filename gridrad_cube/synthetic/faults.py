"""Spoil written files in the ways that real archives are spoilt, and say what was done where."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gridrad_cube.schema import PATCH_SIZE, SchemaError
from gridrad_cube.synthetic.files import compression, replaced
from gridrad_cube.synthetic.larc_goes import FILL

#: Every fault by name, and what it does.
FAULTS: dict[str, str] = {
    "truncated": "the file ends after 60 % of its bytes",
    "text": "an HTML error page under the file's name",
    "empty": "zero bytes",
    "no_channels": "no variable that could be a channel",
    "no_visible": "no visible_reflectance (LaRC)",
    "wrong_time": "the time inside is 3 h later than the one in the name",
    "small": "the scene is smaller than a patch",
    "nan_block": "NaN in a block (float variables)",
    "inf_block": "infinity in a block (float variables)",
    "fill_block": "missing in a block",
    "unphysical_block": "values that cannot be in a block: 90 K, reflectance 3, 200 dBZ",
    "huge_block": "netCDF's default fill 9.97e36 in a block (float variables)",
    "minus_9999_block": "-9999 in a block (float variables)",
    "dead_lines": "lines of code 0 (LaRC), or without a look (GridRad)",
    "constant_block": "one value in a whole patch",
}
#: Size of a block of bad pixels, rows and columns.
BLOCK = (40, 60)
#: Size that the fault "small" leaves.
SMALL = (100, 120)

_FLOAT_VALUES = {
    "nan_block": math.nan, "inf_block": math.inf, "fill_block": math.nan, "unphysical_block": 200.0,
    "huge_block": 9.969209968386869e36, "minus_9999_block": -9999.0, "constant_block": 30.0,
}  # fmt: skip
_CODES = {
    "ir_brightness_temperature": {"fill_block": FILL, "unphysical_block": 9000, "constant_block": 27315},
    "visible_reflectance": {"fill_block": FILL, "unphysical_block": 30000, "constant_block": 5000},
}


@dataclass(frozen=True, kw_only=True)
class PlantedFault:
    """What was spoilt: ``variable`` and the pixels ``rows``, ``columns`` (start, stop), with the stored value.

    Faults of the whole file have no variable; ``pixels`` counts the values changed.
    """

    path: Path
    fault: str
    variable: str | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    value: float | None = None
    pixels: int = 0


def plant_fault(path: str | os.PathLike[str], fault: str, seed: int = 0) -> PlantedFault:
    """Spoil a file in place.

    Parameters
    ----------
    path
        A file written by this package, of any of its layouts.
    fault
        One of `FAULTS`.
    seed
        Chooses the place of a block or line.

    Raises
    ------
    SchemaError
        If there is no such fault, or the file has nothing that it could befall (NaN in integers).
    """
    path = Path(path)
    if fault not in FAULTS:
        raise SchemaError(f"faults: got {fault!r}; expected some of {list(FAULTS)}")
    if fault in _WHOLE_FILE:
        _WHOLE_FILE[fault](path)
        return PlantedFault(path=path, fault=fault)
    import netCDF4

    rng = np.random.default_rng([seed, 30])
    with netCDF4.Dataset(os.fspath(path), "a") as file:
        file.set_auto_maskandscale(False)
        if "nlines" in file.dimensions:
            return _spoil_larc(path, file, fault, rng)
        return _spoil_gridrad(path, file, fault, rng)


def _truncate(path: Path) -> None:
    os.truncate(path, int(path.stat().st_size * 0.6))


def _replace_by_text(path: Path) -> None:
    path.write_text("<html><head><title>401 Unauthorized</title></head><body>Please log in.</body></html>\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _drop_channels(path: Path) -> None:
    def is_channel(name: str) -> bool:
        return name in _CODES or name in ("Reflectivity", "wReflectivity", "ZH")

    _rewrite(path, keep=lambda name: not is_channel(name))


def _drop_visible(path: Path) -> None:
    if not _rewrite(path, keep=lambda name: name != "visible_reflectance"):
        raise SchemaError(f"{path}: no visible_reflectance to drop; plant no_visible in a LaRC scene by day")


def _shift_time(path: Path) -> None:
    import netCDF4

    with netCDF4.Dataset(os.fspath(path), "a") as file:
        file.set_auto_maskandscale(False)
        time = file["time"]
        if "nlines" in file.dimensions:
            stamp = np.datetime64(time.date_time_stamp.rstrip("Z"), "s") + np.timedelta64(3, "h")
            time.date_time_stamp = f"{stamp}Z"
            time[:] = time[:] + 3 / 24
            file["scan_time"][:] = file["scan_time"][:] + 3 / 24
        else:
            time[:] = time[:] + 3 * 3600
            if "Analysis_time" in file.ncattrs():
                stamp = np.datetime64(file.Analysis_time.rstrip("Z").replace(" ", "T"), "s") + np.timedelta64(
                    3, "h"
                )
                file.Analysis_time = f"{stamp}Z".replace("T", " ")


def _shrink(path: Path) -> None:
    _rewrite(path, size=SMALL)


_WHOLE_FILE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate, "text": _replace_by_text, "empty": _empty, "no_channels": _drop_channels,
    "no_visible": _drop_visible, "wrong_time": _shift_time, "small": _shrink,
}  # fmt: skip


def _rewrite(
    path: Path, *, keep: Callable[[str], bool] = lambda name: True, size: tuple[int, int] | None = None
) -> bool:
    """Copy a file over itself without some variables or cut to its first rows and columns; whether it changed."""
    import netCDF4

    with netCDF4.Dataset(os.fspath(path)) as old:
        old.set_auto_maskandscale(False)
        old.set_auto_chartostring(False)
        cut: dict[str, int] = {}
        if size is not None:
            names = ("nlines", "npixels") if "nlines" in old.dimensions else ("Latitude", "Longitude")
            cut = {name: min(n, len(old.dimensions[name])) for name, n in zip(names, size, strict=True)}
        listed = _listed_inside(old, cut)
        with replaced(path) as part, netCDF4.Dataset(os.fspath(part), "w") as new:
            for name, dim in old.dimensions.items():
                length = len(dim) if listed is None or name != "Index" else listed.size
                new.createDimension(name, cut.get(name, length))
            for name, variable in old.variables.items():
                if keep(name):
                    _copy(new, variable, cut, listed)
            new.setncatts({key: old.getncattr(key) for key in old.ncattrs()})
        return bool(cut) or not all(keep(name) for name in old.variables)


def _listed_inside(file: Any, cut: Mapping[str, int]) -> np.ndarray | None:
    """Positions along Index of the bins that a cut keeps; None where nothing is gathered."""
    if "index" not in file.variables or not cut:
        return None
    _, rows, columns = _positions(file)
    return np.flatnonzero((rows < cut["Latitude"]) & (columns < cut["Longitude"]))


def _copy(new: Any, variable: Any, cut: Mapping[str, int], listed: np.ndarray | None) -> None:
    filters = variable.filters() or {}
    options = compression(filters["complevel"] if filters.get("zlib") else 0)
    attributes = {key: variable.getncattr(key) for key in variable.ncattrs()}
    fill = attributes.pop("_FillValue", False)
    copy = new.createVariable(variable.name, variable.dtype, variable.dimensions, fill_value=fill, **options)
    copy.set_auto_maskandscale(False)
    copy.set_auto_chartostring(False)
    copy.setncatts(attributes)
    values = variable[tuple(slice(cut.get(name)) for name in variable.dimensions)]
    if listed is not None and variable.dimensions == ("Index",):
        values = values[listed]
        if variable.name == "index":
            values = _renumber(variable.group(), values, cut)
    copy[...] = values


def _renumber(file: Any, index: np.ndarray, cut: Mapping[str, int]) -> np.ndarray:
    ny, nx = (len(file.dimensions[name]) for name in ("Latitude", "Longitude"))
    level, rest = np.divmod(index.astype(np.int64), ny * nx)
    row, column = np.divmod(rest, nx)
    return ((level * cut["Latitude"] + row) * cut["Longitude"] + column).astype(index.dtype)


def _positions(file: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ny, nx = (len(file.dimensions[name]) for name in ("Latitude", "Longitude"))
    level, rest = np.divmod(np.asarray(file["index"][:], np.int64), ny * nx)
    return (level, *np.divmod(rest, nx))


def _block(rng: np.random.Generator, shape: tuple[int, int], fault: str) -> tuple[slice, slice]:
    if fault == "constant_block":
        # A whole cell of the patch grid of a crop that starts at the scene's first pixel.
        cells = [max(n // PATCH_SIZE, 1) for n in shape]
        start = [PATCH_SIZE * int(rng.integers(n)) for n in cells]
        size: tuple[int, int] = (PATCH_SIZE, PATCH_SIZE)
    else:
        size = (min(BLOCK[0], shape[0]), min(BLOCK[1], shape[1]))
        start = [int(rng.integers(n - edge + 1)) for n, edge in zip(shape, size, strict=True)]
    rows, columns = (slice(a, min(a + edge, n)) for a, edge, n in zip(start, size, shape, strict=True))
    return rows, columns


def _lines(rng: np.random.Generator, count: int) -> slice:
    height = min(int(rng.integers(3, 9)), count)
    start = int(rng.integers(count - height + 1))
    return slice(start, start + height)


def _planted(
    path: Path, fault: str, variable: str, window: tuple[slice, slice], value: float, pixels: int
) -> PlantedFault:
    rows, columns = ((part.start, part.stop) for part in window)
    return PlantedFault(
        path=path, fault=fault, variable=variable, rows=rows, columns=columns, value=value, pixels=int(pixels)
    )


def _spoil_larc(path: Path, file: Any, fault: str, rng: np.random.Generator) -> PlantedFault:
    name = next((name for name in _CODES if name in file.variables), None)
    if name is None:
        raise SchemaError(f"{path}: no channel to spoil; plant {fault} in a file that has one")
    shape = (len(file.dimensions["nlines"]), len(file.dimensions["npixels"]))
    if fault == "dead_lines":
        window, value = (_lines(rng, shape[0]), slice(0, shape[1])), 0
    elif fault in _CODES[name]:
        window, value = _block(rng, shape, fault), _CODES[name][fault]
    else:
        raise SchemaError(
            f"{path}: {fault} needs a float variable, but {name} is {file[name].dtype}; "
            "use fill_block, unphysical_block, dead_lines or constant_block, or a GridRad file"
        )
    file[name][0, window[0], window[1]] = value
    size = (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
    return _planted(path, fault, name, window, value, size)


def _spoil_gridrad(path: Path, file: Any, fault: str, rng: np.random.Generator) -> PlantedFault:
    shape = (len(file.dimensions["Latitude"]), len(file.dimensions["Longitude"]))
    is_dense = "ZH" in file.variables
    if fault == "dead_lines":
        window = (_lines(rng, shape[0]), slice(0, shape[1]))
        names = ("ZH",) if is_dense else ("Nradobs", "Nradecho")
        value = math.nan if is_dense else 0.0
        for name in names:
            file[name][..., window[0], :] = value
        pixels = len(file.dimensions["Altitude"]) * (window[0].stop - window[0].start) * shape[1]
        return _planted(path, fault, names[0], window, value, pixels)
    value = _FLOAT_VALUES[fault]
    window = _block(rng, shape, fault)
    if is_dense:
        file["ZH"][..., window[0], window[1]] = value
        size = (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
        return _planted(path, fault, "ZH", window, value, size * len(file.dimensions["Altitude"]))
    if "Reflectivity" not in file.variables or not len(file.dimensions["Index"]):
        raise SchemaError(f"{path}: no echo to spoil; plant {fault} in a file that has some")
    return _spoil_gathered(path, file, fault, rng, window, value)


def _spoil_gathered(
    path: Path, file: Any, fault: str, rng: np.random.Generator, window: tuple[slice, slice], value: float
) -> PlantedFault:
    _, rows, columns = _positions(file)
    shape = (len(file.dimensions["Latitude"]), len(file.dimensions["Longitude"]))
    if fault != "constant_block":
        # Round an echo, else nothing would be there to spoil.
        k = int(rng.integers(rows.size))
        corner = [
            int(np.clip(at - edge // 2, 0, max(n - edge, 0)))
            for at, edge, n in zip((rows[k], columns[k]), BLOCK, shape, strict=True)
        ]
        window = tuple(slice(a, min(a + edge, n)) for a, edge, n in zip(corner, BLOCK, shape, strict=True))  # type: ignore[assignment]
    inside = (rows >= window[0].start) & (rows < window[0].stop)
    inside &= (columns >= window[1].start) & (columns < window[1].stop)
    for name, filled in (("Reflectivity", value), ("wReflectivity", 0.0)):
        if name == "Reflectivity" or fault == "fill_block":
            values = file[name][:]
            values[inside] = filled
            file[name][:] = values
    return _planted(path, fault, "Reflectivity", window, value, inside.sum())
