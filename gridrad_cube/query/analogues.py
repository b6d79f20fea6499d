"""Find what followed the analogues of a situation, compared with persistence, and how often similar samples
occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.queries import Query, read_query
from gridrad_cube.query.samples import (
    Index,
    cell_dims,
    locate,
    names_along,
    places_of,
    positions,
    read_points,
    require_embeddings,
    sample_dims,
    seconds_of,
    select,
    time_step,
)  # fmt: skip
from gridrad_cube.query.search import (
    SEPARATE,
    Rows,
    choose_readout,
    common_channels,
    provenance,
    search,
)
from gridrad_cube.readout import Readout, ReadoutChoice
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import (
    SEASONS,
    as_neighborhood,
    as_seconds,
    convective_day,
    hour_of,
    month_of,
    solar_hour_of,
)  # fmt: skip
from gridrad_cube.similarity import Metric, scores, unit_rows

By = Literal["hour", "solar_hour", "month", "season", "year"]
#: Analogues within both this time and this distance of each other are one event.
_EVENT = ("12h", "500km")


def analogues(
    dataset: xr.Dataset,
    query: Any,
    lead: Any,
    k: int = 20,
    *,
    of: xr.DataArray | None = None,
    exclude: Any = _EVENT,
    separate: Any = SEPARATE,
    event: Any = _EVENT,
    metric: Metric = "cosine",
    readout: ReadoutChoice = "auto",
    tolerance: Any = None,
    time_tolerance: Any = None,
    **where: Any,
) -> xr.Dataset:
    """Find what followed the samples that are most similar to a query, at the same place, and what followed
    the query.

    The analogues are those of `search`. The exclusion window of the query is widened by the longest lead, so
    that no sequel is the query's own weather. The sequel of an analogue is the sample that `at` finds at its
    place, ``lead`` later.

    Parameters
    ----------
    dataset
        A store of embeddings, level 256 or 2k.
    query
        As in `search`. Persistence and observation are known for a query that is a sample of the store.
    lead
        A duration such as ``"60min"``, or a list of durations.
    k
        Largest number of analogues.
    of
        Variable to return for sequels: one of the cube on ``(crop, row, col)``, such as
        ``cube.ir_brightness_temperature_minimum``. Cube and embeddings must have the same patches. None
        returns embeddings.
    exclude, separate, metric, readout
        As in `search`. Cosines of sequels are also computed after the readout.
    event
        Analogues within both this time and this distance of each other, directly or through other analogues,
        count as one independent event. Ten frames of one storm are one event.
    tolerance, time_tolerance
        Largest distance and time difference of a sequel from the requested place and time. None: half the
        diagonal of the patch, and half the store's median time step.
    **where
        Rules of `within` for the samples that may be analogues: ``bbox``, ``time`` and others.

    Returns
    -------
    On ``rank`` the variables of `search` for the analogues, and the number of their ``event``. On ``(rank,
    lead)`` ``sequel_crop`` (-1 without a sequel) and ``sequel_time``. On ``lead``: ``members``, the number of
    sequels, and ``events`` and ``days``, the numbers of independent events and convective days among them.

    With ``of``, ``sequel(rank, lead)``, ``now(rank)``; on ``lead`` ``mean`` and ``spread`` (standard
    deviation) of
    the sequels, ``persistence`` (the query's value now) and ``observed`` (the value that followed the query;
    NaN if it is unknown).

    Else ``sequel(rank, lead, feature)``; on ``lead`` ``spread``, 1 less the length of the mean of the
    sequels' unit
    vectors (0 if all are equal), ``likeness``, the cosine of that mean and the embedding that followed the
    query, and ``persistence``, the cosine of the query and the embedding that followed it.

    Raises
    ------
    SchemaError
        As of `search`; or if no analogue has a sequel, or ``of`` has other patches.
    """
    require_embeddings(dataset, "analogues")
    leads = [as_seconds(one) for one in (lead if isinstance(lead, (list, tuple)) else [lead])]
    if not leads or not all(0 < s < np.inf for s in leads):
        raise SchemaError(f"lead: got {lead!r}; expected a length of time such as '60min', or a list of them")
    after = np.rint(leads).astype(np.int64).astype("timedelta64[s]")
    rule = as_neighborhood(exclude, "exclude")
    if rule is not None:
        seconds, km = rule[0] + max(leads), rule[1]
        exclude = (
            None if np.isinf(seconds) else np.timedelta64(round(seconds), "s"), None if np.isinf(km) else km
        )  # fmt: skip
    asked = read_query(dataset, query, where.get("channel"), metric)
    used = choose_readout(dataset, [asked], metric, readout)
    found = search(
        dataset, query, k, exclude=exclude, separate=separate, metric=metric, readout=used, **where
    )
    limits = {
        "tolerance": tolerance,
        "time_tolerance": f"{time_step(dataset) / 2}s" if time_tolerance is None else time_tolerance,
    }
    now = {d: pd.Index(names_along(dataset, d)).get_indexer(found[d].values) for d in sample_dims(dataset)}
    sequels = _later(dataset, now, after, limits)
    if not (sequels["crop"] >= 0).any():
        raise SchemaError(
            f"analogues: none of the {found.sizes['rank']} analogues has a sequel {lead} later in the store; its times "
            f"are {time_step(dataset) / 60:g} min apart. Pass another lead=, or time_tolerance=."
        )
    truth = None if asked.sample is None else _later(dataset, asked.sample, after, limits)
    if of is None:
        columns, known = _of_embeddings(dataset, asked, sequels, truth, used)
    else:
        columns, known = _of_variable(dataset, of, asked, sequels, truth, now)
    events = _events(found, as_neighborhood(event, "event"))
    crops = np.maximum(sequels["crop"], 0)
    came = dataset["time"].values[crops]
    said = {"long_name": "independent event that the analogue belongs to", "units": "1"}
    counted = {"long_name": "sequels that the numbers of the lead are computed from", "units": "1"}
    columns |= {
        "event": ("rank", events, said),
        "sequel_crop": (("rank", "lead"), np.where(known, names_along(dataset, "crop")[crops], -1)),
        "sequel_time": (("rank", "lead"), np.where(known, came, np.array("NaT", came.dtype))),
        "members": ("lead", known.sum(axis=0), counted),
    }
    for name, group in (("events", events), ("days", convective_day(found["time"].values))):
        counts = [len(np.unique(group[column])) for column in known.T]
        columns[name] = ("lead", counts, {"long_name": f"independent {name} among the sequels", "units": "1"})
    out = found.assign_coords(lead=("lead", after, {"long_name": "time after"})).assign(columns)
    return out.assign_attrs(event=str(event), exclude=str(exclude))


def _later(dataset: xr.Dataset, samples: Index, after: np.ndarray, limits: Mapping[str, Any]) -> Index:
    """Return positions along each dim of the samples at the same places some time later, (sample, lead); -1
    for none.
    """
    seconds, latitude, longitude = places_of(dataset, samples)
    times = seconds.astype("datetime64[s]")[:, None] + after
    latitude, longitude = (np.repeat(degrees, len(after)) for degrees in (latitude, longitude))
    index, _ = locate(dataset, times.reshape(-1), latitude, longitude, **limits)
    out = {d: i.reshape(times.shape) for d, i in index.items()}
    if "channel" in samples:
        out["channel"] = np.where(out["crop"] >= 0, samples["channel"][:, None], -1)
    return out


def _of_embeddings(
    dataset: xr.Dataset, asked: Query, after: Index, truth: Index | None, readout: Readout | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the embeddings of the sequels, their spread, and the similarity of both them and the query to
    what followed.
    """
    sequel = _read(dataset["embedding"].variable, after)
    used = np.isfinite(sequel).all(axis=-1)
    compared = sequel if readout is None else readout.apply(sequel)
    unit = unit_rows(np.where(used[..., None], compared, 0.0))
    count = np.maximum(used.sum(axis=0), 1)[:, None]
    mean = unit.sum(axis=0) / count
    spread = np.where(used.any(axis=0), 1 - np.linalg.norm(mean, axis=-1), np.nan)
    came = np.full(mean.shape, np.nan)
    if truth is not None:
        came = _read(dataset["embedding"].variable, truth)[0]
        came = unit_rows(came if readout is None else readout.apply(came))
    out = {
        "sequel": (("rank", "lead", "feature"), sequel, {"long_name": "embedding of what came after", "units": "1"}),
        "spread": ("lead", spread, {"long_name": "1 less the length of the mean unit vector", "units": "1"}),
        "likeness": ("lead", (unit_rows(mean) * came).sum(-1),
                     {"long_name": "cosine of the mean of the sequels and what came", "units": "1"}),
        "persistence": ("lead", (unit_rows(asked.after(readout).vector) * came).sum(-1),
                        {"long_name": "cosine of the query and what came", "units": "1"}),
    }  # fmt: skip
    return out, used


