"""What uint8 images of the network's size go through: crops and mirrors, normalisation, erasing, mixing.

Rows of pixels are taken as [width · channels] where a constant or a mask goes over them: TensorFlow is several times
slower at repeating it over an innermost dimension of 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_resnets.data.augmentation import Draws
from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing

with extra("tensorflow"):
    import tensorflow as tf


def change_image(pixels: Any, row: Any, draws: Draws, pad: int) -> Any:
    """Crop from the padded image, and mirror: uint8 [height, width, channels] of a sample."""
    height, width, channels = pixels.shape
    if draws.offsets is not None:
        top, left = tf.unstack(draws.offsets[row])
        pixels = tf.pad(pixels, [[pad, pad], [pad, pad], [0, 0]])[top : top + height, left : left + width]
    if draws.flips is not None:
        before = pixels
        pixels = tf.cond(draws.flips[row], lambda: tf.reverse(before, [1]), lambda: before)
    return tf.ensure_shape(pixels, [height, width, channels])


def change_images(pixels: Any, rows: Any, draws: Draws, pad: int) -> Any:
    """The same of a batch, all at once."""
    if draws.offsets is not None:
        pixels = _crop(pixels, tf.gather(draws.offsets, rows), pad)
    if draws.flips is not None:
        flat = tf.reshape(pixels, [-1, *pixels.shape[2:]])  # of rank 3, which TensorFlow reverses fastest
        both = tf.concat([pixels, tf.reshape(tf.reverse(flat, [1]), tf.shape(pixels))], 0)
        mirrored = tf.cast(tf.gather(draws.flips, rows), tf.int32)
        number = tf.size(rows)
        pixels = tf.gather(both, tf.range(number) + number * mirrored)
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
    """uint8 pixels as what the network takes: normalised, erased, mixed.

    Args:
        pixels: uint8 [batch, height, width, channels].
        rows: int64 [batch], the samples.
        labels: int64 [batch].
        preprocessing: how to normalise.
        draws: the epoch's.
        classes: for mixing.
    """
    height, width = preprocessing.size
    values = _normalized_rows(pixels, preprocessing)
    if draws.erased is not None:
        box = tf.gather(draws.erased, rows)
        values *= _outside(box[:, :2], box[:, :2] + box[:, 2:], preprocessing)
    targets = labels
    if draws.shares is not None:
        values, targets = _mix(values, tf.one_hot(labels, classes), rows, draws, preprocessing)
    return tf.reshape(values, [-1, height, width, preprocessing.channels]), targets


def _mix(values: Any, targets: Any, rows: Any, draws: Draws, preprocessing: Preprocessing) -> tuple[Any, Any]:
    """Mix the samples 2j and 2j + 1 with each other, by the numbers of the first; an odd last one stays alone.

    MixUp: λ·own + (1 - λ)·other. CutMix: a box of the share 1 - λ of the area, around a centre, comes from the
    other; what lies outside of the image is cut off, and λ is what is left of the own.
    """
    places = tf.range(tf.size(rows))
    others = tf.bitwise.bitwise_xor(places, 1)
    alone = others >= tf.size(rows)
    others = tf.where(alone, places, others)
    first = tf.gather(rows, tf.minimum(places, others))
    share, centre = tf.gather(draws.shares, first), tf.gather(draws.exchanged, first)
    cut = centre[:, 0] >= 0
    sides = np.asarray(preprocessing.size, np.float32)
    half = tf.where(cut, tf.sqrt(1 - share), 0.0)[:, tf.newaxis] * sides / 2
    begin, end = (tf.cast(tf.clip_by_value(centre * sides + edge, 0, sides), tf.int32) for edge in (-half, half))
    left = 1 - tf.reduce_prod(tf.cast(end - begin, tf.float32) / sides, -1)
    share = tf.where(alone, 1.0, share)
    kept = _outside(begin, end, preprocessing) * tf.where(cut, 1.0, share)[:, tf.newaxis, tf.newaxis]
    mixed = kept * values + (1 - kept) * tf.gather(values, others)
    own = tf.where(cut & ~alone, left, share)[:, tf.newaxis]
    return mixed, own * targets + (1 - own) * tf.gather(targets, others)


def _outside(begin: Any, end: Any, preprocessing: Preprocessing) -> Any:
    """1 outside of each image's box and 0 in it: float32 [batch, height, width · channels].

    Args:
        begin, end: int32 [batch, 2], the box's first row and column, and those after its last.
        preprocessing: for the size.
    """
    height, width = preprocessing.size
    rows, columns = np.arange(height), np.repeat(np.arange(width), preprocessing.channels)
    vertical = (rows >= begin[:, :1]) & (rows < end[:, :1])
    horizontal = (columns >= begin[:, 1:]) & (columns < end[:, 1:])
    return 1 - tf.cast(vertical, tf.float32)[:, :, tf.newaxis] * tf.cast(horizontal, tf.float32)[:, tf.newaxis]


def normalize(pixels: Any, preprocessing: Preprocessing) -> Any:
    """Preprocessing.normalize in TensorFlow, to the bit, of uint8 [batch, height, width, channels]."""
    return tf.reshape(_normalized_rows(pixels, preprocessing), tf.shape(pixels))


def _normalized_rows(pixels: Any, preprocessing: Preprocessing) -> Any:
    """The same as float32 [batch, height, width · channels]."""
    height, width, channels = pixels.shape[1:]
    ordered = tf.reverse(pixels, [-1]) if preprocessing.bgr else pixels
    mean, std = (np.tile(np.asarray(row, np.float32), width) for row in (preprocessing.mean, preprocessing.std))
    values = tf.cast(tf.reshape(ordered, [-1, height, width * channels]), tf.float32)
    return (values * np.float32(preprocessing.scale) - mean) / std
