"""Gives nodes and tensors of a converted graph the names of the Keras layers they came from."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_ROLES = {
    "Conv": ("", "kernel", "bias"),
    "ConvTranspose": ("", "kernel", "bias"),
    "Gemm": ("", "kernel", "bias"),
    "MatMul": ("", "kernel"),
    "BatchNormalization": ("", "gamma", "beta", "moving_mean", "moving_variance"),
}


def name_by_layer(graph: Any, layers: set[str], input_name: str, output_name: str) -> None:
    """Rename everything in an ONNX graph, in place: "conv2_block1_1_conv", "…/kernel", "…/Relu".

    Args:
        graph: a GraphProto in topological order, with one input and one output.
        layers: the names of the model's layers.
        input_name, output_name: names of the graph's input and output.
    """
    taken = Counter((input_name, output_name))
    renamed = {graph.input[0].name: input_name}
    stored = {item.name for item in graph.initializer}
    owner = input_name
    for node in graph.node:
        # A node that an optimizer put in belongs to the layer in front of it.
        owner = layer_of(node.name, layers) or owner
        name = owner if _is_main(node) and not taken[owner] else f"{owner}/{node.op_type}"
        node.name = _unique(name, taken)
        for i, tensor in enumerate(node.input):
            if tensor in stored and tensor not in renamed:
                roles = _ROLES.get(node.op_type, ())
                role = roles[i] if i < len(roles) else f"constant_{i}"
                renamed[tensor] = _unique(f"{node.name}/{role}", taken)
        for i, tensor in enumerate(node.output):
            if tensor:
                renamed[tensor] = node.name if i == 0 else _unique(f"{node.name}/output_{i}", taken)
    renamed[graph.output[0].name] = output_name
    for node in graph.node:
        node.input[:] = [renamed[name] if name else "" for name in node.input]
        node.output[:] = [renamed[name] if name else "" for name in node.output]
    for item in (*graph.initializer, graph.input[0], graph.output[0]):
        item.name = renamed[item.name]


def _is_main(node: Any) -> bool:
    return node.op_type not in ("Transpose", "Pad", "Reshape", "Squeeze", "Unsqueeze", "Cast")


def layer_of(name: str, layers: set[str]) -> str | None:
    """The innermost layer in a TensorFlow scope: "model_1/conv1_conv_1/convolution" is "conv1_conv"."""
    for part in reversed(re.split(r"[/:;]", name)):
        if part in layers:
            return part
        if (plain := re.sub(r"_\d+$", "", part)) in layers:
            return plain
    return None


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    return name if taken[name] == 1 else _unique(f"{name}_{taken[name]}", taken)
