"""The pretrained weights that are known, one row each, with their published accuracies. Data alone.

Most are classifiers of ImageNet-1k under a permissive licence; ImageNet's own terms may apply beside it. The rows of
timm's files hold the top-1/top-5 of timm's own evaluation, at the resolutions of their protocol. The package's own are
of Fashion-MNIST; their accuracies are of its 10,000 test images, which were read once, when training had ended.
"""

from __future__ import annotations

from typing import NamedTuple

from keras_resnets import preprocessing
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.weights.records import DEFAULT_RESOLUTION, FASHION_MNIST, Result, Weights


class Protocol(NamedTuple):
    """How timm evaluates a file: the share of the image that the crop takes at each resolution, and the transform."""

    crops: dict[int, float]
    interpolation: str = "bicubic"
    half: bool = False  # mean and standard deviation of 0.5 a channel instead of ImageNet's


TV = Protocol({224: 0.875}, "bilinear")
TV2 = Protocol({176: 0.875, 224: 0.965}, "bilinear")
PLAIN = Protocol({224: 0.875})
RSB = Protocol({224: 0.95, 288: 1.0})
RSB_160 = Protocol({160: 0.95, 224: 0.95})
RSB_176 = Protocol({176: 0.9, 224: 1.0})
RSB_HALF = Protocol({224: 0.95, 288: 1.0}, half=True)
RA = Protocol({224: 0.875, 288: 0.95})
RA_256 = Protocol({256: 0.95, 320: 1.0})
RA4_34 = Protocol({224: 0.9}, half=True)
RA4_50 = Protocol({224: 0.95}, half=True)
RS_50 = Protocol({160: 0.91, 224: 0.91})
RS_101 = Protocol({192: 0.94, 288: 0.94})
RS_256 = Protocol({256: 1.0, 320: 1.0})
VIT = Protocol({224: 0.9}, half=True)
DEIT = Protocol({224: 0.9})

_CARD = "https://huggingface.co/{}"
_TABLE = "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
_RA4_PAGE = "https://huggingface.co/blog/rwightman/resnet-trick-or-treat"
_KERAS_PAGE = "https://keras.io/api/applications/"

_RSB = "ResNet strikes back (arXiv:2110.00476), recipe "
_LAMB = "LAMB, binary cross-entropy, cosine schedule with warm-up"
RECIPES = {
    "a1_in1k": f"{_RSB}A1: 600 epochs, {_LAMB}",
    "a1h_in1k": f"{_RSB}A1 with stronger dropout, stochastic depth and RandAugment: LAMB, cosine schedule with warm-up",
    "a2_in1k": f"{_RSB}A2: 300 epochs, {_LAMB}",
    "a3_in1k": f"{_RSB}A3: 100 epochs at 160 pixels, {_LAMB}",
    "b1k_in1k": f"{_RSB}B: RMSProp, step schedule with warm-up",
    "b2k_in1k": f"{_RSB}B: RMSProp, step schedule with warm-up",
    "c1_in1k": f"{_RSB}C: SGD with Nesterov momentum, adaptive gradient clipping, cosine schedule with warm-up",
    "c2_in1k": f"{_RSB}C: SGD with Nesterov momentum, adaptive gradient clipping, cosine schedule with warm-up",
    "d_in1k": f"{_RSB}D",
    "bt_in1k": "Bag of tricks (arXiv:1812.01187): SGD with Nesterov momentum, cosine schedule with warm-up",
    "ra_in1k": "timm's RandAugment recipe RA",
    "ra2_in1k": "timm's RandAugment recipe RA2: RMSProp, averaged weights, step schedule with warm-up",
    "racm_in1k": "timm's RandAugment recipe RACM",
    "ra4_e3600_r224_in1k": "timm's recipe RA4, after MobileNet-V4 small and ResNet strikes back",
    "gluon_in1k": "Apache Gluon, after Bag of tricks (arXiv:1812.01187)",
    "tv_in1k": "torchvision's first weights",
    "tv2_in1k": "torchvision's second recipe",
    "tf_in1k": "Revisiting ResNets (arXiv:2103.07579), by its authors",
    "augreg_in1k": "How to train your ViT (arXiv:2106.10270), by its authors",
    "augreg_in21k_ft_in1k": "How to train your ViT (arXiv:2106.10270): ImageNet-21k, then ImageNet-1k, by its authors",
    "augreg2_in21k_ft_in1k": "ImageNet-21k by the authors of arXiv:2106.10270, then ImageNet-1k by timm, augmented",
    "orig_in21k_ft_in1k": "The ViT paper (arXiv:2010.11929): ImageNet-21k, then ImageNet-1k, by its authors",
    "sam_in1k": "ImageNet-1k with sharpness-aware minimisation (arXiv:2106.01548), by its authors",
    "deit_fb_in1k": "DeiT (arXiv:2012.12877): ImageNet-1k, without distillation, by its authors",
    "keras_in1k": "keras.applications",
}

