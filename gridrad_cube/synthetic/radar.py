"""The weather as a network of radars sees it: coverage, and volumes of merged echo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gridrad_cube import geometry
from gridrad_cube.synthetic.noise import Float, Float32, axis_box, lay_tile
from gridrad_cube.synthetic.storms import KM_PER_DEGREE, Storm, Weather, anvil_depth, seconds_of

# Reach of a radar, km (GridRad V4.2 uses gates to 300 km).
_RANGE_KM = 300.0
# Elevations of a volume scan and width of the beam, degrees (a precipitation pattern of the WSR-88D).
_ELEVATIONS = (0.5, 0.9, 1.3, 1.8, 2.4, 3.1, 4.0, 5.1, 6.4, 8.0, 10.0, 12.5, 15.6, 19.5)
_BEAM_DEGREES = 0.95
# Spacing of radars, degrees; each lies off its node by at most a third of it.
_SITE_SPACING = 2.4
# The radars of the network got dual polarization from 2011 on.
_DUAL_POLARIZATION = np.datetime64("2011-01-01")
_DUAL_FIELDS = ("DifferentialReflectivity", "DifferentialPhase", "CorrelationCoefficient")
# Share of bins with echo whose velocities are unknown.
_LOST_VELOCITIES = 0.2
# Weaker echoes are not listed, dBZ.
_WEAKEST_DBZ = -5.0


class _Site(NamedTuple):
    """A radar: four letters and its position in degrees."""

    name: str
    latitude: float
    longitude: float


def _place_sites(weather: Weather, latitude: Float, longitude: Float) -> list[_Site]:
    """List the radars that reach into a grid; they stand on land."""
    reach = _RANGE_KM / KM_PER_DEGREE + _SITE_SPACING
    nodes = (
        np.arange((axis.min() - reach) // _SITE_SPACING, (axis.max() + reach) / _SITE_SPACING, dtype=int)
        for axis in (latitude, longitude)
    )
    out = []
    for i, j in itertools.product(*nodes):
        rng = np.random.default_rng([weather.seed, 20, i % 1024, j % 1024])
        y, x = _SITE_SPACING * (np.array([i, j]) + 0.5 + rng.uniform(-0.33, 0.33, 2))
        # No radar on the sea, nor at some nodes: the gaps of coverage.
        if weather.land.points(0.0, y, x)[0] > -0.3 and rng.random() < 0.92:
            letters = "".join(chr(65 + number % 26) for number in (i, j // 26, j))
            out.append(_Site(f"K{letters}", float(y), float(x)))
    return out


class RadarNetwork:
    """Radars of a seed around a grid, and how often they look at each of its bins.

    Parameters
    ----------
    weather
        Its seed places the radars.
    latitude, longitude
        1-D axes in degrees, ascending.
    altitude_km
        Levels, km above mean sea level, ascending.
    """

    def __init__(self, weather: Weather, latitude: Float, longitude: Float, altitude_km: Float) -> None:
        self.latitude, self.longitude, self.altitude_km = latitude, longitude, altitude_km
        self.sites = _place_sites(weather, latitude, longitude)
        looks, weights = _beam_tables(altitude_km)
        #: Number of sweeps that looked at each bin, and the sum of their weights exp(-r^2 / L^2), L = 150 km.
        self.observations = np.zeros((altitude_km.size, latitude.size, longitude.size), np.int8)
        self.weights = np.zeros(self.observations.shape, np.float32)
        for _, window, distance in self.footprints():
            for level in range(altitude_km.size):
                self.observations[level, *window] += looks[level].take(distance)
                self.weights[level, *window] += weights[level].take(distance)

    def footprints(self) -> Iterator[tuple[_Site, tuple[slice, slice], npt.NDArray[np.int32]]]:
        """Yield the radars that see the grid, with their rows and columns, and whole km of distance in these.

        The distance is at most one km beyond the reach.
        """
        reach = _RANGE_KM / KM_PER_DEGREE
        for site in self.sites:
            wide = reach / math.cos(math.radians(min(abs(site.latitude) + reach, 85.0)))
            rows = axis_box(self.latitude - site.latitude, -reach, reach)
            columns = axis_box(self.longitude - site.longitude, -wide, wide)
            if rows.stop and columns.stop:
                # Flat Earth about the mean latitude, with an error of 1 %.
                latitude, longitude = self.latitude[rows, None], self.longitude[columns]
                middle = np.deg2rad((latitude + site.latitude) / 2).astype(np.float32)
                north = (latitude - site.latitude).astype(np.float32) * np.float32(KM_PER_DEGREE)
                east = (
                    (longitude - site.longitude).astype(np.float32)
                    * np.float32(KM_PER_DEGREE)
                    * np.cos(middle)
                )
                yield site, (rows, columns), np.minimum(np.hypot(north, east), _RANGE_KM + 1).astype(np.int32)


def _beam_tables(altitude_km: Float) -> tuple[npt.NDArray[np.int8], Float32]:
    """Return the observations in one analysis window, and their weights, by level and whole km of distance."""
    distance = np.arange(_RANGE_KM + 2)
    middles = (altitude_km[1:] + altitude_km[:-1]) / 2
    edges = np.concatenate([[-1.0], middles, [2 * altitude_km[-1] - altitude_km[-2]]])
    looks = np.zeros((altitude_km.size, distance.size), np.int8)
    radius = 4.0 / 3.0 * geometry.EARTH_RADIUS_KM
    for elevation in _ELEVATIONS:
        rise = 2 * radius * np.sin(np.deg2rad(elevation + np.array([[-0.5], [0.5]]) * _BEAM_DEGREES))
        low, high = np.sqrt(distance**2 + radius**2 + distance * rise) - radius + 0.3
        seen = (high > edges[:-1, None]) & (low < edges[1:, None])
        looks += seen.astype(np.int8) * (2 if elevation < 2.0 else 1)  # low tilts are repeated
    looks[:, distance > _RANGE_KM] = 0
    return looks, (looks * 0.75 * np.exp(-((distance / 150.0) ** 2))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RadarVolume:
    """Echo bins of one analysis in C order, and the counts of every bin.

    ``index`` is flat into (altitude, latitude, longitude); ``fields`` and ``weights``, by the names of GridRad,
    are aligned with it; ``observations`` and ``echoes`` are on the whole grid.
    """

    index: npt.NDArray[np.int32]
    fields: dict[str, Float32]
    weights: dict[str, Float32]
    observations: npt.NDArray[np.int8]
    echoes: npt.NDArray[np.int8]


def render_radar(
    weather: Weather, time: np.datetime64, network: RadarNetwork, *, moments: bool = True
) -> RadarVolume:
    """Render the weather as the radars of a network see it at a time, UTC.

    ``moments`` adds spectrum width, shear, divergence and, from 2011 on, the dual-polarization fields to reflectivity.
    """
    maps = _column_maps(weather, seconds_of(time), network)
    rows, columns = np.nonzero(np.max(maps[:4], axis=0) > 0.0)
    echo, bloom = _draw_levels(maps[:, rows, columns], network.altitude_km)
    rng = np.random.default_rng([weather.seed, 21, int(seconds_of(time)) % 2**32])
    echo += 0.8 * rng.standard_normal(echo.shape, dtype=np.float32)
    looks = network.observations[:, rows, columns]
    level, column = np.nonzero((echo > _WEAKEST_DBZ) & (looks > 0))
    shape = network.observations.shape
    index = ((level * shape[1] + rows[column]) * shape[2] + columns[column]).astype(np.int32)
    dbz, seen = echo[level, column], looks[level, column]
    weight = network.weights.ravel()[index] * rng.uniform(0.7, 1.0, dbz.size).astype(np.float32)
    often = 0.35 + (dbz + 5.0) / 30.0 + 0.15 * rng.standard_normal(dbz.size, dtype=np.float32)
    echoes = np.zeros(shape, np.int8)
    echoes.ravel()[index] = np.maximum(np.rint(np.clip(often, 0.05, 1.0) * seen), 1).astype(np.int8)
    fields, weights = {"Reflectivity": dbz}, {"Reflectivity": weight}
    if moments:
        fields |= _draw_moments(rng, dbz, network.altitude_km[level], bloom[level, column])
        weights |= {name: 0.9 * weight for name in fields} | dict.fromkeys(
            ("Reflectivity", "SpectrumWidth"), weight
        )
        lost = rng.random(dbz.size) < _LOST_VELOCITIES  # the value is missing, the weight is zero
        for name in ("SpectrumWidth", "AzShear", "Divergence"):
            fields[name][lost], weights[name] = np.nan, np.where(lost, np.float32(0.0), weights[name])
        for name in _DUAL_FIELDS if time < _DUAL_POLARIZATION else ():
            del fields[name], weights[name]
    return RadarVolume(index, fields, weights, network.observations, echoes)


def _column_maps(weather: Weather, seconds: float, network: RadarNetwork) -> Float32:
    """Return the contents of every column: dBZ of convection, stratiform rain, anvil and ground bloom; echo
    top in km.
    """
    axes = (network.latitude, network.longitude)
    tiles = (weather.textures.rough, weather.textures.cumulus)
    maps = np.zeros((5, axes[0].size, axes[1].size), np.float32)
    maps[1], maps[3] = _draw_rain_bands(weather, seconds, axes), _draw_bloom(weather, seconds, network)
    for storm in weather.storms(seconds, axes):
        parts = storm.cores(seconds), storm.stratiform(seconds), storm.anvil(seconds)
        ends = np.array([blobs.bounds(0.05) for blobs in parts])
        x, y = storm.offsets(seconds, axes)
        rows = axis_box(y, ends[:, 2].min(), ends[:, 3].max())
        columns = axis_box(x, ends[:, 0].min(), ends[:, 1].max())
        x, y = x[columns], y[rows]
        if x.size and y.size:
            rough, cells = (storm.cut_texture(tile, x, y, axes[0]) for tile in tiles)
            columns_of_storm = storm_columns(storm, seconds, (y, x), rough, cells)
            for level, part in zip((0, 1, 2, 4), columns_of_storm, strict=True):
                np.maximum(maps[level, rows, columns], part, out=maps[level, rows, columns])
    return maps


def _draw_rain_bands(weather: Weather, seconds: float, axes: tuple[Float, Float]) -> Float32:
    """Return the widespread rain where the air is moistest, dBZ."""
    rough, cells = (
        lay_tile(tile, axes, weather.drifted(seconds))(slice(None))
        for tile in (weather.textures.rough, weather.textures.cumulus)
    )
    wet = np.clip(weather.moisture.on_grid(seconds, axes)(slice(None)) + 0.35 * rough - 1.35, 0.0, 1.2)
    return np.where(wet > 0.0, 5.0 + 19.0 * np.sqrt(wet) + 3.0 * cells, 0.0).astype(np.float32)


def _draw_bloom(weather: Weather, seconds: float, network: RadarNetwork) -> Float32:
    """Return the insects, birds and ground clutter around every radar, dBZ; strongest at night."""
    out = np.zeros((network.latitude.size, network.longitude.size), np.float32)
    for site, window, distance in network.footprints():
        local = (seconds / 3600.0 + site.longitude / 15.0) % 24.0
        strength = 9.0 + 8.0 * math.cos((local - 0.5) * math.pi / 12.0)
        axes = (network.latitude[window[0]], network.longitude[window[1]])
        bloom = strength - 0.16 * distance + 4.0 * lay_tile(weather.textures.cumulus, axes)(slice(None))
        bloom[distance > 110] = 0.0
        np.maximum(out[window], bloom, out=out[window])
    return out


def storm_columns(
    storm: Storm, seconds: float, axes: tuple[Float, Float], rough: Float32, cells: Float32
) -> tuple[Float32, Float32, Float32, Float32]:
    """Compute what one storm adds to the columns of a grid.

    Parameters
    ----------
    storm, seconds
        The storm, and the time in seconds since 1970.
    axes
        1-D, km north and east of the center of the storm.
    rough, cells
        Noise of unit deviation on the grid: of rain and cloud, and of the cores.

    Returns
    -------
    tuple of arrays of shape (y, x)
        dBZ of convection, stratiform rain and anvil, 0 without these, and the echo top in km.
    """
    y, x = axes
    cores, rain, cloud = (
        blobs.field(x, y) for blobs in (storm.cores(seconds), storm.stratiform(seconds), storm.anvil(seconds))
    )
    cores *= np.exp(0.25 * cells)
    # 54 dBZ for one core of strength 1, 70 dBZ at most.
    convective = np.where(cores > 0.06, 70.0 * (1.0 - np.exp(-1.5 * cores)), 0.0)
    rain *= np.exp(0.3 * rough)
    stratiform = np.where(rain > 0.15, 40.0 * (1.0 - np.exp(-1.1 * rain)) + 2.0 * cells, 0.0)
    depth = anvil_depth(cloud) * np.exp(0.3 * rough)
    aloft = np.where(depth > 0.5, 4.0 + 5.0 * np.minimum(depth, 3.0), 0.0)
    top = (7.5 + 9.5 * np.minimum(cores, 1.2) ** 0.6).astype(np.float32, copy=False)
    return convective, stratiform, aloft, top


def _draw_levels(maps: Float32, altitude_km: Float) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Return the reflectivity of columns, shape (altitude, n), far below any echo in air without rain;
    and which of them are bloom.
    """
    convective, stratiform, anvil, bloom, top = maps
    echo = np.empty((altitude_km.size, top.size), np.float32)
    is_bloom = np.empty(echo.shape, bool)
    for level, z in enumerate(altitude_km):
        # Constant below the melting level, then decreasing to the echo top.
        above = max(z - 4.5, 0.0) / np.maximum(top - 4.5, 0.5)
        storm = np.where((convective > 0.0) & (above <= 1.0), convective - (convective - 3.0) * above, -99.0)
        bright = 5.0 * math.exp(-(((z - 4.0) / 0.45) ** 2))
        rain = np.where((stratiform > 0.0) & (z < 10.0), stratiform + bright - 4.2 * max(z - 4.2, 0.0), -99.0)
        sheet = np.where(anvil > 0.0, anvil - 1.6 * (z - 9.5) ** 2, -99.0)
        ground = np.where(bloom > 0.0, bloom - 6.0 * z, -99.0) if z <= 3.0 else np.float32(-99.0)
        weather_echo = np.maximum(np.maximum(storm, rain), sheet)
        echo[level] = np.maximum(weather_echo, ground)
        is_bloom[level] = ground > weather_echo
    return echo, is_bloom


