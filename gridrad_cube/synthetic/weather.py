"""The weather of a seed: storms born at random, smooth fields that drift, and storms planted on purpose.

Everything is a function of (seed, time, place). Births are drawn for cells of the Earth and hours of the
calendar, each from its own generator, so that the weather of one scene does not depend on any other scene.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic.files import to_second
from gridrad_cube.synthetic.noise import Float, Float32, LargeScale, Textures, window
from gridrad_cube.synthetic.storms import (
    KINDS,
    KM_PER_DEGREE,
    LONGEST_LIFE_HOURS,
    Kind,
    Pulses,
    Storm,
    anvil_depth,
    convective_dbz,
    draw_storm,
    top_temperature,
)

#: Edge of a cell of births, degrees.
CELL_DEGREES = 8
#: Candidate births per square degree and hour, before thinning by moisture and time of day.
BIRTH_RATE = 0.055
#: How far outside of a region a storm's centre may lie and still reach into it, degrees.
MARGIN_DEGREES = 5.0
#: Latitude whose cosine shapes every plant, so that it covers the same pixels wherever it stands.
PLANT_LATITUDE = 38.0
#: Radius of the planted complex: no weather storm is left inside it, km.
PLANT_RADIUS_KM = 210.0
#: Age of the planted complex at its planting, minutes.
PLANT_AGE_MINUTES = 150.0

#: Columns of `Weather.storms_at`.
STORM_DTYPE = np.dtype([
    ("id", "i8"), ("kind", "U8"), ("plant", "i4"), ("latitude", "f8"), ("longitude", "f8"),
    ("eastward_m_s", "f4"), ("northward_m_s", "f4"), ("age_minutes", "f4"), ("life_minutes", "f4"),
    ("size_km", "f4"), ("cores", "i4"), ("peak_dbz", "f4"), ("minimum_temperature", "f4"),
])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One appearance of the planted complex: where it stands at which time.

    ``mirrored`` swaps east and west; ``noise`` from 0 (the same cores to the km) to 1 (cores moved by 15 km
    and changed by half their strength, on average).
    """

    time: np.datetime64
    latitude: float
    longitude: float
    mirrored: bool = False
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Birth:
    """When and where a storm is born, and for how many minutes."""

    id: int
    kind: Kind
    seconds: float
    life: float
    place: tuple[float, float]


