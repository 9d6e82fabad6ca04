"""One picture out of its file, cropped and resized, in TensorFlow; and what to do when it cannot be read."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keras_resnets.data.augmentation import ASPECT, SHORTER_SIDE, TRIES, Augmentation
from keras_resnets.data.corrupt import MARK, CorruptSamples
from keras_resnets.data.dataset import Samples, Split
from keras_resnets.data.encoded import FileSplit, RecordSplit
from keras_resnets.data.records import record_at
from keras_resnets.extras import extra
from keras_resnets.preprocessing import FORMATS, Preprocessing, load_image

with extra("tensorflow"):
    import tensorflow as tf

_DCT_SCALES = (1, 2, 4, 8)  # by which libjpeg decodes smaller
_IN_A_ROW = 20  # unreadable samples at which "skip" gives up: the disk is gone, not an image
_ORIENTATION = 0x0112  # EXIF's tag


class Reading(NamedTuple):
    """How the pictures of a split are read.

    Args:
        content: a function from an int64 row to its encoded image, or uint8 pixels of a split in memory.
        picture: a function from that and the row to uint8 [height, width, channels] of the network's input.
    """

    content: Callable[[Any], Any]
    picture: Callable[[Any, Any], Any]


def reading(split: Samples, preprocessing: Preprocessing, augmentation: Augmentation, crop_seed: int) -> Reading:
    """How the pictures of a split become inputs; both functions fail where a picture cannot be read.

    Args:
        split: in memory, of files or of records.
        preprocessing: for size and channels.
        augmentation: for the crop; "none" goes through `Preprocessing.pixels`.
        crop_seed: of an epoch's crops.
    """
    size, channels = preprocessing.size, preprocessing.channels

    def picture(image: Any, row: Any) -> Any:
        if augmentation.crop == "none":
            pixels = _called(preprocessing.pixels, image, tf.uint8)
        else:
            chance = tf.random.stateless_uniform([TRIES + 1, 2], tf.stack([tf.constant(crop_seed, tf.int64), row]))
            crop = _cropped if image.dtype == tf.uint8 else _decoded
            values = crop(image, lambda shape: crop_box(shape, augmentation, size, chance), size, channels)
            pixels = tf.cast(values + 0.5, tf.uint8)
        return tf.ensure_shape(pixels, [*size, channels])

    return Reading(_contents(split), picture)


def remembered(positions: Any, split: Any, order: Any) -> Any:
    """The same as `readable` of images in memory that are as large as the network's input, which cannot fail."""
    with tf.device("cpu:0"):
        images = tf.constant(split.images)

    def sample(position: Any) -> tuple[Any, Any, Any]:
        return position, images[order[position]], order[position]

    return positions.map(sample, num_parallel_calls=tf.data.AUTOTUNE)


def readable(positions: Any, read: Reading, order: Any) -> Any:
    """The samples that can be read; those that cannot are missing.

    Args:
        positions: a tf.data.Dataset of positions in the epoch's order.
        read: of the split.
        order: int64 [number], the epoch's.

    Returns:
        A tf.data.Dataset of (position, uint8 picture, row).
    """

    # Two steps: where TensorFlow shall be deterministic, it reads records one after the other, but decodes in parallel.
    def content(position: Any) -> tuple[Any, Any, Any]:
        return position, read.content(order[position]), order[position]

    def picture(position: Any, content: Any, row: Any) -> tuple[Any, Any, Any]:
        return position, read.picture(content, row), row

    contents = positions.map(content, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    return contents.map(picture, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()


def replacing(
    positions: Any, read: Reading, order: Any, shape: tuple[int, ...], split: Samples, corrupt: CorruptSamples
) -> Any:
    """The same, but the next sample of the order that can be read takes the place of one that cannot, which is counted.

    Args:
        positions, read, order: as for `readable`.
        shape: of the pictures.
        split: for the names of samples.
        corrupt: counts them.
    """
    number = tf.size(order, tf.int64)

    def attempt(position: Any) -> tuple[Any, Any]:
        # A graph cannot catch an exception, but a dataset can leave out the elements that raise one.
        row = order[position % number]
        found = tf.data.Dataset.from_tensors(row).map(lambda row: (read.picture(read.content(row), row), True))
        nothing = tf.data.Dataset.from_tensors((tf.zeros(shape, tf.uint8), False))
        return found.ignore_errors().concatenate(nothing).take(1).get_single_element()

    def count(row: np.int64) -> np.int64:
        corrupt.add(split.name(int(row)))
        return row

    def sample(position: Any) -> tuple[Any, Any, Any]:
        taken, pixels, success = tf.while_loop(
            lambda place, _, success: ~success & (place < position + _IN_A_ROW),
            lambda place, _, __: (place + 1, *attempt(place + 1)),
            (position, *attempt(position)),
        )
        meant = order[position]
        meant = tf.cond(taken > position, lambda: tf.numpy_function(count, [meant], tf.int64), lambda: meant)
        with tf.control_dependencies([tf.debugging.Assert(success, [MARK, meant])]):
            return position, tf.identity(pixels), order[taken % number]

    return positions.map(sample, num_parallel_calls=tf.data.AUTOTUNE)


def _contents(split: Samples) -> Callable[[Any], Any]:
    with tf.device("cpu:0"):
        if isinstance(split, FileSplit):
            files, root = tf.constant(split.files), f"{split.root}/"
            return lambda row: tf.io.read_file(root + files[row])
        if isinstance(split, RecordSplit):
            return _record_contents(split)
        if isinstance(split, Split):
            images = tf.constant(split.images)
            return lambda row: images[row]
    raise TypeError(f"{type(split).__name__} is no kind of split")


def _record_contents(split: RecordSplit) -> Callable[[Any], Any]:
    shards = split.shards
    names = tf.constant([str(file) for file in shards.files])
    file = tf.constant(np.searchsorted(shards.first, split.rows, side="right") - 1)
    offset, image = tf.constant(shards.offsets[split.rows]), tf.constant(shards.images[split.rows])

    def content(row: Any) -> Any:
        record = record_at(names[file[row]], offset[row]).get_single_element()
        return tf.strings.substr(record, image[row, 0], image[row, 1])

    return content


def _called(function: Callable[[Any], Any], argument: Any, kind: Any) -> Any:
    """A function of Python in the graph, which TensorFlow may call in any order."""
    return tf.numpy_function(function, [argument], kind, stateful=False)


def crop_box(shape: Any, augmentation: Augmentation, size: tuple[int, int], chance: Any) -> Any:
    """The part of a picture that becomes the network's input: int32 (top, left, height, width) in its pixels.

    Args:
        shape: int32 [≥ 2], the picture's height and width.
        augmentation: which crop.
        size: height and width of the input.
        chance: float32 [TRIES + 1, 2] in [0, 1).
    """
    whole = tf.cast(shape[:2], tf.float32)
    if augmentation.crop == "random_resized":
        sides = _random_sides(whole, augmentation.min_area, chance[:TRIES])
    else:
        low, high = (side * max(size) / 224 for side in SHORTER_SIDE)
        shorter = tf.minimum(tf.floor(low + chance[0, 0] * (high - low + 1)), high)  # float32 may round up
        sides = tf.clip_by_value(tf.round(np.asarray(size, np.float32) * tf.reduce_min(whole) / shorter), 1.0, whole)
    corner = tf.minimum(tf.floor(chance[TRIES] * (whole - sides + 1)), whole - sides)
    return tf.cast(tf.concat([corner, sides], 0), tf.int32)


def _random_sides(whole: Any, min_area: float, chance: Any) -> Any:
    """Height and width of the first try that fits the picture: area uniform, aspect uniform in its logarithm. When
    none fits, the largest part whose aspect is in range."""
    area = tf.reduce_prod(whole) * (min_area + (1 - min_area) * chance[:, 0])
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = tf.exp(low + (high - low) * chance[:, 1])
    tries = tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect], -1)))
    fits = tf.reduce_all((tries >= 1) & (tries <= whole), -1)
    largest = tf.maximum(tf.minimum(whole, tf.round(whole[::-1] * np.array([1 / ASPECT[0], ASPECT[1]], np.float32))), 1)
    return tf.where(tf.reduce_any(fits), tries[tf.argmax(fits)], largest)


