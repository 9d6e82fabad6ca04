"""Trains a recipe on one GPU with Keras's JAX backend: an epoch is one compiled loop over images on the device.

    python benchmarks/train_jax.py FOLDER --recipe fashion_mnist --model resnet56 --seeds 0,1,2

For a machine that has JAX and no TensorFlow. Beyond ResNet-20, the weights that come with the package were trained this
way. Order and augmentation are those of `keras-resnets train` to the image, and so are schedule, penalty
and update; other are the random numbers of the initial weights, and sums are not the same to the bit from run to run.
tests/training/test_jax_trainer.py holds the losses of both to each other.

FOLDER gets a folder MODEL-seedN each, like that of `keras-resnets train`, with the weights as model.safetensors. Needs
Keras, JAX, Pillow, rich and safetensors, and no TensorFlow.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_resnets.atomic import atomic_file
from keras_resnets.data import Dataset, load_dataset
from keras_resnets.data.augmentation import Augmentation, draw
from keras_resnets.data.dataset import DataError, Split
from keras_resnets.data.plan import epoch_order, steps_per_epoch
from keras_resnets.models import create_model
from keras_resnets.models.files import describe
from keras_resnets.models.layers import linear_head
from keras_resnets.models.loading import save_weights
from keras_resnets.training.config import Recipe, TrainingError
from keras_resnets.training.recipes import RECIPES

# What a recipe may say beside these is not here.
_USED = {
    "model", "data", "epochs", "batch_size", "learning_rate", "warmup_epochs", "momentum", "nesterov", "weight_decay",
    "precision", "pad", "flip", "train_images", "seed", "deterministic",
}  # fmt: skip
_TEST_BATCH = 1000
_EVALUATION = "evaluation.json"
Row = dict[str, Any]


class Trainer:
    """Trains one network again and again, compiled once.

    Args:
        recipe: SGD with a cosine schedule, crops and mirrors; its seed does not matter.
        data: images and labels.
        curve: test images whose error every epoch's row has, spread evenly; 0: none.

    Raises:
        ValueError: when the recipe asks for something else.
    """

    def __init__(self, recipe: Recipe, data: Dataset, curve: int = 0) -> None:
        plain = Recipe(model=recipe.model, data=recipe.data, epochs=recipe.epochs).to_dict()
        if strange := [name for name, value in recipe.to_dict().items() if value != plain[name] and name not in _USED]:
            raise ValueError(f"this trainer knows nothing of {', '.join(strange)}: use keras-resnets train")
        self.recipe, self.data = recipe, data.limit(recipe.train_images)
        self.steps = steps_per_epoch(len(self.data.train), recipe.batch_size)
        self.curve = np.linspace(0, len(data.test) - 1, curve).astype(np.int64) if curve else None
        self.model = self._network()
        describe(self.model, data.preprocessing, data.class_names)
        self.images, self.labels = (jnp.asarray(array) for array in _arrays(self.data.train))
        self._decays = [variable.name.endswith("kernel") for variable in self.model.trainable_variables]
        self._epoch = jax.jit(self._run_epoch, donate_argnums=0)
        self._test = jax.jit(self._run_test)

    def run(self, seed: int, start: Path | None = None) -> Iterator[Row]:
        """Train with a seed from fresh weights, or those of a file; a row after each epoch."""
        recipe = self.recipe
        keras.utils.set_random_seed(seed)
        for variable, value in zip(self.model.variables, self._network(start).variables, strict=True):
            variable.assign(value)
        state = self._state()
        state = (*state, [jnp.zeros_like(value) for value in state[0]])
        seen = self.steps * recipe.batch_size
        for epoch in range(recipe.epochs):
            began = time.perf_counter()
            state, losses, correct = self._epoch(state, self.images, self.labels, *self._plan(seed, epoch))
            losses = np.asarray(losses, np.float64)
            if not np.isfinite(losses).all():
                raise FloatingPointError(f"{recipe.model}, seed {seed}: the loss is not finite in epoch {epoch + 1}")
            seconds = time.perf_counter() - began
            row = {"epoch": epoch + 1, "loss": float(losses.mean()), "accuracy": int(np.sum(correct)) / seen}
            if self.curve is not None:
                row |= {f"val_{name}": value for name, value in self.test(state, self.curve).items()}
            after = float(self.rates(np.array((epoch + 1) * self.steps)))
            yield row | {"learning_rate": after, "seconds": seconds, "images_per_second": seen / seconds}
        own = self.model.trainable_variables, self.model.non_trainable_variables
        for variables, values in zip(own, state[:2], strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _plan(self, seed: int, epoch: int) -> list[Any]:
        """[steps, batch, …] each: rows of the images, corners of the crops, who is mirrored; and the rates [steps]."""
        recipe, number = self.recipe, len(self.data.train)
        order = epoch_order(number, seed, epoch)[: self.steps * recipe.batch_size]
        augmentation = Augmentation(pad=recipe.pad, flip=recipe.flip)
        draws = draw(augmentation, number, self.data.preprocessing.size, seed, epoch)
        corners = np.zeros((number, 2), np.int32) if draws.offsets is None else draws.offsets
        mirrored = np.zeros(number, bool) if draws.flips is None else draws.flips
        columns = order.astype(np.int32), corners[order], mirrored[order]
        batches = [column.reshape(self.steps, recipe.batch_size, *column.shape[1:]) for column in columns]
        return [*batches, self.rates(np.arange(epoch * self.steps, (epoch + 1) * self.steps))]

    def rates(self, step: Any) -> Any:
        """The learning rates at steps, float32 as `step` is shaped: a linear warm-up, then half a cosine."""
        total = self.steps * self.recipe.epochs
        warmup = min(round(self.steps * self.recipe.warmup_epochs), total - 1)
        falling = 0.5 * (1 + np.cos(math.pi * (step - warmup) / (total - warmup)))
        return (self.recipe.peak_rate * np.where(step < warmup, step / max(warmup, 1), falling)).astype(np.float32)

    def test(self, state: Any = None, rows: Any = None) -> dict[str, float]:
        """Mean loss and accuracy over the test images, or some rows, in float32; by default of the model as it is."""
        params, moving = (state or self._state())[:2]
        images, labels = _arrays(self.data.test if rows is None else self.data.test.take(rows))
        sums = np.zeros(2)
        with jax.default_matmul_precision("highest"):
            for begin in range(0, len(images), _TEST_BATCH):
                part = slice(begin, begin + _TEST_BATCH)
                sums += np.asarray(self._test(params, moving, images[part], labels[part]), np.float64)
        return dict(zip(("loss", "accuracy"), (sums / len(images)).tolist(), strict=True))

    def _network(self, weights: Path | None = None) -> Any:
        rule = self.data.preprocessing
        shape = (*rule.size, rule.channels)
        return create_model(self.recipe.model, input_shape=shape, classes=len(self.data.class_names), weights=weights)

    def _state(self) -> tuple[list[Any], list[Any]]:
        # Copies: an epoch gives its arguments' memory away.
        return tuple(
            [jnp.array(variable.value) for variable in variables]
            for variables in (self.model.trainable_variables, self.model.non_trainable_variables)
        )  # type: ignore[return-value]

    def _run_epoch(
        self, state: Any, images: Any, labels: Any, order: Any, offsets: Any, flips: Any, rates: Any
    ) -> tuple[Any, Any, Any]:
        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            rows, corners, mirrored, rate = batch
            params, moving, momenta = state
            pixels = _changed(images[rows], corners, mirrored, self.recipe.pad)
            slopes = jax.value_and_grad(self._loss, has_aux=True)
            (loss, (moving, correct)), gradients = slopes(params, moving, pixels, labels[rows])
            params, momenta = self._updated(params, momenta, gradients, rate)
            return (params, moving, momenta), (loss, correct)

        with _mixed(self.model, self.recipe.precision):
            state, (losses, correct) = jax.lax.scan(step, state, (order, offsets, flips, rates))
        return state, losses, correct

    def _run_test(self, params: Any, moving: Any, pixels: Any, labels: Any) -> Any:
        logits, _ = self._logits(params, moving, pixels, training=False)
        return jnp.stack([_cross_entropy(logits, labels).sum(), (logits.argmax(-1) == labels).sum()])

    def _loss(self, params: Any, moving: Any, pixels: Any, labels: Any) -> tuple[Any, Any]:
        logits, moving = self._logits(params, moving, pixels, training=True)
        return _cross_entropy(logits, labels).mean(), (moving, (logits.argmax(-1) == labels).sum())

    def _logits(self, params: Any, moving: Any, pixels: Any, training: bool) -> tuple[Any, Any]:
        rule = self.data.preprocessing
        mean, std = (jnp.asarray(values, jnp.float32) for values in (rule.mean, rule.std))
        inputs = (pixels.astype(jnp.float32) * np.float32(rule.scale) - mean) / std
        with linear_head(self.model):
            logits, moving = self.model.stateless_call(params, moving, inputs, training=training)
        return logits.astype(jnp.float32), moving

    def _updated(self, params: Any, momenta: Any, gradients: Any, rate: Any) -> tuple[list[Any], list[Any]]:
        """SGD with momentum in Keras's form; to those of kernels the gradient of 0.5 · decay · Σw² is added."""
        new_params, new_momenta = [], []
        for weight, momentum, gradient, decays in zip(params, momenta, gradients, self._decays, strict=True):
            slope = gradient + self.recipe.weight_decay * weight if decays else gradient
            velocity = self.recipe.momentum * momentum - rate * slope
            change = self.recipe.momentum * velocity - rate * slope if self.recipe.nesterov else velocity
            new_params.append(weight + change)
            new_momenta.append(velocity)
        return new_params, new_momenta


