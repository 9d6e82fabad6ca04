"""Where a network's weights come from, and the error when they do not fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

SUFFIXES = (".weights.h5", ".keras")


class WeightsError(ValueError):
    """Weights that are missing, of another network, or unreadable."""


def load_weights(model: Any, source: str | Path) -> None:
    """Load a weights file into a Keras model of the same architecture.

    Args:
        model: a built Keras model.
        source: path of a `.weights.h5` or `.keras` file.

    Raises:
        WeightsError: when the file is missing, of an unknown kind, or does not fit the model. That it is of
            another variant can be told of a `.keras` file alone: a `.weights.h5` file does not say.
    """
    path = Path(source)
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(
            f"weights={str(source)!r}: this release has no pretrained weights by name; "
            f"give None or the path of a {' or '.join(SUFFIXES)} file"
        )
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".keras":
            _check_variant(model, path)
        model.load_weights(str(path))
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} does not fit {model.name}: {error}") from error


def _check_variant(model: Any, path: Path) -> None:
    """Variants have equal weight shapes and differ in strides, which a `.keras` file records."""
    with zipfile.ZipFile(path) as archive:
        stored = json.loads(archive.read("config.json"))["config"].get("layers", [])
    strides = {layer["config"].get("name"): layer["config"].get("strides") for layer in stored}
    for layer in model.layers:
        theirs = strides.get(layer.name)
        ours = getattr(layer, "strides", None)
        if theirs and ours and tuple(theirs) != tuple(ours):
            raise WeightsError(
                f"{path} holds another variant of {model.name}: its {layer.name} has strides {tuple(theirs)}, "
                f"not {tuple(ours)}; pass the variant= that it was made with"
            )
