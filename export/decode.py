"""The preprocessing as TensorFlow ops, for the signatures of a SavedModel.

Resizing is Pillow's arithmetic, in integers: weights of 22 bits, one side after the other, rounded to uint8 after each.
`tf.image.resize` takes half to a third of the time and differs: by 0.15 pixel values in the mean of photographs, 20 at
the most (bilinear by 1; nearest takes other pixels altogether).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import PIL

from keras_resnets.extras import extra
from keras_resnets.preprocessing import MAX_PIXELS, Preprocessing

with extra("export"):
    import tensorflow as tf

_BITS = 22  # of a weight's fraction: a sum of weighted uint8 pixels stays within int32
_PNG = tuple(b"\x89PNG\r\n\x1a\n")
_TALL_FIRST = int(PIL.__version__.split(".")[0]) >= 13  # Pillow resizes the height first where it shrinks more
_GREY = (19595, 38470, 7471)  # of 65536: ITU-R 601-2, as Pillow rounds it


def normalize(pixels: Any, preprocessing: Preprocessing) -> Any:
    """`Preprocessing.normalize` of uint8 pixels [batch, height, width, channels]."""
    ordered = tf.reverse(pixels, [-1]) if preprocessing.bgr else pixels
    values = tf.cast(ordered, tf.float32) * np.float32(preprocessing.scale)
    return _divided(values - np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32))


def decode(encoded: Any, preprocessing: Preprocessing) -> Any:
    """`Preprocessing.pixels` of JPEG and PNG files, to the bit, but for the orientation that EXIF may say.

    Of 288 files made of photographs (JPEGs of four kinds and PNGs, upright, wide and tall, grey and colour) no pixel
    differed in any interpolation. JPEGs need a Pillow with libjpeg-turbo for that, as its wheels have. Of 16 bits the
    upper 8 are kept, and transparency is dropped, as there.

    Args:
        encoded: string [batch], a file's bytes each.
        preprocessing: says the size, the channels and how to resize.

    Returns:
        uint8 [batch, height, width, channels], RGB or grey. When it runs, it raises TensorFlow's InvalidArgumentError
        for what is no JPEG or PNG, is truncated, or has over 25 million pixels.
    """
    spec = tf.TensorSpec((*preprocessing.size, preprocessing.channels), tf.uint8)
    with tf.device("cpu:0"):  # where the decoder is: single int32 ops would go back and forth
        return tf.map_fn(lambda content: _pixels(content, preprocessing), encoded, fn_output_signature=spec)


def _pixels(content: Any, how: Preprocessing) -> Any:
    with tf.control_dependencies([_limited(tf.reduce_prod(_header_shape(content)), "the image")]):
        pixels = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")  # decodes PNGs too
    if how.channels == 1:
        weighted = tf.reduce_sum(tf.cast(pixels, tf.int32) * _GREY, -1, keepdims=True)
        pixels = tf.cast(tf.bitwise.right_shift(weighted + (1 << 15), 16), tf.uint8)
    shape = tf.shape(pixels, tf.int64)[:2]
    scaled = _scaled(shape, how)
    for axis in tf.unstack(_order(shape, scaled)):
        front = [axis, 1 - axis, 2]  # where slices are contiguous
        lines = tf.transpose(pixels, front)
        lines = _resampled(lines, shape[axis], scaled[axis], tf.constant(how.size)[axis], how.interpolation)
        pixels = tf.transpose(lines, front)
    return tf.ensure_shape(pixels, [*how.size, how.channels])


def _header_shape(content: Any) -> Any:
    """int64 (height, width) that a PNG or JPEG declares."""
    head = tf.cast(tf.io.decode_raw(content, tf.uint8, fixed_length=24), tf.int64)
    sides = tf.reduce_sum(tf.reshape(head[16:], [2, 4]) * [1 << 24, 1 << 16, 1 << 8, 1], -1)
    return tf.cond(
        tf.reduce_all(head[:8] == _PNG),
        lambda: sides[::-1],
        lambda: tf.io.extract_jpeg_shape(content, tf.int64)[:2],
    )


def _limited(area: Any, what: str) -> Any:
    return tf.debugging.assert_less_equal(area, tf.constant(MAX_PIXELS, tf.int64), f"{what} has over 25 million pixels")


def _scaled(shape: Any, how: Preprocessing) -> Any:
    """int64 (height, width) of the whole picture once it is resized."""
    if how.resize is None:
        return tf.constant(how.size, tf.int64)
    scaled = how.resize * shape // tf.reduce_min(shape)
    with tf.control_dependencies([_limited(tf.reduce_prod(scaled), f"the image, resized to {how.resize},")]):
        return tf.identity(scaled)


def _order(shape: Any, scaled: Any) -> Any:
    """Which side is resized first, 0 for the height: rounding in between makes them differ."""
    less = shape - scaled
    tall = (less[0] > 0) & (less[0] > 2 * less[1])
    return tf.where(tall & _TALL_FIRST, [0, 1], [1, 0])


def _resampled(pixels: Any, length: Any, scaled: Any, size: Any, interpolation: str) -> Any:
    """Resize the first side and keep its middle.

    Args:
        pixels: uint8 [length, other, channels].
        length, scaled: int64, pixels of that side before and after.
        size: int32, how many of them are kept.
        interpolation: see `Preprocessing`.

    Returns:
        uint8 [size, other, channels].
    """
    length, scaled = tf.cast(length, tf.int32), tf.cast(scaled, tf.int32)
    half = (scaled - size) // 2
    first = half + (scaled - size) % 2 * (half % 2)  # Python's round: halves go to the even number
    ratio = _divided(tf.cast(length, tf.float64), tf.cast(scaled, tf.float64))
    if interpolation == "nearest":
        # Step by step as Pillow goes, whose rounding errors add up.
        places = tf.cumsum(tf.concat([[ratio * 0.5], tf.repeat(ratio, scaled - 1)], 0))
        return tf.gather(pixels, tf.cast(places[first : first + size], tf.int32))
    centre = (tf.cast(first + tf.range(size), tf.float64) + 0.5) * ratio
    start, weights = _weights(length, centre, tf.maximum(ratio, 1.0), *_KERNELS[interpolation])

    def add(tap: Any, total: Any) -> tuple[Any, Any]:
        lines = tf.gather(pixels, tf.minimum(start + tap, length - 1))
        return tap + 1, total + weights[tap][:, None, None] * tf.cast(lines, tf.int32)

    total = tf.fill(tf.concat([[size], tf.shape(pixels)[1:]], 0), 1 << (_BITS - 1))
    _, total = tf.while_loop(lambda tap, _: tap < tf.shape(weights)[0], add, (0, total))
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total, _BITS), 0, 255), tf.uint8)


def _weights(length: Any, centre: Any, stretch: Any, support: int, kernel: Any) -> tuple[Any, Any]:
    """Of what pixels a resized one is made.

    Args:
        length: int32, pixels of the side.
        centre: float64 [size], where the resized pixels lie.
        stretch: float64 ≥ 1, widens the kernel when the picture shrinks: antialiasing.
        support, kernel: see `_KERNELS`.

    Returns:
        int32 [size], the first pixel, and int32 [taps, size], the weights from there on.
    """
    reach = support * stretch
    start = tf.cast(tf.maximum(centre - reach + 0.5, 0.0), tf.int32)
    end = tf.minimum(tf.cast(centre + reach + 0.5, tf.int32), length)
    place = start + tf.range(2 * tf.cast(tf.math.ceil(reach), tf.int32) + 1)[:, None]
    weights = kernel((tf.cast(place, tf.float64) - centre + 0.5) * (1 / stretch))
    weights = tf.where(place < end, weights, 0.0)
    weights *= (1 << _BITS) / tf.reduce_sum(weights, 0)
    return start, tf.cast(weights + 0.5 * tf.sign(weights), tf.int32)


def _divided(a: Any, b: Any) -> Any:
    """a / b. TensorFlow's optimizer would make a / constant a · (1 / constant), which is a bit off."""
    return tf.math.divide_no_nan(a, b)


def _triangle(x: Any) -> Any:
    return tf.maximum(1 - tf.abs(x), 0.0)


def _cubic(x: Any) -> Any:
    """Keys's, with a = −1/2."""
    x = tf.abs(x)
    return tf.where(x < 1, (1.5 * x - 2.5) * x * x + 1, tf.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0))


def _lanczos(x: Any) -> Any:
    return tf.where(tf.abs(x) < 3, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Any) -> Any:
    one = tf.ones_like(x)
    angle = math.pi * tf.where(x == 0, one, x)
    return tf.where(x == 0, one, tf.sin(angle) / angle)


_KERNELS = {"bilinear": (1, _triangle), "bicubic": (2, _cubic), "lanczos": (3, _lanczos)}
