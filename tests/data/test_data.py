"""Data sets, their files, and the batches that training sees."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from keras_resnets.data import DataError, load_dataset, load_digits, load_fashion_mnist
from keras_resnets.data.dataset import Dataset, Split, normalization
from keras_resnets.data.fashion_mnist import read_idx
from keras_resnets.data.pipeline import Augmentation, evaluation_batches, training_batches
from keras_resnets.preprocessing import Preprocessing

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
AS_IS = Preprocessing((6, 5), 1, mean=(0.0,), std=(1.0,))
PLAIN = Augmentation()


def idx(array):
    """An idx file of bytes, as LeCun's page describes it."""
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


# idx files.


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_an_idx_file(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(read_idx(file), array)


WHOLE = idx(np.arange(60).reshape(3, 4, 5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "is corrupt"),
        (b"", "corrupt|no idx file"),
        (gzip.compress(WHOLE)[:-12], "is corrupt"),
        (gzip.compress(b""), "is no idx file"),
        (gzip.compress(b"\0\0\x0d\x03" + WHOLE[4:]), "is no idx file of bytes"),
        (gzip.compress(b"\x89PNG" + WHOLE), "is no idx file of bytes"),
        (gzip.compress(WHOLE[:-1]), r"59 values where its header says \[3, 4, 5\]"),
        (gzip.compress(WHOLE + b"\0"), r"61 values where its header says \[3, 4, 5\]"),
        (gzip.compress(WHOLE[:4]), "is corrupt"),
        (gzip.compress(WHOLE[:7]), "is corrupt"),
        (gzip.compress(b"\0\0\x08\xc8" + b"\0\0\0\1" * 200 + b"x"), "corrupt|no idx file"),
        (gzip.compress(b"\0\0\x08\x03" + b"\x80\0\0\0\x80\0\0\0\0\0\0\4"), "is corrupt"),
    ],
    ids=[
        "not gzip", "empty", "truncated gzip", "nothing in it", "floats", "png", "short", "long",
        "no sizes", "half a size", "200 dimensions", "sizes whose product is 2 to the 64",
    ],
)  # fmt: skip
def test_a_damaged_idx_file_is_named(tmp_path, content, message):
    file = tmp_path / "images.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(file)
    assert str(file) in str(caught.value)


def test_a_missing_idx_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.gz is missing"):
        read_idx(tmp_path / "absent.gz")