def _cropped(pixels: Any, box_of: Callable[[Any], Any], size: tuple[int, int], channels: int) -> Any:
    """A part of uint8 pixels, resized with antialiasing, as float32 0…255."""
    top, left, height, width = tf.unstack(box_of(tf.shape(pixels)))
    part = tf.ensure_shape(pixels[top : top + height, left : left + width], [None, None, channels])
    return tf.clip_by_value(tf.image.resize(part, size, antialias=True), 0.0, 255.0)


def _decoded(encoded: Any, box_of: Callable[[Any], Any], size: tuple[int, int], channels: int) -> Any:
    """The same of an encoded image. Of an ordinary JPEG only the part is decoded; others take the way of evaluation."""

    def fused() -> Any:
        box = box_of(tf.io.extract_jpeg_shape(encoded))
        part = _decoded_part(encoded, box, size, channels)
        return tf.image.resize(tf.ensure_shape(part, [None, None, channels]), size)

    def reference() -> Any:
        pixels = _called(lambda content: _pixels(content, channels), encoded, tf.uint8)
        return _cropped(pixels, box_of, size, channels)

    # JFIF allows only grey and YCbCr; what follows its header may be EXIF, with an orientation.
    head = tf.io.decode_raw(encoded, tf.uint8, fixed_length=22)
    jfif = tf.reduce_all(head[:4] == [0xFF, 0xD8, 0xFF, 0xE0]) & (head[20] == 0xFF) & (head[21] < 0xE0)
    ordinary = tf.cond(jfif, lambda: True, lambda: tf.ensure_shape(_called(is_ordinary, encoded, tf.bool), []))
    return tf.cond(ordinary, fused, reference)


def _decoded_part(encoded: Any, box: Any, size: tuple[int, int], channels: int) -> Any:
    """Decode a box of a JPEG, smaller by a power of two where it stays at least as large as the input."""

    def scaled(scale: int) -> Any:
        # libjpeg rounds the size of the whole up; the box's edges are rounded down.
        # The accurate transform gives Pillow's pixels, and costs no more than the default one.
        return tf.io.decode_and_crop_jpeg(
            encoded, box // scale, channels=channels, ratio=scale, dct_method="INTEGER_ACCURATE"
        )

    spare = tf.reduce_min(box[2:] // np.asarray(size, np.int32))
    index = tf.searchsorted(_DCT_SCALES, [spare], side="right")[0] - 1
    return tf.switch_case(tf.maximum(index, 0), [lambda scale=scale: scaled(scale) for scale in _DCT_SCALES])


def is_ordinary(encoded: bytes) -> np.bool_:
    """Whether TensorFlow's decoder gives what `load_image` gives: a grey or colour JPEG that lies upright."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        return np.bool_(image.format == "JPEG" and image.mode in ("L", "RGB") and upright)


def _pixels(encoded: bytes, channels: int) -> NDArray[np.uint8]:
    """uint8 [height, width, channels] of the whole image, by the rules of `Preprocessing.pixels`."""
    image = load_image(encoded)
    same = Preprocessing((image.height, image.width), channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    return same.pixels(image)
