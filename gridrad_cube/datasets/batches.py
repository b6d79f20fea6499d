"""A batch of samples, and how torch's own DataLoader puts batches together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map


@dataclass(frozen=True)
class Batch:
    """Samples of a data set, packed.

    Which pixels of a patch are valid its codes themselves say: `PatchDataset.decode` gives the mask, on the
    device. Cells of a grid need ``valid`` beside them.

    Attributes
    ----------
    codes
        Patches: packed, (B, C, H, W). Grids of embeddings: float16,
        (B, D, rows, cols).
    index
        Which samples of the data set these are, int64, (B,); ``dataset.describe(i)`` tells more.
    channel
        Index into ``dataset.labels``, int64, (B,); 0 where all channels are stacked.
    valid
        Grids: cells that count, bool, (B, rows, cols). None for patches.
    damaged
        Samples that were asked for and left out, since the store is damaged there, int64, (K,); None where
        there are none.
    """

    codes: torch.Tensor
    index: torch.Tensor
    channel: torch.Tensor
    valid: torch.Tensor | None = None
    damaged: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: int) -> Batch:
        if not -len(self) <= item < len(self):
            raise IndexError(item)
        start = item % len(self)
        return replace(self, damaged=None)._map(lambda tensor: tensor[start : start + 1])

    def split(self, parts: int, runs: int = 1) -> list[Batch]:
        """The batch in parts of nearly equal length, in order, without what is listed as damaged.

        Parameters
        ----------
        runs
            Of how many runs of equal length the batch is made; each part has its share of each.
        """
        if parts == 1:
            return [self]

        def pieces(tensor: torch.Tensor) -> list[torch.Tensor]:
            cut = [run.tensor_split(parts) for run in tensor.tensor_split(runs)]
            return [same[0] if runs == 1 else torch.cat(same) for same in zip(*cut, strict=True)]

        columns = {name: pieces(tensor) for name, tensor in replace(self, damaged=None)._tensors().items()}
        return [Batch(**{name: part[k] for name, part in columns.items()}) for k in range(parts)]

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(**{name: function(tensor) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies without blocking."""
        return self._map(torch.Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that a stream other than the one that made the tensors uses them."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)


def _collate(batches: Sequence[Batch] | Batch, *, collate_fn_map: Any = None) -> Batch:
    if isinstance(batches, Batch):
        return batches
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name, tensor in batch._tensors().items():
            parts.setdefault(name, []).append(tensor)
    return Batch(**{name: torch.cat(tensors) for name, tensors in parts.items()})


# The documented way to teach DataLoader a type: `__getitems__` gives a whole Batch, passed on as it is.
default_collate_fn_map[Batch] = _collate
