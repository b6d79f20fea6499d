"""The order of samples, which depends on seed and epoch only, and the partners of samples at a later time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from gridrad_cube.datasets.loader import Batch
from gridrad_cube.datasets.table import Stratum
from gridrad_cube.schema import SchemaError

#: Share of each stratum in the samples of an epoch that can have echoes.
_SHARES = {Stratum.echo: 0.80, Stratum.weak: 0.15, Stratum.empty: 0.05}

_ROUNDS = 8
_ORDER, _DRAW = 255, 254  # tags of the keys that order an epoch, and that draw windows; strata have theirs


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    key = np.zeros(1, np.uint64)
    for part in parts:
        # The order of parts matters: each part is mixed into the hash of those before it.
        key = _mix(key ^ np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64))
    return key


def draw_uniform(
    seed: int, epoch: int, number: npt.NDArray[np.int64], stream: int, *shape: int
) -> npt.NDArray[np.float64]:
    """Return the uniform numbers in [0, 1) that depend on seed, epoch, number and stream alone, (N, *shape)."""
    count = np.arange(int(np.prod(shape)))
    key = _key(seed, _DRAW, epoch, number[:, None], stream, count)
    return ((key >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(len(number), *shape)


def _permute(index: npt.ArrayLike, length: int, key: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the images of indices under a keyed permutation of ``range(length)``, without building the
    permutation.

    This is a Feistel network over the next power of two, repeated until the result is inside the range (Black
    and Rogaway 2002, doi:10.1007/3-540-45760-7_9). It is a bijection for every key and length. There is one
    key, or one for each index.
    """
    out = np.array(index, np.int64).view(np.uint64)
    keys = np.broadcast_to(key, out.shape)
    bits = max(2, (length - 1).bit_length())
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)
    todo = np.arange(out.size)
    while todo.size:
        high_half, low_half, chosen = out[todo] >> low, out[todo] & low_mask, keys[todo]
        for number in range(_ROUNDS):
            chosen = _mix(chosen)
            if number % 2:
                low_half ^= _mix(chosen ^ high_half) & low_mask
            else:
                high_half ^= _mix(chosen ^ low_half) & high_mask
        out[todo] = (high_half << low) | low_half
        todo = todo[out[todo] >= length]
    return out.view(np.int64)


@dataclass(frozen=True)
class _Part:
    """Samples of one stratum, and their number in an epoch."""

    stratum: Stratum
    members: np.ndarray | None
    size: int
    drawn: int


def _parts(strata: int | np.ndarray) -> list[_Part]:
    if not isinstance(strata, np.ndarray):
        return [_Part(Stratum.plain, None, int(strata), int(strata))] if strata else []
    small = np.int32 if len(strata) < 2**31 else np.int64
    members = {s: np.flatnonzero(strata == s).astype(small) for s in Stratum}
    members = {s: m for s, m in members.items() if len(m)}
    drawn = {s: len(m) for s, m in members.items()}
    echoes = [s for s in members if s is not Stratum.plain]
    if echoes:
        # Largest remainder: whole numbers that sum to the number of patches.
        weights = np.array([_SHARES[s] for s in echoes])
        exact = weights / weights.sum() * sum(drawn[s] for s in echoes)
        counts = np.floor(exact).astype(int)
        order = np.argsort(-(exact - counts), kind="stable")
        counts[order[: round(exact.sum()) - counts.sum()]] += 1
        drawn |= dict(zip(echoes, counts.tolist(), strict=True))
    return [
        _Part(s, m if len(members) > 1 else None, len(m), drawn[s]) for s, m in members.items() if drawn[s]
    ]


