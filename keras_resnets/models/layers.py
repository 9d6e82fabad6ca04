"""What the families share: the input, the head, and a convolution padded as the papers' frameworks pad it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

from keras_resnets.extras import extra

with extra("tensorflow"):
    import keras
    from keras import layers


class Face(NamedTuple):
    """The arguments that every constructor takes over from keras.applications."""

    include_top: bool
    input_tensor: Any
    input_shape: tuple[int | None, int | None, int] | None
    pooling: str | None
    classes: int
    classifier_activation: str | None
    name: str


def image_input(face: Face, default_shape: tuple[int, int, int]) -> Any:
    """The Keras tensor [batch, height, width, channels] that the network starts from.

    Raises:
        ValueError: when `input_shape`, `classes` or `pooling` cannot be meant.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras_resnets builds channels-last networks: call keras.config.set_image_data_format('channels_last')"
        )
    if not isinstance(face.classes, Integral) or int(face.classes) < 1:
        raise ValueError(f"classes must be a positive integer, not {face.classes!r}")
    if face.pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling must be None, 'avg' or 'max', not {face.pooling!r}")
    shape = _checked_shape(face.input_shape, default_shape)
    if face.input_tensor is None:
        return layers.Input(shape=shape, name=f"{face.name}_input")
    if not keras.utils.is_keras_tensor(face.input_tensor):
        raise ValueError(f"input_tensor must be a Keras tensor, not {type(face.input_tensor).__name__}")
    own = _checked_shape(tuple(face.input_tensor.shape[1:]), default_shape)
    if face.input_shape is not None and shape != own:
        raise ValueError(f"input_shape {shape} contradicts input_tensor, which is {own}: give one of them")
    return face.input_tensor


def _checked_shape(shape: Any, default: tuple[int, int, int]) -> tuple[int | None, int | None, int]:
    if shape is None:
        return default
    wrong = f"input_shape must be (height, width, channels), for example {default}; got {shape!r}"
    try:
        height, width, channels = shape
    except (TypeError, ValueError):
        raise ValueError(wrong) from None
    if not isinstance(channels, Integral) or int(channels) < 1:
        raise ValueError(f"{wrong}: the number of channels must be given")
    if any(side is not None and (not isinstance(side, Integral) or int(side) < 1) for side in (height, width)):
        raise ValueError(f"{wrong}: height and width are positive, or None for any size")
    if height in (1, 3) and width == channels and int(channels) >= 16:
        raise ValueError(f"{wrong}: that looks channels-first")
    return height and int(height), width and int(width), int(channels)


def conv(x: Any, filters: int, kernel: int, name: str, *, strides: int = 1, bias: bool = False, groups: int = 1) -> Any:
    """A convolution with He initialisation that shrinks sides to ceil(side / strides).

    Padding is symmetric, as in Caffe and PyTorch; "same" would pad a strided one at the far end only.
    """
    padding = "same"
    if strides > 1 and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=name.removesuffix("_conv") + "_pad")(x)
        padding = "valid"
    return layers.Conv2D(
        filters, kernel, strides, padding, use_bias=bias, groups=groups, kernel_initializer="he_normal", name=name
    )(x)


def identity(x: Any, channels: int, strides: int, name: str) -> Any:
    """The shortcut without parameters: every `strides`-th pixel, and zeros in the channels that x lacks."""
    if strides > 1:
        x = layers.MaxPooling2D(1, strides, name=f"{name}_0_subsample")(x)
    if channels > x.shape[-1]:
        # ZeroPadding2D pads the last two axes of a channels-first tensor: here, the last is the channels.
        x = layers.ZeroPadding2D(
            ((0, 0), (0, channels - x.shape[-1])), data_format="channels_first", name=f"{name}_0_channels"
        )(x)
    return x


