"""Makes keras_resnets/data/fashion_mnist_sample from the whole data set.

python tests/data/make_fashion_mnist_sample.py
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data import Split, load_fashion_mnist

FOLDER = Path(__file__).parents[2] / "keras_resnets" / "data" / "fashion_mnist_sample"
PER_CLASS = 100


def sample(test: Split) -> Split:
    """The first 100 test images of each class, in their order."""
    firsts = [np.flatnonzero(test.labels == label)[:PER_CLASS] for label in range(10)]
    return test.take(np.sort(np.concatenate(firsts)))


def write_idx(file: Path, values: NDArray[np.uint8]) -> None:
    """Write bytes in MNIST's format, the same bytes every time."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    file.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


if __name__ == "__main__":
    chosen = sample(load_fashion_mnist().test)
    FOLDER.mkdir(exist_ok=True)
    write_idx(FOLDER / "images-idx3-ubyte.gz", chosen.images[..., 0])
    write_idx(FOLDER / "labels-idx1-ubyte.gz", chosen.labels.astype(np.uint8))
