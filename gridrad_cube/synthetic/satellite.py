"""The weather as a geostationary imager sees it: infrared temperature, visible reflectance, overshooting tops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gridrad_cube import geometry
from gridrad_cube.synthetic.noise import Float, Float32, axis_box, lay_tile
from gridrad_cube.synthetic.storms import Storm, Weather, anvil_depth, seconds_of

#: Longitude of GOES-16 (GOES-East), degrees.
SATELLITE_LONGITUDE = -75.2
#: Satellite zenith angle, degrees, beyond which the synthetic product has no data.
LIMB_ZENITH = 74.0
# No cloud top is colder, K.
_COLDEST = 187.0
# Rows that are composed together: few enough to stay in the cache of the processor.
_BLOCK = 48


class SatelliteImage(NamedTuple):
    """A rendered scene; NaN (0 in ``overshoots``) where the satellite has no data.

    ``infrared`` is in K; ``visible`` is reflectance, NaN where the sun is down, or None where it is down everywhere;
    ``overshoots`` numbers the overshooting tops of this scene from 1.
    """

    infrared: Float32
    visible: Float32 | None
    overshoots: npt.NDArray[np.uint16]


def render_satellite(
    weather: Weather, time: np.datetime64, latitude: Float, longitude: Float
) -> SatelliteImage:
    """Render the weather on a regular latitude-longitude grid.

    Parameters
    ----------
    weather
        The weather to render.
    time
        UTC.
    latitude, longitude
        Evenly spaced 1-D axes in degrees, longitude in [-180, 180); latitude ascending or descending.
    """
    cosine, west = _light(time, latitude, longitude)
    canvas = _Canvas(weather, seconds_of(time), (latitude, longitude), west)
    for storm in weather.storms(canvas.seconds, canvas.axes):
        canvas.draw(storm)
    day = cosine > 0.0
    visible = (
        np.where(day, np.maximum(canvas.albedo * cosine, 0.0), np.float32(np.nan)) if day.any() else None
    )
    image = SatelliteImage(canvas.infrared, visible, canvas.numbered_tops())
    beyond = _is_beyond_limb(latitude, longitude)
    for values, missing in zip(image, (np.nan, np.nan, 0), strict=True):
        if values is not None:
            values[beyond] = missing
    return image


def _light(time: np.datetime64, latitude: Float, longitude: Float) -> tuple[Float32, float]:
    """Return the cosine of the solar zenith angle on a grid; and 1 in the afternoon, -1 in the morning."""
    # cos z = sin(lat) sin(dec) + cos(lat) cos(dec) cos(hour angle): the angle at one pole and along the equator
    # gives both terms.
    pole = math.cos(math.radians(float(geometry.solar_zenith_angle(time, 90.0, 0.0))))
    equator, later = (
        np.cos(np.deg2rad(geometry.solar_zenith_angle(time + np.timedelta64(m, "m"), 0.0, longitude)))
        for m in (0, 10)
    )
    lat = np.deg2rad(latitude)[:, None]
    cosine = (np.sin(lat) * pole).astype(np.float32) + np.cos(lat).astype(np.float32) * equator.astype(
        np.float32
    )
    return cosine, 1.0 if np.mean(later - equator) < 0 else -1.0


def _draw_background(weather: Weather, seconds: float, axes: tuple[Float, Float]) -> tuple[Float32, Float32]:
    """Return the infrared temperature in K and albedo of ground, cumulus and cirrus."""
    latitude, longitude = axes
    north, east = weather.drifted(seconds)
    tiles = weather.textures
    land_height, moisture = weather.land.on_grid(0.0, axes), weather.moisture.on_grid(seconds, axes)
    cirrus, ground = weather.cirrus.on_grid(seconds, axes), lay_tile(tiles.rough, axes)
    cumulus = lay_tile(tiles.cumulus, axes, (0.6 * north, 0.6 * east))
    streaks = lay_tile(tiles.streaks, axes, (1.2 * north, 1.2 * east))
    sensor = lay_tile(tiles.sensor, axes, (0.0, (seconds % 1021) / 7.0))
    diurnal = np.cos((seconds / 3600.0 % 24.0 + longitude / 15.0 - 14.0) * math.pi / 12.0).astype(np.float32)
    sea = (301.0 - 0.016 * (latitude - 12.0) ** 2).astype(np.float32)[:, None]
    infrared = np.empty((latitude.size, longitude.size), np.float32)
    albedo = np.empty_like(infrared)
    for start in range(0, latitude.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        rough = ground(part)
        height = land_height(part) + 0.10 * rough
        land = np.clip((height + 0.4) * 30.0, 0.0, 1.0)
        inland = np.clip(height + 0.45, 0.0, 1.5)
        surface = diurnal * (3.0 + 6.5 * inland) + 1.5 - 5.0 * inland * inland + 0.4 * rough
        temperature = sea[part] + land * surface
        white = 0.055 + land * (0.075 + 0.014 * rough + 0.05 * inland)

        cells = cumulus(part)
        moist = moisture(part) + 0.28 * rough
        # Heated land breaks cloud up into cumulus; moister air closes the deck.
        deck = np.clip(0.40 * cells + 1.5 * moist - 0.80 + 0.15 * diurnal * land, 0.0, 1.7)
        cover = deck * deck / (0.20 + deck * deck)
        # Deeper moist layers have higher tops, from fair-weather cumulus to altostratus.
        tops = 286.0 - 12.0 * np.clip(moist, 0.0, 2.2) - 5.0 * deck
        temperature += cover * np.minimum(tops - temperature, 0.0)
        white += cover * (0.40 + 0.12 * np.minimum(deck, 1.2) + 0.06 * cells - white)

        ice = np.clip(0.26 * streaks(part) + 1.3 * cirrus(part) + 0.12 * rough - 0.75, 0.0, 2.5)
        cover = ice * ice / (0.7 + ice * ice)
        temperature += cover * np.minimum(244.0 - 9.0 * ice - temperature, 0.0)
        white += 0.5 * cover * np.maximum(0.62 - white, 0.0)
        infrared[part] = temperature + 0.06 * sensor(part)
        albedo[part] = white
    return infrared, albedo


class _Canvas:
    """The scene while it is drawn: ground and low clouds first, then the storms in turn."""

    def __init__(self, weather: Weather, seconds: float, axes: tuple[Float, Float], west: float) -> None:
        self.weather, self.seconds, self.axes, self.west = weather, seconds, axes, west
        self.infrared, self.albedo = _draw_background(weather, seconds, axes)
        self.overshoots = np.zeros(self.infrared.shape, np.uint16)
        self.count = 0

    def draw(self, storm: Storm) -> None:
        """Draw a storm: it covers what is warmer."""
        seconds, tiles = self.seconds, self.weather.textures
        anvil, cores = storm.anvil(seconds), storm.cores(seconds)
        x, y = storm.offsets(seconds, self.axes)
        west, east, south, north = anvil.bounds(0.05)
        window = axis_box(y, south, north), axis_box(x, west, east)
        y, x = y[window[0]], x[window[1]]
        if not (y.size and x.size):
            return
        rough, fibers, cells = (
            storm.cut_texture(tile, x, y, self.axes[0])
            for tile in (tiles.rough, tiles.streaks, tiles.cumulus)
        )
        depth = anvil_depth(anvil.field(x, y))
        depth *= np.exp(0.28 * rough + 0.38 * fibers)
        # Infrared emissivity: thin at the rim, then soon opaque.
        cover = 1.0 - np.exp(-depth * (0.5 + 1.3 * depth))
        # Cloud tops are warmer where the anvil is thin and colder over and around its updrafts.
        cold = cores._replace(radius=2.6 * cores.radius).field(x, y)
        tops = storm.overshoots(seconds)
        over = tops.field(x, y)
        top = (
            storm.top_temperature(seconds) + 26.0 * np.exp(-0.75 * depth) - 6.0 * np.minimum(cold, 1.5) - over
        )
        aloft = np.maximum(top, _COLDEST)
        aloft += (0.7 * rough + 0.5 * fibers) * np.minimum(depth, 1.0)
        infrared, albedo = self.infrared[window], self.albedo[window]
        numbers, seen = self.overshoots[window], (cover > 0.7) & (aloft < infrared)
        numbers[seen] = 0  # tops of earlier storms are hidden now
        for k in np.flatnonzero(tops.weight > 4.0):
            near = (x - tops.x[k]) ** 2 + (y[:, None] - tops.y[k]) ** 2 < (0.9 * tops.radius[k]) ** 2
            self.count += 1
            numbers[near & seen] = self.count
        infrared += cover * np.minimum(aloft - infrared, 0.0)

        # Lumps over the updrafts are bright on the side of the low sun and dark on the other.
        lumps = 0.10 * over + (0.15 + 0.7 * cold) * cells
        shade = np.zeros_like(lumps)
        shade[:, 1:-1] = self.west * (lumps[:, 2:] - lumps[:, :-2])
        white = 0.70 + 0.10 * np.minimum(depth / 3.0, 1.0) + 0.06 * np.minimum(cold, 1.0)
        white += 0.012 * fibers + 0.10 * np.clip(shade, -1.5, 1.5)
        albedo += cover * np.minimum(0.30 + 0.35 * depth, 1.0) * np.maximum(white - albedo, 0.0)

    def numbered_tops(self) -> npt.NDArray[np.uint16]:
        """Return the number the visible overshooting tops from 1 without gaps."""
        seen = np.bincount(self.overshoots.ravel(), minlength=1) > 0
        seen[0] = False
        return (seen * np.cumsum(seen)).astype(np.uint16)[self.overshoots]


def _is_beyond_limb(latitude: Float, longitude: Float) -> npt.NDArray[np.bool_]:
    """Return whether the satellite does not see a pixel."""
    angles = np.linspace(0.0, 81.0, 8101)
    zenith = geometry.satellite_zenith_angle(angles, 0.0, 0.0)
    limit = math.cos(math.radians(float(np.interp(LIMB_ZENITH, zenith, angles))))
    need = limit / np.cos(np.deg2rad(latitude))
    width = np.where(need < 1.0, np.rad2deg(np.arccos(np.clip(need, -1.0, 1.0))), -1.0)
    return np.abs(longitude - SATELLITE_LONGITUDE) > width[:, None]
