"""A small cube of many convective days, and embeddings of it that are known functions of its patches."""

from __future__ import annotations

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec

from gridrad_cube import pipeline, schema, store, synthetic
from gridrad_cube.schema import Recipe, TileSpec
from gridrad_cube.selection import solar_hour_of

IR = "ir_brightness_temperature"
DAYS, PATCH, SHAPE = 34, 32, (64, 96)


def make_cube(folder, *, days=DAYS, scenes=2, start="2021-06-01", hours=True):
    """Scenes half an hour apart on each of some days, at hours that go round, with numbers of overshooting tops."""
    for i in range(days):
        first = np.datetime64(start) + np.timedelta64(i, "D")
        first = first + np.timedelta64(14 + (5 * i) % 9 if hours else 18, "h")
        synthetic.write_scenes(
            folder / "sources" / f"{i:02}", format="larc-goes", scenes=scenes, shape=SHAPE, seed=i, start=str(first),
            interval="30min",
        )  # fmt: skip
    recipe = Recipe(channels=(IR, "ot_id_number"), tile=TileSpec(patch=PATCH))
    report = pipeline.preprocess(folder / "sources", folder / "patches.zarr", recipe=recipe)
    assert not report.failed
    return folder / "patches.zarr"


def vectors_of(cube, *, noise=0.0, hour=False, seed=0, features=8):
    """Vectors of patches (crop, row, col, feature): mean, deviation and minimum in some linear way, and noise."""
    rng = np.random.default_rng(seed)
    parts = [
        (cube[f"{IR}_{n}"].values - a) / b
        for n, a, b in (("mean", 270, 30), ("std", 15, 15), ("minimum", 230, 30))
    ]
    if hour:
        angle = 2 * np.pi / 24 * solar_hour_of(cube["time"].values[:, None, None], cube["longitude"].values)
        parts += [np.sin(angle), np.cos(angle)]
    values = np.stack(parts, axis=-1)
    out = values @ rng.standard_normal((values.shape[-1], features)) + 3.0
    return out + noise * rng.standard_normal(out.shape)


def write_embeddings(path, cube_path, vectors, *, source="patches.zarr", level="256", **info):
    """A store of embeddings of a cube as `embed` writes it."""
    cube = store.open_cube(cube_path)
    about = store.store_info(cube)
    cells = ("row", "col") if level == "256" else ()
    out = xr.Dataset(
        {
            "embedding": (("crop", "channel", *cells, "feature"), vectors[:, None].astype(np.float32)),
            "flags": (("crop", "channel", "row", "col"), cube[f"{IR}_flags"].values[:, None]),
        },
        coords={n: v for n, v in cube.coords.items() if n not in ("altitude", "crs")}
        | {"channel": [IR], "variable": ("channel", [IR])},
        attrs={"gridrad_cube": {
            "format_version": 1, "kind": "embeddings", "level": level, "patch": about["patch"], "checkpoint": "abc",
            "channels": {IR: [IR]}, "source": source, "source_identity": about["identity"], **info,
        }},
    ).drop_encoding()  # fmt: skip
    for name in ("grid", "scene", "source", "channel", "variable"):
        out[name] = out[name].astype(np.dtypes.StringDType())
    times = {"units": schema.TIME_UNITS, "dtype": "int64", "_FillValue": schema.TIME_FILL}
    encoding = {n: times for n in ("time", "observation_time") if n in out.variables}
    one = out["embedding"].shape[2:]
    encoding["embedding"] = {
        "chunks": (2, 1, *one), "shards": (4, 1, *one), "compressors": [BloscCodec(), Crc32cCodec()],
    }  # fmt: skip
    out.to_zarr(path, zarr_format=3, consolidated=True, encoding=encoding)
    return path
