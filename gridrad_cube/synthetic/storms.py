"""One storm: pulses of convection in a moving frame, and the cloud and rain that they leave behind.

A storm is a list of pulses. Each is an updraft that lives for under an hour; it throws cloud into an anvil that
spreads and drifts downwind, and rain that becomes stratiform. Whatever an instrument sees is a sum of round
Gaussians ("blobs"), so that a field on a grid is one small matrix product. Times inside a storm are minutes
since its birth, places are km east and north of its centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gridrad_cube.synthetic.noise import Float, Float32

#: Length of a degree of latitude on the sphere, km.
KM_PER_DEGREE = 111.195
#: Temperature that no cloud top falls below, K.
COLDEST_K = 187.0


@dataclass(frozen=True, eq=False)
class Blobs:
    """Round Gaussians: centres and radii in km, weights. Arrays of one length."""

    x: Float
    y: Float
    radius: Float
    weight: Float

    def kept(self, threshold: float) -> Blobs:
        """Those whose weight is above a threshold."""
        keep = self.weight > threshold
        return Blobs(self.x[keep], self.y[keep], self.radius[keep], self.weight[keep])

    def bounds(self, level: float) -> tuple[float, float, float, float]:
        """West, east, south and north ends in km of where the sum may exceed ``level``."""
        total = np.maximum(self.weight * max(1, min(self.weight.size, 20)), level)
        reach = self.radius * np.sqrt(2 * np.log(total / level)) + 1.0
        return (
            float((self.x - reach).min()), float((self.x + reach).max()),
            float((self.y - reach).min()), float((self.y + reach).max()),
        )  # fmt: skip

    def field(self, x: Float, y: Float) -> Float32:
        """Their sum on a grid of 1-D axes in km, shape (y, x)."""
        across = np.exp(-0.5 * ((x[None] - self.x[:, None]) / self.radius[:, None]) ** 2).astype(np.float32)
        along = self.weight[:, None] * np.exp(
            -0.5 * ((y[None] - self.y[:, None]) / self.radius[:, None]) ** 2
        )
        return along.astype(np.float32).T @ across

    def at(self, x: Float, y: Float) -> Float:
        """Their sum at points, shape (n,)."""
        square = (x[:, None] - self.x) ** 2 + (y[:, None] - self.y) ** 2
        return np.exp(-0.5 * square / self.radius**2) @ self.weight


@dataclass(frozen=True, eq=False)
class Pulses:
    """Updrafts: birth and life in minutes, place and radius in km, strength about 1, reach of their anvil in km."""

    birth: Float
    life: Float
    x: Float
    y: Float
    radius: Float
    strength: Float
    anvil: Float


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of storm: how long, how big, how many pulses."""

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
#: The longest that a storm can live, hours.
LONGEST_LIFE_HOURS = max(kind.life_minutes[1] for kind in KINDS) / 60


