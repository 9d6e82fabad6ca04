"""The registry: every model with its paper, size and cost. Importing it loads neither Keras nor TensorFlow."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from typing import Any

from keras_resnets.models.catalogue import MODELS, ModelInfo

__all__ = ["REGISTRY", "ModelInfo", "create_model", "list_models", "model_info"]

REGISTRY = {info.name: info for info in MODELS}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, in the order of the papers; `pattern` as in a shell: "resnet*v2"."""
    return [name for name in REGISTRY if fnmatch.fnmatch(name, pattern.lower())]


def model_info(name: str) -> ModelInfo:
    """What is known of a model: paper, parameters, multiply-adds, default input.

    Args:
        name: a name of `list_models()`, in any case.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest ones.
    """
    info = REGISTRY.get(name.lower())
    if info is None:
        near = difflib.get_close_matches(name.lower(), REGISTRY, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see keras_resnets.list_models()"
        raise ValueError(f"unknown model {name!r}: {hint}")
    return info


def create_model(name: str, **arguments: Any) -> Any:
    """Build a model by name: `create_model("resnet50", classes=10)` is `ResNet50(classes=10)`.

    Args:
        name: a name of `list_models()`, in any case.
        **arguments: the constructor's.

    Raises:
        ValueError: for an unknown name, or arguments that cannot be meant.
        WeightsError: when `weights` cannot be had, or are of another network or variant.
    """
    info = model_info(name)
    return getattr(importlib.import_module(info.module), info.constructor)(**arguments)
