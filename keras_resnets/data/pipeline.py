"""Assembles splits into tf.data batches; what a sample looks like depends on (seed, epoch, sample) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.augmentation import Augmentation, Draws, draw
from keras_resnets.data.batch import change_image, change_images, finish, normalize
from keras_resnets.data.corrupt import ON_CORRUPT, CorruptSamples, explain
from keras_resnets.data.dataset import DataError, Samples, Split
from keras_resnets.data.pictures import Sample, reader, remembered, sampler
from keras_resnets.data.plan import Shard, epoch_order, shares, steps_per_epoch
from keras_resnets.data.randaugment import rand_augment
from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing

with extra("tensorflow"):
    import tensorflow as tf

__all__ = [
    "Augmentation",
    "CorruptSamples",
    "Shard",
    "evaluation_batches",
    "explain",
    "steps_per_epoch",
    "training_batches",
]


def training_batches(
    split: Samples,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    start: int = 0,
    drop_last: bool = True,
    classes: int | None = None,
    on_corrupt: str = "error",
    corrupt: CorruptSamples | None = None,
) -> Any:
    """One epoch as a tf.data.Dataset of (float32 [batch, height, width, channels], int64 [batch]); with mixup or
    CutMix the second is float32 [batch, classes].

    The order is a new one each epoch. A step gives `shard.count` elements, one for each replica of this process.
    The batch dimension is static where all shares are equal.

    Args:
        split: the images.
        preprocessing: how large they shall be, and how they are normalised.
        augmentation: what they go through.
        batch_size: of all replicas of all processes together (the global batch).
        seed, epoch: of order and augmentation.
        shard: the replicas that this process feeds.
        start: first step; the elements from there on are those of the whole epoch, to the bit.
        drop_last: leave out the images that do not fill the last batch; otherwise it is smaller, and a replica's
            share of it may be empty.
        classes: how many there are; needed for mixing.
        on_corrupt: "error", or "skip": the next readable sample of the epoch's order takes the place of one that
            cannot be read.
        corrupt: counts those, and has their names.

    Raises:
        DataError: when there is no whole batch, or an argument is out of range. A sample that cannot be read is a
            TensorFlow error while iterating; `explain` makes a DataError of it.
    """
    if on_corrupt not in ON_CORRUPT:
        raise DataError(f"on_corrupt must be one of {', '.join(ON_CORRUPT)}, not {on_corrupt!r}")
    if augmentation.mixes and classes is None:
        raise DataError("mixup and cutmix need the number of classes")
    number = len(split)
    bounds = shares(number, batch_size, shard, start=start, drop_last=drop_last)
    with tf.device("cpu:0"):  # where tf.data works; on a GPU each batch would fetch them from there
        draws = draw(augmentation, number, preprocessing.size, seed, epoch).mapped(tf.constant)
        order, labels = tf.constant(epoch_order(number, seed, epoch)), tf.constant(split.labels)

    as_they_are = augmentation.crop == "none" and _as_they_are(split, preprocessing)
    whole = as_they_are and augmentation.rand_augment is None
    if whole:
        batches = _whole_batches(split, order, bounds)
    else:
        if as_they_are:
            sample = remembered(split, order)
        else:
            read = reader(split, preprocessing, augmentation, draws.crop_seed)
            skipped = None if on_corrupt == "error" else corrupt or CorruptSamples()
            sample = sampler(read, order, _shape(preprocessing), split, skipped)
        batches = _grouped(_changed(sample, augmentation, draws), bounds, _shape(preprocessing))

    def assemble(pixels: Any, rows: Any) -> tuple[Any, Any]:
        if whole:
            pixels = change_images(pixels, rows, draws, augmentation.pad)
        return finish(pixels, rows, tf.gather(labels, rows), preprocessing, draws, classes)

    return _in_order(batches.map(assemble, num_parallel_calls=tf.data.AUTOTUNE))


def evaluation_batches(
    split: Samples,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    shard: Shard = Shard(),  # noqa: B008 - frozen
) -> Any:
    """All images in order, unchanged, as a tf.data.Dataset like `training_batches`; the last batch may be smaller, and
    a replica's share of it empty.

    Images that are not of the network's input already go through `Preprocessing.pixels`, in several threads.

    Raises:
        DataError: when there are no images. One that cannot be read is a TensorFlow error while iterating; `explain`
            makes a DataError of it.
    """
    bounds = shares(len(split), batch_size, shard, drop_last=False)
    with tf.device("cpu:0"):
        order, labels = tf.range(len(split), dtype=tf.int64), tf.constant(split.labels)
    if _as_they_are(split, preprocessing):
        batches = _whole_batches(split, order, bounds)
    else:
        read = reader(split, preprocessing, Augmentation(), 0)
        batches = _grouped(sampler(read, order, _shape(preprocessing), split, None), bounds, _shape(preprocessing))

    def assemble(pixels: Any, rows: Any) -> tuple[Any, Any]:
        return normalize(pixels, preprocessing), tf.gather(labels, rows)

    return _in_order(batches.map(assemble, num_parallel_calls=tf.data.AUTOTUNE))


def _as_they_are(split: Samples, preprocessing: Preprocessing) -> bool:
    """Whether the images are in memory and of the network's input."""
    return isinstance(split, Split) and split.images.shape[1:] == _shape(preprocessing)


