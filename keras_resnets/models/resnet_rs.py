"""ResNet-RS of Bello et al. 2021, "Revisiting ResNets" (arXiv:2103.07579).

ResNet-D with squeeze-and-excitation (a quarter of the channels) and a strided 3×3 in place of the stem's pooling;
trained with stochastic depth and dropout, whose rates the paper raises with the size.
"""

from keras_resnets.models.constructor import constructor
from keras_resnets.models.resnet import BOTTLENECK, IMAGENET, RESIDUAL, Net, Stem, build

RS = Stem(((3, 32, 2), (3, 32, 1), (3, 64, 1), (3, 64, 2)), pool=False)
QUARTER = 1 / 4
TABLE = {
    "resnetrs50": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B", RS, pooled_shortcut=True, squeeze=QUARTER),
    "resnetrs101": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, "B", RS, pooled_shortcut=True, squeeze=QUARTER),
    "resnetrs152": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, "B", RS, pooled_shortcut=True, squeeze=QUARTER),
    "resnetrs200": Net(BOTTLENECK, (3, 24, 36, 3), IMAGENET, "B", RS, pooled_shortcut=True, squeeze=QUARTER),
}

ResNetRS50 = constructor("resnetrs50", build, TABLE, RESIDUAL)
ResNetRS101 = constructor("resnetrs101", build, TABLE, RESIDUAL)
ResNetRS152 = constructor("resnetrs152", build, TABLE, RESIDUAL)
ResNetRS200 = constructor("resnetrs200", build, TABLE, RESIDUAL)
