"""Merges nodes of a graph whose weights are known: what follows a node becomes a part of it, where that is exact.

Each rule looks at a node and the one in front of it, and lets the latter do the work of both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

from .graph import attribute

with extra("export"):
    import onnx

Values = dict[str, NDArray[Any]]

_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp")
_KEEPING_CHANNELS = ("Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Clip", "MaxPool", "AveragePool")


class _Links:
    """Who writes and who reads each tensor."""

    def __init__(self, nodes: Iterable[Any], outputs: Iterable[str], values: Values) -> None:
        self.values = values
        self.producers: dict[str, Any] = {}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.readers[name].append(node)
        for name in outputs:
            self.readers[name].append(None)

    def before(self, node: Any) -> Any:
        """The node that writes all that this one reads beside known arrays, for no other reader; or None."""
        sources = [name for name in node.input if name and name not in self.values]
        return self.producers.get(sources[0]) if len(sources) == 1 and len(self.readers[sources[0]]) == 1 else None

    def known(self, node: Any, index: int) -> NDArray[Any] | None:
        """An input that is a known array, or None."""
        return self.values.get(node.input[index]) if index < len(node.input) else None

    def own(self, node: Any, index: int) -> NDArray[Any] | None:
        """The same, where no other node reads it."""
        array = self.known(node, index)
        return array if array is not None and len(self.readers[node.input[index]]) == 1 else None


def merge(nodes: list[Any], outputs: Iterable[str], values: Values) -> list[Any]:
    """The ONNX nodes that are left; they and the arrays are changed in place.

    Args:
        nodes: in order.
        outputs: the names of the graph's outputs.
        values: the known arrays among the nodes' inputs, by name.
    """
    links = _Links(nodes, outputs, values)
    left = []
    for node in nodes:
        before = links.before(node)
        if before is not None and any(rule(before, node, links) for rule in _RULES):
            before.output[0] = node.output[0]
            links.producers[node.output[0]] = before
        else:
            left.append(node)
    return left


class _Linear(NamedTuple):
    """A convolution or matrix product of a known kernel."""

    kernel: str
    axis: int  # of the kernel: the output's channels
    trailing: int  # the output's axes behind its channels
    rank: int  # the output's axes, as far as they are sure
    bias: int | None  # which input of the node that ends it


def _linear(node: Any, links: _Links) -> _Linear | None:
    """The linear map that ends in a node, which may be the Add of a matrix product's bias."""
    product = links.before(node) if node.op_type == "Add" else node
    kernel = None if product is None else links.own(product, 1)
    if kernel is None:
        return None
    name = product.input[1]
    if product.op_type == "MatMul" and kernel.ndim == 2:
        return _Linear(name, 1, 0, 1, None if node is product else _known_index(node, links.values))
    if node.op_type == "Conv":
        return _Linear(name, 0, kernel.ndim - 2, kernel.ndim, 2)
    if node.op_type == "Gemm" and attribute(node, "beta", 1.0) == 1:
        return _Linear(name, 0 if attribute(node, "transB", 0) else 1, 0, 2, 2)
    return None


def _affine_into_linear(before: Any, node: Any, links: _Links) -> bool:
    """A factor and a shift of each channel go into the weights that make the channels."""
    linear = _linear(before, links)
    affine = linear and _affine(node, linear, links.values)
    if not linear or not affine:
        return False
    factor, shift = affine
    at = linear.bias
    biased = at is not None and at < len(before.input)
    bias = links.known(before, at) if at is not None and biased else np.zeros(1)
    if bias is None or bias.ndim > 1 or (at is None and node.op_type != "Mul"):
        return False
    kernel = links.values[linear.kernel]
    shape = [-1 if axis == linear.axis else 1 for axis in range(kernel.ndim)]
    links.values[linear.kernel] = (kernel * factor.reshape(shape)).astype(kernel.dtype)
    if at is not None and (biased or node.op_type != "Mul"):
        name = f"{node.output[0]}/bias"
        links.values[name] = (bias * factor + shift).astype(kernel.dtype)
        before.input[at : at + 1] = [name]
    return True


