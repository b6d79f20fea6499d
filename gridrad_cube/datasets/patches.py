"""Patches of a cube as samples, read lazily in batches in their packed form."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.utils.data import Dataset, get_worker_info

from gridrad_cube.datasets.loader import Batch
from gridrad_cube.datasets.normalization import Normalization, decode, normalizations
from gridrad_cube.datasets.table import (
    SampleRecord,
    SampleTable,
    build_table,
    chosen_crops,
    explain_empty,
    identify_crops,
)
from gridrad_cube.geometry import reverse
from gridrad_cube.schema import Packing, SchemaError
from gridrad_cube.selection import Box, Reject, choose_labels, labels_of, reject_masks
from gridrad_cube.storage import Files
from gridrad_cube.store import Build, MissingChunkError, Orientation, PatchReader, open_packed, store_info


class PatchDataset(Dataset[Batch]):
    """Clean patches of a cube for training, with north up and east right for any order of rows in the source.

    Opening reads flags, echo fractions and positions. Pixels are read by batches when samples are indexed,
    and stay packed. Row and column count patches in the order of the store. A data set can be pickled, and
    each process opens the store itself. After a fork, a data set that was already read raises an error; use
    threads (`PatchLoader`), or a spawn or forkserver context.

    Parameters
    ----------
    store
        A finished cube: path or URL.
    channels
        Labels (``"reflectivity@3.0km"``), or names of variables for all their altitudes; None for all.
    altitude
        Altitudes in km of the channels that have them; None for all.
    reject
        Flags that exclude a patch: names, a mask, ``()`` for none; None for the default of each channel.
        Padding, and channels that are missing in a crop, are always excluded.
    channel_mode
        ``"each"``: one sample for each patch and label. ``"stack"``: one sample for each patch in which all
        labels are clean, with all labels.
    time
        ``(start, stop)``, UTC, stop not included, so that adjacent ranges share no crop; or one value, a slice, or
        a list of pairs, as in `gridrad_cube.selection.Selection`.
    exclude_time
        Times to exclude, in the same form.
    bbox
        ``(west, south, east, north)`` in degrees, which must contain the center of a patch; west > east
        crosses the date line.
    coarsen
        Edge in pixels of the blocks that `decode` averages.
    on_damage
        Action for a patch that is missing, truncated or altered. ``"raise"`` raises an error that names it.
        ``"skip"`` leaves the sample out, so that the batch is shorter, and lists it in ``batch.damaged``.
        Errors of disk or network are always raised.
    samples
        The samples of an earlier data set (`record`), whose store may have grown or been reflagged since.
        They replace ``reject``, ``time``, ``exclude_time`` and ``bbox``.

    Attributes
    ----------
    labels
        The channel labels, in the order of channel indices.
    table
        A `SampleTable`: crop, row, col, channel, stratum of each sample.

    Raises
    ------
    SchemaError
        If the store is of another kind, lacks a channel or altitude, or no patch is selected (with the number
        of patches that each flag rejects).
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        channels: str | Iterable[str] | None = None,
        altitude: float | Sequence[float] | None = None,
        reject: Reject = None,
        channel_mode: Literal["each", "stack"] = "each",
        time: Any = None,
        exclude_time: Any = None,
        bbox: Box | None = None,
        coarsen: int = 1,
        on_damage: Literal["raise", "skip"] = "raise",
        samples: SampleRecord | None = None,
    ) -> None:
        modes, reactions = ("each", "stack"), ("raise", "skip")
        for name, value, known in (
            ("channel_mode", channel_mode, modes),
            ("on_damage", on_damage, reactions),
        ):
            if value not in known:
                raise SchemaError(f"{name}: got {value!r}; expected one of {known}")
        self.store = os.fspath(store)
        info = store_info(store, "patches")
        self.patch, self.coarsen = int(info["patch"]), int(coarsen)
        self.channel_mode, self.on_damage = channel_mode, on_damage
        if self.coarsen < 1 or self.patch % self.coarsen:
            raise SchemaError(f"coarsen: got {coarsen}; expected a divisor of the patch, {self.patch} px")
        self._normalizations: dict[str, Normalization] | None = None
        dataset = self._dataset
        available = labels_of(dataset, list(info["channels"]))
        self._labels = choose_labels(available, channels, self.store, altitude=altitude)
        self.labels = tuple(label.name for label in self._labels)
        masks = reject_masks(self._labels, reject)
        #: Rejecting bits of each label.
        self.reject = dict(zip(self.labels, masks, strict=True))
        if samples is None:
            crops = chosen_crops(dataset, time, exclude_time)
            self.table = self._build_table(crops, masks, bbox)
            if not len(self.table):
                raise explain_empty(dataset, self._labels, masks, crops, bbox, self.store)
        else:
            self.table = self._recorded_table(samples)
        self._dtype = np.result_type(*(dataset[label.variable].dtype for label in self._labels))
        self._altitudes = np.array([label.altitude or 0 for label in self._labels])
        self._variables: dict[str, list[int]] = {}  # numbers of the labels of each
        for number, label in enumerate(self._labels):
            self._variables.setdefault(label.variable, []).append(number)

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_dataset", "_reader", "orientation")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"PatchDataset({self.store!r}, {len(self)} samples of {list(self.labels)}, {self.channel_mode!r})"
        )

    @functools.cached_property
    def _dataset(self) -> xr.Dataset:
        return open_packed(self.store)

    @functools.cached_property
    def _reader(self) -> PatchReader:
        # Worker processes of a DataLoader are as many as there are cores to use.
        alone = get_worker_info() is None or not Files(self.store).local
        return PatchReader(self.store, threads=None if alone else 1)

    @functools.cached_property
    def orientation(self) -> Orientation:
        """The crops that are reversed when they are read, so that north is up and east is right."""
        return Orientation(self._dataset)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of patches of a crop."""
        return int(self._dataset.sizes["row"]), int(self._dataset.sizes["col"])

    @functools.cached_property
    def crop_places(self) -> np.ndarray:
        """Number of the place of each crop of the store, by its northwestern patch, int64, (crop,)."""
        names, crops = ["latitude", "longitude"], np.arange(self._dataset.sizes["crop"])
        row, col = -self.orientation.of(crops).astype(np.int64).T  # the last one of what is reversed
        corner = {name: self._dataset[name].values[crops, row, col].round(3) for name in names}
        return np.asarray(
            pd.DataFrame(corner).groupby(names, sort=False, dropna=False).ngroup().to_numpy(np.int64)
        )

    @functools.cached_property
    def crop_seconds(self) -> np.ndarray:
        """Time of each crop of the store in seconds since 1970, int64, (crop,)."""
        return self._dataset["time"].values.astype("datetime64[s]").astype(np.int64)

    @functools.cached_property
    def missing_codes(self) -> np.ndarray:
        """The code for "not observed" of each label, (labels,)."""
        codes = []
        for label in self._labels:
            array = self._dataset[label.variable]
            packing = Packing.from_attributes(array.attrs, array.dtype)
            known = (packing.fill_value, packing.non_finite, packing.out_of_range)
            code = next((c for c in known if c is not None), np.nan)
            if array.dtype.kind != "f" and np.isnan(code):
                raise SchemaError(
                    f"{self.store}: {label.name} has no code for missing pixels, which windows over several patches "
                    "need. Leave the channel out, or build the store from files that state a _FillValue."
                )
            codes.append(code)
        return np.array(codes).astype(self._dtype)

    def _build_table(self, crops: np.ndarray, masks: Sequence[int], bbox: Box | None = None) -> SampleTable:
        stacked = self.channel_mode == "stack"
        return build_table(self._dataset, self._labels, masks, crops, stacked=stacked, bbox=bbox)

    def _recorded_table(self, samples: SampleRecord) -> SampleTable:
        """Return the table of recorded samples."""
        crop, cells = samples.find(self._identities, self._record_shape, self.store)
        crops = np.zeros(self._dataset.sizes["crop"], bool)
        crops[crop] = True
        every = self._build_table(crops, [0] * len(self._labels))
        kept = cells[np.searchsorted(crop, every.crop), every.row, every.col, every.channel]
        columns = (every.crop, every.row, every.col, every.channel, every.stratum)
        return SampleTable(*(column[kept] for column in columns))

    @property
    def _record_shape(self) -> tuple[int, int, int]:
        return (*self.cells, 1 if self.channel_mode == "stack" else len(self.labels))

    @functools.cached_property
    def _identities(self) -> np.ndarray:
        """Identity of each crop of the store, by its place, its time and the checksums of its shards, (crop,)."""
        build, crops = Build(self.store), self._dataset.sizes["crop"]
        checksums = build.shard_crc if build.is_planned else np.zeros((crops, 0), np.uint32)
        return identify_crops(self._dataset, *checksums[:crops].T)

    def record(self) -> SampleRecord:
        """Return a record of the samples, to open the same ones (``samples``) after the store has changed.

        Returns
        -------
        The record.
        """
        table = self.table
        crop, number = np.unique(table.crop, return_inverse=True)
        cells = np.zeros((len(crop), *self._record_shape), bool)
        cells[number, table.row, table.col, table.channel] = True
        return SampleRecord.of(self._identities, crop, cells)

    @property
    def strata(self) -> np.ndarray:
        """`Stratum` of each sample, for `EpochSampler`."""
        return self.table.stratum

    @property
    def crop(self) -> np.ndarray:
        """Position in the store of the crop of each sample, int32, (N,)."""
        return self.table.crop

    @property
    def planes(self) -> int:
        """Channels of one sample."""
        return len(self.labels) if self.channel_mode == "stack" else 1

    @property
    def normalizations(self) -> dict[str, Normalization]:
        """Normalizations from the training statistics of the store. Assign those of a checkpoint to use them
        instead.
        """
        if self._normalizations is None:
            self._normalizations = normalizations(self.store, self.labels)
        return self._normalizations

    @normalizations.setter
    def normalizations(self, like: Mapping[str, Normalization]) -> None:
        self._normalizations = normalizations(self.store, self.labels, like=like)

    def decode(
        self, batch: Batch, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalized values and valid pixels of a batch, on its device, as the function `decode`
        does.

        Parameters
        ----------
        batch
            Batch of this data set.
        dtype
            Data type of the values.

        Returns
        -------
        Values and valid pixels.
        """
        return decode(batch.codes, batch.channel, self.normalizations, coarsen=self.coarsen, dtype=dtype)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read samples, packed.

        Raises
        ------
        MissingChunkError
            If a patch is missing or altered; names it. With ``on_damage="skip"`` it is left out instead.
        """
        index = np.array(indices, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"{self!r}: no sample {index.min()} or {index.max()}")
        table, labels = self.table, self.table.channel[index].astype(np.int64)
        codes = np.empty((len(index), self.planes, self.patch, self.patch), self._dtype)
        batch = Batch(*map(torch.from_numpy, (codes, index, labels)))
        where = np.stack([table.crop[index], table.row[index], table.col[index]], axis=1)
        if self.channel_mode == "stack":
            where = np.repeat(where, self.planes, axis=0)
            labels = np.tile(np.arange(self.planes), len(index))
        damage: dict[int, MissingChunkError] = {}  # by position in the batch
        for variable, numbers in self._variables.items():
            planes = np.flatnonzero(np.isin(labels, numbers))
            if not len(planes):
                continue
            wanted = where[planes]
            if self._labels[numbers[0]].altitude is not None:
                wanted = np.insert(wanted, 1, self._altitudes[labels[planes]], axis=1)
            patches = codes.reshape(-1, self.patch, self.patch)
            failures = self._reader.read_into(variable, wanted, patches, planes)
            damage |= {int(planes[i]) // self.planes: error for i, error in failures.items()}
        reverse(codes, self.orientation.of(table.crop[index]))
        if not damage:
            return batch
        if self.on_damage == "raise":
            raise damage[min(damage)]
        damaged = np.array(sorted(damage))
        kept = torch.from_numpy(np.delete(np.arange(len(index)), damaged))
        return batch.take(kept, damaged=torch.from_numpy(index[damaged]))

    def positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the latitude, longitude, time (``datetime64[s]``) and channel index of each sample.

        Returns
        -------
        Arrays of shape (N,).
        """
        table, stored = self.table, self._dataset
        latitude, longitude = (
            stored[name].values[table.crop, table.row, table.col] for name in ("latitude", "longitude")
        )
        return latitude, longitude, stored["time"].values.astype("datetime64[s]")[table.crop], table.channel

    def describe(self, index: int) -> dict[str, Any]:
        """Return the origin of a sample: store, crop, row, col, channel, time, position, source file.

        ``channel`` is its label, or the list of labels if they are stacked.

        Parameters
        ----------
        index
            Number of the sample.

        Returns
        -------
        Values by name.
        """
        table = self.table
        crop, row, col = int(table.crop[index]), int(table.row[index]), int(table.col[index])
        here = self._dataset[["time", "latitude", "longitude", "source"]].isel(crop=crop)
        place = here[["latitude", "longitude"]].isel(row=row, col=col)
        each = self.channel_mode == "each"
        return {
            "store": self.store,
            "crop": crop,
            "row": row,
            "col": col,
            "channel": self.labels[int(table.channel[index])] if each else list(self.labels),
            "time": here["time"].values.astype("datetime64[s]"),
            "latitude": float(place["latitude"]),
            "longitude": float(place["longitude"]),
            "source": str(here["source"].values),
        }