# Our names of what timm calls otherwise.
_TIMM = {
    "wideresnet50_2": "wide_resnet50_2",
    "wideresnet101_2": "wide_resnet101_2",
    "resnet50v2": "resnetv2_50",
    "resnet101v2": "resnetv2_101",
    "vit_ti16": "vit_tiny_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
}

# model, tag, protocol, top-1/top-5 at each of the protocol's resolutions (None: no top-5 was published there)
_Score = tuple[float, float | None]
_HUB: tuple[tuple[str, str, Protocol, tuple[_Score, ...]], ...] = (
    ("resnet18", "a1_in1k", RSB, ((71.49, 90.07), (73.16, 91.03))),
    ("resnet18", "a2_in1k", RSB, ((70.64, 89.47), (72.37, 90.59))),
    ("resnet18", "a3_in1k", RSB_160, ((65.66, 86.26), (68.25, 88.17))),
    ("resnet18", "gluon_in1k", PLAIN, ((70.84, 89.76),)),
    ("resnet18", "tv_in1k", TV, ((69.76, 89.07),)),
    ("resnet34", "a1_in1k", RSB, ((76.42, 92.87), (77.92, 93.77))),
    ("resnet34", "a2_in1k", RSB, ((75.52, 92.44), (77.15, 93.27))),
    ("resnet34", "a3_in1k", RSB_160, ((70.56, 89.52), (72.98, 91.11))),
    ("resnet34", "bt_in1k", RA, ((75.16, 92.18), (76.5, 93.35))),
    ("resnet34", "gluon_in1k", PLAIN, ((74.57, 91.98),)),
    ("resnet34", "ra4_e3600_r224_in1k", RA4_34, ((77.448, 93.502),)),
    ("resnet34", "tv_in1k", TV, ((73.32, 91.42),)),
    ("resnet50", "a1_in1k", RSB, ((80.38, 94.6), (81.22, 95.11))),
    ("resnet50", "a1h_in1k", RSB_176, ((79.27, 94.49), (80.67, 95.3))),
    ("resnet50", "a2_in1k", RSB, ((79.85, 94.56), (80.78, 94.99))),
    ("resnet50", "a3_in1k", RSB_160, ((75.96, 92.5), (78.06, 93.78))),
    ("resnet50", "b1k_in1k", RSB, ((79.52, 94.61), (80.71, 95.43))),
    ("resnet50", "b2k_in1k", RSB, ((79.38, 94.57), (80.45, 95.32))),
    ("resnet50", "bt_in1k", RA, ((78.46, 94.27), (79.63, 94.91))),
    ("resnet50", "c1_in1k", RSB, ((79.74, 94.95), (80.91, 95.55))),
    ("resnet50", "c2_in1k", RSB, ((79.88, 94.87), (80.86, 95.52))),
    ("resnet50", "d_in1k", RSB, ((79.91, 94.67), (80.97, 95.44))),
    ("resnet50", "gluon_in1k", PLAIN, ((77.58, 93.72),)),
    ("resnet50", "ra_in1k", RA, ((78.81, 94.32), (79.83, 94.97))),
    ("resnet50", "tv2_in1k", TV2, ((79.42, 94.64), (80.85, 95.43))),
    ("resnet50", "tv_in1k", TV, ((76.13, 92.86),)),
    ("resnet101", "a1_in1k", RSB, ((81.5, 95.16), (82.31, 95.63))),
    ("resnet101", "a1h_in1k", RSB, ((81.93, 95.75), (82.8, 96.32))),
    ("resnet101", "a2_in1k", RSB, ((81.32, 95.19), (82.24, 95.73))),
    ("resnet101", "a3_in1k", RSB_160, ((77.88, 93.71), (79.82, 94.62))),
    ("resnet101", "gluon_in1k", PLAIN, ((79.31, 94.53),)),
    ("resnet101", "tv2_in1k", TV2, ((79.9, 94.6), (81.9, 95.77))),
    ("resnet101", "tv_in1k", TV, ((77.38, 93.54),)),
    ("resnet152", "a1_in1k", RSB, ((81.97, 95.24), (82.74, 95.71))),
    ("resnet152", "a1h_in1k", RSB, ((82.8, 96.13), (83.46, 96.54))),
    ("resnet152", "a2_in1k", RSB, ((81.77, 95.22), (82.62, 95.75))),
    ("resnet152", "a3_in1k", RSB_160, ((78.89, 94.11), (80.56, 95.0))),
    ("resnet152", "gluon_in1k", PLAIN, ((79.68, 94.74),)),
    ("resnet152", "tv2_in1k", TV2, ((80.2, 94.64), (82.29, 96.0))),
    ("resnet152", "tv_in1k", TV, ((78.32, 94.04),)),
    ("resnext50_32x4d", "a1_in1k", RSB, ((80.53, 94.46), (81.48, 95.16))),
    ("resnext50_32x4d", "a1h_in1k", RSB, ((81.1, 95.33), (82.03, 95.94))),
    ("resnext50_32x4d", "a2_in1k", RSB, ((80.45, 94.63), (81.3, 95.11))),
    ("resnext50_32x4d", "a3_in1k", RSB_160, ((77.73, 93.32), (79.25, 94.31))),
    ("resnext50_32x4d", "gluon_in1k", PLAIN, ((79.36, 94.43),)),
    ("resnext50_32x4d", "ra_in1k", RA, ((79.76, 94.6), (80.7, 95.39))),
    ("resnext50_32x4d", "tv2_in1k", TV2, ((79.37, 94.3), (81.17, 95.34))),
    ("resnext50_32x4d", "tv_in1k", TV, ((77.61, 93.7),)),
    ("resnext101_32x8d", "tv2_in1k", TV2, ((81.98, 95.72), (82.83, 96.22))),
    ("resnext101_32x8d", "tv_in1k", TV, ((79.31, 94.52),)),
    ("wideresnet50_2", "racm_in1k", RA, ((81.45, 95.53), (82.27, 96.06))),
    ("wideresnet50_2", "tv2_in1k", TV2, ((80.43, 95.09), (81.61, 95.76))),
    ("wideresnet50_2", "tv_in1k", TV, ((78.47, 94.09),)),
    ("wideresnet101_2", "tv2_in1k", TV2, ((80.48, 94.98), (82.5, 96.02))),
    ("wideresnet101_2", "tv_in1k", TV, ((78.84, 94.28),)),
    ("seresnet50", "a1_in1k", RSB, ((80.02, 94.71), (81.1, 95.12))),
    ("seresnet50", "a2_in1k", RSB, ((80.08, 94.74), (81.1, 95.23))),
    ("seresnet50", "a3_in1k", RSB_160, ((75.1, 92.08), (77.02, 93.07))),
    ("seresnet50", "ra2_in1k", RA, ((80.26, 95.08), (81.3, 95.65))),
    ("resnet50c", "gluon_in1k", PLAIN, ((78.0, 93.99),)),
    ("resnet18d", "ra2_in1k", RA, ((72.26, 90.68), (73.81, 91.83))),
    ("resnet34d", "ra2_in1k", RA, ((77.1, 93.37), (78.43, 94.35))),
    ("resnet50d", "a1_in1k", RSB, ((80.68, 94.71), (81.44, 95.22))),
    ("resnet50d", "a2_in1k", RSB, ((80.22, 94.63), (81.18, 95.09))),
    ("resnet50d", "a3_in1k", RSB_160, ((77.22, 93.27), (78.71, 94.24))),
    ("resnet50d", "gluon_in1k", PLAIN, ((79.07, 94.48),)),
    ("resnet50d", "ra2_in1k", RA, ((80.53, 95.16), (81.37, 95.74))),
    ("resnet50d", "ra4_e3600_r224_in1k", RA4_50, ((80.958, 95.372),)),
    ("resnet101d", "gluon_in1k", PLAIN, ((80.42, 95.01),)),
    ("resnet101d", "ra2_in1k", RA_256, ((82.26, 96.07), (83.02, 96.45))),
    ("resnet152d", "gluon_in1k", PLAIN, ((80.47, 95.2),)),
    ("resnet152d", "ra2_in1k", RA_256, ((83.14, 96.38), (83.67, 96.74))),
    ("resnetrs50", "tf_in1k", RS_50, ((77.82, 93.81), (79.89, 94.97))),
    ("resnetrs101", "tf_in1k", RS_101, ((80.69, 95.24), (82.29, 96.01))),
    ("resnetrs152", "tf_in1k", RS_256, ((82.86, 96.28), (83.72, 96.61))),
    ("resnetrs200", "tf_in1k", RS_256, ((83.87, 96.75), (84.45, 97.08))),
    ("resnet50v2", "a1h_in1k", RSB_HALF, ((80.41, None), (81.398, 95.726))),
    ("resnet101v2", "a1h_in1k", RSB_HALF, ((82.042, None), (83.002, 96.454))),
    ("densenet121", "ra_in1k", RA, ((75.574, None), (76.5, 93.368))),
    ("densenet121", "tv_in1k", PLAIN, ((74.764, 92.154),)),
    ("densenet169", "tv_in1k", PLAIN, ((75.9, 93.028),)),
    ("densenet201", "tv_in1k", PLAIN, ((77.286, 93.48),)),
    ("vgg11", "tv_in1k", TV, ((69.022, 88.624),)),
    ("vgg13", "tv_in1k", TV, ((69.932, 89.25),)),
    ("vgg16", "tv_in1k", TV, ((71.592, 90.384),)),
    ("vgg19", "tv_in1k", TV, ((72.378, 90.874),)),
    ("vgg11_bn", "tv_in1k", TV, ((70.382, 89.808),)),
    ("vgg13_bn", "tv_in1k", TV, ((71.588, 90.378),)),
    ("vgg16_bn", "tv_in1k", TV, ((73.37, 91.514),)),
    ("vgg19_bn", "tv_in1k", TV, ((74.216, 91.844),)),
    ("vit_ti16", "augreg_in21k_ft_in1k", VIT, ((75.454, 92.844),)),
    ("vit_ti16", "deit_fb_in1k", DEIT, ((72.172, 91.112),)),
    ("vit_s16", "augreg_in1k", VIT, ((78.846, 94.288),)),
    ("vit_s16", "augreg_in21k_ft_in1k", VIT, ((81.384, 96.136),)),
    ("vit_s16", "deit_fb_in1k", DEIT, ((79.844, 95.044),)),
    ("vit_b16", "augreg_in1k", VIT, ((79.154, 94.09),)),
    ("vit_b16", "augreg_in21k_ft_in1k", VIT, ((84.532, 97.292),)),
    ("vit_b16", "augreg2_in21k_ft_in1k", VIT, ((85.096, 97.53),)),
    ("vit_b16", "orig_in21k_ft_in1k", VIT, ((81.786, 96.124),)),
    ("vit_b16", "sam_in1k", VIT, ((80.244, 94.756),)),
    ("vit_b16", "deit_fb_in1k", DEIT, ((81.992, 95.736),)),
)

