"""Loads weights into a model: all that fits, with a warning of what cannot, and an error for what should."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_resnets import labels as names
from keras_resnets.atomic import atomic_file
from keras_resnets.models import model_info
from keras_resnets.models.conversion import (
    KERAS,
    ROLES,
    ZOO,
    Array,
    Binding,
    bindings,
    own_layers,
    resize_positions,
    stored_grid,
)
from keras_resnets.models.files import Architecture, Card, card, describe, load_model, parse_card, read_card
from keras_resnets.models.tensors import (
    UNREADABLE,
    Stored,
    check_h5,
    read_h5,
    read_safetensors,
    write_safetensors,
)
from keras_resnets.models.torch_names import DIALECTS, HEAD, has_one_variant, same_variant, torch_modules, torch_variant
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.weights import Weights, WeightsError, download, find_weights

SUFFIXES = (".safetensors", ".weights.h5", ".h5", ".keras")
_VARIABLES = {*ROLES, "class_token", "position_embedding"}
_PACKAGE = Path(__file__).parent.parent
_FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".npz")  # files, and no tags, but none that are read here


class WeightsWarning(UserWarning):
    """A part of a network that its weights do not fit, and that stays random."""


class Source(NamedTuple):
    """A weights file, the variant that it is for (None: unknown, or there are none), and its ledger record.

    A record's file is downloaded when it is loaded: when the network stands.
    """

    path: Path
    variant: str | None
    record: Weights | None


def find_source(model: str, weights: str | Path | Weights | None, variant: str | None) -> Source | None:
    """Where the `weights` of a constructor come from.

    Raises:
        WeightsError: when they cannot be had, or belong to another variant than the one asked for.
    """
    if weights is None:
        return None
    record, path = None, Path()
    if isinstance(weights, Weights):
        record = find_weights(model, weights.name) if weights.model != model else weights
    elif isinstance(weights, (str, os.PathLike)) and _is_path(weights):
        path = Path(weights).expanduser()
    elif isinstance(weights, str) and weights:
        record = find_weights(model, weights)
    else:
        raise WeightsError(f"weights must be None (random), a tag or the path of a file, not {weights!r}")
    own = record.variant if record else _variant_of(path, model)
    if variant and own and not same_variant(model, variant, own):
        raise WeightsError(
            f"{record.name if record else path} are weights of the variant {own!r}, and variant={variant!r} was asked "
            "for: equal shapes, other strides or constants; leave variant= out"
        )
    return Source(path, own, record)


def _is_path(weights: str | os.PathLike[str]) -> bool:
    return not isinstance(weights, str) or weights.endswith((*SUFFIXES, *_FOREIGN)) or "/" in weights or "\\" in weights


def _variant_of(path: Path, model: str) -> str | None:
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"weights={str(path)!r}: a weights file ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    if path.name.endswith(".weights.h5"):
        return None
    if path.suffix == ".h5":
        return _variant_of_h5(path, model)
    told = _card_of(path)
    if told is None:  # timm's or torchvision's
        return torch_variant(model)
    if told.architecture is None:
        return None
    if told.architecture.model != model:  # its tensors may fit all the same: a plain network's, a residual one's
        raise WeightsError(f"{path} are weights of {told.architecture.model}, not of {model}")
    return told.architecture.options.get("variant")


def _variant_of_h5(path: Path, model: str) -> str | None:
    """The published files of keras.applications are its variant; a model saved here as .h5 may be any."""
    if torch_variant(model) is None:
        return None
    tensors = read_h5(path)
    if "conv1_bn/0" in tensors and "conv1_conv/1" not in tensors and not model.startswith("densenet"):
        return None  # its convolutions have no biases
    return "keras"


def warn_of_unknown_variant(source: Source, model: str, default: str) -> None:
    """Say which variant is taken where the file cannot say; equal shapes would make a mistake silent."""
    if not has_one_variant(model):
        _warn(f"{source.path} does not say its variant of {model}: taken as {default!r}; pass variant= to be sure")


def _warn(text: str) -> None:
    """Warn at the line of the first caller outside this package."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, WeightsWarning, level)


