"""Who trains on what: nothing twice, nothing left out, pairs together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_resnets.data import DataError
from keras_resnets.data.plan import Shard, epoch_order, shares, steps_per_epoch


@st.composite
def workers(draw):
    """Replicas of several processes, and the shard of each process."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    total = sum(counts)
    return [Shard(sum(counts[:i]), count, total) for i, count in enumerate(counts)]


def by_step(bounds, shard):
    """[steps, replicas, 2]."""
    return bounds.reshape(-1, shard.count, 2)


@given(number=st.integers(1, 300), batch_size=st.integers(1, 64), shards=workers(), drop_last=st.booleans())
@settings(deadline=None)
def test_the_replicas_of_all_workers_take_each_position_once(number, batch_size, shards, drop_last):
    if drop_last and number < batch_size:
        return
    parts = np.concatenate(
        [by_step(shares(number, batch_size, shard, drop_last=drop_last), shard) for shard in shards], axis=1
    )
    assert len(parts) == steps_per_epoch(number, batch_size, drop_last)
    for step, part in enumerate(parts):
        positions = np.concatenate([np.arange(begin, end) for begin, end in part])
        stop = min((step + 1) * batch_size, number)
        np.testing.assert_array_equal(positions, np.arange(step * batch_size, stop))


@given(number=st.integers(1, 300), batch_size=st.integers(1, 64), total=st.integers(1, 9))
@settings(deadline=None)
def test_shares_are_equal_to_a_pair_and_divide_none(number, batch_size, total):
    bounds = shares(number, batch_size, Shard(0, total, total), drop_last=False).reshape(-1, total, 2)
    for step, part in enumerate(bounds):
        first = step * batch_size
        size = min(number - first, batch_size)
        inner = part[:-1, 1] - first
        assert all(edge % 2 == 0 or edge == size for edge in inner)
        pairs = -(-(part[:, 1] - part[:, 0]) // 2)
        assert pairs.max() - pairs.min() <= 1


@given(
    number=st.integers(1, 300), batch_size=st.integers(1, 64), shards=workers(), drop_last=st.booleans(), data=st.data()
)
@settings(max_examples=50, deadline=None)
def test_a_later_start_is_the_rest_of_the_epoch(number, batch_size, shards, drop_last, data):
    if drop_last and number < batch_size:
        return
    start = data.draw(st.integers(0, steps_per_epoch(number, batch_size, drop_last)))
    for shard in shards:
        whole = shares(number, batch_size, shard, drop_last=drop_last)
        rest = shares(number, batch_size, shard, start=start, drop_last=drop_last)
        np.testing.assert_array_equal(rest, whole[start * shard.count :])


def test_shares_by_hand():
    """50 samples in batches of 20 over 3 replicas: 10 pairs are 4 + 3 + 3, the last 5 are 2 + 2 + 1."""
    assert shares(50, 20, Shard(0, 3, 3), drop_last=False).tolist() == [
        [0, 8], [8, 14], [14, 20], [20, 28], [28, 34], [34, 40], [40, 44], [44, 48], [48, 50],
    ]  # fmt: skip
    assert shares(50, 20, Shard(1, 1, 3)).tolist() == [[8, 14], [28, 34]]


def test_a_replica_may_get_nothing():
    sizes = np.diff(shares(11, 10, Shard(0, 4, 4), drop_last=False), axis=1).ravel()
    assert sizes.tolist() == [4, 2, 2, 2, 1, 0, 0, 0]


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 3), (False, 4)])
def test_steps(drop_last, steps):
    assert steps_per_epoch(50, 16, drop_last) == steps
    assert steps_per_epoch(48, 16, drop_last) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 16, False), "a batch of 16 cannot be filled from 0 images"),
        ((15, 16, True), "a batch of 16 cannot be filled from 15 images"),
        ((15, 0, True), "batch_size must be at least 1, not 0"),
    ],
)
def test_no_step_at_all(arguments, message):
    with pytest.raises(DataError, match=message):
        steps_per_epoch(*arguments)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_of_the_epoch(start):
    with pytest.raises(DataError, match=f"an epoch of 3 steps cannot start at step {start}"):
        shares(50, 16, Shard(), start=start)


@pytest.mark.parametrize("values", [(-1, 1, 2), (0, 0, 1), (1, 1, 1), (2, 2, 3)])
def test_a_shard_that_is_none(values):
    with pytest.raises(DataError, match="replicas from number"):
        Shard(*values)


def test_an_epochs_order():
    orders = [epoch_order(100, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 9
    np.testing.assert_array_equal(orders[4], epoch_order(100, 1, 1))
