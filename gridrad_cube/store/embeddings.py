"""Reading embeddings of single crops and channels, whole chunks at a time."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gridrad_cube.storage import Files
from gridrad_cube.store.opening import open_embeddings
from gridrad_cube.store.patches import damage_error
from gridrad_cube.store.shard_layout import ShardLayout
from gridrad_cube.store.shards import ShardReader


class EmbeddingReader:
    """Read the embeddings of crops and channels, in any order. Picklable; opens nothing until the first read.

    Parameters
    ----------
    store
        Path or URL of a finished embedding store.
    threads
        As for `PatchReader`.
    """

    def __init__(self, store: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.files, self.threads = Files(store), threads
        self._shards: ShardReader | None = None
        self._array: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": None, "_array": None}

    def __repr__(self) -> str:
        return f"EmbeddingReader({self.files.root!r})"

    def read(self, crop: np.ndarray, channel: np.ndarray) -> np.ndarray:
        """Embeddings as `open_embeddings` gives them, shape (N, [row, col,] feature).

        Parameters
        ----------
        crop, channel
            Row and column of each in the store, integers, shape (N,).

        Raises
        ------
        MissingChunkError
            If a chunk is missing, truncated or altered; names the crop and the channel.
        """
        if self._shards is None and self._array is None:
            metadata = self.files.read_json("zarr.json")["consolidated_metadata"]["metadata"]["embedding"]
            layout = ShardLayout.from_metadata("embedding", metadata)
            plain = layout is not None and layout.chunk_shape[1:] == (1, *metadata["shape"][2:])
            if not plain or layout is None or layout.dtype == np.int8:  # int8: codes with factors elsewhere
                self._array = open_embeddings(self.files.root)["embedding"].variable
            else:
                self._shards = ShardReader(self.files, layout, threads=self.threads)
        if self._shards is None:
            pairs = zip(crop.tolist(), channel.tolist(), strict=True)
            return np.stack([self._array[place].values for place in pairs])
        return self._from_shards(self._shards, crop, channel)

    def _from_shards(self, shards: ShardReader, crop: np.ndarray, channel: np.ndarray) -> np.ndarray:
        together, *shape = shards.layout.chunk_shape
        block, within = np.divmod(crop, together)
        places, which = np.unique(np.stack([block, channel], axis=1), axis=0, return_inverse=True)
        chunks = np.empty((len(places), together, *shape), shards.layout.dtype)
        index = np.zeros((len(places), chunks.ndim - 1), np.int64)
        index[:, :2] = places
        failures = shards.read(index, chunks)
        if failures:
            row = min(failures)
            i = int(np.flatnonzero(which == row)[0])
            place = {"crop": int(crop[i]), "channel": int(channel[i])}
            raise damage_error(self.files.root, "embedding", place, failures[row], "gridrad-cube embed again")
        picked: np.ndarray = chunks[which, within, 0]
        return picked