# SHA-256 of model.safetensors, as its page on the hub states it.
_SHA256 = {
    "resnet18.a1_in1k": "80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
    "resnet18.a3_in1k": "f049dd3c2e08176be8844dd123467fa5714cff1f141dcfe0ab4975e567f9de21",
    "resnet18.gluon_in1k": "6991fcc0c58379a8496f6273b2f211e492f6af6494041fded649a482772ad2bf",
    "resnet18.tv_in1k": "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    "resnet50.a1_in1k": "773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
    "resnet50.a2_in1k": "f531f9aca4dde1b89e9a465c5b9e3b916a2d1b20a216acf3b9473d1e1212ecf6",
    "resnet50.b1k_in1k": "cd64707e0ef72aa0526ac6d46fba6495ad2088717adb47a62a0b526eb3cd3480",
    "resnet50.b2k_in1k": "0c89502f61808f6fac8c7044eb59c072877c171529fc001bc85403982115232c",
    "resnet50.d_in1k": "d8ed291891c8ee5777f68136665a4eee2f9ddeb2a9bc88acf4b1676b3bbebf55",
    "resnet50.ra_in1k": "c49195c94e4fe19545a332e706f998d836f63b5d9892cc54526df3ee9b92ba18",
    "resnet50.tv_in1k": "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    "resnet101.a1_in1k": "1ba5b660e7c175b3c27c557fc7dc8b2815be830c516815b0155f61b403f27380",
    "resnet101.a1h_in1k": "1a076c0384295e7d3704f201c5711ff245507db934230bab72ff3014a95f90fe",
    "resnet101.a2_in1k": "d44a7f2e7eaea0bee834ea5e7fd691d239057014628df0bd194c312773b92c83",
    "resnet101.a3_in1k": "846baf57eaff38823a70bf63fe58052d2d6b93bd25d3b89c4d31f6909babba0b",
    "resnet152.tv_in1k": "15897077afdf4d6334dc0c3f8e6fb483afb3faa9298c139f3c6eb29bca6ae5b2",
    "resnext50_32x4d.a1h_in1k": "b952952a7b3e856b16ebf82fb44d2aa8c502e73ec678976c9e3b970fcd530bd5",
    "resnext50_32x4d.a2_in1k": "4b4522bcca81d90e486f8cfb92213597b899d68764ce5fc08db37e3352e02a7d",
    "resnext50_32x4d.a3_in1k": "55480d1612cf33904614f2a3891a0853022cb78c95a3ad734e185ae6575ee545",
    "resnext50_32x4d.tv_in1k": "c0d85cba49c0e9dedbcf6d4e572e2c5ea5eb68e9d64d0564811fd54d4f72939a",
    "resnext101_32x8d.tv_in1k": "71c7427e233904ad828b768b9683876dc71f143876cbadaa26428bfea3560fc3",
    "wideresnet50_2.tv_in1k": "df6fb6c4824769769de18e14088475fd6ee94236849aa4e5d8022ba9d9a9a16c",
    "wideresnet101_2.tv2_in1k": "0438046a3b7bb8166e6564dec811985d595f3098c9970181305945e0efa964c3",
    "seresnet50.a2_in1k": "ff82ee22e5b6c607fd984f63b83a9a8b55787b2703c4683a5cd51297d27e9460",
    "resnet18d.ra2_in1k": "0ad5d924c4269ad863590b6ccdd19f5fb48d0bae695c1dd6751de0b0282d8361",
    "resnet50d.a1_in1k": "0b4f757b0732eb4c6584d2c3692923c3b92efe116b8a383fd4b5eb62fda660cb",
    "resnet50d.ra4_e3600_r224_in1k": "dcfb320732ed8e1e2fe689f577b4116eae0b20272d3b762a187c5999f62ac5bd",
    "resnet101d.ra2_in1k": "c2192596da2e8d652cbf0465b8694704247b524efb68ed194504af453830709c",
    "resnetrs50.tf_in1k": "cdc0ca71073acb12ea479681a3109ebb0e2548e9684bf8b9a32ec929d881f70c",
    "densenet121.tv_in1k": "c894c6d9caa317a8ca1942986dee7a16a86c77734a4d691d2abe05389cfef358",
    "vgg11.tv_in1k": "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5",
    "vgg16.tv_in1k": "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    "vgg19.tv_in1k": "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
    "vgg13_bn.tv_in1k": "7dae235e35772693cd527e7ac9ef8f6594707a14a8d26aabdb83c0baa6847861",
    "vgg16_bn.tv_in1k": "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
    "vgg19_bn.tv_in1k": "f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312",
    "vit_ti16.deit_fb_in1k": "21d4764d94f6c3ffdb6da3581115a0a1ee2d505537d96883b540e54766407c9e",
}

