"""Assembles splits into tf.data batches; what a sample looks like depends on (seed, epoch, sample) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.augmentation import Augmentation, Draws, draw
from keras_resnets.data.corrupt import ON_CORRUPT, CorruptSamples, explain
from keras_resnets.data.dataset import DataError, Samples, Split
from keras_resnets.data.plan import Shard, epoch_order, shares, steps_per_epoch
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
    draws = draw(augmentation, number, preprocessing.size, seed, epoch)
    order = tf.constant(epoch_order(number, seed, epoch))
    if not isinstance(split, Split):
        raise NotImplementedError
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    size = _common_size(bounds)

    def assemble(bound: Any) -> tuple[Any, Any]:
        rows = tf.ensure_shape(order[bound[0] : bound[1]], [size])
        pixels = _small_changes(tf.gather(images, rows), rows, draws, augmentation.pad)
        return _finish(pixels, rows, tf.gather(labels, rows), preprocessing, draws, classes)

    batches = tf.data.Dataset.from_tensor_slices(bounds).map(assemble, num_parallel_calls=tf.data.AUTOTUNE)
    return _in_order(batches)


def evaluation_batches(
    split: Samples,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    shard: Shard = Shard(),  # noqa: B008 - frozen
) -> Any:
    """All images in order, unchanged, as a tf.data.Dataset like `training_batches`; the last batch may be smaller."""
    if not isinstance(split, Split):
        raise NotImplementedError
    bounds = shares(len(split), batch_size, shard, drop_last=False)
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    size = _common_size(bounds)

    def assemble(bound: Any) -> tuple[Any, Any]:
        pixels = tf.ensure_shape(images[bound[0] : bound[1]], [size, *images.shape[1:]])
        return _normalize(pixels, preprocessing), tf.ensure_shape(labels[bound[0] : bound[1]], [size])

    return _in_order(tf.data.Dataset.from_tensor_slices(bounds).map(assemble, num_parallel_calls=tf.data.AUTOTUNE))


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


def _small_changes(pixels: Any, rows: Any, draws: Draws, pad: int) -> Any:
    """Crop from the padded images, and mirror."""
    if draws.offsets is not None:
        pixels = _crop(pixels, tf.gather(draws.offsets, rows), pad)
    if draws.flips is not None:
        mirrored = tf.gather(draws.flips, rows)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        pixels = tf.where(mirrored, tf.reverse(pixels, [2]), pixels)
    return pixels


def _crop(batch: Any, offsets: Any, pad: int) -> Any:
    """Each image moved by its own offset, within a border of `pad` zeros."""
    height, width = batch.shape[1:3]
    padded = tf.pad(batch, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _finish(
    pixels: Any, rows: Any, labels: Any, preprocessing: Preprocessing, draws: Draws, classes: int | None
) -> tuple[Any, Any]:
    """uint8 pixels as what the network takes: normalised, erased, mixed."""
    values = _normalize(pixels, preprocessing)
    if draws.erased is not None:
        box = tf.gather(draws.erased, rows)
        values = tf.where(_inside(box[:, :2], box[:, :2] + box[:, 2:], preprocessing.size), 0.0, values)
    if draws.shares is None or draws.exchanged is None:
        return values, labels
    return _mix(values, tf.one_hot(labels, classes), rows, draws.shares, draws.exchanged, preprocessing.size)


def _mix(
    values: Any,
    targets: Any,
    rows: Any,
    shares: NDArray[np.float32],
    centres: NDArray[np.float32],
    size: tuple[int, int],
) -> tuple[Any, Any]:
    """Mix the samples 2j and 2j + 1 with each other, by the numbers of the first; an odd last one stays alone.

    MixUp: λ·own + (1 - λ)·other. CutMix: a box of the share 1 - λ of the area, around a centre, comes from the
    other; what lies outside of the image is cut off, and λ is what is left of the own.
    """
    places = tf.range(tf.shape(rows)[0])
    others = tf.bitwise.bitwise_xor(places, 1)
    alone = others >= tf.shape(rows)[0]
    others = tf.where(alone, places, others)
    first = tf.gather(rows, tf.minimum(places, others))
    share, centre = tf.gather(shares, first), tf.gather(centres, first)
    cut = centre[:, :1] >= 0
    sides = np.asarray(size, np.float32)
    half = tf.sqrt(1 - share)[:, tf.newaxis] * sides / 2
    begin = tf.cast(tf.clip_by_value(centre * sides - half, 0, sides), tf.int32)
    end = tf.cast(tf.clip_by_value(centre * sides + half, 0, sides), tf.int32)
    left = 1 - tf.reduce_prod(tf.cast(end - begin, tf.float32) / sides, -1)
    share = tf.where(alone, 1.0, tf.where(cut[:, 0], left, share))[:, tf.newaxis]
    outside = 1 - tf.cast(_inside(begin, end, size), tf.float32)
    kept = tf.where(_over_pixels(cut), outside, _over_pixels(share))
    mixed = kept * values + (1 - kept) * tf.gather(values, others)
    return mixed, share * targets + (1 - share) * tf.gather(targets, others)


def _over_pixels(column: Any) -> Any:
    """[batch, 1] as [batch, 1, 1, 1]."""
    return column[:, :, tf.newaxis, tf.newaxis]


def _inside(begin: Any, end: Any, size: tuple[int, int]) -> Any:
    """Whether a pixel lies in its image's box: bool [batch, height, width, 1] for int32 corners [batch, 2]."""
    rows, columns = tf.range(size[0]), tf.range(size[1])
    vertical = (rows >= begin[:, :1]) & (rows < end[:, :1])
    horizontal = (columns >= begin[:, 1:]) & (columns < end[:, 1:])
    return vertical[:, :, tf.newaxis, tf.newaxis] & horizontal[:, tf.newaxis, :, tf.newaxis]


def _normalize(pixels: Any, preprocessing: Preprocessing) -> Any:
    """Preprocessing.normalize in TensorFlow."""
    ordered = tf.reverse(pixels, [-1]) if preprocessing.bgr else pixels
    values = tf.cast(ordered, tf.float32) * np.float32(preprocessing.scale)
    return (values - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
