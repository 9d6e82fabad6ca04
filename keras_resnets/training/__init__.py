"""Training: recipes, and one loop from one device to several."""

from __future__ import annotations

from keras_resnets.training.config import Recipe, TrainingError
from keras_resnets.training.recipes import RECIPES
from keras_resnets.training.run import evaluate_model, train

__all__ = ["RECIPES", "Recipe", "TrainingError", "evaluate_model", "train"]
