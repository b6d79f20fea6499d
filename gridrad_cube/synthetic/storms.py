"""Weather of a seed: storms that are born, move, grow and die, in smooth fields that drift.

Everything depends only on (seed, time, position). Births are drawn for cells of the Earth and hours of the
calendar, each from a separate generator, so that scenes do not depend on each other. A storm is a list of
pulses.
Each pulse is an updraft that lives for less than about an hour. It adds cloud to an anvil that spreads
downwind, and
rain that becomes stratiform. Instruments see sums of round Gaussians ("blobs"), so that a field on a grid is
one small
matrix product. Times inside a storm are minutes since its birth, positions are km east and north of its
center.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic.noise import Float, Float32, SmoothField, cut_tile, draw_textures

#: Length of a degree of latitude on the sphere, km.
KM_PER_DEGREE = 111.195
#: Edge of a cell of births, degrees; candidate births per square degree and hour.
_CELL, _BIRTH_RATE = 8, 0.055
#: A storm whose center lies outside of a region by no more than this can reach into it, degrees.
_MARGIN = 5.0
#: The planted complex: its age when it is planted (minutes), the radius that it keeps free of other storms (km),
#: and the cosine that shapes it, so that it covers the same pixels at every latitude.
_PLANT_AGE, _PLANT_RADIUS, _PLANT_STRETCH = 150.0, 210.0, math.cos(math.radians(38.0))
#: Its cores: km east, km north, strength. A bow of five, a pair, a single cell, and one behind.
_PLANT_CORES = np.array([
    (-70, 95, 0.85), (-30, 62, 1.00), (-8, 14, 1.15), (-16, -38, 1.05), (-52, -84, 0.85),
    (62, 78, 0.95), (92, 50, 0.75), (58, -78, 1.15), (-112, 4, 0.70),
])  # fmt: skip


class _Blobs(NamedTuple):
    """Round Gaussians: centers and radii in km, weights. Arrays of one length."""

    x: Float
    y: Float
    radius: Float
    weight: Float

    def kept(self, threshold: float) -> _Blobs:
        """Select those whose weight exceeds a threshold."""
        return _Blobs(*(values[self.weight > threshold] for values in self))

    def bounds(self, level: float) -> tuple[float, float, float, float]:
        """Return the west, east, south and north ends in km of where the sum may exceed ``level``; empty
        without blobs.
        """
        total = np.maximum(self.weight * max(1, min(self.weight.size, 20)), level)
        reach = self.radius * np.sqrt(2 * np.log(total / level)) + 1.0
        west, south = (np.min(center - reach, initial=np.inf) for center in (self.x, self.y))
        east, north = (np.max(center + reach, initial=-np.inf) for center in (self.x, self.y))
        return west, east, south, north

    def field(self, x: Float, y: Float) -> Float32:
        """Return the sum of the blobs on a grid of 1-D axes in km, shape (y, x)."""

        def gauss(axis: Float, center: Float) -> Float:
            return np.asarray(np.exp(-0.5 * ((axis[None] - center[:, None]) / self.radius[:, None]) ** 2))

        along = self.weight[:, None] * gauss(y, self.y)
        return along.astype(np.float32).T @ gauss(x, self.x).astype(np.float32)


class _Pulses(NamedTuple):
    """Updrafts: birth and life in minutes, position and radius in km, strength about 1, reach of the anvil in km."""

    birth: Float
    life: Float
    x: Float
    y: Float
    radius: Float
    strength: Float
    anvil: Float


class Kind(NamedTuple):
    """A kind of storm: its share of all births, and ranges of its life, size, strength and anvil."""

    name: str
    share: float
    life_minutes: tuple[float, float]
    pulses_per_hour: float
    along_km: tuple[float, float]
    across_km: tuple[float, float]
    strength: tuple[float, float]
    core_km: tuple[float, float]
    anvil_km: tuple[float, float]
    trailing: float


KINDS = (
    Kind(name="cell", share=0.66, life_minutes=(60, 140), pulses_per_hour=3, along_km=(3, 14),
         across_km=(2, 8), strength=(0.45, 1.1), core_km=(3, 6), anvil_km=(9, 15), trailing=0.0),
    Kind(name="cluster", share=0.21, life_minutes=(150, 330), pulses_per_hour=7, along_km=(20, 50),
         across_km=(12, 30), strength=(0.5, 1.2), core_km=(4, 8), anvil_km=(12, 19), trailing=0.05),
    Kind(name="line", share=0.08, life_minutes=(240, 480), pulses_per_hour=17, along_km=(90, 190),
         across_km=(4, 9), strength=(0.65, 1.25), core_km=(5, 10), anvil_km=(17, 26), trailing=0.28),
    Kind(name="complex", share=0.05, life_minutes=(360, 720), pulses_per_hour=16, along_km=(50, 95),
         across_km=(35, 60), strength=(0.6, 1.25), core_km=(5, 10), anvil_km=(22, 36), trailing=0.18),
)  # fmt: skip
_LONGEST_LIFE_HOURS = math.ceil(max(kind.life_minutes[1] for kind in KINDS) / 60)


@dataclass(frozen=True, eq=False, kw_only=True)
class Storm:
    """A storm and its whole life. Every method returns its state at a time in seconds since 1970.

    ``birth`` is in seconds since 1970, ``life`` in minutes; ``latitude`` and ``longitude`` are its birthplace;
    ``motion`` (eastward, northward) is in m/s; ``shear`` and ``trail``, the drift of anvil and rain in its frame, in
    km per minute; ``top`` is the temperature of the anvil in K, ``stretch`` the cosine that turns km into degrees of
    longitude, and ``texture`` the offset of its noise in pixels.
    """

    birth: float
    life: float
    latitude: float
    longitude: float
    motion: tuple[float, float]
    shear: tuple[float, float]
    trail: tuple[float, float]
    top: float
    stretch: float
    pulses: _Pulses
    texture: tuple[int, int]
    mirrored: bool = False

    def age(self, seconds: float) -> float:
        """Return the minutes since birth.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Minutes.
        """
        return (seconds - self.birth) / 60.0

    def is_alive(self, seconds: float) -> bool:
        """Return whether the storm exists.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        True if it exists.
        """
        return 0.0 < self.age(seconds) < self.life

    def position(self, seconds: float) -> tuple[float, float]:
        """Return the latitude and longitude of the center, degrees.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Latitude and longitude.
        """
        km = (seconds - self.birth) / 1000.0
        latitude = self.latitude + self.motion[1] * km / KM_PER_DEGREE
        return latitude, self.longitude + self.motion[0] * km / (KM_PER_DEGREE * self.stretch)

    def offsets(self, seconds: float, axes: tuple[Float, Float]) -> tuple[Float, Float]:
        """Return the axes of a grid (latitude, longitude) as km east and north of the center.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.
        axes
            Latitudes and longitudes of the grid.

        Returns
        -------
        Two axes in km.
        """
        latitude, longitude = self.position(seconds)
        return (axes[1] - longitude) * (KM_PER_DEGREE * self.stretch), (axes[0] - latitude) * KM_PER_DEGREE

    def cut_texture(self, tile: Float32, x: Float, y: Float, axis: Float) -> Float32:
        """Return noise that moves and is mirrored with the storm.

        Parameters
        ----------
        tile
            Tile of the noise.
        x, y
            Axes in km from the center.
        axis
            Axes of the grid, degrees.

        Returns
        -------
        Noise on the grid.
        """
        step = KM_PER_DEGREE * abs(float(axis[-1] - axis[0])) / max(axis.size - 1, 1)
        flip = -1.0 if self.mirrored else 1.0
        rows = np.rint(y / step).astype(np.int64) + self.texture[0]
        columns = np.rint(flip * x / (step * self.stretch)).astype(np.int64) + self.texture[1]
        return cut_tile(tile, rows, columns)

    def top_temperature(self, seconds: float) -> float:
        """Return the temperature of the anvil, K: it sinks and warms as the storm dies.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Temperature in K.
        """
        return self.top + 14.0 * (1.0 - self._vigor(self.age(seconds)) ** 0.5)

    def cores(self, seconds: float) -> _Blobs:
        """Return the active updrafts. Their weight is the strength times the phase of the pulse.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Blobs.
        """
        p, age = self.pulses, self.age(seconds)
        part = np.clip((age - p.birth) / p.life, 0.0, 1.0)
        weight = p.strength * np.sin(math.pi * part) ** 2 * self._vigor(age)
        return _Blobs(p.x, p.y, p.radius, weight).kept(0.02)

    def overshoots(self, seconds: float) -> _Blobs:
        """Return the tops above the anvil. Their weight is the difference to its temperature in K.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Blobs.
        """
        cores = self.cores(seconds)
        depth = np.clip(30.0 * (cores.weight - 0.68), 0.0, 14.0)
        return cores._replace(radius=np.clip(0.8 * cores.radius, 3.5, 7.0), weight=depth).kept(1.0)

    def anvil(self, seconds: float) -> _Blobs:
        """Return the cloud of all pulses so far, spread and carried downwind. The weight is optical depth.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Blobs.
        """
        p, age = self.pulses, self.age(seconds)
        old = np.maximum(age - p.birth, 0.0)
        mass = p.strength * _smoothstep(old / (0.8 * p.life)) * np.exp(-np.maximum(old - p.life, 0.0) / 100.0)
        radius = p.anvil * (0.45 + 0.75 * np.sqrt(old / 60.0))
        drift = np.maximum(old - 15.0, 0.0)
        x, y = p.x + self.shear[0] * drift, p.y + self.shear[1] * drift
        return _Blobs(x, y, radius, 1.6 * mass * self._vigor(age)).kept(0.01)

    def stratiform(self, seconds: float) -> _Blobs:
        """Return the rain of pulses past their peak, behind the storm.

        Parameters
        ----------
        seconds
            Seconds since 1970, UTC.

        Returns
        -------
        Blobs.
        """
        p, age = self.pulses, self.age(seconds)
        old = np.maximum(age - p.birth, 0.0)
        mass = p.strength * _smoothstep((old - 20.0) / 40.0) * np.exp(-np.maximum(old - 80.0, 0.0) / 60.0)
        x, y = p.x + self.trail[0] * old, p.y + self.trail[1] * old
        return _Blobs(x, y, 0.45 * p.anvil + 0.10 * old, mass * self._vigor(age)).kept(0.02)

    def _vigor(self, age: float) -> float:
        # Squared: an anvil is opaque at a fraction of its depth, and would otherwise vanish at once at the end.
        return float(_smoothstep((self.life - age) / (0.4 * self.life)) ** 2)


def _smoothstep(x: npt.ArrayLike) -> Float:
    u = np.clip(np.asarray(x, np.float64), 0.0, 1.0)
    return u * u * (3 - 2 * u)


def anvil_depth(total: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the optical depth of the summed weight of an anvil: none below 0.05, at most 6."""
    depth = np.maximum(total - 0.05, 0.0)
    return depth / (1.0 + depth / 6.0)


