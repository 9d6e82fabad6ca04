"""Splits whose images stay in their files until they are needed: a file an image, or records of TFRecord files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keras_resnets.data.dataset import DataError
from keras_resnets.data.records import Shards, read_record
from keras_resnets.preprocessing import ImageError, load_image


@dataclass(frozen=True)
class EncodedSplit(ABC):
    """Images as encoded bytes (JPEG, PNG or WebP) and their classes.

    Args:
        labels: int64 [number].
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, row: int) -> str:
        """How an error calls the image."""

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """The bytes of the image's file.

        Raises:
            DataError: naming the image, when they cannot be read.
        """

    def image(self, row: int) -> Image.Image:
        """The image, upright as its EXIF says.

        Raises:
            DataError: naming the image, when it cannot be read.
        """
        try:
            return load_image(self.encoded(row))
        except ImageError as error:
            raise DataError(f"{self.name(row)}: {error}") from error


@dataclass(frozen=True)
class FileSplit(EncodedSplit):
    """A file an image.

    Args:
        labels: int64 [number].
        root: folder of the data set.
        files: their paths in it, with slashes: "train/cat/3.jpg".
    """

    root: Path
    files: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> FileSplit:
        """The rows with these numbers."""
        return replace(self, labels=self.labels[rows], files=tuple(self.files[row] for row in rows))

    def name(self, row: int) -> str:
        """Its path in the root."""
        return self.files[row]

    def encoded(self, row: int) -> bytes:
        """The file's bytes; a DataError names one that cannot be read."""
        try:
            return (self.root / self.files[row]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.name(row)} in {self.root} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class RecordSplit(EncodedSplit):
    """Records of TFRecord files.

    Args:
        labels: int64 [number].
        shards: the files, and where in them the images are.
        rows: int64 [number], a record of the shards each.
    """

    shards: Shards
    rows: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> RecordSplit:
        """The rows with these numbers."""
        return replace(self, labels=self.labels[rows], rows=self.rows[rows])

    def name(self, row: int) -> str:
        """File and number of the record in it."""
        return self.shards.name(int(self.rows[row]))

    def encoded(self, row: int) -> bytes:
        """The image's bytes out of the record; a DataError names one that fails its checksum."""
        return read_record(self.shards, int(self.rows[row]))
