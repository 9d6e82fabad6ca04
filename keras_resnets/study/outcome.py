"""What a study found: sentences, a table, and the numbers behind its picture, together in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file

Row = Mapping[str, Any]


class StudyError(RuntimeError):
    """A study that cannot be done as asked; the message says what to change."""


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Args:
        study: its name in STUDIES.
        title: what was measured, on what.
        settings: all that decides the numbers, as JSON types.
        findings: what was found, a sentence each.
        rows: the table; each row has the same keys, its values are texts and numbers.
        details: the numbers behind the picture, as JSON types.
        environment: versions and devices.
    """

    study: str
    title: str
    settings: Mapping[str, Any]
    findings: Sequence[str]
    rows: Sequence[Row]
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write STUDY.json, STUDY.md and STUDY.png into a folder, each whole or not at all.

        Raises:
            MissingExtraError: when matplotlib is not installed; the other two are written then.
        """
        folder = Path(folder)
        with atomic_file(folder / f"{self.study}.json") as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        with atomic_file(folder / f"{self.study}.md") as draft:
            draft.write_text(self.markdown(), encoding="utf-8")
        draw = _drawing(self.study)
        with atomic_file(folder / f"{self.study}.png") as draft:
            draw(self, draft)

    @classmethod
    def load(cls, file: str | Path) -> Outcome:
        """Read what `save` wrote, to draw it again or to go on with its numbers.

        Raises:
            StudyError: when the file is none of a study.
        """
        try:
            return cls(**json.loads(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise StudyError(f"{file} cannot be read as the outcome of a study: {error}") from error

    def markdown(self) -> str:
        """Title, findings and table."""
        lines = [f"# {self.title}", "", *(f"- {finding}" for finding in self.findings), ""]
        from keras_resnets.models.tables import markdown  # the command line's --help loads no NumPy

        rows = [[cell(value) for value in row.values()] for row in self.rows]
        return "\n".join(lines) + "\n" + (markdown(list(self.rows[0]), rows) if rows else "")

    def show(self, console: Any = None) -> None:
        """Print title, table and findings."""
        from rich.console import Console
        from rich.table import Table

        console = console or Console()
        if self.rows:
            table = Table(*self.rows[0], title=self.title, title_justify="left")
            for row in self.rows:
                table.add_row(*(cell(value) for value in row.values()))
            console.print(table)
        for finding in self.findings:
            console.print(f"• {finding}", highlight=False, markup=False)


def cell(value: Any) -> str:
    """A value as people read it in a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _drawing(study: str) -> Any:
    import importlib

    return importlib.import_module(f"keras_resnets.study.of_{study}").draw
