"""Keras optimizers by a recipe, and LARS, which Keras lacks."""

from __future__ import annotations

from typing import Any

from keras_resnets.extras import extra
from keras_resnets.training.config import Recipe
from keras_resnets.training.schedule import Rate

with extra("tensorflow"):
    import keras
    import tensorflow as tf


def decays(variable: Any) -> bool:
    """Whether weight decay pulls a variable: kernels, and no batch norm, bias or embedding."""
    return str(variable.name).endswith("kernel")


def make_optimizer(recipe: Recipe, schedule: Rate, variables: list[Any]) -> Any:
    """The recipe's optimizer with its schedule, built for these trainable variables.

    The penalty of sgd and lars is not the optimizer's: see `penalty_of`.
    """
    # A constant rate is a number that Keras callbacks may set.
    rate: Any = recipe.peak_rate if recipe.schedule == "constant" and not schedule.warmup else schedule
    if recipe.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
    elif recipe.optimizer == "lars":
        optimizer = LARS(rate, momentum=recipe.momentum, decay=recipe.weight_decay)
    else:
        kind = keras.optimizers.AdamW if recipe.optimizer == "adamw" else keras.optimizers.Lamb
        decay = recipe.weight_decay or None
        optimizer = kind(rate, beta_1=recipe.momentum, beta_2=recipe.beta_2, weight_decay=decay)
        if decay and (spared := [v for v in variables if not decays(v)]):
            optimizer.exclude_from_weight_decay(var_list=spared)
    # Inside the step, under several replicas, TensorFlow cannot create its variables.
    optimizer.build(variables)
    return optimizer


def penalty_of(recipe: Recipe) -> float:
    """The L2 penalty that the loop adds to the gradients: of sgd; the others have a decay of their own."""
    return recipe.weight_decay if recipe.optimizer == "sgd" else 0.0


class LARS(keras.optimizers.Optimizer):
    """Layer-wise adaptive rates for large batches (You et al. 2017, arXiv:1708.03888, Algorithm 1).

    A kernel moves by learning_rate · trust · |w| / (|g| + decay · |w|) along g + decay · w, with momentum; batch norm
    and biases move as in SGD.

    Args:
        learning_rate: a number or a Keras schedule.
        momentum: of the step.
        decay: the L2 penalty of kernels.
        trust: the paper's η.
        name: the optimizer's name.
    """

    def __init__(
        self,
        learning_rate: Any = 1.0,
        momentum: float = 0.9,
        decay: float = 1e-4,
        trust: float = 1e-3,
        name: str = "lars",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, name=name, **kwargs)
        self.momentum, self.decay, self.trust = momentum, decay, trust

    def build(self, variables: list[Any]) -> None:
        """Make the momenta, one a variable."""
        if self.built:
            return
        super().build(variables)
        self._momenta = self.add_optimizer_variables(variables, "momentum")
        self._adapts = [decays(variable) for variable in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable."""
        rate = tf.cast(learning_rate, variable.dtype)
        index = self._get_variable_index(variable)
        momentum = self._momenta[index]
        if self._adapts[index]:
            weights, slope = tf.norm(variable), tf.norm(gradient)
            ratio = self.trust * weights / (slope + self.decay * weights)
            # A kernel that is zero, or that nothing pulls, moves as in SGD.
            rate *= tf.where((weights > 0) & (slope > 0), ratio, tf.ones_like(ratio))
            gradient = gradient + self.decay * variable
        velocity = self.momentum * tf.convert_to_tensor(momentum) + rate * gradient
        self.assign(momentum, velocity)
        self.assign_sub(variable, velocity)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON types."""
        return {**super().get_config(), "momentum": self.momentum, "decay": self.decay, "trust": self.trust}