def _of_variable(
    dataset: xr.Dataset,
    of: xr.DataArray,
    asked: Query,
    after: Index,
    truth: Index | None,
    now: Index,
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the values of a variable at the sequels, their mean and spread, persistence, and the observed
    value.
    """
    dims = ("crop", *cell_dims(dataset))
    sizes = {d: dataset.sizes[d] for d in dims}
    if dict(of.sizes) != sizes:
        raise SchemaError(
            f"analogues: of= has dims {dict(of.sizes)}; expected a value a sample, {sizes}: a variable of the cube "
            "that was embedded, without overlapping patches"
        )

    def values(index: Index) -> np.ndarray:
        return _read(of.variable, {d: index[d] for d in dims})

    sequel = values(after)
    used = np.isfinite(sequel)
    known, leads = np.ma.masked_invalid(sequel), sequel.shape[1]
    start = np.nan
    if asked.sample is not None:
        start = float(values(dict(asked.sample))[0])
    observed = np.full(leads, np.nan) if truth is None else values(truth)[0]
    units = {"units": of.attrs.get("units", "1")}
    name = of.attrs.get("long_name", of.name)
    return {
        "now": ("rank", values(now), units | {"long_name": f"{name} of the analogue"}),
        "sequel": (("rank", "lead"), sequel, units | {"long_name": f"{name} after the analogue"}),
        "mean": (
            "lead",
            known.mean(axis=0).filled(np.nan),
            units | {"long_name": f"mean of {name} after the analogues"},
        ),
        "spread": (
            "lead",
            known.std(axis=0).filled(np.nan),
            units | {"long_name": "standard deviation about the mean"},
        ),
        "persistence": ("lead", np.full(leads, start), units | {"long_name": f"{name} of the query"}),
        "observed": ("lead", observed, units | {"long_name": f"{name} after the query"}),
    }, used


def _read(variable: xr.Variable, index: Index) -> np.ndarray:
    """Return the values at samples, float64; NaN where an index is -1. Keeps the shape of the index in front."""
    shape = next(iter(index.values())).shape
    there = (index["crop"] >= 0).reshape(-1)
    found = read_points(variable, {d: i.reshape(-1)[there] for d, i in index.items()})
    out = np.full((there.size, *found.shape[1:]), np.nan)
    out[there] = found
    return out.reshape(*shape, *found.shape[1:])


def _events(found: xr.Dataset, rule: tuple[float, float] | None) -> np.ndarray:
    """Return the number of the event of each analogue, from 0. Analogues near each other, in any chain, are
    one event.
    """
    count = found.sizes["rank"]
    if rule is None:
        return np.arange(count)
    from scipy.sparse.csgraph import connected_components

    seconds = seconds_of(found["time"].values)
    lat, lon = found["latitude"].values, found["longitude"].values
    near = np.abs(seconds[:, None] - seconds) < rule[0]
    near &= great_circle_km(lat[:, None], lon[:, None], lat, lon) < rule[1]
    return np.asarray(connected_components(near, directed=False)[1])


# How often


def frequency(
    dataset: xr.Dataset,
    query: Any,
    threshold: float,
    by: By = "hour",
    *,
    metric: Metric = "cosine",
    readout: ReadoutChoice = "auto",
    **where: Any,
) -> xr.Dataset:
    """Count how often samples are similar to a query, as a share of those observed, by hour, month or season.

    Parameters
    ----------
    dataset
        A store of embeddings, level 256 or 2k.
    query
        As in `search`, one query.
    threshold
        Smallest score that counts; with ``"euclidean"`` the largest distance. To choose it, search for
        examples and look at the scores, or the ``percentile``, of answers that are similar enough.
    by
        ``"hour"`` of the day in UTC, ``"solar_hour"`` in local mean solar time (UTC + longitude / 15),
        ``"month"``, ``"season"`` (DJF, MAM, JJA, SON) or ``"year"``.
    metric, readout
        As in `search`. A threshold holds for scores with the same readout.
    **where
        Rules of `within` for the samples that count, as occurrences and as observed. Without ``channel``, it
        is the channel of the query.

    Returns
    -------
    On ``by``: ``frequency``, ``count`` over ``observed`` (NaN if nothing was observed); ``count``, samples
    that reach the threshold; ``observed``, samples of the selection that have an embedding; ``days``,
    convective days with an occurrence, which count a storm in ten frames once; ``observed_days``.

    Raises
    ------
    SchemaError
        As of `search`; or if the threshold is not finite, or no sample of the selection has an embedding.
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
    used = choose_readout(dataset, [asked], metric, readout)
    rows, vector = Rows(dataset["embedding"].variable, used, mask), asked.after(used).vector
    score = scores(rows, vector, metric=metric, mask=mask.reshape(-1), block=rows.block).reshape(mask.shape)
    observed = np.isfinite(score)
    if not observed.any():
        raise SchemaError(
            f"frequency: none of the {np.count_nonzero(mask)} samples of the selection has an embedding (all are NaN)"
        )
    similar = score[observed] <= threshold if metric == "euclidean" else score[observed] >= threshold
    bins, names = _bins(dataset, observed, by)
    day = convective_day(dataset["time"].values)[np.nonzero(observed)[0]]
    samples = pd.DataFrame({"bin": bins, "day": day.astype(np.int64)})
    occurrences = samples[similar].groupby("bin")["day"]
    every = samples.groupby("bin")["day"]
    columns = {
        "count": occurrences.size(), "observed": every.size(), "days": occurrences.nunique(),
        "observed_days": every.nunique(),
    }  # fmt: skip
    counts = {name: column.reindex(names, fill_value=0).values for name, column in columns.items()}
    with np.errstate(invalid="ignore"):
        share = counts["count"] / counts["observed"]
    out = xr.Dataset(
        {"frequency": (by, share, {"long_name": "occurrences for each observed sample", "units": "1"})}
        | {n: (by, v, {"long_name": _NAMES[n], "units": "1"}) for n, v in counts.items()},
        coords={by: (by, list(SEASONS) if by == "season" else names, {"long_name": _NAMES[by]})},
    )
    out.attrs = (
        {"threshold": float(threshold), "metric": metric}
        | asked.attributes(dataset)
        | provenance(dataset, used)
    )
    return out


#: Descriptions of the variables of `frequency`.
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
    """Return the number of the bin of each observed sample, and those of all bins."""
    times = dataset["time"].values[np.nonzero(observed)[0]]
    if by == "solar_hour":
        _, longitude = positions(dataset, slice(None))
        longitude = longitude[:, None] if "channel" in sample_dims(dataset) else longitude
        hours = solar_hour_of(times, np.broadcast_to(longitude, observed.shape)[observed])
        return np.floor(np.nan_to_num(hours)).astype(np.int64), np.arange(24)
    if by == "hour":
        return np.floor(hour_of(times)).astype(np.int64), np.arange(24)
    if by == "year":
        years = times.astype("datetime64[Y]").astype(np.int64) + 1970
        return years, np.arange(years.min(), years.max() + 1)
    months = month_of(times)
    return (months, np.arange(1, 13)) if by == "month" else (months % 12 // 3, np.arange(4))
