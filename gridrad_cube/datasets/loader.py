"""Batches read ahead by threads of this process, handed out in order."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from gridrad_cube.datasets.batches import Batch
from gridrad_cube.datasets.sampling import EpochSampler
from gridrad_cube.schema import SchemaError


class PatchLoader:
    """Read batches ahead of training, in threads.

    Readers and torch release Python's lock while they work, so that threads do what worker processes do
    without copying batches between them. An iteration is one epoch (what is left of it); leaving it early, or
    an error, stops the threads before control returns.

    Parameters
    ----------
    dataset
        A `PatchDataset` or `GridDataset`.
    sampler
        An `EpochSampler`, advanced by one step for each batch handed out; or any iterable of sample indices.
    batch_size
        Samples a batch; that of the sampler if it is an `EpochSampler`.
    prefetch
        Batches read ahead.
    threads
        Batches read at a time. They share the threads that a reader has, so that more rarely helps.
    device
        Where to put batches; on a GPU by page-locked memory and a stream of its own.
    drop_last
        Whether a last, short batch is left out (an `EpochSampler` has its own rule).

    Attributes
    ----------
    seconds_waiting
        How long the caller has waited for batches so far.
    damaged
        Samples left out so far since the store is damaged there, by a data set with ``on_damage="skip"``.

    Raises
    ------
    SchemaError
        If there are fewer samples than one batch.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: EpochSampler | Iterable[int],
        batch_size: int,
        *,
        prefetch: int = 4,
        threads: int = 2,
        device: torch.device | str | None = None,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1 or prefetch < 1 or threads < 1:
            raise ValueError(
                f"got batch_size {batch_size}, prefetch {prefetch}, threads {threads}; expected 1 or more"
            )
        if isinstance(sampler, EpochSampler) and sampler.batch_size != batch_size:
            raise ValueError(f"batch_size: got {batch_size}; expected the sampler's, {sampler.batch_size}")
        if drop_last and not isinstance(sampler, EpochSampler) and isinstance(sampler, Sized):
            _check_enough(len(sampler), batch_size)
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch_size
        self.prefetch, self.threads, self.drop_last = prefetch, threads, drop_last
        self.device = None if device is None else torch.device(device)
        cuda = self.device is not None and self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        self.seconds_waiting = 0.0
        self.damaged: list[int] = []

    def __len__(self) -> int:
        """Batches of an iteration that starts now."""
        if isinstance(self.sampler, EpochSampler):
            return self.sampler.steps_left
        if not isinstance(self.sampler, Sized):
            raise TypeError("the sampler has no length")
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def _indices(self) -> Iterator[np.ndarray]:
        if isinstance(self.sampler, EpochSampler):
            yield from self.sampler.batches()
            return
        numbers = iter(self.sampler)
        while chunk := list(itertools.islice(numbers, self.batch_size)):
            if len(chunk) == self.batch_size or not self.drop_last:
                yield np.array(chunk, np.int64)

    def __iter__(self) -> Iterator[Batch]:
        indices = self._indices()
        pending: deque[tuple[np.ndarray, Future[Batch]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="PatchLoader")
        try:
            for index in itertools.islice(indices, self.prefetch):
                pending.append((index, pool.submit(self._load, index)))
            while pending:
                index, future = pending.popleft()
                batch = self._wait(index, future)
                for following in itertools.islice(indices, 1):
                    pending.append((following, pool.submit(self._load, following)))
                if isinstance(self.sampler, EpochSampler):
                    self.sampler.advance()
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, index: np.ndarray) -> Batch:
        batch: Batch = self.dataset.__getitems__(index)
        if self.device is None:
            return batch
        if self._stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
        self._stream.synchronize()  # this thread waits for the copy, not the one that trains
        return moved

    def _wait(self, index: np.ndarray, future: Future[Batch]) -> Batch:
        started = time.perf_counter()
        try:
            batch = future.result()
        except Exception as error:
            error.add_note(f"while reading a batch of {len(index)} samples: {index.tolist()}")
            with contextlib.suppress(OSError, ValueError):  # the store itself may be what failed
                error.add_note(f"the first of them is {self.dataset.describe(int(index[0]))}")
            raise
        finally:
            self.seconds_waiting += time.perf_counter() - started
        if batch.damaged is not None:
            self.damaged += batch.damaged.tolist()
        if self._stream is not None:
            batch.record_stream(torch.cuda.current_stream(self.device))
        return batch


def _check_enough(samples: int, batch_size: int) -> None:
    if samples < batch_size:
        raise SchemaError(
            f"loader: fewer samples than a batch, got {samples} for batch size {batch_size}. Pass a smaller "
            "batch size, drop_last=False, or admit more patches (channels, reject, time, bbox)."
        )