@dataclass(frozen=True, eq=False, kw_only=True)
class Storm:
    """A storm and its whole life; everything about it follows from the time asked for.

    ``birth`` is in seconds since 1970, ``life`` in minutes; ``latitude``, ``longitude`` where it was born;
    ``motion`` (eastward, northward) m/s; ``shear`` and ``trail`` km a minute, the drift of anvil and rain
    in its frame; ``top`` K, the anvil's temperature; ``stretch`` the cosine that turns km into degrees of
    longitude; ``plant`` the number of the plant that it is, -1 for weather.
    """

    id: int
    kind: str
    birth: float
    life: float
    latitude: float
    longitude: float
    motion: tuple[float, float]
    shear: tuple[float, float]
    trail: tuple[float, float]
    top: float
    stretch: float
    pulses: Pulses
    texture: tuple[int, int]
    mirrored: bool = False
    plant: int = -1

    def age(self, seconds: float) -> float:
        """Minutes since birth."""
        return (seconds - self.birth) / 60.0

    def top_at(self, seconds: float) -> float:
        """Temperature of its anvil, K: an anvil that dies sinks and warms."""
        return self.top + 14.0 * (1.0 - self._vigor(self.age(seconds)) ** 0.5)

    def is_alive(self, seconds: float) -> bool:
        """Whether there is anything of it at this time."""
        return 0.0 < self.age(seconds) < self.life

    def position(self, seconds: float) -> tuple[float, float]:
        """Latitude and longitude of its centre, degrees."""
        km = (seconds - self.birth) / 1000.0
        latitude = self.latitude + self.motion[1] * km / KM_PER_DEGREE
        return latitude, self.longitude + self.motion[0] * km / (KM_PER_DEGREE * self.stretch)

    def offsets(self, seconds: float, latitude: Float, longitude: Float) -> tuple[Float, Float]:
        """Km east and north of its centre of the axes of a grid."""
        centre_latitude, centre_longitude = self.position(seconds)
        return (
            (longitude - centre_longitude) * (KM_PER_DEGREE * self.stretch),
            (latitude - centre_latitude) * KM_PER_DEGREE,
        )

    def _vigor(self, age: float) -> float:
        # Squared: an anvil is opaque at a fraction of its depth, and would vanish all at once at the end.
        return float(_smoothstep((self.life - age) / (0.4 * self.life)) ** 2)

    def cores(self, seconds: float) -> Blobs:
        """Updrafts at work; weight is their strength times how far they are in their pulse."""
        p, age = self.pulses, self.age(seconds)
        part = np.clip((age - p.birth) / p.life, 0.0, 1.0)
        weight = p.strength * np.sin(math.pi * part) ** 2 * self._vigor(age)
        return Blobs(p.x, p.y, p.radius, weight).kept(0.02)

    def cold_area(self, seconds: float) -> Blobs:
        """The colder part of the anvil around the updrafts at work."""
        cores = self.cores(seconds)
        return Blobs(cores.x, cores.y, 2.6 * cores.radius, cores.weight)

    def anvil(self, seconds: float) -> Blobs:
        """Cloud thrown out by every pulse so far, spread and carried downwind; weight is optical depth."""
        p, age = self.pulses, self.age(seconds)
        old = np.maximum(age - p.birth, 0.0)
        mass = p.strength * _smoothstep(old / (0.8 * p.life)) * np.exp(-np.maximum(old - p.life, 0.0) / 100.0)
        radius = p.anvil * (0.45 + 0.75 * np.sqrt(old / 60.0))
        drift = np.maximum(old - 15.0, 0.0)
        return Blobs(
            p.x + self.shear[0] * drift, p.y + self.shear[1] * drift, radius, 1.6 * mass * self._vigor(age)
        ).kept(0.01)

    def stratiform(self, seconds: float) -> Blobs:
        """Rain left by pulses past their peak, behind the line of motion."""
        p, age = self.pulses, self.age(seconds)
        old = np.maximum(age - p.birth, 0.0)
        mass = p.strength * _smoothstep((old - 20.0) / 40.0) * np.exp(-np.maximum(old - 80.0, 0.0) / 60.0)
        radius = 0.45 * p.anvil + 0.10 * old
        return Blobs(
            p.x + self.trail[0] * old, p.y + self.trail[1] * old, radius, mass * self._vigor(age)
        ).kept(0.02)

    def overshoots(self, seconds: float) -> Blobs:
        """Tops that break through the anvil; weight is how much colder they are, K."""
        cores = self.cores(seconds)
        depth = np.clip(30.0 * (cores.weight - 0.68), 0.0, 14.0)
        return Blobs(cores.x, cores.y, np.clip(0.8 * cores.radius, 3.5, 7.0), depth).kept(1.0)


def _smoothstep(x: npt.ArrayLike) -> Float:
    u = np.clip(np.asarray(x, np.float64), 0.0, 1.0)
    return u * u * (3 - 2 * u)