def _card_of(path: Path) -> Card | None:
    """What a file says of itself; None for a foreign safetensors file."""
    try:
        if path.suffix == ".keras":
            return read_card(path)
        stored = read_safetensors(path).metadata.get("keras_resnets")
        return parse_card(stored) if stored else None
    except WeightsError:
        raise
    except UNREADABLE as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def save_weights(model: Any, path: str | Path, naming: str = ZOO) -> Path:
    """Write a model's weights as a safetensors file, with its architecture, preprocessing and class names inside.

    The file appears whole or not at all. Values are not changed: back and forth is exact to the bit.

    Args:
        model: a network of this package, from its constructor or `load_model`.
        path: a path that ends in `.safetensors`; an existing file is replaced.
        naming: "zoo" (this package's), "timm" or "torchvision", whose models load the file.

    Raises:
        ValueError: for another naming or suffix.
        WeightsError: when the model is none of this package, or is a variant that timm and torchvision do not have.
    """
    if naming not in (ZOO, *DIALECTS):
        raise ValueError(f"naming must be one of {', '.join((ZOO, *DIALECTS))}, not {naming!r}")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the path of a weights file ends in .safetensors: {path}")
    architecture = getattr(model, "architecture", None)
    if architecture is None:
        raise WeightsError(
            f"{model.name} does not say which network it is: build it with its constructor, or load it "
            "with keras_resnets.load_model"
        )
    if naming in DIALECTS:
        _check_has_torch_form(architecture)
    own = own_layers(model, architecture.model)
    if others := [layer.name for layer in model.layers if layer.weights and layer.name not in own]:
        raise WeightsError(
            f"{others[0]} in {model.name} is no layer of {architecture.model}, so a weights file has no name for it; "
            "save the whole with keras_resnets.save_model"
        )
    if strange := [v.path for v in model.weights if v.path.rsplit("/", 1)[-1] not in _VARIABLES]:
        raise WeightsError(
            f"{model.name} has variables that the network itself has not ({strange[0]}): merge LoRA, and save before "
            "quantizing"
        )
    tensors = {pair.key: pair.read() for pair in bindings(model, naming, architecture.model)}
    if integers := [key for key, array in tensors.items() if array.dtype.kind not in "fV"]:
        raise WeightsError(f"{model.name}: {integers[0]} is quantized; save the weights before quantizing")
    metadata = {"keras_resnets": json.dumps({**card(model), "naming": naming})}
    with atomic_file(path) as draft:
        write_safetensors(tensors, draft, metadata if naming == ZOO else {**metadata, "format": "pt"})
    return Path(path)


def _check_has_torch_form(architecture: Architecture) -> None:
    model, options, _ = architecture
    expected = torch_variant(model)
    if expected and not same_variant(model, str(options.get("variant")), expected):
        raise WeightsError(
            f"the variant {options.get('variant')!r} of {model} computes something else than timm and torchvision do; "
            f"only {expected!r} has a form there"
        )
    if model_info(model).classes == 1000 and options.get("shortcut") not in (None, "B"):
        raise WeightsError(f"shortcut={options['shortcut']!r}: the networks of timm and torchvision have option B")


def load_source(model: Any, source: Source) -> None:
    """Fill a model, and attach the preprocessing and class names that belong to the weights.

    Raises:
        WeightsError: when the file cannot be had or read, or is of another network; the model is unchanged then.
    """
    if source.record:
        source = source._replace(path=download(source.record))
    label = source.record.name if source.record else str(source.path)
    if source.path.name.endswith(".weights.h5"):
        _load_keras_weights(model, source.path)
        return
    preprocessing, labels = _told(source)
    complete = _transfer(model, *_open(model, source), label, _grid_of(source))
    fits = complete and labels and model.output_shape[1:] == (len(labels),)
    describe(model, preprocessing and _fitted(preprocessing, model), labels if fits else None)


