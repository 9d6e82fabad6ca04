"""What an exported graph looks like from outside: the record of the choices, and the model that gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_resnets.bundle import LAYOUTS, OUTPUT_KINDS
from keras_resnets.extras import extra
from keras_resnets.models.layers import last_layer

from .errors import ExportError
from .trace import interface

with extra("export"):
    import keras

# onnxruntime's versions and the newest opset that each reads, from its own table of compatibility. tf2onnx writes 18 at
# most; what later opsets brought (smaller quantized types, above all) is not used here.
_OPSETS = {(1, 8): 14, (1, 9): 15, (1, 10): 15, (1, 11): 16, (1, 12): 17, (1, 13): 17, (1, 14): 18}


@dataclass(frozen=True)
class GraphForm:
    """How an ONNX graph is called.

    Args:
        pixels: takes uint8 pixels and does the preprocessing's normalisation.
        layout: of the images: "nhwc", as Keras has them, or "nchw", without a Transpose.
        output: "probabilities", "logits" or "features", which is what the last Dense layer reads; None: what the model
            gives.
        top_k: so many best classes as further outputs: "top_classes", int64 [batch, top_k], and "top_scores". 0: none.
        open_size: takes images of any height and width.
        onnxruntime: the version that must read it, "1.16" or newer than that; None: the one installed.

    Raises:
        ExportError: when a value is none of these.
    """

    pixels: bool = False
    layout: str = "nhwc"
    output: str | None = None
    top_k: int = 0
    open_size: bool = False
    onnxruntime: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ExportError(f"layout must be {' or '.join(LAYOUTS)}, not {self.layout!r}")
        if self.output not in (None, *OUTPUT_KINDS):
            raise ExportError(f"output must be one of {', '.join(OUTPUT_KINDS)}, not {self.output!r}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ExportError(f"top_k must be a number of classes, not {self.top_k!r}")
        _ = self.opset

    @property
    def opset(self) -> int:
        """The ONNX opset to write."""
        if self.onnxruntime is None:
            return max(_OPSETS.values())
        try:
            major, minor = (int(part) for part in self.onnxruntime.split(".")[:2])
        except ValueError:
            raise ExportError(
                f"a version of onnxruntime is two numbers, as in 1.16, not {self.onnxruntime!r}"
            ) from None
        if (major, minor) < min(_OPSETS):
            raise ExportError(f"onnxruntime {self.onnxruntime} is too old: the oldest that is written for is 1.8")
        return _OPSETS.get((major, minor), max(_OPSETS.values()))

    @property
    def ir_version(self) -> int:
        """The version of the file format that goes with the opset."""
        return 7 if self.opset < 15 else 8

    def model(self, model: Any) -> Any:
        """The Keras model whose outputs and open sides are the wanted ones; it shares no changed layer with `model`.

        Raises:
            ExportError: when the model cannot give them.
        """
        model = _with_output(model, self.output)
        if self.top_k > model.outputs[0].shape[-1] or (self.top_k and interface(model).output == "features"):
            kind, size = interface(model).output, model.outputs[0].shape[-1]
            raise ExportError(f"top_k={self.top_k} cannot be taken of {model.name}'s {size} {kind}")
        return _with_open_size(model) if self.open_size else model


def _with_output(model: Any, output: str | None) -> Any:
    kind = interface(model).output
    if output in (None, kind):
        return model
    last = last_layer(model)
    if last not in model.layers:
        raise ExportError(f"{model.name} ends in a nested model: only its own output, {kind}, can be exported")
    if output == "probabilities" and kind == "logits":
        return keras.Model(model.inputs[0], keras.layers.Softmax(name="softmax")(model.outputs[0]), name=model.name)
    if output == "logits" and kind == "probabilities":
        return keras.Model(model.inputs[0], _linear(last), name=model.name)
    if output == "features" and kind in ("probabilities", "logits"):
        head = last
        while isinstance(head, (keras.layers.Softmax, keras.layers.Activation)):
            head = head.input._keras_history.operation
        if isinstance(head, keras.layers.Dense):
            return keras.Model(model.inputs[0], head.input, name=model.name)
    raise ExportError(f"{model.name} gives {kind}, of which {output} cannot be made")


def _linear(last: Any) -> Any:
    """What a last layer gives before its softmax or sigmoid."""
    if isinstance(last, (keras.layers.Softmax, keras.layers.Activation)):
        return last.input
    copy = type(last).from_config({**last.get_config(), "activation": "linear"})
    output = copy(last.input)
    copy.set_weights(last.get_weights())
    return output


def _with_open_size(model: Any) -> Any:
    channels = model.inputs[0].shape[-1]
    if model.inputs[0].shape[1:3] == (None, None):
        return model
    inputs = keras.Input((None, None, channels), name=model.inputs[0].name)
    try:
        copy = keras.models.clone_model(model, input_tensors=inputs)
        copy.set_weights(model.get_weights())
    except (ValueError, TypeError) as error:
        raise ExportError(
            f"{model.name} cannot take images of any size: a layer of it needs a fixed one ({error})"
        ) from error
    return keras.Model(copy.inputs[0], copy.outputs[0], name=model.name)
