"""Fills a converted skeleton with weights: what depends on them alone is computed once, here.

Two steps: everything that only rearranges or combines weights is evaluated and becomes an initializer;
then nodes are merged (see merge.py), batch norms into convolutions above all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from keras_resnets.extras import extra

from .merge import Values, merge
from .stream import Large, tensor_of

with extra("export"):
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator


def fill(model: Any, weights: Mapping[str, Callable[[], NDArray[Any]]], packed: set[str]) -> Large:
    """Replace the weight inputs of an ONNX model by folded initializers, in place.

    Args:
        model: a ModelProto whose graph inputs include the names of `weights`.
        weights: graph input name to a function that gives its array.
        packed: the names of those that batch norms read as all of their four weights.

    Returns:
        The large arrays, beside the message; see stream.py.
    """
    graph = model.graph
    constant, rest = _split(graph, set(weights))
    values = _evaluate(model, constant, rest, weights)
    _unpack(rest, values, packed)
    nodes = merge(rest, [item.name for item in graph.output], values)
    used = {name for node in nodes for name in node.input}
    images = [item for item in graph.input if item.name not in weights]
    for field in (graph.node, graph.input, graph.initializer, graph.value_info):
        del field[:]
    graph.node.extend(nodes)
    graph.input.extend(images)
    large: Large = []
    for name in sorted(used & set(values)):
        graph.initializer.append(tensor_of(values.pop(name), name, large))
    return large


def _unpack(nodes: Iterable[Any], values: Values, packed: set[str]) -> None:
    """Give batch norms the four weights of their pack."""
    for node in nodes:
        for name in packed.intersection(node.input):
            rows = dict(zip((f"{name}/{i}" for i in range(4)), values[name], strict=True))
            values.update(rows)
            node.input[1:] = list(rows)


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
