"""VGG networks of Simonyan and Zisserman 2014 (arXiv:1409.1556), Table 1: columns A, B, D and E.

Plain networks: the depth at which the residual idea started. The names with _BN have a batch norm behind each
convolution, as torchvision's; layer names are those of keras.applications.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.models.constructor import constructor
from keras_resnets.models.layers import Face, checked_rate, classify, conv, finish, image_input

with extra("tensorflow"):
    from keras import layers


class Net(NamedTuple):
    """One column of Table 1: convolutions of a stage, each stage ending in pooling."""

    depths: tuple[int, int, int, int, int]
    batch_norm: bool = False


# stage    1    2    3    4    5     (side at 224 px: 224 112 56 28 14, and 7 behind the last pooling)
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 4096  # of the two dense layers in front of the classifier
TABLE = {
    "vgg11": Net((1, 1, 2, 2, 2)),
    "vgg13": Net((2, 2, 2, 2, 2)),
    "vgg16": Net((2, 2, 3, 3, 3)),
    "vgg19": Net((2, 2, 4, 4, 4)),
    "vgg11_bn": Net((1, 1, 2, 2, 2), batch_norm=True),
    "vgg13_bn": Net((2, 2, 2, 2, 2), batch_norm=True),
    "vgg16_bn": Net((2, 2, 3, 3, 3), batch_norm=True),
    "vgg19_bn": Net((2, 2, 4, 4, 4), batch_norm=True),
}


def build(net: Net, face: Face, *, dropout_rate: float) -> Any:
    """The Keras model of one row of TABLE."""
    checked_rate("dropout_rate", dropout_rate)
    inputs = image_input(face, (224, 224, 3))
    _check_sides(inputs, face.include_top)
    x = inputs
    for stage, (depth, width) in enumerate(zip(net.depths, WIDTHS, strict=True), start=1):
        for number in range(1, depth + 1):
            name = f"block{stage}_conv{number}"
            x = conv(x, width, 3, name, bias=True)
            if net.batch_norm:
                x = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.MaxPooling2D(2, 2, name=f"block{stage}_pool")(x)
    if not face.include_top:
        return finish(x, inputs, face)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(HIDDEN, activation="relu", kernel_initializer="he_normal", name=name)(x)
        x = layers.Dropout(dropout_rate, name=f"{name}_dropout")(x) if dropout_rate else x
    return classify(x, inputs, face, 0.0)


def _check_sides(inputs: Any, include_top: bool) -> None:
    sides = inputs.shape[1:3]
    if any(side is not None and side < 32 for side in sides):
        raise ValueError(f"VGG halves the sides five times: they must be 32 or more, not {tuple(sides)}")
    if include_top and None in sides:
        raise ValueError(
            "VGG's dense layers need a fixed input size: give input_shape without None, or include_top=False"
        )


OPTIONS = {"dropout_rate": 0.5}

VGG11 = constructor("vgg11", build, TABLE, OPTIONS)
VGG13 = constructor("vgg13", build, TABLE, OPTIONS)
VGG16 = constructor("vgg16", build, TABLE, OPTIONS)
VGG19 = constructor("vgg19", build, TABLE, OPTIONS)
VGG11_BN = constructor("vgg11_bn", build, TABLE, OPTIONS)
VGG13_BN = constructor("vgg13_bn", build, TABLE, OPTIONS)
VGG16_BN = constructor("vgg16_bn", build, TABLE, OPTIONS)
VGG19_BN = constructor("vgg19_bn", build, TABLE, OPTIONS)
