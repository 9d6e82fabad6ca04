"""The operations of RandAugment (Cubuk et al. 2019, arXiv:1909.13719, section 3) on one image.

They compute what Pillow's do (ImageOps, ImageEnhance, nearest-neighbour transforms with grey 128 outside). All
strengths grow with the magnitude, as in torchvision's RandAugment and timm's "inc" set; in the authors' own code
solarize and posterize are strongest at magnitude 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from keras_resnets.extras import extra

with extra("tensorflow"):
    import tensorflow as tf

_OUTSIDE = 128.0  # grey, which geometry moves into the image
_LUMA = (19595, 38470, 7471)  # of Pillow's "L", in 65536ths


def rand_augment(pixels: Any, operations: Any, signs: Any, magnitude: float) -> Any:
    """Put an image through some operations, one after the other.

    Args:
        pixels: uint8 [height, width, channels].
        operations: int32 [number], each an index of OPERATIONS.
        signs: float32 [number], -1 or 1, the direction of those that have one.
        magnitude: 0 … 10.
    """
    shape = pixels.shape
    for number in range(operations.shape[0]):
        change = _branches(pixels, magnitude / 10, signs[number])
        pixels = tf.ensure_shape(tf.switch_case(operations[number], change), shape)
    return pixels


def _branches(pixels: Any, level: float, sign: Any) -> list[Callable[[], Any]]:
    return [partial(change, pixels, level, sign) for change in OPERATIONS.values()]


# Geometry. Matrices map a point (x, y) of the result, in pixels from the upper left corner, to one of the image.


def _rotate(pixels: Any, level: float, sign: Any) -> Any:
    """By up to 30° about the centre."""
    angle = sign * (level * np.pi / 6)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    x, y = pixels.shape[1] / 2, pixels.shape[0] / 2
    return _transform(pixels, cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)


def _shear_x(pixels: Any, level: float, sign: Any) -> Any:
    """Rows by up to 0.3 of their distance from the upper edge."""
    return _transform(pixels, 1.0, sign * (0.3 * level), 0.0, 0.0, 1.0, 0.0)


def _shear_y(pixels: Any, level: float, sign: Any) -> Any:
    """Columns by up to 0.3 of their distance from the left edge."""
    return _transform(pixels, 1.0, 0.0, 0.0, sign * (0.3 * level), 1.0, 0.0)


def _translate_x(pixels: Any, level: float, sign: Any) -> Any:
    """By up to 0.45 of the width (the authors' 100 of 224 pixels)."""
    return _transform(pixels, 1.0, 0.0, sign * (0.45 * level * pixels.shape[1]), 0.0, 1.0, 0.0)


def _translate_y(pixels: Any, level: float, sign: Any) -> Any:
    """By up to 0.45 of the height."""
    return _transform(pixels, 1.0, 0.0, 0.0, 0.0, 1.0, sign * (0.45 * level * pixels.shape[0]))


def _transform(pixels: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """The pixel that (a·x + b·y + c, d·x + e·y + f) lies in; TensorFlow counts from the first pixel's centre."""
    row = [a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0.0, 0.0]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[tf.newaxis],
        transforms=tf.stack([tf.cast(value, tf.float32) for value in row])[tf.newaxis],
        output_shape=pixels.shape[:2],
        fill_value=_OUTSIDE,
        interpolation="NEAREST",
    )[0]


# Histograms and bits.


def _auto_contrast(pixels: Any, level: float, sign: Any) -> Any:
    """Each channel from 0 to 255."""
    low, high = (_of_channels(reduce, pixels) for reduce in (tf.reduce_min, tf.reduce_max))
    scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1.0)
    offset = tf.where(high > low, low * scale, 0.0)
    width = pixels.shape[1]
    # Where the exact value is an integer, the product may fall short of it.
    stretched = _rows(pixels) * tf.tile(scale, [width]) - tf.tile(offset, [width]) + 1e-3
    return _image(stretched, pixels)


