"""Measurements that are finished, kept in a file, so that a study that was ended goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file
from keras_resnets.study.outcome import StudyError
from keras_resnets.training.config import differences


class Kept:
    """A file of measurements by name.

    Args:
        file: where; made when the first is there.
        settings: what all measurements depend on, as JSON types; those of other settings are refused.

    Raises:
        StudyError: when the file is of other settings, or cannot be read.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file, self.settings = file, json.loads(json.dumps(settings))
        self._values: dict[str, Any] = {}
        if not file.exists():
            return
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            theirs, self._values = stored["settings"], dict(stored["values"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{file} cannot be read ({error}): delete it to measure anew") from error
        if told := differences(theirs, self.settings):
            raise StudyError(f"{file.parent} holds measurements of other settings, {told}: choose another folder")

    def get(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """The measurement of this name; `measure(*arguments)` makes it, as JSON types, when it is not there yet."""
        if name not in self._values:
            self.put(name, measure(*arguments))
        return self._values[name]

    def put(self, name: str, value: Any) -> None:
        """Keep a measurement; the file is written at once, whole."""
        self._values[name] = json.loads(json.dumps(value))
        with atomic_file(self.file) as draft:
            draft.write_text(json.dumps({"settings": self.settings, "values": self._values}), encoding="utf-8")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values


@contextmanager
def progress(what: str, total: int, verbose: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on standard error; call what it gives after each of `total` steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not verbose) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
