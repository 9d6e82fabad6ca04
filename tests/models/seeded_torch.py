"""Weights of PyTorch's networks that need no storing: each tensor is a function of its state-dict key and shape."""

from __future__ import annotations

import math
import zlib

import numpy as np


def seeded_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values for the entry `key` of a state dict, in PyTorch's layout (OIHW; out × in).

    Scales keep the activations of deep networks finite and let mistakes show: statistics are random too, and
    position embeddings and class tokens are larger than trained ones start. RandomState is used because NumPy
    froze its streams for good.
    """
    random = np.random.RandomState(zlib.crc32(key.encode()))
    role = key.rsplit(".", 1)[-1]
    if role == "running_var":
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if role == "weight" and len(shape) == 1:
        # From 0.3 to 0.7, dense and squeezing networks would hardly see the image; from 0.6 to 1, deep ones explode.
        return random.uniform(0.45, 0.85, shape).astype(np.float32)
    if role in ("running_mean", "bias"):
        scale = 0.1
    elif role in ("cls_token", "pos_embed"):
        scale = 0.5
    elif role == "weight" and len(shape) in (2, 4):
        # He's scale for convolutions; linear layers mostly follow something else than a ReLU.
        scale = math.sqrt((2 if len(shape) == 4 else 1) / math.prod(shape[1:]))
    else:
        raise ValueError(f"no rule for {key} {shape}")
    values = random.standard_normal(shape)
    values *= scale
    return values.astype(np.float32)
