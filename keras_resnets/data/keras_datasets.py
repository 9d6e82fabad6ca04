"""Data sets that keras.datasets downloads, once, into its own cache."""

from __future__ import annotations

import importlib

import numpy as np

from keras_resnets.data.dataset import DataError, Split
from keras_resnets.extras import extra


def from_keras(name: str, otherwise: str) -> tuple[Split, Split]:
    """The training and test split of keras.datasets.NAME.

    Args:
        name: of its module.
        otherwise: what to do when it cannot be downloaded.

    Raises:
        DataError: when the download fails.
    """
    with extra("tensorflow"):
        module = importlib.import_module(f"keras.datasets.{name}")
    try:
        pairs = module.load_data()
    except Exception as error:  # urllib, ssl and the file system fail in many ways
        raise DataError(f"{name} could not be downloaded ({error}). {otherwise}") from error
    train, test = (_split(images, labels) for images, labels in pairs)
    return train, test


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    grey = images.ndim == 3
    return Split(images[..., np.newaxis] if grey else images, labels.reshape(-1).astype(np.int64))
