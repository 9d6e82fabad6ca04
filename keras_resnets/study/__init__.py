"""The residual idea, measured: studies that each give a table, a picture and a JSON file. Loads no TensorFlow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_resnets.study.outcome import Outcome, StudyError

if TYPE_CHECKING:
    from keras_resnets.study.of_degradation import degradation
    from keras_resnets.study.of_depth import depth
    from keras_resnets.study.of_gradients import gradients
    from keras_resnets.study.of_identity import identity
    from keras_resnets.study.of_landscape import landscape
    from keras_resnets.study.of_lesion import lesion

# What each shows.
STUDIES = {
    "degradation": "plain networks get worse with depth, on their training images too; residual ones do not",
    "gradients": "what reaches the first block of the gradient: a product of many factors, or a sum with a 1 in it",
    "identity": "a residual block can be the identity, and trained ones are close to it",
    "lesion": "a residual network hardly misses a block that is taken out of it; a plain one fails",
    "landscape": "the loss around a trained network, with shortcuts and without",
    "depth": "20 to 1202 layers: time, memory, parameters, and whether they train",
}


def __getattr__(name: str) -> Any:
    if name in STUDIES:
        return getattr(importlib.import_module(f"{__name__}.of_{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "STUDIES",
    "Outcome",
    "StudyError",
    "degradation",
    "depth",
    "gradients",
    "identity",
    "landscape",
    "lesion",
]