def draw_storm(
    seed: int, identifier: int, *, kind: Kind, life: float, birth: float, position: tuple[float, float],
    wind: tuple[float, float], jet: float,
) -> Storm:  # fmt: skip
    """Draw a storm with a known kind, life, birth and birthplace.

    Parameters
    ----------
    seed
        Seed of the weather.
    identifier
        Number of the storm.
    kind
        Kind of the storm.
    life
        Life in minutes.
    birth
        Birth in seconds since 1970.
    position
        Birthplace: latitude and longitude, degrees.
    wind
        Wind that carries the storm, (eastward, northward) m/s.
    jet
        Direction in which its anvil spreads, radians from east.

    Returns
    -------
    The storm.
    """
    rng = np.random.default_rng([seed, 2, identifier])
    motion = (wind[0] + 2.0 * rng.standard_normal(), wind[1] + 2.0 * rng.standard_normal())
    speed = math.hypot(*motion) + 1e-6
    heading = (motion[0] / speed, motion[1] / speed)
    strength = 0.75 + 0.25 * rng.random()
    shear = 0.20 + 0.65 * rng.random()
    aloft = jet + 0.3 * rng.standard_normal()
    return Storm(
        birth=birth, life=life, latitude=position[0], longitude=position[1],
        motion=motion, shear=(shear * math.cos(aloft), shear * math.sin(aloft)),
        trail=(-kind.trailing * heading[0], -kind.trailing * heading[1]),
        top=float(222.0 - 16.0 * (strength - 0.75) / 0.25 + 2.0 * rng.standard_normal()),
        stretch=math.cos(math.radians(position[0])),
        pulses=_draw_pulses(rng, kind, life, heading, strength),
        texture=(int(rng.integers(1 << 16)), int(rng.integers(1 << 16))),
    )  # fmt: skip