def _affine(node: Any, linear: _Linear, values: Values) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What a node multiplies each channel by, and then adds to it, in float64 [channels]; None if it does otherwise."""
    channels = values[linear.kernel].shape[linear.axis]
    if node.op_type == "BatchNormalization" and linear.rank > 1 and all(name in values for name in node.input[1:]):
        gamma, beta, mean, variance = (values[name].astype(np.float64) for name in node.input[1:])
        factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return factor, beta - mean * factor
    if node.op_type not in ("Mul", "Add"):
        return None
    constant = values[node.input[_known_index(node, values)]].astype(np.float64)
    own_axis = constant.ndim - 1 - linear.trailing
    if constant.ndim > linear.rank or constant.size not in (1, channels):
        return None
    if constant.size > 1 and (own_axis < 0 or constant.shape[own_axis] != channels):
        return None
    vector = np.broadcast_to(constant.reshape(-1), channels)
    return (vector, np.zeros(channels)) if node.op_type == "Mul" else (np.ones(channels), vector)


def _pad_into_window(before: Any, node: Any, links: _Links) -> bool:
    """Zeros around an image become the padding of the convolution or pooling behind.

    A maximum counts its own padding as minus infinity: the same where the image has nothing negative.
    """
    pads, kernel = _zeros_around(before, links), attribute(node, "kernel_shape", [])
    if pads is None or node.op_type not in ("Conv", "MaxPool", "AveragePool") or len(node.output) > 1:
        return False
    own = attribute(node, "pads", [0] * len(pads))
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attribute(node, "ceil_mode", 0):
        return False
    if node.op_type != "Conv":
        beyond = any(side >= size for side, size in zip(pads, [*kernel, *kernel], strict=True))
        if any(own) or beyond or (node.op_type == "MaxPool" and not _not_negative(before.input[0], links)):
            return False
    _take_over(before, node)
    counted = {"count_include_pad": 1} if node.op_type == "AveragePool" else {}
    pads = [side + more for side, more in zip(pads, own, strict=True)]
    _set_attributes(before, pads=pads, auto_pad="NOTSET", **counted)
    return True


def _zeros_around(node: Any, links: _Links) -> list[int] | None:
    """How many zeros a Pad puts around an image [batch, channels, ...], as ONNX counts them; or None."""
    pads = links.known(node, 1)
    if (
        node.op_type != "Pad"
        or pads is None
        or len(node.input) > 3
        or attribute(node, "mode", b"constant") != b"constant"
    ):
        return None
    value = links.known(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(())
    sides = [int(side) for side in pads.reshape(2, -1)[:, 2:].flat]
    around = not pads.reshape(2, -1)[:, :2].any() and min(sides, default=-1) >= 0
    # The least normal float stands for zero: see _pad_that_stays.
    zeros = value is not None and abs(float(value)) <= np.finfo(np.float32).tiny
    return sides if around and zeros else None


def _not_negative(name: str, links: _Links) -> bool:
    while (node := links.producers.get(name)) is not None:
        if node.op_type == "Clip":
            least = links.known(node, 1)
            return least is not None and bool(least >= 0)
        if node.op_type not in ("MaxPool", "AveragePool", "Transpose"):
            return node.op_type in _NOT_NEGATIVE
        name = node.input[0]
    return False


def _reshape_into_mean(before: Any, node: Any, links: _Links) -> bool:
    """The mean of an image may keep its two axes of one pixel."""
    axes, shape = links.known(before, 1), links.known(node, 1)
    if before.op_type != "ReduceMean" or node.op_type != "Reshape" or axes is None or shape is None:
        return False
    image = list(axes) == [2, 3] and len(shape) == 4 and list(shape[2:]) == [1, 1] and shape[0] == -1
    if not image or attribute(before, "keepdims", 1):
        return False
    _set_attributes(before, keepdims=1)
    return True


def _transpose_into_product(before: Any, node: Any, links: _Links) -> bool:
    """An image that is flattened for a matrix product need not be channels-last: the kernel's rows change places."""
    shape = links.known(node, 1)
    if before.op_type != "Transpose" or node.op_type != "Reshape" or shape is None or len(shape) != 2:
        return False
    readers = links.readers[node.output[0]]
    product = readers[0] if len(readers) == 1 else None
    channels = _channels(before.input[0], links)
    if list(attribute(before, "perm", [])) != [0, 2, 3, 1] or shape[0] != -1 or not channels or product is None:
        return False
    plain = product.op_type in ("Gemm", "MatMul") and not attribute(product, "transA", 0)
    kernel = links.own(product, 1) if plain and product.input[0] == node.output[0] else None
    if kernel is None or kernel.ndim != 2:
        return False
    axis = 1 if attribute(product, "transB", 0) else 0
    order = np.arange(shape[1]).reshape(-1, channels).T.reshape(-1)
    links.values[product.input[1]] = np.take(kernel, order, axis)
    _take_over(before, node)
    return True


def _channels(name: str, links: _Links) -> int | None:
    """How many channels an image [batch, channels, height, width] has, where a convolution not far in front says it."""
    while (node := links.producers.get(name)) is not None:
        if node.op_type == "Conv":
            kernel = links.known(node, 1)
            return None if kernel is None else kernel.shape[0]
        if node.op_type not in _KEEPING_CHANNELS:
            return None
        name = node.input[0]
    return None


_RULES = (_affine_into_linear, _pad_into_window, _reshape_into_mean, _transpose_into_product)


def _take_over(before: Any, node: Any) -> None:
    """Make the node in front the one behind it, of the former's input."""
    source = before.input[0]
    before.CopyFrom(node)
    before.input[0] = source


def _known_index(node: Any, values: Values) -> int:
    return next(index for index, name in enumerate(node.input) if name in values)


def _set_attributes(node: Any, **attributes: Any) -> None:
    kept = [item for item in node.attribute if item.name not in attributes]
    new = [onnx.helper.make_attribute(name, value) for name, value in attributes.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *new])
