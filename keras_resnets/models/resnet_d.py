"""ResNet-C and -D of He et al. 2018, "Bag of Tricks" (arXiv:1812.01187), Section 4 and Figure 2.

C: three 3×3 in place of the 7×7 stem. D: that, and shortcuts that average before they project. (B, the stride on
the 3×3, is the variant "v1.5" of every ResNet here.) The paper has 50 layers; the other depths are timm's.
"""

from keras_resnets.models.constructor import constructor
from keras_resnets.models.resnet import BASIC, BOTTLENECK, IMAGENET, RESIDUAL, Net, Stem, build

DEEP = Stem(((3, 32, 2), (3, 32, 1), (3, 64, 1)), pool=True)
TABLE = {
    "resnet50c": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B", DEEP),
    "resnet18d": Net(BASIC, (2, 2, 2, 2), IMAGENET, "B", DEEP, pooled_shortcut=True),
    "resnet34d": Net(BASIC, (3, 4, 6, 3), IMAGENET, "B", DEEP, pooled_shortcut=True),
    "resnet50d": Net(BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B", DEEP, pooled_shortcut=True),
    "resnet101d": Net(BOTTLENECK, (3, 4, 23, 3), IMAGENET, "B", DEEP, pooled_shortcut=True),
    "resnet152d": Net(BOTTLENECK, (3, 8, 36, 3), IMAGENET, "B", DEEP, pooled_shortcut=True),
}

ResNet50C = constructor("resnet50c", build, TABLE, RESIDUAL)
ResNet18D = constructor("resnet18d", build, TABLE, RESIDUAL)
ResNet34D = constructor("resnet34d", build, TABLE, RESIDUAL)
ResNet50D = constructor("resnet50d", build, TABLE, RESIDUAL)
ResNet101D = constructor("resnet101d", build, TABLE, RESIDUAL)
ResNet152D = constructor("resnet152d", build, TABLE, RESIDUAL)
