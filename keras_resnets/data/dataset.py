"""What every data set is to the rest: uint8 images, integer labels, class names, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keras_resnets.preprocessing import Preprocessing


class DataError(ValueError):
    """Data that is missing, corrupt or unknown; the message names the file."""


@dataclass(frozen=True)
class Split:
    """Some images and their classes.

    Args:
        images: uint8 [number, height, width, channels].
        labels: int64 [number].
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The rows with these numbers."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Args:
        name: its name in `load_dataset`.
        train, test: its splits.
        validation: images taken out of `train` by `hold_out`; None before that.
        class_names: one a class.
        preprocessing: normalises with the training images' mean and standard deviation.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    validation: Split | None = None

    def hold_out(self, number: int) -> Dataset:
        """Move `number` training images to a validation split, the same ones every time.

        Raises:
            DataError: when that leaves no images to train on, or some are held out already.
        """
        if not 0 <= number < len(self.train):
            raise DataError(f"cannot hold out {number} of the {len(self.train)} training images of {self.name}")
        if number == 0:
            return self
        if self.validation is not None:
            raise DataError(f"{self.name} has images held out already")
        order = np.random.default_rng(0).permutation(len(self.train))
        return replace(
            self,
            train=self.train.take(np.sort(order[number:])),
            validation=self.train.take(np.sort(order[:number])),
        )


def normalization(images: NDArray[np.uint8]) -> Preprocessing:
    """Preprocessing to mean 0 and standard deviation 1 a channel over these images, to four digits."""
    height, width, channels = images.shape[1:]
    pixels = images.reshape(-1, channels)
    mean = tuple(round(float(pixels[:, c].mean()) / 255, 4) for c in range(channels))
    std = tuple(round(float(pixels[:, c].std()) / 255, 4) for c in range(channels))
    return Preprocessing(size=(height, width), channels=channels, scale=1 / 255, mean=mean, std=std)
