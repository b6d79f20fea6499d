"""What a network of weather radars sees of the weather: coverage, and volumes of merged echo."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gridrad_cube import geometry
from gridrad_cube.synthetic.noise import Drifting, Float, Float32, box
from gridrad_cube.synthetic.storms import KM_PER_DEGREE, Storm, anvil_depth, convective_dbz
from gridrad_cube.synthetic.weather import Weather, seconds_of, storm_texture

#: A radar's reach, km (GridRad V4.2 uses gates to 300 km).
RANGE_KM = 300.0
#: Elevations of a volume scan, degrees (a WSR-88D precipitation pattern).
ELEVATIONS = (0.5, 0.9, 1.3, 1.8, 2.4, 3.1, 4.0, 5.1, 6.4, 8.0, 10.0, 12.5, 15.6, 19.5)
#: Width of the beam, degrees.
BEAM_DEGREES = 0.95
#: Spacing of radar sites, degrees; each lies off its node by up to a third of it.
SITE_SPACING = 2.4
#: Echoes below this are not listed, dBZ.
WEAKEST_DBZ = -5.0


@dataclass(frozen=True, eq=False)
class Site:
    """A radar: four letters and its place in degrees."""

    name: str
    latitude: float
    longitude: float


class RadarNetwork:
    """Sites of a seed around a grid, and how often they look at each of its bins.

    Parameters
    ----------
    weather
        Its seed places the sites; they stand on land.
    latitude, longitude
        1-D axes in degrees, ascending.
    altitude_km
        Levels, km above mean sea level, ascending.
    """

    def __init__(self, weather: Weather, latitude: Float, longitude: Float, altitude_km: Float) -> None:
        self.latitude, self.longitude, self.altitude_km = latitude, longitude, altitude_km
        self.sites = place_sites(weather, latitude, longitude)
        self._looks, self._weights = _beam_tables(altitude_km)
        #: Number of sweeps that looked at each bin, int8, shape (altitude, latitude, longitude).
        self.observations = np.zeros((altitude_km.size, latitude.size, longitude.size), np.int8)
        for site in self.sites:
            rows, columns = self.around(site)
            if rows.stop > rows.start and columns.stop > columns.start:
                distance = self.distance(site, latitude[rows, None], longitude[None, columns])
                for level, looks in enumerate(self._looks):
                    if looks.any():
                        self.observations[level, rows, columns] += looks.take(distance)

    def around(self, site: Site) -> tuple[slice, slice]:
        """Rows and columns of the grid within reach of a site."""
        reach = RANGE_KM / KM_PER_DEGREE
        wide = reach / math.cos(math.radians(min(abs(site.latitude) + reach, 85.0)))
        return (
            box(self.latitude - site.latitude, -reach, reach),
            box(self.longitude - site.longitude, -wide, wide),
        )

    def distance(self, site: Site, latitude: Float, longitude: Float) -> npt.NDArray[np.int32]:
        """Whole km from a site, at most one beyond its reach (flat Earth about the mean latitude: 1 % off)."""
        north = (latitude - site.latitude).astype(np.float32) * np.float32(KM_PER_DEGREE)
        middle = np.deg2rad((latitude + site.latitude) / 2).astype(np.float32)
        east = (longitude - site.longitude).astype(np.float32) * np.float32(KM_PER_DEGREE) * np.cos(middle)
        distance: npt.NDArray[np.int32] = np.minimum(np.hypot(north, east), RANGE_KM + 1).astype(np.int32)
        return distance

    def weights(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Float32:
        """Summed weights exp(-r^2 / L^2), L = 150 km, of the looks at some columns, shape (altitude, n)."""
        total = np.zeros((self.altitude_km.size, rows.size), np.float32)
        for site in self.sites:
            around = self.around(site)
            near = np.flatnonzero(
                (rows >= around[0].start) & (rows < around[0].stop)
                & (columns >= around[1].start) & (columns < around[1].stop)
            )  # fmt: skip
            if near.size:
                distance = self.distance(site, self.latitude[rows[near]], self.longitude[columns[near]])
                total[:, near] += self._weights[:, distance]
        return total


def place_sites(weather: Weather, latitude: Float, longitude: Float) -> list[Site]:
    """List the radars that reach into a region, of which any axes are given, in degrees."""
    reach = RANGE_KM / KM_PER_DEGREE + SITE_SPACING

    def nodes(axis: Float) -> range:
        return range(
            math.floor((axis.min() - reach) / SITE_SPACING), math.ceil((axis.max() + reach) / SITE_SPACING)
        )

    out = []
    for i in nodes(latitude):
        for j in nodes(longitude):
            rng = np.random.default_rng([weather.seed, 20, i % 1024, j % 1024])
            y, x = SITE_SPACING * (np.array([i, j]) + 0.5 + rng.uniform(-0.33, 0.33, 2))
            # No radar on the sea, nor at some nodes: the gaps of coverage.
            if weather.land.points(0.0, y, x)[0] > -0.3 and rng.random() < 0.92:
                out.append(Site(f"K{_letters(i % 26 * 676 + j % 676)}", float(y), float(x)))
    return out


def _letters(number: int) -> str:
    return "".join(chr(65 + number // 26**k % 26) for k in (2, 1, 0))


def _beam_tables(altitude_km: Float) -> tuple[npt.NDArray[np.int8], Float32]:
    """Looks in one analysis window, and their weights, by level and whole km of distance."""
    distance = np.arange(RANGE_KM + 2)
    edges = np.concatenate(
        [[-1.0], (altitude_km[1:] + altitude_km[:-1]) / 2, [2 * altitude_km[-1] - altitude_km[-2]]]
    )
    looks = np.zeros((altitude_km.size, distance.size), np.int8)
    radius = 4.0 / 3.0 * geometry.EARTH_RADIUS_KM
    for elevation in ELEVATIONS:
        heights = [
            np.sqrt(distance**2 + radius**2 + 2 * distance * radius * math.sin(math.radians(angle)))
            - radius
            + 0.3
            for angle in (elevation - BEAM_DEGREES / 2, elevation + BEAM_DEGREES / 2)
        ]
        seen = (heights[1] > edges[:-1, None]) & (heights[0] < edges[1:, None])
        looks += seen.astype(np.int8) * (2 if elevation < 2.0 else 1)  # low tilts are repeated
    looks[:, distance > RANGE_KM] = 0
    return looks, (looks * 0.75 * np.exp(-((distance / 150.0) ** 2))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RadarVolume:
    """Echo bins of one analysis, in C order, and the counts of every bin.

    ``index`` flat into (altitude, latitude, longitude); ``fields`` and ``weights`` by GridRad's names, float32,
    aligned with it; ``observations`` and ``echoes`` int8 on the whole grid.
    """

    index: npt.NDArray[np.int32]
    fields: dict[str, Float32]
    weights: dict[str, Float32]
    observations: npt.NDArray[np.int8]
    echoes: npt.NDArray[np.int8]


def render_radar(
    weather: Weather, time: np.datetime64, network: RadarNetwork, *, moments: bool = True
) -> RadarVolume:
    """Render the weather as the radars of a network see it.

    Parameters
    ----------
    weather, time
        What to look at and when, UTC.
    network
        Where the radars stand, with the grid.
    moments
        Whether to add spectrum width, shear, divergence and the dual-polarisation fields to reflectivity.
    """
    maps = _column_maps(weather, time, network)
    rows, columns = np.nonzero(
        np.max([maps.convective, maps.stratiform, maps.anvil, maps.bloom], axis=0) > 0.0
    )
    echo, bloom = _vertical(maps, rows, columns, network.altitude_km)
    rng = np.random.default_rng([weather.seed, 21, int(seconds_of(time)) % 2**32])
    echo += 0.8 * rng.standard_normal(echo.shape, dtype=np.float32)
    looks = network.observations[:, rows, columns]
    level, column = np.nonzero((echo > WEAKEST_DBZ) & (looks > 0))
    shape = network.observations.shape
    index = ((level * shape[1] + rows[column]) * shape[2] + columns[column]).astype(np.int32)
    dbz, seen = echo[level, column], looks[level, column]
    weight = network.weights(rows, columns)[level, column] * rng.uniform(0.7, 1.0, dbz.size).astype(
        np.float32
    )
    often = np.clip(
        0.35 + (dbz + 5.0) / 30.0 + 0.15 * rng.standard_normal(dbz.size, dtype=np.float32), 0.05, 1.0
    )
    echoes = np.zeros(shape, np.int8)
    echoes.ravel()[index] = np.maximum(np.rint(often * seen), 1).astype(np.int8)
    fields = {"Reflectivity": dbz}
    if moments:
        fields |= _moments(rng, dbz, network.altitude_km[level], bloom[level, column])
    weights = {name: weight if name in _FULL_WEIGHT else 0.9 * weight for name in fields}
    for name in ("AzShear", "Divergence"):
        if name in fields:
            lost = rng.random(dbz.size) < 0.02  # no velocity there: value missing, weight zero
            fields[name][lost], weights[name] = np.nan, np.where(lost, np.float32(0.0), weights[name])
    return RadarVolume(index, fields, weights, network.observations, echoes)


_FULL_WEIGHT = ("Reflectivity", "SpectrumWidth")


@dataclass(frozen=True, eq=False)
class _Maps:
    """What a column holds: dBZ of convection, stratiform rain, anvil and ground bloom; echo top in km."""

    convective: Float32
    stratiform: Float32
    anvil: Float32
    bloom: Float32
    top: Float32


def _column_maps(weather: Weather, time: np.datetime64, network: RadarNetwork) -> _Maps:
    axes, seconds = (network.latitude, network.longitude), seconds_of(time)
    empty = np.zeros((axes[0].size, axes[1].size), np.float32)
    maps = _Maps(
        convective=empty, stratiform=_rain_bands(weather, seconds, axes), anvil=empty.copy(),
        bloom=_bloom(weather, seconds, network), top=empty.copy(),
    )  # fmt: skip
    for storm in weather.storms(time, *((float(a.min()), float(a.max())) for a in axes)):
        _add_storm(weather, storm, seconds, axes, maps)
    return maps


def _rain_bands(weather: Weather, seconds: float, axes: tuple[Float, Float]) -> Float32:
    """Widespread rain where the air is moistest, dBZ."""
    hours = seconds / 3600.0 % (24 * 365)
    drift = (
        weather.wind[1] * 3.6 / KM_PER_DEGREE * hours,
        weather.wind[0] * 3.6 / (0.8 * KM_PER_DEGREE) * hours,
    )
    everything = slice(0, axes[0].size)
    moist = weather.moisture.sampler(seconds, *axes).rows(everything)
    rough = Drifting(weather.textures.rough, axes, drift).rows(everything)
    cells = Drifting(weather.textures.cumulus, axes, drift).rows(everything)
    wet = np.clip(moist + 0.35 * rough - 1.35, 0.0, 1.2)
    return np.where(wet > 0.0, 5.0 + 19.0 * np.sqrt(wet) + 3.0 * cells, 0.0).astype(np.float32)


def _bloom(weather: Weather, seconds: float, network: RadarNetwork) -> Float32:
    """Insects, birds and ground clutter around every radar, dBZ; strongest at night."""
    out = np.zeros((network.latitude.size, network.longitude.size), np.float32)
    for site in network.sites:
        rows, columns = network.around(site)
        if rows.stop == rows.start or columns.stop == columns.start:
            continue
        local = (seconds / 3600.0 + site.longitude / 15.0) % 24.0
        strength = 9.0 + 8.0 * math.cos((local - 0.5) * math.pi / 12.0)
        latitude, longitude = network.latitude[rows], network.longitude[columns]
        distance = network.distance(site, latitude[:, None], longitude[None])
        still = Drifting(weather.textures.cumulus, (latitude, longitude), (0.0, 0.0)).rows(
            slice(0, latitude.size)
        )
        patch = strength - 0.16 * distance + 4.0 * still
        patch[distance > 110] = 0.0
        np.maximum(out[rows, columns], patch, out=out[rows, columns])
    return out


def _add_storm(
    weather: Weather, storm: Storm, seconds: float, axes: tuple[Float, Float], maps: _Maps
) -> None:
    parts = [storm.cores(seconds), storm.stratiform(seconds), storm.anvil(seconds)]
    parts = [blobs for blobs in parts if blobs.weight.size]
    if not parts:
        return
    x, y = storm.offsets(seconds, *axes)
    ends = np.array([blobs.bounds(0.05) for blobs in parts])
    rows = box(y, ends[:, 2].min(), ends[:, 3].max())
    columns = box(x, ends[:, 0].min(), ends[:, 1].max())
    if rows.stop == rows.start or columns.stop == columns.start:
        return
    x, y = x[columns], y[rows]
    step = KM_PER_DEGREE * float(axes[0][-1] - axes[0][0]) / max(axes[0].size - 1, 1)
    spacing = (step, step * storm.stretch)
    rough = storm_texture(weather.textures.rough, storm, x, y, spacing)
    cells = storm_texture(weather.textures.cumulus, storm, x, y, spacing)
    convective, stratiform, aloft, top = storm_columns(storm, seconds, (y, x), rough, cells)
    for image, part in (
        (maps.convective, convective), (maps.stratiform, stratiform), (maps.anvil, aloft), (maps.top, top),
    ):  # fmt: skip
        np.maximum(image[rows, columns], part, out=image[rows, columns])


def storm_columns(
    storm: Storm, seconds: float, axes: tuple[Float, Float], rough: Float32, cells: Float32
) -> tuple[Float32, Float32, Float32, Float32]:
    """What one storm puts into the columns of a grid, each of shape (y, x).

    Parameters
    ----------
    seconds
        When, since 1970.
    axes
        1-D, km north and east of the storm's centre.
    rough, cells
        Noise of unit deviation on the grid: of its rain and cloud, and of its cores.

    Returns
    -------
    dBZ of convection, stratiform rain and anvil, 0 where there is none, and the echo top in km.
    """
    y, x = axes
    cores, rain, cloud = (
        blobs.field(x, y) if blobs.weight.size else np.zeros(rough.shape, np.float32)
        for blobs in (storm.cores(seconds), storm.stratiform(seconds), storm.anvil(seconds))
    )
    cores *= np.exp(0.25 * cells)
    convective = np.where(cores > 0.06, convective_dbz(cores), 0.0)
    rain *= np.exp(0.3 * rough)
    stratiform = np.where(rain > 0.15, 40.0 * (1.0 - np.exp(-1.1 * rain)) + 2.0 * cells, 0.0)
    depth = anvil_depth(cloud) * np.exp(0.3 * rough)
    aloft = np.where(depth > 0.5, 4.0 + 5.0 * np.minimum(depth, 3.0), 0.0)
    top = (7.5 + 9.5 * np.minimum(cores, 1.2) ** 0.6).astype(np.float32, copy=False)
    return convective, stratiform, aloft, top


def _vertical(
    maps: _Maps, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], altitude_km: Float
) -> tuple[Float32, npt.NDArray[np.bool_]]:
    """Reflectivity of columns, shape (altitude, n), far below any echo where there is none; and what is bloom."""
    convective, stratiform, anvil, bloom, top = (
        image[rows, columns] for image in (maps.convective, maps.stratiform, maps.anvil, maps.bloom, maps.top)
    )
    echo = np.empty((altitude_km.size, rows.size), np.float32)
    is_bloom = np.empty(echo.shape, bool)
    for level, z in enumerate(altitude_km):
        # Constant below the melting level, then falling to nothing at the echo top.
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


def _moments(
    rng: np.random.Generator, dbz: Float32, altitude_km: Float, bloom: npt.NDArray[np.bool_]
) -> dict[str, Float32]:
    """Fields that go with a reflectivity: rain below 4.5 km, ice above, bloom with its low correlation."""

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
