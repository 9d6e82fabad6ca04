"""The package's own weights: there without any download, and as good as their records say."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from keras_resnets import create_model
from keras_resnets.data import fashion_mnist, load_dataset
from keras_resnets.models.loading import _card_of
from keras_resnets.training import RECIPES, evaluate_model
from keras_resnets.weights import WeightsError, cached, download, find_weights, verify
from keras_resnets.weights.ledger import LEDGER

ROOT = Path(__file__).parents[2]
OWN = pytest.mark.parametrize("record", [r for r in LEDGER if r.source == "package"], ids=lambda record: record.model)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No cache, no data set, no way to a host."""
    import socket

    def refuse(*_, **__):
        raise AssertionError("nothing may be asked for")

    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path))
    monkeypatch.setenv("KERAS_RESNETS_FASHION_MNIST", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)


@OWN
def test_they_work_at_once(offline, record):
    model = create_model(record.model, weights="fashion_mnist")
    assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 10)
    sample = load_dataset("fashion_mnist_sample")
    assert evaluate_model(model, sample.test)["accuracy"] > 0.85
    first = model.preprocess_input(list(sample.test.images[:1]))
    [best] = model.decode_predictions(model.predict(first, verbose=0), top=1)
    assert best[0].label in fashion_mnist.load_fashion_mnist_sample().class_names


@pytest.mark.fashion_mnist
@OWN
def test_the_record_is_what_the_test_images_give(record):
    model = create_model(record.model, weights=record)
    accuracy = evaluate_model(model, load_dataset("fashion_mnist").test)["accuracy"]
    assert round(100 * accuracy, 2) == record.results[0].top1


@OWN
def test_the_file_is_that_of_the_record_and_of_its_log(record):
    path = download(record)
    assert path == cached(record) and verify(record) == record.hash
    assert "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() == record.hash
    log = ROOT / record.page
    recipe = json.loads((log / "recipe.json").read_text())
    assert recipe["model"] == record.model and f"--model {record.model}" in record.recipe
    name = record.recipe.split("--recipe ")[1].split()[0]
    other = {key: value for key, value in RECIPES[name]().to_dict().items() if recipe.get(key, 0) != value}
    assert set(other) <= {"model", "precision"}
    accuracy = json.loads((log / "evaluation.json").read_text())["test"]["accuracy"]
    assert round(100 * accuracy, 2) == record.results[0].top1


def test_what_the_file_says_of_itself():
    record = find_weights("resnet20", "fashion_mnist")
    card = _card_of(download(record))
    assert card.preprocessing == record.preprocessing and card.architecture.model == "resnet20"


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    from keras_resnets.weights import fetch

    record = find_weights("resnet20", "fashion_mnist")
    content = bytearray(download(record).read_bytes())
    content[-1] ^= 1
    (tmp_path / record.repository).mkdir()
    monkeypatch.setattr(fetch, "_PACKAGE", tmp_path)
    with pytest.raises(WeightsError, match="install keras-resnets again"):
        download(record)
    (tmp_path / record.repository / record.file).write_bytes(content)
    with pytest.raises(WeightsError):
        create_model("resnet20", weights="fashion_mnist")


def test_other_classes_and_channels_begin_from_them():
    with pytest.warns(UserWarning, match="predictions"):
        tuned = create_model("resnet20", weights="fashion_mnist", classes=3)
    own = create_model("resnet20", weights="fashion_mnist")
    kernel = "conv3_block2_1_conv"
    np.testing.assert_array_equal(tuned.get_layer(kernel).kernel, own.get_layer(kernel).kernel)
    assert tuned.labels is None and own.labels is not None and tuned.preprocessing == own.preprocessing
