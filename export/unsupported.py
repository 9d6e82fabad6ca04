"""Says which layer it is due to that a model does not convert, and what can be done."""

from __future__ import annotations

import traceback
from typing import Any

from keras_resnets.extras import extra

from .errors import ExportError
from .naming import layer_of

with extra("export"):
    import onnx
    from tf2onnx.graph import Node

# By the operator that tf2onnx leaves or makes; each reads on from "layer 'name' ".
_CHOICE = "choose by keras.ops.where instead, and write a loop of known length out"
_REASONS = {
    "PartitionedCall": f"calls a tf.function with control flow, which is not exported: {_CHOICE}",
    "StatefulPartitionedCall": f"calls a tf.function with control flow, which is not exported: {_CHOICE}",
    "PyFunc": "runs Python code, which no ONNX file can hold: write it with keras.ops",
    "EagerPyFunc": "runs Python code, which no ONNX file can hold: write it with keras.ops",
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "draws random numbers at inference, so nothing could be compared: draw them when training=True only",
    ),
}


def check_operators(graph: Any, opset: int, name: str, layers: set[str]) -> None:
    """Raise ExportError where a converted graph holds what cannot be exported.

    Args:
        graph: a GraphProto, as tf2onnx leaves it.
        opset: the version of ONNX's operators that it is written in.
        name: the model's.
        layers: the names of the model's layers.
    """
    for node in graph.node:
        reason = _REASONS.get(node.op_type)
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            reason = f"has control flow ({node.op_type}), which is not exported: {_CHOICE}"
        elif not reason and not onnx.defs.has(node.op_type, opset, node.domain):
            reason = f"uses {node.op_type}, which has no ONNX form: compute it from other operations of keras.ops"
        if reason:
            raise ExportError(f"{name}: layer {layer_of(node.name, layers) or node.name!r} {reason}")


def conversion_error(error: Exception, name: str, layers: set[str]) -> ExportError:
    """What tf2onnx raised, with the layer that it was at: the innermost node in the traceback that has one."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for node in frame.f_locals.values():
            layer = layer_of(node.name, layers) if isinstance(node, Node) else None
            if layer:
                return ExportError(
                    f"{name}: layer {layer!r} uses {node.type}, which tf2onnx cannot convert ({brief(error)}): "
                    "compute it from other operations of keras.ops"
                )
    return ExportError(f"{name}: tf2onnx cannot convert it: {brief(error)}")


def tracing_error(error: Exception, name: str, layer: Any) -> ExportError:
    """What a layer raised while it was traced."""
    return ExportError(
        f"{name}: layer {layer.name!r} ({type(layer).__name__}) does not become a TensorFlow graph ({brief(error)}): "
        "let its call use keras.ops only, neither NumPy nor an `if` or loop that depends on values (keras.ops.where)"
    )


def brief(error: Exception) -> str:
    """The exception's name and first sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}" if lines else type(error).__name__