class EpochSampler(Sampler[int]):
    """Assign each rank its samples of an epoch, in an order that depends on seed and epoch only.

    An epoch has as many samples as the data set. Samples of channels without echoes come exactly once. Radar and
    rain are drawn by `Stratum`: 80 % patches with at least 1 % echo, 15 % with less, 5 % empty. Each epoch
    continues the random order of a stratum at the point where the last one stopped, and a new order begins
    when all its samples were used, so that over many epochs they are used equally often. The share of a
    stratum without samples is divided among the others, in proportion.

    Step s of all W ranks together takes positions ``[s * B * W, (s + 1) * B * W)`` of the epoch, rank r every
    W-th of them from r on. Samples at the end that do not fill a step are left out.

    Iterating starts at `position` and does not move it, because a loader reads ahead of training. `advance` moves
    it: `PatchLoader` calls it for each batch that it hands out; with torch's DataLoader, call it after each step.

    Parameters
    ----------
    strata
        ``dataset.strata``; or a number of samples, each of which is used once in an epoch.
    batch_size
        Samples per step and rank.
    seed
        Seed of the order.
    rank, world_size
        Number of this process, and of the processes that train together.

    Raises
    ------
    SchemaError
        If there are fewer samples than one step of all ranks takes.
    """

    def __init__(
        self,
        strata: int | np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"got batch_size {batch_size}, rank {rank} of {world_size}; expected rank < world_size"
            )
        self.seed, self.rank, self.world_size = int(seed), rank, world_size
        self.batch_size = batch_size
        self.epoch = self.position = 0
        self._parts = _parts(strata)
        #: Samples of an epoch, all ranks together.
        self.length = sum(part.drawn for part in self._parts)
        if not self._left(0):
            raise SchemaError(
                f"sampler: fewer samples than a batch, got {self.length} for {world_size} ranks of batch "
                f"size {batch_size}. Pass a smaller batch size, or select more patches (channels, reject, "
                "time, bbox)."
            )

    @property
    def step(self) -> int:
        """Samples that all ranks together take in one step."""
        return self.batch_size * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return self._left(0) // self.step

    @property
    def steps_left(self) -> int:
        """Steps from `position` to the end of the epoch."""
        return self._left(self.position) // self.step

    def __len__(self) -> int:
        """Return the samples of this rank from `position` to the end of the epoch."""
        return self._left(self.position) // self.world_size

    def _left(self, position: int) -> int:
        return (self.length - position) // self.step * self.step

    def order(self, positions: npt.ArrayLike, epoch: int | None = None) -> npt.NDArray[np.int64]:
        """Return the samples at positions of an epoch.

        Parameters
        ----------
        positions
            Positions in the epoch, of all ranks.
        epoch
            Number of the epoch; None for the current one.

        Returns
        -------
        Numbers of samples.
        """
        epoch = self.epoch if epoch is None else epoch
        places = _permute(positions, self.length, _key(self.seed, _ORDER, epoch))
        out = np.empty_like(places)
        first = 0
        for part in self._parts:
            mine = (places >= first) & (places < first + part.drawn)
            number = epoch * part.drawn + places[mine] - first
            turn = _key(self.seed, int(part.stratum), number // part.size)
            item = _permute(number % part.size, part.size, turn)
            out[mine] = item if part.members is None else part.members[item]
            first += part.drawn
        return out

    def batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the sample indices of this rank, a batch at a time, from `position` to the end of the epoch.

        Yields
        ------
        Numbers of samples.
        """
        epoch, position = self.epoch, self.position
        end = position + self._left(position)
        ahead = max(1, 8192 // self.step) * self.step
        while position < end:
            stop = min(position + ahead, end)
            mine = self.order(np.arange(position + self.rank, stop, self.world_size), epoch)
            for start in range(0, len(mine), self.batch_size):
                yield mine[start : start + self.batch_size]
            position = stop

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches():
            yield from batch.tolist()

    def advance(self, steps: int = 1) -> None:
        """Count steps as done. After the last step of an epoch the next epoch begins.

        Parameters
        ----------
        steps
            Number of steps.
        """
        for _ in range(steps):
            self.position += self.step
            self._roll_over()

    def _roll_over(self) -> None:
        if not self._left(self.position):
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return seed, epoch and position. The state is valid for any number of ranks and any batch size.

        Returns
        -------
        The state.
        """
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "drawn": {p.stratum.name: [p.drawn, p.size] for p in self._parts},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the sample after the last one that was counted as done.

        Parameters
        ----------
        state
            State of `state_dict`.

        Raises
        ------
        SchemaError
            If the state belongs to another selection of samples, or to the order of blocks that earlier
            versions had.
        """
        mine = self.state_dict()["drawn"]
        theirs = {name: list(counts) for name, counts in state["drawn"].items()}
        if theirs != mine:
            raise SchemaError(
                f"sampler: the samples are not those of the saved run, got {mine} [drawn, of] a stratum; "
                f"expected {theirs}. Use the store, channels, reject, time and bbox of "
                "that run, or start a new run."
            )
        if list(state.get("block", [1, 1])) != [1, 1]:
            raise SchemaError(
                f"sampler: the saved run shuffled blocks of {state['block'][0]} samples, as an earlier version could; "
                "expected an order of single samples. Finish the run with that version, or start a new one."
            )
        self.seed, self.epoch, self.position = int(state["seed"]), int(state["epoch"]), int(state["position"])
        self._roll_over()


#: Positions that agree to this many degrees are one place: far less than a pixel, far more than rounding.
_SAME_PLACE = 1e-3


class PairDataset(Dataset[Batch]):
    """Samples of a data set together with their partners: twice as many rows per batch.

    Rows ``[:B]`` of a batch are the requested samples, rows ``[B:]`` their partners in the same order. If the
    data set leaves out a damaged sample, its partner is left out too. If the partner is damaged, the sample
    is its own partner.

    Parameters
    ----------
    dataset
        A `PatchDataset` or `GridDataset`.
    partners
        Index of the partner of each sample, or its own index without a partner, (N,); see `followers`.
    """

    def __init__(self, dataset: Any, partners: npt.NDArray[np.int64]) -> None:
        if partners.shape != (len(dataset),):
            raise ValueError(f"PairDataset: got {partners.shape} partners; expected ({len(dataset)},)")
        self.dataset, self.partners = dataset, partners

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Read samples and partners; see `PatchDataset.__getitems__`."""
        index = np.asarray(indices, np.int64)
        read = np.unique(np.concatenate([index, self.partners[index]]))  # each of them once
        batch: Batch = self.dataset.__getitems__(read)
        lost = np.isin(index, batch.damaged) if batch.damaged is not None else np.zeros(len(index), bool)
        kept = batch.index.numpy()
        own = index[~lost]
        other = np.where(np.isin(self.partners[own], kept), self.partners[own], own)
        rows = torch.from_numpy(np.searchsorted(kept, np.concatenate([own, other])))
        return batch.take(rows, damaged=torch.from_numpy(index[lost]) if lost.any() else None)

    def describe(self, index: int) -> dict[str, Any]:
        """Return the origin of a sample, as the data set does.

        Parameters
        ----------
        index
            Number of the sample.

        Returns
        -------
        Values by name.
        """
        return dict(self.dataset.describe(index))


def followers(dataset: Any, minutes: float) -> npt.NDArray[np.int64]:
    """Find for each sample the sample of the same place and channel that is nearest in time to ``minutes``
    later.

    It must be within half of ``minutes`` of that time. Of two equally near samples, the earlier one is taken.

    Parameters
    ----------
    dataset
        A `PatchDataset` or `GridDataset`.
    minutes
        Lead time, above 0.

    Returns
    -------
    Index of the follower of each sample, or its own index without a follower, int64, (N,).

    Raises
    ------
    SchemaError
        If no sample has a follower.
    """
    if not minutes > 0:
        raise ValueError(f"followers: got {minutes} minutes; expected a number above 0")
    latitude, longitude, time, channel = dataset.positions()
    known = np.flatnonzero(np.isfinite(latitude) & np.isfinite(longitude) & ~np.isnat(time))
    south, west = (np.rint(v[known] / _SAME_PLACE).astype(np.int64) for v in (latitude, longitude))
    turn, labels = round(360 / _SAME_PLACE), int(channel.max(initial=0)) + 1
    place = ((south + turn) * turn + west % turn) * labels + channel[known]
    seconds = time[known].astype(np.int64)
    out = np.arange(len(dataset))
    out[known] = known[nearest_later(place, seconds, minutes * 60)]
    if (out == np.arange(len(out))).all():
        raise SchemaError(
            f"{dataset.store}: no sample has a partner {minutes:g} min later (within half of that). Pass another lead, "
            "a longer time, or no lead (0)."
        )
    return out


def nearest_later(
    place: npt.NDArray[np.int64], seconds: npt.NDArray[np.int64], lead: float
) -> npt.NDArray[np.int64]:
    """Find for each item the item of the same place that is nearest to ``lead`` later and within half of it.

    Parameters
    ----------
    place
        Number of the place of each item, (N,).
    seconds
        Its time, (N,).
    lead
        In seconds.

    Returns
    -------
    Index of the item found, (N,); its own if none is found.
    """
    own = np.arange(len(place))
    if not len(place):
        return own
    # On this axis places are further apart than any lead, so that one search is enough for all places.
    _, number = np.unique(place, return_inverse=True)
    line = number * (int(np.ptp(seconds)) + 2 * int(lead) + 2) + (seconds - seconds.min())
    order = np.argsort(line, kind="stable")
    ordered, target = line[order], line + lead
    after = np.searchsorted(ordered, target).clip(max=len(order) - 1)
    # The first of several samples at one time (two sources of one place): the same partner in any run.
    before = np.searchsorted(ordered, ordered[(after - 1).clip(min=0)])
    nearer = np.abs(ordered[before] - target) <= np.abs(ordered[after] - target)
    chosen = np.where(nearer, before, after)
    return np.where(np.abs(ordered[chosen] - target) <= lead / 2, order[chosen], own)
