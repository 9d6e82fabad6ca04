"""The training-mode forward pass of a Keras model, with the forms of its layers that are fast to train.

The model stays as it is: layers compute in another form only while the pass is traced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

from keras_resnets.extras import extra
from keras_resnets.training.config import TrainingError
from keras_resnets.training.segments import Segmented

with extra("tensorflow"):
    import keras
    import tensorflow as tf

PRECISIONS = ("float32", "bfloat16", "float16")


class TrainingForward:
    """Calls a functional Keras model in training mode, within a tf.function and, under a strategy, in a replica.

    Args:
        model: any functional Keras model. Layers that this class knows nothing of run as they are.
        precision: "float32" leaves every layer its own precision. "bfloat16" or "float16" let the layers of a
            float32 model compute in that type, except the last one; variables, batch statistics and outputs stay
            float32. float16 needs a scaled loss.
        remat: forget activations within the model's segments, and compute them again in the backward pass: memory
            for time, about a third more. Not under several replicas, and without effect under XLA.
        sync_batch_norm: under several replicas, take batch statistics over all of them; False leaves it to each
            layer's `synchronized`.
        xla: XLA will compile the pass.

    Raises:
        TrainingError: when the precision is unknown, the model is not a float32 one, or remat cannot be.
    """

    def __init__(
        self,
        model: Any,
        precision: str = "float32",
        remat: bool = False,
        sync_batch_norm: bool = True,
        xla: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise TrainingError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        dtypes = {variable.dtype for variable in model.trainable_variables}
        if precision != "float32" and dtypes != {"float32"}:
            found = " and ".join(sorted(dtypes)) or "no"
            raise TrainingError(f"precision {precision} needs float32 variables, and {model.name} has {found} ones")
        self.model, self.remat, self.sync_batch_norm, self.xla = model, remat, sync_batch_norm, xla
        self._policy = None if precision == "float32" else keras.DTypePolicy(f"mixed_{precision}")
        # Replicas trace in threads of their own, that wait for one another inside the layers.
        self._tracing, self._lock = 0, threading.Lock()
        self._undo: list[tuple[Any, str, Any]] = []
        self._replica = threading.local()
        self._segmented = Segmented(model, self._training_forms, remat)
        if remat and not self._segmented.functions:
            raise TrainingError(f"remat: {model.name} has no place where one tensor alone goes on, so it cannot be cut")

    def __call__(self, images: Any) -> Any:
        """The model's outputs for a batch; moving statistics and seed generators go on by one step.

        Args:
            images: [batch, height, width, channels]; one of several replicas may have none.

        Returns:
            Outputs [batch, classes], float32 at least.
        """
        # Autograph would turn every line of it, and of Keras, into its own code: there is nothing to convert.
        return tf.autograph.experimental.do_not_convert(self._call)(images)

    def _call(self, images: Any) -> Any:
        number = tf.shape(images)[0]
        if may_be_empty := images.shape[0] in (None, 0) and _replicas() > 1:
            # oneDNN's convolutions fail on empty batches: one black image, that counts for nothing.
            missing = tf.cast(number == 0, tf.int32)
            images = tf.pad(images, [[0, missing], *([[0, 0]] * (len(images.shape) - 1))])
            self._replica.counts = 1 - missing
        else:
            self._replica.counts = None
        with self._training_forms():
            outputs = self._segmented(images) if self._is_cut() else self.model(images, training=True)
        outputs = tf.nest.map_structure(_at_least_float32, outputs)
        return tf.nest.map_structure(lambda rows: rows[:number], outputs) if may_be_empty else outputs

    def _is_cut(self) -> bool:
        # Replicas wait for one another in batch norm, which they cannot do in a function inside the step.
        if self.remat and _replicas() > 1:
            raise TrainingError("remat works on one replica alone: choose --strategy single, or leave --remat away")
        return bool(self._segmented.functions) and _replicas() == 1

    @contextmanager
    def _training_forms(self) -> Iterator[None]:
        """Let layers compute in their training form; threads may be inside at the same time."""
        with self._lock:
            self._tracing += 1
            if self._tracing == 1:
                self._set_forms()
        try:
            yield
        finally:
            with self._lock:
                self._tracing -= 1
                if not self._tracing:
                    while self._undo:
                        _restore(*self._undo.pop())

    def _set_forms(self) -> None:
        float32 = _output_layers(self.model)
        for layer in self.model._flatten_layers():
            # Exact types: a subclass may compute something else.
            if type(layer) is keras.layers.BatchNormalization:
                self._set(layer, "call", partial(_batch_norm, layer, self.sync_batch_norm, self._replica))
            elif self.xla and type(layer) is keras.layers.MaxPooling2D:
                self._set(layer, "call", partial(_max_pool, layer))
            mixes = self._policy and layer not in float32 and not isinstance(layer, (keras.Sequential, _FUNCTIONAL))
            if mixes and getattr(layer.dtype_policy, "name", None) == "float32":
                self._set(layer, "_dtype_policy", self._policy)

    def _set(self, layer: Any, name: str, value: Any) -> None:
        self._undo.append((layer, name, vars(layer).get(name)))
        object.__setattr__(layer, name, value)


_FUNCTIONAL = type(keras.Model(*(2 * (keras.Input((1,)),))))


def _restore(layer: Any, name: str, value: Any) -> None:
    if value is None:
        object.__delattr__(layer, name)
    else:
        object.__setattr__(layer, name, value)


def _at_least_float32(output: Any) -> Any:
    return tf.cast(output, tf.float32) if output.dtype in (tf.bfloat16, tf.float16) else output


def _output_layers(model: Any) -> list[Any]:
    """The layers that give the outputs, with a softmax the layer in front of it: their sums decide the loss."""
    found = []
    for output in model.outputs:
        layer = output._keras_history.operation
        if getattr(layer, "outputs", None) and isinstance(layer, keras.Model):
            found += _output_layers(layer)
            continue
        found.append(layer)
        if isinstance(layer, (keras.layers.Softmax, keras.layers.Activation)):
            found += [tensor._keras_history.operation for tensor in layer._inbound_nodes[0].input_tensors]
    return found


def _batch_norm(layer: Any, sync: bool, replica: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    """BatchNormalization.call with TensorFlow's fused operation, or with statistics over all replicas."""
    own = partial(type(layer).call, layer, inputs, training=training, mask=mask)
    if not training or not layer.trainable or layer.renorm or mask is not None:
        return own()
    images = len(inputs.shape) == 4 and layer.axis in (-1, 3) and inputs.dtype in (tf.float32, tf.bfloat16, tf.float16)
    synchronized = (sync or layer.synchronized) and _replicas() > 1
    if not images and not synchronized:
        return own()
    shape, dtype = layer.moving_mean.shape, layer.moving_mean.dtype
    scale = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones(shape, dtype)
    offset = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros(shape, dtype)
    counts = getattr(replica, "counts", None)
    if synchronized:
        outputs, mean, variance = _synchronized(inputs, scale, offset, layer.epsilon, layer.axis, counts)
    else:
        outputs, mean, variance = _fused(inputs, scale, offset, layer.epsilon)
    for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        old = tf.convert_to_tensor(moving)
        new = old * layer.momentum + tf.stop_gradient(value) * (1 - layer.momentum)
        moving.assign(new if synchronized or counts is None else tf.where(counts > 0, new, old))
    return tf.cast(outputs, layer.compute_dtype)


