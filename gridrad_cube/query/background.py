"""How alike two samples are that have nothing to do with each other: random pairs of the same hour of the day."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.samples import cell_dims, positions, read_points, sample_dims, seconds_of
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import hour_of
from gridrad_cube.similarity import Metric

#: Pairs of crops that are drawn, and pairs of samples from each: crops are what costs reading.
CROP_PAIRS, SAMPLES_EACH = 64, 32


def random_pairs(
    dataset: xr.Dataset,
    mask: np.ndarray,
    metric: Metric,
    apart: tuple[float, float] | None,
    seed: int,
) -> npt.NDArray[np.float32]:
    """Scores of random pairs of samples of the same hour (UTC) and channel, from different crops, ascending.

    Parameters
    ----------
    mask
        Samples to draw from, on the sample dims.
    apart
        Pairs that lie within both these seconds and these kilometres do not count.

    Raises
    ------
    SchemaError
        If there are no such pairs.
    """
    rng = np.random.default_rng(seed)
    crops = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    hour = np.floor(hour_of(dataset["time"].values[crops])).astype(np.int64)
    order = np.argsort(hour, kind="stable")
    first, count = (
        np.searchsorted(hour[order], hour, side="left"),
        np.bincount(hour, minlength=24)[hour],
    )
    pairs = []
    for a in rng.choice(np.flatnonzero(count > 1), CROP_PAIRS) if (count > 1).any() else ():
        others = order[first[a] : first[a] + count[a]]
        pairs.append((crops[a], crops[rng.choice(others[others != a])]))
    scores = [np.empty(0)]
    for one, two in pairs:
        scores.append(_between(dataset, mask, (int(one), int(two)), metric, apart, rng))
    out = np.sort(np.concatenate(scores)).astype(np.float32)
    if not len(out):
        raise SchemaError(
            "percentile: the selection has no pairs of samples of one hour of the day that lie apart in time or place. "
            "Pass a wider selection, or percentile=False."
        )
    return out


def _between(
    dataset: xr.Dataset,
    mask: np.ndarray,
    crops: tuple[int, int],
    metric: Metric,
    apart: tuple[float, float] | None,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Scores of random pairs of one sample of one crop and one of another, of the same channel."""
    dims = sample_dims(dataset)
    inside = [np.argwhere(mask[crop]) for crop in crops]
    picked = [some[rng.integers(len(some), size=SAMPLES_EACH)] for some in inside]
    sides = [
        {"crop": np.full(SAMPLES_EACH, crop)} | dict(zip(dims[1:], some.T, strict=True))
        for crop, some in zip(crops, picked, strict=True)
    ]
    use = np.ones(SAMPLES_EACH, bool)
    if "channel" in dims:
        use &= sides[0]["channel"] == sides[1]["channel"]
    if apart is not None:
        times = seconds_of(dataset["time"].values[list(crops)])
        lat, lon = positions(dataset, np.array(crops))
        at = [(i, *(side[d] for d in cell_dims(dataset))) for i, side in enumerate(sides)]
        km = great_circle_km(lat[at[0]], lon[at[0]], lat[at[1]], lon[at[1]])
        use &= (abs(float(times[0] - times[1])) >= apart[0]) | (km >= apart[1])
    a, b = (read_points(dataset["embedding"].variable, side).astype(np.float64) for side in sides)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "euclidean":
            score = np.linalg.norm(a - b, axis=1)
        else:
            score = np.einsum("ij,ij->i", a, b)
            if metric == "cosine":
                score /= np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(score[use & np.isfinite(score)])


def percentiles(
    background: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.float32]:
    """What share of the background, in percent, is less alike than each score; half of what is equal counts."""
    low, high = (np.searchsorted(background, scores, side=side) for side in ("left", "right"))
    share = (low + high) / (2 * len(background))
    share = 1 - share if metric == "euclidean" else share
    return np.where(np.isnan(scores), np.nan, 100 * share).astype(np.float32)
