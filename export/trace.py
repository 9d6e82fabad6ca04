"""Turns a Keras model into a TensorFlow function of its images, in a form that converts well (see forms.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.layers import last_layer, squashes

from .errors import ExportError
from .forms import FORMS, ONNX_FORMS, Forms
from .naming import layer_of
from .unsupported import tracing_error

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
    with _convertible(model, {**FORMS, **ONNX_FORMS}):
        function = tf.function(call, autograph=False).get_concrete_function(image_spec, *specs)
    names = [tensor.name for tensor in function.inputs]
    # What the function closed over (a Normalization layer's constants, say) are inputs too, at the end.
    arrays = [v.value for v in variables] + list(function.captured_inputs)
    _check_captured(function.graph, model)
    weights = {name: array.numpy for name, array in zip(names[1:], arrays, strict=True)}
    return Skeleton(function.graph, names[0], function.outputs[0].name, weights)


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
            # Exact types: a subclass may compute something else.
            form = forms.get(type(layer))
            fits = form and layer.compute_dtype == "float32" and form[0](layer)
            own.append((layer, vars(layer).get("call")))
            call = partial(form[1], layer) if form and fits and "call" not in vars(layer) else layer.call
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


def _observed(
    layer: Any, call: Callable[..., Any], failed: list[tuple[Any, Exception]], *inputs: Any, **options: Any
) -> Any:
    try:
        return call(*inputs, **options)
    except Exception as error:
        failed.append((layer, error))  # the innermost layer is the first
        raise
