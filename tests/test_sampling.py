"""The order of samples."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from cubes import whole_epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from gridrad_cube.datasets import (
    EpochSampler,
)
from gridrad_cube.datasets.sampling import _key, _permute
from gridrad_cube.schema import SchemaError


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 3000), seed=st.integers(0, 2**62))
def test_permute_is_a_bijection(length, seed):
    out = _permute(np.arange(length), length, _key(seed))
    assert sorted(out.tolist()) == list(range(length))


def test_permute_with_a_key_each_equals_one_at_a_time():
    keys = _key(5, np.arange(20))
    together = _permute(np.arange(20) % 7, 7, keys)
    alone = [_permute([i % 7], 7, keys[i : i + 1])[0] for i in range(20)]
    assert together.tolist() == alone


@pytest.mark.parametrize("length", [5, 16, 100])
def test_permute_spreads_evenly(length):
    """Chi-squared of where the first index goes, and of how far apart neighbours land, over 4000 keys."""
    keys = _key(1, np.arange(4000))
    first = _permute(np.zeros(4000, int), length, keys)
    apart = (_permute(np.ones(4000, int), length, keys) - first) % length
    for values, bins in ((first, length), (apart - 1, length - 1)):
        counts = np.bincount(values, minlength=bins)
        expected = 4000 / bins
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))


def test_sampler_takes_every_plain_sample_once_in_an_order_of_seed_and_epoch():
    sampler = EpochSampler(103, batch_size=4, seed=7)
    orders = [sampler.order(np.arange(103), epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert (
        orders[1] == EpochSampler(103, batch_size=9, seed=7, world_size=3).order(np.arange(103), 1).tolist()
    )
    assert orders[0] != EpochSampler(103, batch_size=4, seed=8).order(np.arange(103)).tolist()
    assert list(sampler) == orders[0][:100]


STRATA = np.array([1] * 600 + [2] * 300 + [3] * 100, np.uint8)[np.random.default_rng(0).permutation(1000)]


def test_sampler_draws_strata_by_their_shares():
    sampler = EpochSampler(STRATA, batch_size=10)
    assert sampler.length == 1000
    drawn = Counter(STRATA[whole_epoch(sampler)].tolist())
    assert drawn == {3: 800, 2: 150, 1: 50}
    repeats = Counter(i for i in whole_epoch(sampler) if STRATA[i] == 3)
    assert set(repeats.values()) == {8}


def test_sampler_goes_round_each_stratum_evenly_over_epochs():
    sampler = EpochSampler(STRATA, batch_size=10)
    seen = Counter()
    for epoch in range(12):
        seen.update(sampler.order(np.arange(1000), epoch).tolist())
    counts = np.array([seen[i] for i in range(1000)])
    assert (counts[STRATA == 3] == 96).all()
    assert (counts[STRATA == 2] == 6).all()
    assert (counts[STRATA == 1] == 1).all()


def test_sampler_gives_the_share_of_an_empty_stratum_to_the_others():
    strata = np.array([3] * 40 + [1] * 60, np.uint8)
    drawn = Counter(strata[whole_epoch(EpochSampler(strata, batch_size=5))].tolist())
    assert drawn == {3: 94, 1: 6}
    only = np.full(30, 1, np.uint8)
    assert sorted(whole_epoch(EpochSampler(only, batch_size=5))) == list(range(30))


def test_sampler_mixes_plain_samples_in_once_each():
    strata = np.concatenate([np.zeros(50, np.uint8), STRATA])
    order = np.array(whole_epoch(EpochSampler(strata, batch_size=10)))
    assert sorted(order[order < 50].tolist()) == list(range(50))
    assert (order >= 50).sum() == 1000
    # Drawn together, not one part after the other.
    assert 10 < (order[:525] < 50).sum() < 40


def test_sampler_refuses_fewer_samples_than_a_step():
    with pytest.raises(SchemaError, match="fewer samples than a batch, got 15 for 4 ranks of batch size 4"):
        EpochSampler(15, batch_size=4, world_size=4)
    with pytest.raises(SchemaError, match="fewer samples than a batch, got 0"):
        EpochSampler(np.empty(0, np.uint8), batch_size=4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EpochSampler(15, batch_size=4, world_size=2, rank=2)


def steps(ranks: list[EpochSampler], count: int) -> list[int]:
    """Run ranks together for some steps; return the samples in global order."""
    out: list[int] = []
    streams = [s.batches() for s in ranks]
    for _ in range(count):
        batches = [next(stream) for stream in streams]
        assert len({len(b) for b in batches}) == 1
        out += np.stack(batches, axis=1).reshape(-1).tolist()
        for sampler in ranks:
            sampler.advance()
    assert len({(s.epoch, s.position) for s in ranks}) == 1
    return out


def make_ranks(world: int, batch: int, state=None, strata=STRATA, **options) -> list[EpochSampler]:
    ranks = [
        EpochSampler(strata, batch_size=batch, seed=3, rank=r, world_size=world, **options)
        for r in range(world)
    ]
    for sampler in ranks:
        if state is not None:
            sampler.load_state_dict(json.loads(json.dumps(state)))
    return ranks


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sampler_order_is_the_same_for_any_number_of_ranks(world):
    order = whole_epoch(EpochSampler(STRATA, batch_size=1, seed=3))
    ranks = make_ranks(world, 24 // world)
    assert steps(ranks, 1000 // 24) == order[: 1000 // 24 * 24]
    assert (ranks[0].epoch, ranks[0].position) == (1, 0)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1), (4, 4), (2, 1)])
def test_sampler_resumes_mid_epoch_with_another_world_size(before, after):
    order = whole_epoch(EpochSampler(STRATA, batch_size=1, seed=3))
    old = make_ranks(before, 7)
    done = steps(old, 5)
    new = make_ranks(after, 10, old[0].state_dict())
    rest = steps(new, new[0].steps_left)
    assert done + rest == order[: len(done) + len(rest)]
    assert 1000 - len(done) - len(rest) < 10 * after
    assert (new[0].epoch, new[0].position) == (1, 0)
    assert (
        steps(new, 1) == EpochSampler(STRATA, batch_size=1, seed=3).order(np.arange(10 * after), 1).tolist()
    )


def test_sampler_position_near_the_end_starts_the_next_epoch():
    sampler = EpochSampler(100, batch_size=30)
    state = {**sampler.state_dict(), "position": 90}
    sampler.load_state_dict(state)
    assert (sampler.epoch, sampler.position) == (1, 0)


def test_sampler_refuses_the_state_of_other_samples():
    state = EpochSampler(STRATA, batch_size=10).state_dict()
    with pytest.raises(SchemaError, match="the samples are not those of the saved run"):
        EpochSampler(STRATA[:-1], batch_size=10).load_state_dict(state)
    with pytest.raises(SchemaError, match="the samples are not those of the saved run"):
        EpochSampler(len(STRATA), batch_size=10).load_state_dict(state)


def test_sampler_position_and_length_follow_the_steps_done():
    sampler = EpochSampler(105, batch_size=10)
    sampler.advance(3)
    assert (sampler.epoch, sampler.position, len(sampler), sampler.steps_left) == (0, 30, 70, 7)
    sampler.advance(7)
    assert (sampler.epoch, sampler.position, sampler.steps_left) == (1, 0, sampler.steps_per_epoch)


def test_sampler_of_a_hundred_million_samples_makes_no_list_of_them():
    sampler = EpochSampler(100_000_000, batch_size=64, world_size=8, rank=3)
    assert len(next(sampler.batches())) == 64


def test_state_of_a_run_that_shuffled_blocks_is_refused():
    state = EpochSampler(100, batch_size=10).state_dict()
    EpochSampler(100, batch_size=10).load_state_dict(state | {"block": [1, 1]})
    with pytest.raises(SchemaError, match="the saved run shuffled blocks of 8 samples"):
        EpochSampler(100, batch_size=10).load_state_dict(state | {"block": [8, 256]})
