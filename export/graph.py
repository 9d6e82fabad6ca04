"""What edits of ONNX graphs share and onnx's own helpers lack."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Any

from keras_resnets.extras import extra

with extra("export"):
    import onnx


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def sort_nodes(graph: Any) -> None:
    """Put nodes before those that read them, in place: ONNX demands it, and converters append theirs at the end."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    needs = {i: [producers[name] for name in node.input if name in producers] for i, node in enumerate(graph.node)}
    nodes = [
        onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in TopologicalSorter(needs).static_order()
    ]
    del graph.node[:]
    graph.node.extend(nodes)
