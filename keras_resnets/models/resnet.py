"""Residual and plain networks of He et al. 2015, "Deep Residual Learning" (arXiv:1512.03385).

ImageNet networks: Table 1 and Figure 3. CIFAR networks: Section 4.2 and Table 6. A plain network is the
same builder without the shortcut. resnext.py, wide_resnet.py, se_resnet.py, resnet_d.py and resnet_rs.py
have rows of their own for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.constructor import constructor, pick_variant, shortcut_option
from keras_resnets.models.layers import (
    Face,
    allow_depth,
    conv,
    drop_path,
    drop_path_rates,
    finish,
    identity,
    image_input,
    max_pool_stem,
)

with extra("tensorflow"):
    from keras import layers


class Conv(NamedTuple):
    """One weight layer of a block: its kernel, its output channels as a multiple of the stage's width, its groups."""

    kernel: int
    expansion: int = 1
    groups: int = 1


class Stem(NamedTuple):
    """What stands in front of the blocks: (kernel, channels, strides) of each convolution, and pooling or not."""

    convs: tuple[tuple[int, int, int], ...]
    pool: bool


class Net(NamedTuple):
    """One column of a paper's tables."""

    convs: tuple[Conv, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: str | None  # A, B or C of Section 4.1; None: the plain network
    stem: Stem
    pooled_shortcut: bool = False  # ResNet-D: a projection halves the sides by averaging, not by skipping
    squeeze: float = 0.0  # squeeze-and-excitation: share of a block's channels behind the bottleneck


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
# 7×7 and pooling for 224 px, 3×3 for 32 px
STEM_224 = Stem(((7, 64, 2),), pool=True)
STEM_32 = Stem(((3, 16, 1),), pool=False)
# stage      conv2 conv3 conv4 conv5   (side at 224 px: 56 28 14 7)
IMAGENET = (64, 128, 256, 512)
# stage   conv2 conv3 conv4            (side at 32 px: 32 16 8)
CIFAR = (16, 32, 64)

TABLE = {
    "resnet18": Net(BASIC, (2, 2, 2, 2), IMAGENET, "B", STEM_224),
    "resnet34": Net(BASIC, (3, 4, 6, 3), IMAGENET, "B", STEM_224),
    "resnet50": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B", STEM_224),
    "resnet101": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, "B", STEM_224),
    "resnet152": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, "B", STEM_224),
    "plainnet18": Net(BASIC, (2, 2, 2, 2), IMAGENET, None, STEM_224),
    "plainnet34": Net(BASIC, (3, 4, 6, 3), IMAGENET, None, STEM_224),
    "plainnet50": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, None, STEM_224),
    "plainnet101": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, None, STEM_224),
    "plainnet152": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, None, STEM_224),
    # depth = 6n + 2
    "resnet20": Net(BASIC, (3, 3, 3), CIFAR, "A", STEM_32),
    "resnet32": Net(BASIC, (5, 5, 5), CIFAR, "A", STEM_32),
    "resnet44": Net(BASIC, (7, 7, 7), CIFAR, "A", STEM_32),
    "resnet56": Net(BASIC, (9, 9, 9), CIFAR, "A", STEM_32),
    "resnet110": Net(BASIC, (18, 18, 18), CIFAR, "A", STEM_32),
    "resnet1202": Net(BASIC, (200, 200, 200), CIFAR, "A", STEM_32),
    "plainnet20": Net(BASIC, (3, 3, 3), CIFAR, None, STEM_32),
    "plainnet32": Net(BASIC, (5, 5, 5), CIFAR, None, STEM_32),
    "plainnet44": Net(BASIC, (7, 7, 7), CIFAR, None, STEM_32),
    "plainnet56": Net(BASIC, (9, 9, 9), CIFAR, None, STEM_32),
    "plainnet110": Net(BASIC, (18, 18, 18), CIFAR, None, STEM_32),
}


def build(
    net: Net,
    face: Face,
    *,
    variant: str,
    shortcut: str | None = None,
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
) -> Any:
    """The Keras model of one row of a table."""
    net = net._replace(shortcut=shortcut_option(net.shortcut, shortcut))
    if drop_path_rate and net.shortcut is None:
        raise ValueError(f"drop_path_rate={drop_path_rate!r}: a plain network has no shortcut that would remain")
    row = pick_variant(VARIANTS, variant)
    allow_depth(sum(net.depths))
    rates = iter(drop_path_rates(drop_path_rate, sum(net.depths)))
    inputs = image_input(face, (32, 32, 3) if net.stem is STEM_32 else (224, 224, 3))
    x = _stem(inputs, net.stem, row)
    for stage, (depth, width) in enumerate(zip(net.depths, net.widths, strict=True), start=2):
        for number in range(1, depth + 1):
            strides = 2 if stage > 2 and number == 1 else 1
            x = _block(x, net, width, strides, f"conv{stage}_block{number}", row, next(rates))
    return finish(x, inputs, face, dropout_rate)


