"""Prediction from bundles with ONNX Runtime; nothing here needs TensorFlow or Keras."""

from __future__ import annotations

if __name__ != "keras_resnets.serving":
    # One file under two names would be two modules with two sets of classes.
    raise ImportError('import keras_resnets.serving (run: pip install -e ".[serve]"), not this folder')

from .engine import Engine
from .providers import ProviderError

__all__ = ["Engine", "ProviderError"]
