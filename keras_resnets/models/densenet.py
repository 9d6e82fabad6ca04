"""DenseNets of Huang et al. 2017, "Densely Connected Convolutional Networks" (arXiv:1608.06993).

ImageNet networks: Table 1. CIFAR networks DenseNet-BC-depth-growth: Section 3, "Implementation Details", and
Table 2. Where a residual network adds what a layer finds, a dense one appends it: every layer reads all before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.constructor import constructor, pick_variant
from keras_resnets.models.layers import (
    Face,
    allow_depth,
    checked_rate,
    conv,
    finish,
    image_input,
    max_pool_stem,
)

with extra("tensorflow"):
    from keras import layers


class Net(NamedTuple):
    """One network: layers a dense block, the channels that each appends, and those of the stem."""

    depths: tuple[int, ...]
    growth: int
    stem: int


class Variant(NamedTuple):
    """What implementations of the same table do differently."""

    epsilon: float
    momentum: float


VARIANTS = {
    # the authors' code, torchvision, timm; the default
    "paper": Variant(epsilon=1e-5, momentum=0.9),
    "keras": Variant(epsilon=1.001e-5, momentum=0.99),  # keras.applications
}

COMPRESSION = 2  # a transition halves the channels (θ = 0.5): the "C" of BC
BOTTLENECK = 4  # the 1×1 in front of a 3×3 gives four times the growth: the "B"
TABLE = {
    "densenet121": Net((6, 12, 24, 16), 32, 64),
    "densenet169": Net((6, 12, 32, 32), 32, 64),
    "densenet201": Net((6, 12, 48, 32), 32, 64),
    "densenet264": Net((6, 12, 64, 48), 32, 64),
    # depth = 6n + 4: n layers of two convolutions a block; the stem gives twice the growth
    "densenetbc40_12": Net((6, 6, 6), 12, 24),  # the paper has this size without B and C only
    "densenetbc100_12": Net((16, 16, 16), 12, 24),
    "densenetbc250_24": Net((41, 41, 41), 24, 48),
    "densenetbc190_40": Net((31, 31, 31), 40, 80),
}


def build(net: Net, face: Face, *, variant: str, dropout_rate: float = 0.0) -> Any:
    """The Keras model of one row of TABLE."""
    row = pick_variant(VARIANTS, variant)
    checked_rate("dropout_rate", dropout_rate)
    allow_depth(2 * sum(net.depths))
    imagenet = len(net.depths) == 4
    inputs = image_input(face, (224, 224, 3) if imagenet else (32, 32, 3))
    _check_sides(inputs, len(net.depths) - 1, 4 if imagenet else 1)
    kernel, strides = (7, 2) if imagenet else (3, 1)
    x = conv(inputs, net.stem, kernel, "conv1_conv", strides=strides)
    if imagenet:
        x = max_pool_stem(_activate(x, "conv1", row))
    for stage, depth in enumerate(net.depths, start=2):
        if stage > 2:
            x = _transition(x, f"pool{stage - 1}", row)
        for number in range(1, depth + 1):
            x = _layer(x, net.growth, f"conv{stage}_block{number}", row, dropout_rate)
    x = layers.BatchNormalization(epsilon=row.epsilon, momentum=row.momentum, name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    return finish(x, inputs, face)


def _check_sides(inputs: Any, transitions: int, stem: int) -> None:
    """Each transition halves the sides, which the stem has divided, and rounds down."""
    least = (2**transitions - 1) * stem + 1
    if any(side is not None and side < least for side in inputs.shape[1:3]):
        raise ValueError(f"this DenseNet needs sides of {least} or more, not {tuple(inputs.shape[1:3])}")


def _layer(x: Any, growth: int, name: str, row: Variant, dropout: float) -> Any:
    """[x, F(x)], with F a 1×1 and a 3×3 behind their activations."""
    new = conv(_activate(x, f"{name}_0", row), BOTTLENECK * growth, 1, f"{name}_1_conv")
    new = conv(_activate(new, f"{name}_1", row), growth, 3, f"{name}_2_conv")
    new = layers.Dropout(dropout, name=f"{name}_2_dropout")(new) if dropout else new
    return layers.Concatenate(name=f"{name}_concat")([x, new])


def _transition(x: Any, name: str, row: Variant) -> Any:
    """Between dense blocks: fewer channels, half the sides."""
    x = conv(_activate(x, name, row), x.shape[-1] // COMPRESSION, 1, f"{name}_conv")
    return layers.AveragePooling2D(2, 2, name=f"{name}_pool")(x)


def _activate(x: Any, name: str, row: Variant) -> Any:
    x = layers.BatchNormalization(epsilon=row.epsilon, momentum=row.momentum, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


OPTIONS = {"variant": "paper", "dropout_rate": 0.0}

DenseNet121 = constructor("densenet121", build, TABLE, OPTIONS)
DenseNet169 = constructor("densenet169", build, TABLE, OPTIONS)
DenseNet201 = constructor("densenet201", build, TABLE, OPTIONS)
DenseNet264 = constructor("densenet264", build, TABLE, OPTIONS)
DenseNetBC40_12 = constructor("densenetbc40_12", build, TABLE, OPTIONS)
DenseNetBC100_12 = constructor("densenetbc100_12", build, TABLE, OPTIONS)
DenseNetBC250_24 = constructor("densenetbc250_24", build, TABLE, OPTIONS)
DenseNetBC190_40 = constructor("densenetbc190_40", build, TABLE, OPTIONS)
