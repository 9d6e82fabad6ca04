"""One step for any number of replicas: losses are summed over the global batch, so that equal batches give
equal gradients however they are spread.

Keras's own `fit` fails under MultiWorkerMirroredStrategy (keras#20585), so the loop runs `strategy.run`
itself; Keras callbacks work in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras_resnets.extras import extra
from keras_resnets.models.layers import last_layer
from keras_resnets.training.config import Recipe, TrainingError

with extra("tensorflow"):
    import keras
    import tensorflow as tf


def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> Any:
    """SGD with the recipe's schedule."""
    total, peak = steps_per_epoch * recipe.epochs, recipe.learning_rate
    warmup = min(round(steps_per_epoch * recipe.warmup_epochs), total - 1)
    if recipe.schedule == "cosine":
        rate: Any = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else peak,
            total - warmup,
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    else:
        rate = _Steps(peak, warmup, total)
    return keras.optimizers.SGD(rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


class _Steps(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a tenth after half and a hundredth after three quarters of all steps."""

    def __init__(self, peak: float, warmup: int, total: int) -> None:
        self.peak, self.warmup, self.total = peak, warmup, total

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        passed = tf.cast(step >= self.total / 2, tf.float32) + tf.cast(step >= self.total * 3 / 4, tf.float32)
        rise = tf.minimum(step / self.warmup, 1.0) if self.warmup else 1.0
        return self.peak * rise * tf.pow(0.1, passed)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup": self.warmup, "total": self.total}


class Loop:
    """Trains and evaluates one model under a strategy.

    Args:
        model: a Keras classifier built in the strategy's scope, giving probabilities or logits
            [batch, classes].
        optimizer: a Keras optimizer built in the same scope; None to evaluate only.
        recipe: for batch size, weight decay and label smoothing.
        strategy: a tf.distribute strategy.
    """

    def __init__(self, model: Any, optimizer: Any, recipe: Recipe, strategy: Any) -> None:
        self.model, self.optimizer, self.recipe, self.strategy = model, optimizer, recipe, strategy
        self._from_logits = getattr(last_layer(model), "activation", None) is keras.activations.linear
        self._kernels = [v for v in model.trainable_variables if v.name.endswith("kernel")]
        if optimizer is not None and not optimizer.built:
            # Inside the step, under several replicas, TensorFlow cannot create the momenta.
            with strategy.scope():
                optimizer.build(model.trainable_variables)
        # Retracing for the smaller last batch of an evaluation would cost more than a free shape does.
        self._train_step = tf.function(self._distributed(self._train_replica), reduce_retracing=True)
        self._test_step = tf.function(self._distributed(self._test_replica), reduce_retracing=True)

    def train_epoch(self, batches: Any, on_step: Callable[[int, Any], None] | None = None) -> dict[str, float]:
        """One pass over training batches.

        Args:
            batches: a tf.data.Dataset of (images, labels) in global batches.
            on_step: called with the step's number and the sums so far, a tensor [loss, correct, images].

        Returns:
            Mean "loss" (without the penalty) and "accuracy", both as seen during the epoch.

        Raises:
            TrainingError: when the loss is not finite.
        """
        return self._pass(self._train_step, batches, on_step)

    def evaluate(self, batches: Any) -> dict[str, float]:
        """Mean "loss" and "accuracy" over batches as in `train_epoch`, with batch norm's moving statistics.

        Raises:
            TrainingError: when there are no images, or the loss is not finite.
        """
        return self._pass(self._test_step, batches, None)

    def _pass(self, step: Any, batches: Any, on_step: Callable[[int, Any], None] | None) -> dict[str, float]:
        sums = tf.zeros([3], tf.float64)
        for number, batch in enumerate(self.strategy.experimental_distribute_dataset(batches)):
            sums += step(batch)  # stays on the device: reading it each step would make the next one wait
            if on_step:
                on_step(number, sums)
        loss, correct, images = (float(value) for value in sums)
        if not images:
            raise TrainingError("there are no images")
        if not math.isfinite(loss):
            raise TrainingError("the loss is not finite any more: lower learning_rate, or raise warmup_epochs")
        return {"loss": loss / images, "accuracy": correct / images}

    def _distributed(self, replica_step: Callable[..., Any]) -> Callable[[Any], Any]:
        def step(batch: Any) -> Any:
            sums = self.strategy.run(replica_step, args=batch)
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

        return step

    def _train_replica(self, images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            losses = self._losses(labels, outputs, self.recipe.label_smoothing)
            loss = tf.reduce_sum(losses) / self.recipe.batch_size
            # Each replica adds its share of the penalty; gradients are summed over replicas.
            loss += self._penalty() / self.strategy.num_replicas_in_sync
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._sums(losses, labels, outputs)

    def _test_replica(self, images: Any, labels: Any) -> Any:
        outputs = self.model(images, training=False)
        return self._sums(self._losses(labels, outputs, 0.0), labels, outputs)

    def _losses(self, labels: Any, outputs: Any, smoothing: float) -> Any:
        targets = tf.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        return keras.losses.categorical_crossentropy(targets, outputs, self._from_logits, smoothing)

    def _penalty(self) -> Any:
        if not self.recipe.weight_decay:
            return 0.0
        return self.recipe.weight_decay * tf.add_n([tf.nn.l2_loss(v.value) for v in self._kernels])

    @staticmethod
    def _sums(losses: Any, labels: Any, outputs: Any) -> Any:
        correct = tf.equal(tf.argmax(outputs, axis=-1), tf.cast(labels, tf.int64))
        rows = [tf.reduce_sum(tf.cast(values, tf.float64)) for values in (losses, correct)]
        return tf.stack([*rows, tf.cast(tf.shape(labels)[0], tf.float64)])
