"""Image classification data sets as arrays, and their assembly into training batches."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from keras_resnets.data.dataset import DataError, Dataset
from keras_resnets.data.digits import load_digits
from keras_resnets.data.fashion_mnist import load_fashion_mnist

LOADERS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "fashion_mnist": load_fashion_mnist}


def load_dataset(name: str) -> Dataset:
    """Load a data set by name: "digits" or "fashion_mnist".

    Raises:
        DataError: for an unknown name, or a file that is missing or corrupt.
    """
    if name not in LOADERS:
        near = difflib.get_close_matches(name, LOADERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LOADERS)}"
        raise DataError(f"unknown data set {name!r}: {hint}")
    return LOADERS[name]()


__all__ = ["LOADERS", "DataError", "Dataset", "load_dataset", "load_digits", "load_fashion_mnist"]
