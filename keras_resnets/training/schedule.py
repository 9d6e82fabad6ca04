"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_resnets.extras import extra
from keras_resnets.training.config import Recipe

with extra("tensorflow"):
    import keras
    import tensorflow as tf


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """A recipe's schedule: warm-up, then cosine, steps, or the peak times `factor`.

    Args:
        recipe: for the schedule's fields.
        steps_per_epoch: steps an epoch.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.total = steps_per_epoch * recipe.epochs
        self.warmup = min(round(steps_per_epoch * recipe.warmup_epochs), self.total - 1)
        # What "plateau" has done so far; a variable, since the compiled step reads it.
        self.factor = tf.Variable(1.0, trainable=False, name="plateau_factor")

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        rate = self.recipe.peak_rate * self._shape(step)
        if not self.warmup:
            return rate
        low = self.recipe.warmup_rate
        # What the schedule gives where the warm-up ends, so that the two meet.
        rise = self.recipe.peak_rate * self._shape(tf.constant(self.warmup, tf.float32)) - low
        rising = low + (0.0 if self.recipe.warmup_constant else rise * step / self.warmup)
        return tf.where(step < self.warmup, rising, rate)

    def _shape(self, step: Any) -> Any:
        if self.recipe.schedule == "cosine":
            share = (step - self.warmup) / (self.total - self.warmup)
            return 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))
        if self.recipe.schedule == "step":
            passed = [tf.cast(step >= self.total * share, tf.float32) for share in self.recipe.milestones]
            return tf.pow(self.recipe.rate_drop, sum(passed, tf.constant(0.0)))
        return tf.identity(self.factor)

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        """Set the factor of "plateau" to what the epochs so far make it."""
        if self.recipe.schedule == "plateau":
            self.factor.assign(plateau_factor(history, self.recipe.patience, self.recipe.rate_drop))

    def get_config(self) -> dict[str, Any]:
        """The recipe and the steps, as JSON types."""
        return {"recipe": self.recipe.to_dict(), "steps_per_epoch": self.steps_per_epoch}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rate:
        """The schedule that `get_config` described."""
        return cls(Recipe.from_dict(config["recipe"]), config["steps_per_epoch"])


def plateau_factor(history: Sequence[Mapping[str, float]], patience: int, drop: float) -> float:
    """`drop` to the power of how often the loss has not fallen for `patience` epochs; "val_loss" where there is one."""
    factor, best, waited = 1.0, math.inf, 0
    for row in history:
        loss = row.get("val_loss", row["loss"])
        if loss < best:
            best, waited = loss, 0
            continue
        waited += 1
        if waited == patience:
            factor, waited = factor * drop, 0
    return factor