def _equalize(pixels: Any, level: float, sign: Any) -> Any:
    """Each channel to an even histogram."""
    width, channels = pixels.shape[1:]
    values = tf.cast(_rows(pixels), tf.int32) + 256 * np.tile(np.arange(channels, dtype=np.int32), width)
    counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=256 * channels, maxlength=256 * channels)
    counts = tf.reshape(counts, [channels, 256])
    brightest = tf.gather(counts, tf.cast(_of_channels(tf.reduce_max, pixels), tf.int32), axis=1, batch_dims=1)
    step = (tf.reduce_sum(counts, 1, keepdims=True) - brightest[:, tf.newaxis]) // 255
    table = (tf.cumsum(counts, 1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.cast(tf.where(step > 0, tf.minimum(table, 255), tf.range(256)), tf.uint8)
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), values), pixels.shape)


def _solarize(pixels: Any, level: float, sign: Any) -> Any:
    """Invert what is not below a threshold of 256 down to 0."""
    threshold = round(256 * (1 - level))
    if threshold == 256:
        return pixels
    return tf.bitwise.bitwise_xor(pixels, tf.cast(pixels >= np.uint8(threshold), tf.uint8) * np.uint8(255))


def _posterize(pixels: Any, level: float, sign: Any) -> Any:
    """Keep the upper 8 down to 4 bits."""
    return tf.bitwise.bitwise_and(pixels, np.uint8(0xFF << round(4 * level) & 0xFF))


# Enhancements: away from a poorer image, or towards it, by up to 0.9.


def _color(pixels: Any, level: float, sign: Any) -> Any:
    return _blend(_grey(pixels), pixels, level, sign)


def _contrast(pixels: Any, level: float, sign: Any) -> Any:
    return _blend(tf.floor(tf.reduce_mean(_grey(pixels)) + 0.5), pixels, level, sign)


def _brightness(pixels: Any, level: float, sign: Any) -> Any:
    return _blend(0.0, pixels, level, sign)


def _sharpness(pixels: Any, level: float, sign: Any) -> Any:
    """Against the mean of 3×3 pixels, the middle five times, as Pillow; the outermost pixels stay as they are."""
    channels = pixels.shape[2]
    values = _rows(pixels)
    lines = values[:-2] + values[1:-1] + values[2:]
    inner = values[1:-1, channels:-channels]
    sums = lines[:, : -2 * channels] + lines[:, channels:-channels] + lines[:, 2 * channels :] + 4 * inner
    border = [[1, 1], [channels, channels]]
    smooth = tf.where(tf.pad(tf.ones_like(inner, tf.bool), border), tf.pad(tf.floor(sums / 13 + 0.5), border), values)
    return _blend(smooth, pixels, level, sign)


def _blend(poorer: Any, pixels: Any, level: float, sign: Any) -> Any:
    return _image(poorer + (1 + sign * (0.9 * level)) * (_rows(pixels) - poorer), pixels)


def _grey(pixels: Any) -> Any:
    """The luma in all channels, as rows."""
    if pixels.shape[2] == 1:
        return _rows(pixels)
    weights = np.tile(np.array(_LUMA, np.float32)[:, np.newaxis], 3)
    # All of these integers are exact in float32.
    sums = tf.matmul(tf.reshape(_rows(pixels), [-1, 3]), weights)
    return tf.reshape(tf.floor((sums + 32768) / 65536), [pixels.shape[0], -1])


def _rows(pixels: Any) -> Any:
    """float32 [height, width · channels], over which TensorFlow is several times faster (see `batch`)."""
    return tf.cast(tf.reshape(pixels, [pixels.shape[0], -1]), tf.float32)


def _image(rows: Any, like: Any) -> Any:
    return tf.cast(tf.reshape(tf.clip_by_value(rows, 0, 255), like.shape), tf.uint8)


def _of_channels(reduce: Callable[..., Any], pixels: Any) -> Any:
    """float32 [channels]: the lowest or highest value of each."""
    return reduce(tf.reshape(reduce(_rows(pixels), 0), [-1, pixels.shape[2]]), 0)


def _identity(pixels: Any, level: float, sign: Any) -> Any:
    return pixels


OPERATIONS: dict[str, Callable[[Any, float, Any], Any]] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
