"""Reads tensors from safetensors and legacy h5 files, numbers alone: nothing is unpickled or executed."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from keras_resnets.extras import extra
from keras_resnets.weights import WeightsError

with extra("tensorflow"):
    import h5py
    import safetensors
    import safetensors.numpy


# What h5py, safetensors and Keras raise at files that are damaged, or not what they seem.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    safetensors.SafetensorError,
)


class Stored(NamedTuple):
    """A tensor in a file: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Any]


class SafeTensors(NamedTuple):
    """The tensors of a file by key, and its metadata."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> SafeTensors:
    """Open a safetensors file.

    Raises:
        WeightsError: when it is missing, truncated or no such file.
    """
    try:
        file: Any = safetensors.safe_open(path, framework="numpy")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        metadata = file.metadata() or {}
    except UNREADABLE as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    return SafeTensors({key: Stored(shape, partial(file.get_tensor, key)) for key, shape in shapes.items()}, metadata)


def write_safetensors(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write NumPy arrays to a file."""
    safetensors.numpy.save_file(tensors, path, metadata)


def read_h5(path: Path) -> dict[str, Stored]:
    """The tensors of a legacy Keras h5 file (keras.applications') as "layer/0", "layer/1" in the layer's order.

    Raises:
        WeightsError: when it is not such a file.
    """
    try:
        file = h5py.File(path, "r")
        root = _member(file, "model_weights") if "model_weights" in file else file
        found = {}
        for layer in _texts(root, "layer_names"):
            group = _member(root, layer)
            for i, name in enumerate(_texts(group, "weight_names")):
                # Older files have names such as "conv1/conv", which Keras writes "conv1_conv" today.
                found[f"{layer.replace('/', '_')}/{i}"] = _dataset(group, name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except UNREADABLE as error:
        raise WeightsError(f"{path} is not a readable Keras h5 weights file: {error}") from error
    return _named_classifier(found)


def _named_classifier(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """keras.applications' files call the classifier "predictions", "probs" or "fc1000"."""
    dense = {key.rpartition("/")[0] for key, stored in tensors.items() if len(stored.shape) == 2}
    unknown = dense - {"fc1", "fc2", "predictions"}
    if "predictions" in dense or len(unknown) != 1:
        return tensors
    (name,) = unknown
    return {
        key.replace(f"{name}/", "predictions/", 1) if key.startswith(f"{name}/") else key: value
        for key, value in tensors.items()
    }


def _texts(group: Any, attribute: str) -> list[str]:
    """Names in an attribute; long lists are spread over attribute0, attribute1, …"""
    parts = [group.attrs[attribute]] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{attribute}{len(parts)}"])
    if not parts:
        raise KeyError(f"{attribute} is missing")
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def check_h5(path: Path) -> None:
    """See that an h5 file holds its tensors itself; older versions of Keras do not ask.

    Raises:
        WeightsError: when it is no h5 file, or one that would have another file read.
    """
    try:
        with h5py.File(path, "r") as file:
            _check_members(file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except UNREADABLE as error:
        raise WeightsError(f"{path} is not a readable h5 file: {error}") from error


def _check_members(group: Any) -> None:
    for name in group:
        if isinstance(_member(group, name), h5py.Group):
            _check_members(group[name])
        else:
            _dataset(group, name)


def _member(group: Any, name: str) -> Any:
    """What stands at a path in a group. A link on the way to another file would make reading one file read another."""
    for part in filter(None, name.split("/")):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise WeightsError(f"{name} is missing, or a link to somewhere else")
        group = group[part]
    return group


def _dataset(group: Any, name: str) -> Stored:
    dataset = _member(group, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise WeightsError(f"{name} is not a plain tensor")
    return Stored(tuple(dataset.shape), lambda: dataset[()])
