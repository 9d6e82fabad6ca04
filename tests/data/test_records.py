"""TFRecord files: their index, their faults, ImageNet's and TensorFlow Datasets' layouts."""

import io
import json
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnets.data import DataError, load_dataset, load_imagenet, load_tfds
from keras_resnets.data.encoded import FileSplit, RecordSplit
from keras_resnets.data.pipeline import Augmentation, CorruptSamples, evaluation_batches, explain, training_batches
from keras_resnets.data.records import Keys, masked_crc, open_shards
from keras_resnets.labels import imagenet
from keras_resnets.preprocessing import Preprocessing

KEYS = Keys("image/encoded", "image/class/label")
SMALL = Preprocessing((16, 16), 3, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def jpeg(number):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((30, 24)).save(file, "JPEG")
    return file.getvalue()


def feature(value):
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value if isinstance(value, list) else [value]))


def example(**features):
    named = {name.replace("__", "/"): feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def imagenet_example(number, label):
    """As TensorFlow's scripts write them."""
    return example(
        image__encoded=jpeg(number), image__class__label=label, image__class__synset=b"n01440764", image__height=24,
        image__width=30, image__colorspace=b"RGB", image__channels=3, image__format=b"JPEG", image__filename=b"a.JPEG",
        image__object__bbox__xmin=0.25, image__object__bbox__label=[label, 7],
    )  # fmt: skip


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.fixture
def shards(tmp_path):
    """Three files of 4, 0 and 3 records, whose labels are 1 to 7."""
    numbers = [[1, 2, 3, 4], [], [5, 6, 7]]
    return [
        write(tmp_path / "data" / f"train-{i:05d}-of-00003", [imagenet_example(n, n) for n in row])
        for i, row in enumerate(numbers)
    ]


def whole(files):
    opened = open_shards(files, KEYS)
    return RecordSplit(opened.labels, opened, np.arange(len(opened.labels)))


# Reading.


def test_checksums_are_tensorflows(tmp_path):
    """CRC-32C of the digits is a published check value; the mask is record_writer.h's."""
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    header = write(tmp_path / "one", [b"some bytes"]).read_bytes()[:12]
    assert struct.unpack("<QI", header) == (10, masked_crc(header[:8]))


def test_records_at_random(shards):
    split = whole(shards)
    assert split.labels.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for row in (6, 0, 3, 4):
        assert split.encoded(row) == jpeg(row + 1)
    assert split.name(3) == "train-00000-of-00003, record 3"
    assert split.name(4) == "train-00002-of-00003, record 0"
    some = split.take(np.array([5, 1]))
    assert some.labels.tolist() == [6, 2]
    assert some.encoded(0) == jpeg(6)
    assert some.name(0) == "train-00002-of-00003, record 1"


def test_records_train_as_files_do(shards, tmp_path):
    """Order, crops and all."""
    split = whole(shards)
    for row in range(7):
        (tmp_path / f"{row}.jpg").write_bytes(jpeg(row + 1))
    files = FileSplit(split.labels, tmp_path, tuple(f"{row}.jpg" for row in range(7)))
    augmentation = Augmentation(crop="random_resized", flip=True)
    for make in (
        lambda split: training_batches(split, SMALL, augmentation, 3, 0, 0, drop_last=False),
        lambda split: evaluation_batches(split, SMALL, 4),
    ):
        for one, two in zip(make(split), make(files), strict=True):
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])


def test_unpacked_and_negative_labels(tmp_path):
    """Both forms of a repeated number that protocol buffers allow, and ten bytes of a negative one."""
    packed = example(image=b"x", label=-1)
    # Example{1: Features{1: {1: "label", 2: Feature{3: Int64List{1: 300}}}, 1: {1: "image", 2: Feature{1: {1: "x"}}}}}
    number = b"\x1a\x03\x08\xac\x02"
    label = b"\x0a\x05label\x12" + bytes([len(number)]) + number
    image = b"\x0a\x05image\x12\x05\x0a\x03\x0a\x01x"
    entries = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in (label, image))
    unpacked = b"\x0a" + bytes([len(entries)]) + entries
    assert tf.train.Example.FromString(unpacked).features.feature["label"].int64_list.value == [300]
    file = write(tmp_path / "shard", [packed, unpacked])
    assert open_shards([file], Keys("image", "label")).labels.tolist() == [-1, 300]


# The index.


