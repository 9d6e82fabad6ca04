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
    from keras_resnets.models.files import load_model as load_model
    from keras_resnets.models.files import save_model as save_model
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
    from keras_resnets.models.statistics import update_batch_norm as update_batch_norm
    from keras_resnets.preprocessing import Preprocessing as Preprocessing

_HOMES = {
    "ModelInfo": "keras_resnets.models",
    "Preprocessing": "keras_resnets.preprocessing",
    "create_model": "keras_resnets.models",
    "damp_residuals": "keras_resnets.models.damping",
    "decode_predictions": "keras_resnets.labels",
    "list_models": "keras_resnets.models",
    "load_model": "keras_resnets.models.files",
    "model_info": "keras_resnets.models",
    "save_model": "keras_resnets.models.files",
    "update_batch_norm": "keras_resnets.models.statistics",
}
_SUBPACKAGES = ("data", "export", "models", "serving", "training")


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
