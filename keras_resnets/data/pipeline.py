"""Assembles splits into tf.data batches; what a sample looks like depends on (seed, epoch, sample) alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.augmentation import Augmentation, Draws, draw
from keras_resnets.data.batch import change_image, change_images, finish, normalize
from keras_resnets.data.corrupt import MARK, ON_CORRUPT, CorruptSamples, explain
from keras_resnets.data.dataset import DataError, Samples, Split
from keras_resnets.data.pictures import readable, reading, remembered, replacing
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
        read = reading(split, preprocessing, augmentation, draws.crop_seed)

        def samples(positions: Any) -> Any:
            if as_they_are:
                found = remembered(positions, split, order)
            elif on_corrupt == "error":
                found = readable(positions, read, order)
            else:
                counted = corrupt or CorruptSamples()
                found = replacing(positions, read, order, _shape(preprocessing), split, counted)
            return _changed(found, augmentation, draws)

        batches = _grouped(samples, bounds, order, _shape(preprocessing))

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
        read = reading(split, preprocessing, Augmentation(), 0)
        batches = _grouped(lambda positions: readable(positions, read, order), bounds, order, _shape(preprocessing))

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


def _changed(samples: Any, augmentation: Augmentation, draws: Draws) -> Any:
    """Samples after what an image goes through as uint8."""

    def changed(position: Any, pixels: Any, row: Any) -> tuple[Any, Any, Any]:
        pixels = change_image(pixels, row, draws, augmentation.pad)
        if augmentation.rand_augment is not None:
            pixels = rand_augment(pixels, draws.operations[row], draws.signs[row], augmentation.rand_augment[1])
        return position, pixels, row

    return samples.map(changed, num_parallel_calls=tf.data.AUTOTUNE)


def _grouped(samples: Callable[[Any], Any], bounds: NDArray[np.int64], order: Any, shape: tuple[int, int, int]) -> Any:
    """Batches of (uint8 pixels, rows), an element a share, of samples that are made one by one in parallel.

    Args:
        samples: a function from a tf.data.Dataset of positions to one of (position, uint8 picture, row), in which
            those that cannot be read are missing: an error says the first one's row.
        bounds: [shares, 2] of positions. Shares of different sizes are filled up to the largest, and cut.
        order: int64 [number], the epoch's.
        shape: of the pictures.
    """
    sizes = bounds[:, 1] - bounds[:, 0]
    largest = max(int(sizes.max(initial=0)), 1)
    places = bounds[:, :1] + np.arange(largest)
    fill = places >= bounds[:, 1:]
    filling = tf.data.Dataset.from_tensors((np.int64(-1), np.zeros(shape, np.uint8), np.int64(-1)))
    found = samples(tf.data.Dataset.from_tensor_slices(places[~fill]))
    found = found.concatenate(filling.repeat())  # what is missing shows at the end, too
    if fill.any():
        choice = tf.data.Dataset.from_tensor_slices(fill.reshape(-1).astype(np.int64))
        found = tf.data.Dataset.choose_from_datasets([found, filling.repeat()], choice)
    expected = tf.data.Dataset.from_tensor_slices((np.where(fill, -1, places), sizes))

    def cut(batch: Any, expectation: Any) -> tuple[Any, Any]:
        positions, pixels, rows = batch
        missing = positions != expectation[0]
        row = order[tf.maximum(expectation[0][tf.argmax(missing)], 0)]
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(missing), [MARK, row])]):
            size = largest if not fill.any() else expectation[1]
            return pixels[:size], rows[:size]

    return tf.data.Dataset.zip(found.batch(largest, drop_remainder=True), expected).map(cut)


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
