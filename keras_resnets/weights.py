"""Where a network's weights come from, and the error when they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUFFIXES = (".weights.h5", ".keras")


class WeightsError(ValueError):
    """Weights that are missing, of another network, or unreadable."""


def load_weights(model: Any, source: str | Path) -> None:
    """Load a weights file into a Keras model of the same architecture.

    Args:
        model: a built Keras model.
        source: path of a `.weights.h5` or `.keras` file.

    Raises:
        WeightsError: when the file is missing, of an unknown kind, or does not fit the model.
    """
    path = Path(source)
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(
            f"weights={str(source)!r}: this release has no pretrained weights by name; "
            f"give None or the path of a {' or '.join(SUFFIXES)} file"
        )
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        model.load_weights(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} does not fit {model.name}: {error}") from error
