"""Pairs a model's variables with stored tensors, in one of the namings that weights files use.

Every pair converts both ways without touching a value: tensors are transposed, reshaped, joined or split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.models.torch_names import DIALECTS, dense_as_convolutions, torch_modules

with extra("tensorflow"):
    import keras
    from keras import layers

Array = NDArray[Any]
ZOO, KERAS = "zoo", "keras"  # beside torch_names.DIALECTS


class Binding(NamedTuple):
    """One stored tensor and the variables that it fills."""

    key: str
    layer: str
    shape: tuple[int, ...]
    variables: tuple[Any, ...]
    pack: Callable[[Sequence[Array]], Array]
    unpack: Callable[[Array], Sequence[Array]]
    grid: tuple[int, int] | None = None  # of position embeddings: rows and columns of patches

    def read(self) -> Array:
        """The stored form of the variables' values."""
        return np.ascontiguousarray(self.pack([keras.ops.convert_to_numpy(v) for v in self.variables]))

    def assign(self, array: Array) -> None:
        """Set the variables from a stored tensor of `shape`."""
        for variable, value in zip(self.variables, self.unpack(array), strict=True):
            variable.assign(value)


def bindings(model: Any, naming: str, name: str) -> list[Binding]:
    """The pairs of a model, in its layers' order; a dialect has none for layers in front of an `input_tensor`.

    Args:
        model: a Keras model of the registry.
        naming: "zoo" (layer and variable), "keras" (layer and position, as in a legacy h5 file), or a dialect of
            `torch_names`.
        name: its name in the registry.
    """
    with_weights = [layer for layer in model.layers if layer.weights]
    if naming in (ZOO, KERAS):
        return [pair for layer in with_weights for pair in _plain(layer, naming)]
    modules = torch_modules(name, [layer.name for layer in model.layers if _counts(layer)], naming)
    convolutions = dense_as_convolutions(name)
    return [
        pair
        for layer in with_weights
        if layer.name in modules
        for pair in _torch(layer, modules[layer.name], naming, convolutions)
    ]


def own_layers(model: Any, name: str) -> set[str]:
    """Names of the network's layers, without those in front of an `input_tensor`."""
    return set(torch_modules(name, [layer.name for layer in model.layers], DIALECTS[0]))


def _counts(layer: Any) -> bool:
    """Whether PyTorch has a module for a layer: padding is part of a convolution there."""
    return not isinstance(layer, (layers.InputLayer, layers.ZeroPadding2D))


def _plain(layer: Any, naming: str) -> list[Binding]:
    pairs = []
    for i, variable in enumerate(layer.weights):
        # A path may start with the scopes that the model was built in.
        inside = variable.path.rpartition(f"{layer.name}/")[2]
        key = f"{layer.name}/{inside}" if naming == ZOO else f"{layer.name}/{i}"
        pairs.append(_pair(key, layer, (variable,), lambda a: a[0], lambda a: [a]))
    return pairs


def _pair(
    key: str,
    layer: Any,
    variables: Sequence[Any],
    pack: Callable[[Sequence[Array]], Array],
    unpack: Callable[[Array], Sequence[Array]],
) -> Binding:
    # The stored shape follows from a pack of empty arrays, which costs nothing: strides of zero.
    empty = [np.broadcast_to(np.float32(0), tuple(v.shape)) for v in variables]
    pair = Binding(key, layer.name, pack(empty).shape, tuple(variables), pack, unpack)
    if isinstance(layer, _tokens_layer()) and len(pair.shape) == 3 and pair.shape[1] > 1:
        return pair._replace(grid=tuple(layer.grid))
    return pair


def _torch(layer: Any, module: str, dialect: str, convolutions: Sequence[str]) -> list[Binding]:
    if isinstance(layer, layers.MultiHeadAttention):
        return _attention(layer, module, dialect)
    if isinstance(layer, _tokens_layer()):
        keys = ("cls_token", "pos_embed") if dialect == "timm" else ("class_token", "encoder.pos_embedding")
        variables = (layer.class_token, layer.position_embedding)
        return [_pair(key, layer, (v,), lambda a: a[0], lambda a: [a]) for key, v in zip(keys, variables, strict=True)]
    pairs = []
    for variable in layer.weights:
        role = variable.path.rsplit("/", 1)[1]
        if role == "kernel":
            pack, unpack = _kernel(layer, dialect, module in convolutions)
        else:
            pack, unpack = (lambda a: a[0]), (lambda a: [a])
        pairs.append(_pair(f"{module}.{ROLES[role]}", layer, (variable,), pack, unpack))
    return pairs


ROLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _kernel(layer: Any, dialect: str, as_convolution: bool) -> tuple[Any, Any]:
    """pack and unpack of a kernel: inputs in front of outputs in Keras, behind them in PyTorch."""
    if not isinstance(layer, layers.Dense):
        return (lambda a: a[0].transpose(3, 2, 0, 1)), (lambda a: [a.transpose(2, 3, 1, 0)])
    before = layer.input._keras_history.operation
    if isinstance(before, layers.Flatten):
        # Flattening puts channels last here, first there.
        height, width, channels = before.input.shape[1:]
        units = layer.units

        def pack(arrays: Sequence[Array]) -> Array:
            stored = arrays[0].reshape(height, width, channels, units).transpose(3, 2, 0, 1)
            return stored if dialect == "timm" else stored.reshape(units, -1)

        def unpack(array: Array) -> list[Array]:
            return [array.reshape(units, channels, height, width).transpose(2, 3, 1, 0).reshape(-1, units)]

        return pack, unpack
    if as_convolution:
        return (lambda a: a[0].T[:, :, None, None]), (lambda a: [a[:, :, 0, 0].T])
    return (lambda a: a[0].T), (lambda a: [a.T])


def _attention(layer: Any, module: str, dialect: str) -> list[Binding]:
    """Queries, keys and values are one matrix in PyTorch, three here."""
    found = {"/".join(v.path.split("/")[-2:]): v for v in layer.weights}
    width = found["query/bias"].shape[0] * found["query/bias"].shape[1]
    inner, parts = tuple(found["query/bias"].shape), ("query", "key", "value")
    joined, out = ("qkv.", "proj") if dialect == "timm" else ("in_proj_", "out_proj")
    return [
        _pair(
            f"{module}.{joined}weight",
            layer,
            [found[f"{part}/kernel"] for part in parts],
            lambda a: np.concatenate([kernel.reshape(-1, width).T for kernel in a]),
            lambda a: [part.T.reshape(-1, *inner) for part in np.split(a, 3)],
        ),
        _pair(
            f"{module}.{joined}bias",
            layer,
            [found[f"{part}/bias"] for part in parts],
            lambda a: np.concatenate([bias.reshape(-1) for bias in a]),
            lambda a: [part.reshape(inner) for part in np.split(a, 3)],
        ),
        _pair(
            f"{module}.{out}.weight",
            layer,
            [found["attention_output/kernel"]],
            lambda a: a[0].reshape(width, -1).T,
            lambda a: [a.T.reshape(*inner, -1)],
        ),
        _pair(
            f"{module}.{out}.bias",
            layer,
            [found["attention_output/bias"]],
            lambda a: a[0],
            lambda a: [a],
        ),
    ]


def _tokens_layer() -> Any:
    from keras_resnets.models.vit import TokensAndPositions

    return TokensAndPositions


def is_square_grid(shape: tuple[int, ...]) -> bool:
    """Whether position embeddings are those of a square grid; one of over 256 × 256 patches is no image's."""
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 2:
        return False
    side = math.isqrt(shape[1] - 1)
    return side <= 256 and side * side == shape[1] - 1


def stored_grid(shape: tuple[int, ...], told: tuple[int, int] | None) -> tuple[int, int] | None:
    """The grid that position embeddings of a shape are of: the one that their file tells, else a square."""
    if told and len(shape) == 3 and shape[1] == 1 + told[0] * told[1]:
        return told
    return (side := math.isqrt(shape[1] - 1), side) if is_square_grid(shape) else None


def resize_positions(stored: Array, grid: tuple[int, int], told: tuple[int, int] | None = None) -> Array:
    """Position embeddings of another grid, interpolated (bicubic, antialiased; Dosovitskiy et al., 3.2).

    Args:
        stored: [1, 1 + patches, width], the class token's first.
        grid: (rows, columns) of patches wanted.
        told: the stored ones' grid; None for a square.

    Raises:
        ValueError: when the stored ones are no square, and `told` is not theirs.

    Returns:
        [1, 1 + rows · columns, width].
    """
    own = stored_grid(stored.shape, told)
    if own is None:
        raise ValueError(f"position embeddings {list(stored.shape)} are of no square grid")
    token, patches = stored[:, :1], stored[:, 1:].reshape(1, *own, -1)
    resized = keras.ops.image.resize(patches, grid, "bicubic", antialias=True, data_format="channels_last")
    return np.concatenate([token, keras.ops.convert_to_numpy(resized).reshape(1, -1, stored.shape[2])], axis=1)
