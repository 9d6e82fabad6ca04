"""A progress bar as a Keras callback."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keras_resnets.extras import extra

with extra("tensorflow"):
    import keras

_REFRESH = 0.5  # seconds between readings of the running loss, each of which waits for the device


class ProgressBar(keras.callbacks.Callback):
    """Shows epoch, loss, accuracy, images/s and the time left of the run.

    Args:
        epochs: of the run.
        steps: an epoch.
        batch_size: images a step.
        done: steps that earlier processes did.
        console: where to print; by default the terminal's standard error.
    """

    def __init__(self, epochs: int, steps: int, batch_size: int, done: int = 0, console: Console | None = None) -> None:
        super().__init__()
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s"), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=epochs * steps, completed=done, rate=0.0, note="")
        self._read = self._began = time.monotonic()
        self._done = self._first = self._start = done

    def on_train_begin(self, logs: Any = None) -> None:
        self._bar.start()
        self._begun = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._bar.update(self._task, description=f"epoch {epoch + 1}/{self.epochs}")
        self._began, self._first = time.monotonic(), self._done

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.monotonic()
        if logs and self._done == self._start:
            # Very deep networks compile for a minute: say that they are on their way, and where nobody sees a bar, too.
            loss = float(logs["loss"])  # waits for the device
            line = f"first step after {time.monotonic() - self._begun:.1f} s  loss {loss:.4f}"
            self.console.print(line, highlight=False, soft_wrap=True)
        # The number of the epoch's step: several may have gone by.
        self._done += batch + 1 - self._done % self.steps
        if logs and now - self._read > _REFRESH:
            self._read = now
            note = f"loss {float(logs['loss']):.4f}  accuracy {float(logs['accuracy']):.4f}"
            rate = (self._done - self._first) * self.batch_size / (now - self._began)
            self._bar.update(self._task, rate=rate, note=note)
        self._bar.update(self._task, completed=self._done)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = logs or {}
        shown = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in row]
        figures = "  ".join(f"{name} {row[name]:.4f}" for name in shown)
        line = f"epoch {epoch + 1:3d}  {figures}  {row.get('seconds', 0):.1f} s"
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.stop()
