"""Turns a Keras model into a TensorFlow function of its images, in a form that converts well (see forms.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.layers import last_layer, squashes

from .errors import ExportError
from .forms import FORMS, ONNX_FORMS, PACKED_FORMS, Form, Forms
from .naming import layer_of
from .unsupported import tracing_error

with extra("export"):
    import keras
    import numpy as np
    import tensorflow as tf

INPUT = "images"


class Interface(NamedTuple):
    """What a model takes and gives: [None, height, width, channels], and what its output is called."""

    input_shape: tuple[int | None, ...]
    output: str  # probabilities, logits or features


class Skeleton(NamedTuple):
    """A graph whose weights are inputs: tensor names, and each weight's array.

    A packed one is read by batch norms alone, as all of their four weights: its array is [4, channels].
    """

    graph: Any
    input: str
    output: str
    weights: dict[str, Callable[[], Any]]
    packed: set[str]


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
    forms = {**FORMS, **ONNX_FORMS}
    norms = {id(layer.moving_mean): layer for layer in model._flatten_layers() if _form(layer, PACKED_FORMS)}
    function, inputs = _trace(model, {**forms, **PACKED_FORMS}, norms)
    if not _are_packed(function, inputs, norms):
        norms = {}
        function, inputs = _trace(model, forms, norms)
    _check_captured(function.graph, model)
    names = [tensor.name for tensor in function.inputs]
    arrays = [partial(_packed, norms[id(v)]) if id(v) in norms else v.value.numpy for v in inputs]
    # What the function closed over (a Normalization layer's constants, say) are inputs too, at the end.
    arrays += [array.numpy for array in function.captured_inputs]
    weights = dict(zip(names[1:], arrays, strict=True))
    packed = {name for name, v in zip(names[1:], inputs, strict=False) if id(v) in norms}
    return Skeleton(function.graph, names[0], function.outputs[0].name, weights, packed)


def _trace(model: Any, forms: Forms, norms: dict[int, Any]) -> tuple[Any, list[Any]]:
    """The function of the images and of variables, and these: of each norm, by its mean's id, the mean alone."""
    trainable, other = list(model.trainable_variables), list(model.non_trainable_variables)
    inside = {id(v) for layer in norms.values() for v in layer.variables}
    inputs = [v for v in trainable + other if id(v) in norms or id(v) not in inside]

    def call(images: Any, *tensors: Any) -> Any:
        values = {id(v): tensor for v, tensor in zip(inputs, tensors, strict=True)}
        state = ([values.get(id(v), v.value) for v in part] for part in (trainable, other))
        return model.stateless_call(*state, images, training=False)[0]

    specs = [tf.TensorSpec(v.shape, v.dtype, name=f"weight_{i}") for i, v in enumerate(inputs)]
    image_spec = tf.TensorSpec(interface(model).input_shape, model.inputs[0].dtype, name=INPUT)
    with _convertible(model, forms):
        return tf.function(call, autograph=False).get_concrete_function(image_spec, *specs), inputs


def _are_packed(function: Any, inputs: list[Any], norms: dict[int, Any]) -> bool:
    """Whether only the norms themselves read their weights."""
    inside = {id(v.value.handle) for layer in norms.values() for v in layer.variables}
    means = [tensor for v, tensor in zip(inputs, function.inputs[1:], strict=False) if id(v) in norms]
    packed = all(
        reader.type == "FusedBatchNormV3" and all(tensor is mean for tensor in reader.inputs[1:])
        for mean in means
        for reader in mean.consumers()
    )
    return packed and not any(id(array) in inside for array in function.captured_inputs)


def _packed(layer: Any) -> Any:
    """The scale, offset, mean and variance of a batch norm, float32 [4, channels]."""
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    scale = np.asarray(layer.gamma) if layer.scale else np.ones_like(mean)
    offset = np.asarray(layer.beta) if layer.center else np.zeros_like(mean)
    return np.stack([scale, offset, mean, variance])


def inference_function(model: Any, output: str) -> Any:
    """A tf.function from images to {output: values}, that reads the model's variables."""
    spec = tf.TensorSpec(interface(model).input_shape, model.inputs[0].dtype, name=INPUT)

    def call(images: Any) -> dict[str, Any]:
        return {output: model(images, training=False)}

    with _convertible(model, FORMS):
        return tf.function(call, autograph=False).get_concrete_function(spec)


def _check_captured(graph: Any, model: Any) -> None:
    """A variable that Keras does not know is not among the weights."""
    layers = {layer.name for layer in model._flatten_layers()}
    for _, inner in graph.captures:
        if inner.dtype == tf.resource:
            reader = next(iter(inner.consumers())).name
            raise ExportError(
                f"{model.name}: layer {layer_of(reader, layers) or reader!r} uses a variable that it does not track: "
                "make it in the layer's build, by self.add_weight"
            )


@contextmanager
def _convertible(model: Any, forms: Forms) -> Iterator[None]:
    """Let layers call their convertible form while the model is traced, and say which one cannot be traced."""
    own: list[tuple[Any, Any]] = []
    failed: list[tuple[Any, Exception]] = []
    try:
        for layer in model._flatten_layers():
            form = _form(layer, forms)
            own.append((layer, vars(layer).get("call")))
            call = partial(form, layer) if form else layer.call
            object.__setattr__(layer, "call", partial(_observed, layer, call, failed))
        yield
    except ExportError:
        raise
    except Exception as error:  # whatever a layer's code raises
        layer, cause = failed[0] if failed else (model, error)
        raise tracing_error(cause, model.name, layer) from error
    finally:
        for layer, call in own:
            if call is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", call)


def _form(layer: Any, forms: Forms) -> Form | None:
    """What stands in for a layer's call."""
    fits, form = forms.get(type(layer), (None, None))  # exact types: a subclass may compute something else
    taken = fits is not None and layer.compute_dtype == "float32" and "call" not in vars(layer) and fits(layer)
    return form if taken else None


def _observed(
    layer: Any, call: Callable[..., Any], failed: list[tuple[Any, Exception]], *inputs: Any, **options: Any
) -> Any:
    try:
        return call(*inputs, **options)
    except Exception as error:
        failed.append((layer, error))  # the innermost layer is the first
        raise
