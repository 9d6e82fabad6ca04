"""The error of every export that did not happen."""

from __future__ import annotations

from pathlib import Path


class ExportError(RuntimeError):
    """A model that cannot be exported, or an export that did not pass its verification."""


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ExportError when the output is there already and may not be replaced."""
    if path.exists() and not overwrite:
        raise ExportError(f"{path} already exists: choose another path, or pass overwrite=True (--overwrite)")
