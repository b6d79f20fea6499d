"""Storm systems with known attributes, each seen in several frames over more than an hour, as GridRad files.

A system has its own kind, size, strength, cell scale and direction, drawn once. Its convective pulses live for about
half an hour and the pattern of its texture for an hour, so after 60 minutes little of the picture is the same; what
stays is what the system is like. Frames are 20 minutes apart; in each, the system lies up to 40 pixels off the middle
of its patch, at random, among stray cells that belong to no system, under noise of 0.8 dB a pixel and a calibration
error of 1 dB (standard deviations) a frame.

A scene is a mosaic of 4 x 4 patches, one system in each, on the lattice of GridRad V4.2; every mosaic has a day of its
own, so that days of the store are systems held out. The truth lies beside the files.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gridrad_cube import synthetic
from gridrad_cube.synthetic import (
    KINDS,
    Kind,
    RadarVolume,
    Storm,
    cut_tile,
    draw_storm,
    spectral_tile,
    storm_columns,
)

PATCH, SIDE, FRAMES, MINUTES = 256, 4, 6, 20
#: First pixel of every mosaic on the lattice of GridRad V4.2, 48 pixels per degree from 0 N and 0 E: its patches are
#: those into which a cube of GridRad is cut.
FIRST = (1280, -4608)
KM_PER_DEGREE = 111.195
#: Largest offset of a system from the middle of its patch, pixels.
SHIFT = 40
#: Kilometres a pixel, north and east, at 38 degrees.
SPACING = (KM_PER_DEGREE / 48, KM_PER_DEGREE / 48 * np.cos(np.radians(38)))
#: Noise of a pixel and calibration error of a frame, dB; stray cells of a frame.
NOISE_DB, CALIBRATION_DB, STRAYS = 0.8, 1.0, 2.0
#: Wavelengths of the textures, pixels: what is shorter than 8 is lost when fields are coarsened by 4.
WAVELENGTHS = np.geomspace(8, 48, 24)
START = np.datetime64("2020-01-01T18:00", "s")
#: What is known of every frame.
ATTRIBUTES = ("size_km", "root_area_40dbz_km", "log2_cell_scale_km")


@dataclass(frozen=True)
class System:
    """A storm, minutes of its life at the first frame, and the number of its texture's wavelength."""

    storm: Storm
    first: float
    texture: int


def draw_system(seed: int, number: int) -> System:
    """The system of this number: a line or a cluster with its own character."""
    rng = np.random.default_rng([seed, 100, number])
    line = rng.random() < 0.35
    along = rng.uniform(50, 130) if line else np.exp(rng.uniform(np.log(15), np.log(65)))
    across = rng.uniform(4, 10) if line else along * rng.uniform(0.3, 1.0)
    core, anvil, strength = (
        np.exp(rng.uniform(np.log(4), np.log(10))),
        rng.uniform(12, 30),
        rng.uniform(0.55, 1.25),
    )
    kind = Kind(
        name="line" if line else "cluster", share=0.0, life_minutes=(480, 720),
        pulses_per_hour=rng.uniform(16, 40) if line else rng.uniform(8, 32), along_km=(along, along),
        across_km=(across, across), strength=(0.85 * strength, 1.15 * strength), core_km=(0.85 * core, 1.15 * core),
        anvil_km=(0.9 * anvil, 1.1 * anvil), trailing=rng.uniform(0.0, 0.3),
    )  # fmt: skip
    life, direction = rng.uniform(*kind.life_minutes), rng.uniform(-np.pi, np.pi)
    wind = (12 * np.cos(direction), 12 * np.sin(direction))
    storm = draw_storm(
        seed,
        number,
        kind=kind,
        life=life,
        birth=0.0,
        position=(38.0, 0.0),
        wind=wind,
        jet=rng.uniform(-np.pi, np.pi),
    )
    last = MINUTES * (FRAMES - 1)
    return System(storm, rng.uniform(0.25 * life, 0.75 * life - last), int(rng.integers(len(WAVELENGTHS))))


