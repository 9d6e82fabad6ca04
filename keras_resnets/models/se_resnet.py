"""Squeeze-and-excitation networks of Hu et al. 2018 (arXiv:1709.01507), Table 1.

ResNets whose blocks weigh their channels, by a bottleneck of a sixteenth of them. The paper has 50, 101 and 152;
18 and 34 are timm's, with at least eight channels in the bottleneck.
"""

from keras_resnets.models.constructor import constructor
from keras_resnets.models.resnet import BASIC, BOTTLENECK, IMAGENET, RESIDUAL, STEM_224, Net, build

SIXTEENTH = 1 / 16
TABLE = {
    "seresnet18": Net(BASIC, (2, 2, 2, 2), IMAGENET, "B", STEM_224, squeeze=SIXTEENTH),
    "seresnet34": Net(BASIC, (3, 4, 6, 3), IMAGENET, "B", STEM_224, squeeze=SIXTEENTH),
    "seresnet50": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B", STEM_224, squeeze=SIXTEENTH),
    "seresnet101": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, "B", STEM_224, squeeze=SIXTEENTH),
    "seresnet152": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, "B", STEM_224, squeeze=SIXTEENTH),
}

SEResNet18 = constructor("seresnet18", build, TABLE, RESIDUAL)
SEResNet34 = constructor("seresnet34", build, TABLE, RESIDUAL)
SEResNet50 = constructor("seresnet50", build, TABLE, RESIDUAL)
SEResNet101 = constructor("seresnet101", build, TABLE, RESIDUAL)
SEResNet152 = constructor("seresnet152", build, TABLE, RESIDUAL)
