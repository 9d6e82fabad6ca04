"""The exponential moving average of a model's weights, which often classifies better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from keras_resnets.extras import extra

with extra("tensorflow"):
    import tensorflow as tf


class Average:
    """Averages of all floating-point variables of a model, batch statistics included. Make it in the strategy's scope.

    Args:
        model: a built Keras model.
        decay: share of the old average that stays at each step; at step t at most (1 + t) / (10 + t), so that the
            random start is forgotten.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self._variables = [v for v in model.variables if "float" in str(v.dtype)]
        self.values = [
            tf.Variable(np.asarray(v), trainable=False, name=f"average_{i}") for i, v in enumerate(self._variables)
        ]

    def update(self, step: Any) -> None:
        """Take in the weights after a step; outside the replicas."""
        step = tf.cast(step, tf.float64)
        keep = tf.minimum(tf.constant(self.decay, tf.float64), (1.0 + step) / (10.0 + step))
        for average, variable in zip(self.values, self._variables, strict=True):
            share = tf.cast(1.0 - keep, average.dtype)
            average.assign(average + share * (tf.convert_to_tensor(variable.value) - average))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and the weights it had afterwards."""
        weights = [np.array(variable) for variable in self._variables]
        try:
            _assign(self._variables, self.values)
            yield
        finally:
            _assign(self._variables, weights)

    def put_in_place(self) -> None:
        """Give the model the averages for good."""
        _assign(self._variables, self.values)


def _assign(variables: list[Any], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(np.asarray(value))
