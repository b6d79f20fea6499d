"""How often something like this occurs, by hour, month or season, for each sample that was observed."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from gridrad_cube import selection, similarity
from gridrad_cube.query.samples import crop_blocks, positions, require_embeddings, sample_dims, select
from gridrad_cube.query.search import Rows, common_channels, provenance, read_query
from gridrad_cube.schema import SchemaError

By = Literal["hour", "solar_hour", "month", "season", "year"]


def frequency(
    dataset: xr.Dataset,
    query: Any,
    threshold: float,
    by: By = "hour",
    *,
    metric: similarity.Metric = "cosine",
    **where: Any,
) -> xr.Dataset:
    """Count how often samples are similar to a query, as a share of those observed, by hour, month or season.

    Parameters
    ----------
    query
        As in `search`, one query.
    threshold
        Least score that counts; with ``"euclidean"`` the greatest distance. The scores that `search` gives to
        examples one would still call the same, or their ``percentile``, help to choose it.
    by
        ``"hour"`` of the day in UTC, ``"solar_hour"`` in local mean solar time (UTC + longitude / 15),
        ``"month"``, ``"season"`` (DJF, MAM, JJA, SON) or ``"year"``.
    metric
        As in `search`.
    bbox, time, ...
        Which samples count, as occurrences and as observed; see `within`. ``channel`` None takes that of the
        query.

    Returns
    -------
    On ``by``: ``frequency``, ``count`` over ``observed`` (NaN where nothing was observed, never 0); ``count``, samples
    that reach the threshold; ``observed``, samples of the selection that have an embedding; ``days``, convective
    days with an occurrence, since a storm in ten frames is one storm; ``observed_days``.

    Raises
    ------
    SchemaError
        As `search`; or if the threshold is not finite or nothing of the selection has an embedding.
    """
    require_embeddings(dataset, "frequency")
    if by not in get_args(By):
        raise SchemaError(f"frequency: by={by!r}; expected one of {', '.join(get_args(By))}")
    if not np.isfinite(threshold):
        raise SchemaError(f"frequency: threshold {threshold!r}; expected a finite score")
    asked = read_query(dataset, query, where.get("channel"), metric)
    if where.get("channel") is None:
        where["channel"] = common_channels([asked])
    mask = select(dataset, **where)
    rows = Rows(dataset["embedding"].variable)
    scores = similarity.scores(
        rows, asked.vector, metric=metric, mask=mask.reshape(-1), block=rows.block
    ).reshape(mask.shape)
    observed = np.isfinite(scores)
    with np.errstate(invalid="ignore"):
        occurs = scores <= threshold if metric == "euclidean" else scores >= threshold
    if not observed.any():
        raise SchemaError(
            f"frequency: none of the {np.count_nonzero(mask)} samples of the selection has an embedding (all are NaN)"
        )
    bins, names = _bins(dataset, observed, by)
    columns = {}
    for name, what in (("count", occurs), ("observed", observed)):
        columns[name] = np.bincount(bins[what], minlength=len(names))
    days = {
        "days": _days(dataset, bins, occurs, len(names)),
        "observed_days": _days(dataset, bins, observed, len(names)),
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        share = columns["count"] / columns["observed"]
    out = xr.Dataset(
        {"frequency": (by, share, {"long_name": "occurrences for each observed sample", "units": "1"})}
        | {n: (by, v, {"long_name": _NAMES[n], "units": "1"}) for n, v in (columns | days).items()},
        coords={by: (by, names, {"long_name": _NAMES[by]})},
    )
    out.attrs = (
        {"threshold": float(threshold), "metric": metric} | asked.attributes(dataset) | provenance(dataset)
    )
    return out


_NAMES = {
    "count": "samples that reach the threshold",
    "observed": "samples of the selection with an embedding",
    "days": "convective days with an occurrence",
    "observed_days": "convective days with an observed sample",
    "hour": "hour of the day, UTC",
    "solar_hour": "hour of the day, local mean solar time",
    "month": "month",
    "season": "season",
    "year": "year",
}


def _bins(dataset: xr.Dataset, observed: np.ndarray, by: By) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each sample, on the sample dims, and the names of all bins."""
    times = dataset["time"].values
    times = np.where(np.isnat(times), np.datetime64(0, "s"), times)
    months = selection.month_of(times)
    if by == "solar_hour":
        out = np.zeros(observed.shape, np.int64)
        for crops in crop_blocks(np.asarray(observed.reshape(len(observed), -1).any(axis=1))):
            _, lon = positions(dataset, crops)
            hours = selection.solar_hour_of(times[crops].reshape(-1, *(1 for _ in lon.shape[1:])), lon)
            hours = np.floor(np.where(np.isfinite(hours), hours, 0.0)).astype(np.int64)
            out[crops] = hours[:, None] if "channel" in sample_dims(dataset) else hours
        return out, np.arange(24)
    if by == "hour":
        number, names = np.floor(selection.hour_of(times)).astype(np.int64), np.arange(24)
    elif by == "month":
        number, names = months - 1, np.arange(1, 13)
    elif by == "season":
        number, names = months % 12 // 3, np.array(selection.SEASONS)
    else:
        years = times.astype("datetime64[Y]").astype(np.int64) + 1970
        seen = years[observed.reshape(len(observed), -1).any(axis=1)]
        names = np.arange(seen.min(), seen.max() + 1)
        number = np.clip(years - names[0], 0, len(names) - 1)
    return np.broadcast_to(number.reshape(-1, *(1 for _ in observed.shape[1:])), observed.shape), names


def _days(dataset: xr.Dataset, bins: np.ndarray, what: np.ndarray, count: int) -> np.ndarray:
    """Number of convective days among samples, for each bin."""
    where = np.nonzero(what)
    day = selection.convective_day(dataset["time"].values)[where[0]].astype(np.int64)
    pairs = np.unique(np.stack([bins[where], day]), axis=1)
    return np.bincount(pairs[0], minlength=count)