# Commits that hold the file; without one, the main branch is taken.
_COMMITS = {
    "resnet18.a1_in1k": "ebd61f9c7420e5b5b53262b8ce6bbe311e1e872a",
    "resnet18.tv_in1k": "a987fd6b60f845221bfff84b6f0191273ba56ead",
    "resnet50.a1_in1k": "5d9e13b8fdab4d9718bcf2c8f5c3af01878367e8",
    "resnet50.a1h_in1k": "e7a9beccdc0353b32a1825fefc87847e4530ee35",
    "resnet50.b1k_in1k": "64315a4cf47dd094bc98e521779a3f99e2f7c4f1",
    "resnet50.c2_in1k": "f431372315668a00dc32cd8aee320f9cbfe0c028",
    "resnet50.d_in1k": "1b19255347a7d36c93793d53454047e236116f82",
    "resnet50.ra_in1k": "bd3df32877dc17521c1121ab9498cdc4eebdd720",
    "resnet50.tv_in1k": "aa6c2d36d56bc0209040c02b5a7b7d7bf11d57b8",
    "resnet101.a1h_in1k": "21721ac354aff8c4fbc371f3c4e46fa8832d4d68",
    "resnext50_32x4d.a1h_in1k": "8af8dd95e2a7538fad74714fc76507d9de9de33c",
    "resnext50_32x4d.a2_in1k": "1e2fad8de183cfcac6c58dab7f6b519e8d1ffd38",
    "resnext50_32x4d.a3_in1k": "97dff44c340d0f00933a0659edc8ccb444cef692",
    "resnext50_32x4d.tv_in1k": "ac4eef0c61cc63cb64d8c416bf9b518f757bed1f",
    "seresnet50.a2_in1k": "b4065e3941a5fb1d85511df16c0e8fc3c7c53596",
    "resnet50c.gluon_in1k": "71557a8d90d892c46a4df3fbd58435170e64fac0",
    "resnet18d.ra2_in1k": "591cf0147ae10b2e3284b25e0516b2bc5ab17780",
    "resnet50d.ra4_e3600_r224_in1k": "b1273de46e5958300a1d33d72d46fb11c84d212e",
    "resnet50v2.a1h_in1k": "dcfd4fecb72889c1ce9fd9f7e5b75f8043889864",
    "densenet121.ra_in1k": "e65bed9f92a2e438879b179438d22ed719be26d6",
    "vgg13_bn.tv_in1k": "ed6e64d6167edbe08697cb4d7ceaef5077972131",
    "vgg16_bn.tv_in1k": "e00c01e7cee168262dcba6428dc4a8f41e27e965",
    "vgg19_bn.tv_in1k": "5df00d8510c2b1bd2ab67da8b2ef47034f30a7fa",
    "vit_ti16.deit_fb_in1k": "457c7aea80b608b44786bd3193556c727028bd6d",
    "vit_b16.augreg_in21k_ft_in1k": "b5b38b8f7dd93ce67d12e356a8771556b95c8cf9",
    "vit_b16.augreg2_in21k_ft_in1k": "3feba41e737e1b28af8e1fd7dca8eed073385972",
}

