"""Random access to the images in TFRecord files of tf.train.Example.

A TFRecord file is a row of (uint64 length, CRC of it, bytes, CRC of them), little-endian, the CRCs CRC-32C and masked
(tensorflow/core/lib/io/record_writer.h). An index says where each record and the encoded image in it begin; it is
made from the headers, without reading the images, and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.atomic import atomic_file
from keras_resnets.data.dataset import DataError
from keras_resnets.extras import extra
from keras_resnets.machine import cache_folder

_HEADER, _FOOTER = 12, 4  # bytes around a record's own
_VERSION = 1  # of the index


class Keys(NamedTuple):
    """What an Example calls the encoded image and the class."""

    image: str
    label: str


@dataclass(frozen=True)
class Shards:
    """TFRecord files and the records in them, numbered through.

    Args:
        files: the files.
        first: int64 [files], number of each file's first record.
        offsets: int64 [records], where the record begins in its file, in bytes.
        images: int64 [records, 2], where the encoded image begins in the record's bytes, and its size.
        labels: int64 [records], as the file has them.
    """

    files: tuple[Path, ...]
    first: NDArray[np.int64]
    offsets: NDArray[np.int64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]

    def place(self, record: int) -> tuple[Path, int]:
        """File and number in it of a record."""
        file = int(np.searchsorted(self.first, record, side="right")) - 1
        return self.files[file], record - int(self.first[file])

    def name(self, record: int) -> str:
        """How an error calls a record."""
        file, number = self.place(record)
        return f"{file.name}, record {number}"


def open_shards(files: Sequence[Path], keys: Keys) -> Shards:
    """Index TFRecord files, or take their indices from the user's cache ($KERAS_RESNETS_CACHE, or the system's).

    Args:
        files: in order.
        keys: features of their Examples.

    Raises:
        DataError: naming the file that is missing, truncated, corrupt, compressed, or has other features.
    """
    with ThreadPoolExecutor() as pool:
        tables = list(pool.map(lambda file: _index(file, keys), files))
    sizes = [len(table) for table in tables]
    table = np.concatenate(tables) if tables else np.empty((0, 4), np.int64)
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    return Shards(tuple(files), first, table[:, 0], table[:, 1:3], table[:, 3])


def read_record(shards: Shards, record: int) -> bytes:
    """The encoded image of a record, its checksum verified by TensorFlow.

    Raises:
        DataError: naming the record, when it cannot be read.
    """
    with extra("tensorflow"):
        import tensorflow as tf

    file, _ = shards.place(record)
    begin, size = shards.images[record]
    try:
        with tf.device("cpu:0"):
            content = record_at(str(file), shards.offsets[record]).get_single_element().numpy()
    except tf.errors.OpError as error:
        raise DataError(f"{shards.name(record)} of {file.parent} cannot be read: {error.message}") from error
    return content[begin : begin + size]


def record_at(file: Any, offset: Any) -> Any:
    """A tf.data.Dataset of the one record that begins there; an error when its checksum is wrong.

    Args:
        file: string tensor.
        offset: int64 tensor, in bytes.
    """
    import tensorflow as tf

    rest = tf.raw_ops.TFRecordDatasetV2(
        filenames=[file], compression_type="", buffer_size=tf.constant(0, tf.int64), byte_offsets=[offset]
    )
    return tf.data.experimental.from_variant(rest, tf.TensorSpec([], tf.string)).take(1)


def _index(file: Path, keys: Keys) -> NDArray[np.int64]:
    """int64 [records, 4]: offset, image's begin and size in the record, label."""
    try:
        state = file.stat()
    except OSError:
        raise DataError(f"{file} is missing") from None
    told = repr((_VERSION, str(file.resolve()), state.st_size, state.st_mtime_ns, *keys))
    cached = cache_folder() / "records" / f"{hashlib.sha256(told.encode()).hexdigest()}.npy"
    with suppress(OSError, ValueError, EOFError):
        table = np.load(cached, allow_pickle=False)
        if table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == 4:
            return table
    table = np.array(list(_scan(file, state.st_size, keys)), np.int64).reshape(-1, 4)
    with suppress(OSError), atomic_file(cached) as draft:  # a cache that cannot be written is done without
        np.save(draft, table)
    return table


def _scan(file: Path, size: int, keys: Keys) -> Iterator[tuple[int, int, int, int]]:
    if not size:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = number = 0
        while offset < size:
            length = _length(data, offset, size)
            if length is None:
                raise DataError(
                    f"{file} is truncated or corrupt at record {number} (byte {offset:,}), or compressed, "
                    "which cannot be read at random"
                )
            begin = offset + _HEADER
            try:
                yield offset, *_features(data, begin, begin + length, keys)
            except (KeyError, IndexError, ValueError, StopIteration):
                raise DataError(
                    f"{file}, record {number}: no tf.train.Example with one {keys.image!r} and one {keys.label!r}"
                ) from None
            offset, number = begin + length + _FOOTER, number + 1


def _length(data: mmap.mmap, offset: int, size: int) -> int | None:
    """A record's length by its header; None when the header is wrong, or the file is over before the record is."""
    header = data[offset : offset + _HEADER]
    if len(header) < _HEADER:
        return None
    length, check = struct.unpack("<QI", header)
    fits = offset + _HEADER + length + _FOOTER <= size
    return int(length) if fits and check == masked_crc(header[:8]) else None


def _features(data: mmap.mmap, begin: int, end: int, keys: Keys) -> tuple[int, int, int]:
    """Where an Example's image begins, its size, and the label: Example.features.feature is a map, whose entries
    are (key, Feature); Feature.bytes_list and Feature.int64_list hold values (tensorflow/core/example)."""
    found: dict[bytes, tuple[int, int]] = {}
    for features in _fields(data, begin, end, 1):
        for entry in _fields(data, *features, 1):
            key = next(_fields(data, *entry, 1))
            found[data[key[0] : key[1]]] = next(_fields(data, *entry, 2))
    (image_list,) = _fields(data, *found[keys.image.encode()], 1)
    (image,) = _fields(data, *image_list, 1)
    (label_list,) = _fields(data, *found[keys.label.encode()], 3)
    (label,) = _integers(data, *label_list)
    return image[0] - begin, image[1] - image[0], label


def _fields(data: mmap.mmap, begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the length-delimited fields of one number in a protocol buffer message."""
    while begin < end:
        tag, begin = _varint(data, begin)
        if tag & 7 != 2:
            raise ValueError(f"wire type {tag & 7}")
        length, begin = _varint(data, begin)
        if begin + length > end:
            raise ValueError("a field that is longer than its message")
        if tag >> 3 == wanted:
            yield begin, begin + length
        begin += length


def _integers(data: mmap.mmap, begin: int, end: int) -> Iterator[int]:
    """The values of an Int64List, packed or not."""
    while begin < end:
        tag, begin = _varint(data, begin)
        if tag not in (0x08, 0x0A):  # one value, or several packed
            raise ValueError(f"tag {tag}")
        length, begin = _varint(data, begin) if tag == 0x0A else (1, begin)
        stop = begin + length
        while begin < stop:
            value, begin = _varint(data, begin)
            yield value - (1 << 64) if value >> 63 else value


def _varint(data: mmap.mmap, begin: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[begin]
        begin += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, begin
        shift += 7


def masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord files hold it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()
