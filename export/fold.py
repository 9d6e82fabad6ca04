"""Fills a converted skeleton with weights: what depends on them alone is computed once, here.

Two steps: everything that only rearranges or combines weights is evaluated and becomes an initializer;
then each batch norm behind a convolution is merged into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

with extra("export"):
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

Values = dict[str, NDArray[Any]]


def fill(model: Any, weights: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
    """Replace the weight inputs of an ONNX model by folded initializers, in place.

    Args:
        model: a ModelProto whose graph inputs include the names of `weights`.
        weights: graph input name to a function that gives its array.
    """
    graph = model.graph
    constant, rest = _split(graph, set(weights))
    values = _evaluate(model, constant, rest, weights)
    nodes = _merge_batch_norms(graph, rest, values)
    used = {name for node in nodes for name in node.input}
    images = [item for item in graph.input if item.name not in weights]
    for field in (graph.node, graph.input, graph.initializer, graph.value_info):
        del field[:]
    graph.node.extend(nodes)
    graph.input.extend(images)
    # numpy_helper copies: give up each array once it is in the graph.
    for name in sorted(used & set(values)):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values.pop(name)), name))


def _split(graph: Any, weights: set[str]) -> tuple[list[Any], list[Any]]:
    """The nodes that see no image, and the rest, both in order."""
    known = weights | {item.name for item in graph.initializer} | {""}
    constant, rest = [], []
    for node in graph.node:
        if node.input and all(name in known for name in node.input):
            constant.append(node)
            known.update(node.output)
        else:
            rest.append(node)
    return constant, rest


def _evaluate(
    model: Any, constant: list[Any], rest: list[Any], weights: Mapping[str, Callable[[], NDArray[Any]]]
) -> Values:
    """The arrays that the rest of the graph reads: stored ones, weights, and what follows from them."""
    graph = model.graph
    read = {name for node in rest for name in node.input} | {item.name for item in graph.output}
    needed = read | {name for node in constant for name in node.input}
    inputs = {name: get() for name, get in weights.items() if name in needed}
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    values = {name: array for name, array in {**stored, **inputs}.items() if name in read}
    outputs = [name for node in constant for name in node.output if name in read]
    if outputs:
        part = onnx.helper.make_graph(
            constant,
            "weights",
            [item for item in graph.input if item.name in inputs],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
            graph.initializer,
        )
        evaluator = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=model.opset_import))
        values.update(zip(outputs, evaluator.run(None, inputs), strict=True))
    return values


def _merge_batch_norms(graph: Any, nodes: list[Any], values: Values) -> list[Any]:
    """Conv then BatchNormalization is one Conv, where nothing else reads what is between them."""
    readers = Counter(name for node in nodes for name in node.input)
    readers.update(item.name for item in graph.output)
    producers = {name: node for node in nodes for name in node.output}
    merged = []
    for node in nodes:
        conv = producers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or readers[node.input[0]] > 1 or readers[conv.input[1]] > 1:
            continue
        if all(name in values for name in (*conv.input[1:], *node.input[1:])):
            _merge(conv, node, values)
            producers[conv.output[0]] = conv
            merged.append(node)
    return [node for node in nodes if not any(node is gone for gone in merged)] if merged else nodes


def _merge(conv: Any, norm: Any, values: Values) -> None:
    epsilon = next((item.f for item in norm.attribute if item.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance = (values[name].astype(np.float64) for name in norm.input[1:])
    factor = gamma / np.sqrt(variance + epsilon)
    kernel = values[conv.input[1]]
    bias = values[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else 0.0
    values[conv.input[1]] = (kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))).astype(kernel.dtype)
    name = f"{conv.output[0]}/bias"
    values[name] = ((bias - mean) * factor + beta).astype(kernel.dtype)
    del conv.input[2:]
    conv.input.append(name)
    conv.output[0] = norm.output[0]