# model, folder, MD5 in the source of keras.applications, preprocessing, licence, top-1/top-5 at 224 pixels
_KERAS: tuple[tuple[str, str, str, str, str, _Score], ...] = (
    ("resnet50", "resnet", "2cb95161c43110f7111970584f804107", "caffe", "MIT", (74.9, 92.1)),
    ("resnet101", "resnet", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "caffe", "MIT", (76.4, 92.8)),
    ("resnet152", "resnet", "100835be76be38e30d865e96f2aaae62", "caffe", "MIT", (76.6, 93.1)),
    ("resnet50v2", "resnet", "3ef43a0b657b3be2300d5770ece849e0", "tf", "BSD-3-Clause", (76.0, 93.0)),
    ("resnet101v2", "resnet", "6343647c601c52e1368623803854d971", "tf", "BSD-3-Clause", (77.2, 93.8)),
    ("resnet152v2", "resnet", "a49b44d1979771252814e80f8ec446f9", "tf", "BSD-3-Clause", (78.0, 94.2)),
    ("densenet121", "densenet", "9d60b8095a5708f2dcce2bca79d332c7", "torch", "BSD-3-Clause", (75.0, 92.3)),
    ("densenet169", "densenet", "d699b8f76981ab1b30698df4c175e90b", "torch", "BSD-3-Clause", (76.2, 93.2)),
    ("densenet201", "densenet", "1ceb130c1ea1b78c3bf6114dbdfd8807", "torch", "BSD-3-Clause", (77.3, 93.6)),
    ("vgg16", "vgg16", "64373286793e3c8b2b4e3219cbf3544b", "caffe", "CC-BY-4.0", (71.3, 90.1)),
    ("vgg19", "vgg19", "cbe5617147190e668d6c5d5026f83318", "caffe", "CC-BY-4.0", (71.3, 90.0)),
)

