"""Fit the readout of an embedding store to its clean samples, and save it with the store."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from gridrad_cube.lease import lease
from gridrad_cube.query.samples import require_embeddings, seconds_of, select, time_step
from gridrad_cube.readout import (
    Readout,
    ReadoutFit,
    network_of,
    remove_readouts,
    save_readouts,
    saved_readout,
)
from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.selection import Reject, as_seconds, labels_of, reject_masks
from gridrad_cube.storage import Files
from gridrad_cube.store import EmbeddingReader, open_embeddings, store_info

logger = logging.getLogger(__name__)

#: Steps of the data from the first to the last of the times whose differences count as change. With groups of four
#: hourly frames, retrieval of clouds an hour and three hours later was best by a little; groups of 2 to 6 do as well.
_STEPS = 3
#: Samples that are read at once.
_ROWS = 16384


def fit_readout(
    store: str | os.PathLike[str],
    *,
    directions: int | None = None,
    within: Any = None,
    whiten: bool = False,
    time: Any = None,
    reject: Reject = None,
) -> dict[str, Readout]:
    """Fit a readout of each channel of an embedding store, without labels, and save it with the store.

    A readout standardizes the features, whitens them by the covariance of their change between near times at one
    place, and keeps the directions that vary most between places and times; see `gridrad_cube.readout`. `search`,
    `analogues`, `follow`, `frequency` and ``plot.embeddings`` then compare samples after it. An earlier readout of the
    store is replaced in one step. The store is read once, in blocks: memory does not grow with it.

    Parameters
    ----------
    store
        Path or URL of a finished embedding store, level 256 or 2k.
    directions
        Number of directions to keep, at most the number of features; None is 192, or 64 with ``whiten``, and at
        most one for two samples.
    within
        Longest time between samples of one place whose differences count as change, such as ``"3h"``; None
        takes three time steps of the data. A place is a patch of crops with the same window of the same grid.
    whiten
        Whiten by the covariance of all samples instead of the covariance of change. The default finds what
        persists at a place, such as the same storm later with its surroundings. Whitening finds similar
        weather at any place.
    time, reject
        Samples for the fit: times, and flags that exclude a sample; see `within`.

    Returns
    -------
    The readout of each channel that has clean samples, by label. If no place has two times within the limit,
    it standardizes and keeps all features.

    Raises
    ------
    SchemaError
        If this is not a finished embedding store, no sample is selected, or ``directions`` is less than 1.
    """
    store_info(store, "embeddings")
    with lease(Files(store), "_build"):
        found = _fit(store, directions, within, whiten, time, reject)
        save_readouts(store, found)
    return found


def _fit(
    store: str | os.PathLike[str],
    directions: int | None,
    within: Any,
    whiten: bool,
    time: Any,
    reject: Reject,
) -> dict[str, Readout]:
    """Return the readouts of `fit_readout`, which has the parameters."""
    dataset = open_embeddings(store)
    mask = select(dataset, time=time, reject=reject)
    seconds = _STEPS * time_step(dataset) if within is None else as_seconds(within)
    labels = labels_of(dataset)
    fits = [ReadoutFit(dataset.sizes["feature"]) for _ in labels]
    reader, used = EmbeddingReader(store), mask.any(axis=tuple(range(1, mask.ndim)))
    runs = _runs(dataset, np.flatnonzero(used), seconds, most=max(1, _ROWS // mask[0, 0].size))
    for crops, run in runs:
        for channel, fit in enumerate(fits):
            some = mask[crops, channel].reshape(len(crops), -1).any(axis=1)
            if some.any():
                clean = mask[crops[some], channel]
                vectors = reader.read(crops[some], np.full(len(clean), channel))[clean]
                # A place is a cell of a run.
                place = np.arange(clean[0].size).reshape(clean.shape[1:])
                group = run[some].reshape(-1, *(1 for _ in place.shape)) * place.size + place
                fit.add(vectors)
                fit.add_change(vectors, group[clean])
    info = store_info(dataset)
    times = dataset["time"].values[used]
    about = {
        "identity": info.get("identity"), "network": network_of(info), "crops": dataset.sizes["crop"],
        "time": [f"{np.datetime_as_string(t, 's')}Z" for t in (times.min(), times.max())],
        "within_hours": None if np.isinf(seconds) else seconds / 3600,
    }  # fmt: skip
    found = {}
    for label, fit, bits in zip(labels, fits, reject_masks(labels, reject), strict=True):
        if fit.samples:
            about["reject"] = [flag.name for flag in Flag if flag & bits]
            found[label.name] = fit.readout(directions, whiten=whiten, **about)
    if not found:
        raise SchemaError(f"{store}: no clean sample has an embedding, so a readout cannot be fitted")
    for name, readout in found.items():
        if not (whiten or readout.fitted["pairs"]):
            logger.warning(
                "%s: %s has no place with two times within %s, so its readout only standardizes",
                store, name, "any limit" if np.isinf(seconds) else f"{seconds / 3600:g} h",
            )  # fmt: skip
    return found


def remove_readout(store: str | os.PathLike[str]) -> None:
    """Remove the readout of an embedding store, if it has one.

    Parameters
    ----------
    store
        Path or URL of a finished embedding store, level 256 or 2k.

    Raises
    ------
    SchemaError
        If this is not a finished embedding store.
    """
    store_info(store, "embeddings")
    with lease(Files(store), "_build"):
        remove_readouts(store)


def readout_of(
    store: str | os.PathLike[str] | xr.Dataset, channel: int | str | None = None
) -> Readout | None:
    """Return the readout that is saved with an embedding store, for one of its channels.

    Parameters
    ----------
    store
        Path or URL, or a Dataset opened from a store, or a part of one.
    channel
        Label or position; the first if None.

    Returns
    -------
    As `gridrad_cube.readout.saved_readout`: None if it has no readout, or one of another network.

    Raises
    ------
    SchemaError
        If this is not an embedding store, the readout is damaged, or there is no such channel.
    """
    dataset = store if isinstance(store, xr.Dataset) else open_embeddings(store)
    require_embeddings(dataset, "readout")
    return saved_readout(dataset, channel)


def _runs(
    dataset: xr.Dataset, crops: npt.NDArray[np.int64], seconds: float, *, most: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield crops in batches of whole runs. A run has crops of one window of a grid whose times are within a
    limit.

    Yields the crops, ascending, and the number of the run of each. A run has at most ``most`` crops, and a
    batch less than twice as many. Batches follow the order of the store, so that each reads neighboring
    chunks.
    """
    times = seconds_of(dataset["time"].values[crops])
    names = [name for name in ("grid", "y_origin", "x_origin") if name in dataset.variables]
    codes = [pd.factorize(dataset[name].values[crops])[0] for name in names]
    window = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((times, window))
    runs: list[list[int]] = []
    previous, start = -1, 0
    for i in order.tolist():
        if window[i] != previous or times[i] - start > seconds or len(runs[-1]) >= most:
            runs.append([])
            previous, start = window[i], times[i]
        runs[-1].append(i)
    runs.sort(key=min)
    lengths = np.array([len(run) for run in runs])
    batches = (np.cumsum(lengths) - lengths) // most
    for first, stop in itertools.pairwise([*np.unique(batches, return_index=True)[1], len(runs)]):
        members = np.concatenate(runs[first:stop])
        number = np.repeat(np.arange(stop - first), lengths[first:stop])
        order = np.argsort(members)
        yield crops[members[order]], number[order]
