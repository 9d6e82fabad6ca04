"""Finds the first layer at which an ONNX graph leaves the Keras model that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

from .runtime import run_tensors
from .verify import Prepare

with extra("export"):
    import keras
    import onnx

# Their tensors carry the name of a layer and the values of a later one, with which they were merged.
_MERGED = ("Conv", "ConvTranspose", "BatchNormalization", "Pad")


def errors_by_layer(
    model: Any,
    file: Path,
    tensor: NDArray[np.float32],
    prepare: Prepare = lambda tensor: tensor,
    most: int = 10_000,
) -> dict[str, float]:
    """max|a − b| / max|a| of each layer's output between Keras and an ONNX file, in the graph's order.

    Args:
        model: a functional Keras model.
        file: what `to_onnx` made of it; layers that were merged into others are left out.
        tensor: float32 [batch, height, width, channels].
        prepare: from that to the graph's input.
        most: of more layers than that, every second, third and so on, and the last.
    """
    graph = onnx.load(file, load_external_data=False).graph
    layers = {layer.name: layer for layer in model.layers if _is_tensor(layer)}
    tensors = {name: tensor for name, tensor in _last_tensors(graph).items() if name in layers}
    if not tensors:
        return {}
    chosen = list(tensors)[:: -(-len(tensors) // most)]
    tensors = {name: tensors[name] for name in dict.fromkeys([*chosen, list(tensors)[-1]])}
    got = run_tensors(file, list(tensors.values()), prepare(tensor))
    expected = keras.Model(model.inputs, [layers[name].output for name in tensors])([tensor], training=False)
    pairs = zip(tensors, expected, got, strict=True)
    return {name: error for name, own, other in pairs if (error := _error(np.asarray(own), other)) is not None}


def part_ways(errors: dict[str, float], tolerance: float) -> str:
    """A sentence on the first layer whose error exceeds the tolerance, or "" where none does."""
    last = ""
    for name, error in errors.items():
        if not error <= tolerance:
            where = f"layer {name!r}" + (f" ({last!r} before it still agrees)" if last else "")
            return f". Keras and ONNX part ways in {where}, by {error:.1e} of its largest value"
        last = name
    return ""


def _last_tensors(graph: Any) -> dict[str, str]:
    """Layer name to the tensor with its output: that of its last node, since an activation may be one of its own."""
    last = {node.name.split("/")[0]: node for node in graph.node if node.op_type != "Transpose"}
    return {name: node.output[0] for name, node in last.items() if node.op_type not in _MERGED}


def _is_tensor(layer: Any) -> bool:
    return len(layer._inbound_nodes) == 1 and isinstance(layer.output, keras.KerasTensor)


def _error(own: NDArray[Any], other: NDArray[Any]) -> float | None:
    if own.ndim == 4 and other.ndim == 4:
        channels_first = own.transpose(0, 3, 1, 2)
        # Square images as deep as they are wide fit both ways: what is closer is what was meant.
        errors = [relative_error(form, other) for form in (own, channels_first) if form.shape == other.shape]
        return min(errors, default=None)
    return relative_error(own, other) if own.shape == other.shape else None


def relative_error(own: NDArray[Any], other: NDArray[Any]) -> float:
    """max|a − b| / max|a|, or of nothing but zeros max|b|."""
    return float(np.abs(own - other).max()) / (float(np.abs(own).max()) or 1.0)
