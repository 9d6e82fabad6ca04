"""Other forms of Keras layers that compute the same and convert to fewer ONNX nodes, for layers of exactly that type.

A form stands in for a layer's `call` while a model is traced. Each says of which layers it is true; what depends on
the inputs it decides when called, and leaves the rest to the layer itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_resnets.extras import extra
from keras_resnets.models.vit import TokensAndPositions

with extra("export"):
    import keras
    import tensorflow as tf

Form = Callable[..., Any]
Forms = dict[type, tuple[Callable[[Any], bool], Form]]


def _always(layer: Any) -> bool:
    return True


def _own(layer: Any, *inputs: Any, **options: Any) -> Any:
    """What the layer itself computes."""
    return type(layer).call(layer, *inputs, **options)


def _static(tensor: Any) -> bool:
    """Whether only the batch is open: then it may be -1 in a reshape."""
    return None not in tuple(tensor.shape)[1:]


def _normalizes_images(layer: Any) -> bool:
    return layer.input_spec is not None and layer.input_spec.ndim == 4 and layer.axis in (-1, 3)


def _fused_batch_norm(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    channels = inputs.shape[-1]
    scale = layer.gamma if layer.scale else tf.ones([channels])
    offset = layer.beta if layer.center else tf.zeros([channels])
    return _batch_norm(layer, inputs, scale, offset, layer.moving_mean, layer.moving_variance)


def _packed_batch_norm(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    return _batch_norm(layer, inputs, *(4 * [layer.moving_mean]))


def _batch_norm(layer: Any, inputs: Any, scale: Any, offset: Any, mean: Any, variance: Any) -> Any:
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=layer.epsilon, is_training=False
    ).y


def _channels_first_mean(layer: Any, inputs: Any) -> Any:
    return tf.reduce_mean(tf.transpose(inputs, [0, 3, 1, 2]), [2, 3])


def _reshape(layer: Any, inputs: Any) -> Any:
    target = layer.compute_output_shape(tuple(inputs.shape))[1:]
    if not _static(inputs) or None in target:
        return _own(layer, inputs)
    if len(inputs.shape) == 2 and len(target) == 3 and target[:2] == (1, 1):
        # Squeeze-and-excitation: the transpose cancels with that of the convolution behind it.
        return tf.transpose(tf.reshape(inputs, [-1, target[2], 1, 1]), [0, 2, 3, 1])
    return tf.reshape(inputs, [-1, *target])


def _flatten(layer: Any, inputs: Any) -> Any:
    if not _static(inputs):
        return _own(layer, inputs)
    if layer.data_format == "channels_first" and len(inputs.shape) > 2:
        inputs = tf.transpose(inputs, [0, *range(2, len(inputs.shape)), 1])
    return tf.reshape(inputs, [-1, math.prod(inputs.shape[1:])])


def _unquantized(layer: Any) -> bool:
    return getattr(layer, "quantization_mode", None) is None


def _dense(layer: Any, inputs: Any, training: Any = None) -> Any:
    # Keras reshapes all but the last axis into one, and back.
    x = tf.matmul(inputs, layer.kernel)
    x = x if layer.bias is None else x + layer.bias
    return x if layer.activation is None else layer.activation(x)


def _contracted_axes(layer: Any) -> int:
    """How many axes an EinsumDense sums over, where they are the last of its input and the first of its kernel.

    0 where it does something else than such a matrix product.
    """
    left, _, rest = layer.equation.partition(",")
    kernel, _, output = rest.partition("->")
    axes = sum(axis in left for axis in kernel)
    free, made = left[: len(left) - axes], kernel[axes:]
    product = left == free + kernel[:axes] and output == free + made and len({*left, *made}) == len(left + made)
    return axes if product and (free + made).isalpha() and free else 0


def _is_matrix_product(layer: Any) -> bool:
    return _unquantized(layer) and _contracted_axes(layer) > 0


def _einsum_dense(layer: Any, inputs: Any, training: Any = None) -> Any:
    """One matrix product of tensors whose contracted axes, and new axes, are flattened."""
    if not _static(inputs):
        return _own(layer, inputs, training=training)
    axes, kernel = _contracted_axes(layer), layer.kernel
    free, made = tuple(inputs.shape)[1:-axes], tuple(kernel.shape)[axes:]
    x = tf.reshape(inputs, [-1, *free, math.prod(kernel.shape[:axes])]) if axes > 1 else inputs
    x = tf.matmul(x, tf.reshape(kernel, [math.prod(kernel.shape[:axes]), math.prod(made)]))
    whole = layer.bias is not None and tuple(layer.bias.shape) == made
    x = x + tf.reshape(layer.bias, [-1]) if whole else x
    x = tf.reshape(x, [-1, *free, *made]) if len(made) > 1 else x
    x = x if whole or layer.bias is None else x + layer.bias
    return x if layer.activation is None else layer.activation(x)


def _attends_along_one_axis(layer: Any) -> bool:
    options = (getattr(layer, name, None) for name in ("_use_gate", "_sliding_window", "_flash_attention"))
    return layer._attention_axes == (1,) and not any(options)


def _attention(layer: Any, query: Any, value: Any, key: Any = None, **options: Any) -> Any:
    """Attention without masks, by matrix products instead of Einsum, which no int8 kernel knows."""
    tensors = (query, value, value if key is None else key)
    masked = any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors)
    asked = any(option is not None and option is not False for option in options.values())
    if masked or asked or any(len(tensor.shape) != 3 for tensor in tensors):
        return _own(layer, query, value, key, **options)
    dense = (layer.query_dense, layer.key_dense, layer.value_dense)
    q, k, v = (project(tensor) for project, tensor in zip(dense, (query, tensors[2], value), strict=True))
    q, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, v))  # [batch, heads, tokens, width]
    scores = tf.matmul(q * layer._inverse_sqrt_key_dim, tf.transpose(k, [0, 2, 3, 1]))
    return layer.output_dense(tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 2, 1, 3]))


def _normalizes_the_last_axis(layer: Any) -> bool:
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return len(axes) == 1 and not layer.rms_scaling


def _layer_norm(layer: Any, inputs: Any) -> Any:
    """In the spelling that onnxruntime's basic optimizations know, and make one node of."""
    axis = layer.axis[0]
    if axis not in (-1, len(inputs.shape) - 1):
        return _own(layer, inputs)
    channels = inputs.shape[-1]
    centred = inputs - tf.reduce_mean(inputs, -1, keepdims=True)
    variance = tf.reduce_mean(tf.pow(centred, 2.0), -1, keepdims=True)
    gamma = layer.gamma if layer.scale else tf.ones([channels])
    beta = layer.beta if layer.center else tf.zeros([channels])
    return centred / tf.sqrt(variance + layer.epsilon) * gamma + beta


