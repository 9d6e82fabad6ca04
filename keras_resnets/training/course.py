"""A run on its way: epochs, checkpoints, signals, and where it goes on when it was ended."""

from __future__ import annotations

import signal
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnets.data import Dataset, Samples
from keras_resnets.extras import extra
from keras_resnets.models.files import save_model
from keras_resnets.training.checkpoint import read_newest, write_checkpoint
from keras_resnets.training.config import TrainingError, TrainingStopped
from keras_resnets.training.feed import Feed
from keras_resnets.training.interrupt import Interrupts
from keras_resnets.training.loop import CORRECT, IMAGES, LOSS, STOP, Loop, Sums
from keras_resnets.training.records import BEST, EVALUATION, MODEL, Records, Row, write_json
from keras_resnets.training.schedule import Rate
from keras_resnets.training.steplog import StepLog
from keras_resnets.training.strategy import is_chief, several_workers

with extra("tensorflow"):
    import keras
    import tensorflow as tf

_LAG = 2  # steps behind the device at which several workers read each other's signals
_POSITION = ("epoch", "step", "history", "timing", "seconds", "stopped", "logged")


class SkippedWarning(UserWarning):
    """Training images could not be read, and others took their places."""


@dataclass
class Course:
    """A run on its way."""

    loop: Loop
    rate: Rate
    feed: Feed
    data: Dataset
    folder: Path
    records: Records
    epoch: int = 0
    step: int = 0  # of the epoch; all of its steps: what is left are the held-out images
    sums: Sums | None = None
    history: list[Row] = field(default_factory=list)
    timing: list[Row] = field(default_factory=list)
    seconds: float = 0.0  # of the running epoch, in earlier processes too
    stopped: bool = False  # a callback ended the run
    logged: list[float] = field(default_factory=list)  # of the log of steps
    log_steps: int = 0
    save_seconds: float = 300.0
    save_steps: int = 0
    keep_best: bool = False

    def __post_init__(self) -> None:
        self.chief = is_chief(self.loop.strategy)
        self.several = several_workers(self.loop.strategy)
        self._began = time.monotonic()

    def done_steps(self) -> int:
        """Steps behind it."""
        return self.epoch * self.feed.steps + self.step

    def restore(self) -> None:
        """Go to the newest checkpoint, if there is one."""
        found = read_newest(self.folder)
        if found:
            try:
                self.sums = self.loop.restore(found.arrays)
                for name, value in found.position.items():
                    setattr(self, name, value)
            except TrainingError as error:
                raise TrainingError(f"{found.file} does not fit: {error}") from error
            self.rate.follow(self.history)
        agree(self.loop.strategy, self.done_steps())

    def save(self) -> None:
        """Write a checkpoint of this moment; the chief alone, since the others have the same values."""
        if not self.chief:
            return
        self._stop_the_clock()
        self.logged = self._steps.position
        position = {name: getattr(self, name) for name in _POSITION}
        write_checkpoint(self.folder, self.loop.state(self.sums or self.loop.zeros()), position)

    def to_the_end(self, callbacks: Sequence[Any], signals: Interrupts) -> Any:
        """Train the epochs that are left, save and evaluate the model."""
        signals.tell(lambda: self.loop.stop.assign(1.0))
        model = self.loop.model
        if self.chief:
            self.records.begin(self.loop.strategy)
        self._steps = StepLog(self.folder, self.log_steps if self.chief else 0, self.logged)
        self._steps.begin(self.done_steps())
        model.stop_training, model.optimizer = self.stopped, self.loop.optimizer
        params = {"epochs": self.loop.recipe.epochs, "steps": self.feed.steps, "verbose": 0}
        told = keras.callbacks.CallbackList(list(callbacks), model=model, **params)
        try:
            self._epochs(told, signals)
        finally:
            del model.optimizer  # or it would be saved with the model
            if self.chief:
                self.records.end(self.history, self.feed.steps)
        if self.loop.average:
            self.loop.average.put_in_place()
        if self.chief:
            save_model(model, self.folder / MODEL)  # a callback may have restored better weights at the end
        test = self._evaluate(self.data.test, signals)
        if self.chief:
            write_json(self.folder / EVALUATION, {"test": test})
        return model

    def _epochs(self, callbacks: Any, signals: Interrupts) -> None:
        callbacks.on_train_begin()
        try:
            while self.epoch < self.loop.recipe.epochs and not self.stopped:
                callbacks.on_epoch_begin(self.epoch)
                self._began = time.monotonic()
                self._train_epoch(callbacks, signals)
                self._end_epoch(callbacks, signals)
        finally:
            callbacks.on_train_end()

    def _train_epoch(self, callbacks: Any, signals: Interrupts) -> None:
        left, first, saved = self.feed.steps - self.step, self.step, time.monotonic()
        recent: deque[Any] = deque(maxlen=_LAG + 1)

        def on_steps(done: int, sums: Sums) -> None:
            nonlocal saved
            before = self.done_steps()
            self.step, self.sums = first + done, sums
            if self._steps.is_due(before, self.done_steps()):
                self._log_steps(sums)
            callbacks.on_train_batch_end(self.step - 1, _running(sums))
            recent.append(sums[0])
            if self._told_to_stop(signals, recent):
                self.save()
                self._raise_stopped(signals.received)
            if self._save_due(saved, done):
                self.save()
                saved = time.monotonic()

        if left:
            batches = self.feed.training(self.epoch, self.step)
            with self.feed.explained(self.data.train):
                self.sums = self.loop.train(batches, left, self.sums, on_steps)

    def _log_steps(self, sums: Sums) -> None:
        row = self._steps.write(self.done_steps(), _logged(sums), self._learning_rate())
        self.records.summarize({f"steps/{name}": value for name, value in row.items() if name != "step"}, row["step"])

    def _learning_rate(self) -> float:
        return float(np.asarray(self.loop.optimizer.learning_rate))

    def _told_to_stop(self, signals: Interrupts, recent: deque[Any]) -> bool:
        if not self.several:
            return signals.received is not None
        # All workers read the same sums at the same step, so that all of them stop there.
        return len(recent) > _LAG and float(recent[0][STOP]) > 0

    def _save_due(self, saved: float, done: int) -> bool:
        if self.step == self.feed.steps:
            return False
        if self.save_steps:
            return done % self.save_steps < self.loop.recipe.steps_per_execution
        return time.monotonic() - saved > self.save_seconds

    def _raise_stopped(self, number: int | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name if number else "a signal to another worker"
        at = f"epoch {self.epoch + 1}, step {self.step} of {self.feed.steps}"
        if self.epoch == self.loop.recipe.epochs:
            at = "the evaluation of the test images"
        raise TrainingStopped(
            f"{name} ended the run in {at}; its state is in {self.folder}, and the same command goes on from there",
            number or signal.SIGTERM,
        )

    def _end_epoch(self, callbacks: Any, signals: Interrupts) -> None:
        assert self.sums is not None
        row = {"epoch": self.epoch + 1, **self.loop.result(self.sums)}
        if self.data.validation:
            self.save()  # a kill during the evaluation costs no training
            held_out = self._evaluate(self.data.validation, signals)
            row |= {f"val_{name}": value for name, value in held_out.items()}
        row["learning_rate"] = self._learning_rate()
        self._stop_the_clock()
        images = float(self.sums[0][IMAGES])
        skipped = self.feed.corrupt
        times = {"seconds": self.seconds, "images_per_second": images / self.seconds, "skipped": skipped.count}
        self.timing.append(times)
        if skipped.count:
            named = ", ".join(skipped.names[:5]) + (", …" if len(skipped.names) > 5 else "")
            warnings.warn(SkippedWarning(f"epoch {self.epoch + 1}: {skipped.count} unreadable: {named}"), stacklevel=2)
        self.history.append(row)
        self.rate.follow(self.history)
        callbacks.on_epoch_end(self.epoch, {**row, "seconds": self.seconds})
        self._keep_best()
        self._steps.end_epoch(_logged(self.sums))
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, None, 0.0
        self.stopped = bool(self.loop.model.stop_training)  # as EarlyStopping asks
        if self.chief:
            self.records.epoch(self.history, self.timing)
        self.save()

    def _evaluate(self, split: Samples, signals: Interrupts) -> dict[str, float]:
        def on_batch() -> None:
            # There is a checkpoint of this moment. Several workers go on to where they can agree to stop.
            if signals.received is not None and not self.several:
                self._raise_stopped(signals.received)

        with self.feed.explained(split):
            return self.loop.evaluate(self.feed.evaluation(split), on_batch)

    def _keep_best(self) -> None:
        accuracies = [row.get("val_accuracy", 0.0) for row in self.history]
        if self.keep_best and self.chief and accuracies[-1] > max(accuracies[:-1], default=-1.0):
            with self.loop.averaged():
                save_model(self.loop.model, self.folder / BEST)

    def _stop_the_clock(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._began
        self._began = now


def _running(sums: Sums) -> dict[str, Any]:
    """What Keras callbacks read after a batch: means over the epoch so far."""
    return {"loss": sums[0][LOSS] / sums[0][IMAGES], "accuracy": sums[0][CORRECT] / sums[0][IMAGES]}


def _logged(sums: Sums) -> list[float]:
    vector = np.asarray(sums[0])
    return [float(vector[LOSS]), float(vector[CORRECT]), float(vector[IMAGES])]


def agree(scope: Any, *numbers: int) -> None:
    """Wait for all workers, and hear whether they have the same numbers.

    Raises:
        TrainingError: when they do not.
    """
    if scope.num_replicas_in_sync == 1:
        return

    def both() -> Any:
        own = tf.constant([1, *numbers, *(-number for number in numbers)], tf.int64)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own), own

    total, own = (scope.experimental_local_results(values)[0] for values in scope.run(tf.function(both)))
    if not np.array_equal(np.asarray(total), np.asarray(own) * scope.num_replicas_in_sync):
        raise TrainingError(
            "the workers found different checkpoints: the run's folder must be one that all of them share"
        )
