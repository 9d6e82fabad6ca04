"""ImageNet and TensorFlow Datasets from the TFRecord files that their scripts wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.dataset import DataError, Dataset
from keras_resnets.data.encoded import RecordSplit
from keras_resnets.data.records import Keys, Shards, open_shards
from keras_resnets.labels import imagenet
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.untrusted import parse_json

_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_IMAGENET = Keys("image/encoded", "image/class/label")
_TFDS = Keys("image", "label")


def load_imagenet(folder: str | Path, size: int | None = None) -> Dataset:
    """ImageNet-1k from the TFRecords of TensorFlow's scripts; the validation images are the test split.

    Args:
        folder: with train-00000-of-01024 … and validation-00000-of-00128 … (or "train" and "validation" folders of
            them): Examples with the JPEG as image/encoded and the class as image/class/label, 1 … 1000.
        size: of the network's input in pixels; 224 by default.

    Raises:
        DataError: naming the shard that is missing, corrupt or of other content.
    """
    top = Path(folder)
    train, test = (_imagenet_split(top, name) for name in ("train", "validation"))
    return Dataset(f"imagenet:{folder}", train, test, imagenet(), Preprocessing.preset("torch", size or 224))


def _imagenet_split(top: Path, name: str) -> RecordSplit:
    inner = top / name
    split = _split(_shards(inner if inner.is_dir() else top, f"{name}-*"), _IMAGENET, 1, 1000)
    return RecordSplit(split.labels - 1, split.shards, split.rows)


def load_tfds(name: str, folder: str | Path | None = None, size: int | None = None) -> Dataset:
    """A data set that TensorFlow Datasets prepared, in its usual tfrecord format. The package itself is not needed.

    Args:
        name: "mnist" or "imagenet2012" or "cats_vs_dogs/large"; the highest version is taken.
        folder: where the data sets are; by default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        size: of the network's input in pixels; 224 by default.

    Raises:
        DataError: when it was not prepared, has no "train" or no "test" or "validation" split, no features "image"
            and "label", or a shard is missing or corrupt.
    """
    top = Path(folder or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    version = _newest(top / name)
    if version is None:
        raise DataError(
            f"{top / name} holds no prepared data set. TensorFlow Datasets makes one: "
            f"tfds.builder({name!r}, data_dir={str(top)!r}).download_and_prepare()"
        )
    splits = _tfds_splits(version)
    held = next((part for part in ("test", "validation") if part in splits), None)
    if "train" not in splits or held is None:
        raise DataError(f"{version} has the splits {', '.join(splits)}; train and test (or validation) are needed")
    names = _class_names(version)
    train, test = (_split(splits[part][0], _TFDS, 0, len(names) - 1) for part in ("train", held))
    for part, split in (("train", train), (held, test)):
        if len(split) != splits[part][1]:
            raise DataError(f"{version}: the {part} shards hold {len(split):,} records, not {splits[part][1]:,}")
    return Dataset(f"tfds:{name}", train, test, names, Preprocessing.preset("torch", size or 224))


def _newest(folder: Path) -> Path | None:
    """The subfolder of the highest version."""
    found = [
        info.parent for info in folder.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
    ]
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _tfds_splits(version: Path) -> dict[str, tuple[list[Path], int]]:
    """The shards of each split that dataset_info.json lists, and how many records they shall hold."""
    info = _json(version / "dataset_info.json")
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(f"{version} was prepared as {info['fileFormat']}; only tfrecord can be read")
    found = {}
    for split in info["splits"]:
        lengths = list(map(int, split["shardLengths"]))
        count = len(lengths)
        template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        names = [
            template.format(
                DATASET=info["name"], SPLIT=split["name"], FILEFORMAT="tfrecord",
                SHARD_X_OF_Y=f"{number:05d}-of-{count:05d}", SHARD_INDEX=f"{number:05d}", NUM_SHARDS=f"{count:05d}",
            )
            for number in range(count)
        ]  # fmt: skip
        found[split["name"]] = [version / name for name in names], sum(lengths)
    return found


def _class_names(version: Path) -> tuple[str, ...]:
    features = _json(version / "features.json").get("featuresDict", {}).get("features", {})
    label = features.get("label", {}).get("classLabel")
    if label is None or "image" not in features.get("image", {}):
        raise DataError(f"{version} has the features {', '.join(features)}; an image and a class label are needed")
    file = version / "label.labels.txt"
    if file.is_file():
        return tuple(file.read_text(encoding="utf-8").split("\n")[: int(label["numClasses"])])
    return tuple(map(str, range(int(label["numClasses"]))))


def _json(file: Path) -> Any:
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _shards(folder: Path, pattern: str) -> list[Path]:
    """The files NAME-00000-of-00007 … of a folder, all of them."""
    found = {}
    for path in folder.glob(pattern):
        if match := _SHARD.fullmatch(path.name):
            found[int(match[1])] = path, int(match[2])
    if not found:
        raise DataError(f"{folder} has no files {pattern}-of-*: name the folder of the TFRecords, as in imagenet:PATH")
    count = max(number for _, number in found.values())
    missing = sorted(set(range(count)) - set(found))
    if missing:
        raise DataError(f"{folder} lacks shard {missing[0]:05d} of {count:05d} of {pattern}")
    return [found[number][0] for number in range(count)]


def _split(files: Sequence[Path], keys: Keys, low: int, high: int) -> RecordSplit:
    """All records of the files, whose labels shall be low … high."""
    shards = open_shards(files, keys)
    _check_labels(shards, shards.labels, low, high)
    return RecordSplit(shards.labels, shards, np.arange(len(shards.labels)))


def _check_labels(shards: Shards, labels: NDArray[np.int64], low: int, high: int) -> None:
    wrong = np.flatnonzero((labels < low) | (labels > high))
    if len(wrong):
        record = int(wrong[0])
        raise DataError(f"{shards.name(record)} has the class {labels[record]}; {low} to {high} are expected")
