"""Chooses what an export is proven with: noise, and real images for verification, calibration and the accuracy gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.preprocessing import ImageError, ImageLike, Preprocessing

from .errors import ExportError

GOLDEN_ROWS = 2
PROBE_ROWS = 17
CALIBRATION_ROWS = 256
GATE_ROWS = 500
BATCH = 8  # rows that calibration and gate run at once: a ResNet-50's activations are 80 MB an image
_ANY_SIDE = 224  # for a side that the model leaves open
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Samples:
    """Inputs as uint8 pixels [rows, height, width, channels], or as float32 tensors where no preprocessing is known.

    Args:
        noise: PROBE_ROWS of it.
        images: real ones in a random order, or none.
        targets: the class of each image, or None.
        preprocessing: from pixels to a network's input, or None.
        files: where the first PROBE_ROWS images were read from, by the bytes of their pixels.
    """

    noise: NDArray[Any]
    images: NDArray[Any] | None
    targets: NDArray[np.int64] | None
    preprocessing: Preprocessing | None
    files: Mapping[bytes, Path] = field(default_factory=dict)

    @property
    def golden(self) -> NDArray[Any]:
        """Two rows, real where there are real ones."""
        return (self.noise if self.images is None else self.images)[:GOLDEN_ROWS]

    @property
    def probes(self) -> dict[str, NDArray[np.float32]]:
        """By kind, what the exported forms are compared with Keras on."""
        kinds = {"noise": self.noise} if self.images is None else {"noise": self.noise, "images": self.images}
        return {kind: self.tensor(rows[:PROBE_ROWS]) for kind, rows in kinds.items()}

    def calibration(self) -> Iterator[NDArray[np.float32]]:
        """Batches to find the ranges of activations with: half of the real images, or synthetic ones."""
        if self.images is None:
            yield from self._batches(_synthetic(self.noise, self.preprocessing is not None))
        else:
            yield from self._batches(self.images[::2][:CALIBRATION_ROWS])

    def judged(self) -> Iterator[NDArray[np.float32]]:
        """Batches to judge lower precisions on: real images that no range came from, where there are at least two."""
        if self.images is None:
            yield from self._batches(_synthetic(self.noise, self.preprocessing is not None, seed=1))
        else:
            yield from self._batches(self.images[self._judged])

    @property
    def judged_targets(self) -> NDArray[np.int64] | None:
        """The classes of `judged`."""
        return None if self.targets is None else self.targets[self._judged]

    @property
    def _judged(self) -> slice:
        assert self.images is not None
        return slice(1, 2 * GATE_ROWS, 2) if len(self.images) > 1 else slice(0, 1)

    def tensor(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Rows of this record as the network's input."""
        return self.preprocessing.normalize(rows) if self.preprocessing else rows

    def _batches(self, rows: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
        for i in range(0, len(rows), BATCH):
            yield self.tensor(rows[i : i + BATCH])


def choose_samples(
    input_shape: Sequence[int | None],
    preprocessing: Preprocessing | None,
    images: str | Path | Iterable[ImageLike] | None,
    targets: Sequence[int] | None,
    labels: Sequence[str] | None,
    most: int,
) -> Samples:
    """Make the noise and read the images.

    Args:
        input_shape: of the network: [batch, height, width, channels].
        preprocessing: how images become its input.
        images: a folder, or paths, Pillow images, uint8 arrays.
        targets: the class index of each of them; of a folder they follow from its subfolders' names, if those are
            labels.
        labels: class names.
        most: images to read at most; of a folder with more, as many chosen at random.

    Raises:
        ExportError: when an image cannot be read, there is none, or images and targets do not fit each other.
    """
    random = np.random.default_rng(0)
    if preprocessing is None:
        if images is not None:
            raise ExportError("images= needs preprocessing=, which says how they become the model's input")
        height, width, channels = (side or _ANY_SIDE for side in input_shape[1:])
        noise = random.standard_normal((PROBE_ROWS, height, width, channels), np.float32)
        return Samples(noise, None, None, None)
    shape = (PROBE_ROWS, *preprocessing.size, preprocessing.channels)
    noise = random.integers(0, 256, shape, np.uint8)
    if images is None:
        if targets is not None:
            raise ExportError("targets= are the classes of images=, which are missing")
        return Samples(noise, None, None, preprocessing)
    if isinstance(images, (str, Path)):
        files = _files(Path(images))
        order = random.permutation(len(files))[:most]
        chosen: Iterable[ImageLike] = [files[i] for i in order]
        known = _targets_of(files, labels) if targets is None else np.asarray(targets)
        found = None if known is None else _checked(known, len(files))[order]
    else:
        chosen = islice(images, most)
        found = None if targets is None else np.asarray(targets)[:most]
    rows, read_from = _read(chosen, preprocessing)
    if not rows:
        raise ExportError("no images to verify with: images= is empty")
    classes = None if found is None else _checked(found, len(rows))
    return Samples(noise, np.stack(rows), classes, preprocessing, read_from)


def _checked(targets: NDArray[Any], count: int) -> NDArray[np.int64]:
    if targets.shape != (count,) or not np.issubdtype(targets.dtype, np.integer):
        raise ExportError(f"targets= must be one class index an image: {count} images, targets of {targets.shape}")
    return targets.astype(np.int64)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ExportError(f"the folder of images {folder} does not exist")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise ExportError(f"no images to verify with: {folder} has none of {', '.join(sorted(_SUFFIXES))}")
    return files


def _targets_of(files: Sequence[Path], labels: Sequence[str] | None) -> NDArray[np.int64] | None:
    """The classes of files that lie in folders called as the labels are."""
    index = {label: i for i, label in enumerate(labels or ())}
    found = [index.get(file.parent.name) for file in files]
    return None if None in found else np.asarray(found, np.int64)


def _read(
    images: Iterable[ImageLike], preprocessing: Preprocessing
) -> tuple[list[NDArray[np.uint8]], dict[bytes, Path]]:
    rows, files = [], {}
    try:
        for image in images:
            rows.append(preprocessing.pixels(image))
            if isinstance(image, (str, Path)) and len(rows) <= PROBE_ROWS:
                files[rows[-1].tobytes()] = Path(image)
    except ImageError as error:
        raise ExportError(f"an image to verify with cannot be used: {error}") from error
    return rows, files


def _synthetic(noise: NDArray[Any], pixels: bool, seed: int = 0, rows: int = 64) -> NDArray[Any]:
    """Images whose spectrum falls with the frequency as that of photographs does, at several contrasts."""
    random = np.random.default_rng(seed)
    _, height, width, channels = noise.shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(random.standard_normal((rows, height, width, channels)), axes=(1, 2))
    waves = np.fft.ifft2(spectrum / frequency[..., None], axes=(1, 2)).real
    waves /= waves.std((1, 2, 3), keepdims=True)
    contrast = np.linspace(0.3, 1.0, rows).reshape(-1, 1, 1, 1)
    if not pixels:
        return (waves * contrast).astype(np.float32)
    return (128 + 80 * contrast * waves).clip(0, 255).astype(np.uint8)
