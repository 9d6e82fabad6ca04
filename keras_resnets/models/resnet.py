"""Residual and plain networks of He et al. 2015, "Deep Residual Learning" (arXiv:1512.03385).

ImageNet networks: Table 1 and Figure 3. CIFAR networks: Section 4.2 and Table 6. A plain network is the
same builder without the shortcut.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.constructor import constructor, pick_variant, shortcut_option
from keras_resnets.models.layers import Face, allow_depth, conv, finish, identity, image_input, max_pool_stem

with extra("tensorflow"):
    from keras import layers


class Conv(NamedTuple):
    """One weight layer of a block: its kernel, and its output channels as a multiple of the stage's width."""

    kernel: int
    expansion: int = 1


class Net(NamedTuple):
    """One column of the paper's tables."""

    convs: tuple[Conv, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: str | None  # A, B or C of Section 4.1; None: the plain network


class Variant(NamedTuple):
    """What implementations of the same table do differently; weights of one are wrong in another."""

    stride_at: int  # which kernel of a bottleneck carries the stage's stride: the first 1×1, or the 3×3
    bias: bool
    epsilon: float
    momentum: float


VARIANTS = {
    # torchvision, timm, KerasHub, NVIDIA: half a point better than the paper's; the default
    "v1.5": Variant(stride_at=3, bias=False, epsilon=1e-5, momentum=0.9),
    "paper": Variant(stride_at=1, bias=False, epsilon=1e-5, momentum=0.9),
    # keras.applications: the paper's stride, biased convolutions
    "keras": Variant(stride_at=1, bias=True, epsilon=1.001e-5, momentum=0.99),
}

BASIC = (Conv(3), Conv(3))
BOTTLENECK = (Conv(1), Conv(3), Conv(1, expansion=4))
# stage      conv2 conv3 conv4 conv5   (side at 224 px: 56 28 14 7)
IMAGENET = (64, 128, 256, 512)
# stage   conv2 conv3 conv4            (side at 32 px: 32 16 8)
CIFAR = (16, 32, 64)

TABLE = {
    "resnet18": Net(BASIC, (2, 2, 2, 2), IMAGENET, "B"),
    "resnet34": Net(BASIC, (3, 4, 6, 3), IMAGENET, "B"),
    "resnet50": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B"),
    "resnet101": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, "B"),
    "resnet152": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, "B"),
    "plainnet18": Net(BASIC, (2, 2, 2, 2), IMAGENET, None),
    "plainnet34": Net(BASIC, (3, 4, 6, 3), IMAGENET, None),
    "plainnet50": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, None),
    "plainnet101": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, None),
    "plainnet152": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, None),
    # depth = 6n + 2
    "resnet20": Net(BASIC, (3, 3, 3), CIFAR, "A"),
    "resnet32": Net(BASIC, (5, 5, 5), CIFAR, "A"),
    "resnet44": Net(BASIC, (7, 7, 7), CIFAR, "A"),
    "resnet56": Net(BASIC, (9, 9, 9), CIFAR, "A"),
    "resnet110": Net(BASIC, (18, 18, 18), CIFAR, "A"),
    "resnet1202": Net(BASIC, (200, 200, 200), CIFAR, "A"),
    "plainnet20": Net(BASIC, (3, 3, 3), CIFAR, None),
    "plainnet32": Net(BASIC, (5, 5, 5), CIFAR, None),
    "plainnet44": Net(BASIC, (7, 7, 7), CIFAR, None),
    "plainnet56": Net(BASIC, (9, 9, 9), CIFAR, None),
    "plainnet110": Net(BASIC, (18, 18, 18), CIFAR, None),
}


