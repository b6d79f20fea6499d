"""What a geostationary imager sees of the weather: infrared temperature, visible reflectance, overshooting tops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gridrad_cube import geometry
from gridrad_cube.synthetic.noise import Drifting, Float, Float32, Sampler, box
from gridrad_cube.synthetic.storms import KM_PER_DEGREE, Blobs, Storm, anvil_depth, opacity, top_temperature
from gridrad_cube.synthetic.weather import Weather, seconds_of, storm_texture

#: Longitude of GOES-16 (GOES-East), degrees.
SATELLITE_LONGITUDE = -75.2
#: Beyond this satellite zenith angle, degrees, the synthetic product has no data: the limb corner.
LIMB_ZENITH = 74.0
# Rows composed at once: few enough to stay in the processor's cache.
_BLOCK = 48


@dataclass(frozen=True, eq=False)
class SatelliteImage:
    """A rendered scene; NaN (0 in ``overshoots``) where the satellite has no data.

    ``infrared`` in K, ``visible`` reflectance (1) with NaN where the sun is down or None where it is down
    everywhere, ``overshoots`` the number of each overshooting top, counted within this scene from 1.
    """

    infrared: Float32
    visible: Float32 | None
    overshoots: npt.NDArray[np.uint16]


def render_satellite(
    weather: Weather, time: np.datetime64, latitude: Float, longitude: Float
) -> SatelliteImage:
    """Render the weather as an imager sees it on a regular latitude-longitude grid.

    Parameters
    ----------
    weather
        What to look at.
    time
        UTC.
    latitude, longitude
        Evenly spaced 1-D axes in degrees, longitude in [-180, 180); latitude either way up.
    """
    sun = _cosine_solar_zenith(time, latitude, longitude)
    canvas = _Canvas(weather, seconds_of(time), (latitude, longitude), sun)
    ends = [(float(axis.min()), float(axis.max())) for axis in (latitude, longitude)]
    for storm in weather.storms(time, *ends):
        canvas.draw(storm)
    infrared, overshoots = canvas.infrared, canvas.numbered()
    visible = _illuminate(canvas.albedo, sun)
    missing_from, missing_to = _limb(latitude, longitude)
    for row in np.flatnonzero((missing_from > 0) | (missing_to < longitude.size)):
        for image in (infrared, visible):
            if image is not None:
                image[row, : missing_from[row]] = image[row, missing_to[row] :] = np.nan
        overshoots[row, : missing_from[row]] = overshoots[row, missing_to[row] :] = 0
    return SatelliteImage(infrared, visible, overshoots)


def tropopause_temperature(time: np.datetime64, latitude: Float, longitude: Float) -> Float32:
    """Temperature of the tropopause, K: cold over the tropics, with a long wave that drifts east."""
    wave = np.cos(np.deg2rad(6.0 * (longitude - 15.0 * seconds_of(time) / 86400.0)))
    return (197.0 + 24.0 * np.sin(np.deg2rad(latitude[:, None])) ** 2 + 1.5 * wave).astype(np.float32)


def parallax_correction(
    infrared: npt.ArrayLike, latitude: Float, longitude: Float
) -> tuple[Float32, Float32]:
    """Degrees of latitude and longitude to add to where clouds seem to stand; NaN where ``infrared`` is.

    A cloud at height h seems h tan(zenith angle) further from the point below the satellite than it is. Its height
    is taken from its temperature, at 6.5 K a km below 290 K.
    """
    height = np.clip((290.0 - np.asarray(infrared, np.float64)) / 6.5, 0.0, 18.0)
    lat, lon = np.deg2rad(latitude)[:, None], np.deg2rad(longitude - SATELLITE_LONGITUDE)
    zenith = geometry.satellite_zenith_angle(latitude[:, None], longitude, SATELLITE_LONGITUDE)
    degrees = height * np.tan(np.deg2rad(zenith)) / KM_PER_DEGREE
    away = np.maximum(
        np.sqrt(1.0 - (np.cos(lat) * np.cos(lon)) ** 2), 1e-9
    )  # sine of the angle to the point below
    north, east = -np.sin(lat) * np.cos(lon) / away, -np.sin(lon) / away
    return (degrees * north).astype(np.float32), (degrees * east / np.cos(lat)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Sun:
    """Cosine of the solar zenith angle as ``base[row] + height[row] * hour[column]``."""

    base: Float32
    height: Float32
    hour: Float32
    west: float

    def rows(self, part: slice) -> Float32:
        return self.base[part, None] + self.height[part, None] * self.hour


def _cosine_solar_zenith(time: np.datetime64, latitude: Float, longitude: Float) -> _Sun:
    # cos z = sin(lat) sin(dec) + cos(lat) cos(dec) cos(hour angle): one angle at each pole and at the equator
    # gives the terms without any trigonometry a pixel.
    pole = math.cos(math.radians(float(geometry.solar_zenith_angle(time, 90.0, 0.0))))
    equator = np.cos(np.deg2rad(geometry.solar_zenith_angle(time, 0.0, longitude)))
    later = np.cos(np.deg2rad(geometry.solar_zenith_angle(time + np.timedelta64(10, "m"), 0.0, longitude)))
    lat = np.deg2rad(latitude)
    falling = float(np.mean(later - equator))
    return _Sun(
        (np.sin(lat) * pole).astype(np.float32), np.cos(lat).astype(np.float32), equator.astype(np.float32),
        1.0 if falling < 0 else -1.0,
    )  # fmt: skip


def _illuminate(albedo: Float32, sun: _Sun) -> Float32 | None:
    lit = False
    for start in range(0, albedo.shape[0], _BLOCK):
        part = slice(start, start + _BLOCK)
        cosine = sun.rows(part)
        dark = cosine <= 0.0
        lit = lit or not dark.all()
        albedo[part] *= cosine
        np.maximum(albedo[part], 0.0, out=albedo[part])
        albedo[part][dark] = np.nan
    return albedo if lit else None


def _background(
    weather: Weather, seconds: float, latitude: Float, longitude: Float
) -> tuple[Float32, Float32]:
    axes = (latitude, longitude)
    hours = (seconds / 3600.0) % (24 * 365)
    wind = (
        weather.wind[1] * 3.6 / KM_PER_DEGREE * hours,
        weather.wind[0] * 3.6 / (0.8 * KM_PER_DEGREE) * hours,
    )
    textures = weather.textures
    layers = _Layers(
        land=weather.land.sampler(0.0, *axes),
        moisture=weather.moisture.sampler(seconds, *axes),
        cirrus=weather.cirrus.sampler(seconds, *axes),
        ground=Drifting(textures.rough, axes, (0.0, 0.0)),
        cumulus=Drifting(textures.cumulus, axes, (0.6 * wind[0], 0.6 * wind[1])),
        streaks=Drifting(textures.streaks, axes, (1.2 * wind[0], 1.2 * wind[1])),
        sensor=Drifting(textures.sensor, axes, (0.0, (seconds % 1021) / 7.0)),
        diurnal=np.cos((hours % 24.0 + longitude / 15.0 - 14.0) * math.pi / 12.0).astype(np.float32),
        sea=(301.0 - 0.016 * (latitude - 12.0) ** 2).astype(np.float32)[:, None],
    )
    infrared = np.empty((latitude.size, longitude.size), np.float32)
    albedo = np.empty_like(infrared)
    for start in range(0, latitude.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        infrared[part], albedo[part] = layers.compose(part)
    return infrared, albedo


@dataclass(frozen=True, eq=False)
class _Layers:
    """Ground, cumulus deck and cirrus, from below to above."""

    land: Sampler
    moisture: Sampler
    cirrus: Sampler
    ground: Drifting
    cumulus: Drifting
    streaks: Drifting
    sensor: Drifting
    diurnal: Float32
    sea: Float32

    def compose(self, part: slice) -> tuple[Float32, Float32]:
        """Infrared temperature in K and albedo of some rows."""
        rough = self.ground.rows(part)
        height = self.land.rows(part) + 0.10 * rough
        land = np.clip((height + 0.4) * 30.0, 0.0, 1.0)
        inland = np.clip(height + 0.45, 0.0, 1.5)
        temperature = self.sea[part] + land * (
            self.diurnal * (3.0 + 6.5 * inland) + 1.5 - 5.0 * inland * inland + 0.4 * rough
        )
        albedo = 0.055 + land * (0.075 + 0.014 * rough + 0.05 * inland)

        cells = self.cumulus.rows(part)
        moist = self.moisture.rows(part) + 0.28 * rough
        # Heated land breaks cloud up into cumulus; moister air closes the deck.
        deck = np.clip(0.40 * cells + 1.5 * moist - 0.80 + 0.15 * self.diurnal * land, 0.0, 1.7)
        cover = deck * deck / (0.20 + deck * deck)
        # Deeper moist layers carry higher tops: fair-weather cumulus to altostratus.
        tops = 286.0 - 12.0 * np.clip(moist, 0.0, 2.2) - 5.0 * deck
        temperature += cover * np.minimum(tops - temperature, 0.0)
        albedo += cover * (0.40 + 0.12 * np.minimum(deck, 1.2) + 0.06 * cells - albedo)

        ice = np.clip(
            0.26 * self.streaks.rows(part) + 1.3 * self.cirrus.rows(part) + 0.12 * rough - 0.75, 0.0, 2.5
        )
        cover = ice * ice / (0.7 + ice * ice)
        temperature += cover * np.minimum(244.0 - 9.0 * ice - temperature, 0.0)
        albedo += 0.5 * cover * np.maximum(0.62 - albedo, 0.0)
        temperature += 0.06 * self.sensor.rows(part)
        return np.asarray(temperature, np.float32), np.asarray(albedo, np.float32)


def _field(blobs: Blobs, x: Float, y: Float) -> Float32:
    return blobs.field(x, y) if blobs.weight.size else np.zeros((y.size, x.size), np.float32)


class _Canvas:
    """The scene as it is painted: ground and clouds first, then one storm over the other."""

    def __init__(self, weather: Weather, seconds: float, axes: tuple[Float, Float], sun: _Sun) -> None:
        self.weather, self.seconds, self.axes, self.sun = weather, seconds, axes, sun
        self.infrared, self.albedo = _background(weather, seconds, *axes)
        self.overshoots = np.zeros(self.infrared.shape, np.uint16)
        self.count = 0
        self.step = KM_PER_DEGREE * abs(axes[0][-1] - axes[0][0]) / max(axes[0].size - 1, 1)

    def draw(self, storm: Storm) -> None:
        """Paint a storm: what is colder than what was there covers it."""
        anvil = storm.anvil(self.seconds)
        if not anvil.weight.size:
            return
        x, y = storm.offsets(self.seconds, *self.axes)
        west, east, south, north = anvil.bounds(0.05)
        rows, columns = box(y, south, north), box(x, west, east)
        if rows.stop == rows.start or columns.stop == columns.start:
            return
        x, y = x[columns], y[rows]
        spacing = (self.step, self.step * storm.stretch)
        tiles = self.weather.textures
        rough = storm_texture(tiles.rough, storm, x, y, spacing)
        fibres = storm_texture(tiles.streaks, storm, x, y, spacing)
        depth = anvil_depth(anvil.field(x, y))
        depth *= np.exp(0.28 * rough + 0.38 * fibres)
        cover = opacity(depth)
        cold = _field(storm.cold_area(self.seconds), x, y)
        over = _field(storm.overshoots(self.seconds), x, y)
        aloft = top_temperature(storm.top_at(self.seconds), depth, cold, over)
        aloft += (0.7 * rough + 0.5 * fibres) * np.minimum(depth, 1.0)
        infrared, albedo = self.infrared[rows, columns], self.albedo[rows, columns]
        self._number(storm, self.overshoots[rows, columns], (x, y), (cover > 0.7) & (aloft < infrared))
        infrared += cover * np.minimum(aloft - infrared, 0.0)

        # Lumps over the updrafts catch the low sun on one side and lie in shade on the other.
        lumps = 0.10 * over + (0.15 + 0.7 * cold) * storm_texture(tiles.cumulus, storm, x, y, spacing)
        shade = np.zeros_like(lumps)
        shade[:, 1:-1] = self.sun.west * (lumps[:, 2:] - lumps[:, :-2])
        white = 0.70 + 0.10 * np.minimum(depth / 3.0, 1.0) + 0.06 * np.minimum(cold, 1.0)
        white += 0.012 * fibres + 0.10 * np.clip(shade, -1.5, 1.5)
        albedo += cover * np.minimum(0.30 + 0.35 * depth, 1.0) * np.maximum(white - albedo, 0.0)

    def _number(
        self,
        storm: Storm,
        numbers: npt.NDArray[np.uint16],
        axes: tuple[Float, Float],
        visible: npt.NDArray[np.bool_],
    ) -> None:
        x, y = axes
        numbers[visible] = 0  # tops of storms painted before are hidden now
        tops = storm.overshoots(self.seconds)
        for k in np.flatnonzero(tops.weight > 4.0):
            near = (x - tops.x[k]) ** 2 + (y[:, None] - tops.y[k]) ** 2 < (0.9 * tops.radius[k]) ** 2
            near &= visible
            if near.any():
                self.count += 1
                numbers[near] = self.count

    def numbered(self) -> npt.NDArray[np.uint16]:
        """Overshooting tops that can be seen, numbered from 1 without gaps."""
        seen = np.zeros(self.count + 1, bool)
        seen[self.overshoots.ravel()] = True
        seen[0] = False
        names = np.where(seen, np.cumsum(seen), 0).astype(np.uint16)
        return names[self.overshoots]


def _limb(latitude: Float, longitude: Float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and end column of every row that the satellite sees well enough."""
    angles = np.linspace(0.0, 81.0, 8101)
    zenith = geometry.satellite_zenith_angle(angles, 0.0, 0.0)
    limit = math.cos(math.radians(float(np.interp(LIMB_ZENITH, zenith, angles))))
    need = limit / np.cos(np.deg2rad(latitude))
    width = np.where(need < 1.0, np.rad2deg(np.arccos(np.clip(need, -1.0, 1.0))), -1.0)
    first = np.searchsorted(longitude, SATELLITE_LONGITUDE - width, side="left")
    end = np.searchsorted(longitude, SATELLITE_LONGITUDE + width, side="right")
    return first, np.maximum(first, end)