def _max_pool(layer: Any, inputs: Any) -> Any:
    """MaxPooling2D.call as maxima of strided slices: XLA has no deterministic gradient of the operation itself.

    As there, the first of several largest elements takes the gradient.
    """
    if layer.data_format != "channels_last" or None in inputs.shape[1:3]:
        return type(layer).call(layer, inputs)
    padding = [[0, 0], [0, 0], [0, 0], [0, 0]]
    ends = []
    for axis, (window, stride) in enumerate(zip(layer.pool_size, layer.strides, strict=True), 1):
        length = inputs.shape[axis]
        outputs = -(-length // stride) if layer.padding == "same" else (length - window) // stride + 1
        missing = max((outputs - 1) * stride + window - length, 0)
        padding[axis] = [missing // 2, missing - missing // 2]
        ends.append((outputs - 1) * stride + 1)
    inputs = tf.pad(inputs, padding, constant_values=inputs.dtype.min)
    slices = [
        inputs[:, row : row + ends[0] : layer.strides[0], column : column + ends[1] : layer.strides[1]]
        for row in range(layer.pool_size[0])
        for column in range(layer.pool_size[1])
    ]
    return reduce(tf.maximum, slices)


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def _fused(inputs: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalized inputs, mean and biased variance over all axes but the last."""
    empty = tf.zeros([0], scale.dtype)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=empty, variance=empty, epsilon=epsilon, is_training=True
    )
    # The operation gives n / (n - 1) times the variance; Keras averages the variance as it is.
    number = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
    return outputs, mean, variance * ((number - 1) / number)


def _synchronized(inputs: Any, scale: Any, offset: Any, epsilon: float, axis: int, counts: Any) -> tuple[Any, Any, Any]:
    """Normalized inputs, mean and biased variance over all axes but one, and over all replicas.

    Replicas may hold different numbers of images. Local means and squared deviations are combined
    (Chan, Golub and LeVeque 1983), so that no large squares cancel.

    Args:
        counts: 0 for a replica whose images do not count, 1 for another, None where all count.
    """
    context, dtype, rank = tf.distribute.get_replica_context(), scale.dtype, len(inputs.shape)
    axes = [i for i in range(rank) if i != axis % rank]
    share = tf.ones([], dtype) if counts is None else tf.cast(counts, dtype)
    mean, variance, total = _global_moments(tf.cast(inputs, dtype), axes, share, context)
    inverse = tf.math.rsqrt(variance + tf.cast(epsilon, dtype))

    def wide(channels: Any) -> Any:
        return tf.reshape(channels, [-1 if i == axis % rank else 1 for i in range(rank)])

    def normalize(x: Any, scale: Any, offset: Any) -> Any:
        def normal() -> Any:
            return (tf.cast(x, dtype) - wide(mean)) * wide(inverse)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            dy = tf.cast(upstream, dtype)
            # Those of scale and offset are local: gradients of variables are summed over replicas later.
            d_offset, d_scale = tf.reduce_sum(dy, axes), tf.reduce_sum(dy * normal(), axes)
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([d_offset, d_scale]))
            means = sums * (share / total)
            dx = wide(scale * inverse) * (dy - wide(means[0]) - normal() * wide(means[1]))
            return tf.cast(dx, x.dtype), d_scale, d_offset

        return tf.cast(normal() * wide(scale) + wide(offset), x.dtype), gradient

    return tf.custom_gradient(normalize)(inputs, scale, offset), mean, variance


def _global_moments(inputs: Any, axes: list[int], share: Any, context: Any) -> tuple[Any, Any, Any]:
    """Mean, biased variance and number of elements [channels] of each channel over all replicas."""
    mean, variance = tf.nn.moments(inputs, axes)
    number = share * tf.cast(tf.reduce_prod(tf.gather(tf.shape(inputs), axes)), inputs.dtype)
    row = tf.stop_gradient(tf.stack([tf.fill(mean.shape, number), mean, variance]))
    # Each replica fills its own rows: unlike all_gather, one exchange and a known shape.
    mine = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync, dtype=row.dtype)
    rows = context.all_reduce(tf.distribute.ReduceOp.SUM, mine[:, tf.newaxis, tf.newaxis] * row)
    numbers, means, variances = tf.unstack(rows, axis=1)
    total = tf.reduce_sum(numbers, 0)
    mean = tf.reduce_sum(numbers * means, 0) / total
    variance = tf.reduce_sum(numbers * (variances + tf.math.squared_difference(means, mean)), 0) / total
    return mean, variance, total
