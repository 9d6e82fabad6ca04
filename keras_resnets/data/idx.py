"""The idx files of MNIST and of data sets in its form (LeCun, yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.dataset import DataError, Split

_NUMBERS = {"train": 60_000, "t10k": 10_000}


def read_mnist_like(folder: Path, name: str) -> tuple[Split, Split]:
    """The training and test split of a data set in MNIST's form: 28×28, ten classes, 60,000 + 10,000 images.

    Args:
        folder: of its four files, gzipped or not.
        name: of the data set, for errors.

    Raises:
        DataError: naming the file that is missing or corrupt, or when it is another data set.
    """
    train, test = (_read_split(folder, prefix, number, name) for prefix, number in _NUMBERS.items())
    return train, test


def _read_split(folder: Path, prefix: str, number: int, name: str) -> Split:
    images, labels = (
        read_idx(_existing(folder / f"{prefix}-{kind}-ubyte.gz")) for kind in ("images-idx3", "labels-idx1")
    )
    if images.shape != (number, 28, 28) or labels.shape != (number,) or labels.max() > 9:
        raise DataError(
            f"{folder}: the {prefix} files hold {images.shape} images and {labels.shape} labels, not {name}"
        )
    return Split(images[..., np.newaxis], labels.astype(np.int64))


def _existing(file: Path) -> Path:
    """The file, or the one without its ".gz" if that is there instead."""
    plain = file.with_suffix("")
    return plain if plain.is_file() and not file.exists() else file


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read an idx file of bytes, gzipped if its name ends in ".gz".

    Raises:
        DataError: naming the file when it is missing, truncated, or no idx file.
    """
    try:
        content = file.read_bytes()
        data = gzip.decompress(content) if file.suffix == ".gz" else content
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
