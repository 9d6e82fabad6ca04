"""Image classification data sets: in memory, as image files, as TFRecords; and their assembly into batches."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from keras_resnets.data.cifar import load_cifar10, load_cifar100
from keras_resnets.data.dataset import DataError, Dataset, Samples, Split
from keras_resnets.data.digits import load_digits
from keras_resnets.data.fashion_mnist import load_fashion_mnist, load_fashion_mnist_sample
from keras_resnets.data.folder import load_folder
from keras_resnets.data.mnist import load_mnist, load_mnist_subset
from keras_resnets.data.tfrecords import load_imagenet, load_tfds

LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": load_digits,
    "mnist_subset": load_mnist_subset,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "fashion_mnist_sample": load_fashion_mnist_sample,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
PLACES = ("folder:PATH", "imagenet:PATH", "tfds:NAME[:FOLDER]")


def load_dataset(name: str, size: int | None = None) -> Dataset:
    """Load a data set by name, or from where it is.

    Args:
        name: one of LOADERS; "folder:PATH", pictures in a folder a class; "imagenet:PATH", ImageNet's TFRecords;
            "tfds:NAME" or "tfds:NAME:FOLDER", prepared by TensorFlow Datasets.
        size: height and width of the network's input in pixels; by default 224 for the last three, and for the
            others that of their images.

    Raises:
        DataError: for an unknown name, or data that is missing or corrupt.
    """
    kind, colon, place = name.partition(":")
    if colon and kind in ("folder", "imagenet", "tfds"):
        if not place:
            raise DataError(f"{name!r} says no place: {', '.join(PLACES)}")
        return _load_place(kind, place, size)
    if name not in LOADERS:
        near = difflib.get_close_matches(name, LOADERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*LOADERS, *PLACES))}"
        raise DataError(f"unknown data set {name!r}: {hint}")
    return LOADERS[name]().sized(size)


def _load_place(kind: str, place: str, size: int | None) -> Dataset:
    if kind == "folder":
        return load_folder(place, size)
    if kind == "imagenet":
        return load_imagenet(place, size)
    dataset, _, folder = place.partition(":")
    return load_tfds(dataset, folder or None, size)


__all__ = [
    "LOADERS",
    "PLACES",
    "DataError",
    "Dataset",
    "Samples",
    "Split",
    "load_cifar10",
    "load_cifar100",
    "load_dataset",
    "load_digits",
    "load_fashion_mnist",
    "load_fashion_mnist_sample",
    "load_folder",
    "load_imagenet",
    "load_mnist",
    "load_mnist_subset",
    "load_tfds",
]
