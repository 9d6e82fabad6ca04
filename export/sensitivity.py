"""Ranks the nodes of an ONNX graph by how much is lost when their tensors are rounded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

from .runtime import run_tensors

with extra("export"):
    import onnx
    from onnx import numpy_helper

Round = Callable[[str, NDArray[Any]], NDArray[Any]]  # a tensor's name and values, to the values after rounding
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSING = ("Relu", "Clip", "MaxPool")  # give on what they take, so that one tensor's rounding is the other's


def rank_units(
    file: Path, tensor: NDArray[Any], operators: Collection[str], round_activation: Round, round_weight: Round
) -> list[tuple[str, ...]]:
    """Groups of node names, the most sensitive first; each group must return to float together to save one tensor.

    What counts is the share of its power that a channel loses, averaged over the channels: a channel that is small
    beside another may matter as much.

    Args:
        file: a float32 ONNX file.
        tensor: for the graph's input.
        operators: types of the nodes that are rounded.
        round_activation, round_weight: what the lower precision makes of a tensor.
    """
    graph = onnx.load(file).graph
    producers = {name: node for node in graph.node for name in node.output}
    losses: dict[tuple[str, ...], float] = {}
    for name, values in _activations(file, graph, operators, tensor).items():
        axis = 1 if values.ndim in (2, 4) else values.ndim - 1
        unit = _unit(graph, name, producers, operators)
        losses[unit] = max(losses.get(unit, 0.0), _lost(values, round_activation(name, values), axis))
    stored = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type in _WEIGHTED and node.op_type in operators and node.input[1] in stored:
            weight = numpy_helper.to_array(stored[node.input[1]])
            axis = 0 if node.op_type == "Conv" else weight.ndim - 1
            lost = _lost(weight, round_weight(node.input[1], weight), axis)
            losses[(node.name,)] = max(losses.get((node.name,), 0.0), lost)
    return sorted(losses, key=losses.__getitem__, reverse=True)


def _activations(file: Path, graph: Any, operators: Collection[str], tensor: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What the rounded nodes give, but for tensors that are not stored because a Relu is merged behind them."""
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    names = [
        node.output[0]
        for node in graph.node
        if node.op_type in operators and readers.get(node.output[0]) not in (["Relu"], ["Clip"])
    ]
    return dict(zip(names, run_tensors(file, names, tensor), strict=True))


def _unit(graph: Any, name: str, producers: dict[str, Any], operators: Collection[str]) -> tuple[str, ...]:
    """The nodes that write or read a tensor, and those before it that only pass it on."""
    nodes = [node for node in graph.node if name in node.input and node.op_type in operators]
    producer = producers.get(name)
    while producer is not None:
        nodes.append(producer)
        producer = producers.get(producer.input[0]) if producer.op_type in _PASSING else None
    return tuple(sorted({node.name for node in nodes}))


def _lost(values: NDArray[Any], rounded: NDArray[Any], axis: int) -> float:
    others = tuple(i for i in range(values.ndim) if i != axis)
    power = np.square(values, dtype=np.float64).sum(others)
    with np.errstate(over="ignore", invalid="ignore"):
        lost = np.square(values.astype(np.float64) - rounded).sum(others)
    share = np.minimum(np.nan_to_num(lost, nan=np.inf)[power > 0] / power[power > 0], 1.0)
    return float(share.mean()) if share.size else 0.0
