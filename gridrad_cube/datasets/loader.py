"""Batches of samples, and their loading ahead of training in threads of this process."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map


@dataclass(frozen=True)
class Batch:
    """Samples of a data set as they are stored; ``dataset.decode(batch)`` gives values and valid pixels.

    Attributes
    ----------
    codes
        Patches: packed, (B, C, H, W). Grids of embeddings: float16, (B, D, rows, cols).
    index
        Numbers of the samples in the data set, int64, (B,); see ``dataset.describe``.
    channel
        Index into ``dataset.labels``, int64, (B,); 0 where all channels are stacked.
    valid
        Grids only: cells that count, bool, (B, rows, cols). For patches, the codes show which pixels are
        valid.
    window
        `WindowPairs` only: number of the place, seconds since 1970, top and left edge in the crop, int64, (B, 4).
    damaged
        Requested samples that were left out because the store is damaged there, int64, (K,); None without
        any.
    """

    codes: torch.Tensor
    index: torch.Tensor
    channel: torch.Tensor
    valid: torch.Tensor | None = None
    window: torch.Tensor | None = None
    damaged: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: int) -> Batch:
        """Return one sample, as a batch."""
        row = range(len(self))[item]
        return self.take(slice(row, row + 1))

    def take(self, rows: slice | torch.Tensor, damaged: torch.Tensor | None = None) -> Batch:
        """Return a part of the batch.

        Parameters
        ----------
        rows
            Slice or numbers of rows.
        damaged
            New list of damaged samples.

        Returns
        -------
        The part.
        """
        return replace(replace(self, damaged=None)._map(lambda tensor: tensor[rows]), damaged=damaged)

    def split(self, parts: int, runs: int = 1) -> list[Batch]:
        """Return the batch in parts of nearly equal length, in order, without the list of damaged samples.

        Parameters
        ----------
        parts
            Number of parts.
        runs
            Number of runs of equal length that make up the batch; each part has its share of each.

        Returns
        -------
        The parts.
        """
        if parts == 1:
            return [self]
        rows = torch.arange(len(self), device=self.codes.device)
        pieces = [run.tensor_split(parts) for run in rows.tensor_split(runs)]
        return [self.take(torch.cat(same)) for same in zip(*pieces, strict=True)]

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return the batch with each of its tensors replaced by a function of it."""
        return Batch(**{name: function(tensor) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that the batch has, by name."""
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on another device.

        Parameters
        ----------
        device
            The device.
        non_blocking
            As of ``torch.Tensor.to``.

        Returns
        -------
        A copy, or the batch itself if it is there already.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU copies without blocking.

        Returns
        -------
        A copy.
        """
        return self._map(torch.Tensor.pin_memory)


def _collate(batches: Sequence[Batch] | Batch, *, collate_fn_map: Any = None) -> Batch:
    if isinstance(batches, Batch):
        return batches
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name, tensor in batch._tensors().items():
            parts.setdefault(name, []).append(tensor)
    return Batch(**{name: torch.cat(tensors) for name, tensors in parts.items()})


# The documented way to register a type with DataLoader. `__getitems__` gives a whole Batch, which is passed
# on as it is.
default_collate_fn_map[Batch] = _collate


class PatchLoader:
    """Read batches ahead of training, in threads, and hand them out in order.

    Readers and torch release Python's lock while they work, so that threads do what worker processes do
    without copying batches between them. An iteration is one epoch, or the rest of it. Leaving it early, or
    an error, stops the threads before control returns.

    Parameters
    ----------
    dataset
        A `PatchDataset`, `GridDataset`, `PairDataset` or `WindowPairs`.
    sampler
        An `EpochSampler`, which advances by one step with each batch handed out; or any iterable of batches of sample
        indices.
    prefetch
        Batches read ahead.
    threads
        Batches read at a time. They share the threads of the reader, so that more than two rarely helps.
    device
        Device of the batches. They reach a GPU through page-locked memory and a separate stream.

    Attributes
    ----------
    seconds_waiting
        Total time for which the caller has waited for batches.
    damaged
        Samples left out so far because the store is damaged there (``on_damage="skip"``).
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Any,
        *,
        prefetch: int = 4,
        threads: int = 2,
        device: torch.device | str | None = None,
    ) -> None:
        if prefetch < 1 or threads < 1:
            raise ValueError(f"got prefetch {prefetch}, threads {threads}; expected 1 or more")
        self.dataset, self.sampler, self.prefetch, self.threads = dataset, sampler, prefetch, threads
        #: Whether the sampler keeps the position: an `EpochSampler`.
        self._advances = hasattr(sampler, "advance")
        self.device = None if device is None else torch.device(device)
        cuda = self.device is not None and self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        self.seconds_waiting = 0.0
        self.damaged: list[int] = []

    def __len__(self) -> int:
        """Return the batches of an iteration that starts now."""
        return int(self.sampler.steps_left) if self._advances else len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        indices = iter(self.sampler.batches() if self._advances else self.sampler)
        if self._advances and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.sampler.epoch)
        pending: deque[tuple[Sequence[int] | np.ndarray, Future[Batch]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="PatchLoader")
        try:
            for index in itertools.islice(indices, self.prefetch):
                pending.append((index, pool.submit(self._load, index)))
            while pending:
                index, future = pending.popleft()
                batch = self._wait(index, future)
                for following in itertools.islice(indices, 1):
                    pending.append((following, pool.submit(self._load, following)))
                if self._advances:
                    self.sampler.advance()
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, index: Sequence[int] | np.ndarray) -> Batch:
        batch: Batch = self.dataset.__getitems__(index)
        if self.device is None:
            return batch
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
        self._stream.synchronize()  # this thread waits for the copy, not the one that trains
        return moved

    def _wait(self, index: Sequence[int] | np.ndarray, future: Future[Batch]) -> Batch:
        started = time.perf_counter()
        try:
            batch = future.result()
        except Exception as error:
            error.add_note(f"while reading a batch of {len(index)} samples: {list(map(int, index))}")
            with contextlib.suppress(OSError, ValueError):  # the store itself may be what failed
                error.add_note(f"the first of them is {self.dataset.describe(int(index[0]))}")
            raise
        finally:
            self.seconds_waiting += time.perf_counter() - started
        if batch.damaged is not None:
            self.damaged += batch.damaged.tolist()
        if self._stream is not None:
            for tensor in batch._tensors().values():  # the allocator must know that this stream uses them too
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return batch
