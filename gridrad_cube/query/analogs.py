"""What came after: the sequels of situations like this one, beside persistence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from gridrad_cube import similarity
from gridrad_cube.geometry import great_circle_km
from gridrad_cube.query.likeness import require_embeddings, search
from gridrad_cube.query.nearby import Places
from gridrad_cube.query.places import time_step
from gridrad_cube.query.questions import Question, question
from gridrad_cube.query.samples import cell_dims, labels, read_points, sample_dims, seconds_of
from gridrad_cube.query.selection import Where, channel_positions
from gridrad_cube.schema import SchemaError
from gridrad_cube.selection import as_neighborhood, as_seconds, convective_day

#: Analogues that lie nearer than this to each other in time and in space are one event.
EVENT = ("12h", "500km")


def analogues(
    dataset: xr.Dataset,
    query: Any,
    lead: Any,
    k: int = 20,
    *,
    of: xr.DataArray | None = None,
    exclude: Any = EVENT,
    separate: Any = None,
    event: Any = EVENT,
    metric: similarity.Metric = "cosine",
    tolerance: Any = None,
    time_tolerance: Any = None,
    **where: Unpack[Where],
) -> xr.Dataset:
    """What came after the samples most like a query, at the same place, with what really came where it is known.

    The analogues are those of `search`; none of them lies within the exclusion window of the query, widened by
    the longest lead, so that no sequel is the query's own weather. A sequel is what `at` finds at an
    analogue's place, ``lead`` later.

    Parameters
    ----------
    query
        As in `search`. Persistence and what really came are known of a sample of the store, named or found by its
        place and time.
    lead
        A length of time such as ``"60min"``, or a list of them.
    k
        Analogues at most.
    of
        What to say of sequels: a variable of the cube per patch on ``(crop, row, col)``, such as
        ``cube.ir_brightness_temperature_minimum``, of a cube and embeddings with the same patches. None: their
        embeddings.
    exclude, separate, metric
        As in `search`.
    event
        Analogues within both this time and this distance of each other, or linked by others that are, count
        as one independent event. Ten frames of one storm are not ten witnesses.
    tolerance, time_tolerance
        How far a sequel may lie from the place and time asked for. None: half the diagonal of the patch, and
        half the store's median step.
    bbox, time, ...
        Which samples may be analogues; see `within`.

    Returns
    -------
    On ``rank`` what `search` says of the analogues, and their ``event`` by number. On ``(rank, lead)``
    ``sequel_crop`` (-1 where there is none) and ``sequel_time``. On ``lead``: ``members``, how many sequels there
    are, ``events`` and ``days``, the independent events and convective days among them.

    With ``of``, ``sequel(rank, lead)``, ``now(rank)``; on ``lead`` ``mean`` and ``spread`` (standard deviation) of
    the sequels, ``persistence`` (the query's value now) and ``observed`` (what came; NaN where it is not known).

    Else ``sequel(rank, lead, feature)``; on ``lead`` ``spread``, 1 less the length of the mean of the sequels' unit
    vectors (0 where all came out alike), ``likeness``, the cosine of that mean and what came, and ``persistence``,
    the cosine of the query and what came.

    Raises
    ------
    SchemaError
        As `search`; or if no analogue has a sequel, or ``of`` is on other patches.
    """
    require_embeddings(dataset, "analogues")
    leads = _leads(lead)
    rule = as_neighborhood(exclude, "exclude")
    if rule is not None:
        wider = rule[0] + max(leads)
        exclude = (None if np.isinf(wider) else np.timedelta64(round(wider), "s"), _km(rule[1]))
    channel = where.get("channel")
    asked = question(dataset, query, channel, metric)
    found = search(dataset, query, k, exclude=exclude, separate=separate, metric=metric, **where)
    times = found["time"].values.astype("datetime64[s]")
    limit = time_step(dataset) / 2 if time_tolerance is None else as_seconds(time_tolerance)
    places = _Sequels(dataset, leads, tolerance, limit)
    after = places.at(times, found["latitude"].values, found["longitude"].values, _channels(dataset, found))
    member = after["crop"] >= 0
    if not member.any():
        raise SchemaError(
            f"analogues: none of the {len(times)} analogues has a sequel {lead} later in the store; its times are "
            f"{_minutes(time_step(dataset))} apart. Pass another lead=, or time_tolerance=."
        )
    truth = None
    if asked.sample is not None and asked.place is not None:
        seconds, *point = (np.array([v]) for v in asked.place)
        own = np.array([asked.sample["channel"]]) if "channel" in asked.sample else None
        truth = places.at(seconds.astype("datetime64[s]"), point[0], point[1], own)
    out = found.assign_coords(lead=("lead", _seconds(leads), {"long_name": "time after"}))
    if of is None:
        columns, used = _of_embeddings(dataset, asked, after, truth)
    else:
        now = {d: _positions(dataset, d, found[d].values) for d in ("crop", *cell_dims(dataset))}
        columns, used = _of_variable(dataset, of, asked, after, truth, now)
    events = _events(found, as_neighborhood(event, "event"))
    days = convective_day(times)
    out = out.assign(columns)
    out["event"] = (
        "rank",
        events,
        {"long_name": "independent event that the analogue belongs to", "units": "1"},
    )
    out["sequel_crop"] = (("rank", "lead"), np.where(used, _names(dataset, after["crop"]), -1))
    came = dataset["time"].values[np.maximum(after["crop"], 0)]
    out["sequel_time"] = (("rank", "lead"), np.where(used, came, np.array("NaT", came.dtype)))
    said = "sequels that the lead's numbers are made of"
    out["members"] = ("lead", used.sum(axis=0), {"long_name": said, "units": "1"})
    for name, group in (("events", events), ("days", days)):
        counts = [len(np.unique(group[column])) for column in used.T]
        out[name] = ("lead", counts, {"long_name": f"independent {name} among the sequels", "units": "1"})
    out.attrs |= {"event": str(event), "exclude": str(exclude)}
    return out


def _leads(lead: Any) -> list[float]:
    leads = [as_seconds(one) for one in (lead if isinstance(lead, (list, tuple)) else [lead])]
    if not leads or not all(0 < s < np.inf for s in leads):
        raise SchemaError(f"lead: got {lead!r}; expected a length of time such as '60min', or a list of them")
    return leads


def _seconds(leads: Sequence[float]) -> np.ndarray:
    return np.rint(leads).astype(np.int64).astype("timedelta64[s]")


def _km(km: float) -> float | None:
    return None if np.isinf(km) else km


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min"


def _positions(dataset: xr.Dataset, dim: str, names: np.ndarray) -> np.ndarray:
    known = labels(dataset, dim)
    order = np.argsort(known, kind="stable")
    return np.asarray(order[np.searchsorted(known[order], names)])


def _names(dataset: xr.Dataset, crops: np.ndarray) -> np.ndarray:
    return labels(dataset, "crop")[np.maximum(crops, 0)]


def _channels(dataset: xr.Dataset, found: xr.Dataset) -> np.ndarray | None:
    if "channel" not in sample_dims(dataset):
        return None
    return np.array([int(channel_positions(dataset, str(c))[0]) for c in found["channel"].values])


class _Sequels:
    """What stands at places some time later."""

    def __init__(self, dataset: xr.Dataset, leads: Sequence[float], tolerance: Any, limit: float) -> None:
        self.places, self.leads, self.tolerance = Places(dataset), leads, tolerance
        self.limit = np.timedelta64(int(limit), "s")

    def at(
        self, times: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, channel: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Positions of the samples (places, leads) along each dim; -1 where there is none."""
        shape = (len(times), len(self.leads))
        later = times[:, None] + _seconds(self.leads)
        index, _ = self.places.find(
            later.reshape(-1), np.repeat(latitude, shape[1]), np.repeat(longitude, shape[1]),
            tolerance=self.tolerance, time_tolerance=self.limit,
        )  # fmt: skip
        out = {d: i.reshape(shape) for d, i in index.items()}
        if channel is not None:
            out["channel"] = np.where(out["crop"] >= 0, channel[:, None], -1)
        return out


def _of_embeddings(
    dataset: xr.Dataset, asked: Question, after: dict[str, np.ndarray], truth: dict[str, np.ndarray] | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Sequels as embeddings: they, their spread, and how like they and the query are to what came."""
    sequel = _read(dataset["embedding"].variable, after)
    used = np.isfinite(sequel).all(axis=-1)
    unit = _unit(np.where(used[..., None], sequel, 0.0))
    count = np.maximum(used.sum(axis=0), 1)[:, None]
    mean = unit.sum(axis=0) / count
    spread = np.where(used.any(axis=0), 1 - np.linalg.norm(mean, axis=-1), np.nan)
    came = np.full(mean.shape, np.nan)
    if truth is not None:
        came = _unit(_read(dataset["embedding"].variable, truth)[0])
    out = {
        "sequel": (("rank", "lead", "feature"), sequel, {"long_name": "embedding of what came after", "units": "1"}),
        "spread": ("lead", spread, {"long_name": "1 less the length of the mean unit vector", "units": "1"}),
        "likeness": ("lead", (_unit(mean) * came).sum(-1),
                     {"long_name": "cosine of the mean of the sequels and what came", "units": "1"}),
        "persistence": ("lead", (_unit(asked.vector) * came).sum(-1),
                        {"long_name": "cosine of the query and what came", "units": "1"}),
    }  # fmt: skip
    return out, used


def _of_variable(
    dataset: xr.Dataset,
    of: xr.DataArray,
    asked: Question,
    after: dict[str, np.ndarray],
    truth: dict[str, np.ndarray] | None,
    now: dict[str, np.ndarray],
) -> tuple[dict[str, Any], np.ndarray]:
    """Sequels as values of a variable per patch: they, their mean and spread, persistence, and what came."""
    dims = ("crop", *cell_dims(dataset))
    sizes = {d: dataset.sizes[d] for d in dims}
    if dict(of.sizes) != sizes:
        raise SchemaError(
            f"analogues: of= has dims {dict(of.sizes)}; expected a value a sample, {sizes}: a variable of the cube "
            "that was embedded, without overlapping patches"
        )

    def values(index: dict[str, np.ndarray]) -> np.ndarray:
        return _read(of.variable, {d: index[d] for d in dims})

    sequel = values(after)
    used = np.isfinite(sequel)
    filled, count = np.where(used, sequel, 0.0), used.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / count
        spread = np.sqrt((np.where(used, sequel - mean, 0.0) ** 2).sum(axis=0) / count)
    leads = len(count)
    start = np.nan
    if asked.sample is not None:
        start = float(values({d: np.array([asked.sample[d]]) for d in dims})[0])
    observed = np.full(leads, np.nan) if truth is None else values(truth)[0]
    units = {"units": of.attrs.get("units", "1")}
    name = of.attrs.get("long_name", of.name)
    return {
        "now": ("rank", values(now), units | {"long_name": f"{name} of the analogue"}),
        "sequel": (("rank", "lead"), sequel, units | {"long_name": f"{name} after the analogue"}),
        "mean": ("lead", mean, units | {"long_name": f"mean of {name} after the analogues"}),
        "spread": ("lead", spread, units | {"long_name": "standard deviation about the mean"}),
        "persistence": ("lead", np.full(leads, start), units | {"long_name": f"{name} of the query"}),
        "observed": ("lead", observed, units | {"long_name": f"{name} after the query"}),
    }, used


def _read(variable: xr.Variable, index: dict[str, np.ndarray]) -> np.ndarray:
    """Values at samples, float64; NaN where an index is -1. Keeps the shape of the index in front."""
    shape = next(iter(index.values())).shape
    there = (index["crop"] >= 0).reshape(-1)
    found = read_points(variable, {d: i.reshape(-1)[there] for d, i in index.items()})
    out = np.full((there.size, *found.shape[1:]), np.nan)
    out[there] = found
    return out.reshape(*shape, *found.shape[1:])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300))


def _events(found: xr.Dataset, rule: tuple[float, float] | None) -> np.ndarray:
    """Number of the event that each analogue belongs to, from 0: those near each other, linked by any chain."""
    count = found.sizes["rank"]
    if rule is None:
        return np.arange(count)
    seconds = seconds_of(found["time"].values)
    lat, lon = found["latitude"].values, found["longitude"].values
    near = np.abs(seconds[:, None] - seconds) < rule[0]
    near &= great_circle_km(lat[:, None], lon[:, None], lat, lon) < rule[1]
    group = np.arange(count)
    while True:
        least = np.where(near, group, count).min(axis=1)
        least = np.minimum(least, group)
        if (least == group).all():
            return np.asarray(np.unique(group, return_inverse=True)[1])
        group = least