# Digits.


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def rows_of(split):
    return {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


def test_the_digits(digits):
    for split, number in ((digits.train, 1437), (digits.test, 360)):
        assert (split.images.shape, split.images.dtype) == ((number, 8, 8, 1), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((number,), np.int64)
        assert set(split.labels) == set(range(10))
        assert split.images.max() == 255
    # A share of each class that is the same in both splits, to a whole image.
    shares = np.bincount(digits.test.labels) - np.bincount(digits.train.labels) * 360 / 1437
    assert np.abs(shares).max() <= 2
    assert digits.class_names == tuple("0123456789")


def test_the_splits_together_are_scikit_learns_digits(digits):
    """Each image once: in training or in the test, never in both."""
    raw = sklearn.datasets.load_digits()
    own = np.concatenate([digits.train.images, digits.test.images])[..., 0].reshape(-1, 64)
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    got = np.column_stack([np.rint(own * (16 / 255)), labels])
    want = np.column_stack([raw.data, raw.target])
    np.testing.assert_array_equal(got[np.lexsort(got.T)], want[np.lexsort(want.T)])


def test_no_test_image_is_trained_on(digits):
    assert not rows_of(digits.train) & rows_of(digits.test)


def test_the_digits_are_the_same_every_time(digits):
    again = load_dataset("digits")
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    np.testing.assert_array_equal(again.test.labels, digits.test.labels)
    assert again.preprocessing == digits.preprocessing


def test_an_unknown_data_set():
    with pytest.raises(DataError, match="did you mean fashion_mnist"):
        load_dataset("fashion-mnist")
    with pytest.raises(DataError, match=r"there are digits, .*cifar10.*folder:PATH"):
        load_dataset("zzz")


# Holding out, normalization.


def test_hold_out_divides_the_training_images(digits):
    held = digits.hold_out(200)
    assert (len(held.train), len(held.validation), len(held.test)) == (1237, 200, 360)
    assert rows_of(held.train) | rows_of(held.validation) == rows_of(digits.train)
    assert not rows_of(held.train) & rows_of(held.validation)
    np.testing.assert_array_equal(held.test.images, digits.test.images)
    assert digits.validation is None


def test_hold_out_takes_the_same_images_every_time(digits):
    one, two = digits.hold_out(100), load_digits().hold_out(100)
    np.testing.assert_array_equal(one.validation.images, two.validation.images)
    np.testing.assert_array_equal(one.train.labels, two.train.labels)
    # Not simply the first ones, which one writer may have drawn.
    assert not np.array_equal(one.validation.images, digits.train.images[:100])


def test_hold_out_of_nothing(digits):
    held = digits.hold_out(0)
    assert len(held.train) == 1437
    assert held.validation is None


@pytest.mark.parametrize("number", [-1, 1437, 5000])
def test_hold_out_of_too_many(digits, number):
    with pytest.raises(DataError, match=rf"hold out {number} of the 1437 training images of digits"):
        digits.hold_out(number)


def test_a_limit_takes_the_same_images_every_time(digits):
    few, again = digits.limit(100), load_digits().limit(100)
    np.testing.assert_array_equal(few.train.images, again.train.images)
    assert rows_of(few.train) < rows_of(digits.train) and len(few.train) == 100
    assert len(set(few.train.labels.tolist())) == 10
    assert digits.limit(0) is digits and len(digits.limit(1437).train) == 1437
    np.testing.assert_array_equal(few.test.images, digits.test.images)


@pytest.mark.parametrize("number", [-1, 1438])
def test_a_limit_beyond_what_there_is(digits, number):
    with pytest.raises(DataError, match=rf"{number} training images were asked for, and digits has 1437"):
        digits.limit(number)


def test_normalized_digits_have_mean_0_and_deviation_1(digits):
    values = digits.preprocessing.normalize(digits.train.images)
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3


def test_normalization_is_a_matter_of_each_channel():
    random = np.random.default_rng(0)
    images = np.stack(
        [random.integers(low, high, (20, 6, 5)) for low, high in ((0, 50), (100, 256), (200, 220))], -1
    ).astype(np.uint8)
    preprocessing = normalization(images)
    assert preprocessing.size == (6, 5)
    values = preprocessing.normalize(images)
    np.testing.assert_allclose(values.mean((0, 1, 2)), 0, atol=5e-3)
    np.testing.assert_allclose(values.std((0, 1, 2)), 1, atol=5e-3)


# Batches.


@pytest.fixture(scope="module")
def split():
    """Fifty images of 6×5, each with its number for a label and no pixel of zero."""
    return Split(np.random.default_rng(0).integers(1, 256, (50, 6, 5, 1), np.uint8), np.arange(50))


def collect(batches):
    images, labels = zip(*((x.numpy(), y.numpy()) for x, y in batches), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def epoch(split, augmentation=PLAIN, batch_size=10, seed=0, epoch=0, preprocessing=AS_IS):
    return collect(training_batches(split, preprocessing, augmentation, batch_size, seed, epoch))


def by_sample(images, labels):
    return {int(label): image for image, label in zip(images, labels, strict=True)}


ALL = Augmentation(pad=2, flip=True)


def test_an_epoch_can_be_repeated(split):
    for one, two in zip(epoch(split, ALL, seed=3, epoch=4), epoch(split, ALL, seed=3, epoch=4), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_another_epoch_or_seed_is_another_order_and_crop(split, other):
    images, labels = epoch(split, ALL)
    others, other_labels = epoch(split, ALL, **other)
    assert not np.array_equal(labels, other_labels)
    one, two = by_sample(images, labels), by_sample(others, other_labels)
    assert sum(not np.array_equal(one[i], two[i]) for i in range(50)) > 25


def test_each_image_comes_once_an_epoch(split):
    assert sorted(epoch(split)[1]) == list(range(50))


def test_what_does_not_fill_a_batch_is_left_out(split):
    batches = list(training_batches(split, AS_IS, PLAIN, 8, 0, 0))
    assert [len(labels) for _, labels in batches] == [8] * 6
    labels = np.concatenate([labels for _, labels in batches])
    assert len(set(labels)) == 48


def test_an_exact_batch_is_enough(split):
    assert len(epoch(split, batch_size=50)[1]) == 50
    with pytest.raises(DataError, match="a batch of 51 cannot be filled from 50 images"):
        training_batches(split, AS_IS, PLAIN, 51, 0, 0)


@pytest.mark.parametrize("mode", ["torch", "caffe", "tf"])
@pytest.mark.parametrize("assemble", ["training", "evaluation"])
def test_tensorflow_normalizes_as_the_reference(mode, assemble):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)
    split = Split(pixels, np.arange(12))
    preprocessing = Preprocessing.preset(mode, 6)
    if assemble == "training":
        images, labels = epoch(split, batch_size=4, preprocessing=preprocessing)
    else:
        images, labels = collect(evaluation_batches(split, preprocessing, 5))
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, preprocessing.normalize(pixels[labels]), rtol=1e-6, atol=1e-6)


def test_a_crop_lies_within_a_border_of_zeros(split):
    padded = np.pad(split.images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    seen = set()
    for label, image in by_sample(*epoch(split, Augmentation(pad=2))).items():
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(padded[label, top : top + 6, left : left + 5], image)
        ]
        assert len(found) == 1
        seen.update(found)
    # Both ends of both ranges are drawn.
    assert {top for top, _ in seen} == {left for _, left in seen} == set(range(5))


def test_about_half_of_the_images_are_mirrored(split):
    mirrored = 0
    for label, image in by_sample(*epoch(split, Augmentation(flip=True))).items():
        same = np.array_equal(image, split.images[label])
        assert same or np.array_equal(image, split.images[label, :, ::-1])
        mirrored += not same
    assert 10 < mirrored < 40


def test_the_augmentation_of_an_image_does_not_depend_on_the_batch(split):
    """What lets two GPUs with half the batch each train as one."""
    one, two = by_sample(*epoch(split, ALL, batch_size=50)), by_sample(*epoch(split, ALL, batch_size=5))
    assert one.keys() == two.keys()
    for label, image in one.items():
        np.testing.assert_array_equal(image, two[label])


def test_evaluation_keeps_all_images_in_order(split):
    batches = list(evaluation_batches(split, AS_IS, 20))
    assert [len(labels) for _, labels in batches] == [20, 20, 10]
    images, labels = collect(batches)
    np.testing.assert_array_equal(labels, split.labels)
    np.testing.assert_array_equal(images, split.images)


# Fashion-MNIST.

NAMES = [f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.mark.fashion_mnist
def test_fashion_mnist():
    data = load_fashion_mnist(SYSTEM)
    assert isinstance(data, Dataset)
    assert (data.train.images.shape, data.test.images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    assert list(np.bincount(data.train.labels)) == [6_000] * 10
    assert list(np.bincount(data.test.labels)) == [1_000] * 10
    # The first training image is the ankle boot of every tutorial; mean and deviation are the well-known ones.
    assert data.class_names[data.train.labels[0]] == "Ankle boot"
    assert data.preprocessing.mean == pytest.approx((0.2860,), abs=2e-4)
    assert data.preprocessing.std == pytest.approx((0.3530,), abs=2e-4)


@pytest.mark.fashion_mnist
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_corrupt_file_of_fashion_mnist_is_named(tmp_path, name):
    for other in NAMES:
        (tmp_path / other).symlink_to(SYSTEM / other)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        load_fashion_mnist(tmp_path)
    data = (SYSTEM / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=f"{name} is corrupt"):
        load_fashion_mnist(tmp_path)


def test_a_folder_without_fashion_mnist(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is missing"):
        load_fashion_mnist(tmp_path)


def test_a_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_RESNETS_FASHION_MNIST", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"elsewhere.*is missing"):
        load_dataset("fashion_mnist")


def test_files_of_another_data_set(tmp_path):
    """MNIST's twin in form only: too few images, or a label that is no class."""
    for name in NAMES:
        shape = (3, 28, 28) if "images" in name else (3,)
        (tmp_path / name).write_bytes(gzip.compress(idx(np.zeros(shape))))
    with pytest.raises(DataError, match="not Fashion-MNIST"):
        load_fashion_mnist(tmp_path)
