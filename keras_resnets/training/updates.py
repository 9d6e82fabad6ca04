"""The update of SGD with momentum in one operation a variable, instead of Keras's eight.

A network of a thousand layers has thousands of variables: TensorFlow would spend half a minute on those operations
before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from keras_resnets.extras import extra

with extra("tensorflow"):
    import keras
    import tensorflow as tf


@contextmanager
def fused_updates(optimizer: Any) -> Iterator[None]:
    """Within, `optimizer.apply_gradients` computes the same with fewer operations, for Keras's SGD with momentum.

    Everything around the update (clipping, decay, averages, accumulation) stays Keras's; so do other optimizers.

    Args:
        optimizer: a built Keras optimizer.
    """
    if type(optimizer) is not keras.optimizers.SGD or not optimizer.momentum:
        yield
        return
    object.__setattr__(optimizer, "update_step", partial(_momentum_step, optimizer, {}))
    try:
        yield
    finally:
        object.__delattr__(optimizer, "update_step")


def _momentum_step(optimizer: Any, numbers: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """m ← momentum · m − rate · g; w ← w + m, or w + momentum · m − rate · g with Nesterov's."""
    if isinstance(gradient, tf.IndexedSlices):
        type(optimizer).update_step(optimizer, gradient, variable, learning_rate)
        return
    dtype = variable.dtype
    # One tensor for all variables of a graph, not one each.
    key = (id(tf.compat.v1.get_default_graph()), id(learning_rate), dtype)
    if key not in numbers:
        numbers[key] = tf.cast(learning_rate, dtype), tf.cast(optimizer.momentum, dtype)
    rate, momentum = numbers[key]
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=optimizer.momentums[optimizer._get_variable_index(variable)].value.handle,
        lr=rate,
        grad=tf.cast(gradient, dtype),
        momentum=momentum,
        use_locking=True,
        use_nesterov=optimizer.nesterov,
    )