class Weather:
    """Storms and large-scale fields of one seed.

    Parameters
    ----------
    seed
        Same seed, same weather.
    plants
        Appearances of the planted complex. Weather storms that would overlap one are left out.
    density
        Factor on the number of storms.
    """

    def __init__(self, seed: int = 0, *, plants: Iterable[Plant] = (), density: float = 1.0) -> None:
        if seed < 0:
            raise SchemaError(f"seed: got {seed}; expected 0 or more")
        self.seed, self.density, self.plants = int(seed), float(density), tuple(plants)
        rng = np.random.default_rng([self.seed, 3])
        angle, speed = math.radians(rng.uniform(-25.0, 35.0)), rng.uniform(8.0, 13.0)
        #: Wind that carries storms, (eastward, northward) m/s.
        self.wind = (speed * math.cos(angle), speed * math.sin(angle))
        north, east = self.wind[1] * 3.6 / KM_PER_DEGREE, self.wind[0] * 3.6 / (0.8 * KM_PER_DEGREE)
        #: Direction of the upper wind, radians from east to north.
        self.jet = rng.uniform(0.2, 0.9)
        # Moist air lies in bands, south-west to north-east, as along fronts.
        self.moisture = LargeScale.draw(
            [self.seed, 4], longest=16, shortest=3.2, drift=(north / 2, east / 2), hours=40, stretch=2.2,
            angle=self.jet,
        )  # fmt: skip
        self.cirrus = LargeScale.draw(
            [self.seed, 5], longest=16, shortest=3.2, drift=(north, 1.6 * east), hours=30, stretch=2.5,
            angle=self.jet,
        )  # fmt: skip
        self.land = LargeScale.draw([self.seed, 6], longest=30, shortest=3.5)
        self._planted = tuple(planted_storm(self.seed, k, plant) for k, plant in enumerate(self.plants))
        self._births: dict[tuple[int, int, int], tuple[_Birth, ...]] = {}
        self._storms: dict[int, Storm] = {}

    @functools.cached_property
    def textures(self) -> Textures:
        """Small-scale noise of this seed."""
        return Textures.draw(self.seed, self.jet)

    def plant(self, *plants: Plant) -> Weather:
        """The same weather with more plants in it."""
        return Weather(self.seed, plants=(*self.plants, *plants), density=self.density)

    def storms(
        self, time: np.datetime64, latitude: tuple[float, float], longitude: tuple[float, float]
    ) -> list[Storm]:
        """List the storms alive at a time that may reach into a region, oldest cells first, plants last.

        ``latitude`` and ``longitude`` are the ends of the region in degrees, longitude in [-180, 180).
        """
        seconds = seconds_of(time)
        south, north = min(latitude) - MARGIN_DEGREES, max(latitude) + MARGIN_DEGREES
        west, east = min(longitude) - MARGIN_DEGREES, max(longitude) + MARGIN_DEGREES
        # Born up to a cell outside: a storm travels 12 h at 15 m/s before it may arrive.
        reach = CELL_DEGREES
        hour = math.floor(seconds / 3600)

        def cells(low: float, high: float) -> range:
            return range(
                math.floor((low - reach) / CELL_DEGREES), math.floor((high + reach) / CELL_DEGREES) + 1
            )

        found = [
            storm
            for slot in range(hour - math.ceil(LONGEST_LIFE_HOURS), hour + 1)
            for i in cells(south, north)
            for j in cells(west, east)
            for storm in self._alive(slot, i, j, seconds)
        ]
        found = [storm for storm in found if not self._gives_way(storm)]
        found += [storm for storm in self._planted if storm.is_alive(seconds)]
        places = [storm.position(seconds) for storm in found]
        return [s for s, (y, x) in zip(found, places, strict=True) if south < y < north and west < x < east]

    def storms_at(
        self, time: np.datetime64, latitude: tuple[float, float], longitude: tuple[float, float]
    ) -> np.ndarray:
        """Give the truth about the storms whose centres lie in a region.

        Returns
        -------
        A structured array, one row a storm: ``id`` (the same from scene to scene), ``kind``, ``plant`` (-1 for
        weather), position, motion, age and life, ``size_km`` (root mean square distance of its cloud from the
        cloud's middle), ``cores`` (updrafts at work), ``peak_dbz`` (highest reflectivity before texture, NaN
        without a core), ``minimum_temperature`` (K, coldest top before texture, NaN without an anvil).
        """
        seconds = seconds_of(time)
        rows = []
        for storm in self.storms(time, latitude, longitude):
            y, x = storm.position(seconds)
            if min(latitude) <= y <= max(latitude) and min(longitude) <= x <= max(longitude):
                rows.append(_truth(storm, seconds, y, x))
        return np.array(rows, dtype=STORM_DTYPE)

    def _gives_way(self, storm: Storm) -> bool:
        for plant, planted in zip(self.plants, self._planted, strict=True):
            seconds = seconds_of(plant.time)
            if storm.is_alive(seconds):
                x, y = planted.offsets(seconds, *(np.array([v]) for v in storm.position(seconds)))
                if math.hypot(float(x[0]), float(y[0])) < PLANT_RADIUS_KM + _reach_km(storm, seconds):
                    return True
        return False

    def _alive(self, slot: int, i: int, j: int, seconds: float) -> list[Storm]:
        """Storms of one cell and hour of births that live at a time; drawn when first needed."""
        key = (slot, i, j)
        if key not in self._births:
            if len(self._births) > 20_000 or len(self._storms) > 20_000:
                self._births.clear()
                self._storms.clear()
            self._births[key] = self._draw_births(slot, i, j)
        out = []
        for birth in self._births[key]:
            if 0.0 < seconds - birth.seconds < 60.0 * birth.life:
                if birth.id not in self._storms:
                    self._storms[birth.id] = draw_storm(
                        self.seed, birth.id, kind=birth.kind, life=birth.life, birth=birth.seconds,
                        place=birth.place, wind=self.wind, jet=self.jet,
                    )  # fmt: skip
                out.append(self._storms[birth.id])
        return out

    def _draw_births(self, slot: int, i: int, j: int) -> tuple[_Birth, ...]:
        rng = np.random.default_rng([self.seed, 1, slot % 2**32, i % 256, j % 256])
        n = int(rng.poisson(BIRTH_RATE * self.density * CELL_DEGREES**2))
        draws = rng.random((n, 6))
        seconds = 3600.0 * (slot + draws[:, 0])
        latitude, longitude = CELL_DEGREES * (i + draws[:, 1]), CELL_DEGREES * (j + draws[:, 2])
        moist = self.moisture.points(3600.0 * slot, latitude, longitude) if n else np.zeros(0)
        local = (seconds / 3600.0 + longitude / 15.0) % 24.0
        # Convection peaks in the late afternoon and never quite stops.
        often = (0.65 + 0.35 * np.cos((local - 17.0) * math.pi / 12.0)) / (1.0 + np.exp(-2.5 * (moist - 0.1)))
        shares = np.cumsum([kind.share for kind in KINDS])
        out = []
        for k in np.flatnonzero(draws[:, 3] < often):
            kind = KINDS[min(int(np.searchsorted(shares, draws[k, 4])), len(KINDS) - 1)]
            low, high = kind.life_minutes
            identifier = (((slot % 2**32) * 256 + i % 256) * 256 + j % 256) * 64 + int(k) % 64
            place = (float(latitude[k]), float(longitude[k]))
            life = low + (high - low) * float(draws[k, 5])
            out.append(_Birth(id=identifier, kind=kind, seconds=float(seconds[k]), life=life, place=place))
        return tuple(out)


