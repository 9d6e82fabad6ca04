"""ResNeXt of Xie et al. 2017, "Aggregated Residual Transformations" (arXiv:1611.05431), Table 1.

A ResNet whose 3×3 is split into groups, with wider bottlenecks. The paper has 32x4d; 32x8d is torchvision's.
"""

from keras_resnets.models.constructor import constructor
from keras_resnets.models.resnet import IMAGENET, RESIDUAL, STEM_224, Conv, Net, build

# cardinality × width of a group in conv2: the 3×3 has as many channels as both multiplied, doubling by stage
C32x4d = (Conv(1, expansion=2), Conv(3, expansion=2, groups=32), Conv(1, expansion=4))
C32x8d = (Conv(1, expansion=4), Conv(3, expansion=4, groups=32), Conv(1, expansion=4))
TABLE = {
    "resnext50_32x4d": Net(C32x4d, (3, 4, 6, 3), IMAGENET, "B", STEM_224),
    "resnext101_32x8d": Net(C32x8d, (3, 4, 23, 3), IMAGENET, "B", STEM_224),
}

ResNeXt50_32x4d = constructor("resnext50_32x4d", build, TABLE, RESIDUAL)
ResNeXt101_32x8d = constructor("resnext101_32x8d", build, TABLE, RESIDUAL)
