"""The error of every export that did not happen."""

from __future__ import annotations

from pathlib import Path


class ExportError(RuntimeError):
    """A model that cannot be exported, or an export that did not pass its verification."""


def refuse_existing(path: Path, overwrite: bool, marker: str | None = None) -> None:
    """Raise ExportError when the output is there and may not be replaced.

    Args:
        path: the output.
        overwrite: whether the caller allows replacing an earlier output.
        marker: the file that tells a folder of ours from any other; None where the output is a file.
    """
    if not path.exists():
        return
    if not overwrite:
        raise ExportError(f"{path} already exists: choose another path, or pass overwrite=True (--overwrite)")
    ours = (
        path.is_file() if marker is None else (path / marker).is_file() or (path.is_dir() and not any(path.iterdir()))
    )
    if not ours:
        what = "an ONNX file" if marker is None else f"a folder with {marker}"
        raise ExportError(f"{path} is not {what}, so it is not replaced: choose another path")
