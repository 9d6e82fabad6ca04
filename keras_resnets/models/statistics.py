"""Re-estimates a network's batch-norm statistics from data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras_resnets.extras import extra

with extra("tensorflow"):
    import keras


def update_batch_norm(model: Any, batches: Iterable[Any]) -> int:
    """Replace the moving statistics of every batch norm by their mean over `batches`.

    Useful after weights were averaged or changed, and to give a network that was never trained statistics of
    real data.

    Args:
        model: a Keras model.
        batches: tensors [batch, height, width, channels], preprocessed; each counts equally.

    Returns:
        The number of batches used.

    Raises:
        ValueError: when there are no batches.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [(layer.momentum, layer.trainable) for layer in norms]
    count = 0
    try:
        for count, batch in enumerate(batches, start=1):
            for layer in norms:
                layer.momentum, layer.trainable = (count - 1) / count, True  # a frozen one would not update
            model(batch, training=True)
    finally:
        for layer, (momentum, trainable) in zip(norms, before, strict=True):
            layer.momentum, layer.trainable = momentum, trainable
    if not count:
        raise ValueError("update_batch_norm needs at least one batch")
    return count
