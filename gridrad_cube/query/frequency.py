"""How often something like this occurs, by hour, month or season, for each sample that was observed."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from gridrad_cube import selection, similarity
from gridrad_cube.query.samples import positions, require_embeddings, sample_dims, select
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
    if not observed.any():
        raise SchemaError(
            f"frequency: none of the {np.count_nonzero(mask)} samples of the selection has an embedding (all are NaN)"
        )
    score = -scores[observed] if metric == "euclidean" else scores[observed]
    bins, names = _bins(dataset, observed, by)
    day = selection.convective_day(dataset["time"].values)[np.nonzero(observed)[0]]
    samples = pd.DataFrame({"bin": bins, "day": day.astype(np.int64)})
    similar = samples[score >= (-threshold if metric == "euclidean" else threshold)]
    columns = {
        "count": similar.groupby("bin").size(),
        "observed": samples.groupby("bin").size(),
        "days": similar.groupby("bin")["day"].nunique(),
        "observed_days": samples.groupby("bin")["day"].nunique(),
    }
    counts = {name: column.reindex(names, fill_value=0).values for name, column in columns.items()}
    with np.errstate(invalid="ignore"):
        share = counts["count"] / counts["observed"]
    out = xr.Dataset(
        {"frequency": (by, share, {"long_name": "occurrences for each observed sample", "units": "1"})}
        | {n: (by, v, {"long_name": _NAMES[n], "units": "1"}) for n, v in counts.items()},
        coords={by: (by, list(selection.SEASONS) if by == "season" else names, {"long_name": _NAMES[by]})},
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
    """The number of the bin of each observed sample, and those of all bins."""
    times = dataset["time"].values[np.nonzero(observed)[0]]
    if by == "solar_hour":
        _, longitude = positions(dataset, slice(None))
        longitude = longitude[:, None] if "channel" in sample_dims(dataset) else longitude
        hours = selection.solar_hour_of(times, np.broadcast_to(longitude, observed.shape)[observed])
        return np.floor(np.nan_to_num(hours)).astype(np.int64), np.arange(24)
    if by == "hour":
        return np.floor(selection.hour_of(times)).astype(np.int64), np.arange(24)
    if by == "year":
        years = times.astype("datetime64[Y]").astype(np.int64) + 1970
        return years, np.arange(years.min(), years.max() + 1)
    months = selection.month_of(times)
    return (months, np.arange(1, 13)) if by == "month" else (months % 12 // 3, np.arange(4))
