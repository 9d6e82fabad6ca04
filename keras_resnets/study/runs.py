"""The trainings that studies are made of: each in a folder of its own, finished, resumed or begun."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_resnets.data import Dataset
from keras_resnets.extras import extra
from keras_resnets.study.outcome import StudyError
from keras_resnets.training.config import RECIPE, Recipe, differences, read_recipe
from keras_resnets.training.records import ENVIRONMENT, EVALUATION, HISTORY, environment
from keras_resnets.training.run import train

with extra("tensorflow"):
    import keras
    import tensorflow as tf


def finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder holds the whole training of a recipe.

    Raises:
        StudyError: when it is that of another recipe; one that is not finished is refused by `train`.
    """
    if not (folder / EVALUATION).is_file() or not (folder / RECIPE).is_file():
        return False
    if told := differences(read_recipe(folder).to_dict(), recipe.to_dict()):
        raise StudyError(f"{folder} holds a training with {told}: choose another folder for the study")
    return True


def train_run(recipe: Recipe, folder: Path, data: Dataset, note: str = "", verbose: bool = True, **options: Any) -> Any:
    """Train, or go on with a training; the model. `note` says on standard error which of many it is."""
    if verbose:
        print(f"training {recipe.model}, seed {recipe.seed}" + (f" ({note})" if note else ""), file=sys.stderr)
    # The networks of a long study would fill the memory: Keras keeps what was built.
    keras.utils.clear_session()
    gc.collect()
    return train(recipe, folder, dataset=data, verbose=verbose, **options)


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's history.json, one an epoch."""
    rows: list[dict[str, Any]] = _read(folder / HISTORY)
    return rows


def test_accuracy(folder: Path) -> float:
    """Of a finished run."""
    return float(_read(folder / EVALUATION)["test"]["accuracy"])


def environment_of(folder: Path) -> dict[str, Any]:
    """Versions and devices of a run."""
    found: dict[str, Any] = _read(folder / ENVIRONMENT)
    return found


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def merged(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several as one; where they differ, a list of what there is."""
    found = {}
    for name in dict.fromkeys(name for one in environments for name in one):
        values: list[Any] = []
        for one in environments:
            if one.get(name) not in values:
                values.append(one.get(name))
        found[name] = values[0] if len(values) == 1 else values
    return found


def this_environment() -> dict[str, Any]:
    """Versions and devices, for whoever reads the numbers later."""
    return environment(tf.distribute.get_strategy())
