"""Read packed patches of a cube in batches, by whole chunks."""

from __future__ import annotations

import functools
import itertools
import math
import os
from typing import Any

import numpy as np
import zarr

from gridrad_cube.schema import Flag, SchemaError
from gridrad_cube.storage import Files
from gridrad_cube.store.integrity import CheckedStore, Root, info_of, read_root
from gridrad_cube.store.shards import MissingChunkError, ShardLayout, ShardReader, damage_error

#: Largest number of patches that a window of pixels reads at once, unless one crop has more.
_WINDOW_PATCHES = 512


class PatchReader:
    """Read packed patches of a store in batches, whole chunks at a time.

    Patches are read directly from their shards (`ShardReader`). Nothing is opened before the first read. The
    reader can be pickled and used in spawned or forkserver workers. In a forked child it raises an error if
    the parent has read, because threads do not survive a fork.

    Parameters
    ----------
    store
        Path or URL of a finished cube.
    threads
        Threads that read and decompress; None takes one for each core, at most 8, and 16 for a remote store.
    """

    def __init__(self, store: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.files, self.threads = Files(store), threads
        self._shards: dict[str, ShardReader] = {}
        self._absent: dict[tuple[str, int], np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(PatchReader, threads=self.threads), (self.files.root,)

    def __repr__(self) -> str:
        return f"PatchReader({self.files.root!r})"

    @functools.cached_property
    def root(self) -> Root:
        """The root of the store, as it was at the first read."""
        return read_root(self.files)

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """The ``gridrad_cube`` attributes of the store."""
        return info_of(self.root.attributes, self.files.root, "patches")

    @functools.cached_property
    def _members(self) -> dict[str, dict[str, Any]]:
        # The root's copy of the metadata. The array's own metadata may already describe an extension.
        return self.root.members

    @functools.cached_property
    def _small(self) -> Any:
        return zarr.open_group(CheckedStore(self.files, self.root), mode="r", use_consolidated=True)

    @property
    def patch(self) -> int:
        """Edge of a patch in pixels."""
        return int(self.info["patch"])

    def _shard_reader(self, variable: str) -> ShardReader:
        if variable not in self._shards:
            layout = ShardLayout.from_metadata(variable, self._metadata(variable))
            if math.prod(layout.chunk_shape) != self.patch**2:
                raise SchemaError(f"{self.files.root}: a chunk of {variable} is not a patch of the store")
            self._shards[variable] = ShardReader(self.files, layout, threads=self.threads)
        return self._shards[variable]

    def _metadata(self, variable: str) -> dict[str, Any]:
        if variable not in self.info["channels"]:
            raise SchemaError(
                f"{self.files.root}: no channel {variable!r}; this store has {sorted(self.info['channels'])}"
            )
        return self._members[variable]

    def read(self, variable: str, index: np.ndarray) -> np.ndarray:
        """Read packed patches.

        Parameters
        ----------
        variable, index
            As of `read_into`.

        Returns
        -------
        Codes, shape (N, patch, patch).

        Raises
        ------
        MissingChunkError
            If a chunk is missing, truncated or altered; names the variable and the patch.
        """
        dtype = np.dtype(self._metadata(variable)["data_type"])
        out = np.empty((len(index), self.patch, self.patch), dtype)
        damage = self.read_into(variable, index, out)
        if damage:
            raise damage[min(damage)]
        return out

    def read_into(
        self, variable: str, index: np.ndarray, out: np.ndarray, places: np.ndarray | None = None
    ) -> dict[int, MissingChunkError]:
        """Read patches into an array, and report those that cannot be read.

        Parameters
        ----------
        variable
            Name of the channel.
        index
            Patches as (crop, row, col), or (crop, altitude, row, col) of a channel with altitudes; integers,
            shape (N, 3) or (N, 4).
        out
            Array for the patches, shape (M, patch, patch), of any dtype that holds them.
        places
            Position in ``out`` of each patch; None for the order of ``index``.

        Returns
        -------
        Errors by row of ``index``, for patches that are missing, truncated or altered. Their positions in
        ``out`` have undefined values.

        Raises
        ------
        SchemaError
            If the index does not have the columns of the channel.
        """
        index, dims = np.asarray(index, np.int64), len(self._metadata(variable)["shape"])
        if index.ndim != 2 or index.shape[1] != dims:
            raise ValueError(f"{variable}: an index has {dims} columns, got shape {index.shape}")
        targets = np.arange(len(index)) if places is None else np.asarray(places)
        shards = self._shard_reader(variable)
        if out.dtype == shards.layout.dtype and out[:1].flags.c_contiguous:
            failures = shards.read(index, out, targets)
        else:
            patches = np.empty((len(index), *out.shape[1:]), shards.layout.dtype)
            failures = shards.read(index, patches)
            out[targets] = patches
        return {row: self._error(variable, index[row], what) for row, what in failures.items()}

    def read_window(self, variable: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """Return the packed pixels of a basic index (integers and slices with positive steps).

        Parameters
        ----------
        variable
            Name of the channel.
        key
            Index of each dimension: an integer, or a slice with a positive step.

        Returns
        -------
        Codes. Crops without the channel (flag `channel_absent`, or not written) have the fill value.

        Raises
        ------
        MissingChunkError
            If a chunk is missing, truncated or altered; names the variable and the patch.
        """
        metadata, size = self._metadata(variable), self.patch
        picked = [range(n)[k] for k, n in zip(key, metadata["shape"], strict=True)]
        spans = [range(p, p + 1) if isinstance(p, int) else p for p in picked]
        out = np.empty([len(span) for span in spans], metadata["data_type"])
        if out.size:
            crops, *levels, ys, xs = spans
            rows, cols = (range(s[0] // size, s[-1] // size + 1) for s in (ys, xs))
            y, x = (
                slice(s.start - c[0] * size, s.stop - c[0] * size, s.step)
                for s, c in ((ys, rows), (xs, cols))
            )
            cells = [*levels, rows, cols]
            # One batch for a bounded number of crops, because each request to a remote store has a latency.
            step = max(1, _WINDOW_PATCHES // math.prod(len(c) for c in cells))
            for first in range(0, len(crops), step):
                some, part = np.array(crops[first : first + step]), out[first : first + step]
                there = ~self.absent(variable, some)
                part[~there] = metadata["fill_value"]
                if there.any():
                    index = np.array(list(itertools.product(some[there].tolist(), *cells)))
                    patches = self.read(variable, index).reshape(-1, *(len(c) for c in cells), size, size)
                    whole = *patches.shape[:-4], len(rows) * size, len(cols) * size
                    part[there] = patches.swapaxes(-3, -2).reshape(whole)[..., y, x]
        return out[tuple(0 if isinstance(p, int) else slice(None) for p in picked)]

    def absent(self, variable: str, crops: np.ndarray) -> np.ndarray:
        """Return whether crops have no shard of a channel because the scene lacks it or the crop was not
        written.

        Only the chunks of flags that hold these crops are read.

        Parameters
        ----------
        variable
            Name of the channel.
        crops
            Numbers of the crops.

        Returns
        -------
        Booleans, one for each crop.
        """
        flags, status = self._small[f"{variable}_flags"], self._small["status"]
        rows, out = flags.chunks[0], np.empty(len(crops), bool)
        for number in np.unique(crops // rows).tolist():
            block = slice(number * rows, (number + 1) * rows)
            if (variable, number) not in self._absent:
                lacking = (np.asarray(flags[block]) & int(Flag.channel_absent)) != 0
                unwritten = np.asarray(status[block]) != 0
                self._absent[variable, number] = lacking.all(axis=tuple(range(1, lacking.ndim))) | unwritten
            here = crops // rows == number
            out[here] = self._absent[variable, number][crops[here] % rows]
        return out

    def _error(self, variable: str, where: np.ndarray, reason: str) -> MissingChunkError:
        names = [*self._metadata(variable)["dimension_names"][:-2], "row", "col"]
        place = {n: int(v) for n, v in zip(names, where, strict=False)}
        remedy = "gridrad-cube verify STORE --repair --source-root DIR"
        return damage_error(self.files.root, variable, place, reason, remedy)
