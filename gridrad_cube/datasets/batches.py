"""A batch of samples, and how torch's own DataLoader puts batches together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map


@dataclass(frozen=True)
class Batch:
    """Samples of a data set, still packed.

    Attributes
    ----------
    codes
        Patches: packed, (B, C, H, W). Grids of embeddings: float16, (B, D, rows, cols).
    index
        Which samples of the data set these are, int64, (B,); ``dataset.describe(i)`` tells more.
    channel
        Index into ``dataset.labels``, int64, (B,); 0 where all channels are stacked.
    valid
        Grids only: cells that count, bool, (B, rows, cols).
    """

    codes: torch.Tensor
    index: torch.Tensor
    channel: torch.Tensor
    valid: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: int) -> Batch:
        if not -len(self) <= item < len(self):
            raise IndexError(item)
        start = item % len(self)
        return self._map(lambda tensor: tensor[start : start + 1])

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        valid = None if self.valid is None else function(self.valid)
        return Batch(function(self.codes), function(self.index), function(self.channel), valid)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies without blocking."""
        return self._map(torch.Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that a stream other than the one that made the tensors uses them."""
        for tensor in (self.codes, self.index, self.channel, self.valid):
            if tensor is not None:
                tensor.record_stream(stream)


def _collate(batches: Sequence[Batch] | Batch, *, collate_fn_map: Any = None) -> Batch:
    if isinstance(batches, Batch):
        return batches
    valid = [batch.valid for batch in batches if batch.valid is not None]
    return Batch(
        torch.cat([batch.codes for batch in batches]),
        torch.cat([batch.index for batch in batches]),
        torch.cat([batch.channel for batch in batches]),
        torch.cat(valid) if valid else None,
    )


# The documented way to teach DataLoader a type: `__getitems__` gives a whole Batch, passed on as it is.
default_collate_fn_map[Batch] = _collate
