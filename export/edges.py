"""Changes an ONNX graph at its edges: channels first in, best classes out."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_resnets.extras import extra

from .graph import attribute

with extra("export"):
    import onnx
    from onnx import numpy_helper

TOP_CLASSES, TOP_SCORES = "top_classes", "top_scores"
_TO_CHANNELS_FIRST = [0, 3, 1, 2]


def take_channels_first(graph: Any) -> None:
    """Change the input of a graph from [batch, height, width, channels] to [batch, channels, height, width], in place.

    The Transpose that a channels-last input needs goes away. What stands in front of it, which `take_pixels` put there,
    is turned; where the input is read in other ways, a Transpose back is put behind it.
    """
    images = graph.input[0]
    dims = images.type.tensor_type.shape.dim
    turned = [onnx.TensorShapeProto.Dimension.FromString(dims[i].SerializeToString()) for i in _TO_CHANNELS_FIRST]
    path = _path_to_transposes(graph, images.name)
    if path is None:
        back = onnx.helper.make_node(
            "Transpose", [images.name], [f"{images.name}/nhwc"], f"{images.name}/nhwc", perm=[0, 2, 3, 1]
        )
        for node in graph.node:
            node.input[:] = [back.output[0] if name == images.name else name for name in node.input]
        graph.node.insert(0, back)
    else:
        before, transposes = path
        for node in before:
            _turn(graph, node)
        last = before[-1].output[0] if before else images.name
        gone = {node.output[0] for node in transposes}
        for node in transposes:
            graph.node.remove(node)
        for node in graph.node:
            node.input[:] = [last if name in gone else name for name in node.input]
    del dims[:]
    dims.extend(turned)


def _path_to_transposes(graph: Any, name: str) -> tuple[list[Any], list[Any]] | None:
    """The element-wise nodes behind the input, and the Transposes to channels first that read the last of them."""
    before: list[Any] = []
    while True:
        readers = [node for node in graph.node if name in node.input]
        if readers and all(
            node.op_type == "Transpose" and list(attribute(node, "perm", [])) == _TO_CHANNELS_FIRST for node in readers
        ):
            return before, readers
        if len(readers) != 1 or readers[0].op_type not in ("Cast", "Sub", "Mul", "Gather"):
            return None
        before.append(readers[0])
        name = readers[0].output[0]


def _turn(graph: Any, node: Any) -> None:
    """Let a node of `take_pixels` work on channels first."""
    if node.op_type == "Gather":
        next(item for item in node.attribute if item.name == "axis").i = 1
    elif node.op_type in ("Sub", "Mul"):
        for item in graph.initializer:
            if item.name == node.input[1]:
                item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).reshape(-1, 1, 1), item.name))


def give_top(graph: Any, count: int) -> None:
    """Add the outputs "top_classes", int64 [batch, count], and "top_scores", best first, in place."""
    output = graph.output[0]
    graph.initializer.append(numpy_helper.from_array(np.array([count]), f"{TOP_CLASSES}/count"))
    graph.node.append(
        onnx.helper.make_node(
            "TopK", [output.name, f"{TOP_CLASSES}/count"], [TOP_SCORES, TOP_CLASSES], TOP_CLASSES, axis=-1
        )
    )
    for name, kind in ((TOP_CLASSES, onnx.TensorProto.INT64), (TOP_SCORES, output.type.tensor_type.elem_type)):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, ["batch", count]))
