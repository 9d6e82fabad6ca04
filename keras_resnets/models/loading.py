"""Loads weights into a model: all that fits, with a warning of what cannot, and an error for what should."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_resnets import labels as names
from keras_resnets.atomic import atomic_file
from keras_resnets.models import model_info
from keras_resnets.models.conversion import KERAS, ZOO, Binding, bindings
from keras_resnets.models.files import Architecture, apply_card, card, describe, load_model, read_card
from keras_resnets.models.tensors import Stored, read_h5, read_safetensors, write_safetensors
from keras_resnets.models.torch_names import DIALECTS, HEAD, torch_modules, torch_variant
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.weights import Weights, WeightsError, download, find_weights

SUFFIXES = (".safetensors", ".weights.h5", ".h5", ".keras")


class WeightsWarning(UserWarning):
    """A part of a network that its weights do not fit, and that stays random."""


class Source(NamedTuple):
    """A weights file, the variant that it is for (None: unknown, or there are none), and its ledger record."""

    path: Path
    variant: str | None
    record: Weights | None


def find_source(model: str, weights: str | Path | None, variant: str | None) -> Source | None:
    """Where the `weights` of a constructor come from; downloads those of the ledger.

    Raises:
        WeightsError: when they cannot be had, or belong to another variant than the one asked for.
    """
    if weights is None:
        return None
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
    return Source(download(record) if record else path, own, record)


def _is_path(weights: str | Path) -> bool:
    return isinstance(weights, Path) or weights.endswith(SUFFIXES) or "/" in weights or "\\" in weights


def _variant_of(path: Path, model: str) -> str | None:
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"weights={str(path)!r}: a weights file ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    if path.name.endswith(".weights.h5"):
        return None
    if path.suffix == ".h5":
        return "keras" if torch_variant(model) else None
    stored = _card_of(path)
    if stored is None:  # timm's or torchvision's
        return torch_variant(model)
    architecture = stored.get("architecture") or {}
    return (architecture.get("options") or {}).get("variant")


def _card_of(path: Path) -> dict[str, Any] | None:
    """What a file says of itself; None for a foreign safetensors file."""
    try:
        if path.suffix == ".keras":
            return read_card(path)
        stored = read_safetensors(path).metadata.get("keras_resnets")
        return json.loads(stored) if stored else None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
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
        WeightsError: when the model is none of this package, or none that timm and torchvision have.
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
        WeightsError: when the file is unreadable or of another network; the model is unchanged then.
    """
    label = source.record.name if source.record else str(source.path)
    if source.path.name.endswith(".weights.h5"):
        _load_keras_weights(model, source.path)
        return
    complete = _transfer(model, *_open(model, source), label)
    if source.record:
        own = _fitted(source.record.preprocessing, model)
        fits = complete and model.output_shape[1:] == (source.record.classes,)
        describe(model, own, names.imagenet() if fits and source.record.labels == "imagenet" else None)
    else:
        _adopt_card(model, _card_of(source.path) if source.path.suffix != ".h5" else None, complete)


def _load_keras_weights(model: Any, path: Path) -> None:
    try:
        model.load_weights(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} does not fit {model.name}: {error}. A .weights.h5 file numbers its layers, so the network must be "
            "the same in everything; .keras and .safetensors files name them"
        ) from error


def _open(model: Any, source: Source) -> tuple[Mapping[str, Stored], list[Binding], set[str]]:
    """A file's tensors, the model's pairs for their naming, and keys that include_top=False leaves away."""
    path, name = source.path, model.architecture.model
    if path.suffix == ".keras":
        donor = bindings(load_model(path), ZOO, name)
        tensors = {pair.key: Stored(pair.shape, pair.read) for pair in donor}
        return tensors, bindings(model, ZOO, name), _heads(tensors)
    if path.suffix == ".h5":
        tensors = _classifier_by_shape(read_h5(path), model)
        return tensors, bindings(model, KERAS, name), _heads(tensors)
    file, own = read_safetensors(path), _card_of(path)
    if own and own.get("naming") == ZOO:
        return file.tensors, bindings(model, ZOO, name), _heads(file.tensors)
    tensors = {key: value for key, value in file.tensors.items() if not key.endswith(".num_batches_tracked")}
    candidates = [(bindings(model, dialect, name), dialect) for dialect in DIALECTS]
    pairs, dialect = max(candidates, key=lambda item: sum(pair.key in tensors for pair in item[0]))
    heads = torch_modules(name, HEAD, dialect).values()
    return tensors, pairs, {f"{module}.{role}" for module in heads for role in ("weight", "bias")}


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
    may_differ = {pairs[0].layer, *HEAD} if pairs else set()
    plan: list[tuple[Binding, Callable[[], Any]]] = []
    left: dict[str, str] = {}
    wrong = []
    for pair in pairs:
        stored = tensors.get(pair.key)
        if stored and stored.shape == pair.shape:
            plan.append((pair, stored.read))
        elif stored and (resized := _resized(pair, stored)) is not None:
            plan.append((pair, partial(np.asarray, resized)))
        elif pair.layer in may_differ and (stored or pair.layer in HEAD):
            left.setdefault(pair.layer, _difference(pair, stored))
        else:
            wrong.append(f"{pair.key} {_difference(pair, stored)}")
    wrong += [f"{key} has no place" for key in sorted(set(tensors) - {pair.key for pair in pairs} - heads)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{label} are not weights of this {model.name}: {'; '.join(wrong[:3])}{more}")
    _assign([item for item in plan if item[0].layer not in left], label)
    if left:
        text = "; ".join(f"{layer} {difference}" for layer, difference in left.items())
        warnings.warn(f"{label}: not everything fits {model.name}, and stays random: {text}", WeightsWarning, 4)
    return not left.keys() & set(HEAD)


def _assign(plan: Sequence[tuple[Binding, Callable[[], Any]]], label: str) -> None:
    try:
        for pair, read in plan:
            pair.assign(read())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{label} cannot be read: {error}") from error


def _resized(pair: Binding, stored: Stored) -> Any:
    if len(stored.shape) != len(pair.shape) or stored.shape[-1] != pair.shape[-1]:
        return None
    return pair.resize(stored.read())


def _difference(pair: Binding, stored: Stored | None) -> str:
    return f"is {list(stored.shape)}, not {list(pair.shape)}" if stored else "is missing"


def _adopt_card(model: Any, stored: dict[str, Any] | None, complete: bool) -> None:
    if not stored:
        return
    architecture, labels = model.architecture, tuple(stored.get("labels") or ())
    try:
        apply_card(model, {**stored, "architecture": None})
    except ValueError as error:
        raise WeightsError(f"what the weights of {model.name} say of themselves is not readable: {error}") from error
    own = _fitted(model.preprocessing, model) if model.preprocessing else None
    fits = complete and model.output_shape[1:] == (len(labels),)
    describe(model, own, labels if fits else None, architecture)


def _fitted(preprocessing: Preprocessing, model: Any) -> Preprocessing | None:
    """The same transform for the size that the model takes; None where it takes other channels."""
    height, width, channels = model.inputs[0].shape[1:]
    if channels != preprocessing.channels:
        return None
    size = (height or preprocessing.size[0], width or preprocessing.size[1])
    if size == preprocessing.size:
        return preprocessing
    scale = max(size) / max(preprocessing.size)
    resize = preprocessing.resize and max(round(preprocessing.resize * scale), *size)
    return replace(preprocessing, size=size, resize=resize)