def _draw_pulses(
    rng: np.random.Generator, kind: Kind, life: float, heading: tuple[float, float], strength: float
) -> _Pulses:
    n = max(1, int(rng.poisson(kind.pulses_per_hour * 0.62 * life / 60.0)))
    birth = np.sort(rng.uniform(0.0, 0.62 * life, n))
    birth[0] = 0.0
    along_km, across_km = rng.uniform(*kind.along_km), rng.uniform(*kind.across_km)
    grown = 0.3 + 0.7 * _smoothstep(birth / (0.35 * life))
    if kind.name == "line":
        s = rng.uniform(-1.0, 1.0, n)
        along = along_km * s * grown
        # A bow: the middle moves ahead of the ends.
        across = across_km * rng.standard_normal(n) + 0.35 * along_km * grown * (0.5 - s**2)
        axis = (-heading[1], heading[0])
    else:
        along, across = along_km * rng.standard_normal(n) * grown, across_km * rng.standard_normal(n) * grown
        angle = rng.uniform(0.0, math.pi)
        axis = (math.cos(angle), math.sin(angle))
    return _Pulses(
        birth=birth,
        life=rng.uniform(32.0, 65.0, n),
        x=along * axis[0] + across * axis[1],
        y=along * axis[1] - across * axis[0],
        radius=rng.uniform(*kind.core_km, n),
        strength=strength * rng.uniform(*kind.strength, n),
        anvil=rng.uniform(*kind.anvil_km, n) * (0.75 + 0.35 * strength),
    )


