"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of clothes, 28×28."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_resnets.data.dataset import Dataset, Split, normalization
from keras_resnets.data.idx import read_idx, read_mnist_like
from keras_resnets.data.keras_datasets import from_keras
from keras_resnets.labels import FASHION_MNIST
from keras_resnets.preprocessing import FASHION_MNIST as PREPROCESSING

_SAMPLE = Path(__file__).parent / "fashion_mnist_sample"
# Where Debian's package dataset-fashion-mnist puts the files.
_SYSTEM = Path("/usr/share/datasets/fashion-mnist")

__all__ = ["PREPROCESSING", "load_fashion_mnist", "load_fashion_mnist_sample", "read_idx"]


def load_fashion_mnist(folder: str | Path | None = None) -> Dataset:
    """Fashion-MNIST from a folder of the four idx.gz files, or through keras.datasets.

    Args:
        folder: where the files are; by default $KERAS_RESNETS_FASHION_MNIST, then the folder of Debian's
            package dataset-fashion-mnist, then keras.datasets, which downloads them once.

    Raises:
        DataError: naming the file that is missing or corrupt, or when the download fails.
    """
    chosen = folder or os.environ.get("KERAS_RESNETS_FASHION_MNIST") or (_SYSTEM if _SYSTEM.is_dir() else None)
    if chosen:
        train, test = read_mnist_like(Path(chosen), "Fashion-MNIST")
    else:
        train, test = from_keras(
            "fashion_mnist",
            "Install Debian's package dataset-fashion-mnist, or set KERAS_RESNETS_FASHION_MNIST to a folder with its "
            "four idx.gz files",
        )
    return Dataset("fashion_mnist", train, test, FASHION_MNIST, normalization(train.images))


def load_fashion_mnist_sample() -> Dataset:
    """1,000 of the test images, the first 100 of each class, which come with the package; no training images.

    MIT licence, see fashion_mnist_sample/LICENSE.

    Raises:
        DataError: naming the file that is missing or corrupt.
    """
    images = read_idx(_SAMPLE / "images-idx3-ubyte.gz")[..., np.newaxis]
    labels = read_idx(_SAMPLE / "labels-idx1-ubyte.gz").astype(np.int64)
    none = Split(images[:0], labels[:0])
    return Dataset("fashion_mnist_sample", none, Split(images, labels), FASHION_MNIST, PREPROCESSING)
