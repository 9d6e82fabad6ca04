"""Data sets as folders: ROOT/train/CLASS/picture.jpg."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resnets.data.dataset import DataError, Dataset
from keras_resnets.data.encoded import FileSplit
from keras_resnets.preprocessing import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_VALIDATION = ("val", "valid", "validation")
_TEST_SHARE = 10  # one of so many, where a data set has no test images of its own


def load_folder(root: str | Path, size: int | None = None) -> Dataset:
    """Pictures in a folder a class.

    ROOT has folders "train" and "val" (or "valid", "validation") or "test" or both, each with one folder a class.
    With validation images only, they are the test split, as usual for ImageNet. ROOT (or ROOT/train) alone will do:
    then a tenth of each class, the same files every time, is the test split. Files whose names start with a dot, and
    other than JPEG, PNG and WebP, are passed over; nothing is decoded before it is needed.

    Args:
        root: the folder.
        size: of the network's input in pixels; 224 by default.

    Raises:
        DataError: when there are no classes or no pictures, or a test class is not one of training.
    """
    top = Path(root)
    if not top.is_dir():
        raise DataError(f"{top} is no folder")
    inner = _subfolders(top)
    training = top / "train" if "train" in inner else top
    classes = _subfolders(training)
    if not classes:
        raise DataError(f"{training} has no folders of classes: ROOT/train/CLASS/picture.jpg is expected")
    train = _list(top, training, classes)
    held = [next((top / name for name in names if name in inner), None) for names in (_VALIDATION, ("test",))]
    validation, test = (_list(top, part, classes) if part and training != top else None for part in held)
    if test is None and validation is None:
        train, test = _divided(train)
    elif test is None:
        validation, test = None, validation
    assert test is not None
    return Dataset(
        f"folder:{root}", train, test, tuple(classes), Preprocessing.preset("torch", size or 224), validation
    )


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _list(top: Path, part: Path, classes: Sequence[str]) -> FileSplit:
    """The pictures of one part, class by class in the order of their names."""
    unknown = sorted(set(_subfolders(part)) - set(classes))
    if unknown:
        raise DataError(f"{part} has the class {unknown[0]!r}, of which there are no training images")
    files: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = _pictures(part / name)
        files += [(part / name / file).relative_to(top).as_posix() for file in found]
        labels += [number] * len(found)
    if not files:
        raise DataError(f"{part} has no pictures ({', '.join(SUFFIXES)})")
    return FileSplit(np.array(labels, np.int64), top, tuple(files))


def _pictures(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))


def _divided(whole: FileSplit) -> tuple[FileSplit, FileSplit]:
    """A tenth of each class, of two pictures at least one, apart from the rest."""
    chance = np.random.default_rng(0)
    held = np.zeros(len(whole), bool)
    for label in np.unique(whole.labels):
        rows = chance.permutation(np.flatnonzero(whole.labels == label))
        held[rows[: -(-(len(rows) - 1) // _TEST_SHARE)]] = True
    if not held.any():
        raise DataError(f"{whole.root} has one picture a class, which leaves none to test with")
    return whole.take(np.flatnonzero(~held)), whole.take(np.flatnonzero(held))
