"""A block of a network as the papers draw it: its layers below one another, and the shortcut around them."""

from __future__ import annotations

from typing import Any

from keras_resnets.extras import extra
from keras_resnets.study.blocks import Blocks
from keras_resnets.study.outcome import StudyError
from keras_resnets.study.plots import PLAIN, RESIDUAL

with extra("tensorflow"):
    import keras

with extra("study"):
    from matplotlib.patches import Circle, FancyBboxPatch

_NAMES = {"BatchNormalization": "batch norm", "GroupNormalization": "group norm", "ZeroPadding2D": "zero padding"}
_WIDTH, _HEIGHT, _STEP, _RADIUS = 2.0, 0.56, 0.9, 0.22


def draw_block(model: Any, block: str, axis: Any) -> None:
    """Draw one block of a network, read from the network itself.

    Args:
        model: a network of this zoo that is made of blocks.
        block: "conv2_block1", the names of its layers up to the last "_".
        axis: of matplotlib, which is emptied of its frame.

    Raises:
        StudyError: when the model has no such block.
    """
    blocks = Blocks(model).blocks
    found = next((one for one in blocks if one.name == block), None)
    if found is None:
        raise StudyError(f"{model.name} has no block {block!r}; it has {', '.join(one.name for one in blocks)}")
    branch, tail = _two_parts(found)
    y = 0.0
    _arrow(axis, 0, y + _STEP, y + _HEIGHT / 2, "x")
    for layer in branch:
        _box(axis, y, _label(layer), RESIDUAL if found.addition else PLAIN)
        y -= _STEP
        below = _RADIUS if found.addition and layer is branch[-1] else _HEIGHT / 2
        _arrow(axis, 0, y + _STEP - _HEIGHT / 2, y + below)
    if found.addition:
        _shortcut(axis, found, y)
        y -= _STEP
        _arrow(axis, 0, y + _STEP - _RADIUS, y + _HEIGHT / 2, "F(x) + x")
    for layer in tail:
        _box(axis, y, _label(layer), RESIDUAL)
        y -= _STEP
        _arrow(axis, 0, y + _STEP - _HEIGHT / 2, y + _HEIGHT / 2)
    axis.set(xlim=(-1.6, 3.1), ylim=(y + _HEIGHT / 2 - 0.1, _STEP + 0.1), aspect="equal")
    axis.set_axis_off()


def _two_parts(block: Any) -> tuple[list[Any], list[Any]]:
    """The layers of the residual branch (of a plain block: all), and those behind the addition."""
    if block.addition is None:
        return _path(block.output, block.input), []
    _, residual = block.addition.input
    return _path(residual, block.input), _path(block.output, block.addition.output)


def _path(tensor: Any, end: Any) -> list[Any]:
    """The layers between two tensors that follow one another, the first one first."""
    layers: list[Any] = []
    while tensor is not end:
        layer = tensor._keras_history.operation
        layers.insert(0, layer)
        tensor = layer.input[0] if isinstance(layer.input, list) else layer.input
    return layers


def _label(layer: Any) -> str:
    if isinstance(layer, keras.layers.Conv2D):
        side, other = layer.kernel_size
        return f"{side}×{other} conv, {layer.filters}{_stride(layer)}"
    if isinstance(layer, (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)):
        side, other = layer.pool_size
        kind = "max" if isinstance(layer, keras.layers.MaxPooling2D) else "mean"
        return f"{side}×{other} {kind} pooling{_stride(layer)}"
    if isinstance(layer, keras.layers.Activation):
        return {"relu": "ReLU"}.get(layer.activation.__name__, layer.activation.__name__)
    kind = type(layer).__name__
    return _NAMES.get(kind, kind)


def _stride(layer: Any) -> str:
    """As the papers write it: "/2"."""
    return f", /{layer.strides[0]}" if layer.strides[0] > 1 else ""


def _box(axis: Any, y: float, text: str, colour: str) -> None:
    corner = (-_WIDTH / 2, y - _HEIGHT / 2)
    style = "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, style, facecolor="white", edgecolor=colour, linewidth=1.4))
    axis.text(0, y, text, ha="center", va="center", fontsize=8)


def _arrow(axis: Any, x: float, start: float, end: float, text: str = "") -> None:
    axis.annotate("", (x, end), (x, start), arrowprops={"arrowstyle": "->", "color": "0.3"})
    axis.text(x - 0.15, (start + end) / 2, text, ha="right", va="center", fontsize=9, style="italic")


def _shortcut(axis: Any, block: Any, y: float) -> None:
    """The addition, and the way around the branch with the layers on it."""
    shortcut, _ = block.addition.input
    side, top = 1.55, _STEP / 2
    axis.plot([0, side, side], [top + 0.2, top + 0.2, y], color=RESIDUAL, linewidth=1.8)
    axis.annotate("", (_RADIUS, y), (side, y), arrowprops={"arrowstyle": "->", "color": RESIDUAL, "linewidth": 1.8})
    axis.add_patch(Circle((0, y), _RADIUS, facecolor="white", edgecolor=RESIDUAL, linewidth=1.8))
    axis.text(0, y, "+", ha="center", va="center", fontsize=12)
    names = [_label(layer) for layer in _path(shortcut, block.input)] or ["identity"]
    axis.text(side + 0.12, (top + y) / 2, "\n".join(names), va="center", fontsize=8, color=RESIDUAL)