def _draw_moments(
    rng: np.random.Generator, dbz: Float32, altitude_km: Float, bloom: npt.NDArray[np.bool_]
) -> dict[str, Float32]:
    """Return the fields that go with a reflectivity: rain below 4.5 km, ice above, bloom with low
    correlation.
    """

    def noise(scale: float) -> Float32:
        return np.float32(scale) * rng.standard_normal(dbz.size, dtype=np.float32)

    liquid = altitude_km < 4.5
    strong = np.clip(dbz, 0.0, 60.0)
    zdr = np.where(liquid, 0.05 * np.clip(strong - 10.0, 0.0, 45.0), 0.3) + noise(0.25)
    kdp = np.where(liquid, 10.0 ** (0.045 * (strong - 45.0)), 0.05) + noise(0.08)
    rho = np.where(liquid, 0.985, 0.975) - np.abs(noise(0.012))
    values = {
        "SpectrumWidth": np.abs(1.2 + 0.05 * strong + noise(0.8)),
        "AzShear": noise(8e-4) * (1.0 + strong / 20.0),
        "Divergence": noise(8e-4) * (1.0 + strong / 20.0),
        "DifferentialReflectivity": np.where(bloom, 3.0 + noise(1.5), zdr),
        "DifferentialPhase": np.where(bloom, noise(0.5), kdp),
        "CorrelationCoefficient": np.where(bloom, np.clip(0.72 + noise(0.10), 0.2, 0.94), rho),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}
