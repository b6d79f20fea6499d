"""Where the windows of a crop lie: the cube's own patches, or overlapping ones at a smaller stride.

Windows at a stride that divides the patch are the patches of several shifted tilings. Each of these is cut and
assessed by the very functions that made the cube, so an overlapping window has the flags and the position
that a cube cut there would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from gridrad_cube import quality, tiling
from gridrad_cube.geometry import solar_zenith_angle
from gridrad_cube.schema import TIME_FILL, Flag, QualitySpec, SchemaError, build_spec
from gridrad_cube.selection import Label
from gridrad_cube.store import COORDINATES, open_grid

#: Coordinates of patches that cutting anew gives; others vary smoothly and are taken between patches.
_CUT = {"latitude", "longitude", "solar_zenith_angle", "solar_zenith_angle_maximum"}


class Lattice:
    """Windows of ``patch`` pixels, ``stride`` apart, in every crop of a cube.

    Attributes
    ----------
    patches
        Rows and columns of the cube's patches.
    cells
        Rows and columns of windows.

    Raises
    ------
    SchemaError
        If the stride does not divide the patch.
    """

    def __init__(self, dataset: xr.Dataset, info: Mapping[str, Any], stride: int | None) -> None:
        self.dataset, self.info = dataset, info
        self.patch = int(info["patch"])
        self.stride = self.patch if stride is None else int(stride)
        if self.stride < 1 or self.patch % self.stride:
            raise SchemaError(
                f"stride: got {stride}; expected a divisor of the patch, {self.patch} px, such as {self.patch // 2}"
            )
        self.shape = (int(info["crop"][0]), int(info["crop"][1]))
        self.patches = (self.shape[0] // self.patch, self.shape[1] // self.patch)
        rows, cols = ((edge - self.patch) // self.stride + 1 for edge in self.shape)
        self.cells = (rows, cols)
        self._grids: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def coordinates(self, rows: range, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Coordinates of these crops by name, as they are stored (times as int64 seconds)."""
        out = {}
        block = self.dataset.isel(crop=slice(rows.start, rows.stop))
        fine = self.stride != self.patch
        for name in names:
            values = block[name].values
            if values.dtype.kind == "M":
                values = values.astype("datetime64[s]").astype(np.int64)
            if fine and COORDINATES[name][0][1:] == ("row",):
                values = _between(values, self.patch // self.stride, self.cells[0])
            if fine and COORDINATES[name][0][1:] == ("row", "col") and name not in _CUT:
                values = _overlapped(values, self.patch // self.stride)
            out[name] = values
        if fine:
            shifts = [self._shifts(crop) for crop in rows]
            for name in _CUT & set(names):
                parts = [self._woven({at: d[name].values for at, d in s.items()}) for s in shifts]
                out[name] = np.stack(parts).astype(COORDINATES[name][1])
        return out

    def assess(
        self, rows: range, members: Sequence[Label], plane: Callable[[int, int], np.ndarray]
    ) -> list[list[np.ndarray]]:
        """Flags and valid fractions of overlapping windows: for each, one array (crop, row, col) a channel.

        Parameters
        ----------
        plane
            Gives the packed pixels (y, x) of a crop and a channel's number.
        """
        flags, fractions = (
            [np.full((len(rows), *self.cells), fill) for _ in members]
            for fill in (np.uint16(Flag.unreadable), np.float32(np.nan))
        )
        for i, crop in enumerate(rows):
            shifts = self._shifts(crop)
            for number, member in enumerate(members if shifts else ()):
                inherited = self._inherited(crop, member)
                if (inherited & int(Flag.channel_absent)).all():
                    padding = self._woven({at: cut["padding"].values for at, cut in shifts.items()})
                    flags[number][i] = inherited | np.where(padding, np.uint16(Flag.padding), np.uint16(0))
                    continue
                pixels = plane(crop, number)
                found = {at: self._assess_one(cut, pixels, at, member) for at, cut in shifts.items()}
                flags[number][i] = inherited | self._woven({at: f for at, (f, _) in found.items()})
                fractions[number][i] = self._woven({at: v for at, (_, v) in found.items()})
        return [flags, fractions]

    def _assess_one(
        self, cut: xr.Dataset, pixels: np.ndarray, at: tuple[int, int], member: Label
    ) -> tuple[np.ndarray, np.ndarray]:
        """Flags and valid fractions of one shifted tiling of one channel."""
        name, array = member.variable, self.dataset[member.variable]
        height, width = (n * self.patch for n in (cut.sizes["row"], cut.sizes["col"]))
        codes = pixels[at[0] : at[0] + height, at[1] : at[1] + width]
        crop = cut.assign({name: (("y", "x"), np.ascontiguousarray(codes), dict(array.attrs))})
        assessed = quality.assess(crop, build_spec(QualitySpec, self.info["recipe"]["quality"]))
        flags = assessed[f"{name}_flags"].values
        thresholds = (self.info.get("thresholds") or {}).get(name)
        if thresholds is not None:
            mine = thresholds["levels"][member.altitude] if "levels" in thresholds else thresholds
            prefix = f"{name}_"
            statistics = {
                str(key).removeprefix(prefix): values.values
                for key, values in assessed.data_vars.items()
                if key != f"{name}_flags"
            }
            flags = flags | np.where(
                quality.global_outliers(statistics, mine), np.uint16(Flag.global_outlier), 0
            )
        return flags.astype(np.uint16), assessed[f"{name}_valid_fraction"].values

    def _inherited(self, crop: int, member: Label) -> np.ndarray:
        """Bits that pixels cannot tell, (row, col): those of any of the patches that a window overlaps."""
        flags = self.dataset[f"{member.variable}_flags"][crop].values
        if member.altitude is not None:
            flags = flags[member.altitude]
        flags = flags & np.uint16(Flag.channel_absent | Flag.unreadable | Flag.limb)
        near = [_neighbours(n, self.patch // self.stride)[:2] for n in self.cells]
        out = np.zeros(self.cells, np.uint16)
        for row in near[0]:
            for col in near[1]:
                out |= flags[row[:, None], col]
        return out

    def _shifts(self, crop: int) -> dict[tuple[int, int], xr.Dataset]:
        """The shifted tilings of a crop, by their offset in pixels: coordinates without pixels.

        None of a crop that was not written: it has no places.
        """
        one = self.dataset.isel(crop=crop)
        if one["status"].values != 0:
            return {}
        time, y, x = (one[name].values for name in ("time", "y_origin", "x_origin"))
        latitude, longitude = self._grid(str(one["grid"].values))
        dims = (("y",), ("x",)) if latitude.ndim == 1 else (("y", "x"), ("y", "x"))
        scene = xr.Dataset(
            coords={"latitude": (dims[0], latitude), "longitude": (dims[1], longitude), "time": time}
        )
        out = {}
        steps = range(0, self.patch, self.stride)
        for at in ((dy, dx) for dy in steps for dx in steps):
            height, width = ((e - d) // self.patch * self.patch for e, d in zip(self.shape, at, strict=True))
            if not height or not width:
                continue
            cut = tiling.cut(scene, tiling.Window(int(y) + at[0], int(x) + at[1], height, width), self.patch)
            if "observation_time" in one:
                seconds = one["observation_time"].values.astype("datetime64[s]").astype(np.int64)
                fine = _between(seconds[None], self.patch // self.stride, self.cells[0])[0]
                mine = fine[at[0] // self.stride :: self.patch // self.stride][: cut.sizes["row"]]
                cut = cut.assign_coords(observation_time=("row", mine.astype("datetime64[s]")))
            seen = cut["observation_time"].values if "observation_time" in cut.coords else np.array([time])
            seen = np.where(np.isnat(seen), time, seen)[:, None]
            zenith = solar_zenith_angle(seen, cut["latitude"].values, cut["longitude"].values)
            corners = solar_zenith_angle(
                seen[..., None], cut["corner_latitude"].values, cut["corner_longitude"].values
            )
            highest = np.fmax(zenith, np.fmax.reduce(corners, axis=-1))
            out[at] = cut.assign_coords(
                solar_zenith_angle=(("row", "col"), zenith),
                solar_zenith_angle_maximum=(("row", "col"), highest),
            )
        return out

    def _grid(self, grid: str) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of the pixels of a source grid."""
        if grid not in self._grids:
            axes = open_grid(self.dataset.encoding["source"], grid)
            self._grids = {grid: (axes["latitude"].values, axes["longitude"].values)}
        return self._grids[grid]

    def _woven(self, parts: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
        """One value a window (row, col), from one a patch of each shifted tiling."""
        step = self.patch // self.stride
        if not parts:
            return np.full(self.cells, np.nan)
        out = np.empty(self.cells, next(iter(parts.values())).dtype)
        for (y, x), part in parts.items():
            out[y // self.stride :: step, x // self.stride :: step] = part
        return out


def _neighbours(cells: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two patches that each window lies between, and how far it is on the way to the second."""
    place = np.arange(cells)
    return place // step, -(-place // step), (place % step) / step


def _between(times: np.ndarray, step: int, cells: int) -> np.ndarray:
    """Times (crop, row) of patches, in seconds, at the windows between them; missing where one of two is."""
    low, high, share = _neighbours(cells, step)
    before, after = times[:, low], times[:, high]
    missing = (before == TIME_FILL) | (after == TIME_FILL)
    first, last = np.where(missing, 0, before), np.where(missing, 0, after)
    return np.where(missing, TIME_FILL, first + np.rint((last - first) * share).astype(np.int64))


def _overlapped(values: np.ndarray, step: int) -> np.ndarray:
    """A smooth field of patches (crop, row, col) at the windows between them, from those that are not NaN."""
    for axis in (1, 2):
        low, high, share = _neighbours((values.shape[axis] - 1) * step + 1, step)
        share = share.reshape(-1, *(1 for _ in range(2 - axis)))
        before, after = np.take(values, low, axis), np.take(values, high, axis)
        mixed = before * (1 - share) + after * share
        values = np.where(np.isnan(before), after, np.where(np.isnan(after), before, mixed)).astype(
            values.dtype
        )
    return values
