"""What every data set is to the rest: uint8 images, integer labels, class names, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keras_resnets.preprocessing import Preprocessing


class DataError(ValueError):
    """Data that is missing, corrupt or unknown; the message names the file."""


Picture: TypeAlias = "Image.Image | NDArray[np.uint8]"


class Samples(Protocol):
    """Images and their classes, wherever they are: in memory (`Split`), in files or in records (`EncodedSplit`)."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [number]."""

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """The rows with these numbers."""

    def image(self, row: int) -> Picture:
        """One image, as `Preprocessing` takes it; a DataError names one that cannot be read."""

    def name(self, row: int) -> str:
        """How an error calls the image: "train/cat/3.jpg", "shard-00001.tfrecord, record 17"."""


@dataclass(frozen=True)
class Split:
    """Some images and their classes, in memory.

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

    def image(self, row: int) -> NDArray[np.uint8]:
        """One image, uint8 [height, width, channels]."""
        return self.images[row]

    def name(self, row: int) -> str:
        """How an error calls the image."""
        return f"image {row}"


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Args:
        name: its name in `load_dataset`.
        train, test: its splits.
        validation: images taken out of `train` by `hold_out`; None before that.
        class_names: one a class.
        preprocessing: what its images go through; small images are normalised with the training images' mean and
            standard deviation.
    """

    name: str
    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    validation: Samples | None = None

    def hold_out(self, number: int) -> Dataset:
        """Move `number` training images to a validation split, the same ones every time.

        Raises:
            DataError: when that leaves no images to train on, or some are held out already.
        """
        if number == 0:
            return self
        if not 0 < number < len(self.train):
            raise DataError(f"cannot hold out {number} of the {len(self.train)} training images of {self.name}")
        if self.validation is not None:
            raise DataError(f"{self.name} has images held out already")
        order = np.random.default_rng(0).permutation(len(self.train))
        return replace(
            self,
            train=self.train.take(np.sort(order[number:])),
            validation=self.train.take(np.sort(order[:number])),
        )

    def sized(self, side: int | None) -> Dataset:
        """For a network whose input is `side` pixels high and wide; None or 0 leaves it as it is."""
        return replace(self, preprocessing=replace(self.preprocessing, size=(side, side))) if side else self

    def limit(self, number: int) -> Dataset:
        """Keep `number` training images, the same ones every time; 0 keeps all.

        Raises:
            DataError: when there are not so many.
        """
        if not 0 <= number <= len(self.train):
            raise DataError(f"{number} training images were asked for, and {self.name} has {len(self.train)}")
        if number == 0:
            return self
        order = np.random.default_rng(0).permutation(len(self.train))
        return replace(self, train=self.train.take(np.sort(order[:number])))


def normalization(images: NDArray[np.uint8]) -> Preprocessing:
    """Preprocessing to mean 0 and standard deviation 1 a channel over these images, to four digits."""
    height, width, channels = images.shape[1:]
    pixels = images.reshape(-1, channels)
    mean = tuple(round(float(pixels[:, c].mean()) / 255, 4) for c in range(channels))
    std = tuple(round(float(pixels[:, c].std()) / 255, 4) for c in range(channels))
    return Preprocessing(size=(height, width), channels=channels, scale=1 / 255, mean=mean, std=std)
