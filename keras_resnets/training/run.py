"""A training run: a recipe and a folder in, a trained model with its records out; killed, it goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras_resnets.data import Dataset, load_dataset
from keras_resnets.data.dataset import Split
from keras_resnets.data.pipeline import evaluation_batches
from keras_resnets.extras import extra
from keras_resnets.models import create_model, model_info
from keras_resnets.models.files import describe
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.training import records
from keras_resnets.training.checkpoint import FOLDER
from keras_resnets.training.config import RECIPE, Recipe, TrainingError, differences, read_recipe
from keras_resnets.training.course import Course, agree
from keras_resnets.training.determinism import op_determinism
from keras_resnets.training.feed import EVALUATION_BATCH, Feed
from keras_resnets.training.interrupt import Interrupts
from keras_resnets.training.loop import Loop
from keras_resnets.training.optimizers import make_optimizer
from keras_resnets.training.records import BEST, EVALUATION, MODEL, Records
from keras_resnets.training.schedule import Rate
from keras_resnets.training.steplog import STEPS
from keras_resnets.training.strategy import check_batch_size, is_chief, make_strategy, watching_peers

with extra("tensorflow"):
    import keras


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    strategy: str = "auto",
    callbacks: Sequence[Any] = (),
    metrics: Sequence[Any] = (),
    dataset: Dataset | None = None,
    resume: bool = True,
    overwrite: bool = False,
    save_minutes: float = 5.0,
    save_steps: int = 0,
    log_steps: int = 100,
    keep_best: bool = False,
    peer_timeout: float = 120.0,
    verbose: bool = True,
) -> Any:
    """Train a model and evaluate it on the test images, once, at the end; or go on with a run that was ended.

    A run that was killed at any moment and is started again ends with the weights of one that never was (`recipe`'s
    `deterministic` must stay true for the same bits).

    Args:
        recipe: what to train.
        folder: of the run. It gets recipe.json, environment.json, history.json (a row an epoch, the same in every
            run), log.csv (with times), steps.csv (means within epochs), tensorboard/, checkpoints/ (the newest two),
            curves.png, and at the end model.keras (with preprocessing and class names) and evaluation.json. Several
            workers need it in common.
        strategy: "auto", "single", "mirrored" or "multi-worker"; see `make_strategy`.
        callbacks: Keras callbacks. Those that set a learning rate need `schedule="constant"`; what they remember
            themselves does not survive a restart.
        metrics: Keras metrics beside loss and accuracy, of training, held-out and test images.
        dataset: instead of loading the recipe's.
        resume: go on with the folder's run if it has one of the same recipe; False makes that an error.
        overwrite: delete the folder's run and start over.
        save_minutes: minutes between checkpoints within an epoch; there is one after each epoch anyway.
        save_steps: steps between checkpoints within an epoch, instead; 0: none by steps.
        log_steps: steps between rows of steps.csv; 0: none.
        keep_best: also keep best.keras, of the epoch with the best accuracy on held-out images.
        peer_timeout: seconds without a sign of life after which a worker gives another one up.
        verbose: show a progress bar on standard error.

    Returns:
        The trained Keras model, with `preprocessing` and `labels`; with an EMA, the averaged weights.

    Raises:
        TrainingError: when the folder holds a finished or another run, the recipe does not fit the machine or the
            data, the loss diverges, or a checkpoint cannot be written.
        TrainingStopped: after SIGTERM or SIGUSR1, when the state was saved.
        KeyboardInterrupt: after Ctrl-C, when the state was saved.
        DataError: when the data cannot be read.
        ValueError: for an unknown model or option.
    """
    folder = Path(folder)
    model_info(recipe.model)
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file, not a folder for a run")
    if min(save_minutes, save_steps, log_steps) < 0 or peer_timeout <= 0:
        raise TrainingError("save_minutes, save_steps and log_steps must be at least 0, and peer_timeout more")
    if not overwrite:
        _refuse(folder, recipe, resume)
    if keep_best and not recipe.validation and dataset is None:
        raise TrainingError("keep_best needs held-out images: set validation, for example to 5000")
    # First, since several workers must meet before TensorFlow runs anything.
    scope = make_strategy(strategy, peer_timeout)
    check_batch_size(recipe.batch_size, scope)
    with ExitStack() as stack:
        stack.enter_context(watching_peers(scope))
        signals = stack.enter_context(Interrupts())
        if recipe.deterministic:
            stack.enter_context(op_determinism(True))
        data = _load(recipe, dataset)
        if is_chief(scope):
            stack.enter_context(records.only_one(folder))
            if overwrite:
                _clear(folder)
        agree(scope)  # nobody reads the folder before the chief has cleared it
        course = _prepare(recipe, data, folder, scope, metrics)
        course.save_seconds, course.save_steps = 60 * save_minutes, save_steps
        course.log_steps, course.keep_best = log_steps, keep_best
        if verbose and is_chief(scope):
            from keras_resnets.training.progress import ProgressBar

            bar = ProgressBar(recipe.epochs, course.feed.steps, recipe.batch_size, course.done_steps())
            callbacks = [*callbacks, bar]
        return course.to_the_end(callbacks, signals)


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
    return Loop(model, nothing, make_strategy("single")).evaluate(evaluation_batches(split, own, EVALUATION_BATCH))


def _refuse(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Raise TrainingError when the folder's run cannot be gone on with."""
    if not (folder / RECIPE).exists():
        return
    instead = "choose another folder, or pass overwrite=True (--overwrite)"
    if (folder / EVALUATION).exists():
        raise TrainingError(f"{folder} already holds a finished run: {instead}")
    if not resume:
        raise TrainingError(f"{folder} already holds a run: {instead}")
    ours = recipe.to_dict()
    del ours["steps_per_execution"]  # changes nothing but the speed
    if told := differences(read_recipe(folder).to_dict(), ours):
        raise TrainingError(f"{folder} holds a run of another recipe: {told}; {instead}")


