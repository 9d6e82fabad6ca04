"""Dynamic loss scaling, which keeps small float16 gradients alive (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_resnets.extras import extra

with extra("tensorflow"):
    import tensorflow as tf

_START, _PATIENCE, _FACTOR = 2.0**15, 2000, 2.0


class LossScale:
    """Halves the scale and leaves a step out when a gradient overflows; doubles it after 2,000 good steps.

    Make it in the strategy's scope.
    """

    def __init__(self) -> None:
        self.scale = tf.Variable(_START, trainable=False, name="loss_scale")
        self.good = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_steps")

    @property
    def variables(self) -> list[Any]:
        """What changes with the steps."""
        return [self.scale, self.good]

    def up(self, loss: Any) -> Any:
        """The loss to differentiate."""
        return loss * tf.cast(self.scale, loss.dtype)

    def down(self, gradient: Any) -> Any:
        """A gradient of the true loss."""
        return gradient / tf.cast(self.scale, gradient.dtype)

    def apply(self, strategy: Any, gradients: Any, update: Callable[[Any], None]) -> None:
        """Run `update(gradients)` on the replicas, unless something overflowed; outside the replicas.

        Args:
            strategy: the tf.distribute strategy.
            gradients: unscaled, added up over the replicas and so the same on all.
            update: of a replica.
        """
        own = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in own])

        def step() -> Any:
            strategy.run(update, args=(gradients,))
            grown = self.good >= _PATIENCE - 1
            self.scale.assign(tf.where(grown, self.scale * _FACTOR, self.scale))
            return self.good.assign(tf.where(grown, tf.zeros_like(self.good), self.good + 1))

        def skip() -> Any:
            self.scale.assign(tf.maximum(self.scale / _FACTOR, 1.0))
            return self.good.assign(tf.zeros_like(self.good))

        tf.cond(finite, step, skip)
