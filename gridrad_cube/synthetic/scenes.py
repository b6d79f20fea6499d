"""Write synthetic weather as source files, with the layouts and names of the archives."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube import geometry
from gridrad_cube.progress import progress_bar
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_seconds
from gridrad_cube.storage import open_for_writing
from gridrad_cube.synthetic.noise import Float
from gridrad_cube.synthetic.radar import RadarNetwork, RadarVolume, render_radar
from gridrad_cube.synthetic.satellite import (
    LIMB_ZENITH,
    SATELLITE_LONGITUDE,
    SatelliteImage,
    render_satellite,
)
from gridrad_cube.synthetic.storms import Weather, seconds_of

# Every file says what it is.
_ORIGIN = "gridrad-cube synthesize: synthetic weather, not an observation"
_ALTITUDES_V4 = tuple(float(z) for z in (*np.arange(1, 15) * 0.5, *range(8, 23)))


class _Format(NamedTuple):
    """A file format: its lattice, its full grid, and the names of its files.

    ``per_degree`` is the number of pixels per degree; points are at the centers of pixels where ``centered``.
    ``south`` and ``west`` are the corner of the full grid in degrees, ``shape`` its rows and columns; ``altitudes``
    the levels in km; ``start`` and ``interval`` the default times; ``folder`` and ``file`` patterns of ``strftime``.
    """

    name: str
    per_degree: int
    centered: bool
    south: float
    west: float
    shape: tuple[int, int]
    altitudes: tuple[float, ...]
    start: str
    interval: str
    folder: str
    file: str


#: The formats that `write_scenes` writes.
FORMATS = {
    f.name: f
    for f in (
        _Format("larc-goes", 56, True, 18.0, -123.0, (2240, 2856), (), "2021-07-05T17:50", "10min",
               "%Y%m", "NASALARC_GOES16_CONVECTION_DETECTION_%Y%m%d_%H%M.nc"),
        _Format("gridrad-v4.2", 48, True, 27.5, -92.5, (792, 792), _ALTITUDES_V4, "2011-04-27T20:00", "5min",
               "volumes/%Y/%Y%m%d", "nexrad_3d_v4_2_%Y%m%dT%H%M%SZ.nc"),
        _Format("gridrad-v3.1", 50, False, 25.0, -115.0, (1201, 2301), tuple(map(float, range(1, 25))),
               "2011-04-27T12:00", "1h", "%Y%m", "nexrad_3d_v3_1_%Y%m%dT%H%M%SZ.nc"),
        _Format("gridrad-v4.1", 48, True, 30.0, -98.0, (528, 672), _ALTITUDES_V4, "2017-03-28T12:10", "5min",
               "%Y/%Y%m%d", "nexrad_3d_4_1_%Y%m%dT%H%M%SZ.nc"),
    )
}  # fmt: skip
# The hourly product of V4.2: the contiguous United States on the same lattice.
_CONUS = FORMATS["gridrad-v4.2"]._replace(south=24.0, west=-125.0, shape=(1248, 2832), folder="%Y%m")
_PLANT_DTYPE = [
    ("time", "M8[s]"), ("latitude", "f8"), ("longitude", "f8"), ("mirrored", "?"), ("noise", "f8")
]  # fmt: skip
# Difference of all plants from the first one, and the number of candidates for the position of one.
_PLANT_NOISE, _PLANT_TRIES = 0.3, 64


def write_scenes(
    out: str | os.PathLike[str], *, format: str = "larc-goes", scenes: int = 6,
    shape: tuple[int, int] | None = None, seed: int = 0, start: str | np.datetime64 | None = None,
    interval: str | np.timedelta64 | datetime.timedelta | None = None, plants: int = 0, progress: bool | None = None,
) -> list[Path]:  # fmt: skip
    """Write synthetic source files, one scene in each.

    Every scene depends only on the arguments, not on files that were written before.

    Parameters
    ----------
    out
        Folder; files are written into subfolders as in the archives.
    format
        One of `FORMATS`.
    scenes
        Number of files.
    shape
        Rows and columns; a smaller grid lies on the same lattice in the middle of the full one.
    seed
        The same seed gives the same files.
    start, interval
        Time of the first scene, UTC, and the step between scenes: a timedelta or a text such as ``"10min"``.
    plants
        Number of times that one storm complex is planted into ``larc-goes`` scenes: later, elsewhere,
        mirrored and with noise. `plant_table` returns the positions.
    progress
        Whether to show progress bars on stderr; None shows them in a terminal and in a notebook.

    Returns
    -------
    list of Path
        The files in order of time.

    Raises
    ------
    SchemaError
        If an argument is not valid. Nothing is written then.
    """
    plan = _plan(
        format=format, scenes=scenes, shape=shape, seed=seed, start=start, interval=interval, plants=plants
    )
    layout = plan.format
    network = RadarNetwork(plan.weather, *plan.axes, np.array(layout.altitudes)) if layout.altitudes else None
    paths = []
    title = f"synthesize {format}"
    with progress_bar(title, plan.times, total=len(plan.times), unit="file", progress=progress) as bar:
        for time in bar:
            stamp = time.item()
            # GridRad files a convective day, 12 to 12 UTC, in the folder of its first date.
            day = stamp - datetime.timedelta(hours=12) if layout.folder.startswith("volumes") else stamp
            paths.append(Path(out, day.strftime(layout.folder), stamp.strftime(layout.file)))
            if network is None:
                _write_larc_goes(paths[-1], time, plan)
            else:
                version = format.removeprefix("gridrad-").replace(".", "_")
                write_gridrad(
                    paths[-1], version=version, time=time, axes=(network.altitude_km, *plan.axes),
                    volume=render_radar(plan.weather, time, network, moments=version != "v3_1"),
                    sites=[site.name for site in network.sites],
                )  # fmt: skip
    return paths


def plant_table(seed: int = 0, *, plants: int = 20, **request: Any) -> np.ndarray:
    """Return the positions at which `write_scenes` plants the complex.

    Parameters
    ----------
    seed, plants
        As of `write_scenes`.
    **request
        ``format``, ``scenes``, ``shape``, ``start`` and ``interval``, as of `write_scenes`.

    Returns
    -------
    numpy.ndarray
        A structured array with one row per plant: ``time`` and position of its center, ``mirrored`` and
        ``noise``.
        The first one is neither mirrored nor noisy.
    """
    return _plan(**request, seed=seed, plants=plants).weather.plants


def _make_axes(format: _Format, shape: tuple[int, int] | None = None) -> tuple[Float, Float]:
    """Make latitude and longitude in [-180, 180) of a grid of ``shape`` in the middle of the full one."""
    shape = format.shape if shape is None else (int(shape[0]), int(shape[1]))
    if min(shape) < 2:
        raise SchemaError(f"shape: got {shape}; expected at least 2 rows and 2 columns")
    axes = []
    n, offset = format.per_degree, 0.5 if format.centered else 0.0
    for corner, full, size in zip((format.south, format.west), format.shape, shape, strict=True):
        axes.append((round(corner * n) + (full - size) // 2 + np.arange(size) + offset) / n)
    latitude, longitude = axes
    if longitude[0] < -180.0 or longitude[-1] >= 180.0 or abs(latitude).max() > 85.0:
        raise SchemaError(f"shape: {shape} leaves the map; pass a smaller one")
    return latitude[::-1] if format.name == "larc-goes" else latitude, longitude


class _Plan(NamedTuple):
    format: _Format
    axes: tuple[Float, Float]
    times: list[np.datetime64]
    weather: Weather


def _plan(
    *, format: str = "larc-goes", scenes: int = 6, shape: tuple[int, int] | None = None, seed: int = 0,
    start: Any = None, interval: Any = None, plants: int = 0,
) -> _Plan:  # fmt: skip
    """Check a request and fill in the defaults of its format."""
    if format not in FORMATS:
        raise SchemaError(f"format: got {format!r}; expected one of {list(FORMATS)}")
    if scenes < 1:
        raise SchemaError(f"scenes: got {scenes}; expected 1 or more")
    spec = _CONUS if format == _CONUS.name and shape == _CONUS.shape else FORMATS[format]
    axes = _make_axes(spec, shape)
    step = np.timedelta64(round(as_seconds(spec.interval if interval is None else interval)), "s")
    begin = np.datetime64(spec.start if start is None else start).astype("M8[s]")
    if step <= np.timedelta64(0, "s"):
        raise SchemaError(f"interval: got {interval!r}; expected more than 0 s")
    if not spec.altitudes and (step % np.timedelta64(60, "s") or seconds_of(begin) % 60):
        raise SchemaError(
            f"interval: the names of LaRC files hold whole minutes, but got start {begin} and steps of {step}"
        )
    if plants and spec.altitudes:
        raise SchemaError(f"plants: got {plants} for {format}; expected 0, since only larc-goes has plants")
    times = [begin + k * step for k in range(scenes)]
    # Small scenes get more storms per degree; otherwise most of them would be empty.
    area = abs((axes[0][-1] - axes[0][0]) * (axes[1][-1] - axes[1][0]))
    density = float(np.clip(300.0 / max(area, 1.0), 1.0, 2.5))
    return _Plan(
        spec, axes, times, Weather(seed, plants=_place_plants(seed, plants, times, axes), density=density)
    )


def _place_plants(
    seed: int, count: int, times: Sequence[np.datetime64], axes: tuple[Float, Float]
) -> np.ndarray:
    rng = np.random.default_rng([seed, 40])
    table = np.zeros(count, _PLANT_DTYPE)
    # The complex reaches 1.7 degrees from its center: it lies whole in the scene if that is large enough.
    ends = [(float(axis.min()) + 1.7, float(axis.max()) - 1.7) for axis in axes]
    ends = [(a, b) if b > a else ((a + b) / 2,) * 2 for a, b in ends]
    around = 1.3 * np.array([(0, 0), (1, 1.2), (1, -1.2), (-1, 1.2), (-1, -1.2)])
    for k in range(count):
        time = times[k * len(times) // count]
        y, x = (rng.uniform(*end, _PLANT_TRIES) for end in ends)
        # Below 0 where the satellite does not see the whole complex, the worse the lower.
        corners = y[:, None] + around[:, 0], x[:, None] + around[:, 1]
        beyond = (
            geometry.satellite_zenith_angle(*corners, SATELLITE_LONGITUDE).max(axis=1) - LIMB_ZENITH + 1.0
        )
        score = np.where(beyond > 0.0, -beyond, np.inf)
        for other in table[:k]:
            # As far as possible from earlier plants, the more so the closer in time.
            hours = abs((time - other["time"]) / np.timedelta64(3600, "s"))
            distance = geometry.great_circle_km(y, x, other["latitude"], other["longitude"])
            score = np.minimum(score, distance * (1.0 + min(hours, 6.0) / 12.0))
        best = int(np.argmax(score))
        mirrored = bool(rng.random() < 0.5) and k > 0
        table[k] = (time, y[best], x[best], mirrored, _PLANT_NOISE if k else 0.0)
    return table


def _save(path: str | os.PathLike[str], variables: dict[str, Any], attributes: dict[str, str]) -> None:
    """Write values as they are to a netCDF file; ``variables`` are (dims, values, attributes[, encoding])."""
    dataset = xr.Dataset(variables, attrs=attributes)
    for variable in dataset.variables.values():
        packed = {"zlib": True, "complevel": 1, "shuffle": True} if variable.size > 4096 else {}
        variable.encoding = {"_FillValue": None, **packed, **variable.encoding}
    with open_for_writing(path) as file:
        dataset.to_netcdf(file.name, engine="netcdf4")


# LaRC

_MJD = "days since 1858-11-17T00:00:00.000"
_LARC_FILL = 65535
# The files' float32 ``scale_factor`` of latitude and longitude: degrees per radian.
_LARC_DEGREES = 57.29578
# A scan starts seconds after the minute in the name of its file, and takes four minutes.
_SCAN_OFFSET, _SCAN_SECONDS = np.timedelta64(17, "s"), 240.0


def _write_larc_goes(path: Path, time: np.datetime64, plan: _Plan) -> None:
    """Write a scene as ``NASALARC_GOES16_CONVECTION_DETECTION``; by night it has no visible reflectance."""
    image = render_satellite(plan.weather, time, *plan.axes)
    _drop_lines(image, np.random.default_rng([plan.weather.seed, 42, int(seconds_of(time)) % 2**32]))
    scan = time + _SCAN_OFFSET
    scan_times = scan + (1000 * np.linspace(0.0, _SCAN_SECONDS, plan.axes[0].size)).astype("m8[ms]")
    pixels, where = ("time", "nlines", "npixels"), {"coordinates": "longitude latitude time"}
    variables: dict[str, Any] = {
        "time": (pixels[:1], _modified_julian_day([scan]), {
            "long_name": "Modified Julian Day of the Nominal Satellite Image Timestamp", "units": _MJD,
            "date_time_stamp": f"{scan}Z", "definition": "http://tycho.usno.navy.mil/mjd.html",
            "comments": "MJD equals 51544.0 at Jan/01/2000 00:00",
        }),
        "scan_time": (pixels[1], _modified_julian_day(scan_times), {
            "long_name": "Observation Time (MJD) for Current Line", "units": _MJD,
        }),
        "ot_id_number": (pixels, image.overshoots[None], {
            "long_name": "IR Overshooting Top Identification Number", "units": "unitless",
            "valid_range": np.array([1, 9999], np.uint16), **where,
        }, {"_FillValue": 0}),
    }  # fmt: skip
    for name, dim, axis, units in zip(
        ("latitude", "longitude"), pixels[1:], plan.axes, ("degrees_north", "degrees_east"), strict=True
    ):
        about = {"long_name": name.capitalize(), "scale_factor": np.float32(_LARC_DEGREES), "units": units}
        variables[name] = (dim, (axis / _LARC_DEGREES).astype(np.float32), about, {"_FillValue": -999.0})
    kelvin = {
        "long_name": "IR Brightness Temperature Image", "units": "degrees_Kelvin",
        "valid_range": np.array([15000, 35000], np.uint16),
    }  # fmt: skip
    for name, values, scale, more in (
        ("ir_brightness_temperature", image.infrared, 0.01, kelvin),
        ("visible_reflectance", image.visible, 0.0001, {"units": "unitless"}),
    ):
        if values is not None:
            codes = np.rint(np.clip(values * np.float32(1.0 / scale), 0.0, _LARC_FILL - 1))
            codes = np.where(np.isnan(values), _LARC_FILL, codes).astype(np.uint16)[None]
            about = {**more, **where, "scale_factor": np.float32(scale)}
            variables[name] = (pixels, codes, about, {"_FillValue": _LARC_FILL})
    _save(path, variables, {"history": _ORIGIN})


def _drop_lines(image: SatelliteImage, rng: np.random.Generator) -> None:
    """Lose a few lines of every third scene."""
    if rng.random() > 1 / 3:
        return
    lines = len(image.infrared)
    height = min(int(rng.integers(1, 7)), max(lines // 50, 1))
    start = int(rng.integers(lines - height + 1))
    for values, missing in zip(image, (np.nan, np.nan, 0), strict=True):
        if values is not None:
            values[start : start + height] = missing


def _modified_julian_day(time: npt.ArrayLike) -> Float:
    return (np.asarray(time, "datetime64[ms]") - np.datetime64("1858-11-17", "ms")) / np.timedelta64(1, "D")


# GridRad

_VOLUME = ("Altitude", "Latitude", "Longitude")
#: Name in the dense layout of V4.1, long name and units of every field, as V4.2 has them. The texts of those of dual
#: polarization are not known.
_FIELDS = {
    "Reflectivity": ("ZH", "Radar Reflectivity", "dBZ"),
    "SpectrumWidth": ("SW", "Velocity Spectrum Width", "m s^-1"),
    "AzShear": ("VOR", "Azimuthal Shear (Rotation)", "s^-1"),
    "Divergence": ("DIV", "Radial Divergence", "s^-1"),
    "DifferentialReflectivity": ("ZDR", "Differential Reflectivity", "dB"),
    "DifferentialPhase": ("KDP", "Specific Differential Phase", "deg km^-1"),
    "CorrelationCoefficient": ("RHV", "Correlation Coefficient", "dimensionless"),
}
#: V4.2 says what its axes are, and that they are axes, in plain attributes.
_AXES_V4_2 = {
    name: {"description": f"{name}s of grid box centers", "class": "DIMENSION_SCALE"} for name in _VOLUME
}
_AXES_V4_2["Altitude"] |= {"long_name": "Geometric altitude with respect to geoid", "positive": "up"}
_COUNTS_V4_2 = "Number of radar azimuth scans (elevation angles) {} grid box"
#: Time is in minutes in V4.2; that the others have seconds is how programs read them.
_TIMES = {
    "v4_2": ("2000-01-01", 60, "minutes", {"calendar": "gregorian", "class": "DIMENSION_SCALE"}),
    "v4_1": ("2001-01-01", 1, "seconds", {}),
    "v3_1": ("2001-01-01", 1, "seconds", {}),
}
_TIME_FILL = -2147483647.0
# Elevations of the sweeps that files list, degrees.
_SWEEPS = (0.5, 0.9, 1.3, 1.8, 2.4, 4.0, 8.0, 19.5)
#: Variable with the names of what was merged, its dimension, and the length, form of time and endings of the names.
_MERGED = {
    "v3_1": ("files_merged", "File", 32, "%Y%m%d_%H%M%S_V06", [".gz"]),
    "v4_2": ("sweeps_merged", "Sweep", 29, "-%Y%m%dT%H%M%SZ", [f"-{degrees:4.1f}deg" for degrees in _SWEEPS]),
}
_ATTRIBUTES = {
    "Name": "GridRad",
    "Description": "Three-dimensional gridded NEXRAD radar reflectivity (synthetic)",
    "Analysis_time_window": "all azimuth scans (elevation angles) within 228 s of the analysis time",
    "Grid_scheme": "Regular longitude-latitude-altitude grid",
    "Algorithm_description": "Space and time binning weighted by distances from radar and analysis time",
    "Data_source": _ORIGIN, "Data_source_URL": "none", "Authors": _ORIGIN, "Project_sponsor": "none",
    "Project_name": "gridrad-cube",
}  # fmt: skip
#: Attributes that name the programs behind a version.
_PROGRAMS = {
    "v3_1": ("NOAA_wct-export_Version",), "v4_1": ("NOAA_wct-export_Version",),
    "v4_2": ("Processing_Software", "NOAA_toolkit_root"),
}  # fmt: skip


def write_gridrad(
    path: str | os.PathLike[str], *, version: str, time: np.datetime64, axes: tuple[Float, Float, Float],
    volume: RadarVolume, sites: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write a volume in a layout of GridRad.

    Parameters
    ----------
    path
        File to write; replaced when complete.
    version
        ``"v3_1"`` or ``"v4_2"``, which list the bins with echo, or ``"v4_1"``, which has every bin.
    time
        Analysis time, UTC.
    axes
        Altitude (km), latitude and longitude (degrees), ascending.
    volume
        The bins with echo, and the counts of all bins.
    sites
        Names of the radars.
    """
    is_new, is_sparse = version == "v4_2", version in _MERGED
    variables = _gridrad_axes(version, axes)
    if is_sparse:
        about: dict[str, Any] = {"long_name": "Flat index into (Altitude, Latitude, Longitude)"}
        texts = {"Nradobs": "Number of radar observations", "Nradecho": "Number of radar echoes"}
        units, packed = "1", {}
        if is_new:
            about = {
                "long_name": "Grid box subscripts",
                "description": "1-D subscripts of grid boxes containing valid radar observations",
            }
            texts = {
                "Nradobs": _COUNTS_V4_2.format("observing"),
                "Nradecho": _COUNTS_V4_2.format("with echo in"),
            }
            units = "counts"
            halves = tuple(-(-size // 2) for size in volume.observations.shape)
            packed = {"zlib": True, "complevel": 5, "shuffle": False, "chunksizes": halves}
        name, dim, width, form, endings = _MERGED[version]
        scan = f"{(time - np.timedelta64(90, 's')).item():{form}}"
        names = [f"{site}{scan}{ending}".ljust(width) for site in sites for ending in endings]
        letters = np.array(names or ["none"], f"S{width}")
        variables[name] = (dim, letters, {}, {"char_dim_name": f"{dim}Ref"})
        for count, numbers in (("Nradobs", volume.observations), ("Nradecho", volume.echoes)):
            variables[count] = (_VOLUME, numbers, {"long_name": texts[count], "units": units}, packed)
        variables["index"] = ("Index", volume.index.astype(np.int32), about, _listed(version, volume))
    for name, values in volume.fields.items():
        dense_name, text, units = _FIELDS[name]
        if is_sparse:
            weight = f"{text.removeprefix('Radar ')} Bin Weights"
            if name == "AzShear":
                weight = "Half (Azimuthal) Vorticity Bin Weights"
            if not is_new:
                text, weight = text.capitalize(), f"{name} bin weight"
            lists = _listed(version, volume)
            about = {"long_name": text, "units": units, "missing_value": np.float32(np.nan)}
            variables[name] = ("Index", values, about, lists)
            about = {
                "long_name": weight,
                "units": "dimensionless" if is_new else "1",
                "missing_value": np.float32(0),
            }
            variables[f"w{name}"] = ("Index", volume.weights[name], about, lists)
        else:
            dense = np.full((1, *volume.observations.shape), np.nan, np.float32)
            dense.ravel()[volume.index] = values
            variables[dense_name] = (("time", *_VOLUME), dense, {"long_name": text, "units": units})
    variables["time"] = _gridrad_time(version, time)
    stamp = f"{time}Z".replace("T", " ")
    _save(path, variables, _ATTRIBUTES | dict.fromkeys(_PROGRAMS[version], "none") | {
        "Algorithm_version": version, "Storage_scheme": f"netCDF-4, {'sparse' if is_sparse else 'dense'}",
        "Analysis_time": stamp, "File_creation_date": stamp,  # the same seed gives the same bytes
    })  # fmt: skip


def _gridrad_axes(version: str, axes: tuple[Float, Float, Float]) -> dict[str, Any]:
    dtype, step = (np.float32, 0.02) if version == "v3_1" else (np.float64, 1 / 48)
    variables = {}
    for name, axis, units in zip(_VOLUME, axes, ("km", "degrees_north", "degrees_east"), strict=True):
        axis = axis % 360.0 if name == "Longitude" else axis
        delta = dtype(step if name != "Altitude" or axis.size < 2 else axis[1] - axis[0])
        about: dict[str, Any] = {"long_name": name, "units": units, "delta": delta}
        if version == "v4_2":
            about |= _AXES_V4_2[name] | (
                {"delta": np.diff(axis)} if name == "Altitude" and axis.size > 1 else {}
            )
        variables[name] = (name, axis.astype(dtype), about)
    return variables


def _gridrad_time(version: str, time: np.datetime64) -> tuple[Any, ...]:
    epoch, length, units, more = _TIMES[version]
    value = (time - np.datetime64(epoch)) / np.timedelta64(length, "s")
    about = {"long_name": "time" if more else "Time", "units": f"{units} since {epoch} 00:00:00", **more}
    return "time", [value], about, {"_FillValue": _TIME_FILL} if more else {}


def _listed(version: str, volume: RadarVolume) -> dict[str, Any]:
    """Return the chunk sizes of lists of bins: V4.2 keeps each list in one chunk."""
    if version != "v4_2" or not volume.index.size:
        return {}
    return {"zlib": True, "complevel": 5, "shuffle": True, "chunksizes": volume.index.shape}