@functools.lru_cache(maxsize=len(WAVELENGTHS))
def _tiles(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two textures of one wavelength."""
    length = float(WAVELENGTHS[number])
    band = {"slope": 0.0, "longest": 1.5 * length, "shortest": length / 2.5}
    one, other = (spectral_tile([7, number, k], (512, 512), **band) for k in (0, 1))
    return one, other


def _texture(system: System, minutes: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The noise of a system at an age, on pixels from its centre: another pattern of the same scale an hour later."""
    place = (rows + system.storm.texture[0], columns + system.storm.texture[1])
    angle = np.pi / 2 * minutes / 60
    one, other = (cut_tile(tile, *place) for tile in _tiles(system.texture))
    return np.asarray(np.cos(angle) * one + np.sin(angle) * other)


def draw_frame(seed: int, number: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Composite reflectivity of one frame of one system, dBZ (PATCH, PATCH), NaN without echo; and its attributes."""
    system = draw_system(seed, number)
    rng = np.random.default_rng([seed, 101, number, frame])
    minutes = system.first + MINUTES * frame
    away = rng.integers(-SHIFT, SHIFT + 1, 2)
    echo = _echo(system, minutes, away)
    truth = _attributes(system, minutes, echo)
    for _ in range(rng.poisson(STRAYS)):
        life = rng.uniform(*KINDS[0].life_minutes)
        where = {"birth": 0.0, "position": (38.0, 0.0), "wind": (8.0, 0.0), "jet": 0.0}
        cell = draw_storm(seed, int(rng.integers(1 << 62)), kind=KINDS[0], life=life, **where)
        stray = System(cell, 0.0, int(rng.integers(len(WAVELENGTHS))))
        place = rng.integers(-PATCH // 2, PATCH // 2, 2)
        echo = np.maximum(echo, _echo(stray, life * rng.uniform(0.2, 0.8), place))
    noise = NOISE_DB * rng.standard_normal(echo.shape, np.float32) + CALIBRATION_DB * rng.standard_normal()
    return np.where(echo > 0, echo + noise, np.nan).astype(np.float32), truth


def _echo(system: System, minutes: float, away: np.ndarray) -> np.ndarray:
    """Noise-free composite of one storm, 0 without echo."""
    rows, columns = (np.arange(PATCH) - PATCH // 2 - int(offset) for offset in away)
    texture = _texture(system, minutes, rows, columns).astype(np.float32)
    axes = (rows * SPACING[0], columns * SPACING[1])
    convective, stratiform, aloft, _ = storm_columns(system.storm, 60 * minutes, axes, texture, 1.6 * texture)
    return np.maximum(np.maximum(convective, stratiform), aloft)


def _attributes(system: System, minutes: float, echo: np.ndarray) -> np.ndarray:
    """`ATTRIBUTES` of a frame: root mean square distance of its rain, root of the area of 40 dBZ, texture's scale."""
    parts = (system.storm.cores(60 * minutes), system.storm.stratiform(60 * minutes))
    x, y, radius, weight = (
        np.concatenate([getattr(b, n) for b in parts]) for n in ("x", "y", "radius", "weight")
    )
    share = weight * radius**2 / max(float(weight @ radius**2), 1e-9)
    spread = share @ ((x - share @ x) ** 2 + (y - share @ y) ** 2 + 2 * radius**2)
    area = (echo >= 40).sum() * SPACING[0] * SPACING[1]
    return np.array([np.sqrt(spread), np.sqrt(area), np.log2(WAVELENGTHS[system.texture] * SPACING[0])])


def write_mosaic(out: Path, mosaic: int, seed: int = 0) -> None:
    """Write the files of one mosaic, and the truth about its systems; what is there already stays."""
    shape = (SIDE * PATCH, SIDE * PATCH)
    latitude, longitude = ((first + np.arange(SIDE * PATCH) + 0.5) / 48 for first in FIRST)
    kept = _truth_path(out, mosaic)
    if kept.exists():
        return
    truth = np.empty((SIDE, SIDE, FRAMES, len(ATTRIBUTES)))
    for frame in range(FRAMES):
        scene = np.empty(shape, np.float32)
        for row, column in np.ndindex(SIDE, SIDE):
            at = (slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
            number = (mosaic * SIDE + row) * SIDE + column
            scene[at], truth[row, column, frame] = draw_frame(seed, number, frame)
        time = frame_time(mosaic, frame)
        looks = np.full((1, *scene.shape), 8, np.int8)
        index = np.flatnonzero(np.isfinite(scene))
        volume = RadarVolume(
            index=index, fields={"Reflectivity": scene.ravel()[index]},
            weights={"Reflectivity": np.full(index.size, 8, np.float32)}, observations=looks, echoes=looks,
        )  # fmt: skip
        synthetic.write_gridrad(
            out / "scenes" / f"nexrad_3d_v4_2_{time.item():%Y%m%dT%H%M%S}Z.nc", version="v4_2", time=time,
            axes=(np.array([2.0]), latitude, longitude), volume=volume,
        )  # fmt: skip
    np.save(kept, truth)


def _truth_path(out: Path, mosaic: int) -> Path:
    return out / "scenes" / f"truth_{mosaic:03d}.npy"


def frame_time(mosaic: int, frame: int) -> np.datetime64:
    """When a frame of a mosaic was seen, UTC."""
    return START + np.timedelta64(mosaic, "D") + np.timedelta64(MINUTES * frame, "m")


def read_truth(out: Path, mosaics: int) -> np.ndarray:
    """Attributes of all frames, (mosaic, row from the south, column, frame, `ATTRIBUTES`)."""
    return np.stack([np.load(_truth_path(out, mosaic)) for mosaic in range(mosaics)])
