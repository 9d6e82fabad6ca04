"""Weights that need no storing: each tensor is a function of its name and shape alone."""

from __future__ import annotations

import zlib

import numpy as np


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values for the variable "layer/role", in Keras's layout; statistics are random too.

    RandomState is used because NumPy froze its streams for good.
    """
    random = np.random.RandomState(zlib.crc32(name.encode()))
    role = name.rsplit("/", 1)[-1]
    if role == "kernel":
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    elif role == "gamma":
        values = random.uniform(0.3, 0.7, shape)
    elif role == "moving_variance":
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.standard_normal(shape) * 0.1
    return values.astype(np.float32)


def seeded_images(batch: int, height: int, width: int, channels: int) -> np.ndarray:
    """Float32 noise [batch, height, width, channels], always the same."""
    return np.random.RandomState(7).standard_normal((batch, height, width, channels)).astype(np.float32)


def fill(model) -> None:
    """Give every variable of a Keras model its seeded values."""
    for variable in model.weights:
        variable.assign(seeded(variable.path, tuple(variable.shape)))
