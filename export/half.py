"""float16: halves a float32 ONNX graph, but for what half precision cannot hold."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.quiet import quiet

from .graph import attribute, sort_nodes
from .runtime import run_tensors
from .sensitivity import rank_units

with extra("export"):
    import onnx
with extra("serve"):
    from onnxruntime.transformers import float16

_KEPT = ("Softmax", "LayerNormalization")  # sums of exponentials and of squares
_LARGEST = 2.0**15  # half of what float16 holds: other images than the samples give larger values
_HALVED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "BatchNormalization", "ReduceMean", "Mul")


class Float16:
    """A float32 ONNX file with weights and activations in float16; inputs and outputs stay as they are.

    Args:
        source: the float32 file.
        batches: for the graph's input: layers whose outputs are too large for float16 on them stay in float32.
    """

    def __init__(self, source: Path, batches: Iterator[NDArray[Any]]) -> None:
        self.source = source
        self.kept = frozenset(_nodes_beyond(source, next(batches), _LARGEST))

    def write(self, file: Path, kept: Collection[str]) -> None:
        """Write the halved graph, with the nodes called `kept` in float32."""
        # It logs each weight too small for float16, which becomes the least one.
        with quiet(logging.getLogger(float16.__name__), logging.ERROR):
            halved = float16.convert_float_to_float16(
                onnx.load(self.source),
                keep_io_types=True,
                op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_KEPT],
                node_block_list=sorted(kept),
            )
        _join_float32(halved.graph)
        sort_nodes(halved.graph)
        onnx.checker.check_model(halved)
        file.write_bytes(halved.SerializeToString())

    def rank(self, tensor: NDArray[Any]) -> list[tuple[str, ...]]:
        """Groups of nodes to return to float32 together, the most sensitive first."""
        return rank_units(self.source, tensor, _HALVED, _rounded, _rounded)


def _rounded(name: str, values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _join_float32(graph: Any) -> None:
    """Let float32 nodes read each other directly: the converter puts float16 between them, which overflows there."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    halving = {name for name, node in casts.items() if attribute(node, "to", 0) == onnx.TensorProto.FLOAT16}
    widened = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if attribute(node, "to", 0) == onnx.TensorProto.FLOAT and node.input[0] in halving
    }
    for node in graph.node:
        node.input[:] = [widened.get(name, name) for name in node.input]
    outputs = {item.name for item in graph.output}
    for _ in range(2):  # first the casts to float32 that nobody reads now, then those to float16 before them
        read = outputs.union(*(node.input for node in graph.node))
        for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]:
            graph.node.remove(node)


def _nodes_beyond(source: Path, tensor: NDArray[Any], largest: float) -> set[str]:
    """The nodes that read or give values larger than that."""
    nodes = onnx.load(source, load_external_data=False).graph.node
    floats = [node.output[0] for node in nodes if node.op_type in _HALVED]
    values = run_tensors(source, floats, tensor)
    beyond = {name for name, array in zip(floats, values, strict=True) if np.abs(array).max(initial=0) > largest}
    return {node.name for node in nodes if beyond & {*node.input, *node.output}}
