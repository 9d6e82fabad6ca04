"""Which samples each replica takes at each step of an epoch: without overlap or loss for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.dataset import DataError


@dataclass(frozen=True)
class Shard:
    """The replicas that this process feeds.

    Args:
        first: number of its first replica.
        count: how many it has.
        total: replicas of all processes.

    Raises:
        DataError: when they are not among the replicas 0 … total - 1.
    """

    first: int = 0
    count: int = 1
    total: int = 1

    def __post_init__(self) -> None:
        if not (self.first >= 0 and self.count >= 1 and self.first + self.count <= self.total):
            raise DataError(f"no {self.count} replicas from number {self.first} among {self.total}")


def steps_per_epoch(number: int, batch_size: int, drop_last: bool = True) -> int:
    """Steps that `number` samples make in global batches of `batch_size`; without `drop_last` the last may be smaller.

    Raises:
        DataError: when there is not a single step.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, not {batch_size}")
    steps = number // batch_size if drop_last else -(-number // batch_size)
    if not steps:
        raise DataError(f"a batch of {batch_size} cannot be filled from {number} images")
    return steps


def epoch_order(number: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0 … number - 1 that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch, 0]).permutation(number)


def shares(number: int, batch_size: int, shard: Shard, *, start: int = 0, drop_last: bool = True) -> NDArray[np.int64]:
    """Where in the epoch's order the shares of this process's replicas begin and end.

    Step s holds positions s·B … (s+1)·B - 1. The replicas take contiguous parts of it, as equal as possible in
    pairs of neighbours, which mixup and cutmix mix: no pair is divided.

    Args:
        number: samples an epoch.
        batch_size: global batch B.
        shard: whose shares.
        start: first step.
        drop_last: leave out the samples that do not fill the last batch.

    Returns:
        int64 [(steps - start) · shard.count, 2] of (begin, end), step by step, replica by replica. With a last
        batch that is smaller a replica may get nothing (begin = end).

    Raises:
        DataError: when there is no step, or `start` is not one of them or their end.
    """
    steps = steps_per_epoch(number, batch_size, drop_last)
    if not 0 <= start <= steps:
        raise DataError(f"an epoch of {steps} steps cannot start at step {start}")
    begins = np.arange(start, steps, dtype=np.int64)[:, np.newaxis] * batch_size
    sizes = np.minimum(number - begins, batch_size)
    pairs = -(-sizes // 2)
    replicas = shard.first + np.arange(shard.count + 1)
    # The first `pairs % total` replicas take one pair more.
    edges = replicas * (pairs // shard.total) + np.minimum(replicas, pairs % shard.total)
    bounds = begins + np.minimum(2 * edges, sizes)
    return np.stack([bounds[:, :-1], bounds[:, 1:]], axis=-1).reshape(-1, 2)
