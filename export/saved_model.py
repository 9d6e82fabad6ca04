"""Keras to SavedModel: inference alone, loadable by TensorFlow without Keras or this package."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_folder
from keras_resnets.extras import extra
from keras_resnets.models.layers import linear_head
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.quiet import quiet

from .decode import decode, normalize
from .errors import ExportError, refuse_existing
from .trace import INPUT, inference_function, interface

with extra("export"):
    import tensorflow as tf


def to_saved_model(
    model: Any, folder: str | Path, *, preprocessing: Preprocessing | None = None, overwrite: bool = False
) -> Path:
    """Write a Keras image model as a SavedModel that TensorFlow loads without Keras or this package.

    Its signatures take one input, `images`, and give `probabilities`, `logits` or `features`:

    - `serving_default`: float32 [batch, height, width, channels], already preprocessed;
    - `logits`, the same with the logits of a model that ends in softmax or sigmoid;
    - `pixels`, where the preprocessing is known: uint8 [batch, height, width, channels], RGB or grey;
    - `encoded`, likewise: string [batch], the bytes of JPEG or PNG files of any size.

    What lies before the network is `Preprocessing` to the bit, the resizing as the installed Pillow does it; EXIF's
    orientation alone is not followed. Its two steps are also functions of the loaded object: `decode` (files to pixels)
    and `normalize` (pixels to the network's input). A file that is no JPEG or PNG, is truncated, or has over 25 million
    pixels fails its whole batch with TensorFlow's InvalidArgumentError.

    The result is not compared with the model: `to_bundle` does that.

    Args:
        model: a built Keras model with one image input and one output.
        folder: folder to write; it appears whole or not at all.
        preprocessing: how images become the input; by default the model's own (see `load_model`).
        overwrite: replace an existing SavedModel.

    Returns:
        The folder.

    Raises:
        ExportError: when the model has a form that cannot be exported, the preprocessing makes images that it does not
            take, or the folder cannot be written.
        MissingExtraError: when TensorFlow is not installed.
    """
    path = Path(folder)
    refuse_existing(path, overwrite, "saved_model.pb")
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    signatures = {"serving_default": inference_function(model, interface(model).output)}
    with linear_head(model) as has_logits:
        if has_logits:
            signatures["logits"] = inference_function(model, "logits")
    if preprocessing := preprocessing or getattr(model, "preprocessing", None):
        signatures |= _image_signatures(module, signatures["serving_default"], preprocessing, model)
    try:
        # TensorFlow reports where it wrote: that is the draft, not the folder asked for.
        with quiet(tf.get_logger(), logging.WARNING), atomic_folder(path, overwrite=overwrite) as draft:
            tf.saved_model.save(module, str(draft), signatures=signatures)
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"cannot write {path}: {error}") from error
    return path


def _image_signatures(module: Any, network: Any, how: Preprocessing, model: Any) -> dict[str, Any]:
    """`pixels` and `encoded`, which call the network's function, and their steps as functions of the module."""
    shape, made = interface(model).input_shape, (None, *how.size, how.channels)
    if not all(side in (None, own) for side, own in zip(shape, made, strict=True)):
        raise ExportError(f"the preprocessing makes {made[1:]}, but {model.name} takes {shape[1:]}")
    pixels, encoded = tf.TensorSpec(shape, tf.uint8, INPUT), tf.TensorSpec([None], tf.string, INPUT)

    def function(call: Callable[[Any], Any], spec: Any) -> Any:
        return tf.function(call, input_signature=[spec], autograph=False)

    module.normalize = function(lambda images: normalize(images, how), pixels)
    module.decode = function(lambda images: decode(images, how), encoded)
    return {
        "pixels": function(lambda images: network(module.normalize(images)), pixels),
        "encoded": function(lambda images: network(module.normalize(module.decode(images))), encoded),
    }
