"""Training: recipes, and one loop from one device to many machines. Recipes load no TensorFlow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_resnets.training.config import Recipe, TrainingError, TrainingStopped
from keras_resnets.training.recipes import RECIPES

if TYPE_CHECKING:
    from keras_resnets.training.evaluation import evaluate
    from keras_resnets.training.run import evaluate_model, train

_LAZY = {"evaluate_model": "run", "train": "run", "evaluate": "evaluation"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["RECIPES", "Recipe", "TrainingError", "TrainingStopped", "evaluate", "evaluate_model", "train"]