def build(net: Net, face: Face, variant: str, shortcut: str | None) -> Any:
    """The Keras model of one row of TABLE."""
    net = net._replace(shortcut=shortcut_option(net.shortcut, shortcut))
    row = pick_variant(VARIANTS, variant)
    allow_depth(sum(net.depths))
    imagenet = net.widths == IMAGENET
    inputs = image_input(face, (224, 224, 3) if imagenet else (32, 32, 3))
    x = _conv_bn(inputs, net.widths[0], 7 if imagenet else 3, "conv1", row, strides=2 if imagenet else 1)
    x = layers.ReLU(name="conv1_relu")(x)
    if imagenet:
        x = max_pool_stem(x)
    for stage, (depth, width) in enumerate(zip(net.depths, net.widths, strict=True), start=2):
        for number in range(1, depth + 1):
            strides = 2 if stage > 2 and number == 1 else 1
            x = _block(x, net, width, strides, f"conv{stage}_block{number}", row)
    return finish(x, inputs, face)


def _block(x: Any, net: Net, width: int, strides: int, name: str, row: Variant) -> Any:
    """y = ReLU(F(x) + x), or ReLU(F(x)) in a plain network."""
    shortcut = _shortcut(x, net, width, strides, name, row)
    at = _strided_conv(net.convs, row)
    for i, layer in enumerate(net.convs):
        channels = width * layer.expansion
        x = _conv_bn(x, channels, layer.kernel, f"{name}_{i + 1}", row, strides=strides if i == at else 1)
        if i < len(net.convs) - 1:
            x = layers.ReLU(name=f"{name}_{i + 1}_relu")(x)
    if shortcut is not None:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def _strided_conv(convs: tuple[Conv, ...], row: Variant) -> int:
    kernels = [layer.kernel for layer in convs]
    return kernels.index(row.stride_at) if row.stride_at in kernels else 0


def _shortcut(x: Any, net: Net, width: int, strides: int, name: str, row: Variant) -> Any:
    """Section 4.1: identity; where shapes differ, zeros in the new channels (A) or a projection (B);
    or projections everywhere (C)."""
    if net.shortcut is None:
        return None
    channels = width * net.convs[-1].expansion
    if net.shortcut == "C" or (net.shortcut == "B" and x.shape[-1] != channels):
        return _conv_bn(x, channels, 1, f"{name}_0", row, strides=strides)
    return identity(x, channels, strides, name)


def _conv_bn(x: Any, channels: int, kernel: int, name: str, row: Variant, strides: int = 1) -> Any:
    x = conv(x, channels, kernel, f"{name}_conv", strides=strides, bias=row.bias)
    return layers.BatchNormalization(epsilon=row.epsilon, momentum=row.momentum, name=f"{name}_bn")(x)


ResNet18 = constructor("resnet18", build, TABLE, "v1.5")
ResNet34 = constructor("resnet34", build, TABLE, "v1.5")
ResNet50 = constructor("resnet50", build, TABLE, "v1.5")
ResNet101 = constructor("resnet101", build, TABLE, "v1.5")
ResNet152 = constructor("resnet152", build, TABLE, "v1.5")
PlainNet18 = constructor("plainnet18", build, TABLE, "v1.5")
PlainNet34 = constructor("plainnet34", build, TABLE, "v1.5")
PlainNet50 = constructor("plainnet50", build, TABLE, "v1.5")
PlainNet101 = constructor("plainnet101", build, TABLE, "v1.5")
PlainNet152 = constructor("plainnet152", build, TABLE, "v1.5")
ResNet20 = constructor("resnet20", build, TABLE, "v1.5")
ResNet32 = constructor("resnet32", build, TABLE, "v1.5")
ResNet44 = constructor("resnet44", build, TABLE, "v1.5")
ResNet56 = constructor("resnet56", build, TABLE, "v1.5")
ResNet110 = constructor("resnet110", build, TABLE, "v1.5")
ResNet1202 = constructor("resnet1202", build, TABLE, "v1.5")
PlainNet20 = constructor("plainnet20", build, TABLE, "v1.5")
PlainNet32 = constructor("plainnet32", build, TABLE, "v1.5")
PlainNet44 = constructor("plainnet44", build, TABLE, "v1.5")
PlainNet56 = constructor("plainnet56", build, TABLE, "v1.5")
PlainNet110 = constructor("plainnet110", build, TABLE, "v1.5")