def _told(source: Source) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """The preprocessing and class names that belong to weights, where these are known."""
    if source.record:
        return source.record.preprocessing, names.of(source.record.labels)
    told = _card_of(source.path) if source.path.suffix != ".h5" else None
    return (told.preprocessing, told.labels) if told else (None, None)


def _grid_of(source: Source) -> tuple[int, int] | None:
    """Rows and columns of a Vision Transformer's patches, where the file says for which input it is."""
    told = _card_of(source.path) if source.path.suffix in (".keras", ".safetensors") else None
    shape = told.architecture.face.get("input_shape") if told and told.architecture else None
    return (shape[0] // 16, shape[1] // 16) if shape and None not in shape else None


def _load_keras_weights(model: Any, path: Path) -> None:
    check_h5(path)
    before = model.get_weights()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that keep what they had: all of them do
            model.load_weights(str(path))
    except UNREADABLE as error:
        model.set_weights(before)  # Keras stops in the middle
        what = str(error).partition("\n")[0]
        raise WeightsError(
            f"{path} does not fit {model.name}: {what[:200]} A .weights.h5 file numbers its layers, so the network "
            "must be the same in everything, classes and drop_path_rate too; .keras and .safetensors files name them"
        ) from error


def _open(model: Any, source: Source) -> tuple[Mapping[str, Stored], list[Binding], set[str]]:
    """A file's tensors, the model's pairs for their naming, and keys that include_top=False leaves away."""
    path, name = source.path, model.architecture.model
    if path.suffix == ".keras":
        donor = load_model(path)
        tensors = {pair.key: Stored(pair.shape, pair.read) for pair in bindings(donor, ZOO, name)}
        pairs, heads = bindings(model, ZOO, name), _heads(tensors)
        if tensors.keys() - heads == {pair.key for pair in pairs} - heads:
            _check_same_form(model, donor, path)
        return tensors, pairs, heads
    if path.suffix == ".h5":
        tensors = read_h5(path)
        return tensors, bindings(model, KERAS, name), _heads(tensors)
    file, own = read_safetensors(path), _card_of(path)
    if own and own.naming == ZOO:
        return file.tensors, bindings(model, ZOO, name), _heads(file.tensors)
    tensors = {key: value for key, value in file.tensors.items() if not key.endswith(".num_batches_tracked")}
    candidates = [bindings(model, dialect, name) for dialect in DIALECTS]
    pairs = max(candidates, key=lambda some: sum(pair.key in tensors for pair in some))
    # Of either dialect: without their heads, both may have the same names.
    heads = {module for each in DIALECTS for module in torch_modules(name, HEAD, each).values()}
    return tensors, pairs, {f"{module}.{role}" for module in heads for role in ("weight", "bias")}


def _check_same_form(model: Any, donor: Any, path: Path) -> None:
    """Refuse a file of equal weights whose strides, constants or shortcuts are others."""
    ours, theirs = _form(model), _form(donor)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise WeightsError(
                f"{path} is of another network or variant than {model.name}: "
                f"its {name} is {theirs.get(name, 'missing')}, not {ours.get(name, 'missing')}"
            )


def _form(model: Any) -> dict[str, str]:
    """What layers of the network's blocks do beside their weights."""
    return {
        layer.name: " ".join([type(layer).__name__, *(f"{key}={getattr(layer, key, None)}" for key in _CONSTANTS)])
        for layer in model.layers
        if re.match(r"(conv|block|pool)\d", layer.name) and type(layer).__name__ in _FORMING
    }


_CONSTANTS = ("strides", "epsilon")
_FORMING = ("Conv2D", "BatchNormalization", "LayerNormalization", "Add", "Multiply", "Concatenate", "AveragePooling2D")


def _heads(tensors: Mapping[str, Stored]) -> set[str]:
    return {key for key in tensors if key.partition("/")[0] in HEAD}


def _transfer(
    model: Any,
    tensors: Mapping[str, Stored],
    pairs: Sequence[Binding],
    heads: set[str],
    label: str,
    grid: tuple[int, int] | None,
) -> bool:
    """Assign what fits, once it is sure that the rest may differ; whether the classifier was part of it."""
    own = own_layers(model, model.architecture.model)
    first = next((pair.layer for pair in pairs if pair.layer in own), None)
    plan: list[tuple[Binding, Callable[[], Array]]] = []
    left: dict[str, str] = {}
    wrong = []
    for pair in pairs:
        stored = tensors.get(pair.key)
        known = stored and pair.grid and stored_grid(stored.shape, grid)
        if stored and known and known != pair.grid and stored.shape[-1] == pair.shape[-1]:
            plan.append((pair, partial(_resized, pair, stored, known)))
        elif stored and stored.shape == pair.shape:
            plan.append((pair, stored.read))
        elif _may_differ(pair, stored, first):
            left.setdefault(pair.layer, _difference(pair, stored))
        elif stored or pair.layer in own:  # what stands in front of an input_tensor need not be in the file
            wrong.append(f"{pair.key} {_difference(pair, stored)}")
    wrong += [f"{key} has no place" for key in sorted(set(tensors) - {pair.key for pair in pairs} - heads)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{label} are not weights of this {model.name}: {'; '.join(wrong[:3])}{more}")
    values = _read([item for item in plan if item[0].layer not in left], label)
    for pair, array in values:
        pair.assign(array)
    if left:
        text = "; ".join(f"{layer} {difference}" for layer, difference in left.items())
        _warn(f"{label}: not everything fits {model.name}, and stays random: {text}")
    return "predictions" in {pair.layer for pair, _ in values}


def _read(plan: Sequence[tuple[Binding, Callable[[], Array]]], label: str) -> list[tuple[Binding, Array]]:
    """All arrays of a plan, before the first is assigned: a file may be damaged in its middle."""
    try:
        values = [(pair, read()) for pair, read in plan]
    except UNREADABLE as error:
        raise WeightsError(f"{label} cannot be read: {error}") from error
    for pair, array in values:
        if array.dtype.kind != "f" and array.dtype.name not in ("bfloat16", pair.variables[0].dtype):
            raise WeightsError(f"{label}: {pair.key} holds {array.dtype}, not floating-point numbers")
    return values


def _resized(pair: Binding, stored: Stored, known: tuple[int, int]) -> Array:
    assert pair.grid is not None
    return resize_positions(stored.read(), pair.grid, known)


def _may_differ(pair: Binding, stored: Stored | None, first: str | None) -> bool:
    """Whether a tensor belongs to what other classes, channels or pixels change."""
    if pair.layer in HEAD:
        return stored is None or len(stored.shape) == len(pair.shape)
    return stored is not None and pair.layer == first and _has_other_channels(pair, stored)


def _has_other_channels(pair: Binding, stored: Stored) -> bool:
    """Whether a convolution's kernel differs in its inputs alone."""
    if len(stored.shape) != 4 or len(pair.shape) != 4:
        return False
    theirs, ours = (pair.unpack(np.broadcast_to(np.float32(0), x.shape))[0].shape for x in (stored, pair))
    return (*theirs[:2], theirs[3]) == (*ours[:2], ours[3])


def _difference(pair: Binding, stored: Stored | None) -> str:
    return f"is {list(stored.shape)} in the file, {list(pair.shape)} here" if stored else "is missing"


def _fitted(preprocessing: Preprocessing, model: Any) -> Preprocessing | None:
    """The same transform for the size that the model takes; None where it takes other channels."""
    shape = model.inputs[0].shape[1:]
    if len(shape) != 3 or shape[2] != preprocessing.channels:
        return None
    height, width, _ = shape
    size = (height or preprocessing.size[0], width or preprocessing.size[1])
    if size == preprocessing.size:
        return preprocessing
    scale = max(size) / max(preprocessing.size)
    resize = preprocessing.resize and max(round(preprocessing.resize * scale), *size)
    return replace(preprocessing, size=size, resize=resize)
