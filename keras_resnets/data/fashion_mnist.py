"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of clothes, 28×28."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.dataset import DataError, Dataset, Split, normalization
from keras_resnets.extras import extra
from keras_resnets.labels import FASHION_MNIST

# Where Debian's package dataset-fashion-mnist puts the files.
_SYSTEM = Path("/usr/share/datasets/fashion-mnist")
_FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


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
        train, test = (_read_split(Path(chosen), *_FILES[name]) for name in ("train", "test"))
    else:
        train, test = _download()
    return Dataset("fashion_mnist", train, test, FASHION_MNIST, normalization(train.images))


def _read_split(folder: Path, prefix: str, number: int) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    if images.shape != (number, 28, 28) or labels.shape != (number,) or labels.max() > 9:
        raise DataError(
            f"{folder}: the {prefix} files hold {images.shape} images and {labels.shape} labels, not Fashion-MNIST"
        )
    return Split(images[..., np.newaxis], labels.astype(np.int64))


def _download() -> tuple[Split, Split]:
    with extra("tensorflow"):
        from keras.datasets import fashion_mnist

    try:
        splits = fashion_mnist.load_data()
    except Exception as error:  # urllib, ssl and the file system fail in many ways
        raise DataError(
            f"Fashion-MNIST could not be downloaded ({error}). Install Debian's package dataset-fashion-mnist, "
            "or set KERAS_RESNETS_FASHION_MNIST to a folder with its four idx.gz files"
        ) from error
    train, test = (Split(images[..., np.newaxis], labels.astype(np.int64)) for images, labels in splits)
    return train, test


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read a gzipped idx file of bytes.

    Raises:
        DataError: naming the file when it is missing, truncated, or no idx file.
    """
    try:
        data = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is corrupt: {error}") from error
    # Two zero bytes, the type (8: uint8), the rank, then each size as a big-endian 32-bit number.
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise DataError(f"{file} is no idx file of bytes")
    rank = data[3]
    if len(data) < 4 + 4 * rank:
        raise DataError(f"{file} is corrupt: it ends within its header")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if pixels.size != math.prod(shape):
        raise DataError(f"{file} is corrupt: {pixels.size:,} values where its header says {list(shape)}")
    return pixels.reshape(shape)
