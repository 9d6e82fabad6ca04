"""What a run's folder tells people: recipe, environment, history, log, curves, TensorBoard's scalars."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file
from keras_resnets.extras import MissingExtraError, extra
from keras_resnets.machine import usable_cpus
from keras_resnets.training.config import RECIPE, Recipe, TrainingError
from keras_resnets.training.steplog import STEPS, read_steps

with extra("tensorflow"):
    import tensorflow as tf

MODEL, BEST, HISTORY, EVALUATION = "model.keras", "best.keras", "history.json", "evaluation.json"
ENVIRONMENT, LOG, CURVES, TENSORBOARD, LOCK = "environment.json", "log.csv", "curves.png", "tensorboard", ".lock"
Row = dict[str, Any]
_SCALAR = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however it ends.

    Raises:
        TrainingError: when another process trains into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is training into {folder}: wait for it, or choose another") from None
        yield
    finally:
        os.close(handle)


def environment(strategy: Any) -> Row:
    """Versions, devices and strategy, for whoever reads the figures later."""
    packages = ("keras-resnets", "tensorflow", "keras", "numpy")
    devices = [device.device_type for device in tf.config.list_logical_devices()]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": usable_cpus(),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
        "strategy": type(strategy).__name__,
        "replicas": strategy.num_replicas_in_sync,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


class Records:
    """Writes the records of a run after each epoch.

    Args:
        folder: of the run.
        recipe: of the run.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self._summaries: Any = None

    def begin(self, strategy: Any) -> None:
        """Write what is known before the first step."""
        for stale in self.folder.rglob(".writing-*"):  # of a process that was killed
            if stale.is_file():
                stale.unlink(missing_ok=True)
        write_json(self.folder / ENVIRONMENT, environment(strategy))
        write_json(self.folder / RECIPE, self.recipe.to_dict())

    def epoch(self, history: Sequence[Row], timing: Sequence[Row]) -> None:
        """Write history.json (the same in every run of the recipe), log.csv (with times) and TensorBoard's scalars."""
        write_json(self.folder / HISTORY, list(history))
        rows = [{**row, **times} for row, times in zip(history, timing, strict=True)]
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows(rows)
        with atomic_file(self.folder / LOG) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8")
        self.summarize({name: value for name, value in rows[-1].items() if name != "epoch"}, rows[-1]["epoch"])

    def summarize(self, row: Mapping[str, Any], step: int) -> None:
        """Write scalars for TensorBoard."""
        if self._summaries is None:
            self._summaries = tf.summary.create_file_writer(str(self.folder / TENSORBOARD))
        with self._summaries.as_default():
            for name, value in row.items():
                # What tf.summary.scalar does, which needs TensorBoard only to be read.
                tf.summary.write(name, tf.constant(value, tf.float32), step, _SCALAR)
        self._summaries.flush()

    def end(self, history: Sequence[Row], steps_per_epoch: int) -> None:
        """Draw the curves, where matplotlib is installed."""
        if self._summaries is not None:
            self._summaries.close()
        steps = read_steps(self.folder / STEPS)
        if history or steps:
            title = f"{self.recipe.model} on {self.recipe.data}"
            with suppress(MissingExtraError):  # pictures are the `study` extra's
                draw_curves(history, self.folder / CURVES, title, steps, steps_per_epoch)


def draw_curves(
    history: Sequence[Row], file: Path, title: str, steps: Sequence[Row] = (), steps_per_epoch: int = 1
) -> None:
    """Draw loss, error and learning rate by epoch as a PNG; with the rows of steps.csv, training within epochs too.

    A run that was ended in its first epoch has nothing but those.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    with extra("study"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, error, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    if steps:
        every = steps[-1]["step"] - steps[-2]["step"] if len(steps) > 1 else steps[-1]["step"]
        between = [row["step"] / steps_per_epoch for row in steps]
        label = "each step" if every == 1 else f"every {every} steps"
        thin: dict[str, Any] = {"color": "tab:blue", "alpha": 0.35 if history else 1, "linewidth": 0.8, "label": label}
        rate.plot(between, [row["learning_rate"] for row in steps], color="gray")
        loss.plot(between, [row["loss"] for row in steps], **thin)
        error.plot(between, [100 * (1 - row["accuracy"]) for row in steps], **thin)
    marker = "o" if len(epochs) == 1 else None
    for prefix, label in (("", "training"), ("val_", "held out")):
        if history and f"{prefix}loss" in history[-1]:
            loss.plot(epochs, [row[f"{prefix}loss"] for row in history], label=label, marker=marker)
            error.plot(epochs, [100 * (1 - row[f"{prefix}accuracy"]) for row in history], label=label, marker=marker)
    if not steps:
        rate.plot(epochs, [row["learning_rate"] for row in history], color="gray", marker=marker)
    for axis, name in ((loss, "loss"), (error, "error (%)"), (rate, "learning rate")):
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=len(epochs) > 1)
        axis.grid(alpha=0.3)
    if all(row["loss"] > 0 for row in (*history, *steps)):
        loss.set_yscale("log")
    for axis in (loss, error):
        axis.legend()
    figure.suptitle(title)
    with atomic_file(file) as draft:
        figure.savefig(draft, dpi=110)
