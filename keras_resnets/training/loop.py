"""One step for any number of replicas: losses are summed over the global batch, so that equal batches give
equal gradients however they are spread.

Keras's own `fit` fails under MultiWorkerMirroredStrategy (keras#20585), so the loop runs `strategy.run`
itself; Keras callbacks, metrics and optimizers work in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.models.layers import linear_head
from keras_resnets.training.average import Average
from keras_resnets.training.config import Recipe, TrainingError
from keras_resnets.training.forward import TrainingForward
from keras_resnets.training.loss_scale import LossScale
from keras_resnets.training.optimizers import decays, penalty_of
from keras_resnets.training.updates import fused_updates

with extra("tensorflow"):
    import keras
    import tensorflow as tf

# What a step adds up over replicas, as float64.
LOSS, CORRECT, IMAGES, STOP = range(4)
Sums = list[Any]  # that vector, and the state of each metric
OnSteps = Callable[[int, Sums], None]


class Loop:
    """Trains and evaluates one model under a strategy. Make it in the strategy's scope.

    Args:
        model: a Keras classifier built in that scope, giving probabilities or logits [batch, classes].
        recipe: how to train.
        strategy: a tf.distribute strategy.
        optimizer: a built Keras optimizer of the same scope; None to evaluate only.
        metrics: Keras metrics; each sees targets [batch, classes] (those named Sparse…: labels [batch]) and
            probabilities [batch, classes].
    """

    def __init__(
        self, model: Any, recipe: Recipe, strategy: Any, *, optimizer: Any = None, metrics: Sequence[Any] = ()
    ) -> None:
        self.model, self.recipe, self.strategy, self.optimizer = model, recipe, strategy, optimizer
        self.metrics = [_built(metric, int(model.outputs[0].shape[-1])) for metric in metrics]
        self.replicas = strategy.num_replicas_in_sync
        self.stop = tf.Variable(0.0, dtype=tf.float64, trainable=False)  # each worker's own: a signal came
        self.average: Average | None = None
        self.scale: LossScale | None = None
        self._dtype = model.inputs[0].dtype
        if optimizer is not None:
            self._prepare_training()
        self._test_step = _graph(self._test_batch)

    def _prepare_training(self) -> None:
        recipe = self.recipe
        if recipe.remat and self.replicas > 1:
            raise TrainingError("remat works on one device: replicas cannot wait for one another while they recompute")
        self._forward = TrainingForward(
            self.model,
            precision=recipe.precision,
            remat=recipe.remat,
            sync_batch_norm=recipe.sync_batch_norm,
            xla=recipe.xla,
        )
        self.average = Average(self.model, recipe.ema) if recipe.ema else None
        self.scale = LossScale() if recipe.precision == "float16" else None
        # Gradients are added up over replicas outside of what XLA compiles.
        self._compiled = (
            tf.function(self._local_gradients, jit_compile=True, autograph=False)
            if recipe.xla
            else self._local_gradients
        )
        # The loop adds the gradients up itself, since it clips them behind that.
        self.optimizer._all_reduce_sum_gradients = lambda pairs: pairs
        self._train_steps = _graph(self._run_steps)

    def train(self, batches: Any, steps: int, sums: Sums | None = None, on_steps: OnSteps | None = None) -> Sums:
        """Train for some steps.

        Args:
            batches: an iterator over a distributed dataset of (images, labels or targets).
            steps: how many.
            sums: those of the epoch's steps so far, to go on from.
            on_steps: called after each execution with the number of steps done here and the sums; it may raise.

        Returns:
            The sums, for `result`.
        """
        sums, done = sums or self.zeros(), 0
        while done < steps:
            count = min(self.recipe.steps_per_execution, steps - done)
            # The sums stay on the device: reading them each step would make the next one wait.
            sums = self._train_steps(batches, tf.constant(count), sums)
            done += count
            if on_steps:
                on_steps(done, sums)
        return sums

    def evaluate(self, batches: Any, on_batch: Callable[[], None] | None = None) -> dict[str, float]:
        """Mean "loss", "accuracy" and the metrics over batches, with batch norm's moving statistics.

        With an EMA, it is the averaged weights that are evaluated. `on_batch` is called after each batch; it may raise.

        Raises:
            TrainingError: when there are no images, or the loss is not finite.
        """
        sums = self.zeros()
        with self.averaged():
            for batch in batches:
                sums = self._test_step(batch, sums)
                if on_batch:
                    on_batch()
        return self.result(sums)

    def zeros(self) -> Sums:
        """The sums before the first batch."""
        states = [[tf.zeros(v.shape, v.dtype) for v in metric.variables] for metric in self.metrics]
        return [tf.zeros([4], tf.float64), *(value for state in states for value in state)]

    def result(self, sums: Sums) -> dict[str, float]:
        """Means of what was summed: "loss" (without the penalty), "accuracy", and the metrics.

        Raises:
            TrainingError: when there are no images, or the loss is not finite.
        """
        vector = np.asarray(sums[0])
        if not vector[IMAGES]:
            raise TrainingError("there are no images")
        if not math.isfinite(vector[LOSS]):
            raise TrainingError(
                "the loss is not finite any more: lower learning_rate, raise warmup_epochs, or set clip_norm"
            )
        row = {"loss": vector[LOSS] / vector[IMAGES], "accuracy": vector[CORRECT] / vector[IMAGES]}
        for metric, state in self._metric_states(sums):
            row[metric.name] = metric.stateless_result(state)
        return {name: float(value) for name, value in row.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With an EMA, the model has the averaged weights inside."""
        if self.average is None:
            yield
        else:
            with self.average.in_place():
                yield

    def variables(self) -> dict[str, Any]:
        """All that training changes, by names that are the same in every run of the recipe."""
        groups = {
            "model": self.model.variables,
            "optimizer": self.optimizer.variables,
            "average": self.average.values if self.average else [],
            "scale": self.scale.variables if self.scale else [],
        }
        return {
            # The end of the name alone: Keras counts layers and seed generators through the process.
            f"{group}/{i:05d}/{variable.name.partition(':')[0].split('_')[-1]}": variable
            for group, members in groups.items()
            for i, variable in enumerate(members)
        }

    def state(self, sums: Sums) -> dict[str, NDArray[Any]]:
        """The values of `variables`, and the sums of the running epoch."""
        arrays = {name: np.asarray(variable) for name, variable in self.variables().items()}
        sums = [sums[0] * tf.constant([1, 1, 1, 0], tf.float64), *sums[1:]]  # a signal is not for the next process
        return arrays | {f"sums/{i:05d}": np.asarray(value) for i, value in enumerate(sums)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Sums:
        """Set the variables to what `state` gave; returns the sums.

        Raises:
            TrainingError: when they are of another network or recipe.
        """
        variables, sums = self.variables(), self.zeros()
        names = [f"sums/{i:05d}" for i in range(len(sums))]
        wanted = {name: tuple(v.shape) for name, v in variables.items()}
        wanted |= {name: tuple(value.shape) for name, value in zip(names, sums, strict=True)}
        if wanted != {name: array.shape for name, array in state.items()}:
            different = sorted(set(wanted.items()) ^ {(name, array.shape) for name, array in state.items()})
            raise TrainingError(f"it is of another network, optimizer or set of metrics: {different[0][0]} differs")
        for name, variable in variables.items():
            variable.assign(state[name])
        return [tf.constant(state[name]) for name in names]

    def _run_steps(self, batches: Any, count: Any, sums: Sums) -> Sums:
        if self.recipe.steps_per_execution == 1:
            return self._train_batch(batches.get_next(), sums)

        def body(i: Any, sums: Sums) -> Any:
            return i + 1, self._train_batch(batches.get_next(), sums)

        return tf.while_loop(lambda i, _: i < count, body, (0, sums))[1]

    def _train_batch(self, batch: Any, sums: Sums) -> Sums:
        # Replicas are traced in turns, so that what changes layers meanwhile stands around all of them.
        with linear_head(self.model):
            gradients, added = self.strategy.run(self._replica_gradients, args=batch)
        with fused_updates(self.optimizer):
            if self.scale:
                self.scale.apply(self.strategy, gradients, self._replica_update)
            else:
                self.strategy.run(self._replica_update, args=(gradients,))
        if self.average:
            self.average.update(self.optimizer.iterations)
        return self._plus(sums, added)

    def _test_batch(self, batch: Any, sums: Sums) -> Sums:
        with linear_head(self.model):
            added = self.strategy.run(self._replica_test, args=batch)
        return self._plus(sums, added)

    def _plus(self, sums: Sums, added: list[Any]) -> Sums:
        # One by one: several workers give a list of one back without the list.
        reduced = [self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) for value in added]
        return [a + b for a, b in zip(sums, reduced, strict=True)]

    def _replica_gradients(self, images: Any, labels: Any) -> tuple[list[Any], list[Any]]:
        """Gradients of the mean loss over the global batch, equal on all replicas; and the replica's sums."""
        images, targets = tf.cast(images, self._dtype), self._targets(labels)
        gradients, sums = self._compiled(images, targets, self._global_number(images))
        return self._finished(gradients), [self._with_stop(sums[0]), *sums[1:]]

    def _local_gradients(self, images: Any, targets: Any, total: Any) -> tuple[list[Any], list[Any]]:
        """The replica's share of the gradients, and its sums; in several parts where memory is short."""
        gradients, sums = self._part_gradients(*self._part(images, targets, 0), total)
        for part in range(1, self.recipe.accumulate):
            # Each part waits for the one before, or all would be in memory at once.
            with tf.control_dependencies(gradients):
                rows = self._part(images, targets, part)
            more, added = self._part_gradients(*rows, total)
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
            sums = [a + b for a, b in zip(sums, added, strict=True)]
        return gradients, sums

    def _part(self, images: Any, targets: Any, part: int) -> tuple[Any, Any]:
        if self.recipe.accumulate == 1:
            return images, targets
        number = tf.shape(images)[0]
        low, high = (number * i // self.recipe.accumulate for i in (part, part + 1))
        return images[low:high], targets[low:high]

    def _part_gradients(self, images: Any, targets: Any, total: Any) -> tuple[list[Any], list[Any]]:
        values = [variable.value for variable in self.model.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = self._forward(images)
            losses = self._losses(targets, logits, self.recipe.label_smoothing)
            loss = tf.reduce_sum(losses) / tf.cast(total, losses.dtype)
            if self.scale:
                loss = self.scale.up(loss)
        gradients = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, self._sums(losses, targets, logits)

    def _global_number(self, images: Any) -> Any:
        """Images in the global batch."""
        if self.recipe.drop_last:
            return self.recipe.batch_size
        return self._all_reduce(tf.shape(images, tf.int64)[0])

    def _finished(self, gradients: list[Any]) -> list[Any]:
        """Added up over replicas, with the penalty, clipped."""
        gradients = self._all_reduce(gradients)
        if self.scale:
            gradients = [self.scale.down(gradient) for gradient in gradients]
        if penalty := penalty_of(self.recipe):
            # The gradient of 0.5 · penalty · Σw².
            pairs = zip(gradients, self.model.trainable_variables, strict=True)
            gradients = [g + penalty * v.value if decays(v) else g for g, v in pairs]
        if self.recipe.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.recipe.clip_norm)
        return gradients

    def _all_reduce(self, values: Any) -> Any:
        if self.replicas == 1:
            return values
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

    def _replica_update(self, gradients: list[Any]) -> None:
        if self.replicas > 1 and not self.recipe.sync_batch_norm:
            self._share_statistics()
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))

    def _share_statistics(self) -> None:
        """Give all replicas the mean of their moving statistics: so they evaluate and save the same network."""
        moving = [v for v in self.model.non_trainable_variables if "float" in str(v.dtype)]
        context = tf.distribute.get_replica_context()
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, [tf.convert_to_tensor(v.value) for v in moving])
        for variable, mean in zip(moving, means, strict=True):
            variable.assign(mean)

    def _replica_test(self, images: Any, labels: Any) -> list[Any]:
        targets = self._targets(labels)
        logits = tf.cast(self.model(tf.cast(images, self._dtype), training=False), self._dtype)
        return self._sums(self._losses(targets, logits, 0.0), targets, logits)

    def _targets(self, labels: Any) -> Any:
        classes = int(self.model.outputs[0].shape[-1])
        return tf.one_hot(labels, classes, dtype=self._dtype) if labels.dtype.is_integer else labels

    def _losses(self, targets: Any, logits: Any, smoothing: float) -> Any:
        targets = tf.cast(targets, logits.dtype)
        if smoothing:
            targets = targets * (1.0 - smoothing) + smoothing / targets.shape[-1]
        if self.recipe.loss == "binary":
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), axis=-1)
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def _sums(self, losses: Any, targets: Any, logits: Any) -> list[Any]:
        correct = tf.equal(tf.argmax(logits, axis=-1), tf.argmax(targets, axis=-1))
        rows = [tf.reduce_sum(tf.cast(values, tf.float64)) for values in (losses, correct)]
        vector = tf.stack([*rows, tf.cast(tf.shape(targets)[0], tf.float64), tf.constant(0.0, tf.float64)])
        probabilities = tf.nn.sigmoid(logits) if self.recipe.loss == "binary" else tf.nn.softmax(logits)
        return [vector, *(value for metric in self.metrics for value in _added(metric, targets, probabilities))]

    def _with_stop(self, vector: Any) -> Any:
        return vector + tf.concat([tf.zeros([STOP], tf.float64), tf.reshape(self.stop, [1])], 0)

    def _metric_states(self, sums: Sums) -> Iterator[tuple[Any, list[Any]]]:
        position = 1
        for metric in self.metrics:
            size = len(metric.variables)
            yield metric, sums[position : position + size]
            position += size


def _graph(function: Callable[..., Any]) -> Any:
    """A compiled function. There is nothing for autograph to convert, and in deep networks it would take its time; and
    retracing for the smaller last batch of an evaluation would cost more than a free shape does."""
    return tf.function(function, autograph=False, reduce_retracing=True)


def _built(metric: Any, classes: int) -> Any:
    """A metric that has its variables, which some make with the first batch."""
    if not isinstance(metric, keras.metrics.Metric):
        raise TrainingError(f"metrics are Keras metrics, not {type(metric).__name__}")
    _added(metric, tf.one_hot([0], classes), tf.one_hot([0], classes))
    return metric


def _added(metric: Any, targets: Any, probabilities: Any) -> list[Any]:
    """What a batch adds to a metric's state: states of Keras's metrics are sums, so that replicas add up."""
    sparse = type(metric).__name__.startswith("Sparse")
    truth = tf.argmax(targets, axis=-1) if sparse else targets
    if not metric.variables:
        metric.update_state(truth, probabilities)
        metric.reset_state()
    return metric.stateless_update_state([tf.zeros(v.shape, v.dtype) for v in metric.variables], truth, probabilities)
