"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32×32."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_resnets.data.dataset import DataError, Dataset, Split, normalization
from keras_resnets.data.keras_datasets import from_keras

_PIXELS = 3 * 32 * 32

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip


def load_cifar10(folder: str | Path | None = None) -> Dataset:
    """CIFAR-10 from its binary version, or through keras.datasets.

    Args:
        folder: with data_batch_1.bin … data_batch_5.bin and test_batch.bin (or a folder above it, with
            "cifar-10-batches-bin" in it); by default $KERAS_RESNETS_CIFAR10, then keras.datasets, which downloads the
            "python version" once and unpickles it, as this package never does.

    Raises:
        DataError: naming the file that is missing or corrupt, or when the download fails.
    """
    chosen = folder or os.environ.get("KERAS_RESNETS_CIFAR10")
    if chosen:
        files = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
        train, test = (_read(_within(chosen, "cifar-10-batches-bin"), files[name], 10_000, 1, 10) for name in files)
    else:
        train, test = from_keras("cifar10", _otherwise("CIFAR10", "cifar-10-binary.tar.gz"))
    return Dataset("cifar10", train, test, CIFAR10, normalization(train.images))


def load_cifar100(folder: str | Path | None = None) -> Dataset:
    """CIFAR-100 with its 100 fine classes, from its binary version, or through keras.datasets.

    Args:
        folder: with train.bin and test.bin (or a folder above it, with "cifar-100-binary" in it); by default
            $KERAS_RESNETS_CIFAR100, then keras.datasets, which downloads the "python version" once and unpickles it,
            as this package never does.

    Raises:
        DataError: naming the file that is missing or corrupt, or when the download fails.
    """
    chosen = folder or os.environ.get("KERAS_RESNETS_CIFAR100")
    if chosen:
        within = _within(chosen, "cifar-100-binary")
        train = _read(within, ["train.bin"], 50_000, 2, 100)
        test = _read(within, ["test.bin"], 10_000, 2, 100)
    else:
        train, test = from_keras("cifar100", _otherwise("CIFAR100", "cifar-100-binary.tar.gz"))
    return Dataset("cifar100", train, test, CIFAR100, normalization(train.images))


def _otherwise(name: str, archive: str) -> str:
    return f"Set KERAS_RESNETS_{name} to the folder that {archive} unpacks to"


def _within(folder: str | Path, usual: str) -> Path:
    inner = Path(folder) / usual
    return inner if inner.is_dir() else Path(folder)


def _read(folder: Path, files: list[str], number: int, labels: int, classes: int) -> Split:
    """Records of `labels` bytes, of which the last is the class, then red, green and blue planes, row by row."""
    tables = [_table(folder / file, number, labels + _PIXELS) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table[:, labels - 1].max() >= classes:
            raise DataError(f"{folder / file} is corrupt: class {table[:, labels - 1].max()} of {classes}")
    table = np.concatenate(tables)
    planes = table[:, labels:].reshape(-1, 3, 32, 32)
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), table[:, labels - 1].astype(np.int64))


def _table(file: Path, number: int, width: int) -> np.ndarray:
    try:
        size = file.stat().st_size
    except OSError:
        raise DataError(f"{file} is missing") from None
    if size != number * width:
        raise DataError(f"{file} is corrupt: {size:,} bytes instead of {number * width:,}")
    return np.fromfile(file, np.uint8).reshape(number, width)
