"""Loads weights into a model: all that fits, with a warning of what cannot, and an error for what should."""

from __future__ import annotations

import json
import re
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
from keras_resnets.models.conversion import KERAS, ZOO, Array, Binding, bindings, is_square_grid, own_layers
from keras_resnets.models.files import Architecture, Card, card, describe, load_model, parse_card, read_card
from keras_resnets.models.tensors import (
    UNREADABLE,
    Stored,
    check_h5,
    read_h5,
    read_safetensors,
    write_safetensors,
)
from keras_resnets.models.torch_names import DIALECTS, HEAD, torch_modules, torch_variant
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.weights import Weights, WeightsError, download, find_weights

SUFFIXES = (".safetensors", ".weights.h5", ".h5", ".keras")
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


def find_source(model: str, weights: str | Path | None, variant: str | None) -> Source | None:
    """Where the `weights` of a constructor come from.

    Raises:
        WeightsError: when they cannot be had, or belong to another variant than the one asked for.
    """
    if weights is None:
        return None
    if not isinstance(weights, (str, Path)):
        raise WeightsError(f"weights must be None, a tag or the path of a file, not {weights!r}")
    record = None
    if _is_path(weights):
        path, own = Path(weights), _variant_of(Path(weights), model)
    else:
        record = find_weights(model, str(weights))
        path, own = Path(), record.variant
    if variant and own and variant != own:
        raise WeightsError(
            f"{record.name if record else path} are weights of the variant {own!r}, and variant={variant!r} was asked "
            "for: equal shapes, other strides or constants; leave variant= out"
        )
    return Source(path, own, record)


def _is_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or weights.endswith((*SUFFIXES, *_FOREIGN)) or "/" in weights or "\\" in weights


def _variant_of(path: Path, model: str) -> str | None:
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"weights={str(path)!r}: a weights file ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    if path.name.endswith(".weights.h5"):
        return None
    if path.suffix == ".h5":
        return "keras" if torch_variant(model) else None
    told = _card_of(path)
    if told is None:  # timm's or torchvision's
        return torch_variant(model)
    if told.architecture is None:
        return None
    if told.architecture.model != model:  # its tensors may fit all the same: a plain network's, a residual one's
        raise WeightsError(f"{path} are weights of {told.architecture.model}, not of {model}")
    return told.architecture.options.get("variant")


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
    tensors = {pair.key: pair.read() for pair in bindings(model, naming, architecture.model)}
    metadata = {"keras_resnets": json.dumps({**card(model), "naming": naming})}
    with atomic_file(path) as draft:
        write_safetensors(tensors, draft, metadata if naming == ZOO else {**metadata, "format": "pt"})
    return Path(path)


def _check_has_torch_form(architecture: Architecture) -> None:
    model, options = architecture
    expected = torch_variant(model)
    if expected and options.get("variant") != expected:
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
    complete = _transfer(model, *_open(model, source), label)
    fits = complete and labels and model.output_shape[1:] == (len(labels),)
    describe(model, preprocessing and _fitted(preprocessing, model), labels if fits else None)


def _told(source: Source) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """The preprocessing and class names that belong to weights, where these are known."""
    if source.record:
        return source.record.preprocessing, names.imagenet() if source.record.labels == "imagenet" else None
    told = _card_of(source.path) if source.path.suffix != ".h5" else None
    return (told.preprocessing, told.labels) if told else (None, None)


def _load_keras_weights(model: Any, path: Path) -> None:
    check_h5(path)
    before = model.get_weights()
    try:
        model.load_weights(str(path))
    except UNREADABLE as error:
        model.set_weights(before)  # Keras stops in the middle
        raise WeightsError(
            f"{path} does not fit {model.name}: {error}. A .weights.h5 file numbers its layers, so the network must be "
            "the same in everything; .keras and .safetensors files name them"
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
        tensors = _classifier_by_shape(read_h5(path), model)
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


def _classifier_by_shape(tensors: dict[str, Stored], model: Any) -> dict[str, Stored]:
    """keras.applications' files call the classifier "predictions", "probs" or "fc1000"."""
    layers = {key.rpartition("/")[0] for key in tensors}
    if "predictions" in layers:
        return tensors
    unknown = [name for name in layers - {layer.name for layer in model.layers} if len(tensors[f"{name}/0"].shape) == 2]
    if len(unknown) != 1:
        return tensors
    return {
        (f"predictions/{key.rpartition('/')[2]}" if key.rpartition("/")[0] == unknown[0] else key): value
        for key, value in tensors.items()
    }


def _transfer(model: Any, tensors: Mapping[str, Stored], pairs: Sequence[Binding], heads: set[str], label: str) -> bool:
    """Assign what fits, once it is sure that the rest may differ; whether the classifier was part of it."""
    own = own_layers(model, model.architecture.model)
    first = next((pair.layer for pair in pairs if pair.layer in own), None)
    plan: list[tuple[Binding, Callable[[], Array]]] = []
    left: dict[str, str] = {}
    wrong = []
    for pair in pairs:
        stored = tensors.get(pair.key)
        if stored and stored.shape == pair.shape:
            plan.append((pair, stored.read))
        elif stored and _is_resizable(pair, stored):
            plan.append((pair, partial(_resized, pair, stored)))
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
        warnings.warn(f"{label}: not everything fits {model.name}, and stays random: {text}", WeightsWarning, 4)
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


def _is_resizable(pair: Binding, stored: Stored) -> bool:
    return pair.resize is not None and is_square_grid(stored.shape) and stored.shape[-1] == pair.shape[-1]


def _resized(pair: Binding, stored: Stored) -> Array:
    assert pair.resize is not None
    return pair.resize(stored.read())


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
    return f"is {list(stored.shape)}, not {list(pair.shape)}" if stored else "is missing"


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
