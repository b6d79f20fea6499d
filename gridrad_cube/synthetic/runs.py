"""Turn a request for scenes into grids, times, weather, plants and faults."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridrad_cube import geometry
from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic.faults import FAULTS
from gridrad_cube.synthetic.noise import Float
from gridrad_cube.synthetic.radar import place_sites
from gridrad_cube.synthetic.satellite import LIMB_ZENITH, SATELLITE_LONGITUDE
from gridrad_cube.synthetic.weather import Plant, Weather, seconds_of

#: Levels of GridRad V4 and V3.1, km.
ALTITUDES_V4 = np.concatenate([np.arange(1, 15) * 0.5, np.arange(8.0, 23.0)])
ALTITUDES_V3 = np.arange(1.0, 25.0)
#: Columns of `plant_table`.
PLANT_DTYPE = np.dtype([
    ("plant", "i4"), ("scene", "i4"), ("time", "M8[s]"), ("latitude", "f8"), ("longitude", "f8"),
    ("row", "f8"), ("column", "f8"), ("mirrored", "?"), ("noise", "f8"),
])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format: its lattice (pixels a degree, whether points are cell centres), full grid and habits.

    ``south``, ``west`` is the corner of the full grid in degrees, ``shape`` its size, ``start`` and
    ``interval`` the times by default, ``altitudes`` the levels in km.
    """

    name: str
    per_degree: int
    centred: bool
    south: float
    west: float
    shape: tuple[int, int]
    start: str
    interval: str
    altitudes: tuple[float, ...] = ()
    north_first: bool = False


_V4 = tuple(float(z) for z in ALTITUDES_V4)
#: The formats that `write_scenes` writes.
FORMATS = {
    f.name: f
    for f in (
        Format(name="larc-goes", per_degree=56, centred=True, south=18.0, west=-123.0, shape=(2240, 2856),
               start="2021-07-05T17:50", interval="10min", north_first=True),
        Format(name="gridrad-v4.2", per_degree=48, centred=True, south=27.5, west=-92.5, shape=(792, 792),
               start="2011-04-27T20:00", interval="5min", altitudes=_V4),
        Format(name="gridrad-v3.1", per_degree=50, centred=False, south=25.0, west=-115.0, shape=(1201, 2301),
               start="2011-04-27T12:00", interval="1h", altitudes=tuple(float(z) for z in ALTITUDES_V3)),
        Format(name="gridrad-v4.1", per_degree=48, centred=True, south=30.0, west=-98.0, shape=(528, 672),
               start="2017-03-28T12:10", interval="5min", altitudes=_V4),
    )
}  # fmt: skip
#: Grid of the hourly V4.2 product: it covers the contiguous United States on the same lattice.
CONUS_SHAPE = (1248, 2832)


@dataclass(frozen=True, eq=False)
class Run:
    """A request for scenes with every default filled in; what `write_scenes` writes follows from it alone."""

    format: Format
    latitude: Float
    longitude: Float
    times: tuple[np.datetime64, ...]
    weather: Weather
    plants: np.ndarray
    faults: dict[int, str]

    @property
    def seed(self) -> int:
        """Seed of the weather."""
        return self.weather.seed