def test_an_index_is_kept_and_belongs_to_one_state_of_the_file(shards, cache):
    first = open_shards(shards, KEYS)
    (kept,) = [set(folder.iterdir()) for folder in cache.rglob("records")]
    assert len(kept) == 3
    again = open_shards(shards, KEYS)
    np.testing.assert_array_equal(again.images, first.images)
    assert set(next(iter(cache.rglob("records"))).iterdir()) == kept
    write(shards[1], [imagenet_example(9, 9)])
    assert open_shards(shards, KEYS).labels.tolist() == [1, 2, 3, 4, 9, 5, 6, 7]
    with pytest.raises(DataError, match="one 'image' and one 'label'"):
        open_shards(shards, Keys("image", "label"))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00v\x00"])
def test_a_damaged_index_is_made_anew(shards, cache, content):
    open_shards(shards, KEYS)
    for file in cache.rglob("*.npy"):
        file.write_bytes(content)
    assert open_shards(shards, KEYS).labels.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_cache_that_cannot_be_written(shards, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path / "file"))
    assert open_shards(shards, KEYS).labels.tolist() == [1, 2, 3, 4, 5, 6, 7]


# Faults.


@pytest.mark.parametrize("left", [5, 12, 100, -4, -1])
def test_a_truncated_shard_is_named(shards, left):
    content = shards[2].read_bytes()
    shards[2].write_bytes(content[:left])
    with pytest.raises(DataError, match=r"train-00002-of-00003 is truncated or corrupt at record [02]"):
        open_shards(shards, KEYS)


def test_a_shard_with_a_damaged_header_or_of_something_else(shards):
    content = bytearray(shards[0].read_bytes())
    content[2] ^= 1
    shards[0].write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000-of-00003 is truncated or corrupt at record 0 \(byte 0\)"):
        open_shards(shards, KEYS)
    with tf.io.TFRecordWriter(str(shards[0]), tf.io.TFRecordOptions("GZIP")) as writer:
        writer.write(imagenet_example(1, 1))
    with pytest.raises(DataError, match=r"train-00000-of-00003 .*or compressed"):
        open_shards(shards, KEYS)
    shards[0].unlink()
    with pytest.raises(DataError, match="train-00000-of-00003 is missing"):
        open_shards(shards, KEYS)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"no protocol buffer",
        example(image__encoded=b"x"),
        example(image__class__label=1),
        example(image__encoded=b"x", image__class__label=[1, 2]),
        example(image__encoded=b"x", image__class__label=[]),
        example(image__encoded=3, image__class__label=1),
        example(image__encoded=b"x", image__class__label=1)[:-1],
    ],
    ids=["empty", "text", "no label", "no image", "two labels", "no value", "a number for an image", "cut"],
)
def test_a_record_of_something_else_is_named(tmp_path, record):
    file = write(tmp_path / "shard", [imagenet_example(1, 1), record])
    with pytest.raises(DataError, match=r"shard, record 1: no tf\.train\.Example with one 'image/encoded'"):
        open_shards([file], KEYS)


@pytest.fixture
def flipped(shards):
    """A bit of the second image of the third shard is another than when it was written."""
    split = whole(shards)
    content = bytearray(shards[2].read_bytes())
    content[split.shards.offsets[5] + 12 + split.shards.images[5, 0] + 300] ^= 1
    shards[2].write_bytes(content)
    return whole(shards)


def test_a_flipped_bit_is_found_when_the_record_is_read(flipped):
    with pytest.raises(DataError, match=r"train-00002-of-00003, record 1 of .* cannot be read"):
        flipped.encoded(5)
    for batches in (
        training_batches(flipped, SMALL, Augmentation(crop="random_resized"), 2, 0, 0),
        evaluation_batches(flipped, SMALL, 2),
    ):
        with pytest.raises(tf.errors.OpError) as caught:
            list(batches)
        assert "train-00002-of-00003, record 1" in str(explain(caught.value, flipped))


def test_a_flipped_bit_is_skipped(flipped):
    corrupt = CorruptSamples()
    labels = [
        int(label)
        for _, row in training_batches(
            flipped, SMALL, Augmentation(crop="random_resized"), 1, 0, 0, on_corrupt="skip", corrupt=corrupt
        )
        for label in row
    ]
    assert len(labels) == 7
    assert set(labels) == {1, 2, 3, 4, 5, 7}
    assert (corrupt.count, corrupt.names) == (1, ["train-00002-of-00003, record 1"])


