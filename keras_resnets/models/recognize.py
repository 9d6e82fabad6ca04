"""Builds the network that a weights file is of: what its tensors' shapes say of classes, channels and input size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_resnets.models import create_model, model_info
from keras_resnets.models.files import Architecture, load_model, parse_card, read_card
from keras_resnets.models.loading import SUFFIXES
from keras_resnets.models.tensors import UNREADABLE, Stored, read_h5, read_safetensors
from keras_resnets.models.torch_names import DIALECTS, torch_modules
from keras_resnets.weights import WeightsError

# The first layer with weights of each family, and the classifier, under this package's names.
_STEMS = ("conv1_conv", "conv1_1_conv", "block1_conv1", "patch_embed")
_POSITIONS = ("tokens/position_embedding", "pos_embed", "encoder.pos_embedding")
_PATCH, _VGG_REDUCTION = 16, 32  # pixels of the input a side of ViT's patches, and of VGG's last map


def model_from_weights(
    path: str | Path,
    model: str | None = None,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    variant: str | None = None,
) -> Any:
    """Build the network of a weights file, with its weights.

    Args:
        path: a `.keras`, `.safetensors`, `.weights.h5` or keras.applications' `.h5` file.
        model: its name in the registry; a file that this package wrote says so itself.
        classes, input_shape, variant: the constructor's, where they are not to be as in the file.

    Raises:
        WeightsError: when the file is unreadable, or does not say which network it is of and `model` is None.
        ValueError: for an unknown model.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"{path}: a weights file ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    given = {"classes": classes, "input_shape": input_shape, "variant": variant}
    arguments = {name: value for name, value in given.items() if value is not None}
    if path.suffix == ".keras" and not arguments:
        found = load_model(path)
        if found.architecture is not None and model in (None, found.architecture.model):
            return found
    told, tensors = _contents(path)
    name = model_info(model).name if model else told and told.model
    if name is None:
        raise WeightsError(f"{path} does not say which network it is of: name it (--model, see keras-resnets list)")
    if told and told.model == name:
        return create_model(name, weights=path, **{**told.face, **told.options, **arguments})
    return create_model(name, weights=path, **{**_from_shapes(name, tensors), **arguments})


def _contents(path: Path) -> tuple[Architecture | None, Mapping[str, Stored]]:
    """What a file says that it is of, and its tensors where their names tell shapes."""
    if path.name.endswith(".weights.h5"):
        return None, {}
    if path.suffix == ".h5":
        return None, read_h5(path)
    try:
        if path.suffix == ".keras":
            return read_card(path).architecture, {}
        tensors, metadata = read_safetensors(path)
        return parse_card(metadata.get("keras_resnets", "{}")).architecture, tensors
    except UNREADABLE as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _from_shapes(name: str, tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Constructor arguments that the tensors' shapes tell; nothing where there are none."""
    if not tensors:
        return {}
    info = model_info(name)
    arguments: dict[str, Any] = {}
    classifier = _shape(name, "predictions", tensors)
    if classifier:
        arguments["classes"] = classifier[-1]
    else:
        arguments["include_top"] = False
    stem = _shape(name, next((layer for layer in _STEMS if _shape(name, layer, tensors)), ""), tensors)
    sides = _side(name, tensors)
    channels = stem[2] if stem else info.input_shape[2]
    if sides or channels != info.input_shape[2]:
        arguments["input_shape"] = (*(sides or info.input_shape[:2]), channels)
    return arguments


def _shape(name: str, layer: str, tensors: Mapping[str, Stored]) -> tuple[int, ...] | None:
    """The shape of a layer's kernel in Keras's layout, whatever the file calls it."""
    for key in (f"{layer}/kernel", f"{layer}/0"):
        if key in tensors:
            return tensors[key].shape
    for dialect in DIALECTS:
        key = f"{torch_modules(name, [layer], dialect).get(layer)}.weight"
        if key in tensors:
            outputs, inputs, *window = tensors[key].shape
            return (*window, inputs, outputs)
    return None


def _side(name: str, tensors: Mapping[str, Stored]) -> tuple[int, int] | None:
    """The input size where weights depend on it."""
    positions = next((tensors[key].shape[1] - 1 for key in _POSITIONS if key in tensors), None)
    if positions is not None:
        side = round(positions**0.5) * _PATCH
        return side, side
    first = _shape(name, "fc1", tensors) if name.startswith("vgg") else None
    if first is None:
        return None
    pixels = first[0] * first[1] if len(first) == 4 else first[0] // 512
    side = round(pixels**0.5) * _VGG_REDUCTION
    return side, side