_CPU = "keras-resnets train --recipe fashion_mnist --precision bfloat16"
_GPU = "python benchmarks/train_jax.py runs --recipe fashion_mnist"
_GPU_WIDE = f"{_GPU}_wide"
_LOGS = {_CPU: "train_fashion_mnist_bfloat16_{}_seed0"}  # in benchmarks/results of this package's sources
# model, SHA-256 of its file in this package, top-1, the command that trained it
_OWN: tuple[tuple[str, str, float, str], ...] = (
    ("resnet20", "1597df0e01345f4a1286d9ed930ebf2aae2d31ea2a134738d9eb7d976e28b0b6", 93.92, _CPU),
    ("plainnet20", "988b95c5d2949bea07f16e88bfb4b62e1a062c00fb08a51a947f4bd4bfea3a51", 93.62, _GPU),
    ("plainnet56", "95eeccd8b20f31d6ed59982fdbaa150f0290b8dc9ec26d8dc3d8e0de7125ac89", 91.84, _GPU),
    ("resnet56", "0b607c6de9903115daedab935454b8f64b8ea40c71bf81432e50b7a3c3c535a2", 94.13, _GPU),
    ("resnet20v2", "af637a33b9c75276f966118f2a9c67a489fa213093823fe953fc775db9017adf", 93.94, _GPU),
    ("densenetbc40_12", "cefd1880ac86ce651ede1f6fcf459524324ac64b1fbb1ebe6d5e4ae9dba8437d", 94.15, _GPU),
    ("wrn16_4", "dda553e083b5cc300e8c5c7407902fa939d965df5f241a92525bf3e2a3a965ef", 94.98, _GPU_WIDE),
)


