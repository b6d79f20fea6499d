"""Real weather as windows of a cube: days of infrared, or events of radar, in parts that fit, choose and test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import gridrad_cube
from gridrad_cube import synthetic
from gridrad_cube.evaluation import CHOOSE, FIT, TEST
from gridrad_cube.geometry import wrap_longitude
from gridrad_cube.schema import Packing, Recipe, TileSpec
from gridrad_cube.store import PatchReader, open_embeddings, open_grid, open_packed

#: The part of another year or region: nothing is fitted on it.
FAR = 3
PARTS = {FIT: "fit", CHOOSE: "choose", TEST: "test", FAR: "far"}
#: Edge of a window, by how much the second grid is moved, and edge of the blocks that are averaged, pixels.
PATCH, MOVE, COARSEN = 128, 32, 2
#: Share of a window that must be observed.
OBSERVED = 0.5
#: Names of the cube of all windows, and of its descriptor.
WINDOWS, DESCRIPTOR = "windows.zarr", "windows-descriptor.zarr"
RAIN = ("mean rain", "share above 1 mm/h", "99th percentile")
SECOND = np.timedelta64(1, "s")


@dataclass(frozen=True)
class Kind:
    """One kind of data.

    ``step``, ``leads``, ``block`` and ``forecast`` are in minutes: between frames, of retrieval, of parts of days or
    events for intervals, of forecasts. ``wet`` is the least share of rain in a query.
    """

    name: str
    title: str
    files: str
    channel: str
    step: int
    leads: tuple[int, ...]
    block: int
    wet: float = 0.0
    labels: str | None = None
    forecast: int = 180

    def sources(self, data: Path) -> list[Path]:
        """Its files in a folder of data."""
        return sorted((data / self.name).glob(self.files))


CLOUDS = Kind(
    "clouds", "Infrared", "mergir_*.nc", "ir_brightness_temperature", step=60, leads=(60, 180, 360), block=360,
    labels="imerg_*.nc",
)  # fmt: skip
RADAR = Kind("radar", "Radar", "*.nc", "precipitation_rate", step=10, leads=(30, 60), block=60, wet=0.05)
KINDS = {kind.name: kind for kind in (CLOUDS, RADAR)}


def write_frames(kind: Kind, data: Path, out: Path, quick: bool) -> None:
    """One file a time step, as readers take them, in a folder for each source; reflectivity becomes rain rate.

    ``quick`` takes the last three days, or events.
    """
    sources, first = kind.sources(data), np.datetime64("0000")
    if quick:
        sources = sorted(sources, key=lambda path: days_of(path)[0])[-3:]
        first = first if kind is RADAR else days_of(sources[-1])[-3:][0]
    for path in sources:
        folder, scratch = out / path.stem, out / f".{path.stem}"
        if folder.exists():
            continue
        scratch.mkdir(parents=True, exist_ok=True)
        with xr.open_dataset(path, mask_and_scale=False) as source:
            time = source["time"].values.astype("M8[s]")
            for i in np.flatnonzero((time.astype(np.int64) % (60 * kind.step) == 0) & (time >= first)):
                frame = source.isel(time=[i])
                if kind is RADAR and "reflectivity" in frame:
                    frame = _rain_rate(frame)
                frame.attrs.pop("frames", None)
                compress = {kind.channel: {"zlib": True, "complevel": 1}}
                frame.to_netcdf(scratch / f"{time[i].astype(np.int64)}.nc", encoding=compress)
        scratch.rename(folder)


def days_of(path: Path) -> np.ndarray:
    """Days of the frames of a file, in order."""
    with xr.open_dataset(path) as source:
        return np.unique(source["time"].values.astype("M8[D]"))


def _rain_rate(frame: xr.Dataset) -> xr.Dataset:
    """Reflectivity as rain rate by Z = 200 R^1.6 (Marshall and Palmer 1948): none below 5 dBZ, hail cut at 53 dBZ."""
    dbz = xr.decode_cf(frame)["reflectivity"]
    rate = (10 ** (dbz.clip(max=53) / 10) / 200) ** (1 / 1.6)
    codes = (100 * rate.where(dbz >= 5, 0.0)).round().where(dbz.notnull(), 65535).astype(np.uint16)
    packing = {"scale_factor": 0.01, "add_offset": 0.0, "_FillValue": np.uint16(65535)}
    codes.attrs, codes.encoding = {"standard_name": "rainfall_rate", "units": "mm h-1", **packing}, {}
    return frame.drop_vars("reflectivity").assign(precipitation_rate=codes)


def synthesize(out: Path) -> Path:
    """A little synthetic infrared of three days, and rain made of it, as a folder of data."""
    frames = []
    for day in (1, 2, 3):
        start = f"2020-06-0{day}T19:00"
        for path in synthetic.write_scenes(
            out / "scenes", scenes=4, shape=(416, 416), start=start, interval="1h"
        ):
            scene = gridrad_cube.read_scene(path, channels=(CLOUDS.channel,))
            codes = scene[CLOUDS.channel]
            kelvin = Packing.from_attributes(codes.attrs, codes.dtype).decode(codes.values)
            axes = {name: scene[name].values for name in ("latitude", "longitude")}
            time = scene["time"].values.astype("M8[h]").astype("M8[ns]")
            frames.append(xr.DataArray(kelvin, dims=("latitude", "longitude"), coords={**axes, "time": time}))
    kelvin = xr.concat(frames, "time").assign_attrs(units="K", standard_name="toa_brightness_temperature")
    rain = (0.1 * (240.0 - kelvin)).clip(min=0.0)[:, ::3, ::3].assign_attrs(units="mm h-1")
    (out / "clouds").mkdir(parents=True)
    for name, channel, array in (
        ("mergir", CLOUDS.channel, kelvin),
        ("imerg", "precipitation_rate", rain),
    ):
        packing = {"dtype": "uint16", "scale_factor": 0.01, "_FillValue": 65535}
        file = out / "clouds" / f"{name}_synthetic.nc"
        array.rename(channel).to_netcdf(file, encoding={channel: packing})
    return out


@dataclass(frozen=True)
class Windows:
    """Windows of the frames of one folder, or of two: a grid, and the same grid moved, (frames, 2, rows, cols).

    ``block`` names the day or event of a frame; ``observed`` is whether half of a window is; ``wet`` and ``storm`` are
    shares of the pixels of the windows that are not moved, and ``rain`` their labels (frames, rows, cols, `RAIN`), NaN
    without a frame.
    """

    kind: Kind
    folders: tuple[Path, ...]
    time: np.ndarray
    grid: np.ndarray
    block: np.ndarray
    part: np.ndarray
    observed: np.ndarray
    wet: np.ndarray
    storm: np.ndarray
    rain: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.observed.shape[2], self.observed.shape[3]

    @property
    def fits(self) -> np.ndarray:
        """Windows to fit on, (frames, 2, rows, cols)."""
        return self.observed & (self.part == FIT)[:, None, None, None]

    def later(self, minutes: int) -> np.ndarray:
        """The frame of the same grid at a later time, -1 without a frame."""
        known = {pair: i for i, pair in enumerate(zip(self.grid.tolist(), self.time.tolist(), strict=True))}
        times = (self.time + np.timedelta64(minutes, "m")).tolist()
        return np.array([known.get(pair, -1) for pair in zip(self.grid.tolist(), times, strict=True)])

    def join(self, other: Windows) -> Windows:
        """Both, the frames of the other after those of this one."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, mine in values.items():
            if isinstance(mine, np.ndarray):
                values[name] = join([mine, getattr(other, name)])
        return Windows(**values | {"folders": self.folders + other.folders})

    def gather(self, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        """Vectors (frames, 2, rows, cols, features) of each folder one after the other; NaN where not observed."""
        vectors = join([read(folder) for folder in self.folders])
        return np.where(self.observed[..., None], vectors, np.float32(np.nan))


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one after the other, padded to one shape."""
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    fill = {"f": np.nan, "b": False}.get(parts[0].dtype.kind)
    padded = [
        np.pad(part, [(0, 0), *((0, n - m) for n, m in zip(shape, part.shape[1:], strict=True))], constant_values=fill)
        if part.ndim > 1 else part
        for part in parts
    ]  # fmt: skip
    return np.concatenate(padded)


def build(kind: Kind, data: Path, folder: Path, *, quick: bool = False) -> Windows:
    """Cube, descriptor and labels of a folder of data."""
    made_of = [f"{p.name} {p.stat().st_size} {quick}" for p in kind.sources(data)]
    mark = folder / "made_of.json"
    if mark.exists() and json.loads(mark.read_text()) != made_of:
        raise SystemExit(f"{folder}: is made of other data; pass another --folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(made_of))
    write_frames(kind, data, folder / "frames", quick)
    store = folder / WINDOWS
    preprocess(kind, folder, store, grid_tiles(folder / "frames"))
    gridrad_cube.embed(store, out=folder / DESCRIPTOR, model="descriptor", coarsen=COARSEN)
    cube, found = open_packed(store), open_embeddings(folder / DESCRIPTOR)
    observed = by_frame(cube, np.nan_to_num(found["valid_fraction"].values[:, 0]) >= OBSERVED)
    time, source, grid = (
        by_frame(cube, np.array(cube[name].values.tolist()))[:, 0] for name in ("time", "source", "grid")
    )
    time = time.astype("M8[ns]").astype("M8[s]")
    events = np.array([name.split("/")[-2] for name in source])
    block = time.astype("M8[D]").astype(str) if kind is CLOUDS else events
    shape = observed.shape[2:]
    return Windows(
        kind, (folder,), time, grid, block, np.full(len(time), FAR), observed, *pixel_shares(kind, cube, shape),
        read_rain(kind, data, cube, time, grid, shape),
    )  # fmt: skip


def preprocess(kind: Kind, folder: Path, store: Path, tile: TileSpec) -> None:
    """Make a cube of the frames of a folder."""
    recipe = Recipe(channels=(kind.channel,), tile=tile)
    report = gridrad_cube.preprocess(folder / "frames", store, recipe=recipe)
    assert not report.failed, report


def grid_tiles(frames: Path) -> TileSpec:
    """Two crops of each scene: the grid of windows, and the moved grid, as long as half of a window is in the scene."""
    edges = np.zeros(2, int)
    for path in {path.parent: path for path in frames.glob("*/*.nc")}.values():
        with xr.open_dataset(path) as frame:
            edges = np.maximum(edges, next(v for v in frame.data_vars.values() if v.ndim == 3).shape[1:])
    rows, cols = ((edges + PATCH // 2 - MOVE) // PATCH).tolist()
    offsets = ((0, 0), (MOVE, MOVE))
    return TileSpec(patch=PATCH, crop=(rows * PATCH, cols * PATCH), placement="list", offsets=offsets)


def crops_of(cube: xr.Dataset) -> np.ndarray:
    """The crops of each frame: of the grid, and of the moved grid, (frames, 2)."""
    scene = np.array(
        [f"{a}:{b}" for a, b in zip(*(cube[n].values.tolist() for n in ("source", "scene")), strict=True)]
    )
    return np.lexsort((cube["y_origin"].values, scene)).reshape(-1, 2)


def by_frame(cube: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Values of crops as those of frames, (frames, 2, ...)."""
    return np.asarray(values[crops_of(cube)])


def planes(kind: Kind, cube: xr.Dataset) -> Iterator[np.ndarray]:
    """The values of each frame by windows, (2, rows, PATCH, cols, PATCH); NaN where not observed."""
    reader = PatchReader(cube.encoding["source"])
    packing = Packing.from_attributes(cube[kind.channel].attrs, cube[kind.channel].dtype)
    for crops in crops_of(cube):
        codes = np.stack(
            [reader.read_window(kind.channel, (int(c), slice(None), slice(None))) for c in crops]
        )
        yield packing.decode(codes).reshape(2, codes.shape[1] // PATCH, PATCH, -1, PATCH)


def pixel_shares(kind: Kind, cube: xr.Dataset, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the pixels of each window that is not moved with rain (1 in the infrared), and with storm."""
    wet, storm = np.empty((2, cube.sizes["crop"] // 2, *shape))
    for frame, (cells, _) in enumerate(planes(kind, cube)):
        count = np.maximum(np.isfinite(cells).sum(axis=(1, 3)), 1)
        wet[frame] = 1.0 if kind is CLOUDS else (cells >= 0.1).sum(axis=(1, 3)) / count
        storm[frame] = (cells < 221.0 if kind is CLOUDS else cells > 10.0).sum(axis=(1, 3)) / count
    return wet, storm


def read_rain(
    kind: Kind, data: Path, cube: xr.Dataset, time: np.ndarray, grids: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Roots of the rain of the windows that are not moved, from labels: (frames, rows, cols, `RAIN`)."""
    out = np.full((len(time), *shape, len(RAIN)), np.nan)
    for path in sorted((data / kind.name).glob(kind.labels)) if kind.labels else ():
        with xr.open_dataset(path) as labels:
            frame_of = {t: i for i, t in enumerate(labels["time"].values.astype("M8[s]").tolist())}
            boxes = {grid: list(label_boxes(cube, grid, labels, shape)) for grid in set(grids)}
            for frame, (at, grid) in enumerate(zip(time.tolist(), grids, strict=True)):
                if at in frame_of:
                    rate = labels["precipitation_rate"][frame_of[at]].values
                    for row, col, box in boxes[grid]:
                        values = rate[box]
                        known = values[np.isfinite(values)]
                        if known.size >= OBSERVED * values.size:
                            out[frame, row, col] = known.mean(), (known > 1).mean(), np.quantile(known, 0.99)
    return np.sqrt(out)


def label_boxes(cube: xr.Dataset, grid: str, labels: xr.Dataset, shape: tuple[int, int]) -> Iterator[Any]:
    """Row and col of each window that the labels cover, and the index of these labels."""
    source = open_grid(cube.encoding["source"], grid)
    edges = []  # south, north, or west, east, of each window
    for name, count in zip(("latitude", "longitude"), shape, strict=True):
        axis = source[name].values
        assert axis.ndim == 1, f"{grid}: got {name} on {source[name].dims}; expected one axis"
        pieces = [axis[PATCH * i : PATCH * (i + 1)] for i in range(count)]
        edges.append([(p.min(), p.max()) if p.size else None for p in pieces])
    for row, col in np.ndindex(shape):
        index = []
        for name, edge in (("latitude", edges[0][row]), ("longitude", edges[1][col])):
            axis = labels[name].values
            axis = wrap_longitude(axis) if name == "longitude" else axis
            if edge is not None and axis.min() - 0.1 <= edge[0] and edge[1] <= axis.max() + 0.1:
                index.append(np.flatnonzero((axis >= edge[0]) & (axis <= edge[1])))
        if len(index) == 2 and all(map(len, index)):
            yield row, col, np.ix_(*index)


def divide(windows: Windows, choose: Sequence[str], test: Sequence[str]) -> Windows:
    """Put days or events into parts: those named, or the last two (of three the last) and the one before.

    Names that begin with a year are days, others are events: one list names both.
    """
    first = {str(name): windows.time[windows.block == name].min() for name in np.unique(windows.block)}
    names = sorted(first, key=lambda name: (first[name], name))
    days = windows.kind is CLOUDS
    choose, test = ([n for n in given if n[:4].isdigit() == days] for given in (choose, test))
    if unknown := {*choose, *test} - set(names):
        raise SystemExit(f"{windows.kind.name}: has no {sorted(unknown)}; expected some of {names}")
    if both := sorted({*choose} & {*test}):
        raise SystemExit(f"{windows.kind.name}: got {both} to choose and to test; expected each in one part")
    free = [n for n in names if n not in choose]
    test = [n for n in free if n in test] or (free[-2:] if len(names) > 3 else free[-1:])
    rest = [n for n in names if n not in test]
    before = [n for n in rest if first[n] < first[test[0]]] or rest
    choose = [n for n in rest if n in choose] or before[-1:]
    part = np.full(len(windows.time), FIT)
    part[np.isin(windows.block, choose)] = CHOOSE
    part[np.isin(windows.block, test)] = TEST
    if len(np.unique(part)) < 3:
        raise SystemExit(
            f"{windows.kind.name}: got {names}; expected at least one to fit, to choose and to test"
        )
    return replace(windows, part=part)


def fit_ranges(windows: Windows) -> list[tuple[str, str]]:
    """Ranges of time of the frames that fit, as training and the readout take them."""
    near = windows.part != FAR
    order = np.argsort(windows.time[near], kind="stable")
    fits, time = (windows.part[near] == FIT)[order], windows.time[near][order]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], fits, [False]]).astype(int))).reshape(-1, 2)
    held_out = time[~fits]
    for start, stop in edges:
        if ((held_out >= time[start]) & (held_out <= time[stop - 1])).any():
            raise SystemExit(
                f"{windows.kind.name}: a frame that fits and one that does not have the time {time[start]}"
            )
    return [(str(time[start]), str(time[stop - 1] + SECOND)) for start, stop in edges]