_OURS = (
    RECIPE,
    MODEL,
    BEST,
    EVALUATION,
    records.HISTORY,
    records.ENVIRONMENT,
    records.LOG,
    STEPS,
    records.CURVES,
)
_OUR_FOLDERS = (FOLDER, records.TENSORBOARD)


def _clear(folder: Path) -> None:
    """Delete a run, and nothing else that lies there. The recipe goes last: without it there is no run."""
    for name in _OUR_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in reversed(_OURS):
        (folder / name).unlink(missing_ok=True)


def _load(recipe: Recipe, dataset: Dataset | None) -> Dataset:
    data = dataset or load_dataset(recipe.data, size=recipe.image_size or None)
    data = data.hold_out(recipe.validation).limit(recipe.train_images)
    if not len(data.train):
        raise TrainingError(f"{data.name} has no training images: --data fashion_mnist has them")
    if recipe.drop_last and len(data.train) < recipe.batch_size:
        raise TrainingError(f"batch_size {recipe.batch_size} is more than the {len(data.train)} training images")
    return data


def _prepare(recipe: Recipe, data: Dataset, folder: Path, scope: Any, metrics: Sequence[Any]) -> Course:
    keras.utils.set_random_seed(recipe.seed)
    feed = Feed(recipe, data, scope)
    rate = Rate(recipe, feed.steps)
    with scope.scope():
        model = build_model(recipe, data, scope.num_replicas_in_sync)
        optimizer = make_optimizer(recipe, rate, model.trainable_variables)
        loop = Loop(model, recipe, scope, optimizer=optimizer, metrics=metrics)
    course = Course(loop, rate, feed, data, folder, Records(folder, recipe))
    course.restore()
    return course


def build_model(recipe: Recipe, data: Dataset, replicas: int = 1) -> Any:
    """The recipe's untrained model, with the data's preprocessing and class names; in the strategy's scope."""
    shape = (*data.preprocessing.size, data.preprocessing.channels)
    options: dict[str, Any] = {name: value for name in ("variant", "shortcut") if (value := getattr(recipe, name))}
    if recipe.drop_path_rate:
        options["drop_path_rate"] = recipe.drop_path_rate
    if recipe.dropout_rate >= 0:
        options["dropout_rate"] = recipe.dropout_rate
    known = dict(model_info(recipe.model).options)
    if unknown := [name for name in options if name not in known]:
        raise TrainingError(f"{recipe.model} has no {unknown[0]}; it has {', '.join(known) or 'no options'}")
    model = create_model(recipe.model, input_shape=shape, classes=len(data.class_names), **options)
    describe(model, data.preprocessing, data.class_names)
    if recipe.sync_batch_norm and replicas > 1:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return model
