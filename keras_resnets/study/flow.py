"""The gradient of the loss at every block of a Keras model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.models.layers import allow_depth, linear_head
from keras_resnets.study.outcome import StudyError

with extra("tensorflow"):
    import keras
    import tensorflow as tf

_BLOCK = re.compile(r"conv\d+_block\d+_(out|concat)|block\d+_add2")  # outputs of the zoo's blocks
_FIRST_TOKENS = 100  # of a vocabulary, that random texts are made of


class Point(NamedTuple):
    """What arrives at the output of one block.

    Args:
        name: of the layer whose output it is.
        gradient: ‖∂L/∂h‖, Euclidean, over the whole batch.
        signal: root mean square of h itself.
    """

    name: str
    gradient: float
    signal: float


def block_outputs(model: Any) -> list[Any]:
    """The layers whose outputs are those of blocks, in order.

    The zoo's and those of keras.applications are known by their names; of other models it is the kind of layer with
    weights that occurs most often, a Transformer's encoder layers say.

    Raises:
        StudyError: when the model is not made of layers that follow one another.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "_operations_by_depth", None):
        raise StudyError(
            f"{getattr(model, 'name', model)} is no functional Keras model: its layers cannot be looked at"
        )
    named = [layer for layer in model.layers if _BLOCK.fullmatch(layer.name)]
    kinds = Counter(type(layer) for layer in model.layers if layer.weights)
    chosen = named or [layer for layer in model.layers if kinds and type(layer) is kinds.most_common(1)[0][0]]
    if len(chosen) < 2:
        raise StudyError(f"{model.name} has fewer than two blocks")
    return chosen


def gradient_profile(
    model: Any, inputs: Any, labels: NDArray[np.int64] | None = None, *, training: bool = True, seed: int = 0
) -> list[Point]:
    """The gradient at the output of every block, from the first to the last.

    The loss is the mean cross-entropy of the labels; without labels, the outputs' product with random numbers, whose
    gradient at the output is these numbers. The model is unchanged afterwards, moving averages too.

    Args:
        model: a functional Keras model, in any floating-point precision.
        inputs: what it takes: an array, or a dict of arrays.
        labels: int64 [batch], of a classifier.
        training: batch norm by the batch's statistics, and dropout, as in training.
        seed: of the random numbers.

    Raises:
        StudyError: when the model has no such layers, or the gradient is not finite.
    """
    layers = block_outputs(model)
    allow_depth(len(model.layers))
    before = [variable.numpy() for variable in model.non_trainable_variables]
    with linear_head(model):
        taps = keras.Model(model.input, [[layer.output for layer in layers], model.outputs])
        with tf.GradientTape() as tape:
            tensors = tf.nest.map_structure(tf.convert_to_tensor, inputs)
            for tensor in tf.nest.flatten(tensors):
                if tensor.dtype.is_floating:
                    tape.watch(tensor)
            values, outputs = taps(tensors, training=training)
            loss = _loss(outputs, labels, seed)
        gradients = tape.gradient(loss, values)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        variable.assign(value)
    points = [
        Point(layer.name, _norm(gradient), float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))))
        for layer, gradient, value in zip(layers, gradients, values, strict=True)
        if gradient is not None  # an embedding of masks, say, that does not matter to the output
    ]
    if not all(np.isfinite([point.gradient for point in points])):
        raise StudyError(f"the gradient of {model.name} is not finite: its signal overflows {keras.config.floatx()}")
    return points


def _loss(outputs: Sequence[Any], labels: NDArray[np.int64] | None, seed: int) -> Any:
    if labels is not None:
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs[0])
        return tf.reduce_mean(each)
    random = np.random.default_rng(seed)
    parts = [tf.reduce_sum(value * tf.constant(random.normal(size=value.shape), value.dtype)) for value in outputs]
    return tf.add_n(parts)


def _norm(gradient: Any) -> float:
    return float(np.linalg.norm(np.asarray(tf.convert_to_tensor(gradient), np.float64)))


def random_inputs(model: Any, batch: int, length: int = 64, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs for a model that takes no images: normal numbers, token numbers, masks that hide nothing.

    Args:
        model: whose inputs say their names, shapes and types.
        batch: rows.
        length: of dimensions that may have any.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    made = {}
    for tensor in model.inputs:
        shape = (batch, *(side or length for side in tensor.shape[1:]))
        if keras.backend.is_float_dtype(tensor.dtype):
            made[tensor.name] = random.normal(size=shape).astype(tensor.dtype)
        elif "mask" in tensor.name:
            made[tensor.name] = np.ones(shape, tensor.dtype)
        elif "segment" in tensor.name or "type" in tensor.name:
            made[tensor.name] = np.zeros(shape, tensor.dtype)
        else:
            made[tensor.name] = random.integers(1, _FIRST_TOKENS, shape).astype(tensor.dtype)
    return made
