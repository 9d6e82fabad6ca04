"""Saves and loads models as `.keras` files that also carry what they are: architecture, preprocessing, class names."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from keras_resnets.atomic import atomic_file
from keras_resnets.extras import extra
from keras_resnets.labels import Prediction, decode_predictions
from keras_resnets.models.layers import allow_depth
from keras_resnets.models.tensors import UNREADABLE
from keras_resnets.preprocessing import ImageLike, Preprocessing
from keras_resnets.untrusted import parse_json
from keras_resnets.weights import WeightsError

with extra("tensorflow"):
    import keras

_CARD = "keras_resnets.json"  # an extra member of the archive, which plain Keras passes over


class Architecture(NamedTuple):
    """Which network of the registry a model is, its constructor's own options, and the arguments that all share."""

    model: str
    options: dict[str, Any]
    face: dict[str, Any]  # include_top, input_shape, pooling, classes, classifier_activation


class Card(NamedTuple):
    """What a file says of itself."""

    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    architecture: Architecture | None
    naming: str | None  # of the tensors in a safetensors file


def describe(
    model: Any,
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...] | None,
    architecture: Architecture | None = None,
) -> None:
    """Attach to a model what `save_model` stores and `export.to_bundle` puts into a bundle.

    Its `preprocess_input(images)` and `decode_predictions(scores, top=5)` follow from them.
    """
    model.preprocessing = preprocessing
    model.labels = labels
    model.architecture = architecture or getattr(model, "architecture", None)

    def preprocess_input(images: Iterable[ImageLike]) -> Any:
        """Images (paths, bytes, Pillow, uint8 arrays) as the network's float32 input [batch, height, width, channels].

        Raises:
            ImageError: when one cannot be read.
            ValueError: when the model does not know its preprocessing.
        """
        if model.preprocessing is None:
            raise ValueError(
                f"{model.name} does not know its preprocessing, since its weights are random or do not say: set "
                "model.preprocessing, for example to keras_resnets.Preprocessing.preset('torch', 224)"
            )
        return model.preprocessing(images)

    def decode(scores: Any, top: int = 5) -> list[list[Prediction]]:
        """The most probable classes of each row of scores [batch, classes]; see `labels.decode_predictions`."""
        return decode_predictions(scores, model.labels, top)

    model.preprocess_input, model.decode_predictions = preprocess_input, decode


def card(model: Any) -> dict[str, Any]:
    """What a model says of itself, as JSON types."""
    preprocessing, labels = getattr(model, "preprocessing", None), getattr(model, "labels", None)
    architecture = getattr(model, "architecture", None)
    return {
        "format_version": 1,
        "architecture": architecture._asdict() if architecture else None,
        "preprocessing": preprocessing.to_dict() if preprocessing else None,
        "labels": list(labels) if labels else None,
    }


def parse_card(text: str | bytes) -> Card:
    """What `card` gave, from JSON that anybody may have written.

    Raises:
        ValueError: when it is not such a record.
    """
    try:
        stored = parse_json(text)
        preprocessing, architecture = stored.get("preprocessing"), stored.get("architecture")
        return Card(
            Preprocessing.from_dict(preprocessing) if preprocessing else None,
            _texts(stored.get("labels") or ()) or None,
            _architecture(**architecture) if architecture else None,
            stored.get("naming"),
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"what it says of itself is not readable: {error}") from error


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise ValueError("labels are not a list of texts")
    return tuple(values)


def _architecture(model: str, options: dict[str, Any], face: dict[str, Any]) -> Architecture:
    if not isinstance(model, str) or not isinstance(options.get("variant", ""), (str, type(None))):
        raise ValueError("names of model and variant are texts")
    shape = face.get("input_shape")
    return Architecture(model, dict(options), {**face, "input_shape": shape and tuple(shape)})


def read_card(path: Path) -> Card:
    """The card in a `.keras` file; empty where plain Keras wrote it.

    Raises:
        zipfile.BadZipFile, ValueError, OSError: when it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        return parse_card(archive.read(_CARD) if _CARD in archive.namelist() else "{}")


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
    with atomic_file(path) as draft:
        model.save(draft)
        with zipfile.ZipFile(draft, "a") as archive:
            archive.writestr(_CARD, json.dumps(card(model)))


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
            config = parse_json(archive.read("config.json"))
        allow_depth(len(config["config"].get("layers", ())))
        if "keras_resnets>" in json.dumps(config):
            import keras_resnets.models.vit  # noqa: F401  (registers its layer)
        model = keras.models.load_model(path, compile=False)
        told = read_card(Path(path))
    except UNREADABLE as error:
        raise WeightsError(f"{path} is not a readable Keras model file: {error}") from error
    describe(model, told.preprocessing, told.labels, told.architecture)
    return model
