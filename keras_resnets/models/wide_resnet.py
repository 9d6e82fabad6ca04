"""Wide residual networks of Zagoruyko and Komodakis 2016 (arXiv:1605.07146).

CIFAR networks WRN-depth-width, Table 1: pre-activation blocks, with dropout between their convolutions.
ImageNet networks: ResNet-50 (the paper's) and -101 (torchvision's) with bottlenecks twice as wide.
"""

from keras_resnets.models import resnet, resnet_v2
from keras_resnets.models.constructor import constructor
from keras_resnets.models.resnet import IMAGENET, RESIDUAL, STEM_224, Conv
from keras_resnets.models.resnet_v2 import BASIC

WIDE_BOTTLENECK = (Conv(1, expansion=2), Conv(3, expansion=2), Conv(1, expansion=4))
TABLE = {
    # depth = 6n + 4: n blocks a stage; widths 16k, 32k, 64k
    "wrn16_4": resnet_v2.Net(BASIC, (2, 2, 2), (64, 128, 256), 1, stem=16),
    "wrn16_8": resnet_v2.Net(BASIC, (2, 2, 2), (128, 256, 512), 1, stem=16),
    "wrn28_10": resnet_v2.Net(BASIC, (4, 4, 4), (160, 320, 640), 1, stem=16),
    "wrn40_4": resnet_v2.Net(BASIC, (6, 6, 6), (64, 128, 256), 1, stem=16),
    "wideresnet50_2": resnet.Net(WIDE_BOTTLENECK, (3, 4, 6, 3), IMAGENET, "B", STEM_224),
    "wideresnet101_2": resnet.Net(WIDE_BOTTLENECK, (3, 4, 23, 3), IMAGENET, "B", STEM_224),
}
DROPOUT = {"drop_path_rate": 0.0, "dropout_rate": 0.0}

WRN16_4 = constructor("wrn16_4", resnet_v2.build, TABLE, DROPOUT)
WRN16_8 = constructor("wrn16_8", resnet_v2.build, TABLE, DROPOUT)
WRN28_10 = constructor("wrn28_10", resnet_v2.build, TABLE, DROPOUT)
WRN40_4 = constructor("wrn40_4", resnet_v2.build, TABLE, DROPOUT)
WideResNet50_2 = constructor("wideresnet50_2", resnet.build, TABLE, RESIDUAL)
WideResNet101_2 = constructor("wideresnet101_2", resnet.build, TABLE, RESIDUAL)
