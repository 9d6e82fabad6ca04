"""A training run: a recipe and a folder in, a trained model with its records out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file
from keras_resnets.data import Dataset, load_dataset
from keras_resnets.data.dataset import Split
from keras_resnets.data.pipeline import Augmentation, evaluation_batches, training_batches
from keras_resnets.extras import extra
from keras_resnets.models import create_model
from keras_resnets.models.files import describe, save_model
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.training.config import Recipe, TrainingError
from keras_resnets.training.loop import Loop, make_optimizer
from keras_resnets.training.strategy import check_batch_size, make_strategy

with extra("tensorflow"):
    import keras

MODEL, RECIPE, HISTORY, EVALUATION = "model.keras", "recipe.json", "history.json", "evaluation.json"
_EVALUATION_BATCH = 256


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    strategy: str = "auto",
    callbacks: Sequence[Any] = (),
    dataset: Dataset | None = None,
    overwrite: bool = False,
    verbose: bool = True,
) -> Any:
    """Train a model from scratch and evaluate it on the test images, once, at the end.

    Args:
        recipe: what to train.
        folder: of the run. It gets recipe.json, history.json (a row an epoch), model.keras (after every
            epoch; with preprocessing and class names) and evaluation.json.
        strategy: "auto", "single" or "mirrored"; see `make_strategy`.
        callbacks: Keras callbacks; those that change a learning rate find a schedule and no `model.optimizer`.
        dataset: instead of loading the recipe's.
        overwrite: replace the run that the folder holds.
        verbose: show a progress bar on standard error.

    Returns:
        The trained Keras model, with `preprocessing` and `labels`.

    Raises:
        TrainingError: when the folder holds a run, the batch does not fit the replicas or the loss diverges.
        DataError: when the data cannot be read.
        ValueError: for an unknown model.
    """
    folder = Path(folder)
    if (folder / RECIPE).exists() and not overwrite:
        raise TrainingError(
            f"{folder} already holds a run: choose another folder, or pass overwrite=True (--overwrite)"
        )
    data = (dataset or load_dataset(recipe.data)).hold_out(recipe.validation)
    if len(data.train) < recipe.batch_size:
        raise TrainingError(f"batch_size {recipe.batch_size} is more than the {len(data.train)} training images")
    scope = make_strategy(strategy)
    check_batch_size(recipe.batch_size, scope)
    steps = len(data.train) // recipe.batch_size
    keras.utils.set_random_seed(recipe.seed)
    with scope.scope():
        model = _build(recipe, data, scope.num_replicas_in_sync)
        loop = Loop(model, make_optimizer(recipe, steps), recipe, scope)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (MODEL, HISTORY, EVALUATION):
        (folder / stale).unlink(missing_ok=True)
    _write_json(folder / RECIPE, asdict(recipe))
    if verbose:
        from keras_resnets.training.progress import ProgressBar

        callbacks = [*callbacks, ProgressBar(recipe.epochs, steps, recipe.batch_size)]
    _run_epochs(loop, data, folder, keras.callbacks.CallbackList(list(callbacks), model=model))
    save_model(model, folder / MODEL)  # a callback may have restored better weights at the end
    _write_json(folder / EVALUATION, {"test": _evaluate(loop, data.test, data.preprocessing)})
    return model


def evaluate_model(model: Any, split: Split, preprocessing: Preprocessing | None = None) -> dict[str, float]:
    """Mean "loss" and "accuracy" of a classifier on a split, on one device.

    Args:
        model: a Keras model that gives probabilities or logits [batch, classes].
        split: images and labels.
        preprocessing: by default the model's own.

    Raises:
        TrainingError: when neither gives a preprocessing.
    """
    own = preprocessing or getattr(model, "preprocessing", None)
    if own is None:
        raise TrainingError(f"{model.name} does not carry its preprocessing: pass preprocessing=")
    nothing = Recipe(model=model.name, data="", epochs=1)
    return _evaluate(Loop(model, None, nothing, make_strategy("single")), split, own)


def _build(recipe: Recipe, data: Dataset, replicas: int) -> Any:
    shape = (*data.preprocessing.size, data.preprocessing.channels)
    model = create_model(recipe.model, input_shape=shape, classes=len(data.class_names))
    describe(model, data.preprocessing, data.class_names)
    if recipe.sync_batch_norm and replicas > 1:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return model


def _run_epochs(loop: Loop, data: Dataset, folder: Path, callbacks: Any) -> None:
    recipe, history = loop.recipe, []
    augmentation = Augmentation(recipe.pad, recipe.flip)
    loop.model.stop_training = False
    callbacks.on_train_begin()
    try:
        for epoch in range(recipe.epochs):
            callbacks.on_epoch_begin(epoch)
            began = time.perf_counter()
            batches = training_batches(
                data.train, data.preprocessing, augmentation, recipe.batch_size, recipe.seed, epoch
            )
            row = loop.train_epoch(batches, lambda step, sums: callbacks.on_train_batch_end(step, _running(sums)))
            row["seconds"] = time.perf_counter() - began
            if data.validation:
                held_out = _evaluate(loop, data.validation, data.preprocessing)
                row |= {f"val_{name}": value for name, value in held_out.items()}
            row["learning_rate"] = float(loop.optimizer.learning_rate)
            history.append({"epoch": epoch + 1, **row})
            callbacks.on_epoch_end(epoch, row)
            save_model(loop.model, folder / MODEL)
            _write_json(folder / HISTORY, history)
            if loop.model.stop_training:  # as EarlyStopping asks
                break
    finally:
        callbacks.on_train_end()


def _running(sums: Any) -> dict[str, Any]:
    """What Keras callbacks read after a batch: means over the epoch so far."""
    return {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2]}


def _evaluate(loop: Loop, split: Split, preprocessing: Preprocessing) -> dict[str, float]:
    return loop.evaluate(evaluation_batches(split, preprocessing, _EVALUATION_BATCH))


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