def _stem(x: Any, stem: Stem, row: Variant) -> Any:
    for number, (kernel, channels, strides) in enumerate(stem.convs, start=1):
        name = "conv1" if len(stem.convs) == 1 else f"conv1_{number}"
        x = _conv_bn(x, channels, kernel, name, row, strides)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return max_pool_stem(x) if stem.pool else x


def _block(x: Any, net: Net, width: int, strides: int, name: str, row: Variant, drop: float) -> Any:
    """y = ReLU(F(x) + x), or ReLU(F(x)) in a plain network."""
    shortcut = _shortcut(x, net, width, strides, name, row)
    at = _strided_conv(net.convs, row)
    for i, layer in enumerate(net.convs):
        channels = width * layer.expansion
        step = strides if i == at else 1
        x = _conv_bn(x, channels, layer.kernel, f"{name}_{i + 1}", row, step, layer.groups)
        if i < len(net.convs) - 1:
            x = layers.ReLU(name=f"{name}_{i + 1}_relu")(x)
    if net.squeeze:
        x = _squeeze_and_excite(x, net.squeeze, name)
    if shortcut is not None:
        x = layers.Add(name=f"{name}_add")([shortcut, drop_path(x, drop, name)])
    return layers.ReLU(name=f"{name}_out")(x)


def _strided_conv(convs: tuple[Conv, ...], row: Variant) -> int:
    kernels = [layer.kernel for layer in convs]
    return kernels.index(row.stride_at) if row.stride_at in kernels else 0


def _squeeze_and_excite(x: Any, share: float, name: str) -> Any:
    """Weigh channels by what all pixels say (Hu et al. 2018, arXiv:1709.01507, Figure 2)."""
    channels = x.shape[-1]
    # timm's rounding: eighths, and eight at least.
    squeezed = max(8, int(channels * share + 4) // 8 * 8)
    weight = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze")(x)
    weight = layers.Conv2D(squeezed, 1, activation="relu", name=f"{name}_se_reduce")(weight)
    weight = layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_se_expand")(weight)
    return layers.Multiply(name=f"{name}_se_scale")([x, weight])


def _shortcut(x: Any, net: Net, width: int, strides: int, name: str, row: Variant) -> Any:
    """Section 4.1: identity; where shapes differ, zeros in the new channels (A) or a projection (B);
    or projections everywhere (C)."""
    if net.shortcut is None:
        return None
    channels = width * net.convs[-1].expansion
    if net.shortcut == "A" or (net.shortcut == "B" and x.shape[-1] == channels):
        return identity(x, channels, strides, name)
    if net.pooled_shortcut and strides > 1:
        x = layers.AveragePooling2D(2, strides, "same", name=f"{name}_0_pool")(x)
        strides = 1
    return _conv_bn(x, channels, 1, f"{name}_0", row, strides)


def _conv_bn(x: Any, channels: int, kernel: int, name: str, row: Variant, strides: int = 1, groups: int = 1) -> Any:
    x = conv(x, channels, kernel, f"{name}_conv", strides=strides, bias=row.bias, groups=groups)
    return layers.BatchNormalization(epsilon=row.epsilon, momentum=row.momentum, name=f"{name}_bn")(x)


# Options of a residual network, and of a plain one, which has no shortcut to choose or to leave alone.
RESIDUAL = {"variant": "v1.5", "shortcut": None, "drop_path_rate": 0.0, "dropout_rate": 0.0}
PLAIN = {"variant": "v1.5", "shortcut": None, "dropout_rate": 0.0}

ResNet18 = constructor("resnet18", build, TABLE, RESIDUAL)
ResNet34 = constructor("resnet34", build, TABLE, RESIDUAL)
ResNet50 = constructor("resnet50", build, TABLE, RESIDUAL)
ResNet101 = constructor("resnet101", build, TABLE, RESIDUAL)
ResNet152 = constructor("resnet152", build, TABLE, RESIDUAL)
PlainNet18 = constructor("plainnet18", build, TABLE, PLAIN)
PlainNet34 = constructor("plainnet34", build, TABLE, PLAIN)
PlainNet50 = constructor("plainnet50", build, TABLE, PLAIN)
PlainNet101 = constructor("plainnet101", build, TABLE, PLAIN)
PlainNet152 = constructor("plainnet152", build, TABLE, PLAIN)
ResNet20 = constructor("resnet20", build, TABLE, RESIDUAL)
ResNet32 = constructor("resnet32", build, TABLE, RESIDUAL)
ResNet44 = constructor("resnet44", build, TABLE, RESIDUAL)
ResNet56 = constructor("resnet56", build, TABLE, RESIDUAL)
ResNet110 = constructor("resnet110", build, TABLE, RESIDUAL)
ResNet1202 = constructor("resnet1202", build, TABLE, RESIDUAL)
PlainNet20 = constructor("plainnet20", build, TABLE, PLAIN)
PlainNet32 = constructor("plainnet32", build, TABLE, PLAIN)
PlainNet44 = constructor("plainnet44", build, TABLE, PLAIN)
PlainNet56 = constructor("plainnet56", build, TABLE, PLAIN)
PlainNet110 = constructor("plainnet110", build, TABLE, PLAIN)
