"""Embedding stores to ask, in memory and on disk, and the answers by brute force."""

from __future__ import annotations

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec

from gridrad_cube import schema
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.schema import Flag
from gridrad_cube.store import open_embeddings

PATCH, ROWS, COLS, FEATURES = 32, 3, 4, 6
CHANNEL_NAMES = ("ir_brightness_temperature", "visible_reflectance")
#: Latitude and longitude of the first patch of each window, and the steps to the next: the plains, the date
#: line, the pole.
WINDOWS = ((40.0, -100.0, -1.0, 1.0), (10.0, 178.5, -1.0, 1.0), (89.5, 0.0, -0.25, 90.0))


def make_embeddings(times=8, *, level="256", seed=0, channels=CHANNEL_NAMES, rows=ROWS, cols=COLS):
    """An embedding store in memory: hourly crops of three windows in turn, one row of patches padded."""
    rng = np.random.default_rng(seed)
    crops = times * len(WINDOWS)
    window = np.arange(crops) % len(WINDOWS)
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    lat = np.stack([WINDOWS[w][0] + row * WINDOWS[w][2] for w in window])
    lon = np.stack([(WINDOWS[w][1] + col * WINDOWS[w][3] + 180) % 360 - 180 for w in window])
    cells = (rows, cols) if level == "256" else ()
    embedding = rng.standard_normal((crops, len(channels), *cells, FEATURES)).astype("float16")
    flags = np.zeros((crops, len(channels), rows, cols), np.uint16)
    flags[0, :, 2, 3] = int(Flag.padding)
    lat[0, 2, 3] = lon[0, 2, 3] = np.nan
    flags[3, 1:2] = int(Flag.night)
    flags[4, 0, 0, 0] = int(Flag.all_missing)
    if cells:
        embedding[0, :, 2, 3] = np.nan
        embedding[4, 0, 0, 0] = np.nan
    status = np.zeros(crops, np.uint8)
    status[5] = 2
    embedding[5] = np.nan
    start = np.datetime64("2024-05-20T00:00:00", "ns")
    info = {"format_version": 1, "kind": "embeddings", "level": level, "patch": PATCH, "checkpoint": "abc"}
    return xr.Dataset(
        {
            "embedding": (("crop", "channel", *(("row", "col") if cells else ()), "feature"), embedding),
            "flags": (("crop", "channel", "row", "col"), flags),
        },
        coords={
            "time": ("crop", start + (np.arange(crops) // len(WINDOWS)) * np.timedelta64(1, "h")),
            "status": ("crop", status),
            "latitude": (("crop", "row", "col"), lat),
            "longitude": (("crop", "row", "col"), lon),
            "y_origin": ("crop", np.full(crops, 64, np.int32)),
            "x_origin": ("crop", (window * 1000).astype(np.int32)),
            "grid": ("crop", np.array([f"g{w}" for w in window], object)),
            "scene": ("crop", np.array([f"scene{i // 3}" for i in range(crops)], object)),
            "source": ("crop", np.array([f"a/file{i // 3}.nc" for i in range(crops)], object)),
            "channel": list(channels),
            "variable": ("channel", [n.split("@")[0] for n in channels]),
            "solar_zenith_angle": (("crop", "row", "col"), np.zeros((crops, rows, cols), np.float32)),
        },
        attrs={"gridrad_cube": info},
    )


def write(dataset, path):
    """The dataset as a store on disk, opened as users do."""
    out = dataset.copy()
    out["time"].encoding = {"units": schema.TIME_UNITS, "dtype": "int64", "_FillValue": schema.TIME_FILL}
    for name in ("grid", "scene", "source", "channel", "variable"):
        out[name] = out[name].astype(np.dtypes.StringDType())
    one = out["embedding"].shape[2:]
    out["embedding"].encoding = {
        "chunks": (2, 1, *one), "shards": (4, out.sizes["channel"], *one),
        "compressors": [BloscCodec(), Crc32cCodec()],
    }  # fmt: skip
    out.to_zarr(path, zarr_format=3, consolidated=True, write_empty_chunks=True)
    return open_embeddings(path)


def place_of(dataset, crop, row, col):
    return (
        dataset.time.values[crop],
        float(dataset.latitude[crop, row, col]),
        float(dataset.longitude[crop, row, col]),
    )


def brute_search(
    dataset,
    vector,
    k,
    keep=lambda c, h, r, q: True,
    place=None,
    exclude=(6, 200),
    separate=None,
    metric="cosine",
):
    """Every sample in a loop: sort by score, leave out neighbours, take k."""
    v = np.asarray(vector, np.float64)
    dataset = dataset.compute()
    hits = []
    values, flags = dataset.embedding.values.astype(np.float64), dataset.flags.values
    for sample in np.ndindex(values.shape[:-1]):
        crop, channel = sample[:2]
        cell = sample[2:] or (0, 0)
        x = values[sample]
        bad = schema.default_reject(
            "visible" if "visible" in str(dataset.channel.values[channel]) else "infrared"
        )
        if (
            np.isnan(x).any()
            or dataset.status.values[crop]
            or flags[(crop, channel, *cell)] & bad
            or not keep(*sample)
        ):
            continue
        here = place_of(dataset, crop, *cell)
        if place is not None and exclude and near(here, place, exclude):
            continue
        score = (
            x @ v / np.linalg.norm(x) / np.linalg.norm(v) if metric == "cosine" else -np.linalg.norm(x - v)
        )
        hits.append((-np.float32(score), sample, here))
    hits.sort(key=lambda h: h[:2])
    out = []
    for hit in hits:
        if separate is None or not any(near(hit[2], other[2], separate) for other in out):
            out.append(hit)
    return [(h[1], -h[0] if metric == "cosine" else h[0]) for h in out[:k]]


def near(a, b, rule):
    hours = abs((a[0] - b[0]) / np.timedelta64(1, "h"))
    return hours < rule[0] and great_circle_km(a[1], a[2], b[1], b[2]) < rule[1]


def found(answer, dims=("crop", "channel", "row", "col")):
    names = ["ir_brightness_temperature", "visible_reflectance"]
    columns = [answer[d].values for d in dims]
    return [
        tuple(names.index(v) if isinstance(v, str) else int(v) for v in row)
        for row in zip(*columns, strict=True)
    ]