def _shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return (*preprocessing.size, preprocessing.channels)


def _whole_batches(split: Any, order: Any, bounds: NDArray[np.int64]) -> Any:
    """Batches of (uint8 pixels, rows), an element a share, taken from memory at once."""
    with tf.device("cpu:0"):
        images = tf.constant(split.images)
    size = _common_size(bounds)

    def take(bound: Any) -> tuple[Any, Any]:
        rows = tf.ensure_shape(order[bound[0] : bound[1]], [size])
        return tf.gather(images, rows), rows

    return tf.data.Dataset.from_tensor_slices(bounds).map(take, num_parallel_calls=tf.data.AUTOTUNE)


def _changed(sample: Sample, augmentation: Augmentation, draws: Draws) -> Sample:
    """`sample`, followed by what an image goes through as uint8."""

    def changed(position: Any) -> tuple[Any, Any]:
        pixels, row = sample(position)
        pixels = change_image(pixels, row, draws, augmentation.pad)
        if augmentation.rand_augment is not None:
            pixels = rand_augment(pixels, draws.operations[row], draws.signs[row], augmentation.rand_augment[1])
        return pixels, row

    return changed


def _grouped(sample: Sample, bounds: NDArray[np.int64], shape: tuple[int, int, int]) -> Any:
    """The same of what `sample` makes of positions, one by one in parallel.

    Shares of different sizes are filled up to the largest with positions of -1, which cost nothing, and cut.
    """
    sizes = bounds[:, 1] - bounds[:, 0]
    largest = max(int(sizes.max(initial=0)), 1)
    positions = bounds[:, :1] + np.arange(largest)
    equal = _common_size(bounds) == largest

    def sample_or_nothing(position: Any) -> tuple[Any, Any]:
        nothing = tf.zeros(shape, tf.uint8), tf.constant(-1, tf.int64)
        return tf.cond(position < 0, lambda: nothing, lambda: sample(position))

    if not equal:
        positions[positions >= bounds[:, 1:]] = -1
    samples = tf.data.Dataset.from_tensor_slices(positions.reshape(-1))
    samples = samples.map(sample if equal else sample_or_nothing, num_parallel_calls=tf.data.AUTOTUNE)
    batches = samples.batch(largest, drop_remainder=True)
    if equal:
        return batches
    cut = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensor_slices(sizes))
    return cut.map(lambda batch, size: (batch[0][:size], batch[1][:size]))


def _in_order(batches: Any) -> Any:
    options = tf.data.Options()
    options.deterministic = True
    # Each process makes its own shares already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _common_size(bounds: NDArray[np.int64]) -> int | None:
    """The size that all shares have, if they have one."""
    sizes = np.unique(bounds[:, 1] - bounds[:, 0])
    return int(sizes[0]) if len(sizes) == 1 else None
