"""Training runs on real digits: what they write, and that they learn."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_resnets import load_model
from keras_resnets.data import load_dataset
from keras_resnets.training import RECIPES, TrainingError, evaluate_model, train

SHORT = replace(RECIPES["digits"](), epochs=4, warmup_epochs=1, validation=100, batch_size=64)


class Recorder(keras.callbacks.Callback):
    """Counts what Keras's callbacks are told."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append("batch")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch", logs["val_accuracy"]))

    def on_train_end(self, logs=None):
        self.calls.append("end")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, recorder = tmp_path_factory.mktemp("runs") / "run", Recorder()
    model = train(SHORT, folder, callbacks=[recorder], verbose=False)
    return folder, model, recorder


def test_a_run_learns_and_writes_its_records(finished):
    folder, model, _ = finished
    history = json.loads((folder / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert json.loads((folder / "recipe.json").read_text())["validation"] == 100
    test = json.loads((folder / "evaluation.json").read_text())["test"]
    assert test["accuracy"] > 0.7
    assert test == pytest.approx(evaluate_model(model, load_dataset("digits").test))
    assert sorted(file.name for file in folder.iterdir()) == [
        "evaluation.json", "history.json", "model.keras", "recipe.json",
    ]  # fmt: skip


def test_the_checkpoint_is_the_trained_model_with_its_preprocessing(finished):
    folder, model, _ = finished
    loaded, data = load_model(folder / "model.keras"), load_dataset("digits")
    assert loaded.preprocessing == data.preprocessing
    assert tuple(loaded.labels) == data.class_names
    for a, b in zip(model.variables, loaded.variables, strict=True):
        assert np.array_equal(a, b)


def test_keras_callbacks_are_called(finished):
    _, _, recorder = finished
    steps = (len(load_dataset("digits").train) - SHORT.validation) // SHORT.batch_size
    assert recorder.calls[0] == "begin"
    assert recorder.calls[-1] == "end"
    assert recorder.calls.count("batch") == SHORT.epochs * steps
    assert len([call for call in recorder.calls if call[0] == "epoch"]) == SHORT.epochs


def test_early_stopping_stops(tmp_path):
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    train(replace(SHORT, epochs=3), tmp_path / "run", callbacks=[stop], verbose=False)
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 2


def test_what_is_evaluated_is_what_is_saved(tmp_path):
    """Restored weights come with the last callback, after the last epoch's checkpoint."""
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=5, restore_best_weights=True)
    train(replace(SHORT, epochs=2), tmp_path / "run", callbacks=[stop], verbose=False)
    saved = load_model(tmp_path / "run" / "model.keras")
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    assert evaluate_model(saved, load_dataset("digits").test)["loss"] == pytest.approx(written["loss"], rel=1e-5)


def test_a_run_is_not_overwritten_unasked(finished):
    folder, _, _ = finished
    before = (folder / "model.keras").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run"):
        train(SHORT, folder, verbose=False)
    assert (folder / "model.keras").read_bytes() == before


def test_the_same_seed_starts_from_the_same_weights_and_order(tmp_path):
    short = replace(SHORT, epochs=1, warmup_epochs=0, learning_rate=1e-3, validation=0)
    losses = []
    for seed in (1, 1, 2):
        train(replace(short, seed=seed), tmp_path / "run", verbose=False, overwrite=True)
        losses.append(json.loads((tmp_path / "run" / "history.json").read_text())[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(losses[0] - losses[2]) > 1e-3 * losses[0]


def test_what_cannot_be_trained_says_why_before_writing(tmp_path):
    for wrong, message in (
        ({"batch_size": 5000}, "more than the 1337 training images"),
        ({"model": "resnet21"}, "resnet20"),
        ({"data": "digit"}, "digits"),
        ({"validation": 1437}, "hold out"),
    ):
        with pytest.raises((TrainingError, ValueError), match=message):
            train(replace(SHORT, **wrong), tmp_path / "run", verbose=False)
    assert not (tmp_path / "run").exists()


def test_every_recipe_names_a_model_and_data_that_exist():
    from keras_resnets.data import LOADERS
    from keras_resnets.models import model_info

    for make in RECIPES.values():
        assert model_info(make().model)
        assert make().data in LOADERS
        assert "accuracy" in make.__doc__