class Weather:
    """Storms and smooth fields of one seed.

    Parameters
    ----------
    seed
        The same seed gives the same weather.
    plants
        Appearances of the planted complex: a structured array with ``time``, ``latitude``, ``longitude``,
        ``mirrored`` (east and west swapped) and ``noise``, from 0 (the same cores to the km) to 1 (cores moved by
        15 km and changed by half of their strength, on average). Other storms that would overlap one are left out.
    density
        Factor on the number of storms.
    """

    def __init__(self, seed: int = 0, *, plants: np.ndarray | None = None, density: float = 1.0) -> None:
        if seed < 0:
            raise SchemaError(f"seed: got {seed}; expected 0 or more")
        self.seed, self._density = int(seed), float(density)
        rng = np.random.default_rng([self.seed, 3])
        angle, speed = math.radians(rng.uniform(-25.0, 35.0)), rng.uniform(8.0, 13.0)
        #: Wind that carries storms, (eastward, northward) m/s, and as (northward, eastward) degrees per hour.
        self.wind = (speed * math.cos(angle), speed * math.sin(angle))
        self.drift = (self.wind[1] * 3.6 / KM_PER_DEGREE, self.wind[0] * 3.6 / (0.8 * KM_PER_DEGREE))
        #: Direction of the upper wind, radians from east to north.
        self.jet = rng.uniform(0.2, 0.9)
        north, east = self.drift
        # Moist air lies in bands from south-west to north-east, as along fronts.
        bands = {"longest": 16, "shortest": 3.2, "angle": self.jet}
        self.moisture = SmoothField([self.seed, 4], (north / 2, east / 2), 40, stretch=2.2, **bands)
        self.cirrus = SmoothField([self.seed, 5], (north, 1.6 * east), 30, stretch=2.5, **bands)
        self.land = SmoothField([self.seed, 6], longest=30, shortest=3.5)
        self.plants = np.zeros(0) if plants is None else plants
        self._planted = [_plant_storm(self.seed, number, plant) for number, plant in enumerate(self.plants)]
        self._births: Callable[[int, int, int], list[Storm]] = functools.lru_cache(20_000)(self._draw_births)
        #: Noise at the scale of pixels.
        self.textures = draw_textures(self.seed, self.jet)

    def drifted(self, seconds: float) -> tuple[float, float]:
        """Return how far the wind has carried the clouds since the start of a year of 365 days, degrees
        (north, east).
        """
        hours = seconds / 3600.0 % (24 * 365)
        return self.drift[0] * hours, self.drift[1] * hours

    def storms(self, seconds: float, axes: tuple[Float, Float]) -> list[Storm]:
        """List the storms that exist and may reach into a grid (latitude, longitude); planted ones last."""
        ends = [(float(axis.min()) - _MARGIN, float(axis.max()) + _MARGIN) for axis in axes]
        hour = math.floor(seconds / 3600)
        # Births up to a cell outside: a storm moves for 12 h at 15 m/s before it arrives.
        rows, columns = (range(math.floor(a / _CELL - 1), math.floor(b / _CELL + 1) + 1) for a, b in ends)
        hours = range(hour - _LONGEST_LIFE_HOURS, hour + 1)
        born = (self._births(*cell) for cell in itertools.product(hours, rows, columns))
        return [
            storm
            for storm in itertools.chain(*born, self._planted)
            if storm.is_alive(seconds)
            and all(a < at < b for at, (a, b) in zip(storm.position(seconds), ends, strict=True))
        ]

    def _gives_way(self, storm: Storm) -> bool:
        for planted in self._planted:
            seconds = planted.birth + 60.0 * _PLANT_AGE
            if storm.is_alive(seconds):
                latitude, longitude = map(np.array, storm.position(seconds))
                x, y = planted.offsets(seconds, (latitude, longitude))
                anvil = storm.anvil(seconds)
                reach = np.max(np.hypot(anvil.x, anvil.y) + anvil.radius, initial=0.0)
                if np.hypot(x, y) < _PLANT_RADIUS + reach:
                    return True
        return False

    def _draw_births(self, slot: int, i: int, j: int) -> list[Storm]:
        """Draw the storms that are born in an hour in a cell, without those that would overlap a planted one."""
        rng = np.random.default_rng([self.seed, 1, slot % 2**32, i % 256, j % 256])
        n = int(rng.poisson(_BIRTH_RATE * self._density * _CELL**2))
        draws = rng.random((n, 6))
        seconds = 3600.0 * (slot + draws[:, 0])
        latitude, longitude = _CELL * (i + draws[:, 1]), _CELL * (j + draws[:, 2])
        moist = self.moisture.points(3600.0 * slot, latitude, longitude) if n else np.zeros(0)
        local = (seconds / 3600.0 + longitude / 15.0) % 24.0
        # Convection is strongest in the late afternoon and never stops entirely.
        often = (0.65 + 0.35 * np.cos((local - 17.0) * math.pi / 12.0)) / (1.0 + np.exp(-2.5 * (moist - 0.1)))
        shares = np.cumsum([kind.share for kind in KINDS])
        out = []
        for k in np.flatnonzero(draws[:, 3] < often):
            kind = KINDS[min(int(np.searchsorted(shares, draws[k, 4])), len(KINDS) - 1)]
            low, high = kind.life_minutes
            identifier = (((slot % 2**32) * 256 + i % 256) * 256 + j % 256) * 64 + int(k) % 64
            storm = draw_storm(
                self.seed, identifier, kind=kind, life=low + (high - low) * float(draws[k, 5]),
                birth=float(seconds[k]), position=(float(latitude[k]), float(longitude[k])),
                wind=self.wind, jet=self.jet,
            )  # fmt: skip
            if not self._gives_way(storm):
                out.append(storm)
        return out


