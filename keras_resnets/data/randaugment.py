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
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


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
    return _transform(pixels, cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


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
    values = tf.cast(pixels, tf.int32)
    low, high = tf.reduce_min(values, (0, 1)), tf.reduce_max(values, (0, 1))
    stretched = (values - low) * 255 // tf.maximum(high - low, 1)
    return tf.cast(tf.where(high > low, stretched, values), tf.uint8)


def _equalize(pixels: Any, level: float, sign: Any) -> Any:
    """Each channel to an even histogram."""
    channels = pixels.shape[2]
    values = tf.cast(pixels, tf.int32) + 256 * tf.range(channels)
    counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=256 * channels, maxlength=256 * channels)
    counts = tf.reshape(counts, [channels, 256])
    total = tf.reduce_sum(counts, 1, keepdims=True)
    brightest = tf.gather(counts, tf.reduce_max(tf.cast(pixels, tf.int32), (0, 1)), axis=1, batch_dims=1)
    step = (total - brightest[:, tf.newaxis]) // 255
    table = (tf.cumsum(counts, 1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    return tf.cast(tf.gather(tf.reshape(table, [-1]), values), tf.uint8)


def _solarize(pixels: Any, level: float, sign: Any) -> Any:
    """Invert what is not below a threshold of 256 down to 0."""
    threshold = round(256 * (1 - level))
    return tf.where(tf.cast(pixels, tf.int32) < threshold, pixels, 255 - pixels)


def _posterize(pixels: Any, level: float, sign: Any) -> Any:
    """Keep the upper 8 down to 4 bits."""
    return tf.bitwise.bitwise_and(pixels, np.uint8(0xFF << round(4 * level) & 0xFF))


# Enhancements: away from, or towards, a poorer image, by up to 0.9.


def _colour(pixels: Any, level: float, sign: Any) -> Any:
    return _blend(_grey(pixels), pixels, level, sign)


def _contrast(pixels: Any, level: float, sign: Any) -> Any:
    mean = tf.floor(tf.reduce_mean(tf.cast(_grey(pixels), tf.float32)) + 0.5)
    return _blend(mean, pixels, level, sign)


def _brightness(pixels: Any, level: float, sign: Any) -> Any:
    return _blend(0.0, pixels, level, sign)


def _sharpness(pixels: Any, level: float, sign: Any) -> Any:
    """Pillow leaves the outermost pixels as they are."""
    values = tf.cast(pixels, tf.float32)
    kernel = tf.repeat(_SMOOTH[:, :, np.newaxis, np.newaxis], pixels.shape[2], axis=2)
    inner = tf.nn.depthwise_conv2d(values[tf.newaxis], kernel, (1, 1, 1, 1), "VALID")[0]
    smooth = tf.pad(tf.floor(inner + 0.5), [[1, 1], [1, 1], [0, 0]])
    within = tf.pad(tf.ones_like(inner, tf.bool), [[1, 1], [1, 1], [0, 0]])
    return _blend(tf.where(within, smooth, values), pixels, level, sign)


def _grey(pixels: Any) -> Any:
    """[height, width, 1]: the luma of colour."""
    if pixels.shape[2] == 1:
        return pixels
    weighted = tf.reduce_sum(tf.cast(pixels, tf.int32) * np.array(_LUMA, np.int32), -1, keepdims=True)
    return tf.cast((weighted + 0x8000) // 0x10000, tf.uint8)


def _blend(poorer: Any, pixels: Any, level: float, sign: Any) -> Any:
    low = tf.cast(poorer, tf.float32)
    mixed = low + (1 + sign * (0.9 * level)) * (tf.cast(pixels, tf.float32) - low)
    return tf.cast(tf.clip_by_value(mixed, 0, 255), tf.uint8)


def _identity(pixels: Any, level: float, sign: Any) -> Any:
    return pixels


OPERATIONS: dict[str, Callable[[Any, float, Any], Any]] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _colour,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
