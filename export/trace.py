"""Turns a Keras model into a TensorFlow function of its images, in a form that converts well.

Batch norm becomes TensorFlow's fused operation and global average pooling a mean over the last two axes:
one ONNX node each instead of a handful, with the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from keras_resnets.extras import extra
from keras_resnets.models.layers import last_layer, squashes

from .errors import ExportError

with extra("export"):
    import keras
    import tensorflow as tf

INPUT = "images"


class Interface(NamedTuple):
    """What a model takes and gives: [None, height, width, channels], and what its output is called."""

    input_shape: tuple[int | None, ...]
    output: str  # probabilities, logits or features


class Skeleton(NamedTuple):
    """A graph whose weights are inputs: tensor names, and each weight's array."""

    graph: Any
    input: str
    output: str
    weights: dict[str, Callable[[], Any]]


def interface(model: Any) -> Interface:
    """Check that the exporter can take a model.

    Raises:
        ExportError: when it is no Keras model, was never built, or is not one image in, one output out.
    """
    if not isinstance(model, keras.Model):
        raise ExportError(f"to export, give a Keras model, not {type(model).__name__}")
    if keras.backend.backend() != "tensorflow":
        raise ExportError("export needs the TensorFlow backend: set KERAS_BACKEND=tensorflow, and load the model there")
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ExportError(
            f"{model.name} has no defined inputs: wrap it in a functional model, keras.Model(x, model(x))"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ExportError(
            f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; one of each can be exported"
        )
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4 or shape[-1] is None:
        raise ExportError(f"{model.name} takes {shape}, not images [batch, height, width, channels]")
    dtypes = {str(model.inputs[0].dtype), *(layer.compute_dtype for layer in model._flatten_layers())}
    if others := dtypes - {"float32", None}:
        raise ExportError(
            f"{model.name} computes in {' and '.join(sorted(others))}, and float32 alone can be exported: build it "
            "under keras.config.set_dtype_policy('float32') with a float32 input, and load its weights"
        )
    return Interface((None, *shape[1:]), _output_kind(model))


def _output_kind(model: Any) -> str:
    """What the numbers mean, by the last layer: softmax or sigmoid give probabilities, a linear Dense logits."""
    last = last_layer(model)
    if squashes(last):
        return "probabilities"
    if isinstance(last, keras.layers.Dense) and last.activation is keras.activations.linear:
        return "logits"
    return "features"


def skeleton(model: Any) -> Skeleton:
    """Trace a model with its weights as inputs, so that no converter ever sees a value."""
    trainable, other = list(model.trainable_variables), list(model.non_trainable_variables)
    variables = trainable + other

    def call(images: Any, *values: Any) -> Any:
        state = list(values[: len(trainable)]), list(values[len(trainable) :])
        return model.stateless_call(*state, images, training=False)[0]

    specs = [tf.TensorSpec(v.shape, v.dtype, name=f"weight_{i}") for i, v in enumerate(variables)]
    image_spec = tf.TensorSpec(interface(model).input_shape, model.inputs[0].dtype, name=INPUT)
    with _convertible(model, {**_FORMS, **_ONNX_FORMS}):
        function = tf.function(call).get_concrete_function(image_spec, *specs)
    names = [tensor.name for tensor in function.inputs]
    # What the function closed over (a Normalization layer's constants, say) are inputs too, at the end.
    arrays = [v.value for v in variables] + list(function.captured_inputs)
    if any(array.dtype == tf.resource for array in function.captured_inputs):
        raise ExportError(f"{model.name} uses a variable that none of its layers tracks; it cannot be exported")
    weights = {name: array.numpy for name, array in zip(names[1:], arrays, strict=True)}
    return Skeleton(function.graph, names[0], function.outputs[0].name, weights)


def inference_function(model: Any, output: str) -> Any:
    """A tf.function from images to {output: values}, that reads the model's variables."""
    spec = tf.TensorSpec(interface(model).input_shape, model.inputs[0].dtype, name=INPUT)

    def call(images: Any) -> dict[str, Any]:
        return {output: model(images, training=False)}

    with _convertible(model, _FORMS):
        return tf.function(call).get_concrete_function(spec)


_Forms = dict[type, tuple[Callable[[Any], bool], Callable[..., Any]]]


@contextmanager
def _convertible(model: Any, forms: _Forms) -> Iterator[None]:
    """Let layers call their convertible form while the model is traced."""
    changed = []
    try:
        for layer in model._flatten_layers():
            # Exact types: a subclass may compute something else.
            form = forms.get(type(layer))
            if form and layer.compute_dtype == "float32" and form[0](layer):
                object.__setattr__(layer, "call", partial(form[1], layer))
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


def _fused_batch_norm(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    if len(inputs.shape) != 4:
        return type(layer).call(layer, inputs, training=False, mask=mask)
    channels = inputs.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma if layer.scale else tf.ones([channels]),
        offset=layer.beta if layer.center else tf.zeros([channels]),
        mean=layer.moving_mean,
        variance=layer.moving_variance,
        epsilon=layer.epsilon,
        is_training=False,
    ).y


def _channels_first_mean(layer: Any, inputs: Any) -> Any:
    return tf.reduce_mean(tf.transpose(inputs, [0, 3, 1, 2]), [2, 3])


def _grouped_conv(layer: Any, inputs: Any) -> Any:
    # Keras calls XLA here, since TensorFlow's CPU kernel has no groups; nothing is run in a skeleton.
    x = tf.nn.conv2d(inputs, layer.kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate)
    x = tf.nn.bias_add(x, layer.bias) if layer.use_bias else x
    return layer.activation(x)


def _feeds_pooling(layer: Any) -> bool:
    pooling = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
    readers = [node.operation for node in layer._outbound_nodes]
    return layer.data_format == "channels_last" and any(isinstance(reader, pooling) for reader in readers)


def _pad_that_stays(layer: Any, inputs: Any) -> Any:
    # onnxruntime before 1.32 merges a Pad of zeros into the pooling behind it, where padding counts as minus
    # infinity: wrong where a whole window is negative. It leaves other values alone, and the least normal
    # float is as good as zero.
    return tf.pad(inputs, [(0, 0), *layer.padding, (0, 0)], constant_values=np.finfo(np.float32).tiny)


_FORMS: _Forms = {
    keras.layers.BatchNormalization: (lambda layer: layer.axis in (-1, 3), _fused_batch_norm),
    keras.layers.GlobalAveragePooling2D: (
        lambda layer: not layer.keepdims and layer.data_format == "channels_last",
        _channels_first_mean,
    ),
}
_ONNX_FORMS: _Forms = {
    keras.layers.Conv2D: (
        lambda layer: layer.groups > 1 and layer.data_format == "channels_last",
        _grouped_conv,
    ),
    keras.layers.ZeroPadding2D: (_feeds_pooling, _pad_that_stays),
}