def seconds_of(time: np.datetime64) -> float:
    """Return the seconds since 1970 of a UTC time."""
    return float(time.astype("datetime64[s]").astype(np.int64))


def _plant_storm(seed: int, number: int, plant: np.void) -> Storm:
    """Make one appearance of the complex of a seed: the same cores, moved, mirrored and disturbed."""
    rng = np.random.default_rng([seed, 7])
    turn = rng.uniform(0.0, 2 * math.pi)
    east, north, cores = _PLANT_CORES.T
    x, y = east * math.cos(turn) - north * math.sin(turn), east * math.sin(turn) + north * math.cos(turn)
    # Several pulses at each position: the complex has grown for an hour and continues after it is planted.
    births = _PLANT_AGE + np.array([-100.0, -66.0, -32.0, 6.0])
    shape = (x.size, births.size)
    lag = rng.uniform(-8.0, 8.0, shape)
    radius, anvil = rng.uniform(5.0, 9.0, shape), rng.uniform(15.0, 22.0, shape)
    texture = rng.integers(1 << 16, size=2)
    other, noise = np.random.default_rng([seed, 8, number]), float(plant["noise"])
    jitter = 12.0 * noise * other.standard_normal((2, x.size, 1))
    strength = cores[:, None] * np.exp(0.4 * noise * other.standard_normal((x.size, 1)))
    flip = -1.0 if plant["mirrored"] else 1.0
    pulses = _Pulses(
        birth=(births + lag).ravel(), life=np.full(x.size * births.size, 60.0),
        x=flip * np.broadcast_to(x[:, None] + jitter[0], shape).ravel(),
        y=np.broadcast_to(y[:, None] + jitter[1], shape).ravel(),
        radius=radius.ravel(), strength=np.broadcast_to(strength, shape).ravel(), anvil=anvil.ravel(),
    )  # fmt: skip
    motion, before_km = (9.0, 3.0), -_PLANT_AGE * 0.06
    return Storm(
        birth=seconds_of(plant["time"]) - 60.0 * _PLANT_AGE, life=330.0,
        latitude=float(plant["latitude"]) + motion[1] * before_km / KM_PER_DEGREE,
        longitude=float(plant["longitude"]) + motion[0] * before_km / (KM_PER_DEGREE * _PLANT_STRETCH),
        motion=motion, shear=(flip * 0.14, 0.05), trail=(-flip * 0.05, 0.0), top=209.0, stretch=_PLANT_STRETCH,
        pulses=pulses, texture=(int(texture[0]), int(texture[1])), mirrored=bool(plant["mirrored"]),
    )  # fmt: skip