def convective_dbz(total: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Reflectivity of the summed weight of cores, dBZ: 54 for one core of strength 1, 70 at most."""
    return 70.0 * (1.0 - np.exp(-1.5 * total))


def anvil_depth(total: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Optical depth of the summed weight of an anvil: nothing below 0.05, and more and more slowly to 6."""
    depth = np.maximum(total - 0.05, 0.0)
    return depth / (1.0 + depth / 6.0)


def opacity(depth: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Infrared emissivity of an optical depth: thin at the rim, then soon opaque."""
    return 1.0 - np.exp(-depth * (0.5 + 1.3 * depth))


def top_temperature(
    top: float,
    depth: npt.NDArray[np.floating],
    cold: npt.NDArray[np.floating],
    overshoot: npt.NDArray[np.floating],
) -> npt.NDArray[np.floating]:
    """Temperature of a cloud top, K: warmer where the anvil is thin, colder over its updrafts."""
    return np.maximum(top + 26.0 * np.exp(-0.75 * depth) - 6.0 * np.minimum(cold, 1.5) - overshoot, COLDEST_K)


def draw_storm(seed: int, identifier: int, *, kind: Kind, life: float, birth: float, place: tuple[float, float],
               wind: tuple[float, float], jet: float) -> Storm:  # fmt: skip
    """Draw the rest of a storm whose kind, life, birth and birthplace are known.

    ``wind`` carries storms (m/s), ``jet`` is the direction in which anvils stream, radians from east.
    """
    rng = np.random.default_rng([seed, 2, identifier])
    motion = (wind[0] + 2.0 * rng.standard_normal(), wind[1] + 2.0 * rng.standard_normal())
    speed = math.hypot(*motion) + 1e-6
    heading = (motion[0] / speed, motion[1] / speed)
    strength = 0.75 + 0.25 * rng.random()
    shear = 0.20 + 0.65 * rng.random()
    aloft = jet + 0.3 * rng.standard_normal()
    return Storm(
        id=identifier, kind=kind.name, birth=birth, life=life, latitude=place[0], longitude=place[1],
        motion=motion, shear=(shear * math.cos(aloft), shear * math.sin(aloft)),
        trail=(-kind.trailing * heading[0], -kind.trailing * heading[1]),
        top=float(222.0 - 16.0 * (strength - 0.75) / 0.25 + 2.0 * rng.standard_normal()),
        stretch=math.cos(math.radians(place[0])),
        pulses=_draw_pulses(rng, kind, life, heading, strength),
        texture=(int(rng.integers(1 << 16)), int(rng.integers(1 << 16))),
    )  # fmt: skip


def _draw_pulses(
    rng: np.random.Generator, kind: Kind, life: float, heading: tuple[float, float], strength: float
) -> Pulses:
    n = max(1, int(rng.poisson(kind.pulses_per_hour * 0.62 * life / 60.0)))
    birth = np.sort(rng.uniform(0.0, 0.62 * life, n))
    birth[0] = 0.0
    along_km, across_km = rng.uniform(*kind.along_km), rng.uniform(*kind.across_km)
    grown = 0.3 + 0.7 * _smoothstep(birth / (0.35 * life))
    if kind.name == "line":
        s = rng.uniform(-1.0, 1.0, n)
        along = along_km * s * grown
        # A bow: the middle runs ahead, the ends stay behind.
        across = across_km * rng.standard_normal(n) + 0.35 * along_km * grown * (0.5 - s**2)
        axis = (-heading[1], heading[0])
    else:
        along, across = along_km * rng.standard_normal(n) * grown, across_km * rng.standard_normal(n) * grown
        angle = rng.uniform(0.0, math.pi)
        axis = (math.cos(angle), math.sin(angle))
    forward = (axis[1], -axis[0])
    return Pulses(
        birth=birth,
        life=rng.uniform(32.0, 65.0, n),
        x=along * axis[0] + across * forward[0],
        y=along * axis[1] + across * forward[1],
        radius=rng.uniform(*kind.core_km, n),
        strength=strength * rng.uniform(*kind.strength, n),
        anvil=rng.uniform(*kind.anvil_km, n) * (0.75 + 0.35 * strength),
    )
