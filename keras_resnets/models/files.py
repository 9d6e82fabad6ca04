"""Saves and loads models as `.keras` files that also carry their preprocessing and class names."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file
from keras_resnets.extras import extra
from keras_resnets.models.layers import allow_depth
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.weights import WeightsError

with extra("tensorflow"):
    import keras

_CARD = "keras_resnets.json"  # an extra member of the archive, which plain Keras passes over


def describe(model: Any, preprocessing: Preprocessing | None, labels: tuple[str, ...] | None) -> None:
    """Attach to a model what `save_model` stores and `export.to_bundle` puts into a bundle."""
    model.preprocessing = preprocessing
    model.labels = labels


def save_model(model: Any, path: str | Path) -> None:
    """Save a model with its `preprocessing` and `labels`, where it has them; an ordinary Keras file.

    The file appears whole or not at all.

    Args:
        model: a Keras model.
        path: a path that ends in `.keras`; an existing file is replaced.

    Raises:
        ValueError: when the path does not end in `.keras`.
    """
    if Path(path).suffix != ".keras":
        raise ValueError(f"the path of a Keras model ends in .keras: {path}")
    preprocessing, labels = getattr(model, "preprocessing", None), getattr(model, "labels", None)
    card = {
        "format_version": 1,
        "preprocessing": preprocessing.to_dict() if preprocessing else None,
        "labels": list(labels) if labels else None,
    }
    with atomic_file(path) as draft:
        model.save(draft)
        with zipfile.ZipFile(draft, "a") as archive:
            archive.writestr(_CARD, json.dumps(card))


def load_model(path: str | Path) -> Any:
    """Load a `.keras` file; `preprocessing` and `labels` are attributes of the result (None: not stored).

    Raises the process's recursion limit for networks of a thousand layers, upward only.

    Raises:
        WeightsError: when the file is missing, or not a readable Keras model.
    """
    if not Path(path).is_file():
        raise WeightsError(f"model file {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            card = json.loads(archive.read(_CARD)) if _CARD in archive.namelist() else {}
            allow_depth(len(json.loads(archive.read("config.json"))["config"].get("layers", ())))
        model = keras.models.load_model(path, compile=False)
        stored = card.get("preprocessing")
        describe(
            model,
            Preprocessing.from_dict(stored) if stored else None,
            tuple(card.get("labels") or ()) or None,
        )
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, TypeError) as error:
        raise WeightsError(f"{path} is not a readable Keras model file: {error}") from error
    return model