def _hub(model: str, tag: str, protocol: Protocol, scores: tuple[_Score, ...]) -> Weights:
    name = f"{model}.{tag}"
    architecture = _TIMM.get(model, model)
    repository = f"timm/{architecture}.{tag}"
    if tag.startswith("deit_"):
        repository = f"timm/{architecture.replace('vit', 'deit')}.{tag.removeprefix('deit_')}"
    return Weights(
        model=model,
        tag=tag,
        source="hub",
        repository=repository,
        file="model.safetensors",
        revision=_COMMITS.get(name),
        hash=f"sha256:{_SHA256[name]}" if name in _SHA256 else None,
        variant=_variant(model),
        naming="torch",
        # timm says so of torchvision's, but not of the DenseNets among them.
        license="BSD-3-Clause" if tag in {"tv_in1k", "tv2_in1k"} and "densenet" not in model else "Apache-2.0",
        results=tuple(
            Result(top1, top5, resolution, crop)
            for (top1, top5), (resolution, crop) in zip(scores, protocol.crops.items(), strict=True)
        ),
        recipe=RECIPES[tag],
        preprocessing=_preprocessing(protocol),
        page=_page(model, tag, repository),
    )


def _keras(model: str, folder: str, md5: str, preset: str, license_: str, score: _Score) -> Weights:
    return Weights(
        model=model,
        tag="keras_in1k",
        source="keras",
        repository=folder,
        file=f"{model}_weights_tf_dim_ordering_tf_kernels.h5",
        revision=None,
        hash=f"md5:{md5}",
        variant=None if model.startswith("vgg") else "keras",
        naming="keras",
        license=license_,
        results=(Result(*score, DEFAULT_RESOLUTION, None),),
        recipe=RECIPES["keras_in1k"],
        preprocessing=Preprocessing.preset(preset, DEFAULT_RESOLUTION, 256),
        page=_KERAS_PAGE,
    )