def _arrays(split: Split) -> tuple[Any, Any]:
    return np.asarray(split.images), np.asarray(split.labels, np.int32)


def _changed(pixels: Any, corners: Any, mirrored: Any, pad: int) -> Any:
    """Each image cropped from a border of zeros, and every flagged one mirrored."""
    padded = jnp.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = pixels.shape[1:]
    cropped = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), size))(padded, corners)
    return jnp.where(mirrored[:, None, None, None], cropped[:, :, ::-1], cropped)


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


@contextmanager
def _mixed(model: Any, precision: str) -> Iterator[None]:
    """While it is traced, the network computes in this precision, its classifier in float32."""
    if precision == "float32":
        yield
        return
    layers = [layer for layer in model._flatten_layers() if layer is not model.layers[-1] and layer is not model]
    for layer in layers:
        layer.dtype_policy = f"mixed_{precision}"
    try:
        yield
    finally:
        for layer in layers:
            layer.dtype_policy = "float32"


def write_run(folder: Path, recipe: Recipe, rows: Sequence[Row], test: dict[str, float]) -> None:
    """The records of a finished run, named as those of `keras-resnets train`."""
    times = ("seconds", "images_per_second")
    history = [{name: value for name, value in row.items() if name not in times} for row in rows]
    packages = ("keras", "jax", "numpy")
    environment = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "devices": {jax.devices()[0].device_kind: 1},
        "strategy": "benchmarks/train_jax.py",
    }
    with atomic_file(folder / "log.csv") as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    contents = {
        "environment.json": environment,
        "recipe.json": recipe.to_dict(),
        "history.json": history,
        _EVALUATION: {"test": test},  # last: where it is, the run is whole
    }
    for name, content in contents.items():
        with atomic_file(folder / name) as draft:
            draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def recipe_named(name: str) -> Recipe:
    """One of RECIPES, or that of a recipe.json."""
    if name.endswith(".json"):
        return Recipe.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", required=True, help=f"{', '.join(RECIPES)}, or a recipe.json")
    parser.add_argument("--model", help="instead of the recipe's")
    parser.add_argument("--seeds", default="0", help="one training each (default 0)")
    parser.add_argument("--precision", default="bfloat16", help="default bfloat16")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, for a trial")
    parser.add_argument("--curve", type=int, default=0, metavar="N", help="test images measured after every epoch")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no seed that, as long as the last, would end after these"
    )
    given = parser.parse_args()
    changes: Row = {"precision": given.precision}
    changes |= {name: value for name in ("model", "epochs") if (value := getattr(given, name)) is not None}
    recipe = replace(recipe_named(given.recipe), **changes)
    trainer = Trainer(recipe, load_dataset(recipe.data), given.curve)
    began, last = time.monotonic(), 0.0
    for seed in map(int, given.seeds.split(",")):
        now = time.monotonic()
        if now + last > began + 60 * given.minutes:
            break
        run = given.folder / f"{recipe.model}-seed{seed}"
        if (run / _EVALUATION).exists():
            print(f"{run} is there already")
            continue
        run.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in trainer.run(seed):
            rows.append(row)
            print(recipe.model, seed, {name: round(value, 4) for name, value in row.items()}, flush=True)
        test = trainer.test()
        save_weights(trainer.model, run / "model.safetensors")
        write_run(run, replace(recipe, seed=seed), rows, test)
        print(recipe.model, seed, "test", test, flush=True)
        last = time.monotonic() - now


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TrainingError, DataError) as problem:
        sys.exit(f"train_jax.py: {problem}")
