"""Pre-activation residual networks of He et al. 2016, "Identity Mappings" (arXiv:1603.05027).

A unit is x + F(x) with batch norm and ReLU in front of each weight layer, so that nothing stands on the
main path. ImageNet networks to 200 layers (Section 5), CIFAR networks to 1001 (Table 4). wide_resnet.py has
rows of its own for this builder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.constructor import constructor, pick_variant, shortcut_option
from keras_resnets.models.layers import (
    Face,
    allow_depth,
    checked_rate,
    conv,
    drop_path,
    drop_path_rates,
    finish,
    identity,
    image_input,
    max_pool_stem,
)

with extra("tensorflow"):
    from keras import layers, ops


class Net(NamedTuple):
    """One network: its kernels a block, blocks a stage, channels a stage inside and between blocks."""

    kernels: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    expansion: int
    stem: int = 0  # channels in front of the first block; 0: as inside it
    shortcut: str | None = "B"  # A, B or C of He et al. 2015


class Variant(NamedTuple):
    """What implementations of the same table do differently; weights of one are wrong in another."""

    strided_block: str  # which block of a stage halves the sides: its first, or its last
    bias: bool  # biases where no batch norm follows
    zero_padded_pool: bool  # whether the padding of the stem's pooling takes part in its maximum
    epsilon: float
    momentum: float


VARIANTS = {
    # the authors' code, and timm's resnetv2_*; the default
    "paper": Variant("first", bias=False, zero_padded_pool=False, epsilon=1e-5, momentum=0.9),
    # keras.applications: the last block of conv2, conv3 and conv4 halves the sides
    "keras": Variant("last", bias=True, zero_padded_pool=True, epsilon=1.001e-5, momentum=0.99),
}

BASIC = (3, 3)
BOTTLENECK = (1, 3, 1)
# stage      conv2 conv3 conv4 conv5   (side at 224 px: 56 28 14 7)
IMAGENET = (64, 128, 256, 512)
# stage   conv2 conv3 conv4            (side at 32 px: 32 16 8)
CIFAR = (16, 32, 64)

TABLE = {
    "resnet18v2": Net(BASIC, (2, 2, 2, 2), IMAGENET, 1),
    "resnet34v2": Net(BASIC, (3, 4, 6, 3), IMAGENET, 1),
    "resnet50v2": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, 4),
    "resnet101v2": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, 4),
    "resnet152v2": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, 4),
    "resnet200v2": Net(BOTTLENECK, (3, 24, 36, 3), IMAGENET, 4),
    # depth = 6n + 2 with basic blocks, 9n + 2 with bottlenecks
    "resnet20v2": Net(BASIC, (3, 3, 3), CIFAR, 1),
    "resnet56v2": Net(BASIC, (9, 9, 9), CIFAR, 1),
    "resnet110v2": Net(BASIC, (18, 18, 18), CIFAR, 1),
    "resnet164v2": Net(BOTTLENECK, (18, 18, 18), CIFAR, 4),
    "resnet1001v2": Net(BOTTLENECK, (111, 111, 111), CIFAR, 4),
}


def build(
    net: Net,
    face: Face,
    *,
    variant: str = "paper",
    shortcut: str | None = None,
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
) -> Any:
    """The Keras model of one row of a table; `dropout_rate` is that between the convolutions of a block."""
    net = net._replace(shortcut=shortcut_option(net.shortcut, shortcut))
    row = pick_variant(VARIANTS, variant)
    allow_depth(sum(net.depths))
    rates = iter(drop_path_rates(drop_path_rate, sum(net.depths)))
    checked_rate("dropout_rate", dropout_rate)
    imagenet = net.widths == IMAGENET
    inputs = image_input(face, (224, 224, 3) if imagenet else (32, 32, 3))
    kernel, strides = (7, 2) if imagenet else (3, 1)
    x = conv(inputs, net.stem or net.widths[0], kernel, "conv1_conv", strides=strides, bias=row.bias)
    if imagenet:
        x = max_pool_stem(x) if row.zero_padded_pool else _max_pool_signed(x)
    for stage, (depth, width) in enumerate(zip(net.depths, net.widths, strict=True), start=2):
        strided = _strided_block(stage, depth, len(net.depths) + 1, row)
        for number in range(1, depth + 1):
            drops = next(rates), dropout_rate
            x = _block(x, net, width, 2 if number == strided else 1, f"conv{stage}_block{number}", row, drops)
    x = _activate(x, "post", row)
    return finish(x, inputs, face)


def _max_pool_signed(x: Any) -> Any:
    """The 3×3 maximum with stride 2 of values that may be negative, where a padding of zeros would win.

    Repeating the edge changes no maximum, since what is repeated is in the same window.
    """
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _strided_block(stage: int, depth: int, last_stage: int, row: Variant) -> int | None:
    """Number of the block of a stage that halves the sides, if any does."""
    if row.strided_block == "first":
        return 1 if stage > 2 else None
    return depth if stage < last_stage else None


def _block(x: Any, net: Net, width: int, strides: int, name: str, row: Variant, drops: tuple[float, float]) -> Any:
    """y = x + F(x)."""
    drop, dropout = drops
    channels = width * net.expansion
    residual = _activate(x, f"{name}_preact", row)
    if net.shortcut == "C" or (net.shortcut == "B" and x.shape[-1] != channels):
        shortcut = conv(residual, channels, 1, f"{name}_0_conv", strides=strides, bias=row.bias)
    else:
        shortcut = identity(x, channels, strides, name)
    at = net.kernels.index(3)
    for i, kernel in enumerate(net.kernels):
        last = i == len(net.kernels) - 1
        residual = conv(
            residual,
            channels if last else width,
            kernel,
            f"{name}_{i + 1}_conv",
            strides=strides if i == at else 1,
            bias=row.bias and last,
        )
        if not last:
            residual = _activate(residual, f"{name}_{i + 1}", row)
            residual = layers.Dropout(dropout, name=f"{name}_{i + 1}_dropout")(residual) if dropout else residual
    return layers.Add(name=f"{name}_out")([shortcut, drop_path(residual, drop, name)])


def _activate(x: Any, name: str, row: Variant) -> Any:
    x = layers.BatchNormalization(epsilon=row.epsilon, momentum=row.momentum, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


RESIDUAL = {"variant": "paper", "shortcut": None, "drop_path_rate": 0.0}

ResNet18V2 = constructor("resnet18v2", build, TABLE, RESIDUAL)
ResNet34V2 = constructor("resnet34v2", build, TABLE, RESIDUAL)
ResNet50V2 = constructor("resnet50v2", build, TABLE, RESIDUAL)
ResNet101V2 = constructor("resnet101v2", build, TABLE, RESIDUAL)
ResNet152V2 = constructor("resnet152v2", build, TABLE, RESIDUAL)
ResNet200V2 = constructor("resnet200v2", build, TABLE, RESIDUAL)
ResNet20V2 = constructor("resnet20v2", build, TABLE, RESIDUAL)
ResNet56V2 = constructor("resnet56v2", build, TABLE, RESIDUAL)
ResNet110V2 = constructor("resnet110v2", build, TABLE, RESIDUAL)
ResNet164V2 = constructor("resnet164v2", build, TABLE, RESIDUAL)
ResNet1001V2 = constructor("resnet1001v2", build, TABLE, RESIDUAL)
