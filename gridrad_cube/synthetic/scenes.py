"""Write many scenes, one file each, with plants and faults, and the truth about them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gridrad_cube.schema import SchemaError
from gridrad_cube.synthetic.faults import PlantedFault, plant_fault
from gridrad_cube.synthetic.gridrad import FIELDS, write_gridrad_dense, write_gridrad_index
from gridrad_cube.synthetic.larc_goes import SCAN_OFFSET_SECONDS, write_larc_goes
from gridrad_cube.synthetic.radar import RadarNetwork, RadarVolume, render_radar
from gridrad_cube.synthetic.runs import CONUS_SHAPE, PLANT_DTYPE, Format, Run, make_run
from gridrad_cube.synthetic.satellite import parallax_correction, render_satellite, tropopause_temperature
from gridrad_cube.synthetic.weather import seconds_of

#: Name of the file that tells what was planted.
TRUTH_NAME = "truth.json"


def write_scenes(out: str | os.PathLike[str], **request: Any) -> list[Path]:
    """Write scenes and return their paths in order of time: `iter_scenes` with the same arguments, to its end."""
    return list(iter_scenes(out, **request))


def iter_scenes(
    out: str | os.PathLike[str], *, format: str = "larc-goes", scenes: int = 6,
    shape: tuple[int, int] | None = None, seed: int = 0, start: str | np.datetime64 | None = None,
    interval: str | np.timedelta64 | datetime.timedelta | None = None, center: tuple[float, float] | None = None,
    faults: Sequence[str] = (), plants: int = 0, plant_noise: float = 0.3, density: float | None = None,
    deflate: int = 1, night_visible: str = "absent", shuffle_index: bool = False, companions: bool = False,
) -> Iterator[Path]:  # fmt: skip
    """Write scenes one after the other, giving each path as soon as its file is complete.

    Every scene is a function of the arguments alone, whichever were written before. After the last one,
    ``truth.json`` in ``out`` tells what was planted where.

    Parameters
    ----------
    out
        Folder; files go into sub-folders as in the archives.
    format
        One of `FORMATS`.
    scenes
        How many.
    shape
        Rows and columns; smaller grids lie on the same lattice about the middle of the full one, or ``center``.
    seed
        Same seed, same files.
    start, interval
        Time of the first scene, UTC, and the step: a timedelta or a text such as ``"10min"``.
    center
        Latitude and longitude of the middle of the grid.
    faults
        Names of `FAULTS`; each spoils one scene, chosen by the seed.
    plants
        How often the complex is planted; `plant_table` says where.
    plant_noise
        How much all plants but the first differ from it: see `Plant`.
    density
        Factor on the number of storms; by default 1, up to 2.5 on small grids.
    deflate
        Compression level, 0 for none.
    night_visible
        LaRC scenes without any sun: ``"absent"`` leaves the variable out, ``"fill"`` writes missing, ``"zero"``
        writes 0. Where only a part of a scene is dark, that part is missing (0 with ``"zero"``).
    shuffle_index
        Sparse GridRad: list the bins in random order.
    companions
        LaRC scenes: write the temperature of the tropopause and the correction for parallax too. (Numbers of
        overshooting tops, and GridRad's counts and weights, are always there.)

    Raises
    ------
    SchemaError
        If the request makes no sense; before anything is written.
    """
    if night_visible not in ("absent", "fill", "zero"):
        raise SchemaError(f"night_visible: got {night_visible!r}; expected absent, fill or zero")
    run = make_run(
        format=format, scenes=scenes, shape=shape, seed=seed, start=start, interval=interval, center=center,
        faults=faults, plants=plants, plant_noise=plant_noise, density=density,
    )  # fmt: skip
    return _iterate(run, Path(out), deflate, night_visible, shuffle_index, companions)


def _iterate(
    run: Run, out: Path, deflate: int, night_visible: str, shuffle_index: bool, companions: bool
) -> Iterator[Path]:
    network = None
    if run.format.altitudes:
        network = RadarNetwork(run.weather, run.latitude, run.longitude, np.array(run.format.altitudes))
    truth = []
    for scene, time in enumerate(run.times):
        path = out / scene_name(run.format, time, run.latitude.size == CONUS_SHAPE[0])
        if network is None:
            _write_larc(run, path, time, deflate, night_visible, companions)
        else:
            _write_gridrad(run, network, path, time, deflate, shuffle_index)
        planted = None
        if scene in run.faults:
            planted = plant_fault(path, run.faults[scene], seed=run.seed + scene)
        truth.append((path.relative_to(out), time, planted))
        if scene == len(run.times) - 1:
            _write_truth(run, out, truth)
        yield path


def scene_name(spec: Format, time: np.datetime64, is_conus: bool = False) -> Path:
    """Path of a scene's file below the output folder, as the archives name it."""
    stamp = time.astype("datetime64[s]").item()
    month, day = stamp.strftime("%Y%m"), stamp.strftime("%Y/%Y%m%d")
    if spec.name == "larc-goes":
        return Path(month, f"NASALARC_GOES16_CONVECTION_DETECTION_{stamp:%Y%m%d_%H%M}.nc")
    if spec.name == "gridrad-v3.1":
        return Path(month, f"nexrad_3d_v3_1_{stamp:%Y%m%dT%H%M%S}Z.nc")
    if spec.name == "gridrad-v4.1":
        return Path(day, f"nexrad_3d_4_1_{stamp:%Y%m%dT%H%M%S}Z.nc")
    # GridRad-Severe files a convective day, 12 to 12 UTC, in the folder of its first date.
    convective = (stamp - datetime.timedelta(hours=12)).strftime("%Y/%Y%m%d")
    return Path(month if is_conus else f"volumes/{convective}", f"nexrad_3d_v4_2_{stamp:%Y%m%dT%H%M%S}Z.nc")


def _write_larc(
    run: Run, path: Path, time: np.datetime64, deflate: int, night_visible: str, companions: bool
) -> None:
    image = render_satellite(run.weather, time, run.latitude, run.longitude)
    visible = image.visible
    if night_visible == "zero":
        dark = 0.0 * image.infrared
        visible = dark if visible is None else np.where(np.isnan(visible), dark, visible)
    elif night_visible == "fill" and visible is None:
        visible = np.full(image.infrared.shape, np.nan, np.float32)
    lines = dropped_lines(run.seed, time, run.latitude.size)
    for picture in (image.infrared, visible):
        if picture is not None:
            picture[lines] = np.nan
    image.overshoots[lines] = 0
    more: dict[str, Any] = {}
    if companions:
        more["tropopause"] = tropopause_temperature(time, run.latitude, run.longitude)
        more["parallax"] = parallax_correction(image.infrared, run.latitude, run.longitude)
    write_larc_goes(
        path, time=time + np.timedelta64(SCAN_OFFSET_SECONDS, "s"), latitude=run.latitude, longitude=run.longitude,
        ir=image.infrared, visible=visible, overshoots=image.overshoots, deflate=deflate, **more,
    )  # fmt: skip


def dropped_lines(seed: int, time: np.datetime64, lines: int) -> slice:
    """Lines that the scan of this time lost: a few in every third scene, else none."""
    rng = np.random.default_rng([seed, 42, int(seconds_of(time)) % 2**32])
    if rng.random() > 1 / 3:
        return slice(0, 0)
    height = min(int(rng.integers(1, 7)), max(lines // 50, 1))
    start = int(rng.integers(lines - height + 1))
    return slice(start, start + height)


def _write_gridrad(
    run: Run, network: RadarNetwork, path: Path, time: np.datetime64, deflate: int, shuffle_index: bool
) -> None:
    volume = render_radar(run.weather, time, network, moments=run.format.name != "gridrad-v3.1")
    if run.format.name == "gridrad-v4.1":
        write_gridrad_dense(
            path, time=time, latitude=run.latitude, longitude=run.longitude, altitude_km=network.altitude_km,
            fields=_dense(volume), deflate=deflate,
        )  # fmt: skip
        return
    fields, weights, index = volume.fields, volume.weights, volume.index
    if shuffle_index:
        order = np.random.default_rng([run.seed, 43, int(seconds_of(time)) % 2**32]).permutation(index.size)
        index = index[order]
        fields, weights = ({name: v[order] for name, v in group.items()} for group in (fields, weights))
    version = "v3_1" if run.format.name == "gridrad-v3.1" else "v4_2"
    write_gridrad_index(
        path, version=version, time=time, latitude=run.latitude, longitude=run.longitude,
        altitude_km=network.altitude_km, index=index, fields=fields, weights=weights,
        nradobs=volume.observations, nradecho=volume.echoes, sources=_sources(network, version, time),
        deflate=deflate,
    )  # fmt: skip


def _dense(volume: RadarVolume) -> dict[str, np.ndarray]:
    out = {}
    for name in FIELDS:
        dense = np.full(volume.observations.shape, np.nan, np.float32)
        dense.ravel()[volume.index] = volume.fields[name]
        out[name] = dense
    return out


def _sources(network: RadarNetwork, version: str, time: np.datetime64) -> list[str]:
    stamp = (time - np.timedelta64(90, "s")).astype("datetime64[s]").item().strftime("%Y%m%d_%H%M%S")
    names = [f"{site.name}{stamp}_V06" for site in network.sites]
    if version == "v3_1":
        return [f"{name}.gz" for name in names]
    return [
        f"{name}_{elevation:04.1f}"
        for name in names
        for elevation in (0.5, 0.9, 1.3, 1.8, 2.4, 4.0, 8.0, 19.5)
    ]


def _write_truth(run: Run, out: Path, scenes: list[tuple[Path, np.datetime64, PlantedFault | None]]) -> None:
    def plain(planted: PlantedFault) -> dict[str, object]:
        fields = dataclasses.asdict(planted)
        value = fields["value"]
        fields["value"] = str(value) if value is not None and not math.isfinite(value) else value
        return {k: v for k, v in fields.items() if k != "path"}

    table = {
        "format": run.format.name,
        "seed": run.seed,
        "density": run.weather.density,
        "shape": [run.latitude.size, run.longitude.size],
        "scenes": [
            {
                "path": path.as_posix(),
                "time": f"{time}Z",
                "fault": None if planted is None else plain(planted),
            }
            for path, time, planted in scenes
        ],
        "plants": [
            {
                name: f"{row[name]}Z" if name == "time" else row[name].item()
                for name in PLANT_DTYPE.names or ()
            }
            for row in run.plants
        ],
    }
    (out / TRUTH_NAME).write_text(json.dumps(table, indent=1) + "\n")


def read_truth(out: str | os.PathLike[str]) -> dict[str, object]:
    """Read what `write_scenes` planted in a folder: format, seed, scenes with their faults, plants."""
    truth: dict[str, object] = json.loads(Path(out, TRUTH_NAME).read_text())
    return truth
