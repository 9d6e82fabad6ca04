"""Lets an ONNX graph take uint8 pixels: the normalisation goes into the graph, and into its first convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing

from .graph import attribute
from .stream import Large, array_of, tensor_of

with extra("export"):
    import onnx
    from onnx import numpy_helper

_PASSING = ("Transpose", "Pad")  # may stand between the input and the first convolution


def take_pixels(model: Any, large: Large, preprocessing: Preprocessing) -> None:
    """Change the input of an ONNX model from normalised float32 to uint8 pixels of the same shape, in place.

    A pixel p of channel c becomes (p · scale − mean) / std = (p − m) · a, with m = mean / scale and a = scale / std.
    The factor, and the order of the channels, go into the first convolution's kernel, exactly; so does m where the
    convolution sees no padding. Where it pads with zeros, m stays in front of it: the padding stands for the mean.

    Args:
        model: a ModelProto whose first input is [batch, height, width, channels] and whose other values are stored.
        large: its large arrays; see stream.py.
        preprocessing: what `model` expects to have been done; nearest sizes and crops are not part of it.
    """
    graph = model.graph
    images = graph.input[0]
    images.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    order = slice(None, None, -1 if preprocessing.bgr else 1)
    factor = np.divide(preprocessing.scale, preprocessing.std)  # by the network's channels
    shift = np.divide(preprocessing.mean, preprocessing.scale)
    pixels = f"{images.name}/float"
    readers = [node for node in graph.node if images.name in node.input]
    first = _first_convolution(graph, images.name)
    nodes = [onnx.helper.make_node("Cast", [images.name], [pixels], pixels, to=onnx.TensorProto.FLOAT)]
    if first:
        padded = _scale_kernel(graph, large, first, factor, shift, order)
        if padded and shift.any():
            nodes.append(_with(graph, "Sub", pixels, f"{images.name}/centred", shift[order]))
    else:
        if preprocessing.bgr:
            flipped = onnx.helper.make_node("Gather", [pixels, "channels"], [f"{pixels}/bgr"], f"{pixels}/bgr", axis=3)
            graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "channels"))
            nodes.append(flipped)
        nodes.append(_with(graph, "Sub", nodes[-1].output[0], f"{images.name}/centred", shift))
        nodes.append(_with(graph, "Mul", nodes[-1].output[0], f"{images.name}/normalised", factor))
    for reader in readers:
        reader.input[:] = [nodes[-1].output[0] if name == images.name else name for name in reader.input]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _with(graph: Any, operator: str, tensor: str, name: str, values: NDArray[Any]) -> Any:
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{name}/values"))
    return onnx.helper.make_node(operator, [tensor, f"{name}/values"], [name], name)


def _first_convolution(graph: Any, name: str) -> list[Any] | None:
    """The nodes from the input to a convolution of stored weights that all of it goes through, or None."""
    stored = {item.name for item in graph.initializer}
    path = []
    while True:
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1 or readers[0].input[0] != name:
            return None
        (node,) = readers
        path.append(node)
        if node.op_type == "Conv":
            shared = [other for other in graph.node if node.input[1] in other.input]
            plain = attribute(node, "group", 1) == 1 and set(node.input[1:]) <= stored and len(shared) == 1
            return path if plain else None
        if node.op_type not in _PASSING or not _passes(node, graph):
            return None
        name = node.output[0]


def _passes(node: Any, graph: Any) -> bool:
    """Transposes to channels first, and pads of zeros."""
    if node.op_type == "Transpose":
        return list(attribute(node, "perm", [])) == [0, 3, 1, 2]
    if attribute(node, "mode", b"constant") != b"constant":
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    stored = {item.name: item for item in graph.initializer}
    return node.input[2] in stored and not numpy_helper.to_array(stored[node.input[2]]).any()


def _scale_kernel(
    graph: Any, large: Large, path: list[Any], factor: NDArray[Any], shift: NDArray[Any], order: slice
) -> bool:
    """Fold the factor and, where nothing pads, the shift into the convolution; returns whether something pads."""
    conv = path[-1]
    stored = {item.name: item for item in graph.initializer}
    kernel = array_of(stored[conv.input[1]], large).astype(np.float64)  # [out, in, height, width]
    scaled = kernel * factor[:, None, None]
    pads = attribute(conv, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or any(attribute(conv, "pads", []))
    padded = pads or any(node.op_type == "Pad" for node in path)
    if not padded:
        bias = array_of(stored[conv.input[2]], large).astype(np.float64) if len(conv.input) > 2 else 0.0
        name = f"{conv.output[0]}/bias"
        _store(graph, large, name, bias - (scaled * shift[:, None, None]).sum((1, 2, 3)))
        conv.input[:] = [*conv.input[:2], name]
    _store(graph, large, conv.input[1], scaled[:, order])
    return padded


def _store(graph: Any, large: Large, name: str, values: NDArray[Any]) -> None:
    tensor = tensor_of(values.astype(np.float32), name, large)
    for item in graph.initializer:
        if item.name == name:
            item.CopyFrom(tensor)
            return
    graph.initializer.append(tensor)
