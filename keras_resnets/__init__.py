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
    from keras_resnets.models.files import load_model as load_model
    from keras_resnets.models.files import save_model as save_model
    from keras_resnets.models.resnet import *  # noqa: F403
    from keras_resnets.models.resnet_v2 import *  # noqa: F403
    from keras_resnets.models.statistics import update_batch_norm as update_batch_norm
    from keras_resnets.preprocessing import Preprocessing as Preprocessing

_HOMES = {
    "ModelInfo": "keras_resnets.models",
    "Preprocessing": "keras_resnets.preprocessing",
    "create_model": "keras_resnets.models",
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
