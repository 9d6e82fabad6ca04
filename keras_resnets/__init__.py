"""Residual and plain networks for Keras, with verified export and serving.

Importing this package loads neither Keras nor TensorFlow: public names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_resnets.labels import decode_predictions as decode_predictions
    from keras_resnets.models import ModelInfo as ModelInfo
    from keras_resnets.models import create_model as create_model
    from keras_resnets.models import list_models as list_models
    from keras_resnets.models import model_info as model_info
    from keras_resnets.models.damping import damp_residuals as damp_residuals
    from keras_resnets.models.densenet import DenseNet121 as DenseNet121
    from keras_resnets.models.densenet import DenseNet169 as DenseNet169
    from keras_resnets.models.densenet import DenseNet201 as DenseNet201
    from keras_resnets.models.densenet import DenseNet264 as DenseNet264
    from keras_resnets.models.densenet import DenseNetBC40_12 as DenseNetBC40_12
    from keras_resnets.models.densenet import DenseNetBC100_12 as DenseNetBC100_12
    from keras_resnets.models.densenet import DenseNetBC190_40 as DenseNetBC190_40
    from keras_resnets.models.densenet import DenseNetBC250_24 as DenseNetBC250_24
    from keras_resnets.models.files import load_model as load_model
    from keras_resnets.models.files import save_model as save_model
    from keras_resnets.models.loading import WeightsWarning as WeightsWarning
    from keras_resnets.models.loading import save_weights as save_weights
    from keras_resnets.models.resnet import PlainNet18 as PlainNet18
    from keras_resnets.models.resnet import PlainNet20 as PlainNet20
    from keras_resnets.models.resnet import PlainNet32 as PlainNet32
    from keras_resnets.models.resnet import PlainNet34 as PlainNet34
    from keras_resnets.models.resnet import PlainNet44 as PlainNet44
    from keras_resnets.models.resnet import PlainNet50 as PlainNet50
    from keras_resnets.models.resnet import PlainNet56 as PlainNet56
    from keras_resnets.models.resnet import PlainNet101 as PlainNet101
    from keras_resnets.models.resnet import PlainNet110 as PlainNet110
    from keras_resnets.models.resnet import PlainNet152 as PlainNet152
    from keras_resnets.models.resnet import ResNet18 as ResNet18
    from keras_resnets.models.resnet import ResNet20 as ResNet20
    from keras_resnets.models.resnet import ResNet32 as ResNet32
    from keras_resnets.models.resnet import ResNet34 as ResNet34
    from keras_resnets.models.resnet import ResNet44 as ResNet44
    from keras_resnets.models.resnet import ResNet50 as ResNet50
    from keras_resnets.models.resnet import ResNet56 as ResNet56
    from keras_resnets.models.resnet import ResNet101 as ResNet101
    from keras_resnets.models.resnet import ResNet110 as ResNet110
    from keras_resnets.models.resnet import ResNet152 as ResNet152
    from keras_resnets.models.resnet import ResNet1202 as ResNet1202
    from keras_resnets.models.resnet_d import ResNet18D as ResNet18D
    from keras_resnets.models.resnet_d import ResNet34D as ResNet34D
    from keras_resnets.models.resnet_d import ResNet50C as ResNet50C
    from keras_resnets.models.resnet_d import ResNet50D as ResNet50D
    from keras_resnets.models.resnet_d import ResNet101D as ResNet101D
    from keras_resnets.models.resnet_d import ResNet152D as ResNet152D
    from keras_resnets.models.resnet_rs import ResNetRS50 as ResNetRS50
    from keras_resnets.models.resnet_rs import ResNetRS101 as ResNetRS101
    from keras_resnets.models.resnet_rs import ResNetRS152 as ResNetRS152
    from keras_resnets.models.resnet_rs import ResNetRS200 as ResNetRS200
    from keras_resnets.models.resnet_v2 import ResNet18V2 as ResNet18V2
    from keras_resnets.models.resnet_v2 import ResNet20V2 as ResNet20V2
    from keras_resnets.models.resnet_v2 import ResNet34V2 as ResNet34V2
    from keras_resnets.models.resnet_v2 import ResNet50V2 as ResNet50V2
    from keras_resnets.models.resnet_v2 import ResNet56V2 as ResNet56V2
    from keras_resnets.models.resnet_v2 import ResNet101V2 as ResNet101V2
    from keras_resnets.models.resnet_v2 import ResNet110V2 as ResNet110V2
    from keras_resnets.models.resnet_v2 import ResNet152V2 as ResNet152V2
    from keras_resnets.models.resnet_v2 import ResNet164V2 as ResNet164V2
    from keras_resnets.models.resnet_v2 import ResNet200V2 as ResNet200V2
    from keras_resnets.models.resnet_v2 import ResNet1001V2 as ResNet1001V2
    from keras_resnets.models.resnext import ResNeXt50_32x4d as ResNeXt50_32x4d
    from keras_resnets.models.resnext import ResNeXt101_32x8d as ResNeXt101_32x8d
    from keras_resnets.models.se_resnet import SEResNet18 as SEResNet18
    from keras_resnets.models.se_resnet import SEResNet34 as SEResNet34
    from keras_resnets.models.se_resnet import SEResNet50 as SEResNet50
    from keras_resnets.models.se_resnet import SEResNet101 as SEResNet101
    from keras_resnets.models.se_resnet import SEResNet152 as SEResNet152
    from keras_resnets.models.statistics import update_batch_norm as update_batch_norm
    from keras_resnets.models.vgg import VGG11 as VGG11
    from keras_resnets.models.vgg import VGG11_BN as VGG11_BN
    from keras_resnets.models.vgg import VGG13 as VGG13
    from keras_resnets.models.vgg import VGG13_BN as VGG13_BN
    from keras_resnets.models.vgg import VGG16 as VGG16
    from keras_resnets.models.vgg import VGG16_BN as VGG16_BN
    from keras_resnets.models.vgg import VGG19 as VGG19
    from keras_resnets.models.vgg import VGG19_BN as VGG19_BN
    from keras_resnets.models.vit import ViT_B16 as ViT_B16
    from keras_resnets.models.vit import ViT_S16 as ViT_S16
    from keras_resnets.models.vit import ViT_Ti16 as ViT_Ti16
    from keras_resnets.models.wide_resnet import WRN16_4 as WRN16_4
    from keras_resnets.models.wide_resnet import WRN16_8 as WRN16_8
    from keras_resnets.models.wide_resnet import WRN28_10 as WRN28_10
    from keras_resnets.models.wide_resnet import WRN40_4 as WRN40_4
    from keras_resnets.models.wide_resnet import WideResNet50_2 as WideResNet50_2
    from keras_resnets.models.wide_resnet import WideResNet101_2 as WideResNet101_2
    from keras_resnets.preprocessing import Preprocessing as Preprocessing
    from keras_resnets.weights import Weights as Weights
    from keras_resnets.weights import WeightsError as WeightsError
    from keras_resnets.weights import list_weights as list_weights

_HOMES = {
    "create_model": "keras_resnets.models",
    "damp_residuals": "keras_resnets.models.damping",
    "decode_predictions": "keras_resnets.labels",
    "list_models": "keras_resnets.models",
    "list_weights": "keras_resnets.weights",
    "load_model": "keras_resnets.models.files",
    "model_info": "keras_resnets.models",
    "save_model": "keras_resnets.models.files",
    "save_weights": "keras_resnets.models.loading",
    "update_batch_norm": "keras_resnets.models.statistics",
    "ModelInfo": "keras_resnets.models",
    "Preprocessing": "keras_resnets.preprocessing",
    "Weights": "keras_resnets.weights",
    "WeightsError": "keras_resnets.weights",
    "WeightsWarning": "keras_resnets.models.loading",
}
_SUBPACKAGES = ("data", "export", "models", "serving", "study", "training", "weights")


def _constructors() -> dict[str, str]:
    from keras_resnets.models import REGISTRY

    return {info.constructor: info.module for info in REGISTRY.values()}


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"keras_resnets.{name}")
    home = _HOMES.get(name) or (None if name.startswith("_") else _constructors().get(name))
    if home is None:
        raise AttributeError(f"module 'keras_resnets' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({"__version__", *_HOMES, *_SUBPACKAGES, *_constructors()})
