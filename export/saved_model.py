"""Keras to SavedModel: inference alone, loadable by TensorFlow without Keras or this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_folder
from keras_resnets.extras import extra
from keras_resnets.models.layers import linear_head

from .errors import ExportError, refuse_existing
from .trace import inference_function, interface

with extra("export"):
    import tensorflow as tf


def to_saved_model(model: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a Keras image model as a SavedModel with the signature `serving_default`.

    The signature takes `images`, float32 [batch, height, width, channels], already preprocessed, and gives
    `probabilities`, `logits` or `features`. A model that ends in softmax or sigmoid has a second one, `logits`.
    The result is not compared with the model: `to_bundle` does that.

    Args:
        model: a built Keras model with one image input and one output.
        folder: folder to write; it appears whole or not at all.
        overwrite: replace an existing SavedModel.

    Returns:
        The folder.

    Raises:
        ExportError: when the model has a form that cannot be exported, or the folder cannot be written.
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
    try:
        with _quiet(), atomic_folder(path, overwrite=overwrite) as draft:
            tf.saved_model.save(module, str(draft), signatures=signatures)
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(f"cannot write {path}: {error}") from error
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorFlow's report of where it wrote: that is the draft, not the folder asked for."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)