# ImageNet.


def test_imagenet(tmp_path, shards):
    write(tmp_path / "data" / "validation-00000-of-00001", [imagenet_example(50, 1000)])
    data = load_dataset(f"imagenet:{tmp_path / 'data'}")
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.test.labels.tolist() == [999]
    assert data.class_names == imagenet()
    assert data.preprocessing == Preprocessing.preset("torch", 224)
    held = data.hold_out(3)
    assert sorted([*held.train.labels, *held.validation.labels]) == [0, 1, 2, 3, 4, 5, 6]
    assert held.validation.encoded(0) == jpeg(held.validation.labels[0] + 1)


def test_imagenet_in_two_folders(tmp_path):
    for name in ("train", "validation"):
        write(tmp_path / name / f"{name}-00000-of-00001", [imagenet_example(1, 5)])
    assert load_imagenet(tmp_path, 96).test.labels.tolist() == [4]


def test_an_imagenet_that_is_none(tmp_path, shards):
    folder = tmp_path / "data"
    with pytest.raises(DataError, match="has no files validation-"):
        load_imagenet(folder)
    write(folder / "validation-00000-of-00001", [imagenet_example(1, 1), imagenet_example(1, 1001)])
    with pytest.raises(DataError, match="validation-00000-of-00001, record 1 has the class 1001; 1 to 1000"):
        load_imagenet(folder)
    shards[1].unlink()
    with pytest.raises(DataError, match="lacks shard 00001 of 00003 of train-"):
        load_imagenet(folder)


# TensorFlow Datasets.


@pytest.fixture
def prepared(tmp_path):
    """What `tfds build` of a data set of two splits leaves, as version 4.9 writes it."""
    folder = tmp_path / "tfds" / "tiny" / "1.2.0"
    for split, numbers in (("train", range(5)), ("test", range(5, 7))):
        records = [example(image=jpeg(n), label=n % 2, image__filename=b"x") for n in numbers]
        write(folder / f"tiny-{split}.tfrecord-00000-of-00001", records)
    splits = [
        {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "name": name, "numBytes": "1",
         "shardLengths": [number]}
        for name, number in (("train", "5"), ("test", "2"))
    ]  # fmt: skip
    info = {"fileFormat": "tfrecord", "moduleName": "tiny", "name": "tiny", "splits": splits, "version": "1.2.0"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    image = {"dtype": "uint8", "encodingFormat": "jpeg", "shape": {"dimensions": ["-1", "-1", "3"]}}
    features = {"image": {"image": image}, "label": {"classLabel": {"numClasses": "2"}}}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    (folder / "label.labels.txt").write_text("cat\ndog\n")
    (tmp_path / "tfds" / "tiny" / "0.9.0").mkdir()
    return folder


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_prepared_data_set(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for data in (load_dataset(f"tfds:tiny:{tmp_path / 'tfds'}", 32), load_dataset("tfds:tiny", 32)):
        assert data.class_names == ("cat", "dog")
        assert data.train.labels.tolist() == [0, 1, 0, 1, 0]
        assert data.test.encoded(1) == jpeg(6)
        assert data.preprocessing.size == (32, 32)


def test_a_data_set_that_was_not_prepared(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data set") as caught:
        load_tfds("tiny", tmp_path)
    assert "download_and_prepare" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dataset_info.json", '"tfrecord"', '"array_record"', "array_record; only tfrecord"),
        ("dataset_info.json", '"name": "test"', '"name": "extra"', "train and test"),
        ("dataset_info.json", '["5"]', '["6"]', "hold 5 records, not 6"),
        ("dataset_info.json", '["5"]', '["3", "2"]', "00000-of-00002 is missing"),
        ("dataset_info.json", "{", "", "dataset_info.json cannot be read"),
        ("features.json", '"classLabel"', '"text"', "an image and a class label are needed"),
        ("features.json", '"2"', '"1"', "has the class 1; 0 to 0"),
    ],
)
def test_a_data_set_prepared_otherwise(prepared, file, old, new, message):
    change(prepared / file, old, new)
    with pytest.raises(DataError, match=message):
        load_tfds("tiny", prepared.parent.parent)


def test_classes_without_names(prepared):
    (prepared / "label.labels.txt").unlink()
    assert load_tfds("tiny", prepared.parent.parent).class_names == ("0", "1")
