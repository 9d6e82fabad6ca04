"""Checkpoints of a run: whole or not there, checked when read, and the one before where the newest is damaged.

A checkpoint is one safetensors file. Its metadata holds the position as JSON, and a SHA-256 of position and arrays.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.atomic import atomic_file
from keras_resnets.extras import extra
from keras_resnets.training.config import TrainingError

with extra("tensorflow"):
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

FOLDER = "checkpoints"
KEPT = 2  # the newest, and one to fall back on
Arrays = Mapping[str, NDArray[Any]]


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    file: Path
    arrays: dict[str, NDArray[Any]]
    position: dict[str, Any]


def write_checkpoint(run: Path, arrays: Arrays, position: Mapping[str, Any]) -> Path:
    """Write a checkpoint, and delete those that are older than the newest two.

    Args:
        run: the run's folder.
        arrays: by name.
        position: JSON types; its "epoch" and "step" order the files.

    Raises:
        TrainingError: when it cannot be written, as on a full disk; those before stay.
    """
    folder = run / FOLDER
    file = folder / f"epoch{position['epoch']:05d}-step{position['step']:08d}.safetensors"
    text = json.dumps(position)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        with atomic_file(file) as draft:
            save_file(arrays, draft, {"position": text, "sha256": _digest(arrays, text)})
    except (OSError, SafetensorError) as error:
        there = list_checkpoints(run)
        rest = f"the last good one is {there[-1]}" if there else "there is none yet"
        raise TrainingError(
            f"the checkpoint {file} could not be written ({error}); {rest}. Make room, then run the same again"
        ) from error
    for old in list_checkpoints(run)[:-KEPT]:
        old.unlink(missing_ok=True)
    return file


def list_checkpoints(run: Path) -> list[Path]:
    """The files of a run's checkpoints, the newest last."""
    return sorted((run / FOLDER).glob("epoch*-step*.safetensors"))


def read_newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Warns:
        CheckpointWarning: of each newer one that is damaged.

    Raises:
        TrainingError: when there are some and all are damaged.
    """
    files = list_checkpoints(run)
    for file in reversed(files):
        try:
            return read_checkpoint(file)
        except TrainingError as error:
            warnings.warn(CheckpointWarning(f"{error}; trying the one before"), stacklevel=2)
    if files:
        raise TrainingError(
            f"no checkpoint in {run / FOLDER} can be read: pass overwrite=True (--overwrite) to start over"
        )
    return None


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint and compare it with its hash.

    Raises:
        TrainingError: when it is damaged, or not a checkpoint.
    """
    try:
        with safe_open(file, framework="numpy") as stored:
            told = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        if told["sha256"] != _digest(arrays, told["position"]):
            raise ValueError("its bytes are not those that were written")
        return Checkpoint(file, arrays, json.loads(told["position"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"checkpoint {file} is damaged ({error})") from error


def _digest(arrays: Arrays, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()