def max_pool_stem(x: Any) -> Any:
    """The 3×3 maximum with stride 2 that follows the ImageNet stem."""
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def drop_path(x: Any, rate: float, name: str) -> Any:
    """Stochastic depth: in training, leave out the residual of a random share of the images.

    The rest is scaled up by 1 / (1 − rate), so that inference needs no change (Huang et al. 2016,
    arXiv:1603.09382, scale it down at inference instead).
    """
    return layers.Dropout(rate, noise_shape=(None,) + (1,) * (len(x.shape) - 1), name=f"{name}_drop")(x) if rate else x


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Rates that grow linearly to `last` in the last block (Huang et al. 2016, equation 4).

    Raises:
        ValueError: when `last` is no probability below 1.
    """
    checked_rate("drop_path_rate", last)
    return [last * block / blocks for block in range(1, blocks + 1)]


def checked_rate(name: str, rate: float) -> float:
    """A probability in [0, 1).

    Raises:
        ValueError: for anything else.
    """
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 <= float(rate) < 1:
        raise ValueError(f"{name} must be a number in [0, 1), not {rate!r}")
    return float(rate)


@contextmanager
def dtype_policy(policy: Any) -> Iterator[None]:
    """Layers that are built meanwhile have this dtype policy, or precision by name."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def last_layer(model: Any) -> Any:
    """The layer that gives a model's output, inside nested models too."""
    last = model.outputs[0]._keras_history.operation
    return last_layer(last) if getattr(last, "outputs", None) and isinstance(last, keras.Model) else last


@contextmanager
def linear_head(model: Any) -> Iterator[bool]:
    """Let a model that ends in softmax or sigmoid give its logits; yields whether it does."""
    with _squashing_by(model, lambda logits, squash: logits) as squashing:
        yield squashing


@contextmanager
def tapped_head(model: Any) -> Iterator[list[Any]]:
    """Put the logits of each call beside what a model that ends in softmax or sigmoid gives; otherwise nothing."""
    tapped: list[Any] = []

    def tap(logits: Any, squash: Callable[[Any], Any]) -> Any:
        tapped.append(logits)
        return squash(logits)

    with _squashing_by(model, tap):
        yield tapped


@contextmanager
def _squashing_by(model: Any, function: Callable[[Any, Callable[[Any], Any]], Any]) -> Iterator[bool]:
    """Let a function of the logits, and of the softmax or sigmoid, do the work of that; yields whether there is one."""
    last = last_layer(model)
    if not squashes(last):
        yield False
    elif isinstance(last, keras.layers.Softmax):
        own = last.call
        object.__setattr__(last, "call", lambda inputs, mask=None: function(inputs, partial(own, mask=mask)))
        try:
            yield True
        finally:
            object.__delattr__(last, "call")
    else:
        activation = last.activation
        last.activation = lambda logits: function(logits, activation)
        try:
            yield True
        finally:
            last.activation = activation


def squashes(layer: Any) -> bool:
    """Whether a layer ends in softmax or sigmoid."""
    squashing = (keras.activations.softmax, keras.activations.sigmoid)
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) in squashing


def finish(x: Any, inputs: Any, face: Face, dropout_rate: float = 0.0) -> Any:
    """The head (classifier, pooled features or a feature map) and the model."""
    if face.include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        return classify(x, inputs, face, dropout_rate)
    if face.pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif face.pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    return as_model(x, inputs, face)


def classify(x: Any, inputs: Any, face: Face, dropout_rate: float) -> Any:
    """A classifier on features [batch, features], and the model."""
    if checked_rate("dropout_rate", dropout_rate):
        x = layers.Dropout(dropout_rate, name="top_dropout")(x)
    x = layers.Dense(int(face.classes), activation=face.classifier_activation, name="predictions")(x)
    return as_model(x, inputs, face)


def as_model(x: Any, inputs: Any, face: Face) -> Any:
    """The model; what stands in front of an input_tensor belongs to it."""
    sources = [inputs] if face.input_tensor is None else keras.utils.get_source_inputs(inputs)
    return keras.Model(sources[0] if len(sources) == 1 else sources, x, name=face.name)


def allow_depth(blocks: int) -> None:
    """Raise the process's recursion limit, upward only: Keras walks a network recursively, layer by layer."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1_000 + 40 * blocks))


@contextmanager
def variables_at_the_end() -> Iterator[None]:
    """Build a network, and only then make its variables: twice as fast.

    Outside the layers' name scopes TensorFlow makes all variables of a shape with one kernel instead of one each.
    The garbage collector waits, too, instead of walking through the growing network again and again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with keras.StatelessScope():
            yield
    finally:
        if collecting:
            gc.enable()