def _tokens_and_positions(layer: Any, inputs: Any) -> Any:
    """One row of zeros in front instead of a token for each image: what is added to it holds the token."""
    patches = math.prod(layer.grid)
    x = tf.pad(tf.reshape(inputs, [-1, patches, inputs.shape[-1]]), [(0, 0), (1, 0), (0, 0)])
    return x + (layer.position_embedding + tf.pad(layer.class_token, [(0, 0), (0, patches), (0, 0)]))


def _upsample(layer: Any, inputs: Any) -> Any:
    # Keras repeats pixels along one axis after the other.
    if not _static(inputs):
        return _own(layer, inputs)
    sides = [side * factor for side, factor in zip(inputs.shape[1:3], layer.size, strict=True)]
    return tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=sides)


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


FORMS: Forms = {
    keras.layers.BatchNormalization: (_normalizes_images, _fused_batch_norm),
    keras.layers.GlobalAveragePooling2D: (
        lambda layer: not layer.keepdims and layer.data_format == "channels_last",
        _channels_first_mean,
    ),
}
# These are for graphs that are converted only: TensorFlow itself is as fast, or faster, without.
ONNX_FORMS: Forms = {
    keras.layers.Reshape: (_always, _reshape),
    keras.layers.Flatten: (_always, _flatten),
    keras.layers.Dense: (_unquantized, _dense),
    keras.layers.EinsumDense: (_is_matrix_product, _einsum_dense),
    keras.layers.MultiHeadAttention: (_attends_along_one_axis, _attention),
    keras.layers.LayerNormalization: (_normalizes_the_last_axis, _layer_norm),
    keras.layers.UpSampling2D: (
        lambda layer: layer.interpolation == "nearest" and layer.data_format == "channels_last",
        _upsample,
    ),
    TokensAndPositions: (_always, _tokens_and_positions),
    keras.layers.Conv2D: (
        lambda layer: layer.groups > 1 and layer.data_format == "channels_last",
        _grouped_conv,
    ),
    keras.layers.ZeroPadding2D: (_feeds_pooling, _pad_that_stays),
}
# One weight in the place of four, which makes a thousand layers a third smaller for the converter.
PACKED_FORMS: Forms = {keras.layers.BatchNormalization: (_normalizes_images, _packed_batch_norm)}