def seconds_of(time: np.datetime64) -> float:
    """Seconds since 1970 of a UTC time."""
    return float(to_second(time).astype(np.int64))


def storm_texture(tile: Float32, storm: Storm, x: Float, y: Float, spacing: tuple[float, float]) -> Float32:
    """Cut the noise that moves with a storm, on axes in km from its centre; mirrored with it."""
    rows = np.rint(y / spacing[0]).astype(np.int64) + storm.texture[0]
    flip = -1.0 if storm.mirrored else 1.0
    columns = np.rint(flip * x / spacing[1]).astype(np.int64) + storm.texture[1]
    return window(tile, rows, columns)


def storms_at(
    seed: int, time: np.datetime64, *, latitude: tuple[float, float] = (18.0, 58.0),
    longitude: tuple[float, float] = (-123.0, -72.0), plants: Iterable[Plant] = (), density: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """Give the truth about the storms of a seed at a time: see `Weather.storms_at`."""
    return Weather(seed, plants=plants, density=density).storms_at(time, latitude, longitude)


def _reach_km(storm: Storm, seconds: float) -> float:
    anvil = storm.anvil(seconds)
    if not anvil.weight.size:
        return 0.0
    return float(np.max(np.hypot(anvil.x, anvil.y) + anvil.radius))


def _truth(storm: Storm, seconds: float, latitude: float, longitude: float) -> tuple[object, ...]:
    cores, anvil, overshoots = storm.cores(seconds), storm.anvil(seconds), storm.overshoots(seconds)
    peak = coldest = size = float("nan")
    if cores.weight.size:
        peak = float(convective_dbz(cores.at(cores.x, cores.y).max()))
    if anvil.weight.size:
        x, y = np.append(anvil.x, cores.x), np.append(anvil.y, cores.y)
        depth, cold = anvil_depth(anvil.at(x, y)), storm.cold_area(seconds)
        coldest = float(
            top_temperature(storm.top_at(seconds), depth, cold.at(x, y), overshoots.at(x, y)).min()
        )
        share = anvil.weight / anvil.weight.sum()
        middle = (share @ anvil.x, share @ anvil.y)
        spread = share @ ((anvil.x - middle[0]) ** 2 + (anvil.y - middle[1]) ** 2 + 2 * anvil.radius**2)
        size = float(np.sqrt(spread))
    return (
        storm.id, storm.kind, storm.plant, latitude, longitude, *storm.motion, storm.age(seconds), storm.life,
        size, cores.weight.size, peak, coldest,
    )  # fmt: skip


#: Cores of the planted complex: km east, km north, strength. A bow of five, a pair, a lone cell, one behind.
CONSTELLATION = np.array([
    (-70, 95, 0.85), (-30, 62, 1.00), (-8, 14, 1.15), (-16, -38, 1.05), (-52, -84, 0.85),
    (62, 78, 0.95), (92, 50, 0.75), (58, -78, 1.15), (-112, 4, 0.70),
])  # fmt: skip


def planted_storm(seed: int, number: int, plant: Plant) -> Storm:
    """Make one appearance of the complex of a seed: the same cores, moved, mirrored and disturbed as asked."""
    rng = np.random.default_rng([seed, 7])
    turn = rng.uniform(0.0, 2 * math.pi)
    x = CONSTELLATION[:, 0] * math.cos(turn) - CONSTELLATION[:, 1] * math.sin(turn)
    y = CONSTELLATION[:, 0] * math.sin(turn) + CONSTELLATION[:, 1] * math.cos(turn)
    # Three pulses at each place, so that it has grown for an hour and goes on after its planting.
    births = PLANT_AGE_MINUTES + np.array([-100.0, -66.0, -32.0, 6.0])
    shape = (x.size, births.size)
    lag = rng.uniform(-8.0, 8.0, shape)
    radius, anvil = rng.uniform(5.0, 9.0, shape), rng.uniform(15.0, 22.0, shape)
    texture = rng.integers(1 << 16, size=2)
    other = np.random.default_rng([seed, 8, number])
    jitter = 12.0 * plant.noise * other.standard_normal((2, x.size, 1))
    strength = CONSTELLATION[:, 2][:, None] * np.exp(0.4 * plant.noise * other.standard_normal((x.size, 1)))
    flip = -1.0 if plant.mirrored else 1.0
    pulses = Pulses(
        birth=(births + lag).ravel(), life=np.full(x.size * births.size, 60.0),
        x=flip * np.broadcast_to(x[:, None] + jitter[0], shape).ravel(),
        y=np.broadcast_to(y[:, None] + jitter[1], shape).ravel(),
        radius=radius.ravel(), strength=np.broadcast_to(strength, shape).ravel(), anvil=anvil.ravel(),
    )  # fmt: skip
    motion, stretch = (9.0, 3.0), math.cos(math.radians(PLANT_LATITUDE))
    before_km = -PLANT_AGE_MINUTES * 0.06
    return Storm(
        id=-1 - number, kind="planted", birth=seconds_of(plant.time) - 60.0 * PLANT_AGE_MINUTES, life=330.0,
        latitude=plant.latitude + motion[1] * before_km / KM_PER_DEGREE,
        longitude=plant.longitude + motion[0] * before_km / (KM_PER_DEGREE * stretch),
        motion=motion, shear=(flip * 0.14, 0.05), trail=(-flip * 0.05, 0.0), top=209.0, stretch=stretch,
        pulses=pulses, texture=(int(texture[0]), int(texture[1])), mirrored=plant.mirrored, plant=number,
    )  # fmt: skip
