"""Recipes that were run; each docstring says with what result."""

from __future__ import annotations

from collections.abc import Callable

from keras_resnets.training.config import Recipe


def digits() -> Recipe:
    """ResNet-20 on scikit-learn's handwritten digits, 8×8."""
    return Recipe(model="resnet20", data="digits", epochs=30, batch_size=64, learning_rate=0.1, warmup_epochs=2, pad=1)


def fashion_mnist() -> Recipe:
    """ResNet-20 on Fashion-MNIST, 28×28."""
    return Recipe(
        model="resnet20",
        data="fashion_mnist",
        epochs=12,
        learning_rate=0.1,
        warmup_epochs=3,
        pad=2,
        flip=True,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"digits": digits, "fashion_mnist": fashion_mnist}
