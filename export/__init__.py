"""Export of Keras image models to ONNX, SavedModel and verified bundles."""

from __future__ import annotations

if __name__ != "keras_resnets.export":
    # One file under two names would be two modules with two sets of classes.
    raise ImportError('import keras_resnets.export (run: pip install -e ".[export]"), not this folder')

from .bundle import to_bundle
from .errors import ExportError
from .gate import Gate
from .lower import DataFreeWarning
from .onnx import to_onnx
from .saved_model import to_saved_model

__all__ = ["DataFreeWarning", "ExportError", "Gate", "to_bundle", "to_onnx", "to_saved_model"]
