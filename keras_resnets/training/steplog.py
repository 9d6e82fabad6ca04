"""Writes how loss and accuracy go within epochs: one row for every so many steps of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from keras_resnets.atomic import atomic_file

STEPS = "steps.csv"
COLUMNS = ("step", "loss", "accuracy", "learning_rate")


class StepLog:
    """Appends rows to a run's steps.csv: means over the training images since the row before.

    Without times, so that a run that was killed and went on leaves the same file as one that never was.

    Args:
        folder: of the run.
        every: steps between rows; 0: no rows.
        position: what `position` of an earlier process gave at its checkpoint.
    """

    def __init__(self, folder: Path, every: int, position: Sequence[float] = ()) -> None:
        self.file, self.every = folder / STEPS, every
        # Loss, correct and images since the last row: of epochs before, and what the epoch's sums were at that row.
        self._earlier, self._base = list(position[:3]) or [0.0] * 3, list(position[3:]) or [0.0] * 3

    @property
    def position(self) -> list[float]:
        """What a checkpoint has to keep of it."""
        return [*self._earlier, *self._base]

    def begin(self, done: int) -> None:
        """Leave the rows of the steps that a checkpoint holds; the others will come again."""
        if not self.every:
            return
        text = io.StringIO()
        table = _table(text)
        table.writeheader()
        table.writerows(row for row in read_steps(self.file) if row["step"] <= done)
        with atomic_file(self.file) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8")

    def is_due(self, before: int, done: int) -> bool:
        """Whether a row ends between two numbers of steps."""
        return self.every > 0 and before // self.every < done // self.every

    def write(self, step: int, sums: Sequence[float], rate: float) -> dict[str, Any]:
        """Append a row, and give it.

        Args:
            step: of the run.
            sums: loss, correct and images of the epoch so far.
            rate: the learning rate now.
        """
        loss, correct, images = self._since(sums)
        self._earlier, self._base = [0.0] * 3, list(sums)
        row = dict(zip(COLUMNS, (step, loss / images, correct / images, rate), strict=True))
        with self.file.open("a", encoding="utf-8", newline="") as handle:
            _table(handle).writerow(row)
        return row

    def end_epoch(self, sums: Sequence[float]) -> None:
        """Take over what the ending epoch leaves for the next row."""
        self._earlier, self._base = self._since(sums), [0.0] * 3

    def _since(self, sums: Sequence[float]) -> list[float]:
        return [old + now - base for old, now, base in zip(self._earlier, sums, self._base, strict=True)]


def _table(file: TextIO) -> csv.DictWriter[str]:
    return csv.DictWriter(file, COLUMNS, lineterminator="\n")


def read_steps(file: Path) -> list[dict[str, Any]]:
    """The whole rows of a steps.csv; none where there is no such file."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill may have left the beginning of a row
    return [
        {name: int(value) if name == "step" else float(value) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(whole))
    ]