def _variant(model: str) -> str | None:
    """The variant that timm implements."""
    if model.startswith(("vgg", "vit")):
        return None
    return "paper" if model.endswith("v2") or model.startswith("densenet") else "v1.5"


def _preprocessing(protocol: Protocol) -> Preprocessing:
    """timm's transform at 224 pixels; a protocol without them has its lowest resolution's crop."""
    crop = protocol.crops.get(DEFAULT_RESOLUTION, next(iter(protocol.crops.values())))
    preset = Preprocessing.preset("torch")
    return Preprocessing(
        size=(DEFAULT_RESOLUTION, DEFAULT_RESOLUTION),
        resize=int(DEFAULT_RESOLUTION / crop),  # rounded down, as timm does
        interpolation=protocol.interpolation,
        scale=preset.scale,
        mean=(0.5, 0.5, 0.5) if protocol.half else preset.mean,
        std=(0.5, 0.5, 0.5) if protocol.half else preset.std,
    )


def _page(model: str, tag: str, repository: str) -> str:
    """timm's cards of the ResNets hold a table of them all; the other families stand in its table of results."""
    if tag.startswith("ra4_"):
        return _RA4_PAGE
    in_table = model.startswith(("vgg", "vit", "densenet")) or model.endswith("v2")
    return _TABLE if in_table else _CARD.format(repository)


def _own(model: str, sha256: str, top1: float, command: str) -> Weights:
    return Weights(
        model=model,
        tag=FASHION_MNIST,
        source="package",
        repository=FASHION_MNIST,
        file=f"{model}.safetensors",
        revision=None,
        hash=f"sha256:{sha256}",
        variant=None if model.startswith("wrn") else _variant(model),
        naming="zoo",
        license="Apache-2.0",
        results=(Result(top1, None, 28, None),),
        recipe=f"{command} --model {model}",
        preprocessing=preprocessing.FASHION_MNIST,
        page="benchmarks/results/" + _LOGS.get(command, "train_jax/{}-seed0").format(model),
        classes=10,
        labels=FASHION_MNIST,
    )


LEDGER: tuple[Weights, ...] = (
    *(_hub(*row) for row in _HUB),
    *(_keras(*row) for row in _KERAS),
    *(_own(*row) for row in _OWN),
)