def make_run(
    *, format: str = "larc-goes", scenes: int = 6, shape: tuple[int, int] | None = None, seed: int = 0,
    start: str | np.datetime64 | None = None, interval: str | np.timedelta64 | datetime.timedelta | None = None,
    center: tuple[float, float] | None = None, faults: Sequence[str] = (), plants: int = 0, plant_noise: float = 0.3,
    density: float | None = None,
) -> Run:  # fmt: skip
    """Fill in a request as `write_scenes` does; its ``weather`` is what the scenes show.

    Raises
    ------
    SchemaError
        If the request makes no sense; the message says which argument.
    """
    if format not in FORMATS:
        raise SchemaError(f"format: got {format!r}; expected one of {list(FORMATS)}")
    if scenes < 1:
        raise SchemaError(f"scenes: got {scenes}; expected 1 or more")
    spec = FORMATS[format]
    latitude, longitude = make_axes(spec, shape, center)
    step = parse_interval(spec.interval if interval is None else interval)
    begin = np.datetime64(spec.start if start is None else start).astype("M8[s]")
    if format == "larc-goes" and (step % np.timedelta64(60, "s") or seconds_of(begin) % 60):
        raise SchemaError(
            f"interval: LaRC file names tell whole minutes, got start {begin} and steps of {step}"
        )
    times = tuple(begin + k * step for k in range(scenes))
    if density is None:
        # Small scenes get more storms a degree, else most of them would be empty.
        area = abs((latitude[-1] - latitude[0]) * (longitude[-1] - longitude[0]))
        density = float(np.clip(300.0 / max(area, 1.0), 1.0, 2.5))
    weather = Weather(seed, density=density)
    table = _place_plants(weather, (plants, plant_noise), times, spec, (latitude, longitude))
    weather = weather.plant(*(_plant_of(row) for row in table))
    return Run(spec, latitude, longitude, times, weather, table, _spread_faults(seed, scenes, faults))


def make_axes(
    spec: Format, shape: tuple[int, int] | None = None, center: tuple[float, float] | None = None
) -> tuple[Float, Float]:
    """Latitude and longitude in [-180, 180) of a grid on a format's lattice.

    ``shape`` is (rows, columns), the full grid by default; ``center`` (latitude, longitude) its middle, that of
    the full grid by default.
    """
    rows, columns = spec.shape if shape is None else (int(shape[0]), int(shape[1]))
    if rows < 2 or columns < 2:
        raise SchemaError(f"shape: got {(rows, columns)}; expected at least 2 rows and 2 columns")
    n = spec.per_degree
    first = [round(spec.south * n), round(spec.west * n)]
    if spec.name == "gridrad-v4.2" and (rows, columns) == CONUS_SHAPE:
        first = [24 * n, -125 * n]
    elif center is not None:
        first = [round(at * n - size / 2) for at, size in zip(center, (rows, columns), strict=True)]
    else:
        first = [
            a + (full - size) // 2 for a, full, size in zip(first, spec.shape, (rows, columns), strict=True)
        ]
    offset = 0.5 if spec.centred else 0.0
    latitude, longitude = (
        (a + np.arange(size) + offset) / n for a, size in zip(first, (rows, columns), strict=True)
    )
    if longitude[0] < -180.0 or longitude[-1] >= 180.0 or abs(latitude).max() > 85.0:
        raise SchemaError(f"shape: {(rows, columns)} around {center} leaves the map; pass a smaller one")
    return latitude[::-1] if spec.north_first else latitude, longitude


