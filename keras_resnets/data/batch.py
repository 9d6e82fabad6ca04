"""What a batch of uint8 images goes through once its pictures are as large as the network's input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.augmentation import Draws
from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing

with extra("tensorflow"):
    import tensorflow as tf


def small_changes(pixels: Any, rows: Any, draws: Draws, pad: int) -> Any:
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


def finish(
    pixels: Any, rows: Any, labels: Any, preprocessing: Preprocessing, draws: Draws, classes: int | None
) -> tuple[Any, Any]:
    """uint8 pixels as what the network takes: normalised, erased, mixed."""
    values = normalize(pixels, preprocessing)
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


def normalize(pixels: Any, preprocessing: Preprocessing) -> Any:
    """Preprocessing.normalize in TensorFlow."""
    ordered = tf.reverse(pixels, [-1]) if preprocessing.bgr else pixels
    values = tf.cast(ordered, tf.float32) * np.float32(preprocessing.scale)
    return (values - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
