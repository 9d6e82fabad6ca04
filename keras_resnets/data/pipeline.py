"""Assembles splits into tf.data batches; what a sample looks like depends on (seed, epoch, sample) alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_resnets.data.dataset import DataError, Split
from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing

with extra("tensorflow"):
    import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Args:
        pad: zeros put around the image before a random crop of its own size, in pixels.
        flip: mirror every second image left to right.
    """

    pad: int = 0
    flip: bool = False


def training_batches(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    epoch: int,
) -> Any:
    """One epoch as a tf.data.Dataset of (float32 [batch, height, width, channels], int64 [batch]).

    The order is a new one each epoch, and the images that do not fill the last batch are left out.

    Raises:
        DataError: when there are fewer images than one batch.
    """
    number = len(split)
    if number < batch_size:
        raise DataError(f"a batch of {batch_size} cannot be filled from {number} images")
    order = np.random.default_rng([seed, epoch, 0]).permutation(number)
    chance = np.random.default_rng([seed, epoch, 1])
    offsets = tf.constant(chance.integers(0, 2 * augmentation.pad, (number, 2), endpoint=True), tf.int32)
    flips = tf.constant(chance.integers(0, 2, number) == 1)
    images, labels = tf.constant(split.images), tf.constant(split.labels)

    def assemble(rows: Any) -> tuple[Any, Any]:
        batch = tf.gather(images, rows)
        if augmentation.pad:
            batch = _crop(batch, tf.gather(offsets, rows), augmentation.pad)
        if augmentation.flip:
            mirrored = tf.gather(flips, rows)[:, tf.newaxis, tf.newaxis, tf.newaxis]
            batch = tf.where(mirrored, tf.reverse(batch, [2]), batch)
        return _normalize(batch, preprocessing), tf.gather(labels, rows)

    rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
    return rows.map(assemble, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(split: Split, preprocessing: Preprocessing, batch_size: int) -> Any:
    """All images in order, unchanged, as a tf.data.Dataset like `training_batches`; the last batch may be smaller."""
    return (
        tf.data.Dataset.from_tensor_slices((split.images, split.labels))
        .batch(batch_size)
        .map(lambda images, labels: (_normalize(images, preprocessing), labels), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _crop(batch: Any, offsets: Any, pad: int) -> Any:
    """Each image moved by its own offset, within a border of `pad` zeros."""
    height, width = batch.shape[1:3]
    padded = tf.pad(batch, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _normalize(pixels: Any, preprocessing: Preprocessing) -> Any:
    """Preprocessing.normalize in TensorFlow."""
    ordered = tf.reverse(pixels, [-1]) if preprocessing.bgr else pixels
    values = tf.cast(ordered, tf.float32) * np.float32(preprocessing.scale)
    return (values - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