_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_interval(value: str | np.timedelta64 | datetime.timedelta) -> np.timedelta64:
    """Read a time step: a timedelta, or a text such as ``"10min"``, ``"6h"``, ``"90s"``, ``"1d"``."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*([a-z]+)\s*", value.lower())
        if not match or match[2] not in _UNITS:
            raise SchemaError(
                f"interval: got {value!r}; expected a number and one of {list(_UNITS)}, as in 10min"
            )
        value = np.timedelta64(int(match[1]) * _UNITS[match[2]], "s")
    step = (
        np.timedelta64(value, "s")
        if isinstance(value, np.timedelta64)
        else np.timedelta64(value).astype("m8[s]")
    )
    if step <= np.timedelta64(0, "s"):
        raise SchemaError(f"interval: got {step}; expected more than 0 s")
    return step


def plant_table(seed: int = 0, *, plants: int = 20, **request: Any) -> np.ndarray:
    """Tell where `write_scenes` plants the complex.

    ``request`` takes what `make_run` takes; give what `write_scenes` was given.

    Returns
    -------
    A structured array, one row a plant: ``scene`` and ``time`` when it stands as in all others, position,
    ``row`` and ``column`` (fractional pixel) of its centre, ``mirrored`` and ``noise``. Plant 0 is the first
    scene's, plain.
    """
    return make_run(seed=seed, plants=plants, **request).plants


# Candidates for the place of one plant.
_TRIES = 64


def _place_plants(
    weather: Weather,
    request: tuple[int, float],
    times: Sequence[np.datetime64],
    spec: Format,
    axes: tuple[Float, Float],
) -> np.ndarray:
    count, noise = request
    rng = np.random.default_rng([weather.seed, 40])
    table = np.zeros(count, PLANT_DTYPE)
    # Half of the complex, 1.7 degrees, off the edges where the scene is large enough.
    ends = [_shrunk(axis, 1.7) for axis in axes]
    for k in range(count):
        scene = k * len(times) // count
        y, x = (rng.uniform(*end, _TRIES) for end in ends)
        score = _visibility(weather, spec, axes, y, x)
        for other in table[:k]:
            # As far as can be from earlier plants, the more so the closer in time.
            hours = abs((times[scene] - other["time"]) / np.timedelta64(3600, "s"))
            distance = geometry.great_circle_km(y, x, other["latitude"], other["longitude"])
            score = np.minimum(score, distance * (1.0 + min(hours, 6.0) / 12.0))
        best = int(np.argmax(score))
        row, column = _pixel(axes[0], y[best]), _pixel(axes[1], x[best])
        mirrored = bool(rng.random() < 0.5) and k > 0
        table[k] = (k, scene, times[scene], y[best], x[best], row, column, mirrored, noise if k else 0.0)
    return table


def _visibility(weather: Weather, spec: Format, axes: tuple[Float, Float], y: Float, x: Float) -> Float:
    """Infinity where the instrument sees the whole of the complex; below 0 elsewhere, the worse the lower."""
    around = 1.3 * np.array([(0, 0), (1, 1.2), (1, -1.2), (-1, 1.2), (-1, -1.2)])
    latitude, longitude = y[:, None] + around[:, 0], x[:, None] + around[:, 1]
    if spec.altitudes:
        sites = place_sites(weather, *axes)
        distance = np.full(latitude.shape, 1e4)
        for site in sites:
            away = geometry.great_circle_km(latitude, longitude, site.latitude, site.longitude)
            distance = np.minimum(distance, away)
        beyond = distance.max(axis=1) - 230.0
    else:
        zenith = geometry.satellite_zenith_angle(latitude, longitude, SATELLITE_LONGITUDE)
        beyond = zenith.max(axis=1) - (LIMB_ZENITH - 1.0)
    return np.where(beyond > 0.0, -beyond, np.inf)


def _shrunk(axis: Float, margin: float) -> tuple[float, float]:
    low, high = float(axis.min()), float(axis.max())
    return (low + margin, high - margin) if high - low > 2 * margin else ((low + high) / 2,) * 2


def _pixel(axis: Float, value: float) -> float:
    return float((value - axis[0]) / (axis[1] - axis[0]))


def _plant_of(row: np.void) -> Plant:
    return Plant(
        time=row["time"], latitude=float(row["latitude"]), longitude=float(row["longitude"]),
        mirrored=bool(row["mirrored"]), noise=float(row["noise"]),
    )  # fmt: skip


def _spread_faults(seed: int, scenes: int, faults: Sequence[str]) -> dict[int, str]:
    unknown = [fault for fault in faults if fault not in FAULTS]
    if unknown:
        raise SchemaError(f"faults: got {unknown}; expected some of {list(FAULTS)}")
    if len(faults) > scenes:
        raise SchemaError(
            f"faults: {len(faults)} for {scenes} scenes; expected at most one a scene. Raise scenes"
        )
    chosen = np.random.default_rng([seed, 41]).permutation(scenes)[: len(faults)]
    return {int(scene): fault for scene, fault in zip(chosen, faults, strict=True)}
